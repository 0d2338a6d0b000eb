/* quant_body.h: the kernels on bytes, written once and compiled for each level (K_LANES, and K_DOT where the machine has vpdpbusd).
 *
 * tile       up to 6 rows by 4 vectors of columns, or 8 by fewer (AVX-512: 24 accumulators), 4 by 2 below. A row's four bytes are
 *            broadcast and multiplied with four bytes of each column.
 * depthwise  a vector of bytes is VB channels. Up to four rows of the kernel are zipped, so that a 32-bit lane holds one channel's column
 *            of taps, and one v_dot does it. Zipping puts channels in another order within a block of VB (k_quant_channel), in which weights,
 *            offsets and scales are packed; packing the results back undoes it. With stride 1 a column is zipped once for three outputs. */
#include "ops/kern/quant.h"
#include "ops/kern/quant_lanes.h"

#if K_LANES == K_LANES_AVX512
enum { TILE_ROWS = 6, TILE_ROWS_NARROW = 8, TILE_VECTORS = 4 };
#else
enum { TILE_ROWS = 4, TILE_ROWS_NARROW = 4, TILE_VECTORS = 2 };
#endif

/* --- after the sum -------------------------------------------------------------------------------------- */

K_INLINE vf rounded(vf x, vf lo, vf hi) { return v_float(v_round(v_clip(x, lo, hi))); }

K_INLINE vi residual_bytes(const struct k_quant_after *f, const uint8_t *p, vp part) {
    const vi x = v_bytesp(p, part);
    return f->residual_signed ? (x ^ v_seti(0x80)) : x;
}

/* The integer of a BYTE result: x is the scaled sum. */
K_INLINE vi byte_of(const struct k_quant_after *f, const bool with_residual, vf x, vi residual) {
    if (with_residual) {
        const vf other = (v_float(residual) - v_set(f->residual_zero)) * v_set(f->residual_scale);
        x = rounded(x, v_set(f->mid_lo), v_set(f->mid_hi)) * v_set(f->mid_scale) + other;
    }
    return (vi)((vu)v_round(v_clip(x, v_set(f->lo), v_set(f->hi))) + (vu)v_seti(f->zero));
}

#ifdef K_SATURATES
/* Results whose values are below 2^31 before they are rounded: saturating while packing does what clipping would. */
struct packing {
    vs zero; /* 16 bits */
    vb lo, hi;
    bool is_signed;
};

K_INLINE struct packing packing_of(const struct k_quant_after *f) {
    return (struct packing){v_set16(f->zero), v_setb((uint8_t)((int32_t)f->lo + f->zero)), v_setb((uint8_t)((int32_t)f->hi + f->zero)), f->lo + (float)f->zero < 0};
}

/* q: four vectors of rounded values; in each 16 bytes the result has four bytes of each. */
K_INLINE vb packed(const struct packing *p, const vi *q) {
    const vs low = v_adds16(v_packs32(q[0], q[1]), p->zero), high = v_adds16(v_packs32(q[2], q[3]), p->zero);
    return p->is_signed ? v_clip_signed(v_packs16(low, high), p->lo, p->hi) : v_clip_unsigned(v_packus16(low, high), p->lo, p->hi);
}
#endif

#if K_LANES == K_LANES_AVX512
K_INLINE void finish_packed(const int mr, const int nv, const bool with_residual, vi acc[TILE_ROWS_NARROW][TILE_VECTORS], const struct k_quant_tile *t, vp part) {
    const struct k_quant_after *f = t->after;
    const struct packing p = packing_of(f);
    const __m512i in_order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    const __mmask64 columns = ~(__mmask64)0 >> (64 - t->n);
    vf scale[4];
    K_UNROLL for (int v = 0; v < nv; v++) scale[v] = v_loadp(f->scale + VW * v, v == nv - 1 ? part : 0xffff);
    K_UNROLL for (int r = 0; r < mr; r++) {
        vi q[4] = {v_seti(0), v_seti(0), v_seti(0), v_seti(0)};
        K_UNROLL for (int v = 0; v < nv; v++) {
            vf x = v_float(acc[r][v]) * scale[v];
            if (with_residual) {
                const vi residual = residual_bytes(f, f->residual + r * f->residual_row + VW * v, v == nv - 1 ? part : 0xffff);
                const vf other = (v_float(residual) - v_set(f->residual_zero)) * v_set(f->residual_scale);
                x = rounded(x, v_set(f->mid_lo), v_set(f->mid_hi)) * v_set(f->mid_scale) + other;
            }
            q[v] = v_round(x);
        }
        _mm512_mask_storeu_epi8((uint8_t *)t->c + r * t->c_row, columns, _mm512_permutexvar_epi32(in_order, (__m512i)packed(&p, q)));
    }
}
#endif

K_INLINE void finish_bytes(const int mr, const int nv, const bool with_residual, vi acc[TILE_ROWS_NARROW][TILE_VECTORS], const struct k_quant_tile *t, vp part) {
    const struct k_quant_after *f = t->after;
#if K_LANES == K_LANES_AVX512
    if (f->small) {
        finish_packed(mr, nv, with_residual, acc, t, part);
        return;
    }
#endif
    const vp all = v_part(VW);
    K_UNROLL for (int v = 0; v < nv; v++) {
        const vp m = v == nv - 1 ? part : all;
        const vf scale = v_loadp(f->scale + VW * v, m);
        K_UNROLL for (int r = 0; r < mr; r++) {
            const vi residual = with_residual ? residual_bytes(f, f->residual + r * f->residual_row + VW * v, m) : v_seti(0);
            v_store_bytesp((uint8_t *)t->c + r * t->c_row + VW * v, byte_of(f, with_residual, v_float(acc[r][v]) * scale, residual), m);
        }
    }
}

K_INLINE void finish_floats(const int mr, const int nv, vi acc[TILE_ROWS_NARROW][TILE_VECTORS], const struct k_quant_tile *t, vp part) {
    const struct k_quant_after *f = t->after;
    const vp all = v_part(VW);
    const vf mid_lo = v_set(f->mid_lo), mid_hi = v_set(f->mid_hi), mid_scale = v_set(f->mid_scale);
    K_UNROLL for (int v = 0; v < nv; v++) {
        const vp m = v == nv - 1 ? part : all;
        const vf scale = v_loadp(f->scale + VW * v, m), bias = f->bias ? v_loadp(f->bias + VW * v, m) : v_set(0.0f);
        K_UNROLL for (int r = 0; r < mr; r++) {
            vf x = v_float(acc[r][v]) * scale;
            if (f->mid) x = rounded(x, mid_lo, mid_hi) * mid_scale;
            if (f->bias) x = x + bias;
            v_storep((float *)t->c + r * t->c_row + VW * v, x, m);
        }
    }
}

K_INLINE void finish(const int mr, const int nv, vi acc[TILE_ROWS_NARROW][TILE_VECTORS], const struct k_quant_tile *t, vp part) {
    const struct k_quant_after *f = t->after;
    const vp all = v_part(VW);
    if (f->row_sum) {
        K_UNROLL for (int v = 0; v < nv; v++) {
            const vi zero = v_loadip(f->b_zero + VW * v, v == nv - 1 ? part : all);
            K_UNROLL for (int r = 0; r < mr; r++) acc[r][v] = (vi)((vu)acc[r][v] - (vu)zero * (vu)v_seti(f->row_sum[r]));
        }
    }
    if (f->out == K_QUANT_BYTE && f->residual) {
        finish_bytes(mr, nv, true, acc, t, part);
    } else if (f->out == K_QUANT_BYTE) {
        finish_bytes(mr, nv, false, acc, t, part);
    } else if (f->out == K_QUANT_FLOAT) {
        finish_floats(mr, nv, acc, t, part);
    } else {
        K_UNROLL for (int v = 0; v < nv; v++) {
            K_UNROLL for (int r = 0; r < mr; r++) v_storeip((int32_t *)t->c + r * t->c_row + VW * v, acc[r][v], v == nv - 1 ? part : all);
        }
    }
}

/* --- the tile ------------------------------------------------------------------------------------------- */

K_INLINE void tile(const int mr, const int nv, const struct k_quant_tile *t) {
    const struct k_quant_after *f = t->after;
    const vp part = v_part(t->n - VW * (nv - 1)), all = v_part(VW);
    const int64_t b_quad = t->b_quad, quads = t->quads;
    const int8_t *b = t->b, *ahead = t->ahead;
    const int64_t ahead_step = t->ahead_step;
    vi acc[TILE_ROWS_NARROW][TILE_VECTORS];

    K_UNROLL for (int v = 0; v < nv; v++) {
        const vi offset = f->offset ? v_loadip(f->offset + VW * v, v == nv - 1 ? part : all) : v_seti(0);
        K_UNROLL for (int r = 0; r < mr; r++) acc[r][v] = offset;
    }
    for (int64_t s = 0; s < t->n_segments; s++) {
        const uint8_t *a[TILE_ROWS_NARROW];
        K_UNROLL for (int r = 0; r < mr; r++) a[r] = t->a[r] + t->segment[s];
        for (int64_t q = 0; q < quads; q++, b += b_quad, ahead += ahead_step) {
            vi bv[TILE_VECTORS];
            __builtin_prefetch(ahead, 0, 2);
            K_UNROLL for (int v = 0; v < nv; v++) bv[v] = v_loadi(b + VB * v);
            K_UNROLL for (int r = 0; r < mr; r++) {
                const vi av = v_quad(a[r] + 4 * q);
                K_UNROLL for (int v = 0; v < nv; v++) acc[r][v] = v_dot(acc[r][v], av, bv[v]);
            }
        }
    }
    finish(mr, nv, acc, t, part);
}

#define K_TILE(m, v)                                                                               \
    static void tile_##m##_##v(const struct k_quant_tile *t) { tile(m, v, t); }
K_TILE(1, 1) K_TILE(2, 1) K_TILE(4, 1) K_TILE(1, 2) K_TILE(2, 2) K_TILE(4, 2)
#if K_LANES == K_LANES_AVX512
K_TILE(8, 1) K_TILE(8, 2) K_TILE(1, 3) K_TILE(2, 3) K_TILE(4, 3) K_TILE(8, 3) K_TILE(1, 4) K_TILE(2, 4) K_TILE(4, 4) K_TILE(6, 4)
#endif

/* Rows between the sizes that exist are done by two tiles. */
static void run_tile(int m, const struct k_quant_tile *t) {
    typedef void tile_fn(const struct k_quant_tile *);
    static const struct {
        int rows;
        tile_fn *fn;
    } all[TILE_VECTORS][4] = {
#if K_LANES == K_LANES_AVX512
        {{8, tile_8_1}, {4, tile_4_1}, {2, tile_2_1}, {1, tile_1_1}}, {{8, tile_8_2}, {4, tile_4_2}, {2, tile_2_2}, {1, tile_1_2}},
        {{8, tile_8_3}, {4, tile_4_3}, {2, tile_2_3}, {1, tile_1_3}}, {{6, tile_6_4}, {4, tile_4_4}, {2, tile_2_4}, {1, tile_1_4}},
#else
        {{4, tile_4_1}, {2, tile_2_1}, {1, tile_1_1}}, {{4, tile_4_2}, {2, tile_2_2}, {1, tile_1_2}},
#endif
    };
    const int nv = (t->n + VW - 1) / VW, size = t->after->out == K_QUANT_BYTE ? 1 : 4;
    if (m == all[nv - 1][0].rows) {
        all[nv - 1][0].fn(t);
        return;
    }
    struct k_quant_tile part = *t;
    struct k_quant_after after = *t->after;
    for (int i = 1, left = m; left > 0;) {
        const int rows = all[nv - 1][i].rows;
        if (left < rows) {
            i++;
            continue;
        }
        part.after = &after;
        all[nv - 1][i].fn(&part);
        left -= rows;
        part.a += rows;
        part.c = (char *)part.c + rows * part.c_row * size;
        if (after.row_sum) after.row_sum += rows;
        if (after.residual) after.residual += rows * after.residual_row;
    }
}

/* --- depthwise ------------------------------------------------------------------------------------------ */

struct column { /* four taps of VB channels, zipped */
    vi of[4];
};

/* Rows [first, first + 4) of the kernel at one input column. */
K_INLINE struct column load_column(const struct k_depthwise_q *d, int64_t column, int64_t first, int64_t channel) {
    vb x[4];
    const bool inside = column >= 0 && column < d->in_width;
    K_UNROLL for (int i = 0; i < 4; i++)
        x[i] = first + i >= d->kh ? v_setb(0) : inside ? v_loadb(d->rows[first + i] + column * d->channels + channel) : v_setb(d->zero);
    const vb a = v_zip8_low(x[0], x[1]), b = v_zip8_high(x[0], x[1]), c = v_zip8_low(x[2], x[3]), e = v_zip8_high(x[2], x[3]);
    return (struct column){{v_zip16_low(a, c), v_zip16_high(a, c), v_zip16_low(b, e), v_zip16_high(b, e)}};
}

K_INLINE void depthwise_store(const struct k_depthwise_q *d, const vi *acc, const vf *scale, int64_t o, int64_t channel) {
    uint8_t *to = d->y + o * d->channels + channel;
    vi q[4];
    vb y;
#ifdef K_SATURATES
    if (d->after->small) {
        const struct packing p = packing_of(d->after);
        K_UNROLL for (int i = 0; i < 4; i++) q[i] = v_round(v_float(acc[i]) * scale[i]);
        y = packed(&p, q);
    } else
#endif
    {
        K_UNROLL for (int i = 0; i < 4; i++) q[i] = byte_of(d->after, false, v_float(acc[i]) * scale[i], acc[i]);
        y = v_pack(q[0], q[1], q[2], q[3]);
    }
    if (d->channels - channel >= VB)
        v_storeb(to, y);
    else
        v_storebn(to, y, d->channels - channel);
}

/* 3 x 3 of stride and dilation 1. */
K_INLINE void depthwise_3(const struct k_depthwise_q *d, int64_t channel) {
    const int8_t *w = d->w + channel * 12;
    vi weight[3][4], offset[4];
    vf scale[4];
    struct column col[3];
    K_UNROLL for (int i = 0; i < 4; i++) {
        K_UNROLL for (int x = 0; x < 3; x++) weight[x][i] = v_loadi(w + (4 * x + i) * VB);
        offset[i] = v_loadi(d->after->offset + channel + VW * i);
        scale[i] = v_load(d->after->scale + channel + VW * i);
    }
    col[0] = load_column(d, d->left, 0, channel);
    col[1] = load_column(d, d->left + 1, 0, channel);
    for (int64_t o = 0; o < d->width; o += 3) {
        K_UNROLL for (int p = 0; p < 3; p++) {
            vi acc[4];
            if (o + p >= d->width) return;
            col[(p + 2) % 3] = load_column(d, d->left + o + p + 2, 0, channel);
            K_UNROLL for (int i = 0; i < 4; i++) {
                acc[i] = offset[i];
                K_UNROLL for (int x = 0; x < 3; x++) acc[i] = v_dot(acc[i], col[(p + x) % 3].of[i], weight[x][i]);
            }
            depthwise_store(d, acc, scale, o + p, channel);
        }
    }
}

/* 3 x 3 of stride 2: one column of three serves two outputs. */
K_INLINE void depthwise_3_by_2(const struct k_depthwise_q *d, int64_t channel) {
    const int8_t *w = d->w + channel * 12;
    vi offset[4];
    vf scale[4];
    K_UNROLL for (int i = 0; i < 4; i++) {
        offset[i] = v_loadi(d->after->offset + channel + VW * i);
        scale[i] = v_load(d->after->scale + channel + VW * i);
    }
    struct column first = load_column(d, d->left, 0, channel);
    for (int64_t o = 0; o < d->width; o++) {
        const struct column second = load_column(d, d->left + 2 * o + 1, 0, channel), third = load_column(d, d->left + 2 * o + 2, 0, channel);
        vi acc[4];
        K_UNROLL for (int i = 0; i < 4; i++) {
            acc[i] = v_dot(offset[i], first.of[i], v_loadi(w + i * VB));
            acc[i] = v_dot(acc[i], second.of[i], v_loadi(w + (4 + i) * VB));
            acc[i] = v_dot(acc[i], third.of[i], v_loadi(w + (8 + i) * VB));
        }
        depthwise_store(d, acc, scale, o, channel);
        first = third;
    }
}

K_INLINE void depthwise_any(const struct k_depthwise_q *d, int64_t channel) {
    const int64_t quads = (d->kh + 3) / 4;
    vf scale[4];
    K_UNROLL for (int i = 0; i < 4; i++) scale[i] = v_load(d->after->scale + channel + VW * i);
    for (int64_t o = 0; o < d->width; o++) {
        const int8_t *w = d->w + channel * d->kw * quads * 4;
        vi acc[4];
        K_UNROLL for (int i = 0; i < 4; i++) acc[i] = v_loadi(d->after->offset + channel + VW * i);
        for (int64_t x = 0; x < d->kw; x++) {
            for (int64_t q = 0; q < quads; q++, w += 4 * VB) {
                const struct column c = load_column(d, d->left + o * d->stride + x * d->dilation, 4 * q, channel);
                K_UNROLL for (int i = 0; i < 4; i++) acc[i] = v_dot(acc[i], c.of[i], v_loadi(w + i * VB));
            }
        }
        depthwise_store(d, acc, scale, o, channel);
    }
}

static void depthwise(const struct k_depthwise_q *d) {
    for (int64_t channel = 0; channel < d->channels; channel += VB) {
        if (d->kh == 3 && d->kw == 3 && d->stride == 1 && d->dilation == 1)
            depthwise_3(d, channel);
        else if (d->kh == 3 && d->kw == 3 && d->stride == 2 && d->dilation == 1)
            depthwise_3_by_2(d, channel);
        else
            depthwise_any(d, channel);
    }
}

/* --- element by element --------------------------------------------------------------------------------- */

static void quantize(int64_t n, const float *x, float scale, float lo, float hi, int32_t zero, uint8_t *dst) {
    const vf s = v_set(scale), inverse = v_set(1.0f / scale), far = v_set(0x1p20f), vlo = v_set(lo), vhi = v_set(hi);
    const bool usual = scale > 0x1p-100f && scale < 0x1p100f; /* else the reciprocal may be no number */
    for (int64_t i = 0; i < n; i += VW) {
        const vp m = v_part(n - i);
        const vf v = v_loadp(x + i, m);
        vf q;
        if (usual) { /* a step of Newton's makes the quotient as division would round it */
            q = v_clip(v * inverse, -far, far);
            q = v_fma(v_fnma(q, s, v), inverse, q);
        } else {
            q = v / s;
        }
        q = v_sel(v_isnan(q), v_set(0.0f), q);
        v_store_bytesp(dst + i, (vi)((vu)v_round(v_clip(q, vlo, vhi)) + (vu)v_seti(zero)), m);
    }
}

static void dequantize(int64_t n, const uint8_t *x, bool is_signed, int32_t zero, float scale, float *dst) {
    const vi flip = v_seti(is_signed ? 0x80 : 0), shift = v_seti(is_signed ? zero + 0x80 : zero);
    for (int64_t i = 0; i < n; i += VW) {
        const vp m = v_part(n - i);
        v_storep(dst + i, v_float((v_bytesp(x + i, m) ^ flip) - shift) * v_set(scale), m);
    }
}

static void add(int64_t n, const uint8_t *a, bool a_signed, float a_zero, float a_scale, const uint8_t *b, const struct k_quant_after *f, uint8_t *dst) {
    const vi flip = v_seti(a_signed ? 0x80 : 0);
    const vf zero = v_set(a_signed ? a_zero + 128.0f : a_zero), scale = v_set(a_scale), lo = v_set(f->lo), hi = v_set(f->hi);
    for (int64_t i = 0; i < n; i += VW) {
        const vp m = v_part(n - i);
        const vf other = (v_float(residual_bytes(f, b + i, m)) - v_set(f->residual_zero)) * v_set(f->residual_scale);
        const vf sum = (v_float(v_bytesp(a + i, m) ^ flip) - zero) * scale + other;
        v_store_bytesp(dst + i, (vi)((vu)v_round(v_clip(sum, lo, hi)) + (vu)v_seti(f->zero)), m);
    }
}

static void multiply(int64_t n, const uint8_t *a, bool a_signed, float a_zero, float a_scale, const uint8_t *b, const struct k_quant_after *f, uint8_t *dst) {
    const vi flip = v_seti(a_signed ? 0x80 : 0);
    const vf zero = v_set(a_signed ? a_zero + 128.0f : a_zero), scale = v_set(a_scale), lo = v_set(f->lo), hi = v_set(f->hi);
    for (int64_t i = 0; i < n; i += VW) {
        const vp m = v_part(n - i);
        const vf other = v_float(residual_bytes(f, b + i, m)) - v_set(f->residual_zero);
        const vf product = (v_float(v_bytesp(a + i, m) ^ flip) - zero) * other * scale;
        v_store_bytesp(dst + i, (vi)((vu)v_round(v_clip(product, lo, hi)) + (vu)v_seti(f->zero)), m);
    }
}

static void max(int64_t n, const uint8_t *x, uint8_t *dst, bool is_signed) {
    const uint8_t flip_one = is_signed ? 0x80 : 0;
    const vb flip = v_setb(flip_one);
    int64_t i = 0;
    for (; i + VB <= n; i += VB) v_storeb(dst + i, v_maxb(v_loadb(x + i) ^ flip, v_loadb(dst + i) ^ flip) ^ flip);
    for (; i < n; i++)
        if ((x[i] ^ flip_one) > (dst[i] ^ flip_one)) dst[i] = x[i];
}

static void sums(int64_t n, const uint8_t *x, int32_t *dst) {
    for (int64_t i = 0; i < n; i += VW) {
        const vp m = v_part(n - i);
        v_storeip(dst + i, v_loadip(dst + i, m) + v_bytesp(x + i, m), m);
    }
}

static int32_t sum(int64_t n, const uint8_t *x) {
    vi all = v_seti(0);
    const vi ones = v_seti(0x01010101);
    int64_t i = 0;
    for (; i + VB <= n; i += VB) all = v_dot(all, v_loadi(x + i), ones);
    int32_t parts[VW], total = 0;
    v_storei(parts, all);
    for (int k = 0; k < VW; k++) total = (int32_t)((uint32_t)total + (uint32_t)parts[k]);
    for (; i < n; i++) total = (int32_t)((uint32_t)total + x[i]);
    return total;
}

static void flip_bytes(int64_t n, const uint8_t *x, uint8_t *dst) {
    const vb flip = v_setb(0x80);
    int64_t i = 0;
    for (; i + VB <= n; i += VB) v_storeb(dst + i, v_loadb(x + i) ^ flip);
    for (; i < n; i++) dst[i] = x[i] ^ 0x80;
}

#define K_QUANT_TABLE(tile_fn, begin_fn, end_fn, ...)                                              \
    { .nr = TILE_VECTORS * VW, .vw = VW, .vb = VB, .rows = {0, __VA_ARGS__}, .tile = tile_fn, .begin = begin_fn, .end = end_fn, .depthwise = depthwise, \
      .quantize = quantize, .dequantize = dequantize, .add = add, .multiply = multiply, .max = max, .sums = sums, .sum = sum, .flip = flip_bytes }
