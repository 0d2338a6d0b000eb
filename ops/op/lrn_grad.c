/* lrn_grad.c: the gradient of LRN. With s = bias + alpha / size * sum of x^2 over the window of a channel:
 *
 *   dx[c] = dy[c] s[c]^-beta - 2 alpha beta / size x[c] * sum of dy[k] x[k] s[k]^(-beta-1) over the channels k in whose windows c lies
 *
 * A sample is a task; its positions go by strips, for which s and the summands of all channels are kept. In double precision. */
#include "ops/op/nn.h"

#include <math.h>
#include <string.h>

#include "ops/grad.h"

#define STRIP 64

static enum op_status infer(struct op_ctx *ctx) {
    enum op_status st = op__nn_float(ctx, 0, "dy");
    if (st != OP_OK || (st = op__nn_like(ctx, 1, "x", ctx->in[0]->dtype, ctx->in[0]->rank)) != OP_OK) return st;
    const int64_t size = op__attr_int(ctx->node, "size", 0);
    if (size < 1 || size > NN_ATTR_MAX) return op__fail(ctx, OP_BAD_VALUE, "size is %lld, expected 1 to 2^31", (long long)size);
    if (ctx->in[0]->rank < 2) return op__fail(ctx, OP_BAD_SHAPE, "dy has rank %d, expected 2 or more", ctx->in[0]->rank);
    op__set_like(ctx, 0, 1);
    return op__nn_shape(ctx, 0, "dy", ctx->in[1]->rank, ctx->in[1]->dims);
}

static size_t scratch(const struct op_ctx *ctx) {
    int64_t rows = 0;
    return op__mul(ctx->in[1]->dims[0], ctx->in[1]->dims[1], &rows) && rows < (INT64_MAX >> 16) ? (size_t)rows * 2 * STRIP * sizeof(double) : SIZE_MAX / 2;
}

static int64_t at_least(int64_t v, int64_t lo) {
    return v < lo ? lo : v;
}
static int64_t at_most(int64_t v, int64_t hi) {
    return v > hi ? hi : v;
}

static void sample(void *arg, int64_t n) {
    const struct op_ctx *ctx = arg;
    const struct op_tensor *dy = ctx->in[0], *x = ctx->in[1];
    const int64_t channels = x->dims[1], plane = op_tensor_count(x) / x->dims[0] / channels, size = op__attr_int(ctx->node, "size", 1);
    const double alpha = (double)op__attr_float(ctx->node, "alpha", 1e-4f) / (double)size, beta = (double)op__attr_float(ctx->node, "beta", 0.75f),
                 bias = (double)op__attr_float(ctx->node, "bias", 1);
    double *s = (double *)ctx->scratch + n * channels * 2 * STRIP, *part = s + channels * STRIP;
    for (int64_t from = 0; from < plane; from += STRIP) {
        const int64_t m = at_most(plane - from, STRIP), base = n * channels * plane + from;
        for (int64_t c = 0; c < channels; c++)
            for (int64_t i = 0; i < m; i++) {
                double sum = 0;
                for (int64_t k = at_least(c - (size - 1) / 2, 0); k <= at_most(c + size / 2, channels - 1); k++) {
                    const double v = nn_load(x, base + k * plane + i);
                    sum += v * v;
                }
                s[c * STRIP + i] = bias + alpha * sum;
                part[c * STRIP + i] = nn_load(dy, base + c * plane + i) * nn_load(x, base + c * plane + i) * pow(s[c * STRIP + i], -beta - 1);
            }
        for (int64_t c = 0; c < channels; c++)
            for (int64_t i = 0; i < m; i++) {
                double sum = 0;
                for (int64_t k = at_least(c - size / 2, 0); k <= at_most(c + (size - 1) / 2, channels - 1); k++) sum += part[k * STRIP + i];
                const int64_t at = base + c * plane + i;
                nn_store(ctx->out[0], at, nn_load(dy, at) * pow(s[c * STRIP + i], -beta) - 2 * alpha * beta * nn_load(x, at) * sum);
            }
    }
}

static enum op_status run(struct op_ctx *ctx) {
    if (op_tensor_count(ctx->in[1])) op__parallel(ctx, ctx->in[1]->dims[0], sample, ctx);
    return OP_OK;
}

static const struct op_desc lrn_grad_desc = {.name = "LRNGrad", .domain = "quern", .since = 1, .in_min = 2, .in_max = 2, .out_min = 1, .out_max = 1,
                                             .infer = infer, .scratch = scratch, .run = run};
OP_REGISTER(lrn_grad_desc);

static enum op_status lrn_grad(struct op_grad *g) {
    int in[2] = {g->dy[0], g->in[0]}, dx;
    op__attrs_copy(g, op__emit(g, "quern", "LRNGrad", 2, in, 1, &dx));
    op__grad_set(g, 0, dx);
    return OP_OK;
}
static const struct op_grad_row lrn_grads[] = {{"", "LRN", lrn_grad}};
OP_GRADS_REGISTER(lrn_grads);
