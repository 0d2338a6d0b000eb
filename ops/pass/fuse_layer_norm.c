/* Order 540: normalisations of rows that exporters write out become one node:
 *
 *   LayerNormalization   d = x - ReduceMean(x);  d / Sqrt(ReduceMean(d^2) + epsilon) * scale [+ bias]
 *   RMSNormalization     x * (1 / Sqrt(ReduceMean(x^2) + epsilon)) * scale,  or x / Sqrt(...) * scale
 *
 * over the last axis, with a constant f32 scale (and bias) of rank 1; the square is Pow(., 2) or a product with itself, the quotient a Div or
 * a Reciprocal and a Mul. Values between must have no other use.
 *
 * The result is not bit for bit that of the nodes: a row is multiplied by 1 / sqrt(...) where they divide, and its sums are those of
 * the kernel layer_norm; each is off by a few roundings of the exact value, as before. A scale of several values that
 * stretched a last axis of 1, where all is 0 before the scale, is not such a normalisation and is refused by the node. */
#include "ops/pass/match.h"

#include <math.h>

struct match {
    const struct op_graph *g;
    const struct op__links *links;
    int gone[12], n_gone; /* positions of the nodes that go */
    int x, scale, bias, last;
    float epsilon;
    bool centred;
};

static const struct op_node *made(struct match *m, int v, const char *type) {
    const struct op_node *n = op__made_by(m->g, m->links, v, type);
    if (n && m->n_gone < 12) m->gone[m->n_gone++] = m->links->producer[v];
    return n;
}

/* The input of a mean over the last axis, which v is; -1. */
static int mean_of(struct match *m, int v, int uses) {
    const struct op_node *n = v >= 0 && m->links->uses[v] == uses ? made(m, v, "ReduceMean") : NULL;
    const struct op_tensor *axes = n && n->n_in == 2 ? op__graph_constant(m->g, n->in[1]) : NULL;
    if (!axes || axes->dtype != OP_I64 || op_tensor_count(axes) != 1 || *(const int64_t *)axes->data != -1 || !op__attr_int(n, "keepdims", 1)) return -1;
    return n->in[0];
}

/* The value whose square v is; *uses is how often the square uses it. */
static int root_of(struct match *m, int v, int *uses) {
    const struct op_node *n;
    if (v < 0 || m->links->uses[v] != 1) return -1;
    *uses = 1;
    if ((n = made(m, v, "Pow"))) return op__is_scalar(m->g, n->in[1], 2) ? n->in[0] : -1;
    *uses = 2;
    return (n = made(m, v, "Mul")) && n->n_in == 2 && n->in[0] == n->in[1] ? n->in[0] : -1;
}

/* v = Sqrt(ReduceMean(d^2) + epsilon): gives d. */
static int deviation_of(struct match *m, int v, int *uses) {
    const struct op_node *root = v >= 0 && m->links->uses[v] == 1 ? made(m, v, "Sqrt") : NULL;
    const struct op_node *sum = root && m->links->uses[root->in[0]] == 1 ? made(m, root->in[0], "Add") : NULL;
    for (int side = 0; sum && side < 2; side++) {
        const struct op_tensor *e = op__graph_constant(m->g, sum->in[side]);
        if (!e || e->dtype != OP_F32 || op_tensor_count(e) != 1 || e->rank > 1) continue;
        m->epsilon = *(const float *)e->data;
        const int square = mean_of(m, sum->in[1 - side], 1);
        return square < 0 ? -1 : root_of(m, square, uses);
    }
    return -1;
}

/* Node n is d / Sqrt(...), or d times the reciprocal of it: gives d. */
static int quotient(struct match *m, const struct op_node *n) {
    int uses, d = -1;
    if (op__node_is(n, "Div") && n->n_in == 2) return deviation_of(m, n->in[1], &uses) == n->in[0] && m->links->uses[n->in[0]] == uses + 1 ? n->in[0] : -1;
    for (int side = 0; d < 0 && op__node_is(n, "Mul") && n->n_in == 2 && side < 2; side++) {
        const int inverse = n->in[side];
        const struct op_node *r;
        m->n_gone = 0;
        if (inverse < 0 || m->links->uses[inverse] != 1) continue;
        if ((r = made(m, inverse, "Reciprocal"))) d = deviation_of(m, r->in[0], &uses);
        else if ((r = made(m, inverse, "Div")) && op__is_scalar(m->g, r->in[0], 1)) d = deviation_of(m, r->in[1], &uses);
        if (d != n->in[1 - side]) d = -1;
    }
    return d;
}

static bool is_row(const struct op_graph *g, int v) {
    const struct op_tensor *t = op__graph_constant(g, v);
    return t && t->dtype == OP_F32 && t->rank == 1;
}

/* From the quotient's value v on: * scale [+ bias]. */
static bool follow(struct match *m, int v) {
    const struct op_node *times = op__sole_user(m->g, m->links, v);
    if (!times || !op__node_is(times, "Mul") || !is_row(m->g, m->scale = op__other_input(times, v))) return false;
    m->last = m->links->user[v];
    m->bias = -1;
    const int scaled = times->out[0];
    const struct op_node *plus = m->centred ? op__sole_user(m->g, m->links, scaled) : NULL;
    if (!plus || !op__node_is(plus, "Add") || !is_row(m->g, op__other_input(plus, scaled))) return true;
    m->gone[m->n_gone++] = m->last;
    m->bias = op__other_input(plus, scaled);
    m->last = m->links->user[scaled];
    return true;
}

static bool match_at(const struct op_graph *g, const struct op__links *links, int at, struct match *m) {
    const struct op_node *n = g->nodes[at];
    *m = (struct match){.g = g, .links = links};
    if (!n || n->n_out != 1 || (!op__node_is(n, "Div") && !op__node_is(n, "Mul"))) return false;
    const int d = quotient(m, n);
    if (d < 0) return false;
    m->gone[m->n_gone++] = at;
    m->x = d;
    const int n_rms = m->n_gone;
    const struct op_node *minus = made(m, d, "Sub"); /* x - mean(x), the mean used here alone */
    m->centred = minus && minus->n_in == 2 && mean_of(m, minus->in[1], 1) == minus->in[0];
    if (m->centred) m->x = minus->in[0];
    else m->n_gone = n_rms;
    return follow(m, n->out[0]);
}

static enum op_status fuse(struct op_graph *g, const struct match *m) {
    struct op_node *n = g->nodes[m->last];
    const int in[3] = {m->x, m->scale, m->bias};
    for (int i = 0; i < m->n_gone; i++) op__graph_remove(g, m->gone[i]);
    enum op_status status = op__node_become(n, "", m->centred ? "LayerNormalization" : "RMSNormalization", m->bias >= 0 ? 3 : 2, in);
    if (status == OP_OK) status = op__attr_set_int(g, n, "axis", -1);
    return status == OP_OK ? op__attr_set_float(g, n, "epsilon", m->epsilon) : status;
}

static enum op_status run(struct op_graph *g, int *changed, struct op_error *err) {
    struct op__links links;
    enum op_status status = op__links_make(g, &links);
    for (int i = 0; status == OP_OK && i < g->n_nodes; i++) {
        struct match m;
        if (!match_at(g, &links, i, &m)) continue;
        status = fuse(g, &m);
        op__links_free(&links); /* uses of x and of the constants have changed */
        if (status == OP_OK) status = op__links_make(g, &links);
        ++*changed;
    }
    op__links_free(&links);
    return status == OP_OK || !err ? status : op__node_fail(err, NULL, status, "out of memory while fusing");
}

static const struct op_pass fuse_layer_norm = {.name = "fuse_layer_norm", .order = 540, .run = run};
OP_PASS_REGISTER(fuse_layer_norm);
