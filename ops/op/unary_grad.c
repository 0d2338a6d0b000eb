/* unary_grad.c: gradients of functions of one element, dx = dy f'(x).
 *
 * What: one row a function: its name, whether the derivative is taken from the input x or from the output y, and the formula in v
 * (that value) and the forward node's parameters. Each row is an operator of the domain "quern" called <name>Grad, with inputs dy
 * and v of one shape, f32 or f64.
 *
 * Why an operator a function and not a few ordinary nodes: a chain of nodes would go through memory three to six times for what is
 * a handful of instructions. From y where that is possible: then x need not be kept until the backward pass.
 *
 * At a kink (Relu at 0, Abs at 0, …) the derivative of the side that the forward formula takes there is used; 0 for Abs and Relu. */
#include "ops/op/elementwise.h"

#include <math.h>
#include <string.h>
#include <tgmath.h>

#include "ops/grad.h"

OP_VECTOR_FILE

typedef void (*unary_grad_fn)(void *dx, const void *dy, const void *v, int64_t n, const float *param);

struct op_unary_grad {
    struct op_desc desc;
    const char *of;  /* the forward operator */
    bool from_y;
    unary_grad_fn f32, f64;
    int kern; /* OP_KERN of the kernel that gives f' of x for f32 in one go; 0: none */
    struct op_param param[OP_PARAM_MAX];
};

#define GRAD_LOOP(id, T, EXPR)                                                                     \
    static void id(void *to, const void *by, const void *of, int64_t n, const float *param) {      \
        T *dx = to;                                                                                \
        const T *dy = by, *from = of;                                                              \
        (void)param;                                                                               \
        OP_INDEPENDENT for (int64_t i = 0; i < n; i++) {                                           \
            const T v = from[i];                                                                   \
            dx[i] = dy[i] * (T)(EXPR);                                                             \
        }                                                                                          \
    }

#define A param[0]
#define B param[1]
#define LIKE(number) ((__typeof__(v))(number))
#define SIGN(v) ((v > 0) - (v < 0))
#define SIGMOID(v) (1 / (1 + exp(-(v))))
#define SOFTPLUS(v) (((v) > 0 ? (v) : 0) + log1p(exp(-fabs(v))))
#define IN01(v) ((v) > 0 && (v) < 1)

static enum op_status unary_grad_infer(struct op_ctx *ctx);
static enum op_status unary_grad_run(struct op_ctx *ctx);

#define DESC(NAME)                                                                                 \
    {                                                                                              \
        .name = NAME "Grad", .domain = "quern", .since = 1, .in_min = 2, .in_max = 2,              \
        .out_min = 1, .out_max = 1, .inplace = 3, .infer = unary_grad_infer, .run = unary_grad_run \
    }
#define ROW(id, NAME, FROM_Y, KERN, EXPR, ...)                                                     \
    GRAD_LOOP(id##_f32, float, EXPR)                                                               \
    GRAD_LOOP(id##_f64, double, EXPR)                                                              \
    static const struct op_unary_grad id##_row = {.desc = DESC(NAME), .of = NAME, .from_y = FROM_Y, .f32 = id##_f32, .f64 = id##_f64, .kern = KERN, .param = {__VA_ARGS__}}; \
    OP_REGISTER_ROW(id##_row)

#define NO {NULL, 0}
#define X false
#define Y true
ROW(relu, "Relu", Y, 0, v > 0, NO);
ROW(sigmoid, "Sigmoid", Y, 0, v * (1 - v), NO);
ROW(tanh, "Tanh", Y, 0, 1 - v * v, NO);
ROW(exp, "Exp", Y, 0, v, NO);
ROW(sqrt, "Sqrt", Y, 0, LIKE(0.5) / v, NO);
ROW(reciprocal, "Reciprocal", Y, 0, -v * v, NO);
ROW(tan, "Tan", Y, 0, 1 + v * v, NO);
ROW(log, "Log", X, 0, 1 / v, NO);
ROW(abs, "Abs", X, 0, SIGN(v), NO);
ROW(sin, "Sin", X, 0, cos(v), NO);
ROW(cos, "Cos", X, 0, -sin(v), NO);
ROW(asin, "Asin", X, 0, 1 / sqrt(1 - v * v), NO);
ROW(acos, "Acos", X, 0, -1 / sqrt(1 - v * v), NO);
ROW(atan, "Atan", X, 0, 1 / (1 + v * v), NO);
ROW(sinh, "Sinh", X, 0, cosh(v), NO);
ROW(cosh, "Cosh", X, 0, sinh(v), NO);
ROW(asinh, "Asinh", X, 0, 1 / sqrt(v * v + 1), NO);
ROW(acosh, "Acosh", X, 0, 1 / sqrt(v * v - 1), NO);
ROW(atanh, "Atanh", X, 0, 1 / (1 - v * v), NO);
ROW(leaky_relu, "LeakyRelu", X, 0, v < 0 ? A : 1, {"alpha", 0.01f});
ROW(elu, "Elu", X, 0, v < 0 ? A * exp(v) : 1, {"alpha", 1.0f});
ROW(selu, "Selu", X, 0, B *(v > 0 ? LIKE(1) : A * exp(v)), {"alpha", 1.67326319217681884765625f}, {"gamma", 1.05070102214813232421875f});
ROW(celu, "Celu", X, 0, v < 0 ? exp(v / A) : 1, {"alpha", 1.0f});
ROW(thresholded_relu, "ThresholdedRelu", X, 0, v > A, {"alpha", 1.0f});
ROW(shrink, "Shrink", X, 0, v < -A || v > A, {"lambd", 0.5f});
ROW(hard_sigmoid, "HardSigmoid", X, 0, IN01(A *v + B) ? A : 0, {"alpha", 0.2f}, {"beta", 0.5f});
ROW(hard_swish, "HardSwish", X, 0, v <= -3 ? 0 : v >= 3 ? 1 : v / 3 + LIKE(0.5), NO);
ROW(softplus, "Softplus", X, OP_KERN(K_SIGMOID), SIGMOID(v), NO);
ROW(softsign, "Softsign", X, 0, 1 / ((1 + fabs(v)) * (1 + fabs(v))), NO);

/* --- those whose f32 form goes through kernels, block by block ------------------------------------ */

#define BLOCKS(n) for (int64_t at = 0, m; (m = (n) - at < OP_BLOCK ? (n) - at : OP_BLOCK) > 0; at += m)
#define KERN_ROW(id, NAME, EXPR, ...)                                                              \
    GRAD_LOOP(id##_f64, double, EXPR)                                                              \
    static const struct op_unary_grad id##_row = {.desc = DESC(NAME), .of = NAME, .f32 = id##_f32, .f64 = id##_f64, .param = {__VA_ARGS__}}; \
    OP_REGISTER_ROW(id##_row)

/* x s(a x): s + a x s (1 - s) */
static void swish_f32(void *to, const void *by, const void *of, int64_t n, const float *param) {
    const struct k_vmath *math = k_default()->math;
    float s[OP_BLOCK];
    BLOCKS(n) {
        float *dx = (float *)to + at;
        const float *dy = (const float *)by + at, *x = (const float *)of + at;
        math->unary[K_LINEAR](m, x, s, A, 0);
        math->unary[K_SIGMOID](m, s, s, 0, 0);
        OP_INDEPENDENT for (int64_t i = 0; i < m; i++) dx[i] = dy[i] * (s[i] + A * x[i] * s[i] * (1 - s[i]));
    }
}
KERN_ROW(swish, "Swish", SIGMOID(A *v) + A * v * SIGMOID(A * v) * (1 - SIGMOID(A * v)), {"alpha", 1.0f});

/* 2 e^(-x^2) / sqrt pi */
static void erf_f32(void *to, const void *by, const void *of, int64_t n, const float *param) {
    const struct k_vmath *math = k_default()->math;
    float e[OP_BLOCK];
    (void)param;
    BLOCKS(n) {
        float *dx = (float *)to + at;
        const float *dy = (const float *)by + at, *x = (const float *)of + at;
        for (int64_t i = 0; i < m; i++) e[i] = -x[i] * x[i];
        math->unary[K_EXP](m, e, e, 0, 0);
        OP_INDEPENDENT for (int64_t i = 0; i < m; i++) dx[i] = dy[i] * (1.12837916709551257390f * e[i]);
    }
}
KERN_ROW(erf, "Erf", LIKE(1.12837916709551257390) * exp(-v * v), NO);

/* x tanh(softplus x): t + x (1 - t^2) sigmoid(x) */
static void mish_f32(void *to, const void *by, const void *of, int64_t n, const float *param) {
    const struct k_vmath *math = k_default()->math;
    float s[OP_BLOCK], t[OP_BLOCK];
    (void)param;
    BLOCKS(n) {
        float *dx = (float *)to + at;
        const float *dy = (const float *)by + at, *x = (const float *)of + at;
        math->unary[K_SIGMOID](m, x, s, 0, 0);
        math->unary[K_SOFTPLUS](m, x, t, 0, 0);
        math->unary[K_TANH](m, t, t, 0, 0);
        OP_INDEPENDENT for (int64_t i = 0; i < m; i++) dx[i] = dy[i] * (t[i] + x[i] * (1 - t[i] * t[i]) * s[i]);
    }
}
static inline double mish_slope(double v) {
    double t = tanh(SOFTPLUS(v));
    return t + v * (1 - t * t) * SIGMOID(v);
}
KERN_ROW(mish, "Mish", mish_slope(v), NO);

/* Gelu: x P(x), P the normal distribution: P + x p; by tanh: (1 + t) / 2 + x (1 - t^2) u' / 2 with t = tanh u. param[0]: by tanh. */
#define ROOT_2_PI 0.79788456080286535588
#define CUBE 0.044715
static void gelu_f32(void *to, const void *by, const void *of, int64_t n, const float *param) {
    const struct k_vmath *math = k_default()->math;
    const float c = (float)ROOT_2_PI, cube = (float)CUBE;
    float t[OP_BLOCK], e[OP_BLOCK];
    BLOCKS(n) {
        float *dx = (float *)to + at;
        const float *dy = (const float *)by + at, *x = (const float *)of + at;
        if (A != 0) {
            OP_INDEPENDENT for (int64_t i = 0; i < m; i++) t[i] = c * (x[i] + cube * x[i] * x[i] * x[i]);
            math->unary[K_TANH](m, t, t, 0, 0);
            OP_INDEPENDENT for (int64_t i = 0; i < m; i++)
                dx[i] = dy[i] * (0.5f * (1 + t[i]) + 0.5f * x[i] * (1 - t[i] * t[i]) * c * (1 + 3 * cube * x[i] * x[i]));
            continue;
        }
        math->unary[K_LINEAR](m, x, t, 0.70710678118654752440f, 0);
        math->unary[K_ERF](m, t, t, 0, 0);
        OP_INDEPENDENT for (int64_t i = 0; i < m; i++) e[i] = -0.5f * x[i] * x[i];
        math->unary[K_EXP](m, e, e, 0, 0);
        OP_INDEPENDENT for (int64_t i = 0; i < m; i++) dx[i] = dy[i] * (0.5f * (1 + t[i]) + 0.39894228040143267794f * x[i] * e[i]);
    }
}
static inline double gelu_slope(double v, bool by_tanh) {
    if (!by_tanh) return (1 + erf(v * 0.70710678118654752440)) / 2 + 0.39894228040143267794 * v * exp(-v * v / 2);
    double t = tanh(ROOT_2_PI * (v + CUBE * v * v * v));
    return (1 + t) / 2 + v / 2 * (1 - t * t) * ROOT_2_PI * (1 + 3 * CUBE * v * v);
}
KERN_ROW(gelu, "Gelu", gelu_slope(v, A != 0), {"tanh", 0.0f});

/* --- running ---------------------------------------------------------------------------------------- */

static enum op_status unary_grad_infer(struct op_ctx *ctx) {
    const struct op_tensor *dy = ctx->in[0], *v = ctx->in[1];
    char td[160], tv[160];
    if (!dy || !v) return op__fail(ctx, OP_BAD_MODEL, "input %d is absent", dy ? 1 : 0);
    if (dy->dtype != OP_F32 && dy->dtype != OP_F64) return op__fail(ctx, OP_BAD_TYPE, "takes f32 or f64, not %s", op_type_name(dy->dtype));
    if (dy->kind != OP_KIND_TENSOR || v->kind != OP_KIND_TENSOR || dy->dtype != v->dtype || dy->rank != v->rank ||
        memcmp(dy->dims, v->dims, (size_t)v->rank * sizeof *v->dims))
        return op__fail(ctx, OP_BAD_SHAPE, "the gradient is %s, the value %s, expected one type and shape", op_tensor_describe(dy, td, sizeof td),
                        op_tensor_describe(v, tv, sizeof tv));
    op__set_like(ctx, 0, 1);
    return OP_OK;
}

struct piece {
    const struct op_ctx *ctx;
    const struct op_unary_grad *row;
    float param[OP_PARAM_MAX];
};

static void unary_grad_piece(void *arg, int64_t first, int64_t n) {
    const struct piece *p = arg;
    const struct op_tensor *dy = p->ctx->in[0], *v = p->ctx->in[1];
    char *dx = p->ctx->out[0]->data;
    size_t at = (size_t)first * op_type_size(v->dtype);
    if (v->dtype == OP_F64) p->row->f64(dx + at, (const char *)dy->data + at, (const char *)v->data + at, n, p->param);
    else if (!p->row->kern) p->row->f32(dx + at, (const char *)dy->data + at, (const char *)v->data + at, n, p->param);
    else {
        float slope[OP_BLOCK];
        const struct k_vmath *math = op__kern(p->ctx)->math;
        const float *by = (const float *)dy->data + first, *x = (const float *)v->data + first;
        float *to = (float *)p->ctx->out[0]->data + first;
        for (int64_t i = 0; i < n; i += OP_BLOCK) {
            const int64_t m = n - i < OP_BLOCK ? n - i : OP_BLOCK;
            math->unary[p->row->kern - 1](m, x + i, slope, 0, 0);
            math->binary[K_MUL](m, by + i, false, slope, false, to + i);
        }
    }
}

static enum op_status unary_grad_run(struct op_ctx *ctx) {
    struct piece p = {.ctx = ctx, .row = (const struct op_unary_grad *)ctx->node->desc};
    for (int i = 0; i < OP_PARAM_MAX && p.row->param[i].name; i++) p.param[i] = op__attr_float(ctx->node, p.row->param[i].name, p.row->param[i].dflt);
    if (ctx->out[0]) op__pieces(ctx, op_tensor_count(ctx->in[1]), unary_grad_piece, &p);
    return OP_OK;
}

/* --- emitting --------------------------------------------------------------------------------------- */

static const struct op_unary_grad *const all[] = {
    &relu_row, &sigmoid_row, &tanh_row, &exp_row, &sqrt_row, &reciprocal_row, &tan_row, &log_row, &abs_row, &sin_row, &cos_row, &asin_row, &acos_row,
    &atan_row, &sinh_row, &cosh_row, &asinh_row, &acosh_row, &atanh_row, &erf_row, &leaky_relu_row, &elu_row, &selu_row, &celu_row,
    &thresholded_relu_row, &shrink_row, &hard_sigmoid_row, &hard_swish_row, &softplus_row, &softsign_row, &swish_row, &mish_row, &gelu_row,
};

/* With an attribute of the table's name on the new node where the forward node has one or another default. */
static enum op_status emit_unary(struct op_grad *g, const char *name) {
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        if (strcmp(all[i]->of, name)) continue;
        int in[2] = {g->dy[0], all[i]->from_y ? g->out[0] : g->in[0]}, out;
        struct op_node *n = op__emit(g, "quern", all[i]->desc.name, 2, in, 1, &out);
        op__attrs_copy(g, n);
        if (n && !strcmp(name, "Gelu") && !strcmp(op__attr_string(g->node, "approximate", "none"), "tanh") &&
            op__attr_set_float(g->graph, n, "tanh", 1) != OP_OK)
            g->failed = true;
        op__grad_set(g, 0, out);
        return OP_OK;
    }
    return op__grad_refuse(g, "(it is not in the table)");
}
static enum op_status unary_grad(struct op_grad *g) {
    return emit_unary(g, g->node->desc->name);
}
static enum op_status quick_gelu_grad(struct op_grad *g) { /* Swish with another default */
    int in[2] = {g->dy[0], g->in[0]}, out;
    struct op_node *n = op__emit(g, "quern", "SwishGrad", 2, in, 1, &out);
    if (n && op__attr_set_float(g->graph, n, "alpha", op__attr_float(g->node, "alpha", 1.702f)) != OP_OK) g->failed = true;
    op__grad_set(g, 0, out);
    return OP_OK;
}
static enum op_status neg_grad(struct op_grad *g) {
    op__grad_set(g, 0, op__emit1(g, "Neg", g->dy[0]));
    return OP_OK;
}
static enum op_status zero_grad(struct op_grad *g) { /* of a step function */
    (void)g;
    return OP_OK;
}

static const struct op_grad_row unary_grads[] = {
    {"", "Relu", unary_grad}, {"", "Sigmoid", unary_grad}, {"", "Tanh", unary_grad}, {"", "Exp", unary_grad}, {"", "Sqrt", unary_grad},
    {"", "Reciprocal", unary_grad}, {"", "Tan", unary_grad}, {"", "Log", unary_grad}, {"", "Abs", unary_grad}, {"", "Sin", unary_grad},
    {"", "Cos", unary_grad}, {"", "Asin", unary_grad}, {"", "Acos", unary_grad}, {"", "Atan", unary_grad}, {"", "Sinh", unary_grad},
    {"", "Cosh", unary_grad}, {"", "Asinh", unary_grad}, {"", "Acosh", unary_grad}, {"", "Atanh", unary_grad}, {"", "Erf", unary_grad},
    {"", "LeakyRelu", unary_grad}, {"", "Elu", unary_grad}, {"", "Selu", unary_grad}, {"", "Celu", unary_grad},
    {"", "ThresholdedRelu", unary_grad}, {"", "Shrink", unary_grad}, {"", "HardSigmoid", unary_grad}, {"", "HardSwish", unary_grad},
    {"", "Softplus", unary_grad}, {"", "Softsign", unary_grad}, {"", "Swish", unary_grad}, {"", "Mish", unary_grad}, {"", "Gelu", unary_grad},
    {"com.microsoft", "Gelu", unary_grad}, {"com.microsoft", "QuickGelu", quick_gelu_grad}, {"", "Neg", neg_grad}, {"", "Sign", zero_grad},
    {"", "Floor", zero_grad}, {"", "Ceil", zero_grad}, {"", "Round", zero_grad},
};
OP_GRADS_REGISTER(unary_grads);
