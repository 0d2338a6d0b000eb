/* quant_product.h: products of bytes on the kernels of kern/quant.h, as MatMulInteger, QLinearMatMul and their fused forms share them.
 *
 * With zero points za and zb[j], and everything of i8 or u8 turned into u8 (A) and i8 (B) with zero points moved by 128:
 *   sum (a - za)(b - zb[j]) = sum a b  -  za sum b  -  zb[j] sum a  +  k za zb[j]
 * The terms without `a` are one offset a column; where every zb is 0 (symmetric weights) the sums of rows are not needed. */
#ifndef QUERN_OPS_OP_QUANT_PRODUCT_H
#define QUERN_OPS_OP_QUANT_PRODUCT_H

#include "ops/kern/quant.h"
#include "ops/op/product.h"

/* B packed: `count` matrices (k x n), one after the other, each with its column sums. */
struct quant_rhs {
    int8_t *data;
    int32_t *sums;
    int64_t count, k, n;
};
/* Packs constant input `index`, whose last two dimensions are (k, n), or (n, k) if transposed. Nothing if it is no constant of bytes.
 * The constant itself is not marked as consumed: that is for who knows that it is never read. */
enum op_status op__quant_rhs_pack(struct op_prepare *p, int index, bool transposed, struct quant_rhs *dst);
/* dst[j] = a b[j] / y of one or n scales b; whether all are numbers, and whether all are below 1 (*small). */
bool op__quant_scales(int64_t n, float a, const struct op_tensor *b, float y, float *dst, bool *small);
void op__quant_rhs_free(struct quant_rhs *rhs);

/* y = round((a - a_zero) a_scale + (b - b_zero) b_scale) + zero of two tensors of bytes that broadcast to y's shape; what is b's and y's as in
 * `after` (k_quant.add). The product of both with `multiplies`. */
struct quant_sum {
    const struct op_tensor *a, *b, *y;
    bool multiplies;
    float a_zero, a_scale;
    struct k_quant_after after;
};
void op__quant_sum(const struct op_ctx *ctx, const struct quant_sum *sum);

/* One product: A (m x k, rows side by side) and B, which is packed or lies as (k, n), or (n, k) if transposed. */
struct quant_job {
    int64_t m, n, k;
    const struct op_tensor *a, *b; /* types; their data is not read through these */
    const uint8_t *a_data, *b_data;
    bool b_transposed;
    const int8_t *packed; /* NULL: b_data is packed at run time */
    const int32_t *packed_sums;
    int32_t a_zero;
    const struct op_tensor *b_zero; /* of one or n bytes, NULL: 0 */
    const int32_t *bias;            /* added to the sums, NULL: none */
    void *c;
    struct k_quant_after after; /* but offset, row_sum, b_zero */
    /* Where after.out is FLOAT: an activation, and the way to bytes if there is one. */
    struct op__activation act;
    bool to_bytes;
    float y_scale, y_lo, y_hi;
    int32_t y_zero;
};

/* Scratch for one product of these sizes; the packed form of B counts unless it is packed already. */
size_t op__quant_scratch(const struct op_ctx *ctx, int64_t m, int64_t n, int64_t k, const struct op_tensor *a, bool packed, bool to_bytes);
/* On the session's threads if `parallel`. */
void op__quant_product(const struct op_ctx *ctx, const struct quant_job *job, void *scratch, bool parallel);

#endif
