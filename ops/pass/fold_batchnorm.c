/* Order 510: what scales and shifts the output channels of a Conv, ConvTranspose or Gemm with constant f32 weights goes into the
 * weights and the bias: BatchNormalization in inference form, Mul and Add by a constant a channel. For channel m with factor s
 * and offset t: (W x + b) s + t = (s W) x + (s b + t), worked out in double precision and rounded once. Repeats along a
 * chain. The output of each but the last must have no other use. */
#include "ops/model.h"
#include "ops/pass/match.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Weights of a node as [outer][channels][inner]: which elements belong to an output channel. With groups, ConvTranspose's
 * dimension 1 is the channel within the group that dimension 0 is in. */
struct weights {
    const struct op_tensor *t;
    int64_t channels, outer, inner, groups;
};

static bool weights_of(const struct op_graph *g, const struct op_node *n, struct weights *w) {
    w->t = n->n_in > 1 ? op__graph_constant_type(g, n->in[1]) : NULL;
    w->groups = 1;
    if (!w->t || w->t->dtype != OP_F32 || w->t->rank < 2 || op_tensor_count(w->t) <= 0 || n->n_in > 3) return false;
    const int64_t count = op_tensor_count(w->t), *d = w->t->dims;
    if (op__node_is(n, "Conv") && w->t->rank > 2) {
        w->outer = 1, w->channels = d[0], w->inner = count / d[0];
    } else if (op__node_is(n, "ConvTranspose") && w->t->rank > 2) {
        w->groups = op__attr_int(n, "group", 1);
        if (w->groups < 1 || d[0] % w->groups != 0) return false;
        w->outer = d[0], w->channels = d[1] * w->groups, w->inner = count / d[0] / d[1];
    } else if (op__node_is(n, "Gemm") && w->t->rank == 2 && op__attr_float(n, "alpha", 1) == 1 && op__attr_float(n, "beta", 1) == 1) {
        const bool transposed = op__attr_int(n, "transB", 0) != 0;
        w->outer = transposed ? 1 : d[0], w->channels = transposed ? d[0] : d[1], w->inner = transposed ? d[1] : 1;
    } else {
        return false;
    }
    const struct op_tensor *b = n->n_in > 2 ? op__graph_constant(g, n->in[2]) : NULL;
    if (n->n_in > 2 && n->in[2] >= 0) return b && b->dtype == OP_F32 && b->rank >= 1 && b->rank <= 2 && b->dims[b->rank - 1] == w->channels && op_tensor_count(b) == w->channels;
    return true;
}

/* Whether constant t is one value a channel of a value with `rank` dimensions whose channel is dimension 1, or one value for all. */
static bool per_channel(const struct op_tensor *t, int64_t channels, int rank) {
    if (!t || t->dtype != OP_F32 || t->rank > rank) return false;
    const int64_t count = op_tensor_count(t);
    if (count == 1) return true;
    const int at = t->rank - (rank - 1); /* where dimension 1 is in t */
    return at >= 0 && count == channels && t->dims[at] == channels;
}

static double element(const struct op_tensor *t, int64_t i) {
    return (double)((const float *)t->data)[op_tensor_count(t) == 1 ? 0 : i];
}

/* Factor and offset of each channel by node u on value v; false if it is not of that kind. */
static bool affine_of(const struct op_graph *g, const struct op_node *u, int v, int rank, int64_t channels, double *factor, double *offset) {
    if (op__node_is(u, "BatchNormalization")) {
        const struct op_tensor *c[4];
        bool ok = u->n_in == 5 && u->in[0] == v && op__attr_int(u, "training_mode", 0) == 0 && op__attr_int(u, "spatial", 1) != 0;
        for (int i = 0; ok && i < 4; i++) {
            c[i] = op__graph_constant(g, u->in[1 + i]);
            ok = c[i] && c[i]->dtype == OP_F32 && c[i]->rank == 1 && c[i]->dims[0] == channels;
        }
        for (int i = 1; ok && i < u->n_out; i++) ok = u->out[i] < 0;
        if (!ok) return false;
        const double epsilon = (double)op__attr_float(u, "epsilon", 1e-5f);
        for (int64_t i = 0; i < channels; i++) {
            factor[i] = element(c[0], i) / sqrt(element(c[3], i) + epsilon);
            offset[i] = element(c[1], i) - element(c[2], i) * factor[i];
        }
        return true;
    }
    const bool mul = op__node_is(u, "Mul"), add = op__node_is(u, "Add");
    const struct op_tensor *c = mul || add ? op__graph_constant(g, op__other_input(u, v)) : NULL;
    if (!per_channel(c, channels, rank)) return false;
    for (int64_t i = 0; i < channels; i++) {
        factor[i] = mul ? element(c, i) : 1;
        offset[i] = add ? element(c, i) : 0;
    }
    return true;
}

static enum op_status rewrite(struct op_graph *g, struct op_node *n, const struct weights *w, const double *factor, const double *offset) {
    const struct op_tensor *b = n->n_in > 2 ? op__graph_constant(g, n->in[2]) : NULL;
    float *weights = NULL, *bias = NULL;
    if (!op__graph_constant(g, n->in[1])) return OP_NOMEM; /* its data from here on */
    const int new_w = op__graph_const(g, NULL, OP_F32, w->t->rank, w->t->dims, (void **)&weights);
    const int new_b = op__graph_const(g, NULL, OP_F32, 1, &w->channels, (void **)&bias);
    if (new_w < 0 || new_b < 0 || op__node_grow(n, 3) != OP_OK) return OP_NOMEM;
    const int64_t within = w->channels / w->groups; /* channels along the dimension of the weights */
    for (int64_t o = 0; o < w->outer; o++)
        for (int64_t c = 0; c < within; c++) {
            const double s = factor[w->groups > 1 ? o / (w->outer / w->groups) * within + c : c];
            for (int64_t i = 0; i < w->inner; i++) {
                const int64_t at = (o * within + c) * w->inner + i;
                weights[at] = (float)((double)((const float *)w->t->data)[at] * s);
            }
        }
    for (int64_t c = 0; c < w->channels; c++) bias[c] = (float)((b ? element(b, c) : 0) * factor[c] + offset[c]);
    const struct op_const *old = g->values[n->in[1]].constant; /* its pages come back by themselves if somebody still reads them */
    if (old->mapped) op__mapped_give_back(g->model, old->mapped, old->mapped_bytes);
    n->in[1] = new_w;
    n->in[2] = new_b;
    return OP_OK;
}

/* Folds what follows node `at` into it, as far as it goes. */
static enum op_status fold_chain(struct op_graph *g, struct op__links *links, int at, int *changed) {
    struct op_node *n = g->nodes[at], *u;
    struct weights w;
    if (!weights_of(g, n, &w)) return OP_OK;
    const int rank = op__node_is(n, "Gemm") ? 2 : w.t->rank;
    double *factor = malloc((size_t)w.channels * 2 * sizeof *factor);
    if (!factor) return OP_NOMEM;
    enum op_status status = OP_OK;
    while (status == OP_OK && (u = op__sole_user(g, links, n->out[0])) && affine_of(g, u, n->out[0], rank, w.channels, factor, factor + w.channels)) {
        status = rewrite(g, n, &w, factor, factor + w.channels);
        const int gone = links->user[n->out[0]];
        n->out[0] = u->out[0];
        links->producer[n->out[0]] = at;
        op__graph_remove(g, gone);
        w.t = op__graph_constant(g, n->in[1]);
        ++*changed;
    }
    free(factor);
    return status;
}

static enum op_status run(struct op_graph *g, int *changed, struct op_error *err) {
    struct op__links links;
    enum op_status status = op__links_make(g, &links);
    for (int i = 0; status == OP_OK && i < g->n_nodes; i++)
        if (g->nodes[i]) status = fold_chain(g, &links, i, changed);
    op__links_free(&links);
    if (status == OP_NOMEM && err) op__node_fail(err, NULL, OP_NOMEM, "out of memory while folding BatchNormalization");
    return status;
}

static const struct op_pass fold_batchnorm = {.name = "fold_batchnorm", .order = 510, .run = run};
OP_PASS_REGISTER(fold_batchnorm);
