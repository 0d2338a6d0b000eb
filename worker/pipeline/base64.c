/* base64.c: RFC 4648 with the standard alphabet, strictly: padding required, nothing but the
 * alphabet, and the unused bits of the last character zero, so that every byte string has exactly
 * one text.
 *
 * Four tables give each character's six bits already in place; a character outside the alphabet has
 * bit 31 set, and the bits of a whole run are gathered with OR and looked at once. */
#include "worker/pipeline/pipeline.h"

#include <string.h>

static uint32_t tables[4][256];
static char pairs[4096][2]; /* 12 bits → two characters */
static const char alphabet[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

__attribute__((constructor)) static void make_tables(void) {
    for (int k = 0; k < 4; k++) {
        for (int c = 0; c < 256; c++) tables[k][c] = 1u << 31;
        /* dst[0] is the lowest byte of the word, as a little-endian store puts it first. */
        for (uint32_t v = 0; v < 64; v++) {
            uint32_t bits = v << (18 - 6 * k);
            tables[k][(unsigned char)alphabet[v]] =
                bits >> 16 | (bits & 0xff00) | (bits & 0xff) << 16;
        }
    }
    for (int i = 0; i < 4096; i++) pairs[i][0] = alphabet[i >> 6], pairs[i][1] = alphabet[i & 63];
}

static inline uint32_t quad(const unsigned char *p) {
    return tables[0][p[0]] | tables[1][p[1]] | tables[2][p[2]] | tables[3][p[3]];
}

static int64_t bad_at(const char *src, size_t len, size_t *at) {
    const unsigned char *p = (const unsigned char *)src;
    size_t i = 0;
    while (i < len && !(tables[0][p[i]] >> 31)) i++;
    *at = i;
    return -1;
}

int64_t w_base64_decode(const char *src, size_t len, uint8_t *dst, size_t *at) {
    const unsigned char *p = (const unsigned char *)src;
    if (!len) return 0;
    if (len % 4) return *at = len, -1;
    size_t n_pad = p[len - 1] != '='   ? 0
                   : p[len - 2] != '=' ? 1
                                       : 2,
           n_quads = len / 4 - (n_pad > 0);
    uint8_t *d = dst;
    uint32_t bad = 0;
    size_t i = 0;
    /* Each store writes 4 bytes of which 3 count: the last quad of all goes the careful way. */
    for (; i + 4 < n_quads; i += 4, p += 16, d += 12) {
        uint32_t a = quad(p), b = quad(p + 4), c = quad(p + 8), e = quad(p + 12);
        bad |= a | b | c | e;
        memcpy(d, &a, 4);
        memcpy(d + 3, &b, 4);
        memcpy(d + 6, &c, 4);
        memcpy(d + 9, &e, 4);
    }
    for (; i < n_quads; i++, p += 4, d += 3) {
        uint32_t a = quad(p);
        bad |= a;
        d[0] = (uint8_t)a;
        d[1] = (uint8_t)(a >> 8);
        d[2] = (uint8_t)(a >> 16);
    }
    if (bad >> 31) return bad_at(src, len, at);
    if (n_pad) {
        uint32_t a = tables[0][p[0]] | tables[1][p[1]] | (n_pad == 1 ? tables[2][p[2]] : 0);
        if (a >> 31) return bad_at(src, len, at);
        if (n_pad == 1 ? a >> 16 : a >> 8) return *at = len - n_pad - 1, -1;
        *d++ = (uint8_t)a;
        if (n_pad == 1) *d++ = (uint8_t)(a >> 8);
    }
    return d - dst;
}

size_t w_base64_encode(const uint8_t *src, size_t len, char *dst) {
    char *d = dst;
    for (; len >= 3; len -= 3, src += 3, d += 4) {
        uint32_t v = (uint32_t)src[0] << 16 | (uint32_t)src[1] << 8 | src[2];
        memcpy(d, pairs[v >> 12], 2);
        memcpy(d + 2, pairs[v & 4095], 2);
    }
    if (len) {
        uint32_t v = (uint32_t)src[0] << 16 | (len == 2 ? (uint32_t)src[1] << 8 : 0);
        memcpy(d, pairs[v >> 12], 2);
        d[2] = len == 2 ? alphabet[v >> 6 & 63] : '=';
        d[3] = '=';
        d += 4;
    }
    return (size_t)(d - dst);
}
