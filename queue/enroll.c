/* enroll.c: logging in, and losing the lease.
 *
 * After each connection: INFO (will this server do? which is it?) and TIME, then every queue
 * enrolls its worker id (wid), a name in T:hb. Whoever is not in T:hb owns nothing: then everything
 * in the caller's hands is fenced, a new wid is taken and enrolled. A wid is never enrolled twice,
 * so one that was taken out by a reaper stays out. The card that it leaves names its connection and
 * the run of the server, so that others can tell at once when it dies, before its first beat too
 * (reap.c). Thread: the loop's. */
#include "queue/lease.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void setup(struct q_worker *w);

/* --- wids and fencing */

static void pulse_wid(struct q__queue *q) {
    struct q__pulse *pulse = &q->w->pulse;
    pthread_mutex_lock(&pulse->lock);
    snprintf(pulse->queue[q->index].wid, sizeof pulse->queue[q->index].wid, "%s",
             q->enrolled ? q->wid : "");
    pthread_mutex_unlock(&pulse->lock);
}

static void next_wid(struct q__queue *q) {
    snprintf(q->wid, sizeof q->wid, "%s.%u", q->w->uuid, ++q->wid_n);
    q->enrolled = false;
    pulse_wid(q);
}

/* Everything owned under the old wid is lost to others. Held jobs stay with the caller until it
 * finishes them; the rest is freed here. */
void q__queue_fenced(struct q__queue *q, const char *why) {
    struct q_worker *w = q->w;
    char old[Q_WID_MAX + 1];
    snprintf(old, sizeof old, "%s", q->wid);
    next_wid(q);
    for (struct q_job_priv *p = q->jobs; p; p = p->next) p->job.fenced = true;
    q__slot_forget(q);
    while (q->pending) {
        struct q__item *item = q->pending;
        q->pending = item->next;
        q->n_pending--;
        w->stats.fenced++;
        free(item->envelope);
        q__job_unlink(item->job);
        q__job_free(item->job);
    }
    q->pending_end = &q->pending;
    for (int k = 0; k < 3;
         k++) /* they land for the old wid; what lands all the same is found through T:gone */
        if (q->park[k].parked) q__conn_drop(q->park[k].conn, Q_FENCED, "the lease was lost");
    q__worker_log(w, 4, "fenced queue=%s wid=%s why=\"%s\"", q->name, old, why);
    if (w->opt.on.fenced) w->opt.on.fenced(w->opt.on.ctx, q->name, why);
    if (q__conn_ready(w->cmd)) setup(w); /* enrolls the new wid */
    q__worker_check_drained(w);
}

/* --- logging in: INFO, TIME, then enroll every queue */

static void settled(struct q_worker *w) {
    if (--w->setup_left || !q__conn_ready(w->cmd)) return;
    for (size_t i = 0; i < w->n_queues; i++)
        if (!w->queue[i].enrolled) return;
    bool first = !w->connected;
    w->connected = true;
    char clients[160] = "";
    snprintf(clients, sizeof clients, "%lld", (long long)q__conn_client_id(w->cmd));
    pthread_mutex_lock(&w->pulse.lock);
    strcpy(w->pulse.clients, clients);
    pthread_mutex_unlock(&w->pulse.lock);
    for (size_t i = 0; i < w->n_queues; i++) {
        struct q__queue *q = &w->queue[i];
        q->maybe_more = q->land_dirty = true;
        pulse_wid(q);
        if (first && q->n_jobs)
            q__turn_reconcile(q); /* replies may have been lost */
        else if (first)
            q->mismatches = 0;
    }
    q__last_words_ready(w);
    q__beat_wake(w);
    q__admit_stalled(w);
    if (first && w->opt.on.connected) w->opt.on.connected(w->opt.on.ctx, w->endpoint.where);
}

static void on_enrolled(void *ctx, redisReply *r, const struct q_error *err) {
    struct q__queue *q = ctx;
    struct q_worker *w = q->w;
    bool fresh = !q->enrolled;
    q->enrolling = false;
    if (!r || err->code != Q_OK) {
        if (r && !w->closing) q__conn_drop(w->cmd, err->code, err->text);
        return;
    }
    if (q__reply_int(r, 0) == 0 && !fresh) {
        q__queue_fenced(q, "another worker took over while this one was away");
        return;
    }
    q->enrolled = true;
    settled(w);
}

static void enroll(struct q__queue *q) {
    struct q_worker *w = q->w;
    struct q__args *a = &w->args;
    char client[24];
    client[q__digits(client, q__conn_client_id(w->cmd))] = 0;
    const char *const card[][2] = {{"name", w->name},
                                   {"host", w->host},
                                   {"version", QUERN_VERSION},
                                   {"clients", client},
                                   {"run_id", w->run_id}};
    q__args_reset(a);
    q__args_key(a, q->name, "hb", NULL);
    q__args_key(a, q->name, "w:", q->wid);
    q__args_key(a, q->name, "cfg", NULL);
    q__args_key(a, q->name, "fence", NULL);
    q__args_text(a, q->wid);
    q__args_text(a, q->enrolled ? "0" : "1");
    q__args_text(a, w->replid);
    for (size_t i = 0; i < Q__COUNT(card); i++) {
        q__args_text(a, card[i][0]);
        q__args_text(a, card[i][1]);
    }
    q__args_text(a, "pid");
    q__args_int(a, (int64_t)getpid());
    q__args_text(a, "lanes");
    q__args_int(a, w->opt.lanes);
    q__args_text(a, "started_ms");
    q__args_int(a, w->started_ms);
    q->enrolling = q__conn_script(w->cmd, Q__SCRIPT_enroll, 4, a, on_enrolled, q);
    const char *argv[] = {"SADD", "quern:queues", q->name};
    const size_t len[] = {4, 12, strlen(q->name)};
    q__conn_send(w->cmd, 3, argv, len, 0, NULL, NULL);
}

static void setup(struct q_worker *w) {
    w->setup_left = 0;
    for (size_t i = 0; i < w->n_queues; i++)
        if (!w->queue[i].enrolling) enroll(&w->queue[i]);
    for (size_t i = 0; i < w->n_queues; i++) w->setup_left += w->queue[i].enrolling;
}

static void on_info(void *ctx, redisReply *r, const struct q_error *err) {
    struct q_worker *w = ctx;
    char policy[32], role[16], max[24], aof[8], version[32];
    if (!r || w->closing) return;
    if (err->code == Q_OK && q__reply_text(r)) {
        q__info_field(r->str, "master_replid", w->replid, sizeof w->replid);
        q__info_field(r->str, "run_id", w->run_id, sizeof w->run_id);
        q__info_field(r->str, "maxmemory_policy", policy, sizeof policy);
        q__info_field(r->str, "maxmemory", max, sizeof max);
        q__info_field(r->str, "role", role, sizeof role);
        q__info_field(r->str, "aof_enabled", aof, sizeof aof);
        q__info_field(r->str, "redis_version", version, sizeof version);
        if (strcmp(role, "slave") == 0) {
            q__conn_drop(w->cmd, Q_UNREACHABLE, "this Redis is a replica; jobs need the primary");
            return;
        }
        w->refused = policy[0] && strcmp(policy, "noeviction") != 0 && strcmp(max, "0") != 0 &&
                     !w->opt.allow_eviction;
        if (w->refused) {
            char text[256];
            snprintf(text, sizeof text,
                     "this Redis evicts keys when it is full (maxmemory-policy is %s, expected "
                     "noeviction): "
                     "jobs would vanish; change it, or allow eviction in the worker's options",
                     policy);
            q__conn_drop(w->cmd, Q_BAD_OPTION, text);
            return;
        }
        if (!w->stats.reconnects)
            q__worker_log(w, 6, "redis version=%s persistence=\"%s\"", version,
                          strcmp(aof, "1") == 0
                              ? "AOF: a crash loses what was not synced yet"
                              : "no AOF: a crash loses everything since the last snapshot");
    }
    setup(w);
}

static void on_time(void *ctx, redisReply *r, const struct q_error *err) {
    struct q_worker *w = ctx;
    int64_t s = q__reply_int(q__reply_at(r, 0), 0);
    if (err->code != Q_OK || s == 0) return;
    int64_t ms = s * 1000 + q__reply_int(q__reply_at(r, 1), 0) / 1000;
    atomic_store(&w->clock_offset_ms, ms - (int64_t)q__worker_ms(w));
    atomic_store(&w->clock_known, true);
    if (!w->started_ms) w->started_ms = ms;
}

void q__enroll_ready(void *ctx, struct q__conn *c) {
    struct q_worker *w = ctx;
    w->setup_left = 0;
    for (size_t i = 0; i < w->n_queues; i++) w->queue[i].enrolling = false;
    q__conn_words(c, "TIME", on_time, w);
    q__conn_words(c, "INFO", on_info, w);
}

void q__enroll_lost(void *ctx, struct q__conn *c, const struct q_error *why, uint32_t retry_ms) {
    struct q_worker *w = ctx;
    (void)c;
    w->connected = false;
    w->last_words_fd = -1;
    w->stats.reconnects++;
    for (size_t i = 0; i < w->n_queues; i++) w->queue[i].land_dirty = true;
    if (w->opt.on.lost && !w->closing) w->opt.on.lost(w->opt.on.ctx, why, retry_ms);
}
