/* The small operators of the domain "quern" that gradients are made of: they look at another value's shape or type when they run.
 *
 *   SumTo(x, like)        x summed over what numpy's broadcast of `like` to x would repeat; the result has like's shape
 *   ReshapeLike(x, like)  x with like's shape
 *   Fill(like), value     a scalar of like's type
 *   ExpandLike(x, like)   x broadcast to like's shape
 *
 * SumTo adds in the order of x's elements (a contiguous run by the sum of kern.h): its bits depend on the shapes only. */
#include "ops/grad.h"

#include <string.h>

#include "ops/kern/kern.h"

/* --- SumTo --------------------------------------------------------------------------------------- */

static enum op_status sum_to_infer(struct op_ctx *ctx) {
    const struct op_tensor *x = ctx->in[0], *like = ctx->in[1];
    if (x->dtype != OP_F32 && x->dtype != OP_F64) return op__fail(ctx, OP_BAD_TYPE, "x is %s, f32 or f64 is expected", op_type_name(x->dtype));
    int rank;
    int64_t dims[OP_RANK_MAX];
    if (!op__broadcast(x->rank, x->dims, like->rank, like->dims, &rank, dims) || rank != x->rank || memcmp(dims, x->dims, (size_t)rank * sizeof *dims))
        return op__fail(ctx, OP_BAD_SHAPE, "like's shape does not broadcast to x's");
    op__set(ctx, 0, x->dtype, like->rank, like->dims);
    return OP_OK;
}

/* Collapses both shapes to runs of dimensions that are kept or summed. Returns their number. */
static int runs_of(const struct op_tensor *x, const struct op_tensor *like, int64_t *sizes, bool *kept) {
    int n = 0, lead = x->rank - like->rank;
    for (int d = 0; d < x->rank; d++) {
        if (x->dims[d] == 1) continue;
        bool keep = d >= lead && like->dims[d - lead] == x->dims[d];
        if (n && kept[n - 1] == keep) sizes[n - 1] *= x->dims[d];
        else {
            sizes[n] = x->dims[d];
            kept[n++] = keep;
        }
    }
    if (n == 0) {
        sizes[0] = 1;
        kept[0] = true;
        n = 1;
    }
    return n;
}

/* The runs of the two innermost levels, and one level of the walk above them. */
static void add_rows_f64(const struct k_vmath *math, int64_t n, const double *x, double *y) {
    (void)math;
    for (int64_t i = 0; i < n; i++) y[i] += x[i];
}
static double sum_row_f64(const struct k_vmath *math, int64_t n, const double *x) {
    double sum = 0;
    (void)math;
    for (int64_t i = 0; i < n; i++) sum += x[i];
    return sum;
}
static void add_rows_f32(const struct k_vmath *math, int64_t n, const float *x, float *y) {
    math->binary[K_ADD](n, y, false, x, false, y);
}
static float sum_row_f32(const struct k_vmath *math, int64_t n, const float *x) {
    return math->sum(n, x);
}

struct sum_walk {
    const struct k_vmath *math;
    int64_t sizes[OP_RANK_MAX], stride[OP_RANK_MAX];
    bool kept[OP_RANK_MAX];
    int n;
};

#define SUM_TO(T, S)                                                                               \
    static const T *sum_to_##S(const struct sum_walk *w, int level, const T *x, T *y) {            \
        const int64_t size = w->sizes[level];                                                      \
        if (level == w->n - 1) {                                                                   \
            if (w->kept[level]) add_rows_##S(w->math, size, x, y);                                 \
            else *y += sum_row_##S(w->math, size, x);                                              \
            return x + size;                                                                       \
        }                                                                                          \
        for (int64_t i = 0; i < size; i++) x = sum_to_##S(w, level + 1, x, y + (w->kept[level] ? i * w->stride[level] : 0)); \
        return x;                                                                                  \
    }
SUM_TO(float, f32)
SUM_TO(double, f64)

static enum op_status sum_to_run(struct op_ctx *ctx) {
    const struct op_tensor *x = ctx->in[0];
    struct op_tensor *y = ctx->out[0];
    struct sum_walk w = {.math = op__kern(ctx)->math};
    if (op_tensor_count(x) == op_tensor_count(y)) { /* nothing is repeated */
        if (op_tensor_count(x) && y->data != x->data) memcpy(y->data, x->data, (size_t)op_tensor_bytes(x));
        return OP_OK;
    }
    if (op_tensor_count(y)) memset(y->data, 0, (size_t)op_tensor_bytes(y));
    if (op_tensor_count(x) == 0) return OP_OK;
    w.n = runs_of(x, ctx->in[1], w.sizes, w.kept);
    int64_t step = 1;
    for (int i = w.n - 1; i >= 0; i--) {
        w.stride[i] = step;
        if (w.kept[i]) step *= w.sizes[i];
    }
    if (x->dtype == OP_F32) sum_to_f32(&w, 0, x->data, y->data);
    else sum_to_f64(&w, 0, x->data, y->data);
    return OP_OK;
}

static enum op_status expand_like_grad(struct op_grad *g) {
    op__grad_set(g, 0, op__sum_to(g, g->dy[0], g->in[0]));
    return OP_OK;
}
static enum op_status sum_to_grad(struct op_grad *g) {
    op__grad_set(g, 0, op__emit_quern(g, "ExpandLike", 2, (int[]){g->dy[0], g->in[0]}));
    return OP_OK;
}

static const struct op_desc sum_to = {.name = "SumTo", .domain = "quern", .since = 1, .in_min = 2, .in_max = 2, .out_min = 1, .out_max = 1, .inplace = 1,
                                      .infer = sum_to_infer, .run = sum_to_run, .grad = sum_to_grad};
OP_REGISTER(sum_to);

/* --- ExpandLike ---------------------------------------------------------------------------------- */

static enum op_status expand_like_infer(struct op_ctx *ctx) {
    const struct op_tensor *x = ctx->in[0], *like = ctx->in[1];
    int rank;
    int64_t dims[OP_RANK_MAX];
    if (!op__broadcast(x->rank, x->dims, like->rank, like->dims, &rank, dims)) return op__fail(ctx, OP_BAD_SHAPE, "x does not broadcast to like's shape");
    op__set(ctx, 0, x->dtype, rank, dims);
    return OP_OK;
}

static enum op_status expand_like_run(struct op_ctx *ctx) {
    const struct op_tensor *x = ctx->in[0];
    const struct op_tensor *y = ctx->out[0];
    int64_t count = op_tensor_count(y), index[OP_RANK_MAX] = {0}, stride[OP_RANK_MAX] = {0}, step = 1;
    size_t size = op_type_size(x->dtype);
    for (int d = y->rank - 1; d >= 0; d--) {
        int at = d - (y->rank - x->rank);
        stride[d] = at < 0 || x->dims[at] == 1 ? 0 : step;
        if (at >= 0) step *= x->dims[at];
    }
    int64_t from = 0;
    for (int64_t i = 0; i < count; i++) {
        memcpy((char *)y->data + (size_t)i * size, (const char *)x->data + (size_t)from * size, size);
        for (int d = y->rank - 1; d >= 0; d--) {
            from += stride[d];
            if (++index[d] < y->dims[d]) break;
            from -= stride[d] * y->dims[d];
            index[d] = 0;
        }
    }
    return OP_OK;
}

static const struct op_desc expand_like = {.name = "ExpandLike", .domain = "quern", .since = 1, .in_min = 2, .in_max = 2, .out_min = 1, .out_max = 1,
                                           .infer = expand_like_infer, .run = expand_like_run, .grad = expand_like_grad};
OP_REGISTER(expand_like);

/* --- ReshapeLike --------------------------------------------------------------------------------- */

static enum op_status reshape_like_infer(struct op_ctx *ctx) {
    if (op_tensor_count(ctx->in[0]) != op_tensor_count(ctx->in[1])) return op__fail(ctx, OP_BAD_SHAPE, "x and like have different numbers of elements");
    op__set(ctx, 0, ctx->in[0]->dtype, ctx->in[1]->rank, ctx->in[1]->dims);
    return OP_OK;
}
static enum op_status reshape_like_grad(struct op_grad *g) {
    op__grad_set(g, 0, op__reshape_like(g, g->dy[0], g->in[0]));
    return OP_OK;
}

static const struct op_desc reshape_like = {.name = "ReshapeLike", .domain = "quern", .since = 1, .in_min = 2, .in_max = 2, .out_min = 1, .out_max = 1,
                                            .flags = OP_F_VIEW, .infer = reshape_like_infer, .grad = reshape_like_grad};
OP_REGISTER(reshape_like);

/* --- Fill ---------------------------------------------------------------------------------------- */

static enum op_status fill_infer(struct op_ctx *ctx) {
    enum op_type t = ctx->in[0]->dtype;
    if (t != OP_F32 && t != OP_F64) return op__fail(ctx, OP_BAD_TYPE, "like is %s, f32 or f64 is expected", op_type_name(t));
    op__set(ctx, 0, t, 0, NULL);
    return OP_OK;
}
static enum op_status fill_run(struct op_ctx *ctx) {
    float value = op__attr_float(ctx->node, "value", 0);
    if (ctx->out[0]->dtype == OP_F32) *(float *)ctx->out[0]->data = value;
    else *(double *)ctx->out[0]->data = (double)value;
    return OP_OK;
}

static const struct op_desc fill = {.name = "Fill", .domain = "quern", .since = 1, .in_min = 1, .in_max = 1, .out_min = 1, .out_max = 1,
                                    .flags = OP_F_SHAPE, .infer = fill_infer, .run = fill_run};
OP_REGISTER(fill);
