/* max_pool.c: MaxPool.
 *
 * `ref` walks outputs and taps one by one in double precision, for every type, any number of spatial dimensions, dilation, and the
 * Indices output. `run` takes it for all but the common cases, one or two spatial dimensions and values only: f32 goes
 * to pool_f32.c; u8 and i8 without dilation make a row of outputs in two steps, first the maximum down the rows
 * of the window (contiguous whatever the stride), then across, so that a window of kh x kw costs kh + kw steps an output.
 *
 * NaN goes through; a window of padding only gives -infinity. Maxima do not depend on order, so all forms give the
 * same bits. Planes (n, c) are split over the threads. */
#include "ops/op/pool_f32.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>

struct max_pool {
    struct nn_window window;
    bool column_major; /* storage_order: Indices count the first spatial dimension fastest */
};

static enum op_status prepare(struct op_prepare *p) {
    struct max_pool *s = calloc(1, sizeof *s);
    if (!s) return op__node_fail(p->err, p->node, OP_NOMEM, "out of memory");
    p->node->state = s;
    int64_t order = op__attr_int(p->node, "storage_order", 0);
    if (order != 0 && order != 1) return op__node_fail(p->err, p->node, OP_BAD_VALUE, "storage_order is %lld, expected 0 or 1", (long long)order);
    s->column_major = order == 1;
    return op__nn_window_parse(p, true, &s->window);
}

static enum op_status fit(const struct op_ctx *ctx, struct nn_fit *f) {
    const struct max_pool *s = ctx->state;
    const struct op_tensor *x = ctx->in[0];
    return op__nn_window_fit(ctx, &s->window, x->rank - 2, x->dims + 2, NULL, f);
}

static enum op_status infer(struct op_ctx *ctx) {
    const struct op_tensor *x = ctx->in[0];
    if (!x) return op__fail(ctx, OP_BAD_MODEL, "input 0 (X) is absent");
    if (x->kind != OP_KIND_TENSOR || (!nn_is_float(x->dtype) && x->dtype != OP_U8 && x->dtype != OP_I8))
        return op__fail(ctx, OP_BAD_TYPE, "input 0 (X) is %s, expected f32, f64, f16, bf16, u8 or i8", op_type_name(x->dtype));
    struct nn_fit f;
    enum op_status st = fit(ctx, &f);
    if (st != OP_OK) return st;
    int64_t dims[OP_RANK_MAX] = {x->dims[0], x->dims[1]};
    for (int a = 0; a < f.rank; a++) dims[2 + a] = f.out[a];
    op__set(ctx, 0, x->dtype, x->rank, dims);
    op__set(ctx, 1, OP_I64, x->rank, dims);
    return OP_OK;
}

struct job {
    const struct op_ctx *ctx;
    struct nn_fit f;
};

/* --- every case -------------------------------------------------------------------------------- */

static double lowest(enum op_type t) {
    return t == OP_U8 ? 0 : t == OP_I8 ? INT8_MIN : -INFINITY;
}

/* The place of a position in its plane, in the order that Indices count. */
static int64_t place_of(const struct nn_fit *f, const int64_t *pos, bool column_major) {
    int64_t place = 0;
    if (column_major)
        for (int a = f->rank - 1; a >= 0; a--) place = place * f->in[a] + pos[a];
    else
        for (int a = 0; a < f->rank; a++) place = place * f->in[a] + pos[a];
    return place;
}

static void ref_output(const struct job *job, int64_t plane, const int64_t *o, int64_t dst) {
    const struct nn_fit *f = &job->f;
    const struct op_ctx *ctx = job->ctx;
    const struct max_pool *s = ctx->state;
    int64_t n[NN_SPATIAL_MAX], start[NN_SPATIAL_MAX], tap[NN_SPATIAL_MAX] = {0}, pos[NN_SPATIAL_MAX], first, best_place = 0;
    double best = lowest(ctx->in[0]->dtype);
    bool some = true, any = false;
    for (int a = 0; a < f->rank; a++) {
        nn_taps(f, a, o[a], &first, &n[a], &start[a]);
        some = some && n[a] > 0;
    }
    if (some) do {
            int64_t at = 0;
            for (int a = 0; a < f->rank; a++) {
                pos[a] = start[a] + tap[a] * f->dilation[a];
                at = at * f->in[a] + pos[a];
            }
            double v = nn_load(ctx->in[0], plane * f->in_size + at);
            if (v > best || v != v || !any) {
                if (v > best || v != v) best = v;
                best_place = place_of(f, pos, s->column_major);
                any = true;
            }
        } while (nn_next(tap, n, f->rank));
    if (nn_out(ctx, 0)) nn_store(ctx->out[0], dst, best);
    if (nn_out(ctx, 1)) ((int64_t *)ctx->out[1]->data)[dst] = plane * f->in_size + best_place;
}

static void ref_plane(void *arg, int64_t plane) {
    const struct job *job = arg;
    int64_t o[NN_SPATIAL_MAX] = {0}, dst = plane * job->f.out_size;
    do ref_output(job, plane, o, dst++);
    while (nn_next(o, job->f.out, job->f.rank));
}

static enum op_status run_with(struct op_ctx *ctx, void (*plane)(void *arg, int64_t plane)) {
    struct job job = {.ctx = ctx};
    enum op_status st = fit(ctx, &job.f);
    if (st != OP_OK) return st;
    int64_t planes = ctx->in[0]->dims[0] * ctx->in[0]->dims[1];
    if (planes && job.f.out_size) op__parallel(ctx, planes, plane, &job);
    return OP_OK;
}

static enum op_status ref(struct op_ctx *ctx) {
    return run_with(ctx, ref_plane);
}

/* --- one or two dimensions -------------------------------------------------------------------------- */

static void plane_f32(void *arg, int64_t plane) {
    const struct job *job = arg;
    const struct nn_fit *f = &job->f;
    const float *src = job->ctx->in[0]->data;
    op__pool_f32_plane(op__kern(job->ctx)->math, f, K_MAX, src + plane * f->in_size, (float *)job->ctx->out[0]->data + plane * f->out_size);
}

#define SPAN 512 /* input columns of a strip: the buffer of the row maxima is on the stack */
#define BLOCK 16

/* f is seen as two-dimensional: axis h is 0 of 1 row where there is one dimension only. */
#define DEFINE_PLANE(T, LOWEST)                                                                                                             \
    static void max_into_##T(T *dst, const T *src, int64_t n) {                                                                             \
        int64_t i = 0;                                                                                                                      \
        for (; i + BLOCK <= n; i += BLOCK)                                                                                                  \
            for (int j = 0; j < BLOCK; j++) dst[i + j] = src[i + j] > dst[i + j] ? src[i + j] : dst[i + j];                                 \
        for (; i < n; i++) dst[i] = src[i] > dst[i] ? src[i] : dst[i];                                                                      \
    }                                                                                                                                       \
    /* Outputs [o, o + n) of one row from rows [row, row + n_rows) of the plane. */                                                         \
    static void strip_##T(const struct nn_fit *f, const T *src, int64_t row, int64_t n_rows, int64_t o, int64_t n, T *dst) {                \
        int w = f->rank - 1;                                                                                                                \
        T buf[SPAN];                                                                                                                        \
        int64_t s = f->stride[w], kw = f->kernel[w], width = f->in[w], base = o * s - f->begin[w], span = (n - 1) * s + kw;                 \
        int64_t lo = base < 0 ? -base : 0, hi = width - base < span ? width - base : span;                                                  \
        for (int64_t i = 0; i < span; i++) buf[i] = LOWEST;                                                                                 \
        for (int64_t r = row; hi > lo && r < row + n_rows; r++) max_into_##T(buf + lo, src + r * width + base + lo, hi - lo);               \
        if (s == 1) {                                                                                                                       \
            for (int64_t i = 0; i < n; i++) dst[i] = buf[i];                                                                                \
            for (int64_t k = 1; k < kw; k++) max_into_##T(dst, buf + k, n);                                                                 \
            return;                                                                                                                         \
        }                                                                                                                                   \
        for (int64_t i = 0; i < n; i++) {                                                                                                   \
            const T *b = buf + i * s;                                                                                                       \
            T best = b[0];                                                                                                                  \
            for (int64_t k = 1; k < kw; k++) best = b[k] > best ? b[k] : best;                                                              \
            dst[i] = best;                                                                                                                  \
        }                                                                                                                                   \
    }                                                                                                                                       \
    static void plane_##T(void *arg, int64_t plane) {                                                                                       \
        const struct job *job = arg;                                                                                                        \
        const struct nn_fit *f = &job->f;                                                                                                   \
        int w = f->rank - 1;                                                                                                                \
        const T *src = (const T *)job->ctx->in[0]->data + plane * f->in_size;                                                               \
        T *dst = (T *)job->ctx->out[0]->data + plane * f->out_size;                                                                         \
        int64_t rows = w ? f->out[0] : 1, step = (SPAN - f->kernel[w]) / f->stride[w] + 1;                                                  \
        for (int64_t y = 0; y < rows; y++) {                                                                                                \
            int64_t first, n_rows = 1, row = 0;                                                                                             \
            if (w) nn_taps(f, 0, y, &first, &n_rows, &row);                                                                                 \
            for (int64_t o = 0; o < f->out[w]; o += step) {                                                                                 \
                int64_t n = f->out[w] - o < step ? f->out[w] - o : step;                                                                    \
                strip_##T(f, src, row, n_rows, o, n, dst + y * f->out[w] + o);                                                              \
            }                                                                                                                               \
        }                                                                                                                                   \
    }

DEFINE_PLANE(uint8_t, 0)
DEFINE_PLANE(int8_t, INT8_MIN)

static enum op_status run(struct op_ctx *ctx) {
    struct nn_fit f;
    enum op_status st = fit(ctx, &f);
    if (st != OP_OK) return st;
    if (nn_out(ctx, 1) || f.rank > 2) return ref(ctx);
    if (ctx->in[0]->dtype == OP_F32 && op__pool_f32_fits(&f)) return run_with(ctx, plane_f32);
    bool plain = f.kernel[f.rank - 1] <= SPAN;
    for (int a = 0; a < f.rank; a++) plain = plain && f.dilation[a] == 1;
    if (plain && ctx->in[0]->dtype == OP_U8) return run_with(ctx, plane_uint8_t);
    if (plain && ctx->in[0]->dtype == OP_I8) return run_with(ctx, plane_int8_t);
    return ref(ctx);
}

static void cost(const struct op_ctx *ctx, double *flops, double *bytes) {
    struct nn_fit f;
    if (fit(ctx, &f) != OP_OK) return;
    double planes = (double)ctx->in[0]->dims[0] * (double)ctx->in[0]->dims[1], taps = 1;
    for (int a = 0; a < f.rank; a++) taps *= (double)f.kernel[a];
    *flops = planes * (double)f.out_size * taps;
    *bytes = planes * (double)(f.in_size + f.out_size) * (double)op_type_size(ctx->in[0]->dtype);
}

static const struct op_desc max_pool = {
    .name = "MaxPool",
    .domain = "",
    .since = 1,
    .in_min = 1,
    .in_max = 1,
    .out_min = 1,
    .out_max = 2,
    .prepare = prepare,
    .release = free,
    .infer = infer,
    .run = run,
    .ref = ref,
    .cost = cost,
};
OP_REGISTER(max_pool);
