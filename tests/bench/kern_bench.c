/* kern_bench: GFLOP/s of the matrix product on one thread.
 *   kern_bench [LEVEL [M N K]]    best of 7; with no sizes, a list of those that networks have. */
#include "ops/kern/kern.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static float *values(size_t n) {
    float *x = aligned_alloc(64, (n * sizeof *x + 63) / 64 * 64);
    if (!x) abort();
    for (size_t i = 0; i < n; i++) x[i] = (float)(int)(i * 2654435761u % 2048) / 1024.0f - 1.0f;
    return x;
}

static void bench(const struct k_kernels *kern, int64_t m, int64_t n, int64_t k, bool pack_a, bool pack_b) {
    float *a = values((size_t)(m * k)), *b = values((size_t)(n * k)), *c = values((size_t)(m * n));
    float *pa = values(k_pack_a_floats(kern->gemm, m, k)), *pb = values(k_pack_b_floats(kern->gemm, k, n));
    k_pack_a(kern->gemm, m, k, a, k, 1, pa);
    k_pack_b(kern->gemm, k, n, b, n, 1, pb);
    const struct k_product p = {.m = m, .n = n, .k = k, .a = pack_a ? pa : a, .a_packed = pack_a, .a_row = k, .a_k = 1,
                                .b = pack_b ? pb : b, .b_packed = pack_b, .b_k = n, .c = c, .c_row = n, .then.act = K_RELU};
    const double flops = 2.0 * (double)m * (double)n * (double)k;
    double best = 1e30;
    const int repeats = flops > 1e8 ? 1 : (int)(1e8 / flops) + 1;
    for (int i = 0; i < 7; i++) {
        const double t0 = now();
        for (int r = 0; r < repeats; r++) k_gemm(kern, &p, 0, m, 0, n);
        const double t = (now() - t0) / repeats;
        if (t < best) best = t;
    }
    printf("%-8s m %5ld n %6ld k %5ld  A %s B %s  %8.1f GFLOP/s\n", kern->name, (long)m, (long)n, (long)k, pack_a ? "packed" : "plain ",
           pack_b ? "packed" : "plain ", flops / best * 1e-9);
    free(a), free(b), free(c), free(pa), free(pb);
}

int main(int argc, char **argv) {
    const struct k_kernels *kern = argc > 1 ? k_find(argv[1]) : k_default();
    static const int sizes[][3] = {{126, 1536, 384}, {128, 384, 1536}, {256, 3136, 64}, {64, 3136, 576}, {512, 784, 128}, {1024, 196, 256},
                                   {256, 196, 2304}, {2048, 49, 512}, {512, 49, 4608}, {96, 12544, 16}, {24, 3136, 96}, {1, 1000, 2048}, {4, 1000, 2048}};
    if (!kern) return fprintf(stderr, "kern_bench: no such level here: %s\n", argv[1]), 2;
    if (argc == 5) {
        for (int i = 0; i < 4; i++) bench(kern, atol(argv[2]), atol(argv[3]), atol(argv[4]), i & 1, i & 2);
        return 0;
    }
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        for (int v = 0; v < 3; v++) bench(kern, sizes[i][0], sizes[i][1], sizes[i][2], v > 0, v < 2);
    return 0;
}
