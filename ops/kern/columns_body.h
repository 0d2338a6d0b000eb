/* columns_body.h: sums and maps over the columns of a (rows x c) array, written once and compiled for each level (K_LANES says which).
 * Vectors go along c. A sum adds row after row in f32, in registers; a caller who sums many rows takes them in pieces and adds those
 * in double precision. */
#include "ops/kern/lanes.h"

/* Four vectors of columns at a time, then one; TERM gives what a row adds, of the vector at row[at]. */
#define K_COLUMN_SUM(NV, TERM)                                                                     \
    for (; c - j > (NV > 1 ? NV * VW - 1 : 0); j += NV * VW) {                                     \
        const vp part = v_part(c - j - (NV - 1) * VW);                                             \
        vf acc[NV];                                                                                \
        K_UNROLL for (int v = 0; v < NV; v++) acc[v] = v_set(0.0f);                                \
        for (int64_t r = 0; r < rows; r++) {                                                       \
            K_UNROLL for (int v = 0; v < NV; v++) {                                                \
                const int64_t at = r * c + j + v * VW, col = j + v * VW;                           \
                const vp p = v == NV - 1 ? part : v_part(VW);                                      \
                (void)col;                                                                         \
                acc[v] = TERM;                                                                     \
            }                                                                                      \
        }                                                                                          \
        K_UNROLL for (int v = 0; v < NV; v++) v_storep(sums + j + v * VW, acc[v], v == NV - 1 ? part : v_part(VW)); \
    }
#define K_COLUMN_SUMS(TERM)                                                                        \
    int64_t j = 0;                                                                                 \
    K_COLUMN_SUM(4, TERM)                                                                          \
    K_COLUMN_SUM(1, TERM)

static void column_sum(int64_t rows, int64_t c, const float *x, float *sums) {
    K_COLUMN_SUMS(acc[v] + v_loadp(x + at, p))
}

K_INLINE vf added_square(vf acc, vf d) {
    return v_fma(d, d, acc);
}

static void column_sum_square(int64_t rows, int64_t c, const float *x, const float *mean, float *sums) {
    K_COLUMN_SUMS(added_square(acc[v], v_loadp(x + at, p) - v_loadp(mean + col, p)))
}

static void column_dot(int64_t rows, int64_t c, const float *y, const float *x, const float *mean, float *sums) {
    K_COLUMN_SUMS(v_fma(v_loadp(y + at, p), v_loadp(x + at, p) - v_loadp(mean + col, p), acc[v]))
}

static void column_linear(int64_t rows, int64_t c, const float *x, const float *a, const float *b, float *y) {
    for (int64_t r = 0; r < rows; r++, x += c, y += c)
        for (int64_t j = 0; j < c; j += VW) {
            const vp p = v_part(c - j);
            v_storep(y + j, v_fma(v_loadp(x + j, p), v_loadp(a + j, p), v_loadp(b + j, p)), p);
        }
}

static void column_blend(int64_t rows, int64_t c, const float *y, const float *x, const float *mean, const float *a, const float *b, const float *d, float *to) {
    for (int64_t r = 0; r < rows; r++, x += c, y += c, to += c)
        for (int64_t j = 0; j < c; j += VW) {
            const vp p = v_part(c - j);
            const vf from_mean = v_loadp(x + j, p) - v_loadp(mean + j, p);
            v_storep(to + j, v_fma(v_loadp(y + j, p), v_loadp(a + j, p), v_fma(from_mean, v_loadp(b + j, p), v_loadp(d + j, p))), p);
        }
}

static void column_give(int64_t c, int taps, const float *const *x, const float *dy, float *const *dx) {
    for (int64_t j = 0; j < c; j += VW) {
        const vp p = v_part(c - j);
        vf best = v_loadp(x[0] + j, p), which = v_set(0.0f);
        for (int t = 1; t < taps; t++) {
            const vf v = v_loadp(x[t] + j, p);
            const vm more = v_lt(best, v);
            best = v_sel(more, v, best);
            which = v_sel(more, v_set((float)t), which);
        }
        const vf d = v_loadp(dy + j, p);
        for (int t = 0; t < taps; t++) v_storep(dx[t] + j, v_loadp(dx[t] + j, p) + v_sel(v_eq(which, v_set((float)t)), d, v_set(0.0f)), p);
    }
}

#define K_COLUMNS_TABLE                                                                            \
    { .sum = column_sum, .sum_square = column_sum_square, .dot = column_dot, .linear = column_linear, .blend = column_blend, .give = column_give, }
