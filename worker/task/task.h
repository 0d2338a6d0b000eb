/* task.h: how a job type is written, and a job's way through the daemon.
 *
 * A job type is one file in worker/task/ that ends in W_TASK(descriptor): nothing else is edited to
 * add one.
 *
 *   static void on_lane(struct w_lane *lane, struct w_task **tasks, size_t n) {
 *       … compute; fill result or error …
 *   }
 *   static void have_model(struct w_task *t) {
 *       w_task_on_lane(t, on_lane, w_task_finish, t->job->input.len, true);
 *   }
 *   static void start(struct w_task *t) { w_task_with_model(t, t->job->model, have_model); }
 *   static const struct w_task_desc infer = {.name = "infer", .summary = "…", .start = start};
 *   W_TASK(infer);
 *
 * Threads: start, free, done and every callback run on the loop's thread and take less than a
 * millisecond; run runs on a lane and touches its tasks' fields marked L, the job (read only) and
 * the lane. Between w_task_on_lane and done the task belongs to the lane.
 *
 * Where a task is; every place is left by exactly one call:
 *
 *   HAND ──with_model──▶ MODEL ──▶ HAND
 *   HAND ──on_lane──▶ BATCHER ──▶ LANE ──done──▶ HAND
 *   HAND ──after──▶ TIMER ──▶ HAND
 *   HAND ──at_queue──▶ QUEUE (a q_* call is under way) ──back──▶ HAND
 *   HAND ──finish, done, fail, handback, leave──▶ gone
 *
 * Stopping (cancelled, timed out, fenced, drained): at MODEL, BATCHER and TIMER the daemon ends the
 * task at once. On a LANE `stop` is set, which the lane polls between rows, and the run is
 * cancelled between nodes once all of its tasks are stopped; at the QUEUE it waits for the reply.
 * Both then call back, and whoever is called back begins with `if (w_task_stopped(t)) return;`. */
#ifndef QUERN_WORKER_TASK_H
#define QUERN_WORKER_TASK_H

#include <stdatomic.h>

#include "queue/queue.h"
#include "worker/daemon/batcher.h"
#include "worker/daemon/lanes.h"
#include "worker/daemon/timers.h"
#include "worker/pipeline/pipeline.h"
#include "worker/store/store.h"

struct w_daemon;
struct w_files;
struct w_task;

enum w_stop {
    W_GO,
    W_STOP_CANCELLED,
    W_STOP_TIMEOUT,
    W_STOP_STALLED,
    W_STOP_FENCED,
    W_STOP_HANDBACK
};
enum w_place { W_IN_HAND, W_AT_MODEL, W_AT_BATCHER, W_AT_LANE, W_AT_TIMER, W_AT_QUEUE };

typedef void w_task_fn(struct w_task *t);

#define W_TASK_STATE_MAX 320

struct w_task_desc {
    const char *name; /* the op */
    const char *summary;
    bool harmless;      /* computes nothing that could crash: never run alone after a crash */
    bool long_running;  /* job_timeout_ms is not for it; a line is logged when it ends */
    size_t state_bytes; /* of t->state, zeroed; at most W_TASK_STATE_MAX */
    w_task_fn *start;
    w_task_fn *free; /* lets go of what the state holds; NULL: nothing */
};

#define W_TASK(desc)                                                                               \
    __attribute__((                                                                                \
        used,                                                                                      \
        section("quern_tasks"))) static const struct w_task_desc *const w__registered_##desc =     \
        &desc
extern const struct w_task_desc *const __start_quern_tasks[], *const __stop_quern_tasks[];

struct w_task {
    struct w_item item; /* in the batcher; first, so that one is the other */
    struct q_job *job;
    const struct w_task_desc *desc;
    struct w_daemon *daemon;
    struct w_model *model; /* held */
    void *state;
    atomic_int stop; /* enum w_stop; L: read */
    enum w_place place;
    /* what the lane made: L */
    char *result; /* JSON text from malloc */
    size_t result_len;
    char *ref; /* where the output went instead; from malloc */
    bool failed;
    struct w_error err;
    uint32_t batch; /* rows that ran together */
    double run_ms;
    /* the daemon's */
    struct w_task *next, *prev, *model_next;
    struct w_timer deadline, sleep;
    w_lane_fn *run;
    w_task_fn *done, *then;
    uint64_t started_ms;
    struct w_lane *lane; /* AT_LANE */
    bool armed;          /* the deadline is set */
    char spec[Q_MODEL_MAX + 1];
    uint64_t asked; /* of the store */
    _Alignas(16) unsigned char state_memory[W_TASK_STATE_MAX];
};

/* --- for job types, on the loop's thread ------------------------------------------------------ */

/* Gets the model and calls then with t->model held; fails the task by itself where there is none.
 */
void w_task_with_model(struct w_task *t, const char *spec, w_task_fn *then);
/* Hands the task to a lane: run there, then done here. shared: with others of the same run and
 * model. */
void w_task_on_lane(struct w_task *t, w_lane_fn *run, w_task_fn *done, size_t bytes, bool shared);
void w_task_after(struct w_task *t, uint64_t delay_ms, w_task_fn *then);
void w_task_at_queue(struct w_task *t); /* a q_* call with a callback is about to be made */
void w_task_back(struct w_task *t);     /* its callback has come */
/* True, and the task is gone, where it was to be stopped. */
bool w_task_stopped(struct w_task *t);

/* Ends: each frees the task. */
void w_task_finish(struct w_task *t); /* by what the lane made: result, ref or err */
void w_task_done(struct w_task *t, char *result, size_t len, const struct q_made *made);
void w_task_fail(struct w_task *t, const char *code, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
void w_task_handback(struct w_task *t);
/* Hands back so that another worker, if one is idle, gets it before this one asks again. */
void w_task_pass_on(struct w_task *t);
void w_task_leave(struct w_task *t); /* a ticket of a bulk job ends */

/* What the daemon says of itself. */
struct q_worker *w_daemon_queue(struct w_daemon *d);
int w_daemon_n_lanes(const struct w_daemon *d);
const struct w_files *w_daemon_files(const struct w_daemon *d);
const char *w_daemon_models(const struct w_daemon *d); /* the store's folder; "": none */
uint64_t w_daemon_now_ms(const struct w_daemon *d);
uint64_t w_daemon_run_bytes_max(const struct w_daemon *d); /* of one run of a model, or step */
size_t w_daemon_ref_bytes_max(const struct w_daemon *d); /* of one fetched reference */
bool w_daemon_draining(const struct w_daemon *d);

/* --- for any thread --------------------------------------------------------------------------- */

/* The value of a member of an object's JSON text, whose validity was checked before; ptr NULL: it
 * is not there. */
struct q_span w_json_member(struct q_span object, const char *name);
bool w_json_is(struct q_span value,
               char kind); /* '"' a string, '{' an object, '[' an array, '0' a number */
/* A string's text, unescaped, from malloc; NULL: no string. */
char *w_json_text(struct q_span value);
/* Fails what the lane was to make (L). */
void w_task_lane_fail(struct w_task *t, const struct w_error *err);

#endif
