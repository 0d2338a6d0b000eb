/* Products of bf16: against the formula of kern.h in double precision and bit by bit, on every level. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "ops/kern/kern.h"

static const char *const levels[] = {"generic", "avx2", "avx512", "vnni", "amx"};
enum { N_LEVELS = sizeof levels / sizeof *levels, VNNI = 3, AMX };

static uint32_t seed = 5;
static float draw(void) {
    seed = seed * 1664525u + 1013904223u;
    return (float)(int32_t)(seed >> 8 & 0xffff) / 32768.0f - 1.0f;
}

static float bits(uint32_t u) {
    float f;
    memcpy(&f, &u, sizeof f);
    return f;
}

static float bf16(float x) {
    uint32_t u;
    memcpy(&u, &x, sizeof u);
    return bits((u + 0x7fff + (u >> 16 & 1)) & 0xffff0000);
}

static float no_subnormal(float x) {
    return fabsf(x) < 0x1p-126f ? copysignf(0, x) : x;
}

struct subject {
    int64_t m, n, k;
    float *a, *b, *bias, *residual;
};

static float *values(int64_t n) {
    float *x = malloc((size_t)(n ? n : 1) * sizeof *x);
    assert_non_null(x);
    for (int64_t i = 0; i < n; i++) x[i] = draw();
    return x;
}

/* C with canaries behind each row, which has m x (n + 8). */
static float *multiply(const char *level, const struct subject *s, bool transposed, int64_t m0, int64_t m1) {
    const struct k_kernels *k = k_find(level);
    const struct k_kernels pairs = k_half_kernels(k);
    const int64_t depth = k_half_depth(s->k), c_row = s->n + 8;
    uint32_t *rows = malloc((size_t)(s->m * depth) * 4 + 4), *packed = malloc(k_half_pack_b_units(k, depth, s->n) * 4 + 4);
    float *c = malloc((size_t)(s->m * c_row) * sizeof *c);
    assert_true(rows && packed && c);
    for (int64_t i = 0; i < s->m * c_row; i++) c[i] = 7;
    k_half_rows(k, s->m, s->k, s->a, s->k, rows);
    if (transposed) {
        float *b = malloc((size_t)(s->k * s->n) * sizeof *b);
        assert_non_null(b);
        for (int64_t i = 0; i < s->k; i++)
            for (int64_t j = 0; j < s->n; j++) b[j * s->k + i] = s->b[i * s->n + j];
        k_half_pack_b(k, s->k, s->n, b, 1, s->k, packed);
        free(b);
    } else k_half_pack_b(k, s->k, s->n, s->b, s->n, 1, packed);
    const struct k_product p = {.m = s->m, .n = s->n, .k = depth, .a = (float *)rows, .a_row = depth, .a_k = 1, .b = (float *)packed, .b_packed = true, .c = c,
                                .c_row = c_row, .then = {.bias_col = s->bias, .residual = s->residual, .residual_row = s->n, .act = K_RELU}};
    k_gemm(&pairs, &p, m0, m1, 0, s->n);
    for (int64_t i = 0; i < s->m; i++)
        for (int64_t j = s->n; j < c_row; j++) assert_true(c[i * c_row + j] == 7);
    free(rows);
    free(packed);
    return c;
}

static float chain(const struct subject *s, int64_t i, int64_t j) {
    float c = 0;
    for (int64_t k = 0; k < s->k; k += 2) {
        if (k + 1 < s->k) c = no_subnormal(fmaf(bf16(s->a[i * s->k + k + 1]), bf16(s->b[(k + 1) * s->n + j]), c));
        c = no_subnormal(fmaf(bf16(s->a[i * s->k + k]), bf16(s->b[k * s->n + j]), c));
    }
    return c;
}

/* Whether this processor's instruction multiplies and adds one term after the other, the odd ones first, as Intel's do. Where it sums a pair
 * before it rounds, its bits are its own: 1 + 2^25 - 2^25 is 1 then, and 0 in a chain. */
static bool is_chain(const char *level) {
    static float a[4] = {1, 0, -32768, 32768}, b[4] = {1, 0, 1024, 1024};
    const struct subject s = {1, 1, 4, a, b, NULL, NULL};
    float *c = multiply(level, &s, false, 0, 1);
    const bool chained = c[0] == 0;
    free(c);
    return chained;
}

static double exact(const struct subject *s, int64_t i, int64_t j) {
    double c = 0;
    for (int64_t k = 0; k < s->k; k++) c += (double)bf16(s->a[i * s->k + k]) * (double)bf16(s->b[k * s->n + j]);
    return c;
}

static void test_products(void **state) {
    (void)state;
    static const int64_t shapes[][3] = {{1, 1, 1}, {1, 16, 2}, {3, 5, 31}, {6, 64, 32}, {7, 65, 33}, {16, 16, 64}, {17, 48, 96}, {32, 64, 32}, {33, 130, 100},
                                        {50, 31, 1100}, {64, 96, 2300}, {2, 200, 4000}};
    for (size_t q = 0; q < sizeof shapes / sizeof *shapes; q++) {
        const int64_t m = shapes[q][0], n = shapes[q][1], k = shapes[q][2];
        const struct subject s = {m, n, k, values(m * k), values(k * n), values(n), values(m * n)};
        for (int l = 0; l < N_LEVELS; l++) {
            if (!k_find(levels[l])) continue;
            float *c = multiply(levels[l], &s, q % 2, 0, m);
            for (int64_t i = 0; i < m; i++)
                for (int64_t j = 0; j < n; j++) {
                    const double then = (double)s.bias[j] + (double)s.residual[i * n + j], y = exact(&s, i, j) + then;
                    if (fabs((double)c[i * (n + 8) + j] - (y > 0 ? y : 0)) > 1e-5 * sqrt((double)k) + 1e-6)
                        fail_msg("%s, %lld x %lld x %lld, (%lld, %lld): %g, not %g", levels[l], (long long)m, (long long)n, (long long)k, (long long)i, (long long)j,
                                 (double)c[i * (n + 8) + j], y);
                    if (l == AMX || (l == VNNI && !is_chain(levels[l]))) continue;
                    float x = chain(&s, i, j) + s.bias[j];
                    x = x + s.residual[i * n + j];
                    assert_true(c[i * (n + 8) + j] == (x > 0 ? x : 0));
                }
            const struct k_kernels pairs = k_half_kernels(k_find(levels[l])); /* in two parts: the same bits */
            if (m > pairs.gemm->mr) {
                float *part = multiply(levels[l], &s, q % 2, pairs.gemm->mr, m);
                assert_memory_equal(part + pairs.gemm->mr * (n + 8), c + pairs.gemm->mr * (n + 8), (size_t)((m - pairs.gemm->mr) * (n + 8)) * sizeof *c);
                free(part);
            }
            free(c);
        }
        free(s.a), free(s.b), free(s.bias), free(s.residual);
    }
}

/* Numbers of all sizes, so that results underflow and overflow: the levels without the instruction do what it does. */
static void test_all_exponents_give_the_same_bits(void **state) {
    (void)state;
    enum { SIZE = 48 };
    struct subject s = {SIZE, SIZE, 64, values(SIZE * 64), values(64 * SIZE), NULL, NULL};
    for (int round = 0; round < 40; round++) {
        const uint32_t low = round % 4 == 0 ? 1 : round % 4 == 1 ? 55 : round % 4 == 2 ? 62 : 120, span = round % 4 == 0 ? 254 : 8;
        for (int64_t i = 0; i < SIZE * 64; i++) {
            for (int side = 0; side < 2; side++) {
                draw();
                (side ? s.b : s.a)[i] = bits((seed & 0x807f0000) | (low + (seed >> 8) % span) << 23);
            }
        }
        float *first = multiply("generic", &s, false, 0, SIZE);
        for (int l = 1; l < AMX; l++) {
            if (!k_find(levels[l]) || (l == VNNI && !is_chain(levels[l]))) continue;
            float *c = multiply(levels[l], &s, false, 0, SIZE);
            for (int64_t i = 0; i < SIZE * (SIZE + 8); i++)
                if (memcmp(&c[i], &first[i], sizeof *c) != 0 && !(isnan(c[i]) && isnan(first[i])))
                    fail_msg("%s, round %d, element %lld: %a, generic has %a", levels[l], round, (long long)i, (double)c[i], (double)first[i]);
            free(c);
        }
        free(first);
    }
    free(s.a), free(s.b);
}

static void test_conversion(void **state) {
    (void)state;
    enum { N = 4001 };
    float *x = malloc(N * sizeof *x);
    uint16_t *y = malloc((N + 1) * sizeof *y);
    const uint32_t special[] = {0, 0x80000000, 0x7f800000, 0xff800000, 0x7fc00000, 0x7f800001, 1, 0x80000001, 0x007fffff, 0x00800000, 0x7f7fffff, 0x3f808000, 0x3f818000, 0x3f808001};
    assert_true(x && y);
    for (int i = 0; i < N; i++) {
        draw();
        x[i] = bits(i < 14 ? special[i] : seed);
    }
    for (int l = 0; l < N_LEVELS; l++) {
        if (!k_find(levels[l])) continue;
        for (int n = 0; n < N; n += n < 70 ? 1 : 655) {
            y[n] = 0x1234;
            k_find(levels[l])->half->convert(n, x, y);
            assert_int_equal(y[n], 0x1234);
            for (int i = 0; i < n; i++) {
                const float back = bits((uint32_t)y[i] << 16);
                if (isnan(x[i])) assert_true(isnan(back));
                else assert_true(back == bf16(no_subnormal(x[i])) && signbit(back) == signbit(x[i]));
            }
        }
    }
    free(x);
    free(y);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_products),
        cmocka_unit_test(test_all_exponents_give_the_same_bits),
        cmocka_unit_test(test_conversion),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
