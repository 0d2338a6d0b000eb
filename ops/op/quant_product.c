/* See quant_product.h. A is read as it lies where its rows are of whole fours of u8; else it is copied. Scratch memory holds, in this order:
 * row pointers, offsets and zero points of columns, sums of rows, the copy of A, B packed, a block of floats for each thread. Work is divided
 * into blocks of rows, and of columns where rows are few or floats go to bytes in cache: any division gives the same integers. */
#include "ops/op/quant_product.h"

#include "ops/op/quantized.h"

#include <stdlib.h>
#include <string.h>

enum { BLOCK_ROWS = 96, BLOCK_COLUMNS = 128 }; /* 48 KB of floats */

static int64_t round_up(int64_t n, int64_t to) {
    return (n + to - 1) / to * to;
}

static size_t line(size_t bytes) {
    return (bytes + 63) / 64 * 64;
}

enum op_status op__quant_rhs_pack(struct op_prepare *p, int index, bool transposed, struct quant_rhs *dst) {
    const struct op_tensor *t = index < p->n_in ? p->in[index] : NULL;
    const struct k_kernels *kern = p->cpu ? k_find(p->cpu) : k_default();
    if (!kern || !quantized_is_byte(t) || t->rank < 2 || op_tensor_count(t) <= 0) return OP_OK;
    const struct k_quant *q = kern->quant;
    const int64_t rows = t->dims[t->rank - 2], columns = t->dims[t->rank - 1];
    dst->k = transposed ? columns : rows;
    dst->n = transposed ? rows : columns;
    dst->count = op_tensor_count(t) / (rows * columns);
    const size_t bytes = k_quant_packed_bytes(q, 1, dst->k, dst->n);
    int64_t all;
    if (!op__mul(dst->count, (int64_t)bytes, &all)) return op__node_fail(p->err, p->node, OP_LIMIT, "the weights are too large");
    dst->data = aligned_alloc(64, line((size_t)all));
    dst->sums = malloc((size_t)(dst->count * dst->n) * sizeof *dst->sums);
    if (!dst->data || !dst->sums) return op__node_fail(p->err, p->node, OP_NOMEM, "no memory to pack weights of %lld bytes", (long long)all);
    for (int64_t i = 0; i < dst->count; i++)
        k_quant_pack(kern, 1, dst->k, dst->n, (const uint8_t *)t->data + i * rows * columns, t->dtype == OP_I8, 0, transposed ? 1 : columns, transposed ? columns : 1,
                     dst->data + (size_t)i * bytes, dst->sums + i * dst->n);
    p->packed_bytes += (size_t)all;
    return OP_OK;
}

bool op__quant_scales(int64_t n, float a, const struct op_tensor *b, float y, float *dst, bool *small) {
    const int64_t count = op_tensor_count(b);
    bool usable = true;
    *small = true;
    for (int64_t j = 0; j < n; j++) {
        dst[j] = a * quantized_scale(b, j, count) / y;
        *small = *small && dst[j] > -1 && dst[j] < 1;
        usable = usable && dst[j] - dst[j] == 0;
    }
    return usable;
}

void op__quant_rhs_free(struct quant_rhs *rhs) {
    free(rhs->data);
    free(rhs->sums);
}

/* --- one product ---------------------------------------------------------------------------------------- */

static bool copies_a(const struct op_tensor *a, int64_t k) {
    return a->dtype == OP_I8 || k % 4 != 0;
}

struct layout {
    size_t rows, offset, zero, row_sum, a, sums, b, floats, end;
};

static struct layout layout_of(const struct op_ctx *ctx, int64_t m, int64_t n, int64_t k, const struct op_tensor *a, bool packed, bool to_bytes) {
    struct layout l = {0};
    l.offset = l.rows + line((size_t)m * sizeof(void *));
    l.zero = l.offset + line((size_t)n * sizeof(int32_t));
    l.row_sum = l.zero + line((size_t)n * sizeof(int32_t));
    l.a = l.row_sum + line((size_t)m * sizeof(int32_t));
    l.sums = l.a + (copies_a(a, k) ? line((size_t)m * (size_t)round_up(k, 4)) : 0);
    l.b = l.sums + (packed ? 0 : line((size_t)n * sizeof(int32_t)));
    l.floats = l.b + (packed ? 0 : line(k_quant_packed_bytes(op__kern(ctx)->quant, 1, k, n)));
    l.end = l.floats + (to_bytes ? (size_t)op__n_threads(ctx) * BLOCK_ROWS * BLOCK_COLUMNS * sizeof(float) : 0);
    return l;
}

size_t op__quant_scratch(const struct op_ctx *ctx, int64_t m, int64_t n, int64_t k, const struct op_tensor *a, bool packed, bool to_bytes) {
    return layout_of(ctx, m, n, k, a, packed, to_bytes).end;
}

struct running {
    const struct op_ctx *ctx;
    const struct quant_job *job;
    struct k_quant_product product;
    const uint8_t **rows;
    int32_t *row_sum; /* NULL: not needed */
    uint8_t *copy;    /* of A, NULL: as it lies */
    float *floats;    /* of task 0 */
    int64_t block_columns, column_blocks, n_units, n_tasks;
};

/* Pointers, copies and sums of the rows [first, last). */
static void ready_rows(const struct running *r, int64_t first, int64_t last) {
    const struct k_quant *q = op__kern(r->ctx)->quant;
    const struct quant_job *job = r->job;
    const int64_t k = job->k, pitch = r->copy ? round_up(k, 4) : k;
    for (int64_t i = first; i < last; i++) {
        const uint8_t *row = job->a_data + i * k;
        if (r->copy) {
            uint8_t *to = r->copy + i * pitch;
            if (job->a->dtype == OP_I8)
                q->flip(k, row, to);
            else
                memcpy(to, row, (size_t)k);
            memset(to + k, 0, (size_t)(pitch - k));
            row = to;
        }
        r->rows[i] = row;
        if (r->row_sum) r->row_sum[i] = q->sum(k, row);
    }
}

/* Activation and quantizing of rows [i0, i0 + m), columns [n0, n1), which lie in c from its first element on. */
static void finish_block(const struct running *r, float *c, int64_t c_row, int64_t i0, int64_t m, int64_t n0, int64_t n1) {
    const struct k_kernels *kern = op__kern(r->ctx);
    const struct quant_job *job = r->job;
    for (int64_t i = 0; i < m; i++) {
        float *row = c + i * c_row;
        if (job->act.fn != K_COPY) kern->math->unary[job->act.fn](n1 - n0, row, row, job->act.a, job->act.b);
        if (job->to_bytes)
            kern->quant->quantize(n1 - n0, row, job->y_scale, job->y_lo, job->y_hi, job->y_zero, (uint8_t *)job->c + (i0 + i) * job->n + n0);
    }
}

static void product_unit(const struct running *r, int64_t unit, float *floats) {
    const struct quant_job *job = r->job;
    const int64_t i0 = unit / r->column_blocks * BLOCK_ROWS, m = job->m - i0 < BLOCK_ROWS ? job->m - i0 : BLOCK_ROWS;
    const int64_t n0 = unit % r->column_blocks * r->block_columns, n1 = n0 + r->block_columns < job->n ? n0 + r->block_columns : job->n;
    struct k_quant_product p = r->product;
    char *c = (char *)job->c + (i0 * job->n + n0) * (job->after.out == K_QUANT_BYTE ? 1 : 4);
    if (r->column_blocks == 1) ready_rows(r, i0, i0 + m);
    if (job->to_bytes) {
        p.c_row = n1 - n0;
        c = (char *)floats;
    }
    k_quant_rows(op__kern(r->ctx), &p, r->rows + i0, i0, m, n0, n1, c);
    if (job->after.out == K_QUANT_FLOAT) finish_block(r, (float *)c, p.c_row, i0, m, n0, n1);
}

static void product_task(void *arg, int64_t task) {
    const struct running *r = arg;
    for (int64_t unit = task; unit < r->n_units; unit += r->n_tasks) product_unit(r, unit, r->floats + task * BLOCK_ROWS * BLOCK_COLUMNS);
}

/* Offsets of the columns, and their zero points where one is not 0 (else false). */
static bool fill_columns(const struct quant_job *job, const int32_t *sums, int32_t *offset, int32_t *zero) {
    const int32_t a_zero = job->a->dtype == OP_I8 ? job->a_zero + 128 : job->a_zero, moved = job->b->dtype == OP_I8 ? 0 : 128;
    const int64_t n_zeros = job->b_zero ? op_tensor_count(job->b_zero) : 1;
    int32_t any = 0;
    for (int64_t j = 0; j < job->n; j++) {
        zero[j] = quantized_zero(job->b_zero, j, n_zeros) - moved;
        any |= zero[j];
        offset[j] = (int32_t)((job->bias ? (uint32_t)job->bias[j] : 0) - (uint32_t)a_zero * (uint32_t)sums[j] +
                              (uint32_t)job->k * (uint32_t)a_zero * (uint32_t)zero[j]);
    }
    return any != 0;
}

void op__quant_product(const struct op_ctx *ctx, const struct quant_job *job, void *scratch, bool parallel) {
    static const int64_t start = 0;
    const struct k_kernels *kern = op__kern(ctx);
    const struct layout l = layout_of(ctx, job->m, job->n, job->k, job->a, job->packed != NULL, job->to_bytes);
    char *at = scratch;
    struct running r = {.ctx = ctx, .job = job, .rows = (const uint8_t **)(at + l.rows), .copy = copies_a(job->a, job->k) ? (uint8_t *)at + l.a : NULL};
    const int32_t *sums = job->packed_sums;
    const int8_t *b = job->packed;
    if (!b) {
        k_quant_pack(kern, 1, job->k, job->n, job->b_data, job->b->dtype == OP_I8, 0, job->b_transposed ? 1 : job->n, job->b_transposed ? job->k : 1,
                     (int8_t *)at + l.b, (int32_t *)(at + l.sums));
        sums = (const int32_t *)(at + l.sums);
        b = (const int8_t *)at + l.b;
    }
    int32_t *offset = (int32_t *)(at + l.offset), *zero = (int32_t *)(at + l.zero);
    if (fill_columns(job, sums, offset, zero)) r.row_sum = (int32_t *)(at + l.row_sum);
    r.product = (struct k_quant_product){.n = job->n, .k = job->k, .n_segments = 1, .segment = &start, .b = b, .c_row = job->n, .after = job->after};
    r.product.after.offset = offset;
    r.product.after.b_zero = zero;
    r.product.after.row_sum = r.row_sum;

    r.floats = (float *)(at + l.floats);
    const int64_t row_blocks = (job->m + BLOCK_ROWS - 1) / BLOCK_ROWS, wanted = parallel ? op__n_threads(ctx) : 1;
    r.block_columns = row_blocks < wanted || job->to_bytes ? BLOCK_COLUMNS : round_up(job->n, kern->quant->nr);
    r.column_blocks = (job->n + r.block_columns - 1) / r.block_columns;
    if (r.column_blocks > 1) ready_rows(&r, 0, job->m);
    r.n_units = row_blocks * r.column_blocks;
    r.n_tasks = wanted < r.n_units ? wanted : r.n_units;
    if (r.n_tasks > 1)
        op__parallel(ctx, r.n_tasks, product_task, &r);
    else if (r.n_tasks == 1)
        product_task(&r, 0);
}
