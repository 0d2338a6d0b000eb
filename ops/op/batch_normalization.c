/* batch_normalization.c: BatchNormalization (opsets 1 to 15) and InstanceNormalization.
 *
 * y = (x - mean) / sqrt(var + epsilon) * scale + bias, as one multiply and one add an element: the factor and the
 * offset of a channel are worked out first, in double precision. Opset 7 and before could have statistics for each
 * activation of a sample (spatial = 0): then the "channels" are the activations.
 *
 * Training mode takes mean and population variance from the batch and gives the running ones too. Before opset 14 the
 * mode was told by the number of outputs (the extra ones being the running and the batch's statistics). */
#include "ops/op/nn.h"
#include "ops/kern/kern.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

struct batch_norm {
    double epsilon, momentum;
    bool training, per_activation;
};

static enum op_status upgrade(struct op_graph *g, struct op_node *n, int opset, struct op_error *err) {
    (void)err;
    if (opset >= 14) return OP_OK;
    op__attr_remove(n, "is_test");
    op__attr_remove(n, "consumed_inputs");
    if (opset >= 9) op__attr_remove(n, "spatial");
    for (int i = 1; i < n->n_out; i++)
        if (n->out[i] >= 0) return op__attr_set_int(g, n, "training_mode", 1);
    return OP_OK;
}

static enum op_status prepare(struct op_prepare *p) {
    struct batch_norm *s = calloc(1, sizeof *s);
    if (!s) return op__node_fail(p->err, p->node, OP_NOMEM, "out of memory");
    p->node->state = s;
    s->epsilon = (double)op__attr_float(p->node, "epsilon", 1e-5f);
    s->momentum = (double)op__attr_float(p->node, "momentum", 0.9f);
    s->training = op__attr_int(p->node, "training_mode", 0) != 0;
    s->per_activation = op__attr_int(p->node, "spatial", 1) == 0;
    return OP_OK;
}

/* X as [n, c, size] with `c` sets of statistics. */
static void split(const struct op_ctx *ctx, int64_t *n, int64_t *c, int64_t *size) {
    const struct batch_norm *s = ctx->state;
    const struct op_tensor *x = ctx->in[0];
    *n = x->rank ? x->dims[0] : 1;
    *c = x->rank > 1 ? x->dims[1] : 1;
    *size = 1;
    for (int a = 2; a < x->rank; a++) *size *= x->dims[a];
    if (s && s->per_activation) {
        *c *= *size;
        *size = 1;
    }
}

static enum op_status infer(struct op_ctx *ctx) {
    static const char *const names[] = {"X", "scale", "B", "mean", "var"};
    const struct batch_norm *s = ctx->state;
    enum op_status st = op__nn_float(ctx, 0, "X");
    if (st != OP_OK) return st;
    if (op_tensor_count(ctx->in[0]) < 0) return op__fail(ctx, OP_LIMIT, "input 0 (X) is beyond 63 bits");
    int64_t n, c, size;
    split(ctx, &n, &c, &size);
    for (int i = 1; i < 5; i++) {
        if ((st = op__nn_float(ctx, i, names[i])) != OP_OK) return st;
        if (s->per_activation ? op_tensor_count(ctx->in[i]) != c : (st = op__nn_shape(ctx, i, names[i], 1, &c)) != OP_OK)
            return st != OP_OK ? st : op__fail(ctx, OP_BAD_SHAPE, "input %d (%s) has %lld elements, expected %lld", i, names[i],
                                               (long long)op_tensor_count(ctx->in[i]), (long long)c);
    }
    op__set_like(ctx, 0, 0);
    for (int i = 1; i < ctx->n_out; i++) op__set_like(ctx, i, 3);
    return OP_OK;
}

/* y[i] = x[i] * factor + offset over n elements. */
static void scale_shift(const struct op_ctx *ctx, int64_t at, int64_t n, double factor, double offset) {
    const struct op_tensor *x = ctx->in[0], *y = ctx->out[0];
    if (x->dtype == OP_F32)
        op__kern(ctx)->math->unary[K_LINEAR](n, (const float *)x->data + at, (float *)y->data + at, (float)factor, (float)offset);
    else
        for (int64_t i = 0; i < n; i++) nn_store(y, at + i, nn_load(x, at + i) * factor + offset);
}

/* Mean and population variance of the elements [at, at + n) of several rows `step` apart. */
static void statistics(const struct op_ctx *ctx, int64_t at, int64_t n, int64_t rows, int64_t step, double *mean, double *var) {
    const struct op_tensor *x = ctx->in[0];
    const struct k_vmath *math = op__kern(ctx)->math;
    double sum = 0, square = 0, total = (double)n * (double)rows;
    for (int64_t r = 0; r < rows; r++) {
        if (x->dtype == OP_F32) sum += (double)math->sum(n, (const float *)x->data + at + r * step);
        else
            for (int64_t i = 0; i < n; i++) sum += nn_load(x, at + r * step + i);
    }
    *mean = sum / total;
    for (int64_t r = 0; r < rows; r++) {
        if (x->dtype == OP_F32) square += (double)math->sum_square(n, (const float *)x->data + at + r * step, (float)*mean);
        else
            for (int64_t i = 0; i < n; i++) {
                double d = nn_load(x, at + r * step + i) - *mean;
                square += d * d;
            }
    }
    *var = square / total;
}

struct job {
    const struct op_ctx *ctx;
    const struct batch_norm *s;
    int64_t n, c, size;
};

static void batch_channel(void *arg, int64_t c) {
    const struct job *job = arg;
    const struct op_ctx *ctx = job->ctx;
    const struct batch_norm *s = job->s;
    double mean = nn_load(ctx->in[3], c), var = nn_load(ctx->in[4], c);
    if (s->training) {
        double batch_mean, batch_var;
        statistics(ctx, c * job->size, job->size, job->n, job->c * job->size, &batch_mean, &batch_var);
        if (nn_out(ctx, 1)) nn_store(ctx->out[1], c, mean * s->momentum + batch_mean * (1 - s->momentum));
        if (nn_out(ctx, 2)) nn_store(ctx->out[2], c, var * s->momentum + batch_var * (1 - s->momentum));
        if (nn_out(ctx, 3)) nn_store(ctx->out[3], c, batch_mean);
        if (nn_out(ctx, 4)) nn_store(ctx->out[4], c, batch_var);
        mean = batch_mean;
        var = batch_var;
    }
    double factor = nn_load(ctx->in[1], c) / sqrt(var + s->epsilon), offset = nn_load(ctx->in[2], c) - mean * factor;
    if (nn_out(ctx, 0))
        for (int64_t i = 0; i < job->n; i++) scale_shift(ctx, (i * job->c + c) * job->size, job->size, factor, offset);
}

static enum op_status run(struct op_ctx *ctx) {
    struct job job = {.ctx = ctx, .s = ctx->state};
    split(ctx, &job.n, &job.c, &job.size);
    if (job.c) op__parallel(ctx, job.c, batch_channel, &job);
    return OP_OK;
}

static void cost(const struct op_ctx *ctx, double *flops, double *bytes) {
    double n = (double)op_tensor_count(ctx->in[0]);
    *flops = 2 * n;
    *bytes = 2 * n * (double)op_type_size(ctx->in[0]->dtype);
}

static const struct op_desc batch_normalization = {
    .name = "BatchNormalization",
    .domain = "",
    .since = 1,
    .in_min = 5,
    .in_max = 5,
    .out_min = 1,
    .out_max = 5,
    .inplace = 1,
    .upgrade = upgrade,
    .prepare = prepare,
    .release = free,
    .infer = infer,
    .run = run,
    .cost = cost,
};
OP_REGISTER(batch_normalization);

/* --- InstanceNormalization ------------------------------------------------------------------------- */

static enum op_status instance_infer(struct op_ctx *ctx) {
    enum op_status st = op__nn_float(ctx, 0, "input");
    if (st != OP_OK) return st;
    const struct op_tensor *x = ctx->in[0];
    if (x->rank < 2) return op__fail(ctx, OP_BAD_SHAPE, "input 0 (input) has rank %d, expected 2 or more", x->rank);
    if (op_tensor_count(x) < 0) return op__fail(ctx, OP_LIMIT, "input 0 (input) is beyond 63 bits");
    if ((st = op__nn_like(ctx, 1, "scale", x->dtype, 1)) != OP_OK || (st = op__nn_like(ctx, 2, "B", x->dtype, 1)) != OP_OK ||
        (st = op__nn_shape(ctx, 1, "scale", 1, &x->dims[1])) != OP_OK || (st = op__nn_shape(ctx, 2, "B", 1, &x->dims[1])) != OP_OK)
        return st;
    op__set_like(ctx, 0, 0);
    return OP_OK;
}

static void instance_plane(void *arg, int64_t i) {
    const struct job *job = arg;
    const struct op_ctx *ctx = job->ctx;
    double mean, var;
    statistics(ctx, i * job->size, job->size, 1, 0, &mean, &var);
    double factor = nn_load(ctx->in[1], i % job->c) / sqrt(var + job->s->epsilon);
    scale_shift(ctx, i * job->size, job->size, factor, nn_load(ctx->in[2], i % job->c) - mean * factor);
}

static enum op_status instance_run(struct op_ctx *ctx) {
    struct job job = {.ctx = ctx, .s = ctx->state};
    split(ctx, &job.n, &job.c, &job.size);
    if (op_tensor_count(ctx->in[0])) op__parallel(ctx, job.n * job.c, instance_plane, &job);
    return OP_OK;
}

static const struct op_desc instance_normalization = {
    .name = "InstanceNormalization",
    .domain = "",
    .since = 1,
    .in_min = 3,
    .in_max = 3,
    .out_min = 1,
    .out_max = 1,
    .inplace = 1,
    .prepare = prepare,
    .release = free,
    .infer = instance_infer,
    .run = instance_run,
    .cost = cost,
};
OP_REGISTER(instance_normalization);
