/* pool_last_grad.c: gradients of MaxPool and AveragePool over images whose channels come last (the pass channels_last).
 *
 *   ChannelsLastMaxPoolGrad(dy, x)      dy of a window goes to its largest element, the first in the window's order
 *   ChannelsLastAveragePoolGrad(dy, x)  dy of a window is shared by its elements
 *
 * dy (batch, rows, columns, channels) of the pool's output, x and the result of its input; f32, attributes are the pool's. Which tap
 * of a window is the largest is found for a vector of channels at once, without branches. Images are divided between the threads. */
#include "ops/op/elementwise.h"
#include "ops/op/nn.h"

#include <stdlib.h>
#include <string.h>

OP_VECTOR_FILE

enum { TAPS_MAX = 49, RANK = 4 };

struct state {
    struct nn_window window;
    bool count_include_pad, average;
};

static enum op_status prepare(struct op_prepare *p) {
    struct state *s = calloc(1, sizeof *s);
    if (!s) return op__node_fail(p->err, p->node, OP_NOMEM, "out of memory");
    p->node->state = s;
    s->count_include_pad = op__attr_int(p->node, "count_include_pad", 0) != 0;
    s->average = strstr(p->node->op_type, "Average") != NULL;
    return op__nn_window_parse(p, true, &s->window);
}

static enum op_status fit_of(const struct op_ctx *ctx, struct nn_fit *f) {
    return op__nn_window_fit(ctx, &((const struct state *)ctx->state)->window, RANK - 2, ctx->in[1]->dims + 1, NULL, f);
}

static enum op_status infer(struct op_ctx *ctx) {
    struct nn_fit f;
    enum op_status st = op__nn_like(ctx, 0, "dy", OP_F32, RANK);
    if (st == OP_OK) st = op__nn_like(ctx, 1, "x", OP_F32, RANK);
    if (st == OP_OK) st = fit_of(ctx, &f);
    if (st != OP_OK) return st;
    const struct op_tensor *x = ctx->in[1];
    const int64_t dims[RANK] = {x->dims[0], f.out[0], f.out[1], x->dims[3]};
    if ((st = op__nn_shape(ctx, 0, "dy", RANK, dims)) != OP_OK) return st;
    op__set_like(ctx, 0, 1);
    return OP_OK;
}

struct job {
    const struct op_ctx *ctx;
    const struct state *s;
    struct nn_fit f;
    int64_t channels;
    int64_t *places; /* of the taps of a window, for each image */
};

/* Taps of a window inside the image: [n] of them from `start`, `step` apart. */
struct window {
    int64_t n[2], start[2], step[2], counted;
};

static bool window_at(const struct job *j, const int64_t *o, struct window *w) {
    w->counted = 1;
    for (int a = 0; a < 2; a++) {
        int64_t first;
        nn_taps(&j->f, a, o[a], &first, &w->n[a], &w->start[a]);
        w->step[a] = j->f.dilation[a];
        if (w->n[a] <= 0) return false;
        w->counted *= nn_counted(&j->f, a, o[a], j->s->count_include_pad);
    }
    return true;
}

static void share(const struct job *j, const struct window *w, const float *dy, float *dx) {
    const float by = 1.0f / (float)w->counted;
    for (int64_t h = 0; h < w->n[0]; h++)
        for (int64_t v = 0; v < w->n[1]; v++) {
            float *to = dx + ((w->start[0] + h * w->step[0]) * j->f.in[1] + w->start[1] + v * w->step[1]) * j->channels;
            OP_INDEPENDENT for (int64_t c = 0; c < j->channels; c++) to[c] += dy[c] * by;
        }
}

/* Windows of more taps go in the plain way. */
static void give_plain(const struct job *j, const int64_t *at, int64_t taps, const float *dy, const float *x, float *dx) {
    for (int64_t c = 0; c < j->channels; c++) {
        int64_t best = at[0];
        for (int64_t t = 1; t < taps; t++)
            if (x[at[t] + c] > x[best + c]) best = at[t];
        dx[best + c] += dy[c];
    }
}

static void give(const struct job *j, const struct window *w, int64_t *at, const float *dy, const float *x, float *dx) {
    const float *from[TAPS_MAX];
    float *to[TAPS_MAX];
    int64_t taps = 0;
    for (int64_t h = 0; h < w->n[0]; h++)
        for (int64_t v = 0; v < w->n[1]; v++, taps++) {
            at[taps] = ((w->start[0] + h * w->step[0]) * j->f.in[1] + w->start[1] + v * w->step[1]) * j->channels;
            if (taps < TAPS_MAX) from[taps] = x + at[taps], to[taps] = dx + at[taps];
        }
    if (taps > TAPS_MAX) give_plain(j, at, taps, dy, x, dx);
    else op__kern(j->ctx)->columns->give(j->channels, (int)taps, from, dy, to);
}

static void image_task(void *arg, int64_t image) {
    const struct job *j = arg;
    const float *dy = (const float *)j->ctx->in[0]->data + image * j->f.out_size * j->channels;
    const float *x = (const float *)j->ctx->in[1]->data + image * j->f.in_size * j->channels;
    float *dx = (float *)j->ctx->out[0]->data + image * j->f.in_size * j->channels;
    int64_t o[2];
    memset(dx, 0, (size_t)(j->f.in_size * j->channels) * sizeof *dx);
    for (o[0] = 0; o[0] < j->f.out[0]; o[0]++)
        for (o[1] = 0; o[1] < j->f.out[1]; o[1]++, dy += j->channels) {
            struct window w;
            if (!window_at(j, o, &w)) continue;
            if (j->s->average) share(j, &w, dy, dx);
            else give(j, &w, j->places + image * j->f.kernel[0] * j->f.kernel[1], dy, x, dx);
        }
}

static size_t scratch(const struct op_ctx *ctx) {
    struct nn_fit f;
    return fit_of(ctx, &f) == OP_OK ? (size_t)(ctx->in[1]->dims[0] * f.kernel[0] * f.kernel[1]) * sizeof(int64_t) : 0;
}

static enum op_status run(struct op_ctx *ctx) {
    struct job j = {.ctx = ctx, .s = ctx->state, .channels = ctx->in[1]->dims[3], .places = ctx->scratch};
    if (op_tensor_count(ctx->out[0]) == 0) return OP_OK;
    const enum op_status st = fit_of(ctx, &j.f);
    if (st == OP_OK) op__parallel(ctx, ctx->in[1]->dims[0], image_task, &j);
    return st;
}

#define DESC(NAME)                                                                                 \
    {                                                                                              \
        .name = NAME, .domain = "quern", .since = 1, .in_min = 2, .in_max = 2, .out_min = 1, .out_max = 1, .prepare = prepare, .release = free, \
        .infer = infer, .scratch = scratch, .run = run \
    }
static const struct op_desc max_grad = DESC("ChannelsLastMaxPoolGrad"), average_grad = DESC("ChannelsLastAveragePoolGrad");
OP_REGISTER(max_grad);
OP_REGISTER(average_grad);
