/* prepare.c: everything before the first step, in an order in which what is wrong is told before
 * much is done: layers → graph (so a spec that does not fit fails before data is read) → rows →
 * preprocessing → graph again where some of it goes into it → trainer, its memory known. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "worker/train/train.h"

/* --- data --------------------------------------------------------------------------------------
 */

static bool load_sets(struct w_fit *f, struct w_error *err) {
    const struct w_spec_train *s = f->spec;
    struct w_set_wish wish = {.inputs = f->m.inputs,
                              .n_inputs = f->m.n_inputs,
                              .fronts = f->fronts,
                              .no_targets = f->target == OP_TARGET_NONE,
                              .sequences = f->target == OP_TARGET_LABELS,
                              .blank = s->loss.blank};
    wish.first = s->model.onnx && f->m.inputs[0].rank == 3;
    f->o.files.memory_bytes = (size_t)(s->data.memory_mb * 1048576);
    if (!w_train_set_load(s->data.train, "data.train", &f->o.files, &wish, &f->whole, err))
        return false;
    if (s->data.test && s->data.test_split > 0)
        return w_fail(err, W_BAD_SPEC, "data has both \"test\" and \"test_split\"");
    if (s->data.test_split > 0 && !w__split_test(f, err)) return false;
    w_train_set_part(&f->whole, 0, f->whole.n - f->test.n, &f->train);
    wish.like = &f->whole;
    if (s->data.test) {
        if (!w_train_set_load(s->data.test, "data.test", &f->o.files, &wish, &f->held, err))
            return false;
        w_train_set_part(&f->held, 0, f->held.n, &f->test);
    }
    if (s->data.validation) {
        if (!w_train_set_load(s->data.validation, "data.validation", &f->o.files, &wish, &f->extra,
                              err))
            return false;
        w_train_set_part(&f->extra, 0, f->extra.n, &f->validation);
    } else if (s->fit.validation_split > 0 && !w__split_validation(f, err)) {
        return false;
    }
    if (f->whole.x[0].windows) return w__split_windows(f, err);
    return !s->fit.folds || w__split_deal(f, err);
}

/* A row's targets are whole numbers from 0 below n_classes (or, where padded, anything below). */
static bool check_classes(const struct w_fit *f, const struct w_set *s, const char *where,
                          bool padded, struct w_error *err) {
    int64_t n = s->y.elements;
    if (s->y.windows) return true; /* tokens: their number is checked */
    for (int64_t i = 0; i < s->n * n; i++) {
        int64_t row = s->rows[i / n];
        double v = w__array_number(&s->y, w__array_row(&s->y, row, NULL, err), i % n);
        if (v != floor(v) || (v < 0 && !padded) || v >= (double)f->n_classes)
            return w_fail(err, W_BAD_INPUT,
                          "%s: row %lld has the class %g, the model's output has classes 0 to %lld",
                          where, (long long)row, v, (long long)f->n_classes - 1);
    }
    return true;
}

/* A class of the model that no row is of cannot be learnt: a label is misspelt, a folder is empty,
 * a split took all. Models over words and ids, and those made elsewhere, have outputs that a set
 * need not know. */
static bool check_no_class_is_empty(const struct w_fit *f, struct w_error *err) {
    const struct w_set *s = &f->train;
    bool classes = f->sparse && f->target != OP_TARGET_LABELS && f->m.output_rank == 1 &&
                   s->y.data && !s->y.windows && !(f->spec->model.onnx && !f->spec->model.head);
    for (int i = 0; i < f->m.n_inputs; i++) classes &= f->m.inputs[i].ids == 0;
    if (!classes || f->spec->data.allow_empty_classes) return true;
    int64_t *counts = calloc((size_t)f->n_classes, sizeof *counts), empty = 0;
    if (!counts) return w_fail(err, W_NO_MEMORY, "out of memory");
    for (int64_t i = 0; i < s->n; i++) {
        double v = w__array_number(&s->y, w__array_row(&s->y, s->rows[i], NULL, err), 0);
        if (v >= 0 && v < (double)f->n_classes) counts[(int64_t)v]++;
    }
    while (empty < f->n_classes && counts[empty]) empty++;
    free(counts);
    if (empty == f->n_classes) return true;
    return w_fail(err, W_BAD_INPUT,
                  "data.train: no row is of class %lld%s%.60s%s, and the model has classes 0 to "
                  "%lld: fewer units, other rows, or data.allow_empty_classes",
                  (long long)empty, empty < f->whole.n_names ? " (\"" : "",
                  empty < f->whole.n_names ? f->whole.names[empty] : "",
                  empty < f->whole.n_names ? "\")" : "", (long long)f->n_classes - 1);
}

/* A rate that is nothing from the first step to the last trains nothing. */
static bool check_schedule(const struct w_fit *f, struct w_error *err) {
    uint64_t total = (uint64_t)f->steps_per_epoch * (uint64_t)f->spec->fit.epochs, n = 64;
    bool some = false;
    for (uint64_t i = 0; i < n; i++) {
        double rate = w_schedule_at(f->schedule, total * i / n);
        some |= rate > 0;
        if (!isfinite(rate) || rate < 0 || rate > 1e6)
            return w_fail(err, W_BAD_SPEC,
                          "compile.optimizer: \"learning_rate\" comes to %g at step %llu, a number "
                          "from 0 to 1e6 is expected",
                          rate, (unsigned long long)(total * i / n));
    }
    return some || w_fail(err, W_BAD_SPEC,
                          "compile.optimizer: \"learning_rate\" is 0 from the first step to the "
                          "last, a number above 0 is expected");
}

/* Targets fit the output; class numbers are whole and in range. */
static bool check_targets(const struct w_fit *f, const struct w_set *s, const char *where,
                          struct w_error *err) {
    const struct w_train_model *m = &f->m;
    const char *loss = f->spec->loss.name;
    int64_t wanted = 1, n = s->y.elements;
    if (!s->y.data || f->target == OP_TARGET_NONE) return true;
    if (f->target == OP_TARGET_LABELS) return check_classes(f, s, where, true, err);
    for (int i = 0; i < m->output_rank - (f->sparse ? 1 : 0); i++) wanted *= m->output_dims[i];
    if (f->target == OP_TARGET_ROWS) wanted = 1;
    bool one_hot = f->target == OP_TARGET_DENSE && n == 1 && wanted > 1;
    if (one_hot && strncmp(loss, "categorical", 11) != 0)
        return w_fail(err, W_BAD_SHAPE, "%s: a row of y has 1 number, the model gives %lld", where,
                      (long long)wanted);
    if (n != wanted && !one_hot)
        return w_fail(
            err, W_BAD_SHAPE,
            "%s: a row of y has %lld numbers, the model's output and the loss \"%s\" want %lld",
            where, (long long)n, loss, (long long)wanted);
    return !(f->sparse || one_hot) || check_classes(f, s, where, false, err);
}

/* Numbers that an Embedding takes are within what it has. */
static bool check_ids(const struct w_fit *f, const struct w_set *s, const char *where,
                      struct w_error *err) {
    for (int k = 0; k < s->n_x; k++) {
        const struct w_train_input *in = &f->m.inputs[k];
        const struct w_array *x = &s->x[k];
        if (f->fronts[k].words) continue; /* tokens: their number is checked */
        for (int64_t i = 0; in->ids && i < s->n * x->elements; i++) {
            int64_t row = s->rows[i / x->elements];
            const int64_t *v = w__array_row(x, row, NULL, err);
            if (v[i % x->elements] >= 0 && v[i % x->elements] < in->ids) continue;
            return w_fail(err, W_BAD_INPUT,
                          "%s: row %lld of \"%s\" has the number %lld, its Embedding takes 0 to "
                          "%lld (input_dim); IntegerLookup numbers what is not consecutive",
                          where, (long long)row, in->name, (long long)v[i % x->elements],
                          (long long)in->ids - 1);
        }
    }
    return true;
}

/* The vocabulary is not larger than the Embedding, and, of a language model, than the output. */
static bool check_vocabularies(const struct w_fit *f, struct w_error *err) {
    for (int k = 0; k < f->m.n_inputs; k++) {
        const struct w_train_input *in = &f->m.inputs[k];
        int64_t size = f->fronts[k].words ? w_vectorizer_size(f->fronts[k].words) : 0;
        if (size > in->ids && in->ids)
            return w_fail(err, W_BAD_SPEC,
                          "TextVectorization: the vocabulary has %lld tokens, the Embedding takes %lld "
                          "(input_dim): give \"max_tokens\"",
                          (long long)size, (long long)in->ids);
        if (f->whole.y.windows && size > f->n_classes)
            return w_fail(err, W_BAD_SPEC,
                          "TextVectorization: the vocabulary has %lld tokens, the model's output has "
                          "%lld classes",
                          (long long)size, (long long)f->n_classes);
    }
    return true;
}

static bool check_set(const struct w_fit *f, const struct w_set *s, const char *where,
                      struct w_error *err) {
    return check_targets(f, s, where, err) && check_ids(f, s, where, err);
}

/* Rows / (classes · rows of the class), so that every class weighs the same. */
static bool balance(struct w_fit *f, int64_t n, struct w_error *err) {
    int64_t *count = calloc((size_t)n, sizeof *count), found = 0;
    if (!count) return w_fail(err, W_NO_MEMORY, "out of memory");
    bool ok = f->train.y.elements == 1 ||
              w_fail(err, W_BAD_SPEC, "fit.class_weight: \"balanced\" wants one class a row");
    for (int64_t i = 0; ok && i < f->train.n; i++) {
        double v = w__array_number(&f->train.y, w__array_row(&f->train.y, f->train.rows[i], NULL, err), 0);
        if (v == floor(v) && v >= 0 && v < (double)n) count[(int64_t)v]++;
    }
    for (int64_t c = 0; c < n; c++) found += count[c] > 0;
    for (int64_t c = 0; ok && c < n; c++)
        if (count[c])
            f->class_weights[c] = (float)((double)f->train.n / ((double)found * (double)count[c]));
    free(count);
    return ok;
}

static bool read_class_weights(struct w_fit *f, struct w_error *err) {
    json_t *json = f->spec->fit.class_weight, *value;
    const char *key;
    int64_t n = f->n_classes > 1 ? f->n_classes : 2;
    if (!json) return true;
    free(f->class_weights);
    f->class_weights = malloc((size_t)n * sizeof *f->class_weights);
    if (!f->class_weights) return w_fail(err, W_NO_MEMORY, "out of memory");
    for (int64_t i = 0; i < n; i++) f->class_weights[i] = 1;
    if (json_is_string(json) && strcmp(json_string_value(json), "balanced") == 0)
        return balance(f, n, err);
    if (!json_is_object(json))
        return w_fail(err, W_BAD_SPEC,
                      "fit.class_weight must be {class: weight}, or \"balanced\"");
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

/* A step with n rows, in f->peak_bytes. */
static enum op_status plan_rows(struct w_fit *f, int64_t n, struct op_error *why) {
    struct w_fit_batch *b = &f->batch;
    double flops;
    for (int i = 0; i < f->m.n_inputs; i++) b->x[i].dims[0] = n;
    b->y.dims[0] = b->weight.dims[0] = n;
    enum op_status st = op_trainer_plan(f->trainer, b->x, f->m.n_inputs, &b->y, 1, &f->peak_bytes,
                                        &flops, why);
    if (st != OP_OK || !f->o.memory_bytes_max || f->peak_bytes <= f->o.memory_bytes_max) return st;
    snprintf(why->text, sizeof why->text, "%lld row%s need %.1f MB, %.1f MB are allowed",
             (long long)n, n == 1 ? "" : "s", (double)f->peak_bytes / 1e6,
             (double)f->o.memory_bytes_max / 1e6);
    return why->code = OP_LIMIT;
}

/* Refused with the batch size that would fit. */
static bool plan(struct w_fit *f, struct w_error *err) {
    struct op_error why, first = {0};
    int64_t full = f->spec->fit.batch_size < f->train.n ? f->spec->fit.batch_size : f->train.n,
            n = full;
    for (; n > 0 && plan_rows(f, n, &why) != OP_OK; n /= 2) {
        if (why.code != OP_NOMEM && why.code != OP_LIMIT) return w_train_fail(err, &why);
        if (n == full) first = why;
    }
    if (n == full) return true;
    if (n == 0)
        return w_fail(err, W_TOO_LARGE,
                      "a step does not fit into memory with any batch size: %.300s", why.text);
    return w_fail(err, W_TOO_LARGE,
                  "fit.batch_size: a step with %lld rows does not fit into memory; %lld would: "
                  "%.300s",
                  (long long)full, (long long)n, first.text);
}

static bool make_trainer(struct w_fit *f, struct w_error *err) {
    const struct w_spec_train *s = f->spec;
    struct op_error why;
    struct op_trainer_options o = {.losses = &s->loss,
                                   .n_losses = 1,
                                   .optimizer = s->optimizer,
                                   .freeze = (const char *const *)f->m.freeze,
                                   .n_freeze = f->m.n_freeze,
                                   .regularizers = f->m.regularizers,
                                   .n_regularizers = f->m.n_regularizers,
                                   .noises = f->m.noises,
                                   .n_noises = f->m.n_noises,
                                   .activities = f->m.activities,
                                   .n_activities = f->m.n_activities,
                                   .seed = (uint64_t)s->fit.seed,
                                   .n_threads = f->o.n_threads,
                                   .on_node = f->o.on_node,
                                   .user = f->o.node_user,
                                   .cancel = f->o.cancel};
    f->trainer = op_trainer_create(f->m.model, &o, &why);
    return f->trainer || w_train_fail(err, &why);
}

static bool make_model(struct w_fit *f, struct w_error *err) {
    struct op_model *base = NULL;
    if (f->spec->model.onnx && !(base = load_base(f, err))) return false;
    w_train_model_finish(&f->m);
    bool ok = w_train_model_build(f->spec, f->fronts, base, &f->m, err);
    op_model_release(base);
    return ok;
}

/* What the fronts say goes into the graph, so it is made anew where it must. */
static bool front(struct w_fit *f, struct w_error *err) {
    bool anew = false;
    if (!w_train_preprocess(f->spec, &f->m, &f->train, f->fronts, err)) return false;
    for (int i = 0; i < f->m.n_inputs; i++) {
        struct w_front *w = &f->fronts[i];
        w->inside = w->affine.n > 1 && !f->spec->model.onnx;
        anew |= w->inside || w->table;
        if ((w->affine.n > 1 && !w->inside && !f->train.is_image) || (w->table && f->spec->model.onnx))
            return w_fail(err, W_UNSUPPORTED,
                          "data.preprocess: Normalization by channel and IntegerLookup go into the "
                          "graph of layers; with model.onnx use \"axis\": null");
    }
    return !anew || make_model(f, err);
}

static bool make_parts(struct w_fit *f, struct w_error *err) {
    const struct w_spec_train *s = f->spec;
    f->target = op_loss_target(s->loss.name);
    f->sparse = f->target == OP_TARGET_CLASSES;
    f->n_classes = f->m.output_dims[f->m.output_rank - 1];
    if (f->target == OP_TARGET_LABELS && f->m.output_rank != 2)
        return w_fail(err, W_BAD_SPEC, "compile.loss: ctc wants an output of [steps, classes] a row");
    if (s->data.augment && f->m.n_inputs > 1)
        return w_fail(err, W_UNSUPPORTED, "data.augment is for models with one input");
    f->augment = w_augment_create(s->data.augment, f->m.inputs[0].rank, f->m.inputs[0].dims, err);
    if (f->augment && w_augment_mixes(f->augment) && f->target != OP_TARGET_DENSE)
        return w_fail(err, W_BAD_SPEC,
                      "data.augment: MixUp and CutMix mix targets, so the loss must take numbers: "
                      "categorical_crossentropy in the place of \"%s\"",
                      s->loss.name);
    return (f->augment || !s->data.augment) &&
           w_metrics_parse(s->compile.metrics, s, &f->m, &f->metrics, err) &&
           w_metrics_parse(s->compile.metrics, s, &f->m, &f->eval_metrics, err) &&
           w_callbacks_parse(s->fit.callbacks, &f->callbacks, err);
}

/* Vocabulary, scaling, weights: all of it is learned from the rows that train. */
bool w__fit_set_up(struct w_fit *f, struct w_error *err) {
    const struct w_spec_train *s = f->spec;
    if (s->fit.folds) {
        for (int i = 0; i < W_TRAIN_INPUTS_MAX; i++) w_front_finish(&f->fronts[i]);
        w__split_fold(f);
        if (!make_model(f, err) || !w_train_sources(s, &f->m, f->fronts, err)) return false;
    }
    if (!front(f, err)) return false;
    f->steps_per_epoch = (f->train.n + s->fit.batch_size - 1) / s->fit.batch_size;
    if (s->fit.steps_per_epoch && s->fit.steps_per_epoch < f->steps_per_epoch)
        f->steps_per_epoch = s->fit.steps_per_epoch;
    f->order_epoch = -1;
    w_schedule_destroy(f->schedule);
    f->schedule = w_schedule_create(s->schedule, s->learning_rate,
                                    (uint64_t)f->steps_per_epoch * (uint64_t)s->fit.epochs, err);
    op_trainer_destroy(f->trainer);
    f->trainer = NULL;
    return f->schedule && check_vocabularies(f, err) && check_set(f, &f->train, "data.train", err) &&
           check_set(f, &f->validation, "validation", err) && check_set(f, &f->test, "test", err) &&
           check_no_class_is_empty(f, err) && check_schedule(f, err) &&
           read_class_weights(f, err) && make_trainer(f, err) && plan(f, err);
}

bool w__fit_prepare(struct w_fit *f, struct w_error *err) {
    const struct w_spec_train *s = f->spec;
    if (!make_model(f, err)) return false;
    if (f->m.output_rank < 1)
        return w_fail(err, W_BAD_SPEC,
                      "the model gives a single number a row: end in a Dense layer");
    if (!make_parts(f, err) || !w_train_sources(s, &f->m, f->fronts, err) || !load_sets(f, err))
        return false;
    f->flip_images = f->whole.is_image && s->model.onnx;
    f->order = malloc((size_t)(f->whole.n + 1) * sizeof *f->order);
    if (!f->order) return w_fail(err, W_NO_MEMORY, "out of memory");
    return w__fit_batch_init(f, &f->batch, err) && (f->loader = w__loader_create(f, err)) &&
           w__fit_set_up(f, err) && w__fit_hash(f, err);
}
