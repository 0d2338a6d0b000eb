/* queue.h: quern's job queue over Redis lists. This header is the manual; the bytes that producers
 * see are in queue/PROTOCOL.md.
 *
 * Two users:
 *   struct q_worker  takes jobs and finishes them, on a libuv loop that the caller owns and runs;
 *   struct q_ctl     a blocking client for command-line tools: submit, look, wait, cancel, requeue.
 *
 * A worker in ten lines:
 *
 *     struct q_worker_options opt;
 *     q_worker_options_init(&opt);
 *     opt.conn.url = "redis://127.0.0.1:6379/0";
 *     opt.queues = (const struct q_queue_option[]){{.name = "default", .weight = 1}}; opt.n_queues
 * = 1; opt.on.jobs = my_on_jobs; opt.on.ctx = me; struct q_worker *w = q_worker_create(loop, &opt,
 * &err); q_worker_want(w, 64);                // room for 64 more jobs uv_run(loop,
 * UV_RUN_DEFAULT);        // my_on_jobs gets jobs; each is finished by exactly one of
 *                                          // q_job_done, q_job_fail, q_job_handback, q_bulk_leave
 *
 * Threads. Every q_worker_* and q_job_* and q_bulk_* function is called on the loop's thread, and
 * so is every callback. Lanes may read a struct q_job that they were handed (it does not change
 * while the caller owns it), nothing else. The heartbeat has a thread, a loop and a connection of
 * its own inside the library: no work of the caller can starve it. A q_ctl belongs to one thread at
 * a time.
 *
 * Ownership. A job handed to on.jobs is the caller's until one of the four functions above takes it
 * back; they free it. That holds for fenced and cancelled jobs too: finishing a fenced job is free
 * of effects, and it is how the caller says that it no longer uses the memory.
 *
 * What is guaranteed: at-least-once execution, exactly-once commit. A job whose worker dies runs
 * again elsewhere; a commit by somebody who lost the job has no effect. */
#ifndef QUERN_QUEUE_H
#define QUERN_QUEUE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <uv.h>

/* --- errors ----------------------------------------------------------------------------------- */

/* What can go wrong with the world or with a call. X(name, code, text) */
#define Q_STATUS_MAP(X)                                                                            \
    X(OK, "ok", "ok")                                                                              \
    X(BAD_URL, "bad_url", "bad Redis URL")                                                         \
    X(UNSUPPORTED, "unsupported", "not supported")                                                 \
    X(BAD_OPTION, "bad_option", "bad option")                                                      \
    X(NO_MEMORY, "no_memory", "out of memory")                                                     \
    X(UNREACHABLE, "unreachable", "Redis cannot be reached")                                       \
    X(TLS, "tls", "TLS failed")                                                                    \
    X(AUTH, "auth", "Redis refused the user or password")                                          \
    X(DENIED, "denied", "Redis refused a command to this user")                                    \
    X(REDIS, "redis", "Redis answered with an error")                                              \
    X(FULL, "full", "Redis is full (maxmemory)")                                                   \
    X(PROTOCOL, "protocol", "the answer was not understood")                                       \
    X(TIMEOUT, "timeout", "timed out")                                                             \
    X(NOT_FOUND, "not_found", "not found")                                                         \
    X(FINAL, "final", "the job is already in a final state")                                       \
    X(BAD_JOB, "bad_job", "the job is malformed")                                                  \
    X(FENCED, "fenced", "the lease was lost")                                                      \
    X(CLOSED, "closed", "closed")

#define Q_STATUS_ENUM(name, code, text) Q_##name,
enum q_status { Q_STATUS_MAP(Q_STATUS_ENUM) Q_STATUS_N };

/* One error slot: text is a whole sentence that names the thing, the found and the expected. */
struct q_error {
    enum q_status code;
    char text[512];
};

/* "ok", "bad Redis URL", … Never NULL. */
const char *q_status_text(enum q_status s);
/* "ok", "bad_url", … for logs and JSON. Never NULL. */
const char *q_status_name(enum q_status s);

/* Job error codes: what an envelope's error.code can be. X(name, retryable by default, meaning).
 * PROTOCOL.md lists the same table; a unit test compares the two. */
#define Q_CODE_MAP(X)                                                                              \
    X(bad_json, 0, "the entry is not JSON, or not a JSON object, or too deep")                     \
    X(bad_job, 0, "a field has the wrong type or is out of range, or a required one is missing")   \
    X(unknown_op, 0, "no such operation")                                                          \
    X(unknown_model, 0, "no such model, version or label in the store")                            \
    X(bad_model, 0, "the model cannot be loaded or fails its golden sample")                       \
    X(bad_input, 0, "the input cannot be decoded")                                                 \
    X(bad_shape, 0, "an input has the wrong shape")                                                \
    X(bad_dtype, 0, "an input has the wrong element type")                                         \
    X(ref_denied, 0, "a reference points outside what this worker may read or write")              \
    X(ref_not_found, 0, "a reference points at nothing")                                           \
    X(ref_failed, 1, "a reference could not be read this time")                                      \
    X(too_large, 0, "a size is over a limit")                                                      \
    X(unsupported, 0, "this build does not do that")                                               \
    X(expired, 0, "not started before expire_ms")                                                  \
    X(timeout, 0, "ran longer than timeout_ms")                                                    \
    X(cancelled, 0, "cancelled by request")                                                        \
    X(crashed, 0, "the worker died three times with this job")                                     \
    X(not_unique, 0, "a job with the same unique key is waiting or running")                       \
    X(after_failed, 0, "a job named in after did not end well")                                    \
    X(output_failed, 1, "the output could not be written")                                         \
    X(no_memory, 1, "not enough memory for this job now")                                          \
    X(overloaded, 1, "the worker could not take the job in time")                                  \
    X(internal, 1, "a failure that is not the job's fault")

#define Q_CODE_ENUM(name, retryable, meaning) Q_CODE_##name,
enum q_code { Q_CODE_MAP(Q_CODE_ENUM) Q_CODE_N };

const char *q_code_name(enum q_code code);    /* "bad_shape" */
const char *q_code_meaning(enum q_code code); /* one sentence */
bool q_code_retryable(enum q_code code);      /* the default; q_job_fail may say otherwise */
/* The code of that name, or Q_CODE_N. */
enum q_code q_code_from_name(const char *name);

/* --- limits (all from outside is compared with these before anything else) -------------------- */

enum {
    Q_QUEUE_NAME_MAX = 64, /* [A-Za-z0-9_.-] */
    Q_ID_MAX = 64,         /* printable ASCII but space " \ { } */
    Q_OP_MAX = 32,
    Q_MODEL_MAX = 256,
    Q_KEY_MAX = 256, /* unique, reply_to */
    Q_META_BYTES_MAX = 4096,
    Q_AFTER_MAX = 32,  /* ids in after */
    Q_DEPTH_MAX = 64,  /* nesting of a job's JSON */
    Q_BATCH_MAX = 64,  /* jobs in one script call */
    Q_QUEUES_MAX = 16, /* queues of one worker */
    Q_WID_MAX = 32,
    Q_METRICS_MAX = 32,     /* numbers in one point of a curve */
    Q_METRIC_NAME_MAX = 64,
    Q_RESULT_BYTES_MAX = 256 << 20, /* above it a job fails with too_large */
    Q_BULK_GRAINS_MAX = 1 << 24,    /* units of a bulk job: 2 MiB of bits */
    Q_BULK_TICKETS_MAX = 256,
    Q_BULK_NOTE_BYTES_MAX = 4096,
};

/* --- connections ------------------------------------------------------------------------------ */

/* Where Redis is. Pointers are borrowed during the call that takes the options. */
struct q_conn_options {
    const char *url;  /* redis://[user[:password]@]host[:port][/db], rediss:// (TLS),
                       * unix:/path[?db=N];  NULL: redis://127.0.0.1:6379/0 */
    const char *user; /* override what the URL says; NULL: leave it */
    const char *password;
    const char *tls_ca;   /* PEM file or folder; NULL: the system's */
    const char *tls_cert; /* client certificate and key, PEM; both or none */
    const char *tls_key;
    const char *tls_name;        /* name to expect in the certificate; NULL: the URL's host */
    bool tls_no_verify;          /* accept any certificate: for tests */
    const char *name;            /* CLIENT SETNAME, [A-Za-z0-9_.:-]; NULL: "quern" */
    uint32_t connect_timeout_ms; /* 0: 5000 */
    uint32_t reply_timeout_ms;   /* a reply later than that closes the connection; 0: 10000 */
};

/* A URL taken apart. Fixed storage, no allocation. */
enum q_scheme { Q_SCHEME_TCP, Q_SCHEME_TLS, Q_SCHEME_UNIX };
struct q_url {
    enum q_scheme scheme;
    char host[256]; /* or the socket's path */
    uint16_t port;
    uint32_t db;
    char user[128], password[256];
};

/* Q_OK, Q_BAD_URL, or Q_UNSUPPORTED (redis+sentinel://, redis+cluster://); err may be NULL. */
enum q_status q_url_parse(struct q_url *url, const char *text, struct q_error *err);
/* The URL without its password, for logs. Returns buf. */
char *q_url_redact(const struct q_url *url, char *buf, size_t buf_len);

/* --- jobs ------------------------------------------------------------------------------------- */

/* A piece of the job's JSON text, not decoded, not NUL-terminated; ptr NULL: the field is absent.
 * Lanes decode it with a JSON library. In entries above 64 KiB the value of `input` was only
 * skimmed (brackets, strings, depth): decoding may still find it invalid; fail the job with
 * bad_json then. */
struct q_span {
    const char *ptr;
    size_t len;
};

/* A parsed job. Strings are NUL-terminated, "" where absent; everything points into the job's own
 * memory and lives until the job is finished. */
struct q_job {
    const char *queue; /* name of the queue it came from */
    const char *id;    /* the producer's, or made here */
    const char *op;    /* never empty */
    const char *model;
    const char *tenant;
    const char *encoding; /* "", "json", "b64" */
    const char *traceparent;
    const char *unique;
    const char *reply_to;
    struct q_span input, params, meta;   /* raw JSON */
    struct q_span input_ref, output_ref; /* raw JSON: a string, or an object */
    const char *const *after;            /* ids, n_after of them */
    uint32_t n_after;
    uint32_t timeout_ms;  /* 0: none given */
    uint32_t progress_ms; /* at most so often; 0: none given */
    uint32_t ttl_ms;      /* of the result */
    uint32_t retry_max, retry_base_ms, retry_cap_ms;
    uint32_t unique_ttl_ms;
    double cost;       /* 0: none given */
    int64_t queued_ms; /* Unix ms by Redis' clock when it was queued, if known; else when first
                          claimed */
    int64_t at_ms, expire_ms; /* Unix ms; 0: none given */
    bool wait, status;
    uint32_t attempt; /* 1 at the first run */
    uint32_t crashes; /* workers that died with it. Above 0: run it alone, not in a batch */
    int32_t ticket;   /* of a bulk job that was opened: 0 … tickets-1; else -1 */
    uint64_t token;   /* fencing token: grows with each claim; goes with every side effect */
    const char *raw;  /* the whole entry as in Redis, without header */
    size_t raw_len;
    int64_t claimed_ms; /* Unix ms by Redis' clock */

    /* the caller's, 0 at first; the library never touches them */
    void *user;

    /* set by the library on the loop thread: the caller may read them there */
    bool cancel_wanted; /* on.cancel was called for it */
    bool fenced;        /* lost: whatever is said of it has no effect */

    struct q_job_priv *priv;
};

/* Parses one entry (with or without `~1,…~` header) as the worker does, without Redis: for tests,
 * fuzzing and `quern submit`. Takes a copy. On error *job is NULL, err says what is wrong, *code is
 * bad_json or bad_job. Free with q_job_free. */
enum q_status q_job_parse(struct q_job **job, const char *queue, const char *entry, size_t len,
                          enum q_code *code, struct q_error *err);
/* Frees a job that came from q_job_parse (never one that came through on.jobs). NULL is fine. */
void q_job_free(struct q_job *job);

/* --- the worker ------------------------------------------------------------------------------- */

struct q_worker;

/* All optional but jobs. ctx is handed to each. */
struct q_worker_callbacks {
    void *ctx;
    /* n >= 1 jobs of one queue; the jobs become the caller's, the array is the library's. At most
     * as many as were wanted, so the caller always has room. */
    void (*jobs)(void *ctx, struct q_job **jobs, size_t n);
    /* Somebody asked to cancel a job that the caller holds. Stop when convenient, then
     * q_job_fail(…, Q_CODE_cancelled, …); a q_job_done that comes first is accepted. */
    void (*cancel)(void *ctx, struct q_job *job);
    /* The lease on every job of that queue is lost (job->fenced is set before the call): stop their
     * side effects and finish each. The library takes a new worker id by itself. */
    void (*fenced)(void *ctx, const char *queue, const char *why);
    /* No good beat for 9 s (stop=true): side effects must stop until it is called with false. */
    void (*hold)(void *ctx, bool stop);
    void (*connected)(void *ctx, const char *where); /* ready to claim */
    void (*lost)(void *ctx, const struct q_error *why, uint32_t retry_in_ms);
    /* A thing an operator should read: level as in syslog (4 warning, 5 notice, 6 info, 7 debug);
     * text is "event key=value …". */
    void (*log)(void *ctx, int level, const char *text);
    /* After q_worker_drain: nothing is owned and every commit is in Redis. Called once. */
    void (*drained)(void *ctx);
};

struct q_queue_option {
    const char *name;
    uint32_t weight; /* share of claims while several queues have work; 0 counts as 1 */
};

/* Time for tests: monotonic milliseconds. NULL: the real one. Used for leases, beats, deadlines. */
typedef uint64_t q_clock_fn(void *ctx);

struct q_worker_options {
    struct q_conn_options conn;
    const struct q_queue_option *queues; /* 1 … Q_QUEUES_MAX */
    size_t n_queues;
    struct q_worker_callbacks on;
    const char *name; /* for people: in the card and the envelopes' "worker"; NULL: host:pid */
    uint32_t lanes;   /* for the card */
    uint32_t weight_hi, weight_in, weight_lo; /* the three inboxes; 6, 3, 1 */
    uint32_t beat_ms;                         /* 2000 */
    uint32_t lease_ms;                        /* 15000 */
    uint32_t hold_ms;                         /* 9000: side effects stop without a good beat */
    uint32_t crash_max;                       /* 3: the crash that makes a dead letter */
    uint32_t entry_bytes_max; /* 64 MiB: larger entries become dead letters (too_large) */
    uint32_t ttl_ms;          /* of results where the job does not say; 3600000 */
    bool allow_eviction;      /* accept a maxmemory-policy that evicts */
    q_clock_fn *clock;
    void *clock_ctx;
};

/* Defaults as in the comments above. */
void q_worker_options_init(struct q_worker_options *opt);

/* Starts connecting; never blocks. Options are copied. NULL with err on a bad URL, queue name,
 * certificate, or no memory. Unreachable Redis is not an error here: it keeps trying (on.lost). */
struct q_worker *q_worker_create(uv_loop_t *loop, const struct q_worker_options *opt,
                                 struct q_error *err);

/* The caller has room for n more jobs, now (absolute, not a sum). The library counts down as it
 * delivers, never holds more than that, and asks Redis again by itself. 0 stops pulling. After a
 * lowering, jobs already asked for may still come, never above the earlier number. */
void q_worker_want(struct q_worker *w, uint32_t n);
uint32_t q_worker_wanted(const struct q_worker *w); /* what is left of it */
/* At most n jobs of this queue at a time in the caller's hands; UINT32_MAX: no limit (the default).
 * Q_NOT_FOUND if the worker does not serve it. */
enum q_status q_worker_queue_cap(struct q_worker *w, const char *queue, uint32_t n);

/* What the envelope says about how a result was made. Pointers borrowed during the call. */
struct q_made {
    uint32_t batch;       /* rows or jobs that ran together; 0: left out */
    const char *version;  /* of the model; NULL: left out */
    const char *manifest; /* JSON object text; NULL: left out */
    const char *ref;      /* where the output went, instead of a result; NULL: left out */
    double run_ms;        /* < 0: the library's own measure since delivery */
};

/* Done. `result` is JSON text from malloc, taken over (freed later, also on error); NULL: null.
 * made may be NULL. The commit goes out with others in one script call, at the end of this loop
 * iteration at the latest if none is under way. */
void q_job_done(struct q_worker *w, struct q_job *job, char *result, size_t result_len,
                const struct q_made *made);
/* Failed. Retryable: 1 yes, 0 no, -1 the code's default. A retryable failure with attempts left
 * goes to the delayed set with full jitter; otherwise the job ends: `cancelled` and `expired` under
 * that state, else `failed`, and stays as a dead letter for requeueing (bad_json, crashed and every
 * failure whose attempts are used up; a refusal such as bad_shape only fails). */
void q_job_fail(struct q_worker *w, struct q_job *job, enum q_code code, const char *message,
                int retryable);
/* Would that be the end of the job, not another attempt? */
bool q_job_fail_ends(const struct q_job *job, enum q_code code, int retryable);
/* Gives it back unharmed: another worker takes it at once, no attempt counted. */
void q_job_handback(struct q_worker *w, struct q_job *job);
/* Live progress for T:s:<id>; JSON object text, borrowed, at most 4 KiB. Coalesced: the newest goes
 * out at most every progress_ms (job's, else 500), and the answer tells of a cancellation. Fenced
 * like a commit. */
void q_job_progress(struct q_worker *w, struct q_job *job, const char *json);
/* One point of the job's curve (of a training: epoch, step, loss, learning rate, …): n numbers
 * under names, 1 … Q_METRICS_MAX, become one entry of the stream T:m:<id>, which keeps the last
 * 10,000. Copied. Points gather and go out with the live progress, at most every progress_ms, up to
 * 64 a call, the last ones before the job's end; fenced like a commit. While Redis is away the
 * newest 128 KiB of them are kept. False: not taken (fenced, bad name or number of them, no
 * memory). A run that goes on from a checkpoint sends some steps again: the later entry holds. */
struct q_metric {
    const char *name; /* 1 … Q_METRIC_NAME_MAX bytes */
    double value;     /* written as a whole number where it is one, else with 9 digits; nan, inf */
};
bool q_job_metric(struct q_worker *w, struct q_job *job, const struct q_metric *metric, size_t n);

/* Stops claiming and delivering; on.drained comes when all owned jobs are finished. */
void q_worker_drain(struct q_worker *w);
/* Takes the worker out of Redis if it owns nothing, closes everything, frees w, then calls done
 * (may be NULL) from the loop. Jobs in the caller's hands stay owned in Redis (others recover them)
 * and are freed: use none afterwards. */
void q_worker_close(struct q_worker *w, void (*done)(void *ctx), void *ctx);

/* For a handler of a fatal signal (async-signal-safe): leaves the number and the process' peak memory
 * on the worker's card, from where they come into error.signal and error.rss_kb of a job that killed
 * its workers. Best effort; not over TLS. NULL is fine. */
void q_worker_last_words(const struct q_worker *w, int signal_number);

/* A JSON object for this worker's card in Redis (models, memory, lanes' progress); replaces the
 * last one, written with the next beat. Borrowed; at most 16 KiB. */
void q_worker_card(struct q_worker *w, const char *json);
/* Measured cost of one row of a model, for ETAs: a moving average is kept in Redis. */
void q_worker_cost(struct q_worker *w, const char *queue, const char *model, double ms_per_row);

struct q_worker_stats {
    uint64_t claimed, done, failed, retried, dead, handed_back; /* jobs */
    uint64_t duplicates; /* entries whose id had a final state already */
    uint64_t fenced;     /* commits refused */
    uint64_t recovered;  /* entries this worker took from dead ones */
    uint64_t reconnects, turns, beats;
    uint32_t owned;         /* in the caller's hands */
    uint32_t pending;       /* finished, not yet in Redis */
    uint32_t round_trip_us; /* of the last beat */
    bool connected, held, draining;
};
void q_worker_stats(const struct q_worker *w, struct q_worker_stats *out);
/* The worker's id in that queue (changes after fencing); "" if it does not serve the queue. */
const char *q_worker_wid(const struct q_worker *w, const char *queue);
/* Redis' clock in Unix ms, as last measured; the local clock before the first beat. */
int64_t q_worker_now_ms(const struct q_worker *w);

/* Fetches a string key of Redis (the `redis:` references of inputs) on the command connection.
 * value NULL: err says why (NOT_FOUND, too large, …). value is the callback's, from malloc. The
 * callback always comes, on the loop thread, never inside this call. */
typedef void q_fetch_fn(void *ctx, char *value, size_t len, const struct q_error *err);
void q_worker_fetch(struct q_worker *w, const char *key, size_t bytes_max, q_fetch_fn *done,
                    void *ctx);

/* --- bulk jobs
 * ---------------------------------------------------------------------------------------
 *
 * One job, a data set of n_rows rows, cut into grains of grain_rows rows (the last is shorter). Who
 * claims the job first sizes it and calls q_bulk_open: in one step its entry becomes ticket 0 and
 * tickets 1 … n-1 (copies of the entry, with a number) go to the front of the queue, where lanes of
 * any worker claim them like jobs. Whoever holds a ticket loops: next → range of grains → score,
 * write part → commit (which brings the next) … until it is told to leave or to finalise.
 *
 *   job ──open──▶ ticket 0 ─┐
 *                 ticket 1 ─┼─▶ next: RANGE first,count ─▶ write part ─▶ commit ─┐
 *                 ticket k ─┘         ▲                                           │
 *                                     └───────────────────────────────────────────┤
 *                              LEAVE (nothing left for me) ◀──────────────────────┤
 *                              FINAL (I set the last bit: assemble, q_job_done) ◀─┘
 *
 * A ticket has one range in flight, recorded under its number: when its holder dies, hangs or hands
 * it back, the next holder of the same ticket gets the same range again (crashes counts deaths on
 * it: at crash_max write the rows off as failed and commit). Ranges shrink towards the end (what is
 * left / twice the tickets) so that all end together. Done is a bit a grain: setting it again
 * changes no count, so every counter is right after any crash, and after a total loss of workers
 * the zero bits are what is left. The finaliser's ticket is recorded too: if it dies, its next
 * holder is told FINAL again. A part must be the same bytes whoever writes it, under a name made of
 * `first`, and be put in place by rename: then a writer who lost its ticket does no harm. */

struct q_bulk_plan {
    uint64_t n_rows;
    uint32_t grain_rows; /* n_rows / grain_rows <= Q_BULK_GRAINS_MAX */
    uint32_t n_tickets;  /* lanes that may work on it at once, 1 … Q_BULK_TICKETS_MAX */
    uint32_t range_max;  /* grains in a range; 0: 64 */
};

enum q_bulk_step {
    Q_BULK_RANGE,  /* score grains first … first+count-1 */
    Q_BULK_FINAL,  /* everything is done, and this ticket assembles */
    Q_BULK_LEAVE,  /* nothing left for this ticket, or the job is over: q_bulk_leave */
    Q_BULK_CANCEL, /* cancellation was asked for: q_job_fail(…, Q_CODE_cancelled, …) */
    Q_BULK_LOST,   /* fenced: q_bulk_leave */
    Q_BULK_ERROR,  /* Redis said no: err; hand the job back or try again */
};

struct q_bulk_turn {
    enum q_bulk_step step;
    uint32_t first, count;   /* grains, for RANGE */
    uint32_t crashes;        /* deaths on this range */
    struct q_bulk_plan plan; /* as opened: by whom first, whatever this call said */
    uint32_t grains, grains_done;
    uint64_t rows_ok, rows_failed; /* committed so far */
    int64_t started_ms;            /* Unix ms: when it was opened */
    struct q_error err;
};
typedef void q_bulk_fn(void *ctx, struct q_job *job, const struct q_bulk_turn *turn);

/* Opens the job (ticket -1) and asks for the first range; the job's ticket becomes 0. An id that is
 * open already answers LEAVE. The callback always comes, never inside the call. */
void q_bulk_open(struct q_worker *w, struct q_job *job, const struct q_bulk_plan *plan,
                 q_bulk_fn *done, void *ctx);
/* Asks for the ticket's (next or unfinished) range. */
void q_bulk_next(struct q_worker *w, struct q_job *job, q_bulk_fn *done, void *ctx);
/* The range is written. Counts its rows once, publishes progress, brings the next step. */
void q_bulk_commit(struct q_worker *w, struct q_job *job, uint32_t first, uint32_t count,
                   uint64_t rows_ok, uint64_t rows_failed, q_bulk_fn *done, void *ctx);
/* The committed ranges in order, for the finaliser; ranges is the library's, during the call. */
struct q_bulk_range {
    uint32_t first, count;
};
typedef void q_bulk_ranges_fn(void *ctx, struct q_job *job, const struct q_bulk_range *ranges,
                              size_t n, const struct q_error *err);
void q_bulk_ranges(struct q_worker *w, struct q_job *job, q_bulk_ranges_fn *done, void *ctx);
/* What tickets tell each other: a text under the number of a grain, kept in Redis until the job
 * ends. Writes one if the ticket is still ours (NULL: only looks), and brings all, in no order: the
 * library's, during the call. Meant for jobs of few grains (a thousand), since all are read. The
 * callback always comes, never inside the call; err: FENCED, UNREACHABLE, … */
struct q_bulk_note {
    uint32_t grain;
    const char *text;
    size_t len;
};
typedef void q_bulk_notes_fn(void *ctx, struct q_job *job, const struct q_bulk_note *notes,
                             size_t n, const struct q_error *err);
void q_bulk_note(struct q_worker *w, struct q_job *job, uint32_t grain, const char *text,
                 q_bulk_notes_fn *done, void *ctx);
/* Ends this ticket without a word to the producer. Finishes (frees) the job. */
void q_bulk_leave(struct q_worker *w, struct q_job *job);

/* --- the blocking client ---------------------------------------------------------------------- */

struct q_ctl;

/* Connects, with AUTH and SELECT done. NULL with err. */
struct q_ctl *q_ctl_open(const struct q_conn_options *opt, struct q_error *err);
void q_ctl_close(struct q_ctl *c);
/* Why the last call failed. */
const struct q_error *q_ctl_error(const struct q_ctl *c);

/* Strings and arrays that q_ctl_* hand out are from malloc; the caller frees them (free, or the
 * *_free function named). Every call may take up to reply_timeout_ms. */

/* Checks the job as a worker would (err then is BAD_JOB), adds an id if it has none and the time of
 * queueing, pushes it. id receives the id. lane: 0 normal, 1 hi, -1 lo. */
enum q_status q_ctl_submit(struct q_ctl *c, const char *queue, const char *json, size_t len,
                           int lane, char id[Q_ID_MAX + 1]);
/* As it is, pipelined: n jobs in one go; nothing is checked. For benchmarks. */
enum q_status q_ctl_push(struct q_ctl *c, const char *queue, const char *const *json,
                         const size_t *len, size_t n);

/* Where a job is. Final states come from the envelope, live ones from T:s, T:del, and where the job
 * did not ask for a status from a bounded search of the workers' hands and the inboxes. */
struct q_ctl_status {
    char state[16]; /* queued delayed retrying waiting running done failed cancelled expired dead,
                       or unknown */
    char worker[Q_WID_MAX + 1];
    int64_t position; /* in its inbox, 0 next; -1 not known */
    int64_t due_ms;   /* delayed, retrying: Unix ms; else 0 */
    char *json;       /* the envelope, or the live status as a JSON object; NULL if none */
};
enum q_status q_ctl_status(struct q_ctl *c, const char *queue, const char *id,
                           struct q_ctl_status *out);
void q_ctl_status_free(struct q_ctl_status *s);
/* The envelope. Q_NOT_FOUND until it is final (or after its ttl). */
enum q_status q_ctl_result(struct q_ctl *c, const char *queue, const char *id, char **envelope,
                           size_t *len);
/* Waits until it is final, at most timeout_ms (0: for ever; then Q_TIMEOUT). Works for any job:
 * woken at once where the job said wait, else it looks again every 20 to 250 ms. on_status (may be
 * NULL) sees the live status as it changes; it returns false to stop waiting (Q_CLOSED). */
typedef bool q_ctl_watch_fn(void *ctx, const struct q_ctl_status *s);
enum q_status q_ctl_wait(struct q_ctl *c, const char *queue, const char *id, uint32_t timeout_ms,
                         q_ctl_watch_fn *on_status, void *ctx, char **envelope, size_t *len);
/* Q_OK: a job that had not started is cancelled, a running one is told within a beat. Q_FINAL. */
enum q_status q_ctl_cancel(struct q_ctl *c, const char *queue, const char *id);
/* A delayed or retrying job is queued now; a failed or dead one starts afresh (its envelope is
 * removed). Q_NOT_FOUND: neither. */
enum q_status q_ctl_retry(struct q_ctl *c, const char *queue, const char *id);

struct q_ctl_queue {
    char name[Q_QUEUE_NAME_MAX + 1];
    bool paused;
    uint64_t waiting, waiting_hi, waiting_lo, redo, delayed, running, dead;
    uint32_t workers;
    uint64_t done_total, failed_total; /* over the minutes kept (1 hour) */
    double done_per_s;                 /* over the last full minute and this one */
    double eta_s;                      /* until the waiting ones are done; < 0: not known */
    double oldest_s;                   /* age of the oldest waiting job; < 0: not known */
};
/* Every queue a worker ever served on this Redis, or the one named (queue not NULL). */
enum q_status q_ctl_queues(struct q_ctl *c, const char *queue, struct q_ctl_queue **out, size_t *n);

struct q_ctl_worker {
    char wid[Q_WID_MAX + 1];
    char queue[Q_QUEUE_NAME_MAX + 1];
    char *name, *host, *version, *card; /* card: the JSON of q_worker_card, or NULL */
    int64_t pid;
    uint32_t lanes, owned, round_trip_us;
    int64_t started_ms, beat_ms; /* Unix ms; beat_ms: when it was last written */
};
enum q_status q_ctl_workers(struct q_ctl *c, const char *queue, struct q_ctl_worker **out,
                            size_t *n);
void q_ctl_workers_free(struct q_ctl_worker *w, size_t n);

struct q_ctl_dead {
    char id[Q_ID_MAX + 1];
    int64_t died_ms;
    char *entry; /* the raw bytes as pushed, NUL-terminated, entry_len of them */
    size_t entry_len;
    char *envelope; /* with the error, or NULL */
};
/* Newest first; offset, limit (at most 1000); total may be NULL. Without entries if brief. */
enum q_status q_ctl_dead_list(struct q_ctl *c, const char *queue, uint64_t offset, uint32_t limit,
                              bool brief, struct q_ctl_dead **out, size_t *n, uint64_t *total);
enum q_status q_ctl_dead_show(struct q_ctl *c, const char *queue, const char *id,
                              struct q_ctl_dead **out);
void q_ctl_dead_free(struct q_ctl_dead *d, size_t n);
enum q_status q_ctl_dead_requeue(struct q_ctl *c, const char *queue,
                                 const char *id); /* as pushed; new attempts */
/* Removes dead letters older than older_ms (0: all); n_purged may be NULL. */
enum q_status q_ctl_dead_purge(struct q_ctl *c, const char *queue, uint64_t older_ms,
                               uint64_t *n_purged);

enum q_status q_ctl_pause(struct q_ctl *c, const char *queue, bool paused);

/* Any command; the reply as text: strings and integers as they are, arrays a line an element, nil
 * "". For doctor and benchmarks. An error reply is Q_REDIS with its text. */
enum q_status q_ctl_command(struct q_ctl *c, size_t argc, const char *const *argv,
                            const size_t *argv_len, char **reply, size_t *len);

/* What this Redis is, for doctor and for the worker's first log line. */
struct q_ctl_server {
    char version[32], role[16], policy[32]; /* policy: maxmemory-policy, "" where INFO hides it */
    char software[16];                      /* redis, valkey */
    uint64_t used_bytes, max_bytes;
    bool aof, rdb, loading;
    uint32_t round_trip_us;
    char persistence[160]; /* in words: what a crash of the server can lose */
};
enum q_status q_ctl_server(struct q_ctl *c, struct q_ctl_server *out);

/* --- small parts that tools need too ---------------------------------------------------------- */

bool q_id_valid(const char *id, size_t len);
bool q_queue_name_valid(const char *name, size_t len);
/* quern:{queue}:suffix into buf; returns the length, 0 if it does not fit. */
size_t q_key(char *buf, size_t buf_len, const char *queue, const char *suffix);
/* Random id: 22 characters. */
void q_id_make(char id[Q_ID_MAX + 1]);

#endif
