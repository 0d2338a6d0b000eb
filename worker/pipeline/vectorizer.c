/* vectorizer.c: tokens and their numbers, see vectorizer.h. Tokens lie one behind the other in one
 * block of text; an open hash table finds them. While the training rows are counted the table holds
 * every token; adapt keeps the most frequent and numbers them. */
#include "worker/pipeline/vectorizer.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { TOKEN_BYTES_MAX = 1024, FIRST = 2 };

struct token {
    size_t at; /* in text */
    uint32_t len;
    int64_t count;
};

struct w_vectorizer {
    enum w_split split;
    bool lower, strip, adapted;
    char *text;
    size_t text_len, text_room;
    struct token *tokens; /* number − FIRST, once adapted */
    int64_t n, room;
    int64_t *table; /* index of a token + 1; 0: free */
    size_t table_size;
};

struct w_vectorizer *w_vectorizer_create(enum w_split split, enum w_standardize standardize,
                                         struct w_error *err) {
    struct w_vectorizer *v = calloc(1, sizeof *v);
    if (!v) return w_fail(err, W_NO_MEMORY, "out of memory"), NULL;
    v->split = split;
    v->lower = standardize == W_STANDARD_LOWER_STRIP || standardize == W_STANDARD_LOWER;
    v->strip = standardize == W_STANDARD_LOWER_STRIP || standardize == W_STANDARD_STRIP;
    v->adapted = split == W_SPLIT_BYTE;
    return v;
}

void w_vectorizer_destroy(struct w_vectorizer *v) {
    if (!v) return;
    free(v->text);
    free(v->tokens);
    free(v->table);
    free(v);
}

bool w_vectorizer_adapted(const struct w_vectorizer *v) {
    return v->adapted;
}
int64_t w_vectorizer_size(const struct w_vectorizer *v) {
    return v->split == W_SPLIT_BYTE ? 256 : v->n + FIRST;
}

/* --- characters --------------------------------------------------------------------------------
 */

/* One code point; what is not UTF-8 is a byte of Latin-1. */
static uint32_t take(const char **p, const char *end) {
    const unsigned char *s = (const unsigned char *)*p;
    int n = *s >= 0xf0 && *s < 0xf5   ? 3
            : *s >= 0xe0 && *s < 0xf0 ? 2
            : *s >= 0xc2 && *s < 0xe0 ? 1
                                      : 0;
    uint32_t c = n == 3 ? *s & 7u : n == 2 ? *s & 15u : n == 1 ? *s & 31u : *s;
    bool good = end - *p > n;
    for (int i = 1; good && i <= n; i++) {
        good = (s[i] & 0xc0) == 0x80;
        c = c << 6 | (s[i] & 0x3fu);
    }
    static const uint32_t least[] = {0, 0x80, 0x800, 0x10000};
    good = good && c >= least[n] && c < 0x110000 && (c < 0xd800 || c > 0xdfff);
    *p += good ? n + 1 : 1;
    return good ? c : *s;
}

static size_t put(uint32_t c, char *dst) {
    if (c < 0x80) return dst[0] = (char)c, 1;
    if (c < 0x800) return dst[0] = (char)(0xc0 | c >> 6), dst[1] = (char)(0x80 | (c & 0x3f)), 2;
    if (c < 0x10000)
        return dst[0] = (char)(0xe0 | c >> 12), dst[1] = (char)(0x80 | (c >> 6 & 0x3f)),
               dst[2] = (char)(0x80 | (c & 0x3f)), 3;
    return dst[0] = (char)(0xf0 | c >> 18), dst[1] = (char)(0x80 | (c >> 12 & 0x3f)),
           dst[2] = (char)(0x80 | (c >> 6 & 0x3f)), dst[3] = (char)(0x80 | (c & 0x3f)), 4;
}

static uint32_t lower(uint32_t c) {
    if (c < 0x80) return c >= 'A' && c <= 'Z' ? c + 32 : c;
    if ((c >= 0xc0 && c <= 0xde && c != 0xd7) || (c >= 0x391 && c <= 0x3a9 && c != 0x3a2) ||
        (c >= 0x410 && c <= 0x42f))
        return c + 32;
    return c >= 0x400 && c <= 0x40f ? c + 80 : c;
}

static bool is_blank(uint32_t c) {
    return c == ' ' || (c >= 9 && c <= 13) || c == 0x85 || c == 0xa0;
}
static bool is_punctuation(uint32_t c) {
    return c < 0x80 && c > ' ' && strchr("!\"#$%&()*+,-./:;<=>?@[\\]^_`{|}~'", (int)c) != NULL;
}

struct reading {
    const char *p, *end;
    char token[TOKEN_BYTES_MAX + 4];
    size_t len;
};

/* The next token; false at the end. One that is longer than TOKEN_BYTES_MAX is cut there. */
static bool next(const struct w_vectorizer *v, struct reading *r) {
    r->len = 0;
    while (r->p < r->end) {
        uint32_t c = take(&r->p, r->end);
        bool blank = v->split == W_SPLIT_WHITESPACE && is_blank(c);
        if (blank && r->len) break;
        if (blank || (v->strip && is_punctuation(c))) continue;
        if (r->len < TOKEN_BYTES_MAX) r->len += put(v->lower ? lower(c) : c, r->token + r->len);
        if (v->split == W_SPLIT_CHARACTER) break;
    }
    return r->len > 0;
}

/* --- the table ---------------------------------------------------------------------------------
 */

static size_t hash_of(const char *text, size_t len) {
    uint64_t h = 1469598103934665603u;
    for (size_t i = 0; i < len; i++) h = (h ^ (unsigned char)text[i]) * 1099511628211u;
    return (size_t)(h ^ h >> 29);
}

/* Where the token is, or the free place where it would be. The table is never full. */
static int64_t *place(const struct w_vectorizer *v, const char *text, size_t len) {
    for (size_t i = hash_of(text, len);; i++) {
        int64_t *at = &v->table[i & (v->table_size - 1)];
        const struct token *t = *at ? &v->tokens[*at - 1] : NULL;
        if (!t || (t->len == len && !memcmp(v->text + t->at, text, len))) return at;
    }
}

static bool rehash(struct w_vectorizer *v, size_t size, struct w_error *err) {
    int64_t *table = calloc(size, sizeof *table);
    if (!table)
        return w_fail(err, W_NO_MEMORY, "no memory for a vocabulary of %zu tokens", size / 2);
    free(v->table);
    v->table = table;
    v->table_size = size;
    for (int64_t i = 0; i < v->n; i++)
        *place(v, v->text + v->tokens[i].at, v->tokens[i].len) = i + 1;
    return true;
}

static bool add(struct w_vectorizer *v, const char *text, size_t len, int64_t count,
                struct w_error *err) {
    if ((size_t)v->n * 2 + 2 > v->table_size &&
        !rehash(v, v->table_size ? 2 * v->table_size : 1024, err))
        return false;
    int64_t *at = place(v, text, len);
    if (*at) {
        v->tokens[*at - 1].count += count;
        return true;
    }
    if (v->n == W_VECTORIZER_TOKENS_MAX)
        return w_fail(err, W_TOO_LARGE, "a vocabulary has at most %d tokens",
                      W_VECTORIZER_TOKENS_MAX);
    if (v->n == v->room) {
        int64_t room = v->room ? 2 * v->room : 512;
        struct token *grown = realloc(v->tokens, (size_t)room * sizeof *grown);
        if (!grown) return w_fail(err, W_NO_MEMORY, "no memory for a vocabulary");
        v->tokens = grown;
        v->room = room;
    }
    if (v->text_len + len > v->text_room) {
        size_t room = 2 * v->text_room + len + 4096;
        char *grown = realloc(v->text, room);
        if (!grown) return w_fail(err, W_NO_MEMORY, "no memory for a vocabulary");
        v->text = grown;
        v->text_room = room;
    }
    memcpy(v->text + v->text_len, text, len);
    v->tokens[v->n++] = (struct token){v->text_len, (uint32_t)len, count};
    v->text_len += len;
    *at = v->n;
    return true;
}

bool w_vectorizer_count(struct w_vectorizer *v, const char *text, size_t len, struct w_error *err) {
    struct reading r = {.p = text, .end = text + len};
    while (v->split != W_SPLIT_BYTE && next(v, &r))
        if (!add(v, r.token, r.len, 1, err)) return false;
    return true;
}

static int by_count(const void *a, const void *b, void *user) {
    const struct w_vectorizer *v = user;
    const struct token *x = a, *y = b;
    if (x->count != y->count) return x->count > y->count ? -1 : 1;
    int order = memcmp(v->text + x->at, v->text + y->at, x->len < y->len ? x->len : y->len);
    return order ? order : x->len < y->len ? -1 : x->len > y->len;
}

bool w_vectorizer_adapt(struct w_vectorizer *v, int64_t max_tokens, struct w_error *err) {
    if (v->split == W_SPLIT_BYTE) return true;
    if (v->n == 0) return w_fail(err, W_BAD_INPUT, "the training text has no tokens");
    qsort_r(v->tokens, (size_t)v->n, sizeof *v->tokens, by_count, v);
    if (max_tokens && v->n > max_tokens - FIRST) v->n = max_tokens > FIRST ? max_tokens - FIRST : 0;
    v->adapted = true;
    return rehash(v, v->table_size, err);
}

int64_t w_vectorizer_encode(const struct w_vectorizer *v, const char *text, size_t len,
                            int64_t *dst, int64_t room) {
    struct reading r = {.p = text, .end = text + len};
    int64_t n = 0;
    if (v->split == W_SPLIT_BYTE) {
        for (size_t i = 0; i < len && (int64_t)i < room; i++) dst[i] = (unsigned char)text[i];
        return (int64_t)len;
    }
    for (; next(v, &r); n++) {
        int64_t at = n < room ? *place(v, r.token, r.len) : 0;
        if (n < room) dst[n] = at ? at - 1 + FIRST : 1;
    }
    return n;
}

/* --- as a file ---------------------------------------------------------------------------------
 */

char *w_vectorizer_write(const struct w_vectorizer *v, struct w_error *err) {
    json_t *list = json_pack("[s,s]", "", "[UNK]");
    for (int64_t i = 0; i < v->n && list; i++)
        json_array_append_new(list, json_stringn(v->text + v->tokens[i].at, v->tokens[i].len));
    char *text = list && (int64_t)json_array_size(list) == v->n + FIRST
                     ? json_dumps(list, JSON_COMPACT)
                     : NULL;
    json_decref(list);
    if (!text) w_fail(err, W_NO_MEMORY, "no memory for the vocabulary");
    return text;
}

bool w_vectorizer_read(struct w_vectorizer *v, const char *path, struct w_error *err) {
    json_error_t why;
    json_t *list = json_load_file(path, JSON_ALLOW_NUL, &why), *item;
    size_t i;
    if (!list)
        return w_fail(err, W_BAD_MODEL, "\"vocabulary\": %s is no JSON: line %d: %.100s", path,
                      why.line, why.text);
    bool ok = json_is_array(list) && json_array_size(list) >= FIRST;
    json_array_foreach(list, i, item) {
        size_t len = json_string_length(item);
        if (i < FIRST) continue;
        ok = ok && json_is_string(item) && len > 0 && len <= TOKEN_BYTES_MAX + 4 &&
             (int64_t)i - FIRST == v->n && add(v, json_string_value(item), len, 0, err);
    }
    ok = ok && v->n == (int64_t)json_array_size(list) - FIRST;
    json_decref(list);
    v->adapted = ok;
    return ok ||
           w_fail(err, W_BAD_MODEL,
                  "\"vocabulary\": %s must be a list [\"\", \"[UNK]\", token, …] of different "
                  "strings",
                  path);
}
