/* Order 540: products between DequantizeLinear and QuantizeLinear run on bytes: MatMul and Gemm, with what follows them, become quern's
 * QuantMatMul:
 *
 *     dequantize a, b -> product -> [quantize -> dequantize] -> [Add a bias] -> [activation] -> [quantize]
 *
 * The sums are exact integers, where f32 would round each of them. A scaled sum is rounded to bytes once: beside the unfused graph, whose sums and bias
 * are rounded in f32, a result may fall on the other side of a tie and differ by one quantum. What comes after the first rounding is the same, step by
 * step. ONNX Runtime fuses the same way (QLinearMatMul, QGemm, MatMulIntegerToFloat).
 *
 * Nodes that dequantized only for a fused one are dead code afterwards. Parameters must be constants. */
#include "ops/pass/quantized.h"

#include "ops/op/quantized.h"

#include <string.h>

#include "ops/op/product.h"

enum { N_INPUTS = 11 }; /* of QuantMatMul: ops/op/quant_matmul.c */

struct match {
    int in[N_INPUTS];
    bool transposed;
    int64_t n; /* columns; -1: not known */
    int last;  /* position of the node that becomes the fused one */
    struct op__fused_activation act;
};

static void set_bytes(int *in, const struct op__bytes *b) {
    in[0] = b->value;
    in[1] = b->scale;
    in[2] = b->zero;
}

/* The right side: per tensor, or constant with a scale for each column. */
static bool match_b(struct op_graph *g, const struct op__links *links, int v, struct match *m) {
    struct op__bytes b;
    if (!op__read_back(g, links, v, &b)) return false;
    const struct op_tensor *t = op__graph_constant(g, b.value);
    m->n = -1;
    if (t) {
        if (t->rank < 2) return false;
        const int axis = t->rank - (m->transposed ? 2 : 1);
        m->n = t->dims[axis];
        if (b.n_scales != 1 && (op__axis(b.axis, t->rank) != axis || b.n_scales != m->n)) return false;
    } else if (b.n_scales != 1) {
        return false;
    }
    set_bytes(m->in + 3, &b);
    return true;
}

/* C of Gemm: bytes' products as i32 with the product of both scales and no zero point, or a vector of f32. */
static bool match_c(const struct op_graph *g, const struct op__links *links, int v, struct match *m) {
    const struct op_tensor *c = op__graph_constant(g, v);
    const struct op_node *n = op__made_by(g, links, v, "DequantizeLinear");
    m->in[6] = v;
    if (c) return c->dtype == OP_F32 && c->rank == 1 && c->dims[0] == m->n;
    if (!n || n->n_in < 2) return false;
    c = op__graph_constant(g, n->in[0]);
    const struct op_tensor *scale = op__graph_constant(g, n->in[1]), *zero = n->n_in > 2 ? op__graph_constant(g, n->in[2]) : NULL;
    if (!c || c->dtype != OP_I32 || c->rank != 1 || c->dims[0] != m->n || !scale || scale->dtype != OP_F32) return false;
    if (n->n_in > 2 && n->in[2] >= 0) {
        if (!zero || zero->dtype != OP_I32) return false;
        for (int64_t i = 0; i < op_tensor_count(zero); i++)
            if (((const int32_t *)zero->data)[i] != 0) return false;
    }
    const int64_t n_scales = op_tensor_count(scale);
    const struct op_tensor *a = op__graph_constant(g, m->in[1]), *b = op__graph_constant(g, m->in[4]);
    if (n_scales != 1 && n_scales != m->n) return false;
    for (int64_t i = 0; i < m->n; i++) {
        const float want = quantized_scale(a, 0, 1) * quantized_scale(b, i, op_tensor_count(b)), found = quantized_scale(scale, i, n_scales);
        if (!(found >= want * 0.99999f && found <= want * 1.00001f)) return false;
    }
    m->in[6] = n->in[0];
    return true;
}

static bool match_product(struct op_graph *g, const struct op__links *links, const struct op_node *n, struct match *m) {
    struct op__bytes a;
    const bool gemm = op__node_is(n, "Gemm");
    if (!gemm && !op__node_is(n, "MatMul")) return false;
    *m = (struct match){.transposed = gemm && op__attr_int(n, "transB", 0) != 0};
    for (int i = 0; i < N_INPUTS; i++) m->in[i] = -1;
    if (!op__read_back(g, links, n->in[0], &a) || a.n_scales != 1 || !match_b(g, links, n->in[1], m)) return false;
    set_bytes(m->in, &a);
    if (!gemm) return true;
    if (op__attr_int(n, "transA", 0) || op__attr_float(n, "alpha", 1) != 1 || op__attr_float(n, "beta", 1) != 1) return false;
    return n->n_in < 3 || n->in[2] < 0 || match_c(g, links, n->in[2], m);
}

/* A constant vector of f32 that u adds to v, one for each column. */
static int bias_of(const struct op_graph *g, const struct op_node *u, int v, int64_t n) {
    if (!u || !op__node_is(u, "Add")) return -1;
    const int other = op__other_input(u, v);
    const struct op_tensor *t = op__graph_constant(g, other);
    return t && t->dtype == OP_F32 && t->rank == 1 && t->dims[0] == n ? other : -1;
}

/* Bias and activation behind v, if the node has no bias yet; moves on *v. */
static void match_floats(struct op_graph *g, const struct op__links *links, struct match *m, int *v) {
    struct op_node *u = op__sole_user(g, links, *v);
    const int bias = m->in[6] < 0 ? bias_of(g, u, *v, m->n) : -1;
    if (bias >= 0) {
        m->in[6] = bias;
        m->last = links->user[*v];
        *v = u->out[0];
        u = op__sole_user(g, links, *v);
    }
    if (op__activation_of(g, u, *v, &m->act)) {
        m->last = links->user[*v];
        *v = u->out[0];
    } else {
        m->act.name = NULL;
    }
}

/* What follows the product. */
static void match_rest(struct op_graph *g, const struct op__links *links, int at, struct match *m) {
    const struct op_tensor *c = op__graph_constant(g, m->in[6]);
    struct op__bytes q, back;
    int v = g->nodes[at]->out[0], q_at;
    m->last = at;
    if (op__goes_to_bytes(g, links, v, &q, &q_at)) {
        const struct op_node *read = op__sole_user(g, links, q.value);
        m->last = q_at;
        m->in[9] = q.scale;
        m->in[10] = q.zero;
        if (!read || !op__node_is(read, "DequantizeLinear") || !op__read_back(g, links, read->out[0], &back) || !op__same_bytes(g, &q, &back)) return;
        struct match on = *m; /* the way through bytes and back is worth it where something follows */
        int w = read->out[0];
        if (c && c->dtype == OP_F32) return;
        on.in[7] = q.scale, on.in[8] = q.zero;
        on.in[9] = on.in[10] = -1;
        on.last = links->user[q.value];
        match_floats(g, links, &on, &w);
        if (w == read->out[0]) return;
        *m = on;
        v = w;
    } else {
        match_floats(g, links, m, &v);
    }
    if (op__goes_to_bytes(g, links, v, &q, &q_at)) {
        m->last = q_at;
        m->in[9] = q.scale;
        m->in[10] = q.zero;
    }
}

static enum op_status fuse_at(struct op_graph *g, struct op__links *links, int at, int *changed) {
    struct match m;
    const struct op_node *n = g->nodes[at];
    if (!match_product(g, links, n, &m)) return OP_OK;
    match_rest(g, links, at, &m);
    int n_in = N_INPUTS;
    while (n_in > 6 && m.in[n_in - 1] < 0) n_in--;
    struct op_node *f = g->nodes[m.last];
    const char *name = n->name;
    for (int i = 0; i < n->n_in; i++)
        if (i < 2 || (n->in[i] >= 0 && m.in[6] != n->in[i])) op__reads_bytes(g, links, n->in[i]);
    for (int p = at; p != m.last;) { /* the chain up to the last */
        const int next = links->user[g->nodes[p]->out[0]];
        op__graph_remove(g, p);
        p = next;
    }
    enum op_status status = op__node_become(f, "quern", "QuantMatMul", n_in, m.in);
    f->name = name;
    if (status == OP_OK && m.transposed) status = op__attr_set_int(g, f, "transB", 1);
    if (status == OP_OK && m.act.name) {
        status = op__attr_set_string(g, f, "activation", m.act.name);
        if (status == OP_OK) status = op__attr_set_float(g, f, "activation_a", m.act.a);
        if (status == OP_OK) status = op__attr_set_float(g, f, "activation_b", m.act.b);
    }
    if (f->n_out > 0 && f->out[0] >= 0) links->producer[f->out[0]] = m.last;
    for (int i = 0; i < n_in; i++)
        if (f->in[i] >= 0 && links->user[f->in[i]] < m.last) links->user[f->in[i]] = m.last;
    ++*changed;
    return status;
}

static enum op_status run(struct op_graph *g, int *changed, struct op_error *err) {
    struct op__links links;
    enum op_status status = op__links_make(g, &links);
    for (int i = 0; status == OP_OK && i < g->n_nodes; i++)
        if (g->nodes[i]) status = fuse_at(g, &links, i, changed);
    op__links_free(&links);
    return status == OP_OK || !err ? status : op__node_fail(err, NULL, status, "out of memory while fusing");
}

static const struct op_pass fuse_quantized = {.name = "fuse_quantized", .order = 540, .run = run};
OP_PASS_REGISTER(fuse_quantized);
