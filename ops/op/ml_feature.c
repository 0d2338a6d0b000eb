/* ml_feature.c: Scaler, Normalizer, Binarizer, Imputer, FeatureVectorizer and ArrayFeatureExtractor
 * of ai.onnx.ml: features in, features out. */
#include "ops/op/ml.h"
#include "ops/op/nn.h"

#include <math.h>
#include <string.h>

static bool is_number(const struct op_tensor *t) {
    return t && t->kind == OP_KIND_TENSOR &&
           (t->dtype == OP_F32 || t->dtype == OP_F64 || t->dtype == OP_I32 || t->dtype == OP_I64);
}

static enum op_status need_numbers(const struct op_ctx *ctx) {
    const struct op_tensor *x = ctx->in[0];
    if (!is_number(x))
        return op__fail(ctx, OP_BAD_TYPE, "takes f32, f64, i32 or i64, not %s",
                        x ? op_type_name(x->dtype) : "(absent)");
    if (x->rank < 1) return op__fail(ctx, OP_BAD_SHAPE, "takes features, not a scalar");
    return OP_OK;
}

/* --- Scaler: (x - offset) * scale, one of each or one for each feature ---------------------------
 */

static enum op_status scaler_infer(struct op_ctx *ctx) {
    int64_t n_offset, n_scale;
    op__attr_floats(ctx->node, "offset", &n_offset);
    op__attr_floats(ctx->node, "scale", &n_scale);
    enum op_status status = need_numbers(ctx);
    if (status != OP_OK) return status;
    const struct op_tensor *x = ctx->in[0];
    const int64_t features = x->dims[x->rank - 1];
    if ((n_offset > 1 && n_offset != features) || (n_scale > 1 && n_scale != features))
        return op__fail(ctx, OP_BAD_SHAPE, "%lld offsets and %lld scales do not fit %lld features",
                        (long long)n_offset, (long long)n_scale, (long long)features);
    op__set(ctx, 0, OP_F32, x->rank, x->dims);
    return OP_OK;
}

static enum op_status scaler_run(struct op_ctx *ctx) {
    const struct op_tensor *x = ctx->in[0];
    int64_t n_offset, n_scale;
    const float *offset = op__attr_floats(ctx->node, "offset", &n_offset),
                *scale = op__attr_floats(ctx->node, "scale", &n_scale);
    const int64_t count = ctx->out[0] ? op_tensor_count(x) : 0, features = x->dims[x->rank - 1];
    for (int64_t i = 0; i < count; i++) {
        const int64_t f = i % features;
        const double o = n_offset ? offset[n_offset > 1 ? f : 0] : 0,
                     s = n_scale ? scale[n_scale > 1 ? f : 0] : 1;
        nn_store(ctx->out[0], i, (nn_load(x, i) - o) * s);
    }
    return OP_OK;
}

/* --- Normalizer: a row divided by its largest value, the sum of its magnitudes or its length; a
 * row of norm 0 stays ---- */

static enum op_status normalizer_infer(struct op_ctx *ctx) {
    const char *norm = op__attr_string(ctx->node, "norm", "MAX");
    int64_t rows, features;
    enum op_status status = op__ml_rows(ctx, &rows, &features);
    if (status != OP_OK) return status;
    if (strcmp(norm, "MAX") && strcmp(norm, "L1") && strcmp(norm, "L2"))
        return op__fail(ctx, OP_BAD_VALUE, "norm is \"%s\", must be MAX, L1 or L2", norm);
    op__set(ctx, 0, OP_F32, ctx->in[0]->rank, ctx->in[0]->dims);
    return OP_OK;
}

static enum op_status normalizer_run(struct op_ctx *ctx) {
    const char *norm = op__attr_string(ctx->node, "norm", "MAX");
    int64_t rows, features;
    enum op_status status = op__ml_rows(ctx, &rows, &features);
    if (status != OP_OK || !ctx->out[0]) return status;
    for (int64_t r = 0; r < rows; r++) {
        double total = norm[0] == 'M' ? -INFINITY : 0;
        for (int64_t i = 0; i < features; i++) {
            const double v = nn_load(ctx->in[0], r * features + i);
            total = norm[0] == 'M'   ? fmax(total, v)
                    : norm[1] == '1' ? total + fabs(v)
                                     : total + v * v;
        }
        if (!strcmp(norm, "L2")) total = sqrt(total);
        if (total == 0) total = 1;
        for (int64_t i = 0; i < features; i++)
            nn_store(ctx->out[0], r * features + i, nn_load(ctx->in[0], r * features + i) / total);
    }
    return OP_OK;
}

/* --- Binarizer: x > threshold ------------------------------------------------------------------
 */

static enum op_status same_infer(struct op_ctx *ctx) {
    enum op_status status = need_numbers(ctx);
    if (status == OP_OK) op__set_like(ctx, 0, 0);
    return status;
}

static enum op_status binarizer_run(struct op_ctx *ctx) {
    const double threshold = op__attr_float(ctx->node, "threshold", 0);
    const int64_t count = ctx->out[0] ? op_tensor_count(ctx->in[0]) : 0;
    for (int64_t i = 0; i < count; i++)
        nn_store(ctx->out[0], i, nn_load(ctx->in[0], i) > threshold);
    return OP_OK;
}

/* --- Imputer: what equals the replaced value (NaN equals NaN) becomes the imputed one
 * -------------- */

static enum op_status imputer_infer(struct op_ctx *ctx) {
    int64_t n_floats, n_ints;
    op__attr_floats(ctx->node, "imputed_value_floats", &n_floats);
    op__attr_ints(ctx->node, "imputed_value_int64s", &n_ints);
    enum op_status status = same_infer(ctx);
    if (status != OP_OK) return status;
    const struct op_tensor *x = ctx->in[0];
    const int64_t features = x->dims[x->rank - 1], n = nn_is_float(x->dtype) ? n_floats : n_ints;
    if (n != 1 && n != features)
        return op__fail(ctx, OP_BAD_MODEL, "has %lld values to impute for %lld features of %s",
                        (long long)n, (long long)features, op_type_name(x->dtype));
    return OP_OK;
}

static enum op_status imputer_run(struct op_ctx *ctx) {
    const struct op_tensor *x = ctx->in[0];
    int64_t n_floats, n_ints;
    const float *floats = op__attr_floats(ctx->node, "imputed_value_floats", &n_floats);
    const int64_t *ints = op__attr_ints(ctx->node, "imputed_value_int64s", &n_ints);
    const bool is_float = nn_is_float(x->dtype);
    const int64_t count = ctx->out[0] ? op_tensor_count(x) : 0, features = x->dims[x->rank - 1],
                  n = is_float ? n_floats : n_ints;
    const double replaced = is_float ? op__attr_float(ctx->node, "replaced_value_float", 0)
                                     : (double)op__attr_int(ctx->node, "replaced_value_int64", 0);
    for (int64_t i = 0; i < count; i++) {
        const double v = nn_load(x, i);
        const int64_t at = n > 1 ? i % features : 0;
        const bool hit = v == replaced || (v != v && replaced != replaced);
        nn_store(ctx->out[0], i, !hit ? v : is_float ? floats[at] : (double)ints[at]);
    }
    return OP_OK;
}

/* --- FeatureVectorizer: (rows, n_i) side by side, as f32
 * ------------------------------------------- */

static enum op_status vectorizer_infer(struct op_ctx *ctx) {
    int64_t rows = -1, columns = 0;
    for (int i = 0; i < ctx->n_in; i++) {
        const struct op_tensor *t = ctx->in[i];
        if (!is_number(t) || t->rank < 1 || t->rank > 2)
            return op__fail(ctx, OP_BAD_TYPE, "input %d is no (rows, features) of numbers", i);
        const int64_t r = t->rank == 2 ? t->dims[0] : 1;
        if (rows >= 0 && r != rows)
            return op__fail(ctx, OP_BAD_SHAPE, "input %d has %lld rows, those before it %lld", i,
                            (long long)r, (long long)rows);
        rows = r;
        columns += t->dims[t->rank - 1];
    }
    op__set(ctx, 0, OP_F32, 2, (int64_t[]){rows, columns});
    return OP_OK;
}

static enum op_status vectorizer_run(struct op_ctx *ctx) {
    int64_t first = 0;
    if (!ctx->out[0]) return OP_OK;
    const int64_t rows = ctx->out[0]->dims[0], columns = ctx->out[0]->dims[1];
    for (int i = 0; i < ctx->n_in; i++) {
        const int64_t n = ctx->in[i]->dims[ctx->in[i]->rank - 1];
        for (int64_t r = 0; r < rows; r++)
            for (int64_t c = 0; c < n; c++)
                nn_store(ctx->out[0], r * columns + first + c, nn_load(ctx->in[i], r * n + c));
        first += n;
    }
    return OP_OK;
}

/* --- ArrayFeatureExtractor: x[..., y] ----------------------------------------------------------
 */

static enum op_status extractor_infer(struct op_ctx *ctx) {
    const struct op_tensor *x = ctx->in[0], *y = ctx->in[1];
    if (!x || !y || x->kind != OP_KIND_TENSOR || x->rank < 1 || y->dtype != OP_I64 ||
        op_type_size(x->dtype) == 0)
        return op__fail(ctx, OP_BAD_TYPE, "takes a tensor and indices of i64");
    int64_t dims[OP_RANK_MAX];
    int rank = x->rank;
    memcpy(dims, x->dims, sizeof dims);
    dims[rank - 1] = op_tensor_count(y);
    if (rank == 1) {
        dims[1] = dims[0];
        dims[0] = 1;
        rank = 2;
    }
    op__set(ctx, 0, x->dtype, rank, dims);
    return OP_OK;
}

static enum op_status extractor_run(struct op_ctx *ctx) {
    const struct op_tensor *x = ctx->in[0];
    const int64_t *index = ctx->in[1]->data;
    const int64_t n = op_tensor_count(ctx->in[1]), features = x->dims[x->rank - 1],
                  rows = features ? op_tensor_count(x) / features : 0;
    const size_t size = op_type_size(x->dtype);
    for (int64_t i = 0; i < n; i++)
        if (index[i] < 0 || index[i] >= features)
            return op__fail(ctx, OP_BAD_VALUE, "an index is %lld, there are %lld features",
                            (long long)index[i], (long long)features);
    for (int64_t r = 0; ctx->out[0] && r < rows; r++)
        for (int64_t i = 0; i < n; i++)
            memcpy((char *)ctx->out[0]->data + (size_t)(r * n + i) * size,
                   (const char *)x->data + (size_t)(r * features + index[i]) * size, size);
    return OP_OK;
}

#define ROW(id, NAME, IN_MIN, IN_MAX, INFER, RUN)                                                  \
    static const struct op_desc id = {.name = NAME,                                                \
                                      .domain = "ai.onnx.ml",                                      \
                                      .since = 1,                                                  \
                                      .in_min = IN_MIN,                                            \
                                      .in_max = IN_MAX,                                            \
                                      .out_min = 1,                                                \
                                      .out_max = 1,                                                \
                                      .infer = INFER,                                              \
                                      .run = RUN};                                                 \
    OP_REGISTER(id)
ROW(scaler, "Scaler", 1, 1, scaler_infer, scaler_run);
ROW(normalizer, "Normalizer", 1, 1, normalizer_infer, normalizer_run);
ROW(binarizer, "Binarizer", 1, 1, same_infer, binarizer_run);
ROW(imputer, "Imputer", 1, 1, imputer_infer, imputer_run);
ROW(feature_vectorizer, "FeatureVectorizer", 1, -1, vectorizer_infer, vectorizer_run);
ROW(array_feature_extractor, "ArrayFeatureExtractor", 2, 2, extractor_infer, extractor_run);
