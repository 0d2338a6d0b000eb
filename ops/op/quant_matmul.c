/* quern's QuantMatMul, which the pass fuse_quantized makes of a product between DequantizeLinear and QuantizeLinear.
 *
 * Inputs of QuantMatMul (A (..., M, K) and B (K, N) or (..., K, N), or (N, K) with transB; scales f32; zero points of their tensors' types):
 *   0 a   1 its scale   2 its zero point   3 b   4 its scale (one, or one a column)   5 its zero point
 *   6 bias of N: i32 (in units of both scales, added to the sums) or f32 (added to the floats)
 *   7 scale   8 zero point of a quantization on the way    9 scale  10 zero point of the result; both pairs may be absent
 * sum -> [round to 7, 8 and back] -> + f32 bias -> activation -> [quantize by 9, 10]; f32 without the last. A sum that goes to bytes
 * directly is scaled once, by (a's scale * b's scale) / y's scale, as QLinearMatMul does it; the way through f32 would round twice. */
#include "ops/op/quant_product.h"
#include "ops/op/quantized.h"

#include <stdlib.h>
#include <string.h>

enum { A, A_SCALE, A_ZERO, B, B_SCALE, B_ZERO, BIAS, MID_SCALE, MID_ZERO, Y_SCALE, Y_ZERO, N_INPUTS };

struct state {
    struct quant_rhs rhs;
    struct op__activation act;
    bool transposed;
};

struct shape {
    int64_t m, n, k, batch; /* batch: products, each of its own B */
    int64_t b_count;        /* matrices of B */
    int rank;
    int64_t dims[OP_RANK_MAX], a_step[OP_RANK_MAX], b_step[OP_RANK_MAX]; /* in matrices; 0 where broadcast */
};

static const struct op_tensor *input(const struct op_ctx *ctx, int i) {
    return i < ctx->n_in ? ctx->in[i] : NULL;
}

static enum op_status quant_prepare(struct op_prepare *p) {
    struct state *s = calloc(1, sizeof *s);
    if (!s) return op__node_fail(p->err, p->node, OP_NOMEM, "no memory");
    p->node->state = s;
    s->transposed = op__attr_int(p->node, "transB", 0) != 0;
    enum op_status status = op__activation_parse(p->node, p->err, &s->act);
    if (status == OP_OK) status = op__quant_rhs_pack(p, B, s->transposed, &s->rhs);
    if (s->rhs.data) p->consumed |= 1u << B;
    return status;
}

static void quant_release(void *state) {
    struct state *s = state;
    if (s) op__quant_rhs_free(&s->rhs);
    free(s);
}

static void batch_steps(const struct op_tensor *t, const struct shape *s, int64_t *steps) {
    int64_t step = 1;
    for (int i = s->rank - 1, j = t->rank - 3; i >= 0; i--, j--) {
        const int64_t dim = j >= 0 ? t->dims[j] : 1;
        steps[i] = dim == 1 ? 0 : step;
        step *= dim;
    }
}

static int batch_rank(const struct op_tensor *t) {
    return t->rank > 2 ? t->rank - 2 : 0;
}

/* False where the shapes do not multiply. */
static bool shape_of(const struct op_ctx *ctx, struct shape *s) {
    const struct state *state = ctx->state;
    const struct op_tensor *a = ctx->in[A], *b = ctx->in[B];
    const int64_t column[2] = {b->dims[0], 1}, *tail = b->rank > 1 ? b->dims + b->rank - 2 : column; /* vectors are a row, a column */
    *s = (struct shape){.m = a->rank > 1 ? a->dims[a->rank - 2] : 1, .k = a->dims[a->rank - 1], .n = tail[!state->transposed], .batch = 1, .b_count = 1};
    if (tail[state->transposed] != s->k || !op__broadcast(batch_rank(a), a->dims, batch_rank(b), b->dims, &s->rank, s->dims)) return false;
    batch_steps(a, s, s->a_step);
    batch_steps(b, s, s->b_step);
    bool rows = true; /* one B, no A repeats: the batch is more rows */
    for (int i = 0; i < s->rank; i++) {
        rows = rows && (s->dims[i] == 1 || (s->b_step[i] == 0 && s->a_step[i] != 0));
        s->batch *= s->dims[i];
    }
    for (int i = 0; i < b->rank - 2; i++) s->b_count *= b->dims[i];
    if (!rows) return true;
    s->m *= s->batch;
    s->batch = 1;
    s->rank = 0;
    return true;
}

static bool is_one(const struct op_tensor *scale, const struct op_tensor *zero) {
    return quantized_is_scale(scale) && quantized_is_byte(zero) && op_tensor_count(scale) == 1 && op_tensor_count(zero) == 1;
}

static enum op_status quant_infer(struct op_ctx *ctx) {
    const struct op_tensor *a = ctx->in[A], *b = ctx->in[B], *bias = input(ctx, BIAS);
    char ta[160], tb[160];
    struct shape s;
    if (!quantized_is_byte(a) || !quantized_is_byte(b)) return op__fail(ctx, OP_BAD_TYPE, "takes two matrices of u8 or i8");
    op_tensor_describe(a, ta, sizeof ta);
    op_tensor_describe(b, tb, sizeof tb);
    if (a->rank < 1 || b->rank < 1 || !shape_of(ctx, &s)) return op__fail(ctx, OP_BAD_SHAPE, "%s and %s do not multiply", ta, tb);
    const struct op_tensor *scale = ctx->in[B_SCALE], *zero = ctx->in[B_ZERO];
    if (!is_one(ctx->in[A_SCALE], ctx->in[A_ZERO]) || ctx->in[A_ZERO]->dtype != a->dtype)
        return op__fail(ctx, OP_BAD_TYPE, "the scale of %s must be one float, its zero point one value of its type", ta);
    if (!quantized_is_scale(scale) || !zero || zero->dtype != b->dtype || (op_tensor_count(scale) != 1 && op_tensor_count(scale) != s.n) ||
        (op_tensor_count(zero) != 1 && op_tensor_count(zero) != s.n))
        return op__fail(ctx, OP_BAD_SHAPE, "scale and zero point of %s must be one or %lld values", tb, (long long)s.n);
    if (bias && ((bias->dtype != OP_I32 && bias->dtype != OP_F32) || op_tensor_count(bias) != s.n))
        return op__fail(ctx, OP_BAD_SHAPE, "the bias must be %lld values of i32 or f32", (long long)s.n);
    for (int i = MID_SCALE; i <= Y_SCALE; i += 2)
        if (input(ctx, i) && !is_one(input(ctx, i), input(ctx, i + 1))) return op__fail(ctx, OP_BAD_TYPE, "scale and zero point of the result must be one value");
    int rank = 0;
    int64_t dims[OP_RANK_MAX + 2];
    op__broadcast(batch_rank(a), a->dims, batch_rank(b), b->dims, &rank, dims);
    if (a->rank > 1) dims[rank++] = a->dims[a->rank - 2];
    if (b->rank > 1) dims[rank++] = s.n;
    if (rank > OP_RANK_MAX) return op__fail(ctx, OP_LIMIT, "the output has rank %d, at most %d is supported", rank, OP_RANK_MAX);
    op__set(ctx, 0, input(ctx, Y_SCALE) ? input(ctx, Y_ZERO)->dtype : OP_F32, rank, dims);
    return OP_OK;
}

static bool is_packed(const struct op_ctx *ctx, const struct shape *s) {
    const struct state *state = ctx->state;
    return state->rhs.data && state->rhs.k == s->k && state->rhs.n == s->n && state->rhs.count == s->b_count;
}

/* Whether the sum goes to bytes in registers. */
static bool direct(const struct op_ctx *ctx) {
    const struct op_tensor *bias = input(ctx, BIAS);
    return input(ctx, Y_SCALE) && !input(ctx, MID_SCALE) && ((const struct state *)ctx->state)->act.fn == K_COPY && !(bias && bias->dtype == OP_F32);
}

static size_t line(size_t bytes) {
    return (bytes + 63) / 64 * 64;
}

static size_t quant_scratch(const struct op_ctx *ctx) {
    struct shape s;
    if (!shape_of(ctx, &s)) return 0;
    const size_t one = line(op__quant_scratch(ctx, s.m, s.n, s.k, ctx->in[A], is_packed(ctx, &s), input(ctx, Y_SCALE) && !direct(ctx)));
    return line((size_t)s.n * sizeof(float)) + one * (size_t)(s.batch > 1 ? op__n_threads(ctx) : 1);
}

static void limits(const struct op_tensor *zero, float *lo, float *hi) {
    const int32_t z = quantized_byte(zero, 0);
    *lo = (float)((zero->dtype == OP_U8 ? 0 : INT8_MIN) - z);
    *hi = (float)((zero->dtype == OP_U8 ? UINT8_MAX : INT8_MAX) - z);
}

/* What follows the sum. False where a scale is no number. */
static bool set_after(const struct op_ctx *ctx, int64_t n, float *scales, struct quant_job *job) {
    const struct op_tensor *bias = input(ctx, BIAS), *mid = input(ctx, MID_SCALE), *y = input(ctx, Y_SCALE);
    struct k_quant_after *after = &job->after;
    job->bias = bias && bias->dtype == OP_I32 ? bias->data : NULL;
    job->b_zero = ctx->in[B_ZERO];
    job->a_zero = quantized_byte(ctx->in[A_ZERO], 0);
    job->act = ((const struct state *)ctx->state)->act;
    after->scale = scales;
    after->bias = bias && bias->dtype == OP_F32 ? bias->data : NULL;
    float divisor = 1;
    if (mid) {
        after->mid = true;
        divisor = after->mid_scale = quantized_scale(mid, 0, 1);
        limits(input(ctx, MID_ZERO), &after->mid_lo, &after->mid_hi);
    }
    after->out = K_QUANT_FLOAT;
    if (direct(ctx)) {
        after->out = K_QUANT_BYTE;
        divisor = quantized_scale(y, 0, 1);
        limits(input(ctx, Y_ZERO), &after->lo, &after->hi);
        after->zero = quantized_byte(input(ctx, Y_ZERO), 0);
    } else if (y) {
        job->to_bytes = true;
        job->y_scale = quantized_scale(y, 0, 1);
        limits(input(ctx, Y_ZERO), &job->y_lo, &job->y_hi);
        job->y_zero = quantized_byte(input(ctx, Y_ZERO), 0);
    }
    return op__quant_scales(n, quantized_scale(ctx->in[A_SCALE], 0, 1), ctx->in[B_SCALE], divisor, scales, &after->small);
}

struct running {
    const struct op_ctx *ctx;
    const struct shape *shape;
    struct quant_job job;
    char *scratch;
    size_t each;
    int64_t n_tasks;
};

static void batch_task(void *arg, int64_t task) {
    const struct running *r = arg;
    const struct op_ctx *ctx = r->ctx;
    const struct shape *s = r->shape;
    const struct state *state = ctx->state;
    const bool packed = is_packed(ctx, s);
    const size_t packed_bytes = k_quant_packed_bytes(op__kern(ctx)->quant, 1, s->k, s->n), size = op_type_size(ctx->out[0]->dtype);
    for (int64_t at = task; at < s->batch; at += r->n_tasks) {
        int64_t rest = at, a = 0, b = 0;
        for (int i = s->rank - 1; i >= 0; rest /= s->dims[i], i--) {
            a += rest % s->dims[i] * s->a_step[i];
            b += rest % s->dims[i] * s->b_step[i];
        }
        struct quant_job job = r->job;
        job.a_data = (const uint8_t *)ctx->in[A]->data + a * s->m * s->k;
        job.b_data = packed ? NULL : (const uint8_t *)ctx->in[B]->data + b * s->k * s->n;
        job.packed = packed ? state->rhs.data + (size_t)b * packed_bytes : NULL;
        job.packed_sums = packed ? state->rhs.sums + b * s->n : NULL;
        job.c = (char *)ctx->out[0]->data + (size_t)(at * s->m * s->n) * size;
        op__quant_product(ctx, &job, r->scratch + (size_t)task * r->each, s->batch == 1);
    }
}

static enum op_status quant_run(struct op_ctx *ctx) {
    struct shape s;
    if (!ctx->out[0] || op_tensor_count(ctx->out[0]) <= 0 || !shape_of(ctx, &s)) return OP_OK;
    struct running r = {.ctx = ctx, .shape = &s,
                        .job = {.m = s.m, .n = s.n, .k = s.k, .a = ctx->in[A], .b = ctx->in[B], .b_transposed = ((const struct state *)ctx->state)->transposed}};
    if (!set_after(ctx, s.n, ctx->scratch, &r.job)) return op__fail(ctx, OP_BAD_VALUE, "a scale is not a finite number");
    r.scratch = (char *)ctx->scratch + line((size_t)s.n * sizeof(float));
    r.each = line(op__quant_scratch(ctx, s.m, s.n, s.k, ctx->in[A], is_packed(ctx, &s), r.job.to_bytes));
    const int64_t n_threads = op__n_threads(ctx);
    r.n_tasks = n_threads < s.batch ? n_threads : s.batch;
    if (s.batch == 1)
        batch_task(&r, 0);
    else
        op__parallel(ctx, r.n_tasks, batch_task, &r);
    return OP_OK;
}

static void quant_cost(const struct op_ctx *ctx, double *flops, double *bytes) {
    struct shape s;
    (void)bytes;
    if (shape_of(ctx, &s)) *flops = 2.0 * (double)s.batch * (double)s.m * (double)s.n * (double)s.k;
}

static const struct op_desc quant_matmul = {
    .name = "QuantMatMul",
    .domain = "quern",
    .since = 1,
    .in_min = 6,
    .in_max = N_INPUTS,
    .out_min = 1,
    .out_max = 1,
    .prepare = quant_prepare,
    .release = quant_release,
    .infer = quant_infer,
    .scratch = quant_scratch,
    .run = quant_run,
    .cost = quant_cost,
};
OP_REGISTER(quant_matmul);
