/* quern's ChannelsLastMaxPool, ChannelsLastAveragePool and ChannelsLastGlobalAveragePool: the pools over f32 images (the first over u8 and i8 too) whose
 * channels come last (batch, spatial…, channels), which the pass channels_last makes of ONNX's. Attributes are those of
 * the originals.
 *
 * An output pixel is made of whole pixels of the input, element by element over all channels: taps in rising order, so
 * that its bits depend on its window alone. A global average adds up each image row and then the rows: chains
 * are as short as the image is wide or high. */
#include "ops/kern/quant.h"
#include "ops/op/nn.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

struct pool_last {
    struct nn_window window;
    bool count_include_pad;
    enum k_binary how; /* K_MAX or K_ADD: the average */
};

static enum op_status prepare_with(struct op_prepare *p, enum k_binary how) {
    struct pool_last *s = calloc(1, sizeof *s);
    if (!s) return op__node_fail(p->err, p->node, OP_NOMEM, "out of memory");
    p->node->state = s;
    s->how = how;
    s->count_include_pad = op__attr_int(p->node, "count_include_pad", 0) != 0;
    return op__nn_window_parse(p, true, &s->window);
}

static enum op_status prepare_max(struct op_prepare *p) {
    return prepare_with(p, K_MAX);
}

static enum op_status prepare_average(struct op_prepare *p) {
    return prepare_with(p, K_ADD);
}

static enum op_status fit(const struct op_ctx *ctx, struct nn_fit *f) {
    const struct pool_last *s = ctx->state;
    const struct op_tensor *x = ctx->in[0];
    return op__nn_window_fit(ctx, &s->window, x->rank - 2, x->dims + 1, NULL, f);
}

/* The largest of bytes is found without reading them back. */
static bool in_bytes(const struct op_ctx *ctx) {
    const struct op_tensor *x = ctx->in[0];
    return ((const struct pool_last *)ctx->state)->how == K_MAX && x && x->kind == OP_KIND_TENSOR && (x->dtype == OP_U8 || x->dtype == OP_I8);
}

static enum op_status infer(struct op_ctx *ctx) {
    enum op_status st = in_bytes(ctx) ? OP_OK : op__nn_like(ctx, 0, "X", OP_F32, -1);
    if (st != OP_OK) return st;
    const struct op_tensor *x = ctx->in[0];
    struct nn_fit f;
    if (x->rank < 3) return op__fail(ctx, OP_BAD_SHAPE, "input 0 (X) has rank %d, expected 3 or more", x->rank);
    if ((st = fit(ctx, &f)) != OP_OK) return st;
    int64_t dims[OP_RANK_MAX] = {x->dims[0]};
    for (int a = 0; a < f.rank; a++) dims[1 + a] = f.out[a];
    dims[x->rank - 1] = x->dims[x->rank - 1];
    op__set(ctx, 0, x->dtype, x->rank, dims);
    return OP_OK;
}

struct job {
    const struct op_ctx *ctx;
    struct nn_fit f;
    int64_t channels, rows; /* rows: of output pixels, of all images */
};

static void pixel(const struct job *job, const float *image, const int64_t *o, float *y) {
    const struct pool_last *s = job->ctx->state;
    const struct k_vmath *math = op__kern(job->ctx)->math;
    const struct nn_fit *f = &job->f;
    int64_t n[NN_SPATIAL_MAX], start[NN_SPATIAL_MAX], tap[NN_SPATIAL_MAX] = {0}, first, count = 1;
    bool some = true, any = false;
    for (int a = 0; a < f->rank; a++) {
        nn_taps(f, a, o[a], &first, &n[a], &start[a]);
        some = some && n[a] > 0;
        count *= nn_counted(f, a, o[a], s->count_include_pad);
    }
    if (some) do {
            int64_t at = 0;
            for (int a = 0; a < f->rank; a++) at = at * f->in[a] + start[a] + tap[a] * f->dilation[a];
            const float *x = image + at * job->channels;
            if (any)
                math->binary[s->how](job->channels, y, false, x, false, y);
            else
                math->unary[K_COPY](job->channels, x, y, 0, 0);
            any = true;
        } while (nn_next(tap, n, f->rank));
    if (!any)
        for (int64_t c = 0; c < job->channels; c++) y[c] = s->how == K_MAX ? -INFINITY : 0;
    else if (s->how == K_ADD)
        math->unary[K_LINEAR](job->channels, y, y, count > 0 ? 1 / (float)count : 0, 0);
}

static void pixel_of_bytes(const struct job *job, const uint8_t *image, const int64_t *o, uint8_t *y) {
    const struct k_quant *q = op__kern(job->ctx)->quant;
    const bool is_signed = job->ctx->in[0]->dtype == OP_I8;
    const struct nn_fit *f = &job->f;
    int64_t n[NN_SPATIAL_MAX], start[NN_SPATIAL_MAX], tap[NN_SPATIAL_MAX] = {0}, first;
    bool some = true;
    for (int a = 0; a < f->rank; a++) {
        nn_taps(f, a, o[a], &first, &n[a], &start[a]);
        some = some && n[a] > 0;
    }
    memset(y, is_signed ? 0x80 : 0, (size_t)job->channels);
    if (some) do {
            int64_t at = 0;
            for (int a = 0; a < f->rank; a++) at = at * f->in[a] + start[a] + tap[a] * f->dilation[a];
            q->max(job->channels, image + at * job->channels, y, is_signed);
        } while (nn_next(tap, n, f->rank));
}

enum { TAPS_MAX = 128 };

/* Output pixels [*from, *to) of a line in f32 whose windows lie whole inside the image along the line, in one call of a kernel; o is the line, the
 * caller does the others. */
static void middle(const struct job *job, const float *image, const int64_t *o, float *y, int64_t *from, int64_t *to) {
    const struct pool_last *s = job->ctx->state;
    const struct nn_fit *f = &job->f;
    const struct k_vmath *math = op__kern(job->ctx)->math;
    const int last = f->rank - 1;
    int64_t n[NN_SPATIAL_MAX], start[NN_SPATIAL_MAX], tap[NN_SPATIAL_MAX] = {0}, offset[TAPS_MAX], first, taps = 1, count = 1;
    const int64_t stride = f->stride[last], reach = (f->kernel[last] - 1) * f->dilation[last];
    *from = f->begin[last] > 0 ? (f->begin[last] + stride - 1) / stride : 0;
    *to = f->in[last] + f->begin[last] > reach ? (f->in[last] + f->begin[last] - reach - 1) / stride + 1 : 0;
    if (*to > f->out[last]) *to = f->out[last];
    for (int a = 0; a < last; a++) {
        nn_taps(f, a, o[a], &first, &n[a], &start[a]);
        taps = n[a] > 0 && taps <= TAPS_MAX ? taps * n[a] : TAPS_MAX + 1;
        count *= nn_counted(f, a, o[a], s->count_include_pad);
    }
    n[last] = f->kernel[last];
    if (*from >= *to || taps > TAPS_MAX || taps * n[last] > TAPS_MAX) {
        *to = *from = 0;
        return;
    }
    start[last] = *from * stride - f->begin[last];
    taps = 0;
    do {
        int64_t at = 0;
        for (int a = 0; a < f->rank; a++) at = at * f->in[a] + start[a] + tap[a] * f->dilation[a];
        offset[taps++] = at * job->channels;
    } while (nn_next(tap, n, f->rank));
    y += *from * job->channels;
    math->pool(*to - *from, job->channels, (int)taps, offset, image, stride * job->channels, s->how == K_MAX, y);
    count *= nn_counted(f, last, *from, s->count_include_pad);
    if (s->how == K_ADD) math->unary[K_LINEAR]((*to - *from) * job->channels, y, y, 1 / (float)count, 0);
}

/* A task is a line of output pixels. */
static void line(void *arg, int64_t task) {
    const struct job *job = arg;
    const struct nn_fit *f = &job->f;
    const int64_t across = f->out[f->rank - 1], lines = f->out_size / across, image = task / lines;
    int64_t o[NN_SPATIAL_MAX] = {0};
    for (int64_t a = f->rank - 2, rest = task % lines; a >= 0; a--) {
        o[a] = rest % f->out[a];
        rest /= f->out[a];
    }
    const int64_t from = image * f->in_size * job->channels, to = task * across * job->channels;
    if (in_bytes(job->ctx)) {
        uint8_t *y = (uint8_t *)job->ctx->out[0]->data + to;
        for (; o[f->rank - 1] < across; o[f->rank - 1]++, y += job->channels) pixel_of_bytes(job, (const uint8_t *)job->ctx->in[0]->data + from, o, y);
        return;
    }
    const float *x = (const float *)job->ctx->in[0]->data + from;
    float *y = (float *)job->ctx->out[0]->data + to;
    int64_t from_pixel, to_pixel;
    middle(job, x, o, y, &from_pixel, &to_pixel);
    for (; o[f->rank - 1] < across; o[f->rank - 1]++, y += job->channels)
        if (o[f->rank - 1] < from_pixel || o[f->rank - 1] >= to_pixel) pixel(job, x, o, y);
}

static enum op_status run(struct op_ctx *ctx) {
    struct job job = {.ctx = ctx, .channels = ctx->in[0]->dims[ctx->in[0]->rank - 1]};
    enum op_status st = fit(ctx, &job.f);
    if (st != OP_OK || op_tensor_count(ctx->out[0]) == 0) return st;
    op__parallel(ctx, ctx->in[0]->dims[0] * (job.f.out_size / job.f.out[job.f.rank - 1]), line, &job);
    return OP_OK;
}

/* --- the global average ------------------------------------------------------------------------------------ */

static enum op_status global_infer(struct op_ctx *ctx) {
    enum op_status st = op__nn_like(ctx, 0, "X", OP_F32, -1);
    if (st != OP_OK) return st;
    const struct op_tensor *x = ctx->in[0];
    if (x->rank < 3) return op__fail(ctx, OP_BAD_SHAPE, "input 0 (X) has rank %d, expected 3 or more", x->rank);
    int64_t dims[OP_RANK_MAX] = {x->dims[0]};
    for (int a = 1; a < x->rank - 1; a++) dims[a] = 1;
    dims[x->rank - 1] = x->dims[x->rank - 1];
    op__set(ctx, 0, OP_F32, x->rank, dims);
    return OP_OK;
}

static size_t global_scratch(const struct op_ctx *ctx) {
    const struct op_tensor *x = ctx->in[0];
    return (size_t)(x->dims[0] * x->dims[x->rank - 1]) * sizeof(float);
}

static void global_image(void *arg, int64_t image) {
    const struct op_ctx *ctx = arg;
    const struct k_vmath *math = op__kern(ctx)->math;
    const struct op_tensor *x = ctx->in[0];
    const int64_t channels = x->dims[x->rank - 1], across = x->dims[x->rank - 2], pixels = op_tensor_count(x) / (x->dims[0] * channels);
    const float *src = (const float *)x->data + image * pixels * channels;
    float *y = (float *)ctx->out[0]->data + image * channels, *sum = (float *)ctx->scratch + image * channels;
    for (int64_t p = 0; p < pixels; p += across) {
        math->unary[K_COPY](channels, src + p * channels, sum, 0, 0);
        for (int64_t i = 1; i < across; i++) math->binary[K_ADD](channels, sum, false, src + (p + i) * channels, false, sum);
        if (p)
            math->binary[K_ADD](channels, y, false, sum, false, y);
        else
            math->unary[K_COPY](channels, sum, y, 0, 0);
    }
    const float n = (float)pixels;
    if (pixels)
        math->binary[K_DIV](channels, y, false, &n, true, y);
    else
        for (int64_t c = 0; c < channels; c++) y[c] = NAN; /* the mean of nothing */
}

static enum op_status global_run(struct op_ctx *ctx) {
    const struct op_tensor *x = ctx->in[0];
    if (op_tensor_count(ctx->out[0]) > 0) {
        if (op_tensor_count(x) == 0)
            for (int64_t i = 0; i < op_tensor_count(ctx->out[0]); i++) ((float *)ctx->out[0]->data)[i] = NAN;
        else
            op__parallel(ctx, x->dims[0], global_image, ctx);
    }
    return OP_OK;
}

#define POOL(id, op_name, ...)                                                                     \
    static const struct op_desc id = {                                                             \
        .name = op_name, .domain = "quern", .since = 1, .in_min = 1, .in_max = 1, .out_min = 1, .out_max = 1, __VA_ARGS__}; \
    OP_REGISTER(id)

POOL(last_max_pool, "ChannelsLastMaxPool", .prepare = prepare_max, .release = free, .infer = infer, .run = run);
POOL(last_average_pool, "ChannelsLastAveragePool", .prepare = prepare_average, .release = free, .infer = infer, .run = run);
POOL(last_global_average_pool, "ChannelsLastGlobalAveragePool", .infer = global_infer, .scratch = global_scratch, .run = global_run);
