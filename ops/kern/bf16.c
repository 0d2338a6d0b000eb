/* bf16.c: bringing both sides of a product into pairs of bf16 (kern.h). The loops of the product are gemm.c's. */
#include "ops/kern/kern.h"

#include <string.h>

static int64_t min64(int64_t a, int64_t b) {
    return a < b ? a : b;
}

struct k_kernels k_half_kernels(const struct k_kernels *k) {
    struct k_kernels pairs = *k;
    pairs.gemm = k->half->gemm;
    return pairs;
}

size_t k_half_pack_b_units(const struct k_kernels *k, int64_t depth, int64_t n) {
    return k_pack_b_floats(k->half->gemm, depth, n);
}

/* A strip of 32 rows of B at a time goes through f32 memory: read along the side that lies together, written as rows of pairs. */
void k_half_pack_b(const struct k_kernels *k, int64_t kk, int64_t n, const float *b, int64_t b_k, int64_t b_j, void *dst) {
    enum { COLS_MAX = 64 };
    const struct k_gemm *g = k->half->gemm;
    const int64_t depth = k_half_depth(kk);
    float strip[K_HALF_STEP / 2][COLS_MAX * 2];
    uint16_t *to = dst;
    for (int64_t j0 = 0; j0 < n; j0 += g->nr) {
        const int64_t cols = min64(g->nr, n - j0), width = (cols + g->vw - 1) / g->vw * g->vw;
        for (int64_t i0 = 0; i0 < 2 * depth; i0 += K_HALF_STEP, to += K_HALF_STEP * width) {
            const int64_t rows = min64(K_HALF_STEP, kk - i0);
            memset(strip, 0, sizeof strip);
            if (b_j == 1)
                for (int64_t i = 0; i < rows; i++)
                    for (int64_t j = 0; j < cols; j++) strip[i / 2][2 * j + i % 2] = b[(i0 + i) * b_k + j0 + j];
            else
                for (int64_t j = 0; j < cols; j++)
                    for (int64_t i = 0; i < rows; i++) strip[i / 2][2 * j + i % 2] = b[(i0 + i) * b_k + (j0 + j) * b_j];
            for (int64_t p = 0; p < K_HALF_STEP / 2; p++) k->half->convert(2 * width, strip[p], to + p * 2 * width);
        }
    }
}

void k_half_rows(const struct k_kernels *k, int64_t m, int64_t kk, const float *a, int64_t a_row, void *dst) {
    const int64_t depth = 2 * k_half_depth(kk);
    uint16_t *to = dst;
    for (int64_t i = 0; i < m; i++, to += depth) {
        k->half->convert(kk, a + i * a_row, to);
        memset(to + kk, 0, (size_t)(depth - kk) * sizeof *to);
    }
}

void k_half_pixels(const struct k_kernels *k, const struct k_geometry *g, const float *x, int64_t x_pixel, int64_t row0, int64_t row1, void *dst) {
    const int64_t taps = g->kernel[0] * g->kernel[1] * g->kernel[2], depth = 2 * k_half_depth(taps * g->channels);
    uint16_t *to = dst;
    for (int64_t row = row0; row < row1; row++) {
        const int64_t ow = row % g->out[2], oh = row / g->out[2] % g->out[1], od = row / g->out[2] / g->out[1] % g->out[0];
        const float *image = x + row / g->out[2] / g->out[1] / g->out[0] * g->in[0] * g->in[1] * g->in[2] * x_pixel;
        uint16_t *at = to;
        for (int64_t a0 = 0; a0 < g->kernel[0]; a0++)
            for (int64_t a1 = 0; a1 < g->kernel[1]; a1++) {
                const int64_t d = od * g->stride[0] - g->begin[0] + a0 * g->dilation[0], h = oh * g->stride[1] - g->begin[1] + a1 * g->dilation[1];
                const bool inside = d >= 0 && d < g->in[0] && h >= 0 && h < g->in[1];
                int64_t w = ow * g->stride[2] - g->begin[2];
                for (int64_t a2 = 0; a2 < g->kernel[2]; a2++, w += g->dilation[2], at += g->channels) {
                    if (inside && w >= 0 && w < g->in[2]) k->half->convert(g->channels, image + ((d * g->in[1] + h) * g->in[2] + w) * x_pixel, at);
                    else memset(at, 0, (size_t)g->channels * sizeof *at);
                }
            }
        to += depth;
        memset(at, 0, (size_t)(to - at) * sizeof *at);
    }
}
