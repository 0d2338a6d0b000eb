/* arithmetic_grad.c: gradients of arithmetic with broadcasting, of selection, of conversion, and of what has none.
 *
 * Each is a handful of ordinary nodes; what a broadcast repeated is summed by SumTo, which hands the tensor on where nothing was.
 * Of several equal maxima or minima the first input gets the gradient. */
#include "ops/op/elementwise.h"

#include <string.h>

#include "ops/grad.h"

static enum op_status numpy_only(struct op_grad *g) {
    return op__attr(g->node, "axis") ? op__grad_refuse(g, "in the form of opset 6 that broadcasts along an axis") : OP_OK;
}

static enum op_status add_grad(struct op_grad *g) {
    op__grad_set(g, 0, op__grad_wants(g, 0) ? op__sum_to(g, g->dy[0], g->in[0]) : -1);
    op__grad_set(g, 1, op__grad_wants(g, 1) ? op__sum_to(g, g->dy[0], g->in[1]) : -1);
    return numpy_only(g);
}

static enum op_status sub_grad(struct op_grad *g) {
    op__grad_set(g, 0, op__grad_wants(g, 0) ? op__sum_to(g, g->dy[0], g->in[0]) : -1);
    if (op__grad_wants(g, 1)) op__grad_set(g, 1, op__emit1(g, "Neg", op__sum_to(g, g->dy[0], g->in[1])));
    return numpy_only(g);
}

static enum op_status mul_grad(struct op_grad *g) {
    for (int i = 0; i < 2; i++)
        if (op__grad_wants(g, i)) op__grad_set(g, i, op__sum_to(g, op__emit2(g, "Mul", g->dy[0], g->in[1 - i]), g->in[i]));
    return numpy_only(g);
}

static enum op_status div_grad(struct op_grad *g) { /* dy / b, and -dy y / b */
    int da = op__emit2(g, "Div", g->dy[0], g->in[1]);
    if (op__grad_wants(g, 0)) op__grad_set(g, 0, op__sum_to(g, da, g->in[0]));
    if (op__grad_wants(g, 1)) op__grad_set(g, 1, op__emit1(g, "Neg", op__sum_to(g, op__emit2(g, "Mul", da, g->out[0]), g->in[1])));
    return numpy_only(g);
}

/* The value of a constant scalar exponent, NaN if it is none. */
static double constant_exponent(const struct op_grad *g) {
    const struct op_tensor *t = op__graph_constant(g->graph, g->in[1]);
    if (!t || !t->data || op_tensor_count(t) != 1) return __builtin_nan("");
    if (t->dtype == OP_F32) return (double)*(const float *)t->data;
    if (t->dtype == OP_F64) return *(const double *)t->data;
    if (t->dtype == OP_I64) return (double)*(const int64_t *)t->data;
    return __builtin_nan("");
}

static enum op_status pow_grad(struct op_grad *g) { /* p x^(p-1), and y ln x where x > 0 */
    int x = g->in[0], p = op__emit2(g, "CastLike", g->in[1], x), slope;
    double exponent = constant_exponent(g);
    if (op__grad_wants(g, 0)) {
        if (exponent == 2) slope = op__emit2(g, "Add", x, x);
        else slope = op__emit2(g, "Mul", p, op__emit2(g, "Pow", x, op__emit2(g, "Sub", p, op__emit_scalar(g, x, 1))));
        op__grad_set(g, 0, op__sum_to(g, op__emit2(g, "Mul", g->dy[0], slope), x));
    }
    if (op__grad_wants(g, 1)) {
        int zero = op__emit_scalar(g, x, 0);
        int ln = op__emit3(g, "Where", op__emit2(g, "Greater", x, zero), op__emit1(g, "Log", x), zero);
        int dp = op__emit2(g, "Mul", g->dy[0], op__emit2(g, "Mul", g->out[0], ln));
        op__grad_set(g, 1, op__emit2(g, "CastLike", op__sum_to(g, dp, p), g->in[1]));
    }
    return numpy_only(g);
}

static enum op_status sum_grad(struct op_grad *g) {
    for (int i = 0; i < g->n_in; i++)
        if (op__grad_wants(g, i)) op__grad_set(g, i, op__sum_to(g, g->dy[0], g->in[i]));
    return OP_OK;
}

static enum op_status mean_grad(struct op_grad *g) {
    int part = op__emit2(g, "Mul", g->dy[0], op__emit_scalar(g, g->dy[0], 1.0 / g->n_in));
    for (int i = 0; i < g->n_in; i++)
        if (op__grad_wants(g, i)) op__grad_set(g, i, op__sum_to(g, part, g->in[i]));
    return OP_OK;
}

static enum op_status extreme_grad(struct op_grad *g) { /* Max, Min: what is left goes to the first that equals the result */
    int left = g->dy[0], zero = op__emit_scalar(g, left, 0);
    for (int i = 0; i < g->n_in; i++) {
        int is = op__emit2(g, "Equal", g->in[i], g->out[0]);
        if (op__grad_wants(g, i)) op__grad_set(g, i, op__sum_to(g, op__emit3(g, "Where", is, left, zero), g->in[i]));
        if (i + 1 < g->n_in) left = op__emit3(g, "Where", is, zero, left);
    }
    return OP_OK;
}

static enum op_status where_grad(struct op_grad *g) {
    int zero = op__emit_scalar(g, g->dy[0], 0);
    if (op__grad_wants(g, 1)) op__grad_set(g, 1, op__sum_to(g, op__emit3(g, "Where", g->in[0], g->dy[0], zero), g->in[1]));
    if (op__grad_wants(g, 2)) op__grad_set(g, 2, op__sum_to(g, op__emit3(g, "Where", g->in[0], zero, g->dy[0]), g->in[2]));
    return OP_OK;
}

static enum op_status clip_grad(struct op_grad *g) { /* a bound itself counts as inside */
    if (op__grad_wants(g, 1) || op__grad_wants(g, 2)) return op__grad_refuse(g, "for its bounds");
    op__grad_set(g, 0, op__emit3(g, "Where", op__emit2(g, "Equal", g->in[0], g->out[0]), g->dy[0], op__emit_scalar(g, g->dy[0], 0)));
    return OP_OK;
}

static enum op_status prelu_grad(struct op_grad *g) {
    int x = g->in[0], zero = op__emit_scalar(g, x, 0), below = op__emit2(g, "Less", x, zero);
    if (op__grad_wants(g, 0)) op__grad_set(g, 0, op__emit3(g, "Where", below, op__emit2(g, "Mul", g->dy[0], g->in[1]), g->dy[0]));
    if (op__grad_wants(g, 1))
        op__grad_set(g, 1, op__sum_to(g, op__emit3(g, "Where", below, op__emit2(g, "Mul", g->dy[0], x), zero), g->in[1]));
    return numpy_only(g);
}

static enum op_status pass_grad(struct op_grad *g) { /* y = x */
    op__grad_set(g, 0, g->dy[0]);
    return OP_OK;
}

static enum op_status no_grad(struct op_grad *g) { /* piecewise constant: zero wherever there is a derivative */
    (void)g;
    return OP_OK;
}

/* --- Cast: the way back, zero where one of both is no float ----------------------------------------- */

static enum op_status cast_grad(struct op_grad *g) {
    op__grad_set(g, 0, op__emit_quern(g, "CastGrad", 2, (int[]){g->dy[0], g->in[0]}));
    return OP_OK;
}

static enum op_status cast_grad_infer(struct op_ctx *ctx) {
    const struct op_tensor *dy = ctx->in[0], *x = ctx->in[1];
    if (!dy || !x || dy->kind != OP_KIND_TENSOR || x->kind != OP_KIND_TENSOR || op_tensor_count(dy) != op_tensor_count(x) || x->dtype == OP_STRING)
        return op__fail(ctx, OP_BAD_SHAPE, "the gradient and the value must be tensors of as many elements, and no strings");
    op__set_like(ctx, 0, 1);
    return OP_OK;
}

static enum op_status cast_grad_run(struct op_ctx *ctx) {
    const struct op_tensor *dy = ctx->in[0];
    struct op_tensor *dx = ctx->out[0];
    const int64_t n = op_tensor_count(dx);
    if (n <= 0) return OP_OK;
    if (!op__is_float(dx->dtype) || !op__is_float(dy->dtype)) memset(dx->data, 0, (size_t)op_tensor_bytes(dx));
    else if (dx->dtype == dy->dtype) memcpy(dx->data, dy->data, (size_t)op_tensor_bytes(dx));
    else if (dx->dtype == OP_F32 && op__is_half(dy->dtype)) op__widen(dy->dtype, dx->data, dy->data, n);
    else if (dy->dtype == OP_F32 && op__is_half(dx->dtype)) op__narrow(dx->dtype, dx->data, dy->data, n);
    else {
        float wide;
        for (int64_t i = 0; i < n; i++) { /* one of both is f64, or they are two halves */
            double v = dy->dtype == OP_F64 ? ((const double *)dy->data)[i] : (double)((const float *)dy->data)[dy->dtype == OP_F32 ? i : 0];
            if (op__is_half(dy->dtype)) {
                op__widen(dy->dtype, &wide, (const uint16_t *)dy->data + i, 1);
                v = (double)wide;
            }
            wide = (float)v;
            if (dx->dtype == OP_F64) ((double *)dx->data)[i] = v;
            else if (dx->dtype == OP_F32) ((float *)dx->data)[i] = wide;
            else op__narrow(dx->dtype, (uint16_t *)dx->data + i, &wide, 1);
        }
    }
    return OP_OK;
}

static const struct op_desc cast_grad_desc = {.name = "CastGrad", .domain = "quern", .since = 1, .in_min = 2, .in_max = 2, .out_min = 1, .out_max = 1,
                                              .infer = cast_grad_infer, .run = cast_grad_run};
OP_REGISTER(cast_grad_desc);

static const struct op_grad_row arithmetic_grads[] = {
    {"", "Add", add_grad}, {"", "Sub", sub_grad}, {"", "Mul", mul_grad}, {"", "Div", div_grad}, {"", "Pow", pow_grad}, {"", "Sum", sum_grad},
    {"", "Mean", mean_grad}, {"", "Max", extreme_grad}, {"", "Min", extreme_grad}, {"", "Where", where_grad}, {"", "Clip", clip_grad},
    {"", "PRelu", prelu_grad}, {"", "Identity", pass_grad}, {"", "Cast", cast_grad}, {"", "CastLike", cast_grad}, {"", "Equal", no_grad},
    {"", "Greater", no_grad}, {"", "GreaterOrEqual", no_grad}, {"", "Less", no_grad}, {"", "LessOrEqual", no_grad}, {"", "Not", no_grad},
    {"", "And", no_grad}, {"", "Or", no_grad}, {"", "Xor", no_grad}, {"", "IsNaN", no_grad}, {"", "IsInf", no_grad}, {"", "ArgMax", no_grad},
    {"", "ArgMin", no_grad}, {"", "Shape", no_grad}, {"", "Size", no_grad}, {"", "OneHot", no_grad}, {"", "NonZero", no_grad},
    {"quern", "Fill", no_grad},
};
OP_GRADS_REGISTER(arithmetic_grads);
