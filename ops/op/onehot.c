/* OneHot: a new axis of size depth that holds values[1] at the index and values[0] elsewhere.
 * Indices in [-depth, -1] count from the end; any other index beyond the axis leaves all of its
 * places off. */
#include "ops/op/move.h"

#include <math.h>

/* Element i of a tensor of any numeric type, cut to an integer; false if it is none (NaN, far out).
 */
static bool whole_at(const struct op_tensor *t, int64_t i, int64_t *dst) {
    double d;
    switch (t->dtype) {
    case OP_I64:
        *dst = ((const int64_t *)t->data)[i];
        return true;
    case OP_I32:
        *dst = ((const int32_t *)t->data)[i];
        return true;
    case OP_I16:
        *dst = ((const int16_t *)t->data)[i];
        return true;
    case OP_I8:
        *dst = ((const int8_t *)t->data)[i];
        return true;
    case OP_U8:
        *dst = ((const uint8_t *)t->data)[i];
        return true;
    case OP_U16:
        *dst = ((const uint16_t *)t->data)[i];
        return true;
    case OP_U32:
        *dst = ((const uint32_t *)t->data)[i];
        return true;
    case OP_U64:
        *dst = (int64_t)((const uint64_t *)t->data)[i];
        return *dst >= 0;
    case OP_F32:
        d = ((const float *)t->data)[i];
        break;
    case OP_F64:
        d = ((const double *)t->data)[i];
        break;
    case OP_F16:
        d = op__f16_to_f32(((const uint16_t *)t->data)[i]);
        break;
    case OP_BF16:
        d = op__bf16_to_f32(((const uint16_t *)t->data)[i]);
        break;
    default:
        return false;
    }
    if (!(fabs(d) < 9e18)) return false;
    *dst = (int64_t)d;
    return true;
}

static bool numeric(enum op_type t) {
    return t != OP_STRING && t != OP_BOOL && t != OP_C64 && t != OP_C128 && !op__is_narrow(t);
}

static enum op_status onehot_infer(struct op_ctx *ctx) {
    enum op_status st = op__need_tensors(ctx, 3);
    int axis, rank = 0;
    int64_t depth, dims[OP_RANK_MAX + 1];
    char text[OP__TENSOR_TEXT];
    if (st != OP_OK) return st;
    const struct op_tensor *idx = ctx->in[0], *d = ctx->in[1], *values = ctx->in[2];
    if (!numeric(idx->dtype) || !numeric(d->dtype))
        return op__fail(ctx, OP_BAD_TYPE, "the indices and the depth must be numbers");
    if (op_tensor_count(d) != 1)
        return op__fail(ctx, OP_BAD_SHAPE, "depth is %s, one element is expected",
                        op__text(d, text));
    if (values->rank != 1 || values->dims[0] != 2)
        return op__fail(ctx, OP_BAD_SHAPE, "values is %s, two elements (off, on) are expected",
                        op__text(values, text));
    st = op__axis_attr(ctx, "axis", -1, idx->rank + 1, &axis);
    if (st != OP_OK) return st;
    if (!op__known(d)) return OP_NEED_DATA;
    if (!whole_at(d, 0, &depth) || depth < 0)
        return op__fail(ctx, OP_BAD_VALUE, "depth is not a size");
    for (int i = 0; i < idx->rank + 1; i++) dims[i] = i == axis ? depth : idx->dims[rank++];
    st = op__check_size(ctx, values->dtype, idx->rank + 1, dims);
    if (st == OP_OK) op__set(ctx, 0, values->dtype, idx->rank + 1, dims);
    return st;
}

static enum op_status onehot_run(struct op_ctx *ctx) {
    const struct op_tensor *idx = ctx->in[0], *values = ctx->in[2];
    struct op_tensor *y = ctx->out[0];
    size_t elem = op_type_size(y->dtype);
    int axis = op__axis(op__attr_int(ctx->node, "axis", -1), y->rank);
    int64_t depth = y->dims[axis], inner = op__product(y->dims, axis + 1, y->rank),
            n = op_tensor_count(idx);
    op__fill(y->data, op_tensor_count(y), values->data, elem);
    for (int64_t i = 0; i < n; i++) { /* idx is [outer, inner], y is [outer, depth, inner] */
        int64_t k;
        if (!whole_at(idx, i, &k) || k < -depth || k >= depth) continue;
        int64_t at = (i / inner * depth + (k < 0 ? k + depth : k)) * inner + i % inner;
        op__copy_elem((char *)y->data + (size_t)at * elem, (const char *)values->data + elem, elem);
    }
    return OP_OK;
}

static const struct op_desc onehot = {
    .name = "OneHot",
    .domain = "",
    .since = 9,
    .in_min = 3,
    .in_max = 3,
    .out_min = 1,
    .out_max = 1,
    .infer = onehot_infer,
    .run = onehot_run,
};
OP_REGISTER(onehot);
