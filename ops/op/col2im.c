/* Col2Im (opset 18): adds up overlapping blocks into an image, the inverse of im2col.
 *
 *   x [N, C * prod(block), L], L = prod over the axes of ((image + pads - dilation * (block - 1) -
 * 1) / stride + 1) y [N, C, image…]: y[n, c, p] = the sum of x[n, c * prod(block) + k, l] over all
 * (k, l) with p + pad_begin = l * stride + k * dilation on every axis
 *
 * Every plane is added up in double in scratch memory, in the order of k: work and memory are
 * linear in the input. */
#include "ops/op/move.h"

#include <string.h>

struct col2im {
    int rank; /* spatial axes */
    int64_t image[OP_RANK_MAX], block[OP_RANK_MAX],
        steps[OP_RANK_MAX]; /* steps: positions of the block an axis */
    int64_t dilations[OP_RANK_MAX], strides[OP_RANK_MAX], begin[OP_RANK_MAX];
    int64_t n_block, n_steps;
};

static enum op_status read_attr(const struct op_ctx *ctx, const char *name, int count, int64_t dflt,
                                int64_t min, int64_t *dst) {
    int64_t n;
    const int64_t *v = op__attr_ints(ctx->node, name, &n);
    if (v && n != count)
        return op__fail(ctx, OP_BAD_VALUE, "%s has %lld values, %d are expected", name,
                        (long long)n, count);
    for (int i = 0; i < count; i++) {
        dst[i] = v ? v[i] : dflt;
        if (dst[i] < min || dst[i] > INT32_MAX)
            return op__fail(ctx, OP_BAD_VALUE, "%s has the value %lld", name, (long long)dst[i]);
    }
    return OP_OK;
}

static enum op_status make_plan(const struct op_ctx *ctx, struct col2im *p) {
    int n_block;
    int64_t pads[2 * OP_RANK_MAX];
    enum op_status st = op__read_ints(ctx, 1, "image_shape", OP_RANK_MAX - 2, p->image, &p->rank);
    if (st == OP_OK) st = op__read_ints(ctx, 2, "block_shape", OP_RANK_MAX - 2, p->block, &n_block);
    if (st != OP_OK) return st;
    if (p->rank < 1 || n_block != p->rank)
        return op__fail(ctx, OP_BAD_SHAPE,
                        "image_shape has %d values and block_shape %d, as many are expected",
                        p->rank, n_block);
    st = read_attr(ctx, "dilations", p->rank, 1, 1, p->dilations);
    if (st == OP_OK) st = read_attr(ctx, "strides", p->rank, 1, 1, p->strides);
    if (st == OP_OK) st = read_attr(ctx, "pads", 2 * p->rank, 0, 0, pads);
    if (st != OP_OK) return st;
    p->n_block = p->n_steps = 1;
    for (int i = 0; i < p->rank; i++) {
        if (p->image[i] < 0 || p->image[i] > INT32_MAX || p->block[i] < 1 ||
            p->block[i] > INT32_MAX)
            return op__fail(ctx, OP_BAD_VALUE, "axis %d: image %lld, block %lld", i,
                            (long long)p->image[i], (long long)p->block[i]);
        p->begin[i] = pads[i];
        int64_t room =
            p->image[i] + pads[i] + pads[p->rank + i] - p->dilations[i] * (p->block[i] - 1) - 1;
        p->steps[i] = room < 0 ? 0 : room / p->strides[i] + 1;
        if (!op__mul(p->n_block, p->block[i], &p->n_block) ||
            !op__mul(p->n_steps, p->steps[i], &p->n_steps))
            return op__fail(ctx, OP_LIMIT, "the blocks are too large");
    }
    return OP_OK;
}

static enum op_status col2im_infer(struct op_ctx *ctx) {
    enum op_status st = op__need_tensors(ctx, 3);
    struct col2im p;
    char text[OP__TENSOR_TEXT];
    int64_t dims[OP_RANK_MAX];
    if (st != OP_OK) return st;
    const struct op_tensor *x = ctx->in[0];
    if (x->dtype != OP_F32 && x->dtype != OP_F64 && x->dtype != OP_F16 && x->dtype != OP_BF16)
        return op__fail(ctx, OP_UNSUPPORTED, "%s is not supported", op_type_name(x->dtype));
    if ((st = make_plan(ctx, &p)) != OP_OK) return st;
    if (x->rank != 3 || x->dims[1] % p.n_block || x->dims[2] != p.n_steps)
        return op__fail(ctx, OP_BAD_SHAPE, "the input is %s, [N, C * %lld, %lld] is expected",
                        op__text(x, text), (long long)p.n_block, (long long)p.n_steps);
    dims[0] = x->dims[0];
    dims[1] = x->dims[1] / p.n_block;
    memcpy(dims + 2, p.image, (size_t)p.rank * sizeof *dims);
    st = op__check_size(ctx, x->dtype, p.rank + 2, dims);
    if (st == OP_OK) op__set(ctx, 0, x->dtype, p.rank + 2, dims);
    return st;
}

static void advance(int rank, const int64_t *dims, int64_t *at) {
    for (int i = rank - 1; i >= 0 && ++at[i] == dims[i]; i--) at[i] = 0;
}

static double load(const void *data, enum op_type type, int64_t i) {
    switch (type) {
    case OP_F32:
        return ((const float *)data)[i];
    case OP_F64:
        return ((const double *)data)[i];
    case OP_F16:
        return op__f16_to_f32(((const uint16_t *)data)[i]);
    default:
        return op__bf16_to_f32(((const uint16_t *)data)[i]);
    }
}

static void store(void *data, enum op_type type, int64_t i, double v) {
    switch (type) {
    case OP_F32:
        ((float *)data)[i] = (float)v;
        break;
    case OP_F64:
        ((double *)data)[i] = v;
        break;
    case OP_F16:
        ((uint16_t *)data)[i] = op__f32_to_f16((float)v);
        break;
    default:
        ((uint16_t *)data)[i] = op__f32_to_bf16((float)v);
        break;
    }
}

/* The place in the image of block element k at step l; -1 in the padding. */
static int64_t target_of(const struct col2im *p, const int64_t *l, const int64_t *k) {
    int64_t flat = 0;
    for (int i = 0; i < p->rank; i++) {
        int64_t v = l[i] * p->strides[i] + k[i] * p->dilations[i] - p->begin[i];
        if (v < 0 || v >= p->image[i]) return -1;
        flat = flat * p->image[i] + v;
    }
    return flat;
}

static enum op_status col2im_run(struct op_ctx *ctx) {
    const struct op_tensor *x = ctx->in[0];
    struct op_tensor *y = ctx->out[0];
    struct col2im p;
    enum op_status st = make_plan(ctx, &p);
    int64_t n_image = op__product(y->dims, 2, y->rank), from = 0;
    double *sum = ctx->scratch;
    if (st != OP_OK || op_tensor_count(y) == 0) return st;
    for (int64_t plane = 0; plane < y->dims[0] * y->dims[1]; plane++) {
        int64_t k[OP_RANK_MAX] = {0};
        memset(sum, 0, (size_t)n_image * sizeof *sum);
        for (int64_t b = 0; p.n_steps && b < p.n_block; b++, advance(p.rank, p.block, k)) {
            int64_t l[OP_RANK_MAX] = {0};
            for (int64_t s = 0; s < p.n_steps; s++, advance(p.rank, p.steps, l)) {
                int64_t to = target_of(&p, l, k);
                double v = load(x->data, x->dtype, from++);
                if (to >= 0) sum[to] += v;
            }
        }
        for (int64_t i = 0; i < n_image; i++) store(y->data, y->dtype, plane * n_image + i, sum[i]);
    }
    return OP_OK;
}

static size_t col2im_scratch(const struct op_ctx *ctx) {
    const struct op_tensor *y = ctx->out[0];
    return op_tensor_count(y) ? (size_t)op__product(y->dims, 2, y->rank) * sizeof(double) : 0;
}

static const struct op_desc col2im = {
    .name = "Col2Im",
    .domain = "",
    .since = 18,
    .in_min = 3,
    .in_max = 3,
    .out_min = 1,
    .out_max = 1,
    .infer = col2im_infer,
    .scratch = col2im_scratch,
    .run = col2im_run,
};
OP_REGISTER(col2im);
