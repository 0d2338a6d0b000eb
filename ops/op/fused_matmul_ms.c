/* fused_matmul_ms.c: FusedMatMul of com.microsoft, which ONNX Runtime's optimiser leaves in the
 * models it saves: alpha times the product of A (..., M, K) and B (..., K, N), either stored the
 * other way round (transA, transB), the batch dimensions broadcast.
 *
 * The strides of the kernel take a transposed A as it lies; a transposed B is packed first.
 * Matrices of rank 1 and transBatch are refused: exporters write neither. */
#include "ops/op/elementwise.h"
#include "ops/op/product.h"

#include <string.h>

struct fused {
    bool trans_a, trans_b;
    int64_t m, n, k;
    int rank; /* of the batch dimensions */
    int64_t dims[OP_RANK_MAX];
};

static bool shape_of(const struct op_ctx *ctx, struct fused *s) {
    const struct op_tensor *a = ctx->in[0], *b = ctx->in[1];
    s->trans_a = op__attr_int(ctx->node, "transA", 0) != 0;
    s->trans_b = op__attr_int(ctx->node, "transB", 0) != 0;
    s->m = a->dims[a->rank - (s->trans_a ? 1 : 2)];
    s->k = a->dims[a->rank - (s->trans_a ? 2 : 1)];
    s->n = b->dims[b->rank - (s->trans_b ? 2 : 1)];
    return b->dims[b->rank - (s->trans_b ? 1 : 2)] == s->k &&
           op__broadcast(a->rank - 2, a->dims, b->rank - 2, b->dims, &s->rank, s->dims);
}

static enum op_status fused_infer(struct op_ctx *ctx) {
    const struct op_tensor *a = ctx->in[0], *b = ctx->in[1];
    struct fused s;
    char ta[160], tb[160];
    if (!a || !b || a->dtype != OP_F32 || b->dtype != OP_F32)
        return op__fail(ctx, OP_BAD_TYPE, "takes two tensors of f32");
    if (op__attr_int(ctx->node, "transBatchA", 0) || op__attr_int(ctx->node, "transBatchB", 0))
        return op__fail(ctx, OP_UNSUPPORTED, "transBatchA and transBatchB are not supported");
    if (a->rank < 2 || b->rank < 2 || !shape_of(ctx, &s))
        return op__fail(ctx, OP_BAD_SHAPE,
                        "%s and %s do not multiply with transA %lld and transB %lld",
                        op_tensor_describe(a, ta, sizeof ta), op_tensor_describe(b, tb, sizeof tb),
                        (long long)op__attr_int(ctx->node, "transA", 0),
                        (long long)op__attr_int(ctx->node, "transB", 0));
    s.dims[s.rank] = s.m;
    s.dims[s.rank + 1] = s.n;
    op__set(ctx, 0, OP_F32, s.rank + 2, s.dims);
    return OP_OK;
}

static size_t fused_scratch(const struct op_ctx *ctx) {
    struct fused s;
    shape_of(ctx, &s);
    return s.trans_b ? k_pack_b_floats(op__kern(ctx)->gemm, s.k, s.n) * sizeof(float) : 0;
}

/* Where matrix `at` of the output's batch lies in t, in matrices. */
static int64_t matrix_of(const struct op_tensor *t, const struct fused *s, int64_t at) {
    int64_t index = 0, step = 1;
    for (int i = s->rank - 1, j = t->rank - 3; i >= 0 && j >= 0; at /= s->dims[i], i--, j--) {
        if (t->dims[j] != 1) index += at % s->dims[i] * step;
        step *= t->dims[j];
    }
    return index;
}

static enum op_status fused_run(struct op_ctx *ctx) {
    struct fused s;
    if (!ctx->out[0] || op_tensor_count(ctx->out[0]) <= 0) return OP_OK;
    shape_of(ctx, &s);
    if (s.k == 0) {
        memset(ctx->out[0]->data, 0, (size_t)op_tensor_bytes(ctx->out[0]));
        return OP_OK;
    }
    const struct k_kernels *kern = op__kern(ctx);
    const int64_t batch = op_tensor_count(ctx->out[0]) / (s.m * s.n);
    const float alpha = op__attr_float(ctx->node, "alpha", 1);
    int64_t packed = -1; /* which B is in the scratch */
    for (int64_t i = 0; i < batch; i++) {
        const int64_t at = matrix_of(ctx->in[1], &s, i);
        const float *b = (const float *)ctx->in[1]->data + at * s.k * s.n;
        float *c = (float *)ctx->out[0]->data + i * s.m * s.n;
        if (s.trans_b && packed != at) k_pack_b(kern->gemm, s.k, s.n, b, 1, s.k, ctx->scratch);
        packed = at;
        const struct k_product product = {.m = s.m,
                                          .n = s.n,
                                          .k = s.k,
                                          .a = (const float *)ctx->in[0]->data +
                                               matrix_of(ctx->in[0], &s, i) * s.m * s.k,
                                          .a_row = s.trans_a ? 1 : s.k,
                                          .a_k = s.trans_a ? s.m : 1,
                                          .b = s.trans_b ? ctx->scratch : b,
                                          .b_packed = s.trans_b,
                                          .b_k = s.n,
                                          .c = c,
                                          .c_row = s.n,
                                          .then = {.act = K_COPY}};
        op__gemm(ctx, &product);
        if (alpha != 1) kern->math->unary[K_LINEAR](s.m * s.n, c, c, alpha, 0);
    }
    return OP_OK;
}

static void fused_cost(const struct op_ctx *ctx, double *flops, double *bytes) {
    struct fused s;
    shape_of(ctx, &s);
    *flops = 2.0 * (double)s.k * (ctx->out[0] ? (double)op_tensor_count(ctx->out[0]) : 0);
    *bytes = (double)op_tensor_bytes(ctx->in[0]) + (double)op_tensor_bytes(ctx->in[1]) +
             (ctx->out[0] ? (double)op_tensor_bytes(ctx->out[0]) : 0);
}

static const struct op_desc fused_matmul_ms = {.name = "FusedMatMul",
                                               .domain = "com.microsoft",
                                               .since = 1,
                                               .in_min = 2,
                                               .in_max = 2,
                                               .out_min = 1,
                                               .out_max = 1,
                                               .infer = fused_infer,
                                               .scratch = fused_scratch,
                                               .run = fused_run,
                                               .cost = fused_cost};
OP_REGISTER(fused_matmul_ms);
