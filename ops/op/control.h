/* control.h: what Loop and Scan share: stacking the values of iterations. Internal to ops/op/. */
#ifndef QUERN_OP_CONTROL_H
#define QUERN_OP_CONTROL_H

#include "ops/op/move.h"

/* Equal tensors, one an iteration, that become one tensor with a new axis. Zero it to begin with.
 * Memory grows with what is pushed: chunk k holds 2^k items, so that nothing is moved and at most
 * half is unused, whatever trip count a file promises. */
#define OP__STACK_CHUNKS 48
struct op__stack {
    struct op_tensor item; /* type and shape of the items, dtype OP_UNDEFINED before the first */
    int64_t n;
    char *chunks[OP__STACK_CHUNKS];
};

/* Appends a copy of t, which must be like those before. `what` names it in messages. */
enum op_status op__stack_push(const struct op_ctx *ctx, struct op__stack *s,
                              const struct op_tensor *t, const char *what);
/* Appends n items of zeros; there must be an item already. */
enum op_status op__stack_push_zeros(const struct op_ctx *ctx, struct op__stack *s, int64_t n);
/* Gives output i the items along `axis` (of the output's rank), the last one first if reverse is
 * set. */
enum op_status op__stack_output(const struct op_ctx *ctx, int i, const struct op__stack *s,
                                int64_t axis, bool reverse);
/* Before the first iteration: the item's type and shape as the subgraph's output j declares them,
 * unknown dims as 0. */
enum op_status op__stack_declare(const struct op_ctx *ctx, struct op__stack *s,
                                 const struct op_graph *g, int j, const char *what);

#endif
