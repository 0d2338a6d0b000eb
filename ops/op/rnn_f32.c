/* rnn_f32.c: RNN, GRU and LSTM in f32 on the matrix product and the vector functions of kern.h.
 *
 * The batch is cut into blocks of up to 18 sequences (three tiles of six rows); a block in one direction is a task that runs
 * from the first step to the last without waiting for any other. A task goes through time in chunks: it gathers the
 * inputs of the chunk's steps into rows (which takes care of layout, direction and lengths), multiplies them all with W
 * at once, then goes step by step: gates = projection + h R, activations, cell.
 *
 * The same bits: an element of a product is one chain of fused multiply-adds over rising k, whatever the number of rows, and all else
 * is element by element; so a sequence's result does not depend on the batch, the blocks or the chunks.
 *
 * Weights are packed once at load where they are constants, else at each run into scratch memory. R of a GRU is
 * packed in two parts, because h needs r first (or needs its product apart from the rest). */
#include "ops/op/rnn.h"

#include <math.h>
#include <string.h>

#define BLOCK_MAX 18
#define CHUNK_ROWS 96
#define CHUNK_ROWS_FEW 24 /* of a few sequences: R must stay in L2 beside the projections */

/* --- packed weights ---------------------------------------------------------------------------- */

static size_t whole_lines(size_t floats) {
    return (floats + 15) / 16 * 16;
}

size_t op__rnn_packed_floats(const struct rnn *s, const struct k_gemm *g, int64_t in, int64_t hidden, size_t part[3]) {
    part[0] = whole_lines(k_pack_b_floats(g, in, s->n_gates * hidden));
    part[1] = whole_lines(k_pack_b_floats(g, hidden, (s->kind == RNN_GRU ? 2 : s->n_gates) * hidden));
    part[2] = s->kind == RNN_GRU ? whole_lines(k_pack_b_floats(g, hidden, hidden)) : 0;
    return part[0] + part[1] + part[2];
}

void op__rnn_pack(const struct rnn *s, const struct k_gemm *g, int64_t in, int64_t hidden, const float *w, const float *r, float *dst,
                  struct rnn_packed *packed) {
    size_t part[3];
    op__rnn_packed_floats(s, g, in, hidden, part);
    *packed = (struct rnn_packed){.w = dst, .r = dst + part[0], .r_h = dst + part[0] + part[1]};
    k_pack_b(g, in, s->n_gates * hidden, w, 1, in, packed->w);
    k_pack_b(g, hidden, (s->kind == RNN_GRU ? 2 : s->n_gates) * hidden, r, 1, hidden, packed->r);
    if (s->kind == RNN_GRU) k_pack_b(g, hidden, hidden, r + 2 * hidden * hidden, 1, hidden, packed->r_h);
}

/* --- layout of scratch memory -------------------------------------------------------------------- */

struct plan {
    int64_t n_blocks, block; /* blocks of the batch, sequences in one */
    int64_t chunk;           /* steps */
    size_t bias, task, packed; /* floats: biases of one direction, one task, packed weights of one direction (0: packed at load) */
};

static void make_plan(const struct op_ctx *ctx, const struct rnn_dims *d, struct plan *p) {
    const struct rnn *s = ctx->state;
    size_t part[3], gates = (size_t)s->n_gates * (size_t)d->hidden, hidden = (size_t)d->hidden;
    p->n_blocks = (d->batch + BLOCK_MAX - 1) / BLOCK_MAX;
    p->block = p->n_blocks ? (d->batch + p->n_blocks - 1) / p->n_blocks : 1;
    p->chunk = (p->block <= 4 ? CHUNK_ROWS_FEW : CHUNK_ROWS) / p->block;
    if (p->chunk > d->steps) p->chunk = d->steps ? d->steps : 1;
    size_t rows = (size_t)(p->chunk * p->block), block = (size_t)p->block;
    p->bias = whole_lines(gates);
    p->task = whole_lines(rows * (size_t)d->in) + whole_lines(rows * gates) + whole_lines(block * gates) + 3 * whole_lines(block * hidden);
    p->packed = s->packed[0].w ? 0 : op__rnn_packed_floats(s, s->kern->gemm, d->in, d->hidden, part);
}

size_t op__rnn_f32_scratch(const struct op_ctx *ctx) {
    const struct rnn *s = ctx->state;
    struct rnn_dims d;
    struct plan p;
    op__rnn_dims(ctx, &d);
    if (!d.batch) return 0;
    make_plan(ctx, &d, &p);
    return (size_t)s->n_dirs * ((size_t)p.n_blocks * p.task + p.bias + p.packed) * sizeof(float);
}

/* --- activations ------------------------------------------------------------------------------- */

static void activate_unclipped(const struct rnn *s, const struct rnn_act *act, int64_t n, const float *x, float *y) {
    k_unary_fn *const *unary = s->kern->math->unary;
    switch (act->fn) {
    case RNN_FN_RELU: unary[K_RELU](n, x, y, 0, 0); break;
    case RNN_FN_TANH: unary[K_TANH](n, x, y, 0, 0); break;
    case RNN_FN_SIGMOID: unary[K_SIGMOID](n, x, y, 0, 0); break;
    case RNN_FN_AFFINE: unary[K_LINEAR](n, x, y, act->alpha, act->beta); break;
    case RNN_FN_LEAKY_RELU: unary[K_LEAKY_RELU](n, x, y, act->alpha, 0); break;
    case RNN_FN_HARD_SIGMOID: unary[K_HARD_SIGMOID](n, x, y, act->alpha, act->beta); break;
    case RNN_FN_ELU: unary[K_ELU](n, x, y, act->alpha, 0); break;
    case RNN_FN_SOFTPLUS: unary[K_SOFTPLUS](n, x, y, 0, 0); break;
    case RNN_FN_SCALED_TANH:
        unary[K_LINEAR](n, x, y, act->beta, 0);
        unary[K_TANH](n, y, y, 0, 0);
        unary[K_LINEAR](n, y, y, act->alpha, 0);
        break;
    case RNN_FN_THRESHOLDED_RELU:
        for (int64_t i = 0; i < n; i++) y[i] = x[i] >= act->alpha ? x[i] : 0;
        break;
    case RNN_FN_SOFTSIGN:
        for (int64_t i = 0; i < n; i++) y[i] = x[i] / (1 + fabsf(x[i]));
        break;
    case RNN_N_FN: break;
    }
}

static void activate(const struct rnn *s, const struct rnn_act *act, int64_t n, float *x) {
    if (s->clip > 0) s->kern->math->unary[K_CLIP](n, x, x, -s->clip, s->clip);
    activate_unclipped(s, act, n, x, x);
}

/* --- a task ------------------------------------------------------------------------------------ */

struct task {
    const struct op_ctx *ctx;
    const struct rnn *s;
    struct rnn_dims d;
    int dir;
    int64_t first, n; /* sequences [first, first + n) */
    bool usual;       /* an LSTM's activations: see usual_cell */
    struct rnn_packed weights;
    const float *bias, *bias_rh; /* [gates, hidden]; [hidden], a GRU's own of r . (h R + bias) or NULL */
    const float *peephole;       /* [3, hidden] or NULL */
    float *x;                    /* [chunk rows, in] */
    float *wx;                   /* [chunk rows, gates * hidden]: projections */
    float *gates;                /* [n, gates * hidden] */
    float *h, *c, *spare;        /* [n, hidden] */
};

static void product(const struct task *q, int64_t m, int64_t n, int64_t k, const float *a, const float *b, const float *bias, const float *add,
                    int64_t add_row, float *c, int64_t c_row) {
    struct k_product p = {.m = m, .n = n, .k = k, .a = a, .a_row = k, .a_k = 1, .b = b, .b_packed = true, .c = c, .c_row = c_row};
    p.then = (struct k_epilogue){.bias_col = bias, .residual = add, .residual_row = add_row, .act = K_COPY};
    k_gemm(q->s->kern, &p, 0, m, 0, n);
}

/* The step in time that sequence n takes as its `step`-th; -1: it has ended. */
static int64_t time_of(const struct task *q, int64_t n, int64_t step) {
    int64_t length = rnn_length(q->ctx, &q->d, n);
    if (step >= length) return -1;
    return rnn_reverse(q->s, q->dir) ? length - 1 - step : step;
}

/* Whether the cell is the one that lstm_cell knows. */
static bool usual_cell(const struct task *q) {
    const struct rnn_act *act = q->s->act[q->dir];
    return !q->peephole && !q->s->input_forget && !(q->s->clip > 0) && act[0].fn == RNN_FN_SIGMOID && act[1].fn == RNN_FN_TANH && act[2].fn == RNN_FN_TANH;
}

/* One LSTM cell: g is [i o f c] before the activations; h and c are updated. */
static void lstm_row(const struct task *q, float *g, float *h, float *c) {
    const struct k_vmath *math = q->s->kern->math;
    const struct rnn_act *act = q->s->act[q->dir];
    int64_t n = q->d.hidden;
    float *i = g, *o = g + n, *f = g + 2 * n, *cand = g + 3 * n;
    if (q->usual) {
        math->lstm_cell(n, g, c, h);
        return;
    }
    if (!q->peephole) activate(q->s, &act[0], 3 * n, g);
    else {
        math->fma(n, q->peephole, c, i);
        math->fma(n, q->peephole + 2 * n, c, f);
        activate(q->s, &act[0], n, i);
        activate(q->s, &act[0], n, f);
    }
    if (q->s->input_forget) math->unary[K_LINEAR](n, i, f, -1, 1);
    activate(q->s, &act[1], n, cand);
    math->binary[K_MUL](n, f, false, c, false, c);
    math->fma(n, i, cand, c);
    if (q->peephole) {
        math->fma(n, q->peephole + n, c, o);
        activate(q->s, &act[0], n, o);
    }
    activate_unclipped(q->s, &act[2], n, c, cand);
    math->binary[K_MUL](n, o, false, cand, false, h);
}

static void lstm_step(const struct task *q, int64_t step, const float *wx) {
    int64_t width = 4 * q->d.hidden;
    product(q, q->n, width, q->d.hidden, q->h, q->weights.r, NULL, wx, width, q->gates, width);
    for (int64_t n = 0; n < q->n; n++)
        if (time_of(q, q->first + n, step) >= 0) lstm_row(q, q->gates + n * width, q->h + n * q->d.hidden, q->c + n * q->d.hidden);
}

static void gru_step(const struct task *q, int64_t step, const float *wx) {
    const struct k_vmath *math = q->s->kern->math;
    const struct rnn_act *act = q->s->act[q->dir];
    int64_t n = q->d.hidden, width = 3 * n;
    product(q, q->n, 2 * n, n, q->h, q->weights.r, NULL, wx, width, q->gates, width);
    for (int64_t s = 0; s < q->n; s++) {
        float *g = q->gates + s * width;
        activate(q->s, &act[0], 2 * n, g);
        if (!q->s->linear_before_reset) math->binary[K_MUL](n, g + n, false, q->h + s * n, false, q->spare + s * n);
    }
    if (q->s->linear_before_reset) product(q, q->n, n, n, q->h, q->weights.r_h, q->bias_rh, NULL, 0, q->gates + 2 * n, width);
    else product(q, q->n, n, n, q->spare, q->weights.r_h, NULL, wx + 2 * n, width, q->gates + 2 * n, width);
    for (int64_t s = 0; s < q->n; s++) {
        if (time_of(q, q->first + s, step) < 0) continue;
        float *z = q->gates + s * width, *r = z + n, *cand = z + 2 * n, *h = q->h + s * n;
        if (q->s->linear_before_reset) {
            math->binary[K_MUL](n, r, false, cand, false, cand);
            math->binary[K_ADD](n, cand, false, wx + s * width + 2 * n, false, cand);
        }
        activate(q->s, &act[1], n, cand);
        math->binary[K_SUB](n, h, false, cand, false, r); /* h' = (1 - z) cand + z h = cand + z (h - cand) */
        math->fma(n, z, r, cand);
        memcpy(h, cand, (size_t)n * sizeof *h);
    }
}

static void plain_step(const struct task *q, int64_t step, const float *wx) {
    int64_t n = q->d.hidden;
    product(q, q->n, n, n, q->h, q->weights.r, NULL, wx, n, q->gates, n);
    for (int64_t s = 0; s < q->n; s++)
        if (time_of(q, q->first + s, step) >= 0) {
            activate(q->s, &q->s->act[q->dir][0], n, q->gates + s * n);
            memcpy(q->h + s * n, q->gates + s * n, (size_t)n * sizeof(float));
        }
}

static void write_step(const struct task *q, int64_t step) {
    if (!nn_out(q->ctx, 0)) return;
    size_t bytes = (size_t)q->d.hidden * sizeof(float);
    for (int64_t n = 0; n < q->n; n++) {
        int64_t t = time_of(q, q->first + n, step);
        float *y = (float *)q->ctx->out[0]->data + rnn_y_at(q->s, &q->d, t < 0 ? step : t, q->dir, q->first + n);
        if (t < 0) memset(y, 0, bytes);
        else memcpy(y, q->h + n * q->d.hidden, bytes);
    }
}

static void run_chunk(const struct task *q, int64_t from, int64_t to) {
    int64_t width = q->s->n_gates * q->d.hidden;
    for (int64_t step = from; step < to; step++)
        for (int64_t n = 0; n < q->n; n++) {
            int64_t t = time_of(q, q->first + n, step);
            float *row = q->x + ((step - from) * q->n + n) * q->d.in;
            if (t < 0) memset(row, 0, (size_t)q->d.in * sizeof *row);
            else memcpy(row, (const float *)q->ctx->in[RNN_X]->data + rnn_x_at(q->s, &q->d, t, q->first + n), (size_t)q->d.in * sizeof *row);
        }
    product(q, (to - from) * q->n, width, q->d.in, q->x, q->weights.w, q->bias, NULL, 0, q->wx, width);
    for (int64_t step = from; step < to; step++) {
        const float *wx = q->wx + (step - from) * q->n * width;
        if (q->s->kind == RNN_LSTM) lstm_step(q, step, wx);
        else if (q->s->kind == RNN_GRU) gru_step(q, step, wx);
        else plain_step(q, step, wx);
        write_step(q, step);
    }
}

/* Copies rows between a state tensor and a task's rows; a NULL tensor reads as zeros. */
static void move_state(const struct task *q, const struct op_tensor *t, float *rows, bool out) {
    for (int64_t n = 0; n < q->n; n++) {
        float *row = rows + n * q->d.hidden;
        float *state = t ? (float *)t->data + rnn_state_at(q->s, &q->d, q->dir, q->first + n) : NULL;
        size_t bytes = (size_t)q->d.hidden * sizeof *row;
        if (out && state) memcpy(state, row, bytes);
        else if (!out && state) memcpy(row, state, bytes);
        else if (!out) memset(row, 0, bytes);
    }
}

struct job {
    const struct op_ctx *ctx;
    struct rnn_dims d;
    struct plan plan;
    float *tasks, *bias[2];
    struct rnn_packed weights[2];
};

static void run_task(void *arg, int64_t i) {
    const struct job *job = arg;
    const struct op_ctx *ctx = job->ctx;
    const struct rnn *s = ctx->state;
    struct task q = {.ctx = ctx, .s = s, .d = job->d, .dir = (int)(i / job->plan.n_blocks)};
    int64_t rows = job->plan.chunk * job->plan.block, width = s->n_gates * job->d.hidden;
    q.first = i % job->plan.n_blocks * job->plan.block;
    q.n = job->d.batch - q.first < job->plan.block ? job->d.batch - q.first : job->plan.block;
    if (q.n <= 0) return;
    q.weights = job->weights[q.dir];
    q.bias = job->bias[q.dir];
    if (nn_in(ctx, RNN_B) && s->kind == RNN_GRU) q.bias_rh = (const float *)ctx->in[RNN_B]->data + q.dir * 2 * width + width + 2 * q.d.hidden;
    if (s->kind == RNN_LSTM && nn_in(ctx, RNN_P)) q.peephole = (const float *)ctx->in[RNN_P]->data + q.dir * 3 * q.d.hidden;
    q.x = job->tasks + (size_t)i * job->plan.task;
    q.wx = q.x + whole_lines((size_t)(rows * q.d.in));
    q.gates = q.wx + whole_lines((size_t)(rows * width));
    q.h = q.gates + whole_lines((size_t)(job->plan.block * width));
    q.c = q.h + whole_lines((size_t)(job->plan.block * q.d.hidden));
    q.spare = q.c + whole_lines((size_t)(job->plan.block * q.d.hidden));
    q.usual = s->kind == RNN_LSTM && usual_cell(&q);
    move_state(&q, nn_in(ctx, RNN_H0), q.h, false);
    move_state(&q, s->kind == RNN_LSTM ? nn_in(ctx, RNN_C0) : NULL, q.c, false);
    for (int64_t step = 0; step < q.d.steps; step += job->plan.chunk)
        run_chunk(&q, step, step + job->plan.chunk < q.d.steps ? step + job->plan.chunk : q.d.steps);
    if (nn_out(ctx, 1)) move_state(&q, ctx->out[1], q.h, true);
    if (nn_out(ctx, 2)) move_state(&q, ctx->out[2], q.c, true);
}

/* Both biases of a direction in one, but for a GRU's R bias of h where that goes in before the reset gate. */
static void join_bias(const struct op_ctx *ctx, const struct rnn_dims *d, int dir, float *dst) {
    const struct rnn *s = ctx->state;
    const struct op_tensor *b = nn_in(ctx, RNN_B);
    int64_t rows = s->n_gates * d->hidden, joined = s->kind == RNN_GRU && s->linear_before_reset ? 2 * d->hidden : rows;
    const float *wb = b ? (const float *)b->data + dir * 2 * rows : NULL;
    for (int64_t j = 0; j < rows; j++) dst[j] = !b ? 0 : j < joined ? wb[j] + wb[rows + j] : wb[j];
}

enum op_status op__rnn_f32_run(struct op_ctx *ctx) {
    const struct rnn *s = ctx->state;
    struct job job = {.ctx = ctx};
    op__rnn_dims(ctx, &job.d);
    if (!job.d.batch) return OP_OK;
    make_plan(ctx, &job.d, &job.plan);
    float *mem = ctx->scratch;
    int64_t rows = s->n_gates * job.d.hidden;
    for (int dir = 0; dir < s->n_dirs; dir++) {
        job.bias[dir] = mem;
        join_bias(ctx, &job.d, dir, mem);
        mem += job.plan.bias;
        job.weights[dir] = s->packed[dir];
        if (job.plan.packed) {
            op__rnn_pack(s, s->kern->gemm, job.d.in, job.d.hidden, (const float *)ctx->in[RNN_W]->data + dir * rows * job.d.in,
                         (const float *)ctx->in[RNN_R]->data + dir * rows * job.d.hidden, mem, &job.weights[dir]);
            mem += job.plan.packed;
        }
    }
    job.tasks = mem;
    op__parallel(ctx, s->n_dirs * job.plan.n_blocks, run_task, &job);
    return OP_OK;
}
