/* layer_normalization.c: operators that normalise rows: LayerNormalization, RMSNormalization, and the forms that ONNX
 * Runtime's exporters and optimisers write (SimplifiedLayerNormalization, SkipLayerNormalization,
 * SkipSimplifiedLayerNormalization, and LayerNormalization below opset 17).
 *
 * All are one thing: a row of `size` elements (the dimensions from `axis` on), perhaps after adding another tensor to
 * it, is centred (or not), divided by its deviation, multiplied by a scale and shifted by a bias. f32 rows with a scale and
 * a bias of the row's size go to the kernels layer_norm and rms_norm; all other types and broadcast shapes are computed
 * in double precision (`ref`). Rows are independent, so a row's bits do not depend on the batch; they are
 * split over the threads by 16. */
#include "ops/kern/kern.h"
#include "ops/op/nn.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define ROWS_A_TASK 16

struct layer_norm {
    int64_t axis;
    float epsilon;
    enum op_type stash; /* type of the mean and the inverse deviation */
    bool centred, skip;
    int in_scale, in_bias, in_skip, in_skip_bias; /* input numbers; -1: this operator has none */
    int out_mean, out_inv_std, out_sum;           /* output numbers; -1: none */
};

static enum op_status prepare_with(struct op_prepare *p, struct layer_norm form, float epsilon) {
    struct layer_norm *s = malloc(sizeof *s);
    if (!s) return op__node_fail(p->err, p->node, OP_NOMEM, "out of memory");
    p->node->state = s;
    *s = form;
    s->axis = op__attr_int(p->node, "axis", -1);
    s->epsilon = op__attr_float(p->node, "epsilon", epsilon);
    int64_t stash = op__attr_int(p->node, "stash_type", OP_F32);
    if (stash != OP_F32 && stash != OP_F64 && stash != OP_F16 && stash != OP_BF16)
        return op__node_fail(p->err, p->node, OP_BAD_VALUE, "stash_type is %lld, expected a float type", (long long)stash);
    s->stash = (enum op_type)stash;
    return OP_OK;
}

static enum op_status prepare_layer(struct op_prepare *p) {
    return prepare_with(p,
                        (struct layer_norm){.centred = true, .in_scale = 1, .in_bias = 2, .in_skip = -1, .in_skip_bias = -1, .out_mean = 1,
                                            .out_inv_std = 2, .out_sum = -1},
                        1e-5f);
}
static enum op_status prepare_rms(struct op_prepare *p) {
    return prepare_with(p,
                        (struct layer_norm){.in_scale = 1, .in_bias = -1, .in_skip = -1, .in_skip_bias = -1, .out_mean = -1, .out_inv_std = 1,
                                            .out_sum = -1},
                        1e-5f);
}
static enum op_status prepare_skip(struct op_prepare *p) {
    return prepare_with(p,
                        (struct layer_norm){.centred = true, .skip = true, .in_skip = 1, .in_scale = 2, .in_bias = 3, .in_skip_bias = 4,
                                            .out_mean = 1, .out_inv_std = 2, .out_sum = 3},
                        1e-12f);
}
static enum op_status prepare_skip_rms(struct op_prepare *p) {
    return prepare_with(p,
                        (struct layer_norm){.skip = true, .in_skip = 1, .in_scale = 2, .in_bias = -1, .in_skip_bias = 3, .out_mean = 1,
                                            .out_inv_std = 2, .out_sum = 3},
                        1e-12f);
}

static const struct op_tensor *optional_in(const struct op_ctx *ctx, int i) {
    return i < 0 ? NULL : nn_in(ctx, i);
}
static struct op_tensor *optional_out(const struct op_ctx *ctx, int i) {
    return i < 0 ? NULL : nn_out(ctx, i);
}

/* --- shapes ------------------------------------------------------------------------------------ */

/* A scale or a bias: broadcast to the normalised dimensions. */
static enum op_status check_factor(const struct op_ctx *ctx, int i, const char *name, int axis) {
    const struct op_tensor *x = ctx->in[0], *t = ctx->in[i];
    enum op_status st = op__nn_float(ctx, i, name);
    if (st != OP_OK) return st;
    int lead = x->rank - t->rank;
    bool fits = lead >= axis;
    for (int a = 0; fits && a < t->rank; a++) fits = t->dims[a] == 1 || t->dims[a] == x->dims[lead + a];
    char found[128], of[128];
    if (!fits)
        return op__fail(ctx, OP_BAD_SHAPE, "input %d (%s) is %s, which does not broadcast to the dimensions from %d on of %s", i, name,
                        op_tensor_describe(t, found, sizeof found), axis, op_tensor_describe(x, of, sizeof of));
    return OP_OK;
}

/* What is added before: of X's shape, or broadcast along its first dimension as [1, S, H] or [S, H]. */
static enum op_status check_skip(const struct op_ctx *ctx, int i) {
    const struct op_tensor *x = ctx->in[0], *t = nn_in(ctx, i);
    enum op_status st = op__nn_like(ctx, i, "skip", x->dtype, -1);
    if (st != OP_OK) return st;
    int64_t n = op_tensor_count(t);
    int lead = x->rank - t->rank;
    bool fits = lead == 0 || (lead == 1 && x->rank == 3);
    for (int a = 0; fits && a < t->rank; a++) fits = t->dims[a] == x->dims[lead + a] || (lead + a == 0 && t->dims[a] == 1);
    if (!fits || n < 0) return op__nn_shape(ctx, i, "skip", x->rank, x->dims);
    return OP_OK;
}

static enum op_status infer(struct op_ctx *ctx) {
    const struct layer_norm *s = ctx->state;
    enum op_status st = op__nn_float(ctx, 0, "X");
    if (st != OP_OK) return st;
    const struct op_tensor *x = ctx->in[0];
    if (op_tensor_count(x) < 0) return op__fail(ctx, OP_LIMIT, "input 0 (X) is beyond 63 bits");
    int axis = op__axis(s->axis, x->rank);
    if (axis < 0) return op__fail(ctx, OP_BAD_VALUE, "axis is %lld, the input has rank %d", (long long)s->axis, x->rank);
    if ((st = check_factor(ctx, s->in_scale, "scale", axis)) != OP_OK) return st;
    if (optional_in(ctx, s->in_bias) && (st = check_factor(ctx, s->in_bias, "bias", axis)) != OP_OK) return st;
    if (s->skip && (st = check_skip(ctx, s->in_skip)) != OP_OK) return st;
    if (optional_in(ctx, s->in_skip_bias) &&
        ((st = op__nn_like(ctx, s->in_skip_bias, "bias", x->dtype, 1)) != OP_OK ||
         (st = op__nn_shape(ctx, s->in_skip_bias, "bias", 1, &x->dims[x->rank - 1])) != OP_OK))
        return st;
    int64_t dims[OP_RANK_MAX];
    for (int a = 0; a < x->rank; a++) dims[a] = a < axis ? x->dims[a] : 1;
    op__set(ctx, 0, s->centred ? x->dtype : ctx->in[s->in_scale]->dtype, x->rank, x->dims);
    if (s->out_mean > 0) op__set(ctx, s->out_mean, s->stash, x->rank, dims);
    if (s->out_inv_std > 0) op__set(ctx, s->out_inv_std, s->stash, x->rank, dims);
    if (s->out_sum > 0) op__set(ctx, s->out_sum, x->dtype, x->rank, x->dims);
    return OP_OK;
}

/* --- computing --------------------------------------------------------------------------------- */

struct job {
    const struct op_ctx *ctx;
    const struct layer_norm *s;
    const struct k_vmath *math;
    int axis;
    int64_t rows, size;
};

static void split(const struct op_ctx *ctx, struct job *job) {
    const struct op_tensor *x = ctx->in[0];
    *job = (struct job){.ctx = ctx, .s = ctx->state, .math = op__kern(ctx)->math, .rows = 1, .size = 1};
    job->axis = op__axis(job->s->axis, x->rank);
    for (int a = 0; a < x->rank; a++) *(a < job->axis ? &job->rows : &job->size) *= x->dims[a];
}

/* Element i of a row as it is to be normalised, i counting over all of X. */
static double element(const struct job *job, int64_t i) {
    const struct op_ctx *ctx = job->ctx;
    double v = nn_load(ctx->in[0], i);
    if (!job->s->skip) return v;
    const struct op_tensor *skip = ctx->in[job->s->in_skip], *bias = optional_in(ctx, job->s->in_skip_bias);
    v += nn_load(skip, i % op_tensor_count(skip));
    return bias ? v + nn_load(bias, i % bias->dims[0]) : v;
}

/* The place in a broadcast scale or bias of element j of a row. */
static int64_t factor_at(const struct job *job, const struct op_tensor *t, int64_t j) {
    const struct op_tensor *x = job->ctx->in[0];
    int64_t at = 0, step = 1;
    for (int a = x->rank - 1, b = t->rank - 1; b >= 0; a--, b--) {
        if (t->dims[b] != 1) at += j % x->dims[a] * step;
        j /= x->dims[a];
        step *= t->dims[b];
    }
    return at;
}

static void ref_row(const struct job *job, int64_t r) {
    const struct op_ctx *ctx = job->ctx;
    const struct op_tensor *scale = ctx->in[job->s->in_scale], *bias = optional_in(ctx, job->s->in_bias);
    struct op_tensor *means = optional_out(ctx, job->s->out_mean), *inv_stds = optional_out(ctx, job->s->out_inv_std);
    struct op_tensor *sums = optional_out(ctx, job->s->out_sum);
    double mean = 0, square = 0;
    for (int64_t j = 0; job->s->centred && j < job->size; j++) mean += element(job, r * job->size + j) / (double)job->size;
    for (int64_t j = 0; j < job->size; j++) {
        double d = element(job, r * job->size + j) - mean;
        square += d * d;
    }
    double inv_std = 1 / sqrt(square / (double)job->size + (double)job->s->epsilon);
    if (means) nn_store(means, r, mean);
    if (inv_stds) nn_store(inv_stds, r, inv_std);
    for (int64_t j = 0; j < job->size; j++) {
        double v = element(job, r * job->size + j);
        if (sums) nn_store(sums, r * job->size + j, v);
        v = (v - mean) * inv_std * nn_load(scale, factor_at(job, scale, j));
        if (bias) v += nn_load(bias, factor_at(job, bias, j));
        if (nn_out(ctx, 0)) nn_store(ctx->out[0], r * job->size + j, v);
    }
}

/* The sum that is normalised goes to output `sum`, or where nobody wants it to output 0, which is normalised in place. */
static const float *f32_input(const struct job *job, int64_t r) {
    const struct op_ctx *ctx = job->ctx;
    const float *x = (const float *)ctx->in[0]->data + r * job->size;
    if (!job->s->skip) return x;
    const struct op_tensor *skip = ctx->in[job->s->in_skip], *bias = optional_in(ctx, job->s->in_skip_bias);
    struct op_tensor *sums = optional_out(ctx, job->s->out_sum);
    float *dst = (float *)(sums ? sums : ctx->out[0])->data + r * job->size;
    const float *add = (const float *)skip->data + r * job->size % op_tensor_count(skip);
    job->math->binary[K_ADD](job->size, x, false, add, false, dst);
    if (bias) job->math->binary[K_ADD](job->size, dst, false, bias->data, false, dst);
    return dst;
}

static void f32_row(const struct job *job, int64_t r) {
    const struct op_ctx *ctx = job->ctx;
    const struct op_tensor *scale = ctx->in[job->s->in_scale], *bias = optional_in(ctx, job->s->in_bias);
    struct op_tensor *means = optional_out(ctx, job->s->out_mean), *inv_stds = optional_out(ctx, job->s->out_inv_std);
    float *y = (float *)ctx->out[0]->data + r * job->size;
    const float *x = f32_input(job, r);
    if (job->s->centred)
        job->math->layer_norm(job->size, x, scale->data, bias ? bias->data : NULL, job->s->epsilon, y, means ? (float *)means->data + r : NULL,
                              inv_stds ? (float *)inv_stds->data + r : NULL);
    else job->math->rms_norm(job->size, x, scale->data, job->s->epsilon, y);
}

static void ref_task(void *arg, int64_t task) {
    const struct job *job = arg;
    for (int64_t r = task * ROWS_A_TASK; r < job->rows && r < (task + 1) * ROWS_A_TASK; r++) ref_row(job, r);
}
static void f32_task(void *arg, int64_t task) {
    const struct job *job = arg;
    for (int64_t r = task * ROWS_A_TASK; r < job->rows && r < (task + 1) * ROWS_A_TASK; r++) f32_row(job, r);
}

static enum op_status run_with(struct op_ctx *ctx, void (*task)(void *arg, int64_t task)) {
    struct job job;
    split(ctx, &job);
    if (job.rows && job.size) op__parallel(ctx, (job.rows + ROWS_A_TASK - 1) / ROWS_A_TASK, task, &job);
    return OP_OK;
}

static enum op_status ref(struct op_ctx *ctx) {
    return run_with(ctx, ref_task);
}

static bool is_row(const struct op_tensor *t, int64_t size) {
    return !t || (t->dtype == OP_F32 && op_tensor_count(t) == size);
}

static enum op_status run(struct op_ctx *ctx) {
    struct job job;
    split(ctx, &job);
    bool plain = ctx->in[0]->dtype == OP_F32 && job.s->stash == OP_F32 && nn_out(ctx, 0) && is_row(ctx->in[job.s->in_scale], job.size) &&
                 is_row(optional_in(ctx, job.s->in_bias), job.size);
    if (!job.s->centred) plain = plain && !optional_out(ctx, job.s->out_mean) && !optional_out(ctx, job.s->out_inv_std);
    if (job.s->skip) plain = plain && job.axis == ctx->in[0]->rank - 1;
    return run_with(ctx, plain ? f32_task : ref_task);
}

static void cost(const struct op_ctx *ctx, double *flops, double *bytes) {
    double n = (double)op_tensor_count(ctx->in[0]);
    *flops = 8 * n;
    *bytes = 2 * n * (double)op_type_size(ctx->in[0]->dtype);
}

#define ROW_NORM(id, op_name, op_domain, op_since, n_in_min, n_in_max, n_out_max, op_inplace, op_prepare) \
    static const struct op_desc id = {                                                             \
        .name = op_name,                                                                           \
        .domain = op_domain,                                                                       \
        .since = op_since,                                                                         \
        .in_min = n_in_min,                                                                        \
        .in_max = n_in_max,                                                                        \
        .out_min = 1,                                                                              \
        .out_max = n_out_max,                                                                      \
        .inplace = op_inplace,                                                                     \
        .prepare = op_prepare,                                                                     \
        .release = free,                                                                           \
        .infer = infer,                                                                            \
        .run = run,                                                                                \
        .ref = ref,                                                                                \
        .cost = cost,                                                                              \
    };                                                                                             \
    OP_REGISTER(id)

/* Opset 17 made it standard; ONNX Runtime wrote it into the standard domain before that. */
ROW_NORM(layer_normalization, "LayerNormalization", "", 1, 2, 3, 3, 1, prepare_layer);
ROW_NORM(simplified, "SimplifiedLayerNormalization", "", 1, 2, 2, 2, 1, prepare_rms);
ROW_NORM(rms_normalization, "RMSNormalization", "", 23, 2, 2, 1, 1, prepare_rms);
/* Not in place: the skip may be smaller, and is read while the output is written. */
ROW_NORM(skip_layer, "SkipLayerNormalization", "com.microsoft", 1, 3, 5, 4, 0, prepare_skip);
ROW_NORM(skip_simplified, "SkipSimplifiedLayerNormalization", "com.microsoft", 1, 3, 4, 4, 0, prepare_skip_rms);
