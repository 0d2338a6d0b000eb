/* Takes out nodes none of whose outputs are used. */
#include "ops/graph.h"

#include <stdlib.h>

static enum op_status run(struct op_graph *g, int *changed, struct op_error *err) {
    int *uses = op__graph_uses(g);
    (void)err;
    if (!uses) return OP_NOMEM;
    for (int i = g->n_nodes - 1; i >= 0; i--) { /* backwards: a user goes before what it used */
        struct op_node *n = g->nodes[i];
        bool used = false;
        for (int o = 0; n && o < n->n_out; o++) used |= n->out[o] >= 0 && uses[n->out[o]];
        if (!n || used) continue;
        for (int k = 0; k < n->n_in + n->n_captures; k++)
            if (n->in[k] >= 0) uses[n->in[k]]--;
        op__graph_remove(g, i);
        ++*changed;
    }
    free(uses);
    return OP_OK;
}

static const struct op_pass pass_dead = {.name = "dead", .order = 900, .run = run};
OP_PASS_REGISTER(pass_dead);
