/* attention_core.c: scaled dot-product attention over strided heads.
 *
 * A task is one head of one sequence. It copies its keys and values (the past ones first) into rows of f32, unless they lie so
 * already, packs the keys once as the right side of a product, and goes through the queries in blocks of 48 rows: scores = q k^T, mask, softmax, times v.
 * Heads thus never meet, layouts ([B,S,H*D] or [B,H,S,D]) and half precision end at the copy, and a sequence's result does not
 * depend on the batch. f64 and `ref` compute row by row in double precision.
 *
 * A query that sees no key at all gets NaN, as the softmax of nothing. */
#include "ops/op/attention.h"
#include "ops/kern/kern.h"

#include <math.h>
#include <string.h>

#define BLOCK 48

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

/* --- rows -------------------------------------------------------------------------------------- */

static int64_t row_at(const struct attention_rows *r, int64_t b, int64_t h, int64_t s) {
    return r->at + b * r->by_batch + h * r->by_head + s * r->by_row;
}

static double element(const struct attention_rows *r, int64_t b, int64_t h, int64_t s, int64_t size, int64_t j) {
    double v = nn_load(r->t, row_at(r, b, h, s) + j);
    return r->bias ? v + nn_load(r->bias, r->bias_at + h * size + j) : v;
}

/* Rows [s, s + n) of `size` elements into dst. */
static void load_rows(const struct attention_rows *r, int64_t b, int64_t h, int64_t s, int64_t n, int64_t size, float *dst) {
    for (int64_t i = 0; i < n; i++, dst += size) {
        if (r->t->dtype == OP_F32 && !r->bias) memcpy(dst, (const float *)r->t->data + row_at(r, b, h, s + i), (size_t)size * sizeof *dst);
        else
            for (int64_t j = 0; j < size; j++) dst[j] = (float)element(r, b, h, s + i, size, j);
    }
}

static void store_rows(const struct attention_rows *r, int64_t b, int64_t h, int64_t s, int64_t n, int64_t size, const float *src) {
    for (int64_t i = 0; i < n; i++, src += size) {
        int64_t at = row_at(r, b, h, s + i);
        if (r->t->dtype == OP_F32) memcpy((float *)r->t->data + at, src, (size_t)size * sizeof *src);
        else
            for (int64_t j = 0; j < size; j++) nn_store(r->t, at + j, (double)src[j]);
    }
}

/* --- masks ------------------------------------------------------------------------------------- */

static int64_t length_of(const struct attention *a, int64_t b) {
    if (!a->lengths) return a->past + a->keys;
    return a->lengths->dtype == OP_I64 ? ((const int64_t *)a->lengths->data)[b] : ((const int32_t *)a->lengths->data)[b];
}

/* What is added to the score of query i and key t: -infinity where it is not seen. */
static double mask_of(const struct attention *a, int64_t b, int64_t h, int64_t i, int64_t t) {
    int64_t length = length_of(a, b);
    int64_t last = a->causal_to_length ? i + length - a->queries : i + a->past;
    bool hidden = t >= length || (a->padding && !((const int32_t *)a->padding->data)[b * (a->past + a->keys) + t]);
    double unseen = hidden ? a->unseen : 0;
    if (a->causal && t > last) return -INFINITY;
    if (!a->mask) return unseen;
    if (t >= a->mask_keys) return -INFINITY;
    double v = nn_load(a->mask, b * a->mask_step[0] + h * a->mask_step[1] + i * a->mask_step[2] + t * a->mask_step[3]);
    return unseen + (a->mask->dtype == OP_BOOL ? v != 0 ? 0 : -INFINITY : v);
}

static bool is_masked(const struct attention *a) {
    return a->causal || a->lengths || a->padding || a->mask;
}

/* --- f32 and halves ---------------------------------------------------------------------------- */

struct job {
    const struct op_ctx *ctx;
    const struct attention *a;
    const struct k_kernels *kern;
    float *mem;
    size_t k, v, packed, q, scores, y, task; /* floats of a task's parts */
};

static size_t lines(int64_t n, int64_t m) {
    return ((size_t)n * (size_t)m + 15) / 16 * 16;
}

static void plan(const struct op_ctx *ctx, const struct attention *a, struct job *job) {
    int64_t t = a->past + a->keys, block = a->queries < BLOCK ? a->queries : BLOCK;
    *job = (struct job){.ctx = ctx, .a = a, .kern = op__kern(ctx)};
    job->k = lines(t, a->size);
    job->v = lines(t, a->v_size);
    job->packed = lines((int64_t)k_pack_b_floats(job->kern->gemm, a->size, t), 1);
    job->q = lines(block, a->size);
    job->scores = lines(block, t);
    job->y = lines(block, a->v_size);
    job->task = job->k + job->v + job->packed + job->q + job->scores + job->y;
}

size_t op__attention_scratch(const struct op_ctx *ctx, const struct attention *a) {
    struct job job;
    plan(ctx, a, &job);
    size_t fast = job.task * sizeof(float), plain = (size_t)(a->past + a->keys) * sizeof(double), bytes;
    if (__builtin_mul_overflow(fast > plain ? fast : plain, (size_t)(a->batch * a->heads), &bytes)) return SIZE_MAX / 2;
    return bytes;
}

struct placed { /* f32 rows */
    const float *at;
    int64_t step;
};

static void product(const struct job *job, int64_t m, int64_t n, int64_t k, struct placed x, const float *b, bool packed, int64_t b_k, float *c) {
    struct k_product p = {.m = m, .n = n, .k = k, .a = x.at, .a_row = x.step, .a_k = 1, .b = b, .b_packed = packed, .b_k = b_k, .c = c, .c_row = n};
    p.then.act = K_COPY;
    k_gemm(job->kern, &p, 0, m, 0, n);
}

/* Scores of one query before the softmax, and the copy that the operator may give out. */
static void finish_scores(const struct job *job, int64_t b, int64_t h, int64_t i, float *row) {
    const struct attention *a = job->a;
    const struct k_vmath *math = job->kern->math;
    int64_t t = a->past + a->keys, qk = ((b * a->heads + h) * a->queries + i) * t;
    math->unary[K_LINEAR](t, row, row, (float)a->scale, 0);
    for (int64_t j = 0; a->qk && a->qk_mode == ATTENTION_QK_RAW && j < t; j++) nn_store(a->qk, qk + j, (double)row[j]);
    if (a->softcap > 0) {
        math->unary[K_LINEAR](t, row, row, (float)(1 / a->softcap), 0);
        math->unary[K_TANH](t, row, row, 0, 0);
        math->unary[K_LINEAR](t, row, row, (float)a->softcap, 0);
    }
    for (int64_t j = 0; a->qk && a->qk_mode == ATTENTION_QK_CAPPED && j < t; j++) nn_store(a->qk, qk + j, (double)row[j]);
    if (is_masked(a))
        for (int64_t j = 0; j < t; j++) row[j] += (float)mask_of(a, b, h, i, j);
    for (int64_t j = 0; a->qk && a->qk_mode == ATTENTION_QK_MASKED && j < t; j++) nn_store(a->qk, qk + j, (double)row[j]);
    math->softmax(t, row, row);
    for (int64_t j = 0; a->qk && a->qk_mode == ATTENTION_QK_SOFTMAX && j < t; j++) nn_store(a->qk, qk + j, (double)row[j]);
}

/* The keys or values of one head, past ones first; and on behalf of its group what is handed on to the next run. Where they lie as they
 * are needed they stay there, else they are copied to dst. */
static struct placed place(const struct attention_rows *past, const struct attention_rows *now, const struct attention_rows *present,
                           int64_t n_past, int64_t n, int64_t size, int64_t b, int64_t h, bool keep, float *dst) {
    bool hand_on = present->t && keep;
    if (n > 0 && !past->t && !hand_on && now->t->dtype == OP_F32 && !now->bias)
        return (struct placed){(const float *)now->t->data + row_at(now, b, h, 0), now->by_row};
    if (past->t) load_rows(past, b, h, 0, n_past, size, dst);
    load_rows(now, b, h, 0, n, size, dst + n_past * size);
    if (hand_on) store_rows(present, b, h, 0, n_past + n, size, dst);
    return (struct placed){dst, size};
}

static void head_task(void *arg, int64_t task) {
    const struct job *job = arg;
    const struct attention *a = job->a;
    static const struct attention_rows none = {0};
    int64_t b = task / a->heads, h = task % a->heads, group = a->heads / a->kv_heads, kv = h / group, t = a->past + a->keys;
    float *k_rows = job->mem + (size_t)task * job->task, *v_rows = k_rows + job->k, *packed = v_rows + job->v, *q_rows = packed + job->packed;
    float *scores = q_rows + job->q, *y = scores + job->scores;
    struct placed k = place(&a->past_k, &a->k, &a->present_k, a->past, a->keys, a->size, b, kv, h % group == 0, k_rows);
    struct placed v = place(&a->past_v, &a->v, &a->present_v, a->past, a->keys, a->v_size, b, kv, h % group == 0, v_rows);
    if (!a->y.t || !a->queries || !t || !a->size || !a->v_size) return;
    k_pack_b(job->kern->gemm, a->size, t, k.at, 1, k.step, packed);
    for (int64_t i = 0; i < a->queries; i += BLOCK) {
        int64_t n = a->queries - i < BLOCK ? a->queries - i : BLOCK;
        struct attention_rows from = a->q;
        from.at += i * from.by_row;
        struct placed q = place(&none, &from, &none, 0, n, a->size, b, h, false, q_rows);
        product(job, n, t, a->size, q, packed, true, 0, scores);
        for (int64_t r = 0; r < n; r++) finish_scores(job, b, h, i + r, scores + r * t);
        product(job, n, a->v_size, t, (struct placed){scores, t}, v.at, false, v.step, y);
        store_rows(&a->y, b, h, i, n, a->v_size, y);
    }
}

/* --- the plain form ---------------------------------------------------------------------------- */

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
        nn_store(a->y.t, row_at(&a->y, b, h, i) + j, y);
    }
}

static void ref_task(void *arg, int64_t task) {
    const struct job *job = arg;
    const struct attention *a = job->a;
    int64_t b = task / a->heads, h = task % a->heads, group = a->heads / a->kv_heads, n = a->past + a->keys;
    for (int64_t t = 0; h % group == 0 && t < n; t++) {
        for (int64_t j = 0; a->present_k.t && j < a->size; j++)
            nn_store(a->present_k.t, row_at(&a->present_k, b, h / group, t) + j,
                     past_or_now(&a->past_k, &a->k, a->past, b, h / group, t, a->size, j));
        for (int64_t j = 0; a->present_v.t && j < a->v_size; j++)
            nn_store(a->present_v.t, row_at(&a->present_v, b, h / group, t) + j,
                     past_or_now(&a->past_v, &a->v, a->past, b, h / group, t, a->v_size, j));
    }
    for (int64_t i = 0; n && i < a->queries; i++) ref_row(job, b, h, i, (double *)job->mem + task * n);
}

/* --- both -------------------------------------------------------------------------------------- */

static enum op_status check_lengths(const struct op_ctx *ctx, const struct attention *a) {
    for (int64_t b = 0; a->lengths && b < a->batch; b++)
        if (length_of(a, b) < 0 || length_of(a, b) > a->past + a->keys)
            return op__fail(ctx, OP_BAD_VALUE, "length %lld of sequence %lld is out of range: there are %lld keys", (long long)length_of(a, b),
                            (long long)b, (long long)(a->past + a->keys));
    return OP_OK;
}

static enum op_status run_with(struct op_ctx *ctx, const struct attention *a, void *scratch, void (*task)(void *arg, int64_t task)) {
    struct job job;
    enum op_status st = check_lengths(ctx, a);
    if (st != OP_OK) return st;
    plan(ctx, a, &job);
    job.mem = scratch;
    if (a->y.t && !(a->past + a->keys) && op_tensor_bytes(a->y.t) > 0) memset(a->y.t->data, 0, (size_t)op_tensor_bytes(a->y.t));
    op__parallel(ctx, a->batch * a->heads, task, &job);
    return OP_OK;
}

enum op_status op__attention_run(struct op_ctx *ctx, const struct attention *a, void *scratch) {
    return run_with(ctx, a, scratch, ctx->in[0]->dtype == OP_F64 ? ref_task : head_task);
}

enum op_status op__attention_ref(struct op_ctx *ctx, const struct attention *a, void *scratch) {
    return run_with(ctx, a, scratch, ref_task);
}
