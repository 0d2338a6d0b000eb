/* pool_f32.c: maxima or sums over sliding windows of one plane of f32, for MaxPool and AveragePool.
 *
 * A band of the plane is copied into a padded buffer, whose rows lie end to end. The window is then reduced across for all
 * positions of the band at once, as element-by-element operations of the buffer with itself, moved by a tap:
 *
 *     b[i] = a[i] + a[i + d] + a[i + 2d] …        (what runs over the end of a row is not read afterwards)
 *
 * and down likewise, moved by whole rows. Vectors are as long as the band whatever the width of the plane, a window of kh x kw costs
 * kh + kw operations, dilation costs nothing, and a stride only picks rows and columns at the end. The order of a
 * sum is fixed: across, then down. Buffers are on the stack: 2 x 32 KiB. */
#include "ops/op/pool_f32.h"

#include <math.h>
#include <string.h>

#define BAND 8192

/* The window and plane as two-dimensional: one row of one tap where there is a single dimension. */
struct flat {
    int64_t width;                              /* of a padded row: what the outputs read */
    int64_t kh, kw, sh, sw, dh, dw, reach;      /* reach: rows that a window spans */
    int64_t in_h, in_w, out_h, out_w, top, left;
};

static void flatten(const struct nn_fit *f, struct flat *p) {
    int w = f->rank - 1;
    *p = (struct flat){.kh = 1, .sh = 1, .dh = 1, .in_h = 1, .out_h = 1, .kw = f->kernel[w], .sw = f->stride[w], .dw = f->dilation[w]};
    p->in_w = f->in[w];
    p->out_w = f->out[w];
    p->left = f->begin[w];
    p->width = (p->out_w - 1) * p->sw + (p->kw - 1) * p->dw + 1;
    if (f->rank == 2) {
        p->kh = f->kernel[0];
        p->sh = f->stride[0];
        p->dh = f->dilation[0];
        p->in_h = f->in[0];
        p->out_h = f->out[0];
        p->top = f->begin[0];
    }
    p->reach = (p->kh - 1) * p->dh + 1;
}

bool op__pool_f32_fits(const struct nn_fit *f) {
    struct flat p;
    if (f->rank > 2 || f->out_size < 1) return false;
    flatten(f, &p);
    return p.width <= BAND && p.reach <= BAND && p.width * p.reach <= BAND;
}

/* Rows [row, row + n) of the padded plane. */
static void load_band(const struct flat *p, const float *src, int64_t row, int64_t n, float pad, float *dst) {
    int64_t last = p->in_w < p->width - p->left ? p->in_w : p->width - p->left; /* input columns that are read: [0, last) */
    for (int64_t r = row; r < row + n; r++, dst += p->width) {
        bool inside = r >= p->top && r - p->top < p->in_h && last > 0;
        int64_t from = inside ? p->left : p->width, to = inside ? p->left + last : p->width;
        for (int64_t i = 0; i < from; i++) dst[i] = pad;
        if (inside) memcpy(dst + from, src + (r - p->top) * p->in_w, (size_t)last * sizeof *dst);
        for (int64_t i = to; i < p->width; i++) dst[i] = pad;
    }
}

typedef float four __attribute__((vector_size(16)));

static void pick(float *dst, const float *src, int64_t n, int64_t step) {
    int64_t i = 0;
    if (step == 1) {
        memcpy(dst, src, (size_t)n * sizeof *dst);
        return;
    }
    for (; step == 2 && i + 4 < n; i += 4) { /* reads 8; the last one would read one too far */
        four a, b;
        memcpy(&a, src + 2 * i, sizeof a);
        memcpy(&b, src + 2 * i + 4, sizeof b);
        four even = __builtin_shufflevector(a, b, 0, 2, 4, 6);
        memcpy(dst + i, &even, sizeof even);
    }
    for (; i < n; i++) dst[i] = src[i * step];
}

/* Reduces n_out rows of outputs from the band in `a`; `b` is room for as much. */
static void reduce_band(const struct flat *p, k_binary_fn *op, float *a, float *b, int64_t n_out, float *dst) {
    int64_t rows = (n_out - 1) * p->sh + p->reach, across = rows * p->width - (p->kw - 1) * p->dw;
    for (int64_t k = 1; k < p->kw; k++) op(across, k == 1 ? a : b, false, a + k * p->dw, false, b);
    float *from = p->kw > 1 ? b : a, *down = p->kw > 1 ? a : b;
    int64_t step = p->dh * p->width, length = p->width - (p->kw - 1) * p->dw; /* of a row that is read */
    if (p->kh == 1) down = from;
    else if (p->sh == 1)
        for (int64_t k = 1; k < p->kh; k++) op((n_out - 1) * p->width + length, k == 1 ? from : down, false, from + k * step, false, down);
    else
        for (int64_t y = 0; y < n_out; y++)
            for (int64_t k = 1; k < p->kh; k++) {
                const float *row = from + y * p->sh * p->width;
                float *to = down + y * p->width;
                op(length, k == 1 ? row : to, false, row + k * step, false, to);
            }
    int64_t apart = p->kh == 1 ? p->sh * p->width : p->width;
    for (int64_t y = 0; y < n_out; y++) pick(dst + y * p->out_w, down + y * apart, p->out_w, p->sw);
}

void op__pool_f32_plane(const struct k_vmath *math, const struct nn_fit *f, enum k_binary how, const float *src, float *dst) {
    float a[BAND], b[BAND];
    struct flat p;
    flatten(f, &p);
    int64_t most = (BAND / p.width - p.reach) / p.sh + 1;
    for (int64_t y = 0; y < p.out_h; y += most) {
        int64_t n = p.out_h - y < most ? p.out_h - y : most;
        load_band(&p, src, y * p.sh, (n - 1) * p.sh + p.reach, how == K_MAX ? -INFINITY : 0, a);
        reduce_band(&p, math->binary[how], a, b, n, dst + y * p.out_w);
    }
}
