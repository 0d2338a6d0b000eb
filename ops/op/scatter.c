/* ScatterElements (also under its old name Scatter) and ScatterND: a copy of the data in which some
 * elements are replaced by, or combined with, updates. Updates are applied in their order in
 * memory, by one thread, so that with duplicate indices the last one wins and sums always run in
 * the same order. */
#include "ops/op/move.h"

#include <math.h>
#include <string.h>

enum reduction { REPLACE, ADD, MUL, MIN, MAX };
static const char *const reduction_names[] = {"none", "add", "mul", "min", "max"};

static int read_reduction(const struct op_ctx *ctx) {
    const char *name = op__attr_string(ctx->node, "reduction", "none");
    for (int i = 0; i < 5; i++)
        if (strcmp(name, reduction_names[i]) == 0) return i;
    return -1;
}

/* dst[i] = dst[i] op src[i]. NaN wins over any number in min and max, as in numpy. */
typedef void combine_fn(void *dst, const void *src, int64_t n, enum reduction op);

#define LOAD_SELF(v) (v)
#define COMBINE(name, T, A, LOAD, STORE, IS_NAN)                                                   \
    static void combine_##name(void *dst, const void *src, int64_t n, enum reduction op) {         \
        T *d = dst;                                                                                \
        const T *s = src;                                                                          \
        for (int64_t i = 0; i < n; i++) {                                                          \
            A a = LOAD(d[i]), b = LOAD(s[i]), r = b;                                               \
            if (op == ADD)                                                                         \
                r = (A)(a + b);                                                                    \
            else if (op == MUL)                                                                    \
                r = (A)(a * b);                                                                    \
            else if (op == MIN)                                                                    \
                r = IS_NAN(a) || a < b ? a : b;                                                    \
            else if (op == MAX)                                                                    \
                r = IS_NAN(a) || a > b ? a : b;                                                    \
            d[i] = (T)STORE(r);                                                                    \
        }                                                                                          \
    }
#define NEVER(v) false
COMBINE(f32, float, float, LOAD_SELF, LOAD_SELF, isnan)
COMBINE(f64, double, double, LOAD_SELF, LOAD_SELF, isnan)
COMBINE(f16, uint16_t, float, op__f16_to_f32, op__f32_to_f16, isnan)
COMBINE(bf16, uint16_t, float, op__bf16_to_f32, op__f32_to_bf16, isnan)
COMBINE(i8, int8_t, int32_t, LOAD_SELF, LOAD_SELF, NEVER)
COMBINE(i16, int16_t, int32_t, LOAD_SELF, LOAD_SELF, NEVER)
COMBINE(u8, uint8_t, uint32_t, LOAD_SELF, LOAD_SELF, NEVER)
COMBINE(u16, uint16_t, uint32_t, LOAD_SELF, LOAD_SELF, NEVER)
COMBINE(u32, uint32_t, uint32_t, LOAD_SELF, LOAD_SELF, NEVER)
COMBINE(u64, uint64_t, uint64_t, LOAD_SELF, LOAD_SELF, NEVER)

/* Signed sums and products that wrap around, as in numpy. */
#define COMBINE_WRAP(name, T, U)                                                                   \
    static void combine_##name(void *dst, const void *src, int64_t n, enum reduction op) {         \
        T *d = dst;                                                                                \
        const T *s = src;                                                                          \
        for (int64_t i = 0; i < n; i++) {                                                          \
            if (op == ADD)                                                                         \
                d[i] = (T)((U)d[i] + (U)s[i]);                                                     \
            else if (op == MUL)                                                                    \
                d[i] = (T)((U)d[i] * (U)s[i]);                                                     \
            else if (op == MIN)                                                                    \
                d[i] = d[i] < s[i] ? d[i] : s[i];                                                  \
            else                                                                                   \
                d[i] = d[i] > s[i] ? d[i] : s[i];                                                  \
        }                                                                                          \
    }
COMBINE_WRAP(i32, int32_t, uint32_t)
COMBINE_WRAP(i64, int64_t, uint64_t)

static void combine_bool(void *dst, const void *src, int64_t n, enum reduction op) {
    uint8_t *d = dst;
    const uint8_t *s = src;
    for (int64_t i = 0; i < n; i++) d[i] = op == ADD || op == MAX ? d[i] || s[i] : d[i] && s[i];
}

static combine_fn *combine_of(enum op_type type) {
    switch (type) {
    case OP_F32:
        return combine_f32;
    case OP_F64:
        return combine_f64;
    case OP_F16:
        return combine_f16;
    case OP_BF16:
        return combine_bf16;
    case OP_I8:
        return combine_i8;
    case OP_I16:
        return combine_i16;
    case OP_I32:
        return combine_i32;
    case OP_I64:
        return combine_i64;
    case OP_U8:
        return combine_u8;
    case OP_U16:
        return combine_u16;
    case OP_U32:
        return combine_u32;
    case OP_U64:
        return combine_u64;
    case OP_BOOL:
        return combine_bool;
    default:
        return NULL;
    }
}

/* What both operators check: types and the reduction. */
static enum op_status check_common(const struct op_ctx *ctx) {
    enum op_status st = op__need_tensors(ctx, 3);
    char text[2][OP__TENSOR_TEXT];
    if (st != OP_OK) return st;
    const struct op_tensor *x = ctx->in[0], *idx = ctx->in[1], *u = ctx->in[2];
    int op = read_reduction(ctx);
    if (idx->dtype != OP_I64 && idx->dtype != OP_I32)
        return op__fail(ctx, OP_BAD_TYPE, "the indices are %s, i64 or i32 is expected",
                        op__text(idx, text[0]));
    if (u->dtype != x->dtype)
        return op__fail(ctx, OP_BAD_TYPE, "the updates are %s, the data is %s",
                        op__text(u, text[0]), op__text(x, text[1]));
    if (op < 0)
        return op__fail(ctx, OP_BAD_VALUE,
                        "reduction \"%.40s\" is none of none, add, mul, min, max",
                        op__attr_string(ctx->node, "reduction", ""));
    if (op != REPLACE && !combine_of(x->dtype))
        return op__fail(ctx, OP_UNSUPPORTED, "reduction \"%s\" is not defined for %s",
                        reduction_names[op], op_type_name(x->dtype));
    return OP_OK;
}

static enum op_status bad_index(const struct op_ctx *ctx, int64_t at, int64_t index, int axis,
                                int64_t dim) {
    return op__fail(
        ctx, OP_BAD_VALUE,
        "index %lld (element %lld of the indices) is out of range for axis %d of dimension %lld",
        (long long)index, (long long)at, axis, (long long)dim);
}

static void copy_data(const struct op_ctx *ctx) {
    int64_t bytes = op_tensor_bytes(ctx->in[0]);
    if (bytes > 0 && ctx->out[0]->data != ctx->in[0]->data)
        memcpy(ctx->out[0]->data, ctx->in[0]->data, (size_t)bytes);
}

/* --- ScatterElements: y[i0, …, indices[i0, i1, …], …] op= updates[i0, i1, …]
 * ----------------------- */

static enum op_status scatter_elements_infer(struct op_ctx *ctx) {
    enum op_status st = check_common(ctx);
    int axis;
    char text[3][OP__TENSOR_TEXT];
    if (st == OP_OK) st = op__axis_attr(ctx, "axis", 0, ctx->in[0]->rank, &axis);
    if (st != OP_OK) return st;
    const struct op_tensor *x = ctx->in[0], *idx = ctx->in[1], *u = ctx->in[2];
    bool fits = idx->rank == x->rank && u->rank == x->rank;
    for (int i = 0; fits && i < x->rank; i++)
        fits = u->dims[i] == idx->dims[i] && (i == axis || idx->dims[i] <= x->dims[i]);
    if (!fits)
        return op__fail(ctx, OP_BAD_SHAPE,
                        "the indices %s and the updates %s do not lie within the data %s (axis %d)",
                        op__text(idx, text[0]), op__text(u, text[1]), op__text(x, text[2]), axis);
    op__set_like(ctx, 0, 0);
    return OP_OK;
}

static enum op_status scatter_elements_run(struct op_ctx *ctx) {
    const struct op_tensor *x = ctx->in[0], *idx = ctx->in[1], *u = ctx->in[2];
    int axis = op__axis(op__attr_int(ctx->node, "axis", 0), x->rank), rank = x->rank;
    enum reduction op = (enum reduction)read_reduction(ctx);
    combine_fn *combine = combine_of(x->dtype);
    size_t elem = op_type_size(x->dtype);
    int64_t strides[OP_RANK_MAX], at[OP_RANK_MAX] = {0}, base = 0, n = op_tensor_count(idx),
                                  dim = x->dims[axis];
    op__strides(rank, x->dims, strides);
    copy_data(ctx);
    const char *src = u->data;
    for (int64_t j = 0; j < n; j++, src += elem) {
        int64_t k = op__int_at(idx, j);
        if (k < -dim || k >= dim) return bad_index(ctx, j, k, axis, dim);
        char *dst = (char *)ctx->out[0]->data +
                    (size_t)(base + (k < 0 ? k + dim : k) * strides[axis]) * elem;
        if (op == REPLACE)
            op__copy_elem(dst, src, elem);
        else
            combine(dst, src, 1, op);
        for (int d = rank - 1; d >= 0; d--) {
            int64_t step = d == axis ? 0 : strides[d];
            base += step;
            if (++at[d] < idx->dims[d]) break;
            base -= step * idx->dims[d];
            at[d] = 0;
        }
    }
    return OP_OK;
}

static const struct op_desc scatter_elements = {
    .name = "ScatterElements",
    .domain = "",
    .since = 11,
    .in_min = 3,
    .in_max = 3,
    .out_min = 1,
    .out_max = 1,
    .inplace = 1,
    .infer = scatter_elements_infer,
    .run = scatter_elements_run,
};
OP_REGISTER(scatter_elements);

static const struct op_desc scatter = {
    .name = "Scatter",
    .domain = "",
    .since = 9,
    .in_min = 3,
    .in_max = 3,
    .out_min = 1,
    .out_max = 1,
    .inplace = 1,
    .infer = scatter_elements_infer,
    .run = scatter_elements_run,
};
OP_REGISTER(scatter);

/* --- ScatterND: y[indices[j…, :], c…] op= updates[j…, c…]
 * ------------------------------------------ */

static enum op_status scatter_nd_infer(struct op_ctx *ctx) {
    enum op_status st = check_common(ctx);
    char text[3][OP__TENSOR_TEXT];
    if (st != OP_OK) return st;
    const struct op_tensor *x = ctx->in[0], *idx = ctx->in[1], *u = ctx->in[2];
    int64_t depth = idx->rank ? idx->dims[idx->rank - 1] : 0;
    bool fits = idx->rank > 0 && x->rank > 0 && depth >= 1 && depth <= x->rank &&
                u->rank == idx->rank - 1 + x->rank - depth;
    for (int i = 0; fits && i < u->rank; i++)
        fits =
            u->dims[i] == (i < idx->rank - 1 ? idx->dims[i] : x->dims[i - idx->rank + 1 + depth]);
    if (!fits)
        return op__fail(ctx, OP_BAD_SHAPE,
                        "the indices %s and the updates %s do not fit the data %s",
                        op__text(idx, text[0]), op__text(u, text[1]), op__text(x, text[2]));
    op__set_like(ctx, 0, 0);
    return OP_OK;
}

static enum op_status scatter_nd_run(struct op_ctx *ctx) {
    const struct op_tensor *x = ctx->in[0], *idx = ctx->in[1], *u = ctx->in[2];
    int depth = (int)idx->dims[idx->rank - 1];
    int64_t strides[OP_RANK_MAX], n = op__product(idx->dims, 0, idx->rank - 1),
                                  inner = op__product(x->dims, depth, x->rank);
    enum reduction op = (enum reduction)read_reduction(ctx);
    combine_fn *combine = combine_of(x->dtype);
    size_t elem = op_type_size(x->dtype), piece = (size_t)inner * elem;
    op__strides(x->rank, x->dims, strides);
    copy_data(ctx);
    for (int64_t i = 0; i < n; i++) {
        int64_t at = 0;
        for (int d = 0; d < depth; d++) {
            int64_t k = op__int_at(idx, i * depth + d), dim = x->dims[d];
            if (k < -dim || k >= dim) return bad_index(ctx, i * depth + d, k, d, dim);
            at += (k < 0 ? k + dim : k) * strides[d];
        }
        if (!piece) continue;
        char *dst = (char *)ctx->out[0]->data + (size_t)at * elem;
        const char *src = (const char *)u->data + (size_t)i * piece;
        if (op == REPLACE)
            memcpy(dst, src, piece);
        else
            combine(dst, src, inner, op);
    }
    return OP_OK;
}

static const struct op_desc scatter_nd = {
    .name = "ScatterND",
    .domain = "",
    .since = 11,
    .in_min = 3,
    .in_max = 3,
    .out_min = 1,
    .out_max = 1,
    .inplace = 1,
    .infer = scatter_nd_infer,
    .run = scatter_nd_run,
};
OP_REGISTER(scatter_nd);
