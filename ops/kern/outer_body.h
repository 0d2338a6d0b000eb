/* outer_body.h: the tile of a sum of outer products, written once and compiled for each level (K_LANES says which).
 *
 * C (m x n) = sum over p of a_p (m floats at rows[p]) times b_p (n floats at b + p * b_p): the product of a transposed matrix whose
 * rows lie anywhere with one whose rows lie in order. Every element is one chain of fused multiply-adds over rising p that starts at
 * +0, or at the f32 in C where an earlier block left it. Fewer columns, more rows, so that there are always enough sums under way. */
#include "ops/kern/lanes.h"

enum { OUTER_ROWS = 12, OUTER_VECTORS = K_LANES == K_LANES_AVX2 ? 2 : 4 };

K_INLINE void outer_tile(const int mr, const int nv, const struct k_outer_tile *t) {
    const vp part = v_part(t->n - VW * (nv - 1));
    const float *b = t->b;
    vf acc[OUTER_ROWS][OUTER_VECTORS];
    K_UNROLL for (int r = 0; r < mr; r++) {
        const float *c = t->c + r * t->c_row;
        K_UNROLL for (int v = 0; v < nv; v++)
            acc[r][v] = t->first ? v_set(0.0f) : v == nv - 1 ? v_loadp(c + VW * v, part) : v_load(c + VW * v);
    }
    for (int64_t p = 0; p < t->k; p++, b += t->b_p) {
        const float *a = t->rows[p] + t->at;
        vf bv[OUTER_VECTORS];
        K_UNROLL for (int v = 0; v < nv; v++) bv[v] = v == nv - 1 ? v_loadp(b + VW * v, part) : v_load(b + VW * v);
        K_UNROLL for (int r = 0; r < mr; r++) {
            const vf av = v_set(a[r]);
            K_UNROLL for (int v = 0; v < nv; v++) acc[r][v] = v_fma(av, bv[v], acc[r][v]);
        }
    }
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

#define K_OUTER(m, v)                                                                              \
    static void outer_##m##_##v(const struct k_outer_tile *t) { outer_tile(m, v, t); }
#define K_OUTER_6(v) K_OUTER(1, v) K_OUTER(2, v) K_OUTER(3, v) K_OUTER(4, v) K_OUTER(5, v) K_OUTER(6, v)
#define K_OUTER_12(v) K_OUTER_6(v) K_OUTER(7, v) K_OUTER(8, v) K_OUTER(9, v) K_OUTER(10, v) K_OUTER(11, v) K_OUTER(12, v)
#define K_OUTER_NAMES(v) outer_1_##v, outer_2_##v, outer_3_##v, outer_4_##v, outer_5_##v, outer_6_##v
#define K_OUTER_MORE(v) outer_7_##v, outer_8_##v, outer_9_##v, outer_10_##v, outer_11_##v, outer_12_##v

#if K_LANES == K_LANES_AVX512
K_OUTER_12(1)
K_OUTER_12(2)
K_OUTER_6(3)
K_OUTER_6(4)
#define K_OUTERS {{K_OUTER_NAMES(1), K_OUTER_MORE(1)}, {K_OUTER_NAMES(2), K_OUTER_MORE(2)}, {K_OUTER_NAMES(3)}, {K_OUTER_NAMES(4)}}
#define K_OUTER_LIMITS {0, 12, 12, 6, 6}
#elif K_LANES == K_LANES_AVX2
K_OUTER_12(1)
K_OUTER_6(2)
#define K_OUTERS {{K_OUTER_NAMES(1), K_OUTER_MORE(1)}, {K_OUTER_NAMES(2)}}
#define K_OUTER_LIMITS {0, 12, 6}
#else
K_OUTER_6(1)
K_OUTER_6(2)
K_OUTER_6(3)
K_OUTER_6(4)
#define K_OUTERS {{K_OUTER_NAMES(1)}, {K_OUTER_NAMES(2)}, {K_OUTER_NAMES(3)}, {K_OUTER_NAMES(4)}}
#define K_OUTER_LIMITS {0, 6, 6, 6, 6}
#endif

static void run_outer(int m, const struct k_outer_tile *t) {
    typedef void outer_fn(const struct k_outer_tile *);
    static outer_fn *const tiles[OUTER_VECTORS][OUTER_ROWS] = K_OUTERS;
    tiles[(t->n + VW - 1) / VW - 1][m - 1](t);
}

#define K_OUTER_TABLE                                                                              \
    { .nr = OUTER_VECTORS * VW, .vw = VW, .rows_max = K_OUTER_LIMITS, .tile = run_outer, }
