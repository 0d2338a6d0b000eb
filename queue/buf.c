#include "queue/internal.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void q__buf_init(struct q__buf *b, size_t max) {
    *b = (struct q__buf){.max = max};
}

void q__buf_free(struct q__buf *b) {
    free(b->ptr);
    *b = (struct q__buf){.max = b->max};
}

/* One byte more than asked is always there, for the NUL of q__buf_take. */
void q__buf_reserve(struct q__buf *b, size_t more) {
    if (b->failed || (b->ptr && b->cap - b->len > more)) return;
    if (more >= b->max - b->len) {
        b->failed = true;
        return;
    }
    size_t cap = b->cap < 256 ? 256 : b->cap * 2;
    if (cap < b->len + more + 1) cap = b->len + more + 1;
    char *ptr = realloc(b->ptr, cap);
    if (!ptr) {
        b->failed = true;
        return;
    }
    b->ptr = ptr;
    b->cap = cap;
}

void q__buf_add(struct q__buf *b, const void *data, size_t len) {
    q__buf_reserve(b, len);
    if (b->failed || len == 0) return;
    memcpy(b->ptr + b->len, data, len);
    b->len += len;
}

void q__buf_str(struct q__buf *b, const char *text) {
    q__buf_add(b, text, strlen(text));
}

size_t q__digits(char *out, int64_t n) {
    char tmp[21];
    size_t len = 0;
    uint64_t u = n < 0 ? 0 - (uint64_t)n : (uint64_t)n;
    do tmp[len++] = (char)('0' + u % 10);
    while ((u /= 10) != 0);
    size_t sign = n < 0;
    if (sign) out[0] = '-';
    for (size_t i = 0; i < len; i++) out[sign + i] = tmp[len - 1 - i];
    return sign + len;
}

void q__buf_int(struct q__buf *b, int64_t n) {
    char tmp[24];
    size_t len = q__digits(tmp, n);
    q__buf_add(b, tmp, len);
}

void q__buf_real(struct q__buf *b, double x) {
    char tmp[40];
    if (!isfinite(x)) {
        q__buf_str(b, "null");
        return;
    }
    int n = snprintf(tmp, sizeof tmp, "%.6g", x);
    q__buf_add(b, tmp, (size_t)n);
}

/* Length of the valid UTF-8 sequence at p, 0 if there is none. */
static size_t utf8_len(const unsigned char *p, size_t left) {
    if (p[0] < 0x80) return 1;
    if (p[0] >= 0xc2 && p[0] <= 0xdf) return left >= 2 && (p[1] & 0xc0) == 0x80 ? 2 : 0;
    if ((p[0] & 0xf0) == 0xe0)
        return left >= 3 && (p[1] & 0xc0) == 0x80 && (p[2] & 0xc0) == 0x80 &&
                       !(p[0] == 0xe0 && p[1] < 0xa0) && !(p[0] == 0xed && p[1] >= 0xa0)
                   ? 3
                   : 0;
    if (p[0] >= 0xf0 && p[0] <= 0xf4)
        return left >= 4 && (p[1] & 0xc0) == 0x80 && (p[2] & 0xc0) == 0x80 &&
                       (p[3] & 0xc0) == 0x80 && !(p[0] == 0xf0 && p[1] < 0x90) &&
                       !(p[0] == 0xf4 && p[1] >= 0x90)
                   ? 4
                   : 0;
    return 0;
}

void q__buf_json(struct q__buf *b, const char *text, size_t len) {
    static const char hex[] = "0123456789abcdef";
    const unsigned char *p = (const unsigned char *)text;
    q__buf_add(b, "\"", 1);
    for (size_t i = 0; i < len;) {
        size_t n = utf8_len(p + i, len - i);
        if (n == 0) {
            q__buf_add(b, "\xef\xbf\xbd", 3);
            i++;
        } else if (p[i] == '"' || p[i] == '\\') {
            char esc[2] = {'\\', (char)p[i++]};
            q__buf_add(b, esc, 2);
        } else if (p[i] < 0x20) {
            char esc[6] = {'\\', 'u', '0', '0', hex[p[i] >> 4], hex[p[i] & 15]};
            q__buf_add(b, esc, 6);
            i++;
        } else {
            q__buf_add(b, p + i, n);
            i += n;
        }
    }
    q__buf_add(b, "\"", 1);
}

char *q__buf_take(struct q__buf *b, size_t *len) {
    q__buf_reserve(b, 1);
    if (b->failed) {
        q__buf_free(b);
        return NULL;
    }
    char *ptr = b->ptr;
    ptr[b->len] = 0;
    if (len) *len = b->len;
    *b = (struct q__buf){.max = b->max};
    return ptr;
}
