/* ml_label.c: LabelEncoder, CategoryMapper and OneHotEncoder of ai.onnx.ml: from one set of labels
 * to another, or to ones and zeros.
 *
 * prepare sorts the keys once; an element is found by halving. Of equal keys the first one counts;
 * NaN equals NaN. */
#include "ops/op/elementwise.h"
#include "ops/op/ml.h"
#include "ops/op/nn.h"

#include <stdlib.h>
#include <string.h>

/* A list of strings, integers or floats of an attribute, or of a tensor attribute. */
struct label_list {
    int64_t n;
    enum op_type type; /* OP_STRING, OP_I64 or OP_F32 (of tensors also others) */
    const struct op_string *strings;
    const void *data; /* of `type` */
};

struct label_map {
    struct label_list keys, values;
    int64_t *order; /* of keys, sorted */
    struct op_string default_string;
    int64_t default_int;
    double default_float;
};

/* The first of <stem>_strings, <stem>_int64s, <stem>_floats, <stem>_tensor that is there. */
static void read_list(const struct op_node *n, const char *const *names, struct label_list *list) {
    const struct op_attr *strings = op__attr(n, names[0]);
    const struct op_tensor *t = op__attr_tensor(n, names[3]);
    memset(list, 0, sizeof *list);
    if (strings && strings->kind == OP_ATTR_STRINGS && strings->n > 0) {
        *list = (struct label_list){strings->n, OP_STRING, strings->strings, strings->strings};
    } else if ((list->data = op__attr_ints(n, names[1], &list->n))) {
        list->type = OP_I64;
    } else if ((list->data = op__attr_floats(n, names[2], &list->n))) {
        list->type = OP_F32;
    } else if (t && t->kind == OP_KIND_TENSOR && t->rank <= 1 &&
               (t->dtype == OP_STRING || op__is_int(t->dtype) || op__is_float(t->dtype))) {
        *list = (struct label_list){op_tensor_count(t), t->dtype,
                                    t->dtype == OP_STRING ? t->data : NULL, t->data};
    }
}

static double number_at(enum op_type type, const void *data, int64_t i) {
    const struct op_tensor t = {.dtype = type, .data = (void *)(uintptr_t)data};
    return nn_load(&t, i);
}

static int compare_values(enum op_type type, const void *a, int64_t i, const void *b, int64_t j) {
    if (type == OP_STRING) {
        const struct op_string x = ((const struct op_string *)a)[i],
                               y = ((const struct op_string *)b)[j];
        const size_t n = x.len < y.len ? x.len : y.len;
        const int order = n ? memcmp(x.data, y.data, n) : 0;
        return order ? order : (x.len > y.len) - (x.len < y.len);
    }
    if (type == OP_I64) {
        const int64_t x = ((const int64_t *)a)[i], y = ((const int64_t *)b)[j];
        return (x > y) - (x < y);
    }
    const double x = number_at(type, a, i), y = number_at(type, b, j);
    if (x != x || y != y) return (x != x) - (y != y);
    return (x > y) - (x < y);
}

static int by_key(const void *a, const void *b, void *keys) {
    const struct label_list *list = keys;
    const int64_t i = *(const int64_t *)a, j = *(const int64_t *)b;
    const int order = compare_values(list->type, list->data, i, list->data, j);
    return order ? order : (i > j) - (i < j);
}

/* The index of the first key that equals element i of data; -1. */
static int64_t find_key(const struct label_map *m, const void *data, int64_t i) {
    int64_t low = 0, high = m->keys.n;
    while (low < high) { /* the first position whose key is not below */
        const int64_t middle = low + (high - low) / 2;
        if (compare_values(m->keys.type, m->keys.data, m->order[middle], data, i) < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return low < m->keys.n &&
                   compare_values(m->keys.type, m->keys.data, m->order[low], data, i) == 0
               ? m->order[low]
               : -1;
}

static void map_release(void *state) {
    struct label_map *m = state;
    if (m) free(m->order);
    free(m);
}

static enum op_status sort_keys(struct op_prepare *p, struct label_map *m) {
    m->order = calloc((size_t)m->keys.n, sizeof *m->order);
    if (!m->order) return op__node_fail(p->err, p->node, OP_NOMEM, "no memory");
    p->packed_bytes += (size_t)m->keys.n * sizeof *m->order;
    for (int64_t i = 0; i < m->keys.n; i++) m->order[i] = i;
    qsort_r(m->order, (size_t)m->keys.n, sizeof *m->order, by_key, &m->keys);
    return OP_OK;
}

/* --- LabelEncoder ------------------------------------------------------------------------------
 */

/* Version 1 had one list of strings, which mapped to their places and back: that is keys and values
 * at once. */
static enum op_status encoder_prepare(struct op_prepare *p) {
    static const char *const key_names[] = {"keys_strings", "keys_int64s", "keys_floats",
                                            "keys_tensor"};
    static const char *const value_names[] = {"values_strings", "values_int64s", "values_floats",
                                              "values_tensor"};
    const struct op_attr *classes = op__attr(p->node, "classes_strings");
    const struct op_tensor *dflt = op__attr_tensor(p->node, "default_tensor");
    struct label_map *m = calloc(1, sizeof *m);
    if (!m) return op__node_fail(p->err, p->node, OP_NOMEM, "no memory");
    p->node->state = m;
    read_list(p->node, key_names, &m->keys);
    read_list(p->node, value_names, &m->values);
    if (!m->keys.n && classes && classes->kind == OP_ATTR_STRINGS)
        m->keys = (struct label_list){classes->n, OP_STRING, classes->strings, classes->strings};
    else if (m->keys.n != m->values.n)
        return op__node_fail(p->err, p->node, OP_BAD_MODEL, "has %lld keys and %lld values",
                             (long long)m->keys.n, (long long)m->values.n);
    if (m->keys.n < 1) return op__node_fail(p->err, p->node, OP_BAD_MODEL, "has no keys");
    m->default_string.data = op__attr_string(p->node, "default_string", "_Unused");
    m->default_int = op__attr_int(p->node, "default_int64", -1);
    m->default_float = op__attr_float(p->node, "default_float", -0.0f);
    if (dflt && op_tensor_count(dflt) == 1 && dflt->dtype == OP_STRING)
        m->default_string = *(const struct op_string *)dflt->data;
    else if (dflt && op_tensor_count(dflt) == 1 && dflt->dtype == OP_I64)
        m->default_int = *(const int64_t *)dflt->data;
    else if (dflt && op_tensor_count(dflt) == 1 && op__is_int(dflt->dtype))
        m->default_int = (int64_t)number_at(dflt->dtype, dflt->data, 0);
    else if (dflt && op_tensor_count(dflt) == 1)
        m->default_float = number_at(dflt->dtype, dflt->data, 0);
    if (!m->default_string.len) m->default_string.len = strlen(m->default_string.data);
    return sort_keys(p, m);
}

static enum op_status encoder_infer(struct op_ctx *ctx) {
    const struct label_map *m = ctx->state;
    const struct op_tensor *x = ctx->in[0];
    const bool old = !m->values.n;
    if (!x || x->kind != OP_KIND_TENSOR ||
        (x->dtype != m->keys.type && !(old && x->dtype == OP_I64)))
        return op__fail(ctx, OP_BAD_TYPE, "keys are %s, the input is %s",
                        op_type_name(m->keys.type), x ? op_type_name(x->dtype) : "(absent)");
    op__set(ctx, 0,
            !old                 ? m->values.type
            : x->dtype == OP_I64 ? OP_STRING
                                 : OP_I64,
            x->rank, x->dims);
    return OP_OK;
}

static void encode_one(const struct label_map *m, const struct op_tensor *x, struct op_tensor *y,
                       int64_t i) {
    int64_t at;
    if (m->values.n || x->dtype == OP_STRING) {
        at = find_key(m, x->data, i);
    } else { /* version 1, from places to strings */
        at = ((const int64_t *)x->data)[i];
        ((struct op_string *)y->data)[i] =
            at >= 0 && at < m->keys.n ? m->keys.strings[at] : m->default_string;
        return;
    }
    switch (y->dtype) {
    case OP_STRING:
        ((struct op_string *)y->data)[i] = at < 0 ? m->default_string : m->values.strings[at];
        break;
    case OP_I64:
        ((int64_t *)y->data)[i] = at < 0        ? m->default_int
                                  : m->values.n ? ((const int64_t *)m->values.data)[at]
                                                : at;
        break;
    default:
        nn_store(y, i,
                 at < 0 ? (op__is_int(y->dtype) ? (double)m->default_int : m->default_float)
                        : number_at(m->values.type, m->values.data, at));
    }
}

static enum op_status encoder_run(struct op_ctx *ctx) {
    const int64_t count = ctx->out[0] ? op_tensor_count(ctx->in[0]) : 0;
    for (int64_t i = 0; i < count; i++) encode_one(ctx->state, ctx->in[0], ctx->out[0], i);
    return OP_OK;
}

static const struct op_desc label_encoder = {.name = "LabelEncoder",
                                             .domain = "ai.onnx.ml",
                                             .since = 1,
                                             .in_min = 1,
                                             .in_max = 1,
                                             .out_min = 1,
                                             .out_max = 1,
                                             .prepare = encoder_prepare,
                                             .release = map_release,
                                             .infer = encoder_infer,
                                             .run = encoder_run};
OP_REGISTER(label_encoder);

/* --- CategoryMapper: strings to integers or back, by two lists of one length ---------------------
 */

static void mapper_release(void *state) {
    struct label_map *m = state;
    if (!m) return;
    free(m[0].order);
    free(m[1].order);
    free(m);
}

static enum op_status mapper_prepare(struct op_prepare *p) {
    static const char *const strings[] = {"cats_strings", "", "", ""},
                             *const ints[] = {"", "cats_int64s", "", ""};
    struct label_map *m = calloc(2, sizeof *m); /* from strings, from integers */
    if (!m) return op__node_fail(p->err, p->node, OP_NOMEM, "no memory");
    p->node->state = m;
    read_list(p->node, strings, &m[0].keys);
    read_list(p->node, ints, &m[0].values);
    if (m[0].keys.n < 1 || m[0].keys.n != m[0].values.n)
        return op__node_fail(p->err, p->node, OP_BAD_MODEL, "has %lld strings and %lld integers",
                             (long long)m[0].keys.n, (long long)m[0].values.n);
    m[0].default_int = op__attr_int(p->node, "default_int64", -1);
    m[1].default_string.data = op__attr_string(p->node, "default_string", "_Unused");
    m[1].default_string.len = strlen(m[1].default_string.data);
    m[1].keys = m[0].values;
    m[1].values = m[0].keys;
    enum op_status st = sort_keys(p, &m[0]);
    return st == OP_OK ? sort_keys(p, &m[1]) : st;
}

static enum op_status mapper_infer(struct op_ctx *ctx) {
    const struct op_tensor *x = ctx->in[0];
    if (!x || x->kind != OP_KIND_TENSOR || (x->dtype != OP_STRING && x->dtype != OP_I64))
        return op__fail(ctx, OP_BAD_TYPE, "takes strings or i64, not %s",
                        x ? op_type_name(x->dtype) : "(absent)");
    op__set(ctx, 0, x->dtype == OP_STRING ? OP_I64 : OP_STRING, x->rank, x->dims);
    return OP_OK;
}

static enum op_status mapper_run(struct op_ctx *ctx) {
    const struct label_map *m = ctx->state;
    const int64_t count = ctx->out[0] ? op_tensor_count(ctx->in[0]) : 0;
    for (int64_t i = 0; i < count; i++)
        encode_one(&m[ctx->in[0]->dtype == OP_STRING ? 0 : 1], ctx->in[0], ctx->out[0], i);
    return OP_OK;
}

static const struct op_desc category_mapper = {.name = "CategoryMapper",
                                               .domain = "ai.onnx.ml",
                                               .since = 1,
                                               .in_min = 1,
                                               .in_max = 1,
                                               .out_min = 1,
                                               .out_max = 1,
                                               .prepare = mapper_prepare,
                                               .release = mapper_release,
                                               .infer = mapper_infer,
                                               .run = mapper_run};
OP_REGISTER(category_mapper);

/* --- OneHotEncoder: (…) to (…, categories); an unknown category is all zeros, or an error with
 * zeros = 0 --- */

static enum op_status one_hot_prepare(struct op_prepare *p) {
    static const char *const names[] = {"cats_strings", "cats_int64s", "", ""};
    struct label_map *m = calloc(1, sizeof *m);
    if (!m) return op__node_fail(p->err, p->node, OP_NOMEM, "no memory");
    p->node->state = m;
    read_list(p->node, names, &m->keys);
    if (m->keys.n < 1)
        return op__node_fail(p->err, p->node, OP_BAD_MODEL,
                             "has neither cats_strings nor cats_int64s");
    return sort_keys(p, m);
}

static enum op_status one_hot_infer(struct op_ctx *ctx) {
    const struct label_map *m = ctx->state;
    const struct op_tensor *x = ctx->in[0];
    const bool strings = m->keys.type == OP_STRING;
    if (!x || x->kind != OP_KIND_TENSOR ||
        (strings ? x->dtype != OP_STRING
                 : x->dtype != OP_I64 && x->dtype != OP_I32 && x->dtype != OP_F32 &&
                       x->dtype != OP_F64))
        return op__fail(ctx, OP_BAD_TYPE, "categories are %s, the input is %s",
                        op_type_name(m->keys.type), x ? op_type_name(x->dtype) : "(absent)");
    if (x->rank == OP_RANK_MAX)
        return op__fail(ctx, OP_LIMIT, "the output has rank %d, at most %d is supported",
                        x->rank + 1, OP_RANK_MAX);
    int64_t dims[OP_RANK_MAX];
    memcpy(dims, x->dims, sizeof dims);
    dims[x->rank] = m->keys.n;
    op__set(ctx, 0, OP_F32, x->rank + 1, dims);
    return OP_OK;
}

static enum op_status one_hot_run(struct op_ctx *ctx) {
    const struct label_map *m = ctx->state;
    const struct op_tensor *x = ctx->in[0];
    const int64_t count = op_tensor_count(x);
    const bool zeros = op__attr_int(ctx->node, "zeros", 1) != 0;
    if (!ctx->out[0] || count <= 0) return OP_OK;
    float *y = ctx->out[0]->data;
    memset(y, 0, (size_t)op_tensor_bytes(ctx->out[0]));
    for (int64_t i = 0; i < count; i++) {
        const double v = x->dtype == OP_STRING || x->dtype == OP_I64 ? 0 : nn_load(x, i);
        const int64_t whole = v > -9.2e18 && v < 9.2e18 ? (int64_t)v : INT64_MIN;
        const bool direct = x->dtype == OP_STRING || x->dtype == OP_I64;
        const int64_t at = direct ? find_key(m, x->data, i) : find_key(m, &whole, 0);
        if (at < 0 && !zeros)
            return op__fail(ctx, OP_BAD_VALUE, "element %lld is no known category", (long long)i);
        if (at >= 0) y[i * m->keys.n + at] = 1;
    }
    return OP_OK;
}

static const struct op_desc one_hot_encoder = {.name = "OneHotEncoder",
                                               .domain = "ai.onnx.ml",
                                               .since = 1,
                                               .in_min = 1,
                                               .in_max = 1,
                                               .out_min = 1,
                                               .out_max = 1,
                                               .prepare = one_hot_prepare,
                                               .release = map_release,
                                               .infer = one_hot_infer,
                                               .run = one_hot_run};
OP_REGISTER(one_hot_encoder);
