/* half.h: products of bf16 with constant weights, as the operators that do them see it. Internal to ops/op/. */
#ifndef QUERN_OPS_OP_HALF_H
#define QUERN_OPS_OP_HALF_H

#include "ops/kern/kern.h"

/* Y (rows x n) = A W and the epilogue; A comes in blocks of rows that `fill` rounds to bf16, W is from k_half_pack_b. */
struct op__half_job {
    const struct k_kernels *kern;
    int64_t n, depth; /* depth: k_half_depth of the product's k */
    const void *packed;
    float *y;
    int64_t y_row;
    struct k_epilogue then; /* of row 0 */
    void (*fill)(const struct op__half_job *job, int64_t row0, int64_t row1, void *dst); /* rows of `depth` pairs */
    const void *user;
};

size_t op__half_block_bytes(int64_t depth); /* scratch of a task */
/* Rows [row0, row1), columns [n0, n1), n0 a multiple of the tile's nr. Any division gives the same bits. */
void op__half_run(const struct op__half_job *job, int64_t row0, int64_t row1, int64_t n0, int64_t n1, void *block);

#endif
