/* argmax.c: ArgMax and ArgMin. The first of equals, or the last with select_last_index; NaN counts
 * as beyond everything. */
#include "ops/op/elementwise.h"

OP_VECTOR_FILE

struct arg_job {
    bool smallest, last;
    int64_t outer, n, inner; /* n is searched */
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

enum {
    TILE = 256,
    BLOCK = 64,
    SHORT_ROW = 40
}; /* SHORT_ROW: up to here a kernel costs more than a loop */

/* x (n, inner) to dst (inner), a tile of columns at a time: the best so far and where it was stand
 * side by side. */
#define SEARCH(TYPE, T, V, LOAD)                                                                   \
    static void search_##TYPE(const struct arg_job *job, const T *x, int64_t *dst) {               \
        const bool smallest = job->smallest, last = job->last;                                     \
        for (int64_t j0 = 0; j0 < job->inner; j0 += TILE) {                                        \
            const int64_t m = job->inner - j0 < TILE ? job->inner - j0 : TILE;                     \
            V best[TILE];                                                                          \
            int32_t at[TILE]; /* a dimension beyond 31 bits is refused */                          \
            for (int64_t j = 0; j < m; j++) best[j] = LOAD(x[j0 + j]), at[j] = 0;                  \
            for (int64_t i = 1; i < job->n; i++) {                                                 \
                const T *line = x + i * job->inner + j0;                                           \
                for (int64_t j = 0; j < m; j++) {                                                  \
                    const V v = LOAD(line[j]), b = best[j], low = smallest ? v : b,                \
                            high = smallest ? b : v;                                               \
                    const int better = (low < high) | ((v != v) & (b == b));                       \
                    const int equal = (v == b) | ((v != v) & (b != b));                            \
                    const int take = better | (equal & last);                                      \
                    best[j] = take ? v : b;                                                        \
                    at[j] = take ? (int32_t)i : at[j];                                             \
                }                                                                                  \
            }                                                                                      \
            for (int64_t j = 0; j < m; j++) dst[j0 + j] = at[j];                                   \
        }                                                                                          \
    }
TYPES(SEARCH)

/* Contiguous f32: the extreme by a kernel, then where it is. */
static int64_t search_row(const struct arg_job *job, const struct k_vmath *math, const float *x) {
    if (job->n <= SHORT_ROW) {
        int64_t at = 0;
        for (int64_t k = 1; k < job->n; k++) {
            const float v = x[k], b = x[at];
            const bool better = v != v ? b == b : job->smallest ? v < b : v > b;
            if (better || (job->last && (v == b || (v != v && b != b)))) at = k;
        }
        return at;
    }
    const float best = (job->smallest ? math->min : math->max)(job->n, x);
    int64_t i = job->last ? job->n - 1 : 0;
    for (; !job->last && i + BLOCK <= job->n; i += BLOCK) { /* whole blocks without a hit */
        int hits = 0;
        for (int64_t j = i; j < i + BLOCK; j++) hits |= (x[j] == best) | (x[j] != x[j]);
        if (hits) break;
    }
    while (x[i] != best && !(best != best && x[i] != x[i])) i += job->last ? -1 : 1;
    return i;
}

struct arg_task {
    const struct arg_job *job;
    const struct k_vmath *math; /* of f32 rows only */
    enum op_type type;
    const char *x;
    int64_t *dst;
};

static void arg_piece(void *arg, int64_t first, int64_t n) {
    const struct arg_task *t = arg;
    const int64_t slab = t->job->n * t->job->inner;
    for (int64_t o = first; o < first + n; o++) {
        const void *x = t->x + (size_t)(o * slab) * op_type_size(t->type);
        int64_t *dst = t->dst + o * t->job->inner;
        if (t->math) {
            *dst = search_row(t->job, t->math, x);
            continue;
        }
        switch (t->type) {
#define X(TYPE, T, V, LOAD)                                                                        \
    case OP_##TYPE:                                                                                \
        search_##TYPE(t->job, x, dst);                                                             \
        break;
            TYPES(X)
#undef X
        default:
            break;
        }
    }
}

static enum op_status arg_infer(struct op_ctx *ctx) {
    const struct op_tensor *x = ctx->in[0];
    const int64_t value = op__attr_int(ctx->node, "axis", 0);
    const bool keep = op__attr_int(ctx->node, "keepdims", 1) != 0;
    int64_t dims[OP_RANK_MAX], count = 1;
    int rank = 0;
    if (!x || x->kind != OP_KIND_TENSOR || !(op__is_float(x->dtype) || op__is_int(x->dtype)))
        return op__fail(ctx, OP_BAD_TYPE, "takes numbers, not %s",
                        x ? op_type_name(x->dtype) : "(absent)");
    const int axis = op__axis(value, x->rank);
    if (axis < 0)
        return op__fail(ctx, OP_BAD_VALUE, "axis %lld of an input of rank %d", (long long)value,
                        x->rank);
    for (int i = 0; i < x->rank; i++) {
        if (i != axis) count = x->dims[i] ? count : 0;
        if (i != axis)
            dims[rank++] = x->dims[i];
        else if (keep)
            dims[rank++] = 1;
    }
    if (x->dims[axis] > INT32_MAX)
        return op__fail(ctx, OP_LIMIT, "axis %d has %lld elements, at most 2^31 - 1 are supported",
                        axis, (long long)x->dims[axis]);
    if (x->dims[axis] == 0 && count != 0)
        return op__fail(ctx, OP_BAD_SHAPE, "axis %d has no elements to choose from", axis);
    op__set(ctx, 0, OP_I64, rank, dims);
    return OP_OK;
}

static enum op_status arg(struct op_ctx *ctx, bool plain) {
    const struct op_tensor *x = ctx->in[0];
    struct arg_job job = {ctx->node->desc->name[4] == 'i',
                          op__attr_int(ctx->node, "select_last_index", 0) != 0, 1, 1, 1};
    const int axis = op__axis(op__attr_int(ctx->node, "axis", 0), x->rank);
    if (!ctx->out[0] || op_tensor_count(x) <= 0) return OP_OK;
    for (int i = 0; i < x->rank; i++)
        *(i < axis ? &job.outer : i == axis ? &job.n : &job.inner) *= x->dims[i];
    struct arg_task task = {
        &job, !plain && x->dtype == OP_F32 && job.inner == 1 ? op__kern(ctx)->math : NULL, x->dtype,
        x->data, ctx->out[0]->data};
    op__pieces(ctx, job.outer, arg_piece, &task);
    return OP_OK;
}

static enum op_status arg_run(struct op_ctx *ctx) {
    return arg(ctx, false);
}

static enum op_status arg_ref(struct op_ctx *ctx) {
    return arg(ctx, true);
}

static const struct op_desc arg_max = {.name = "ArgMax",
                                       .domain = "",
                                       .since = 1,
                                       .in_min = 1,
                                       .in_max = 1,
                                       .out_min = 1,
                                       .out_max = 1,
                                       .infer = arg_infer,
                                       .run = arg_run,
                                       .ref = arg_ref};
OP_REGISTER(arg_max);
static const struct op_desc arg_min = {.name = "ArgMin",
                                       .domain = "",
                                       .since = 1,
                                       .in_min = 1,
                                       .in_max = 1,
                                       .out_min = 1,
                                       .out_max = 1,
                                       .infer = arg_infer,
                                       .run = arg_run,
                                       .ref = arg_ref};
OP_REGISTER(arg_min);
