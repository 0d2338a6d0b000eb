/* Optionals: Optional, OptionalGetElement, OptionalHasElement. An optional holds nothing, or one
 * tensor or sequence; its one item lives until the end of the run like a sequence's. From opset 18
 * on the last two also take what is not optional. */
#include "ops/op/move.h"

#include <string.h>

static enum op_status optional_infer(struct op_ctx *ctx) {
    const struct op_tensor *x = op__in(ctx, 0);
    op__set(ctx, 0, x ? x->dtype : OP_UNDEFINED, 0, NULL);
    if (ctx->out[0]) ctx->out[0]->kind = OP_KIND_OPTIONAL;
    return OP_OK;
}

static enum op_status optional_run(struct op_ctx *ctx) {
    const struct op_tensor *x = op__in(ctx, 0);
    enum op_status st =
        op__output_items(ctx, 0, OP_KIND_OPTIONAL, x ? x->dtype : OP_UNDEFINED, x ? 1 : 0);
    return st == OP_OK && x ? op__copy(ctx, &ctx->out[0]->items[0], x) : st;
}

static const struct op_desc optional = {
    .name = "Optional",
    .domain = "",
    .since = 15,
    .in_min = 0,
    .in_max = 1,
    .out_min = 1,
    .out_max = 1,
    .flags = OP_F_DYNAMIC,
    .infer = optional_infer,
    .run = optional_run,
};
OP_REGISTER(optional);

static enum op_status get_infer(struct op_ctx *ctx) {
    const struct op_tensor *x = op__in(ctx, 0);
    if (!x) return op__fail(ctx, OP_BAD_MODEL, "the input is missing");
    if (x->kind == OP_KIND_SEQUENCE) op__set_like(ctx, 0, 0);
    return OP_OK;
}

static enum op_status get_run(struct op_ctx *ctx) {
    const struct op_tensor *x = ctx->in[0];
    if (x->kind != OP_KIND_OPTIONAL) return op__take(ctx, 0, x);
    if (!x->n_items) return op__fail(ctx, OP_BAD_VALUE, "the optional is empty");
    return op__take(ctx, 0, &x->items[0]);
}

static const struct op_desc optional_get_element = {
    .name = "OptionalGetElement",
    .domain = "",
    .since = 15,
    .in_min = 1,
    .in_max = 1,
    .out_min = 1,
    .out_max = 1,
    .flags = OP_F_DYNAMIC,
    .infer = get_infer,
    .run = get_run,
};
OP_REGISTER(optional_get_element);

static enum op_status has_infer(struct op_ctx *ctx) {
    op__set(ctx, 0, OP_BOOL, 0, NULL);
    return OP_OK;
}

static enum op_status has_run(struct op_ctx *ctx) {
    const struct op_tensor *x = op__in(ctx, 0);
    *(uint8_t *)ctx->out[0]->data = x && (x->kind != OP_KIND_OPTIONAL || x->n_items > 0);
    return OP_OK;
}

static const struct op_desc optional_has_element = {
    .name = "OptionalHasElement",
    .domain = "",
    .since = 15,
    .in_min = 0,
    .in_max = 1,
    .out_min = 1,
    .out_max = 1,
    .infer = has_infer,
    .run = has_run,
};
OP_REGISTER(optional_has_element);
