#include "queue/job.h"

#include <string.h>

static void member_int(struct q__buf *b, const char *name, int64_t n) {
    q__buf_str(b, name);
    q__buf_int(b, n);
}

static void member_text(struct q__buf *b, const char *name, const char *text) {
    if (!text || !text[0]) return;
    q__buf_str(b, name);
    q__buf_json(b, text, strlen(text));
}

static void member_raw(struct q__buf *b, const char *name, const char *json, size_t len) {
    if (!json) return;
    q__buf_str(b, name);
    q__buf_add(b, json, len);
}

/* state and token stand early: scripts and clients that look only at the first bytes find them
 * there. The order of the rest is the design's. */
char *q__envelope_make(const struct q__envelope *e, size_t *len) {
    const struct q_job *j = e->job;
    struct q__buf b;
    q__buf_init(&b, SIZE_MAX / 2);
    q__buf_reserve(&b, 640 + e->result_len);
    q__buf_str(&b, "{\"v\":1,\"id\":");
    q__buf_json(&b, j->id, strlen(j->id));
    q__buf_str(&b, ",\"state\":\"");
    q__buf_str(&b, e->state);
    member_int(&b, "\",\"token\":", (int64_t)j->token);
    member_int(&b, ",\"attempt\":", e->attempts);
    member_int(&b, ",\"crashes\":", j->crashes);
    member_int(&b, ",\"queued_ms\":", j->queued_ms);
    int64_t started_ms = j->priv->started_ms;
    if (e->run_ms >= 0) member_int(&b, ",\"started_ms\":", started_ms);
    member_int(&b, ",\"ended_ms\":", e->ended_ms);
    int64_t queue_ms = (e->run_ms >= 0 ? started_ms : e->ended_ms) - j->queued_ms;
    member_int(&b, ",\"queue_ms\":", queue_ms > 0 ? queue_ms : 0);
    if (e->run_ms >= 0) {
        q__buf_str(&b, ",\"run_ms\":");
        q__buf_real(&b, e->run_ms);
    }
    if (e->batch) member_int(&b, ",\"batch\":", e->batch);
    member_text(&b, ",\"worker\":", e->worker);
    member_text(&b, ",\"model\":", j->model);
    member_text(&b, ",\"version\":", e->version);
    member_raw(&b, ",\"manifest\":", e->manifest, e->manifest ? strlen(e->manifest) : 0);
    member_text(&b, ",\"traceparent\":", j->traceparent);
    member_raw(&b, ",\"meta\":", j->meta.ptr, j->meta.len);
    member_text(&b, ",\"ref\":", e->ref);
    if (e->code == Q_CODE_N && !e->ref)
        member_raw(&b, ",\"result\":", e->result ? e->result : "null",
                   e->result ? e->result_len : 4);
    if (e->code != Q_CODE_N) {
        q__buf_str(&b, ",\"error\":{\"code\":\"");
        q__buf_str(&b, q_code_name(e->code));
        q__buf_str(&b, "\",\"message\":");
        q__buf_json(&b, e->message, strlen(e->message));
        q__buf_str(&b, e->retryable ? ",\"retryable\":true" : ",\"retryable\":false");
        const struct q__header *h = &j->priv->header;
        if (e->code == Q_CODE_crashed && h->signal) member_int(&b, ",\"signal\":", h->signal);
        if (e->code == Q_CODE_crashed && h->rss_kb) member_int(&b, ",\"rss_kb\":", h->rss_kb);
        q__buf_str(&b, "}");
    }
    q__buf_str(&b, "}");
    return q__buf_take(&b, len);
}
