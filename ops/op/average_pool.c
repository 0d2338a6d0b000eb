/* average_pool.c: AveragePool and LpPool.
 *
 * Both slide a window and reduce it. AveragePool divides by the taps inside the input, or with
 * count_include_pad by those inside the padded input (what hangs over the end with ceil_mode is never counted).
 * LpPool is (sum |x|^p)^(1/p).
 *
 * `ref` sums tap by tap in double precision, for every type and rank. `run` takes the window's sums of f32 in one or two
 * dimensions from pool_f32.c and multiplies rows whose windows count all their rows by a row of factors. */
#include "ops/op/pool_f32.h"

#include <math.h>
#include <stdlib.h>

struct average_pool {
    struct nn_window window;
    bool count_include_pad;
    int64_t p; /* 0: the average */
};

static enum op_status prepare_with(struct op_prepare *p, int64_t norm) {
    struct average_pool *s = calloc(1, sizeof *s);
    if (!s) return op__node_fail(p->err, p->node, OP_NOMEM, "out of memory");
    p->node->state = s;
    s->count_include_pad = op__attr_int(p->node, "count_include_pad", 0) != 0;
    s->p = norm;
    return op__nn_window_parse(p, true, &s->window);
}

static enum op_status prepare_average(struct op_prepare *p) {
    return prepare_with(p, 0);
}

static enum op_status prepare_lp(struct op_prepare *p) {
    const struct op_attr *a = op__attr(p->node, "p");
    int64_t norm = a && a->kind == OP_ATTR_FLOAT ? (int64_t)(a->f >= 1 && a->f < 1e6f ? a->f : 0) : op__attr_int(p->node, "p", 2);
    if (norm < 1) return op__node_fail(p->err, p->node, OP_BAD_VALUE, "p is %lld, expected 1 or more", (long long)norm);
    return prepare_with(p, norm);
}

static enum op_status fit(const struct op_ctx *ctx, struct nn_fit *f) {
    const struct average_pool *s = ctx->state;
    const struct op_tensor *x = ctx->in[0];
    return op__nn_window_fit(ctx, &s->window, x->rank - 2, x->dims + 2, NULL, f);
}

static enum op_status infer(struct op_ctx *ctx) {
    enum op_status st = op__nn_float(ctx, 0, "X");
    struct nn_fit f;
    if (st != OP_OK || (st = fit(ctx, &f)) != OP_OK) return st;
    const struct op_tensor *x = ctx->in[0];
    int64_t dims[OP_RANK_MAX] = {x->dims[0], x->dims[1]};
    for (int a = 0; a < f.rank; a++) dims[2 + a] = f.out[a];
    op__set(ctx, 0, x->dtype, x->rank, dims);
    return OP_OK;
}

struct job {
    const struct op_ctx *ctx;
    struct nn_fit f;
};

/* --- every case -------------------------------------------------------------------------------- */

static double ref_output(const struct job *job, int64_t plane, const int64_t *o) {
    const struct nn_fit *f = &job->f;
    const struct average_pool *s = job->ctx->state;
    int64_t n[NN_SPATIAL_MAX], start[NN_SPATIAL_MAX], tap[NN_SPATIAL_MAX] = {0}, first;
    double sum = 0, count = 1;
    bool some = true;
    for (int a = 0; a < f->rank; a++) {
        nn_taps(f, a, o[a], &first, &n[a], &start[a]);
        some = some && n[a] > 0;
        count *= (double)nn_counted(f, a, o[a], s->count_include_pad);
    }
    if (some) do {
            int64_t at = 0;
            for (int a = 0; a < f->rank; a++) at = at * f->in[a] + start[a] + tap[a] * f->dilation[a];
            double v = nn_load(job->ctx->in[0], plane * f->in_size + at);
            sum += s->p == 0 ? v : s->p == 1 ? fabs(v) : s->p == 2 ? v * v : pow(fabs(v), (double)s->p);
        } while (nn_next(tap, n, f->rank));
    if (s->p) return s->p == 1 ? sum : s->p == 2 ? sqrt(sum) : pow(sum, 1.0 / (double)s->p);
    return count > 0 ? sum / count : 0;
}

static void ref_plane(void *arg, int64_t plane) {
    const struct job *job = arg;
    int64_t o[NN_SPATIAL_MAX] = {0}, dst = plane * job->f.out_size;
    do nn_store(job->ctx->out[0], dst++, ref_output(job, plane, o));
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

/* --- one or two dimensions, f32 ------------------------------------------------------------------- */

/* Scratch memory: for each column of the output, one over the taps that count where all rows of the window do. */
static size_t scratch(const struct op_ctx *ctx) {
    struct nn_fit f;
    if (ctx->in[0]->dtype != OP_F32 || fit(ctx, &f) != OP_OK || f.rank > 2) return 0;
    return (size_t)f.out[f.rank - 1] * sizeof(float);
}

static void plane_f32(void *arg, int64_t plane) {
    const struct job *job = arg;
    const struct nn_fit *f = &job->f;
    const struct average_pool *s = job->ctx->state;
    const struct k_vmath *math = op__kern(job->ctx)->math;
    int w = f->rank - 1;
    int64_t width = f->out[w];
    const float *src = job->ctx->in[0]->data;
    float *row = (float *)job->ctx->out[0]->data + plane * f->out_size;
    op__pool_f32_plane(math, f, K_ADD, src + plane * f->in_size, row);
    for (int64_t y = 0; y < f->out_size / width; y++, row += width) {
        int64_t high = w ? nn_counted(f, 0, y, s->count_include_pad) : 1;
        if (!w || high == f->kernel[0]) math->binary[K_MUL](width, row, false, job->ctx->scratch, false, row);
        else
            for (int64_t i = 0; i < width; i++) {
                int64_t count = high * nn_counted(f, w, i, s->count_include_pad);
                row[i] = count > 0 ? row[i] / (float)count : 0;
            }
    }
}

/* Before the planes: what they share. */
static void fill_factors(const struct op_ctx *ctx, const struct nn_fit *f) {
    const struct average_pool *s = ctx->state;
    int w = f->rank - 1;
    float *factor = ctx->scratch;
    for (int64_t i = 0; i < f->out[w]; i++) {
        int64_t count = (w ? f->kernel[0] : 1) * nn_counted(f, w, i, s->count_include_pad);
        factor[i] = count > 0 ? 1 / (float)count : 0;
    }
}

static enum op_status run(struct op_ctx *ctx) {
    const struct average_pool *s = ctx->state;
    struct nn_fit f;
    enum op_status st = fit(ctx, &f);
    if (st != OP_OK) return st;
    bool plain = s->p == 0 && ctx->in[0]->dtype == OP_F32 && op__pool_f32_fits(&f);
    if (plain) fill_factors(ctx, &f);
    return run_with(ctx, plain ? plane_f32 : ref_plane);
}

static void cost(const struct op_ctx *ctx, double *flops, double *bytes) {
    struct nn_fit f;
    if (fit(ctx, &f) != OP_OK) return;
    double planes = (double)ctx->in[0]->dims[0] * (double)ctx->in[0]->dims[1], taps = 1;
    for (int a = 0; a < f.rank; a++) taps *= (double)f.kernel[a];
    *flops = planes * (double)f.out_size * taps;
    *bytes = planes * (double)(f.in_size + f.out_size) * (double)op_type_size(ctx->in[0]->dtype);
}

#define POOL(id, op_name, op_prepare)                                                              \
    static const struct op_desc id = {                                                             \
        .name = op_name,                                                                           \
        .domain = "",                                                                              \
        .since = 1,                                                                                \
        .in_min = 1,                                                                               \
        .in_max = 1,                                                                               \
        .out_min = 1,                                                                              \
        .out_max = 1,                                                                              \
        .prepare = op_prepare,                                                                     \
        .release = free,                                                                           \
        .infer = infer,                                                                            \
        .scratch = scratch,                                                                        \
        .run = run,                                                                                \
        .ref = ref,                                                                                \
        .cost = cost,                                                                              \
    };                                                                                             \
    OP_REGISTER(id)

POOL(average_pool, "AveragePool", prepare_average);
POOL(lp_pool, "LpPool", prepare_lp);
