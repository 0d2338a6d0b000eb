/* beat.c: the heartbeat: a thread with its own loop and its own connection, so that neither a busy
 * loop nor a compute lane can make a healthy worker look dead.
 *
 * Every beat_ms: TIME (Redis' clock against ours), and for each queue the script beat: counts up,
 * or says that this wid is gone (fenced). What it hears (orders, pauses, cancellations, how many
 * jobs Redis thinks are ours) goes to the caller's loop through struct q__pulse and one uv_async_t,
 * which may coalesce; so news are merged, not queued. Between beats it looks after the others
 * (reap.c).
 *
 * The two threads share struct q__pulse under its mutex, a few atomics of struct q_worker, and what
 * never changes after creation (options, endpoint, queue names). */
#include "queue/lease.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { LOOK_MS = 250, UPTIME_TRUST_S = 10 };

struct q__beat {
    struct q_worker *w;
    uv_thread_t thread;
    uv_loop_t loop;
    struct q__conn *conn;
    uv_timer_t beat, look;
    uv_async_t wake;
    struct q__reaper *reaper;
    struct q__args args;
    uint64_t asked_ns; /* when TIME was sent */
    char run_id[48];   /* of the server; "" not known */
    bool closing;
    _Atomic bool ended;
};

struct beating {
    struct q__beat *b;
    unsigned queue;
    char wid[Q_WID_MAX + 1];
};

/* --- to the caller's loop */

static void tell(struct q__beat *b, int level, const char *text) {
    struct q__pulse *pulse = &b->w->pulse;
    char *copy = strdup(text);
    pthread_mutex_lock(&pulse->lock);
    if (copy && pulse->n_log < Q__COUNT(pulse->log)) {
        pulse->log[pulse->n_log] = copy;
        pulse->log_level[pulse->n_log++] = level;
        copy = NULL;
    }
    pthread_mutex_unlock(&pulse->lock);
    free(copy);
    uv_async_send(&b->w->async);
}

static void add_orders(struct q__pulse_queue *q, redisReply *r) {
    size_t n = r && r->type == REDIS_REPLY_ARRAY ? r->elements : 0;
    if (n == 0) return;
    char **orders = realloc(q->orders, (q->n_orders + n) * sizeof *orders);
    if (!orders) return;
    q->orders = orders;
    for (size_t i = 0; i < n; i++)
        if (q__reply_text(r->element[i])) {
            q->orders[q->n_orders++] = r->element[i]->str;
            r->element[i]->str = NULL;
        }
}

static void on_beat(void *ctx, redisReply *r, const struct q_error *err) {
    struct beating *beating = ctx;
    struct q__beat *b = beating->b;
    struct q_worker *w = b->w;
    if (!r || err->code != Q_OK || r->type != REDIS_REPLY_ARRAY || r->elements < 1) {
        if (r) tell(b, 4, err->code ? err->text : "a beat's answer was not understood");
        free(beating);
        return;
    }
    bool alive = q__reply_int(r->element[0], 0) == 1;
    if (alive) {
        atomic_store(&w->good_beat_ms, q__worker_ms(w));
        atomic_fetch_add(&w->beats, 1);
    }
    pthread_mutex_lock(&w->pulse.lock);
    struct q__pulse_queue *q = &w->pulse.queue[beating->queue];
    q->news = true;
    q->fenced |= !alive;
    strcpy(q->beaten, beating->wid);
    if (alive && r->elements >= 6) {
        const redisReply *cfg = r->element[4];
        q->n_owned = q__reply_int(r->element[2], 0);
        q->n_cancels = q__reply_int(r->element[3], 0);
        q->paused = q__reply_int(q__reply_at(cfg, 0), 0) == 1;
        for (size_t i = 0; i < 3; i++) {
            int64_t weight = q__reply_int(q__reply_at(cfg, i + 1), 0);
            q->weights[i] = weight > 0 && weight <= 1000 ? (uint32_t)weight : 0;
        }
        add_orders(q, r->element[5]);
    }
    pthread_mutex_unlock(&w->pulse.lock);
    uv_async_send(&w->async);
    free(beating);
}

static void on_time(void *ctx, redisReply *r, const struct q_error *err) {
    struct q__beat *b = ctx;
    struct q_worker *w = b->w;
    int64_t s = err->code == Q_OK ? q__reply_int(q__reply_at(r, 0), 0) : 0;
    if (!s) return;
    uint64_t took_ns = uv_hrtime() - b->asked_ns;
    int64_t ms = s * 1000 + q__reply_int(q__reply_at(r, 1), 0) / 1000;
    atomic_store(&w->round_trip_us, (uint32_t)(took_ns / 1000));
    if (took_ns < 500000000 || !atomic_load(&w->clock_known)) { /* a late answer tells little */
        atomic_store(&w->clock_offset_ms,
                     ms - (int64_t)q__worker_ms(w) + (int64_t)(took_ns / 2000000));
        atomic_store(&w->clock_known, true);
    }
}

/* --- beating */

static void beat_queue(struct q__beat *b, unsigned index, const char *wid, const char *clients,
                       const char *card) {
    static const char *const keys[] = {"in", "in:hi", "in:lo", "redo", "pops", "arr"};
    const char *queue = b->w->queue[index].name;
    struct q__args *a = &b->args;
    struct beating *beating = calloc(1, sizeof *beating);
    if (!beating) return;
    *beating = (struct beating){.b = b, .queue = index};
    strcpy(beating->wid, wid);
    q__args_reset(a);
    q__args_key(a, queue, "hb", NULL);
    q__args_key(a, queue, "w:", wid);
    q__args_key(a, queue, "ctl:", wid);
    q__args_key(a, queue, "ctlq", NULL);
    q__args_key(a, queue, "cfg", NULL);
    q__args_key(a, queue, "cx", NULL);
    q__args_key(a, queue, "a:", wid);
    for (size_t i = 0; i < Q__COUNT(keys); i++) q__args_key(a, queue, keys[i], NULL);
    size_t n_keys = a->n;
    q__args_text(a, wid);
    q__args_int(a, q_worker_now_ms(b->w));
    q__args_text(a, "clients");
    q__args_text(a, clients);
    q__args_text(a, "rtt_us");
    q__args_int(a, atomic_load(&b->w->round_trip_us));
    q__args_text(a, "run_id");
    q__args_text(a, b->run_id);
    if (card) {
        q__args_text(a, "card");
        q__args_text(a, card);
    }
    if (!q__conn_script(b->conn, Q__SCRIPT_beat, n_keys, a, on_beat, beating)) free(beating);
}

static void on_beat_timer(uv_timer_t *t) {
    struct q__beat *b = t->data;
    struct q_worker *w = b->w;
    struct q__pulse *pulse = &w->pulse;
    char wids[Q_QUEUES_MAX][Q_WID_MAX + 1], clients[200], *card;
    if (!q__conn_ready(b->conn)) return;
    pthread_mutex_lock(&pulse->lock);
    for (size_t i = 0; i < w->n_queues; i++) strcpy(wids[i], pulse->queue[i].wid);
    snprintf(clients, sizeof clients, "%s%s%lld", pulse->clients, pulse->clients[0] ? " " : "",
             (long long)q__conn_client_id(b->conn));
    card = pulse->card ? strdup(pulse->card) : NULL;
    pthread_mutex_unlock(&pulse->lock);
    b->asked_ns = uv_hrtime();
    q__conn_words(b->conn, "TIME", on_time, b);
    for (size_t i = 0; i < w->n_queues; i++)
        if (wids[i][0]) beat_queue(b, (unsigned)i, wids[i], clients, card);
    free(card);
}

/* --- looking after others */

static void on_recovered(void *ctx, const char *queue, const char *wid, int64_t moved,
                         const char *how) {
    struct q__beat *b = ctx;
    char text[256];
    snprintf(text, sizeof text, "recovered queue=%s wid=%s jobs=%lld why=\"%s\"", queue, wid,
             (long long)moved, how);
    pthread_mutex_lock(&b->w->pulse.lock);
    b->w->pulse.recovered += (uint64_t)moved;
    b->w->pulse.poll |= moved > 0;
    pthread_mutex_unlock(&b->w->pulse.lock);
    tell(b, 4, text);
}

/* A small fleet looks often; in a large one many look, so each may look less often. */
static void on_look_timer(uv_timer_t *t) {
    struct q__beat *b = t->data;
    struct q__pulse *pulse = &b->w->pulse;
    size_t most = 0;
    for (size_t i = 0; i < b->w->n_queues; i++) {
        char own[Q_WID_MAX + 1];
        pthread_mutex_lock(&pulse->lock);
        strcpy(own, pulse->queue[i].wid);
        pthread_mutex_unlock(&pulse->lock);
        if (own[0]) q__reaper_look(&b->reaper[i], q__worker_ms(b->w), own);
        if (b->reaper[i].n_peers > most) most = b->reaper[i].n_peers;
    }
    uint64_t factor = most / 4 < 1 ? 1 : most / 4 > 8 ? 8 : most / 4;
    uv_timer_start(t, on_look_timer,
                   LOOK_MS * factor * 8 / 10 + q__random_below(LOOK_MS * factor * 4 / 10), 0);
}

static void on_server(void *ctx, redisReply *r, const struct q_error *err) {
    struct q__beat *b = ctx;
    const char *info = r && err->code == Q_OK && q__reply_text(r) ? r->str : "";
    char up[24];
    if (!r) return;
    q__info_field(info, "uptime_in_seconds", up, sizeof up);
    q__info_field(info, "run_id", b->run_id, sizeof b->run_id);
    long s = up[0] ? strtol(up, NULL, 10) : 0;
    uint64_t wait_ms = s >= UPTIME_TRUST_S ? 0 : (uint64_t)(UPTIME_TRUST_S - s) * 1000;
    for (size_t i = 0; i < b->w->n_queues; i++) {
        b->reaper[i].trust_ms = q__worker_ms(b->w) + wait_ms;
        strcpy(b->reaper[i].run_id, b->run_id);
    }
    uv_timer_start(&b->beat, on_beat_timer, 0, b->w->opt.beat_ms);
}

/* --- the connection */

static void on_ready(void *ctx, struct q__conn *c) {
    struct q__beat *b = ctx;
    uint64_t now = q__worker_ms(b->w);
    for (size_t i = 0; i < b->w->n_queues; i++) { /* what was seen before the gap proves nothing */
        b->reaper[i].conn = c;
        b->reaper[i].n_peers = 0;
        b->reaper[i].connected_ms = now;
        b->reaper[i].trust_ms = UINT64_MAX;
        b->reaper[i].run_id[0] = 0;
    }
    uv_timer_stop(&b->beat); /* the first beat says which server it is about */
    q__conn_words(c, "INFO server", on_server, b);
}

static void on_lost(void *ctx, struct q__conn *c, const struct q_error *why, uint32_t retry_ms) {
    (void)ctx;
    (void)c;
    (void)why; /* the command connection says it to the caller */
    (void)retry_ms;
}

static void on_wake(uv_async_t *async) {
    struct q__beat *b = async->data;
    pthread_mutex_lock(&b->w->pulse.lock);
    bool stop = b->w->pulse.stop;
    pthread_mutex_unlock(&b->w->pulse.lock);
    if (!stop) {
        uv_timer_start(&b->beat, on_beat_timer, 0, b->w->opt.beat_ms);
        return;
    }
    if (b->closing) return;
    b->closing = true;
    uv_close((uv_handle_t *)&b->beat, NULL);
    uv_close((uv_handle_t *)&b->look, NULL);
    uv_close((uv_handle_t *)&b->wake, NULL);
    q__conn_close(b->conn, NULL, NULL);
}

static void run(void *arg) {
    struct q__beat *b = arg;
    uv_run(&b->loop, UV_RUN_DEFAULT);
    atomic_store(&b->ended, true);
    uv_async_send(&b->w->async);
}

/* --- from the caller's loop */

static void destroy(struct q__beat *b) {
    for (size_t i = 0; b->reaper && i < b->w->n_queues; i++) q__reaper_finish(&b->reaper[i]);
    free(b->reaper);
    q__args_finish(&b->args);
    q__assert(uv_loop_close(&b->loop) == 0);
    free(b);
}

bool q__beat_start(struct q_worker *w, struct q_error *err) {
    struct q__beat *b = calloc(1, sizeof *b);
    struct q__conn_events on = {b, on_ready, on_lost};
    if (!b || uv_loop_init(&b->loop) != 0) {
        free(b);
        return q__error(err, Q_NO_MEMORY, "no memory for the heartbeat"), false;
    }
    b->w = w;
    q__args_init(&b->args);
    b->reaper = calloc(w->n_queues, sizeof *b->reaper);
    b->conn = b->reaper ? q__conn_create(&b->loop, &w->endpoint, "beat", &on) : NULL;
    if (!b->conn) {
        destroy(b);
        return q__error(err, Q_NO_MEMORY, "no memory for the heartbeat"), false;
    }
    for (size_t i = 0; i < w->n_queues; i++) {
        struct q__reaper *r = &b->reaper[i];
        r->w = w;
        r->conn = b->conn;
        r->ctx = b;
        r->recovered = on_recovered;
        snprintf(r->queue, sizeof r->queue, "%s", w->queue[i].name);
        q__args_init(&r->args);
    }
    uv_timer_init(&b->loop, &b->beat);
    uv_timer_init(&b->loop, &b->look);
    uv_async_init(&b->loop, &b->wake, on_wake);
    b->beat.data = b->look.data = b->wake.data = b;
    uv_timer_start(&b->look, on_look_timer, LOOK_MS, 0);
    w->beat = b;
    if (uv_thread_create(&b->thread, run, b) != 0) {
        uv_close((uv_handle_t *)&b->beat, NULL);
        uv_close((uv_handle_t *)&b->look, NULL);
        uv_close((uv_handle_t *)&b->wake, NULL);
        q__conn_close(b->conn, NULL, NULL);
        uv_run(&b->loop, UV_RUN_DEFAULT);
        destroy(b);
        w->beat = NULL;
        return q__error(err, Q_NO_MEMORY, "no thread for the heartbeat"), false;
    }
    return true;
}

void q__beat_wake(struct q_worker *w) {
    uv_async_send(&w->beat->wake);
}

void q__beat_stop(struct q_worker *w) {
    pthread_mutex_lock(&w->pulse.lock);
    w->pulse.stop = true;
    pthread_mutex_unlock(&w->pulse.lock);
    uv_async_send(&w->beat->wake);
}

bool q__beat_ended(struct q_worker *w) {
    if (!w->beat || !atomic_load(&w->beat->ended)) return false;
    uv_thread_join(&w->beat->thread);
    destroy(w->beat);
    w->beat = NULL;
    return true;
}
