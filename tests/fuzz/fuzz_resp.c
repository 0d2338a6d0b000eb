/* What a server sends, through the parser and through everything that reads replies of ours. */
#include "queue/conn.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

static void touch(const redisReply *r, int depth) {
    q__reply_int(r, -1);
    q__reply_is(r, "OK");
    if (q__reply_text(r) && r->len != 0 && r->str[r->len] != 0)
        abort(); /* strings end with a NUL, everything here counts on it */
    if (r->type != REDIS_REPLY_ARRAY) return;
    if (depth > 16) abort();
    for (size_t i = 0; i <= r->elements; i++) {
        const redisReply *e = q__reply_at(r, i);
        if (e) touch(e, depth + 1);
    }
}

/* A long string passes by the parser: what a connection does, without the connection. */
static size_t feed_long(struct q__long *l, const uint8_t *data, size_t n) {
    size_t taken = q__long_feed(l, (const char *)data, n);
    if (!q__long_full(l)) return taken;
    redisReply *reply = q__long_end(l);
    if (!reply) return SIZE_MAX;
    touch(reply, 0);
    freeReplyObject(reply);
    return taken;
}

/* The first byte says into how many pieces the rest is cut. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len) {
    if (len < 1) return 0;
    size_t piece = 1 + data[0] % 64, at = 1;
    redisReader *reader = q__reader_create();
    struct q__long incoming = {0};
    while (reader && at < len) {
        size_t n = len - at < piece ? len - at : piece;
        if (incoming.ptr) {
            n = feed_long(&incoming, data + at, n);
            if (n == SIZE_MAX) break;
            at += n;
            continue;
        }
        if (redisReaderFeed(reader, (const char *)data + at, n) != REDIS_OK) break;
        at += n;
        void *reply = NULL;
        int rc;
        while ((rc = redisReaderGetReply(reader, &reply)) == REDIS_OK && reply) {
            touch(reply, 0);
            freeReplyObject(reply);
            reply = NULL;
        }
        if (rc != REDIS_OK) break;
        if (!q__long_begin(&incoming, reader)) continue;
        redisReaderFree(reader);
        reader = q__reader_create();
    }
    q__long_finish(&incoming);
    if (reader) redisReaderFree(reader);
    return 0;
}
