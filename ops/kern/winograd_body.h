/* winograd_body.h: the transforms of Winograd's F(2, 3) and F(4, 3), written once and compiled for each level (K_LANES says which).
 *
 * A lane is a tile: a vector holds the same element of neighbouring tiles of a row. Tiles are m apart, so a row of the input is
 * read as m whole vectors and sorted by remainder (v_even and v_odd, twice for m = 4); elements m and m + 1 of a tile are elements 0
 * and 1 of the next one (v_next), so a run is one tile shorter than a vector. Lanes beyond the run compute rubbish
 * that nobody stores.
 *
 * V = B' d B, Y = A' M A with (Lavin and Gray 2015; points 0, 1, -1, 2, -2 for m = 4)
 *     m = 2   B': d0 - d2, d1 + d2, d2 - d1, d1 - d3                A': m0 + m1 + m2, m1 - m2 - m3
 *     m = 4   B' and A' as in the functions below
 * The weights, U = G w G', are transformed while the layer runs: their nine planes are as small as they were, and reading four times as
 * much from memory would take longer than this does. */
#include "ops/kern/lanes.h"

/* One row or column of a tile: d[k * step] for k = 0 … m + 1. */
K_INLINE void input_line(const int m, const int step, vf *d) {
    const vf d0 = d[0], d1 = d[step], d2 = d[2 * step], d3 = d[3 * step];
    if (m == 2) {
        d[0] = d0 - d2;
        d[step] = d1 + d2;
        d[2 * step] = d2 - d1;
        d[3 * step] = d1 - d3;
        return;
    }
    const vf d4 = d[4 * step], d5 = d[5 * step], two = v_set(2), four = v_set(4), five = v_set(5);
    const vf p = v_fnma(four, d2, d4), q = v_fnma(four, d1, d3), r = d4 - d2, s = d3 - d1;
    d[0] = v_fma(four, d0, v_fnma(five, d2, d4));
    d[step] = p + q;
    d[2 * step] = p - q;
    d[3 * step] = v_fma(two, s, r);
    d[4 * step] = v_fnma(two, s, r);
    d[5 * step] = v_fma(four, d1, v_fnma(five, d3, d5));
}

/* In: t[k * step] for k = 0 … m + 1; out: the first m of them. */
K_INLINE void output_line(const int m, const int step, vf *t) {
    const vf t0 = t[0], t1 = t[step], t2 = t[2 * step], t3 = t[3 * step];
    if (m == 2) {
        t[0] = t0 + t1 + t2;
        t[step] = t1 - t2 - t3;
        return;
    }
    const vf t4 = t[4 * step], t5 = t[5 * step];
    const vf s = t1 + t2, d = t1 - t2, s2 = t3 + t4, d2 = t3 - t4;
    t[0] = t0 + s + s2;
    t[step] = v_fma(v_set(2), d2, d);
    t[2 * step] = v_fma(v_set(4), s2, s);
    t[3 * step] = v_fma(v_set(8), d2, d) + t5;
}

/* In: u[0], u[step], u[2 * step]; out: m + 2 of them. */
K_INLINE void weight_line(const int m, const int step, vf *u) {
    const vf a = u[0], b = u[step], c = u[2 * step];
    if (m == 2) {
        const vf s = v_set(0.5f) * (a + c), q = v_set(0.5f) * b;
        u[step] = s + q;
        u[2 * step] = s - q;
        u[3 * step] = c;
        return;
    }
    const vf s = a + c, sixth = v_set(-1.0f / 6), p = v_fma(v_set(1.0f / 24), a, v_set(1.0f / 6) * c), q = v_set(1.0f / 12) * b;
    u[0] = v_set(0.25f) * a;
    u[step] = sixth * (s + b);
    u[2 * step] = sixth * (s - b);
    u[3 * step] = p + q;
    u[4 * step] = p - q;
    u[5 * step] = c;
}

K_INLINE void weights(const int m, int64_t n, const float *w, float *dst, int64_t xi) {
    const int t = m + 2;
    for (int64_t at = 0; at < n; at += VW) {
        const vp part = v_part(n - at);
        vf u[36];
        K_UNROLL for (int j = 0; j < 3; j++) {
            K_UNROLL for (int i = 0; i < 3; i++) u[i * t + j] = v_loadp(w + (i * 3 + j) * n + at, part);
            weight_line(m, t, u + j);
        }
        K_UNROLL for (int i = 0; i < t; i++) {
            weight_line(m, 1, u + i * t);
            K_UNROLL for (int j = 0; j < t; j++) v_storep(dst + (i * t + j) * xi + at, u[i * t + j], part);
        }
    }
}

/* Elements 0 … m + 1 of the tiles whose rows start at x. */
K_INLINE void load_line(const int m, const float *x, const vr *ranges, vf *d) {
    if (m == 2) {
        const vf a = v_loadr(x, ranges[0]), b = v_loadr(x + VW, ranges[1]);
        d[0] = v_even(a, b);
        d[1] = v_odd(a, b);
    } else {
        const vf a = v_loadr(x, ranges[0]), b = v_loadr(x + VW, ranges[1]), c = v_loadr(x + 2 * VW, ranges[2]), e = v_loadr(x + 3 * VW, ranges[3]);
        const vf even_low = v_even(a, b), odd_low = v_odd(a, b), even_high = v_even(c, e), odd_high = v_odd(c, e);
        d[0] = v_even(even_low, even_high);
        d[1] = v_even(odd_low, odd_high);
        d[2] = v_odd(even_low, even_high);
        d[3] = v_odd(odd_low, odd_high);
    }
    d[m] = v_next(d[0]);
    d[m + 1] = v_next(d[1]);
}

K_INLINE void input(const int m, const struct k_geometry *g, const struct k_tile_run *run, const float *x, float *v, int64_t xi) {
    const int t = m + 2;
    const vp part = v_part(run->len);
    vr ranges[4];
    vf d[36];
    K_UNROLL for (int k = 0; k < m; k++) ranges[k] = v_range(-run->left - k * VW, g->in[2] - run->left - k * VW);
    K_UNROLL for (int i = 0; i < t; i++) {
        const int64_t row = run->row + i;
        if (row >= 0 && row < g->in[1]) {
            load_line(m, x + row * g->in[2] + run->left, ranges, d + i * t);
            input_line(m, 1, d + i * t);
        } else {
            K_UNROLL for (int j = 0; j < t; j++) d[i * t + j] = v_set(0.0f);
        }
    }
    K_UNROLL for (int j = 0; j < t; j++) {
        input_line(m, t, d + j);
        K_UNROLL for (int i = 0; i < t; i++) v_storep(v + (i * t + j) * xi + run->col, d[i * t + j], part);
    }
}

/* `count` neighbouring outputs of one row, in vectors a, b, … of their own order. */
K_INLINE void store_line(const int m, vf *a, int64_t count, vf bias, const float *addend, vf lo, vf hi, float *y) {
    K_UNROLL for (int k = 0; k < m; k++) {
        const vp part = v_part(count - k * VW > 0 ? count - k * VW : 0);
        vf r = a[k] + bias;
        if (addend) r = r + v_loadp(addend + k * VW, part);
        v_storep(y + k * VW, v_min(hi, v_max(lo, r)), part);
    }
}

K_INLINE void output(const int m, const struct k_geometry *g, const struct k_tile_run *run, const float *v, int64_t xi, float bias, const float *addend,
                     float lo, float hi, float *y) {
    const int t = m + 2;
    const vp part = v_part(run->len);
    const int64_t width = g->out[2] - run->y_left, count = m * run->len < width ? m * run->len : width;
    vf d[36];
    K_UNROLL for (int j = 0; j < t; j++) {
        K_UNROLL for (int i = 0; i < t; i++) d[i * t + j] = v_loadp(v + (i * t + j) * xi + run->col, part);
        output_line(m, t, d + j);
    }
    K_UNROLL for (int i = 0; i < m; i++) {
        vf *l = d + i * t, a[4];
        output_line(m, 1, l);
        if (run->y_row + i >= g->out[1]) continue;
        if (m == 2) {
            a[0] = v_zip_low(l[0], l[1]);
            a[1] = v_zip_high(l[0], l[1]);
        } else {
            const vf low02 = v_zip_low(l[0], l[2]), low13 = v_zip_low(l[1], l[3]), high02 = v_zip_high(l[0], l[2]), high13 = v_zip_high(l[1], l[3]);
            a[0] = v_zip_low(low02, low13);
            a[1] = v_zip_high(low02, low13);
            a[2] = v_zip_low(high02, high13);
            a[3] = v_zip_high(high02, high13);
        }
        const int64_t at = (run->y_row + i) * g->out[2] + run->y_left;
        store_line(m, a, count, v_set(bias), addend ? addend + at : NULL, v_set(lo), v_set(hi), y + at);
    }
}

#define K_WINOGRAD(m)                                                                              \
    static void weights_##m(int64_t n, const float *w, float *u, int64_t xi) { weights(m, n, w, u, xi); } \
    static void input_##m(const struct k_geometry *g, const struct k_tile_run *run, const float *x, float *v, int64_t xi) { \
        input(m, g, run, x, v, xi);                                                                \
    }                                                                                              \
    static void output_##m(const struct k_geometry *g, const struct k_tile_run *run, const float *v, int64_t xi, float bias, const float *addend, float lo, \
                           float hi, float *y) {                                                   \
        output(m, g, run, v, xi, bias, addend, lo, hi, y);                                         \
    }
K_WINOGRAD(2)
K_WINOGRAD(4)

#define K_WINOGRAD_TABLE {.run_max = VW - 1, .weights = {weights_2, weights_4}, .input = {input_2, input_4}, .output = {output_2, output_4}}
