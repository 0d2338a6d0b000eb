/* compare.c: comparisons and logic, one row an operator; the result is bool. */
#include "ops/op/elementwise.h"

#include <string.h>

OP_VECTOR_FILE

#define DESC(NAME, SINCE)                                                                          \
    {                                                                                              \
        .name = NAME, .domain = "", .since = SINCE, .in_min = 2, .in_max = 2, .out_min = 1,        \
        .out_max = 1, .upgrade = op__binary_upgrade, .infer = op__binary_infer,                    \
        .run = op__binary_run                                                                      \
    }

#define TYPES(X, ...)                                                                              \
    X(f32, F32, float, __VA_ARGS__)                                                                \
    X(f64, F64, double, __VA_ARGS__)                                                               \
    X(i8, I8, int8_t, __VA_ARGS__)                                                                 \
    X(i16, I16, int16_t, __VA_ARGS__)                                                              \
    X(i32, I32, int32_t, __VA_ARGS__)                                                              \
    X(i64, I64, int64_t, __VA_ARGS__)                                                              \
    X(u8, U8, uint8_t, __VA_ARGS__)                                                                \
    X(u16, U16, uint16_t, __VA_ARGS__)                                                             \
    X(u32, U32, uint32_t, __VA_ARGS__)                                                             \
    X(u64, U64, uint64_t, __VA_ARGS__)

#define LOOP(suffix, TYPE, T, id, OP) OP_BINARY_LOOP(id##_##suffix, uint8_t, T, T, x OP y)
#define FN(suffix, TYPE, T, id, OP) [OP_##TYPE] = id##_##suffix,
#define COMPARE_ROW(id, NAME, SINCE, OP)                                                           \
    TYPES(LOOP, id, OP)                                                                            \
    static const struct op_binary id##_row = {                                                     \
        .desc = DESC(NAME, SINCE), .fn = {TYPES(FN, id, OP)}, .out = OP_BOOL};                     \
    OP_REGISTER_ROW(id##_row);

COMPARE_ROW(less, "Less", 1, <)
COMPARE_ROW(greater, "Greater", 1, >)
COMPARE_ROW(less_or_equal, "LessOrEqual", 12, <=)
COMPARE_ROW(greater_or_equal, "GreaterOrEqual", 12, >=)

TYPES(LOOP, equal, ==)
OP_BINARY_LOOP(equal_bool, uint8_t, uint8_t, uint8_t, !x == !y)

static inline bool same_string(struct op_string a, struct op_string b) {
    return a.len == b.len && (a.len == 0 || !memcmp(a.data, b.data, a.len));
}
OP_BINARY_LOOP(equal_string, uint8_t, struct op_string, struct op_string, same_string(x, y))

static const struct op_binary equal_row = {
    .desc = DESC("Equal", 1),
    .fn = {TYPES(FN, equal, ==)[OP_BOOL] = equal_bool, [OP_STRING] = equal_string},
    .out = OP_BOOL};
OP_REGISTER_ROW(equal_row);

#define LOGIC_ROW(id, NAME, OP)                                                                    \
    OP_BINARY_LOOP(id##_bool, uint8_t, uint8_t, uint8_t, !!x OP !!y)                               \
    static const struct op_binary id##_row = {.desc = {.name = NAME,                               \
                                                       .domain = "",                               \
                                                       .since = 1,                                 \
                                                       .in_min = 2,                                \
                                                       .in_max = 2,                                \
                                                       .out_min = 1,                               \
                                                       .out_max = 1,                               \
                                                       .inplace = 3,                               \
                                                       .upgrade = op__binary_upgrade,              \
                                                       .infer = op__binary_infer,                  \
                                                       .run = op__binary_run},                     \
                                              .fn = {[OP_BOOL] = id##_bool}};                      \
    OP_REGISTER_ROW(id##_row);

LOGIC_ROW(and, "And", &)
LOGIC_ROW(or, "Or", |)
LOGIC_ROW(xor, "Xor", ^)
