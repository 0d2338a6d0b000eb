/* Transpose: y[i_perm(0), i_perm(1), …] = x[i_0, i_1, …]; without perm the axes are reversed. The
 * copy merges axes that stay together and transposes in blocks (move.c): NCHW to NHWC is one [C,
 * H*W] transpose an image. */
#include "ops/op/move.h"

static enum op_status read_perm(const struct op_ctx *ctx, int rank, int *perm) {
    int64_t n;
    const int64_t *given = op__attr_ints(ctx->node, "perm", &n);
    unsigned seen = 0;
    char text[OP__DIMS_TEXT];
    if (!given) {
        for (int i = 0; i < rank; i++) perm[i] = rank - 1 - i;
        return OP_OK;
    }
    if (n != rank)
        return op__fail(ctx, OP_BAD_SHAPE, "perm has %lld axes, the input has rank %d",
                        (long long)n, rank);
    for (int i = 0; i < rank; i++) {
        perm[i] = op__axis(given[i], rank);
        if (perm[i] < 0 || (seen >> perm[i] & 1))
            return op__fail(ctx, OP_BAD_VALUE, "perm %s is not a permutation of %d axes",
                            op__dims_text(rank, given, text), rank);
        seen |= 1u << perm[i];
    }
    return OP_OK;
}

static enum op_status transpose_infer(struct op_ctx *ctx) {
    enum op_status st = op__need_tensors(ctx, 1);
    int perm[OP_RANK_MAX];
    int64_t dims[OP_RANK_MAX];
    if (st == OP_OK) st = read_perm(ctx, ctx->in[0]->rank, perm);
    if (st != OP_OK) return st;
    for (int i = 0; i < ctx->in[0]->rank; i++) dims[i] = ctx->in[0]->dims[perm[i]];
    op__set(ctx, 0, ctx->in[0]->dtype, ctx->in[0]->rank, dims);
    return OP_OK;
}

static enum op_status transpose_run(struct op_ctx *ctx) {
    const struct op_tensor *x = ctx->in[0];
    struct op_tensor *y = ctx->out[0];
    int perm[OP_RANK_MAX];
    int64_t from[OP_RANK_MAX], to[OP_RANK_MAX];
    enum op_status st = read_perm(ctx, x->rank, perm);
    if (st != OP_OK) return st;
    op__strides(x->rank, x->dims, from);
    op__strides(x->rank, y->dims, to);
    struct op__move m = {0};
    for (int i = 0; i < x->rank; i++) op__move_dim(&m, y->dims[i], to[i], from[perm[i]]);
    op__move_run(ctx, &m, y->data, x->data, op_type_size(x->dtype));
    return OP_OK;
}

/* Only dimensions of 1 change places. */
static bool transpose_is_view(const struct op_ctx *ctx) {
    const struct op_tensor *x = ctx->in[0];
    int perm[OP_RANK_MAX], last = -1;
    if (read_perm(ctx, x->rank, perm) != OP_OK) return false;
    for (int i = 0; i < x->rank; i++) {
        if (x->dims[perm[i]] == 1) continue;
        if (perm[i] < last) return false;
        last = perm[i];
    }
    return true;
}

static const struct op_desc transpose = {
    .name = "Transpose",
    .domain = "",
    .since = 1,
    .in_min = 1,
    .in_max = 1,
    .out_min = 1,
    .out_max = 1,
    .infer = transpose_infer,
    .is_view = transpose_is_view,
    .run = transpose_run,
};
OP_REGISTER(transpose);
