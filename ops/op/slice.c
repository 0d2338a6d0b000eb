/* Slice: numpy's x[start:end:step] on some axes. Starts and ends are clamped as numpy does it; a
 * negative step runs backwards (then an end below -dim means "up to and with the first element").
 */
#include "ops/op/move.h"

#include <string.h>

struct slice_plan { /* per axis of the data */
    int64_t start[OP_RANK_MAX], step[OP_RANK_MAX], dims[OP_RANK_MAX];
};

static int64_t clamp_index(int64_t v, int64_t dim, int64_t step) {
    if (v < 0) {
        v += dim;
        return v >= 0 ? v : step < 0 ? -1 : 0;
    }
    return v < dim ? v : step < 0 ? dim - 1 : dim;
}

static void plan_axis(struct slice_plan *p, int axis, int64_t dim, int64_t start, int64_t end,
                      int64_t step) {
    if (step == INT64_MIN) step = -INT64_MAX; /* beyond any dimension all the same */
    start = clamp_index(start, dim, step);
    end = clamp_index(end, dim, step);
    int64_t n = 0;
    if (step > 0 && start < end) n = (end - start - 1) / step + 1;
    if (step < 0 && end < start) n = (start - end - 1) / -step + 1;
    p->start[axis] = start;
    p->step[axis] = n > 1 ? step : 1;
    p->dims[axis] = n;
}

static enum op_status make_plan(const struct op_ctx *ctx, struct slice_plan *p) {
    const struct op_tensor *x = ctx->in[0];
    int64_t starts[OP_RANK_MAX], ends[OP_RANK_MAX], steps[OP_RANK_MAX];
    int axes[OP_RANK_MAX], n, n_ends, n_axes, n_steps;
    enum op_status st = op__read_ints(ctx, 1, "starts", OP_RANK_MAX, starts, &n);
    if (st == OP_OK) st = op__read_ints(ctx, 2, "ends", OP_RANK_MAX, ends, &n_ends);
    if (st == OP_OK) st = op__read_axes(ctx, 3, x->rank, axes, &n_axes);
    if (st == OP_OK) st = op__read_ints(ctx, 4, "steps", OP_RANK_MAX, steps, &n_steps);
    if (st != OP_OK) return st;
    if (n_ends != n || (n_axes >= 0 && n_axes != n) || (n_steps >= 0 && n_steps != n) ||
        n > x->rank)
        return op__fail(ctx, OP_BAD_SHAPE,
                        "starts, ends, axes and steps have %d, %d, %d and %d values (-1: absent) "
                        "for a tensor of rank %d",
                        n, n_ends, n_axes, n_steps, x->rank);
    for (int i = 0; i < x->rank; i++) plan_axis(p, i, x->dims[i], 0, x->dims[i], 1);
    for (int i = 0; i < n; i++) {
        int axis = n_axes < 0 ? i : axes[i];
        if (n_steps >= 0 && steps[i] == 0)
            return op__fail(ctx, OP_BAD_VALUE, "the step of axis %d is 0", axis);
        plan_axis(p, axis, x->dims[axis], starts[i], ends[i], n_steps < 0 ? 1 : steps[i]);
    }
    return OP_OK;
}

enum op_status op__slice_steps(const struct op_ctx *ctx, int64_t *start, int64_t *step) {
    struct slice_plan p;
    const enum op_status st = make_plan(ctx, &p);
    for (int i = 0; st == OP_OK && i < ctx->in[0]->rank; i++) start[i] = p.start[i], step[i] = p.step[i];
    return st;
}

static enum op_status slice_infer(struct op_ctx *ctx) {
    struct slice_plan p;
    enum op_status st = op__need_tensors(ctx, 3);
    if (st == OP_OK) st = make_plan(ctx, &p);
    if (st == OP_OK) op__set(ctx, 0, ctx->in[0]->dtype, ctx->in[0]->rank, p.dims);
    return st;
}

static enum op_status slice_run(struct op_ctx *ctx) {
    const struct op_tensor *x = ctx->in[0];
    struct op_tensor *y = ctx->out[0];
    struct slice_plan p;
    enum op_status st = make_plan(ctx, &p);
    if (st != OP_OK || op_tensor_count(y) == 0) return st;
    int64_t from[OP_RANK_MAX], to[OP_RANK_MAX], at = 0;
    op__strides(x->rank, x->dims, from);
    op__strides(y->rank, y->dims, to);
    struct op__move m = {0};
    for (int i = 0; i < x->rank; i++) {
        at += p.start[i] * from[i];
        op__move_dim(&m, p.dims[i], to[i], from[i] * p.step[i]);
    }
    size_t elem = op_type_size(x->dtype);
    op__move_run(ctx, &m, y->data, (const char *)x->data + (size_t)at * elem, elem);
    return OP_OK;
}

/* All of it, forwards. */
static bool slice_is_view(const struct op_ctx *ctx) {
    const struct op_tensor *x = ctx->in[0];
    struct slice_plan p;
    if (make_plan(ctx, &p) != OP_OK) return false;
    for (int i = 0; i < x->rank; i++)
        if (p.dims[i] != x->dims[i] || p.step[i] < 0) return false;
    return true;
}

static enum op_status slice_upgrade(struct op_graph *g, struct op_node *n, int opset,
                                    struct op_error *err) {
    if (opset >= 10) return OP_OK;
    enum op_status st = op__attr_to_input(g, n, "starts", 1, err);
    if (st == OP_OK) st = op__attr_to_input(g, n, "ends", 2, err);
    return st == OP_OK ? op__attr_to_input(g, n, "axes", 3, err) : st;
}

static const struct op_desc slice = {
    .name = "Slice",
    .domain = "",
    .since = 1,
    .in_min = 1,
    .in_max = 5,
    .out_min = 1,
    .out_max = 1,
    .upgrade = slice_upgrade,
    .infer = slice_infer,
    .is_view = slice_is_view,
    .run = slice_run,
};
OP_REGISTER(slice);
