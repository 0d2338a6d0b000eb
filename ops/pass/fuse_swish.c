/* Order 520: x * Sigmoid(x) becomes Swish, x * HardSigmoid(x) with slope 1/6 and offset 1/2 HardSwish, as exporters write them. */
#include "ops/pass/match.h"

#include <math.h>

/* The activation that the node at input `side` of Mul m is of the other input; NULL if it is none. */
static const char *gate_of(const struct op_graph *g, const struct op__links *links, const struct op_node *m, int side) {
    const int gate = m->in[side], x = m->in[1 - side];
    const struct op_node *n;
    if (gate < 0 || x < 0 || links->uses[gate] != 1) return NULL;
    if ((n = op__made_by(g, links, gate, "Sigmoid")) && n->in[0] == x) return "Swish";
    if ((n = op__made_by(g, links, gate, "HardSigmoid")) && n->in[0] == x && fabsf(op__attr_float(n, "alpha", 0.2f) - 1.0f / 6) < 1e-6f &&
        op__attr_float(n, "beta", 0.5f) == 0.5f)
        return "HardSwish";
    return NULL;
}

static enum op_status run(struct op_graph *g, int *changed, struct op_error *err) {
    struct op__links links;
    enum op_status status = op__links_make(g, &links);
    for (int i = 0; status == OP_OK && i < g->n_nodes; i++) {
        struct op_node *m = g->nodes[i];
        if (!m || !op__node_is(m, "Mul") || m->n_in != 2) continue;
        for (int side = 0; side < 2; side++) {
            const char *name = gate_of(g, &links, m, side);
            if (!name) continue;
            const int x = m->in[1 - side];
            op__graph_remove(g, links.producer[m->in[side]]);
            status = op__node_become(m, "", name, 1, &x);
            links.uses[x]--;
            ++*changed;
            break;
        }
    }
    op__links_free(&links);
    return status == OP_OK || !err ? status : op__node_fail(err, NULL, status, "out of memory while fusing");
}

static const struct op_pass fuse_swish = {.name = "fuse_swish", .order = 520, .differentiable = true, .run = run};
OP_PASS_REGISTER(fuse_swish);
