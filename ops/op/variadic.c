/* variadic.c: Sum, Mean, Max and Min of any number of broadcast inputs, added up from left to right
 * in the output. The output takes no input's memory: an input may be there twice. */
#include "ops/op/elementwise.h"

#include <string.h>

OP_VECTOR_FILE

#define FLOAT_TYPES(X)                                                                             \
    X(f32, F32, float)                                                                             \
    X(f64, F64, double)
#define ALL_TYPES(X)                                                                               \
    FLOAT_TYPES(X)                                                                                 \
    X(i8, I8, int8_t)                                                                              \
    X(i16, I16, int16_t)                                                                           \
    X(i32, I32, int32_t)                                                                           \
    X(i64, I64, int64_t)                                                                           \
    X(u8, U8, uint8_t)                                                                             \
    X(u16, U16, uint16_t)                                                                          \
    X(u32, U32, uint32_t)                                                                          \
    X(u64, U64, uint64_t)

#define X(suffix, TYPE, T)                                                                         \
    OP_BINARY_LOOP(sum_##suffix, T, T, T, x + y)                                                   \
    OP_UNARY_LOOP(mean_##suffix, T, T, x / (T)param[0])
FLOAT_TYPES(X)
#undef X
/* NaN wins over numbers. */
#define X(suffix, TYPE, T)                                                                         \
    OP_BINARY_LOOP(max_##suffix, T, T, T, x > y || x != x ? x : y)                                 \
    OP_BINARY_LOOP(min_##suffix, T, T, T, x < y || x != x ? x : y)
ALL_TYPES(X)
#undef X

static enum op_status variadic_infer(struct op_ctx *ctx) {
    const struct op_binary *row = (const struct op_binary *)ctx->node->desc;
    int64_t dims[OP_RANK_MAX] = {0}, sum[OP_RANK_MAX];
    int rank = 0;
    for (int i = 0; i < ctx->n_in; i++) {
        const struct op_tensor *t = ctx->in[i];
        if (!t) return op__fail(ctx, OP_BAD_MODEL, "input %d is absent", i);
        if (t->kind != OP_KIND_TENSOR || t->dtype != ctx->in[0]->dtype ||
            !row->fn[op__is_half(t->dtype) ? OP_F32 : t->dtype])
            return op__fail(ctx, OP_BAD_TYPE, "input %d is %s, input 0 is %s", i,
                            op_type_name(t->dtype), op_type_name(ctx->in[0]->dtype));
        if (!op__broadcast(rank, dims, t->rank, t->dims, &rank, sum)) {
            char text[160];
            return op__fail(ctx, OP_BAD_SHAPE,
                            "input %d, %s, does not broadcast with those before it", i,
                            op_tensor_describe(t, text, sizeof text));
        }
        memcpy(dims, sum, sizeof dims);
    }
    op__set(ctx, 0, ctx->in[0]->dtype, rank, dims);
    return OP_OK;
}

static enum op_status variadic_of(struct op_ctx *ctx, bool plain) {
    const struct op_binary *row = (const struct op_binary *)ctx->node->desc;
    struct op_tensor *out = ctx->out[0];
    if (!out) return OP_OK;
    op_binary_fn fn = row->fn[op__is_half(out->dtype) ? OP_F32 : out->dtype];
    if (ctx->n_in == 1) {
        int64_t bytes = op_tensor_bytes(out);
        if (bytes > 0) memcpy(out->data, ctx->in[0]->data, (size_t)bytes);
        return OP_OK;
    }
    k_binary_fn *kern = plain ? NULL : op__kern(ctx)->math->binary[row->kern - 1];
    op__binary_apply(ctx, fn, kern, out, ctx->in[0], ctx->in[1]);
    for (int i = 2; i < ctx->n_in; i++) op__binary_apply(ctx, fn, kern, out, out, ctx->in[i]);
    return OP_OK;
}

static enum op_status variadic_run(struct op_ctx *ctx) {
    return variadic_of(ctx, false);
}

static enum op_status variadic_ref(struct op_ctx *ctx) {
    return variadic_of(ctx, true);
}

static enum op_status mean_run(struct op_ctx *ctx) {
    const float n = (float)ctx->n_in;
    variadic_of(ctx, false);
    if (ctx->out[0])
        op__unary_apply(ctx, ctx->out[0]->dtype == OP_F64 ? mean_f64 : mean_f32, NULL, &n,
                        ctx->out[0], ctx->out[0]);
    return OP_OK;
}

#define DESC(NAME, ...)                                                                            \
    {                                                                                              \
        .name = NAME, .domain = "", .since = 1, .in_min = 1, .in_max = -1, .out_min = 1,           \
        .out_max = 1, .infer = variadic_infer, __VA_ARGS__                                         \
    }
#define FN(id, suffix, TYPE) [OP_##TYPE] = id##_##suffix,

#define X(suffix, TYPE, T) FN(sum, suffix, TYPE)
static const struct op_binary sum_row = {.desc =
                                             DESC("Sum", .run = variadic_run, .ref = variadic_ref),
                                         .fn = {FLOAT_TYPES(X)},
                                         .kern = OP_KERN(K_ADD)};
OP_REGISTER_ROW(sum_row);
static const struct op_binary mean_row = {
    .desc = DESC("Mean", .run = mean_run), .fn = {FLOAT_TYPES(X)}, .kern = OP_KERN(K_ADD)};
OP_REGISTER_ROW(mean_row);
#undef X
#define X(suffix, TYPE, T) FN(max, suffix, TYPE)
static const struct op_binary max_row = {.desc =
                                             DESC("Max", .run = variadic_run, .ref = variadic_ref),
                                         .fn = {ALL_TYPES(X)},
                                         .kern = OP_KERN(K_MAX)};
OP_REGISTER_ROW(max_row);
#undef X
#define X(suffix, TYPE, T) FN(min, suffix, TYPE)
static const struct op_binary min_row = {.desc =
                                             DESC("Min", .run = variadic_run, .ref = variadic_ref),
                                         .fn = {ALL_TYPES(X)},
                                         .kern = OP_KERN(K_MIN)};
OP_REGISTER_ROW(min_row);
#undef X
