/* attention_f32.c: scaled dot-product attention in f32 (f16 and bf16 are widened), by blocks of queries and keys.
 *
 * A task takes every n-th pair of a sequence and a head of keys. It packs that head's keys and values, in blocks of 512 keys, as right
 * sides of products, and with them goes through the queries of all heads that share them, 48 at a time: scores = q k^T, scaled and masked
 * while the largest is sought; e^(score - largest) and their sum; times v. From one block of keys to the next the largest may rise:
 * what was summed so far is scaled down (the online softmax), so that the scores of 48 queries and 512 keys stay in L2 at any length. The
 * quotient by the sum comes last, over the 48 results.
 *
 * Queries, keys, values and results are read and written where they lie (attention_rows), in whatever layout; only past keys,
 * narrow types and a bias go through a copy. A causal query meets only the keys up to its own. A mask of f32 whose keys lie side by
 * side is added from where it is; any other is written out as f32 first, once a head where it is the same for all queries.
 *
 * Which blocks there are depends on the numbers of queries and keys alone, and heads never meet: a sequence's bits do not depend on
 * the batch or the threads. A query that sees no key at all gets NaN, as the softmax of nothing. */
#include "ops/kern/kern.h"
#include "ops/op/attention.h"

#include <math.h>
#include <string.h>

enum { QUERIES = 48, KEYS = 512 };

struct job {
    const struct op_ctx *ctx;
    const struct attention *a;
    const struct k_kernels *kern;
    float *mem;
    int64_t n_tasks, total, block; /* keys in all, and in a block */
    size_t rows, k, v, q, scores, y, mask, task; /* floats of a task's parts */
};

static size_t lines(int64_t n, int64_t m) {
    return ((size_t)n * (size_t)m + 15) / 16 * 16;
}

static void plan(const struct op_ctx *ctx, const struct attention *a, struct job *job) {
    const int64_t t = a->past + a->keys, queries = a->queries < QUERIES ? a->queries : QUERIES, pairs = a->batch * a->kv_heads;
    *job = (struct job){.ctx = ctx, .a = a, .kern = op__kern(ctx), .total = t};
    const struct k_gemm *g = job->kern->gemm;
    job->n_tasks = op__n_threads(ctx) < pairs ? op__n_threads(ctx) : pairs;
    job->block = a->qk || t < KEYS ? t : KEYS; /* scores that are given out are wanted whole */
    const int64_t blocks = job->block ? (t + job->block - 1) / job->block : 0;
    job->rows = lines(t, a->size > a->v_size ? a->size : a->v_size);
    job->k = lines(blocks, (int64_t)k_pack_b_floats(g, a->size, job->block));
    job->v = lines(blocks, (int64_t)k_pack_b_floats(g, job->block, a->v_size));
    job->q = lines(queries, a->size);
    job->scores = lines(queries, job->block);
    job->y = lines(queries, a->v_size);
    job->mask = lines(t, 1);
    job->task = job->rows + job->k + job->v + job->q + job->scores + job->y + job->mask;
}

size_t op__attention_f32_scratch(const struct op_ctx *ctx, const struct attention *a) {
    struct job job;
    size_t bytes;
    plan(ctx, a, &job);
    return __builtin_mul_overflow(job.task * sizeof(float), (size_t)job.n_tasks, &bytes) ? SIZE_MAX / 2 : bytes;
}

/* --- rows -------------------------------------------------------------------------------------- */

/* Rows [s, s + n) of `size` elements into dst. */
static void load_rows(const struct attention_rows *r, int64_t b, int64_t h, int64_t s, int64_t n, int64_t size, float *dst) {
    for (int64_t i = 0; i < n; i++, dst += size) {
        const int64_t at = attention_row(r, b, h, s + i);
        const int64_t step = attention_step(r);
        if (r->t->dtype == OP_F32 && step == 1) memcpy(dst, (const float *)r->t->data + at, (size_t)size * sizeof *dst);
        else
            for (int64_t j = 0; j < size; j++) dst[j] = (float)nn_load(r->t, at + j * step);
        for (int64_t j = 0; r->bias && j < size; j++) dst[j] += (float)nn_load(r->bias, r->bias_at + h * size + j);
    }
}

static void store_rows(const struct attention_rows *r, int64_t b, int64_t h, int64_t s, int64_t n, int64_t size, const float *src) {
    for (int64_t i = 0; i < n; i++, src += size) {
        const int64_t at = attention_row(r, b, h, s + i);
        if (r->t->dtype == OP_F32) memcpy((float *)r->t->data + at, src, (size_t)size * sizeof *src);
        else
            for (int64_t j = 0; j < size; j++) nn_store(r->t, at + j, (double)src[j]);
    }
}

struct placed { /* f32 rows */
    const float *at;
    int64_t step, value; /* from row to row, from element to element */
};

static bool lies_well(const struct attention_rows *r) {
    return r->t->dtype == OP_F32 && !r->bias;
}

/* The keys or values of one head, past ones first; they are handed on to `present` where that is wanted. Where they lie as they are
 * needed they stay there, else they are copied to dst. */
static struct placed place(const struct attention_rows *past, const struct attention_rows *now, const struct attention_rows *present, int64_t n_past,
                           int64_t n, int64_t size, int64_t b, int64_t h, float *dst) {
    if (n > 0 && !past->t && !present->t && lies_well(now)) return (struct placed){(const float *)now->t->data + attention_row(now, b, h, 0), now->by_row, attention_step(now)};
    if (present->t && present->t->dtype == OP_F32 && present->by_row == size) dst = (float *)present->t->data + attention_row(present, b, h, 0);
    if (past->t) load_rows(past, b, h, 0, n_past, size, dst);
    load_rows(now, b, h, 0, n, size, dst + n_past * size);
    if (present->t && present->t->dtype != OP_F32) store_rows(present, b, h, 0, n_past + n, size, dst);
    return (struct placed){dst, size, 1};
}

/* --- masks ------------------------------------------------------------------------------------- */

/* Keys that query i may see: the first so many. The mask may hide more of them. */
static int64_t seen_by(const struct attention *a, int64_t b, int64_t i) {
    int64_t n = a->past + a->keys;
    const int64_t length = op__attention_length(a, b), last = a->causal_to_length ? i + length - a->queries : i + a->past;
    if (a->unseen == -INFINITY && length < n) n = length;
    if (a->causal && last + 1 < n) n = last + 1;
    if (a->mask && a->mask_keys < n) n = a->mask_keys;
    return n < 0 ? 0 : n;
}

static bool hides_by_value(const struct attention *a) { /* beside those that seen_by leaves out */
    return a->padding || (a->lengths && a->unseen != -INFINITY);
}

/* What is added to the scores of query i, for its first n keys. */
static void write_mask(const struct attention *a, int64_t b, int64_t h, int64_t i, int64_t n, float *dst) {
    const struct op_tensor *m = a->mask;
    const int64_t at = m ? b * a->mask_step[0] + h * a->mask_step[1] + i * a->mask_step[2] : 0, length = op__attention_length(a, b);
    for (int64_t t = 0; t < n; t++) {
        double v = m ? nn_load(m, at + t * a->mask_step[3]) : 0;
        if (m && m->dtype == OP_BOOL) v = v != 0 ? 0 : (double)-INFINITY;
        if (t >= length || (a->padding && !((const int32_t *)a->padding->data)[b * (a->past + a->keys) + t])) v += a->unseen;
        dst[t] = (float)v;
    }
}

/* --- one head of keys ---------------------------------------------------------------------------- */

struct head {
    const struct job *job;
    int64_t b, h, kv;
    float *k, *v, *q, *scores, *y, *mask;
    bool mask_is_written; /* for all queries */
    struct { /* the next head's keys, values and queries, by rows; at NULL: not there */
        const char *at;
        int64_t step, bytes, rows;
    } ahead[3];
};

/* A row of each of the next head's: in a batch of several they are spread over megabytes, a line or two every few kilobytes, and no hardware sees
 * that coming. Row by row, between the softmax of this head's, as bursts would fill the core's buffers. */
static void fetch_ahead(const struct head *w, int64_t row) {
    for (int k = 0; k < 3; k++)
        for (int64_t i = 0; w->ahead[k].at && row < w->ahead[k].rows && i < w->ahead[k].bytes; i += 64)
            __builtin_prefetch(w->ahead[k].at + row * w->ahead[k].step + i, 0, 2);
}

static void look_ahead(struct head *w, int64_t pair) {
    const struct attention *a = w->job->a;
    const struct attention_rows *rows[] = {&a->k, &a->v, &a->q};
    const int64_t n[] = {a->keys, a->keys, a->queries}, size[] = {a->size, a->v_size, a->size};
    for (int k = 0; k < 3; k++) {
        const bool good = pair < a->batch * a->kv_heads && a->batch > 1 && lies_well(rows[k]) && attention_step(rows[k]) == 1;
        const int64_t h = k == 2 ? pair % a->kv_heads * (a->heads / a->kv_heads) : pair % a->kv_heads;
        w->ahead[k].at = good ? (const char *)((const float *)rows[k]->t->data + attention_row(rows[k], pair / a->kv_heads, h, 0)) : NULL;
        w->ahead[k].step = rows[k]->by_row * (int64_t)sizeof(float);
        w->ahead[k].bytes = size[k] * (int64_t)sizeof(float);
        w->ahead[k].rows = n[k];
    }
}

static void product(const struct head *w, int64_t m, int64_t n, int64_t k, struct placed x, const float *b, bool add, float *c, int64_t c_row) {
    struct k_product p = {.m = m, .n = n, .k = k, .a = x.at, .a_row = x.step, .a_k = 1, .b = b, .b_packed = true, .c = c, .c_row = c_row};
    p.then = (struct k_epilogue){.residual = add ? c : NULL, .residual_row = c_row, .act = K_COPY};
    k_gemm(w->job->kern, &p, 0, m, 0, n);
}

/* The mask of query i from key t on, or NULL; it holds for n keys. */
static const float *mask_at(struct head *w, int64_t i, int64_t t, int64_t n) {
    const struct attention *a = w->job->a;
    const struct op_tensor *m = a->mask;
    if (!m && !hides_by_value(a)) return NULL;
    if (m && m->dtype == OP_F32 && a->mask_step[3] == 1 && !hides_by_value(a))
        return (const float *)m->data + w->b * a->mask_step[0] + w->h * a->mask_step[1] + i * a->mask_step[2] + t;
    const bool same = !m || a->mask_step[2] == 0;
    const int64_t keys = m && a->mask_keys < w->job->total ? a->mask_keys : w->job->total;
    if (!same) write_mask(a, w->b, w->h, i, t + n, w->mask);
    else if (!w->mask_is_written) write_mask(a, w->b, w->h, i, keys, w->mask);
    w->mask_is_written = same;
    return w->mask + t;
}

static void give_out(const struct attention *a, enum attention_qk mode, int64_t at, int64_t n, const float *row) {
    for (int64_t t = 0; a->qk && a->qk_mode == mode && t < n; t++) nn_store(a->qk, at + t, (double)row[t]);
}

/* Scale, cap and mask of n scores; returns the largest. */
static float finish_scores(struct head *w, int64_t i, int64_t t, int64_t n, float *row) {
    const struct attention *a = w->job->a;
    const struct k_vmath *math = w->job->kern->math;
    const float *mask = mask_at(w, i, t, n);
    if (!a->qk && a->softcap <= 0) return math->scale_max(n, (float)a->scale, mask, row);
    const int64_t at = ((w->b * a->heads + w->h) * a->queries + i) * w->job->total;
    math->unary[K_LINEAR](n, row, row, (float)a->scale, 0);
    give_out(a, ATTENTION_QK_RAW, at, n, row);
    if (a->softcap > 0) {
        math->unary[K_LINEAR](n, row, row, (float)(1 / a->softcap), 0);
        math->unary[K_TANH](n, row, row, 0, 0);
        math->unary[K_LINEAR](n, row, row, (float)a->softcap, 0);
    }
    give_out(a, ATTENTION_QK_CAPPED, at, n, row);
    if (mask) math->binary[K_ADD](n, row, false, mask, false, row);
    const int64_t seen = seen_by(a, w->b, i);
    for (int64_t j = seen < n ? seen : n; j < n; j++) row[j] = -INFINITY; /* given out, so not just left aside */
    give_out(a, ATTENTION_QK_MASKED, at, n, row);
    return math->max(n, row);
}

/* Scores of query i with the block's n keys from t on become weights: e^(score - largest), zeros for those not seen. top and sum go along. */
static void weigh(struct head *w, int64_t i, int64_t r, int64_t t, int64_t n, float *row, float *top, float *sum) {
    const struct attention *a = w->job->a;
    const struct k_vmath *math = w->job->kern->math;
    int64_t seen = a->qk ? n : seen_by(a, w->b, i) - t;
    seen = seen < 0 ? 0 : seen > n ? n : seen;
    const float most = seen ? finish_scores(w, i, t, seen, row) : -INFINITY, before = *top;
    const float shift = most > before || most != most ? most : before, by = shift == -INFINITY ? 0 : shift; /* of nothing: e^-inf is 0 */
    if (t > 0 && shift != before) { /* what is there already */
        float down = before - by;
        math->unary[K_EXP](1, &down, &down, 0, 0);
        *sum *= down;
        math->unary[K_LINEAR](a->v_size, w->y + r * a->v_size, w->y + r * a->v_size, down, 0);
    }
    if (shift == -INFINITY) seen = 0; /* all are hidden so far: the sum stays 0, and at the end the quotient by it is NaN */
    *sum = (t > 0 ? *sum : 0) + math->exp_sum(seen, by, row);
    *top = shift;
    if (seen < n) memset(row + seen, 0, (size_t)(n - seen) * sizeof *row);
}

/* Queries [i, i + n) of head w->h. */
static void attend(struct head *w, int64_t i, int64_t n) {
    const struct job *job = w->job;
    const struct attention *a = job->a;
    const struct k_vmath *math = job->kern->math;
    float top[QUERIES], sum[QUERIES];
    struct placed q = {(const float *)a->q.t->data + attention_row(&a->q, w->b, w->h, i), a->q.by_row, 1};
    if (!lies_well(&a->q)) {
        load_rows(&a->q, w->b, w->h, i, n, a->size, w->q);
        q = (struct placed){w->q, a->size, 1};
    }
    const int64_t seen = a->qk ? job->total : seen_by(a, w->b, i + n - 1); /* the last one sees the most */
    const size_t k_step = k_pack_b_floats(job->kern->gemm, a->size, job->block), v_step = k_pack_b_floats(job->kern->gemm, job->block, a->v_size);
    for (int64_t r = 0; r < n; r++) top[r] = -INFINITY, sum[r] = 0;
    int64_t t = 0;
    do { /* once even for nothing */
        const int64_t keys = job->total - t < job->block ? job->total - t : job->block, used = seen - t < keys ? seen - t : keys;
        const int64_t at = t / job->block;
        product(w, n, keys, a->size, q, w->k + at * (int64_t)k_step, false, w->scores, keys);
        for (int64_t r = 0; r < n; r++) {
            fetch_ahead(w, i + r);
            weigh(w, i + r, r, t, keys, w->scores + r * keys, &top[r], &sum[r]);
        }
        /* Panel by panel: they were packed for all keys of the block, so that those of fewer do not lie one after the other. */
        const int64_t nr = job->kern->gemm->nr, width = used == keys ? a->v_size : nr;
        for (int64_t j = 0; j < a->v_size; j += width)
            product(w, n, a->v_size - j < width ? a->v_size - j : width, used > 0 ? used : 0, (struct placed){w->scores, keys, 1},
                    w->v + at * (int64_t)v_step + j * keys, t > 0, w->y + j, a->v_size);
        t += job->block;
    } while (t < seen);
    for (int64_t r = 0; r < n; r++) {
        const int64_t at = ((w->b * a->heads + w->h) * a->queries + i + r) * job->total;
        float *row = w->y + r * a->v_size, *y = row;
        if (a->y.t->dtype == OP_F32) y = (float *)a->y.t->data + attention_row(&a->y, w->b, w->h, i + r);
        math->unary[K_LINEAR](a->v_size, row, y, 1 / sum[r], 0);
        if (a->y.t->dtype != OP_F32) store_rows(&a->y, w->b, w->h, i + r, 1, a->v_size, row);
        if (!a->qk || a->qk_mode != ATTENTION_QK_SOFTMAX) continue;
        math->unary[K_LINEAR](job->total, w->scores + r * job->total, w->scores + r * job->total, 1 / sum[r], 0);
        give_out(a, ATTENTION_QK_SOFTMAX, at, job->total, w->scores + r * job->total);
    }
}

static void pack(const struct head *w, struct placed k, bool values) {
    const struct job *job = w->job;
    const struct attention *a = job->a;
    const struct k_gemm *g = job->kern->gemm;
    float *dst = values ? w->v : w->k;
    const int64_t step = (int64_t)(values ? k_pack_b_floats(g, job->block, a->v_size) : k_pack_b_floats(g, a->size, job->block));
    for (int64_t t = 0; t < job->total; t += job->block, dst += step) {
        const int64_t n = job->total - t < job->block ? job->total - t : job->block;
        if (values) k_pack_b(g, n, a->v_size, k.at + t * k.step, k.step, k.value, dst);
        else k_pack_b(g, a->size, n, k.at + t * k.step, k.value, k.step, dst);
    }
}

static void task(void *arg, int64_t i) {
    const struct job *job = arg;
    const struct attention *a = job->a;
    float *rows = job->mem + (size_t)i * job->task;
    struct head w = {.job = job, .k = rows + job->rows};
    w.v = w.k + job->k;
    w.q = w.v + job->v;
    w.scores = w.q + job->q;
    w.y = w.scores + job->scores;
    w.mask = w.y + job->y;
    const int64_t group = a->heads / a->kv_heads;
    const bool nothing = !a->y.t || !a->queries || !job->total || !a->v_size;
    for (int64_t pair = i; pair < a->batch * a->kv_heads; pair += job->n_tasks) {
        w.b = pair / a->kv_heads;
        w.kv = pair % a->kv_heads;
        struct placed k = place(&a->past_k, &a->k, &a->present_k, a->past, a->keys, a->size, w.b, w.kv, rows);
        if (!nothing) pack(&w, k, false);
        struct placed v = place(&a->past_v, &a->v, &a->present_v, a->past, a->keys, a->v_size, w.b, w.kv, rows);
        if (nothing) continue;
        pack(&w, v, true);
        look_ahead(&w, pair + job->n_tasks);
        for (w.h = w.kv * group; w.h < (w.kv + 1) * group; w.h++) {
            w.mask_is_written = false;
            for (int64_t q = 0; q < a->queries; q += QUERIES) attend(&w, q, a->queries - q < QUERIES ? a->queries - q : QUERIES);
        }
    }
}

void op__attention_f32(struct op_ctx *ctx, const struct attention *a, void *scratch) {
    struct job job;
    plan(ctx, a, &job);
    job.mem = scratch;
    op__parallel(ctx, job.n_tasks, task, &job);
}
