/* outer.c: gradients of a convolution's weights over images whose channels come last, as sums of outer products that copy nothing.
 *
 * dw[tap] (channels x oc) = sum over output pixels p of x[pixel that tap meets at p] (channels) times dy[p] (oc). For each tap the
 * pixels of x lie in the image already, so the tile is given pointers to them (padding points to zeros), and dy in order.
 * Few channels would leave the tile's rows empty: then the taps of a pixel are copied side by side, and their products are one.
 *
 * Loops: blocks of pixels small enough that their part of dy and x stays in L2, taps, panels of output channels, tiles of channels. A
 * block starts from what the last one left in dw. An element is one chain over all pixels, whatever the division of the units. */
#include "ops/kern/kern.h"

#include <string.h>

enum { BLOCK_PIXELS = 512, CHANNELS_MIN = 12 };

static int64_t min64(int64_t a, int64_t b) {
    return a < b ? a : b;
}

static int64_t taps_of(const struct k_geometry *g) {
    return g->kernel[0] * g->kernel[1] * g->kernel[2];
}

static int64_t panels_of(const struct k_outer *o, int64_t oc) {
    return (oc + o->nr - 1) / o->nr;
}

int64_t k_outer_units(const struct k_kernels *k, const struct k_outer_job *job) {
    return panels_of(k->outer, job->oc) * (k_few_channels(job->g) ? 1 : taps_of(job->g));
}

size_t k_outer_scratch_bytes(const struct k_geometry *g) {
    const size_t columns = k_few_channels(g) ? (size_t)(BLOCK_PIXELS * taps_of(g) * g->channels) * sizeof(float) : 0;
    return columns + BLOCK_PIXELS * sizeof(const float *);
}

/* Where output pixels [first, first + n) meet the input at kernel position (a0, a1, a2). */
static void point(const struct k_outer_job *job, const int64_t *a, int64_t first, int64_t n, const float **to) {
    const struct k_geometry *g = job->g;
    int64_t ow = first % g->out[2], oh = first / g->out[2] % g->out[1], od = first / g->out[2] / g->out[1] % g->out[0];
    int64_t image = first / g->out[2] / g->out[1] / g->out[0];
    while (n > 0) {
        const int64_t len = min64(n, g->out[2] - ow);
        const int64_t d = od * g->stride[0] - g->begin[0] + a[0] * g->dilation[0], h = oh * g->stride[1] - g->begin[1] + a[1] * g->dilation[1];
        const bool inside = d >= 0 && d < g->in[0] && h >= 0 && h < g->in[1];
        const float *line = job->x + ((image * g->in[0] + d) * g->in[1] + h) * g->in[2] * g->channels;
        int64_t w = ow * g->stride[2] - g->begin[2] + a[2] * g->dilation[2];
        for (int64_t i = 0; i < len; i++, w += g->stride[2]) to[i] = inside && w >= 0 && w < g->in[2] ? line + w * g->channels : job->zeros;
        to += len;
        n -= len;
        ow = 0;
        if (++oh == g->out[1]) oh = 0, od++;
        if (od == g->out[0]) od = 0, image++;
    }
}

/* One tap of `len` neighbouring output pixels, those in [lo, hi) inside the image: a column of `channels` floats of each row. */
static void copy_tap(int64_t len, int64_t lo, int64_t hi, int64_t channels, const float *from, int64_t step, float *to, int64_t width) {
    for (int64_t i = 0; i < lo; i++) memset(to + i * width, 0, (size_t)channels * sizeof *to);
    if (channels == 1)
        for (int64_t i = lo; i < hi; i++) to[i * width] = from[i * step];
    else
        for (int64_t i = lo; i < hi; i++)
            for (int64_t c = 0; c < channels; c++) to[i * width + c] = from[i * step + c];
    for (int64_t i = hi; i < len; i++) memset(to + i * width, 0, (size_t)channels * sizeof *to);
}

bool k_few_channels(const struct k_geometry *g) {
    return g->channels < CHANNELS_MIN && taps_of(g) > 1 && g->in[0] == 1 && g->kernel[0] == 1;
}

void k_few_columns(const struct k_geometry *g, const float *x, int64_t first, int64_t n, float *columns) {
    const int64_t channels = g->channels, width = taps_of(g) * channels;
    int64_t ow = first % g->out[2], oh = first / g->out[2] % g->out[1], image = first / g->out[2] / g->out[1];
    while (n > 0) {
        const int64_t len = min64(n, g->out[2] - ow), step = g->stride[2];
        for (int64_t a = 0; a < g->kernel[1]; a++) {
            const int64_t h = oh * g->stride[1] - g->begin[1] + a * g->dilation[1];
            const bool inside = h >= 0 && h < g->in[1];
            for (int64_t b = 0; b < g->kernel[2]; b++) {
                const int64_t w = ow * step - g->begin[2] + b * g->dilation[2];
                int64_t lo = w >= 0 ? 0 : (-w + step - 1) / step, hi = w >= g->in[2] || !inside ? 0 : min64(len, (g->in[2] - 1 - w) / step + 1);
                if (lo > len) lo = len;
                if (hi < lo) hi = lo;
                copy_tap(len, lo, hi, channels, x + ((image * g->in[1] + h) * g->in[2] + w) * channels, step * channels,
                         columns + (a * g->kernel[2] + b) * channels, width);
            }
        }
        columns += len * width;
        n -= len;
        ow = 0;
        if (++oh == g->out[1]) oh = 0, image++;
    }
}

/* `m` rows of C by one panel. */
static void run_panel(const struct k_outer *o, struct k_outer_tile *t, int64_t m, float *c) {
    const int64_t most = o->rows_max[(t->n + o->vw - 1) / o->vw], tiles = (m + most - 1) / most;
    for (int64_t i = 0; i < tiles; i++) {
        const int64_t r = m * i / tiles;
        t->at = r;
        t->c = c + r * t->c_row;
        o->tile((int)(m * (i + 1) / tiles - r), t);
    }
}

void k_outer_run(const struct k_kernels *k, const struct k_outer_job *job, int64_t unit0, int64_t unit1, void *scratch) {
    const struct k_geometry *g = job->g;
    const struct k_outer *o = k->outer;
    const bool columns = k_few_channels(g);
    const int64_t panels = panels_of(o, job->oc), pixels = job->images * g->out[0] * g->out[1] * g->out[2];
    const int64_t m = columns ? taps_of(g) * g->channels : g->channels;
    const float **pointers = scratch;
    struct k_outer_tile t = {.rows = pointers, .b_p = job->oc, .c_row = job->oc};
    for (int64_t first = 0; first < pixels; first += BLOCK_PIXELS) {
        int64_t pointed = -1;
        t.first = first == 0;
        t.k = min64(BLOCK_PIXELS, pixels - first);
        for (int64_t u = unit0; u < unit1; u++) {
            const int64_t tap = u / panels, j = u % panels * o->nr;
            const int64_t a[3] = {tap / g->kernel[2] / g->kernel[1], tap / g->kernel[2] % g->kernel[1], tap % g->kernel[2]};
            if (tap != pointed && columns) {
                float *copied = (float *)(pointers + BLOCK_PIXELS);
                k_few_columns(g, job->x, first, t.k, copied);
                for (int64_t i = 0; i < t.k; i++) pointers[i] = copied + i * m;
            } else if (tap != pointed) point(job, a, first, t.k, pointers);
            pointed = tap;
            t.n = (int)min64(o->nr, job->oc - j);
            t.b = job->dy + first * job->oc + j;
            run_panel(o, &t, m, job->dw + tap * m * job->oc + j);
        }
    }
    if (pixels == 0)
        for (int64_t u = unit0; u < unit1; u++)
            for (int64_t r = 0; r < m; r++) {
                const int64_t j = u % panels * o->nr;
                memset(job->dw + (u / panels * m + r) * job->oc + j, 0, (size_t)min64(o->nr, job->oc - j) * sizeof(float));
            }
}
