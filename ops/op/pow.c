/* pow.c: Pow, whose exponent may be of another type than its base; the result has the base's.
 * Integers to integer powers are computed exactly modulo 2^64, to a negative power they are 0
 * unless the base is 1 or -1; whatever has a float in it is computed in floating point, and back in
 * an integer it is cut to the range of 64 bits. */
#include "ops/op/elementwise.h"

#include <math.h>

OP_VECTOR_FILE

static inline uint64_t pow_int(int64_t base, int64_t exponent) {
    uint64_t result = 1, factor = (uint64_t)base;
    if (exponent < 0) return base == 1 ? 1 : base == -1 ? (exponent % 2 ? (uint64_t)-1 : 1) : 0;
    for (; exponent; exponent >>= 1, factor *= factor)
        if (exponent & 1) result *= factor;
    return result;
}

static inline int64_t cut(double v) {
    if (!(v > -0x1p63)) return INT64_MIN; /* NaN too */
    return v >= 0x1p63 ? INT64_MAX : (int64_t)v;
}

/* The exponents of exported models, within one unit in the last place of powf. */
static inline float pow_f32(float x, float y) {
    return y == 2.0f ? x * x : y == 3.0f ? x * x * x : y == 0.5f && x >= 0 ? sqrtf(x) : powf(x, y);
}
static inline double pow_f64(double x, double y) {
    return y == 2.0 ? x * x : y == 3.0 ? x * x * x : y == 0.5 && x >= 0 ? sqrt(x) : pow(x, y);
}

#define INT_TYPES(X, ...)                                                                          \
    X(i8, I8, int8_t, __VA_ARGS__)                                                                 \
    X(i16, I16, int16_t, __VA_ARGS__)                                                              \
    X(i32, I32, int32_t, __VA_ARGS__)                                                              \
    X(i64, I64, int64_t, __VA_ARGS__)                                                              \
    X(u8, U8, uint8_t, __VA_ARGS__)                                                                \
    X(u16, U16, uint16_t, __VA_ARGS__)                                                             \
    X(u32, U32, uint32_t, __VA_ARGS__)                                                             \
    X(u64, U64, uint64_t, __VA_ARGS__)

/* Bases: f32, f64, i32, i64 (the specification's). Exponents: every number. */
#define X(suffix, TYPE, T, unused)                                                                 \
    OP_BINARY_LOOP(f32_##suffix, float, float, T, pow_f32(x, (float)y))                            \
    OP_BINARY_LOOP(f64_##suffix, double, double, T, pow_f64(x, (double)y))                         \
    OP_BINARY_LOOP(i32_##suffix, int32_t, int32_t, T, pow_int(x, (int64_t)y))                      \
    OP_BINARY_LOOP(i64_##suffix, int64_t, int64_t, T, pow_int(x, (int64_t)y))
INT_TYPES(X, )
#undef X
OP_BINARY_LOOP(f32_f32, float, float, float, pow_f32(x, y))
OP_BINARY_LOOP(f32_f64, float, float, double, pow(x, y))
OP_BINARY_LOOP(f64_f32, double, double, float, pow_f64(x, y))
OP_BINARY_LOOP(f64_f64, double, double, double, pow_f64(x, y))
OP_BINARY_LOOP(i32_f32, int32_t, int32_t, float, cut(pow(x, y)))
OP_BINARY_LOOP(i32_f64, int32_t, int32_t, double, cut(pow(x, y)))
OP_BINARY_LOOP(i64_f32, int64_t, int64_t, float, cut(pow((double)x, y)))
OP_BINARY_LOOP(i64_f64, int64_t, int64_t, double, cut(pow((double)x, y)))

static const op_binary_fn pow_fn[OP_N_TYPES][OP_N_TYPES] = {
#define X(suffix, TYPE, T, base) [OP_##TYPE] = base##_##suffix,
    [OP_F32] = {INT_TYPES(X, f32)[OP_F32] = f32_f32, [OP_F64] = f32_f64},
    [OP_F64] = {INT_TYPES(X, f64)[OP_F32] = f64_f32, [OP_F64] = f64_f64},
    [OP_I32] = {INT_TYPES(X, i32)[OP_F32] = i32_f32, [OP_F64] = i32_f64},
    [OP_I64] = {INT_TYPES(X, i64)[OP_F32] = i64_f32, [OP_F64] = i64_f64},
#undef X
};

static op_binary_fn fn_of(enum op_type base, enum op_type exponent) {
    return pow_fn[op__is_half(base) ? OP_F32 : base][op__is_half(exponent) ? OP_F32 : exponent];
}

static enum op_status pow_infer(struct op_ctx *ctx) {
    const struct op_tensor *x = ctx->in[0], *y = ctx->in[1];
    if (!x || !y) return op__fail(ctx, OP_BAD_MODEL, "needs two inputs");
    if (x->kind != OP_KIND_TENSOR || y->kind != OP_KIND_TENSOR || !fn_of(x->dtype, y->dtype))
        return op__fail(ctx, OP_BAD_TYPE, "takes no %s to the power of %s", op_type_name(x->dtype),
                        op_type_name(y->dtype));
    return op__binary_infer_shape(ctx, x->dtype);
}

static enum op_status pow_run(struct op_ctx *ctx) {
    struct op_tensor y = op__binary_second(ctx);
    if (ctx->out[0])
        op__binary_apply(ctx, fn_of(ctx->in[0]->dtype, y.dtype), NULL, ctx->out[0], ctx->in[0], &y);
    return OP_OK;
}

static const struct op_desc pow_desc = {.name = "Pow",
                                        .domain = "",
                                        .since = 1,
                                        .in_min = 2,
                                        .in_max = 2,
                                        .out_min = 1,
                                        .out_max = 1,
                                        .inplace = 1,
                                        .upgrade = op__binary_upgrade,
                                        .infer = pow_infer,
                                        .run = pow_run};
OP_REGISTER(pow_desc);
