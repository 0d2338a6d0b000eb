/* fit.c: the loop. It prepares (model, data, trainer), runs epochs, and knows at every step where
 * it stands, so that checkpoint.c can write that down. Nothing here depends on time or threads but
 * what is told to people.
 *
 *   create: layers → graph (so a spec that does not fit fails before data is read) → rows →
 *           preprocessing → graph again where a per-channel Normalization goes into it → trainer,
 *           its memory known → a checkpoint, if there is one
 *   run:    epochs of steps; validation; callbacks; in the end the best weights and the test set */
#include <math.h>
#include <openssl/evp.h>
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

/* --- data --------------------------------------------------------------------------------------
 */

static bool load_sets(struct w_fit *f, struct w_error *err) {
    const struct w_spec_train *s = f->spec;
    struct w_set_wish wish = {.dtype = f->m.input_dtype, .rank = f->m.input_rank};
    memcpy(wish.dims, f->m.input_dims, sizeof wish.dims);
    wish.first = s->model.onnx && f->m.input_rank == 3;
    if (!w_train_set_load(s->data.train, "data.train", &f->o.files, &wish, &f->whole, err))
        return false;
    w_train_set_part(&f->whole, 0, f->whole.x.n, &f->train);
    if (s->data.test && s->data.test_split > 0)
        return w_fail(err, W_BAD_SPEC, "data has both \"test\" and \"test_split\"");
    if (s->data.test_split > 0 &&
        !w_train_set_split(&f->whole, s->data.test_split, (uint64_t)s->fit.seed, &f->test, err))
        return false;
    w_train_set_part(&f->whole, 0, f->whole.x.n - f->test.x.n, &f->train);
    wish.like = &f->whole;
    if (s->data.test) {
        if (!w_train_set_load(s->data.test, "data.test", &f->o.files, &wish, &f->held, err))
            return false;
        w_train_set_part(&f->held, 0, f->held.x.n, &f->test);
    }
    if (s->data.validation) {
        if (!w_train_set_load(s->data.validation, "data.validation", &f->o.files, &wish, &f->extra,
                              err))
            return false;
        w_train_set_part(&f->extra, 0, f->extra.x.n, &f->validation);
    } else if (s->fit.validation_split > 0) { /* the last part, as Keras takes it */
        int64_t n = f->train.x.n, keep = (int64_t)floor((double)n * (1 - s->fit.validation_split));
        if (keep < 1 || keep == n)
            return w_fail(err, W_BAD_SPEC,
                          "fit.validation_split of %lld rows leaves one side empty", (long long)n);
        w_train_set_part(&f->train, keep, n - keep, &f->validation);
        w_train_set_part(&f->train, 0, keep, &f->train);
    }
    return true;
}

static double target_at(const struct w_array *y, int64_t i) {
    return y->dtype == OP_F64   ? ((const double *)y->data)[i]
           : y->dtype == OP_F32 ? (double)((const float *)y->data)[i]
           : y->dtype == OP_U8  ? ((const uint8_t *)y->data)[i]
                                : (double)((const int64_t *)y->data)[i];
}

/* Targets fit the output; class numbers are whole and in range. */
static bool check_targets(const struct w_fit *f, const struct w_set *s, const char *where,
                          struct w_error *err) {
    const struct w_train_model *m = &f->m;
    int64_t wanted = 1, n = s->y.elements;
    if (!s->y.data) return true;
    for (int i = 0; i < m->output_rank - (f->sparse ? 1 : 0); i++) wanted *= m->output_dims[i];
    bool numbers = f->sparse || (n == 1 && wanted > 1);
    if (n != wanted && !(numbers && !f->sparse))
        return w_fail(
            err, W_BAD_SHAPE,
            "%s: a row of y has %lld numbers, the model's output and the loss \"%s\" want %lld",
            where, (long long)n, f->spec->loss.name, (long long)wanted);
    if (!f->sparse && n == 1 && wanted > 1 && strncmp(f->spec->loss.name, "categorical", 11) != 0)
        return w_fail(err, W_BAD_SHAPE, "%s: a row of y has 1 number, the model gives %lld", where,
                      (long long)wanted);
    for (int64_t i = 0; i < s->y.n * n && numbers; i++) {
        double v = target_at(&s->y, i);
        if (v != floor(v) || v < 0 || v >= (double)f->n_classes)
            return w_fail(err, W_BAD_INPUT,
                          "%s: row %lld has the class %g, the model's output has classes 0 to %lld",
                          where, (long long)(i / n), v, (long long)f->n_classes - 1);
    }
    return true;
}

static bool read_class_weights(struct w_fit *f, struct w_error *err) {
    json_t *json = f->spec->fit.class_weight, *value;
    const char *key;
    int64_t n = f->n_classes > 1 ? f->n_classes : 2;
    if (!json) return true;
    f->class_weights = malloc((size_t)n * sizeof *f->class_weights);
    if (!f->class_weights) return w_fail(err, W_NO_MEMORY, "out of memory");
    for (int64_t i = 0; i < n; i++) f->class_weights[i] = 1;
    if (!json_is_object(json))
        return w_fail(err, W_BAD_SPEC, "fit.class_weight must be {class: weight}");
    json_object_foreach(json, key, value) {
        char *end;
        long long c = strtoll(key, &end, 10);
        if (end == key || *end) {
            c = -1;
            for (int64_t i = 0; i < f->whole.n_names; i++)
                if (strcmp(f->whole.names[i], key) == 0) c = i;
        }
        double v = json_number_value(value);
        if (c < 0 || c >= n || !json_is_number(value) || !(v >= 0 && v < 1e9))
            return w_fail(err, W_BAD_SPEC,
                          "fit.class_weight: \"%.40s\" must be a class with a weight from 0", key);
        f->class_weights[c] = (float)v;
    }
    return true;
}

/* --- making ------------------------------------------------------------------------------------
 */

static struct op_model *load_base(struct w_fit *f, struct w_error *err) {
    char path[64];
    struct op_error why;
    bool folder;
    int fd = f->o.files.open(f->o.files.user, f->spec->model.onnx, &folder, err);
    if (fd < 0) return w_fail_in(err, "model.onnx: "), NULL;
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    struct op_model *m = op_model_load(path, NULL, &why);
    close(fd);
    if (!m) w_train_fail(err, &why);
    return m;
}

/* The batch size that would fit, for the message. */
static bool plan(struct w_fit *f, struct w_error *err) {
    struct op_error why;
    int64_t full = f->spec->fit.batch_size < f->train.x.n ? f->spec->fit.batch_size : f->train.x.n,
            n = full;
    double flops;
    for (; n > 0; n /= 2) {
        f->x.dims[0] = f->y.dims[0] = f->weight.dims[0] = n;
        if (op_trainer_plan(f->trainer, &f->x, 1, &f->y, 1, &f->peak_bytes, &flops, &why) == OP_OK)
            break;
        if (why.code != OP_NOMEM && why.code != OP_LIMIT) return w_train_fail(err, &why);
    }
    if (n == full) return true;
    if (n == 0)
        return w_fail(err, W_NO_MEMORY,
                      "a step does not fit into memory with any batch size: %.300s", why.text);
    return w_fail(err, W_NO_MEMORY,
                  "fit.batch_size: a step with %lld rows does not fit into memory; %lld would",
                  (long long)full, (long long)n);
}

static bool make_tensors(struct w_fit *f, struct w_error *err) {
    const struct w_train_model *m = &f->m;
    int64_t batch = f->spec->fit.batch_size, xn = f->train.x.elements, yn = 1;
    f->x = (struct op_tensor){.dtype = m->input_dtype, .rank = m->input_rank + 1};
    memcpy(f->x.dims + 1, m->input_dims, (size_t)m->input_rank * sizeof *f->x.dims);
    f->y = (struct op_tensor){.dtype = f->sparse ? OP_I64 : OP_F32,
                              .rank = m->output_rank + (f->sparse ? 0 : 1)};
    for (int i = 1; i < f->y.rank; i++) yn *= f->y.dims[i] = m->output_dims[i - 1];
    f->weight = (struct op_tensor){.dtype = OP_F32, .rank = 1};
    size_t bytes;
    if (__builtin_mul_overflow((size_t)(batch + 1), (size_t)xn * 8, &bytes) || bytes >> 40)
        return w_fail(err, W_TOO_LARGE, "a batch of %lld rows is too large", (long long)batch);
    f->x.data = aligned_alloc(64, (bytes + 63) / 64 * 64);
    f->y.data = aligned_alloc(64, ((size_t)(batch * yn) * 8 + 63) / 64 * 64 + 64);
    f->weight.data = aligned_alloc(64, ((size_t)batch * 4 + 63) / 64 * 64 + 64);
    f->order = malloc((size_t)(f->train.x.n + 1) * sizeof *f->order);
    return (f->x.data && f->y.data && f->weight.data && f->order) ||
           w_fail(err, W_NO_MEMORY, "no memory for a batch of %lld rows", (long long)batch);
}

static bool make_trainer(struct w_fit *f, struct w_error *err) {
    const struct w_spec_train *s = f->spec;
    struct op_error why;
    struct op_trainer_options o = {.losses = &s->loss,
                                   .n_losses = 1,
                                   .optimizer = s->optimizer,
                                   .freeze = (const char *const *)f->m.freeze,
                                   .n_freeze = f->m.n_freeze,
                                   .l1 = (float)f->m.l1,
                                   .l2 = (float)f->m.l2,
                                   .seed = (uint64_t)s->fit.seed,
                                   .n_threads = f->o.n_threads,
                                   .memory_bytes_max = f->o.memory_bytes_max,
                                   .cancel = f->o.cancel};
    f->trainer = op_trainer_create(f->m.model, &o, &why);
    return f->trainer || w_train_fail(err, &why);
}

static void hash_array(EVP_MD_CTX *c, const struct w_array *a) {
    EVP_DigestUpdate(c, a->dims, sizeof a->dims);
    EVP_DigestUpdate(c, &a->n, sizeof a->n);
    if (a->data)
        EVP_DigestUpdate(c, a->data, (size_t)(a->n * a->elements) * op_type_size(a->dtype));
}

static void hex(EVP_MD_CTX *c, char *dst) {
    uint8_t sum[EVP_MAX_MD_SIZE];
    EVP_DigestFinal_ex(c, sum, NULL);
    for (int i = 0; i < 32; i++) snprintf(dst + 2 * i, 3, "%02x", sum[i]);
}

static bool hash(struct w_fit *f, struct w_error *err) {
    EVP_MD_CTX *c = EVP_MD_CTX_new();
    char *text = json_dumps(f->spec->json, JSON_COMPACT | JSON_SORT_KEYS);
    bool ok = c && text && EVP_DigestInit_ex(c, EVP_sha256(), NULL);
    if (ok) {
        hash_array(c, &f->train.x);
        hash_array(c, &f->train.y);
        hash_array(c, &f->validation.x);
        hex(c, f->data_hash);
        EVP_DigestInit_ex(c, EVP_sha256(), NULL);
        EVP_DigestUpdate(c, text, strlen(text));
        EVP_DigestUpdate(c, f->data_hash, 64);
        hex(c, f->hash);
    }
    free(text);
    EVP_MD_CTX_free(c);
    return ok || w_fail(err, W_NO_MEMORY, "out of memory");
}

static bool make_model(struct w_fit *f, struct w_error *err) {
    struct op_model *base = NULL;
    if (f->spec->model.onnx && !(base = load_base(f, err))) return false;
    w_train_model_finish(&f->m);
    bool ok = w_train_model_build(f->spec, f->affine_inside ? &f->affine : NULL, base, &f->m, err);
    op_model_release(base);
    return ok;
}

static bool prepare(struct w_fit *f, struct w_error *err) {
    const struct w_spec_train *s = f->spec;
    if (!make_model(f, err)) return false;
    if (f->m.output_rank < 1)
        return w_fail(err, W_BAD_SPEC,
                      "the model gives a single number a row: end in a Dense layer");
    f->sparse = op_loss_is_sparse(s->loss.name);
    f->n_classes = f->m.output_dims[f->m.output_rank - 1];
    f->augment = w_augment_create(s->data.augment, f->m.input_rank, f->m.input_dims, err);
    if (s->data.augment && !f->augment) return false;
    if (!w_metrics_parse(s->compile.metrics, s, &f->m, &f->metrics, err) ||
        !w_metrics_parse(s->compile.metrics, s, &f->m, &f->eval_metrics, err) ||
        !w_callbacks_parse(s->fit.callbacks, &f->callbacks, err) || !load_sets(f, err) ||
        !w_train_preprocess(s, &f->train, &f->affine, err))
        return false;
    f->flip_images = f->train.is_image && s->model.onnx;
    if (f->affine.n > 1 && !s->model.onnx) {
        f->affine_inside = true;
        if (!make_model(f, err)) return false;
    } else if (f->affine.n > 1 && !f->train.is_image) {
        return w_fail(err, W_UNSUPPORTED,
                      "data.preprocess: Normalization by channel goes into the graph of "
                      "layers; with model.onnx use \"axis\": null");
    }
    f->steps_per_epoch = (f->train.x.n + s->fit.batch_size - 1) / s->fit.batch_size;
    f->schedule = w_schedule_create(s->schedule, s->learning_rate,
                                    (uint64_t)f->steps_per_epoch * (uint64_t)s->fit.epochs, err);
    return f->schedule && check_targets(f, &f->train, "data.train", err) &&
           check_targets(f, &f->validation, "validation", err) &&
           check_targets(f, &f->test, "test", err) && read_class_weights(f, err) &&
           make_tensors(f, err) && make_trainer(f, err) && plan(f, err) && hash(f, err);
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
    if (f->history && prepare(f, err)) return f;
    w_fit_destroy(f);
    return NULL;
}

void w_fit_destroy(struct w_fit *f) {
    if (!f) return;
    op_trainer_destroy(f->trainer);
    w_train_model_finish(&f->m);
    w_train_set_finish(&f->whole);
    w_train_set_finish(&f->held);
    w_train_set_finish(&f->extra);
    w_affine_finish(&f->affine);
    w_metrics_finish(&f->metrics);
    w_metrics_finish(&f->eval_metrics);
    w_callbacks_finish(&f->callbacks);
    w_schedule_destroy(f->schedule);
    w_augment_destroy(f->augment);
    free(f->class_weights);
    free(f->x.data);
    free(f->y.data);
    free(f->weight.data);
    free(f->order);
    free(f->best);
    json_decref(f->history);
    json_decref(f->test_results);
    free(f);
}

/* --- steps -------------------------------------------------------------------------------------
 */

static void make_order(struct w_fit *f) {
    int64_t n = f->train.x.n;
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

static void outcome_of(const struct w_fit *f, const struct op_tensor *output, struct w_outcome *o) {
    int64_t count = op_tensor_count(output);
    *o = (struct w_outcome){
        .classes = f->n_classes, .rows = count / f->n_classes, .output = output->data};
    if (f->sparse)
        o->sparse = f->y.data;
    else
        o->dense = f->y.data;
}

static double learning_rate(const struct w_fit *f) {
    uint64_t step = (uint64_t)f->epoch * (uint64_t)f->steps_per_epoch + (uint64_t)f->step;
    return w_schedule_at(f->schedule, step) * f->lr_scale;
}

static int64_t batch_rows(const struct w_fit *f, int64_t i) {
    int64_t first = i * f->spec->fit.batch_size, left = f->train.x.n - first;
    return left < f->spec->fit.batch_size ? left : f->spec->fit.batch_size;
}

static bool step(struct w_fit *f, struct op_step_result *r, struct op_error *why,
                 struct w_error *err) {
    int64_t first = f->step * f->spec->fit.batch_size;
    bool weighted = f->train.weight.data || f->class_weights;
    make_order(f);
    if (!w__fit_batch(f, &f->train, f->order + first, batch_rows(f, f->step), true, err))
        return false;
    return op_trainer_step(f->trainer, &f->x, 1, &f->y, 1, weighted ? &f->weight : NULL,
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
    int64_t batch = f->spec->fit.batch_size, *rows = malloc((size_t)batch * sizeof *rows);
    struct op_step_result r;
    struct op_error why;
    struct w_outcome o;
    bool ok = rows != NULL || w_fail(err, W_NO_MEMORY, "out of memory");
    w_metrics_reset(&f->eval_metrics);
    for (int64_t first = 0; ok && first < s->x.n; first += batch) {
        int64_t n = s->x.n - first < batch ? s->x.n - first : batch;
        for (int64_t i = 0; i < n; i++) rows[i] = first + i;
        tick(f);
        if (cancelled(f)) ok = w_fail(err, "cancelled", "cancelled");
        ok = ok && w__fit_batch(f, s, rows, n, false, err) &&
             (op_trainer_evaluate(f->trainer, &f->x, 1, &f->y, 1,
                                  s->weight.data ? &f->weight : NULL, &r, &why) == OP_OK ||
              w_train_fail(err, &why));
        if (!ok) break;
        outcome_of(f, &r.outputs[0], &o);
        w_metrics_update(&f->eval_metrics, &o, r.loss);
    }
    free(rows);
    return ok;
}

/* --- the loop ----------------------------------------------------------------------------------
 */

static void tell(struct w_fit *f) {
    double took = f->seconds_seen + w__fit_now() - f->started_s;
    int64_t total = (int64_t)(f->spec->fit.epochs - f->epoch) * f->train.x.n -
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
        outcome_of(f, &r.outputs[0], &o);
        w_metrics_update(&f->metrics, &o, r.loss);
        f->rows_seen += f->x.dims[0];
        f->step++;
        tell(f);
        double now = w__fit_now();
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
    w_metrics_json(&f->metrics, "", results);
    if (f->validation.x.n) {
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
    if (f->best && op_trainer_load(f->trainer, f->best, f->best_bytes, NULL, NULL, &why) != OP_OK)
        return w_train_fail(err, &why);
    if (!f->test.x.n) return true;
    if (!evaluate(f, &f->test, err)) return false;
    json_decref(f->test_results);
    f->test_results = json_object();
    w_metrics_json(&f->eval_metrics, "", f->test_results);
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

enum w_fit_end w_fit_run(struct w_fit *f, struct w_error *err) {
    f->started_s = w__fit_now();
    if (!begin(f, err)) return W_FIT_FAILED;
    while (f->epoch < f->spec->fit.epochs && !f->over) {
        if (f->step == 0) {
            w_metrics_reset(&f->metrics);
            f->epoch_s = f->started_s - w__fit_now();
        }
        enum w_fit_end end = run_steps(f, err);
        if (end != W_FIT_DONE) return leave(f, end, err);
        if (f->over) break;
        f->step = f->steps_per_epoch - 1; /* the rate that the last step had */
        bool ok = finish_epoch(f, f->epoch_s + w__fit_now() - f->started_s, err);
        f->step = f->steps_per_epoch;
        if (!ok) return leave(f, cancelled(f) ? W_FIT_CANCELLED : W_FIT_FAILED, err);
        f->epoch++;
        f->step = 0;
    }
    if (!conclude(f, err)) return leave(f, cancelled(f) ? W_FIT_CANCELLED : W_FIT_FAILED, err);
    return leave(f, W_FIT_DONE, err);
}
