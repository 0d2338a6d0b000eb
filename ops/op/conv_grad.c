/* conv_grad.c: gradients of Conv and ConvTranspose: three operators of the domain quern with Conv's attributes.
 *
 *   ConvGradX(dy, w, x)  dX, of x's shape       ConvGradW(dy, x, w)  dW, of w's shape       ConvGradB(dy)  dB: sums over all but dimension 1
 *
 * f32 with up to three spatial dimensions runs at the speed of the matrix product:
 *   dX, stride 1   is itself a convolution: of dy with the kernel turned round and its channels exchanged. The columns of dy are packed
 *                  panel by panel into cache as in conv.c.
 *   dX, strided    W^T (packed once) times dy gives columns, a few hundred positions at a time, which are added to the places in x
 *                  that they came from.
 *   dW             transposed, (channel, kernel position) x output channel: the columns of x, as rows, times dy^T, whose panels are packed
 *                  once an image. The sum runs through all images of a part of the batch in one chain; parts (at most PARTS, by the
 *                  size of the batch alone) are computed side by side and added in order.
 *   1 x 1          x and dy are the columns; the one with fewer channels is transposed.
 *   depthwise      (one channel in and out a group): row by row.
 * Everything else (f64, more dimensions) goes by windows in plain C. ConvTranspose's gradients are Conv and ConvGradW with dy and x
 * exchanged. */
#include "ops/kern/kern.h"
#include "ops/op/nn.h"
#include "ops/op/product.h"

#include <stdlib.h>
#include <string.h>

#include "ops/grad.h"

enum { CHUNK = 256, SLACK = 16, PARTS = 8, ROWS_TO_PACK = 64 /* as in conv.c */ };

struct state {
    struct nn_window window;
    int64_t group;
};

static enum op_status grad_prepare(struct op_prepare *p) {
    struct state *s = calloc(1, sizeof *s);
    if (!s) return op__node_fail(p->err, p->node, OP_NOMEM, "no memory");
    p->node->state = s;
    s->group = op__attr_int(p->node, "group", 1);
    if (s->group < 1) return op__node_fail(p->err, p->node, OP_BAD_VALUE, "group is %lld, expected 1 or more", (long long)s->group);
    return op__nn_window_parse(p, false, &s->window);
}

/* --- the geometry ----------------------------------------------------------------------------------- */

struct shape {
    struct nn_fit fit;
    int64_t batch, group, ic, oc, kernel; /* channels of a group, kernel positions */
    bool f32, fast, depthwise;            /* fast: by the kernels */
    struct k_geometry g;                  /* of the forward convolution of a group, where fast */
};

static const struct op_tensor *x_of(const struct op_ctx *ctx) {
    return ctx->in[ctx->node->desc->name[8] == 'X' ? 2 : 1];
}
static const struct op_tensor *w_of(const struct op_ctx *ctx) {
    return ctx->in[ctx->node->desc->name[8] == 'X' ? 1 : 2];
}

static enum op_status shape_of(const struct op_ctx *ctx, struct shape *s) {
    const struct state *state = ctx->state;
    const struct op_tensor *x = x_of(ctx), *w = w_of(ctx);
    enum op_status st = op__nn_window_fit(ctx, &state->window, x->rank - 2, x->dims + 2, w->dims + 2, &s->fit);
    if (st != OP_OK) return st;
    s->batch = x->dims[0];
    s->group = state->group;
    s->ic = w->dims[1];
    s->oc = w->dims[0] / s->group;
    s->kernel = 1;
    for (int i = 0; i < s->fit.rank; i++) s->kernel *= s->fit.kernel[i];
    s->f32 = x->dtype == OP_F32;
    s->fast = s->f32 && s->fit.rank <= 3;
    s->depthwise = s->fast && s->ic == 1 && s->oc == 1;
    s->g = (struct k_geometry){.channels = s->ic};
    for (int i = 0; i < 3 && s->fast; i++) {
        const int from = i - (3 - s->fit.rank);
        s->g.in[i] = from < 0 ? 1 : s->fit.in[from];
        s->g.out[i] = from < 0 ? 1 : s->fit.out[from];
        s->g.kernel[i] = from < 0 ? 1 : s->fit.kernel[from];
        s->g.stride[i] = from < 0 ? 1 : s->fit.stride[from];
        s->g.dilation[i] = from < 0 ? 1 : s->fit.dilation[from];
        s->g.begin[i] = from < 0 ? 0 : s->fit.begin[from];
    }
    return OP_OK;
}

static enum op_status grad_infer(struct op_ctx *ctx) {
    const struct state *state = ctx->state;
    struct shape s;
    if (!ctx->in[0] || !ctx->in[1] || !ctx->in[2]) return op__fail(ctx, OP_BAD_MODEL, "three inputs must be there");
    const struct op_tensor *dy = ctx->in[0], *x = x_of(ctx), *w = w_of(ctx);
    char td[160], tx[160], tw[160];
    if ((x->dtype != OP_F32 && x->dtype != OP_F64) || w->dtype != x->dtype || dy->dtype != x->dtype || x->kind != OP_KIND_TENSOR ||
        w->kind != OP_KIND_TENSOR || dy->kind != OP_KIND_TENSOR)
        return op__fail(ctx, OP_BAD_TYPE, "dy is %s, x %s and w %s, expected f32 or f64 for all", op_type_name(dy->dtype), op_type_name(x->dtype),
                        op_type_name(w->dtype));
    op_tensor_describe(dy, td, sizeof td);
    op_tensor_describe(x, tx, sizeof tx);
    op_tensor_describe(w, tw, sizeof tw);
    if (x->rank < 3 || w->rank != x->rank || dy->rank != x->rank || w->dims[0] % state->group || x->dims[1] % state->group ||
        w->dims[1] != x->dims[1] / state->group || dy->dims[0] != x->dims[0] || dy->dims[1] != w->dims[0])
        return op__fail(ctx, OP_BAD_SHAPE, "dy is %s for a convolution of %s with %s in %lld groups", td, tx, tw, (long long)state->group);
    enum op_status st = shape_of(ctx, &s);
    if (st != OP_OK) return st;
    for (int i = 0; i < s.fit.rank; i++)
        if (dy->dims[i + 2] != s.fit.out[i]) return op__fail(ctx, OP_BAD_SHAPE, "dy is %s, the convolution of %s with %s gives %lld in dimension %d", td, tx, tw, (long long)s.fit.out[i], i + 2);
    op__set_like(ctx, 0, 2);
    return OP_OK;
}

struct job {
    const struct op_ctx *ctx;
    struct shape s;
    const struct k_kernels *kern;
    struct k_geometry turned; /* of the convolution that gives dX */
    const float *dy, *x, *w;
    float *out, *shared, *scratch; /* shared: packed weights; scratch: of a task */
    size_t slice;
    int64_t n_parts, packed; /* floats of one group's packed weights */
};

static int64_t rows_of(const struct shape *s) { /* of the columns: channels and kernel positions */
    return s->ic * s->kernel;
}
static bool unit_stride(const struct shape *s) {
    return s->g.stride[0] == 1 && s->g.stride[1] == 1 && s->g.stride[2] == 1;
}

/* A 1 x 1 kernel of stride 1 without padding: the columns of x are x. */
static bool pointwise(const struct shape *s) {
    return s->kernel == 1 && unit_stride(s) && s->fit.in_size == s->fit.out_size && !s->g.begin[0] && !s->g.begin[1] && !s->g.begin[2];
}

/* --- dX --------------------------------------------------------------------------------------------- */

static int64_t n_tasks_x(const struct shape *s, int n_threads) {
    const int64_t all = s->batch * s->group;
    return all < n_threads ? all : n_threads;
}

static size_t x_slice(const struct k_kernels *kern, const struct shape *s) {
    if (s->depthwise) return 0;
    if (unit_stride(s)) return (size_t)K_GEMM_BLOCK * (size_t)kern->gemm->nr + SLACK;
    return (size_t)rows_of(s) * CHUNK;
}
static size_t x_packed(const struct k_kernels *kern, const struct shape *s) {
    if (s->depthwise) return 0;
    return unit_stride(s) ? k_pack_a_floats(kern->gemm, s->ic, s->oc * s->kernel) : k_pack_a_floats(kern->gemm, rows_of(s), s->oc);
}

static size_t grad_x_scratch(const struct op_ctx *ctx) {
    struct shape s;
    if (shape_of(ctx, &s) != OP_OK || !s.fast) return 0;
    const struct k_kernels *kern = op__kern(ctx);
    size_t floats = (size_t)n_tasks_x(&s, op__n_threads(ctx)) * x_slice(kern, &s) + (size_t)s.group * x_packed(kern, &s);
    if (unit_stride(&s) && !s.depthwise) floats += (size_t)(s.ic * s.oc * s.kernel);
    return floats * sizeof(float);
}

/* The kernel of a group turned round, channels exchanged. */
static void turn(const struct shape *s, const float *w, float *to) {
    for (int64_t c = 0; c < s->ic; c++)
        for (int64_t o = 0; o < s->oc; o++)
            for (int64_t q = 0; q < s->kernel; q++) to[(c * s->oc + o) * s->kernel + q] = w[(o * s->ic + c) * s->kernel + s->kernel - 1 - q];
}

static void dx_by_convolution(const struct job *j, const float *dy, const float *w, float *dx, float *buffer) {
    const struct k_gemm *g = j->kern->gemm;
    const int64_t k = j->s.oc * j->s.kernel;
    struct k_product p = {.m = j->s.ic, .n = j->s.fit.in_size, .k = k, .a = w, .a_packed = true, .c = dx, .c_row = j->s.fit.in_size};
    if (pointwise(&j->s) && p.m < ROWS_TO_PACK) { /* few rows: dy is read as it lies */
        p.b = dy;
        p.b_k = p.n;
        k_gemm(j->kern, &p, 0, p.m, 0, p.n);
        return;
    }
    for (int64_t at = 0; at < p.n; at += g->nr) {
        const int64_t n = p.n - at < g->nr ? p.n - at : g->nr;
        for (int64_t k0 = 0; k0 < k; k0 += K_GEMM_BLOCK) {
            const int64_t k1 = k0 + K_GEMM_BLOCK < k ? k0 + K_GEMM_BLOCK : k;
            j->kern->conv->pack(&j->turned, dy, k0, k1, at, n, g->nr, buffer);
            k_gemm_panel(j->kern, &p, 0, p.m, at, n, k0, k1, buffer, g->nr);
        }
    }
}

/* Adds row k of the columns of positions [p0, p1) to where they came from. */
static void add_back(const struct k_geometry *g, int64_t k, int64_t p0, int64_t p1, const float *from, float *dx) {
    const int64_t a2 = k % g->kernel[2], a1 = k / g->kernel[2] % g->kernel[1], a0 = k / g->kernel[2] / g->kernel[1] % g->kernel[0],
                  c = k / g->kernel[2] / g->kernel[1] / g->kernel[0];
    float *channel = dx + c * g->in[0] * g->in[1] * g->in[2];
    for (int64_t p = p0; p < p1;) {
        const int64_t ow = p % g->out[2], oh = p / g->out[2] % g->out[1], od = p / g->out[2] / g->out[1];
        int64_t len = g->out[2] - ow < p1 - p ? g->out[2] - ow : p1 - p;
        const int64_t d = od * g->stride[0] - g->begin[0] + a0 * g->dilation[0], h = oh * g->stride[1] - g->begin[1] + a1 * g->dilation[1];
        const int64_t left = ow * g->stride[2] - g->begin[2] + a2 * g->dilation[2], step = g->stride[2];
        if (d >= 0 && d < g->in[0] && h >= 0 && h < g->in[1]) {
            int64_t lo = left < 0 ? (-left + step - 1) / step : 0, hi = left >= g->in[2] ? 0 : (g->in[2] - left + step - 1) / step;
            if (hi > len) hi = len;
            float *to = channel + (d * g->in[1] + h) * g->in[2] + left;
            for (int64_t i = lo; i < hi; i++) to[i * step] += from[p - p0 + i];
        }
        p += len;
    }
}

static void dx_by_columns(const struct job *j, const float *dy, const float *w, float *dx, float *columns) {
    const int64_t out = j->s.fit.out_size, rows = rows_of(&j->s);
    memset(dx, 0, (size_t)(j->s.ic * j->s.fit.in_size) * sizeof *dx);
    for (int64_t p0 = 0; p0 < out; p0 += CHUNK) {
        const int64_t p1 = p0 + CHUNK < out ? p0 + CHUNK : out;
        struct k_product p = {.m = rows, .n = p1 - p0, .k = j->s.oc, .a = w, .a_packed = true, .b = dy + p0, .b_k = out, .c = columns, .c_row = CHUNK};
        k_gemm(j->kern, &p, 0, rows, 0, p1 - p0);
        for (int64_t k = 0; k < rows; k++) add_back(&j->s.g, k, p0, p1, columns + k * CHUNK, dx);
    }
}

/* One kernel position of a plane: rows of dy and the rows of x that it meets. fn(n, dy's first, x's first). */
#define EACH_ROW(G, Q, DY, X, N, CODE)                                                             \
    do {                                                                                           \
        const int64_t q2 = (Q) % (G)->kernel[2], q1 = (Q) / (G)->kernel[2] % (G)->kernel[1], q0 = (Q) / (G)->kernel[2] / (G)->kernel[1]; \
        const int64_t step = (G)->stride[2], first = q2 * (G)->dilation[2] - (G)->begin[2];        \
        const int64_t lo = first < 0 ? (-first + step - 1) / step : 0;                             \
        int64_t hi = first >= (G)->in[2] ? 0 : ((G)->in[2] - first + step - 1) / step;             \
        if (hi > (G)->out[2]) hi = (G)->out[2];                                                    \
        for (int64_t od = 0; od < (G)->out[0] && hi > lo; od++)                                    \
            for (int64_t oh = 0; oh < (G)->out[1]; oh++) {                                         \
                const int64_t d = od * (G)->stride[0] - (G)->begin[0] + q0 * (G)->dilation[0],     \
                              h = oh * (G)->stride[1] - (G)->begin[1] + q1 * (G)->dilation[1];     \
                if (d < 0 || d >= (G)->in[0] || h < 0 || h >= (G)->in[1]) continue;                \
                const int64_t N = hi - lo, DY = (od * (G)->out[1] + oh) * (G)->out[2] + lo, X = (d * (G)->in[1] + h) * (G)->in[2] + first + lo * step; \
                CODE                                                                               \
            }                                                                                      \
    } while (0)

static void dx_of_plane(const struct job *j, const float *dy, const float *w, float *dx) {
    const struct k_geometry *g = &j->s.g;
    memset(dx, 0, (size_t)j->s.fit.in_size * sizeof *dx);
    for (int64_t q = 0; q < j->s.kernel; q++) {
        const float v = w[q];
        EACH_ROW(g, q, at, to, n, {
            if (step == 1) j->kern->math->axpy(n, v, dy + at, dx + to);
            else
                for (int64_t i = 0; i < n; i++) dx[to + i * step] = __builtin_fmaf(v, dy[at + i], dx[to + i * step]);
        });
    }
}

static void dx_task(void *arg, int64_t task) {
    const struct job *j = arg;
    const struct shape *s = &j->s;
    const int64_t all = s->batch * s->group, tasks = n_tasks_x(s, op__n_threads(j->ctx));
    float *own = j->scratch + (size_t)task * j->slice;
    for (int64_t i = task; i < all; i += tasks) { /* image i / group, group i % group: planes lie side by side */
        const float *dy = j->dy + i * s->oc * s->fit.out_size;
        float *dx = j->out + i * s->ic * s->fit.in_size;
        const int64_t group = i % s->group;
        if (s->depthwise) dx_of_plane(j, dy, j->w + group * s->kernel, dx);
        else if (unit_stride(s)) dx_by_convolution(j, dy, j->shared + group * j->packed, dx, own);
        else dx_by_columns(j, dy, j->shared + group * j->packed, dx, own);
    }
}

static void grad_x_fast(struct job *j) {
    const struct shape *s = &j->s;
    const struct k_gemm *g = j->kern->gemm;
    const int64_t k = s->oc * s->kernel, each = s->oc * s->ic * s->kernel;
    j->packed = (int64_t)x_packed(j->kern, s);
    j->slice = x_slice(j->kern, s);
    j->shared = j->ctx->scratch;
    j->scratch = j->shared + s->group * j->packed;
    float *turned = j->scratch + (size_t)n_tasks_x(s, op__n_threads(j->ctx)) * j->slice;
    j->turned = s->g;
    j->turned.channels = s->oc;
    for (int i = 0; i < 3; i++) {
        j->turned.in[i] = s->g.out[i];
        j->turned.out[i] = s->g.in[i];
        j->turned.begin[i] = (s->g.kernel[i] - 1) * s->g.dilation[i] - s->g.begin[i];
    }
    for (int64_t i = 0; i < s->group && !s->depthwise; i++) {
        if (unit_stride(s)) {
            turn(s, j->w + i * each, turned);
            k_pack_a(g, s->ic, k, turned, k, 1, j->shared + i * j->packed);
        } else k_pack_a(g, rows_of(s), s->oc, j->w + i * each, 1, rows_of(s), j->shared + i * j->packed);
    }
    op__parallel(j->ctx, n_tasks_x(s, op__n_threads(j->ctx)), dx_task, j);
}

/* --- dW --------------------------------------------------------------------------------------------- */

static int64_t n_parts(const struct shape *s) {
    return s->batch < PARTS ? s->batch : PARTS;
}
static size_t w_result(const struct shape *s) {
    return (size_t)(s->depthwise ? s->group * s->kernel : s->group * s->oc * rows_of(s));
}
static size_t w_slice(const struct k_kernels *kern, const struct shape *s) {
    return w_result(s) + (s->depthwise ? 0 : k_pack_b_floats(kern->gemm, s->fit.out_size, s->oc) + (size_t)rows_of(s) * (CHUNK + SLACK) + SLACK);
}

static size_t grad_w_scratch(const struct op_ctx *ctx) {
    struct shape s;
    if (shape_of(ctx, &s) != OP_OK || !s.fast) return 0;
    return (size_t)n_parts(&s) * w_slice(op__kern(ctx), &s) * sizeof(float);
}

/* The same for a 1 x 1 kernel; the side with fewer channels is the one that is transposed. dW^T (ic x oc), or dW (oc x ic) if `turned`. */
static void dw_pointwise(const struct job *j, int64_t group, int64_t n0, int64_t n1, float *to, float *packed, bool turned) {
    const struct shape *s = &j->s;
    const struct k_gemm *g = j->kern->gemm;
    const int64_t plane = s->fit.out_size, m = turned ? s->oc : s->ic, n = turned ? s->ic : s->oc;
    struct k_product p = {.m = m, .n = n, .k = (n1 - n0) * plane, .a_row = plane, .a_k = 1, .c = to, .c_row = n};
    for (int64_t i = n0; i < n1; i++) {
        const float *x = j->x + (i * s->group + group) * s->ic * plane, *dy = j->dy + (i * s->group + group) * s->oc * plane;
        k_pack_b(g, plane, n, turned ? x : dy, 1, plane, packed);
        p.a = (turned ? dy : x) - (i - n0) * plane;
        for (int64_t p0 = 0; p0 < plane; p0 += K_GEMM_BLOCK) {
            const int64_t p1 = p0 + K_GEMM_BLOCK < plane ? p0 + K_GEMM_BLOCK : plane;
            for (int64_t o = 0; o < n; o += g->nr) {
                const int64_t left = n - o, cols = left < g->nr ? left : g->nr, padded = left < g->nr ? (left + g->vw - 1) / g->vw * g->vw : g->nr;
                k_gemm_panel(j->kern, &p, 0, m, o, cols, (i - n0) * plane + p0, (i - n0) * plane + p1, packed + o * plane + p0 * padded, padded);
            }
        }
    }
}

/* dW^T of a group over images [n0, n1): (ic kernel) x oc. */
static void dw_of_part(const struct job *j, int64_t group, int64_t n0, int64_t n1, float *to, float *dy_packed, float *columns) {
    const struct shape *s = &j->s;
    const struct k_gemm *g = j->kern->gemm;
    const int64_t out = s->fit.out_size, rows = rows_of(s), width = CHUNK + SLACK;
    struct k_product p = {.m = rows, .n = s->oc, .k = (n1 - n0) * out, .a_row = width, .a_k = 1, .c = to, .c_row = s->oc};
    for (int64_t n = n0; n < n1; n++) {
        const float *x = j->x + (n * s->group + group) * s->ic * s->fit.in_size, *dy = j->dy + (n * s->group + group) * s->oc * out;
        k_pack_b(g, out, s->oc, dy, 1, out, dy_packed);
        for (int64_t p0 = 0; p0 < out; p0 += CHUNK) {
            const int64_t p1 = p0 + CHUNK < out ? p0 + CHUNK : out, k0 = (n - n0) * out + p0;
            for (int64_t at = p0; at < p1; at += g->nr)
                j->kern->conv->pack(&s->g, x, 0, rows, at, p1 - at < g->nr ? p1 - at : g->nr, width, columns + (at - p0));
            p.a = columns - k0;
            for (int64_t o = 0; o < s->oc; o += g->nr) {
                const int64_t left = s->oc - o, cols = left < g->nr ? left : g->nr, padded = left < g->nr ? (left + g->vw - 1) / g->vw * g->vw : g->nr;
                k_gemm_panel(j->kern, &p, 0, rows, o, cols, k0, k0 + p1 - p0, dy_packed + o * out + p0 * padded, padded);
            }
        }
    }
}

static void dw_of_planes(const struct job *j, int64_t n0, int64_t n1, float *to) {
    const struct shape *s = &j->s;
    const struct k_geometry *g = &s->g;
    for (int64_t c = 0; c < s->group; c++)
        for (int64_t q = 0; q < s->kernel; q++) {
            float sum = 0;
            for (int64_t n = n0; n < n1; n++) {
                const float *dy = j->dy + (n * s->group + c) * s->fit.out_size, *x = j->x + (n * s->group + c) * s->fit.in_size;
                EACH_ROW(g, q, at, from, m, {
                    if (step == 1) sum += j->kern->math->dot(m, dy + at, x + from);
                    else {
                        float row = 0;
                        for (int64_t i = 0; i < m; i++) row = __builtin_fmaf(dy[at + i], x[from + i * step], row);
                        sum += row;
                    }
                });
            }
            to[c * s->kernel + q] = sum;
        }
}

static void dw_task(void *arg, int64_t part) {
    const struct job *j = arg;
    const struct shape *s = &j->s;
    float *own = j->scratch + (size_t)part * j->slice, *packed = own + w_result(s);
    const int64_t n0 = part * s->batch / j->n_parts, n1 = (part + 1) * s->batch / j->n_parts;
    if (s->depthwise) {
        dw_of_planes(j, n0, n1, own);
        return;
    }
    float *columns = packed + k_pack_b_floats(j->kern->gemm, s->fit.out_size, s->oc);
    for (int64_t i = 0; i < s->group && pointwise(s); i++) dw_pointwise(j, i, n0, n1, own + i * s->oc * s->ic, packed, s->oc > s->ic);
    if (pointwise(s)) return;
    for (int64_t i = 0; i < s->group; i++) dw_of_part(j, i, n0, n1, own + i * s->oc * rows_of(s), packed, columns);
}

static void grad_w_fast(struct job *j) {
    const struct shape *s = &j->s;
    const int64_t rows = rows_of(s), each = (int64_t)w_result(s);
    j->n_parts = n_parts(s);
    j->slice = w_slice(j->kern, s);
    j->scratch = j->ctx->scratch;
    op__parallel(j->ctx, j->n_parts, dw_task, j);
    for (int64_t i = 1; i < j->n_parts; i++)
        j->kern->math->binary[K_ADD](each, j->scratch, false, j->scratch + (size_t)i * j->slice, false, j->scratch);
    if (s->depthwise || (pointwise(s) && s->oc > s->ic)) {
        memcpy(j->out, j->scratch, (size_t)each * sizeof *j->out);
        return;
    }
    for (int64_t i = 0; i < s->group; i++)
        for (int64_t o = 0; o < s->oc; o++)
            for (int64_t k = 0; k < rows; k++) j->out[(i * s->oc + o) * rows + k] = j->scratch[(i * rows + k) * s->oc + o];
}

/* --- plain, any number of dimensions ---------------------------------------------------------------- */

/* Both gradients: for each output position and kernel position inside the input. */
#define PLAIN(T)                                                                                   \
    static void plain_##T(const struct shape *s, const T *dy, const T *x, const T *w, T *dx, T *dw) { \
        const struct nn_fit *f = &s->fit;                                                          \
        int64_t o[NN_SPATIAL_MAX] = {0}, position = 0;                                             \
        if (f->out_size == 0) return;                                                              \
        do {                                                                                       \
            int64_t q[NN_SPATIAL_MAX] = {0}, tap = 0;                                              \
            do {                                                                                   \
                int64_t at = 0;                                                                    \
                bool inside = true;                                                                \
                for (int a = 0; a < f->rank; a++) {                                                \
                    const int64_t i = o[a] * f->stride[a] - f->begin[a] + q[a] * f->dilation[a];   \
                    inside = inside && i >= 0 && i < f->in[a];                                     \
                    at = at * f->in[a] + i;                                                        \
                }                                                                                  \
                for (int64_t n = 0; n < s->batch && inside; n++)                                   \
                    for (int64_t m = 0; m < s->group * s->oc; m++) {                               \
                        const T d = dy[(n * s->group * s->oc + m) * f->out_size + position];       \
                        for (int64_t c = 0; c < s->ic; c++) {                                      \
                            const int64_t ix = ((n * s->group + m / s->oc) * s->ic + c) * f->in_size + at, iw = (m * s->ic + c) * s->kernel + tap; \
                            if (dx) dx[ix] += d * w[iw];                                           \
                            else dw[iw] += d * x[ix];                                              \
                        }                                                                          \
                    }                                                                              \
                tap++;                                                                             \
            } while (nn_next(q, f->kernel, f->rank));                                              \
            position++;                                                                            \
        } while (nn_next(o, f->out, f->rank));                                                     \
    }
PLAIN(float)
PLAIN(double)

static enum op_status grad_run(struct op_ctx *ctx) {
    const bool to_x = ctx->node->desc->name[8] == 'X';
    struct op_tensor *out = ctx->out[0];
    struct job j = {.ctx = ctx, .kern = op__kern(ctx), .dy = ctx->in[0]->data, .x = x_of(ctx)->data, .w = w_of(ctx)->data, .out = out->data};
    if (op_tensor_count(out) == 0) return OP_OK;
    enum op_status st = shape_of(ctx, &j.s);
    if (st != OP_OK) return st;
    const bool empty = op_tensor_count(ctx->in[0]) == 0 || op_tensor_count(ctx->in[1]) == 0;
    if (j.s.fast && !empty) {
        if (to_x) grad_x_fast(&j);
        else grad_w_fast(&j);
        return OP_OK;
    }
    memset(out->data, 0, (size_t)op_tensor_bytes(out));
    if (empty) return OP_OK;
    if (j.s.f32) plain_float(&j.s, j.dy, j.x, j.w, to_x ? out->data : NULL, to_x ? NULL : out->data);
    else plain_double(&j.s, (const void *)j.dy, (const void *)j.x, (const void *)j.w, to_x ? out->data : NULL, to_x ? NULL : out->data);
    return OP_OK;
}

static void grad_cost(const struct op_ctx *ctx, double *flops, double *bytes) {
    struct shape s;
    (void)bytes;
    if (shape_of(ctx, &s) == OP_OK) *flops = 2.0 * (double)s.batch * (double)(s.group * s.oc) * (double)rows_of(&s) * (double)s.fit.out_size;
}

static const struct op_desc conv_grad_x = {.name = "ConvGradX", .domain = "quern", .since = 1, .in_min = 3, .in_max = 3, .out_min = 1, .out_max = 1,
                                           .prepare = grad_prepare, .release = free, .infer = grad_infer, .scratch = grad_x_scratch, .run = grad_run,
                                           .cost = grad_cost};
OP_REGISTER(conv_grad_x);
static const struct op_desc conv_grad_w = {.name = "ConvGradW", .domain = "quern", .since = 1, .in_min = 3, .in_max = 3, .out_min = 1, .out_max = 1,
                                           .prepare = grad_prepare, .release = free, .infer = grad_infer, .scratch = grad_w_scratch, .run = grad_run,
                                           .cost = grad_cost};
OP_REGISTER(conv_grad_w);

/* --- dB --------------------------------------------------------------------------------------------- */

static enum op_status grad_b_infer(struct op_ctx *ctx) {
    const struct op_tensor *dy = ctx->in[0];
    if (!dy || dy->kind != OP_KIND_TENSOR || (dy->dtype != OP_F32 && dy->dtype != OP_F64) || dy->rank < 2)
        return op__fail(ctx, OP_BAD_SHAPE, "dy must be f32 or f64 of rank 2 or more");
    op__set(ctx, 0, dy->dtype, 1, &dy->dims[1]);
    return OP_OK;
}
static enum op_status grad_b_run(struct op_ctx *ctx) {
    const struct op_tensor *dy = ctx->in[0];
    const int64_t channels = dy->dims[1];
    if (channels) memset(ctx->out[0]->data, 0, (size_t)op_tensor_bytes(ctx->out[0]));
    if (op_tensor_count(dy) == 0) return OP_OK;
    const int64_t plane = op_tensor_count(dy) / dy->dims[0] / channels;
    for (int64_t n = 0; n < dy->dims[0]; n++)
        for (int64_t c = 0; c < channels; c++) {
            const int64_t at = (n * channels + c) * plane;
            if (dy->dtype == OP_F32) ((float *)ctx->out[0]->data)[c] += op__kern(ctx)->math->sum(plane, (const float *)dy->data + at);
            else
                for (int64_t i = 0; i < plane; i++) ((double *)ctx->out[0]->data)[c] += ((const double *)dy->data)[at + i];
        }
    return OP_OK;
}
static const struct op_desc conv_grad_b = {.name = "ConvGradB", .domain = "quern", .since = 1, .in_min = 1, .in_max = 1, .out_min = 1, .out_max = 1,
                                           .infer = grad_b_infer, .run = grad_b_run};
OP_REGISTER(conv_grad_b);

/* --- emitting --------------------------------------------------------------------------------------- */

static const char *const conv_attrs[] = {"auto_pad", "dilations", "group", "kernel_shape", "pads", "strides"};

static int emit_conv(struct op_grad *g, const char *domain, const char *op, int n_in, const int *in) {
    int out;
    struct op_node *n = op__emit(g, domain, op, n_in, in, 1, &out);
    for (size_t i = 0; i < sizeof conv_attrs / sizeof *conv_attrs; i++) op__attr_copy(g, n, conv_attrs[i]);
    return out;
}

static enum op_status conv_grad(struct op_grad *g) {
    if (op__grad_wants(g, 0)) op__grad_set(g, 0, emit_conv(g, "quern", "ConvGradX", 3, (int[]){g->dy[0], g->in[1], g->in[0]}));
    if (op__grad_wants(g, 1)) op__grad_set(g, 1, emit_conv(g, "quern", "ConvGradW", 3, (int[]){g->dy[0], g->in[0], g->in[1]}));
    if (op__grad_wants(g, 2)) op__grad_set(g, 2, op__emit_quern(g, "ConvGradB", 1, g->dy));
    return OP_OK;
}

static enum op_status conv_transpose_grad(struct op_grad *g) { /* y = ConvTranspose(x): x and y are dy and x of a Conv */
    const char *pad = op__attr_string(g->node, "auto_pad", "NOTSET");
    if (strcmp(pad, "NOTSET") || op__attr(g->node, "output_shape")) return op__grad_refuse(g, "with auto_pad or output_shape");
    if (op__grad_wants(g, 0)) op__grad_set(g, 0, emit_conv(g, "", "Conv", 2, (int[]){g->dy[0], g->in[1]}));
    if (op__grad_wants(g, 1)) op__grad_set(g, 1, emit_conv(g, "quern", "ConvGradW", 3, (int[]){g->in[0], g->dy[0], g->in[1]}));
    if (op__grad_wants(g, 2)) op__grad_set(g, 2, op__emit_quern(g, "ConvGradB", 1, g->dy));
    return OP_OK;
}

static const struct op_grad_row conv_grads[] = {{"", "Conv", conv_grad}, {"", "ConvTranspose", conv_transpose_grad}};
OP_GRADS_REGISTER(conv_grads);
