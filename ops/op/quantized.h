/* quantized.h: what the operators on 8-bit integers share: zero points, and the way from a 32-bit sum to an 8-bit result.
 * A parameter is one value or one for each row, column or channel: a vector of that many. */
#ifndef QUERN_OP_QUANTIZED_H
#define QUERN_OP_QUANTIZED_H

#include "ops/op.h"

#include <math.h>

static inline bool quantized_is_byte(const struct op_tensor *t) {
    return t && t->kind == OP_KIND_TENSOR && (t->dtype == OP_U8 || t->dtype == OP_I8);
}

static inline int32_t quantized_byte(const struct op_tensor *t, int64_t i) {
    return t->dtype == OP_U8 ? (int32_t)((const uint8_t *)t->data)[i] : (int32_t)((const int8_t *)t->data)[i];
}

/* Zero point i of a tensor of one or more; 0 if it is absent. */
static inline int32_t quantized_zero(const struct op_tensor *zero, int64_t i, int64_t count) {
    return zero ? quantized_byte(zero, count == 1 ? 0 : i) : 0;
}

static inline float quantized_scale(const struct op_tensor *scale, int64_t i, int64_t count) {
    const int64_t at = count == 1 ? 0 : i;
    switch (scale->dtype) {
    case OP_F32: return ((const float *)scale->data)[at];
    case OP_F16: return op__f16_to_f32(((const uint16_t *)scale->data)[at]);
    default: return op__bf16_to_f32(((const uint16_t *)scale->data)[at]);
    }
}

static inline bool quantized_is_scale(const struct op_tensor *t) {
    return t && t->kind == OP_KIND_TENSOR && (t->dtype == OP_F32 || t->dtype == OP_F16 || t->dtype == OP_BF16);
}

/* saturate(round(sum * scale) + zero), halves to even, into element i of dst. */
static inline void quantized_store(struct op_tensor *dst, int64_t i, int32_t sum, float scale, int32_t zero) {
    float v = rintf((float)sum * scale);
    int32_t low = dst->dtype == OP_U8 ? 0 : INT8_MIN, high = dst->dtype == OP_U8 ? UINT8_MAX : INT8_MAX;
    v = v != v ? 0 : v < -1024.0f ? -1024.0f : v > 1024.0f ? 1024.0f : v; /* saturates beyond, whatever the zero point */
    int32_t q = (int32_t)v + zero;
    ((uint8_t *)dst->data)[i] = (uint8_t)(q < low ? low : q > high ? high : q);
}

#endif
