/* gradient.c: Gradient of ai.onnx.preview.training: the derivatives of a value `y` of the same graph with respect to the values `xs`.
 *
 * Taken apart at load: the backward pass (grad.c) is put before the node, whose inputs become its results, so that what is left to do at
 * run time is to hand them on. Of a y that is no scalar the sum is derived, as for all of its elements together. Only for inputs
 * that are the values named by xs: then the forward part is there already. */
#include "ops/grad.h"

#include <string.h>

static int value_named(const struct op_graph *g, const char *name) {
    for (int v = 0; v < g->n_values; v++)
        if (g->values[v].name && !strcmp(g->values[v].name, name)) return v;
    return -1;
}

static enum op_status upgrade(struct op_graph *graph, struct op_node *n, int opset, struct op_error *err) {
    const struct op_attr *xs = op__attr(n, "xs");
    const char *y_name = op__attr_string(n, "y", "");
    const int y = value_named(graph, y_name);
    (void)opset;
    if (!xs || xs->kind != OP_ATTR_STRINGS || xs->n < 1 || xs->n > n->n_in || xs->n != n->n_out)
        return op__node_fail(err, n, OP_BAD_MODEL, "xs must name as many values as there are outputs, and no more than inputs");
    if (y < 0) return op__node_fail(err, n, OP_BAD_MODEL, "y is \"%.80s\", which is no value before it", y_name);
    if (graph->n_nodes < 1 || graph->nodes[graph->n_nodes - 1] != n) return op__node_fail(err, n, OP_UNSUPPORTED, "it is supported in a graph only");
    for (int64_t i = 0; i < xs->n; i++)
        if (n->in[i] < 0 || n->in[i] != value_named(graph, xs->strings[i].data))
            return op__node_fail(err, n, OP_UNSUPPORTED, "input %lld is not the value \"%.80s\" that xs names: other points are not supported", (long long)i,
                                 xs->strings[i].data);
    int *dw = op__arena_array(graph->arena, (size_t)xs->n, sizeof *dw);
    if (!dw) return op__node_fail(err, n, OP_NOMEM, "out of memory");
    graph->n_nodes--; /* it comes again behind its backward pass */
    struct op_grad g = {.graph = graph, .err = err};
    const int sum = op__sum_to(&g, y, op__emit_scalar(&g, y, 0)); /* made of what has gradients itself */
    enum op_status st = sum < 0 ? op__node_fail(err, n, OP_NOMEM, "out of memory") : op__grad_build(graph, sum, n->in, (int)xs->n, dw, err);
    for (int i = 0; i < xs->n && st == OP_OK; i++)
        if (dw[i] < 0) dw[i] = op__emit_quern(&g, "ExpandLike", 2, (int[]){op__emit_scalar(&g, n->in[i], 0), n->in[i]});
    if (!op__graph_insert(graph, graph->n_nodes, n) || g.failed) return op__node_fail(err, n, OP_NOMEM, "out of memory");
    n->n_in = (int)xs->n;
    for (int i = 0; i < n->n_in && st == OP_OK; i++) n->in[i] = dw[i];
    return st;
}

static enum op_status infer(struct op_ctx *ctx) {
    if (ctx->n_in != ctx->n_out) return op__fail(ctx, OP_BAD_MODEL, "%d inputs for %d outputs", ctx->n_in, ctx->n_out);
    for (int i = 0; i < ctx->n_in; i++) {
        if (!ctx->in[i] || ctx->in[i]->kind != OP_KIND_TENSOR) return op__fail(ctx, OP_BAD_MODEL, "input %d is absent or no tensor", i);
        op__set_like(ctx, i, i);
    }
    return OP_OK;
}

static enum op_status run(struct op_ctx *ctx) {
    for (int i = 0; i < ctx->n_in; i++)
        if (ctx->out[i] && op_tensor_count(ctx->in[i])) memcpy(ctx->out[i]->data, ctx->in[i]->data, (size_t)op_tensor_bytes(ctx->in[i]));
    return OP_OK;
}

static enum op_status grad(struct op_grad *g) { /* of higher order */
    for (int i = 0; i < g->n_in; i++) op__grad_set(g, i, g->dy[i]);
    return OP_OK;
}

static const struct op_desc gradient = {.name = "Gradient", .domain = "ai.onnx.preview.training", .since = 1, .in_min = 1, .in_max = -1, .out_min = 1, .out_max = -1,
                                        .upgrade = upgrade, .infer = infer, .run = run, .grad = grad};
OP_REGISTER(gradient);
