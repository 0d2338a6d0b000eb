/* The lanes' half of bulk jobs: opening the data, scoring a range, assembling the output. See
 * bulk.c for the whole. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "worker/daemon/files.h"
#include "worker/task/bulk.h"
#include "worker/task/rows.h"

#define BATCH_ROWS 32 /* where the model does not say */
#define CRASHES_MAX 8 /* then a whole range is written off */
#define KILLERS_MAX 64

/* --- the data set ----------------------------------------------------------------------------- */

static struct w_dataset *sets; /* loop threads of this process */
static pthread_mutex_t sets_mutex = PTHREAD_MUTEX_INITIALIZER;

struct w_dataset *w__dataset_get(const struct q_job *job) {
    pthread_mutex_lock(&sets_mutex);
    struct w_dataset *s = sets;
    while (s && (strcmp(s->id, job->id) != 0 || strcmp(s->queue, job->queue) != 0)) s = s->next;
    if (s) {
        s->refs++;
    } else if ((s = calloc(1, sizeof *s)) != NULL) {
        snprintf(s->id, sizeof s->id, "%s", job->id);
        snprintf(s->queue, sizeof s->queue, "%s", job->queue);
        s->refs = 1;
        s->input_fd = s->output_dir = -1;
        pthread_mutex_init(&s->mutex, NULL);
        s->next = sets;
        sets = s;
    }
    pthread_mutex_unlock(&sets_mutex);
    return s;
}

void w__dataset_put(struct w_dataset *set) {
    if (!set) return;
    pthread_mutex_lock(&sets_mutex);
    bool last = --set->refs == 0;
    for (struct w_dataset **link = &sets; last && *link; link = &(*link)->next)
        if (*link == set) {
            *link = set->next;
            break;
        }
    pthread_mutex_unlock(&sets_mutex);
    if (!last) return;
    w_source_close(set->source);
    if (set->input_fd >= 0) close(set->input_fd);
    if (set->output_dir >= 0) close(set->output_dir);
    pthread_mutex_destroy(&set->mutex);
    free(set->input);
    free(set->output);
    free(set);
}

/* In place of the descriptors' paths, what the job calls them. */
static void speak_plainly(const struct w_dataset *s, struct w_error *err) {
    const char *from[2] = {s->output_path, s->input_path}, *to[2] = {s->output, s->input};
    for (int i = 0; i < 2; i++) {
        char *at = *from[i] && to[i] ? strstr(err->text, from[i]) : NULL, rest[sizeof err->text];
        if (!at) continue;
        snprintf(rest, sizeof rest, "%s", at + strlen(from[i]));
        snprintf(at, sizeof err->text - (size_t)(at - err->text), "%s%s", to[i], rest);
    }
}

static const char *text_param(const struct q_job *job, const char *name, char *dst, size_t size,
                              struct w_error *err) {
    struct q_span v = w_json_member(job->params, name);
    if (!v.ptr) return NULL;
    char *text = w_json_text(v);
    bool ok = text && strlen(text) < size;
    if (ok) snprintf(dst, size, "%s", text);
    free(text);
    if (!ok)
        w_fail(err, "bad_job", "params.%s is %.*s, a short string is expected", name,
               v.len > 60 ? 60 : (int)v.len, v.ptr);
    return ok ? dst : NULL;
}

static const char *format_of(const char *path, bool is_folder) {
    static const char *const known[][2] = {{".npy", "npy"},
                                           {".csv", "csv"},
                                           {".tsv", "csv"},
                                           {".jsonl", "jsonl"},
                                           {".ndjson", "jsonl"}};
    size_t n = strlen(path);
    if (is_folder) return "images";
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (n > strlen(known[i][0]) && strcasecmp(path + n - strlen(known[i][0]), known[i][0]) == 0)
            return known[i][1];
    return NULL;
}

/* Columns, target, header, delimiter of params. */
static bool source_options(const struct q_job *job, struct w_source_options *o, char *target,
                           size_t target_size, json_t **params, struct w_error *err) {
    char text[16];
    err->code = NULL;
    if (text_param(job, "delimiter", text, sizeof text, err)) o->delimiter = *text;
    o->target = text_param(job, "target", target, target_size, err);
    o->header = -1;
    if (err->code) return false;
    struct q_span header = w_json_member(job->params, "header"),
                  columns = w_json_member(job->params, "columns");
    if (header.ptr) {
        if (!w_json_is(header, 't') && !w_json_is(header, 'f'))
            return w_fail(err, "bad_job", "params.header is neither true nor false");
        o->header = w_json_is(header, 't');
    }
    if (!columns.ptr) return true;
    *params = json_loadb(columns.ptr, columns.len, 0, NULL);
    size_t n = json_array_size(*params), i;
    json_t *item;
    const char **names = n ? calloc(n, sizeof *names) : NULL;
    if (!names) return w_fail(err, "bad_job", "params.columns is not a list of column names");
    json_array_foreach(*params, i, item) names[i] =
        json_is_string(item) ? json_string_value(item) : "";
    o->columns = names;
    o->n_columns = n;
    return true;
}

static bool open_source(struct w_dataset *s, const struct q_job *job, const struct w_files *files,
                        struct w_error *err) {
    struct w_source_options o = {0};
    char format[16], target[256];
    json_t *params = NULL;
    bool is_folder = false;
    s->input_fd = w_files_open(files, s->input, true, &is_folder, err);
    if (s->input_fd < 0) return false;
    snprintf(s->input_path, sizeof s->input_path, "/proc/self/fd/%d", s->input_fd);
    bool ok = source_options(job, &o, target, sizeof target, &params, err);
    if (ok) {
        o.format = text_param(job, "format", format, sizeof format, err);
        ok = o.format || !err->code;
        if (!o.format) o.format = format_of(s->input, is_folder);
    }
    o.name = s->input;
    if (ok) s->source = w_source_open(s->input_path, &o, err);
    free((void *)o.columns);
    json_decref(params);
    return s->source != NULL;
}

static bool open_output(struct w_dataset *s, const struct q_job *job, const struct w_files *files,
                        struct w_error *err) {
    char name[256], format[16], parts[300];
    struct stat st;
    err->code = NULL;
    const char *given = text_param(job, "output_format", format, sizeof format, err);
    if (err->code) return false;
    s->format = w_sink_format(given, s->output);
    if (!s->format)
        return w_fail(err, W_UNSUPPORTED,
                      "the output %.200s is of no known format; jsonl, csv and npy are written, by "
                      "the name's ending or params.output_format",
                      s->output);
    s->output_dir = w_files_open_parent(files, s->output, name, err);
    if (s->output_dir < 0) return false;
    snprintf(s->output_path, sizeof s->output_path, "/proc/self/fd/%d/%s", s->output_dir, name);
    snprintf(parts, sizeof parts, "%s.parts", name);
    if (fstatat(s->output_dir, parts, &st, AT_SYMLINK_NOFOLLOW) == 0 && !S_ISDIR(st.st_mode))
        return w_fail(err, W_REF_DENIED, "%.200s.parts is no folder", s->output);
    if (fstatat(s->output_dir, name, &st, AT_SYMLINK_NOFOLLOW) == 0 && !S_ISREG(st.st_mode))
        return w_fail(err, W_OUTPUT_FAILED, "%.200s is %s, and not overwritten", s->output,
                      S_ISDIR(st.st_mode) ? "a folder" : "no file");
    if (faccessat(s->output_dir, ".", W_OK, AT_EACCESS) != 0)
        return w_fail(err, W_OUTPUT_FAILED, "the folder of %.200s cannot be written: %s", s->output,
                      strerror(errno));
    return true;
}

/* <output>.parts/job.json: which model the first worker meant, so that all parts come from one. */
static void job_file(const struct w_dataset *s, char *dst, size_t size) {
    snprintf(dst, size, "%s.parts/job.json", s->output_path);
}

static void read_pin(struct w_dataset *s) {
    char path[400];
    job_file(s, path, sizeof path);
    json_t *o = json_load_file(path, 0, NULL);
    const char *id = json_string_value(json_object_get(o, "id")),
               *model = json_string_value(json_object_get(o, "model"));
    if (id && model && strcmp(id, s->id) == 0) snprintf(s->spec, sizeof s->spec, "%s", model);
    json_decref(o);
}

static bool write_pin(struct w_dataset *s, const struct w_model *m, struct w_error *err) {
    char path[400], temporary[420];
    snprintf(path, sizeof path, "%s.parts", s->output_path);
    if (mkdir(path, 0755) != 0 && errno != EEXIST)
        return w_fail(err, W_OUTPUT_FAILED, "%.200s.parts cannot be made: %s", s->output,
                      strerror(errno));
    if (*m->version_text)
        snprintf(s->spec, sizeof s->spec, "%s@%s", m->name, m->version_text);
    else
        snprintf(s->spec, sizeof s->spec, "%s", m->name);
    job_file(s, path, sizeof path);
    snprintf(temporary, sizeof temporary, "%s.%d.tmp", path, (int)getpid());
    json_t *o = json_pack("{s:s, s:s, s:s, s:s}", "queue", s->queue, "id", s->id, "model", s->spec,
                          "sha256", m->info.sha256);
    bool ok = o && json_dump_file(o, temporary, JSON_COMPACT) == 0 && rename(temporary, path) == 0;
    if (!ok)
        w_fail(err, W_OUTPUT_FAILED, "%.200s.parts/job.json cannot be written: %s", s->output,
               strerror(errno));
    json_decref(o);
    return ok;
}

static bool open_set(struct w_dataset *s, const struct q_job *job, const struct w_files *files,
                     struct w_error *err) {
    pthread_mutex_lock(&s->mutex);
    bool ok = s->opened;
    if (!ok) {
        free(s->input), free(s->output); /* of an attempt that failed */
        if (s->input_fd >= 0) close(s->input_fd);
        if (s->output_dir >= 0) close(s->output_dir);
        w_source_close(s->source);
        s->source = NULL;
        s->input_fd = s->output_dir = -1;
        s->input = w_json_text(job->input_ref);
        s->output = w_json_text(job->output_ref);
        if (!s->input || !s->output)
            ok = w_fail(err, "bad_job", "input_ref or output_ref is no proper string");
        else if (strncmp(s->input, "file:", 5) || strncmp(s->output, "file:", 5))
            ok = w_fail(err, W_UNSUPPORTED,
                        "bulk reads and writes files; %.100s has no \"file:\" in front",
                        strncmp(s->input, "file:", 5) ? s->input : s->output);
        else
            ok = open_source(s, job, files, err) && open_output(s, job, files, err);
        if (ok) read_pin(s);
        s->opened = ok;
        if (!ok) speak_plainly(s, err);
    }
    pthread_mutex_unlock(&s->mutex);
    return ok;
}

static struct w_bulk *bulk_of(struct w_task *t) {
    return *(struct w_bulk **)t->state;
}

/* --- sizing and preparing --------------------------------------------------------------------- */

void w__bulk_lane_prepare(struct w_lane *lane, struct w_task **tasks, size_t n) {
    (void)n;
    struct w_error err = {0};
    if (!open_set(bulk_of(tasks[0])->set, tasks[0]->job, lane->files, &err))
        w_task_lane_fail(tasks[0], &err);
}

void w__bulk_lane_size(struct w_lane *lane, struct w_task **tasks, size_t n) {
    struct w_task *t = tasks[0];
    struct w_bulk *b = bulk_of(t);
    struct w_error err = {0};
    if (!open_set(b->set, t->job, lane->files, &err)) {
        w_task_lane_fail(t, &err);
        return;
    }
    b->plan.n_rows = w_source_rows(b->set->source);
    if (b->plan.n_rows == 0) {
        w__bulk_lane_assemble(lane, tasks, n);
        return;
    }
    pthread_mutex_lock(&b->set->mutex);
    bool ok = write_pin(b->set, t->model, &err);
    pthread_mutex_unlock(&b->set->mutex);
    if (!ok) w_task_lane_fail(t, &err);
}

/* --- a range ---------------------------------------------------------------------------------- */

enum fate { TO_RUN, MADE, BAD };

struct range {
    struct w_lane *lane;
    struct w_task *task;
    struct w_part *part;
    struct w_cursor *cursor;
    struct w_row *rows[BATCH_ROWS], *to_run[BATCH_ROWS];
    struct w_record records[BATCH_ROWS];
    struct w_error errors[BATCH_ROWS];
    enum fate fates[BATCH_ROWS];
    size_t run_index[BATCH_ROWS]; /* of to_run: its place in rows */
    size_t n, n_run, n_written;
    bool broken; /* the output cannot be written: err */
    struct w_error err;
    int notes; /* descriptor of the notes of a suspect range; -1: none */
    uint64_t killers[KILLERS_MAX];
    size_t n_killers;
};

static void write_row(struct range *r, size_t i) {
    struct w_bulk *b = bulk_of(r->task);
    if (r->broken) return;
    bool ok = r->fates[i] == MADE && w_part_row(r->part, &r->records[i], r->task->model->pipeline,
                                                r->rows[i], &r->errors[i]);
    if (r->fates[i] == MADE && !ok && strcmp(r->errors[i].code, W_OUTPUT_FAILED) == 0) {
        r->broken = true;
        r->err = r->errors[i];
        return;
    }
    b->rows_ok += ok;
    if (ok) return;
    b->rows_failed++;
    r->broken = !w_part_error(r->part, &r->records[i], &r->errors[i], &r->err);
}

/* Rows before i whose fate was known without a run. */
static void write_up_to(struct range *r, size_t i) {
    while (r->n_written < i) write_row(r, r->n_written++);
}

static void row_done(void *ctx, size_t k, enum w_next next, int64_t together,
                     const struct w_error *err) {
    struct range *r = ctx;
    size_t i = r->run_index[k];
    (void)together;
    write_up_to(r, i);
    r->fates[i] = next == W_NEXT_DONE ? MADE : BAD;
    if (next != W_NEXT_DONE) r->errors[i] = *err;
    write_row(r, i);
    r->n_written = i + 1;
}

/* File references inside rows are for the same folders as the job's own. */
static bool fetch(void *user, const char *ref, struct w_arena *arena, struct w_span *bytes,
                  struct w_error *err) {
    const struct range *r = user;
    if (strncmp(ref, "file:", 5) == 0) return w_files_read(r->lane->files, ref, arena, bytes, err);
    return w_fail(err, W_UNSUPPORTED, "the reference \"%.100s\" in a row: only file: is read there",
                  ref);
}

static bool is_killer(const struct range *r, uint64_t row) {
    for (size_t i = 0; i < r->n_killers; i++)
        if (r->killers[i] == row) return true;
    return false;
}

static void decode(struct range *r, size_t i) {
    const struct q_job *job = r->task->job;
    struct w_row *row = r->rows[i];
    struct w_input input = {
        .kind = W_INPUT_VALUE, .value = &r->records[i].value, .fetch = fetch, .user = r};
    row->b64 = strcmp(job->encoding, "b64") == 0;
    row->no_outputs = true;
    row->params = (struct w_span){job->params.ptr, job->params.len};
    if (is_killer(r, r->records[i].row)) {
        w_fail(&r->errors[i], "crashed", "the worker died with this row");
        r->fates[i] = BAD;
        return;
    }
    enum w_next next = w_pipeline_before(r->task->model->pipeline, row, &input, &r->errors[i]);
    r->fates[i] = next == W_NEXT_RUN ? TO_RUN : next == W_NEXT_DONE ? MADE : BAD;
    if (next != W_NEXT_RUN) return;
    r->to_run[r->n_run] = row;
    r->run_index[r->n_run++] = i;
}

/* Reads and decodes up to max rows. False: the source is broken. */
static bool fill(struct range *r, size_t max) {
    r->n = r->n_run = r->n_written = 0;
    while (r->n < max) {
        size_t i = r->n;
        w_lane_beat(r->lane);
        r->rows[i] = w_lane_row(r->lane, i);
        if (!r->rows[i]) return w_fail(&r->err, W_NO_MEMORY, "no memory for a row");
        enum w_read read =
            w_cursor_next(r->cursor, &r->rows[i]->arena, &r->records[i], &r->errors[i]);
        if (read == W_READ_END) break;
        if (read == W_READ_FAILED) {
            r->err = r->errors[i];
            return false;
        }
        if (r->notes >= 0) { /* before anything is done with it */
            char line[24];
            int len = snprintf(line, sizeof line, "%20" PRIu64 "\n", r->records[i].row);
            if (pwrite(r->notes, line, (size_t)len, (off_t)(r->n_killers * 21)) != len)
                return w_fail(&r->err, W_OUTPUT_FAILED, "notes cannot be written: %s",
                              strerror(errno));
        }
        r->n++;
        if (read == W_READ_BAD)
            r->fates[i] = BAD;
        else
            decode(r, i);
    }
    return true;
}

/* A suspect range's notes: 21 bytes a row that killed a worker, the last one being the row in hand
 * when it died last. */
static bool open_notes(struct range *r, const struct w_dataset *s, uint64_t first) {
    char path[440], line[22];
    snprintf(path, sizeof path, "%s.parts/%" PRIu64 ".at", s->output_path, first);
    r->notes = open(path, O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0644);
    if (r->notes < 0)
        return w_fail(&r->err, W_OUTPUT_FAILED, "%.200s.parts cannot be written: %s", s->output,
                      strerror(errno));
    while (r->n_killers < KILLERS_MAX &&
           pread(r->notes, line, 21, (off_t)(r->n_killers * 21)) == 21) {
        line[21] = 0;
        r->killers[r->n_killers++] = strtoull(line, NULL, 10);
    }
    return true;
}

/* The whole range as failed rows: it killed too often to be looked at again. */
static bool write_off(struct range *r, uint64_t first, uint64_t end) {
    struct w_bulk *b = bulk_of(r->task);
    struct w_error why;
    w_fail(&why, "crashed", "the worker died %u times with this range of rows", b->crashes);
    for (uint64_t row = first; row < end; row++) {
        struct w_record rec = {.row = row};
        if (!w_part_error(r->part, &rec, &why, &r->err)) return false;
        b->rows_failed++;
    }
    return true;
}

static bool score(struct range *r, uint64_t first, uint64_t end) {
    struct w_task *t = r->task;
    struct w_bulk *b = bulk_of(t);
    int64_t limit = t->model->batch.max > 0 && t->model->batch.max < BATCH_ROWS
                        ? t->model->batch.max
                        : BATCH_ROWS;
    if (b->crashes >= CRASHES_MAX) return write_off(r, first, end);
    if (b->crashes > 0) {
        if (!open_notes(r, b->set, first)) return false;
        limit = 1;
    }
    r->cursor = w_cursor_open(b->set->source, first, &r->err);
    if (!r->cursor) return false;
    for (uint64_t at = first; at < end; at += r->n) {
        uint64_t left = end - at;
        if (atomic_load(&t->stop) != W_GO) return w_fail(&r->err, "cancelled", "stopped");
        if (!fill(r, left < (uint64_t)limit ? (size_t)left : (size_t)limit)) return false;
        if (r->n == 0)
            return w_fail(&r->err, W_BAD_INPUT,
                          "%s ends at row %ju, it had %ju when the job was sized", b->set->input,
                          (uintmax_t)at, (uintmax_t)b->plan.n_rows);
        w_rows_run(r->lane, t->model, r->to_run, r->n_run, limit, row_done, r);
        if (w_lane_cancelled(r->lane)) return w_fail(&r->err, "cancelled", "stopped");
        write_up_to(r, r->n);
        if (r->broken) return false;
    }
    return true;
}

void w__bulk_lane_range(struct w_lane *lane, struct w_task **tasks, size_t n) {
    struct w_task *t = tasks[0];
    struct w_bulk *b = bulk_of(t);
    struct w_dataset *s = b->set;
    uint64_t first = (uint64_t)b->first * b->plan.grain_rows,
             end = first + (uint64_t)b->count * b->plan.grain_rows;
    struct range *r = calloc(1, sizeof *r);
    (void)n;
    if (!r) {
        t->failed = !w_fail(&t->err, W_NO_MEMORY, "no memory for a range of rows");
        return;
    }
    if (end > b->plan.n_rows) end = b->plan.n_rows;
    r->lane = lane;
    r->task = t;
    r->notes = -1;
    b->rows_ok = b->rows_failed = 0;
    r->part = w_part_open(s->output_path, s->format, first, &r->err);
    bool ok = r->part && score(r, first, end);
    if (ok)
        ok = w_part_commit(r->part, &r->err);
    else
        w_part_abort(r->part);
    b->part_done = ok;
    w_cursor_close(r->cursor);
    if (r->notes >= 0) close(r->notes);
    if (!ok) {
        speak_plainly(s, &r->err);
        w_task_lane_fail(t, &r->err);
    }
    free(r);
}

/* --- the output ------------------------------------------------------------------------------- */

static bool ends_with(const char *text, const char *end) {
    size_t n = strlen(text), k = strlen(end);
    return n >= k && strcmp(text + n - k, end) == 0;
}

/* Our own files of the parts' folder, and what writers that died left half done: all that is needed
 * is in place. parts: these too. */
static void remove_notes(const struct w_dataset *s, bool parts) {
    char path[700];
    snprintf(path, sizeof path, "%s.parts", s->output_path);
    DIR *d = opendir(path);
    for (struct dirent *e; d && (e = readdir(d)) != NULL;) {
        bool half = strstr(e->d_name, ".part.") || strstr(e->d_name, ".errors.");
        bool part = ends_with(e->d_name, ".part") || ends_with(e->d_name, ".errors");
        if (half || (part && parts) || strncmp(e->d_name, "job.json", 8) == 0 ||
            ends_with(e->d_name, ".at"))
            unlinkat(dirfd(d), e->d_name, 0);
    }
    if (d) closedir(d);
    if (parts) rmdir(path);
}

void w__bulk_lane_clean(struct w_lane *lane, struct w_task **tasks, size_t n) {
    struct w_dataset *s = bulk_of(tasks[0])->set;
    char path[400];
    (void)lane, (void)n;
    if (!s->opened) return;
    job_file(s, path, sizeof path);
    json_t *o = json_load_file(path, 0, NULL);
    const char *id = json_string_value(json_object_get(o, "id"));
    if (!id || strcmp(id, s->id) == 0)
        remove_notes(s, true); /* else another job writes there now */
    json_decref(o);
}

void w__bulk_lane_assemble(struct w_lane *lane, struct w_task **tasks, size_t n) {
    struct w_task *t = tasks[0];
    struct w_bulk *b = bulk_of(t);
    struct w_dataset *s = b->set;
    struct w_sink_sum sum = {0};
    struct w_error err = {0};
    (void)n;
    w_lane_beat(lane);
    remove_notes(s, false);
    if (!w_sink_assemble(s->output_path, s->format, b->firsts, b->n_firsts, &sum, &err)) {
        speak_plainly(s, &err);
        w_task_lane_fail(t, &err);
        return;
    }
    uint64_t failed = b->total_failed > sum.failed ? b->total_failed : sum.failed;
    char errors[600];
    snprintf(errors, sizeof errors, "%.500s.errors.jsonl", s->output);
    json_t *o = json_pack("{s:I, s:I, s:I, s:s, s:s, s:I}", "rows", (json_int_t)b->plan.n_rows,
                          "ok", (json_int_t)(b->plan.n_rows - failed), "failed", (json_int_t)failed,
                          "output", s->output, "format", s->format, "bytes", (json_int_t)sum.bytes);
    if (o && failed) json_object_set_new(o, "errors", json_string(errors));
    t->result = o ? json_dumps(o, JSON_COMPACT) : NULL;
    json_decref(o);
    if (t->result)
        t->result_len = strlen(t->result);
    else
        t->failed = !w_fail(&t->err, W_NO_MEMORY, "no memory for the result");
}
