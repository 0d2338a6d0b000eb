/* Order 541: what else lies between DequantizeLinear and QuantizeLinear, with one scale each, runs on bytes:
 *
 *     Conv -> [Relu or Clip]               QuantConv: weights constant; a bias becomes i32 in units of both scales
 *     Add, Mul -> [Relu or Clip]           QuantAdd, QuantMul
 *     GlobalAveragePool                    QuantGlobalAveragePool
 *     MaxPool, Reshape, Flatten, Transpose, Squeeze, Unsqueeze, Concat: themselves, where the parameters are the same before and after
 *
 * Sums of Conv and the mean are exact and rounded once, and the scales of Add and Mul are divided by the result's beforehand: beside the unfused graph a
 * result may be one quantum off where that falls on the other side of a tie. A limit of Relu or Clip becomes a limit of the byte, which is the
 * same. ONNX Runtime does all of this too. */
#include "ops/pass/quantized.h"

#include "ops/op/quantized.h"

#include <math.h>
#include <string.h>

struct limits {
    bool some;
    int64_t min, max; /* of the byte */
};

static enum op_status set_limits(struct op_graph *g, struct op_node *n, const struct limits *l) {
    if (!l->some) return OP_OK;
    const enum op_status st = op__attr_set_int(g, n, "y_min", l->min);
    return st == OP_OK ? op__attr_set_int(g, n, "y_max", l->max) : st;
}

static int64_t byte_of(double v, double scale, int32_t zero) {
    const double q = nearbyint(v / scale) + zero;
    return q < INT8_MIN ? INT8_MIN : q > UINT8_MAX ? UINT8_MAX : (int64_t)q;
}

/* v -> [Relu or Clip] -> QuantizeLinear; the positions of both (act -1: none). */
struct tail {
    struct op__bytes y;
    struct limits limits;
    int act, at;
};

static bool match_tail(struct op_graph *g, const struct op__links *links, int v, struct tail *t) {
    struct op__fused_activation act;
    struct op_node *u = op__sole_user(g, links, v);
    *t = (struct tail){.act = -1};
    const bool limited = u && (op__node_is(u, "Relu") || op__node_is(u, "Clip")) && op__activation_of(g, u, v, &act);
    if (limited) {
        t->act = links->user[v];
        v = u->out[0];
    }
    if (!op__goes_to_bytes(g, links, v, &t->y, &t->at)) return false;
    if (!limited) return true;
    const bool relu = op__node_is(u, "Relu");
    const double scale = (double)op__bytes_scale(g, &t->y, 0), lo = relu ? 0 : (double)act.a, hi = relu ? INFINITY : (double)act.b;
    const int32_t zero = quantized_byte(op__graph_constant(g, t->y.zero), 0);
    if (!(lo <= hi)) return false;
    t->limits = (struct limits){true, byte_of(lo, scale, zero), byte_of(hi, scale, zero)};
    return true;
}

/* The QuantizeLinear at the tail becomes the operator; the node at `at` and the activation go. */
static enum op_status become(struct op_graph *g, struct op__links *links, int at, const struct tail *t, const char *op_type, int n_in, const int *in) {
    struct op_node *f = g->nodes[t->at];
    const struct op_node *n = g->nodes[at];
    enum op_status st = op__node_become(f, "quern", op_type, n_in, in);
    f->name = n->name;
    op__graph_remove(g, at);
    if (t->act >= 0) op__graph_remove(g, t->act);
    for (int i = 0; i < n_in && st == OP_OK; i++)
        if (in[i] >= 0 && !op__graph_constant(g, in[i]) && links->user[in[i]] < t->at) links->user[in[i]] = t->at;
    return st == OP_OK ? set_limits(g, f, &t->limits) : st;
}

/* --- convolution ------------------------------------------------------------------------------------------ */

static bool is_zero(const struct op_tensor *t) {
    for (int64_t i = 0; t && i < op_tensor_count(t); i++)
        if (t->dtype != OP_I32 || ((const int32_t *)t->data)[i] != 0) return false;
    return true;
}

/* The bias in units of sx sw[i] as a constant i32 vector: as it is in the file, or f32 rounded. -1: there is none; -2: it cannot be. */
static int bias_of(struct op_graph *g, const struct op__links *links, int v, const struct op__bytes *x, const struct op__bytes *w, int64_t n) {
    if (v < 0) return -1;
    const struct op_tensor *c = op__graph_constant(g, v), *scale = NULL;
    const struct op_node *d = op__made_by(g, links, v, "DequantizeLinear");
    if (d && d->n_in > 1 && (d->n_in < 3 || d->in[2] < 0 || (op__graph_constant(g, d->in[2]) && is_zero(op__graph_constant(g, d->in[2]))))) {
        c = op__graph_constant(g, d->in[0]);
        scale = op__graph_constant(g, d->in[1]);
        if (!c || c->dtype != OP_I32 || !scale || scale->dtype != OP_F32 || (op_tensor_count(scale) != 1 && op_tensor_count(scale) != n)) return -2;
    } else if (!c || c->dtype != OP_F32) {
        return -2;
    }
    if (c->rank != 1 || c->dims[0] != n) return -2;
    int32_t *to = NULL;
    const int made = op__graph_const(g, NULL, OP_I32, 1, &n, (void **)&to);
    for (int64_t i = 0; made >= 0 && i < n; i++) {
        const double unit = (double)(op__bytes_scale(g, x, 0) * op__bytes_scale(g, w, i));
        const double b = scale ? (double)((const int32_t *)c->data)[i] * (double)((const float *)scale->data)[op_tensor_count(scale) == 1 ? 0 : i] : (double)((const float *)c->data)[i];
        const double q = nearbyint(b / unit);
        if (!(fabs(q) < 0x1p31)) return -2;
        to[i] = (int32_t)q;
    }
    return made < 0 ? -2 : made;
}

static enum op_status fuse_conv(struct op_graph *g, struct op__links *links, int at, int *changed) {
    const struct op_node *n = g->nodes[at];
    struct op__bytes x, w;
    struct tail t;
    if (!op__read_back(g, links, n->in[0], &x) || x.n_scales != 1 || !op__read_back(g, links, n->in[1], &w) || !match_tail(g, links, n->out[0], &t)) return OP_OK;
    const struct op_tensor *weights = op__graph_constant(g, w.value);
    if (!weights || weights->rank < 3 || (w.n_scales != 1 && (op__axis(w.axis, weights->rank) != 0 || w.n_scales != weights->dims[0]))) return OP_OK;
    const int bias = bias_of(g, links, n->n_in > 2 ? n->in[2] : -1, &x, &w, weights->dims[0]);
    if (bias == -2) return OP_OK;
    for (int i = 0; i < 2; i++) op__reads_bytes(g, links, n->in[i]);
    struct op_attr *attrs = n->attrs;
    const int n_attrs = n->n_attrs, in[9] = {x.value, x.scale, x.zero, w.value, w.scale, w.zero, t.y.scale, t.y.zero, bias};
    const struct limits limits = t.limits;
    t.limits.some = false;
    const enum op_status st = become(g, links, at, &t, "QuantConv", bias >= 0 ? 9 : 8, in);
    g->nodes[t.at]->attrs = attrs;
    g->nodes[t.at]->n_attrs = n_attrs;
    ++*changed;
    return st == OP_OK ? set_limits(g, g->nodes[t.at], &limits) : st;
}

/* --- sums, means ------------------------------------------------------------------------------------------ */

static enum op_status fuse_binary(struct op_graph *g, struct op__links *links, int at, const char *op_type, int *changed) {
    const struct op_node *n = g->nodes[at];
    struct op__bytes a, b;
    struct tail t;
    if (n->n_in != 2 || !op__read_back(g, links, n->in[0], &a) || !op__read_back(g, links, n->in[1], &b) || a.n_scales != 1 || b.n_scales != 1 ||
        !match_tail(g, links, n->out[0], &t))
        return OP_OK;
    ++*changed;
    for (int i = 0; i < 2; i++) op__reads_bytes(g, links, n->in[i]);
    return become(g, links, at, &t, op_type, 8, (const int[]){a.value, a.scale, a.zero, b.value, b.scale, b.zero, t.y.scale, t.y.zero});
}

static enum op_status fuse_mean(struct op_graph *g, struct op__links *links, int at, int *changed) {
    const struct op_node *n = g->nodes[at];
    struct op__bytes x;
    struct tail t;
    if (!op__read_back(g, links, n->in[0], &x) || x.n_scales != 1 || !match_tail(g, links, n->out[0], &t) || t.limits.some) return OP_OK;
    ++*changed;
    op__reads_bytes(g, links, n->in[0]);
    return become(g, links, at, &t, "QuantGlobalAveragePool", 5, (const int[]){x.value, x.scale, x.zero, t.y.scale, t.y.zero});
}

/* --- what only moves bytes -------------------------------------------------------------------------------- */

static bool moves(const struct op_node *n) {
    static const char *const names[] = {"Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (op__node_is(n, names[i])) return true;
    return op__node_is(n, "MaxPool") && (n->n_out < 2 || n->out[1] < 0);
}

static enum op_status carry(struct op_graph *g, struct op__links *links, int at, int *changed) {
    struct op_node *n = g->nodes[at];
    struct op__bytes x, y;
    int q_at;
    const int sides = op__node_is(n, "Concat") ? n->n_in : 1;
    if (!op__goes_to_bytes(g, links, n->out[0], &y, &q_at)) return OP_OK;
    for (int i = 0; i < sides; i++)
        if (!op__read_back(g, links, n->in[i], &x) || !op__same_bytes(g, &x, &y)) return OP_OK;
    for (int i = 0; i < sides; i++) {
        op__read_back(g, links, n->in[i], &x);
        op__reads_bytes(g, links, n->in[i]);
        n->in[i] = x.value;
        if (links->user[x.value] < at) links->user[x.value] = at;
    }
    n->out[0] = y.value;
    links->producer[y.value] = at;
    op__graph_remove(g, q_at);
    ++*changed;
    return OP_OK;
}

static enum op_status fuse_at(struct op_graph *g, struct op__links *links, int at, int *changed) {
    const struct op_node *n = g->nodes[at];
    if (n->domain[0] || n->n_in < 1 || n->in[0] < 0 || n->out[0] < 0) return OP_OK;
    if (op__node_is(n, "Conv")) return fuse_conv(g, links, at, changed);
    if (op__node_is(n, "Add")) return fuse_binary(g, links, at, "QuantAdd", changed);
    if (op__node_is(n, "Mul")) return fuse_binary(g, links, at, "QuantMul", changed);
    if (op__node_is(n, "GlobalAveragePool")) return fuse_mean(g, links, at, changed);
    if (moves(n) || op__node_is(n, "Concat")) return carry(g, links, at, changed);
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

static const struct op_pass fuse_quantized_images = {.name = "fuse_quantized_images", .order = 541, .run = run};
OP_PASS_REGISTER(fuse_quantized_images);
