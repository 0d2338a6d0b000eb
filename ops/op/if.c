/* If: runs one of two subgraphs. Its outputs' shapes and types are those that the branch gives. */
#include "ops/op/move.h"

static enum op_status if_infer(struct op_ctx *ctx) {
    enum op_status st = op__need_tensors(ctx, 1);
    char text[OP__TENSOR_TEXT];
    const struct op_graph *then_g = op__attr_graph(ctx->node, "then_branch"),
                          *else_g = op__attr_graph(ctx->node, "else_branch");
    if (st != OP_OK) return st;
    if (!then_g || !else_g) return op__fail(ctx, OP_BAD_MODEL, "a branch is missing");
    if (op__graph_n_inputs(then_g) || op__graph_n_inputs(else_g))
        return op__fail(ctx, OP_BAD_MODEL, "a branch has inputs of its own");
    if (op__graph_n_outputs(then_g) != ctx->n_out || op__graph_n_outputs(else_g) != ctx->n_out)
        return op__fail(ctx, OP_BAD_MODEL, "the branches have %d and %d outputs, the node has %d",
                        op__graph_n_outputs(then_g), op__graph_n_outputs(else_g), ctx->n_out);
    if (ctx->in[0]->dtype != OP_BOOL || op_tensor_count(ctx->in[0]) != 1)
        return op__fail(ctx, OP_BAD_TYPE, "the condition is %s, one bool is expected",
                        op__text(ctx->in[0], text));
    return OP_OK;
}

static enum op_status if_run(struct op_ctx *ctx) {
    bool yes = *(const uint8_t *)ctx->in[0]->data != 0;
    struct op_tensor *results = op__run_alloc(ctx, (size_t)ctx->n_out * sizeof *results);
    if (!results) return OP_NOMEM;
    enum op_status st =
        op__run_graph(ctx, op__attr_graph(ctx->node, yes ? "then_branch" : "else_branch"), NULL, 0,
                      results, ctx->n_out);
    for (int i = 0; st == OP_OK && i < ctx->n_out; i++) st = op__take(ctx, i, &results[i]);
    return st;
}

static const struct op_desc if_desc = {
    .name = "If",
    .domain = "",
    .since = 1,
    .in_min = 1,
    .in_max = 1,
    .out_min = 0,
    .out_max = -1,
    .flags = OP_F_CONTROL | OP_F_DYNAMIC,
    .infer = if_infer,
    .run = if_run,
};
OP_REGISTER(if_desc);
