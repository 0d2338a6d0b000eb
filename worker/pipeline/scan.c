#include "worker/pipeline/scan.h"

#include <string.h>

/* Passes over a string; p stands behind the opening quote. Returns behind the closing one, NULL if
 * there is none. */
static const char *skip_string(const char *p, const char *end) {
    for (;;) {
        const char *quote = memchr(p, '"', (size_t)(end - p));
        if (!quote) return NULL;
        size_t slashes = 0;
        while (quote - slashes > p && quote[-1 - (ptrdiff_t)slashes] == '\\') slashes++;
        if (slashes % 2 == 0) return quote + 1;
        p = quote + 1; /* an escaped quote: no backslash of it can belong to what follows */
    }
}

static bool skip_word(struct w_scan *s) {
    static const char *const words[] = {"true", "false", "null"};
    for (size_t i = 0; i < 3; i++) {
        size_t n = strlen(words[i]);
        if ((size_t)(s->end - s->p) >= n && !memcmp(s->p, words[i], n)) return s->p += n, true;
    }
    struct w_number number;
    const char *p = w__number_read(s->p, s->end, &number);
    if (!p) return false;
    s->p = p;
    return true;
}

/* What may come next inside a container. */
enum { WANT_VALUE, WANT_VALUE_OR_END, WANT_KEY, WANT_KEY_OR_END, WANT_SEPARATOR };

bool w__scan_value(struct w_scan *s, struct w_span *value) {
    char open[W_SCAN_DEPTH_MAX];
    int depth = 0, want = WANT_VALUE;
    w__scan_blank(s);
    const char *start = s->p;
    do {
        w__scan_blank(s);
        if (s->p >= s->end) return false;
        char c = *s->p;
        bool in_object = depth && open[depth - 1] == '{';
        if ((c == '}' || c == ']') && depth) {
            if ((c == '}') != in_object) return false;
            if (want != WANT_SEPARATOR && want != WANT_VALUE_OR_END && want != WANT_KEY_OR_END)
                return false;
            s->p++;
            depth--;
            want = WANT_SEPARATOR;
        } else if (want == WANT_SEPARATOR) {
            if (c != ',') return false;
            s->p++;
            want = in_object ? WANT_KEY : WANT_VALUE;
        } else if (want == WANT_KEY || want == WANT_KEY_OR_END) {
            if (c != '"' || !(s->p = skip_string(s->p + 1, s->end))) return false;
            w__scan_blank(s);
            if (s->p >= s->end || *s->p != ':') return false;
            s->p++;
            want = WANT_VALUE;
        } else if (c == '{' || c == '[') {
            if (depth == W_SCAN_DEPTH_MAX) return false;
            open[depth++] = c;
            s->p++;
            want = c == '{' ? WANT_KEY_OR_END : WANT_VALUE_OR_END;
        } else {
            if (c == '"' ? !(s->p = skip_string(s->p + 1, s->end)) : !skip_word(s)) return false;
            want = WANT_SEPARATOR;
        }
    } while (depth);
    *value = (struct w_span){start, (size_t)(s->p - start)};
    return true;
}

bool w__scan_open(struct w_scan *s, char bracket) {
    w__scan_blank(s);
    if (s->p >= s->end || *s->p != bracket) return false;
    s->p++;
    return true;
}

int w__scan_item(struct w_scan *s, bool *first, struct w_span *value) {
    w__scan_blank(s);
    if (s->p >= s->end) return -1;
    if (*s->p == ']') return s->p++, 0;
    if (!*first) {
        if (*s->p != ',') return -1;
        s->p++;
    }
    *first = false;
    return w__scan_value(s, value) ? 1 : -1;
}

int w__scan_member(struct w_scan *s, bool *first, struct w_span *key, struct w_span *value) {
    w__scan_blank(s);
    if (s->p >= s->end) return -1;
    if (*s->p == '}') return s->p++, 0;
    if (!*first) {
        if (*s->p != ',') return -1;
        s->p++;
        w__scan_blank(s);
    }
    *first = false;
    if (s->p >= s->end || *s->p != '"') return -1;
    const char *start = s->p;
    s->p = skip_string(s->p + 1, s->end);
    if (!s->p) return -1;
    *key = (struct w_span){start, (size_t)(s->p - start)};
    w__scan_blank(s);
    if (s->p >= s->end || *s->p != ':') return -1;
    s->p++;
    return w__scan_value(s, value) ? 1 : -1;
}

/* --- strings ---------------------------------------------------------------------------------- */

static int hex4(const char *p, const char *end) {
    if (end - p < 4) return -1;
    int v = 0;
    for (int i = 0; i < 4; i++) {
        char c = p[i];
        int d = c >= '0' && c <= '9'   ? c - '0'
                : c >= 'a' && c <= 'f' ? c - 'a' + 10
                : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                       : -1;
        if (d < 0) return -1;
        v = v * 16 + d;
    }
    return v;
}

static char *put_utf8(char *d, uint32_t c) {
    if (c < 0x80) {
        *d++ = (char)c;
    } else if (c < 0x800) {
        *d++ = (char)(0xc0 | c >> 6);
        *d++ = (char)(0x80 | (c & 63));
    } else if (c < 0x10000) {
        *d++ = (char)(0xe0 | c >> 12);
        *d++ = (char)(0x80 | (c >> 6 & 63));
        *d++ = (char)(0x80 | (c & 63));
    } else {
        *d++ = (char)(0xf0 | c >> 18);
        *d++ = (char)(0x80 | (c >> 12 & 63));
        *d++ = (char)(0x80 | (c >> 6 & 63));
        *d++ = (char)(0x80 | (c & 63));
    }
    return d;
}

/* Bytes of the UTF-8 sequence at p (1 to 4), 0 if it is malformed, overlong or a surrogate. */
static int utf8_len(const unsigned char *p, const unsigned char *end) {
    if (*p < 0x80) return 1;
    int n = *p >= 0xf0 ? 4 : *p >= 0xe0 ? 3 : 2;
    if (*p < 0xc2 || *p > 0xf4 || end - p < n) return 0;
    for (int i = 1; i < n; i++)
        if ((p[i] & 0xc0) != 0x80) return 0;
    if (*p == 0xe0 && p[1] < 0xa0) return 0;
    if (*p == 0xed && p[1] > 0x9f) return 0;
    if (*p == 0xf0 && p[1] < 0x90) return 0;
    if (*p == 0xf4 && p[1] > 0x8f) return 0;
    return n;
}

static const char *unescape(const char *p, const char *end, uint32_t *c) {
    static const char from[] = "\"\\/bfnrt", to[] = "\"\\/\b\f\n\r\t";
    if (p >= end) return NULL;
    if (*p != 'u') {
        const char *found = memchr(from, *p, sizeof from - 1);
        if (!found) return NULL;
        *c = (unsigned char)to[found - from];
        return p + 1;
    }
    int high = hex4(p + 1, end);
    p += 5;
    if (high < 0 || (high >= 0xdc00 && high <= 0xdfff)) return NULL;
    *c = (uint32_t)high;
    if (high < 0xd800 || high > 0xdbff) return p;
    if (end - p < 6 || p[0] != '\\' || p[1] != 'u') return NULL;
    int low = hex4(p + 2, end);
    if (low < 0xdc00 || low > 0xdfff) return NULL;
    *c = 0x10000 + ((uint32_t)(high - 0xd800) << 10) + (uint32_t)(low - 0xdc00);
    return p + 6;
}

char *w__scan_string(struct w_span raw, struct w_arena *arena, bool nul_ok, size_t *len) {
    if (raw.len < 2 || raw.ptr[0] != '"' || raw.ptr[raw.len - 1] != '"') return NULL;
    const char *p = raw.ptr + 1, *end = raw.ptr + raw.len - 1;
    char *dst = w_arena_alloc(arena, raw.len),
         *d = dst; /* no escape is longer decoded than written */
    if (!dst) return NULL;
    while (p < end) {
        if (*p == '\\') {
            uint32_t c;
            p = unescape(p + 1, end, &c);
            if (!p || (!c && !nul_ok)) return NULL;
            d = put_utf8(d, c);
            continue;
        }
        int n = utf8_len((const unsigned char *)p, (const unsigned char *)end);
        if (!n || (unsigned char)*p < 32 || *p == '"') return NULL;
        for (; n; n--) *d++ = *p++;
    }
    *d = 0;
    if (len) *len = (size_t)(d - dst);
    return dst;
}
