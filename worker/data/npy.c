/* npy.c: NumPy's array files: parsing, writing, and as a source of rows (the first dimension).
 *
 * A file is a magic, a version, the length of a header, the header (a Python literal: {'descr':
 * '<f4', 'fortran_order': False, 'shape': (3, 4), }), the elements. Versions 1 to 3 differ in the
 * width of the length and the header's encoding. What is not little-endian or not in C order is put
 * in order while it is copied. Source: NumPy's own description of the format (NEP 1 and
 * numpy.lib.format). */
#include "worker/data/format.h"
#include "worker/pipeline/scan.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { HEADER_BYTES_MAX = 1 << 20, NPY_RANK_MAX = 8 };

struct npy {
    struct op_tensor t; /* data NULL */
    bool fortran, swap;
    size_t data_at, row_bytes;
};

bool w_npy_is(const void *bytes, size_t len) {
    return len >= 10 && !memcmp(bytes, "\x93NUMPY", 6);
}

/* --- the header ------------------------------------------------------------------------------- */

/* Behind "'name':" and blanks; NULL: the key is not there. */
static const char *value_of(const char *header, const char *end, const char *name) {
    for (const char *p = header; p < end; p++) {
        size_t n = strlen(name);
        if ((*p != '\'' && *p != '"') || (size_t)(end - p) < n + 3 || memcmp(p + 1, name, n) ||
            p[n + 1] != *p)
            continue;
        p += n + 2;
        while (p < end && isspace((unsigned char)*p)) p++;
        if (p == end || *p != ':') return NULL;
        p++;
        while (p < end && isspace((unsigned char)*p)) p++;
        return p < end ? p : NULL;
    }
    return NULL;
}

static bool read_descr(const char *p, const char *end, struct npy *n, struct w_error *err) {
    static const struct {
        char kind, size;
        enum op_type type;
    } kinds[] = {{'f', '2', OP_F16}, {'f', '4', OP_F32}, {'f', '8', OP_F64}, {'i', '1', OP_I8},
                 {'i', '2', OP_I16}, {'i', '4', OP_I32}, {'i', '8', OP_I64}, {'u', '1', OP_U8},
                 {'u', '2', OP_U16}, {'u', '4', OP_U32}, {'u', '8', OP_U64}, {'b', '1', OP_BOOL}};
    if (!p || end - p < 5 || (*p != '\'' && *p != '"'))
        return w_fail(err, W_BAD_INPUT,
                      "the NPY header has no plain descr (structured arrays are not supported)");
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        if (p[2] != kinds[i].kind || p[3] != kinds[i].size || p[4] != *p ||
            !memchr("<>|=", p[1], 4))
            continue;
        n->t.dtype = kinds[i].type;
        n->swap = p[1] == '>' && kinds[i].size != '1';
        return true;
    }
    const char *stop = memchr(p + 1, *p, (size_t)(end - p - 1));
    int shown = stop && stop - p - 1 < 20 ? (int)(stop - p - 1) : 4;
    return w_fail(err, W_BAD_DTYPE,
                  "the NPY file is of %.*s; f2 f4 f8 i1 i2 i4 i8 u1 u2 u4 u8 b1 are supported",
                  shown, p + 1);
}

static bool read_shape(const char *p, const char *end, struct npy *n, struct w_error *err) {
    if (!p || *p != '(') return w_fail(err, W_BAD_INPUT, "the NPY header has no shape");
    for (p++; p < end && *p != ')';) {
        int64_t v = 0;
        if (*p == ' ' || *p == ',') {
            p++;
            continue;
        }
        if (!isdigit((unsigned char)*p))
            return w_fail(err, W_BAD_INPUT, "the NPY header's shape has the character 0x%02x",
                          (unsigned char)*p);
        if (n->t.rank == NPY_RANK_MAX)
            return w_fail(err, W_BAD_SHAPE, "the NPY file has more than %d dimensions",
                          NPY_RANK_MAX);
        for (; p < end && isdigit((unsigned char)*p); p++)
            if (__builtin_mul_overflow(v, 10, &v) || __builtin_add_overflow(v, *p - '0', &v))
                return w_fail(err, W_TOO_LARGE, "a dimension of the NPY file is beyond 2^63");
        if (p < end && *p == 'L') p++; /* Python 2 wrote long integers so */
        n->t.dims[n->t.rank++] = v;
    }
    return p < end || w_fail(err, W_BAD_INPUT, "the NPY header's shape has no end");
}

/* Reads the header from the first `len` bytes of a file. */
static bool read_header(const uint8_t *b, size_t len, struct npy *n, struct w_error *err) {
    *n = (struct npy){.t = {.rank = 0}};
    if (!w_npy_is(b, len))
        return w_fail(err, W_BAD_INPUT, "the file does not begin as an NPY file does");
    const unsigned major = b[6];
    if (major < 1 || major > 3)
        return w_fail(err, W_UNSUPPORTED, "the NPY file is of version %u.%u; 1 to 3 are supported",
                      major, b[7]);
    size_t at = major == 1 ? 10 : 12, header = b[8] | (size_t)b[9] << 8;
    if (major > 1 && len >= 12) header |= (size_t)b[10] << 16 | (size_t)b[11] << 24;
    if (header > HEADER_BYTES_MAX)
        return w_fail(err, W_TOO_LARGE, "the NPY header has %zu bytes, at most %d are allowed",
                      header, HEADER_BYTES_MAX);
    if (len < at || header > len - at)
        return w_fail(err, W_BAD_INPUT, "the NPY file ends within its header");
    const char *p = (const char *)b + at, *end = p + header,
               *order = value_of(p, end, "fortran_order");
    n->data_at = at + header;
    if (!order || end - order < 5 || (memcmp(order, "True", 4) && memcmp(order, "False", 5)))
        return w_fail(err, W_BAD_INPUT, "the NPY header has no fortran_order");
    n->fortran = *order == 'T';
    if (!read_descr(value_of(p, end, "descr"), end, n, err) ||
        !read_shape(value_of(p, end, "shape"), end, n, err))
        return false;
    int64_t bytes = op_tensor_bytes(&n->t);
    if (bytes < 0) return w_fail(err, W_TOO_LARGE, "the NPY file's shape is beyond 2^63 bytes");
    n->row_bytes = n->t.rank && n->t.dims[0] > 0 ? (size_t)(bytes / n->t.dims[0]) : (size_t)bytes;
    return true;
}

/* --- order ------------------------------------------------------------------------------------ */

static void swap_bytes(void *data, size_t n, size_t size) {
    uint8_t *p = data;
    for (size_t i = 0; i < n; i++, p += size)
        for (size_t k = 0; k < size / 2; k++) {
            uint8_t c = p[k];
            p[k] = p[size - 1 - k];
            p[size - 1 - k] = c;
        }
}

/* Element (i0, i1, …) lies at Σ ik·stride[k] with the first index running fastest. */
static void to_c_order(uint8_t *dst, const uint8_t *src, const struct op_tensor *t, size_t size) {
    int64_t index[NPY_RANK_MAX] = {0}, stride[NPY_RANK_MAX], at = 0, n = op_tensor_count(t);
    for (int i = 0; i < t->rank; i++) stride[i] = i ? stride[i - 1] * t->dims[i - 1] : 1;
    for (int64_t i = 0; i < n; i++, dst += size) {
        memcpy(dst, src + (size_t)at * size, size);
        for (int k = t->rank - 1; k >= 0; k--) {
            at += stride[k];
            if (++index[k] < t->dims[k]) break;
            at -= stride[k] * t->dims[k];
            index[k] = 0;
        }
    }
}

static bool check_bools(const struct op_tensor *t, struct w_error *err) {
    const uint8_t *p = t->data;
    for (int64_t i = 0, n = t->dtype == OP_BOOL ? op_tensor_count(t) : 0; i < n; i++)
        if (p[i] > 1)
            return w_fail(err, W_BAD_INPUT, "element %lld of the NPY file's truth values is %u",
                          (long long)i, p[i]);
    return true;
}

bool w_npy_parse(const void *bytes, size_t len, struct w_arena *arena, struct op_tensor *dst,
                 struct w_error *err) {
    struct npy n;
    if (!read_header(bytes, len, &n, err)) return false;
    const size_t need = (size_t)op_tensor_bytes(&n.t), size = op_type_size(n.t.dtype);
    const uint8_t *data = (const uint8_t *)bytes + n.data_at;
    char text[128];
    if (len - n.data_at < need)
        return w_fail(err, W_BAD_INPUT,
                      "the NPY file is cut off: %s needs %zu bytes, there are %zu",
                      op_tensor_describe(&n.t, text, sizeof text), need, len - n.data_at);
    *dst = n.t;
    dst->data = (void *)(uintptr_t)data;
    if ((n.fortran && n.t.rank > 1) || n.swap || (uintptr_t)data % size) {
        dst->data = w_arena_alloc(arena, need);
        if (!dst->data)
            return w_fail(err, W_TOO_LARGE,
                          "the NPY file's %zu bytes are more than what is left of a row's memory",
                          need);
        if (n.fortran && n.t.rank > 1)
            to_c_order(dst->data, data, &n.t, size);
        else
            memcpy(dst->data, data, need);
        if (n.swap) swap_bytes(dst->data, need / size, size);
    }
    return check_bools(dst, err);
}

bool w_npy_read_file(const char *path, struct w_arena *arena, struct op_tensor *dst,
                     struct w_error *err) {
    struct stat st;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &st) || !S_ISREG(st.st_mode)) {
        w_fail(err, fd < 0 && errno == ENOENT ? W_REF_NOT_FOUND : W_REF_FAILED,
               "%s cannot be opened: %s", path, fd < 0 ? strerror(errno) : "not a regular file");
        if (fd >= 0) close(fd);
        return false;
    }
    size_t len = (size_t)st.st_size, got = 0;
    uint8_t *bytes = w_arena_alloc(arena, len);
    ssize_t n = 1;
    while (bytes && got < len && (n = read(fd, bytes + got, len - got)) > 0) got += (size_t)n;
    close(fd);
    if (!bytes)
        return w_fail(err, W_TOO_LARGE, "%s (%zu bytes) is more than the memory that is left", path,
                      len);
    if (n < 0) return w_fail(err, W_REF_FAILED, "%s cannot be read: %s", path, strerror(errno));
    return w_npy_parse(bytes, got, arena, dst, err) || w_fail_in(err, "%s: ", path);
}

/* --- writing ---------------------------------------------------------------------------------- */

static const char *descr_of(enum op_type type) {
    switch (type) {
    case OP_F32:
    case OP_BF16:
        return "<f4";
    case OP_F64:
        return "<f8";
    case OP_F16:
        return "<f2";
    case OP_U8:
        return "|u1";
    case OP_I8:
        return "|i1";
    case OP_BOOL:
        return "|b1";
    case OP_U16:
        return "<u2";
    case OP_I16:
        return "<i2";
    case OP_U32:
        return "<u4";
    case OP_I32:
        return "<i4";
    case OP_U64:
        return "<u8";
    case OP_I64:
        return "<i8";
    case OP_C64:
        return "<c8";
    case OP_C128:
        return "<c16";
    default:
        return NULL;
    }
}

size_t w__npy_header(enum op_type type, int rank, const int64_t *dims, char *dst, size_t room) {
    char shape[240], text[400];
    int at = 0;
    const char *descr = descr_of(type);
    if (!descr) return 0;
    shape[0] = 0;
    for (int i = 0; i < rank; i++)
        at += snprintf(shape + at, sizeof shape - (size_t)at, "%s%lld", i ? ", " : "",
                       (long long)dims[i]);
    int n =
        snprintf(text, sizeof text, "{'descr': '%s', 'fortran_order': False, 'shape': (%s%s), }",
                 descr, shape, rank == 1 ? "," : "");
    size_t total = (size_t)(10 + n + 1 + 63) / 64 * 64; /* the elements begin at a multiple of 64 */
    if (total > room) return 0;
    memset(dst, ' ', total);
    memcpy(dst, "\x93NUMPY\x01\x00", 8);
    dst[8] = (char)((total - 10) & 255);
    dst[9] = (char)((total - 10) >> 8);
    memcpy(dst + 10, text, (size_t)n);
    dst[total - 1] = '\n';
    return total;
}

static bool write_elements(FILE *f, const struct op_tensor *t) {
    const int64_t n = op_tensor_count(t);
    if (t->dtype != OP_BF16)
        return n == 0 || fwrite(t->data, op_type_size(t->dtype), (size_t)n, f) == (size_t)n;
    for (int64_t i = 0; i < n; i++) {
        float v = w__bf16_to_f32(((const uint16_t *)t->data)[i]);
        if (fwrite(&v, sizeof v, 1, f) != 1) return false;
    }
    return true;
}

bool w_npy_write(const char *path, const struct op_tensor *t, struct w_error *err) {
    char header[640], tmp[4200];
    size_t n = t->kind == OP_KIND_TENSOR
                   ? w__npy_header(t->dtype, t->rank, t->dims, header, sizeof header)
                   : 0;
    if (!n)
        return w_fail(err, W_UNSUPPORTED, "%s: %s has no NPY form", path,
                      t->kind == OP_KIND_TENSOR ? op_type_name(t->dtype) : "a sequence");
    if (snprintf(tmp, sizeof tmp, "%s.tmp", path) >= (int)sizeof tmp)
        return w_fail(err, W_OUTPUT_FAILED, "the path %.100s… is too long", path);
    FILE *f = fopen(tmp, "wbe");
    if (!f) return w_fail(err, W_OUTPUT_FAILED, "%s cannot be written: %s", tmp, strerror(errno));
    bool good = fwrite(header, n, 1, f) == 1 && write_elements(f, t) && !fflush(f);
    int why = errno;
    if (fclose(f)) good = false;
    if (good && !rename(tmp, path)) return true;
    if (good) why = errno;
    unlink(tmp);
    return w_fail(err, W_OUTPUT_FAILED, "%s cannot be written: %s", path, strerror(why));
}

/* --- as a source of rows ---------------------------------------------------------------------- */

static bool is(const uint8_t *head, size_t n) {
    return w_npy_is(head, n);
}

static bool open_source(struct w_source *s, struct w_error *err) {
    size_t n = s->bytes < HEADER_BYTES_MAX + 12 ? (size_t)s->bytes : HEADER_BYTES_MAX + 12;
    uint8_t *head = malloc(n + 1);
    struct npy *npy = s->state = malloc(sizeof *npy);
    bool good = head && npy;
    if (!good) w_fail(err, W_NO_MEMORY, "out of memory");
    good = good && w__source_read(s, 0, head, n, err) && read_header(head, n, npy, err);
    free(head);
    if (!good) return false;
    if (npy->t.rank < 1)
        return w_fail(err, W_BAD_SHAPE, "%s holds a single number: there are no rows in it",
                      s->name);
    if (npy->fortran && npy->t.rank > 1)
        return w_fail(err, W_UNSUPPORTED,
                      "%s is in fortran_order: its rows are not in one piece. Save it again with "
                      "numpy.ascontiguousarray",
                      s->name);
    if (s->bytes - npy->data_at < (uint64_t)op_tensor_bytes(&npy->t))
        return w_fail(err, W_BAD_INPUT,
                      "%s is cut off: it needs %lld bytes behind its header, there are %llu",
                      s->name, (long long)op_tensor_bytes(&npy->t),
                      (unsigned long long)(s->bytes - npy->data_at));
    s->n_rows = (uint64_t)npy->t.dims[0];
    return true;
}

static void close_source(struct w_source *s) {
    free(s->state);
}

static enum w_read next(struct w_cursor *c, struct w_arena *arena, struct w_record *rec,
                        struct w_error *err) {
    const struct npy *n = c->source->state;
    const size_t size = op_type_size(n->t.dtype);
    struct op_tensor t = n->t;
    *rec = (struct w_record){.row = c->row, .value = {.type = W_TENSOR}};
    t.data = w_arena_alloc(arena, n->row_bytes);
    if (!t.data)
        return w_fail(err, W_TOO_LARGE, "row %llu of %s has %zu bytes, more than a row's memory",
                      (unsigned long long)c->row, c->source->name, n->row_bytes),
               W_READ_FAILED;
    if (!w__source_read(c->source, n->data_at + c->row * n->row_bytes, t.data, n->row_bytes, err))
        return W_READ_FAILED;
    c->row++;
    memmove(t.dims, t.dims + 1, (size_t)(t.rank - 1) * sizeof *t.dims);
    t.rank--;
    if (n->swap) swap_bytes(t.data, n->row_bytes / size, size);
    rec->value.tensor = t;
    return check_bools(&t, err) ? W_READ_ROW : W_READ_BAD;
}

static const struct w_format desc = {.name = "npy",
                                     .extensions = " npy ",
                                     .is = is,
                                     .open = open_source,
                                     .close = close_source,
                                     .next = next};
W_FORMAT(desc);
