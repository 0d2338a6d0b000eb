/* quern's HalfMatMul: MatMul, Gemm and their fused forms with constant weights, both sides rounded to bf16, sums, bias and result in f32. The pass
 * bf16 makes it of them where a model is loaded with that precision.
 *
 *   A (…, K) f32, B (K, N) or with transB (N, K), constant f32, bias (N) → (…, N)
 *
 * `matrix` says that it was a Gemm, which takes two dimensions. Rows are divided between threads, or columns where rows are few: an
 * element is a chain over k of its own either way. */
#include "ops/op/half.h"
#include "ops/op/product.h"

#include <stdlib.h>

enum { SPLIT_ROWS_MIN = 48 };

struct half_matmul {
    bool trans_b, matrix;
    int64_t k, n;
    void *packed;
    struct op__activation act;
};

static enum op_status prepare(struct op_prepare *p) {
    struct half_matmul *s = calloc(1, sizeof *s);
    if (!s) return op__node_fail(p->err, p->node, OP_NOMEM, "out of memory");
    p->node->state = s;
    enum op_status st = op__activation_parse(p->node, p->err, &s->act);
    if (st != OP_OK) return st;
    s->trans_b = op__attr_int(p->node, "transB", 0) != 0;
    s->matrix = op__attr_int(p->node, "matrix", 0) != 0;
    const struct op_tensor *b = p->n_in > 1 ? p->in[1] : NULL;
    const struct k_kernels *kern = p->cpu ? k_find(p->cpu) : k_default();
    if (!kern || !b || b->kind != OP_KIND_TENSOR || b->dtype != OP_F32 || b->rank != 2 || op_tensor_count(b) <= 0)
        return op__node_fail(p->err, p->node, OP_UNSUPPORTED, "input 1 (B) is not a constant f32 matrix");
    s->k = b->dims[s->trans_b ? 1 : 0];
    s->n = b->dims[s->trans_b ? 0 : 1];
    const size_t bytes = k_half_pack_b_units(kern, k_half_depth(s->k), s->n) * 4;
    bool filled;
    s->packed = op__pack_alloc(p, "bf16", bytes, &filled);
    const float *data = s->packed && !filled ? op__prepare_data(p, 1) : NULL;
    if (!s->packed || (!filled && !data)) return op__node_fail(p->err, p->node, OP_NOMEM, "no memory to pack a matrix of %zu bytes", bytes);
    if (!filled) k_half_pack_b(kern, s->k, s->n, data, s->trans_b ? 1 : s->n, s->trans_b ? s->k : 1, s->packed);
    p->consumed |= 1u << 1;
    return OP_OK;
}

static void release(void *state) {
    free(state);
}

static enum op_status infer(struct op_ctx *ctx) {
    const struct half_matmul *s = ctx->state;
    const struct op_tensor *a = ctx->in[0], *bias = ctx->n_in > 2 ? ctx->in[2] : NULL;
    char text[160];
    if (!a) return op__fail(ctx, OP_BAD_MODEL, "input A is absent");
    if (a->dtype != OP_F32) return op__fail(ctx, OP_BAD_TYPE, "input A is %s, expected f32", op_type_name(a->dtype));
    if (a->rank < 1 || (s->matrix && a->rank != 2) || a->dims[a->rank - 1] != s->k)
        return op__fail(ctx, OP_BAD_SHAPE, "input A is %s, expected %s of %lld columns", op_tensor_describe(a, text, sizeof text), s->matrix ? "a matrix" : "rows",
                        (long long)s->k);
    if (bias && (bias->dtype != OP_F32 || op_tensor_count(bias) != s->n))
        return op__fail(ctx, OP_BAD_SHAPE, "the bias is %s, expected f32[%lld]", op_tensor_describe(bias, text, sizeof text), (long long)s->n);
    int64_t dims[OP_RANK_MAX];
    for (int i = 0; i < a->rank; i++) dims[i] = i == a->rank - 1 ? s->n : a->dims[i];
    op__set(ctx, 0, OP_F32, a->rank, dims);
    return OP_OK;
}

struct job {
    struct op__half_job half;
    const float *a;
    int64_t k, rows, n_tasks;
    bool by_rows;
    char *scratch;
};

static void fill(const struct op__half_job *half, int64_t row0, int64_t row1, void *dst) {
    const struct job *job = half->user;
    k_half_rows(half->kern, row1 - row0, job->k, job->a + row0 * job->k, job->k, dst);
}

static void make_job(const struct op_ctx *ctx, struct job *job) {
    const struct half_matmul *s = ctx->state;
    const struct op_tensor *bias = ctx->n_in > 2 ? ctx->in[2] : NULL;
    const struct k_kernels *kern = op__kern(ctx);
    const int64_t threads = op__n_threads(ctx), nr = kern->half->gemm->nr, panels = (s->n + nr - 1) / nr;
    *job = (struct job){.a = ctx->in[0]->data, .k = s->k, .rows = op_tensor_count(ctx->in[0]) / s->k, .scratch = ctx->scratch,
                        .half = {.kern = kern, .n = s->n, .depth = k_half_depth(s->k), .packed = s->packed, .y = ctx->out[0] ? ctx->out[0]->data : NULL, .y_row = s->n,
                                 .then = {.bias_col = bias ? bias->data : NULL, .act = s->act.fn, .act_a = s->act.a, .act_b = s->act.b}, .fill = fill}};
    job->by_rows = job->rows >= threads * SPLIT_ROWS_MIN || threads == 1;
    const int64_t units = job->by_rows ? job->rows : panels;
    job->n_tasks = threads < units ? threads : units;
}

static size_t scratch(const struct op_ctx *ctx) {
    struct job job;
    make_job(ctx, &job);
    return (size_t)job.n_tasks * op__half_block_bytes(job.half.depth);
}

static void task(void *arg, int64_t i) {
    const struct job *job = arg;
    const int64_t nr = job->half.kern->half->gemm->nr, panels = (job->half.n + nr - 1) / nr, units = job->by_rows ? job->rows : panels;
    const int64_t from = units * i / job->n_tasks, to = units * (i + 1) / job->n_tasks, n1 = to * nr < job->half.n ? to * nr : job->half.n;
    void *block = job->scratch + (size_t)i * op__half_block_bytes(job->half.depth);
    if (job->by_rows) op__half_run(&job->half, from, to, 0, job->half.n, block);
    else op__half_run(&job->half, 0, job->rows, from * nr, n1, block);
}

static enum op_status run(struct op_ctx *ctx) {
    struct job job;
    if (op_tensor_count(ctx->out[0]) == 0) return OP_OK;
    make_job(ctx, &job);
    job.half.user = &job;
    op__parallel(ctx, job.n_tasks, task, &job);
    return OP_OK;
}

static void cost(const struct op_ctx *ctx, double *flops, double *bytes) {
    const struct half_matmul *s = ctx->state;
    (void)bytes;
    *flops = 2.0 * (double)op_tensor_count(ctx->in[0]) * (double)s->n;
}

static const struct op_desc half_matmul = {
    .name = "HalfMatMul",
    .domain = "quern",
    .since = 1,
    .flags = OP_F_LAZY,
    .in_min = 2,
    .in_max = 3,
    .out_min = 1,
    .out_max = 1,
    .prepare = prepare,
    .release = release,
    .infer = infer,
    .scratch = scratch,
    .run = run,
    .cost = cost,
};
OP_REGISTER(half_matmul);
