/* Lanes that stand still. A lane's counter grows between rows and between nodes of a graph; one
 * that is busy and whose counter has not moved for lane_limit_ms is
 *   1. reported with its stack: a signal makes that thread write down its own return addresses,
 *   2. cancelled: the engine polls the flag between nodes,
 *   3. after GRACE_MS_MAX more at most given up.
 * To give up means: everything but its own jobs is handed back, what is finished goes to Redis, and
 * the process ends without a word. Redis then sees a crash of these jobs alone, and systemd starts
 * a new process. A thread that does not come back cannot be ended in any other way that leaves
 * memory in order.
 * Loop thread, but for the signal handler. */
#include <execinfo.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "worker/daemon/internal.h"
#include "worker/daemon/log.h"
#include "worker/daemon/notify.h"

#define GRACE_MS_MAX 10000
#define STACK_SIGNAL (SIGRTMIN + 3)
#define EXIT_STUCK 70

static void on_stack_signal(int number) {
    (void)number;
    struct w_lane *lane = w__lane_self;
    if (!lane) return;
    int n = backtrace(lane->frames, W_LANE_FRAMES_MAX);
    atomic_store(&lane->n_frames, n);
}

bool w__watchdog_init(void) {
    void *warm[2];
    struct sigaction sa = {.sa_handler = on_stack_signal, .sa_flags = SA_RESTART};
    backtrace(warm, 2); /* loads libgcc now: not in a signal handler */
    sigemptyset(&sa.sa_mask);
    return sigaction(STACK_SIGNAL, &sa, NULL) == 0;
}

static uint64_t grace_ms(const struct w_daemon *d) {
    return d->tune.lane_limit_ms < GRACE_MS_MAX ? (uint64_t)d->tune.lane_limit_ms : GRACE_MS_MAX;
}

static void report_stack(struct w_lane *lane) {
    int n = atomic_exchange(&lane->n_frames, 0);
    if (n <= 0) return;
    char **names = backtrace_symbols(lane->frames, n), text[1400] = "";
    size_t len = 0;
    for (int i = 1; names && i < n && len + 1 < sizeof text; i++) {
        const char *name = strrchr(names[i], '/');
        len += (size_t)snprintf(text + len, sizeof text - len, "%s%s", len ? " < " : "",
                                name ? name + 1 : names[i]);
        if (len >= sizeof text) len = sizeof text - 1;
    }
    free(names);
    w_log(W_ERROR, "lane_stack", "lane=%d stack=\"%s\"", lane->index, text);
}

bool w__only_lost_lanes(const struct w_daemon *d) {
    struct q_worker_stats stats;
    size_t n = 0;
    for (int i = 0; i < d->lanes.n; i++) {
        const struct w_lane *lane = &d->lanes.lanes[i];
        if (lane->busy && lane->alarm < 3) return false;
        n += lane->busy ? lane->n_tasks : 0;
    }
    q_worker_stats(d->queue, &stats);
    return n > 0 && d->n_tasks == n && stats.pending == 0;
}

/* The jobs of a lane for a log line. */
static void name_jobs(const struct w_lane *lane, char *dst, size_t size) {
    size_t n = 0;
    char id[160];
    *dst = 0;
    for (size_t i = 0; i < lane->n_tasks && i < 4 && n + 1 < size; i++) {
        n += (size_t)snprintf(dst + n, size - n, "%s%s", i ? "," : "",
                              w_log_quote(lane->tasks[i]->job->id, id, sizeof id));
        if (n >= size) n = size - 1;
    }
}

static void give_up(struct w_daemon *d, struct w_lane *lane) {
    char ids[400];
    name_jobs(lane, ids, sizeof ids);
    w_log(W_ERROR, "lane_lost",
          "lane=%d jobs=%s action=\"the process ends; this counts as a crash of these jobs\"",
          lane->index, ids);
    w_notify("STATUS=a lane does not come back: restarting");
    lane->alarm = 3;
    w__drain_begin(d);
    d->drain_until_ms = w__now_ms(d);
    d->exit_at_ms = w__now_ms(d) + 3000; /* at the latest: what is finished is to reach Redis */
    d->exit_code = EXIT_STUCK;
}

static void look(struct w_daemon *d, struct w_lane *lane) {
    uint64_t now = w__now_ms(d), beats = atomic_load_explicit(&lane->beats, memory_order_relaxed);
    char ids[400];
    if (!lane->busy || beats != lane->beats_seen) {
        lane->beats_seen = beats;
        lane->beats_seen_ms = now;
        report_stack(lane); /* it came back before the last look */
        if (lane->alarm && lane->alarm < 3) lane->alarm = 0;
        return;
    }
    uint64_t still_ms = now - lane->beats_seen_ms, limit = (uint64_t)d->tune.lane_limit_ms;
    if (lane->alarm == 0 && still_ms >= limit) {
        name_jobs(lane, ids, sizeof ids);
        w_log(W_ERROR, "lane_stands_still", "lane=%d ms=%ju jobs=%s model=%s", lane->index,
              (uintmax_t)still_ms, ids, lane->tasks[0]->model ? lane->tasks[0]->model->name : "");
        pthread_kill(lane->thread, STACK_SIGNAL);
        for (size_t i = 0; i < lane->n_tasks; i++) w__task_stop(lane->tasks[i], W_STOP_STALLED);
        lane->alarm = 1;
    } else if (lane->alarm == 1) {
        report_stack(lane);
        if (still_ms >= limit + grace_ms(d)) give_up(d, lane);
    }
}

void w__watchdog_tick(struct w_daemon *d) {
    for (int i = 0; i < d->lanes.n; i++) look(d, &d->lanes.lanes[i]);
}

bool w__lanes_healthy(const struct w_daemon *d) {
    for (int i = 0; i < d->lanes.n; i++)
        if (d->lanes.lanes[i].alarm) return false;
    return true;
}
