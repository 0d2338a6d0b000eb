/* The kernels on bytes for the level amx: those of vnni, but the tile, which is 32 rows by 64 columns on Intel's tile registers.
 *
 * tdpbusd multiplies 16 rows of 64 bytes by 16 columns of 64 in 16 cycles, eight times what vpdpbusd does. B is read as it is packed: 16
 * fours of k, 16 columns wide, are one tile of it. Rows of A that lie at one distance, in pieces of whole 64 bytes, are read as they lie; others
 * are copied first, and where k ends within 64 the copy ends in zeros. Two row tiles and two column tiles at a time: four loads for four
 * products, so that B from L2 keeps up. The sums go through memory (L1) to what follows them. The same exact integers: the same bits.
 *
 * Tile registers belong to a thread and need the system's leave (cpu.c asks for it) and a configuration: begin and end around the tiles. */
#if defined(__x86_64__)
#include "ops/kern/kern.h"

#define K_LANES K_LANES_AVX512
#define K_DOT
#include "ops/kern/quant_body.h"

enum { HALF = 16, ROWS = 2 * HALF, BLOCK = 64, QUADS_OF_BLOCK = BLOCK / 4, COPY_BYTES = 160 << 10 };

#define TILE_ZERO(n) __asm__ volatile("tilezero %%tmm" #n ::: "memory")
#define TILE_LOAD(n, at, stride) __asm__ volatile("tileloadd (%0,%1,1), %%tmm" #n ::"r"(at), "r"((int64_t)(stride)) : "memory")
#define TILE_STORE(n, at, stride) __asm__ volatile("tilestored %%tmm" #n ", (%0,%1,1)" ::"r"(at), "r"((int64_t)(stride)) : "memory")
#define TILE_DOT(c, a, b) __asm__ volatile("tdpbusd %%tmm" #b ", %%tmm" #a ", %%tmm" #c ::: "memory") /* c += a (u8) b (i8) */

static void begin(void) {
    static const struct {
        uint8_t palette, start_row, reserved[14];
        uint16_t row_bytes[16];
        uint8_t rows[16];
    } config __attribute__((aligned(64))) = {.palette = 1, .row_bytes = {64, 64, 64, 64, 64, 64, 64, 64}, .rows = {16, 16, 16, 16, 16, 16, 16, 16}};
    __asm__ volatile("ldtilecfg %0" ::"m"(config) : "memory");
}

static void end(void) {
    __asm__ volatile("tilerelease" ::: "memory");
}

struct half { /* 16 rows of A, `stride` apart */
    const uint8_t *from;
    int64_t stride;
};

/* Whether rows lie at one distance. */
static bool is_regular(const uint8_t *const *a, int rows) {
    for (int r = 2; r < rows; r++)
        if (a[r] - a[r - 1] != a[1] - a[0]) return false;
    return true;
}

/* `rows` rows, 16 at most, one piece after the other, to dst; the rows beyond are the last one again. */
static void copy_rows(const uint8_t *const *a, int rows, const struct k_quant_tile *t, int64_t depth, uint8_t *dst) {
    for (int r = 0; r < HALF; r++, dst += depth) {
        const uint8_t *row = a[r < rows ? r : rows - 1];
        uint8_t *to = dst;
        for (int64_t s = 0; s < t->n_segments; s++) {
            const uint8_t *from = row + t->segment[s];
            int64_t i = 0;
            for (; i + BLOCK <= 4 * t->quads; i += BLOCK) v_storeb(to + i, v_loadb(from + i));
            const __mmask64 part = ((__mmask64)1 << (4 * t->quads - i)) - 1;
            if (part) _mm512_mask_storeu_epi8(to + i, part, _mm512_maskz_loadu_epi8(part, from + i));
            to += 4 * t->quads;
        }
        memset(to, 0, (size_t)(dst + depth - to));
    }
}

/* `columns` times 16 columns of B, of both halves or one. A piece has `blocks` blocks; pieces are at from + segment[i]. */
K_INLINE void products(const int halves, const int columns, const struct half *h, const int64_t *segment, int64_t n_segments, int64_t blocks, const int8_t *b,
                       int64_t b_quad, const int8_t *ahead, int64_t ahead_step, int32_t *sums) {
    TILE_ZERO(0);
    if (columns > 1) TILE_ZERO(1);
    if (halves > 1) TILE_ZERO(2);
    if (halves > 1 && columns > 1) TILE_ZERO(3);
    for (int64_t s = 0; s < n_segments; s++) {
        for (int64_t i = 0; i < blocks; i++, b += QUADS_OF_BLOCK * b_quad) {
            for (int64_t line = 0; line < ahead_step; line += 4) __builtin_prefetch(ahead + line * QUADS_OF_BLOCK, 0, 2);
            ahead += ahead_step * QUADS_OF_BLOCK;
            TILE_LOAD(6, b, b_quad);
            TILE_LOAD(4, h[0].from + segment[s] + i * BLOCK, h[0].stride);
            TILE_DOT(0, 4, 6);
            if (columns > 1) {
                TILE_LOAD(7, b + BLOCK, b_quad);
                TILE_DOT(1, 4, 7);
            }
            if (halves > 1) {
                TILE_LOAD(5, h[1].from + segment[s] + i * BLOCK, h[1].stride);
                TILE_DOT(2, 5, 6);
                if (columns > 1) TILE_DOT(3, 5, 7);
            }
        }
    }
    enum { PITCH = 64 * 4 };
    TILE_STORE(0, sums, PITCH);
    if (columns > 1) TILE_STORE(1, sums + 16, PITCH);
    if (halves > 1) TILE_STORE(2, sums + HALF * 64, PITCH);
    if (halves > 1 && columns > 1) TILE_STORE(3, sums + HALF * 64 + 16, PITCH);
}

/* `n` rows of sums from row r on: as many as acc holds. */
K_INLINE void finish_rows(const int n, const int nv, const int32_t *sums, int r, const struct k_quant_tile *t, vp part) {
    const vp all = v_part(VW);
    struct k_quant_after after = *t->after;
    struct k_quant_tile at = *t;
    vi acc[TILE_ROWS_NARROW][TILE_VECTORS];
    at.after = &after;
    at.c = (char *)t->c + r * t->c_row * (after.out == K_QUANT_BYTE ? 1 : 4);
    if (after.row_sum) after.row_sum += r;
    if (after.residual) after.residual += r * after.residual_row;
    K_UNROLL for (int v = 0; v < nv; v++) {
        const vi offset = after.offset ? v_loadip(after.offset + VW * v, v == nv - 1 ? part : all) : v_seti(0);
        K_UNROLL for (int i = 0; i < n; i++) acc[i][v] = (vi)((vu)offset + (vu)v_loadi(sums + (r + i) * 64 + VW * v));
    }
    finish(n, nv, acc, &at, part);
}

K_INLINE void finish_all(const int nv, const int32_t *sums, int m, const struct k_quant_tile *t) {
    const vp part = v_part(t->n - VW * (nv - 1));
    int r = 0;
    for (; r + 4 <= m; r += 4) finish_rows(4, nv, sums, r, t, part);
    for (; r < m; r++) finish_rows(1, nv, sums, r, t, part);
}

/* All columns of the tile: pairs of 16. */
static void all_products(int halves, int nv, const struct half *h, const int64_t *segment, int64_t n_segments, int64_t blocks, const struct k_quant_tile *t,
                         int32_t *sums) {
    for (int v = 0; v < nv; v += 2) {
        const int8_t *b = t->b + v * BLOCK;
        if (halves == 2 && v + 1 < nv)
            products(2, 2, h, segment, n_segments, blocks, b, t->b_quad, t->ahead, v ? 0 : t->ahead_step, sums + VW * v);
        else if (halves == 2)
            products(2, 1, h, segment, n_segments, blocks, b, t->b_quad, t->ahead, v ? 0 : t->ahead_step, sums + VW * v);
        else if (v + 1 < nv)
            products(1, 2, h, segment, n_segments, blocks, b, t->b_quad, t->ahead, v ? 0 : t->ahead_step, sums + VW * v);
        else
            products(1, 1, h, segment, n_segments, blocks, b, t->b_quad, t->ahead, v ? 0 : t->ahead_step, sums + VW * v);
    }
}

static void tile_amx(int m, const struct k_quant_tile *t) {
    static const int64_t start = 0;
    const int nv = (t->n + VW - 1) / VW, halves = m > HALF ? 2 : 1;
    const int64_t depth = (4 * t->quads * t->n_segments + BLOCK - 1) / BLOCK * BLOCK;
    int32_t sums[ROWS * 64] __attribute__((aligned(64)));
    uint8_t copy[COPY_BYTES] __attribute__((aligned(64)));
    struct half h[2];
    bool as_it_lies = m % HALF == 0 && 4 * t->quads % BLOCK == 0;
    for (int i = 0; i < halves && as_it_lies; i++) {
        as_it_lies = is_regular(t->a + i * HALF, HALF);
        h[i] = (struct half){t->a[i * HALF], t->a[i * HALF + 1] - t->a[i * HALF]};
    }
    if (m < 4 || 4 * t->quads * t->n_segments < BLOCK - QUADS_OF_BLOCK || (!as_it_lies && depth > COPY_BYTES / ROWS)) { /* few rows or terms, or more than the copy holds: in vector registers */
        struct k_quant_tile part = *t;
        struct k_quant_after after = *t->after;
        part.after = &after;
        const int step = nv == TILE_VECTORS ? TILE_ROWS : TILE_ROWS_NARROW;
        for (int i = 0; i < m; i += step) {
            part.a = t->a + i;
            part.c = (char *)t->c + i * t->c_row * (after.out == K_QUANT_BYTE ? 1 : 4);
            if (t->after->row_sum) after.row_sum = t->after->row_sum + i;
            if (t->after->residual) after.residual = t->after->residual + i * t->after->residual_row;
            run_tile(m - i < step ? m - i : step, &part);
        }
        return;
    }
    if (as_it_lies) {
        all_products(halves, nv, h, t->segment, t->n_segments, 4 * t->quads / BLOCK, t, sums);
    } else {
        for (int i = 0; i < halves; i++) {
            copy_rows(t->a + i * HALF, m - i * HALF < HALF ? m - i * HALF : HALF, t, depth, copy + i * HALF * depth);
            h[i] = (struct half){copy + i * HALF * depth, depth};
        }
        all_products(halves, nv, h, &start, 1, depth / BLOCK, t, sums);
    }
    switch (nv) {
    case 1: finish_all(1, sums, m, t); break;
    case 2: finish_all(2, sums, m, t); break;
    case 3: finish_all(3, sums, m, t); break;
    default: finish_all(4, sums, m, t);
    }
}

const struct k_quant k__quant_amx = K_QUANT_TABLE(tile_amx, begin, end, ROWS, ROWS, ROWS, ROWS);
#endif
