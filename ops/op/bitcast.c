/* BitCast (opset 26): the same bits as another type of the same width. */
#include "ops/op.h"

#include <string.h>

static enum op_status infer(struct op_ctx *ctx) {
    const struct op_tensor *x = ctx->in[0];
    const int64_t to = op__attr_int(ctx->node, "to", 0);
    const enum op_type type = to > 0 && to <= OP_I2 ? (enum op_type)to : OP_UNDEFINED;
    if (!x || x->kind != OP_KIND_TENSOR || x->dtype == OP_STRING || type == OP_STRING || op_type_size(type) == 0)
        return op__fail(ctx, OP_BAD_TYPE, "takes and gives numbers and bool, not %s as ONNX's type %lld", x ? op_type_name(x->dtype) : "(absent)",
                        (long long)to);
    if (op__type_bits(x->dtype) != op__type_bits(type))
        return op__fail(ctx, OP_BAD_TYPE, "the input is %s of %d bits, %s has %d", op_type_name(x->dtype), op__type_bits(x->dtype), op_type_name(type),
                        op__type_bits(type));
    op__set(ctx, 0, type, x->rank, x->dims);
    return OP_OK;
}

static enum op_status run(struct op_ctx *ctx) {
    struct op_tensor *y = ctx->out[0];
    const int64_t bytes = y ? op_tensor_bytes(y) : 0, bits = y ? op__type_bits(y->dtype) : 8;
    if (bytes <= 0) return OP_OK;
    if (y->data != ctx->in[0]->data) memcpy(y->data, ctx->in[0]->data, (size_t)bytes);
    uint8_t *at = y->data;
    const uint8_t mask = (uint8_t)((1 << bits) - 1), sign = (uint8_t)(1 << (bits - 1));
    if (y->dtype == OP_BOOL) /* memory holds no other bool than 0 and 1 */
        for (int64_t i = 0; i < bytes; i++) at[i] = at[i] != 0;
    else if (bits < 8) /* and narrow signed integers with their sign extended */
        for (int64_t i = 0; i < bytes; i++) {
            at[i] &= mask;
            if ((y->dtype == OP_I4 || y->dtype == OP_I2) && at[i] & sign) at[i] |= (uint8_t)~mask;
        }
    return OP_OK;
}

static const struct op_desc bitcast = {
    .name = "BitCast",
    .domain = "",
    .since = 26,
    .in_min = 1,
    .in_max = 1,
    .out_min = 1,
    .out_max = 1,
    .inplace = 1,
    .infer = infer,
    .run = run,
};
OP_REGISTER(bitcast);
