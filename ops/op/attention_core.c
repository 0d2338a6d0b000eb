/* attention_core.c: scaled dot-product attention over strided heads: limits, masks, and the plain form, row by row in double precision,
 * which is also that of f64. attention_f32.c is the fast one. */
#include "ops/op/attention.h"

#include <math.h>
#include <string.h>

enum op_status op__attention_limits(const struct op_ctx *ctx) {
    for (int i = 0; i < ctx->n_in; i++)
        for (int a = 0; ctx->in[i] && a < ctx->in[i]->rank; a++)
            if (ctx->in[i]->dims[a] > (1 << 20))
                return op__fail(ctx, OP_LIMIT, "dimension %d of input %d is %lld, the limit is 2^20", a, i, (long long)ctx->in[i]->dims[a]);
    return OP_OK;
}

double op__attention_scale(float scale, int64_t size) {
    return scale != 0 ? (double)scale : 1 / sqrt((double)(size > 0 ? size : 1));
}

static double element(const struct attention_rows *r, int64_t b, int64_t h, int64_t s, int64_t size, int64_t j) {
    double v = nn_load(r->t, attention_row(r, b, h, s) + j * attention_step(r));
    return r->bias ? v + nn_load(r->bias, r->bias_at + h * size + j) : v;
}

/* --- masks ------------------------------------------------------------------------------------- */

int64_t op__attention_length(const struct attention *a, int64_t b) {
    if (!a->lengths) return a->past + a->keys;
    return a->lengths->dtype == OP_I64 ? ((const int64_t *)a->lengths->data)[b] : ((const int32_t *)a->lengths->data)[b];
}

/* What is added to the score of query i and key t: -infinity where it is not seen. */
static double mask_of(const struct attention *a, int64_t b, int64_t h, int64_t i, int64_t t) {
    int64_t length = op__attention_length(a, b);
    int64_t last = a->causal_to_length ? i + length - a->queries : i + a->past;
    bool hidden = t >= length || (a->padding && !((const int32_t *)a->padding->data)[b * (a->past + a->keys) + t]);
    double unseen = hidden ? a->unseen : 0;
    if (a->causal && t > last) return -INFINITY;
    if (!a->mask) return unseen;
    if (t >= a->mask_keys) return -INFINITY;
    double v = nn_load(a->mask, b * a->mask_step[0] + h * a->mask_step[1] + i * a->mask_step[2] + t * a->mask_step[3]);
    return unseen + (a->mask->dtype == OP_BOOL ? v != 0 ? 0 : -INFINITY : v);
}

/* --- the plain form ---------------------------------------------------------------------------- */

struct job {
    const struct attention *a;
    double *mem; /* a row of scores for each task */
};

static double past_or_now(const struct attention_rows *past, const struct attention_rows *now, int64_t n_past, int64_t b, int64_t h, int64_t t,
                          int64_t size, int64_t j) {
    return t < n_past ? element(past, b, h, t, size, j) : element(now, b, h, t - n_past, size, j);
}

static void ref_row(const struct job *job, int64_t b, int64_t h, int64_t i, double *p) {
    const struct attention *a = job->a;
    int64_t n = a->past + a->keys, kv = h / (a->heads / a->kv_heads), qk = ((b * a->heads + h) * a->queries + i) * n;
    double most = -INFINITY, sum = 0;
    for (int64_t t = 0; t < n; t++) {
        double s = 0, stages[4];
        for (int64_t j = 0; j < a->size; j++)
            s += element(&a->q, b, h, i, a->size, j) * past_or_now(&a->past_k, &a->k, a->past, b, kv, t, a->size, j);
        stages[ATTENTION_QK_RAW] = s *= a->scale;
        stages[ATTENTION_QK_CAPPED] = s = a->softcap > 0 ? a->softcap * tanh(s / a->softcap) : s;
        stages[ATTENTION_QK_MASKED] = p[t] = s + mask_of(a, b, h, i, t);
        if (a->qk && a->qk_mode != ATTENTION_QK_SOFTMAX) nn_store(a->qk, qk + t, stages[a->qk_mode]);
        if (p[t] > most) most = p[t];
    }
    for (int64_t t = 0; t < n; t++) sum += p[t] = exp(p[t] - most);
    for (int64_t t = 0; t < n; t++) {
        p[t] /= sum;
        if (a->qk && a->qk_mode == ATTENTION_QK_SOFTMAX) nn_store(a->qk, qk + t, p[t]);
    }
    for (int64_t j = 0; a->y.t && j < a->v_size; j++) {
        double y = 0;
        for (int64_t t = 0; t < n; t++) y += p[t] * past_or_now(&a->past_v, &a->v, a->past, b, kv, t, a->v_size, j);
        nn_store(a->y.t, attention_row(&a->y, b, h, i) + j, y);
    }
}

static void ref_task(void *arg, int64_t task) {
    const struct job *job = arg;
    const struct attention *a = job->a;
    int64_t b = task / a->heads, h = task % a->heads, group = a->heads / a->kv_heads, n = a->past + a->keys;
    for (int64_t t = 0; h % group == 0 && t < n; t++) {
        for (int64_t j = 0; a->present_k.t && j < a->size; j++)
            nn_store(a->present_k.t, attention_row(&a->present_k, b, h / group, t) + j,
                     past_or_now(&a->past_k, &a->k, a->past, b, h / group, t, a->size, j));
        for (int64_t j = 0; a->present_v.t && j < a->v_size; j++)
            nn_store(a->present_v.t, attention_row(&a->present_v, b, h / group, t) + j,
                     past_or_now(&a->past_v, &a->v, a->past, b, h / group, t, a->v_size, j));
    }
    for (int64_t i = 0; n && i < a->queries; i++) ref_row(job, b, h, i, job->mem + task * n);
}

/* --- both -------------------------------------------------------------------------------------- */

static enum op_status check_lengths(const struct op_ctx *ctx, const struct attention *a) {
    for (int64_t b = 0; a->lengths && b < a->batch; b++)
        if (op__attention_length(a, b) < 0 || op__attention_length(a, b) > a->past + a->keys)
            return op__fail(ctx, OP_BAD_VALUE, "length %lld of sequence %lld is out of range: there are %lld keys", (long long)op__attention_length(a, b),
                            (long long)b, (long long)(a->past + a->keys));
    return OP_OK;
}

static void without_keys(const struct attention *a) {
    if (a->y.t && !(a->past + a->keys) && op_tensor_bytes(a->y.t) > 0) memset(a->y.t->data, 0, (size_t)op_tensor_bytes(a->y.t));
}

size_t op__attention_scratch(const struct op_ctx *ctx, const struct attention *a) {
    const size_t fast = op__attention_f32_scratch(ctx, a);
    size_t plain;
    if (__builtin_mul_overflow((size_t)(a->past + a->keys) * sizeof(double), (size_t)(a->batch * a->heads), &plain)) return SIZE_MAX / 2;
    return fast > plain ? fast : plain;
}

enum op_status op__attention_ref(struct op_ctx *ctx, const struct attention *a, void *scratch) {
    struct job job = {.a = a, .mem = scratch};
    const enum op_status st = check_lengths(ctx, a);
    if (st != OP_OK) return st;
    without_keys(a);
    op__parallel(ctx, a->batch * a->heads, ref_task, &job);
    return OP_OK;
}

enum op_status op__attention_run(struct op_ctx *ctx, const struct attention *a, void *scratch) {
    if (a->q.t->dtype == OP_F64) return op__attention_ref(ctx, a, scratch);
    const enum op_status st = check_lengths(ctx, a);
    if (st != OP_OK) return st;
    without_keys(a);
    op__attention_f32(ctx, a, scratch);
    return OP_OK;
}
