/* preprocess.c: what happens to x before the model sees it. Every step is a·x + b, for all elements
 * or by channel (the last dimension), so a list of steps is one such pair: batches apply it while
 * they convert, the pipeline of the model that comes out applies it as `affine`, and where it
 * differs by channel it goes into the graph (fit.c decides). Normalization without numbers takes
 * mean and variance from the training rows, as Keras's adapt does. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "worker/train/train.h"

struct step {
    double scale, offset;
    json_t *mean, *variance, *axis;
    int32_t height, width;
};

/* clang-format off */
static const struct w_param rescaling_params[] = {
    {.name = "scale", .kind = W_PARAM_DOUBLE, .offset = offsetof(struct step, scale), .required = true, .help = "a number"},
    {.name = "offset", .kind = W_PARAM_DOUBLE, .offset = offsetof(struct step, offset)},
    {0}};
static const struct w_param normalization_params[] = {
    {.name = "mean", .kind = W_PARAM_JSON, .offset = offsetof(struct step, mean)},
    {.name = "variance", .kind = W_PARAM_JSON, .offset = offsetof(struct step, variance)},
    {.name = "axis", .kind = W_PARAM_JSON, .offset = offsetof(struct step, axis)},
    {0}};
static const struct w_param resizing_params[] = {
    {.name = "height", .kind = W_PARAM_INT, .offset = offsetof(struct step, height), .min = 1, .max = 65535, .required = true, .help = "pixels"},
    {.name = "width", .kind = W_PARAM_INT, .offset = offsetof(struct step, width), .min = 1, .max = 65535, .required = true, .help = "pixels"},
    {0}};
/* clang-format on */

static const char *next_step(void *user, size_t i) {
    static const char *const names[] = {"Rescaling", "Normalization", "Resizing", "OneHot",
                                        "CategoryEncoding"};
    (void)user;
    return i < sizeof names / sizeof *names ? names[i] : NULL;
}

static double element(const struct w_array *a, int64_t i) {
    return a->dtype == OP_U8    ? ((const uint8_t *)a->data)[i]
           : a->dtype == OP_F32 ? (double)((const float *)a->data)[i]
                                : (double)((const int64_t *)a->data)[i];
}

/* One channel's numbers stand for all until a step tells channels apart. */
static bool widen(struct w_affine *a, int64_t n, struct w_error *err) {
    if (a->n == n) return true;
    float *scale = malloc((size_t)n * sizeof *scale), *offset = malloc((size_t)n * sizeof *offset);
    if (!scale || !offset) {
        free(scale);
        free(offset);
        return w_fail(err, W_NO_MEMORY, "out of memory");
    }
    for (int64_t i = 0; i < n; i++) {
        scale[i] = a->n ? a->scale[0] : 1;
        offset[i] = a->n ? a->offset[0] : 0;
    }
    w_affine_finish(a);
    *a = (struct w_affine){n, scale, offset};
    return true;
}

/* What follows is v → v·s + o. */
static void then(struct w_affine *a, int64_t i, double s, double o) {
    a->scale[i] = (float)((double)a->scale[i] * s);
    a->offset[i] = (float)((double)a->offset[i] * s + o);
}

static bool given(json_t *json, int64_t i, int64_t n, double *dst) {
    if (json_is_number(json)) return *dst = json_number_value(json), true;
    json_t *item = json_array_get(json, (size_t)i);
    *dst = json_number_value(item);
    return json_is_number(item) && (int64_t)json_array_size(json) == n;
}

/* Mean and variance of what the steps before make of the training rows. */
static void adapt(const struct w_affine *a, const struct w_array *x, int64_t channel, int64_t n,
                  double *mean, double *variance) {
    double sum = 0, squares = 0, count = 0, s = (double)a->scale[channel],
           o = (double)a->offset[channel];
    int64_t total = x->n * x->elements;
    for (int64_t i = channel; i < total; i += n) sum += element(x, i) * s + o, count++;
    *mean = count > 0 ? sum / count : 0;
    for (int64_t i = channel; i < total; i += n) {
        double d = element(x, i) * s + o - *mean;
        squares += d * d;
    }
    *variance = count > 0 ? squares / count : 1;
}

static bool normalization(const struct step *st, const struct w_set *train, struct w_affine *a,
                          const char *where, struct w_error *err) {
    const struct w_array *x = &train->x;
    bool whole = json_is_null(st->axis); /* "axis": null: one mean for all */
    int64_t n = whole ? 1 : x->dims[x->rank - 1];
    if (st->axis && !whole && json_integer_value(st->axis) != -1)
        return w_fail(err, W_BAD_SPEC, "%s: \"axis\" must be -1 or null", where);
    if (!st->mean != !st->variance)
        return w_fail(err, W_BAD_SPEC, "%s: \"mean\" and \"variance\" come together", where);
    if (!widen(a, n > a->n ? n : a->n, err)) return false;
    double mean = 0, variance = 1;
    for (int64_t i = 0; i < a->n; i++) {
        if (st->mean) {
            if (!given(st->mean, i, a->n, &mean) || !given(st->variance, i, a->n, &variance) ||
                variance < 0)
                return w_fail(err, W_BAD_SPEC,
                              "%s: mean and variance must be numbers, or lists of %lld", where,
                              (long long)a->n);
        } else {
            adapt(a, x, i, a->n, &mean, &variance);
        }
        double d = sqrt(variance) > 1e-7 ? sqrt(variance) : 1e-7;
        then(a, i, 1 / d, -mean / d);
    }
    return true;
}

static bool one_step(json_t *json, const char *where, const struct w_set *train, struct w_affine *a,
                     struct w_error *err) {
    struct step st = {.scale = 1};
    const char *type;
    if (!w__train_typed(json, &type, where, err)) return false;
    json_t *none = json_object(), *params = json_is_object(json) ? json : none;
    bool ok;
    if (strcmp(type, "Rescaling") == 0) {
        ok = w__train_params(rescaling_params, params, &st, where, err) &&
             (a->n || widen(a, 1, err));
        for (int64_t i = 0; ok && i < a->n; i++) then(a, i, st.scale, st.offset);
    } else if (strcmp(type, "Normalization") == 0) {
        ok = w__train_params(normalization_params, params, &st, where, err) &&
             normalization(&st, train, a, where, err);
    } else if (strcmp(type, "Resizing") == 0) { /* loading has done it: to the model's shape */
        ok = w__train_params(resizing_params, params, &st, where, err);
        if (ok &&
            (train->x.rank != 3 || train->x.dims[0] != st.height || train->x.dims[1] != st.width))
            ok = w_fail(err, W_BAD_SPEC,
                        "%s: pictures are resized to model.input_shape, which is not %d×%d", where,
                        st.height, st.width);
    } else if (strcmp(type, "OneHot") == 0 || strcmp(type, "CategoryEncoding") == 0) {
        ok = true; /* targets become what the loss wants by themselves */
    } else {
        ok = w__train_unknown(where, "preprocessing", type, next_step, NULL, err);
    }
    json_decref(none);
    return ok;
}

bool w_train_preprocess(const struct w_spec_train *spec, const struct w_set *train,
                        struct w_affine *dst, struct w_error *err) {
    json_t *list = spec->data.preprocess, *json;
    size_t i;
    *dst = (struct w_affine){0};
    if (!list) return true;
    if (!json_is_array(list)) return w_fail(err, W_BAD_SPEC, "data.preprocess must be a list");
    if (train->x.dtype == OP_I64 && json_array_size(list) && train->x.rank == 1 &&
        spec->model.layers &&
        strcmp(
            json_string_value(json_object_get(json_array_get(spec->model.layers, 0), "type"))
                ? json_string_value(json_object_get(json_array_get(spec->model.layers, 0), "type"))
                : "",
            "Embedding") == 0)
        return w_fail(err, W_BAD_SPEC,
                      "data.preprocess: the Embedding takes whole numbers as they are");
    json_array_foreach(list, i, json) {
        char where[64];
        snprintf(where, sizeof where, "data.preprocess[%zu]", i);
        if (!one_step(json, where, train, dst, err)) return false;
    }
    return true;
}

void w_affine_finish(struct w_affine *a) {
    free(a->scale);
    free(a->offset);
    *a = (struct w_affine){0};
}
