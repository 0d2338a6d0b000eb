/* orders.c: what clients ask with a plain LPUSH to T:ctlq (operators need no script rights for
 * that):
 *   {"cmd":"cancel","id":"…"}  {"cmd":"retry","id":"…"}  {"cmd":"requeue","id":"…"} {"cmd":"pause"}
 * {"cmd":"resume"} Whichever worker's heartbeat comes first takes them. */
#include "queue/json.h"
#include "queue/lease.h"

#include <string.h>

struct order {
    char cmd[16], id[Q_ID_MAX + 1];
};

static bool on_member(void *ctx, const struct q__json_value *key, const struct q__json_value *v) {
    struct order *o = ctx;
    bool cmd = q__json_key_is(key, "cmd"), id = q__json_key_is(key, "id");
    if ((!cmd && !id) || v->type != Q__JSON_STRING) return true;
    size_t room = cmd ? sizeof o->cmd - 1 : sizeof o->id - 1;
    if (v->span.len > room) return false;
    char *dst = cmd ? o->cmd : o->id;
    dst[q__json_unescape(v, dst)] = 0;
    return true;
}

static void cancel(struct q__queue *q, const char *id) {
    struct q__args *a = &q->w->args;
    q__args_reset(a);
    q__args_text(a, "HSET");
    q__args_key(a, q->name, "cx", NULL);
    q__args_text(a, id);
    q__args_int(a, q_worker_now_ms(q->w));
    q__conn_args(q->w->cmd, a, NULL, NULL);
}

static void requeue(struct q__queue *q, const char *id) {
    static const char *const keys[] = {"del", "delb", "dead", "deadb", "in", "in:hi", "in:lo"};
    struct q__args *a = &q->w->args;
    q__args_reset(a);
    for (size_t i = 0; i < Q__COUNT(keys); i++) q__args_key(a, q->name, keys[i], NULL);
    q__args_key(a, q->name, "r:", id);
    q__args_key(a, q->name, "s:", id);
    q__args_key(a, q->name, "cx", NULL);
    q__args_text(a, id);
    q__conn_script(q->w->cmd, Q__SCRIPT_requeue, 10, a, NULL, NULL);
}

static void pause_queue(struct q__queue *q, bool paused) {
    struct q__args *a = &q->w->args;
    q__args_reset(a);
    q__args_text(a, "HSET");
    q__args_key(a, q->name, "cfg", NULL);
    q__args_text(a, "paused");
    q__args_text(a, paused ? "1" : "0");
    q__conn_args(q->w->cmd, a, NULL, NULL);
    q->paused = paused;
    q->maybe_more = true;
}

void q__order(struct q__queue *q, const char *text) {
    struct order o = {0};
    bool ok = q__json_object(text, strlen(text), 4, NULL, on_member, &o, NULL) == Q_OK;
    bool needs_id = strcmp(o.cmd, "cancel") == 0 || strcmp(o.cmd, "retry") == 0 ||
                    strcmp(o.cmd, "requeue") == 0;
    if (!ok || (needs_id && !q_id_valid(o.id, strlen(o.id))))
        q__worker_log(q->w, 4, "order refused queue=%s: not {\"cmd\":…,\"id\":…}", q->name);
    else if (strcmp(o.cmd, "cancel") == 0)
        cancel(q, o.id);
    else if (needs_id)
        requeue(q, o.id);
    else if (strcmp(o.cmd, "pause") == 0 || strcmp(o.cmd, "resume") == 0)
        pause_queue(q, o.cmd[0] == 'p');
    else
        q__worker_log(
            q->w, 4,
            "order refused queue=%s cmd=%s: expected cancel, retry, requeue, pause or resume",
            q->name, o.cmd);
}
