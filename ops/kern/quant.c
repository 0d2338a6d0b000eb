/* quant.c: packing for the kernels on bytes, and the loops around the tile: panels of B outermost, so that one stays in cache while
 * all rows pass; the next one is fetched into L2 meanwhile, as weights come from memory the first time. */
#include "ops/kern/quant.h"

#include <string.h>

static int64_t min64(int64_t a, int64_t b) {
    return a < b ? a : b;
}

static int64_t round_up(int64_t n, int64_t to) {
    return (n + to - 1) / to * to;
}

size_t k_quant_packed_bytes(const struct k_quant *q, int64_t segments, int64_t k, int64_t n) {
    return (size_t)segments * (size_t)round_up(k, 4) * (size_t)round_up(n, q->vw);
}

void k_quant_pack(const struct k_quant *q, int64_t segments, int64_t k, int64_t n, const uint8_t *b, bool is_signed, int64_t b_segment, int64_t b_k,
                  int64_t b_j, int8_t *dst, int32_t *sums) {
    const uint8_t flip = is_signed ? 0 : 0x80;
    if (sums) memset(sums, 0, (size_t)n * sizeof *sums);
    for (int64_t j0 = 0; j0 < n; j0 += q->nr) {
        const int64_t cols = min64(q->nr, n - j0), width = round_up(cols, q->vw);
        for (int64_t s = 0; s < segments; s++) {
            for (int64_t i = 0; i < k; i += 4, dst += 4 * width) {
                memset(dst, 0, (size_t)(4 * width));
                for (int64_t x = 0; x < 4 && i + x < k; x++) {
                    const uint8_t *row = b + s * b_segment + (i + x) * b_k + j0 * b_j;
                    for (int64_t j = 0; j < cols; j++) dst[4 * j + x] = (int8_t)(row[j * b_j] ^ flip);
                }
                for (int64_t j = 0; sums && j < cols; j++)
                    sums[j0 + j] += dst[4 * j] + dst[4 * j + 1] + dst[4 * j + 2] + dst[4 * j + 3];
            }
        }
    }
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

/* What is wanted soon, fetched into L2 in as many parts as there are tiles in a panel. */
static void fetch_part(const int8_t **at, int64_t *bytes, int64_t part) {
    enum { LINE = 64 };
    const int64_t n = min64(part, *bytes);
    for (int64_t i = 0; i < n; i += LINE) __builtin_prefetch(*at + i, 0, 2);
    *at += n;
    *bytes -= n;
}

void k_quant_rows(const struct k_kernels *kern, const struct k_quant_product *p, const uint8_t *const *a, int64_t i0, int64_t m, int64_t n0, int64_t n1) {
    const struct k_quant *q = kern->quant;
    const int64_t depth = p->n_segments * round_up(p->k, 4), size = p->after.out == K_QUANT_BYTE ? 1 : 4;
    struct k_quant_after after = p->after;
    struct k_quant_tile t = {.segment = p->segment, .n_segments = p->n_segments, .quads = (p->k + 3) / 4, .c_row = p->c_row, .after = &after};

    for (int64_t j = n0; j < n1; j += q->nr) {
        const int64_t width = round_up(min64(q->nr, p->n - j), q->vw), rows = q->rows[width / q->vw], tiles = (m + rows - 1) / rows;
        const int8_t *next = p->b + (j + q->nr) * depth;
        int64_t left = j + q->nr < n1 ? min64(q->nr, n1 - j - q->nr) * depth : 0;
        t.n = (int)min64(q->nr, n1 - j);
        t.b = p->b + j * depth;
        t.b_quad = 4 * width;
        after.offset = p->after.offset ? p->after.offset + j : NULL;
        after.b_zero = p->after.b_zero ? p->after.b_zero + j : NULL;
        after.scale = p->after.scale ? p->after.scale + j : NULL;
        after.bias = p->after.bias ? p->after.bias + j : NULL;
        for (int64_t i = 0; i < m; i += rows) {
            t.a = a + i;
            t.c = (char *)p->c + ((i0 + i) * p->c_row + j) * size;
            after.row_sum = p->after.row_sum ? p->after.row_sum + i0 + i : NULL;
            after.residual = p->after.residual ? p->after.residual + (i0 + i) * p->after.residual_row + j : NULL;
            if (left > 0) fetch_part(&next, &left, round_up(t.b_quad / 4 * depth / tiles + 1, 64));
            q->tile((int)min64(rows, m - i), &t);
        }
    }
}
