/* dropout_grad.c: the gradient of Dropout: dx = dy mask / (1 - ratio), with the mask that the forward pass drew.
 *
 * Whether the node trains is said by its input when it runs. Where it may (the input is there and not constantly false) the forward
 * node is given its second output, the mask, if it had none; where it cannot, Dropout is the identity. */
#include "ops/op/nn.h"

#include <string.h>

#include "ops/grad.h"

static enum op_status dropout_grad(struct op_grad *g) {
    int training = g->n_in > 2 ? g->in[2] : -1;
    const struct op_tensor *known = op__graph_constant(g->graph, training);
    if (training < 0 || (known && known->data && known->dtype == OP_BOOL && !*(const uint8_t *)known->data)) {
        op__grad_set(g, 0, g->dy[0]);
        return OP_OK;
    }
    struct op_node *n = (struct op_node *)(uintptr_t)g->node; /* the graph is ours to change: only this output is added */
    if (n->n_out < 2 || n->out[1] < 0) {
        int *out = op__arena_array(g->graph->arena, 2, sizeof *out);
        int mask = op__graph_value(g->graph, NULL);
        if (!out || mask < 0) {
            g->failed = true;
            return OP_OK;
        }
        out[0] = n->out[0];
        out[1] = mask;
        n->out = out;
        n->n_out = 2;
    }
    int in[4] = {g->dy[0], n->out[1], g->in[1], training}, dx;
    op__emit(g, "quern", "DropoutGrad", 4, in, 1, &dx);
    op__grad_set(g, 0, dx);
    return OP_OK;
}

static enum op_status dropout_grad_infer(struct op_ctx *ctx) {
    const struct op_tensor *ratio = nn_in(ctx, 2), *training = nn_in(ctx, 3);
    enum op_status st = op__nn_float(ctx, 0, "dy");
    if (st != OP_OK) return st;
    st = op__nn_like(ctx, 1, "mask", OP_BOOL, ctx->in[0]->rank);
    if (st == OP_OK) st = op__nn_shape(ctx, 1, "mask", ctx->in[0]->rank, ctx->in[0]->dims);
    if (st != OP_OK) return st;
    if (ratio && (!nn_is_float(ratio->dtype) || op_tensor_count(ratio) != 1)) return op__fail(ctx, OP_BAD_TYPE, "ratio must be one float");
    if (!training || training->dtype != OP_BOOL || op_tensor_count(training) != 1) return op__fail(ctx, OP_BAD_TYPE, "training_mode must be one bool");
    op__set_like(ctx, 0, 0);
    return OP_OK;
}

static enum op_status dropout_grad_run(struct op_ctx *ctx) {
    const struct op_tensor *dy = ctx->in[0], *ratio_input = nn_in(ctx, 2);
    const uint8_t *mask = ctx->in[1]->data;
    struct op_tensor *dx = ctx->out[0];
    const int64_t n = op_tensor_count(dy);
    const double ratio = ratio_input ? nn_load(ratio_input, 0) : 0.5;
    if (!dx || n <= 0) return OP_OK;
    if (!*(const uint8_t *)ctx->in[3]->data || ratio == 0) {
        if (dx->data != dy->data) memcpy(dx->data, dy->data, (size_t)op_tensor_bytes(dy));
        return OP_OK;
    }
    const double scale = 1 / (1 - ratio);
    if (dy->dtype == OP_F32)
        for (int64_t i = 0; i < n; i++) ((float *)dx->data)[i] = mask[i] ? ((const float *)dy->data)[i] * (float)scale : 0;
    else
        for (int64_t i = 0; i < n; i++) nn_store(dx, i, mask[i] ? nn_load(dy, i) * scale : 0);
    return OP_OK;
}

static const struct op_desc dropout_grad_desc = {.name = "DropoutGrad", .domain = "quern", .since = 1, .in_min = 4, .in_max = 4, .out_min = 1, .out_max = 1,
                                                 .inplace = 1, .infer = dropout_grad_infer, .run = dropout_grad_run};
OP_REGISTER(dropout_grad_desc);

static const struct op_grad_row dropout_grads[] = {{"", "Dropout", dropout_grad}};
OP_GRADS_REGISTER(dropout_grads);
