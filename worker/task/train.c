/* train: a training spec as a job. The spec is the job's `params`; paths in it are file references
 * (below --files); the model goes to the folder named by output_ref, or becomes a new version of
 * params.publish.name in this worker's store, or both. training.h says how a lane trains in slices.
 *
 * Cancelling, draining and time-outs set the task's stop, which the lane looks at between batches;
 * the state is kept then, and the job goes on from it wherever it runs next. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "worker/task/training.h"

struct training {
    struct w_training t;
    bool over;
};

static struct training *of(struct w_task *t) {
    return *(struct training **)t->state;
}

static void free_state(struct w_task *t) {
    struct training *s = of(t);
    if (!s) return;
    w_training_finish(&s->t);
    free(s);
}

/* --- on a lane -------------------------------------------------------------------------------- */

static bool make(struct training *s, struct w_error *err) {
    struct q_span p = s->t.task->job->params;
    if (!p.ptr || !w_json_is(p, '{'))
        return w_fail(err, "bad_job", "params must be the training spec, an object");
    struct w_spec_train *spec = w_train_spec_parse(p.ptr, p.len, err);
    if (!spec) return false;
    s->t.spec = spec;
    if (spec->publish && !*s->t.store)
        return w_fail(err, "bad_job", "params.publish: this worker has no model store (--models)");
    if (!spec->publish && !s->t.task->job->output_ref.ptr)
        return w_fail(err, "bad_job",
                      "the model would go nowhere: give output_ref (a folder) or params.publish");
    return w_training_place(&s->t, err) && w_training_begin(&s->t, err) &&
           w_training_create(&s->t, spec, err);
}

static bool make_result(struct training *s, int64_t version, struct w_error *err) {
    const struct w_fit *f = s->t.fit;
    size_t n = json_array_size(f->history);
    json_t *o = json_object();
    json_object_set(o, "test", f->test_results ? f->test_results : json_null());
    json_object_set(o, "last_epoch", n ? json_array_get(f->history, n - 1) : json_null());
    json_object_set_new(o, "epochs", json_integer((json_int_t)n));
    json_object_set_new(o, "train_rows", json_integer(f->train.n));
    json_object_set_new(o, "seconds", json_real(f->seconds));
    if (json_array_size(s->t.notes)) json_object_set(o, "notes", s->t.notes);
    if (version) {
        json_object_set_new(o, "model", json_string(s->t.spec->publish));
        json_object_set_new(o, "version", json_integer(version));
    }
    s->t.task->result = json_dumps(o, JSON_COMPACT | JSON_REAL_PRECISION(10));
    json_decref(o);
    if (!s->t.task->result) return w_fail(err, W_NO_MEMORY, "no memory for the result");
    s->t.task->result_len = strlen(s->t.task->result);
    return true;
}

static bool write_model(void *user, const char *folder, struct w_error *err) {
    return w_fit_write(user, folder, err);
}

static bool publish(struct training *s, int64_t *version, struct w_error *err) {
    const struct q_job *job = s->t.task->job;
    const struct w_publication p = {.store = s->t.store,
                                    .name = s->t.spec->publish,
                                    .job = job->id,
                                    .queued_ms = job->queued_ms,
                                    .token = job->token,
                                    .origin = w_fit_origin(s->t.fit),
                                    .write = write_model,
                                    .user = s->t.fit};
    bool ok = w_publish(&p, version, err);
    json_decref(p.origin);
    return ok;
}

static bool deliver(struct training *s, struct w_error *err) {
    int64_t version = 0;
    if (w_training_fenced(&s->t, err) ||
        (*s->t.output && !w_fit_write(s->t.fit, s->t.output, err)) ||
        (s->t.spec->publish && !publish(s, &version, err)) || !make_result(s, version, err))
        return false;
    w_training_clear_up(&s->t);
    return true;
}

static void slice(struct w_lane *lane, struct w_task **tasks, size_t n) {
    struct training *s = of(tasks[0]);
    struct w_error err = {0};
    (void)n;
    s->t.lane = lane;
    if (!s->t.fit && !make(s, &err)) {
        if (atomic_load(&tasks[0]->stop) == W_GO) w_task_lane_fail(tasks[0], &err);
        s->over = true;
        return;
    }
    enum w_fit_end end = w_training_slice(&s->t, lane, &err);
    s->over = end != W_FIT_PAUSED;
    if (end == W_FIT_DONE && !deliver(s, &err)) {
        w_training_speak_plainly(&s->t, &err);
        w_task_lane_fail(tasks[0], &err);
    } else if (end == W_FIT_FAILED) {
        w_task_lane_fail(tasks[0], &err);
    }
}

/* --- on the loop ------------------------------------------------------------------------------ */

static void sliced(struct w_task *t) {
    struct training *s = of(t);
    w_training_tell(&s->t, NULL);
    if (s->over && (t->failed || t->result)) {
        w_task_finish(t);
        return;
    }
    if (w_task_stopped(t)) return;
    if (s->over) {
        w_task_fail(t, W_INTERNAL, "the training ended without a result");
        return;
    }
    w_task_on_lane(t, slice, sliced, 0, false);
}

static void start(struct w_task *t) {
    struct training *s = calloc(1, sizeof *s);
    *(struct training **)t->state = s;
    if (!s) {
        w_task_fail(t, W_NO_MEMORY, "out of memory");
        return;
    }
    w_training_init(&s->t, t);
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
