/* vmath_body.h: vector maths, written once and compiled for each level (K_LANES says which).
 *
 * Elementwise functions go through whole vectors and one partial vector at the end, by the same operations, so that an element's
 * bits do not depend on its position. Polynomials are our own least-maximum fits (Lawson's iteration in extended precision) on
 * the intervals that the comments name; ranges are reduced in two steps with the constant split in a high part
 * whose products are exact and a low part (Cody and Waite).
 *
 * Reductions keep 64 partial results whatever the vector's width: element i goes to partial i mod 64, and a fixed tree joins
 * them. So all levels agree in every bit. A tail is copied into a block of 64 that is filled up with the neutral element. */
#include "ops/kern/lanes.h"

/* --- functions of one vector ---------------------------------------------------------------------- */

static const float magic_round = 12582912.0f; /* 1.5 * 2^23: x + magic - magic rounds x to an integer, which stands in the low bits */

/* e^r - 1 = r + r^2 P(r) on |r| <= ln 2 / 2, relative error of e^r 2^-28; *n is the vector of integers with x = n ln 2 + r. */
K_INLINE vf v__exp_reduced(vf x, vi *n) {
    const vf t = v_fma(x, v_set(0x1.715476p+0f), v_set(magic_round)), k = t - v_set(magic_round);
    *n = (vi)((vu)t - (vu)v_set(magic_round));
    vf r = v_fnma(k, v_set(0x1.62e400p-1f), x);
    r = v_fnma(k, v_set(0x1.7f7d1cp-20f), r);
    vf p = v_set(0x1.6a2434p-10f);
    p = v_fma(p, r, v_set(0x1.1239e2p-7f));
    p = v_fma(p, r, v_set(0x1.5558f2p-5f));
    p = v_fma(p, r, v_set(0x1.555492p-3f));
    p = v_fma(p, r, v_set(0x1.fffffcp-2f));
    return v_fma(p, r * r, r);
}

/* 2^n as a product of two factors, so that subnormal and overflowing results are rounded once. */
K_INLINE vf v__scale(vf x, vi n) {
    const vi half = n >> 1, rest = n - half;
    return x * (vf)((vu)(half + 127) << 23) * (vf)((vu)(rest + 127) << 23);
}

K_INLINE vf v_exp(vf x) {
    vi n;
    x = v_min(v_set(89.0f), v_max(v_set(-104.0f), x)); /* NaN stays */
    const vf p = v__exp_reduced(x, &n);
    return v__scale(v_set(1.0f) + p, n);
}

/* e^x for -87 <= x <= 0, e^-87 below, so that one factor does */
K_INLINE vf v_exp_negative(vf x) {
    vi n;
    const vf p = v__exp_reduced(v_max(v_set(-87.0f), x), &n), scale = (vf)((vu)(n + 127) << 23); /* NaN stays */
    return v_fma(p, scale, scale);
}

/* e^x - 1 for x <= 0 with an absolute error of 2^-24, and a small relative one near 0 */
K_INLINE vf v_expm1_negative(vf x) {
    vi n;
    x = v_max(v_set(-30.0f), x);
    const vf p = v__exp_reduced(x, &n), scale = (vf)((vu)(n + 127) << 23);
    return v_fma(p, scale, scale - v_set(1.0f));
}

/* x = 2^k m with m in [sqrt 1/2, sqrt 2); ln m = f - f^2/2 + f^3 P(f), f = m - 1, relative error 2^-30 */
K_INLINE vf v_log(vf x) {
    const vf zero = v_set(0.0f);
    const vm tiny = v_lt(x, v_set(0x1p-126f));
    const vf scaled = v_sel(tiny, x * v_set(0x1p23f), x);
    const vi bits = (vi)((vu)scaled - (vu)v_seti(0x3f3504f3));
    const vf k = (vf)((vu)(bits >> 23) + (vu)v_set(magic_round)) - v_sel(tiny, v_set(magic_round + 23.0f), v_set(magic_round));
    const vf f = (vf)((bits & v_seti(0x7fffff)) + v_seti(0x3f3504f3)) - v_set(1.0f), f2 = f * f;
    vf p = v_set(0x1.1457a6p-4f);
    p = v_fma(p, f, v_set(-0x1.de3c16p-4f));
    p = v_fma(p, f, v_set(0x1.e6f06ap-4f));
    p = v_fma(p, f, v_set(-0x1.fc2208p-4f));
    p = v_fma(p, f, v_set(0x1.233768p-3f));
    p = v_fma(p, f, v_set(-0x1.555c4ep-3f));
    p = v_fma(p, f, v_set(0x1.99a4b6p-3f));
    p = v_fma(p, f, v_set(-0x1.000006p-2f));
    p = v_fma(p, f, v_set(0x1.555548p-2f));
    vf y = p * (f2 * f);
    y = v_fma(k, v_set(0x1.7f7d1cp-20f), y);
    y = v_fma(v_set(-0.5f), f2, y);
    y = v_fma(k, v_set(0x1.62e400p-1f), f + y);
    y = v_sel(v_lt(v_set(0x1.fffffep127f), x), x, y); /* +inf */
    y = v_sel(v_eq(x, zero), v_set(-INFINITY), y);
    y = v_sel(v_lt(x, zero), v_set(NAN), y);
    return v_sel(v_isnan(x), x, y);
}

/* tanh x = x + x^3 P(x^2) on |x| < 0.625, relative error 2^-27 */
K_INLINE vf v_tanh_small(vf x) {
    const vf z = x * x;
    vf p = v_set(-0x1.75e1ccp-8f);
    p = v_fma(p, z, v_set(0x1.52269ap-6f));
    p = v_fma(p, z, v_set(-0x1.b83c5ap-5f));
    p = v_fma(p, z, v_set(0x1.110726p-3f));
    p = v_fma(p, z, v_set(-0x1.555532p-2f));
    return v_fma(p * z, x, x);
}

/* from there on 1 - 2 / (e^2|x| + 1) */
K_INLINE vf v_tanh(vf x) {
    const vf a = v_abs(x);
    const vf big = v_set(1.0f) - v_set(2.0f) / (v_exp(a + a) + v_set(1.0f));
    return v_copysign(v_sel(v_lt(a, v_set(0.625f)), v_tanh_small(x), big), x);
}

/* e^min(x, 0) / (1 + e^-|x|): no intermediate overflows, subnormal results are kept */
K_INLINE vf v_sigmoid(vf x) {
    const vf e = v_exp(-v_abs(x)), one = v_set(1.0f);
    return v_sel(v_lt(x, v_set(0.0f)), e, one) / (one + e);
}

/* x e^min(x, 0) / (1 + e^-|x|) without a division, which takes as long as all the rest: the reciprocal of d in [1, 2] is (32 d^2 - 144 d +
 * 210) / 99 (Chebyshev's polynomial, error 1/99) after two of Newton's steps. From x = -88 on down it is 0. */
K_INLINE vf v_silu(vf x) {
    const vf low = v_max(v_set(-88.0f), x), one = v_set(1.0f);
    vi n;
    const vf p = v__exp_reduced(v_max(v_set(-88.0f), -v_abs(x)), &n), scale = (vf)((vu)(n + 127) << 23), e = v_fma(p, scale, scale), d = one + e;
    vf r = v_fma(v_fma(v_set(32.0f / 99), d, v_set(-144.0f / 99)), d, v_set(210.0f / 99));
    r = v_fma(r, v_fnma(d, r, one), r);
    r = v_fma(r, v_fnma(d, r, one), r);
    return v_sel(v_lt(x, v_set(0.0f)), low * e, x) * r;
}

/* |x| < 0.94: x + x P(x^2), relative error 2^-25; else 1 - e^-R(|x|) with R = -ln erfc on [0.92, 4], beyond which erf is 1 */
K_INLINE vf v_erf(vf x) {
    const vf a = v_abs(x), z = x * x;
    vf p = v_set(-0x1.335734p-11f);
    p = v_fma(p, z, v_set(0x1.458cd4p-8f));
    p = v_fma(p, z, v_set(-0x1.b640d8p-6f));
    p = v_fma(p, z, v_set(0x1.ce1538p-4f));
    p = v_fma(p, z, v_set(-0x1.8126c6p-2f));
    p = v_fma(p, z, v_set(0x1.06eba4p-3f));
    const vf small = v_fma(p, x, x), b = v_min(v_set(4.0f), a);
    vf r = v_set(0x1.61ea30p-16f);
    r = v_fma(r, b, v_set(-0x1.c790ecp-12f));
    r = v_fma(r, b, v_set(0x1.115ac2p-8f));
    r = v_fma(r, b, v_set(-0x1.9b8e78p-6f));
    r = v_fma(r, b, v_set(0x1.bb83e4p-4f));
    r = v_fma(r, b, v_set(0x1.44460cp-1f));
    r = v_fma(r, b, v_set(0x1.2127e4p+0f));
    r = v_fma(r, b, v_set(-0x1.6e5658p-13f));
    return v_sel(v_lt(a, v_set(0.94f)), small, v_copysign(v_set(1.0f) - v_exp(-r), x));
}

/* With z = x / sqrt 2: erf(z) = z P(z^2) on |z| < 3.9, where it reaches 1, P in powers of s = z^2 / 7.605 - 1, which runs from -1 to 1 so that
 * 15 terms lose nothing; absolute error 2.3e-7. That is not erf near 0 to the last bit, as v_erf is, and a third of its time. */
K_INLINE vf v_gelu(vf x) {
    const vf half = v_set(0.5f) * x, z = v_min(v_set(3.9f), v_max(v_set(-3.9f), x * v_set(0.70710678118654752f)));
    const vf s = v_fma(z * z, v_set(0x1.0d4be8p-3f), v_set(-1.0f));
    vf p = v_set(0x1.a266eep-10f);
    p = v_fma(p, s, v_set(-0x1.08f10cp-8f));
    p = v_fma(p, s, v_set(0x1.8418f8p-9f));
    p = v_fma(p, s, v_set(-0x1.c81096p-9f));
    p = v_fma(p, s, v_set(0x1.915a36p-7f));
    p = v_fma(p, s, v_set(-0x1.6aefa4p-6f));
    p = v_fma(p, s, v_set(0x1.eaea7ep-6f));
    p = v_fma(p, s, v_set(-0x1.564e78p-5f));
    p = v_fma(p, s, v_set(0x1.d83828p-5f));
    p = v_fma(p, s, v_set(-0x1.2f17d4p-4f));
    p = v_fma(p, s, v_set(0x1.738b50p-4f));
    p = v_fma(p, s, v_set(-0x1.c0939ap-4f));
    p = v_fma(p, s, v_set(0x1.13d7cap-3f));
    p = v_fma(p, s, v_set(-0x1.72b628p-3f));
    p = v_fma(p, s, v_set(0x1.734938p-2f));
    return v_fma(half, v_min(v_set(1.0f), v_max(v_set(-1.0f), p * z)), half);
}

K_INLINE vf v_gelu_tanh(vf x) {
    const vf half = v_set(0.5f) * x, inner = v_fma(v_set(0.044715f) * x * x, x, x);
    return v_fma(half, v_tanh(v_set(0.79788456080286536f) * inner), half);
}

K_INLINE vf v_softplus(vf x) {
    return v_max(v_set(0.0f), x) + v_log(v_set(1.0f) + v_exp(-v_abs(x)));
}

/* tanh(ln(1 + w)) = w (w + 2) / (w (w + 2) + 2) with w = e^x; it is 1 from x = 20 on */
K_INLINE vf v_mish(vf x) {
    const vf w = v_exp(v_min(v_set(20.0f), x)), m = w * (w + v_set(2.0f));
    return x * (m / (m + v_set(2.0f)));
}

K_INLINE vf v_unit(vf x) { return v_min(v_set(1.0f), v_max(v_set(0.0f), x)); } /* to [0, 1] */
K_INLINE vf v_max_nan(vf a, vf b) { return v_sel(v_isnan(a), a, v_max(a, b)); }
K_INLINE vf v_min_nan(vf a, vf b) { return v_sel(v_isnan(a), a, v_min(a, b)); }

/* --- loops over arrays ------------------------------------------------------------------------------- */

#define K_DEFINE_UNARY(name, expr)                                                                 \
    static void name(int64_t n, const float *x, float *y, float alpha, float beta) {               \
        const vf a = v_set(alpha), b = v_set(beta);                                                \
        (void)a, (void)b;                                                                          \
        for (; n >= VW; n -= VW, x += VW, y += VW) {                                               \
            const vf v = v_load(x);                                                                \
            v_store(y, expr);                                                                      \
        }                                                                                          \
        if (n > 0) {                                                                               \
            const vf v = v_loadn(x, n);                                                            \
            v_storen(y, expr, n);                                                                  \
        }                                                                                          \
    }

K_DEFINE_UNARY(a_exp, v_exp(v))
K_DEFINE_UNARY(a_log, v_log(v))
K_DEFINE_UNARY(a_tanh, v_tanh(v))
K_DEFINE_UNARY(a_sigmoid, v_sigmoid(v))
K_DEFINE_UNARY(a_erf, v_erf(v))
K_DEFINE_UNARY(a_gelu, v_gelu(v))
K_DEFINE_UNARY(a_gelu_tanh, v_gelu_tanh(v))
K_DEFINE_UNARY(a_silu, v_silu(v))
K_DEFINE_UNARY(a_softplus, v_softplus(v))
K_DEFINE_UNARY(a_mish, v_mish(v))
K_DEFINE_UNARY(a_elu, v_sel(v_lt(v, v_set(0.0f)), a *v_expm1_negative(v), v))
K_DEFINE_UNARY(a_relu, v_max(v_set(0.0f), v))
K_DEFINE_UNARY(a_clip, v_min(b, v_max(a, v)))
K_DEFINE_UNARY(a_leaky_relu, v_sel(v_lt(v, v_set(0.0f)), a *v, v))
K_DEFINE_UNARY(a_hard_sigmoid, v_unit(v_fma(a, v, b)))
K_DEFINE_UNARY(a_hard_swish, (v * v_unit(v_fma(v, v_set(1.0f / 6), v_set(0.5f)))))
K_DEFINE_UNARY(a_sqrt, v_sqrt(v))
K_DEFINE_UNARY(a_reciprocal, (v_set(1.0f) / v))
K_DEFINE_UNARY(a_neg, (-v))
K_DEFINE_UNARY(a_abs, v_abs(v))
K_DEFINE_UNARY(a_square, (v * v))
K_DEFINE_UNARY(a_linear, v_fma(a, v, b))

static void a_copy(int64_t n, const float *x, float *y, float alpha, float beta) {
    (void)alpha, (void)beta;
    if (n > 0 && x != y) memcpy(y, x, (size_t)n * sizeof *x);
}

#define K_DEFINE_BINARY(name, expr)                                                                \
    static void name(int64_t n, const float *x, bool x_scalar, const float *y, bool y_scalar, float *dst) { \
        if (n <= 0) return;                                                                        \
        const vf x0 = v_set(*x), y0 = v_set(*y);                                                   \
        int64_t i = 0;                                                                             \
        if (!x_scalar && !y_scalar)                                                                \
            for (; i + VW <= n; i += VW) {                                                         \
                const vf a = v_load(x + i), b = v_load(y + i);                                     \
                v_store(dst + i, expr);                                                            \
            }                                                                                      \
        else                                                                                       \
            for (; i + VW <= n; i += VW) {                                                         \
                const vf a = x_scalar ? x0 : v_load(x + i), b = y_scalar ? y0 : v_load(y + i);     \
                v_store(dst + i, expr);                                                            \
            }                                                                                      \
        if (i < n) {                                                                               \
            const vf a = x_scalar ? x0 : v_loadn(x + i, n - i), b = y_scalar ? y0 : v_loadn(y + i, n - i); \
            v_storen(dst + i, expr, n - i);                                                        \
        }                                                                                          \
    }

K_DEFINE_BINARY(b_add, (a + b))
K_DEFINE_BINARY(b_sub, (a - b))
K_DEFINE_BINARY(b_mul, (a * b))
K_DEFINE_BINARY(b_div, (a / b))
K_DEFINE_BINARY(b_max, v_max_nan(a, b))
K_DEFINE_BINARY(b_min, v_min_nan(a, b))

static void axpy(int64_t n, float alpha, const float *x, float *y) {
    const vf a = v_set(alpha);
    for (; n >= VW; n -= VW, x += VW, y += VW) v_store(y, v_fma(a, v_load(x), v_load(y)));
    if (n > 0) v_storen(y, v_fma(a, v_loadn(x, n), v_loadn(y, n)), n);
}

static void fma_arrays(int64_t n, const float *x, const float *y, float *dst) {
    for (; n >= VW; n -= VW, x += VW, y += VW, dst += VW) v_store(dst, v_fma(v_load(x), v_load(y), v_load(dst)));
    if (n > 0) v_storen(dst, v_fma(v_loadn(x, n), v_loadn(y, n), v_loadn(dst, n)), n);
}

/* sigmoid and tanh as quotients, so that products of them need one division: x -> *over / *under. */
K_INLINE void v_sigmoid_parts(vf x, vf *over, vf *under) {
    const vf e = v_exp_negative(-v_abs(x)), one = v_set(1.0f);
    *over = v_sel(v_lt(x, v_set(0.0f)), e, one);
    *under = one + e;
}

K_INLINE void v_tanh_parts(vf x, vf *over, vf *under) {
    const vf a = v_abs(x), e = v_exp_negative(v_set(-2.0f) * a), one = v_set(1.0f);
    const vm small = v_lt(a, v_set(0.625f));
    *over = v_sel(small, v_tanh_small(x), v_copysign(one - e, x));
    *under = v_sel(small, one, one + e);
}

K_INLINE void lstm_vector(vf i, vf o, vf f, vf z, vf *c, vf *h) {
    vf i_over, i_under, o_over, o_under, f_over, f_under, z_over, z_under;
    v_sigmoid_parts(i, &i_over, &i_under);
    v_sigmoid_parts(f, &f_over, &f_under);
    v_tanh_parts(z, &z_over, &z_under);
    const vf under = i_under * z_under;
    *c = v_fma(f_over * *c, under, i_over * z_over * f_under) / (f_under * under);
    v_sigmoid_parts(o, &o_over, &o_under);
    v_tanh_parts(*c, &z_over, &z_under);
    *h = o_over * z_over / (o_under * z_under);
}

static void lstm_cell(int64_t n, const float *gates, float *c, float *h) {
    const float *i = gates, *o = i + n, *f = o + n, *z = f + n;
    for (int64_t at = 0; at < n; at += VW) {
        const vp part = v_part(n - at);
        vf cell = v_loadp(c + at, part), out;
        lstm_vector(v_loadp(i + at, part), v_loadp(o + at, part), v_loadp(f + at, part), v_loadp(z + at, part), &cell, &out);
        v_storep(c + at, cell, part);
        v_storep(h + at, out, part);
    }
}

K_INLINE vf pool_vector(int taps, const int64_t *offset, const float *x, const bool max, vp part) {
    vf acc = v_loadp(x + offset[0], part);
    for (int t = 1; t < taps; t++) {
        const vf v = v_loadp(x + offset[t], part);
        if (max) acc = v_max_nan(acc, v);
        else acc = acc + v;
    }
    return acc;
}

static void pool(int64_t pixels, int64_t n, int taps, const int64_t *offset, const float *x, int64_t x_step, bool max, float *y) {
    for (int64_t p = 0; p < pixels; p++, x += x_step, y += n)
        for (int64_t i = 0; i < n; i += VW) {
            const vp part = v_part(n - i);
            v_storep(y + i, max ? pool_vector(taps, offset, x + i, true, part) : pool_vector(taps, offset, x + i, false, part), part);
        }
}

/* --- reductions -------------------------------------------------------------------------------------- */

enum { PARTIALS = 64, PARTIAL_VECTORS = PARTIALS / VW };

/* The tail of an array as a whole block; returns the block. */
K_INLINE const float *fill_up(float *block, const float *x, int64_t n, float neutral) {
    for (int64_t i = 0; i < PARTIALS; i++) block[i] = i < n ? x[i] : neutral;
    return block;
}

/* Loops over blocks of 64 of x and y (x again where there is one array), the last one filled up; `step` updates
 * acc[j] by u of x and w of y. */
#define K_REDUCE(acc, init, x, y, n, neutral, step)                                                \
    vf acc[PARTIAL_VECTORS];                                                                       \
    float block_x[PARTIALS], block_y[PARTIALS];                                                    \
    K_UNROLL for (int j = 0; j < PARTIAL_VECTORS; j++) acc[j] = v_set(init);                       \
    for (int64_t i = 0; i < (n); i += PARTIALS) {                                                  \
        const bool whole = (n) - i >= PARTIALS;                                                    \
        const float *px = whole ? (x) + i : fill_up(block_x, (x) + i, (n) - i, neutral);           \
        const float *py = (y) == (x) ? px : whole ? (y) + i : fill_up(block_y, (y) + i, (n) - i, neutral); \
        K_UNROLL for (int j = 0; j < PARTIAL_VECTORS; j++) {                                       \
            const vf u = v_load(px + VW * j), w = v_load(py + VW * j);                             \
            (void)w;                                                                               \
            acc[j] = step;                                                                         \
        }                                                                                          \
    }

/* The tree: element i takes in element i + half, for half = 32, 16, 8, 4, 2, 1. */
K_INLINE float join_sum(vf *acc) {
    float p[VW];
    K_UNROLL for (int half = PARTIAL_VECTORS / 2; half > 0; half /= 2) {
        K_UNROLL for (int j = 0; j < half; j++) acc[j] = acc[j] + acc[j + half];
    }
    v_store(p, acc[0]);
    K_UNROLL for (int half = VW / 2; half > 0; half /= 2) {
        K_UNROLL for (int i = 0; i < half; i++) p[i] += p[i + half];
    }
    return p[0];
}

K_INLINE float join_extreme(vf *acc, const bool max) {
    float p[VW];
    K_UNROLL for (int half = PARTIAL_VECTORS / 2; half > 0; half /= 2) {
        K_UNROLL for (int j = 0; j < half; j++) acc[j] = max ? v_max_nan(acc[j], acc[j + half]) : v_min_nan(acc[j], acc[j + half]);
    }
    v_store(p, acc[0]);
    float best = p[0];
    for (int i = 1; i < VW; i++)
        if (p[i] != p[i] || (max ? p[i] > best : p[i] < best)) best = p[i]; /* nothing is above or below NaN */
    return best;
}

static float sum(int64_t n, const float *x) {
    K_REDUCE(acc, 0.0f, x, x, n, 0.0f, acc[j] + u)
    return join_sum(acc);
}

static float dot(int64_t n, const float *x, const float *y) {
    K_REDUCE(acc, 0.0f, x, y, n, 0.0f, v_fma(u, w, acc[j]))
    return join_sum(acc);
}

static float sum_square(int64_t n, const float *x, float shift) {
    const vf s = v_set(shift);
    K_REDUCE(acc, 0.0f, x, x, n, shift, v_fma(u - s, u - s, acc[j]))
    return join_sum(acc);
}

static float sum_exp(int64_t n, const float *x, float shift) { /* sum of e^(x - shift) */
    const vf s = v_set(shift);
    K_REDUCE(acc, 0.0f, x, x, n, -INFINITY, acc[j] + v_exp(u - s))
    return join_sum(acc);
}

static float reduce_max(int64_t n, const float *x) {
    K_REDUCE(acc, -INFINITY, x, x, n, -INFINITY, v_max_nan(acc[j], u))
    return join_extreme(acc, true);
}

static float reduce_min(int64_t n, const float *x) {
    K_REDUCE(acc, INFINITY, x, x, n, INFINITY, v_min_nan(acc[j], u))
    return join_extreme(acc, false);
}

/* --- rows ---------------------------------------------------------------------------------------------- */

static void softmax(int64_t n, const float *x, float *y) {
    const float max = reduce_max(n, x);
    b_sub(n, x, false, &max, true, y);
    a_exp(n, y, y, 0, 0);
    const float total = sum(n, y);
    b_div(n, y, false, &total, true, y);
}

/* A row of attention in two steps, so that its scale and mask and its sum cost no walk of their own. */
static float scale_max(int64_t n, float scale, const float *add, float *x) {
    const vf s = v_set(scale);
    vf acc[PARTIAL_VECTORS];
    float block[PARTIALS], added[PARTIALS];
    K_UNROLL for (int j = 0; j < PARTIAL_VECTORS; j++) acc[j] = v_set(-INFINITY);
    for (; n > 0; n -= PARTIALS, x += PARTIALS) {
        const bool whole = n >= PARTIALS;
        float *to = x;
        if (!whole) {
            to = block;
            fill_up(block, x, n, 0.0f);
            for (int64_t i = 0; i < PARTIALS; i++) added[i] = i >= n ? -INFINITY : add ? add[i] : 0.0f;
        }
        const float *plus = whole ? add : added;
        K_UNROLL for (int j = 0; j < PARTIAL_VECTORS; j++) {
            const vf y = v_fma(v_load(to + VW * j), s, plus ? v_load(plus + VW * j) : v_set(0.0f));
            v_store(to + VW * j, y);
            acc[j] = v_max_nan(acc[j], y);
        }
        if (!whole) memcpy(x, block, (size_t)n * sizeof *x);
        if (add) add += PARTIALS;
    }
    return join_extreme(acc, true);
}

static float exp_sum(int64_t n, float shift, float *x) {
    const vf s = v_set(shift);
    vf acc[PARTIAL_VECTORS];
    float block[PARTIALS];
    K_UNROLL for (int j = 0; j < PARTIAL_VECTORS; j++) acc[j] = v_set(0.0f);
    for (; n > 0; n -= PARTIALS, x += PARTIALS) {
        float *to = n >= PARTIALS ? x : block;
        if (to == block) fill_up(block, x, n, -INFINITY);
        K_UNROLL for (int j = 0; j < PARTIAL_VECTORS; j++) {
            const vf y = v_exp_negative(v_load(to + VW * j) - s);
            v_store(to + VW * j, y);
            acc[j] = acc[j] + y;
        }
        if (to == block) memcpy(x, block, (size_t)n * sizeof *x);
    }
    return join_sum(acc);
}

static void log_softmax(int64_t n, const float *x, float *y) {
    const float max = reduce_max(n, x), total = sum_exp(n, x, max);
    float log_total = 0;
    a_log(1, &total, &log_total, 0, 0);
    b_sub(n, x, false, &max, true, y);
    b_sub(n, y, false, &log_total, true, y);
}

K_INLINE vf normalised(vf x, vf mean, vf inv_std, const float *scale, const float *bias, int64_t left) {
    vf y = (x - mean) * inv_std;
    if (scale) y = y * (left >= VW ? v_load(scale) : v_loadn(scale, left));
    if (bias) y = y + (left >= VW ? v_load(bias) : v_loadn(bias, left));
    return y;
}

static void affine_row(int64_t n, const float *x, float mean, float inv_std, const float *scale, const float *bias, float *y) {
    const vf m = v_set(mean), s = v_set(inv_std);
    for (int64_t i = 0; i < n; i += VW) {
        const int64_t left = n - i;
        const vf v = left >= VW ? v_load(x + i) : v_loadn(x + i, left);
        const vf r = normalised(v, m, s, scale ? scale + i : NULL, bias ? bias + i : NULL, left);
        if (left >= VW)
            v_store(y + i, r);
        else
            v_storen(y + i, r, left);
    }
}

static void layer_norm(int64_t n, const float *x, const float *scale, const float *bias, float epsilon, float *y, float *mean, float *inv_std) {
    if (n <= 0) return;
    const float m = sum(n, x) / (float)n, s = 1.0f / sqrtf(sum_square(n, x, m) / (float)n + epsilon);
    affine_row(n, x, m, s, scale, bias, y);
    if (mean) *mean = m;
    if (inv_std) *inv_std = s;
}

static void rms_norm(int64_t n, const float *x, const float *scale, float epsilon, float *y) {
    if (n <= 0) return;
    affine_row(n, x, 0.0f, 1.0f / sqrtf(sum_square(n, x, 0.0f) / (float)n + epsilon), scale, NULL, y);
}

/* --- updates of weights --------------------------------------------------------------------------------- */

static void sgd(int64_t n, float rate, float momentum, bool nesterov, const float *g, float *m, float *w) {
    const vf r = v_set(rate), mu = v_set(momentum);
    for (int64_t i = 0; i < n; i += VW) {
        const vp p = v_part(n - i);
        const vf step = r * v_loadp(g + i, p);
        vf d = -step;
        if (m) {
            d = mu * v_loadp(m + i, p) - step;
            v_storep(m + i, d, p);
            if (nesterov) d = mu * d - step;
        }
        v_storep(w + i, v_loadp(w + i, p) + d, p);
    }
}

static void adam(int64_t n, float rate, float c1, float c2, float epsilon, const float *g, float *m, float *v, float *w) {
    const vf r = v_set(rate), k1 = v_set(c1), k2 = v_set(c2), e = v_set(epsilon);
    for (int64_t i = 0; i < n; i += VW) {
        const vp p = v_part(n - i);
        const vf x = v_loadp(g + i, p), old_m = v_loadp(m + i, p), old_v = v_loadp(v + i, p);
        const vf new_m = old_m + (x - old_m) * k1, new_v = old_v + (x * x - old_v) * k2;
        v_storep(m + i, new_m, p);
        v_storep(v + i, new_v, p);
        v_storep(w + i, v_loadp(w + i, p) - new_m * r / (v_sqrt(new_v) + e), p);
    }
}

/* Designated initialisers by the names of K_UNARY_MAP and K_BINARY_MAP; test_kern_vmath checks that none is missing. */
#define K_VMATH_TABLE                                                                              \
    {                                                                                              \
        .unary = {[K_EXP] = a_exp, [K_LOG] = a_log, [K_TANH] = a_tanh, [K_SIGMOID] = a_sigmoid, [K_ERF] = a_erf, [K_GELU] = a_gelu, \
                  [K_GELU_TANH] = a_gelu_tanh, [K_SILU] = a_silu, [K_SOFTPLUS] = a_softplus, [K_MISH] = a_mish, [K_ELU] = a_elu, \
                  [K_RELU] = a_relu, [K_CLIP] = a_clip, [K_LEAKY_RELU] = a_leaky_relu, [K_HARD_SIGMOID] = a_hard_sigmoid, \
                  [K_HARD_SWISH] = a_hard_swish, [K_SQRT] = a_sqrt, [K_RECIPROCAL] = a_reciprocal, [K_NEG] = a_neg, [K_ABS] = a_abs, \
                  [K_SQUARE] = a_square, [K_LINEAR] = a_linear, [K_COPY] = a_copy},                \
        .binary = {[K_ADD] = b_add, [K_SUB] = b_sub, [K_MUL] = b_mul, [K_DIV] = b_div, [K_MAX] = b_max, [K_MIN] = b_min}, \
        .axpy = axpy, .fma = fma_arrays, .sum = sum, .dot = dot, .sum_square = sum_square, .max = reduce_max, .min = reduce_min, \
        .softmax = softmax, .log_softmax = log_softmax, .scale_max = scale_max, .exp_sum = exp_sum, .lstm_cell = lstm_cell, .pool = pool, .layer_norm = layer_norm, .rms_norm = rms_norm, \
        .sgd = sgd, .adam = adam, \
    }
