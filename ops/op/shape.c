/* Shape and Size: what a tensor's dims are. They need no data, so the planner knows their values
 * with the shapes. */
#include "ops/op/move.h"

/* Shape(start, end): dims[start:end] with Python's clamping. */
static void shape_range(const struct op_ctx *ctx, int64_t *start, int64_t *end) {
    int64_t rank = ctx->in[0]->rank;
    *start = op__attr_int(ctx->node, "start", 0);
    *end = op__attr_int(ctx->node, "end", rank);
    if (*start < 0) *start = *start < -rank ? 0 : *start + rank;
    if (*end < 0) *end = *end < -rank ? 0 : *end + rank;
    if (*start > rank) *start = rank;
    if (*end > rank) *end = rank;
    if (*end < *start) *end = *start;
}

static enum op_status shape_infer(struct op_ctx *ctx) {
    enum op_status st = op__need_tensors(ctx, 1);
    int64_t start, end;
    if (st != OP_OK) return st;
    shape_range(ctx, &start, &end);
    op__set(ctx, 0, OP_I64, 1, (int64_t[]){end - start});
    return OP_OK;
}

static enum op_status shape_run(struct op_ctx *ctx) {
    int64_t start, end, *y = ctx->out[0]->data;
    shape_range(ctx, &start, &end);
    for (int64_t i = start; i < end; i++) y[i - start] = ctx->in[0]->dims[i];
    return OP_OK;
}

static const struct op_desc shape = {
    .name = "Shape",
    .domain = "",
    .since = 1,
    .in_min = 1,
    .in_max = 1,
    .out_min = 1,
    .out_max = 1,
    .flags = OP_F_SHAPE,
    .infer = shape_infer,
    .run = shape_run,
};
OP_REGISTER(shape);

static enum op_status size_infer(struct op_ctx *ctx) {
    enum op_status st = op__need_tensors(ctx, 1);
    if (st == OP_OK) op__set(ctx, 0, OP_I64, 0, NULL);
    return st;
}

static enum op_status size_run(struct op_ctx *ctx) {
    *(int64_t *)ctx->out[0]->data = op_tensor_count(ctx->in[0]);
    return OP_OK;
}

static const struct op_desc size = {
    .name = "Size",
    .domain = "",
    .since = 1,
    .in_min = 1,
    .in_max = 1,
    .out_min = 1,
    .out_max = 1,
    .flags = OP_F_SHAPE,
    .infer = size_infer,
    .run = size_run,
};
OP_REGISTER(size);
