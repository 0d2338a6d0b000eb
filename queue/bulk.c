/* bulk.c: tickets of bulk jobs: the rules stand in queue.h, the work is done by shard_open.lua and
 * shard_turn.lua. Thread: the loop's. */
#include "queue/lease.h"

#include <stdlib.h>
#include <string.h>

struct call {
    struct q_worker *w;
    struct q_job *job;
    q_bulk_fn *done;
    void *ctx;
    struct q_bulk_turn turn;
    uv_timer_t later; /* for an answer that must not come inside the call */
};

static void finish(struct call *c) {
    if (c->job->fenced && c->turn.step != Q_BULK_ERROR) c->turn.step = Q_BULK_LOST;
    c->done(c->ctx, c->job, &c->turn);
    free(c);
}

static void on_later_closed(uv_handle_t *h) {
    struct call *c = h->data;
    struct q_worker *w = c->w;
    if (w->closing)
        free(c); /* its job is gone */
    else
        finish(c);
    q__worker_release(w);
}

static void finish_later(struct call *c) {
    uv_timer_init(c->w->loop, &c->later);
    c->later.data = c;
    q__worker_keep(c->w);
    uv_close((uv_handle_t *)&c->later, on_later_closed);
}

static void read_turn(struct q_bulk_turn *t, const redisReply *r) {
    static const enum q_bulk_step steps[] = {Q_BULK_RANGE, Q_BULK_FINAL, Q_BULK_LEAVE,
                                             Q_BULK_CANCEL, Q_BULK_LOST};
    int64_t step = q__reply_int(q__reply_at(r, 0), -1);
    if (step < 0 || step >= (int64_t)Q__COUNT(steps)) {
        t->step = Q_BULK_ERROR;
        q__error(&t->err, Q_PROTOCOL, "the answer to a bulk step was not understood");
        return;
    }
    t->step = steps[step];
    int64_t n[13];
    for (size_t i = 0; i < Q__COUNT(n); i++) n[i] = q__reply_int(q__reply_at(r, i), 0);
    t->first = (uint32_t)n[1];
    t->count = (uint32_t)n[2];
    t->crashes = (uint32_t)(n[3] > 0 ? n[3] : 0);
    t->grains_done = (uint32_t)n[4];
    t->rows_ok = (uint64_t)n[5];
    t->rows_failed = (uint64_t)n[6];
    t->grains = (uint32_t)n[7];
    t->plan = (struct q_bulk_plan){.n_rows = (uint64_t)n[10],
                                   .grain_rows = (uint32_t)n[11],
                                   .n_tickets = (uint32_t)n[8],
                                   .range_max = (uint32_t)n[9]};
    t->started_ms = n[12];
}

static void on_turn(void *ctx, redisReply *r, const struct q_error *err) {
    struct call *c = ctx;
    if (!r || err->code != Q_OK) {
        c->turn.step = Q_BULK_ERROR;
        c->turn.err = *err;
    } else
        read_turn(&c->turn, r);
    if (!c->w->closing)
        finish(c);
    else
        free(c);
}

static void bulk_keys(struct q__args *a, const struct q_job *job) {
    char bits[Q_ID_MAX + 4];
    size_t n = strlen(job->id);
    memcpy(bits, job->id, n);
    q__args_key(a, job->queue, "a:", job->priv->queue->wid);
    q__args_key(a, job->queue, "b:", job->id);
    memcpy(bits + n, ":d", 3);
    q__args_key(a, job->queue, "b:", bits);
    memcpy(bits + n, ":s", 3);
    q__args_key(a, job->queue, "b:", bits);
}

static uint32_t status_ttl(const struct q_job *job) {
    return job->ttl_ms > 86400000 ? job->ttl_ms : 86400000;
}

static void shard_turn(struct call *c, int64_t first, uint32_t count, uint64_t rows_ok,
                       uint64_t rows_failed) {
    struct q_job *job = c->job;
    struct q__args *a = &c->w->args;
    q__args_reset(a);
    bulk_keys(a, job);
    q__args_key(a, job->queue, "s:", job->id);
    q__args_key(a, job->queue, "cx", NULL);
    size_t n_keys = a->n;
    q__args_int(a, (int64_t)job->token);
    q__args_int(a, job->ticket);
    q__args_text(a, job->id);
    q__args_int(a, q_worker_now_ms(c->w));
    q__args_int(a, job->crashes);
    q__args_int(a, status_ttl(job));
    q__args_int(a, first);
    q__args_int(a, count);
    q__args_int(a, (int64_t)rows_ok);
    q__args_int(a, (int64_t)rows_failed);
    if (job->fenced || !c->w->connected ||
        !q__conn_script(c->w->cmd, Q__SCRIPT_shard_turn, n_keys, a, on_turn, c)) {
        c->turn.step = job->fenced ? Q_BULK_LOST : Q_BULK_ERROR;
        q__error(&c->turn.err, Q_UNREACHABLE, "no connection to Redis");
        finish_later(c);
    }
}

static struct call *call_make(struct q_worker *w, struct q_job *job, q_bulk_fn *done, void *ctx) {
    struct call *c = calloc(1, sizeof *c);
    q__assert(c); /* the callback is promised, and there is nothing to promise it with */
    q__assert(job->priv->hold == Q__HELD);
    *c = (struct call){.w = w, .job = job, .done = done, .ctx = ctx};
    return c;
}

void q_bulk_next(struct q_worker *w, struct q_job *job, q_bulk_fn *done, void *ctx) {
    q__assert(job->ticket >= 0);
    shard_turn(call_make(w, job, done, ctx), -1, 0, 0, 0);
}

void q_bulk_commit(struct q_worker *w, struct q_job *job, uint32_t first, uint32_t count,
                   uint64_t rows_ok, uint64_t rows_failed, q_bulk_fn *done, void *ctx) {
    q__assert(job->ticket >= 0);
    shard_turn(call_make(w, job, done, ctx), first, count, rows_ok, rows_failed);
}

/* --- opening */

static void on_opened(void *ctx, redisReply *r, const struct q_error *err) {
    struct call *c = ctx;
    if (c->w->closing) {
        free(c);
        return;
    }
    int64_t said = r && err->code == Q_OK ? q__reply_int(r, -2) : -2;
    if (said == 1) { /* ticket 0 is ours: the first range */
        c->job->ticket = c->job->priv->header.ticket = 0;
        q__slot_release(c->job); /* the entry is in the hash now */
        shard_turn(c, -1, 0, 0, 0);
        return;
    }
    c->turn.step = said == 0 ? Q_BULK_LEAVE : said == -1 ? Q_BULK_LOST : Q_BULK_ERROR;
    c->turn.err = *err;
    finish(c);
}

static bool plan_valid(const struct q_bulk_plan *plan, uint64_t *grains, struct q_error *err) {
    *grains = plan->grain_rows ? (plan->n_rows + plan->grain_rows - 1) / plan->grain_rows : 0;
    if (!plan->grain_rows || plan->n_rows > UINT64_MAX / 2 || *grains > Q_BULK_GRAINS_MAX)
        return q__error(err, Q_BAD_OPTION,
                        "%llu rows in grains of %u make %llu grains, at most %d are allowed",
                        (unsigned long long)plan->n_rows, plan->grain_rows,
                        (unsigned long long)*grains, Q_BULK_GRAINS_MAX),
               false;
    if (!plan->n_tickets || plan->n_tickets > Q_BULK_TICKETS_MAX)
        return q__error(err, Q_BAD_OPTION, "%u tickets, must be 1 to %d", plan->n_tickets,
                        Q_BULK_TICKETS_MAX),
               false;
    return true;
}

static void plan_fields(struct q__args *a, const struct q_bulk_plan *plan, uint64_t grains,
                        int64_t now_ms) {
    const struct {
        const char *name;
        int64_t value;
    } fields[] = {{"n_rows", (int64_t)plan->n_rows},
                  {"grain_rows", plan->grain_rows},
                  {"grains", (int64_t)grains},
                  {"tickets", plan->n_tickets},
                  {"range_max", plan->range_max ? plan->range_max : 64},
                  {"cursor", 0},
                  {"done", 0},
                  {"rows_ok", 0},
                  {"rows_failed", 0},
                  {"started_ms", now_ms}};
    for (size_t i = 0; i < Q__COUNT(fields); i++) {
        q__args_text(a, fields[i].name);
        q__args_int(a, fields[i].value);
    }
}

void q_bulk_open(struct q_worker *w, struct q_job *job, const struct q_bulk_plan *plan,
                 q_bulk_fn *done, void *ctx) {
    struct call *c = call_make(w, job, done, ctx);
    struct q__args *a = &w->args;
    uint64_t grains;
    q__assert(job->ticket < 0);
    if (!plan_valid(plan, &grains, &c->turn.err)) {
        c->turn.step = Q_BULK_ERROR;
        finish_later(c);
        return;
    }
    /* no more tickets than grains: the others would only come to leave */
    struct q_bulk_plan p = *plan;
    if (p.n_tickets > grains) p.n_tickets = grains ? (uint32_t)grains : 1;
    char header[Q__HEADER_MAX];
    struct q__header h = job->priv->header;
    h.queued_ms = job->queued_ms;
    h.ticket = 0;
    size_t n = q__header_write(&h, header); /* …t0~ */
    int64_t now = q_worker_now_ms(w);
    q__args_reset(a);
    q__args_key(a, job->queue, "a:", job->priv->queue->wid);
    q__args_key(a, job->queue, "b:", job->id);
    q__args_key(a, job->queue, "in", NULL);
    q__args_key(a, job->queue, "in:hi", NULL);
    q__args_key(a, job->queue, "in:lo", NULL);
    q__args_key(a, job->queue, "s:", job->id);
    if (job->priv->slot) q__slot_key(a, job->priv->queue, job->priv->slot - 1);
    q__args_int(a, (int64_t)job->token);
    q__args_copy(a, header, n - 2);
    q__args_text(a, "~");
    q__args_int(a, p.n_tickets);
    q__args_int(a, now);
    q__args_int(a, status_ttl(job));
    plan_fields(a, &p, grains, now);
    if (job->fenced || !w->connected ||
        !q__conn_script(w->cmd, Q__SCRIPT_shard_open, 6 + (job->priv->slot > 0), a, on_opened, c)) {
        c->turn.step = job->fenced ? Q_BULK_LOST : Q_BULK_ERROR;
        q__error(&c->turn.err, Q_UNREACHABLE, "no connection to Redis");
        finish_later(c);
    }
}

/* --- the finaliser's list */

struct ranges {
    struct q_worker *w;
    struct q_job *job;
    q_bulk_ranges_fn *done;
    void *ctx;
    unsigned char *start_bits;
    size_t n_start;
    struct q_error err;
    uv_timer_t later;
};

static bool bit_at(const unsigned char *bits, size_t n, size_t i) {
    return i / 8 < n && (bits[i / 8] >> (7 - i % 8) & 1);
}

/* A range goes from its start bit to the next one, or to the end: all grains are done by now. */
static void on_plan(void *ctx, redisReply *r, const struct q_error *err) {
    struct ranges *q = ctx;
    struct q_bulk_range *list = NULL;
    size_t n = 0, cap = 0;
    struct q_error e = q->err.code ? q->err : *err;
    int64_t grains = r && e.code == Q_OK ? q__reply_int(r, -1) : 0;
    if (e.code == Q_OK && (grains < 0 || grains > Q_BULK_GRAINS_MAX))
        q__error(&e, Q_NOT_FOUND, "bulk job \"%s\" is not open", q->job->id);
    for (int64_t i = 0; e.code == Q_OK && i < grains; i++) {
        if (!bit_at(q->start_bits, q->n_start, (size_t)i)) {
            if (n) list[n - 1].count++;
            continue;
        }
        if (n == cap) {
            cap = cap ? cap * 2 : 64;
            struct q_bulk_range *more = realloc(list, cap * sizeof *list);
            if (!more) {
                q__error(&e, Q_NO_MEMORY, "no memory for the ranges of bulk job \"%s\"",
                         q->job->id);
                break;
            }
            list = more;
        }
        list[n++] = (struct q_bulk_range){(uint32_t)i, 1};
    }
    if (!q->w->closing)
        q->done(q->ctx, q->job, e.code == Q_OK ? list : NULL, e.code == Q_OK ? n : 0, &e);
    free(list);
    free(q->start_bits);
    free(q);
}

static void on_starts(void *ctx, redisReply *r, const struct q_error *err) {
    struct ranges *q = ctx;
    if (!r || err->code != Q_OK)
        q->err = *err;
    else if (q__reply_text(r)) {
        q->start_bits = (unsigned char *)r->str;
        q->n_start = r->len;
        r->str = NULL;
    }
}

static void on_ranges_later(uv_handle_t *h) {
    struct ranges *q = h->data;
    struct q_worker *w = q->w;
    on_plan(q, NULL, &q->err);
    q__worker_release(w);
}

void q_bulk_ranges(struct q_worker *w, struct q_job *job, q_bulk_ranges_fn *done, void *ctx) {
    struct ranges *q = calloc(1, sizeof *q);
    struct q__args *a = &w->args;
    q__assert(q);
    *q = (struct ranges){.w = w, .job = job, .done = done, .ctx = ctx};
    char bits[Q_ID_MAX + 4];
    size_t n = strlen(job->id);
    memcpy(bits, job->id, n);
    memcpy(bits + n, ":s", 3);
    q__args_reset(a);
    q__args_text(a, "GET");
    q__args_key(a, job->queue, "b:", bits);
    bool sent = w->connected && q__conn_args(w->cmd, a, on_starts, q);
    q__args_reset(a);
    q__args_text(a, "HGET");
    q__args_key(a, job->queue, "b:", job->id);
    q__args_text(a, "grains");
    if (sent && q__conn_args(w->cmd, a, on_plan, q)) return;
    q__assert(!sent); /* the two go together on a ready connection, but for memory */
    q__error(&q->err, Q_UNREACHABLE, "no connection to Redis");
    uv_timer_init(w->loop, &q->later);
    q->later.data = q;
    q__worker_keep(w);
    uv_close((uv_handle_t *)&q->later, on_ranges_later);
}
