/* data.c: a set of the spec ("train", "validation", "test") becomes arrays of rows.
 *
 * The format is told by content: NPY and IDX by their first bytes (gzip is unpacked first, into
 * memory), JSONL and CSV by name and first character, a folder is one of folders of pictures. Rows
 * keep the type they came in (bytes stay bytes); batches convert. What is wrong in the data is
 * told by row, before anything is computed. */
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

void *w__train_array_row(struct w_array *a, int64_t *room, size_t bytes_max, struct w_error *err) {
    size_t row = (size_t)a->elements * op_type_size(a->dtype), bytes;
    if (a->n == *room) {
        int64_t more = *room ? *room * 2 : 256;
        if (__builtin_mul_overflow((size_t)more, row ? row : 1, &bytes) || bytes / 2 > bytes_max) {
            w_fail(err, W_TOO_LARGE, "the rows are more than %zu MB of memory", bytes_max >> 20);
            return NULL;
        }
        void *grown = realloc(a->data, bytes);
        if (!grown)
            return w_fail(err, W_NO_MEMORY, "no memory for %zu MB of rows", bytes >> 20), NULL;
        a->data = grown;
        *room = more;
    }
    return (char *)a->data + (size_t)a->n++ * row;
}

bool w__train_words_add(struct w_words *w, const char *text, size_t len, struct w_error *err) {
    if (w->n == w->room) {
        int64_t room = w->room ? w->room * 2 : 256;
        char **grown = realloc(w->items, (size_t)room * sizeof *grown);
        if (!grown) return w_fail(err, W_NO_MEMORY, "no memory for labels");
        w->items = grown;
        w->room = room;
    }
    w->items[w->n] = strndup(text, len);
    return w->items[w->n++] != NULL || w_fail(err, W_NO_MEMORY, "no memory for labels");
}

void w__train_words_finish(struct w_words *w) {
    for (int64_t i = 0; i < w->n; i++) free(w->items[i]);
    free(w->items);
    *w = (struct w_words){0};
}

/* --- labels ------------------------------------------------------------------------------------
 */

static int by_text(const void *a, const void *b) {
    return strcmp(*(char *const *)a, *(char *const *)b);
}

/* The words of all rows, sorted, each once. */
static bool own_names(const struct w_words *w, struct w_set *s, struct w_error *err) {
    char **sorted = malloc((size_t)w->n * sizeof *sorted + 1);
    if (!sorted) return w_fail(err, W_NO_MEMORY, "no memory for labels");
    memcpy(sorted, w->items, (size_t)w->n * sizeof *sorted);
    qsort(sorted, (size_t)w->n, sizeof *sorted, by_text);
    s->names = calloc((size_t)w->n + 1, sizeof *s->names);
    bool ok = s->names != NULL;
    for (int64_t i = 0; i < w->n && ok; i++)
        if (i == 0 || strcmp(sorted[i], sorted[i - 1]))
            ok = (s->names[s->n_names++] = strdup(sorted[i])) != NULL;
    free(sorted);
    return ok || w_fail(err, W_NO_MEMORY, "no memory for labels");
}

static bool number_words(const struct w_words *w, const char *where, const struct w_set *like,
                         struct w_set *s, struct w_error *err) {
    if (!like && !own_names(w, s, err)) return false;
    char *const *names = like ? like->names : s->names;
    int64_t n = like ? like->n_names : s->n_names;
    s->y = (struct w_array){.dtype = OP_I64, .n = w->n, .elements = 1};
    int64_t *y = s->y.data = malloc((size_t)w->n * sizeof *y + 1);
    if (!y) return w_fail(err, W_NO_MEMORY, "no memory for labels");
    for (int64_t i = 0; i < w->n; i++) {
        char **hit = n ? bsearch(&w->items[i], names, (size_t)n, sizeof *names, by_text) : NULL;
        if (!hit)
            return w_fail(err, W_BAD_INPUT,
                          "%s: row %lld has the label \"%.60s\", which the training "
                          "rows do not have",
                          where, (long long)i, w->items[i]);
        y[i] = hit - names;
    }
    return true;
}

/* --- arrays ------------------------------------------------------------------------------------
 */

/* A whole tensor as rows; numbers of other types become f32 (or i64 where they are whole). */
static bool tensor_rows(const struct op_tensor *t, const char *where, size_t bytes_max,
                        struct w_array *dst, struct w_error *err) {
    *dst = (struct w_array){.rank = t->rank - 1, .n = t->rank ? t->dims[0] : 0, .elements = 1};
    if (t->rank < 1)
        return w_fail(err, W_BAD_SHAPE, "%s is a single number, rows are expected", where);
    for (int i = 1; i < t->rank; i++) dst->elements *= dst->dims[i - 1] = t->dims[i];
    int64_t count = op_tensor_count(t);
    if (count < 0) return w_fail(err, W_TOO_LARGE, "%s has an impossible shape", where);
    switch (t->dtype) {
    case OP_U8:
    case OP_F32:
    case OP_I64:
        dst->dtype = t->dtype;
        break;
    case OP_BOOL:
        dst->dtype = OP_U8;
        break;
    case OP_I8:
    case OP_I16:
    case OP_U16:
    case OP_I32:
    case OP_U32:
        dst->dtype = OP_I64;
        break;
    case OP_F64:
        dst->dtype = OP_F32;
        break;
    default:
        return w_fail(err, W_BAD_DTYPE, "%s is %s; whole numbers, f32 and f64 are read", where,
                      op_type_name(t->dtype));
    }
    size_t bytes = (size_t)count * op_type_size(dst->dtype);
    if (bytes > bytes_max)
        return w_fail(err, W_TOO_LARGE, "%s has %zu MB, at most %zu MB are read", where,
                      bytes >> 20, bytes_max >> 20);
    dst->data = malloc(bytes + 1);
    if (!dst->data) return w_fail(err, W_NO_MEMORY, "no memory for %s", where);
    if (op_type_size(t->dtype) == op_type_size(dst->dtype)) {
        memcpy(dst->data, t->data, bytes);
        return true;
    }
    int64_t *whole = dst->data;
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
            ((float *)dst->data)[i] = (float)((const double *)t->data)[i];
        }
    return true;
}

/* NaN and infinity, by row and place. */
static bool all_finite(const struct w_array *a, const char *where, struct w_error *err) {
    int64_t count = a->n * a->elements;
    for (int64_t i = 0; i < count; i++) {
        double v = a->dtype == OP_F32   ? (double)((const float *)a->data)[i]
                   : a->dtype == OP_F64 ? ((const double *)a->data)[i]
                                        : 0;
        if (!isfinite(v))
            return w_fail(err, W_BAD_INPUT, "%s: row %lld, element %lld is %s", where,
                          (long long)(i / a->elements), (long long)(i % a->elements),
                          isnan(v) ? "missing or no number" : "infinite");
    }
    return true;
}

/* --- opening -----------------------------------------------------------------------------------
 */

struct input {
    int fd;
    bool is_folder;
    uint8_t head[16];
    size_t n_head;
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
    }
    snprintf(in->file, sizeof in->file, "/proc/self/fd/%d", in->fd);
    return true;
}

static bool read_npy(const struct input *in, const char *where, size_t bytes_max,
                     struct w_array *dst, struct w_error *err) {
    struct w_arena arena;
    struct op_tensor t;
    w_arena_init(&arena, bytes_max + (1 << 20));
    bool ok = w_npy_read_file(in->file, &arena, &t, err)
                  ? tensor_rows(&t, where, bytes_max, dst, err)
                  : w_fail_in(err, "%s: ", where);
    w_arena_finish(&arena);
    return ok;
}

static bool read_idx(const struct input *in, const char *where, struct w_array *dst,
                     struct w_error *err) {
    struct stat st;
    if (fstat(in->fd, &st) || st.st_size <= 0)
        return w_fail(err, W_BAD_INPUT, "%s is empty", where);
    void *map = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, in->fd, 0);
    if (map == MAP_FAILED) return w_fail(err, W_NO_MEMORY, "no memory to read %s", where);
    bool ok = w__train_read_idx(map, (size_t)st.st_size, where, dst, err);
    munmap(map, (size_t)st.st_size);
    return ok;
}

/* x of a file that may hold y too. *both: y and words were looked for. */
static bool read_any(const struct w_table *t, const char *what, struct w_array *x,
                     struct w_array *y, struct w_words *words, struct w_error *err) {
    struct input in;
    char where[200];
    snprintf(where, sizeof where, "%s.%s (%.100s)", t->where, what, t->path);
    if (!open_input(t->files, t->path, &in, err)) return w_fail_in(err, "%s.%s: ", t->where, what);
    char first = 0;
    for (size_t i = 0; i < in.n_head && !first; i++)
        if (!strchr(" \t\r\n", in.head[i])) first = (char)in.head[i];
    bool ok;
    if (in.is_folder)
        ok = strcmp(what, "x") == 0 ? w__train_read_images(t, in.file, x, words, err)
                                    : w_fail(err, W_BAD_INPUT, "%s is a folder", where);
    else if (w_npy_is(in.head, in.n_head))
        ok = read_npy(&in, where, t->files->bytes_max, x, err);
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

/* --- a set -------------------------------------------------------------------------------------
 */

static bool fit_shape(struct w_array *x, const struct w_set_wish *wish, const char *where,
                      struct w_error *err) {
    int64_t wanted = 1;
    char text[160];
    size_t n = 0;
    if (!wish->rank) return true;
    for (int i = 0; i < wish->rank; i++) wanted *= wish->dims[i];
    if (wanted == x->elements) { /* 28×28 is 28×28×1, 64 columns are 8×8×1 */
        x->rank = wish->rank;
        memcpy(x->dims, wish->dims, sizeof x->dims);
        return true;
    }
    for (int i = 0; i < x->rank && n + 24 < sizeof text; i++)
        n += (size_t)snprintf(text + n, sizeof text - n, "%s%lld", i ? ", " : "",
                              (long long)x->dims[i]);
    text[n] = 0;
    return w_fail(err, W_BAD_SHAPE,
                  "%s: a row of x is [%s], %lld elements; model.input_shape has %lld", where, text,
                  (long long)x->elements, (long long)wanted);
}

static bool whole_numbers(struct w_array *x, const char *where, struct w_error *err) {
    int64_t count = x->n * x->elements, *dst = malloc((size_t)count * sizeof *dst + 1);
    if (!dst) return w_fail(err, W_NO_MEMORY, "no memory for %s", where);
    for (int64_t i = 0; i < count; i++) {
        double v = x->dtype == OP_F32  ? (double)((const float *)x->data)[i]
                   : x->dtype == OP_U8 ? ((const uint8_t *)x->data)[i]
                                       : (double)((const int64_t *)x->data)[i];
        dst[i] = (int64_t)v;
        if ((double)dst[i] == v) continue;
        free(dst);
        return w_fail(err, W_BAD_INPUT,
                      "%s: row %lld of x holds %g, the Embedding takes whole numbers", where,
                      (long long)(i / x->elements), v);
    }
    free(x->data);
    x->data = dst;
    x->dtype = OP_I64;
    return true;
}

static bool read_weights(json_t *json, const struct w_table *t, struct w_set *dst,
                         struct w_error *err) {
    struct w_table own = *t;
    struct w_words words = {0};
    if (!json) return true;
    own.path = json_string_value(json);
    if (!own.path) return w_fail(err, W_BAD_SPEC, "%s.sample_weight must be a path", t->where);
    bool ok = read_any(&own, "sample_weight", &dst->weight, NULL, &words, err);
    w__train_words_finish(&words);
    if (!ok) return false;
    if (dst->weight.elements != 1 || dst->weight.n != dst->x.n)
        return w_fail(err, W_BAD_SHAPE,
                      "%s.sample_weight has %lld rows of %lld, %lld of 1 are expected", t->where,
                      (long long)dst->weight.n, (long long)dst->weight.elements,
                      (long long)dst->x.n);
    return all_finite(&dst->weight, "sample_weight", err);
}

bool w_train_set_load(json_t *json, const char *where, const struct w_train_files *files,
                      const struct w_set_wish *wish, struct w_set *dst, struct w_error *err) {
    struct given {
        json_t *x, *y, *target, *header, *columns, *fields, *delimiter, *weight;
    } g = {0};
    /* clang-format off */
    static const struct w_param params[] = {
        {.name = "x", .kind = W_PARAM_JSON, .offset = offsetof(struct given, x), .required = true, .help = "a path"},
        {.name = "y", .kind = W_PARAM_JSON, .offset = offsetof(struct given, y)},
        {.name = "target", .kind = W_PARAM_JSON, .offset = offsetof(struct given, target)},
        {.name = "header", .kind = W_PARAM_JSON, .offset = offsetof(struct given, header)},
        {.name = "columns", .kind = W_PARAM_JSON, .offset = offsetof(struct given, columns)},
        {.name = "fields", .kind = W_PARAM_JSON, .offset = offsetof(struct given, fields)},
        {.name = "delimiter", .kind = W_PARAM_JSON, .offset = offsetof(struct given, delimiter)},
        {.name = "sample_weight", .kind = W_PARAM_JSON, .offset = offsetof(struct given, weight)},
        {0}};
    /* clang-format on */
    *dst = (struct w_set){0};
    if (!w__train_params(params, json, &g, where, err)) return false;
    struct w_table t = {
        .where = where, .path = json_string_value(g.x), .json = json, .files = files, .wish = wish};
    struct w_words words = {0}, none = {0};
    if (!t.path || (g.y && !json_is_string(g.y)))
        return w_fail(err, W_BAD_SPEC, "%s: x and y must be paths", where);
    bool ok = read_any(&t, "x", &dst->x, &dst->y, &words, err);
    dst->is_image = ok && dst->x.dtype == OP_U8 && words.n && !g.target && !g.fields;
    if (ok && g.y) {
        struct w_array extra = {0};
        free(dst->y.data);
        w__train_words_finish(&words);
        dst->y = (struct w_array){0};
        t.path = json_string_value(g.y);
        ok = read_any(&t, "y", &dst->y, &extra, &none, err);
        free(extra.data);
        w__train_words_finish(&none);
    }
    if (ok && words.n) ok = number_words(&words, where, wish->like, dst, err);
    w__train_words_finish(&words);
    if (ok && dst->x.n == 0) ok = w_fail(err, W_BAD_INPUT, "%s has no rows", where);
    if (ok && !dst->y.data)
        ok = w_fail(err, W_BAD_SPEC,
                    "%s has x and no targets: give \"y\", or \"target\" of a CSV, or "
                    "\"fields\" of JSONL",
                    where);
    if (ok && dst->y.n != dst->x.n)
        ok = w_fail(err, W_BAD_SHAPE, "%s: x has %lld rows, y has %lld", where, (long long)dst->x.n,
                    (long long)dst->y.n);
    ok = ok && (dst->is_image || fit_shape(&dst->x, wish, where, err)) &&
         all_finite(&dst->x, where, err) && all_finite(&dst->y, where, err) &&
         read_weights(g.weight, &t, dst, err) &&
         (wish->dtype != OP_I64 || whole_numbers(&dst->x, where, err));
    if (!ok) w_train_set_finish(dst);
    return ok;
}

void w_train_set_finish(struct w_set *s) {
    if (!s->part) {
        free(s->x.data);
        free(s->y.data);
        free(s->weight.data);
        for (int64_t i = 0; i < s->n_names; i++) free(s->names[i]);
        free(s->names);
    }
    *s = (struct w_set){0};
}

/* --- parts -------------------------------------------------------------------------------------
 */

static void part_of(const struct w_array *src, int64_t first, int64_t n, struct w_array *dst) {
    *dst = *src;
    if (!src->data) return;
    dst->n = n;
    dst->data = (char *)src->data + (size_t)(first * src->elements) * op_type_size(src->dtype);
}

void w_train_set_part(const struct w_set *src, int64_t first, int64_t n, struct w_set *dst) {
    struct w_set s = *src;
    part_of(&src->x, first, n, &s.x);
    part_of(&src->y, first, n, &s.y);
    part_of(&src->weight, first, n, &s.weight);
    s.part = true;
    *dst = s;
}

static void swap_rows(struct w_array *a, int64_t i, int64_t j) {
    size_t row = (size_t)a->elements * op_type_size(a->dtype);
    if (!a->data || i == j) return;
    char *p = (char *)a->data + (size_t)i * row, *q = (char *)a->data + (size_t)j * row;
    for (size_t k = 0; k < row; k++) {
        char c = p[k];
        p[k] = q[k];
        q[k] = c;
    }
}

bool w_train_set_split(struct w_set *s, double part, uint64_t seed, struct w_set *rest,
                       struct w_error *err) {
    int64_t n = s->x.n, cut = (int64_t)llround((double)n * part);
    if (cut < 1 || cut >= n)
        return w_fail(err, W_BAD_SPEC, "data.test_split of %lld rows leaves one side empty",
                      (long long)n);
    for (int64_t i = n - 1; i > 0; i--) {
        int64_t j =
            (int64_t)(w__train_mix(w__train_mix(seed ^ 0x7e57) + (uint64_t)i) % (uint64_t)(i + 1));
        swap_rows(&s->x, i, j);
        swap_rows(&s->y, i, j);
        swap_rows(&s->weight, i, j);
    }
    w_train_set_part(s, n - cut, cut, rest);
    return true;
}
