/* A task's way from place to place (task.h has the picture). This file alone writes task->place and
 * the lists that go with it. Loop thread.
 *
 * Tasks come from a free list and carry their type's state inside, so a job costs no allocation
 * once the worker has seen as many jobs at once before. */
#include <assert.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "worker/daemon/cpus.h"
#include "worker/daemon/internal.h"
#include "worker/daemon/log.h"
#include "worker/nearest.h"

static bool is_waiting(enum w_place p) {
    return p != W_AT_LANE && p != W_AT_TIMER;
}

static void move_to(struct w_task *t, enum w_place place) {
    struct w_daemon *d = t->daemon;
    d->n_waiting -= is_waiting(t->place);
    d->n_waiting += is_waiting(place);
    t->place = place;
}

/* --- arrival ---------------------------------------------------------------------------------- */

void w__task_arrive(struct w_daemon *d, struct q_job *job) {
    struct w_task *t = d->spare;
    if (t)
        d->spare = t->next;
    else
        t = aligned_alloc(16, (sizeof *t + 15) / 16 * 16);
    if (!t) {
        q_job_fail(d->queue, job, Q_CODE_no_memory, "no memory to take the job", 1);
        return;
    }
    memset(t, 0, sizeof *t);
    t->job = job;
    t->daemon = d;
    t->state = t->state_memory;
    t->place = W_IN_HAND;
    job->user = t;
    t->next = d->tasks;
    if (d->tasks) d->tasks->prev = t;
    d->tasks = t;
    d->n_tasks++;
    d->n_waiting++;
    t->model_next = NULL;
    *d->arrived_tail = t;
    d->arrived_tail = &t->model_next;
}

static size_t n_descs(void) {
    // cppcheck-suppress comparePointers ; both ends of one section
    return (size_t)(__stop_quern_tasks - __start_quern_tasks);
}

static const struct w_task_desc *find(const char *op) {
    for (size_t i = 0; i < n_descs(); i++)
        if (strcmp(__start_quern_tasks[i]->name, op) == 0) return __start_quern_tasks[i];
    return NULL;
}

static const char *op_name(void *user, size_t i) {
    (void)user;
    return i < n_descs() ? __start_quern_tasks[i]->name : NULL;
}

static void unknown_op(struct w_task *t) {
    char known[200] = "";
    size_t n = 0;
    const char *near = w__nearest(t->job->op, op_name, NULL), *name;
    if (near) {
        w_task_fail(t, "unknown_op", "there is no operation \"%s\"; did you mean \"%s\"?",
                    t->job->op, near);
        return;
    }
    for (size_t i = 0; (name = op_name(NULL, i)) && n + 40 < sizeof known; i++)
        n += (size_t)snprintf(known + n, sizeof known - n, "%s%s", i ? ", " : "", name);
    w_task_fail(t, "unknown_op", "there is no operation \"%s\"; this worker knows %s", t->job->op,
                known);
}

size_t w__tasks_start(struct w_daemon *d, size_t max) {
    size_t n = 0;
    for (; d->arrived && n < max; n++) {
        struct w_task *t = d->arrived;
        d->arrived = t->model_next;
        if (!d->arrived) d->arrived_tail = &d->arrived;
        t->model_next = NULL;
        if (w_task_stopped(t)) continue;
        t->desc = find(t->job->op);
        t->started_ms = w__now_ms(d);
        if (!t->desc) {
            unknown_op(t);
            continue;
        }
        assert(t->desc->state_bytes <= W_TASK_STATE_MAX);
        t->item.alone = t->job->crashes > 0 && !t->desc->harmless && !t->desc->long_running;
        w__arrival_seen(d, t);
        t->desc->start(t);
    }
    return n;
}

/* --- deadlines -------------------------------------------------------------------------------- */

static struct w_task *of_deadline(struct w_timer *timer) {
    return (struct w_task *)(void *)((char *)timer - offsetof(struct w_task, deadline));
}

static void deadline_fired(struct w_timer *timer) {
    w__task_stop(of_deadline(timer), W_STOP_TIMEOUT);
}

/* The clock runs from the start of the job; most pings are over before they need one. */
static void arm(struct w_task *t) {
    if (t->armed) return;
    t->armed = true;
    uint64_t ms = t->job->timeout_ms      ? t->job->timeout_ms
                  : t->desc->long_running ? 0
                                          : (uint64_t)t->daemon->tune.job_timeout_ms;
    if (ms == 0) return;
    t->deadline.fire = deadline_fired;
    w_timer_set(&t->daemon->timers, &t->deadline, t->started_ms + ms);
}

/* --- places ----------------------------------------------------------------------------------- */

static void unlink_from_model(struct w_task *t) {
    for (struct w_task **link = &t->daemon->at_model; *link; link = &(*link)->model_next) {
        if (*link != t) continue;
        *link = t->model_next;
        t->model_next = NULL;
        return;
    }
}

static void ask_model(struct w_task *t) {
    struct w_daemon *d = t->daemon;
    struct w_error err = {0};
    switch (w_store_get(d->store, t->spec, &t->asked, &t->model, &err)) {
    case W_STORE_READY:
        move_to(t, W_IN_HAND);
        t->then(t);
        return;
    case W_STORE_LOADING:
        arm(t);
        move_to(t, W_AT_MODEL);
        t->model_next = d->at_model;
        d->at_model = t;
        return;
    case W_STORE_FAILED:
        move_to(t, W_IN_HAND);
        w_task_fail(t, err.code, "%s", err.text);
    }
}

void w_task_with_model(struct w_task *t, const char *spec, w_task_fn *then) {
    assert(t->place == W_IN_HAND && !t->model);
    snprintf(t->spec, sizeof t->spec, "%s", spec);
    t->then = then;
    t->asked = 0;
    ask_model(t);
}

void w__tasks_ask_models(struct w_daemon *d) {
    struct w_task *list = d->at_model;
    d->at_model = NULL;
    while (list) {
        struct w_task *t = list;
        list = t->model_next;
        t->model_next = NULL;
        ask_model(t);
    }
}

void w_task_on_lane(struct w_task *t, w_lane_fn *run, w_task_fn *done, size_t bytes, bool shared) {
    assert(t->place == W_IN_HAND);
    t->run = run;
    t->done = done;
    t->item.key = shared ? (const void *)t->model
                         : NULL; /* one job type alone shares lanes, so the model is key enough */
    t->item.bytes = bytes;
    t->item.since_ms = w__now_ms(t->daemon);
    arm(t);
    move_to(t, W_AT_BATCHER);
    if (!w_batcher_add(&t->daemon->batcher, &t->item)) {
        move_to(t, W_IN_HAND);
        w_task_fail(t, W_NO_MEMORY, "no memory to queue the job for a lane");
    }
}

void w__task_to_lane(struct w_task *t) {
    assert(t->place == W_AT_BATCHER && !t->item.group);
    move_to(t, W_AT_LANE);
}

void w__task_from_lane(struct w_task *t) {
    assert(t->place == W_AT_LANE);
    t->lane = NULL;
    move_to(t, W_IN_HAND);
    t->done(t);
}

static void sleep_fired(struct w_timer *timer) {
    struct w_task *t = (struct w_task *)(void *)((char *)timer - offsetof(struct w_task, sleep));
    move_to(t, W_IN_HAND);
    t->then(t);
}

void w_task_after(struct w_task *t, uint64_t delay_ms, w_task_fn *then) {
    assert(t->place == W_IN_HAND);
    t->then = then;
    t->sleep.fire = sleep_fired;
    arm(t);
    move_to(t, W_AT_TIMER);
    if (!w_timer_set(&t->daemon->timers, &t->sleep, w__now_ms(t->daemon) + delay_ms)) {
        move_to(t, W_IN_HAND);
        w_task_fail(t, W_NO_MEMORY, "no memory for a timer");
    }
}

void w_task_at_queue(struct w_task *t) {
    assert(t->place == W_IN_HAND);
    arm(t);
    move_to(t, W_AT_QUEUE);
}

void w_task_back(struct w_task *t) {
    assert(t->place == W_AT_QUEUE);
    move_to(t, W_IN_HAND);
}

/* --- stopping --------------------------------------------------------------------------------- */

/* All tasks of the lane are to stop: so may its run. */
static void cancel_lane_of(const struct w_task *t) {
    struct w_lane *lane = t->lane;
    for (size_t i = 0; i < lane->n_tasks; i++)
        if (atomic_load(&lane->tasks[i]->stop) == W_GO) return;
    __atomic_store_n(&lane->cancel, true, __ATOMIC_RELAXED);
}

void w__task_stop(struct w_task *t, enum w_stop why) {
    if (atomic_load(&t->stop) != W_GO) return; /* the first reason stays */
    atomic_store(&t->stop, (int)why);
    switch (t->place) {
    case W_AT_MODEL:
        unlink_from_model(t);
        break;
    case W_AT_BATCHER:
        w_batcher_remove(&t->daemon->batcher, &t->item);
        break;
    case W_AT_TIMER:
        w_timer_clear(&t->daemon->timers, &t->sleep);
        break;
    case W_AT_LANE:
        cancel_lane_of(t);
        return;
    case W_AT_QUEUE:
    case W_IN_HAND: /* it waits to be started */
        return;
    }
    move_to(t, W_IN_HAND);
    w_task_stopped(t);
}

void w__tasks_stop_all(struct w_daemon *d, enum w_stop why, bool running, const char *queue,
                       const struct w_task *but) {
    for (struct w_task *t = d->tasks, *next; t; t = next) {
        next = t->next;
        if (t == but || (queue && strcmp(t->job->queue, queue) != 0) ||
            (!running && t->place == W_AT_LANE))
            continue;
        w__task_stop(t, why);
    }
}

bool w_task_stopped(struct w_task *t) {
    switch ((enum w_stop)atomic_load(&t->stop)) {
    case W_GO:
        return false;
    case W_STOP_CANCELLED:
        w_task_fail(t, "cancelled", "cancelled by request");
        return true;
    case W_STOP_TIMEOUT:
        w_task_fail(t, "timeout", "ran longer than the allowed %ju ms",
                    (uintmax_t)(t->job->timeout_ms ? t->job->timeout_ms
                                                   : (uint64_t)t->daemon->tune.job_timeout_ms));
        return true;
    case W_STOP_STALLED:
        w_task_fail(t, "timeout", "it made no progress on its lane for %jd ms (lane_limit_ms)",
                    (intmax_t)t->daemon->tune.lane_limit_ms);
        return true;
    case W_STOP_FENCED:
    case W_STOP_HANDBACK:
        w_task_handback(t);
        return true;
    }
    return false;
}

/* --- ends ------------------------------------------------------------------------------------- */

/* The job has gone back to the queue's library. */
static void discard(struct w_task *t) {
    struct w_daemon *d = t->daemon;
    if (t->desc && t->desc->free) t->desc->free(t);
    w_timer_clear(&d->timers, &t->deadline);
    w_timer_clear(&d->timers, &t->sleep);
    w_model_release(t->model);
    free(t->result);
    free(t->ref);
    d->n_waiting -= is_waiting(t->place);
    d->n_tasks--;
    if (t->prev)
        t->prev->next = t->next;
    else
        d->tasks = t->next;
    if (t->next) t->next->prev = t->prev;
    t->next = d->spare;
    d->spare = t;
}

void w_task_done(struct w_task *t, char *result, size_t len, const struct q_made *made) {
    assert(t->place == W_IN_HAND);
    if (t->desc->long_running) {
        char id[160];
        w_log(W_INFO, "job_done", "queue=%s id=%s op=%s ms=%ju", t->job->queue,
              w_log_quote(t->job->id, id, sizeof id), t->desc->name,
              (uintmax_t)(w__now_ms(t->daemon) - t->started_ms));
    }
    q_job_done(t->daemon->queue, t->job, result, len, made);
    discard(t);
}

void w_task_fail(struct w_task *t, const char *code_name, const char *format, ...) {
    char text[1024], id[160], message[700], op[80];
    va_list args;
    assert(t->place == W_IN_HAND);
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    enum q_code code = q_code_from_name(code_name);
    if (code == Q_CODE_N) code = Q_CODE_internal;
    w_log(W_INFO, "job_failed", "queue=%s id=%s op=%s code=%s attempt=%u message=%s", t->job->queue,
          w_log_quote(t->job->id, id, sizeof id), w_log_quote(t->job->op, op, sizeof op),
          q_code_name(code), t->job->attempt, w_log_quote(text, message, sizeof message));
    q_job_fail(t->daemon->queue, t->job, code, text, -1);
    discard(t);
}

void w_task_handback(struct w_task *t) {
    assert(t->place == W_IN_HAND);
    q_job_handback(t->daemon->queue, t->job);
    discard(t);
}

void w_task_pass_on(struct w_task *t) {
    t->daemon->passing_on = true;
    w_task_handback(t);
}

void w_task_leave(struct w_task *t) {
    assert(t->place == W_IN_HAND);
    q_bulk_leave(t->daemon->queue, t->job);
    discard(t);
}

void w_task_finish(struct w_task *t) {
    int stop = atomic_load(&t->stop);
    bool whole =
        !t->failed && (t->result || t->ref); /* handing back what is done would only do it again */
    if ((stop != W_GO && !(stop == W_STOP_HANDBACK && whole)) && w_task_stopped(t)) return;
    if (t->failed) {
        w_task_fail(t, t->err.code ? t->err.code : W_INTERNAL, "%s", t->err.text);
        return;
    }
    struct q_made made = {
        .batch = t->batch, .ref = t->ref, .run_ms = t->run_ms > 0 ? t->run_ms : -1};
    if (t->model) {
        made.version = *t->model->version_text ? t->model->version_text : NULL;
        made.manifest = t->model->manifest;
    }
    char *result = t->result;
    t->result = NULL;
    w_task_done(t, result, t->result_len, &made);
}

void w_task_lane_fail(struct w_task *t, const struct w_error *err) {
    t->failed = true;
    t->err = *err;
}

/* --- what the daemon says of itself ----------------------------------------------------------- */

struct q_worker *w_daemon_queue(struct w_daemon *d) {
    return d->queue;
}

int w_daemon_n_lanes(const struct w_daemon *d) {
    return d->lanes.n;
}

const struct w_files *w_daemon_files(const struct w_daemon *d) {
    return d->files;
}

const char *w_daemon_models(const struct w_daemon *d) {
    return d->config->models ? d->config->models : "";
}

uint64_t w_daemon_now_ms(const struct w_daemon *d) {
    return w__now_ms(d);
}

bool w_daemon_draining(const struct w_daemon *d) {
    return d->life >= W_DRAINING;
}

uint64_t w_daemon_run_bytes_max(const struct w_daemon *d) {
    uint64_t set = (uint64_t)d->config->run_bytes_max, there = w_memory();
    return set < there ? set : there;
}

size_t w_daemon_ref_bytes_max(const struct w_daemon *d) {
    return (size_t)d->config->job_bytes_max;
}
