/* Sessions: checking of inputs, limits, subgraphs, threads, and that a row's result has the same bits everywhere. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>

#include "ops/pool.h"
#include "tests/unit/op_testing.h"

#define WIDE 96

/* Two layers with a softmax: enough that kernels split and block. */
static void build_mlp(struct ot *m) {
    static float w[WIDE * WIDE], b[WIDE];
    for (int i = 0; i < WIDE * WIDE; i++) w[i] = (float)((i * 37) % 101 - 50) / 300;
    for (int i = 0; i < WIDE; i++) b[i] = (float)(i % 7) / 10;
    ot_begin(m, 17);
    ot_input(m, "x", OP_F32, 2, (int64_t[]){-1, WIDE});
    ot_constant(m, "w", OP_F32, 2, (int64_t[]){WIDE, WIDE}, w);
    ot_constant(m, "b", OP_F32, 1, (int64_t[]){WIDE}, b);
    ot_node(m, "MatMul", "x w", "a");
    ot_node(m, "Add", "a b", "c");
    ot_node(m, "Tanh", "c", "d");
    ot_node(m, "Gemm", "d w b", "e");
    ot_node(m, "Softmax", "e", "y");
    ot_output(m, "y", OP_F32, 2, (int64_t[]){-1, WIDE});
}

static struct op_tensor rows(float *data, int64_t n) {
    for (int64_t i = 0; i < n * WIDE; i++) data[i] = (float)((i * 29) % 17 - 8) / 4;
    return (struct op_tensor){.dtype = OP_F32, .rank = 2, .dims = {n, WIDE}, .data = data};
}

static void test_a_row_has_the_same_bits_in_any_batch(void **state) {
    (void)state;
    enum { N = 37 };
    static float data[N * WIDE], all[N * WIDE];
    struct ot m;
    struct op_error err;
    struct op_tensor x = rows(data, N);
    build_mlp(&m);
    const struct op_tensor *y = ot_run(&m, NULL, &x, 1, &err);
    assert_non_null(y);
    memcpy(all, y->data, sizeof all);
    for (int64_t first = 0; first < N; first += 5)
        for (int64_t n = 1; first + n <= N && n < 9; n += 3) {
            struct op_tensor part = {.dtype = OP_F32, .rank = 2, .dims = {n, WIDE}, .data = data + first * WIDE};
            y = ot_run(&m, NULL, &part, 1, &err);
            assert_non_null(y);
            assert_memory_equal(y->data, all + first * WIDE, (size_t)(n * WIDE) * sizeof(float));
        }
    const struct op_session_options threads = {.n_threads = 3};
    struct op_session *s = op_session_create(m.model, &threads, &err);
    assert_non_null(s);
    assert_int_equal(op_session_run(s, &x, 1, &y, &err), OP_OK);
    assert_memory_equal(y->data, all, sizeof all);
    op_session_destroy(s);
    ot_end(&m);
}

struct lane {
    struct op_model *model;
    const float *expected;
    int n_bad;
};

static void *lane_main(void *arg) {
    struct lane *l = arg;
    static _Thread_local float data[8 * WIDE];
    struct op_error err;
    struct op_session *s = op_session_create(l->model, NULL, &err);
    for (int i = 0; s && i < 50; i++) {
        struct op_tensor x = rows(data, 1 + i % 8);
        const struct op_tensor *y;
        if (op_session_run(s, &x, 1, &y, &err) != OP_OK || memcmp(y->data, l->expected, WIDE * sizeof(float)) != 0) l->n_bad++;
    }
    op_session_destroy(s);
    return NULL;
}

static void test_lanes_share_a_model(void **state) {
    (void)state;
    static float data[WIDE];
    struct ot m;
    struct op_error err;
    struct lane lanes[4];
    pthread_t threads[4];
    struct op_tensor x = rows(data, 1);
    build_mlp(&m);
    const struct op_tensor *y = ot_run(&m, NULL, &x, 1, &err);
    assert_non_null(y);
    for (int i = 0; i < 4; i++) {
        lanes[i] = (struct lane){m.model, y->data, 0};
        assert_int_equal(pthread_create(&threads[i], NULL, lane_main, &lanes[i]), 0);
    }
    for (int i = 0; i < 4; i++) {
        pthread_join(threads[i], NULL);
        assert_int_equal(lanes[i].n_bad, 0);
    }
    ot_end(&m);
}

static void test_inputs_are_checked_against_the_model(void **state) {
    (void)state;
    static float data[3 * WIDE];
    struct ot m;
    struct op_error err;
    struct op_tensor x = rows(data, 3);
    build_mlp(&m);
    x.dims[1] = 90;
    assert_null(ot_run(&m, NULL, &x, 1, &err));
    assert_int_equal(err.code, OP_BAD_SHAPE);
    assert_string_equal(err.text, "input \"x\" is f32[d0,96], the job sent f32[3,90] (dimension 1 is 90, not 96)");
    x.dims[1] = WIDE;
    x.rank = 1;
    assert_null(ot_run(&m, NULL, &x, 1, &err));
    assert_int_equal(err.code, OP_BAD_SHAPE);
    x.rank = 2;
    x.dtype = OP_F64;
    assert_null(ot_run(&m, NULL, &x, 1, &err));
    assert_int_equal(err.code, OP_BAD_TYPE);
    x.dtype = OP_F32;
    x.data = NULL;
    assert_null(ot_run(&m, NULL, &x, 1, &err));
    assert_int_equal(err.code, OP_BAD_VALUE);
    assert_null(ot_run(&m, NULL, &x, 0, &err));
    assert_int_equal(err.code, OP_BAD_VALUE);
    x.data = data;
    assert_non_null(ot_run(&m, NULL, &x, 1, &err)); /* and it runs on */
    x.dims[0] = 0;
    const struct op_tensor *y = ot_run(&m, NULL, &x, 1, &err);
    assert_non_null(y);
    assert_int_equal(y->dims[0], 0);
    ot_end(&m);
}

static void test_initializers_can_be_overridden(void **state) {
    (void)state;
    struct ot m;
    struct op_error err;
    float one[] = {1, 1, 1}, w[] = {1, 2, 3}, other[] = {10, 20, 30};
    const int64_t three[] = {3};
    ot_begin(&m, 17);
    ot_constant(&m, "w", OP_F32, 1, three, w);
    ot_constant(&m, "v", OP_F32, 1, three, w);
    ot_input(&m, "w", OP_F32, 1, three);
    ot_input(&m, "v", OP_F32, 1, three);
    ot_input(&m, "x", OP_F32, 1, three);
    ot_node(&m, "Mul", "w v", "p");
    ot_node(&m, "Add", "x p", "y");
    ot_output(&m, "y", OP_F32, -1, NULL);
    struct op_tensor in[3] = {{.dtype = OP_F32, .rank = 1, .dims = {3}, .data = one}};
    const struct op_tensor *y = ot_run(&m, NULL, in, 1, &err);
    assert_non_null(y);
    assert_memory_equal(y->data, ((float[]){2, 5, 10}), 12);
    in[2] = (struct op_tensor){.dtype = OP_F32, .rank = 1, .dims = {3}, .data = other}; /* v; w is left out */
    y = ot_run(&m, NULL, in, 3, &err);
    assert_non_null(y);
    assert_memory_equal(y->data, ((float[]){11, 41, 91}), 12);
    y = ot_run(&m, NULL, in, 1, &err);
    assert_non_null(y);
    assert_memory_equal(y->data, ((float[]){2, 5, 10}), 12);
    ot_end(&m);
}

static void test_output_outlives_the_input(void **state) {
    (void)state;
    struct ot m;
    struct op_error err;
    float data[4] = {1, 2, 3, 4};
    ot_begin(&m, 17);
    ot_input(&m, "x", OP_F32, 1, (int64_t[]){4});
    ot_node(&m, "Identity", "x", "y");
    ot_output(&m, "y", OP_F32, -1, NULL);
    struct op_tensor x = {.dtype = OP_F32, .rank = 1, .dims = {4}, .data = data};
    const struct op_tensor *y = ot_run(&m, NULL, &x, 1, &err);
    assert_non_null(y);
    memset(data, 0, sizeof data);
    assert_memory_equal(y->data, ((float[]){1, 2, 3, 4}), 16);
    ot_end(&m);
}

/* --- control flow ------------------------------------------------------------------------------ */

/* Loop(trips, true, s = x): s = s + x, where x comes from outside; scan output: s. */
static void build_loop(struct ot *m, int64_t trips) {
    struct ot body;
    const uint8_t yes = 1;
    ot_begin(&body, 17);
    ot_input(&body, "i", OP_I64, 0, NULL);
    ot_input(&body, "go", OP_BOOL, 0, NULL);
    ot_input(&body, "s", OP_F32, -1, NULL);
    ot_node(&body, "Add", "s x", "s2");
    ot_node(&body, "Identity", "go", "go2");
    ot_output(&body, "go2", OP_BOOL, -1, NULL);
    ot_output(&body, "s2", OP_F32, -1, NULL);
    ot_output(&body, "s2", OP_F32, -1, NULL);
    ot_begin(m, 17);
    ot_input(m, "x", OP_F32, 1, (int64_t[]){2});
    ot_constant(m, "n", OP_I64, 0, NULL, &trips);
    ot_constant(m, "t", OP_BOOL, 0, NULL, &yes);
    ot_node(m, "Loop", "n t x", "y z");
    ot_graph_attr(m, "body", &body);
    ot_output(m, "y", OP_F32, -1, NULL);
    ot_output(m, "z", OP_F32, -1, NULL);
}

static void test_loop_captures_outer_values(void **state) {
    (void)state;
    struct ot m;
    struct op_error err;
    float data[2] = {1, 2};
    build_loop(&m, 1000);
    struct op_tensor x = {.dtype = OP_F32, .rank = 1, .dims = {2}, .data = data};
    for (int k = 0; k < 2; k++) {
        const struct op_tensor *out = ot_run(&m, NULL, &x, 1, &err);
        assert_non_null(out);
        assert_memory_equal(out[0].data, ((float[]){1001, 2002}), 8);
        assert_int_equal(out[1].dims[0], 1000);
        assert_true(((float *)out[1].data)[1] == 4);
    }
    ot_end(&m);
}

static void test_endless_loop_ends_at_the_budget(void **state) {
    (void)state;
    struct ot m, body;
    struct op_error err;
    const int64_t trips = INT64_MAX;
    const uint8_t yes = 1;
    float data[1] = {1};
    ot_begin(&body, 17);
    ot_input(&body, "i", OP_I64, 0, NULL);
    ot_input(&body, "go", OP_BOOL, 0, NULL);
    ot_input(&body, "s", OP_F32, -1, NULL);
    ot_node(&body, "Identity", "s", "s2");
    ot_output(&body, "go", OP_BOOL, -1, NULL);
    ot_output(&body, "s2", OP_F32, -1, NULL);
    ot_begin(&m, 17);
    ot_input(&m, "x", OP_F32, 1, (int64_t[]){1});
    ot_constant(&m, "n", OP_I64, 0, NULL, &trips);
    ot_constant(&m, "t", OP_BOOL, 0, NULL, &yes);
    ot_node(&m, "Loop", "n t x", "y");
    ot_graph_attr(&m, "body", &body);
    ot_output(&m, "y", OP_F32, -1, NULL);
    struct op_tensor x = {.dtype = OP_F32, .rank = 1, .dims = {1}, .data = data};
    assert_null(ot_run(&m, NULL, &x, 1, &err));
    assert_int_equal(err.code, OP_LIMIT);
    ot_end(&m);
}

/* Its state doubles each time: the memory cap ends it long before the memory does. */
static void test_growing_loop_ends_at_the_memory_cap(void **state) {
    (void)state;
    struct ot m, body;
    struct op_error err;
    const int64_t trips = 60;
    const uint8_t yes = 1;
    const struct op_load_options small = {.memory_bytes_max = 8 << 20};
    float data[1] = {1};
    ot_begin(&body, 17);
    ot_input(&body, "i", OP_I64, 0, NULL);
    ot_input(&body, "go", OP_BOOL, 0, NULL);
    ot_input(&body, "s", OP_F32, -1, NULL);
    ot_node(&body, "Concat", "s s", "s2");
    ot_int(&body, "axis", 0);
    ot_node(&body, "Identity", "go", "go2");
    ot_output(&body, "go2", OP_BOOL, -1, NULL);
    ot_output(&body, "s2", OP_F32, -1, NULL);
    ot_begin(&m, 17);
    ot_input(&m, "x", OP_F32, 1, (int64_t[]){1});
    ot_constant(&m, "n", OP_I64, 0, NULL, &trips);
    ot_constant(&m, "t", OP_BOOL, 0, NULL, &yes);
    ot_node(&m, "Loop", "n t x", "y");
    ot_graph_attr(&m, "body", &body);
    ot_output(&m, "y", OP_F32, -1, NULL);
    struct op_tensor x = {.dtype = OP_F32, .rank = 1, .dims = {1}, .data = data};
    assert_null(ot_run(&m, &small, &x, 1, &err));
    assert_true(err.code == OP_NOMEM || err.code == OP_LIMIT);
    assert_true(op_session_bytes(m.session) < 8 << 20);
    ot_end(&m);
}

static void test_nested_subgraphs_see_all_outer_values(void **state) {
    (void)state;
    float data[1] = {5};
    for (int c = 0; c < 4; c++) {
        struct ot m, yes, no, inner_yes, inner_no;
        struct op_error err;
        const float w = 100;
        uint8_t cond[2] = {(uint8_t)(c & 1), (uint8_t)(c >> 1)};
        ot_begin(&inner_yes, 17); /* uses the main graph's input and constant, and a value of the branch around it */
        ot_node(&inner_yes, "Add", "x w", "p");
        ot_node(&inner_yes, "Add", "p h", "q");
        ot_output(&inner_yes, "q", OP_F32, -1, NULL);
        ot_begin(&inner_no, 17);
        ot_output(&inner_no, "h", OP_F32, -1, NULL); /* an outer value as it is */
        ot_begin(&yes, 17);
        ot_node(&yes, "Add", "x x", "h");
        ot_node(&yes, "If", "d", "r");
        ot_graph_attr(&yes, "then_branch", &inner_yes);
        ot_graph_attr(&yes, "else_branch", &inner_no);
        ot_output(&yes, "r", OP_F32, -1, NULL);
        ot_begin(&no, 17);
        ot_node(&no, "Neg", "x", "n");
        ot_output(&no, "n", OP_F32, -1, NULL);
        ot_begin(&m, 17);
        ot_input(&m, "x", OP_F32, 1, (int64_t[]){1});
        ot_input(&m, "c", OP_BOOL, 0, NULL);
        ot_input(&m, "d", OP_BOOL, 0, NULL);
        ot_constant(&m, "w", OP_F32, 0, NULL, &w);
        ot_node(&m, "If", "c", "y");
        ot_graph_attr(&m, "then_branch", &yes);
        ot_graph_attr(&m, "else_branch", &no);
        ot_output(&m, "y", OP_F32, -1, NULL);
        const struct op_tensor in[] = {{.dtype = OP_F32, .rank = 1, .dims = {1}, .data = data}, {.dtype = OP_BOOL, .data = &cond[0]}, {.dtype = OP_BOOL, .data = &cond[1]}};
        const struct op_tensor *y = ot_run(&m, NULL, in, 3, &err);
        assert_non_null(y);
        assert_true(*(float *)y->data == (!cond[0] ? -5.0f : cond[1] ? 115.0f : 10.0f));
        ot_end(&m);
    }
}

/* --- stopping, watching, remembering ------------------------------------------------------------ */

static volatile bool cancel;
static int n_seen;

static void count_node(void *user, const char *op_type, const char *name, uint64_t ns, double flops, double bytes) {
    (void)op_type, (void)name, (void)ns, (void)flops;
    assert_true(bytes > 0);
    if (++n_seen == *(int *)user) cancel = true;
}

static void test_run_can_be_cancelled_between_nodes(void **state) {
    (void)state;
    static float data[WIDE];
    struct ot m;
    struct op_error err;
    int stop_after = 2;
    const struct op_tensor *y;
    struct op_tensor x = rows(data, 1);
    build_mlp(&m);
    const struct op_load_options plain = {.reference = true}; /* no fusion: five nodes */
    m.model = ot_load(&m, &plain, &err);
    const struct op_session_options options = {.cancel = &cancel, .on_node = count_node, .user = &stop_after};
    m.session = op_session_create(m.model, &options, &err);
    assert_non_null(m.session);
    cancel = false;
    n_seen = 0;
    assert_int_equal(op_session_run(m.session, &x, 1, &y, &err), OP_CANCELLED);
    assert_null(y);
    assert_int_equal(n_seen, 2);
    cancel = false;
    stop_after = -1;
    assert_int_equal(op_session_run(m.session, &x, 1, &y, &err), OP_OK);
    assert_int_equal(n_seen, 7);
    ot_end(&m);
}

static void test_many_shapes_do_not_pile_up(void **state) {
    (void)state;
    enum { N = 3000 };
    static float data[N * 2];
    struct ot m;
    struct op_error err;
    size_t most = 0;
    ot_begin(&m, 17);
    ot_input(&m, "x", OP_F32, 2, (int64_t[]){-1, 2});
    for (int i = 0; i < 60; i++) {
        char in[16], out[16];
        snprintf(in, sizeof in, i ? "v%d" : "x", i);
        snprintf(out, sizeof out, i == 59 ? "y" : "v%d", i + 1);
        ot_node(&m, i % 2 ? "Neg" : "Abs", in, out);
    }
    ot_output(&m, "y", OP_F32, -1, NULL);
    for (int64_t n = 1; n <= N; n++) {
        struct op_tensor x = {.dtype = OP_F32, .rank = 2, .dims = {n, 2}, .data = data};
        const struct op_tensor *y = ot_run(&m, NULL, &x, 1, &err);
        assert_non_null(y);
        assert_int_equal(y->dims[0], n);
        if (op_session_bytes(m.session) > most) most = op_session_bytes(m.session);
    }
    assert_true(most < (size_t)20 << 20);
    ot_end(&m);
}

static void test_model_tells_about_itself(void **state) {
    (void)state;
    struct ot m;
    struct op_error err;
    struct op_model_info info;
    build_mlp(&m);
    struct op_model *model = ot_load(&m, NULL, &err);
    assert_non_null(model);
    op_model_describe(model, &info);
    assert_int_equal(strlen(info.sha256), 64);
    assert_int_equal(info.opset, 17);
    assert_int_equal(info.n_nodes, 5);
    assert_int_equal(info.weight_bytes, (WIDE * WIDE + WIDE) * 4);
    assert_int_equal(op_model_batchable(model, &err), 1);
    op_model_release(model);
    ot_end(&m);
}

static int batchable(const char *op_type, const char *attr, int64_t value, int64_t first_dim) {
    struct ot m;
    struct op_error err;
    ot_begin(&m, 17);
    ot_input(&m, "x", OP_F32, 2, (int64_t[]){first_dim, 2});
    ot_node(&m, op_type, "x", "y");
    if (attr) ot_int(&m, attr, value);
    ot_output(&m, "y", OP_F32, -1, NULL);
    struct op_model *model = ot_load(&m, NULL, &err);
    assert_non_null(model);
    int answer = op_model_batchable(model, &err);
    assert_int_equal(op_model_batchable(model, &err), answer); /* remembered */
    op_model_release(model);
    ot_end(&m);
    return answer;
}

static void test_rows_that_are_mixed_are_not_batchable(void **state) {
    (void)state;
    assert_int_equal(batchable("Softmax", "axis", 1, -1), 1);
    assert_int_equal(batchable("Softmax", "axis", 1, 1), 0); /* a fixed batch */
    assert_int_equal(batchable("ReduceMean", NULL, 0, -1), 0); /* one output for all */
    assert_int_equal(batchable("Transpose", NULL, 0, -1), 0);
    assert_int_equal(batchable("Softmax", "axis", 0, -1), 0); /* the shape says yes, the values no */
}

/* --- the pool ---------------------------------------------------------------------------------- */

struct tally {
    struct op_pool *pool;
    atomic_int done[64];
};

static void tick(void *arg, int64_t task) {
    struct tally *t = arg;
    atomic_fetch_add(&t->done[task], 1);
}

static void tick_nested(void *arg, int64_t task) {
    struct tally *t = arg;
    (void)task;
    op__pool_run(t->pool, 4, tick, t); /* stays on this thread */
}

static void test_pool_runs_every_task_once(void **state) {
    (void)state;
    static struct tally t;
    t.pool = op__pool_create(3);
    assert_non_null(t.pool);
    assert_int_equal(op__pool_n_threads(t.pool), 3);
    for (int round = 0; round < 2000; round++) {
        int64_t n = round % 65;
        memset(t.done, 0, sizeof t.done);
        op__pool_run(t.pool, n, tick, &t);
        for (int64_t i = 0; i < 64; i++) assert_int_equal(atomic_load(&t.done[i]), i < n);
    }
    memset(t.done, 0, sizeof t.done);
    op__pool_run(t.pool, 8, tick_nested, &t);
    for (int i = 0; i < 4; i++) assert_int_equal(atomic_load(&t.done[i]), 8);
    op__pool_run(NULL, 4, tick, &t);
    assert_int_equal(atomic_load(&t.done[3]), 9);
    op__pool_destroy(t.pool);
    op__pool_destroy(NULL);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_row_has_the_same_bits_in_any_batch),
        cmocka_unit_test(test_lanes_share_a_model),
        cmocka_unit_test(test_inputs_are_checked_against_the_model),
        cmocka_unit_test(test_initializers_can_be_overridden),
        cmocka_unit_test(test_output_outlives_the_input),
        cmocka_unit_test(test_loop_captures_outer_values),
        cmocka_unit_test(test_endless_loop_ends_at_the_budget),
        cmocka_unit_test(test_growing_loop_ends_at_the_memory_cap),
        cmocka_unit_test(test_nested_subgraphs_see_all_outer_values),
        cmocka_unit_test(test_run_can_be_cancelled_between_nodes),
        cmocka_unit_test(test_many_shapes_do_not_pile_up),
        cmocka_unit_test(test_model_tells_about_itself),
        cmocka_unit_test(test_rows_that_are_mixed_are_not_batchable),
        cmocka_unit_test(test_pool_runs_every_task_once),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
