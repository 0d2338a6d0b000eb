/* lanes.h: the compute threads. A lane runs one piece of work at a time: a list of tasks of one job
 * type and model. It touches no uv_, no Redis and no job state but that of its tasks; what it keeps
 * for itself (rows, sessions, buffers) nobody else touches.
 *
 * Hand-over: the loop puts a piece of work into the lane under the pool's mutex; a lane that is
 * done links itself into the done list under the same mutex and sends one uv_async. Sends coalesce,
 * so the loop takes the whole list each time. */
#ifndef QUERN_WORKER_LANES_H
#define QUERN_WORKER_LANES_H

#include <pthread.h>
#include <stdatomic.h>
#include <uv.h>

#include "worker/store/store.h"

#define W_WORK_TASKS_MAX 1024
#define W_LANE_SESSIONS_MAX 8
#define W_LANE_FRAMES_MAX 48

struct w_lane;
struct w_lanes;
struct w_task;

typedef void w_lane_fn(struct w_lane *lane, struct w_task **tasks, size_t n);

struct w_buffer {
    void *ptr; /* 64-byte aligned */
    size_t size;
};

struct w_lane {
    int index;
    struct w_lanes *pool;
    pthread_t thread;
    atomic_uint_fast64_t beats; /* grows while the lane gets on */
    volatile bool cancel;       /* through __atomic: the running model stops between nodes */
    /* the loop's while idle, the lane's while busy */
    struct w_task **tasks, **work; /* work: the array, W_WORK_TASKS_MAX long */
    size_t n_tasks;
    w_lane_fn *run;
    double busy_ms; /* of the last piece of work */
    struct w_lane *next_done;
    bool busy;           /* the loop's view */
    bool assigned, trim; /* under the mutex */
    pthread_cond_t cond;
    /* the watchdog's (loop) */
    uint64_t beats_seen, beats_seen_ms, started_ms;
    int alarm; /* 0 none, 1 stack asked for, 2 cancelled */
    /* the lane's own */
    struct w_row **rows;
    size_t n_rows;
    struct {
        struct w_model *model;
        struct op_session *session;
        uint64_t used;
    } sessions[W_LANE_SESSIONS_MAX];
    uint64_t uses;
    struct w_buffer stack[W_INPUTS_MAX];
    const struct w_files *files;
    /* written by the signal handler */
    void *frames[W_LANE_FRAMES_MAX];
    atomic_int n_frames;
};

struct w_lanes {
    struct w_lane *lanes;
    int n, n_threads;
    size_t row_bytes_max;
    atomic_llong rows_max; /* of one run, where the model does not say */
    pthread_mutex_t mutex;
    struct w_lane *done;
    uv_async_t *async;
    bool stop;
};

/* Starts n threads, each with n_threads for a model's run. False: no memory or no threads; nothing
 * is left. */
bool w_lanes_start(struct w_lanes *ls, int n, int n_threads, const struct w_files *files,
                   uv_async_t *async);
/* All lanes must be idle, or the process must be about to end. */
void w_lanes_stop(struct w_lanes *ls);
/* Loop: gives the lane what lies in tasks, n_tasks, run. */
void w_lane_assign(struct w_lane *lane);
struct w_lane *w_lanes_take_done(struct w_lanes *ls); /* the list, by next_done */
void w_lanes_trim(struct w_lanes *ls); /* idle lanes let go of sessions of retired models */

/* The calling thread's lane; NULL on other threads. For the watchdog's signal handler. */
extern _Thread_local struct w_lane *w__lane_self;

/* --- on the lane's thread --------------------------------------------------------------------- */

static inline void w_lane_beat(struct w_lane *lane) {
    atomic_fetch_add_explicit(&lane->beats, 1, memory_order_relaxed);
}
/* Row i of this lane, reset; NULL: no memory. */
struct w_row *w_lane_row(struct w_lane *lane, size_t i);
/* The lane's session of the model; NULL with err. Lent until the next call. */
struct op_session *w_lane_session(struct w_lane *lane, struct w_model *model, struct w_error *err);
/* Room for bytes in buffer i; NULL: no memory. */
void *w_lane_buffer(struct w_lane *lane, int i, size_t bytes);
bool w_lane_cancelled(const struct w_lane *lane);

#endif
