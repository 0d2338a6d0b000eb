/* Reverse mode over a graph: see grad.h. What: walks the forward nodes backwards; a node is on the way when one of its outputs has a
 * gradient and one of its inputs leads to a value that is asked for. Gradients that meet in one value are added by Sum in the order
 * in which they came, which is that of the graph: so the bits are fixed. */
#include "ops/grad.h"

#include <stdlib.h>
#include <string.h>

#include "ops/model.h"

extern const struct op_grad_rows *const __start_quern_grads[] __attribute__((weak, visibility("hidden")));
extern const struct op_grad_rows *const __stop_quern_grads[] __attribute__((weak, visibility("hidden")));

op_grad_fn *op__grad_find(const struct op_desc *desc) {
    if (desc->grad) return desc->grad;
    // cppcheck-suppress comparePointers ; both ends of one section
    for (const struct op_grad_rows *const *t = __start_quern_grads; t < __stop_quern_grads; t++)
        for (int i = 0; i < (*t)->n; i++)
            if (!strcmp((*t)->rows[i].name, desc->name) && !strcmp((*t)->rows[i].domain, desc->domain ? desc->domain : "")) return (*t)->rows[i].grad;
    return NULL;
}

/* --- emitting ---------------------------------------------------------------------------------- */

struct op_node *op__emit(struct op_grad *g, const char *domain, const char *op_type, int n_in, const int *in, int n_out, int *out) {
    for (int i = 0; i < n_out; i++) out[i] = -1;
    if (g->failed) return NULL;
    struct op_node *n = op__graph_node(g->graph, g->graph->n_nodes, domain, op_type, g->node ? g->node->name : "loss", n_in, n_out);
    if (!n) {
        g->failed = true;
        return NULL;
    }
    for (int i = 0; i < n_in; i++) n->in[i] = in[i];
    for (int i = 0; i < n_out; i++) {
        n->out[i] = out[i] = op__graph_value(g->graph, NULL);
        g->failed |= out[i] < 0;
    }
    return n;
}

static int emit(struct op_grad *g, const char *domain, const char *op_type, int n_in, const int *in) {
    int out;
    for (int i = 0; i < n_in; i++)
        if (in[i] < 0) return -1;
    op__emit(g, domain, op_type, n_in, in, 1, &out);
    return out;
}

int op__emit1(struct op_grad *g, const char *op_type, int a) {
    return emit(g, "", op_type, 1, (int[]){a});
}
int op__emit2(struct op_grad *g, const char *op_type, int a, int b) {
    return emit(g, "", op_type, 2, (int[]){a, b});
}
int op__emit3(struct op_grad *g, const char *op_type, int a, int b, int c) {
    return emit(g, "", op_type, 3, (int[]){a, b, c});
}
int op__emit_quern(struct op_grad *g, const char *op_type, int n_in, const int *in) {
    return emit(g, "quern", op_type, n_in, in);
}

int op__emit_scalar(struct op_grad *g, int like, double value) {
    int out;
    if (like < 0) return -1;
    struct op_node *n = op__emit(g, "quern", "Fill", 1, &like, 1, &out);
    if (n && op__attr_set_float(g->graph, n, "value", (float)value) != OP_OK) g->failed = true;
    return out;
}

int op__emit_ints(struct op_grad *g, const int64_t *values, int64_t n) {
    void *data;
    if (g->failed) return -1;
    int v = op__graph_const(g->graph, NULL, OP_I64, 1, &n, &data);
    if (v < 0) g->failed = true;
    else if (n) memcpy(data, values, (size_t)n * sizeof *values);
    return v;
}

int op__sum_to(struct op_grad *g, int v, int like) {
    return emit(g, "quern", "SumTo", 2, (int[]){v, like});
}
int op__reshape_like(struct op_grad *g, int v, int like) {
    return emit(g, "quern", "ReshapeLike", 2, (int[]){v, like});
}

void op__attr_copy(struct op_grad *g, struct op_node *n, const char *name) {
    const struct op_attr *a = op__attr(g->node, name);
    if (!a || !n) return;
    enum op_status st = OP_OK;
    if (a->kind == OP_ATTR_INT) st = op__attr_set_int(g->graph, n, name, a->i);
    else if (a->kind == OP_ATTR_FLOAT) st = op__attr_set_float(g->graph, n, name, a->f);
    else if (a->kind == OP_ATTR_STRING) st = op__attr_set_string(g->graph, n, name, a->s.data);
    else if (a->kind == OP_ATTR_INTS) st = op__attr_set_ints(g->graph, n, name, a->ints, a->n);
    else if (a->kind == OP_ATTR_FLOATS) st = op__attr_set_floats(g->graph, n, name, a->floats, a->n);
    if (st != OP_OK) g->failed = true;
}

void op__attrs_copy(struct op_grad *g, struct op_node *n) {
    for (int i = 0; i < g->node->n_attrs; i++) op__attr_copy(g, n, g->node->attrs[i].name);
}

void op__grad_set(struct op_grad *g, int i, int v) {
    if (i < g->n_in && g->wants[i]) g->dx[i] = v;
}

enum op_status op__grad_refuse(struct op_grad *g, const char *why) {
    return op__node_fail(g->err, g->node, OP_UNSUPPORTED, "its gradient is not supported %s", why);
}

/* --- the backward pass --------------------------------------------------------------------------- */

struct back {
    struct op_graph *g;
    struct op_error *err;
    bool *leads;  /* value → whether it leads from a value asked for */
    int **parts;  /* value → the gradients that meet there */
    int *n_parts;
    int n_values; /* of the forward graph */
};

static bool add_part(struct back *b, int v, int grad) {
    int *grown = realloc(b->parts[v], ((size_t)b->n_parts[v] + 1) * sizeof *grown);
    if (!grown) return false;
    b->parts[v] = grown;
    grown[b->n_parts[v]++] = grad;
    return true;
}

/* The gradient of value v: the sum of its parts; -1: none. */
static int gather(struct back *b, struct op_grad *g, int v) {
    int n = v < 0 ? 0 : b->n_parts[v], sum;
    if (n == 0) return -1;
    if (n == 1) return b->parts[v][0];
    op__emit(g, "", "Sum", n, b->parts[v], 1, &sum);
    b->n_parts[v] = 1;
    b->parts[v][0] = sum;
    return sum;
}

static enum op_status out_of_memory(struct back *b) {
    return op__model_fail(b->g->model, b->err, OP_NOMEM, "out of memory for the backward pass");
}

static enum op_status back_node(struct back *b, const struct op_node *n) {
    bool on_way = false, wanted = false;
    int total = n->n_in + n->n_captures;
    for (int i = 0; i < n->n_out; i++) on_way |= n->out[i] >= 0 && b->n_parts[n->out[i]] > 0;
    for (int i = 0; i < total; i++) wanted |= n->in[i] >= 0 && b->leads[n->in[i]];
    if (!on_way || !wanted) return OP_OK;
    int *scratch = malloc(((size_t)n->n_out + (size_t)total + 2) * sizeof *scratch);
    bool *wants = calloc((size_t)total + 1, sizeof *wants);
    enum op_status st = scratch && wants ? OP_OK : out_of_memory(b);
    if (st == OP_OK) {
        int *dy = scratch, *dx = scratch + n->n_out;
        struct op_grad g = {.graph = b->g, .node = n, .in = n->in, .out = n->out, .n_in = n->n_in, .n_out = n->n_out, .dy = dy, .wants = wants, .dx = dx, .err = b->err};
        for (int i = 0; i < total; i++) {
            wants[i] = n->in[i] >= 0 && b->leads[n->in[i]];
            dx[i] = -1;
        }
        for (int i = 0; i < n->n_out; i++) dy[i] = gather(b, &g, n->out[i]);
        op_grad_fn *grad = op__grad_find(n->desc);
        if (!grad) st = op__node_fail(b->err, n, OP_UNSUPPORTED, "the operator has no gradient: freeze what lies before it, or take another");
        else st = grad(&g);
        if (st == OP_OK && g.failed) st = out_of_memory(b);
        for (int i = 0; i < n->n_in && st == OP_OK; i++)
            if (wants[i] && dx[i] >= 0 && !add_part(b, n->in[i], dx[i])) st = out_of_memory(b);
    }
    free(scratch);
    free(wants);
    return st;
}

/* Marks what leads from wrt. */
static void mark(struct back *b, const int *wrt, int n) {
    for (int i = 0; i < n; i++) b->leads[wrt[i]] = true;
    for (int k = 0; k < b->g->n_nodes; k++) {
        const struct op_node *node = b->g->nodes[k];
        bool leads = false;
        for (int i = 0; i < node->n_in + node->n_captures; i++) leads |= node->in[i] >= 0 && b->leads[node->in[i]];
        for (int i = 0; i < node->n_out && leads; i++)
            if (node->out[i] >= 0) b->leads[node->out[i]] = true;
    }
}

enum op_status op__grad_build(struct op_graph *graph, int loss, const int *wrt, int n, int *dw, struct op_error *err) {
    struct back b = {.g = graph, .err = err, .n_values = graph->n_values};
    size_t room = (size_t)graph->n_values + 1;
    b.leads = calloc(room, sizeof *b.leads);
    b.parts = calloc(room, sizeof *b.parts);
    b.n_parts = calloc(room, sizeof *b.n_parts);
    enum op_status st = b.leads && b.parts && b.n_parts ? OP_OK : out_of_memory(&b);
    if (st == OP_OK) {
        struct op_grad g = {.graph = graph, .err = err};
        int n_nodes = graph->n_nodes;
        mark(&b, wrt, n);
        int one = op__emit_scalar(&g, loss, 1);
        if (one < 0 || !add_part(&b, loss, one)) st = out_of_memory(&b);
        for (int k = n_nodes - 1; k >= 0 && st == OP_OK; k--) st = back_node(&b, graph->nodes[k]);
        for (int i = 0; i < n && st == OP_OK; i++) dw[i] = gather(&b, &g, wrt[i]);
        if (st == OP_OK && g.failed) st = out_of_memory(&b);
    }
    for (int v = 0; b.parts && v < b.n_values; v++) free(b.parts[v]);
    free(b.leads);
    free(b.parts);
    free(b.n_parts);
    return st;
}
