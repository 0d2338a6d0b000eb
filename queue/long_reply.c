/* long_reply.c: a reply that is one long string (a large entry, a reference's value) is read from
 * the socket straight into its own memory. Through the parser its bytes would be copied three times
 * more: into the parser's buffer, with it as it grows, and out of it as a string; of 800 KB that
 * was a third of what the loop did for such a job.
 *
 * The parser sees the head of the string. When it asks for more, what it has of the string moves
 * here, and a new parser waits behind it. Its internals are looked at in this one place.
 * Thread: the connection's. */
#include "queue/conn.h"

#include <stdlib.h>
#include <string.h>

enum { LONG_BYTES_MIN = 64 << 10, LONG_BYTES_MAX = 512 << 20 };

/* The type of the reply at which the parser stands, -1 if it stands between replies or inside one.
 */
static int top_type(const redisReader *r) {
#if HIREDIS_MAJOR < 1
    return r->ridx == 0 ? r->rstack[0].type : -1;
#else
    return r->ridx == 0 ? r->task[0]->type : -1;
#endif
}

bool q__long_begin(struct q__long *l, const redisReader *r) {
    if (top_type(r) != REDIS_REPLY_STRING || r->len - r->pos < 8) return false;
    const char *digits = r->buf + r->pos, *end = r->buf + r->len, *p = digits;
    size_t len = 0;
    while (p < end && p - digits < 10 && *p >= '0' && *p <= '9')
        len = len * 10 + (size_t)(*p++ - '0');
    if (end - p < 2 || p[0] != '\r' || p[1] != '\n') return false;
    p += 2;
    size_t got = (size_t)(end - p);
    if (len < LONG_BYTES_MIN || len > LONG_BYTES_MAX || got >= len + 2) return false;
    char *ptr = malloc(len + 2);
    if (!ptr) return false; /* the parser will say so */
    memcpy(ptr, p, got);
    *l = (struct q__long){.ptr = ptr, .len = len, .got = got};
    return true;
}

char *q__long_space(struct q__long *l, size_t *n) {
    *n = l->len + 2 - l->got;
    return l->ptr + l->got;
}

size_t q__long_feed(struct q__long *l, const char *data, size_t n) {
    size_t left;
    char *to = q__long_space(l, &left);
    if (n > left) n = left;
    if (data != to) memcpy(to, data, n);
    l->got += n;
    return n;
}

bool q__long_full(const struct q__long *l) {
    return l->got == l->len + 2;
}

redisReply *q__long_end(struct q__long *l) {
    bool good = memcmp(l->ptr + l->len, "\r\n", 2) == 0;
    redisReply *r = good ? calloc(1, sizeof *r) : NULL;
    if (r) {
        l->ptr[l->len] = 0;
        r->type = REDIS_REPLY_STRING;
        r->str = l->ptr;
        r->len = l->len;
        l->ptr = NULL;
    }
    q__long_finish(l);
    return r;
}

void q__long_finish(struct q__long *l) {
    free(l->ptr);
    *l = (struct q__long){0};
}
