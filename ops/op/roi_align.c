/* roi_align.c: RoiAlign and MaxRoiPool: pooling over regions that are data.
 *
 * RoiAlign divides a region into bins and samples each at a grid of points by bilinear interpolation; "avg" averages the
 * samples, "max" takes the largest weighted corner of all samples (the definition of the reference implementations).
 * A sample's places and weights do not depend on the channel, so channels are the inner loop, 64 at a time. A region is a
 * task. The grid of a bin follows the region's size, which is data: it is limited to 1024 a side. */
#include "ops/op/nn.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define GRID_MAX 1024
#define CHANNELS 64

struct roi_align {
    int64_t height, width, sampling;
    double scale;
    bool max, half_pixel;
};

static enum op_status upgrade(struct op_graph *g, struct op_node *n, int opset, struct op_error *err) {
    (void)err;
    return opset < 16 ? op__attr_set_string(g, n, "coordinate_transformation_mode", "output_half_pixel") : OP_OK;
}

static enum op_status prepare(struct op_prepare *p) {
    struct roi_align *s = calloc(1, sizeof *s);
    if (!s) return op__node_fail(p->err, p->node, OP_NOMEM, "out of memory");
    p->node->state = s;
    s->height = op__attr_int(p->node, "output_height", 1);
    s->width = op__attr_int(p->node, "output_width", 1);
    s->sampling = op__attr_int(p->node, "sampling_ratio", 0);
    s->scale = (double)op__attr_float(p->node, "spatial_scale", 1);
    const char *mode = op__attr_string(p->node, "mode", "avg");
    const char *coordinates = op__attr_string(p->node, "coordinate_transformation_mode", "half_pixel");
    s->max = !strcmp(mode, "max");
    s->half_pixel = !strcmp(coordinates, "half_pixel");
    if (!s->max && strcmp(mode, "avg")) return op__node_fail(p->err, p->node, OP_BAD_VALUE, "mode is \"%s\", expected avg or max", mode);
    if (!s->half_pixel && strcmp(coordinates, "output_half_pixel"))
        return op__node_fail(p->err, p->node, OP_BAD_VALUE, "coordinate_transformation_mode is \"%s\", expected half_pixel or output_half_pixel",
                             coordinates);
    if (s->height < 1 || s->width < 1 || s->height > NN_ATTR_MAX || s->width > NN_ATTR_MAX)
        return op__node_fail(p->err, p->node, OP_BAD_VALUE, "the output is %lld x %lld, expected 1 or more", (long long)s->height, (long long)s->width);
    if (s->sampling < 0 || s->sampling > GRID_MAX)
        return op__node_fail(p->err, p->node, OP_BAD_VALUE, "sampling_ratio is %lld, expected 0 to %d", (long long)s->sampling, GRID_MAX);
    return OP_OK;
}

static enum op_status infer(struct op_ctx *ctx) {
    const struct roi_align *s = ctx->state;
    enum op_status st = op__nn_float(ctx, 0, "X");
    if (st != OP_OK) return st;
    enum op_type t = ctx->in[0]->dtype;
    if ((st = op__nn_like(ctx, 0, "X", t, 4)) != OP_OK || (st = op__nn_like(ctx, 1, "rois", t, 2)) != OP_OK ||
        (st = op__nn_like(ctx, 2, "batch_indices", OP_I64, 1)) != OP_OK)
        return st;
    int64_t n = ctx->in[1]->dims[0];
    if ((st = op__nn_shape(ctx, 1, "rois", 2, (int64_t[]){n, 4})) != OP_OK || (st = op__nn_shape(ctx, 2, "batch_indices", 1, &n)) != OP_OK) return st;
    op__set(ctx, 0, t, 4, (int64_t[]){n, ctx->in[0]->dims[1], s->height, s->width});
    return OP_OK;
}

/* The four elements around a point and their weights; false where the point lies outside. */
static bool corners(double y, double x, int64_t height, int64_t width, int64_t *at, double *w) {
    if (!(y >= -1) || y > (double)height || !(x >= -1) || x > (double)width) return false;
    if (y < 0) y = 0;
    if (x < 0) x = 0;
    int64_t y0 = (int64_t)y, x0 = (int64_t)x;
    if (y0 >= height - 1) {
        y0 = height - 1;
        y = (double)y0;
    }
    if (x0 >= width - 1) {
        x0 = width - 1;
        x = (double)x0;
    }
    int64_t y1 = y0 < height - 1 ? y0 + 1 : y0, x1 = x0 < width - 1 ? x0 + 1 : x0;
    double ly = y - (double)y0, lx = x - (double)x0;
    memcpy(at, (int64_t[]){y0 * width + x0, y0 * width + x1, y1 * width + x0, y1 * width + x1}, 4 * sizeof *at);
    memcpy(w, (double[]){(1 - ly) * (1 - lx), (1 - ly) * lx, ly * (1 - lx), ly * lx}, 4 * sizeof *w);
    return true;
}

struct region {
    double y, x, bin_height, bin_width;
    int64_t image, rows, columns; /* the grid of a bin */
};

static enum op_status read_region(const struct op_ctx *ctx, int64_t r, struct region *dst) {
    const struct roi_align *s = ctx->state;
    double shift = s->half_pixel ? 0.5 : 0, v[4];
    for (int i = 0; i < 4; i++) v[i] = nn_load(ctx->in[1], 4 * r + i) * s->scale - shift;
    double width = v[2] - v[0], height = v[3] - v[1];
    if (!s->half_pixel) {
        width = width > 1 ? width : 1;
        height = height > 1 ? height : 1;
    }
    dst->x = v[0];
    dst->y = v[1];
    dst->bin_height = height / (double)s->height;
    dst->bin_width = width / (double)s->width;
    dst->image = ((const int64_t *)ctx->in[2]->data)[r];
    if (dst->image < 0 || dst->image >= ctx->in[0]->dims[0])
        return op__fail(ctx, OP_BAD_VALUE, "batch_indices[%lld] is %lld, the batch has %lld", (long long)r, (long long)dst->image,
                        (long long)ctx->in[0]->dims[0]);
    double rows = s->sampling ? (double)s->sampling : ceil(dst->bin_height), columns = s->sampling ? (double)s->sampling : ceil(dst->bin_width);
    if (!(rows <= GRID_MAX) || !(columns <= GRID_MAX))
        return op__fail(ctx, OP_LIMIT, "rois[%lld] takes %g x %g samples a bin, the limit is %d", (long long)r, rows, columns, GRID_MAX);
    dst->rows = rows > 0 ? (int64_t)rows : 0;
    dst->columns = columns > 0 ? (int64_t)columns : 0;
    return OP_OK;
}

/* One bin of n channels from `channel` on. */
static void bin(const struct op_ctx *ctx, const struct region *g, int64_t ph, int64_t pw, int64_t channel, int64_t n, double *acc) {
    const struct roi_align *s = ctx->state;
    const struct op_tensor *x = ctx->in[0];
    int64_t height = x->dims[2], width = x->dims[3], plane = height * width, at[4], base = (g->image * x->dims[1] + channel) * plane;
    double w[4], count = (double)(g->rows * g->columns);
    bool first = true;
    for (int64_t c = 0; c < n; c++) acc[c] = 0;
    for (int64_t iy = 0; iy < g->rows; iy++)
        for (int64_t ix = 0; ix < g->columns; ix++) {
            double py = g->y + ((double)ph + ((double)iy + 0.5) / (double)g->rows) * g->bin_height;
            double px = g->x + ((double)pw + ((double)ix + 0.5) / (double)g->columns) * g->bin_width;
            bool inside = corners(py, px, height, width, at, w);
            if (!inside && !s->max) continue;
            for (int64_t c = 0; c < n; c++) {
                double v[4] = {0};
                for (int k = 0; inside && k < 4; k++) v[k] = w[k] * nn_load(x, base + c * plane + at[k]);
                if (s->max) {
                    double most = fmax(fmax(v[0], v[1]), fmax(v[2], v[3]));
                    acc[c] = first || most > acc[c] ? most : acc[c];
                } else acc[c] += v[0] + v[1] + v[2] + v[3];
            }
            first = false;
        }
    if (!s->max)
        for (int64_t c = 0; c < n; c++) acc[c] = count > 0 ? acc[c] / count : 0;
}

static void region_task(void *arg, int64_t r) {
    const struct op_ctx *ctx = arg;
    const struct roi_align *s = ctx->state;
    struct region g;
    double acc[CHANNELS];
    int64_t channels = ctx->in[0]->dims[1];
    if (read_region(ctx, r, &g) != OP_OK) return; /* checked before */
    for (int64_t channel = 0; channel < channels; channel += CHANNELS) {
        int64_t n = channels - channel < CHANNELS ? channels - channel : CHANNELS;
        for (int64_t ph = 0; ph < s->height; ph++)
            for (int64_t pw = 0; pw < s->width; pw++) {
                bin(ctx, &g, ph, pw, channel, n, acc);
                for (int64_t c = 0; c < n; c++)
                    nn_store(ctx->out[0], ((r * channels + channel + c) * s->height + ph) * s->width + pw, acc[c]);
            }
    }
}

static enum op_status run(struct op_ctx *ctx) {
    struct region g;
    if (!op_tensor_count(ctx->out[0])) return OP_OK;
    for (int64_t r = 0; r < ctx->in[1]->dims[0]; r++) {
        enum op_status st = read_region(ctx, r, &g);
        if (st != OP_OK) return st;
    }
    if (!op_tensor_count(ctx->in[0])) return op__fail(ctx, OP_BAD_SHAPE, "input 0 (X) is empty: there is nothing to pool");
    op__parallel(ctx, ctx->in[1]->dims[0], region_task, ctx);
    return OP_OK;
}

static const struct op_desc roi_align = {
    .name = "RoiAlign",
    .domain = "",
    .since = 10,
    .in_min = 3,
    .in_max = 3,
    .out_min = 1,
    .out_max = 1,
    .upgrade = upgrade,
    .prepare = prepare,
    .release = free,
    .infer = infer,
    .run = run,
};
OP_REGISTER(roi_align);

/* --- MaxRoiPool -------------------------------------------------------------------------------- */

static enum op_status pool_infer(struct op_ctx *ctx) {
    enum op_status st = op__nn_float(ctx, 0, "X");
    int64_t n;
    const int64_t *shape = op__attr_ints(ctx->node, "pooled_shape", &n);
    if (st != OP_OK) return st;
    if (!shape || n != 2 || shape[0] < 1 || shape[1] < 1 || shape[0] > NN_ATTR_MAX || shape[1] > NN_ATTR_MAX)
        return op__fail(ctx, OP_BAD_VALUE, "pooled_shape is absent or not two numbers from 1 on");
    enum op_type t = ctx->in[0]->dtype;
    if ((st = op__nn_like(ctx, 0, "X", t, 4)) != OP_OK || (st = op__nn_like(ctx, 1, "rois", t, 2)) != OP_OK) return st;
    int64_t regions = ctx->in[1]->dims[0];
    if ((st = op__nn_shape(ctx, 1, "rois", 2, (int64_t[]){regions, 5})) != OP_OK) return st;
    op__set(ctx, 0, t, 4, (int64_t[]){regions, ctx->in[0]->dims[1], shape[0], shape[1]});
    return OP_OK;
}

/* Bin i of n over [start, start + size), inside [0, limit). */
static void pool_bin(double start, double size, int64_t i, int64_t n, int64_t limit, int64_t *lo, int64_t *hi) {
    double a = floor((double)i * size / (double)n) + start, b = ceil((double)(i + 1) * size / (double)n) + start;
    *lo = a > 0 ? a < (double)limit ? (int64_t)a : limit : 0;
    *hi = b > 0 ? b < (double)limit ? (int64_t)b : limit : 0;
}

static enum op_status pool_run(struct op_ctx *ctx) {
    const struct op_tensor *x = ctx->in[0], *y = ctx->out[0];
    double scale = (double)op__attr_float(ctx->node, "spatial_scale", 1);
    int64_t dst = 0, height = x->dims[2], width = x->dims[3];
    if (!op_tensor_count(y)) return OP_OK;
    for (int64_t r = 0; r < y->dims[0]; r++) {
        double v[5];
        for (int i = 0; i < 5; i++) v[i] = i ? round(nn_load(ctx->in[1], 5 * r + i) * scale) : nn_load(ctx->in[1], 5 * r);
        if (!(v[0] >= 0) || v[0] >= (double)x->dims[0])
            return op__fail(ctx, OP_BAD_VALUE, "rois[%lld] is of image %g, the batch has %lld", (long long)r, v[0], (long long)x->dims[0]);
        double h = fmax(v[4] - v[2] + 1, 1), w = fmax(v[3] - v[1] + 1, 1);
        for (int64_t c = 0; c < x->dims[1]; c++)
            for (int64_t ph = 0; ph < y->dims[2]; ph++)
                for (int64_t pw = 0; pw < y->dims[3]; pw++, dst++) {
                    int64_t y0, y1, x0, x1;
                    pool_bin(v[2], h, ph, y->dims[2], height, &y0, &y1);
                    pool_bin(v[1], w, pw, y->dims[3], width, &x0, &x1);
                    double most = y1 > y0 && x1 > x0 ? -INFINITY : 0; /* an empty bin is 0 */
                    for (int64_t i = y0; i < y1; i++)
                        for (int64_t j = x0; j < x1; j++)
                            most = fmax(most, nn_load(x, (((int64_t)v[0] * x->dims[1] + c) * height + i) * width + j));
                    nn_store(y, dst, most);
                }
    }
    return OP_OK;
}

static const struct op_desc max_roi_pool = {
    .name = "MaxRoiPool",
    .domain = "",
    .since = 1,
    .in_min = 2,
    .in_max = 2,
    .out_min = 1,
    .out_max = 1,
    .infer = pool_infer,
    .run = pool_run,
};
OP_REGISTER(max_roi_pool);
