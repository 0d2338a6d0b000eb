/* clip.c: Clip. min(max(x, low), high), so that high wins where low is above it; NaN stays NaN. Up
 * to opset 10 the limits were attributes; they become f32 inputs at load, whatever the type of x.
 */
#include "ops/op/elementwise.h"

#include <math.h>

OP_VECTOR_FILE

#define TYPES(X)                                                                                   \
    X(f32, F32, float, -INFINITY, INFINITY)                                                        \
    X(f64, F64, double, -INFINITY, INFINITY)                                                       \
    X(i8, I8, int8_t, INT8_MIN, INT8_MAX)                                                          \
    X(i16, I16, int16_t, INT16_MIN, INT16_MAX)                                                     \
    X(i32, I32, int32_t, INT32_MIN, INT32_MAX)                                                     \
    X(i64, I64, int64_t, INT64_MIN, INT64_MAX)                                                     \
    X(u8, U8, uint8_t, 0, UINT8_MAX)                                                               \
    X(u16, U16, uint16_t, 0, UINT16_MAX)                                                           \
    X(u32, U32, uint32_t, 0, UINT32_MAX)                                                           \
    X(u64, U64, uint64_t, 0, UINT64_MAX)

/* Tensors of one element, or NULL. */
struct limits {
    const struct op_tensor *low, *high;
};

static float f32_limit(const struct op_tensor *t) {
    float v;
    if (t->dtype == OP_F32) return *(const float *)t->data;
    op__widen(t->dtype, &v, t->data, 1);
    return v;
}
/* A limit of x's own type, or an f32 one that an attribute became. */
#define LIMIT(T, TYPE, t, none)                                                                    \
    (!(t) || !(t)->data ? (T)(none) : (t)->dtype == TYPE ? *(const T *)(t)->data : (T)f32_limit(t))

#define CLIP(suffix, TYPE, T, LOWEST, HIGHEST)                                                     \
    static void clip_##suffix(T *d, const T *s, int64_t n, const struct limits *l) {               \
        const T low = LIMIT(T, OP_##TYPE, l->low, LOWEST),                                         \
                high = LIMIT(T, OP_##TYPE, l->high, HIGHEST);                                      \
        OP_INDEPENDENT for (int64_t i = 0; i < n; i++) {                                           \
            T x = s[i];                                                                            \
            x = x < low ? low : x;                                                                 \
            d[i] = x > high ? high : x;                                                            \
        }                                                                                          \
    }
TYPES(CLIP)

struct clip_job {
    struct limits limits;
    enum op_type type;
    char *dst;
    const char *src;
};

static void clip_piece(void *arg, int64_t first, int64_t n) {
    const struct clip_job *job = arg;
    const size_t size = op_type_size(job->type);
    char *dst = job->dst + (size_t)first * size;
    const char *src = job->src + (size_t)first * size;
    switch (job->type) {
#define X(suffix, TYPE, T, LOWEST, HIGHEST)                                                        \
    case OP_##TYPE:                                                                                \
        clip_##suffix((T *)(void *)dst, (const T *)(const void *)src, n, &job->limits);            \
        break;
        TYPES(X)
#undef X
    default:
        for (int64_t i = 0; i < n; i += OP_BLOCK) {
            float x[OP_BLOCK];
            int64_t m = n - i < OP_BLOCK ? n - i : OP_BLOCK;
            op__widen(job->type, x, src + 2 * i, m);
            clip_f32(x, x, m, &job->limits);
            op__narrow(job->type, dst + 2 * i, x, m);
        }
    }
}

static enum op_status clip_upgrade(struct op_graph *g, struct op_node *n, int opset,
                                   struct op_error *err) {
    if (opset >= 11) return OP_OK;
    enum op_status status = op__attr_float_to_input(g, n, "min", 1, OP_F32, err);
    return status == OP_OK ? op__attr_float_to_input(g, n, "max", 2, OP_F32, err) : status;
}

static enum op_status clip_infer(struct op_ctx *ctx) {
    const struct op_tensor *x = ctx->in[0];
    if (!x || x->kind != OP_KIND_TENSOR || !(op__is_float(x->dtype) || op__is_int(x->dtype)))
        return op__fail(ctx, OP_BAD_TYPE, "takes numbers, not %s",
                        x ? op_type_name(x->dtype) : "(absent)");
    for (int i = 1; i < ctx->n_in && i < 3; i++) {
        const struct op_tensor *t = ctx->in[i];
        if (!t) continue;
        if (t->dtype != x->dtype && !(t->dtype == OP_F32 && op__is_float(x->dtype)))
            return op__fail(ctx, OP_BAD_TYPE, "a limit is %s, the input %s", op_type_name(t->dtype),
                            op_type_name(x->dtype));
        if (op_tensor_count(t) != 1) {
            char text[160];
            return op__fail(ctx, OP_BAD_SHAPE, "a limit is %s, must be a scalar",
                            op_tensor_describe(t, text, sizeof text));
        }
    }
    op__set_like(ctx, 0, 0);
    return OP_OK;
}

static enum op_status clip_run(struct op_ctx *ctx) {
    if (!ctx->out[0]) return OP_OK;
    struct clip_job job = {
        .limits = {ctx->n_in > 1 ? ctx->in[1] : NULL, ctx->n_in > 2 ? ctx->in[2] : NULL},
        .type = ctx->in[0]->dtype,
        .dst = ctx->out[0]->data,
        .src = ctx->in[0]->data,
    };
    op__pieces(ctx, op_tensor_count(ctx->in[0]), clip_piece, &job);
    return OP_OK;
}

static const struct op_desc clip = {.name = "Clip",
                                    .domain = "",
                                    .since = 1,
                                    .in_min = 1,
                                    .in_max = 3,
                                    .out_min = 1,
                                    .out_max = 1,
                                    .inplace = 1,
                                    .upgrade = clip_upgrade,
                                    .infer = clip_infer,
                                    .run = clip_run};
OP_REGISTER(clip);
