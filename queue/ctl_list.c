/* ctl_list.c: the blocking client's lists: queues, workers, dead letters; pause. */
#include "queue/ctl.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MINUTES = 60, WORKERS_MAX = 1000, DEAD_PAGE = 50, PURGE_PAGE = 500 };

/* --- queues */

struct names {
    char (*name)[Q_QUEUE_NAME_MAX + 1];
    size_t n;
};

static int by_name(const void *a, const void *b) {
    return strcmp(a, b);
}

static enum q_status list_names(struct q_ctl *c, const char *queue, struct names *out) {
    *out = (struct names){0};
    q__ctl_begin(c);
    q__args_text(&c->args, "SMEMBERS");
    q__args_text(&c->args, "quern:queues");
    q__ctl_add(c, -1, 0);
    enum q_status s = queue ? (q__ctl_run(c), Q_OK) : q__ctl_run(c);
    if (s) return s;
    const redisReply *r = q__ctl_reply(c, 0);
    size_t n = queue ? 1 : r->elements;
    out->name = calloc(n + 1, sizeof *out->name);
    if (!out->name) return q__error(&c->err, Q_NO_MEMORY, "no memory for a list of queues");
    if (queue) snprintf(out->name[out->n++], sizeof *out->name, "%s", queue);
    for (size_t i = 0; !queue && i < r->elements; i++)
        if (q__reply_text(r->element[i]) &&
            q_queue_name_valid(r->element[i]->str, r->element[i]->len))
            strcpy(out->name[out->n++], r->element[i]->str);
    qsort(out->name, out->n, sizeof *out->name, by_name);
    return Q_OK;
}

/* When the oldest waiting job came: the first sample in which more had come than were popped since.
 */
static double oldest_s(const redisReply *samples, int64_t pops, int64_t now_ms) {
    int64_t since = -1;
    for (size_t i = 0; i < samples->elements; i++) { /* newest first */
        long long ms, came;
        if (!q__reply_text(samples->element[i]) ||
            sscanf(samples->element[i]->str, "%lld:%lld", &ms, &came) != 2)
            continue;
        if (came <= pops) break;
        since = ms;
    }
    return since < 0 ? -1 : (double)(now_ms - since) / 1000;
}

static void rates(struct q_ctl_queue *q, const struct q_ctl *c, size_t first, int64_t now_ms) {
    int64_t recent = 0;
    for (size_t m = 0; m < MINUTES; m++) { /* m minutes ago */
        const redisReply *r = q__ctl_reply(c, first + m);
        int64_t done = q__reply_int(q__reply_at(r, 0), 0), failed = 0;
        for (size_t k = 1; k < 4; k++) failed += q__reply_int(q__reply_at(r, k), 0);
        q->done_total += (uint64_t)done;
        q->failed_total += (uint64_t)failed;
        if (m < 2) recent += done + failed;
    }
    q->done_per_s = (double)recent / (60 + (double)(now_ms % 60000) / 1000);
    uint64_t waiting = q->waiting + q->waiting_hi + q->waiting_lo + q->redo;
    q->eta_s = waiting == 0 ? 0 : q->done_per_s > 0 ? (double)waiting / q->done_per_s : -1;
}

static enum q_status running(struct q_ctl *c, struct q_ctl_queue *q) {
    char wids[WORKERS_MAX][Q_WID_MAX + 1];
    size_t n = 0;
    q__ctl_begin(c);
    q__ctl_words(c, "HKEYS", q->name, "hb", NULL, NULL);
    enum q_status s = q__ctl_run(c);
    const redisReply *r = q__ctl_reply(c, 0);
    for (size_t i = 0; s == Q_OK && i < r->elements && n < WORKERS_MAX; i++)
        if (q__reply_text(r->element[i]) && r->element[i]->len <= Q_WID_MAX)
            strcpy(wids[n++], r->element[i]->str);
    q->workers = (uint32_t)n;
    q__ctl_begin(c);
    for (size_t i = 0; i < n; i++) q__ctl_words(c, "HLEN", q->name, "a:", wids[i], NULL);
    s = s == Q_OK && n ? q__ctl_run(c) : s;
    for (size_t i = 0; s == Q_OK && i < n; i++)
        q->running += (uint64_t)q__reply_int(q__ctl_reply(c, i), 0);
    return s;
}

static enum q_status fill_queue(struct q_ctl *c, struct q_ctl_queue *q) {
    int64_t now = q__ctl_now_ms(c);
    char minute[32];
    enum q_status s = running(c, q);
    if (s) return s;
    q__ctl_begin(c);
    q__ctl_words(c, "LLEN", q->name, "in", NULL, NULL);
    q__ctl_words(c, "LLEN", q->name, "in:hi", NULL, NULL);
    q__ctl_words(c, "LLEN", q->name, "in:lo", NULL, NULL);
    q__ctl_words(c, "LLEN", q->name, "redo", NULL, NULL);
    q__ctl_words(c, "ZCARD", q->name, "del", NULL, NULL);
    q__ctl_words(c, "ZCARD", q->name, "dead", NULL, NULL);
    q__ctl_words(c, "HGET", q->name, "cfg", NULL, "paused");
    q__ctl_words(c, "GET", q->name, "pops", NULL, NULL);
    q__ctl_words(c, "LRANGE", q->name, "arr", NULL, "0 3599");
    for (int m = 0; m < MINUTES; m++) {
        minute[q__digits(minute, now / 60000 - m)] = 0;
        q__ctl_words(c, "HMGET", q->name, "st:", minute, "done failed dead expired");
    }
    s = q__ctl_run(c);
    if (s) return s;
    uint64_t *const counts[] = {&q->waiting, &q->waiting_hi, &q->waiting_lo,
                                &q->redo,    &q->delayed,    &q->dead};
    for (size_t i = 0; i < Q__COUNT(counts); i++)
        *counts[i] = (uint64_t)q__reply_int(q__ctl_reply(c, i), 0);
    q->paused = q__reply_is(q__ctl_reply(c, 6), "1");
    q->oldest_s = -1;
    if (q->waiting + q->waiting_hi + q->waiting_lo + q->redo)
        q->oldest_s = oldest_s(q__ctl_reply(c, 8), q__reply_int(q__ctl_reply(c, 7), 0), now);
    rates(q, c, 9, now);
    return Q_OK;
}

enum q_status q_ctl_queues(struct q_ctl *c, const char *queue, struct q_ctl_queue **out,
                           size_t *n) {
    struct names names;
    *out = NULL;
    *n = 0;
    enum q_status s = list_names(c, queue, &names);
    if (s) return s;
    *out = calloc(names.n + 1, sizeof **out);
    if (!*out) s = q__error(&c->err, Q_NO_MEMORY, "no memory for %zu queues", names.n);
    for (size_t i = 0; s == Q_OK && i < names.n; i++) {
        strcpy((*out)[i].name, names.name[i]);
        s = fill_queue(c, &(*out)[i]);
        *n = i + 1;
    }
    free(names.name);
    if (s) {
        free(*out);
        *out = NULL;
        *n = 0;
    }
    return s;
}

/* --- workers */

static char *text_or_empty(const redisReply *r) {
    return strdup(q__reply_text(r) ? r->str : "");
}

static void fill_worker(struct q_ctl_worker *w, const redisReply *card, const redisReply *owned) {
    w->name = text_or_empty(q__reply_at(card, 0));
    w->host = text_or_empty(q__reply_at(card, 1));
    w->version = text_or_empty(q__reply_at(card, 2));
    w->pid = q__reply_int(q__reply_at(card, 3), 0);
    w->lanes = (uint32_t)q__reply_int(q__reply_at(card, 4), 0);
    w->started_ms = q__reply_int(q__reply_at(card, 5), 0);
    w->beat_ms = q__reply_int(q__reply_at(card, 6), 0);
    w->round_trip_us = (uint32_t)q__reply_int(q__reply_at(card, 7), 0);
    w->card = q__reply_text(q__reply_at(card, 8)) ? strdup(q__reply_at(card, 8)->str) : NULL;
    w->owned = (uint32_t)q__reply_int(owned, 0);
}

static enum q_status add_workers(struct q_ctl *c, const char *queue, struct q_ctl_worker **out,
                                 size_t *n) {
    q__ctl_begin(c);
    q__ctl_words(c, "HKEYS", queue, "hb", NULL, NULL);
    enum q_status s = q__ctl_run(c);
    if (s) return s;
    const redisReply *r = q__ctl_reply(c, 0);
    size_t most = r->elements < WORKERS_MAX ? r->elements : WORKERS_MAX, from = *n;
    struct q_ctl_worker *more = realloc(*out, (*n + most + 1) * sizeof *more);
    if (!more) return q__error(&c->err, Q_NO_MEMORY, "no memory for %zu workers", most);
    *out = more;
    for (size_t i = 0; i < most; i++) {
        if (!q__reply_text(r->element[i]) || r->element[i]->len > Q_WID_MAX) continue;
        struct q_ctl_worker *w = &more[(*n)++];
        *w = (struct q_ctl_worker){0};
        strcpy(w->wid, r->element[i]->str);
        snprintf(w->queue, sizeof w->queue, "%s", queue);
    }
    q__ctl_begin(c);
    for (size_t i = from; i < *n; i++) {
        q__ctl_words(c, "HMGET", queue, "w:", more[i].wid,
                     "name host version pid lanes started_ms beat_ms rtt_us card");
        q__ctl_words(c, "HLEN", queue, "a:", more[i].wid, NULL);
    }
    s = *n > from ? q__ctl_run(c) : Q_OK;
    for (size_t i = from; s == Q_OK && i < *n; i++)
        fill_worker(&more[i], q__ctl_reply(c, 2 * (i - from)), q__ctl_reply(c, 2 * (i - from) + 1));
    return s;
}

enum q_status q_ctl_workers(struct q_ctl *c, const char *queue, struct q_ctl_worker **out,
                            size_t *n) {
    struct names names;
    *out = NULL;
    *n = 0;
    enum q_status s = list_names(c, queue, &names);
    for (size_t i = 0; s == Q_OK && i < names.n; i++) s = add_workers(c, names.name[i], out, n);
    free(names.name);
    if (s) {
        q_ctl_workers_free(*out, *n);
        *out = NULL;
        *n = 0;
    }
    return s;
}

void q_ctl_workers_free(struct q_ctl_worker *w, size_t n) {
    for (size_t i = 0; w && i < n; i++) {
        free(w[i].name);
        free(w[i].host);
        free(w[i].version);
        free(w[i].card);
    }
    free(w);
}

/* --- dead letters */

/* <len>:<envelope><entry> */
static bool split_dead(struct q_ctl_dead *d, const redisReply *v) {
    if (!q__reply_text(v)) return true; /* requeued meanwhile: only the id is known */
    char *end;
    unsigned long long n = strtoull(v->str, &end, 10);
    size_t head = (size_t)(end + 1 - v->str);
    if (*end != ':' || head + n > v->len)
        n = head = 0;
    else
        d->envelope = strndup(v->str + head, n);
    d->entry_len = v->len - head - n;
    d->entry = malloc(d->entry_len + 1);
    if (!d->entry || (n && !d->envelope)) return false;
    memcpy(d->entry, v->str + head + n, d->entry_len);
    d->entry[d->entry_len] = 0;
    return true;
}

static enum q_status load_dead(struct q_ctl *c, const char *queue, struct q_ctl_dead *d, size_t n) {
    q__ctl_begin(c);
    q__args_text(&c->args, "HMGET");
    q__args_key(&c->args, queue, "deadb", NULL);
    for (size_t i = 0; i < n; i++) q__args_text(&c->args, d[i].id);
    q__ctl_add(c, -1, 0);
    enum q_status s = q__ctl_run(c);
    for (size_t i = 0; s == Q_OK && i < n; i++)
        if (!split_dead(&d[i], q__reply_at(q__ctl_reply(c, 0), i)))
            s = q__error(&c->err, Q_NO_MEMORY, "no memory for a dead letter");
    return s;
}

/* The cause alone: the envelope, without the entry. */
static void drop_entry(struct q_ctl_dead *d) {
    free(d->entry);
    d->entry = NULL;
}

enum q_status q_ctl_dead_list(struct q_ctl *c, const char *queue, uint64_t offset, uint32_t limit,
                              bool brief, struct q_ctl_dead **out, size_t *n, uint64_t *total) {
    char range[64];
    *out = NULL;
    *n = 0;
    limit = limit > 1000 ? 1000 : limit;
    snprintf(range, sizeof range, "%llu %lld WITHSCORES", (unsigned long long)offset,
             (long long)offset + (long long)limit - 1);
    q__ctl_begin(c);
    q__ctl_words(c, "ZCARD", queue, "dead", NULL, NULL);
    if (limit) q__ctl_words(c, "ZREVRANGE", queue, "dead", NULL, range);
    enum q_status s = q__ctl_run(c);
    if (s) return s;
    if (total) *total = (uint64_t)q__reply_int(q__ctl_reply(c, 0), 0);
    const redisReply *r = q__ctl_reply(c, 1);
    struct q_ctl_dead *d = calloc((r ? r->elements / 2 : 0) + 1, sizeof *d);
    size_t have = 0;
    if (!d) return q__error(&c->err, Q_NO_MEMORY, "no memory for a list of dead letters");
    for (size_t i = 0; r && i + 1 < r->elements; i += 2) {
        if (!q__reply_text(r->element[i]) || r->element[i]->len > Q_ID_MAX) continue;
        strcpy(d[have].id, r->element[i]->str);
        d[have++].died_ms =
            (int64_t)strtod(q__reply_text(r->element[i + 1]) ? r->element[i + 1]->str : "0", NULL);
    }
    for (size_t i = 0; s == Q_OK && i < have; i += DEAD_PAGE) {
        size_t page = have - i < DEAD_PAGE ? have - i : DEAD_PAGE;
        s = load_dead(c, queue, d + i, page);
        for (size_t k = 0; brief && k < page; k++) drop_entry(&d[i + k]);
    }
    if (s) {
        q_ctl_dead_free(d, have);
        return s;
    }
    *out = d;
    *n = have;
    return Q_OK;
}

enum q_status q_ctl_dead_show(struct q_ctl *c, const char *queue, const char *id,
                              struct q_ctl_dead **out) {
    *out = NULL;
    q__ctl_begin(c);
    q__ctl_words(c, "ZSCORE", queue, "dead", NULL, id);
    enum q_status s = q__ctl_run(c);
    if (s) return s;
    const redisReply *score = q__ctl_reply(c, 0);
    if (!q__reply_text(score) || strlen(id) > Q_ID_MAX)
        return q__error(&c->err, Q_NOT_FOUND, "queue \"%s\" has no dead letter \"%.64s\"", queue,
                        id);
    struct q_ctl_dead *d = calloc(1, sizeof *d);
    if (!d) return q__error(&c->err, Q_NO_MEMORY, "no memory for a dead letter");
    strcpy(d->id, id);
    d->died_ms = (int64_t)strtod(score->str, NULL);
    s = load_dead(c, queue, d, 1);
    if (s)
        q_ctl_dead_free(d, 1);
    else
        *out = d;
    return s;
}

void q_ctl_dead_free(struct q_ctl_dead *d, size_t n) {
    for (size_t i = 0; d && i < n; i++) {
        free(d[i].entry);
        free(d[i].envelope);
    }
    free(d);
}

enum q_status q_ctl_dead_purge(struct q_ctl *c, const char *queue, uint64_t older_ms,
                               uint64_t *n_purged) {
    uint64_t purged = 0;
    int64_t n;
    enum q_status s;
    do {
        q__ctl_begin(c);
        q__args_key(&c->args, queue, "dead", NULL);
        q__args_key(&c->args, queue, "deadb", NULL);
        if (older_ms)
            q__args_int(&c->args, q__ctl_now_ms(c) - (int64_t)older_ms);
        else
            q__args_text(&c->args, "+inf");
        q__args_int(&c->args, PURGE_PAGE);
        q__ctl_add(c, Q__SCRIPT_purge, 2);
        s = q__ctl_run(c);
        n = s == Q_OK ? q__reply_int(q__ctl_reply(c, 0), 0) : 0;
        purged += (uint64_t)n;
    } while (n == PURGE_PAGE);
    if (n_purged) *n_purged = purged;
    return s;
}

/* --- pause */

enum q_status q_ctl_pause(struct q_ctl *c, const char *queue, bool paused) {
    q__ctl_begin(c);
    q__ctl_words(c, "HSET", queue, "cfg", NULL, paused ? "paused 1" : "paused 0");
    return q__ctl_run(c);
}
