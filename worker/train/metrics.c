/* metrics.c: what is told of an epoch beside the loss. A metric is a row of the table: how many
 * numbers it keeps, which targets it takes, how a batch changes them, what they come to. The state
 * is plain numbers, so a checkpoint holds it. Definitions are Keras's; AUC is its 200 thresholds
 * with trapezia. Those of rankings and of sequences are in metrics_rank.c. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "worker/nearest.h"
#include "worker/train/metrics.h"

#define THRESHOLDS 200
#define CONFUSION_CLASSES_MAX 1000

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

/* exp of the mean of a crossentropy */
static void entropy(struct w_metric *m, const struct w_outcome *o) {
    m->state[0] += o->loss * (double)o->rows;
    m->state[1] += (double)o->rows;
}
static double perplexity(const struct w_metric *m) {
    return exp(ratio(m));
}

/* state[is · n + said], n classes (2 for one output with a threshold) */
static void confusion(struct w_metric *m, const struct w_outcome *o) {
    int64_t n = o->classes > 1 ? o->classes : 2;
    for (int64_t i = 0; i < o->rows; i++) {
        bool one = o->classes == 1;
        int64_t is = one ? target(o, i, 0) > 0.5 : right_class(o, i),
                said = one ? (double)o->output[i] > m->threshold
                           : largest(o->output + i * o->classes, o->classes);
        if (is >= 0 && is < n) m->state[is * n + said]++;
    }
}
static double diagonal(const struct w_metric *m) {
    int n = (int)lround(sqrt(m->n_state));
    double right = 0, all = 0;
    for (int i = 0; i < m->n_state; i++) all += m->state[i];
    for (int i = 0; i < n; i++) right += m->state[i * n + i];
    return all > 0 ? right / all : 0;
}

#define ANY (W_ON_CLASSES | W_ON_NUMBERS)
static const struct w_metric_desc descs[] = {
    {"accuracy", 2, ANY, categorical, ratio, 0}, /* or one of the next: by loss and shape */
    {"categorical_accuracy", 2, ANY, categorical, ratio, 0},
    {"sparse_categorical_accuracy", 2, ANY, categorical, ratio, 0},
    {"binary_accuracy", 2, ANY, binary, ratio, 0},
    {"top_k_categorical_accuracy", 2, ANY, top_k, ratio, 5},
    {"sparse_top_k_categorical_accuracy", 2, ANY, top_k, ratio, 5},
    {"mean_squared_error", 2, ANY, squares, ratio, 0},
    {"mean_absolute_error", 2, ANY, distances, ratio, 0},
    {"root_mean_squared_error", 2, ANY, squares, root, 0},
    {"r2_score", 4, ANY, spread, r2, 0},
    {"precision", 3, ANY, hits, precision, 0},
    {"recall", 3, ANY, hits, recall, 0},
    {"f1_score", 3, ANY, hits, f1, 0},
    {"auc", 2 * THRESHOLDS, ANY, histogram, auc, 0},
    {"confusion_matrix", 0, ANY, confusion, diagonal, 0},
    {"perplexity", 2, ANY | W_ON_LABELS, entropy, perplexity, 0},
    {"hit_rate", 2, ANY | W_ON_FIRST, w__metric_hit_rate, ratio, 10},
    {"ndcg", 2, ANY | W_ON_FIRST, w__metric_ndcg, ratio, 10},
    {"mean_reciprocal_rank", 2, ANY | W_ON_FIRST, w__metric_reciprocal_rank, ratio, 0},
    {"mean_average_precision", 2, ANY | W_ON_FIRST, w__metric_average_precision, ratio, 0},
    {"word_error_rate", 2, W_ON_LABELS, w__metric_edits, ratio, 0},
    {"character_error_rate", 2, W_ON_LABELS, w__metric_edits, ratio, 0},
};
static const struct {
    const char *alias, *name;
} aliases[] = {{"acc", "accuracy"},
               {"mse", "mean_squared_error"},
               {"mae", "mean_absolute_error"},
               {"rmse", "root_mean_squared_error"},
               {"r2", "r2_score"},
               {"f1", "f1_score"},
               {"top_k", "top_k_categorical_accuracy"},
               {"mrr", "mean_reciprocal_rank"},
               {"map", "mean_average_precision"},
               {"wer", "word_error_rate"},
               {"cer", "character_error_rate"}};

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
        int32_t k, separator;
        double threshold;
        char *name;
    } g = {0};
    /* clang-format off */
    static const struct w_param params[] = {
        {.name = "k", .kind = W_PARAM_INT, .offset = offsetof(struct given, k), .min = 0, .max = 1 << 20},
        {.name = "separator", .kind = W_PARAM_INT, .offset = offsetof(struct given, separator), .min = -1, .max = 1 << 30, .deflt = -1},
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
    enum op_target on = op_loss_target(spec->loss.name);
    if (!(m->desc->takes >> on & 1))
        return w_fail(err, W_BAD_SPEC, "%s: \"%s\" says nothing of a model that is trained by \"%s\"",
                      where, m->name, spec->loss.name);
    if (m->desc == &descs[0] && two) m->desc = find("binary_accuracy");
    m->k = g.k ? g.k : m->desc->k;
    m->separator = g.separator;
    m->blank = spec->loss.blank;
    /* Where the model gives logits, 0 is where the probability is ½. */
    m->threshold = spec->loss.from_logits && g.threshold == 0.5 ? 0 : g.threshold;
    m->n_state = m->desc->n_state;
    int64_t classes = model->output_dims[model->output_rank - 1];
    if (!m->n_state && classes > CONFUSION_CLASSES_MAX)
        return w_fail(err, W_BAD_SPEC, "%s: a confusion matrix of %lld classes, at most %d are possible",
                      where, (long long)classes, CONFUSION_CLASSES_MAX);
    if (!m->n_state) m->n_state = (int)(classes > 1 ? classes * classes : 4);
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

void w_metrics_update(struct w_metrics *m, const struct w_outcome *o) {
    m->loss += o->loss * (double)o->rows;
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
        if (m->items[i].desc->update == confusion) continue; /* w_metrics_matrices */
        snprintf(key, sizeof key, "%s%s", prefix, m->items[i].name);
        json_object_set_new(into, key, json_real(w_metric_value(&m->items[i])));
    }
}

void w_metrics_matrices(const struct w_metrics *m, json_t *into) {
    for (int k = 0; k < m->n; k++) {
        const struct w_metric *c = &m->items[k];
        int n = (int)lround(sqrt(c->n_state));
        if (c->desc->update != confusion) continue;
        json_t *rows = json_array();
        for (int i = 0; i < n; i++) {
            json_t *row = json_array();
            for (int j = 0; j < n; j++)
                json_array_append_new(row, json_integer((json_int_t)c->state[i * n + j]));
            json_array_append_new(rows, row);
        }
        json_object_set_new(into, c->name, rows);
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
