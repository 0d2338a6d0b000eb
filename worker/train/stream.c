/* stream.c: rows that stay in their files and are read when a batch asks for them: pictures of a
 * folder, and NPY files that are more than data.memory_mb. NPY is read with pread, not mapped: a
 * file that is cut while a training runs is then an error, and not a signal. */
#include <openssl/evp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "worker/data/data.h"
#include "worker/pipeline/pipeline.h"
#include "worker/train/train.h"

#define ROW_BYTES_MAX ((size_t)1 << 30)

struct stream {
    struct w_reader base;
    struct w_source *source;
    struct w_arena arena;
    struct w_pipeline *steps; /* of files; NULL: rows are tensors */
    struct w_row *row;
    int64_t *which; /* the file of each row; NULL: all of them are rows */
    int64_t bytes;  /* of a row that steps make */
    struct w_array shape;
};

static void free_stream(struct w_reader *r) {
    struct stream *s = (struct stream *)r;
    w_source_close(s->source);
    w_row_destroy(s->row);
    w_pipeline_destroy(s->steps);
    w_arena_finish(&s->arena);
    free(s->which);
    free(s);
}

/* What the steps make of a file: the bytes of an image, or the elements of a tensor. */
static bool through_steps(struct stream *s, const struct w_record *r, void *dst,
                          struct w_error *err) {
    struct w_input in = {.kind = W_INPUT_VALUE, .value = &r->value};
    w_row_reset(s->row);
    if (w_pipeline_before(s->steps, s->row, &in, err) != W_NEXT_DONE)
        return w_fail_in(err, "%s: ", r->name);
    const struct w_value *v = &s->row->value;
    const void *from = NULL;
    int64_t bytes = 0;
    if (v->type == W_IMAGE) {
        from = v->image.pixels;
        bytes = (int64_t)v->image.w * v->image.h * v->image.channels;
    } else if (v->type == W_TENSOR) {
        from = v->tensor.data;
        bytes = op_tensor_bytes(&v->tensor);
    }
    if (bytes != s->bytes)
        return w_fail(err, W_INTERNAL, "%s: it became %lld bytes, %lld were expected", r->name,
                      (long long)bytes, (long long)s->bytes);
    memcpy(dst, from, (size_t)bytes);
    return true;
}

static bool read_row(struct w_reader *r, int64_t row, void *dst, struct w_error *err) {
    struct stream *s = (struct stream *)r;
    struct w_record rec;
    struct w_cursor *c = w_cursor_open(s->source, (uint64_t)(s->which ? s->which[row] : row), err);
    bool ok = c && w_cursor_next(c, &s->arena, &rec, err) == W_READ_ROW;
    if (ok && s->steps) {
        ok = through_steps(s, &rec, dst, err);
    } else if (ok) {
        int64_t count = op_tensor_count(&rec.value.tensor);
        ok = count == s->shape.elements ||
             w_fail(err, W_BAD_SHAPE, "row %lld has %lld elements, %lld are expected",
                    (long long)row, (long long)count, (long long)s->shape.elements);
        if (ok) w__train_convert(&rec.value.tensor, count, dst);
    }
    w_cursor_close(c);
    w_arena_reset(&s->arena);
    return ok;
}

static struct stream *new_stream(const char *file, const struct w_source_options *o,
                                 struct w_error *err) {
    struct stream *s = calloc(1, sizeof *s);
    if (!s) return w_fail(err, W_NO_MEMORY, "out of memory"), NULL;
    s->base.read = read_row;
    s->base.free = free_stream;
    w_arena_init(&s->arena, ROW_BYTES_MAX);
    s->source = w_source_open(file, o, err);
    if (s->source) return s;
    free_stream(&s->base);
    return NULL;
}

bool w__train_stream_npy(const char *file, const char *where, struct w_array *dst,
                         struct w_error *err) {
    const struct w_source_options o = {.name = where, .format = "npy", .header = -1};
    struct stream *s = new_stream(file, &o, err);
    struct w_record rec;
    if (!s) return false;
    struct w_cursor *c = w_cursor_open(s->source, 0, err);
    bool ok = c && w_cursor_next(c, &s->arena, &rec, err) == W_READ_ROW;
    struct op_tensor all = rec.value.tensor;
    if (ok) { /* a row is a tensor without the dimension of rows */
        memmove(all.dims + 1, all.dims, sizeof *all.dims * (OP_RANK_MAX - 1));
        all.dims[0] = 1;
        all.rank++;
        ok = w__train_shape_rows(&all, where, dst, err);
        dst->n = (int64_t)w_source_rows(s->source);
        dst->reader = &s->base;
        s->shape = *dst;
    }
    w_cursor_close(c);
    w_arena_reset(&s->arena);
    if (!ok) {
        dst->reader = NULL;
        free_stream(&s->base);
    }
    return ok;
}

/* --- files ---------------------------------------------------------------------------------------
 */

/* Takes the label of each file, and notes which files are rows; digest: of their names and bytes. */
static bool walk_files(struct stream *s, const struct w_table *t, struct w_words *words,
                       struct w_array *x, struct w_error *err) {
    EVP_MD_CTX *md = EVP_MD_CTX_new();
    struct w_cursor *c = w_cursor_open(s->source, 0, err);
    struct w_record r;
    uint8_t sum[EVP_MAX_MD_SIZE];
    enum w_read got = W_READ_FAILED;
    s->which = malloc((size_t)w_source_rows(s->source) * sizeof *s->which + 1);
    bool ok = c && ((s->which && md && EVP_DigestInit_ex(md, EVP_sha256(), NULL)) ||
                    w_fail(err, W_NO_MEMORY, "out of memory"));
    while (ok && (got = w_cursor_next(c, &s->arena, &r, err)) == W_READ_ROW) {
        int take = w__train_label(t, r.name, words, err);
        ok = take >= 0;
        if (take > 0) {
            EVP_DigestUpdate(md, r.name, strlen(r.name) + 1);
            EVP_DigestUpdate(md, r.value.span.ptr, r.value.span.len);
            s->which[x->n++] = (int64_t)r.row;
        }
        w_arena_reset(&s->arena);
        if (ok && t->files->cancel && __atomic_load_n(t->files->cancel, __ATOMIC_RELAXED))
            ok = w_fail(err, "cancelled", "cancelled while reading %s", t->path);
    }
    ok = ok && got == W_READ_END;
    if (ok) EVP_DigestFinal_ex(md, sum, NULL);
    for (int i = 0; ok && i < 32; i++) snprintf(x->digest + 2 * i, 3, "%02x", sum[i]);
    w_cursor_close(c);
    EVP_MD_CTX_free(md);
    return ok;
}

/* Reads all rows into memory where they fit, and lets the files go. */
static bool take_in(const struct w_table *t, struct w_array *x, struct w_error *err) {
    struct w_reader *r = x->reader;
    int64_t n = x->n;
    size_t bytes;
    if (__builtin_mul_overflow((size_t)n, (size_t)x->elements * op_type_size(x->dtype), &bytes) ||
        bytes > t->files->memory_bytes)
        return true;
    x->reader = NULL;
    x->n = 0;
    bool ok = true;
    for (int64_t i = 0; ok && i < n; i++) {
        void *dst = w__array_add(x, t->files, err);
        ok = dst && r->read(r, i, dst, err);
        if (ok && t->files->cancel && __atomic_load_n(t->files->cancel, __ATOMIC_RELAXED))
            ok = w_fail(err, "cancelled", "cancelled while reading %s", t->path);
    }
    r->free(r);
    return ok;
}

bool w__train_stream_files(const struct w_table *t, const char *folder, const char *format,
                           const char *steps, struct w_array *x, struct w_words *words,
                           struct w_error *err) {
    const struct w_source_options o = {.name = t->path, .format = format, .header = -1};
    struct stream *s = new_stream(folder, &o, err);
    if (!s) return w_fail_in(err, "%s: ", t->where);
    s->bytes = x->elements * (int64_t)op_type_size(x->dtype);
    s->steps = w_pipeline_parse(steps, strlen(steps), NULL, NULL, err);
    s->row = w_row_create(ROW_BYTES_MAX);
    if (!s->steps || !s->row || !walk_files(s, t, words, x, err) ||
        !w__train_no_folder_is_empty(t, folder, words, err)) {
        free_stream(&s->base);
        return w_fail_in(err, "%s: ", t->where);
    }
    x->reader = &s->base;
    return take_in(t, x, err) || w_fail_in(err, "%s: ", t->where);
}
