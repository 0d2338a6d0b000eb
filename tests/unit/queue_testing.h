/* queue_testing.h: a private redis-server on a Unix socket, and a worker on a loop, for tests of
 * queue/. Nothing here sleeps for a result: loops run until a condition holds; 20 s without it is a
 * hang. */
#ifndef QUEUE_TESTING_H
#define QUEUE_TESTING_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "queue/queue.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#define MAYBE_UNUSED __attribute__((unused))

struct server {
    char dir[64], sock[96], url[112];
    pid_t pid;
    char *args[24]; /* more options for redis-server */
};

/* Starts (again, with the same folder) and waits until it answers. */
MAYBE_UNUSED static void server_start(struct server *s) {
    char *argv[40] = {"redis-server", "--port", "0", "--unixsocket", s->sock,  "--dir",
                      s->dir,         "--save", "",  "--loglevel",   "warning"};
    size_t n = 11;
    for (size_t i = 0; i < 24 && s->args[i]; i++) argv[n++] = s->args[i];
    unlink(s->sock);
    s->pid = fork();
    if (s->pid == 0) {
        if (!freopen("/dev/null", "w", stdout)) _exit(127);
        execvp(argv[0], argv);
        _exit(127);
    }
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    strcpy(addr.sun_path, s->sock);
    bool up = false;
    for (int i = 0; i < 2000 && !up; i++) {
        int fd = socket(AF_UNIX, SOCK_STREAM, 0);
        up = connect(fd, (struct sockaddr *)&addr, sizeof addr) == 0;
        close(fd);
        if (!up) usleep(5000);
    }
    assert_true(up);
}

MAYBE_UNUSED static void server_stop(struct server *s) {
    if (s->pid > 0) {
        kill(s->pid, SIGKILL);
        waitpid(s->pid, NULL, 0);
    }
    s->pid = 0;
}

MAYBE_UNUSED static void server_init(struct server *s) {
    strcpy(s->dir, "/tmp/quern-test-XXXXXX");
    assert_non_null(mkdtemp(s->dir));
    snprintf(s->sock, sizeof s->sock, "%s/redis.sock", s->dir);
    snprintf(s->url, sizeof s->url, "unix:%s", s->sock);
}

MAYBE_UNUSED static void server_finish(struct server *s) {
    char cmd[128];
    server_stop(s);
    snprintf(cmd, sizeof cmd, "rm -rf %s", s->dir);
    assert_int_equal(system(cmd), 0);
}

MAYBE_UNUSED static struct q_ctl *ctl_open(const char *url) {
    struct q_error err = {.code = Q_OK};
    struct q_conn_options opt = {.url = url};
    struct q_ctl *c = q_ctl_open(&opt, &err);
    if (!c) print_error("%s\n", err.text);
    assert_non_null(c);
    return c;
}

/* A plain command, as a producer would send it: words in an array, NULL at the end. From malloc. */
#define command(c, ...) command_words(c, (const char *[]){__VA_ARGS__, NULL})
MAYBE_UNUSED static char *command_words(struct q_ctl *c, const char **argv) {
    char *reply;
    size_t n = 0, len;
    while (argv[n]) n++;
    if (q_ctl_command(c, n, argv, NULL, &reply, &len) != Q_OK) {
        print_error("%s: %s\n", argv[0], q_ctl_error(c)->text);
        return NULL;
    }
    return reply;
}

/* The same, compared with what it should say. */
#define command_says(c, want, ...)                                                                 \
    do {                                                                                           \
        char *said_ = command(c, __VA_ARGS__);                                                     \
        assert_non_null(said_);                                                                    \
        assert_string_equal(said_, want);                                                          \
        free(said_);                                                                               \
    } while (0)

#define PUSH(c, json) free(command(c, "LPUSH", "quern:{t}:in", json))

/* --- a worker that a test holds in its hands */

enum { RIG_JOBS = 4096 };

struct rig {
    uv_loop_t loop;
    uv_timer_t tick;
    struct q_worker_options opt;
    struct q_queue_option queue[3];
    struct q_worker *w;
    struct q_job *held[RIG_JOBS]; /* in the caller's hands, in order of arrival */
    size_t n_held;
    unsigned n_came, n_cancels, n_fenced, n_connected, n_lost;
    bool auto_done, drained, closed, hold;
    char last_lost[512];
    struct q_ctl *ctl; /* for conditions */
    const char *id;
};

static void rig_jobs(void *ctx, struct q_job **jobs, size_t n) {
    struct rig *r = ctx;
    for (size_t i = 0; i < n; i++) {
        r->n_came++;
        if (r->auto_done) {
            q_job_done(r->w, jobs[i], strdup("{\"pong\":1}"), 10, NULL);
        } else {
            assert_true(r->n_held < RIG_JOBS);
            r->held[r->n_held++] = jobs[i];
        }
    }
    if (r->auto_done) q_worker_want(r->w, q_worker_wanted(r->w) + (uint32_t)n);
}

static void rig_cancel(void *ctx, struct q_job *job) {
    struct rig *r = ctx;
    assert_true(job->cancel_wanted || job->fenced);
    r->n_cancels++;
}

static void rig_fenced(void *ctx, const char *queue, const char *why) {
    (void)queue;
    (void)why;
    ((struct rig *)ctx)->n_fenced++;
}

static void rig_hold(void *ctx, bool stop) {
    ((struct rig *)ctx)->hold = stop;
}

static void rig_connected(void *ctx, const char *where) {
    (void)where;
    ((struct rig *)ctx)->n_connected++;
}

static void rig_lost(void *ctx, const struct q_error *why, uint32_t ms) {
    struct rig *r = ctx;
    (void)ms;
    r->n_lost++;
    strcpy(r->last_lost, why->text);
}

static void rig_log(void *ctx, int level, const char *text) {
    (void)ctx;
    if (getenv("QUERN_TEST_LOG")) fprintf(stderr, "<%d> %s\n", level, text);
}

static void rig_drained(void *ctx) {
    ((struct rig *)ctx)->drained = true;
}
static void rig_closed(void *ctx) {
    ((struct rig *)ctx)->closed = true;
}
static void rig_tick(uv_timer_t *t) {
    (void)t;
}

MAYBE_UNUSED static void rig_init(struct rig *r, const char *url) {
    memset(r, 0, sizeof *r);
    q_worker_options_init(&r->opt);
    r->opt.conn.url = url;
    r->queue[0] = (struct q_queue_option){.name = "t", .weight = 1};
    r->opt.queues = r->queue;
    r->opt.n_queues = 1;
    r->opt.name = "rig";
    r->opt.on = (struct q_worker_callbacks){.ctx = r,
                                            .jobs = rig_jobs,
                                            .cancel = rig_cancel,
                                            .fenced = rig_fenced,
                                            .hold = rig_hold,
                                            .connected = rig_connected,
                                            .lost = rig_lost,
                                            .log = rig_log,
                                            .drained = rig_drained};
}

MAYBE_UNUSED static void rig_start(struct rig *r, uint32_t want) {
    struct q_error err = {.code = Q_OK};
    uv_loop_init(&r->loop);
    uv_timer_init(&r->loop, &r->tick);
    uv_timer_start(&r->tick, rig_tick, 5, 5);
    r->w = q_worker_create(&r->loop, &r->opt, &err);
    if (!r->w) print_error("%s\n", err.text);
    assert_non_null(r->w);
    q_worker_want(r->w, want);
}

typedef bool rig_cond(struct rig *r);

MAYBE_UNUSED static void rig_until_at(struct rig *r, rig_cond *cond, const char *file, int line) {
    uint64_t end = uv_hrtime() + 20000000000u;
    while (!cond(r)) {
        uv_run(&r->loop, UV_RUN_ONCE);
        if (uv_hrtime() > end) _fail(file, line);
    }
}
#define rig_until(r, cond) rig_until_at(r, cond, __FILE__, __LINE__)

MAYBE_UNUSED static void rig_spin(struct rig *r, unsigned ms) {
    uint64_t end = uv_hrtime() + (uint64_t)ms * 1000000;
    while (uv_hrtime() < end) uv_run(&r->loop, UV_RUN_ONCE);
}

MAYBE_UNUSED static bool is_connected(struct rig *r) {
    return r->n_connected > 0;
}
MAYBE_UNUSED static bool has_one(struct rig *r) {
    return r->n_held >= 1;
}
MAYBE_UNUSED static bool is_closed(struct rig *r) {
    return r->closed;
}
MAYBE_UNUSED static bool is_drained(struct rig *r) {
    return r->drained;
}
MAYBE_UNUSED static bool nothing_pending(struct rig *r) {
    struct q_worker_stats s;
    q_worker_stats(r->w, &s);
    return s.pending == 0 && s.owned == 0;
}

/* The job r->id is final. */
MAYBE_UNUSED static bool is_final(struct rig *r) {
    char *envelope;
    if (q_ctl_result(r->ctl, "t", r->id, &envelope, NULL) != Q_OK) return false;
    free(envelope);
    return true;
}

MAYBE_UNUSED static void rig_finish(struct rig *r) {
    q_worker_close(r->w, rig_closed, r);
    uv_timer_stop(&r->tick);
    uv_close((uv_handle_t *)&r->tick, NULL);
    uv_run(&r->loop, UV_RUN_DEFAULT);
    assert_true(r->closed);
    assert_int_equal(uv_loop_close(&r->loop), 0); /* nothing is left open */
}

/* The envelope of a final job; asserts that it holds the text. */
MAYBE_UNUSED static void envelope_has(struct q_ctl *c, const char *id, const char *text) {
    char *envelope = NULL;
    assert_int_equal(q_ctl_result(c, "t", id, &envelope, NULL), Q_OK);
    if (!strstr(envelope, text)) print_error("%s\nlacks %s\n", envelope, text);
    assert_non_null(strstr(envelope, text));
    free(envelope);
}

MAYBE_UNUSED static bool have_redis(void) {
    return system("command -v redis-server >/dev/null 2>&1") == 0;
}

/* --- one server for a program's tests, emptied before each of them:
 *
 *     const struct CMUnitTest tests[] = {ON_SERVER(test_a), ON_SERVER(test_b)};
 *     return on_server_run("queue_flow", tests); */

MAYBE_UNUSED static struct server server;
MAYBE_UNUSED static struct q_ctl *ctl;

MAYBE_UNUSED static int server_flush(void **state) {
    (void)state;
    free(command(ctl, "CONFIG", "SET", "maxmemory", "0"));
    free(command(ctl, "FLUSHALL"));
    return 0;
}

MAYBE_UNUSED static int server_setup(void **state) {
    (void)state;
    server_init(&server);
    server_start(&server);
    ctl = ctl_open(server.url);
    return 0;
}

MAYBE_UNUSED static int server_teardown(void **state) {
    (void)state;
    q_ctl_close(ctl);
    server_finish(&server);
    return 0;
}

/* Without its data, as after a crash without persistence. */
MAYBE_UNUSED static void server_restart(void) {
    q_ctl_close(ctl);
    server_stop(&server);
    server_start(&server);
    ctl = ctl_open(server.url);
}

#define ON_SERVER(name) cmocka_unit_test_setup(name, server_flush)
#define on_server_run(name, tests)                                                                 \
    (have_redis() ? cmocka_run_group_tests_name(name, tests, server_setup, server_teardown)        \
                  : (printf("ok 1 - " name " # SKIP redis-server is not installed\n"), 0))

#endif
