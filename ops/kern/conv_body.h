/* conv_body.h: what convolution needs beside the matrix product, written once and compiled for each level (K_LANES says which).
 *
 * pack      writes a panel of the product's right side straight from the input: 64 output positions, which are a few runs of neighbours
 *           in output rows. For each run and kernel position, whole vectors are read at the shifted place and lanes outside the
 *           input are masked to zero; the surplus of a run's last vector is overwritten by the next run.
 * depthwise copies a plane into a buffer with its padding around it, for strides above 1 with the columns sorted by
 *           their remainder, so that the reads of 16 neighbouring outputs are always 16 neighbouring floats. Each loaded vector
 *           serves several output rows. An output is a chain of fused multiply-adds over rising (row, column) of the kernel,
 *           padding included: the same chain as the matrix product's. */
#include "ops/kern/lanes.h"

/* --- packing ------------------------------------------------------------------------------------------ */

struct run { /* neighbouring output positions in one output row */
    int64_t col, len;         /* in the panel */
    int64_t depth, row, left; /* input position of its first output at kernel position 0: may lie in the padding */
};

static int find_runs(const struct k_geometry *g, int64_t p0, int64_t n, struct run *runs) {
    int count = 0;
    for (int64_t p = p0; p < p0 + n; count++) {
        const int64_t ow = p % g->out[2], oh = p / g->out[2] % g->out[1], od = p / g->out[2] / g->out[1];
        const int64_t in_row = g->out[2] - ow, left = p0 + n - p, len = in_row < left ? in_row : left;
        runs[count] = (struct run){.col = p - p0, .len = len, .depth = od * g->stride[0] - g->begin[0], .row = oh * g->stride[1] - g->begin[1],
                                   .left = ow * g->stride[2] - g->begin[2]};
        p += len;
    }
    return count;
}

/* dst[i] = src[stride * i] where lo <= stride * i < hi, else 0. */
K_INLINE void copy_run(const float *src, int64_t len, int64_t stride, int64_t lo, int64_t hi, float *dst) {
    if (stride == 1) {
        for (int64_t i = 0; i < len; i += VW) {
            __builtin_prefetch(src + i + 64, 0, 2); /* the next panel's, into L2, while this one is used */
            v_store(dst + i, i >= lo && i + VW <= hi ? v_load(src + i) : v_load_range(src + i, lo - i, hi - i));
        }
    } else if (stride == 2) {
        for (int64_t i = 0; i < len; i += VW) {
            const int64_t e = 2 * i;
            __builtin_prefetch(src + e + 128, 0, 2);
            __builtin_prefetch(src + e + 128 + VW, 0, 2);
            v_store(dst + i, v_even(v_load_range(src + e, lo - e, hi - e), v_load_range(src + e + VW, lo - e - VW, hi - e - VW)));
        }
    } else {
        for (int64_t i = 0; i < len; i++) dst[i] = i * stride >= lo && i * stride < hi ? src[i * stride] : 0.0f;
    }
}

static void zero_run(int64_t len, float *dst) {
    for (int64_t i = 0; i < len; i += VW) v_store(dst + i, v_set(0.0f));
}

static void pack(const struct k_geometry *g, const float *x, int64_t k0, int64_t k1, int64_t p0, int64_t n, int64_t width, float *dst) {
    struct run runs[64];
    const int n_runs = find_runs(g, p0, n, runs);
    const int64_t kw = g->kernel[2], kh = g->kernel[1], kd = g->kernel[0];
    int64_t c = k0 / (kd * kh * kw), a2 = k0 % kw, a1 = k0 / kw % kh, a0 = k0 / kw / kh % kd;

    for (int64_t k = k0; k < k1; k++, dst += width) {
        const float *channel = x + c * g->in[0] * g->in[1] * g->in[2];
        for (int i = 0; i < n_runs; i++) {
            const struct run *r = &runs[i];
            const int64_t d = r->depth + a0 * g->dilation[0], h = r->row + a1 * g->dilation[1], w = r->left + a2 * g->dilation[2];
            if (d < 0 || d >= g->in[0] || h < 0 || h >= g->in[1])
                zero_run(r->len, dst + r->col);
            else
                copy_run(channel + (d * g->in[1] + h) * g->in[2] + w, r->len, g->stride[2], -w, g->in[2] - w, dst + r->col);
        }
        if (++a2 < kw) continue;
        a2 = 0;
        if (++a1 < kh) continue;
        a1 = 0;
        if (++a0 < kd) continue;
        a0 = 0;
        c++;
    }
}

/* --- depthwise ------------------------------------------------------------------------------------------ */

struct padded { /* the buffer: rows of `pitch` floats, each of `stride` parts of `part` floats */
    int64_t rows, stride, part, pitch;
};

static struct padded padded_of(const struct k_geometry *g) {
    const int64_t width = (g->out[2] - 1) * g->stride[2] + (g->kernel[2] - 1) * g->dilation[2] + 1;
    struct padded p = {.rows = (g->out[1] - 1) * g->stride[1] + (g->kernel[1] - 1) * g->dilation[1] + 1, .stride = g->stride[2]};
    p.part = p.stride == 1 ? width : p.stride == 2 ? (width + 1) / 2 : (width + p.stride - 1) / p.stride;
    p.pitch = p.part * p.stride;
    return p;
}

/* Where column c of a padded row lies in the buffer's row. */
K_INLINE int64_t column_at(const struct padded *p, int64_t c) {
    return p->stride == 1 ? c : p->stride == 2 ? (c & 1) * p->part + c / 2 : c % p->stride * p->part + c / p->stride;
}

K_INLINE void copy_row(const float *src, int64_t width, float *dst) {
    int64_t i = 0;
    for (; i + VW <= width; i += VW) v_store(dst + i, v_load(src + i));
    if (i < width) v_storen(dst + i, v_loadn(src + i, width - i), width - i);
}

/* Columns 0, 2, 4 … to first, 1, 3, 5 … to second. */
K_INLINE void split_row(const float *src, int64_t width, float *first, float *second) {
    int64_t i = 0;
    for (; i + 2 * VW <= width; i += 2 * VW) {
        const vf a = v_load(src + i), b = v_load(src + i + VW);
        v_store(first + i / 2, v_even(a, b));
        v_store(second + i / 2, v_odd(a, b));
    }
    const int64_t left = width - i;
    if (left <= 0) return;
    const vf a = v_load_range(src + i, 0, left), b = v_load_range(src + i + VW, 0, left - VW);
    v_storen(first + i / 2, v_even(a, b), (left + 1) / 2);
    v_storen(second + i / 2, v_odd(a, b), left / 2);
}

static void pad_plane(const struct k_geometry *g, const struct padded *p, const float *x, float *dst) {
    const int64_t left = g->begin[2], width = p->pitch - left < g->in[2] ? p->pitch - left : g->in[2]; /* columns that windows reach */
    const int64_t rows = p->rows - g->begin[1] < g->in[1] ? p->rows - g->begin[1] : g->in[1];
    for (int64_t h = 0; h < rows; h++) {
        const float *src = x + h * g->in[2];
        float *row = dst + (h + g->begin[1]) * p->pitch;
        if (p->stride == 1)
            copy_row(src, width, row + left);
        else if (p->stride == 2)
            split_row(src, width, row + column_at(p, left), row + column_at(p, left + 1));
        else
            for (int64_t i = 0; i < width; i++) row[column_at(p, left + i)] = src[i];
    }
}

/* `rows` output rows (stride sh apart in the buffer) by one vector of columns: x is the buffer at the first output's window. */
K_INLINE void depthwise_block(const int rows, const int kh, const int kw, const int sh, const float *x, int64_t pitch, const int64_t *offsets, const float *w,
                              vf bias, vf lo, vf hi, float *y, int64_t y_row, vp part) {
    vf acc[8];
    K_UNROLL for (int r = 0; r < rows; r++) acc[r] = v_set(0.0f);
    K_UNROLL for (int i = 0; i < (rows - 1) * sh + kh; i++) {
        K_UNROLL for (int j = 0; j < kw; j++) {
            const vf v = v_load(x + i * pitch + offsets[j]);
            K_UNROLL for (int r = 0; r < rows; r++) {
                if (i - r * sh >= 0 && i - r * sh < kh) acc[r] = v_fma(v_set(w[(i - r * sh) * kw + j]), v, acc[r]);
            }
        }
    }
    K_UNROLL for (int r = 0; r < rows; r++) v_storep(y + r * y_row, v_min(hi, v_max(lo, acc[r] + bias)), part);
}

K_INLINE void depthwise_rows(const int rows, const int kh, const int kw, const int sh, const struct k_geometry *g, int64_t pitch, const float *x,
                             const int64_t *offsets, const float *w, vf bias, vf lo, vf hi, float *y) {
    for (int64_t c = 0; c < g->out[2]; c += VW)
        depthwise_block(rows, kh, kw, sh, x + c, pitch, offsets, w, bias, lo, hi, y + c, g->out[2], v_part(g->out[2] - c));
}

/* A kernel of kh x kw (constants): blocks of `most` rows (7 divides what networks for 224 pixels have), then of 2, then single ones. */
K_INLINE void depthwise_fixed(const int most, const int kh, const int kw, const int sh, const struct k_geometry *g, int64_t pitch, const float *x,
                              const int64_t *offsets, const float *w, vf bias, vf lo, vf hi, float *y) {
    int64_t h = 0;
    for (; h + most <= g->out[1]; h += most) depthwise_rows(most, kh, kw, sh, g, pitch, x + h * sh * pitch, offsets, w, bias, lo, hi, y + h * g->out[2]);
    for (; h + 2 <= g->out[1]; h += 2) depthwise_rows(2, kh, kw, sh, g, pitch, x + h * sh * pitch, offsets, w, bias, lo, hi, y + h * g->out[2]);
    for (; h < g->out[1]; h++) depthwise_rows(1, kh, kw, sh, g, pitch, x + h * sh * pitch, offsets, w, bias, lo, hi, y + h * g->out[2]);
}

enum { DEPTHWISE_ROWS = K_LANES == K_LANES_AVX512 ? 7 : 4 };

/* Any kernel, stride and dilation: one vector of outputs at a time. */
static void depthwise_any(const struct k_geometry *g, const struct padded *p, const float *x, const float *w, vf bias, vf lo, vf hi, float *y) {
    for (int64_t h = 0; h < g->out[1]; h++)
        for (int64_t c = 0; c < g->out[2]; c += VW) {
            vf acc = v_set(0.0f);
            for (int64_t i = 0; i < g->kernel[1]; i++)
                for (int64_t j = 0; j < g->kernel[2]; j++) {
                    const float *src = x + (h * g->stride[1] + i * g->dilation[1]) * p->pitch + column_at(p, j * g->dilation[2]) + c;
                    acc = v_fma(v_set(w[i * g->kernel[2] + j]), v_load(src), acc);
                }
            v_storep(y + h * g->out[2] + c, v_min(hi, v_max(lo, acc + bias)), v_part(g->out[2] - c));
        }
}

static void depthwise(const struct k_geometry *g, const float *x, const float *w, float bias, float lo, float hi, float *y, float *padded) {
    const struct padded p = padded_of(g);
    const vf vb = v_set(bias), vlo = v_set(lo), vhi = v_set(hi);
    const int64_t kh = g->kernel[1], kw = g->kernel[2], sh = g->stride[1];
    int64_t offsets[5];

    pad_plane(g, &p, x, padded);
    for (int64_t j = 0; j < kw && j < 5; j++) offsets[j] = column_at(&p, j * g->dilation[2]);
    if (g->dilation[1] != 1 || kh != kw || (kh != 3 && kh != 5) || sh > 2)
        depthwise_any(g, &p, padded, w, vb, vlo, vhi, y);
    else if (kh == 3 && sh == 1)
        depthwise_fixed(DEPTHWISE_ROWS, 3, 3, 1, g, p.pitch, padded, offsets, w, vb, vlo, vhi, y);
    else if (kh == 3)
        depthwise_fixed(DEPTHWISE_ROWS, 3, 3, 2, g, p.pitch, padded, offsets, w, vb, vlo, vhi, y);
    else if (sh == 1)
        depthwise_fixed(DEPTHWISE_ROWS, 5, 5, 1, g, p.pitch, padded, offsets, w, vb, vlo, vhi, y);
    else
        depthwise_fixed(DEPTHWISE_ROWS, 5, 5, 2, g, p.pitch, padded, offsets, w, vb, vlo, vhi, y);
}

/* --- depthwise, channels last -------------------------------------------------------------------------------
 *
 * A vector is of neighbouring channels of one pixel. Blocks of channels are the outer loop, so that the rows of the input which
 * neighbouring output rows share are still in L1. Away from the left and right border a few outputs of a row go together: an
 * input pixel is read once for all of them. Taps in the padding are left out, which adds the same zeros. */

/* One kernel row for `cols` neighbouring outputs; the first `left` and the last `right` of the input pixels they span are padding. */
K_INLINE void last_line(const int cols, const int kw, const int sw, const int left, const int right, const float *x, int64_t pixel, const float *w, vp part,
                        vf *acc) {
    vf taps[5];
    K_UNROLL for (int j = 0; j < kw; j++) taps[j] = v_loadp(w + j * pixel, part);
    x += left * pixel;
    K_UNROLL for (int i = left; i < (cols - 1) * sw + kw - right; i++, x += pixel) {
        const vf v = v_loadp(x, part);
        K_UNROLL for (int c = 0; c < cols; c++) {
            if (i - c * sw >= 0 && i - c * sw < kw) acc[c] = v_fma(taps[i - c * sw], v, acc[c]);
        }
    }
}

struct last_row { /* of one output row and block of channels */
    const float *x, *w; /* first kernel row inside the input, at column 0; its weights */
    int64_t x_line, w_line, lines;
    vf bias, lo, hi;
    vp part;
    float *y;
};

K_INLINE void last_block(const int cols, const int kw, const int sw, const int left, const int right, const struct last_row *r, int64_t pixel,
                         int64_t column, int64_t ow) {
    vf acc[8];
    K_UNROLL for (int c = 0; c < cols; c++) acc[c] = v_set(0.0f);
    for (int64_t i = 0; i < r->lines; i++)
        last_line(cols, kw, sw, left, right, r->x + i * r->x_line + column * pixel, pixel, r->w + i * r->w_line, r->part, acc);
    K_UNROLL for (int c = 0; c < cols; c++) v_storep(r->y + (ow + c) * pixel, v_min(r->hi, v_max(r->lo, acc[c] + r->bias)), r->part);
}

/* Any output column, kernel and dilation. */
K_INLINE void last_one(const struct k_geometry *g, const struct last_row *r, int64_t pixel, int64_t ow) {
    const int64_t column = ow * g->stride[2] - g->begin[2];
    vf acc = v_set(0.0f);
    for (int64_t i = 0; i < r->lines; i++)
        for (int64_t j = 0, at = column; j < g->kernel[2]; j++, at += g->dilation[2])
            if (at >= 0 && at < g->in[2])
                acc = v_fma(v_loadp(r->w + i * r->w_line + j * pixel, r->part), v_loadp(r->x + i * r->x_line + at * pixel, r->part), acc);
    v_storep(r->y + ow * pixel, v_min(r->hi, v_max(r->lo, acc + r->bias)), r->part);
}

/* A row in blocks of `cols` that divide it, padded by half a kernel on the left and `over` pixels on the right. */
K_INLINE void last_even(const int cols, const int kw, const int sw, const int over, const struct k_geometry *g, const struct last_row *r, int64_t pixel) {
    const int pad = kw / 2;
    const int64_t end = g->out[2] - cols;
    if (end == 0) {
        last_block(cols, kw, sw, pad, over, r, pixel, -pad, 0);
        return;
    }
    last_block(cols, kw, sw, pad, 0, r, pixel, -pad, 0);
    for (int64_t ow = cols; ow < end; ow += cols) last_block(cols, kw, sw, 0, 0, r, pixel, ow * sw - pad, ow);
    last_block(cols, kw, sw, 0, over, r, pixel, end * sw - pad, end);
}

K_INLINE void last_columns(const int kw, const int sw, const struct k_geometry *g, const struct last_row *r, int64_t pixel) {
    const int over = sw == 1 ? kw / 2 : kw / 2 - 1; /* what networks have: images of even width where the stride is 2 */
    if (g->begin[2] == kw / 2 && g->out[2] > 0 && (g->out[2] - 1) * sw - kw / 2 + kw - g->in[2] == over) {
        if (g->out[2] % 8 == 0) {
            last_even(8, kw, sw, over, g, r, pixel);
            return;
        }
        if (g->out[2] % 7 == 0) {
            last_even(7, kw, sw, over, g, r, pixel);
            return;
        }
    }
    const int64_t left = (g->begin[2] + sw - 1) / sw, span = g->in[2] + g->begin[2] - kw;
    int64_t ow = 0, right = span < 0 ? 0 : span / sw + 1;
    if (right > g->out[2]) right = g->out[2];
    for (; ow < left && ow < g->out[2]; ow++) last_one(g, r, pixel, ow);
    for (; ow + 8 <= right; ow += 8) last_block(8, kw, sw, 0, 0, r, pixel, ow * sw - g->begin[2], ow);
    for (; ow + 4 <= right; ow += 4) last_block(4, kw, sw, 0, 0, r, pixel, ow * sw - g->begin[2], ow);
    for (; ow < right; ow++) last_block(1, kw, sw, 0, 0, r, pixel, ow * sw - g->begin[2], ow);
    for (; ow < g->out[2]; ow++) last_one(g, r, pixel, ow);
}

static void last_any(const struct k_geometry *g, const struct last_row *r, int64_t pixel) {
    for (int64_t ow = 0; ow < g->out[2]; ow++) last_one(g, r, pixel, ow);
}

#define K_LAST_COLUMNS(k, s)                                                                       \
    static void last_columns_##k##_##s(const struct k_geometry *g, const struct last_row *r, int64_t pixel) { last_columns(k, s, g, r, pixel); }
K_LAST_COLUMNS(3, 1)
K_LAST_COLUMNS(3, 2)
K_LAST_COLUMNS(5, 1)
K_LAST_COLUMNS(5, 2)

static void depthwise_last(const struct k_geometry *g, const float *x, const float *w, const float *bias, float lo, float hi, int64_t row0, int64_t row1,
                           float *y) {
    typedef void columns_fn(const struct k_geometry *g, const struct last_row *r, int64_t pixel);
    static columns_fn *const fixed[2][2] = {{last_columns_3_1, last_columns_3_2}, {last_columns_5_1, last_columns_5_2}};
    const int64_t pixel = g->channels, kw = g->kernel[2], sw = g->stride[2], line = g->in[2] * pixel;
    columns_fn *columns = (kw == 3 || kw == 5) && sw <= 2 && g->dilation[2] == 1 ? fixed[kw / 5][sw - 1] : last_any;
    for (int64_t c = 0; c < pixel; c += VW) {
        struct last_row r = {.x_line = line * g->dilation[1], .w_line = kw * pixel, .lo = v_set(lo), .hi = v_set(hi), .part = v_part(pixel - c)};
        r.bias = bias ? v_loadp(bias + c, r.part) : v_set(0.0f);
        for (int64_t h = row0; h < row1; h++) {
            const int64_t top = h * g->stride[1] - g->begin[1];
            int64_t i = 0, end = g->kernel[1];
            while (i < end && top + i * g->dilation[1] < 0) i++;
            while (end > i && top + (end - 1) * g->dilation[1] >= g->in[1]) end--;
            r.lines = end - i;
            r.x = x + (top + i * g->dilation[1]) * line + c;
            r.w = w + i * r.w_line + c;
            r.y = y + h * g->out[2] * pixel + c;
            columns(g, &r, pixel);
        }
    }
}

#define K_CONV_TABLE {.pack = pack, .depthwise = depthwise, .depthwise_last = depthwise_last}
