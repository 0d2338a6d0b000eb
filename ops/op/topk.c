/* topk.c: TopK: the k largest or smallest elements along one axis, in order, with their indices.
 *
 * A heap of k indices holds the best seen so far with the worst on top, then is taken apart from
 * the worst on: n log k. Of equal elements the lower index is the better one; NaN is larger than
 * every number. */
#include "ops/op/elementwise.h"

#include <string.h>

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

struct topk_job {
    int64_t n, k, inner;
    bool largest;
};

/* One line: n elements of x, `inner` apart, to k of values and indices, as far apart. heap has room
 * for k. */
#define LINE(TYPE, T, V, LOAD)                                                                     \
    static inline bool worse_##TYPE(const struct topk_job *job, const T *x, int64_t i,             \
                                    int64_t j) {                                                   \
        const V a = LOAD(x[i * job->inner]), b = LOAD(x[j * job->inner]);                          \
        if (a != a || b != b) return a != a && b != b ? i > j : (a != a) != job->largest;          \
        return a == b ? i > j : (a < b) == job->largest;                                           \
    }                                                                                              \
    static void sift_##TYPE(const struct topk_job *job, const T *x, int64_t *heap, int64_t n,      \
                            int64_t at) {                                                          \
        for (int64_t child; (child = 2 * at + 1) < n; at = child) {                                \
            if (child + 1 < n && worse_##TYPE(job, x, heap[child + 1], heap[child])) child++;      \
            if (!worse_##TYPE(job, x, heap[child], heap[at])) break;                               \
            int64_t t = heap[at];                                                                  \
            heap[at] = heap[child];                                                                \
            heap[child] = t;                                                                       \
        }                                                                                          \
    }                                                                                              \
    static void line_##TYPE(const struct topk_job *job, const T *x, T *values, int64_t *indices,   \
                            int64_t *heap) {                                                       \
        for (int64_t i = 0; i < job->k; i++) heap[i] = i;                                          \
        for (int64_t i = job->k / 2 - 1; i >= 0; i--) sift_##TYPE(job, x, heap, job->k, i);        \
        for (int64_t i = job->k; i < job->n; i++)                                                  \
            if (worse_##TYPE(job, x, heap[0], i)) {                                                \
                heap[0] = i;                                                                       \
                sift_##TYPE(job, x, heap, job->k, 0);                                              \
            }                                                                                      \
        for (int64_t i = job->k - 1; i >= 0; i--) {                                                \
            const int64_t at = heap[0];                                                            \
            if (values) values[i * job->inner] = x[at * job->inner];                               \
            if (indices) indices[i * job->inner] = at;                                             \
            heap[0] = heap[i];                                                                     \
            sift_##TYPE(job, x, heap, i, 0);                                                       \
        }                                                                                          \
    }
TYPES(LINE)

static enum op_status topk_upgrade(struct op_graph *g, struct op_node *n, int opset,
                                   struct op_error *err) {
    return opset < 10 ? op__attr_to_input(g, n, "k", 1, err) : OP_OK;
}

static enum op_status topk_infer(struct op_ctx *ctx) {
    const struct op_tensor *x = ctx->in[0], *kt = ctx->n_in > 1 ? ctx->in[1] : NULL;
    const int64_t value = op__attr_int(ctx->node, "axis", -1);
    int64_t dims[OP_RANK_MAX];
    if (!x || x->kind != OP_KIND_TENSOR || !(op__is_float(x->dtype) || op__is_int(x->dtype)))
        return op__fail(ctx, OP_BAD_TYPE, "takes numbers, not %s",
                        x ? op_type_name(x->dtype) : "(absent)");
    if (!kt || kt->dtype != OP_I64 || op_tensor_count(kt) != 1)
        return op__fail(ctx, OP_BAD_TYPE, "k must be one i64");
    const int axis = op__axis(value, x->rank);
    if (axis < 0)
        return op__fail(ctx, OP_BAD_VALUE, "axis %lld of an input of rank %d", (long long)value,
                        x->rank);
    if (!kt->data) return OP_NEED_DATA;
    const int64_t k = *(const int64_t *)kt->data;
    if (k < 0 || k > x->dims[axis])
        return op__fail(ctx, OP_BAD_VALUE, "k is %lld, axis %d has %lld elements", (long long)k,
                        axis, (long long)x->dims[axis]);
    memcpy(dims, x->dims, sizeof dims);
    dims[axis] = k;
    op__set(ctx, 0, x->dtype, x->rank, dims);
    op__set(ctx, 1, OP_I64, x->rank, dims);
    return OP_OK;
}

static const struct op_tensor *any_output(const struct op_ctx *ctx) {
    return ctx->out[0] ? ctx->out[0] : ctx->n_out > 1 ? ctx->out[1] : NULL;
}

static size_t topk_scratch(const struct op_ctx *ctx) {
    const struct op_tensor *out = any_output(ctx);
    return out ? (size_t)out->dims[op__axis(op__attr_int(ctx->node, "axis", -1), out->rank)] *
                     sizeof(int64_t)
               : 0;
}

static enum op_status topk_run(struct op_ctx *ctx) {
    const struct op_tensor *x = ctx->in[0], *out = any_output(ctx);
    if (!out || op_tensor_count(out) <= 0) return OP_OK;
    const int axis = op__axis(op__attr_int(ctx->node, "axis", -1), x->rank);
    struct topk_job job = {x->dims[axis], out->dims[axis], 1,
                           op__attr_int(ctx->node, "largest", 1) != 0};
    int64_t outer = 1;
    for (int i = 0; i < x->rank; i++)
        if (i != axis) *(i < axis ? &outer : &job.inner) *= x->dims[i];
    void *values = ctx->out[0] ? ctx->out[0]->data : NULL;
    int64_t *indices = ctx->n_out > 1 && ctx->out[1] ? ctx->out[1]->data : NULL;
    for (int64_t o = 0; o < outer; o++)
        for (int64_t j = 0; j < job.inner; j++) {
            const int64_t from = o * job.n * job.inner + j, to = o * job.k * job.inner + j;
            switch (x->dtype) {
#define X(TYPE, T, V, LOAD)                                                                        \
    case OP_##TYPE:                                                                                \
        line_##TYPE(&job, (const T *)x->data + from, values ? (T *)values + to : NULL,             \
                    indices ? indices + to : NULL, ctx->scratch);                                  \
        break;
                TYPES(X)
#undef X
            default:
                break;
            }
        }
    return OP_OK;
}

static const struct op_desc topk = {.name = "TopK",
                                    .domain = "",
                                    .since = 1,
                                    .in_min = 1,
                                    .in_max = 2,
                                    .out_min = 1,
                                    .out_max = 2,
                                    .upgrade = topk_upgrade,
                                    .infer = topk_infer,
                                    .scratch = topk_scratch,
                                    .run = topk_run};
OP_REGISTER(topk);
