/* Order 545: a Transpose that leaves the last axis in place goes behind the projection it feeds:
 *
 *     Transpose -> MatMul by constant weights [-> Add of a constant row]     becomes     MatMul [-> Add] -> Transpose
 *
 * where what follows only moves elements (Slice, Split, Reshape, Transpose ...) or asks for the shape. torch's attention turns
 * [batch, time, width] to [time, batch, width] first and takes the projection apart after; behind the projection the Transpose is one
 * more of the movements that fuse_attention turns into strides. Others than Shape must not use the transposed value. The rows of
 * the product are the same, in another order: not one bit changes. */
#include "ops/pass/match.h"

#include <string.h>

static const char *const movements[] = {"Slice", "Split", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Gather", "Shape"};

static bool only_moves(const struct op_node *n) {
    for (size_t i = 0; i < sizeof movements / sizeof *movements; i++)
        if (op__node_is(n, movements[i])) return true;
    return false;
}

/* Whether all users of v but `except` are among the movements, or Shape alone; and v is no output. */
static bool users_are(const struct op_graph *g, int v, const struct op_node *except, bool shape_only) {
    if (op__graph_is_output(g, v)) return false;
    for (int i = 0; i < g->n_nodes; i++) {
        const struct op_node *n = g->nodes[i];
        for (int k = 0; n && n != except && k < n->n_in + n->n_captures; k++)
            if (n->in[k] == v && (k > 0 || !(shape_only ? op__node_is(n, "Shape") : only_moves(n)))) return false;
    }
    return true;
}

static bool keeps_last_axis(const struct op_node *n) {
    int64_t rank;
    const int64_t *perm = op__attr_ints(n, "perm", &rank);
    return perm && rank >= 3 && perm[rank - 1] == rank - 1;
}

/* The node that adds a constant row to v, its only user; NULL. */
static struct op_node *bias_of(const struct op_graph *g, const struct op__links *links, int v) {
    struct op_node *n = op__sole_user(g, links, v);
    const struct op_tensor *b = n && op__node_is(n, "Add") ? op__graph_constant(g, op__other_input(n, v)) : NULL;
    return b && b->rank == 1 ? n : NULL;
}

static enum op_status sink(struct op_graph *g, const struct op__links *links, int at, int *changed) {
    struct op_node *product = g->nodes[at];
    if (!product || !op__node_is(product, "MatMul") || product->n_in != 2) return OP_OK;
    const struct op_tensor *w = op__graph_constant(g, product->in[1]);
    const struct op_node *t = op__made_by(g, links, product->in[0], "Transpose");
    if (!w || w->rank != 2 || !t || !keeps_last_axis(t) || !users_are(g, t->out[0], product, true)) return OP_OK;
    struct op_node *last = bias_of(g, links, product->out[0]);
    if (!last) last = product;
    const int v = last->out[0];
    if (!users_are(g, v, NULL, false)) return OP_OK;
    int after = at;
    while (g->nodes[after] != last) after++;
    struct op_node *moved = op__graph_node(g, after + 1, "", "Transpose", t->name, 1, 1);
    const int made = op__graph_value(g, NULL);
    if (!moved || made < 0) return OP_NOMEM;
    moved->attrs = t->attrs;
    moved->n_attrs = t->n_attrs;
    moved->in[0] = made;
    moved->out[0] = v;
    last->out[0] = made;
    product->in[0] = t->in[0];
    ++*changed;
    return OP_OK;
}

static enum op_status run(struct op_graph *g, int *changed, struct op_error *err) {
    struct op__links links;
    enum op_status status = op__links_make(g, &links);
    for (int i = 0; status == OP_OK && i < g->n_nodes; i++) {
        const int before = *changed;
        status = sink(g, &links, i, changed);
        if (*changed == before) continue;
        op__links_free(&links); /* positions have changed */
        if (status == OP_OK) status = op__links_make(g, &links);
    }
    op__links_free(&links);
    return status == OP_OK || !err ? status : op__node_fail(err, NULL, status, "out of memory while moving a Transpose");
}

static const struct op_pass sink_transpose = {.name = "sink_transpose", .order = 545, .run = run};
OP_PASS_REGISTER(sink_transpose);
