/* text.c: writing JSON: a growing text in an arena, strings, shortest numbers, tensors.
 *
 * A float32 needs at most 9 significant digits. The number is scaled to an integer of 9 digits in
 * double arithmetic (exact to well below one unit), rounded to 6, 7, 8 and 9 digits, and the first
 * that reads back as the same float is written without its trailing zeros; six digits are enough to
 * try first, for a shorter decimal that reads back is the six-digit rounding too. Reading back is
 * one multiplication or division of an integer below 2^53 by a power of ten up to 10^22, which is
 * exact to one rounding; where the double lies within a unit of the middle between two floats the
 * next precision is tried, so a tie is never relied upon. Numbers outside 1e-12 … 1e21 go through
 * printf. */
#include "worker/pipeline/scan.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Room for n more bytes and a NUL; NULL sets failed. */
static char *reserve(struct w_text *t, size_t n) {
    if (t->failed) return NULL;
    if (n < t->size - t->len) return t->ptr + t->len;
    size_t size = t->size ? 2 * t->size : 4096;
    if (n > SIZE_MAX / 4 || t->len > SIZE_MAX / 4)
        size = SIZE_MAX;
    else if (size < t->len + n + 1)
        size = t->len + n + 1;
    char *p = w_arena_alloc(t->arena, size);
    if (!p) return t->failed = true, NULL;
    if (t->len) memcpy(p, t->ptr, t->len);
    t->ptr = p;
    t->size = size;
    return p + t->len;
}

void w_text_add(struct w_text *t, const char *bytes, size_t len) {
    char *p = reserve(t, len);
    if (!p) return;
    if (len) memcpy(p, bytes, len);
    p[len] = 0;
    t->len += len;
}

void w_text_puts(struct w_text *t, const char *text) {
    w_text_add(t, text, strlen(text));
}

void w_text_printf(struct w_text *t, const char *format, ...) {
    va_list args, again;
    va_start(args, format);
    va_copy(again, args);
    int n = vsnprintf(NULL, 0, format, args);
    va_end(args);
    char *p = n >= 0 ? reserve(t, (size_t)n) : NULL;
    if (p) {
        vsnprintf(p, (size_t)n + 1, format, again);
        t->len += (size_t)n;
    }
    va_end(again);
}

/* --- strings ---------------------------------------------------------------------------------- */

static size_t utf8_ok(const unsigned char *p, size_t n) {
    static const uint32_t least[] = {0, 0, 0x80, 0x800, 0x10000};
    size_t len = *p < 0x80                 ? 1
                 : *p >= 0xc2 && *p < 0xe0 ? 2
                 : *p >= 0xe0 && *p < 0xf0 ? 3
                 : *p >= 0xf0 && *p < 0xf5 ? 4
                                           : 0;
    if (!len || len > n) return 0;
    uint32_t c = len == 1 ? *p : *p & (0xffu >> (len + 1));
    for (size_t i = 1; i < len; i++) {
        if ((p[i] & 0xc0) != 0x80) return 0;
        c = c << 6 | (p[i] & 63);
    }
    return c < least[len] || c > 0x10ffff || (c >= 0xd800 && c < 0xe000) ? 0 : len;
}

void w_text_string(struct w_text *t, const char *text, size_t len) {
    const unsigned char *p = (const unsigned char *)text;
    w_text_add(t, "\"", 1);
    for (size_t i = 0; i < len;) {
        size_t n = utf8_ok(p + i, len - i);
        if (!n) {
            w_text_puts(t, "\xef\xbf\xbd");
            i++;
        } else if (p[i] < 32 || p[i] == '"' || p[i] == '\\' || p[i] == 127) {
            const char *found = p[i] ? strchr("\"\"\\\\\nn\rr\tt", p[i]) : NULL;
            if (found) {
                char pair[2] = {'\\', found[1]};
                w_text_add(t, pair, 2);
            } else {
                w_text_printf(t, "\\u%04x", p[i]);
            }
            i++;
        } else {
            size_t run = n; /* a stretch without escapes in one copy */
            while (i + run < len && p[i + run] >= 32 && p[i + run] < 127 && p[i + run] != '"' &&
                   p[i + run] != '\\')
                run++;
            w_text_add(t, text + i, run);
            i += run;
        }
    }
    w_text_add(t, "\"", 1);
}

enum { NUMBER_MAX = 40, EXPONENT_MAX = 8 }; /* characters of a number, with room to spare */

/* --- numbers ---------------------------------------------------------------------------------- */

static const double powers[] = {1e0,  1e1,  1e2,  1e3,  1e4,  1e5,  1e6,  1e7,
                                1e8,  1e9,  1e10, 1e11, 1e12, 1e13, 1e14, 1e15,
                                1e16, 1e17, 1e18, 1e19, 1e20, 1e21, 1e22};

/* m·10^e reads back as v, and no reader can see it otherwise. */
static bool reads_back(uint64_t m, int e, float v) {
    union {
        double d;
        uint64_t u;
    } x = {e < 0 ? (double)m / powers[-e] : (double)m * powers[e]};
    uint64_t cut = x.u & 0x1fffffff;
    return (cut < 0x0fffffff || cut > 0x10000001) && (float)x.d == v;
}

static const char two_digits[] = "00010203040506070809101112131415161718192021222324252627282930313"
                                 "233343536373839404142434445464748"
                                 "49505152535455565758596061626364656667686970717273747576777879808"
                                 "18283848586878889909192939495969798"
                                 "99";

/* m·10^e, 0 < m ≤ 10^9, as plain decimals or with an exponent. Returns behind the last character;
 * at most 32. */
static char *put_decimal(char *d, uint32_t m, int e) {
    char text[10];
    int n = 10;
    while (m % 10 == 0) m /= 10, e++;
    for (; m >= 10; m /= 100) memcpy(text + (n -= 2), two_digits + 2 * (m % 100), 2);
    if (m) text[--n] = (char)('0' + m);
    const char *digits = text + n;
    n = 10 - n;
    if (n < 1) return d;     /* only m = 0 has no digit */
    const int point = n + e; /* digits before the point */
    if (point > 16 || point < -4) {
        *d++ = digits[0];
        if (n > 1) *d++ = '.';
        memcpy(d, digits + 1, (size_t)n - 1);
        return d + n - 1 + snprintf(d + n - 1, EXPONENT_MAX, "e%+03d", point - 1);
    }
    if (point <= 0) {
        memcpy(d, "0.0000", 6);
        memcpy(d + 2 - point, digits, (size_t)n);
        return d + 2 - point + n;
    }
    if (point >= n) {
        memcpy(d, digits, (size_t)n);
        memset(d + n, '0', (size_t)(point - n));
        return d + point;
    }
    memcpy(d, digits, (size_t)point);
    d[point] = '.';
    memcpy(d + point + 1, digits + point, (size_t)(n - point));
    return d + n + 1;
}

static char *put_float_slow(char *d, float v) {
    for (int precision = 1; precision <= 9; precision++) { /* subnormal numbers have few digits */
        int n = snprintf(d, NUMBER_MAX, "%.*g", precision, (double)v);
        if (precision == 9 || strtof(d, NULL) == v) return d + n;
    }
    return d;
}

/* At most 32 characters. */
static char *put_float(char *d, float v) {
    if (!isfinite(v)) return memcpy(d, "null", 4), d + 4;
    if (v == 0) return signbit(v) ? (memcpy(d, "-0.0", 4), d + 4) : (*d = '0', d + 1);
    if (v < 0) *d++ = '-', v = -v;
    if (v < 1e-12f || v > 1e21f) return put_float_slow(d, v);
    union {
        float f;
        uint32_t u;
    } bits = {v};
    int k =
        (int)(((int)(bits.u >> 23) - 127) * 78913 >> 18); /* ⌊log10 v⌋ from ⌊log2 v⌋, or one less */
    if (k >= -1 ? (double)v >= powers[k + 1] : (double)v * powers[-k - 1] >= 1) k++;
    const int e = k - 8; /* v is about m·10^e with 9 digits */
    const double scaled = e < 0 ? (double)v * powers[-e] : (double)v / powers[e];
    static const double units[] = {1e-3, 1e-2, 1e-1, 1};
    for (int i = 0; i < 4; i++) {
        const uint32_t m = (uint32_t)(int64_t)(scaled * units[i] + 0.5);
        if (reads_back(m, e + 3 - i, v)) return put_decimal(d, m, e + 3 - i);
    }
    return put_float_slow(d, v);
}

void w_text_float(struct w_text *t, float value) {
    char *p = reserve(t, NUMBER_MAX);
    if (p) t->len = (size_t)(put_float(p, value) - t->ptr), t->ptr[t->len] = 0;
}

static char *put_double(char *d, double v) {
    if (!isfinite(v)) return memcpy(d, "null", 4), d + 4;
    if (v == floor(v) && fabs(v) < 1e15 && !(v == 0 && signbit(v)))
        return d + snprintf(d, NUMBER_MAX, "%lld", (long long)v);
    if (v == 0) return memcpy(d, "-0.0", 4), d + 4;
    for (int precision = 15; precision <= 17; precision++) {
        int n = snprintf(d, NUMBER_MAX, "%.*g", precision, v);
        if (precision == 17 || strtod(d, NULL) == v) return d + n;
    }
    return d;
}

void w_text_double(struct w_text *t, double value) {
    char *p = reserve(t, NUMBER_MAX);
    if (p) t->len = (size_t)(put_double(p, value) - t->ptr), t->ptr[t->len] = 0;
}

static char *put_int(char *d, uint64_t m, bool negative) {
    char digits[24];
    int n = 0;
    do digits[n++] = (char)('0' + m % 10), m /= 10;
    while (m);
    if (negative) *d++ = '-';
    while (n) *d++ = digits[--n];
    return d;
}

/* --- tensors ---------------------------------------------------------------------------------- */

static char *put_element(char *d, const struct op_tensor *t, int64_t i) {
    switch (t->dtype) {
    case OP_F32:
        return put_float(d, ((const float *)t->data)[i]);
    case OP_F16:
    case OP_BF16:
    case OP_F8E4M3FN:
    case OP_F8E4M3FNUZ:
    case OP_F8E5M2:
    case OP_F8E5M2FNUZ:
    case OP_F8E8M0:
    case OP_F4E2M1:
        return put_float(d, (float)w__element(t, i));
    case OP_F64:
        return put_double(d, ((const double *)t->data)[i]);
    case OP_U64:
        return put_int(d, ((const uint64_t *)t->data)[i], false);
    case OP_I64: {
        int64_t v = ((const int64_t *)t->data)[i];
        return put_int(d, v < 0 ? 0 - (uint64_t)v : (uint64_t)v, v < 0);
    }
    case OP_BOOL: {
        bool v = ((const uint8_t *)t->data)[i];
        return memcpy(d, v ? "true" : "false", v ? 4 : 5), d + (v ? 4 : 5);
    }
    default: {
        int64_t v = (int64_t)w__element(t, i);
        return put_int(d, v < 0 ? 0 - (uint64_t)v : (uint64_t)v, v < 0);
    }
    }
}

static bool text_data(struct w_text *t, const struct op_tensor *tensor, int64_t count) {
    w_text_puts(t, ",\"data\":[");
    if (tensor->dtype == OP_STRING) {
        const struct op_string *s = tensor->data;
        for (int64_t i = 0; i < count; i++) {
            if (i) w_text_add(t, ",", 1);
            w_text_string(t, s[i].data, s[i].len);
        }
    } else {
        enum { STRETCH = 256, ELEMENT_MAX = NUMBER_MAX + 1 };
        for (int64_t i = 0; i < count;) {
            char *p = reserve(t, STRETCH * ELEMENT_MAX);
            if (!p) return false;
            for (int64_t end = i + STRETCH < count ? i + STRETCH : count; i < end; i++) {
                if (i) *p++ = ',';
                p = put_element(p, tensor, i);
            }
            *p = 0;
            t->len = (size_t)(p - t->ptr);
        }
    }
    w_text_puts(t, "]}");
    return !t->failed;
}

bool w_text_tensor(struct w_text *t, const struct op_tensor *tensor, bool b64,
                   struct w_error *err) {
    int64_t count = op_tensor_count(tensor), bytes = op_tensor_bytes(tensor);
    if (tensor->kind != OP_KIND_TENSOR || count < 0 || bytes < 0)
        return w_fail(
            err, W_UNSUPPORTED,
            "an output is a sequence or an optional: only tensors can be written as a result");
    if (tensor->dtype == OP_C64 || tensor->dtype == OP_C128)
        return w_fail(err, W_UNSUPPORTED, "an output is %s: complex numbers have no JSON form",
                      op_type_name(tensor->dtype));
    w_text_printf(t, "{\"dtype\":\"%s\",\"shape\":[", op_type_name(tensor->dtype));
    for (int i = 0; i < tensor->rank; i++)
        w_text_printf(t, i ? ",%lld" : "%lld", (long long)tensor->dims[i]);
    w_text_puts(t, "]");
    if (b64 && tensor->dtype != OP_STRING) {
        w_text_puts(t, ",\"b64\":\"");
        char *p = reserve(t, ((size_t)bytes + 2) / 3 * 4 + 2);
        if (p) {
            size_t n = w_base64_encode(tensor->data, (size_t)bytes, p);
            memcpy(p + n, "\"}", 3);
            t->len += n + 2;
        }
    } else {
        text_data(t, tensor, count);
    }
    return !t->failed || w_fail(err, W_NO_MEMORY, "the result is larger than this row's memory");
}
