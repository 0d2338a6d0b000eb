/* Pad: constant, reflect, edge and wrap; negative pads crop. Along each axis the input is first
 * cropped by the negative pads to [lo, lo + n), then output index o reads input index lo + fold(o -
 * before), where fold is the mode's rule:
 *
 *   reflect   … 2 1 | 0 1 2 3 | 2 1 0 1 …      period 2 (n - 1)
 *   edge      … 0 0 | 0 1 2 3 | 3 3 …
 *   wrap      … 2 3 | 0 1 2 3 | 0 1 …          period n
 *
 * Constant pads fill, then copy the inside. The others read through one index table an axis
 * (scratch). */
#include "ops/op/move.h"

#include <string.h>

enum mode { CONSTANT, REFLECT, EDGE, WRAP };

struct pad_plan { /* per axis of the data */
    enum mode mode;
    int64_t before[OP_RANK_MAX], after[OP_RANK_MAX];
    int64_t lo[OP_RANK_MAX], n[OP_RANK_MAX]; /* what the negative pads leave of the input */
    int64_t dims[OP_RANK_MAX];               /* of the output */
};

static int read_mode(const struct op_ctx *ctx) {
    static const char *const names[] = {"constant", "reflect", "edge", "wrap"};
    const char *name = op__attr_string(ctx->node, "mode", "constant");
    for (int i = 0; i < 4; i++)
        if (strcmp(name, names[i]) == 0) return i;
    return -1;
}

/* Positive pads of one axis end up in before and after, negative ones in lo and n. */
static enum op_status plan_axis(const struct op_ctx *ctx, struct pad_plan *p, int axis, int64_t dim,
                                int64_t before, int64_t after) {
    int64_t crop_before = before < 0 ? before : 0, crop_after = after < 0 ? after : 0, end;
    p->before[axis] = before > 0 ? before : 0;
    p->after[axis] = after > 0 ? after : 0;
    if (crop_before < -dim || crop_after < -dim || crop_before + crop_after < -dim)
        return op__fail(ctx, OP_BAD_SHAPE,
                        "pads %lld and %lld take more from axis %d than its %lld elements",
                        (long long)before, (long long)after, axis, (long long)dim);
    p->lo[axis] = -crop_before;
    p->n[axis] = dim + crop_before + crop_after;
    if (__builtin_add_overflow(p->n[axis], p->before[axis], &end) ||
        __builtin_add_overflow(end, p->after[axis], &p->dims[axis]))
        return op__fail(ctx, OP_LIMIT, "axis %d is to be padded by %lld and %lld: too large", axis,
                        (long long)before, (long long)after);
    if (p->mode != CONSTANT && p->n[axis] == 0 && p->dims[axis] > 0)
        return op__fail(ctx, OP_BAD_SHAPE, "axis %d has no element to pad with", axis);
    return OP_OK;
}

static enum op_status make_plan(const struct op_ctx *ctx, struct pad_plan *p) {
    const struct op_tensor *x = ctx->in[0];
    int64_t pads[2 * OP_RANK_MAX];
    int n, axes[OP_RANK_MAX], n_axes, mode = read_mode(ctx);
    enum op_status st = op__read_ints(ctx, 1, "pads", 2 * OP_RANK_MAX, pads, &n);
    if (st == OP_OK) st = op__read_axes(ctx, 3, x->rank, axes, &n_axes);
    if (st != OP_OK) return st;
    if (mode < 0)
        return op__fail(ctx, OP_BAD_VALUE,
                        "mode \"%.40s\" is none of constant, reflect, edge, wrap",
                        op__attr_string(ctx->node, "mode", ""));
    p->mode = (enum mode)mode;
    if (n_axes < 0)
        for (n_axes = 0; n_axes < x->rank; n_axes++) axes[n_axes] = n_axes;
    if (n != 2 * n_axes)
        return op__fail(ctx, OP_BAD_SHAPE,
                        "pads has %d values for %d axes: two an axis are expected", n, n_axes);
    for (int i = 0; i < x->rank; i++) st = plan_axis(ctx, p, i, x->dims[i], 0, 0);
    for (int i = 0; st == OP_OK && i < n_axes; i++)
        st = plan_axis(ctx, p, axes[i], x->dims[axes[i]], pads[i], pads[n_axes + i]);
    return st;
}

static enum op_status pad_infer(struct op_ctx *ctx) {
    enum op_status st = op__need_tensors(ctx, 2);
    struct pad_plan p;
    if (st == OP_OK) st = make_plan(ctx, &p);
    if (st != OP_OK) return st;
    const struct op_tensor *x = ctx->in[0], *value = op__in(ctx, 2);
    if (value && op_tensor_count(value) > 1)
        return op__fail(ctx, OP_BAD_SHAPE, "the pad value has %lld elements, one is expected",
                        (long long)op_tensor_count(value));
    if (value && value->dtype != x->dtype &&
        !(value->dtype == OP_F32 &&
          (x->dtype == OP_F16 || x->dtype == OP_BF16 || x->dtype == OP_F64)))
        return op__fail(ctx, OP_BAD_TYPE, "the pad value is %s, the data %s",
                        op_type_name(value->dtype), op_type_name(x->dtype));
    st = op__check_size(ctx, x->dtype, x->rank, p.dims);
    if (st == OP_OK) op__set(ctx, 0, x->dtype, x->rank, p.dims);
    return st;
}

/* The pad value as an element of the data's type. An f32 value for another float type comes from
 * the attribute of opsets below 11, which has that type always. */
static void read_value(const struct op_ctx *ctx, void *dst) {
    const struct op_tensor *value = op__in(ctx, 2);
    enum op_type type = ctx->in[0]->dtype;
    op__zero_elem(type, dst);
    if (!value || op_tensor_count(value) == 0) return;
    if (value->dtype == type) {
        op__copy_elem(dst, value->data, op_type_size(type));
        return;
    }
    float f = *(const float *)value->data;
    double d = f;
    uint16_t h = type == OP_F16 ? op__f32_to_f16(f) : op__f32_to_bf16(f);
    if (type == OP_F64)
        memcpy(dst, &d, sizeof d);
    else
        memcpy(dst, &h, sizeof h);
}

static void pad_constant(const struct op_ctx *ctx, const struct pad_plan *p) {
    const struct op_tensor *x = ctx->in[0];
    struct op_tensor *y = ctx->out[0];
    int64_t from[OP_RANK_MAX], to[OP_RANK_MAX], src = 0, dst = 0;
    _Alignas(16) char value[16];
    size_t elem = op_type_size(x->dtype);
    bool any = false;
    for (int i = 0; i < x->rank; i++) any |= p->dims[i] != p->n[i];
    read_value(ctx, value);
    if (any) op__fill(y->data, op_tensor_count(y), value, elem);
    if (op_tensor_count(x) == 0) return;
    op__strides(x->rank, x->dims, from);
    op__strides(y->rank, y->dims, to);
    struct op__move m = {0};
    for (int i = 0; i < x->rank; i++) {
        if (!p->n[i]) return;
        src += p->lo[i] * from[i];
        dst += p->before[i] * to[i];
        op__move_dim(&m, p->n[i], to[i], from[i]);
    }
    op__move_run(ctx, &m, (char *)y->data + (size_t)dst * elem,
                 (const char *)x->data + (size_t)src * elem, elem);
}

static int64_t fold(enum mode mode, int64_t i, int64_t n) {
    if (i >= 0 && i < n) return i;
    if (mode == EDGE || n == 1) return i < 0 ? 0 : n - 1;
    int64_t period = mode == WRAP ? n : 2 * (n - 1);
    i %= period;
    if (i < 0) i += period;
    return i < n ? i : period - i;
}

/* One output row: the middle is a run of the input, the rest goes through the table. */
static void pad_row(char *dst, const char *src, const int64_t *map, const struct pad_plan *p,
                    int axis, size_t elem) {
    int64_t before = p->before[axis], n = p->n[axis], out = p->dims[axis];
    for (int64_t j = 0; j < before; j++)
        op__copy_elem(dst + (size_t)j * elem, src + (size_t)map[j] * elem, elem);
    memcpy(dst + (size_t)before * elem, src + (size_t)p->lo[axis] * elem, (size_t)n * elem);
    for (int64_t j = before + n; j < out; j++)
        op__copy_elem(dst + (size_t)j * elem, src + (size_t)map[j] * elem, elem);
}

static void pad_mapped(const struct op_ctx *ctx, const struct pad_plan *p) {
    const struct op_tensor *x = ctx->in[0];
    int64_t *map[OP_RANK_MAX], *table = ctx->scratch, from[OP_RANK_MAX], at[OP_RANK_MAX] = {0};
    size_t elem = op_type_size(x->dtype);
    int last = x->rank - 1;
    if (x->rank == 0) {
        op__copy_elem(ctx->out[0]->data, x->data, elem);
        return;
    }
    op__strides(x->rank, x->dims, from);
    for (int i = 0; i < x->rank; i++) {
        map[i] = table;
        table += p->dims[i];
        for (int64_t o = 0; o < p->dims[i]; o++)
            map[i][o] = p->lo[i] + fold(p->mode, o - p->before[i], p->n[i]);
    }
    char *dst = ctx->out[0]->data;
    int64_t n_rows = op__product(p->dims, 0, last);
    for (int64_t r = 0; r < n_rows; r++, dst += (size_t)p->dims[last] * elem) {
        int64_t src = 0;
        for (int i = 0; i < last; i++) src += map[i][at[i]] * from[i];
        pad_row(dst, (const char *)x->data + (size_t)src * elem, map[last], p, last, elem);
        for (int i = last - 1; i >= 0 && ++at[i] == p->dims[i]; i--) at[i] = 0;
    }
}

static enum op_status pad_run(struct op_ctx *ctx) {
    struct pad_plan p;
    enum op_status st = make_plan(ctx, &p);
    if (st != OP_OK || op_tensor_count(ctx->out[0]) == 0) return st;
    if (p.mode == CONSTANT)
        pad_constant(ctx, &p);
    else
        pad_mapped(ctx, &p);
    return OP_OK;
}

static size_t pad_scratch(const struct op_ctx *ctx) {
    size_t n = 0;
    if (read_mode(ctx) == CONSTANT || op_tensor_count(ctx->out[0]) == 0) return 0;
    for (int i = 0; i < ctx->out[0]->rank; i++) n += (size_t)ctx->out[0]->dims[i];
    return n * sizeof(int64_t);
}

static enum op_status pad_upgrade(struct op_graph *g, struct op_node *n, int opset,
                                  struct op_error *err) {
    if (opset >= 11) return OP_OK;
    enum op_status st = op__attr_to_input(g, n, opset < 2 ? "paddings" : "pads", 1, err);
    return st == OP_OK ? op__attr_float_to_input(g, n, "value", 2, OP_F32, err) : st;
}

static const struct op_desc pad = {
    .name = "Pad",
    .domain = "",
    .since = 1,
    .in_min = 1,
    .in_max = 4,
    .out_min = 1,
    .out_max = 1,
    .upgrade = pad_upgrade,
    .infer = pad_infer,
    .scratch = pad_scratch,
    .run = pad_run,
};
OP_REGISTER(pad);

/* --- CenterCropPad (opset 18): crops or zero-pads axes around the middle to given sizes
 * ------------------ */

static enum op_status center_plan(const struct op_ctx *ctx, struct pad_plan *p) {
    const struct op_tensor *x = ctx->in[0];
    int64_t want[OP_RANK_MAX], n_axes;
    const int64_t *axes = op__attr_ints(ctx->node, "axes", &n_axes);
    int n;
    unsigned seen = 0;
    enum op_status st = op__read_ints(ctx, 1, "shape", OP_RANK_MAX, want, &n);
    if (st != OP_OK) return st;
    if (n != (axes ? n_axes : x->rank))
        return op__fail(ctx, OP_BAD_SHAPE, "shape has %d values for %lld axes", n,
                        (long long)(axes ? n_axes : x->rank));
    p->mode = CONSTANT;
    for (int i = 0; i < x->rank; i++) st = plan_axis(ctx, p, i, x->dims[i], 0, 0);
    for (int i = 0; st == OP_OK && i < n; i++) {
        int axis = axes ? op__axis(axes[i], x->rank) : i;
        if (axis < 0 || (seen >> axis & 1))
            return op__fail(ctx, OP_BAD_VALUE, "axis %lld is out of range or given twice",
                            (long long)axes[i]);
        if (want[i] < 0)
            return op__fail(ctx, OP_BAD_VALUE, "axis %d is to become %lld", axis,
                            (long long)want[i]);
        seen |= 1u << axis;
        int64_t more = want[i] - x->dims[axis],
                before = more / 2; /* the odd element goes to or comes from the end */
        st = plan_axis(ctx, p, axis, x->dims[axis], before, more - before);
    }
    return st;
}

static enum op_status center_infer(struct op_ctx *ctx) {
    enum op_status st = op__need_tensors(ctx, 2);
    struct pad_plan p;
    if (st == OP_OK) st = center_plan(ctx, &p);
    if (st == OP_OK) st = op__check_size(ctx, ctx->in[0]->dtype, ctx->in[0]->rank, p.dims);
    if (st == OP_OK) op__set(ctx, 0, ctx->in[0]->dtype, ctx->in[0]->rank, p.dims);
    return st;
}

static enum op_status center_run(struct op_ctx *ctx) {
    struct pad_plan p;
    struct op_ctx c = *ctx;
    enum op_status st = center_plan(ctx, &p);
    c.n_in = 1; /* the pad value is zero */
    if (st == OP_OK && op_tensor_count(ctx->out[0])) pad_constant(&c, &p);
    return st;
}

static const struct op_desc center_crop_pad = {
    .name = "CenterCropPad",
    .domain = "",
    .since = 18,
    .in_min = 2,
    .in_max = 2,
    .out_min = 1,
    .out_max = 1,
    .infer = center_infer,
    .run = center_run,
};
OP_REGISTER(center_crop_pad);
