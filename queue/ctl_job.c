/* ctl_job.c: the blocking client's calls about one job. */
#include "queue/ctl.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SEARCH_WORKERS = 256, SEARCH_ENTRIES = 1000, SEARCH_PAGE = 50, SEARCH_BYTES = 16 << 20 };

static const char *inbox_of(int lane) {
    return lane > 0 ? "in:hi" : lane < 0 ? "in:lo" : "in";
}

/* --- submit */

static enum q_status check(struct q_ctl *c, const char *queue, const char *json, size_t len,
                           struct q_job **job) {
    enum q_code code;
    if (!q_queue_name_valid(queue, strlen(queue)))
        return q__error(&c->err, Q_BAD_OPTION,
                        "queue name \"%.80s\" must be 1 to %d of A-Z a-z 0-9 _ . -", queue,
                        Q_QUEUE_NAME_MAX);
    if (len && json[0] == '~')
        return q__error(&c->err, Q_BAD_JOB, "a job is a JSON object, it may not start with ~");
    if (q_job_parse(job, queue, json, len, &code, &c->err) == Q_OK) return Q_OK;
    c->err.code = c->err.code == Q_NO_MEMORY ? Q_NO_MEMORY : Q_BAD_JOB;
    return c->err.code;
}

enum q_status q_ctl_submit(struct q_ctl *c, const char *queue, const char *json, size_t len,
                           int lane, char id[Q_ID_MAX + 1]) {
    struct q_job *job;
    enum q_status s = check(c, queue, json, len, &job);
    if (s) return s;
    bool has_id = job->priv->has_id, has_time = job->queued_ms != 0;
    if (has_id)
        strcpy(id, job->id);
    else
        q_id_make(id);
    q_job_free(job);
    size_t brace = strspn(json, " \t\r\n");
    struct q__buf b;
    q__buf_init(&b, SIZE_MAX / 2);
    q__buf_reserve(&b, len + 160);
    q__buf_str(&b, "{");
    if (!has_id) {
        q__buf_str(&b, "\"id\":");
        q__buf_json(&b, id, strlen(id));
        q__buf_str(&b, ",");
    }
    if (!has_time) {
        q__buf_str(&b, "\"queued_ms\":");
        q__buf_int(&b, q__ctl_now_ms(c));
        q__buf_str(&b, ",");
    }
    q__buf_add(&b, json + brace + 1, len - brace - 1); /* never empty: "op" is in it */
    size_t n;
    char *entry = q__buf_take(&b, &n);
    if (!entry) return q__error(&c->err, Q_NO_MEMORY, "no memory for a job of %zu bytes", len);
    q__ctl_begin(c);
    q__args_text(&c->args, "LPUSH");
    q__args_key(&c->args, queue, inbox_of(lane), NULL);
    q__args_bytes(&c->args, entry, n);
    q__ctl_add(c, -1, 0);
    s = q__ctl_run(c);
    free(entry);
    return s;
}

enum q_status q_ctl_push(struct q_ctl *c, const char *queue, const char *const *json,
                         const size_t *len, size_t n) {
    enum { PER_COMMAND = 256 };
    q__ctl_begin(c);
    for (size_t i = 0; i < n;) {
        q__args_text(&c->args, "LPUSH");
        q__args_key(&c->args, queue, "in", NULL);
        for (size_t k = 0; k < PER_COMMAND && i < n; k++, i++)
            q__args_bytes(&c->args, json[i], len[i]);
        q__ctl_add(c, -1, 0);
    }
    return q__ctl_run(c);
}

/* --- status */

/* The word after "state":" near the start of an envelope. */
static void state_of(const char *envelope, char state[16]) {
    const char *p = strstr(envelope, "\"state\":\"");
    size_t n = p ? strcspn(p + 9, "\"") : 0;
    snprintf(state, 16, "%.*s", (int)(n > 15 ? 15 : n), p ? p + 9 : "");
}

static bool is_number(const char *s) {
    return s[strspn(s, "0123456789")] == 0 && s[0] && strlen(s) < 17;
}

/* T:s:<id> as a JSON object; with rates where it counts rows. */
static char *live_json(const redisReply *r, int64_t now_ms, struct q_ctl_status *out) {
    struct q__buf b;
    int64_t rows = -1, done = -1, started = 0;
    q__buf_init(&b, 1 << 20);
    for (size_t i = 0; i + 1 < r->elements; i += 2) {
        const redisReply *k = r->element[i], *v = r->element[i + 1];
        if (!q__reply_text(k) || !q__reply_text(v)) continue;
        if (strcmp(k->str, "state") == 0)
            snprintf(out->state, sizeof out->state, "%s", v->str);
        else if (strcmp(k->str, "rows") == 0)
            rows = q__reply_int(v, -1);
        else if (strcmp(k->str, "rows_done") == 0)
            done = q__reply_int(v, -1);
        else if (strcmp(k->str, "started_ms") == 0)
            started = q__reply_int(v, 0);
        else if (strcmp(k->str, "due_ms") == 0)
            out->due_ms = q__reply_int(v, 0);
        q__buf_str(&b, i ? "," : "{");
        q__buf_json(&b, k->str, k->len);
        q__buf_str(&b, ":");
        if (is_number(v->str) || strcmp(k->str, "progress") == 0)
            q__buf_add(&b, v->str, v->len);
        else
            q__buf_json(&b, v->str, v->len);
    }
    if (done > 0 && started && now_ms > started) {
        double rate = (double)done * 1000 / (double)(now_ms - started);
        q__buf_str(&b, ",\"rows_per_s\":");
        q__buf_real(&b, rate);
        if (rows >= done) {
            q__buf_str(&b, ",\"eta_s\":");
            q__buf_real(&b, (double)(rows - done) / rate);
        }
    }
    q__buf_str(&b, "}");
    return q__buf_take(&b, NULL);
}

static bool entry_is(const char *queue, const redisReply *e, const char *id) {
    struct q_job *job;
    enum q_code code;
    if (!q__reply_text(e) || q_job_parse(&job, queue, e->str, e->len, &code, NULL) != Q_OK)
        return false;
    bool is = strcmp(job->id, id) == 0;
    q_job_free(job);
    return is;
}

/* Large entries lie outside of the hash. */
static enum q_status search_slots(struct q_ctl *c, const char *queue, const char *wid,
                                  const char *id, const bool *taken, struct q_ctl_status *out) {
    char rest[Q_WID_MAX + 8];
    size_t n_taken = 0;
    q__ctl_begin(c);
    for (int n = 0; n < Q__SLOTS; n++) {
        if (!taken[n]) continue;
        n_taken++;
        snprintf(rest, sizeof rest, "%.*s:%d", Q_WID_MAX, wid, n);
        q__ctl_words(c, "LRANGE", queue, "slot:", rest, "-2 -1");
    }
    enum q_status s = q__ctl_run(c);
    for (size_t n = 0; s == Q_OK && n < n_taken; n++) {
        const redisReply *r = q__ctl_reply(c, n);
        if (r->elements != 2 || !entry_is(queue, r->element[1], id)) continue;
        strcpy(out->worker, wid);
        strcpy(out->state, "running");
        break;
    }
    return s;
}

static enum q_status search_workers(struct q_ctl *c, const char *queue, const char *id,
                                    struct q_ctl_status *out) {
    char wids[SEARCH_WORKERS][Q_WID_MAX + 1];
    size_t n = 0;
    q__ctl_begin(c);
    q__ctl_words(c, "HKEYS", queue, "hb", NULL, NULL);
    enum q_status s = q__ctl_run(c);
    const redisReply *r = q__ctl_reply(c, 0);
    for (size_t i = 0; s == Q_OK && i < r->elements && n < SEARCH_WORKERS; i++)
        if (q__reply_text(r->element[i]) && r->element[i]->len <= Q_WID_MAX)
            strcpy(wids[n++], r->element[i]->str);
    for (size_t i = 0; s == Q_OK && i < n && !out->worker[0]; i++) {
        q__ctl_begin(c);
        q__ctl_words(c, "HRANDFIELD", queue, "a:", wids[i], "1024 WITHVALUES");
        s = q__ctl_run(c);
        r = q__ctl_reply(c, 0);
        bool slots[Q__SLOTS] = {false}, any = false;
        for (size_t k = 1; s == Q_OK && k < r->elements; k += 2)
            if (q__reply_text(r->element[k]) && r->element[k]->str[0] == '@') {
                unsigned slot = (unsigned)strtoul(r->element[k]->str + 1, NULL, 10);
                if (slot < Q__SLOTS) any = slots[slot] = true;
            } else if (entry_is(queue, r->element[k], id)) {
                strcpy(out->worker, wids[i]);
                strcpy(out->state, "running");
                break;
            }
        if (s == Q_OK && any && !out->worker[0])
            s = search_slots(c, queue, wids[i], id, slots, out);
    }
    return s;
}

static enum q_status search_inboxes(struct q_ctl *c, const char *queue, const char *id,
                                    struct q_ctl_status *out) {
    static const char *const lists[] = {"in:hi", "in", "in:lo", "redo"};
    size_t bytes = 0;
    for (size_t l = 0; l < Q__COUNT(lists); l++)
        for (int from = 0; from < SEARCH_ENTRIES && bytes < SEARCH_BYTES; from += SEARCH_PAGE) {
            char range[48];
            snprintf(range, sizeof range, "-%d -%d", from + SEARCH_PAGE, from + 1);
            q__ctl_begin(c);
            q__ctl_words(c, "LRANGE", queue, lists[l], NULL, range);
            enum q_status s = q__ctl_run(c);
            if (s) return s;
            const redisReply *r = q__ctl_reply(c, 0);
            for (size_t i = r->elements; i-- > 0;) {
                bytes += r->element[i]->len;
                if (!entry_is(queue, r->element[i], id)) continue;
                strcpy(out->state, "queued");
                out->position = from + (int64_t)(r->elements - 1 - i);
                return Q_OK;
            }
            if (r->elements < SEARCH_PAGE) break;
        }
    return Q_OK;
}

/* delayed, retrying or waiting: from the entry in T:delb. */
static void delayed_state(const char *queue, const redisReply *entry, const redisReply *due,
                          struct q_ctl_status *out) {
    struct q_job *job;
    enum q_code code;
    strcpy(out->state, "delayed");
    out->due_ms = q__reply_int(due, 0);
    if (!q__reply_text(entry) ||
        q_job_parse(&job, queue, entry->str, entry->len, &code, NULL) != Q_OK)
        return;
    if (job->attempt > 1)
        strcpy(out->state, "retrying");
    else if (job->n_after)
        strcpy(out->state, "waiting");
    q_job_free(job);
}

/* The envelope in front of a dead letter: <len>:<envelope><entry>. */
static char *dead_envelope(const redisReply *v) {
    char *end;
    unsigned long long n = q__reply_text(v) ? strtoull(v->str, &end, 10) : 0;
    if (!n || *end != ':' || n > v->len - (size_t)(end + 1 - v->str)) return NULL;
    return strndup(end + 1, n);
}

enum q_status q__ctl_status(struct q_ctl *c, const char *queue, const char *id, bool deep,
                            struct q_ctl_status *out) {
    *out = (struct q_ctl_status){.position = -1, .state = "unknown"};
    q__ctl_begin(c);
    q__ctl_words(c, "GET", queue, "r:", id, NULL);
    q__ctl_words(c, "HGETALL", queue, "s:", id, NULL);
    q__ctl_words(c, "ZSCORE", queue, "del", NULL, id);
    q__ctl_words(c, "HGET", queue, "delb", NULL, id);
    q__ctl_words(c, "HGET", queue, "deadb", NULL, id);
    enum q_status s = q__ctl_run(c);
    if (s) return s;
    const redisReply *envelope = q__ctl_reply(c, 0), *live = q__ctl_reply(c, 1),
                     *due = q__ctl_reply(c, 2);
    if (q__reply_text(envelope)) {
        out->json = strdup(envelope->str);
        state_of(envelope->str, out->state);
        return Q_OK;
    }
    if (q__reply_text(due)) {
        delayed_state(queue, q__ctl_reply(c, 3), due, out);
        return Q_OK;
    }
    if (live->type == REDIS_REPLY_ARRAY && live->elements) {
        out->json = live_json(live, q__ctl_now_ms(c), out);
        return Q_OK;
    }
    if (q__reply_text(q__ctl_reply(c, 4))) {
        out->json = dead_envelope(q__ctl_reply(c, 4));
        strcpy(out->state, "dead");
        return Q_OK;
    }
    if (!deep) return Q_OK;
    s = search_workers(c, queue, id, out);
    if (s == Q_OK && !out->worker[0]) s = search_inboxes(c, queue, id, out);
    return s;
}

enum q_status q_ctl_status(struct q_ctl *c, const char *queue, const char *id,
                           struct q_ctl_status *out) {
    return q__ctl_status(c, queue, id, true, out);
}

void q_ctl_status_free(struct q_ctl_status *s) {
    free(s->json);
    s->json = NULL;
}

/* --- result, wait */

static enum q_status take_envelope(struct q_ctl *c, const redisReply *r, char **envelope,
                                   size_t *len) {
    *envelope = malloc(r->len + 1);
    if (!*envelope)
        return q__error(&c->err, Q_NO_MEMORY, "no memory for a result of %zu bytes",
                        (size_t)r->len);
    memcpy(*envelope, r->str, r->len + 1);
    if (len) *len = r->len;
    return Q_OK;
}

enum q_status q_ctl_result(struct q_ctl *c, const char *queue, const char *id, char **envelope,
                           size_t *len) {
    *envelope = NULL;
    q__ctl_begin(c);
    q__ctl_words(c, "GET", queue, "r:", id, NULL);
    enum q_status s = q__ctl_run(c);
    if (s) return s;
    const redisReply *r = q__ctl_reply(c, 0);
    if (!q__reply_text(r))
        return q__error(
            &c->err, Q_NOT_FOUND,
            "job \"%s\" in queue \"%s\" has no result (not final yet, unknown, or kept no longer)",
            id, queue);
    return take_envelope(c, r, envelope, len);
}

static bool watch(struct q_ctl *c, const char *queue, const char *id, q_ctl_watch_fn *on_status,
                  void *ctx, char **last) {
    struct q_ctl_status st;
    if (q__ctl_status(c, queue, id, false, &st) != Q_OK) return true;
    bool changed = !*last || !st.json || strcmp(*last, st.json) != 0, go_on = true;
    if (changed) go_on = on_status(ctx, &st);
    free(*last);
    *last = st.json;
    return go_on;
}

/* The wake-up list doubles as the pause between two looks. */
enum q_status q_ctl_wait(struct q_ctl *c, const char *queue, const char *id, uint32_t timeout_ms,
                         q_ctl_watch_fn *on_status, void *ctx, char **envelope, size_t *len) {
    uint64_t end = uv_hrtime() / 1000000 + timeout_ms;
    unsigned pause_ms = 20;
    char *last = NULL;
    enum q_status s;
    while ((s = q_ctl_result(c, queue, id, envelope, len)) == Q_NOT_FOUND) {
        uint64_t now = uv_hrtime() / 1000000;
        if (timeout_ms && now >= end) {
            s = q__error(&c->err, Q_TIMEOUT, "job \"%s\" in queue \"%s\" was not final after %u ms",
                         id, queue, timeout_ms);
            break;
        }
        if (on_status && !watch(c, queue, id, on_status, ctx, &last)) {
            s = q__error(&c->err, Q_CLOSED, "stopped waiting");
            break;
        }
        unsigned ms = timeout_ms && end - now < pause_ms ? (unsigned)(end - now) : pause_ms;
        char seconds[24];
        snprintf(seconds, sizeof seconds, "%.3f", (ms ? ms : 1) / 1000.0);
        q__ctl_begin(c);
        q__ctl_words(c, "BLPOP", queue, "n:", id, seconds);
        s = q__ctl_run(c);
        if (s) break;
        pause_ms = pause_ms >= 200 ? 250 : pause_ms + pause_ms / 4 + 1;
    }
    free(last);
    return s;
}

/* --- cancel, retry */

enum q_status q_ctl_cancel(struct q_ctl *c, const char *queue, const char *id) {
    struct q_job *job = NULL;
    enum q_code code;
    char *envelope = NULL;
    size_t len = 0;
    uint32_t ttl_ms = 3600000;
    q__ctl_begin(c);
    q__ctl_words(c, "HGET", queue, "delb", NULL, id);
    enum q_status s = q__ctl_run(c);
    if (s) return s;
    const redisReply *entry = q__ctl_reply(c, 0);
    if (q__reply_text(entry) &&
        q_job_parse(&job, queue, entry->str, entry->len, &code, NULL) == Q_OK) {
        struct q__envelope e = {.job = job,
                                .state = "cancelled",
                                .ended_ms = q__ctl_now_ms(c),
                                .run_ms = -1,
                                .attempts = job->attempt - 1,
                                .code = Q_CODE_cancelled,
                                .message = "cancelled before it started"};
        envelope = q__envelope_make(&e, &len);
        ttl_ms = job->ttl_ms;
    }
    static const char *const keys[] = {"cx", "r:", "del", "delb", "s:", "n:"};
    q__ctl_begin(c);
    for (size_t i = 0; i < Q__COUNT(keys); i++)
        q__args_key(&c->args, queue, keys[i], keys[i][1] == ':' ? id : NULL);
    if (job && job->reply_to[0]) q__args_text(&c->args, job->reply_to);
    size_t n_keys = c->args.n;
    q__args_text(&c->args, id);
    q__args_int(&c->args, q__ctl_now_ms(c));
    q__args_int(&c->args, ttl_ms ? ttl_ms : 1);
    q__args_bytes(&c->args, envelope, len);
    q__ctl_add(c, Q__SCRIPT_cancel, n_keys);
    s = q__ctl_run(c);
    q_job_free(job);
    free(envelope);
    if (s == Q_OK && q__reply_int(q__ctl_reply(c, 0), 0) == 2)
        return q__error(&c->err, Q_FINAL, "job \"%s\" in queue \"%s\" is already in a final state",
                        id, queue);
    return s;
}

static enum q_status requeue(struct q_ctl *c, const char *queue, const char *id) {
    static const char *const keys[] = {"del", "delb", "dead", "deadb", "in", "in:hi", "in:lo"};
    q__ctl_begin(c);
    for (size_t i = 0; i < Q__COUNT(keys); i++) q__args_key(&c->args, queue, keys[i], NULL);
    q__args_key(&c->args, queue, "r:", id);
    q__args_key(&c->args, queue, "s:", id);
    q__args_key(&c->args, queue, "cx", NULL);
    q__args_text(&c->args, id);
    q__ctl_add(c, Q__SCRIPT_requeue, 10);
    enum q_status s = q__ctl_run(c);
    if (s == Q_OK && q__reply_int(q__ctl_reply(c, 0), 0) == 0)
        return q__error(&c->err, Q_NOT_FOUND,
                        "job \"%s\" in queue \"%s\" is neither delayed, retrying nor a dead letter",
                        id, queue);
    return s;
}

enum q_status q_ctl_retry(struct q_ctl *c, const char *queue, const char *id) {
    return requeue(c, queue, id);
}
enum q_status q_ctl_dead_requeue(struct q_ctl *c, const char *queue, const char *id) {
    return requeue(c, queue, id);
}
