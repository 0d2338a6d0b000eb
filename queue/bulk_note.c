/* bulk_note.c: what the tickets of a bulk job tell each other (shard_note.lua). Thread: the loop's.
 */
#include "queue/lease.h"

#include <stdlib.h>
#include <string.h>

struct call {
    struct q_worker *w;
    struct q_job *job;
    q_bulk_notes_fn *done;
    void *ctx;
    struct q_error err;
    uv_timer_t later; /* for an answer that must not come inside the call */
};

static void finish(struct call *c, const struct q_bulk_note *notes, size_t n) {
    if (!c->w->closing) c->done(c->ctx, c->job, notes, n, &c->err);
    free(c);
}

static void on_later_closed(uv_handle_t *h) {
    struct call *c = h->data;
    struct q_worker *w = c->w;
    finish(c, NULL, 0);
    q__worker_release(w);
}

static void on_notes(void *ctx, redisReply *r, const struct q_error *err) {
    struct call *c = ctx;
    struct q_bulk_note *notes = NULL;
    size_t n = 0, room = r && r->type == REDIS_REPLY_ARRAY ? r->elements / 2 : 0;
    c->err = *err;
    if (r && err->code == Q_OK && r->type != REDIS_REPLY_ARRAY)
        q__error(&c->err, Q_FENCED, "the ticket of job \"%s\" was lost", c->job->id);
    if (c->err.code == Q_OK && room && !(notes = calloc(room, sizeof *notes)))
        q__error(&c->err, Q_NO_MEMORY, "no memory for %zu notes", room);
    for (size_t i = 0; notes && i < room; i++) {
        const redisReply *text = r->element[2 * i + 1];
        int64_t grain = q__reply_int(r->element[2 * i], -1);
        if (grain < 0 || grain >= Q_BULK_GRAINS_MAX || !q__reply_text(text)) continue;
        notes[n++] = (struct q_bulk_note){(uint32_t)grain, text->str, text->len};
    }
    finish(c, notes, n);
    free(notes);
}

void q_bulk_note(struct q_worker *w, struct q_job *job, uint32_t grain, const char *text,
                 q_bulk_notes_fn *done, void *ctx) {
    struct call *c = calloc(1, sizeof *c);
    struct q__args *a = &w->args;
    q__assert(c); /* the callback is promised, and there is nothing to promise it with */
    q__assert(job->priv->hold == Q__HELD);
    *c = (struct call){.w = w, .job = job, .done = done, .ctx = ctx};
    q__args_reset(a);
    q__args_key(a, job->queue, "a:", job->priv->queue->wid);
    q__args_key(a, job->queue, "b:", job->id);
    q__args_int(a, (int64_t)job->token);
    q__args_int(a, grain);
    q__args_text(a, text ? text : "");
    if (job->fenced)
        q__error(&c->err, Q_FENCED, "the ticket of job \"%s\" was lost", job->id);
    else if (text && strlen(text) > Q_BULK_NOTE_BYTES_MAX)
        q__error(&c->err, Q_BAD_OPTION, "a note of %zu bytes, at most %d are kept", strlen(text),
                 Q_BULK_NOTE_BYTES_MAX);
    else if (!w->connected || !q__conn_script(w->cmd, Q__SCRIPT_shard_note, 2, a, on_notes, c))
        q__error(&c->err, Q_UNREACHABLE, "no connection to Redis");
    else
        return;
    uv_timer_init(w->loop, &c->later);
    c->later.data = c;
    q__worker_keep(w);
    uv_close((uv_handle_t *)&c->later, on_later_closed);
}
