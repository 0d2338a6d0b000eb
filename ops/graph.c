/* Building, asking and changing graphs: see graph.h. Arrays grow by doubling inside the arena; what they leave
 * behind is at most what they hold. */
#include "ops/exec.h"

#include <stdlib.h>
#include <string.h>

int op__graph_value(struct op_graph *g, const char *name) {
    if (g->n_values == g->cap_values) {
        int cap = g->cap_values ? g->cap_values * 2 : 32;
        if (cap > OP__VALUES_MAX) return -1;
        struct op_value *all = op__arena_array(g->arena, (size_t)cap, sizeof *all);
        if (!all) return -1;
        if (g->n_values) memcpy(all, g->values, (size_t)g->n_values * sizeof *all);
        g->values = all;
        g->cap_values = cap;
    }
    g->values[g->n_values] = (struct op_value){.name = name, .rank = -1};
    return g->n_values++;
}

bool op__const_fetch(struct op_model *m, struct op_const *c) {
    if (!c->lazy) return true;
    c->t.data = c->owned = op__aligned_alloc(c->mapped_bytes);
    if (!c->owned) {
        m->fetch_failed = true;
        return false;
    }
    memcpy(c->owned, c->mapped, c->mapped_bytes);
    c->lazy = false;
    op__mapped_give_back(m, c->mapped, c->mapped_bytes);
    return true;
}

enum op_status op__graph_set_const(struct op_graph *g, int v, const struct op_tensor *t) {
    struct op_const *c = op__arena_alloc(g->arena, sizeof *c);
    if (!c) return OP_NOMEM;
    c->t = *t;
    if (!op_tensor_count(t)) c->t.data = op__nothing;
    c->owned = t->data;
    c->next = g->model->constants;
    g->model->constants = c;
    g->values[v].constant = c;
    return OP_OK;
}

int op__graph_const(struct op_graph *g, const char *name, enum op_type dtype, int rank, const int64_t *dims, void **data) {
    struct op_tensor t = {.dtype = dtype, .rank = rank};
    if (rank < 0 || rank > OP_RANK_MAX) return -1;
    if (rank) memcpy(t.dims, dims, (size_t)rank * sizeof *dims);
    int64_t bytes = op_tensor_bytes(&t);
    int v = bytes >= 0 ? op__graph_value(g, name) : -1;
    if (v < 0) return -1;
    if (bytes) {
        t.data = op__aligned_alloc((size_t)bytes);
        if (!t.data) return -1;
        memset(t.data, 0, (size_t)bytes);
    }
    if (op__graph_set_const(g, v, &t) != OP_OK) {
        free(t.data);
        return -1;
    }
    if (data) *data = t.data;
    return v;
}

bool op__graph_insert(struct op_graph *g, int at, struct op_node *n) {
    if (g->n_nodes == g->cap_nodes) {
        int cap = g->cap_nodes ? g->cap_nodes * 2 : 32;
        struct op_node **all = op__arena_array(g->arena, (size_t)cap, sizeof(void *));
        if (!all) return false;
        if (g->n_nodes) memcpy(all, g->nodes, (size_t)g->n_nodes * sizeof(void *));
        g->nodes = all;
        g->cap_nodes = cap;
    }
    memmove(&g->nodes[at + 1], &g->nodes[at], (size_t)(g->n_nodes - at) * sizeof(void *));
    g->nodes[at] = n;
    g->n_nodes++;
    return true;
}

struct op_node *op__graph_node(struct op_graph *g, int at, const char *domain, const char *op_type, const char *name, int n_in, int n_out) {
    const struct op_desc *desc = op__desc_find(domain, op_type, 0);
    struct op_node *n = op__arena_alloc(g->arena, sizeof *n);
    int *slots = op__arena_array(g->arena, (size_t)n_in + (size_t)n_out, sizeof *slots);
    if (!desc || !n || !slots) return NULL;
    *n = (struct op_node){.name = name ? name : "",
                          .op_type = desc->name,
                          .domain = desc->domain ? desc->domain : "",
                          .desc = desc,
                          .n_in = n_in,
                          .n_out = n_out,
                          .in = slots,
                          .out = slots + n_in,
                          .graph = g};
    for (int i = 0; i < n_in + n_out; i++) slots[i] = -1;
    return op__graph_insert(g, at, n) ? n : NULL;
}

enum op_status op__node_grow(struct op_node *n, int n_in) {
    int more = n_in - n->n_in;
    if (more <= 0) return OP_OK;
    int *in = op__arena_array(n->graph->arena, (size_t)n_in + (size_t)n->n_captures, sizeof *in);
    if (!in) return OP_NOMEM;
    if (n->n_in) memcpy(in, n->in, (size_t)n->n_in * sizeof *in);
    for (int i = n->n_in; i < n_in; i++) in[i] = -1;
    if (n->n_captures) memcpy(in + n_in, n->in + n->n_in, (size_t)n->n_captures * sizeof *in);
    for (int a = 0; a < n->n_attrs; a++)
        if (n->attrs[a].kind == OP_ATTR_GRAPH)
            for (int k = 0; k < n->attrs[a].g->n_captures; k++) n->attrs[a].g->captures[k].index += more;
    n->in = in;
    n->n_in = n_in;
    return OP_OK;
}

int *op__graph_producers(const struct op_graph *g) {
    int *at = malloc(((size_t)g->n_values + 1) * sizeof *at);
    if (!at) return NULL;
    for (int v = 0; v < g->n_values; v++) at[v] = -1;
    for (int i = 0; i < g->n_nodes; i++)
        for (int o = 0; g->nodes[i] && o < g->nodes[i]->n_out; o++)
            if (g->nodes[i]->out[o] >= 0) at[g->nodes[i]->out[o]] = i;
    return at;
}

int *op__graph_uses(const struct op_graph *g) {
    int *uses = calloc((size_t)g->n_values + 1, sizeof *uses);
    if (!uses) return NULL;
    for (int i = 0; i < g->n_nodes; i++) {
        const struct op_node *n = g->nodes[i];
        for (int k = 0; n && k < n->n_in + n->n_captures; k++)
            if (n->in[k] >= 0) uses[n->in[k]]++;
    }
    for (int i = 0; i < g->n_outputs; i++) uses[g->outputs[i]]++;
    return uses;
}

bool op__graph_is_output(const struct op_graph *g, int v) {
    for (int i = 0; i < g->n_outputs; i++)
        if (g->outputs[i] == v) return true;
    return false;
}

void op__graph_replace(struct op_graph *g, int from, int to) {
    for (int i = 0; i < g->n_nodes; i++) {
        struct op_node *n = g->nodes[i];
        for (int k = 0; n && k < n->n_in + n->n_captures; k++)
            if (n->in[k] == from) n->in[k] = to;
    }
    for (int i = 0; i < g->n_outputs; i++)
        if (g->outputs[i] == from) g->outputs[i] = to;
}

void op__graph_remove(struct op_graph *g, int at) {
    g->nodes[at] = NULL;
}

void op__graph_sweep(struct op_graph *g) {
    int kept = 0;
    for (int i = 0; i < g->n_nodes; i++)
        if (g->nodes[i]) g->nodes[kept++] = g->nodes[i];
    g->n_nodes = kept;
}

enum op_status op__graph_each(struct op_graph *g, enum op_status (*fn)(struct op_graph *g, void *user), void *user) {
    for (int i = 0; i < g->n_nodes; i++)
        for (int a = 0; g->nodes[i] && a < g->nodes[i]->n_attrs; a++)
            if (g->nodes[i]->attrs[a].kind == OP_ATTR_GRAPH) {
                enum op_status st = op__graph_each(g->nodes[i]->attrs[a].g, fn, user);
                if (st != OP_OK) return st;
            }
    return fn(g, user);
}
