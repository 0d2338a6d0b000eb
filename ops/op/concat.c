/* Concat: tensors one behind the other along an axis. */
#include "ops/op/move.h"

#include <string.h>

static enum op_status concat_infer(struct op_ctx *ctx) {
    enum op_status st = op__need_tensors(ctx, ctx->n_in);
    int axis;
    char text[2][OP__TENSOR_TEXT];
    if (st != OP_OK) return st;
    const struct op_tensor *first = ctx->in[0];
    if (first->rank == 0) return op__fail(ctx, OP_BAD_SHAPE, "scalars cannot be concatenated");
    if (!op__attr(ctx->node, "axis"))
        return op__fail(ctx, OP_BAD_MODEL, "the attribute axis is missing");
    st = op__axis_attr(ctx, "axis", 0, first->rank, &axis);
    if (st != OP_OK) return st;
    int64_t dims[OP_RANK_MAX];
    memcpy(dims, first->dims, sizeof dims);
    for (int i = 1; i < ctx->n_in; i++) {
        const struct op_tensor *t = ctx->in[i];
        bool fits = t->rank == first->rank;
        for (int k = 0; fits && k < t->rank; k++) fits = k == axis || t->dims[k] == dims[k];
        if (!fits || t->dtype != first->dtype)
            return op__fail(ctx, fits ? OP_BAD_TYPE : OP_BAD_SHAPE,
                            "input %d is %s, which does not fit behind %s along axis %d", i,
                            op__text(t, text[0]), op__text(first, text[1]), axis);
        if (__builtin_add_overflow(dims[axis], t->dims[axis], &dims[axis]))
            return op__fail(ctx, OP_LIMIT, "the output is too large");
    }
    st = op__check_size(ctx, first->dtype, first->rank, dims);
    if (st == OP_OK) op__set(ctx, 0, first->dtype, first->rank, dims);
    return st;
}

static enum op_status concat_run(struct op_ctx *ctx) {
    struct op_tensor *y = ctx->out[0];
    size_t elem = op_type_size(y->dtype);
    if (op_tensor_count(y) == 0) return OP_OK;
    int axis = op__axis(op__attr_int(ctx->node, "axis", 0), y->rank);
    int64_t n_outer = op__product(y->dims, 0, axis), row = op__product(y->dims, axis, y->rank),
            at = 0;
    for (int i = 0; i < ctx->n_in; i++) {
        const struct op_tensor *t = ctx->in[i];
        int64_t piece = op__product(t->dims, axis, t->rank);
        if (!piece || !n_outer) continue;
        struct op__move m = {
            .rank = 2, .dims = {n_outer, piece}, .dst = {row, 1}, .src = {piece, 1}};
        op__move_run(ctx, &m, (char *)y->data + (size_t)at * elem, t->data, elem);
        at += piece;
    }
    return OP_OK;
}

/* As many bytes as the first: the others have none. */
static bool adds_nothing(const struct op_ctx *ctx) {
    (void)ctx;
    return true;
}

static enum op_status concat_upgrade(struct op_graph *g, struct op_node *n, int opset,
                                     struct op_error *err) {
    (void)err;
    return opset < 4 && !op__attr(n, "axis") ? op__attr_set_int(g, n, "axis", 1) : OP_OK;
}

static const struct op_desc concat = {
    .name = "Concat",
    .domain = "",
    .since = 1,
    .in_min = 1,
    .in_max = -1,
    .out_min = 1,
    .out_max = 1,
    .upgrade = concat_upgrade,
    .infer = concat_infer,
    .is_view = adds_nothing,
    .run = concat_run,
};
OP_REGISTER(concat);
