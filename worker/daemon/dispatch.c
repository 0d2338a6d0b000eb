/* Who goes to which lane, and how many jobs are wanted from the queue. Loop thread, once a turn.
 *
 * How much is held. What waits here is what other workers cannot have, so the worker asks for no
 * more than its lanes can start within HORIZON_MS, judged by a moving average of lane time a job;
 * two a lane at least, so that a lane that is done finds the next batch. Jobs that need no lane
 * (ping) are over in the turn that brought them: where many of them come, more is asked for, up to
 * four times as much, so that the claims of the queue are full and follow each other without a gap.
 *
 * Suspects. When a worker dies, every job that it held has its crash counted, for nobody knows
 * which one did it. A suspect is therefore run with nothing else in this worker's hands: lanes come
 * to rest, what waits is handed back, the suspect runs; and the next suspects are asked for one by
 * one. So the killer is found at its second run, and the innocent run once more. */
#include <string.h>

#include "worker/daemon/internal.h"
#include "worker/daemon/log.h"

#define HORIZON_MS 200.0
#define BATCH_MS 100.0 /* a micro-batch is cut at about this much lane time */
#define MS_PER_JOB_UNKNOWN 3.0
#define HOLD_MAX 1024
#define LANE_SHARE_MIN 0.25
#define LANE_SHARE_DECAY (1.0 / 64)
#define ALONE_WAIT_MS 10000 /* a suspect waits so long for the lanes to come to rest */

/* --- lanes ------------------------------------------------------------------------------------ */

static struct w_batch_limits limits_of(void *user, const struct w_item *head) {
    const struct w_daemon *d = user;
    const struct w_task *t = (const struct w_task *)(const void *)head;
    struct w_batch_limits l = {.n_max = 1, .bytes_max = (size_t)d->tune.batch_bytes_max};
    if (!head->key) return l;
    l.n_max = (size_t)d->tune.batch_rows_max;
    if (t->model->batch.max > 0 && (size_t)t->model->batch.max < l.n_max)
        l.n_max = (size_t)t->model->batch.max;
    if (t->model->ms_per_job > 0 && BATCH_MS / t->model->ms_per_job < (double)l.n_max)
        l.n_max = (size_t)(BATCH_MS / t->model->ms_per_job);
    if (l.n_max == 0) l.n_max = 1;
    l.delay_ms = (uint32_t)d->tune.batch_delay_ms;
    return l;
}

static struct w_lane *idle_lane(struct w_daemon *d, size_t *n_idle) {
    struct w_lane *found = NULL;
    *n_idle = 0;
    for (int i = 0; i < d->lanes.n; i++) {
        if (d->lanes.lanes[i].busy) continue;
        found = found ? found : &d->lanes.lanes[i];
        ++*n_idle;
    }
    return found;
}

static void give(struct w_daemon *d, struct w_lane *lane, struct w_item **items, size_t n) {
    for (size_t i = 0; i < n; i++) {
        struct w_task *t = (struct w_task *)(void *)items[i];
        w__task_to_lane(t);
        t->lane = lane;
        lane->work[i] = t;
    }
    lane->n_tasks = n;
    lane->run = lane->work[0]->run;
    lane->started_ms = lane->beats_seen_ms = w__now_ms(d);
    lane->alarm = 0;
    atomic_store(&lane->n_frames, 0);
    w_lane_assign(lane);
}

/* True: a suspect waits or runs, and nothing else is started. */
static bool dispatch_alone(struct w_daemon *d) {
    struct w_item *item = w_batcher_alone(&d->batcher);
    size_t n_idle;
    if (d->alone_running) return true;
    if (!item) return false;
    if (!d->alone_since_ms) d->alone_since_ms = w__now_ms(d);
    struct w_lane *lane = idle_lane(d, &n_idle);
    bool rest = n_idle == (size_t)d->lanes.n;
    if (!lane || (!rest && w__now_ms(d) - d->alone_since_ms < ALONE_WAIT_MS)) return true;
    w_batcher_remove(&d->batcher, item);
    struct w_task *t = (struct w_task *)(void *)item;
    w__tasks_stop_all(d, W_STOP_HANDBACK, false, NULL, t);
    w_log(W_NOTICE, "suspect_runs_alone", "queue=%s op=%s crashes=%u", t->job->queue, t->job->op,
          t->job->crashes);
    d->alone_running = true;
    d->alone_since_ms = 0;
    give(d, lane, &item, 1);
    return true;
}

void w__dispatch(struct w_daemon *d) {
    struct w_item *items[W_WORK_TASKS_MAX];
    size_t n_idle;
    struct w_lane *lane;
    d->batch_due_ms = UINT64_MAX;
    if (d->held || dispatch_alone(d)) return;
    while (d->batcher.n && (lane = idle_lane(d, &n_idle)) != NULL) {
        size_t n = w_batcher_take(&d->batcher, w__now_ms(d), n_idle, limits_of, d, items,
                                  W_WORK_TASKS_MAX, &d->batch_due_ms);
        if (n == 0) break;
        give(d, lane, items, n);
    }
}

static void learn(struct w_daemon *d, const struct w_lane *lane) {
    double ms = lane->busy_ms / (double)lane->n_tasks;
    struct w_task *t = lane->tasks[0];
    d->ms_per_job = d->ms_per_job > 0 ? d->ms_per_job * 0.8 + ms * 0.2 : ms;
    if (!t->item.key) return;
    struct w_model *m = t->model;
    m->ms_per_job = m->ms_per_job > 0 ? m->ms_per_job * 0.8 + ms * 0.2 : ms;
    if (w__now_ms(d) - m->cost_told_ms < 1000) return;
    m->cost_told_ms = w__now_ms(d);
    q_worker_cost(d->queue, t->job->queue, m->name, m->ms_per_job);
}

void w__lanes_done(struct w_daemon *d) {
    for (struct w_lane *lane = w_lanes_take_done(&d->lanes); lane; lane = lane->next_done) {
        if (lane->alarm) w_log(W_NOTICE, "lane_moves_again", "lane=%d", lane->index);
        learn(d, lane);
        for (size_t i = 0; i < lane->n_tasks; i++) {
            if (lane->tasks[i]->item.alone) d->alone_running = false;
            w__task_from_lane(lane->tasks[i]);
        }
        lane->n_tasks = 0;
        lane->busy = false;
    }
}

/* --- wanting ---------------------------------------------------------------------------------- */

void w__arrival_seen(struct w_daemon *d, const struct w_task *t) {
    d->lane_share += ((t->desc->harmless ? 0.0 : 1.0) - d->lane_share) * LANE_SHARE_DECAY;
    if (t->item.alone)
        d->suspects = true;
    else if (t->job->crashes == 0)
        d->suspects = false;
}

static uint32_t wanted(const struct w_daemon *d) {
    size_t busy = 0;
    if (d->life != W_RUNNING || d->held || d->alone_running || d->batcher.alone.n ||
        d->n_tasks >= W_TASKS_MAX)
        return 0;
    for (int i = 0; i < d->lanes.n; i++) busy += d->lanes.lanes[i].busy;
    if (d->suspects) return d->n_waiting + busy == 0;
    double ms = d->ms_per_job > 0 ? d->ms_per_job : MS_PER_JOB_UNKNOWN;
    double share = d->lane_share > LANE_SHARE_MIN ? d->lane_share : LANE_SHARE_MIN;
    double can = HORIZON_MS * d->lanes.n / ms / share;
    size_t target = can > HOLD_MAX ? HOLD_MAX : (size_t)can;
    if (target < 2 * (size_t)d->lanes.n) target = 2 * (size_t)d->lanes.n;
    if (d->n_waiting >= target) return 0;
    size_t want = target - d->n_waiting, room = W_TASKS_MAX - d->n_tasks,
           claim_max = (size_t)d->config->claim_max;
    if (want > room) want = room;
    /* At its default the library's own limit holds, and the next claim may be under way while jobs
     * of the last are finished. */
    if (claim_max < Q_BATCH_MAX && want > claim_max) want = claim_max;
    return (uint32_t)want;
}

void w__want(struct w_daemon *d) {
    uint32_t n = d->passing_on ? 0 : wanted(d);
    if (d->passing_on) w__again(d);
    d->passing_on = false;
    if (d->queue && n != q_worker_wanted(d->queue)) q_worker_want(d->queue, n);
}
