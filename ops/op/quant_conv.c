/* quern's ChannelsLastQuantConv: QLinearConv and QuantConv (integer_conv.c) over images whose channels come last, which the pass channels_last
 * makes of them, with an addend that the pass fuse_quant_add puts in.
 *
 * Inputs 0 to 8 are QLinearConv's: x, scale, zero point, w, scales, zero points, y's scale, zero point, bias i32. With an addend: 9 the bytes (of y's
 * shape), 10 and 11 their parameters; then 6 and 7 are those of the convolution itself and 12, 13 those of the sum. All parameters and W are
 * constants; W is i8 with zero points of 0, or u8 with 128. Attributes are Conv's; y_min and y_max narrow the result (Relu, Clip). With
 * input_first x is (batch, channels, rows, columns): the first layer of a net takes the picture as it comes.
 *
 * A convolution is a product whose rows are output pixels. A row's bytes lie in the image in few pieces: the taps of a kernel row are neighbours, so
 * 3 x 3 over 64 channels is three pieces of 192. Padding, and what else the kernel cannot read as it lies (i8, channels not of whole
 * fours), goes through a copy of the image rows that a unit of work needs; a unit is a stripe of output rows of some 200 pixels, or a few whole
 * images where they are smaller, so the copy stays in cache. Depthwise convolutions read rows as they are and know their borders. Sums are exact: any
 * division of the work gives the same bits. */
#include "ops/kern/quant.h"
#include "ops/op/nn.h"
#include "ops/op/quant_product.h"
#include "ops/op/quantized.h"

#include <stdlib.h>
#include <string.h>

enum { X, X_SCALE, X_ZERO, W, W_SCALE, W_ZERO, Y_SCALE, Y_ZERO, BIAS, ADDEND, ADDEND_SCALE, ADDEND_ZERO, SUM_SCALE, SUM_ZERO, N_INPUTS };
enum { UNIT_PIXELS = 192, SLACK = 64, FIRST_CHANNELS = 4, UNIT_IMAGES_MAX = 8, MARGIN_MAX = 1 << 16 };

struct quant_conv {
    struct nn_window window;
    int64_t group, channels, outputs, kernel[2];  /* channels of the input */
    bool first, depthwise;
    int64_t pixel;            /* bytes of a pixel of the copy */
    int64_t segments, length; /* pieces of a row, bytes of one */
    int8_t *packed;
    size_t packed_group;
    int32_t *offset; /* of each output channel; depthwise: in the kernel's order */
    float *scale;
    struct k_quant_after after;
};

/* --- loading ---------------------------------------------------------------------------------------------- */

/* W's element as i8. */
static int8_t weight(const struct op_tensor *w, int64_t i) {
    return (int8_t)(w->dtype == OP_I8 ? ((const int8_t *)w->data)[i] : ((const uint8_t *)w->data)[i] ^ 0x80);
}

static bool constants_fit(const struct op_prepare *p) {
    const struct op_tensor *w = p->in[W], *zero = p->in[W_ZERO];
    for (int i = X_SCALE; i < p->n_in; i++)
        if (!p->in[i] && i != BIAS && i != ADDEND && p->node->in[i] >= 0) return false;
    if (p->n_in > BIAS && p->node->in[BIAS] >= 0 && (!p->in[BIAS] || p->in[BIAS]->dtype != OP_I32 || op_tensor_count(p->in[BIAS]) != w->dims[0])) return false;
    if (!quantized_is_byte(w) || w->rank != 4 || op_tensor_count(w) <= 0 || !quantized_is_byte(zero) || zero->dtype != w->dtype) return false;
    for (int64_t i = 0; i < op_tensor_count(zero); i++)
        if (quantized_byte(zero, i) != (w->dtype == OP_I8 ? 0 : 128)) return false;
    const int64_t n_scales = op_tensor_count(p->in[W_SCALE]);
    if (!quantized_is_scale(p->in[W_SCALE]) || (n_scales != 1 && n_scales != w->dims[0])) return false;
    for (int i = 0; i < N_INPUTS; i++) /* pairs of one scale, one zero point */
        if ((i == X_SCALE || i == Y_SCALE || i == ADDEND_SCALE || i == SUM_SCALE) && i < p->n_in &&
            (!quantized_is_scale(p->in[i]) || op_tensor_count(p->in[i]) != 1 || !quantized_is_byte(p->in[i + 1]) || op_tensor_count(p->in[i + 1]) != 1))
            return false;
    return p->n_in <= ADDEND || p->n_in == N_INPUTS;
}

/* The product's B of one group: pieces (kernel row, or kernel position), within them (column, channel). */
static void pack_group(const struct k_kernels *kern, struct quant_conv *s, const struct op_tensor *w, int64_t group, int8_t *flat, int32_t *sums) {
    const int64_t per_group = s->channels / s->group, oc = s->outputs / s->group, taps = s->kernel[0] * s->kernel[1], wide = s->group == 1 ? s->pixel : per_group;
    memset(flat, 0, (size_t)(taps * wide * oc));
    for (int64_t o = 0; o < oc; o++)
        for (int64_t c = 0; c < per_group; c++)
            for (int64_t q = 0; q < taps; q++) flat[o * taps * wide + q * wide + c] = weight(w, ((group * oc + o) * per_group + c) * taps + q);
    k_quant_pack(kern, s->segments, s->length, oc, (const uint8_t *)flat, true, s->length, 1, taps * wide, s->packed + (size_t)group * s->packed_group, sums);
}

static enum op_status pack(struct op_prepare *p, struct quant_conv *s, const struct k_kernels *kern, int32_t *sums) {
    const struct op_tensor *w = p->in[W];
    const int64_t n = op_tensor_count(w);
    const size_t flat_bytes = (size_t)(n / w->dims[1] * (s->depthwise || s->group > 1 ? w->dims[1] : s->pixel));
    int8_t *flat = malloc(flat_bytes);
    int64_t bytes;
    s->packed_group = s->depthwise ? k_quant_depthwise_bytes(kern->quant, s->channels, s->kernel[0], s->kernel[1])
                                   : k_quant_packed_bytes(kern->quant, s->segments, s->length, s->outputs / s->group);
    if (!op__mul((int64_t)s->packed_group, s->depthwise ? 1 : s->group, &bytes) || !flat || !(s->packed = aligned_alloc(64, ((size_t)bytes + 63) / 64 * 64))) {
        free(flat);
        return op__node_fail(p->err, p->node, OP_NOMEM, "no memory to pack weights");
    }
    p->packed_bytes += (size_t)bytes;
    if (s->depthwise) {
        const int64_t taps = s->kernel[0] * s->kernel[1];
        memset(sums, 0, (size_t)s->outputs * sizeof *sums);
        for (int64_t i = 0; i < n; i++) sums[i / taps] += flat[i] = weight(w, i);
        k_quant_pack_depthwise(kern->quant, s->channels, s->kernel[0], s->kernel[1], flat, s->packed);
    } else {
        for (int64_t g = 0; g < s->group; g++) pack_group(kern, s, w, g, flat, sums + g * (s->outputs / s->group));
    }
    free(flat);
    return OP_OK;
}

static void limits_of(const struct op_tensor *zero, float *lo, float *hi) {
    const int32_t z = quantized_byte(zero, 0);
    *lo = (float)((zero->dtype == OP_U8 ? 0 : INT8_MIN) - z);
    *hi = (float)((zero->dtype == OP_U8 ? UINT8_MAX : INT8_MAX) - z);
}

/* What follows the sums; false where a scale is no number. */
static bool set_after(const struct op_prepare *p, struct quant_conv *s, float *scales) {
    struct k_quant_after *a = &s->after;
    const float y_scale = quantized_scale(p->in[Y_SCALE], 0, 1);
    const struct op_tensor *zero = p->in[p->n_in == N_INPUTS ? SUM_ZERO : Y_ZERO];
    a->out = K_QUANT_BYTE;
    limits_of(zero, &a->lo, &a->hi);
    a->zero = quantized_byte(zero, 0);
    bool ok = op__quant_scales(s->outputs, quantized_scale(p->in[X_SCALE], 0, 1), p->in[W_SCALE], y_scale, scales, &a->small);
    if (p->n_in == N_INPUTS) {
        const float sum_scale = quantized_scale(p->in[SUM_SCALE], 0, 1);
        a->mid = true;
        limits_of(p->in[Y_ZERO], &a->mid_lo, &a->mid_hi);
        a->mid_scale = y_scale / sum_scale;
        a->residual_signed = p->in[ADDEND_ZERO]->dtype == OP_I8;
        a->residual_zero = (float)(quantized_byte(p->in[ADDEND_ZERO], 0) + (a->residual_signed ? 128 : 0));
        a->residual_scale = quantized_scale(p->in[ADDEND_SCALE], 0, 1) / sum_scale;
        ok = ok && a->mid_scale - a->mid_scale == 0 && a->residual_scale - a->residual_scale == 0;
        a->small = a->small && a->mid_scale > -1e6f && a->mid_scale < 1e6f && a->residual_scale > -1e6f && a->residual_scale < 1e6f;
    }
    const float y_min = (float)(op__attr_int(p->node, "y_min", INT8_MIN) - a->zero), y_max = (float)(op__attr_int(p->node, "y_max", UINT8_MAX) - a->zero);
    if (y_min > a->lo && y_min <= a->hi) a->lo = y_min;
    if (y_max < a->hi && y_max >= a->lo) a->hi = y_max;
    return ok;
}

static enum op_status conv_prepare(struct op_prepare *p) {
    struct quant_conv *s = calloc(1, sizeof *s);
    if (!s) return op__node_fail(p->err, p->node, OP_NOMEM, "no memory");
    p->node->state = s;
    enum op_status status = op__nn_window_parse(p, false, &s->window);
    if (status != OP_OK) return status;
    const struct k_kernels *kern = p->cpu ? k_find(p->cpu) : k_default();
    const struct op_tensor *w = p->n_in > Y_ZERO ? p->in[W] : NULL;
    s->group = op__attr_int(p->node, "group", 1);
    if (!kern || !w || !constants_fit(p)) return op__node_fail(p->err, p->node, OP_UNSUPPORTED, "weights and parameters must be constants, the weights symmetric bytes of rank 4");
    if (s->group < 1 || w->dims[0] % s->group) return op__node_fail(p->err, p->node, OP_BAD_VALUE, "group is %lld, expected a divisor of %lld", (long long)s->group, (long long)w->dims[0]);
    if (!op__mul(w->dims[1], s->group, &s->channels)) return op__node_fail(p->err, p->node, OP_LIMIT, "the weights are too large");
    s->outputs = w->dims[0];
    s->kernel[0] = w->dims[2], s->kernel[1] = w->dims[3];
    s->first = op__attr_int(p->node, "input_first", 0) != 0;
    if (s->first && (s->group != 1 || s->channels > FIRST_CHANNELS))
        return op__node_fail(p->err, p->node, OP_UNSUPPORTED, "input_first takes one group of at most %d channels, found %lld", (int)FIRST_CHANNELS, (long long)s->channels);
    s->depthwise = !s->first && w->dims[1] == 1 && s->outputs == s->channels && s->kernel[0] <= 8 && s->kernel[1] <= 64 && p->n_in <= ADDEND;
    s->pixel = s->first && s->channels < FIRST_CHANNELS ? FIRST_CHANNELS : s->channels;
    const bool joined = s->group == 1 && !(s->window.n_dilation > 1 && s->window.dilation[1] != 1);
    s->segments = joined ? s->kernel[0] : s->kernel[0] * s->kernel[1];
    s->length = s->group > 1 ? w->dims[1] : joined ? s->kernel[1] * s->pixel : s->pixel;
    const size_t rounded = ((size_t)s->outputs + 63) / 64 * 64;
    int32_t *sums = malloc(rounded * sizeof *sums);
    float *scales = malloc(rounded * sizeof *scales);
    s->offset = calloc(rounded, sizeof *s->offset);
    s->scale = calloc(rounded, sizeof *s->scale);
    status = sums && scales && s->offset && s->scale ? pack(p, s, kern, sums) : op__node_fail(p->err, p->node, OP_NOMEM, "no memory");
    if (status == OP_OK && !set_after(p, s, scales)) status = op__node_fail(p->err, p->node, OP_BAD_VALUE, "a scale is not a finite number");
    const struct op_tensor *bias = p->n_in > BIAS ? p->in[BIAS] : NULL;
    for (int64_t o = 0; status == OP_OK && o < s->outputs; o++) {
        const int64_t at = s->depthwise ? k_quant_channel(kern->quant, o) : o;
        const int32_t zero = quantized_byte(p->in[X_ZERO], 0) + (p->in[X_ZERO]->dtype == OP_I8 ? 128 : 0);
        s->offset[at] = (int32_t)((bias ? ((const uint32_t *)bias->data)[o] : 0) - (uint32_t)zero * (uint32_t)sums[o]);
        s->scale[at] = scales[o];
    }
    s->after.offset = s->offset;
    s->after.scale = s->scale;
    p->consumed |= 1u << W;
    free(sums);
    free(scales);
    return status;
}

static void conv_release(void *state) {
    struct quant_conv *s = state;
    if (!s) return;
    free(s->packed);
    free(s->offset);
    free(s->scale);
    free(s);
}

/* --- shapes ----------------------------------------------------------------------------------------------- */

static enum op_status fit_of(const struct op_ctx *ctx, struct nn_fit *f) {
    const struct quant_conv *s = ctx->state;
    return op__nn_window_fit(ctx, &s->window, 2, ctx->in[X]->dims + (s->first ? 2 : 1), s->kernel, f);
}

static enum op_status conv_infer(struct op_ctx *ctx) {
    const struct quant_conv *s = ctx->state;
    const struct op_tensor *x = ctx->in[X], *addend = nn_in(ctx, ADDEND);
    char text[160];
    struct nn_fit f;
    if (!quantized_is_byte(x) || x->dtype != ctx->in[X_ZERO]->dtype) return op__fail(ctx, OP_BAD_TYPE, "input x must be of its zero point's type, %s", op_type_name(ctx->in[X_ZERO]->dtype));
    if (x->rank != 4 || x->dims[s->first ? 1 : 3] != s->channels)
        return op__fail(ctx, OP_BAD_SHAPE, "input x is %s, expected rank 4 and %lld channels", op_tensor_describe(x, text, sizeof text), (long long)s->channels);
    const enum op_status status = fit_of(ctx, &f);
    if (status != OP_OK) return status;
    for (int a = 0; a < 2; a++) /* the copy of a padded image stays within what its size lets expect */
        if (f.begin[a] > MARGIN_MAX || f.end[a] > MARGIN_MAX || f.kernel[a] > MARGIN_MAX || (f.kernel[a] - 1) * f.dilation[a] > MARGIN_MAX)
            return op__fail(ctx, OP_LIMIT, "padding and kernel may span at most %d along a spatial dimension", (int)MARGIN_MAX);
    const int64_t dims[4] = {x->dims[0], f.out[0], f.out[1], s->outputs};
    if (!addend) {
        op__set(ctx, 0, ctx->in[Y_ZERO]->dtype, 4, dims);
        return OP_OK;
    }
    int64_t sum[OP_RANK_MAX];
    int rank;
    if (addend->dtype != ctx->in[ADDEND_ZERO]->dtype) return op__fail(ctx, OP_BAD_TYPE, "the addend must be of its zero point's type");
    if (!op__broadcast(4, dims, addend->rank, addend->dims, &rank, sum))
        return op__fail(ctx, OP_BAD_SHAPE, "the addend is %s, which does not broadcast with the convolution", op_tensor_describe(addend, text, sizeof text));
    op__set(ctx, 0, ctx->in[SUM_ZERO]->dtype, rank, sum);
    return OP_OK;
}

/* --- running ---------------------------------------------------------------------------------------------- */

struct plan {
    struct nn_fit f;
    int64_t images;
    bool copies;
    int64_t stripe, stripes, together;    /* output rows of a unit, units of an image; images of a unit */
    int64_t copy_row, copy_image;         /* bytes of a row and of an image's part in the copy */
    size_t segment_bytes, rows_bytes, copy_bytes, each; /* scratch of a task; the table of segments ends where that of rows does */
    int64_t n_units, n_tasks;
    bool apart;        /* the addend broadcasts: the convolution goes to scratch memory, then the sum is made */
    size_t conv_bytes; /* of it, behind all tasks' scratch */
    uint8_t *y;        /* where the convolution goes */
    struct k_quant_after after;
};

static int64_t min64(int64_t a, int64_t b) {
    return a < b ? a : b;
}

static int64_t padded_rows(const struct nn_fit *f, int64_t out_rows) {
    return (out_rows - 1) * f->stride[0] + (f->kernel[0] - 1) * f->dilation[0] + 1;
}

static bool make_plan(const struct op_ctx *ctx, struct plan *p) {
    const struct quant_conv *s = ctx->state;
    *p = (struct plan){.images = ctx->in[X]->dims[0]};
    if (fit_of(ctx, &p->f) != OP_OK) return false;
    const struct nn_fit *f = &p->f;
    const bool pointwise = s->kernel[0] * s->kernel[1] == 1 && f->begin[0] + f->begin[1] + f->end[0] + f->end[1] == 0;
    p->copies = s->first || ctx->in[X]->dtype == OP_I8 || !pointwise || s->length % 4 != 0;
    const int64_t unit = s->first ? 4 * UNIT_PIXELS : UNIT_PIXELS; /* the picture's rows overlap most, and are small */
    const int64_t rows = (unit + f->out[1] - 1) / f->out[1];
    p->stripes = (f->out[0] + rows - 1) / rows;
    p->stripe = (f->out[0] + p->stripes - 1) / p->stripes;
    p->stripes = (f->out[0] + p->stripe - 1) / p->stripe;
    p->together = p->stripes > 1 ? 1 : min64(min64(UNIT_IMAGES_MAX, (UNIT_PIXELS + f->out_size - 1) / f->out_size), p->images);
    p->copy_row = ((f->out[1] - 1) * f->stride[1] + (f->kernel[1] - 1) * f->dilation[1] + 1) * s->pixel;
    p->copy_image = padded_rows(f, p->stripe) * p->copy_row;
    p->segment_bytes = ((size_t)s->segments * sizeof(int64_t) + 63) / 64 * 64;
    p->rows_bytes = ((size_t)(p->stripe * f->out[1] * p->together) * sizeof(void *) + 63) / 64 * 64 + p->segment_bytes;
    p->copy_bytes = p->copies ? ((size_t)(p->copy_image * p->together) + SLACK + 63) / 64 * 64 : 0;
    p->each = p->rows_bytes + p->copy_bytes;
    p->n_units = (p->images + p->together - 1) / p->together * p->stripes;
    if (s->depthwise) { /* a row of padding, and the kernel's rows of the input where they cannot be read as they lie */
        p->stripe = 8;
        p->stripes = (f->out[0] + 7) / 8;
        p->n_units = p->images * p->stripes;
        p->copy_row = (f->in[1] * s->channels + SLACK + 63) / 64 * 64;
        p->each = (size_t)((s->kernel[0] + 1) * p->copy_row);
    }
    p->n_tasks = min64(op__n_threads(ctx), p->n_units);
    const struct op_tensor *addend = nn_in(ctx, ADDEND), *y = ctx->out[0];
    const int64_t dims[4] = {p->images, f->out[0], f->out[1], s->outputs};
    p->y = y ? y->data : NULL;
    p->after = s->after;
    if (addend && (addend->rank != 4 || memcmp(addend->dims, dims, sizeof dims) || !y || y->rank != 4 || memcmp(y->dims, dims, sizeof dims))) {
        p->apart = true;
        p->conv_bytes = (size_t)(p->images * f->out_size * s->outputs);
        p->after.lo = s->after.mid_lo;
        p->after.hi = s->after.mid_hi;
        p->after.zero = quantized_byte(ctx->in[Y_ZERO], 0);
        p->after.mid = false;
    }
    return true;
}

static size_t conv_scratch(const struct op_ctx *ctx) {
    struct plan p;
    return make_plan(ctx, &p) && p.n_tasks > 0 ? p.each * (size_t)p.n_tasks + p.conv_bytes : 0;
}

struct running {
    const struct op_ctx *ctx;
    const struct plan *plan;
};

/* `n` pixels of a planar image, whose planes are `plane` apart, side by side with a zero channel where there are fewer than four. */
static void interleave(const uint8_t *x, int64_t plane, int64_t channels, int64_t n, uint8_t flip, uint8_t *dst) {
    typedef uint8_t bytes __attribute__((vector_size(16)));
    int64_t i = 0;
    for (; i + 16 <= n; i += 16) {
        bytes r[4] = {{0}}, y[4];
        for (int64_t c = 0; c < channels; c++) {
            memcpy(&r[c], x + c * plane + i, sizeof r[c]);
            r[c] ^= flip;
        }
        const bytes a = __builtin_shufflevector(r[0], r[1], 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23),
                    b = __builtin_shufflevector(r[0], r[1], 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31),
                    c = __builtin_shufflevector(r[2], r[3], 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23),
                    d = __builtin_shufflevector(r[2], r[3], 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
        y[0] = __builtin_shufflevector(a, c, 0, 1, 16, 17, 2, 3, 18, 19, 4, 5, 20, 21, 6, 7, 22, 23);
        y[1] = __builtin_shufflevector(a, c, 8, 9, 24, 25, 10, 11, 26, 27, 12, 13, 28, 29, 14, 15, 30, 31);
        y[2] = __builtin_shufflevector(b, d, 0, 1, 16, 17, 2, 3, 18, 19, 4, 5, 20, 21, 6, 7, 22, 23);
        y[3] = __builtin_shufflevector(b, d, 8, 9, 24, 25, 10, 11, 26, 27, 12, 13, 28, 29, 14, 15, 30, 31);
        memcpy(dst + FIRST_CHANNELS * i, y, sizeof y);
    }
    for (; i < n; i++)
        for (int64_t c = 0; c < FIRST_CHANNELS; c++) dst[FIRST_CHANNELS * i + c] = c < channels ? x[c * plane + i] ^ flip : 0;
}

/* The image's rows that output rows [first, first + n) need, padded, to dst. */
static void copy_rows(const struct op_ctx *ctx, const struct plan *p, int64_t image, int64_t first, int64_t n, uint8_t *dst) {
    const struct quant_conv *s = ctx->state;
    const struct k_quant *q = op__kern(ctx)->quant;
    const struct nn_fit *f = &p->f;
    const bool is_signed = ctx->in[X]->dtype == OP_I8;
    const int zero = quantized_byte(ctx->in[X_ZERO], 0) + (is_signed ? 128 : 0);
    const int64_t columns = p->copy_row / s->pixel, inside = min64(f->in[1], columns - f->begin[1]), plane = f->in[0] * f->in[1];
    const uint8_t *x = (const uint8_t *)ctx->in[X]->data + image * plane * s->channels;
    for (int64_t i = 0, rows = padded_rows(f, n); i < rows; i++, dst += p->copy_row) {
        const int64_t row = first * f->stride[0] - f->begin[0] + i;
        if (row < 0 || row >= f->in[0] || inside <= 0) {
            memset(dst, zero, (size_t)p->copy_row);
            continue;
        }
        uint8_t *to = dst + f->begin[1] * s->pixel;
        memset(dst, zero, (size_t)(to - dst));
        memset(to + inside * s->pixel, zero, (size_t)((columns - f->begin[1] - inside) * s->pixel));
        if (s->first)
            interleave(x + row * f->in[1], plane, s->channels, inside, is_signed ? 0x80 : 0, to);
        else if (is_signed)
            q->flip(inside * s->pixel, x + row * f->in[1] * s->channels, to);
        else
            memcpy(to, x + row * f->in[1] * s->channels, (size_t)(inside * s->pixel));
    }
}

/* Fills the row pointers of one unit; the number of its pixels. */
static int64_t ready_unit(const struct running *r, int64_t unit, const uint8_t **rows, uint8_t *copy, int64_t *first_pixel) {
    const struct plan *p = r->plan;
    const struct quant_conv *s = r->ctx->state;
    const struct nn_fit *f = &p->f;
    const int64_t image0 = unit / p->stripes * p->together, image1 = min64(image0 + p->together, p->images);
    const int64_t row0 = unit % p->stripes * p->stripe, row1 = min64(row0 + p->stripe, f->out[0]);
    int64_t n = 0;
    for (int64_t image = image0; image < image1; image++) {
        const uint8_t *x = (const uint8_t *)r->ctx->in[X]->data + (image * f->in[0] + row0 * f->stride[0]) * f->in[1] * s->channels;
        int64_t pitch = f->in[1] * s->channels;
        if (p->copies) {
            copy_rows(r->ctx, p, image, row0, row1 - row0, copy);
            x = copy;
            pitch = p->copy_row;
            copy += p->copy_image;
        }
        for (int64_t h = 0; h < row1 - row0; h++)
            for (int64_t w = 0; w < f->out[1]; w++) rows[n++] = x + h * f->stride[0] * pitch + w * f->stride[1] * s->pixel;
    }
    *first_pixel = image0 * f->out_size + row0 * f->out[1];
    return n;
}

static void product_unit(const struct running *r, int64_t unit, char *scratch) {
    const struct op_ctx *ctx = r->ctx;
    const struct quant_conv *s = ctx->state;
    const struct plan *p = r->plan;
    const uint8_t **rows = (const uint8_t **)(void *)scratch;
    const int64_t oc = s->outputs / s->group, pitch = p->copies ? p->copy_row : p->f.in[1] * s->channels;
    int64_t first, *segment = (int64_t *)(void *)(scratch + p->rows_bytes - p->segment_bytes);
    const int64_t n = ready_unit(r, unit, rows, (uint8_t *)scratch + p->rows_bytes, &first);
    for (int64_t g = 0; g < s->group; g++) {
        const int64_t across = s->segments / s->kernel[0];
        for (int64_t i = 0; i < s->segments; i++)
            segment[i] = i / across * p->f.dilation[0] * pitch + i % across * p->f.dilation[1] * s->pixel + g * (s->channels / s->group);
        struct k_quant_product product = {.n = oc, .k = s->length, .n_segments = s->segments, .segment = segment, .b = s->packed + (size_t)g * s->packed_group,
                                          .c_row = s->outputs, .after = p->after};
        product.after.offset += g * oc;
        product.after.scale += g * oc;
        if (nn_in(ctx, ADDEND) && !p->apart) {
            product.after.residual = (const uint8_t *)ctx->in[ADDEND]->data + first * s->outputs + g * oc;
            product.after.residual_row = s->outputs;
        }
        k_quant_rows(op__kern(ctx), &product, rows, 0, n, 0, oc, p->y + first * s->outputs + g * oc);
    }
}

/* One output row of a depthwise convolution. */
static void depthwise_row(const struct running *r, int64_t image, int64_t out_row, uint8_t *scratch) {
    const struct op_ctx *ctx = r->ctx;
    const struct quant_conv *s = ctx->state;
    const struct plan *p = r->plan;
    const struct nn_fit *f = &p->f;
    const struct k_quant *q = op__kern(ctx)->quant;
    const bool is_signed = ctx->in[X]->dtype == OP_I8;
    const int64_t row_bytes = f->in[1] * s->channels, last = p->images * f->in[0] - 1;
    const uint8_t *rows[8], *x = ctx->in[X]->data;
    for (int64_t i = 0; i < s->kernel[0]; i++) {
        const int64_t row = out_row * f->stride[0] - f->begin[0] + i * f->dilation[0], at = image * f->in[0] + row;
        uint8_t *copy = scratch + (i + 1) * p->copy_row;
        rows[i] = row < 0 || row >= f->in[0] ? scratch : x + at * row_bytes;
        if (rows[i] == scratch || !(is_signed || (at == last && s->channels % q->vb))) continue;
        if (is_signed)
            q->flip(row_bytes, rows[i], copy);
        else
            memcpy(copy, rows[i], (size_t)row_bytes); /* the kernel reads beyond the last channel */
        rows[i] = copy;
    }
    const struct k_depthwise_q d = {.channels = s->channels, .width = f->out[1], .in_width = f->in[1], .kh = s->kernel[0], .kw = s->kernel[1], .stride = f->stride[1],
                                    .dilation = f->dilation[1], .left = -f->begin[1], .zero = (uint8_t)(quantized_byte(ctx->in[X_ZERO], 0) + (is_signed ? 128 : 0)),
                                    .rows = rows, .w = s->packed, .y = (uint8_t *)ctx->out[0]->data + (image * f->out[0] + out_row) * f->out[1] * s->channels,
                                    .after = &s->after};
    q->depthwise(&d);
}

static void conv_task(void *arg, int64_t task) {
    const struct running *r = arg;
    const struct plan *p = r->plan;
    const struct quant_conv *s = r->ctx->state;
    char *scratch = (char *)r->ctx->scratch + (size_t)task * p->each;
    if (s->depthwise) {
        const struct op_tensor *zero = r->ctx->in[X_ZERO];
        memset(scratch, quantized_byte(zero, 0) + (zero->dtype == OP_I8 ? 128 : 0), (size_t)p->copy_row);
    }
    for (int64_t unit = task; unit < p->n_units; unit += p->n_tasks) {
        if (!s->depthwise) {
            product_unit(r, unit, scratch);
            continue;
        }
        const int64_t row0 = unit % p->stripes * p->stripe, row1 = min64(row0 + p->stripe, p->f.out[0]);
        for (int64_t row = row0; row < row1; row++) depthwise_row(r, unit / p->stripes, row, (uint8_t *)scratch);
    }
}

static enum op_status conv_run(struct op_ctx *ctx) {
    struct plan p;
    if (!ctx->out[0] || op_tensor_count(ctx->out[0]) <= 0 || !make_plan(ctx, &p)) return OP_OK;
    struct running r = {.ctx = ctx, .plan = &p};
    if (p.apart) p.y = (uint8_t *)ctx->scratch + p.each * (size_t)p.n_tasks;
    op__parallel(ctx, p.n_tasks, conv_task, &r);
    if (p.apart) {
        const struct quant_conv *s = ctx->state;
        const struct op_tensor conv = {.dtype = ctx->in[Y_ZERO]->dtype, .rank = 4, .dims = {p.images, p.f.out[0], p.f.out[1], s->outputs}, .data = p.y};
        op__quant_sum(ctx, &(struct quant_sum){.a = &conv, .b = ctx->in[ADDEND], .y = ctx->out[0], .a_zero = (float)p.after.zero, .a_scale = s->after.mid_scale, .after = s->after});
    }
    return OP_OK;
}

static void conv_cost(const struct op_ctx *ctx, double *flops, double *bytes) {
    const struct quant_conv *s = ctx->state;
    (void)bytes;
    if (ctx->out[0]) *flops = 2.0 * (double)op_tensor_count(ctx->out[0]) * (double)(s->channels / s->group * s->kernel[0] * s->kernel[1]);
}

static const struct op_desc quant_conv = {
    .name = "ChannelsLastQuantConv",
    .domain = "quern",
    .since = 1,
    .in_min = 8,
    .in_max = N_INPUTS,
    .out_min = 1,
    .out_max = 1,
    .prepare = conv_prepare,
    .release = conv_release,
    .infer = conv_infer,
    .scratch = conv_scratch,
    .run = conv_run,
    .cost = conv_cost,
};
OP_REGISTER(quant_conv);
