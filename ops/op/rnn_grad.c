/* rnn_grad.c: gradients of RNN, GRU and LSTM through time.
 *
 *   <kind>Grad(X, W, R, B, sequence_lens, initial_h, initial_c, P, dY, dY_h, dY_c) → dX, dW, dR, dB, dinitial_h, dinitial_c
 *
 * with the forward node's attributes; inputs but X, W, R may be absent. Default activations (RNN: also Relu), no clip, no input_forget, no
 * peepholes: others are refused with their name.
 *
 * How. For each direction the rows of X are laid out in the order of processing, step by step, so that reverse directions and
 * sequences of their own lengths are the same code; the gates are computed again (one product for all steps of X, one a step for R),
 * kept with the states, and walked backwards. What the steps leave behind are the gates' gradients of all steps, from which three
 * large products give dW, dR and dX. So but for one product forward and one backward a step everything is a matrix product over
 * steps x batch rows. Keeping the gates of the forward pass would save a fifth of the work and needs as much memory again between
 * the passes: not done.
 *
 * After the end of a sequence its state stays: the gradient of the state goes through such steps unchanged, dY is not read there.
 * Sums are products over rising (step, row) and so fixed by the shape. f64 takes the plain product. */
#include "ops/op/elementwise.h"
#include "ops/op/product.h"
#include "ops/op/rnn.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "ops/grad.h"

OP_VECTOR_FILE

enum { IN_DY = 8, IN_DY_H, IN_DY_C, N_IN };
enum { OUT_X, OUT_W, OUT_R, OUT_B, OUT_H0, OUT_C0, N_OUT };

/* Pieces of scratch memory, in elements. */
struct layout {
    size_t xs, gates, hs, cs, extra, extra_grad, step, dh, dc, dh_more; /* where they begin */
    size_t r_forward, r_forward_h, r_back, r_back_h, pack_a, pack_b, total;
};

struct job {
    const struct op_ctx *ctx;
    const struct rnn *s;
    const struct k_kernels *kern;
    struct rnn_dims d;
    struct layout at;
    int64_t rows, gates; /* steps x batch; gates x hidden */
    bool reset_first;    /* a GRU whose reset gate is applied before the product: linear_before_reset 0 */
};

static bool job_init(struct job *j, const struct op_ctx *ctx) {
    *j = (struct job){.ctx = ctx, .s = ctx->state, .kern = op__kern(ctx)};
    op__rnn_dims(ctx, &j->d);
    const struct rnn_dims *d = &j->d;
    j->gates = j->s->n_gates * d->hidden;
    j->reset_first = j->s->kind == RNN_GRU && !j->s->linear_before_reset;
    int64_t largest; /* everything below is a small multiple of this */
    if (!op__mul(d->steps + 1, d->batch, &j->rows) || !op__mul(j->rows + 64, j->gates + d->in + 64, &largest) || largest > INT64_MAX / 1024) return false;
    j->rows = d->steps * d->batch;
    const struct k_gemm *g = j->kern->gemm;
    const size_t rows = (size_t)j->rows, n = (size_t)d->batch, h = (size_t)d->hidden;
    const bool f32 = ctx->in[RNN_X]->dtype == OP_F32, gru = j->s->kind == RNN_GRU;
    struct layout *at = &j->at;
    size_t used = 0, a = 0, b = 0;
#define PIECE(name, count) at->name = used, used += ((size_t)(count) + 15) & ~(size_t)15
    PIECE(xs, rows * (size_t)d->in);
    PIECE(gates, rows * (size_t)j->gates);
    PIECE(hs, (rows + n) * h);
    PIECE(cs, j->s->kind == RNN_LSTM ? (rows + n) * h : 0);
    PIECE(extra, gru ? rows * h : 0);
    PIECE(extra_grad, gru && !j->reset_first ? rows * h : 0);
    PIECE(step, n * (size_t)j->gates);
    PIECE(dh, n * h);
    PIECE(dc, n * h);
    PIECE(dh_more, n * h);
    if (f32) {
        const int64_t hidden = d->hidden, first = j->reset_first ? 2 * hidden : j->gates;
        PIECE(r_forward, k_pack_b_floats(g, hidden, first));
        PIECE(r_forward_h, j->reset_first ? k_pack_b_floats(g, hidden, hidden) : 0);
        PIECE(r_back, k_pack_b_floats(g, first, hidden));
        PIECE(r_back_h, j->reset_first ? k_pack_b_floats(g, hidden, hidden) : 0);
        const size_t packs[] = {k_pack_b_floats(g, d->in, j->gates), k_pack_b_floats(g, j->rows, d->in), k_pack_b_floats(g, j->rows, hidden),
                                k_pack_b_floats(g, j->gates, d->in)};
        for (size_t i = 0; i < sizeof packs / sizeof *packs; i++) b = packs[i] > b ? packs[i] : b;
        a = k_pack_a_floats(g, j->gates, j->rows);
        PIECE(pack_a, a);
        PIECE(pack_b, b);
    }
#undef PIECE
    at->total = used;
    return true;
}

/* A product C (m x n) = A B, k terms; strides in elements. `packed`: B in panels already (f32), or as it lies (f64). */
struct operand {
    const void *data;
    int64_t outer, inner; /* A: of rows and of k; B: of k and of columns */
    const float *packed;
};

static void product_float(const struct job *j, int64_t m, int64_t n, int64_t k, struct operand a, struct operand b, float *c, int64_t c_row) {
    const struct k_gemm *g = j->kern->gemm;
    float *scratch = j->ctx->scratch;
    struct k_product p = {.m = m, .n = n, .k = k, .a = a.data, .a_row = a.outer, .a_k = a.inner, .b = b.packed, .b_packed = true, .c = c, .c_row = c_row};
    if (a.inner != 1) { /* A transposed: copied into panels once, as it is read for every panel of B */
        k_pack_a(g, m, k, a.data, a.outer, a.inner, scratch + j->at.pack_a);
        p.a = scratch + j->at.pack_a;
        p.a_packed = true;
    }
    if (!p.b) {
        k_pack_b(g, k, n, b.data, b.outer, b.inner, scratch + j->at.pack_b);
        p.b = scratch + j->at.pack_b;
    }
    op__gemm(j->ctx, &p);
}
static void product_double(const struct job *j, int64_t m, int64_t n, int64_t k, struct operand a, struct operand b, double *c, int64_t c_row) {
    (void)j;
    op__product_plain(&(struct op__product){.dtype = OP_F64, .m = m, .n = n, .k = k, .a = a.data, .a_i = a.outer, .a_k = a.inner, .b = b.data, .b_k = b.outer,
                                            .b_j = b.inner, .c = c, .c_i = c_row});
}

static const float *pack_float(const struct job *j, size_t at, int64_t k, int64_t n, const float *b, int64_t b_k, int64_t b_j) {
    float *to = (float *)j->ctx->scratch + at;
    k_pack_b(j->kern->gemm, k, n, b, b_k, b_j, to);
    return to;
}
static const float *pack_double(const struct job *j, size_t at, int64_t k, int64_t n, const double *b, int64_t b_k, int64_t b_j) {
    (void)j, (void)at, (void)k, (void)n, (void)b, (void)b_k, (void)b_j;
    return NULL;
}

static void sigmoid_float(const struct job *j, int64_t n, float *x) {
    j->kern->math->unary[K_SIGMOID](n, x, x, 0, 0);
}
static void sigmoid_double(const struct job *j, int64_t n, double *x) {
    (void)j;
    for (int64_t i = 0; i < n; i++) x[i] = 1 / (1 + exp(-x[i]));
}
static void tanh_float(const struct job *j, int64_t n, const float *x, float *y) {
    j->kern->math->unary[K_TANH](n, x, y, 0, 0);
}
static void tanh_double(const struct job *j, int64_t n, const double *x, double *y) {
    (void)j;
    for (int64_t i = 0; i < n; i++) y[i] = tanh(x[i]);
}

#define T float
#define NAME(x) x##_float
#include "ops/op/rnn_grad_body.h"
#undef T
#undef NAME
#define T double
#define NAME(x) x##_double
#include "ops/op/rnn_grad_body.h"
#undef T
#undef NAME

/* --- the operators ---------------------------------------------------------------------------------- */

static enum op_status check_form(struct op_prepare *p) {
    const struct rnn *s = p->node->state;
    const char *what = s->clip > 0 ? "clip" : s->input_forget ? "input_forget" : NULL;
    static const enum rnn_fn usual[3][3] = {{RNN_FN_TANH}, {RNN_FN_SIGMOID, RNN_FN_TANH}, {RNN_FN_SIGMOID, RNN_FN_TANH, RNN_FN_TANH}};
    for (int dir = 0; dir < s->n_dirs; dir++)
        for (int i = 0; i < s->n_acts; i++)
            if (s->act[dir][i].fn != usual[s->kind][i] && !(s->kind == RNN_PLAIN && s->act[dir][i].fn == RNN_FN_RELU)) what = "other activations than the default";
    return what ? op__node_fail(p->err, p->node, OP_UNSUPPORTED, "its gradient is not supported with %s", what) : OP_OK;
}
static enum op_status prepare(struct op_prepare *p, enum rnn_kind kind) {
    enum op_status st = op__rnn_prepare(p, kind);
    return st == OP_OK ? check_form(p) : st;
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

static enum op_status infer(struct op_ctx *ctx) {
    struct op_tensor y[3] = {{0}}, *outs[3] = {&y[0], &y[1], &y[2]};
    struct op_ctx forward = *ctx;
    struct job j;
    forward.n_in = ctx->n_in < IN_DY ? ctx->n_in : IN_DY;
    forward.n_out = 3;
    forward.out = outs;
    enum op_status st = op__rnn_infer(&forward);
    if (st != OP_OK) return st;
    const enum op_type type = ctx->in[RNN_X]->dtype;
    if (type != OP_F32 && type != OP_F64) return op__fail(ctx, OP_BAD_TYPE, "X is %s, expected f32 or f64", op_type_name(type));
    if (nn_in(ctx, RNN_P)) return op__fail(ctx, OP_UNSUPPORTED, "its gradient is not supported with peepholes (input P)");
    static const char *const names[] = {"dY", "dY_h", "dY_c"};
    for (int i = 0; i < 3; i++)
        if (nn_in(ctx, IN_DY + i) && ((st = op__nn_like(ctx, IN_DY + i, names[i], type, y[i].rank)) != OP_OK ||
                                      (st = op__nn_shape(ctx, IN_DY + i, names[i], y[i].rank, y[i].dims)) != OP_OK))
            return st;
    if (!job_init(&j, ctx)) return op__fail(ctx, OP_LIMIT, "the sequences are too large");
    for (int i = 0; i < 3; i++) op__set_like(ctx, i, i);
    op__set(ctx, OUT_B, type, 2, (int64_t[]){j.s->n_dirs, 2 * j.gates});
    op__set(ctx, OUT_H0, type, y[1].rank, y[1].dims);
    op__set(ctx, OUT_C0, type, y[1].rank, y[1].dims);
    return OP_OK;
}

static size_t scratch(const struct op_ctx *ctx) {
    struct job j;
    return job_init(&j, ctx) ? j.at.total * op_type_size(ctx->in[RNN_X]->dtype) : 0;
}

static enum op_status run(struct op_ctx *ctx) {
    struct job j;
    if (!job_init(&j, ctx)) return op__fail(ctx, OP_LIMIT, "the sequences are too large");
    enum op_status st = op__rnn_check_lengths(ctx, &j.d);
    if (st != OP_OK) return st;
    if (nn_out(ctx, OUT_X) && op_tensor_count(ctx->out[OUT_X])) memset(ctx->out[OUT_X]->data, 0, (size_t)op_tensor_bytes(ctx->out[OUT_X]));
    for (int dir = 0; dir < j.s->n_dirs; dir++) {
        if (ctx->in[RNN_X]->dtype == OP_F32) direction_float(&j, dir);
        else direction_double(&j, dir);
    }
    return OP_OK;
}

static void cost(const struct op_ctx *ctx, double *flops, double *bytes) {
    struct job j;
    (void)bytes;
    if (job_init(&j, ctx)) *flops = 6.0 * (double)j.rows * (double)j.gates * j.s->n_dirs * (double)(j.d.in + j.d.hidden);
}

#define DESC(NAME, PREPARE)                                                                        \
    {                                                                                              \
        .name = NAME, .domain = "quern", .since = 1, .in_min = 3, .in_max = N_IN, .out_min = 1, .out_max = N_OUT, .prepare = PREPARE, \
        .release = op__rnn_release, .infer = infer, .scratch = scratch, .run = run, .cost = cost   \
    }
static const struct op_desc rnn_grad_desc = DESC("RNNGrad", prepare_rnn), gru_grad_desc = DESC("GRUGrad", prepare_gru), lstm_grad_desc = DESC("LSTMGrad", prepare_lstm);
OP_REGISTER(rnn_grad_desc);
OP_REGISTER(gru_grad_desc);
OP_REGISTER(lstm_grad_desc);

static enum op_status recurrent_grad(struct op_grad *g) {
    int in[N_IN], out[N_OUT];
    char name[16];
    if (op__attr(g->node, "activations") || op__attr(g->node, "clip")) { /* lists of names are not copied: say so now, with the node's name */
        const struct op_attr *a = op__attr(g->node, "activations");
        static const char *const usual[] = {"Tanh", "Sigmoid Tanh", "Sigmoid Tanh Tanh"};
        const char *expected = usual[g->node->op_type[0] == 'L' ? 2 : g->node->op_type[0] == 'G'];
        char given[128] = "";
        const int64_t n_dirs = strcmp(op__attr_string(g->node, "direction", "forward"), "bidirectional") ? 1 : 2;
        if (op__attr_float(g->node, "clip", 0) > 0) return op__grad_refuse(g, "with clip");
        for (int64_t dir = 0; a && dir < n_dirs; dir++) {
            const int64_t each = a->n / n_dirs;
            *given = 0;
            for (int64_t i = 0; i < each && i < 3; i++) {
                if (i) strcat(given, " ");
                strncat(given, a->strings[dir * each + i].data, 24);
            }
            if (strcmp(given, expected)) return op__grad_refuse(g, "with other activations than the default");
        }
    }
    for (int i = 0; i < IN_DY; i++) in[i] = i < g->n_in ? g->in[i] : -1;
    for (int i = 0; i < 3; i++) in[IN_DY + i] = i < g->n_out ? g->dy[i] : -1;
    if (in[RNN_P] >= 0) return op__grad_refuse(g, "with peepholes (input P)");
    snprintf(name, sizeof name, "%sGrad", g->node->op_type);
    op__attrs_copy(g, op__emit(g, "quern", name, N_IN, in, N_OUT, out));
    for (int i = 0; i < 3; i++) op__grad_set(g, i, out[i]);
    op__grad_set(g, RNN_B, out[OUT_B]);
    op__grad_set(g, RNN_H0, out[OUT_H0]);
    op__grad_set(g, RNN_C0, out[OUT_C0]);
    return OP_OK;
}

static const struct op_grad_row recurrent_grads[] = {{"", "RNN", recurrent_grad}, {"", "GRU", recurrent_grad}, {"", "LSTM", recurrent_grad}};
OP_GRADS_REGISTER(recurrent_grads);
