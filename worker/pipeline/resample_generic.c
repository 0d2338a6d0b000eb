/* resample_generic.c: the two passes of the resize in plain C, the reference of the faster ones. */
#include "worker/pipeline/image.h"

enum { FRACTION_BITS = 32 - 8 - 2 };

static inline uint8_t clip(int32_t sum) {
    int32_t v = sum >> FRACTION_BITS;
    return (uint8_t)(v < 0 ? 0 : v > 255 ? 255 : v);
}

static void horizontal(uint8_t *dst, int32_t dst_w, const uint8_t *src, int32_t channels,
                       const struct w_axis *axis) {
    for (int32_t i = 0; i < dst_w; i++) {
        const int32_t *k = axis->k + (size_t)i * (size_t)axis->taps;
        const uint8_t *s = src + (size_t)axis->first[i] * (size_t)channels;
        for (int32_t c = 0; c < channels; c++) {
            int32_t sum = 1 << (FRACTION_BITS - 1);
            for (int32_t j = 0; j < axis->n[i]; j++) sum += s[j * channels + c] * k[j];
            *dst++ = clip(sum);
        }
    }
}

static void vertical(uint8_t *dst, size_t row_bytes, const uint8_t *src, size_t stride,
                     const int32_t *k, int32_t n) {
    enum { BLOCK = 64 };
    for (size_t x = 0; x < row_bytes; x += BLOCK) {
        int32_t sums[BLOCK];
        const size_t m = row_bytes - x < BLOCK ? row_bytes - x : BLOCK;
        for (size_t i = 0; i < m; i++) sums[i] = 1 << (FRACTION_BITS - 1);
        for (int32_t j = 0; j < n; j++) {
            const uint8_t *s = src + (size_t)j * stride + x;
            for (size_t i = 0; i < m; i++) sums[i] += s[i] * k[j];
        }
        for (size_t i = 0; i < m; i++) dst[x + i] = clip(sums[i]);
    }
}

const struct w_resample w__resample_generic = {horizontal, vertical};
