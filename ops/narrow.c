/* narrow.c: the 8-bit floats, float4 and the integers of 4 and 2 bits.
 *
 * In memory each of them takes a byte an element, in its low bits (signed integers with their sign extended), so that
 * whatever moves elements moves these too; only TensorProto packs the narrower ones, two or four a byte, the first in
 * the lowest bits. Arithmetic is not defined on them: Cast, QuantizeLinear and DequantizeLinear go through f32.
 *
 * A float of these kinds is sign, exponent, mantissa with subnormals. What differs: how many bits, the bias, and what
 * the end of the range holds. "FN" has no infinity, "UZ" no negative zero: its code is the only NaN. Rounding is to
 * the nearest, halves to even. E8M0 is a power of two without sign, 255 is NaN. */
#include "ops/op.h"

#include <math.h>
#include <string.h>

struct format {
    int mantissa, bias;    /* bits of the mantissa, exponent bias */
    uint8_t sign, largest; /* the sign bit; the code of the largest finite value */
    uint8_t infinity, nan; /* 0 where there is none */
};

static const struct format *format_of(enum op_type type) {
    static const struct format e4m3fn = {3, 7, 0x80, 0x7e, 0, 0x7f}, e4m3fnuz = {3, 8, 0x80, 0x7f, 0, 0x80}, e5m2 = {2, 15, 0x80, 0x7b, 0x7c, 0x7f},
                               e5m2fnuz = {2, 16, 0x80, 0x7f, 0, 0x80}, e2m1 = {1, 1, 0x08, 0x07, 0, 0};
    switch (type) {
    case OP_F8E4M3FN: return &e4m3fn;
    case OP_F8E4M3FNUZ: return &e4m3fnuz;
    case OP_F8E5M2: return &e5m2;
    case OP_F8E5M2FNUZ: return &e5m2fnuz;
    case OP_F4E2M1: return &e2m1;
    default: return NULL;
    }
}

static float float_of(uint32_t u) {
    float f;
    memcpy(&f, &u, sizeof f);
    return f;
}

static float e8m0_to_f32(uint8_t code) {
    if (code == 0xff) return NAN;
    return code ? float_of((uint32_t)code << 23) : 0x1p-127f;
}

float op__narrow_to_f32(enum op_type type, uint8_t code) {
    const struct format *f = format_of(type);
    if (type == OP_F8E8M0) return e8m0_to_f32(code);
    if (!f) return type == OP_I4 || type == OP_I2 ? (float)(int8_t)code : (float)code;
    if (f->nan == f->sign && f->nan && code == f->nan) return NAN;
    const uint8_t magnitude = code & (uint8_t)(f->sign - 1);
    float v;
    if (f->infinity && magnitude == f->infinity) v = INFINITY;
    else if (magnitude > f->largest) v = NAN;
    else {
        const int exponent = magnitude >> f->mantissa, bits = magnitude & ((1 << f->mantissa) - 1);
        const int scale = (exponent ? exponent : 1) - f->bias - f->mantissa;
        v = (float)(exponent ? bits + (1 << f->mantissa) : bits) * float_of((uint32_t)(scale + 127) << 23);
    }
    return code & f->sign ? -v : v;
}

/* ONNX's default: away from zero ("up"); the exponent is all that is kept. */
static uint8_t f32_to_e8m0(float v, enum op_round round, bool saturate) {
    uint32_t u;
    memcpy(&u, &v, sizeof u);
    uint32_t exponent = u >> 23 & 0xff, rest = u & 0x7fffff;
    if (exponent == 0xff) return 0xff;
    const uint32_t exact = exponent ? 0 : 0x400000; /* code 0 is 2^-127, a subnormal of f32 */
    bool more = round == OP_ROUND_UP ? rest > exact : round == OP_ROUND_NEAREST && rest >= (exponent ? 0x400000 : 0x600000);
    if (more && !(saturate && exponent == 0xfe)) exponent++;
    return (uint8_t)exponent;
}

uint8_t op__f32_to_narrow(enum op_type type, float v, bool saturate, enum op_round round) {
    const struct format *f = format_of(type);
    if (type == OP_F8E8M0) return f32_to_e8m0(v, round, saturate);
    if (!f) return 0;
    const uint8_t sign = signbit(v) ? f->sign : 0;
    if (isnan(v)) return !f->nan ? f->largest : f->nan == f->sign ? f->nan : (uint8_t)(f->nan | sign);
    v = fabsf(v);
    uint32_t u, code = (uint32_t)f->largest + 1;
    memcpy(&u, &v, sizeof u);
    const int least = 1 - f->bias, exponent = (int)(u >> 23) - 127 < least ? least : (int)(u >> 23) - 127;
    if (exponent < 64) { /* units of this exponent's last bit, rounded; a carry moves into the exponent by itself */
        const float units = rintf(v * float_of((uint32_t)(f->mantissa - exponent + 127) << 23));
        code = (uint32_t)units + ((uint32_t)(exponent - least) << f->mantissa);
    }
    if (code > f->largest) {
        if (saturate || !f->nan) code = f->largest;
        else if (f->nan == f->sign) return f->nan;
        else code = f->infinity ? f->infinity : f->nan;
    }
    return code || f->nan != f->sign ? (uint8_t)(code | sign) : 0;
}

int op__type_bits(enum op_type type) {
    switch (type) {
    case OP_U4: case OP_I4: case OP_F4E2M1: return 4;
    case OP_U2: case OP_I2: return 2;
    default: return 8 * (int)op_type_size(type);
    }
}

int64_t op__packed_bytes(enum op_type type, int64_t count) {
    const int bits = op__type_bits(type);
    return bits < 8 ? count / (8 / bits) + (count % (8 / bits) != 0) : count * (bits / 8);
}

void op__unpack(enum op_type type, uint8_t *dst, const uint8_t *packed, int64_t count) {
    const int bits = op__type_bits(type), each = 8 / bits, mask = (1 << bits) - 1, top = 1 << (bits - 1);
    const bool is_signed = type == OP_I4 || type == OP_I2;
    for (int64_t i = 0; i < count; i++) {
        const int v = packed[i / each] >> (int)(i % each) * bits & mask;
        dst[i] = (uint8_t)(is_signed && (v & top) ? v - 2 * top : v);
    }
}

void op__pack(enum op_type type, uint8_t *packed, const uint8_t *src, int64_t count) {
    const int bits = op__type_bits(type), each = 8 / bits, mask = (1 << bits) - 1;
    for (int64_t i = 0; i < count; i++) {
        const int at = (int)(i % each) * bits;
        packed[i / each] = (uint8_t)((at ? packed[i / each] : 0) | (src[i] & mask) << at);
    }
}
