/* fit.c: the loop. It runs epochs, and knows at every step where it stands, so that checkpoint.c
 * can write that down. Nothing here depends on time or threads but what is told to people.
 *
 *   create: prepare.c
 *   run:    a checkpoint, if there is one; epochs of steps; validation; callbacks; in the end the
 *           best weights and the test set */
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "worker/train/train.h"

double w__fit_now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static bool cancelled(const struct w_fit *f) {
    return f->o.cancel && __atomic_load_n(f->o.cancel, __ATOMIC_RELAXED);
}

__attribute__((format(printf, 2, 3))) static void note(struct w_fit *f, const char *format, ...) {
    char text[400];
    va_list args;
    if (!f->o.on_note) return;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    f->o.on_note(f->o.user, text);
}

static void tick(struct w_fit *f) {
    if (f->o.on_tick) f->o.on_tick(f->o.user);
}

struct w_fit *w_fit_create(const struct w_spec_train *spec, const struct w_fit_options *options,
                           struct w_error *err) {
    struct w_fit *f = calloc(1, sizeof *f);
    if (!f) return w_fail(err, W_NO_MEMORY, "out of memory"), NULL;
    f->spec = spec;
    f->o = *options;
    f->lr_scale = 1;
    f->order_epoch = -1;
    f->history = json_array();
    f->fold_results = json_array();
    if (f->history && f->fold_results && w__fit_prepare(f, err)) return f;
    w_fit_destroy(f);
    return NULL;
}

void w_fit_destroy(struct w_fit *f) {
    if (!f) return;
    w__loader_destroy(f->loader);
    op_trainer_destroy(f->trainer);
    w_train_model_finish(&f->m);
    w_train_set_finish(&f->whole);
    w_train_set_finish(&f->held);
    w_train_set_finish(&f->extra);
    for (int i = 0; i < W_TRAIN_INPUTS_MAX; i++) w_front_finish(&f->fronts[i]);
    w_metrics_finish(&f->metrics);
    w_metrics_finish(&f->eval_metrics);
    w_callbacks_finish(&f->callbacks);
    w_schedule_destroy(f->schedule);
    w_augment_destroy(f->augment);
    free(f->class_weights);
    w__fit_batch_finish(&f->batch);
    free(f->order);
    free(f->best);
    free(f->fold_of);
    free(f->fold_rows);
    json_decref(f->fold_results);
    json_decref(f->history);
    json_decref(f->test_results);
    free(f);
}

/* --- steps -------------------------------------------------------------------------------------
 */

static void make_order(struct w_fit *f) {
    int64_t n = f->train.n;
    uint64_t seed = w__train_mix(w__train_mix((uint64_t)f->spec->fit.seed) + (uint64_t)f->epoch);
    if (f->order_epoch == f->epoch) return;
    for (int64_t i = 0; i < n; i++) f->order[i] = i;
    for (int64_t i = n - 1; i > 0 && f->spec->fit.shuffle; i--) {
        int64_t j = (int64_t)(w__train_mix(seed + (uint64_t)i) % (uint64_t)(i + 1)),
                k = f->order[i];
        f->order[i] = f->order[j];
        f->order[j] = k;
    }
    f->order_epoch = f->epoch;
}

static void outcome_of(const struct w_fit *f, const struct op_step_result *r, struct w_outcome *o) {
    const struct op_tensor *output = &r->outputs[0];
    int64_t count = op_tensor_count(output);
    *o = (struct w_outcome){.classes = f->n_classes,
                            .rows = count / f->n_classes,
                            .output = output->data,
                            .loss = r->loss};
    if (f->target == OP_TARGET_CLASSES)
        o->sparse = f->now->y.data;
    else if (f->target == OP_TARGET_DENSE)
        o->dense = f->now->y.data;
    else
        o->rows = f->now->n;
    if (f->target != OP_TARGET_LABELS) return;
    o->labels = f->now->y.data;
    o->n_labels = f->now->y.dims[1];
    o->steps = f->m.output_dims[0];
}

static double learning_rate(const struct w_fit *f) {
    uint64_t step = (uint64_t)f->epoch * (uint64_t)f->steps_per_epoch + (uint64_t)f->step;
    return w_schedule_at(f->schedule, step) * f->lr_scale;
}

static int64_t batch_rows(const struct w_fit *f, int64_t i) {
    int64_t first = i * f->spec->fit.batch_size, left = f->train.n - first;
    return left < f->spec->fit.batch_size ? left : f->spec->fit.batch_size;
}

static bool step(struct w_fit *f, struct op_step_result *r, struct op_error *why,
                 struct w_error *err) {
    bool weighted = f->train.weight.data || f->class_weights;
    if (!w__loader_is_at(f->loader, f->step)) {
        w__loader_end(f->loader);
        make_order(f);
        w__loader_begin(f->loader, &f->train, f->order, f->step, f->steps_per_epoch, true);
    }
    struct w_fit_batch *b = f->now = w__loader_next(f->loader, err);
    if (!b) return false;
    return op_trainer_step(f->trainer, b->x, f->m.n_inputs, &b->y, 1, weighted ? &b->weight : NULL,
                           (float)learning_rate(f), r, why) == OP_OK ||
           w_train_fail(err, why);
}

bool w_fit_step(struct w_fit *f, int64_t i, int64_t *rows, struct w_error *err) {
    struct op_step_result r;
    struct op_error why = {0};
    f->step = i % f->steps_per_epoch;
    *rows = batch_rows(f, f->step);
    return step(f, &r, &why, err);
}

static bool evaluate(struct w_fit *f, const struct w_set *s, struct w_error *err) {
    int64_t batch = f->spec->fit.batch_size, steps = (s->n + batch - 1) / batch;
    struct op_step_result r;
    struct op_error why;
    struct w_outcome o;
    bool ok = true;
    w_metrics_reset(&f->eval_metrics);
    w__loader_begin(f->loader, s, NULL, 0, steps, false);
    for (int64_t i = 0; ok && i < steps; i++) {
        tick(f);
        if (cancelled(f)) ok = w_fail(err, "cancelled", "cancelled");
        struct w_fit_batch *b = f->now = ok ? w__loader_next(f->loader, err) : NULL;
        ok = b && (op_trainer_evaluate(f->trainer, b->x, f->m.n_inputs, &b->y, 1,
                                       s->weight.data ? &b->weight : NULL, &r, &why) == OP_OK ||
                   w_train_fail(err, &why));
        if (!ok) break;
        outcome_of(f, &r, &o);
        w_metrics_update(&f->eval_metrics, &o);
    }
    w__loader_end(f->loader);
    return ok;
}

/* --- the loop ----------------------------------------------------------------------------------
 */

static void tell(struct w_fit *f) {
    double took = f->seconds_seen + w__fit_now() - f->started_s;
    int64_t full = f->steps_per_epoch * f->spec->fit.batch_size,
            total = (int64_t)(f->spec->fit.epochs - f->epoch) *
                        (full < f->train.n ? full : f->train.n) -
                    f->step * f->spec->fit.batch_size;
    struct w_fit_status s = {.epoch = f->epoch + 1,
                             .epochs = f->spec->fit.epochs,
                             .step = f->step,
                             .steps = f->steps_per_epoch,
                             .learning_rate = learning_rate(f),
                             .metrics = &f->metrics};
    s.loss = f->metrics.rows > 0 ? f->metrics.loss / f->metrics.rows : 0;
    s.samples_per_s = took > 0 ? (double)f->rows_seen / took : 0;
    s.eta_s = s.samples_per_s > 0 ? (double)total / s.samples_per_s : 0;
    if (f->o.on_step) f->o.on_step(f->o.user, &s);
}

static bool keep_best(struct w_fit *f, struct w_error *err) {
    struct op_error why;
    free(f->best);
    f->best = op_trainer_save(f->trainer, NULL, 0, &f->best_bytes, &why);
    return f->best || w_train_fail(err, &why);
}

/* fit.max_steps, fit.max_seconds: the run ends with the weights of now. */
static bool at_limit(struct w_fit *f, double now) {
    int64_t steps = (int64_t)f->epoch * f->steps_per_epoch + f->step;
    double seconds = f->seconds + now - f->started_s;
    if (f->spec->fit.max_steps && steps >= f->spec->fit.max_steps)
        note(f, "stopped at epoch %d, step %lld: fit.max_steps", f->epoch + 1, (long long)f->step);
    else if (f->spec->fit.max_seconds > 0 && seconds >= f->spec->fit.max_seconds)
        note(f, "stopped at epoch %d, step %lld: fit.max_seconds", f->epoch + 1,
             (long long)f->step);
    else
        return false;
    return true;
}

/* Steps from f->step to the end of the epoch. */
static enum w_fit_end run_steps(struct w_fit *f, struct w_error *err) {
    while (f->step < f->steps_per_epoch) {
        struct op_step_result r;
        struct op_error why = {0};
        struct w_outcome o;
        tick(f);
        if (cancelled(f)) return W_FIT_CANCELLED;
        if (!step(f, &r, &why, err)) {
            if (why.code == OP_CANCELLED) return W_FIT_CANCELLED;
            if (why.code != OP_BAD_VALUE) return W_FIT_FAILED;
            if (!f->callbacks.terminate_on_nan) {
                w_fail_in(err, "epoch %d, step %lld: ", f->epoch + 1, (long long)f->step + 1);
                return W_FIT_FAILED;
            }
            note(f,
                 "the loss is no number at epoch %d, step %lld; stopped with the weights before it",
                 f->epoch + 1, (long long)f->step + 1);
            f->over = true;
            return W_FIT_DONE;
        }
        outcome_of(f, &r, &o);
        w_metrics_update(&f->metrics, &o);
        f->rows_seen += f->now->n;
        f->step++;
        tell(f);
        double now = w__fit_now();
        if (at_limit(f, now)) {
            f->over = true; /* at the end of an epoch, that is finished first */
            return W_FIT_DONE;
        }
        if (f->o.checkpoint && (now - f->saved_s >= f->spec->fit.checkpoint_s ||
                                f->step % f->spec->fit.checkpoint_steps == 0)) {
            if (!w__fit_save(f, err)) return W_FIT_FAILED;
            f->saved_s = w__fit_now();
        }
        if (f->o.slice_s > 0 && now - f->started_s >= f->o.slice_s) return W_FIT_PAUSED;
    }
    return W_FIT_DONE;
}

static bool finish_epoch(struct w_fit *f, double seconds, struct w_error *err) {
    json_t *results = json_object();
    struct w_verdict v;
    double lr = learning_rate(f);
    json_object_set_new(results, "epoch", json_integer(f->epoch + 1));
    if (f->spec->fit.folds) json_object_set_new(results, "fold", json_integer(f->fold + 1));
    w_metrics_json(&f->metrics, "", results);
    if (f->validation.n) {
        if (!evaluate(f, &f->validation, err)) return json_decref(results), false;
        w_metrics_json(&f->eval_metrics, "val_", results);
    }
    json_object_set_new(results, "learning_rate", json_real(lr));
    json_object_set_new(results, "seconds", json_real(seconds));
    json_array_append_new(f->history, results); /* takes it */
    if (f->o.on_epoch) f->o.on_epoch(f->o.user, results);
    if (!w_callbacks_epoch(&f->callbacks, f->epoch, results, &v, err)) return false;
    if (v.best && !keep_best(f, err)) return false;
    if (v.lr_factor != 1) {
        f->lr_scale *= v.lr_factor;
        if (lr * v.lr_factor < v.lr_min && lr > 0) f->lr_scale *= v.lr_min / (lr * v.lr_factor);
    }
    if (v.stop) {
        note(f, "stopped after epoch %d: %s", f->epoch + 1, v.why);
        f->over = true;
    }
    return true;
}

static bool conclude(struct w_fit *f, struct w_error *err) {
    struct op_error why;
    w__loader_end(f->loader); /* it may be ahead of an epoch that was cut short */
    if (f->best && op_trainer_load(f->trainer, f->best, f->best_bytes, NULL, NULL, &why) != OP_OK)
        return w_train_fail(err, &why);
    if (!f->test.n) return true;
    if (!evaluate(f, &f->test, err)) return false;
    json_decref(f->test_results);
    f->test_results = json_object();
    w_metrics_json(&f->eval_metrics, "", f->test_results);
    w_metrics_matrices(&f->eval_metrics, f->test_results);
    return true;
}

/* Leaves the clock as it stands; keeps the state where the caller asked to stop. */
static enum w_fit_end leave(struct w_fit *f, enum w_fit_end end, struct w_error *err) {
    double took = w__fit_now() - f->started_s;
    struct w_error second = {0};
    f->seconds += took;
    f->seconds_seen += took;
    f->epoch_s += took;
    f->started_s += took;
    if (end == W_FIT_CANCELLED && f->o.checkpoint && !w__fit_save(f, &second)) {
        *err = second;
        return W_FIT_FAILED;
    }
    return end;
}

static bool begin(struct w_fit *f, struct w_error *err) {
    bool resumed = false;
    if (f->begun) return true;
    if (f->o.checkpoint && !w__fit_load(f, &resumed, err)) return false;
    if (resumed) note(f, "resumed at epoch %d, step %lld", f->epoch + 1, (long long)f->step + 1);
    f->begun = true;
    f->saved_s = w__fit_now();
    return true;
}

static enum w_fit_end run_epochs(struct w_fit *f, struct w_error *err) {
    while (f->epoch < f->spec->fit.epochs && !f->over) {
        if (f->step == 0) {
            w_metrics_reset(&f->metrics);
            f->epoch_s = f->started_s - w__fit_now();
        }
        enum w_fit_end end = run_steps(f, err);
        if (end != W_FIT_DONE) return end;
        if (f->over && f->step < f->steps_per_epoch) break;
        f->step = f->steps_per_epoch - 1; /* the rate that the last step had */
        bool ok = finish_epoch(f, f->epoch_s + w__fit_now() - f->started_s, err);
        f->step = f->steps_per_epoch;
        if (!ok) return cancelled(f) ? W_FIT_CANCELLED : W_FIT_FAILED;
        f->epoch++;
        f->step = 0;
        if (f->pause && f->epoch < f->spec->fit.epochs && !f->over) {
            f->pause = false;
            return W_FIT_PAUSED;
        }
    }
    return W_FIT_DONE;
}

/* The fold's results are noted, and the next one begins from nothing. */
static bool next_fold(struct w_fit *f, struct w_error *err) {
    struct op_error why;
    if (f->best && op_trainer_load(f->trainer, f->best, f->best_bytes, NULL, NULL, &why) != OP_OK)
        return w_train_fail(err, &why);
    if (!evaluate(f, &f->validation, err)) return false;
    json_t *results = json_pack("{s:i, s:i}", "fold", f->fold + 1, "epochs", f->epoch);
    w_metrics_json(&f->eval_metrics, "", results);
    json_array_append_new(f->fold_results, results);
    note(f, "fold %d of %d is done", f->fold + 1, f->spec->fit.folds);
    if (f->fold + 1 == f->spec->fit.folds) return true;
    f->fold++;
    f->epoch = 0;
    f->step = 0;
    f->over = false;
    f->lr_scale = 1;
    free(f->best);
    f->best = NULL;
    f->best_bytes = 0;
    w_callbacks_finish(&f->callbacks);
    return w_callbacks_parse(f->spec->fit.callbacks, &f->callbacks, err) && w__fit_set_up(f, err);
}

enum w_fit_end w_fit_run(struct w_fit *f, struct w_error *err) {
    int folds = f->spec->fit.folds;
    f->started_s = w__fit_now();
    if (!begin(f, err)) return W_FIT_FAILED;
    do {
        enum w_fit_end end = run_epochs(f, err);
        if (end != W_FIT_DONE) return leave(f, end, err);
        if (folds && (int)json_array_size(f->fold_results) < folds && !next_fold(f, err))
            return leave(f, cancelled(f) ? W_FIT_CANCELLED : W_FIT_FAILED, err);
    } while (folds && (int)json_array_size(f->fold_results) < folds);
    if (!conclude(f, err)) return leave(f, cancelled(f) ? W_FIT_CANCELLED : W_FIT_FAILED, err);
    return leave(f, W_FIT_DONE, err);
}
