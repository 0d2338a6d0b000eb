/* quant_lanes.h: what the kernels on bytes need beside lanes.h.
 *
 *   v_dot(acc, a, b)    acc + the sum of four products u8 x i8 in each 32-bit lane, exact: vpdpbusd where K_DOT is set, else two
 *                       multiplications of 16 bits (vpmaddubsw saturates, so it will not do)
 *   v_quad(p)           four bytes from p in every lane
 *   v_bytes, v_bytesp   bytes (all, or a part) widened to 32 bits; v_store_bytes(p) is the way back, which takes the low byte
 *   v_round             to the nearest integer, halves to even, of a float of at most 2^22
 *   vb                  VB bytes, as many as a vector holds */
#ifndef QUERN_KERN_QUANT_LANES_H
#define QUERN_KERN_QUANT_LANES_H

#include "ops/kern/lanes.h"

#define VB (4 * VW)

K_INLINE vf v_float(vi x) { return __builtin_convertvector(x, vf); }

#if K_LANES == K_LANES_AVX512
typedef uint8_t vb __attribute__((vector_size(64)));
K_INLINE vi v_quad(const uint8_t *p) {
    int32_t x;
    memcpy(&x, p, sizeof x);
    return (vi)_mm512_set1_epi32(x);
}
K_INLINE vi v_loadi(const void *p) { return (vi)_mm512_loadu_si512(p); }
K_INLINE void v_storei(void *p, vi x) { _mm512_storeu_si512(p, (__m512i)x); }
K_INLINE vi v_loadip(const int32_t *p, vp m) { return (vi)_mm512_maskz_loadu_epi32(m, p); }
K_INLINE void v_storeip(int32_t *p, vi x, vp m) { _mm512_mask_storeu_epi32(p, m, (__m512i)x); }
K_INLINE vi v_bytesp(const uint8_t *p, vp m) { return (vi)_mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(m, p)); }
K_INLINE void v_store_bytesp(uint8_t *p, vi x, vp m) { _mm512_mask_cvtepi32_storeu_epi8(p, m, (__m512i)x); }
K_INLINE vi v_round(vf x) { return (vi)_mm512_cvtps_epi32(x); }
#ifdef K_DOT
K_INLINE vi v_dot(vi acc, vi a, vi b) { return (vi)_mm512_dpbusd_epi32((__m512i)acc, (__m512i)a, (__m512i)b); }
#else
K_INLINE vi v_dot(vi acc, vi a, vi b) {
    const __m512i x = (__m512i)a, y = (__m512i)b, low = _mm512_set1_epi16(0xff);
    const __m512i even = _mm512_madd_epi16(_mm512_and_si512(x, low), _mm512_srai_epi16(_mm512_slli_epi16(y, 8), 8));
    const __m512i odd = _mm512_madd_epi16(_mm512_srli_epi16(x, 8), _mm512_srai_epi16(y, 8));
    return (vi)((vu)acc + (vu)even + (vu)odd);
}
#endif
#elif K_LANES == K_LANES_AVX2
typedef uint8_t vb __attribute__((vector_size(32)));
K_INLINE vi v_quad(const uint8_t *p) {
    int32_t x;
    memcpy(&x, p, sizeof x);
    return (vi)_mm256_set1_epi32(x);
}
K_INLINE vi v_loadi(const void *p) { return (vi)_mm256_loadu_si256(p); }
K_INLINE void v_storei(void *p, vi x) { _mm256_storeu_si256(p, (__m256i)x); }
K_INLINE vi v_loadip(const int32_t *p, vp m) { return (vi)_mm256_maskload_epi32(p, m); }
K_INLINE void v_storeip(int32_t *p, vi x, vp m) { _mm256_maskstore_epi32(p, m, (__m256i)x); }
K_INLINE int v__lanes(vp m) { return __builtin_popcount((unsigned)_mm256_movemask_ps(_mm256_castsi256_ps(m))); }
K_INLINE vi v_bytesp(const uint8_t *p, vp m) {
    uint64_t x = 0;
    const int n = v__lanes(m);
    if (n == VW)
        memcpy(&x, p, sizeof x);
    else
        for (int i = 0; i < n; i++) x |= (uint64_t)p[i] << 8 * i;
    return (vi)_mm256_cvtepu8_epi32(_mm_cvtsi64_si128((int64_t)x));
}
K_INLINE void v_store_bytesp(uint8_t *p, vi x, vp m) {
    const __m256i low = _mm256_shuffle_epi8((__m256i)x, _mm256_setr_epi8(0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, 0, 4, 8, 12, -1, -1, -1, -1,
                                                                          -1, -1, -1, -1, -1, -1, -1, -1));
    const uint64_t bytes = (uint32_t)_mm256_cvtsi256_si32(low) | (uint64_t)(uint32_t)_mm256_extract_epi32(low, 4) << 32;
    const int n = v__lanes(m);
    if (n == VW)
        memcpy(p, &bytes, sizeof bytes);
    else
        for (int i = 0; i < n; i++) p[i] = (uint8_t)(bytes >> 8 * i);
}
K_INLINE vi v_round(vf x) { return (vi)_mm256_cvtps_epi32(x); }
K_INLINE vi v_dot(vi acc, vi a, vi b) {
    const __m256i x = (__m256i)a, y = (__m256i)b, low = _mm256_set1_epi16(0xff);
    const __m256i even = _mm256_madd_epi16(_mm256_and_si256(x, low), _mm256_srai_epi16(_mm256_slli_epi16(y, 8), 8));
    const __m256i odd = _mm256_madd_epi16(_mm256_srli_epi16(x, 8), _mm256_srai_epi16(y, 8));
    return (vi)((vu)acc + (vu)even + (vu)odd);
}
#else
typedef uint8_t vb __attribute__((vector_size(16)));
K_INLINE vi v_quad(const uint8_t *p) {
    int32_t x;
    memcpy(&x, p, sizeof x);
    return v_seti(x);
}
K_INLINE vi v_loadi(const void *p) {
    vi x;
    memcpy(&x, p, sizeof x);
    return x;
}
K_INLINE void v_storei(void *p, vi x) { memcpy(p, &x, sizeof x); }
K_INLINE vi v_loadip(const int32_t *p, vp m) {
    vi x = {0, 0, 0, 0};
    for (int64_t i = 0; i < m; i++) x[i] = p[i];
    return x;
}
K_INLINE void v_storeip(int32_t *p, vi x, vp m) {
    for (int64_t i = 0; i < m; i++) p[i] = x[i];
}
K_INLINE vi v_bytesp(const uint8_t *p, vp m) {
    vi x = {0, 0, 0, 0};
    for (int64_t i = 0; i < m; i++) x[i] = p[i];
    return x;
}
K_INLINE void v_store_bytesp(uint8_t *p, vi x, vp m) {
    for (int64_t i = 0; i < m; i++) p[i] = (uint8_t)x[i];
}
K_INLINE vi v_round(vf x) { return __builtin_convertvector(x + v_set(12582912.0f) - v_set(12582912.0f), vi); }
K_INLINE vi v_dot(vi acc, vi a, vi b) {
    vu sum = (vu)acc;
    K_UNROLL for (int i = 0; i < 4; i++) sum += ((vu)a >> 8 * i & 0xff) * (vu)((vi)((vu)b << (24 - 8 * i)) >> 24);
    return (vi)sum;
}
#endif

K_INLINE vb v_loadb(const void *p) {
    vb x;
    memcpy(&x, p, sizeof x);
    return x;
}
K_INLINE void v_storeb(void *p, vb x) { memcpy(p, &x, sizeof x); }
K_INLINE vb v_setb(uint8_t x) { return (vb)v_seti((int32_t)(x * 0x01010101u)); }

/* In each 16 bytes on their own: v_zip8 and v_zip16 interleave the lower or upper halves of a and b by bytes and by pairs of bytes; v_pack is the
 * way back from four vectors of integers, which lie within u8 or i8. */
/* K_SATURATES: there are packs that saturate. */
#if K_LANES == K_LANES_AVX512
#define K_SATURATES
K_INLINE vb v_zip8_low(vb a, vb b) { return (vb)_mm512_unpacklo_epi8((__m512i)a, (__m512i)b); }
K_INLINE vb v_zip8_high(vb a, vb b) { return (vb)_mm512_unpackhi_epi8((__m512i)a, (__m512i)b); }
K_INLINE vi v_zip16_low(vb a, vb b) { return (vi)_mm512_unpacklo_epi16((__m512i)a, (__m512i)b); }
K_INLINE vi v_zip16_high(vb a, vb b) { return (vi)_mm512_unpackhi_epi16((__m512i)a, (__m512i)b); }
K_INLINE vb v_pack(vi a, vi b, vi c, vi d) {
    const __m512i low = _mm512_set1_epi32(0xff); /* the low byte is what counts, as u8: i8 would saturate */
    const __m512i ab = _mm512_packus_epi32(_mm512_and_si512((__m512i)a, low), _mm512_and_si512((__m512i)b, low));
    const __m512i cd = _mm512_packus_epi32(_mm512_and_si512((__m512i)c, low), _mm512_and_si512((__m512i)d, low));
    return (vb)_mm512_packus_epi16(ab, cd);
}
K_INLINE vb v_maxb(vb a, vb b) { return (vb)_mm512_max_epu8((__m512i)a, (__m512i)b); }
typedef int16_t vs __attribute__((vector_size(64)));
K_INLINE vs v_set16(int32_t x) { return (vs)_mm512_set1_epi16((short)x); }
K_INLINE vs v_adds16(vs a, vs b) { return (vs)_mm512_adds_epi16((__m512i)a, (__m512i)b); }
K_INLINE vs v_packs32(vi a, vi b) { return (vs)_mm512_packs_epi32((__m512i)a, (__m512i)b); }
K_INLINE vb v_packs16(vs a, vs b) { return (vb)_mm512_packs_epi16((__m512i)a, (__m512i)b); }
K_INLINE vb v_packus16(vs a, vs b) { return (vb)_mm512_packus_epi16((__m512i)a, (__m512i)b); }
K_INLINE vb v_clip_signed(vb x, vb lo, vb hi) { return (vb)_mm512_min_epi8((__m512i)hi, _mm512_max_epi8((__m512i)lo, (__m512i)x)); }
K_INLINE vb v_clip_unsigned(vb x, vb lo, vb hi) { return (vb)_mm512_min_epu8((__m512i)hi, _mm512_max_epu8((__m512i)lo, (__m512i)x)); }
K_INLINE void v_storebn(uint8_t *p, vb x, int64_t n) { _mm512_mask_storeu_epi8(p, ~(__mmask64)0 >> (64 - n), (__m512i)x); } /* 1 <= n <= 64 */
#elif K_LANES == K_LANES_AVX2
#define K_SATURATES
K_INLINE vb v_zip8_low(vb a, vb b) { return (vb)_mm256_unpacklo_epi8((__m256i)a, (__m256i)b); }
K_INLINE vb v_zip8_high(vb a, vb b) { return (vb)_mm256_unpackhi_epi8((__m256i)a, (__m256i)b); }
K_INLINE vi v_zip16_low(vb a, vb b) { return (vi)_mm256_unpacklo_epi16((__m256i)a, (__m256i)b); }
K_INLINE vi v_zip16_high(vb a, vb b) { return (vi)_mm256_unpackhi_epi16((__m256i)a, (__m256i)b); }
K_INLINE vb v_pack(vi a, vi b, vi c, vi d) {
    const __m256i low = _mm256_set1_epi32(0xff);
    const __m256i ab = _mm256_packus_epi32(_mm256_and_si256((__m256i)a, low), _mm256_and_si256((__m256i)b, low));
    const __m256i cd = _mm256_packus_epi32(_mm256_and_si256((__m256i)c, low), _mm256_and_si256((__m256i)d, low));
    return (vb)_mm256_packus_epi16(ab, cd);
}
K_INLINE vb v_maxb(vb a, vb b) { return (vb)_mm256_max_epu8((__m256i)a, (__m256i)b); }
typedef int16_t vs __attribute__((vector_size(32)));
K_INLINE vs v_set16(int32_t x) { return (vs)_mm256_set1_epi16((short)x); }
K_INLINE vs v_adds16(vs a, vs b) { return (vs)_mm256_adds_epi16((__m256i)a, (__m256i)b); }
K_INLINE vs v_packs32(vi a, vi b) { return (vs)_mm256_packs_epi32((__m256i)a, (__m256i)b); }
K_INLINE vb v_packs16(vs a, vs b) { return (vb)_mm256_packs_epi16((__m256i)a, (__m256i)b); }
K_INLINE vb v_packus16(vs a, vs b) { return (vb)_mm256_packus_epi16((__m256i)a, (__m256i)b); }
K_INLINE vb v_clip_signed(vb x, vb lo, vb hi) { return (vb)_mm256_min_epi8((__m256i)hi, _mm256_max_epi8((__m256i)lo, (__m256i)x)); }
K_INLINE vb v_clip_unsigned(vb x, vb lo, vb hi) { return (vb)_mm256_min_epu8((__m256i)hi, _mm256_max_epu8((__m256i)lo, (__m256i)x)); }
K_INLINE void v_storebn(uint8_t *p, vb x, int64_t n) { memcpy(p, &x, (size_t)n); }
#else
K_INLINE vb v_zip8_low(vb a, vb b) { return __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23); }
K_INLINE vb v_zip8_high(vb a, vb b) { return __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31); }
K_INLINE vi v_zip16_low(vb a, vb b) { return (vi)__builtin_shufflevector(a, b, 0, 1, 16, 17, 2, 3, 18, 19, 4, 5, 20, 21, 6, 7, 22, 23); }
K_INLINE vi v_zip16_high(vb a, vb b) { return (vi)__builtin_shufflevector(a, b, 8, 9, 24, 25, 10, 11, 26, 27, 12, 13, 28, 29, 14, 15, 30, 31); }
K_INLINE vb v_pack(vi a, vi b, vi c, vi d) {
    vb y;
    for (int i = 0; i < VW; i++) y[i] = (uint8_t)a[i], y[VW + i] = (uint8_t)b[i], y[2 * VW + i] = (uint8_t)c[i], y[3 * VW + i] = (uint8_t)d[i];
    return y;
}
K_INLINE void v_storebn(uint8_t *p, vb x, int64_t n) { memcpy(p, &x, (size_t)n); }
K_INLINE vb v_maxb(vb a, vb b) {
    const vb above = (vb)(a > b);
    return (a & above) | (b & ~above);
}
#endif
K_INLINE vf v_clip(vf x, vf lo, vf hi) { return v_min(hi, v_max(x, lo)); } /* NaN: lo */

#endif
