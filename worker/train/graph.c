/* graph.c: the pieces that layers are made of: nodes, weights, constants, the order of channels,
 * activations. See layers.h. */
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "worker/train/layers.h"

bool w__layer_fail(struct w_graph *g, const char *format, ...) {
    char text[400];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    return w_fail(g->err, W_BAD_SPEC, "%s: %s", g->where, text);
}

struct w_name w__node(struct w_graph *g, const char *op, const char *const *inputs, int n,
                      const struct op_arg *args, int n_args) {
    struct w_name out;
    char type[24];
    w__train_snake(op, type, sizeof type);
    snprintf(out.s, sizeof out.s, "%s/%s_%d", g->name, type, ++g->n_nodes);
    op_builder_node(g->builder, op, inputs, n, (const char *[]){out.s}, 1, args, n_args);
    return out;
}

/* --- weights -----------------------------------------------------------------------------------
 */

static uint64_t hash_of(const char *text) {
    uint64_t h = 1469598103934665603u;
    for (; *text; text++) h = (h ^ (unsigned char)*text) * 1099511628211u;
    return h;
}

/* "he_normal", "HeNormal", {"type": "random_normal", "stddev": 0.01} */
static bool initializer(struct w_graph *g, json_t *json, const char *deflt, char *name, size_t size,
                        float *a) {
    static const char *const scale[] = {"stddev", "value", "gain", "maxval", NULL};
    const char *type = deflt;
    *a = NAN;
    if (json && !w__train_typed(json, &type, "an initializer", g->err))
        return w_fail_in(g->err, "%s: ", g->where);
    w__train_snake(type, name, size);
    const char *key;
    json_t *value;
    json_object_foreach(json, key, value) {
        int i = 0;
        while (scale[i] && strcmp(scale[i], key)) i++;
        if (strcmp(key, "type") == 0 || strcmp(key, "name") == 0) continue;
        if (!scale[i] || !json_is_number(value))
            return w__layer_fail(
                g,
                "initializer \"%s\": \"%.40s\" is not known, or no number (stddev, "
                "value, gain and maxval are known)",
                name, key);
        *a = (float)json_number_value(value);
    }
    return true;
}

static struct w_name name_of(const struct w_graph *g, const char *name) {
    struct w_name n;
    snprintf(n.s, sizeof n.s, "%s/%s", g->name, name);
    return n;
}

bool w__weight(struct w_graph *g, const char *name, int rank, const int64_t *dims, json_t *json,
               const char *deflt, int64_t fan_in, int64_t fan_out, struct w_name *dst) {
    struct op_tensor t = {.dtype = OP_F32, .rank = rank};
    char kind[48];
    float a;
    memcpy(t.dims, dims, (size_t)rank * sizeof *dims);
    int64_t count = op_tensor_count(&t);
    if (count < 0 || count > (int64_t)1 << 31)
        return w__layer_fail(g, "its weight \"%s\" would have more than 2^31 elements", name);
    if (!initializer(g, json, deflt, kind, sizeof kind, &a)) return false;
    *dst = name_of(g, name);
    t.data = malloc((size_t)count * sizeof(float) + 1);
    if (!t.data) return w_fail(g->err, W_NO_MEMORY, "%s: no memory for its weights", g->where);
    bool ok = op_initialize(&t, kind, fan_in, fan_out, a, w__train_mix(g->seed ^ hash_of(dst->s)));
    if (ok)
        op_builder_weight(g->builder, dst->s, &t);
    else
        w__layer_fail(g,
                      "there is no initializer \"%s\"; known are glorot_uniform, glorot_normal, "
                      "he_uniform, he_normal, lecun_uniform, lecun_normal, random_uniform, "
                      "random_normal, truncated_normal, orthogonal, zeros, ones, constant",
                      kind);
    free(t.data);
    return ok && (g->layer->trainable || w__freeze(g, dst->s));
}

bool w__freeze(struct w_graph *g, const char *pattern) {
    struct w_train_model *m = g->model;
    char **grown = realloc(m->freeze, ((size_t)m->n_freeze + 1) * sizeof *grown);
    if (grown) m->freeze = grown;
    char *copy = strdup(pattern);
    if (!grown || !copy) {
        free(copy);
        return w_fail(g->err, W_NO_MEMORY, "out of memory");
    }
    m->freeze[m->n_freeze++] = copy;
    return true;
}

bool w__ints(struct w_graph *g, const char *name, int n, const int64_t *values,
             struct w_name *dst) {
    struct op_tensor t = {
        .dtype = OP_I64, .rank = 1, .dims = {n}, .data = (void *)(uintptr_t)values};
    *dst = name_of(g, name);
    op_builder_weight(g->builder, dst->s, &t);
    return true;
}

bool w__scalar(struct w_graph *g, const char *name, float value, struct w_name *dst) {
    struct op_tensor t = {.dtype = OP_F32, .data = &value};
    *dst = name_of(g, name);
    op_builder_weight(g->builder, dst->s, &t);
    return true;
}

bool w__frozen(struct w_graph *g, const char *name, int64_t n, const float *values,
               struct w_name *dst) {
    struct op_tensor t = {
        .dtype = OP_F32, .rank = 1, .dims = {n}, .data = (void *)(uintptr_t)values};
    *dst = name_of(g, name);
    op_builder_weight(g->builder, dst->s, &t);
    return w__freeze(g, dst->s);
}

/* "l2", {"type": "l1l2", "l1": 0.01, "l2": 0.01}: the two factors. */
static bool read_factors(struct w_graph *g, json_t *json, const char *key, double *l) {
    const char *type, *word;
    json_t *value;
    char kind[16];
    if (!w__train_typed(json, &type, key, g->err)) return w_fail_in(g->err, "%s: ", g->where);
    w__train_snake(type, kind, sizeof kind);
    bool has1 = strncmp(kind, "l1", 2) == 0, has2 = strstr(kind, "l2") != NULL;
    if (!has1 && !has2)
        return w__layer_fail(g, "%s is \"%.40s\", l1, l2 or l1l2 is expected", key, type);
    l[0] = has1 ? 0.01 : 0;
    l[1] = has2 ? 0.01 : 0;
    json_object_foreach(json, word, value) {
        int i = strcmp(word, "l1") == 0 && has1 ? 0 : strcmp(word, "l2") == 0 && has2 ? 1 : -1;
        if (strcmp(word, "type") == 0 || strcmp(word, "name") == 0) continue;
        if (i < 0 || !json_is_number(value) || !(json_number_value(value) >= 0) ||
            !(json_number_value(value) < 1e6))
            return w__layer_fail(g, "%s: \"%.40s\" is not known, or no number from 0", key, word);
        l[i] = json_number_value(value);
    }
    return true;
}

/* Room for one more in one of the model's lists; a copy of the text that names it. */
static char *add_named(struct w_graph *g, void **list, int n, size_t size, const char *text) {
    void *grown = realloc(*list, ((size_t)n + 1) * size);
    if (grown) *list = grown;
    char *copy = grown ? strdup(text) : NULL;
    if (!copy) w_fail(g->err, W_NO_MEMORY, "out of memory");
    return copy;
}

/* Keras's l2 adds l2 · Σ w² to the loss. */
bool w__regularize(struct w_graph *g, json_t *json, const char *key, const char *weights) {
    struct w_train_model *m = g->model;
    char pattern[W_TRAIN_NAME_MAX + 32];
    double l[2];
    if (!json || json_is_null(json)) return true;
    if (!read_factors(g, json, key, l)) return false;
    snprintf(pattern, sizeof pattern, "%s/%s", g->name, weights);
    char *copy = add_named(g, (void **)&m->regularizers, m->n_regularizers,
                           sizeof *m->regularizers, pattern);
    if (!copy) return false;
    m->regularizers[m->n_regularizers++] = (struct op_regularizer){copy, (float)l[0], (float)l[1]};
    return true;
}

bool w__activity(struct w_graph *g, double l1, double l2) {
    struct w_train_model *m = g->model;
    int64_t elements = 1;
    for (int i = 0; i < g->flow.rank; i++) elements *= g->flow.dims[i];
    char *copy = add_named(g, (void **)&m->activities, m->n_activities, sizeof *m->activities,
                           g->flow.value.s);
    if (!copy) return false;
    m->activities[m->n_activities++] =
        (struct op_activity){copy, (float)l1, (float)l2, elements};
    return true;
}

bool w__activity_of(struct w_graph *g, const struct w_layer *l) {
    double f[2];
    if (!l->activity_regularizer || json_is_null(l->activity_regularizer)) return true;
    return read_factors(g, l->activity_regularizer, "activity_regularizer", f) &&
           w__activity(g, f[0], f[1]);
}

bool w__noise(struct w_graph *g, const char *kind, double amount, int axis) {
    struct w_train_model *m = g->model;
    struct w_name rate;
    if (amount == 0) return true;
    char word[W_TRAIN_NAME_MAX + 1];
    snprintf(word, sizeof word, "rate%d", g->n_nodes);
    if (!w__scalar(g, word, (float)(amount < 1 ? amount : 0.5), &rate)) return false;
    g->flow.value = W_NODE2(g, "Dropout", g->flow.value, rate);
    char *copy =
        add_named(g, (void **)&m->noises, m->n_noises, sizeof *m->noises, g->flow.value.s);
    if (!copy) return false;
    m->noises[m->n_noises++] = (struct op_noise){copy, kind, (float)amount, axis};
    return true;
}

bool w__regularize_both(struct w_graph *g, const struct w_layer *l) {
    return w__regularize(g, l->kernel_regularizer, "kernel_regularizer", "*kernel") &&
           w__regularize(g, l->bias_regularizer, "bias_regularizer", "*bias");
}

/* --- shapes ------------------------------------------------------------------------------------
 */

void w__transpose(struct w_graph *g, int n, const int64_t *perm) {
    g->flow.value = W_NODE1(g, "Transpose", g->flow.value, W_INTS("perm", perm, n));
}

bool w__reshape(struct w_graph *g, const char *name, int n, const int64_t *dims) {
    struct w_name shape = {""};
    if (!w__ints(g, name, n, dims, &shape)) return false;
    g->flow.value = W_NODE2(g, "Reshape", g->flow.value, shape);
    return true;
}

void w__channels_first(struct w_graph *g) {
    int64_t perm[OP_RANK_MAX] = {0, g->flow.rank};
    if (g->flow.first || g->flow.rank < 2) return;
    for (int i = 2; i <= g->flow.rank; i++) perm[i] = i - 1;
    w__transpose(g, g->flow.rank + 1, perm);
    g->flow.first = true;
}

void w__channels_last(struct w_graph *g) {
    int64_t perm[OP_RANK_MAX] = {0};
    if (!g->flow.first) return;
    for (int i = 1; i < g->flow.rank; i++) perm[i] = i + 1;
    perm[g->flow.rank] = 1;
    w__transpose(g, g->flow.rank + 1, perm);
    g->flow.first = false;
}

static const char *shape_text(const struct w_flow *f, char *dst, size_t size) {
    size_t n = (size_t)snprintf(dst, size, "[N");
    for (int i = 0; i < f->rank && n + 24 < size; i++)
        n += (size_t)snprintf(dst + n, size - n, ", %lld", (long long)f->dims[i]);
    snprintf(dst + n, size - n, "]");
    return dst;
}

bool w__rank_is(struct w_graph *g, int rank, const char *layout) {
    char text[160];
    return g->flow.rank == rank || w__layer_fail(g, "it takes %s, the layer before gives %s",
                                                 layout, shape_text(&g->flow, text, sizeof text));
}

bool w__whole(struct w_graph *g, const char *what, const struct w_floats *f, int n, int64_t deflt,
              int64_t *dst) {
    if (f->n > 1 && f->n != n)
        return w__layer_fail(g, "\"%s\" has %d numbers, %d or one are expected", what, f->n, n);
    for (int i = 0; i < n; i++) {
        double v = f->n == 0 ? (double)deflt : f->v[f->n == 1 ? 0 : i];
        if (v != floor(v))
            return w__layer_fail(g, "\"%s\" is %g, a whole number is expected", what, v);
        dst[i] = (int64_t)v;
    }
    return true;
}

/* x / √max(Σ x², 1e-12) */
bool w__unit_norm(struct w_graph *g) {
    struct w_name axes, least;
    const struct op_arg args[] = {W_INT("keepdims", 1)};
    w__channels_last(g);
    if (!w__ints(g, "norm_axes", 1, (int64_t[]){-1}, &axes) ||
        !w__scalar(g, "least", 1e-12f, &least))
        return false;
    struct w_name squares = W_NODE2(g, "Mul", g->flow.value, g->flow.value),
                  sum = w__node(g, "ReduceSum", (const char *[]){squares.s, axes.s}, 2, args, 1);
    sum = W_NODE2(g, "Max", sum, least);
    sum = w__node(g, "Sqrt", (const char *[]){sum.s}, 1, NULL, 0);
    g->flow.value = W_NODE2(g, "Div", g->flow.value, sum);
    return true;
}

/* --- activations -------------------------------------------------------------------------------
 */

static const struct {
    const char *name, *op;
} activations[] = {{"relu", "Relu"},
                   {"sigmoid", "Sigmoid"},
                   {"tanh", "Tanh"},
                   {"softmax", "Softmax"},
                   {"elu", "Elu"},
                   {"selu", "Selu"},
                   {"softplus", "Softplus"},
                   {"softsign", "Softsign"},
                   {"exponential", "Exp"},
                   {"log_softmax", "LogSoftmax"},
                   {"hard_sigmoid", "HardSigmoid"},
                   {"leaky_relu", "LeakyRelu"},
                   {"relu6", NULL},
                   {"gelu", NULL},
                   {"swish", NULL},
                   {"silu", NULL},
                   {"linear", NULL}};

static const char *next_activation(void *user, size_t i) {
    (void)user;
    return i < sizeof activations / sizeof *activations ? activations[i].name : NULL;
}

const char *w__activation_op(const char *name) {
    for (size_t i = 0; i < sizeof activations / sizeof *activations; i++)
        if (strcmp(activations[i].name, name) == 0) return activations[i].op;
    return NULL;
}

/* x/2 · (1 + erf(x/√2)) */
static bool gelu(struct w_graph *g) {
    struct w_name half, one, root;
    if (!w__scalar(g, "half", 0.5f, &half) || !w__scalar(g, "one", 1, &one) ||
        !w__scalar(g, "root", (float)M_SQRT1_2, &root))
        return false;
    struct w_name scaled = W_NODE2(g, "Mul", g->flow.value, root),
                  erf_ = w__node(g, "Erf", (const char *[]){scaled.s}, 1, NULL, 0),
                  sum = W_NODE2(g, "Add", erf_, one), both = W_NODE2(g, "Mul", g->flow.value, sum);
    g->flow.value = W_NODE2(g, "Mul", both, half);
    return true;
}

bool w__activate(struct w_graph *g, const char *name) {
    char word[40];
    if (!name) return true;
    w__train_snake(name, word, sizeof word);
    const char *op = w__activation_op(word);
    g->model->softmax = strcmp(word, "softmax") == 0;
    g->model->sigmoid = strcmp(word, "sigmoid") == 0;
    if (strcmp(word, "linear") == 0) return true;
    if (strcmp(word, "gelu") == 0) return gelu(g);
    if (strcmp(word, "swish") == 0 || strcmp(word, "silu") == 0) {
        struct w_name s = w__node(g, "Sigmoid", (const char *[]){g->flow.value.s}, 1, NULL, 0);
        g->flow.value = W_NODE2(g, "Mul", g->flow.value, s);
        return true;
    }
    if (strcmp(word, "relu6") == 0) {
        struct w_name low, high;
        if (!w__scalar(g, "low", 0, &low) || !w__scalar(g, "high", 6, &high)) return false;
        g->flow.value =
            w__node(g, "Clip", (const char *[]){g->flow.value.s, low.s, high.s}, 3, NULL, 0);
        return true;
    }
    if (!op) return w__train_unknown(g->where, "activation", name, next_activation, NULL, g->err);
    if (strstr(word, "softmax")) {
        w__channels_last(g);
        g->flow.value = W_NODE1(g, op, g->flow.value, W_INT("axis", -1));
    } else if (strcmp(word, "leaky_relu") == 0) {
        g->flow.value = W_NODE1(g, op, g->flow.value, W_FLOAT("alpha", 0.2f));
    } else {
        g->flow.value = w__node(g, op, (const char *[]){g->flow.value.s}, 1, NULL, 0);
    }
    return true;
}
