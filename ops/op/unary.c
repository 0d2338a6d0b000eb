/* unary.c: one row an operator of one input: functions of mathematics, rounding, sign, tests and
 * complements. */
#include "ops/op/elementwise.h"

#include <math.h>
#include <tgmath.h>

OP_VECTOR_FILE

#define DESC(NAME, SINCE, INPLACE)                                                                 \
    {                                                                                              \
        .name = NAME, .domain = "", .since = SINCE, .in_min = 1, .in_max = 1, .out_min = 1,        \
        .out_max = 1, .inplace = INPLACE, .infer = op__unary_infer, .run = op__unary_run,          \
        .ref = op__unary_ref                                                                       \
    }

/* Of floats: EXPR (type-generic) of x, and the kernel that does it for f32 or 0. */
#define FLOAT_ROW(id, NAME, SINCE, KERN, EXPR)                                                     \
    OP_UNARY_LOOP(id##_f32, float, float, EXPR)                                                    \
    OP_UNARY_LOOP(id##_f64, double, double, EXPR)                                                  \
    static const struct op_unary id##_row = {.desc = DESC(NAME, SINCE, 1),                         \
                                             .fn = {[OP_F32] = id##_f32, [OP_F64] = id##_f64},     \
                                             .kern = KERN};                                        \
    OP_REGISTER_ROW(id##_row);

FLOAT_ROW(sqrt, "Sqrt", 1, OP_KERN(K_SQRT), sqrt(x))
FLOAT_ROW(exp, "Exp", 1, OP_KERN(K_EXP), exp(x))
FLOAT_ROW(log, "Log", 1, OP_KERN(K_LOG), log(x))
FLOAT_ROW(reciprocal, "Reciprocal", 1, OP_KERN(K_RECIPROCAL), 1 / x)
FLOAT_ROW(sin, "Sin", 7, 0, sin(x))
FLOAT_ROW(cos, "Cos", 7, 0, cos(x))
FLOAT_ROW(tan, "Tan", 7, 0, tan(x))
FLOAT_ROW(asin, "Asin", 7, 0, asin(x))
FLOAT_ROW(acos, "Acos", 7, 0, acos(x))
FLOAT_ROW(atan, "Atan", 7, 0, atan(x))
FLOAT_ROW(sinh, "Sinh", 9, 0, sinh(x))
FLOAT_ROW(cosh, "Cosh", 9, 0, cosh(x))
FLOAT_ROW(asinh, "Asinh", 9, 0, asinh(x))
FLOAT_ROW(acosh, "Acosh", 9, 0, acosh(x))
FLOAT_ROW(atanh, "Atanh", 9, 0, atanh(x))
FLOAT_ROW(ceil, "Ceil", 1, 0, ceil(x))
FLOAT_ROW(floor, "Floor", 1, 0, floor(x))
FLOAT_ROW(round, "Round", 11, 0, rint(x)) /* halves to even: the rounding mode is the default one */
FLOAT_ROW(erf, "Erf", 9, OP_KERN(K_ERF), erf(x))

/* Of every number. Negation and the absolute value wrap: those of the smallest integer are the
 * smallest integer. */
#define SIGNED_LOOPS(id, FLOAT_EXPR, INT_EXPR)                                                     \
    OP_UNARY_LOOP(id##_f32, float, float, FLOAT_EXPR)                                              \
    OP_UNARY_LOOP(id##_f64, double, double, FLOAT_EXPR)                                            \
    OP_UNARY_LOOP(id##_i8, int8_t, int8_t, INT_EXPR)                                               \
    OP_UNARY_LOOP(id##_i16, int16_t, int16_t, INT_EXPR)                                            \
    OP_UNARY_LOOP(id##_i32, int32_t, int32_t, INT_EXPR)                                            \
    OP_UNARY_LOOP(id##_i64, int64_t, int64_t, INT_EXPR)
#define UNSIGNED_LOOPS(id, EXPR)                                                                   \
    OP_UNARY_LOOP(id##_u8, uint8_t, uint8_t, EXPR)                                                 \
    OP_UNARY_LOOP(id##_u16, uint16_t, uint16_t, EXPR)                                              \
    OP_UNARY_LOOP(id##_u32, uint32_t, uint32_t, EXPR)                                              \
    OP_UNARY_LOOP(id##_u64, uint64_t, uint64_t, EXPR)
#define SIGNED_FNS(id)                                                                             \
    [OP_F32] = id##_f32, [OP_F64] = id##_f64, [OP_I8] = id##_i8, [OP_I16] = id##_i16,              \
    [OP_I32] = id##_i32, [OP_I64] = id##_i64
#define UNSIGNED_FNS(id)                                                                           \
    [OP_U8] = id##_u8, [OP_U16] = id##_u16, [OP_U32] = id##_u32, [OP_U64] = id##_u64

SIGNED_LOOPS(abs, fabs(x), x < 0 ? 0 - (uint64_t)x : (uint64_t)x)
UNSIGNED_LOOPS(abs, x)
static const struct op_unary abs_row = {
    .desc = DESC("Abs", 1, 1), .fn = {SIGNED_FNS(abs), UNSIGNED_FNS(abs)}, .kern = OP_KERN(K_ABS)};
OP_REGISTER_ROW(abs_row);

SIGNED_LOOPS(neg, -x, 0 - (uint64_t)x)
static const struct op_unary neg_row = {
    .desc = DESC("Neg", 1, 1), .fn = {SIGNED_FNS(neg)}, .kern = OP_KERN(K_NEG)};
OP_REGISTER_ROW(neg_row);

SIGNED_LOOPS(sign, x != x ? x : (x > 0) - (x < 0), (x > 0) - (x < 0)) /* of NaN: NaN */
UNSIGNED_LOOPS(sign, x > 0)
static const struct op_unary sign_row = {.desc = DESC("Sign", 9, 1),
                                         .fn = {SIGNED_FNS(sign), UNSIGNED_FNS(sign)}};
OP_REGISTER_ROW(sign_row);

OP_UNARY_LOOP(not_bool, uint8_t, uint8_t, x == 0)
static const struct op_unary not_row = {.desc = DESC("Not", 1, 1), .fn = {[OP_BOOL] = not_bool}};
OP_REGISTER_ROW(not_row);

UNSIGNED_LOOPS(complement, ~x)
static const struct op_unary bitwise_not_row = {
    .desc = DESC("BitwiseNot", 18, 1),
    .fn = {UNSIGNED_FNS(complement), [OP_I8] = complement_u8, [OP_I16] = complement_u16,
           [OP_I32] = complement_u32, [OP_I64] = complement_u64}};
OP_REGISTER_ROW(bitwise_not_row);

OP_UNARY_LOOP(isnan_f32, uint8_t, float, x != x)
OP_UNARY_LOOP(isnan_f64, uint8_t, double, x != x)
static const struct op_unary isnan_row = {.desc = DESC("IsNaN", 9, 0),
                                          .fn = {[OP_F32] = isnan_f32, [OP_F64] = isnan_f64},
                                          .out = OP_BOOL};
OP_REGISTER_ROW(isnan_row);

/* param: whether the positive and the negative infinity count. */
OP_UNARY_LOOP(isinf_f32, uint8_t, float,
              (x == INFINITY && param[0] != 0) || (x == -INFINITY && param[1] != 0))
OP_UNARY_LOOP(isinf_f64, uint8_t, double,
              (x == INFINITY && param[0] != 0) || (x == -INFINITY && param[1] != 0))

static enum op_status isinf_run(struct op_ctx *ctx) {
    const float param[2] = {(float)op__attr_int(ctx->node, "detect_positive", 1),
                            (float)op__attr_int(ctx->node, "detect_negative", 1)};
    if (ctx->out[0])
        op__unary_apply(ctx, ctx->in[0]->dtype == OP_F64 ? isinf_f64 : isinf_f32, NULL, param,
                        ctx->out[0], ctx->in[0]);
    return OP_OK;
}

static const struct op_unary isinf_row = {
    .desc = {.name = "IsInf",
             .domain = "",
             .since = 10,
             .in_min = 1,
             .in_max = 1,
             .out_min = 1,
             .out_max = 1,
             .infer = op__unary_infer,
             .run = isinf_run},
    .fn = {[OP_F32] = isinf_f32, [OP_F64] = isinf_f64},
    .out = OP_BOOL,
};
OP_REGISTER_ROW(isinf_row);
