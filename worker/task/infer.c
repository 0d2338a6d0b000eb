/* infer: one job's input through a model.
 *
 * On the loop: the model is looked up, `redis:` references are fetched, since only the loop talks
 * to Redis, and the job waits in the batcher. On a lane: the input is decoded, rows of the same
 * shape are stacked and run, each answer is written as JSON. So no payload is parsed on the loop.
 * References are looked for there only in a short input, which is what one that refers to something
 * is; in a long one the lane finds them, and the job comes back once to have them fetched.
 *
 * A job with an output_ref ("file:…") has its result written there, and the envelope names it
 * instead. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "worker/daemon/files.h"
#include "worker/task/rows.h"
#include "worker/task/task.h"

#define REFS_MAX 8
#define SEARCH_BYTES_MAX 16384 /* microseconds on the loop */
#define RESULT_BYTES_MAX ((size_t)256 << 20)

struct fetched {
    char *key; /* behind "redis:" */
    char *value;
    size_t len;
};

struct infer {
    struct fetched refs[REFS_MAX]; /* L: read */
    int n_refs, n_due;
    bool searched; /* for references; L */
    bool too_many; /* of them; L */
    bool missing;  /* a lane met one that nobody had looked for; L */
};

static void free_state(struct w_task *t) {
    struct infer *s = t->state;
    for (int i = 0; i < s->n_refs; i++) {
        free(s->refs[i].key);
        free(s->refs[i].value);
    }
}

/* --- on a lane -------------------------------------------------------------------------------- */

struct fetch_ctx {
    struct w_lane *lane;
    struct infer *state;
};

static bool fetch(void *user, const char *ref, struct w_arena *arena, struct w_span *bytes,
                  struct w_error *err) {
    struct fetch_ctx *c = user;
    w_lane_beat(c->lane);
    if (strncmp(ref, "file:", 5) == 0) return w_files_read(c->lane->files, ref, arena, bytes, err);
    if (strncmp(ref, "redis:", 6) != 0)
        return w_fail(err, W_UNSUPPORTED,
                      "the reference \"%.100s\" has no known kind; file: and redis: are read", ref);
    for (int i = 0; i < c->state->n_refs; i++) {
        if (strcmp(c->state->refs[i].key, ref + 6) != 0) continue;
        *bytes = (struct w_span){c->state->refs[i].value, c->state->refs[i].len};
        return true;
    }
    c->state->missing = !c->state->searched;
    return w_fail(err, W_REF_FAILED, "the reference \"%.100s\" was not fetched", ref);
}

static bool note_ref(void *user, const char *ref) {
    struct infer *s = user;
    if (strncmp(ref, "redis:", 6) != 0) return true;
    for (int i = 0; i < s->n_refs; i++)
        if (strcmp(s->refs[i].key, ref + 6) == 0) return true;
    if (s->n_refs == REFS_MAX) {
        s->too_many = true;
        return false;
    }
    s->refs[s->n_refs].key = strdup(ref + 6);
    if (!s->refs[s->n_refs].key) return false;
    s->n_refs++;
    return true;
}

/* Notes the redis: references of the input. On the loop for a short one, else on a lane. */
static void search(struct infer *s, const struct q_job *job) {
    s->searched = true;
    if (job->input.ptr)
        w_input_refs(job->input.ptr, job->input.len, false, note_ref, s);
    else
        w_input_refs(job->input_ref.ptr, job->input_ref.len, true, note_ref, s);
}

/* Writes the result beside its place and renames it: a reader sees all of it or nothing. */
static bool write_out(const struct w_files *files, const char *ref, const char *text, size_t len,
                      struct w_error *err) {
    char name[256], temporary[300];
    int dir = w_files_open_parent(files, ref, name, err), fd;
    if (dir < 0) return false;
    snprintf(temporary, sizeof temporary, ".%s.%d.%p.tmp", name, (int)getpid(), (void *)&name);
    fd = openat(dir, temporary, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0644);
    bool ok = fd >= 0;
    for (size_t at = 0; ok && at < len;) {
        ssize_t n = write(fd, text + at, len - at);
        ok = n > 0;
        at += ok ? (size_t)n : 0;
    }
    ok = ok && fsync(fd) == 0 && renameat(dir, temporary, dir, name) == 0;
    if (!ok) w_fail(err, W_OUTPUT_FAILED, "%.200s cannot be written: %s", ref, strerror(errno));
    if (fd >= 0) close(fd);
    if (!ok && fd >= 0) unlinkat(dir, temporary, 0);
    close(dir);
    return ok;
}

static void take_result(struct w_lane *lane, struct w_task *t, const struct w_row *row,
                        int64_t together) {
    t->batch = together > UINT32_MAX ? UINT32_MAX : (uint32_t)together;
    if (row->result.len > RESULT_BYTES_MAX) {
        t->failed = true;
        w_fail(&t->err, W_TOO_LARGE, "the result has %zu bytes, at most %zu are allowed",
               row->result.len, RESULT_BYTES_MAX);
    } else if (t->job->output_ref.ptr) {
        t->ref = w_json_text(t->job->output_ref);
        if (!t->ref || strncmp(t->ref, "file:", 5) != 0)
            t->failed = !w_fail(
                &t->err, W_UNSUPPORTED,
                "output_ref of infer is \"%.100s\", a string that begins with file: is expected",
                t->ref ? t->ref : "no string");
        else
            t->failed = !write_out(lane->files, t->ref, row->result.ptr, row->result.len, &t->err);
    } else if ((t->result = malloc(row->result.len + 1)) != NULL) {
        memcpy(t->result, row->result.ptr, row->result.len);
        t->result[row->result.len] = 0;
        t->result_len = row->result.len;
    } else {
        t->failed = true;
        w_fail(&t->err, W_NO_MEMORY, "no memory for a result of %zu bytes", row->result.len);
    }
}

struct lane_run {
    struct w_lane *lane;
    struct w_task *tasks[W_WORK_TASKS_MAX];
    struct w_row *rows[W_WORK_TASKS_MAX];
    size_t n;
};

static void row_done(void *ctx, size_t i, enum w_next next, int64_t together,
                     const struct w_error *err) {
    struct lane_run *r = ctx;
    if (next == W_NEXT_DONE)
        take_result(r->lane, r->tasks[i], r->rows[i], together);
    else
        w_task_lane_fail(r->tasks[i], err);
}

/* Decodes one job's input; true: it is to be run. */
static bool decode(struct w_lane *lane, struct w_task *t, size_t i, struct w_row **dst) {
    const struct q_job *job = t->job;
    struct fetch_ctx fc = {lane, t->state};
    struct w_input input = {.fetch = fetch, .user = &fc};
    struct w_row *row = w_lane_row(lane, i);
    *dst = row;
    if (!row) {
        w_fail(&t->err, W_NO_MEMORY, "no memory for a row");
        t->failed = true;
        return false;
    }
    row->b64 = strcmp(job->encoding, "b64") == 0;
    row->params = (struct w_span){job->params.ptr, job->params.len};
    input.kind = job->input.ptr ? W_INPUT_JSON : W_INPUT_REF;
    input.json = job->input.ptr ? (struct w_span){job->input.ptr, job->input.len}
                                : (struct w_span){job->input_ref.ptr, job->input_ref.len};
    switch (w_pipeline_before(t->model->pipeline, row, &input, &t->err)) {
    case W_NEXT_RUN:
        return true;
    case W_NEXT_DONE:
        take_result(lane, t, row, 1);
        return false;
    case W_NEXT_FAILED:
        if (((struct infer *)t->state)->missing) {
            search(t->state, job);
            return false;
        }
        t->failed = true;
        if (strncmp(t->err.text, "model ", 6) != 0)
            w_fail_in(&t->err, "model \"%s\": ", t->model->name);
        return false;
    }
    return false;
}

static void swap(struct lane_run *r, size_t a, size_t b) {
    struct w_task *t = r->tasks[a];
    struct w_row *row = r->rows[a];
    r->tasks[a] = r->tasks[b], r->rows[a] = r->rows[b];
    r->tasks[b] = t, r->rows[b] = row;
}

/* Brings rows that fit together next to each other. */
static void gather(struct lane_run *r, const struct w_model *model) {
    for (size_t i = 0, end; i < r->n; i = end) {
        end = i + 1;
        for (size_t k = end; k < r->n; k++)
            if (w_rows_fit(model, r->rows[i], r->rows[k])) swap(r, end++, k);
    }
}

static void on_lane(struct w_lane *lane, struct w_task **tasks, size_t n) {
    struct lane_run r = {.lane = lane};
    struct w_model *model = tasks[0]->model;
    int64_t rows_max = model->batch.max > 0 ? model->batch.max : atomic_load(&lane->pool->rows_max);
    uint64_t from = uv_hrtime();
    for (size_t i = 0; i < n; i++) {
        w_lane_beat(lane);
        if (atomic_load(&tasks[i]->stop) != W_GO) {
            w_fail(&tasks[i]->err, "cancelled", "stopped");
            tasks[i]->failed = true;
        } else if (decode(lane, tasks[i], r.n, &r.rows[r.n])) {
            r.tasks[r.n++] = tasks[i];
        }
    }
    if (r.n > 1) gather(&r, model);
    w_rows_run(lane, model, r.rows, r.n, rows_max, row_done, &r);
    double ms = (double)(uv_hrtime() - from) / 1e6;
    for (size_t i = 0; i < n; i++) tasks[i]->run_ms = ms;
}

/* --- on the loop ------------------------------------------------------------------------------ */

static void fetch_all(struct w_task *t);

static void back(struct w_task *t) {
    struct infer *s = t->state;
    if (!s->missing || t->failed) {
        w_task_finish(t);
        return;
    }
    s->missing = false;
    if (!w_task_stopped(t)) fetch_all(t);
}

static void to_lane(struct w_task *t) {
    struct infer *s = t->state;
    size_t bytes = t->job->input.len + t->job->input_ref.len;
    for (int i = 0; i < s->n_refs; i++) bytes += s->refs[i].len;
    w_task_on_lane(t, on_lane, back, bytes, true);
}

struct pending {
    struct w_task *task;
    int i;
};

static void fetched(void *ctx, char *value, size_t len, const struct q_error *qe) {
    struct pending p = *(struct pending *)ctx;
    struct infer *s = p.task->state;
    struct fetched *f = &s->refs[p.i];
    free(ctx);
    f->value = value;
    f->len = len;
    if (!value && !p.task->failed) {
        p.task->failed = true;
        const char *code = qe && qe->code == Q_NOT_FOUND    ? W_REF_NOT_FOUND
                           : qe && qe->code == Q_BAD_OPTION ? W_TOO_LARGE
                                                            : W_REF_FAILED;
        w_fail(&p.task->err, code, "redis:%.150s: %s", f->key, qe ? qe->text : "no answer");
    }
    if (--s->n_due > 0) return;
    w_task_back(p.task);
    if (p.task->failed)
        w_task_finish(p.task);
    else if (!w_task_stopped(p.task))
        to_lane(p.task);
}

static void fetch_all(struct w_task *t) {
    struct infer *s = t->state;
    if (s->too_many) {
        w_task_fail(t, W_TOO_LARGE, "the input has more than %d redis: references", REFS_MAX);
        return;
    }
    if (s->n_refs == 0) {
        to_lane(t);
        return;
    }
    w_task_at_queue(t);
    s->n_due = s->n_refs;
    for (int i = 0; i < s->n_refs; i++) {
        struct pending *p = malloc(sizeof *p);
        if (!p) abort(); /* sixteen bytes */
        *p = (struct pending){t, i};
        q_worker_fetch(w_daemon_queue(t->daemon), s->refs[i].key, w_daemon_ref_bytes_max(t->daemon),
                       fetched, p);
    }
}

static void have_model(struct w_task *t) {
    if (t->job->input.len + t->job->input_ref.len <= SEARCH_BYTES_MAX) search(t->state, t->job);
    fetch_all(t);
}

static void start(struct w_task *t) {
    const struct q_job *job = t->job;
    if (!job->input.ptr && !job->input_ref.ptr) {
        w_task_fail(t, "bad_job", "the job has neither input nor input_ref; infer needs one");
    } else if (job->input.ptr && job->input_ref.ptr) {
        w_task_fail(t, "bad_job", "the job has both input and input_ref; infer takes one");
    } else {
        w_task_with_model(t, job->model, have_model);
    }
}

static const struct w_task_desc infer = {
    .name = "infer",
    .summary = "one input through a model",
    .state_bytes = sizeof(struct infer),
    .start = start,
    .free = free_state,
};
W_TASK(infer);
