/* quern queues | workers | pause | resume | top: what is waiting, running, dead; who works. */
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "worker/cli/redis.h"
#include "worker/daemon/config.h"

static bool once;

/* The queue that was asked for, or NULL for all. */
static const char *chosen_queue(void) {
    return w_config()->origin[W_KEY_queue] == W_FROM_DEFAULT ? NULL : w_globals.queue;
}

static json_t *number_or_null(double v) {
    return v >= 0 ? json_real(v) : json_null();
}

static void queue_json(const struct q_ctl_queue *q) {
    w_cli_print(json_pack(
        "{s:s,s:b,s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:i,s:I,s:I,s:f,s:o,s:o}", "queue", q->name, "paused",
        q->paused, "waiting", (json_int_t)q->waiting, "waiting_hi", (json_int_t)q->waiting_hi,
        "waiting_lo", (json_int_t)q->waiting_lo, "redo", (json_int_t)q->redo, "delayed",
        (json_int_t)q->delayed, "running", (json_int_t)q->running, "dead", (json_int_t)q->dead,
        "workers", (int)q->workers, "done", (json_int_t)q->done_total, "failed",
        (json_int_t)q->failed_total, "done_per_s", q->done_per_s, "eta_s", number_or_null(q->eta_s),
        "oldest_s", number_or_null(q->oldest_s)));
}

static void queue_table(const struct q_ctl_queue *q, size_t n) {
    char eta[32], oldest[32];
    printf("%-20s %9s %8s %8s %6s %8s %9s %9s %9s\n", "QUEUE", "WAITING", "DELAYED", "RUNNING",
           "DEAD", "WORKERS", "DONE/S", "OLDEST", "ETA");
    for (size_t i = 0; i < n; i++, q++)
        printf("%-20s %9" PRIu64 " %8" PRIu64 " %8" PRIu64 " %6" PRIu64 " %8" PRIu32
               " %9.1f %9s %9s%s\n",
               q->name, q->waiting + q->waiting_hi + q->waiting_lo + q->redo, q->delayed,
               q->running, q->dead, q->workers, q->done_per_s,
               w_cli_age(q->oldest_s, oldest, sizeof oldest), w_cli_age(q->eta_s, eta, sizeof eta),
               q->paused ? "  paused" : "");
}

static int show_queues(struct q_ctl *c) {
    struct q_ctl_queue *q;
    size_t n;
    if (q_ctl_queues(c, chosen_queue(), &q, &n) != Q_OK) return w_cli_failed(q_ctl_error(c), NULL);
    if (n == 0 && !chosen_queue()) { /* no worker has been here yet: what producers pushed is in the
                                        default queue */
        free(q);
        if (q_ctl_queues(c, w_globals.queue, &q, &n) != Q_OK)
            return w_cli_failed(q_ctl_error(c), NULL);
    }
    for (size_t i = 0; w_globals.json && i < n; i++) queue_json(&q[i]);
    if (!w_globals.json) queue_table(q, n);
    free(q);
    return W_EXIT_OK;
}

static void worker_json(const struct q_ctl_worker *w) {
    json_t *o = json_pack("{s:s,s:s,s:s*,s:s*,s:s*,s:I,s:i,s:i,s:i,s:I,s:I}", "wid", w->wid,
                          "queue", w->queue, "name", w->name, "host", w->host, "version",
                          w->version, "pid", (json_int_t)w->pid, "lanes", (int)w->lanes, "owned",
                          (int)w->owned, "round_trip_us", (int)w->round_trip_us, "started_ms",
                          (json_int_t)w->started_ms, "beat_ms", (json_int_t)w->beat_ms);
    json_t *card = w->card ? json_loads(w->card, 0, NULL) : NULL;
    if (card) json_object_set_new(o, "card", card);
    w_cli_print(o);
}

static int show_workers(struct q_ctl *c) {
    struct q_ctl_worker *w;
    size_t n;
    char age[32];
    if (q_ctl_workers(c, chosen_queue(), &w, &n) != Q_OK) return w_cli_failed(q_ctl_error(c), NULL);
    if (!w_globals.json)
        printf("%-26s %-16s %-20s %-16s %8s %6s %6s %9s\n", "WORKER", "QUEUE", "NAME", "HOST",
               "PID", "LANES", "JOBS", "BEAT");
    for (size_t i = 0; i < n; i++) {
        if (w_globals.json)
            worker_json(&w[i]);
        else
            printf("%-26s %-16s %-20s %-16s %8" PRId64 " %6" PRIu32 " %6" PRIu32 " %9s\n", w[i].wid,
                   w[i].queue, w[i].name ? w[i].name : "", w[i].host ? w[i].host : "", w[i].pid,
                   w[i].lanes, w[i].owned,
                   w_cli_age(((double)time(NULL) * 1000 - (double)w[i].beat_ms) / 1000, age,
                             sizeof age));
    }
    q_ctl_workers_free(w, n);
    return W_EXIT_OK;
}

/* Runs fn on a connection. */
static int with_redis(int argc, const char *command, int (*fn)(struct q_ctl *c)) {
    int rc;
    if (argc) return w_report(W_EXIT_USAGE, "usage", NULL, "%s takes no words", command);
    struct q_ctl *c = w_cli_redis(&rc);
    if (c) rc = fn(c);
    q_ctl_close(c);
    return rc;
}

static int run_queues(int argc, char **argv) {
    (void)argv;
    return with_redis(argc, "queues", show_queues);
}
static int run_workers(int argc, char **argv) {
    (void)argv;
    return with_redis(argc, "workers", show_workers);
}

static int set_paused(struct q_ctl *c, bool paused) {
    if (q_ctl_pause(c, w_globals.queue, paused) != Q_OK)
        return w_cli_failed(q_ctl_error(c), w_globals.queue);
    if (w_globals.json)
        w_cli_print(json_pack("{s:s,s:b}", "queue", w_globals.queue, "paused", paused));
    else
        printf("%s is %s\n", w_globals.queue,
               paused ? "paused: running jobs finish, nothing new is taken" : "served again");
    return W_EXIT_OK;
}
static int do_pause(struct q_ctl *c) {
    return set_paused(c, true);
}
static int do_resume(struct q_ctl *c) {
    return set_paused(c, false);
}
static int run_pause(int argc, char **argv) {
    (void)argv;
    return with_redis(argc, "pause", do_pause);
}
static int run_resume(int argc, char **argv) {
    (void)argv;
    return with_redis(argc, "resume", do_resume);
}

/* --- top: a frame a second on the alternate screen, which is left on any exit ----------------- */

static volatile sig_atomic_t stop;

static void on_stop(int signal_number) {
    (void)signal_number;
    stop = 1;
}

static int do_top(struct q_ctl *c) {
    bool screen = !once && isatty(STDOUT_FILENO) && !w_globals.json;
    int rc = W_EXIT_OK;
    struct sigaction act = {.sa_handler = on_stop};
    sigaction(SIGINT, &act, NULL);
    sigaction(SIGTERM, &act, NULL);
    if (screen) fputs("\033[?1049h\033[?25l", stdout);
    do {
        if (screen) fputs("\033[H\033[2J", stdout);
        rc = show_queues(c);
        if (rc == W_EXIT_OK && !w_globals.json) putchar('\n');
        if (rc == W_EXIT_OK) rc = show_workers(c);
        fflush(stdout);
        if (once || rc) break;
        struct timespec second = {.tv_sec = 1};
        nanosleep(&second, NULL); /* a signal ends it early */
    } while (!stop);
    if (screen) fputs("\033[?25h\033[?1049l", stdout);
    return rc;
}
static int run_top(int argc, char **argv) {
    (void)argv;
    return with_redis(argc, "top", do_top);
}

static struct w_option top_options[] = {
    {"once", W_OPT_FLAG, &once, NULL, "print one frame and end", 0, 0}, {0}};
static const struct w_command queues_command = {
    .name = "queues",
    .args = "[--queue NAME]",
    .summary = "List queues: waiting, delayed, running, dead, rate and ETA",
    .run = run_queues};
static const struct w_command workers_command = {
    .name = "workers",
    .args = "[--queue NAME]",
    .summary = "List workers: host, lanes, jobs in hand, last heartbeat",
    .run = run_workers};
static const struct w_command top_command = {.name = "top",
                                             .args = "[--once]",
                                             .summary =
                                                 "Watch queues and workers, a frame a second",
                                             .options = top_options,
                                             .run = run_top};
static const struct w_command pause_command = {
    .name = "pause",
    .args = "--queue NAME",
    .summary = "Pause a queue: running jobs finish, nothing new is taken",
    .run = run_pause};
static const struct w_command resume_command = {.name = "resume",
                                                .args = "--queue NAME",
                                                .summary = "Serve a paused queue again",
                                                .run = run_resume};
W_COMMAND(queues_command);
W_COMMAND(workers_command);
W_COMMAND(top_command);
W_COMMAND(pause_command);
W_COMMAND(resume_command);
