/* RNN, GRU and LSTM: every combination of options against the equations of the specification written down once more, in
 * double precision and without the engine's structure; the plain form (`reference`) and the fast one; and the promise that a sequence's
 * result in a batch is its result alone, bit for bit. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>

#include <cmocka.h>

#include "tests/unit/op_testing.h"

enum { RNN, GRU, LSTM };
static const char *const kinds[] = {"RNN", "GRU", "LSTM"};
static const int n_gates[] = {1, 3, 4};

static uint32_t seed = 1;
static float uniform(void) { /* [-1, 1) */
    seed = seed * 1664525u + 1013904223u;
    return (float)(int32_t)seed / 2147483648.0f;
}

struct form {
    int kind, dirs, reverse, layout, bias, lens, state, peephole, input_forget, before_reset, constant;
    float clip;
    int steps, batch, in, hidden;
};

/* All tensors of one case: x [T,N,I] in this order whatever the layout; the rest as the operator has it for layout 0. */
struct data {
    float *x, *w, *r, *b, *h0, *c0, *p, *y, *y_h, *y_c;
    int32_t *lens;
};

static float *numbers(size_t n, float by) {
    float *v = calloc(n ? n : 1, sizeof *v);
    if (!v) abort();
    for (size_t i = 0; i < n; i++) v[i] = uniform() * by;
    return v;
}

static void make(const struct form *f, struct data *d) {
    size_t gates = (size_t)(n_gates[f->kind] * f->hidden), dirs = (size_t)f->dirs, hidden = (size_t)f->hidden;
    size_t rows = (size_t)f->steps * (size_t)f->batch, state = dirs * (size_t)f->batch * hidden;
    *d = (struct data){.x = numbers(rows * (size_t)f->in, 1), .w = numbers(dirs * gates * (size_t)f->in, 0.6f)};
    d->r = numbers(dirs * gates * hidden, 1.2f / sqrtf((float)f->hidden)); /* contracting: rounding does not grow from step to step */
    d->b = numbers(dirs * 2 * gates, 0.5f);
    d->h0 = numbers(state, 1);
    d->c0 = numbers(state, 1);
    d->p = numbers(dirs * 3 * hidden, 0.7f);
    d->y = numbers(rows * dirs * hidden, 0);
    d->y_h = numbers(state, 0);
    d->y_c = numbers(state, 0);
    d->lens = calloc((size_t)f->batch + 1, sizeof *d->lens);
    for (int n = 0; n < f->batch; n++) d->lens[n] = f->lens ? (int32_t)((unsigned)(n * 7 + 3) % (unsigned)(f->steps + 1)) : f->steps;
}

static void drop(struct data *d) {
    free(d->x), free(d->w), free(d->r), free(d->b), free(d->h0), free(d->c0), free(d->p), free(d->y), free(d->y_h), free(d->y_c), free(d->lens);
}

/* --- the equations ----------------------------------------------------------------------------- */

static double cut(const struct form *f, double v) {
    double c = (double)f->clip;
    return c > 0 ? fmin(fmax(v, -c), c) : v;
}
static double sigmoid(double v) {
    return 1 / (1 + exp(-v));
}

/* W_g[j] x + Wb_g[j], and R_g[j] h + Rb_g[j] */
static double of_x(const struct form *f, const struct data *d, int dir, int g, int j, const float *x) {
    int row = (dir * n_gates[f->kind] + g) * f->hidden + j;
    double s = f->bias ? (double)d->b[(dir * 2 * n_gates[f->kind] + g) * f->hidden + j] : 0;
    for (int k = 0; k < f->in; k++) s += (double)d->w[row * f->in + k] * (double)x[k];
    return s;
}
static double of_h(const struct form *f, const struct data *d, int dir, int g, int j, const double *h) {
    int row = (dir * n_gates[f->kind] + g) * f->hidden + j;
    double s = f->bias ? (double)d->b[((dir * 2 + 1) * n_gates[f->kind] + g) * f->hidden + j] : 0;
    for (int k = 0; k < f->hidden; k++) s += (double)d->r[row * f->hidden + k] * h[k];
    return s;
}

static void cell(const struct form *f, const struct data *d, int dir, const float *x, double *h, double *c) {
    double next[64], reset[64];
    int n = f->hidden;
    for (int j = 0; j < n && f->kind == GRU; j++) reset[j] = h[j] * sigmoid(cut(f, of_x(f, d, dir, 1, j, x) + of_h(f, d, dir, 1, j, h)));
    for (int j = 0; j < n; j++) {
        const float *p = d->p + dir * 3 * n + j;
        double zero = 0, *peep = f->peephole ? &c[j] : &zero;
        if (f->kind == RNN) next[j] = tanh(cut(f, of_x(f, d, dir, 0, j, x) + of_h(f, d, dir, 0, j, h)));
        if (f->kind == GRU) {
            double z = sigmoid(cut(f, of_x(f, d, dir, 0, j, x) + of_h(f, d, dir, 0, j, h)));
            double r = sigmoid(cut(f, of_x(f, d, dir, 1, j, x) + of_h(f, d, dir, 1, j, h)));
            double rh = f->before_reset ? r * of_h(f, d, dir, 2, j, h) : of_h(f, d, dir, 2, j, reset);
            next[j] = (1 - z) * tanh(cut(f, of_x(f, d, dir, 2, j, x) + rh)) + z * h[j];
        }
        if (f->kind == LSTM) {
            double i = sigmoid(cut(f, of_x(f, d, dir, 0, j, x) + of_h(f, d, dir, 0, j, h) + (double)p[0] * *peep));
            double forget = sigmoid(cut(f, of_x(f, d, dir, 2, j, x) + of_h(f, d, dir, 2, j, h) + (double)p[2 * n] * *peep));
            if (f->input_forget) forget = 1 - i;
            c[j] = forget * c[j] + i * tanh(cut(f, of_x(f, d, dir, 3, j, x) + of_h(f, d, dir, 3, j, h)));
            double o = sigmoid(cut(f, of_x(f, d, dir, 1, j, x) + of_h(f, d, dir, 1, j, h) + (double)p[n] * *peep));
            next[j] = o * tanh(c[j]);
        }
    }
    memcpy(h, next, (size_t)n * sizeof *h);
}

static void expect(const struct form *f, struct data *d) {
    for (int dir = 0; dir < f->dirs; dir++)
        for (int n = 0; n < f->batch; n++) {
            double h[64] = {0}, c[64] = {0};
            int state = (dir * f->batch + n) * f->hidden;
            for (int j = 0; f->state && j < f->hidden; j++) {
                h[j] = (double)d->h0[state + j];
                c[j] = (double)d->c0[state + j];
            }
            for (int s = 0; s < d->lens[n]; s++) {
                int t = f->reverse || dir ? d->lens[n] - 1 - s : s;
                cell(f, d, dir, d->x + (t * f->batch + n) * f->in, h, c);
                for (int j = 0; j < f->hidden; j++) d->y[((t * f->dirs + dir) * f->batch + n) * f->hidden + j] = (float)h[j];
            }
            for (int j = 0; j < f->hidden; j++) {
                d->y_h[state + j] = (float)h[j];
                d->y_c[state + j] = (float)c[j];
            }
        }
}

/* --- the operator ------------------------------------------------------------------------------ */

/* src is [a, b, n] or [b, a, n] if turned; dst the other way round. */
static float *turn(const float *src, int a, int b, int n) {
    float *dst = numbers((size_t)a * (size_t)b * (size_t)n, 0);
    for (int i = 0; i < a; i++)
        for (int j = 0; j < b; j++) memcpy(dst + (j * a + i) * n, src + (i * b + j) * n, (size_t)n * sizeof *dst);
    return dst;
}

struct made {
    struct ot m;
    float *turned[3];
    struct op_tensor in[8];
    int n_in;
};

static void add(struct made *q, char *names, const char *name, bool constant, enum op_type dtype, int rank, const int64_t *dims, void *data) {
    strcat(strcat(names, name), " ");
    if (constant) {
        ot_constant(&q->m, name, dtype, rank, dims, data);
        return;
    }
    ot_input(&q->m, name, dtype, rank, dims);
    struct op_tensor t = {.dtype = dtype, .rank = rank, .data = data};
    memcpy(t.dims, dims, (size_t)rank * sizeof *dims);
    q->in[q->n_in++] = t;
}

static void build(const struct form *f, struct data *d, struct made *q) {
    int64_t gates = n_gates[f->kind] * f->hidden, dirs = f->dirs, hidden = f->hidden, batch = f->batch;
    char names[64] = "";
    *q = (struct made){0};
    ot_begin(&q->m, 14);
    float *x = d->x, *h0 = d->h0, *c0 = d->c0;
    if (f->layout) {
        x = q->turned[0] = turn(x, f->steps, f->batch, f->in);
        h0 = q->turned[1] = turn(h0, f->dirs, f->batch, f->hidden);
        c0 = q->turned[2] = turn(c0, f->dirs, f->batch, f->hidden);
    }
    const int64_t seq[3] = {f->layout ? batch : f->steps, f->layout ? f->steps : batch, f->in};
    const int64_t state[3] = {f->layout ? batch : dirs, f->layout ? dirs : batch, hidden};
    add(q, names, "x", false, OP_F32, 3, seq, x);
    add(q, names, "w", f->constant, OP_F32, 3, (int64_t[]){dirs, gates, f->in}, d->w);
    add(q, names, "r", f->constant, OP_F32, 3, (int64_t[]){dirs, gates, hidden}, d->r);
    if (f->bias) add(q, names, "b", f->constant, OP_F32, 2, (int64_t[]){dirs, 2 * gates}, d->b);
    else strcat(names, ". ");
    if (f->lens) add(q, names, "lens", false, OP_I32, 1, &batch, d->lens);
    else strcat(names, ". ");
    if (f->state) add(q, names, "h0", false, OP_F32, 3, state, h0);
    else strcat(names, ". ");
    if (f->kind == LSTM) {
        if (f->state) add(q, names, "c0", false, OP_F32, 3, state, c0);
        else strcat(names, ". ");
        if (f->peephole) add(q, names, "p", f->constant, OP_F32, 2, (int64_t[]){dirs, 3 * hidden}, d->p);
    }
    ot_node(&q->m, kinds[f->kind], names, f->kind == LSTM ? "y y_h y_c" : "y y_h");
    ot_int(&q->m, "hidden_size", hidden);
    ot_string(&q->m, "direction", f->dirs == 2 ? "bidirectional" : f->reverse ? "reverse" : "forward");
    ot_int(&q->m, "layout", f->layout);
    if (f->clip > 0) ot_float(&q->m, "clip", f->clip);
    if (f->kind == LSTM) ot_int(&q->m, "input_forget", f->input_forget);
    if (f->kind == GRU) ot_int(&q->m, "linear_before_reset", f->before_reset);
    ot_output(&q->m, "y", OP_F32, -1, NULL);
    ot_output(&q->m, "y_h", OP_F32, -1, NULL);
    if (f->kind == LSTM) ot_output(&q->m, "y_c", OP_F32, -1, NULL);
}

static void finish(struct made *q) {
    for (int i = 0; i < 3; i++) free(q->turned[i]);
    ot_end(&q->m);
}

static void near(const struct form *f, const char *what, const float *found, const float *expected, int n) {
    for (int i = 0; i < n; i++)
        if (!(fabsf(found[i] - expected[i]) <= 2e-5f))
            fail_msg("%s dirs %d reverse %d layout %d bias %d lens %d state %d peephole %d forget %d before %d clip %g: %s[%d] is %g, expected %g",
                     kinds[f->kind], f->dirs, f->reverse, f->layout, f->bias, f->lens, f->state, f->peephole, f->input_forget, f->before_reset,
                     (double)f->clip, what, i, (double)found[i], (double)expected[i]);
}

static void check_form(const struct form *f, bool reference) {
    struct data d;
    struct made q;
    struct op_error err;
    make(f, &d);
    expect(f, &d);
    build(f, &d, &q);
    const struct op_tensor *out = ot_run(&q.m, &(struct op_load_options){.reference = reference}, q.in, q.n_in, &err);
    if (!out) fail_msg("%s: %s", kinds[f->kind], err.text);
    int state = f->dirs * f->batch * f->hidden;
    float *y = d.y, *y_h = d.y_h, *y_c = d.y_c;
    if (f->layout) { /* [T,D,N,H] to [N,T,D,H] */
        y = turn(d.y, f->steps * f->dirs, f->batch, f->hidden);
        y_h = turn(d.y_h, f->dirs, f->batch, f->hidden);
        y_c = turn(d.y_c, f->dirs, f->batch, f->hidden);
    }
    near(f, "y", out[0].data, y, f->steps * state);
    near(f, "y_h", out[1].data, y_h, state);
    if (f->kind == LSTM) near(f, "y_c", out[2].data, y_c, state);
    if (f->layout) free(y), free(y_h), free(y_c);
    finish(&q);
    drop(&d);
}

static void every_combination(int kind) {
    for (int bits = 0; bits < 1 << 9; bits++) {
        struct form f = {.kind = kind, .dirs = 1 + (bits & 1), .reverse = bits >> 1 & 1, .layout = bits >> 2 & 1, .bias = bits >> 3 & 1};
        f.lens = bits >> 4 & 1;
        f.state = bits >> 5 & 1;
        f.clip = bits >> 6 & 1 ? 0.6f : 0;
        f.peephole = kind == LSTM && bits >> 7 & 1;
        f.input_forget = kind == LSTM && bits >> 8 & 1;
        f.before_reset = kind == GRU && bits >> 7 & 1;
        f.constant = !(bits >> 8 & 1);
        if ((f.dirs == 2 && f.reverse) || (kind == RNN && bits >> 7 & 1)) continue;
        f.steps = 1 + bits % 5;
        f.batch = 1 + bits % 4;
        f.in = 1 + bits % 9;
        f.hidden = 1 + bits % 19;
        check_form(&f, false);
        if (bits % 3 == 0) check_form(&f, true);
    }
}

static void test_rnn_every_combination(void **state) {
    (void)state;
    every_combination(RNN);
}
static void test_gru_every_combination(void **state) {
    (void)state;
    every_combination(GRU);
}
static void test_lstm_every_combination(void **state) {
    (void)state;
    every_combination(LSTM);
}

/* Longer than a chunk of steps, wider than a block of sequences. */
static void test_long_and_wide(void **state) {
    (void)state;
    for (int kind = RNN; kind <= LSTM; kind++) {
        check_form(&(struct form){.kind = kind, .dirs = 2, .bias = 1, .lens = 1, .constant = 1, .steps = 60, .batch = 41, .in = 5, .hidden = 17}, false);
        check_form(&(struct form){.kind = kind, .dirs = 1, .bias = 1, .constant = 1, .steps = 130, .batch = 1, .in = 33, .hidden = 64}, false);
    }
}

/* --- the same bits ----------------------------------------------------------------------------- */

static void alone_and_together(int kind, int threads) {
    struct form f = {.kind = kind, .dirs = 2, .bias = 1, .state = 1, .lens = 1, .peephole = kind == LSTM, .constant = 1};
    f.steps = 23, f.batch = 37, f.in = 11, f.hidden = 21;
    struct data d;
    struct made q, one;
    struct op_error err;
    make(&f, &d);
    build(&f, &d, &q);
    struct op_model *model = ot_load(&q.m, NULL, &err);
    assert_non_null(model);
    q.m.model = model;
    q.m.session = op_session_create(model, &(struct op_session_options){.n_threads = threads}, &err);
    const struct op_tensor *all = ot_run(&q.m, NULL, q.in, q.n_in, &err);
    if (!all) fail_msg("%s", err.text);
    for (int n = 0; n < f.batch; n++) {
        struct form g = f;
        struct data e = d;
        g.batch = 1;
        e.x = numbers((size_t)f.steps * (size_t)f.in, 0);
        e.h0 = numbers((size_t)(f.dirs * f.hidden), 0);
        e.c0 = numbers((size_t)(f.dirs * f.hidden), 0);
        e.lens = &d.lens[n];
        for (int t = 0; t < f.steps; t++) memcpy(e.x + t * f.in, d.x + (t * f.batch + n) * f.in, (size_t)f.in * sizeof *e.x);
        for (int dir = 0; dir < f.dirs; dir++) {
            memcpy(e.h0 + dir * f.hidden, d.h0 + (dir * f.batch + n) * f.hidden, (size_t)f.hidden * sizeof *e.h0);
            memcpy(e.c0 + dir * f.hidden, d.c0 + (dir * f.batch + n) * f.hidden, (size_t)f.hidden * sizeof *e.c0);
        }
        build(&g, &e, &one);
        const struct op_tensor *alone = ot_run(&one.m, NULL, one.in, one.n_in, &err);
        if (!alone) fail_msg("%s", err.text);
        for (int row = 0; row < f.steps * f.dirs; row++)
            assert_memory_equal((const float *)all[0].data + (row * f.batch + n) * f.hidden, (const float *)alone[0].data + row * f.hidden,
                                (size_t)f.hidden * sizeof(float));
        finish(&one);
        free(e.x), free(e.h0), free(e.c0);
    }
    finish(&q);
    drop(&d);
}

static void test_sequence_alone_has_the_bits_of_the_batch(void **state) {
    (void)state;
    for (int kind = RNN; kind <= LSTM; kind++) {
        alone_and_together(kind, 1);
        alone_and_together(kind, 3);
    }
}

/* --- activations, refusals --------------------------------------------------------------------- */

static void test_activations_with_parameters(void **state) {
    (void)state;
    const char *const names[] = {"HardSigmoid", "ScaledTanh", "LeakyRelu"};
    float x[] = {0.3f, -0.7f}, w[] = {0.5f, -0.4f, 0.9f, 0.7f}, r[4] = {0}, alpha[] = {0.3f, 1.5f, 0.1f}, beta[] = {0.4f, 0.8f};
    for (int reference = 0; reference < 2; reference++) {
        struct ot m;
        struct op_error err;
        ot_begin(&m, 14);
        ot_input(&m, "x", OP_F32, 3, (int64_t[]){2, 1, 1});
        ot_constant(&m, "w", OP_F32, 3, (int64_t[]){1, 4, 1}, w);
        ot_constant(&m, "r", OP_F32, 3, (int64_t[]){1, 4, 1}, r);
        ot_node(&m, "LSTM", "x w r", "y");
        ot_int(&m, "hidden_size", 1);
        ot_strings(&m, "activations", 3, names);
        ot_floats(&m, "activation_alpha", 3, alpha);
        ot_floats(&m, "activation_beta", 2, beta);
        ot_output(&m, "y", OP_F32, -1, NULL);
        struct op_tensor in = {.dtype = OP_F32, .rank = 3, .dims = {2, 1, 1}, .data = x};
        const struct op_tensor *out = ot_run(&m, &(struct op_load_options){.reference = reference}, &in, 1, &err);
        if (!out) fail_msg("%s", err.text);
        float c = 0;
        for (int t = 0; t < 2; t++) {
            float i = fminf(fmaxf(0.3f * w[0] * x[t] + 0.4f, 0), 1), o = fminf(fmaxf(0.3f * w[1] * x[t] + 0.4f, 0), 1);
            float f = fminf(fmaxf(0.3f * w[2] * x[t] + 0.4f, 0), 1);
            c = f * c + i * 1.5f * tanhf(0.8f * w[3] * x[t]);
            assert_float_equal(((const float *)out[0].data)[t], o * (c >= 0 ? c : 0.1f * c), 1e-6f);
        }
        ot_end(&m);
    }
}

static void test_refuses_lengths_beyond_the_sequence(void **state) {
    (void)state;
    for (int32_t bad = -1; bad < 10; bad += 10) {
        struct form f = {.kind = LSTM, .dirs = 1, .lens = 1, .steps = 4, .batch = 2, .in = 3, .hidden = 5};
        struct data d;
        struct made q;
        struct op_error err;
        make(&f, &d);
        d.lens[1] = bad;
        build(&f, &d, &q);
        assert_null(ot_run(&q.m, NULL, q.in, q.n_in, &err));
        assert_int_equal(err.code, OP_BAD_VALUE);
        assert_non_null(strstr(err.text, "sequence_lens[1]"));
        finish(&q);
        drop(&d);
    }
}

static void test_refuses_shapes_that_do_not_fit(void **state) {
    (void)state;
    struct form f = {.kind = GRU, .dirs = 1, .bias = 1, .steps = 4, .batch = 2, .in = 3, .hidden = 5};
    for (int i = 1; i < 4; i++) {
        struct data d;
        struct made q;
        struct op_error err;
        make(&f, &d);
        build(&f, &d, &q);
        q.in[i].dims[1]++; /* w, r, b */
        assert_null(ot_run(&q.m, NULL, q.in, q.n_in, &err));
        finish(&q);
        drop(&d);
    }
}

static void test_empty_batch_and_sequence(void **state) {
    (void)state;
    for (int kind = RNN; kind <= LSTM; kind++)
        for (int reference = 0; reference < 2; reference++) {
            check_form(&(struct form){.kind = kind, .dirs = 2, .bias = 1, .state = 1, .steps = 0, .batch = 3, .in = 2, .hidden = 4}, reference);
            check_form(&(struct form){.kind = kind, .dirs = 2, .bias = 1, .state = 1, .steps = 3, .batch = 0, .in = 2, .hidden = 4}, reference);
        }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rnn_every_combination),
        cmocka_unit_test(test_gru_every_combination),
        cmocka_unit_test(test_lstm_every_combination),
        cmocka_unit_test(test_long_and_wide),
        cmocka_unit_test(test_sequence_alone_has_the_bits_of_the_batch),
        cmocka_unit_test(test_activations_with_parameters),
        cmocka_unit_test(test_refuses_lengths_beyond_the_sequence),
        cmocka_unit_test(test_refuses_shapes_that_do_not_fit),
        cmocka_unit_test(test_empty_batch_and_sequence),
    };
    return cmocka_run_group_tests_name("op_rnn", tests, NULL, NULL);
}
