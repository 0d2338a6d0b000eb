/* random.c: RandomUniform, RandomNormal, their Like forms, Bernoulli and Multinomial, and the
 * generator (random.h). One node draws its numbers one after the other in row-major order. */
#include "ops/op/random.h"
#include "ops/op/nn.h"

#include <math.h>
#include <string.h>

/* --- the generator -----------------------------------------------------------------------------
 */

#define N 624
#define M 397

static void seed_with(struct op_random *r, uint32_t seed) {
    r->state[0] = seed;
    for (uint32_t i = 1; i < N; i++)
        r->state[i] = 1812433253u * (r->state[i - 1] ^ (r->state[i - 1] >> 30)) + i;
    r->at = N;
    r->has_normal = false;
}

static void refill(struct op_random *r) {
    uint32_t *s = r->state;
    for (int i = 0; i < N; i++) {
        const uint32_t y = (s[i] & 0x80000000u) | (s[(i + 1) % N] & 0x7fffffffu);
        s[i] = s[(i + M) % N] ^ (y >> 1) ^ (y & 1 ? 0x9908b0dfu : 0);
    }
    r->at = 0;
}

static uint32_t next_word(struct op_random *r) {
    if (r->at == N) refill(r);
    uint32_t y = r->state[r->at++];
    y ^= y >> 11;
    y ^= y << 7 & 0x9d2c5680u;
    y ^= y << 15 & 0xefc60000u;
    return y ^ y >> 18;
}

double op__random_uniform(struct op_random *r) {
    const uint32_t high = next_word(r) >> 5, low = next_word(r) >> 6;
    return (high * 67108864.0 + low) / 9007199254740992.0;
}

double op__random_normal(struct op_random *r) {
    double x, y, square;
    if (r->has_normal) {
        r->has_normal = false;
        return r->normal;
    }
    do {
        x = 2 * op__random_uniform(r) - 1;
        y = 2 * op__random_uniform(r) - 1;
        square = x * x + y * y;
    } while (square >= 1 || square == 0);
    const double f = sqrt(-2 * log(square) / square);
    r->normal = f * x;
    r->has_normal = true;
    return f * y;
}

void op__random_init(struct op_random *r, const struct op_ctx *ctx) {
    const struct op_attr *a = op__attr(ctx->node, "seed");
    if (a && a->kind == OP_ATTR_INT) {
        seed_with(r, (uint32_t)a->i);
    } else if (a && a->kind == OP_ATTR_FLOAT) {
        seed_with(r, a->f > -4e18f && a->f < 4e18f ? (uint32_t)(int64_t)a->f : 0);
    } else { /* 64 bits: the second half goes over the whole state */
        const uint64_t bits = op__random(ctx);
        seed_with(r, (uint32_t)bits);
        for (int i = 0; i < N; i++) r->state[i] ^= (uint32_t)(bits >> 32) * (uint32_t)(2 * i + 1);
    }
}

/* --- RandomUniform, RandomNormal ---------------------------------------------------------------
 */

static bool is_like(const struct op_ctx *ctx) {
    const char *name = ctx->node->desc->name;
    return !strcmp(name + strlen(name) - 4, "Like");
}

static enum op_status random_infer(struct op_ctx *ctx) {
    const bool like = is_like(ctx);
    const int64_t asked = op__attr_int(ctx->node, "dtype", 0);
    int64_t rank = 0;
    const int64_t *dims = like ? NULL : op__attr_ints(ctx->node, "shape", &rank);
    enum op_type type = asked ? (enum op_type)asked : OP_F32;
    if (like) {
        if (!ctx->in[0] || ctx->in[0]->kind != OP_KIND_TENSOR)
            return op__fail(ctx, OP_BAD_TYPE, "takes a tensor");
        if (!asked) type = ctx->in[0]->dtype;
        rank = ctx->in[0]->rank;
        dims = ctx->in[0]->dims;
    }
    if (!nn_is_float(type))
        return op__fail(ctx, OP_BAD_TYPE, "makes f32, f64, f16 or bf16, not %s",
                        op_type_name(type));
    if (rank > OP_RANK_MAX)
        return op__fail(ctx, OP_LIMIT, "the shape has rank %lld, at most %d is supported",
                        (long long)rank, OP_RANK_MAX);
    for (int64_t i = 0; i < rank; i++)
        if (dims[i] < 0)
            return op__fail(ctx, OP_BAD_VALUE, "dimension %lld of the shape is %lld", (long long)i,
                            (long long)dims[i]);
    op__set(ctx, 0, type, (int)rank, dims);
    return OP_OK;
}

static enum op_status uniform_run(struct op_ctx *ctx) {
    const double low = op__attr_float(ctx->node, "low", 0),
                 high = op__attr_float(ctx->node, "high", 1);
    struct op_random r;
    op__random_init(&r, ctx);
    const int64_t n = ctx->out[0] ? op_tensor_count(ctx->out[0]) : 0;
    for (int64_t i = 0; i < n; i++)
        nn_store(ctx->out[0], i, low + (high - low) * op__random_uniform(&r));
    return OP_OK;
}

static enum op_status normal_run(struct op_ctx *ctx) {
    const double mean = op__attr_float(ctx->node, "mean", 0),
                 scale = op__attr_float(ctx->node, "scale", 1);
    struct op_random r;
    op__random_init(&r, ctx);
    const int64_t n = ctx->out[0] ? op_tensor_count(ctx->out[0]) : 0;
    for (int64_t i = 0; i < n; i++) nn_store(ctx->out[0], i, mean + scale * op__random_normal(&r));
    return OP_OK;
}

#define ROW(id, NAME, IN, INFER, RUN, SINCE)                                                       \
    static const struct op_desc id = {.name = NAME,                                                \
                                      .domain = "",                                                \
                                      .since = SINCE,                                              \
                                      .in_min = IN,                                                \
                                      .in_max = IN,                                                \
                                      .out_min = 1,                                                \
                                      .out_max = 1,                                                \
                                      .flags = OP_F_RANDOM,                                        \
                                      .infer = INFER,                                              \
                                      .run = RUN};                                                 \
    OP_REGISTER(id)
ROW(random_uniform, "RandomUniform", 0, random_infer, uniform_run, 1);
ROW(random_uniform_like, "RandomUniformLike", 1, random_infer, uniform_run, 1);
ROW(random_normal, "RandomNormal", 0, random_infer, normal_run, 1);
ROW(random_normal_like, "RandomNormalLike", 1, random_infer, normal_run, 1);

/* --- Bernoulli: 1 with the probability that the input says
 * ---------------------------------------- */

static enum op_status bernoulli_infer(struct op_ctx *ctx) {
    const int64_t asked = op__attr_int(ctx->node, "dtype", 0);
    enum op_status status = op__nn_float(ctx, 0, "input");
    if (status != OP_OK) return status;
    const enum op_type type = asked ? (enum op_type)asked : ctx->in[0]->dtype;
    if (asked < 0 || op_type_size(type) == 0 || op__is_narrow(type) || type == OP_STRING || type == OP_C64 ||
        type == OP_C128)
        return op__fail(ctx, OP_UNSUPPORTED, "makes no elements of ONNX's type %lld",
                        (long long)asked);
    op__set(ctx, 0, type, ctx->in[0]->rank, ctx->in[0]->dims);
    return OP_OK;
}

static enum op_status bernoulli_run(struct op_ctx *ctx) {
    struct op_random r;
    op__random_init(&r, ctx);
    const int64_t n = ctx->out[0] ? op_tensor_count(ctx->out[0]) : 0;
    for (int64_t i = 0; i < n; i++)
        nn_store(ctx->out[0], i, op__random_uniform(&r) < nn_load(ctx->in[0], i));
    return OP_OK;
}
ROW(bernoulli, "Bernoulli", 1, bernoulli_infer, bernoulli_run, 15);

/* --- Multinomial: class indices drawn from unnormalised log-probabilities (batch, classes) -------
 */

static enum op_status multinomial_infer(struct op_ctx *ctx) {
    const int64_t asked = op__attr_int(ctx->node, "dtype", OP_I32),
                  samples = op__attr_int(ctx->node, "sample_size", 1);
    enum op_status status = op__nn_float(ctx, 0, "input");
    if (status != OP_OK) return status;
    if (asked != OP_I32 && asked != OP_I64)
        return op__fail(ctx, OP_BAD_TYPE, "makes i32 or i64, not ONNX's type %lld",
                        (long long)asked);
    if (ctx->in[0]->rank != 2 || ctx->in[0]->dims[1] < 1)
        return op__fail(ctx, OP_BAD_SHAPE, "the input must be (batch, classes)");
    if (samples < 0) return op__fail(ctx, OP_BAD_VALUE, "sample_size is %lld", (long long)samples);
    op__set(ctx, 0, (enum op_type)asked, 2, (int64_t[]){ctx->in[0]->dims[0], samples});
    return OP_OK;
}

static enum op_status multinomial_run(struct op_ctx *ctx) {
    const struct op_tensor *x = ctx->in[0], *y = ctx->out[0];
    struct op_random r;
    op__random_init(&r, ctx);
    if (!y || op_tensor_count(y) <= 0) return OP_OK;
    for (int64_t i = 0; i < y->dims[0]; i++) {
        const int64_t classes = x->dims[1], row = i * classes;
        double top = -INFINITY, sum = 0;
        for (int64_t c = 0; c < classes; c++) top = fmax(top, nn_load(x, row + c));
        for (int64_t c = 0; c < classes; c++) sum += exp(nn_load(x, row + c) - top);
        for (int64_t k = 0; k < y->dims[1]; k++) {
            double left = op__random_uniform(&r) * sum;
            int64_t c = 0;
            for (; c < classes - 1; c++) {
                left -= exp(nn_load(x, row + c) - top);
                if (left < 0) break;
            }
            nn_store(y, i * y->dims[1] + k, (double)c);
        }
    }
    return OP_OK;
}
ROW(multinomial, "Multinomial", 1, multinomial_infer, multinomial_run, 7);
