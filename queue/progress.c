/* progress.c: what a running job shows of itself: live status (T:s:<id>) and the points of its
 * curve (T:m:<id>). Both go out in one script, fenced like a commit, at most every progress_ms; of
 * the status the newest counts, points gather until then. Thread: the loop's. */
#include "queue/lease.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    PROGRESS_BYTES_MAX = 4096,
    PROGRESS_MS = 500,
    POINTS_SENT_MAX = 64, /* in one script */
    POINTS_BYTES_MAX = 256 << 10,
    STREAM_MAX = 10000 /* points kept in Redis; XADD trims to a little more */
};

/* Points wait in one buffer: for each the number of its words, then the words, each with its NUL.
 */

static bool add_word(struct q__buf *b, const char *word) {
    q__buf_add(b, word, strlen(word) + 1);
    return !b->failed;
}

static bool add_number(struct q__buf *b, double value) {
    char text[40];
    if (fabs(value) < 9e15 && value == (double)(int64_t)value)
        text[q__digits(text, (int64_t)value)] = 0;
    else
        snprintf(text, sizeof text, "%.9g", value);
    return add_word(b, text);
}

static const char *next_word(const char *word) {
    return word + strlen(word) + 1;
}

/* Puts the words of the first points into the call; returns where the rest begins. */
static const char *points_words(struct q__args *a, const char *p, const char *end) {
    for (unsigned n = 0; p < end && n < POINTS_SENT_MAX; n++) {
        int words = atoi(p);
        for (int i = 0; i <= words; i++, p = next_word(p)) q__args_text(a, p);
    }
    return p;
}

/* Without a connection points pile up: what is over the limit goes, oldest first. */
static void drop_points(struct q__buf *b, size_t bytes) {
    const char *p = b->ptr, *end = b->ptr + b->len;
    while (p < end && (size_t)(p - b->ptr) < bytes) {
        int words = atoi(p);
        for (int i = 0; i <= words; i++) p = next_word(p);
    }
    b->len = (size_t)(end - p);
    memmove(b->ptr, p, b->len);
}

struct said {
    struct q__queue *queue;
    uint64_t token;
};

/* Who tells hears at once that the job is to be cancelled, and need not wait for a beat. */
static void on_said(void *ctx, redisReply *r, const struct q_error *err) {
    struct said *said = ctx;
    if (r && err->code == Q_OK && q__reply_int(r, 0) == 2 && !said->queue->w->closing)
        q__cancel_told(said->queue, said->token);
    free(said);
}

/* json NULL and first: the job begins. */
static void send_progress(struct q_job *job, const char *json, bool first) {
    struct q_job_priv *p = job->priv;
    struct q__queue *q = p->queue;
    struct q_worker *w = q->w;
    struct q__args *a = &w->args;
    const char *rest = p->points.ptr, *end = rest + p->points.len;
    struct said *said = malloc(sizeof *said);
    if (!said) return;
    *said = (struct said){q, job->token};
    q__args_reset(a);
    q__args_key(a, q->name, "a:", q->wid);
    q__args_key(a, q->name, "s:", job->id);
    q__args_key(a, q->name, "m:", job->id);
    q__args_key(a, q->name, "cx", NULL);
    q__args_int(a, (int64_t)job->token);
    q__args_text(a, job->id);
    q__args_int(a, job->ttl_ms ? job->ttl_ms : 1);
    q__args_int(a, STREAM_MAX);
    q__args_int(a, first ? 10 : json ? 6 : 4);
    q__args_text(a, "state");
    q__args_text(a, "running");
    q__args_text(a, "updated_ms");
    q__args_int(a, q_worker_now_ms(w));
    if (first) {
        q__args_text(a, "started_ms");
        q__args_int(a, p->started_ms);
        q__args_text(a, "worker");
        q__args_text(a, w->name);
        q__args_text(a, "attempt");
        q__args_int(a, job->attempt);
    } else if (json) {
        q__args_text(a, "progress");
        q__args_text(a, json);
    }
    if (end > rest) rest = points_words(a, rest, end);
    if (!q__conn_script(w->cmd, Q__SCRIPT_progress, 4, a, on_said, said)) {
        free(said);
        return;
    }
    if (p->points.len) drop_points(&p->points, (size_t)(rest - p->points.ptr));
    p->progress_at_ms = q__worker_ms(w);
    p->live = true;
}

static bool may_send(const struct q_job *job) {
    const struct q_job_priv *p = job->priv;
    const struct q_worker *w = p->queue->w;
    uint32_t every = job->progress_ms ? job->progress_ms : PROGRESS_MS;
    return w->connected && (!p->live || q__worker_ms(w) - p->progress_at_ms >= every);
}

static void send_waiting(struct q_job *job) {
    struct q_job_priv *p = job->priv;
    char *json = p->progress;
    p->progress = NULL;
    send_progress(job, json, false);
    free(json);
}

void q__progress_running(struct q_job *job) {
    if (job->status) send_progress(job, NULL, true);
}

void q_job_progress(struct q_worker *w, struct q_job *job, const char *json) {
    struct q_job_priv *p = job->priv;
    (void)w;
    q__assert(p->hold == Q__HELD);
    if (job->fenced || strlen(json) > PROGRESS_BYTES_MAX) return;
    free(p->progress);
    p->progress = strdup(json);
    if (p->progress && may_send(job)) send_waiting(job);
}

bool q_job_metric(struct q_worker *w, struct q_job *job, const struct q_metric *metric, size_t n) {
    struct q__buf *b = &job->priv->points;
    (void)w;
    q__assert(job->priv->hold == Q__HELD);
    if (job->fenced || n == 0 || n > Q_METRICS_MAX) return false;
    for (size_t i = 0; i < n; i++)
        if (!metric[i].name[0] || strlen(metric[i].name) > Q_METRIC_NAME_MAX) return false;
    if (!b->max) q__buf_init(b, 2 * POINTS_BYTES_MAX);
    if (b->len > POINTS_BYTES_MAX) drop_points(b, POINTS_BYTES_MAX / 2);
    size_t before = b->len;
    bool good = add_number(b, (double)(2 * n));
    for (size_t i = 0; good && i < n; i++)
        good = add_word(b, metric[i].name) && add_number(b, metric[i].value);
    if (!good) {
        b->len = before;
        b->failed = false;
        return false;
    }
    if (may_send(job)) send_waiting(job);
    return true;
}

void q__progress_tick(struct q_worker *w) {
    for (size_t i = 0; i < w->n_queues; i++)
        for (struct q_job_priv *p = w->queue[i].jobs; p; p = p->next)
            if ((p->progress || p->points.len) && p->hold == Q__HELD && !p->job.fenced &&
                may_send(&p->job))
                send_waiting(&p->job);
}

/* The job is about to end: its last points go ahead of the commit. */
void q__progress_last(struct q_job *job) {
    struct q_job_priv *p = job->priv;
    size_t before = 0;
    while (p->points.len && p->points.len != before && p->queue->w->connected) {
        before = p->points.len;
        send_waiting(job);
    }
}
