/* SplitToSequence and ConcatFromSequence: between one tensor and a sequence of its pieces. */
#include "ops/op/move.h"

#include <string.h>

/* --- SplitToSequence(input, split?)
 * ---------------------------------------------------------------- */

static enum op_status split_infer(struct op_ctx *ctx) {
    enum op_status st = op__need_tensors(ctx, 1);
    const struct op_tensor *split = op__in(ctx, 1);
    char text[OP__TENSOR_TEXT];
    int axis;
    if (st == OP_OK) st = op__axis_attr(ctx, "axis", 0, ctx->in[0]->rank, &axis);
    if (st != OP_OK) return st;
    if (split && ((split->dtype != OP_I64 && split->dtype != OP_I32) || split->rank > 1))
        return op__fail(ctx, OP_BAD_TYPE,
                        "split is %s, a scalar or vector of i64 or i32 is expected",
                        op__text(split, text));
    op__set(ctx, 0, ctx->in[0]->dtype, 0, NULL);
    if (ctx->out[0]) ctx->out[0]->kind = OP_KIND_SEQUENCE;
    return OP_OK;
}

/* How many pieces, and that they fit the dimension. */
static enum op_status count_pieces(const struct op_ctx *ctx, const struct op_tensor *split,
                                   int64_t dim, int64_t *n) {
    int64_t sum = 0;
    *n = dim;
    if (!split) return OP_OK;
    if (split->rank == 0) {
        int64_t size = op__int_at(split, 0);
        if (size < 1)
            return op__fail(ctx, OP_BAD_VALUE, "split is %lld, 1 or more is expected",
                            (long long)size);
        *n = dim / size + (dim % size != 0);
        return OP_OK;
    }
    *n = split->dims[0];
    for (int64_t i = 0; i < *n; i++) {
        int64_t v = op__int_at(split, i);
        if (v < 0 || __builtin_add_overflow(sum, v, &sum))
            return op__fail(ctx, OP_BAD_VALUE, "split size %lld is out of range", (long long)v);
    }
    if (sum != dim)
        return op__fail(ctx, OP_BAD_SHAPE, "the split sizes add up to %lld, the dimension is %lld",
                        (long long)sum, (long long)dim);
    return OP_OK;
}

static enum op_status split_run(struct op_ctx *ctx) {
    const struct op_tensor *x = ctx->in[0], *split = op__in(ctx, 1);
    bool keep = split || op__attr_int(ctx->node, "keepdims", 1) !=
                             0; /* keepdims counts only without split */
    int axis = op__axis(op__attr_int(ctx->node, "axis", 0), x->rank);
    int64_t dim = x->dims[axis], n, at = 0, dims[OP_RANK_MAX];
    int64_t outer = op__product(x->dims, 0, axis), inner = op__product(x->dims, axis + 1, x->rank);
    size_t elem = op_type_size(x->dtype);
    enum op_status st = count_pieces(ctx, split, dim, &n);
    if (st == OP_OK) st = op__output_items(ctx, 0, OP_KIND_SEQUENCE, x->dtype, n);
    for (int64_t i = 0; st == OP_OK && i < n; i++) {
        int64_t size = !split ? 1 : split->rank ? op__int_at(split, i) : op__int_at(split, 0);
        if (size > dim - at) size = dim - at;
        memcpy(dims, x->dims, sizeof dims);
        dims[axis] = size;
        if (!keep)
            memmove(dims + axis, dims + axis + 1, (size_t)(x->rank - axis - 1) * sizeof *dims);
        st = op__item(ctx, &ctx->out[0]->items[i], x->dtype, x->rank - !keep, dims);
        if (st == OP_OK && op_tensor_count(&ctx->out[0]->items[i]) > 0) {
            struct op__move m = {.rank = 2,
                                 .dims = {outer, size * inner},
                                 .dst = {size * inner, 1},
                                 .src = {dim * inner, 1}};
            op__move_run(ctx, &m, ctx->out[0]->items[i].data,
                         (const char *)x->data + (size_t)(at * inner) * elem, elem);
        }
        at += size;
    }
    return st;
}

static const struct op_desc split_to_sequence = {
    .name = "SplitToSequence",
    .domain = "",
    .since = 11,
    .in_min = 1,
    .in_max = 2,
    .out_min = 1,
    .out_max = 1,
    .flags = OP_F_DYNAMIC,
    .infer = split_infer,
    .run = split_run,
};
OP_REGISTER(split_to_sequence);

/* --- ConcatFromSequence --------------------------------------------------------------------------
 */

static enum op_status concat_infer(struct op_ctx *ctx) {
    if (!op__in(ctx, 0) || ctx->in[0]->kind != OP_KIND_SEQUENCE)
        return op__fail(ctx, OP_BAD_TYPE, "the input is no sequence");
    if (!op__attr(ctx->node, "axis"))
        return op__fail(ctx, OP_BAD_MODEL, "the attribute axis is missing");
    return OP_OK;
}

/* The output's dims, from items that fit each other. */
static enum op_status concat_dims(const struct op_ctx *ctx, int axis, bool stack, int *rank,
                                  int64_t *dims) {
    const struct op_tensor *s = ctx->in[0], *first = &s->items[0];
    char text[2][OP__TENSOR_TEXT];
    *rank = first->rank + stack;
    for (int k = 0; k < *rank; k++)
        dims[k] = !stack || k < axis ? first->dims[k] : k == axis ? s->n_items : first->dims[k - 1];
    for (int64_t i = 1; i < s->n_items; i++) {
        const struct op_tensor *t = &s->items[i];
        bool fits = t->rank == first->rank && t->dtype == first->dtype;
        for (int k = 0; fits && k < t->rank; k++)
            fits = (!stack && k == axis) || t->dims[k] == first->dims[k];
        if (!fits)
            return op__fail(ctx, OP_BAD_SHAPE,
                            "tensor %lld of the sequence is %s, which does not fit %s",
                            (long long)i, op__text(t, text[0]), op__text(first, text[1]));
        if (!stack && __builtin_add_overflow(dims[axis], t->dims[axis], &dims[axis]))
            return op__fail(ctx, OP_LIMIT, "the output is too large");
    }
    return op__check_size(ctx, first->dtype, *rank, dims);
}

static enum op_status concat_run(struct op_ctx *ctx) {
    const struct op_tensor *s = ctx->in[0];
    bool stack = op__attr_int(ctx->node, "new_axis", 0) != 0;
    int axis, rank;
    int64_t dims[OP_RANK_MAX], at = 0;
    if (!s->n_items) return op__fail(ctx, OP_BAD_VALUE, "the sequence is empty");
    if (s->items[0].kind != OP_KIND_TENSOR || s->items[0].rank + stack > OP_RANK_MAX)
        return op__fail(ctx, OP_UNSUPPORTED, "the tensors cannot be joined");
    enum op_status st = op__axis_attr(ctx, "axis", 0, s->items[0].rank + stack, &axis);
    if (st == OP_OK) st = concat_dims(ctx, axis, stack, &rank, dims);
    if (st == OP_OK) st = op__output(ctx, 0, s->items[0].dtype, rank, dims);
    if (st != OP_OK || !ctx->out[0] || op_tensor_count(ctx->out[0]) == 0) return st;
    struct op_tensor *y = ctx->out[0];
    size_t elem = op_type_size(y->dtype);
    int64_t outer = op__product(dims, 0, axis), row = op__product(dims, axis, rank);
    for (int64_t i = 0; i < s->n_items; i++) {
        int64_t piece = op_tensor_count(&s->items[i]) / outer;
        struct op__move m = {.rank = 2, .dims = {outer, piece}, .dst = {row, 1}, .src = {piece, 1}};
        if (piece)
            op__move_run(ctx, &m, (char *)y->data + (size_t)at * elem, s->items[i].data, elem);
        at += piece;
    }
    return OP_OK;
}

static const struct op_desc concat_from_sequence = {
    .name = "ConcatFromSequence",
    .domain = "",
    .since = 11,
    .in_min = 1,
    .in_max = 1,
    .out_min = 1,
    .out_max = 1,
    .flags = OP_F_DYNAMIC,
    .infer = concat_infer,
    .run = concat_run,
};
OP_REGISTER(concat_from_sequence);
