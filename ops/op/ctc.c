/* ctc.c: connectionist temporal classification (Graves et al. 2006) and its gradient.
 *
 *   CTC(z[N,T,C], labels[N,L], lengths[N]?)          → e[N]     e = −log p(labels | softmax(z))
 *   CTCGrad(z, labels, dy[N], lengths?)              → dz       dy · (softmax(z) − occupancy)
 *
 * Attribute blank (0): the class that stands for "nothing". A row's labels end at the first number that is negative or the blank; only
 * such numbers may follow. lengths: how many of the T steps of a row are there (all, if not given).
 *
 * Between, before and behind the labels stand blanks: S = 2·n + 1 states. alpha[t,s] is the logarithm of what all paths sum to that are
 * in state s at step t, beta[t,s] of what follows from there; a state is reached from itself, from the one before, and, where both are
 * labels that differ, from the one before that. All in double precision and in logarithms: 1,000 steps of probability 0.1 are 1e-1000.
 * A row is a task: its bits depend neither on the batch nor on threads. */
#include <inttypes.h>
#include <math.h>
#include <string.h>

#include "ops/grad.h"

struct ctc {
    const struct op_ctx *ctx;
    const float *z;
    const int64_t *labels, *lengths;
    int64_t n, t, c, l, blank, states; /* states: of the longest row */
    const float *dy;
    float *out; /* e, or dz */
    size_t scratch; /* doubles a row */
};

struct row {
    const float *z;
    const int64_t *labels;
    int64_t n_labels, t, c, blank, n; /* n: states */
    double *norm;                     /* of each step: log Σ exp z */
};

static enum op_status check(const struct op_ctx *ctx, bool backward) {
    const struct op_tensor *z = ctx->in[0], *l = ctx->in[1], *t = ctx->n_in > 2 + backward ? ctx->in[2 + backward] : NULL;
    char found[100];
    if (z->dtype != OP_F32 || z->rank != 3 || z->dims[2] < 2)
        return op__fail(ctx, OP_BAD_SHAPE, "the logits are %s: f32[N, steps, classes] with 2 classes and more is expected", op_tensor_describe(z, found, sizeof found));
    if (l->dtype != OP_I64 || l->rank != 2 || l->dims[0] != z->dims[0])
        return op__fail(ctx, OP_BAD_SHAPE, "the labels are %s: i64[%" PRId64 ", length] is expected", op_tensor_describe(l, found, sizeof found), z->dims[0]);
    if (t && (t->dtype != OP_I64 || t->rank != 1 || t->dims[0] != z->dims[0]))
        return op__fail(ctx, OP_BAD_SHAPE, "the lengths are %s: i64[%" PRId64 "] is expected", op_tensor_describe(t, found, sizeof found), z->dims[0]);
    int64_t blank = op__attr_int(ctx->node, "blank", 0), cells;
    if (blank < 0 || blank >= z->dims[2]) return op__fail(ctx, OP_BAD_VALUE, "the blank is class %" PRId64 ", there are 0 to %" PRId64, blank, z->dims[2] - 1);
    if (!op__mul(2 * l->dims[1] + 4, z->dims[1] + 4, &cells) || !op__mul(cells, z->dims[0] + 1, &cells) || cells > (int64_t)1 << 32)
        return op__fail(ctx, OP_LIMIT, "%" PRId64 " steps of %" PRId64 " labels are too many", z->dims[1], l->dims[1]);
    if (backward && (ctx->in[2]->dtype != OP_F32 || op_tensor_count(ctx->in[2]) != z->dims[0])) return op__fail(ctx, OP_BAD_SHAPE, "dy does not fit");
    return OP_OK;
}

static struct ctc open_ctc(const struct op_ctx *ctx, bool backward) {
    const struct op_tensor *z = ctx->in[0], *l = ctx->in[1];
    struct ctc m = {.ctx = ctx, .z = z->data, .labels = l->data, .n = z->dims[0], .t = z->dims[1], .c = z->dims[2], .l = l->dims[1]};
    const int at = 2 + backward;
    m.lengths = ctx->n_in > at && ctx->in[at] ? ctx->in[at]->data : NULL;
    m.blank = op__attr_int(ctx->node, "blank", 0);
    m.states = 2 * m.l + 1;
    m.dy = backward ? ctx->in[2]->data : NULL;
    m.out = ctx->out[0] ? ctx->out[0]->data : NULL;
    m.scratch = (size_t)(m.t + (backward ? m.t + 2 : 2) * m.states + m.c);
    return m;
}

static size_t forward_scratch(const struct op_ctx *ctx) {
    struct ctc m = open_ctc(ctx, false);
    return (size_t)m.n * m.scratch * sizeof(double);
}
static size_t backward_scratch(const struct op_ctx *ctx) {
    struct ctc m = open_ctc(ctx, true);
    return (size_t)m.n * m.scratch * sizeof(double);
}

static struct row row_of(const struct ctc *m, int64_t i) {
    struct row r = {.z = m->z + i * m->t * m->c, .labels = m->labels + i * m->l, .t = m->lengths ? m->lengths[i] : m->t, .c = m->c, .blank = m->blank};
    while (r.n_labels < m->l && r.labels[r.n_labels] >= 0 && r.labels[r.n_labels] != m->blank) r.n_labels++;
    r.n = 2 * r.n_labels + 1;
    r.norm = (double *)m->ctx->scratch + (size_t)i * m->scratch;
    return r;
}

/* Labels are classes, padding is behind them, and the steps are enough. */
static enum op_status check_rows(const struct ctc *m) {
    for (int64_t i = 0; i < m->n; i++) {
        struct row r = row_of(m, i);
        int64_t repeats = 0;
        if (r.t < 1 || r.t > m->t) return op__fail(m->ctx, OP_BAD_VALUE, "row %" PRId64 " has the length %" PRId64 ", 1 to %" PRId64 " are possible", i, r.t, m->t);
        for (int64_t k = 0; k < m->l; k++) {
            int64_t label = r.labels[k];
            bool padding = label < 0 || label == m->blank;
            if (k >= r.n_labels ? !padding : label >= m->c)
                return op__fail(m->ctx, OP_BAD_VALUE, "row %" PRId64 ", label %" PRId64 " is %" PRId64 ": classes below %" PRId64 ", then padding (negative, or the blank) are expected", i, k,
                                label, m->c);
            repeats += k > 0 && k < r.n_labels && label == r.labels[k - 1];
        }
        if (r.n_labels + repeats > r.t)
            return op__fail(m->ctx, OP_BAD_SHAPE, "row %" PRId64 " has %" PRId64 " labels, which need %" PRId64 " steps; there are %" PRId64, i, r.n_labels, r.n_labels + repeats, r.t);
    }
    return OP_OK;
}

static int64_t class_of(const struct row *r, int64_t s) {
    return s & 1 ? r->labels[s / 2] : r->blank;
}
/* Whether state s is reached from s − 2: a label, and another than the one before. */
static bool skips(const struct row *r, int64_t s) {
    return s >= 3 && (s & 1) && r->labels[s / 2] != r->labels[s / 2 - 1];
}
static double log_p(const struct row *r, int64_t t, int64_t s) {
    return (double)r->z[t * r->c + class_of(r, s)] - r->norm[t];
}
static double log_add(double a, double b) {
    if (a < b) {
        double c = a;
        a = b;
        b = c;
    }
    return b == -INFINITY ? a : a + log1p(exp(b - a));
}

static void norms(struct row *r) {
    for (int64_t t = 0; t < r->t; t++) {
        const float *z = r->z + t * r->c;
        double max = (double)z[0], sum = 0;
        for (int64_t k = 1; k < r->c; k++) max = (double)z[k] > max ? (double)z[k] : max;
        for (int64_t k = 0; k < r->c; k++) sum += exp((double)z[k] - max);
        // cppcheck-suppress invalidFunctionArg ; the largest adds 1
        r->norm[t] = max + log(sum);
    }
}

/* One step on: to from what was. */
static void advance(const struct row *r, int64_t t, const double *was, double *now) {
    for (int64_t s = 0; s < r->n; s++) {
        double a = was[s];
        if (s > 0) a = log_add(a, was[s - 1]);
        if (skips(r, s)) a = log_add(a, was[s - 2]);
        now[s] = a + log_p(r, t, s);
    }
}
static void first_step(const struct row *r, double *a) {
    for (int64_t s = 0; s < r->n; s++) a[s] = s < 2 ? log_p(r, 0, s) : -INFINITY;
}
static double ends(const struct row *r, const double *a) {
    return r->n > 1 ? log_add(a[r->n - 1], a[r->n - 2]) : a[0];
}

static void forward_row(void *arg, int64_t i) {
    const struct ctc *m = arg;
    struct row r = row_of(m, i);
    double *a = r.norm + m->t, *b = a + m->states;
    norms(&r);
    first_step(&r, a);
    for (int64_t t = 1; t < r.t; t++) {
        double *now = t & 1 ? b : a;
        advance(&r, t, t & 1 ? a : b, now);
    }
    m->out[i] = (float)-ends(&r, r.t & 1 ? a : b);
}

/* What follows state s at step t, from what follows at t + 1. */
static void retreat(const struct row *r, int64_t t, const double *next, double *now) {
    for (int64_t s = 0; s < r->n; s++) {
        double b = next[s] + log_p(r, t + 1, s);
        if (s + 1 < r->n) b = log_add(b, next[s + 1] + log_p(r, t + 1, s + 1));
        if (s + 2 < r->n && skips(r, s + 2)) b = log_add(b, next[s + 2] + log_p(r, t + 1, s + 2));
        now[s] = b;
    }
}

static void backward_row(void *arg, int64_t i) {
    const struct ctc *m = arg;
    struct row r = row_of(m, i);
    double *alpha = r.norm + m->t, *beta[2] = {alpha + m->t * m->states, alpha + (m->t + 1) * m->states}, *occupied = beta[1] + m->states;
    double dy = (double)m->dy[i];
    float *dz = m->out + i * m->t * m->c;
    norms(&r);
    first_step(&r, alpha);
    for (int64_t t = 1; t < r.t; t++) advance(&r, t, alpha + (t - 1) * m->states, alpha + t * m->states);
    double all = ends(&r, alpha + (r.t - 1) * m->states);
    for (int64_t s = 0; s < r.n; s++) beta[(r.t - 1) & 1][s] = s >= r.n - 2 ? 0 : -INFINITY;
    memset(dz, 0, (size_t)(m->t * m->c) * sizeof *dz);
    for (int64_t t = r.t - 1; t >= 0; t--) {
        if (t < r.t - 1) retreat(&r, t, beta[(t + 1) & 1], beta[t & 1]);
        memset(occupied, 0, (size_t)r.c * sizeof *occupied);
        for (int64_t s = 0; s < r.n; s++) occupied[class_of(&r, s)] += exp(alpha[t * m->states + s] + beta[t & 1][s] - all);
        for (int64_t k = 0; k < r.c; k++) dz[t * r.c + k] = (float)(dy * (exp((double)r.z[t * r.c + k] - r.norm[t]) - occupied[k]));
    }
}

static enum op_status ctc_infer(struct op_ctx *ctx) {
    enum op_status st = check(ctx, false);
    if (st == OP_OK) op__set(ctx, 0, OP_F32, 1, ctx->in[0]->dims);
    return st;
}
static enum op_status ctc_run(struct op_ctx *ctx) {
    struct ctc m = open_ctc(ctx, false);
    enum op_status st = check_rows(&m);
    if (st == OP_OK) op__parallel(ctx, m.n, forward_row, &m);
    return st;
}
static enum op_status ctc_grad(struct op_grad *g) {
    int out;
    struct op_node *n = op__emit(g, "quern", "CTCGrad", 4, (int[]){g->in[0], g->in[1], g->dy[0], g->n_in > 2 ? g->in[2] : -1}, 1, &out);
    if (n) op__attrs_copy(g, n);
    op__grad_set(g, 0, out);
    return OP_OK;
}
static enum op_status ctc_grad_infer(struct op_ctx *ctx) {
    enum op_status st = check(ctx, true);
    if (st == OP_OK) op__set_like(ctx, 0, 0);
    return st;
}
static enum op_status ctc_grad_run(struct op_ctx *ctx) {
    struct ctc m = open_ctc(ctx, true);
    enum op_status st = check_rows(&m);
    if (st == OP_OK) op__parallel(ctx, m.n, backward_row, &m);
    return st;
}

static const struct op_desc ctc_desc = {.name = "CTC", .domain = "quern", .since = 1, .in_min = 2, .in_max = 3, .out_min = 1, .out_max = 1,
                                        .infer = ctc_infer, .scratch = forward_scratch, .run = ctc_run, .grad = ctc_grad};
static const struct op_desc ctc_back = {.name = "CTCGrad", .domain = "quern", .since = 1, .in_min = 3, .in_max = 4, .out_min = 1, .out_max = 1,
                                        .infer = ctc_grad_infer, .scratch = backward_scratch, .run = ctc_grad_run};
OP_REGISTER(ctc_desc);
OP_REGISTER(ctc_back);
