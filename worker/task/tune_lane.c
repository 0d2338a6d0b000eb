/* The lanes' half of studies: trials, and the delivery of the best one. See tune.c for the whole.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "worker/task/tune.h"

#define FILE_BYTES_MAX ((off_t)8 << 30)

static struct w_tune *of(struct w_task *t) {
    return *(struct w_tune **)t->state;
}

static void trial_folder(const struct w_tune *s, uint32_t trial, char *dst, size_t size) {
    snprintf(dst, size, "%s/trial-%u", s->folder, trial);
}

/* --- preparing -------------------------------------------------------------------------------- */

static bool prepare(struct w_tune *s, struct w_error *err) {
    struct q_span p = s->t.task->job->params;
    json_error_t why;
    json_t *json =
        p.ptr && w_json_is(p, '{') ? json_loadb(p.ptr, p.len, JSON_REJECT_DUPLICATES, &why) : NULL;
    if (!json)
        return w_fail(err, "bad_job",
                      "params must be a training spec with \"tune\", an object without keys that "
                      "come twice");
    s->study = w_study_create(json, err);
    json_decref(json);
    if (!s->study) return false;
    if (s->study->publish && !*s->t.store)
        return w_fail(err, "bad_job", "params.publish: this worker has no model store (--models)");
    if (!s->study->publish && !s->t.task->job->output_ref.ptr)
        return w_fail(err, "bad_job",
                      "the model would go nowhere: give output_ref (a folder) or params.publish");
    if (!w_training_place(&s->t, err)) return false;
    snprintf(s->folder, sizeof s->folder, "%.4100s/.tune-%016jx", s->t.folder,
             (uintmax_t)w_training_key(s->t.task->job, -1));
    if (mkdir(s->folder, 0755) != 0 && errno != EEXIST)
        return w_fail(err, W_OUTPUT_FAILED, "%s cannot be made: %s", s->folder, strerror(errno));
    snprintf(s->t.folder, sizeof s->t.folder, "%s", s->folder);
    return true;
}

void w__tune_lane_prepare(struct w_lane *lane, struct w_task **tasks, size_t n) {
    struct w_tune *s = of(tasks[0]);
    struct w_error err = {0};
    (void)n;
    s->t.lane = lane;
    if (prepare(s, &err)) return;
    w_training_speak_plainly(&s->t, &err);
    w_task_lane_fail(tasks[0], &err);
}

/* --- a trial ---------------------------------------------------------------------------------- */

static double value_of(struct w_tune *s, json_t *results) {
    json_t *value = json_object_get(results, s->study->objective), *other;
    char known[300] = "";
    const char *key;
    size_t n = 0;
    if (json_is_number(value)) return json_number_value(value);
    json_object_foreach(results, key, other) if (n + 40 < sizeof known) n +=
        (size_t)snprintf(known + n, sizeof known - n, "%s%.36s", n ? ", " : "", key);
    s->no_value = true;
    w_fail(&s->err, W_BAD_SPEC, "tune.objective: the epochs have no \"%s\": %s",
           s->study->objective, known);
    return NAN;
}

/* What the trial is worth: the objective at the epoch whose weights are kept, or its mean over the
 * folds, whose results stand without "val_". */
static double final_value(struct w_tune *s) {
    json_t *folds = s->t.fit->fold_results, *fold;
    size_t i, n = json_array_size(folds);
    const char *name = s->study->objective;
    double sum = 0;
    if (n == 0) return value_of(s, w_fit_epoch(s->t.fit));
    if (strncmp(name, "val_", 4) == 0) name += 4;
    json_array_foreach(folds, i, fold) {
        json_t *value = json_object_get(fold, name);
        if (!json_is_number(value)) return value_of(s, fold);
        sum += json_number_value(value);
    }
    return sum / (double)n;
}

static bool pauses(void *user, json_t *results) {
    struct w_tune *s = user;
    s->epoch = (int)json_integer_value(json_object_get(results, "epoch"));
    s->value = value_of(s, results);
    bool first = json_integer_value(json_object_get(results, "fold")) <= 1;
    s->at_rung = first && w_study_is_rung(s->study, s->epoch); /* of several folds, in the first */
    return s->at_rung || s->no_value;
}

static bool make(struct w_tune *s, struct w_error *err) {
    json_t *json = w_study_spec(s->study, json_object_get(s->note, "params"), err);
    struct w_spec_train *spec = json ? w_train_spec_from(json, err) : NULL;
    json_decref(json);
    s->t.trial = s->trial;
    s->t.pauses = pauses;
    s->t.user = s;
    s->t.spec = spec;
    return spec && w_training_begin(&s->t, err) && w_training_create(&s->t, spec, err);
}

/* The model and where it comes from; then the note says what it is worth. */
static bool deliver(struct w_tune *s, struct w_error *err) {
    char folder[4300], path[4400];
    double value = final_value(s);
    if (s->no_value) return *err = s->err, false;
    if (!isfinite(value)) return w_fail(err, "bad_input", "%s is no number", s->study->objective);
    trial_folder(s, s->trial, folder, sizeof folder);
    if (w_training_fenced(&s->t, err)) return false;
    if (mkdir(folder, 0755) != 0 && errno != EEXIST)
        return w_fail(err, W_OUTPUT_FAILED, "%s cannot be made: %s", folder, strerror(errno));
    json_t *origin = w_fit_origin(s->t.fit);
    char *text = origin ? json_dumps(origin, JSON_COMPACT) : NULL;
    snprintf(path, sizeof path, "%s/train.json", folder);
    bool ok = text ? w_fit_write(s->t.fit, folder, err) && w__fit_put(path, text, strlen(text), err)
                   : w_fail(err, W_NO_MEMORY, "out of memory");
    free(text);
    json_decref(origin);
    if (!ok) return false;
    json_object_set_new(s->note, "value", json_real(value));
    if (s->t.fit->test_results) json_object_set(s->note, "test", s->t.fit->test_results);
    w_training_clear_up(&s->t);
    return true;
}

static void end(struct w_tune *s, const struct w_error *err) {
    const struct w_fit *f = s->t.fit;
    s->ended = true;
    json_object_set_new(s->note, "state", json_string(err ? "failed" : "done"));
    if (f) {
        json_object_set_new(s->note, "epochs",
                            json_integer((json_int_t)json_array_size(f->history)));
        json_object_set_new(s->note, "seconds", json_real(f->seconds));
    }
    if (err) json_object_set_new(s->note, "error", json_string(err->text));
    if (err && *s->t.checkpoint) w_training_clear_up(&s->t);
}

void w__tune_lane_slice(struct w_lane *lane, struct w_task **tasks, size_t n) {
    struct w_tune *s = of(tasks[0]);
    struct w_error err = {0};
    (void)n;
    s->t.lane = lane;
    s->at_rung = s->lost = false;
    enum w_fit_end how =
        s->t.fit || make(s, &err) ? w_training_slice(&s->t, lane, &err) : W_FIT_FAILED;
    if (how != W_FIT_PAUSED) s->at_rung = false;
    if (how == W_FIT_PAUSED && s->no_value) {
        err = s->err;
        how = W_FIT_FAILED;
    }
    if (how == W_FIT_DONE && !deliver(s, &err)) how = W_FIT_FAILED;
    if (how == W_FIT_PAUSED || how == W_FIT_CANCELLED) return;
    s->lost = how == W_FIT_FAILED && err.code && strcmp(err.code, "fenced") == 0;
    if (s->lost || (how == W_FIT_FAILED && atomic_load(&tasks[0]->stop) != W_GO)) return;
    w_training_speak_plainly(&s->t, &err);
    end(s, how == W_FIT_FAILED ? &err : NULL);
}

/* --- the best one ----------------------------------------------------------------------------- */

static bool copy(const char *from, const char *to, const char *name, struct w_error *err) {
    char path[4500];
    struct stat st;
    snprintf(path, sizeof path, "%s/%s", from, name);
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    char *bytes = fd >= 0 && fstat(fd, &st) == 0 && st.st_size <= FILE_BYTES_MAX
                      ? malloc((size_t)st.st_size + 1)
                      : NULL;
    size_t done = 0;
    ssize_t got = 0;
    while (bytes && done < (size_t)st.st_size &&
           (got = read(fd, bytes + done, (size_t)st.st_size - done)) > 0)
        done += (size_t)got;
    bool ok = bytes && done == (size_t)st.st_size;
    if (!ok) w_fail(err, W_OUTPUT_FAILED, "%s cannot be read: %s", path, strerror(errno));
    if (fd >= 0) close(fd);
    snprintf(path, sizeof path, "%s/%s", to, name);
    ok = ok && w__fit_put(path, bytes, done, err);
    free(bytes);
    return ok;
}

struct source {
    char folder[4300];
};

/* All files but the origin, which is for the store alone, and what a dead writer left half done. */
static bool write_copy(void *user, const char *folder, struct w_error *err) {
    const struct source *from = user;
    DIR *d = opendir(from->folder);
    bool ok =
        d || w_fail(err, W_OUTPUT_FAILED, "%s cannot be read: %s", from->folder, strerror(errno));
    for (struct dirent *e; ok && (e = readdir(d));) {
        const char *dot = strrchr(e->d_name, '.');
        if (*e->d_name == '.' || strcmp(e->d_name, "train.json") == 0 ||
            (dot && (strcmp(dot, ".tmp") == 0 || strcmp(dot, ".part") == 0)))
            continue;
        ok = copy(from->folder, folder, e->d_name, err);
    }
    if (d) closedir(d);
    return ok;
}

static bool publish(struct w_tune *s, const struct source *from, json_t *best, int64_t *version,
                    struct w_error *err) {
    const struct q_job *job = s->t.task->job;
    char path[4400];
    snprintf(path, sizeof path, "%s/train.json", from->folder);
    json_t *origin = json_load_file(path, 0, NULL);
    if (!origin) origin = json_object(); /* published already, and cleared up */
    json_object_set(origin, "tune", s->study->tune);
    json_object_set(origin, "trial", best);
    const struct w_publication p = {.store = s->t.store,
                                    .name = s->study->publish,
                                    .job = job->id,
                                    .queued_ms = job->queued_ms,
                                    .token = job->token,
                                    .origin = origin,
                                    .write = write_copy,
                                    .user = (void *)from};
    bool ok = w_publish(&p, version, err);
    json_decref(origin);
    return ok;
}

/* The output has the model of this very study already: a finaliser died after clearing up. */
static bool delivered(const struct w_tune *s) {
    const struct q_job *job = s->t.task->job;
    char path[4400];
    snprintf(path, sizeof path, "%s/study.json", s->t.output);
    json_t *o = json_load_file(path, 0, NULL);
    const char *by = json_string_value(json_object_get(o, "job"));
    bool same = by && strcmp(by, job->id) == 0 &&
                json_integer_value(json_object_get(o, "queued_ms")) == job->queued_ms;
    json_decref(o);
    return same;
}

static bool write_output(struct w_tune *s, const struct source *from, json_t *report,
                         struct w_error *err) {
    char path[4400];
    struct stat st;
    if (stat(from->folder, &st) != 0 && delivered(s)) return true;
    json_t *o = json_pack("{s:s, s:I}", "job", s->t.task->job->id, "queued_ms",
                          (json_int_t)s->t.task->job->queued_ms);
    json_object_update(o, report);
    char *text = json_dumps(o, JSON_INDENT(1));
    snprintf(path, sizeof path, "%s/study.json", s->t.output);
    bool ok = text ? write_copy((void *)from, s->t.output, err) &&
                         w__fit_put(path, text, strlen(text), err)
                   : w_fail(err, W_NO_MEMORY, "no memory for study.json");
    free(text);
    json_decref(o);
    return ok;
}

static void remove_trial(int parent, const char *name) {
    int fd = openat(parent, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    DIR *d = fd >= 0 ? fdopendir(fd) : NULL;
    for (struct dirent *e; d && (e = readdir(d));)
        if (strcmp(e->d_name, ".") != 0 && strcmp(e->d_name, "..") != 0) unlinkat(fd, e->d_name, 0);
    if (d)
        closedir(d);
    else if (fd >= 0)
        close(fd);
    unlinkat(parent, name, AT_REMOVEDIR);
}

static void remove_folder(const struct w_tune *s) {
    DIR *d = *s->folder ? opendir(s->folder) : NULL;
    for (struct dirent *e; d && (e = readdir(d));) {
        if (strncmp(e->d_name, "trial-", 6) == 0) remove_trial(dirfd(d), e->d_name);
        if (strncmp(e->d_name, ".train-", 7) == 0) unlinkat(dirfd(d), e->d_name, 0);
    }
    if (d) closedir(d);
    if (*s->folder) rmdir(s->folder);
}

static bool none_is_done(struct w_tune *s, struct w_error *err) {
    const char *why = NULL;
    for (size_t i = 0; i < s->n_known && !why; i++)
        why = json_string_value(json_object_get(s->known[i].note, "error"));
    remove_folder(s);
    return w_fail(err, W_BAD_SPEC, "none of %zu trials came to an end: %.300s", s->n_known,
                  why ? why : "no reason is known");
}

static bool finalise(struct w_tune *s, struct w_error *err) {
    struct source from;
    struct w_task *t = s->t.task;
    int64_t version = 0;
    json_t *report = w_study_report(s->study, s->known, s->n_known); /* sorts */
    int64_t i = w_study_best(s->study, s->known, s->n_known);
    if (i < 0) {
        json_decref(report);
        return none_is_done(s, err);
    }
    json_t *best = json_pack("{s:i}", "trial", (int)s->known[i].number);
    json_object_update(best, s->known[i].note);
    json_object_del(best, "state");
    json_object_del(best, "rungs");
    json_object_set(report, "best", best);
    trial_folder(s, s->known[i].number, from.folder, sizeof from.folder);
    bool ok = (!*s->t.output || write_output(s, &from, report, err)) &&
              (!s->study->publish || publish(s, &from, best, &version, err));
    if (ok && version) {
        json_object_set_new(report, "model", json_string(s->study->publish));
        json_object_set_new(report, "version", json_integer(version));
    }
    t->result = ok ? json_dumps(report, JSON_COMPACT) : NULL;
    t->result_len = t->result ? strlen(t->result) : 0;
    json_decref(best);
    json_decref(report);
    if (ok && !t->result) return w_fail(err, W_NO_MEMORY, "no memory for the result");
    if (ok) remove_folder(s);
    return ok;
}

void w__tune_lane_finalise(struct w_lane *lane, struct w_task **tasks, size_t n) {
    struct w_tune *s = of(tasks[0]);
    struct w_error err = {0};
    (void)n;
    w_lane_beat(lane);
    if (finalise(s, &err)) return;
    w_training_speak_plainly(&s->t, &err);
    w_task_lane_fail(tasks[0], &err);
}

void w__tune_lane_clean(struct w_lane *lane, struct w_task **tasks, size_t n) {
    (void)lane, (void)n;
    w_training_reset(&of(tasks[0])->t);
    remove_folder(of(tasks[0]));
}
