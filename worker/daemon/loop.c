/* The worker's loop: one thread that talks to Redis (through queue.h) and to the lanes, and
 * computes nothing.
 *
 * Callbacks of the queue, of uv and of other threads change state and return; what follows from it
 * is done in turn(), once an iteration of the loop, with a bound on the work, so that no burst of
 * jobs makes another callback wait for more than a millisecond. Where more is left than the bound,
 * an idle handle brings the next turn at once.
 *
 * Other threads: the lanes (lanes.c) and the store (store.c) only send the wake-up; the heartbeat
 * is the queue library's own. */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "worker/daemon/cpus.h"
#include "worker/daemon/files.h"
#include "worker/daemon/internal.h"
#include "worker/daemon/log.h"
#include "worker/daemon/notify.h"

#define TICK_MS 200
#define CARD_MS 2000
#define TIMERS_A_TURN 256

/* --- callbacks of the queue ------------------------------------------------------------------- */

static void on_jobs(void *ctx, struct q_job **jobs, size_t n) {
    for (size_t i = 0; i < n; i++) w__task_arrive(ctx, jobs[i]);
}

static void on_cancel(void *ctx, struct q_job *job) {
    (void)ctx;
    if (job->user) w__task_stop(job->user, W_STOP_CANCELLED);
}

static void on_fenced(void *ctx, const char *queue, const char *why) {
    char quoted[300];
    w_log(W_WARN, "fenced", "queue=%s why=%s", queue, w_log_quote(why, quoted, sizeof quoted));
    w__tasks_stop_all(ctx, W_STOP_FENCED, true, queue, NULL);
}

static void on_hold(void *ctx, bool stop) {
    struct w_daemon *d = ctx;
    d->held = stop;
    w_log(W_WARN, stop ? "held" : "held_no_more", "%s",
          stop ? "why=\"no heartbeat reached Redis\"" : "");
}

static void on_connected(void *ctx, const char *where) {
    struct w_daemon *d = ctx;
    char url[600];
    d->connected = true;
    w_log(W_NOTICE, "redis_connected", "redis=%s", w_log_url(where, url, sizeof url));
    if (d->ready_logged) w_notify("STATUS=serving");
}

static void on_lost(void *ctx, const struct q_error *why, uint32_t retry_in_ms) {
    struct w_daemon *d = ctx;
    char quoted[700];
    if (d->life >= W_CLOSING) return;
    w_log(W_WARN, "redis_lost", "error=%s code=%s retry_ms=%u",
          w_log_quote(why->text, quoted, sizeof quoted), q_status_name(why->code), retry_in_ms);
    w_notify("STATUS=no Redis: %.300s", why->text);
}

static void on_log(void *ctx, int level, const char *text) {
    char event[64];
    size_t n = strcspn(text, " ");
    (void)ctx;
    snprintf(event, sizeof event, "%.*s", (int)(n < sizeof event ? n : sizeof event - 1), text);
    w_log(level < W_ERROR   ? W_ERROR
          : level > W_DEBUG ? W_DEBUG
                            : (enum w_log_level)level,
          event, "%s", text[n] ? text + n + 1 : "");
}

static void on_drained(void *ctx) {
    struct w_daemon *d = ctx;
    d->queue_drained = true;
    w__again(d);
}

/* --- callbacks of other threads --------------------------------------------------------------- */

static void models_changed(void *ctx) {
    struct w_daemon *d = ctx;
    atomic_store(&d->models_changed, true);
    uv_async_send(&d->wake);
}

static void model_event(void *ctx, const char *name, int64_t version, const struct w_model *model,
                        const struct w_error *err) {
    char quoted[600];
    (void)ctx;
    if (model)
        w_log(W_NOTICE, "model_loaded", "model=%s version=%jd ms=%.0f bytes=%zu golden=%d", name,
              (intmax_t)version, model->load_ms, model->bytes,
              w_pipeline_n_golden(model->pipeline));
    else if (err)
        w_log(W_ERROR, "model_refused", "model=%s version=%jd code=%s error=%s", name,
              (intmax_t)version, err->code, w_log_quote(err->text, quoted, sizeof quoted));
    else
        w_log(W_NOTICE, "model_dropped", "model=%s version=%jd", name, (intmax_t)version);
}

static void on_wake(uv_async_t *handle) {
    (void)handle; /* turn() comes after it */
}

void w_daemon_drain(struct w_daemon *d) {
    atomic_store(&d->drain_asked, true);
    uv_async_send(&d->wake);
}

/* --- the turn --------------------------------------------------------------------------------- */

static void on_idle(uv_idle_t *handle) {
    (void)handle; /* that it is there keeps the loop from waiting */
}

void w__again(struct w_daemon *d) {
    if (d->life < W_CLOSED && !uv_is_active((uv_handle_t *)&d->idle))
        uv_idle_start(&d->idle, on_idle);
}

static void on_timer(uv_timer_t *handle) {
    (void)handle;
}

void w__timer_update(struct w_daemon *d) {
    uint64_t next = w_timers_next(&d->timers), now = w__now_ms(d);
    if (d->batch_due_ms < next) next = d->batch_due_ms;
    if (next == UINT64_MAX)
        uv_timer_stop(&d->timer);
    else
        uv_timer_start(&d->timer, on_timer, next > now ? next - now : 0, 0);
}

static bool all_preloaded(struct w_daemon *d) {
    const struct w_list *list = &d->config->preload;
    bool all = true;
    for (size_t i = 0; i < list->n; i++) {
        struct w_model *m;
        struct w_error err;
        if (w_store_get(d->store, list->items[i], NULL, &m, &err) == W_STORE_LOADING) all = false;
        w_model_release(m);
    }
    return all;
}

static void start_serving(struct w_daemon *d) {
    if (d->life != W_STARTING || !all_preloaded(d)) return;
    d->life = W_RUNNING;
    w_log(W_INFO, "worker_started", "version=%s pid=%d isa=%s lanes=%d ms=%.1f", QUERN_VERSION,
          (int)getpid(), op_isa(), d->lanes.n, (double)(uv_hrtime() - d->born_ns) / 1e6);
    w_notify("READY=1\nSTATUS=connecting to Redis");
}

/* The line that scripts wait for: models are loaded and jobs can come. */
static void say_ready(struct w_daemon *d) {
    if (d->ready_logged || d->life != W_RUNNING || !d->connected) return;
    d->ready_logged = true;
    w_log(W_NOTICE, "worker_ready", "lanes=%d ms=%.1f", d->lanes.n,
          (double)(uv_hrtime() - d->born_ns) / 1e6);
    w_notify("STATUS=serving");
}

static void closed_queue(void *ctx) {
    struct w_daemon *d = ctx;
    d->queue = NULL;
    w__again(d);
}

static void closed_handle(uv_handle_t *handle) {
    ((struct w_daemon *)handle->data)->n_open--;
}

static void close_handles(struct w_daemon *d) {
    d->life = W_CLOSED;
    uv_close((uv_handle_t *)&d->wake, closed_handle);
    uv_close((uv_handle_t *)&d->check, closed_handle);
    uv_close((uv_handle_t *)&d->idle, closed_handle);
    uv_close((uv_handle_t *)&d->timer, closed_handle);
    uv_close((uv_handle_t *)&d->tick, closed_handle);
    for (size_t i = 0; d->with_signals && i < 3; i++)
        uv_close((uv_handle_t *)&d->signals[i], closed_handle);
}

/* DRAINING → CLOSING once nothing is in hand and Redis knows everything → CLOSED. */
static void end_if_drained(struct w_daemon *d) {
    struct q_worker_stats stats;
    if (d->life == W_DRAINING && (d->queue_drained || d->n_tasks == 0)) {
        q_worker_stats(d->queue, &stats);
        bool nothing_there = stats.owned == 0 && stats.pending == 0 && !stats.connected;
        if (!d->queue_drained && !nothing_there) return;
        d->life = W_CLOSING;
        w_log(W_NOTICE, "worker_stopped", "done=%ju failed=%ju handed_back=%ju",
              (uintmax_t)stats.done, (uintmax_t)stats.failed, (uintmax_t)stats.handed_back);
        w__crash_watch(NULL);
        q_worker_close(d->queue, closed_queue, d);
    } else if (d->life == W_CLOSING && !d->queue) {
        close_handles(d);
    }
}

static void turn(uv_check_t *handle) {
    struct w_daemon *d = handle->data;
    bool more = false;
    if (d->life == W_CLOSED) return;
    if (uv_is_active((uv_handle_t *)&d->idle)) uv_idle_stop(&d->idle);
    if (d->life < W_CLOSING) {
        if (atomic_exchange(&d->drain_asked, false)) w__drain_begin(d);
        w__lanes_done(d);
        if (atomic_exchange(&d->models_changed, false)) {
            w__tasks_ask_models(d);
            w_lanes_trim(&d->lanes);
        }
        start_serving(d);
        say_ready(d);
        more = w_timers_run(&d->timers, w__now_ms(d), TIMERS_A_TURN) == TIMERS_A_TURN;
        more |= w__tasks_start(d, W_TURN_TASKS_MAX) == W_TURN_TASKS_MAX;
        w__dispatch(d);
        w__want(d);
        w__drain_tick(d);
        w__timer_update(d);
    }
    end_if_drained(d);
    if (more) w__again(d);
}

/* --- the tick --------------------------------------------------------------------------------- */

static uint64_t resident_bytes(void) {
    unsigned long long pages = 0;
    FILE *f = fopen("/proc/self/statm", "re");
    if (f && fscanf(f, "%*u %llu", &pages) != 1) pages = 0;
    if (f) fclose(f);
    return pages * (uint64_t)sysconf(_SC_PAGESIZE);
}

static void write_card(struct w_daemon *d) {
    char models[8192], card[12000];
    size_t busy = 0;
    if (w_store_card(d->store, models, sizeof models) == 0) strcpy(models, "[]");
    for (int i = 0; i < d->lanes.n; i++) busy += d->lanes.lanes[i].busy;
    int n =
        snprintf(card, sizeof card,
                 "{\"rss_bytes\":%ju,\"isa\":\"%s\",\"lanes_busy\":%zu,\"waiting\":%zu,\"ms_per_"
                 "job\":%.3f,\"models\":%s}",
                 (uintmax_t)resident_bytes(), op_isa(), busy, d->n_waiting, d->ms_per_job, models);
    if (n > 0 && (size_t)n < sizeof card) q_worker_card(d->queue, card);
}

static void on_tick(uv_timer_t *handle) {
    struct w_daemon *d = handle->data;
    uint64_t now = w__now_ms(d), watchdog_ms = d->with_signals ? w_notify_watchdog_ms() : 0;
    w__watchdog_tick(d);
    if (watchdog_ms && now - d->notified_ms >= watchdog_ms && w__lanes_healthy(d)) {
        d->notified_ms = now;
        w_notify("WATCHDOG=1");
    }
    if (d->life == W_RUNNING && now - d->card_ms >= CARD_MS) {
        d->card_ms = now;
        write_card(d);
    }
}

/* --- life ------------------------------------------------------------------------------------- */

static void open_handle(struct w_daemon *d, void *handle) {
    ((uv_handle_t *)handle)->data = d;
    d->n_open++;
}

static bool open_loop(struct w_daemon *d, struct w_error *err) {
    static const int numbers[] = {SIGTERM, SIGINT, SIGHUP};
    int rc = uv_loop_init(&d->loop);
    if (rc)
        return w_fail(err, W_NO_MEMORY, "the event loop cannot be started: %s", uv_strerror(rc));
    if ((rc = uv_async_init(&d->loop, &d->wake, on_wake)) != 0) {
        uv_loop_close(&d->loop);
        return w_fail(err, W_NO_MEMORY, "the event loop cannot be started: %s", uv_strerror(rc));
    }
    open_handle(d, &d->wake);
    uv_check_init(&d->loop, &d->check), open_handle(d, &d->check);
    uv_idle_init(&d->loop, &d->idle), open_handle(d, &d->idle);
    uv_timer_init(&d->loop, &d->timer), open_handle(d, &d->timer);
    uv_timer_init(&d->loop, &d->tick), open_handle(d, &d->tick);
    uv_timer_start(&d->tick, on_tick, TICK_MS, TICK_MS);
    for (size_t i = 0; d->with_signals && i < 3; i++) {
        uv_signal_init(&d->loop, &d->signals[i]), open_handle(d, &d->signals[i]);
        uv_signal_start(&d->signals[i], w__on_signal, numbers[i]);
    }
    return true;
}

static bool open_queue(struct w_daemon *d, const struct q_conn_options *conn, struct w_error *err) {
    struct q_worker_options o;
    struct q_queue_option queues[Q_QUEUES_MAX];
    char names[Q_QUEUES_MAX][Q_QUEUE_NAME_MAX + 1];
    struct q_error qe = {0};
    const struct w_config *c = d->config;
    q_worker_options_init(&o);
    if (c->queues.n > Q_QUEUES_MAX)
        return w_fail(err, "bad_job", "%zu queues are named, at most %d are served", c->queues.n,
                      Q_QUEUES_MAX);
    for (size_t i = 0; i < c->queues.n; i++) {
        const char *text = c->queues.items[i], *colon = strrchr(text, ':');
        char *end = NULL;
        unsigned long weight = colon ? strtoul(colon + 1, &end, 10) : 1;
        size_t n = colon ? (size_t)(colon - text) : strlen(text);
        if (n > Q_QUEUE_NAME_MAX ||
            (colon && (!*(colon + 1) || *end || weight < 1 || weight > 1000000)))
            return w_fail(err, "bad_job",
                          "queues holds \"%.100s\", NAME or NAME:WEIGHT with a weight from 1 to "
                          "1000000 is expected",
                          text);
        snprintf(names[i], sizeof names[i], "%.*s", (int)n, text);
        queues[i] = (struct q_queue_option){names[i], (uint32_t)weight};
    }
    o.conn = *conn;
    o.queues = queues;
    o.n_queues = c->queues.n;
    o.on = (struct q_worker_callbacks){
        d, on_jobs, on_cancel, on_fenced, on_hold, on_connected, on_lost, on_log, on_drained};
    o.name = *c->name ? c->name : NULL;
    o.lanes = (uint32_t)d->lanes.n;
    o.beat_ms = (uint32_t)c->beat_ms;
    o.lease_ms = (uint32_t)c->lease_ms;
    o.hold_ms = o.lease_ms / 5 * 3;
    o.entry_bytes_max = (uint32_t)c->job_bytes_max;
    o.ttl_ms = (uint32_t)(c->result_ttl_ms > UINT32_MAX ? UINT32_MAX : c->result_ttl_ms);
    d->queue = q_worker_create(&d->loop, &o, &qe);
    if (d->with_signals) w__crash_watch(d->queue);
    return d->queue || w_fail(err, "bad_job", "%s", qe.text);
}

static bool open_parts(struct w_daemon *d, const struct w_daemon_options *o, struct w_error *err) {
    const struct w_config *c = o->config;
    struct w_store_options so = {.folder = c->models,
                                 .poll_ms = (uint32_t)c->models_poll_ms,
                                 .bytes_max = (uint64_t)c->models_bytes_max,
                                 .model = {.run_bytes_max = (uint64_t)c->run_bytes_max,
                                           .cache = *c->cache ? c->cache : NULL},
                                 .changed = models_changed,
                                 .event = model_event,
                                 .ctx = d};
    d->files = w_files_create(c->files.items, c->files.n, err);
    if (!d->files) return false;
    d->store = w_store_create(&so, err);
    if (!d->store) return false;
    for (size_t i = 0; i < o->n_aliases; i++)
        if (!w_store_alias(d->store, o->aliases[i].name, o->aliases[i].path, err)) return false;
    int n = c->lanes > 0 ? (int)c->lanes : w_cpus();
    if (!w_lanes_start(&d->lanes, n, (int)c->lane_threads, d->files, &d->wake))
        return w_fail(err, W_NO_MEMORY, "%d lanes cannot be started", n);
    atomic_store(&d->lanes.rows_max, d->tune.batch_rows_max);
    return open_queue(d, &o->conn, err);
}

struct w_daemon *w_daemon_create(const struct w_daemon_options *o, struct w_error *err) {
    struct w_daemon *d = calloc(1, sizeof *d);
    if (!d) return w_fail(err, W_NO_MEMORY, "no memory for the worker"), NULL;
    d->born_ns = uv_hrtime();
    d->config = o->config;
    d->with_signals = o->signals;
    d->arrived_tail = &d->arrived;
    d->batch_due_ms = UINT64_MAX;
    d->lane_share = 1;
    w__tunables_from(&d->tune, o->config);
    w__watchdog_init();
    if (!open_loop(d, err)) {
        free(d);
        return NULL;
    }
    if (!open_parts(d, o, err)) {
        w_daemon_destroy(d);
        return NULL;
    }
    uv_check_start(&d->check, turn); /* after the queue's own: libuv runs the last started first */
    w__again(d);
    return d;
}

int w_daemon_run(struct w_daemon *d) {
    uv_run(&d->loop, UV_RUN_DEFAULT);
    return d->exit_code;
}

void w_daemon_destroy(struct w_daemon *d) {
    if (!d) return;
    w_lanes_stop(&d->lanes);
    w_store_destroy(d->store);
    if (d->queue) {
        q_worker_close(d->queue, closed_queue, d);
        while (d->queue) uv_run(&d->loop, UV_RUN_ONCE);
    }
    if (d->life != W_CLOSED) close_handles(d);
    uv_run(&d->loop, UV_RUN_DEFAULT);
    uv_loop_close(&d->loop);
    for (struct w_task *t = d->tasks, *next; t; t = next) next = t->next, free(t);
    for (struct w_task *t = d->spare, *next; t; t = next) next = t->next, free(t);
    d->timers.n = 0;
    w_timers_finish(&d->timers);
    if (d->batcher.n == 0) w_batcher_finish(&d->batcher);
    w_files_destroy(d->files);
    free(d);
}
