/* Rows through a model on a lane: stacked or alone, in pieces or whole, the same bits; who fails,
 * fails alone. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include <cmocka.h>

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tests/unit/op_testing.h"
#include "worker/task/rows.h"

#define N 24
#define WIDTH 5

static struct w_lanes pool;
static struct w_lane lane;
static char path[64];

/* y[N,3] = x[N,WIDTH] · w; `first` the batch dimension */
static struct w_model *load(int64_t first) {
    struct ot m;
    struct w_error err = {0};
    float w[WIDTH * 3];
    for (int i = 0; i < WIDTH * 3; i++) w[i] = (float)(i % 7) - 2.5f;
    ot_begin(&m, 13);
    ot_input(&m, "x", OP_F32, 2, (int64_t[]){first, WIDTH});
    ot_constant(&m, "w", OP_F32, 2, (int64_t[]){WIDTH, 3}, w);
    ot_node(&m, "MatMul", "x w", "y");
    ot_output(&m, "y", OP_F32, 2, (int64_t[]){first, 3});
    ot_finish(&m);
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    assert_int_equal(fwrite(m.file.data, 1, m.file.len, f), m.file.len);
    fclose(f);
    ot_end(&m);
    struct w_model *model = w_model_open(path, NULL, NULL, &err);
    if (!model) fail_msg("%s", err.text);
    return model;
}

static int setup(void **state) {
    (void)state;
    snprintf(path, sizeof path, "/tmp/quern-rows-%d.onnx", (int)getpid());
    pool.n_threads = 1;
    pool.row_bytes_max = 1 << 20;
    lane.pool = &pool;
    return 0;
}

static void drop_sessions(void) {
    for (size_t i = 0; i < W_LANE_SESSIONS_MAX; i++) {
        op_session_destroy(lane.sessions[i].session);
        w_model_release(lane.sessions[i].model);
    }
    memset(lane.sessions, 0, sizeof lane.sessions);
}

static int teardown(void **state) {
    (void)state;
    for (size_t i = 0; i < lane.n_rows; i++) w_row_destroy(lane.rows[i]);
    free(lane.rows);
    for (size_t i = 0; i < W_INPUTS_MAX; i++) free(lane.stack[i].ptr);
    return unlink(path);
}

struct seen {
    struct w_row **rows;
    char text[N][512];
    int64_t together[N];
    size_t n, n_failed;
    const char *code;
};

static void row_done(void *ctx, size_t i, enum w_next next, int64_t together,
                     const struct w_error *err) {
    struct seen *s = ctx;
    assert_int_equal(i, s->n); /* in the order given */
    s->n++;
    s->together[i] = together;
    if (next == W_NEXT_DONE)
        snprintf(s->text[i], sizeof s->text[i], "%.*s", (int)s->rows[i]->result.len,
                 s->rows[i]->result.ptr);
    else
        s->n_failed++, s->code = err->code;
}

/* The input of row i: i % 3 + 1 rows where `several`. */
static void input_text(char *dst, size_t size, size_t i, bool several) {
    size_t n = 0, rows = several ? i % 3 + 1 : 1;
    n += (size_t)snprintf(dst, size, "[");
    for (size_t r = 0; r < rows; r++)
        n += (size_t)snprintf(dst + n, size - n, "%s[%zu.5,%zu,-3,0.1,%zu]", r ? "," : "", i, r,
                              i * r);
    snprintf(dst + n, size - n, "]");
}

static void run(struct w_model *model, size_t n, int64_t rows_max, bool several,
                struct seen *seen) {
    struct w_row *rows[N];
    struct w_error err = {0};
    static char text[N][512];
    memset(seen, 0, sizeof *seen);
    for (size_t i = 0; i < n; i++) {
        input_text(text[i], sizeof text[i], i, several);
        struct w_input input = {.kind = W_INPUT_JSON, .json = {text[i], strlen(text[i])}};
        rows[i] = w_lane_row(&lane, i);
        rows[i]->b64 = true; /* bits */
        enum w_next next = w_pipeline_before(model->pipeline, rows[i], &input, &err);
        if (next != W_NEXT_RUN) fail_msg("%s", err.text);
    }
    seen->rows = rows;
    w_rows_run(&lane, model, rows, n, rows_max, row_done, seen);
    assert_int_equal(seen->n, n);
}

static void test_stacked_rows_have_the_bits_of_single_ones(void **state) {
    struct w_model *model = load(-1);
    static struct seen alone, together;
    (void)state;
    assert_int_equal(model->sig.batching, W_BATCH_ROWS);
    run(model, N, 1, false, &alone);
    run(model, N, 10, false, &together);
    assert_int_equal(alone.n_failed + together.n_failed, 0);
    for (size_t i = 0; i < N; i++) {
        assert_string_equal(alone.text[i], together.text[i]);
        assert_int_equal(alone.together[i], 1);
        assert_int_equal(together.together[i], i < 20 ? 10 : 4);
    }
    drop_sessions();
    w_model_release(model);
}

static void test_rows_of_several_rows_keep_their_own(void **state) {
    struct w_model *model = load(-1);
    static struct seen alone, together;
    (void)state;
    run(model, N, 1, true, &alone); /* in pieces of one */
    run(model, N, 7, true, &together);
    assert_int_equal(alone.n_failed + together.n_failed, 0);
    for (size_t i = 0; i < N; i++) {
        assert_string_equal(alone.text[i], together.text[i]);
        assert_true(together.together[i] <= 7);
    }
    drop_sessions();
    w_model_release(model);
}

static void test_a_model_of_one_row_takes_several_as_several_runs(void **state) {
    struct w_model *many = load(-1);
    static struct seen of_many, of_one;
    (void)state;
    run(many, N, 64, true, &of_many);
    drop_sessions();
    w_model_release(many);
    struct w_model *one = load(1);
    assert_int_equal(one->sig.batching, W_BATCH_ONE);
    run(one, N, 64, true, &of_one);
    assert_int_equal(of_one.n_failed, 0);
    for (size_t i = 0; i < N; i++) assert_string_equal(of_one.text[i], of_many.text[i]);
    drop_sessions();
    w_model_release(one);
}

static void test_a_cancelled_lane_fails_what_is_left(void **state) {
    struct w_model *model = load(-1);
    static struct seen seen;
    (void)state;
    lane.cancel = true;
    run(model, N, 4, false, &seen);
    lane.cancel = false;
    assert_int_equal(seen.n_failed, N);
    assert_string_equal(seen.code, "cancelled");
    run(model, N, 4, false, &seen);
    assert_int_equal(seen.n_failed, 0);
    drop_sessions();
    w_model_release(model);
}

static void test_a_lane_keeps_few_sessions_and_counts_on_while_it_works(void **state) {
    struct w_model *models[W_LANE_SESSIONS_MAX + 2];
    static struct seen seen;
    uint64_t before = atomic_load(&lane.beats);
    (void)state;
    for (size_t i = 0; i < W_LANE_SESSIONS_MAX + 2; i++) {
        models[i] = load(-1);
        run(models[i], 2, 4, false, &seen);
        assert_int_equal(seen.n_failed, 0);
    }
    assert_true(atomic_load(&lane.beats) > before + W_LANE_SESSIONS_MAX);
    assert_int_equal(atomic_load(&models[0]->refs), 1); /* its session has gone */
    assert_int_equal(atomic_load(&models[W_LANE_SESSIONS_MAX + 1]->refs), 2);
    drop_sessions();
    for (size_t i = 0; i < W_LANE_SESSIONS_MAX + 2; i++) w_model_release(models[i]);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_stacked_rows_have_the_bits_of_single_ones),
        cmocka_unit_test(test_rows_of_several_rows_keep_their_own),
        cmocka_unit_test(test_a_model_of_one_row_takes_several_as_several_runs),
        cmocka_unit_test(test_a_cancelled_lane_fails_what_is_left),
        cmocka_unit_test(test_a_lane_keeps_few_sessions_and_counts_on_while_it_works),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
