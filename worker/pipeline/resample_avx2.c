/* resample_avx2.c: the two passes of the resize for AVX2: the same integer sums, so the same bits.
 * A pixel of three channels is one load of four bytes whose last lane is never stored; the last
 * tap, which may be the last pixel of the picture, is put together from its three bytes, so that
 * nothing is read behind it. */
#include "worker/pipeline/image.h"

#if defined(__x86_64__)
#include <immintrin.h>
#include <string.h>

enum { FRACTION_BITS = 32 - 8 - 2 };

static inline uint8_t clip(int32_t sum) {
    int32_t v = sum >> FRACTION_BITS;
    return (uint8_t)(v < 0 ? 0 : v > 255 ? 255 : v);
}

static inline __m128i pixel(const uint8_t *s) {
    int32_t v;
    memcpy(&v, s, 4);
    return _mm_cvtepu8_epi32(_mm_cvtsi32_si128(v));
}

static void horizontal3(uint8_t *dst, int32_t dst_w, const uint8_t *src,
                        const struct w_axis *axis) {
    for (int32_t i = 0; i < dst_w; i++, dst += 3) {
        const int32_t *k = axis->k + (size_t)i * (size_t)axis->taps, n = axis->n[i];
        const uint8_t *s = src + (size_t)axis->first[i] * 3;
        __m128i sum = _mm_set1_epi32(1 << (FRACTION_BITS - 1)), odd = _mm_setzero_si128();
        int32_t j = 0;
        for (; j + 2 < n; j += 2, s += 6) {
            sum = _mm_add_epi32(sum, _mm_mullo_epi32(pixel(s), _mm_set1_epi32(k[j])));
            odd = _mm_add_epi32(odd, _mm_mullo_epi32(pixel(s + 3), _mm_set1_epi32(k[j + 1])));
        }
        for (; j + 1 < n; j++, s += 3)
            sum = _mm_add_epi32(sum, _mm_mullo_epi32(pixel(s), _mm_set1_epi32(k[j])));
        if (j < n) {
            __m128i last = _mm_cvtepu8_epi32(_mm_cvtsi32_si128(s[0] | s[1] << 8 | s[2] << 16));
            sum = _mm_add_epi32(sum, _mm_mullo_epi32(last, _mm_set1_epi32(k[j])));
        }
        sum = _mm_srai_epi32(_mm_add_epi32(sum, odd), FRACTION_BITS);
        sum = _mm_packus_epi16(_mm_packs_epi32(sum, sum), sum);
        uint32_t v = (uint32_t)_mm_cvtsi128_si32(sum);
        dst[0] = (uint8_t)v;
        dst[1] = (uint8_t)(v >> 8);
        dst[2] = (uint8_t)(v >> 16);
    }
}

static void horizontal1(uint8_t *dst, int32_t dst_w, const uint8_t *src,
                        const struct w_axis *axis) {
    for (int32_t i = 0; i < dst_w; i++) {
        const int32_t *k = axis->k + (size_t)i * (size_t)axis->taps, n = axis->n[i];
        const uint8_t *s = src + axis->first[i];
        __m256i wide = _mm256_setzero_si256();
        int32_t sum = 1 << (FRACTION_BITS - 1), j = 0;
        for (; j + 8 <= n; j += 8)
            wide = _mm256_add_epi32(
                wide,
                _mm256_mullo_epi32(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(s + j))),
                                   _mm256_loadu_si256((const __m256i *)(k + j))));
        int32_t lanes[8];
        _mm256_storeu_si256((__m256i *)lanes, wide);
        for (int32_t l = 0; l < 8; l++) sum += lanes[l];
        for (; j < n; j++) sum += s[j] * k[j];
        dst[i] = clip(sum);
    }
}

static void horizontal(uint8_t *dst, int32_t dst_w, const uint8_t *src, int32_t channels,
                       const struct w_axis *axis) {
    if (channels == 3)
        horizontal3(dst, dst_w, src, axis);
    else
        horizontal1(dst, dst_w, src, axis);
}

static inline __m256i step(__m256i sum, const uint8_t *s, __m256i k) {
    return _mm256_add_epi32(
        sum, _mm256_mullo_epi32(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)s)), k));
}

static void vertical(uint8_t *dst, size_t row_bytes, const uint8_t *src, size_t stride,
                     const int32_t *k, int32_t n) {
    size_t x = 0;
    for (; x + 32 <= row_bytes; x += 32) {
        __m256i sums[4];
        for (int i = 0; i < 4; i++) sums[i] = _mm256_set1_epi32(1 << (FRACTION_BITS - 1));
        const uint8_t *s = src + x;
        for (int32_t j = 0; j < n; j++, s += stride) {
            const __m256i weight = _mm256_set1_epi32(k[j]);
            for (int i = 0; i < 4; i++) sums[i] = step(sums[i], s + 8 * i, weight);
        }
        for (int i = 0; i < 4; i++) sums[i] = _mm256_srai_epi32(sums[i], FRACTION_BITS);
        /* packs work within halves of 128 bits: the permutation puts the groups of four back in
         * order */
        __m256i low = _mm256_packs_epi32(sums[0], sums[1]),
                high = _mm256_packs_epi32(sums[2], sums[3]);
        __m256i bytes = _mm256_permutevar8x32_epi32(_mm256_packus_epi16(low, high),
                                                    _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
        _mm256_storeu_si256((__m256i *)(dst + x), bytes);
    }
    for (; x < row_bytes; x++) {
        int32_t sum = 1 << (FRACTION_BITS - 1);
        for (int32_t j = 0; j < n; j++) sum += src[(size_t)j * stride + x] * k[j];
        dst[x] = clip(sum);
    }
}

const struct w_resample w__resample_avx2 = {horizontal, vertical};
#endif
