/* unique.c: Unique: the distinct elements, or the distinct slices along an axis, with where each
 * was first seen, which one every element is, and how often each is there.
 *
 * Slices are sorted by (content, position) through an index; equal ones are then neighbours, the
 * first of them the one first seen. Unsorted output orders the groups by that position. NaNs are
 * each their own group. */
#include "ops/op/elementwise.h"

#include <stdlib.h>
#include <string.h>

struct unique_job {
    enum op_type type;
    const char *data;
    int64_t outer, n, inner; /* slice i is (outer, inner) at (o * n + i) * inner */
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
    X(U64, uint64_t, uint64_t, PLAIN)                                                              \
    X(BOOL, uint8_t, uint8_t, PLAIN)

static int compare_elements(enum op_type type, const char *data, int64_t i, int64_t j) {
    switch (type) {
#define X(TYPE, T, V, LOAD)                                                                        \
    case OP_##TYPE: {                                                                              \
        const V a = LOAD(((const T *)(const void *)data)[i]),                                      \
                b = LOAD(((const T *)(const void *)data)[j]);                                      \
        if (a != a || b != b) return a != a && b != b ? (i > j) - (i < j) : (a != a) - (b != b);   \
        return (a > b) - (a < b);                                                                  \
    }
        TYPES(X)
#undef X
    case OP_STRING: {
        const struct op_string *a = (const struct op_string *)(const void *)data + i,
                               *b = (const struct op_string *)(const void *)data + j;
        const size_t n = a->len < b->len ? a->len : b->len;
        int order = n ? memcmp(a->data, b->data, n) : 0;
        return order ? order : (a->len > b->len) - (a->len < b->len);
    }
    default:
        return 0;
    }
}

static int compare_slices(const struct unique_job *job, int64_t i, int64_t j) {
    for (int64_t o = 0; o < job->outer; o++)
        for (int64_t k = 0; k < job->inner; k++) {
            int order = compare_elements(job->type, job->data, (o * job->n + i) * job->inner + k,
                                         (o * job->n + j) * job->inner + k);
            if (order) return order;
        }
    return 0;
}

static int by_content(const void *a, const void *b, void *job) {
    const int64_t i = *(const int64_t *)a, j = *(const int64_t *)b;
    int order = compare_slices(job, i, j);
    return order ? order : (i > j) - (i < j);
}

static int by_first(const void *a, const void *b) {
    const int64_t i = *(const int64_t *)a, j = *(const int64_t *)b;
    return (i > j) - (i < j);
}

static enum op_status unique_infer(struct op_ctx *ctx) {
    const struct op_tensor *x = ctx->in[0];
    int64_t dims[OP_RANK_MAX] = {-1};
    int rank = 1;
    if (!x || x->kind != OP_KIND_TENSOR || x->dtype == OP_C64 || x->dtype == OP_C128 ||
        op__is_narrow(x->dtype))
        return op__fail(ctx, OP_BAD_TYPE, "takes no input of elements %s",
                        x ? op_type_name(x->dtype) : "(absent)");
    if (op__attr(ctx->node, "axis")) {
        const int64_t value = op__attr_int(ctx->node, "axis", 0);
        const int axis = op__axis(value, x->rank);
        if (axis < 0)
            return op__fail(ctx, OP_BAD_VALUE, "axis %lld of an input of rank %d", (long long)value,
                            x->rank);
        memcpy(dims, x->dims, sizeof dims);
        dims[axis] = -1;
        rank = x->rank;
    }
    op__set(ctx, 0, x->dtype, rank, dims);
    for (int i = 1; i < ctx->n_out; i++) op__set(ctx, i, OP_I64, 1, (int64_t[]){-1});
    return OP_OK;
}

static int axis_of(const struct op_ctx *ctx) {
    return op__attr(ctx->node, "axis")
               ? op__axis(op__attr_int(ctx->node, "axis", 0), ctx->in[0]->rank)
               : -1;
}

static void job_of(const struct op_ctx *ctx, struct unique_job *job) {
    const struct op_tensor *x = ctx->in[0];
    const int axis = axis_of(ctx);
    *job = (struct unique_job){x->dtype, x->data, 1, 1, 1};
    for (int i = 0; i < x->rank; i++)
        *(axis < 0 || i == axis ? &job->n : i < axis ? &job->outer : &job->inner) *= x->dims[i];
}

static size_t unique_scratch(const struct op_ctx *ctx) {
    struct unique_job job;
    job_of(ctx, &job);
    return (size_t)job.n * 4 * sizeof(int64_t);
}

static enum op_status unique_values(struct op_ctx *ctx, const struct unique_job *job,
                                    const int64_t *first, int64_t groups) {
    const struct op_tensor *x = ctx->in[0];
    const int axis = axis_of(ctx);
    int64_t dims[OP_RANK_MAX];
    memcpy(dims, x->dims, sizeof dims);
    dims[axis < 0 ? 0 : axis] = groups;
    enum op_status status = op__output(ctx, 0, x->dtype, axis < 0 ? 1 : x->rank, dims);
    if (status != OP_OK || !ctx->out[0] || op_tensor_count(ctx->out[0]) <= 0) return status;
    const size_t slice = (size_t)job->inner * op_type_size(job->type);
    char *dst = ctx->out[0]->data;
    for (int64_t o = 0; o < job->outer; o++)
        for (int64_t g = 0; g < groups; g++, dst += slice)
            memcpy(dst, job->data + (size_t)(o * job->n + first[2 * g]) * slice, slice);
    return OP_OK;
}

static enum op_status unique_run(struct op_ctx *ctx) {
    struct unique_job job;
    job_of(ctx, &job);
    /* order: slices sorted; group_of: the group of each slice; first: of each group its first slice
     * and its number */
    int64_t *order = ctx->scratch, *group_of = order + job.n, *first = group_of + job.n, groups = 0;
    for (int64_t i = 0; i < job.n; i++) order[i] = i;
    if (job.n > 1) qsort_r(order, (size_t)job.n, sizeof *order, by_content, &job);
    for (int64_t i = 0; i < job.n; i++) {
        if (i == 0 || compare_slices(&job, order[i - 1], order[i]) != 0) {
            first[2 * groups] = order[i];
            first[2 * groups + 1] = groups;
            groups++;
        }
        group_of[order[i]] = groups - 1;
    }
    int64_t *place =
        order; /* of a group: where it stands in the output; the order is not needed any more */
    if (!op__attr_int(ctx->node, "sorted", 1) && groups > 1)
        qsort(first, (size_t)groups, 2 * sizeof *first, by_first);
    for (int64_t g = 0; g < groups; g++) place[first[2 * g + 1]] = g;

    enum op_status status = unique_values(ctx, &job, first, groups);
    for (int i = 1; i < ctx->n_out && status == OP_OK; i++) {
        if (!ctx->out[i]) continue;
        const int64_t n = i == 2 ? job.n : groups;
        status = op__output(ctx, i, OP_I64, 1, &n);
        if (status != OP_OK) break;
        int64_t *dst = ctx->out[i]->data;
        if (i == 1)
            for (int64_t g = 0; g < groups; g++) dst[g] = first[2 * g];
        else if (i == 2)
            for (int64_t k = 0; k < job.n; k++) dst[k] = place[group_of[k]];
        else {
            for (int64_t g = 0; g < groups; g++) dst[g] = 0;
            for (int64_t k = 0; k < job.n; k++) dst[place[group_of[k]]]++;
        }
    }
    return status;
}

static const struct op_desc unique = {.name = "Unique",
                                      .domain = "",
                                      .since = 11,
                                      .in_min = 1,
                                      .in_max = 1,
                                      .out_min = 1,
                                      .out_max = 4,
                                      .flags = OP_F_DYNAMIC,
                                      .infer = unique_infer,
                                      .scratch = unique_scratch,
                                      .run = unique_run};
OP_REGISTER(unique);
