/* Losses of the domain "quern", each from logits and numerically safe, with their gradients. C is the last dimension.
 *
 *   SparseCrossEntropy(z[…,C], t i64[…]) → e[…]      e = w[t]·(logsumexp(z) − (1−s)·z[t] − s·mean(z)), 0 where t = ignore_index
 *   CrossEntropy(z[…,C], t[…,C])         → e[…]      e = Σ_c t'_c·(logsumexp(z) − z_c),  t' = (1−s)·t + s/C
 *   BinaryCrossEntropy(z, t)             → e like z  e = max(z,0) − z·t' + log(1 + exp(−|z|)),  t' = (1−s)·t + s/2
 *   WeightedMean(e[N,…], w[N])           → scalar    scale · Σ_i w_i · mean(e_i) / N
 *
 * Attributes: label_smoothing s, ignore_index, class_weights w. A class number outside [0, C) is an error that names it. One row after
 * the other, sums in the order of the classes: a row's bits do not depend on the batch. */
#include <inttypes.h>
#include <math.h>
#include <string.h>

#include "ops/grad.h"
#include "ops/kern/kern.h"

struct rows {
    int64_t n, c;
};

static struct rows rows_of(const struct op_tensor *z) {
    int64_t c = z->dims[z->rank - 1], count = op_tensor_count(z);
    return (struct rows){c ? count / c : 0, c};
}

/* e^(z[i] - max) of a row in pieces: into `to` where not NULL; returns their sum (the largest adds 1). */
static double exponentials(const struct k_vmath *math, const float *z, int64_t c, float max, float *to) {
    enum { PIECE = 256 };
    float own[PIECE];
    double sum = 0;
    for (int64_t at = 0; at < c; at += PIECE) {
        const int64_t n = c - at < PIECE ? c - at : PIECE;
        float *e = to ? to + at : own;
        math->unary[K_LINEAR](n, z + at, e, 1, -max);
        math->unary[K_EXP](n, e, e, 0, 0);
        sum += (double)math->sum(n, e);
    }
    return sum;
}

static double log_sum_exp(const struct k_vmath *math, const float *z, int64_t c) {
    const float max = math->max(c, z);
    // cppcheck-suppress invalidFunctionArg ; the sum is 1 at least, or NaN
    return (double)max + log(exponentials(math, z, c, max, NULL));
}

/* dz = by softmax(z), a row. */
static void softmax_times(const struct k_vmath *math, const float *z, int64_t c, double by, float *dz) {
    const double sum = exponentials(math, z, c, math->max(c, z), dz);
    math->unary[K_LINEAR](c, dz, dz, (float)(by / sum), 0);
}

static enum op_status check_logits(const struct op_ctx *ctx) {
    const struct op_tensor *z = ctx->in[0];
    if (z->dtype != OP_F32) return op__fail(ctx, OP_BAD_TYPE, "the logits are %s, f32 is expected", op_type_name(z->dtype));
    if (z->rank < 1 || z->dims[z->rank - 1] < 1) return op__fail(ctx, OP_BAD_SHAPE, "the logits have no class dimension");
    return OP_OK;
}

/* --- SparseCrossEntropy -------------------------------------------------------------------------- */

static enum op_status sparse_check(const struct op_ctx *ctx) {
    const struct op_tensor *z = ctx->in[0], *t = ctx->in[1];
    char found[100];
    enum op_status st = check_logits(ctx);
    if (st != OP_OK) return st;
    bool same = t->rank == z->rank - 1;
    for (int d = 0; d < t->rank && same; d++) same = t->dims[d] == z->dims[d];
    if (!same || t->dtype != OP_I64)
        return op__fail(ctx, OP_BAD_SHAPE, "the targets are %s: class numbers i64 with the logits' shape but its last dimension are expected",
                        op_tensor_describe(t, found, sizeof found));
    int64_t n_weights;
    op__attr_floats(ctx->node, "class_weights", &n_weights);
    if (n_weights && n_weights != z->dims[z->rank - 1])
        return op__fail(ctx, OP_BAD_SHAPE, "%" PRId64 " class weights for %" PRId64 " classes", n_weights, z->dims[z->rank - 1]);
    return OP_OK;
}

static enum op_status sparse_infer(struct op_ctx *ctx) {
    enum op_status st = sparse_check(ctx);
    if (st == OP_OK) op__set(ctx, 0, OP_F32, ctx->in[1]->rank, ctx->in[1]->dims);
    return st;
}

static enum op_status bad_class(const struct op_ctx *ctx, int64_t row, int64_t t, int64_t c) {
    return op__fail(ctx, OP_BAD_VALUE, "target %" PRId64 " is class %" PRId64 ", the model has classes 0 to %" PRId64, row, t, c - 1);
}

static enum op_status sparse_run(struct op_ctx *ctx) {
    const struct k_vmath *math = op__kern(ctx)->math;
    const float *z = ctx->in[0]->data;
    const int64_t *t = ctx->in[1]->data;
    float *e = ctx->out[0]->data;
    struct rows r = rows_of(ctx->in[0]);
    int64_t n_weights, ignore = op__attr_int(ctx->node, "ignore_index", -1);
    const float *weights = op__attr_floats(ctx->node, "class_weights", &n_weights);
    double s = (double)op__attr_float(ctx->node, "label_smoothing", 0);
    for (int64_t i = 0; i < r.n; i++, z += r.c) {
        if (t[i] == ignore && ignore != -1) {
            e[i] = 0;
            continue;
        }
        if (t[i] < 0 || t[i] >= r.c) return bad_class(ctx, i, t[i], r.c);
        double mean = 0;
        for (int64_t k = 0; s > 0 && k < r.c; k++) mean += (double)z[k];
        double value = log_sum_exp(math, z, r.c) - (1 - s) * (double)z[t[i]] - s * mean / (double)r.c;
        e[i] = (float)(n_weights ? value * (double)weights[t[i]] : value);
    }
    return OP_OK;
}

static enum op_status entropy_grad(struct op_grad *g) {
    int out;
    const char *name = g->node->op_type[0] == 'S' ? "SparseCrossEntropyGrad" : "CrossEntropyGrad";
    struct op_node *n = op__emit(g, "quern", name, 3, (int[]){g->in[0], g->in[1], g->dy[0]}, 1, &out);
    if (n) op__attrs_copy(g, n);
    op__grad_set(g, 0, out);
    return OP_OK;
}

static enum op_status sparse_grad_infer(struct op_ctx *ctx) {
    enum op_status st = sparse_check(ctx);
    if (st != OP_OK) return st;
    if (op_tensor_count(ctx->in[2]) != op_tensor_count(ctx->in[1]) || ctx->in[2]->dtype != OP_F32) return op__fail(ctx, OP_BAD_SHAPE, "dy does not fit");
    op__set_like(ctx, 0, 0);
    return OP_OK;
}

static enum op_status sparse_grad_run(struct op_ctx *ctx) {
    const struct k_vmath *math = op__kern(ctx)->math;
    const float *z = ctx->in[0]->data, *dy = ctx->in[2]->data;
    const int64_t *t = ctx->in[1]->data;
    float *dz = ctx->out[0]->data;
    struct rows r = rows_of(ctx->in[0]);
    int64_t n_weights, ignore = op__attr_int(ctx->node, "ignore_index", -1);
    const float *weights = op__attr_floats(ctx->node, "class_weights", &n_weights);
    double s = (double)op__attr_float(ctx->node, "label_smoothing", 0);
    for (int64_t i = 0; i < r.n; i++, z += r.c, dz += r.c) {
        bool skip = t[i] == ignore && ignore != -1;
        if (!skip && (t[i] < 0 || t[i] >= r.c)) return bad_class(ctx, i, t[i], r.c);
        if (skip) {
            memset(dz, 0, (size_t)r.c * sizeof *dz);
            continue;
        }
        double scale = (double)dy[i] * (n_weights ? (double)weights[t[i]] : 1);
        softmax_times(math, z, r.c, scale, dz);
        if (s > 0) math->unary[K_LINEAR](r.c, dz, dz, 1, (float)(-scale * s / (double)r.c));
        dz[t[i]] -= (float)(scale * (1 - s));
    }
    return OP_OK;
}

static const struct op_desc sparse = {.name = "SparseCrossEntropy", .domain = "quern", .since = 1, .in_min = 2, .in_max = 2, .out_min = 1, .out_max = 1,
                                      .infer = sparse_infer, .run = sparse_run, .grad = entropy_grad};
static const struct op_desc sparse_back = {.name = "SparseCrossEntropyGrad", .domain = "quern", .since = 1, .in_min = 3, .in_max = 3, .out_min = 1, .out_max = 1,
                                           .infer = sparse_grad_infer, .run = sparse_grad_run};
OP_REGISTER(sparse);
OP_REGISTER(sparse_back);

/* --- CrossEntropy -------------------------------------------------------------------------------- */

static bool same_shape(const struct op_tensor *a, const struct op_tensor *b) {
    if (a->rank != b->rank) return false;
    for (int d = 0; d < a->rank; d++)
        if (a->dims[d] != b->dims[d]) return false;
    return true;
}

static enum op_status like_check(const struct op_ctx *ctx) {
    char found[100];
    if (ctx->in[0]->dtype != OP_F32 || ctx->in[1]->dtype != OP_F32 || !same_shape(ctx->in[0], ctx->in[1]))
        return op__fail(ctx, OP_BAD_SHAPE, "the targets are %s: f32 with the output's shape is expected", op_tensor_describe(ctx->in[1], found, sizeof found));
    return OP_OK;
}

static enum op_status dense_infer(struct op_ctx *ctx) {
    enum op_status st = check_logits(ctx);
    if (st == OP_OK) st = like_check(ctx);
    if (st == OP_OK) op__set(ctx, 0, OP_F32, ctx->in[0]->rank - 1, ctx->in[0]->dims);
    return st;
}

static enum op_status dense_run(struct op_ctx *ctx) {
    const struct k_vmath *math = op__kern(ctx)->math;
    const float *z = ctx->in[0]->data, *t = ctx->in[1]->data;
    float *e = ctx->out[0]->data;
    struct rows r = rows_of(ctx->in[0]);
    double s = (double)op__attr_float(ctx->node, "label_smoothing", 0);
    for (int64_t i = 0; i < r.n; i++, z += r.c, t += r.c) {
        double all = log_sum_exp(math, z, r.c), sum = 0;
        for (int64_t k = 0; k < r.c; k++) sum += ((1 - s) * (double)t[k] + s / (double)r.c) * (all - (double)z[k]);
        e[i] = (float)sum;
    }
    return OP_OK;
}

static enum op_status dense_grad_infer(struct op_ctx *ctx) {
    enum op_status st = check_logits(ctx);
    if (st == OP_OK) st = like_check(ctx);
    if (st != OP_OK) return st;
    if (op_tensor_count(ctx->in[2]) != rows_of(ctx->in[0]).n || ctx->in[2]->dtype != OP_F32) return op__fail(ctx, OP_BAD_SHAPE, "dy does not fit");
    op__set_like(ctx, 0, 0);
    return OP_OK;
}

static enum op_status dense_grad_run(struct op_ctx *ctx) {
    const struct k_vmath *math = op__kern(ctx)->math;
    const float *z = ctx->in[0]->data, *t = ctx->in[1]->data, *dy = ctx->in[2]->data;
    float *dz = ctx->out[0]->data;
    struct rows r = rows_of(ctx->in[0]);
    double s = (double)op__attr_float(ctx->node, "label_smoothing", 0);
    for (int64_t i = 0; i < r.n; i++, z += r.c, t += r.c, dz += r.c) {
        double mass = 0;
        for (int64_t k = 0; k < r.c; k++) mass += (1 - s) * (double)t[k] + s / (double)r.c;
        softmax_times(math, z, r.c, (double)dy[i] * mass, dz);
        for (int64_t k = 0; k < r.c; k++) dz[k] -= (float)((double)dy[i] * ((1 - s) * (double)t[k] + s / (double)r.c));
    }
    return OP_OK;
}

static const struct op_desc dense = {.name = "CrossEntropy", .domain = "quern", .since = 1, .in_min = 2, .in_max = 2, .out_min = 1, .out_max = 1,
                                     .infer = dense_infer, .run = dense_run, .grad = entropy_grad};
static const struct op_desc dense_back = {.name = "CrossEntropyGrad", .domain = "quern", .since = 1, .in_min = 3, .in_max = 3, .out_min = 1, .out_max = 1,
                                          .infer = dense_grad_infer, .run = dense_grad_run};
OP_REGISTER(dense);
OP_REGISTER(dense_back);

/* --- BinaryCrossEntropy -------------------------------------------------------------------------- */

static enum op_status binary_infer(struct op_ctx *ctx) {
    enum op_status st = like_check(ctx);
    if (st == OP_OK) op__set_like(ctx, 0, 0);
    return st;
}

static enum op_status binary_run(struct op_ctx *ctx) {
    const float *z = ctx->in[0]->data, *t = ctx->in[1]->data;
    float *e = ctx->out[0]->data;
    double s = (double)op__attr_float(ctx->node, "label_smoothing", 0);
    for (int64_t i = 0, n = op_tensor_count(ctx->in[0]); i < n; i++) {
        double x = (double)z[i], y = (1 - s) * (double)t[i] + s / 2;
        e[i] = (float)((x > 0 ? x : 0) - x * y + log1p(exp(-fabs(x))));
    }
    return OP_OK;
}

static enum op_status binary_grad(struct op_grad *g) {
    int out;
    struct op_node *n = op__emit(g, "quern", "BinaryCrossEntropyGrad", 3, (int[]){g->in[0], g->in[1], g->dy[0]}, 1, &out);
    if (n) op__attrs_copy(g, n);
    op__grad_set(g, 0, out);
    return OP_OK;
}

static enum op_status binary_grad_infer(struct op_ctx *ctx) {
    enum op_status st = like_check(ctx);
    if (st != OP_OK) return st;
    if (!same_shape(ctx->in[2], ctx->in[0]) || ctx->in[2]->dtype != OP_F32) return op__fail(ctx, OP_BAD_SHAPE, "dy does not fit");
    op__set_like(ctx, 0, 0);
    return OP_OK;
}

static enum op_status binary_grad_run(struct op_ctx *ctx) {
    const float *z = ctx->in[0]->data, *t = ctx->in[1]->data, *dy = ctx->in[2]->data;
    float *dz = ctx->out[0]->data;
    double s = (double)op__attr_float(ctx->node, "label_smoothing", 0);
    for (int64_t i = 0, n = op_tensor_count(ctx->in[0]); i < n; i++) {
        double x = (double)z[i], e = exp(-fabs(x)), p = x >= 0 ? 1 / (1 + e) : e / (1 + e);
        dz[i] = (float)((double)dy[i] * (p - (1 - s) * (double)t[i] - s / 2));
    }
    return OP_OK;
}

static const struct op_desc binary = {.name = "BinaryCrossEntropy", .domain = "quern", .since = 1, .in_min = 2, .in_max = 2, .out_min = 1, .out_max = 1,
                                      .infer = binary_infer, .run = binary_run, .grad = binary_grad};
static const struct op_desc binary_back = {.name = "BinaryCrossEntropyGrad", .domain = "quern", .since = 1, .in_min = 3, .in_max = 3, .out_min = 1, .out_max = 1,
                                           .infer = binary_grad_infer, .run = binary_grad_run};
OP_REGISTER(binary);
OP_REGISTER(binary_back);

/* --- WeightedMean -------------------------------------------------------------------------------- */

static enum op_status mean_check(const struct op_ctx *ctx) {
    const struct op_tensor *x = ctx->in[0], *w = ctx->in[1];
    char found[100];
    if (x->dtype != OP_F32) return op__fail(ctx, OP_BAD_TYPE, "the loss is %s, f32 is expected", op_type_name(x->dtype));
    if (x->rank < 1) return op__fail(ctx, OP_BAD_SHAPE, "the loss has no rows: its rank is 0");
    if (w->dtype != OP_F32 || w->rank != 1 || w->dims[0] != x->dims[0])
        return op__fail(ctx, OP_BAD_SHAPE, "the sample weights are %s: f32[%" PRId64 "] is expected", op_tensor_describe(w, found, sizeof found), x->dims[0]);
    return OP_OK;
}

static enum op_status mean_infer(struct op_ctx *ctx) {
    enum op_status st = mean_check(ctx);
    if (st == OP_OK) op__set(ctx, 0, OP_F32, 0, NULL);
    return st;
}

static enum op_status mean_run(struct op_ctx *ctx) {
    const float *x = ctx->in[0]->data, *w = ctx->in[1]->data;
    int64_t n = ctx->in[0]->dims[0], count = op_tensor_count(ctx->in[0]), each = n ? count / n : 0;
    double total = 0;
    for (int64_t i = 0; i < n; i++, x += each) {
        double sum = 0;
        for (int64_t k = 0; k < each; k++) sum += (double)x[k];
        if (each) total += (double)w[i] * sum / (double)each;
    }
    *(float *)ctx->out[0]->data = n ? (float)((double)op__attr_float(ctx->node, "scale", 1) * total / (double)n) : 0;
    return OP_OK;
}

static enum op_status mean_grad(struct op_grad *g) {
    int out;
    struct op_node *n = op__emit(g, "quern", "WeightedMeanGrad", 3, (int[]){g->in[0], g->in[1], g->dy[0]}, 1, &out);
    if (n) op__attrs_copy(g, n);
    op__grad_set(g, 0, out);
    return OP_OK;
}

static enum op_status mean_grad_infer(struct op_ctx *ctx) {
    enum op_status st = mean_check(ctx);
    if (st != OP_OK) return st;
    if (ctx->in[2]->dtype != OP_F32 || op_tensor_count(ctx->in[2]) != 1) return op__fail(ctx, OP_BAD_SHAPE, "dy does not fit");
    op__set_like(ctx, 0, 0);
    return OP_OK;
}

static enum op_status mean_grad_run(struct op_ctx *ctx) {
    const float *w = ctx->in[1]->data;
    double dy = (double)*(const float *)ctx->in[2]->data * (double)op__attr_float(ctx->node, "scale", 1);
    float *dx = ctx->out[0]->data;
    int64_t n = ctx->in[0]->dims[0], count = op_tensor_count(ctx->in[0]), each = n ? count / n : 0;
    for (int64_t i = 0; i < n; i++, dx += each) {
        float value = each ? (float)(dy * (double)w[i] / ((double)each * (double)n)) : 0;
        for (int64_t k = 0; k < each; k++) dx[k] = value;
    }
    return OP_OK;
}

static const struct op_desc weighted_mean = {.name = "WeightedMean", .domain = "quern", .since = 1, .in_min = 2, .in_max = 2, .out_min = 1, .out_max = 1,
                                             .infer = mean_infer, .run = mean_run, .grad = mean_grad};
static const struct op_desc weighted_mean_back = {.name = "WeightedMeanGrad", .domain = "quern", .since = 1, .in_min = 3, .in_max = 3, .out_min = 1,
                                                  .out_max = 1, .infer = mean_grad_infer, .run = mean_grad_run};
OP_REGISTER(weighted_mean);
OP_REGISTER(weighted_mean_back);
