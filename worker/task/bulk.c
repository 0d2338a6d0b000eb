/* bulk: a data set through a model, by as many lanes of as many workers as there are.
 *
 * The queue library keeps the cursor, the bits and the tickets (queue.h, "bulk jobs"); this file is
 * one ticket's way on the loop:
 *
 *   start ─ no ticket yet ─▶ model ─▶ lane: size, pin ─▶ q_bulk_open ─┐
 *         └ a ticket ──────▶ lane: prepare ─▶ model ─▶ q_bulk_next ───┼─▶ turned
 *   turned: RANGE ─▶ lane: score, write part ─▶ q_bulk_commit ─▶ turned
 *           FINAL ─▶ q_bulk_ranges ─▶ lane: assemble ─▶ done
 *           LEAVE, LOST ─▶ leave      CANCEL ─▶ fail      ERROR ─▶ hand back after a while
 *   an error that ends the job ─▶ q_bulk_next: still ours? ─▶ lane: remove the parts ─▶ fail
 *
 * A worker keeps no more tickets of a job at work than it has lanes. A surplus one is set aside
 * without a range, then handed back, for a lane elsewhere may have nothing to do; each time a
 * little later, so that a lone worker does not spin.
 *
 * A range whose last holder died (crashes above 0) runs with nothing else in this worker's hands,
 * row by row, noting the row before it is touched: so the row that kills is known at the next
 * attempt, is written off, and the others are scored. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "worker/task/bulk.h"

#define GRAINS_WANTED 4096
#define RANGE_GRAINS_MAX 32
#define TICKETS_MAX 64
#define PARK_MS_MIN 50
#define PARK_MS_MAX 2000
#define ERROR_PAUSE_MS 1000

static struct w_bulk *bulk_of(struct w_task *t) {
    return *(struct w_bulk **)t->state;
}

static void set_active(struct w_bulk *b, bool active) {
    if (b->active == active) return;
    b->active = active;
    b->set->n_active += active ? 1 : -1;
}

static void free_state(struct w_task *t) {
    struct w_bulk *b = bulk_of(t);
    if (!b) return;
    if (b->set) set_active(b, false);
    w__dataset_put(b->set);
    free(b->firsts);
    free(b);
}

/* A whole number of params; dflt where it is not there. False: the task has failed. */
static bool param(struct w_task *t, const char *name, uint64_t min, uint64_t max, uint64_t *dst) {
    struct q_span v = w_json_member(t->job->params, name);
    char text[24] = "", *end = text;
    if (!v.ptr) return true;
    if (v.len < sizeof text) snprintf(text, sizeof text, "%.*s", (int)v.len, v.ptr);
    unsigned long long n = w_json_is(v, '0') && *text != '-' ? strtoull(text, &end, 10) : 0;
    if (end != text && !*end && n >= min && n <= max) {
        *dst = n;
        return true;
    }
    w_task_fail(t, "bad_job", "params.%s is %.*s, a whole number from %ju to %ju is expected", name,
                v.len > 40 ? 40 : (int)v.len, v.ptr, (uintmax_t)min, (uintmax_t)max);
    return false;
}

/* --- a ticket's way --------------------------------------------------------------------------- */

static void turned(void *ctx, struct q_job *job, const struct q_bulk_turn *turn);

static void cancelled(struct w_task *t) {
    struct w_bulk *b = bulk_of(t);
    if (b->over)
        w_task_leave(t);
    else
        w_task_fail(t, "cancelled", "cancelled by request after %ju of %ju rows",
                    (uintmax_t)(b->total_ok + b->total_failed), (uintmax_t)b->plan.n_rows);
}

/* A cancelled job leaves no parts behind: each ticket clears up after its last write. */
static void clean(struct w_task *t) {
    w_task_on_lane(t, w__bulk_lane_clean, cancelled, 0, false);
}

static bool is_cancelled(struct w_task *t) {
    return atomic_load(&t->stop) == W_STOP_CANCELLED;
}

/* --- failing: a job that is over leaves no parts behind. Who was fenced must not remove those of
 * the run that goes on elsewhere, so the queue is asked right before. */

static void fail_now(struct w_task *t) {
    w_task_fail(t, t->err.code, "%s", t->err.text);
}

/* Its time is over, and it is at a place where this file is called back. */
static bool timed_out(struct w_task *t) {
    if (atomic_load(&t->stop) != W_STOP_TIMEOUT || t->job->ticket < 0) return false;
    w_fail(&t->err, "timeout", "ran longer than the allowed %u ms", t->job->timeout_ms);
    return true;
}

static void fail(struct w_task *t) {
    struct w_bulk *b = bulk_of(t);
    if (!timed_out(t) && w_task_stopped(t)) return;
    if (!t->err.code || q_code_from_name(t->err.code) == Q_CODE_N) t->err.code = W_INTERNAL;
    if (t->job->ticket < 0 || !q_job_fail_ends(t->job, q_code_from_name(t->err.code), -1)) {
        fail_now(t);
        return;
    }
    b->failing = true;
    w_task_at_queue(t);
    q_bulk_next(w_daemon_queue(t->daemon), t->job, turned, t);
}

static void assembled(struct w_task *t) {
    if (t->failed)
        fail(t);
    else
        w_task_finish(t);
}

static void range_done(struct w_task *t) {
    struct w_bulk *b = bulk_of(t);
    if (!b->part_done) { /* what is in place may be committed, whatever was asked meanwhile */
        if (is_cancelled(t))
            clean(t);
        else if (t->failed || timed_out(t))
            fail(t);
        else if (!w_task_stopped(t))
            w_task_finish(t);
        return;
    }
    w_task_at_queue(t);
    q_bulk_commit(w_daemon_queue(t->daemon), t->job, b->first, b->count, b->rows_ok, b->rows_failed,
                  turned, t);
}

static void got_ranges(void *ctx, struct q_job *job, const struct q_bulk_range *ranges, size_t n,
                       const struct q_error *err) {
    struct w_task *t = ctx;
    struct w_bulk *b = bulk_of(t);
    (void)job;
    w_task_back(t);
    if (w_task_stopped(t)) return;
    if (err && err->code != Q_OK) {
        w_task_after(t, ERROR_PAUSE_MS, w_task_handback);
        return;
    }
    b->firsts = calloc(n + 1, sizeof *b->firsts);
    if (!b->firsts) {
        w_task_fail(t, W_NO_MEMORY, "no memory for %zu parts", n);
        return;
    }
    for (size_t i = 0; i < n; i++) b->firsts[i] = (uint64_t)ranges[i].first * b->plan.grain_rows;
    b->n_firsts = n;
    w_task_on_lane(t, w__bulk_lane_assemble, assembled, 0, false);
}

static bool overdue(const struct w_task *t) {
    const struct w_bulk *b = bulk_of((struct w_task *)t);
    return t->job->timeout_ms && b->opened_ms &&
           q_worker_now_ms(w_daemon_queue(t->daemon)) - b->opened_ms > (int64_t)t->job->timeout_ms;
}

/* For T:s of the job: counts, speed since it was opened, when it may be over. */
static void tell(struct w_task *t, const struct q_bulk_turn *turn) {
    char json[256];
    uint64_t done = turn->rows_ok + turn->rows_failed;
    double s = (double)(q_worker_now_ms(w_daemon_queue(t->daemon)) - turn->started_ms) / 1e3,
           per_s = s > 0 ? (double)done / s : 0;
    double eta_s = per_s > 0 ? (double)(turn->plan.n_rows - done) / per_s : -1;
    snprintf(json, sizeof json,
             "{\"done\":%ju,\"total\":%ju,\"failed\":%ju,\"per_s\":%.1f,\"eta_s\":%.1f}",
             (uintmax_t)done, (uintmax_t)turn->plan.n_rows, (uintmax_t)turn->rows_failed, per_s,
             eta_s);
    q_job_progress(w_daemon_queue(t->daemon), t->job, json);
}

static void take_range(struct w_task *t, const struct q_bulk_turn *turn) {
    struct w_bulk *b = bulk_of(t);
    b->first = turn->first;
    b->count = turn->count;
    b->crashes = turn->crashes;
    b->part_done = false;
    t->item.alone = turn->crashes > 0;
    if (w_daemon_draining(t->daemon))
        w_task_handback(t);
    else if (overdue(t)) {
        w_fail(&t->err, "timeout", "the bulk job ran longer than the allowed %u ms",
               t->job->timeout_ms);
        fail(t);
    } else
        w_task_on_lane(t, w__bulk_lane_range, range_done, 0, false);
}

static void turned(void *ctx, struct q_job *job, const struct q_bulk_turn *turn) {
    struct w_task *t = ctx;
    struct w_bulk *b = bulk_of(t);
    w_task_back(t);
    if (turn->step == Q_BULK_LEAVE || turn->step == Q_BULK_LOST) {
        b->over = true; /* whatever else was asked: nothing is left here */
        bool ended = job->ticket >= 0 && turn->grains == 0; /* a last part may have come after it */
        if (turn->step == Q_BULK_LEAVE && (is_cancelled(t) || ended))
            clean(t);
        else
            w_task_leave(t);
        return;
    }
    b->failing |= timed_out(t);
    if (!b->failing && !is_cancelled(t) && w_task_stopped(t)) return;
    if (b->failing && turn->step != Q_BULK_ERROR) {
        w_task_on_lane(t, w__bulk_lane_clean, fail_now, 0, false);
        return;
    }
    if (turn->step != Q_BULK_ERROR) {
        b->plan = turn->plan;
        b->total_ok = turn->rows_ok;
        b->total_failed = turn->rows_failed;
        b->opened_ms = turn->started_ms;
    }
    if (is_cancelled(t) && turn->step != Q_BULK_CANCEL) {
        if (turn->step == Q_BULK_RANGE)
            clean(t);
        else
            w_task_stopped(t);
        return;
    }
    if (turn->step == Q_BULK_RANGE || turn->step == Q_BULK_FINAL) tell(t, turn);
    switch (turn->step) {
    case Q_BULK_RANGE:
        take_range(t, turn);
        return;
    case Q_BULK_FINAL:
        w_task_at_queue(t);
        q_bulk_ranges(w_daemon_queue(t->daemon), t->job, got_ranges, t);
        return;
    case Q_BULK_CANCEL:
        if (turn->grains_done < turn->grains)
            clean(t);
        else
            cancelled(t); /* somebody may be joining the parts already */
        return;
    case Q_BULK_LEAVE:
    case Q_BULK_LOST:
        return;
    case Q_BULK_ERROR:
        w_task_after(t, ERROR_PAUSE_MS, w_task_handback);
    }
}

/* --- the first worker ------------------------------------------------------------------------- */

static void sized(struct w_task *t) {
    struct w_bulk *b = bulk_of(t);
    uint64_t shards = 2 * (uint64_t)w_daemon_n_lanes(t->daemon), grain = b->grain,
             n_rows = b->plan.n_rows;
    if (t->failed || t->result) { /* an empty data set is finished on the spot */
        w_task_finish(t);
        return;
    }
    if (w_task_stopped(t)) return;
    if (shards < 4) shards = 4;
    if (shards > TICKETS_MAX) shards = TICKETS_MAX;
    if (b->shards) shards = b->shards;
    uint64_t least = (n_rows + Q_BULK_GRAINS_MAX - 1) / Q_BULK_GRAINS_MAX;
    if (grain == 0) grain = (n_rows + GRAINS_WANTED - 1) / GRAINS_WANTED;
    if (grain < least) grain = least;
    if (grain > UINT32_MAX) {
        w_task_fail(t, W_TOO_LARGE, "%ju rows are too many for one bulk job", (uintmax_t)n_rows);
        return;
    }
    b->plan = (struct q_bulk_plan){n_rows, (uint32_t)grain, (uint32_t)shards, RANGE_GRAINS_MAX};
    w_task_at_queue(t);
    q_bulk_open(w_daemon_queue(t->daemon), t->job, &b->plan, turned, t);
}

static void size(struct w_task *t) {
    w_task_on_lane(t, w__bulk_lane_size, sized, 0, false);
}

/* --- a ticket --------------------------------------------------------------------------------- */

static void ask_range(struct w_task *t) {
    w_task_at_queue(t);
    q_bulk_next(w_daemon_queue(t->daemon), t->job, turned, t);
}

static void prepared(struct w_task *t) {
    struct w_bulk *b = bulk_of(t);
    if (t->failed) {
        w_task_finish(t);
        return;
    }
    if (w_task_stopped(t)) return;
    w_task_with_model(t, *b->set->spec ? b->set->spec : t->job->model, ask_range);
}

static void begin(struct w_task *t) {
    set_active(bulk_of(t), true);
    w_task_on_lane(t, w__bulk_lane_prepare, prepared, 0, false);
}

static void unpark(struct w_task *t) {
    if (bulk_of(t)->set->n_active < w_daemon_n_lanes(t->daemon))
        begin(t);
    else
        w_task_pass_on(t);
}

static void park(struct w_task *t) {
    struct w_dataset *set = bulk_of(t)->set;
    uint64_t ms = (uint64_t)PARK_MS_MIN << (set->parks < 6 ? set->parks : 6);
    set->parks++;
    w_task_after(t, ms < PARK_MS_MAX ? ms : PARK_MS_MAX, unpark);
}

static void start(struct w_task *t) {
    const struct q_job *job = t->job;
    struct w_bulk *b = calloc(1, sizeof *b);
    *(struct w_bulk **)t->state = b;
    if (b) b->set = w__dataset_get(job);
    if (!b || !b->set) {
        w_task_fail(t, W_NO_MEMORY, "no memory for a bulk job");
    } else if (!w_json_is(job->input_ref, '"') || !w_json_is(job->output_ref, '"')) {
        w_task_fail(t, "bad_job", "%s of bulk is %s, a string \"file:…\" is expected",
                    w_json_is(job->input_ref, '"') ? "output_ref" : "input_ref",
                    (w_json_is(job->input_ref, '"') ? job->output_ref.ptr : job->input_ref.ptr)
                        ? "no string"
                        : "missing");
    } else if (!param(t, "shards", 1, Q_BULK_TICKETS_MAX, &b->shards) ||
               !param(t, "grain_rows", 1, 1 << 20, &b->grain)) {
        return;
    } else if (job->ticket < 0) {
        set_active(b, true);
        w_task_with_model(t, job->model, size);
    } else if (b->set->n_active >= w_daemon_n_lanes(t->daemon)) {
        park(t);
    } else {
        begin(t);
    }
}

static const struct w_task_desc bulk = {
    .name = "bulk",
    .summary = "a file or folder of rows through a model",
    .long_running = true,
    .state_bytes = sizeof(struct w_bulk *),
    .start = start,
    .free = free_state,
};
W_TASK(bulk);
