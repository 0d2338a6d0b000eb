/* Bulk jobs: tickets, ranges, crashes, the one finaliser, on a real redis-server. */
#include "queue_testing.h"

/* What happened, over all rigs of a test. */
enum { GRAINS_MAX = 4000 };
static unsigned scored[GRAINS_MAX]; /* commits a grain */
static unsigned n_finals, n_leaves, n_errors, n_ranges, range_crashes;
static uint64_t last_ok, last_failed;
static uint32_t stop_after; /* ranges: then the rig sits on the next one */
static struct q_bulk_plan plan;

static void on_step(void *ctx, struct q_job *job, const struct q_bulk_turn *t);

static void on_ranges(void *ctx, struct q_job *job, const struct q_bulk_range *ranges, size_t n,
                      const struct q_error *err) {
    struct rig *r = ctx;
    uint32_t next = 0;
    assert_int_equal(err->code, Q_OK);
    for (size_t i = 0; i < n; i++) { /* they tile the whole */
        assert_int_equal(ranges[i].first, next);
        next += ranges[i].count;
    }
    assert_int_equal(next, (plan.n_rows + plan.grain_rows - 1) / plan.grain_rows);
    q_job_done(r->w, job, strdup("{\"rows\":1}"), 10, NULL);
}

static void on_step(void *ctx, struct q_job *job, const struct q_bulk_turn *t) {
    struct rig *r = ctx;
    last_ok = t->rows_ok > last_ok ? t->rows_ok : last_ok;
    last_failed = t->rows_failed > last_failed ? t->rows_failed : last_failed;
    switch (t->step) {
    case Q_BULK_RANGE:
        range_crashes += t->crashes;
        if (stop_after && n_ranges >= stop_after) return; /* sits on it */
        n_ranges++;
        for (uint32_t i = t->first; i < t->first + t->count; i++) scored[i]++;
        uint64_t rows = (uint64_t)(t->first + t->count) * t->plan.grain_rows;
        rows = (rows > t->plan.n_rows ? t->plan.n_rows : rows) -
               (uint64_t)t->first * t->plan.grain_rows;
        q_bulk_commit(r->w, job, t->first, t->count, rows - 1, 1, on_step, r);
        break;
    case Q_BULK_FINAL:
        n_finals++;
        q_bulk_ranges(r->w, job, on_ranges, r);
        break;
    case Q_BULK_CANCEL:
        q_job_fail(r->w, job, Q_CODE_cancelled, "as asked", -1);
        break;
    case Q_BULK_ERROR:
        n_errors++;
        q_job_handback(r->w, job);
        break;
    default:
        n_leaves++;
        q_bulk_leave(r->w, job);
        break;
    }
}

static void bulk_jobs(void *ctx, struct q_job **jobs, size_t n) {
    struct rig *r = ctx;
    for (size_t i = 0; i < n; i++) {
        r->n_came++;
        if (jobs[i]->ticket < 0)
            q_bulk_open(r->w, jobs[i], &plan, on_step, r);
        else
            q_bulk_next(r->w, jobs[i], on_step, r);
    }
    q_worker_want(r->w, q_worker_wanted(r->w) + (uint32_t)n);
}

static void bulk_rig(struct rig *r, uint32_t want) {
    rig_init(r, server.url);
    r->ctl = ctl;
    r->opt.on.jobs = bulk_jobs;
    r->opt.beat_ms = 100;
    r->opt.hold_ms = 600;
    r->opt.lease_ms = 1000;
    rig_start(r, want);
}

static void reset(uint64_t rows, uint32_t grain_rows, uint32_t tickets) {
    memset(scored, 0, sizeof scored);
    n_finals = n_leaves = n_errors = n_ranges = range_crashes = stop_after = 0;
    last_ok = last_failed = 0;
    plan = (struct q_bulk_plan){.n_rows = rows, .grain_rows = grain_rows, .n_tickets = tickets};
}

static uint32_t n_grains(void) {
    return (uint32_t)((plan.n_rows + plan.grain_rows - 1) / plan.grain_rows);
}

static void until_final(struct rig *r, const char *id) {
    r->id = id;
    rig_until(r, is_final);
    rig_until(r, nothing_pending);
}

static void left_clean(void) {
    command_says(ctl, "0", "EXISTS", "quern:{t}:b:b1", "quern:{t}:b:b1:d", "quern:{t}:b:b1:s");
    command_says(ctl, "0", "LLEN", "quern:{t}:in");
}

static void test_one_worker_many_tickets(void **state) {
    struct rig r;
    (void)state;
    reset(1003, 10, 4);
    bulk_rig(&r, 4);
    PUSH(ctl, "{\"id\":\"b1\",\"op\":\"bulk\"}");
    until_final(&r, "b1");
    assert_int_equal(r.n_came, 4);
    assert_int_equal(n_finals, 1);
    assert_int_equal(n_leaves, 3);
    for (uint32_t i = 0; i < n_grains(); i++) assert_int_equal(scored[i], 1);
    assert_int_equal(last_failed, n_ranges);
    assert_int_equal(last_ok + last_failed, 1003);
    envelope_has(ctl, "b1", "\"state\":\"done\"");
    command_says(ctl, "1003", "HGET", "quern:{t}:s:b1", "rows_done");
    left_clean();
    rig_finish(&r);
}

static void test_ranges_shrink_towards_the_end(void **state) {
    struct rig r;
    (void)state;
    reset(3000, 1, 2);
    bulk_rig(&r, 1); /* tickets come one after the other */
    PUSH(ctl, "{\"id\":\"b1\",\"op\":\"bulk\"}");
    until_final(&r, "b1");
    assert_in_range(n_ranges, 47 + 10, 200); /* 64 a range at first, then fewer and fewer */
    assert_int_equal(last_ok + last_failed, 3000);
    left_clean();
    rig_finish(&r);
}

static void test_empty_bulk_is_finalised(void **state) {
    struct rig r;
    (void)state;
    reset(0, 10, 4);
    bulk_rig(&r, 4);
    PUSH(ctl, "{\"id\":\"b1\",\"op\":\"bulk\"}");
    until_final(&r, "b1");
    assert_int_equal(n_finals, 1);
    left_clean();
    rig_finish(&r);
}

static void test_bad_plans_are_errors(void **state) {
    struct rig r;
    (void)state;
    reset(10, 0, 4);
    bulk_rig(&r, 1);
    PUSH(ctl, "{\"id\":\"b1\",\"op\":\"bulk\"}");
    while (n_errors == 0) uv_run(&r.loop, UV_RUN_ONCE);
    plan.grain_rows = 1;
    until_final(&r, "b1"); /* handed back, and good now */
    rig_finish(&r);
}

/* A child opens the job, commits some ranges, and is killed while it holds others; two workers
 * finish. */
static void test_crash_resumes_what_is_not_done(void **state) {
    static struct rig child, a, b;
    int fd[2];
    char c;
    (void)state;
    reset(2000, 1, 6);
    PUSH(ctl, "{\"id\":\"b1\",\"op\":\"bulk\"}");
    assert_int_equal(pipe(fd), 0);
    pid_t pid = fork();
    if (pid == 0) {
        stop_after = 10;
        bulk_rig(&child, 3);
        while (n_ranges < 10 || child.n_came < 6) uv_run(&child.loop, UV_RUN_ONCE);
        for (int i = 0; i < 200; i++) /* the tenth commit arrives, every ticket sits on a range */
            uv_run(&child.loop, UV_RUN_ONCE);
        if (write(fd[1], "1", 1) != 1) _exit(2);
        for (;;) uv_run(&child.loop, UV_RUN_ONCE);
    }
    assert_int_equal(read(fd[0], &c, 1), 1);
    char *done = command(ctl, "BITCOUNT", "quern:{t}:b:b1:d");
    unsigned before = (unsigned)atoi(done);
    free(done);
    assert_true(before > 0);
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
    bulk_rig(&a, 2);
    bulk_rig(&b, 2);
    a.id = "b1";
    while (!is_final(&a)) {
        uv_run(&a.loop, UV_RUN_ONCE);
        uv_run(&b.loop, UV_RUN_ONCE);
    }
    rig_until(&a, nothing_pending);
    rig_until(&b, nothing_pending);
    unsigned again = 0;
    for (uint32_t i = 0; i < 2000; i++) {
        assert_true(scored[i] <= 1);
        again += scored[i];
    }
    assert_int_equal(again + before, 2000); /* nothing done twice, nothing left out */
    assert_int_equal(range_crashes, 6);     /* a range a ticket, that the child sat on */
    assert_int_equal(last_ok + last_failed, 2000);
    assert_int_equal(n_finals, 1);
    left_clean();
    close(fd[0]);
    close(fd[1]);
    rig_finish(&a);
    rig_finish(&b);
}

static void test_cancel_ends_all_tickets(void **state) {
    struct rig r;
    (void)state;
    reset(1000, 1, 3);
    stop_after = 5;
    bulk_rig(&r, 3);
    PUSH(ctl, "{\"id\":\"b1\",\"op\":\"bulk\"}");
    while (n_ranges < 5) uv_run(&r.loop, UV_RUN_ONCE);
    assert_int_equal(q_ctl_cancel(ctl, "t", "b1"), Q_OK);
    rig_finish(&r); /* goes away without a word; another one takes the tickets */
    stop_after = 0;
    bulk_rig(&r, 3);
    until_final(&r, "b1");
    envelope_has(ctl, "b1", "\"state\":\"cancelled\"");
    left_clean();
    rig_finish(&r);
}

static void test_same_id_again_leaves(void **state) {
    struct rig r;
    (void)state;
    reset(200, 1, 2);
    PUSH(ctl, "{\"id\":\"b1\",\"op\":\"bulk\"}");
    PUSH(ctl, "{\"id\":\"b1\",\"op\":\"bulk\"}");
    bulk_rig(&r, 4);
    until_final(&r, "b1");
    assert_int_equal(n_finals, 1);
    assert_int_equal(last_ok + last_failed, 200);
    left_clean();
    rig_finish(&r);
}

/* --- notes */

static size_t n_notes;
static enum q_status note_status;
static char note_of_2[32];

static void on_note_step(void *ctx, struct q_job *job, const struct q_bulk_turn *t);

static void on_notes(void *ctx, struct q_job *job, const struct q_bulk_note *notes, size_t n,
                     const struct q_error *err) {
    struct rig *r = ctx;
    note_status = err->code;
    n_notes = n;
    for (size_t i = 0; i < n; i++)
        if (notes[i].grain == 2)
            snprintf(note_of_2, sizeof note_of_2, "%.*s", (int)notes[i].len, notes[i].text);
    if (err->code != Q_OK) {
        q_bulk_leave(r->w, job);
        return;
    }
    q_bulk_commit(r->w, job, (uint32_t)n - 1, 1, 1, 0, on_note_step, r);
}

static void on_note_step(void *ctx, struct q_job *job, const struct q_bulk_turn *t) {
    struct rig *r = ctx;
    char text[32];
    snprintf(text, sizeof text, "{\"seen\":%u}", t->first);
    if (t->step == Q_BULK_RANGE)
        q_bulk_note(r->w, job, t->first, text, on_notes, r);
    else
        on_step(ctx, job, t);
}

static void note_jobs(void *ctx, struct q_job **jobs, size_t n) {
    struct rig *r = ctx;
    for (size_t i = 0; i < n; i++) q_bulk_open(r->w, jobs[i], &plan, on_note_step, r);
}

static void test_notes_are_seen_by_all_and_go_with_the_job(void **state) {
    struct rig r;
    (void)state;
    reset(4, 1, 1);
    plan.range_max = 1;
    rig_init(&r, server.url);
    r.ctl = ctl;
    r.opt.on.jobs = note_jobs;
    rig_start(&r, 1);
    PUSH(ctl, "{\"id\":\"b1\",\"op\":\"tune\"}");
    until_final(&r, "b1");
    assert_int_equal(n_notes, 4);
    assert_string_equal(note_of_2, "{\"seen\":2}");
    assert_int_equal(n_finals, 1);
    left_clean();
    rig_finish(&r);
}

static void lost_jobs(void *ctx, struct q_job **jobs, size_t n) {
    struct rig *r = ctx;
    char key[64], token[24], *text = malloc(Q_BULK_NOTE_BYTES_MAX + 2);
    assert_int_equal(n, 1);
    memset(text, 'x', Q_BULK_NOTE_BYTES_MAX + 1);
    text[Q_BULK_NOTE_BYTES_MAX + 1] = 0;
    r->n_came++;
    snprintf(key, sizeof key, "quern:{t}:a:%s", q_worker_wid(r->w, "t"));
    snprintf(token, sizeof token, "%llu", (unsigned long long)jobs[0]->token);
    note_status = Q_OK;
    if (strcmp(jobs[0]->id, "lost") == 0) free(command(ctl, "HDEL", key, token));
    q_bulk_note(r->w, jobs[0], 0, strcmp(jobs[0]->id, "lost") == 0 ? "{}" : text, on_notes, r);
    free(text);
}

static bool note_failed(struct rig *r) {
    (void)r;
    return note_status != Q_OK;
}

static void test_notes_are_fenced_and_bounded(void **state) {
    struct rig r;
    (void)state;
    rig_init(&r, server.url);
    r.ctl = ctl;
    r.opt.on.jobs = lost_jobs;
    rig_start(&r, 1);
    PUSH(ctl, "{\"id\":\"lost\",\"op\":\"tune\"}");
    rig_until(&r, note_failed);
    assert_int_equal(note_status, Q_FENCED);
    note_status = Q_OK;
    q_worker_want(r.w, 1);
    PUSH(ctl, "{\"id\":\"long\",\"op\":\"tune\"}");
    rig_until(&r, note_failed);
    assert_int_equal(note_status, Q_BAD_OPTION);
    rig_until(&r, nothing_pending);
    rig_finish(&r);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        ON_SERVER(test_one_worker_many_tickets),
        ON_SERVER(test_ranges_shrink_towards_the_end),
        ON_SERVER(test_empty_bulk_is_finalised),
        ON_SERVER(test_bad_plans_are_errors),
        ON_SERVER(test_crash_resumes_what_is_not_done),
        ON_SERVER(test_cancel_ends_all_tickets),
        ON_SERVER(test_same_id_again_leaves),
        ON_SERVER(test_notes_are_seen_by_all_and_go_with_the_job),
        ON_SERVER(test_notes_are_fenced_and_bounded),
    };
    return on_server_run("queue_bulk", tests);
}
