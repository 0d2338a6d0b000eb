/* Identity (opset 1): the value itself; a view, so run is only called where memory cannot be shared. Takes tensors,
 * sequences and optionals. */
#include "ops/op.h"

#include <string.h>

static enum op_status identity_infer(struct op_ctx *ctx) {
    op__set_like(ctx, 0, 0);
    return OP_OK;
}

static enum op_status identity_run(struct op_ctx *ctx) {
    int64_t bytes = op_tensor_bytes(ctx->in[0]);
    if (bytes > 0 && ctx->out[0]->data != ctx->in[0]->data) memcpy(ctx->out[0]->data, ctx->in[0]->data, (size_t)bytes);
    return OP_OK;
}

static const struct op_desc identity = {
    .name = "Identity",
    .domain = "",
    .since = 1,
    .in_min = 1,
    .in_max = 1,
    .out_min = 1,
    .out_max = 1,
    .flags = OP_F_VIEW,
    .inplace = 1,
    .infer = identity_infer,
    .run = identity_run,
};
OP_REGISTER(identity);
