/* Expand (numpy's broadcast_to, in both directions) and Tile (numpy's tile): copies with source
 * strides of zero. */
#include "ops/op/move.h"

#include <string.h>

static enum op_status expand_infer(struct op_ctx *ctx) {
    enum op_status st = op__need_tensors(ctx, 2);
    int64_t want[OP_RANK_MAX], dims[OP_RANK_MAX];
    int n, rank;
    char from[OP__TENSOR_TEXT], to[OP__DIMS_TEXT];
    if (st == OP_OK) st = op__read_ints(ctx, 1, "shape", OP_RANK_MAX, want, &n);
    if (st != OP_OK) return st;
    const struct op_tensor *x = ctx->in[0];
    bool fits = true;
    for (int i = 0; i < n; i++) fits &= want[i] >= 0;
    if (!fits || !op__broadcast(x->rank, x->dims, n, want, &rank, dims))
        return op__fail(ctx, OP_BAD_SHAPE, "%s does not broadcast to %s", op__text(x, from),
                        op__dims_text(n, want, to));
    st = op__check_size(ctx, x->dtype, rank, dims);
    if (st == OP_OK) op__set(ctx, 0, x->dtype, rank, dims);
    return st;
}

static enum op_status expand_run(struct op_ctx *ctx) {
    const struct op_tensor *x = ctx->in[0];
    struct op_tensor *y = ctx->out[0];
    int64_t from[OP_RANK_MAX], to[OP_RANK_MAX];
    int lead = y->rank - x->rank;
    if (op_tensor_count(y) == 0) return OP_OK;
    op__strides(x->rank, x->dims, from);
    op__strides(y->rank, y->dims, to);
    struct op__move m = {0};
    for (int i = 0; i < y->rank; i++)
        op__move_dim(&m, y->dims[i], to[i],
                     i < lead || x->dims[i - lead] == 1 ? 0 : from[i - lead]);
    op__move_run(ctx, &m, y->data, x->data, op_type_size(x->dtype));
    return OP_OK;
}

/* As many bytes as before: nothing was repeated. */
static bool repeats_nothing(const struct op_ctx *ctx) {
    (void)ctx;
    return true;
}

static const struct op_desc expand = {
    .name = "Expand",
    .domain = "",
    .since = 8,
    .in_min = 2,
    .in_max = 2,
    .out_min = 1,
    .out_max = 1,
    .infer = expand_infer,
    .is_view = repeats_nothing,
    .run = expand_run,
};
OP_REGISTER(expand);

/* --- Tile ----------------------------------------------------------------------------------------
 */

static enum op_status set_repeated(struct op_ctx *ctx, const int64_t *repeats) {
    const struct op_tensor *x = ctx->in[0];
    int64_t dims[OP_RANK_MAX];
    for (int i = 0; i < x->rank; i++) {
        if (repeats[i] < 0)
            return op__fail(ctx, OP_BAD_VALUE, "axis %d is to be repeated %lld times", i,
                            (long long)repeats[i]);
        if (!op__mul(x->dims[i], repeats[i], &dims[i]))
            return op__fail(ctx, OP_LIMIT, "axis %d: %lld times %lld is too large", i,
                            (long long)x->dims[i], (long long)repeats[i]);
    }
    enum op_status st = op__check_size(ctx, x->dtype, x->rank, dims);
    if (st == OP_OK) op__set(ctx, 0, x->dtype, x->rank, dims);
    return st;
}

static enum op_status tile_infer(struct op_ctx *ctx) {
    enum op_status st = op__need_tensors(ctx, 2);
    int64_t repeats[OP_RANK_MAX];
    int n;
    if (st == OP_OK) st = op__read_ints(ctx, 1, "repeats", OP_RANK_MAX, repeats, &n);
    if (st != OP_OK) return st;
    if (n != ctx->in[0]->rank)
        return op__fail(ctx, OP_BAD_SHAPE, "repeats has %d values for a tensor of rank %d", n,
                        ctx->in[0]->rank);
    return set_repeated(ctx, repeats);
}

/* The repeats follow from the two shapes. Each axis becomes two: the repetition (source stride 0)
 * and the piece. */
static enum op_status tile_run(struct op_ctx *ctx) {
    const struct op_tensor *x = ctx->in[0];
    struct op_tensor *y = ctx->out[0];
    int64_t from[OP_RANK_MAX], to[OP_RANK_MAX];
    if (op_tensor_count(y) == 0) return OP_OK;
    op__strides(x->rank, x->dims, from);
    op__strides(y->rank, y->dims, to);
    struct op__move m = {0};
    for (int i = 0; i < x->rank; i++) {
        op__move_dim(&m, y->dims[i] / x->dims[i], to[i] * x->dims[i], 0);
        op__move_dim(&m, x->dims[i], to[i], from[i]);
    }
    op__move_run(ctx, &m, y->data, x->data, op_type_size(x->dtype));
    return OP_OK;
}

static const struct op_desc tile = {
    .name = "Tile",
    .domain = "",
    .since = 6,
    .in_min = 2,
    .in_max = 2,
    .out_min = 1,
    .out_max = 1,
    .infer = tile_infer,
    .is_view = repeats_nothing,
    .run = tile_run,
};
OP_REGISTER(tile);

/* Opset 1: one axis, (input, tiles, axis) with scalars of the input's own type. */
static enum op_status scalar_of(const struct op_ctx *ctx, int i, double *dst) {
    const struct op_tensor *t = ctx->in[i];
    if (op_tensor_count(t) != 1) return op__fail(ctx, OP_BAD_SHAPE, "input %d is not a scalar", i);
    if (!op__known(t)) return OP_NEED_DATA;
    switch (t->dtype) {
    case OP_F32:
        *dst = *(const float *)t->data;
        break;
    case OP_F64:
        *dst = *(const double *)t->data;
        break;
    case OP_F16:
        *dst = op__f16_to_f32(*(const uint16_t *)t->data);
        break;
    case OP_I64:
    case OP_I32:
        *dst = (double)op__int_at(t, 0);
        break;
    default:
        return op__fail(ctx, OP_BAD_TYPE, "input %d is %s, a number is expected", i,
                        op_type_name(t->dtype));
    }
    return OP_OK;
}

static enum op_status tile_1_infer(struct op_ctx *ctx) {
    enum op_status st = op__need_tensors(ctx, 3);
    double tiles, axis;
    int64_t repeats[OP_RANK_MAX];
    if (st == OP_OK) st = scalar_of(ctx, 1, &tiles);
    if (st == OP_OK) st = scalar_of(ctx, 2, &axis);
    if (st != OP_OK) return st;
    if (!(tiles >= 0 && tiles < 1e15)) return op__fail(ctx, OP_BAD_VALUE, "tiles is %g", tiles);
    if (!(axis >= 0 && axis < ctx->in[0]->rank))
        return op__fail(ctx, OP_BAD_VALUE, "axis is %g, the input has rank %d", axis,
                        ctx->in[0]->rank);
    for (int i = 0; i < OP_RANK_MAX; i++) repeats[i] = i == (int)axis ? (int64_t)tiles : 1;
    return set_repeated(ctx, repeats);
}

static const struct op_desc tile_1 = {
    .name = "Tile",
    .domain = "",
    .since = 1,
    .until = 5,
    .in_min = 3,
    .in_max = 3,
    .out_min = 1,
    .out_max = 1,
    .infer = tile_1_infer,
    .run = tile_run,
};
OP_REGISTER(tile_1);
