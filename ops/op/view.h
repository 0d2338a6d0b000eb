/* view.h: where the elements of a tensor lie after a chain of Reshape, Transpose, Slice and their kind, without moving any.
 * Internal to ops/op/. */
#ifndef QUERN_OP_VIEW_H
#define QUERN_OP_VIEW_H

#include "ops/op.h"

enum { OP__VIEW_FACTORS = 32 };

/* A dimension is a product of factors, the outermost first, each with a stride: merged dimensions stay apart that way, and [T, N * H] of
 * a slice of [T, N, 3 * H * D] has a view though no single stride. A dimension of 1 has no factors. */
struct op__view {
    int64_t at; /* element 0 */
    int rank;
    int first[OP_RANK_MAX + 1]; /* factors of dimension d: [first[d], first[d + 1]) */
    int64_t size[OP__VIEW_FACTORS], stride[OP__VIEW_FACTORS];
};

void op__view_of(const struct op_tensor *t, struct op__view *v); /* t as it lies; it has elements */

/* Whether an operator only moves or repeats elements, so that op__view_move knows it. */
bool op__view_knows(const struct op_node *n);
/* The view after node n, one of those; from and to are its input 0 and the output that goes on, with their dims; `before`: elements of
 * the outputs of a Split in front of it along its axis. in: the node's inputs. False where strides cannot say it. OP_NEED_DATA if an
 * index that is needed is not known. */
enum op_status op__view_move(const struct op_ctx *ctx, const struct op_tensor *to, int64_t before, struct op__view *v, bool *fits);

/* The factors of dimension d as one: *stride of its elements, 0 for a dimension of 1; false if there is no such stride. */
bool op__view_stride(const struct op__view *v, int d, int64_t *stride);

#endif
