/* dropout.c: Dropout. Out of training (no input says otherwise) it is the identity and the mask is
 * all true; in training an element is kept where a random number is not below the ratio, and scaled
 * by 1 / (1 - ratio). Until opset 11 the ratio was an attribute, until opset 6 `is_test` said that
 * it does nothing; exported models are for inference. */
#include "ops/op/nn.h"
#include "ops/op/random.h"

#include <string.h>

static enum op_status dropout_upgrade(struct op_graph *g, struct op_node *n, int opset,
                                      struct op_error *err) {
    op__attr_remove(n, "is_test");
    return opset < 12 ? op__attr_float_to_input(g, n, "ratio", 1, OP_F32, err) : OP_OK;
}

static enum op_status dropout_infer(struct op_ctx *ctx) {
    const struct op_tensor *ratio = nn_in(ctx, 1), *training = nn_in(ctx, 2);
    enum op_status status = op__nn_float(ctx, 0, "data");
    if (status != OP_OK) return status;
    if (ratio && (!nn_is_float(ratio->dtype) || op_tensor_count(ratio) != 1))
        return op__fail(ctx, OP_BAD_TYPE, "ratio must be one float");
    if (training && (training->dtype != OP_BOOL || op_tensor_count(training) != 1))
        return op__fail(ctx, OP_BAD_TYPE, "training_mode must be one bool");
    op__set_like(ctx, 0, 0);
    if (ctx->n_out > 1) op__set(ctx, 1, OP_BOOL, ctx->in[0]->rank, ctx->in[0]->dims);
    return OP_OK;
}

static enum op_status dropout_run(struct op_ctx *ctx) {
    const struct op_tensor *x = ctx->in[0], *ratio_input = nn_in(ctx, 1), *training = nn_in(ctx, 2);
    struct op_tensor *y = nn_out(ctx, 0), *mask = nn_out(ctx, 1);
    const int64_t n = op_tensor_count(x);
    const double ratio = ratio_input ? nn_load(ratio_input, 0) : 0.5;
    if (n <= 0) return OP_OK;
    if (!training || !*(const uint8_t *)training->data || ratio == 0) {
        if (y && y->data != x->data) memcpy(y->data, x->data, (size_t)op_tensor_bytes(x));
        if (mask) memset(mask->data, 1, (size_t)n);
        return OP_OK;
    }
    if (!(ratio >= 0 && ratio < 1))
        return op__fail(ctx, OP_BAD_VALUE, "ratio is %g, must be in [0, 1)", ratio);
    struct op_random r;
    op__random_init(&r, ctx);
    for (int64_t i = 0; i < n; i++) {
        const bool keep = op__random_uniform(&r) >= ratio;
        if (mask) ((uint8_t *)mask->data)[i] = keep;
        if (y) nn_store(y, i, keep ? nn_load(x, i) / (1 - ratio) : 0);
    }
    return OP_OK;
}

static const struct op_desc dropout = {.name = "Dropout",
                                       .domain = "",
                                       .since = 1,
                                       .in_min = 1,
                                       .in_max = 3,
                                       .out_min = 1,
                                       .out_max = 2,
                                       .flags = OP_F_RANDOM,
                                       .inplace = 1,
                                       .upgrade = dropout_upgrade,
                                       .infer = dropout_infer,
                                       .run = dropout_run};
OP_REGISTER(dropout);
