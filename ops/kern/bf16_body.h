/* bf16_body.h: the tiles of gemm_body.h for pairs of bf16, and the way from f32 to bf16, written once and compiled for each level.
 *
 * A pair lies in the four bytes of a float: the element with the lower k in the lower half. With K_BF16 (the level vnni) a pair is one
 * instruction, vdpbf16ps; elsewhere two fused multiply-adds in its order, and what the instruction does to small results. */
#include "ops/kern/lanes.h"

#ifndef K_NO_TILES /* the level amx has its own */
#define K_TILES_ONLY
#define K_MULTIPLY(a, b, c) v_pairs(a, b, c)

#ifdef K_BF16
K_INLINE vf v_pairs(vf a, vf b, vf c) { return _mm512_dpbf16_ps(c, (__m512bh)a, (__m512bh)b); }
#else
K_INLINE vf v_no_subnormals(vf x) {
    const vi bits = (vi)x, small = (vi)((bits & 0x7f800000) == 0); /* all ones where the exponent is zero */
    return (vf)(bits & ~(small & 0x7fffffff));
}

K_INLINE vf v_pairs(vf a, vf b, vf c) {
    const vi high = v_seti((int32_t)0xffff0000);
    c = v_no_subnormals(v_fma((vf)((vi)a & high), (vf)((vi)b & high), c));
    return v_no_subnormals(v_fma((vf)((vu)a << 16), (vf)((vu)b << 16), c));
}
#endif

#include "ops/kern/gemm_body.h"

static const struct k_gemm pairs = K_GEMM_TABLE;
#endif

K_INLINE uint16_t to_bf16(float x) {
    uint32_t u;
    memcpy(&u, &x, sizeof u);
    if ((u & 0x7fffffff) > 0x7f800000) return (uint16_t)(u >> 16 | 0x40); /* NaN, quiet */
    if (!(u & 0x7f800000)) return (uint16_t)(u >> 16 & 0x8000);
    return (uint16_t)((u + 0x7fff + (u >> 16 & 1)) >> 16);
}

static void convert(int64_t n, const float *x, uint16_t *y) {
    int64_t i = 0;
#ifdef K_BF16
    for (; i + 32 <= n; i += 32) {
        const __m512bh v = _mm512_cvtne2ps_pbh(_mm512_loadu_ps(x + i + 16), _mm512_loadu_ps(x + i));
        memcpy(y + i, &v, sizeof v);
    }
    for (; i < n; i += 16) {
        const __mmask16 part = v_part(n - i);
        const __m256bh v = _mm512_cvtneps_pbh(_mm512_maskz_loadu_ps(part, x + i));
        _mm256_mask_storeu_epi16(y + i, part, (__m256i)v);
    }
#endif
    for (; i < n; i++) y[i] = to_bf16(x[i]);
}

#define K_HALF_TABLE                                                                               \
    { .gemm = &pairs, .convert = convert, }
