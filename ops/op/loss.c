/* loss.c: NegativeLogLikelihoodLoss and SoftmaxCrossEntropyLoss.
 *
 * Scores are (N, C, d...), labels (N, d...), weights (C): the loss at a position is -weight[label]
 * * logp[label], logp being the scores themselves or their log-softmax over C. reduction is "none",
 * "sum", or "mean" over the weights of the labels that count; those equal to ignore_index count
 * nothing. Sums run in f64 in the order of the positions. */
#include "ops/op/nn.h"

#include <math.h>
#include <string.h>

enum { SCORES, LABELS, WEIGHTS };

struct loss {
    const struct op_tensor *scores, *labels, *weights;
    int64_t n, classes, inner; /* position (i, j) has class c at (i * classes + c) * inner + j */
    bool softmax, has_ignored;
    int64_t ignored;
};

static int64_t label_at(const struct op_tensor *t, int64_t i) {
    return t->dtype == OP_I64 ? ((const int64_t *)t->data)[i] : ((const int32_t *)t->data)[i];
}

static enum op_status loss_infer(struct op_ctx *ctx) {
    const struct op_tensor *x = ctx->in[SCORES], *t = ctx->in[LABELS], *w = nn_in(ctx, WEIGHTS);
    const char *reduction = op__attr_string(ctx->node, "reduction", "mean");
    char tx[160], tt[160];
    if (strcmp(reduction, "none") && strcmp(reduction, "sum") && strcmp(reduction, "mean"))
        return op__fail(ctx, OP_BAD_VALUE,
                        "reduction is \"%s\", must be \"none\", \"sum\" or \"mean\"", reduction);
    enum op_status status = op__nn_float(ctx, SCORES, "scores");
    if (status != OP_OK) return status;
    if (!t || t->kind != OP_KIND_TENSOR || (t->dtype != OP_I32 && t->dtype != OP_I64))
        return op__fail(ctx, OP_BAD_TYPE, "labels are %s, must be i32 or i64",
                        t ? op_type_name(t->dtype) : "(absent)");
    bool fits = x->rank >= 2 && t->rank == x->rank - 1 && t->dims[0] == x->dims[0];
    for (int i = 2; fits && i < x->rank; i++) fits = x->dims[i] == t->dims[i - 1];
    if (!fits)
        return op__fail(ctx, OP_BAD_SHAPE, "scores %s need labels without dimension 1, not %s",
                        op_tensor_describe(x, tx, sizeof tx), op_tensor_describe(t, tt, sizeof tt));
    if (w && (w->dtype != x->dtype || w->rank != 1 || w->dims[0] != x->dims[1]))
        return op__fail(
            ctx, OP_BAD_SHAPE, "weights are %s, must be one %s for each of %lld classes",
            op_tensor_describe(w, tt, sizeof tt), op_type_name(x->dtype), (long long)x->dims[1]);
    const bool each = !strcmp(reduction, "none");
    op__set(ctx, 0, x->dtype, each ? t->rank : 0, t->dims);
    if (ctx->n_out > 1) op__set_like(ctx, 1, SCORES);
    return OP_OK;
}

/* ln of the sum of e^score over the classes at (i, j) */
static double log_sum_at(const struct loss *s, int64_t i, int64_t j) {
    double top = -INFINITY, sum = 0;
    for (int64_t c = 0; c < s->classes; c++) {
        double v = nn_load(s->scores, (i * s->classes + c) * s->inner + j);
        if (v > top || v != v) top = v;
    }
    if (isinf(top)) return top;
    for (int64_t c = 0; c < s->classes; c++)
        sum += exp(nn_load(s->scores, (i * s->classes + c) * s->inner + j) - top);
    return top + log(sum);
}

static enum op_status position(const struct op_ctx *ctx, const struct loss *s, int64_t i, int64_t j,
                               double *loss, double *weight) {
    const int64_t label = label_at(s->labels, i * s->inner + j);
    struct op_tensor *log_probabilities = nn_out(ctx, 1);
    const double log_sum = s->softmax ? log_sum_at(s, i, j) : 0;
    if (log_probabilities)
        for (int64_t c = 0; c < s->classes; c++) {
            const int64_t at = (i * s->classes + c) * s->inner + j;
            nn_store(log_probabilities, at, nn_load(s->scores, at) - log_sum);
        }
    *loss = *weight = 0;
    if (s->has_ignored && label == s->ignored) return OP_OK;
    if (label < 0 || label >= s->classes)
        return op__fail(ctx, OP_BAD_VALUE, "a label is %lld, must be 0 to %lld", (long long)label,
                        (long long)s->classes - 1);
    *weight = s->weights ? nn_load(s->weights, label) : 1;
    *loss = *weight * (log_sum - nn_load(s->scores, (i * s->classes + label) * s->inner + j));
    return OP_OK;
}

static enum op_status loss_run(struct op_ctx *ctx) {
    const struct op_tensor *x = ctx->in[SCORES];
    struct loss s = {x,
                     ctx->in[LABELS],
                     nn_in(ctx, WEIGHTS),
                     x->dims[0],
                     x->dims[1],
                     1,
                     ctx->node->desc->name[0] == 'S',
                     op__attr(ctx->node, "ignore_index") != NULL,
                     op__attr_int(ctx->node, "ignore_index", 0)};
    const char *reduction = op__attr_string(ctx->node, "reduction", "mean");
    double total = 0, weights = 0;
    for (int i = 2; i < x->rank; i++) s.inner *= x->dims[i];
    for (int64_t i = 0; i < s.n; i++)
        for (int64_t j = 0; j < s.inner; j++) {
            double loss, weight;
            enum op_status status = position(ctx, &s, i, j, &loss, &weight);
            if (status != OP_OK) return status;
            if (reduction[0] == 'n' && ctx->out[0]) nn_store(ctx->out[0], i * s.inner + j, loss);
            total += loss;
            weights += weight;
        }
    if (reduction[0] != 'n' && ctx->out[0])
        nn_store(ctx->out[0], 0, reduction[0] == 'm' ? total / weights : total);
    return OP_OK;
}

static const struct op_desc nll_loss = {.name = "NegativeLogLikelihoodLoss",
                                        .domain = "",
                                        .since = 12,
                                        .in_min = 2,
                                        .in_max = 3,
                                        .out_min = 1,
                                        .out_max = 1,
                                        .infer = loss_infer,
                                        .run = loss_run};
OP_REGISTER(nll_loss);
static const struct op_desc sce_loss = {.name = "SoftmaxCrossEntropyLoss",
                                        .domain = "",
                                        .since = 12,
                                        .in_min = 2,
                                        .in_max = 3,
                                        .out_min = 1,
                                        .out_max = 2,
                                        .infer = loss_infer,
                                        .run = loss_run};
OP_REGISTER(sce_loss);
