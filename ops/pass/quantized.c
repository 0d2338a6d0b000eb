/* See quantized.h. */
#include "ops/pass/quantized.h"

#include "ops/op/quantized.h"

/* One positive number. */
static bool is_scale(const struct op_tensor *t) {
    if (!t || t->kind != OP_KIND_TENSOR || t->dtype != OP_F32 || t->rank > 1 || op_tensor_count(t) < 1) return false;
    for (int64_t i = 0, n = op_tensor_count(t); i < n; i++) {
        const float s = ((const float *)t->data)[i];
        if (!(s > 0 && s < 0x1p100f)) return false;
    }
    return true;
}

/* Parameters of a QuantizeLinear or DequantizeLinear; the zero point must be written out, as the type comes from it. */
static bool parameters(const struct op_graph *g, const struct op_node *n, struct op__bytes *dst) {
    if (n->n_in < 3 || n->in[0] < 0 || op__attr_int(n, "block_size", 0) != 0) return false;
    const struct op_tensor *scale = op__graph_constant(g, n->in[1]), *zero = op__graph_constant(g, n->in[2]);
    if (!is_scale(scale) || !quantized_is_byte(zero) || op_tensor_count(zero) != op_tensor_count(scale)) return false;
    *dst = (struct op__bytes){.scale = n->in[1], .zero = n->in[2], .axis = (int)op__attr_int(n, "axis", 1), .n_scales = op_tensor_count(scale)};
    return true;
}

bool op__read_back(struct op_graph *g, const struct op__links *links, int v, struct op__bytes *dst) {
    const struct op_node *n = op__made_by(g, links, v, "DequantizeLinear");
    if (!n || !parameters(g, n, dst)) return false;
    dst->value = n->in[0];
    return true;
}

bool op__goes_to_bytes(struct op_graph *g, const struct op__links *links, int v, struct op__bytes *dst, int *at) {
    const struct op_node *n = op__sole_user(g, links, v);
    if (!n || !op__node_is(n, "QuantizeLinear") || n->in[0] != v || !parameters(g, n, dst) || dst->n_scales != 1) return false;
    dst->value = n->out[0];
    *at = links->user[v];
    return true;
}

float op__bytes_scale(const struct op_graph *g, const struct op__bytes *b, int64_t i) {
    return quantized_scale(op__graph_constant(g, b->scale), i, b->n_scales);
}

bool op__same_bytes(const struct op_graph *g, const struct op__bytes *a, const struct op__bytes *b) {
    const struct op_tensor *za = op__graph_constant(g, a->zero), *zb = op__graph_constant(g, b->zero);
    return a->n_scales == 1 && b->n_scales == 1 && op__bytes_scale(g, a, 0) == op__bytes_scale(g, b, 0) && za->dtype == zb->dtype &&
           quantized_byte(za, 0) == quantized_byte(zb, 0);
}

void op__reads_bytes(struct op_graph *g, struct op__links *links, int v) {
    const int at = links->producer[v], bytes = g->nodes[at]->in[0];
    links->uses[bytes]++;
    if (--links->uses[v] > 0) return;
    op__graph_remove(g, at);
    links->uses[bytes]--;
}
