/* max_unpool.c: MaxUnpool: puts each value of a MaxPool's output back at the place that its Indices name, zeros elsewhere.
 *
 * Indices count, row-major, over the shape that kernel, strides and pads imply. Where output_shape asks for another, a
 * place keeps its coordinates (more room is zeros at the end of each axis, what has no room is dropped). Indices are data:
 * one that lies outside is an error. */
#include "ops/op/nn.h"

#include <stdlib.h>
#include <string.h>

static enum op_status prepare(struct op_prepare *p) {
    struct nn_window *w = calloc(1, sizeof *w);
    if (!w) return op__node_fail(p->err, p->node, OP_NOMEM, "out of memory");
    p->node->state = w;
    return op__nn_window_parse(p, true, w);
}

/* The shape that the indices count over. */
static enum op_status implied(const struct op_ctx *ctx, int64_t *dims) {
    const struct nn_window *w = ctx->state;
    const struct op_tensor *x = ctx->in[0];
    int spatial = x->rank - 2;
    if (spatial < 1 || w->n_kernel != spatial || (w->n_stride && w->n_stride != spatial) || (w->n_pad && w->n_pad != 2 * spatial))
        return op__fail(ctx, OP_BAD_SHAPE, "input 0 (X) has rank %d, kernel_shape has %d values, strides %d, pads %d: they do not fit", x->rank,
                        w->n_kernel, w->n_stride, w->n_pad);
    dims[0] = x->dims[0];
    dims[1] = x->dims[1];
    int64_t total = 1;
    for (int a = 0; a < spatial; a++) {
        int64_t pads = w->n_pad ? w->pad[a] + w->pad[spatial + a] : 0, n = x->dims[2 + a];
        if (n > NN_EXTENT_MAX || !op__mul(n - 1, w->n_stride ? w->stride[a] : 1, &dims[2 + a]))
            return op__fail(ctx, OP_LIMIT, "dimension %d is too large", 2 + a);
        dims[2 + a] += w->kernel[a] - pads;
        if (n == 0 || dims[2 + a] < 0) dims[2 + a] = 0;
    }
    for (int a = 0; a < x->rank; a++)
        if (!op__mul(total, dims[a], &total)) return op__fail(ctx, OP_LIMIT, "the output's shape is beyond 63 bits");
    return OP_OK;
}

static enum op_status infer(struct op_ctx *ctx) {
    enum op_status st = op__nn_float(ctx, 0, "X");
    if (st != OP_OK) return st;
    const struct op_tensor *x = ctx->in[0], *shape = nn_in(ctx, 2);
    if ((st = op__nn_like(ctx, 1, "I", OP_I64, -1)) != OP_OK || (st = op__nn_shape(ctx, 1, "I", x->rank, x->dims)) != OP_OK) return st;
    int64_t dims[OP_RANK_MAX] = {0};
    if ((st = implied(ctx, dims)) != OP_OK) return st;
    if (shape) {
        if ((st = op__nn_like(ctx, 2, "output_shape", OP_I64, 1)) != OP_OK) return st;
        if (shape->dims[0] != x->rank)
            return op__fail(ctx, OP_BAD_SHAPE, "input 2 (output_shape) has %lld values, expected %d", (long long)shape->dims[0], x->rank);
        if (!shape->data) return OP_NEED_DATA;
        for (int a = 0; a < x->rank; a++) {
            dims[a] = ((const int64_t *)shape->data)[a];
            if (dims[a] < 0) return op__fail(ctx, OP_BAD_VALUE, "output_shape[%d] is %lld", a, (long long)dims[a]);
        }
    }
    op__set(ctx, 0, x->dtype, x->rank, dims);
    return OP_OK;
}

static enum op_status run(struct op_ctx *ctx) {
    const struct op_tensor *x = ctx->in[0];
    struct op_tensor *y = ctx->out[0];
    const int64_t *at = ctx->in[1]->data;
    size_t size = op_type_size(x->dtype);
    int64_t n = op_tensor_count(x), n_out = op_tensor_count(y), dims[OP_RANK_MAX] = {0}, places = 1;
    enum op_status st = implied(ctx, dims);
    if (st != OP_OK) return st;
    for (int a = 0; a < x->rank; a++) places *= dims[a];
    if (n_out) memset(y->data, 0, (size_t)n_out * size);
    for (int64_t i = 0; i < n; i++) {
        if (at[i] < 0 || at[i] >= places)
            return op__fail(ctx, OP_BAD_VALUE, "I[%lld] is %lld, there are %lld places", (long long)i, (long long)at[i], (long long)places);
        int64_t rest = at[i], dst = 0, step = 1;
        bool inside = true;
        for (int a = x->rank - 1; a >= 0; a--) {
            int64_t pos = rest % dims[a];
            rest /= dims[a];
            inside = inside && pos < y->dims[a];
            if (inside) dst += pos * step;
            step *= y->dims[a];
        }
        if (inside) memcpy((char *)y->data + (size_t)dst * size, (const char *)x->data + (size_t)i * size, size);
    }
    return OP_OK;
}

static const struct op_desc max_unpool = {
    .name = "MaxUnpool",
    .domain = "",
    .since = 9,
    .in_min = 2,
    .in_max = 3,
    .out_min = 1,
    .out_max = 1,
    .prepare = prepare,
    .release = free,
    .infer = infer,
    .run = run,
};
OP_REGISTER(max_unpool);
