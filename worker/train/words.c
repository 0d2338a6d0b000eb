/* words.c: labels that are text become numbers: the words of all rows, sorted, each once; a set that
 * is like another takes that one's. With ctc a row's label is a sequence of words. */
#include <stdlib.h>
#include <string.h>

#include "worker/train/train.h"

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

bool w__train_number_words(const struct w_words *w, const char *where, const struct w_set *like,
                         struct w_set *s, struct w_error *err) {
    w__array_finish(&s->y);
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

/* Each row's words as a sequence of labels, 0 and up without the blank; padded with −1. */
bool w__train_number_sequences(const struct w_words *w, const char *separator, const char *where,
                             const struct w_set_wish *wish, struct w_set *s, struct w_error *err) {
    struct w_words all = {0};
    int64_t *lengths = calloc((size_t)w->n + 1, sizeof *lengths), longest = 1;
    bool ok = lengths != NULL || w_fail(err, W_NO_MEMORY, "no memory for labels");
    for (int64_t i = 0; ok && i < w->n; i++) {
        const char *p = w->items[i];
        while (ok && *p) {
            size_t n = *separator ? strcspn(p, separator) : 1;
            while (!*separator && (p[n] & 0xc0) == 0x80) n++; /* a character */
            if (n && (ok = w__train_words_add(&all, p, n, err))) lengths[i]++;
            p += n;
            if (*separator && *p) p++;
        }
        if (lengths[i] > longest) longest = lengths[i];
    }
    struct w_set flat = {0};
    ok = ok && w__train_number_words(&all, where, wish->like, &flat, err);
    if (ok && !wish->like) s->names = flat.names, s->n_names = flat.n_names;
    w__array_finish(&s->y);
    s->y = (struct w_array){.dtype = OP_I64, .rank = 1, .dims = {longest}, .elements = longest};
    s->y.n = w->n;
    int64_t *dst = ok ? malloc((size_t)(w->n * longest) * sizeof *dst + 1) : NULL, at = 0;
    if (ok && !dst) ok = w_fail(err, W_NO_MEMORY, "no memory for labels");
    for (int64_t i = 0; ok && i < w->n; i++)
        for (int64_t k = 0; k < longest; k++) {
            int64_t v = k < lengths[i] ? ((const int64_t *)flat.y.data)[at++] : -1;
            dst[i * longest + k] = v >= wish->blank ? v + 1 : v;
        }
    s->y.data = dst;
    w__array_finish(&flat.y);
    w__train_words_finish(&all);
    free(lengths);
    return ok;
}
