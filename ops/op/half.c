/* half.c: the loop around products of bf16: a block of rows of A is rounded into memory that stays in L2, all columns of W pass over it. Rounding
 * costs a few per cent of the product where W has 64 columns, and less with more. */
#include "ops/op/half.h"

enum { BLOCK_BYTES = 384 << 10, ROWS_MAX = 192, ROWS_STEP = 32 };

static int64_t block_rows(int64_t depth) {
    const int64_t rows = BLOCK_BYTES / (4 * (depth ? depth : 1)) / ROWS_STEP * ROWS_STEP;
    return rows < ROWS_STEP ? ROWS_STEP : rows > ROWS_MAX ? ROWS_MAX : rows;
}

size_t op__half_block_bytes(int64_t depth) {
    return (size_t)block_rows(depth) * (size_t)depth * 4;
}

void op__half_run(const struct op__half_job *job, int64_t row0, int64_t row1, int64_t n0, int64_t n1, void *block) {
    const struct k_kernels pairs = k_half_kernels(job->kern);
    const int64_t most = block_rows(job->depth);
    for (int64_t row = row0; row < row1; row += most) {
        const int64_t m = row1 - row < most ? row1 - row : most;
        struct k_product p = {.m = m, .n = job->n, .k = job->depth, .a = block, .a_row = job->depth, .a_k = 1, .b = job->packed, .b_packed = true,
                              .c = job->y + row * job->y_row, .c_row = job->y_row, .then = job->then};
        if (p.then.residual) p.then.residual += row * p.then.residual_row;
        job->fill(job, row, row + m, block);
        k_gemm(&pairs, &p, 0, m, n0, n1);
    }
}
