/* deform_conv.c: DeformConv (opset 19): a convolution whose taps are moved by learned offsets and weighted by a mask.
 *
 * An output position and offset group sample the input once for all output channels: the values of all taps and input
 * channels are gathered into a column in scratch memory (bilinear, zero outside), then each output channel is a dot product with
 * its weights. Sums are in double precision in the order of W. One task is a row of output positions of one image. */
#include "ops/op/nn.h"

#include <math.h>
#include <stdlib.h>

struct deform_conv {
    struct nn_window window;
    int64_t groups, offset_groups;
};

static enum op_status prepare(struct op_prepare *p) {
    struct deform_conv *s = calloc(1, sizeof *s);
    if (!s) return op__node_fail(p->err, p->node, OP_NOMEM, "out of memory");
    p->node->state = s;
    s->groups = op__attr_int(p->node, "group", 1);
    s->offset_groups = op__attr_int(p->node, "offset_group", 1);
    if (s->groups < 1 || s->offset_groups < 1)
        return op__node_fail(p->err, p->node, OP_BAD_VALUE, "group is %lld and offset_group %lld, expected 1 or more", (long long)s->groups,
                             (long long)s->offset_groups);
    return op__nn_window_parse(p, false, &s->window);
}

static enum op_status fit(const struct op_ctx *ctx, struct nn_fit *f) {
    const struct deform_conv *s = ctx->state;
    const struct op_tensor *x = ctx->in[0], *w = ctx->in[1];
    for (int a = 0; a < 2 && s->window.n_kernel == 2; a++)
        if (s->window.kernel[a] != w->dims[2 + a])
            return op__fail(ctx, OP_BAD_SHAPE, "kernel_shape[%d] is %lld, W says %lld", a, (long long)s->window.kernel[a], (long long)w->dims[2 + a]);
    return op__nn_window_fit(ctx, &s->window, 2, x->dims + 2, w->dims + 2, f);
}

static enum op_status infer(struct op_ctx *ctx) {
    const struct deform_conv *s = ctx->state;
    enum op_status st = op__nn_float(ctx, 0, "X");
    if (st != OP_OK) return st;
    const struct op_tensor *x = ctx->in[0];
    struct nn_fit f;
    if ((st = op__nn_like(ctx, 0, "X", x->dtype, 4)) != OP_OK || (st = op__nn_like(ctx, 1, "W", x->dtype, 4)) != OP_OK ||
        (st = fit(ctx, &f)) != OP_OK)
        return st;
    const struct op_tensor *w = ctx->in[1];
    int64_t n = x->dims[0], c = x->dims[1], m = w->dims[0], taps, of;
    if (!op__mul(f.kernel[0], f.kernel[1], &taps) || !op__mul(2 * s->offset_groups, taps, &of)) return op__fail(ctx, OP_LIMIT, "the kernel is too large");
    if (c % s->groups || m % s->groups || c % s->offset_groups || w->dims[1] != c / s->groups)
        return op__fail(ctx, OP_BAD_SHAPE, "X has %lld channels, W is [%lld,%lld,..], groups %lld, offset groups %lld: they do not fit", (long long)c,
                        (long long)m, (long long)w->dims[1], (long long)s->groups, (long long)s->offset_groups);
    if ((st = op__nn_like(ctx, 2, "offset", x->dtype, 4)) != OP_OK ||
        (st = op__nn_shape(ctx, 2, "offset", 4, (int64_t[]){n, of, f.out[0], f.out[1]})) != OP_OK)
        return st;
    if (nn_in(ctx, 3) && ((st = op__nn_like(ctx, 3, "B", x->dtype, 1)) != OP_OK || (st = op__nn_shape(ctx, 3, "B", 1, &m)) != OP_OK)) return st;
    if (nn_in(ctx, 4) && ((st = op__nn_like(ctx, 4, "mask", x->dtype, 4)) != OP_OK ||
                          (st = op__nn_shape(ctx, 4, "mask", 4, (int64_t[]){n, of / 2, f.out[0], f.out[1]})) != OP_OK))
        return st;
    op__set(ctx, 0, x->dtype, 4, (int64_t[]){n, m, f.out[0], f.out[1]});
    return OP_OK;
}

static double sample(const struct op_tensor *x, int64_t plane, int64_t height, int64_t width, double y, double v) {
    if (!(y > -1) || !(v > -1) || y >= (double)height || v >= (double)width) return 0;
    double y0 = floor(y), x0 = floor(v), sum = 0;
    for (int k = 0; k < 4; k++) {
        double cy = y0 + k / 2, cx = x0 + k % 2;
        if (cy < 0 || cx < 0 || cy >= (double)height || cx >= (double)width) continue;
        sum += (1 - fabs(y - cy)) * (1 - fabs(v - cx)) * nn_load(x, plane + (int64_t)cy * width + (int64_t)cx);
    }
    return sum;
}

struct job {
    const struct op_ctx *ctx;
    struct nn_fit f;
    int64_t taps;
};

/* The values of all taps of all input channels at one output position: [channels, taps]. */
static void gather(const struct job *job, int64_t n, int64_t oy, int64_t ox, double *column) {
    const struct op_ctx *ctx = job->ctx;
    const struct deform_conv *s = ctx->state;
    const struct nn_fit *f = &job->f;
    int64_t c = ctx->in[0]->dims[1], per = c / s->offset_groups, at = oy * f->out[1] + ox;
    for (int64_t i = 0; i < c; i++)
        for (int64_t k = 0; k < job->taps; k++) {
            int64_t tap = (n * s->offset_groups + i / per) * job->taps + k;
            double dy = nn_load(ctx->in[2], 2 * tap * f->out_size + at), dx = nn_load(ctx->in[2], (2 * tap + 1) * f->out_size + at);
            double y = (double)(oy * f->stride[0] - f->begin[0] + k / f->kernel[1] * f->dilation[0]) + dy;
            double v = (double)(ox * f->stride[1] - f->begin[1] + k % f->kernel[1] * f->dilation[1]) + dx;
            column[i * job->taps + k] = sample(ctx->in[0], (n * c + i) * f->in_size, f->in[0], f->in[1], y, v) *
                                        (nn_in(ctx, 4) ? nn_load(ctx->in[4], tap * f->out_size + at) : 1);
        }
}

static void row(void *arg, int64_t task) {
    const struct job *job = arg;
    const struct op_ctx *ctx = job->ctx;
    const struct deform_conv *s = ctx->state;
    int64_t n = task / job->f.out[0], oy = task % job->f.out[0], c = ctx->in[0]->dims[1], m = ctx->in[1]->dims[0];
    int64_t size = c / s->groups * job->taps;
    double *column = (double *)ctx->scratch + task * c * job->taps;
    for (int64_t ox = 0; ox < job->f.out[1]; ox++) {
        gather(job, n, oy, ox, column);
        for (int64_t o = 0; o < m; o++) {
            const double *v = column + o / (m / s->groups) * size;
            double sum = nn_in(ctx, 3) ? nn_load(ctx->in[3], o) : 0;
            for (int64_t k = 0; k < size; k++) sum += v[k] * nn_load(ctx->in[1], o * size + k);
            nn_store(ctx->out[0], (n * m + o) * job->f.out_size + oy * job->f.out[1] + ox, sum);
        }
    }
}

static size_t scratch(const struct op_ctx *ctx) {
    const struct op_tensor *x = ctx->in[0], *w = ctx->in[1], *y = ctx->out[0];
    int64_t n;
    if (op_tensor_count(y) <= 0 || op_tensor_count(x) <= 0 || op_tensor_count(w) <= 0) return 0;
    if (!op__mul(y->dims[0] * y->dims[2], x->dims[1] * w->dims[2] * w->dims[3], &n) || n > INT64_MAX / 16) return SIZE_MAX / 2;
    return (size_t)n * sizeof(double);
}

static enum op_status run(struct op_ctx *ctx) {
    struct job job = {.ctx = ctx};
    enum op_status st = fit(ctx, &job.f);
    if (st != OP_OK || op_tensor_count(ctx->out[0]) <= 0) return st;
    if (!ctx->in[0]->dims[1]) return op__fail(ctx, OP_BAD_SHAPE, "input 0 (X) has no channels");
    job.taps = job.f.kernel[0] * job.f.kernel[1];
    op__parallel(ctx, ctx->in[0]->dims[0] * job.f.out[0], row, &job);
    return OP_OK;
}

static void cost(const struct op_ctx *ctx, double *flops, double *bytes) {
    const struct op_tensor *x = ctx->in[0], *w = ctx->in[1], *y = ctx->out[0];
    double at = (double)y->dims[0] * (double)y->dims[2] * (double)y->dims[3], taps = (double)w->dims[2] * (double)w->dims[3];
    *flops = at * taps * (2 * (double)w->dims[0] * (double)w->dims[1] + 10 * (double)x->dims[1]);
    *bytes = (double)op_type_size(x->dtype) * ((double)op_tensor_count(x) + (double)op_tensor_count(y) + (double)op_tensor_count(w));
}

static const struct op_desc deform_conv = {
    .name = "DeformConv",
    .domain = "",
    .since = 19,
    .in_min = 3,
    .in_max = 5,
    .out_min = 1,
    .out_max = 1,
    .prepare = prepare,
    .release = free,
    .infer = infer,
    .scratch = scratch,
    .run = run,
    .cost = cost,
};
OP_REGISTER(deform_conv);
