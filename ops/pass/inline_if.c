/* An If whose condition is constant becomes the nodes of its branch, so that later passes see them. (A condition that follows
 * from the inputs' shapes is known to the planner, which does the same for its plan.) */
#include "ops/graph.h"

#include <stdlib.h>

static const struct op_graph *chosen(const struct op_graph *g, const struct op_node *n) {
    const struct op_tensor *cond = op__node_is(n, "If") && n->n_in == 1 ? op__graph_constant(g, n->in[0]) : NULL;
    if (!cond || cond->dtype != OP_BOOL || op_tensor_count(cond) != 1 || !cond->data) return NULL;
    const struct op_graph *branch = op__attr_graph(n, *(const uint8_t *)cond->data ? "then_branch" : "else_branch");
    return branch && branch->n_inputs == 0 && branch->n_outputs == n->n_out ? branch : NULL;
}

/* The branch's values as values of g; NULL without memory. */
static int *carry_values(struct op_graph *g, const struct op_node *n, const struct op_graph *branch) {
    int *to = malloc(((size_t)branch->n_values + 1) * sizeof *to);
    if (!to) return NULL;
    for (int v = 0; v < branch->n_values; v++) to[v] = -1;
    for (int k = 0; k < branch->n_captures; k++) to[branch->captures[k].inner] = n->in[branch->captures[k].index];
    for (int v = 0; v < branch->n_values; v++) {
        if (to[v] >= 0) continue;
        to[v] = op__graph_value(g, branch->values[v].name);
        if (to[v] < 0) {
            free(to);
            return NULL;
        }
        g->values[to[v]] = branch->values[v];
    }
    return to;
}

static enum op_status inline_one(struct op_graph *g, int at, const struct op_graph *branch) {
    struct op_node *n = g->nodes[at];
    int *to = carry_values(g, n, branch);
    if (!to) return OP_NOMEM;
    op__graph_remove(g, at);
    for (int i = 0; i < branch->n_nodes; i++) {
        struct op_node *moved = branch->nodes[i];
        for (int k = 0; k < moved->n_in + moved->n_captures; k++)
            if (moved->in[k] >= 0) moved->in[k] = to[moved->in[k]];
        for (int o = 0; o < moved->n_out; o++)
            if (moved->out[o] >= 0) moved->out[o] = to[moved->out[o]];
        moved->graph = g;
        for (int a = 0; a < moved->n_attrs; a++)
            if (moved->attrs[a].kind == OP_ATTR_GRAPH) moved->attrs[a].g->parent = g;
        if (!op__graph_insert(g, at + i, moved)) {
            free(to);
            return OP_NOMEM;
        }
    }
    for (int o = 0; o < n->n_out; o++)
        if (n->out[o] >= 0) op__graph_replace(g, n->out[o], to[branch->outputs[o]]);
    free(to);
    return OP_OK;
}

static enum op_status run(struct op_graph *g, int *changed, struct op_error *err) {
    (void)err;
    for (int i = 0; i < g->n_nodes; i++) {
        const struct op_graph *branch = g->nodes[i] ? chosen(g, g->nodes[i]) : NULL;
        if (!branch) continue;
        enum op_status st = inline_one(g, i, branch);
        if (st != OP_OK) return st;
        ++*changed;
        i--; /* the first of the nodes that came may be an If too */
    }
    return OP_OK;
}

static const struct op_pass pass_inline_if = {.name = "inline_if", .order = 320, .run = run};
OP_PASS_REGISTER(pass_inline_if);
