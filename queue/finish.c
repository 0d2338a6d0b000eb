/* finish.c: what the caller says of a job, and what becomes of it: envelope, retry, dead letter,
 * hand-back. A finished job goes into its queue's pending list; turn.c brings it to Redis. */
#include "queue/lease.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Out of the caller's hands. False: it was fenced, and is gone. */
static bool take_back(struct q_job *job) {
    struct q__queue *q = job->priv->queue;
    q__assert(q && job->priv->hold == Q__HELD);
    q->n_held--;
    if (!job->fenced) {
        q__progress_last(job);
        return true;
    }
    q->w->stats.fenced++;
    q__job_unlink(job);
    q__job_free(job);
    q__worker_check_drained(q->w);
    return false;
}

void q__finish_end(struct q_job *job, const char *state, enum q_code code, const char *message,
                   bool retryable, bool bury, bool ran, const char *result, size_t result_len,
                   const struct q_made *made) {
    struct q__queue *q = job->priv->queue;
    struct q__envelope e = {.job = job,
                            .state = state,
                            .worker = q->w->name,
                            .ended_ms = q_worker_now_ms(q->w),
                            .run_ms = -1,
                            .attempts = job->priv->header.attempt + ran,
                            .result = result,
                            .result_len = result_len,
                            .code = code,
                            .message = message,
                            .retryable = retryable};
    if (ran)
        e.run_ms = made && made->run_ms >= 0
                       ? made->run_ms
                       : (double)(uv_hrtime() / 1000 - job->priv->delivered_us) / 1000;
    if (made) {
        e.batch = made->batch;
        e.version = made->version;
        e.manifest = made->manifest;
        e.ref = made->ref;
    }
    char text[120];
    if (result_len > Q_RESULT_BYTES_MAX) { /* Redis takes no string above 512 MB */
        snprintf(text, sizeof text,
                 "the result has %zu bytes, at most %d are kept in Redis: use output_ref",
                 result_len, Q_RESULT_BYTES_MAX);
        e.state = state = "failed";
        e.code = Q_CODE_too_large;
        e.message = text;
    }
    size_t len = 0;
    char *envelope = q__envelope_make(&e, &len);
    if (!envelope) { /* no memory for the answer: somebody else may have some */
        q__worker_log(q->w, 3, "envelope failed id=%s error=\"no memory for %zu bytes\"", job->id,
                      result_len);
        q__turn_push(q, job, 'h', NULL, NULL, 0, 0);
        return;
    }
    q__turn_push(q, job, bury ? 'x' : 'c', state, envelope, len, 0);
}

void q__finish_delay(struct q_job *job, const char *state, int64_t due_ms) {
    q__turn_push(job->priv->queue, job, 'd', state, NULL, 0, due_ms);
}

void q_job_done(struct q_worker *w, struct q_job *job, char *result, size_t result_len,
                const struct q_made *made) {
    (void)w;
    if (take_back(job))
        q__finish_end(job, "done", Q_CODE_N, NULL, false, false, true, result, result_len, made);
    free(result);
}

static bool wants_again(enum q_code code, int retryable) {
    return retryable < 0 ? q_code_retryable(code) : retryable > 0;
}

bool q_job_fail_ends(const struct q_job *job, enum q_code code, int retryable) {
    return code == Q_CODE_cancelled || code == Q_CODE_expired || !wants_again(code, retryable) ||
           job->priv->header.attempt >= job->retry_max || job->cancel_wanted;
}

void q_job_fail(struct q_worker *w, struct q_job *job, enum q_code code, const char *message,
                int retryable) {
    if (!take_back(job)) return;
    message = message ? message : q_code_meaning(code);
    struct q_job_priv *p = job->priv;
    bool again = wants_again(code, retryable);
    if (code == Q_CODE_cancelled || code == Q_CODE_expired) {
        q__finish_end(job, q_code_name(code), code, message, false, false, true, NULL, 0, NULL);
    } else if (!q_job_fail_ends(job, code, retryable)) {
        p->header.attempt++;
        p->header.delayed = true;
        p->header.queued_ms = job->queued_ms;
        q__finish_delay(job, "retrying",
                        q_worker_now_ms(w) + q__backoff_retry(p->header.attempt, job->retry_base_ms,
                                                              job->retry_cap_ms));
        q__worker_log(w, 5, "retry queue=%s id=%s attempt=%u code=%s", job->queue, job->id,
                      p->header.attempt, q_code_name(code));
    } else {
        bool bury = again || code == Q_CODE_bad_json || code == Q_CODE_crashed;
        q__finish_end(job, bury ? "dead" : "failed", code, message, again, bury, true, NULL, 0,
                      NULL);
    }
}

void q_job_handback(struct q_worker *w, struct q_job *job) {
    (void)w;
    if (!take_back(job)) return;
    job->priv->header.queued_ms = job->queued_ms;
    q__turn_push(job->priv->queue, job, 'h', NULL, NULL, 0, 0);
}

void q_bulk_leave(struct q_worker *w, struct q_job *job) {
    (void)w;
    if (take_back(job)) q__turn_push(job->priv->queue, job, 'l', NULL, NULL, 0, 0);
}

/* --- costs */

void q_worker_cost(struct q_worker *w, const char *queue, const char *model, double ms_per_row) {
    struct q__queue *q = q__worker_queue(w, queue);
    char value[32];
    if (!q || !w->connected || !(ms_per_row >= 0)) return;
    struct q__args *a = &w->args;
    snprintf(value, sizeof value, "%.6g", ms_per_row);
    q__args_reset(a);
    q__args_text(a, "HSET");
    q__args_key(a, q->name, "cost", NULL);
    q__args_text(a, model);
    q__args_text(a, value);
    q__conn_args(w->cmd, a, NULL, NULL);
}

/* --- references */

struct fetch {
    struct q_worker *w;
    size_t bytes_max;
    q_fetch_fn *done;
    void *ctx;
    char *key;
    uv_timer_t later; /* for an answer that must not come inside the call */
    struct q_error err;
};

static void on_fetched(void *ctx, redisReply *r, const struct q_error *err) {
    struct fetch *f = ctx;
    struct q_error e = *err;
    char *value = NULL;
    size_t len = 0;
    if (r && e.code == Q_OK && r->type == REDIS_REPLY_NIL)
        q__error(&e, Q_NOT_FOUND, "Redis has no key \"%.200s\"", f->key);
    else if (r && e.code == Q_OK && !q__reply_text(r))
        q__error(&e, Q_PROTOCOL, "Redis key \"%.200s\" is not a string", f->key);
    else if (r && e.code == Q_OK && r->len > f->bytes_max)
        q__error(&e, Q_BAD_OPTION, "Redis key \"%.200s\" has %zu bytes, at most %zu are allowed",
                 f->key, (size_t)r->len, f->bytes_max);
    else if (r && e.code == Q_OK) {
        value = r->str;
        len = r->len;
        r->str = NULL;
    }
    f->done(f->ctx, value, len, &e);
    free(f->key);
    free(f);
}

static void on_later_closed(uv_handle_t *h) {
    struct fetch *f = h->data;
    struct q_worker *w = f->w;
    on_fetched(f, NULL, &f->err);
    q__worker_release(w);
}

void q_worker_fetch(struct q_worker *w, const char *key, size_t bytes_max, q_fetch_fn *done,
                    void *ctx) {
    struct fetch *f = calloc(1, sizeof *f);
    q__assert(f); /* the callback is promised, and there is nothing to promise it with */
    f->w = w;
    f->bytes_max = bytes_max;
    f->done = done;
    f->ctx = ctx;
    f->key = strdup(key);
    q__assert(f->key);
    const char *argv[] = {"GET", key};
    const size_t len[] = {3, strlen(key)};
    if (w->connected && !w->closing && q__conn_send(w->cmd, 2, argv, len, 0, on_fetched, f)) return;
    q__error(&f->err, Q_UNREACHABLE, "no connection to Redis for key \"%.200s\"", key);
    uv_timer_init(w->loop, &f->later);
    f->later.data = f;
    q__worker_keep(w);
    uv_close((uv_handle_t *)&f->later, on_later_closed);
}
