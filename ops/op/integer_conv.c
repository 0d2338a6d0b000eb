/* integer_conv.c: ConvInteger and QLinearConv: convolution of bytes less their zero points in
 * 32-bit sums (which wrap), and for the latter plus a bias and scaled back to bytes. Padding counts
 * as the zero point: taps outside add nothing.
 *
 * Two ways. A group of several output channels is an exact f32 product (integer_matmul.c says why
 * it is exact): blocks of EXACT_K (channel, tap) pairs of the weights against the input's shifted
 * lines, unrolled for PANEL output positions at a time. A group of few output channels (depthwise),
 * and the reference, take a plane (an image, an output channel) at a time: for each input channel
 * and tap the weight is multiplied with the shifted input and added into a plane of sums. Planes
 * are divided among as many tasks as there are threads; a plane's result does not depend on the
 * division. */
#include "ops/op/elementwise.h"
#include "ops/op/nn.h"
#include "ops/op/product.h"
#include "ops/op/quantized.h"

#include <stdlib.h>
#include <string.h>

OP_VECTOR_FILE

enum { PANEL = 1024, MAPS_TO_UNROLL = 4 };

struct conv_state {
    struct nn_window window;
    int64_t group, y_min, y_max; /* limits of QuantConv's result */
};

struct conv {
    const struct op_tensor *x, *w, *x_zero, *w_zero;
    const struct op_tensor *x_scale, *w_scale, *y_scale, *y_zero, *bias; /* of QLinearConv */
    struct op_tensor *y;
    struct nn_fit fit;
    int64_t group, channels, maps, taps; /* C, M, taps of the kernel */
    int64_t planes, n_tasks;
    uint32_t *sums;
    int64_t y_min, y_max;
};

static void bind(const struct op_ctx *ctx, struct conv *s) {
    const struct op_tensor *const *in = ctx->in;
    memset(s, 0, sizeof *s);
    s->x = in[0];
    s->y = ctx->out[0];
    if (ctx->node->desc->name[0] == 'Q') {
        s->x_scale = in[1], s->x_zero = in[2], s->w = in[3], s->w_scale = in[4], s->w_zero = in[5],
        s->y_scale = in[6], s->y_zero = in[7];
        s->bias = ctx->n_in > 8 ? in[8] : NULL;
    } else {
        s->w = in[1];
        s->x_zero = ctx->n_in > 2 ? in[2] : NULL;
        s->w_zero = ctx->n_in > 3 ? in[3] : NULL;
    }
}

static enum op_status conv_prepare(struct op_prepare *p) {
    struct conv_state *state = calloc(1, sizeof *state);
    if (!state) return op__node_fail(p->err, p->node, OP_NOMEM, "no memory");
    p->node->state = state;
    state->group = op__attr_int(p->node, "group", 1);
    state->y_min = op__attr_int(p->node, "y_min", INT8_MIN);
    state->y_max = op__attr_int(p->node, "y_max", UINT8_MAX);
    if (state->group < 1)
        return op__node_fail(p->err, p->node, OP_BAD_VALUE, "group is %lld, must be 1 or more",
                             (long long)state->group);
    return op__nn_window_parse(p, false, &state->window);
}

/* Fits the window; everything about spatial dimensions is checked there. */
static enum op_status shape_of(const struct op_ctx *ctx, struct conv *s) {
    const struct conv_state *state = ctx->state;
    s->group = state->group;
    s->y_min = state->y_min;
    s->y_max = state->y_max;
    s->channels = s->x->dims[1];
    s->maps = s->w->dims[0];
    s->taps = 1;
    for (int i = 2; i < s->w->rank; i++) s->taps *= s->w->dims[i];
    s->planes = s->x->dims[0] * s->maps;
    return op__nn_window_fit(ctx, &state->window, s->x->rank - 2, s->x->dims + 2, s->w->dims + 2,
                             &s->fit);
}

static bool one_or(const struct op_tensor *t, int64_t n) {
    return !t || op_tensor_count(t) == 1 || (t->rank == 1 && t->dims[0] == n);
}

static enum op_status conv_infer(struct op_ctx *ctx) {
    struct conv s;
    char tx[160], tw[160];
    bind(ctx, &s);
    const bool scaled = ctx->node->desc->name[0] == 'Q';
    if (!quantized_is_byte(s.x) || !quantized_is_byte(s.w) ||
        (s.x_zero && s.x_zero->dtype != s.x->dtype) || (s.w_zero && s.w_zero->dtype != s.w->dtype))
        return op__fail(ctx, OP_BAD_TYPE, "takes u8 and i8 with zero points of their types");
    op_tensor_describe(s.x, tx, sizeof tx);
    op_tensor_describe(s.w, tw, sizeof tw);
    if (s.x->rank < 3 || s.w->rank != s.x->rank)
        return op__fail(ctx, OP_BAD_SHAPE, "input %s and weights %s", tx, tw);
    enum op_status status = shape_of(ctx, &s);
    if (status != OP_OK) return status;
    int64_t needed;
    if (!op__mul(s.w->dims[1], s.group, &needed) || needed != s.channels || s.maps % s.group)
        return op__fail(ctx, OP_BAD_SHAPE,
                        "input %s has not the channels of weights %s in %lld groups", tx, tw,
                        (long long)s.group);
    if ((s.x_zero && op_tensor_count(s.x_zero) != 1) || !one_or(s.w_zero, s.maps) ||
        (scaled && !one_or(s.w_scale, s.maps)))
        return op__fail(
            ctx, OP_BAD_SHAPE,
            "a scale or zero point is neither one value nor one for each of %lld output channels",
            (long long)s.maps);
    if (scaled && (!quantized_is_scale(s.x_scale) || !quantized_is_scale(s.w_scale) ||
                   !quantized_is_scale(s.y_scale) || !s.x_zero || !s.w_zero ||
                   !quantized_is_byte(s.y_zero) || op_tensor_count(s.x_scale) != 1 ||
                   op_tensor_count(s.y_scale) != 1 || op_tensor_count(s.y_zero) != 1))
        return op__fail(
            ctx, OP_BAD_TYPE,
            "scales must be floats and zero points u8 or i8, those of input and output one value");
    if (s.bias && (s.bias->dtype != OP_I32 || s.bias->rank != 1 || s.bias->dims[0] != s.maps))
        return op__fail(ctx, OP_BAD_SHAPE, "the bias must be %lld values of i32",
                        (long long)s.maps);
    int64_t dims[OP_RANK_MAX] = {s.x->dims[0], s.maps};
    for (int i = 0; i < s.fit.rank; i++) dims[2 + i] = s.fit.out[i];
    op__set(ctx, 0, scaled ? s.y_zero->dtype : OP_I32, s.x->rank, dims);
    return OP_OK;
}

/* sum[o] += w * (x[o stride] - zero) for n outputs */
static void add_line(uint32_t *sum, const struct op_tensor *x, int64_t at, int64_t stride,
                     int64_t n, int32_t w, int32_t zero) {
    if (x->dtype == OP_U8) {
        const uint8_t *line = (const uint8_t *)x->data + at;
        if (stride == 1)
            for (int64_t o = 0; o < n; o++) sum[o] += (uint32_t)(w * (line[o] - zero));
        else
            for (int64_t o = 0; o < n; o++) sum[o] += (uint32_t)(w * (line[o * stride] - zero));
    } else {
        const int8_t *line = (const int8_t *)x->data + at;
        for (int64_t o = 0; o < n; o++) sum[o] += (uint32_t)(w * (line[o * stride] - zero));
    }
}

/* One tap of the kernel over a whole plane: tap[i] is its place, input its channel's first element.
 */
static void add_tap(const struct conv *s, uint32_t *sums, int64_t input, const int64_t *tap,
                    int32_t w, int32_t zero) {
    const struct nn_fit *f = &s->fit;
    const int inner = f->rank - 1;
    const int64_t shift = tap[inner] * f->dilation[inner] - f->begin[inner],
                  stride = f->stride[inner];
    /* outputs of the innermost dimension whose input lies inside */
    int64_t first = shift < 0 ? (-shift + stride - 1) / stride : 0;
    int64_t last = shift < f->in[inner] ? (f->in[inner] - 1 - shift) / stride + 1 : 0;
    if (last > f->out[inner]) last = f->out[inner];
    if (first >= last) return;
    int64_t at[NN_SPATIAL_MAX] = {0};
    int64_t line = 0;
    do {
        int64_t where = 0;
        bool inside = true;
        for (int i = 0; i < inner && inside; i++) {
            const int64_t pos = at[i] * f->stride[i] + tap[i] * f->dilation[i] - f->begin[i];
            inside = pos >= 0 && pos < f->in[i];
            where = where * f->in[i] + pos;
        }
        if (inside)
            add_line(sums + line * f->out[inner] + first, s->x,
                     input + where * f->in[inner] + first * stride + shift, stride, last - first, w,
                     zero);
        line++;
    } while (nn_next(at, f->out, inner));
}

static void store_plane(const struct conv *s, int64_t plane, const uint32_t *sums) {
    const int64_t map = plane % s->maps, size = s->fit.out_size, first = plane * size;
    if (!s->y_scale) {
        memcpy((int32_t *)s->y->data + first, sums, (size_t)size * sizeof *sums);
        return;
    }
    const uint32_t bias = s->bias ? ((const uint32_t *)s->bias->data)[map] : 0;
    const float scale = quantized_scale(s->x_scale, 0, 1) *
                        quantized_scale(s->w_scale, map, op_tensor_count(s->w_scale)) /
                        quantized_scale(s->y_scale, 0, 1);
    const int32_t zero = quantized_byte(s->y_zero, 0);
    uint8_t *restrict y = (uint8_t *)s->y->data + first;
    int32_t low = s->y->dtype == OP_U8 ? 0 : INT8_MIN,
            high = s->y->dtype == OP_U8 ? UINT8_MAX : INT8_MAX;
    if (s->y_min > low && s->y_min <= high) low = (int32_t)s->y_min;
    if (s->y_max < high && s->y_max >= low) high = (int32_t)s->y_max;
    for (int64_t i = 0; i < size; i++)
        y[i] = (uint8_t)(quantized_round((float)(int32_t)(sums[i] + bias) * scale,
                                         (float)(low - zero), (float)(high - zero)) +
                         zero);
}

static void conv_plane(const struct conv *s, int64_t plane, uint32_t *sums) {
    const int64_t map = plane % s->maps, image = plane / s->maps,
                  per_group = s->channels / s->group;
    const int64_t first =
        (image * s->channels + map / (s->maps / s->group) * per_group) * s->fit.in_size;
    const int32_t x_zero = quantized_zero(s->x_zero, 0, 1),
                  w_zero =
                      quantized_zero(s->w_zero, map, s->w_zero ? op_tensor_count(s->w_zero) : 1);
    memset(sums, 0, (size_t)s->fit.out_size * sizeof *sums);
    for (int64_t c = 0; c < per_group; c++) {
        int64_t tap[NN_SPATIAL_MAX] = {0}, at = (map * per_group + c) * s->taps;
        do {
            const int32_t w = quantized_byte(s->w, at++) - w_zero;
            if (w) add_tap(s, sums, first + c * s->fit.in_size, tap, w, x_zero);
        } while (nn_next(tap, s->fit.kernel, s->fit.rank));
    }
    store_plane(s, plane, sums);
}

static void conv_task(void *arg, int64_t task) {
    const struct conv *s = arg;
    const int64_t each = (s->planes + s->n_tasks - 1) / s->n_tasks;
    for (int64_t plane = task * each; plane < (task + 1) * each && plane < s->planes; plane++)
        conv_plane(s, plane, s->sums + task * s->fit.out_size);
}

/* --- as an exact f32 product -------------------------------------------------------------------
 */

struct unrolled {
    const struct conv *s;
    int64_t input; /* the group's first element in the image */
    int64_t k0, p0,
        n;        /* first (channel, tap) pair of the block; first output position and how many */
    float *lines; /* (EXACT_K, n) */
};

static void widen_line(float *dst, const struct op_tensor *x, int64_t at, int64_t stride, int64_t n,
                       int32_t zero) {
    if (x->dtype == OP_U8) {
        const uint8_t *line = (const uint8_t *)x->data + at;
        if (stride == 1)
            for (int64_t o = 0; o < n; o++) dst[o] = (float)(line[o] - zero);
        else
            for (int64_t o = 0; o < n; o++) dst[o] = (float)(line[o * stride] - zero);
    } else {
        const int8_t *line = (const int8_t *)x->data + at;
        for (int64_t o = 0; o < n; o++) dst[o] = (float)(line[o * stride] - zero);
    }
}

/* Row `row` of the block: one (channel, tap) pair at the outputs [p0, p0 + n). */
static void unroll_row(void *arg, int64_t row) {
    const struct unrolled *u = arg;
    const struct conv *s = u->s;
    const struct nn_fit *f = &s->fit;
    const int inner = f->rank - 1;
    const int64_t channel = (u->k0 + row) / s->taps, width = f->out[inner],
                  stride = f->stride[inner];
    int64_t tap[NN_SPATIAL_MAX] = {0}, rest = (u->k0 + row) % s->taps;
    float *dst = u->lines + row * u->n;
    for (int i = inner; i >= 0; rest /= f->kernel[i], i--) tap[i] = rest % f->kernel[i];
    const int64_t shift = tap[inner] * f->dilation[inner] - f->begin[inner];
    const int64_t first = shift < 0 ? (-shift + stride - 1) / stride : 0;
    int64_t last = shift < f->in[inner] ? (f->in[inner] - 1 - shift) / stride + 1 : 0;
    if (last > width) last = width;
    const int32_t zero = quantized_zero(s->x_zero, 0, 1);
    memset(dst, 0, (size_t)u->n * sizeof *dst);
    for (int64_t p = u->p0; p < u->p0 + u->n;) {
        const int64_t from = p % width,
                      to = from + (u->p0 + u->n - p) < width ? from + (u->p0 + u->n - p) : width;
        int64_t line = p / width, where = 0, step = 1;
        bool inside = true;
        for (int i = inner - 1; i >= 0; line /= f->out[i], step *= f->in[i], i--) {
            const int64_t pos =
                line % f->out[i] * f->stride[i] + tap[i] * f->dilation[i] - f->begin[i];
            inside = inside && pos >= 0 && pos < f->in[i];
            where += pos * step;
        }
        const int64_t lo = from > first ? from : first, hi = to < last ? to : last;
        if (inside && lo < hi)
            widen_line(dst + (p - u->p0) + (lo - from), s->x,
                       u->input + channel * f->in_size + where * f->in[inner] + lo * stride + shift,
                       stride, hi - lo, zero);
        p += to - from;
    }
}

static int64_t maps_of(const struct conv *s) {
    return s->maps / s->group;
}

static bool unrolls(const struct conv *s) {
    return maps_of(s) >= MAPS_TO_UNROLL && s->channels > 0;
}

static size_t unrolled_floats(const struct conv *s) {
    const int64_t panel = s->fit.out_size < PANEL ? s->fit.out_size : PANEL;
    return (size_t)(maps_of(s) * EXACT_K + EXACT_K * panel + maps_of(s) * panel);
}

static void widen_weights(const struct conv *s, int64_t map0, int64_t k0, int64_t k, float *dst) {
    const int64_t terms = s->channels / s->group * s->taps,
                  n_zeros = s->w_zero ? op_tensor_count(s->w_zero) : 1;
    for (int64_t i = 0; i < maps_of(s); i++) {
        const int32_t zero = quantized_zero(s->w_zero, map0 + i, n_zeros);
        for (int64_t j = 0; j < k; j++)
            dst[i * k + j] = (float)(quantized_byte(s->w, (map0 + i) * terms + k0 + j) - zero);
    }
}

/* One image, one group: the (maps of the group, out_size) sums. */
static void unrolled_group(const struct op_ctx *ctx, const struct conv *s, int64_t image,
                           int64_t group, uint32_t *sums) {
    const int64_t m = maps_of(s), size = s->fit.out_size, terms = s->channels / s->group * s->taps;
    float *weights = ctx->scratch, *c = weights + m * EXACT_K;
    struct unrolled u = {
        .s = s, .input = (image * s->channels + group * (s->channels / s->group)) * s->fit.in_size};
    u.lines = c + m * (size < PANEL ? size : PANEL);
    for (u.k0 = 0; u.k0 < terms; u.k0 += EXACT_K) {
        const int64_t k = terms - u.k0 < EXACT_K ? terms - u.k0 : EXACT_K;
        widen_weights(s, group * m, u.k0, k, weights);
        for (u.p0 = 0; u.p0 < size; u.p0 += PANEL) {
            u.n = size - u.p0 < PANEL ? size - u.p0 : PANEL;
            op__parallel(ctx, k, unroll_row, &u);
            const struct k_product product = {.m = m,
                                              .n = u.n,
                                              .k = k,
                                              .a = weights,
                                              .a_row = k,
                                              .a_k = 1,
                                              .b = u.lines,
                                              .b_k = u.n,
                                              .c = c,
                                              .c_row = u.n,
                                              .then = {.act = K_COPY}};
            op__gemm(ctx, &product);
            for (int64_t i = 0; i < m; i++)
                quantized_add(sums + i * size + u.p0, c + i * u.n, u.n, u.k0 == 0);
        }
    }
}

static void unrolled_run(const struct op_ctx *ctx, const struct conv *s) {
    const int64_t m = maps_of(s), size = s->fit.out_size;
    for (int64_t i = 0; i < s->x->dims[0]; i++)
        for (int64_t g = 0; g < s->group; g++) {
            const int64_t plane = i * s->maps + g * m;
            uint32_t *sums = s->y_scale ? (uint32_t *)ctx->scratch + unrolled_floats(s)
                                        : (uint32_t *)s->y->data + plane * size;
            unrolled_group(ctx, s, i, g, sums);
            if (s->y_scale)
                for (int64_t k = 0; k < m; k++) store_plane(s, plane + k, sums + k * size);
        }
}

/* --- the operators -----------------------------------------------------------------------------
 */

static size_t conv_scratch(const struct op_ctx *ctx) {
    struct conv s;
    bind(ctx, &s);
    if (!s.y || shape_of(ctx, &s) != OP_OK) return 0;
    const size_t plane = (size_t)s.fit.out_size * sizeof(uint32_t),
                 planes = (size_t)op__n_threads(ctx) * plane;
    if (!unrolls(&s)) return planes;
    const size_t unrolled =
        unrolled_floats(&s) * sizeof(float) + (s.y_scale ? (size_t)maps_of(&s) * plane : 0);
    return unrolled > planes ? unrolled : planes; /* the reference takes planes */
}

static enum op_status conv(struct op_ctx *ctx, bool plain) {
    struct conv s;
    if (!ctx->out[0] || op_tensor_count(ctx->out[0]) <= 0) return OP_OK;
    bind(ctx, &s);
    enum op_status status = shape_of(ctx, &s);
    if (status != OP_OK) return status;
    if (!plain && unrolls(&s)) {
        unrolled_run(ctx, &s);
        return OP_OK;
    }
    s.n_tasks = op__n_threads(ctx);
    s.sums = ctx->scratch;
    op__parallel(ctx, s.n_tasks, conv_task, &s);
    return OP_OK;
}

static enum op_status conv_run(struct op_ctx *ctx) {
    return conv(ctx, false);
}

static enum op_status conv_ref(struct op_ctx *ctx) {
    return conv(ctx, true);
}

static void conv_cost(const struct op_ctx *ctx, double *flops, double *bytes) {
    struct conv s;
    bind(ctx, &s);
    const double outputs = s.y ? (double)op_tensor_count(s.y) : 0,
                 weights = (double)op_tensor_count(s.w);
    *flops = s.w->dims[0] ? 2 * outputs * weights / (double)s.w->dims[0] : 0;
    *bytes = (double)op_tensor_count(s.x) + weights + (s.y ? (double)op_tensor_bytes(s.y) : 0);
}

static const struct op_desc conv_integer = {.name = "ConvInteger",
                                            .domain = "",
                                            .since = 10,
                                            .in_min = 2,
                                            .in_max = 4,
                                            .out_min = 1,
                                            .out_max = 1,
                                            .prepare = conv_prepare,
                                            .release = free,
                                            .infer = conv_infer,
                                            .scratch = conv_scratch,
                                            .run = conv_run,
                                            .ref = conv_ref,
                                            .cost = conv_cost};
OP_REGISTER(conv_integer);
static const struct op_desc qlinear_conv = {.name = "QLinearConv",
                                            .domain = "",
                                            .since = 10,
                                            .in_min = 8,
                                            .in_max = 9,
                                            .out_min = 1,
                                            .out_max = 1,
                                            .prepare = conv_prepare,
                                            .release = free,
                                            .infer = conv_infer,
                                            .scratch = conv_scratch,
                                            .run = conv_run,
                                            .ref = conv_ref,
                                            .cost = conv_cost};
OP_REGISTER(qlinear_conv);
/* QLinearConv between the limits y_min and y_max, which the pass fuse_quantized makes. */
static const struct op_desc quant_conv = {.name = "QuantConv",
                                          .domain = "quern",
                                          .since = 1,
                                          .in_min = 8,
                                          .in_max = 9,
                                          .out_min = 1,
                                          .out_max = 1,
                                          .prepare = conv_prepare,
                                          .release = free,
                                          .infer = conv_infer,
                                          .scratch = conv_scratch,
                                          .run = conv_run,
                                          .ref = conv_ref,
                                          .cost = conv_cost};
OP_REGISTER(quant_conv);
