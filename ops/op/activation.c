/* activation.c: one row an activation function: its formula, its attributes and their defaults. */
#include "ops/op/elementwise.h"

#include <math.h>
#include <string.h>
#include <tgmath.h>

OP_VECTOR_FILE

#define ALPHA param[0]
#define BETA param[1]

#define LOOPS(id, EXPR)                                                                            \
    OP_UNARY_LOOP(id##_f32, float, float, EXPR)                                                    \
    OP_UNARY_LOOP(id##_f64, double, double, EXPR)

#define ROW_OF(id, DOMAIN, NAME, SINCE, KERN, ...)                                                 \
    static const struct op_unary id##_row = {.desc = {.name = NAME,                                \
                                                      .domain = DOMAIN,                            \
                                                      .since = SINCE,                              \
                                                      .in_min = 1,                                 \
                                                      .in_max = 1,                                 \
                                                      .out_min = 1,                                \
                                                      .out_max = 1,                                \
                                                      .inplace = 1,                                \
                                                      .infer = op__unary_infer,                    \
                                                      .run = op__unary_run,                        \
                                                      .ref = op__unary_ref},                       \
                                             .fn = {[OP_F32] = id##_f32, [OP_F64] = id##_f64},     \
                                             .kern = KERN,                                         \
                                             .param = {__VA_ARGS__}};                              \
    OP_REGISTER_ROW(id##_row)

#define ROW(id, NAME, SINCE, KERN, EXPR, ...)                                                      \
    LOOPS(id, EXPR)                                                                                \
    ROW_OF(id, "", NAME, SINCE, KERN, __VA_ARGS__)

#define SIGMOID(v) (1 / (1 + exp(-(v))))
#define SOFTPLUS(v) (((v) > 0 ? (v) : 0) + log1p(exp(-fabs(v))))
#define CLAMP01(v) ((v) < 0 ? 0 : (v) > 1 ? 1 : (v))

ROW(leaky_relu, "LeakyRelu", 1, OP_KERN(K_LEAKY_RELU), x < 0 ? ALPHA * x : x, {"alpha", 0.01f});
ROW(elu, "Elu", 1, OP_KERN(K_ELU), x < 0 ? ALPHA * expm1(x) : x, {"alpha", 1.0f});
ROW(selu, "Selu", 1, 0, BETA *(x > 0 ? x : ALPHA * expm1(x)), {"alpha", 1.67326319217681884765625f},
    {"gamma", 1.05070102214813232421875f});
ROW(celu, "Celu", 12, 0, x < 0 ? ALPHA * expm1(x / ALPHA) : x, {"alpha", 1.0f});
ROW(thresholded_relu, "ThresholdedRelu", 1, 0, x > ALPHA ? x : 0, {"alpha", 1.0f});
ROW(hard_sigmoid, "HardSigmoid", 1, OP_KERN(K_HARD_SIGMOID), CLAMP01(ALPHA *x + BETA),
    {"alpha", 0.2f}, {"beta", 0.5f});
ROW(hard_swish, "HardSwish", 14, OP_KERN(K_HARD_SWISH), x *CLAMP01(x / 6 + (__typeof__(x))0.5),
    {NULL, 0});
ROW(sigmoid, "Sigmoid", 1, OP_KERN(K_SIGMOID), SIGMOID(x), {NULL, 0});
ROW(tanh, "Tanh", 1, OP_KERN(K_TANH), tanh(x), {NULL, 0});
ROW(softplus, "Softplus", 1, OP_KERN(K_SOFTPLUS), SOFTPLUS(x), {NULL, 0});
ROW(softsign, "Softsign", 1, 0, x / (1 + fabs(x)), {NULL, 0});
ROW(mish, "Mish", 18, OP_KERN(K_MISH), x *tanh(SOFTPLUS(x)), {NULL, 0});

/* Swish is x sigmoid(alpha x), and QuickGelu is it with another alpha by default; the kernel has
 * alpha 1. */
LOOPS(swish, x *SIGMOID(ALPHA *x))
static enum op_status swish_run(struct op_ctx *ctx) {
    const struct op_unary *row = (const struct op_unary *)ctx->node->desc;
    const float param[OP_PARAM_MAX] = {op__attr_float(ctx->node, "alpha", row->param[0].dflt)};
    k_unary_fn *kern = param[0] == 1 ? op__kern(ctx)->math->unary[K_SILU] : NULL;
    if (ctx->out[0])
        op__unary_apply(ctx, ctx->in[0]->dtype == OP_F64 ? swish_f64 : swish_f32, kern, param,
                        ctx->out[0], ctx->in[0]);
    return OP_OK;
}
#define SWISH(DOMAIN, NAME, SINCE, DEFAULT)                                                        \
    {                                                                                              \
        .desc = {.name = NAME,                                                                     \
                 .domain = DOMAIN,                                                                 \
                 .since = SINCE,                                                                   \
                 .in_min = 1,                                                                      \
                 .in_max = 1,                                                                      \
                 .out_min = 1,                                                                     \
                 .out_max = 1,                                                                     \
                 .inplace = 1,                                                                     \
                 .infer = op__unary_infer,                                                         \
                 .run = swish_run,                                                                 \
                 .ref = op__unary_ref},                                                            \
        .fn = {[OP_F32] = swish_f32, [OP_F64] = swish_f64}, .param = {{"alpha", DEFAULT}},         \
    }
static const struct op_unary swish_row = SWISH("", "Swish", 24, 1.0f);
OP_REGISTER_ROW(swish_row);
static const struct op_unary quick_gelu_row = SWISH("com.microsoft", "QuickGelu", 1, 1.702f);
OP_REGISTER_ROW(quick_gelu_row);

/* --- Relu and Shrink take integers too ---------------------------------------------------------
 */

#define INT_TYPES(X)                                                                               \
    X(i8, I8, int8_t)                                                                              \
    X(i16, I16, int16_t)                                                                           \
    X(i32, I32, int32_t)                                                                           \
    X(i64, I64, int64_t)                                                                           \
    X(u8, U8, uint8_t)                                                                             \
    X(u16, U16, uint16_t)                                                                          \
    X(u32, U32, uint32_t)                                                                          \
    X(u64, U64, uint64_t)

LOOPS(relu, x < 0 ? 0 : x) /* of NaN: NaN */
OP_UNARY_LOOP(relu_i8, int8_t, int8_t, x < 0 ? 0 : x)
OP_UNARY_LOOP(relu_i16, int16_t, int16_t, x < 0 ? 0 : x)
OP_UNARY_LOOP(relu_i32, int32_t, int32_t, x < 0 ? 0 : x)
OP_UNARY_LOOP(relu_i64, int64_t, int64_t, x < 0 ? 0 : x)
static const struct op_unary relu_row = {
    .desc = {.name = "Relu",
             .domain = "",
             .since = 1,
             .in_min = 1,
             .in_max = 1,
             .out_min = 1,
             .out_max = 1,
             .inplace = 1,
             .infer = op__unary_infer,
             .run = op__unary_run,
             .ref = op__unary_ref},
    .fn = {[OP_F32] = relu_f32,
           [OP_F64] = relu_f64,
           [OP_I8] = relu_i8,
           [OP_I16] = relu_i16,
           [OP_I32] = relu_i32,
           [OP_I64] = relu_i64},
    .kern = OP_KERN(K_RELU),
};
OP_REGISTER_ROW(relu_row);

#define SHRINK(v) ((v) < -ALPHA ? (v) + BETA : (v) > ALPHA ? (v)-BETA : 0)
LOOPS(shrink, SHRINK(x))
/* Integers shrink as doubles do; what leaves the type's range wraps. */
#define X(suffix, TYPE, T)                                                                         \
    OP_UNARY_LOOP(shrink_##suffix, T, T,                                                           \
                  (int64_t)fmin(fmax(SHRINK((double)x), -0x1p63), 0x1.fffffffffffffp62))
INT_TYPES(X)
#undef X
static const struct op_unary shrink_row = {
    .desc = {.name = "Shrink",
             .domain = "",
             .since = 9,
             .in_min = 1,
             .in_max = 1,
             .out_min = 1,
             .out_max = 1,
             .inplace = 1,
             .infer = op__unary_infer,
             .run = op__unary_run,
             .ref = op__unary_ref},
    .fn = {[OP_F32] = shrink_f32,
           [OP_F64] = shrink_f64,
#define X(suffix, TYPE, T) [OP_##TYPE] = shrink_##suffix,
           INT_TYPES(X)
#undef X
    },
    .param = {{"lambd", 0.5f}, {"bias", 0.0f}},
};
OP_REGISTER_ROW(shrink_row);

/* --- Gelu --------------------------------------------------------------------------------------
 */

/* Exact: x/2 (1 + erf(x/√2)). By tanh: x/2 (1 + tanh(√(2/π) (x + 0.044715 x³))). */
LOOPS(gelu_erf, x / 2 * (1 + erf(x * (__typeof__(x))0.70710678118654752440)))
LOOPS(gelu_tanh, x / 2 *
                     (1 + tanh((__typeof__(x))0.79788456080286535588 *
                               (x + (__typeof__(x))0.044715 * x * x * x))))

static enum op_status gelu_infer(struct op_ctx *ctx) {
    const char *form = op__attr_string(ctx->node, "approximate", "none");
    if (strcmp(form, "none") && strcmp(form, "tanh"))
        return op__fail(ctx, OP_BAD_VALUE, "approximate is \"%s\", must be \"none\" or \"tanh\"",
                        form);
    return op__unary_infer(ctx);
}

static enum op_status gelu_of(struct op_ctx *ctx, const struct k_vmath *math) {
    const bool by_tanh = !strcmp(op__attr_string(ctx->node, "approximate", "none"), "tanh"),
               wide = ctx->in[0]->dtype == OP_F64;
    op_unary_fn fn =
        by_tanh ? (wide ? gelu_tanh_f64 : gelu_tanh_f32) : (wide ? gelu_erf_f64 : gelu_erf_f32);
    k_unary_fn *kern = math ? math->unary[by_tanh ? K_GELU_TANH : K_GELU] : NULL;
    if (ctx->out[0]) op__unary_apply(ctx, fn, kern, NULL, ctx->out[0], ctx->in[0]);
    return OP_OK;
}

static enum op_status gelu_run(struct op_ctx *ctx) {
    return gelu_of(ctx, op__kern(ctx)->math);
}

static enum op_status gelu_ref(struct op_ctx *ctx) {
    return gelu_of(ctx, NULL);
}

#define GELU(DOMAIN, SINCE)                                                                        \
    {                                                                                              \
        .desc = {.name = "Gelu",                                                                   \
                 .domain = DOMAIN,                                                                 \
                 .since = SINCE,                                                                   \
                 .in_min = 1,                                                                      \
                 .in_max = 1,                                                                      \
                 .out_min = 1,                                                                     \
                 .out_max = 1,                                                                     \
                 .inplace = 1,                                                                     \
                 .infer = gelu_infer,                                                              \
                 .run = gelu_run,                                                                  \
                 .ref = gelu_ref},                                                                 \
        .fn = {[OP_F32] = gelu_erf_f32, [OP_F64] = gelu_erf_f64},                                  \
    }
static const struct op_unary gelu_row = GELU("", 20);
OP_REGISTER_ROW(gelu_row);
static const struct op_unary gelu_ms_row = GELU("com.microsoft", 1);
OP_REGISTER_ROW(gelu_ms_row);

/* --- FastGelu and BiasGelu: Gelu of x + bias ---------------------------------------------------
 */

OP_BINARY_LOOP(fast_gelu_bias, float, float, float,
               (x + y) / 2 *
                   (1 + tanh(0.79788456080286535588f *
                             ((x + y) + 0.044715f * (x + y) * (x + y) * (x + y)))))
OP_BINARY_LOOP(gelu_bias, float, float, float,
               (x + y) / 2 * (1 + erf((x + y) * 0.70710678118654752440f)))

static enum op_status bias_gelu_infer(struct op_ctx *ctx) {
    const struct op_tensor *x = ctx->in[0], *b = ctx->n_in > 1 ? ctx->in[1] : NULL;
    if (!x || x->kind != OP_KIND_TENSOR || (x->dtype != OP_F32 && !op__is_half(x->dtype)))
        return op__fail(ctx, OP_BAD_TYPE, "takes f32, f16 or bf16, not %s",
                        x ? op_type_name(x->dtype) : "(absent)");
    if (b && (b->dtype != x->dtype || b->rank != 1 || x->rank < 1 ||
              b->dims[0] != x->dims[x->rank - 1])) {
        char tx[160], tb[160];
        return op__fail(ctx, OP_BAD_SHAPE,
                        "bias is %s, must be a vector of the last dimension of %s",
                        op_tensor_describe(b, tb, sizeof tb), op_tensor_describe(x, tx, sizeof tx));
    }
    op__set_like(ctx, 0, 0);
    return OP_OK;
}

static enum op_status bias_gelu_run(struct op_ctx *ctx) {
    const bool fast = ctx->node->desc->name[0] == 'F';
    if (!ctx->out[0]) return OP_OK;
    if (ctx->n_in > 1 && ctx->in[1])
        op__binary_apply(ctx, fast ? fast_gelu_bias : gelu_bias, NULL, ctx->out[0], ctx->in[0],
                         ctx->in[1]);
    else
        op__unary_apply(ctx, fast ? gelu_tanh_f32 : gelu_erf_f32, NULL, NULL, ctx->out[0],
                        ctx->in[0]);
    return OP_OK;
}

static const struct op_desc fast_gelu = {.name = "FastGelu",
                                         .domain = "com.microsoft",
                                         .since = 1,
                                         .in_min = 1,
                                         .in_max = 2,
                                         .out_min = 1,
                                         .out_max = 1,
                                         .inplace = 1,
                                         .infer = bias_gelu_infer,
                                         .run = bias_gelu_run};
OP_REGISTER(fast_gelu);
static const struct op_desc bias_gelu = {.name = "BiasGelu",
                                         .domain = "com.microsoft",
                                         .since = 1,
                                         .in_min = 2,
                                         .in_max = 2,
                                         .out_min = 1,
                                         .out_max = 1,
                                         .inplace = 1,
                                         .infer = bias_gelu_infer,
                                         .run = bias_gelu_run};
OP_REGISTER(bias_gelu);

/* --- PRelu -------------------------------------------------------------------------------------
 */

OP_BINARY_LOOP(prelu_f32, float, float, float, x < 0 ? x * y : x)
OP_BINARY_LOOP(prelu_f64, double, double, double, x < 0 ? x * y : x)
OP_BINARY_LOOP(prelu_i32, int32_t, int32_t, int32_t,
               x < 0 ? (uint32_t)x * (uint32_t)y : (uint32_t)x)
OP_BINARY_LOOP(prelu_i64, int64_t, int64_t, int64_t,
               x < 0 ? (uint64_t)x * (uint64_t)y : (uint64_t)x)
OP_BINARY_LOOP(prelu_u32, uint32_t, uint32_t, uint32_t, ((void)y, x))
OP_BINARY_LOOP(prelu_u64, uint64_t, uint64_t, uint64_t, ((void)y, x))

/* Before opset 7 the slope was one value or one a channel, and the channel is dimension 1. */
static enum op_status prelu_upgrade(struct op_graph *g, struct op_node *n, int opset,
                                    struct op_error *err) {
    (void)err;
    op__attr_remove(n, "axis");
    return opset < 7 ? op__attr_set_int(g, n, "axis", 1) : OP_OK;
}

static enum op_status prelu_infer(struct op_ctx *ctx) {
    enum op_status status = op__binary_infer(ctx);
    if (status != OP_OK) return status;
    const struct op_tensor *x = ctx->in[0], slope = op__binary_second(ctx);
    int64_t dims[OP_RANK_MAX];
    int rank;
    bool fits =
        op__broadcast(x->rank, x->dims, slope.rank, slope.dims, &rank, dims) && rank == x->rank;
    for (int i = 0; fits && i < rank; i++) fits = dims[i] == x->dims[i];
    if (!fits) {
        char tx[160], ts[160];
        return op__fail(ctx, OP_BAD_SHAPE, "slope %s does not broadcast to %s",
                        op_tensor_describe(ctx->in[1], ts, sizeof ts),
                        op_tensor_describe(x, tx, sizeof tx));
    }
    return OP_OK;
}

static const struct op_binary prelu_row = {
    .desc = {.name = "PRelu",
             .domain = "",
             .since = 1,
             .in_min = 2,
             .in_max = 2,
             .out_min = 1,
             .out_max = 1,
             .inplace = 1,
             .upgrade = prelu_upgrade,
             .infer = prelu_infer,
             .run = op__binary_run},
    .fn = {[OP_F32] = prelu_f32,
           [OP_F64] = prelu_f64,
           [OP_I32] = prelu_i32,
           [OP_I64] = prelu_i64,
           [OP_U32] = prelu_u32,
           [OP_U64] = prelu_u64},
};
OP_REGISTER_ROW(prelu_row);
