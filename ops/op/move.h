/* move.h: what the operators that only move data share: strided copies for every element size, and
 * the reading of small integer inputs (shapes, axes, pads) with checks. Internal to ops/op/. */
#ifndef QUERN_OP_MOVE_H
#define QUERN_OP_MOVE_H

#include "ops/op.h"

#define OP__MOVE_RANK (2 * OP_RANK_MAX) /* Tile splits each dimension in two */

/* dst[sum(i*dst)] = src[sum(i*src)] for each index i below dims. Strides are in elements; those of
 * src may be zero (broadcast) or negative (reversal). The places written must differ from each
 * other and from those read. */
struct op__move {
    int rank;
    int64_t dims[OP__MOVE_RANK], dst[OP__MOVE_RANK], src[OP__MOVE_RANK];
};

/* Adds a dimension inside those that are there. */
static inline void op__move_dim(struct op__move *m, int64_t n, int64_t dst, int64_t src) {
    m->dims[m->rank] = n;
    m->dst[m->rank] = dst;
    m->src[m->rank++] = src;
}

/* elem_bytes is 1, 2, 4, 8 or 16. ctx may be NULL: then one thread does it. */
void op__move_run(const struct op_ctx *ctx, const struct op__move *m, void *dst, const void *src,
                  size_t elem_bytes);

/* n copies of an element. */
void op__fill(void *dst, int64_t n, const void *value, size_t elem_bytes);

/* Row-major strides in elements. */
void op__strides(int rank, const int64_t *dims, int64_t *strides);

/* One element; elem_bytes as above. */
static inline void op__copy_elem(void *dst, const void *src, size_t elem_bytes) {
    switch (elem_bytes) {
    case 1:
        __builtin_memcpy(dst, src, 1);
        break;
    case 2:
        __builtin_memcpy(dst, src, 2);
        break;
    case 4:
        __builtin_memcpy(dst, src, 4);
        break;
    case 8:
        __builtin_memcpy(dst, src, 8);
        break;
    default:
        __builtin_memcpy(dst, src, 16);
        break;
    }
}

/* The value of an absent element: zero, or the empty string. */
void op__zero_elem(enum op_type type, void *dst);

/* The product of dims [from, to) of a tensor that has a count: it cannot overflow
 * (op_tensor_count). */
static inline int64_t op__product(const int64_t *dims, int from, int to) {
    int64_t n = 1;
    for (int i = from; i < to; i++) n *= dims[i];
    return n;
}

/* --- inputs --------------------------------------------------------------------------------------
 */

/* Whether the data can be read: it is there, or there is nothing to read. */
static inline bool op__known(const struct op_tensor *t) {
    return t->data || op_tensor_count(t) == 0;
}

/* Element i of an i32 or i64 tensor. */
static inline int64_t op__int_at(const struct op_tensor *t, int64_t i) {
    return t->dtype == OP_I64 ? ((const int64_t *)t->data)[i] : ((const int32_t *)t->data)[i];
}

static inline const struct op_tensor *op__in(const struct op_ctx *ctx, int i) {
    return i < ctx->n_in ? ctx->in[i] : NULL;
}

/* Inputs 0 .. n_required-1 are there, and all that are there are tensors of a known type. */
enum op_status op__need_tensors(const struct op_ctx *ctx, int n_required);

/* Reads input i, an i32 or i64 vector (or scalar) of at most `max` elements that the messages call
 * `what`. Absent: *n is -1. OP_NEED_DATA where its data is not known yet. */
enum op_status op__read_ints(const struct op_ctx *ctx, int i, const char *what, int max,
                             int64_t *dst, int *n);

/* Reads input i as distinct axes of a tensor of `rank` into [0, rank). Absent: *n is -1. */
enum op_status op__read_axes(const struct op_ctx *ctx, int i, int rank, int *axes, int *n);

/* Attribute `name` as an axis of a tensor of `rank`. */
enum op_status op__axis_attr(const struct op_ctx *ctx, const char *name, int64_t dflt, int rank,
                             int *axis);

/* The dims are not negative and neither their product nor its bytes overflow; the message says what
 * they are. */
enum op_status op__check_size(const struct op_ctx *ctx, enum op_type dtype, int rank,
                              const int64_t *dims);

/* Where a Slice (ctx is its) starts along each dimension of its data and how far its steps go. */
enum op_status op__slice_steps(const struct op_ctx *ctx, int64_t *start, int64_t *step);

/* "[2,3,-1]" into dst; returns dst. */
#define OP__DIMS_TEXT (24 * OP_RANK_MAX + 3)
char *op__dims_text(int rank, const int64_t *dims, char *dst);

/* "f32[2,3]" into dst; returns dst. */
#define OP__TENSOR_TEXT 160
static inline const char *op__text(const struct op_tensor *t, char *dst) {
    return op_tensor_describe(t, dst, OP__TENSOR_TEXT);
}

#endif
