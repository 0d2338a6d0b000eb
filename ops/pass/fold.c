/* Evaluates nodes whose inputs are all constants, and hands constants on to the subgraphs that capture them.
 *
 * Weights in bytes stay as they are (DequantizeLinear) until the pass fuse_quantized has taken what it can use; fold_weights, order 545, does the
 * rest.
 *
 * A view of a constant shares its memory. Other results are kept if they are not much larger than what they came from: a
 * ConstantOfShape of a gigabyte is better made when it is needed. A node that fails here is left for the run to report. */
#include "ops/exec.h"

#include <stdlib.h>
#include <string.h>

#define SMALL_BYTES ((int64_t)1 << 20)
#define GROWTH_MAX 4

struct trial {
    const struct op_tensor **in;
    struct op_slot *made;
    struct op_tensor **out;
};

static bool is_constant_work(const struct op_graph *g, const struct op_node *n, bool weights, int64_t *in_bytes) {
    if (n->desc->flags & (OP_F_RANDOM | OP_F_CONTROL)) return false;
    if (!weights && op__node_is(n, "DequantizeLinear")) return false;
    *in_bytes = 0;
    for (int i = 0; i < n->n_in; i++) {
        if (n->in[i] < 0) continue;
        const struct op_tensor *t = op__graph_constant_type(g, n->in[i]);
        if (!t) return false;
        *in_bytes += op_tensor_bytes(t);
    }
    for (int i = 0; i < n->n_in; i++) { /* all are constants: now their data */
        const struct op_tensor *t = op__graph_constant(g, n->in[i]);
        if (n->in[i] >= 0 && (!t || !t->data)) return false;
    }
    return true;
}

static bool worth_keeping(const struct op_node *n, const struct trial *t, int64_t in_bytes) {
    int64_t bytes = 0;
    for (int i = 0; i < n->n_out; i++) {
        if (!t->out[i]) continue;
        int64_t b = t->out[i]->kind == OP_KIND_TENSOR ? op_tensor_bytes(t->out[i]) : -1;
        if (b < 0 || !op__mul(1, bytes + b, &bytes)) return false;
    }
    return bytes <= SMALL_BYTES || bytes / GROWTH_MAX <= in_bytes;
}

static enum op_status keep(struct op_graph *g, const struct op_node *n, const struct trial *t) {
    for (int i = 0; i < n->n_out; i++) {
        if (!t->out[i]) continue;
        struct op_tensor copy = *t->out[i];
        bool view = (n->desc->flags & OP_F_VIEW) && i == 0;
        if (!view && op__tensor_clone(&copy, t->out[i]) != OP_OK) {
            op_tensor_free(&copy);
            return OP_NOMEM;
        }
        enum op_status st = op__graph_set_const(g, n->out[i], &copy);
        if (st != OP_OK) {
            if (!view) op_tensor_free(&copy);
            return st;
        }
        if (!view) continue;
        struct op_const *c = g->values[n->out[i]].constant;
        c->owned = NULL;
        c->base = g->values[n->in[0]].constant;
    }
    return OP_OK;
}

/* *done: the outputs are constants now. */
static enum op_status fold_node(struct op_graph *g, struct op_node *n, struct op_exec *x, struct trial *t, int64_t in_bytes, bool *done) {
    for (int i = 0; i < n->n_in; i++) t->in[i] = op__graph_constant(g, n->in[i]);
    for (int i = 0; i < n->n_out; i++) {
        t->made[i] = (struct op_slot){0};
        t->out[i] = n->out[i] < 0 ? NULL : &t->made[i].t;
    }
    struct op_ctx ctx = {.node = n, .n_in = n->n_in, .n_out = n->n_out, .in = t->in, .out = t->out, .kern = g->model->kern, .exec = x};
    struct op_packs packs;
    op__packs_init(&packs, NULL);
    struct op_prepare p = {.node = n, .n_in = n->n_in, .in = t->in, .cpu = g->model->cpu, .packs = &packs};
    enum op_status st = n->desc->prepare ? n->desc->prepare(&p) : OP_OK;
    if (st == OP_OK) {
        ctx.state = n->state;
        st = n->desc->infer(&ctx);
        bool open = st == OP_OK && (n->desc->flags & OP_F_DYNAMIC); /* its size shows after the run */
        if (st == OP_OK && (open || worth_keeping(n, t, in_bytes))) st = op__node_eval(x, &ctx, NULL);
        else if (st == OP_OK) st = OP_NEED_DATA;
        *done = st == OP_OK && worth_keeping(n, t, in_bytes);
    }
    enum op_status kept = *done ? keep(g, n, t) : OP_OK;
    op__exec_reset(x);
    if (n->state && n->desc->release) n->desc->release(n->state);
    n->state = NULL;
    op__packs_finish(&packs);
    return kept;
}

/* Captured constants become constants of the subgraphs. */
static void hand_on(const struct op_graph *g) {
    for (int i = 0; i < g->n_nodes; i++) {
        const struct op_node *n = g->nodes[i];
        for (int a = 0; n && a < n->n_attrs; a++) {
            if (n->attrs[a].kind != OP_ATTR_GRAPH) continue;
            struct op_graph *sub = n->attrs[a].g;
            for (int k = 0; k < sub->n_captures; k++) {
                int outer = n->in[sub->captures[k].index];
                if (outer >= 0 && g->values[outer].constant) sub->values[sub->captures[k].inner].constant = g->values[outer].constant;
            }
        }
    }
}

static enum op_status fold_graph(struct op_graph *g, struct op_exec *x, bool weights, int *changed) {
    int widest = 1;
    for (int i = 0; i < g->n_nodes; i++) {
        if (g->nodes[i] && g->nodes[i]->n_in > widest) widest = g->nodes[i]->n_in;
        if (g->nodes[i] && g->nodes[i]->n_out > widest) widest = g->nodes[i]->n_out;
    }
    struct trial t = {.in = calloc((size_t)widest, sizeof *t.in), .made = calloc((size_t)widest, sizeof *t.made), .out = calloc((size_t)widest, sizeof *t.out)};
    enum op_status st = t.in && t.made && t.out ? OP_OK : OP_NOMEM;
    for (int i = 0; i < g->n_nodes && st == OP_OK; i++) {
        int64_t in_bytes;
        bool done = false;
        if (!g->nodes[i] || !is_constant_work(g, g->nodes[i], weights, &in_bytes)) continue;
        st = fold_node(g, g->nodes[i], x, &t, in_bytes, &done);
        if (!done || st != OP_OK) continue;
        op__graph_remove(g, i);
        ++*changed;
    }
    free(t.in);
    free(t.made);
    free(t.out);
    hand_on(g);
    for (int i = 0; i < g->n_nodes && st == OP_OK; i++)
        for (int a = 0; g->nodes[i] && a < g->nodes[i]->n_attrs && st == OP_OK; a++)
            if (g->nodes[i]->attrs[a].kind == OP_ATTR_GRAPH) st = fold_graph(g->nodes[i]->attrs[a].g, x, weights, changed);
    op__graph_sweep(g);
    return st;
}

static enum op_status run(struct op_graph *g, bool weights, int *changed) {
    if (g->parent) return OP_OK; /* comes after its holder, which knows more constants */
    struct op_exec x;
    op__exec_init(&x, g->model, NULL);
    x.quiet = true;
    enum op_status st = fold_graph(g, &x, weights, changed);
    op__exec_finish(&x);
    return st;
}

static enum op_status run_early(struct op_graph *g, int *changed, struct op_error *err) {
    (void)err;
    return run(g, false, changed);
}

static enum op_status run_late(struct op_graph *g, int *changed, struct op_error *err) {
    (void)err;
    return run(g, true, changed);
}

static const struct op_pass pass_fold = {.name = "fold", .order = 300, .run = run_early};
OP_PASS_REGISTER(pass_fold);
static const struct op_pass pass_fold_weights = {.name = "fold_weights", .order = 545, .run = run_late};
OP_PASS_REGISTER(pass_fold_weights);
