/* slot.c: large entries change hands without passing through Lua.
 *
 * A script that pops an entry makes a Lua string of it, hashes every byte, and makes another with
 * the header in front: 2 ms of the server for 800 KB, of 2.4 ms that such a job costs it in all;
 * moved by LMOVE it is 0.35 ms (Redis 7.0.15). So once a queue has met a large entry, claims go
 * this way: LMOVE from the inbox into a slot, the list T:slot:<wid>:<n>, which also brings the
 * bytes here; then a turn asks to own what landed. It puts a mark (@<wid>) in front of the entry
 * and `@<n><header>` where the entry would stand in T:a:<wid>. The end of the job trims the slot.
 * Small entries stay with the batched claim; after some small ones in a row the queue goes back to
 * it. What a blocking read landed moves on into a slot the same way.
 *
 * Length and mark tell all about a slot: one entry and no mark has landed and is nobody's; mark and
 * entry are owned. A turn owns only where it finds exactly one entry: so neither a repeated turn
 * nor an LMOVE that came late can make two jobs of one entry, or lose one. What is not wanted any
 * more, or in doubt after a lost reply, is swept by the next turn: claimed the ordinary way or put
 * back. Reapers and retiring workers put back what nobody owned, without counting a crash; the
 * crash count of what was owned is in its field's header.
 *
 * LMOVE is refused on a full Redis: then claims go the ordinary way, which needs no memory. Rare
 * ways out (hand-back, delay, dead letter, reap) still pass through Lua. Thread: the loop's. */
#include "queue/lease.h"

#include <stdlib.h>
#include <string.h>

enum { SMALL_IN_A_ROW = 16, DRY_MS = 20 };

static const char *const inboxes[] = {"in", "in:hi", "in:lo"}, *const lands[] = {
                                                                   "land:", "landh:", "landl:"};
static const char flags[][2] = {"", "h", "l"};
static const int weight_of[] = {1, 0, 2}; /* in weight_in and inbox_credit */

void q__args_slot(struct q__args *a, const char *queue, const char *wid, unsigned n) {
    char rest[Q_WID_MAX + 16];
    size_t len = strlen(wid);
    memcpy(rest, wid, len);
    rest[len++] = ':';
    rest[len + q__digits(rest + len, n)] = 0;
    q__args_key(a, queue, "slot:", rest);
}

void q__slot_key(struct q__args *a, const struct q__queue *q, unsigned n) {
    q__args_slot(a, q->name, q->wid, n);
}

bool q__slot_marker(const char *text, size_t len, unsigned *n, struct q__header *h) {
    size_t i = 1;
    if (len < 2 || text[0] != '@') return false;
    for (*n = 0; i < len && i < 4 && text[i] >= '0' && text[i] <= '9'; i++)
        *n = *n * 10 + (unsigned)(text[i] - '0');
    size_t header = q__header_parse(h, text + i, len - i);
    return i > 1 && *n < Q__SLOTS && header && header != SIZE_MAX;
}

void q__slot_met(struct q__queue *q, size_t entry_len) {
    if (entry_len >= Q__LARGE_BYTES)
        q->large = SMALL_IN_A_ROW;
    else if (q->large)
        q->large--;
}

static void drop(struct q__slot *slot, enum q__slot_state state) {
    free(slot->bytes);
    slot->bytes = NULL;
    slot->state = state;
}

/* The next turn sweeps it. */
static void doubt(struct q__queue *q, unsigned n) {
    drop(&q->slot[n], Q__SLOT_DOUBT);
    q->doubt = q->land_dirty = true;
}

/* --- from a list into a slot */

struct move {
    struct q__queue *queue;
    unsigned n;
    bool from_land;
    char wid[Q_WID_MAX + 1];
};

static void landed(struct q__queue *q, unsigned n, redisReply *r) {
    struct q__slot *slot = &q->slot[n];
    slot->bytes = r->str;
    slot->len = r->len;
    r->str = NULL;
    slot->state = Q__SLOT_LANDED;
    q->n_landed++;
    q__slot_met(q, slot->len);
    size_t header = q__header_parse(&slot->header, slot->bytes, slot->len);
    if (header == 0 ||
        header == SIZE_MAX) /* a producer's; what only looks like a header is its mistake */
        slot->header = (struct q__header){
            .queued_ms = q_worker_now_ms(q->w), .inbox = flags[n % 3][0], .ticket = -1};
}

static void on_moved(void *ctx, redisReply *r, const struct q_error *err) {
    struct move *m = ctx;
    struct q__queue *q = m->queue;
    struct q__slot *slot = &q->slot[m->n];
    bool current = strcmp(m->wid, q->wid) == 0; /* else its slots are others' by now */
    bool from_land = m->from_land;
    unsigned n = m->n;
    free(m);
    if (current && r && err->code == Q_OK && q__reply_text(r) && !q->w->closing) {
        landed(q, n, r);
        return;
    }
    q->asked--;
    if (!current || q->w->closing) {
        q__worker_check_drained(q->w);
        return;
    }
    slot->state = Q__SLOT_FREE;
    if (!r)
        doubt(q, n);
    else if (from_land)
        q->land_dirty = true; /* refused, or a turn was faster */
    else if (err->code == Q_OK)
        q->dry_ms[n % 3] = q__worker_ms(q->w) + DRY_MS;
    else { /* full, perhaps: the ordinary claim will tell */
        q->large = 0;
        q->maybe_more = true;
        if (err->code != Q_FULL) q->not_before_ms = q__worker_ms(q->w) + 50;
    }
    q__worker_check_drained(q->w);
}

static bool send_for(struct q__queue *q, unsigned n, bool from_land) {
    struct q__args *a = &q->w->args;
    struct move *m = calloc(1, sizeof *m);
    if (!m) return false;
    m->queue = q;
    m->n = n;
    m->from_land = from_land;
    strcpy(m->wid, q->wid);
    q__args_reset(a);
    q__args_text(a, "LMOVE");
    if (from_land)
        q__args_key(a, q->name, lands[n % 3], q->wid);
    else
        q__args_key(a, q->name, inboxes[n % 3], NULL);
    q__slot_key(a, q, n);
    q__args_text(a, "RIGHT");
    q__args_text(a, "LEFT");
    if (!q__conn_args(q->w->cmd, a, on_moved, m)) {
        free(m);
        return false;
    }
    q->slot[n].state = Q__SLOT_MOVING;
    q->asked++;
    return true;
}

static unsigned free_slot(const struct q__queue *q, unsigned inbox) {
    unsigned n = inbox;
    while (n < Q__SLOTS && q->slot[n].state != Q__SLOT_FREE) n += 3;
    return n;
}

bool q__slot_take_landed(struct q__queue *q, int inbox) {
    unsigned n = free_slot(q, (unsigned)inbox);
    return n < Q__SLOTS && q__queue_room(q) > 0 && q__conn_ready(q->w->cmd) && send_for(q, n, true);
}

/* The inboxes share by weight, but for those found empty a moment ago. */
uint32_t q__slot_pull(struct q__queue *q, uint32_t n) {
    uint64_t now = q__worker_ms(q->w);
    bool dry = true;
    for (unsigned k = 0; k < 3; k++) dry &= now < q->dry_ms[k];
    if (dry) q->maybe_more = false; /* blocking reads wait from here on */
    for (; n > 0; n--) {
        int best = -1;
        int32_t sum = 0;
        bool crowded = false;
        for (int k = 0; k < 3; k++) {
            if (now < q->dry_ms[k]) continue;
            if (free_slot(q, (unsigned)k) >= Q__SLOTS) {
                crowded = true;
                continue;
            }
            q->inbox_credit[weight_of[k]] += (int32_t)q->weight_in[weight_of[k]];
            sum += (int32_t)q->weight_in[weight_of[k]];
            if (best < 0 || q->inbox_credit[weight_of[k]] > q->inbox_credit[weight_of[best]])
                best = k;
        }
        if (best < 0) return crowded ? n : 0;
        if (!send_for(q, free_slot(q, (unsigned)best), false)) return 0;
        q->inbox_credit[weight_of[best]] -= sum;
    }
    return 0;
}

/* --- in a turn */

void q__slot_keys(struct q__queue *q, struct q__args *a, struct q__slot_turn *t, bool admit) {
    t->n_sweep = t->n_admit = 0;
    for (unsigned n = 0; n < Q__SLOTS && q->doubt; n++)
        if (q->slot[n].state == Q__SLOT_DOUBT) {
            q->slot[n].state = Q__SLOT_SWEPT;
            t->sweep[t->n_sweep++] = (uint8_t)n;
            q__slot_key(a, q, n);
        }
    q->doubt = false;
    for (unsigned n = 0; n < Q__SLOTS && admit && q->n_landed; n++)
        if (q->slot[n].state == Q__SLOT_LANDED) {
            q->slot[n].state = Q__SLOT_ASKED;
            q->n_landed--;
            t->admit[t->n_admit++] = (uint8_t)n;
            q__slot_key(a, q, n);
        }
}

void q__slot_words(struct q__queue *q, struct q__args *a, const struct q__slot_turn *t) {
    for (unsigned i = 0; i < t->n_sweep; i++) q__args_text(a, flags[t->sweep[i] % 3]);
    for (unsigned i = 0; i < t->n_admit; i++) {
        char marker[Q__MARKER_MAX] = "@";
        size_t len = 1 + q__digits(marker + 1, t->admit[i]);
        len += q__header_write(&q->slot[t->admit[i]].header, marker + len);
        q__args_copy(a, marker, len);
    }
}

void q__slot_turned(struct q__queue *q, const struct q__slot_turn *t, const char *said,
                    size_t n_said, uint64_t token, bool cancels) {
    struct q_job *jobs[Q__SLOTS];
    size_t n_jobs = 0;
    bool orphan = false;
    if (said && n_said != (size_t)t->n_sweep + t->n_admit) said = NULL;
    for (unsigned i = 0; i < t->n_sweep; i++) {
        struct q__slot *slot = &q->slot[t->sweep[i]];
        if (slot->state != Q__SLOT_SWEPT) continue; /* adopted meanwhile */
        if (said)
            slot->state = said[i] == '2' ? Q__SLOT_OWNED : Q__SLOT_FREE;
        else
            doubt(q, t->sweep[i]);
        orphan |= slot->state == Q__SLOT_OWNED;
    }
    for (unsigned i = 0; i < t->n_admit; i++) {
        struct q__slot *slot = &q->slot[t->admit[i]];
        if (!said || said[t->n_sweep + i] != '1') {
            doubt(q, t->admit[i]);
            continue;
        }
        struct q__origin origin = {t->admit[i], slot->header};
        char *bytes = slot->bytes;
        slot->bytes = NULL;
        slot->state = Q__SLOT_OWNED;
        struct q_job *job = q__turn_take(q, bytes, slot->len, token++, &origin);
        if (job) jobs[n_jobs++] = job;
    }
    if (n_jobs) q__admit(q, jobs, n_jobs, cancels);
    if (orphan) q__turn_reconcile(q); /* its turn happened, the answer was lost */
}

/* --- ends */

void q__slot_return(struct q__queue *q) {
    for (unsigned n = 0; n < Q__SLOTS && q->n_landed; n++)
        if (q->slot[n].state == Q__SLOT_LANDED) {
            doubt(q, n);
            q->n_landed--;
            q->asked--;
        }
}

void q__slot_forget(struct q__queue *q) {
    for (struct q_job_priv *p = q->jobs; p; p = p->next) p->slot = 0;
    q->asked -= q->n_landed;
    q->n_landed = 0;
    for (unsigned n = 0; n < Q__SLOTS; n++) drop(&q->slot[n], Q__SLOT_FREE);
}

void q__slot_release(struct q_job *job) {
    struct q_job_priv *p = job->priv;
    if (p->slot && p->queue->slot[p->slot - 1].state == Q__SLOT_OWNED)
        p->queue->slot[p->slot - 1].state = Q__SLOT_FREE;
    p->slot = 0;
}
