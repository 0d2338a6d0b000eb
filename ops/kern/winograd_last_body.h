/* winograd_last_body.h: the transforms of Winograd's F(4, 3) along channels, written once and compiled for each level (K_LANES says which).
 *
 * A lane is a channel, so tiles need no shuffling. With the points 0, +-a, +-b and infinity, a = sqrt 1/2, b = sqrt 2 (a^2 b^2 = 1,
 * a^2 + b^2 = 5/2), the matrices of V = B' d B, U = G w G', Y = A' M A are
 *
 *     B'   d0 - 5/2 d2 + d4                     G    w0                            A'   m0 + s + t
 *          (d4 - 2 d2) +- a (d3 - 2 d1)              -(2 w0 +- 2 a w1 + w2) / 3         a p + b q
 *          (d4 - d2 / 2) +- b (d3 - d1 / 2)          (w0 +- b w1 + 2 w2) / 6            s / 2 + 2 t
 *          d1 - 5/2 d3 + d5                          w2                                 a/2 p + 2 b q + m5
 *
 * with s, p = m1 +- m2 and t, q = m3 +- m4 (the construction: Lavin and Gray 2015, Vincent et al. 2017). */
#include "ops/kern/lanes.h"

#define SQRT_HALF 0.70710678118654752f
#define SQRT_TWO 1.41421356237309505f

K_INLINE void last_input_line(const int step, vf *d) { /* d[0], d[step] … d[5 * step] */
    const vf d0 = d[0], d1 = d[step], d2 = d[2 * step], d3 = d[3 * step], d4 = d[4 * step], d5 = d[5 * step];
    const vf two = v_set(2), half = v_set(0.5f), most = v_set(2.5f), a = v_set(SQRT_HALF), b = v_set(SQRT_TWO);
    const vf p = v_fnma(two, d2, d4), q = v_fnma(two, d1, d3), r = v_fnma(half, d2, d4), s = v_fnma(half, d1, d3);
    d[0] = v_fnma(most, d2, d0 + d4);
    d[step] = v_fma(a, q, p);
    d[2 * step] = v_fnma(a, q, p);
    d[3 * step] = v_fma(b, s, r);
    d[4 * step] = v_fnma(b, s, r);
    d[5 * step] = v_fnma(most, d3, d1 + d5);
}

K_INLINE void last_output_line(const int step, vf *m) { /* six in, the first four of them out */
    const vf m1 = m[step], m2 = m[2 * step], m3 = m[3 * step], m4 = m[4 * step];
    const vf s = m1 + m2, p = m1 - m2, t = m3 + m4, q = m3 - m4;
    m[0] = m[0] + s + t;
    m[step] = v_fma(v_set(SQRT_TWO), q, v_set(SQRT_HALF) * p);
    m[2 * step] = v_fma(v_set(2), t, v_set(0.5f) * s);
    m[3 * step] = v_fma(v_set(2 * SQRT_TWO), q, v_set(SQRT_HALF / 2) * p) + m[5 * step];
}

K_INLINE void last_weight_line(const int step, vf *u) { /* three in, six out */
    const vf w0 = u[0], w1 = u[step], w2 = u[2 * step];
    const vf p = v_fma(v_set(-2.0f / 3), w0, v_set(-1.0f / 3) * w2), q = v_set(-2.0f / 3 * SQRT_HALF) * w1;
    const vf r = v_fma(v_set(1.0f / 6), w0, v_set(1.0f / 3) * w2), s = v_set(SQRT_TWO / 6) * w1;
    u[step] = p + q;
    u[2 * step] = p - q;
    u[3 * step] = r + s;
    u[4 * step] = r - s;
    u[5 * step] = w2;
}

static void last_weights(int64_t n, const float *w, int64_t plane, float *dst, int64_t xi) {
    for (int64_t at = 0; at < n; at += VW) {
        vf u[36];
        K_UNROLL for (int j = 0; j < 3; j++) {
            K_UNROLL for (int i = 0; i < 3; i++) u[i * 6 + j] = v_load(w + (i * 3 + j) * plane + at);
            last_weight_line(6, u + j);
        }
        K_UNROLL for (int i = 0; i < 6; i++) {
            last_weight_line(1, u + i * 6);
            K_UNROLL for (int j = 0; j < 6; j++) v_store(dst + (i * 6 + j) * xi + at, u[i * 6 + j]);
        }
    }
}

static void last_input(int64_t channels, const float *const *pixels, float *v, int64_t xi) {
    for (int64_t c = 0; c < channels; c += VW) {
        const vp part = v_part(channels - c);
        vf d[36];
        K_UNROLL for (int j = 0; j < 6; j++) {
            K_UNROLL for (int i = 0; i < 6; i++) d[i * 6 + j] = v_loadp(pixels[i * 6 + j] + c, part);
            last_input_line(6, d + j);
        }
        K_UNROLL for (int i = 0; i < 6; i++) {
            last_input_line(1, d + i * 6);
            K_UNROLL for (int j = 0; j < 6; j++) v_storep(v + (i * 6 + j) * xi + c, d[i * 6 + j], part);
        }
    }
}

static void last_output(int64_t n, const float *v, int64_t xi, const float *bias, const float *addend, float lo, float hi, int rows, int cols, float *y,
                        int64_t y_row, int64_t y_pixel) {
    const vf vlo = v_set(lo), vhi = v_set(hi);
    for (int64_t c = 0; c < n; c += VW) {
        const vp part = v_part(n - c);
        const vf vb = bias ? v_loadp(bias + c, part) : v_set(0.0f);
        vf m[36];
        K_UNROLL for (int j = 0; j < 6; j++) {
            K_UNROLL for (int i = 0; i < 6; i++) m[i * 6 + j] = v_load(v + (i * 6 + j) * xi + c);
            last_output_line(6, m + j);
        }
        K_UNROLL for (int i = 0; i < 4; i++) {
            last_output_line(1, m + i * 6);
            if (i >= rows) continue;
            K_UNROLL for (int j = 0; j < 4; j++) {
                const int64_t at = i * y_row + j * y_pixel + c;
                vf r = m[i * 6 + j] + vb;
                if (j >= cols) continue;
                if (addend) r = r + v_loadp(addend + at, part);
                v_storep(y + at, v_min(vhi, v_max(vlo, r)), part);
            }
        }
    }
}

#define K_WINOGRAD_LAST_TABLE {.weights = last_weights, .input = last_input, .output = last_output}
