/* data.c: a set of the spec ("train", "validation", "test") becomes arrays of rows.
 *
 * The format is told by content: NPY and IDX by their first bytes (gzip is unpacked first, into
 * memory), JSONL and CSV by name and first character, a folder is one of folders of pictures. Rows
 * keep the type they came in (bytes stay bytes); batches convert. What is wrong in the data is
 * told by row, before anything is computed. A NPY file or a folder of pictures that is more than
 * files->memory_bytes stays where it is and is read row by row (stream.c). */
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "worker/data/data.h"
#include "worker/train/train.h"

#define CLASSES_MAX (1 << 20)

/* --- arrays ------------------------------------------------------------------------------------
 */

/* Numbers of other types become f32 (or i64 where they are whole). */

/* The type that rows of t are kept in; OP_UNDEFINED: none. */
static enum op_type kept_type(enum op_type t) {
    switch (t) {
    case OP_U8:
    case OP_BOOL:
        return OP_U8;
    case OP_F32:
    case OP_F64:
        return OP_F32;
    case OP_I8:
    case OP_I16:
    case OP_U16:
    case OP_I32:
    case OP_U32:
    case OP_I64:
        return OP_I64;
    default:
        return OP_UNDEFINED;
    }
}

void w__train_convert(const struct op_tensor *t, int64_t count, void *dst) {
    int64_t *whole = dst;
    if (op_type_size(t->dtype) == op_type_size(kept_type(t->dtype))) {
        memcpy(dst, t->data, (size_t)count * op_type_size(t->dtype));
        return;
    }
    for (int64_t i = 0; i < count; i++) switch (t->dtype) {
        case OP_I8:
            whole[i] = ((const int8_t *)t->data)[i];
            break;
        case OP_I16:
            whole[i] = ((const int16_t *)t->data)[i];
            break;
        case OP_U16:
            whole[i] = ((const uint16_t *)t->data)[i];
            break;
        case OP_I32:
            whole[i] = ((const int32_t *)t->data)[i];
            break;
        case OP_U32:
            whole[i] = ((const uint32_t *)t->data)[i];
            break;
        default:
            ((float *)dst)[i] = (float)((const double *)t->data)[i];
        }
}

bool w__train_shape_rows(const struct op_tensor *t, const char *where, struct w_array *dst,
                         struct w_error *err) {
    *dst = (struct w_array){.rank = t->rank - 1, .n = t->rank ? t->dims[0] : 0, .elements = 1};
    if (t->rank < 1)
        return w_fail(err, W_BAD_SHAPE, "%s is a single number, rows are expected", where);
    for (int i = 1; i < t->rank; i++) dst->elements *= dst->dims[i - 1] = t->dims[i];
    int64_t count = op_tensor_count(t);
    if (count < 0) return w_fail(err, W_TOO_LARGE, "%s has an impossible shape", where);
    dst->dtype = kept_type(t->dtype);
    return dst->dtype != OP_UNDEFINED ||
           w_fail(err, W_BAD_DTYPE, "%s is %s; whole numbers, f32 and f64 are read", where,
                  op_type_name(t->dtype));
}

static bool tensor_rows(const struct op_tensor *t, const char *where, size_t bytes_max,
                        struct w_array *dst, struct w_error *err) {
    if (!w__train_shape_rows(t, where, dst, err)) return false;
    int64_t count = op_tensor_count(t);
    size_t bytes = (size_t)count * op_type_size(dst->dtype);
    if (bytes > bytes_max)
        return w_fail(err, W_TOO_LARGE, "%s has %zu MB, at most %zu MB are read", where,
                      bytes >> 20, bytes_max >> 20);
    dst->data = malloc(bytes + 1);
    if (!dst->data) return w_fail(err, W_NO_MEMORY, "no memory for %s", where);
    w__train_convert(t, count, dst->data);
    return true;
}

/* NaN and infinity, by row and place. */
static bool all_finite(const struct w_array *a, const char *where, struct w_error *err) {
    if (a->dtype != OP_F32 && a->dtype != OP_F64) return true;
    void *scratch = malloc((size_t)a->elements * op_type_size(a->dtype) + 1);
    bool ok = scratch != NULL || w_fail(err, W_NO_MEMORY, "out of memory");
    for (int64_t i = 0; ok && i < a->n; i++) {
        const void *row = w__array_row(a, i, scratch, err);
        ok = row != NULL;
        for (int64_t k = 0; ok && k < a->elements; k++) {
            double v = w__array_number(a, row, k);
            if (!isfinite(v))
                ok = w_fail(err, W_BAD_INPUT, "%s: row %lld, element %lld is %s", where,
                            (long long)i, (long long)k,
                            isnan(v) ? "missing or no number" : "infinite");
        }
    }
    free(scratch);
    return ok;
}

/* --- opening -----------------------------------------------------------------------------------
 */

struct input {
    int fd;
    bool is_folder;
    uint8_t head[16];
    size_t n_head, bytes;
    char file[64]; /* /proc/self/fd/N */
};

static bool has_end(const char *path, const char *end) {
    size_t n = strlen(path), m = strlen(end);
    if (n > 3 && strcasecmp(path + n - 3, ".gz") == 0) n -= 3;
    return n >= m && strncasecmp(path + n - m, end, m) == 0;
}

static bool open_input(const struct w_train_files *files, const char *path, struct input *in,
                       struct w_error *err) {
    *in = (struct input){.fd = files->open(files->user, path, &in->is_folder, err)};
    if (in->fd < 0) return false;
    struct stat st;
    in->is_folder = fstat(in->fd, &st) == 0 && S_ISDIR(st.st_mode);
    if (!in->is_folder) {
        int plain = w__train_unpack(in->fd, path, files->bytes_max, err);
        close(in->fd);
        in->fd = plain;
        if (plain < 0) return false;
        ssize_t n = pread(plain, in->head, sizeof in->head, 0);
        in->n_head = n > 0 ? (size_t)n : 0;
        in->bytes = fstat(plain, &st) == 0 && st.st_size > 0 ? (size_t)st.st_size : 0;
    }
    snprintf(in->file, sizeof in->file, "/proc/self/fd/%d", in->fd);
    return true;
}

static bool read_npy(const struct w_table *t, const struct input *in, const char *where,
                     struct w_array *dst, struct w_error *err) {
    struct w_arena arena;
    struct op_tensor v;
    if (t->input && in->bytes > t->files->memory_bytes) /* targets and weights stay at hand */
        return w__train_stream_npy(in->file, where, dst, err);
    w_arena_init(&arena, t->files->bytes_max + (1 << 20));
    bool ok = w_npy_read_file(in->file, &arena, &v, err)
                  ? tensor_rows(&v, where, t->files->bytes_max, dst, err)
                  : w_fail_in(err, "%s: ", where);
    w_arena_finish(&arena);
    return ok;
}

static bool read_idx(const struct input *in, const char *where, struct w_array *dst,
                     struct w_error *err) {
    if (!in->bytes) return w_fail(err, W_BAD_INPUT, "%s is empty", where);
    void *map = mmap(NULL, in->bytes, PROT_READ, MAP_PRIVATE, in->fd, 0);
    if (map == MAP_FAILED) return w_fail(err, W_NO_MEMORY, "no memory to read %s", where);
    bool ok = w__train_read_idx(map, in->bytes, where, dst, err);
    munmap(map, in->bytes);
    return ok;
}

/* x of a file that may hold y too. y NULL: x alone. */
static bool read_any(const struct w_table *t, const char *what, struct w_array *x,
                     struct w_array *y, struct w_words *words, struct w_error *err) {
    struct input in;
    char where[200];
    snprintf(where, sizeof where, "%s.%s (%.100s)", t->where, what, t->path);
    if (!open_input(t->files, t->path, &in, err)) return w_fail_in(err, "%s.%s: ", t->where, what);
    char first = 0;
    for (size_t i = 0; i < in.n_head && !first; i++)
        if (!strchr(" \t\r\n", in.head[i])) first = (char)in.head[i];
    bool ok, table = has_end(t->path, ".csv") || has_end(t->path, ".tsv") ||
                     has_end(t->path, ".jsonl") || has_end(t->path, ".ndjson");
    if (in.is_folder && t->text && y)
        ok = w__train_read_texts(t, in.file, x, words, err);
    else if (in.is_folder && t->front && t->front->sound && y)
        ok = w__train_read_sounds(t, in.file, x, words, err);
    else if (t->text && !table && !in.is_folder)
        ok = w__train_read_lines(t, in.file, x, err);
    else if (in.is_folder)
        ok = t->input && y ? w__train_read_images(t, in.file, x, words, err)
                           : w_fail(err, W_BAD_INPUT, "%s is a folder", where);
    else if (w_npy_is(in.head, in.n_head))
        ok = read_npy(t, &in, where, x, err);
    else if (w__train_is_idx(in.head, in.n_head) && !has_end(t->path, ".csv"))
        ok = read_idx(&in, where, x, err);
    else if (has_end(t->path, ".jsonl") || has_end(t->path, ".ndjson") || first == '{' ||
             first == '[')
        ok = w__train_read_jsonl(t, in.file, x, y, words, err);
    else
        ok = w__train_read_csv(t, in.file, x, y, words, err);
    close(in.fd);
    return ok;
}

/* --- what an input wants -------------------------------------------------------------------------
 */

static bool fit_shape(struct w_array *x, const struct w_train_input *in, const char *where,
                      struct w_error *err) {
    char text[160] = "";
    size_t n = 0;
    if (in->elements == x->elements) { /* 28×28 is 28×28×1, 64 columns are 8×8×1 */
        x->rank = in->rank;
        memcpy(x->dims, in->dims, sizeof x->dims);
        return true;
    }
    for (int i = 0; i < x->rank && n + 24 < sizeof text; i++)
        n += (size_t)snprintf(text + n, sizeof text - n, "%s%lld", i ? ", " : "",
                              (long long)x->dims[i]);
    return w_fail(err, W_BAD_SHAPE,
                  "%s: a row of \"%s\" is [%s], %lld elements; the model's input has %lld", where,
                  in->name, text, (long long)x->elements, (long long)in->elements);
}

/* Numbers for an Embedding, or another i64 input: whole, and within what it has. */
static bool whole_numbers(struct w_array *x, const struct w_train_input *in, const char *where,
                          struct w_error *err) {
    int64_t count = x->n * x->elements, *dst = NULL;
    if (x->reader)
        return w_fail(err, W_UNSUPPORTED,
                      "%s: \"%s\" takes whole numbers, and they are more than data.memory_mb",
                      where, in->name);
    if (x->dtype != OP_I64 && !(dst = malloc((size_t)count * sizeof *dst + 1)))
        return w_fail(err, W_NO_MEMORY, "no memory for %s", where);
    for (int64_t i = 0; i < count && dst; i++) {
        double v = w__array_number(x, x->data, i);
        dst[i] = (int64_t)v;
        if ((double)dst[i] == v) continue;
        free(dst);
        return w_fail(err, W_BAD_INPUT, "%s: row %lld of \"%s\" holds %g, it takes whole numbers",
                      where, (long long)(i / x->elements), in->name, v);
    }
    if (!dst) return true;
    struct w_array old = *x;
    x->data = dst;
    x->dtype = OP_I64;
    x->map = NULL;
    x->fd = 0;
    w__array_finish(&old);
    return true;
}

static bool check_input(struct w_array *x, const struct w_train_input *in, bool is_image,
                        const char *where, struct w_error *err) {
    if (x->dtype == OP_STRING || x->windows) return true;
    return (is_image || fit_shape(x, in, where, err)) && all_finite(x, where, err) &&
           (in->dtype != OP_I64 || whole_numbers(x, in, where, err));
}

/* --- a set -------------------------------------------------------------------------------------
 */

struct given {
    json_t *x, *y, *target, *header, *columns, *fields, *delimiter, *weight, *classes, *pattern, *separator,
        *only, *except;
    int32_t length, stride;
    bool categorical;
};

static bool read_weights(json_t *json, const struct w_table *t, struct w_set *dst,
                         struct w_error *err) {
    struct w_table own = *t;
    struct w_words words = {0};
    if (!json) return true;
    own.path = json_string_value(json);
    own.columns = own.target = NULL;
    if (!own.path) return w_fail(err, W_BAD_SPEC, "%s.sample_weight must be a path", t->where);
    bool ok = read_any(&own, "sample_weight", &dst->weight, NULL, &words, err);
    w__train_words_finish(&words);
    if (!ok) return false;
    if (dst->weight.elements != 1 || dst->weight.n != dst->x[0].n)
        return w_fail(err, W_BAD_SHAPE,
                      "%s.sample_weight has %lld rows of %lld, %lld of 1 are expected", t->where,
                      (long long)dst->weight.n, (long long)dst->weight.elements,
                      (long long)dst->x[0].n);
    return all_finite(&dst->weight, "sample_weight", err);
}

/* A file of text for each label: a row a line. */
static bool read_classes(const struct given *g, struct w_table *t, struct w_set *dst,
                         struct w_words *words, struct w_error *err) {
    const char *label;
    json_t *path;
    if (!t->text || !json_is_object(g->classes) || g->x || g->y)
        return w_fail(err, W_BAD_SPEC,
                      "%s.classes must be {label: path of a text file}, in the place of x and y, of a "
                      "model with TextVectorization",
                      t->where);
    json_object_foreach(g->classes, label, path) {
        struct input in;
        t->path = json_string_value(path);
        if (!t->path) return w_fail(err, W_BAD_SPEC, "%s.classes.%.60s must be a path", t->where, label);
        if (!open_input(t->files, t->path, &in, err) || in.is_folder) {
            bool folder = in.fd >= 0;
            if (folder) close(in.fd);
            return folder ? w_fail(err, W_BAD_INPUT, "%s.classes.%.60s is a folder", t->where, label)
                          : w_fail_in(err, "%s.classes.%.60s: ", t->where, label);
        }
        bool ok = w__train_read_lines(t, in.file, &dst->x[0], err);
        close(in.fd);
        while (ok && words->n < dst->x[0].n)
            ok = w__train_words_add(words, label, strlen(label), err);
        if (!ok) return false;
    }
    return true;
}

static bool read_windows(const struct given *g, struct w_table *t, struct w_set *dst,
                         struct w_error *err) {
    struct input in;
    t->path = json_string_value(g->x);
    if (!t->text || !t->path || g->y || g->length != t->input->elements)
        return w_fail(err, W_BAD_SPEC,
                      "%s.sequence_length is for a text file as x without y, of a model with "
                      "TextVectorization and an input of that length",
                      t->where);
    if (!open_input(t->files, t->path, &in, err)) return w_fail_in(err, "%s.x: ", t->where);
    bool ok = in.is_folder ? w_fail(err, W_BAD_INPUT, "%s.x is a folder", t->where)
                           : w__train_read_windows(t, in.file, t->front->words, t->front->max_tokens,
                                                   g->stride, &dst->x[0], &dst->y, err);
    close(in.fd);
    return ok;
}

/* x of input i: its path, or the path of all with the columns that are the input's. */
static bool read_input(const struct given *g, int i, struct w_table *t, struct w_set *dst,
                       struct w_words *words, struct w_error *err) {
    const struct w_train_input *in = t->input;
    t->text = t->front && t->front->words;
    if (g->length) return read_windows(g, t, dst, err);
    if (g->classes) return read_classes(g, t, dst, words, err);
    json_t *path = json_is_object(g->x) ? json_object_get(g->x, in->name) : g->x,
           *own = json_is_object(g->fields) ? json_object_get(g->fields, in->name) : NULL;
    t->path = json_string_value(path);
    if (!own && json_is_object(g->fields)) own = json_object_get(g->fields, "x");
    t->columns = own ? own : json_is_object(g->fields) ? NULL : g->fields ? g->fields : g->columns;
    t->target = i == 0 && !g->y ? g->target : NULL;
    if (!t->target && i == 0 && !g->y && json_is_object(g->fields))
        t->target = json_object_get(g->fields, "y");
    if (!t->path)
        return w_fail(err, W_BAD_SPEC,
                      !g->x                ? "%s.x is missing: a path of the rows of \"%s\""
                      : json_is_object(g->x) ? "%s.x must have a path for the input \"%s\""
                                           : "%s.x must be a path, or {input: path}: \"%s\" has none",
                      t->where, in->name);
    return read_any(t, "x", &dst->x[i], i == 0 ? &dst->y : NULL, words, err);
}

static bool read_y(const struct given *g, struct w_table *t, struct w_set *dst,
                   struct w_words *words, struct w_error *err) {
    if (!g->y) return true;
    t->path = json_string_value(g->y);
    if (!t->path) return w_fail(err, W_BAD_SPEC, "%s.y must be a path", t->where);
    w__array_finish(&dst->y);
    w__train_words_finish(words);
    t->columns = t->target = NULL;
    t->input = NULL;
    return read_any(t, "y", &dst->y, NULL, words, err);
}

static bool all_rows(const char *where, const struct w_set_wish *wish, struct w_set *dst,
                     struct w_error *err) {
    dst->n = dst->x[0].n;
    for (int i = 1; i < dst->n_x; i++)
        if (dst->x[i].n != dst->n)
            return w_fail(err, W_BAD_SHAPE, "%s: \"%s\" has %lld rows, \"%s\" has %lld", where,
                          wish->inputs[0].name, (long long)dst->n, wish->inputs[i].name,
                          (long long)dst->x[i].n);
    if (dst->n == 0) return w_fail(err, W_BAD_INPUT, "%s has no rows", where);
    if (!dst->y.data && !wish->no_targets)
        return w_fail(err, W_BAD_SPEC,
                      "%s has x and no targets: give \"y\", or \"target\" of a CSV, or "
                      "\"fields\" of JSONL",
                      where);
    if (dst->y.data && dst->y.n != dst->n)
        return w_fail(err, W_BAD_SHAPE, "%s: x has %lld rows, y has %lld", where, (long long)dst->n,
                      (long long)dst->y.n);
    dst->rows = malloc((size_t)dst->n * sizeof *dst->rows);
    if (!dst->rows) return w_fail(err, W_NO_MEMORY, "no memory for %s", where);
    for (int64_t i = 0; i < dst->n; i++) dst->rows[i] = i;
    return true;
}

static bool read_set(const struct given *g, struct w_table *t, const struct w_set_wish *wish,
                     struct w_set *dst, struct w_error *err) {
    struct w_words words = {0};
    const struct w_table plain = *t;
    bool ok = true;
    for (int i = 0; ok && i < wish->n_inputs; i++) {
        t->input = &wish->inputs[i];
        t->front = wish->fronts ? &wish->fronts[i] : NULL;
        dst->n_x = i + 1;
        ok = read_input(g, i, t, dst, &words, err);
    }
    dst->is_image = ok && dst->x[0].dtype == OP_U8 && words.n && !t->target;
    ok = ok && read_y(g, t, dst, &words, err) &&
         (!words.n || (wish->sequences
                           ? w__train_number_sequences(&words,
                                              g->separator ? json_string_value(g->separator) : " -",
                                              t->where, wish, dst, err)
                           : w__train_number_words(&words, t->where, wish->like, dst, err))) &&
         all_rows(t->where, wish, dst, err);
    for (int i = 0; ok && i < wish->n_inputs; i++)
        ok = check_input(&dst->x[i], &wish->inputs[i], dst->is_image, t->where, err);
    w__train_words_finish(&words);
    return ok && all_finite(&dst->y, t->where, err) && read_weights(g->weight, &plain, dst, err);
}

bool w_train_set_load(json_t *json, const char *where, const struct w_train_files *files,
                      const struct w_set_wish *wish, struct w_set *dst, struct w_error *err) {
    struct given g = {0};
    /* clang-format off */
    static const struct w_param params[] = {
        {.name = "x", .kind = W_PARAM_JSON, .offset = offsetof(struct given, x)},
        {.name = "y", .kind = W_PARAM_JSON, .offset = offsetof(struct given, y)},
        {.name = "target", .kind = W_PARAM_JSON, .offset = offsetof(struct given, target)},
        {.name = "header", .kind = W_PARAM_JSON, .offset = offsetof(struct given, header)},
        {.name = "columns", .kind = W_PARAM_JSON, .offset = offsetof(struct given, columns)},
        {.name = "fields", .kind = W_PARAM_JSON, .offset = offsetof(struct given, fields)},
        {.name = "delimiter", .kind = W_PARAM_JSON, .offset = offsetof(struct given, delimiter)},
        {.name = "classes", .kind = W_PARAM_JSON, .offset = offsetof(struct given, classes)},
        {.name = "categorical", .kind = W_PARAM_BOOL, .offset = offsetof(struct given, categorical)},
        {.name = "sequence_length", .kind = W_PARAM_INT, .offset = offsetof(struct given, length), .min = 0, .max = 1 << 24},
        {.name = "sequence_stride", .kind = W_PARAM_INT, .offset = offsetof(struct given, stride), .min = 1, .max = 1 << 24, .deflt = 1},
        {.name = "label_pattern", .kind = W_PARAM_JSON, .offset = offsetof(struct given, pattern)},
        {.name = "label_separator", .kind = W_PARAM_JSON, .offset = offsetof(struct given, separator)},
        {.name = "only", .kind = W_PARAM_JSON, .offset = offsetof(struct given, only)},
        {.name = "except", .kind = W_PARAM_JSON, .offset = offsetof(struct given, except)},
        {.name = "sample_weight", .kind = W_PARAM_JSON, .offset = offsetof(struct given, weight)},
        {0}};
    /* clang-format on */
    *dst = (struct w_set){0};
    if (!w__train_params(params, json, &g, where, err)) return false;
    if (g.separator && !json_is_string(g.separator))
        return w_fail(err, W_BAD_SPEC, "%s.label_separator must be a string; \"\" is every character",
                      where);
    struct w_table t = {.where = where,
                        .json = json,
                        .files = files,
                        .first = wish->first,
                        .labels_anyhow = g.categorical};
    if (read_set(&g, &t, wish, dst, err)) return true;
    w_train_set_finish(dst);
    return false;
}
