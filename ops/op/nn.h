/* nn.h: what the neural-network operators of this folder share. Internal to ops/op/.
 *
 * Two things: elements of any float type as doubles, for the plain forms; and the geometry of a sliding
 * window (pooling, convolution), which is where hostile attributes meet shapes, so that the checks stand in
 * one place. */
#ifndef QUERN_OP_NN_H
#define QUERN_OP_NN_H

#include "ops/op.h"

#define NN_SPATIAL_MAX (OP_RANK_MAX - 2)
#define NN_ATTR_MAX ((int64_t)1 << 31)   /* of a kernel, stride, dilation or pad: sums of a few products fit 63 bits */
#define NN_EXTENT_MAX ((int64_t)1 << 40) /* of one dimension */

static inline bool nn_is_float(enum op_type t) {
    return t == OP_F32 || t == OP_F64 || t == OP_F16 || t == OP_BF16;
}

/* Element i as a double. Integers beyond 2^53 lose bits: no operator here computes on them. */
static inline double nn_load(const struct op_tensor *t, int64_t i) {
    switch (t->dtype) {
    case OP_F32: return ((const float *)t->data)[i];
    case OP_F64: return ((const double *)t->data)[i];
    case OP_F16: return (double)op__f16_to_f32(((const uint16_t *)t->data)[i]);
    case OP_BF16: return (double)op__bf16_to_f32(((const uint16_t *)t->data)[i]);
    case OP_U8: return ((const uint8_t *)t->data)[i];
    case OP_I8: return ((const int8_t *)t->data)[i];
    case OP_U16: return ((const uint16_t *)t->data)[i];
    case OP_I16: return ((const int16_t *)t->data)[i];
    case OP_U32: return ((const uint32_t *)t->data)[i];
    case OP_I32: return ((const int32_t *)t->data)[i];
    case OP_U64: return (double)((const uint64_t *)t->data)[i];
    case OP_I64: return (double)((const int64_t *)t->data)[i];
    case OP_BOOL: return ((const uint8_t *)t->data)[i] != 0;
    default: return 0;
    }
}

/* v as an integer in [lo, hi], rounded half to even; NaN is 0. */
static inline double nn_round_to(double v, double lo, double hi) {
    double r = v == v ? __builtin_rint(v) : 0;
    return r < lo ? lo : r > hi ? hi : r;
}

static inline void nn_store(const struct op_tensor *t, int64_t i, double v) {
    switch (t->dtype) {
    case OP_F32: ((float *)t->data)[i] = (float)v; break;
    case OP_F64: ((double *)t->data)[i] = v; break;
    case OP_F16: ((uint16_t *)t->data)[i] = op__f32_to_f16((float)v); break;
    case OP_BF16: ((uint16_t *)t->data)[i] = op__f32_to_bf16((float)v); break;
    case OP_U8: ((uint8_t *)t->data)[i] = (uint8_t)nn_round_to(v, 0, UINT8_MAX); break;
    case OP_I8: ((int8_t *)t->data)[i] = (int8_t)nn_round_to(v, INT8_MIN, INT8_MAX); break;
    case OP_U16: ((uint16_t *)t->data)[i] = (uint16_t)nn_round_to(v, 0, UINT16_MAX); break;
    case OP_I16: ((int16_t *)t->data)[i] = (int16_t)nn_round_to(v, INT16_MIN, INT16_MAX); break;
    case OP_U32: ((uint32_t *)t->data)[i] = (uint32_t)nn_round_to(v, 0, UINT32_MAX); break;
    case OP_I32: ((int32_t *)t->data)[i] = (int32_t)nn_round_to(v, INT32_MIN, INT32_MAX); break;
    case OP_U64: ((uint64_t *)t->data)[i] = (uint64_t)nn_round_to(v, 0, 0x1.fffffffffffffp63); break;
    case OP_I64: ((int64_t *)t->data)[i] = (int64_t)nn_round_to(v, -0x1p63, 0x1.fffffffffffffp62); break;
    case OP_BOOL: ((uint8_t *)t->data)[i] = v != 0; break;
    default: break;
    }
}

/* The input is there and a float tensor (f32, f64, f16, bf16). `name` is the specification's name of it. */
enum op_status op__nn_float(const struct op_ctx *ctx, int i, const char *name);
/* The same and of this type and rank; rank -1: any. */
enum op_status op__nn_like(const struct op_ctx *ctx, int i, const char *name, enum op_type type, int rank);
/* The input is of this shape; fails naming the found and the expected. */
enum op_status op__nn_shape(const struct op_ctx *ctx, int i, const char *name, int rank, const int64_t *dims);
/* Input i, or NULL where it is absent or the node has fewer. */
static inline const struct op_tensor *nn_in(const struct op_ctx *ctx, int i) {
    return i < ctx->n_in ? ctx->in[i] : NULL;
}
static inline struct op_tensor *nn_out(const struct op_ctx *ctx, int i) {
    return i < ctx->n_out ? ctx->out[i] : NULL;
}

/* An element of an integer or float tensor of one element: a size, a count, a flag. OP_NEED_DATA where data is not known. */
enum op_status op__nn_scalar_int(const struct op_ctx *ctx, int i, const char *name, int64_t *dst);

/* --- the sliding window ------------------------------------------------------------------------ */

enum nn_auto_pad { NN_NOTSET, NN_VALID, NN_SAME_UPPER, NN_SAME_LOWER };

/* Attributes as the file gives them. n_kernel 0: no kernel_shape (a convolution has it from its weights); pads, strides and
 * dilations that are absent are filled when the rank is known. */
struct nn_window {
    int n_kernel, n_stride, n_dilation, n_pad;
    int64_t kernel[NN_SPATIAL_MAX], stride[NN_SPATIAL_MAX], dilation[NN_SPATIAL_MAX];
    int64_t pad[2 * NN_SPATIAL_MAX]; /* begins, then ends */
    enum nn_auto_pad auto_pad;
    bool ceil_mode;
};

/* A window fitted to one input shape. */
struct nn_fit {
    int rank;
    int64_t in[NN_SPATIAL_MAX], out[NN_SPATIAL_MAX];
    int64_t kernel[NN_SPATIAL_MAX], stride[NN_SPATIAL_MAX], dilation[NN_SPATIAL_MAX];
    int64_t begin[NN_SPATIAL_MAX], end[NN_SPATIAL_MAX]; /* padding */
    int64_t in_size, out_size;                          /* products; out_size fits because op_tensor_count did */
};

enum op_status op__nn_window_parse(struct op_prepare *p, bool need_kernel, struct nn_window *w);
/* `kernel` NULL: the window's own. in: the spatial extents, rank of them. Refuses what gives no output. */
enum op_status op__nn_window_fit(const struct op_ctx *ctx, const struct nn_window *w, int rank, const int64_t *in, const int64_t *kernel,
                                 struct nn_fit *fit);

/* The taps of output o along axis a that fall inside the input: *first tap, *n of them, and the input position of the first. */
static inline void nn_taps(const struct nn_fit *f, int a, int64_t o, int64_t *first, int64_t *n, int64_t *pos) {
    int64_t start = o * f->stride[a] - f->begin[a], d = f->dilation[a];
    int64_t lo = start < 0 ? (-start + d - 1) / d : 0;
    int64_t hi = start >= f->in[a] ? -1 : (f->in[a] - 1 - start) / d;
    if (hi > f->kernel[a] - 1) hi = f->kernel[a] - 1;
    *first = lo;
    *n = hi >= lo ? hi - lo + 1 : 0;
    *pos = start + lo * d;
}

/* Taps of output o along axis a that lie in the input or, with pads, in the padded input. */
static inline int64_t nn_counted(const struct nn_fit *f, int a, int64_t o, bool pads) {
    int64_t first, n, pos;
    nn_taps(f, a, o, &first, &n, &pos);
    if (!pads) return n;
    int64_t left = f->in[a] + f->end[a] - (o * f->stride[a] - f->begin[a]); /* > 0: windows begin inside */
    int64_t most = (left + f->dilation[a] - 1) / f->dilation[a];
    return most < f->kernel[a] ? most : f->kernel[a];
}

/* Counts up idx over dims, the last fastest; false when it wraps round. */
static inline bool nn_next(int64_t *idx, const int64_t *dims, int rank) {
    for (int a = rank - 1; a >= 0; a--) {
        if (++idx[a] < dims[a]) return true;
        idx[a] = 0;
    }
    return false;
}

#endif
