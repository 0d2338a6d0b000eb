/* reap.c: every worker watches the others and takes over from the dead.
 *
 * A beat is a counter in T:hb; its owner counts it up, the watchers look at it on their own
 * monotonic clock. Nobody's wall clock takes part. A counter that stands still for a lease means
 * dead. One that stands still for a good beat may mean dead: then the server is asked whether any
 * connection of that worker is left (CLIENT LIST ID over the ids on its card). None: dead, found in
 * little over a beat. After a start of the server nobody's connections are there and ids begin anew,
 * so that shortcut is for cards that name this run of the server (run_id, from enrolment on), for
 * those that were seen beating on it, and for all once it has been up for a while; where an ACL
 * refuses CLIENT LIST, only the lease counts.
 *
 * Judging and taking are two steps apart in time, so taking is a compare-and-swap on the counter
 * (reap.lua): whoever beats in between keeps its work. A wid that was taken out stays in T:gone for
 * ten minutes and is looked at again: a blocking read of a machine that vanished may land a job
 * there seconds later.
 *
 * Up to 64 random workers are looked at a time, so that a thousand workers do not ask each about
 * all. Thread: the heartbeat's. */
#include "queue/lease.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { LOOK_AT = 64, REAP_AT_ONCE = 100, SWEEP_MS = 10000, GONE_MS = 600000 };

enum q__verdict q__peer_judge(const struct q__peer *p, uint64_t now_ms, uint64_t connected_ms,
                              uint32_t beat_ms, uint32_t lease_ms) {
    uint64_t since = p->since_ms > connected_ms ? p->since_ms : connected_ms;
    uint64_t still = now_ms > since ? now_ms - since : 0;
    if (still >= lease_ms) return Q__DEAD;
    return still >= beat_ms + beat_ms / 10 ? Q__SUSPECT : Q__ALIVE;
}

struct question {
    struct q__reaper *reaper;
    char wid[Q_WID_MAX + 1];
    char counter[24]; /* "": it is gone from hb already */
    int64_t moved, gone_ms;
    const char *how;
};

static struct q__peer *find(struct q__reaper *r, const char *wid) {
    for (size_t i = 0; i < r->n_peers; i++)
        if (strcmp(r->peer[i].wid, wid) == 0) return &r->peer[i];
    return NULL;
}

static void forget(struct q__reaper *r, const char *wid) {
    struct q__peer *p = find(r, wid);
    if (p) *p = r->peer[--r->n_peers];
}

static void release(struct question *ask) {
    struct q__peer *p = find(ask->reaper, ask->wid);
    if (p) p->asking = false;
    free(ask);
}

/* --- taking over */

static bool reap(struct question *ask);

static void forget_gone(struct q__reaper *r, const char *wid) {
    q__args_reset(&r->args);
    q__args_text(&r->args, "ZREM");
    q__args_key(&r->args, r->queue, "gone", NULL);
    q__args_text(&r->args, wid);
    q__conn_args(r->conn, &r->args, NULL, NULL);
}

static void on_reaped(void *ctx, redisReply *r, const struct q_error *err) {
    struct question *ask = ctx;
    struct q__reaper *reaper = ask->reaper;
    int64_t moved = q__reply_int(q__reply_at(r, 0), -1), left = q__reply_int(q__reply_at(r, 1), 0);
    if (!r || err->code != Q_OK || moved < 0) {
        release(ask);
        return;
    }
    ask->moved += moved;
    ask->counter[0] = 0; /* it is out of hb now; the rest needs no comparison */
    if (left > 0 && reap(ask)) return;
    if (!ask->gone_ms || ask->moved)
        reaper->recovered(reaper->ctx, reaper->queue, ask->wid, ask->moved, ask->how);
    else if (q_worker_now_ms(reaper->w) - ask->gone_ms > GONE_MS)
        forget_gone(reaper, ask->wid);
    forget(reaper, ask->wid);
    free(ask);
}

static bool reap(struct question *ask) {
    struct q__reaper *r = ask->reaper;
    static const char *const lands[] = {"land:", "landh:", "landl:"}, *const lists[] = {
                                                                          "in", "in:hi", "in:lo",
                                                                          "redo"};
    struct q__args *a = &r->args;
    q__args_reset(a);
    q__args_key(a, r->queue, "hb", NULL);
    q__args_key(a, r->queue, "a:", ask->wid);
    for (size_t i = 0; i < Q__COUNT(lands); i++) q__args_key(a, r->queue, lands[i], ask->wid);
    for (size_t i = 0; i < Q__COUNT(lists); i++) q__args_key(a, r->queue, lists[i], NULL);
    q__args_key(a, r->queue, "w:", ask->wid);
    q__args_key(a, r->queue, "gone", NULL);
    q__args_key(a, r->queue, "cx", NULL);
    for (unsigned i = 0; i < Q__SLOTS; i++) q__args_slot(a, r->queue, ask->wid, i);
    q__args_text(a, ask->wid);
    q__args_text(a, ask->counter);
    q__args_int(a, REAP_AT_ONCE);
    q__args_int(a, q_worker_now_ms(r->w));
    return q__conn_script(r->conn, Q__SCRIPT_reap, 12 + Q__SLOTS, a, on_reaped, ask);
}

/* --- is anything of it still connected? */

static void on_clients(void *ctx, redisReply *r, const struct q_error *err) {
    struct question *ask = ctx;
    if (r && err->code != Q_OK)
        ask->reaper->no_client_list = true; /* refused, or too old a server */
    bool none = r && err->code == Q_OK && q__reply_text(r) && !strstr(r->str, "id=");
    if (!none || !reap(ask)) release(ask);
}

/* Do the connections on its card say anything? */
static bool card_counts(const struct q__reaper *r, const struct q__peer *p, const redisReply *run) {
    return (p && p->moved) || q__worker_ms(r->w) >= r->trust_ms ||
           (r->run_id[0] && q__reply_is(run, r->run_id));
}

static void on_card(void *ctx, redisReply *r, const struct q_error *err) {
    struct question *ask = ctx;
    const char *argv[16] = {"CLIENT", "LIST", "ID"};
    size_t len[16] = {6, 4, 2}, n = 3;
    const redisReply *clients = err->code == Q_OK ? q__reply_at(r, 0) : NULL;
    const char *p = q__reply_text(clients) && card_counts(ask->reaper, find(ask->reaper, ask->wid),
                                                          q__reply_at(r, 1))
                        ? clients->str
                        : "";
    while (*p && n < Q__COUNT(argv)) {
        size_t digits = strspn(p, "0123456789");
        if (digits == 0 || (digits == 1 && *p == '0'))
            break; /* a connection that does not know its id: no verdict */
        argv[n] = p;
        len[n++] = digits;
        p += digits;
        p += *p == ' ';
    }
    if (n == 3 || *p || !q__conn_send(ask->reaper->conn, n, argv, len, 0, on_clients, ask))
        release(ask);
}

static bool ask_card(struct question *ask) {
    struct q__reaper *r = ask->reaper;
    q__args_reset(&r->args);
    q__args_text(&r->args, "HMGET");
    q__args_key(&r->args, r->queue, "w:", ask->wid);
    q__args_text(&r->args, "clients");
    q__args_text(&r->args, "run_id");
    return q__conn_args(r->conn, &r->args, on_card, ask);
}

static void question(struct q__reaper *r, struct q__peer *p, enum q__verdict verdict) {
    struct question *ask = calloc(1, sizeof *ask);
    if (!ask) return;
    ask->reaper = r;
    ask->how = verdict == Q__DEAD ? "its lease ran out" : "none of its connections is left";
    snprintf(ask->wid, sizeof ask->wid, "%s", p->wid);
    snprintf(ask->counter, sizeof ask->counter, "%lld", (long long)p->counter);
    p->asking = verdict == Q__DEAD ? reap(ask) : ask_card(ask);
    if (!p->asking) free(ask);
}

/* --- looking */

struct looking {
    struct q__reaper *reaper;
    char own[Q_WID_MAX + 1];
};

static struct q__peer *remember(struct q__reaper *r, const char *wid, uint64_t now_ms) {
    struct q__peer *p = find(r, wid);
    if (p) return p;
    if (r->n_peers == r->cap_peers) {
        size_t cap = r->cap_peers ? r->cap_peers * 2 : 16;
        void *peer = realloc(r->peer, cap * sizeof *r->peer);
        if (!peer) return NULL;
        r->peer = peer;
        r->cap_peers = cap;
    }
    p = &r->peer[r->n_peers++];
    *p = (struct q__peer){.counter = -1, .since_ms = now_ms};
    snprintf(p->wid, sizeof p->wid, "%s", wid);
    return p;
}

static void on_look(void *ctx, redisReply *r, const struct q_error *err) {
    struct looking *look = ctx;
    struct q__reaper *reaper = look->reaper;
    uint64_t now = q__worker_ms(reaper->w);
    const struct q_worker_options *opt = &reaper->w->opt;
    for (size_t i = 0;
         r && err->code == Q_OK && r->type == REDIS_REPLY_ARRAY && i + 1 < r->elements; i += 2) {
        const redisReply *wid = r->element[i];
        if (!q__reply_text(wid) || wid->len > Q_WID_MAX || strcmp(wid->str, look->own) == 0)
            continue;
        struct q__peer *p = remember(reaper, wid->str, now);
        if (!p) break;
        int64_t counter = q__reply_int(r->element[i + 1], 0);
        if (counter != p->counter) {
            p->moved = p->counter >= 0;
            p->counter = counter;
            p->since_ms = now;
        }
        p->seen_ms = now;
        enum q__verdict v =
            q__peer_judge(p, now, reaper->connected_ms, opt->beat_ms, opt->lease_ms);
        if (!p->asking && (v == Q__DEAD || (v == Q__SUSPECT && !reaper->no_client_list)))
            question(reaper, p, v);
    }
    for (size_t i = 0; i < reaper->n_peers;) { /* those that left in peace */
        if (!reaper->peer[i].asking && now - reaper->peer[i].seen_ms > 4 * (uint64_t)opt->lease_ms)
            reaper->peer[i] = reaper->peer[--reaper->n_peers];
        else
            i++;
    }
    free(look);
}

static void on_gone(void *ctx, redisReply *r, const struct q_error *err) {
    struct q__reaper *reaper = ctx;
    for (size_t i = 0;
         r && err->code == Q_OK && r->type == REDIS_REPLY_ARRAY && i + 1 < r->elements; i += 2) {
        const redisReply *wid = r->element[i];
        struct question *ask =
            q__reply_text(wid) && wid->len <= Q_WID_MAX ? calloc(1, sizeof *ask) : NULL;
        if (!ask) continue;
        ask->reaper = reaper;
        ask->how = "it landed after its worker had gone";
        strcpy(ask->wid, wid->str);
        ask->gone_ms = q__reply_int(r->element[i + 1], 0);
        if (!reap(ask)) free(ask);
    }
}

void q__reaper_look(struct q__reaper *r, uint64_t now_ms, const char *own_wid) {
    struct q__args *a = &r->args;
    struct looking *look = calloc(1, sizeof *look);
    if (!look || !q__conn_ready(r->conn)) {
        free(look);
        return;
    }
    look->reaper = r;
    snprintf(look->own, sizeof look->own, "%s", own_wid);
    q__args_reset(a);
    q__args_text(a, "HRANDFIELD");
    q__args_key(a, r->queue, "hb", NULL);
    q__args_int(a, LOOK_AT);
    q__args_text(a, "WITHVALUES");
    if (!q__conn_args(r->conn, a, on_look, look)) free(look);
    if (now_ms - r->swept_ms < SWEEP_MS) return;
    r->swept_ms = now_ms;
    q__args_reset(a);
    q__args_text(a, "ZRANDMEMBER");
    q__args_key(a, r->queue, "gone", NULL);
    q__args_int(a, 16);
    q__args_text(a, "WITHSCORES");
    q__conn_args(r->conn, a, on_gone, r);
}

void q__reaper_finish(struct q__reaper *r) {
    free(r->peer);
    q__args_finish(&r->args);
}
