/* lp_normalization.c: LpNormalization and MeanVarianceNormalization: statistics along any axes.
 *
 * Both see the input as statistics cells: an element belongs to the cell of its coordinates on the axes that are kept.
 * Sums are taken in double precision in the order of memory. */
#include "ops/op/nn.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

struct axis_norm {
    int64_t p; /* 1 or 2: the norm; 0: mean and variance */
    int n_axes;
    int64_t axes[OP_RANK_MAX];
};

static enum op_status prepare_lp(struct op_prepare *p) {
    struct axis_norm *s = calloc(1, sizeof *s);
    if (!s) return op__node_fail(p->err, p->node, OP_NOMEM, "out of memory");
    p->node->state = s;
    s->p = op__attr_int(p->node, "p", 2);
    s->n_axes = 1;
    s->axes[0] = op__attr_int(p->node, "axis", -1);
    if (s->p != 1 && s->p != 2) return op__node_fail(p->err, p->node, OP_BAD_VALUE, "p is %lld, expected 1 or 2", (long long)s->p);
    return OP_OK;
}

static enum op_status prepare_mvn(struct op_prepare *p) {
    static const int64_t usual[] = {0, 2, 3};
    struct axis_norm *s = calloc(1, sizeof *s);
    if (!s) return op__node_fail(p->err, p->node, OP_NOMEM, "out of memory");
    p->node->state = s;
    int64_t n;
    const int64_t *axes = op__attr_ints(p->node, "axes", &n);
    if (!axes) {
        axes = usual;
        n = 3;
    }
    if (n > OP_RANK_MAX) return op__node_fail(p->err, p->node, OP_BAD_VALUE, "axes has %lld values", (long long)n);
    s->n_axes = (int)n;
    memcpy(s->axes, axes, (size_t)n * sizeof *axes);
    return OP_OK;
}

static enum op_status infer(struct op_ctx *ctx) {
    const struct axis_norm *s = ctx->state;
    enum op_status st = op__nn_float(ctx, 0, "X");
    if (st != OP_OK) return st;
    if (op_tensor_count(ctx->in[0]) < 0) return op__fail(ctx, OP_LIMIT, "input 0 (X) is beyond 63 bits");
    for (int i = 0; i < s->n_axes; i++)
        if (op__axis(s->axes[i], ctx->in[0]->rank) < 0)
            return op__fail(ctx, OP_BAD_VALUE, "axis %lld, the input has rank %d", (long long)s->axes[i], ctx->in[0]->rank);
    op__set_like(ctx, 0, 0);
    return OP_OK;
}

struct job {
    const struct op_ctx *ctx;
    int n_kept, n_reduced;
    int64_t kept[OP_RANK_MAX], kept_step[OP_RANK_MAX], reduced[OP_RANK_MAX], reduced_step[OP_RANK_MAX];
    int64_t n_cells, size;
};

static void cell(void *arg, int64_t task) {
    const struct job *job = arg;
    const struct axis_norm *s = job->ctx->state;
    const struct op_tensor *x = job->ctx->in[0];
    int64_t base = 0, idx[OP_RANK_MAX] = {0};
    for (int a = job->n_kept - 1; a >= 0; a--) {
        base += task % job->kept[a] * job->kept_step[a];
        task /= job->kept[a];
    }
    double sum = 0, square = 0;
    do {
        int64_t at = base;
        for (int a = 0; a < job->n_reduced; a++) at += idx[a] * job->reduced_step[a];
        double v = nn_load(x, at);
        sum += s->p == 1 ? fabs(v) : v;
        square += v * v;
    } while (nn_next(idx, job->reduced, job->n_reduced));
    double mean = s->p ? 0 : sum / (double)job->size;
    double var = square / (double)job->size - mean * mean;
    double by = s->p == 1 ? sum : s->p == 2 ? sqrt(square) : sqrt(var > 0 ? var : var != var ? var : 0) + 1e-9;
    do {
        int64_t at = base;
        for (int a = 0; a < job->n_reduced; a++) at += idx[a] * job->reduced_step[a];
        double v = nn_load(x, at) - mean;
        nn_store(job->ctx->out[0], at, by == 0 ? 0 : v / by); /* a vector of zeros stays one */
    } while (nn_next(idx, job->reduced, job->n_reduced));
}

static enum op_status run(struct op_ctx *ctx) {
    const struct axis_norm *s = ctx->state;
    const struct op_tensor *x = ctx->in[0];
    struct job job = {.ctx = ctx, .n_cells = 1, .size = 1};
    if (!op_tensor_count(x)) return OP_OK;
    int64_t step[OP_RANK_MAX] = {0}, total = 1;
    for (int a = x->rank - 1; a >= 0; a--) {
        step[a] = total;
        total *= x->dims[a];
    }
    for (int a = 0; a < x->rank; a++) {
        bool reduced = false;
        for (int i = 0; i < s->n_axes; i++) reduced = reduced || op__axis(s->axes[i], x->rank) == a;
        int k = reduced ? job.n_reduced++ : job.n_kept++;
        (reduced ? job.reduced : job.kept)[k] = x->dims[a];
        (reduced ? job.reduced_step : job.kept_step)[k] = step[a];
        *(reduced ? &job.size : &job.n_cells) *= x->dims[a];
    }
    op__parallel(ctx, job.n_cells, cell, &job);
    return OP_OK;
}

static void cost(const struct op_ctx *ctx, double *flops, double *bytes) {
    double n = (double)op_tensor_count(ctx->in[0]);
    *flops = 5 * n;
    *bytes = 2 * n * (double)op_type_size(ctx->in[0]->dtype);
}

#define AXIS_NORM(id, op_name, op_since, op_prepare)                                               \
    static const struct op_desc id = {                                                             \
        .name = op_name,                                                                           \
        .domain = "",                                                                              \
        .since = op_since,                                                                         \
        .in_min = 1,                                                                               \
        .in_max = 1,                                                                               \
        .out_min = 1,                                                                              \
        .out_max = 1,                                                                              \
        .inplace = 1,                                                                              \
        .prepare = op_prepare,                                                                     \
        .release = free,                                                                           \
        .infer = infer,                                                                            \
        .run = run,                                                                                \
        .cost = cost,                                                                              \
    };                                                                                             \
    OP_REGISTER(id)

AXIS_NORM(lp_normalization, "LpNormalization", 1, prepare_lp);
AXIS_NORM(mean_variance_normalization, "MeanVarianceNormalization", 9, prepare_mvn);
