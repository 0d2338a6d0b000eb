/* where.c: Where. Chooses bytes, so a loop an element size serves every type. */
#include "ops/op/elementwise.h"

OP_VECTOR_FILE

struct where_job {
    uint8_t *out;
    const uint8_t *cond, *a, *b;
    size_t size;
    int64_t step[3]; /* 0 or 1 */
};

#define CHOOSE(T)                                                                                  \
    static void choose_##T(T *d, const uint8_t *c, const T *a, const T *b, int64_t n,              \
                           const int64_t *step) {                                                  \
        if (step[0] && step[1] && step[2]) {                                                       \
            OP_INDEPENDENT for (int64_t i = 0; i < n; i++) d[i] = c[i] ? a[i] : b[i];              \
        } else if (step[0] && step[1]) {                                                           \
            const T other = *b;                                                                    \
            OP_INDEPENDENT for (int64_t i = 0; i < n; i++) d[i] = c[i] ? a[i] : other;             \
        } else if (step[0] && step[2]) {                                                           \
            const T other = *a;                                                                    \
            OP_INDEPENDENT for (int64_t i = 0; i < n; i++) d[i] = c[i] ? other : b[i];             \
        } else {                                                                                   \
            OP_INDEPENDENT for (int64_t i = 0; i < n; i++) d[i] =                                  \
                c[i * step[0]] ? a[i * step[1]] : b[i * step[2]];                                  \
        }                                                                                          \
    }
typedef struct {
    uint64_t half[2];
} pair; /* a string, c128 */
CHOOSE(uint8_t)
CHOOSE(uint16_t)
CHOOSE(uint32_t)
CHOOSE(uint64_t)
CHOOSE(pair)

static void where_piece(void *arg, int64_t n, int64_t out_index, const int64_t *in_index) {
    const struct where_job *job = arg;
    void *d = job->out + (size_t)out_index * job->size;
    const uint8_t *c = job->cond + in_index[0];
    const void *a = job->a + (size_t)in_index[1] * job->size,
               *b = job->b + (size_t)in_index[2] * job->size;
    switch (job->size) {
    case 1:
        choose_uint8_t(d, c, a, b, n, job->step);
        break;
    case 2:
        choose_uint16_t(d, c, a, b, n, job->step);
        break;
    case 4:
        choose_uint32_t(d, c, a, b, n, job->step);
        break;
    case 8:
        choose_uint64_t(d, c, a, b, n, job->step);
        break;
    default:
        choose_pair(d, c, a, b, n, job->step);
    }
}

static enum op_status where_infer(struct op_ctx *ctx) {
    const struct op_tensor *c = ctx->in[0], *a = ctx->in[1], *b = ctx->in[2];
    int64_t part[OP_RANK_MAX], dims[OP_RANK_MAX];
    int part_rank, rank;
    if (!c || !a || !b) return op__fail(ctx, OP_BAD_MODEL, "needs three inputs");
    if (c->dtype != OP_BOOL || a->dtype != b->dtype || c->kind != OP_KIND_TENSOR ||
        a->kind != OP_KIND_TENSOR || b->kind != OP_KIND_TENSOR)
        return op__fail(ctx, OP_BAD_TYPE,
                        "inputs are %s, %s and %s; the first must be bool, the others of one type",
                        op_type_name(c->dtype), op_type_name(a->dtype), op_type_name(b->dtype));
    if (!op__broadcast(c->rank, c->dims, a->rank, a->dims, &part_rank, part) ||
        !op__broadcast(part_rank, part, b->rank, b->dims, &rank, dims)) {
        char tc[120], ta[120], tb[120];
        return op__fail(ctx, OP_BAD_SHAPE, "%s, %s and %s do not broadcast",
                        op_tensor_describe(c, tc, sizeof tc), op_tensor_describe(a, ta, sizeof ta),
                        op_tensor_describe(b, tb, sizeof tb));
    }
    op__set(ctx, 0, a->dtype, rank, dims);
    return OP_OK;
}

static enum op_status where_run(struct op_ctx *ctx) {
    struct op_walk w;
    if (!ctx->out[0]) return OP_OK;
    op__walk_plan(&w, ctx->out[0], ctx->in, 3);
    struct where_job job = {
        .out = ctx->out[0]->data,
        .cond = ctx->in[0]->data,
        .a = ctx->in[1]->data,
        .b = ctx->in[2]->data,
        .size = op_type_size(ctx->out[0]->dtype),
        .step = {w.stride[0][w.rank - 1], w.stride[1][w.rank - 1], w.stride[2][w.rank - 1]},
    };
    op__walk(ctx, &w, where_piece, &job);
    return OP_OK;
}

static const struct op_desc where_desc = {.name = "Where",
                                          .domain = "",
                                          .since = 9,
                                          .in_min = 3,
                                          .in_max = 3,
                                          .out_min = 1,
                                          .out_max = 1,
                                          .inplace = 6,
                                          .infer = where_infer,
                                          .run = where_run};
OP_REGISTER(where_desc);
