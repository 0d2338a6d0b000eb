/* quant.c: packing for the kernels on bytes, and the loops around the tile: panels of B outermost, so that one stays in cache while
 * all rows pass; the next one is fetched into L2 meanwhile, as weights come from memory the first time. */
#include "ops/kern/quant.h"

#include <string.h>

enum { SLACK = 15 * 4 * 64 }; /* the tile of amx reads fours by sixteen, whose surplus meets zeros of A */

static int64_t min64(int64_t a, int64_t b) {
    return a < b ? a : b;
}

static int64_t round_up(int64_t n, int64_t to) {
    return (n + to - 1) / to * to;
}

size_t k_quant_packed_bytes(const struct k_quant *q, int64_t segments, int64_t k, int64_t n) {
    return (size_t)segments * (size_t)round_up(k, 4) * (size_t)round_up(n, q->vw) + SLACK;
}

/* The product with a row of ones: a block of k at a time, as that row is. */
static void sum_columns(const struct k_quant *q, int64_t depth, int64_t n, const int8_t *packed, int32_t *all) {
    enum { BLOCK = 1024 };
    static const int64_t start = 0;
    uint8_t ones[BLOCK];
    const uint8_t *row = ones;
    memset(ones, 1, sizeof ones);
    for (int64_t j = 0; j < n; j += q->nr) {
        const int64_t cols = min64(q->nr, n - j), width = round_up(cols, q->vw);
        int32_t *sums = all + j;
        memset(sums, 0, (size_t)cols * sizeof *sums);
        for (int64_t k = 0; k < depth; k += BLOCK) { /* the sums so far are the offset: each is read before it is written */
            const struct k_quant_after after = {.out = K_QUANT_SUM, .offset = sums};
            const struct k_quant_tile t = {.a = &row, .segment = &start, .n_segments = 1, .quads = min64(BLOCK, depth - k) / 4, .b = packed + j * depth + k * width,
                                           .b_quad = 4 * width, .n = (int)cols, .c = sums, .c_row = cols, .after = &after};
            q->tile(1, &t);
        }
    }
}

/* Four bytes each of `cols` columns: b is at the first of the (up to four) steps of k. */
static void pack_quad(const uint8_t *b, int64_t steps, int64_t cols, int64_t b_k, int64_t b_j, uint32_t flip, int8_t *dst) {
    typedef uint8_t bytes __attribute__((vector_size(16)));
    int64_t j = 0;
    if (b_k == 1 && steps == 4) { /* they lie side by side */
        for (; j < cols; j++) {
            uint32_t x;
            memcpy(&x, b + j * b_j, sizeof x);
            x ^= flip;
            memcpy(dst + 4 * j, &x, sizeof x);
        }
        return;
    }
    for (; b_j == 1 && steps == 4 && j + 16 <= cols; j += 16) {
        bytes r[4], y[4];
        for (int x = 0; x < 4; x++) {
            memcpy(&r[x], b + x * b_k + j, sizeof r[x]);
            r[x] ^= (uint8_t)flip;
        }
        const bytes a = __builtin_shufflevector(r[0], r[1], 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23),
                    c = __builtin_shufflevector(r[0], r[1], 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31),
                    e = __builtin_shufflevector(r[2], r[3], 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23),
                    g = __builtin_shufflevector(r[2], r[3], 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
        y[0] = __builtin_shufflevector(a, e, 0, 1, 16, 17, 2, 3, 18, 19, 4, 5, 20, 21, 6, 7, 22, 23);
        y[1] = __builtin_shufflevector(a, e, 8, 9, 24, 25, 10, 11, 26, 27, 12, 13, 28, 29, 14, 15, 30, 31);
        y[2] = __builtin_shufflevector(c, g, 0, 1, 16, 17, 2, 3, 18, 19, 4, 5, 20, 21, 6, 7, 22, 23);
        y[3] = __builtin_shufflevector(c, g, 8, 9, 24, 25, 10, 11, 26, 27, 12, 13, 28, 29, 14, 15, 30, 31);
        memcpy(dst + 4 * j, y, sizeof y);
    }
    for (int64_t x = 0; x < steps; x++)
        for (int64_t c = j; c < cols; c++) dst[4 * c + x] = (int8_t)(b[x * b_k + c * b_j] ^ (uint8_t)flip);
}

void k_quant_pack(const struct k_kernels *kern, int64_t segments, int64_t k, int64_t n, const uint8_t *b, bool is_signed, int64_t b_segment, int64_t b_k,
                  int64_t b_j, int8_t *dst, int32_t *sums) {
    const struct k_quant *q = kern->quant;
    const int8_t *packed = dst;
    for (int64_t j0 = 0; j0 < n; j0 += q->nr) {
        const int64_t cols = min64(q->nr, n - j0), width = round_up(cols, q->vw);
        for (int64_t s = 0; s < segments; s++) {
            for (int64_t i = 0; i < k; i += 4, dst += 4 * width) {
                if (k - i < 4 || cols < width) memset(dst, 0, (size_t)(4 * width));
                pack_quad(b + s * b_segment + i * b_k + j0 * b_j, min64(4, k - i), cols, b_k, b_j, is_signed ? 0 : 0x80808080u, dst);
            }
        }
    }
    memset(dst, 0, SLACK);
    if (sums) sum_columns(q, segments * round_up(k, 4), n, packed, sums);
}

size_t k_quant_depthwise_bytes(const struct k_quant *q, int64_t channels, int64_t kh, int64_t kw) {
    return (size_t)round_up(channels, q->vb) * (size_t)round_up(kh, 4) * (size_t)kw;
}

void k_quant_pack_depthwise(const struct k_quant *q, int64_t channels, int64_t kh, int64_t kw, const int8_t *w, int8_t *dst) {
    const int64_t quads = (kh + 3) / 4;
    memset(dst, 0, k_quant_depthwise_bytes(q, channels, kh, kw));
    for (int64_t c = 0; c < channels; c++) {
        const int64_t block = c / q->vb * q->vb, at = k_quant_channel(q, c) - block;
        for (int64_t y = 0; y < kh; y++)
            for (int64_t x = 0; x < kw; x++) dst[(block * kw * quads + (x * quads + y / 4) * q->vb + at) * 4 + y % 4] = w[(c * kh + y) * kw + x];
    }
}

void k_quant_rows(const struct k_kernels *kern, const struct k_quant_product *p, const uint8_t *const *a, int64_t i0, int64_t m, int64_t n0, int64_t n1,
                  void *c) {
    const struct k_quant *q = kern->quant;
    const int64_t depth = p->n_segments * round_up(p->k, 4), size = p->after.out == K_QUANT_BYTE ? 1 : 4;
    struct k_quant_after after = p->after;
    struct k_quant_tile t = {.segment = p->segment, .n_segments = p->n_segments, .quads = (p->k + 3) / 4, .c_row = p->c_row, .after = &after};

    if (q->begin) q->begin();
    for (int64_t j = n0; j < n1; j += q->nr) {
        const int64_t width = round_up(min64(q->nr, p->n - j), q->vw), rows = q->rows[width / q->vw], tiles = (m + rows - 1) / rows;
        const int64_t next = j + q->nr < n1 ? min64(q->nr, n1 - j - q->nr) * depth : 0; /* bytes of the next panel: weights come from memory the first time */
        t.n = (int)min64(q->nr, n1 - j);
        t.b = p->b + j * depth;
        t.b_quad = 4 * width;
        after.offset = p->after.offset ? p->after.offset + j : NULL;
        after.b_zero = p->after.b_zero ? p->after.b_zero + j : NULL;
        after.scale = p->after.scale ? p->after.scale + j : NULL;
        after.bias = p->after.bias ? p->after.bias + j : NULL;
        for (int64_t i = 0; i < m; i += rows) {
            t.a = a + i;
            t.c = (char *)c + (i * p->c_row + j - n0) * size;
            after.row_sum = p->after.row_sum ? p->after.row_sum + i0 + i : NULL;
            after.residual = p->after.residual ? p->after.residual + (i0 + i) * p->after.residual_row + j : NULL;
            t.ahead_step = next * 4 / (depth * tiles + 1); /* lines of 64, shared out evenly */
            t.ahead = next ? p->b + (j + q->nr) * depth + i / rows * (depth / 4) * t.ahead_step : t.b;
            q->tile((int)min64(rows, m - i), &t);
        }
    }
    if (q->end) q->end();
}
