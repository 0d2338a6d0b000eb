/* admit.c: between claim and delivery. A claimed job is ours, but it may be late, early, cancelled,
 * dead already three times, or done long ago under the same id.
 *
 * What the job itself tells is decided at once. What Redis must be asked costs a round trip, so it
 * is asked as cheaply as can be: for a batch of plain jobs with ids of their producers, one EXISTS
 * over all result keys (0 is the ordinary answer); the script admit only where a job has a unique
 * key or comes after others, where cancellations are about, or where EXISTS found something.
 *
 * Thread: the loop's. */
#include "queue/lease.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { AFTER_POLL_MS = 1000 };

static void deliver(struct q__queue *q, struct q_job **jobs, size_t n) {
    struct q_worker *w = q->w;
    int64_t now = q_worker_now_ms(w);
    uint64_t now_us = uv_hrtime() / 1000;
    q->asked -= (uint32_t)n;
    if (w->draining || w->held ||
        w->want < n) { /* drained meanwhile, or adopted above what was wanted */
        size_t keep = w->draining || w->held ? 0 : w->want;
        for (size_t i = keep; i < n; i++) q__turn_push(q, jobs[i], 'h', NULL, NULL, 0, 0);
        n = keep;
    }
    if (n == 0) return;
    for (size_t i = 0; i < n; i++) {
        struct q_job_priv *p = jobs[i]->priv;
        p->hold = Q__HELD;
        p->started_ms = now;
        p->delivered_us = now_us;
        q__progress_running(jobs[i]);
    }
    q->n_held += (uint32_t)n;
    w->want -= (uint32_t)n;
    w->opt.on.jobs(w->opt.on.ctx, jobs, n);
}

/* --- what the job itself tells; true: it may go on */

static bool passes(struct q__queue *q, struct q_job *job, int64_t now) {
    struct q_job_priv *p = job->priv;
    char text[160];
    if (job->crashes >= q->w->opt.crash_max && job->ticket < 0) {
        snprintf(text, sizeof text,
                 "the worker died or hung %u times with this job; the limit is %u", job->crashes,
                 q->w->opt.crash_max);
        q__finish_end(job, "dead", Q_CODE_crashed, text, false, true, false, NULL, 0, NULL);
        return false;
    }
    /* a small expire_ms counts from when the job was queued */
    int64_t expire = job->expire_ms && job->expire_ms < 100000000000
                         ? job->queued_ms + job->expire_ms
                         : job->expire_ms;
    if (expire && now > expire && job->ticket < 0) {
        snprintf(text, sizeof text, "had to start by %lld, it is %lld (Unix ms)", (long long)expire,
                 (long long)now);
        q__finish_end(job, "expired", Q_CODE_expired, text, false, false, false, NULL, 0, NULL);
        return false;
    }
    int64_t due =
        job->at_ms > job->queued_ms + p->delay_ms ? job->at_ms : job->queued_ms + p->delay_ms;
    if ((job->at_ms || p->delay_ms) && !p->header.delayed && due > now) {
        p->header.delayed = true;
        p->header.queued_ms = job->queued_ms;
        q__finish_delay(job, "delayed", due);
        return false;
    }
    return true;
}

/* --- what Redis tells */

static void apply(struct q__queue *q, struct q__admission *ad, const char *said, size_t n_said) {
    struct q_job *go[Q_BATCH_MAX];
    size_t n = 0;
    int64_t now = q_worker_now_ms(q->w);
    char text[400];
    for (size_t i = 0; i < ad->n; i++) {
        struct q_job *job = ad->job[i];
        char word = i < n_said ? said[i] : '0';
        if (word == '0') {
            go[n++] = job;
            continue;
        }
        q->asked--;
        if (word == '1') { /* final already: whoever waits gets the stored result again */
            q__turn_push(q, job, job->wait || job->reply_to[0] ? 'r' : 'l', NULL, NULL, 0, 0);
            if (!(job->wait || job->reply_to[0])) q->w->stats.duplicates++;
        } else if (word == '2') {
            job->priv->cx_seen = true;
            q__finish_end(job, "cancelled", Q_CODE_cancelled, "cancelled before it started", false,
                          false, false, NULL, 0, NULL);
        } else if (word == '3') {
            snprintf(text, sizeof text, "unique key \"%.256s\" is held by another job",
                     job->unique);
            q__finish_end(job, "failed", Q_CODE_not_unique, text, false, false, false, NULL, 0,
                          NULL);
        } else if (word == '4') {
            job->priv->header.queued_ms = job->queued_ms;
            q__finish_delay(job, "waiting",
                            now + AFTER_POLL_MS / 2 + (int64_t)q__random_below(AFTER_POLL_MS));
        } else
            q__finish_end(job, "failed", Q_CODE_after_failed,
                          "a job named in \"after\" did not end as done", false, false, false, NULL,
                          0, NULL);
    }
    if (n) deliver(q, go, n);
}

static void ask(struct q__admission *ad);

/* The connection went with the question: ask again on the next one. */
static void stall(struct q__admission *ad) {
    struct q_worker *w = ad->queue->w;
    ad->next = w->stalled;
    w->stalled = ad;
}

/* Fenced while asking: nothing of it is ours any more. */
static bool forget_fenced(struct q__admission *ad) {
    size_t n = 0;
    for (size_t i = 0; i < ad->n; i++) {
        if (!ad->job[i]->fenced) {
            ad->job[n++] = ad->job[i];
            continue;
        }
        ad->queue->asked--;
        q__job_unlink(ad->job[i]);
        q__job_free(ad->job[i]);
    }
    ad->n = n;
    if (n == 0) {
        q__worker_check_drained(ad->queue->w);
        free(ad);
    }
    return n == 0;
}

static bool any_fenced(const struct q__admission *ad) {
    for (size_t i = 0; i < ad->n; i++)
        if (ad->job[i]->fenced) return true;
    return false;
}

static void on_answer(void *ctx, redisReply *r, const struct q_error *err) {
    struct q__admission *ad = ctx;
    struct q_worker *w = ad->queue->w;
    if (!r || w->closing) {
        stall(ad); /* freed at close, with the jobs */
        return;
    }
    if (any_fenced(ad)) {
        if (!forget_fenced(ad)) ask(ad);
        return;
    }
    if (err->code != Q_OK) {
        q__worker_log(w, 3, "admission failed queue=%s error=\"%s\"", ad->queue->name, err->text);
        ad->queue->asked -= (uint32_t)ad->n;
        for (size_t i = 0; i < ad->n; i++)
            q__turn_push(ad->queue, ad->job[i], 'h', NULL, NULL, 0, 0);
        ad->queue->not_before_ms = q__worker_ms(w) + 200;
        free(ad);
        return;
    }
    if (!ad->all && q__reply_int(r, 0) > 0) {
        ad->all = true;
        ask(ad);
        return;
    }
    apply(ad->queue, ad, ad->all && q__reply_text(r) ? r->str : "",
          ad->all && q__reply_text(r) ? r->len : 0);
    q__worker_check_drained(w);
    free(ad);
}

static bool send_exists(struct q__admission *ad, struct q__args *a) {
    q__args_text(a, "EXISTS");
    for (size_t i = 0; i < ad->n; i++)
        if (ad->job[i]->priv->has_id) q__args_key(a, ad->queue->name, "r:", ad->job[i]->id);
    return q__conn_args(ad->queue->w->cmd, a, on_answer, ad);
}

static bool send_admit(struct q__admission *ad, struct q__args *a) {
    const char *q = ad->queue->name;
    q__args_key(a, q, "cx", NULL);
    for (size_t i = 0; i < ad->n; i++) {
        const struct q_job *job = ad->job[i];
        q__args_key(a, q, "r:", job->id);
        if (job->unique[0]) q__args_key(a, q, "u:", job->unique);
        for (uint32_t k = 0; k < job->n_after; k++) q__args_key(a, q, "r:", job->after[k]);
    }
    size_t n_keys = a->n;
    for (size_t i = 0; i < ad->n; i++) {
        const struct q_job *job = ad->job[i];
        q__args_text(a, job->id);
        q__args_text(a, job->unique[0] ? "1" : "0");
        q__args_int(a, job->unique_ttl_ms          ? job->unique_ttl_ms
                       : job->timeout_ms > 3600000 ? job->timeout_ms
                                                   : 3600000);
        q__args_int(a, job->n_after);
    }
    return q__conn_script(ad->queue->w->cmd, Q__SCRIPT_admit, n_keys, a, on_answer, ad);
}

static void ask(struct q__admission *ad) {
    struct q__args *a = &ad->queue->w->args;
    q__args_reset(a);
    if (!(ad->all ? send_admit(ad, a) : send_exists(ad, a))) stall(ad);
}

void q__admit(struct q__queue *q, struct q_job **jobs, size_t n, bool cancels) {
    struct q_job *go[Q_BATCH_MAX];
    size_t left = 0;
    int64_t now = q_worker_now_ms(q->w);
    bool ids = false, all = cancels;
    for (size_t i = 0; i < n; i++) {
        if (!passes(q, jobs[i], now)) continue;
        ids |= jobs[i]->priv->has_id;
        all |= jobs[i]->unique[0] || jobs[i]->n_after;
        go[left++] = jobs[i];
    }
    if (left == 0) return;
    q->asked += (uint32_t)left;
    struct q__admission *ad = ids || all ? calloc(1, sizeof *ad) : NULL;
    if (!ad) { /* nothing to ask */
        deliver(q, go, left);
        return;
    }
    ad->queue = q;
    ad->n = left;
    ad->all = all;
    memcpy(ad->job, go, left * sizeof *go);
    ask(ad);
}

void q__admit_stalled(struct q_worker *w) {
    struct q__admission *ad = w->stalled;
    w->stalled = NULL;
    while (ad) {
        struct q__admission *next = ad->next;
        if (!any_fenced(ad) || !forget_fenced(ad)) ask(ad);
        ad = next;
    }
}

void q__admit_drop(struct q_worker *w) {
    while (w->stalled) {
        struct q__admission *ad = w->stalled;
        w->stalled = ad->next;
        free(ad);
    }
}

/* --- cancellation of what is held */

struct look {
    struct q__queue *queue;
    size_t n;
    uint64_t token[64];
};

void q__cancel_told(struct q__queue *q, uint64_t token) {
    struct q_worker *w = q->w;
    for (struct q_job_priv *p = q->jobs; p; p = p->next) {
        if (p->job.token != token || p->hold != Q__HELD || p->job.cancel_wanted) continue;
        p->job.cancel_wanted = true;
        if (w->opt.on.cancel) w->opt.on.cancel(w->opt.on.ctx, &p->job);
        return; /* the callback may have finished it */
    }
}

static void on_looked(void *ctx, redisReply *r, const struct q_error *err) {
    struct look *look = ctx;
    struct q__queue *q = look->queue;
    struct q_worker *w = q->w;
    for (size_t i = 0; r && err->code == Q_OK && !w->closing && i < look->n; i++) {
        if (!q__reply_text(q__reply_at(r, i))) continue;
        q__cancel_told(q, look->token[i]);
    }
    free(look);
}

/* Somebody asked for cancellations in this queue: is one of ours among them? Asked at most twice a
 * second, so that a stale entry of T:cx costs nothing. */
void q__cancel_look(struct q__queue *q, int64_t n_cancels) {
    uint64_t now = q__worker_ms(q->w);
    if (n_cancels <= 0 || now < q->cancel_look_ms || !q->w->connected) return;
    q->cancel_look_ms = now + 500;
    for (struct q_job_priv *p = q->jobs; p;) {
        struct look *look = calloc(1, sizeof *look);
        struct q__args *a = &q->w->args;
        if (!look) return;
        look->queue = q;
        q__args_reset(a);
        q__args_text(a, "HMGET");
        q__args_key(a, q->name, "cx", NULL);
        for (; p && look->n < Q__COUNT(look->token); p = p->next)
            if (p->hold == Q__HELD && !p->job.cancel_wanted && !p->job.fenced) {
                look->token[look->n++] = p->job.token;
                q__args_text(a, p->job.id);
            }
        if (look->n == 0 || !q__conn_args(q->w->cmd, a, on_looked, look)) free(look);
    }
}
