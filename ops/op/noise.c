/* noise.c: what training adds to an activation, and how it goes back. In a model file it is a Dropout, which does nothing at inference;
 * the training step takes this in its place (ops_train.h).
 *
 *   Noise(x) → y, factor        kind 'add'       y = x + amount · n                       factor: empty
 *                               kind 'multiply'  y = x · factor, factor = 1 + amount · n of x's shape (amount √(rate / (1 − rate)))
 *                               kind 'channels'  y = x · factor, factor[N, C] is 0 with chance amount, else 1 / (1 − amount): a channel
 *                                                (the dimension axis) of a row is dropped as a whole
 *   NoiseGrad(dy, factor) → dx  dy · factor
 *
 * n is normal. */
#include <inttypes.h>
#include <math.h>
#include <string.h>

#include "ops/grad.h"
#include "ops/op/nn.h"
#include "ops/op/random.h"

enum kind { ADD, MULTIPLY, CHANNELS, UNKNOWN };

static enum kind kind_of(const struct op_ctx *ctx) {
    const char *word = op__attr_string(ctx->node, "kind", "");
    return !strcmp(word, "add") ? ADD : !strcmp(word, "multiply") ? MULTIPLY : !strcmp(word, "channels") ? CHANNELS : UNKNOWN;
}

static int axis_of(const struct op_ctx *ctx) {
    return op__axis(op__attr_int(ctx->node, "axis", -1), ctx->in[0]->rank);
}

static enum op_status check(struct op_ctx *ctx, int *rank, int64_t *dims) {
    const struct op_tensor *x = ctx->in[0];
    enum kind kind = kind_of(ctx);
    if (x->dtype != OP_F32) return op__fail(ctx, OP_BAD_TYPE, "x is %s, f32 is expected", op_type_name(x->dtype));
    if (kind == UNKNOWN) return op__fail(ctx, OP_BAD_VALUE, "kind must be 'add', 'multiply' or 'channels'");
    if (kind == CHANNELS && (x->rank < 2 || axis_of(ctx) < 1)) return op__fail(ctx, OP_BAD_SHAPE, "x has no channels at axis %" PRId64, op__attr_int(ctx->node, "axis", -1));
    *rank = kind == ADD ? 1 : kind == CHANNELS ? 2 : x->rank;
    if (kind == MULTIPLY) memcpy(dims, x->dims, sizeof x->dims);
    else dims[0] = kind == ADD ? 0 : x->dims[0];
    if (kind == CHANNELS) dims[1] = x->dims[axis_of(ctx)];
    return OP_OK;
}

static enum op_status noise_infer(struct op_ctx *ctx) {
    int rank;
    int64_t dims[OP_RANK_MAX];
    enum op_status st = check(ctx, &rank, dims);
    if (st != OP_OK) return st;
    op__set_like(ctx, 0, 0);
    if (ctx->n_out > 1) op__set(ctx, 1, OP_F32, rank, dims);
    return OP_OK;
}

static int64_t n_factors(const struct op_ctx *ctx) {
    const struct op_tensor *x = ctx->in[0];
    return kind_of(ctx) == ADD ? 0 : kind_of(ctx) == CHANNELS ? x->dims[0] * x->dims[axis_of(ctx)] : op_tensor_count(x);
}

/* The factors, where nobody asks for them. */
static size_t noise_scratch(const struct op_ctx *ctx) {
    return ctx->n_out > 1 && ctx->out[1] ? 0 : (size_t)n_factors(ctx) * sizeof(float);
}

/* y = x · factor[row, channel] */
static void by_channel(const struct op_ctx *ctx, const float *x, const float *factor, float *y) {
    const struct op_tensor *t = ctx->in[0];
    int axis = axis_of(ctx);
    int64_t before = 1, after = 1, c = t->dims[axis];
    for (int d = 1; d < axis; d++) before *= t->dims[d];
    for (int d = axis + 1; d < t->rank; d++) after *= t->dims[d];
    for (int64_t row = 0; row < t->dims[0]; row++)
        for (int64_t i = 0; i < before; i++)
            for (int64_t k = 0; k < c; k++)
                for (int64_t j = 0; j < after; j++) *y++ = *x++ * factor[row * c + k];
}

static enum op_status noise_run(struct op_ctx *ctx) {
    const float *x = ctx->in[0]->data;
    struct op_tensor *y = nn_out(ctx, 0), *factor = nn_out(ctx, 1);
    int64_t n = op_tensor_count(ctx->in[0]);
    double amount = (double)op__attr_float(ctx->node, "amount", 0);
    enum kind kind = kind_of(ctx);
    struct op_random r;
    op__random_init(&r, ctx);
    if (!y) return OP_OK;
    if (kind == ADD) {
        for (int64_t i = 0; i < n; i++) ((float *)y->data)[i] = (float)((double)x[i] + amount * op__random_normal(&r));
        return OP_OK;
    }
    float *f = factor ? factor->data : ctx->scratch;
    for (int64_t i = 0, k = n_factors(ctx); i < k; i++)
        f[i] = kind == MULTIPLY ? (float)(1 + amount * op__random_normal(&r)) : op__random_uniform(&r) >= amount ? (float)(1 / (1 - amount)) : 0;
    if (kind == CHANNELS) by_channel(ctx, x, f, y->data);
    else
        for (int64_t i = 0; i < n; i++) ((float *)y->data)[i] = x[i] * f[i];
    return OP_OK;
}

static enum op_status noise_grad(struct op_grad *g) {
    int out;
    if (g->n_out < 2 || g->out[1] < 0 || op__attr_string(g->node, "kind", "")[0] == 'a') {
        op__grad_set(g, 0, g->dy[0]);
        return OP_OK;
    }
    struct op_node *n = op__emit(g, "quern", "NoiseGrad", 2, (int[]){g->dy[0], g->out[1]}, 1, &out);
    if (n) op__attrs_copy(g, n);
    op__grad_set(g, 0, out);
    return OP_OK;
}

static enum op_status noise_grad_infer(struct op_ctx *ctx) {
    int rank;
    int64_t dims[OP_RANK_MAX];
    enum op_status st = check(ctx, &rank, dims);
    if (st != OP_OK) return st;
    bool fits = kind_of(ctx) != ADD && ctx->in[1]->dtype == OP_F32 && ctx->in[1]->rank == rank;
    for (int d = 0; fits && d < rank; d++) fits = ctx->in[1]->dims[d] == dims[d];
    if (!fits) return op__fail(ctx, OP_BAD_SHAPE, "the factor does not fit dy");
    op__set_like(ctx, 0, 0);
    return OP_OK;
}

static enum op_status noise_grad_run(struct op_ctx *ctx) {
    const float *dy = ctx->in[0]->data, *f = ctx->in[1]->data;
    float *dx = ctx->out[0]->data;
    if (kind_of(ctx) == CHANNELS) by_channel(ctx, dy, f, dx);
    else
        for (int64_t i = 0, n = op_tensor_count(ctx->in[0]); i < n; i++) dx[i] = dy[i] * f[i];
    return OP_OK;
}

static const struct op_desc noise_desc = {.name = "Noise", .domain = "quern", .since = 1, .in_min = 1, .in_max = 1, .out_min = 1, .out_max = 2,
                                          .flags = OP_F_RANDOM, .infer = noise_infer, .scratch = noise_scratch, .run = noise_run, .grad = noise_grad};
static const struct op_desc noise_back = {.name = "NoiseGrad", .domain = "quern", .since = 1, .in_min = 2, .in_max = 2, .out_min = 1, .out_max = 1,
                                          .infer = noise_grad_infer, .run = noise_grad_run};
OP_REGISTER(noise_desc);
OP_REGISTER(noise_back);
