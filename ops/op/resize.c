/* resize.c: Resize (opsets 10 to 19) and its ancestor Upsample (7 and 9).
 *
 * Every form comes down to one table an axis: for each output position the input positions that it reads ("taps")
 * and their weights. Coordinate modes, the kind of interpolation, antialiasing, exclude_outside and the crop of
 * tf_crop_and_resize only differ in how the tables are filled; an axis that does not change has none. The tables
 * are made in double precision in scratch memory, at each run: they cost in proportion to the sum of the axes, the
 * output to their product.
 *
 *   nearest        one tap: elements are copied, of any type. A row that repeats the one above is one memcpy.
 *   f32, last two  rows are blended down into a row buffer, then that row is resampled across.
 *   axes only
 *   all else       every output sums over the product of its axes' taps in double precision (`ref`).
 *
 * Upsample and Resize 10 read no coordinate attributes: they are "asymmetric", and nearest rounds down when it
 * enlarges and up when it shrinks, as the first implementations did. Integer types round to the nearest (half to even)
 * and saturate; the specification does not say. Planes (all axes but the last two) are split over the threads. */
#include "ops/op/nn.h"
#include "ops/kern/kern.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum resize_mode { NEAREST, LINEAR, CUBIC };
enum coordinate_mode { HALF_PIXEL, HALF_PIXEL_SYMMETRIC, PYTORCH_HALF_PIXEL, ALIGN_CORNERS, ASYMMETRIC, CROP, TF_HALF_PIXEL };
enum nearest_mode { ROUND_PREFER_FLOOR, ROUND_PREFER_CEIL, FLOOR, CEIL, FIRST_VERSIONS };
enum aspect { STRETCH, NOT_LARGER, NOT_SMALLER };

static const char *const resize_modes[] = {"nearest", "linear", "cubic", NULL};
static const char *const coordinate_modes[] = {"half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "align_corners", "asymmetric",
                                               "tf_crop_and_resize", "tf_half_pixel_for_nn", NULL};
static const char *const nearest_modes[] = {"round_prefer_floor", "round_prefer_ceil", "floor", "ceil", NULL};
static const char *const aspects[] = {"stretch", "not_larger", "not_smaller", NULL};

struct resize {
    enum resize_mode mode;
    enum coordinate_mode coordinate;
    enum nearest_mode nearest;
    enum aspect aspect;
    bool antialias, exclude_outside;
    double cubic_a, extrapolation;
    int n_axes; /* 0: all */
    int64_t axes[OP_RANK_MAX];
    int in_roi, in_scales, in_sizes; /* their input numbers; -1: this version has none */
    int n_scales;                    /* of Upsample 7, where they are an attribute */
    float scales[OP_RANK_MAX];
};

/* --- attributes -------------------------------------------------------------------------------- */

static enum op_status parse_name(struct op_prepare *p, const char *attr, const char *dflt, const char *const *names, int *dst) {
    const char *found = op__attr_string(p->node, attr, dflt);
    for (int i = 0; names[i]; i++)
        if (!strcmp(found, names[i])) {
            *dst = i;
            return OP_OK;
        }
    return op__node_fail(p->err, p->node, OP_BAD_VALUE, "%s is \"%s\", which this operator does not have", attr, found);
}

static enum op_status prepare_mode(struct op_prepare *p, struct resize **dst) {
    struct resize *s = calloc(1, sizeof *s);
    if (!s) return op__node_fail(p->err, p->node, OP_NOMEM, "out of memory");
    p->node->state = *dst = s;
    *s = (struct resize){.coordinate = ASYMMETRIC, .nearest = FIRST_VERSIONS, .in_roi = -1, .in_scales = 1, .in_sizes = -1, .cubic_a = -0.75};
    const char *mode = op__attr_string(p->node, "mode", "nearest");
    if (!strcmp(mode, "bilinear")) { /* the name in Upsample's first version */
        s->mode = LINEAR;
        return OP_OK;
    }
    int i;
    enum op_status st = parse_name(p, "mode", "nearest", resize_modes, &i);
    if (st == OP_OK) s->mode = (enum resize_mode)i;
    return st;
}

static enum op_status prepare_first(struct op_prepare *p) { /* Resize 10, Upsample 9 */
    struct resize *s;
    return prepare_mode(p, &s);
}

static enum op_status prepare_upsample_7(struct op_prepare *p) {
    struct resize *s;
    enum op_status st = prepare_mode(p, &s);
    if (st != OP_OK) return st;
    int64_t n;
    const float *v = op__attr_floats(p->node, "scales", &n);
    if (!v || n < 1 || n > OP_RANK_MAX)
        return op__node_fail(p->err, p->node, OP_BAD_MODEL, "scales has %lld values, expected 1 to %d", v ? (long long)n : 0, OP_RANK_MAX);
    s->in_scales = -1;
    s->n_scales = (int)n;
    memcpy(s->scales, v, (size_t)n * sizeof *v);
    return OP_OK;
}

static enum op_status prepare(struct op_prepare *p) {
    struct resize *s;
    int coordinate, nearest, aspect;
    enum op_status st = prepare_mode(p, &s);
    if (st != OP_OK) return st;
    if ((st = parse_name(p, "coordinate_transformation_mode", "half_pixel", coordinate_modes, &coordinate)) != OP_OK ||
        (st = parse_name(p, "keep_aspect_ratio_policy", "stretch", aspects, &aspect)) != OP_OK)
        return st;
    if ((st = parse_name(p, "nearest_mode", "round_prefer_floor", nearest_modes, &nearest)) != OP_OK) return st;
    s->coordinate = (enum coordinate_mode)coordinate;
    s->nearest = (enum nearest_mode)nearest;
    s->aspect = (enum aspect)aspect;
    s->antialias = op__attr_int(p->node, "antialias", 0) != 0 && s->mode != NEAREST;
    s->exclude_outside = op__attr_int(p->node, "exclude_outside", 0) != 0 && s->mode != NEAREST;
    s->cubic_a = (double)op__attr_float(p->node, "cubic_coeff_a", -0.75f);
    s->extrapolation = (double)op__attr_float(p->node, "extrapolation_value", 0);
    s->in_roi = 1;
    s->in_scales = 2;
    s->in_sizes = 3;
    int64_t n;
    const int64_t *axes = op__attr_ints(p->node, "axes", &n);
    if (n > OP_RANK_MAX) return op__node_fail(p->err, p->node, OP_BAD_VALUE, "axes has %lld values", (long long)n);
    s->n_axes = (int)n;
    for (int i = 0; i < s->n_axes; i++) s->axes[i] = axes[i];
    return OP_OK;
}

/* --- shapes ------------------------------------------------------------------------------------ */

struct geometry {
    int64_t out[OP_RANK_MAX];
    double scale[OP_RANK_MAX], start[OP_RANK_MAX], end[OP_RANK_MAX]; /* start and end: the crop, 0 and 1 where there is none */
    bool same[OP_RANK_MAX];                                          /* the axis does not change */
};

/* A vector input of n elements; absent or empty: NULL with OP_OK. */
static enum op_status vector_input(const struct op_ctx *ctx, int i, const char *name, int64_t n, const struct op_tensor **dst) {
    const struct op_tensor *t = i < 0 ? NULL : nn_in(ctx, i);
    *dst = NULL;
    if (!t || (t->kind == OP_KIND_TENSOR && op_tensor_count(t) == 0)) return OP_OK;
    if (t->kind != OP_KIND_TENSOR || (i == 3 ? t->dtype != OP_I64 : !nn_is_float(t->dtype)))
        return op__fail(ctx, OP_BAD_TYPE, "input %d (%s) is %s, expected %s", i, name, op_type_name(t->dtype), i == 3 ? "i64" : "f32");
    if (t->rank != 1 || t->dims[0] != n)
        return op__fail(ctx, OP_BAD_SHAPE, "input %d (%s) has %lld values, expected %lld", i, name, (long long)op_tensor_count(t), (long long)n);
    if (!t->data) return OP_NEED_DATA;
    *dst = t;
    return OP_OK;
}

static enum op_status resolve_axes(const struct op_ctx *ctx, int *axes, int *n) {
    const struct resize *s = ctx->state;
    int rank = ctx->in[0]->rank;
    *n = s->n_axes ? s->n_axes : rank;
    for (int i = 0; i < *n; i++) {
        axes[i] = s->n_axes ? op__axis(s->axes[i], rank) : i;
        if (axes[i] < 0) return op__fail(ctx, OP_BAD_VALUE, "axes[%d] is %lld, the input has rank %d", i, (long long)s->axes[i], rank);
        for (int j = 0; j < i; j++)
            if (axes[j] == axes[i]) return op__fail(ctx, OP_BAD_VALUE, "axes names axis %d twice", axes[i]);
    }
    return OP_OK;
}

static enum op_status from_scales(const struct op_ctx *ctx, const struct op_tensor *scales, const int *axes, int n, struct geometry *g) {
    const struct resize *s = ctx->state;
    for (int i = 0; i < n; i++) {
        int a = axes[i];
        float v = scales ? (float)nn_load(scales, i) : s->scales[i];
        float out = floorf((float)ctx->in[0]->dims[a] * v); /* in single precision, as 0.7 of 10 is meant to be 7 */
        if (!(v > 0) || !isfinite(v)) return op__fail(ctx, OP_BAD_VALUE, "scales[%d] is %g, expected more than 0", i, (double)v);
        if (out > (float)NN_EXTENT_MAX) return op__fail(ctx, OP_LIMIT, "scales[%d] is %g, dimension %d would be %g", i, (double)v, a, (double)out);
        g->scale[a] = (double)v;
        g->out[a] = (int64_t)out;
    }
    return OP_OK;
}

static enum op_status from_sizes(const struct op_ctx *ctx, const struct op_tensor *sizes, const int *axes, int n, struct geometry *g) {
    const struct resize *s = ctx->state;
    const struct op_tensor *x = ctx->in[0];
    double least = INFINITY, most = 0;
    for (int i = 0; i < n; i++) {
        int64_t v = ((const int64_t *)sizes->data)[i], in = x->dims[axes[i]];
        if (v < 0 || v > NN_EXTENT_MAX) return op__fail(ctx, OP_BAD_VALUE, "sizes[%d] is %lld, expected 0 to 2^40", i, (long long)v);
        if (in == 0 && v) return op__fail(ctx, OP_BAD_SHAPE, "dimension %d is 0 and cannot become %lld", axes[i], (long long)v);
        double scale = in ? (double)v / (double)in : 1;
        g->out[axes[i]] = v;
        g->scale[axes[i]] = scale;
        if (scale < least) least = scale;
        if (scale > most) most = scale;
    }
    if (s->aspect == STRETCH) return OP_OK;
    double scale = s->aspect == NOT_LARGER ? least : most;
    for (int i = 0; i < n; i++) {
        double out = floor(scale * (double)x->dims[axes[i]] + 0.5);
        if (out > (double)NN_EXTENT_MAX) return op__fail(ctx, OP_LIMIT, "dimension %d would be %g", axes[i], out);
        g->scale[axes[i]] = scale;
        g->out[axes[i]] = (int64_t)out;
    }
    return OP_OK;
}

static enum op_status resolve(const struct op_ctx *ctx, struct geometry *g) {
    const struct resize *s = ctx->state;
    const struct op_tensor *x = ctx->in[0], *roi = NULL, *scales, *sizes;
    int axes[OP_RANK_MAX], n;
    enum op_status st;
    if (!x || x->kind != OP_KIND_TENSOR) return op__fail(ctx, OP_BAD_MODEL, "input 0 (X) is absent or no tensor");
    if ((st = resolve_axes(ctx, axes, &n)) != OP_OK || (st = vector_input(ctx, s->in_scales, "scales", n, &scales)) != OP_OK ||
        (st = vector_input(ctx, s->in_sizes, "sizes", n, &sizes)) != OP_OK)
        return st;
    if (s->coordinate == CROP && (st = vector_input(ctx, s->in_roi, "roi", 2 * n, &roi)) != OP_OK) return st;
    if (s->coordinate == CROP && !roi) return op__fail(ctx, OP_BAD_MODEL, "tf_crop_and_resize without input 1 (roi)");
    if (!scales && !sizes && s->n_scales != n)
        return s->n_scales ? op__fail(ctx, OP_BAD_SHAPE, "scales has %d values, the input has rank %d", s->n_scales, n)
                           : op__fail(ctx, OP_BAD_MODEL, "neither scales nor sizes are given");
    if (scales && sizes) return op__fail(ctx, OP_BAD_MODEL, "both scales and sizes are given, expected one of them");
    for (int a = 0; a < x->rank; a++) {
        g->out[a] = x->dims[a];
        g->scale[a] = 1;
        g->start[a] = 0;
        g->end[a] = 1;
        if (x->dims[a] > NN_EXTENT_MAX) return op__fail(ctx, OP_LIMIT, "dimension %d is %lld, the limit is 2^40", a, (long long)x->dims[a]);
    }
    if ((st = sizes ? from_sizes(ctx, sizes, axes, n, g) : from_scales(ctx, scales, axes, n, g)) != OP_OK) return st;
    for (int i = 0; roi && i < n; i++) {
        g->start[axes[i]] = nn_load(roi, i);
        g->end[axes[i]] = nn_load(roi, n + i);
        if (!(fabs(g->start[axes[i]]) < 1e9) || !(fabs(g->end[axes[i]]) < 1e9)) return op__fail(ctx, OP_BAD_VALUE, "roi[%d] is out of range", i);
    }
    for (int a = 0; a < x->rank; a++) g->same[a] = g->out[a] == x->dims[a] && g->scale[a] == 1 && g->start[a] == 0 && g->end[a] == 1;
    return OP_OK;
}

static enum op_status infer(struct op_ctx *ctx) {
    const struct resize *s = ctx->state;
    struct geometry g;
    enum op_status st = resolve(ctx, &g);
    if (st != OP_OK) return st;
    enum op_type t = ctx->in[0]->dtype;
    if (s->mode != NEAREST && (t == OP_STRING || t == OP_BOOL || t == OP_C64 || t == OP_C128 || op__is_narrow(t)))
        return op__fail(ctx, OP_BAD_TYPE, "input 0 (X) is %s, which cannot be interpolated", op_type_name(t));
    if (s->coordinate == CROP && (t == OP_C64 || t == OP_C128 || op__is_narrow(t)))
        return op__fail(ctx, OP_UNSUPPORTED, "tf_crop_and_resize of %s", op_type_name(t));
    if (t == OP_STRING) return op__fail(ctx, OP_UNSUPPORTED, "input 0 (X) is a tensor of strings");
    op__set(ctx, 0, t, ctx->in[0]->rank, g.out);
    return OP_OK;
}

/* --- tables ------------------------------------------------------------------------------------ */

struct axis {
    int64_t in, out, taps; /* taps 0: the axis does not change */
    int64_t *at;           /* [out, taps] */
    double *w;             /* [out, taps]; not for nearest */
    float *wf;             /* the same */
    uint8_t *outside;      /* [out]: the position lies outside the crop's image: the extrapolation value */
};

/* The input position of output o. In single precision for nearest: a scale such as 0.6 is meant to hit whole positions, and the
 * engines that models come from round it so; in double precision where it only sets weights. */
#define DEFINE_COORDINATE(T, name)                                                                                                          \
    static T name(const struct resize *s, const struct geometry *g, int a, int64_t in, int64_t o) {                                         \
        T x = (T)o, n = (T)in, scale = (T)g->scale[a], resized = scale * n, half = (T)0.5, start = (T)g->start[a], end = (T)g->end[a];      \
        switch (s->coordinate) {                                                                                                            \
        case ALIGN_CORNERS: return resized == 1 ? 0 : x * (n - 1) / (resized - 1);                                                          \
        case ASYMMETRIC: return x / scale;                                                                                                  \
        case CROP: return start * (n - 1) + (end - start) * (n - 1) * (resized == 1 ? half : x / (resized - 1));                            \
        case PYTORCH_HALF_PIXEL: return resized == 1 ? 0 : (x + half) / scale - half;                                                       \
        case HALF_PIXEL_SYMMETRIC: return n / 2 * (1 - (T)g->out[a] / resized) + (x + half) / scale - half;                                 \
        case TF_HALF_PIXEL: return (x + half) / scale; /* of version 11 only */                                                             \
        case HALF_PIXEL: break;                                                                                                             \
        }                                                                                                                                   \
        return (x + half) / scale - half;                                                                                                   \
    }

DEFINE_COORDINATE(double, coordinate)
DEFINE_COORDINATE(float, coordinate_f32)

static int64_t clamp(double v, int64_t n) {
    return v >= 0 ? v < (double)n ? (int64_t)v : n - 1 : 0; /* NaN gives 0 */
}

static int64_t nearest_of(const struct resize *s, double scale, double x, int64_t in) {
    double low = floor(x), part = x - low;
    switch (s->nearest) {
    case FIRST_VERSIONS: return clamp(scale < 1 ? ceil(x) : low, in);
    case ROUND_PREFER_FLOOR: return clamp(part <= 0.5 ? low : low + 1, in);
    case ROUND_PREFER_CEIL: return clamp(part < 0.5 ? low : low + 1, in);
    case FLOOR: return clamp(low, in);
    case CEIL: break;
    }
    return clamp(ceil(x), in);
}

/* How far the filter reaches on one side, in input positions. */
static double reach(const struct resize *s, double scale) {
    return (s->mode == CUBIC ? 2 : 1) / (s->antialias && scale < 1 ? scale : 1);
}

static int64_t n_taps(const struct resize *s, double scale) {
    return s->mode == NEAREST ? 1 : 2 * (int64_t)ceil(reach(s, scale));
}

/* The filter at distance d: a triangle, or Keys' cubic with parameter a. */
static double filter(const struct resize *s, double d) {
    double a = s->cubic_a;
    d = fabs(d);
    if (s->mode == LINEAR) return d < 1 ? 1 - d : 0;
    if (d <= 1) return ((a + 2) * d - (a + 3)) * d * d + 1;
    return d < 2 ? ((a * d - 5 * a) * d + 8 * a) * d - 4 * a : 0;
}

static void fill_position(const struct resize *s, const struct geometry *g, int a, const struct axis *t, int64_t o) {
    double x = s->mode == NEAREST ? (double)coordinate_f32(s, g, a, t->in, o) : coordinate(s, g, a, t->in, o), shrink = s->antialias && g->scale[a] < 1 ? g->scale[a] : 1, sum = 0;
    t->outside[o] = s->coordinate == CROP && (x < 0 || x > (double)(t->in - 1));
    int64_t *at = t->at + o * t->taps;
    if (s->mode == NEAREST) {
        at[0] = nearest_of(s, g->scale[a], x, t->in);
        return;
    }
    double *w = t->w + o * t->taps, first = floor(x) - (double)(t->taps / 2 - 1);
    for (int64_t k = 0; k < t->taps; k++) {
        double pos = first + (double)k;
        at[k] = clamp(pos, t->in);
        w[k] = filter(s, (pos - x) * shrink);
        if (s->exclude_outside && (pos < 0 || pos > (double)(t->in - 1))) w[k] = 0;
        sum += w[k];
    }
    for (int64_t k = 0; k < t->taps; k++) {
        if ((s->antialias || s->exclude_outside) && sum != 0) w[k] /= sum;
        t->wf[o * t->taps + k] = (float)w[k];
    }
}

static size_t round_up(size_t n) {
    return (n + 63) / 64 * 64;
}

static size_t table_bytes(int64_t taps, int64_t out) {
    size_t cells = (size_t)taps * (size_t)out;
    return 2 * round_up(cells * 8) + round_up(cells * 4) + round_up((size_t)out);
}

static void lay_tables(const struct op_ctx *ctx, const struct geometry *g, struct axis *t, char *mem) {
    const struct resize *s = ctx->state;
    for (int a = 0; a < ctx->in[0]->rank; a++) {
        t[a] = (struct axis){.in = ctx->in[0]->dims[a], .out = g->out[a]};
        if (g->same[a]) continue;
        t[a].taps = n_taps(s, g->scale[a]);
        size_t cells = (size_t)t[a].taps * (size_t)t[a].out;
        t[a].at = (int64_t *)mem;
        t[a].w = (double *)(mem + round_up(cells * 8));
        t[a].wf = (float *)(mem + 2 * round_up(cells * 8));
        t[a].outside = (uint8_t *)(mem + 2 * round_up(cells * 8) + round_up(cells * 4));
        for (int64_t o = 0; o < t[a].out; o++) fill_position(s, g, a, &t[a], o);
        mem += table_bytes(t[a].taps, t[a].out);
    }
}

/* From the shapes alone, as scales may be data: out is scale * in rounded down or to the nearest, so that scale is at least
 * (out - 1/2) / in; one more tap a side stands for what single precision loses. */
static size_t scratch(const struct op_ctx *ctx) {
    const struct op_tensor *x = ctx->in[0], *y = ctx->out[0];
    size_t n = 0;
    if (op_tensor_count(x) <= 0 || op_tensor_count(y) <= 0) return 0;
    for (int a = 0; a < x->rank; a++)
        n += table_bytes(n_taps(ctx->state, ((double)y->dims[a] - 0.5) / (double)x->dims[a]) + 2, y->dims[a]);
    return n;
}

/* --- computing --------------------------------------------------------------------------------- */

struct job {
    const struct op_ctx *ctx;
    const struct resize *s;
    int rank, lead; /* lead: axes before the last two; tasks run over their output positions */
    struct axis axis[OP_RANK_MAX];
    int64_t in_step[OP_RANK_MAX];
};

static bool outside(const struct axis *t, int64_t o) {
    return t->taps && t->outside[o];
}
static int64_t source(const struct axis *t, int64_t o) {
    return t->taps ? t->at[o] : o;
}

/* Splits a task into output positions of the leading axes; false if one of them lies outside the crop. */
static bool lead_position(const struct job *job, int64_t task, int64_t *pos) {
    bool in = true;
    for (int a = job->lead - 1; a >= 0; a--) {
        pos[a] = task % job->axis[a].out;
        task /= job->axis[a].out;
        in = in && !outside(&job->axis[a], pos[a]);
    }
    return in;
}

static void fill(const struct job *job, int64_t dst, int64_t n) {
    for (int64_t i = 0; i < n; i++) nn_store(job->ctx->out[0], dst + i, job->s->extrapolation);
}

#define COPY_ROW(T)                                                                                \
    for (int64_t x = 0; x < n; x++) ((T *)dst)[x] = ((const T *)src)[at[x]]

static void copy_row(char *dst, const char *src, const int64_t *at, int64_t n, size_t size) {
    switch (size) {
    case 1: COPY_ROW(uint8_t); break;
    case 2: COPY_ROW(uint16_t); break;
    case 4: COPY_ROW(uint32_t); break;
    case 8: COPY_ROW(uint64_t); break;
    default:
        for (int64_t x = 0; x < n; x++) memcpy(dst + (size_t)x * size, src + (size_t)at[x] * size, size);
    }
}

static void nearest_plane(void *arg, int64_t task) {
    const struct job *job = arg;
    const struct axis *h = &job->axis[job->rank - 2], *w = &job->axis[job->rank - 1];
    size_t size = op_type_size(job->ctx->in[0]->dtype);
    int64_t pos[OP_RANK_MAX], base = 0, plane = h->out * w->out, last = -1;
    if (!lead_position(job, task, pos)) {
        fill(job, task * plane, plane);
        return;
    }
    for (int a = 0; a < job->lead; a++) base += source(&job->axis[a], pos[a]) * job->in_step[a];
    const char *src = (const char *)job->ctx->in[0]->data + (size_t)base * size;
    char *dst = (char *)job->ctx->out[0]->data + (size_t)(task * plane) * size;
    for (int64_t y = 0; y < h->out; y++, dst += (size_t)w->out * size) {
        int64_t row = source(h, y);
        if (outside(h, y)) {
            fill(job, task * plane + y * w->out, w->out);
            last = -1;
            continue;
        }
        if (row == last) {
            memcpy(dst, dst - (size_t)w->out * size, (size_t)w->out * size);
            continue;
        }
        last = row;
        const char *from = src + (size_t)(row * w->in) * size;
        if (!w->taps) memcpy(dst, from, (size_t)w->out * size);
        else copy_row(dst, from, w->at, w->out, size);
        if (w->taps && job->s->coordinate == CROP)
            for (int64_t x = 0; x < w->out; x++)
                if (w->outside[x]) fill(job, task * plane + y * w->out + x, 1);
    }
}

#define ROW_MAX 4096 /* floats of the row buffer on the stack */

static void blend_rows(const struct k_vmath *math, float *dst, const float *src, const struct axis *h, int64_t y, int64_t width) {
    if (!h->taps) {
        memcpy(dst, src + y * width, (size_t)width * sizeof *dst);
        return;
    }
    const int64_t *at = h->at + y * h->taps;
    const float *w = h->wf + y * h->taps;
    math->unary[K_LINEAR](width, src + at[0] * width, dst, w[0], 0);
    for (int64_t k = 1; k < h->taps; k++) math->axpy(width, w[k], src + at[k] * width, dst);
}

static void resample_row(float *dst, const float *row, const struct axis *w) {
    const int64_t *at = w->at;
    const float *wt = w->wf;
    if (!w->taps) memcpy(dst, row, (size_t)w->out * sizeof *dst);
    else if (w->taps == 2)
        for (int64_t x = 0; x < w->out; x++) dst[x] = wt[2 * x] * row[at[2 * x]] + wt[2 * x + 1] * row[at[2 * x + 1]];
    else
        for (int64_t x = 0; x < w->out; x++, at += w->taps, wt += w->taps) {
            float sum = 0;
            for (int64_t k = 0; k < w->taps; k++) sum += wt[k] * row[at[k]];
            dst[x] = sum;
        }
}

static void blend_plane(void *arg, int64_t task) {
    const struct job *job = arg;
    const struct axis *h = &job->axis[job->rank - 2], *w = &job->axis[job->rank - 1];
    const float *src = (const float *)job->ctx->in[0]->data + task * h->in * w->in;
    float *dst = (float *)job->ctx->out[0]->data + task * h->out * w->out, row[ROW_MAX];
    for (int64_t y = 0; y < h->out; y++, dst += w->out) {
        if (outside(h, y)) {
            fill(job, (task * h->out + y) * w->out, w->out);
            continue;
        }
        blend_rows(op__kern(job->ctx)->math, row, src, h, y, w->in);
        resample_row(dst, row, w);
        if (w->taps && job->s->coordinate == CROP)
            for (int64_t x = 0; x < w->out; x++)
                if (w->outside[x]) dst[x] = (float)job->s->extrapolation;
    }
}

static double interpolate(const struct job *job, const int64_t *pos) {
    int64_t taps[OP_RANK_MAX], tap[OP_RANK_MAX] = {0};
    double sum = 0;
    for (int a = 0; a < job->rank; a++) {
        if (outside(&job->axis[a], pos[a])) return job->s->extrapolation;
        taps[a] = job->axis[a].taps ? job->axis[a].taps : 1;
    }
    do {
        double w = 1;
        int64_t at = 0;
        for (int a = 0; a < job->rank; a++) {
            const struct axis *t = &job->axis[a];
            int64_t cell = pos[a] * t->taps + tap[a];
            at += (t->taps ? t->at[cell] : pos[a]) * job->in_step[a];
            if (t->taps) w *= t->w[cell];
        }
        if (w != 0) sum += w * nn_load(job->ctx->in[0], at);
    } while (nn_next(tap, taps, job->rank));
    return sum;
}

static void interpolate_plane(void *arg, int64_t task) {
    const struct job *job = arg;
    int64_t pos[OP_RANK_MAX], low = job->axis[job->rank - 2].out, row = job->axis[job->rank - 1].out;
    lead_position(job, task, pos);
    for (int64_t y = 0; y < low; y++)
        for (int64_t x = 0; x < row; x++) {
            pos[job->rank - 2] = y;
            pos[job->rank - 1] = x;
            nn_store(job->ctx->out[0], (task * low + y) * row + x, interpolate(job, pos));
        }
}

static enum op_status run_with(struct op_ctx *ctx, bool fast) {
    struct job job = {.ctx = ctx, .s = ctx->state};
    struct geometry g;
    enum op_status st = resolve(ctx, &g);
    const struct op_tensor *x = ctx->in[0];
    if (st != OP_OK) return st;
    if (!op_tensor_count(ctx->out[0])) return OP_OK;
    if (!op_tensor_count(x)) return op__fail(ctx, OP_BAD_SHAPE, "the input is empty and the output is not");
    lay_tables(ctx, &g, job.axis, ctx->scratch);
    job.rank = x->rank;
    while (job.rank < 2) job.axis[job.rank++] = (struct axis){.in = 1, .out = 1}; /* seen as a column: [n, 1] */
    job.lead = job.rank - 2;
    int64_t step = 1, tasks = 1;
    for (int a = job.rank - 1; a >= 0; a--) {
        job.in_step[a] = step;
        step *= job.axis[a].in;
    }
    bool last_two = fast && x->dtype == OP_F32 && job.axis[job.rank - 1].in <= ROW_MAX;
    for (int a = 0; a < job.lead; a++) {
        tasks *= job.axis[a].out;
        last_two = last_two && !job.axis[a].taps;
    }
    op__parallel(ctx, tasks, job.s->mode == NEAREST ? nearest_plane : last_two ? blend_plane : interpolate_plane, &job);
    return OP_OK;
}

static enum op_status run(struct op_ctx *ctx) {
    return run_with(ctx, true);
}
static enum op_status ref(struct op_ctx *ctx) {
    return run_with(ctx, false);
}

static void cost(const struct op_ctx *ctx, double *flops, double *bytes) {
    const struct resize *s = ctx->state;
    struct geometry g;
    if (resolve(ctx, &g) != OP_OK) return;
    double n = 1, in = 1;
    for (int a = 0; a < ctx->in[0]->rank; a++) {
        n *= (double)g.out[a];
        in *= (double)ctx->in[0]->dims[a];
    }
    *flops = s->mode == NEAREST ? 0 : s->mode == LINEAR ? 6 * n : 14 * n;
    *bytes = (n + in) * (double)op_type_size(ctx->in[0]->dtype);
}

#define RESIZE(id, op_name, op_since, op_until, n_in_min, n_in_max, op_prepare)                    \
    static const struct op_desc id = {                                                             \
        .name = op_name,                                                                           \
        .domain = "",                                                                              \
        .since = op_since,                                                                         \
        .until = op_until,                                                                         \
        .in_min = n_in_min,                                                                        \
        .in_max = n_in_max,                                                                        \
        .out_min = 1,                                                                              \
        .out_max = 1,                                                                              \
        .prepare = op_prepare,                                                                     \
        .release = free,                                                                           \
        .infer = infer,                                                                            \
        .scratch = scratch,                                                                        \
        .run = run,                                                                                \
        .ref = ref,                                                                                \
        .cost = cost,                                                                              \
    };                                                                                             \
    OP_REGISTER(id)

RESIZE(upsample_7, "Upsample", 7, 8, 1, 1, prepare_upsample_7);
RESIZE(upsample_9, "Upsample", 9, 0, 2, 2, prepare_first);
RESIZE(resize_10, "Resize", 10, 10, 2, 2, prepare_first);
RESIZE(resize, "Resize", 11, 0, 1, 4, prepare);
