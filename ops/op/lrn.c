/* lrn.c: LRN, the local response normalisation of AlexNet:
 *
 *     y[c] = x[c] / (bias + alpha / size * sum of x[i]^2 over the window)^beta,  c - (size-1)/2 <= i <= c + ceil((size-1)/2)
 *
 * The window slides over channels, so a task is one channel of one sample and the inner loops run along the (contiguous)
 * positions, a strip at a time. beta = 0.75, the usual value, is two square roots instead of a power. */
#include "ops/op/nn.h"

#include <math.h>
#include <stdlib.h>

#define STRIP 256

struct lrn {
    double alpha, beta, bias;
    int64_t size;
};

static enum op_status prepare(struct op_prepare *p) {
    struct lrn *s = malloc(sizeof *s);
    if (!s) return op__node_fail(p->err, p->node, OP_NOMEM, "out of memory");
    p->node->state = s;
    s->alpha = (double)op__attr_float(p->node, "alpha", 1e-4f);
    s->beta = (double)op__attr_float(p->node, "beta", 0.75f);
    s->bias = (double)op__attr_float(p->node, "bias", 1);
    s->size = op__attr_int(p->node, "size", 0);
    if (s->size < 1 || s->size > NN_ATTR_MAX)
        return op__node_fail(p->err, p->node, OP_BAD_VALUE, "size is %lld, expected 1 to 2^31", (long long)s->size);
    return OP_OK;
}

static enum op_status infer(struct op_ctx *ctx) {
    enum op_status st = op__nn_float(ctx, 0, "X");
    if (st != OP_OK) return st;
    if (ctx->in[0]->rank < 2) return op__fail(ctx, OP_BAD_SHAPE, "input 0 (X) has rank %d, expected 2 or more", ctx->in[0]->rank);
    if (op_tensor_count(ctx->in[0]) < 0) return op__fail(ctx, OP_LIMIT, "input 0 (X) is beyond 63 bits");
    op__set_like(ctx, 0, 0);
    return OP_OK;
}

struct job {
    const struct op_ctx *ctx;
    int64_t channels, size;
};

static void channel(void *arg, int64_t task) {
    const struct job *job = arg;
    const struct lrn *s = job->ctx->state;
    const struct op_tensor *x = job->ctx->in[0];
    int64_t c = task % job->channels, lo = c - (s->size - 1) / 2, hi = c + s->size / 2;
    if (lo < 0) lo = 0;
    if (hi > job->channels - 1) hi = job->channels - 1;
    for (int64_t i = 0; i < job->size; i += STRIP) {
        int64_t n = job->size - i < STRIP ? job->size - i : STRIP;
        double sum[STRIP] = {0};
        for (int64_t k = lo; k <= hi; k++)
            for (int64_t j = 0; j < n; j++) {
                double v = nn_load(x, (task - c + k) * job->size + i + j);
                sum[j] += v * v;
            }
        for (int64_t j = 0; j < n; j++) {
            double d = s->bias + s->alpha / (double)s->size * sum[j];
            double power = s->beta == 0.75 ? sqrt(d) * sqrt(sqrt(d)) : pow(d, s->beta);
            nn_store(job->ctx->out[0], task * job->size + i + j, nn_load(x, task * job->size + i + j) / power);
        }
    }
}

static enum op_status run(struct op_ctx *ctx) {
    const struct op_tensor *x = ctx->in[0];
    if (!op_tensor_count(x)) return OP_OK;
    struct job job = {.ctx = ctx, .channels = x->dims[1], .size = op_tensor_count(x) / x->dims[0] / x->dims[1]};
    op__parallel(ctx, x->dims[0] * x->dims[1], channel, &job);
    return OP_OK;
}

static void cost(const struct op_ctx *ctx, double *flops, double *bytes) {
    double n = (double)op_tensor_count(ctx->in[0]);
    *flops = n * (2 * (double)((const struct lrn *)ctx->state)->size + 6);
    *bytes = 2 * n * (double)op_type_size(ctx->in[0]->dtype);
}

static const struct op_desc lrn = {
    .name = "LRN",
    .domain = "",
    .since = 1,
    .in_min = 1,
    .in_max = 1,
    .out_min = 1,
    .out_max = 1,
    .prepare = prepare,
    .release = free,
    .infer = infer,
    .run = run,
    .cost = cost,
};
OP_REGISTER(lrn);
