/* Order 530: x (1 + erf(x / sqrt 2)) / 2 in the forms that exporters write becomes Gelu:
 *     (x * e) * 0.5      x * (e * 0.5)      (x * 0.5) * e      with e = Erf(x / sqrt 2) + 1
 * Values between must have no other use. */
#include "ops/pass/match.h"

#include <math.h>

/* If node n multiplies v by the constant c (or divides it by 1 / c). */
static bool scales(const struct op_graph *g, const struct op_node *n, int v, double c) {
    if (op__node_is(n, "Mul")) return op__is_scalar(g, op__other_input(n, v), c);
    return op__node_is(n, "Div") && n->n_in == 2 && n->in[0] == v && op__is_scalar(g, n->in[1], 1 / c);
}

/* The value x such that v = x * c; -1. */
static int unscaled(const struct op_graph *g, const struct op__links *links, int v, double c) {
    const struct op_node *n = v >= 0 && links->producer[v] >= 0 ? g->nodes[links->producer[v]] : NULL;
    for (int k = 0; n && n->n_in == 2 && k < 2; k++)
        if (scales(g, n, n->in[k], c)) return n->in[k];
    return -1;
}

/* Nodes of a match: those that go, by position, and the last one, which becomes Gelu. */
struct match {
    int gone[5], n_gone;
    struct op_node *last;
};

/* Follows e = Erf(...) + 1, at position `at`, to the product that ends one of the three forms. */
static bool follow(const struct op_graph *g, const struct op__links *links, int x, int e, struct match *m) {
    struct op_node *n = op__sole_user(g, links, e), *last;
    if (!n || !op__node_is(n, "Mul")) return false;
    const int at = links->user[e], other = op__other_input(n, e), out = n->out[0];
    if (other == x || op__is_scalar(g, other, 0.5)) { /* x * e or e * 0.5, then the other factor */
        last = op__sole_user(g, links, out);
        if (!last || (other == x ? !scales(g, last, out, 0.5) : !op__node_is(last, "Mul") || op__other_input(last, out) != x)) return false;
        m->gone[m->n_gone++] = at;
    } else { /* (x * 0.5) * e */
        if (other < 0 || links->uses[other] != 1 || unscaled(g, links, other, 0.5) != x) return false;
        m->gone[m->n_gone++] = links->producer[other];
        last = n;
    }
    m->last = last;
    return true;
}

static bool match_at(const struct op_graph *g, const struct op__links *links, int at, struct match *m, int *x) {
    const struct op_node *erf = g->nodes[at];
    if (!erf || !op__node_is(erf, "Erf") || erf->in[0] < 0 || links->uses[erf->in[0]] != 1) return false;
    *x = unscaled(g, links, erf->in[0], sqrt(0.5));
    const struct op_node *plus = op__sole_user(g, links, erf->out[0]);
    if (*x < 0 || !plus || !op__node_is(plus, "Add") || !op__is_scalar(g, op__other_input(plus, erf->out[0]), 1)) return false;
    *m = (struct match){.gone = {links->producer[erf->in[0]], at, links->user[erf->out[0]]}, .n_gone = 3};
    return follow(g, links, *x, plus->out[0], m);
}

static enum op_status run(struct op_graph *g, int *changed, struct op_error *err) {
    struct op__links links;
    enum op_status status = op__links_make(g, &links);
    for (int i = 0; status == OP_OK && i < g->n_nodes; i++) {
        struct match m;
        int x;
        if (!match_at(g, &links, i, &m, &x)) continue;
        for (int k = 0; k < m.n_gone; k++) op__graph_remove(g, m.gone[k]);
        status = op__node_become(m.last, "", "Gelu", 1, &x);
        links.uses[x]--; /* twice used before */
        ++*changed;
    }
    op__links_free(&links);
    return status == OP_OK || !err ? status : op__node_fail(err, NULL, status, "out of memory while fusing");
}

static const struct op_pass fuse_gelu = {.name = "fuse_gelu", .order = 530, .differentiable = true, .run = run};
OP_PASS_REGISTER(fuse_gelu);
