/* rnn.c: RNN, GRU and LSTM: attributes, shapes, the plain form, registration. The fast form for f32 is rnn_f32.c.
 *
 * The three differ in the number of gates (1, 3, 4) and in the cell, that is in one function. Everything else is shared: one or two
 * directions, sequences of their own lengths (after the end of one the state stays and Y is 0; a reverse direction begins at
 * the sequence's own end), both layouts, activations with parameters, clipping of what goes into a gate's activation (the cell
 * state itself is not clipped on its way out: the specification can be read either way, ONNX Runtime reads it so). */
#include "ops/op/rnn.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

/* --- attributes -------------------------------------------------------------------------------- */

static const struct {
    const char *name;
    float alpha, beta;
    bool has_alpha, has_beta;
} functions[RNN_N_FN] = {
#define X(NAME, name, alpha, beta, has_alpha, has_beta) {name, alpha, beta, has_alpha, has_beta},
    RNN_FN_MAP(X)
#undef X
};

static enum op_status parse_activations(struct op_prepare *p, struct rnn *s) {
    static const enum rnn_fn usual[3][3] = {{RNN_FN_TANH}, {RNN_FN_SIGMOID, RNN_FN_TANH}, {RNN_FN_SIGMOID, RNN_FN_TANH, RNN_FN_TANH}};
    const struct op_attr *names = op__attr(p->node, "activations");
    int64_t n_alpha = 0, n_beta = 0, at_alpha = 0, at_beta = 0;
    const float *alpha = op__attr_floats(p->node, "activation_alpha", &n_alpha), *beta = op__attr_floats(p->node, "activation_beta", &n_beta);
    if (names && (names->kind != OP_ATTR_STRINGS || names->n != s->n_dirs * s->n_acts))
        return op__node_fail(p->err, p->node, OP_BAD_VALUE, "activations has %lld names, expected %d", (long long)names->n, s->n_dirs * s->n_acts);
    for (int i = 0; i < s->n_dirs * s->n_acts; i++) {
        struct rnn_act *act = &s->act[i / s->n_acts][i % s->n_acts];
        int fn = (int)usual[s->kind][i % s->n_acts];
        if (names)
            for (fn = 0; fn < RNN_N_FN && strcasecmp(names->strings[i].data, functions[fn].name); fn++) {}
        if (fn == RNN_N_FN) return op__node_fail(p->err, p->node, OP_UNSUPPORTED, "activation \"%s\" is unknown", names->strings[i].data);
        *act = (struct rnn_act){.fn = (enum rnn_fn)fn, .alpha = functions[fn].alpha, .beta = functions[fn].beta};
        /* the values are consumed by those that have the parameter, in their order */
        if (functions[fn].has_alpha && at_alpha < n_alpha) act->alpha = alpha[at_alpha++];
        if (functions[fn].has_beta && at_beta < n_beta) act->beta = beta[at_beta++];
    }
    return OP_OK;
}

static enum op_status parse(struct op_prepare *p, struct rnn *s) {
    const char *direction = op__attr_string(p->node, "direction", "forward");
    s->n_dirs = strcmp(direction, "bidirectional") ? 1 : 2;
    s->reverse_first = !strcmp(direction, "reverse");
    if (s->n_dirs == 1 && !s->reverse_first && strcmp(direction, "forward"))
        return op__node_fail(p->err, p->node, OP_BAD_VALUE, "direction is \"%s\", expected forward, reverse or bidirectional", direction);
    int64_t layout = op__attr_int(p->node, "layout", 0);
    if (layout != 0 && layout != 1) return op__node_fail(p->err, p->node, OP_BAD_VALUE, "layout is %lld, expected 0 or 1", (long long)layout);
    s->batch_first = layout == 1;
    s->hidden = op__attr_int(p->node, "hidden_size", 0);
    s->input_forget = op__attr_int(p->node, "input_forget", 0) != 0;
    s->linear_before_reset = op__attr_int(p->node, "linear_before_reset", 0) != 0;
    s->clip = op__attr_float(p->node, "clip", 0);
    if (!(s->clip >= 0)) return op__node_fail(p->err, p->node, OP_BAD_VALUE, "clip is %g, expected 0 or more", (double)s->clip);
    return parse_activations(p, s);
}

/* Packs constant f32 weights, whose shapes are checked again in infer. */
static enum op_status pack(struct op_prepare *p, struct rnn *s) {
    const struct op_tensor *w = p->n_in > RNN_R ? p->in[RNN_W] : NULL, *r = p->n_in > RNN_R ? p->in[RNN_R] : NULL;
    s->kern = p->cpu ? k_find(p->cpu) : k_default();
    if (!s->kern) s->kern = k_default();
    if (!w || !r || w->dtype != OP_F32 || r->dtype != OP_F32 || w->rank != 3 || r->rank != 3 || w->dims[0] != s->n_dirs ||
        r->dims[0] != s->n_dirs || w->dims[1] != r->dims[2] * s->n_gates || r->dims[1] != w->dims[1] || op_tensor_count(w) <= 0 ||
        op_tensor_count(r) <= 0)
        return OP_OK;
    int64_t in = w->dims[2], hidden = r->dims[2];
    size_t part[3], floats = op__rnn_packed_floats(s, s->kern->gemm, in, hidden, part), bytes;
    if (__builtin_mul_overflow(floats, sizeof(float), &bytes) || bytes > SIZE_MAX - 64) return OP_OK;
    bytes = (bytes + 63) / 64 * 64;
    for (int dir = 0; dir < s->n_dirs; dir++) {
        bool filled;
        float *mem = op__pack_alloc(p, dir ? "back" : "forth", bytes, &filled);
        const float *w_data = mem && !filled ? op__prepare_data(p, RNN_W) : NULL, *r_data = w_data ? op__prepare_data(p, RNN_R) : NULL;
        if (!mem || (!filled && !r_data)) return op__node_fail(p->err, p->node, OP_NOMEM, "out of memory: %zu bytes for packed weights", bytes);
        s->packed[dir] = (struct rnn_packed){.w = mem, .r = mem + part[0], .r_h = mem + part[0] + part[1]};
        if (!filled)
            op__rnn_pack(s, s->kern->gemm, in, hidden, w_data + dir * w->dims[1] * in, r_data + dir * w->dims[1] * hidden, mem, &s->packed[dir]);
    }
    p->consumed |= 1u << RNN_W | 1u << RNN_R;
    return OP_OK;
}

enum op_status op__rnn_prepare(struct op_prepare *p, enum rnn_kind kind) {
    struct rnn *s = calloc(1, sizeof *s);
    if (!s) return op__node_fail(p->err, p->node, OP_NOMEM, "out of memory");
    p->node->state = s;
    s->kind = kind;
    s->n_gates = kind == RNN_PLAIN ? 1 : kind == RNN_GRU ? 3 : 4;
    s->n_acts = kind == RNN_PLAIN ? 1 : kind == RNN_GRU ? 2 : 3;
    return parse(p, s);
}

static enum op_status prepare(struct op_prepare *p, enum rnn_kind kind) {
    enum op_status st = op__rnn_prepare(p, kind);
    return st == OP_OK ? pack(p, p->node->state) : st;
}

static enum op_status prepare_rnn(struct op_prepare *p) {
    return prepare(p, RNN_PLAIN);
}
static enum op_status prepare_gru(struct op_prepare *p) {
    return prepare(p, RNN_GRU);
}
static enum op_status prepare_lstm(struct op_prepare *p) {
    return prepare(p, RNN_LSTM);
}

void op__rnn_release(void *state) {
    free(state);
}

/* --- shapes ------------------------------------------------------------------------------------ */

void op__rnn_dims(const struct op_ctx *ctx, struct rnn_dims *d) {
    const struct rnn *s = ctx->state;
    const struct op_tensor *x = ctx->in[RNN_X];
    *d = (struct rnn_dims){.steps = x->dims[s->batch_first], .batch = x->dims[!s->batch_first], .in = x->dims[2], .hidden = ctx->in[RNN_R]->dims[2]};
}

static enum op_status check_optional(const struct op_ctx *ctx, int i, const char *name, int rank, int64_t d0, int64_t d1, int64_t d2) {
    if (!nn_in(ctx, i)) return OP_OK;
    enum op_status st = op__nn_like(ctx, i, name, ctx->in[RNN_X]->dtype, rank);
    return st == OP_OK ? op__nn_shape(ctx, i, name, rank, (int64_t[]){d0, d1, d2}) : st;
}

static enum op_status check_weights(const struct op_ctx *ctx) {
    const struct rnn *s = ctx->state;
    enum op_type t = ctx->in[RNN_X]->dtype;
    enum op_status st;
    if ((st = op__nn_like(ctx, RNN_W, "W", t, 3)) != OP_OK || (st = op__nn_like(ctx, RNN_R, "R", t, 3)) != OP_OK) return st;
    int64_t hidden = ctx->in[RNN_R]->dims[2], in = ctx->in[RNN_X]->dims[2];
    if (s->hidden && s->hidden != hidden)
        return op__fail(ctx, OP_BAD_SHAPE, "hidden_size is %lld, R says %lld", (long long)s->hidden, (long long)hidden);
    if (hidden < 1 || hidden > NN_ATTR_MAX || in < 1 || in > NN_ATTR_MAX)
        return op__fail(ctx, OP_BAD_SHAPE, "the hidden size is %lld, the input's size %lld: expected 1 to 2^31", (long long)hidden, (long long)in);
    int64_t rows = s->n_gates * hidden, dirs = s->n_dirs;
    if ((st = op__nn_shape(ctx, RNN_W, "W", 3, (int64_t[]){dirs, rows, in})) != OP_OK ||
        (st = op__nn_shape(ctx, RNN_R, "R", 3, (int64_t[]){dirs, rows, hidden})) != OP_OK ||
        (st = check_optional(ctx, RNN_B, "B", 2, dirs, 2 * rows, 0)) != OP_OK)
        return st;
    return s->kind == RNN_LSTM ? check_optional(ctx, RNN_P, "P", 2, dirs, 3 * hidden, 0) : OP_OK;
}

enum op_status op__rnn_infer(struct op_ctx *ctx) {
    const struct rnn *s = ctx->state;
    enum op_status st = op__nn_float(ctx, RNN_X, "X");
    if (st != OP_OK) return st;
    if ((st = op__nn_like(ctx, RNN_X, "X", ctx->in[RNN_X]->dtype, 3)) != OP_OK || (st = check_weights(ctx)) != OP_OK) return st;
    struct rnn_dims d;
    op__rnn_dims(ctx, &d);
    if (d.steps > NN_EXTENT_MAX || d.batch > NN_EXTENT_MAX) return op__fail(ctx, OP_LIMIT, "the sequence length or the batch is beyond 2^40");
    int64_t dirs = s->n_dirs, state[3] = {dirs, d.batch, d.hidden}, y[4] = {d.steps, dirs, d.batch, d.hidden};
    if (s->batch_first) {
        memcpy(state, (int64_t[]){d.batch, dirs, d.hidden}, sizeof state);
        memcpy(y, (int64_t[]){d.batch, d.steps, dirs, d.hidden}, sizeof y);
    }
    if (nn_in(ctx, RNN_LENS) && ((st = op__nn_like(ctx, RNN_LENS, "sequence_lens", OP_I32, 1)) != OP_OK ||
                                 (st = op__nn_shape(ctx, RNN_LENS, "sequence_lens", 1, &d.batch)) != OP_OK))
        return st;
    if ((st = check_optional(ctx, RNN_H0, "initial_h", 3, state[0], state[1], state[2])) != OP_OK) return st;
    if (s->kind == RNN_LSTM && (st = check_optional(ctx, RNN_C0, "initial_c", 3, state[0], state[1], state[2])) != OP_OK) return st;
    op__set(ctx, 0, ctx->in[RNN_X]->dtype, 4, y);
    op__set(ctx, 1, ctx->in[RNN_X]->dtype, 3, state);
    op__set(ctx, 2, ctx->in[RNN_X]->dtype, 3, state);
    return OP_OK;
}

enum op_status op__rnn_check_lengths(const struct op_ctx *ctx, const struct rnn_dims *d) {
    for (int64_t n = 0; n < d->batch; n++)
        if (rnn_length(ctx, d, n) < 0 || rnn_length(ctx, d, n) > d->steps)
            return op__fail(ctx, OP_BAD_VALUE, "sequence_lens[%lld] is %lld, there are %lld steps", (long long)n, (long long)rnn_length(ctx, d, n),
                            (long long)d->steps);
    return OP_OK;
}

/* --- the plain form ---------------------------------------------------------------------------- */

static double activate_unclipped(const struct rnn_act *act, double x) {
    double a = (double)act->alpha, b = (double)act->beta;
    switch (act->fn) {
    case RNN_FN_RELU: return x > 0 ? x : 0;
    case RNN_FN_TANH: return tanh(x);
    case RNN_FN_SIGMOID: return 1 / (1 + exp(-x));
    case RNN_FN_AFFINE: return a * x + b;
    case RNN_FN_LEAKY_RELU: return x >= 0 ? x : a * x;
    case RNN_FN_THRESHOLDED_RELU: return x >= a ? x : 0;
    case RNN_FN_SCALED_TANH: return a * tanh(b * x);
    case RNN_FN_HARD_SIGMOID: return fmin(fmax(a * x + b, 0), 1);
    case RNN_FN_ELU: return x >= 0 ? x : a * expm1(x);
    case RNN_FN_SOFTSIGN: return x / (1 + fabs(x));
    case RNN_FN_SOFTPLUS: return x > 0 ? x + log1p(exp(-x)) : log1p(exp(x));
    case RNN_N_FN: break;
    }
    return x;
}

static double activate(const struct rnn *s, const struct rnn_act *act, double x) {
    double clip = (double)s->clip;
    return activate_unclipped(act, clip > 0 && x > clip ? clip : clip > 0 && x < -clip ? -clip : x);
}

/* One sequence in one direction. `wx` and `rh` hold the two products of a step with their biases, [gates, hidden]. */
struct ref_cell {
    const struct op_ctx *ctx;
    const struct rnn *s;
    struct rnn_dims d;
    int dir;
    double *h, *h_next, *c, *wx, *rh;
};

/* dst[j] = sum over k of m[row j][k] v[k] + bias[j], for rows [from, to) of this direction's matrix. */
static void ref_product(const struct ref_cell *q, int input, int64_t size, const double *v, int64_t x_at, int64_t from, int64_t to, double *dst) {
    const struct op_tensor *m = q->ctx->in[input], *b = nn_in(q->ctx, RNN_B);
    int64_t rows = q->s->n_gates * q->d.hidden;
    for (int64_t j = from; j < to; j++) {
        double sum = b ? nn_load(b, (q->dir * 2 + (input == RNN_R)) * rows + j) : 0;
        for (int64_t k = 0; k < size; k++)
            sum += nn_load(m, (q->dir * rows + j) * size + k) * (v ? v[k] : nn_load(q->ctx->in[RNN_X], x_at + k));
        dst[j] = sum;
    }
}

static void ref_lstm(const struct ref_cell *q) {
    int64_t hidden = q->d.hidden;
    const struct rnn_act *act = q->s->act[q->dir];
    const struct op_tensor *p = nn_in(q->ctx, RNN_P);
    for (int64_t j = 0; j < hidden; j++) {
        const double *wx = q->wx + j, *rh = q->rh + j;
        double peep[3] = {0}, c = q->c[j];
        for (int g = 0; p && g < 3; g++) peep[g] = nn_load(p, (q->dir * 3 + g) * hidden + j);
        double i = activate(q->s, &act[0], wx[0] + rh[0] + peep[0] * c);
        double f = q->s->input_forget ? 1 - i : activate(q->s, &act[0], wx[2 * hidden] + rh[2 * hidden] + peep[2] * c);
        c = f * c + i * activate(q->s, &act[1], wx[3 * hidden] + rh[3 * hidden]);
        double o = activate(q->s, &act[0], wx[hidden] + rh[hidden] + peep[1] * c);
        q->c[j] = c;
        q->h_next[j] = o * activate_unclipped(&act[2], c);
    }
}

static void ref_gru(const struct ref_cell *q) {
    int64_t hidden = q->d.hidden;
    const struct rnn_act *act = q->s->act[q->dir];
    double *z = q->wx, *r = q->wx + hidden, *rh = q->rh + 2 * hidden;
    for (int64_t j = 0; j < 2 * hidden; j++) q->wx[j] = activate(q->s, &act[0], q->wx[j] + q->rh[j]);
    if (q->s->linear_before_reset) {
        for (int64_t j = 0; j < hidden; j++) rh[j] *= r[j];
    } else {
        for (int64_t j = 0; j < hidden; j++) q->h_next[j] = r[j] * q->h[j];
        ref_product(q, RNN_R, hidden, q->h_next, 0, 2 * hidden, 3 * hidden, q->rh);
    }
    for (int64_t j = 0; j < hidden; j++)
        q->h_next[j] = (1 - z[j]) * activate(q->s, &act[1], q->wx[2 * hidden + j] + rh[j]) + z[j] * q->h[j];
}

static void ref_step(struct ref_cell *q, int64_t t, int64_t n) {
    int64_t rows = q->s->n_gates * q->d.hidden;
    ref_product(q, RNN_W, q->d.in, NULL, rnn_x_at(q->s, &q->d, t, n), 0, rows, q->wx);
    ref_product(q, RNN_R, q->d.hidden, q->h, 0, 0, rows, q->rh);
    if (q->s->kind == RNN_LSTM) ref_lstm(q);
    else if (q->s->kind == RNN_GRU) ref_gru(q);
    else
        for (int64_t j = 0; j < rows; j++) q->h_next[j] = activate(q->s, &q->s->act[q->dir][0], q->wx[j] + q->rh[j]);
    double *swap = q->h;
    q->h = q->h_next;
    q->h_next = swap;
}

static void ref_sequence(struct ref_cell *q, int64_t n) {
    const struct op_ctx *ctx = q->ctx;
    const struct op_tensor *h0 = nn_in(ctx, RNN_H0), *c0 = q->s->kind == RNN_LSTM ? nn_in(ctx, RNN_C0) : NULL;
    struct op_tensor *y = nn_out(ctx, 0), *y_h = nn_out(ctx, 1), *y_c = nn_out(ctx, 2);
    int64_t state = rnn_state_at(q->s, &q->d, q->dir, n), length = rnn_length(ctx, &q->d, n);
    for (int64_t j = 0; j < q->d.hidden; j++) {
        q->h[j] = h0 ? nn_load(h0, state + j) : 0;
        q->c[j] = c0 ? nn_load(c0, state + j) : 0;
    }
    for (int64_t step = 0; step < q->d.steps; step++) {
        int64_t t = rnn_reverse(q->s, q->dir) && step < length ? length - 1 - step : step;
        if (step < length) ref_step(q, t, n);
        for (int64_t j = 0; y && j < q->d.hidden; j++) nn_store(y, rnn_y_at(q->s, &q->d, t, q->dir, n) + j, step < length ? q->h[j] : 0);
    }
    for (int64_t j = 0; j < q->d.hidden; j++) {
        if (y_h) nn_store(y_h, state + j, q->h[j]);
        if (y_c) nn_store(y_c, state + j, q->c[j]);
    }
}

static enum op_status ref(struct op_ctx *ctx) {
    struct ref_cell q = {.ctx = ctx, .s = ctx->state};
    op__rnn_dims(ctx, &q.d);
    enum op_status st = op__rnn_check_lengths(ctx, &q.d);
    if (st != OP_OK) return st;
    int64_t hidden = q.d.hidden;
    for (q.dir = 0; q.dir < q.s->n_dirs; q.dir++)
        for (int64_t n = 0; n < q.d.batch; n++) {
            q.h = ctx->scratch;
            q.h_next = q.h + hidden;
            q.c = q.h + 2 * hidden;
            q.wx = q.h + 3 * hidden;
            q.rh = q.wx + q.s->n_gates * hidden;
            ref_sequence(&q, n);
        }
    return OP_OK;
}

/* --- registration ------------------------------------------------------------------------------ */

static size_t scratch(const struct op_ctx *ctx) {
    const struct rnn *s = ctx->state;
    struct rnn_dims d;
    op__rnn_dims(ctx, &d);
    size_t plain = (size_t)d.hidden * (size_t)(3 + 2 * s->n_gates) * sizeof(double);
    size_t fast = ctx->in[RNN_X]->dtype == OP_F32 ? op__rnn_f32_scratch(ctx) : 0;
    return plain > fast ? plain : fast;
}

static enum op_status run(struct op_ctx *ctx) {
    struct rnn_dims d;
    op__rnn_dims(ctx, &d);
    enum op_status st = op__rnn_check_lengths(ctx, &d);
    if (st != OP_OK) return st;
    return ctx->in[RNN_X]->dtype == OP_F32 ? op__rnn_f32_run(ctx) : ref(ctx);
}

static void cost(const struct op_ctx *ctx, double *flops, double *bytes) {
    const struct rnn *s = ctx->state;
    struct rnn_dims d;
    op__rnn_dims(ctx, &d);
    double rows = (double)s->n_gates * (double)d.hidden * s->n_dirs, n = (double)d.steps * (double)d.batch;
    *flops = 2 * n * rows * (double)(d.in + d.hidden);
    *bytes = 4 * (rows * (double)(d.in + d.hidden) + n * (double)(d.in + d.hidden * s->n_dirs));
}

#define RECURRENT(id, op_name, n_in_max, n_out_max, op_prepare)                                    \
    static const struct op_desc id = {                                                             \
        .name = op_name,                                                                           \
        .domain = "",                                                                              \
        .since = 1,                                                                                \
        .flags = OP_F_LAZY,                                                                        \
        .in_min = 3,                                                                               \
        .in_max = n_in_max,                                                                        \
        .out_min = 0,                                                                              \
        .out_max = n_out_max,                                                                      \
        .prepare = op_prepare,                                                                     \
        .release = op__rnn_release,                                                                        \
        .infer = op__rnn_infer,                                                                            \
        .scratch = scratch,                                                                        \
        .run = run,                                                                                \
        .ref = ref,                                                                                \
        .cost = cost,                                                                              \
    };                                                                                             \
    OP_REGISTER(id)

RECURRENT(rnn, "RNN", 6, 2, prepare_rnn);
RECURRENT(gru, "GRU", 6, 2, prepare_gru);
RECURRENT(lstm, "LSTM", 8, 3, prepare_lstm);
