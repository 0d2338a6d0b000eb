/* resample.c: Pillow's resize, bit for bit.
 *
 * Each axis has a table of weights: output i looks at the inputs within the filter's support around
 * its centre, (i + 0.5)·scale, where the support grows with the shrink (so that shrinking
 * averages), and the weights of an output sum to 1. They are worked out in doubles, rounded to 22
 * bits of fraction, and applied to 8-bit samples with 32-bit sums that start at one half. The
 * horizontal pass comes first and its result is rounded to 8 bits; only the rows that the vertical
 * pass will look at are made. A pass whose size does not change is left out. NEAREST is an affine
 * lookup with the coordinate added up step by step, as the sum's rounding decides which pixel is
 * taken. Derived from reading what Pillow (HPND licence) computes; the code is ours. */
#include "worker/pipeline/image.h"

#include <math.h>
#include <string.h>

enum { FRACTION_BITS = 32 - 8 - 2, TAPS_MAX = 1 << 20 };

static double box_filter(double x) {
    return x > -0.5 && x <= 0.5 ? 1.0 : 0.0;
}

static double triangle(double x) {
    x = fabs(x);
    return x < 1.0 ? 1.0 - x : 0.0;
}

static double cubic(double x) {
    const double a = -0.5;
    x = fabs(x);
    if (x < 1.0) return ((a + 2.0) * x - (a + 3.0)) * x * x + 1;
    if (x < 2.0) return (((x - 5) * x + 8) * x - 4) * a;
    return 0.0;
}

static double sinc(double x) {
    if (x == 0.0) return 1.0;
    x *= M_PI;
    return sin(x) / x;
}

static double lanczos(double x) {
    return x >= -3.0 && x < 3.0 ? sinc(x) * sinc(x / 3) : 0.0;
}

static const struct {
    double (*weight)(double x);
    double support;
} filters[] = {[W_PIL_BOX] = {box_filter, 0.5},
               [W_PIL_BILINEAR] = {triangle, 1},
               [W_PIL_BICUBIC] = {cubic, 2},
               [W_PIL_LANCZOS] = {lanczos, 3}};

/* The weights from [in0, in1) of in_size samples to out_size. */
static bool axis_make(struct w_arena *a, enum w_filter filter, int32_t in_size, float in0,
                      float in1, int32_t out_size, struct w_axis *axis, struct w_error *err) {
    const double scale = (double)(in1 - in0) / out_size, filter_scale = scale < 1.0 ? 1.0 : scale;
    const double support = filters[filter].support * filter_scale, inverse = 1.0 / filter_scale;
    axis->taps = (int32_t)ceil(support) * 2 + 1;
    axis->first = w_arena_array(a, (size_t)out_size, sizeof *axis->first);
    axis->n = w_arena_array(a, (size_t)out_size, sizeof *axis->n);
    axis->k = axis->taps < TAPS_MAX
                  ? w_arena_array(a, (size_t)out_size, (size_t)axis->taps * sizeof *axis->k)
                  : NULL;
    double *w = w_arena_array(a, (size_t)axis->taps, sizeof *w);
    if (!axis->first || !axis->n || !axis->k || !w)
        return w_fail(err, W_NO_MEMORY, "no memory for the weights of a resize to %d", out_size);
    for (int32_t i = 0; i < out_size; i++) {
        const double centre = in0 + (i + 0.5) * scale;
        double sum = 0;
        int32_t low = (int32_t)(centre - support + 0.5), high = (int32_t)(centre + support + 0.5);
        if (low < 0) low = 0;
        if (high > in_size) high = in_size;
        for (int32_t x = low; x < high; x++)
            sum += w[x - low] = filters[filter].weight((x - centre + 0.5) * inverse);
        int32_t *k = axis->k + (size_t)i * (size_t)axis->taps;
        for (int32_t j = 0; j < high - low; j++) {
            double v = sum != 0.0 ? w[j] / sum : w[j];
            k[j] = (int32_t)((v < 0 ? -0.5 : 0.5) + v * (1 << FRACTION_BITS));
        }
        axis->first[i] = low;
        axis->n[i] = high - low;
    }
    return true;
}

static const struct w_resample *level(void) {
#if defined(__x86_64__)
    const char *isa = op_isa();
    if (isa && strcmp(isa, "generic")) return &w__resample_avx2;
#endif
    return &w__resample_generic;
}

static bool nearest(struct w_arena *a, const struct w_image *src, const float *box,
                    struct w_image *dst, struct w_error *err) {
    const double step_x = (double)(box[2] - box[0]) / dst->w,
                 step_y = (double)(box[3] - box[1]) / dst->h;
    int32_t *at = w_arena_array(a, (size_t)dst->w, sizeof *at);
    if (!at) return w_fail(err, W_NO_MEMORY, "no memory for a row of %d pixels", dst->w);
    double x = box[0] + step_x * 0.5, y = box[1] + step_y * 0.5;
    for (int32_t i = 0; i < dst->w; i++, x += step_x)
        at[i] = x < 0 ? -1 : (int32_t)x < src->w ? (int32_t)x : -1;
    const size_t c = (size_t)src->channels;
    uint8_t *d = dst->pixels;
    for (int32_t j = 0; j < dst->h; j++, y += step_y) {
        int32_t row = y < 0 ? -1 : (int32_t)y < src->h ? (int32_t)y : -1;
        const uint8_t *s = src->pixels + (size_t)(row < 0 ? 0 : row) * (size_t)src->w * c;
        for (int32_t i = 0; i < dst->w; i++, d += c) {
            if (row < 0 || at[i] < 0)
                memset(d, 0, c);
            else if (c == 3)
                d[0] = s[3 * at[i]], d[1] = s[3 * at[i] + 1], d[2] = s[3 * at[i] + 2];
            else
                d[0] = s[at[i]];
        }
    }
    return true;
}

static bool resample(struct w_arena *a, const struct w_image *src, enum w_filter filter,
                     const float *box, struct w_image *dst, struct w_error *err) {
    const bool across = dst->w != src->w || box[0] != 0 || box[2] != (float)dst->w,
               down = dst->h != src->h || box[1] != 0 || box[3] != (float)dst->h;
    const struct w_resample *r = level();
    const size_t c = (size_t)src->channels;
    struct w_axis x_axis, y_axis;
    if (!across && !down)
        return memcpy(dst->pixels, src->pixels, (size_t)src->w * (size_t)src->h * c), true;
    if (!axis_make(a, filter, src->w, box[0], box[2], dst->w, &x_axis, err) ||
        !axis_make(a, filter, src->h, box[1], box[3], dst->h, &y_axis, err))
        return false;
    const int32_t top = down ? y_axis.first[0] : 0,
                  bottom = down ? y_axis.first[dst->h - 1] + y_axis.n[dst->h - 1] : src->h;
    const uint8_t *rows =
        src->pixels +
        (size_t)top * (size_t)src->w * c; /* rows top … bottom, as the vertical pass sees them */
    if (across) {
        uint8_t *wide =
            down ? w_arena_array(a, (size_t)(bottom - top) * (size_t)dst->w, c) : dst->pixels;
        if (!wide)
            return w_fail(err, W_NO_MEMORY,
                          "no memory for a picture of %d×%d between the passes of a resize", dst->w,
                          bottom - top);
        for (int32_t y = 0; y < bottom - top; y++)
            r->horizontal(wide + (size_t)y * (size_t)dst->w * c, dst->w,
                          rows + (size_t)y * (size_t)src->w * c, src->channels, &x_axis);
        rows = wide;
    }
    const size_t stride = (size_t)dst->w * c;
    for (int32_t y = 0; down && y < dst->h; y++)
        r->vertical(dst->pixels + (size_t)y * stride, stride,
                    rows + (size_t)(y_axis.first[y] - top) * stride, stride,
                    y_axis.k + (size_t)y * (size_t)y_axis.taps, y_axis.n[y]);
    return true;
}

bool w__image_resize(struct w_arena *a, const struct w_image *src, int32_t w, int32_t h,
                     enum w_filter filter, const float *box, struct w_image *dst,
                     struct w_error *err) {
    const float all[4] = {0, 0, (float)src->w, (float)src->h};
    if (!box) box = all;
    if (!(box[0] >= 0 && box[1] >= 0 && box[2] <= (float)src->w && box[3] <= (float)src->h &&
          box[0] < box[2] && box[1] < box[3]))
        return w_fail(err, W_BAD_INPUT, "the box %g,%g,%g,%g is not inside an image of %d×%d",
                      (double)box[0], (double)box[1], (double)box[2], (double)box[3], src->w,
                      src->h);
    if (!w__image_alloc(a, w, h, src->channels, src->color, dst, err)) return false;
    if (filter >= W_CV_LINEAR) return w__resize_cv(a, src, filter, dst, err);
    return filter == W_PIL_NEAREST ? nearest(a, src, box, dst, err)
                                   : resample(a, src, filter, box, dst, err);
}
