/* internal.h: what the files of queue/ share and nobody else sees: small parts without a home of
 * their own. Bigger nouns have their own header (json.h, conn.h, script.h, lease.h). */
#ifndef QUERN_QUEUE_INTERNAL_H
#define QUERN_QUEUE_INTERNAL_H

#include "queue/queue.h"

#include <stdarg.h>

#define Q__COUNT(a) (sizeof(a) / sizeof((a)[0]))

/* --- error.c */
enum q_status q__error(struct q_error *err, enum q_status code, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
/* A bug of ours: says where and aborts; stays on in release builds. */
void q__bug(const char *file, int line, const char *what) __attribute__((noreturn));
#define q__assert(cond) ((cond) ? (void)0 : q__bug(__FILE__, __LINE__, #cond))

/* A write to a closed socket must not end the process. */
void q__ignore_sigpipe(void);

/* --- backoff.c: randomness and the waits made of it */
uint64_t q__random(void);             /* not for secrets */
uint64_t q__random_unique(void);      /* the kernel's: not shared with a forked sister */
uint64_t q__random_below(uint64_t n); /* 0 … n-1; n 0 gives 0 */
/* Decorrelated jitter: between base and three times the last wait, at most cap. */
uint32_t q__backoff_reconnect(uint32_t last_ms, uint32_t base_ms, uint32_t cap_ms);
/* Full jitter: between 0 and base * 2^(attempt-1), at most cap. */
uint32_t q__backoff_retry(uint32_t attempt, uint32_t base_ms, uint32_t cap_ms);

/* --- buf.c: a growing byte buffer with a maximum at birth */
struct q__buf {
    char *ptr;
    size_t len, cap, max;
    bool failed; /* out of memory or over max: everything after is ignored, check once */
};
void q__buf_init(struct q__buf *b, size_t max);
void q__buf_reserve(struct q__buf *b, size_t more);
void q__buf_add(struct q__buf *b, const void *data, size_t len);
void q__buf_str(struct q__buf *b, const char *text);
void q__buf_int(struct q__buf *b, int64_t n);
void q__buf_real(struct q__buf *b, double x); /* null if not finite */
void q__buf_json(struct q__buf *b, const char *text,
                 size_t len); /* quoted, escaped; bad UTF-8 becomes U+FFFD */
void q__buf_free(struct q__buf *b);
/* The bytes, NUL-terminated, taken out of b; NULL if failed. */
char *q__buf_take(struct q__buf *b, size_t *len);
/* Decimal digits of n into out (21 bytes are enough), no NUL; returns the length. */
size_t q__digits(char *out, int64_t n);

#endif
