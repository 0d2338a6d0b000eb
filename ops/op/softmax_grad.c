/* softmax_grad.c: gradients of Softmax and LogSoftmax from their output y (s the sum over the axis):
 *
 *   SoftmaxGrad     dx = y (dy - s(dy y))
 *   LogSoftmaxGrad  dx = dy - e^y s(dy)
 *
 * Attributes axis and coerced as in softmax.c. Contiguous rows go through the kernels, others column by column. */
#include "ops/op/elementwise.h"

#include <math.h>
#include <string.h>

#include "ops/grad.h"

OP_VECTOR_FILE

struct rows {
    int64_t outer, n, inner;
};

static enum op_status rows_of(const struct op_ctx *ctx, struct rows *r) {
    const struct op_tensor *y = ctx->in[1];
    const bool coerced = op__attr_int(ctx->node, "coerced", 0) != 0;
    const int64_t given = op__attr_int(ctx->node, "axis", -1);
    int axis = coerced && given == y->rank ? y->rank : op__axis(given, y->rank ? y->rank : 1);
    if (axis < 0) return op__fail(ctx, OP_BAD_VALUE, "axis %lld is beyond rank %d", (long long)given, y->rank);
    *r = (struct rows){1, 1, 1};
    for (int d = 0; d < y->rank; d++) {
        if (d < axis) r->outer *= y->dims[d];
        else if (d == axis || coerced) r->n *= y->dims[d];
        else r->inner *= y->dims[d];
    }
    return OP_OK;
}

static enum op_status softmax_grad_infer(struct op_ctx *ctx) {
    const struct op_tensor *dy = ctx->in[0], *y = ctx->in[1];
    struct rows r;
    if (!dy || !y) return op__fail(ctx, OP_BAD_MODEL, "inputs dy and y must be there");
    if ((y->dtype != OP_F32 && y->dtype != OP_F64) || dy->dtype != y->dtype || y->kind != OP_KIND_TENSOR || dy->kind != OP_KIND_TENSOR)
        return op__fail(ctx, OP_BAD_TYPE, "dy is %s and y %s, expected f32 or f64 for both", op_type_name(dy->dtype), op_type_name(y->dtype));
    if (dy->rank != y->rank || memcmp(dy->dims, y->dims, (size_t)y->rank * sizeof *y->dims)) return op__fail(ctx, OP_BAD_SHAPE, "dy and y differ in shape");
    op__set_like(ctx, 0, 1);
    return rows_of(ctx, &r);
}

struct job {
    struct rows r;
    bool log, f32;
    const struct k_vmath *math;
    const void *dy, *y;
    void *dx;
    int64_t per_task;
};

static void row_f32(const struct job *j, int64_t o) {
    const int64_t n = j->r.n;
    const float *dy = (const float *)j->dy + o * n, *y = (const float *)j->y + o * n;
    float *dx = (float *)j->dx + o * n, e[OP_BLOCK];
    if (!j->log) {
        const float s = j->math->dot(n, dy, y);
        OP_INDEPENDENT for (int64_t i = 0; i < n; i++) dx[i] = y[i] * (dy[i] - s);
        return;
    }
    const float s = j->math->sum(n, dy);
    for (int64_t at = 0; at < n; at += OP_BLOCK) {
        const int64_t m = n - at < OP_BLOCK ? n - at : OP_BLOCK;
        j->math->unary[K_EXP](m, y + at, e, 0, 0);
        OP_INDEPENDENT for (int64_t i = 0; i < m; i++) dx[at + i] = dy[at + i] - e[i] * s;
    }
}

#define COLUMNS(T, EXP)                                                                            \
    static void columns_##T(const struct job *j, int64_t o) {                                      \
        const int64_t n = j->r.n, inner = j->r.inner, base = o * n * inner;                        \
        const T *dy = (const T *)j->dy + base, *y = (const T *)j->y + base;                        \
        T *dx = (T *)j->dx + base;                                                                 \
        for (int64_t c = 0; c < inner; c++) {                                                      \
            T s = 0;                                                                               \
            for (int64_t i = 0; i < n; i++) s += j->log ? dy[i * inner + c] : dy[i * inner + c] * y[i * inner + c]; \
            for (int64_t i = 0; i < n; i++) {                                                      \
                const T d = dy[i * inner + c], v = y[i * inner + c];                               \
                dx[i * inner + c] = j->log ? d - EXP(v) * s : v * (d - s);                         \
            }                                                                                      \
        }                                                                                          \
    }
COLUMNS(float, expf)
COLUMNS(double, exp)

static void task(void *arg, int64_t t) {
    const struct job *j = arg;
    int64_t end = (t + 1) * j->per_task < j->r.outer ? (t + 1) * j->per_task : j->r.outer;
    for (int64_t o = t * j->per_task; o < end; o++) {
        if (!j->f32) columns_double(j, o);
        else if (j->r.inner > 1) columns_float(j, o);
        else row_f32(j, o);
    }
}

static enum op_status softmax_grad_run(struct op_ctx *ctx) {
    const struct op_tensor *y = ctx->in[1];
    struct job j = {.log = ctx->node->desc->name[0] == 'L', .f32 = y->dtype == OP_F32, .math = op__kern(ctx)->math, .dy = ctx->in[0]->data, .y = y->data,
                    .dx = ctx->out[0]->data};
    if (op_tensor_count(y) <= 0) return OP_OK;
    enum op_status st = rows_of(ctx, &j.r);
    if (st != OP_OK) return st;
    j.per_task = 16384 / (j.r.n * j.r.inner) + 1;
    op__parallel(ctx, (j.r.outer + j.per_task - 1) / j.per_task, task, &j);
    return OP_OK;
}

#define DESC(NAME)                                                                                 \
    {                                                                                              \
        .name = NAME, .domain = "quern", .since = 1, .in_min = 2, .in_max = 2, .out_min = 1, .out_max = 1, .inplace = 1, \
        .infer = softmax_grad_infer, .run = softmax_grad_run                                       \
    }
static const struct op_desc softmax_grad_desc = DESC("SoftmaxGrad"), log_softmax_grad_desc = DESC("LogSoftmaxGrad");
OP_REGISTER(softmax_grad_desc);
OP_REGISTER(log_softmax_grad_desc);

static enum op_status softmax_grad(struct op_grad *g) {
    int in[2] = {g->dy[0], g->out[0]}, dx;
    op__attrs_copy(g, op__emit(g, "quern", g->node->op_type[0] == 'L' ? "LogSoftmaxGrad" : "SoftmaxGrad", 2, in, 1, &dx));
    op__grad_set(g, 0, dx);
    return OP_OK;
}

static const struct op_grad_row softmax_grads[] = {{"", "Softmax", softmax_grad}, {"", "LogSoftmax", softmax_grad}};
OP_GRADS_REGISTER(softmax_grads);
