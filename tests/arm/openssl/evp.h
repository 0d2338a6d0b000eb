/* The part of libcrypto that the engine uses, SHA-256 (FIPS 180-4), for the cross build: no library of the other architecture
 * has to be there. */
#ifndef QUERN_ARM_EVP_H
#define QUERN_ARM_EVP_H

#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define EVP_MAX_MD_SIZE 64

typedef struct {
    uint32_t h[8];
    uint8_t block[64];
    uint64_t n;
} EVP_MD_CTX;

static inline const void *EVP_sha256(void) {
    return "sha256";
}
static inline EVP_MD_CTX *EVP_MD_CTX_new(void) {
    return calloc(1, sizeof(EVP_MD_CTX));
}
static inline void EVP_MD_CTX_free(EVP_MD_CTX *c) {
    free(c);
}
static inline int EVP_DigestInit_ex(EVP_MD_CTX *c, const void *kind, const void *engine) {
    static const uint32_t start[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
    (void)kind, (void)engine;
    memcpy(c->h, start, sizeof start);
    c->n = 0;
    return 1;
}

static inline uint32_t arm_rotate(uint32_t x, int n) {
    return x >> n | x << (32 - n);
}

static inline void arm_block(EVP_MD_CTX *c) {
    static const uint32_t k[64] = {
        0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5, 0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74,
        0x80deb1fe, 0x9bdc06a7, 0xc19bf174, 0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da, 0x983e5152, 0xa831c66d,
        0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967, 0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e,
        0x92722c85, 0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070, 0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5,
        0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3, 0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};
    uint32_t w[64], v[8];
    for (int i = 0; i < 16; i++) w[i] = (uint32_t)c->block[4 * i] << 24 | (uint32_t)c->block[4 * i + 1] << 16 | (uint32_t)c->block[4 * i + 2] << 8 | c->block[4 * i + 3];
    for (int i = 16; i < 64; i++) {
        const uint32_t a = w[i - 15], b = w[i - 2];
        w[i] = w[i - 16] + w[i - 7] + (arm_rotate(a, 7) ^ arm_rotate(a, 18) ^ a >> 3) + (arm_rotate(b, 17) ^ arm_rotate(b, 19) ^ b >> 10);
    }
    memcpy(v, c->h, sizeof v);
    for (int i = 0; i < 64; i++) {
        const uint32_t e = v[4], a = v[0];
        const uint32_t t1 = v[7] + (arm_rotate(e, 6) ^ arm_rotate(e, 11) ^ arm_rotate(e, 25)) + ((e & v[5]) ^ (~e & v[6])) + k[i] + w[i];
        const uint32_t t2 = (arm_rotate(a, 2) ^ arm_rotate(a, 13) ^ arm_rotate(a, 22)) + ((a & v[1]) ^ (a & v[2]) ^ (v[1] & v[2]));
        memmove(v + 1, v, 7 * sizeof *v);
        v[4] += t1;
        v[0] = t1 + t2;
    }
    for (int i = 0; i < 8; i++) c->h[i] += v[i];
}

static inline int EVP_DigestUpdate(EVP_MD_CTX *c, const void *data, size_t n) {
    for (size_t i = 0; i < n; i++) {
        c->block[c->n++ % 64] = ((const uint8_t *)data)[i];
        if (c->n % 64 == 0) arm_block(c);
    }
    return 1;
}

static inline int EVP_DigestFinal_ex(EVP_MD_CTX *c, unsigned char *out, unsigned *len) {
    const uint64_t bits = c->n * 8;
    EVP_DigestUpdate(c, "\x80", 1);
    while (c->n % 64 != 56) EVP_DigestUpdate(c, "", 1);
    for (int i = 7; i >= 0; i--) EVP_DigestUpdate(c, &(uint8_t){(uint8_t)(bits >> 8 * i)}, 1);
    for (int i = 0; i < 32; i++) out[i] = (unsigned char)(c->h[i / 4] >> (24 - 8 * (i % 4)));
    *len = 32;
    return 1;
}

static inline int EVP_Digest(const void *data, size_t n, unsigned char *out, unsigned *len, const void *kind, const void *engine) {
    EVP_MD_CTX c;
    return EVP_DigestInit_ex(&c, kind, engine) && EVP_DigestUpdate(&c, data, n) && EVP_DigestFinal_ex(&c, out, len);
}

#endif
