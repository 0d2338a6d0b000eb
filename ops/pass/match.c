/* What the fusing passes ask of a graph. */
#include "ops/pass/match.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum op_status op__links_make(const struct op_graph *g, struct op__links *links) {
    *links = (struct op__links){.producer = op__graph_producers(g), .uses = op__graph_uses(g), .user = malloc(((size_t)g->n_values + 1) * sizeof(int))};
    if (!links->producer || !links->uses || !links->user) {
        op__links_free(links);
        return OP_NOMEM;
    }
    for (int v = 0; v < g->n_values; v++) links->user[v] = -1;
    for (int i = 0; i < g->n_nodes; i++)
        for (int k = 0; g->nodes[i] && k < g->nodes[i]->n_in + g->nodes[i]->n_captures; k++)
            if (g->nodes[i]->in[k] >= 0) links->user[g->nodes[i]->in[k]] = i;
    return OP_OK;
}

void op__links_free(struct op__links *links) {
    free(links->producer);
    free(links->uses);
    free(links->user);
    *links = (struct op__links){0};
}

struct op_node *op__made_by(const struct op_graph *g, const struct op__links *links, int v, const char *op_type) {
    struct op_node *n = v >= 0 && links->producer[v] >= 0 ? g->nodes[links->producer[v]] : NULL;
    return n && op__node_is(n, op_type) && n->out[0] == v ? n : NULL;
}

struct op_node *op__sole_user(const struct op_graph *g, const struct op__links *links, int v) {
    return v >= 0 && links->uses[v] == 1 && links->user[v] >= 0 ? g->nodes[links->user[v]] : NULL;
}

bool op__is_scalar(const struct op_graph *g, int v, double expected) {
    const struct op_tensor *t = op__graph_constant(g, v);
    if (!t || op_tensor_count(t) != 1 || (t->dtype != OP_F32 && t->dtype != OP_F64)) return false;
    const double value = t->dtype == OP_F32 ? (double)*(const float *)t->data : *(const double *)t->data;
    return fabs(value - expected) <= 1e-6 * fabs(expected);
}

int op__other_input(const struct op_node *n, int v) {
    if (n->n_in != 2 || n->in[0] == n->in[1]) return -1;
    return n->in[0] == v ? n->in[1] : n->in[1] == v ? n->in[0] : -1;
}

enum op_status op__node_become(struct op_node *n, const char *domain, const char *op_type, int n_in, const int *in) {
    const struct op_desc *desc = op__desc_find(domain, op_type, 0);
    int *slots = op__arena_array(n->graph->arena, (size_t)n_in, sizeof *slots);
    if (!desc || !slots) return OP_NOMEM;
    if (n_in) memcpy(slots, in, (size_t)n_in * sizeof *slots);
    n->desc = desc;
    n->op_type = desc->name;
    n->domain = desc->domain ? desc->domain : "";
    n->in = slots;
    n->n_in = n_in;
    n->n_captures = 0;
    n->attrs = NULL;
    n->n_attrs = 0;
    return OP_OK;
}
