#include "queue/lease.h"

#include <stdlib.h>

/* --- draining */

void q_worker_drain(struct q_worker *w) {
    w->draining = true;
    q__worker_check_drained(w);
}

static void on_drained_tick(uv_timer_t *t) {
    struct q_worker *w = t->data;
    if (w->opt.on.drained && !w->closing) w->opt.on.drained(w->opt.on.ctx);
}

void q__worker_check_drained(struct q_worker *w) {
    if (!w->draining || w->drained_said || w->closing) return;
    for (size_t i = 0; i < w->n_queues; i++)
        if (w->queue[i].n_jobs || w->queue[i].turns || w->queue[i].asked) return;
    w->drained_said = true;
    uv_timer_start(&w->due, on_drained_tick, 0, 0); /* never inside a call of the caller's */
}

static void free_worker(struct q_worker *w) {
    void (*closed)(void *) = w->closed;
    void *ctx = w->closed_ctx;
    for (size_t i = 0; i < w->n_queues; i++) {
        struct q__queue *q = &w->queue[i];
        while (q->jobs) {
            struct q_job *job = &q->jobs->job;
            free(q->jobs->item.envelope);
            q__job_unlink(job);
            q__job_free(job);
        }
        q__slot_forget(q);
        for (size_t k = 0; k < w->pulse.queue[i].n_orders; k++) free(w->pulse.queue[i].orders[k]);
        free(w->pulse.queue[i].orders);
    }
    for (unsigned i = 0; i < w->pulse.n_log; i++) free(w->pulse.log[i]);
    free(w->pulse.card);
    q__admit_drop(w);
    q__endpoint_finish(&w->endpoint);
    q__args_finish(&w->args);
    pthread_mutex_destroy(&w->pulse.lock);
    free(w->queue);
    free(w->name);
    free(w);
    if (closed) closed(ctx);
}

void q__worker_keep(struct q_worker *w) {
    w->closing_left++;
}

void q__worker_release(struct q_worker *w) {
    if (--w->closing_left == 0 && w->closing) free_worker(w);
}

static void on_part_closed(void *ctx) {
    q__worker_release(ctx);
}

void q__worker_handle_closed(uv_handle_t *h) {
    on_part_closed(h->data);
}

static void close_connections(struct q_worker *w) {
    w->closing_left++;
    q__conn_close(w->cmd, on_part_closed, w);
    w->cmd = NULL;
}

/* Last words to Redis; the command connection goes when the last one is answered, or at once. */
struct farewell {
    struct q_worker *w;
    unsigned left;
};

static void on_retired(void *ctx, redisReply *r, const struct q_error *err) {
    struct farewell *f = ctx;
    (void)r;
    (void)err;
    if (--f->left) return;
    struct q_worker *w = f->w;
    free(f);
    close_connections(w);
    on_part_closed(w);
}

static bool retire(struct q__queue *q, struct farewell *f) {
    struct q__args *a = &q->w->args;
    static const char *const lists[] = {"land:", "landh:", "landl:"};
    q__args_reset(a);
    q__args_key(a, q->name, "hb", NULL);
    q__args_key(a, q->name, "a:", q->wid);
    for (int i = 0; i < 3; i++) q__args_key(a, q->name, lists[i], q->wid);
    q__args_key(a, q->name, "in", NULL);
    q__args_key(a, q->name, "in:hi", NULL);
    q__args_key(a, q->name, "in:lo", NULL);
    q__args_key(a, q->name, "w:", q->wid);
    q__args_key(a, q->name, "gone", NULL);
    for (unsigned i = 0; i < Q__SLOTS; i++) q__slot_key(a, q, i);
    q__args_text(a, q->wid);
    q__args_int(a, q_worker_now_ms(q->w));
    return q__conn_script(q->w->cmd, Q__SCRIPT_retire, 10 + Q__SLOTS, a, on_retired, f);
}

/* closing_left counts what still has to end: late answers (q__worker_keep), three handles, the
 * farewell, the heartbeat, and what these close in turn. */
void q_worker_close(struct q_worker *w, void (*done)(void *ctx), void *ctx) {
    q__assert(!w->closing);
    w->closing = true;
    w->closed = done;
    w->closed_ctx = ctx;
    w->closing_left += 5;
    uv_close((uv_handle_t *)&w->prepare, q__worker_handle_closed);
    uv_close((uv_handle_t *)&w->tick, q__worker_handle_closed);
    uv_close((uv_handle_t *)&w->due, q__worker_handle_closed);
    for (size_t i = 0; i < w->n_queues; i++)
        for (int k = 0; k < 3; k++)
            if (w->queue[i].park[k].conn) {
                w->closing_left++;
                q__conn_close(w->queue[i].park[k].conn, on_part_closed, w);
                w->queue[i].park[k].conn = NULL;
            }
    if (w->beat)
        q__beat_stop(w);
    else
        uv_close((uv_handle_t *)&w->async, q__worker_handle_closed); /* stands for the heartbeat */
    struct farewell *f = calloc(1, sizeof *f);
    if (!f) {
        close_connections(w);
        w->closing_left--;
        return;
    }
    f->w = w;
    f->left = 1;
    for (size_t i = 0; i < w->n_queues && w->connected; i++) f->left += retire(&w->queue[i], f);
    on_retired(f, NULL, NULL);
}
