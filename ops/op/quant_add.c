/* Sums and products of two tensors of bytes: com.microsoft's QLinearAdd and QLinearMul, and quern's QuantAdd and QuantMul, which the pass
 * fuse_quantized makes of Add and Mul between DequantizeLinear and QuantizeLinear.
 *
 *   0 a  1 scale  2 zero point   3 b  4 scale  5 zero point   6 y's scale  7 y's zero point      one scale and zero point each
 *   Add: y = round((a - za) (sa / sy) + (b - zb) (sb / sy)) + zy       Mul: y = round((a - za) (b - zb) (sa sb / sy)) + zy
 *
 * The quotients are rounded once, beforehand; ONNX Runtime does the same. Attributes y_min and y_max narrow the result. Shapes broadcast. */
#include "ops/op/elementwise.h"
#include "ops/op/quant_product.h"
#include "ops/op/quantized.h"

#include <string.h>

enum { A, A_SCALE, A_ZERO, B, B_SCALE, B_ZERO, Y_SCALE, Y_ZERO, N_INPUTS };

static enum op_status quant_infer(struct op_ctx *ctx) {
    for (int i = 0; i < N_INPUTS; i += i == B_ZERO ? 1 : 3)
        for (int k = 0; k < 3 && i + k < N_INPUTS; k++) {
            const struct op_tensor *t = ctx->in[i + k];
            const bool is_scale = i == Y_SCALE ? k == 0 : k == 1;
            if (is_scale ? !quantized_is_scale(t) : !quantized_is_byte(t)) return op__fail(ctx, OP_BAD_TYPE, "input %d must be %s", i + k, is_scale ? "a scale of floats" : "u8 or i8");
            if ((is_scale || k > 0) && op_tensor_count(t) != 1) return op__fail(ctx, OP_BAD_SHAPE, "input %d must be one value", i + k);
        }
    const struct op_tensor *a = ctx->in[A], *b = ctx->in[B];
    if (a->dtype != ctx->in[A_ZERO]->dtype || b->dtype != ctx->in[B_ZERO]->dtype) return op__fail(ctx, OP_BAD_TYPE, "zero points must be of their tensors' types");
    int rank;
    int64_t dims[OP_RANK_MAX];
    char ta[160], tb[160];
    if (!op__broadcast(a->rank, a->dims, b->rank, b->dims, &rank, dims))
        return op__fail(ctx, OP_BAD_SHAPE, "%s and %s do not broadcast", op_tensor_describe(a, ta, sizeof ta), op_tensor_describe(b, tb, sizeof tb));
    op__set(ctx, 0, ctx->in[Y_ZERO]->dtype, rank, dims);
    return OP_OK;
}

static float at(const struct op_ctx *ctx, int i) {
    return quantized_scale(ctx->in[i], 0, 1);
}

static struct quant_sum sum_of(const struct op_ctx *ctx) {
    const struct op_tensor *zero = ctx->in[Y_ZERO];
    const int32_t z = quantized_byte(zero, 0);
    int64_t low = zero->dtype == OP_U8 ? 0 : INT8_MIN, high = zero->dtype == OP_U8 ? UINT8_MAX : INT8_MAX;
    const int64_t y_min = op__attr_int(ctx->node, "y_min", low), y_max = op__attr_int(ctx->node, "y_max", high);
    if (y_min > low && y_min <= high) low = y_min;
    if (y_max < high && y_max >= low) high = y_max;
    const char *name = ctx->node->desc->name;
    const bool multiplies = strcmp(name + strlen(name) - 3, "Mul") == 0, b_signed = ctx->in[B]->dtype == OP_I8;
    const float a_scale = at(ctx, A_SCALE), b_scale = at(ctx, B_SCALE), y_scale = at(ctx, Y_SCALE);
    return (struct quant_sum){.a = ctx->in[A], .b = ctx->in[B], .y = ctx->out[0], .multiplies = multiplies, .a_zero = (float)quantized_byte(ctx->in[A_ZERO], 0),
                              .a_scale = multiplies ? a_scale * b_scale / y_scale : a_scale / y_scale,
                              .after = {.residual_signed = b_signed, .residual_zero = (float)(quantized_byte(ctx->in[B_ZERO], 0) + (b_signed ? 128 : 0)),
                                        .residual_scale = b_scale / y_scale, .lo = (float)(low - z), .hi = (float)(high - z), .zero = z}};
}

struct walking {
    const struct quant_sum *sum;
    const struct k_quant *kern;
    int64_t step[2];
};

/* A run in pieces; a side that repeats is filled out. */
static void piece(void *arg, int64_t n, int64_t out, const int64_t *in) {
    enum { PIECE = 1024 };
    const struct walking *w = arg;
    const struct quant_sum *s = w->sum;
    const uint8_t *from[2] = {s->a->data, s->b->data};
    uint8_t filled[2][PIECE], *y = s->y->data;
    for (int64_t i = 0; i < n; i += PIECE) {
        const int64_t m = n - i < PIECE ? n - i : PIECE;
        const uint8_t *side[2];
        for (int k = 0; k < 2; k++) {
            side[k] = from[k] + in[k] + (w->step[k] ? i : 0);
            if (w->step[k]) continue;
            memset(filled[k], *side[k], (size_t)m);
            side[k] = filled[k];
        }
        if (s->multiplies)
            w->kern->multiply(m, side[0], s->a->dtype == OP_I8, s->a_zero, s->a_scale, side[1], &s->after, y + out + i);
        else
            w->kern->add(m, side[0], s->a->dtype == OP_I8, s->a_zero, s->a_scale, side[1], &s->after, y + out + i);
    }
}

void op__quant_sum(const struct op_ctx *ctx, const struct quant_sum *sum) {
    const struct op_tensor *const sides[2] = {sum->a, sum->b};
    struct op_walk plan;
    struct walking w = {.sum = sum, .kern = op__kern(ctx)->quant};
    op__walk_plan(&plan, sum->y, sides, 2);
    for (int k = 0; k < 2; k++) w.step[k] = plan.rank ? plan.stride[k][plan.rank - 1] : 0;
    op__walk(ctx, &plan, piece, &w);
}

static enum op_status quant_run(struct op_ctx *ctx) {
    if (!ctx->out[0] || op_tensor_count(ctx->out[0]) <= 0) return OP_OK;
    const struct quant_sum sum = sum_of(ctx);
    if (sum.a_scale - sum.a_scale != 0 || sum.after.residual_scale - sum.after.residual_scale != 0)
        return op__fail(ctx, OP_BAD_VALUE, "a scale is not a finite number");
    op__quant_sum(ctx, &sum);
    return OP_OK;
}

#define QUANT_BINARY(row, op_name, op_domain)                                                      \
    static const struct op_desc row = {.name = op_name, .domain = op_domain, .since = 1, .in_min = N_INPUTS, .in_max = N_INPUTS, .out_min = 1, \
                                       .out_max = 1, .inplace = 1 << A | 1 << B, .infer = quant_infer, .run = quant_run};                          \
    OP_REGISTER(row)
QUANT_BINARY(quant_add, "QuantAdd", "quern");
QUANT_BINARY(quant_mul, "QuantMul", "quern");
QUANT_BINARY(qlinear_add, "QLinearAdd", "com.microsoft");
QUANT_BINARY(qlinear_mul, "QLinearMul", "com.microsoft");
