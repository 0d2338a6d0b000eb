/* matrix.c: Det, EyeLike and Trilu. */
#include "ops/op/nn.h"

#include <math.h>
#include <string.h>

/* --- Det of (..., M, M): LU with partial pivoting in f64
 * ------------------------------------------ */

static enum op_status det_infer(struct op_ctx *ctx) {
    const struct op_tensor *x = ctx->in[0];
    enum op_status status = op__nn_float(ctx, 0, "X");
    if (status != OP_OK) return status;
    if (x->rank < 2 || x->dims[x->rank - 1] != x->dims[x->rank - 2]) {
        char text[160];
        return op__fail(ctx, OP_BAD_SHAPE, "takes square matrices, not %s",
                        op_tensor_describe(x, text, sizeof text));
    }
    op__set(ctx, 0, x->dtype, x->rank - 2, x->dims);
    return OP_OK;
}

static size_t det_scratch(const struct op_ctx *ctx) {
    const int64_t m = ctx->in[0]->dims[ctx->in[0]->rank - 1];
    return op_tensor_count(ctx->in[0]) ? (size_t)m * (size_t)m * sizeof(double) : 0;
}

static double determinant(double *a, int64_t m) {
    double det = 1;
    for (int64_t k = 0; k < m; k++) {
        int64_t pivot = k;
        for (int64_t i = k + 1; i < m; i++)
            if (fabs(a[i * m + k]) > fabs(a[pivot * m + k])) pivot = i;
        if (a[pivot * m + k] == 0) return 0;
        if (pivot != k) {
            det = -det;
            for (int64_t j = k; j < m; j++) {
                double t = a[k * m + j];
                a[k * m + j] = a[pivot * m + j];
                a[pivot * m + j] = t;
            }
        }
        det *= a[k * m + k];
        for (int64_t i = k + 1; i < m; i++) {
            const double f = a[i * m + k] / a[k * m + k];
            for (int64_t j = k + 1; j < m; j++) a[i * m + j] -= f * a[k * m + j];
        }
    }
    return det;
}

static enum op_status det_run(struct op_ctx *ctx) {
    const struct op_tensor *x = ctx->in[0];
    const int64_t m = x->dims[x->rank - 1], n = ctx->out[0] ? op_tensor_count(ctx->out[0]) : 0;
    double *a = ctx->scratch;
    for (int64_t i = 0; i < n; i++) {
        for (int64_t j = 0; j < m * m; j++) a[j] = nn_load(x, i * m * m + j);
        nn_store(ctx->out[0], i, determinant(a, m));
    }
    return OP_OK;
}

static const struct op_desc det = {.name = "Det",
                                   .domain = "",
                                   .since = 11,
                                   .in_min = 1,
                                   .in_max = 1,
                                   .out_min = 1,
                                   .out_max = 1,
                                   .infer = det_infer,
                                   .scratch = det_scratch,
                                   .run = det_run};
OP_REGISTER(det);

/* --- EyeLike: ones on diagonal k of a matrix of the input's shape --------------------------------
 */

static enum op_status eye_infer(struct op_ctx *ctx) {
    const struct op_tensor *x = ctx->in[0];
    const int64_t asked = op__attr_int(ctx->node, "dtype", 0);
    if (!x || x->kind != OP_KIND_TENSOR || x->rank != 2)
        return op__fail(ctx, OP_BAD_SHAPE, "takes a tensor of rank 2");
    const enum op_type type = asked ? (enum op_type)asked : x->dtype;
    if (asked < 0 || op_type_size(type) == 0 || op__is_narrow(type) || type == OP_STRING || type == OP_C64 ||
        type == OP_C128)
        return op__fail(ctx, OP_UNSUPPORTED, "makes no elements of ONNX's type %lld",
                        (long long)(asked ? asked : x->dtype));
    op__set(ctx, 0, type, 2, x->dims);
    return OP_OK;
}

static enum op_status eye_run(struct op_ctx *ctx) {
    const struct op_tensor *y = ctx->out[0];
    const int64_t k = op__attr_int(ctx->node, "k", 0);
    if (!y || op_tensor_count(y) <= 0) return OP_OK;
    memset(y->data, 0, (size_t)op_tensor_bytes(y));
    if (k <= -y->dims[0] || k >= y->dims[1]) return OP_OK;
    for (int64_t i = k < 0 ? -k : 0; i < y->dims[0] && i + k < y->dims[1]; i++)
        nn_store(y, i * y->dims[1] + i + k, 1);
    return OP_OK;
}

static const struct op_desc eye_like = {.name = "EyeLike",
                                        .domain = "",
                                        .since = 9,
                                        .in_min = 1,
                                        .in_max = 1,
                                        .out_min = 1,
                                        .out_max = 1,
                                        .infer = eye_infer,
                                        .run = eye_run};
OP_REGISTER(eye_like);

/* --- Trilu: the upper or lower triangle of (..., R, C), zeros elsewhere --------------------------
 */

static enum op_status trilu_infer(struct op_ctx *ctx) {
    const struct op_tensor *x = ctx->in[0], *k = nn_in(ctx, 1);
    if (!x || x->kind != OP_KIND_TENSOR || x->rank < 2)
        return op__fail(ctx, OP_BAD_SHAPE, "takes a tensor of rank 2 or more");
    if (x->dtype == OP_STRING) return op__fail(ctx, OP_BAD_TYPE, "takes no strings");
    if (k && (k->dtype != OP_I64 || op_tensor_count(k) != 1))
        return op__fail(ctx, OP_BAD_TYPE, "k must be one i64");
    op__set_like(ctx, 0, 0);
    return OP_OK;
}

static enum op_status trilu_run(struct op_ctx *ctx) {
    const struct op_tensor *x = ctx->in[0], *y = ctx->out[0], *kt = nn_in(ctx, 1);
    const bool upper = op__attr_int(ctx->node, "upper", 1) != 0;
    if (!y || op_tensor_count(y) <= 0) return OP_OK;
    const int64_t rows = y->dims[y->rank - 2], columns = y->dims[y->rank - 1],
                  n = op_tensor_count(y) / columns;
    const size_t size = op_type_size(y->dtype);
    int64_t k = kt ? *(const int64_t *)kt->data : 0;
    k = k < -rows     ? -rows
        : k > columns ? columns
                      : k; /* beyond, the triangle is everything or nothing */
    if (y->data != x->data) memcpy(y->data, x->data, (size_t)op_tensor_bytes(y));
    for (int64_t r = 0; r < n; r++) {
        int64_t edge =
            r % rows + k +
            (upper ? 0 : 1); /* the first column of the upper part, or behind the lower one */
        edge = edge < 0 ? 0 : edge > columns ? columns : edge;
        char *row = (char *)y->data + (size_t)(r * columns) * size;
        if (upper)
            memset(row, 0, (size_t)edge * size);
        else
            memset(row + (size_t)edge * size, 0, (size_t)(columns - edge) * size);
    }
    return OP_OK;
}

static const struct op_desc trilu = {.name = "Trilu",
                                     .domain = "",
                                     .since = 14,
                                     .in_min = 1,
                                     .in_max = 2,
                                     .out_min = 1,
                                     .out_max = 1,
                                     .inplace = 1,
                                     .infer = trilu_infer,
                                     .run = trilu_run};
OP_REGISTER(trilu);
