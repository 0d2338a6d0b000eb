/* Gemm (opset 1 to 13): Y (M x N) = alpha A' B' + beta C, A' and B' transposed where transA and transB say so, C broadcast to (M, N).
 * And quern's FusedGemm, which the pass fuse_epilogue makes: an activation behind it.
 *
 * f32 runs on k_gemm with B packed (at load where it is constant). With alpha = 1, as it is in practice, beta C is the epilogue's bias
 * or residual; else a second step scales the finished rows. Every other type is the plain form. */
#include "ops/op/product.h"

#include <stdlib.h>

struct gemm_state {
    bool trans_a, trans_b;
    float alpha, beta;
    struct op__packed_rhs rhs;
    struct op__activation act;
};

struct gemm_shape {
    int64_t m, n, k, c_rows, c_cols; /* C is (c_rows, c_cols), each 1 or the output's; 0 if there is no C */
};

static enum op_status gemm_prepare(struct op_prepare *p) {
    struct gemm_state *s = calloc(1, sizeof *s);
    if (!s) return op__node_fail(p->err, p->node, OP_NOMEM, "no memory");
    p->node->state = s;
    s->trans_a = op__attr_int(p->node, "transA", 0) != 0;
    s->trans_b = op__attr_int(p->node, "transB", 0) != 0;
    s->alpha = op__attr_float(p->node, "alpha", 1.0f);
    s->beta = op__attr_float(p->node, "beta", 1.0f);
    const enum op_status status = op__activation_parse(p->node, p->err, &s->act);
    const struct op_tensor *b = p->n_in > 1 ? p->in[1] : NULL;
    return status == OP_OK && b && b->rank == 2 ? op__rhs_pack(p, 1, s->trans_b, &s->rhs) : status;
}

static void gemm_release(void *state) {
    free(state);
}

static void shape_of(const struct op_ctx *ctx, struct gemm_shape *g) {
    const struct gemm_state *s = ctx->state;
    const struct op_tensor *a = ctx->in[0], *b = ctx->in[1], *c = ctx->n_in > 2 ? ctx->in[2] : NULL;
    *g = (struct gemm_shape){.m = a->dims[s->trans_a ? 1 : 0], .k = a->dims[s->trans_a ? 0 : 1], .n = b->dims[s->trans_b ? 0 : 1]};
    if (c && s->beta != 0) {
        g->c_cols = c->rank > 0 ? c->dims[c->rank - 1] : 1;
        g->c_rows = c->rank > 1 ? c->dims[c->rank - 2] : 1;
    }
}

static enum op_status gemm_infer(struct op_ctx *ctx) {
    const struct gemm_state *s = ctx->state;
    const struct op_tensor *a = ctx->in[0], *b = ctx->in[1], *c = ctx->n_in > 2 ? ctx->in[2] : NULL;
    char text_a[160], text_b[160];
    if (!a || !b) return op__fail(ctx, OP_BAD_MODEL, "input %c is absent", a ? 'B' : 'A');
    if (!op__product_type(a->dtype)) return op__fail(ctx, OP_BAD_TYPE, "input A is %s, expected f16, bf16, f32, f64, i32, u32, i64 or u64", op_type_name(a->dtype));
    if (a->dtype != b->dtype || (c && c->dtype != a->dtype))
        return op__fail(ctx, OP_BAD_TYPE, "input A is %s, B is %s, C is %s, expected one type", op_type_name(a->dtype), op_type_name(b->dtype),
                        c ? op_type_name(c->dtype) : "absent");
    op_tensor_describe(a, text_a, sizeof text_a);
    op_tensor_describe(b, text_b, sizeof text_b);
    if (a->rank != 2 || b->rank != 2) return op__fail(ctx, OP_BAD_SHAPE, "input A is %s and B is %s, expected two matrices", text_a, text_b);
    struct gemm_shape g;
    shape_of(ctx, &g);
    const int64_t k_b = b->dims[s->trans_b ? 1 : 0];
    if (g.k != k_b)
        return op__fail(ctx, OP_BAD_SHAPE, "input A is %s%s and B is %s%s: the inner dimensions are %lld and %lld", text_a, s->trans_a ? " transposed" : "", text_b,
                        s->trans_b ? " transposed" : "", (long long)g.k, (long long)k_b);
    if (c) {
        const int64_t cols = c->rank > 0 ? c->dims[c->rank - 1] : 1, rows = c->rank > 1 ? c->dims[c->rank - 2] : 1;
        if (c->rank > 2 || (cols != 1 && cols != g.n) || (rows != 1 && rows != g.m))
            return op__fail(ctx, OP_BAD_SHAPE, "input C is %s, which does not broadcast to [%lld,%lld]", op_tensor_describe(c, text_a, sizeof text_a),
                            (long long)g.m, (long long)g.n);
    }
    op__set(ctx, 0, a->dtype, 2, (const int64_t[]){g.m, g.n});
    return OP_OK;
}

static const struct op__packed_rhs *packed_rhs(const struct op_ctx *ctx, const struct gemm_shape *g) {
    const struct gemm_state *s = ctx->state;
    return s->rhs.data && s->rhs.k == g->k && s->rhs.n == g->n ? &s->rhs : NULL;
}

/* Floats of the copy of C that the epilogue reads: none where C serves as it is. */
static int64_t c_floats(const struct gemm_state *s, const struct gemm_shape *g) {
    if (g->c_cols == 0) return 0;
    const bool scalar = g->c_cols == 1 && g->c_rows == 1;
    if (scalar) return g->n;
    return s->beta == 1 ? 0 : g->c_rows * g->c_cols;
}

static int64_t b_floats(const struct op_ctx *ctx, const struct gemm_shape *g) {
    const struct gemm_state *s = ctx->state;
    const bool packs = !packed_rhs(ctx, g) && (s->trans_b || g->m > 2 * op__kern(ctx)->gemm->mr);
    return packs ? (int64_t)k_pack_b_floats(op__kern(ctx)->gemm, g->k, g->n) : 0;
}

static size_t gemm_scratch(const struct op_ctx *ctx) {
    struct gemm_shape g;
    shape_of(ctx, &g);
    if (ctx->in[0]->dtype != OP_F32) return 0;
    return (size_t)(b_floats(ctx, &g) + c_floats(ctx->state, &g)) * sizeof(float);
}

/* beta C as the epilogue takes it: a row of N, a column of M, or all. */
static void set_c(const struct op_ctx *ctx, const struct gemm_shape *g, float *copy, struct k_epilogue *e) {
    const struct gemm_state *s = ctx->state;
    const struct k_vmath *math = op__kern(ctx)->math;
    if (g->c_cols == 0) return;
    const float *c = ctx->in[2]->data;
    if (g->c_cols == 1 && g->c_rows == 1) { /* a scalar */
        for (int64_t j = 0; j < g->n; j++) copy[j] = s->beta * *c;
        e->bias_col = copy;
        return;
    }
    if (s->beta != 1) {
        math->binary[K_MUL](g->c_rows * g->c_cols, c, false, &s->beta, true, copy);
        c = copy;
    }
    if (g->c_rows == 1) {
        e->bias_col = c;
    } else if (g->c_cols == 1) {
        e->bias_row = c;
    } else {
        e->residual = c;
        e->residual_row = g->n;
    }
}

static void scale_rows(const struct op_ctx *ctx, const struct gemm_shape *g, const struct k_epilogue *e) { /* alpha Y + C, activation */
    const struct gemm_state *s = ctx->state;
    const struct k_vmath *math = op__kern(ctx)->math;
    for (int64_t i = 0; i < g->m; i++) {
        float *y = (float *)ctx->out[0]->data + i * g->n;
        math->binary[K_MUL](g->n, y, false, &s->alpha, true, y);
        if (e->bias_col) math->binary[K_ADD](g->n, y, false, e->bias_col, false, y);
        if (e->bias_row) math->binary[K_ADD](g->n, y, false, e->bias_row + i, true, y);
        if (e->residual) math->binary[K_ADD](g->n, y, false, e->residual + i * e->residual_row, false, y);
        math->unary[e->act](g->n, y, y, e->act_a, e->act_b);
    }
}

static enum op_status gemm_f32(struct op_ctx *ctx, const struct gemm_shape *g) {
    const struct gemm_state *s = ctx->state;
    const struct op__packed_rhs *packed = packed_rhs(ctx, g);
    const int64_t packs = b_floats(ctx, g);
    float *scratch = ctx->scratch;
    struct k_product p = {.m = g->m, .n = g->n, .k = g->k, .a = ctx->in[0]->data, .a_row = s->trans_a ? 1 : g->k, .a_k = s->trans_a ? g->m : 1,
                          .b = packed ? packed->data : ctx->in[1]->data, .b_packed = packed != NULL, .b_k = g->n, .c = ctx->out[0]->data, .c_row = g->n};
    if (packs) {
        k_pack_b(op__kern(ctx)->gemm, g->k, g->n, ctx->in[1]->data, s->trans_b ? 1 : g->n, s->trans_b ? g->k : 1, scratch);
        p.b = scratch;
        p.b_packed = true;
    }
    struct k_epilogue then = {.act = s->act.fn, .act_a = s->act.a, .act_b = s->act.b};
    set_c(ctx, g, scratch + packs, &then);
    if (s->alpha == 1) p.then = then;
    else p.then.act = K_COPY;
    op__gemm(ctx, &p);
    if (s->alpha != 1) scale_rows(ctx, g, &then);
    return OP_OK;
}

/* --- the plain form ------------------------------------------------------------------------------------ */

#define DEFINE_SCALE(name, type, real, sum) /* sum: the type that adds without overflow */         \
    static void name(const struct op_ctx *ctx, const struct gemm_shape *g) {                       \
        const struct gemm_state *s = ctx->state;                                                   \
        for (int64_t i = 0; i < g->m; i++)                                                         \
            for (int64_t j = 0; j < g->n; j++) {                                                   \
                type *y = (type *)ctx->out[0]->data + i * g->n + j, c = 0;                         \
                if (g->c_cols) c = ((const type *)ctx->in[2]->data)[(g->c_rows == 1 ? 0 : i) * g->c_cols + (g->c_cols == 1 ? 0 : j)]; \
                if (s->alpha != 1) *y = (type)((real)s->alpha * (real)*y);                         \
                if (s->beta != 1) c = (type)((real)s->beta * (real)c);                             \
                *y = (type)((sum)*y + (sum)c);                                                     \
            }                                                                                      \
    }

DEFINE_SCALE(scale_f32, float, float, float)
DEFINE_SCALE(scale_f64, double, double, double)
DEFINE_SCALE(scale_i32, int32_t, double, uint32_t)
DEFINE_SCALE(scale_u32, uint32_t, double, uint32_t)
DEFINE_SCALE(scale_i64, int64_t, double, uint64_t)
DEFINE_SCALE(scale_u64, uint64_t, double, uint64_t)

static void gemm_narrow(const struct op_ctx *ctx, const struct gemm_shape *g) { /* f16, bf16: in f32, rounded once */
    const struct gemm_state *s = ctx->state;
    const enum op_type dtype = ctx->in[0]->dtype;
    const uint16_t *a = ctx->in[0]->data, *b = ctx->in[1]->data;
    for (int64_t i = 0; i < g->m; i++)
        for (int64_t j = 0; j < g->n; j++) {
            float sum = 0, c = 0;
            for (int64_t k = 0; k < g->k; k++)
                sum += op__narrow_load(dtype, a + (s->trans_a ? k * g->m + i : i * g->k + k)) * op__narrow_load(dtype, b + (s->trans_b ? j * g->k + k : k * g->n + j));
            if (g->c_cols)
                c = op__narrow_load(dtype, (const uint16_t *)ctx->in[2]->data + (g->c_rows == 1 ? 0 : i) * g->c_cols + (g->c_cols == 1 ? 0 : j));
            op__narrow_store(dtype, (uint16_t *)ctx->out[0]->data + i * g->n + j, s->alpha * sum + s->beta * c);
        }
}

static enum op_status gemm_ref(struct op_ctx *ctx) {
    const struct gemm_state *s = ctx->state;
    struct gemm_shape g;
    shape_of(ctx, &g);
    if (ctx->in[0]->dtype == OP_F16 || ctx->in[0]->dtype == OP_BF16) {
        gemm_narrow(ctx, &g);
        return OP_OK;
    }
    op__product_plain(&(struct op__product){.dtype = ctx->in[0]->dtype, .m = g.m, .n = g.n, .k = g.k, .a = ctx->in[0]->data, .a_i = s->trans_a ? 1 : g.k,
                                            .a_k = s->trans_a ? g.m : 1, .b = ctx->in[1]->data, .b_k = s->trans_b ? 1 : g.n, .b_j = s->trans_b ? g.k : 1,
                                            .c = ctx->out[0]->data, .c_i = g.n});
    switch (ctx->in[0]->dtype) {
    case OP_F32: scale_f32(ctx, &g); break;
    case OP_F64: scale_f64(ctx, &g); break;
    case OP_I32: scale_i32(ctx, &g); break;
    case OP_U32: scale_u32(ctx, &g); break;
    case OP_I64: scale_i64(ctx, &g); break;
    default: scale_u64(ctx, &g); break;
    }
    return OP_OK;
}

static enum op_status gemm_run(struct op_ctx *ctx) {
    struct gemm_shape g;
    shape_of(ctx, &g);
    if (g.m == 0 || g.n == 0) return OP_OK;
    return ctx->in[0]->dtype == OP_F32 ? gemm_f32(ctx, &g) : gemm_ref(ctx);
}

static enum op_status fused_infer(struct op_ctx *ctx) {
    if (ctx->in[0]->dtype != OP_F32) return op__fail(ctx, OP_BAD_TYPE, "input A is %s, expected f32", op_type_name(ctx->in[0]->dtype));
    return gemm_infer(ctx);
}

static void gemm_cost(const struct op_ctx *ctx, double *flops, double *bytes) {
    struct gemm_shape g;
    (void)bytes;
    shape_of(ctx, &g);
    *flops = 2.0 * (double)g.m * (double)g.n * (double)g.k;
}

static const struct op_desc gemm = {
    .name = "Gemm",
    .domain = "",
    .since = 1,
    .flags = OP_F_LAZY,
    .in_min = 2,
    .in_max = 3,
    .out_min = 1,
    .out_max = 1,
    .prepare = gemm_prepare,
    .release = gemm_release,
    .infer = gemm_infer,
    .scratch = gemm_scratch,
    .run = gemm_run,
    .ref = gemm_ref,
    .cost = gemm_cost,
};
OP_REGISTER(gemm);

static const struct op_desc fused_gemm = {
    .name = "FusedGemm",
    .domain = "quern",
    .since = 1,
    .flags = OP_F_LAZY,
    .in_min = 2,
    .in_max = 3,
    .out_min = 1,
    .out_max = 1,
    .prepare = gemm_prepare,
    .release = gemm_release,
    .infer = fused_infer,
    .scratch = gemm_scratch,
    .run = gemm_run,
    .cost = gemm_cost,
};
OP_REGISTER(fused_gemm);
