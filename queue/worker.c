/* worker.c: the worker's life: create, log in, enroll, lose the connection, come back, drain,
 * close.
 *
 * Connections: `cmd` carries scripts and plain commands; every inbox has one for a blocking read
 * (park.c), opened only while idle; the heartbeat has its own on its own thread (beat.c).
 *
 * Callbacks change state; what has to be said to Redis is decided once an iteration, in the prepare
 * phase, right before the loop sleeps (turn.c, park.c): so everything that one iteration finished
 * goes out as one batch.
 *
 * A worker id (wid) is a name in T:hb. Whoever is not in T:hb owns nothing: then everything in the
 * caller's hands is fenced, a new wid is taken and enrolled. A wid is never enrolled twice. */
#include "queue/lease.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void setup(struct q_worker *w);

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
}

/* --- wids and fencing */

static void pulse_wid(struct q__queue *q) {
    struct q__pulse *pulse = &q->w->pulse;
    pthread_mutex_lock(&pulse->lock);
    snprintf(pulse->queue[q->index].wid, sizeof pulse->queue[q->index].wid, "%s",
             q->enrolled ? q->wid : "");
    pthread_mutex_unlock(&pulse->lock);
}

static void next_wid(struct q__queue *q) {
    snprintf(q->wid, sizeof q->wid, "%s.%u", q->w->uuid, ++q->wid_n);
    q->enrolled = false;
    pulse_wid(q);
}

/* Everything owned under the old wid is lost to others. Held jobs stay with the caller until it
 * finishes them; the rest is freed here. */
void q__queue_fenced(struct q__queue *q, const char *why) {
    struct q_worker *w = q->w;
    char old[Q_WID_MAX + 1];
    snprintf(old, sizeof old, "%s", q->wid);
    next_wid(q);
    for (struct q_job_priv *p = q->jobs; p; p = p->next) p->job.fenced = true;
    while (q->pending) {
        struct q__item *item = q->pending;
        q->pending = item->next;
        q->n_pending--;
        w->stats.fenced++;
        free(item->envelope);
        q__job_unlink(item->job);
        q__job_free(item->job);
    }
    q->pending_end = &q->pending;
    for (int k = 0; k < 3;
         k++) /* they land for the old wid; what lands all the same is found through T:gone */
        if (q->park[k].parked) q__conn_drop(q->park[k].conn, Q_FENCED, "the lease was lost");
    q__worker_log(w, 4, "fenced queue=%s wid=%s why=\"%s\"", q->name, old, why);
    if (w->opt.on.fenced) w->opt.on.fenced(w->opt.on.ctx, q->name, why);
    if (q__conn_ready(w->cmd)) setup(w); /* enrolls the new wid */
    q__worker_check_drained(w);
}

/* --- logging in: INFO, TIME, then enroll every queue */

static void settled(struct q_worker *w) {
    if (--w->setup_left || !q__conn_ready(w->cmd)) return;
    for (size_t i = 0; i < w->n_queues; i++)
        if (!w->queue[i].enrolled) return;
    bool first = !w->connected;
    w->connected = true;
    char clients[160] = "";
    snprintf(clients, sizeof clients, "%lld", (long long)q__conn_client_id(w->cmd));
    pthread_mutex_lock(&w->pulse.lock);
    strcpy(w->pulse.clients, clients);
    pthread_mutex_unlock(&w->pulse.lock);
    for (size_t i = 0; i < w->n_queues; i++) {
        struct q__queue *q = &w->queue[i];
        q->maybe_more = q->land_dirty = true;
        pulse_wid(q);
        if (first && q->n_jobs)
            q__turn_reconcile(q); /* replies may have been lost */
        else if (first)
            q->mismatches = 0;
    }
    q__beat_wake(w);
    q__admit_stalled(w);
    if (first && w->opt.on.connected) w->opt.on.connected(w->opt.on.ctx, w->endpoint.where);
}

static void on_enrolled(void *ctx, redisReply *r, const struct q_error *err) {
    struct q__queue *q = ctx;
    struct q_worker *w = q->w;
    bool fresh = !q->enrolled;
    q->enrolling = false;
    if (!r || err->code != Q_OK) {
        if (r && !w->closing) q__conn_drop(w->cmd, err->code, err->text);
        return;
    }
    if (q__reply_int(r, 0) == 0 && !fresh) {
        q__queue_fenced(q, "another worker took over while this one was away");
        return;
    }
    q->enrolled = true;
    settled(w);
}

static void enroll(struct q__queue *q) {
    struct q_worker *w = q->w;
    struct q__args *a = &w->args;
    const char *const card[][2] = {
        {"name", w->name}, {"host", w->host}, {"version", QUERN_VERSION}};
    q__args_reset(a);
    q__args_key(a, q->name, "hb", NULL);
    q__args_key(a, q->name, "w:", q->wid);
    q__args_key(a, q->name, "cfg", NULL);
    q__args_key(a, q->name, "fence", NULL);
    q__args_text(a, q->wid);
    q__args_text(a, q->enrolled ? "0" : "1");
    q__args_text(a, w->replid);
    for (size_t i = 0; i < Q__COUNT(card); i++) {
        q__args_text(a, card[i][0]);
        q__args_text(a, card[i][1]);
    }
    q__args_text(a, "pid");
    q__args_int(a, (int64_t)getpid());
    q__args_text(a, "lanes");
    q__args_int(a, w->opt.lanes);
    q__args_text(a, "started_ms");
    q__args_int(a, w->started_ms);
    q->enrolling = q__conn_script(w->cmd, Q__SCRIPT_enroll, 4, a, on_enrolled, q);
    const char *argv[] = {"SADD", "quern:queues", q->name};
    const size_t len[] = {4, 12, strlen(q->name)};
    q__conn_send(w->cmd, 3, argv, len, 0, NULL, NULL);
}

static void setup(struct q_worker *w) {
    w->setup_left = 0;
    for (size_t i = 0; i < w->n_queues; i++)
        if (!w->queue[i].enrolling) enroll(&w->queue[i]);
    for (size_t i = 0; i < w->n_queues; i++) w->setup_left += w->queue[i].enrolling;
}

static bool info_field(const char *info, const char *name, char *out, size_t out_len) {
    size_t len = strlen(name);
    out[0] = 0;
    for (const char *p = info; p && *p; p = strchr(p, '\n'), p += p != NULL) {
        if (strncmp(p, name, len) != 0 || p[len] != ':') continue;
        size_t n = strcspn(p + len + 1, "\r\n");
        snprintf(out, out_len, "%.*s", (int)n, p + len + 1);
        return true;
    }
    return false;
}

static void on_info(void *ctx, redisReply *r, const struct q_error *err) {
    struct q_worker *w = ctx;
    char policy[32], role[16], max[24], aof[8], version[32];
    if (!r || w->closing) return;
    if (err->code == Q_OK && q__reply_text(r)) {
        info_field(r->str, "master_replid", w->replid, sizeof w->replid);
        info_field(r->str, "maxmemory_policy", policy, sizeof policy);
        info_field(r->str, "maxmemory", max, sizeof max);
        info_field(r->str, "role", role, sizeof role);
        info_field(r->str, "aof_enabled", aof, sizeof aof);
        info_field(r->str, "redis_version", version, sizeof version);
        if (strcmp(role, "slave") == 0) {
            q__conn_drop(w->cmd, Q_UNREACHABLE, "this Redis is a replica; jobs need the primary");
            return;
        }
        w->refused = policy[0] && strcmp(policy, "noeviction") != 0 && strcmp(max, "0") != 0 &&
                     !w->opt.allow_eviction;
        if (w->refused) {
            char text[256];
            snprintf(text, sizeof text,
                     "this Redis evicts keys when it is full (maxmemory-policy is %s, expected "
                     "noeviction): "
                     "jobs would vanish; change it, or allow eviction in the worker's options",
                     policy);
            q__conn_drop(w->cmd, Q_BAD_OPTION, text);
            return;
        }
        if (!w->stats.reconnects)
            q__worker_log(w, 6, "redis version=%s persistence=\"%s\"", version,
                          strcmp(aof, "1") == 0
                              ? "AOF: a crash loses what was not synced yet"
                              : "no AOF: a crash loses everything since the last snapshot");
    }
    setup(w);
}

static void on_time(void *ctx, redisReply *r, const struct q_error *err) {
    struct q_worker *w = ctx;
    int64_t s = q__reply_int(q__reply_at(r, 0), 0);
    if (err->code != Q_OK || s == 0) return;
    int64_t ms = s * 1000 + q__reply_int(q__reply_at(r, 1), 0) / 1000;
    atomic_store(&w->clock_offset_ms, ms - (int64_t)q__worker_ms(w));
    atomic_store(&w->clock_known, true);
    if (!w->started_ms) w->started_ms = ms;
}

static void on_ready(void *ctx, struct q__conn *c) {
    struct q_worker *w = ctx;
    w->setup_left = 0;
    for (size_t i = 0; i < w->n_queues; i++) w->queue[i].enrolling = false;
    q__conn_words(c, "TIME", on_time, w);
    q__conn_words(c, "INFO", on_info, w);
}

static void on_lost(void *ctx, struct q__conn *c, const struct q_error *why, uint32_t retry_ms) {
    struct q_worker *w = ctx;
    (void)c;
    w->connected = false;
    w->stats.reconnects++;
    for (size_t i = 0; i < w->n_queues; i++) w->queue[i].land_dirty = true;
    if (w->opt.on.lost && !w->closing) w->opt.on.lost(w->opt.on.ctx, why, retry_ms);
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

static void on_handle_closed(uv_handle_t *h);

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
    if (w->closing && q__beat_ended(w)) uv_close((uv_handle_t *)&w->async, on_handle_closed);
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
    struct q__conn_events on = {w, on_ready, on_lost};
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

/* --- the end */

void q_worker_drain(struct q_worker *w) {
    w->draining = true;
    q__worker_check_drained(w);
}

static void on_drained_tick(uv_timer_t *t) {
    struct q_worker *w = t->data;
    uv_timer_start(&w->due, on_due, Q__POLL_MS, 0);
    if (w->opt.on.drained && !w->closing) w->opt.on.drained(w->opt.on.ctx);
}

void q__worker_check_drained(struct q_worker *w) {
    if (!w->draining || w->drained_said || w->closing) return;
    for (size_t i = 0; i < w->n_queues; i++)
        if (w->queue[i].n_jobs || w->queue[i].turns || w->queue[i].asked) return;
    w->drained_said = true;
    uv_timer_start(&w->due, on_drained_tick, 0, 0); /* never inside a call of the caller's */
}

static void free_worker(struct q_worker *w) {
    void (*closed)(void *) = w->closed;
    void *ctx = w->closed_ctx;
    for (size_t i = 0; i < w->n_queues; i++) {
        struct q__queue *q = &w->queue[i];
        while (q->jobs) {
            struct q_job *job = &q->jobs->job;
            free(q->jobs->item.envelope);
            q__job_unlink(job);
            q__job_free(job);
        }
        for (size_t k = 0; k < w->pulse.queue[i].n_orders; k++) free(w->pulse.queue[i].orders[k]);
        free(w->pulse.queue[i].orders);
    }
    for (unsigned i = 0; i < w->pulse.n_log; i++) free(w->pulse.log[i]);
    free(w->pulse.card);
    q__admit_drop(w);
    q__endpoint_finish(&w->endpoint);
    q__args_finish(&w->args);
    pthread_mutex_destroy(&w->pulse.lock);
    free(w->queue);
    free(w->name);
    free(w);
    if (closed) closed(ctx);
}

void q__worker_keep(struct q_worker *w) {
    w->closing_left++;
}

void q__worker_release(struct q_worker *w) {
    if (--w->closing_left == 0 && w->closing) free_worker(w);
}

static void on_part_closed(void *ctx) {
    q__worker_release(ctx);
}

static void on_handle_closed(uv_handle_t *h) {
    on_part_closed(h->data);
}

static void close_connections(struct q_worker *w) {
    w->closing_left++;
    q__conn_close(w->cmd, on_part_closed, w);
    w->cmd = NULL;
}

/* Last words to Redis; the command connection goes when the last one is answered, or at once. */
struct farewell {
    struct q_worker *w;
    unsigned left;
};

static void on_retired(void *ctx, redisReply *r, const struct q_error *err) {
    struct farewell *f = ctx;
    (void)r;
    (void)err;
    if (--f->left) return;
    struct q_worker *w = f->w;
    free(f);
    close_connections(w);
    on_part_closed(w);
}

static bool retire(struct q__queue *q, struct farewell *f) {
    struct q__args *a = &q->w->args;
    static const char *const lists[] = {"land:", "landh:", "landl:"};
    q__args_reset(a);
    q__args_key(a, q->name, "hb", NULL);
    q__args_key(a, q->name, "a:", q->wid);
    for (int i = 0; i < 3; i++) q__args_key(a, q->name, lists[i], q->wid);
    q__args_key(a, q->name, "in", NULL);
    q__args_key(a, q->name, "in:hi", NULL);
    q__args_key(a, q->name, "in:lo", NULL);
    q__args_key(a, q->name, "w:", q->wid);
    q__args_key(a, q->name, "gone", NULL);
    q__args_text(a, q->wid);
    q__args_int(a, q_worker_now_ms(q->w));
    return q__conn_script(q->w->cmd, Q__SCRIPT_retire, 10, a, on_retired, f);
}

/* closing_left counts what still has to end: late answers (q__worker_keep), three handles, the
 * farewell, the heartbeat, and what these close in turn. */
void q_worker_close(struct q_worker *w, void (*done)(void *ctx), void *ctx) {
    q__assert(!w->closing);
    w->closing = true;
    w->closed = done;
    w->closed_ctx = ctx;
    w->closing_left += 5;
    uv_close((uv_handle_t *)&w->prepare, on_handle_closed);
    uv_close((uv_handle_t *)&w->tick, on_handle_closed);
    uv_close((uv_handle_t *)&w->due, on_handle_closed);
    for (size_t i = 0; i < w->n_queues; i++)
        for (int k = 0; k < 3; k++)
            if (w->queue[i].park[k].conn) {
                w->closing_left++;
                q__conn_close(w->queue[i].park[k].conn, on_part_closed, w);
                w->queue[i].park[k].conn = NULL;
            }
    if (w->beat)
        q__beat_stop(w);
    else
        uv_close((uv_handle_t *)&w->async, on_handle_closed); /* stands for the heartbeat */
    struct farewell *f = calloc(1, sizeof *f);
    if (!f) {
        close_connections(w);
        w->closing_left--;
        return;
    }
    f->w = w;
    f->left = 1;
    for (size_t i = 0; i < w->n_queues && w->connected; i++) f->left += retire(&w->queue[i], f);
    on_retired(f, NULL, NULL);
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
