/* Order 600: what follows a Conv, Gemm or MatMul with constant f32 weights and can be done while its result is in registers or cache
 * becomes part of it: a bias (MatMul), a sum with another value (Conv), an activation. The last node of the chain becomes quern's
 * FusedConv, FusedGemm or FusedMatMul, so that every input is there when it runs. The steps are the same, in the same
 * order, each rounded: not one bit changes.
 *
 * Shapes are not known here. A sum whose other side broadcasts is FusedConv's own concern; a MatMul takes a bias only
 * where its weights say that it fits. */
#include "ops/pass/match.h"

#include <math.h>
#include <string.h>

#include "ops/op/product.h"

/* A limit of Clip: absent, or a constant f32 scalar. */
static bool limit_of(const struct op_graph *g, const struct op_node *n, int index, float dflt, float *dst) {
    const struct op_tensor *t = index < n->n_in ? op__graph_constant(g, n->in[index]) : NULL;
    *dst = dflt;
    if (index >= n->n_in || n->in[index] < 0) return true;
    if (!t || t->dtype != OP_F32 || op_tensor_count(t) != 1) return false;
    *dst = *(const float *)t->data;
    return *dst == *dst;
}

/* Parameters of the activations that have some. */
static const struct {
    const char *name, *a_name, *b_name;
    float a, b;
} parameters[] = {
    {"LeakyRelu", "alpha", NULL, 0.01f, 0}, {"Elu", "alpha", NULL, 1, 0}, {"HardSigmoid", "alpha", "beta", 0.2f, 0.5f},
};

bool op__activation_of(const struct op_graph *g, const struct op_node *u, int v, struct op__fused_activation *act) {
    *act = (struct op__fused_activation){0};
    if (!u || u->domain[0] || u->n_in < 1 || u->in[0] != v) return false;
    act->name = u->op_type;
    if (op__node_is(u, "Clip")) return limit_of(g, u, 1, -INFINITY, &act->a) && limit_of(g, u, 2, INFINITY, &act->b);
    if (op__node_is(u, "Swish")) {
        act->name = "Silu";
        return op__attr_float(u, "alpha", 1) == 1;
    }
    if (op__node_is(u, "Gelu") && strcmp(op__attr_string(u, "approximate", "none"), "tanh") == 0) act->name = "GeluTanh";
    for (size_t i = 0; i < sizeof parameters / sizeof *parameters; i++) {
        if (!op__node_is(u, parameters[i].name)) continue;
        act->a = op__attr_float(u, parameters[i].a_name, parameters[i].a);
        act->b = parameters[i].b_name ? op__attr_float(u, parameters[i].b_name, parameters[i].b) : 0;
    }
    return op__activation_find(act->name) != K_COPY;
}

static const char *fused_name(const struct op_graph *g, const struct op_node *n) {
    const struct op_tensor *w = n->n_in > 1 ? op__graph_constant_type(g, n->in[1]) : NULL;
    if (n->domain[0] || !w || w->dtype != OP_F32 || n->n_captures) return NULL;
    if (op__node_is(n, "Conv") && w->rank >= 3 && w->rank <= 5) return "FusedConv";
    if (op__node_is(n, "Gemm")) return "FusedGemm";
    return op__node_is(n, "MatMul") && w->rank >= 2 ? "FusedMatMul" : NULL;
}

/* The value that node u adds to v as a bias of MatMul n; -1. */
static int bias_of(const struct op_graph *g, const struct op_node *n, const struct op_node *u, int v) {
    if (!op__node_is(n, "MatMul") || !op__node_is(u, "Add")) return -1;
    const int other = op__other_input(u, v);
    const struct op_tensor *b = op__graph_constant_type(g, other), *w = op__graph_constant_type(g, n->in[1]);
    return b && b->dtype == OP_F32 && b->rank == 1 && b->dims[0] == w->dims[w->rank - 1] ? other : -1;
}

static enum op_status fuse_at(struct op_graph *g, struct op__links *links, int at, int *changed) {
    struct op_node *n = g->nodes[at], *u;
    const char *name = fused_name(g, n);
    int in[4] = {-1, -1, -1, -1}, v = n->out[0], last = at;
    struct op__fused_activation act = {0};
    if (!name) return OP_OK;
    for (int i = 0; i < n->n_in && i < 3; i++) in[i] = n->in[i];

    if ((u = op__sole_user(g, links, v)) && in[2] < 0 && (in[2] = bias_of(g, n, u, v)) >= 0) {
        last = links->user[v];
        v = u->out[0];
    }
    if (op__node_is(n, "Conv") && (u = op__sole_user(g, links, v)) && op__node_is(u, "Add") && (in[3] = op__other_input(u, v)) >= 0) {
        last = links->user[v];
        v = u->out[0];
    }
    if ((u = op__sole_user(g, links, v)) && op__activation_of(g, u, v, &act)) last = links->user[v];
    else act.name = NULL;
    if (last == at) return OP_OK;

    struct op_node *f = g->nodes[last];
    enum op_status status = op__node_become(f, "quern", name, in[3] >= 0 ? 4 : in[2] >= 0 ? 3 : 2, in);
    if (status != OP_OK) return status;
    f->attrs = n->attrs;
    f->n_attrs = n->n_attrs;
    f->name = n->name;
    if (act.name) {
        if ((status = op__attr_set_string(g, f, "activation", act.name)) != OP_OK || (status = op__attr_set_float(g, f, "activation_a", act.a)) != OP_OK ||
            (status = op__attr_set_float(g, f, "activation_b", act.b)) != OP_OK)
            return status;
    }
    /* The nodes between go: from n along the chain of sole users up to the last. */
    for (int p = at; p != last;) {
        const int next = links->user[g->nodes[p]->out[0]];
        op__graph_remove(g, p);
        p = next;
    }
    for (int i = 0; i < f->n_in; i++)
        if (f->in[i] >= 0 && links->user[f->in[i]] < last) links->user[f->in[i]] = last;
    ++*changed;
    return OP_OK;
}

static enum op_status run(struct op_graph *g, int *changed, struct op_error *err) {
    struct op__links links;
    enum op_status status = op__links_make(g, &links);
    for (int i = 0; status == OP_OK && i < g->n_nodes; i++)
        if (g->nodes[i]) status = fuse_at(g, &links, i, changed);
    op__links_free(&links);
    return status == OP_OK || !err ? status : op__node_fail(err, NULL, status, "out of memory while fusing");
}

static const struct op_pass fuse_epilogue = {.name = "fuse_epilogue", .order = 600, .run = run};
OP_PASS_REGISTER(fuse_epilogue);
