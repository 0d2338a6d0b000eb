/* cumsum.c: CumSum and CumProd: running sums and products along one axis, optionally backwards and
 * without the element itself. */
#include "ops/op/elementwise.h"

#include <string.h>

struct cumsum_job {
    bool exclusive, reverse;
    int64_t outer, n, inner;
};

#define PLAIN(v) (v)
/* Integers wrap: they are added up unsigned. */
#define TYPES(X)                                                                                   \
    X(F32, float, float, PLAIN, PLAIN)                                                             \
    X(F64, double, double, PLAIN, PLAIN)                                                           \
    X(F16, uint16_t, float, op__f16_to_f32, op__f32_to_f16)                                        \
    X(BF16, uint16_t, float, op__bf16_to_f32, op__f32_to_bf16)                                     \
    X(U32, uint32_t, uint32_t, PLAIN, PLAIN)                                                       \
    X(U64, uint64_t, uint64_t, PLAIN, PLAIN)

#define RUN(TYPE, T, V, LOAD, STORE)                                                               \
    RUN_OP(sum_##TYPE, T, V, LOAD, STORE, 0, +=)                                                   \
    RUN_OP(product_##TYPE, T, V, LOAD, STORE, 1, *=)
#define RUN_OP(name, T, V, LOAD, STORE, START, OPERATION)                                          \
    static void name(const struct cumsum_job *job, const T *x, T *y) {                       \
        for (int64_t o = 0; o < job->outer;                                                        \
             o++, x += job->n * job->inner, y += job->n * job->inner)                              \
            for (int64_t j = 0; j < job->inner; j++) {                                             \
                V sum = START;                                                                     \
                for (int64_t k = 0; k < job->n; k++) {                                             \
                    const int64_t at = (job->reverse ? job->n - 1 - k : k) * job->inner + j;       \
                    const V v = LOAD(x[at]), before = sum;                                         \
                    sum OPERATION v;                                                               \
                    y[at] = STORE(job->exclusive ? before : sum);                                  \
                }                                                                                  \
            }                                                                                      \
    }
TYPES(RUN)

static enum op_status axis_of(const struct op_ctx *ctx, int *axis) {
    const struct op_tensor *x = ctx->in[0], *t = ctx->in[1];
    if (!t || (t->dtype != OP_I64 && t->dtype != OP_I32) || op_tensor_count(t) != 1)
        return op__fail(ctx, OP_BAD_TYPE, "axis must be one i32 or i64");
    if (!t->data) return OP_OK; /* the shape does not depend on it, and run looks again */
    const int64_t value =
        t->dtype == OP_I64 ? *(const int64_t *)t->data : *(const int32_t *)t->data;
    *axis = op__axis(value, x->rank);
    return *axis < 0 ? op__fail(ctx, OP_BAD_VALUE, "axis %lld of an input of rank %d",
                                (long long)value, x->rank)
                     : OP_OK;
}

static enum op_status cumsum_infer(struct op_ctx *ctx) {
    const struct op_tensor *x = ctx->in[0];
    int axis;
    if (!x || x->kind != OP_KIND_TENSOR ||
        !(op__is_float(x->dtype) || (op__is_int(x->dtype) && op_type_size(x->dtype) >= 4)))
        return op__fail(ctx, OP_BAD_TYPE, "takes no input of elements %s",
                        x ? op_type_name(x->dtype) : "(absent)");
    op__set_like(ctx, 0, 0);
    return axis_of(ctx, &axis);
}

static enum op_status cumsum_run(struct op_ctx *ctx) {
    const struct op_tensor *x = ctx->in[0];
    struct cumsum_job job = {op__attr_int(ctx->node, "exclusive", 0) != 0,
                             op__attr_int(ctx->node, "reverse", 0) != 0, 1, 1, 1};
    const bool product = !strcmp(ctx->node->op_type, "CumProd");
    int axis = 0;
    if (!ctx->out[0] || op_tensor_count(x) <= 0) return OP_OK;
    enum op_status status = axis_of(ctx, &axis);
    if (status != OP_OK) return status;
    for (int i = 0; i < x->rank; i++)
        *(i < axis ? &job.outer : i == axis ? &job.n : &job.inner) *= x->dims[i];
    switch (x->dtype == OP_I32 ? OP_U32 : x->dtype == OP_I64 ? OP_U64 : x->dtype) {
#define X(TYPE, T, V, LOAD, STORE)                                                                 \
    case OP_##TYPE:                                                                                \
        (product ? product_##TYPE : sum_##TYPE)(&job, x->data, ctx->out[0]->data);                 \
        break;
        TYPES(X)
#undef X
    default:
        break;
    }
    return OP_OK;
}

static const struct op_desc cumsum = {.name = "CumSum",
                                      .domain = "",
                                      .since = 11,
                                      .in_min = 2,
                                      .in_max = 2,
                                      .out_min = 1,
                                      .out_max = 1,
                                      .inplace = 1,
                                      .infer = cumsum_infer,
                                      .run = cumsum_run};
OP_REGISTER(cumsum);
static const struct op_desc cumprod = {.name = "CumProd",
                                       .domain = "",
                                       .since = 26,
                                       .in_min = 2,
                                       .in_max = 2,
                                       .out_min = 1,
                                       .out_max = 1,
                                       .inplace = 1,
                                       .infer = cumsum_infer,
                                       .run = cumsum_run};
OP_REGISTER(cumprod);
