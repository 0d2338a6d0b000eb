/* resample_cv.c: OpenCV's linear, area and cubic resize, within one level of its 8-bit results.
 *
 * linear and cubic have two and four taps whatever the shrink, so they alias; that is what models
 * trained behind OpenCV have seen. Borders repeat. area averages the covered input, with parts of
 * pixels at the edges, where both sides shrink; where one grows it is a linear interpolation whose
 * weights keep whole source pixels flat. linear at exactly half the size is area, as in OpenCV.
 * OpenCV works in 11 bits of fraction; here the weights are floats and the sums are rounded once.
 */
#include "worker/pipeline/image.h"

#include <math.h>

static void cubic_taps(float t, float *k) {
    const float a = -0.75f;
    k[0] = ((a * (t + 1) - 5 * a) * (t + 1) + 8 * a) * (t + 1) - 4 * a;
    k[1] = ((a + 2) * t - (a + 3)) * t * t + 1;
    k[2] = ((a + 2) * (1 - t) - (a + 3)) * (1 - t) * (1 - t) + 1;
    k[3] = 1 - k[0] - k[1] - k[2];
}

/* Where output i falls between the inputs floor and floor + 1, and how far, for the filters of
 * fixed taps. */
static int32_t fixed_place(enum w_filter filter, int32_t i, double inverse, float *t) {
    const double scale =
        1 / inverse; /* as OpenCV has it: at whole quotients its rounding decides for area */
    if (filter == W_CV_AREA) {
        int32_t at = (int32_t)floor(i * scale);
        *t = (float)((i + 1) - (at + 1) * inverse);
        *t = *t <= 0 ? 0 : *t - floorf(*t);
        return at;
    }
    float x = (float)((i + 0.5) * scale - 0.5);
    int32_t at = (int32_t)floorf(x);
    *t = x - (float)at;
    return at;
}

static int32_t clamp(int32_t v, int32_t max) {
    return v < 0 ? 0 : v > max ? max : v;
}

/* Taps beyond the border count for the border's own pixel: the weights are gathered on the clamped
 * positions. */
static void axis_fixed(enum w_filter filter, int32_t in_size, int32_t out_size,
                       struct w_axis *axis) {
    const double inverse = (double)out_size / in_size;
    for (int32_t i = 0; i < out_size; i++) {
        float t, k[4];
        const int32_t at = fixed_place(filter, i, inverse, &t), n = filter == W_CV_CUBIC ? 4 : 2,
                      from = filter == W_CV_CUBIC ? at - 1 : at;
        if (n == 4)
            cubic_taps(t, k);
        else
            k[0] = 1 - t, k[1] = t;
        const int32_t first = clamp(from, in_size - 1);
        float *dst = axis->kf + (size_t)i * (size_t)axis->taps;
        for (int32_t j = 0; j < axis->taps; j++) dst[j] = 0;
        axis->n[i] = 1;
        for (int32_t j = 0; j < n; j++) {
            int32_t slot = clamp(from + j, in_size - 1) - first;
            dst[slot] += k[j];
            if (slot + 1 > axis->n[i]) axis->n[i] = slot + 1;
        }
        axis->first[i] = first;
    }
}

static void axis_area(int32_t in_size, int32_t out_size, struct w_axis *axis) {
    const double scale = (double)in_size / out_size;
    for (int32_t i = 0; i < out_size; i++) {
        const double from = i * scale, to = from + scale, cell = fmin(scale, in_size - from);
        int32_t low = (int32_t)floor(from + 1e-9), high = (int32_t)ceil(to - 1e-9);
        if (high > in_size) high = in_size;
        if (low > high - 1) low = high - 1;
        float *k = axis->kf + (size_t)i * (size_t)axis->taps;
        for (int32_t x = low; x < high; x++)
            k[x - low] = (float)((fmin(x + 1, to) - fmax(x, from)) / cell);
        axis->first[i] = low;
        axis->n[i] = high - low;
    }
}

static bool axis_make(struct w_arena *a, enum w_filter filter, bool shrink, int32_t in_size,
                      int32_t out_size, struct w_axis *axis, struct w_error *err) {
    axis->taps = filter == W_CV_AREA && shrink ? in_size / out_size + 3 : 4;
    axis->first = w_arena_array(a, (size_t)out_size, sizeof *axis->first);
    axis->n = w_arena_array(a, (size_t)out_size, sizeof *axis->n);
    axis->kf = w_arena_array(a, (size_t)out_size, (size_t)axis->taps * sizeof *axis->kf);
    if (!axis->first || !axis->n || !axis->kf)
        return w_fail(err, W_NO_MEMORY, "no memory for the weights of a resize to %d", out_size);
    if (filter == W_CV_AREA && shrink)
        axis_area(in_size, out_size, axis);
    else
        axis_fixed(filter, in_size, out_size, axis);
    return true;
}

/* One input row through the horizontal axis. */
static void across(float *dst, const struct w_image *src, int32_t row, int32_t w,
                   const struct w_axis *axis) {
    const int32_t c = src->channels;
    const uint8_t *pixels = src->pixels + (size_t)row * (size_t)src->w * (size_t)c;
    for (int32_t i = 0; i < w; i++) {
        const float *k = axis->kf + (size_t)i * (size_t)axis->taps;
        const uint8_t *s = pixels + (size_t)axis->first[i] * (size_t)c;
        for (int32_t ch = 0; ch < c; ch++) {
            float sum = 0;
            for (int32_t j = 0; j < axis->n[i]; j++) sum += k[j] * s[j * c + ch];
            *dst++ = sum;
        }
    }
}

static void add_row(float *restrict sums, const float *restrict row, float k, size_t n) {
    for (size_t i = 0; i < n; i++) sums[i] += k * row[i];
}

bool w__resize_cv(struct w_arena *a, const struct w_image *src, enum w_filter filter,
                  struct w_image *dst, struct w_error *err) {
    if (filter == W_CV_LINEAR && src->w == 2 * dst->w && src->h == 2 * dst->h) filter = W_CV_AREA;
    const bool shrink = src->w >= dst->w && src->h >= dst->h;
    struct w_axis x, y;
    if (!axis_make(a, filter, shrink, src->w, dst->w, &x, err) ||
        !axis_make(a, filter, shrink, src->h, dst->h, &y, err))
        return false;
    const size_t n = (size_t)dst->w * (size_t)dst->channels;
    /* A ring of the rows that one output row looks at, each made once. */
    const int32_t ring = y.taps;
    float *rows = w_arena_array(a, (size_t)ring * n, sizeof *rows),
          *sums = w_arena_array(a, n, sizeof *sums);
    int32_t made = -1; /* rows up to this one are in the ring */
    if (!rows || !sums)
        return w_fail(err, W_NO_MEMORY, "no memory for %d rows of %d pixels", ring, dst->w);
    for (int32_t j = 0; j < dst->h; j++) {
        for (size_t i = 0; i < n; i++) sums[i] = 0;
        if (made < y.first[j] - 1) made = y.first[j] - 1;
        for (int32_t t = 0; t < y.n[j]; t++) {
            const int32_t row = y.first[j] + t;
            float *line = rows + (size_t)(row % ring) * n;
            if (row > made) across(line, src, row, dst->w, &x), made = row;
            add_row(sums, line, y.kf[(size_t)j * (size_t)y.taps + (size_t)t], n);
        }
        uint8_t *d = dst->pixels + (size_t)j * n;
        for (size_t i = 0; i < n; i++) {
            int32_t v = (int32_t)lrintf(sums[i]);
            d[i] = (uint8_t)(v < 0 ? 0 : v > 255 ? 255 : v);
        }
    }
    return true;
}
