/* wire.h: protobuf's wire format, read in place: no copies, 64-bit bounds. Internal to ops/.
 * https://protobuf.dev/programming-guides/encoding/ . Groups (wire types 3 and 4) appear in no ONNX message: malformed. */
#ifndef QUERN_OPS_WIRE_H
#define QUERN_OPS_WIRE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

enum wire_type { WIRE_VARINT = 0, WIRE_64 = 1, WIRE_BYTES = 2, WIRE_32 = 5 };

struct wire {
    const uint8_t *at, *end;
    bool bad; /* malformed: no more fields come */
};

struct wire_field {
    uint32_t number;
    enum wire_type type;
    uint64_t value;      /* of VARINT, 64, 32 */
    const uint8_t *data; /* of BYTES */
    size_t len;
};

static inline struct wire wire_open(const void *data, size_t len) {
    if (!data) data = "";
    return (struct wire){.at = data, .end = (const uint8_t *)data + len};
}

static inline bool wire_varint(struct wire *w, uint64_t *dst) {
    uint64_t v = 0;
    for (int shift = 0; shift < 70; shift += 7) {
        if (w->at == w->end) return false;
        uint8_t byte = *w->at++;
        if (shift == 63 && byte > 1) return false;
        v |= (uint64_t)(byte & 0x7f) << shift;
        if (!(byte & 0x80)) {
            *dst = v;
            return true;
        }
    }
    return false;
}

static inline bool wire_fixed(struct wire *w, size_t bytes, uint64_t *dst) {
    if ((size_t)(w->end - w->at) < bytes) return false;
    *dst = 0;
    memcpy(dst, w->at, bytes); /* little endian, as every machine that this runs on */
    w->at += bytes;
    return true;
}

/* The next field; false at the end or where the bytes are malformed (w->bad). */
static inline bool wire_next(struct wire *w, struct wire_field *f) {
    uint64_t key;
    if (w->bad || w->at == w->end) return false;
    w->bad = true;
    if (!wire_varint(w, &key) || key >> 3 == 0 || key >> 3 > UINT32_MAX >> 3) return false;
    *f = (struct wire_field){.number = (uint32_t)(key >> 3), .type = (enum wire_type)(key & 7)};
    switch (f->type) {
    case WIRE_VARINT:
        if (!wire_varint(w, &f->value)) return false;
        break;
    case WIRE_64:
        if (!wire_fixed(w, 8, &f->value)) return false;
        break;
    case WIRE_32:
        if (!wire_fixed(w, 4, &f->value)) return false;
        break;
    case WIRE_BYTES: {
        uint64_t len;
        if (!wire_varint(w, &len) || len > (uint64_t)(w->end - w->at)) return false;
        f->data = w->at;
        f->len = (size_t)len;
        w->at += len;
        break;
    }
    default: return false;
    }
    w->bad = false;
    return true;
}

/* The values of a repeated scalar field, packed or not: calls of wire_scalar until false. `inner` starts as {0}. */
static inline bool wire_scalar(const struct wire_field *f, enum wire_type type, struct wire *inner, bool *started, uint64_t *dst) {
    if (f->type == type) {
        if (*started) return false;
        *started = true;
        *dst = f->value;
        return true;
    }
    if (f->type != WIRE_BYTES) return false;
    if (!*started) {
        *started = true;
        *inner = wire_open(f->data, f->len);
    }
    if (inner->at == inner->end) return false;
    bool good = type == WIRE_VARINT ? wire_varint(inner, dst) : wire_fixed(inner, type == WIRE_32 ? 4 : 8, dst);
    if (!good) inner->bad = true;
    return good;
}

#endif
