/* SequenceMap (opset 17): runs its body once for each tensor of the first input, which is a
 * sequence. Further inputs are sequences of the same length, taken item by item, or tensors, handed
 * over as they are. Each output of the body becomes a sequence. */
#include "ops/op/move.h"

#include <string.h>

static enum op_status map_infer(struct op_ctx *ctx) {
    const struct op_graph *body = op__attr_graph(ctx->node, "body");
    if (!body) return op__fail(ctx, OP_BAD_MODEL, "the body is missing");
    if (op__graph_n_inputs(body) != ctx->n_in || op__graph_n_outputs(body) < ctx->n_out)
        return op__fail(
            ctx, OP_BAD_MODEL,
            "a body of %d inputs and %d outputs does not fit a node of %d inputs and %d outputs",
            op__graph_n_inputs(body), op__graph_n_outputs(body), ctx->n_in, ctx->n_out);
    for (int i = 0; i < ctx->n_in; i++)
        if (!ctx->in[i]) return op__fail(ctx, OP_BAD_MODEL, "input %d is missing", i);
    if (ctx->in[0]->kind != OP_KIND_SEQUENCE)
        return op__fail(ctx, OP_BAD_TYPE, "input 0 is no sequence");
    for (int k = 0; k < ctx->n_out; k++) {
        struct op_tensor declared;
        op__graph_output(body, k, &declared);
        op__set(ctx, k, declared.dtype, 0, NULL);
        if (ctx->out[k]) ctx->out[k]->kind = OP_KIND_SEQUENCE;
    }
    return OP_OK;
}

static enum op_status map_run(struct op_ctx *ctx) {
    const struct op_graph *body = op__attr_graph(ctx->node, "body");
    int n_results = op__graph_n_outputs(body);
    int64_t n = ctx->in[0]->n_items;
    struct op_tensor *args = op__run_alloc(ctx, (size_t)ctx->n_in * sizeof *args),
                     *results = op__run_alloc(ctx, (size_t)n_results * sizeof *results);
    enum op_status st = args && results ? OP_OK : OP_NOMEM;
    for (int i = 1; st == OP_OK && i < ctx->n_in; i++)
        if (ctx->in[i]->kind == OP_KIND_SEQUENCE && ctx->in[i]->n_items != n)
            return op__fail(ctx, OP_BAD_VALUE, "input %d has %lld tensors, input 0 has %lld", i,
                            (long long)ctx->in[i]->n_items, (long long)n);
    for (int k = 0; st == OP_OK && k < ctx->n_out; k++) {
        struct op_tensor declared;
        op__graph_output(body, k, &declared);
        st = op__output_items(ctx, k, OP_KIND_SEQUENCE, declared.dtype, n);
    }
    for (int64_t i = 0; st == OP_OK && i < n; i++) {
        for (int k = 0; k < ctx->n_in; k++)
            args[k] = ctx->in[k]->kind == OP_KIND_SEQUENCE ? ctx->in[k]->items[i] : *ctx->in[k];
        memset(results, 0, (size_t)n_results * sizeof *results);
        st = op__run_graph(ctx, body, args, ctx->n_in, results, n_results);
        for (int k = 0; st == OP_OK && k < ctx->n_out; k++) {
            if (!ctx->out[k]) continue;
            if (results[k].kind != OP_KIND_TENSOR)
                return op__fail(ctx, OP_BAD_TYPE, "output %d of the body is no tensor", k);
            ctx->out[k]->dtype = results[k].dtype;
            st = op__copy(ctx, &ctx->out[k]->items[i], &results[k]);
        }
        for (int k = 0; k < n_results; k++) op__give_back(ctx, &results[k]);
    }
    return st;
}

static const struct op_desc sequence_map = {
    .name = "SequenceMap",
    .domain = "",
    .since = 17,
    .in_min = 1,
    .in_max = -1,
    .out_min = 1,
    .out_max = -1,
    .flags = OP_F_CONTROL | OP_F_DYNAMIC,
    .infer = map_infer,
    .run = map_run,
};
OP_REGISTER(sequence_map);
