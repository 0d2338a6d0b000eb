/* nn.c: checks and window geometry that the neural-network operators share. */
#include "ops/op/nn.h"

#include <string.h>

/* --- checks ------------------------------------------------------------------------------------ */

enum op_status op__nn_float(const struct op_ctx *ctx, int i, const char *name) {
    const struct op_tensor *t = nn_in(ctx, i);
    if (!t) return op__fail(ctx, OP_BAD_MODEL, "input %d (%s) is absent", i, name);
    if (t->kind != OP_KIND_TENSOR) return op__fail(ctx, OP_BAD_TYPE, "input %d (%s) is no tensor", i, name);
    if (!nn_is_float(t->dtype))
        return op__fail(ctx, OP_BAD_TYPE, "input %d (%s) is %s, expected f32, f64, f16 or bf16", i, name, op_type_name(t->dtype));
    return OP_OK;
}

enum op_status op__nn_like(const struct op_ctx *ctx, int i, const char *name, enum op_type type, int rank) {
    const struct op_tensor *t = nn_in(ctx, i);
    if (!t) return op__fail(ctx, OP_BAD_MODEL, "input %d (%s) is absent", i, name);
    if (t->kind != OP_KIND_TENSOR || t->dtype != type)
        return op__fail(ctx, OP_BAD_TYPE, "input %d (%s) is %s, expected %s", i, name, op_type_name(t->dtype), op_type_name(type));
    if (rank >= 0 && t->rank != rank) return op__fail(ctx, OP_BAD_SHAPE, "input %d (%s) has rank %d, expected %d", i, name, t->rank, rank);
    return OP_OK;
}

enum op_status op__nn_shape(const struct op_ctx *ctx, int i, const char *name, int rank, const int64_t *dims) {
    const struct op_tensor *t = nn_in(ctx, i);
    if (!t) return op__fail(ctx, OP_BAD_MODEL, "input %d (%s) is absent", i, name);
    if (t->rank == rank && (rank == 0 || !memcmp(t->dims, dims, (size_t)rank * sizeof *dims))) return OP_OK;
    struct op_tensor want = {.dtype = t->dtype, .rank = rank};
    if (rank) memcpy(want.dims, dims, (size_t)rank * sizeof *dims);
    char found[128], expected[128];
    return op__fail(ctx, OP_BAD_SHAPE, "input %d (%s) is %s, expected %s", i, name, op_tensor_describe(t, found, sizeof found),
                    op_tensor_describe(&want, expected, sizeof expected));
}

enum op_status op__nn_scalar_int(const struct op_ctx *ctx, int i, const char *name, int64_t *dst) {
    const struct op_tensor *t = nn_in(ctx, i);
    if (!t) return op__fail(ctx, OP_BAD_MODEL, "input %d (%s) is absent", i, name);
    if (t->kind != OP_KIND_TENSOR || (t->dtype != OP_I64 && t->dtype != OP_I32))
        return op__fail(ctx, OP_BAD_TYPE, "input %d (%s) is %s, expected i64 or i32", i, name, op_type_name(t->dtype));
    if (op_tensor_count(t) != 1) return op__fail(ctx, OP_BAD_SHAPE, "input %d (%s) has %lld elements, expected 1", i, name,
                                                 (long long)op_tensor_count(t));
    if (!t->data) return OP_NEED_DATA;
    *dst = t->dtype == OP_I64 ? *(const int64_t *)t->data : *(const int32_t *)t->data;
    return OP_OK;
}

/* --- the sliding window ------------------------------------------------------------------------ */

static enum op_status parse_ints(struct op_prepare *p, const char *name, int64_t lo, int n_max, int64_t *dst, int *n_dst) {
    int64_t n = 0;
    const int64_t *v = op__attr_ints(p->node, name, &n);
    if (n > n_max) return op__node_fail(p->err, p->node, OP_UNSUPPORTED, "%s has %lld values, at most %d are supported", name, (long long)n, n_max);
    for (int64_t i = 0; i < n; i++) {
        if (v[i] < lo || v[i] > NN_ATTR_MAX)
            return op__node_fail(p->err, p->node, OP_BAD_VALUE, "%s[%lld] is %lld, expected %lld to 2^31", name, (long long)i, (long long)v[i],
                                 (long long)lo);
        dst[i] = v[i];
    }
    *n_dst = (int)n;
    return OP_OK;
}

enum op_status op__nn_window_parse(struct op_prepare *p, bool need_kernel, struct nn_window *w) {
    enum op_status st;
    if ((st = parse_ints(p, "kernel_shape", 1, NN_SPATIAL_MAX, w->kernel, &w->n_kernel)) != OP_OK) return st;
    if ((st = parse_ints(p, "strides", 1, NN_SPATIAL_MAX, w->stride, &w->n_stride)) != OP_OK) return st;
    if ((st = parse_ints(p, "dilations", 1, NN_SPATIAL_MAX, w->dilation, &w->n_dilation)) != OP_OK) return st;
    if ((st = parse_ints(p, "pads", 0, 2 * NN_SPATIAL_MAX, w->pad, &w->n_pad)) != OP_OK) return st;
    if (need_kernel && !w->n_kernel) return op__node_fail(p->err, p->node, OP_BAD_MODEL, "kernel_shape is absent");
    static const char *const names[] = {"NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"};
    const char *pad = op__attr_string(p->node, "auto_pad", "NOTSET");
    int i = 0;
    while (i < 4 && strcmp(pad, names[i])) i++;
    if (i == 4) return op__node_fail(p->err, p->node, OP_BAD_VALUE, "auto_pad is \"%s\", expected NOTSET, VALID, SAME_UPPER or SAME_LOWER", pad);
    w->auto_pad = (enum nn_auto_pad)i;
    w->ceil_mode = op__attr_int(p->node, "ceil_mode", 0) != 0;
    return OP_OK;
}

static enum op_status need_count(const struct op_ctx *ctx, const char *name, int found, int expected) {
    if (!found || found == expected) return OP_OK;
    return op__fail(ctx, OP_BAD_SHAPE, "%s has %d values, expected %d for this input", name, found, expected);
}

static enum op_status fit_axis(const struct op_ctx *ctx, const struct nn_window *w, struct nn_fit *f, int a) {
    int64_t in = f->in[a], s = f->stride[a], extent = (f->kernel[a] - 1) * f->dilation[a] + 1;
    if (in > NN_EXTENT_MAX) return op__fail(ctx, OP_LIMIT, "spatial dimension %d is %lld, the limit is 2^40", a, (long long)in);
    if (w->auto_pad == NN_SAME_UPPER || w->auto_pad == NN_SAME_LOWER) {
        int64_t out = (in + s - 1) / s, total = out ? (out - 1) * s + extent - in : 0;
        if (total < 0) total = 0;
        f->begin[a] = w->auto_pad == NN_SAME_UPPER ? total / 2 : total - total / 2;
        f->end[a] = total - f->begin[a];
        f->out[a] = out;
        return OP_OK;
    }
    int64_t slack = in + f->begin[a] + f->end[a] - extent;
    if (slack < 0)
        return op__fail(ctx, OP_BAD_SHAPE, "the window spans %lld along spatial dimension %d, the padded input has %lld", (long long)extent, a,
                        (long long)(in + f->begin[a] + f->end[a]));
    f->out[a] = slack / s + 1;
    /* With ceil_mode one more output, unless its window would begin in the end padding. */
    if (w->ceil_mode && slack % s && f->out[a] * s < in + f->begin[a]) f->out[a]++;
    return OP_OK;
}

enum op_status op__nn_window_fit(const struct op_ctx *ctx, const struct nn_window *w, int rank, const int64_t *in, const int64_t *kernel,
                                 struct nn_fit *f) {
    enum op_status st;
    if (rank < 1 || rank > NN_SPATIAL_MAX)
        return op__fail(ctx, OP_BAD_SHAPE, "the input has %d spatial dimensions, expected 1 to %d", rank, NN_SPATIAL_MAX);
    if ((st = need_count(ctx, "kernel_shape", w->n_kernel, rank)) != OP_OK || (st = need_count(ctx, "strides", w->n_stride, rank)) != OP_OK ||
        (st = need_count(ctx, "dilations", w->n_dilation, rank)) != OP_OK || (st = need_count(ctx, "pads", w->n_pad, 2 * rank)) != OP_OK)
        return st;
    *f = (struct nn_fit){.rank = rank, .in_size = 1, .out_size = 1};
    for (int a = 0; a < rank; a++) {
        bool own_pads = w->auto_pad == NN_NOTSET && w->n_pad;
        f->in[a] = in[a];
        f->kernel[a] = kernel ? kernel[a] : w->kernel[a];
        f->stride[a] = w->n_stride ? w->stride[a] : 1;
        f->dilation[a] = w->n_dilation ? w->dilation[a] : 1;
        f->begin[a] = own_pads ? w->pad[a] : 0;
        f->end[a] = own_pads ? w->pad[rank + a] : 0;
        if (f->kernel[a] < 1 || f->kernel[a] > NN_ATTR_MAX)
            return op__fail(ctx, OP_BAD_SHAPE, "the kernel has extent %lld along spatial dimension %d", (long long)f->kernel[a], a);
        if ((st = fit_axis(ctx, w, f, a)) != OP_OK) return st;
        if (!op__mul(f->in_size, f->in[a], &f->in_size) || !op__mul(f->out_size, f->out[a], &f->out_size))
            return op__fail(ctx, OP_LIMIT, "the shapes are beyond 63 bits");
    }
    return OP_OK;
}
