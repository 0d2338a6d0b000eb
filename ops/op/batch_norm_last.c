/* batch_norm_last.c: BatchNormalization in training, and its gradient, over images whose channels come last (the pass channels_last).
 *
 *   ChannelsLastBatchNormalization(X, scale, B, mean, var) → Y, running mean, running var
 *   ChannelsLastBatchNormalizationGrad(dy, X, scale, mean, var) → dX, dscale, dB
 *
 * X (…, c) is an array of r rows and c columns, f32; scale, B, mean, var have c elements. With x' = (x - m) / s, where m is the mean of a
 * column and s = sqrt(its population variance + epsilon):
 *
 *   y = x' scale + B        dB = sum dy    dscale = sum dy x'    dx = scale / s (dy - dB / r - x' dscale / r)
 *
 * Sums: pieces of PIECE rows, each in f32, side by side on the threads, and then in order in double precision: no number of threads
 * changes a bit. */
#include "ops/kern/kern.h"
#include "ops/op/nn.h"

#include <math.h>
#include <string.h>

enum { PIECE = 256 };

struct job {
    const struct op_ctx *ctx;
    int64_t rows, c, n_pieces;
    const float *x, *dy;
    float *out;
    float *sums, *more; /* of the pieces: n_pieces x c each */
    float *mean, *a, *b, *d;
    void (*piece)(const struct job *j, int64_t piece, int64_t from, int64_t rows);
};

static bool job_of(struct op_ctx *ctx, int x, struct job *j) {
    const struct op_tensor *t = ctx->in[x];
    const int64_t count = op_tensor_count(t);
    *j = (struct job){.ctx = ctx, .c = t->dims[t->rank - 1], .x = t->data};
    if (count <= 0 || !ctx->scratch) return false;
    j->rows = count / j->c;
    j->n_pieces = (j->rows + PIECE - 1) / PIECE;
    j->sums = ctx->scratch;
    j->more = j->sums + j->n_pieces * j->c;
    j->mean = j->more + j->n_pieces * j->c;
    j->a = j->mean + j->c;
    j->b = j->a + j->c;
    j->d = j->b + j->c;
    return true;
}

static size_t scratch_of(const struct op_tensor *x) {
    const int64_t count = op_tensor_count(x);
    if (count <= 0) return 0;
    const int64_t c = x->dims[x->rank - 1], pieces = (count / c + PIECE - 1) / PIECE;
    return (size_t)((2 * pieces + 4) * c) * sizeof(float);
}

static void piece_task(void *arg, int64_t piece) {
    const struct job *j = arg;
    const int64_t from = piece * PIECE, left = j->rows - from;
    j->piece(j, piece, from * j->c, left < PIECE ? left : PIECE);
}

static void each_piece(struct job *j, void (*piece)(const struct job *j, int64_t piece, int64_t from, int64_t rows)) {
    j->piece = piece;
    op__parallel(j->ctx, j->n_pieces, piece_task, j);
}

static double joined(const struct job *j, const float *sums, int64_t c) {
    double total = 0;
    for (int64_t i = 0; i < j->n_pieces; i++) total += (double)sums[i * j->c + c];
    return total;
}

static const struct k_columns *columns_of(const struct job *j) {
    return op__kern(j->ctx)->columns;
}

static void sum_x(const struct job *j, int64_t piece, int64_t from, int64_t rows) {
    columns_of(j)->sum(rows, j->c, j->x + from, j->sums + piece * j->c);
}
static void sum_square(const struct job *j, int64_t piece, int64_t from, int64_t rows) {
    columns_of(j)->sum_square(rows, j->c, j->x + from, j->mean, j->sums + piece * j->c);
}

/* The batch's mean goes to j->mean, its variance to j->b. */
static void statistics(struct job *j) {
    each_piece(j, sum_x);
    for (int64_t c = 0; c < j->c; c++) j->mean[c] = (float)(joined(j, j->sums, c) / (double)j->rows);
    each_piece(j, sum_square);
    for (int64_t c = 0; c < j->c; c++) j->b[c] = (float)(joined(j, j->sums, c) / (double)j->rows);
}

static enum op_status check(struct op_ctx *ctx, int x, const char *const *names) {
    enum op_status st = op__nn_like(ctx, x, names[x], OP_F32, -1);
    if (st != OP_OK) return st;
    const struct op_tensor *t = ctx->in[x];
    if (t->rank < 2) return op__fail(ctx, OP_BAD_SHAPE, "input %d (%s) has rank %d, expected 2 or more", x, names[x], t->rank);
    for (int i = x + 1; i < 5; i++)
        if ((st = op__nn_like(ctx, i, names[i], OP_F32, 1)) != OP_OK || (st = op__nn_shape(ctx, i, names[i], 1, &t->dims[t->rank - 1])) != OP_OK) return st;
    return OP_OK;
}

/* --- forward ------------------------------------------------------------------------------------------------- */

static enum op_status forward_infer(struct op_ctx *ctx) {
    static const char *const names[] = {"X", "scale", "B", "mean", "var"};
    const enum op_status st = check(ctx, 0, names);
    if (st != OP_OK) return st;
    op__set_like(ctx, 0, 0);
    for (int i = 1; i < ctx->n_out; i++) op__set_like(ctx, i, 3);
    return OP_OK;
}

static size_t forward_scratch(const struct op_ctx *ctx) {
    return scratch_of(ctx->in[0]);
}

static void normalise(const struct job *j, int64_t piece, int64_t from, int64_t rows) {
    (void)piece;
    columns_of(j)->linear(rows, j->c, j->x + from, j->a, j->d, j->out + from);
}

static void running(struct op_ctx *ctx, int out, const float *old, const float *now, int64_t n, double momentum) {
    float *to = nn_out(ctx, out) ? ctx->out[out]->data : NULL;
    for (int64_t c = 0; to && c < n; c++) to[c] = (float)((double)old[c] * momentum + (double)now[c] * (1 - momentum));
}

static enum op_status forward_run(struct op_ctx *ctx) {
    struct job j;
    if (!job_of(ctx, 0, &j)) return OP_OK;
    const float *scale = ctx->in[1]->data, *bias = ctx->in[2]->data;
    const double epsilon = (double)op__attr_float(ctx->node, "epsilon", 1e-5f), momentum = (double)op__attr_float(ctx->node, "momentum", 0.9f);
    statistics(&j);
    running(ctx, 1, ctx->in[3]->data, j.mean, j.c, momentum);
    running(ctx, 2, ctx->in[4]->data, j.b, j.c, momentum);
    running(ctx, 3, j.mean, j.mean, j.c, 0);
    running(ctx, 4, j.b, j.b, j.c, 0);
    for (int64_t c = 0; c < j.c; c++) {
        const double factor = (double)scale[c] / sqrt((double)j.b[c] + epsilon);
        j.a[c] = (float)factor;
        j.d[c] = (float)((double)bias[c] - (double)j.mean[c] * factor);
    }
    j.out = ctx->out[0]->data;
    each_piece(&j, normalise);
    return OP_OK;
}

static const struct op_desc forward = {.name = "ChannelsLastBatchNormalization", .domain = "quern", .since = 1, .in_min = 5, .in_max = 5, .out_min = 1, .out_max = 5,
                                       .infer = forward_infer, .scratch = forward_scratch, .run = forward_run};
OP_REGISTER(forward);

/* --- gradient ------------------------------------------------------------------------------------------------ */

static enum op_status grad_infer(struct op_ctx *ctx) {
    static const char *const names[] = {"dy", "X", "scale", "mean", "var"};
    enum op_status st = check(ctx, 1, names);
    if (st == OP_OK) st = op__nn_like(ctx, 0, "dy", OP_F32, ctx->in[1]->rank);
    if (st == OP_OK) st = op__nn_shape(ctx, 0, "dy", ctx->in[1]->rank, ctx->in[1]->dims);
    if (st != OP_OK) return st;
    for (int i = 0; i < ctx->n_out && i < 3; i++) op__set_like(ctx, i, i ? 2 : 1);
    return OP_OK;
}

static size_t grad_scratch(const struct op_ctx *ctx) {
    return scratch_of(ctx->in[1]);
}

static void sum_both(const struct job *j, int64_t piece, int64_t from, int64_t rows) {
    columns_of(j)->sum(rows, j->c, j->dy + from, j->sums + piece * j->c);
    columns_of(j)->dot(rows, j->c, j->dy + from, j->x + from, j->mean, j->more + piece * j->c);
}

static void blend(const struct job *j, int64_t piece, int64_t from, int64_t rows) {
    (void)piece;
    columns_of(j)->blend(rows, j->c, j->dy + from, j->x + from, j->mean, j->a, j->b, j->d, j->out + from);
}

static enum op_status grad_run(struct op_ctx *ctx) {
    struct job j;
    float *dscale = nn_out(ctx, 1) ? ctx->out[1]->data : NULL, *dbias = nn_out(ctx, 2) ? ctx->out[2]->data : NULL;
    if (!job_of(ctx, 1, &j)) {
        for (int64_t c = 0; c < j.c; c++) {
            if (dscale) dscale[c] = 0;
            if (dbias) dbias[c] = 0;
        }
        return OP_OK;
    }
    const float *scale = ctx->in[2]->data;
    const double epsilon = (double)op__attr_float(ctx->node, "epsilon", 1e-5f), n = (double)j.rows;
    statistics(&j);
    j.dy = ctx->in[0]->data;
    each_piece(&j, sum_both);
    for (int64_t c = 0; c < j.c; c++) {
        const double inv = 1 / sqrt((double)j.b[c] + epsilon), all = joined(&j, j.sums, c), dot = joined(&j, j.more, c) * inv;
        if (dscale) dscale[c] = (float)dot;
        if (dbias) dbias[c] = (float)all;
        j.a[c] = (float)((double)scale[c] * inv);
        j.b[c] = (float)(-(double)scale[c] * inv * inv * dot / n);
        j.d[c] = (float)(-(double)scale[c] * inv * all / n);
    }
    j.out = nn_out(ctx, 0) ? ctx->out[0]->data : NULL;
    if (j.out) each_piece(&j, blend);
    return OP_OK;
}

static const struct op_desc grad = {.name = "ChannelsLastBatchNormalizationGrad", .domain = "quern", .since = 1, .in_min = 5, .in_max = 5, .out_min = 1, .out_max = 3,
                                    .infer = grad_infer, .scratch = grad_scratch, .run = grad_run};
OP_REGISTER(grad);
