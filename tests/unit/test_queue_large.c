/* Large entries, which go through slots (queue/slot.c), on a real redis-server: the same promises
 * as for small ones. */
#include "queue_testing.h"

#include "queue/lease.h"

enum { LARGE = 100000 };

/* {"id":…,"op":…,…,"input":"xxx…"} of about `bytes`; the last byte of the input names the job. */
static char *large_job(const char *id, const char *more, size_t bytes) {
    char *text = malloc(bytes + 512);
    assert_non_null(text);
    size_t n =
        (size_t)snprintf(text, 400, "{\"id\":\"%s\",\"op\":\"ping\"%s,\"input\":\"", id, more);
    memset(text + n, 'x', bytes);
    strcpy(text + n + bytes, id);
    strcat(text, "\"}");
    return text;
}

static void push_large(const char *inbox, const char *id, const char *more) {
    char *text = large_job(id, more, LARGE);
    free(command(ctl, "LPUSH", inbox, text));
    free(text);
}

static void input_is_whole(const struct q_job *job) {
    char tail[Q_ID_MAX + 2];
    snprintf(tail, sizeof tail, "%s\"", job->id);
    size_t n = strlen(tail);
    assert_true(job->input.len == LARGE + n + 1);
    assert_memory_equal(job->input.ptr + job->input.len - n, tail, n);
}

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

/* After its first large job a worker takes the next ones through slots. */
static void warm(struct rig *r, uint32_t want) {
    rig_start(r, 1);
    push_large("quern:{t}:in", "warm", "");
    rig_until(r, has_one);
    q_job_done(r->w, r->held[0], NULL, 0, NULL);
    rig_until(r, nothing_pending);
    r->n_held = r->n_came = 0;
    q_worker_want(r->w, want);
}

static const char *own_key(const struct rig *r, const char *name, const char *rest) {
    static char key[128];
    snprintf(key, sizeof key, "quern:{t}:%s:%s%s", name, q_worker_wid(r->w, "t"), rest);
    return key;
}

static size_t n_in_slots(const struct rig *r) {
    char *values = command(ctl, "HVALS", own_key(r, "a", ""));
    size_t n = 0;
    for (const char *p = values; (p = strchr(p, '@')); p++) n++;
    free(values);
    return n;
}

static void no_slot_is_left(void) {
    char *keys = command(ctl, "KEYS", "quern:{t}:slot:*");
    assert_string_equal(keys, "");
    free(keys);
}

static void test_committed_once_and_slots_emptied(void **state) {
    struct rig r;
    char id[16];
    (void)state;
    quick(&r);
    warm(&r, 5);
    for (int i = 0; i < 5; i++) {
        snprintf(id, sizeof id, "j%d", i);
        push_large(i == 1   ? "quern:{t}:in:hi"
                   : i == 2 ? "quern:{t}:in:lo"
                            : "quern:{t}:in",
                   id, ",\"reply_to\":\"quern:{t}:rep:x\"");
    }
    n_wanted = 5;
    rig_until(&r, has_wanted);
    assert_int_equal(n_in_slots(&r), 5);
    for (size_t i = 0; i < 5; i++) {
        struct q_ctl_status s;
        input_is_whole(r.held[i]);
        assert_int_equal(q_ctl_status(ctl, "t", r.held[i]->id, &s), Q_OK);
        assert_string_equal(s.state, "running");
        assert_string_equal(s.worker, q_worker_wid(r.w, "t"));
        q_ctl_status_free(&s);
    }
    for (size_t i = 0; i < 5; i++) q_job_done(r.w, r.held[i], NULL, 0, NULL);
    rig_until(&r, nothing_pending);
    command_says(ctl, "5", "LLEN", "quern:{t}:rep:x");
    command_says(ctl, "0", "HLEN", own_key(&r, "a", ""));
    no_slot_is_left();
    rig_finish(&r);
}

static pid_t child_holding(unsigned n, int *said) {
    int fd[2];
    assert_int_equal(pipe(fd), 0);
    pid_t pid = fork();
    if (pid) {
        char c;
        close(fd[1]);
        assert_int_equal(read(fd[0], &c, 1), 1);
        *said = fd[0];
        return pid;
    }
    static struct rig r;
    quick(&r);
    r.ctl = NULL;
    rig_start(&r, 1);
    while (r.n_held < 1) uv_run(&r.loop, UV_RUN_ONCE); /* the one that warms it */
    q_worker_want(r.w, n);
    while (r.n_held < 1 + n) uv_run(&r.loop, UV_RUN_ONCE);
    if (write(fd[1], "1", 1) != 1) _exit(3);
    for (;;) uv_run(&r.loop, UV_RUN_ONCE);
}

static void end_child(pid_t pid, int said) {
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
    close(said);
}

static void test_killed_workers_jobs_run_elsewhere(void **state) {
    struct rig r;
    int said;
    (void)state;
    push_large("quern:{t}:in", "first", "");
    push_large("quern:{t}:in", "j1", "");
    push_large("quern:{t}:in", "j2", "");
    push_large("quern:{t}:in", "j3", "");
    pid_t child = child_holding(3, &said);
    char *keys = command(ctl, "KEYS", "quern:{t}:slot:*");
    assert_string_not_equal(keys, ""); /* it holds some that way */
    free(keys);
    quick(&r);
    rig_start(&r, 0);
    rig_until(&r, is_connected);
    rig_spin(&r, 900); /* sees it beating */
    end_child(child, said);
    q_worker_want(r.w, 10);
    n_wanted = 4;
    rig_until(&r, has_wanted);
    for (size_t i = 0; i < 4; i++) {
        assert_int_equal(r.held[i]->crashes, 1);
        assert_int_equal(r.held[i]->attempt, 1);
        input_is_whole(r.held[i]);
        q_job_done(r.w, r.held[i], NULL, 0, NULL);
    }
    rig_until(&r, nothing_pending);
    no_slot_is_left();
    rig_finish(&r);
}

static void test_third_crash_is_a_dead_letter(void **state) {
    struct rig r;
    int said;
    (void)state;
    char *text = large_job("killer", "", LARGE), *entry = malloc(LARGE + 1024);
    snprintf(entry, LARGE + 1024, "~1,0,2,1700000000000,~%s", text);
    push_large("quern:{t}:in", "first", "");
    free(command(ctl, "LPUSH", "quern:{t}:in", entry));
    pid_t child = child_holding(1, &said);
    quick(&r);
    r.auto_done = true;
    rig_start(&r, 4);
    rig_until(&r, is_connected);
    end_child(child, said);
    r.id = "killer";
    rig_until(&r, is_final);
    envelope_has(ctl, "killer", "\"state\":\"dead\"");
    envelope_has(ctl, "killer", "\"crashes\":3");
    struct q_ctl_dead *d;
    assert_int_equal(q_ctl_dead_show(ctl, "t", "killer", &d), Q_OK);
    assert_string_equal(d->entry, text);
    q_ctl_dead_free(d, 1);
    free(text);
    free(entry);
    rig_finish(&r);
}

static void test_drain_hands_back(void **state) {
    struct rig r;
    (void)state;
    quick(&r);
    warm(&r, 2);
    push_large("quern:{t}:in:hi", "j1", "");
    push_large("quern:{t}:in:hi", "j2", "");
    n_wanted = 2;
    rig_until(&r, has_wanted);
    assert_true(n_in_slots(&r) >= 1);
    q_worker_drain(r.w);
    q_job_handback(r.w, r.held[0]);
    q_job_handback(r.w, r.held[1]);
    rig_until(&r, is_drained);
    command_says(ctl, "2", "LLEN", "quern:{t}:in:hi");
    no_slot_is_left();
    rig_finish(&r);
    quick(&r);
    rig_start(&r, 2);
    rig_until(&r, has_wanted);
    for (int i = 0; i < 2; i++) {
        assert_int_equal(r.held[i]->crashes + r.held[i]->attempt, 1);
        input_is_whole(r.held[i]);
        q_job_done(r.w, r.held[i], NULL, 0, NULL);
    }
    rig_until(&r, nothing_pending);
    rig_finish(&r);
}

static void test_retries_with_backoff(void **state) {
    struct rig r;
    (void)state;
    quick(&r);
    warm(&r, 0);
    push_large("quern:{t}:in", "j1", ",\"retry\":{\"max\":1,\"base_ms\":20}");
    push_large("quern:{t}:in", "j2", ",\"retry\":{\"max\":1,\"base_ms\":20}");
    q_worker_want(r.w, 2);
    n_wanted = 2;
    rig_until(&r, has_wanted);
    r.n_held = 0;
    for (int i = 0; i < 2; i++) q_job_fail(r.w, r.held[i], Q_CODE_internal, "bad luck", -1);
    q_worker_want(r.w, 2);
    rig_until(&r, has_wanted);
    for (int i = 0; i < 2; i++) {
        assert_int_equal(r.held[i]->attempt, 2);
        input_is_whole(r.held[i]);
        q_job_fail(r.w, r.held[i], Q_CODE_internal, "bad luck again", -1);
    }
    rig_until(&r, nothing_pending);
    envelope_has(ctl, "j1", "\"state\":\"dead\"");
    envelope_has(ctl, "j2", "bad luck again");
    no_slot_is_left();
    rig_finish(&r);
}

static bool two_dead(struct rig *r) {
    (void)r;
    char *n = command(ctl, "ZCARD", "quern:{t}:dead");
    bool two = strcmp(n, "2") == 0;
    free(n);
    return two;
}

/* Not JSON, and not JSON behind what looks like a header: both keep their bytes. */
static void test_bad_json_is_buried(void **state) {
    struct rig r;
    (void)state;
    char *text = large_job("bad", ",,", LARGE), *odd = malloc(LARGE + 1024);
    snprintf(odd, LARGE + 1024, "~9,odd~%s", text);
    quick(&r);
    warm(&r, 0);
    free(command(ctl, "LPUSH", "quern:{t}:in", text));
    free(command(ctl, "LPUSH", "quern:{t}:in", odd));
    q_worker_want(r.w, 2);
    rig_until(&r, two_dead);
    rig_until(&r, nothing_pending);
    assert_int_equal(r.n_came, 0);
    struct q_ctl_dead *d;
    size_t n;
    assert_int_equal(q_ctl_dead_list(ctl, "t", 0, 10, false, &d, &n, NULL), Q_OK);
    assert_int_equal(n, 2);
    bool swap = d[0].entry[0] == '~';
    assert_string_equal(d[swap].entry, text);
    assert_string_equal(d[!swap].entry, odd);
    assert_non_null(strstr(d[0].envelope, "\"code\":\"bad_json\""));
    q_ctl_dead_free(d, n);
    no_slot_is_left();
    free(text);
    free(odd);
    rig_finish(&r);
}

static void test_the_limit_of_64_mib(void **state) {
    struct rig r;
    (void)state;
    quick(&r);
    r.opt.hold_ms = 9000, r.opt.lease_ms = 15000;
    warm(&r, 0);
    char *text = large_job("huge", "", (64u << 20) + 1);
    free(command(ctl, "LPUSH", "quern:{t}:in", text));
    push_large("quern:{t}:in", "next", "");
    q_worker_want(r.w, 2);
    rig_until(&r, has_one);
    assert_string_equal(r.held[0]->id, "next");
    q_job_done(r.w, r.held[0], NULL, 0, NULL);
    rig_until(&r, nothing_pending);
    command_says(ctl, "1", "ZCARD", "quern:{t}:dead");
    struct q_ctl_dead *d;
    size_t n;
    assert_int_equal(q_ctl_dead_list(ctl, "t", 0, 1, false, &d, &n, NULL), Q_OK);
    assert_non_null(strstr(d[0].envelope, "\"code\":\"too_large\""));
    assert_int_equal(d[0].entry_len, strlen(text));
    q_ctl_dead_free(d, n);
    free(text);
    rig_finish(&r);
}

/* A small job behind large ones is taken as fast as ever: not passed to and fro. */
static void test_a_small_one_after_large_ones(void **state) {
    struct rig r;
    struct q_worker_stats before, after;
    (void)state;
    quick(&r);
    warm(&r, 4);
    rig_spin(&r, 50); /* now it waits in blocking reads */
    q_worker_stats(r.w, &before);
    PUSH(ctl, "{\"id\":\"small\",\"op\":\"ping\"}");
    rig_until(&r, has_one);
    q_worker_stats(r.w, &after);
    assert_true(after.turns - before.turns <= 4);
    q_job_done(r.w, r.held[0], NULL, 0, NULL);
    rig_until(&r, nothing_pending);
    rig_finish(&r);
}

/* A move whose answer was lost may land late, on top of or below the next one. */
static void test_late_moves_lose_nothing(void **state) {
    struct rig r;
    (void)state;
    quick(&r);
    warm(&r, 0);
    for (int i = 0; i < Q__SLOTS; i += 3) {
        char slot[16], id[16];
        snprintf(slot, sizeof slot, ":%d", i);
        snprintf(id, sizeof id, "late%d", i);
        push_large(own_key(&r, "slot", slot), id, "");
    }
    for (int i = 0; i < Q__SLOTS / 3 + 4; i++) {
        char id[16];
        snprintf(id, sizeof id, "j%d", i);
        push_large("quern:{t}:in", id, "");
    }
    q_worker_want(r.w, 300); /* more than there are slots */
    n_wanted = Q__SLOTS / 3 * 2 + 4;
    rig_until(&r, has_wanted);
    for (size_t i = 0; i < r.n_held; i++) {
        input_is_whole(r.held[i]);
        for (size_t k = 0; k < i; k++) assert_string_not_equal(r.held[i]->id, r.held[k]->id);
        q_job_done(r.w, r.held[i], NULL, 0, NULL);
    }
    rig_until(&r, nothing_pending);
    assert_int_equal(r.n_came, n_wanted);
    no_slot_is_left();
    rig_finish(&r);
}

/* What landed and is nobody's goes back when the worker leaves. */
static void test_a_leaving_worker_puts_back_what_landed(void **state) {
    struct rig r;
    (void)state;
    quick(&r);
    rig_start(&r, 1);
    rig_until(&r, is_connected);
    push_large(own_key(&r, "slot", ":5"), "j1", "");
    rig_finish(&r);
    command_says(ctl, "1", "LLEN", "quern:{t}:in:lo");
    no_slot_is_left();
}

static void test_landed_entries_of_the_dead_come_back(void **state) {
    struct rig r;
    (void)state;
    free(command(ctl, "HSET", "quern:{t}:hb", "dead.1", "7"));
    push_large("quern:{t}:slot:dead.1:3", "j1", "");
    push_large("quern:{t}:slot:gone.1:4", "j2", "");
    free(command(ctl, "ZADD", "quern:{t}:gone", "1", "gone.1")); /* long out of hb */
    quick(&r);
    rig_start(&r, 4);
    n_wanted = 2;
    rig_until(&r, has_wanted);
    for (int i = 0; i < 2; i++) {
        assert_int_equal(r.held[i]->crashes, 0);
        input_is_whole(r.held[i]);
        q_job_done(r.w, r.held[i], NULL, 0, NULL);
    }
    rig_until(&r, nothing_pending);
    no_slot_is_left();
    rig_finish(&r);
}

/* A turn that owned a slot, and its answer was lost. */
static void test_reconciliation_adopts_a_slot(void **state) {
    struct rig r;
    char mark[64];
    (void)state;
    quick(&r);
    rig_start(&r, 4);
    rig_until(&r, is_connected);
    snprintf(mark, sizeof mark, "@%s", q_worker_wid(r.w, "t"));
    push_large(own_key(&r, "slot", ":7"), "lost", "");
    free(command(ctl, "LPUSH", own_key(&r, "slot", ":7"), mark));
    free(command(ctl, "HSET", own_key(&r, "a", ""), "900000", "@7~1,1,2,5,h~"));
    rig_until(&r, has_one);
    input_is_whole(r.held[0]);
    assert_int_equal(r.held[0]->token, 900000);
    assert_int_equal(r.held[0]->attempt, 2);
    assert_int_equal(r.held[0]->crashes, 2);
    assert_int_equal(r.held[0]->queued_ms, 5);
    q_job_done(r.w, r.held[0], NULL, 0, NULL);
    rig_until(&r, nothing_pending);
    envelope_has(ctl, "lost", "\"state\":\"done\"");
    no_slot_is_left();
    rig_finish(&r);
}

static void test_connections_killed_under_load(void **state) {
    enum { N = 400 };
    struct rig r;
    char id[16];
    (void)state;
    for (int i = 0; i < N; i++) {
        snprintf(id, sizeof id, "k%d", i);
        push_large("quern:{t}:in", id, ",\"reply_to\":\"quern:{t}:rep:k\"");
    }
    quick(&r);
    r.opt.hold_ms = 9000, r.opt.lease_ms = 15000;
    r.auto_done = true;
    rig_start(&r, 8);
    for (int round = 0;; round++) {
        rig_spin(&r, 2);
        char *left = command(ctl, "LLEN", "quern:{t}:rep:k");
        int done = atoi(left);
        free(left);
        if (done >= N) break;
        if (round % 3 == 0 && round < 150)
            free(command(ctl, "CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"));
        assert_true(round < 20000);
    }
    rig_until(&r, nothing_pending);
    command_says(ctl, "400", "LLEN", "quern:{t}:rep:k"); /* one answer a job */
    struct q_worker_stats s;
    q_worker_stats(r.w, &s);
    assert_true(s.reconnects > 0);
    rig_finish(&r);
    no_slot_is_left();
}

static bool thirty_done(struct rig *r) {
    return r->n_came >= 30;
}

static void test_a_full_redis_drains(void **state) {
    struct rig r;
    char id[16];
    (void)state;
    quick(&r);
    r.auto_done = true;
    for (int i = 0; i < 30; i++) {
        snprintf(id, sizeof id, "f%d", i);
        push_large("quern:{t}:in", id, "");
    }
    rig_start(&r, 0);
    rig_until(&r, is_connected);
    free(command(ctl, "CONFIG", "SET", "maxmemory", "2000000"));
    char *refused = command(ctl, "SET", "x", "1");
    assert_null(refused); /* it is full */
    q_worker_want(r.w, 2);
    rig_until(&r, thirty_done);
    rig_until(&r, nothing_pending);
    free(command(ctl, "CONFIG", "SET", "maxmemory", "0"));
    command_says(ctl, "0", "LLEN", "quern:{t}:in");
    envelope_has(ctl, "f29", "\"state\":\"done\"");
    no_slot_is_left();
    rig_finish(&r);
}

static void test_a_fenced_worker_goes_on_with_new_slots(void **state) {
    struct rig r;
    (void)state;
    quick(&r);
    warm(&r, 0);
    push_large("quern:{t}:in", "j1", "");
    push_large("quern:{t}:in", "j2", "");
    q_worker_want(r.w, 2);
    n_wanted = 2;
    rig_until(&r, has_wanted);
    free(command(ctl, "HDEL", "quern:{t}:hb", q_worker_wid(r.w, "t"))); /* as a reaper does */
    free(command(ctl, "ZADD", "quern:{t}:gone", "1", q_worker_wid(r.w, "t")));
    while (!r.n_fenced) uv_run(&r.loop, UV_RUN_ONCE);
    for (int i = 0; i < 2; i++) q_job_done(r.w, r.held[i], strdup("1"), 1, NULL); /* no effect */
    r.n_held = 0;
    q_worker_want(r.w, 4);
    n_wanted = 2; /* it reaps its own former self */
    rig_until(&r, has_wanted);
    for (int i = 0; i < 2; i++) {
        assert_int_equal(r.held[i]->crashes, 1);
        input_is_whole(r.held[i]);
        q_job_done(r.w, r.held[i], strdup("2"), 1, NULL);
    }
    rig_until(&r, nothing_pending);
    envelope_has(ctl, "j1", "\"result\":2");
    no_slot_is_left();
    rig_finish(&r);
}

static bool opened;
static void on_step(void *ctx, struct q_job *job, const struct q_bulk_turn *t) {
    struct rig *r = ctx;
    assert_int_equal(t->step, Q_BULK_RANGE);
    opened = true;
    q_job_fail(r->w, job, Q_CODE_cancelled, "enough", -1);
}

static void test_a_bulk_job_opens(void **state) {
    struct rig r;
    (void)state;
    quick(&r);
    warm(&r, 0);
    push_large("quern:{t}:in", "j1", ",\"expire_ms\":1000000");
    push_large("quern:{t}:in", "j2", "");
    q_worker_want(r.w, 2);
    n_wanted = 2;
    rig_until(&r, has_wanted);
    assert_int_equal(n_in_slots(&r), 2);
    struct q_bulk_plan plan = {.n_rows = 100, .grain_rows = 10, .n_tickets = 2};
    q_bulk_open(r.w, r.held[0], &plan, on_step, &r);
    while (!opened) uv_run(&r.loop, UV_RUN_ONCE);
    assert_int_equal(n_in_slots(&r), 1);
    q_job_done(r.w, r.held[1], NULL, 0, NULL);
    rig_until(&r, nothing_pending);
    no_slot_is_left();
    char *ticket = command(ctl, "LINDEX", "quern:{t}:in", "0"); /* the other one */
    assert_non_null(strstr(ticket, "t1~{\"id\":\"j"));
    assert_true(strlen(ticket) > LARGE);
    free(ticket);
    rig_finish(&r);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        ON_SERVER(test_committed_once_and_slots_emptied),
        ON_SERVER(test_killed_workers_jobs_run_elsewhere),
        ON_SERVER(test_third_crash_is_a_dead_letter),
        ON_SERVER(test_drain_hands_back),
        ON_SERVER(test_retries_with_backoff),
        ON_SERVER(test_bad_json_is_buried),
        ON_SERVER(test_the_limit_of_64_mib),
        ON_SERVER(test_a_small_one_after_large_ones),
        ON_SERVER(test_late_moves_lose_nothing),
        ON_SERVER(test_a_leaving_worker_puts_back_what_landed),
        ON_SERVER(test_landed_entries_of_the_dead_come_back),
        ON_SERVER(test_reconciliation_adopts_a_slot),
        ON_SERVER(test_connections_killed_under_load),
        ON_SERVER(test_a_full_redis_drains),
        ON_SERVER(test_a_fenced_worker_goes_on_with_new_slots),
        ON_SERVER(test_a_bulk_job_opens),
    };
    return on_server_run("queue_large", tests);
}
