/* topk: the k largest elements of a tensor of one dimension (others may be 1), with their labels:
 * the answer `top`. Equal scores keep the order of their index. A job's params may say another k
 * ("k" or "top_k"). */
#include "worker/pipeline/scan.h"
#include "worker/pipeline/step.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { LABELS_MAX = 1 << 20, LABELS_BYTES_MAX = 64 << 20 };

struct topk {
    int32_t k;
    double min;
    json_t *labels;
    char *text;         /* the content of the labels' file */
    const char **names; /* NULL: no labels */
    int64_t n_names;
};

/* clang-format off */
static const struct w_param params[] = {
    {.name = "k", .kind = W_PARAM_INT, .offset = offsetof(struct topk, k), .min = 1, .max = LABELS_MAX, .deflt = 5},
    {.name = "min", .kind = W_PARAM_DOUBLE, .offset = offsetof(struct topk, min), .deflt = -INFINITY, .help = "scores below are left out"},
    {.name = "labels", .kind = W_PARAM_JSON, .offset = offsetof(struct topk, labels), .help = "a file with a label a line, or a list"},
    {0}};
/* clang-format on */

static bool add_name(struct topk *t, const char *name, struct w_error *err) {
    if (t->n_names == LABELS_MAX)
        return w_fail(err, W_BAD_MODEL, "\"labels\" has more than %d labels", LABELS_MAX);
    if (!(t->n_names & (t->n_names - 1))) { /* full at each power of two */
        const char **grown =
            realloc(t->names, (size_t)(t->n_names ? 2 * t->n_names : 1) * sizeof *grown);
        if (!grown) return w_fail(err, W_NO_MEMORY, "out of memory");
        t->names = grown;
    }
    t->names[t->n_names++] = name;
    return true;
}

static bool read_file(struct topk *t, const char *path, struct w_error *err) {
    FILE *f = fopen(path, "rbe");
    if (!f)
        return w_fail(err, W_BAD_MODEL, "\"labels\": %s cannot be opened: %s", path,
                      strerror(errno));
    long size = fseek(f, 0, SEEK_END) ? -1 : ftell(f);
    bool good = size >= 0 && size <= LABELS_BYTES_MAX && (t->text = malloc((size_t)size + 1)) &&
                !fseek(f, 0, SEEK_SET) && fread(t->text, 1, (size_t)size, f) == (size_t)size;
    fclose(f);
    if (!good)
        return w_fail(err, W_BAD_MODEL, "\"labels\": %s (%ld bytes, at most %d) cannot be read",
                      path, size, LABELS_BYTES_MAX);
    t->text[size] = 0;
    if (strlen(t->text) != (size_t)size)
        return w_fail(err, W_BAD_MODEL, "\"labels\": %s is no text", path);
    for (char *line = t->text, *end; *line; line = end) {
        end = line + strcspn(line, "\n");
        if (*end) *end++ = 0;
        size_t n = strlen(line);
        if (n && line[n - 1] == '\r') line[n - 1] = 0;
        if (!add_name(t, line, err)) return false;
    }
    return true;
}

static bool parse(struct w_step *s, json_t *json, struct w_error *err) {
    struct topk *t = s->state;
    (void)json;
    if (!t->labels) return true;
    if (json_is_string(t->labels)) {
        struct {
            const char *path;
        } file = {NULL};
        static const struct w_param one[] = {{.name = "labels", .kind = W_PARAM_FILE, .offset = 0},
                                             {0}};
        json_t *wrapped = json_pack("{s:O}", "labels", t->labels);
        bool good = wrapped && w__params_read(one, wrapped, &file, s->folder, "labels", err) &&
                    read_file(t, file.path, err);
        json_decref(wrapped);
        w__params_free(one, &file);
        return good;
    }
    if (!json_is_array(t->labels))
        return w_fail(err, W_BAD_MODEL,
                      "\"labels\" must be the name of a file, or a list of strings");
    for (size_t i = 0; i < json_array_size(t->labels); i++) {
        const char *name = json_string_value(json_array_get(t->labels, i));
        if (!name) return w_fail(err, W_BAD_MODEL, "\"labels\"[%zu] is no string", i);
        if (!add_name(t, name, err)) return false;
    }
    return true;
}

static bool check(struct w_step *s, const struct w_spec *in, struct w_spec *out,
                  struct w_error *err) {
    const struct topk *t = s->state;
    int64_t n = 1;
    int wide = 0;
    *out = (struct w_spec){.type = W_LABELS, .rank = -1};
    for (int i = 0; i < in->rank; i++) {
        if (in->dims[i] < 0) return true; /* not known yet */
        if (in->dims[i] != 1) n = in->dims[i], wide++;
    }
    if (in->rank < 0) return true;
    if (wide > 1)
        return w_fail(err, W_BAD_MODEL, "takes a tensor of one dimension, and is given one of %d",
                      in->rank);
    if (t->labels && t->n_names != n)
        return w_fail(err, W_BAD_MODEL, "there are %lld labels, the tensor has %lld classes",
                      (long long)t->n_names, (long long)n);
    return true;
}

/* "k" or "top_k" of a job's params, else the pipeline's. */
static bool wanted(const struct topk *t, const struct w_row *row, int64_t *k, struct w_error *err) {
    struct w_scan s = {row->params.ptr, row->params.ptr ? row->params.ptr + row->params.len : NULL};
    struct w_span key, value;
    bool first = true;
    *k = t->k;
    if (!s.p || !w__scan_open(&s, '{')) return true;
    while (w__scan_member(&s, &first, &key, &value) > 0) {
        struct w_number number;
        if (!(key.len == 3 && !memcmp(key.ptr, "\"k\"", 3)) &&
            !(key.len == 7 && !memcmp(key.ptr, "\"top_k\"", 7)))
            continue;
        if (w__number_read(value.ptr, value.ptr + value.len, &number) != value.ptr + value.len ||
            !number.is_int || number.negative || number.magnitude < 1 ||
            number.magnitude > LABELS_MAX)
            return w_fail(
                err, W_BAD_INPUT, "params: %.*s is %.*s, a whole number from 1 to %d was expected",
                (int)key.len, key.ptr, value.len < 40 ? (int)value.len : 40, value.ptr, LABELS_MAX);
        *k = (int64_t)number.magnitude;
    }
    return true;
}

static bool better(const struct w_label *a, const struct w_label *b) {
    return a->score > b->score || (a->score == b->score && a->index < b->index);
}

/* items[0 … n) is a heap whose root is the worst of the best so far. */
static void sift(struct w_label *items, int64_t n, int64_t i) {
    for (;;) {
        int64_t worst = i, left = 2 * i + 1;
        for (int64_t c = left; c < left + 2 && c < n; c++)
            if (better(&items[worst], &items[c])) worst = c;
        if (worst == i) return;
        struct w_label swap = items[i];
        items[i] = items[worst];
        items[worst] = swap;
        i = worst;
    }
}

static int by_score(const void *a, const void *b) {
    return better(a, b) ? -1 : better(b, a);
}

static bool apply(const struct w_step *s, struct w_row *row, const struct w_value *in,
                  struct w_value *out, struct w_error *err) {
    const struct topk *t = s->state;
    const struct op_tensor *x = &in->tensor;
    const int64_t count = op_tensor_count(x);
    char shape[128];
    int64_t k, n = 0;
    for (int i = 0; i < x->rank; i++)
        if (x->dims[i] != 1 && x->dims[i] != count)
            return w_fail(err, W_BAD_SHAPE,
                          "%s has more than one dimension: which are the classes?",
                          op_tensor_describe(x, shape, sizeof shape));
    if (x->dtype == OP_STRING || x->dtype == OP_C64 || x->dtype == OP_C128)
        return w_fail(err, W_BAD_DTYPE, "elements of %s have no order", op_type_name(x->dtype));
    if (t->names && t->n_names != count)
        return w_fail(err, W_BAD_SHAPE, "there are %lld labels, the tensor has %lld classes",
                      (long long)t->n_names, (long long)count);
    if (!wanted(t, row, &k, err)) return false;
    if (k > count) k = count;
    struct w_label *items = w_arena_array(&row->arena, (size_t)k, sizeof *items);
    if (!items) return w_fail(err, W_NO_MEMORY, "no memory for %lld labels", (long long)k);
    for (int64_t i = 0; i < count; i++) {
        struct w_label l = {.score = w__element(x, i), .index = i};
        if (!isfinite(l.score))
            return w_fail(err, W_BAD_INPUT,
                          "the score of class %lld is %f: it has no place in an order",
                          (long long)i, l.score);
        if (l.score < t->min) continue;
        if (n < k) {
            items[n++] = l;
            for (int64_t j = n == k ? n / 2 : 0; j-- > 0;) sift(items, n, j);
        } else if (better(&l, &items[0])) {
            items[0] = l;
            sift(items, n, 0);
        }
    }
    if (n > 1) qsort(items, (size_t)n, sizeof *items, by_score);
    for (int64_t i = 0; i < n && t->names; i++) items[i].label = t->names[items[i].index];
    out->labels.items = items;
    out->labels.n = (size_t)n;
    return true;
}

static void free_state(void *state) {
    struct topk *t = state;
    free(t->names);
    free(t->text);
}

static const struct w_step_desc desc = {.name = "topk",
                                        .summary = "the k best classes with their labels",
                                        .params = params,
                                        .state_bytes = sizeof(struct topk),
                                        .takes = W_TAKES(W_TENSOR),
                                        .gives = W_LABELS,
                                        .parse = parse,
                                        .check = check,
                                        .apply = apply,
                                        .free = free_state};
W_STEP(desc);
