/* metrics.c: what is told of an epoch beside the loss. A metric is a row of the table: how many
 * numbers it keeps, how a batch changes them, what they come to. The state is plain numbers, so a
 * checkpoint holds it. Definitions are Keras's; AUC is its 200 thresholds with trapezia. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "worker/nearest.h"
#include "worker/train/train.h"

#define THRESHOLDS 200

struct w_metric_desc {
    const char *name;
    int n_state;
    void (*update)(struct w_metric *m, const struct w_outcome *o);
    double (*value)(const struct w_metric *m);
};

static double target(const struct w_outcome *o, int64_t row, int64_t c) {
    return o->sparse ? (o->sparse[row] == c) : (double)o->dense[row * o->classes + c];
}

static int64_t largest(const float *v, int64_t n) {
    int64_t best = 0;
    for (int64_t i = 1; i < n; i++)
        if (v[i] > v[best]) best = i;
    return best;
}

static int64_t right_class(const struct w_outcome *o, int64_t row) {
    return o->sparse ? o->sparse[row] : largest(o->dense + row * o->classes, o->classes);
}

static double ratio(const struct w_metric *m) {
    return m->state[1] > 0 ? m->state[0] / m->state[1] : 0;
}

static void categorical(struct w_metric *m, const struct w_outcome *o) {
    for (int64_t i = 0; i < o->rows; i++)
        m->state[0] += largest(o->output + i * o->classes, o->classes) == right_class(o, i);
    m->state[1] += (double)o->rows;
}

static void binary(struct w_metric *m, const struct w_outcome *o) {
    for (int64_t i = 0; i < o->rows; i++)
        for (int64_t c = 0; c < o->classes; c++)
            m->state[0] +=
                ((double)o->output[i * o->classes + c] > m->threshold) == (target(o, i, c) > 0.5);
    m->state[1] += (double)(o->rows * o->classes);
}

static void top_k(struct w_metric *m, const struct w_outcome *o) {
    for (int64_t i = 0; i < o->rows; i++) {
        const float *v = o->output + i * o->classes;
        int64_t right = right_class(o, i), above = 0;
        for (int64_t c = 0; c < o->classes && right >= 0 && right < o->classes; c++)
            above += c < right ? v[c] >= v[right] : v[c] > v[right];
        m->state[0] += above < m->k;
    }
    m->state[1] += (double)o->rows;
}

static void squares(struct w_metric *m, const struct w_outcome *o) {
    for (int64_t i = 0; i < o->rows; i++)
        for (int64_t c = 0; c < o->classes; c++) {
            double d = (double)o->output[i * o->classes + c] - target(o, i, c);
            m->state[0] += d * d;
        }
    m->state[1] += (double)(o->rows * o->classes);
}

static void distances(struct w_metric *m, const struct w_outcome *o) {
    for (int64_t i = 0; i < o->rows; i++)
        for (int64_t c = 0; c < o->classes; c++)
            m->state[0] += fabs((double)o->output[i * o->classes + c] - target(o, i, c));
    m->state[1] += (double)(o->rows * o->classes);
}

static double root(const struct w_metric *m) {
    return sqrt(ratio(m));
}

/* Σ(t−p)², n, Σt, Σt² */
static void spread(struct w_metric *m, const struct w_outcome *o) {
    squares(m, o);
    for (int64_t i = 0; i < o->rows; i++)
        for (int64_t c = 0; c < o->classes; c++) {
            double t = target(o, i, c);
            m->state[2] += t;
            m->state[3] += t * t;
        }
}

static double r2(const struct w_metric *m) {
    double n = m->state[1], total = n > 0 ? m->state[3] - m->state[2] * m->state[2] / n : 0;
    return total > 0 ? 1 - m->state[0] / total : 0;
}

/* right positives, false positives, missed */
static void hits(struct w_metric *m, const struct w_outcome *o) {
    for (int64_t i = 0; i < o->rows; i++)
        for (int64_t c = 0; c < o->classes; c++) {
            bool said = (double)o->output[i * o->classes + c] > m->threshold,
                 is = target(o, i, c) > 0.5;
            m->state[0] += said && is;
            m->state[1] += said && !is;
            m->state[2] += !said && is;
        }
}

static double precision(const struct w_metric *m) {
    double said = m->state[0] + m->state[1];
    return said > 0 ? m->state[0] / said : 0;
}
static double recall(const struct w_metric *m) {
    double are = m->state[0] + m->state[2];
    return are > 0 ? m->state[0] / are : 0;
}
static double f1(const struct w_metric *m) {
    double p = precision(m), r = recall(m);
    return p + r > 0 ? 2 * p * r / (p + r) : 0;
}

/* Histograms of scores: of the positives, then of the negatives. */
static void histogram(struct w_metric *m, const struct w_outcome *o) {
    for (int64_t i = 0; i < o->rows; i++)
        for (int64_t c = 0; c < o->classes; c++) {
            double v = (double)o->output[i * o->classes + c] * (THRESHOLDS - 1);
            int bin = v >= THRESHOLDS - 1 ? THRESHOLDS - 1 : v > 0 ? (int)v : 0;
            m->state[(target(o, i, c) > 0.5 ? 0 : THRESHOLDS) + bin]++;
        }
}

static double auc(const struct w_metric *m) {
    const double *pos = m->state, *neg = m->state + THRESHOLDS;
    double n_pos = 0, n_neg = 0, tp = 0, fp = 0, area = 0;
    for (int i = 0; i < THRESHOLDS; i++) n_pos += pos[i], n_neg += neg[i];
    if (!(n_pos > 0 && n_neg > 0)) return 0;
    for (int i = THRESHOLDS - 1; i >= 0; i--) {
        area += neg[i] / n_neg * (tp + pos[i] / 2) / n_pos;
        tp += pos[i];
        fp += neg[i];
    }
    return area;
}

static const struct w_metric_desc descs[] = {
    {"accuracy", 2, categorical, ratio}, /* or one of the next: by loss and shape */
    {"categorical_accuracy", 2, categorical, ratio},
    {"sparse_categorical_accuracy", 2, categorical, ratio},
    {"binary_accuracy", 2, binary, ratio},
    {"top_k_categorical_accuracy", 2, top_k, ratio},
    {"sparse_top_k_categorical_accuracy", 2, top_k, ratio},
    {"mean_squared_error", 2, squares, ratio},
    {"mean_absolute_error", 2, distances, ratio},
    {"root_mean_squared_error", 2, squares, root},
    {"r2_score", 4, spread, r2},
    {"precision", 3, hits, precision},
    {"recall", 3, hits, recall},
    {"f1_score", 3, hits, f1},
    {"auc", 2 * THRESHOLDS, histogram, auc},
};
static const struct {
    const char *alias, *name;
} aliases[] = {{"acc", "accuracy"},
               {"mse", "mean_squared_error"},
               {"mae", "mean_absolute_error"},
               {"rmse", "root_mean_squared_error"},
               {"r2", "r2_score"},
               {"f1", "f1_score"},
               {"top_k", "top_k_categorical_accuracy"}};

static const char *next_metric(void *user, size_t i) {
    (void)user;
    return i < sizeof descs / sizeof *descs ? descs[i].name : NULL;
}

static const struct w_metric_desc *find(const char *name) {
    for (size_t i = 0; i < sizeof aliases / sizeof *aliases; i++)
        if (strcmp(aliases[i].alias, name) == 0) name = aliases[i].name;
    for (size_t i = 0; i < sizeof descs / sizeof *descs; i++)
        if (strcmp(descs[i].name, name) == 0) return &descs[i];
    return NULL;
}

static bool read_metric(json_t *json, const struct w_spec_train *spec,
                        const struct w_train_model *model, struct w_metric *m, const char *where,
                        struct w_error *err) {
    struct given {
        int32_t k;
        double threshold;
        char *name;
    } g = {0};
    /* clang-format off */
    static const struct w_param params[] = {
        {.name = "k", .kind = W_PARAM_INT, .offset = offsetof(struct given, k), .min = 1, .max = 1 << 20, .deflt = 5},
        {.name = "threshold", .kind = W_PARAM_DOUBLE, .offset = offsetof(struct given, threshold), .deflt = 0.5},
        {.name = "name", .kind = W_PARAM_TEXT, .offset = offsetof(struct given, name)},
        {0}};
    /* clang-format on */
    const char *type;
    char word[64];
    json_t *none = json_object();
    bool ok = w__train_typed(json, &type, where, err) &&
              w__train_params(params, json_is_object(json) ? json : none, &g, where, err);
    json_decref(none);
    if (!ok) return false;
    w__train_snake(type, word, sizeof word);
    m->desc = find(word);
    snprintf(m->name, sizeof m->name, "%s", g.name ? g.name : word);
    w__params_free(params, &g);
    if (!m->desc) return w__train_unknown(where, "metric", type, next_metric, NULL, err);
    bool two =
        strncmp(spec->loss.name, "binary", 6) == 0 ||
        (model->output_dims[model->output_rank - 1] == 1 && !op_loss_is_sparse(spec->loss.name));
    if (m->desc == &descs[0] && two) m->desc = find("binary_accuracy");
    m->k = g.k;
    /* Where the model gives logits, 0 is where the probability is ½. */
    m->threshold = spec->loss.from_logits && g.threshold == 0.5 ? 0 : g.threshold;
    m->n_state = m->desc->n_state;
    m->state = calloc((size_t)m->n_state, sizeof *m->state);
    return m->state || w_fail(err, W_NO_MEMORY, "out of memory");
}

bool w_metrics_parse(json_t *list, const struct w_spec_train *spec,
                     const struct w_train_model *model, struct w_metrics *dst,
                     struct w_error *err) {
    size_t i;
    json_t *json;
    *dst = (struct w_metrics){0};
    if (!list) return true;
    if (!json_is_array(list) || json_array_size(list) > W_TRAIN_METRICS_MAX)
        return w_fail(err, W_BAD_SPEC, "compile.metrics must be a list of at most %d names",
                      W_TRAIN_METRICS_MAX);
    json_array_foreach(list, i, json) {
        char where[64];
        snprintf(where, sizeof where, "compile.metrics[%zu]", i);
        if (!read_metric(json, spec, model, &dst->items[dst->n], where, err)) return false;
        dst->n++;
    }
    return true;
}

void w_metrics_reset(struct w_metrics *m) {
    m->loss = m->rows = 0;
    for (int i = 0; i < m->n; i++)
        memset(m->items[i].state, 0, (size_t)m->items[i].n_state * sizeof(double));
}

void w_metrics_update(struct w_metrics *m, const struct w_outcome *o, double loss) {
    m->loss += loss * (double)o->rows;
    m->rows += (double)o->rows;
    for (int i = 0; i < m->n; i++) m->items[i].desc->update(&m->items[i], o);
}

double w_metric_value(const struct w_metric *m) {
    return m->desc->value(m);
}

void w_metrics_json(const struct w_metrics *m, const char *prefix, json_t *into) {
    char key[96];
    snprintf(key, sizeof key, "%sloss", prefix);
    json_object_set_new(into, key, json_real(m->rows > 0 ? m->loss / m->rows : 0));
    for (int i = 0; i < m->n; i++) {
        snprintf(key, sizeof key, "%s%s", prefix, m->items[i].name);
        json_object_set_new(into, key, json_real(w_metric_value(&m->items[i])));
    }
}

json_t *w_metrics_save(const struct w_metrics *m) {
    json_t *all = json_array();
    json_array_append_new(all, json_real(m->loss));
    json_array_append_new(all, json_real(m->rows));
    for (int i = 0; i < m->n; i++)
        for (int k = 0; k < m->items[i].n_state; k++)
            json_array_append_new(all, json_real(m->items[i].state[k]));
    return all;
}

void w_metrics_load(struct w_metrics *m, json_t *from) {
    size_t at = 0;
    m->loss = json_number_value(json_array_get(from, at++));
    m->rows = json_number_value(json_array_get(from, at++));
    for (int i = 0; i < m->n; i++)
        for (int k = 0; k < m->items[i].n_state; k++)
            m->items[i].state[k] = json_number_value(json_array_get(from, at++));
}

void w_metrics_finish(struct w_metrics *m) {
    for (int i = 0; i <= m->n && i <= W_TRAIN_METRICS_MAX; i++) free(m->items[i].state);
    *m = (struct w_metrics){0};
}
