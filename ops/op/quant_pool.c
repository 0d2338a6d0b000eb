/* The mean over all pixels in bytes: quern's QuantGlobalAveragePool (channels first) and ChannelsLastQuantGlobalAveragePool, which passes make,
 * and com.microsoft's QLinearGlobalAveragePool.
 *
 *   0 x  1 scale  2 zero point  3 y's scale  4 y's zero point -> y = round((sum of x - n zx) (sx / (sy n))) + zy: the sum is exact, one rounding */
#include "ops/kern/quant.h"
#include "ops/op/nn.h"
#include "ops/op/quantized.h"

#include <string.h>

enum { X, X_SCALE, X_ZERO, Y_SCALE, Y_ZERO, N_INPUTS };
enum { PIXELS_MAX = 1 << 23 }; /* 255 of them fit 31 bits */

static bool channels_last(const struct op_ctx *ctx) {
    const char *name = ctx->node->desc->name;
    return name[0] == 'C' || (name[1] == 'L' && op__attr_int(ctx->node, "channels_last", 0) != 0);
}

static int64_t pixels_of(const struct op_tensor *x, bool last) {
    int64_t n = op_tensor_count(x) > 0; /* of an empty tensor the product may not fit */
    for (int i = 2; n && i < x->rank; i++) n *= x->dims[i - last];
    return n;
}

static enum op_status quant_infer(struct op_ctx *ctx) {
    const struct op_tensor *x = ctx->in[X];
    if (!quantized_is_byte(x) || !quantized_is_byte(ctx->in[X_ZERO]) || x->dtype != ctx->in[X_ZERO]->dtype || !quantized_is_byte(ctx->in[Y_ZERO]) ||
        !quantized_is_scale(ctx->in[X_SCALE]) || !quantized_is_scale(ctx->in[Y_SCALE]))
        return op__fail(ctx, OP_BAD_TYPE, "takes u8 or i8 with a zero point of its type, and scales of floats");
    for (int i = X_SCALE; i < N_INPUTS; i++)
        if (op_tensor_count(ctx->in[i]) != 1) return op__fail(ctx, OP_BAD_SHAPE, "input %d must be one value", i);
    if (x->rank < 3) return op__fail(ctx, OP_BAD_SHAPE, "input 0 (x) has rank %d, expected 3 or more", x->rank);
    const bool last = channels_last(ctx);
    if (op_tensor_count(x) > 0 && pixels_of(x, last) > PIXELS_MAX) return op__fail(ctx, OP_LIMIT, "more than %d pixels", (int)PIXELS_MAX);
    int64_t dims[OP_RANK_MAX] = {x->dims[0], x->dims[1]};
    for (int i = 2; i < x->rank; i++) dims[i] = 1;
    if (last) {
        dims[1] = 1;
        dims[x->rank - 1] = x->dims[x->rank - 1];
    }
    op__set(ctx, 0, ctx->in[Y_ZERO]->dtype, x->rank, dims);
    return OP_OK;
}

static int64_t channels_of(const struct op_tensor *x, bool last) {
    return x->dims[last ? x->rank - 1 : 1];
}

static size_t quant_scratch(const struct op_ctx *ctx) {
    const struct op_tensor *x = ctx->in[X];
    const bool last = channels_last(ctx);
    const size_t sums = (size_t)(x->dims[0] * channels_of(x, last)) * sizeof(int32_t);
    return sums + (x->dtype == OP_I8 ? ((size_t)op_tensor_count(x) + 63) / 64 * 64 : 0);
}

struct job {
    const struct op_ctx *ctx;
    const uint8_t *x;
    int64_t channels, pixels;
    float factor;
    bool last;
};

static void image_task(void *arg, int64_t image) {
    const struct job *job = arg;
    const struct op_ctx *ctx = job->ctx;
    const struct k_quant *q = op__kern(ctx)->quant;
    const struct op_tensor *zero = ctx->in[Y_ZERO];
    int32_t *sums = (int32_t *)ctx->scratch + image * job->channels;
    const uint8_t *x = job->x + image * job->channels * job->pixels;
    const int32_t x_zero = quantized_byte(ctx->in[X_ZERO], 0) + (ctx->in[X]->dtype == OP_I8 ? 128 : 0), z = quantized_byte(zero, 0);
    if (job->last) {
        memset(sums, 0, (size_t)job->channels * sizeof *sums);
        for (int64_t p = 0; p < job->pixels; p++) q->sums(job->channels, x + p * job->channels, sums);
    } else {
        for (int64_t c = 0; c < job->channels; c++) sums[c] = q->sum(job->pixels, x + c * job->pixels);
    }
    const float low = (float)((zero->dtype == OP_U8 ? 0 : INT8_MIN) - z), high = (float)((zero->dtype == OP_U8 ? UINT8_MAX : INT8_MAX) - z);
    uint8_t *y = (uint8_t *)ctx->out[0]->data + image * job->channels;
    for (int64_t c = 0; c < job->channels; c++)
        y[c] = (uint8_t)(quantized_round((float)(sums[c] - (int32_t)job->pixels * x_zero) * job->factor, low, high) + z);
}

static enum op_status quant_run(struct op_ctx *ctx) {
    const struct op_tensor *x = ctx->in[X];
    struct job job = {.ctx = ctx, .x = x->data, .last = channels_last(ctx)};
    if (!ctx->out[0] || op_tensor_count(ctx->out[0]) <= 0) return OP_OK;
    job.channels = channels_of(x, job.last);
    job.pixels = pixels_of(x, job.last);
    job.factor = quantized_scale(ctx->in[X_SCALE], 0, 1) / (quantized_scale(ctx->in[Y_SCALE], 0, 1) * (float)job.pixels);
    if (x->dtype == OP_I8) {
        uint8_t *flipped = (uint8_t *)((int32_t *)ctx->scratch + x->dims[0] * job.channels);
        op__kern(ctx)->quant->flip(op_tensor_count(x), x->data, flipped);
        job.x = flipped;
    }
    op__parallel(ctx, x->dims[0], image_task, &job);
    return OP_OK;
}

#define QUANT_POOL(row, op_name, op_domain)                                                        \
    static const struct op_desc row = {.name = op_name, .domain = op_domain, .since = 1, .in_min = N_INPUTS, .in_max = N_INPUTS, .out_min = 1, \
                                       .out_max = 1, .infer = quant_infer, .scratch = quant_scratch, .run = quant_run};                          \
    OP_REGISTER(row)
QUANT_POOL(quant_global_average_pool, "QuantGlobalAveragePool", "quern");
QUANT_POOL(quant_global_average_pool_last, "ChannelsLastQuantGlobalAveragePool", "quern");
QUANT_POOL(qlinear_global_average_pool, "QLinearGlobalAveragePool", "com.microsoft");
