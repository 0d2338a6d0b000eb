/* optimizer.c: Adagrad, Adam and Momentum of ai.onnx.preview.training: one step of training as an
 * operator.
 *
 * Inputs: the learning rate R, the count of steps T, then n tensors X, their n gradients, and n
 * (Adam 2n) tensors of state. Outputs: the n new X, and the new states in the order of the inputs.
 * All tensors of one index have one shape; an output takes no input's memory. */
#include "ops/op/nn.h"

#include <math.h>
#include <string.h>

enum rule { ADAGRAD, ADAM, MOMENTUM };

struct op_optimizer {
    struct op_desc desc;
    enum rule rule;
    int n_states;
};

static const struct op_optimizer *row_of(const struct op_ctx *ctx) {
    return (const struct op_optimizer *)ctx->node->desc;
}

static enum op_status optimizer_infer(struct op_ctx *ctx) {
    const int per_tensor = 2 + row_of(ctx)->n_states, n = (ctx->n_in - 2) / per_tensor;
    if (ctx->n_in < 2 + per_tensor || (ctx->n_in - 2) % per_tensor)
        return op__fail(ctx, OP_BAD_MODEL, "has %d inputs, must have 2 and %d for each tensor",
                        ctx->n_in, per_tensor);
    for (int i = 0; i < ctx->n_in; i++) {
        const struct op_tensor *t = ctx->in[i], *x = ctx->in[i < 2 ? i : 2 + (i - 2) % n];
        const bool typed = t && t->kind == OP_KIND_TENSOR &&
                           (i == 1 ? t->dtype == OP_I64 : t->dtype == OP_F32 || t->dtype == OP_F64);
        if (!typed)
            return op__fail(ctx, OP_BAD_TYPE, "input %d is %s", i,
                            t ? op_type_name(t->dtype) : "(absent)");
        if (i < 2 ? op_tensor_count(t) != 1
                  : t->dtype != x->dtype || t->rank != x->rank ||
                        (t->rank && memcmp(t->dims, x->dims, (size_t)t->rank * sizeof *t->dims))) {
            char text[160];
            return op__fail(ctx, OP_BAD_SHAPE, "input %d is %s, which does not fit the others", i,
                            op_tensor_describe(t, text, sizeof text));
        }
    }
    for (int i = 0; i < ctx->n_out && i < n * (per_tensor - 1); i++)
        op__set_like(ctx, i, i < n ? 2 + i : 2 + n + i);
    return OP_OK;
}

struct hyper {
    double rate, step, alpha, beta, norm, norm_after, epsilon, decay;
    bool nesterov;
};

static double adagrad_one(const struct hyper *h, double x, double g, double *state) {
    g += h->norm * x;
    state[0] += g * g;
    return x - h->rate / (1 + h->step * h->decay) * g / (sqrt(state[0]) + h->epsilon);
}

static double adam_one(const struct hyper *h, double x, double g, double *state) {
    g += h->norm * x;
    state[0] = h->alpha * state[0] + (1 - h->alpha) * g;
    state[1] = h->beta * state[1] + (1 - h->beta) * g * g;
    const double rate =
        h->step > 0 ? h->rate * sqrt(1 - pow(h->beta, h->step)) / (1 - pow(h->alpha, h->step))
                    : h->rate;
    x -= rate * state[0] / (sqrt(state[1]) + h->epsilon);
    return (1 - h->norm_after) * x;
}

static double momentum_one(const struct hyper *h, double x, double g, double *state) {
    const double beta = h->step > 0 ? h->beta : 1;
    g += h->norm * x;
    state[0] = h->alpha * state[0] + beta * g;
    return x - h->rate * (h->nesterov ? g + h->alpha * state[0] : state[0]);
}

static enum op_status optimizer_run(struct op_ctx *ctx) {
    const struct op_optimizer *row = row_of(ctx);
    const int per_tensor = 2 + row->n_states, n = (ctx->n_in - 2) / per_tensor;
    const struct hyper h = {
        .rate = nn_load(ctx->in[0], 0),
        .step = nn_load(ctx->in[1], 0),
        .alpha = op__attr_float(ctx->node, "alpha", 0.9f),
        .beta = op__attr_float(ctx->node, "beta", 0.999f),
        .norm = op__attr_float(ctx->node, "norm_coefficient", 0),
        .norm_after = op__attr_float(ctx->node, "norm_coefficient_post", 0),
        .epsilon = op__attr_float(ctx->node, "epsilon", 1e-6f),
        .decay = op__attr_float(ctx->node, "decay_factor", 0),
        .nesterov = !strcmp(op__attr_string(ctx->node, "mode", "standard"), "nesterov"),
    };
    double (*const one[])(const struct hyper *, double, double, double *) = {adagrad_one, adam_one,
                                                                             momentum_one};
    for (int i = 0; i < n; i++) {
        const int64_t count = op_tensor_count(ctx->in[2 + i]);
        for (int64_t j = 0; j < count; j++) {
            double state[2] = {0, 0};
            for (int s = 0; s < row->n_states; s++)
                state[s] = nn_load(ctx->in[2 + (2 + s) * n + i], j);
            const double x = one[row->rule](&h, nn_load(ctx->in[2 + i], j),
                                            nn_load(ctx->in[2 + n + i], j), state);
            if (nn_out(ctx, i)) nn_store(ctx->out[i], j, x);
            for (int s = 0; s < row->n_states; s++)
                if (nn_out(ctx, (1 + s) * n + i)) nn_store(ctx->out[(1 + s) * n + i], j, state[s]);
        }
    }
    return OP_OK;
}

#define ROW(id, NAME, RULE, STATES)                                                                \
    static const struct op_optimizer id##_row = {.desc = {.name = NAME,                            \
                                                          .domain = "ai.onnx.preview.training",    \
                                                          .since = 1,                              \
                                                          .in_min = 3,                             \
                                                          .in_max = -1,                            \
                                                          .out_min = 1,                            \
                                                          .out_max = -1,                           \
                                                          .infer = optimizer_infer,                \
                                                          .run = optimizer_run},                   \
                                                 .rule = RULE,                                     \
                                                 .n_states = STATES};                              \
    __attribute__((                                                                                \
        used,                                                                                      \
        section("quern_ops"))) static const struct op_desc *const op__registered_##id##_row =      \
        &id##_row.desc
ROW(adagrad, "Adagrad", ADAGRAD, 1);
ROW(adam, "Adam", ADAM, 2);
ROW(momentum, "Momentum", MOMENTUM, 1);
