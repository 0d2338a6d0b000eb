/* job.h: a job with what only the library knows of it. */
#ifndef QUERN_QUEUE_JOB_H
#define QUERN_QUEUE_JOB_H

#include "queue/internal.h"

struct q__queue;

/* The header of an entry that a script wrote: ~1,<attempt>,<crashes>,<queued_ms>,<flags>~{json}.
 * Flags: h or l (its inbox; none: the normal one), d (its delay is served), g<n> and m<n> (signal and
 * peak memory in KiB of the last worker that died with it), t<k> (ticket k of a bulk job; last).
 * Entries of producers have none. */
struct q__header {
    uint32_t attempt, crashes; /* failed runs so far; workers that died with it */
    int64_t queued_ms;
    char inbox; /* 'h', 'l', or 0 */
    bool delayed;
    int32_t ticket; /* -1: none */
    uint32_t signal, rss_kb; /* 0: not known */
};
enum { Q__HEADER_MAX = 96 };
enum { Q__SLOTS = 192 }; /* places of a worker for large entries, a third for each inbox (slot.c) */

/* Length of the header at the start of entry, 0 if it has none (h is then all zero, ticket -1), or
 * SIZE_MAX if it starts like one and is none. */
size_t q__header_parse(struct q__header *h, const char *entry, size_t len);
size_t q__header_write(const struct q__header *h, char out[Q__HEADER_MAX]);

enum q__hold {
    Q__ADMITTING, /* claimed, being checked before it is handed over */
    Q__HELD,      /* in the caller's hands */
    Q__ENDING,    /* finished by the caller, not yet in Redis */
};

/* One finished job on its way into Redis; it is part of the job's own memory. */
struct q__item {
    struct q__item *next;
    struct q_job *job;
    char verb;  /* of turn.lua */
    bool again; /* was in a call whose reply never came */
    char *envelope;
    size_t envelope_len;
    const char *state; /* envelope's state; for d: delayed, retrying, waiting */
    int64_t due_ms;
};

struct q_job_priv {
    struct q_job job;
    struct q__item item;            /* its way into Redis, once it is finished */
    struct q__queue *queue;         /* NULL: from q_job_parse */
    struct q_job_priv *prev, *next; /* in the queue's list */
    char *entry;                    /* what Redis gave, from malloc */
    struct q__header header;
    int64_t delay_ms;
    unsigned slot; /* the entry lies in slot - 1; 0: in the hash (slot.c) */
    enum q__hold hold;
    bool has_id;           /* the producer's own, not made here */
    bool parsed;           /* false: only id, token and error are good */
    bool cx_seen;          /* stands in T:cx: take it out with the commit */
    uint64_t delivered_us; /* monotonic, for run_ms */
    int64_t started_ms;
    uint64_t progress_at_ms; /* monotonic: when the last progress went out */
    char *progress;          /* waiting to go out */
    struct q__buf points;    /* of the curve, the same (progress.c) */
    bool live;               /* T:s:<id> was written */
};

/* Parses an entry; takes it over in every case. The job always comes back, even when it is bad
 * (then with id "" or the one found, code and err set, Q_BAD_JOB returned), so that it can be
 * buried; NULL only when memory is out. max: bytes of entry allowed. */
enum q_status q__job_parse(struct q_job **job, const char *queue, char *entry, size_t len,
                           size_t max, enum q_code *code, struct q_error *err);
void q__job_free(struct q_job *job);

/* --- envelope.c */
struct q__envelope {
    const struct q_job *job;
    const char *state; /* done failed cancelled expired dead */
    const char *worker;
    int64_t ended_ms;
    double run_ms;     /* < 0: it never ran */
    uint32_t attempts; /* runs that ended badly or well, this one included; 0: none */
    uint32_t batch;
    const char *version, *manifest, *ref;
    const char *result; /* JSON; NULL: null (done) or left out */
    size_t result_len;
    enum q_code code; /* Q_CODE_N: no error */
    const char *message;
    bool retryable;
};
/* From malloc, NUL-terminated; NULL without memory. */
char *q__envelope_make(const struct q__envelope *e, size_t *len);

#endif
