/* global_pool.c: GlobalAveragePool, GlobalMaxPool and GlobalLpPool: one number a plane (n, c), however many spatial
 * dimensions there are. */
#include "ops/op/nn.h"
#include "ops/kern/kern.h"

#include <math.h>
#include <stdlib.h>

struct global_pool {
    int64_t p; /* of GlobalLpPool */
};

static enum op_status prepare_lp(struct op_prepare *p) {
    struct global_pool *s = calloc(1, sizeof *s);
    if (!s) return op__node_fail(p->err, p->node, OP_NOMEM, "out of memory");
    p->node->state = s;
    const struct op_attr *a = op__attr(p->node, "p"); /* a float in opset 1 */
    s->p = a && a->kind == OP_ATTR_FLOAT ? (int64_t)(a->f >= 1 && a->f < 1e6f ? a->f : 0) : op__attr_int(p->node, "p", 2);
    if (s->p < 1) return op__node_fail(p->err, p->node, OP_BAD_VALUE, "p is %lld, expected 1 or more", (long long)s->p);
    return OP_OK;
}

static enum op_status infer(struct op_ctx *ctx) {
    enum op_status st = op__nn_float(ctx, 0, "X");
    if (st != OP_OK) return st;
    const struct op_tensor *x = ctx->in[0];
    if (x->rank < 2) return op__fail(ctx, OP_BAD_SHAPE, "input 0 (X) has rank %d, expected 2 or more", x->rank);
    int64_t dims[OP_RANK_MAX] = {x->dims[0], x->dims[1]};
    for (int a = 2; a < x->rank; a++) dims[a] = 1;
    op__set(ctx, 0, x->dtype, x->rank, dims);
    return OP_OK;
}

struct job {
    const struct op_ctx *ctx;
    int64_t n, size; /* planes, elements of one */
    double (*reduce)(const struct op_ctx *ctx, int64_t start, int64_t n, int64_t p);
    int64_t p;
};

/* Small planes, the usual case at the end of a network, are over before the kernel's 64 partial sums pay. */
static float sum_small(int64_t n, const float *x) {
    float part[8] = {0};
    int64_t i = 0;
    for (; i + 8 <= n; i += 8)
        for (int j = 0; j < 8; j++) part[j] += x[i + j];
    for (int j = 0; i + j < n; j++) part[j] += x[i + j];
    return ((part[0] + part[4]) + (part[2] + part[6])) + ((part[1] + part[5]) + (part[3] + part[7]));
}

static double average(const struct op_ctx *ctx, int64_t start, int64_t n, int64_t p) {
    const struct op_tensor *x = ctx->in[0];
    (void)p;
    double sum = 0;
    if (x->dtype == OP_F32) {
        const float *v = (const float *)x->data + start;
        return (double)(n < 256 ? sum_small(n, v) : op__kern(ctx)->math->sum(n, v)) / (double)n;
    }
    for (int64_t i = 0; i < n; i++) sum += nn_load(x, start + i);
    return sum / (double)n; /* no elements: NaN, the mean of nothing */
}

static double maximum(const struct op_ctx *ctx, int64_t start, int64_t n, int64_t p) {
    const struct op_tensor *x = ctx->in[0];
    (void)p;
    if (x->dtype == OP_F32) return (double)op__kern(ctx)->math->max(n, (const float *)x->data + start);
    double best = -INFINITY;
    for (int64_t i = 0; i < n; i++) {
        double v = nn_load(x, start + i);
        if (v != v) return v; /* NaN goes through, as in numpy */
        best = v > best ? v : best;
    }
    return best;
}

static double lp(const struct op_ctx *ctx, int64_t start, int64_t n, int64_t p) {
    const struct op_tensor *x = ctx->in[0];
    double sum = 0;
    for (int64_t i = 0; i < n; i++) {
        double v = nn_load(x, start + i);
        sum += p == 1 ? fabs(v) : p == 2 ? v * v : pow(fabs(v), (double)p);
    }
    return p == 1 ? sum : p == 2 ? sqrt(sum) : pow(sum, 1.0 / (double)p);
}

#define PLANES_A_TASK 64

static void planes(void *arg, int64_t task) {
    const struct job *job = arg;
    for (int64_t i = task * PLANES_A_TASK; i < job->n && i < (task + 1) * PLANES_A_TASK; i++)
        nn_store(job->ctx->out[0], i, job->reduce(job->ctx, i * job->size, job->size, job->p));
}

static enum op_status run_with(struct op_ctx *ctx, struct job job) {
    const struct op_tensor *x = ctx->in[0];
    job.n = x->dims[0] * x->dims[1];
    job.ctx = ctx;
    if (!job.n) return OP_OK;
    job.size = op_tensor_count(x) / job.n;
    op__parallel(ctx, (job.n + PLANES_A_TASK - 1) / PLANES_A_TASK, planes, &job);
    return OP_OK;
}

static enum op_status run_average(struct op_ctx *ctx) {
    return run_with(ctx, (struct job){.reduce = average});
}
static enum op_status run_max(struct op_ctx *ctx) {
    return run_with(ctx, (struct job){.reduce = maximum});
}
static enum op_status run_lp(struct op_ctx *ctx) {
    return run_with(ctx, (struct job){.reduce = lp, .p = ((const struct global_pool *)ctx->state)->p});
}

#define GLOBAL(id, op_name, op_run, ...)                                                           \
    static const struct op_desc id = {                                                             \
        .name = op_name, .domain = "", .since = 1, .in_min = 1, .in_max = 1, .out_min = 1, .out_max = 1, .infer = infer, .run = op_run, __VA_ARGS__}; \
    OP_REGISTER(id)

GLOBAL(global_average_pool, "GlobalAveragePool", run_average, .prepare = NULL);
GLOBAL(global_max_pool, "GlobalMaxPool", run_max, .prepare = NULL);
GLOBAL(global_lp_pool, "GlobalLpPool", run_lp, .prepare = prepare_lp, .release = free);
