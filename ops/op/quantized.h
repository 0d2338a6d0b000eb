/* quantized.h: what the operators on 8-bit integers share: zero points, and the way from a 32-bit
 * sum to an 8-bit result. A parameter is one value or one for each row, column or channel: a vector
 * of that many. */
#ifndef QUERN_OP_QUANTIZED_H
#define QUERN_OP_QUANTIZED_H

#include "ops/op.h"

static inline bool quantized_is_byte(const struct op_tensor *t) {
    return t && t->kind == OP_KIND_TENSOR && (t->dtype == OP_U8 || t->dtype == OP_I8);
}

static inline int32_t quantized_byte(const struct op_tensor *t, int64_t i) {
    return t->dtype == OP_U8 ? (int32_t)((const uint8_t *)t->data)[i]
                             : (int32_t)((const int8_t *)t->data)[i];
}

/* Zero point i of a tensor of one or more; 0 if it is absent. */
static inline int32_t quantized_zero(const struct op_tensor *zero, int64_t i, int64_t count) {
    return zero ? quantized_byte(zero, count == 1 ? 0 : i) : 0;
}

static inline float quantized_scale(const struct op_tensor *scale, int64_t i, int64_t count) {
    const int64_t at = count == 1 ? 0 : i;
    switch (scale->dtype) {
    case OP_F32:
        return ((const float *)scale->data)[at];
    case OP_F16:
        return op__f16_to_f32(((const uint16_t *)scale->data)[at]);
    default:
        return op__bf16_to_f32(((const uint16_t *)scale->data)[at]);
    }
}

static inline bool quantized_is_scale(const struct op_tensor *t) {
    return t && t->kind == OP_KIND_TENSOR &&
           (t->dtype == OP_F32 || t->dtype == OP_F16 || t->dtype == OP_BF16);
}

/* round(v) + zero saturated to a byte is quantized_round(v, lowest - zero, highest - zero) + zero.
 *
 * v, cut to [low, high] and rounded halves to even; NaN is 0. The limits are integers below 2^22,
 * so that adding and taking away 1.5 * 2^23 rounds: compilers vectorise that, rintf not without
 * SSE4.1. */
static inline int32_t quantized_round(float v, float low, float high) {
    v = v == v ? v : 0;
    v = v < low ? low : v;
    v = v > high ? high : v;
    return (int32_t)(v + 12582912.0f - 12582912.0f);
}

/* Terms whose sum is exact in f32: products of bytes less their zero points are at most 255 * 255,
 * and 256 * 255 * 255 < 2^24. */
#define EXACT_K 256

/* sums[i] = or += c[i], which is an integer */
static inline void quantized_add(uint32_t *restrict sums, const float *restrict c, int64_t n,
                                 bool first) {
    if (first)
        for (int64_t i = 0; i < n; i++) sums[i] = (uint32_t)(int32_t)c[i];
    else
        for (int64_t i = 0; i < n; i++) sums[i] += (uint32_t)(int32_t)c[i];
}

#endif
