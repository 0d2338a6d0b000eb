/* MatMul (opset 1, 9, 13): numpy's matmul of A (..., M, K) and B (..., K, N), batch dimensions broadcast, a vector side promoted. And
 * quern's FusedMatMul, which the pass fuse_epilogue makes: + bias (N), an activation.
 *
 * f32 runs on k_gemm: a constant B is packed at load; one that is made at run time is packed into scratch memory when
 * enough rows use it, and else read as it lies. Where B has no batch and A's is not broadcast, the batch is more rows of one
 * product. Every other type runs the plain product. */
#include "ops/op/product.h"

#include <stdlib.h>
#include <string.h>

enum { ROWS_TO_PACK = 48 }; /* below, packing B costs more than it saves (measured: 8 % of the product at 48 rows) */

struct matmul_state {
    struct op__packed_rhs rhs;
    struct op__activation act;
};

struct matmul_shape {
    int64_t m, n, k, batch;
    int rank; /* of the batch dimensions */
    int64_t dims[OP_RANK_MAX], a_step[OP_RANK_MAX], b_step[OP_RANK_MAX]; /* in matrices; 0 where broadcast */
    bool b_single;                                                       /* B is one matrix for all */
};

static enum op_status matmul_prepare(struct op_prepare *p) {
    struct matmul_state *s = calloc(1, sizeof *s);
    if (!s) return op__node_fail(p->err, p->node, OP_NOMEM, "no memory");
    p->node->state = s;
    const enum op_status status = op__activation_parse(p->node, p->err, &s->act);
    return status == OP_OK ? op__rhs_pack(p, 1, false, &s->rhs) : status;
}

static void matmul_release(void *state) {
    free(state);
}

/* The batch dimensions of t aligned with the output's: how many matrices one step is. */
static void batch_steps(const struct op_tensor *t, const struct matmul_shape *s, int64_t *steps) {
    int64_t step = 1;
    for (int i = s->rank - 1, j = t->rank - 3; i >= 0; i--, j--) {
        const int64_t dim = j >= 0 ? t->dims[j] : 1;
        steps[i] = dim == 1 ? 0 : step;
        step *= dim;
    }
}

static void shape_of(const struct op_ctx *ctx, struct matmul_shape *s) {
    const struct op_tensor *a = ctx->in[0], *b = ctx->in[1];
    *s = (struct matmul_shape){.m = a->rank > 1 ? a->dims[a->rank - 2] : 1, .k = a->dims[a->rank - 1], .n = b->rank > 1 ? b->dims[b->rank - 1] : 1, .batch = 1};
    op__broadcast(a->rank > 2 ? a->rank - 2 : 0, a->dims, b->rank > 2 ? b->rank - 2 : 0, b->dims, &s->rank, s->dims);
    batch_steps(a, s, s->a_step);
    batch_steps(b, s, s->b_step);
    bool a_whole = true;
    s->b_single = true;
    for (int i = 0; i < s->rank; i++) {
        s->batch *= s->dims[i];
        a_whole = a_whole && (s->a_step[i] != 0 || s->dims[i] == 1);
        s->b_single = s->b_single && (s->b_step[i] == 0 || s->dims[i] == 1);
    }
    if (s->b_single && a_whole) {
        s->m *= s->batch;
        s->batch = 1;
        s->rank = 0;
    }
}

static enum op_status matmul_infer(struct op_ctx *ctx) {
    const struct op_tensor *a = ctx->in[0], *b = ctx->in[1];
    char text_a[160], text_b[160];
    if (!a || !b) return op__fail(ctx, OP_BAD_MODEL, "input %c is absent", a ? 'B' : 'A');
    if (!op__product_type(a->dtype)) return op__fail(ctx, OP_BAD_TYPE, "input A is %s, expected f16, bf16, f32, f64, i32, u32, i64 or u64", op_type_name(a->dtype));
    if (a->dtype != b->dtype) return op__fail(ctx, OP_BAD_TYPE, "input A is %s and B is %s, expected one type", op_type_name(a->dtype), op_type_name(b->dtype));
    op_tensor_describe(a, text_a, sizeof text_a);
    op_tensor_describe(b, text_b, sizeof text_b);
    if (a->rank < 1 || b->rank < 1) return op__fail(ctx, OP_BAD_SHAPE, "input A is %s and B is %s, expected rank 1 or more", text_a, text_b);
    const int64_t k = a->dims[a->rank - 1], k_b = b->dims[b->rank > 1 ? b->rank - 2 : 0];
    if (k != k_b) return op__fail(ctx, OP_BAD_SHAPE, "input A is %s and B is %s: A has %lld columns, B %lld rows", text_a, text_b, (long long)k, (long long)k_b);
    int rank = 0;
    int64_t dims[OP_RANK_MAX + 2];
    if (!op__broadcast(a->rank > 2 ? a->rank - 2 : 0, a->dims, b->rank > 2 ? b->rank - 2 : 0, b->dims, &rank, dims))
        return op__fail(ctx, OP_BAD_SHAPE, "input A is %s and B is %s: the batch dimensions do not broadcast", text_a, text_b);
    if (a->rank > 1) dims[rank++] = a->dims[a->rank - 2];
    if (b->rank > 1) dims[rank++] = b->dims[b->rank - 1];
    if (rank > OP_RANK_MAX) return op__fail(ctx, OP_LIMIT, "the output has rank %d, at most %d is supported", rank, OP_RANK_MAX);
    op__set(ctx, 0, a->dtype, rank, dims);
    return OP_OK;
}

/* Extra inputs of the fused form. */
static enum op_status fused_infer(struct op_ctx *ctx) {
    const enum op_status status = matmul_infer(ctx);
    if (status != OP_OK) return status;
    if (ctx->in[0]->dtype != OP_F32) return op__fail(ctx, OP_BAD_TYPE, "input A is %s, expected f32", op_type_name(ctx->in[0]->dtype));
    const struct op_tensor *y = ctx->out[0], *bias = ctx->n_in > 2 ? ctx->in[2] : NULL;
    char text[160], text_y[160];
    if (!y) return OP_OK;
    op_tensor_describe(y, text_y, sizeof text_y);
    if (bias && (bias->dtype != OP_F32 || ctx->in[1]->rank < 2 || op_tensor_count(bias) != ctx->in[1]->dims[ctx->in[1]->rank - 1]))
        return op__fail(ctx, OP_BAD_SHAPE, "the bias is %s for an output of %s", op_tensor_describe(bias, text, sizeof text), text_y);
    return OP_OK;
}

static const struct op__packed_rhs *packed_rhs(const struct op_ctx *ctx, const struct matmul_shape *s) {
    const struct matmul_state *state = ctx->state;
    return state && state->rhs.data && state->rhs.k == s->k && state->rhs.n == s->n ? &state->rhs : NULL;
}

static bool packs_at_run(const struct op_ctx *ctx, const struct matmul_shape *s) {
    return ctx->in[0]->dtype == OP_F32 && !packed_rhs(ctx, s) && s->m >= ROWS_TO_PACK;
}

static size_t matmul_scratch(const struct op_ctx *ctx) {
    struct matmul_shape s;
    shape_of(ctx, &s);
    if (!packs_at_run(ctx, &s)) return 0;
    const int64_t slices = s.batch > 1 ? op__n_threads(ctx) : 1;
    return (size_t)slices * k_pack_b_floats(op__kern(ctx)->gemm, s.k, s.n) * sizeof(float);
}

struct matmul_job {
    const struct op_ctx *ctx;
    const struct matmul_shape *shape;
    int64_t n_tasks;
};

/* Matrices of batch element `at`. */
static void batch_at(const struct matmul_shape *s, int64_t at, int64_t *a, int64_t *b) {
    *a = *b = 0;
    for (int i = s->rank - 1; i >= 0; i--) {
        const int64_t x = at % s->dims[i];
        at /= s->dims[i];
        *a += x * s->a_step[i];
        *b += x * s->b_step[i];
    }
}

/* The product of one batch element but for B, which is set by the caller. */
static struct k_product product_at(const struct op_ctx *ctx, const struct matmul_shape *s, int64_t at, int64_t a) {
    const struct matmul_state *state = ctx->state;
    const struct op_tensor *bias = ctx->n_in > 2 ? ctx->in[2] : NULL;
    return (struct k_product){.m = s->m, .n = s->n, .k = s->k, .a = (const float *)ctx->in[0]->data + a * s->m * s->k, .a_row = s->k, .a_k = 1,
                              .c = (float *)ctx->out[0]->data + at * s->m * s->n, .c_row = s->n,
                              .then = {.bias_col = bias ? bias->data : NULL, .act = state ? state->act.fn : K_COPY, .act_a = state ? state->act.a : 0,
                                       .act_b = state ? state->act.b : 0}};
}

static void set_rhs(const struct op_ctx *ctx, const struct matmul_shape *s, int64_t b, float *scratch, struct k_product *p) {
    const struct k_gemm *g = op__kern(ctx)->gemm;
    const struct op__packed_rhs *packed = packed_rhs(ctx, s);
    const float *data = packed ? NULL : (const float *)ctx->in[1]->data + b * s->k * s->n;
    if (packed) {
        p->b = packed->data + (size_t)b * k_pack_b_floats(g, s->k, s->n);
    } else if (packs_at_run(ctx, s)) {
        k_pack_b(g, s->k, s->n, data, s->n, 1, scratch);
        p->b = scratch;
    } else {
        p->b = data;
        p->b_k = s->n;
        return;
    }
    p->b_packed = true;
}

static void matmul_task(void *arg, int64_t task) {
    const struct matmul_job *job = arg;
    const struct op_ctx *ctx = job->ctx;
    const struct matmul_shape *s = job->shape;
    float *scratch = ctx->scratch ? (float *)ctx->scratch + (size_t)task * k_pack_b_floats(op__kern(ctx)->gemm, s->k, s->n) : NULL;
    for (int64_t at = task, a, b; at < s->batch; at += job->n_tasks) {
        batch_at(s, at, &a, &b);
        struct k_product p = product_at(ctx, s, at, a);
        set_rhs(ctx, s, b, scratch, &p);
        k_gemm(op__kern(ctx), &p, 0, p.m, 0, p.n);
    }
}

static enum op_status matmul_ref(struct op_ctx *ctx) {
    const size_t size = op_type_size(ctx->in[0]->dtype);
    struct matmul_shape s;
    shape_of(ctx, &s);
    if (s.m == 0 || s.n == 0) return OP_OK;
    for (int64_t at = 0, a, b; at < s.batch; at++) {
        batch_at(&s, at, &a, &b);
        op__product_plain(&(struct op__product){.dtype = ctx->in[0]->dtype, .m = s.m, .n = s.n, .k = s.k,
                                                .a = (const char *)ctx->in[0]->data + (size_t)(a * s.m * s.k) * size, .a_i = s.k, .a_k = 1,
                                                .b = (const char *)ctx->in[1]->data + (size_t)(b * s.k * s.n) * size, .b_k = s.n, .b_j = 1,
                                                .c = (char *)ctx->out[0]->data + (size_t)(at * s.m * s.n) * size, .c_i = s.n});
    }
    return OP_OK;
}

static enum op_status matmul_run(struct op_ctx *ctx) {
    if (ctx->in[0]->dtype != OP_F32) return matmul_ref(ctx);
    struct matmul_shape s;
    shape_of(ctx, &s);
    if (s.m == 0 || s.n == 0 || s.batch == 0) return OP_OK;
    if (s.batch == 1) {
        struct k_product p = product_at(ctx, &s, 0, 0);
        set_rhs(ctx, &s, 0, ctx->scratch, &p);
        op__gemm(ctx, &p);
        return OP_OK;
    }
    const int64_t n_threads = op__n_threads(ctx);
    struct matmul_job job = {.ctx = ctx, .shape = &s, .n_tasks = n_threads < s.batch ? n_threads : s.batch};
    op__parallel(ctx, job.n_tasks, matmul_task, &job);
    return OP_OK;
}

static void matmul_cost(const struct op_ctx *ctx, double *flops, double *bytes) {
    struct matmul_shape s;
    (void)bytes;
    shape_of(ctx, &s);
    *flops = 2.0 * (double)s.batch * (double)s.m * (double)s.n * (double)s.k;
}

static const struct op_desc matmul = {
    .name = "MatMul",
    .domain = "",
    .since = 1,
    .flags = OP_F_LAZY,
    .in_min = 2,
    .in_max = 2,
    .out_min = 1,
    .out_max = 1,
    .prepare = matmul_prepare,
    .release = matmul_release,
    .infer = matmul_infer,
    .scratch = matmul_scratch,
    .run = matmul_run,
    .ref = matmul_ref,
    .cost = matmul_cost,
};
OP_REGISTER(matmul);

static const struct op_desc fused_matmul = {
    .name = "FusedMatMul",
    .domain = "quern",
    .since = 1,
    .flags = OP_F_LAZY,
    .in_min = 2,
    .in_max = 3,
    .out_min = 1,
    .out_max = 1,
    .prepare = matmul_prepare,
    .release = matmul_release,
    .infer = fused_infer,
    .scratch = matmul_scratch,
    .run = matmul_run,
    .cost = matmul_cost,
};
OP_REGISTER(fused_matmul);
