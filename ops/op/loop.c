/* Loop: for (i = 0; i < M && cond; i++) body(i, cond, v…) -> (cond, v…, scan values…).
 *
 * The node's inputs are M, cond (both may be absent), then the N initial v; its outputs are the N
 * final v, then the scan values of all iterations stacked along a new first axis. The condition
 * that the body gives counts also where the node's own cond is absent. A trip count from a file is
 * only a number here: memory grows with the iterations that have run, and the executor's step
 * budget bounds those. v may be tensors, sequences or optionals. */
#include "ops/op/control.h"

#include <string.h>

static int n_carried(const struct op_ctx *ctx) {
    return ctx->n_in > 2 ? ctx->n_in - 2 : 0;
}

static enum op_status loop_infer(struct op_ctx *ctx) {
    const struct op_graph *body = op__attr_graph(ctx->node, "body");
    const struct op_tensor *trips = op__in(ctx, 0), *cond = op__in(ctx, 1);
    char text[OP__TENSOR_TEXT];
    int n = n_carried(ctx);
    if (!body) return op__fail(ctx, OP_BAD_MODEL, "the body is missing");
    if (op__graph_n_inputs(body) != 2 + n || op__graph_n_outputs(body) < 1 + n ||
        ctx->n_out > op__graph_n_outputs(body) - 1)
        return op__fail(
            ctx, OP_BAD_MODEL,
            "a body of %d inputs and %d outputs does not fit a node of %d inputs and %d outputs",
            op__graph_n_inputs(body), op__graph_n_outputs(body), ctx->n_in, ctx->n_out);
    if (trips &&
        (trips->kind != OP_KIND_TENSOR || (trips->dtype != OP_I64 && trips->dtype != OP_I32) ||
         op_tensor_count(trips) != 1))
        return op__fail(ctx, OP_BAD_TYPE, "the trip count is %s, one i64 is expected",
                        op__text(trips, text));
    if (cond &&
        (cond->kind != OP_KIND_TENSOR || cond->dtype != OP_BOOL || op_tensor_count(cond) != 1))
        return op__fail(ctx, OP_BAD_TYPE, "the condition is %s, one bool is expected",
                        op__text(cond, text));
    for (int i = 0; i < n; i++)
        if (!ctx->in[2 + i]) return op__fail(ctx, OP_BAD_MODEL, "input %d is missing", 2 + i);
    return OP_OK;
}

struct loop {
    const struct op_graph *body;
    int n, n_scan, n_results;
    int64_t i;
    uint8_t cond;
    struct op_tensor *args, *results; /* of the body */
    struct op__stack *stacks;
};

/* Takes the body's results: the condition, the next v, the scan values. */
static enum op_status take_results(const struct op_ctx *ctx, struct loop *l) {
    const struct op_tensor *cond = &l->results[0];
    char text[2][OP__TENSOR_TEXT];
    enum op_status st = OP_OK;
    if (cond->kind != OP_KIND_TENSOR || cond->dtype != OP_BOOL || op_tensor_count(cond) != 1)
        return op__fail(ctx, OP_BAD_TYPE, "the body's condition is %s, one bool is expected",
                        op__text(cond, text[0]));
    l->cond = *(const uint8_t *)cond->data != 0;
    op__give_back(ctx, cond);
    for (int k = 0; k < l->n; k++) {
        struct op_tensor *v = &l->args[2 + k], *next = &l->results[1 + k];
        if (v->kind == OP_KIND_TENSOR && next->kind == OP_KIND_TENSOR && v->dtype != next->dtype)
            return op__fail(ctx, OP_BAD_TYPE, "value %d is %s before and %s after an iteration", k,
                            op__text(v, text[0]), op__text(next, text[1]));
        if (l->i) op__give_back(ctx, v); /* the first ones are the node's own inputs */
        *v = *next;
    }
    for (int k = 0; st == OP_OK && k < l->n_scan; k++) {
        st = op__stack_push(ctx, &l->stacks[k], &l->results[1 + l->n + k], "a scan output");
        op__give_back(ctx, &l->results[1 + l->n + k]);
    }
    return st;
}

static enum op_status loop_run(struct op_ctx *ctx) {
    struct loop l = {.body = op__attr_graph(ctx->node, "body"), .n = n_carried(ctx), .cond = 1};
    const struct op_tensor *trips = op__in(ctx, 0), *cond = op__in(ctx, 1);
    int64_t n_max = trips ? op__int_at(trips, 0) : INT64_MAX;
    enum op_status st = OP_OK;
    l.n_results = op__graph_n_outputs(l.body);
    l.n_scan = l.n_results - 1 - l.n;
    l.args = op__run_alloc(ctx, (size_t)(2 + l.n) * sizeof *l.args);
    l.results = op__run_alloc(ctx, (size_t)l.n_results * sizeof *l.results);
    l.stacks = op__run_alloc(ctx, (size_t)(l.n_scan + 1) * sizeof *l.stacks);
    if (!l.args || !l.results || !l.stacks) return OP_NOMEM;
    if (cond) l.cond = *(const uint8_t *)cond->data != 0;
    l.args[0] = (struct op_tensor){.dtype = OP_I64, .data = &l.i};
    l.args[1] = (struct op_tensor){.dtype = OP_BOOL, .data = &l.cond};
    for (int k = 0; k < l.n; k++) l.args[2 + k] = *ctx->in[2 + k];
    for (; st == OP_OK && l.i < n_max && l.cond; l.i++) {
        memset(l.results, 0, (size_t)l.n_results * sizeof *l.results);
        st = op__run_graph(ctx, l.body, l.args, 2 + l.n, l.results, l.n_results);
        if (st == OP_OK) st = take_results(ctx, &l);
    }
    for (int k = 0; st == OP_OK && k < l.n; k++) st = op__take(ctx, k, &l.args[2 + k]);
    for (int k = 0; st == OP_OK && k < l.n_scan; k++) {
        if (l.n + k >= ctx->n_out || !ctx->out[l.n + k]) continue;
        if (l.stacks[k].n == 0)
            st = op__stack_declare(ctx, &l.stacks[k], l.body, 1 + l.n + k, "a scan output");
        if (st == OP_OK) st = op__stack_output(ctx, l.n + k, &l.stacks[k], 0, false);
    }
    return st;
}

static const struct op_desc loop = {
    .name = "Loop",
    .domain = "",
    .since = 1,
    .in_min = 0,
    .in_max = -1,
    .out_min = 0,
    .out_max = -1,
    .flags = OP_F_CONTROL | OP_F_DYNAMIC,
    .infer = loop_infer,
    .run = loop_run,
};
OP_REGISTER(loop);
