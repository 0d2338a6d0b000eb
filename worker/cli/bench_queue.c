/* quern bench queue: pushes N ping jobs, lets a worker run them, counts that each was done exactly
 * once.
 *
 * The worker is the program itself in a process of its own, `quern worker`, as in production; Redis
 * is private (a Unix socket in a temporary folder) unless one is configured. First everything is
 * pushed while no worker runs, then a worker is started and the clock runs from its first heartbeat
 * to the last result; last, with the worker idle, single jobs are pushed and their answers waited
 * for: pickup_* is that whole way, push to answer, so the pickup itself is shorter. Results are
 * stored with their ttl, as for any job. */
#include <errno.h>
#include <inttypes.h>
#include <jansson.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "worker/cli/redis.h"
#include "worker/daemon/private_redis.h"
#include "worker/daemon/redis.h"

#define PUSH_CHUNK 1000
#define CHECK_CHUNK 500
#define N_PICKUPS 2000
#define STALL_S 60

static int64_t n_jobs = 200000, batch = 64, payload = 64, n_workers = 1;

struct bench {
    struct q_ctl *ctl;
    struct w_private_redis redis;
    bool private_redis;
    char url[1024], queue[Q_QUEUE_NAME_MAX + 1];
    pid_t workers[64];
    double enqueue_s, run_s, pickup_p50_us, pickup_p99_us;
    int64_t lost, duplicated;
};

static double now_s(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static void sleep_ms(long ms) {
    struct timespec t = {.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000};
    nanosleep(&t, NULL);
}

/* --- the parts -------------------------------------------------------------------------------- */

static int open_redis(struct bench *b) {
    char text[256];
    struct q_conn_options options;
    struct q_error err;
    if (!w_redis_options(&options, &err)) return w_cli_failed(&err, NULL);
    if (!w_globals.redis_given) {
        if (!w_private_redis_start(&b->redis, text, sizeof text))
            return w_report(W_EXIT_REDIS, "private_redis", NULL, "%s", text);
        b->private_redis = true;
        options.url = b->redis.url;
    }
    snprintf(b->url, sizeof b->url, "%s", options.url);
    b->ctl = q_ctl_open(&options, &err);
    return b->ctl ? 0 : w_cli_failed(&err, NULL);
}

static int push_all(struct bench *b) {
    char *text = malloc((size_t)PUSH_CHUNK * ((size_t)payload + 80)),
         *echo = malloc((size_t)payload + 1);
    const char **jobs = malloc(PUSH_CHUNK * sizeof *jobs);
    size_t *lens = malloc(PUSH_CHUNK * sizeof *lens);
    int rc = text && echo && jobs && lens
                 ? 0
                 : w_report(W_EXIT_FAILED, "no_memory", NULL, "not enough memory");
    if (rc == 0) {
        memset(echo, 'x', (size_t)payload);
        echo[payload] = 0;
    }
    double start = now_s();
    for (int64_t i = 0; rc == 0 && i < n_jobs;) {
        size_t n = 0, at = 0;
        for (; n < PUSH_CHUNK && i < n_jobs; n++, i++) {
            jobs[n] = text + at;
            lens[n] = (size_t)sprintf(
                text + at, "{\"id\":\"b%" PRId64 "\",\"op\":\"ping\",\"params\":{\"echo\":\"%s\"}}",
                i, echo);
            at += lens[n];
        }
        if (q_ctl_push(b->ctl, b->queue, jobs, lens, n) != Q_OK)
            rc = w_cli_failed(q_ctl_error(b->ctl), "push");
    }
    b->enqueue_s = now_s() - start;
    free(text), free(echo), free(jobs), free(lens);
    return rc;
}

static int start_workers(struct bench *b) {
    char claim[16];
    snprintf(claim, sizeof claim, "%" PRId64, batch);
    for (int64_t i = 0; i < n_workers; i++) {
        pid_t parent = getpid(), pid = fork();
        if (pid < 0) return w_report(W_EXIT_FAILED, "fork", NULL, "fork: %s", strerror(errno));
        if (pid == 0) {
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            if (getppid() != parent) _exit(1);
            setenv("QUERN_REDIS", b->url, 1); /* not in argv: it may hold a password */
            execl("/proc/self/exe", "quern", "worker", "--queues", b->queue, "--lanes", "1",
                  "--claim-max", claim, "--log-level", "warn", (char *)NULL);
            _exit(127);
        }
        b->workers[i] = pid;
    }
    return 0;
}

/* Jobs done so far by the queue's own counters; -1: reported. */
static int64_t count_done(struct bench *b) {
    struct q_ctl_queue *q;
    size_t n;
    if (q_ctl_queues(b->ctl, b->queue, &q, &n) != Q_OK)
        return w_cli_failed(q_ctl_error(b->ctl), NULL), -1;
    int64_t done = n ? (int64_t)(q[0].done_total + q[0].failed_total) : 0;
    free(q);
    return done;
}

static int wait_done(struct bench *b) {
    double start = 0, moved = now_s();
    int64_t last = 0;
    for (;;) {
        int64_t done = count_done(b);
        double now = now_s();
        if (done < 0) return W_EXIT_FAILED;
        if (start == 0 && done > 0) start = now;
        if (done != last) moved = now;
        last = done;
        if (done >= n_jobs) break;
        if (waitpid(-1, NULL, WNOHANG) > 0)
            return w_report(W_EXIT_FAILED, "worker", NULL,
                            "the worker ended after %" PRId64 " jobs", done);
        if (now - moved > STALL_S)
            return w_report(W_EXIT_FAILED, "stalled", NULL,
                            "no job was done for %d s, %" PRId64 " of %" PRId64 " are", STALL_S,
                            done, n_jobs);
        if (!w_globals.json)
            w_progress("ping", (uint64_t)done, (uint64_t)n_jobs,
                       start > 0 && now > start ? (double)done / (now - start) : 0, -1);
        sleep_ms(10); /* each look costs Redis a dozen commands */
    }
    b->run_s = now_s() - start;
    w_progress_end();
    return 0;
}

/* Every result must be there once; what the counters hold beyond the jobs was done twice. */
static int check_all(struct bench *b) {
    static char keys[CHECK_CHUNK][160];
    const char *argv[CHECK_CHUNK + 1] = {"EXISTS"};
    for (int64_t i = 0; i < n_jobs;) {
        size_t n = 0, len;
        char suffix[48], *reply = NULL;
        for (; n < CHECK_CHUNK && i < n_jobs; n++, i++) {
            snprintf(suffix, sizeof suffix, "r:b%" PRId64, i);
            q_key(keys[n], sizeof keys[n], b->queue, suffix);
            argv[n + 1] = keys[n];
        }
        if (q_ctl_command(b->ctl, n + 1, argv, NULL, &reply, &len) != Q_OK)
            return w_cli_failed(q_ctl_error(b->ctl), NULL);
        b->lost += (int64_t)n - strtoll(reply, NULL, 10);
        free(reply);
    }
    int64_t done = count_done(b);
    if (done < 0) return W_EXIT_FAILED;
    b->duplicated = done > n_jobs ? done - n_jobs : 0;
    return 0;
}

static int by_value(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static int measure_pickup(struct bench *b) {
    static double us[N_PICKUPS];
    char inbox[160], woken[160], job[200], suffix[48];
    q_key(inbox, sizeof inbox, b->queue, "in");
    for (int i = -20; i < N_PICKUPS; i++) {
        snprintf(suffix, sizeof suffix, "n:p%d", i + 20);
        q_key(woken, sizeof woken, b->queue, suffix);
        snprintf(job, sizeof job, "{\"id\":\"p%d\",\"op\":\"ping\",\"wait\":true,\"ttl_ms\":60000}",
                 i + 20);
        const char *push[] = {"LPUSH", inbox, job}, *wait[] = {"BLPOP", woken, "10"};
        char *reply = NULL;
        size_t len;
        double start = now_s();
        bool good = q_ctl_command(b->ctl, 3, push, NULL, &reply, &len) == Q_OK;
        free(reply);
        reply = NULL;
        good = good && q_ctl_command(b->ctl, 3, wait, NULL, &reply, &len) == Q_OK && len > 0;
        free(reply);
        if (!good)
            return w_report(W_EXIT_FAILED, "pickup", NULL,
                            "a single job was not answered within 10 s");
        if (i >= 0) us[i] = (now_s() - start) * 1e6;
        if (i % 10 == 0) sleep_ms(1); /* the worker goes idle */
    }
    qsort(us, N_PICKUPS, sizeof *us, by_value);
    b->pickup_p50_us = us[N_PICKUPS / 2];
    b->pickup_p99_us = us[N_PICKUPS * 99 / 100];
    return 0;
}

/* --- the whole -------------------------------------------------------------------------------- */

static void report(const struct bench *b) {
    double per_s = b->run_s > 0 ? (double)n_jobs / b->run_s : 0,
           enqueue_per_s = (double)n_jobs / b->enqueue_s;
    if (w_globals.json)
        w_cli_print(json_pack("{s:I,s:I,s:I,s:I,s:f,s:f,s:f,s:f,s:I,s:I}", "jobs",
                              (json_int_t)n_jobs, "batch", (json_int_t)batch, "payload",
                              (json_int_t)payload, "workers", (json_int_t)n_workers, "jobs_per_s",
                              per_s, "enqueue_per_s", enqueue_per_s, "pickup_p50_us",
                              b->pickup_p50_us, "pickup_p99_us", b->pickup_p99_us, "lost",
                              (json_int_t)b->lost, "duplicated", (json_int_t)b->duplicated));
    else
        printf("%" PRId64 " jobs of %" PRId64 " bytes, batch %" PRId64
               ": %.0f jobs/s (pushed at %.0f/s)\npush to answer with an idle worker: median %.0f "
               "µs, p99 %.0f µs\n"
               "lost %" PRId64 ", done twice %" PRId64 "\n",
               n_jobs, payload, batch, per_s, enqueue_per_s, b->pickup_p50_us, b->pickup_p99_us,
               b->lost, b->duplicated);
}

static void stop_workers(struct bench *b) {
    for (int64_t i = 0; i < n_workers; i++)
        if (b->workers[i] > 0) kill(b->workers[i], SIGTERM);
    for (int64_t i = 0; i < n_workers; i++)
        if (b->workers[i] > 0) waitpid(b->workers[i], NULL, 0);
}

static int run(int argc, char **argv) {
    (void)argv;
    if (argc) return w_report(W_EXIT_USAGE, "usage", NULL, "bench queue takes no words");
    struct bench *b = calloc(1, sizeof *b);
    if (!b) return w_report(W_EXIT_FAILED, "no_memory", NULL, "not enough memory");
    snprintf(b->queue, sizeof b->queue, "bench-%ld",
             (long)getpid()); /* its own queue: a configured Redis keeps its others */
    int rc = open_redis(b);
    if (rc == 0) rc = push_all(b);
    if (rc == 0) rc = start_workers(b);
    if (rc == 0) rc = wait_done(b);
    if (rc == 0) rc = check_all(b);
    if (rc == 0) rc = measure_pickup(b);
    stop_workers(b);
    if (rc == 0) report(b);
    if (rc == 0 && (b->lost || b->duplicated)) rc = W_EXIT_FAILED;
    q_ctl_close(b->ctl);
    if (b->private_redis) w_private_redis_stop(&b->redis);
    free(b);
    return rc;
}

static struct w_option options[] = {
    {"jobs", W_OPT_INT, &n_jobs, "N", "how many [200000]", 1, 1e8},
    {"batch", W_OPT_INT, &batch, "B", "jobs that the worker takes in one round trip [64]", 1, 64},
    {"payload", W_OPT_INT, &payload, "BYTES", "what each job carries and gets back [64]", 0,
     1048576},
    {"workers", W_OPT_INT, &n_workers, "N", "worker processes [1]", 1, 64},
    {0},
};
static const struct w_command bench_queue = {
    .name = "bench queue",
    .args = "[--jobs N] [--batch B] [--payload BYTES] [--workers N]",
    .summary = "Measure the queue: jobs a second, time from push to answer, nothing lost, nothing "
               "done twice",
    .options = options,
    .run = run,
};
W_COMMAND(bench_queue);
