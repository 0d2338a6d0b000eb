/* update.c: from one step's gradients to new weights.
 *
 * accumulate (mean over n steps) → regularise (l1, l2) → clip (value, norm, norm of all) → decay → optimiser → average (EMA)
 *
 * A gradient is used where the session left it, unless one of the first three changes it: two weights may share one gradient's
 * memory, so those work on a copy. Decay, optimiser and average run piece by piece while the piece is in cache, the pieces over the
 * session's threads: element by element, so any division gives the same bits. Norms are sums of pieces in order. A weight that is
 * looked up by rows goes the same way with the rows of the batch in the place of the whole (rows.c). */
#include <math.h>
#include <string.h>

#include "ops/train/train.h"

enum { PIECE = 4096 }; /* floats: weight, gradient and two states are 64 KB */

static const struct k_vmath *math_of(const struct op_trainer *t) {
    return t->step_model->kern->math;
}

bool op__update_copies(const struct op_trainer *t, const struct op_weight *w) {
    const struct op_optimizer *o = &t->options.optimizer;
    const bool penalised = w->l1 != 0 || w->l2 != 0;
    if (w->rows) return false; /* they have memory of their own */
    return o->accumulate > 1 || o->clip_value > 0 || o->clip_norm > 0 || o->global_clip_norm > 0 || penalised;
}

/* The sum of squares. A piece whose sum leaves the range of f32 is summed again in double precision. */
static double norm_of(const struct k_vmath *math, const float *g, int64_t n) {
    double total = 0;
    for (int64_t i = 0; i < n; i += PIECE) {
        const int64_t len = n - i < PIECE ? n - i : PIECE;
        double sum = (double)math->sum_square(len, g + i, 0);
        if (!isfinite(sum)) {
            sum = 0;
            for (int64_t j = i; j < i + len; j++) sum += (double)g[j] * (double)g[j];
        }
        total += sum;
    }
    return total;
}

/* What the gradient of a weight has: elements of the whole, or of its rows. */
static int64_t count_of(const struct op_weight *w) {
    return w->rows ? w->rows->n * w->value.dims[1] : op_tensor_count(&w->value);
}

enum op_status op__update_rows(struct op_trainer *t, const struct op_tensor *gradients, const struct op_tensor *indices, struct op_error *err) {
    for (int k = 0; k < t->n_trained; k++) {
        struct op_weight *w = &t->weights[k];
        if (w->rows) {
            enum op_status st = op__rows_collect(w->rows, indices++, gradients[k].data, w->value.dims[1], w->value.dims[0], &t->scratch[k]);
            if (st != OP_OK) return op__model_fail(t->model, err, st, "out of memory for the gradient of \"%.100s\"", w->name);
        } else if (op_tensor_count(&gradients[k]) != op_tensor_count(&w->value))
            return op__model_fail(t->model, err, OP_BAD_SHAPE, "the gradient of \"%.100s\" has another size than the weight", w->name);
    }
    return OP_OK;
}

double op__update_norm(const struct op_trainer *t, const struct op_tensor *gradients) {
    double total = 0;
    for (int k = 0; k < t->n_trained; k++) {
        const struct op_weight *w = &t->weights[k];
        total += norm_of(math_of(t), w->rows ? t->scratch[k] : gradients[k].data, count_of(w));
    }
    return sqrt(total);
}

/* l1 and l2: their part of the loss. */
static double regularise(const struct op_weight *w, const float *v, float *g, int64_t n) {
    double loss = 0;
    float l1 = w->l1, l2 = w->l2;
    if (l1 == 0 && l2 == 0) return 0;
    for (int64_t i = 0; i < n; i++) {
        loss += (double)l1 * fabs((double)v[i]) + (double)l2 * (double)v[i] * (double)v[i];
        g[i] += l1 * (float)((v[i] > 0) - (v[i] < 0)) + 2 * l2 * v[i];
    }
    return loss;
}

static void scale(float *g, int64_t n, double by) {
    for (int64_t i = 0; i < n; i++) g[i] = (float)((double)g[i] * by);
}

/* Keras's clipping: by value, by each weight's norm, by the norm of all (of the gradients as they came). */
static void clip(const struct op_trainer *t, float *g, int64_t n, double total) {
    const struct op_optimizer *o = &t->options.optimizer;
    double norm = o->clip_norm > 0 ? sqrt(norm_of(math_of(t), g, n)) : 0;
    for (int64_t i = 0; o->clip_value > 0 && i < n; i++) g[i] = g[i] > o->clip_value ? o->clip_value : g[i] < -o->clip_value ? -o->clip_value : g[i];
    if (o->clip_norm > 0 && norm > (double)o->clip_norm) scale(g, n, (double)o->clip_norm / norm);
    if (o->global_clip_norm > 0 && total > (double)o->global_clip_norm) scale(g, n, (double)o->global_clip_norm / total);
}

/* --- the weights -------------------------------------------------------------------------------- */

struct job {
    const struct op_trainer *t;
    const struct op_weight *w;
    const float *g;
    float learning_rate;
    int64_t piece;
};

static void update_piece(void *arg, int64_t task) {
    const struct job *job = arg;
    const struct op_trainer *t = job->t;
    const struct op_weight *w = job->w;
    const struct op_optimizer *o = &t->options.optimizer;
    const int64_t from = task * job->piece, left = op_tensor_count(&w->value) - from, n = left < job->piece ? left : job->piece;
    float *v = (float *)w->value.data + from, *ema = w->ema ? w->ema + from : NULL;
    struct op_update u = {.math = math_of(t), .w = v, .g = job->g + from, .n = n, .rank = w->value.rank, .dims = w->value.dims, .step = t->updates,
                          .learning_rate = job->learning_rate};
    for (int i = 0; i < OP__STATES_MAX; i++) u.state[i] = w->state[i] ? w->state[i] + from : NULL;
    /* Decoupled decay (Loshchilov and Hutter), before the update, on matrices only. */
    for (int64_t i = 0; o->weight_decay > 0 && w->value.rank >= 2 && i < n; i++) v[i] -= v[i] * o->weight_decay * job->learning_rate;
    t->rule->update(o, &u);
    for (int64_t i = 0; ema && i < n; i++) ema[i] = o->ema * ema[i] + (1 - o->ema) * v[i];
}

static void update_weight(const struct op_trainer *t, const struct op_weight *w, const float *g, float learning_rate) {
    const int64_t n = op_tensor_count(&w->value);
    struct job job = {t, w, g, learning_rate, t->rule->whole || n < PIECE ? n : PIECE};
    if (n > 0) op__pool_run(t->step_session->x.pool, (n + job.piece - 1) / job.piece, update_piece, &job);
}

/* The gradient that the update of a weight uses: a copy, with what was accumulated, or as it came. */
static float *gradient_of(const struct op_trainer *t, int k, const float *g) {
    const struct op_weight *w = &t->weights[k];
    const int64_t n = op_tensor_count(&w->value);
    if (!w->sum) return memcpy(t->scratch[k], g, (size_t)n * sizeof *g);
    for (int64_t i = 0; i < n; i++) t->scratch[k][i] = w->sum[i] / (float)t->options.optimizer.accumulate;
    memset(w->sum, 0, (size_t)n * sizeof *w->sum);
    return t->scratch[k];
}

/* The rows of the batch: regularised, clipped and updated as a weight of their own. */
static bool update_rows(struct op_trainer *t, int k, double norm, float learning_rate, double *penalty) {
    struct op_weight *w = &t->weights[k], packed;
    const int n_states = op__rule_states(t->rule, &t->options.optimizer);
    float *g = t->scratch[k];
    if (w->rows->n == 0) return true;
    if (!op__rows_pack(w->rows, w, n_states, &packed)) return false;
    *penalty += regularise(w, packed.value.data, g, count_of(w));
    clip(t, g, count_of(w), norm);
    update_weight(t, &packed, g, learning_rate);
    op__rows_unpack(w->rows, &packed, n_states, w);
    return true;
}

double op__update(struct op_trainer *t, const struct op_tensor *gradients, double norm, float learning_rate) {
    double penalty = 0;
    for (int k = 0; k < t->n_trained; k++) {
        struct op_weight *w = &t->weights[k];
        if (w->sum) math_of(t)->axpy(op_tensor_count(&w->value), 1, gradients[k].data, w->sum);
    }
    if (++t->n_accumulated < t->options.optimizer.accumulate) return 0;
    t->n_accumulated = 0;
    t->updates++;
    for (int k = 0; k < t->n_trained; k++) {
        const struct op_weight *w = &t->weights[k];
        const int64_t n = op_tensor_count(&w->value);
        const float *g = gradients[k].data;
        if (w->rows) {
            if (!update_rows(t, k, norm, learning_rate, &penalty)) return -1;
            continue;
        }
        if (t->scratch[k]) {
            float *copy = gradient_of(t, k, g);
            penalty += regularise(w, w->value.data, copy, n);
            clip(t, copy, n, norm);
            g = copy;
        }
        update_weight(t, w, g, learning_rate);
    }
    return penalty;
}
