/* Range: start, start + delta, … below (delta > 0) or above (delta < 0) limit. Element i is start +
 * i * delta, so that rounding errors do not add up. */
#include "ops/op/move.h"

#include <math.h>

/* How many elements; the difference of two i64 needs more than 64 bits. */
static enum op_status count_ints(const struct op_ctx *ctx, int64_t start, int64_t limit,
                                 int64_t delta, int64_t *n) {
    if (delta == 0) return op__fail(ctx, OP_BAD_VALUE, "delta is 0");
    __int128 span = (__int128)limit - start, step = delta;
    if (step < 0) span = -span, step = -step;
    __int128 count = span <= 0 ? 0 : (span + step - 1) / step;
    if (count > INT64_MAX / 8)
        return op__fail(ctx, OP_LIMIT, "the range from %lld to %lld by %lld is too long",
                        (long long)start, (long long)limit, (long long)delta);
    *n = (int64_t)count;
    return OP_OK;
}

static enum op_status count_floats(const struct op_ctx *ctx, double start, double limit,
                                   double delta, int64_t *n) {
    double count = ceil((limit - start) / delta);
    if (delta == 0 || isnan(count))
        return op__fail(ctx, OP_BAD_VALUE, "there is no range from %g to %g by %g", start, limit,
                        delta);
    if (count > 1e15)
        return op__fail(ctx, OP_LIMIT, "the range from %g to %g by %g is too long", start, limit,
                        delta);
    *n = count > 0 ? (int64_t)count : 0;
    return OP_OK;
}

static double real_at(const struct op_tensor *t) {
    switch (t->dtype) {
    case OP_F32:
        return *(const float *)t->data;
    case OP_F16:
        return op__f16_to_f32(*(const uint16_t *)t->data);
    case OP_BF16:
        return op__bf16_to_f32(*(const uint16_t *)t->data);
    default:
        return *(const double *)t->data;
    }
}

static int64_t whole_at(const struct op_tensor *t) {
    return t->dtype == OP_I16 ? *(const int16_t *)t->data : op__int_at(t, 0);
}

static enum op_status range_infer(struct op_ctx *ctx) {
    static const char *const names[] = {"start", "limit", "delta"};
    enum op_status st = op__need_tensors(ctx, 3);
    char text[OP__TENSOR_TEXT];
    int64_t n = 0;
    if (st != OP_OK) return st;
    const struct op_tensor *const *in = ctx->in;
    enum op_type type = in[0]->dtype;
    bool real = type == OP_F32 || type == OP_F64 || type == OP_F16 || type == OP_BF16;
    if (!real && type != OP_I16 && type != OP_I32 && type != OP_I64)
        return op__fail(ctx, OP_UNSUPPORTED, "a range of %s is not supported", op_type_name(type));
    for (int i = 0; i < 3; i++)
        if (in[i]->dtype != type || op_tensor_count(in[i]) != 1)
            return op__fail(ctx, OP_BAD_TYPE, "%s is %s, a scalar %s is expected", names[i],
                            op__text(in[i], text), op_type_name(type));
    for (int i = 0; i < 3; i++)
        if (!op__known(in[i])) return OP_NEED_DATA;
    st = real ? count_floats(ctx, real_at(in[0]), real_at(in[1]), real_at(in[2]), &n)
              : count_ints(ctx, whole_at(in[0]), whole_at(in[1]), whole_at(in[2]), &n);
    if (st == OP_OK) op__set(ctx, 0, type, 1, &n);
    return st;
}

static enum op_status range_run(struct op_ctx *ctx) {
    struct op_tensor *y = ctx->out[0];
    const struct op_tensor *from = ctx->in[0], *by = ctx->in[2];
    int64_t n = y->dims[0];
#define FILL(T, VALUE)                                                                             \
    {                                                                                              \
        T *d = y->data;                                                                            \
        for (int64_t i = 0; i < n; i++) d[i] = VALUE;                                              \
    }                                                                                              \
    break
    double start = 0, delta = 0;
    int64_t s = 0, step = 0;
    if (y->dtype == OP_I16 || y->dtype == OP_I32 || y->dtype == OP_I64)
        s = whole_at(from), step = whole_at(by);
    else
        start = real_at(from), delta = real_at(by);
    switch (y->dtype) {
    case OP_F32:
        FILL(float, (float)start + (float)i * (float)delta);
    case OP_F64:
        FILL(double, start + (double)i * delta);
    case OP_F16:
        FILL(uint16_t, op__f32_to_f16((float)(start + (double)i * delta)));
    case OP_BF16:
        FILL(uint16_t, op__f32_to_bf16((float)(start + (double)i * delta)));
    case OP_I16:
        FILL(int16_t, (int16_t)(s + i * step));
    case OP_I32:
        FILL(int32_t, (int32_t)(s + i * step));
    default:
        FILL(int64_t, (int64_t)((uint64_t)s +
                                (uint64_t)i * (uint64_t)step)); /* i * step alone may not fit */
    }
    return OP_OK;
}

static const struct op_desc range = {
    .name = "Range",
    .domain = "",
    .since = 11,
    .in_min = 3,
    .in_max = 3,
    .out_min = 1,
    .out_max = 1,
    .infer = range_infer,
    .run = range_run,
};
OP_REGISTER(range);
