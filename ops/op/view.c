/* view.c: strides through chains of operators that only move elements (view.h). */
#include "ops/op/view.h"

#include <string.h>

#include "ops/graph.h"
#include "ops/op/move.h"

void op__view_of(const struct op_tensor *t, struct op__view *v) {
    int64_t strides[OP_RANK_MAX];
    int n = 0;
    op__strides(t->rank, t->dims, strides);
    v->at = 0;
    v->rank = t->rank;
    for (int d = 0; d < t->rank; d++) {
        v->first[d] = n;
        if (t->dims[d] == 1) continue;
        v->size[n] = t->dims[d];
        v->stride[n++] = strides[d];
    }
    v->first[t->rank] = n;
}

bool op__view_stride(const struct op__view *v, int d, int64_t *stride) {
    *stride = 0;
    for (int i = v->first[d + 1] - 1, last = i; i >= v->first[d]; i--) {
        if (i == last) *stride = v->stride[i];
        else if (v->stride[i] != v->stride[i + 1] * v->size[i + 1]) return false;
    }
    return true;
}

/* --- one operator ------------------------------------------------------------------------------ */

/* The factors, in their order, as the dimensions `dims`: each takes as many as it needs, the last one perhaps in part. */
static bool regroup(struct op__view *v, int rank, const int64_t *dims) {
    struct op__view r = {.at = v->at, .rank = rank};
    int from = 0, n = 0;
    const int n_from = v->first[v->rank];
    for (int d = 0; d < rank; d++) {
        r.first[d] = n;
        for (int64_t need = dims[d]; need > 1;) {
            if (from == n_from || n == OP__VIEW_FACTORS) return false;
            const int64_t have = v->size[from], take = have <= need ? have : need;
            if (need % take || have % take) return false;
            v->size[from] = have / take;
            r.size[n] = take;
            r.stride[n++] = v->stride[from] * v->size[from];
            from += v->size[from] == 1;
            need /= take;
        }
    }
    r.first[rank] = n;
    *v = r;
    return from == n_from;
}

static bool transpose(const struct op_ctx *ctx, struct op__view *v) {
    const struct op__view old = *v;
    int64_t n_perm;
    const int64_t *perm = op__attr_ints(ctx->node, "perm", &n_perm); /* infer has checked it */
    int n = 0;
    for (int d = 0; d < old.rank; d++) {
        const int p = perm ? op__axis(perm[d], old.rank) : old.rank - 1 - d;
        v->first[d] = n;
        for (int i = old.first[p]; i < old.first[p + 1]; i++, n++) v->size[n] = old.size[i], v->stride[n] = old.stride[i];
    }
    v->first[old.rank] = n;
    return true;
}

static bool expand(const struct op_tensor *to, struct op__view *v) {
    const struct op__view old = *v;
    const int lead = to->rank - old.rank;
    int n = 0;
    v->rank = to->rank;
    for (int d = 0; d < to->rank; d++) {
        const bool has = d >= lead && old.first[d - lead] < old.first[d - lead + 1];
        v->first[d] = n;
        for (int i = has ? old.first[d - lead] : 0; has && i < old.first[d - lead + 1] && n < OP__VIEW_FACTORS; i++, n++)
            v->size[n] = old.size[i], v->stride[n] = old.stride[i];
        if (has || to->dims[d] == 1) continue;
        if (n == OP__VIEW_FACTORS) return false;
        v->size[n] = to->dims[d];
        v->stride[n++] = 0;
    }
    v->first[to->rank] = n;
    return true;
}

/* Element `start` of dimension d, and n of them, `step` apart; n 0: the dimension goes. */
static bool cut(struct op__view *v, int d, int64_t start, int64_t step, int64_t n) {
    int64_t stride;
    if (!op__view_stride(v, d, &stride)) return false;
    const int from = v->first[d], to = v->first[d + 1], keep = n > 1, end = v->first[v->rank];
    if (keep && from == to) return false;
    v->at += start * stride;
    memmove(&v->size[from + keep], &v->size[to], (size_t)(end - to) * sizeof *v->size);
    memmove(&v->stride[from + keep], &v->stride[to], (size_t)(end - to) * sizeof *v->stride);
    if (keep) v->size[from] = n, v->stride[from] = stride * step;
    for (int i = d + 1; i <= v->rank; i++) v->first[i] -= to - from - keep;
    if (n > 0) return true;
    for (int i = d; i < v->rank; i++) v->first[i] = v->first[i + 1];
    v->rank--;
    return true;
}

static enum op_status slice(const struct op_ctx *ctx, const struct op_tensor *to, struct op__view *v, bool *fits) {
    int64_t start[OP_RANK_MAX], step[OP_RANK_MAX];
    const enum op_status st = op__slice_steps(ctx, start, step);
    const struct op_tensor *x = ctx->in[0];
    for (int d = 0; st == OP_OK && d < x->rank; d++)
        if (to->dims[d] != x->dims[d] || step[d] < 0) *fits = *fits && cut(v, d, start[d], step[d], to->dims[d]);
    return st;
}

/* Gather by one index. */
static enum op_status pick(const struct op_ctx *ctx, struct op__view *v, bool *fits) {
    const struct op_tensor *x = ctx->in[0], *index = ctx->in[1];
    const int axis = op__axis(op__attr_int(ctx->node, "axis", 0), x->rank);
    *fits = index->rank == 0;
    if (!*fits) return OP_OK;
    if (!op__known(index)) return OP_NEED_DATA;
    int64_t i = op__int_at(index, 0);
    if (i < 0) i += x->dims[axis];
    if (i < 0 || i >= x->dims[axis]) *fits = false; /* Gather's own run says what is wrong */
    else *fits = cut(v, axis, i, 1, 0);
    return OP_OK;
}

/* --- all of them ------------------------------------------------------------------------------- */

enum kind { REGROUP, TRANSPOSE, EXPAND, SLICE, SPLIT, GATHER };
static const struct {
    const char *name;
    enum kind kind;
} known[] = {
    {"Reshape", REGROUP}, {"Flatten", REGROUP}, {"Squeeze", REGROUP}, {"Unsqueeze", REGROUP}, {"Transpose", TRANSPOSE},
    {"Expand", EXPAND},   {"Slice", SLICE},     {"Split", SPLIT},     {"Gather", GATHER},
};

static int kind_of(const struct op_node *n) {
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (op__node_is(n, known[i].name)) return (int)i;
    return -1;
}

bool op__view_knows(const struct op_node *n) {
    return kind_of(n) >= 0;
}

enum op_status op__view_move(const struct op_ctx *ctx, const struct op_tensor *to, int64_t before, struct op__view *v, bool *fits) {
    const int k = kind_of(ctx->node);
    *fits = true;
    switch (known[k].kind) {
    case REGROUP: *fits = regroup(v, to->rank, to->dims); return OP_OK;
    case TRANSPOSE: *fits = transpose(ctx, v); return OP_OK;
    case EXPAND: *fits = expand(to, v); return OP_OK;
    case SLICE: return slice(ctx, to, v, fits);
    case GATHER: return pick(ctx, v, fits);
    case SPLIT: break;
    }
    const int axis = op__axis(op__attr_int(ctx->node, "axis", 0), ctx->in[0]->rank);
    if (to->dims[axis] != ctx->in[0]->dims[axis]) *fits = cut(v, axis, before, 1, to->dims[axis]);
    return OP_OK;
}
