/* UTF-8 and letter case: text.h. The case tables are the C library's, in its own C.UTF-8 locale,
 * whatever the process's locale is; where it has none only ASCII letters have a case. */
#include "ops/op/text.h"

#include <locale.h>
#include <pthread.h>
#include <string.h>
#include <wctype.h>

static locale_t utf8;
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void open_locale(void) {
    utf8 = newlocale(LC_CTYPE_MASK, "C.UTF-8", (locale_t)0);
}

int op__utf8_decode(const char *s, size_t n, uint32_t *cp) {
    const uint8_t *u = (const uint8_t *)s;
    static const uint32_t least[] = {0, 0, 0x80, 0x800, 0x10000};
    if (u[0] < 0x80) {
        *cp = u[0];
        return 1;
    }
    int len = u[0] >= 0xf0 && u[0] < 0xf8   ? 4
              : u[0] >= 0xe0 && u[0] < 0xf0 ? 3
              : u[0] >= 0xc0 && u[0] < 0xe0 ? 2
                                            : 0;
    if (!len || (size_t)len > n) return 0;
    uint32_t v = u[0] & (0x7fu >> len);
    for (int i = 1; i < len; i++) {
        if ((u[i] & 0xc0) != 0x80) return 0;
        v = v << 6 | (u[i] & 0x3f);
    }
    if (v < least[len] || v > 0x10ffff || (v >= 0xd800 && v < 0xe000))
        return 0; /* overlong, too large, half a pair */
    *cp = v;
    return len;
}

int op__utf8_encode(uint32_t cp, char *dst) {
    if (cp < 0x80) {
        dst[0] = (char)cp;
        return 1;
    }
    int len = cp < 0x800 ? 2 : cp < 0x10000 ? 3 : 4;
    for (int i = len - 1; i > 0; i--, cp >>= 6) dst[i] = (char)(0x80 | (cp & 0x3f));
    dst[0] = (char)((0xf00 >> len & 0xff) | cp);
    return len;
}

uint32_t op__lower(uint32_t cp) {
    if (cp < 0x80) return cp >= 'A' && cp <= 'Z' ? cp + 32 : cp;
    pthread_once(&once, open_locale);
    return utf8 ? (uint32_t)towlower_l((wint_t)cp, utf8) : cp;
}

uint32_t op__upper(uint32_t cp) {
    if (cp < 0x80) return cp >= 'a' && cp <= 'z' ? cp - 32 : cp;
    pthread_once(&once, open_locale);
    return utf8 ? (uint32_t)towupper_l((wint_t)cp, utf8) : cp;
}

size_t op__map_case(struct op_string src, uint32_t (*map)(uint32_t), char *dst) {
    char *to = dst;
    for (size_t i = 0; i < src.len;) {
        uint32_t cp;
        int len = op__utf8_decode(src.data + i, src.len - i, &cp);
        if (len)
            to += op__utf8_encode(
                map(cp), to); /* one byte stays one byte, two to four become at most four */
        else
            *to++ = src.data[i];
        i += len ? (size_t)len : 1;
    }
    return (size_t)(to - dst);
}
