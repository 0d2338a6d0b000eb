/* Split: pieces of a tensor along an axis. Their sizes are the input `split`; else num_outputs
 * (opset 18) equal ones, the last of which may be smaller; else as many equal ones as there are
 * outputs. */
#include "ops/op/move.h"

#include <string.h>

/* The size of piece i. */
static enum op_status piece_size(const struct op_ctx *ctx, int64_t dim, int i, int64_t *size) {
    const struct op_tensor *split = op__in(ctx, 1);
    if (split) {
        *size = op__int_at(split, i);
        return OP_OK;
    }
    int64_t parts = op__attr_int(ctx->node, "num_outputs", 0);
    if (!parts) {
        *size = dim / ctx->n_out;
        return dim % ctx->n_out ? op__fail(ctx, OP_BAD_SHAPE,
                                           "a dimension of %lld does not split into %d equal parts",
                                           (long long)dim, ctx->n_out)
                                : OP_OK;
    }
    if (parts < ctx->n_out)
        return op__fail(ctx, OP_BAD_VALUE, "num_outputs is %lld, but there are %d outputs",
                        (long long)parts, ctx->n_out);
    int64_t whole = dim / parts + (dim % parts != 0),
            before = i && whole > dim / i ? dim : whole * i;
    *size = before + whole <= dim ? whole : dim - before;
    return OP_OK;
}

static enum op_status check_sizes(const struct op_ctx *ctx, const struct op_tensor *split,
                                  int64_t dim) {
    int64_t n = op_tensor_count(split), sum = 0;
    if (split->rank != 1 || (split->dtype != OP_I64 && split->dtype != OP_I32))
        return op__fail(ctx, OP_BAD_TYPE, "split is not a vector of i64");
    if (n != ctx->n_out)
        return op__fail(ctx, OP_BAD_VALUE, "split has %lld sizes, but there are %d outputs",
                        (long long)n, ctx->n_out);
    if (!op__known(split)) return OP_NEED_DATA;
    for (int64_t i = 0; i < n; i++) {
        int64_t v = op__int_at(split, i);
        if (v < 0 || __builtin_add_overflow(sum, v, &sum))
            return op__fail(ctx, OP_BAD_VALUE, "split size %lld is out of range", (long long)v);
    }
    if (sum != dim)
        return op__fail(ctx, OP_BAD_SHAPE, "the split sizes add up to %lld, the dimension is %lld",
                        (long long)sum, (long long)dim);
    return OP_OK;
}

static enum op_status split_infer(struct op_ctx *ctx) {
    enum op_status st = op__need_tensors(ctx, 1);
    int axis;
    if (st == OP_OK) st = op__axis_attr(ctx, "axis", 0, ctx->in[0]->rank, &axis);
    if (st != OP_OK) return st;
    const struct op_tensor *x = ctx->in[0], *sizes = op__in(ctx, 1);
    if (sizes) st = check_sizes(ctx, sizes, x->dims[axis]);
    int64_t dims[OP_RANK_MAX];
    memcpy(dims, x->dims, sizeof dims);
    for (int i = 0; st == OP_OK && i < ctx->n_out; i++) {
        st = piece_size(ctx, x->dims[axis], i, &dims[axis]);
        op__set(ctx, i, x->dtype, x->rank, dims);
    }
    return st;
}

static enum op_status split_run(struct op_ctx *ctx) {
    const struct op_tensor *x = ctx->in[0];
    size_t elem = op_type_size(x->dtype);
    if (op_tensor_count(x) == 0) return OP_OK;
    int axis = op__axis(op__attr_int(ctx->node, "axis", 0), x->rank);
    int64_t n_outer = op__product(x->dims, 0, axis),
            inner = op__product(x->dims, axis + 1, x->rank), row = inner * x->dims[axis], at = 0;
    for (int i = 0; i < ctx->n_out; i++) {
        int64_t size;
        enum op_status st = piece_size(ctx, x->dims[axis], i, &size);
        if (st != OP_OK) return st;
        int64_t piece = size * inner;
        struct op__move m = {
            .rank = 2, .dims = {n_outer, piece}, .dst = {piece, 1}, .src = {row, 1}};
        if (ctx->out[i] && piece)
            op__move_run(ctx, &m, ctx->out[i]->data, (const char *)x->data + (size_t)at * elem,
                         elem);
        at += piece;
    }
    return OP_OK;
}

static enum op_status split_upgrade(struct op_graph *g, struct op_node *n, int opset,
                                    struct op_error *err) {
    return opset < 13 && (n->n_in < 2 || n->in[1] < 0) ? op__attr_to_input(g, n, "split", 1, err)
                                                       : OP_OK;
}

static const struct op_desc split = {
    .name = "Split",
    .domain = "",
    .since = 1,
    .in_min = 1,
    .in_max = 2,
    .out_min = 1,
    .out_max = -1,
    .upgrade = split_upgrade,
    .infer = split_infer,
    .run = split_run,
};
OP_REGISTER(split);
