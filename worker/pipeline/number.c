/* number.c: JSON numbers to doubles, exactly, and fast enough for megabytes of them.
 *
 * Up to 19 digits are gathered into a 64-bit integer m, so the number is m·10^e. For |e| ≤ 27 both
 * m and 10^|e| (= 5^|e|·2^|e|, 5^27 < 2^64) are exact in the 64-bit significand of x86's long
 * double, so one multiplication or division is off by at most half a unit of bit 64. Rounding that
 * to a double can go wrong only where the 11 bits cut off are exactly a half: then, as for longer
 * numbers and larger exponents, strtod decides. The usual fast path in doubles (m < 2^53, |e| ≤ 22)
 * comes first, but is not enough: a float32 printed as a double, which is what Python's tolist()
 * gives, has 17 digits. Eight digits at a time are read in one word. */
#include "worker/pipeline/scan.h"

#include <float.h>
#include <locale.h>
#include <math.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

static locale_t c_locale;
static pthread_once_t c_locale_once = PTHREAD_ONCE_INIT;

static void make_locale(void) {
    c_locale = newlocale(LC_ALL_MASK, "C", NULL);
}

static double slow(const char *p, size_t len) {
    char small[128], *text = small;
    pthread_once(&c_locale_once, make_locale);
    if (len >= sizeof small && !(text = malloc(len + 1))) return NAN;
    memcpy(text, p, len);
    text[len] = 0;
    double v = c_locale ? strtod_l(text, NULL, c_locale) : strtod(text, NULL);
    if (text != small) free(text);
    return v;
}

static const double powers[] = {1e0,  1e1,  1e2,  1e3,  1e4,  1e5,  1e6,  1e7,
                                1e8,  1e9,  1e10, 1e11, 1e12, 1e13, 1e14, 1e15,
                                1e16, 1e17, 1e18, 1e19, 1e20, 1e21, 1e22};

#if LDBL_MANT_DIG == 64
static const long double long_powers[28] = {1e0L,  1e1L,  1e2L,  1e3L,  1e4L,  1e5L,  1e6L,
                                            1e7L,  1e8L,  1e9L,  1e10L, 1e11L, 1e12L, 1e13L,
                                            1e14L, 1e15L, 1e16L, 1e17L, 1e18L, 1e19L, 1e20L,
                                            1e21L, 1e22L, 1e23L, 1e24L, 1e25L, 1e26L, 1e27L};

static bool fast_long(uint64_t m, int64_t e, double *dst) {
    if (e < -27 || e > 27) return false;
    long double x = e < 0 ? (long double)m / long_powers[-e] : (long double)m * long_powers[e];
    uint64_t significand;
    memcpy(&significand, &x, 8);
    if ((significand & 0x7ff) == 0x400) return false;
    *dst = (double)x;
    return true;
}
#else
static bool fast_long(uint64_t m, int64_t e, double *dst) {
    (void)m, (void)e, (void)dst;
    return false;
}
#endif

static bool fast(uint64_t m, int64_t e, double *dst) {
    if (m >> 53 || e < -22 || e > 22) return fast_long(m, e, dst);
    *dst = e < 0 ? (double)m / powers[-e] : (double)m * powers[e];
    return true;
}

static inline bool digit(const char *p, const char *end) {
    return p < end && (unsigned char)(*p - '0') < 10;
}

/* Gathers the digits at p into *m (which may wrap: the caller counts them). Returns behind the
 * last. */
static inline const char *digits(const char *p, const char *end, uint64_t *m) {
    while (end - p >= 8) {
        uint64_t v;
        memcpy(&v, p, 8);
        if (((v & 0xf0f0f0f0f0f0f0f0u) | ((v + 0x0606060606060606u) & 0xf0f0f0f0f0f0f0f0u) >> 4) !=
            0x3333333333333333u)
            break;
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
        v = __builtin_bswap64(v);
#endif
        v = (v & 0x0f0f0f0f0f0f0f0fu) * 2561 >> 8; /* pairs, then fours, then eight */
        v = (v & 0x00ff00ff00ff00ffu) * 6553601 >> 16;
        v = (v & 0x0000ffff0000ffffu) * 42949672960001u >> 32;
        *m = *m * 100000000 + v;
        p += 8;
    }
    while (digit(p, end)) *m = *m * 10 + (uint64_t)(*p++ - '0');
    return p;
}

const char *w__number_read(const char *p, const char *end, struct w_number *dst) {
    const char *start = p;
    bool negative = p < end && *p == '-';
    p += negative;
    if (!digit(p, end)) return NULL;
    if (*p == '0' && digit(p + 1, end)) return NULL;
    uint64_t m = 0;
    const char *first = p;
    p = digits(p, end, &m);
    int64_t n_digits = p - first, exponent = 0;
    bool whole = true;
    if (p < end && *p == '.') {
        const char *point = ++p;
        if (!digit(p, end)) return NULL;
        p = digits(p, end, &m);
        exponent = point - p;
        n_digits += p - point;
        whole = false;
        if (n_digits > 19) /* zeros in front are no digits: 0.00012345678901234567 */
            for (const char *q = first; q < p && (*q == '0' || *q == '.'); q++)
                n_digits -= *q == '0';
    }
    if (p < end && (*p == 'e' || *p == 'E')) {
        p++;
        bool minus = p < end && *p == '-';
        if (p < end && (*p == '-' || *p == '+')) p++;
        if (!digit(p, end)) return NULL;
        int64_t e = 0;
        for (; digit(p, end); p++)
            if (e < 100000) e = e * 10 + (*p - '0');
        exponent += minus ? -e : e;
        whole = false;
    }
    dst->negative = negative;
    /* 19 digits always fit 64 bits; of 20 whole ones those up to 2^64 - 1 do, and did not wrap. */
    bool fits =
        n_digits <= 19 || (whole && n_digits == 20 && *first == '1' && m >= 10000000000000000000u);
    dst->is_int = whole && fits;
    dst->magnitude = m;
    double v;
    if (fits && !m)
        v = 0;
    else if (!fits || !fast(m, exponent, &v)) {
        dst->value = slow(start, (size_t)(p - start));
        return p;
    }
    dst->value = negative ? -v : v;
    return p;
}

/* --- elements --------------------------------------------------------------------------------- */

uint16_t w__f16(float f) {
    union {
        float f;
        uint32_t u;
    } v = {f};
    uint32_t sign = v.u >> 16 & 0x8000, a = v.u & 0x7fffffff;
    if (a > 0x7f800000) return (uint16_t)(sign | 0x7e00);
    if (a >= 0x477ff000) return (uint16_t)(sign | 0x7c00); /* 65520 and above round to infinity */
    if (a < 0x38800000) {                                  /* subnormal: units of 2^-24 */
        union {
            uint32_t u;
            float f;
        } w = {a};
        return (uint16_t)(sign | (uint32_t)lrintf(w.f * 16777216.0f));
    }
    a += 0xfff + (a >> 13 & 1);
    return (uint16_t)(sign | (a - 0x38000000) >> 13);
}

double w__element(const struct op_tensor *t, int64_t i) {
    return op_tensor_number(t, i);
}

/* A whole number as magnitude and sign, from a form with fraction or exponent too (1e3, 2.0). */
static bool whole(const struct w_number *n, uint64_t *magnitude) {
    if (n->is_int) return *magnitude = n->magnitude, true;
    double a = fabs(n->value);
    if (!(a < 18446744073709551616.0) || a != floor(a)) return false;
    *magnitude = (uint64_t)a;
    return true;
}

static bool store_int(enum op_type dtype, void *dst, int64_t i, uint64_t m, bool negative) {
    static const struct {
        uint64_t max, min; /* magnitudes */
    } range[] = {[OP_U8] = {UINT8_MAX, 0},
                 [OP_I8] = {INT8_MAX, 128},
                 [OP_U16] = {UINT16_MAX, 0},
                 [OP_I16] = {INT16_MAX, 32768},
                 [OP_U32] = {UINT32_MAX, 0},
                 [OP_I32] = {INT32_MAX, 1u << 31},
                 [OP_U64] = {UINT64_MAX, 0},
                 [OP_BOOL] = {1, 0},
                 [OP_I64] = {INT64_MAX, (uint64_t)1 << 63}};
    if (m > (negative ? range[dtype].min : range[dtype].max)) return false;
    uint64_t v = negative ? 0 - m : m;
    switch (op_type_size(dtype)) {
    case 1:
        ((uint8_t *)dst)[i] = (uint8_t)v;
        break;
    case 2:
        ((uint16_t *)dst)[i] = (uint16_t)v;
        break;
    case 4:
        ((uint32_t *)dst)[i] = (uint32_t)v;
        break;
    default:
        ((uint64_t *)dst)[i] = v;
    }
    return true;
}

bool w__store(enum op_type dtype, void *dst, int64_t i, const struct w_number *n) {
    uint64_t m;
    double v = n->value;
    switch (dtype) {
    case OP_F32:
        ((float *)dst)[i] = (float)v;
        return isfinite(((float *)dst)[i]) || !isfinite(v);
    case OP_F64:
        ((double *)dst)[i] = v;
        return true;
    case OP_F16:
        ((uint16_t *)dst)[i] = w__f16((float)v);
        return fabs(v) < 65520.0 || !isfinite(v);
    case OP_BF16:
        ((uint16_t *)dst)[i] = w__bf16((float)v);
        return isfinite(w__bf16_to_f32(((uint16_t *)dst)[i])) || !isfinite(v);
    case OP_U8:
    case OP_I8:
    case OP_U16:
    case OP_I16:
    case OP_U32:
    case OP_I32:
    case OP_U64:
    case OP_I64:
    case OP_BOOL:
        return whole(n, &m) && store_int(dtype, dst, i, m, n->negative);
    default:
        return false;
    }
}
