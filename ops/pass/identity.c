/* Takes out what does nothing in inference: Identity, and Dropout that is not asked to train and whose mask nobody reads. */
#include "ops/graph.h"

#include <stdlib.h>

static bool is_false(const struct op_tensor *t) {
    return t && t->dtype == OP_BOOL && op_tensor_count(t) == 1 && !*(const uint8_t *)t->data;
}

static bool does_nothing(const struct op_graph *g, const struct op_node *n, const int *uses) {
    if (n->n_in < 1 || n->n_out < 1 || n->in[0] < 0 || n->out[0] < 0) return false;
    if (op__node_is(n, "Identity")) return true;
    if (!op__node_is(n, "Dropout")) return false;
    if (n->n_out > 1 && n->out[1] >= 0 && uses[n->out[1]]) return false;
    return n->n_in < 3 || n->in[2] < 0 || is_false(op__graph_constant(g, n->in[2]));
}

static enum op_status run(struct op_graph *g, int *changed, struct op_error *err) {
    int *uses = op__graph_uses(g), *to = malloc(((size_t)g->n_values + 1) * sizeof *to);
    (void)err;
    if (!uses || !to) {
        free(uses);
        free(to);
        return OP_NOMEM;
    }
    for (int v = 0; v < g->n_values; v++) to[v] = v;
    for (int i = 0; i < g->n_nodes; i++) { /* in order, so that chains collapse in one walk */
        struct op_node *n = g->nodes[i];
        if (!n) continue;
        for (int k = 0; k < n->n_in + n->n_captures; k++)
            if (n->in[k] >= 0) n->in[k] = to[n->in[k]];
        if (!does_nothing(g, n, uses)) continue;
        to[n->out[0]] = n->in[0];
        op__graph_remove(g, i);
        ++*changed;
    }
    for (int o = 0; o < g->n_outputs; o++) g->outputs[o] = to[g->outputs[o]];
    free(uses);
    free(to);
    return OP_OK;
}

static const struct op_pass pass_identity = {.name = "identity", .order = 200, .run = run};
OP_PASS_REGISTER(pass_identity);
