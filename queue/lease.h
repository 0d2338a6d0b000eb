/* lease.h: the worker's insides, shared by worker.c, turn.c, slot.c, admit.c, park.c, finish.c,
 * progress.c, bulk.c, orders.c (all on the caller's loop) and beat.c, reap.c (on the heartbeat's).
 *
 * Who writes what: a job's `hold` is written by admit.c (ADMITTING, HELD), finish.c (ENDING) and
 * turn.c (gone). A queue's wid is written by enroll.c alone, after its creation. What the two
 * threads share is struct q__pulse, under its mutex. */
#ifndef QUERN_QUEUE_LEASE_H
#define QUERN_QUEUE_LEASE_H

#include "queue/conn.h"
#include "queue/job.h"

#include <stdatomic.h>

enum { Q__TURNS_MAX = 2, Q__PARK_MS = 4000, Q__TICK_MS = 250, Q__POLL_MS = 1000 };

/* A place for one large entry: the list T:slot:<wid>:<n>. Slot n takes from inbox n % 3. */
enum { Q__MARKER_MAX = Q__HEADER_MAX + 8 };
enum q__slot_state {
    Q__SLOT_FREE,
    Q__SLOT_MOVING, /* LMOVE is under way */
    Q__SLOT_LANDED, /* its entry is here and in Redis, nobody owns it yet */
    Q__SLOT_ASKED,  /* the same, in a turn that asks to own it */
    Q__SLOT_OWNED,  /* by a job */
    Q__SLOT_DOUBT,  /* a reply was lost, or the entry is not wanted: to be swept */
    Q__SLOT_SWEPT   /* in a turn that does it */
};
struct q__slot {
    enum q__slot_state state;
    char *bytes; /* from malloc; LANDED and ASKED only */
    size_t len;
    struct q__header header;
};
/* What a turn says of slots. */
struct q__slot_turn {
    uint8_t n_sweep, n_admit, sweep[Q__SLOTS], admit[Q__SLOTS];
};

struct q__park {
    struct q__queue *queue;
    struct q__conn *conn;
    int inbox; /* 0 in, 1 in:hi, 2 in:lo */
    bool parked;
};

struct q__queue {
    struct q_worker *w;
    unsigned index;
    char name[Q_QUEUE_NAME_MAX + 1];
    uint32_t weight, cap;
    int64_t credit; /* of the weighted round robin between queues */
    char wid[Q_WID_MAX + 1];
    unsigned wid_n; /* how many wids it had */
    bool enrolled, enrolling, paused;
    struct q_job_priv *jobs; /* all that this worker owns here */
    uint32_t n_jobs, n_held;
    struct q__item *pending, **pending_end;
    uint32_t n_pending;
    unsigned turns;         /* in flight */
    uint32_t asked;         /* jobs asked for in them, or being admitted */
    bool maybe_more;        /* worth asking: the last answer was full, or something woke us */
    bool land_dirty;        /* something may lie in the landing lists */
    bool full;              /* Redis refused BLMOVE: poll instead */
    uint64_t not_before_ms; /* after an error: no turn before */
    int64_t due_ms;         /* the next delayed one, -1 none */
    uint64_t cancel_look_ms;
    uint32_t weight_in[3]; /* hi, in, lo */
    int32_t inbox_credit[3];
    unsigned mismatches; /* beats in a row that found another count than ours */
    bool reconciling;
    struct q__park park[3];
    unsigned large;    /* > 0: large entries about, claims go through slots; see slot.c */
    unsigned n_landed; /* slots in that state */
    bool doubt;        /* some slot is in doubt */
    uint64_t dry_ms[3], redo_look_ms;
    struct q__slot slot[Q__SLOTS];
    char last_words[400]; /* last_words.c */
};

/* What the loop tells the heartbeat and hears from it. */
struct q__pulse_queue {
    char wid[Q_WID_MAX + 1]; /* "" none */
    /* from the heartbeat */
    bool news, fenced;
    char beaten[Q_WID_MAX + 1]; /* the wid that the news is about */
    int64_t n_owned, n_cancels;
    bool paused;
    uint32_t weights[3]; /* 0: not set */
    char **orders;
    size_t n_orders;
};
struct q__pulse {
    pthread_mutex_t lock;
    struct q__pulse_queue queue[Q_QUEUES_MAX];
    char clients[160]; /* client ids of the loop's connections, space-separated */
    char *card;        /* JSON, NULL none */
    bool stop;
    char *log[8]; /* lines for on.log */
    int log_level[8];
    unsigned n_log;
    uint64_t recovered;
    bool poll; /* something was recovered: ask at once */
};

struct q__beat; /* beat.c */

struct q_worker {
    uv_loop_t *loop;
    struct q_worker_options opt;
    char *name;
    char host[64];
    char uuid[9];
    struct q__endpoint endpoint;
    struct q__conn *cmd;
    struct q__queue *queue;
    size_t n_queues;
    uint32_t want;
    bool connected, held, draining, drained_said, closing;
    uv_prepare_t prepare;
    uv_timer_t tick, due;
    uv_async_t async;
    char replid[48], run_id[48]; /* of the server */
    unsigned setup_left;
    int last_words_fd; /* of the command connection; -1: none */
    bool refused; /* this Redis will not do (eviction) */
    struct q__args args;
    struct q_worker_stats stats;
    struct q__admission *stalled; /* admissions cut off by a lost connection */
    uint64_t polled_ms;
    int64_t started_ms;
    /* the heartbeat */
    struct q__pulse pulse;
    struct q__beat *beat;
    _Atomic int64_t clock_offset_ms; /* Redis' clock minus our monotonic one */
    _Atomic bool clock_known;
    _Atomic uint64_t good_beat_ms; /* monotonic: the last beat that Redis took */
    _Atomic uint32_t round_trip_us;
    _Atomic uint64_t beats;
    /* the end */
    unsigned closing_left;
    void (*closed)(void *ctx);
    void *closed_ctx;
};

/* --- worker.c */
uint64_t q__worker_ms(const struct q_worker *w); /* monotonic, replaceable */
void q__worker_log(struct q_worker *w, int level, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
uint32_t q__worker_room(const struct q_worker *w); /* wanted and not yet asked for */
uint32_t q__queue_room(const struct q__queue *q);  /* the same within the queue's cap */
void q__queue_fenced(struct q__queue *q, const char *why);
void q__worker_check_drained(struct q_worker *w);
struct q__queue *q__worker_queue(struct q_worker *w, const char *name);
void q__job_link(struct q__queue *q, struct q_job *job);
void q__job_unlink(struct q_job *job); /* and out of the counts; does not free */

/* Something of w's will call back after a uv_close: w outlives it. */
void q__worker_keep(struct q_worker *w);
void q__worker_release(struct q_worker *w);

/* --- enroll.c */
void q__enroll_ready(void *ctx, struct q__conn *c);
void q__enroll_lost(void *ctx, struct q__conn *c, const struct q_error *why, uint32_t retry_ms);

/* --- last_words.c */
void q__last_words_ready(struct q_worker *w);

/* --- close.c */
void q__worker_handle_closed(uv_handle_t *h);

/* --- turn.c */
void q__turn_all(struct q_worker *w); /* at the end of each loop iteration */
void q__turn_push(struct q__queue *q, struct q_job *job, char verb, const char *state,
                  char *envelope, size_t envelope_len, int64_t due_ms);
struct q__origin { /* of an entry that has no header in front */
    unsigned slot;
    struct q__header header;
};
struct q_job *q__turn_take(struct q__queue *q, char *bytes, size_t len, uint64_t token,
                           const struct q__origin *origin);
void q__turn_claimed(struct q__queue *q, redisReply *entries, uint64_t first_token, bool cancels);
void q__turn_reconcile(struct q__queue *q);
void q__shares(struct q__queue *q, uint32_t n, uint32_t out[3]);

/* --- slot.c */
enum { Q__LARGE_BYTES = 32 << 10 };
void q__slot_met(struct q__queue *q, size_t entry_len); /* an entry of that size was claimed */
/* Sends for up to n entries; says how many are left for the ordinary claim, because slots ran out.
 */
uint32_t q__slot_pull(struct q__queue *q, uint32_t n);
/* A blocking read landed a large entry: moves it on into a slot; false: leave it to a turn. */
bool q__slot_take_landed(struct q__queue *q, int inbox);
void q__slot_keys(struct q__queue *q, struct q__args *a, struct q__slot_turn *t, bool admit);
void q__slot_words(struct q__queue *q, struct q__args *a, const struct q__slot_turn *t);
/* The turn's answer, NULL if it was lost. */
void q__slot_turned(struct q__queue *q, const struct q__slot_turn *t, const char *said,
                    size_t n_said, uint64_t first_token, bool cancels);
void q__slot_key(struct q__args *a, const struct q__queue *q, unsigned n);
void q__args_slot(struct q__args *a, const char *queue, const char *wid, unsigned n);
void q__slot_return(struct q__queue *q); /* what landed is not wanted any more */
void q__slot_forget(struct q__queue *q); /* the wid is gone, and all slots with it */
void q__slot_release(struct q_job *job);
bool q__slot_marker(const char *text, size_t len, unsigned *n, struct q__header *h);

/* --- admit.c */
struct q__admission {
    struct q__admission *next;
    struct q__queue *queue;
    size_t n;
    bool all; /* ask everything, not only whether ids are final */
    struct q_job *job[Q_BATCH_MAX];
};
void q__admit(struct q__queue *q, struct q_job **jobs, size_t n, bool cancels);
void q__admit_stalled(struct q_worker *w);
void q__admit_drop(struct q_worker *w); /* at close: forget the stalled ones */
void q__cancel_look(struct q__queue *q, int64_t n_cancels);
/* The job of that token is to be cancelled: the caller is told, once. */
void q__cancel_told(struct q__queue *q, uint64_t token);

/* --- park.c */
void q__park_all(struct q_worker *w);

/* --- finish.c */
void q__finish_end(struct q_job *job, const char *state, enum q_code code, const char *message,
                   bool retryable, bool bury, bool ran, const char *result, size_t result_len,
                   const struct q_made *made);
void q__finish_delay(struct q_job *job, const char *state, int64_t due_ms);

/* --- progress.c */
void q__progress_tick(struct q_worker *w);
void q__progress_running(struct q_job *job);
void q__progress_last(struct q_job *job);

/* --- orders.c: what plain clients ask through T:ctlq */
void q__order(struct q__queue *q, const char *text);

/* --- beat.c */
bool q__beat_start(struct q_worker *w, struct q_error *err);
void q__beat_stop(struct q_worker *w);  /* asks; the thread's end comes by w->async */
bool q__beat_ended(struct q_worker *w); /* joins if it has ended */
void q__beat_wake(struct q_worker *w);

/* --- reap.c, on the heartbeat's thread */
struct q__peer {
    char wid[Q_WID_MAX + 1];
    int64_t counter;
    uint64_t since_ms, seen_ms;
    bool moved;  /* seen beating since we connected: its card is of this run of the server */
    bool asking; /* CLIENT LIST or reap is under way */
};
struct q__reaper {
    struct q_worker *w;
    struct q__conn *conn;
    char queue[Q_QUEUE_NAME_MAX + 1];
    struct q__peer *peer;
    size_t n_peers, cap_peers;
    uint64_t connected_ms; /* no verdict on what was seen before */
    uint64_t trust_ms;     /* the shortcut over connections counts for any card from then on */
    char run_id[48];       /* of the server; "" not known */
    uint64_t swept_ms;
    bool no_client_list;
    struct q__args args;
    void (*recovered)(void *ctx, const char *queue, const char *wid, int64_t moved,
                      const char *how);
    void *ctx;
};
/* Pure: may the peer be taken for dead? For tests. */
enum q__verdict { Q__ALIVE, Q__SUSPECT, Q__DEAD };
enum q__verdict q__peer_judge(const struct q__peer *p, uint64_t now_ms, uint64_t connected_ms,
                              uint32_t beat_ms, uint32_t lease_ms);
void q__reaper_look(struct q__reaper *r, uint64_t now_ms, const char *own_wid);
void q__reaper_finish(struct q__reaper *r);

#endif
