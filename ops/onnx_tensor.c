/* TensorProto, SparseTensorProto, SequenceProto and OptionalProto, from bytes in memory.
 *
 * A tensor's values come in one of three ways: raw_data (little-endian bytes, which may stay where they are), one of the
 * typed repeated fields, or a file beside the model. Dimensions are checked before anything is allocated: for raw and
 * external data the bytes must be there, for typed fields at least one wire byte an element, so that a short file cannot
 * ask for much memory. */
#include "ops/onnx_tensor.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "raw_data is little endian and is not swapped");

struct parts { /* of a TensorProto, found in a first walk */
    int64_t data_type;
    const uint8_t *raw;
    size_t raw_len;
    bool has_raw, external;
    size_t typed_bytes; /* wire bytes of the typed fields, string payloads apart */
    struct op_string location;
    uint64_t offset, length;
    bool has_length;
};

__attribute__((format(printf, 3, 4))) static enum op_status fail(struct op_error *err, enum op_status code, const char *format, ...) {
    va_list args;
    va_start(args, format);
    if (err) {
        err->code = code;
        vsnprintf(err->text, sizeof err->text, format, args);
    }
    va_end(args);
    return code;
}

const char *op__onnx_type_name(int64_t data_type) {
    return op_type_name((enum op_type)(data_type >= 0 && data_type <= OP_I2 ? data_type : 0));
}

static bool external_entry(struct parts *p, const struct wire_field *entry) {
    struct wire w = wire_open(entry->data, entry->len);
    struct wire_field f;
    struct op_string key = {"", 0}, value = {"", 0};
    while (wire_next(&w, &f)) {
        if (f.type != WIRE_BYTES) continue;
        if (f.number == 1) key = (struct op_string){(const char *)f.data, f.len};
        if (f.number == 2) value = (struct op_string){(const char *)f.data, f.len};
    }
    if (w.bad) return false;
    if (key.len == 8 && memcmp(key.data, "location", 8) == 0) {
        p->location = value;
        return true;
    }
    bool offset = key.len == 6 && memcmp(key.data, "offset", 6) == 0, length = key.len == 6 && memcmp(key.data, "length", 6) == 0;
    if (!offset && !length) return true; /* checksum and what may come */
    uint64_t number = 0;
    if (!value.len) return false;
    for (size_t i = 0; i < value.len; i++) {
        if (value.data[i] < '0' || value.data[i] > '9') return false;
        if (__builtin_mul_overflow(number, 10, &number) || __builtin_add_overflow(number, (uint64_t)(value.data[i] - '0'), &number)) return false;
    }
    if (offset) p->offset = number;
    else p->length = number, p->has_length = true;
    return true;
}

static bool read_dims(struct op_tensor *t, const struct wire_field *f) {
    struct wire inner = {0};
    bool started = false;
    uint64_t d;
    while (wire_scalar(f, WIRE_VARINT, &inner, &started, &d)) {
        if (t->rank == OP_RANK_MAX || (int64_t)d < 0) return false;
        t->dims[t->rank++] = (int64_t)d;
    }
    return !inner.bad;
}

/* The first walk: everything but the typed values. */
static enum op_status walk(const void *bytes, size_t n, struct op_proto_tensor *dst, struct parts *p, struct op_error *err) {
    struct wire w = wire_open(bytes, n);
    struct wire_field f;
    while (wire_next(&w, &f)) {
        bool good = true;
        switch (f.number) {
        case 1: good = read_dims(&dst->t, &f); break;
        case 2: p->data_type = (int64_t)f.value; break;
        case 3: return fail(err, OP_UNSUPPORTED, "a tensor in segments is not supported");
        case 4: case 5: case 7: case 10: case 11: p->typed_bytes += f.type == WIRE_BYTES ? f.len : 8; break;
        case 6: p->typed_bytes += 1; break;
        case 8: dst->name = (const char *)f.data, dst->name_len = f.len; break;
        case 9: p->raw = f.data, p->raw_len = f.len, p->has_raw = f.type == WIRE_BYTES; break;
        case 13: good = f.type == WIRE_BYTES && external_entry(p, &f); break;
        case 14: p->external = f.value == 1; break;
        default: break;
        }
        if (!good)
            return fail(err, OP_BAD_MODEL, "tensor \"%.*s\": %s", (int)(dst->name_len < 100 ? dst->name_len : 100), dst->name ? dst->name : "",
                        f.number == 1 ? "a dimension is negative or the rank is above 8" : "its external_data entry is malformed");
    }
    return w.bad ? fail(err, OP_BAD_MODEL, "its TensorProto is not well-formed protobuf") : OP_OK;
}

/* Which typed field holds values of this type: its number and wire form. */
static uint32_t typed_field(enum op_type dtype, enum wire_type *type) {
    *type = WIRE_VARINT;
    switch (dtype) {
    case OP_F32: case OP_C64: *type = WIRE_32; return 4;
    case OP_F64: case OP_C128: *type = WIRE_64; return 10;
    case OP_I64: return 7;
    case OP_U32: case OP_U64: return 11;
    default: return 5;
    }
}

/* Fills `room` scalars of `size` bytes each from the typed field; returns how many there were, -1 if malformed. */
static int64_t fill_typed(const void *bytes, size_t n, enum op_type dtype, size_t size, char *at, int64_t room) {
    enum wire_type type;
    uint32_t number = typed_field(dtype, &type);
    struct wire w = wire_open(bytes, n);
    struct wire_field f;
    int64_t count = 0;
    while (wire_next(&w, &f)) {
        if (f.number != number) continue;
        struct wire inner = {0};
        bool started = false;
        uint64_t v;
        while (wire_scalar(&f, type, &inner, &started, &v)) {
            if (count++ >= room) return -1;
            if (dtype == OP_BOOL) v = v != 0;
            memcpy(at, &v, size); /* narrow types and bits of f16 lie in the low bytes */
            at += size;
        }
        if (inner.bad || !started) return -1;
    }
    return w.bad ? -1 : count;
}

/* Strings: elements and their bytes in one block, so that op_tensor_free frees both. */
static enum op_status fill_strings(const void *bytes, size_t n, int64_t count, struct op_proto_tensor *dst, struct op_error *err) {
    struct wire w = wire_open(bytes, n);
    struct wire_field f;
    size_t room = (size_t)count * sizeof(struct op_string);
    int64_t found = 0;
    for (; wire_next(&w, &f); found += f.number == 6)
        if (f.number == 6) room += f.len + 1;
    if (found != count) return fail(err, OP_BAD_MODEL, "a string tensor has %lld values, its dimensions ask for %lld", (long long)found, (long long)count);
    struct op_string *s = op__aligned_alloc(room);
    if (!s) return fail(err, OP_NOMEM, "out of memory: %zu bytes", room);
    char *at = (char *)(s + count);
    w = wire_open(bytes, n);
    for (int64_t i = 0; wire_next(&w, &f);) {
        if (f.number != 6) continue;
        if (f.len) memcpy(at, f.data, f.len);
        at[f.len] = 0;
        s[i++] = (struct op_string){at, f.len};
        at += f.len + 1;
    }
    dst->t.data = s;
    dst->owned = true;
    return OP_OK;
}

#define LAZY_BYTES_MIN ((size_t)16 << 10)

static enum op_status take_raw(struct op_proto_tensor *dst, const struct parts *p, size_t bytes, enum op_proto_data how, struct op_error *err) {
    size_t size = op_type_size(dst->t.dtype);
    const bool packed = op__type_bits(dst->t.dtype) < 8;
    const size_t stored = packed ? (size_t)op__packed_bytes(dst->t.dtype, (int64_t)bytes) : bytes;
    if (p->raw_len != stored)
        return fail(err, OP_BAD_MODEL, "tensor \"%.*s\" has %zu bytes of data, its type and dimensions ask for %zu",
                    (int)(dst->name_len < 100 ? dst->name_len : 100), dst->name ? dst->name : "", p->raw_len, stored);
    size_t align = size > 8 ? 8 : size;
    dst->mapped = (const char *)p->raw;
    dst->mapped_bytes = stored;
    if (how != OP__PROTO_COPY && !packed && dst->t.dtype != OP_BOOL && (uintptr_t)p->raw % align == 0) {
        dst->t.data = (void *)(uintptr_t)p->raw;
        return OP_OK;
    }
    if (how == OP__PROTO_LAZY && !packed && dst->t.dtype != OP_BOOL && bytes >= LAZY_BYTES_MIN) {
        dst->lazy = true;
        return OP_OK;
    }
    dst->t.data = op__aligned_alloc(bytes);
    if (!dst->t.data) return fail(err, OP_NOMEM, "out of memory: %zu bytes", bytes);
    dst->owned = true;
    if (packed) {
        op__unpack(dst->t.dtype, dst->t.data, p->raw, (int64_t)bytes);
        return OP_OK;
    }
    memcpy(dst->t.data, p->raw, bytes);
    if (dst->t.dtype == OP_BOOL) /* a C bool of another value than 0 and 1 is undefined behaviour */
        for (size_t i = 0; i < bytes; i++) ((uint8_t *)dst->t.data)[i] = ((uint8_t *)dst->t.data)[i] != 0;
    return OP_OK;
}

enum op_status op__onnx_tensor(const void *bytes, size_t n, struct op_model *m, enum op_proto_data how, struct op_proto_tensor *dst, struct op_error *err) {
    struct parts p = {0};
    *dst = (struct op_proto_tensor){0};
    enum op_status st = walk(bytes, n, dst, &p, err);
    if (st != OP_OK) return st;
    int name_len = (int)(dst->name_len < 100 ? dst->name_len : 100);
    const char *name = dst->name ? dst->name : "";
    if (p.data_type <= 0 || p.data_type > OP_I2)
        return fail(err, OP_UNSUPPORTED, "tensor \"%.*s\" is of type %s (%lld), which is not supported", name_len, name, op__onnx_type_name(p.data_type),
                    (long long)p.data_type);
    dst->t.dtype = (enum op_type)p.data_type;
    int64_t count = op_tensor_count(&dst->t), total = op_tensor_bytes(&dst->t);
    if (count < 0 || total < 0 || count > OP__ELEMENTS_MAX) return fail(err, OP_LIMIT, "tensor \"%.*s\" is too large", name_len, name);
    if (!count) return OP_OK;
    if (p.external) {
        if (!m) return fail(err, OP_UNSUPPORTED, "tensor \"%.*s\" keeps its data in another file", name_len, name);
        char location[4096];
        if (!p.location.len || p.location.len >= sizeof location || memchr(p.location.data, 0, p.location.len))
            return fail(err, OP_BAD_MODEL, "tensor \"%.*s\": its external data has no proper location", name_len, name);
        memcpy(location, p.location.data, p.location.len);
        location[p.location.len] = 0;
        const char *data;
        st = op__external_map(m, location, p.offset, p.has_length ? p.length : (uint64_t)op__packed_bytes(dst->t.dtype, count), &data, &p.raw_len, err);
        if (st != OP_OK) return st;
        p.raw = (const uint8_t *)data;
        p.has_raw = true;
    }
    if (dst->t.dtype == OP_STRING) return fill_strings(bytes, n, count, dst, err);
    if (p.has_raw) return take_raw(dst, &p, (size_t)total, how, err);

    bool complex_type = dst->t.dtype == OP_C64 || dst->t.dtype == OP_C128; /* two scalars an element */
    const bool packed = op__type_bits(dst->t.dtype) < 8; /* a value of the field is a byte of several elements */
    int64_t scalars = complex_type ? count * 2 : packed ? op__packed_bytes(dst->t.dtype, count) : count;
    size_t size = op_type_size(dst->t.dtype) / (complex_type ? 2 : 1);
    if ((uint64_t)scalars > p.typed_bytes)
        return fail(err, OP_BAD_MODEL, "tensor \"%.*s\" has fewer values than the %lld that its dimensions ask for", name_len, name, (long long)count);
    dst->t.data = op__aligned_alloc((size_t)total);
    if (!dst->t.data) return fail(err, OP_NOMEM, "out of memory: %lld bytes", (long long)total);
    dst->owned = true;
    uint8_t *at = (uint8_t *)dst->t.data + (packed ? total - scalars : 0); /* unpacked in place, from the end on */
    if (fill_typed(bytes, n, dst->t.dtype, size, (char *)at, scalars) == scalars) {
        if (packed) op__unpack(dst->t.dtype, dst->t.data, at, count);
        return OP_OK;
    }
    free(dst->t.data);
    dst->t.data = NULL;
    return fail(err, OP_BAD_MODEL, "tensor \"%.*s\" does not have the %lld values that its dimensions ask for", name_len, name, (long long)count);
}

/* Writes the values at their places: indices are i64, [n] of flat positions or [n, rank]. */
static bool scatter(const struct op_tensor *values, const struct op_tensor *indices, struct op_tensor *dst) {
    int64_t n = op_tensor_count(values), total = op_tensor_count(dst), size = (int64_t)op_type_size(dst->dtype);
    const int64_t *at = indices->data;
    if (values->rank != 1 || indices->dtype != OP_I64 || indices->rank < 1 || indices->rank > 2 || indices->dims[0] != n) return false;
    if (indices->rank == 2 && indices->dims[1] != dst->rank) return false;
    for (int64_t i = 0; i < n; i++) {
        int64_t flat = indices->rank == 1 ? at[i] : 0;
        for (int d = 0; indices->rank == 2 && d < dst->rank; d++) {
            int64_t k = at[i * dst->rank + d];
            if (k < 0 || k >= dst->dims[d]) return false;
            flat = flat * dst->dims[d] + k;
        }
        if (flat < 0 || flat >= total) return false;
        memcpy((char *)dst->data + flat * size, (const char *)values->data + i * size, (size_t)size);
    }
    return true;
}

enum op_status op__onnx_sparse_tensor(const void *bytes, size_t n, struct op_model *m, struct op_proto_tensor *dst, struct op_error *err) {
    struct op_proto_tensor values = {0}, indices = {0};
    struct wire w = wire_open(bytes, n);
    struct wire_field f;
    enum op_status st = OP_OK;
    bool dims_good = true;
    *dst = (struct op_proto_tensor){0};
    while (st == OP_OK && dims_good && wire_next(&w, &f)) {
        if (f.number == 3) dims_good = read_dims(&dst->t, &f);
        if ((f.number != 1 && f.number != 2) || f.type != WIRE_BYTES) continue;
        struct op_proto_tensor *part = f.number == 1 ? &values : &indices;
        if (part->owned) free(part->t.data);
        st = op__onnx_tensor(f.data, f.len, m, OP__PROTO_COPY, part, err);
    }
    dst->name = values.name;
    dst->name_len = values.name_len;
    dst->t.dtype = values.t.dtype;
    if (st == OP_OK && (w.bad || !dims_good || dst->t.dtype == OP_STRING || dst->t.dtype == OP_UNDEFINED))
        st = fail(err, OP_BAD_MODEL, "a SparseTensorProto is malformed");
    int64_t total = op_tensor_bytes(&dst->t);
    if (st == OP_OK && (total < 0 || (m && (uint64_t)total > m->options.memory_bytes_max))) st = fail(err, OP_LIMIT, "a sparse tensor is too large");
    if (st == OP_OK && total) {
        dst->t.data = calloc(1, (size_t)total);
        dst->owned = true;
        if (!dst->t.data) st = fail(err, OP_NOMEM, "out of memory: %lld bytes", (long long)total);
        else if (!scatter(&values.t, &indices.t, &dst->t)) {
            st = fail(err, OP_BAD_MODEL, "a sparse tensor's indices do not fit its values and dimensions");
            free(dst->t.data);
        }
    }
    if (values.owned) free(values.t.data);
    if (indices.owned) free(indices.t.data);
    if (st != OP_OK) *dst = (struct op_proto_tensor){0};
    return st;
}

/* --- files of the ONNX backend cases ----------------------------------------------------------- */

static enum op_status read_value(const void *bytes, size_t n, enum op_kind kind, int depth, struct op_tensor *dst, struct op_error *err);

static enum op_status append(struct op_tensor *t, const struct wire_field *f, enum op_kind kind, int depth, struct op_error *err) {
    struct op_tensor *all = realloc(t->items, ((size_t)t->n_items + 1) * sizeof *all);
    if (!all) return fail(err, OP_NOMEM, "out of memory");
    t->items = all;
    enum op_status st = read_value(f->data, f->len, kind, depth + 1, &all[t->n_items], err);
    if (st == OP_OK && all[t->n_items++].kind == OP_KIND_TENSOR) t->dtype = all[t->n_items - 1].dtype;
    return st;
}

static enum op_status read_value(const void *bytes, size_t n, enum op_kind kind, int depth, struct op_tensor *dst, struct op_error *err) {
    *dst = (struct op_tensor){.kind = kind};
    if (depth > OP__DEPTH_MAX) return fail(err, OP_LIMIT, "values are nested deeper than %d", OP__DEPTH_MAX);
    if (kind == OP_KIND_TENSOR) {
        struct op_proto_tensor p;
        enum op_status st = op__onnx_tensor(bytes, n, NULL, OP__PROTO_COPY, &p, err);
        *dst = p.t;
        return st;
    }
    struct wire w = wire_open(bytes, n);
    struct wire_field f;
    enum op_status st = OP_OK;
    while (st == OP_OK && wire_next(&w, &f)) {
        if (f.type != WIRE_BYTES || f.number == 1) continue;
        if (f.number == 3) st = append(dst, &f, OP_KIND_TENSOR, depth, err);
        else if (f.number == 5) st = append(dst, &f, OP_KIND_SEQUENCE, depth, err);
        else if (f.number == 7) st = append(dst, &f, OP_KIND_OPTIONAL, depth, err);
        else if (f.number == 4 || f.number == 6) st = fail(err, OP_UNSUPPORTED, "a sequence of sparse tensors or maps is not supported");
        if (kind == OP_KIND_OPTIONAL && dst->n_items > 1) st = fail(err, OP_BAD_MODEL, "an OptionalProto holds %lld values", (long long)dst->n_items);
    }
    if (st == OP_OK && w.bad) st = fail(err, OP_BAD_MODEL, "its %s is not well-formed protobuf", kind == OP_KIND_SEQUENCE ? "SequenceProto" : "OptionalProto");
    if (st != OP_OK) op_tensor_free(dst);
    return st;
}

enum op_status op_tensor_read_pb(const char *path, enum op_kind kind, struct op_tensor *dst, struct op_error *err) {
    struct stat info;
    *dst = (struct op_tensor){0};
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &info) != 0 || !S_ISREG(info.st_mode)) {
        int e = fd < 0 ? errno : EINVAL;
        if (fd >= 0) close(fd);
        return fail(err, OP_IO, "\"%s\" cannot be read: %s", path, strerror(e));
    }
    size_t bytes = (size_t)info.st_size;
    void *map = bytes ? mmap(NULL, bytes, PROT_READ, MAP_PRIVATE, fd, 0) : NULL;
    close(fd);
    if (map == MAP_FAILED) return fail(err, OP_IO, "\"%s\" cannot be mapped: %s", path, strerror(errno));
    enum op_status st = read_value(map ? map : "", bytes, kind, 0, dst, err);
    if (map) munmap(map, bytes);
    return st;
}
