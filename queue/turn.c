/* turn.c: one turn of the crank: finished jobs go into Redis, the next ones come out, in one script
 * call.
 *
 * At the end of each loop iteration every queue is asked whether a turn is worth it: something is
 * finished, something may have landed, or there is room and reason to think that work waits. Up to
 * Q_BATCH_MAX items and as many claims go in one call, and at most two calls of a queue are in
 * flight: while one is under way, what finishes gathers, so that batches grow with the load by
 * themselves and a single job still leaves at once.
 *
 * A call whose reply never came may have happened. Its items go again: HDEL tells the difference,
 * an item that finds its token gone was committed by the first try or lost to another worker, and
 * has no effect in both cases. Claims of such a call are found by reconciliation.
 *
 * Thread: the loop's. */
#include "queue/lease.h"

#include <stdlib.h>
#include <string.h>

struct turn {
    struct q__queue *queue;
    struct q__item *items;
    uint32_t n_items, asked;
    bool land, inboxes;
    struct q__slot_turn slots;
    char wid[Q_WID_MAX + 1]; /* under which it was sent */
};

enum {
    TURN_BYTES = 32 << 20, /* of envelopes in one call */
    REDO_LOOK_MS = 100,    /* among large entries: how often redo and delayed ones have a turn */
    REDO_MORE_MS = 2       /* the same after one that found some */
};

enum {
    WAIT = 1,
    REPLY = 2,
    STATUS = 4,
    UNIQUE = 8,
    BULK = 16,
    CANCEL = 32
}; /* flags of turn.lua */

void q__turn_push(struct q__queue *q, struct q_job *job, char verb, const char *state,
                  char *envelope, size_t envelope_len, int64_t due_ms) {
    struct q__item *item = &job->priv->item;
    *item = (struct q__item){.job = job,
                             .verb = verb,
                             .state = state,
                             .envelope = envelope,
                             .envelope_len = envelope_len,
                             .due_ms = due_ms};
    job->priv->hold = Q__ENDING;
    *q->pending_end = item;
    q->pending_end = &item->next;
    q->n_pending++;
}

/* --- the words of a call */

static unsigned item_flags(const struct q__item *item) {
    const struct q_job *job = item->job;
    unsigned ends = item->verb == 'c' || item->verb == 'x', flags = 0;
    bool status = job->status || job->priv->live;
    if (!ends && item->verb != 'r') return status && item->verb == 'd' ? STATUS : 0;
    flags |= job->wait ? WAIT : 0;
    flags |= job->reply_to[0] ? REPLY : 0;
    if (item->verb == 'r') return flags;
    flags |= status || job->ticket >= 0 ? STATUS : 0;
    flags |= job->unique[0] ? UNIQUE : 0;
    flags |= job->ticket >= 0 ? BULK : 0;
    flags |= job->cancel_wanted || job->priv->cx_seen ? CANCEL : 0;
    return flags;
}

static size_t item_keys(struct q__args *a, const struct q__item *item, unsigned flags) {
    const struct q_job *job = item->job;
    const char *q = job->queue;
    size_t n = a->n;
    char bulk[Q_ID_MAX + 4];
    size_t id_len = strlen(job->id);
    if (job->priv->slot) q__slot_key(a, job->priv->queue, job->priv->slot - 1);
    memcpy(bulk, job->id, id_len);
    if (item->verb == 'c' || item->verb == 'x' || item->verb == 'r')
        q__args_key(a, q, "r:", job->id);
    if (flags & WAIT) q__args_key(a, q, "n:", job->id);
    if (flags & REPLY) q__args_text(a, job->reply_to);
    if (flags & STATUS) q__args_key(a, q, "s:", job->id);
    if (flags & UNIQUE) q__args_key(a, q, "u:", job->unique);
    if (flags & BULK) {
        q__args_key(a, q, "b:", job->id);
        memcpy(bulk + id_len, ":d", 3);
        q__args_key(a, q, "b:", bulk);
        memcpy(bulk + id_len, ":s", 3);
        q__args_key(a, q, "b:", bulk);
    }
    return a->n - n;
}

/* A delayed ticket must not take its sisters' place in the delayed set. */
static void delayed_id(struct q__args *a, const struct q_job *job) {
    char id[Q_ID_MAX + 16];
    size_t len = strlen(job->id);
    memcpy(id, job->id, len);
    if (job->ticket >= 0) {
        memcpy(id + len, "#t", 2);
        len += 2 + q__digits(id + len + 2, job->ticket);
    }
    q__args_copy(a, id, len);
}

/* turn.lua's verb e: a commit that nobody waits for. */
static bool is_plain(const struct q__item *item, unsigned flags) {
    return item->verb == 'c' && !flags && !item->job->priv->slot &&
           strcmp(item->state, "done") == 0;
}

static void item_words(struct q__args *a, const struct q__item *item, unsigned flags) {
    const struct q_job *job = item->job;
    char verb[2] = {item->verb, 's'}, header[Q__HEADER_MAX];
    size_t header_len;
    q__args_int(a, (int64_t)job->token);
    if (is_plain(item, flags)) {
        q__args_text(a, "e");
        q__args_int(a, job->ttl_ms ? job->ttl_ms : 1);
        q__args_bytes(a, item->envelope, item->envelope_len);
        return;
    }
    q__args_copy(a, verb, job->priv->slot ? 2 : 1);
    switch (item->verb) {
    case 'c':
    case 'x':
        q__args_int(a, flags);
        q__args_int(a, job->ttl_ms ? job->ttl_ms : 1);
        q__args_text(a, job->id);
        q__args_bytes(a, item->envelope, item->envelope_len);
        q__args_text(a, item->state);
        break;
    case 'r':
        q__args_int(a, flags);
        q__args_int(a, job->ttl_ms ? job->ttl_ms : 1);
        q__args_text(a, job->id);
        break;
    case 'd':
        q__args_int(a, flags);
        header_len = q__header_write(&job->priv->header, header);
        q__args_copy(a, header, header_len);
        q__args_int(a, item->due_ms);
        delayed_id(a, job);
        q__args_text(a, item->state);
        break;
    case 'h':
        header_len = q__header_write(&job->priv->header, header);
        q__args_copy(a, header, header_len);
        break;
    default:
        break;
    }
}

/* Shares of hi, in, lo in n claims: smooth weighted round robin, a unit at a time, so that weights
 * hold for claims of one as well as of 64. */
void q__shares(struct q__queue *q, uint32_t n, uint32_t out[3]) {
    int32_t sum = 0;
    out[0] = out[1] = out[2] = 0;
    for (int i = 0; i < 3; i++) sum += (int32_t)q->weight_in[i];
    for (uint32_t k = 0; k < n && sum > 0; k++) {
        int best = 0;
        for (int i = 0; i < 3; i++) {
            q->inbox_credit[i] += (int32_t)q->weight_in[i];
            if (q->inbox_credit[i] > q->inbox_credit[best]) best = i;
        }
        q->inbox_credit[best] -= sum;
        out[best]++;
    }
}

static size_t fixed_keys(struct q__args *a, const struct q__queue *q, int64_t now_ms) {
    static const char *const names[] = {"redo", "in:hi", "in", "in:lo"},
                             *const lands[] = {"land:", "landh:", "landl:"},
                             *const rest[] = {"del", "delb",  "dead", "deadb",
                                              "cfg", "fence", "pops"};
    char minute[32];
    q__args_key(a, q->name, "hb", NULL);
    q__args_key(a, q->name, "a:", q->wid);
    for (size_t i = 0; i < Q__COUNT(names); i++) q__args_key(a, q->name, names[i], NULL);
    for (size_t i = 0; i < Q__COUNT(lands); i++) q__args_key(a, q->name, lands[i], q->wid);
    for (size_t i = 0; i < Q__COUNT(rest); i++) q__args_key(a, q->name, rest[i], NULL);
    minute[q__digits(minute, now_ms / 60000)] = 0;
    q__args_key(a, q->name, "st:", minute);
    q__args_key(a, q->name, "cx", NULL);
    return a->n;
}

/* --- the reply */

static void give_back(struct turn *t) {
    struct q__queue *q = t->queue;
    if (!t->items) return;
    struct q__item *last = t->items;
    for (;; last = last->next) {
        last->again = true;
        if (!last->next) break;
    }
    last->next = q->pending;
    if (!q->pending) q->pending_end = &last->next;
    q->pending = t->items;
    q->n_pending += t->n_items;
    t->items = NULL;
}

static void count(struct q_worker_stats *s, const struct q__item *item, char said) {
    if (said == '0') {
        if (!item->again) s->fenced++;
    } else if (said == '2' || item->verb == 'r')
        s->duplicates++;
    else if (item->verb == 'h')
        s->handed_back++;
    else if (item->verb == 'x')
        s->dead++;
    else if (item->verb == 'd')
        s->retried += strcmp(item->state, "retrying") == 0;
    else if (item->verb == 'c')
        *(strcmp(item->state, "done") == 0 ? &s->done : &s->failed) += 1;
}

static void free_items(struct turn *t, const char *said, size_t n_said) {
    struct q_worker *w = t->queue->w;
    size_t i = 0;
    while (t->items) {
        struct q__item *item = t->items;
        t->items = item->next;
        char word = i < n_said ? said[i] : '0';
        i++;
        count(&w->stats, item, word);
        if (word == '0' && !item->again)
            q__worker_log(w, 4, "commit refused queue=%s id=%s token=%llu: the lease was lost",
                          t->queue->name, item->job->id, (unsigned long long)item->job->token);
        free(item->envelope);
        q__job_unlink(item->job);
        q__job_free(item->job);
    }
}

static void on_turn(void *ctx, redisReply *r, const struct q_error *err) {
    struct turn *t = ctx;
    struct q__queue *q = t->queue;
    struct q_worker *w = q->w;
    q->turns--;
    q->asked -= t->asked;
    if (!r || err->code != Q_OK || r->type != REDIS_REPLY_ARRAY || r->elements != 8) {
        give_back(t);
        if (strcmp(t->wid, q->wid) == 0) q__slot_turned(q, &t->slots, NULL, 0, 0, false);
        q->maybe_more = true;
        q->land_dirty |= t->land;
        q->not_before_ms = q__worker_ms(w) + 50 + q__random_below(200);
        if (r && !w->closing)
            q__worker_log(w, 3, "turn failed queue=%s error=\"%s\"", q->name,
                          err->code ? err->text : "unexpected reply");
        free(t);
        return;
    }
    const redisReply *said = r->element[5];
    redisReply *entries = r->element[6];
    free_items(t, q__reply_text(said) ? said->str : "", q__reply_text(said) ? said->len : 0);
    w->stats.turns++;
    uint32_t asked = t->inboxes ? t->asked - t->slots.n_admit : 0;
    struct q__slot_turn slots = t->slots;
    bool current =
        strcmp(t->wid, q->wid) == 0; /* else fenced meanwhile: what it claimed is reaped */
    free(t);
    if (w->closing) return;
    if (!current) {
        q__worker_check_drained(w);
        return;
    }
    if (q__reply_int(r->element[0], 0) == 0) {
        if (q->enrolled) q__queue_fenced(q, "this worker is no longer among the living");
        return;
    }
    q->paused = q__reply_int(r->element[1], 0) == 1;
    q->due_ms = q__reply_int(r->element[3], -1);
    size_t got = entries->type == REDIS_REPLY_ARRAY ? entries->elements : 0;
    if (asked)
        q->maybe_more = got == asked;
    else if (got)
        q->redo_look_ms = q__worker_ms(w) + REDO_MORE_MS;
    int64_t cancels = q__reply_int(r->element[2], 0);
    uint64_t token = (uint64_t)q__reply_int(r->element[4], 0);
    if (got) q__turn_claimed(q, entries, token, cancels > 0);
    if (slots.n_sweep || slots.n_admit)
        q__slot_turned(q, &slots, q__reply_text(r->element[7]) ? r->element[7]->str : "",
                       r->element[7]->len, token + got, cancels > 0);
    if (cancels > 0) q__cancel_look(q, cancels);
    q__worker_check_drained(w);
}

/* One claimed entry becomes a job, or is buried; NULL: nothing to admit. Takes the bytes over. */
struct q_job *q__turn_take(struct q__queue *q, char *bytes, size_t len, uint64_t token,
                           const struct q__origin *origin) {
    struct q_worker *w = q->w;
    enum q_code code;
    struct q_error err = {.code = Q_OK};
    struct q_job *job;
    enum q_status s = q__job_parse(&job, q->name, bytes, len, w->opt.entry_bytes_max, &code, &err);
    if (!job) return NULL; /* no memory: it stays owned, reconciliation finds it */
    struct q__header *h = &job->priv->header;
    if (origin) {
        *h = origin->header;
        job->attempt = h->attempt + 1;
        job->crashes = h->crashes;
        job->ticket = h->ticket;
        if (!job->queued_ms) job->queued_ms = h->queued_ms;
        job->priv->slot = origin->slot + 1;
    }
    job->token = token;
    job->claimed_ms = q_worker_now_ms(w);
    if (!job->queued_ms) job->queued_ms = h->queued_ms = job->claimed_ms;
    if (job->ttl_ms == UINT32_MAX) job->ttl_ms = w->opt.ttl_ms;
    if (!job->priv->has_id) {
        char *id = (char *)(uintptr_t)job->id;
        size_t uuid = strlen(w->uuid);
        memcpy(id, w->uuid, uuid);
        id[uuid++] = '-';
        id[uuid + q__digits(id + uuid, (int64_t)token)] = 0;
    }
    q__job_link(q, job);
    w->stats.claimed++;
    if (s == Q_OK) return job;
    q__finish_end(job, "dead", code, err.text, false, true, false, NULL, 0, NULL);
    return NULL;
}

/* Parses what was claimed and hands it to admission. Steals the strings. */
void q__turn_claimed(struct q__queue *q, redisReply *entries, uint64_t first_token, bool cancels) {
    struct q_job *jobs[Q_BATCH_MAX];
    size_t n = 0;
    for (size_t i = 0; i < entries->elements && n < Q_BATCH_MAX; i++) {
        redisReply *e = entries->element[i];
        if (!q__reply_text(e)) continue;
        char *bytes = e->str;
        e->str = NULL;
        q__slot_met(q, e->len);
        struct q_job *job = q__turn_take(q, bytes, e->len, first_token + i, NULL);
        if (job) jobs[n++] = job;
    }
    if (n) q__admit(q, jobs, n, cancels);
}

/* --- sending */

static bool may_claim(const struct q__queue *q) {
    return !q->paused && !q->w->draining && !q->w->held;
}

static void send_turn(struct q__queue *q, uint32_t n, bool inboxes) {
    struct q_worker *w = q->w;
    struct q__args *a = &w->args;
    struct turn *t = calloc(1, sizeof *t);
    if (!t) return;
    int64_t now = q_worker_now_ms(w);
    uint32_t share[3], redo = (n + 1) / 2;
    t->queue = q;
    t->inboxes = inboxes;
    t->land = q->land_dirty;
    strcpy(t->wid, q->wid);
    t->items = q->pending;
    struct q__item *last = NULL;
    q__args_reset(a);
    fixed_keys(a, q, now);
    size_t bytes = 0;
    for (struct q__item *item = q->pending; item && t->n_items < Q_BATCH_MAX;
         item = item->next, t->n_items++) {
        bytes += item->envelope_len;
        if (last && bytes > TURN_BYTES) break;
        item_keys(a, item, item_flags(item));
        last = item;
    }
    q__slot_keys(q, a, &t->slots, may_claim(q));
    size_t n_keys = a->n;
    q__shares(q, inboxes ? n : 0, share);
    q__args_text(a, q->wid);
    q__args_int(a, n);
    q__args_int(a, now);
    q__args_int(a, redo);
    for (int i = 0; i < 3; i++) q__args_int(a, share[i]);
    q__args_text(a, t->land ? "1" : "0");
    q__args_text(a, inboxes ? "1" : "0");
    q__args_int(a, t->n_items);
    q__args_int(a, t->slots.n_sweep);
    q__args_int(a, t->slots.n_admit);
    uint32_t k = 0;
    for (struct q__item *item = q->pending; item && k < t->n_items; item = item->next, k++)
        item_words(a, item, item_flags(item));
    q__slot_words(q, a, &t->slots);
    t->asked = n + t->slots.n_admit; /* those were counted when they were sent for */
    if (!q__conn_script(w->cmd, Q__SCRIPT_turn, n_keys, a, on_turn, t)) {
        q__slot_turned(q, &t->slots, NULL, 0, 0, false);
        q->asked -= t->slots.n_admit;
        free(t);
        return;
    }
    if (last) {
        q->pending = last->next;
        last->next = NULL;
        q->n_pending -= t->n_items;
        if (!q->pending) q->pending_end = &q->pending;
    } else
        t->items = NULL;
    q->asked += n;
    q->turns++;
    q->land_dirty = false;
}

/* Is a turn worth it now? The first one for anything; while one is under way, only a full one: a
 * turn for a few jobs costs Redis nearly as much as one for many, and delays those behind it.
 * Sending for large entries is no turn. */
static bool due(const struct q__queue *q, uint64_t now_ms) {
    if (!q->enrolled || q->turns >= Q__TURNS_MAX || now_ms < q->not_before_ms) return false;
    uint32_t enough = q->turns && !q->large ? Q_BATCH_MAX : 1;
    if (q->n_pending >= Q_BATCH_MAX) return true;
    if (q->maybe_more && may_claim(q) && q__queue_room(q) >= enough) return true;
    if (q->turns) return false;
    return q->n_pending || q->land_dirty || q->n_landed ||
           (q->paused && q->maybe_more); /* asks whether it still is */
}

/* Room is dealt out a unit at a time by the queues' weights, among those that go now. */
void q__turn_all(struct q_worker *w) {
    uint64_t now = q__worker_ms(w);
    for (size_t i = 0; i < w->n_queues; i++)
        if (!may_claim(&w->queue[i])) q__slot_return(&w->queue[i]);
    uint32_t n[Q_QUEUES_MAX] = {0}, room = q__worker_room(w);
    bool go[Q_QUEUES_MAX], any = false;
    int64_t sum = 0;
    for (size_t i = 0; i < w->n_queues; i++) {
        struct q__queue *q = &w->queue[i];
        go[i] = due(q, now);
        any |= go[i];
        if (go[i] && may_claim(q)) sum += q->weight;
    }
    if (!any) return;
    while (room > 0 && sum > 0) {
        struct q__queue *best = NULL;
        for (size_t i = 0; i < w->n_queues; i++) {
            struct q__queue *q = &w->queue[i];
            uint32_t used = q->n_held + q->asked + n[i];
            if (!go[i] || !may_claim(q) || n[i] >= Q_BATCH_MAX || used >= q->cap) continue;
            q->credit += q->weight;
            if (!best || q->credit > best->credit) best = q;
        }
        if (!best) break;
        best->credit -= sum;
        if (best->credit < -1000000 || best->credit > 1000000) best->credit = 0;
        n[best->index]++;
        room--;
    }
    for (size_t i = 0; i < w->n_queues; i++) {
        struct q__queue *q = &w->queue[i];
        bool inboxes = q->large == 0;
        if (!go[i]) continue;
        if (!inboxes && now < q->redo_look_ms && !q->land_dirty) {
            n[i] = n[i] ? q__slot_pull(q, n[i]) : 0;
            inboxes = n[i] > 0;
        } else
            q->redo_look_ms = now + REDO_LOOK_MS;
        if (n[i] || q->n_pending || q->land_dirty || q->n_landed || q->paused)
            send_turn(q, n[i], inboxes);
    }
}

/* --- reconciliation: what does Redis say is mine?
 *
 * Exact although turns go on, because Redis answers in order: calls sent before the question have
 * been answered, calls sent after it have changed nothing here yet. */

struct adoption {
    struct q__queue *queue;
    uint64_t token;
    char wid[Q_WID_MAX + 1];
    struct q__origin origin;
};

static bool known(const struct q__queue *q, uint64_t token) {
    for (const struct q_job_priv *p = q->jobs; p; p = p->next)
        if (p->job.token == token && !p->job.fenced) return true;
    return false;
}

static bool adoptable(const struct adoption *ad, const redisReply *r, const struct q_error *err) {
    struct q__queue *q = ad->queue;
    return r && err->code == Q_OK && q__reply_text(r) && strcmp(ad->wid, q->wid) == 0 &&
           !q->w->closing && !known(q, ad->token);
}

static void on_adopt_slot(void *ctx, redisReply *r, const struct q_error *err) {
    struct adoption *ad = ctx;
    struct q__queue *q = ad->queue;
    if (adoptable(ad, r, err)) {
        char *bytes = r->str;
        r->str = NULL;
        struct q__slot *slot = &q->slot[ad->origin.slot];
        if (slot->state == Q__SLOT_FREE || slot->state == Q__SLOT_DOUBT)
            slot->state = Q__SLOT_OWNED;
        struct q_job *job = q__turn_take(q, bytes, r->len, ad->token, &ad->origin);
        if (job) q__admit(q, &job, 1, true);
    }
    free(ad);
}

static void on_adopt(void *ctx, redisReply *r, const struct q_error *err) {
    struct adoption *ad = ctx;
    struct q__queue *q = ad->queue;
    if (adoptable(ad, r, err)) {
        if (q__slot_marker(r->str, r->len, &ad->origin.slot, &ad->origin.header)) {
            struct q__args *a = &q->w->args;
            q__args_reset(a);
            q__args_text(a, "LINDEX");
            q__slot_key(a, q, ad->origin.slot);
            q__args_text(a, "-1");
            if (q__conn_args(q->w->cmd, a, on_adopt_slot, ad)) return;
        } else {
            redisReply *one[1] = {r};
            redisReply list = {.type = REDIS_REPLY_ARRAY, .elements = 1, .element = one};
            q__turn_claimed(q, &list, ad->token, true);
        }
    }
    free(ad);
}

static void adopt(struct q__queue *q, const redisReply *token) {
    struct q__args *a = &q->w->args;
    struct adoption *ad = calloc(1, sizeof *ad);
    if (!ad) return;
    ad->queue = q;
    ad->token = (uint64_t)q__reply_int(token, 0);
    strcpy(ad->wid, q->wid);
    q__args_reset(a);
    q__args_text(a, "HGET");
    q__args_key(a, q->name, "a:", q->wid);
    q__args_bytes(a, token->str, token->len);
    if (!q__conn_args(q->w->cmd, a, on_adopt, ad)) free(ad);
}

static void on_owned(void *ctx, redisReply *r, const struct q_error *err) {
    struct q__queue *q = ctx;
    struct q_worker *w = q->w;
    q->reconciling = false;
    if (!r || err->code != Q_OK || r->type != REDIS_REPLY_ARRAY || w->closing) return;
    size_t adopted = 0, missing = 0;
    for (size_t i = 0; i < r->elements; i++)
        if (q__reply_text(r->element[i]) && !known(q, (uint64_t)q__reply_int(r->element[i], 0))) {
            adopt(q, r->element[i]);
            adopted++;
        }
    for (struct q_job_priv *p = q->jobs; p; p = p->next) {
        bool there = p->job.fenced;
        for (size_t i = 0; i < r->elements && !there; i++)
            there = (uint64_t)q__reply_int(r->element[i], 0) == p->job.token;
        if (there || p->hold != Q__HELD) continue;
        missing++;
        p->job.fenced = true; /* that one alone is lost */
        if (w->opt.on.cancel) w->opt.on.cancel(w->opt.on.ctx, &p->job);
    }
    if (adopted || missing)
        q__worker_log(w, 4, "reconciled queue=%s adopted=%zu lost=%zu", q->name, adopted, missing);
}

void q__turn_reconcile(struct q__queue *q) {
    struct q__args *a = &q->w->args;
    q->mismatches = 0;
    if (q->reconciling) return;
    q__args_reset(a);
    q__args_text(a, "HKEYS");
    q__args_key(a, q->name, "a:", q->wid);
    q->reconciling = q__conn_args(q->w->cmd, a, on_owned, q);
}
