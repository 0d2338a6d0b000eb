/* The matrix product: every level against a chain of fmaf written out here, bit by bit, over ragged sizes, packed and plain
 * operands, every epilogue, divided work, and a canary around C. */
#include "ops/kern/kern.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { GUARD = 40 };
static const float canary = 4.125e19f;

static const struct k_kernels *level(int i) { /* NULL beyond what the machine has */
    static const char *const names[] = {
#define X(NAME, text) text,
        K_LEVEL_MAP(X)
#undef X
    };
    return i < K_N_LEVELS ? k_find(names[i]) : NULL;
}

static uint32_t seed = 99;
static float *values(int64_t n) {
    float *x = malloc((size_t)(n + 1) * sizeof *x);
    assert_non_null(x);
    for (int64_t i = 0; i < n; i++) {
        seed = seed * 1664525u + 1013904223u;
        x[i] = (float)(seed >> 8) * 0x1p-23f - 1.0f;
    }
    return x;
}

/* The specification: one chain over rising k, then the epilogue in its order. */
static float element(const struct k_kernels *k, const struct k_product *p, const float *a, const float *b, int64_t i, int64_t j) {
    float c = 0.0f;
    for (int64_t x = 0; x < p->k; x++) c = fmaf(a[i * p->k + x], b[x * p->n + j], c);
    if (p->then.bias_row) c += p->then.bias_row[i];
    if (p->then.bias_col) c += p->then.bias_col[j];
    if (p->then.residual) c += p->then.residual[i * p->then.residual_row + j];
    k->math->unary[p->then.act](1, &c, &c, p->then.act_a, p->then.act_b);
    return c;
}

static void check(const struct k_kernels *k, int64_t m, int64_t n, int64_t depth, int form, enum k_unary act) {
    float *a = values(m * depth), *b = values(depth * n), *bias_row = values(m), *bias_col = values(n), *residual = values(m * (n + 3));
    float *pa = values((int64_t)k_pack_a_floats(k->gemm, m, depth)), *pb = values((int64_t)k_pack_b_floats(k->gemm, depth, n));
    float *bt = values(depth * n), *c = malloc((size_t)(m * (n + 5) + 2 * GUARD) * sizeof *c);
    assert_non_null(c);
    for (int64_t i = 0; i < depth; i++)
        for (int64_t j = 0; j < n; j++) bt[j * depth + i] = b[i * n + j];
    k_pack_a(k->gemm, m, depth, a, depth, 1, pa);
    if (form & 4)
        k_pack_b(k->gemm, depth, n, bt, 1, depth, pb); /* from a transposed B */
    else
        k_pack_b(k->gemm, depth, n, b, n, 1, pb);
    const struct k_product p = {.m = m, .n = n, .k = depth, .a = form & 1 ? pa : a, .a_packed = form & 1, .a_row = depth, .a_k = 1,
                                .b = form & 2 ? pb : b, .b_packed = form & 2, .b_k = n, .c = c + GUARD, .c_row = n + 5,
                                .then = {.bias_row = form & 8 ? bias_row : NULL, .bias_col = form & 16 ? bias_col : NULL,
                                         .residual = form & 32 ? residual : NULL, .residual_row = n + 3, .act = act, .act_a = -0.25f, .act_b = 0.75f}};
    for (int64_t i = 0; i < m * (n + 5) + 2 * GUARD; i++) c[i] = canary;
    const int64_t half_m = m / 2 / k->gemm->mr * k->gemm->mr, half_n = n / 2 / k->gemm->nr * k->gemm->nr;
    if (form & 64) { /* in four parts, the last first */
        k_gemm(k, &p, half_m, m, half_n, n);
        k_gemm(k, &p, 0, half_m, half_n, n);
        k_gemm(k, &p, half_m, m, 0, half_n);
        k_gemm(k, &p, 0, half_m, 0, half_n);
    } else {
        k_gemm(k, &p, 0, m, 0, n);
    }
    for (int64_t i = 0; i < m; i++)
        for (int64_t j = 0; j < n + 5; j++) {
            const float got = c[GUARD + i * (n + 5) + j], want = j < n ? element(k, &p, a, b, i, j) : canary;
            if (memcmp(&got, &want, sizeof got) != 0)
                fail_msg("%s m %ld n %ld k %ld form %d act %d: (%ld, %ld) is %a, expected %a", k->name, (long)m, (long)n, (long)depth, form, (int)act,
                         (long)i, (long)j, (double)got, (double)want);
        }
    for (int i = 0; i < GUARD; i++) assert_true(c[i] == canary && c[GUARD + m * (n + 5) + i] == canary);
    free(a), free(b), free(bias_row), free(bias_col), free(residual), free(pa), free(pb), free(bt), free(c);
}

static void test_every_width_and_height(void **state) {
    (void)state;
    for (int l = 0; level(l); l++)
        for (int m = 1; m <= 13; m++)
            for (int n = 1; n <= 70; n += m % 3 + 1) check(level(l), m, n, 5, m + n, K_COPY);
}

static void test_forms_and_epilogues(void **state) {
    (void)state;
    static const enum k_unary acts[] = {K_COPY, K_RELU, K_CLIP, K_SILU, K_LEAKY_RELU, K_HARD_SWISH};
    for (int l = 0; level(l); l++)
        for (int form = 0; form < 128; form++) check(level(l), 20, 150, 17, form, acts[form % 6]);
}

static void test_blocks_of_k_continue_the_chain(void **state) {
    (void)state;
    static const int depths[] = {0, 1, 511, 512, 513, 1500};
    for (int l = 0; level(l); l++)
        for (int d = 0; d < 6; d++)
            for (int form = 0; form < 4; form++) check(level(l), 7, 67, depths[d], form + 8 + 32, K_RELU);
}

static void test_a_row_is_the_same_alone_and_in_company(void **state) {
    (void)state;
    enum { M = 17, N = 131, K = 600 };
    for (int l = 0; level(l); l++) {
        const struct k_kernels *k = level(l);
        float *a = values(M * K), *b = values(K * N), *pb = values((int64_t)k_pack_b_floats(k->gemm, K, N)), *all = values(M * N), *one = values(N);
        k_pack_b(k->gemm, K, N, b, N, 1, pb);
        struct k_product p = {.m = M, .n = N, .k = K, .a = a, .a_row = K, .a_k = 1, .b = pb, .b_packed = true, .c = all, .c_row = N, .then.act = K_GELU};
        k_gemm(k, &p, 0, M, 0, N);
        for (int i = 0; i < M; i++) {
            p.m = 1, p.a = a + i * K, p.c = one;
            k_gemm(k, &p, 0, 1, 0, N);
            assert_memory_equal(one, all + i * N, N * sizeof *one);
        }
        free(a), free(b), free(pb), free(all), free(one);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_width_and_height),
        cmocka_unit_test(test_forms_and_epilogues),
        cmocka_unit_test(test_blocks_of_k_continue_the_chain),
        cmocka_unit_test(test_a_row_is_the_same_alone_and_in_company),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
