/* conn.c: one connection to Redis: connect, log in, pipeline commands, notice that it is gone, come
 * back.
 *
 * hiredis formats commands and parses replies; the socket is a libuv stream, and TLS goes through
 * tls.c between the two. hiredis' own sockets are not used: the packaged one blocks in name
 * resolution and has no TLS. Long strings pass by the parser (long_reply.c).
 *
 * A command is one struct q__cmd with its bytes; it stands in a FIFO until its reply comes (Redis
 * answers in order) and, if the socket could not take all bytes at once, in libuv's write queue:
 * two references. Keeping the bytes until the reply makes healing NOSCRIPT simple: load the script
 * and send the same bytes again.
 *
 * Every command has a deadline. The oldest one that passes closes the socket hard: after a network
 * blip a read can hang for ever on a connection that looks alive.
 *
 * States: IDLE (waiting to connect) → RESOLVING → CONNECTING → SECURING (TLS) → GREETING (AUTH,
 * SELECT, …) → READY; any failure → IDLE with decorrelated jitter. Thread: the loop's. */
#include "queue/conn.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum state { IDLE, RESOLVING, CONNECTING, SECURING, GREETING, READY, CLOSING };

enum { READ_BYTES = 64 * 1024, BACKOFF_BASE_MS = 50, BACKOFF_CAP_MS = 5000 };

struct q__cmd {
    struct q__cmd *next;
    uv_write_t write;
    unsigned refs;
    char *bytes;
    size_t len;
    uint64_t deadline_ms; /* on the loop's clock */
    uint32_t timeout_ms;
    int script; /* enum q__script, -1: not one */
    bool healed, greeting;
    q__reply_fn *fn;
    void *ctx;
};

struct q__conn {
    uv_loop_t *loop;
    const struct q__endpoint *endpoint;
    struct q__conn_events on;
    char tag[16];
    enum state state;
    union {
        uv_stream_t stream;
        uv_tcp_t tcp;
        uv_pipe_t pipe;
    } io;
    bool io_open, io_closing;
    uv_timer_t retry, deadline;
    uv_connect_t connect;
    uv_getaddrinfo_t resolve;
    bool resolving, broken;
    struct addrinfo *addresses, *address;
    redisReader *reader;
    struct q__long incoming;
    struct q__tls *tls;
    struct q__cmd *head, *tail;
    uint32_t backoff_ms;
    unsigned greetings; /* replies still due before READY */
    int64_t client_id;
    char *read_buf;
    unsigned handles; /* open timers, for the end */
    void (*closed)(void *ctx);
    void *closed_ctx;
};

static void try_connect(struct q__conn *c);
static void lose(struct q__conn *c, enum q_status code, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

/* --- commands */

static void cmd_unref(struct q__cmd *cmd) {
    if (--cmd->refs) return;
    free(cmd->bytes);
    free(cmd);
}

static void on_written(uv_write_t *req, int status) {
    (void)status; /* an error shows on the read side too, or by deadline */
    cmd_unref(req->data);
}

struct raw_write {
    uv_write_t req;
    char *bytes;
};

static void on_raw_written(uv_write_t *req, int status) {
    struct raw_write *w = req->data;
    (void)status;
    free(w->bytes);
    free(w);
}

/* TLS: what OpenSSL has for the network. Takes the bytes out of t and gives them to libuv. */
static bool flush_tls(struct q__conn *c) {
    size_t len;
    char *bytes;
    while ((bytes = q__tls_take(c->tls, &len)) != NULL) {
        struct raw_write *w = malloc(sizeof *w);
        if (!w) {
            free(bytes);
            return false;
        }
        w->bytes = bytes;
        w->req.data = w;
        uv_buf_t buf = uv_buf_init(bytes, (unsigned)len);
        if (uv_write(&w->req, &c->io.stream, &buf, 1, on_raw_written) != 0) {
            free(bytes);
            free(w);
            return false;
        }
    }
    return true;
}

static bool put_bytes(struct q__conn *c, struct q__cmd *cmd) {
    if (c->tls) return q__tls_write(c->tls, cmd->bytes, cmd->len) && flush_tls(c);
    uv_buf_t buf = uv_buf_init(cmd->bytes, (unsigned)cmd->len);
    int n = uv_try_write(&c->io.stream, &buf, 1);
    if (n < 0 && n != UV_EAGAIN) return false;
    if (n < 0) n = 0;
    if ((size_t)n == cmd->len) return true;
    buf = uv_buf_init(cmd->bytes + n, (unsigned)(cmd->len - (size_t)n));
    cmd->write.data = cmd;
    cmd->refs++;
    if (uv_write(&cmd->write, &c->io.stream, &buf, 1, on_written) != 0) {
        cmd->refs--;
        return false;
    }
    return true;
}

static void on_deadline(uv_timer_t *t) {
    struct q__conn *c = t->data;
    uint64_t now = uv_now(c->loop);
    if (c->state == RESOLVING || c->state == CONNECTING || c->state == SECURING) {
        lose(c, Q_UNREACHABLE, "no connection to %s within %u ms", c->endpoint->where,
             c->endpoint->connect_timeout_ms);
        return;
    }
    if (c->broken) {
        lose(c, Q_UNREACHABLE, "cannot write to %s", c->endpoint->where);
        return;
    }
    if (!c->head) return;
    if (c->head->deadline_ms <= now)
        lose(c, Q_TIMEOUT, "no reply from %s within %u ms", c->endpoint->where,
             c->head->timeout_ms);
    else
        uv_timer_start(&c->deadline, on_deadline, c->head->deadline_ms - now, 0);
}

/* FIFO, then the socket. A failed write leaves the command in the FIFO: the loss will fail it. */
static void enqueue(struct q__conn *c, struct q__cmd *cmd) {
    cmd->next = NULL;
    uv_update_time(c->loop); /* a client's loop may have stood still since its last call */
    cmd->deadline_ms = uv_now(c->loop) + cmd->timeout_ms;
    if (c->tail)
        c->tail->next = cmd;
    else
        c->head = cmd;
    c->tail = cmd;
    if (!uv_is_active((uv_handle_t *)&c->deadline))
        uv_timer_start(&c->deadline, on_deadline, cmd->timeout_ms, 0);
    if (!c->broken && !put_bytes(c, cmd)) {
        c->broken = true; /* lost in the next iteration: no callback inside a call */
        uv_timer_start(&c->deadline, on_deadline, 0, 0);
    }
}

static bool send_cmd(struct q__conn *c, size_t argc, const char **argv, const size_t *argv_len,
                     uint32_t timeout_ms, int script, bool greeting, q__reply_fn *fn, void *ctx) {
    struct q__cmd *cmd = calloc(1, sizeof *cmd);
    if (!cmd) return false;
    int len =
        argc > INT32_MAX ? -1 : redisFormatCommandArgv(&cmd->bytes, (int)argc, argv, argv_len);
    if (len < 0) {
        free(cmd);
        return false;
    }
    cmd->refs = 1;
    cmd->len = (size_t)len;
    cmd->timeout_ms = timeout_ms ? timeout_ms : c->endpoint->reply_timeout_ms;
    cmd->script = script;
    cmd->greeting = greeting;
    cmd->fn = fn;
    cmd->ctx = ctx;
    enqueue(c, cmd);
    return true;
}

bool q__conn_send(struct q__conn *c, size_t argc, const char **argv, const size_t *argv_len,
                  uint32_t deadline_ms, q__reply_fn *fn, void *ctx) {
    return c->state == READY && send_cmd(c, argc, argv, argv_len, deadline_ms, -1, false, fn, ctx);
}

bool q__conn_words(struct q__conn *c, const char *words, q__reply_fn *fn, void *ctx) {
    const char *argv[16];
    size_t len[16], n = 0;
    while (*words && n < Q__COUNT(argv)) {
        argv[n] = words;
        len[n] = strcspn(words, " ");
        words += len[n++];
        words += *words == ' ';
    }
    return q__conn_send(c, n, argv, len, 0, fn, ctx);
}

static bool send_args(struct q__conn *c, int script, size_t n_keys, struct q__args *a,
                      q__reply_fn *fn, void *ctx) {
    if (a->failed || a->scratch.failed || c->state != READY) return false;
    size_t head = script >= 0 ? 3 : 0, n = a->n + head;
    const char *few[64], **argv = n <= 64 ? few : malloc(n * sizeof *argv);
    size_t few_len[64], *len = n <= 64 ? few_len : malloc(n * sizeof *len);
    char keys[24];
    bool ok = argv && len;
    if (ok && script >= 0) {
        argv[0] = "EVALSHA", len[0] = 7;
        argv[1] = q__script_sha((enum q__script)script), len[1] = 40;
        argv[2] = keys, len[2] = q__digits(keys, (int64_t)n_keys);
    }
    for (size_t i = 0; ok && i < a->n; i++) {
        argv[head + i] = a->arg[i].ptr ? a->arg[i].ptr : a->scratch.ptr + a->arg[i].off;
        len[head + i] = a->arg[i].len;
    }
    ok = ok && send_cmd(c, n, argv, len, 0, script, false, fn, ctx);
    if (n > 64) {
        free(argv);
        free(len);
    }
    return ok;
}

bool q__conn_args(struct q__conn *c, struct q__args *a, q__reply_fn *fn, void *ctx) {
    return send_args(c, -1, 0, a, fn, ctx);
}

bool q__conn_script(struct q__conn *c, enum q__script script, size_t n_keys, struct q__args *a,
                    q__reply_fn *fn, void *ctx) {
    return send_args(c, (int)script, n_keys, a, fn, ctx);
}

/* --- replies */

static const struct {
    const char *prefix;
    enum q_status code;
    bool drop; /* this server cannot serve us now: leave it and come back */
} errors[] = {
    {"OOM ", Q_FULL, false},
    {"NOPERM", Q_DENIED, false},
    {"NOAUTH", Q_AUTH, true},
    {"WRONGPASS", Q_AUTH, true},
    {"ERR invalid password", Q_AUTH, true},
    {"LOADING", Q_UNREACHABLE, true},
    {"MASTERDOWN", Q_UNREACHABLE, true},
    {"READONLY", Q_UNREACHABLE, true},
    {"UNBLOCKED", Q_TIMEOUT, false},
    {"MOVED", Q_UNSUPPORTED, false},
    {"ASK ", Q_UNSUPPORTED, false},
    {"CLUSTERDOWN", Q_UNREACHABLE, true},
    {"ERR max number of clients", Q_UNREACHABLE, true},
};

static bool classify(const struct q__conn *c, const redisReply *r, struct q_error *err) {
    for (size_t i = 0; i < Q__COUNT(errors); i++)
        if (strncmp(r->str, errors[i].prefix, strlen(errors[i].prefix)) == 0) {
            q__error(
                err, errors[i].code, "Redis at %s: %.300s%s", c->endpoint->where, r->str,
                errors[i].code == Q_UNSUPPORTED
                    ? " (it is a cluster node without this slot; a cluster is not supported yet)"
                    : "");
            return errors[i].drop;
        }
    q__error(err, Q_REDIS, "Redis at %s: %.400s", c->endpoint->where, r->str);
    return false;
}

/* The script is unknown to this server (restart, SCRIPT FLUSH, failover): load it, say it again. */
static bool heal(struct q__conn *c, struct q__cmd *cmd) {
    size_t len[3] = {6, 4, 0};
    const char *argv[3] = {"SCRIPT", "LOAD", q__script_body((enum q__script)cmd->script, &len[2])};
    if (!send_cmd(c, 3, argv, len, 0, -1, false, NULL, NULL)) return false;
    cmd->healed = true;
    if (cmd->refs > 1) { /* libuv has not called on_written yet: its request is still in use */
        struct q__cmd *copy = malloc(sizeof *copy);
        char *bytes = malloc(cmd->len);
        if (!copy || !bytes) {
            free(copy);
            free(bytes);
            return false;
        }
        memcpy(bytes, cmd->bytes, cmd->len);
        *copy = *cmd;
        copy->bytes = bytes;
        copy->refs = 1;
        cmd_unref(cmd);
        cmd = copy;
    }
    enqueue(c, cmd);
    return true;
}

static void answer(struct q__conn *c, redisReply *r) {
    struct q__cmd *cmd = c->head;
    struct q_error err = {.code = Q_OK};
    if (!cmd) {
        lose(c, Q_PROTOCOL, "%s sent a reply that nobody asked for", c->endpoint->where);
        return;
    }
    c->head = cmd->next;
    if (!c->head) c->tail = NULL;
    bool drop = false;
    if (r->type == REDIS_REPLY_ERROR) {
        if (cmd->script >= 0 && !cmd->healed && strncmp(r->str, "NOSCRIPT", 8) == 0 && heal(c, cmd))
            return;
        drop = classify(c, r, &err);
    }
    if (cmd->fn) cmd->fn(cmd->ctx, r, &err);
    cmd_unref(cmd);
    if (drop && c->state != IDLE && c->state != CLOSING) lose(c, err.code, "%s", err.text);
}

/* True: the long string is complete and was answered, and the connection still stands. */
static bool parse_long(struct q__conn *c) {
    const redisReader *reader = c->reader;
    if (!q__long_full(&c->incoming)) return false;
    redisReply *reply = q__long_end(&c->incoming);
    if (!reply) {
        lose(c, Q_PROTOCOL, "%s sent a string without an end, or memory is out", c->endpoint->where);
        return false;
    }
    answer(c, reply);
    freeReplyObject(reply);
    return c->reader == reader;
}

static void parse(struct q__conn *c, const char *data, size_t len) {
    if (c->incoming.ptr) {
        size_t n = q__long_feed(&c->incoming, data, len);
        if (!parse_long(c) || n == len) return;
        data += n;
        len -= n;
    }
    redisReader *reader = c->reader;
    if (redisReaderFeed(reader, data, len) != REDIS_OK) {
        lose(c, Q_PROTOCOL, "%s: %s", c->endpoint->where, reader->errstr);
        return;
    }
    while (c->reader == reader && reader) {
        void *reply = NULL;
        if (redisReaderGetReply(reader, &reply) != REDIS_OK) {
            lose(c, Q_PROTOCOL, "%s does not speak RESP: %s", c->endpoint->where, reader->errstr);
            return;
        }
        if (!reply) break;
        answer(c, reply);
        freeReplyObject(reply);
    }
    if (c->reader != reader || !q__long_begin(&c->incoming, reader)) return;
    redisReaderFree(reader);
    if (!(c->reader = q__reader_create()))
        lose(c, Q_NO_MEMORY, "no memory for a connection to %s", c->endpoint->where);
}

/* --- greeting */

static void greet_done(struct q__conn *c) {
    c->state = READY;
    c->backoff_ms = 0;
    c->on.ready(c->on.ctx, c);
}

/* AUTH and SELECT must succeed; a server that is loading answers so to PING; the names are optional
 * (an ACL may refuse them). */
static void on_greeting(void *ctx, redisReply *r, const struct q_error *err) {
    struct q__conn *c = ctx;
    if (!r) return;
    c->greetings--;
    if (err->code == Q_AUTH || err->code == Q_UNREACHABLE)
        return; /* answer() drops the connection */
    if (r->type == REDIS_REPLY_INTEGER) c->client_id = r->integer;
    if (c->greetings == 0 && c->state == GREETING) greet_done(c);
}

static void on_strict_greeting(void *ctx, redisReply *r, const struct q_error *err) {
    struct q__conn *c = ctx;
    if (r && err->code != Q_OK && c->state == GREETING)
        lose(c, err->code == Q_REDIS ? Q_AUTH : err->code, "%s", err->text);
    else
        on_greeting(ctx, r, err);
}

static void greet_words(struct q__conn *c, q__reply_fn *fn, const char *a, const char *b,
                        const char *d) {
    const char *argv[3] = {a, b, d};
    size_t len[3] = {strlen(a), b ? strlen(b) : 0, d ? strlen(d) : 0};
    c->greetings +=
        send_cmd(c, (size_t)1 + (b != NULL) + (d != NULL), argv, len, 0, -1, true, fn, c);
}

static void greet(struct q__conn *c) {
    const struct q_url *url = &c->endpoint->url;
    char name[96], db[16];
    c->state = GREETING;
    c->greetings = 0;
    uv_timer_stop(&c->deadline);
    if (url->password[0] && url->user[0])
        greet_words(c, on_strict_greeting, "AUTH", url->user, url->password);
    else if (url->password[0])
        greet_words(c, on_strict_greeting, "AUTH", url->password, NULL);
    if (url->db) {
        snprintf(db, sizeof db, "%u", url->db);
        greet_words(c, on_strict_greeting, "SELECT", db, NULL);
    }
    snprintf(name, sizeof name, "%.60s:%s", c->endpoint->name, c->tag);
    greet_words(c, on_greeting, "CLIENT", "SETNAME", name);
    greet_words(c, on_greeting, "PING", NULL, NULL);
    greet_words(c, on_greeting, "CLIENT", "ID", NULL);
}

/* --- reading */

static void on_alloc(uv_handle_t *h, size_t suggested, uv_buf_t *buf) {
    struct q__conn *c = h->data;
    (void)suggested;
    if (c->incoming.ptr && !c->tls) {
        size_t n;
        char *to = q__long_space(&c->incoming, &n);
        *buf = uv_buf_init(to, (unsigned)n);
        return;
    }
    if (!c->read_buf) c->read_buf = malloc(READ_BYTES);
    *buf = uv_buf_init(c->read_buf, c->read_buf ? READ_BYTES : 0);
}

static void read_tls(struct q__conn *c, const char *data, size_t len) {
    char plain[16 * 1024], why[200];
    struct q__tls *tls = c->tls;
    q__tls_feed(tls, data, len);
    if (c->state == SECURING) {
        int rc = q__tls_handshake(tls);
        bool flushed = flush_tls(c);
        if (rc < 0 || !flushed) {
            lose(c, Q_TLS, "TLS with %s: %s", c->endpoint->where, q__tls_why(tls, why, sizeof why));
            return;
        }
        if (rc == 0) return;
        greet(c);
    }
    while (c->tls == tls) {
        int n = q__tls_read(tls, plain, sizeof plain);
        if (n == 0) break;
        if (n < 0) {
            lose(c, Q_TLS, "TLS with %s: %s", c->endpoint->where, q__tls_why(tls, why, sizeof why));
            return;
        }
        parse(c, plain, (size_t)n);
    }
    if (c->tls == tls) flush_tls(c);
}

static void on_read(uv_stream_t *stream, ssize_t n, const uv_buf_t *buf) {
    struct q__conn *c = stream->data;
    if (c->io_closing || n == 0) return;
    if (n < 0)
        lose(c, Q_UNREACHABLE, "connection to %s: %s", c->endpoint->where,
             n == UV_EOF ? "closed by the server" : uv_strerror((int)n));
    else if (c->tls)
        read_tls(c, buf->base, (size_t)n);
    else
        parse(c, buf->base, (size_t)n);
}

/* --- connecting */

static void on_connected(uv_connect_t *req, int status) {
    struct q__conn *c = req->data;
    if (status == UV_ECANCELED || c->io_closing || c->state != CONNECTING) return;
    if (status < 0) {
        const char *hint = status == UV_EACCES ? " (this user may not use the socket)" : "";
        lose(c, Q_UNREACHABLE, "cannot reach Redis at %s: %s%s", c->endpoint->where,
             uv_strerror(status), hint);
        return;
    }
    c->reader = q__reader_create();
    if (c->endpoint->url.scheme != Q_SCHEME_UNIX) uv_tcp_nodelay(&c->io.tcp, 1);
    if (c->endpoint->tls) c->tls = q__tls_create(c->endpoint->tls, c->endpoint->tls_name);
    if (!c->reader || (c->endpoint->tls && !c->tls) ||
        uv_read_start(&c->io.stream, on_alloc, on_read) != 0) {
        lose(c, Q_NO_MEMORY, "no memory for a connection to %s", c->endpoint->where);
        return;
    }
    if (!c->tls) {
        greet(c);
        return;
    }
    c->state = SECURING;
    if (q__tls_handshake(c->tls) < 0 || !flush_tls(c))
        lose(c, Q_TLS, "TLS with %s cannot start", c->endpoint->where);
}

static bool open_stream(struct q__conn *c) {
    bool is_unix = c->endpoint->url.scheme == Q_SCHEME_UNIX;
    int rc = is_unix ? uv_pipe_init(c->loop, &c->io.pipe, 0) : uv_tcp_init(c->loop, &c->io.tcp);
    c->io.stream.data = c;
    c->io_open = rc == 0;
    c->io_closing = false;
    return c->io_open;
}

static void connect_address(struct q__conn *c) {
    c->state = CONNECTING;
    c->connect.data = c;
    if (!open_stream(c)) {
        lose(c, Q_NO_MEMORY, "no socket for %s", c->endpoint->where);
        return;
    }
    int rc = 0;
    if (c->endpoint->url.scheme == Q_SCHEME_UNIX)
        uv_pipe_connect(&c->connect, &c->io.pipe, c->endpoint->url.host, on_connected);
    else
        rc = uv_tcp_connect(&c->connect, &c->io.tcp, c->address->ai_addr, on_connected);
    if (rc < 0)
        lose(c, Q_UNREACHABLE, "cannot reach Redis at %s: %s", c->endpoint->where, uv_strerror(rc));
}

static void finish_close(struct q__conn *c);

static void on_resolved(uv_getaddrinfo_t *req, int status, struct addrinfo *res) {
    struct q__conn *c = req->data;
    c->resolving = false;
    if (c->state != RESOLVING) { /* it timed out, or the connection is being closed */
        if (res) uv_freeaddrinfo(res);
        if (c->state == CLOSING) finish_close(c);
        return;
    }
    if (status < 0) {
        lose(c, Q_UNREACHABLE, "cannot resolve \"%s\": %s", c->endpoint->url.host,
             uv_strerror(status));
        return;
    }
    c->addresses = res;
    size_t n = 0; /* any of them, so that one dead address does not stop us for good */
    for (struct addrinfo *a = res; a; a = a->ai_next) n++;
    c->address = res;
    for (size_t skip = c->backoff_ms ? q__random_below(n) : 0; skip; skip--)
        c->address = c->address->ai_next;
    connect_address(c);
}

static void try_connect(struct q__conn *c) {
    if (c->resolving) { /* the last resolution still hangs: look again later */
        lose(c, Q_UNREACHABLE, "the name \"%s\" does not resolve", c->endpoint->url.host);
        return;
    }
    c->state = RESOLVING;
    uv_update_time(c->loop);
    uv_timer_start(&c->deadline, on_deadline, c->endpoint->connect_timeout_ms, 0);
    if (c->endpoint->url.scheme == Q_SCHEME_UNIX) {
        connect_address(c);
        return;
    }
    char port[8];
    struct addrinfo hints = {
        .ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM, .ai_flags = AI_ADDRCONFIG};
    if (strspn(c->endpoint->url.host, "0123456789.") == strlen(c->endpoint->url.host) ||
        strchr(c->endpoint->url.host, ':'))
        hints.ai_flags = AI_NUMERICHOST;
    snprintf(port, sizeof port, "%u", c->endpoint->url.port);
    c->resolve.data = c;
    c->resolving = true;
    int rc = uv_getaddrinfo(c->loop, &c->resolve, on_resolved, c->endpoint->url.host, port, &hints);
    if (rc < 0) {
        c->resolving = false;
        lose(c, Q_UNREACHABLE, "cannot resolve \"%s\": %s", c->endpoint->url.host, uv_strerror(rc));
    }
}

static void on_retry(uv_timer_t *t) {
    try_connect(t->data);
}

/* --- the end of a connection */

static void on_io_closed(uv_handle_t *h) {
    struct q__conn *c = h->data;
    c->io_open = c->io_closing = false;
    if (c->state == CLOSING)
        finish_close(c);
    else
        uv_timer_start(&c->retry, on_retry, c->backoff_ms, 0);
}

static void fail_pending(struct q__conn *c, const struct q_error *err) {
    struct q__cmd *cmd = c->head;
    c->head = c->tail = NULL;
    while (cmd) {
        struct q__cmd *next = cmd->next;
        if (cmd->fn && !cmd->greeting) cmd->fn(cmd->ctx, NULL, err);
        cmd_unref(cmd);
        cmd = next;
    }
}

static void tear_down(struct q__conn *c, const struct q_error *err) {
    uv_timer_stop(&c->deadline);
    uv_timer_stop(&c->retry);
    if (c->addresses) uv_freeaddrinfo(c->addresses);
    c->addresses = c->address = NULL;
    if (c->reader) redisReaderFree(c->reader);
    c->reader = NULL;
    q__long_finish(&c->incoming);
    q__tls_free(c->tls);
    c->tls = NULL;
    c->client_id = 0;
    c->broken = false;
    if (c->io_open && !c->io_closing) {
        c->io_closing = true;
        uv_close((uv_handle_t *)&c->io.stream, on_io_closed);
    }
    fail_pending(c, err);
}

static void lose(struct q__conn *c, enum q_status code, const char *fmt, ...) {
    struct q_error err = {.code = code};
    va_list args;
    if (c->state == IDLE || c->state == CLOSING) return;
    va_start(args, fmt);
    vsnprintf(err.text, sizeof err.text, fmt, args);
    va_end(args);
    c->state = IDLE;
    c->backoff_ms = q__backoff_reconnect(c->backoff_ms, BACKOFF_BASE_MS, BACKOFF_CAP_MS);
    tear_down(c, &err);
    if (!c->io_open && c->state == IDLE) uv_timer_start(&c->retry, on_retry, c->backoff_ms, 0);
    if (c->state == IDLE) c->on.lost(c->on.ctx, c, &err, c->backoff_ms);
}

void q__conn_drop(struct q__conn *c, enum q_status code, const char *why) {
    lose(c, code, "%s", why);
}

static void finish_close(struct q__conn *c) {
    if (c->handles || c->io_open || c->resolving) return;
    void (*closed)(void *) = c->closed;
    void *ctx = c->closed_ctx;
    free(c->read_buf);
    free(c);
    if (closed) closed(ctx);
}

static void on_timer_closed(uv_handle_t *h) {
    struct q__conn *c = h->data;
    c->handles--;
    finish_close(c);
}

void q__conn_close(struct q__conn *c, void (*done)(void *ctx), void *ctx) {
    struct q_error err;
    q__assert(c->state != CLOSING);
    q__error(&err, Q_CLOSED, "the connection was closed");
    c->state = CLOSING;
    c->closed = done;
    c->closed_ctx = ctx;
    if (c->resolving) uv_cancel((uv_req_t *)&c->resolve);
    tear_down(c, &err);
    uv_close((uv_handle_t *)&c->retry, on_timer_closed);
    uv_close((uv_handle_t *)&c->deadline, on_timer_closed);
}

struct q__conn *q__conn_create(uv_loop_t *loop, const struct q__endpoint *e, const char *tag,
                               const struct q__conn_events *on) {
    struct q__conn *c = calloc(1, sizeof *c);
    if (!c) return NULL;
    c->loop = loop;
    c->endpoint = e;
    c->on = *on;
    snprintf(c->tag, sizeof c->tag, "%s", tag);
    uv_timer_init(loop, &c->retry);
    uv_timer_init(loop, &c->deadline);
    c->retry.data = c->deadline.data = c;
    c->handles = 2;
    uv_timer_start(&c->retry, on_retry, 0, 0); /* from the loop: no callback inside this call */
    return c;
}

bool q__conn_ready(const struct q__conn *c) {
    return c && c->state == READY;
}
int q__conn_fd(const struct q__conn *c) {
    uv_os_fd_t fd;
    bool plain = q__conn_ready(c) && !c->tls;
    return plain && uv_fileno((const uv_handle_t *)&c->io.stream, &fd) == 0 ? fd : -1;
}
int64_t q__conn_client_id(const struct q__conn *c) {
    return c->client_id;
}
