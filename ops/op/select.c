/* select.c: NonZero and Compress, whose output size depends on data. */
#include "ops/op/elementwise.h"

#include <string.h>

static const int64_t unknown_vector[1] = {-1};

/* --- NonZero: (rank, n), the indices of the elements that are not zero, in row-major order -------
 */

static enum op_status nonzero_infer(struct op_ctx *ctx) {
    const struct op_tensor *x = ctx->in[0];
    if (!x || x->kind != OP_KIND_TENSOR ||
        !(op__is_float(x->dtype) || op__is_int(x->dtype) || x->dtype == OP_BOOL))
        return op__fail(ctx, OP_BAD_TYPE, "takes numbers and bool, not %s",
                        x ? op_type_name(x->dtype) : "(absent)");
    op__set(ctx, 0, OP_I64, 2, (int64_t[]){x->rank, -1});
    return OP_OK;
}

static bool is_zero(const struct op_tensor *x, int64_t i) {
    switch (x->dtype) {
    case OP_F32:
        return ((const float *)x->data)[i] == 0;
    case OP_F64:
        return ((const double *)x->data)[i] == 0;
    case OP_F16:
    case OP_BF16:
        return !(((const uint16_t *)x->data)[i] & 0x7fff);
    default:
        break;
    }
    switch (op_type_size(x->dtype)) {
    case 1:
        return !((const uint8_t *)x->data)[i];
    case 2:
        return !((const uint16_t *)x->data)[i];
    case 4:
        return !((const uint32_t *)x->data)[i];
    default:
        return !((const uint64_t *)x->data)[i];
    }
}

static enum op_status nonzero_run(struct op_ctx *ctx) {
    const struct op_tensor *x = ctx->in[0];
    const int64_t count = op_tensor_count(x);
    int64_t n = 0;
    for (int64_t i = 0; i < count; i++) n += !is_zero(x, i);
    enum op_status status = op__output(ctx, 0, OP_I64, 2, (int64_t[]){x->rank, n});
    if (status != OP_OK || !ctx->out[0]) return status;
    int64_t *dst = ctx->out[0]->data, at = 0;
    for (int64_t i = 0; i < count; i++) {
        if (is_zero(x, i)) continue;
        int64_t rest = i;
        for (int d = x->rank - 1; d >= 0; d--) {
            dst[d * n + at] = rest % x->dims[d];
            rest /= x->dims[d];
        }
        at++;
    }
    return OP_OK;
}

static const struct op_desc nonzero = {.name = "NonZero",
                                       .domain = "",
                                       .since = 9,
                                       .in_min = 1,
                                       .in_max = 1,
                                       .out_min = 1,
                                       .out_max = 1,
                                       .flags = OP_F_DYNAMIC,
                                       .infer = nonzero_infer,
                                       .run = nonzero_run};
OP_REGISTER(nonzero);

/* --- Compress: the slices along an axis, or the elements, whose condition is true
 * ----------------- */

static enum op_status compress_infer(struct op_ctx *ctx) {
    const struct op_tensor *x = ctx->in[0], *c = ctx->in[1];
    if (!x || !c || x->kind != OP_KIND_TENSOR || c->dtype != OP_BOOL || c->rank != 1)
        return op__fail(ctx, OP_BAD_TYPE, "the condition must be a vector of bool");
    if (!op__attr(ctx->node, "axis")) {
        op__set(ctx, 0, x->dtype, 1, unknown_vector);
        return OP_OK;
    }
    const int64_t value = op__attr_int(ctx->node, "axis", 0);
    const int axis = op__axis(value, x->rank);
    int64_t dims[OP_RANK_MAX];
    if (axis < 0)
        return op__fail(ctx, OP_BAD_VALUE, "axis %lld of an input of rank %d", (long long)value,
                        x->rank);
    memcpy(dims, x->dims, sizeof dims);
    dims[axis] = -1;
    op__set(ctx, 0, x->dtype, x->rank, dims);
    return OP_OK;
}

static enum op_status compress_run(struct op_ctx *ctx) {
    const struct op_tensor *x = ctx->in[0], *c = ctx->in[1];
    const uint8_t *keep = c->data;
    int64_t dims[OP_RANK_MAX], outer = 1, n = 1, inner = 1, kept = 0;
    int rank = x->rank;
    memcpy(dims, x->dims, sizeof dims);
    const int axis =
        op__attr(ctx->node, "axis") ? op__axis(op__attr_int(ctx->node, "axis", 0), rank) : -1;
    for (int i = 0; i < rank; i++)
        *(axis < 0 || i == axis ? &n : i < axis ? &outer : &inner) *= x->dims[i];
    const int64_t limit = c->dims[0] < n ? c->dims[0] : n;
    for (int64_t i = 0; i < limit; i++) kept += keep[i] != 0;
    if (axis < 0) rank = 1;
    dims[axis < 0 ? 0 : axis] = kept;
    enum op_status status = op__output(ctx, 0, x->dtype, rank, dims);
    if (status != OP_OK || !ctx->out[0] || op_tensor_count(ctx->out[0]) <= 0) return status;
    const size_t slice = (size_t)inner * op_type_size(x->dtype);
    const char *src = x->data;
    char *dst = ctx->out[0]->data;
    for (int64_t o = 0; o < outer; o++)
        for (int64_t i = 0; i < limit; i++)
            if (keep[i]) {
                memcpy(dst, src + (size_t)(o * n + i) * slice, slice);
                dst += slice;
            }
    return OP_OK;
}

static const struct op_desc compress = {.name = "Compress",
                                        .domain = "",
                                        .since = 9,
                                        .in_min = 2,
                                        .in_max = 2,
                                        .out_min = 1,
                                        .out_max = 1,
                                        .flags = OP_F_DYNAMIC,
                                        .infer = compress_infer,
                                        .run = compress_run};
OP_REGISTER(compress);
