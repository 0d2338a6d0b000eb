/* Gather, GatherElements, GatherND: reading by index. Every index is checked where it is used: one
 * that is out of range ends the run with its value, its place and the range. Negative indices count
 * from the end. */
#include "ops/op/move.h"

#include <string.h>

static enum op_status check_indices(const struct op_ctx *ctx) {
    enum op_status st = op__need_tensors(ctx, 2);
    char text[OP__TENSOR_TEXT];
    if (st == OP_OK && ctx->in[1]->dtype != OP_I64 && ctx->in[1]->dtype != OP_I32)
        return op__fail(ctx, OP_BAD_TYPE, "the indices are %s, i64 or i32 is expected",
                        op__text(ctx->in[1], text));
    return st;
}

static enum op_status bad_index(const struct op_ctx *ctx, int64_t at, int64_t index, int axis,
                                int64_t dim) {
    return op__fail(
        ctx, OP_BAD_VALUE,
        "index %lld (element %lld of the indices) is out of range for axis %d of dimension %lld",
        (long long)index, (long long)at, axis, (long long)dim);
}

/* --- Gather: y[a…, j…, c…] = x[a…, indices[j…], c…]
 * ----------------------------------------------- */

static enum op_status gather_infer(struct op_ctx *ctx) {
    enum op_status st = check_indices(ctx);
    int axis, rank = 0;
    int64_t dims[2 * OP_RANK_MAX];
    if (st != OP_OK) return st;
    const struct op_tensor *x = ctx->in[0], *idx = ctx->in[1];
    st = op__axis_attr(ctx, "axis", 0, x->rank, &axis);
    if (st != OP_OK) return st;
    for (int i = 0; i < axis; i++) dims[rank++] = x->dims[i];
    for (int i = 0; i < idx->rank; i++) dims[rank++] = idx->dims[i];
    for (int i = axis + 1; i < x->rank; i++) dims[rank++] = x->dims[i];
    st = op__check_size(ctx, x->dtype, rank, dims);
    if (st == OP_OK) op__set(ctx, 0, x->dtype, rank, dims);
    return st;
}

static enum op_status gather_run(struct op_ctx *ctx) {
    const struct op_tensor *x = ctx->in[0], *idx = ctx->in[1];
    int axis = op__axis(op__attr_int(ctx->node, "axis", 0), x->rank);
    size_t elem = op_type_size(x->dtype);
    int64_t n_outer = op__product(x->dims, 0, axis), n_idx = op_tensor_count(idx),
            dim = x->dims[axis];
    size_t piece = (size_t)op__product(x->dims, axis + 1, x->rank) * elem;
    for (int64_t j = 0; j < n_idx; j++) {
        int64_t k = op__int_at(idx, j);
        if (k < -dim || k >= dim) return bad_index(ctx, j, k, axis, dim);
    }
    char *dst = ctx->out[0]->data;
    if (op_tensor_count(ctx->out[0]) == 0) return OP_OK;
    for (int64_t i = 0; i < n_outer; i++) {
        const char *src = (const char *)x->data + (size_t)(i * dim) * piece;
        for (int64_t j = 0; j < n_idx; j++, dst += piece) {
            int64_t k = op__int_at(idx, j);
            const char *from = src + (size_t)(k < 0 ? k + dim : k) * piece;
            if (piece == 4)
                memcpy(dst, from, 4);
            else if (piece == 8)
                memcpy(dst, from, 8);
            else
                memcpy(dst, from, piece);
        }
    }
    return OP_OK;
}

static const struct op_desc gather = {
    .name = "Gather",
    .domain = "",
    .since = 1,
    .in_min = 2,
    .in_max = 2,
    .out_min = 1,
    .out_max = 1,
    .infer = gather_infer,
    .run = gather_run,
};
OP_REGISTER(gather);

/* --- GatherElements: y[i0, i1, …] = x[i0, …, indices[i0, i1, …], …]
 * -------------------------------- */

static enum op_status gather_elements_infer(struct op_ctx *ctx) {
    enum op_status st = check_indices(ctx);
    int axis;
    char text[2][OP__TENSOR_TEXT];
    if (st == OP_OK) st = op__axis_attr(ctx, "axis", 0, ctx->in[0]->rank, &axis);
    if (st != OP_OK) return st;
    const struct op_tensor *x = ctx->in[0], *idx = ctx->in[1];
    bool fits = idx->rank == x->rank;
    for (int i = 0; fits && i < x->rank; i++) fits = i == axis || idx->dims[i] <= x->dims[i];
    if (!fits)
        return op__fail(ctx, OP_BAD_SHAPE, "the indices %s do not lie within the data %s (axis %d)",
                        op__text(idx, text[0]), op__text(x, text[1]), axis);
    op__set(ctx, 0, x->dtype, idx->rank, idx->dims);
    return OP_OK;
}

static enum op_status gather_elements_run(struct op_ctx *ctx) {
    const struct op_tensor *x = ctx->in[0], *idx = ctx->in[1];
    int axis = op__axis(op__attr_int(ctx->node, "axis", 0), x->rank), rank = idx->rank;
    size_t elem = op_type_size(x->dtype);
    int64_t strides[OP_RANK_MAX], at[OP_RANK_MAX] = {0}, base = 0, n = op_tensor_count(idx),
                                  dim = x->dims[axis];
    op__strides(rank, x->dims, strides);
    char *dst = ctx->out[0]->data;
    for (int64_t j = 0; j < n; j++, dst += elem) { /* base: the offset of at[] without the axis */
        int64_t k = op__int_at(idx, j);
        if (k < -dim || k >= dim) return bad_index(ctx, j, k, axis, dim);
        op__copy_elem(dst,
                      (const char *)x->data +
                          (size_t)(base + (k < 0 ? k + dim : k) * strides[axis]) * elem,
                      elem);
        for (int d = rank - 1; d >= 0; d--) {
            int64_t step = d == axis ? 0 : strides[d];
            base += step;
            if (++at[d] < idx->dims[d]) break;
            base -= step * idx->dims[d];
            at[d] = 0;
        }
    }
    return OP_OK;
}

static const struct op_desc gather_elements = {
    .name = "GatherElements",
    .domain = "",
    .since = 11,
    .in_min = 2,
    .in_max = 2,
    .out_min = 1,
    .out_max = 1,
    .infer = gather_elements_infer,
    .run = gather_elements_run,
};
OP_REGISTER(gather_elements);

/* --- GatherND: y[b…, j…, c…] = x[b…, indices[b…, j…, :], c…]
 * --------------------------------------- */

static enum op_status gather_nd_infer(struct op_ctx *ctx) {
    enum op_status st = check_indices(ctx);
    char text[2][OP__TENSOR_TEXT];
    if (st != OP_OK) return st;
    const struct op_tensor *x = ctx->in[0], *idx = ctx->in[1];
    int64_t b = op__attr_int(ctx->node, "batch_dims", 0), dims[2 * OP_RANK_MAX];
    int rank = 0;
    if (x->rank == 0 || idx->rank == 0)
        return op__fail(ctx, OP_BAD_SHAPE, "the data or the indices are a scalar");
    if (b < 0 || b >= x->rank || b >= idx->rank)
        return op__fail(ctx, OP_BAD_VALUE,
                        "batch_dims %lld does not fit the data %s and the indices %s", (long long)b,
                        op__text(x, text[0]), op__text(idx, text[1]));
    int64_t depth = idx->dims[idx->rank - 1];
    bool fits = depth >= 1 && depth <= x->rank - b;
    for (int i = 0; fits && i < b; i++) fits = x->dims[i] == idx->dims[i];
    if (!fits)
        return op__fail(ctx, OP_BAD_SHAPE,
                        "the indices %s do not fit the data %s (batch_dims %lld)",
                        op__text(idx, text[0]), op__text(x, text[1]), (long long)b);
    for (int i = 0; i < idx->rank - 1; i++) dims[rank++] = idx->dims[i];
    for (int i = (int)(b + depth); i < x->rank; i++) dims[rank++] = x->dims[i];
    st = op__check_size(ctx, x->dtype, rank, dims);
    if (st == OP_OK) op__set(ctx, 0, x->dtype, rank, dims);
    return st;
}

static enum op_status gather_nd_run(struct op_ctx *ctx) {
    const struct op_tensor *x = ctx->in[0], *idx = ctx->in[1];
    int b = (int)op__attr_int(ctx->node, "batch_dims", 0), depth = (int)idx->dims[idx->rank - 1];
    int64_t strides[OP_RANK_MAX], n_batch = op__product(x->dims, 0, b),
                                  n_tuples = op__product(idx->dims, b, idx->rank - 1);
    int64_t batch = op__product(x->dims, b, x->rank),
            inner = op__product(x->dims, b + depth, x->rank);
    op__strides(x->rank, x->dims, strides);
    size_t elem = op_type_size(x->dtype), piece = (size_t)inner * elem;
    char *dst = ctx->out[0]->data;
    for (int64_t i = 0; i < n_batch * n_tuples; i++) {
        int64_t at = i / n_tuples * batch;
        for (int d = 0; d < depth; d++) {
            int64_t k = op__int_at(idx, i * depth + d), dim = x->dims[b + d];
            if (k < -dim || k >= dim) return bad_index(ctx, i * depth + d, k, b + d, dim);
            at += (k < 0 ? k + dim : k) * strides[b + d];
        }
        if (piece)
            memcpy(dst + (size_t)i * piece, (const char *)x->data + (size_t)at * elem, piece);
    }
    return OP_OK;
}

static const struct op_desc gather_nd = {
    .name = "GatherND",
    .domain = "",
    .since = 11,
    .in_min = 2,
    .in_max = 2,
    .out_min = 1,
    .out_max = 1,
    .infer = gather_nd_infer,
    .run = gather_nd_run,
};
OP_REGISTER(gather_nd);
