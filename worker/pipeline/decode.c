/* decode.c: one value of a job's input → a tensor, or the bytes of a file.
 *
 * Forms of one value: nested numbers; {"dtype","shape","b64"} (little-endian);
 * {"dtype","shape","data"}, which is the form of results, so that an output can be sent to the next
 * model; {"ref"} with optional dtype and shape, where NPY files are known by their magic. The type
 * must be the model's own: nothing is converted in secret, since a u8 image sent to a model of
 * floats is a mistake more often than a wish. Only rows of tables and NPY files are widened. */
#include "worker/pipeline/input.h"

#include "worker/data/data.h"
#include "worker/nearest.h"

#include <limits.h>
#include <stdio.h>
#include <string.h>

const char *w__io_describe(const struct op_io *io, char *dst, size_t n) {
    int at = snprintf(dst, n, "%s[", op_type_name(io->dtype));
    if (io->rank < 0) at += snprintf(dst + at, n - (size_t)at, "…");
    for (int i = 0; i < io->rank && at > 0 && (size_t)at < n; i++) {
        if (i) at += snprintf(dst + at, n - (size_t)at, ",");
        if ((size_t)at >= n) break;
        if (io->dims[i] >= 0)
            at += snprintf(dst + at, n - (size_t)at, "%lld", (long long)io->dims[i]);
        else
            at +=
                snprintf(dst + at, n - (size_t)at, "%.24s", io->symbols[i] ? io->symbols[i] : "?");
    }
    if (at > 0 && (size_t)at < n) snprintf(dst + at, n - (size_t)at, "]");
    return dst;
}

static int64_t elements_max(const struct w_source_of *of, enum op_type dtype) {
    size_t size = op_type_size(dtype);
    return size ? (int64_t)(of->arena->bytes_max / size) : 0;
}

/* --- objects: {"dtype", "shape", "b64" | "data" | "ref"} -------------------------------------- */

struct value_object {
    struct w_span dtype, shape, b64, data, ref; /* raw; ptr NULL: absent */
};

static const struct {
    const char *name;
    size_t offset;
} members[] = {{"dtype", offsetof(struct value_object, dtype)},
               {"shape", offsetof(struct value_object, shape)},
               {"b64", offsetof(struct value_object, b64)},
               {"data", offsetof(struct value_object, data)},
               {"ref", offsetof(struct value_object, ref)}};
enum { N_MEMBERS = sizeof members / sizeof *members };

static const char *next_member(void *user, size_t i) {
    (void)user;
    return i < N_MEMBERS ? members[i].name : NULL;
}

bool w__key_is(struct w_span key, const char *name) {
    return key.len == strlen(name) + 2 && !memcmp(key.ptr + 1, name, key.len - 2);
}

bool w__key_of_value(struct w_span key) {
    for (size_t i = 0; i < N_MEMBERS; i++)
        if (w__key_is(key, members[i].name)) return true;
    return false;
}

static bool object_read(const char *name, struct w_span json, struct value_object *dst,
                        struct w_error *err) {
    struct w_scan s = {json.ptr, json.ptr + json.len};
    struct w_span key, value;
    bool first = true;
    int got;
    *dst = (struct value_object){{0}, {0}, {0}, {0}, {0}};
    if (!w__scan_open(&s, '{')) return w_fail(err, W_BAD_INPUT, "%s: an object was expected", name);
    while ((got = w__scan_member(&s, &first, &key, &value)) > 0) {
        size_t i = 0;
        while (i < N_MEMBERS && !w__key_is(key, members[i].name)) i++;
        if (i == N_MEMBERS) {
            char word[64];
            snprintf(word, sizeof word, "%.*s", key.len - 2 < 60 ? (int)(key.len - 2) : 60,
                     key.ptr + 1);
            const char *near = w__nearest(word, next_member, NULL);
            return w_fail(err, W_BAD_INPUT, "%s: unknown key \"%s\" in a tensor%s%s%s", name, word,
                          near ? "; did you mean \"" : "", near ? near : "",
                          near ? "\"?" : " (dtype, shape, b64, data, ref are known)");
        }
        *(struct w_span *)((char *)dst + members[i].offset) = value;
    }
    if (got < 0)
        return w_fail(err, W_BAD_JSON, "%s: malformed JSON object at byte %zu", name,
                      (size_t)(s.p ? s.p - json.ptr : (ptrdiff_t)json.len));
    int n_forms = !!dst->b64.ptr + !!dst->data.ptr + !!dst->ref.ptr;
    return n_forms == 1 ||
           w_fail(err, W_BAD_INPUT,
                  "%s: an object needs exactly one of \"b64\", \"data\" and \"ref\", found %d",
                  name, n_forms);
}

/* dst->rank is -1 where the object has no shape. */
static bool object_shape(const struct w_source_of *of, const char *name, struct w_span raw,
                         struct op_tensor *dst, struct w_error *err) {
    *dst = (struct op_tensor){.rank = -1};
    if (!raw.ptr) return true;
    struct op_tensor dims;
    if (!w_tensor_from_json(raw.ptr, raw.len, "shape", OP_I64, OP_RANK_MAX, of->arena, &dims, err))
        return w_fail_in(err, "%s: ", name);
    if (dims.rank != 1)
        return w_fail(err, W_BAD_SHAPE, "%s: \"shape\" must be a list of whole numbers", name);
    dst->rank = (int)dims.dims[0];
    for (int i = 0; i < dst->rank; i++) {
        dst->dims[i] = ((int64_t *)dims.data)[i];
        if (dst->dims[i] < 0)
            return w_fail(err, W_BAD_SHAPE,
                          "%s: \"shape\"[%d] is %lld: a dimension cannot be negative", name, i,
                          (long long)dst->dims[i]);
    }
    return true;
}

static bool object_dtype(const struct w_source_of *of, const struct op_io *io, struct w_span raw,
                         enum op_type *dst, struct w_error *err) {
    *dst = io->dtype;
    if (!raw.ptr) return true;
    const char *word = w__scan_string(raw, of->arena, false, NULL);
    enum op_type type = word ? op_type_parse(word) : OP_UNDEFINED;
    if (type == OP_UNDEFINED)
        return w_fail(err, W_BAD_DTYPE,
                      "%s: \"dtype\" is %.*s, expected one of f32 f64 f16 bf16 u8 i8 u16 i16 u32 "
                      "i32 u64 i64 bool",
                      io->name, raw.len < 40 ? (int)raw.len : 40, raw.ptr);
    char want[160];
    return type == io->dtype ||
           w_fail(err, W_BAD_DTYPE, "model \"%s\": input \"%s\" is %s, the job sent %s", of->model,
                  io->name, w__io_describe(io, want, sizeof want), op_type_name(type));
}

/* --- bytes ------------------------------------------------------------------------------------ */

static bool base64(const struct w_source_of *of, const char *name, const char *text, size_t len,
                   struct w_span *bytes, struct w_error *err) {
    uint8_t *dst = w_arena_alloc(of->arena, w_base64_decoded_max(len) + 4);
    if (!dst)
        return w_fail(err, W_TOO_LARGE, "%s: %zu characters of base64 are more than a row's memory",
                      name, len);
    size_t at = 0;
    int64_t n = w_base64_decode(text, len, dst, &at);
    if (n < 0 && at < len)
        return w_fail(err, W_BAD_INPUT,
                      "%s: character %zu of the base64 text (0x%02x) is not allowed there", name,
                      at, (unsigned char)text[at]);
    if (n < 0)
        return w_fail(err, W_BAD_INPUT,
                      "%s: the base64 text has %zu characters, which is no multiple of 4 (padding "
                      "with = is required)",
                      name, len);
    *bytes = (struct w_span){(const char *)dst, (size_t)n};
    return true;
}

static bool fetch(const struct w_source_of *of, struct w_span raw, struct w_span *bytes,
                  struct w_error *err) {
    const char *ref = w__scan_string(raw, of->arena, false, NULL);
    if (!ref)
        return w_fail(err, W_BAD_INPUT,
                      "\"ref\" is %.*s, expected a string such as \"file:/data/x.npy\"",
                      raw.len < 40 ? (int)raw.len : 40, raw.ptr);
    if (!of->fetch)
        return w_fail(err, W_REF_DENIED, "references are not allowed here: %.200s", ref);
    *bytes = (struct w_span){0};
    return of->fetch(of->user, ref, of->arena, bytes, err);
}

static bool is_image(struct w_span b) {
    return (b.len > 3 && !memcmp(b.ptr, "\xff\xd8\xff", 3)) ||
           (b.len > 8 && !memcmp(b.ptr, "\x89PNG\r\n\x1a\n", 8));
}

/* The shape of raw bytes that come without one: the model's own, with as many rows as there are
 * bytes for. */
static bool shape_of_model(const struct op_io *io, size_t bytes, struct op_tensor *shape) {
    int64_t row = (int64_t)op_type_size(io->dtype);
    if (io->rank < 0) return false;
    bool batch = io->rank > 0 && (io->dims[0] < 0 || io->dims[0] == 1);
    *shape = (struct op_tensor){.rank = io->rank};
    for (int i = 0; i < io->rank; i++) {
        shape->dims[i] = io->dims[i];
        if (i == 0 && batch) continue;
        if (io->dims[i] <= 0 || __builtin_mul_overflow(row, io->dims[i], &row)) return false;
    }
    if (!batch) return true;
    if (row <= 0 || !bytes || bytes % (size_t)row) return false;
    shape->dims[0] = (int64_t)(bytes / (size_t)row);
    return true;
}

bool w__decode_bytes(const struct w_source_of *of, const struct op_io *io, struct w_span bytes,
                     enum op_type dtype, const struct op_tensor *shape, struct op_tensor *dst,
                     struct w_error *err) {
    char want[160];
    if (w_npy_is(bytes.ptr, bytes.len)) {
        if (!w_npy_parse(bytes.ptr, bytes.len, of->arena, dst, err))
            return w_fail_in(err, "input \"%s\": ", io->name);
        if (dst->dtype != dtype)
            return w_fail(err, W_BAD_DTYPE,
                          "model \"%s\": input \"%s\" is %s, the NPY file is of %s", of->model,
                          io->name, w__io_describe(io, want, sizeof want),
                          op_type_name(dst->dtype));
        return true;
    }
    if (is_image(bytes) && shape->rank < 0)
        return w_fail(err, W_BAD_INPUT,
                      "input \"%s\" is an image file, and model \"%s\" takes tensors: a model.json "
                      "beside it with decode_image, resize and pixels turns images into its %s",
                      io->name, of->model, w__io_describe(io, want, sizeof want));
    struct op_tensor t = *shape;
    if (t.rank < 0 && !shape_of_model(io, bytes.len, &t))
        return w_fail(err, W_BAD_SHAPE,
                      "input \"%s\": %zu raw bytes without \"shape\" do not make whole rows of %s",
                      io->name, bytes.len, w__io_describe(io, want, sizeof want));
    t.dtype = dtype;
    int64_t expected = op_tensor_bytes(&t);
    if (dtype == OP_STRING)
        return w_fail(
            err, W_UNSUPPORTED,
            "input \"%s\" takes strings, which have no raw form: send nested JSON strings",
            io->name);
    if (expected < 0 || (size_t)expected != bytes.len)
        return w_fail(err, W_BAD_SHAPE, "input \"%s\": there are %zu bytes, %s needs %lld",
                      io->name, bytes.len, op_tensor_describe(&t, want, sizeof want),
                      (long long)expected);
    t.data = (void *)(uintptr_t)bytes.ptr;
    if ((uintptr_t)bytes.ptr % op_type_size(dtype)) {
        t.data = w_arena_alloc(of->arena, bytes.len);
        if (!t.data)
            return w_fail(err, W_TOO_LARGE, "input \"%s\": %zu bytes are more than a row's memory",
                          io->name, bytes.len);
        memcpy(t.data, bytes.ptr, bytes.len);
    }
    if (dtype == OP_BOOL)
        for (size_t i = 0; i < bytes.len; i++)
            if ((unsigned char)bytes.ptr[i] > 1)
                return w_fail(err, W_BAD_INPUT, "input \"%s\": byte %zu is %u, a bool is 0 or 1",
                              io->name, i, (unsigned char)bytes.ptr[i]);
    *dst = t;
    return true;
}

bool w__decode_tensor(const struct w_source_of *of, const struct op_io *io, struct w_span json,
                      struct op_tensor *dst, struct w_error *err) {
    struct w_scan s = {json.ptr, json.ptr + json.len};
    w__scan_blank(&s);
    if (s.p == s.end || *s.p != '{')
        return w_tensor_from_json(json.ptr, json.len, io->name, io->dtype,
                                  elements_max(of, io->dtype), of->arena, dst, err);
    struct value_object object;
    struct op_tensor shape;
    enum op_type dtype;
    if (!object_read(io->name, json, &object, err) ||
        !object_dtype(of, io, object.dtype, &dtype, err) ||
        !object_shape(of, io->name, object.shape, &shape, err))
        return false;
    if (object.data.ptr) {
        if (!w_tensor_from_json(object.data.ptr, object.data.len, io->name, dtype,
                                elements_max(of, dtype), of->arena, dst, err))
            return false;
        if (shape.rank < 0) return true;
        int64_t found = op_tensor_count(dst), expected = op_tensor_count(&shape);
        shape.dtype = dtype;
        shape.data = dst->data;
        *dst = shape;
        return found == expected ||
               w_fail(err, W_BAD_SHAPE, "%s: \"data\" has %lld elements, \"shape\" needs %lld",
                      io->name, (long long)found, (long long)expected);
    }
    struct w_span bytes;
    if (object.ref.ptr)
        return fetch(of, object.ref, &bytes, err) &&
               w__decode_bytes(of, io, bytes, dtype, &shape, dst, err);
    if (object.b64.len < 2 || object.b64.ptr[0] != '"')
        return w_fail(err, W_BAD_INPUT, "%s: \"b64\" is no string", io->name);
    return base64(of, io->name, object.b64.ptr + 1, object.b64.len - 2, &bytes, err) &&
           w__decode_bytes(of, io, bytes, dtype, &shape, dst, err);
}

bool w__decode_blob(const struct w_source_of *of, struct w_span json, bool is_ref,
                    struct w_span *bytes, struct w_error *err) {
    struct w_scan s = {json.ptr, json.ptr + json.len};
    w__scan_blank(&s);
    if (s.p < s.end && *s.p == '"') {
        const char *comma = memchr(s.p, ',', (size_t)(s.end - s.p < 128 ? s.end - s.p : 128));
        if (!is_ref && s.end - s.p > 6 && !memcmp(s.p + 1, "data:", 5) && comma &&
            comma - s.p > 8 && !memcmp(comma - 7, ";base64", 7))
            return base64(of, "input", comma + 1, (size_t)(s.end - comma - 2), bytes, err);
        if (is_ref) return fetch(of, (struct w_span){s.p, (size_t)(s.end - s.p)}, bytes, err);
        return w_fail(err, W_BAD_INPUT,
                      "the input is a plain string; a file is {\"ref\":\"file:…\"}, "
                      "{\"b64\":\"…\"} or \"data:image/png;base64,…\"");
    }
    if (s.p == s.end || *s.p != '{')
        return w_fail(err, W_BAD_INPUT,
                      "the input is a list or a number; this model takes the bytes of a file: "
                      "{\"ref\":\"file:…\"} or {\"b64\":\"…\"}");
    struct value_object object;
    if (!object_read("input", json, &object, err)) return false;
    if (object.data.ptr)
        return w_fail(
            err, W_BAD_INPUT,
            "the input has \"data\", this model takes the bytes of a file: \"ref\" or \"b64\"");
    if (object.ref.ptr) return fetch(of, object.ref, bytes, err);
    if (object.b64.len < 2 || object.b64.ptr[0] != '"')
        return w_fail(err, W_BAD_INPUT, "\"b64\" is no string");
    return base64(of, "input", object.b64.ptr + 1, object.b64.len - 2, bytes, err);
}

/* --- types of row sources --------------------------------------------------------------------- */

static bool is_float(enum op_type t) {
    return t == OP_F32 || t == OP_F64 || t == OP_F16 || t == OP_BF16;
}

bool w__convert(const struct w_source_of *of, enum op_type dtype, struct op_tensor *t,
                struct w_error *err) {
    int64_t n = op_tensor_count(t);
    size_t size = op_type_size(dtype);
    if (t->dtype == dtype) return true;
    if (n < 0 || !size || t->dtype == OP_STRING || dtype == OP_STRING)
        return w_fail(err, W_BAD_DTYPE, "the row is of %s, the model \"%s\" takes %s",
                      op_type_name(t->dtype), of->model, op_type_name(dtype));
    void *dst = w_arena_array(of->arena, (size_t)n, size);
    if (!dst)
        return w_fail(err, W_TOO_LARGE, "a row of %lld elements is more than a row's memory",
                      (long long)n);
    for (int64_t i = 0; i < n; i++) {
        double v = w__element(t, i);
        struct w_number number = {.value = v, .negative = v < 0};
        if (is_float(dtype) ? !w__store(dtype, dst, i, &number)
                            : !(v == v && w__store(dtype, dst, i, &number)))
            return w_fail(err, W_BAD_DTYPE,
                          "element %lld of the row is %.17g, which %s cannot hold", (long long)i, v,
                          op_type_name(dtype));
    }
    t->dtype = dtype;
    t->data = dst;
    return true;
}
