/* park.c: blocking reads while there is nothing to do: a job pushed to an idle worker starts at
 * once.
 *
 * Each inbox has its own connection, because BLMOVE waits on one list. The element lands in a list
 * of this worker's, not in this process: so it survives us, and the next turn takes it from there
 * (or, if there is no room any more, puts it back where it came from). Connections are opened when
 * first needed; BLMOVE ends by itself after Q__PARK_MS, and 3 s after that the connection is closed
 * hard.
 *
 * On a full Redis BLMOVE is refused (it may need memory): then turns poll instead, which do not
 * need any. Thread: the loop's. */
#include "queue/lease.h"

#include <string.h>

static const char *const inbox_names[] = {"in", "in:hi", "in:lo"};
static const char *const land_names[] = {"land:", "landh:", "landl:"};

static void on_ready(void *ctx, struct q__conn *c) {
    (void)ctx;
    (void)c; /* parked in the next prepare phase */
}

static void on_lost(void *ctx, struct q__conn *c, const struct q_error *why, uint32_t retry_ms) {
    struct q__park *park = ctx;
    (void)c;
    (void)why;
    (void)retry_ms;
    park->parked = false;
    park->queue->land_dirty = true;
}

static void on_moved(void *ctx, redisReply *r, const struct q_error *err) {
    struct q__park *park = ctx;
    struct q__queue *q = park->queue;
    bool dirty = q->land_dirty;
    park->parked = false;
    q->land_dirty = true; /* also where the reply was lost: it may have landed */
    if (!r) return;
    if (err->code == Q_FULL) {
        q->full = true;
        q->not_before_ms = q__worker_ms(q->w) + 20;
        q->maybe_more = true;
        q->land_dirty = false;
    } else if (err->code != Q_OK) {
        if (err->code != Q_TIMEOUT && !q->w->closing)
            q__conn_drop(park->conn, err->code, err->text); /* backs off */
    } else {
        q->full = false;
        if (q__reply_text(r)) q->maybe_more = true;
        if (!q__reply_text(r) ||
            (r->len >= Q__LARGE_BYTES && !q->w->draining && q__slot_take_landed(q, park->inbox)))
            q->land_dirty = dirty;
    }
}

static bool open_park(struct q__park *park) {
    struct q__conn_events on = {park, on_ready, on_lost};
    struct q_worker *w = park->queue->w;
    if (!park->conn)
        park->conn = q__conn_create(w->loop, &w->endpoint, inbox_names[park->inbox], &on);
    return park->conn && q__conn_ready(park->conn);
}

static void block(struct q__park *park) {
    struct q__queue *q = park->queue;
    char from[Q_QUEUE_NAME_MAX + 32], to[Q_QUEUE_NAME_MAX + Q_WID_MAX + 32], land[Q_WID_MAX + 16];
    size_t n = strlen(land_names[park->inbox]);
    memcpy(land, land_names[park->inbox], n);
    strcpy(land + n, q->wid);
    const char *argv[] = {"BLMOVE", from, to, "RIGHT", "LEFT", "4"};
    size_t len[] = {6,
                    q_key(from, sizeof from, q->name, inbox_names[park->inbox]),
                    q_key(to, sizeof to, q->name, land),
                    5,
                    4,
                    1};
    _Static_assert(Q__PARK_MS == 4000, "the timeout above is in seconds");
    park->parked =
        q__conn_send(park->conn, Q__COUNT(argv), argv, len, Q__PARK_MS + 3000, on_moved, park);
}

/* Idle: enrolled, with room, nothing under way and no reason to think that work waits. */
static bool idle(const struct q__queue *q) {
    const struct q_worker *w = q->w;
    return q->enrolled && !q->paused && !w->draining && !w->held && !q->maybe_more &&
           !q->land_dirty && q->turns == 0 && q__queue_room(q) > 0;
}

void q__park_all(struct q_worker *w) {
    for (size_t i = 0; i < w->n_queues; i++) {
        struct q__queue *q = &w->queue[i];
        if (!idle(q)) continue;
        for (int k = 0; k < 3; k++)
            if (open_park(&q->park[k]) && !q->park[k].parked) block(&q->park[k]);
    }
}
