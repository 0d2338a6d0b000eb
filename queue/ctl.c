/* ctl.c: the blocking client: a private loop with one connection, driven until the answers are
 * there.
 *
 * Calls that need several answers send all commands at once and wait once (a pipeline of slots), so
 * that listing twenty queues costs a few round trips. */
#include "queue/ctl.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int64_t q__ctl_now_ms(const struct q_ctl *c) {
    return (int64_t)(uv_hrtime() / 1000000) + c->offset_ms;
}

const struct q_error *q_ctl_error(const struct q_ctl *c) {
    return &c->err;
}

enum q_status q__ctl_set(struct q_ctl *c, const struct q_error *err) {
    c->err = *err;
    return err->code;
}

static void on_ready(void *ctx, struct q__conn *conn) {
    struct q_ctl *c = ctx;
    (void)conn;
    c->was_lost = false;
}

static void on_lost(void *ctx, struct q__conn *conn, const struct q_error *why, uint32_t retry_ms) {
    struct q_ctl *c = ctx;
    (void)conn;
    (void)retry_ms;
    c->was_lost = true;
    c->err = *why;
}

/* --- pipeline */

static void free_slots(struct q_ctl *c) {
    for (size_t i = 0; i < c->n_slots; i++) {
        redisReply *r = &c->slot[i].r;
        if (r->type == REDIS_REPLY_ARRAY) {
            for (size_t k = 0; k < r->elements; k++) freeReplyObject(r->element[k]);
            free(r->element);
        } else
            free(r->str);
    }
    c->n_slots = 0;
}

void q__ctl_begin(struct q_ctl *c) {
    uv_run(&c->loop, UV_RUN_NOWAIT); /* notices a connection that went while nobody looked */
    free_slots(c);
    c->n_sent = 0;
    q__args_reset(&c->args);
}

static void on_reply(void *ctx, redisReply *r, const struct q_error *err) {
    struct q_ctl *c = ctx;
    struct q__slot *s = &c->slot[c->n_sent - c->n_due];
    s->err = *err;
    s->lost = !r;
    if (r) { /* take its contents, leave an empty shell to be freed */
        s->r = *r;
        r->str = NULL;
        r->element = NULL;
        r->elements = 0;
    }
    c->n_due--;
}

/* A connection that is not there yet is waited for, within the connect timeout. */
static bool wait_ready(struct q_ctl *c) {
    while (!q__conn_ready(c->conn) && !c->was_lost) uv_run(&c->loop, UV_RUN_ONCE);
    if (q__conn_ready(c->conn)) return true;
    c->was_lost = false; /* the next call tries again: give the reconnection one chance now */
    while (!q__conn_ready(c->conn) && !c->was_lost) uv_run(&c->loop, UV_RUN_ONCE);
    return q__conn_ready(c->conn);
}

void q__ctl_add(struct q_ctl *c, int script, size_t n_keys) {
    if (c->n_slots == c->cap_slots) {
        size_t cap = c->cap_slots ? c->cap_slots * 2 : 16;
        void *slot = realloc(c->slot, cap * sizeof *c->slot);
        if (!slot) return;
        c->slot = slot;
        c->cap_slots = cap;
    }
    struct q__slot *s = &c->slot[c->n_slots++];
    *s = (struct q__slot){.lost = true};
    s->r.type = REDIS_REPLY_NIL;
    bool sent = c->n_sent + 1 == c->n_slots; /* all before it went out */
    if (c->n_slots == 1) sent = wait_ready(c);
    sent = sent && (script < 0 ? q__conn_args(c->conn, &c->args, on_reply, c)
                               : q__conn_script(c->conn, (enum q__script)script, n_keys, &c->args,
                                                on_reply, c));
    c->n_due += sent;
    c->n_sent += sent;
    if (!sent)
        s->err = c->err.code
                     ? c->err
                     : (struct q_error){.code = Q_UNREACHABLE, .text = "no connection to Redis"};
    q__args_reset(&c->args);
}

void q__ctl_words(struct q_ctl *c, const char *command, const char *queue, const char *suffix,
                  const char *rest, const char *more) {
    q__args_text(&c->args, command);
    q__args_key(&c->args, queue, suffix, rest);
    while (more && *more) {
        size_t n = strcspn(more, " ");
        q__args_bytes(&c->args, more, n);
        more += n;
        more += *more == ' ';
    }
    q__ctl_add(c, -1, 0);
}

enum q_status q__ctl_run(struct q_ctl *c) {
    while (c->n_due) uv_run(&c->loop, UV_RUN_ONCE);
    for (size_t i = 0; i < c->n_slots; i++)
        if (c->slot[i].lost || c->slot[i].err.code) return q__ctl_set(c, &c->slot[i].err);
    c->err.code = Q_OK;
    c->err.text[0] = 0;
    return Q_OK;
}

const redisReply *q__ctl_reply(const struct q_ctl *c, size_t i) {
    return i < c->n_slots ? &c->slot[i].r : NULL;
}

/* --- open, close */

static void finish(struct q_ctl *c) {
    if (c->conn) q__conn_close(c->conn, NULL, NULL);
    uv_run(&c->loop, UV_RUN_DEFAULT);
    q__assert(uv_loop_close(&c->loop) == 0);
    free_slots(c);
    free(c->slot);
    q__args_finish(&c->args);
    q__endpoint_finish(&c->endpoint);
    free(c);
}

static enum q_status read_clock(struct q_ctl *c) {
    q__ctl_begin(c);
    q__args_text(&c->args, "TIME");
    q__ctl_add(c, -1, 0);
    enum q_status s = q__ctl_run(c);
    const redisReply *r = q__ctl_reply(c, 0);
    int64_t ms =
        q__reply_int(q__reply_at(r, 0), 0) * 1000 + q__reply_int(q__reply_at(r, 1), 0) / 1000;
    if (ms == 0) { /* this user may not ask: ours must do */
        uv_timeval64_t tv;
        uv_gettimeofday(&tv);
        ms = tv.tv_sec * 1000 + tv.tv_usec / 1000;
    }
    c->offset_ms = ms - (int64_t)(uv_hrtime() / 1000000);
    return s == Q_DENIED ? Q_OK : s;
}

struct q_ctl *q_ctl_open(const struct q_conn_options *opt, struct q_error *err) {
    struct q_ctl *c = calloc(1, sizeof *c);
    if (!c || uv_loop_init(&c->loop) != 0) {
        free(c);
        q__error(err, Q_NO_MEMORY, "no memory for a client");
        return NULL;
    }
    q__args_init(&c->args);
    q__ignore_sigpipe();
    struct q__conn_events on = {c, on_ready, on_lost};
    if (q__endpoint_init(&c->endpoint, opt, &c->err) == Q_OK &&
        !(c->conn = q__conn_create(&c->loop, &c->endpoint, "ctl", &on)))
        q__error(&c->err, Q_NO_MEMORY, "no memory for a client");
    while (c->conn && !q__conn_ready(c->conn) && !c->was_lost) uv_run(&c->loop, UV_RUN_ONCE);
    if (!c->conn || c->was_lost || read_clock(c) != Q_OK) {
        if (err) *err = c->err;
        finish(c);
        return NULL;
    }
    return c;
}

void q_ctl_close(struct q_ctl *c) {
    if (c) finish(c);
}

/* --- any command */

static void flatten(struct q__buf *b, const redisReply *r) {
    if (r->type == REDIS_REPLY_INTEGER)
        q__buf_int(b, r->integer);
    else if (r->type == REDIS_REPLY_ARRAY)
        for (size_t i = 0; i < r->elements; i++) {
            if (i) q__buf_add(b, "\n", 1);
            flatten(b, r->element[i]);
        }
    else if (r->str)
        q__buf_add(b, r->str, r->len);
}

enum q_status q_ctl_command(struct q_ctl *c, size_t argc, const char *const *argv,
                            const size_t *argv_len, char **reply, size_t *len) {
    struct q__buf b;
    *reply = NULL;
    q__ctl_begin(c);
    for (size_t i = 0; i < argc; i++)
        q__args_bytes(&c->args, argv[i], argv_len ? argv_len[i] : strlen(argv[i]));
    q__ctl_add(c, -1, 0);
    enum q_status s = q__ctl_run(c);
    if (s) return s;
    q__buf_init(&b, SIZE_MAX / 2);
    flatten(&b, q__ctl_reply(c, 0));
    *reply = q__buf_take(&b, len);
    return *reply ? Q_OK : q__error(&c->err, Q_NO_MEMORY, "no memory for a reply");
}

/* --- the server */

enum q_status q_ctl_server(struct q_ctl *c, struct q_ctl_server *out) {
    char text[64], *info;
    size_t len;
    const char *argv[] = {"INFO"}, *ping[] = {"PING"};
    *out = (struct q_ctl_server){0};
    enum q_status s = q_ctl_command(c, 1, argv, NULL, &info, &len);
    if (s) return s;
    q__info_field(info, "valkey_version", out->version, sizeof out->version);
    strcpy(out->software, out->version[0] ? "valkey" : "redis");
    if (!out->version[0]) q__info_field(info, "redis_version", out->version, sizeof out->version);
    q__info_field(info, "role", out->role, sizeof out->role);
    q__info_field(info, "maxmemory_policy", out->policy, sizeof out->policy);
    q__info_field(info, "used_memory", text, sizeof text);
    out->used_bytes = strtoull(text, NULL, 10);
    q__info_field(info, "maxmemory", text, sizeof text);
    out->max_bytes = strtoull(text, NULL, 10);
    q__info_field(info, "loading", text, sizeof text);
    out->loading = strcmp(text, "1") == 0;
    q__info_field(info, "aof_enabled", text, sizeof text);
    out->aof = strcmp(text, "1") == 0;
    free(info);
    const char *save[] = {"CONFIG", "GET", "save"}, *sync[] = {"CONFIG", "GET", "appendfsync"};
    char *reply, fsync[24] = "";
    if (q_ctl_command(c, 3, save, NULL, &reply, &len) == Q_OK) {
        const char *value = strchr(reply, '\n');
        out->rdb = value && value[1];
        free(reply);
    }
    if (out->aof && q_ctl_command(c, 3, sync, NULL, &reply, &len) == Q_OK) {
        const char *value = strchr(reply, '\n');
        snprintf(fsync, sizeof fsync, "%s", value ? value + 1 : "");
        free(reply);
    }
    snprintf(out->persistence, sizeof out->persistence, "%s",
             out->aof && strcmp(fsync, "always") == 0
                 ? "AOF, synced at every write: a crash loses nothing that was answered"
             : out->aof ? "AOF: a crash of the machine loses about the last second"
             : out->rdb ? "snapshots only: a crash loses everything since the last one"
                        : "none that this user can see: a crash or restart may lose every job");
    uint64_t from = uv_hrtime();
    s = q_ctl_command(c, 1, ping, NULL, &reply, &len);
    out->round_trip_us = (uint32_t)((uv_hrtime() - from) / 1000);
    if (s == Q_OK) free(reply);
    return Q_OK;
}
