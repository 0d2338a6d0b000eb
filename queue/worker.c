/* worker.c: the worker's life: create, tick, hear the heartbeat, count room. Logging in and fencing
 * are in enroll.c, the end is in close.c.
 *
 * Connections: `cmd` carries scripts and plain commands; every inbox has one for a blocking read
 * (park.c), opened only while idle; the heartbeat has its own on its own thread (beat.c).
 *
 * Callbacks change state; what has to be said to Redis is decided once an iteration, in the prepare
 * phase, right before the loop sleeps (turn.c, park.c): so everything that one iteration finished
 * goes out as one batch. Thread: the loop's. */
#include "queue/lease.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

uint64_t q__worker_ms(const struct q_worker *w) {
    return w->opt.clock ? w->opt.clock(w->opt.clock_ctx) : uv_hrtime() / 1000000;
}

int64_t q_worker_now_ms(const struct q_worker *w) {
    if (!atomic_load(&w->clock_known)) {
        uv_timeval64_t tv;
        uv_gettimeofday(&tv);
        return tv.tv_sec * 1000 + tv.tv_usec / 1000;
    }
    return (int64_t)q__worker_ms(w) + atomic_load(&w->clock_offset_ms);
}

void q__worker_log(struct q_worker *w, int level, const char *fmt, ...) {
    char text[768];
    if (!w->opt.on.log || w->closing) return;
    va_list args;
    va_start(args, fmt);
    vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    w->opt.on.log(w->opt.on.ctx, level, text);
}

/* --- counting room */

uint32_t q__worker_room(const struct q_worker *w) {
    uint64_t asked = 0;
    for (size_t i = 0; i < w->n_queues; i++) asked += w->queue[i].asked;
    return w->want > asked ? w->want - (uint32_t)asked : 0;
}

uint32_t q__queue_room(const struct q__queue *q) {
    uint32_t room = q__worker_room(q->w), used = q->n_held + q->asked;
    uint32_t left = q->cap > used ? q->cap - used : 0;
    return room < left ? room : left;
}

void q_worker_want(struct q_worker *w, uint32_t n) {
    w->want = n;
}
uint32_t q_worker_wanted(const struct q_worker *w) {
    return w->want;
}

struct q__queue *q__worker_queue(struct q_worker *w, const char *name) {
    for (size_t i = 0; i < w->n_queues; i++)
        if (strcmp(w->queue[i].name, name) == 0) return &w->queue[i];
    return NULL;
}

enum q_status q_worker_queue_cap(struct q_worker *w, const char *queue, uint32_t n) {
    struct q__queue *q = q__worker_queue(w, queue);
    if (!q) return Q_NOT_FOUND;
    q->cap = n;
    return Q_OK;
}

const char *q_worker_wid(const struct q_worker *w, const char *queue) {
    struct q__queue *q = q__worker_queue((struct q_worker *)w, queue);
    return q ? q->wid : "";
}

void q__job_link(struct q__queue *q, struct q_job *job) {
    struct q_job_priv *p = job->priv;
    p->queue = q;
    p->prev = NULL;
    p->next = q->jobs;
    if (q->jobs) q->jobs->prev = p;
    q->jobs = p;
    q->n_jobs++;
}

void q__job_unlink(struct q_job *job) {
    struct q_job_priv *p = job->priv;
    struct q__queue *q = p->queue;
    if (p->prev)
        p->prev->next = p->next;
    else
        q->jobs = p->next;
    if (p->next) p->next->prev = p->prev;
    q->n_jobs--;
    q__slot_release(job);
}

/* --- every so often */

static void poll_now(struct q_worker *w) {
    w->polled_ms = q__worker_ms(w);
    for (size_t i = 0; i < w->n_queues; i++) w->queue[i].maybe_more = true;
}

static void on_due(uv_timer_t *t) {
    poll_now(t->data);
}

static void on_tick(uv_timer_t *t) {
    struct q_worker *w = t->data;
    uint64_t now = q__worker_ms(w), good = atomic_load(&w->good_beat_ms);
    bool held = good && now - good > w->opt.hold_ms;
    if (held != w->held) {
        w->held = held;
        q__worker_log(w, 4, held ? "hold reason=\"no good heartbeat\"" : "go");
        if (w->opt.on.hold) w->opt.on.hold(w->opt.on.ctx, held);
    }
    /* redo and delayed jobs have no blocking read: look once a second, all workers at another
     * moment */
    if (now - w->polled_ms >= Q__POLL_MS - Q__TICK_MS + q__random_below(2 * Q__TICK_MS))
        poll_now(w);
    q__progress_tick(w);
    int64_t due = -1, at = q_worker_now_ms(w);
    for (size_t i = 0; i < w->n_queues; i++)
        if (w->queue[i].due_ms > 0 && (due < 0 || w->queue[i].due_ms < due))
            due = w->queue[i].due_ms;
    if (due > 0 && due - at < Q__POLL_MS)
        uv_timer_start(&w->due, on_due, due > at ? (uint64_t)(due - at) + 1 : 1, 0);
}

static void on_prepare(uv_prepare_t *p) {
    struct q_worker *w = p->data;
    if (!w->connected || w->closing) return;
    q__turn_all(w);
    q__park_all(w);
}

/* --- news from the heartbeat */

static void hear(struct q__queue *q, struct q__pulse_queue *news) {
    if (strcmp(news->beaten, q->wid) == 0 && q->enrolled) {
        if (news->fenced)
            q__queue_fenced(q, "the lease ran out and another worker took over");
        else {
            q->paused = news->paused;
            for (int i = 0; i < 3; i++)
                q->weight_in[i] = news->weights[i] ? news->weights[i]
                                  : i == 0         ? q->w->opt.weight_hi
                                  : i == 1         ? q->w->opt.weight_in
                                                   : q->w->opt.weight_lo;
            bool same = news->n_owned == (int64_t)q->n_jobs;
            q->mismatches = same ? 0 : q->mismatches + 1;
            if (q->mismatches >= 3) q__turn_reconcile(q);
            if (news->n_cancels > 0) q__cancel_look(q, news->n_cancels);
        }
    }
    for (size_t i = 0; i < news->n_orders; i++) {
        q__order(q, news->orders[i]);
        free(news->orders[i]);
    }
    free(news->orders);
}

static void on_async(uv_async_t *async) {
    struct q_worker *w = async->data;
    struct q__pulse *pulse = &w->pulse;
    for (size_t i = 0; i < w->n_queues; i++) {
        pthread_mutex_lock(&pulse->lock);
        struct q__pulse_queue news = pulse->queue[i];
        pulse->queue[i].news = pulse->queue[i].fenced = false;
        pulse->queue[i].orders = NULL;
        pulse->queue[i].n_orders = 0;
        pthread_mutex_unlock(&pulse->lock);
        if (news.news && !w->closing)
            hear(&w->queue[i], &news);
        else {
            for (size_t k = 0; k < news.n_orders; k++) free(news.orders[k]);
            free(news.orders);
        }
    }
    char *log[Q__COUNT(pulse->log)];
    int level[Q__COUNT(pulse->log)];
    pthread_mutex_lock(&pulse->lock);
    unsigned n = pulse->n_log;
    memcpy(log, pulse->log, sizeof log);
    memcpy(level, pulse->log_level, sizeof level);
    pulse->n_log = 0;
    bool poll = pulse->poll;
    pulse->poll = false;
    w->stats.recovered = pulse->recovered;
    pthread_mutex_unlock(&pulse->lock);
    for (unsigned i = 0; i < n; i++) {
        q__worker_log(w, level[i], "%s", log[i]);
        free(log[i]);
    }
    if (poll) poll_now(w);
    if (w->closing && q__beat_ended(w)) uv_close((uv_handle_t *)&w->async, q__worker_handle_closed);
}

/* --- creation */

void q_worker_options_init(struct q_worker_options *opt) {
    *opt = (struct q_worker_options){.weight_hi = 6,
                                     .weight_in = 3,
                                     .weight_lo = 1,
                                     .beat_ms = 2000,
                                     .lease_ms = 15000,
                                     .hold_ms = 9000,
                                     .crash_max = 3,
                                     .entry_bytes_max = 64u << 20,
                                     .ttl_ms = 3600000,
                                     .lanes = 1};
}

static bool options_valid(const struct q_worker_options *opt, struct q_error *err) {
    if (!opt->on.jobs) return q__error(err, Q_BAD_OPTION, "a worker needs a jobs callback"), false;
    if (opt->n_queues == 0 || opt->n_queues > Q_QUEUES_MAX)
        return q__error(err, Q_BAD_OPTION, "a worker serves 1 to %d queues, %zu were given",
                        Q_QUEUES_MAX, opt->n_queues),
               false;
    for (size_t i = 0; i < opt->n_queues; i++) {
        const char *name = opt->queues[i].name;
        if (!q_queue_name_valid(name, strlen(name)))
            return q__error(err, Q_BAD_OPTION,
                            "queue name \"%.80s\" must be 1 to %d of A-Z a-z 0-9 _ . -", name,
                            Q_QUEUE_NAME_MAX),
                   false;
        for (size_t k = 0; k < i; k++)
            if (strcmp(name, opt->queues[k].name) == 0)
                return q__error(err, Q_BAD_OPTION, "queue \"%s\" is given twice", name), false;
    }
    if (opt->beat_ms < 10 || opt->lease_ms < 3 * opt->beat_ms || opt->hold_ms >= opt->lease_ms)
        return q__error(err, Q_BAD_OPTION,
                        "lease %u ms must be 3 beats (%u ms) or more, and side effects must stop "
                        "(%u ms) before it ends",
                        opt->lease_ms, opt->beat_ms, opt->hold_ms),
               false;
    return true;
}

static bool init_queues(struct q_worker *w, const struct q_worker_options *opt) {
    w->queue = calloc(opt->n_queues, sizeof *w->queue);
    if (!w->queue) return false;
    w->n_queues = opt->n_queues;
    for (size_t i = 0; i < w->n_queues; i++) {
        struct q__queue *q = &w->queue[i];
        q->w = w;
        q->index = (unsigned)i;
        snprintf(q->name, sizeof q->name, "%s", opt->queues[i].name);
        q->weight = opt->queues[i].weight ? opt->queues[i].weight : 1;
        q->cap = UINT32_MAX;
        q->pending_end = &q->pending;
        q->due_ms = -1;
        q->weight_in[0] = opt->weight_hi;
        q->weight_in[1] = opt->weight_in;
        q->weight_in[2] = opt->weight_lo;
        for (int k = 0; k < 3; k++) q->park[k] = (struct q__park){.queue = q, .inbox = k};
        snprintf(q->wid, sizeof q->wid, "%s.%u", w->uuid, ++q->wid_n);
    }
    return true;
}

struct q_worker *q_worker_create(uv_loop_t *loop, const struct q_worker_options *opt,
                                 struct q_error *err) {
    if (!options_valid(opt, err)) return NULL;
    struct q_worker *w = calloc(1, sizeof *w);
    if (!w) {
        q__error(err, Q_NO_MEMORY, "no memory for a worker");
        return NULL;
    }
    q__ignore_sigpipe();
    w->loop = loop;
    w->opt = *opt;
    w->last_words_fd = -1;
    if (q__endpoint_init(&w->endpoint, &opt->conn, err) != Q_OK) {
        free(w);
        return NULL;
    }
    pthread_mutex_init(&w->pulse.lock, NULL);
    q__args_init(&w->args);
    gethostname(w->host, sizeof w->host - 1);
    snprintf(w->uuid, sizeof w->uuid, "%08x", (unsigned)(q__random_unique() >> 32));
    char name[128];
    snprintf(name, sizeof name, "%s:%d", w->host, (int)getpid());
    w->name = strdup(opt->name ? opt->name : name);
    struct q__conn_events on = {w, q__enroll_ready, q__enroll_lost};
    if (!w->name || !init_queues(w, opt) ||
        !(w->cmd = q__conn_create(loop, &w->endpoint, "cmd", &on))) {
        q__error(err, Q_NO_MEMORY, "no memory for a worker");
        goto fail;
    }
    w->opt.conn = (struct q_conn_options){0};
    w->opt.queues = NULL;
    w->opt.name = w->name;
    uv_prepare_init(loop, &w->prepare);
    uv_timer_init(loop, &w->tick);
    uv_timer_init(loop, &w->due);
    uv_async_init(loop, &w->async, on_async);
    w->prepare.data = w->tick.data = w->due.data = w->async.data = w;
    uv_prepare_start(&w->prepare, on_prepare);
    uv_timer_start(&w->tick, on_tick, Q__TICK_MS, Q__TICK_MS);
    if (!q__beat_start(w, err)) {
        w->beat = NULL;
        q_worker_close(w, NULL, NULL);
        return NULL;
    }
    return w;
fail:
    q__endpoint_finish(&w->endpoint);
    q__args_finish(&w->args);
    pthread_mutex_destroy(&w->pulse.lock);
    free(w->queue);
    free(w->name);
    free(w);
    return NULL;
}

void q_worker_stats(const struct q_worker *w, struct q_worker_stats *out) {
    *out = w->stats;
    out->beats = atomic_load(&w->beats);
    out->round_trip_us = atomic_load(&w->round_trip_us);
    out->connected = w->connected;
    out->held = w->held;
    out->draining = w->draining;
    out->owned = out->pending = 0;
    for (size_t i = 0; i < w->n_queues; i++) {
        out->owned += w->queue[i].n_held;
        for (const struct q_job_priv *p = w->queue[i].jobs; p; p = p->next)
            out->pending += p->hold == Q__ENDING;
    }
}

void q_worker_card(struct q_worker *w, const char *json) {
    char *copy = json && strlen(json) <= 16384 ? strdup(json) : NULL;
    pthread_mutex_lock(&w->pulse.lock);
    free(w->pulse.card);
    w->pulse.card = copy;
    pthread_mutex_unlock(&w->pulse.lock);
}
