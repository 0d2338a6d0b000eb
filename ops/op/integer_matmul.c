/* integer_matmul.c: MatMulInteger and QLinearMatMul: numpy's matmul of bytes less their zero
 * points, in 32-bit sums (which wrap), and for the latter scaled back to bytes.
 *
 * quant_product.h does it, with a constant B packed at load. The plain loop is the reference, and serves what the
 * kernels do not take: a zero point or scale for each row of A, scales that are no numbers. It goes
 * over a row in tiles of TILE columns on the stack, one row of B after the other. */
#include "ops/op/elementwise.h"
#include "ops/op/quant_product.h"
#include "ops/op/quantized.h"

#include <stdlib.h>
#include <string.h>

OP_VECTOR_FILE

#define TILE 256
#define TASK_PRODUCTS 65536

struct matmul {
    const struct op_tensor *a, *b, *a_zero, *b_zero;
    const struct op_tensor *a_scale, *b_scale, *y_scale, *y_zero; /* of QLinearMatMul */
    struct op_tensor *y;
    int64_t m, n, k, rows, rows_per_task;
    int rank; /* of the batch dimensions */
    int64_t dims[OP_RANK_MAX], a_step[OP_RANK_MAX], b_step[OP_RANK_MAX];
};

/* Where the inputs stand in the two operators. */
static void bind(const struct op_ctx *ctx, struct matmul *s) {
    const struct op_tensor *const *in = ctx->in;
    const bool scaled = ctx->node->desc->name[0] == 'Q';
    memset(s, 0, sizeof *s);
    s->a = in[0];
    s->y = ctx->out[0];
    if (scaled) {
        s->a_scale = in[1], s->a_zero = in[2], s->b = in[3], s->b_scale = in[4], s->b_zero = in[5],
        s->y_scale = in[6], s->y_zero = in[7];
    } else {
        s->b = in[1];
        s->a_zero = ctx->n_in > 2 ? in[2] : NULL;
        s->b_zero = ctx->n_in > 3 ? in[3] : NULL;
    }
}

static void batch_steps(const struct op_tensor *t, const struct matmul *s, int64_t matrix,
                        int64_t *steps) {
    int64_t step = matrix;
    for (int i = s->rank - 1, j = t->rank - 3; i >= 0; i--, j--) {
        const int64_t dim = j >= 0 ? t->dims[j] : 1;
        steps[i] = dim == 1 ? 0 : step;
        step *= dim;
    }
}

static int batch_rank(const struct op_tensor *t) {
    return t->rank > 2 ? t->rank - 2 : 0;
}

static bool shape_of(struct matmul *s) {
    const struct op_tensor *a = s->a, *b = s->b;
    s->m = a->rank > 1 ? a->dims[a->rank - 2] : 1;
    s->k = a->dims[a->rank - 1];
    s->n = b->rank > 1 ? b->dims[b->rank - 1] : 1;
    if (!op__broadcast(batch_rank(a), a->dims, batch_rank(b), b->dims, &s->rank, s->dims))
        return false;
    batch_steps(a, s, s->m * s->k, s->a_step);
    batch_steps(b, s, s->k * s->n, s->b_step);
    return true;
}

/* One value, or one for each of n. */
static bool one_or(const struct op_tensor *t, int64_t n) {
    return !t || op_tensor_count(t) == 1 ||
           (op_tensor_count(t) == n &&
            (t->rank == 1 || (t->rank == 2 && (t->dims[0] == 1 || t->dims[1] == 1))));
}

static enum op_status matmul_infer(struct op_ctx *ctx) {
    struct matmul s;
    int64_t dims[OP_RANK_MAX + 2];
    char ta[160], tb[160];
    bind(ctx, &s);
    if (!quantized_is_byte(s.a) || !quantized_is_byte(s.b) ||
        (s.a_zero && s.a_zero->dtype != s.a->dtype) || (s.b_zero && s.b_zero->dtype != s.b->dtype))
        return op__fail(ctx, OP_BAD_TYPE, "takes u8 and i8 with zero points of their types");
    op_tensor_describe(s.a, ta, sizeof ta);
    op_tensor_describe(s.b, tb, sizeof tb);
    if (s.a->rank < 1 || s.b->rank < 1 ||
        s.a->dims[s.a->rank - 1] != s.b->dims[s.b->rank > 1 ? s.b->rank - 2 : 0] || !shape_of(&s))
        return op__fail(ctx, OP_BAD_SHAPE, "%s and %s do not multiply", ta, tb);
    if (!one_or(s.a_zero, s.m) || !one_or(s.b_zero, s.n) ||
        (s.a_scale && !one_or(s.a_scale, s.m)) || (s.b_scale && !one_or(s.b_scale, s.n)))
        return op__fail(ctx, OP_BAD_SHAPE,
                        "a scale or zero point is neither one value nor one for each of the %lld "
                        "rows of %s or %lld columns of %s",
                        (long long)s.m, ta, (long long)s.n, tb);
    if (ctx->n_in == 8 &&
        (!quantized_is_scale(s.a_scale) || !quantized_is_scale(s.b_scale) ||
         !quantized_is_scale(s.y_scale) || !s.a_zero || !s.b_zero || !quantized_is_byte(s.y_zero) ||
         op_tensor_count(s.y_scale) != 1 || op_tensor_count(s.y_zero) != 1))
        return op__fail(ctx, OP_BAD_TYPE,
                        "scales must be f32, f16 or bf16 and zero points u8 or i8, those of the "
                        "output one value");
    int rank = s.rank;
    memcpy(dims, s.dims, sizeof s.dims);
    if (s.a->rank > 1) dims[rank++] = s.m;
    if (s.b->rank > 1) dims[rank++] = s.n;
    if (rank > OP_RANK_MAX)
        return op__fail(ctx, OP_LIMIT, "the output has rank %d, at most %d is supported", rank,
                        OP_RANK_MAX);
    op__set(ctx, 0, ctx->n_in == 8 ? s.y_zero->dtype : OP_I32, rank, dims);
    return OP_OK;
}

static void add_row(uint32_t *sum, int32_t a, const struct op_tensor *b, int64_t first, int64_t n,
                    const int32_t *zero) {
    if (b->dtype == OP_U8) {
        const uint8_t *row = (const uint8_t *)b->data + first;
        for (int64_t j = 0; j < n; j++) sum[j] += (uint32_t)(a * (row[j] - zero[j]));
    } else {
        const int8_t *row = (const int8_t *)b->data + first;
        for (int64_t j = 0; j < n; j++) sum[j] += (uint32_t)(a * (row[j] - zero[j]));
    }
}

static void store_tile(const struct matmul *s, int64_t row, int64_t column, int64_t n,
                       const uint32_t *sum) {
    const int64_t at = row * s->n + column;
    if (!s->y_scale) {
        memcpy((int32_t *)s->y->data + at, sum, (size_t)n * sizeof *sum);
        return;
    }
    const float a = quantized_scale(s->a_scale, row % s->m, op_tensor_count(s->a_scale)),
                y = quantized_scale(s->y_scale, 0, 1);
    const int64_t n_scales = op_tensor_count(s->b_scale);
    const int32_t zero = quantized_byte(s->y_zero, 0), low = s->y->dtype == OP_U8 ? 0 : INT8_MIN,
                  high = s->y->dtype == OP_U8 ? UINT8_MAX : INT8_MAX;
    uint8_t *restrict dst = (uint8_t *)s->y->data + at;
    if (n_scales == 1) {
        const float scale = a * quantized_scale(s->b_scale, 0, 1) / y;
        for (int64_t j = 0; j < n; j++)
            dst[j] = (uint8_t)(quantized_round((float)(int32_t)sum[j] * scale, (float)(low - zero),
                                               (float)(high - zero)) +
                               zero);
        return;
    }
    for (int64_t j = 0; j < n; j++) {
        const float scale = a * quantized_scale(s->b_scale, column + j, n_scales) / y;
        dst[j] = (uint8_t)(quantized_round((float)(int32_t)sum[j] * scale, (float)(low - zero),
                                           (float)(high - zero)) +
                           zero);
    }
}

static void matmul_rows(void *arg, int64_t task) {
    const struct matmul *s = arg;
    const int64_t n_a = s->a_zero ? op_tensor_count(s->a_zero) : 1,
                  n_b = s->b_zero ? op_tensor_count(s->b_zero) : 1;
    for (int64_t row = task * s->rows_per_task;
         row < (task + 1) * s->rows_per_task && row < s->rows; row++) {
        int64_t i = row % s->m, rest = row / s->m, a = i * s->k, b = 0;
        for (int d = s->rank - 1; d >= 0; d--) {
            a += rest % s->dims[d] * s->a_step[d];
            b += rest % s->dims[d] * s->b_step[d];
            rest /= s->dims[d];
        }
        const int32_t a_zero = quantized_zero(s->a_zero, i, n_a);
        for (int64_t column = 0; column < s->n; column += TILE) {
            const int64_t n = s->n - column < TILE ? s->n - column : TILE;
            uint32_t sum[TILE] = {0};
            int32_t zero[TILE];
            for (int64_t j = 0; j < n; j++) zero[j] = quantized_zero(s->b_zero, column + j, n_b);
            for (int64_t k = 0; k < s->k; k++)
                add_row(sum, quantized_byte(s->a, a + k) - a_zero, s->b, b + k * s->n + column, n,
                        zero);
            store_tile(s, row, column, n, sum);
        }
    }
}

static void plain_run(const struct op_ctx *ctx, struct matmul *s) {
    const int64_t products = s->n * (s->k ? s->k : 1);
    s->rows_per_task = products < TASK_PRODUCTS ? TASK_PRODUCTS / products : 1;
    op__parallel(ctx, (s->rows + s->rows_per_task - 1) / s->rows_per_task, matmul_rows, s);
}

/* --- by the kernels on bytes --------------------------------------------------------------------
 */

struct matmul_state {
    struct quant_rhs rhs;
};

static enum op_status matmul_prepare(struct op_prepare *p) {
    struct matmul_state *state = calloc(1, sizeof *state);
    if (!state) return op__node_fail(p->err, p->node, OP_NOMEM, "no memory");
    p->node->state = state;
    return op__quant_rhs_pack(p, p->node->desc->name[0] == 'Q' ? 3 : 1, false, &state->rhs);
}

static void matmul_release(void *state) {
    struct matmul_state *s = state;
    if (s) op__quant_rhs_free(&s->rhs);
    free(s);
}

/* One B for all of A's matrices, none of which repeats: the batch is more rows of one product. */
static int64_t rows_of(const struct matmul *s) {
    for (int i = 0; i < s->rank; i++)
        if (s->dims[i] != 1 && (s->b_step[i] != 0 || s->a_step[i] == 0)) return s->m;
    return s->rows;
}

static const struct quant_rhs *packed_of(const struct op_ctx *ctx, const struct matmul *s) {
    const struct matmul_state *state = ctx->state;
    return state && state->rhs.data && state->rhs.k == s->k && state->rhs.n == s->n ? &state->rhs
                                                                                    : NULL;
}

static size_t matmul_scratch(const struct op_ctx *ctx) {
    struct matmul s;
    bind(ctx, &s);
    if (!s.y || op_tensor_count(s.y) <= 0) return 0;
    shape_of(&s);
    s.rows = op_tensor_count(s.y) / s.n;
    return op__quant_scratch(ctx, rows_of(&s), s.n, s.k, s.a, packed_of(ctx, &s) != NULL, false) +
           (size_t)s.n * sizeof(float);
}

/* A zero point or scale of A for each row, or scales that are no numbers, are the plain loop's. */
static bool scales_fit(const struct matmul *s, float *scales, struct k_quant_after *after) {
    *after = (struct k_quant_after){.out = K_QUANT_SUM};
    if (s->a_zero && op_tensor_count(s->a_zero) != 1) return false;
    if (!s->y_scale) return true;
    if (op_tensor_count(s->a_scale) != 1) return false;
    const int32_t zero = quantized_byte(s->y_zero, 0), low = s->y->dtype == OP_U8 ? 0 : INT8_MIN,
                  high = s->y->dtype == OP_U8 ? UINT8_MAX : INT8_MAX;
    after->out = K_QUANT_BYTE;
    after->scale = scales;
    after->lo = (float)(low - zero);
    after->hi = (float)(high - zero);
    after->zero = zero;
    return op__quant_scales(s->n, quantized_scale(s->a_scale, 0, 1), s->b_scale,
                            quantized_scale(s->y_scale, 0, 1), scales, &after->small);
}

static void products_run(const struct op_ctx *ctx, const struct matmul *s,
                         const struct k_quant_after *after) {
    const int64_t rows = rows_of(s), size = s->y_scale ? 1 : 4;
    const struct quant_rhs *packed = packed_of(ctx, s);
    const size_t packed_bytes = k_quant_packed_bytes(op__kern(ctx)->quant, 1, s->k, s->n);
    for (int64_t row = 0; row < s->rows; row += rows) {
        int64_t rest = row / s->m, a = 0, b = 0;
        for (int d = s->rank - 1; d >= 0; d--) {
            a += rest % s->dims[d] * s->a_step[d];
            b += rest % s->dims[d] * s->b_step[d];
            rest /= s->dims[d];
        }
        const int64_t matrix = b / (s->k * s->n);
        const struct quant_job job = {.m = rows,
                                      .n = s->n,
                                      .k = s->k,
                                      .a = s->a,
                                      .b = s->b,
                                      .a_data = (const uint8_t *)s->a->data + a,
                                      .b_data = packed ? NULL : (const uint8_t *)s->b->data + b,
                                      .packed = packed ? packed->data + (size_t)matrix * packed_bytes : NULL,
                                      .packed_sums = packed ? packed->sums + matrix * s->n : NULL,
                                      .a_zero = quantized_zero(s->a_zero, 0, 1),
                                      .b_zero = s->b_zero,
                                      .c = (char *)s->y->data + row * s->n * size,
                                      .after = *after};
        op__quant_product(ctx, &job, (char *)ctx->scratch, true);
    }
}

static enum op_status matmul(struct op_ctx *ctx, bool plain) {
    struct matmul s;
    struct k_quant_after after;
    if (!ctx->out[0] || op_tensor_count(ctx->out[0]) <= 0) return OP_OK;
    bind(ctx, &s);
    shape_of(&s);
    s.rows = op_tensor_count(s.y) / s.n;
    const size_t scales = plain ? 0 : matmul_scratch(ctx) - (size_t)s.n * sizeof(float);
    if (plain || s.k == 0 ||
        !scales_fit(&s, (float *)((char *)ctx->scratch + scales), &after))
        plain_run(ctx, &s);
    else
        products_run(ctx, &s, &after);
    return OP_OK;
}

static enum op_status matmul_run(struct op_ctx *ctx) {
    return matmul(ctx, false);
}

static enum op_status matmul_ref(struct op_ctx *ctx) {
    return matmul(ctx, true);
}

static void matmul_cost(const struct op_ctx *ctx, double *flops, double *bytes) {
    struct matmul s;
    bind(ctx, &s);
    shape_of(&s);
    const double outputs = s.y ? (double)op_tensor_count(s.y) : 0;
    *flops = 2 * outputs * (double)s.k;
    *bytes = (double)op_tensor_count(s.a) + (double)op_tensor_count(s.b) +
             (s.y ? (double)op_tensor_bytes(s.y) : 0);
}

static const struct op_desc matmul_integer = {.name = "MatMulInteger",
                                              .domain = "",
                                              .since = 10,
                                              .in_min = 2,
                                              .in_max = 4,
                                              .out_min = 1,
                                              .out_max = 1,
                                              .prepare = matmul_prepare,
                                              .release = matmul_release,
                                              .infer = matmul_infer,
                                              .scratch = matmul_scratch,
                                              .run = matmul_run,
                                              .ref = matmul_ref,
                                              .cost = matmul_cost};
OP_REGISTER(matmul_integer);
static const struct op_desc qlinear_matmul = {.name = "QLinearMatMul",
                                              .domain = "",
                                              .since = 10,
                                              .in_min = 8,
                                              .in_max = 8,
                                              .out_min = 1,
                                              .out_max = 1,
                                              .prepare = matmul_prepare,
                                              .release = matmul_release,
                                              .infer = matmul_infer,
                                              .scratch = matmul_scratch,
                                              .run = matmul_run,
                                              .ref = matmul_ref,
                                              .cost = matmul_cost};
OP_REGISTER(qlinear_matmul);
