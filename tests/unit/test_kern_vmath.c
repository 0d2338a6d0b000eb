/* Vector maths: every function of every level against double precision (the ULP bounds that kern.h states), every level
 * against plain C bit by bit at many lengths and offsets, with canaries around the destination. */
#include "ops/kern/kern.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { N_MAX = 300, GUARD = 32 };
static const float canary = -7.654e21f;

static const struct k_kernels *level(int i) { /* NULL beyond what the machine has */
    static const char *const names[] = {
#define X(NAME, text) text,
        K_LEVEL_MAP(X)
#undef X
    };
    return i < K_N_LEVELS ? k_find(names[i]) : NULL;
}

static const int ulp_bound[K_N_UNARY] = {
#define X(NAME, ulp, text) ulp,
    K_UNARY_MAP(X)
#undef X
};

static uint32_t seed = 12345;
static float uniform(float lo, float hi) {
    seed = seed * 1664525u + 1013904223u;
    return lo + (hi - lo) * (float)(seed >> 8) * 0x1p-24f;
}

static double exact(enum k_unary f, double x, double a, double b) {
    if (isnan(x)) return NAN;
    switch (f) {
    case K_EXP: return exp(x);
    case K_LOG: return log(x);
    case K_TANH: return tanh(x);
    case K_SIGMOID: return 1 / (1 + exp(-x));
    case K_ERF: return erf(x);
    case K_GELU: return x * erfc(-x * M_SQRT1_2) / 2;
    case K_GELU_TANH: return x / (1 + exp(-2 * sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
    case K_SILU: return x / (1 + exp(-x));
    case K_SOFTPLUS: return x > 30 ? x : log1p(exp(x));
    case K_MISH: return x * tanh(x > 30 ? x : log1p(exp(x)));
    case K_ELU: return x < 0 ? a * expm1(x) : x;
    case K_RELU: return x < 0 ? 0 : x;
    case K_CLIP: return fmin(fmax(x, a), b);
    case K_LEAKY_RELU: return x < 0 ? a * x : x;
    case K_HARD_SIGMOID: return fmin(fmax(a * x + b, 0), 1);
    case K_HARD_SWISH: return x * fmin(fmax(x / 6 + 0.5, 0), 1);
    case K_SQRT: return sqrt(x);
    case K_RECIPROCAL: return 1 / x;
    case K_NEG: return -x;
    case K_ABS: return fabs(x);
    case K_SQUARE: return x * x;
    case K_LINEAR: return a * x + b;
    case K_COPY: return x;
    default: return NAN;
    }
}

static double absolute_bound(enum k_unary f, double x, double a) { /* 0: the relative bound counts */
    switch (f) {
    case K_SILU: return 0x1.4p-22 * fabs(exact(f, x, 0, 0)) + 1e-36;
    case K_GELU: return 0x1p-22 * fabs(x) + 1e-37;
    case K_GELU_TANH: return 0x1p-21 * fabs(x) + 1e-37;
    case K_SOFTPLUS: return 0x1p-22 * fmax(1, fabs(x));
    case K_MISH: return 0x1p-21 * fmax(1, fabs(x));
    case K_ELU: return x < 0 ? 0x1p-23 * fabs(a) : 0;
    case K_HARD_SWISH: return 0x1p-22 * fmax(1, fabs(x));
    case K_HARD_SIGMOID:
    case K_LINEAR: return 0x1p-24 * (fabs(a * x) + 1);
    default: return 0;
    }
}

/* The distance in units of the last place of the float nearest to `want`. */
static double ulps(float got, double want) {
    if (isnan(want)) return isnan(got) ? 0 : INFINITY;
    const float nearest = (float)want;
    if (isinf(nearest) || isinf(got)) return got == nearest || (isinf(nearest) && fabsf(got) > 3.4028e38f) || (isinf(got) && fabsf(nearest) > 3.4028e38f) ? 0 : INFINITY;
    int e;
    frexp(want, &e);
    return fabs((double)got - want) / ldexp(1, (e < -125 ? -125 : e) - 24);
}

static void check_accuracy(const struct k_kernels *k, enum k_unary f, const float *x, int64_t n, float *y) {
    const float a = 0.15f, b = 0.45f;
    k->math->unary[f](n, x, y, a, b);
    for (int64_t i = 0; i < n; i++) {
        const double want = exact(f, x[i], a, b), bound = absolute_bound(f, x[i], a);
        if (isfinite(want) && bound > 0 ? fabs(y[i] - want) <= bound : ulps(y[i], want) <= (ulp_bound[f] ? ulp_bound[f] : 0.5001)) continue;
        if (!isfinite(x[i]) && isnan(y[i]) && bound > 0) continue; /* a product of 0 and infinity */
        fail_msg("%s: unary %d of %a is %a, expected %a (%g ulp)", k->name, (int)f, (double)x[i], (double)y[i], want, ulps(y[i], want));
    }
}

static void test_unary_accuracy(void **state) {
    (void)state;
    enum { N = 4096 };
    float *x = malloc(N * sizeof *x), *y = malloc(N * sizeof *y);
    assert_non_null(x);
    assert_non_null(y);
    for (int l = 0; level(l); l++)
        for (int f = 0; f < K_N_UNARY; f++)
            for (uint64_t bits = 0; bits < 1ull << 32; bits += (uint64_t)N * (l == K_GENERIC ? 20011 : 3001)) { /* all exponents, both signs */
                for (int i = 0; i < N; i++) {
                    const uint32_t u = (uint32_t)(bits + (uint64_t)i * (l == K_GENERIC ? 20011 : 3001));
                    memcpy(&x[i], &u, sizeof u);
                    if (i % 4 == 3) x[i] = uniform(-20, 20);
                    if (isnan(x[i])) x[i] = NAN;
                }
                check_accuracy(level(l), (enum k_unary)f, x, N, y);
            }
    free(x);
    free(y);
}

static void test_unary_special_values(void **state) {
    (void)state;
    for (int l = 0; level(l); l++) {
        const struct k_vmath *m = level(l)->math;
        const float in[] = {NAN, INFINITY, -INFINITY, 0.0f, -0.0f};
        float out[5];
        for (int f = 0; f < K_N_UNARY; f++) {
            m->unary[f](5, in, out, 0.5f, 2.0f);
            assert_true(isnan(out[0]));
        }
        m->unary[K_EXP](5, in, out, 0, 0);
        assert_true(out[1] == INFINITY && out[2] == 0 && out[3] == 1);
        m->unary[K_LOG](5, in, out, 0, 0);
        assert_true(out[1] == INFINITY && isnan(out[2]) && out[3] == -INFINITY);
        m->unary[K_TANH](5, in, out, 0, 0);
        assert_true(out[1] == 1 && out[2] == -1 && out[3] == 0 && signbit(out[4]));
        m->unary[K_SIGMOID](5, in, out, 0, 0);
        assert_true(out[1] == 1 && out[2] == 0 && out[3] == 0.5f);
        m->unary[K_ERF](5, in, out, 0, 0);
        assert_true(out[1] == 1 && out[2] == -1);
    }
}

static void fill(float *x, int n, float lo, float hi) {
    for (int i = 0; i < n; i++) x[i] = uniform(lo, hi);
}

static void set_canaries(float *x, int n) {
    for (int i = 0; i < n; i++) x[i] = canary;
}

static void check_canaries(const float *buf, int offset, int n) {
    for (int i = 0; i < N_MAX + 2 * GUARD; i++)
        if (i < offset || i >= offset + n) assert_true(buf[i] == canary);
}

static void assert_same(const float *x, const float *y, int n, const char *what, const char *isa) {
    if (memcmp(x, y, (size_t)n * sizeof *x) != 0) fail_msg("%s differs from plain C on %s at n = %d", what, isa, n);
}

static void test_levels_agree_in_every_bit(void **state) {
    (void)state;
    static float x[N_MAX + GUARD], y[N_MAX + GUARD], want[N_MAX + 2 * GUARD], got[N_MAX + 2 * GUARD];
    const struct k_vmath *plain = k_find("generic")->math;
    for (int l = 1; level(l); l++) {
        const struct k_vmath *m = level(l)->math;
        const char *isa = level(l)->name;
        for (int n = 0; n < N_MAX; n = n < 70 ? n + 1 : n + 37) {
            const int offset = GUARD + n % 5;
            fill(x, N_MAX, -9, 9);
            fill(y, N_MAX, -3, 3);
            for (int f = 0; f < K_N_UNARY; f++) {
                set_canaries(got, N_MAX + 2 * GUARD);
                plain->unary[f](n, x + n % 3, want, 0.3f, 1.7f);
                m->unary[f](n, x + n % 3, got + offset, 0.3f, 1.7f);
                assert_same(want, got + offset, n, "a unary function", isa);
                check_canaries(got, offset, n);
                memcpy(got, x + n % 3, (size_t)n * sizeof *x);
                m->unary[f](n, got, got, 0.3f, 1.7f); /* in place */
                assert_same(want, got, n, "a unary function in place", isa);
            }
            for (int f = 0; f < K_N_BINARY; f++)
                for (int scalars = 0; scalars < 4; scalars++) {
                    set_canaries(got, N_MAX + 2 * GUARD);
                    plain->binary[f](n, x, scalars & 1, y, scalars & 2, want);
                    m->binary[f](n, x, scalars & 1, y, scalars & 2, got + offset);
                    assert_same(want, got + offset, n, "a binary function", isa);
                    check_canaries(got, offset, n);
                }
            const float a[] = {plain->sum(n, x), plain->dot(n, x, y), plain->sum_square(n, x, 0.7f), plain->max(n, x), plain->min(n, x)};
            const float b[] = {m->sum(n, x), m->dot(n, x, y), m->sum_square(n, x, 0.7f), m->max(n, x), m->min(n, x)};
            assert_same(a, b, 5, "a reduction", isa);
            set_canaries(got, N_MAX + 2 * GUARD);
            plain->softmax(n, x, want);
            m->softmax(n, x, got + offset);
            assert_same(want, got + offset, n, "softmax", isa);
            plain->log_softmax(n, x, want);
            m->log_softmax(n, x, got + offset);
            assert_same(want, got + offset, n, "log_softmax", isa);
            plain->layer_norm(n, x, y, x, 1e-5f, want, NULL, NULL);
            m->layer_norm(n, x, y, x, 1e-5f, got + offset, NULL, NULL);
            assert_same(want, got + offset, n, "layer_norm", isa);
            plain->rms_norm(n, x, y, 1e-5f, want);
            m->rms_norm(n, x, y, 1e-5f, got + offset);
            assert_same(want, got + offset, n, "rms_norm", isa);
            check_canaries(got, offset, n);
            memcpy(want, y, (size_t)n * sizeof *y);
            memcpy(got + offset, y, (size_t)n * sizeof *y);
            float h[2][N_MAX];
            plain->lstm_cell(n / 4, x, want, h[0]);
            m->lstm_cell(n / 4, x, got + offset, h[1]);
            assert_same(want, got + offset, n, "lstm_cell's c", isa);
            assert_same(h[0], h[1], n / 4, "lstm_cell's h", isa);
            for (int max = 0; max < 2 && n > 8; max++) { /* three pixels of n / 4 channels, two taps each */
                const int64_t taps[] = {n / 8, 0}, step = n / 4;
                set_canaries(got, N_MAX + 2 * GUARD);
                plain->pool(3, step, 2, taps, x, step, max, want);
                m->pool(3, step, 2, taps, x, step, max, got + offset);
                assert_same(want, got + offset, (int)(3 * step), "pool", isa);
                check_canaries(got, offset, (int)(3 * step));
                for (int64_t i = 0; i < 3 * step; i++) {
                    const float first = x[i + taps[0]], second = x[i];
                    if (first == first && second == second) assert_true(want[i] == (max ? (first > second ? first : second) : first + second));
                }
            }
            for (int masked = 0; masked < 2; masked++) {
                memcpy(want, x, (size_t)n * sizeof *x);
                memcpy(got + offset, x, (size_t)n * sizeof *x);
                const float top[] = {plain->scale_max(n, 0.7f, masked ? y : NULL, want), m->scale_max(n, 0.7f, masked ? y : NULL, got + offset)};
                assert_same(&top[0], &top[1], 1, "scale_max", isa);
                const float total[] = {plain->exp_sum(n, top[0], want), m->exp_sum(n, top[0], got + offset)};
                assert_same(&total[0], &total[1], 1, "exp_sum", isa);
                assert_same(want, got + offset, n, "exp_sum", isa);
                check_canaries(got, offset, n);
            }
            memcpy(want, y, (size_t)n * sizeof *y);
            memcpy(got + offset, y, (size_t)n * sizeof *y);
            plain->axpy(n, 0.37f, x, want);
            m->axpy(n, 0.37f, x, got + offset);
            plain->fma(n, x, y, want);
            m->fma(n, x, y, got + offset);
            assert_same(want, got + offset, n, "axpy and fma", isa);
            check_canaries(got, offset, n);
        }
    }
}

static void test_rows_against_double(void **state) {
    (void)state;
    static float x[N_MAX], scale[N_MAX], bias[N_MAX], y[N_MAX];
    const struct k_vmath *m = k_default()->math;
    for (int n = 1; n < N_MAX; n += 13) {
        fill(x, n, -5, 5);
        fill(scale, n, 0.5, 1.5);
        fill(bias, n, -1, 1);
        double total = 0, mean = 0, var = 0, square = 0, biggest = -INFINITY;
        for (int i = 0; i < n; i++) biggest = fmax(biggest, x[i]), mean += x[i], square += (double)x[i] * x[i];
        mean /= n;
        for (int i = 0; i < n; i++) total += exp(x[i] - biggest), var += (x[i] - mean) * (x[i] - mean);
        m->softmax(n, x, y);
        for (int i = 0; i < n; i++) assert_true(fabs(y[i] - exp(x[i] - biggest) / total) < 1e-6);
        memcpy(y, x, (size_t)n * sizeof *x);
        const float top = m->scale_max(n, 2, bias, y);
        double doubled = 0, most = -INFINITY;
        for (int i = 0; i < n; i++) most = fmax(most, 2 * (double)x[i] + bias[i]);
        for (int i = 0; i < n; i++) doubled += exp(2 * (double)x[i] + bias[i] - most);
        assert_true(fabs(top - most) < 1e-5 && fabs(m->exp_sum(n, top, y) - doubled) < 2e-5 * doubled);
        for (int i = 0; i < n; i++) assert_true(fabs(y[i] - exp(2 * (double)x[i] + bias[i] - most)) < 1e-5);
        m->log_softmax(n, x, y);
        for (int i = 0; i < n; i++) assert_true(fabs(y[i] - (x[i] - biggest - log(total))) < 4e-6);
        m->layer_norm(n, x, scale, bias, 1e-3f, y, NULL, NULL);
        for (int i = 0; i < n; i++) assert_true(fabs(y[i] - ((x[i] - mean) / sqrt(var / n + 1e-3) * scale[i] + bias[i])) < 1e-5);
        m->rms_norm(n, x, scale, 1e-3f, y);
        for (int i = 0; i < n; i++) assert_true(fabs(y[i] - x[i] / sqrt(square / n + 1e-3) * scale[i]) < 1e-5);
    }
}

static void test_lstm_cell_against_double(void **state) {
    (void)state;
    enum { CELLS = 97 };
    static float gates[4 * CELLS], c[CELLS], before[CELLS], h[CELLS];
    for (int round = 0; round < 40; round++) {
        const double reach = round % 4 == 3 ? 120 : round % 4 == 2 ? 10 : 1;
        fill(gates, 4 * CELLS, -reach, reach);
        fill(c, CELLS, -3, 3);
        memcpy(before, c, sizeof c);
        k_default()->math->lstm_cell(CELLS, gates, c, h);
        for (int j = 0; j < CELLS; j++) {
            double s[3];
            for (int k = 0; k < 3; k++) s[k] = 1 / (1 + exp(-(double)gates[k * CELLS + j]));
            const double left = s[2] * (double)before[j], right = s[0] * tanh((double)gates[3 * CELLS + j]), cell = left + right;
            assert_true(fabs((double)c[j] - cell) <= 0x1p-21 * fmax(fabs(left), fabs(right)) + 1e-36);
            assert_true(fabs((double)h[j] - s[1] * tanh((double)c[j])) <= 0x1p-21 * fabs(s[1] * tanh((double)c[j])) + 1e-36);
        }
    }
}

static void test_max_and_min_keep_nan(void **state) {
    (void)state;
    for (int l = 0; level(l); l++) {
        const struct k_vmath *m = level(l)->math;
        float x[150];
        for (int at = 0; at < 150; at += 7) {
            fill(x, 150, -5, 5);
            x[at] = NAN;
            assert_true(isnan(m->max(150, x)) && isnan(m->min(150, x)));
            float zero = 0, y[150];
            m->binary[K_MAX](150, x, false, &zero, true, y);
            assert_true(isnan(y[at]));
            m->binary[K_MIN](150, &zero, true, x, false, y);
            assert_true(isnan(y[at]));
        }
        assert_true(m->max(0, x) == -INFINITY && m->min(0, x) == INFINITY && m->sum(0, x) == 0);
    }
}

/* The updates of weights are single rounded operations: the formulas of kern.h give every bit, at every length. */
static void test_updates_are_their_formulas(void **state) {
    enum { N = 83 };
    (void)state;
    for (int l = 0; l < K_N_LEVELS; l++) {
        const struct k_kernels *k = level(l);
        for (int n = 0; k && n <= N; n += n < 20 ? 1 : 7) {
            float g[N + 1], w[N + 1], m[N + 1], v[N + 1], sw[N + 1], sm[N + 1], aw[N + 1], am[N + 1], av[N + 1];
            fill(g, N + 1, -2, 2);
            fill(w, N + 1, -1, 1);
            fill(m, N + 1, -1, 1);
            fill(v, N + 1, 0, 1);
            const bool nesterov = n & 1;
            memcpy(sw, w, sizeof w), memcpy(sm, m, sizeof m), memcpy(aw, w, sizeof w), memcpy(am, m, sizeof m), memcpy(av, v, sizeof v);
            k->math->sgd(n, 0.1f, 0.9f, nesterov, g, sm, sw);
            k->math->adam(n, 0.01f, 0.1f, 0.001f, 1e-7f, g, am, av, aw);
            for (int i = 0; i <= N; i++) {
                const bool in = i < n;
                float step = 0.1f * g[i], d = 0.9f * m[i] - step;
                assert_true(sm[i] == (in ? d : m[i]));
                if (nesterov) d = 0.9f * d - step;
                assert_true(sw[i] == (in ? w[i] + d : w[i]));
                float new_m = m[i] + (g[i] - m[i]) * 0.1f, new_v = v[i] + (g[i] * g[i] - v[i]) * 0.001f;
                assert_true(am[i] == (in ? new_m : m[i]) && av[i] == (in ? new_v : v[i]));
                assert_true(aw[i] == (in ? w[i] - new_m * 0.01f / (sqrtf(new_v) + 1e-7f) : w[i]));
            }
            memcpy(sw, w, sizeof w);
            k->math->sgd(n, 0.1f, 0, false, g, NULL, sw);
            for (int i = 0; i <= N; i++) assert_true(sw[i] == (i < n ? w[i] - 0.1f * g[i] : w[i]));
        }
    }
}

static void test_unknown_level_is_refused(void **state) {
    (void)state;
    assert_null(k_find(NULL));
    assert_null(k_find("sse9"));
    assert_non_null(k_find("generic"));
    assert_non_null(k_default());
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_unknown_level_is_refused), cmocka_unit_test(test_unary_accuracy),
        cmocka_unit_test(test_unary_special_values),     cmocka_unit_test(test_levels_agree_in_every_bit),
        cmocka_unit_test(test_rows_against_double),      cmocka_unit_test(test_lstm_cell_against_double), cmocka_unit_test(test_max_and_min_keep_nan),
        cmocka_unit_test(test_updates_are_their_formulas),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
