/* move_grad.c: gradients of operators that only move elements.
 *
 * Views and Transpose go back as themselves; Concat is split by its inputs' sizes (SplitLike), Split is concatenated; Gather adds rows
 * up in the order of its indices (GatherGrad); what Expand repeats is summed (SumTo). All others are done by one device: the forward
 * operator is run once more on Iota(x), the positions of x's elements, which tells for each element of y where it came from;
 * ScatterSum(dy, positions, x) then adds each element of dy to its origin, in the order of y. A position of -1 came from nowhere (the
 * value that Pad fills with). So there is no second copy of the rules of Slice, Pad, Tile, GatherND, DepthToSpace and their like.
 *
 *   Iota(x)                       i64 of x's shape: 0, 1, 2, …
 *   ScatterSum(dy, positions, x)  of x's shape; positions i64 of dy's shape
 *   GatherGrad(dy, indices, x)    axis; of x's shape
 *   SplitLike(dy, x0, x1, …)      axis; one output for each x, of its shape */
#include "ops/op/move.h"

#include <string.h>

#include "ops/grad.h"
#include "ops/kern/kern.h"

static enum op_status need_float(const struct op_ctx *ctx, const struct op_tensor *t, const char *what) {
    return t->dtype == OP_F32 || t->dtype == OP_F64 ? OP_OK : op__fail(ctx, OP_BAD_TYPE, "%s is %s, expected f32 or f64", what, op_type_name(t->dtype));
}

/* --- Iota, ScatterSum ------------------------------------------------------------------------------- */

static enum op_status iota_infer(struct op_ctx *ctx) {
    enum op_status st = op__need_tensors(ctx, 1);
    if (st == OP_OK) st = op__check_size(ctx, OP_I64, ctx->in[0]->rank, ctx->in[0]->dims);
    if (st == OP_OK) op__set(ctx, 0, OP_I64, ctx->in[0]->rank, ctx->in[0]->dims);
    return st;
}
static enum op_status iota_run(struct op_ctx *ctx) {
    int64_t n = op_tensor_count(ctx->out[0]);
    for (int64_t i = 0; i < n; i++) ((int64_t *)ctx->out[0]->data)[i] = i;
    return OP_OK;
}
static const struct op_desc iota_desc = {.name = "Iota", .domain = "quern", .since = 1, .in_min = 1, .in_max = 1, .out_min = 1, .out_max = 1,
                                         .flags = OP_F_SHAPE, .infer = iota_infer, .run = iota_run};
OP_REGISTER(iota_desc);

static enum op_status scatter_sum_infer(struct op_ctx *ctx) {
    enum op_status st = op__need_tensors(ctx, 3);
    if (st != OP_OK) return st;
    const struct op_tensor *dy = ctx->in[0], *at = ctx->in[1], *x = ctx->in[2];
    if (at->dtype != OP_I64) return op__fail(ctx, OP_BAD_TYPE, "positions are %s, expected i64", op_type_name(at->dtype));
    if (dy->dtype != x->dtype) return op__fail(ctx, OP_BAD_TYPE, "dy is %s and x %s", op_type_name(dy->dtype), op_type_name(x->dtype));
    if (op_tensor_count(dy) != op_tensor_count(at)) return op__fail(ctx, OP_BAD_SHAPE, "dy and positions differ in size");
    op__set_like(ctx, 0, 2);
    return need_float(ctx, dy, "dy");
}

static enum op_status scatter_sum_run(struct op_ctx *ctx) {
    const struct op_tensor *dy = ctx->in[0];
    const int64_t *at = ctx->in[1]->data, n = op_tensor_count(dy), n_x = op_tensor_count(ctx->out[0]);
    void *dx = ctx->out[0]->data;
    if (n_x) memset(dx, 0, (size_t)op_tensor_bytes(ctx->out[0]));
    for (int64_t i = 0; i < n; i++) {
        if (at[i] == -1) continue;
        if (at[i] < 0 || at[i] >= n_x) return op__fail(ctx, OP_BAD_VALUE, "position %lld is beyond %lld elements", (long long)at[i], (long long)n_x);
        if (dy->dtype == OP_F32) ((float *)dx)[at[i]] += ((const float *)dy->data)[i];
        else ((double *)dx)[at[i]] += ((const double *)dy->data)[i];
    }
    return OP_OK;
}
static const struct op_desc scatter_sum = {.name = "ScatterSum", .domain = "quern", .since = 1, .in_min = 3, .in_max = 3, .out_min = 1, .out_max = 1,
                                           .infer = scatter_sum_infer, .run = scatter_sum_run};
OP_REGISTER(scatter_sum);

/* --- GatherGrad ------------------------------------------------------------------------------------- */

static enum op_status gather_grad_infer(struct op_ctx *ctx) {
    enum op_status st = op__need_tensors(ctx, 3);
    int axis;
    int64_t n;
    if (st != OP_OK) return st;
    const struct op_tensor *dy = ctx->in[0], *idx = ctx->in[1], *x = ctx->in[2];
    if (idx->dtype != OP_I64 && idx->dtype != OP_I32) return op__fail(ctx, OP_BAD_TYPE, "the indices are %s, expected i64 or i32", op_type_name(idx->dtype));
    if (dy->dtype != x->dtype) return op__fail(ctx, OP_BAD_TYPE, "dy is %s and x %s", op_type_name(dy->dtype), op_type_name(x->dtype));
    st = op__axis_attr(ctx, "axis", 0, x->rank, &axis);
    if (st != OP_OK) return st;
    if (!op__mul(op__product(x->dims, 0, axis), op_tensor_count(idx), &n) || !op__mul(n, op__product(x->dims, axis + 1, x->rank), &n) ||
        n != op_tensor_count(dy))
        return op__fail(ctx, OP_BAD_SHAPE, "dy does not fit the indices and x");
    op__set_like(ctx, 0, 2);
    return need_float(ctx, dy, "dy");
}

static enum op_status gather_grad_run(struct op_ctx *ctx) {
    const struct op_tensor *dy = ctx->in[0], *idx = ctx->in[1];
    struct op_tensor *dx = ctx->out[0];
    const int axis = op__axis(op__attr_int(ctx->node, "axis", 0), dx->rank);
    const int64_t n_outer = op__product(dx->dims, 0, axis), dim = dx->dims[axis], piece = op__product(dx->dims, axis + 1, dx->rank), n = op_tensor_count(idx);
    const struct k_vmath *math = op__kern(ctx)->math;
    if (op_tensor_count(dx)) memset(dx->data, 0, (size_t)op_tensor_bytes(dx));
    for (int64_t j = 0; j < n; j++) {
        int64_t k = op__int_at(idx, j);
        if (k < -dim || k >= dim) return op__fail(ctx, OP_BAD_VALUE, "index %lld is out of range for dimension %lld", (long long)k, (long long)dim);
    }
    if (op_tensor_count(dy) == 0) return OP_OK;
    for (int64_t o = 0; o < n_outer; o++)
        for (int64_t j = 0; j < n; j++) {
            int64_t k = op__int_at(idx, j), to = (o * dim + (k < 0 ? k + dim : k)) * piece, from = (o * n + j) * piece;
            if (dx->dtype == OP_F32) {
                float *y = (float *)dx->data + to;
                math->binary[K_ADD](piece, y, false, (const float *)dy->data + from, false, y);
            } else
                for (int64_t i = 0; i < piece; i++) ((double *)dx->data)[to + i] += ((const double *)dy->data)[from + i];
        }
    return OP_OK;
}
static const struct op_desc gather_grad_desc = {.name = "GatherGrad", .domain = "quern", .since = 1, .in_min = 3, .in_max = 3, .out_min = 1, .out_max = 1,
                                                .infer = gather_grad_infer, .run = gather_grad_run};
OP_REGISTER(gather_grad_desc);

/* --- SplitLike -------------------------------------------------------------------------------------- */

static enum op_status split_like_infer(struct op_ctx *ctx) {
    int axis;
    enum op_status st = op__need_tensors(ctx, ctx->n_in);
    const struct op_tensor *dy = ctx->in[0];
    if (st == OP_OK) st = op__axis_attr(ctx, "axis", 0, dy->rank, &axis);
    if (st != OP_OK) return st;
    if (ctx->n_out != ctx->n_in - 1) return op__fail(ctx, OP_BAD_MODEL, "%d outputs for %d pieces", ctx->n_out, ctx->n_in - 1);
    int64_t left = dy->dims[axis];
    for (int i = 0; i < ctx->n_out; i++) {
        const struct op_tensor *x = ctx->in[i + 1];
        bool fits = x->rank == dy->rank;
        for (int d = 0; d < dy->rank && fits; d++) fits = d == axis || x->dims[d] == dy->dims[d];
        if (!fits || x->dims[axis] > left) return op__fail(ctx, OP_BAD_SHAPE, "piece %d does not fit what is to be split", i);
        left -= x->dims[axis];
        op__set(ctx, i, dy->dtype, x->rank, x->dims);
    }
    return left == 0 ? OP_OK : op__fail(ctx, OP_BAD_SHAPE, "the pieces leave %lld of axis %d", (long long)left, axis);
}

static enum op_status split_like_run(struct op_ctx *ctx) {
    const struct op_tensor *dy = ctx->in[0];
    const int axis = op__axis(op__attr_int(ctx->node, "axis", 0), dy->rank);
    const int64_t n_outer = op__product(dy->dims, 0, axis);
    const size_t inner = (size_t)op__product(dy->dims, axis + 1, dy->rank) * op_type_size(dy->dtype), row = (size_t)dy->dims[axis] * inner;
    size_t at = 0;
    for (int i = 0; i < ctx->n_out; i++) {
        const size_t piece = (size_t)ctx->in[i + 1]->dims[axis] * inner;
        for (int64_t o = 0; o < n_outer && ctx->out[i] && piece; o++)
            memcpy((char *)ctx->out[i]->data + (size_t)o * piece, (const char *)dy->data + (size_t)o * row + at, piece);
        at += piece;
    }
    return OP_OK;
}
static const struct op_desc split_like = {.name = "SplitLike", .domain = "quern", .since = 1, .in_min = 2, .in_max = -1, .out_min = 1, .out_max = -1,
                                          .infer = split_like_infer, .run = split_like_run};
OP_REGISTER(split_like);

/* --- emitting --------------------------------------------------------------------------------------- */

static enum op_status view_grad(struct op_grad *g) { /* Reshape and its like */
    op__grad_set(g, 0, op__reshape_like(g, g->dy[0], g->in[0]));
    return OP_OK;
}

static enum op_status expand_grad(struct op_grad *g) {
    op__grad_set(g, 0, op__sum_to(g, g->dy[0], g->in[0]));
    return OP_OK;
}

static enum op_status transpose_grad(struct op_grad *g) {
    int64_t n, back[OP_RANK_MAX];
    const int64_t *perm = op__attr_ints(g->node, "perm", &n);
    int dx;
    struct op_node *t = op__emit(g, "", "Transpose", 1, g->dy, 1, &dx);
    if (perm && t && n <= OP_RANK_MAX) {
        for (int64_t i = 0; i < n; i++) {
            int at = op__axis(perm[i], (int)n);
            if (at < 0) return op__grad_refuse(g, "for this permutation");
            back[at] = i;
        }
        if (op__attr_set_ints(g->graph, t, "perm", back, n) != OP_OK) g->failed = true;
    }
    op__grad_set(g, 0, dx);
    return OP_OK;
}

#define PARTS_MAX 1024

static enum op_status concat_grad(struct op_grad *g) {
    int in[PARTS_MAX + 1], out[PARTS_MAX];
    if (g->n_in > PARTS_MAX) return op__grad_refuse(g, "for so many inputs");
    in[0] = g->dy[0];
    for (int i = 0; i < g->n_in; i++) in[i + 1] = g->in[i];
    op__attr_copy(g, op__emit(g, "quern", "SplitLike", g->n_in + 1, in, g->n_in, out), "axis");
    for (int i = 0; i < g->n_in; i++) op__grad_set(g, i, out[i]);
    return OP_OK;
}

static enum op_status split_grad(struct op_grad *g) { /* outputs that the loss does not depend on count as zeros */
    int in[PARTS_MAX], dx, some = -1;
    if (g->n_out > PARTS_MAX) return op__grad_refuse(g, "for so many outputs");
    for (int i = 0; i < g->n_out; i++)
        if (g->dy[i] >= 0) some = g->dy[i];
    for (int i = 0; i < g->n_out; i++) {
        in[i] = g->dy[i];
        if (in[i] >= 0) continue;
        if (g->node->out[i] < 0) g->node->out[i] = op__graph_value(g->graph, NULL);
        if (g->node->out[i] < 0) g->failed = true;
        in[i] = op__emit_quern(g, "ExpandLike", 2, (int[]){op__emit_scalar(g, some, 0), g->node->out[i]});
    }
    struct op_node *n = op__emit(g, "", "Concat", g->n_out, in, 1, &dx);
    if (n && op__attr_set_int(g->graph, n, "axis", op__attr_int(g->node, "axis", 0)) != OP_OK) g->failed = true;
    op__grad_set(g, 0, dx);
    return OP_OK;
}

static enum op_status gather_grad(struct op_grad *g) {
    int in[3] = {g->dy[0], g->in[1], g->in[0]}, dx;
    op__attr_copy(g, op__emit(g, "quern", "GatherGrad", 3, in, 1, &dx), "axis");
    op__grad_set(g, 0, dx);
    return OP_OK;
}

/* The forward node on the positions of its input. */
static enum op_status moved_grad(struct op_grad *g) {
    int in[8], positions;
    if (g->n_in > 8 || op__grad_wants(g, 1)) return op__grad_refuse(g, "for this input");
    memcpy(in, g->in, (size_t)g->n_in * sizeof *in);
    in[0] = op__emit_quern(g, "Iota", 1, g->in);
    int n_in = g->n_in;
    if (op__node_is(g->node, "Pad")) { /* filled with -1 in place of the value */
        if (op__grad_wants(g, 2)) return op__grad_refuse(g, "for the value that it fills with");
        void *data;
        in[2] = op__graph_const(g->graph, NULL, OP_I64, 0, NULL, &data);
        if (in[2] < 0) g->failed = true;
        else *(int64_t *)data = -1;
        n_in = n_in < 3 ? 3 : n_in;
    }
    const bool from_one = op__node_is(g->node, "CenterCropPad"); /* fills with 0, which then means nowhere */
    const int one = from_one ? op__emit_ints(g, (const int64_t[]){1}, 1) : -1;
    if (from_one) in[0] = op__emit2(g, "Add", in[0], one);
    struct op_node *n = op__emit(g, g->node->domain, g->node->op_type, n_in, in, 1, &positions);
    if (n) n->desc = g->node->desc; /* the form of this opset */
    op__attrs_copy(g, n);
    if (from_one) positions = op__emit2(g, "Sub", positions, one);
    op__grad_set(g, 0, op__emit_quern(g, "ScatterSum", 3, (int[]){g->dy[0], positions, g->in[0]}));
    return OP_OK;
}

static enum op_status trilu_grad(struct op_grad *g) { /* what was cut off has no gradient */
    int in[2] = {g->dy[0], g->n_in > 1 ? g->in[1] : -1}, dx;
    op__attrs_copy(g, op__emit(g, "", "Trilu", g->n_in, in, 1, &dx));
    op__grad_set(g, 0, dx);
    return OP_OK;
}

/* An output of the forward node that the backward pass needs although nobody asked for it. */
static int need_output(struct op_grad *g, int i) {
    struct op_node *n = (struct op_node *)(uintptr_t)g->node;
    if (i >= n->n_out) {
        int *out = op__arena_array(g->graph->arena, (size_t)i + 1, sizeof *out);
        if (!out) return g->failed = true, -1;
        for (int k = 0; k <= i; k++) out[k] = k < n->n_out ? n->out[k] : -1;
        n->out = out;
        n->n_out = i + 1;
    }
    if (n->out[i] < 0) n->out[i] = op__graph_value(g->graph, NULL);
    g->failed |= n->out[i] < 0;
    return n->out[i];
}

static enum op_status topk_grad(struct op_grad *g) { /* values only: indices are no floats */
    int in[2] = {op__emit_quern(g, "Iota", 1, g->in), need_output(g, 1)}, positions;
    if (g->dy[0] < 0) return OP_OK;
    struct op_node *n = op__emit(g, "", "GatherElements", 2, in, 1, &positions);
    if (n && op__attr_set_int(g->graph, n, "axis", op__attr_int(g->node, "axis", -1)) != OP_OK) g->failed = true;
    op__grad_set(g, 0, op__emit_quern(g, "ScatterSum", 3, (int[]){g->dy[0], positions, g->in[0]}));
    return OP_OK;
}

static enum op_status cumsum_grad(struct op_grad *g) { /* from the other end */
    int in[2] = {g->dy[0], g->in[1]}, dx;
    struct op_node *n = op__emit(g, "", "CumSum", 2, in, 1, &dx);
    op__attr_copy(g, n, "exclusive");
    if (n && op__attr_set_int(g->graph, n, "reverse", !op__attr_int(g->node, "reverse", 0)) != OP_OK) g->failed = true;
    op__grad_set(g, 0, dx);
    return OP_OK;
}

/* ScatterElements, ScatterND that overwrite: dy without what was overwritten, and dy at the places. Of places that were written twice
 * every update gets the gradient, as ONNX leaves the order of writing open. */
static enum op_status scatter_grad(struct op_grad *g) {
    const bool nd = strcmp(g->node->op_type, "ScatterND") == 0;
    int dx;
    if (strcmp(op__attr_string(g->node, "reduction", "none"), "none")) return op__grad_refuse(g, "with a reduction");
    if (op__grad_wants(g, 0)) {
        int zeros = op__emit_quern(g, "ExpandLike", 2, (int[]){op__emit_scalar(g, g->dy[0], 0), g->in[2]}), in[3] = {g->dy[0], g->in[1], zeros};
        op__attr_copy(g, op__emit(g, "", nd ? "ScatterND" : "ScatterElements", 3, in, 1, &dx), "axis");
        op__grad_set(g, 0, dx);
    }
    if (op__grad_wants(g, 2)) {
        int in[2] = {g->dy[0], g->in[1]};
        op__attr_copy(g, op__emit(g, "", nd ? "GatherND" : "GatherElements", 2, in, 1, &dx), "axis");
        op__grad_set(g, 2, dx);
    }
    return OP_OK;
}

static enum op_status resize_grad(struct op_grad *g) {
    if (strcmp(op__attr_string(g->node, "mode", "nearest"), "nearest") || !strcmp(op__attr_string(g->node, "coordinate_transformation_mode", ""), "tf_crop_and_resize"))
        return op__grad_refuse(g, "but for mode \"nearest\"");
    return moved_grad(g);
}

static const struct op_grad_row move_grads[] = {
    {"", "Reshape", view_grad}, {"", "Flatten", view_grad}, {"", "Squeeze", view_grad}, {"", "Unsqueeze", view_grad}, {"", "Expand", expand_grad},
    {"", "Transpose", transpose_grad}, {"", "Concat", concat_grad}, {"", "Split", split_grad}, {"", "Gather", gather_grad}, {"", "Slice", moved_grad},
    {"", "Pad", moved_grad}, {"", "Tile", moved_grad}, {"", "GatherElements", moved_grad}, {"", "GatherND", moved_grad}, {"", "DepthToSpace", moved_grad},
    {"", "SpaceToDepth", moved_grad}, {"", "ReverseSequence", moved_grad}, {"", "Compress", moved_grad}, {"", "CenterCropPad", moved_grad},
    {"", "Trilu", trilu_grad}, {"", "TopK", topk_grad}, {"", "CumSum", cumsum_grad}, {"", "ScatterElements", scatter_grad}, {"", "ScatterND", scatter_grad},
    {"", "Resize", resize_grad},
};
OP_GRADS_REGISTER(move_grads);
