/* Order 750: where a model is loaded with precision bf16, products with constant f32 weights round both sides to bf16 and keep their sums and
 * results in f32: MatMul, Gemm and their fused forms become HalfMatMul, convolutions over channels-last images get the attribute bf16. All else
 * stays as it is: depthwise and grouped convolutions, a first layer of few channels, products of two activations. This pass
 * changes results, by the rounding of the factors (2^-9 each); it does nothing at any other precision. */
#include "ops/model.h"
#include "ops/op/product.h"
#include "ops/pass/match.h"

#include <string.h>

enum { DEPTH_MIN = 32, COLUMNS_MIN = 16 }; /* below, tiles are mostly filling */

static bool is_matmul(const struct op_node *n) {
    return op__node_is(n, "MatMul") || (strcmp(n->domain, "quern") == 0 && strcmp(n->op_type, "FusedMatMul") == 0);
}

static bool is_gemm(const struct op_node *n) {
    return op__node_is(n, "Gemm") || (strcmp(n->domain, "quern") == 0 && strcmp(n->op_type, "FusedGemm") == 0);
}

static const struct op_tensor *f32_constant(const struct op_graph *g, const struct op_node *n, int i) {
    const struct op_tensor *t = i < n->n_in ? op__graph_constant_type(g, n->in[i]) : NULL;
    return t && t->kind == OP_KIND_TENSOR && t->dtype == OP_F32 ? t : NULL;
}

/* A bias of one value a column, or none. */
static bool bias_fits(const struct op_graph *g, const struct op_node *n, int64_t columns) {
    if (n->n_in < 3 || n->in[2] < 0) return true;
    const struct op_tensor *c = f32_constant(g, n, 2);
    return c && c->rank >= 1 && c->dims[c->rank - 1] == columns && op_tensor_count(c) == columns;
}

static enum op_status make_half(struct op_graph *g, struct op_node *n, int *changed) {
    const struct op_tensor *b = f32_constant(g, n, 1);
    const bool gemm = is_gemm(n), transposed = gemm && op__attr_int(n, "transB", 0) != 0;
    if (!b || b->rank != 2 || n->n_in > 3 || n->n_captures || n->in[0] < 0 || op__graph_constant_type(g, n->in[0])) return OP_OK;
    if (gemm && (op__attr_int(n, "transA", 0) || op__attr_float(n, "alpha", 1) != 1 || op__attr_float(n, "beta", 1) != 1)) return OP_OK;
    const int64_t k = b->dims[transposed ? 1 : 0], columns = b->dims[transposed ? 0 : 1];
    if (k < DEPTH_MIN || columns < COLUMNS_MIN || !bias_fits(g, n, columns)) return OP_OK;
    struct op_attr *attrs = n->attrs;
    const int n_attrs = n->n_attrs, in[3] = {n->in[0], n->in[1], n->n_in > 2 ? n->in[2] : -1};
    enum op_status st = op__node_become(n, "quern", "HalfMatMul", in[2] >= 0 ? 3 : 2, in);
    if (st != OP_OK) return st;
    n->attrs = attrs; /* transB, the activation */
    n->n_attrs = n_attrs;
    ++*changed;
    return op__attr_set_int(g, n, "matrix", gemm);
}

static enum op_status run(struct op_graph *g, int *changed, struct op_error *err) {
    (void)err;
    enum op_status st = OP_OK;
    for (int i = 0; i < g->n_nodes && g->model->bf16 && st == OP_OK; i++) {
        struct op_node *n = g->nodes[i];
        if (!n) continue;
        if (is_matmul(n) || is_gemm(n)) st = make_half(g, n, changed);
        else if (strcmp(n->domain, "quern") == 0 && strcmp(n->op_type, "ChannelsLastConv") == 0) {
            const struct op_tensor *w = f32_constant(g, n, 1);
            if (!w || w->rank < 3 || w->dims[0] < COLUMNS_MIN || w->dims[0] <= 0 || op_tensor_count(w) / w->dims[0] < DEPTH_MIN) continue;
            st = op__attr_set_int(g, n, "bf16", 1);
            ++*changed;
        }
    }
    return st;
}

static const struct op_pass pass_bf16 = {.name = "bf16", .order = 750, .run = run};
OP_PASS_REGISTER(pass_bf16);
