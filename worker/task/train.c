/* train: a training spec as a job. The spec is the job's `params`; paths in it are file references
 * (below --files); the model goes to the folder named by output_ref, or becomes a new version of
 * params.publish.name in this worker's store, or both.
 *
 * A lane trains for a slice of time and comes back, so that the loop can tell how far it is, and
 * other jobs get their turn; the state lives on in between, and only one lane has it at a time.
 *
 *   start ─▶ lane: slice ─▶ sliced: progress ─▶ lane: slice ─▶ … ─▶ finish
 *
 * Cancelling, draining and time-outs set the task's stop, which the lane looks at between batches;
 * the state is kept then, and the job goes on from it wherever it runs next. A checkpoint carries
 * the fencing token in its name: a worker that was taken for dead writes to a file that nobody will
 * read, and finds a higher token beside its own before it publishes. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "worker/daemon/files.h"
#include "worker/task/task.h"
#include "worker/train/train.h"

#define SLICE_S 0.25
#define DATA_BYTES_MAX ((size_t)16 << 30)
#define STATUS_BYTES_MAX 3800

struct training {
    struct w_spec_train *spec;
    struct w_fit *fit;
    struct w_task *task;
    struct w_lane *lane; /* of the present slice */
    const char *store;
    volatile bool cancel; /* set by the lane that trains */
    bool over;
    int parent;        /* descriptor of the output's folder; -1: none */
    char output[340];  /* "" where nothing but the store gets it */
    char folder[4200]; /* of the checkpoints */
    char checkpoint[4300], resume[4300];
    char status[STATUS_BYTES_MAX + 200];
};

static struct training *of(struct w_task *t) {
    return *(struct training **)t->state;
}

static void free_state(struct w_task *t) {
    struct training *s = of(t);
    if (!s) return;
    w_fit_destroy(s->fit);
    w_train_spec_destroy(s->spec);
    if (s->parent >= 0) close(s->parent);
    free(s);
}

/* --- on a lane: telling -------------------------------------------------------------------------
 */

static void on_tick(void *user) {
    struct training *s = user;
    w_lane_beat(s->lane);
    if (atomic_load(&s->task->stop) == W_STOP_FENCED)
        s->fit->o.checkpoint = NULL; /* not ours any more */
    if (atomic_load(&s->task->stop) != W_GO) __atomic_store_n(&s->cancel, true, __ATOMIC_RELAXED);
}

static void on_step(void *user, const struct w_fit_status *st) {
    struct training *s = user;
    json_t *metrics = json_object();
    for (int i = 0; i < st->metrics->n; i++)
        json_object_set_new(metrics, st->metrics->items[i].name,
                            json_real(w_metric_value(&st->metrics->items[i])));
    int64_t done = (int64_t)(st->epoch - 1) * st->steps + st->step,
            total = (int64_t)st->epochs * st->steps;
    json_t *o = json_pack(
        "{s:i,s:i,s:I,s:I,s:I,s:I,s:f,s:o,s:f,s:f,s:f}", "epoch", st->epoch, "epochs", st->epochs,
        "step", (json_int_t)st->step, "steps", (json_int_t)st->steps, "done", (json_int_t)done,
        "total", (json_int_t)total, "loss", st->loss, "metrics", metrics, "learning_rate",
        st->learning_rate, "samples_per_s", st->samples_per_s, "eta_s", st->eta_s);
    char *text = o ? json_dumps(o, JSON_COMPACT | JSON_REAL_PRECISION(6)) : NULL;
    if (text && strlen(text) <= STATUS_BYTES_MAX) snprintf(s->status, sizeof s->status, "%s", text);
    free(text);
    json_decref(o);
}

/* --- on a lane: places ---------------------------------------------------------------------------
 */

static int open_ref(void *user, const char *path, bool *is_folder, struct w_error *err) {
    struct training *s = user;
    w_lane_beat(s->lane);
    return w_files_open(s->lane->files, path, true, is_folder, err);
}

static bool open_output(struct training *s, struct w_error *err) {
    char name[256];
    if (!s->task->job->output_ref.ptr) return true;
    char *ref = w_json_text(s->task->job->output_ref);
    if (!ref) return w_fail(err, "bad_job", "output_ref is no string");
    s->parent = w_files_open_parent(s->lane->files, ref, name, err);
    free(ref);
    if (s->parent < 0) return false;
    if (mkdirat(s->parent, name, 0755) != 0 && errno != EEXIST)
        return w_fail(err, W_OUTPUT_FAILED, "output_ref: the folder \"%.100s\" cannot be made: %s",
                      name, strerror(errno));
    struct stat st;
    if (fstatat(s->parent, name, &st, AT_SYMLINK_NOFOLLOW) != 0 || !S_ISDIR(st.st_mode))
        return w_fail(err, W_OUTPUT_FAILED, "output_ref: \"%.100s\" is no folder", name);
    snprintf(s->output, sizeof s->output, "/proc/self/fd/%d/%s", s->parent, name);
    return true;
}

static uint64_t job_hash(const struct q_job *job) {
    uint64_t h = 1469598103934665603u;
    for (const char *p = job->queue; *p; p++) h = (h ^ (unsigned char)*p) * 1099511628211u;
    h = (h ^ '/') * 1099511628211u;
    for (const char *p = job->id; *p; p++) h = (h ^ (unsigned char)*p) * 1099511628211u;
    return h;
}

/* The token of a checkpoint of this job (ending ""), or of one whose writing was cut off (".tmp");
 * 0: another file. */
static uint64_t token_of(const struct training *s, const char *name, const char *ending) {
    char prefix[48], *end;
    size_t n = (size_t)snprintf(prefix, sizeof prefix, ".train-%016jx.",
                                (uintmax_t)job_hash(s->task->job));
    if (strncmp(name, prefix, n) != 0) return 0;
    uint64_t token = strtoull(name + n, &end, 10);
    return strcmp(end, ending) == 0 ? token : 0;
}

/* The highest token that has left a checkpoint. */
static uint64_t newest(const struct training *s) {
    DIR *d = opendir(s->folder);
    uint64_t best = 0;
    for (struct dirent *e; d && (e = readdir(d));) {
        uint64_t token = token_of(s, e->d_name, "");
        if (token > best) best = token;
    }
    if (d) closedir(d);
    return best;
}

static void name_checkpoint(const struct training *s, uint64_t token, char *dst, size_t size) {
    snprintf(dst, size, "%s/.train-%016jx.%ju", s->folder, (uintmax_t)job_hash(s->task->job),
             (uintmax_t)token);
}

/* Removes those of tokens up to the given one. */
static void clear_up(const struct training *s, uint64_t up_to) {
    DIR *d = opendir(s->folder);
    for (struct dirent *e; d && (e = readdir(d));) {
        uint64_t token = token_of(s, e->d_name, "");
        if (!token) token = token_of(s, e->d_name, ".tmp");
        if (token && token <= up_to) unlinkat(dirfd(d), e->d_name, 0);
    }
    if (d) closedir(d);
}

static bool find_places(struct training *s, struct w_error *err) {
    const struct q_job *job = s->task->job;
    if (!open_output(s, err)) return false;
    if (s->spec->publish && !*s->store)
        return w_fail(err, "bad_job", "params.publish: this worker has no model store (--models)");
    if (!s->spec->publish && !*s->output)
        return w_fail(err, "bad_job",
                      "the model would go nowhere: give output_ref (a folder) or params.publish");
    if (*s->output)
        snprintf(s->folder, sizeof s->folder, "%s", s->output);
    else
        snprintf(s->folder, sizeof s->folder, "%s", s->store);
    uint64_t last = newest(s);
    if (last > job->token) return w_fail(err, "fenced", "a later attempt of this job has begun");
    name_checkpoint(s, job->token, s->checkpoint, sizeof s->checkpoint);
    name_checkpoint(s, last ? last : job->token, s->resume, sizeof s->resume);
    return true;
}

/* --- on a lane: the work
 * -------------------------------------------------------------------------- */

static bool make(struct training *s, struct w_error *err) {
    struct q_span p = s->task->job->params;
    if (!p.ptr || !w_json_is(p, '{'))
        return w_fail(err, "bad_job", "params must be the training spec, an object");
    s->spec = w_train_spec_parse(p.ptr, p.len, err);
    if (!s->spec || !find_places(s, err)) return false;
    const struct w_fit_options o = {
        .files = {.open = open_ref, .user = s, .bytes_max = DATA_BYTES_MAX, .cancel = &s->cancel},
        .n_threads = s->lane->pool->n_threads,
        .cancel = &s->cancel,
        .checkpoint = s->checkpoint,
        .resume = s->resume,
        .slice_s = SLICE_S,
        .user = s,
        .on_step = on_step,
        .on_tick = on_tick};
    s->fit = w_fit_create(s->spec, &o, err);
    return s->fit != NULL;
}

static bool deliver(struct training *s, struct w_error *err) {
    struct w_task *t = s->task;
    int64_t version = 0;
    if (newest(s) > t->job->token)
        return w_fail(err, "fenced", "a later attempt of this job has begun");
    if (*s->output && !w_fit_write(s->fit, s->output, err)) return false;
    if (s->spec->publish && !w_fit_publish(s->fit, s->store, s->spec->publish, t->job->id,
                                           t->job->token, &version, err))
        return false;
    json_t *epochs = s->fit->history, *o = json_object();
    size_t n = json_array_size(epochs);
    json_object_set(o, "test", s->fit->test_results ? s->fit->test_results : json_null());
    json_object_set(o, "last_epoch", n ? json_array_get(epochs, n - 1) : json_null());
    json_object_set_new(o, "epochs", json_integer((json_int_t)n));
    json_object_set_new(o, "seconds", json_real(s->fit->seconds));
    if (s->spec->publish) {
        json_object_set_new(o, "model", json_string(s->spec->publish));
        json_object_set_new(o, "version", json_integer(version));
    }
    t->result = json_dumps(o, JSON_COMPACT | JSON_REAL_PRECISION(10));
    t->result_len = t->result ? strlen(t->result) : 0;
    json_decref(o);
    if (!t->result) return w_fail(err, W_NO_MEMORY, "no memory for the result");
    clear_up(s, t->job->token);
    return true;
}

static void slice(struct w_lane *lane, struct w_task **tasks, size_t n) {
    struct training *s = of(tasks[0]);
    struct w_error err = {0};
    (void)n;
    s->lane = lane;
    if (!s->fit && !make(s, &err)) {
        if (atomic_load(&tasks[0]->stop) == W_GO) w_task_lane_fail(tasks[0], &err);
        s->over = true;
        return;
    }
    enum w_fit_end end = w_fit_run(s->fit, &err);
    s->over = end != W_FIT_PAUSED;
    if (end == W_FIT_FAILED || (end == W_FIT_DONE && !deliver(s, &err)))
        w_task_lane_fail(tasks[0], &err);
}

/* --- on the loop
 * ---------------------------------------------------------------------------------- */

static void sliced(struct w_task *t) {
    struct training *s = of(t);
    if (s->over && (t->failed || t->result)) {
        w_task_finish(t);
        return;
    }
    if (w_task_stopped(t)) return;
    if (s->over) {
        w_task_fail(t, W_INTERNAL, "the training ended without a result");
        return;
    }
    if (*s->status) q_job_progress(w_daemon_queue(t->daemon), t->job, s->status);
    w_task_on_lane(t, slice, sliced, 0, false);
}

static void start(struct w_task *t) {
    struct training *s = calloc(1, sizeof *s);
    if (!s) {
        w_task_fail(t, W_NO_MEMORY, "out of memory");
        return;
    }
    s->parent = -1;
    s->task = t;
    s->store = w_daemon_models(t->daemon);
    *(struct training **)t->state = s;
    w_task_on_lane(t, slice, sliced, 0, false);
}

static const struct w_task_desc train = {
    .name = "train",
    .summary = "trains a model from a spec in Keras's words",
    .long_running = true,
    .state_bytes = sizeof(struct training *),
    .start = start,
    .free = free_state,
};
W_TASK(train);
