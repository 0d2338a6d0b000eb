/* binary16 and bfloat16 to and from binary32 in integer arithmetic: the same bits on every machine. */
#include "ops/op.h"

#include <string.h>

static uint32_t bits_of(float f) {
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    return u;
}

float op__f16_to_f32(uint16_t h) {
    uint32_t sign = (uint32_t)(h & 0x8000u) << 16, exponent = (h >> 10) & 0x1fu, mantissa = h & 0x3ffu, u;
    if (exponent == 0x1f) u = sign | 0x7f800000u | mantissa << 13;
    else if (exponent) u = sign | (exponent + 112) << 23 | mantissa << 13;
    else if (!mantissa) u = sign;
    else { /* subnormal: normalise */
        int shift = __builtin_clz(mantissa) - 21;
        u = sign | (uint32_t)(113 - shift) << 23 | ((mantissa << (shift + 13)) & 0x7fffffu);
    }
    float f;
    memcpy(&f, &u, sizeof f);
    return f;
}

uint16_t op__f32_to_f16(float f) {
    uint32_t u = bits_of(f), sign = (u >> 16) & 0x8000u, a = u & 0x7fffffffu;
    if (a > 0x7f800000u) return (uint16_t)(sign | 0x7e00u | (a >> 13 & 0x3ffu)); /* a quiet NaN */
    if (a >= 0x477ff000u) return (uint16_t)(sign | 0x7c00u);                     /* rounds beyond 65504 */
    if (a >= 0x38800000u)                                                        /* normal */
        return (uint16_t)(sign | ((a - 0x38000000u + 0xfffu + (a >> 13 & 1)) >> 13));
    if (a < 0x33000000u) return (uint16_t)sign; /* below half the least subnormal */
    uint32_t shift = 126 - (a >> 23), m = (a & 0x7fffffu) | 0x800000u; /* subnormal: units of 2^-24 */
    uint32_t half = m >> shift, rest = m & ((1u << shift) - 1), mid = 1u << (shift - 1);
    if (rest > mid || (rest == mid && (half & 1))) half++;
    return (uint16_t)(sign | half);
}

uint16_t op__f32_to_bf16(float f) {
    uint32_t u = bits_of(f);
    if ((u & 0x7fffffffu) > 0x7f800000u) return (uint16_t)(u >> 16 | 0x40u);
    return (uint16_t)((u + 0x7fffu + (u >> 16 & 1)) >> 16);
}
