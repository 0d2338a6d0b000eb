/* Winograd's convolution: its error beside that of the plain chain, against double precision; the exact cases. */
#include "ops/kern/kern.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { C = 64, OC = 18, H = 13, W = 22, SIZE = H * W };

static uint32_t seed = 31;
static float *values(size_t n, bool whole) { /* in [-1, 1), or small integers */
    float *x = malloc(n * sizeof *x);
    assert_non_null(x);
    for (size_t i = 0; i < n; i++) {
        seed = seed * 1664525u + 1013904223u;
        x[i] = whole ? (float)(int)(seed >> 8) / 8388608.0f * 4 - 4 : (float)(seed >> 8) * 0x1p-23f - 1.0f;
        if (whole) x[i] = rintf(x[i]);
    }
    return x;
}

static double exact(const float *x, const float *w, int o, int y, int z, float *chain) {
    double sum = 0;
    *chain = 0;
    for (int c = 0; c < C; c++)
        for (int i = 0; i < 3; i++)
            for (int j = 0; j < 3; j++) {
                const int r = y + i - 1, s = z + j - 1;
                if (r < 0 || r >= H || s < 0 || s >= W) continue;
                const float a = w[((o * C + c) * 3 + i) * 3 + j], b = x[(c * H + r) * W + s];
                sum += (double)a * (double)b;
                *chain = fmaf(a, b, *chain);
            }
    return sum;
}

static float *convolve(const struct k_kernels *k, int m, const float *x, const float *w) {
    const struct k_geometry g = {.channels = C, .in = {1, H, W}, .out = {1, H, W}, .kernel = {1, 3, 3}, .stride = {1, 1, 1}, .dilation = {1, 1, 1}, .begin = {0, 1, 1}};
    float *packed = malloc(k_pack_a_floats(k->gemm, OC, 9 * C) * sizeof *packed), *y = malloc(OC * SIZE * sizeof *y);
    const struct k_winograd_job job = {.g = &g, .m = m, .images = 1, .oc = OC, .x = x, .w = packed, .y = y};
    float *scratch = malloc(k_winograd_scratch_floats(k, &job) * sizeof *scratch);
    assert_true(packed && scratch && y);
    k_winograd_pack(k, OC, C, w, packed);
    for (int64_t b = k_winograd_blocks(k, &job) - 1; b >= 0; b--) k_winograd_run(k, &job, b, 1000, 0, OC, scratch);
    free(packed), free(scratch);
    return y;
}

static void test_error_is_a_small_multiple_of_the_chains(void **state) {
    (void)state;
    float *x = values(C * SIZE, false), *w = values(OC * C * 9, false);
    for (int m = 2; m <= 4; m += 2) {
        float *y = convolve(k_default(), m, x, w);
        double error = 0, error_chain = 0;
        for (int o = 0; o < OC; o++)
            for (int i = 0; i < SIZE; i++) {
                float chain;
                const double want = exact(x, w, o, i / W, i % W, &chain), a = y[o * SIZE + i] - want, b = (double)chain - want;
                error += a * a;
                error_chain += b * b;
            }
        const double ratio = sqrt(error / error_chain);
        print_message("F(%d, 3): %.2f times the chain's error\n", m, ratio);
        assert_true(ratio < (m == 2 ? 3 : 9));
        free(y);
    }
    free(x), free(w);
}

static void test_small_integers_are_exact_in_f2(void **state) { /* its factors are powers of two */
    (void)state;
    static const char *const levels[] = {"generic", "avx2", "avx512"};
    float *x = values(C * SIZE, true), *w = values(OC * C * 9, true);
    for (int l = 0; l < 3 && k_find(levels[l]); l++) {
        float *y = convolve(k_find(levels[l]), 2, x, w);
        for (int o = 0; o < OC; o++)
            for (int i = 0; i < SIZE; i++) {
                float chain;
                assert_true((double)y[o * SIZE + i] == exact(x, w, o, i / W, i % W, &chain));
            }
        free(y);
    }
    free(x), free(w);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_error_is_a_small_multiple_of_the_chains),
        cmocka_unit_test(test_small_integers_are_exact_in_f2),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
