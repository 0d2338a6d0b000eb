/* ml_linear.c: LinearClassifier, LinearRegressor and SVMRegressor of ai.onnx.ml.
 *
 * A score is coefficients · x + intercept, or for the machine Σ coefficient_i K(support vector_i, x) + rho, with the kernel K
 * x·v, (γ x·v + c)^degree, e^(-γ |x - v|²) or tanh(γ x·v + c). Sums run in f64 in the order of the lists. */
#include "ops/op/elementwise.h"
#include "ops/op/ml.h"
#include "ops/op/nn.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

struct linear {
    int64_t n_scores, n_coefficients, n_intercepts;
    const float *coefficients, *intercepts;
    struct ml_labels labels; /* of the classifier */
    enum ml_transform transform;
};

static enum op_status linear_prepare(struct op_prepare *p) {
    struct linear *s = calloc(1, sizeof *s);
    const bool classifier = !strcmp(p->node->op_type, "LinearClassifier");
    if (!s) return op__node_fail(p->err, p->node, OP_NOMEM, "no memory");
    p->node->state = s;
    enum op_status status = op__ml_transform_parse(p->node, p->err, &s->transform);
    if (status == OP_OK && classifier) status = op__ml_labels_parse(p->node, p->err, "classlabels_ints", "classlabels_strings", &s->labels);
    if (status != OP_OK) return status;
    s->coefficients = op__attr_floats(p->node, "coefficients", &s->n_coefficients);
    s->intercepts = op__attr_floats(p->node, "intercepts", &s->n_intercepts);
    s->n_scores = classifier ? s->labels.n : op__attr_int(p->node, "targets", 1);
    if (s->n_scores < 1 || s->n_coefficients < 1)
        return op__node_fail(p->err, p->node, OP_BAD_MODEL, "has %lld targets and %lld coefficients", (long long)s->n_scores, (long long)s->n_coefficients);
    return OP_OK;
}

/* Scores that are computed: two classes may have one. 0 where the coefficients do not fit. */
static int64_t n_computed(const struct linear *s, int64_t features) {
    if (features < 1 || s->n_coefficients % features) return 0;
    const int64_t n = s->n_coefficients / features;
    return (n == s->n_scores || (s->labels.n == 2 && n == 1)) && (s->n_intercepts == 0 || s->n_intercepts >= n) ? n : 0;
}

static enum op_status linear_infer(struct op_ctx *ctx) {
    const struct linear *s = ctx->state;
    int64_t rows, features;
    enum op_status status = op__ml_rows(ctx, &rows, &features);
    if (status != OP_OK) return status;
    if (!n_computed(s, features))
        return op__fail(ctx, OP_BAD_SHAPE, "%lld coefficients and %lld intercepts do not fit %lld scores of %lld features", (long long)s->n_coefficients,
                        (long long)s->n_intercepts, (long long)s->n_scores, (long long)features);
    const int scores = s->labels.n ? 1 : 0;
    if (scores) op__set(ctx, 0, ml_label_type(&s->labels), 1, &rows);
    if (scores < ctx->n_out) op__set(ctx, scores, OP_F32, 2, (int64_t[]){rows, s->n_scores});
    return OP_OK;
}

static size_t linear_scratch(const struct op_ctx *ctx) {
    const struct linear *s = ctx->state;
    return (size_t)(s->n_scores < 2 ? 2 : s->n_scores) * sizeof(double);
}

static enum op_status linear_run(struct op_ctx *ctx) {
    const struct linear *s = ctx->state;
    struct op_tensor *labels = s->labels.n ? ctx->out[0] : NULL, *out = nn_out(ctx, s->labels.n ? 1 : 0);
    double *scores = ctx->scratch;
    int64_t rows, features;
    enum op_status status = op__ml_rows(ctx, &rows, &features);
    if (status != OP_OK) return status;
    const int64_t n = n_computed(s, features);
    for (int64_t row = 0; row < rows; row++) {
        int64_t best = 0;
        for (int64_t k = 0; k < n; k++) {
            scores[k] = s->n_intercepts ? s->intercepts[k] : 0;
            for (int64_t i = 0; i < features; i++) scores[k] += s->coefficients[k * features + i] * nn_load(ctx->in[0], row * features + i);
            if (scores[k] > scores[best]) best = k;
        }
        if (n < s->n_scores) {
            best = scores[0] > 0;
            op__ml_two_scores(s->transform, false, scores);
        } else {
            op__ml_transform(s->transform, scores, n);
        }
        op__ml_label_store(&s->labels, best, labels, row);
        for (int64_t k = 0; out && k < s->n_scores; k++) nn_store(out, row * s->n_scores + k, scores[k]);
    }
    return OP_OK;
}

static const struct op_desc linear_classifier = {.name = "LinearClassifier", .domain = "ai.onnx.ml", .since = 1, .in_min = 1, .in_max = 1,
                                                 .out_min = 1, .out_max = 2, .prepare = linear_prepare, .release = free, .infer = linear_infer,
                                                 .scratch = linear_scratch, .run = linear_run};
OP_REGISTER(linear_classifier);
static const struct op_desc linear_regressor = {.name = "LinearRegressor", .domain = "ai.onnx.ml", .since = 1, .in_min = 1, .in_max = 1,
                                                .out_min = 1, .out_max = 1, .prepare = linear_prepare, .release = free, .infer = linear_infer,
                                                .scratch = linear_scratch, .run = linear_run};
OP_REGISTER(linear_regressor);

/* --- SVMRegressor ------------------------------------------------------------------------------ */

enum kernel { LINEAR, POLY, RBF, SIGMOID };

struct machine {
    int64_t n_vectors, n_features; /* n_vectors 0: coefficients are the weights of a linear model */
    const float *coefficients, *vectors;
    double rho, gamma, coef0, degree;
    enum kernel kernel;
    enum ml_transform transform;
    bool one_class;
};

static enum op_status svm_prepare(struct op_prepare *p) {
    static const char *const names[] = {"LINEAR", "POLY", "RBF", "SIGMOID"};
    struct machine *s = calloc(1, sizeof *s);
    const struct op_node *n = p->node;
    int64_t n_coefficients, n_values, n_rho, n_params;
    if (!s) return op__node_fail(p->err, n, OP_NOMEM, "no memory");
    p->node->state = s;
    enum op_status status = op__ml_transform_parse(n, p->err, &s->transform);
    if (status != OP_OK) return status;
    const char *kernel = op__attr_string(n, "kernel_type", "LINEAR");
    int k = 0;
    while (k < 4 && strcmp(names[k], kernel)) k++;
    if (k == 4) return op__node_fail(p->err, n, OP_BAD_VALUE, "kernel_type is \"%s\", must be LINEAR, POLY, RBF or SIGMOID", kernel);
    s->kernel = (enum kernel)k;
    s->coefficients = op__attr_floats(n, "coefficients", &n_coefficients);
    s->vectors = op__attr_floats(n, "support_vectors", &n_values);
    s->n_vectors = op__attr_int(n, "n_supports", 0);
    s->one_class = op__attr_int(n, "one_class", 0) != 0;
    const float *rho = op__attr_floats(n, "rho", &n_rho), *params = op__attr_floats(n, "kernel_params", &n_params);
    s->rho = n_rho ? rho[0] : 0;
    if (n_params >= 3) s->gamma = params[0], s->coef0 = params[1], s->degree = params[2];
    const bool fits = s->n_vectors > 0 ? n_coefficients == s->n_vectors && n_values > 0 && n_values % s->n_vectors == 0 : n_coefficients > 0;
    if (!fits || s->n_vectors < 0 || (s->kernel != LINEAR && n_params < 3))
        return op__node_fail(p->err, n, OP_BAD_MODEL, "%lld support vectors do not fit %lld values and %lld coefficients, or kernel_params has less than 3",
                             (long long)s->n_vectors, (long long)n_values, (long long)n_coefficients);
    s->n_features = s->n_vectors > 0 ? n_values / s->n_vectors : n_coefficients;
    return OP_OK;
}

static enum op_status svm_infer(struct op_ctx *ctx) {
    const struct machine *s = ctx->state;
    int64_t rows, features;
    enum op_status status = op__ml_rows(ctx, &rows, &features);
    if (status != OP_OK) return status;
    if (features != s->n_features)
        return op__fail(ctx, OP_BAD_SHAPE, "the input has %lld features, the machine %lld", (long long)features, (long long)s->n_features);
    op__set(ctx, 0, OP_F32, 2, (int64_t[]){rows, 1});
    return OP_OK;
}

static double kernel_of(const struct machine *s, const float *v, const struct op_tensor *x, int64_t row) {
    double sum = 0;
    for (int64_t i = 0; i < s->n_features; i++) {
        const double a = nn_load(x, row + i);
        sum += s->kernel == RBF ? (a - v[i]) * (a - v[i]) : a * v[i];
    }
    switch (s->kernel) {
    case POLY: return pow(s->gamma * sum + s->coef0, s->degree);
    case RBF: return exp(-s->gamma * sum);
    case SIGMOID: return tanh(s->gamma * sum + s->coef0);
    default: return sum;
    }
}

static enum op_status svm_run(struct op_ctx *ctx) {
    const struct machine *s = ctx->state;
    const struct op_tensor *x = ctx->in[0];
    int64_t rows, features;
    enum op_status status = op__ml_rows(ctx, &rows, &features);
    if (status != OP_OK || !ctx->out[0]) return status;
    for (int64_t row = 0; row < rows; row++) {
        double score = s->rho;
        if (s->n_vectors > 0)
            for (int64_t i = 0; i < s->n_vectors; i++) score += s->coefficients[i] * kernel_of(s, s->vectors + i * s->n_features, x, row * features);
        else
            score += kernel_of(s, s->coefficients, x, row * features);
        if (s->one_class) score = score > 0 ? 1 : -1;
        op__ml_transform(s->transform, &score, 1);
        nn_store(ctx->out[0], row, score);
    }
    return OP_OK;
}

static const struct op_desc svm_regressor = {.name = "SVMRegressor", .domain = "ai.onnx.ml", .since = 1, .in_min = 1, .in_max = 1, .out_min = 1,
                                             .out_max = 1, .prepare = svm_prepare, .release = free, .infer = svm_infer, .run = svm_run};
OP_REGISTER(svm_regressor);
