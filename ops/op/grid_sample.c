/* grid_sample.c: GridSample (opsets 16 and 20) and AffineGrid: sampling at positions that are data.
 *
 * An output position reads up to 4 positions along each axis; with up to 3 spatial axes that is a list of at most 64
 * places and weights, made once for all channels; 64 positions at a time, so that a channel's plane stays in cache. The four corners of
 * a linear sample of an f32 image that lie inside have a loop of their own, with weights in f32. A position is in [-1, 1] over the image: with align_corners from the centre of
 * the first element to that of the last, else from edge to edge.
 *
 * Outside the image: "zeros" reads 0; "border" reads the nearest element; "reflection" mirrors at the edge as often as needed.
 * A position outside is brought back before it is sampled; but for cubic, where each place that it reads is brought back, as
 * elsewhere. Rows of output positions are split over the threads. */
#include "ops/op/nn.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define AXES_MAX 3
#define PLACES_MAX 64

enum sample_mode { NEAREST, LINEAR, CUBIC };
enum padding_mode { ZEROS, BORDER, REFLECTION };

struct grid_sample {
    enum sample_mode mode;
    enum padding_mode padding;
    bool align;
};

static enum op_status prepare(struct op_prepare *p) {
    static const struct {
        const char *name;
        enum sample_mode mode;
    } modes[] = {{"nearest", NEAREST}, {"linear", LINEAR}, {"bilinear", LINEAR}, {"cubic", CUBIC}, {"bicubic", CUBIC}};
    static const char *const paddings[] = {"zeros", "border", "reflection"};
    struct grid_sample *s = calloc(1, sizeof *s);
    if (!s) return op__node_fail(p->err, p->node, OP_NOMEM, "out of memory");
    p->node->state = s;
    s->align = op__attr_int(p->node, "align_corners", 0) != 0;
    const char *mode = op__attr_string(p->node, "mode", "linear"), *padding = op__attr_string(p->node, "padding_mode", "zeros");
    int i = 0;
    while (i < 5 && strcmp(mode, modes[i].name)) i++;
    if (i == 5) return op__node_fail(p->err, p->node, OP_BAD_VALUE, "mode is \"%s\", expected nearest, linear or cubic", mode);
    s->mode = modes[i].mode;
    for (i = 0; i < 3 && strcmp(padding, paddings[i]);) i++;
    if (i == 3) return op__node_fail(p->err, p->node, OP_BAD_VALUE, "padding_mode is \"%s\", expected zeros, border or reflection", padding);
    s->padding = (enum padding_mode)i;
    return OP_OK;
}

static enum op_status infer(struct op_ctx *ctx) {
    const struct op_tensor *x = nn_in(ctx, 0), *grid;
    enum op_status st = op__nn_float(ctx, 1, "grid");
    if (st != OP_OK) return st;
    if (!x || x->kind != OP_KIND_TENSOR || x->dtype == OP_STRING || x->dtype == OP_C64 || x->dtype == OP_C128 || op__is_narrow(x->dtype))
        return op__fail(ctx, OP_BAD_TYPE, "input 0 (X) is absent or %s, which cannot be sampled", x ? op_type_name(x->dtype) : "nothing");
    grid = ctx->in[1];
    int axes = x->rank - 2;
    if (axes < 1 || axes > AXES_MAX) return op__fail(ctx, OP_BAD_SHAPE, "input 0 (X) has rank %d, expected 3 to %d", x->rank, AXES_MAX + 2);
    int64_t want[OP_RANK_MAX] = {x->dims[0]}, out[OP_RANK_MAX] = {x->dims[0], x->dims[1]};
    for (int a = 0; a < axes; a++) out[2 + a] = want[1 + a] = grid->rank == x->rank ? grid->dims[1 + a] : -1;
    want[1 + axes] = axes;
    if ((st = op__nn_shape(ctx, 1, "grid", x->rank, want)) != OP_OK) return st;
    int64_t n = 1;
    for (int a = 0; a < axes; a++)
        if (!op__mul(n, out[2 + a], &n)) return op__fail(ctx, OP_LIMIT, "the output's shape is beyond 63 bits");
    if (n && x->dims[0] && x->dims[1])
        for (int a = 0; a < axes; a++)
            if (!x->dims[2 + a]) return op__fail(ctx, OP_BAD_SHAPE, "dimension %d of input 0 (X) is 0: there is nothing to sample", 2 + a);
    op__set(ctx, 0, x->dtype, x->rank, out);
    return OP_OK;
}

static double reflect(double v, double lo, double hi) {
    double range = hi - lo;
    if (range <= 0) return 0;
    double d = v < lo ? lo - v : v > hi ? v - hi : -1;
    if (d < 0) return v;
    double times = floor(d / range), rest = d - times * range;
    bool back = fmod(times, 2) != 0;
    return (v < lo) != back ? lo + rest : hi - rest;
}

/* The element at an integral position, -1 for a zero. */
static int64_t place_of(const struct grid_sample *s, double v, int64_t n) {
    if (v >= 0 && v <= (double)(n - 1)) return (int64_t)v;
    if (s->padding == ZEROS || v != v) return -1;
    if (s->padding == REFLECTION) v = s->align ? reflect(v, 0, (double)(n - 1)) : reflect(v, -0.5, (double)n - 0.5);
    return v < 0 ? 0 : v > (double)(n - 1) ? n - 1 : (int64_t)v;
}

static double cubic(double d) { /* Keys' kernel with a = -0.75 */
    const double a = -0.75;
    d = fabs(d);
    return d <= 1 ? ((a + 2) * d - (a + 3)) * d * d + 1 : d < 2 ? ((a * d - 5 * a) * d + 8 * a) * d - 4 * a : 0;
}

/* The places along one axis that position g in [-1, 1] reads. */
static int axis_places(const struct grid_sample *s, double g, int64_t n, int64_t *at, double *w) {
    double size = (double)n, v = s->align ? (g + 1) / 2 * (size - 1) : ((g + 1) * size - 1) / 2;
    double lo = s->align ? 0 : -0.5, hi = s->align ? size - 1 : size - 0.5;
    if (s->mode == NEAREST) v = rint(v);
    if (s->mode != CUBIC && (v < lo || v > hi)) {
        if (s->padding == BORDER) v = v < 0 ? 0 : v > size - 1 ? size - 1 : v;
        if (s->padding == REFLECTION) v = reflect(v, lo, hi);
    }
    if (!(fabs(v) < 0x1p52)) v = -4; /* infinite or NaN: reads zeros, or the border */
    if (s->mode == NEAREST) {
        at[0] = place_of(s, rint(v), n);
        w[0] = 1;
        return 1;
    }
    int taps = s->mode == LINEAR ? 2 : 4;
    double first = floor(v) - (double)(taps / 2 - 1);
    for (int k = 0; k < taps; k++) {
        double d = first + k - v;
        at[k] = place_of(s, first + k, n);
        w[k] = s->mode == LINEAR ? 1 - fabs(d) : cubic(d);
    }
    return taps;
}

struct job {
    const struct op_ctx *ctx;
    int axes;
    int64_t in_size, out_size, row; /* positions of a channel; positions in a task */
    bool plane;                     /* linear samples of planes, all in f32 */
};

/* The elements of a channel that a position reads and their weights; how many. */
static int places(const struct job *job, int64_t position, int64_t *at, double *w) {
    const struct grid_sample *s = job->ctx->state;
    const struct op_tensor *x = job->ctx->in[0];
    int n = 1;
    at[0] = 0;
    w[0] = 1;
    for (int a = 0; a < job->axes; a++) {
        int64_t axis_at[4], before[PLACES_MAX];
        double axis_w[4], before_w[PLACES_MAX];
        double g = nn_load(job->ctx->in[1], position * job->axes + job->axes - 1 - a); /* x is the last axis */
        int taps = axis_places(s, g, x->dims[2 + a], axis_at, axis_w), kept = n;
        memcpy(before, at, (size_t)n * sizeof *at);
        memcpy(before_w, w, (size_t)n * sizeof *w);
        n = 0;
        for (int i = 0; i < kept; i++)
            for (int k = 0; k < taps; k++) {
                if (axis_at[k] < 0) continue;
                at[n] = before[i] * x->dims[2 + a] + axis_at[k];
                w[n++] = before_w[i] * axis_w[k];
            }
    }
    return n;
}

#define CHUNK 64 /* positions whose places are worked out before the channels are gone through */

struct corners { /* of CHUNK positions */
    int32_t at[4][CHUNK];
    float w[4][CHUNK];
};

/* The two places along one axis that position g reads and the share of the second, as axis_places has it; false if one is outside. */
static bool pair_of(const struct grid_sample *s, double g, int64_t n, int64_t *at, double *share) {
    const double size = (double)n;
    double v = s->align ? (g + 1) / 2 * (size - 1) : ((g + 1) * size - 1) / 2;
    if (!(v >= 0 && v < size - 1)) {
        double w[4];
        const bool inside = axis_places(s, g, n, at, w) == 2 && at[0] >= 0 && at[1] >= 0;
        *share = w[1];
        return inside;
    }
    at[0] = (int64_t)v;
    at[1] = at[0] + 1;
    *share = v - (double)at[0];
    return true;
}

/* The corners of m positions from `first` on. Positions with a corner outside, which reads a zero, are listed in `outside`; returns how many. */
static int find_corners(const struct job *job, int64_t first, int64_t m, struct corners *c, int *outside) {
    const struct grid_sample *s = job->ctx->state;
    const struct op_tensor *x = job->ctx->in[0];
    const float *grid = (const float *)job->ctx->in[1]->data + first * 2;
    int n = 0;
    for (int64_t k = 0; k < m; k++) {
        int64_t row[4] = {0}, col[4] = {0};
        double down = 0, right = 0;
        if (!pair_of(s, (double)grid[2 * k + 1], x->dims[2], row, &down) || !pair_of(s, (double)grid[2 * k], x->dims[3], col, &right)) {
            outside[n++] = (int)k;
            memset(row, 0, sizeof row); /* any place: the result is overwritten */
            memset(col, 0, sizeof col);
        }
        for (int i = 0; i < 4; i++) {
            c->at[i][k] = (int32_t)(row[i / 2] * x->dims[3] + col[i % 2]);
            c->w[i][k] = (float)((i / 2 ? down : 1 - down) * (i % 2 ? right : 1 - right));
        }
    }
    return n;
}

static void blend(const struct corners *c, int64_t m, const float *plane, float *y) {
    for (int64_t k = 0; k < m; k++)
        y[k] = c->w[0][k] * plane[c->at[0][k]] + c->w[1][k] * plane[c->at[1][k]] + (c->w[2][k] * plane[c->at[2][k]] + c->w[3][k] * plane[c->at[3][k]]);
}

/* Positions first + which[0 .. m) of image n (which NULL: 0 .. m), m at most CHUNK, each by its list of places. */
static void sample_lists(const struct job *job, int64_t n, int64_t first, int64_t m, const int *which) {
    const struct op_tensor *x = job->ctx->in[0], *y = job->ctx->out[0];
    int64_t at[CHUNK][PLACES_MAX];
    double w[CHUNK][PLACES_MAX];
    int count[CHUNK];
    for (int64_t k = 0; k < m; k++) count[k] = places(job, n * job->out_size + first + (which ? which[k] : k), at[k], w[k]);
    for (int64_t c = n * x->dims[1]; c < (n + 1) * x->dims[1]; c++)
        for (int64_t k = 0; k < m; k++) {
            const int64_t to = c * job->out_size + first + (which ? which[k] : k);
            double sum = 0;
            if (x->dtype == OP_F32) {
                const float *plane = (const float *)x->data + c * job->in_size;
                for (int j = 0; j < count[k]; j++) sum += w[k][j] * (double)plane[at[k][j]];
                ((float *)y->data)[to] = (float)sum;
                continue;
            }
            for (int j = 0; j < count[k]; j++) sum += w[k][j] * nn_load(x, c * job->in_size + at[k][j]);
            nn_store(y, to, sum);
        }
}

static void sample_corners(const struct job *job, int64_t n, int64_t first, int64_t m) {
    const struct op_tensor *x = job->ctx->in[0], *y = job->ctx->out[0];
    struct corners corners;
    int outside[CHUNK];
    const int n_outside = find_corners(job, n * job->out_size + first, m, &corners, outside);
    for (int64_t c = n * x->dims[1]; c < (n + 1) * x->dims[1]; c++)
        blend(&corners, m, (const float *)x->data + c * job->in_size, (float *)y->data + c * job->out_size + first);
    if (n_outside) sample_lists(job, n, first, n_outside, outside);
}

static void sample_row(void *arg, int64_t task) {
    const struct job *job = arg;
    const int64_t rows = job->out_size / job->row, n = task / rows, first = task % rows * job->row;
    for (int64_t i = first; i < first + job->row; i += CHUNK) {
        const int64_t m = first + job->row - i < CHUNK ? first + job->row - i : CHUNK;
        if (job->plane) sample_corners(job, n, i, m);
        else sample_lists(job, n, i, m, NULL);
    }
}

static enum op_status run(struct op_ctx *ctx) {
    const struct op_tensor *x = ctx->in[0], *y = ctx->out[0];
    struct job job = {.ctx = ctx, .axes = x->rank - 2, .in_size = 1, .out_size = 1, .row = y->dims[y->rank - 1]};
    if (!op_tensor_count(y)) return OP_OK;
    for (int a = 2; a < x->rank; a++) {
        job.in_size *= x->dims[a];
        job.out_size *= y->dims[a];
    }
    job.plane = job.axes == 2 && x->dtype == OP_F32 && ctx->in[1]->dtype == OP_F32 && job.in_size <= INT32_MAX &&
                ((const struct grid_sample *)ctx->state)->mode == LINEAR;
    op__parallel(ctx, x->dims[0] * (job.out_size / job.row), sample_row, &job);
    return OP_OK;
}

static void cost(const struct op_ctx *ctx, double *flops, double *bytes) {
    double n = (double)op_tensor_count(ctx->out[0]), size = (double)op_type_size(ctx->in[0]->dtype);
    *flops = n * (((const struct grid_sample *)ctx->state)->mode == CUBIC ? 32 : 8);
    *bytes = (n + (double)op_tensor_count(ctx->in[0]) + (double)op_tensor_count(ctx->in[1])) * size;
}

static const struct op_desc grid_sample = {
    .name = "GridSample",
    .domain = "",
    .since = 16,
    .in_min = 2,
    .in_max = 2,
    .out_min = 1,
    .out_max = 1,
    .prepare = prepare,
    .release = free,
    .infer = infer,
    .run = run,
    .cost = cost,
};
OP_REGISTER(grid_sample);

/* --- AffineGrid -------------------------------------------------------------------------------- */

static enum op_status affine_infer(struct op_ctx *ctx) {
    enum op_status st = op__nn_float(ctx, 0, "theta");
    if (st != OP_OK) return st;
    const struct op_tensor *theta = ctx->in[0];
    if ((st = op__nn_like(ctx, 1, "size", OP_I64, 1)) != OP_OK) return st;
    int axes = (int)ctx->in[1]->dims[0] - 2;
    if (axes != 2 && axes != 3) return op__fail(ctx, OP_BAD_SHAPE, "input 1 (size) has %lld values, expected 4 or 5", (long long)ctx->in[1]->dims[0]);
    if (!ctx->in[1]->data) return OP_NEED_DATA;
    const int64_t *size = ctx->in[1]->data;
    for (int a = 0; a < axes + 2; a++)
        if (size[a] < 0 || size[a] > NN_EXTENT_MAX) return op__fail(ctx, OP_BAD_VALUE, "size[%d] is %lld", a, (long long)size[a]);
    if ((st = op__nn_shape(ctx, 0, "theta", 3, (int64_t[]){size[0], axes, axes + 1})) != OP_OK) return st;
    int64_t dims[OP_RANK_MAX] = {size[0]};
    for (int a = 0; a < axes; a++) dims[1 + a] = size[2 + a];
    dims[1 + axes] = axes;
    op__set(ctx, 0, theta->dtype, axes + 2, dims);
    return OP_OK;
}

static enum op_status affine_run(struct op_ctx *ctx) {
    struct op_tensor *y = ctx->out[0];
    bool align = op__attr_int(ctx->node, "align_corners", 0) != 0;
    int axes = y->rank - 2;
    int64_t n = op_tensor_count(y) / axes, idx[OP_RANK_MAX] = {0};
    for (int64_t i = 0; i < n; i++) {
        double v[AXES_MAX + 1];
        for (int a = 0; a < axes; a++) { /* x first: the last axis */
            double size = (double)y->dims[axes - a], pos = (double)idx[axes - a];
            v[a] = align ? (size > 1 ? 2 * pos / (size - 1) - 1 : 0) : (2 * pos + 1) / size - 1;
        }
        v[axes] = 1;
        for (int r = 0; r < axes; r++) {
            double sum = 0;
            for (int k = 0; k <= axes; k++) sum += nn_load(ctx->in[0], (idx[0] * axes + r) * (axes + 1) + k) * v[k];
            nn_store(y, i * axes + r, sum);
        }
        nn_next(idx, y->dims, axes + 1);
    }
    return OP_OK;
}

static const struct op_desc affine_grid = {
    .name = "AffineGrid",
    .domain = "",
    .since = 20,
    .in_min = 2,
    .in_max = 2,
    .out_min = 1,
    .out_max = 1,
    .infer = affine_infer,
    .run = affine_run,
};
OP_REGISTER(affine_grid);
