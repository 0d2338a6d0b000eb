/* A training in the hands of a task: training.h has the picture. What is written by the lane
 * (status, points, notes) is read by the loop between slices only. */
#include "worker/task/training.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "worker/daemon/files.h"

#define SLICE_S 0.25
#define POINT_S 1.0 /* between two points of steps */
#define DATA_BYTES_MAX ((size_t)16 << 30)
#define STATUS_BYTES_MAX 4000
#define POINTS_KEPT 4096 /* epochs of one slice */

/* --- on the loop ------------------------------------------------------------------------------ */

void w_training_init(struct w_training *t, struct w_task *task) {
    t->parent = -1;
    t->trial = -1;
    t->task = task;
    t->store = w_daemon_models(task->daemon);
    t->memory_bytes_max = w_daemon_run_bytes_max(task->daemon);
    t->points = json_array();
    t->notes = json_array();
}

/* An attempt that has kept no state leaves no file. */
static void remove_empty(const char *checkpoint) {
    struct stat st;
    if (*checkpoint && lstat(checkpoint, &st) == 0 && S_ISREG(st.st_mode) && st.st_size == 0)
        unlink(checkpoint);
}

void w_training_reset(struct w_training *t) {
    remove_empty(t->checkpoint);
    w_fit_destroy(t->fit);
    w_train_spec_destroy(t->spec);
    t->fit = NULL;
    t->spec = NULL;
    t->stepped = t->cancel = false;
    *t->checkpoint = 0;
    json_array_clear(t->points);
    json_array_clear(t->notes);
}

void w_training_finish(struct w_training *t) {
    w_training_reset(t);
    if (t->parent >= 0) close(t->parent);
    json_decref(t->points);
    json_decref(t->notes);
    free(t->ref);
    *t = (struct w_training){.parent = -1};
}

json_t *w_training_status(const struct w_training *t) {
    const struct w_fit_status *st = &t->status;
    if (!t->stepped) return NULL;
    json_t *metrics = json_object();
    for (int i = 0; i < st->metrics->n; i++)
        json_object_set_new(metrics, st->metrics->items[i].name,
                            json_real(w_metric_value(&st->metrics->items[i])));
    int64_t done = (int64_t)(st->epoch - 1) * st->steps + st->step,
            total = (int64_t)st->epochs * st->steps;
    return json_pack("{s:i,s:i,s:I,s:I,s:I,s:I,s:f,s:o,s:f,s:f,s:f}", "epoch", st->epoch, "epochs",
                     st->epochs, "step", (json_int_t)st->step, "steps", (json_int_t)st->steps,
                     "done", (json_int_t)done, "total", (json_int_t)total, "loss", st->loss,
                     "metrics", metrics, "learning_rate", st->learning_rate, "samples_per_s",
                     st->samples_per_s, "eta_s", st->eta_s);
}

static void tell_points(struct w_training *t) {
    struct q_worker *q = w_daemon_queue(t->task->daemon);
    struct q_metric m[Q_METRICS_MAX];
    json_t *point, *value;
    const char *key;
    size_t i;
    json_array_foreach(t->points, i, point) {
        size_t n = 0;
        if (t->trial >= 0) m[n++] = (struct q_metric){"trial", (double)t->trial};
        json_object_foreach(point, key, value) if (json_is_number(value) && n < Q_METRICS_MAX)
            m[n++] = (struct q_metric){key, json_number_value(value)};
        q_job_metric(q, t->task->job, m, n);
    }
    json_array_clear(t->points);
    double now = w__fit_now();
    if (!t->stepped || t->trial >= 0 || now - t->point_s < POINT_S) return;
    t->point_s = now;
    const struct w_fit_status *st = &t->status;
    q_job_metric(q, t->task->job,
                 (struct q_metric[]){{"epoch", st->epoch},
                                     {"step", (double)st->step},
                                     {"loss", st->loss},
                                     {"learning_rate", st->learning_rate},
                                     {"samples_per_s", st->samples_per_s}},
                 5);
}

void w_training_tell(struct w_training *t, json_t *more) {
    json_t *status = w_training_status(t);
    if (status && more) json_object_update(status, more);
    if (status && json_array_size(t->notes)) json_object_set(status, "notes", t->notes);
    char *text = status || more
                     ? json_dumps(status ? status : more, JSON_COMPACT | JSON_REAL_PRECISION(6))
                     : NULL;
    tell_points(t);
    if (text && strlen(text) <= STATUS_BYTES_MAX)
        q_job_progress(w_daemon_queue(t->task->daemon), t->task->job, text);
    free(text);
    json_decref(status);
    json_decref(more);
}

/* --- on a lane: telling ----------------------------------------------------------------------- */

static void on_tick(void *user) {
    struct w_training *t = user;
    w_lane_beat(t->lane);
    if (atomic_load(&t->task->stop) == W_STOP_FENCED)
        t->fit->o.checkpoint = NULL; /* not ours any more */
    if (atomic_load(&t->task->stop) != W_GO) __atomic_store_n(&t->cancel, true, __ATOMIC_RELAXED);
}

static void on_step(void *user, const struct w_fit_status *st) {
    struct w_training *t = user;
    t->status = *st;
    t->stepped = true;
}

static void on_epoch(void *user, json_t *results) {
    struct w_training *t = user;
    if (json_array_size(t->points) < POINTS_KEPT) json_array_append(t->points, results);
    if (t->pauses && t->pauses(t->user, results)) t->fit->pause = true;
}

static void on_note(void *user, const char *text) {
    struct w_training *t = user;
    if (json_array_size(t->notes) >= W_TRAINING_NOTES_MAX) json_array_remove(t->notes, 0);
    json_array_append_new(t->notes, json_string(text));
}

/* --- on a lane: places ------------------------------------------------------------------------ */

int w_training_open(void *user, const char *path, bool *is_folder, struct w_error *err) {
    struct w_training *t = user;
    w_lane_beat(t->lane);
    return w_files_open(t->lane->files, path, true, is_folder, err);
}

static bool open_output(struct w_training *t, struct w_error *err) {
    char name[256];
    if (!t->task->job->output_ref.ptr) return true;
    t->ref = w_json_text(t->task->job->output_ref);
    if (!t->ref) return w_fail(err, "bad_job", "output_ref is no string");
    t->parent = w_files_open_parent(t->lane->files, t->ref, name, err);
    if (t->parent < 0) return false;
    if (mkdirat(t->parent, name, 0755) != 0 && errno != EEXIST)
        return w_fail(err, W_OUTPUT_FAILED, "output_ref: the folder \"%.100s\" cannot be made: %s",
                      name, strerror(errno));
    struct stat st;
    if (fstatat(t->parent, name, &st, AT_SYMLINK_NOFOLLOW) != 0 || !S_ISDIR(st.st_mode))
        return w_fail(err, W_OUTPUT_FAILED, "output_ref: \"%.100s\" is no folder", name);
    snprintf(t->output, sizeof t->output, "/proc/self/fd/%d/%s", t->parent, name);
    return true;
}

uint64_t w_training_key(const struct q_job *job, int64_t trial) {
    char number[24];
    uint64_t h = 1469598103934665603u;
    snprintf(number, sizeof number, "%" PRId64, trial);
    const char *parts[] = {job->queue, "/", job->id, trial < 0 ? "" : "/", trial < 0 ? "" : number};
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++)
        for (const char *p = parts[i]; *p; p++) h = (h ^ (unsigned char)*p) * 1099511628211u;
    return h;
}

/* The token of a checkpoint of this key (ending ""), or of one whose writing was cut off (".tmp");
 * 0: another file. */
static uint64_t token_of(const struct w_training *t, const char *name, const char *ending) {
    char prefix[48], *end;
    size_t n = (size_t)snprintf(prefix, sizeof prefix, ".train-%016jx.", (uintmax_t)t->key);
    if (strncmp(name, prefix, n) != 0) return 0;
    uint64_t token = strtoull(name + n, &end, 10);
    return strcmp(end, ending) == 0 ? token : 0;
}

static void name_checkpoint(const struct w_training *t, uint64_t token, char *dst, size_t size) {
    snprintf(dst, size, "%s/.train-%016jx.%ju", t->folder, (uintmax_t)t->key, (uintmax_t)token);
}

/* The highest token that has begun, and the highest that has left a state. */
static uint64_t newest(const struct w_training *t, uint64_t *with_state) {
    DIR *d = opendir(t->folder);
    uint64_t best = 0;
    *with_state = 0;
    for (struct dirent *e; d && (e = readdir(d));) {
        struct stat st;
        uint64_t token = token_of(t, e->d_name, "");
        if (!token || fstatat(dirfd(d), e->d_name, &st, AT_SYMLINK_NOFOLLOW) != 0) continue;
        if (token > best) best = token;
        if (st.st_size > 0 && token > *with_state) *with_state = token;
    }
    if (d) closedir(d);
    return best;
}

bool w_training_fenced(const struct w_training *t, struct w_error *err) {
    uint64_t with_state;
    if (newest(t, &with_state) <= t->task->job->token) return false;
    w_fail(err, "fenced", "a later attempt of this job has begun");
    return true;
}

void w_training_clear_up(const struct w_training *t) {
    DIR *d = opendir(t->folder);
    for (struct dirent *e; d && (e = readdir(d));) {
        uint64_t token = token_of(t, e->d_name, "");
        if (!token) token = token_of(t, e->d_name, ".tmp");
        if (token && token <= t->task->job->token) unlinkat(dirfd(d), e->d_name, 0);
    }
    if (d) closedir(d);
}

static bool begin_attempt(struct w_training *t, struct w_error *err) {
    uint64_t with_state, token = t->task->job->token;
    if (newest(t, &with_state) > token)
        return w_fail(err, "fenced", "a later attempt of this job has begun");
    name_checkpoint(t, token, t->checkpoint, sizeof t->checkpoint);
    name_checkpoint(t, with_state ? with_state : token, t->resume, sizeof t->resume);
    int fd = open(t->checkpoint, O_WRONLY | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0644);
    if (fd >= 0) return close(fd), true;
    return w_fail(err, W_OUTPUT_FAILED, "%s cannot be written: %s",
                  *t->output ? "the folder of output_ref" : "the model store", strerror(errno));
}

bool w_training_place(struct w_training *t, struct w_error *err) {
    if (!open_output(t, err)) return false;
    snprintf(t->folder, sizeof t->folder, "%s", *t->output ? t->output : t->store);
    return true;
}

bool w_training_begin(struct w_training *t, struct w_error *err) {
    t->key = w_training_key(t->task->job, t->trial);
    return begin_attempt(t, err);
}

/* --- on a lane: the work ---------------------------------------------------------------------- */

bool w_training_create(struct w_training *t, struct w_spec_train *spec, struct w_error *err) {
    t->spec = spec;
    const struct w_fit_options o = {.files = {.open = w_training_open,
                                              .user = t,
                                              .bytes_max = DATA_BYTES_MAX,
                                              .cancel = &t->cancel},
                                    .n_threads = t->lane->pool->n_threads,
                                    .cancel = &t->cancel,
                                    .checkpoint = t->checkpoint,
                                    .resume = t->resume,
                                    .memory_bytes_max = t->memory_bytes_max,
                                    .slice_s = SLICE_S,
                                    .user = t,
                                    .on_step = on_step,
                                    .on_epoch = on_epoch,
                                    .on_note = on_note,
                                    .on_tick = on_tick};
    t->fit = w_fit_create(spec, &o, err);
    return t->fit != NULL;
}

enum w_fit_end w_training_slice(struct w_training *t, struct w_lane *lane, struct w_error *err) {
    t->lane = lane;
    enum w_fit_end end = w_fit_run(t->fit, err);
    if (end == W_FIT_FAILED) w_training_speak_plainly(t, err);
    return end;
}

void w_training_speak_plainly(const struct w_training *t, struct w_error *err) {
    char rest[sizeof err->text], *at = *t->output ? strstr(err->text, t->output) : NULL;
    if (!at) return;
    snprintf(rest, sizeof rest, "%s", at + strlen(t->output));
    snprintf(at, sizeof err->text - (size_t)(at - err->text), "%s%s", t->ref, rest);
}
