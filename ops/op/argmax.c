/* argmax.c: ArgMax and ArgMin. The first of equals, or the last with select_last_index; NaN counts as beyond everything. */
#include "ops/op/elementwise.h"

struct arg_job {
    bool smallest, last;
    int64_t outer, n, inner;
};

#define PLAIN(v) (v)
#define TYPES(X)                                                                                   \
    X(F32, float, float, PLAIN)                                                                    \
    X(F64, double, double, PLAIN)                                                                  \
    X(F16, uint16_t, float, op__f16_to_f32)                                                        \
    X(BF16, uint16_t, float, op__bf16_to_f32)                                                      \
    X(I8, int8_t, int8_t, PLAIN)                                                                   \
    X(I16, int16_t, int16_t, PLAIN)                                                                \
    X(I32, int32_t, int32_t, PLAIN)                                                                \
    X(I64, int64_t, int64_t, PLAIN)                                                                \
    X(U8, uint8_t, uint8_t, PLAIN)                                                                 \
    X(U16, uint16_t, uint16_t, PLAIN)                                                              \
    X(U32, uint32_t, uint32_t, PLAIN)                                                              \
    X(U64, uint64_t, uint64_t, PLAIN)

/* x (outer, n, inner) to dst (outer, inner) */
#define SEARCH(TYPE, T, V, LOAD)                                                                   \
    static void search_##TYPE(const struct arg_job *job, const T *x, int64_t *dst) {               \
        for (int64_t o = 0; o < job->outer; o++, x += job->n * job->inner)                         \
            for (int64_t j = 0; j < job->inner; j++) {                                             \
                V best = LOAD(x[j]);                                                               \
                int64_t at = 0;                                                                    \
                for (int64_t i = 1; i < job->n; i++) {                                             \
                    const V v = LOAD(x[i * job->inner + j]);                                       \
                    const bool better = v != v ? best == best : job->smallest ? v < best : v > best;                                               \
                    const bool equal = v == best || (v != v && best != best);                      \
                    if (better || (equal && job->last)) best = v, at = i;                          \
                }                                                                                  \
                *dst++ = at;                                                                       \
            }                                                                                      \
    }
TYPES(SEARCH)

static enum op_status arg_infer(struct op_ctx *ctx) {
    const struct op_tensor *x = ctx->in[0];
    const int64_t value = op__attr_int(ctx->node, "axis", 0);
    const bool keep = op__attr_int(ctx->node, "keepdims", 1) != 0;
    int64_t dims[OP_RANK_MAX], count = 1;
    int rank = 0;
    if (!x || x->kind != OP_KIND_TENSOR || !(op__is_float(x->dtype) || op__is_int(x->dtype)))
        return op__fail(ctx, OP_BAD_TYPE, "takes numbers, not %s", x ? op_type_name(x->dtype) : "(absent)");
    const int axis = op__axis(value, x->rank);
    if (axis < 0) return op__fail(ctx, OP_BAD_VALUE, "axis %lld of an input of rank %d", (long long)value, x->rank);
    for (int i = 0; i < x->rank; i++) {
        if (i != axis) count = x->dims[i] ? count : 0;
        if (i != axis)
            dims[rank++] = x->dims[i];
        else if (keep)
            dims[rank++] = 1;
    }
    if (x->dims[axis] == 0 && count != 0) return op__fail(ctx, OP_BAD_SHAPE, "axis %d has no elements to choose from", axis);
    op__set(ctx, 0, OP_I64, rank, dims);
    return OP_OK;
}

static enum op_status arg_run(struct op_ctx *ctx) {
    const struct op_tensor *x = ctx->in[0];
    struct arg_job job = {ctx->node->desc->name[4] == 'i', op__attr_int(ctx->node, "select_last_index", 0) != 0, 1, 1, 1};
    const int axis = op__axis(op__attr_int(ctx->node, "axis", 0), x->rank);
    if (!ctx->out[0] || op_tensor_count(x) <= 0) return OP_OK;
    for (int i = 0; i < x->rank; i++) *(i < axis ? &job.outer : i == axis ? &job.n : &job.inner) *= x->dims[i];
    switch (x->dtype) {
#define X(TYPE, T, V, LOAD)                                                                        \
    case OP_##TYPE: search_##TYPE(&job, x->data, ctx->out[0]->data); break;
        TYPES(X)
#undef X
    default: break;
    }
    return OP_OK;
}

static const struct op_desc arg_max = {.name = "ArgMax", .domain = "", .since = 1, .in_min = 1, .in_max = 1, .out_min = 1, .out_max = 1,
                                       .infer = arg_infer, .run = arg_run};
OP_REGISTER(arg_max);
static const struct op_desc arg_min = {.name = "ArgMin", .domain = "", .since = 1, .in_min = 1, .in_max = 1, .out_min = 1, .out_max = 1,
                                       .infer = arg_infer, .run = arg_run};
OP_REGISTER(arg_min);
