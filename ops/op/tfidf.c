/* TfIdfVectorizer (opset 9): counts n-grams of integers or strings.
 *
 *   x [C] or [N, C] -> y f32[K] or [N, K], K = max(ngram_indexes) + 1
 *   the pool holds the n-grams of length 1, 2, … one length behind the other; ngram_counts[n-1] is
 * where length n begins an n-gram is counted where its elements lie s + 1 apart, for each skip s in
 * 0 .. max_skip_count (single elements only for s = 0); its ordinal in the pool, g, says where:
 * y[ngram_indexes[g]] TF: the count; IDF: weights[g] where there is one; TFIDF: count * weights[g]
 *
 * prepare sorts the n-grams of each length, run finds by binary search. */
#include "ops/op/move.h"

#include <stdlib.h>
#include <string.h>

enum mode { TF, IDF, TFIDF };

struct tfidf {
    enum mode mode;
    bool strings;
    int64_t min, max, skip; /* lengths of n-grams, most elements skipped */
    int64_t n_grams, width; /* n-grams in the pool; K */
    const int64_t *ints, *indexes;
    const struct op_string *texts;
    const float *weights; /* NULL: 1 */
    int64_t n_lengths;    /* lengths that the pool has */
    int64_t *begin;       /* [n_lengths + 1] where each length begins in the pool */
    int64_t *first;       /* [n_lengths + 1] the ordinal of the first n-gram of each length */
    int64_t *sorted;      /* [n_grams] ordinals; those of a length in the order of their n-grams */
};

static int compare_texts(struct op_string a, struct op_string b) {
    size_t n = a.len < b.len ? a.len : b.len;
    int order = n ? memcmp(a.data, b.data, n) : 0;
    return order ? order : (a.len > b.len) - (a.len < b.len);
}

/* Where n-gram g of length n lies in the pool. */
static int64_t place_of(const struct tfidf *s, int64_t g, int64_t n) {
    return s->begin[n - 1] + (g - s->first[n - 1]) * n;
}

struct sort_key {
    const struct tfidf *s;
    int64_t n;
};

static int compare_grams(const void *a, const void *b, void *user) {
    const struct sort_key *key = user;
    const struct tfidf *s = key->s;
    int64_t x = place_of(s, *(const int64_t *)a, key->n),
            y = place_of(s, *(const int64_t *)b, key->n);
    for (int64_t i = 0; i < key->n; i++) {
        int order = s->strings
                        ? compare_texts(s->texts[x + i], s->texts[y + i])
                        : (s->ints[x + i] > s->ints[y + i]) - (s->ints[x + i] < s->ints[y + i]);
        if (order) return order;
    }
    return 0;
}

/* The lengths' extents; each must hold whole n-grams. */
static enum op_status read_pool(struct op_prepare *p, struct tfidf *s, const int64_t *counts,
                                int64_t n_counts, int64_t n_pool) {
    s->n_lengths = n_counts;
    s->begin = calloc((size_t)n_counts + 1, sizeof *s->begin);
    s->first = calloc((size_t)n_counts + 1, sizeof *s->first);
    if (!s->begin || !s->first) return op__node_fail(p->err, p->node, OP_NOMEM, "out of memory");
    s->begin[n_counts] = n_pool;
    for (int64_t i = 0; i < n_counts; i++) s->begin[i] = counts[i];
    for (int64_t i = 0; i < n_counts; i++) {
        int64_t size = s->begin[i + 1] - s->begin[i];
        if (s->begin[i] < 0 || s->begin[i + 1] > n_pool || size < 0 || size % (i + 1))
            return op__node_fail(
                p->err, p->node, OP_BAD_VALUE,
                "ngram_counts: length %lld runs from %lld to %lld of a pool of %lld",
                (long long)(i + 1), (long long)s->begin[i], (long long)s->begin[i + 1],
                (long long)n_pool);
        s->first[i + 1] = s->first[i] + size / (i + 1);
    }
    s->n_grams = s->first[n_counts];
    s->sorted = malloc(((size_t)s->n_grams + 1) * sizeof *s->sorted);
    if (!s->sorted) return op__node_fail(p->err, p->node, OP_NOMEM, "out of memory");
    for (int64_t g = 0; g < s->n_grams; g++) s->sorted[g] = g;
    for (int64_t n = 1; n <= n_counts; n++) {
        struct sort_key key = {s, n};
        qsort_r(s->sorted + s->first[n - 1], (size_t)(s->first[n] - s->first[n - 1]),
                sizeof *s->sorted, compare_grams, &key);
    }
    return OP_OK;
}

static enum op_status tfidf_prepare(struct op_prepare *p) {
    struct op_node *node = p->node;
    const char *mode = op__attr_string(node, "mode", "");
    int64_t n_counts, n_indexes, n_ints, n_weights;
    const int64_t *counts = op__attr_ints(node, "ngram_counts", &n_counts);
    const struct op_attr *texts = op__attr(node, "pool_strings");
    struct tfidf *s = node->state = calloc(1, sizeof *s);
    if (!s) return op__node_fail(p->err, node, OP_NOMEM, "out of memory");
    s->mode = strcmp(mode, "TF") == 0 ? TF : strcmp(mode, "IDF") == 0 ? IDF : TFIDF;
    if (s->mode == TFIDF && strcmp(mode, "TFIDF") != 0)
        return op__node_fail(p->err, node, OP_BAD_VALUE, "mode \"%.40s\" is none of TF, IDF, TFIDF",
                             mode);
    s->min = op__attr_int(node, "min_gram_length", 0);
    s->max = op__attr_int(node, "max_gram_length", 0);
    s->skip = op__attr_int(node, "max_skip_count", 0);
    s->indexes = op__attr_ints(node, "ngram_indexes", &n_indexes);
    s->ints = op__attr_ints(node, "pool_int64s", &n_ints);
    s->weights = op__attr_floats(node, "weights", &n_weights);
    s->strings = texts && texts->kind == OP_ATTR_STRINGS;
    s->texts = s->strings ? texts->strings : NULL;
    if (s->min < 1 || s->max < s->min || s->skip < 0 || s->max > INT32_MAX || s->skip > INT32_MAX)
        return op__node_fail(p->err, node, OP_BAD_VALUE, "lengths %lld to %lld, skip %lld",
                             (long long)s->min, (long long)s->max, (long long)s->skip);
    if (!counts || n_counts < 1)
        return op__node_fail(p->err, node, OP_BAD_MODEL, "ngram_counts is missing");
    if (s->strings == (s->ints != NULL))
        return op__node_fail(p->err, node, OP_BAD_MODEL,
                             "one of pool_int64s and pool_strings is expected");
    enum op_status st = read_pool(p, s, counts, n_counts, s->strings ? texts->n : n_ints);
    if (st != OP_OK) return st;
    if (n_indexes != s->n_grams || (s->weights && n_weights != s->n_grams))
        return op__node_fail(p->err, node, OP_BAD_VALUE,
                             "%lld ngram_indexes and %lld weights for %lld n-grams",
                             (long long)n_indexes, (long long)n_weights, (long long)s->n_grams);
    for (int64_t g = 0; g < s->n_grams; g++) {
        if (s->indexes[g] < 0 || s->indexes[g] > INT32_MAX)
            return op__node_fail(p->err, node, OP_BAD_VALUE, "ngram_indexes[%lld] is %lld",
                                 (long long)g, (long long)s->indexes[g]);
        if (s->indexes[g] >= s->width) s->width = s->indexes[g] + 1;
    }
    return OP_OK;
}

static void tfidf_release(void *state) {
    struct tfidf *s = state;
    if (!s) return;
    free(s->begin);
    free(s->first);
    free(s->sorted);
    free(s);
}

static enum op_status tfidf_infer(struct op_ctx *ctx) {
    enum op_status st = op__need_tensors(ctx, 1);
    const struct tfidf *s = ctx->state;
    char text[OP__TENSOR_TEXT];
    if (st != OP_OK) return st;
    const struct op_tensor *x = ctx->in[0];
    if (x->rank > 2 || x->rank < 1)
        return op__fail(ctx, OP_BAD_SHAPE, "the input is %s, [C] or [N,C] is expected",
                        op__text(x, text));
    if (s && (s->strings ? x->dtype != OP_STRING : x->dtype != OP_I32 && x->dtype != OP_I64))
        return op__fail(ctx, OP_BAD_TYPE, "the input is %s, the pool holds %s",
                        op_type_name(x->dtype), s->strings ? "strings" : "integers");
    if (!s) return OP_NEED_DATA;
    int64_t dims[2] = {x->rank == 2 ? x->dims[0] : s->width, s->width};
    st = op__check_size(ctx, OP_F32, x->rank, dims);
    if (st == OP_OK) op__set(ctx, 0, OP_F32, x->rank, dims);
    return st;
}

/* The order of n-gram g against the one at x[at], x[at + step], … */
static int compare_at(const struct tfidf *s, int64_t g, int64_t n, const struct op_tensor *x,
                      int64_t at, int64_t step) {
    int64_t place = place_of(s, g, n);
    for (int64_t i = 0; i < n; i++) {
        int order;
        if (s->strings) {
            order = compare_texts(s->texts[place + i],
                                  ((const struct op_string *)x->data)[at + i * step]);
        } else {
            int64_t v = op__int_at(x, at + i * step);
            order = (s->ints[place + i] > v) - (s->ints[place + i] < v);
        }
        if (order) return order;
    }
    return 0;
}

static void count_gram(const struct tfidf *s, int64_t n, const struct op_tensor *x, int64_t at,
                       int64_t step, float *y) {
    int64_t low = s->first[n - 1], high = s->first[n];
    while (low < high) {
        int64_t mid = low + (high - low) / 2;
        if (compare_at(s, s->sorted[mid], n, x, at, step) < 0)
            low = mid + 1;
        else
            high = mid;
    }
    if (low == s->first[n] || compare_at(s, s->sorted[low], n, x, at, step) != 0) return;
    int64_t g = s->sorted[low];
    float w = s->weights ? s->weights[g] : 1;
    if (s->mode == TF)
        y[s->indexes[g]] += 1;
    else if (s->mode == IDF)
        y[s->indexes[g]] = w;
    else
        y[s->indexes[g]] += w;
}

static enum op_status tfidf_run(struct op_ctx *ctx) {
    const struct tfidf *s = ctx->state;
    const struct op_tensor *x = ctx->in[0];
    int64_t n_rows = x->rank == 2 ? x->dims[0] : 1, c = x->dims[x->rank - 1];
    int64_t longest = s->max < s->n_lengths ? s->max : s->n_lengths;
    for (int64_t r = 0; r < n_rows && s->width; r++) {
        float *y = (float *)ctx->out[0]->data + r * s->width;
        memset(y, 0, (size_t)s->width * sizeof *y);
        for (int64_t n = s->min; n <= longest; n++)
            for (int64_t step = 1; step <= (n == 1 ? 1 : s->skip + 1) && (n - 1) * step < c; step++)
                for (int64_t at = 0; at + (n - 1) * step < c; at++)
                    count_gram(s, n, x, r * c + at, step, y);
    }
    return OP_OK;
}

static const struct op_desc tfidf_vectorizer = {
    .name = "TfIdfVectorizer",
    .domain = "",
    .since = 9,
    .in_min = 1,
    .in_max = 1,
    .out_min = 1,
    .out_max = 1,
    .prepare = tfidf_prepare,
    .release = tfidf_release,
    .infer = tfidf_infer,
    .run = tfidf_run,
};
OP_REGISTER(tfidf_vectorizer);
