/* product.h: what Gemm, MatMul and their fused forms share. Internal to ops/op/. */
#ifndef QUERN_OPS_OP_PRODUCT_H
#define QUERN_OPS_OP_PRODUCT_H

#include "ops/kern/kern.h"
#include "ops/op.h"

/* C (m x n) = A B in plain C: element (i, k) of A at a + i * a_i + k * a_k and so on, in elements of dtype. Floating-point sums are
 * chains over rising k, of fmaf in f32, f16 and bf16 (rounded once at the end) and of multiply and add in f64; integers wrap. */
struct op__product {
    enum op_type dtype; /* F16, BF16, F32, F64, I32, U32, I64, U64 */
    int64_t m, n, k;
    const void *a;
    int64_t a_i, a_k;
    const void *b;
    int64_t b_k, b_j;
    void *c;
    int64_t c_i;
};
void op__product_plain(const struct op__product *p);
bool op__product_type(enum op_type dtype); /* whether it takes that type */

/* An element of f16 or bf16, and back with one rounding. */
static inline float op__narrow_load(enum op_type dtype, const uint16_t *x) {
    return dtype == OP_F16 ? op__f16_to_f32(*x) : op__bf16_to_f32(*x);
}
static inline void op__narrow_store(enum op_type dtype, uint16_t *x, float value) {
    *x = dtype == OP_F16 ? op__f32_to_f16(value) : op__f32_to_bf16(value);
}

/* k_gemm over the whole of p, divided between the session's threads. */
void op__gemm(const struct op_ctx *ctx, const struct k_product *p);

/* A constant right side in k_pack_b's form: `count` matrices (k x n), one after the other. */
struct op__packed_rhs {
    float *data;
    int64_t count, k, n;
};
/* Packs input `index` of the node, whose last two dimensions are (k, n), or (n, k) if transposed, into the model's memory. Nothing if it is
 * not a constant f32 tensor. */
enum op_status op__rhs_pack(struct op_prepare *p, int index, bool transposed, struct op__packed_rhs *dst);

/* The activation that a pass has put in a fused node: attribute "activation" is the operator's name, "activation_a" and
 * "activation_b" its parameters. */
struct op__activation {
    enum k_unary fn; /* K_COPY: none */
    float a, b;
};
enum op_status op__activation_parse(const struct op_node *n, struct op_error *err, struct op__activation *dst);
/* The same of attributes whose names begin with `prefix`, for nodes that have several. */
enum op_status op__activation_parse_as(const struct op_node *n, struct op_error *err, const char *prefix, struct op__activation *dst);
/* The kernel of an operator's name; K_COPY if there is none. */
enum k_unary op__activation_find(const char *name);

#endif
