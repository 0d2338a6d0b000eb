/* pool_grad.c: gradients of MaxPool and AveragePool, with the forward operator's attributes.
 *
 *   MaxPoolGrad(dy, x)      dy of a window goes to its largest element, the first in the window's order
 *   AveragePoolGrad(dy, x)  dy of a window is shared by its elements
 *
 * The largest elements are looked for again: it costs no more than keeping and reading indices of eight bytes. Planes are independent and
 * divided between the threads; in a plane windows come in order. f32 in one or two dimensions has a form of its own. */
#include "ops/op/nn.h"

#include <stdlib.h>
#include <string.h>

#include "ops/grad.h"

struct state {
    struct nn_window window;
    bool count_include_pad, average;
};

static enum op_status prepare(struct op_prepare *p) {
    struct state *s = calloc(1, sizeof *s);
    if (!s) return op__node_fail(p->err, p->node, OP_NOMEM, "out of memory");
    p->node->state = s;
    s->count_include_pad = op__attr_int(p->node, "count_include_pad", 0) != 0;
    s->average = p->node->op_type[0] == 'A';
    return op__nn_window_parse(p, true, &s->window);
}

static enum op_status infer(struct op_ctx *ctx) {
    const struct state *s = ctx->state;
    struct nn_fit f;
    enum op_status st = op__nn_float(ctx, 0, "dy");
    if (st != OP_OK || (st = op__nn_like(ctx, 1, "x", ctx->in[0]->dtype, ctx->in[0]->rank)) != OP_OK) return st;
    const struct op_tensor *x = ctx->in[1];
    if (x->dtype != OP_F32 && x->dtype != OP_F64) return op__fail(ctx, OP_BAD_TYPE, "x is %s, expected f32 or f64", op_type_name(x->dtype));
    if (x->rank < 3) return op__fail(ctx, OP_BAD_SHAPE, "x has rank %d, expected 3 or more", x->rank);
    if ((st = op__nn_window_fit(ctx, &s->window, x->rank - 2, x->dims + 2, NULL, &f)) != OP_OK) return st;
    int64_t dims[OP_RANK_MAX] = {x->dims[0], x->dims[1]};
    for (int a = 0; a < f.rank; a++) dims[2 + a] = f.out[a];
    if ((st = op__nn_shape(ctx, 0, "dy", x->rank, dims)) != OP_OK) return st;
    op__set_like(ctx, 0, 1);
    return OP_OK;
}

struct job {
    const struct op_ctx *ctx;
    struct nn_fit f;
    bool average, pads;
};

/* As AveragePool counts: taps in the input, or in the padded one. */
static int64_t counted(const struct nn_fit *f, int a, int64_t o, int64_t inside, bool pads) {
    if (!pads) return inside;
    int64_t left = f->in[a] + f->end[a] - (o * f->stride[a] - f->begin[a]), most = (left + f->dilation[a] - 1) / f->dilation[a];
    return most < f->kernel[a] ? most : f->kernel[a];
}

#define PLANE(T)                                                                                   \
    /* One window; the last dimension is the inner loop. */                                        \
    static void window_##T(const struct job *j, const int64_t *n, const int64_t *start, T d, const T *x, T *dx) { \
        const struct nn_fit *f = &j->f;                                                            \
        const int last = f->rank - 1;                                                              \
        int64_t tap[NN_SPATIAL_MAX] = {0}, best = -1;                                              \
        do {                                                                                       \
            int64_t at = 0;                                                                        \
            for (int a = 0; a < f->rank; a++) at = at * f->in[a] + start[a] + tap[a] * f->dilation[a]; \
            for (int64_t i = 0; i < n[last]; i++, at += f->dilation[last]) {                       \
                if (j->average) dx[at] += d;                                                       \
                else if (best < 0 || x[at] > x[best]) best = at; \
            }                                                                                      \
        } while (nn_next(tap, n, last));                                                           \
        if (best >= 0) dx[best] += d;                                                              \
    }                                                                                              \
    static void plane_##T(const struct job *j, int64_t plane) {                                    \
        const struct nn_fit *f = &j->f;                                                            \
        const T *dy = (const T *)j->ctx->in[0]->data + plane * f->out_size, *x = (const T *)j->ctx->in[1]->data + plane * f->in_size; \
        T *dx = (T *)j->ctx->out[0]->data + plane * f->in_size;                                    \
        int64_t o[NN_SPATIAL_MAX] = {0}, n[NN_SPATIAL_MAX], start[NN_SPATIAL_MAX], first;          \
        memset(dx, 0, (size_t)f->in_size * sizeof *dx);                                            \
        if (f->out_size == 0) return;                                                              \
        do {                                                                                       \
            bool some = true;                                                                      \
            double count = 1;                                                                      \
            for (int a = 0; a < f->rank; a++) {                                                    \
                nn_taps(f, a, o[a], &first, &n[a], &start[a]);                                     \
                some = some && n[a] > 0;                                                           \
                if (j->average) count *= (double)counted(f, a, o[a], n[a], j->pads);               \
            }                                                                                      \
            const T d = *dy++;                                                                     \
            if (some) window_##T(j, n, start, j->average ? d / (T)count : d, x, dx);               \
        } while (nn_next(o, f->out, f->rank));                                                     \
    }
PLANE(float)
PLANE(double)

/* --- f32 in one or two dimensions without dilation: windows are rectangles -------------------------- */

static int64_t larger(int64_t a, int64_t b) {
    return a > b ? a : b;
}
static int64_t smaller(int64_t a, int64_t b) {
    return a < b ? a : b;
}

/* The largest of a rectangle of 2 x 2, by arithmetic: which one it is, no branch predictor can know. */
static inline int64_t best_of_four(const float *x, const float *below, int64_t row) {
    const int64_t up = x[1] > x[0], down = below[1] > below[0];
    const float upper = x[1] > x[0] ? x[1] : x[0], lower = below[1] > below[0] ? below[1] : below[0];
    const int64_t mask = -(int64_t)(lower > upper);
    return (up & ~mask) | ((row + down) & mask);
}

static int64_t best_of(const float *x, int64_t row, int64_t rows, int64_t cols) {
    int64_t best = 0;
    if (rows == 2 && cols == 2) return best_of_four(x, x + row, row);
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < cols; c++) best = x[r * row + c] > x[best] ? r * row + c : best;
    return best;
}

static void plane_2d(const struct job *j, int64_t plane) {
    const struct nn_fit *f = &j->f;
    const int v = f->rank - 2, h = f->rank - 1; /* v -1: one row */
    const int64_t height = v < 0 ? 1 : f->in[v], width = f->in[h], out_h = v < 0 ? 1 : f->out[v];
    const float *dy = (const float *)j->ctx->in[0]->data + plane * f->out_size, *x = (const float *)j->ctx->in[1]->data + plane * f->in_size;
    float *dx = (float *)j->ctx->out[0]->data + plane * f->in_size;
    memset(dx, 0, (size_t)f->in_size * sizeof *dx);
    for (int64_t oh = 0; oh < out_h; oh++) {
        const int64_t top = v < 0 ? 0 : oh * f->stride[v] - f->begin[v], r0 = larger(top, 0), rows = smaller(top + (v < 0 ? 1 : f->kernel[v]), height) - r0;
        if (rows <= 0) continue;
        for (int64_t ow = 0; ow < f->out[h]; ow++) {
            const int64_t left = ow * f->stride[h] - f->begin[h], c0 = larger(left, 0), cols = smaller(left + f->kernel[h], width) - c0;
            const float d = dy[oh * f->out[h] + ow];
            float *to = dx + r0 * width + c0;
            if (cols <= 0) continue;
            if (!j->average) {
                to[best_of(x + r0 * width + c0, width, rows, cols)] += d;
                continue;
            }
            const int64_t count = (v < 0 ? 1 : counted(f, v, oh, rows, j->pads)) * counted(f, h, ow, cols, j->pads);
            for (int64_t r = 0; r < rows; r++)
                for (int64_t c = 0; c < cols; c++) to[r * width + c] += d / (float)count;
        }
    }
}

static bool is_2d(const struct op_ctx *ctx, const struct nn_fit *f) {
    bool flat = ctx->in[1]->dtype == OP_F32 && f->rank <= 2;
    for (int a = 0; a < f->rank; a++) flat = flat && f->dilation[a] == 1;
    return flat;
}

static void task(void *arg, int64_t plane) {
    const struct job *j = arg;
    if (is_2d(j->ctx, &j->f)) plane_2d(j, plane);
    else if (j->ctx->in[1]->dtype == OP_F32) plane_float(j, plane);
    else plane_double(j, plane);
}

static enum op_status run(struct op_ctx *ctx) {
    const struct state *s = ctx->state;
    const struct op_tensor *x = ctx->in[1];
    struct job j = {.ctx = ctx, .average = s->average, .pads = s->count_include_pad};
    if (op_tensor_count(x) == 0) return OP_OK;
    enum op_status st = op__nn_window_fit(ctx, &s->window, x->rank - 2, x->dims + 2, NULL, &j.f);
    if (st == OP_OK) op__parallel(ctx, x->dims[0] * x->dims[1], task, &j);
    return st;
}

#define DESC(NAME)                                                                                 \
    {                                                                                              \
        .name = NAME, .domain = "quern", .since = 1, .in_min = 2, .in_max = 2, .out_min = 1, .out_max = 1, .prepare = prepare, .release = free, \
        .infer = infer, .run = run                                                                 \
    }
static const struct op_desc max_pool_grad = DESC("MaxPoolGrad"), average_pool_grad = DESC("AveragePoolGrad");
OP_REGISTER(max_pool_grad);
OP_REGISTER(average_pool_grad);

static enum op_status pool_grad(struct op_grad *g) {
    int in[2] = {g->dy[0], g->in[0]}, dx;
    if (g->dy[0] < 0) return OP_OK;
    op__attrs_copy(g, op__emit(g, "quern", g->node->op_type[0] == 'M' ? "MaxPoolGrad" : "AveragePoolGrad", 2, in, 1, &dx));
    op__grad_set(g, 0, dx);
    return OP_OK;
}

static const struct op_grad_row pool_grads[] = {{"", "MaxPool", pool_grad}, {"", "AveragePool", pool_grad}};
OP_GRADS_REGISTER(pool_grads);
