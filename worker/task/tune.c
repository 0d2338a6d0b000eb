/* tune: a search for hyper-parameters. `params` is a training spec with a section "tune"
 * (worker/tune/study.h), and a trial is a training of it with some values put in.
 *
 * A study is a bulk job whose rows are trials (queue.h, "bulk jobs"): tickets fan out over the
 * lanes of all workers, and a trial whose worker dies is taken up again from its checkpoint by
 * whoever gets the ticket next. There is no coordinator that could be killed. What the tickets know
 * of each other are notes in Redis, one a trial: written before it begins (so that it is the same
 * trial wherever it goes on), at each rung, and at its end.
 *
 *   start ─ no ticket yet ─▶ lane: prepare ─▶ q_bulk_open ─┐
 *         └ a ticket ──────▶ lane: prepare ─▶ q_bulk_next ─┴─▶ turned
 *   turned: RANGE ─▶ notes: what is known ─▶ choose params ─▶ note ─▶ lane: slice ─▶ sliced
 *           FINAL ─▶ notes ─▶ lane: finalise ─▶ done
 *           LEAVE, LOST ─▶ leave      CANCEL ─▶ clean, fail      ERROR ─▶ hand back after a while
 *   sliced: goes on ─▶ tell ─▶ lane: slice
 *           at a rung ─▶ note ─▶ given up, or lane: slice
 *           ended ─▶ note ─▶ q_bulk_commit ─▶ turned
 *
 * A failed trial is one row that failed; a study fails where no trial is done. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "worker/task/tune.h"

#define CRASHES_MAX 3 /* then a trial is written off */
#define PARK_MS_MIN 50
#define PARK_MS_MAX 2000
#define ERROR_PAUSE_MS 1000

static struct w_tune *of(struct w_task *t) {
    return *(struct w_tune **)t->state;
}

static void set_active(struct w_tune *s, bool active) {
    if (s->active == active) return;
    s->active = active;
    s->set->n_active += active ? 1 : -1;
}

static void forget(struct w_tune *s) {
    for (size_t i = 0; i < s->n_known; i++) w_trial_finish(&s->known[i]);
    free(s->known);
    s->known = NULL;
    s->n_known = 0;
}

static void free_state(struct w_task *t) {
    struct w_tune *s = of(t);
    if (!s) return;
    if (s->set) set_active(s, false);
    w__dataset_put(s->set);
    w_training_finish(&s->t);
    w_study_destroy(s->study);
    json_decref(s->note);
    forget(s);
    free(s);
}

/* --- ends ------------------------------------------------------------------------------------- */

static bool is_cancelled(struct w_task *t) {
    return atomic_load(&t->stop) == W_STOP_CANCELLED;
}

static void cancelled(struct w_task *t) {
    if (of(t)->over)
        w_task_leave(t);
    else
        w_task_fail(t, "cancelled", "cancelled by request after %u of %u trials",
                    of(t)->turn.grains_done, of(t)->turn.grains);
}

static void clean(struct w_task *t) {
    w_task_on_lane(t, w__tune_lane_clean, cancelled, 0, false);
}

/* --- notes ------------------------------------------------------------------------------------ */

static void on_notes(void *ctx, struct q_job *job, const struct q_bulk_note *notes, size_t n,
                     const struct q_error *err) {
    struct w_task *t = ctx;
    struct w_tune *s = of(t);
    (void)job;
    w_task_back(t);
    if (is_cancelled(t)) {
        clean(t);
        return;
    }
    if (w_task_stopped(t)) return;
    if (err->code != Q_OK) {
        w_task_after(t, ERROR_PAUSE_MS, w_task_handback);
        return;
    }
    forget(s);
    s->known = calloc(n + 1, sizeof *s->known);
    for (size_t i = 0; s->known && i < n; i++)
        s->n_known +=
            w_trial_read(notes[i].grain, notes[i].text, notes[i].len, &s->known[s->n_known]);
    s->then(t);
}

/* Tells the note of the trial in hand (or nothing), hears all, goes on at then. */
static void exchange(struct w_task *t, bool tell, w_task_fn *then) {
    struct w_tune *s = of(t);
    char *text = tell ? json_dumps(s->note, JSON_COMPACT) : NULL;
    if (text && strlen(text) > Q_BULK_NOTE_BYTES_MAX) {
        free(text);
        w_task_fail(t, "bad_job",
                    "tune: what is to be noted of trial %u is too long: fewer or "
                    "shorter values in the space",
                    s->trial);
        return;
    }
    s->then = then;
    w_task_at_queue(t);
    q_bulk_note(w_daemon_queue(t->daemon), t->job, s->trial, text, on_notes, t);
    free(text);
}

static const struct w_trial *known_trial(const struct w_tune *s) {
    for (size_t i = 0; i < s->n_known; i++)
        if (s->known[i].number == s->trial) return &s->known[i];
    return NULL;
}

/* For T:s of the job: the study as a whole, and the trial of this lane. */
static void tell(struct w_task *t) {
    struct w_tune *s = of(t);
    int counts[4] = {0};
    for (size_t i = 0; i < s->n_known; i++) counts[s->known[i].state]++;
    int ended = counts[W_TRIAL_DONE] + counts[W_TRIAL_PRUNED] + counts[W_TRIAL_FAILED];
    int64_t best = w_study_best(s->study, s->known, s->n_known);
    json_t *o =
        json_pack("{s:i, s:i, s:i, s:i, s:i, s:s}", "done", ended, "total", (int)s->study->n_trials,
                  "pruned", counts[W_TRIAL_PRUNED], "failed", counts[W_TRIAL_FAILED], "trial",
                  (int)s->trial, "objective", s->study->objective);
    if (best >= 0) {
        json_object_set_new(o, "best", json_real(s->known[best].value));
        json_object_set_new(o, "best_trial", json_integer(s->known[best].number));
    }
    w_training_tell(&s->t, o);
}

/* --- a trial ---------------------------------------------------------------------------------- */

static void turned(void *ctx, struct q_job *job, const struct q_bulk_turn *turn);

static void commit(struct w_task *t) {
    struct w_tune *s = of(t);
    bool failed = strcmp(json_string_value(json_object_get(s->note, "state")), "failed") == 0;
    tell(t);
    w_training_reset(&s->t);
    w_task_at_queue(t);
    q_bulk_commit(w_daemon_queue(t->daemon), t->job, s->trial, 1, !failed, failed, turned, t);
}

static void end_trial(struct w_task *t) {
    exchange(t, true, commit);
}

static void sliced(struct w_task *t);

static void go_on(struct w_task *t) {
    w_task_on_lane(t, w__tune_lane_slice, sliced, 0, false);
}

static void decide(struct w_task *t) {
    struct w_tune *s = of(t);
    if (!w_study_gives_up(s->study, s->known, s->n_known, s->trial, s->epoch, s->value)) {
        go_on(t);
        return;
    }
    w_training_clear_up(&s->t);
    json_object_set_new(s->note, "state", json_string("pruned"));
    json_object_set_new(s->note, "seconds", json_real(s->t.fit->seconds));
    end_trial(t);
}

static void at_rung(struct w_task *t) {
    struct w_tune *s = of(t);
    char epoch[24];
    json_t *rungs = json_object_get(s->note, "rungs"),
           *value = isfinite(s->value) ? json_real(s->value) : json_null();
    snprintf(epoch, sizeof epoch, "%d", s->epoch);
    if (!rungs) json_object_set_new(s->note, "rungs", rungs = json_object());
    json_object_set(rungs, epoch, value);
    json_object_set_new(s->note, "value", value);
    json_object_set_new(s->note, "epochs", json_integer(s->epoch));
    exchange(t, true, decide);
}

static void sliced(struct w_task *t) {
    struct w_tune *s = of(t);
    if (is_cancelled(t)) {
        clean(t);
        return;
    }
    if (w_task_stopped(t)) return;
    tell(t);
    if (s->ended)
        end_trial(t);
    else if (s->at_rung)
        at_rung(t);
    else if (s->lost || !s->t.fit)
        w_task_after(t, ERROR_PAUSE_MS, w_task_handback);
    else
        go_on(t);
}

static void begin_trial(struct w_task *t) {
    struct w_tune *s = of(t);
    const struct w_trial *own = known_trial(s);
    json_decref(s->note);
    s->ended = s->at_rung = s->no_value = false;
    s->note = own ? json_incref(own->note)
                  : json_pack("{s:s, s:o}", "state", "running", "params",
                              w_study_suggest(s->study, s->trial, s->known, s->n_known));
    if (!s->note) {
        w_task_fail(t, W_NO_MEMORY, "no memory for a trial");
    } else if (own && own->state != W_TRIAL_RUNNING) {
        commit(t); /* its holder died before it could say so */
    } else if (s->crashes >= CRASHES_MAX) {
        json_object_set_new(s->note, "state", json_string("failed"));
        json_object_set_new(s->note, "error", json_string("the worker died with it, three times"));
        end_trial(t);
    } else {
        exchange(t, true, go_on);
    }
}

/* --- a ticket's way --------------------------------------------------------------------------- */

static void finalise(struct w_task *t) {
    w_task_on_lane(t, w__tune_lane_finalise, w_task_finish, 0, false);
}

static void take_trial(struct w_task *t, const struct q_bulk_turn *turn) {
    struct w_tune *s = of(t);
    s->trial = turn->first;
    s->crashes = turn->crashes;
    if (w_daemon_draining(t->daemon))
        w_task_handback(t);
    else if (t->job->timeout_ms && q_worker_now_ms(w_daemon_queue(t->daemon)) - turn->started_ms >
                                       (int64_t)t->job->timeout_ms)
        w_task_fail(t, "timeout", "the study ran longer than the allowed %u ms",
                    t->job->timeout_ms);
    else
        exchange(t, false, begin_trial);
}

static void turned(void *ctx, struct q_job *job, const struct q_bulk_turn *turn) {
    struct w_task *t = ctx;
    struct w_tune *s = of(t);
    (void)job;
    w_task_back(t);
    if (turn->step == Q_BULK_LEAVE || turn->step == Q_BULK_LOST) {
        s->over = true;
        if (is_cancelled(t) && turn->step == Q_BULK_LEAVE)
            clean(t);
        else
            w_task_leave(t);
        return;
    }
    if (turn->step != Q_BULK_ERROR) s->turn = *turn;
    if (turn->step == Q_BULK_CANCEL || (is_cancelled(t) && turn->step == Q_BULK_RANGE)) {
        clean(t);
        return;
    }
    if (w_task_stopped(t)) return;
    if (turn->step == Q_BULK_RANGE)
        take_trial(t, turn);
    else if (turn->step == Q_BULK_FINAL)
        exchange(t, false, finalise);
    else
        w_task_after(t, ERROR_PAUSE_MS, w_task_handback);
}

static void prepared(struct w_task *t) {
    struct w_tune *s = of(t);
    if (t->failed) {
        w_task_finish(t);
        return;
    }
    if (w_task_stopped(t)) return;
    w_task_at_queue(t);
    if (t->job->ticket >= 0) {
        q_bulk_next(w_daemon_queue(t->daemon), t->job, turned, t);
        return;
    }
    const struct q_bulk_plan plan = {.n_rows = (uint64_t)s->study->n_trials,
                                     .grain_rows = 1,
                                     .n_tickets = (uint32_t)s->study->parallelism,
                                     .range_max = 1};
    q_bulk_open(w_daemon_queue(t->daemon), t->job, &plan, turned, t);
}

static void begin(struct w_task *t) {
    set_active(of(t), true);
    w_task_on_lane(t, w__tune_lane_prepare, prepared, 0, false);
}

static void unpark(struct w_task *t) {
    if (of(t)->set->n_active < w_daemon_n_lanes(t->daemon))
        begin(t);
    else
        w_task_pass_on(t);
}

/* A surplus ticket, for a lane elsewhere that may have nothing to do. */
static void park(struct w_task *t) {
    struct w_dataset *set = of(t)->set;
    uint64_t ms = (uint64_t)PARK_MS_MIN << (set->parks < 6 ? set->parks : 6);
    set->parks++;
    w_task_after(t, ms < PARK_MS_MAX ? ms : PARK_MS_MAX, unpark);
}

static void start(struct w_task *t) {
    struct w_tune *s = calloc(1, sizeof *s);
    *(struct w_tune **)t->state = s;
    if (s) w_training_init(&s->t, t);
    if (s) s->set = w__dataset_get(t->job);
    if (!s || !s->set)
        w_task_fail(t, W_NO_MEMORY, "no memory for a study");
    else if (t->job->ticket >= 0 && s->set->n_active >= w_daemon_n_lanes(t->daemon))
        park(t);
    else
        begin(t);
}

static const struct w_task_desc tune = {
    .name = "tune",
    .summary = "searches hyper-parameters of a training spec",
    .long_running = true,
    .state_bytes = sizeof(struct w_tune *),
    .start = start,
    .free = free_state,
};
W_TASK(tune);
