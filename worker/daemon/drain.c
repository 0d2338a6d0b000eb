/* The ways to stop, and to read the settings again. Loop thread.
 *
 * SIGTERM: take no more, hand back what has not started, let what runs finish for drain_ms, then
 * cancel it and hand it back too: no attempt is counted for any of it. A second SIGTERM makes
 * drain_ms zero. Only what does not come back even then, or a Redis that cannot be reached, leaves
 * jobs behind; those are recovered by other workers as from a crash. */
#include <signal.h>
#include <string.h>
#include <unistd.h>

#include "worker/cli/cli.h"
#include "worker/daemon/internal.h"
#include "worker/daemon/log.h"
#include "worker/daemon/notify.h"

#define AFTER_DRAIN_MS 5000 /* for cancelled lanes to come back and for commits to reach Redis */

void w__drain_begin(struct w_daemon *d) {
    if (d->life >= W_DRAINING) return;
    d->life = W_DRAINING;
    d->drain_until_ms = w__now_ms(d) + (uint64_t)d->config->drain_ms;
    d->exit_at_ms = d->drain_until_ms + AFTER_DRAIN_MS;
    w_notify("STOPPING=1\nSTATUS=draining: %zu jobs in hand", d->n_tasks);
    w_log(W_NOTICE, "drain", "jobs=%zu waiting=%zu ms_max=%jd", d->n_tasks, d->n_waiting,
          (intmax_t)d->config->drain_ms);
    q_worker_want(d->queue, 0);
    q_worker_drain(d->queue);
    for (struct w_task *t = d->tasks, *next; t; t = next) {
        next = t->next;
        bool runs = t->place == W_AT_LANE || (t->place == W_AT_TIMER && t->desc->harmless);
        if (!runs) w__task_stop(t, W_STOP_HANDBACK);
    }
    w__again(d);
}

static void leave_behind(struct w_daemon *d) {
    if (d->n_tasks)
        w_log(W_ERROR, "drain_incomplete", "jobs=%zu advice=\"other workers take them over\"",
              d->n_tasks);
    for (int i = 0; i < d->lanes.n; i++)
        if (d->lanes.lanes[i].busy)
            _exit(d->exit_code ? d->exit_code : W_EXIT_FAILED); /* a thread cannot be taken back */
    d->exit_code = W_EXIT_FAILED;
    d->queue_drained = true;
}

void w__drain_tick(struct w_daemon *d) {
    if (d->life != W_DRAINING) return;
    uint64_t now = w__now_ms(d);
    if (now >= d->drain_until_ms) w__tasks_stop_all(d, W_STOP_HANDBACK, true, NULL, NULL);
    if (now >= d->exit_at_ms || w__only_lost_lanes(d)) leave_behind(d);
}

/* --- settings --------------------------------------------------------------------------------- */

void w__tunables_from(struct w_tunables *dst, const struct w_config *c) {
    *dst = (struct w_tunables){c->batch_rows_max, c->batch_bytes_max, c->batch_delay_ms,
                               c->job_timeout_ms, c->lane_limit_ms};
}

static void say_key(void *ctx, const char *key, bool reloads) {
    (void)ctx;
    if (reloads)
        w_log(W_NOTICE, "setting_reloaded", "key=%s", key);
    else
        w_log(W_WARN, "setting_not_reloaded", "key=%s advice=\"it takes a restart\"", key);
}

static void reload(struct w_daemon *d) {
    struct w_config fresh;
    char err[600], quoted[800];
    w_notify_reloading();
    if (w_config_reload(d->config, &fresh, say_key, NULL, err, sizeof err) != 0) {
        w_log(W_ERROR, "reload_failed", "error=%s", w_log_quote(err, quoted, sizeof quoted));
    } else {
        w__tunables_from(&d->tune, &fresh);
        atomic_store(&d->lanes.rows_max, d->tune.batch_rows_max);
        w_store_tune(d->store, (uint32_t)fresh.models_poll_ms, (uint64_t)fresh.models_bytes_max);
        w_log_init(w_log_level_parse(fresh.log_level));
        w_log(W_NOTICE, "reloaded", "file=%s", fresh.config_file ? fresh.config_file : "");
    }
    w_config_finish(&fresh);
    w_notify("READY=1");
}

void w__on_signal(uv_signal_t *handle, int number) {
    struct w_daemon *d = handle->data;
    if (number == SIGHUP) {
        reload(d);
        return;
    }
    if (++d->n_terms == 1) {
        w__drain_begin(d);
    } else if (d->life == W_DRAINING) {
        w_log(W_NOTICE, "drain_now", "jobs=%zu", d->n_tasks);
        d->drain_until_ms = w__now_ms(d);
        d->exit_at_ms = d->drain_until_ms + AFTER_DRAIN_MS;
    }
    w__again(d);
}
