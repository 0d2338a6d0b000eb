/* DepthToSpace and SpaceToDepth: blocks of b*b pixels as channels and back; each is one strided
 * copy.
 *
 *   DCR   y[n, c, h*b+i, w*b+j] = x[n, (i*b+j)*C + c, h, w]        the default, and what
 * SpaceToDepth inverts CRD   y[n, c, h*b+i, w*b+j] = x[n, (c*b+i)*b + j, h, w] */
#include "ops/op/move.h"

#include <string.h>

static enum op_status check(const struct op_ctx *ctx, int64_t *b, int64_t *bb) {
    enum op_status st = op__need_tensors(ctx, 1);
    char text[OP__TENSOR_TEXT];
    if (st != OP_OK) return st;
    *b = op__attr_int(ctx->node, "blocksize", 0);
    if (ctx->in[0]->rank != 4)
        return op__fail(ctx, OP_BAD_SHAPE, "the input is %s, rank 4 (N,C,H,W) is expected",
                        op__text(ctx->in[0], text));
    if (*b < 1 || !op__mul(*b, *b, bb))
        return op__fail(ctx, OP_BAD_VALUE, "blocksize %lld is out of range", (long long)*b);
    return OP_OK;
}

static enum op_status depth_to_space_infer(struct op_ctx *ctx) {
    int64_t b, bb, dims[4];
    const char *mode = op__attr_string(ctx->node, "mode", "DCR");
    enum op_status st = check(ctx, &b, &bb);
    if (st != OP_OK) return st;
    memcpy(dims, ctx->in[0]->dims, sizeof dims);
    if (strcmp(mode, "DCR") != 0 && strcmp(mode, "CRD") != 0)
        return op__fail(ctx, OP_BAD_VALUE, "mode \"%.40s\" is neither DCR nor CRD", mode);
    if (dims[1] % bb)
        return op__fail(ctx, OP_BAD_SHAPE, "%lld channels do not divide by blocksize^2 = %lld",
                        (long long)dims[1], (long long)bb);
    dims[1] /= bb;
    if (!op__mul(dims[2], b, &dims[2]) || !op__mul(dims[3], b, &dims[3]))
        return op__fail(ctx, OP_LIMIT, "blocksize %lld is too large", (long long)b);
    st = op__check_size(ctx, ctx->in[0]->dtype, 4, dims);
    if (st == OP_OK) op__set(ctx, 0, ctx->in[0]->dtype, 4, dims);
    return st;
}

/* The move between depth [N, b, b, C, H, W] (or [N, C, b, b, H, W]) and space [N, C, H, b, W, b].
 */
static void blocks(const struct op_ctx *ctx, int64_t b, bool crd, bool to_space) {
    const int64_t *space = (to_space ? ctx->out[0] : ctx->in[0])->dims;
    int64_t c = space[1], h = space[2] / b, w = space[3] / b, hw = h * w, row = space[3],
            image = space[1] * space[2] * space[3];
    int64_t dims[6] = {space[0], c, h, b, w, b};
    int64_t in_space[6] = {image, space[2] * row, b * row, row, b, 1};
    int64_t in_depth[6] = {image, crd ? b * b * hw : hw, w, crd ? b * hw : b * c * hw,
                           1,     crd ? hw : c * hw};
    struct op__move m = {0};
    for (int i = 0; i < 6; i++)
        op__move_dim(&m, dims[i], to_space ? in_space[i] : in_depth[i],
                     to_space ? in_depth[i] : in_space[i]);
    op__move_run(ctx, &m, ctx->out[0]->data, ctx->in[0]->data, op_type_size(ctx->in[0]->dtype));
}

static enum op_status depth_to_space_run(struct op_ctx *ctx) {
    if (op_tensor_count(ctx->in[0]))
        blocks(ctx, op__attr_int(ctx->node, "blocksize", 0),
               op__attr_string(ctx->node, "mode", "DCR")[0] == 'C', true);
    return OP_OK;
}

static const struct op_desc depth_to_space = {
    .name = "DepthToSpace",
    .domain = "",
    .since = 1,
    .in_min = 1,
    .in_max = 1,
    .out_min = 1,
    .out_max = 1,
    .infer = depth_to_space_infer,
    .run = depth_to_space_run,
};
OP_REGISTER(depth_to_space);

static enum op_status space_to_depth_infer(struct op_ctx *ctx) {
    int64_t b, bb, dims[4];
    char text[OP__TENSOR_TEXT];
    enum op_status st = check(ctx, &b, &bb);
    if (st != OP_OK) return st;
    memcpy(dims, ctx->in[0]->dims, sizeof dims);
    if (dims[2] % b || dims[3] % b)
        return op__fail(ctx, OP_BAD_SHAPE, "height and width of %s do not divide by blocksize %lld",
                        op__text(ctx->in[0], text), (long long)b);
    dims[2] /= b;
    dims[3] /= b;
    if (!op__mul(dims[1], bb, &dims[1]))
        return op__fail(ctx, OP_LIMIT, "blocksize %lld is too large", (long long)b);
    st = op__check_size(ctx, ctx->in[0]->dtype, 4, dims);
    if (st == OP_OK) op__set(ctx, 0, ctx->in[0]->dtype, 4, dims);
    return st;
}

static enum op_status space_to_depth_run(struct op_ctx *ctx) {
    if (op_tensor_count(ctx->in[0]))
        blocks(ctx, op__attr_int(ctx->node, "blocksize", 0), false, false);
    return OP_OK;
}

static const struct op_desc space_to_depth = {
    .name = "SpaceToDepth",
    .domain = "",
    .since = 1,
    .in_min = 1,
    .in_max = 1,
    .out_min = 1,
    .out_max = 1,
    .infer = space_to_depth_infer,
    .run = space_to_depth_run,
};
OP_REGISTER(space_to_depth);
