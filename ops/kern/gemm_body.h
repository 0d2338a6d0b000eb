/* gemm_body.h: the tile of the f32 matrix product, written once and compiled for each level (K_LANES says which).
 *
 * A tile is up to 6 rows by up to 4 vectors of columns (6 x 64 at AVX-512: 24 accumulators of the 32 registers; 6 x 16 at AVX2,
 * 2 vectors there, for 16 registers). Every element is one chain of fused multiply-adds over rising k that starts at +0, or
 * at the f32 in C where an earlier block of k left it: its bits depend on nothing but its row of A and its column of B.
 *
 * The loop over k is four steps long, so that fetching has little share in it. What the next tiles will want (kern.h: ahead) is fetched
 * there a line at a time: asked for in one burst, it fills the core's buffers for lines on their way, and the tile's own loads wait
 * behind it (128 x 3072 x 768 with weights from memory: 170 GFLOP/s by bursts, 195 like this; 196 and 216 with weights in L3).
 *
 * The last vector of columns goes through a mask always: that costs nothing at AVX-512, and one kernel serves all widths. A last
 * vector of one column (7 x 7 outputs are 3 vectors and 1) would waste all its other lanes: if rows of A lie side by side, that column is
 * done sideways, the rows of A being the vector and the element of B the factor: 19 multiplications in place of 24. */
#include "ops/kern/lanes.h"

/* One multiplication of the chain. bf16_body.h has another: of pairs of bf16, which lie where one float would. */
#ifndef K_MULTIPLY
#define K_MULTIPLY(a, b, c) v_fma(a, b, c)
#endif

enum { TILE_STEPS = 4, TILE_ROWS = 6, TILE_VECTORS = K_LANES == K_LANES_AVX2 ? 2 : 4 };

#if K_LANES == K_LANES_AVX2 && !defined(__clang__) /* the 16 registers are full */
#define K_UNROLL_STEPS _Pragma("GCC unroll 1")
#else
#define K_UNROLL_STEPS K_UNROLL
#endif
K_INLINE void tile_finish(const int mr, const int nv, vf (*acc)[TILE_VECTORS], const struct k_tile *t, vp part) {
    if (t->bias_row) {
        K_UNROLL for (int r = 0; r < mr; r++) {
            const vf bias = v_set(t->bias_row[r]);
            K_UNROLL for (int v = 0; v < nv; v++) acc[r][v] = acc[r][v] + bias;
        }
    }
    if (t->bias_col) {
        K_UNROLL for (int v = 0; v < nv; v++) {
            const vf bias = v == nv - 1 ? v_loadp(t->bias_col + VW * v, part) : v_load(t->bias_col + VW * v);
            K_UNROLL for (int r = 0; r < mr; r++) acc[r][v] = acc[r][v] + bias;
        }
    }
    if (t->residual) {
        K_UNROLL for (int r = 0; r < mr; r++) {
            const float *s = t->residual + r * t->residual_row;
            K_UNROLL for (int v = 0; v < nv; v++) acc[r][v] = acc[r][v] + (v == nv - 1 ? v_loadp(s + VW * v, part) : v_load(s + VW * v));
        }
    }
    if (t->clip) {
        const vf lo = v_set(t->lo), hi = v_set(t->hi);
        K_UNROLL for (int r = 0; r < mr; r++) {
            K_UNROLL for (int v = 0; v < nv; v++) acc[r][v] = v_min(hi, v_max(lo, acc[r][v]));
        }
    }
}

/* C is often not in cache, nor is what is added to it: they come while the products are computed. */
K_INLINE void row_prefetch(const int nv, const struct k_tile *t, int64_t row) {
    K_UNROLL for (int v = 0; v < nv; v++) {
        __builtin_prefetch(t->c + row * t->c_row + VW * v, 1);
        if (t->residual) __builtin_prefetch(t->residual + row * t->residual_row + VW * v);
    }
}

K_INLINE void tile_prefetch(const int mr, const int nv, const struct k_tile *t) {
    K_UNROLL for (int r = 0; r < mr; r++) row_prefetch(nv, t, r);
}

K_INLINE void tile_step(const int mr, const int nv, const float *a, int64_t a_row, const float *b, vp part, vf acc[TILE_ROWS][TILE_VECTORS]) {
    vf bv[TILE_VECTORS];
    K_UNROLL for (int v = 0; v < nv; v++) bv[v] = v == nv - 1 ? v_loadp(b + VW * v, part) : v_load(b + VW * v);
    K_UNROLL for (int r = 0; r < mr; r++) {
        const vf av = v_set(a[r * a_row]);
        K_UNROLL for (int v = 0; v < nv; v++) acc[r][v] = K_MULTIPLY(av, bv[v], acc[r][v]);
    }
}

K_INLINE void tile(const int mr, const int nv, const struct k_tile *t) {
    const vp part = v_part(t->n - VW * (nv - 1));
    const int64_t a_row = t->a_row, a_k = t->a_k, b_k = t->b_k;
    const float *a = t->a, *b = t->b;
    vf acc[TILE_ROWS][TILE_VECTORS];

    if (t->last) tile_prefetch(mr, nv, t);
    if (t->first) {
        K_UNROLL for (int r = 0; r < mr; r++) {
            K_UNROLL for (int v = 0; v < nv; v++) acc[r][v] = v_set(0.0f);
        }
    } else {
        K_UNROLL for (int r = 0; r < mr; r++) {
            const float *c = t->c + r * t->c_row;
            K_UNROLL for (int v = 0; v < nv; v++) acc[r][v] = v == nv - 1 ? v_loadp(c + VW * v, part) : v_load(c + VW * v);
        }
    }
    int64_t k = t->k;
    const char *ahead = t->ahead;
    for (; k >= TILE_STEPS; k -= TILE_STEPS) {
        if (mr > 2) { /* of a convolution these are the weights: from memory, and read once */
            __builtin_prefetch(a + 96 * a_k);
            __builtin_prefetch(a + 98 * a_k);
        }
        __builtin_prefetch(ahead, 0, 2);
        ahead += t->ahead_step;
        K_UNROLL_STEPS for (int step = 0; step < TILE_STEPS; step++) {
            tile_step(mr, nv, a, a_row, b, part, acc);
            a += a_k;
            b += b_k;
            __asm__("" : "+r"(a), "+r"(b)); /* else addresses of all four steps are kept, in more registers than there are */
        }
    }
    for (; k > 0; k--, a += a_k, b += b_k) tile_step(mr, nv, a, a_row, b, part, acc);
    if (t->last) tile_finish(mr, nv, acc, t, part);
    K_UNROLL for (int r = 0; r < mr; r++) {
        float *c = t->c + r * t->c_row;
        K_UNROLL for (int v = 0; v < nv; v++) {
            if (v == nv - 1)
                v_storep(c + VW * v, acc[r][v], part);
            else
                v_store(c + VW * v, acc[r][v]);
        }
    }
}

/* Rows that lie anywhere, for each tap anew; B is packed (k_last_pack), so that all of its vectors are whole. */
K_INLINE void rows_tile(const int mr, const int nv, const struct k_tile *t) {
    const vp part = v_part(t->n - VW * (nv - 1));
    const float *b = t->b;
    const char *ahead = t->ahead;
    const int64_t ahead_step = t->ahead_step;
    vf acc[K_ROWS_MAX][TILE_VECTORS];

    if (t->first) {
        K_UNROLL for (int r = 0; r < mr; r++) {
            K_UNROLL for (int v = 0; v < nv; v++) acc[r][v] = v_set(0.0f);
        }
    } else {
        K_UNROLL for (int r = 0; r < mr; r++) {
            K_UNROLL for (int v = 0; v < nv; v++) acc[r][v] = v == nv - 1 ? v_loadp(t->c + r * t->c_row + VW * v, part) : v_load(t->c + r * t->c_row + VW * v);
        }
    }
    const bool slowly = t->last && t->k >= 96; /* rows of C are fetched one by one: many lines at once would keep the products waiting */
    if (t->last && !slowly) tile_prefetch(mr, nv, t);
    for (int64_t tap = 0; tap < t->taps; tap++) {
        const float *a[K_ROWS_MAX];
        K_UNROLL for (int r = 0; r < mr; r++) a[r] = t->rows[tap * K_ROWS_MAX + r] + t->from;
        int64_t k = 0;
        for (int row = 0; k < t->k; row++) {
            const int64_t end = tap || !slowly ? t->k : t->k * (row + 1) / mr;
            if (!tap && slowly) row_prefetch(nv, t, row);
            for (; k < end; k++, b += VW * nv) {
                vf bv[TILE_VECTORS];
                __builtin_prefetch(ahead, 0, 2);
                ahead += ahead_step;
                K_UNROLL for (int v = 0; v < nv; v++) bv[v] = v_load(b + VW * v);
                K_UNROLL for (int r = 0; r < mr; r++) {
                    const vf av = v_set(a[r][k]);
                    K_UNROLL for (int v = 0; v < nv; v++) acc[r][v] = K_MULTIPLY(av, bv[v], acc[r][v]);
                }
            }
        }
    }
    if (t->last) tile_finish(mr, nv, acc, t, part);
    K_UNROLL for (int r = 0; r < mr; r++) {
        float *c = t->c + r * t->c_row;
        K_UNROLL for (int v = 0; v < nv; v++) {
            if (v == nv - 1)
                v_storep(c + VW * v, acc[r][v], part);
            else
                v_store(c + VW * v, acc[r][v]);
        }
    }
}

/* The column that was done sideways: its lanes are rows of C. */
K_INLINE void side_finish(const int mr, vf side, const struct k_tile *t, int64_t j) {
    float sums[VW];
    v_store(sums, side);
    for (int r = 0; r < mr; r++) {
        float x = sums[r];
        if (t->last && t->bias_row) x += t->bias_row[r];
        if (t->last && t->bias_col) x += t->bias_col[j];
        if (t->last && t->residual) x += t->residual[r * t->residual_row + j];
        if (t->last && t->clip) {
            x = t->lo > x ? t->lo : x;
            x = t->hi < x ? t->hi : x;
        }
        t->c[r * t->c_row + j] = x;
    }
}

/* nv whole vectors of columns and one column more. */
K_INLINE void tile_and_column(const int mr, const int nv, const struct k_tile *t) {
    const int64_t a_k = t->a_k, b_k = t->b_k, j = VW * nv;
    const float *a = t->a, *b = t->b;
    const vp rows = v_part(TILE_ROWS), all = v_part(VW);
    vf acc[TILE_ROWS][TILE_VECTORS], side = v_set(0.0f);
    if (t->last) tile_prefetch(mr, nv, t);
    K_UNROLL for (int r = 0; r < mr; r++) {
        K_UNROLL for (int v = 0; v < nv; v++) acc[r][v] = t->first ? v_set(0.0f) : v_load(t->c + r * t->c_row + VW * v);
    }
    if (!t->first) {
        float sums[VW] = {0};
        for (int r = 0; r < mr; r++) sums[r] = t->c[r * t->c_row + j];
        side = v_load(sums);
    }
    for (int64_t k = t->k; k > 0; k--, a += a_k, b += b_k) {
        vf bv[TILE_VECTORS];
        __builtin_prefetch(a + 96 * a_k);
        K_UNROLL for (int v = 0; v < nv; v++) bv[v] = v_load(b + VW * v);
        side = K_MULTIPLY(v_loadp(a, rows), v_set(b[j]), side);
        K_UNROLL for (int r = 0; r < mr; r++) {
            const vf av = v_set(a[r]);
            K_UNROLL for (int v = 0; v < nv; v++) acc[r][v] = K_MULTIPLY(av, bv[v], acc[r][v]);
        }
    }
    if (t->last) tile_finish(mr, nv, acc, t, all);
    K_UNROLL for (int r = 0; r < mr; r++) {
        K_UNROLL for (int v = 0; v < nv; v++) v_store(t->c + r * t->c_row + VW * v, acc[r][v]);
    }
    side_finish(mr, side, t, j);
}

#define K_TILE(m, v)                                                                               \
    static void tile_##m##_##v(const struct k_tile *t) { tile(m, v, t); }
#define K_TILE_ROW(v) K_TILE(1, v) K_TILE(2, v) K_TILE(3, v) K_TILE(4, v) K_TILE(5, v) K_TILE(6, v)
#define K_TILE_NAMES(v) {tile_1_##v, tile_2_##v, tile_3_##v, tile_4_##v, tile_5_##v, tile_6_##v}

K_TILE_ROW(1)
K_TILE_ROW(2)
#if K_LANES != K_LANES_AVX2
K_TILE_ROW(3)
K_TILE_ROW(4)
#define K_TILES {K_TILE_NAMES(1), K_TILE_NAMES(2), K_TILE_NAMES(3), K_TILE_NAMES(4)}
#else
#define K_TILES {K_TILE_NAMES(1), K_TILE_NAMES(2)}
#endif

#if K_LANES == K_LANES_AVX512
static void tile_6_3_and_column(const struct k_tile *t) { tile_and_column(6, 3, t); }
#endif

static void run_tile(int m, const struct k_tile *t) {
    typedef void tile_fn(const struct k_tile *);
    static tile_fn *const tiles[TILE_VECTORS][TILE_ROWS] = K_TILES;
#if K_LANES == K_LANES_AVX512
    if (m == 6 && t->n == 3 * VW + 1 && t->a_row == 1) {
        tile_6_3_and_column(t);
        return;
    }
#endif
    tiles[(t->n + VW - 1) / VW - 1][m - 1](t);
}

#ifdef K_TILES_ONLY /* who includes this has no use for the rest, which takes long to compile */
#define K_GEMM_TABLE                                                                               \
    { .mr = TILE_ROWS, .nr = TILE_VECTORS * VW, .vw = VW, .tile = run_tile, }
#else
/* Tiles over rows that lie anywhere: fewer columns, more rows, so that there are enough sums under way. Pointers to more than eight rows
 * would not fit the registers. */
#define K_ROWS(m, v)                                                                               \
    static void rows_##m##_##v(const struct k_tile *t) { rows_tile(m, v, t); }
#define K_ROWS_6(v) K_ROWS(1, v) K_ROWS(2, v) K_ROWS(3, v) K_ROWS(4, v) K_ROWS(5, v) K_ROWS(6, v)
#define K_ROWS_8(v) K_ROWS_6(v) K_ROWS(7, v) K_ROWS(8, v)
#define K_ROWS_NAMES(v) rows_1_##v, rows_2_##v, rows_3_##v, rows_4_##v, rows_5_##v, rows_6_##v

#if K_LANES == K_LANES_AVX512
K_ROWS_8(1)
K_ROWS_8(2)
K_ROWS_8(3)
K_ROWS_6(4)
#define K_ROWS_MORE(v) K_ROWS_NAMES(v), rows_7_##v, rows_8_##v
#define K_ROWS_ALL {{K_ROWS_MORE(1)}, {K_ROWS_MORE(2)}, {K_ROWS_MORE(3)}, {K_ROWS_NAMES(4)}}
#define K_ROWS_LIMITS {0, 8, 8, 8, 6}
#elif K_LANES == K_LANES_AVX2
K_ROWS_8(1)
K_ROWS_6(2)
#define K_ROWS_ALL {{K_ROWS_NAMES(1), rows_7_1, rows_8_1}, {K_ROWS_NAMES(2)}}
#define K_ROWS_LIMITS {0, 8, 6}
#else
K_ROWS_6(1)
K_ROWS_6(2)
K_ROWS_6(3)
K_ROWS_6(4)
#define K_ROWS_ALL {{K_ROWS_NAMES(1)}, {K_ROWS_NAMES(2)}, {K_ROWS_NAMES(3)}, {K_ROWS_NAMES(4)}}
#define K_ROWS_LIMITS {0, 6, 6, 6, 6}
#endif

static void run_rows(int m, const struct k_tile *t) {
    typedef void rows_fn(const struct k_tile *);
    static rows_fn *const tiles[TILE_VECTORS][K_ROWS_MAX] = K_ROWS_ALL;
    tiles[(t->n + VW - 1) / VW - 1][m - 1](t);
}

#define K_GEMM_TABLE                                                                               \
    { .mr = TILE_ROWS, .nr = TILE_VECTORS * VW, .vw = VW, .tile = run_tile, .rows_max = K_ROWS_LIMITS, .rows = run_rows, }
#endif
