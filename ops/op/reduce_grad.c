/* reduce_grad.c: gradients of the reductions and of global pooling.
 *
 * ReduceGrad(dy, x, y, axes) of the domain quern gives dx of x's shape: each element is dy of its result times a factor. Attributes:
 * kind (the forward operator's name), keepdims, noop_with_empty_axes, and spatial = 1 where the axes are all but the first two, 2 where they are all
 * but the first and the last.
 *
 *   ReduceSum 1 · ReduceMean, GlobalAveragePool 1/n · ReduceL1 sign x · ReduceL2 x/y · ReduceSumSquare 2x · ReduceLogSum e^-y ·
 *   ReduceLogSumExp e^(x-y) · ReduceProd y/x (not finite where x is 0) · ReduceMax, ReduceMin, GlobalMaxPool: 1 at the first
 *   element in x's order that equals y, 0 elsewhere
 *
 * The result that an element belongs to is found by walking x with dy and y as tensors that are broadcast to it. */
#include "ops/op/elementwise.h"

#include <math.h>
#include <string.h>

#include "ops/grad.h"

OP_VECTOR_FILE

enum kind { SUM, MEAN, L1, L2, SUM_SQUARE, LOG_SUM, LOG_SUM_EXP, PROD, FIRST, N_KINDS };
static const struct {
    const char *name;
    enum kind kind;
} kinds[] = {{"ReduceSum", SUM}, {"ReduceMean", MEAN}, {"ReduceL1", L1}, {"ReduceL2", L2}, {"ReduceSumSquare", SUM_SQUARE}, {"ReduceLogSum", LOG_SUM},
             {"ReduceLogSumExp", LOG_SUM_EXP}, {"ReduceProd", PROD}, {"ReduceMax", FIRST}, {"ReduceMin", FIRST}, {"GlobalAveragePool", MEAN},
             {"GlobalMaxPool", FIRST}};

static enum kind kind_of(const struct op_ctx *ctx) {
    const char *name = op__attr_string(ctx->node, "kind", "");
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++)
        if (!strcmp(kinds[i].name, name)) return kinds[i].kind;
    return N_KINDS;
}

/* x's shape with 1 where it is reduced. */
static enum op_status kept_dims(const struct op_ctx *ctx, int64_t *dims) {
    const struct op_tensor *x = ctx->in[1], *axes = ctx->n_in > 3 ? ctx->in[3] : NULL;
    const int64_t spatial = op__attr_int(ctx->node, "spatial", 0);
    const int64_t n = axes ? op_tensor_count(axes) : 0;
    if (axes && axes->dtype != OP_I64) return op__fail(ctx, OP_BAD_TYPE, "axes are %s, expected i64", op_type_name(axes->dtype));
    if (axes && n && !axes->data) return OP_NEED_DATA;
    const int first = spatial == 1 ? 2 : 1, end = x->rank - (spatial == 2);
    const bool all = !spatial && n == 0 && !op__attr_int(ctx->node, "noop_with_empty_axes", 0);
    for (int d = 0; d < x->rank; d++) dims[d] = all || (spatial && d >= first && d < end) ? 1 : x->dims[d];
    for (int64_t i = 0; i < n && !spatial; i++) {
        int axis = op__axis(((const int64_t *)axes->data)[i], x->rank);
        if (axis < 0) return op__fail(ctx, OP_BAD_VALUE, "axis %lld is beyond rank %d", (long long)((const int64_t *)axes->data)[i], x->rank);
        dims[axis] = 1;
    }
    return OP_OK;
}

static enum op_status reduce_grad_infer(struct op_ctx *ctx) {
    const struct op_tensor *dy = ctx->in[0], *x = ctx->in[1], *y = ctx->in[2];
    if (!dy || !x || !y) return op__fail(ctx, OP_BAD_MODEL, "inputs dy, x and y must be there");
    if ((x->dtype != OP_F32 && x->dtype != OP_F64) || dy->dtype != x->dtype || y->dtype != x->dtype || x->kind != OP_KIND_TENSOR ||
        dy->kind != OP_KIND_TENSOR || y->kind != OP_KIND_TENSOR)
        return op__fail(ctx, OP_BAD_TYPE, "dy is %s, x %s and y %s, expected f32 or f64 for all", op_type_name(dy->dtype), op_type_name(x->dtype),
                        op_type_name(y->dtype));
    if (kind_of(ctx) == N_KINDS) return op__fail(ctx, OP_BAD_VALUE, "kind is \"%s\", which is no reduction", op__attr_string(ctx->node, "kind", ""));
    struct op_tensor kept = {.dtype = x->dtype, .rank = x->rank};
    op__set_like(ctx, 0, 1);
    enum op_status st = kept_dims(ctx, kept.dims);
    if (st == OP_NEED_DATA) return OP_OK; /* the output's shape does not depend on the axes: run looks again */
    if (st != OP_OK) return st;
    if (op_tensor_count(dy) != op_tensor_count(&kept) || op_tensor_count(y) != op_tensor_count(&kept)) {
        char td[160], tx[160];
        return op__fail(ctx, OP_BAD_SHAPE, "dy is %s for x %s and these axes", op_tensor_describe(dy, td, sizeof td), op_tensor_describe(x, tx, sizeof tx));
    }
    return OP_OK;
}

struct job {
    const struct op_walk *w;
    enum kind kind;
    double share;
    struct op_tensor in[3]; /* dy, y, x */
    char *dx;
    const struct k_vmath *math;
};

#define FACTOR_LOOP(EXPR)                                                                          \
    OP_INDEPENDENT for (int64_t i = 0; i < n; i++) {                                               \
        const __typeof__(*x) v = x[i], r = y[step * i];                                            \
        (void)v, (void)r;                                                                          \
        dx[i] = dy[step * i] * (__typeof__(*x))(EXPR);                                             \
    }                                                                                              \
    break

#define PIECE(T, EXP)                                                                              \
    static void piece_##T(const struct job *j, int64_t n, int64_t out, const int64_t *at) {        \
        const T *dy = (const T *)j->in[0].data + at[0], *y = (const T *)j->in[1].data + at[1], *x = (const T *)j->in[2].data + at[2]; \
        T *dx = (T *)(void *)j->dx + out;                                                          \
        const T share = (T)j->share;                                                               \
        const int64_t step = j->w->stride[0][j->w->rank ? j->w->rank - 1 : 0];                     \
        switch (j->kind) {                                                                         \
        case MEAN: FACTOR_LOOP(share);                                                             \
        case L1: FACTOR_LOOP((v > 0) - (v < 0));                                                   \
        case L2: FACTOR_LOOP(r > 0 ? v / r : 0);                                                   \
        case SUM_SQUARE: FACTOR_LOOP(2 * v);                                                       \
        case LOG_SUM: FACTOR_LOOP(EXP(-r));                                                        \
        case LOG_SUM_EXP: FACTOR_LOOP(EXP(v - r));                                                 \
        case PROD: FACTOR_LOOP(r / v);                                                             \
        default: FACTOR_LOOP(1);                                                                   \
        }                                                                                          \
    }
PIECE(float, expf)
PIECE(double, exp)

static void piece(void *arg, int64_t n, int64_t out, const int64_t *at) {
    const struct job *j = arg;
    if (j->in[2].dtype == OP_F32) piece_float(j, n, out, at);
    else piece_double(j, n, out, at);
}

/* Max and Min: in x's order, so that the first is known; `taken` has a byte for each result. */
static void first_of_each(const struct job *j, const struct op_tensor *x, const int64_t *dims, uint8_t *taken) {
    int64_t stride[OP_RANK_MAX] = {0}, index[OP_RANK_MAX] = {0}, step = 1, at = 0;
    const int64_t n = op_tensor_count(x);
    const bool f32 = x->dtype == OP_F32;
    for (int d = x->rank - 1; d >= 0; d--) {
        stride[d] = dims[d] == 1 ? 0 : step;
        step *= dims[d];
    }
    memset(taken, 0, (size_t)step);
    for (int64_t i = 0; i < n; i++) {
        bool is = f32 ? ((const float *)x->data)[i] == ((const float *)j->in[1].data)[at] : ((const double *)x->data)[i] == ((const double *)j->in[1].data)[at];
        is = is && !taken[at];
        if (is) taken[at] = 1;
        if (f32) ((float *)(void *)j->dx)[i] = is ? ((const float *)j->in[0].data)[at] : 0;
        else ((double *)(void *)j->dx)[i] = is ? ((const double *)j->in[0].data)[at] : 0;
        for (int d = x->rank - 1; d >= 0; d--) {
            at += stride[d];
            if (++index[d] < x->dims[d]) break;
            at -= stride[d] * x->dims[d];
            index[d] = 0;
        }
    }
}

static size_t reduce_grad_scratch(const struct op_ctx *ctx) {
    return kind_of(ctx) == FIRST ? (size_t)op_tensor_count(ctx->in[2]) : 0;
}

static enum op_status reduce_grad_run(struct op_ctx *ctx) {
    const struct op_tensor *x = ctx->in[1];
    struct op_walk w;
    struct op_tensor kept = {.dtype = x->dtype, .rank = x->rank};
    if (op_tensor_count(x) <= 0) return OP_OK;
    enum op_status st = kept_dims(ctx, kept.dims);
    if (st != OP_OK) return st;
    if (op_tensor_count(ctx->in[0]) != op_tensor_count(&kept) || op_tensor_count(ctx->in[2]) != op_tensor_count(&kept))
        return op__fail(ctx, OP_BAD_SHAPE, "dy does not fit x and the axes");
    struct job j = {.w = &w, .kind = kind_of(ctx), .share = (double)op_tensor_count(&kept) / (double)op_tensor_count(x), .in = {kept, kept, *x},
                    .dx = ctx->out[0]->data};
    j.in[0].data = ctx->in[0]->data;
    j.in[1].data = ctx->in[2]->data;
    if (j.kind == FIRST) {
        first_of_each(&j, x, kept.dims, ctx->scratch);
        return OP_OK;
    }
    op__walk_plan(&w, ctx->out[0], (const struct op_tensor *const[]){&j.in[0], &j.in[1], &j.in[2]}, 3);
    op__walk(ctx, &w, piece, &j);
    return OP_OK;
}

static const struct op_desc reduce_grad_desc = {.name = "ReduceGrad", .domain = "quern", .since = 1, .in_min = 3, .in_max = 4, .out_min = 1, .out_max = 1,
                                                .infer = reduce_grad_infer, .scratch = reduce_grad_scratch, .run = reduce_grad_run};
OP_REGISTER(reduce_grad_desc);

static enum op_status reduce_grad(struct op_grad *g) {
    int in[4] = {g->dy[0], g->in[0], g->out[0], g->n_in > 1 ? g->in[1] : -1}, dx;
    struct op_node *n = op__emit(g, "quern", "ReduceGrad", in[3] >= 0 ? 4 : 3, in, 1, &dx);
    if (!n) return OP_OK;
    op__attr_copy(g, n, "noop_with_empty_axes");
    if (op__attr_set_string(g->graph, n, "kind", g->node->op_type) != OP_OK) g->failed = true;
    if (g->node->op_type[0] == 'G' && op__attr_set_int(g->graph, n, "spatial", 1) != OP_OK) g->failed = true;
    op__grad_set(g, 0, dx);
    return OP_OK;
}

static const struct op_grad_row reduce_grads[] = {
    {"", "ReduceSum", reduce_grad}, {"", "ReduceMean", reduce_grad}, {"", "ReduceL1", reduce_grad}, {"", "ReduceL2", reduce_grad},
    {"", "ReduceSumSquare", reduce_grad}, {"", "ReduceLogSum", reduce_grad}, {"", "ReduceLogSumExp", reduce_grad}, {"", "ReduceProd", reduce_grad},
    {"", "ReduceMax", reduce_grad}, {"", "ReduceMin", reduce_grad}, {"", "GlobalAveragePool", reduce_grad}, {"", "GlobalMaxPool", reduce_grad},
};
OP_GRADS_REGISTER(reduce_grads);
