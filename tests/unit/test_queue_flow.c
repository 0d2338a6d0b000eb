/* The life of jobs on a real redis-server: producers are plain commands, the worker is queue/'s. */
#include "queue_testing.h"

static void start(struct rig *r, uint32_t want) {
    rig_init(r, server.url);
    r->ctl = ctl;
    rig_start(r, want);
}

static void until_final(struct rig *r, const char *id) {
    r->id = id;
    rig_until(r, is_final);
}

static bool is_settled(struct rig *r) {
    return nothing_pending(r);
}

static void test_done_job_has_envelope_reply_and_wakeup(void **state) {
    struct rig r;
    (void)state;
    start(&r, 8);
    PUSH(ctl, "{\"id\":\"a1\",\"op\":\"ping\",\"wait\":true,\"reply_to\":\"quern:{t}:rep:x\",\"ttl_"
              "ms\":50000,\"meta\":{\"k\":1},\"status\":true}");
    rig_until(&r, has_one);
    assert_string_equal(r.held[0]->id, "a1");
    assert_int_equal(r.held[0]->attempt, 1);
    assert_true(r.held[0]->token > 0);
    rig_spin(&r, 50);
    char *live = command(ctl, "HGET", "quern:{t}:s:a1", "state");
    assert_string_equal(live, "running");
    free(live);
    struct q_made made = {.batch = 3, .version = "7", .manifest = "{\"isa\":\"c\"}", .run_ms = -1};
    q_job_done(r.w, r.held[0], strdup("{\"y\":[1,2]}"), 11, &made);
    until_final(&r, "a1");
    envelope_has(ctl, "a1", "\"state\":\"done\"");
    envelope_has(ctl, "a1", "\"result\":{\"y\":[1,2]}");
    envelope_has(ctl, "a1",
                 "\"batch\":3,\"worker\":\"rig\",\"version\":\"7\",\"manifest\":{\"isa\":\"c\"},"
                 "\"meta\":{\"k\":1}");
    char *ttl = command(ctl, "PTTL", "quern:{t}:r:a1");
    assert_in_range(atol(ttl), 1, 50000);
    free(ttl);
    command_says(ctl, "1", "LLEN", "quern:{t}:n:a1");
    char *reply = command(ctl, "RPOP", "quern:{t}:rep:x"),
         *stored = command(ctl, "GET", "quern:{t}:r:a1");
    assert_string_equal(reply, stored);
    free(reply);
    free(stored);
    command_says(ctl, "done", "HGET", "quern:{t}:s:a1", "state");
    command_says(ctl, "0", "HLEN", "quern:{t}:a:x");
    rig_finish(&r);
    command_says(ctl, "0", "HLEN", "quern:{t}:hb"); /* it left in peace */
}

static void test_an_id_seen_again_is_not_run_again(void **state) {
    struct rig r;
    (void)state;
    start(&r, 8);
    r.auto_done = true;
    PUSH(ctl, "{\"id\":\"a1\",\"op\":\"ping\"}");
    until_final(&r, "a1");
    char *first = command(ctl, "GET", "quern:{t}:r:a1");
    PUSH(ctl, "{\"id\":\"a1\",\"op\":\"ping\",\"reply_to\":\"quern:{t}:rep:x\"}");
    PUSH(ctl, "{\"id\":\"a1\",\"op\":\"ping\"}");
    PUSH(ctl, "{\"id\":\"a2\",\"op\":\"ping\"}");
    until_final(&r, "a2");
    rig_until(&r, is_settled);
    assert_int_equal(r.n_came, 2);
    char *again = command(ctl, "GET", "quern:{t}:r:a1"),
         *reply = command(ctl, "RPOP", "quern:{t}:rep:x");
    assert_string_equal(again, first);
    assert_string_equal(reply, first);
    struct q_worker_stats s;
    q_worker_stats(r.w, &s);
    assert_int_equal(s.duplicates, 2);
    free(first);
    free(again);
    free(reply);
    rig_finish(&r);
}

static void test_bad_entries_become_dead_letters(void **state) {
    struct rig r;
    struct q_ctl_dead *dead;
    size_t n;
    uint64_t total;
    (void)state;
    start(&r, 8);
    r.auto_done = true;
    PUSH(ctl, "{\"id\":\"x\",\"op\":");
    PUSH(ctl, "{\"id\":\"named\",\"op\":\"ping\",\"ttl_ms\":\"soon\"}");
    PUSH(ctl, "{\"id\":\"ok\",\"op\":\"ping\"}");
    until_final(&r, "ok");
    rig_until(&r, is_settled);
    assert_int_equal(q_ctl_dead_list(ctl, "t", 0, 10, false, &dead, &n, &total), Q_OK);
    assert_int_equal(n, 2);
    assert_int_equal(total, 2);
    for (size_t i = 0; i < n; i++) {
        bool json = strstr(dead[i].envelope, "\"code\":\"bad_json\"") != NULL;
        assert_string_equal(dead[i].entry,
                            json ? "{\"id\":\"x\",\"op\":"
                                 : "{\"id\":\"named\",\"op\":\"ping\",\"ttl_ms\":\"soon\"}");
        if (!json) {
            assert_string_equal(dead[i].id, "named");
            assert_non_null(
                strstr(dead[i].envelope, "\"ttl_ms\\\" is a string, must be an integer"));
        }
    }
    q_ctl_dead_free(dead, n);
    envelope_has(ctl, "named", "\"state\":\"dead\"");
    assert_int_equal(q_ctl_dead_purge(ctl, "t", 0, &total), Q_OK);
    assert_int_equal(total, 2);
    rig_finish(&r);
}

static void test_delay_and_expiry(void **state) {
    struct rig r;
    struct q_ctl_status st;
    (void)state;
    start(&r, 8);
    r.auto_done = true;
    PUSH(ctl, "{\"id\":\"far\",\"op\":\"ping\",\"delay_ms\":3600000}");
    PUSH(ctl, "{\"id\":\"near\",\"op\":\"ping\",\"delay_ms\":300}");
    PUSH(ctl, "{\"id\":\"late\",\"op\":\"ping\",\"expire_ms\":1600000000000}");
    until_final(&r, "late");
    envelope_has(ctl, "late", "\"state\":\"expired\"");
    envelope_has(ctl, "late", "\"code\":\"expired\"");
    until_final(&r, "near");
    char *e = command(ctl, "GET", "quern:{t}:r:near");
    long long queue_ms = atoll(strstr(e, "\"queue_ms\":") + 11);
    assert_true(queue_ms >= 300);
    free(e);
    assert_int_equal(r.n_came, 1);
    assert_int_equal(q_ctl_status(ctl, "t", "far", &st), Q_OK);
    assert_string_equal(st.state, "delayed");
    assert_true(st.due_ms > q_worker_now_ms(r.w) + 3000000);
    q_ctl_status_free(&st);
    assert_int_equal(q_ctl_retry(ctl, "t", "far"), Q_OK); /* now, please */
    until_final(&r, "far");
    rig_finish(&r);
}

static void test_failures_retry_then_die_and_can_be_requeued(void **state) {
    struct rig r;
    struct q_ctl_dead *dead;
    (void)state;
    start(&r, 8);
    PUSH(ctl, "{\"id\":\"f\",\"op\":\"ping\",\"retry\":{\"max\":2,\"base_ms\":1,\"cap_ms\":2}}");
    for (unsigned attempt = 1; attempt <= 3; attempt++) {
        rig_until(&r, has_one);
        assert_int_equal(r.held[0]->attempt, attempt);
        q_job_fail(r.w, r.held[0], Q_CODE_internal, "it broke", -1);
        r.n_held = 0;
    }
    until_final(&r, "f");
    envelope_has(ctl, "f", "\"state\":\"dead\"");
    envelope_has(ctl, "f", "\"attempt\":3");
    envelope_has(ctl, "f", "\"code\":\"internal\",\"message\":\"it broke\",\"retryable\":true");
    assert_int_equal(q_ctl_dead_show(ctl, "t", "f", &dead), Q_OK);
    assert_non_null(strstr(dead->entry, "\"base_ms\":1"));
    q_ctl_dead_free(dead, 1);
    assert_int_equal(q_ctl_dead_requeue(ctl, "t", "f"), Q_OK);
    q_worker_want(r.w, 8);
    rig_until(&r, has_one);
    assert_int_equal(r.held[0]->attempt, 1);
    q_job_done(r.w, r.held[0], NULL, 0, NULL);
    until_final(&r, "f");
    envelope_has(ctl, "f", "\"state\":\"done\"");
    assert_int_equal(q_ctl_dead_show(ctl, "t", "f", &dead), Q_NOT_FOUND);
    rig_finish(&r);
}

static void test_a_refusal_fails_at_once(void **state) {
    struct rig r;
    struct q_ctl_dead *dead;
    (void)state;
    start(&r, 8);
    PUSH(ctl, "{\"id\":\"f\",\"op\":\"ping\"}");
    rig_until(&r, has_one);
    q_job_fail(r.w, r.held[0], Q_CODE_bad_shape, "is f32[1], must be f32[2]", -1);
    until_final(&r, "f");
    envelope_has(ctl, "f", "\"state\":\"failed\"");
    assert_int_equal(q_ctl_dead_show(ctl, "t", "f", &dead), Q_NOT_FOUND);
    rig_finish(&r);
}

static unsigned n_wanted;
static bool has_wanted(struct rig *r) {
    return r->n_held >= n_wanted;
}

static void test_inboxes_share_by_weight(void **state) {
    struct rig r;
    unsigned n[3] = {0};
    (void)state;
    for (int i = 0; i < 100; i++) {
        free(command(ctl, "LPUSH", "quern:{t}:in:hi", "{\"op\":\"h\"}"));
        free(command(ctl, "LPUSH", "quern:{t}:in", "{\"op\":\"n\"}"));
        free(command(ctl, "LPUSH", "quern:{t}:in:lo", "{\"op\":\"l\"}"));
    }
    start(&r, 1); /* one at a time: weights hold for small claims too */
    for (n_wanted = 1; n_wanted <= 50; n_wanted++) {
        rig_until(&r, has_wanted);
        q_worker_want(r.w, 1);
    }
    for (int i = 0; i < 50; i++) n[r.held[i]->op[0] == 'h' ? 0 : r.held[i]->op[0] == 'n' ? 1 : 2]++;
    assert_int_equal(n[0], 30); /* 6 : 3 : 1 */
    assert_int_equal(n[1], 15);
    assert_int_equal(n[2], 5);
    q_worker_want(r.w, 250);
    n_wanted = 300;
    rig_until(&r, has_wanted); /* nobody starves: all come */
    for (size_t i = 0; i < r.n_held; i++) q_job_done(r.w, r.held[i], NULL, 0, NULL);
    rig_until(&r, is_settled);
    rig_finish(&r);
}

static void test_never_more_than_wanted(void **state) {
    struct rig r;
    (void)state;
    for (int i = 0; i < 200; i++) PUSH(ctl, "{\"op\":\"ping\"}");
    start(&r, 3);
    n_wanted = 3;
    rig_until(&r, has_wanted);
    rig_spin(&r, 100);
    assert_int_equal(r.n_held, 3);
    assert_int_equal(q_worker_wanted(r.w), 0);
    command_says(ctl, "197", "LLEN", "quern:{t}:in");
    for (int i = 0; i < 3; i++) q_job_handback(r.w, r.held[i]);
    rig_until(&r, is_settled);
    command_says(ctl, "200", "LLEN", "quern:{t}:in");
    rig_finish(&r);
}

static void test_drain_hands_back_without_counting(void **state) {
    struct rig a, b;
    (void)state;
    PUSH(ctl, "{\"id\":\"d\",\"op\":\"ping\"}");
    start(&a, 1);
    rig_until(&a, has_one);
    q_worker_drain(a.w);
    q_job_handback(a.w, a.held[0]);
    rig_until(&a, is_drained);
    rig_finish(&a);
    start(&b, 1);
    rig_until(&b, has_one);
    assert_int_equal(b.held[0]->attempt, 1);
    assert_int_equal(b.held[0]->crashes, 0);
    q_job_done(b.w, b.held[0], NULL, 0, NULL);
    until_final(&b, "d");
    rig_finish(&b);
}

static void test_pause_and_resume(void **state) {
    struct rig r;
    struct q_ctl_queue *q;
    size_t n;
    (void)state;
    assert_int_equal(q_ctl_pause(ctl, "t", true), Q_OK);
    start(&r, 8);
    rig_until(&r, is_connected);
    PUSH(ctl, "{\"id\":\"p\",\"op\":\"ping\"}");
    rig_spin(&r, 300);
    assert_int_equal(r.n_came, 0);
    assert_int_equal(q_ctl_queues(ctl, "t", &q, &n), Q_OK);
    assert_true(q->paused);
    assert_int_equal(q->waiting, 1);
    free(q);
    free(command(ctl, "LPUSH", "quern:{t}:ctlq",
                 "{\"cmd\":\"resume\"}")); /* as an operator without script rights */
    rig_until(&r, has_one);
    q_job_done(r.w, r.held[0], NULL, 0, NULL);
    until_final(&r, "p");
    rig_finish(&r);
}

static void test_unique_key(void **state) {
    struct rig r;
    (void)state;
    start(&r, 8);
    PUSH(ctl, "{\"id\":\"u1\",\"op\":\"ping\",\"unique\":\"k\"}");
    rig_until(&r, has_one);
    PUSH(ctl, "{\"id\":\"u2\",\"op\":\"ping\",\"unique\":\"k\"}");
    until_final(&r, "u2");
    envelope_has(ctl, "u2", "\"code\":\"not_unique\"");
    q_job_done(r.w, r.held[0], NULL, 0, NULL);
    until_final(&r, "u1");
    command_says(ctl, "0", "EXISTS", "quern:{t}:u:k");
    r.n_held = 0;
    PUSH(ctl, "{\"id\":\"u3\",\"op\":\"ping\",\"unique\":\"k\"}");
    rig_until(&r, has_one);
    q_job_done(r.w, r.held[0], NULL, 0, NULL);
    until_final(&r, "u3");
    rig_finish(&r);
}

static void test_after_waits_for_others(void **state) {
    struct rig r;
    (void)state;
    start(&r, 8);
    PUSH(ctl, "{\"id\":\"z\",\"op\":\"ping\",\"after\":[\"x\",\"y\"]}");
    PUSH(ctl, "{\"id\":\"x\",\"op\":\"ping\"}");
    PUSH(ctl, "{\"id\":\"q\",\"op\":\"ping\",\"after\":[\"no\"]}");
    rig_until(&r, has_one);
    assert_string_equal(r.held[0]->id, "x");
    q_job_done(r.w, r.held[0], NULL, 0, NULL);
    r.n_held = 0;
    PUSH(ctl, "{\"id\":\"y\",\"op\":\"ping\"}");
    rig_until(&r, has_one);
    assert_string_equal(r.held[0]->id, "y");
    q_job_done(r.w, r.held[0], NULL, 0, NULL);
    r.n_held = 0;
    rig_until(&r, has_one);
    assert_string_equal(r.held[0]->id, "z");
    q_job_done(r.w, r.held[0], NULL, 0, NULL);
    r.n_held = 0;
    PUSH(ctl, "{\"id\":\"no\",\"op\":\"ping\"}");
    rig_until(&r, has_one);
    q_job_fail(r.w, r.held[0], Q_CODE_bad_input, "no", 0);
    until_final(&r, "q");
    envelope_has(ctl, "q", "\"code\":\"after_failed\"");
    rig_finish(&r);
}

static bool was_cancelled(struct rig *r) {
    return r->n_cancels > 0;
}

static void test_cancel_waiting_delayed_and_running(void **state) {
    struct rig r;
    struct q_ctl_status st;
    (void)state;
    PUSH(ctl, "{\"id\":\"c1\",\"op\":\"ping\"}");
    assert_int_equal(q_ctl_status(ctl, "t", "c1", &st), Q_OK);
    assert_string_equal(st.state, "queued");
    assert_int_equal(st.position, 0);
    q_ctl_status_free(&st);
    assert_int_equal(q_ctl_cancel(ctl, "t", "c1"), Q_OK);
    start(&r, 8);
    PUSH(ctl, "{\"id\":\"c2\",\"op\":\"ping\",\"delay_ms\":1000000,\"wait\":true,\"reply_to\":"
              "\"quern:{t}:rep:c\"}");
    PUSH(ctl, "{\"id\":\"c3\",\"op\":\"ping\"}");
    until_final(&r, "c1");
    envelope_has(ctl, "c1", "\"state\":\"cancelled\"");
    rig_until(&r, has_one);
    assert_string_equal(r.held[0]->id, "c3");
    rig_until(&r, is_connected);
    do { /* the delayed one goes through the worker first */
        rig_spin(&r, 10);
        assert_int_equal(q_ctl_status(ctl, "t", "c2", &st), Q_OK);
        q_ctl_status_free(&st);
    } while (strcmp(st.state, "delayed") != 0);
    assert_int_equal(q_ctl_cancel(ctl, "t", "c2"), Q_OK);
    envelope_has(ctl, "c2", "\"state\":\"cancelled\"");
    command_says(ctl, "1", "LLEN", "quern:{t}:rep:c");
    assert_int_equal(q_ctl_status(ctl, "t", "c3", &st), Q_OK);
    assert_string_equal(st.state, "running");
    assert_string_equal(st.worker, q_worker_wid(r.w, "t"));
    q_ctl_status_free(&st);
    assert_int_equal(q_ctl_cancel(ctl, "t", "c3"), Q_OK);
    rig_until(&r, was_cancelled);
    q_job_fail(r.w, r.held[0], Q_CODE_cancelled, "as asked", -1);
    until_final(&r, "c3");
    envelope_has(ctl, "c3", "\"state\":\"cancelled\"");
    command_says(ctl, "0", "HLEN", "quern:{t}:cx");
    assert_int_equal(q_ctl_cancel(ctl, "t", "c3"), Q_FINAL);
    rig_finish(&r);
}

static bool progress_is_there(struct rig *r) {
    struct q_ctl_status st;
    assert_int_equal(q_ctl_status(r->ctl, "t", r->id, &st), Q_OK);
    bool there = st.json && strstr(st.json, "\"progress\":{\"epoch\":2}");
    q_ctl_status_free(&st);
    return there;
}

static void test_progress_is_live(void **state) {
    struct rig r;
    (void)state;
    start(&r, 8);
    PUSH(ctl, "{\"id\":\"pr\",\"op\":\"train\",\"progress_ms\":50}");
    rig_until(&r, has_one);
    q_job_progress(r.w, r.held[0], "{\"epoch\":1}");
    q_job_progress(r.w, r.held[0], "{\"epoch\":2}"); /* held back, then sent */
    r.id = "pr";
    rig_until(&r, progress_is_there);
    q_job_done(r.w, r.held[0], NULL, 0, NULL);
    until_final(&r, "pr");
    rig_finish(&r);
}

/* Beats are an hour apart here: the answer to a report says that the job is to be cancelled. */
static void test_progress_hears_of_a_cancellation(void **state) {
    struct rig r;
    (void)state;
    rig_init(&r, server.url);
    r.ctl = ctl;
    r.opt.beat_ms = 3600000;
    r.opt.lease_ms = 36000000;
    rig_start(&r, 1);
    PUSH(ctl, "{\"id\":\"pc\",\"op\":\"train\",\"progress_ms\":1}");
    rig_until(&r, has_one);
    q_job_progress(r.w, r.held[0], "{\"epoch\":2}");
    r.id = "pc";
    rig_until(&r, progress_is_there);
    assert_int_equal(r.n_cancels, 0);
    assert_int_equal(q_ctl_cancel(ctl, "t", "pc"), Q_OK);
    rig_spin(&r, 5);
    q_job_progress(r.w, r.held[0], "{\"epoch\":3}");
    rig_until(&r, was_cancelled);
    q_job_fail(r.w, r.held[0], Q_CODE_cancelled, "as asked", -1);
    until_final(&r, "pc");
    command_says(ctl, "0", "HLEN", "quern:{t}:cx");
    rig_finish(&r);
}

/* 200 points are more than one script takes; the last go out ahead of the commit. */
static void test_points_of_a_curve(void **state) {
    struct rig r;
    (void)state;
    start(&r, 8);
    PUSH(ctl, "{\"id\":\"m\",\"op\":\"train\",\"ttl_ms\":50000}");
    rig_until(&r, has_one);
    for (int i = 0; i < 200; i++) {
        struct q_metric point[] = {{"step", i}, {"loss", 1.0 / (i + 1)}};
        assert_true(q_job_metric(r.w, r.held[0], point, 2));
    }
    assert_false(q_job_metric(r.w, r.held[0], NULL, 0));
    assert_false(q_job_metric(r.w, r.held[0], &(struct q_metric){"", 1}, 1));
    q_job_done(r.w, r.held[0], NULL, 0, NULL);
    until_final(&r, "m");
    command_says(ctl, "200", "XLEN", "quern:{t}:m:m");
    char *last = command(ctl, "XREVRANGE", "quern:{t}:m:m", "+", "-", "COUNT", "2");
    assert_non_null(strstr(last, "step\n199\nloss\n0.005"));
    assert_non_null(strstr(last, "step\n198\nloss\n0.00502512563"));
    free(last);
    char *ttl = command(ctl, "PTTL", "quern:{t}:m:m");
    assert_true(atoi(ttl) > 40000 && atoi(ttl) <= 50000);
    free(ttl);
    command_says(ctl, "done", "HGET", "quern:{t}:s:m", "state"); /* not left as running */
    rig_finish(&r);
}

/* Who lost the job draws nothing more. */
static void test_points_are_fenced(void **state) {
    struct rig r;
    (void)state;
    start(&r, 8);
    PUSH(ctl, "{\"id\":\"m\",\"op\":\"train\",\"progress_ms\":1}");
    rig_until(&r, has_one);
    char key[64], token[24];
    snprintf(key, sizeof key, "quern:{t}:a:%s", q_worker_wid(r.w, "t"));
    snprintf(token, sizeof token, "%llu", (unsigned long long)r.held[0]->token);
    free(command(ctl, "HDEL", key, token));
    assert_true(q_job_metric(r.w, r.held[0], &(struct q_metric){"step", 1}, 1));
    q_job_done(r.w, r.held[0], NULL, 0, NULL);
    rig_until(&r, nothing_pending);
    command_says(ctl, "0", "EXISTS", "quern:{t}:m:m", "quern:{t}:s:m", "quern:{t}:r:m");
    rig_finish(&r);
}

static bool all_came(struct rig *r) {
    return r->n_came >= 1280 && nothing_pending(r);
}

/* While a turn is under way the next one waits until it is full: here there is room for two jobs
 * more than a turn takes, and a turn for those two would double the number of turns. */
static void test_turns_that_follow_are_full(void **state) {
    struct rig r;
    struct q_worker_stats s;
    (void)state;
    for (int i = 0; i < 1280; i++) PUSH(ctl, "{\"op\":\"ping\"}");
    rig_init(&r, server.url);
    r.ctl = ctl;
    r.auto_done = true;
    rig_start(&r, Q_BATCH_MAX + 2);
    rig_until(&r, all_came);
    q_worker_stats(r.w, &s);
    assert_true(s.turns <= 1280 / Q_BATCH_MAX + 6);
    rig_finish(&r);
}

static void test_submit_and_wait(void **state) {
    struct rig r;
    char id[Q_ID_MAX + 1], *envelope;
    size_t len;
    const char *json = " {\"op\":\"ping\",\"wait\":true}", *bad = "{\"op\":\"ping\",\"wait\":3}";
    (void)state;
    assert_int_equal(q_ctl_submit(ctl, "t", bad, strlen(bad), 0, id), Q_BAD_JOB);
    assert_non_null(strstr(q_ctl_error(ctl)->text, "\"wait\""));
    assert_int_equal(q_ctl_submit(ctl, "t", json, strlen(json), 1, id), Q_OK);
    assert_int_equal(strlen(id), 22);
    assert_int_equal(q_ctl_wait(ctl, "t", id, 30, NULL, NULL, &envelope, &len), Q_TIMEOUT);
    start(&r, 8);
    r.auto_done = true;
    until_final(&r, id);
    assert_int_equal(q_ctl_wait(ctl, "t", id, 1000, NULL, NULL, &envelope, &len), Q_OK);
    assert_non_null(strstr(envelope, "\"state\":\"done\""));
    free(envelope);
    struct q_ctl_worker *w;
    size_t n;
    assert_int_equal(q_ctl_workers(ctl, NULL, &w, &n), Q_OK);
    assert_int_equal(n, 1);
    assert_string_equal(w->name, "rig");
    assert_int_equal(w->pid, getpid());
    q_ctl_workers_free(w, n);
    struct q_ctl_queue *q;
    assert_int_equal(q_ctl_queues(ctl, NULL, &q, &n), Q_OK);
    assert_int_equal(n, 1);
    assert_string_equal(q->name, "t");
    assert_int_equal(q->done_total, 1);
    assert_int_equal(q->workers, 1);
    free(q);
    rig_finish(&r);
}

static void test_several_queues_by_weight(void **state) {
    struct rig r;
    unsigned n[2] = {0};
    (void)state;
    for (int i = 0; i < 60; i++) {
        free(command(ctl, "LPUSH", "quern:{t}:in", "{\"op\":\"t\"}"));
        free(command(ctl, "LPUSH", "quern:{v}:in", "{\"op\":\"v\"}"));
    }
    rig_init(&r, server.url);
    r.queue[1] = (struct q_queue_option){.name = "v", .weight = 3};
    r.opt.n_queues = 2;
    r.ctl = ctl;
    rig_start(&r, 40);
    n_wanted = 40;
    rig_until(&r, has_wanted);
    for (int i = 0; i < 40; i++) n[r.held[i]->queue[0] == 'v']++;
    assert_int_equal(n[0], 10); /* 1 : 3 */
    assert_int_equal(n[1], 30);
    assert_int_equal(q_worker_queue_cap(r.w, "v", 35), Q_OK);
    assert_int_equal(q_worker_queue_cap(r.w, "none", 1), Q_NOT_FOUND);
    q_worker_want(r.w, 40);
    n_wanted = 80;
    rig_until(&r, has_wanted);
    n[0] = n[1] = 0;
    for (int i = 0; i < 80; i++) n[r.held[i]->queue[0] == 'v']++;
    assert_int_equal(n[1], 35);
    for (size_t i = 0; i < r.n_held; i++) q_job_done(r.w, r.held[i], NULL, 0, NULL);
    rig_until(&r, is_settled);
    rig_finish(&r);
}

struct fetched {
    char *value;
    size_t len;
    enum q_status code;
    bool came;
};
static void on_fetched(void *ctx, char *value, size_t len, const struct q_error *err) {
    *(struct fetched *)ctx = (struct fetched){value, len, err->code, true};
}
static struct fetched *fetching;
static bool fetch_came(struct rig *r) {
    return (void)r, fetching->came;
}

enum { N_LONG = 8 };
static struct fetched longs[N_LONG];
static bool longs_came(struct rig *r) {
    bool all = true;
    for (int i = 0; i < N_LONG; i++) all &= longs[i].came;
    return (void)r, all;
}

/* Around the size from which strings pass by the parser, small and long ones in turn behind each
 * other in one pipeline: no byte is lost or goes astray. */
static void test_long_replies_between_short_ones(void **state) {
    static const size_t sizes[N_LONG] = {65535, 65536, 1, 65537, 300000, 131072, 0, 5000000};
    struct rig r;
    char name[8], *value = malloc(5000000);
    (void)state;
    for (size_t i = 0; i < 5000000; i++) value[i] = (char)(i * 7 + i / 251);
    for (int i = 0; i < N_LONG; i++) {
        const char *argv[] = {"SET", name, value};
        size_t len[] = {3, 2, sizes[i]};
        char *reply;
        snprintf(name, sizeof name, "l%d", i);
        assert_int_equal(q_ctl_command(ctl, 3, argv, len, &reply, NULL), Q_OK);
        free(reply);
    }
    start(&r, 1);
    rig_until(&r, is_connected);
    for (int i = 0; i < N_LONG; i++) {
        longs[i].came = false;
        snprintf(name, sizeof name, "l%d", i);
        q_worker_fetch(r.w, name, 5000000, on_fetched, &longs[i]);
    }
    rig_until(&r, longs_came);
    for (int i = 0; i < N_LONG; i++) {
        assert_int_equal(longs[i].len, sizes[i]);
        assert_memory_equal(longs[i].value, value, sizes[i]);
        free(longs[i].value);
    }
    longs[0].came = false; /* and one that is cut off on its way */
    q_worker_fetch(r.w, "l7", 5000000, on_fetched, &longs[0]);
    free(command(ctl, "CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"));
    rig_until(&r, longs_came);
    free(longs[0].value);
    free(value);
    rig_finish(&r);
}

static void test_fetch_of_references(void **state) {
    struct rig r;
    struct fetched f = {0};
    (void)state;
    fetching = &f;
    free(command(ctl, "SET", "blob", "0123456789"));
    start(&r, 1);
    q_worker_fetch(r.w, "blob", 100, on_fetched, &f); /* not connected yet */
    assert_false(f.came);
    rig_until(&r, fetch_came);
    assert_int_equal(f.code, Q_UNREACHABLE);
    rig_until(&r, is_connected);
    f.came = false;
    q_worker_fetch(r.w, "blob", 100, on_fetched, &f);
    rig_until(&r, fetch_came);
    assert_string_equal(f.value, "0123456789");
    free(f.value);
    f.came = false;
    q_worker_fetch(r.w, "none", 100, on_fetched, &f);
    rig_until(&r, fetch_came);
    assert_int_equal(f.code, Q_NOT_FOUND);
    f.came = false;
    q_worker_fetch(r.w, "blob", 9, on_fetched, &f);
    rig_until(&r, fetch_came);
    assert_null(f.value);
    assert_int_equal(f.code, Q_BAD_OPTION);
    rig_finish(&r);
}

static void test_large_entry_goes_through(void **state) {
    struct rig r;
    size_t len = 3 << 20;
    (void)state;
    char *big = malloc(len + 100);
    int n = sprintf(big, "{\"id\":\"big\",\"op\":\"infer\",\"input\":\"");
    memset(big + n, 'x', len);
    strcpy(big + n + len, "\"}");
    const char *argv[] = {"LPUSH", "quern:{t}:in", big};
    char *reply;
    size_t reply_len;
    assert_int_equal(q_ctl_command(ctl, 3, argv, NULL, &reply, &reply_len), Q_OK);
    free(reply);
    start(&r, 1);
    rig_until(&r, has_one);
    assert_int_equal(r.held[0]->input.len, len + 2);
    char *result = malloc(len);
    memset(result, '7', len);
    q_job_done(r.w, r.held[0], result, len, NULL);
    until_final(&r, "big");
    char *envelope;
    assert_int_equal(q_ctl_result(ctl, "t", "big", &envelope, &reply_len), Q_OK);
    assert_true(reply_len > len);
    free(envelope);
    free(big);
    rig_finish(&r);
}

/* Results too large for one script call go out in several; one too large for Redis fails its job.
 */
static void test_huge_results(void **state) {
    struct rig r;
    (void)state;
    for (int i = 0; i < 5; i++) {
        char json[64];
        snprintf(json, sizeof json, "{\"id\":\"h%d\",\"op\":\"ping\"}", i);
        PUSH(ctl, json);
    }
    start(&r, 5);
    n_wanted = 5;
    rig_until(&r, has_wanted);
    for (int i = 0; i < 5; i++) {
        size_t len = i == 4 ? (size_t)Q_RESULT_BYTES_MAX + 1 : (size_t)20 << 20;
        char *big = malloc(len);
        assert_non_null(big);
        memset(big, '1', len);
        q_job_done(r.w, r.held[i], big, len, NULL);
    }
    rig_until(&r, is_settled);
    command_says(ctl, "5", "EXISTS", "quern:{t}:r:h0", "quern:{t}:r:h1", "quern:{t}:r:h2",
                 "quern:{t}:r:h3", "quern:{t}:r:h4");
    int too_large = 0;
    for (int i = 0; i < 5; i++) {
        char key[32];
        snprintf(key, sizeof key, "quern:{t}:r:h%d", i);
        char *head = command(ctl, "GETRANGE", key, "0", "1000");
        too_large += strstr(head, "\"code\":\"too_large\"") != NULL;
        free(head);
    }
    assert_int_equal(too_large, 1);
    rig_finish(&r);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        ON_SERVER(test_done_job_has_envelope_reply_and_wakeup),
        ON_SERVER(test_an_id_seen_again_is_not_run_again),
        ON_SERVER(test_bad_entries_become_dead_letters),
        ON_SERVER(test_delay_and_expiry),
        ON_SERVER(test_failures_retry_then_die_and_can_be_requeued),
        ON_SERVER(test_a_refusal_fails_at_once),
        ON_SERVER(test_inboxes_share_by_weight),
        ON_SERVER(test_never_more_than_wanted),
        ON_SERVER(test_drain_hands_back_without_counting),
        ON_SERVER(test_pause_and_resume),
        ON_SERVER(test_unique_key),
        ON_SERVER(test_after_waits_for_others),
        ON_SERVER(test_cancel_waiting_delayed_and_running),
        ON_SERVER(test_progress_is_live),
        ON_SERVER(test_progress_hears_of_a_cancellation),
        ON_SERVER(test_points_of_a_curve),
        ON_SERVER(test_points_are_fenced),
        ON_SERVER(test_turns_that_follow_are_full),
        ON_SERVER(test_submit_and_wait),
        ON_SERVER(test_several_queues_by_weight),
        ON_SERVER(test_fetch_of_references),
        ON_SERVER(test_long_replies_between_short_ones),
        ON_SERVER(test_large_entry_goes_through),
        ON_SERVER(test_huge_results),
    };
    return on_server_run("queue_flow", tests);
}
