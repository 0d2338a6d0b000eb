/* internal.h: the daemon's state, shared by its files. Everything here is the loop thread's, but
 * what says otherwise.
 *
 *   loop.c      life, callbacks of the queue and of uv, one turn of the loop
 *   tasks.c     a task's places (task.h): the only file that writes task->place
 *   dispatch.c  who goes to which lane, who runs alone, how many jobs are wanted
 *   watchdog.c  lanes that stand still
 *   crash.c     last words
 *   drain.c     signals, draining, reloading */
#ifndef QUERN_WORKER_DAEMON_INTERNAL_H
#define QUERN_WORKER_DAEMON_INTERNAL_H

#include "worker/daemon/loop.h"
#include "worker/task/task.h"

#define W_TURN_TASKS_MAX 256 /* tasks started in one turn of the loop */
#define W_TASKS_MAX 8192     /* in hand at once, sleeping ones included */

struct w_tunables { /* what SIGHUP may change */
    int64_t batch_rows_max, batch_bytes_max, batch_delay_ms, job_timeout_ms, lane_limit_ms;
};

enum w_life { W_STARTING, W_RUNNING, W_DRAINING, W_CLOSING, W_CLOSED };

struct w_daemon {
    const struct w_config *config;
    struct w_tunables tune;
    enum w_life life;
    uv_loop_t loop;
    uv_async_t wake;  /* lanes are done, models changed, a drain was asked for */
    uv_check_t check; /* the one place where the loop acts */
    uv_idle_t idle;   /* runs while there is more to do than one turn does */
    uv_timer_t timer; /* the heap's */
    uv_timer_t tick;  /* watchdog, card, systemd */
    uv_signal_t signals[3];
    bool with_signals;
    int n_open; /* uv handles of ours */
    struct q_worker *queue;
    struct w_store *store;
    struct w_files *files;
    struct w_lanes lanes;
    struct w_timers timers;
    struct w_batcher batcher;
    /* tasks */
    struct w_task *tasks, *spare; /* all in hand; free ones */
    struct w_task *arrived, **arrived_tail;
    struct w_task *at_model;
    size_t n_tasks, n_waiting; /* n_waiting: neither on a lane nor asleep */
    /* flags set by callbacks */
    atomic_bool models_changed, drain_asked;
    bool held;
    /* dispatch */
    bool alone_running; /* a suspect has the worker for itself */
    bool passing_on;    /* something goes back in this turn, and is not to be claimed with it */
    bool suspects;      /* jobs of a crash are coming in: one at a time */
    uint64_t alone_since_ms;
    double ms_per_job; /* of lane time, moving average */
    double lane_share; /* of the jobs that came, how many need a lane: moving average */
    uint64_t batch_due_ms;
    /* draining */
    uint64_t drain_until_ms, exit_at_ms;
    int n_terms, exit_code;
    bool queue_drained;
    bool preloading;
    uint64_t born_ns, card_ms, notified_ms;
    bool connected, ready_logged; /* connected: once at least */
};

static inline uint64_t w__now_ms(const struct w_daemon *d) {
    return uv_now(&d->loop);
}

/* tasks.c */
void w__task_arrive(struct w_daemon *d, struct q_job *job);
size_t w__tasks_start(struct w_daemon *d, size_t max);
void w__task_stop(struct w_task *t, enum w_stop why);
/* All (running: on lanes too) of one queue (NULL: every) but one. */
void w__tasks_stop_all(struct w_daemon *d, enum w_stop why, bool running, const char *queue,
                       const struct w_task *but);
void w__tasks_ask_models(struct w_daemon *d);
void w__task_to_lane(struct w_task *t); /* dispatch took it from the batcher */
void w__task_from_lane(struct w_task *t);
/* dispatch.c */
void w__dispatch(struct w_daemon *d);
void w__lanes_done(struct w_daemon *d);
void w__want(struct w_daemon *d);
void w__arrival_seen(struct w_daemon *d, const struct w_task *t);
/* watchdog.c */
bool w__watchdog_init(void);
void w__watchdog_tick(struct w_daemon *d);
bool w__lanes_healthy(const struct w_daemon *d);
bool w__only_lost_lanes(const struct w_daemon *d); /* nothing is left here but the jobs of lanes
                                                      that do not come back */
/* crash.c */
void w__crash_watch(struct q_worker *w); /* NULL: no more */
/* drain.c */
void w__drain_begin(struct w_daemon *d);
void w__drain_tick(struct w_daemon *d);
void w__on_signal(uv_signal_t *handle, int number);
void w__tunables_from(struct w_tunables *dst, const struct w_config *c);
/* loop.c */
void w__again(struct w_daemon *d); /* another turn, without waiting */
void w__timer_update(struct w_daemon *d);

#endif
