/* Reshape, Flatten, Squeeze, Unsqueeze: the same elements in another shape. All are views: run is
 * called only where the memory cannot be shared. */
#include "ops/op/move.h"

#include <string.h>

static enum op_status view_run(struct op_ctx *ctx) {
    int64_t bytes = op_tensor_bytes(ctx->in[0]);
    if (bytes > 0 && ctx->out[0]->data != ctx->in[0]->data)
        memcpy(ctx->out[0]->data, ctx->in[0]->data, (size_t)bytes);
    return OP_OK;
}

/* --- Reshape -------------------------------------------------------------------------------------
 */

/* The size of the dimension given as -1. Where another dimension is zero any size would do: then
 * the zeros are left out on both sides, so that [0,3,4] as [0,-1] is [0,12], as it is for every
 * other batch. */
static int64_t inferred_dim(const struct op_tensor *data, int rank, const int64_t *dims,
                            int unknown) {
    int64_t have = 1, want = 1;
    bool any_zero = false;
    for (int i = 0; i < rank; i++) any_zero |= i != unknown && dims[i] == 0;
    for (int i = 0; i < data->rank; i++)
        if ((!any_zero || data->dims[i]) && !op__mul(have, data->dims[i], &have)) return -1;
    for (int i = 0; i < rank; i++)
        if (i != unknown && dims[i] && !op__mul(want, dims[i], &want)) return -1;
    if (have % want) return any_zero ? 0 : -1;
    return have / want;
}

static enum op_status reshape_infer(struct op_ctx *ctx) {
    enum op_status st = op__need_tensors(ctx, 2);
    int64_t want[OP_RANK_MAX], dims[OP_RANK_MAX];
    int rank, unknown = -1;
    bool allow_zero = op__attr_int(ctx->node, "allowzero", 0) != 0, literal_zero = false;
    char from[OP__TENSOR_TEXT], to[OP__DIMS_TEXT];
    if (st == OP_OK) st = op__read_ints(ctx, 1, "shape", OP_RANK_MAX, want, &rank);
    if (st != OP_OK) return st;
    const struct op_tensor *data = ctx->in[0];
    for (int i = 0; i < rank; i++) {
        dims[i] = want[i];
        if (want[i] == 0 && !allow_zero) {
            if (i >= data->rank)
                return op__fail(ctx, OP_BAD_SHAPE,
                                "shape %s copies dimension %d, but the data is %s",
                                op__dims_text(rank, want, to), i, op__text(data, from));
            dims[i] = data->dims[i];
        }
        literal_zero |= want[i] == 0 && allow_zero;
        if (want[i] < -1 || (want[i] == -1 && unknown >= 0))
            return op__fail(ctx, OP_BAD_VALUE,
                            "shape %s: one dimension may be -1, the others are not negative",
                            op__dims_text(rank, want, to));
        if (want[i] == -1) unknown = i;
    }
    if (unknown >= 0 && literal_zero)
        return op__fail(ctx, OP_BAD_VALUE, "shape %s has both 0 and -1 with allowzero=1",
                        op__dims_text(rank, want, to));
    if (unknown >= 0) dims[unknown] = inferred_dim(data, rank, dims, unknown);
    struct op_tensor out = {.dtype = data->dtype, .rank = rank};
    memcpy(out.dims, dims, (size_t)rank * sizeof *dims);
    if (op_tensor_count(&out) != op_tensor_count(data))
        return op__fail(ctx, OP_BAD_SHAPE, "%s of %lld elements does not fit the shape %s",
                        op__text(data, from), (long long)op_tensor_count(data),
                        op__dims_text(rank, want, to));
    op__set(ctx, 0, data->dtype, rank, dims);
    return OP_OK;
}

static enum op_status reshape_upgrade(struct op_graph *g, struct op_node *n, int opset,
                                      struct op_error *err) {
    return opset < 5 ? op__attr_to_input(g, n, "shape", 1, err) : OP_OK;
}

static const struct op_desc reshape = {
    .name = "Reshape",
    .domain = "",
    .since = 1,
    .in_min = 1,
    .in_max = 2,
    .out_min = 1,
    .out_max = 1,
    .flags = OP_F_VIEW,
    .inplace = 1,
    .upgrade = reshape_upgrade,
    .infer = reshape_infer,
    .run = view_run,
};
OP_REGISTER(reshape);

/* --- Flatten -------------------------------------------------------------------------------------
 */

/* [d0 … d(axis-1), daxis … dn] -> [d0 * … , daxis * …] */
static enum op_status flatten_infer(struct op_ctx *ctx) {
    enum op_status st = op__need_tensors(ctx, 1);
    if (st != OP_OK) return st;
    const struct op_tensor *x = ctx->in[0];
    int64_t axis = op__attr_int(ctx->node, "axis", 1), dims[2] = {1, 1};
    if (axis < -x->rank || axis > x->rank)
        return op__fail(ctx, OP_BAD_VALUE, "axis %lld is out of range for rank %d", (long long)axis,
                        x->rank);
    if (axis < 0) axis += x->rank;
    for (int i = 0; i < x->rank; i++)
        if (!op__mul(dims[i >= axis], x->dims[i], &dims[i >= axis]))
            return op__fail(ctx, OP_LIMIT, "the output is too large");
    op__set(ctx, 0, x->dtype, 2, dims);
    return OP_OK;
}

static const struct op_desc flatten = {
    .name = "Flatten",
    .domain = "",
    .since = 1,
    .in_min = 1,
    .in_max = 1,
    .out_min = 1,
    .out_max = 1,
    .flags = OP_F_VIEW,
    .inplace = 1,
    .infer = flatten_infer,
    .run = view_run,
};
OP_REGISTER(flatten);

/* --- Squeeze, Unsqueeze --------------------------------------------------------------------------
 */

static enum op_status squeeze_infer(struct op_ctx *ctx) {
    enum op_status st = op__need_tensors(ctx, 1);
    if (st != OP_OK) return st;
    const struct op_tensor *x = ctx->in[0];
    int axes[OP_RANK_MAX], n_axes, rank = 0;
    int64_t dims[OP_RANK_MAX];
    bool gone[OP_RANK_MAX] = {false};
    char text[OP__TENSOR_TEXT];
    st = op__read_axes(ctx, 1, x->rank, axes, &n_axes);
    if (st != OP_OK) return st;
    for (int i = 0; i < n_axes; i++) {
        gone[axes[i]] = true;
        if (x->dims[axes[i]] != 1)
            return op__fail(ctx, OP_BAD_SHAPE,
                            "dimension %d of %s is %lld, only a dimension of 1 can be squeezed",
                            axes[i], op__text(x, text), (long long)x->dims[axes[i]]);
    }
    for (int i = 0; i < x->rank; i++)
        if (n_axes < 0 ? x->dims[i] != 1 : !gone[i]) dims[rank++] = x->dims[i];
    op__set(ctx, 0, x->dtype, rank, dims);
    return OP_OK;
}

static enum op_status unsqueeze_infer(struct op_ctx *ctx) {
    enum op_status st = op__need_tensors(ctx, 2);
    if (st != OP_OK) return st;
    const struct op_tensor *x = ctx->in[0];
    int axes[OP_RANK_MAX], n_axes;
    int64_t dims[OP_RANK_MAX] = {0};
    int64_t n_new = op_tensor_count(ctx->in[1]);
    if (n_new < 0 || n_new + x->rank > OP_RANK_MAX)
        return op__fail(ctx, OP_LIMIT, "%lld axes more on rank %d: at most rank %d is supported",
                        (long long)n_new, x->rank, OP_RANK_MAX);
    int rank = x->rank + (int)n_new;
    st = op__read_axes(ctx, 1, rank, axes, &n_axes);
    if (st != OP_OK) return st;
    for (int i = 0; i < n_axes; i++) dims[axes[i]] = -1;
    for (int i = 0, from = 0; i < rank; i++) dims[i] = dims[i] ? 1 : x->dims[from++];
    op__set(ctx, 0, x->dtype, rank, dims);
    return OP_OK;
}

static enum op_status axes_upgrade(struct op_graph *g, struct op_node *n, int opset,
                                   struct op_error *err) {
    return opset < 13 ? op__attr_to_input(g, n, "axes", 1, err) : OP_OK;
}

static const struct op_desc squeeze = {
    .name = "Squeeze",
    .domain = "",
    .since = 1,
    .in_min = 1,
    .in_max = 2,
    .out_min = 1,
    .out_max = 1,
    .flags = OP_F_VIEW,
    .inplace = 1,
    .upgrade = axes_upgrade,
    .infer = squeeze_infer,
    .run = view_run,
};
OP_REGISTER(squeeze);

static const struct op_desc unsqueeze = {
    .name = "Unsqueeze",
    .domain = "",
    .since = 1,
    .in_min = 1,
    .in_max = 2,
    .out_min = 1,
    .out_max = 1,
    .flags = OP_F_VIEW,
    .inplace = 1,
    .upgrade = axes_upgrade,
    .infer = unsqueeze_infer,
    .run = view_run,
};
OP_REGISTER(unsqueeze);
