/* report.c: what a training leaves: model.onnx with a few words about itself, model.json with the
 * pipeline that takes what the training rows were made of (so the folder is ready for a store), a
 * golden sample to prove it, metrics.json, and the curve. Each file is put in place whole. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "worker/train/train.h"

#define GOLDEN_ELEMENTS_MAX 16384
#define TOP_MAX 5
#define VOCABULARY "vocabulary.json"

static bool is_classifier(const struct w_fit *f) {
    const char *loss = f->spec->loss.name;
    return f->m.output_rank == 1 && f->n_classes > 1 &&
           (f->m.softmax || strstr(loss, "categorical_crossentropy"));
}

/* --- the pipeline ------------------------------------------------------------------------------
 */

static void image_steps(const struct w_fit *f, json_t *steps) {
    const struct w_affine *a = &f->fronts[0].affine;
    const struct w_array *x = &f->whole.x[0];
    json_t *pixels = json_pack("{s:s}", "layout", f->flip_images ? "nchw" : "nhwc");
    json_array_append_new(
        steps, json_pack("{s:{s:s}}", "decode_image", "color", x->dims[2] == 1 ? "gray" : "rgb"));
    json_array_append_new(steps, json_pack("{s:{s:I,s:I}}", "resize", "h", (json_int_t)x->dims[0],
                                           "w", (json_int_t)x->dims[1]));
    bool outside = a->n && !f->fronts[0].inside;
    json_object_set_new(pixels, "scale", json_real(outside && a->n == 1 ? (double)a->scale[0] : 1));
    if (outside && a->n == 1 && a->offset[0] != 0)
        json_object_set_new(pixels, "offset", json_real((double)a->offset[0]));
    if (outside && a->n > 1) { /* (x − mean) / std */
        json_t *mean = json_array(), *std = json_array();
        for (int64_t i = 0; i < a->n; i++) {
            json_array_append_new(std, json_real(1 / (double)a->scale[i]));
            json_array_append_new(mean, json_real(-(double)a->offset[i] / (double)a->scale[i]));
        }
        json_object_set_new(pixels, "mean", mean);
        json_object_set_new(pixels, "std", std);
    }
    json_array_append_new(steps, json_pack("{s:o}", "pixels", pixels));
}

static void tensor_step(const struct w_fit *f, json_t *steps) {
    const struct w_affine *a = &f->fronts[0].affine;
    const struct w_train_input *in = &f->m.inputs[0];
    json_t *shape = json_array(), *t = json_object();
    for (int i = 0; i < in->rank; i++) json_array_append_new(shape, json_integer(in->dims[i]));
    json_object_set_new(t, "dtype", json_string(op_type_name(in->dtype)));
    json_object_set_new(t, "shape", shape);
    if (a->n == 1 && !f->fronts[0].inside)
        json_object_set_new(t, "affine",
                            json_pack("[f,f]", (double)a->scale[0], (double)a->offset[0]));
    json_array_append_new(steps, json_pack("{s:o}", "tensor", t));
}

/* The steps that the rows were read by, then the shape. */
static void sound_steps(const struct w_fit *f, json_t *steps) {
    json_t *list = json_loads(f->fronts[0].sound, 0, NULL);
    json_array_extend(steps, list);
    json_decref(list);
    tensor_step(f, steps);
}

static void text_step(const struct w_fit *f, json_t *steps) {
    static const char *const splits[] = {"whitespace", "character", "byte"},
                            *const standards[] = {"lower_and_strip_punctuation", "lower",
                                                  "strip_punctuation", "none"};
    const struct w_front *w = &f->fronts[0];
    json_t *o = json_pack("{s:s, s:s, s:I}", "split", splits[w->split], "standardize",
                          standards[w->standardize], "length",
                          (json_int_t)f->m.inputs[0].elements);
    if (w->split != W_SPLIT_BYTE)
        json_object_set_new(o, "vocabulary", json_string(VOCABULARY));
    json_array_append_new(steps, json_pack("{s:o}", "vectorize", o));
}

/* The labels are the classes but for the blank. */
static void ctc_step(const struct w_fit *f, json_t *steps) {
    json_t *labels = json_array(), *o = json_object(),
           *separator = json_object_get(f->spec->data.train, "label_separator");
    for (int64_t i = 0, at = 0; i < f->n_classes; i++)
        json_array_append_new(
            labels, json_string(i == f->spec->loss.blank ? "" : f->whole.names[at++]));
    json_object_set_new(o, "labels", labels);
    json_object_set_new(o, "blank", json_integer((json_int_t)f->spec->loss.blank));
    if (!separator || json_string_length(separator)) /* what parts them in the data may be a list */
        json_object_set_new(o, "separator", json_string(" "));
    json_array_append_new(steps, json_pack("{s:o}", "ctc", o));
}

static json_t *pipeline(const struct w_fit *f) {
    json_t *steps = json_array();
    if (f->m.n_inputs > 1) { /* the job's tensors, by name, as they are */
        json_array_append_new(steps, json_pack("{s:{s:[s]}}", "run", "out", f->m.output_name));
    } else {
        if (f->whole.is_image)
            image_steps(f, steps);
        else if (f->fronts[0].sound)
            sound_steps(f, steps);
        else if (f->fronts[0].words)
            text_step(f, steps);
        else
            tensor_step(f, steps);
        json_array_append_new(steps, json_pack("{s:{s:{s:s},s:[s]}}", "run", "in",
                                               f->m.inputs[0].name, ".", "out", f->m.output_name));
    }
    if (f->target == OP_TARGET_LABELS && f->whole.n_names + 1 == f->n_classes) ctc_step(f, steps);
    if (!is_classifier(f)) return steps;
    if (!f->m.softmax)
        json_array_append_new(steps, json_pack("{s:{s:s}}", "activate", "kind", "softmax"));
    json_t *top = json_object();
    json_object_set_new(top, "k", json_integer(f->n_classes < TOP_MAX ? f->n_classes : TOP_MAX));
    if (f->whole.n_names == f->n_classes) {
        json_t *labels = json_array();
        for (int64_t i = 0; i < f->n_classes; i++)
            json_array_append_new(labels, json_string(f->whole.names[i]));
        json_object_set_new(top, "labels", labels);
    }
    json_array_append_new(steps, json_pack("{s:o}", "topk", top));
    return steps;
}

/* --- the golden sample -------------------------------------------------------------------------
 */

static json_t *nested(const struct w_array *x, const void *row, const int64_t *dims, int rank,
                      int64_t *at) {
    if (rank == 0) {
        double v = w__array_number(x, row, (*at)++);
        return v == floor(v) && fabs(v) < 1e15 ? json_integer((json_int_t)v) : json_real(v);
    }
    json_t *list = json_array();
    for (int64_t i = 0; i < dims[0]; i++)
        json_array_append_new(list, nested(x, row, dims + 1, rank - 1, at));
    return list;
}

/* A row as a job would send it; NULL with err. */
static json_t *input_of(const struct w_fit *f, const struct w_set *s, struct w_error *err) {
    json_t *all = json_object();
    for (int i = 0; i < f->m.n_inputs; i++) {
        const struct w_train_input *in = &f->m.inputs[i];
        int64_t at = 0;
        if (s->x[i].dtype == OP_STRING) {
            struct w_span text = w__array_text(&s->x[i], s->rows[0]);
            json_decref(all);
            return json_stringn(text.ptr, text.len);
        }
        const void *row = w__array_row(&s->x[i], s->rows[0], f->batch.scratch, err);
        if (!row) return json_decref(all), NULL;
        json_t *value = nested(&s->x[i], row, in->dims, in->rank, &at);
        if (f->m.n_inputs == 1) return json_decref(all), value;
        json_object_set_new(all, in->name, value);
    }
    return all;
}

static double softmax_at(const float *v, int64_t n, int64_t i) {
    double sum = 0;
    for (int64_t k = 0; k < n; k++) sum += exp((double)v[k] - (double)v[i]);
    return 1 / sum;
}

static json_t *expected(const struct w_fit *f, const float *out) {
    int64_t best = 0, n = f->n_classes;
    if (!is_classifier(f)) {
        json_t *shape = json_array(), *data = json_array();
        int64_t count = 1;
        json_array_append_new(shape, json_integer(1));
        for (int i = 0; i < f->m.output_rank; i++) {
            json_array_append_new(shape, json_integer(f->m.output_dims[i]));
            count *= f->m.output_dims[i];
        }
        for (int64_t i = 0; i < count; i++) json_array_append_new(data, json_real((double)out[i]));
        return json_pack("{s:{s:{s:s,s:o,s:o}}}", "outputs", f->m.output_name, "dtype", "f32",
                         "shape", shape, "data", data);
    }
    for (int64_t i = 1; i < n; i++)
        if (out[i] > out[best]) best = i;
    double score = f->m.softmax ? (double)out[best] : softmax_at(out, n, best);
    return json_pack("{s:[{s:I,s:f}]}", "top", "index", (json_int_t)best, "score", score);
}

static bool golden(struct w_fit *f, struct op_model *m, json_t *root, struct w_error *err) {
    const struct w_set *s = f->test.n ? &f->test : &f->train;
    struct op_error why;
    const struct op_tensor *out;
    int64_t row = 0, outputs = 1, inputs = 0;
    for (int i = 0; i < f->m.output_rank; i++) outputs *= f->m.output_dims[i];
    for (int i = 0; i < f->m.n_inputs; i++) inputs += f->m.inputs[i].elements;
    if (f->whole.is_image || f->whole.x[0].windows || f->fronts[0].sound || inputs > GOLDEN_ELEMENTS_MAX || outputs > GOLDEN_ELEMENTS_MAX)
        return true;
    if (!w__fit_batch(f, &f->batch, s, &row, 1, false, err)) return false;
    json_t *input = input_of(f, s, err);
    if (!input && s->x[0].dtype == OP_STRING) return true; /* a row that is no UTF-8 */
    if (!input) return false;
    struct op_session *session = op_session_create(m, NULL, &why);
    bool ok = session && op_session_run(session, f->batch.x, f->m.n_inputs, &out, &why) == OP_OK;
    if (ok)
        json_object_set_new(root, "golden",
                            json_pack("[{s:O,s:o,s:f}]", "input", input, "expect",
                                      expected(f, out[0].data), "tol", 1e-3));
    json_decref(input);
    op_session_destroy(session);
    return ok || w_train_fail(err, &why);
}

/* --- files -------------------------------------------------------------------------------------
 */

static bool put_json(json_t *o, const char *folder, const char *name, size_t flags,
                     struct w_error *err) {
    char path[4400];
    char *text = json_dumps(o, flags);
    snprintf(path, sizeof path, "%s/%s", folder, name);
    bool ok = text ? w__fit_put(path, text, strlen(text), err)
                   : w_fail(err, W_NO_MEMORY, "no memory for %s", name);
    free(text);
    return ok;
}

static json_t *without_prefix(json_t *epoch) {
    json_t *o = json_object(), *value;
    const char *key;
    json_object_foreach(epoch, key, value) if (strncmp(key, "val_", 4) == 0)
        json_object_set(o, key + 4, value);
    return o;
}

json_t *w_fit_epoch(const struct w_fit *f) {
    size_t n = json_array_size(f->history);
    json_t *epoch = json_array_get(f->history, n - 1);
    for (int i = 0; f->best && i < f->callbacks.n; i++) {
        const struct w_callback *c = &f->callbacks.items[i];
        if (!c->restore_best_weights && !c->save_best_only) continue;
        for (size_t k = n; k-- > 0;)
            if (json_number_value(json_object_get(json_array_get(f->history, k), c->monitor)) ==
                c->best)
                epoch = json_array_get(f->history, k);
    }
    return epoch;
}

static json_t *validation_results(const struct w_fit *f) {
    return f->validation.n ? without_prefix(w_fit_epoch(f)) : json_null();
}

/* Mean and standard deviation (of a sample) of each number of the folds. */
static json_t *spread(const struct w_fit *f) {
    json_t *all = json_object(), *value, *fold;
    size_t i, n = json_array_size(f->fold_results);
    const char *key;
    json_object_foreach(json_array_get(f->fold_results, 0), key, value) {
        double sum = 0, squares = 0;
        if (strcmp(key, "fold") == 0) continue;
        json_array_foreach(f->fold_results, i, fold) sum += json_number_value(json_object_get(fold, key));
        json_array_foreach(f->fold_results, i, fold) {
            double d = json_number_value(json_object_get(fold, key)) - sum / (double)n;
            squares += d * d;
        }
        json_object_set_new(all, key,
                            json_pack("{s:f, s:f}", "mean", sum / (double)n, "std",
                                      n > 1 ? sqrt(squares / (double)(n - 1)) : 0.0));
    }
    return all;
}

static json_t *metrics(const struct w_fit *f) {
    int64_t n_weights = 0;
    for (int i = 0; i < op_trainer_n_weights(f->trainer); i++) {
        bool trained;
        const struct op_tensor *t;
        op_trainer_weight(f->trainer, i, &trained, &t);
        n_weights += trained ? op_tensor_count(t) : 0;
    }
    json_t *o = json_pack("{s:O, s:o, s:O, s:f, s:I, s:I, s:I, s:I, s:I, s:s, s:s}", "test",
                     f->test_results ? f->test_results : json_null(), "validation",
                     validation_results(f), "epochs", f->history, "seconds", f->seconds,
                     "train_rows", (json_int_t)f->train.n, "validation_rows",
                     (json_int_t)f->validation.n, "test_rows", (json_int_t)f->test.n, "weights",
                     (json_int_t)n_weights, "peak_bytes", (json_int_t)f->peak_bytes, "data_sha256",
                     f->data_hash, "isa", op_isa());
    if (o && f->spec->fit.folds) {
        json_object_set(o, "folds", f->fold_results);
        json_object_set_new(o, "cross_validation", spread(f));
    }
    return o;
}

static bool put_model(struct w_fit *f, struct op_model *m, const char *folder,
                      struct w_error *err) {
    char path[4400], seed[32];
    struct op_error why;
    snprintf(path, sizeof path, "%s/model.onnx", folder);
    snprintf(seed, sizeof seed, "%.0f", f->spec->fit.seed);
    const char *keys[] = {"quern.data_sha256", "quern.seed", "quern.loss", "quern.optimizer",
                          "quern.isa"},
               *values[] = {f->data_hash, seed, f->spec->loss.name, f->spec->optimizer_name,
                            op_isa()};
    return op_model_save(m, path, keys, values, 5, &why) == OP_OK || w_train_fail(err, &why);
}

static bool put_vocabulary(const struct w_fit *f, const char *folder, struct w_error *err) {
    char path[4400];
    const struct w_vectorizer *v = f->fronts[0].words;
    if (!v || f->fronts[0].split == W_SPLIT_BYTE) return true;
    char *text = w_vectorizer_write(v, err);
    snprintf(path, sizeof path, "%s/" VOCABULARY, folder);
    bool ok = text && w__fit_put(path, text, strlen(text), err);
    free(text);
    return ok;
}

bool w_fit_write(struct w_fit *f, const char *folder, struct w_error *err) {
    char path[4400];
    struct op_error why;
    struct op_model *m = op_trainer_model(f->trainer, &why);
    if (!m) return w_train_fail(err, &why);
    json_t *root = json_pack("{s:i, s:o}", "quern", 1, "pipeline", pipeline(f)),
           *results = metrics(f);
    snprintf(path, sizeof path, "%s/curve.svg", folder);
    bool ok = root && results ? golden(f, m, root, err)
                              : w_fail(err, W_NO_MEMORY, "no memory for the results");
    ok = ok && put_model(f, m, folder, err) && put_vocabulary(f, folder, err) &&
         put_json(root, folder, "model.json", JSON_INDENT(0), err) &&
         put_json(results, folder, "metrics.json", JSON_INDENT(2) | JSON_REAL_PRECISION(10), err) &&
         w__fit_curve(f, path, err);
    json_decref(root);
    json_decref(results);
    op_model_release(m);
    return ok;
}
