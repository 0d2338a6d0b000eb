/* arithmetic.c: one row an operator of two numbers.
 *
 * Nothing traps: integer addition, subtraction and multiplication wrap; x / 0 and x mod 0 are 0;
 * the smallest integer divided by -1 is itself, its remainder 0; a shift by the width or more gives
 * 0; 0 to a negative power is 0 for integers. The specification leaves all of these open. */
#include "ops/op/elementwise.h"

#include <math.h>
#include <string.h>
#include <tgmath.h>

OP_VECTOR_FILE

#define DESC(NAME, INPLACE)                                                                        \
    {                                                                                              \
        .name = NAME, .domain = "", .since = 1, .in_min = 2, .in_max = 2, .out_min = 1,            \
        .out_max = 1, .inplace = INPLACE, .upgrade = op__binary_upgrade,                           \
        .infer = op__binary_infer, .run = op__binary_run, .ref = op__binary_ref                    \
    }

/* X(suffix, TYPE, T, the type it is computed in) */
#define UNSIGNED_TYPES(X)                                                                          \
    X(u8, U8, uint8_t, uint32_t)                                                                   \
    X(u16, U16, uint16_t, uint32_t)                                                                \
    X(u32, U32, uint32_t, uint32_t)                                                                \
    X(u64, U64, uint64_t, uint64_t)
#define SIGNED_TYPES(X)                                                                            \
    X(i8, I8, int8_t, int32_t)                                                                     \
    X(i16, I16, int16_t, int32_t)                                                                  \
    X(i32, I32, int32_t, int32_t)                                                                  \
    X(i64, I64, int64_t, int64_t)

#define FLOAT_LOOPS(id, EXPR)                                                                      \
    OP_BINARY_LOOP(id##_f32, float, float, float, EXPR)                                            \
    OP_BINARY_LOOP(id##_f64, double, double, double, EXPR)
#define FLOAT_FNS(id) [OP_F32] = id##_f32, [OP_F64] = id##_f64

/* An operation whose low bits do not depend on the sign: computed unsigned, so that it wraps. */
#define WRAPPING_LOOPS(id, OP)                                                                     \
    OP_BINARY_LOOP(id##_u8, uint8_t, uint8_t, uint8_t, (uint32_t)x OP(uint32_t) y)                 \
    OP_BINARY_LOOP(id##_u16, uint16_t, uint16_t, uint16_t, (uint32_t)x OP(uint32_t) y)             \
    OP_BINARY_LOOP(id##_u32, uint32_t, uint32_t, uint32_t, x OP y)                                 \
    OP_BINARY_LOOP(id##_u64, uint64_t, uint64_t, uint64_t, x OP y)
#define WRAPPING_FNS(id)                                                                           \
    [OP_U8] = id##_u8, [OP_U16] = id##_u16, [OP_U32] = id##_u32, [OP_U64] = id##_u64,              \
    [OP_I8] = id##_u8, [OP_I16] = id##_u16, [OP_I32] = id##_u32, [OP_I64] = id##_u64

#define ARITHMETIC_ROW(id, NAME, KERN, OP)                                                         \
    FLOAT_LOOPS(id, x OP y)                                                                        \
    WRAPPING_LOOPS(id, OP)                                                                         \
    static const struct op_binary id##_row = {                                                     \
        .desc = DESC(NAME, 3), .fn = {FLOAT_FNS(id), WRAPPING_FNS(id)}, .kern = OP_KERN(KERN)};    \
    OP_REGISTER_ROW(id##_row);

ARITHMETIC_ROW(add, "Add", K_ADD, +)
ARITHMETIC_ROW(sub, "Sub", K_SUB, -)
ARITHMETIC_ROW(mul, "Mul", K_MUL, *)

#define BITWISE_ROW(id, NAME, OP)                                                                  \
    WRAPPING_LOOPS(id, OP)                                                                         \
    static const struct op_binary id##_row = {.desc = DESC(NAME, 3), .fn = {WRAPPING_FNS(id)}};    \
    OP_REGISTER_ROW(id##_row);

BITWISE_ROW(bitwise_and, "BitwiseAnd", &)
BITWISE_ROW(bitwise_or, "BitwiseOr", |)
BITWISE_ROW(bitwise_xor, "BitwiseXor", ^)

/* --- division ----------------------------------------------------------------------------------
 */

FLOAT_LOOPS(div, x / y)
#define X(suffix, TYPE, T, WIDE) OP_BINARY_LOOP(div_##suffix, T, T, T, y == 0 ? 0 : x / y)
UNSIGNED_TYPES(X)
#undef X
#define X(suffix, TYPE, T, WIDE)                                                                   \
    OP_BINARY_LOOP(div_##suffix, T, T, T,                                                          \
                   y == 0    ? 0                                                                   \
                   : y == -1 ? 0 - (uint64_t)x                                                     \
                             : (uint64_t)(x / y))
SIGNED_TYPES(X)
#undef X
static const struct op_binary div_row = {
    .desc = DESC("Div", 3),
    .fn = {FLOAT_FNS(div),
#define X(suffix, TYPE, T, WIDE) [OP_##TYPE] = div_##suffix,
           UNSIGNED_TYPES(X) SIGNED_TYPES(X)
#undef X
    },
    .kern = OP_KERN(K_DIV),
};
OP_REGISTER_ROW(div_row);

/* --- remainders: the sign of the divisor (Python's %), or with fmod = 1 of the dividend (C's) ---
 */

#define FLOAT_MOD(T)                                                                               \
    static inline T mod_##T(T x, T y) {                                                            \
        T r = fmod(x, y);                                                                          \
        return r != 0 && (r < 0) != (y < 0) ? r + y : r;                                           \
    }
FLOAT_MOD(float)
FLOAT_MOD(double)
OP_BINARY_LOOP(mod_f32, float, float, float, mod_float(x, y))
OP_BINARY_LOOP(mod_f64, double, double, double, mod_double(x, y))
FLOAT_LOOPS(fmod, fmod(x, y))

static inline int64_t mod_int(int64_t x, int64_t y) {
    if (y == 0 || y == -1) return 0;
    int64_t r = x % y;
    return r != 0 && (r < 0) != (y < 0) ? r + y : r;
}
static inline int64_t rem_int(int64_t x, int64_t y) {
    return y == 0 || y == -1 ? 0 : x % y;
}
#define X(suffix, TYPE, T, WIDE)                                                                   \
    OP_BINARY_LOOP(mod_##suffix, T, T, T, mod_int(x, y))                                           \
    OP_BINARY_LOOP(fmod_##suffix, T, T, T, rem_int(x, y))
SIGNED_TYPES(X)
#undef X
#define X(suffix, TYPE, T, WIDE) OP_BINARY_LOOP(mod_##suffix, T, T, T, y == 0 ? 0 : x % y)
UNSIGNED_TYPES(X)
#undef X

static const op_binary_fn fmod_fn[OP_N_TYPES] = {FLOAT_FNS(fmod),
#define X(suffix, TYPE, T, WIDE) [OP_##TYPE] = fmod_##suffix,
                                                 SIGNED_TYPES(X)
#undef X
#define X(suffix, TYPE, T, WIDE) [OP_##TYPE] = mod_##suffix,
                                                     UNSIGNED_TYPES(X)
#undef X
};

static enum op_status mod_run(struct op_ctx *ctx) {
    const enum op_type type = ctx->in[0]->dtype;
    if (!op__attr_int(ctx->node, "fmod", 0)) return op__binary_run(ctx);
    if (ctx->out[0])
        op__binary_apply(ctx, fmod_fn[op__is_half(type) ? OP_F32 : type], NULL, ctx->out[0],
                         ctx->in[0], ctx->in[1]);
    return OP_OK;
}

static const struct op_binary mod_row = {
    .desc = {.name = "Mod",
             .domain = "",
             .since = 10,
             .in_min = 2,
             .in_max = 2,
             .out_min = 1,
             .out_max = 1,
             .inplace = 3,
             .infer = op__binary_infer,
             .run = mod_run},
    .fn = {FLOAT_FNS(mod),
#define X(suffix, TYPE, T, WIDE) [OP_##TYPE] = mod_##suffix,
           UNSIGNED_TYPES(X) SIGNED_TYPES(X)
#undef X
    },
};
OP_REGISTER_ROW(mod_row);

/* --- shifts ------------------------------------------------------------------------------------
 */

#define X(suffix, TYPE, T, WIDE)                                                                   \
    OP_BINARY_LOOP(left_##suffix, T, T, T, y >= 8 * sizeof(T) ? 0 : (WIDE)x << y)                  \
    OP_BINARY_LOOP(right_##suffix, T, T, T, y >= 8 * sizeof(T) ? 0 : (WIDE)x >> y)
UNSIGNED_TYPES(X)
#undef X

static const op_binary_fn left_fn[OP_N_TYPES] = {
#define X(suffix, TYPE, T, WIDE) [OP_##TYPE] = left_##suffix,
    UNSIGNED_TYPES(X)
#undef X
};

static enum op_status shift_infer(struct op_ctx *ctx) {
    const char *direction = op__attr_string(ctx->node, "direction", "");
    if (strcmp(direction, "LEFT") && strcmp(direction, "RIGHT"))
        return op__fail(ctx, OP_BAD_VALUE, "direction is \"%s\", must be \"LEFT\" or \"RIGHT\"",
                        direction);
    return op__binary_infer(ctx);
}

static enum op_status shift_run(struct op_ctx *ctx) {
    if (strcmp(op__attr_string(ctx->node, "direction", ""), "LEFT")) return op__binary_run(ctx);
    if (ctx->out[0])
        op__binary_apply(ctx, left_fn[ctx->in[0]->dtype], NULL, ctx->out[0], ctx->in[0],
                         ctx->in[1]);
    return OP_OK;
}

static const struct op_binary shift_row = {
    .desc = {.name = "BitShift",
             .domain = "",
             .since = 11,
             .in_min = 2,
             .in_max = 2,
             .out_min = 1,
             .out_max = 1,
             .inplace = 3,
             .infer = shift_infer,
             .run = shift_run},
    .fn =
        {
#define X(suffix, TYPE, T, WIDE) [OP_##TYPE] = right_##suffix,
            UNSIGNED_TYPES(X)
#undef X
        },
};
OP_REGISTER_ROW(shift_row);
