/* Death, fencing and recovery on a real redis-server. The doomed workers are child processes:
 * killed, stopped, continued. Leases are shortened; who judges is the code that runs in production.
 */
#include "queue_testing.h"

#include "queue/lease.h"

#include <stdatomic.h>

static void quick(struct rig *r) {
    rig_init(r, server.url);
    r->ctl = ctl;
    r->opt.beat_ms = 100;
    r->opt.hold_ms = 600;
    r->opt.lease_ms = 1000;
}

static unsigned n_wanted;
static bool has_wanted(struct rig *r) {
    return r->n_held >= n_wanted;
}

/* A child that claims n jobs, says so through a pipe, and then runs its loop until it is ended.
 * With `finish` it completes what it holds when it hears SIGUSR1 (sets a flag; SA_RESTART not
 * needed). */
static atomic_bool told; /* the signal may come on the heartbeat's thread */
static void on_usr1(int sig) {
    (void)sig;
    told = true;
}

static pid_t child_holding(unsigned n, int *said) {
    int fd[2];
    assert_int_equal(pipe(fd), 0);
    pid_t pid = fork();
    if (pid) {
        close(fd[1]);
        char c;
        assert_int_equal(read(fd[0], &c, 1), 1);
        *said = fd[0];
        return pid;
    }
    static struct rig r;
    signal(SIGUSR1, on_usr1);
    quick(&r);
    r.ctl = NULL;
    rig_start(&r, n);
    while (r.n_held < n) uv_run(&r.loop, UV_RUN_ONCE);
    if (write(fd[1], "1", 1) != 1) _exit(3);
    while (!told) uv_run(&r.loop, UV_RUN_ONCE);
    for (size_t i = 0; i < r.n_held; i++) /* perhaps long after the lease ended */
        q_job_done(r.w, r.held[i], strdup("\"stale\""), 7, NULL);
    r.n_held = 0;
    uint64_t end = uv_hrtime() + 1000000000;
    while (uv_hrtime() < end) uv_run(&r.loop, UV_RUN_ONCE);
    struct q_worker_stats s;
    q_worker_stats(r.w, &s);
    char c = (char)('0' + s.done);
    if (write(fd[1], &c, 1) != 1) _exit(4);
    _exit(0);
}

static void end_child(pid_t pid, int said) {
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
    close(said);
}

static void push_named(unsigned n) {
    for (unsigned i = 0; i < n; i++) {
        char json[64];
        snprintf(json, sizeof json, "{\"id\":\"j%u\",\"op\":\"ping\"}", i);
        PUSH(ctl, json);
    }
}

static bool all_final(struct rig *r) {
    (void)r;
    char *n = command(ctl, "EXISTS", "quern:{t}:r:j0", "quern:{t}:r:j1", "quern:{t}:r:j2",
                      "quern:{t}:r:j3", "quern:{t}:r:j4");
    bool all = strcmp(n, "5") == 0;
    free(n);
    return all;
}

static void test_judging_peers(void **state) {
    struct q__peer p = {.counter = 5, .since_ms = 10000};
    (void)state;
    assert_int_equal(q__peer_judge(&p, 10000, 0, 2000, 15000), Q__ALIVE);
    assert_int_equal(q__peer_judge(&p, 12199, 0, 2000, 15000), Q__ALIVE);
    assert_int_equal(q__peer_judge(&p, 12200, 0, 2000, 15000), Q__SUSPECT);
    assert_int_equal(q__peer_judge(&p, 24999, 0, 2000, 15000), Q__SUSPECT);
    assert_int_equal(q__peer_judge(&p, 25000, 0, 2000, 15000), Q__DEAD);
    assert_int_equal(q__peer_judge(&p, 25000, 24000, 2000, 15000),
                     Q__ALIVE); /* we were away ourselves */
    assert_int_equal(q__peer_judge(&p, 9000, 0, 2000, 15000),
                     Q__ALIVE); /* a clock never runs back, but still */
}

static void test_killed_workers_jobs_run_elsewhere(void **state) {
    struct rig r;
    int said;
    (void)state;
    push_named(5);
    pid_t child = child_holding(5, &said);
    quick(&r);
    rig_start(&r, 0);
    rig_until(&r, is_connected);
    rig_spin(&r, 900); /* sees it beating */
    end_child(child, said);
    q_worker_want(r.w, 10);
    n_wanted = 5;
    rig_until(&r, has_wanted);
    for (size_t i = 0; i < 5; i++) {
        assert_int_equal(r.held[i]->crashes, 1);
        assert_int_equal(r.held[i]->attempt, 1);
        q_job_done(r.w, r.held[i], NULL, 0, NULL);
    }
    rig_until(&r, all_final);
    struct q_worker_stats s;
    q_worker_stats(r.w, &s);
    assert_int_equal(s.recovered, 5);
    command_says(ctl, "1", "HLEN", "quern:{t}:hb");
    rig_finish(&r);
}

/* A tenth of the speed: that the server has been up for ten seconds comes after the end of the
 * test. */
static uint64_t slow_clock(void *ctx) {
    (void)ctx;
    return uv_hrtime() / 10000000;
}

/* Killed before it ever beat, on a server that just started: the card of its enrolment is enough.
 */
static void test_killed_before_its_first_beat(void **state) {
    struct rig r;
    int said;
    (void)state;
    server_restart(); /* a young server: nothing is trusted for its age */
    push_named(5);
    pid_t child = child_holding(5, &said);
    end_child(child, said);
    char *wids = command(ctl, "HKEYS", "quern:{t}:hb"), key[80];
    assert_non_null(wids);
    snprintf(key, sizeof key, "quern:{t}:w:%s", wids);
    free(command(ctl, "HDEL", key, "beat_ms", "rtt_us"));
    char *id = command(ctl, "HGET", key, "clients");
    id[strcspn(id, " ")] = 0; /* what enrolment wrote */
    free(command(ctl, "HSET", key, "clients", id));
    free(command(ctl, "HSET", "quern:{t}:hb", wids, "0"));
    free(wids);
    free(id);
    quick(&r);
    r.opt.clock = slow_clock;
    r.opt.hold_ms = 6000,
    r.opt.lease_ms = 10000; /* by that clock: longer than this test may take */
    rig_start(&r, 10);
    n_wanted = 5;
    rig_until(&r, has_wanted);
    for (size_t i = 0; i < 5; i++) q_job_done(r.w, r.held[i], NULL, 0, NULL);
    rig_until(&r, all_final);
    rig_finish(&r);
}

/* A card of another run of the server says nothing about who is connected to this one. */
static void test_cards_of_another_run_wait_for_the_lease(void **state) {
    struct rig r;
    (void)state;
    server_restart();
    free(command(ctl, "HSET", "quern:{t}:hb", "old.1", "7"));
    free(command(ctl, "HSET", "quern:{t}:w:old.1", "clients", "99999", "run_id", "before"));
    quick(&r);
    r.opt.hold_ms = 3000, r.opt.lease_ms = 5000;
    rig_start(&r, 0);
    rig_until(&r, is_connected);
    rig_spin(&r, 2000);
    command_says(ctl, "1", "HEXISTS", "quern:{t}:hb", "old.1");
    rig_finish(&r);
}

static void test_stale_commit_is_refused(void **state) {
    struct rig r;
    int said;
    char c;
    (void)state;
    push_named(5);
    pid_t child = child_holding(5, &said);
    quick(&r);
    rig_start(&r, 0);
    rig_until(&r, is_connected);
    kill(child, SIGSTOP);
    q_worker_want(r.w, 10);
    n_wanted = 5;
    rig_until(&r, has_wanted); /* its connections still stand: only the lease tells */
    for (size_t i = 0; i < 5; i++) q_job_done(r.w, r.held[i], strdup("\"fresh\""), 7, NULL);
    rig_until(&r, all_final);
    kill(child, SIGUSR1);
    kill(child, SIGCONT);
    assert_int_equal(read(said, &c, 1), 1);
    assert_int_equal(c, '0'); /* none of its five was taken */
    for (int i = 0; i < 5; i++) {
        char id[8];
        snprintf(id, sizeof id, "j%d", i);
        envelope_has(ctl, id, "\"result\":\"fresh\"");
    }
    end_child(child, said);
    rig_finish(&r);
}

static bool was_fenced(struct rig *r) {
    return r->n_fenced > 0;
}

static void test_fenced_worker_takes_a_new_id_and_goes_on(void **state) {
    struct rig r;
    char old[Q_WID_MAX + 1];
    (void)state;
    push_named(1);
    quick(&r);
    rig_start(&r, 4);
    rig_until(&r, has_one);
    strcpy(old, q_worker_wid(r.w, "t"));
    free(command(ctl, "HDEL", "quern:{t}:hb", old)); /* as a reaper does */
    free(command(ctl, "ZADD", "quern:{t}:gone", "1", old));
    rig_until(&r, was_fenced);
    assert_true(r.held[0]->fenced);
    assert_string_not_equal(q_worker_wid(r.w, "t"), old);
    q_job_done(r.w, r.held[0], strdup("1"), 1, NULL); /* no effect, frees it */
    r.n_held = 0;
    command_says(ctl, "0", "EXISTS", "quern:{t}:r:j0");
    PUSH(ctl, "{\"id\":\"n\",\"op\":\"ping\"}");
    rig_until(&r, has_one);
    q_job_done(r.w, r.held[0], NULL, 0, NULL);
    r.id = "n";
    rig_until(&r, is_final);
    rig_finish(&r);
}

static void test_third_crash_is_a_dead_letter(void **state) {
    struct rig r;
    (void)state;
    PUSH(ctl, "~1,0,2,1700000000000,~{\"id\":\"killer\",\"op\":\"ping\"}");
    int said;
    pid_t child = child_holding(1, &said);
    quick(&r);
    r.auto_done = true;
    rig_start(&r, 4);
    rig_until(&r, is_connected);
    end_child(child, said);
    r.id = "killer";
    rig_until(&r, is_final);
    envelope_has(ctl, "killer", "\"state\":\"dead\"");
    envelope_has(ctl, "killer", "\"code\":\"crashed\"");
    envelope_has(ctl, "killer", "\"crashes\":3");
    assert_int_equal(r.n_came, 0);
    rig_finish(&r);
}

/* The third worker dies of a signal and says so. */
static void test_last_words_come_into_the_dead_letter(void **state) {
    struct rig r;
    (void)state;
    PUSH(ctl, "~1,0,2,1700000000000,g6m77~{\"id\":\"killer\",\"op\":\"ping\"}");
    pid_t child = fork();
    if (child == 0) {
        static struct rig doomed;
        quick(&doomed);
        rig_start(&doomed, 1);
        while (!doomed.n_held) uv_run(&doomed.loop, UV_RUN_ONCE);
        q_worker_last_words(doomed.w, SIGBUS);
        _exit(1);
    }
    waitpid(child, NULL, 0);
    quick(&r);
    r.auto_done = true;
    rig_start(&r, 4);
    r.id = "killer";
    rig_until(&r, is_final);
    char bus[32];
    snprintf(bus, sizeof bus, "\"signal\":%d,\"rss_kb\":", SIGBUS);
    envelope_has(ctl, "killer", bus);
    rig_finish(&r);
}

/* A job that a blocking read landed for a worker that never came to take it. */
static void test_landed_jobs_of_the_dead_come_back(void **state) {
    struct rig r;
    (void)state;
    free(command(ctl, "HSET", "quern:{t}:hb", "dead.1", "7"));
    free(command(ctl, "LPUSH", "quern:{t}:land:dead.1", "{\"id\":\"l1\",\"op\":\"ping\"}"));
    free(command(ctl, "ZADD", "quern:{t}:gone", "1", "gone.1")); /* long out of hb */
    free(command(ctl, "LPUSH", "quern:{t}:landh:gone.1", "{\"id\":\"l2\",\"op\":\"ping\"}"));
    quick(&r);
    rig_start(&r, 4);
    n_wanted = 2;
    rig_until(&r, has_wanted);
    for (int i = 0; i < 2; i++) {
        assert_int_equal(r.held[i]->crashes, 0);
        q_job_done(r.w, r.held[i], NULL, 0, NULL);
    }
    rig_until(&r, nothing_pending);
    rig_finish(&r);
}

static void test_reconciliation_adopts_what_redis_says_is_mine(void **state) {
    struct rig r;
    char key[64];
    (void)state;
    quick(&r);
    rig_start(&r, 4);
    rig_until(&r, is_connected);
    snprintf(key, sizeof key, "quern:{t}:a:%s", q_worker_wid(r.w, "t"));
    free(command(ctl, "HSET", key, "900000",
                 "~1,0,0,5,~{\"id\":\"lost\",\"op\":\"ping\"}")); /* a claim whose reply was lost */
    rig_until(&r, has_one);
    assert_string_equal(r.held[0]->id, "lost");
    assert_int_equal(r.held[0]->token, 900000);
    q_job_done(r.w, r.held[0], NULL, 0, NULL);
    r.id = "lost";
    rig_until(&r, is_final);
    r.n_held = 0;
    PUSH(ctl, "{\"id\":\"gone\",\"op\":\"ping\"}");
    rig_until(&r, has_one);
    char token[24];
    snprintf(token, sizeof token, "%llu", (unsigned long long)r.held[0]->token);
    free(command(ctl, "HDEL", key, token)); /* and one that Redis says is not mine */
    while (!r.held[0]->fenced) uv_run(&r.loop, UV_RUN_ONCE);
    assert_int_equal(r.n_cancels, 1);
    q_job_done(r.w, r.held[0], NULL, 0, NULL);
    command_says(ctl, "0", "EXISTS", "quern:{t}:r:gone");
    rig_finish(&r);
}

static bool is_held(struct rig *r) {
    return r->hold;
}
static bool is_not_held(struct rig *r) {
    return !r->hold;
}
static bool was_lost(struct rig *r) {
    return r->n_lost > 0;
}
static bool reconnected(struct rig *r) {
    return r->n_connected > 1;
}

static void test_side_effects_stop_while_redis_is_away(void **state) {
    struct rig r;
    (void)state;
    quick(&r);
    rig_start(&r, 4);
    rig_until(&r, is_connected);
    rig_spin(&r, 250);
    kill(server.pid, SIGSTOP);
    rig_until(&r, is_held);
    kill(server.pid, SIGCONT);
    rig_until(&r, is_not_held);
    rig_finish(&r);
}

static void test_a_restarted_server_is_found_again(void **state) {
    struct rig r;
    (void)state;
    quick(&r);
    r.opt.hold_ms = 9000, r.opt.lease_ms = 15000;
    rig_start(&r, 4);
    rig_until(&r, is_connected);
    server_stop(&server);
    rig_until(&r, was_lost);
    server_start(&server); /* without data: the worker must enroll again, under a new id */
    rig_until(&r, reconnected);
    PUSH(ctl, "{\"id\":\"again\",\"op\":\"ping\"}");
    rig_until(&r, has_one);
    q_job_done(r.w, r.held[0], NULL, 0, NULL);
    r.id = "again";
    rig_until(&r, is_final);
    rig_finish(&r);
}

/* A replica that became primary may have lost the newest tokens: they must not be given again. */
static void test_tokens_jump_after_a_change_of_primary(void **state) {
    struct rig r;
    (void)state;
    quick(&r);
    rig_start(&r, 4);
    rig_until(&r, is_connected);
    PUSH(ctl, "{\"op\":\"ping\"}");
    rig_until(&r, has_one);
    uint64_t before = r.held[0]->token;
    q_job_done(r.w, r.held[0], NULL, 0, NULL);
    rig_until(&r, nothing_pending);
    r.n_held = 0;
    free(command(ctl, "HSET", "quern:{t}:cfg", "replid", "another-server"));
    free(command(ctl, "CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"));
    rig_until(&r, reconnected);
    PUSH(ctl, "{\"op\":\"ping\"}");
    rig_until(&r, has_one);
    assert_true(r.held[0]->token > before + (1 << 20));
    q_job_done(r.w, r.held[0], NULL, 0, NULL);
    rig_until(&r, nothing_pending);
    rig_finish(&r);
}

static void test_script_flush_is_healed(void **state) {
    struct rig r;
    (void)state;
    quick(&r);
    rig_start(&r, 4);
    rig_until(&r, is_connected);
    for (int i = 0; i < 5; i++) {
        free(command(ctl, "SCRIPT", "FLUSH"));
        PUSH(ctl, "{\"op\":\"ping\"}");
        r.n_held = 0;
        rig_until(&r, has_one);
        free(command(ctl, "SCRIPT", "FLUSH"));
        q_job_done(r.w, r.held[0], NULL, 0, NULL);
        rig_until(&r, nothing_pending);
        q_worker_want(r.w, 4);
    }
    assert_int_equal(r.n_lost, 0);
    rig_finish(&r);
}

static uint64_t count_done(void) {
    struct q_ctl_queue *q;
    size_t n;
    assert_int_equal(q_ctl_queues(ctl, "t", &q, &n), Q_OK);
    uint64_t done = n ? q[0].done_total : 0;
    free(q);
    return done;
}

/* Commits whose connection dies under them are neither lost nor done twice: with a reply list and
 * without, which go as different words. */
static void test_connections_killed_under_load(void **state) {
    enum { N = 3000 };
    struct rig r;
    (void)state;
    char json[64];
    for (int i = 0; i < N; i++) {
        snprintf(json, sizeof json, "{\"id\":\"k%d\",\"op\":\"ping\"%s}", i,
                 i % 2 ? ",\"reply_to\":\"quern:{t}:rep:k\"" : "");
        PUSH(ctl, json);
    }
    quick(&r);
    r.opt.hold_ms = 9000, r.opt.lease_ms = 15000;
    r.auto_done = true;
    rig_start(&r, 100);
    struct q_worker_stats s;
    for (int round = 0;; round++) {
        rig_spin(&r, 3);
        if (count_done() >= N) break;
        if (round % 4 == 0 && round < 200)
            free(command(ctl, "CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"));
        assert_true(round < 20000);
    }
    rig_until(&r, nothing_pending);
    command_says(ctl, "1500", "LLEN", "quern:{t}:rep:k"); /* one answer a job */
    assert_int_equal(count_done(), N);
    for (int i = 0; i < N; i++) {
        snprintf(json, sizeof json, "quern:{t}:r:k%d", i);
        command_says(ctl, "1", "EXISTS", json);
    }
    q_worker_stats(r.w, &s);
    assert_true(s.reconnects > 0);
    rig_finish(&r);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_judging_peers),
        ON_SERVER(test_killed_workers_jobs_run_elsewhere),
        ON_SERVER(test_killed_before_its_first_beat),
        ON_SERVER(test_cards_of_another_run_wait_for_the_lease),
        ON_SERVER(test_stale_commit_is_refused),
        ON_SERVER(test_fenced_worker_takes_a_new_id_and_goes_on),
        ON_SERVER(test_third_crash_is_a_dead_letter),
        ON_SERVER(test_last_words_come_into_the_dead_letter),
        ON_SERVER(test_landed_jobs_of_the_dead_come_back),
        ON_SERVER(test_reconciliation_adopts_what_redis_says_is_mine),
        ON_SERVER(test_side_effects_stop_while_redis_is_away),
        ON_SERVER(test_tokens_jump_after_a_change_of_primary),
        ON_SERVER(test_script_flush_is_healed),
        ON_SERVER(test_connections_killed_under_load),
        ON_SERVER(test_a_restarted_server_is_found_again),
    };
    return on_server_run("queue_recovery", tests);
}
