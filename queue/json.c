/* json.c: finds the top-level fields of a job without decoding it.
 *
 * Why not a JSON library here: a job may carry a megabyte of base64, and the loop must not spend a
 * millisecond on it. The library's tree costs an allocation a value; this scanner costs none. It
 * walks the text once, checks all of it (grammar, UTF-8, escapes, depth), and lends spans of it.
 * The lanes decode `input` and `params` later, with a library, where time is theirs.
 *
 * Speed: strings go 16 bytes at a time (SSE2, or 8 with plain arithmetic), so base64 passes at
 * several bytes a cycle. A long array of numbers cannot be checked at that speed; the caller may
 * allow one value to be skimmed: then its brackets, strings and depth are checked, and what stands
 * between is left to whoever decodes it.
 *
 * Agreement: for fully checked text the verdict is jansson's (tests compare them), but for what
 * decoding means: numbers too big for a double and \u0000 pass here. */
#include "queue/json.h"

#include <stdlib.h>
#include <string.h>
#ifdef __SSE2__
#include <emmintrin.h>
#endif

struct scan {
    const char *start, *p, *end;
    unsigned depth_max;
    const char *why; /* set when the text is refused */
};

static bool refuse(struct scan *s, const char *at, const char *why) {
    s->p = at;
    s->why = why;
    return false;
}

static void skip_space(struct scan *s) {
    while (s->p < s->end && (*s->p == ' ' || *s->p == '\n' || *s->p == '\r' || *s->p == '\t'))
        s->p++;
}

/* First byte that a string cannot simply contain: quote, backslash, control, or not ASCII. */
static const char *plain_run(const char *p, const char *end) {
#ifdef __SSE2__
    const __m128i quote = _mm_set1_epi8('"'), slash = _mm_set1_epi8('\\'),
                  space = _mm_set1_epi8(0x20);
    while (end - p >= 16) {
        __m128i v = _mm_loadu_si128((const __m128i *)p);
        /* signed compare: bytes of 0x80 and above are negative, so below 0x20 too */
        __m128i stop =
            _mm_or_si128(_mm_or_si128(_mm_cmpeq_epi8(v, quote), _mm_cmpeq_epi8(v, slash)),
                         _mm_cmplt_epi8(v, space));
        int mask = _mm_movemask_epi8(stop);
        if (mask) return p + __builtin_ctz((unsigned)mask);
        p += 16;
    }
#endif
    while (p < end && (signed char)*p >= 0x20 && *p != '"' && *p != '\\') p++;
    return p;
}

static int hex4(const char *p, const char *end) {
    int n = 0;
    if (end - p < 4) return -1;
    for (int i = 0; i < 4; i++) {
        int c = p[i], d = c >= '0' && c <= '9'   ? c - '0'
                          : c >= 'a' && c <= 'f' ? c - 'a' + 10
                          : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                                 : -1;
        if (d < 0) return -1;
        n = n * 16 + d;
    }
    return n;
}

static bool scan_escape(struct scan *s) {
    const char *at = s->p++;
    if (s->p == s->end) return refuse(s, at, "unfinished string");
    if (*s->p != 'u') {
        if (!memchr("\"\\/bfnrt", *s->p, 8)) return refuse(s, at, "unknown escape");
        s->p++;
        return true;
    }
    int hi = hex4(s->p + 1, s->end);
    if (hi < 0) return refuse(s, at, "\\u needs four hex digits");
    s->p += 5;
    if (hi >= 0xdc00 && hi <= 0xdfff) return refuse(s, at, "a low surrogate alone");
    if (hi >= 0xd800 && hi <= 0xdbff) {
        int lo =
            s->end - s->p >= 6 && s->p[0] == '\\' && s->p[1] == 'u' ? hex4(s->p + 2, s->end) : -1;
        if (lo < 0xdc00 || lo > 0xdfff) return refuse(s, at, "a high surrogate alone");
        s->p += 6;
    }
    return true;
}

static bool scan_utf8(struct scan *s) {
    const unsigned char *p = (const unsigned char *)s->p;
    size_t left = (size_t)(s->end - s->p), n = 0;
    if (p[0] >= 0xc2 && p[0] <= 0xdf)
        n = 2;
    else if ((p[0] & 0xf0) == 0xe0)
        n = 3;
    else if (p[0] >= 0xf0 && p[0] <= 0xf4)
        n = 4;
    if (n == 0 || left < n) return refuse(s, s->p, "not UTF-8");
    for (size_t i = 1; i < n; i++)
        if ((p[i] & 0xc0) != 0x80) return refuse(s, s->p, "not UTF-8");
    if ((p[0] == 0xe0 && p[1] < 0xa0) || (p[0] == 0xed && p[1] >= 0xa0) ||
        (p[0] == 0xf0 && p[1] < 0x90) || (p[0] == 0xf4 && p[1] >= 0x90))
        return refuse(s, s->p, "not UTF-8");
    s->p += n;
    return true;
}

/* At the opening quote; leaves s->p behind the closing one. */
static bool scan_string(struct scan *s, struct q__json_value *v) {
    const char *open = s->p++;
    v->type = Q__JSON_STRING;
    v->escaped = false;
    for (;;) {
        s->p = plain_run(s->p, s->end);
        if (s->p == s->end) return refuse(s, open, "unfinished string");
        if (*s->p == '"') break;
        if (*s->p == '\\') {
            v->escaped = true;
            if (!scan_escape(s)) return false;
        } else if ((signed char)*s->p < 0) {
            if (!scan_utf8(s)) return false;
        } else
            return refuse(s, s->p, "a control character in a string");
    }
    v->span = (struct q_span){open + 1, (size_t)(s->p - open - 1)};
    s->p++;
    return true;
}

static bool is_digit(const struct scan *s, const char *p) {
    return p < s->end && *p >= '0' && *p <= '9';
}

static bool scan_number(struct scan *s) {
    const char *p = s->p;
    if (*p == '-') p++;
    if (!is_digit(s, p)) return refuse(s, s->p, "not a number");
    if (*p == '0')
        p++;
    else
        while (is_digit(s, p)) p++;
    if (p < s->end && *p == '.') {
        if (!is_digit(s, ++p)) return refuse(s, s->p, "a digit must follow the point");
        while (is_digit(s, p)) p++;
    }
    if (p < s->end && (*p == 'e' || *p == 'E')) {
        p++;
        if (p < s->end && (*p == '+' || *p == '-')) p++;
        if (!is_digit(s, p)) return refuse(s, s->p, "a digit must follow the exponent");
        while (is_digit(s, p)) p++;
    }
    s->p = p;
    return true;
}

static bool scan_word(struct scan *s, const char *word, size_t len) {
    if ((size_t)(s->end - s->p) < len || memcmp(s->p, word, len) != 0)
        return refuse(s, s->p, "not a JSON value");
    s->p += len;
    return true;
}

static bool scan_scalar(struct scan *s, struct q__json_value *v) {
    const char *at = s->p;
    bool ok;
    v->escaped = false;
    switch (*at) {
    case '"':
        return scan_string(s, v);
    case 't':
        v->type = Q__JSON_TRUE, ok = scan_word(s, "true", 4);
        break;
    case 'f':
        v->type = Q__JSON_FALSE, ok = scan_word(s, "false", 5);
        break;
    case 'n':
        v->type = Q__JSON_NULL, ok = scan_word(s, "null", 4);
        break;
    default:
        v->type = Q__JSON_NUMBER, ok = scan_number(s);
        break;
    }
    v->span = (struct q_span){at, (size_t)(s->p - at)};
    return ok;
}

static bool scan_key(struct scan *s, struct q__json_value *key) {
    skip_space(s);
    if (s->p == s->end || *s->p != '"') return refuse(s, s->p, "expected a key in quotes");
    if (!scan_string(s, key)) return false;
    skip_space(s);
    if (s->p == s->end || *s->p != ':') return refuse(s, s->p, "expected ':' after a key");
    s->p++;
    return true;
}

/* At '{' or '['; base levels are open already. One bit a level says which bracket closes it. Not
 * recursive: the stack cannot overflow, whatever comes. */
static bool scan_nested(struct scan *s, unsigned base) {
    uint64_t is_object = 0;
    unsigned depth = 0;
    bool want_value = true;
    struct q__json_value v;
    do {
        skip_space(s);
        if (s->p == s->end) return refuse(s, s->p, "ends too early");
        char c = *s->p;
        if (want_value && (c == '{' || c == '[')) {
            if (base + depth >= s->depth_max) return refuse(s, s->p, "nested too deeply");
            is_object = is_object << 1 | (c == '{');
            depth++;
            s->p++;
            skip_space(s);
            if (s->p < s->end && *s->p == (c == '{' ? '}' : ']'))
                want_value = false; /* empty: the closing bracket comes next */
            else if (c == '{' && !scan_key(s, &v))
                return false;
        } else if (want_value) {
            if (!scan_scalar(s, &v)) return false;
            want_value = false;
        } else if (c == (is_object & 1 ? '}' : ']')) {
            s->p++;
            is_object >>= 1;
            depth--;
        } else if (c == ',') {
            s->p++;
            if ((is_object & 1) && !scan_key(s, &v)) return false;
            want_value = true;
        } else
            return refuse(s, s->p, is_object & 1 ? "expected ',' or '}'" : "expected ',' or ']'");
    } while (depth > 0);
    return true;
}

/* The brackets that are open: one bit a level says whether it is an object. */
struct nest {
    uint64_t is_object;
    unsigned depth, depth_max;
};

/* A bracket: 0 inside, 1 the outermost closed, -1 refused (why is set). */
static int skim_bracket(struct scan *s, struct nest *n, const char *at) {
    char c = *at;
    if (c == '{' || c == '[') {
        if (n->depth >= n->depth_max) return refuse(s, at, "nested too deeply"), -1;
        n->is_object = n->is_object << 1 | (c == '{');
        n->depth++;
        return 0;
    }
    if (c != (n->is_object & 1 ? '}' : ']')) return refuse(s, at, "the wrong bracket closes"), -1;
    n->is_object >>= 1;
    return --n->depth == 0;
}

/* Brackets from s->p on, up to the next quote (0), the outermost's end (1), or a refusal (-1). 16
 * bytes give one mask, whose bits are walked: a list of single numbers is brackets all over. */
static int skim_run(struct scan *s, struct nest *n) {
    int said;
#ifdef __SSE2__
    const __m128i quote = _mm_set1_epi8('"'), bit = _mm_set1_epi8(0x20);
    const __m128i open = _mm_set1_epi8('{'), close = _mm_set1_epi8('}');
    for (; s->end - s->p >= 16; s->p += 16) {
        __m128i v = _mm_loadu_si128((const __m128i *)s->p);
        __m128i low = _mm_or_si128(v, bit); /* [ and { differ in that bit, so do ] and } */
        __m128i stop =
            _mm_or_si128(_mm_cmpeq_epi8(v, quote),
                         _mm_or_si128(_mm_cmpeq_epi8(low, open), _mm_cmpeq_epi8(low, close)));
        for (unsigned mask = (unsigned)_mm_movemask_epi8(stop); mask; mask &= mask - 1) {
            const char *at = s->p + __builtin_ctz(mask);
            if (*at == '"') return s->p = at, 0;
            if ((said = skim_bracket(s, n, at)) != 0) return said > 0 ? (s->p = at + 1, 1) : -1;
        }
    }
#endif
    for (; s->p < s->end; s->p++) {
        if (*s->p == '"') return 0;
        if (!memchr("[]{}", *s->p, 4)) continue;
        if ((said = skim_bracket(s, n, s->p)) != 0) return said > 0 ? (s->p++, 1) : -1;
    }
    return refuse(s, s->p, "ends too early"), -1;
}

static bool skim_nested(struct scan *s, unsigned base) {
    struct nest n = {.depth_max = s->depth_max > base ? s->depth_max - base : 0};
    struct q__json_value v;
    int said;
    while ((said = skim_run(s, &n)) == 0)
        if (!scan_string(s, &v)) return false;
    return said > 0;
}

static bool scan_value(struct scan *s, unsigned base, bool skim, struct q__json_value *v) {
    skip_space(s);
    if (s->p == s->end) return refuse(s, s->p, "ends too early");
    const char *at = s->p;
    if (*at != '{' && *at != '[') return scan_scalar(s, v);
    v->type = *at == '{' ? Q__JSON_OBJECT : Q__JSON_ARRAY;
    v->escaped = false;
    if (!(skim ? skim_nested(s, base) : scan_nested(s, base))) return false;
    v->span = (struct q_span){at, (size_t)(s->p - at)};
    return true;
}

enum walk { WALKED, STOPPED, REFUSED };

static enum walk walk(struct scan *s, bool object, q__json_skim_fn *skim, q__json_fn *fn,
                      void *ctx) {
    struct q__json_value key = {0}, v = {0};
    const char close = object ? '}' : ']';
    skip_space(s);
    if (s->p == s->end || *s->p != (object ? '{' : '['))
        return refuse(s, s->p, object ? "not a JSON object" : "not a JSON array"), REFUSED;
    s->p++;
    skip_space(s);
    bool empty = s->p < s->end && *s->p == close;
    while (!empty) {
        if (object && !scan_key(s, &key)) return REFUSED;
        if (!scan_value(s, 1, object && skim && skim(&key), &v)) return REFUSED;
        if (!fn(ctx, object ? &key : NULL, &v)) return STOPPED;
        skip_space(s);
        if (s->p < s->end && *s->p == close) break;
        if (s->p == s->end || *s->p != ',')
            return refuse(s, s->p, object ? "expected ',' or '}'" : "expected ',' or ']'"), REFUSED;
        s->p++;
    }
    s->p++;
    skip_space(s);
    if (s->p != s->end) return refuse(s, s->p, "something follows the value"), REFUSED;
    return WALKED;
}

static enum q_status walk_all(const char *text, size_t len, unsigned depth_max, bool object,
                              q__json_skim_fn *skim, q__json_fn *fn, void *ctx,
                              struct q_error *err) {
    struct scan s = {text, text, text + len, depth_max > 64 ? 64 : depth_max, NULL};
    switch (walk(&s, object, skim, fn, ctx)) {
    case WALKED:
        return Q_OK;
    case STOPPED:
        return Q_BAD_JOB;
    default:
        return q__error(err, Q_PROTOCOL, "not JSON: %s at byte %zu of %zu", s.why,
                        (size_t)(s.p - text), len);
    }
}

enum q_status q__json_object(const char *text, size_t len, unsigned depth_max,
                             q__json_skim_fn *skim, q__json_fn *fn, void *ctx,
                             struct q_error *err) {
    return walk_all(text, len, depth_max, true, skim, fn, ctx, err);
}

enum q_status q__json_array(const char *text, size_t len, unsigned depth_max, q__json_fn *fn,
                            void *ctx, struct q_error *err) {
    return walk_all(text, len, depth_max, false, NULL, fn, ctx, err);
}

static size_t put_utf8(char *dst, unsigned c) {
    if (c < 0x80) return dst ? (void)(dst[0] = (char)c) : (void)0, 1;
    if (c < 0x800) {
        if (dst) dst[0] = (char)(0xc0 | c >> 6), dst[1] = (char)(0x80 | (c & 63));
        return 2;
    }
    if (c < 0x10000) {
        if (dst)
            dst[0] = (char)(0xe0 | c >> 12), dst[1] = (char)(0x80 | (c >> 6 & 63)),
            dst[2] = (char)(0x80 | (c & 63));
        return 3;
    }
    if (dst)
        dst[0] = (char)(0xf0 | c >> 18), dst[1] = (char)(0x80 | (c >> 12 & 63)),
        dst[2] = (char)(0x80 | (c >> 6 & 63)), dst[3] = (char)(0x80 | (c & 63));
    return 4;
}

size_t q__json_unescape(const struct q__json_value *v, char *dst) {
    const char *p = v->span.ptr, *end = p + v->span.len;
    size_t n = 0;
    if (!v->escaped) {
        if (dst) memcpy(dst, p, v->span.len);
        return v->span.len;
    }
    while (p < end) {
        unsigned c = (unsigned char)*p++;
        if (c != '\\') {
            if (dst) dst[n] = (char)c;
            n++;
            continue;
        }
        switch (*p++) {
        case 'b':
            c = '\b';
            break;
        case 'f':
            c = '\f';
            break;
        case 'n':
            c = '\n';
            break;
        case 'r':
            c = '\r';
            break;
        case 't':
            c = '\t';
            break;
        case 'u':
            c = (unsigned)hex4(p, end);
            p += 4;
            if (c >= 0xd800 && c <= 0xdbff) {
                c = 0x10000 + ((c - 0xd800) << 10) + ((unsigned)hex4(p + 2, end) - 0xdc00);
                p += 6;
            }
            break;
        default:
            c = (unsigned char)p[-1];
            break;
        }
        n += put_utf8(dst ? dst + n : NULL, c);
    }
    return n;
}

bool q__json_key_is(const struct q__json_value *key, const char *name) {
    size_t len = strlen(name);
    if (!key->escaped) return key->span.len == len && memcmp(key->span.ptr, name, len) == 0;
    char tmp[64];
    return key->span.len <= sizeof tmp && q__json_unescape(key, tmp) == len &&
           memcmp(tmp, name, len) == 0;
}

bool q__json_real(const struct q__json_value *v, double *out) {
    char tmp[64];
    if (v->type != Q__JSON_NUMBER || v->span.len >= sizeof tmp) return false;
    memcpy(tmp, v->span.ptr, v->span.len);
    tmp[v->span.len] = 0;
    *out = strtod(tmp, NULL);
    return *out - *out == 0; /* finite */
}

bool q__json_int(const struct q__json_value *v, int64_t *out) {
    double d;
    if (!q__json_real(v, &d) || d < -9007199254740992.0 || d > 9007199254740992.0 ||
        d != (double)(int64_t)d)
        return false;
    *out = (int64_t)d;
    return true;
}

const char *q__json_type_name(enum q__json_type t) {
    static const char *const names[] = {"a string", "a number", "an object", "an array",
                                        "true",     "false",    "null"};
    return names[t];
}
