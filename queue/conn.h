/* conn.h: one connection to Redis on a libuv loop: see conn.c. */
#ifndef QUERN_QUEUE_CONN_H
#define QUERN_QUEUE_CONN_H

#include "queue/internal.h"
#include "queue/script.h"

#include <hiredis/hiredis.h>

struct q__conn;

/* What connections of one worker or client share; the strings are its own. */
struct q__endpoint {
    struct q_url url;
    char where[400]; /* the URL without password */
    char *name;      /* for CLIENT SETNAME */
    char *tls_name;
    void *tls; /* SSL_CTX, NULL without TLS */
    uint32_t connect_timeout_ms, reply_timeout_ms;
};
enum q_status q__endpoint_init(struct q__endpoint *e, const struct q_conn_options *opt,
                               struct q_error *err);
void q__endpoint_finish(struct q__endpoint *e);

struct q__conn_events {
    void *ctx;
    void (*ready)(void *ctx, struct q__conn *c);
    /* Lost, or could not connect. retry_ms: when it tries again. Pending calls have failed already.
     */
    void (*lost)(void *ctx, struct q__conn *c, const struct q_error *why, uint32_t retry_ms);
};

/* Borrows e until closed. tag goes into the client name after a colon. NULL without memory. */
struct q__conn *q__conn_create(uv_loop_t *loop, const struct q__endpoint *e, const char *tag,
                               const struct q__conn_events *on);
/* Fails pending calls, closes, frees, then calls done (may be NULL). */
void q__conn_close(struct q__conn *c, void (*done)(void *ctx), void *ctx);
/* Hard close and reconnection, as if the peer had gone. */
void q__conn_drop(struct q__conn *c, enum q_status code, const char *why);
bool q__conn_ready(const struct q__conn *c);
int q__conn_fd(const struct q__conn *c); /* of a plain connection that is ready, else -1 */
int64_t q__conn_client_id(const struct q__conn *c); /* CLIENT ID, 0 if refused */

/* reply NULL: the connection went, err says why. An error reply comes with both. The reply is the
 * library's; a callback may steal reply->str by setting it to NULL. */
typedef void q__reply_fn(void *ctx, redisReply *reply, const struct q_error *err);

/* Sends a command; fn (may be NULL) comes exactly once, never inside the call. False: not
 * connected, nothing was sent and fn will not come. deadline_ms 0: the endpoint's reply timeout. */
bool q__conn_send(struct q__conn *c, size_t argc, const char **argv, const size_t *argv_len,
                  uint32_t deadline_ms, q__reply_fn *fn, void *ctx);
/* The same for words in one string, separated by spaces. */
bool q__conn_words(struct q__conn *c, const char *words, q__reply_fn *fn, void *ctx);

/* Arguments of a call under construction: texts are borrowed, numbers and keys are kept here. */
struct q__args {
    struct q__arg {
        const char *ptr; /* NULL: at scratch + off */
        size_t off, len;
    } * arg;
    size_t n, cap;
    struct q__buf scratch;
    bool failed;
};
void q__args_init(struct q__args *a);
void q__args_reset(struct q__args *a);
void q__args_finish(struct q__args *a);
void q__args_bytes(struct q__args *a, const void *ptr, size_t len); /* borrowed until the call */
void q__args_text(struct q__args *a, const char *text);
void q__args_copy(struct q__args *a, const void *ptr, size_t len);
void q__args_int(struct q__args *a, int64_t n);
void q__args_key(struct q__args *a, const char *queue, const char *suffix, const char *rest);
/* Sends them as a command, or as EVALSHA of a script whose first n_keys arguments are keys.
 * NOSCRIPT is healed inside: the script is loaded and the same bytes go out again. */
bool q__conn_args(struct q__conn *c, struct q__args *a, q__reply_fn *fn, void *ctx);
bool q__conn_script(struct q__conn *c, enum q__script script, size_t n_keys, struct q__args *a,
                    q__reply_fn *fn, void *ctx);

redisReader *
q__reader_create(void); /* hiredis' reader with a limit on arrays; NULL without memory */

/* --- long_reply.c: a long string on its way in, ptr NULL: none */
struct q__long {
    char *ptr;
    size_t len, got; /* of the string; of it and its line end */
};
/* Does the parser wait for the rest of a long string? Then what it has of it is in l, and the
 * parser is to be replaced. */
bool q__long_begin(struct q__long *l, const redisReader *r);
char *q__long_space(struct q__long *l, size_t *n); /* where the next n bytes belong */
size_t q__long_feed(struct q__long *l, const char *data,
                    size_t n); /* how many were taken; data may lie in its place already */
bool q__long_full(const struct q__long *l);
redisReply *q__long_end(struct q__long *l); /* NULL: no line end, or no memory */
void q__long_finish(struct q__long *l);

/* --- reading replies: all tolerate the wrong type */
int64_t q__reply_int(const redisReply *r, int64_t otherwise); /* integers and strings of digits */
const redisReply *q__reply_at(const redisReply *r, size_t i); /* element, or NULL */
bool q__reply_is(const redisReply *r, const char *text);
/* The value of `name:` in what INFO says; "" where it is not there. */
void q__info_field(const char *info, const char *name, char *out, size_t out_len);
static inline bool q__reply_text(const redisReply *r) {
    return r && (r->type == REDIS_REPLY_STRING || r->type == REDIS_REPLY_STATUS) && r->str;
}

/* --- tls.c */
struct q__tls;
void *q__tls_context(const struct q_conn_options *opt, struct q_error *err);
void q__tls_context_free(void *ctx);
struct q__tls *q__tls_create(void *ctx, const char *name); /* name "": not checked */
void q__tls_free(struct q__tls *t);
void q__tls_feed(struct q__tls *t, const char *data, size_t len); /* bytes of the network */
int q__tls_handshake(struct q__tls *t);                   /* 1 done, 0 wants more, -1 failed */
int q__tls_read(struct q__tls *t, char *buf, size_t len); /* > 0 bytes, 0 no more now, -1 over */
bool q__tls_write(struct q__tls *t, const char *data, size_t len);
char *q__tls_take(struct q__tls *t, size_t *len); /* bytes for the network, malloc; NULL none */
const char *q__tls_why(struct q__tls *t, char *buf, size_t len);

#endif
