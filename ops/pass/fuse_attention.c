/* Order 550: attention written out becomes quern's FusedAttention:
 *
 *     MatMul(q, k) [* or / a constant] [+ mask] -> Softmax over the last axis -> MatMul(., v)
 *
 * with the chains of Reshape, Transpose, Squeeze, Unsqueeze, Slice, Split, Gather by one index and Expand that lead to q, k and v (and
 * products with constants among them), and those of Reshape, Transpose and their kind that follow. That is what torch, Keras and the
 * Llama exporters write, with projections apart or packed. The nodes before are left to whoever else uses them (the pass `dead` takes the
 * rest); scores, weights and the result must have no other use.
 *
 * One of q and k must come through a Transpose of rank 3 or more, so that what is fused is attention over matrices.
 *
 * Rounding: the scale is applied to the scores and not to q or k, where it was there; e^x is divided by its sum after the product with
 * v; beyond 512 keys the sum is made in blocks (attention_f32.c). Each is a few roundings of the exact value, as before. */
#include "ops/op/view.h"
#include "ops/pass/match.h"

#include <string.h>

enum { CHAIN_MAX = 12, INPUTS_MAX = 8, OUTPUTS_MAX = 16 };

struct chain {
    struct op_node *nodes[CHAIN_MAX]; /* from the source on */
    int64_t outputs[CHAIN_MAX];
    int n, source;
    bool matrices; /* a Transpose of rank 3 or more is among them */
};

struct match {
    const struct op_graph *g;
    const struct op__links *links;
    struct chain q, k, v, y;
    int mask, result, last; /* values; position of the last node */
    int gone[CHAIN_MAX + 8], n_gone;
    double scale;
};

/* If n multiplies its other input by a constant f32, that input and the factor. */
static int scaled(const struct op_graph *g, const struct op_node *n, double *factor) {
    for (int side = 0; n->n_in == 2 && side < 2; side++) {
        const struct op_tensor *c = op__graph_constant(g, n->in[side]);
        if (!c || c->dtype != OP_F32 || op_tensor_count(c) != 1 || c->rank > 1 || n->in[1 - side] < 0) continue;
        const double x = (double)*(const float *)c->data;
        if (op__node_is(n, "Mul")) *factor = x;
        else if (op__node_is(n, "Div") && side == 1 && x != 0) *factor = 1 / x;
        else continue;
        return n->in[1 - side];
    }
    return -1;
}

static bool joins(const struct op_node *n) {
    return op__view_knows(n) && n->n_in >= 1 && n->n_in <= INPUTS_MAX && n->n_out <= OUTPUTS_MAX && n->in[0] >= 0;
}

static bool of_matrices(const struct op_node *n) {
    int64_t rank;
    return op__node_is(n, "Transpose") && op__attr_ints(n, "perm", &rank) && rank >= 3;
}

/* Walks from value v back to where it is computed. */
static void trace(struct match *m, int v, struct chain *c) {
    *c = (struct chain){0};
    while (c->n < CHAIN_MAX && m->links->producer[v] >= 0) {
        const int at = m->links->producer[v];
        struct op_node *n = m->g->nodes[at];
        double factor;
        int x;
        if (joins(n)) {
            c->matrices |= of_matrices(n);
            memmove(c->nodes + 1, c->nodes, (size_t)c->n * sizeof *c->nodes);
            memmove(c->outputs + 1, c->outputs, (size_t)c->n++ * sizeof *c->outputs);
            c->nodes[0] = n;
            c->outputs[0] = 0;
            while (n->out[c->outputs[0]] != v) c->outputs[0]++;
            v = n->in[0];
        } else if (m->links->uses[v] == 1 && (x = scaled(m->g, n, &factor)) >= 0) {
            m->scale *= factor;
            v = x;
        } else {
            break;
        }
    }
    c->source = v;
}

/* And from the result on to where it is used. */
static void follow(struct match *m, int v) {
    struct chain *c = &m->y;
    struct op_node *u;
    while (c->n < CHAIN_MAX && (u = op__sole_user(m->g, m->links, v)) && joins(u) && u->in[0] == v && !op__node_is(u, "Slice") && !op__node_is(u, "Split") &&
           !op__node_is(u, "Gather") && !op__node_is(u, "Expand")) {
        c->nodes[c->n++] = u;
        m->gone[m->n_gone++] = m->last;
        m->last = m->links->user[v];
        v = u->out[0];
    }
    m->result = v;
}

/* Back from the softmax's input: the mask, the scale, the product of q and k. */
static bool match_scores(struct match *m, int v) {
    const struct op_node *n = m->links->uses[v] == 1 && m->links->producer[v] >= 0 ? m->g->nodes[m->links->producer[v]] : NULL;
    double factor;
    int x;
    m->mask = -1;
    if (n && op__node_is(n, "Add") && n->n_in == 2)
        for (int side = 0; side < 2 && m->mask < 0; side++) {
            const int at = m->links->producer[v], s = n->in[side];
            const struct op_node *p = s >= 0 && m->links->uses[s] == 1 && m->links->producer[s] >= 0 ? m->g->nodes[m->links->producer[s]] : NULL;
            if (!p || n->in[1 - side] < 0 || (!op__node_is(p, "MatMul") && scaled(m->g, p, &factor) < 0)) continue;
            m->mask = n->in[1 - side];
            m->gone[m->n_gone++] = at;
            v = s;
            n = p;
        }
    while (n && m->n_gone < 8 && (x = scaled(m->g, n, &factor)) >= 0) {
        m->scale *= factor;
        m->gone[m->n_gone++] = m->links->producer[v];
        v = x;
        n = m->links->uses[v] == 1 && m->links->producer[v] >= 0 ? m->g->nodes[m->links->producer[v]] : NULL;
    }
    if (!n || !op__node_is(n, "MatMul") || n->n_in != 2 || n->in[0] < 0 || n->in[1] < 0) return false;
    m->gone[m->n_gone++] = m->links->producer[v];
    trace(m, n->in[0], &m->q);
    trace(m, n->in[1], &m->k);
    return m->q.matrices || m->k.matrices;
}

static bool match_at(const struct op_graph *g, const struct op__links *links, int at, struct match *m) {
    const struct op_node *soft = g->nodes[at];
    *m = (struct match){.g = g, .links = links, .scale = 1};
    if (!soft || !op__node_is(soft, "Softmax") || op__attr(soft, "coerced") || soft->in[0] < 0) return false;
    const struct op_node *times = op__sole_user(g, links, soft->out[0]);
    if (!times || !op__node_is(times, "MatMul") || times->n_in != 2 || times->in[0] != soft->out[0] || times->in[1] < 0 || times->in[1] == times->in[0])
        return false;
    m->last = links->user[soft->out[0]];
    m->gone[m->n_gone++] = at;
    if (!match_scores(m, soft->in[0])) return false;
    /* The axis must be the last: said so, or by the rank of the transposed matrices. */
    int64_t rank = -1;
    for (int i = 0; i < m->k.n; i++)
        if (of_matrices(m->k.nodes[i])) op__attr_ints(m->k.nodes[i], "perm", &rank);
    const int64_t axis = op__attr_int(soft, "axis", -1);
    if (axis != -1 && (m->k.n == 0 || !of_matrices(m->k.nodes[m->k.n - 1]) || axis != rank - 1)) return false;
    const double before_v = m->scale;
    trace(m, times->in[1], &m->v);
    if (m->scale != before_v) return false; /* a factor of v is not one of the scores */
    follow(m, times->out[0]);
    return true;
}

static enum op_status set_chain(struct op_graph *g, struct op_node *n, const char *name, const char *outputs, const struct chain *c) {
    const enum op_status st = op__attr_set_nodes(g, n, name, c->nodes, c->n);
    return st == OP_OK ? op__attr_set_ints(g, n, outputs, c->outputs, c->n) : st;
}

static enum op_status fuse(struct op_graph *g, struct match *m) {
    static const char *const names[] = {"q", "k", "v", "y"}, *const outputs[] = {"q_outputs", "k_outputs", "v_outputs", "y_outputs"};
    const struct chain *chains[] = {&m->q, &m->k, &m->v, &m->y};
    int in[4 + 4 * CHAIN_MAX * INPUTS_MAX] = {m->q.source, m->k.source, m->v.source, m->mask}, n_in = 4;
    for (int c = 0; c < 4; c++)
        for (int i = 0; i < chains[c]->n; i++)
            for (int k = 1; k < chains[c]->nodes[i]->n_in; k++) in[n_in++] = chains[c]->nodes[i]->in[k];
    struct op_node *n = g->nodes[m->last], *made = op__graph_node(g, m->last, "quern", "FusedAttention", n->name, n_in, 1);
    if (!made) return OP_NOMEM;
    memcpy(made->in, in, (size_t)n_in * sizeof *in);
    made->out[0] = m->result;
    enum op_status st = op__attr_set_float(g, made, "scale", (float)m->scale);
    for (int c = 0; c < 4 && st == OP_OK; c++) st = set_chain(g, made, names[c], outputs[c], chains[c]);
    for (int i = 0; i < m->n_gone; i++) op__graph_remove(g, m->gone[i]); /* all are before the new one */
    op__graph_remove(g, m->last + 1);
    return st;
}

static enum op_status run(struct op_graph *g, int *changed, struct op_error *err) {
    struct op__links links;
    enum op_status status = op__links_make(g, &links);
    for (int i = 0; status == OP_OK && i < g->n_nodes; i++) {
        struct match m;
        if (!match_at(g, &links, i, &m)) continue;
        status = fuse(g, &m);
        op__links_free(&links); /* positions have changed */
        if (status == OP_OK) status = op__links_make(g, &links);
        ++*changed;
    }
    op__links_free(&links);
    return status == OP_OK || !err ? status : op__node_fail(err, NULL, status, "out of memory while fusing");
}

static const struct op_pass fuse_attention = {.name = "fuse_attention", .order = 550, .run = run};
OP_PASS_REGISTER(fuse_attention);
