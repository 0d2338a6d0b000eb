/* matmul_grad.c: gradients of MatMul, Gemm and Einsum.
 *
 *   MatMulGradA(dy, a, b)   dA = dY B^T, of a's shape      MatMulGradB(dy, a, b)   dB = A^T dY, of b's shape
 *
 * What is transposed is read with exchanged strides while it is packed, never copied. Where B is one matrix for all of A's batch (a
 * dense layer over a sequence) the batch counts as rows: one product. Where a batch dimension was repeated, the products that
 * belong to one result are added in the order of the batch. Different results go to different tasks; one alone is divided by
 * columns and rows. So the bits depend on the shapes only. f64 is done by the plain product.
 *
 * Gemm's gradients are Gemms, those of Einsum are Einsums. */
#include "ops/op/product.h"

#include <string.h>

#include "ops/grad.h"

struct shape {
    int64_t m, n, k, batch;
    int rank; /* of the batch dimensions */
    int64_t dims[OP_RANK_MAX], a_step[OP_RANK_MAX], b_step[OP_RANK_MAX];
};

static bool is_b(const struct op_ctx *ctx) {
    return ctx->node->desc->name[10] == 'B';
}

static bool batch_steps(const struct op_tensor *t, const struct shape *s, int64_t *steps) { /* whether nothing is repeated */
    int64_t step = 1;
    bool whole = true;
    for (int i = s->rank - 1, j = t->rank - 3; i >= 0; i--, j--) {
        const int64_t dim = j >= 0 ? t->dims[j] : 1;
        steps[i] = dim == 1 ? 0 : step;
        whole = whole && (dim == s->dims[i]);
        step *= dim;
    }
    return whole;
}

static bool shape_of(const struct op_ctx *ctx, struct shape *s) {
    const struct op_tensor *a = ctx->in[1], *b = ctx->in[2];
    *s = (struct shape){.m = a->rank > 1 ? a->dims[a->rank - 2] : 1, .k = a->dims[a->rank - 1], .n = b->rank > 1 ? b->dims[b->rank - 1] : 1, .batch = 1};
    if (!op__broadcast(a->rank > 2 ? a->rank - 2 : 0, a->dims, b->rank > 2 ? b->rank - 2 : 0, b->dims, &s->rank, s->dims)) return false;
    bool a_whole = batch_steps(a, s, s->a_step);
    batch_steps(b, s, s->b_step);
    bool b_single = true;
    for (int i = 0; i < s->rank; i++) {
        if (!op__mul(s->batch, s->dims[i], &s->batch)) return false;
        b_single = b_single && s->b_step[i] == 0;
    }
    if (b_single && a_whole) {
        if (!op__mul(s->m, s->batch, &s->m)) return false;
        s->batch = 1;
        s->rank = 0;
    }
    return true;
}

static enum op_status grad_infer(struct op_ctx *ctx) {
    const struct op_tensor *dy = ctx->in[0], *a = ctx->in[1], *b = ctx->in[2];
    struct shape s;
    char td[160], ta[160], tb[160];
    int64_t count;
    if (!dy || !a || !b) return op__fail(ctx, OP_BAD_MODEL, "inputs dy, a and b must be there");
    if ((a->dtype != OP_F32 && a->dtype != OP_F64) || b->dtype != a->dtype || dy->dtype != a->dtype || a->kind != OP_KIND_TENSOR ||
        b->kind != OP_KIND_TENSOR || dy->kind != OP_KIND_TENSOR)
        return op__fail(ctx, OP_BAD_TYPE, "dy is %s, a %s and b %s, expected f32 or f64 for all", op_type_name(dy->dtype), op_type_name(a->dtype),
                        op_type_name(b->dtype));
    if (a->rank < 1 || b->rank < 1 || a->dims[a->rank - 1] != b->dims[b->rank > 1 ? b->rank - 2 : 0] || !shape_of(ctx, &s) ||
        !op__mul(s.m, s.n, &count) || !op__mul(count, s.batch, &count) || count != op_tensor_count(dy))
        return op__fail(ctx, OP_BAD_SHAPE, "dy is %s for a product of %s and %s", op_tensor_describe(dy, td, sizeof td),
                        op_tensor_describe(a, ta, sizeof ta), op_tensor_describe(b, tb, sizeof tb));
    op__set_like(ctx, 0, is_b(ctx) ? 2 : 1);
    return OP_OK;
}

struct job {
    const struct op_ctx *ctx;
    struct shape s;
    bool b, f32;
    int64_t rows, cols, inner; /* of the product that gives a result */
    int64_t n_results, n_tasks;
    size_t pack_a, pack_b, slice; /* floats, of one task's scratch */
};

static void job_init(struct job *j, const struct op_ctx *ctx) {
    *j = (struct job){.ctx = ctx, .b = is_b(ctx), .f32 = ctx->in[1]->dtype == OP_F32};
    shape_of(ctx, &j->s);
    const struct shape *s = &j->s;
    j->rows = j->b ? s->k : s->m;
    j->cols = j->b ? s->n : s->k;
    j->inner = j->b ? s->m : s->n;
    const int64_t each = j->rows * j->cols, total = op_tensor_count(ctx->in[j->b ? 2 : 1]);
    j->n_results = each ? total / each : 0;
    const struct k_gemm *g = op__kern(ctx)->gemm;
    const int64_t n_threads = op__n_threads(ctx);
    j->n_tasks = n_threads < j->n_results ? n_threads : j->n_results;
    if (j->f32) {
        j->pack_a = j->b ? k_pack_a_floats(g, j->rows, j->inner) : 0;
        j->pack_b = k_pack_b_floats(g, j->inner, j->cols);
    }
    j->slice = j->pack_a + j->pack_b + (s->batch == j->n_results ? 0 : (size_t)each * (j->f32 ? 1 : 2));
    j->slice = (j->slice + 15) & ~(size_t)15;
}

static size_t grad_scratch(const struct op_ctx *ctx) {
    struct job j;
    job_init(&j, ctx);
    return (size_t)(j.n_tasks > 0 ? j.n_tasks : 1) * j.slice * sizeof(float);
}

static void batch_at(const struct shape *s, int64_t at, int64_t *a, int64_t *b) {
    *a = *b = 0;
    for (int i = s->rank - 1; i >= 0; i--) {
        const int64_t x = at % s->dims[i];
        at /= s->dims[i];
        *a += x * s->a_step[i];
        *b += x * s->b_step[i];
    }
}

/* The product of batch element `at` to dst. */
static void product_f32(const struct job *j, int64_t at, int64_t ia, int64_t ib, float *dst, float *scratch, bool alone) {
    const struct op_ctx *ctx = j->ctx;
    const struct k_gemm *g = op__kern(ctx)->gemm;
    const struct shape *s = &j->s;
    const float *dy = (const float *)ctx->in[0]->data + at * s->m * s->n;
    struct k_product p = {.m = j->rows, .n = j->cols, .k = j->inner, .b_packed = true, .c = dst, .c_row = j->cols};
    if (j->b) {
        k_pack_a(g, j->rows, j->inner, (const float *)ctx->in[1]->data + ia * s->m * s->k, 1, s->k, scratch);
        k_pack_b(g, j->inner, j->cols, dy, s->n, 1, scratch + j->pack_a);
        p.a = scratch;
        p.a_packed = true;
    } else {
        k_pack_b(g, j->inner, j->cols, (const float *)ctx->in[2]->data + ib * s->k * s->n, 1, s->n, scratch);
        p.a = dy;
        p.a_row = s->n;
        p.a_k = 1;
    }
    p.b = scratch + j->pack_a;
    if (alone) op__gemm(ctx, &p);
    else k_gemm(op__kern(ctx), &p, 0, p.m, 0, p.n);
}

static void product_f64(const struct job *j, int64_t at, int64_t ia, int64_t ib, double *dst) {
    const struct shape *s = &j->s;
    const double *dy = (const double *)j->ctx->in[0]->data + at * s->m * s->n;
    struct op__product p = {.dtype = OP_F64, .m = j->rows, .n = j->cols, .k = j->inner, .c = dst, .c_i = j->cols};
    if (j->b) {
        p.a = (const double *)j->ctx->in[1]->data + ia * s->m * s->k;
        p.a_i = 1, p.a_k = s->k;
        p.b = dy;
        p.b_k = s->n, p.b_j = 1;
    } else {
        p.a = dy;
        p.a_i = s->n, p.a_k = 1;
        p.b = (const double *)j->ctx->in[2]->data + ib * s->k * s->n;
        p.b_k = 1, p.b_j = s->n;
    }
    op__product_plain(&p);
}

static void result(const struct job *j, int64_t r, float *scratch, bool alone) {
    const int64_t each = j->rows * j->cols;
    float *temporary = scratch + j->pack_a + j->pack_b;
    bool first = true;
    for (int64_t at = j->s.batch == j->n_results ? r : 0; at < j->s.batch; at++) {
        int64_t ia, ib;
        batch_at(&j->s, at, &ia, &ib);
        if ((j->b ? ib : ia) != r) continue;
        if (j->f32) {
            float *dst = (float *)j->ctx->out[0]->data + r * each;
            product_f32(j, at, ia, ib, first ? dst : temporary, scratch, alone);
            if (!first) op__kern(j->ctx)->math->binary[K_ADD](each, dst, false, temporary, false, dst);
        } else {
            double *dst = (double *)j->ctx->out[0]->data + r * each, *part = (double *)(void *)scratch;
            product_f64(j, at, ia, ib, first ? dst : part);
            for (int64_t i = 0; i < each && !first; i++) dst[i] += part[i];
        }
        first = false;
        if (j->s.batch == j->n_results) break;
    }
    if (first) memset((char *)j->ctx->out[0]->data + (size_t)(r * each) * (j->f32 ? 4 : 8), 0, (size_t)each * (j->f32 ? 4 : 8));
}

static void grad_task(void *arg, int64_t task) {
    const struct job *j = arg;
    for (int64_t r = task; r < j->n_results; r += j->n_tasks) result(j, r, (float *)j->ctx->scratch + (size_t)task * j->slice, false);
}

static enum op_status grad_run(struct op_ctx *ctx) {
    struct job j;
    job_init(&j, ctx);
    if (j.n_results == 1) result(&j, 0, ctx->scratch, true);
    else if (j.n_results > 1) op__parallel(ctx, j.n_tasks, grad_task, &j);
    return OP_OK;
}

static void grad_cost(const struct op_ctx *ctx, double *flops, double *bytes) {
    struct shape s;
    (void)bytes;
    if (shape_of(ctx, &s)) *flops = 2.0 * (double)s.batch * (double)s.m * (double)s.n * (double)s.k;
}

#define DESC(NAME)                                                                                 \
    {                                                                                              \
        .name = NAME, .domain = "quern", .since = 1, .in_min = 3, .in_max = 3, .out_min = 1, .out_max = 1, .infer = grad_infer, \
        .scratch = grad_scratch, .run = grad_run, .cost = grad_cost                                \
    }
static const struct op_desc matmul_grad_a = DESC("MatMulGradA"), matmul_grad_b = DESC("MatMulGradB");
OP_REGISTER(matmul_grad_a);
OP_REGISTER(matmul_grad_b);

/* --- emitting --------------------------------------------------------------------------------------- */

static enum op_status matmul_grad(struct op_grad *g) {
    int in[3] = {g->dy[0], g->in[0], g->in[1]};
    if (op__grad_wants(g, 0)) op__grad_set(g, 0, op__emit_quern(g, "MatMulGradA", 3, in));
    if (op__grad_wants(g, 1)) op__grad_set(g, 1, op__emit_quern(g, "MatMulGradB", 3, in));
    return OP_OK;
}

static int emit_gemm(struct op_grad *g, int a, bool a_transposed, int b, bool b_transposed, float alpha) {
    int in[2] = {a, b}, out;
    struct op_node *n = op__emit(g, "", "Gemm", 2, in, 1, &out);
    if (n && (op__attr_set_int(g->graph, n, "transA", a_transposed) != OP_OK || op__attr_set_int(g->graph, n, "transB", b_transposed) != OP_OK ||
              op__attr_set_float(g->graph, n, "alpha", alpha) != OP_OK))
        g->failed = true;
    return out;
}

static enum op_status gemm_grad(struct op_grad *g) { /* Y = alpha A' B' + beta C, a prime: transposed or not */
    const bool ta = op__attr_int(g->node, "transA", 0) != 0, tb = op__attr_int(g->node, "transB", 0) != 0;
    const float alpha = op__attr_float(g->node, "alpha", 1), beta = op__attr_float(g->node, "beta", 1);
    const int dy = g->dy[0], a = g->in[0], b = g->in[1];
    if (op__grad_wants(g, 0)) op__grad_set(g, 0, ta ? emit_gemm(g, b, tb, dy, true, alpha) : emit_gemm(g, dy, false, b, !tb, alpha));
    if (op__grad_wants(g, 1)) op__grad_set(g, 1, tb ? emit_gemm(g, dy, true, a, ta, alpha) : emit_gemm(g, a, !ta, dy, false, alpha));
    if (op__grad_wants(g, 2)) {
        int dc = op__sum_to(g, dy, g->in[2]);
        op__grad_set(g, 2, beta == 1 ? dc : op__emit2(g, "Mul", dc, op__emit_scalar(g, dc, (double)beta)));
    }
    return OP_OK;
}

/* Einsum: the gradient of an operand is the product of dy and the other operands with the operand's labels kept. That says it all where
 * every label of the operand stands in another operand or in the output, once in its term; the rest is refused. */
#define EINSUM_MAX 256

static bool simple_term(const char *term) {
    for (const char *c = term; *c; c++)
        if (*c != '.' && strchr(c + 1, *c)) return false;
    return strchr(term, '.') == NULL || strncmp(term, "...", 3) == 0; /* an ellipsis only in front, where SumTo aligns */
}

static void implicit_output(const char *terms, char *out) { /* the labels that occur once, in the order of the alphabet, after any "..." */
    if (strstr(terms, "...")) strcpy(out, "...");
    else *out = 0;
    for (int label = 'A'; label <= 'z'; label++) {
        const char *at = (label <= 'Z' || label >= 'a') ? strchr(terms, label) : NULL;
        if (at && !strchr(at + 1, label)) strcat(out, (char[]){(char)label, 0});
    }
}

static enum op_status einsum_grad(struct op_grad *g) {
    char text[EINSUM_MAX], out[EINSUM_MAX], all[2 * EINSUM_MAX], *term[16];
    const char *from = op__attr_string(g->node, "equation", "");
    int n = 0, len = 0;
    for (; *from && len < EINSUM_MAX - 1; from++)
        if (*from != ' ') text[len++] = *from;
    text[len] = 0;
    char *arrow = strstr(text, "->");
    if (*from || g->n_in > 16) return op__grad_refuse(g, "for so long an equation");
    if (arrow) *arrow = 0, strcpy(out, arrow + 2);
    else implicit_output(text, out);
    for (char *rest = text, *t; n < g->n_in && (t = strsep(&rest, ","));) term[n++] = t;
    if (n != g->n_in || !simple_term(out)) return op__grad_refuse(g, "for this equation");
    for (int i = 0; i < n; i++) {
        int in[16] = {g->dy[0]}, n_in = 1, dx;
        if (!op__grad_wants(g, i)) continue;
        strcpy(all, out);
        for (int k = 0; k < n; k++)
            if (k != i) strcat(strcat(all, ","), term[k]), in[n_in++] = g->in[k];
        bool known = simple_term(term[i]);
        for (const char *c = term[i]; *c && known; c++) known = *c == '.' || strchr(all, *c);
        if (!known) return op__grad_refuse(g, "where a label is repeated in an operand, or summed in it alone");
        strcat(strcat(all, "->"), term[i]);
        struct op_node *node = op__emit(g, "", "Einsum", n_in, in, 1, &dx);
        if (node && op__attr_set_string(g->graph, node, "equation", all) != OP_OK) g->failed = true;
        op__grad_set(g, i, op__sum_to(g, dx, g->in[i]));
    }
    return OP_OK;
}

static const struct op_grad_row matmul_grads[] = {{"", "MatMul", matmul_grad}, {"", "Gemm", gemm_grad}, {"", "Einsum", einsum_grad}};
OP_GRADS_REGISTER(matmul_grads);
