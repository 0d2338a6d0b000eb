/* idx.c: the format of the MNIST files (two zeros, a type, a rank, big-endian sizes, the data), and
 * the unpacking of gzip into memory. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include <zlib.h>

#include "worker/train/train.h"

static size_t size_of(uint8_t type) {
    return type == 8 || type == 9       ? 1
           : type == 0xb                ? 2
           : type == 0xc || type == 0xd ? 4
           : type == 0xe                ? 8
                                        : 0;
}

bool w__train_is_idx(const uint8_t *head, size_t n) {
    return n >= 8 && head[0] == 0 && head[1] == 0 && size_of(head[2]) && head[3] >= 1 &&
           head[3] < OP_RANK_MAX;
}

static uint64_t big_endian(const uint8_t *p, size_t n) {
    uint64_t v = 0;
    for (size_t i = 0; i < n; i++) v = v << 8 | p[i];
    return v;
}

static void convert(const uint8_t *src, uint8_t type, int64_t n, struct w_array *dst) {
    size_t size = size_of(type);
    for (int64_t i = 0; i < n; i++, src += size) {
        uint64_t v = big_endian(src, size);
        float f;
        double d;
        switch (type) {
        case 9:
            ((int64_t *)dst->data)[i] = (int8_t)v;
            break;
        case 0xb:
            ((int64_t *)dst->data)[i] = (int16_t)v;
            break;
        case 0xc:
            ((int64_t *)dst->data)[i] = (int32_t)v;
            break;
        case 0xd:
            memcpy(&f, &(uint32_t){(uint32_t)v}, sizeof f);
            ((float *)dst->data)[i] = f;
            break;
        default:
            memcpy(&d, &v, sizeof d);
            ((float *)dst->data)[i] = (float)d;
        }
    }
}

bool w__train_read_idx(const uint8_t *bytes, size_t len, const char *where, struct w_array *dst,
                       struct w_error *err) {
    if (!w__train_is_idx(bytes, len)) return w_fail(err, W_BAD_INPUT, "%s is no IDX file", where);
    uint8_t type = bytes[2], rank = bytes[3];
    size_t at = 4 + 4 * (size_t)rank;
    if (len < at) return w_fail(err, W_BAD_INPUT, "%s ends within its header", where);
    *dst = (struct w_array){.rank = rank - 1, .elements = 1};
    dst->dtype = type == 8 ? OP_U8 : type < 0xd ? OP_I64 : OP_F32;
    dst->n = (int64_t)big_endian(bytes + 4, 4);
    int64_t count = dst->n;
    for (int i = 1; i < rank; i++) {
        dst->dims[i - 1] = (int64_t)big_endian(bytes + 4 + 4 * i, 4);
        if (__builtin_mul_overflow(count, dst->dims[i - 1], &count))
            return w_fail(err, W_BAD_INPUT, "%s has an impossible shape", where);
    }
    size_t expected;
    if (__builtin_mul_overflow((size_t)count, size_of(type), &expected) || expected != len - at)
        return w_fail(err, W_BAD_INPUT, "%s has %zu bytes of data, its header says %zu", where,
                      len - at, expected);
    dst->elements = dst->n ? count / dst->n : 0;
    dst->data = malloc((size_t)count * op_type_size(dst->dtype) + 1);
    if (!dst->data) return w_fail(err, W_NO_MEMORY, "no memory for %s", where);
    if (type == 8)
        memcpy(dst->data, bytes + at, expected);
    else
        convert(bytes + at, type, count, dst);
    return true;
}

/* --- gzip --------------------------------------------------------------------------------------
 */

static bool unpack_to(gzFile in, int out, const char *path, size_t bytes_max, struct w_error *err) {
    enum { CHUNK = 1 << 18 };
    char *buf = malloc(CHUNK);
    size_t total = 0;
    int n = 0, zerr;
    if (!buf) return w_fail(err, W_NO_MEMORY, "no memory to unpack %s", path);
    while ((n = gzread(in, buf, CHUNK)) > 0) {
        total += (size_t)n;
        if (total > bytes_max || write(out, buf, (size_t)n) != n) break;
    }
    free(buf);
    if (total > bytes_max)
        return w_fail(err, W_TOO_LARGE, "%s unpacks to more than %zu MB", path, bytes_max >> 20);
    if (n > 0) return w_fail(err, W_NO_MEMORY, "%s cannot be unpacked: %s", path, strerror(errno));
    const char *why = gzerror(in, &zerr);
    return (n == 0 && zerr == Z_OK) ||
           w_fail(err, W_BAD_INPUT, "%s is a damaged or cut gzip file%s%s", path, *why ? ": " : "",
                  why);
}

int w__train_unpack(int fd, const char *path, size_t bytes_max, struct w_error *err) {
    uint8_t magic[2] = {0};
    int copy = dup(fd);
    if (copy < 0) return w_fail(err, W_REF_FAILED, "%s: %s", path, strerror(errno)), -1;
    if (pread(fd, magic, 2, 0) != 2 || magic[0] != 0x1f || magic[1] != 0x8b) return copy;
    gzFile in = gzdopen(copy, "rb");
    if (!in) {
        close(copy);
        return w_fail(err, W_NO_MEMORY, "no memory to unpack %s", path), -1;
    }
    int out = memfd_create("quern-data", MFD_CLOEXEC);
    bool ok = out >= 0 ? unpack_to(in, out, path, bytes_max, err)
                       : w_fail(err, W_NO_MEMORY, "no memory to unpack %s", path);
    int end = gzclose(in);
    if (ok && end != Z_OK) ok = w_fail(err, W_BAD_INPUT, "%s is a damaged or cut gzip file", path);
    if (ok) return out;
    if (out >= 0) close(out);
    return -1;
}
