/* The product of bf16 pairs on AMX: called only where cpu.c found it and the kernel gave its registers.
 *
 * A tile of C is 32 rows by 64 columns, done as two halves of 32 columns: four registers of 16 x 16 sums, two of A, two of B; a step is 16 pairs
 * of k (K_HALF_STEP), for which each register of A and B is loaded once and used twice. Sums go through f32 memory on their way out, where vectors do what
 * follows them, in the order of gemm_body.h. Rows beyond m are not loaded: the registers are configured to have m.
 *
 * An element: for each 32 terms of k the sum of the products with even k and the sum of those with odd k, both in rising order, each product and sum
 * fused; the two added; that added to the element. Subnormals count as zero. */
#if defined(__x86_64__)
#define K_LANES K_LANES_AVX512
#define K_BF16
#define K_NO_TILES
#include "ops/kern/kern.h"
#include "ops/kern/bf16_body.h"

enum { M = 32, N = 64, SIDE = 16, STEP = K_HALF_STEP / 2 };

struct tile_config {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
};

/* Registers: 0, 1 sums of the upper rows, 2, 3 of the lower; 4, 5 A; 6, 7 B. */
static void configure(int m) {
    struct tile_config c = {.palette = 1};
    const int upper = m < SIDE ? m : SIDE, lower = m > SIDE ? m - SIDE : 1; /* at least one row each */
    const int rows[8] = {upper, upper, lower, lower, upper, lower, STEP, STEP};
    for (int i = 0; i < 8; i++) {
        c.row_bytes[i] = SIDE * sizeof(float);
        c.rows[i] = (uint8_t)rows[i];
    }
    _tile_loadconfig(&c);
}

/* Sums of up to 32 rows and one or two vectors of columns, from and to `sums` (rows N floats apart). */
K_INLINE void half_tile(const bool lower, const bool right, const struct k_tile *t, const float *b, float *sums) {
    const size_t row = N * sizeof(float), a_row = (size_t)t->a_row * sizeof(float), b_row = (size_t)t->b_k * sizeof(float);
    const float *a = t->a, *a_lower = t->a + SIDE * t->a_row;
    _tile_loadd(0, sums, row);
    if (right) _tile_loadd(1, sums + SIDE, row);
    if (lower) _tile_loadd(2, sums + SIDE * N, row);
    if (lower && right) _tile_loadd(3, sums + SIDE * N + SIDE, row);
    for (int64_t k = 0; k < t->k; k += STEP, b += STEP * t->b_k) {
        _tile_loadd(4, a + k, a_row);
        _tile_loadd(6, b, b_row);
        _tile_dpbf16ps(0, 4, 6);
        if (right) {
            _tile_loadd(7, b + SIDE, b_row);
            _tile_dpbf16ps(1, 4, 7);
        }
        if (lower) {
            _tile_loadd(5, a_lower + k, a_row);
            _tile_dpbf16ps(2, 5, 6);
        }
        if (lower && right) _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, sums, row);
    if (right) _tile_stored(1, sums + SIDE, row);
    if (lower) _tile_stored(2, sums + SIDE * N, row);
    if (lower && right) _tile_stored(3, sums + SIDE * N + SIDE, row);
}

static void finish_row(const struct k_tile *t, int r, const float *sums) {
    const vf lo = v_set(t->lo), hi = v_set(t->hi);
    for (int j = 0; j < t->n; j += VW) {
        const vp part = v_part(t->n - j);
        vf x = v_load(sums + j);
        if (t->last && t->bias_row) x = x + v_set(t->bias_row[r]);
        if (t->last && t->bias_col) x = x + v_loadp(t->bias_col + j, part);
        if (t->last && t->residual) x = x + v_loadp(t->residual + r * t->residual_row + j, part);
        if (t->last && t->clip) x = v_min(hi, v_max(lo, x));
        v_storep(t->c + r * t->c_row + j, x, part);
    }
}

static void amx_tile(int m, const struct k_tile *t) {
    _Alignas(64) float sums[M * N];
    const int vectors = (t->n + VW - 1) / VW;
    for (int r = 0; r < m; r++)
        for (int j = 0; j < vectors * VW; j += VW)
            v_store(sums + r * N + j, t->first ? v_set(0.0f) : v_loadp(t->c + r * t->c_row + j, v_part(t->n - j)));
    configure(m);
    for (int v = 0; v < vectors; v += 2) {
        const float *b = t->b + v * VW;
        float *to = sums + v * VW;
        const bool lower = m > SIDE, right = v + 1 < vectors;
        if (lower && right) half_tile(true, true, t, b, to);
        else if (lower) half_tile(true, false, t, b, to);
        else if (right) half_tile(false, true, t, b, to);
        else half_tile(false, false, t, b, to);
    }
    _tile_release();
    for (int r = 0; r < m; r++) finish_row(t, r, sums + r * N);
}

static const struct k_gemm tiles = {.mr = M, .nr = N, .vw = VW, .tile = amx_tile};

const struct k_half k__half_amx = {.gemm = &tiles, .convert = convert};
#endif
