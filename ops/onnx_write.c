/* Writes ONNX: the messages of a model (https://github.com/onnx/onnx/blob/main/onnx/onnx.proto has the field numbers), and
 * op_model_save, which puts a file in place whole or not at all. */
#include "ops/onnx_write.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "ops/model.h"
#include "ops/ops_train.h"
#include "ops/wire.h"

void op__out_finish(struct op_out *o) {
    free(o->data);
    *o = (struct op_out){0};
}

static bool reserve(struct op_out *o, size_t n) {
    if (o->failed) return false;
    if (o->cap - o->n >= n) return true;
    size_t cap = o->cap ? o->cap : 256;
    while (cap - o->n < n) {
        if (cap > SIZE_MAX / 2) return o->failed = true, false;
        cap *= 2;
    }
    uint8_t *grown = realloc(o->data, cap);
    if (!grown) return o->failed = true, false;
    o->data = grown;
    o->cap = cap;
    return true;
}

void op__out_raw(struct op_out *o, const void *bytes, size_t n) {
    if (n == 0 || !reserve(o, n)) return;
    memcpy(o->data + o->n, bytes, n);
    o->n += n;
}

static void put_varint(struct op_out *o, uint64_t v) {
    uint8_t bytes[10];
    size_t n = 0;
    for (; v >= 0x80; v >>= 7) bytes[n++] = (uint8_t)(v | 0x80);
    bytes[n++] = (uint8_t)v;
    op__out_raw(o, bytes, n);
}

void op__out_int(struct op_out *o, uint32_t field, int64_t value) {
    put_varint(o, (uint64_t)field << 3);
    put_varint(o, (uint64_t)value);
}

void op__out_float(struct op_out *o, uint32_t field, float value) {
    put_varint(o, (uint64_t)field << 3 | 5);
    op__out_raw(o, &value, sizeof value); /* little endian, as every machine that this runs on */
}

void op__out_bytes(struct op_out *o, uint32_t field, const void *bytes, size_t n) {
    put_varint(o, (uint64_t)field << 3 | 2);
    put_varint(o, n);
    op__out_raw(o, bytes, n);
}

void op__out_string(struct op_out *o, uint32_t field, const char *text) {
    op__out_bytes(o, field, text, strlen(text));
}

void op__out_message(struct op_out *o, uint32_t field, struct op_out *message) {
    o->failed |= message->failed;
    op__out_bytes(o, field, message->data, message->n);
    op__out_finish(message);
}

void op__out_tensor(struct op_out *o, uint32_t field, const char *name, const struct op_tensor *t) {
    struct op_out m = {0};
    int64_t count = op_tensor_count(t);
    for (int i = 0; i < t->rank; i++) op__out_int(&m, 1, t->dims[i]);
    op__out_int(&m, 2, t->dtype);
    if (name) op__out_string(&m, 8, name);
    const struct op_string *strings = t->data;
    for (int64_t i = 0; t->dtype == OP_STRING && i < count; i++) op__out_bytes(&m, 6, strings[i].data, strings[i].len);
    if (op__type_bits(t->dtype) < 8 && count > 0) {
        uint8_t *packed = malloc((size_t)op__packed_bytes(t->dtype, count));
        if (packed) op__pack(t->dtype, packed, t->data, count);
        m.failed |= !packed;
        if (packed) op__out_bytes(&m, 9, packed, (size_t)op__packed_bytes(t->dtype, count));
        free(packed);
    } else if (t->dtype != OP_STRING && count >= 0) op__out_bytes(&m, 9, t->data, (size_t)count * op_type_size(t->dtype));
    op__out_message(o, field, &m);
}

void op__out_value_info(struct op_out *o, uint32_t field, const char *name, enum op_type dtype, int rank, const int64_t *dims, const char *const *symbols) {
    struct op_out info = {0}, type = {0}, tensor = {0}, shape = {0};
    for (int i = 0; i < rank; i++) {
        struct op_out dim = {0};
        if (dims[i] >= 0) op__out_int(&dim, 1, dims[i]);
        else if (symbols && symbols[i]) op__out_string(&dim, 2, symbols[i]);
        op__out_message(&shape, 1, &dim);
    }
    op__out_int(&tensor, 1, dtype);
    if (rank >= 0) op__out_message(&tensor, 2, &shape);
    op__out_message(&type, 1, &tensor);
    op__out_string(&info, 1, name);
    op__out_message(&info, 2, &type);
    op__out_message(o, field, &info);
    op__out_finish(&shape);
}

void op__out_field(struct op_out *o, const struct wire_field *f) {
    if (f->type == WIRE_BYTES) op__out_bytes(o, f->number, f->data, f->len);
    else if (f->type == WIRE_VARINT) op__out_int(o, f->number, (int64_t)f->value);
    else {
        uint8_t key = (uint8_t)(f->number << 3 | (f->type == WIRE_64 ? 1 : 5)); /* ONNX has such fields below 16 only */
        op__out_raw(o, &key, 1);
        op__out_raw(o, &f->value, f->type == WIRE_64 ? 8 : 4);
    }
}

/* --- a file ------------------------------------------------------------------------------------ */

static bool write_all(int fd, const void *bytes, size_t n) {
    for (const char *at = bytes; n > 0;) {
        ssize_t put = write(fd, at, n);
        if (put < 0 && errno == EINTR) continue;
        if (put <= 0) return false;
        at += put;
        n -= (size_t)put;
    }
    return true;
}

/* The folder's entry too must reach the disk. */
static bool sync_folder(const char *path) {
    const char *slash = strrchr(path, '/');
    char *folder = slash ? strndup(path, slash == path ? 1 : (size_t)(slash - path)) : strdup(".");
    int fd = folder ? open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;
    bool good = fd >= 0 && fsync(fd) == 0;
    if (fd >= 0) close(fd);
    free(folder);
    return good;
}

enum op_status op_model_save(struct op_model *m, const char *path, const char *const *keys, const char *const *values, int n, struct op_error *err) {
    struct op_out meta = {0}; /* repeated fields of one message may stand apart: appended, they are part of the model */
    struct op_error own;
    if (!err) err = &own;
    *err = (struct op_error){0};
    if (m->mappings && m->mappings->next) return op__model_fail(m, err, OP_UNSUPPORTED, "its external data cannot be written along; save a model that is one file");
    for (int i = 0; i < n; i++) {
        struct op_out entry = {0};
        op__out_string(&entry, 1, keys[i]);
        op__out_string(&entry, 2, values[i]);
        op__out_message(&meta, 14, &entry);
    }
    size_t len = strlen(path) + 8;
    char *part = malloc(len);
    if (!part || meta.failed) {
        free(part);
        op__out_finish(&meta);
        return op__model_fail(m, err, OP_NOMEM, "out of memory");
    }
    snprintf(part, len, "%s.part", path);
    int fd = open(part, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    bool good = fd >= 0 && write_all(fd, m->bytes, m->n_bytes) && write_all(fd, meta.data, meta.n) && fsync(fd) == 0;
    int saved = errno;
    if (fd >= 0 && close(fd) != 0 && good) good = false, saved = errno;
    if (good && (rename(part, path) != 0 || !sync_folder(path))) good = false, saved = errno;
    if (!good) {
        if (fd >= 0) unlink(part);
        op__model_fail(m, err, OP_IO, "%.300s cannot be written: %s", path, strerror(saved));
    }
    op__out_finish(&meta);
    free(part);
    return good ? OP_OK : OP_IO;
}
