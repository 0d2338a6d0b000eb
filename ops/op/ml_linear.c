/* ml_linear.c: LinearClassifier and LinearRegressor of ai.onnx.ml: coefficients · x + intercept,
 * summed in f64. */
#include "ops/op/elementwise.h"
#include "ops/op/ml.h"
#include "ops/op/nn.h"

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
    if (status == OP_OK && classifier)
        status = op__ml_labels_parse(p->node, p->err, "classlabels_ints", "classlabels_strings",
                                     &s->labels);
    if (status != OP_OK) return status;
    s->coefficients = op__attr_floats(p->node, "coefficients", &s->n_coefficients);
    s->intercepts = op__attr_floats(p->node, "intercepts", &s->n_intercepts);
    s->n_scores = classifier ? s->labels.n : op__attr_int(p->node, "targets", 1);
    if (s->n_scores < 1 || s->n_coefficients < 1)
        return op__node_fail(p->err, p->node, OP_BAD_MODEL,
                             "has %lld targets and %lld coefficients", (long long)s->n_scores,
                             (long long)s->n_coefficients);
    return OP_OK;
}

/* Scores that are computed: two classes may have one. 0 where the coefficients do not fit. */
static int64_t n_computed(const struct linear *s, int64_t features) {
    if (features < 1 || s->n_coefficients % features) return 0;
    const int64_t n = s->n_coefficients / features;
    return (n == s->n_scores || (s->labels.n == 2 && n == 1)) &&
                   (s->n_intercepts == 0 || s->n_intercepts >= n)
               ? n
               : 0;
}

static enum op_status linear_infer(struct op_ctx *ctx) {
    const struct linear *s = ctx->state;
    int64_t rows, features;
    enum op_status status = op__ml_rows(ctx, &rows, &features);
    if (status != OP_OK) return status;
    if (!n_computed(s, features))
        return op__fail(
            ctx, OP_BAD_SHAPE,
            "%lld coefficients and %lld intercepts do not fit %lld scores of %lld features",
            (long long)s->n_coefficients, (long long)s->n_intercepts, (long long)s->n_scores,
            (long long)features);
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
    struct op_tensor *labels = s->labels.n ? ctx->out[0] : NULL,
                     *out = nn_out(ctx, s->labels.n ? 1 : 0);
    double *scores = ctx->scratch;
    int64_t rows, features;
    enum op_status status = op__ml_rows(ctx, &rows, &features);
    if (status != OP_OK) return status;
    const int64_t n = n_computed(s, features);
    for (int64_t row = 0; row < rows; row++) {
        int64_t best = 0;
        for (int64_t k = 0; k < n; k++) {
            scores[k] = s->n_intercepts ? s->intercepts[k] : 0;
            for (int64_t i = 0; i < features; i++)
                scores[k] +=
                    s->coefficients[k * features + i] * nn_load(ctx->in[0], row * features + i);
            if (scores[k] > scores[best]) best = k;
        }
        if (n < s->n_scores) {
            best = scores[0] > 0;
            op__ml_two_scores(s->transform, false, scores);
        } else {
            op__ml_transform(s->transform, scores, n);
        }
        op__ml_label_store(&s->labels, best, labels, row);
        for (int64_t k = 0; out && k < s->n_scores; k++)
            nn_store(out, row * s->n_scores + k, scores[k]);
    }
    return OP_OK;
}

static const struct op_desc linear_classifier = {.name = "LinearClassifier",
                                                 .domain = "ai.onnx.ml",
                                                 .since = 1,
                                                 .in_min = 1,
                                                 .in_max = 1,
                                                 .out_min = 1,
                                                 .out_max = 2,
                                                 .prepare = linear_prepare,
                                                 .release = free,
                                                 .infer = linear_infer,
                                                 .scratch = linear_scratch,
                                                 .run = linear_run};
OP_REGISTER(linear_classifier);
static const struct op_desc linear_regressor = {.name = "LinearRegressor",
                                                .domain = "ai.onnx.ml",
                                                .since = 1,
                                                .in_min = 1,
                                                .in_max = 1,
                                                .out_min = 1,
                                                .out_max = 1,
                                                .prepare = linear_prepare,
                                                .release = free,
                                                .infer = linear_infer,
                                                .scratch = linear_scratch,
                                                .run = linear_run};
OP_REGISTER(linear_regressor);
