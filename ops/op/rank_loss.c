/* rank_loss.c: losses that compare: triplets (Schroff et al. 2015) and Bayesian personalised ranking (Rendle et al. 2009).
 *
 *   Triplet(z[N,3,E], t)       → e[N]   e = max(|a − p|² − |a − n|² + margin, 0): anchor, positive and negative are given
 *   Triplet(z[N,E], t i64[N])  → e[N]   the same over all pairs (a, p) of one class in the batch, each with its semi-hard negative: the
 *                                       nearest that is farther than p, else the farthest. Row a's pairs times N / (number of pairs), so
 *                                       that the mean of the rows is the mean of the pairs
 *   PairwiseRank(z[N,1+K])     → e[N]   mean over k of log(1 + exp(z_k − z_0)): the first score is to be above the others
 *   TripletGrad(z, t, dy), PairwiseRankGrad(z, dy) → dz
 *
 * Attribute margin (1). Sums in double precision in the order of rows. */
#include <inttypes.h>
#include <math.h>
#include <string.h>

#include "ops/grad.h"

static bool given(const struct op_tensor *z) {
    return z->rank == 3;
}

static enum op_status triplet_check(const struct op_ctx *ctx, bool backward) {
    const struct op_tensor *z = ctx->in[0], *t = ctx->in[1];
    char found[100];
    if (z->dtype != OP_F32 || (z->rank != 2 && (z->rank != 3 || z->dims[1] != 3)))
        return op__fail(ctx, OP_BAD_SHAPE, "the output is %s: f32[N, E] with classes as targets, or f32[N, 3, E] (anchor, positive, negative) is expected",
                        op_tensor_describe(z, found, sizeof found));
    if (!given(z) && (t->dtype != OP_I64 || t->rank != 1 || t->dims[0] != z->dims[0]))
        return op__fail(ctx, OP_BAD_SHAPE, "the targets are %s: i64[%" PRId64 "] is expected", op_tensor_describe(t, found, sizeof found), z->dims[0]);
    if (backward && (ctx->in[2]->dtype != OP_F32 || op_tensor_count(ctx->in[2]) != z->dims[0])) return op__fail(ctx, OP_BAD_SHAPE, "dy does not fit");
    return OP_OK;
}

static double distance(const float *a, const float *b, int64_t n) {
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += ((double)a[i] - (double)b[i]) * ((double)a[i] - (double)b[i]);
    return sum;
}

/* For the pair (a, p): the nearest negative that is farther than p, else the farthest; -1: row a has no negative. */
static int64_t semi_hard(const float *z, const int64_t *t, int64_t n, int64_t e, int64_t a, double to_p) {
    int64_t near = -1, far = -1;
    double nearest = INFINITY, farthest = -1;
    for (int64_t k = 0; k < n; k++) {
        if (t[k] == t[a]) continue;
        double d = distance(z + a * e, z + k * e, e);
        if (d > to_p && d < nearest) nearest = d, near = k;
        if (d > farthest) farthest = d, far = k;
    }
    return near >= 0 ? near : far;
}

static int64_t n_pairs(const int64_t *t, int64_t n) {
    int64_t sum = 0;
    for (int64_t a = 0; a < n; a++)
        for (int64_t p = 0; p < n; p++) sum += a != p && t[a] == t[p];
    return sum;
}

static void spread(float *da, float *db, const float *a, const float *b, int64_t n, double by) { /* of by·|a − b|² */
    for (int64_t i = 0; i < n; i++) {
        float g = (float)(2 * by * ((double)a[i] - (double)b[i]));
        da[i] += g;
        db[i] -= g;
    }
}

/* e of row a; with dz, adds its gradient times dy. */
static double row_of_batch(const float *z, const int64_t *t, int64_t n, int64_t e, int64_t a, double margin, double dy, float *dz) {
    double sum = 0;
    for (int64_t p = 0; p < n; p++) {
        if (p == a || t[p] != t[a]) continue;
        double to_p = distance(z + a * e, z + p * e, e);
        int64_t k = semi_hard(z, t, n, e, a, to_p);
        double value = k < 0 ? 0 : to_p - distance(z + a * e, z + k * e, e) + margin;
        if (value <= 0) continue;
        sum += value;
        if (!dz) continue;
        spread(dz + a * e, dz + p * e, z + a * e, z + p * e, e, dy);
        spread(dz + a * e, dz + k * e, z + a * e, z + k * e, e, -dy);
    }
    return sum;
}

static void triplet(const struct op_ctx *ctx, const float *dy, float *out) {
    const struct op_tensor *z = ctx->in[0];
    const float *v = z->data;
    const int64_t *t = ctx->in[1]->data;
    int64_t n = z->dims[0], e = z->dims[z->rank - 1], pairs = given(z) ? 0 : n_pairs(t, n);
    double margin = (double)op__attr_float(ctx->node, "margin", 1), scale = pairs ? (double)n / (double)pairs : 0;
    for (int64_t i = 0; i < n; i++) {
        if (!given(z)) {
            double value = scale * row_of_batch(v, t, n, e, i, margin, dy ? scale * (double)dy[i] : 0, dy ? out : NULL);
            if (!dy) out[i] = (float)value;
            continue;
        }
        const float *a = v + i * 3 * e, *p = a + e, *k = p + e;
        double value = distance(a, p, e) - distance(a, k, e) + margin;
        if (!dy) out[i] = (float)(value > 0 ? value : 0);
        float *da = out + i * 3 * e;
        if (!dy || value <= 0) continue;
        spread(da, da + e, a, p, e, (double)dy[i]);
        spread(da, da + 2 * e, a, k, e, -(double)dy[i]);
    }
}

static enum op_status triplet_infer(struct op_ctx *ctx) {
    enum op_status st = triplet_check(ctx, false);
    if (st == OP_OK) op__set(ctx, 0, OP_F32, 1, ctx->in[0]->dims);
    return st;
}
static enum op_status triplet_run(struct op_ctx *ctx) {
    triplet(ctx, NULL, ctx->out[0]->data);
    return OP_OK;
}
static enum op_status triplet_grad(struct op_grad *g) {
    int out;
    struct op_node *n = op__emit(g, "quern", "TripletGrad", 3, (int[]){g->in[0], g->in[1], g->dy[0]}, 1, &out);
    if (n) op__attrs_copy(g, n);
    op__grad_set(g, 0, out);
    return OP_OK;
}
static enum op_status triplet_grad_infer(struct op_ctx *ctx) {
    enum op_status st = triplet_check(ctx, true);
    if (st == OP_OK) op__set_like(ctx, 0, 0);
    return st;
}
static enum op_status triplet_grad_run(struct op_ctx *ctx) {
    memset(ctx->out[0]->data, 0, (size_t)op_tensor_bytes(ctx->out[0]));
    triplet(ctx, ctx->in[2]->data, ctx->out[0]->data);
    return OP_OK;
}

static const struct op_desc triplet_desc = {.name = "Triplet", .domain = "quern", .since = 1, .in_min = 2, .in_max = 2, .out_min = 1, .out_max = 1,
                                            .infer = triplet_infer, .run = triplet_run, .grad = triplet_grad};
static const struct op_desc triplet_back = {.name = "TripletGrad", .domain = "quern", .since = 1, .in_min = 3, .in_max = 3, .out_min = 1, .out_max = 1,
                                            .infer = triplet_grad_infer, .run = triplet_grad_run};
OP_REGISTER(triplet_desc);
OP_REGISTER(triplet_back);

/* --- PairwiseRank -------------------------------------------------------------------------------- */

static enum op_status rank_check(const struct op_ctx *ctx) {
    const struct op_tensor *z = ctx->in[0];
    char found[100];
    if (z->dtype != OP_F32 || z->rank != 2 || z->dims[1] < 2)
        return op__fail(ctx, OP_BAD_SHAPE, "the output is %s: f32[N, 1 + negatives] is expected", op_tensor_describe(z, found, sizeof found));
    if (ctx->n_in > 1 && (ctx->in[1]->dtype != OP_F32 || op_tensor_count(ctx->in[1]) != z->dims[0])) return op__fail(ctx, OP_BAD_SHAPE, "dy does not fit");
    return OP_OK;
}

static enum op_status rank_infer(struct op_ctx *ctx) {
    enum op_status st = rank_check(ctx);
    if (st == OP_OK) op__set(ctx, 0, OP_F32, 1, ctx->in[0]->dims);
    return st;
}
static enum op_status rank_run(struct op_ctx *ctx) {
    const float *z = ctx->in[0]->data;
    int64_t n = ctx->in[0]->dims[0], c = ctx->in[0]->dims[1];
    for (int64_t i = 0; i < n; i++, z += c) {
        double sum = 0;
        for (int64_t k = 1; k < c; k++) {
            double d = (double)z[k] - (double)z[0];
            sum += (d > 0 ? d : 0) + log1p(exp(-fabs(d)));
        }
        ((float *)ctx->out[0]->data)[i] = (float)(sum / (double)(c - 1));
    }
    return OP_OK;
}
static enum op_status rank_grad(struct op_grad *g) {
    int out;
    op__emit(g, "quern", "PairwiseRankGrad", 2, (int[]){g->in[0], g->dy[0]}, 1, &out);
    op__grad_set(g, 0, out);
    return OP_OK;
}
static enum op_status rank_grad_infer(struct op_ctx *ctx) {
    enum op_status st = rank_check(ctx);
    if (st == OP_OK) op__set_like(ctx, 0, 0);
    return st;
}
static enum op_status rank_grad_run(struct op_ctx *ctx) {
    const float *z = ctx->in[0]->data, *dy = ctx->in[1]->data;
    float *dz = ctx->out[0]->data;
    int64_t n = ctx->in[0]->dims[0], c = ctx->in[0]->dims[1];
    for (int64_t i = 0; i < n; i++, z += c, dz += c) {
        double sum = 0;
        for (int64_t k = 1; k < c; k++) {
            double d = (double)z[k] - (double)z[0], g = (double)dy[i] / (1 + exp(-d)) / (double)(c - 1);
            dz[k] = (float)g;
            sum += g;
        }
        dz[0] = (float)-sum;
    }
    return OP_OK;
}

static const struct op_desc rank_desc = {.name = "PairwiseRank", .domain = "quern", .since = 1, .in_min = 1, .in_max = 1, .out_min = 1, .out_max = 1,
                                         .infer = rank_infer, .run = rank_run, .grad = rank_grad};
static const struct op_desc rank_back = {.name = "PairwiseRankGrad", .domain = "quern", .since = 1, .in_min = 2, .in_max = 2, .out_min = 1, .out_max = 1,
                                         .infer = rank_grad_infer, .run = rank_grad_run};
OP_REGISTER(rank_desc);
OP_REGISTER(rank_back);
