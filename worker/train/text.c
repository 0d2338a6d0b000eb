/* text.c: rows of text. A row stays text until it is in a batch, so the vocabulary can be made of
 * the training rows alone, whatever the splits are; a language model's one long sequence is turned
 * into numbers at once, and its windows are places in it. */
#include <openssl/evp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <fcntl.h>
#include <unistd.h>

#include "worker/data/data.h"
#include "worker/train/train.h"

static bool cancelled(const struct w_table *t, struct w_error *err) {
    return t->files->cancel && __atomic_load_n(t->files->cancel, __ATOMIC_RELAXED) &&
           !w_fail(err, "cancelled", "cancelled while reading %s", t->path);
}

/* The bytes of a file, from malloc; NULL with err. */
static char *read_whole(const struct w_table *t, const char *file, size_t *len,
                        struct w_error *err) {
    struct stat st;
    int fd = open(file, O_RDONLY | O_CLOEXEC);
    char *text = NULL;
    *len = 0;
    if (fd < 0 || fstat(fd, &st))
        w_fail(err, W_REF_FAILED, "%s cannot be read", t->path);
    else if ((size_t)st.st_size > t->files->bytes_max)
        w_fail(err, W_TOO_LARGE, "%s has %lld MB, at most %zu are read", t->path,
               (long long)st.st_size >> 20, t->files->bytes_max >> 20);
    else if (!(text = malloc((size_t)st.st_size + 1)))
        w_fail(err, W_NO_MEMORY, "no memory for %s", t->path);
    for (ssize_t n = 1; text && n > 0 && *len < (size_t)st.st_size; *len += n > 0 ? (size_t)n : 0)
        n = pread(fd, text + *len, (size_t)st.st_size - *len, (off_t)*len);
    if (fd >= 0) close(fd);
    return text;
}

bool w__train_read_lines(const struct w_table *t, const char *file, struct w_array *x,
                         struct w_error *err) {
    size_t len;
    char *text = read_whole(t, file, &len, err);
    bool ok = text != NULL;
    if (!x->offsets) *x = (struct w_array){.dtype = OP_STRING, .elements = 1};
    for (char *p = text, *end; ok && p < text + len; p = end + 1) {
        end = memchr(p, '\n', (size_t)(text + len - p));
        if (!end) end = text + len;
        size_t n = (size_t)(end - p);
        while (n && (p[n - 1] == '\r' || p[n - 1] == ' ')) n--;
        ok = (n == 0 || w__array_add_text(x, t->files, p, n, err)) &&
             ((x->n & 1023) || !cancelled(t, err));
    }
    free(text);
    return ok;
}

bool w__train_read_texts(const struct w_table *t, const char *folder, struct w_array *x,
                         struct w_words *words, struct w_error *err) {
    const struct w_source_options o = {.name = t->path, .format = "texts", .header = -1};
    struct w_arena arena;
    struct w_record r;
    enum w_read got = W_READ_FAILED;
    *x = (struct w_array){.dtype = OP_STRING, .elements = 1};
    w_arena_init(&arena, (size_t)256 << 20);
    struct w_source *s = w_source_open(folder, &o, err);
    struct w_cursor *c = s ? w_cursor_open(s, 0, err) : NULL;
    bool ok = c != NULL;
    while (ok && (got = w_cursor_next(c, &arena, &r, err)) == W_READ_ROW) {
        int take = cancelled(t, err) ? -1 : w__train_label(t, r.name, words, err);
        ok = take >= 0 &&
             (!take || w__array_add_text(x, t->files, r.value.span.ptr, r.value.span.len, err));
        w_arena_reset(&arena);
    }
    ok = ok && got == W_READ_END;
    w_cursor_close(c);
    w_source_close(s);
    w_arena_finish(&arena);
    return ok || w_fail_in(err, "%s (%s): ", t->where, t->path);
}

/* --- a language model's text ---------------------------------------------------------------------
 */

static void digest_of(const char *text, size_t len, char *dst) {
    uint8_t sum[EVP_MAX_MD_SIZE];
    unsigned n = 0;
    EVP_Digest(text, len, sum, &n, EVP_sha256(), NULL);
    for (unsigned i = 0; i < 32 && n == 32; i++) snprintf(dst + 2 * i, 3, "%02x", sum[i]);
}

bool w__train_read_windows(const struct w_table *t, const char *file, struct w_vectorizer *v,
                           int64_t max_tokens, int64_t stride, struct w_array *x, struct w_array *y,
                           struct w_error *err) {
    size_t len;
    int64_t window = t->input->elements;
    char *text = read_whole(t, file, &len, err);
    bool ok = text && (w_vectorizer_adapted(v) || (w_vectorizer_count(v, text, len, err) &&
                                                   w_vectorizer_adapt(v, max_tokens, err)));
    int64_t n = ok ? w_vectorizer_encode(v, text, len, NULL, 0) : 0;
    if (ok && n < window + 1)
        ok = w_fail(err, W_BAD_INPUT, "%s: %s has %lld tokens, a window of %lld and the next one are "
                                      "expected",
                    t->where, t->path, (long long)n, (long long)window);
    int64_t *tokens = ok ? malloc((size_t)n * sizeof *tokens) : NULL;
    if (ok && !tokens) ok = w_fail(err, W_NO_MEMORY, "no memory for the tokens of %s", t->path);
    if (ok) {
        w_vectorizer_encode(v, text, len, tokens, n);
        *x = (struct w_array){.dtype = OP_I64, .rank = 1, .dims = {window}, .elements = window};
        x->stride = stride;
        x->n = (n - window - 1) / stride + 1;
        x->data = tokens;
        x->windows = true;
        digest_of(text, len, x->digest);
        *y = *x;
        y->data = tokens + 1;
        y->lent = true;
    }
    free(text);
    return ok;
}
