/* group_normalization.c: GroupNormalization: each sample's channels are normalised in num_groups groups.
 *
 * Opset 18 has a scale and a bias for each group, opset 21 one for each channel: told apart by their length, which
 * the opset fixes (`per_group`, set in upgrade). The factor and the offset of a channel are worked out first, so that an element
 * takes one fused multiply-add. */
#include "ops/kern/kern.h"
#include "ops/op/nn.h"

#include <math.h>
#include <stdlib.h>

struct group_norm {
    int64_t n_groups;
    double epsilon;
    bool per_group;
};

static enum op_status upgrade(struct op_graph *g, struct op_node *n, int opset, struct op_error *err) {
    (void)err;
    return op__attr_set_int(g, n, "per_group", opset < 21);
}

static enum op_status prepare(struct op_prepare *p) {
    struct group_norm *s = malloc(sizeof *s);
    if (!s) return op__node_fail(p->err, p->node, OP_NOMEM, "out of memory");
    p->node->state = s;
    s->n_groups = op__attr_int(p->node, "num_groups", 0);
    s->epsilon = (double)op__attr_float(p->node, "epsilon", 1e-5f);
    s->per_group = op__attr_int(p->node, "per_group", 0) != 0;
    if (s->n_groups < 1) return op__node_fail(p->err, p->node, OP_BAD_VALUE, "num_groups is %lld, expected 1 or more", (long long)s->n_groups);
    return OP_OK;
}

static enum op_status infer(struct op_ctx *ctx) {
    const struct group_norm *s = ctx->state;
    enum op_status st = op__nn_float(ctx, 0, "X");
    if (st != OP_OK) return st;
    const struct op_tensor *x = ctx->in[0];
    if (x->rank < 2) return op__fail(ctx, OP_BAD_SHAPE, "input 0 (X) has rank %d, expected 2 or more", x->rank);
    if (op_tensor_count(x) < 0) return op__fail(ctx, OP_LIMIT, "input 0 (X) is beyond 63 bits");
    if (x->dims[1] % s->n_groups)
        return op__fail(ctx, OP_BAD_SHAPE, "%lld channels cannot be split into %lld groups", (long long)x->dims[1], (long long)s->n_groups);
    int64_t n = s->per_group ? s->n_groups : x->dims[1];
    if ((st = op__nn_like(ctx, 1, "scale", x->dtype, 1)) != OP_OK || (st = op__nn_like(ctx, 2, "bias", x->dtype, 1)) != OP_OK ||
        (st = op__nn_shape(ctx, 1, "scale", 1, &n)) != OP_OK || (st = op__nn_shape(ctx, 2, "bias", 1, &n)) != OP_OK)
        return st;
    op__set_like(ctx, 0, 0);
    return OP_OK;
}

struct job {
    const struct op_ctx *ctx;
    int64_t channels, size; /* of a group; elements of a channel */
};

static void statistics(const struct op_ctx *ctx, int64_t at, int64_t n, double *mean, double *var) {
    const struct op_tensor *x = ctx->in[0];
    const struct k_vmath *math = op__kern(ctx)->math;
    double sum = 0;
    if (x->dtype == OP_F32) {
        *mean = (double)math->sum(n, (const float *)x->data + at) / (double)n;
        *var = (double)math->sum_square(n, (const float *)x->data + at, (float)*mean) / (double)n;
        return;
    }
    for (int64_t i = 0; i < n; i++) sum += nn_load(x, at + i);
    *mean = sum / (double)n;
    sum = 0;
    for (int64_t i = 0; i < n; i++) sum += (nn_load(x, at + i) - *mean) * (nn_load(x, at + i) - *mean);
    *var = sum / (double)n;
}

static void group(void *arg, int64_t task) {
    const struct job *job = arg;
    const struct op_ctx *ctx = job->ctx;
    const struct group_norm *s = ctx->state;
    const struct op_tensor *x = ctx->in[0];
    int64_t at = task * job->channels * job->size, g = task % s->n_groups;
    double mean, var;
    statistics(ctx, at, job->channels * job->size, &mean, &var);
    for (int64_t c = 0; c < job->channels; c++, at += job->size) {
        int64_t k = s->per_group ? g : g * job->channels + c;
        double factor = nn_load(ctx->in[1], k) / sqrt(var + s->epsilon), offset = nn_load(ctx->in[2], k) - mean * factor;
        if (x->dtype == OP_F32)
            op__kern(ctx)->math->unary[K_LINEAR](job->size, (const float *)x->data + at, (float *)ctx->out[0]->data + at, (float)factor,
                                                 (float)offset);
        else
            for (int64_t i = 0; i < job->size; i++) nn_store(ctx->out[0], at + i, nn_load(x, at + i) * factor + offset);
    }
}

static enum op_status run(struct op_ctx *ctx) {
    const struct group_norm *s = ctx->state;
    const struct op_tensor *x = ctx->in[0];
    if (!op_tensor_count(x)) return OP_OK;
    struct job job = {.ctx = ctx, .channels = x->dims[1] / s->n_groups, .size = op_tensor_count(x) / x->dims[0] / x->dims[1]};
    op__parallel(ctx, x->dims[0] * s->n_groups, group, &job);
    return OP_OK;
}

static void cost(const struct op_ctx *ctx, double *flops, double *bytes) {
    double n = (double)op_tensor_count(ctx->in[0]);
    *flops = 8 * n;
    *bytes = 2 * n * (double)op_type_size(ctx->in[0]->dtype);
}

static const struct op_desc group_normalization = {
    .name = "GroupNormalization",
    .domain = "",
    .since = 18,
    .in_min = 3,
    .in_max = 3,
    .out_min = 1,
    .out_max = 1,
    .inplace = 1,
    .upgrade = upgrade,
    .prepare = prepare,
    .release = free,
    .infer = infer,
    .run = run,
    .cost = cost,
};
OP_REGISTER(group_normalization);
