/* quantize.c: QuantizeLinear, DequantizeLinear and DynamicQuantizeLinear.
 *
 * q = saturate(round(x / scale) + zero point), halves to even; x = (q - zero point) scale. Scale
 * and zero point are one value, one a slice along an axis, or (opset 21) one a block of
 * `block_size` elements of the axis. All three are one form: the tensor is (outer, n, inner), the
 * scale (outer or 1, groups, inner or 1), and the innermost loop runs over `inner` neighbours, or
 * over a whole run of the axis when inner is 1. */
#include "ops/kern/quant.h"
#include "ops/op/elementwise.h"
#include "ops/op/quantized.h"

#include <string.h>

OP_VECTOR_FILE

/* X(TYPE, T, lowest, highest) */
#define QUANTIZED_TYPES(X)                                                                         \
    X(U8, uint8_t, 0, UINT8_MAX)                                                                   \
    X(I8, int8_t, INT8_MIN, INT8_MAX)                                                              \
    X(U16, uint16_t, 0, UINT16_MAX)                                                                \
    X(I16, int16_t, INT16_MIN, INT16_MAX)                                                          \
    X(U4, uint8_t, 0, 15)                                                                          \
    X(I4, int8_t, -8, 7)                                                                           \
    X(U2, uint8_t, 0, 3)                                                                           \
    X(I2, int8_t, -2, 1)

static bool is_quantized(enum op_type type) {
    return type == OP_U8 || type == OP_I8 || type == OP_U16 || type == OP_I16 ||
           (op__is_narrow(type) && type != OP_F8E8M0);
}

struct quant_job {
    const struct op_tensor *x, *scale, *zero;
    struct op_tensor *y;
    int64_t n, inner, block; /* elements of the axis that share a scale */
    bool blocked;
    int64_t n_scales; /* along the axis: 1, n or n / block rounded up */
    bool saturate;    /* of float8 */
    const struct k_quant *kern; /* between f32 and bytes; NULL: the plain form */
};

static bool is_byte(const struct op_tensor *t) {
    return t->dtype == OP_U8 || t->dtype == OP_I8;
}

static float float_at(const struct op_tensor *t, int64_t i) {
    float v;
    if (op__is_narrow(t->dtype)) return op__narrow_to_f32(t->dtype, ((const uint8_t *)t->data)[i]);
    switch (t->dtype) {
    case OP_F32:
        return ((const float *)t->data)[i];
    case OP_F64:
        return (float)((const double *)t->data)[i];
    case OP_I32:
        return (float)((const int32_t *)t->data)[i];
    default:
        op__widen(t->dtype, &v, (const uint16_t *)t->data + i, 1);
        return v;
    }
}

static int32_t zero_at(const struct op_tensor *t, int64_t i) {
    if (!t || op__is_narrow_float(t->dtype)) return 0; /* of those it must be zero: infer asks for no more */
    switch (t->dtype) {
    case OP_U8:
    case OP_U4:
    case OP_U2:
        return ((const uint8_t *)t->data)[i];
    case OP_I8:
    case OP_I4:
    case OP_I2:
        return ((const int8_t *)t->data)[i];
    case OP_U16:
        return ((const uint16_t *)t->data)[i];
    case OP_I16:
        return ((const int16_t *)t->data)[i];
    default:
        return ((const int32_t *)t->data)[i];
    }
}

static void floats_of(const struct op_tensor *t, int64_t first, int64_t n, float *dst) {
    if (t->dtype == OP_F32)
        memcpy(dst, (const float *)t->data + first, (size_t)n * sizeof *dst);
    else
        for (int64_t i = 0; i < n; i++) dst[i] = float_at(t, first + i);
}

static void quantize_run(const struct quant_job *job, int64_t first, int64_t n, float scale,
                         int32_t zero) {
    if (job->kern && job->x->dtype == OP_F32 && is_byte(job->y)) {
        const bool is_signed = job->y->dtype == OP_I8;
        job->kern->quantize(n, (const float *)job->x->data + first, scale, (float)((is_signed ? INT8_MIN : 0) - zero),
                            (float)((is_signed ? INT8_MAX : UINT8_MAX) - zero), zero, (uint8_t *)job->y->data + first);
        return;
    }
    for (int64_t i = 0; i < n; i += OP_BLOCK) {
        float x[OP_BLOCK];
        const int64_t m = n - i < OP_BLOCK ? n - i : OP_BLOCK, at = first + i;
        floats_of(job->x, at, m, x);
        switch (job->y->dtype) {
#define X(TYPE, T, LOW, HIGH)                                                                      \
    case OP_##TYPE: {                                                                              \
        T *restrict y = (T *)job->y->data + at;                                                    \
        for (int64_t k = 0; k < m; k++)                                                            \
            y[k] = (T)(quantized_round(x[k] / scale, (float)(LOW - zero), (float)(HIGH - zero)) +  \
                       zero);                                                                      \
        break;                                                                                     \
    }
            QUANTIZED_TYPES(X)
#undef X
        default:
            for (int64_t k = 0; k < m; k++)
                ((uint8_t *)job->y->data)[at + k] = op__f32_to_narrow(
                    job->y->dtype, x[k] / scale, job->saturate, OP_ROUND_NEAREST);
        }
    }
}

static void dequantize_run(const struct quant_job *job, int64_t first, int64_t n, float scale,
                           int32_t zero) {
    if (job->kern && is_byte(job->x) && job->y->dtype == OP_F32) {
        job->kern->dequantize(n, (const uint8_t *)job->x->data + first, job->x->dtype == OP_I8, zero, scale, (float *)job->y->data + first);
        return;
    }
    for (int64_t i = 0; i < n; i += OP_BLOCK) {
        float y[OP_BLOCK];
        const int64_t m = n - i < OP_BLOCK ? n - i : OP_BLOCK, at = first + i;
        switch (job->x->dtype) {
#define X(TYPE, T, LOW, HIGH)                                                                      \
    case OP_##TYPE: {                                                                              \
        const T *restrict x = (const T *)job->x->data + at;                                        \
        for (int64_t k = 0; k < m; k++) y[k] = (float)((int32_t)x[k] - zero) * scale;              \
        break;                                                                                     \
    }
            QUANTIZED_TYPES(X)
#undef X
        case OP_I32:
            for (int64_t k = 0; k < m; k++)
                y[k] = (float)((int64_t)((const int32_t *)job->x->data)[at + k] - zero) * scale;
            break;
        default:
            for (int64_t k = 0; k < m; k++) y[k] = float_at(job->x, at + k) * scale;
        }
        if (job->y->dtype == OP_F32)
            memcpy((float *)job->y->data + at, y, (size_t)m * sizeof *y);
        else
            op__narrow(job->y->dtype, (uint16_t *)job->y->data + at, y, m);
    }
}

/* --- walking the scales ------------------------------------------------------------------------
 */

/* Task: one (outer, axis) position, `inner` neighbours. */
static void scale_task(const struct quant_job *job, int64_t task, bool quantize) {
    const int64_t o = task / job->n, i = task % job->n, first = task * job->inner;
    const int64_t group = job->n_scales == 1 ? 0 : i / job->block;
    void (*fn)(const struct quant_job *, int64_t, int64_t, float, int32_t) =
        quantize ? quantize_run : dequantize_run;
    if (!job->blocked) {
        fn(job, first, job->inner, float_at(job->scale, group), zero_at(job->zero, group));
        return;
    }
    for (int64_t j = 0; j < job->inner; j++) {
        const int64_t at = (o * job->n_scales + group) * job->inner + j;
        fn(job, first + j, 1, float_at(job->scale, at), zero_at(job->zero, at));
    }
}

static void quantize_task(void *arg, int64_t first, int64_t n) {
    for (int64_t i = first; i < first + n; i++) scale_task(arg, i, true);
}
static void dequantize_task(void *arg, int64_t first, int64_t n) {
    for (int64_t i = first; i < first + n; i++) scale_task(arg, i, false);
}

struct whole_job {
    const struct quant_job *job;
    bool quantize;
};
static void whole_piece(void *arg, int64_t first, int64_t n) {
    const struct whole_job *whole = arg;
    (whole->quantize ? quantize_run : dequantize_run)(
        whole->job, first, n, float_at(whole->job->scale, 0), zero_at(whole->job->zero, 0));
}

static enum op_status run(struct op_ctx *ctx, bool quantize, bool plain) {
    struct quant_job job = {
        .x = ctx->in[0], .scale = ctx->in[1], .zero = ctx->n_in > 2 ? ctx->in[2] : NULL,
        .y = ctx->out[0], .n = 1, .inner = 1, .block = 1, .n_scales = 1,
        .saturate = op__attr_int(ctx->node, "saturate", 1) != 0, .kern = plain ? NULL : op__kern(ctx)->quant};
    const struct op_tensor *x = job.x;
    const int64_t total = op_tensor_count(x);
    int64_t outer = 1;
    if (!job.y || total <= 0) return OP_OK;
    const int64_t block = op__attr_int(ctx->node, "block_size", 0);
    if (op_tensor_count(job.scale) == 1 &&
        block == 0) { /* one scale: the pieces need not follow the shape */
        struct whole_job whole = {&job, quantize};
        op__pieces(ctx, total, whole_piece, &whole);
        return OP_OK;
    }
    const int axis = op__axis(op__attr_int(ctx->node, "axis", 1), x->rank);
    for (int i = 0; i < x->rank; i++)
        *(i < axis ? &outer : i == axis ? &job.n : &job.inner) *= x->dims[i];
    job.blocked = block > 0;
    job.block = block > 0 ? block : 1;
    job.n_scales = job.scale->rank == 0 ? 1 : job.scale->dims[job.blocked ? axis : 0];
    op__pieces(ctx, outer * job.n, quantize ? quantize_task : dequantize_task, &job);
    return OP_OK;
}

/* --- the operators -----------------------------------------------------------------------------
 */

/* Whether scale (and zero point) fit x; the message if not. */
static enum op_status check_scale(const struct op_ctx *ctx, const struct op_tensor *zero) {
    const struct op_tensor *x = ctx->in[0], *s = ctx->in[1];
    const int64_t value = op__attr_int(ctx->node, "axis", 1),
                  block = op__attr_int(ctx->node, "block_size", 0);
    char ts[160], tx[160];
    bool same = !zero ||
                (zero->rank == s->rank &&
                 (s->rank == 0 || !memcmp(zero->dims, s->dims, (size_t)s->rank * sizeof *s->dims)));
    if (!same && op_tensor_count(zero) == 1 && op_tensor_count(s) == 1)
        same = true; /* a scalar and a vector of one */
    bool fits = same && block >= 0;
    const int axis = op__axis(value, x->rank);
    if (fits && block == 0)
        fits =
            op_tensor_count(s) == 1 || (s->rank == 1 && axis >= 0 && s->dims[0] == x->dims[axis]);
    if (fits && block > 0) {
        fits = axis >= 0 && s->rank == x->rank;
        for (int i = 0; fits && i < x->rank; i++)
            fits = s->dims[i] ==
                   (i == axis ? x->dims[i] / block + (x->dims[i] % block != 0) : x->dims[i]);
    }
    if (fits) return OP_OK;
    return op__fail(
        ctx, OP_BAD_SHAPE,
        "scale %s with axis %lld and block_size %lld does not fit input %s, or its zero point",
        op_tensor_describe(s, ts, sizeof ts), (long long)value, (long long)block,
        op_tensor_describe(x, tx, sizeof tx));
}

static enum op_status quantize_infer(struct op_ctx *ctx) {
    const struct op_tensor *x = ctx->in[0], *s = ctx->in[1],
                           *zero = ctx->n_in > 2 ? ctx->in[2] : NULL;
    if (!x || !s || x->kind != OP_KIND_TENSOR || !(op__is_float(x->dtype) || x->dtype == OP_I32) ||
        !(op__is_float(s->dtype) || s->dtype == OP_I32 || s->dtype == OP_F8E8M0))
        return op__fail(ctx, OP_BAD_TYPE, "takes floats and a scale of floats");
    const int64_t asked = op__attr_int(ctx->node, "output_dtype", 0);
    const enum op_type type = zero ? zero->dtype : asked ? (enum op_type)asked : OP_U8;
    if (!is_quantized(type))
        return op__fail(ctx, OP_UNSUPPORTED, "quantizes to integers of 2 to 16 bits and floats of 4 and 8, not to %s",
                        op_type_name(type));
    if (zero && asked && asked != (int64_t)zero->dtype)
        return op__fail(ctx, OP_BAD_TYPE, "output_dtype is %s, the zero point %s",
                        op_type_name((enum op_type)asked), op_type_name(zero->dtype));
    op__set(ctx, 0, type, x->rank, x->dims);
    return check_scale(ctx, zero);
}

static enum op_status quantize(struct op_ctx *ctx) {
    return run(ctx, true, false);
}

static enum op_status quantize_ref(struct op_ctx *ctx) {
    return run(ctx, true, true);
}

static const struct op_desc quantize_linear = {.name = "QuantizeLinear",
                                               .domain = "",
                                               .since = 10,
                                               .in_min = 2,
                                               .in_max = 3,
                                               .out_min = 1,
                                               .out_max = 1,
                                               .infer = quantize_infer,
                                               .run = quantize,
                                               .ref = quantize_ref};
OP_REGISTER(quantize_linear);

static enum op_status dequantize_infer(struct op_ctx *ctx) {
    const struct op_tensor *x = ctx->in[0], *s = ctx->in[1],
                           *zero = ctx->n_in > 2 ? ctx->in[2] : NULL;
    if (!x || !s || x->kind != OP_KIND_TENSOR || !(is_quantized(x->dtype) || x->dtype == OP_I32) ||
        !(s->dtype == OP_F32 || op__is_half(s->dtype) || s->dtype == OP_F8E8M0))
        return op__fail(ctx, OP_BAD_TYPE,
                        "takes a quantized type or i32 and a scale of f32, f16, bf16 or f8e8m0");
    if (zero && zero->dtype != x->dtype)
        return op__fail(ctx, OP_BAD_TYPE, "the zero point is %s, the input %s",
                        op_type_name(zero->dtype), op_type_name(x->dtype));
    const int64_t asked = op__attr_int(ctx->node, "output_dtype", 0);
    const enum op_type type = asked ? (enum op_type)asked : s->dtype == OP_F8E8M0 ? OP_F32 : s->dtype;
    if (type != OP_F32 && !op__is_half(type))
        return op__fail(ctx, OP_UNSUPPORTED, "gives f32, f16 and bf16, not ONNX's type %lld",
                        (long long)asked);
    op__set(ctx, 0, type, x->rank, x->dims);
    return check_scale(ctx, zero);
}

static enum op_status dequantize(struct op_ctx *ctx) {
    return run(ctx, false, false);
}

static enum op_status dequantize_ref(struct op_ctx *ctx) {
    return run(ctx, false, true);
}

static const struct op_desc dequantize_linear = {.name = "DequantizeLinear",
                                                 .domain = "",
                                                 .since = 10,
                                                 .in_min = 2,
                                                 .in_max = 3,
                                                 .out_min = 1,
                                                 .out_max = 1,
                                                 .infer = dequantize_infer,
                                                 .run = dequantize,
                                                 .ref = dequantize_ref};
OP_REGISTER(dequantize_linear);

/* --- DynamicQuantizeLinear: u8 over the range of x, which is widened to hold 0
 * -------------------- */

static enum op_status dynamic_infer(struct op_ctx *ctx) {
    const struct op_tensor *x = ctx->in[0];
    if (!x || x->kind != OP_KIND_TENSOR || x->dtype != OP_F32)
        return op__fail(ctx, OP_BAD_TYPE, "takes f32, not %s",
                        x ? op_type_name(x->dtype) : "(absent)");
    op__set(ctx, 0, OP_U8, x->rank, x->dims);
    op__set(ctx, 1, OP_F32, 0, NULL);
    op__set(ctx, 2, OP_U8, 0, NULL);
    return OP_OK;
}

static enum op_status dynamic_run(struct op_ctx *ctx) {
    const struct op_tensor *x = ctx->in[0];
    const struct k_vmath *math = op__kern(ctx)->math;
    const int64_t n = op_tensor_count(x);
    float low = n ? math->min(n, x->data) : 0, high = n ? math->max(n, x->data) : 0;
    low = low < 0 ? low : 0;
    high = high > 0 ? high : 0;
    float scale = (high - low) / 255.0f;
    int32_t zero_point = scale > 0 ? quantized_round(-low / scale, 0, UINT8_MAX) : 0;
    uint8_t zero_u8 = (uint8_t)zero_point;
    if (ctx->n_out > 1 && ctx->out[1]) *(float *)ctx->out[1]->data = scale;
    if (ctx->n_out > 2 && ctx->out[2]) *(uint8_t *)ctx->out[2]->data = zero_u8;
    if (!ctx->out[0] || n == 0) return OP_OK;
    const struct op_tensor s = {.dtype = OP_F32, .data = scale > 0 ? &scale : &(float){1}},
                           z = {.dtype = OP_U8, .data = &zero_u8};
    struct quant_job job = {.x = x, .scale = &s, .zero = &z, .y = ctx->out[0], .n = 1, .inner = 1, .block = 1, .n_scales = 1};
    job.kern = op__kern(ctx)->quant;
    struct whole_job whole = {&job, true};
    op__pieces(ctx, n, whole_piece, &whole);
    return OP_OK;
}

static const struct op_desc dynamic_quantize_linear = {.name = "DynamicQuantizeLinear",
                                                       .domain = "",
                                                       .since = 11,
                                                       .in_min = 1,
                                                       .in_max = 1,
                                                       .out_min = 1,
                                                       .out_max = 3,
                                                       .infer = dynamic_infer,
                                                       .run = dynamic_run};
OP_REGISTER(dynamic_quantize_linear);

/* The domain in which ONNX Runtime's tools write 16-bit QDQ models of older opsets. */
static const struct op_desc quantize_linear_ms = {.name = "QuantizeLinear",
                                                  .domain = "com.microsoft",
                                                  .since = 1,
                                                  .in_min = 2,
                                                  .in_max = 3,
                                                  .out_min = 1,
                                                  .out_max = 1,
                                                  .infer = quantize_infer,
                                                  .run = quantize,
                                                  .ref = quantize_ref};
OP_REGISTER(quantize_linear_ms);
static const struct op_desc dequantize_linear_ms = {.name = "DequantizeLinear",
                                                    .domain = "com.microsoft",
                                                    .since = 1,
                                                    .in_min = 2,
                                                    .in_max = 3,
                                                    .out_min = 1,
                                                    .out_max = 1,
                                                    .infer = dequantize_infer,
                                                    .run = dequantize,
                                                    .ref = dequantize_ref};
OP_REGISTER(dequantize_linear_ms);
