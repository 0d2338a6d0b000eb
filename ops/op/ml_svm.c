/* ml_svm.c: SVMRegressor and SVMClassifier of ai.onnx.ml, in the form that libsvm's models are
 * exported in.
 *
 * A machine is Σ coefficient_i K(support vector_i, x) + rho, with the kernel K x·v, (γ x·v +
 * c)^degree, e^(-γ |x - v|²) or tanh(γ x·v + c). Sums run in f64 in the order of the lists.
 *
 * The classifier has a machine for each pair of classes i < j: the vectors of class i stand
 * together, and coefficient row j - 1 of them and row i of those of class j belong to the pair.
 * With prob_a and prob_b each pair gives a probability 1 / (1 + e^(A f + B)), and the classes'
 * probabilities are those that agree best with the pairs (Wu, Lin and Weng, "Probability estimates
 * for multi-class classification by pairwise coupling", 2004, second method); without, the pairs
 * vote and the scores are the pairs' values, of two classes -f and f for f in favour of the second.
 * Without vectors the coefficients are a row of weights a class. */
#include "ops/op/elementwise.h"
#include "ops/op/ml.h"
#include "ops/op/nn.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum kernel { LINEAR, POLY, RBF, SIGMOID };

struct machine {
    int64_t n_vectors, n_features; /* n_vectors 0: coefficients are the weights of a linear model */
    int64_t n_coefficients, n_rho;
    const float *coefficients, *vectors, *rho;
    double gamma, coef0, degree;
    enum kernel kernel;
    enum ml_transform transform;
    bool one_class;
    struct ml_labels labels; /* from here on of the classifier */
    int64_t n_per_class;
    const int64_t *per_class; /* vectors of each class */
    const float *prob_a, *prob_b;
};

static enum op_status machine_parse(struct op_prepare *p, struct machine *s, int64_t *n_values) {
    static const char *const names[] = {"LINEAR", "POLY", "RBF", "SIGMOID"};
    const struct op_node *n = p->node;
    const char *kernel = op__attr_string(n, "kernel_type", "LINEAR");
    int64_t n_params;
    int k = 0;
    while (k < 4 && strcmp(names[k], kernel)) k++;
    if (k == 4)
        return op__node_fail(p->err, n, OP_BAD_VALUE,
                             "kernel_type is \"%s\", must be LINEAR, POLY, RBF or SIGMOID", kernel);
    s->kernel = (enum kernel)k;
    s->coefficients = op__attr_floats(n, "coefficients", &s->n_coefficients);
    s->vectors = op__attr_floats(n, "support_vectors", n_values);
    s->rho = op__attr_floats(n, "rho", &s->n_rho);
    const float *params = op__attr_floats(n, "kernel_params", &n_params);
    if (n_params >= 3) s->gamma = params[0], s->coef0 = params[1], s->degree = params[2];
    if (s->kernel != LINEAR && n_params < 3)
        return op__node_fail(p->err, n, OP_BAD_MODEL, "kernel_params has %lld values, must have 3",
                             (long long)n_params);
    return op__ml_transform_parse(n, p->err, &s->transform);
}

static double kernel_of(const struct machine *s, const float *v, const struct op_tensor *x,
                        int64_t row) {
    double sum = 0;
    for (int64_t i = 0; i < s->n_features; i++) {
        const double a = nn_load(x, row + i);
        sum += s->kernel == RBF ? (a - v[i]) * (a - v[i]) : a * v[i];
    }
    switch (s->kernel) {
    case POLY:
        return pow(s->gamma * sum + s->coef0, s->degree);
    case RBF:
        return exp(-s->gamma * sum);
    case SIGMOID:
        return tanh(s->gamma * sum + s->coef0);
    default:
        return sum;
    }
}

/* --- SVMRegressor ------------------------------------------------------------------------------
 */

static enum op_status svm_prepare(struct op_prepare *p) {
    struct machine *s = calloc(1, sizeof *s);
    int64_t n_values;
    if (!s) return op__node_fail(p->err, p->node, OP_NOMEM, "no memory");
    p->node->state = s;
    enum op_status status = machine_parse(p, s, &n_values);
    if (status != OP_OK) return status;
    s->n_vectors = op__attr_int(p->node, "n_supports", 0);
    s->one_class = op__attr_int(p->node, "one_class", 0) != 0;
    const bool fits = s->n_vectors > 0 ? s->n_coefficients == s->n_vectors && n_values > 0 &&
                                             n_values % s->n_vectors == 0
                                       : s->n_coefficients > 0;
    if (!fits || s->n_vectors < 0)
        return op__node_fail(p->err, p->node, OP_BAD_MODEL,
                             "%lld support vectors do not fit %lld values and %lld coefficients",
                             (long long)s->n_vectors, (long long)n_values,
                             (long long)s->n_coefficients);
    s->n_features = s->n_vectors > 0 ? n_values / s->n_vectors : s->n_coefficients;
    return OP_OK;
}

static enum op_status svm_infer(struct op_ctx *ctx) {
    const struct machine *s = ctx->state;
    int64_t rows, features;
    enum op_status status = op__ml_rows(ctx, &rows, &features);
    if (status != OP_OK) return status;
    if (features != s->n_features)
        return op__fail(ctx, OP_BAD_SHAPE, "the input has %lld features, the machine %lld",
                        (long long)features, (long long)s->n_features);
    op__set(ctx, 0, OP_F32, 2, (int64_t[]){rows, 1});
    return OP_OK;
}

static enum op_status svm_run(struct op_ctx *ctx) {
    const struct machine *s = ctx->state;
    const struct op_tensor *x = ctx->in[0];
    int64_t rows, features;
    enum op_status status = op__ml_rows(ctx, &rows, &features);
    if (status != OP_OK || !ctx->out[0]) return status;
    for (int64_t row = 0; row < rows; row++) {
        double score = s->n_rho ? s->rho[0] : 0;
        if (s->n_vectors > 0)
            for (int64_t i = 0; i < s->n_vectors; i++)
                score += s->coefficients[i] *
                         kernel_of(s, s->vectors + i * s->n_features, x, row * features);
        else
            score += kernel_of(s, s->coefficients, x, row * features);
        if (s->one_class) score = score > 0 ? 1 : -1;
        op__ml_transform(s->transform, &score, 1);
        nn_store(ctx->out[0], row, score);
    }
    return OP_OK;
}

static const struct op_desc svm_regressor = {.name = "SVMRegressor",
                                             .domain = "ai.onnx.ml",
                                             .since = 1,
                                             .in_min = 1,
                                             .in_max = 1,
                                             .out_min = 1,
                                             .out_max = 1,
                                             .prepare = svm_prepare,
                                             .release = free,
                                             .infer = svm_infer,
                                             .run = svm_run};
OP_REGISTER(svm_regressor);

/* --- SVMClassifier -----------------------------------------------------------------------------
 */

static enum op_status classifier_prepare(struct op_prepare *p) {
    const struct op_node *n = p->node;
    struct machine *s = calloc(1, sizeof *s);
    int64_t n_values, n_a, n_b;
    if (!s) return op__node_fail(p->err, n, OP_NOMEM, "no memory");
    p->node->state = s;
    enum op_status status = machine_parse(p, s, &n_values);
    if (status == OP_OK)
        status =
            op__ml_labels_parse(n, p->err, "classlabels_ints", "classlabels_strings", &s->labels);
    if (status != OP_OK) return status;
    s->per_class = op__attr_ints(n, "vectors_per_class", &s->n_per_class);
    s->prob_a = op__attr_floats(n, "prob_a", &n_a);
    s->prob_b = op__attr_floats(n, "prob_b", &n_b);
    const int64_t classes = s->labels.n, pairs = classes * (classes - 1) / 2;
    if (classes > 1 << 12)
        return op__node_fail(p->err, n, OP_LIMIT, "has %lld classes, at most 4,096 are supported",
                             (long long)classes);
    for (int64_t i = 0; i < s->n_per_class; i++) {
        if (s->per_class[i] < 0 || s->per_class[i] > 1 << 30 || s->n_vectors > 1 << 30)
            return op__node_fail(p->err, n, OP_BAD_VALUE, "vectors_per_class has %lld",
                                 (long long)s->per_class[i]);
        s->n_vectors += s->per_class[i];
    }
    bool fits = s->n_vectors > 0
                    ? s->n_per_class == classes && classes > 1 && n_values > 0 &&
                          n_values % s->n_vectors == 0 &&
                          s->n_coefficients == (classes - 1) * s->n_vectors && s->n_rho == pairs
                    : s->n_coefficients > 0 && s->n_coefficients % classes == 0;
    fits = fits && n_a == n_b && (n_a == 0 || (n_a == pairs && s->n_vectors > 0));
    if (!fits)
        return op__node_fail(p->err, n, OP_BAD_MODEL,
                             "%lld classes, %lld vectors of %lld values, %lld coefficients, %lld "
                             "rho and %lld prob_a do not fit",
                             (long long)classes, (long long)s->n_vectors, (long long)n_values,
                             (long long)s->n_coefficients, (long long)s->n_rho, (long long)n_a);
    s->n_features = s->n_vectors > 0 ? n_values / s->n_vectors : s->n_coefficients / classes;
    if (n_a == 0) s->prob_a = s->prob_b = NULL;
    return OP_OK;
}

/* Scores a row. */
static int64_t n_scores(const struct machine *s) {
    const int64_t classes = s->labels.n;
    return s->prob_a || s->n_vectors == 0 || classes == 2 ? classes : classes * (classes - 1) / 2;
}

static enum op_status classifier_infer(struct op_ctx *ctx) {
    const struct machine *s = ctx->state;
    int64_t rows, features;
    enum op_status status = op__ml_rows(ctx, &rows, &features);
    if (status != OP_OK) return status;
    if (features != s->n_features)
        return op__fail(ctx, OP_BAD_SHAPE, "the input has %lld features, the machine %lld",
                        (long long)features, (long long)s->n_features);
    op__set(ctx, 0, ml_label_type(&s->labels), 1, &rows);
    if (ctx->n_out > 1) op__set(ctx, 1, OP_F32, 2, (int64_t[]){rows, n_scores(s)});
    return OP_OK;
}

/* Kernels of all vectors; values of all pairs; a matrix of pair probabilities and its product;
 * scores. */
static size_t classifier_scratch(const struct op_ctx *ctx) {
    const struct machine *s = ctx->state;
    const size_t classes = (size_t)s->labels.n;
    return ((size_t)s->n_vectors + classes * classes * 3 + 4 * classes) * sizeof(double);
}

/* f of each pair i < j, in order; the votes of each class. */
static void pair_values(const struct machine *s, const double *kernels, double *values,
                        double *votes) {
    const int64_t classes = s->labels.n;
    int64_t pair = 0, first_i = 0;
    for (int64_t i = 0; i < classes; i++) votes[i] = 0;
    for (int64_t i = 0; i < classes; first_i += s->per_class[i], i++) {
        int64_t first_j = first_i + s->per_class[i];
        for (int64_t j = i + 1; j < classes; first_j += s->per_class[j], j++, pair++) {
            const float *row_i = s->coefficients + (j - 1) * s->n_vectors,
                        *row_j = s->coefficients + i * s->n_vectors;
            double sum = s->rho[pair];
            for (int64_t v = first_i; v < first_i + s->per_class[i]; v++)
                sum += row_i[v] * kernels[v];
            for (int64_t v = first_j; v < first_j + s->per_class[j]; v++)
                sum += row_j[v] * kernels[v];
            values[pair] = sum;
            votes[sum > 0 ? i : j]++;
        }
    }
}

/* r[i][j] is the probability of i against j; p the classes' that minimise Σ (r_ji p_i - r_ij p_j)²,
 * by the paper's fixed point. */
static void couple(const double *r, int64_t classes, double *q, double *qp, double *p) {
    for (int64_t i = 0; i < classes; i++) {
        p[i] = 1.0 / (double)classes;
        q[i * classes + i] = 0;
        for (int64_t j = 0; j < classes; j++) {
            if (j == i) continue;
            q[i * classes + i] += r[j * classes + i] * r[j * classes + i];
            q[i * classes + j] = -r[j * classes + i] * r[i * classes + j];
        }
    }
    const int64_t rounds = classes > 100 ? classes : 100;
    for (int64_t round = 0; round < rounds; round++) {
        double pqp = 0, worst = 0;
        for (int64_t i = 0; i < classes; i++) {
            qp[i] = 0;
            for (int64_t j = 0; j < classes; j++) qp[i] += q[i * classes + j] * p[j];
            pqp += p[i] * qp[i];
        }
        for (int64_t i = 0; i < classes; i++) worst = fmax(worst, fabs(qp[i] - pqp));
        if (worst < 0.005 / (double)classes) break;
        for (int64_t i = 0; i < classes; i++) {
            const double diff = (pqp - qp[i]) / q[i * classes + i], scale = 1 + diff;
            p[i] += diff;
            pqp = (pqp + diff * (diff * q[i * classes + i] + 2 * qp[i])) / (scale * scale);
            for (int64_t j = 0; j < classes; j++) {
                qp[j] = (qp[j] + diff * q[i * classes + j]) / scale;
                p[j] /= scale;
            }
        }
    }
}

static int64_t largest(const double *x, int64_t n) {
    int64_t best = 0;
    for (int64_t i = 1; i < n; i++)
        if (x[i] > x[best]) best = i;
    return best;
}

/* The class of one row, and its scores. */
static int64_t classify(const struct machine *s, const struct op_tensor *x, int64_t row,
                        double *scratch, double *scores) {
    const int64_t classes = s->labels.n, pairs = classes * (classes - 1) / 2;
    double *values = scratch + s->n_vectors, *votes = values + pairs, *r = votes + classes,
           *q = r + classes * classes, *qp = q + classes * classes;
    if (s->n_vectors == 0) {
        for (int64_t c = 0; c < classes; c++)
            scores[c] = kernel_of(s, s->coefficients + c * s->n_features, x, row) +
                        (s->n_rho ? s->rho[s->n_rho == classes ? c : 0] : 0);
        const int64_t best = largest(scores, classes);
        op__ml_transform(s->transform, scores, classes);
        return best;
    }
    for (int64_t v = 0; v < s->n_vectors; v++)
        scratch[v] = kernel_of(s, s->vectors + v * s->n_features, x, row);
    pair_values(s, scratch, values, votes);
    if (s->prob_a) {
        for (int64_t i = 0, pair = 0; i < classes; i++)
            for (int64_t j = i + 1; j < classes; j++, pair++) {
                const double p = 1 / (1 + exp(values[pair] * s->prob_a[pair] + s->prob_b[pair]));
                r[i * classes + j] = p < 1e-7 ? 1e-7 : p > 1 - 1e-7 ? 1 - 1e-7 : p;
                r[j * classes + i] = 1 - r[i * classes + j];
            }
        couple(r, classes, q, qp, scores);
        return largest(scores, classes);
    }
    const int64_t best = largest(votes, classes);
    if (classes == 2) {
        scores[0] = -values[0]; /* f is positive for the first class */
        op__ml_two_scores(s->transform, false, scores);
    } else {
        memcpy(scores, values, (size_t)pairs * sizeof *values);
        op__ml_transform(s->transform, scores, pairs);
    }
    return best;
}

static enum op_status classifier_run(struct op_ctx *ctx) {
    const struct machine *s = ctx->state;
    struct op_tensor *out = nn_out(ctx, 1);
    const int64_t width = n_scores(s), classes = s->labels.n;
    double *scratch = ctx->scratch, *scores = scratch + s->n_vectors + classes * (classes - 1) / 2 +
                                              2 * classes * classes + 2 * classes;
    int64_t rows, features;
    enum op_status status = op__ml_rows(ctx, &rows, &features);
    if (status != OP_OK) return status;
    for (int64_t row = 0; row < rows; row++) {
        const int64_t best = classify(s, ctx->in[0], row * features, scratch, scores);
        op__ml_label_store(&s->labels, best, ctx->out[0], row);
        for (int64_t i = 0; out && i < width; i++) nn_store(out, row * width + i, scores[i]);
    }
    return OP_OK;
}

static const struct op_desc svm_classifier = {.name = "SVMClassifier",
                                              .domain = "ai.onnx.ml",
                                              .since = 1,
                                              .in_min = 1,
                                              .in_max = 1,
                                              .out_min = 1,
                                              .out_max = 2,
                                              .prepare = classifier_prepare,
                                              .release = free,
                                              .infer = classifier_infer,
                                              .scratch = classifier_scratch,
                                              .run = classifier_run};
OP_REGISTER(svm_classifier);
