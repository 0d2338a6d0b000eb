/* lanes.h: the vector operations that the kernel bodies are written in, for the level that the including file names by
 * K_LANES (K_LANES_GENERIC, K_LANES_NEON, K_LANES_AVX2 or K_LANES_AVX512). Plain arithmetic, shifts and bit operations are GCC's vector
 * extensions (a + b, a * b, i << 23); here is only what the language cannot say: fused multiply-add, loads and stores of a
 * part of a vector, minimum and maximum, comparison and selection.
 *
 *   vf      VW floats, vi, vu  VW 32-bit integers, signed and not (sums that may wrap are done in vu),
 *   vm    a mask of VW truth values, vp    the first n lanes (v_part), made once
 *   vr is lanes [lo, hi) (v_range); v_loadr reads those and has zeros in the others; memory outside the range is not touched
 *   v_even, v_odd   every second element of a and b, one after the other; v_zip_low, v_zip_high are the way back
 *   v_next          lane i gets lane i + 1, the last one the first
 *   v_max(a, b) is a > b ? a : b, v_min(a, b) is a < b ? a : b: the second operand wins where one is NaN. */
#ifndef QUERN_KERN_LANES_H
#define QUERN_KERN_LANES_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#define K_LANES_GENERIC 1
#define K_LANES_AVX2 2
#define K_LANES_AVX512 3
#define K_LANES_NEON 4 /* vectors of four as in plain C, the operations that its language lacks by instruction */

#define K_INLINE static inline __attribute__((always_inline, unused))

#if K_LANES == K_LANES_AVX512
#include <immintrin.h>
#define VW 16
typedef __m512 vf;
typedef __mmask16 vm;
typedef int32_t vi __attribute__((vector_size(64)));
typedef uint32_t vu __attribute__((vector_size(64)));

typedef __mmask16 vp;

K_INLINE vp v_part(int64_t n) { return n >= 16 ? 0xffff : (__mmask16)((1u << n) - 1); }
K_INLINE vf v_loadp(const float *p, vp m) { return _mm512_maskz_loadu_ps(m, p); }
K_INLINE void v_storep(float *p, vf x, vp m) { _mm512_mask_storeu_ps(p, m, x); }
K_INLINE vf v_set(float x) { return _mm512_set1_ps(x); }
K_INLINE vi v_seti(int32_t x) { return (vi)_mm512_set1_epi32(x); }
K_INLINE vf v_load(const float *p) { return _mm512_loadu_ps(p); }
K_INLINE void v_store(float *p, vf x) { _mm512_storeu_ps(p, x); }
K_INLINE vf v_loadn(const float *p, int64_t n) { return _mm512_maskz_loadu_ps((__mmask16)((1u << n) - 1), p); }
K_INLINE void v_storen(float *p, vf x, int64_t n) { _mm512_mask_storeu_ps(p, (__mmask16)((1u << n) - 1), x); }
typedef __mmask16 vr;

K_INLINE vr v_range(int64_t lo, int64_t hi) {
    const uint32_t below_hi = hi >= 16 ? 0xffffu : hi <= 0 ? 0 : (1u << hi) - 1, below_lo = lo >= 16 ? 0xffffu : lo <= 0 ? 0 : (1u << lo) - 1;
    return (__mmask16)(below_hi & ~below_lo);
}
K_INLINE vf v_loadr(const float *p, vr r) { return _mm512_maskz_loadu_ps(r, p); }
K_INLINE vf v_next(vf a) { return (vf)_mm512_alignr_epi32((__m512i)a, (__m512i)a, 1); }
K_INLINE vf v_zip_low(vf a, vf b) {
    return _mm512_permutex2var_ps(a, _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23), b);
}
K_INLINE vf v_zip_high(vf a, vf b) {
    return _mm512_permutex2var_ps(a, _mm512_setr_epi32(8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31), b);
}
K_INLINE vf v_even(vf a, vf b) {
    return _mm512_permutex2var_ps(a, _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30), b);
}
K_INLINE vf v_odd(vf a, vf b) {
    return _mm512_permutex2var_ps(a, _mm512_setr_epi32(1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31), b);
}
K_INLINE vf v_fma(vf a, vf b, vf c) { return _mm512_fmadd_ps(a, b, c); }
K_INLINE vf v_fnma(vf a, vf b, vf c) { return _mm512_fnmadd_ps(a, b, c); }
K_INLINE vf v_max(vf a, vf b) { return _mm512_max_ps(a, b); }
K_INLINE vf v_min(vf a, vf b) { return _mm512_min_ps(a, b); }
K_INLINE vf v_sqrt(vf a) { return _mm512_sqrt_ps(a); }
K_INLINE vm v_lt(vf a, vf b) { return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ); }
K_INLINE vm v_eq(vf a, vf b) { return _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ); }
K_INLINE vm v_isnan(vf a) { return _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q); }
K_INLINE vf v_sel(vm m, vf a, vf b) { return _mm512_mask_blend_ps(m, b, a); } /* m ? a : b */

#elif K_LANES == K_LANES_AVX2
#include <immintrin.h>
#define VW 8
typedef __m256 vf;
typedef __m256 vm;
typedef int32_t vi __attribute__((vector_size(32)));
typedef uint32_t vu __attribute__((vector_size(32)));

K_INLINE __m256i v__first(int64_t n) { /* all ones in lanes below n */
    return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
typedef __m256i vp;

K_INLINE vp v_part(int64_t n) { return v__first(n < 8 ? n : 8); }
K_INLINE vf v_loadp(const float *p, vp m) { return _mm256_maskload_ps(p, m); }
K_INLINE void v_storep(float *p, vf x, vp m) { _mm256_maskstore_ps(p, m, x); }
K_INLINE vf v_set(float x) { return _mm256_set1_ps(x); }
K_INLINE vi v_seti(int32_t x) { return (vi)_mm256_set1_epi32(x); }
K_INLINE vf v_load(const float *p) { return _mm256_loadu_ps(p); }
K_INLINE void v_store(float *p, vf x) { _mm256_storeu_ps(p, x); }
K_INLINE vf v_loadn(const float *p, int64_t n) { return _mm256_maskload_ps(p, v__first(n)); }
K_INLINE void v_storen(float *p, vf x, int64_t n) { _mm256_maskstore_ps(p, v__first(n), x); }
typedef __m256i vr;

K_INLINE vr v_range(int64_t lo, int64_t hi) {
    const int below_hi = hi >= 8 ? 8 : hi <= 0 ? 0 : (int)hi, below_lo = lo >= 8 ? 8 : lo <= 0 ? 0 : (int)lo;
    return _mm256_andnot_si256(v__first(below_lo), v__first(below_hi));
}
K_INLINE vf v_loadr(const float *p, vr r) { return _mm256_maskload_ps(p, r); }
K_INLINE vf v_next(vf a) { return _mm256_permutevar8x32_ps(a, _mm256_setr_epi32(1, 2, 3, 4, 5, 6, 7, 0)); }
K_INLINE vf v_zip_low(vf a, vf b) { return _mm256_permute2f128_ps(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b), 0x20); }
K_INLINE vf v_zip_high(vf a, vf b) { return _mm256_permute2f128_ps(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b), 0x31); }
K_INLINE vf v__in_order(vf x) { return _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(x), 0xd8)); }
K_INLINE vf v_even(vf a, vf b) { return v__in_order(_mm256_shuffle_ps(a, b, 0x88)); }
K_INLINE vf v_odd(vf a, vf b) { return v__in_order(_mm256_shuffle_ps(a, b, 0xdd)); }
K_INLINE vf v_fma(vf a, vf b, vf c) { return _mm256_fmadd_ps(a, b, c); }
K_INLINE vf v_fnma(vf a, vf b, vf c) { return _mm256_fnmadd_ps(a, b, c); }
K_INLINE vf v_max(vf a, vf b) { return _mm256_max_ps(a, b); }
K_INLINE vf v_min(vf a, vf b) { return _mm256_min_ps(a, b); }
K_INLINE vf v_sqrt(vf a) { return _mm256_sqrt_ps(a); }
K_INLINE vm v_lt(vf a, vf b) { return _mm256_cmp_ps(a, b, _CMP_LT_OQ); }
K_INLINE vm v_eq(vf a, vf b) { return _mm256_cmp_ps(a, b, _CMP_EQ_OQ); }
K_INLINE vm v_isnan(vf a) { return _mm256_cmp_ps(a, a, _CMP_UNORD_Q); }
K_INLINE vf v_sel(vm m, vf a, vf b) { return _mm256_blendv_ps(b, a, m); }

#else
#define VW 4
#if K_LANES == K_LANES_NEON
#include <arm_neon.h>
typedef float32x4_t vf;
#else
typedef float vf __attribute__((vector_size(16)));
#endif
typedef int32_t vi __attribute__((vector_size(16)));
typedef uint32_t vu __attribute__((vector_size(16)));
typedef vi vm;

K_INLINE vf v_set(float x) { return (vf){x, x, x, x}; }
K_INLINE vi v_seti(int32_t x) { return (vi){x, x, x, x}; }
K_INLINE vf v_load(const float *p) {
    vf x;
    memcpy(&x, p, sizeof x);
    return x;
}
K_INLINE void v_store(float *p, vf x) { memcpy(p, &x, sizeof x); }
K_INLINE vf v_loadn(const float *p, int64_t n) {
    vf x = {0, 0, 0, 0};
    for (int64_t i = 0; i < n; i++) x[i] = p[i];
    return x;
}
K_INLINE void v_storen(float *p, vf x, int64_t n) {
    for (int64_t i = 0; i < n; i++) p[i] = x[i];
}
typedef int64_t vp;

K_INLINE vp v_part(int64_t n) { return n < VW ? n : VW; }
K_INLINE vf v_loadp(const float *p, vp m) { return m == VW ? v_load(p) : v_loadn(p, m); }
K_INLINE void v_storep(float *p, vf x, vp m) {
    if (m == VW)
        v_store(p, x);
    else
        v_storen(p, x, m);
}
typedef struct {
    int64_t lo, hi;
} vr;

K_INLINE vr v_range(int64_t lo, int64_t hi) { return (vr){lo > 0 ? lo : 0, hi < VW ? hi : VW}; }
K_INLINE vf v_loadr(const float *p, vr r) {
    vf x = {0, 0, 0, 0};
    for (int64_t i = r.lo; i < r.hi; i++) x[i] = p[i];
    return x;
}
#if K_LANES == K_LANES_NEON
K_INLINE vf v_next(vf a) { return vextq_f32(a, a, 1); }
K_INLINE vf v_zip_low(vf a, vf b) { return vzip1q_f32(a, b); }
K_INLINE vf v_zip_high(vf a, vf b) { return vzip2q_f32(a, b); }
K_INLINE vf v_even(vf a, vf b) { return vuzp1q_f32(a, b); }
K_INLINE vf v_odd(vf a, vf b) { return vuzp2q_f32(a, b); }
K_INLINE vf v_fma(vf a, vf b, vf c) { return vfmaq_f32(c, a, b); }
K_INLINE vf v_fnma(vf a, vf b, vf c) { return vfmsq_f32(c, a, b); }
K_INLINE vf v_sqrt(vf a) { return vsqrtq_f32(a); }
K_INLINE vf v_sel(vm m, vf a, vf b) { return vbslq_f32((uint32x4_t)m, a, b); }
#else
K_INLINE vf v_next(vf a) { return (vf){a[1], a[2], a[3], a[0]}; }
K_INLINE vf v_zip_low(vf a, vf b) { return (vf){a[0], b[0], a[1], b[1]}; }
K_INLINE vf v_zip_high(vf a, vf b) { return (vf){a[2], b[2], a[3], b[3]}; }
K_INLINE vf v_even(vf a, vf b) { return (vf){a[0], a[2], b[0], b[2]}; }
K_INLINE vf v_odd(vf a, vf b) { return (vf){a[1], a[3], b[1], b[3]}; }
K_INLINE vf v_fma(vf a, vf b, vf c) {
    return (vf){fmaf(a[0], b[0], c[0]), fmaf(a[1], b[1], c[1]), fmaf(a[2], b[2], c[2]), fmaf(a[3], b[3], c[3])};
}
K_INLINE vf v_fnma(vf a, vf b, vf c) { return v_fma(-a, b, c); }
K_INLINE vf v_sel(vm m, vf a, vf b) { return (vf)((m & (vi)a) | (~m & (vi)b)); }
K_INLINE vf v_sqrt(vf a) { return (vf){sqrtf(a[0]), sqrtf(a[1]), sqrtf(a[2]), sqrtf(a[3])}; }
#endif
K_INLINE vm v_lt(vf a, vf b) { return a < b; }
K_INLINE vm v_eq(vf a, vf b) { return a == b; }
K_INLINE vm v_isnan(vf a) { return a != a; }
K_INLINE vf v_max(vf a, vf b) { return v_sel(a > b, a, b); }
K_INLINE vf v_min(vf a, vf b) { return v_sel(a < b, a, b); }
#endif
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__) || defined(K_PLAIN_LOOPS) /* else gcc takes three to six times as long */
#define K_UNROLL
#elif defined(__clang__)
#define K_UNROLL _Pragma("unroll")
#else
#define K_UNROLL _Pragma("GCC unroll 16")
#endif
K_INLINE vf v_load_range(const float *p, int64_t lo, int64_t hi) { return v_loadr(p, v_range(lo, hi)); }
K_INLINE vf v_abs(vf a) { return (vf)((vi)a & v_seti(0x7fffffff)); }
K_INLINE vf v_copysign(vf magnitude, vf sign) { return (vf)(((vi)magnitude & v_seti(0x7fffffff)) | ((vi)sign & v_seti(INT32_MIN))); }

#endif
