/* Training by the library: a small net learns, the same seed gives the same bits, a saved run goes on as if it had not stopped, what
 * cannot be trained is refused by name. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "ops/ops_train.h"

#define N 64
#define HIDDEN 16

static uint64_t random_state;
static float next_float(void) {
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (float)(random_state >> 40) / (float)(1 << 24) * 2 - 1;
}

static void weight(struct op_builder *b, const char *name, int64_t rows, int64_t cols, uint64_t seed) {
    float *data = malloc((size_t)(rows * cols) * sizeof *data);
    struct op_tensor t = {.dtype = OP_F32, .rank = cols > 1 ? 2 : 1, .dims = {rows, cols}, .data = data};
    assert_true(op_initialize(&t, cols > 1 ? "glorot_uniform" : "zeros", rows, cols, NAN, seed));
    op_builder_weight(b, name, &t);
    free(data);
}

/* Two inputs, a hidden layer, dropout where asked, two classes. */
static struct op_model *net(float dropout) {
    struct op_error err;
    float ratio = dropout;
    struct op_builder *b = op_builder_create(17);
    op_builder_input(b, "x", OP_F32, 2, (int64_t[]){-1, 2}, (const char *[]){"N", NULL});
    weight(b, "w1", 2, HIDDEN, 1);
    weight(b, "b1", HIDDEN, 1, 2);
    weight(b, "w2", HIDDEN, 2, 3);
    weight(b, "b2", 2, 1, 4);
    op_builder_node(b, "Gemm", (const char *[]){"x", "w1", "b1"}, 3, (const char *[]){"h"}, 1, NULL, 0);
    op_builder_node(b, "Tanh", (const char *[]){"h"}, 1, (const char *[]){"a"}, 1, NULL, 0);
    if (dropout > 0) {
        op_builder_weight(b, "ratio", &(struct op_tensor){.dtype = OP_F32, .rank = 0, .data = &ratio});
        op_builder_node(b, "Dropout", (const char *[]){"a", "ratio"}, 2, (const char *[]){"d"}, 1, NULL, 0);
    }
    op_builder_node(b, "Gemm", (const char *[]){dropout > 0 ? "d" : "a", "w2", "b2"}, 3, (const char *[]){"z"}, 1, NULL, 0);
    op_builder_node(b, "Softmax", (const char *[]){"z"}, 1, (const char *[]){"y"}, 1, &(struct op_arg){.name = "axis", .kind = OP_ARG_INT, .i = -1}, 1);
    op_builder_output(b, "y");
    struct op_model *m = op_builder_finish(b, &err);
    if (!m) print_error("%s\n", err.text);
    assert_non_null(m);
    return m;
}

static struct op_trainer *trainer(struct op_model *m, const char *optimizer, float rate, int n_threads, struct op_error *err) {
    static const struct op_loss loss = {.name = "sparse_categorical_crossentropy", .ignore_index = -1};
    struct op_trainer_options o = {.losses = &loss, .n_losses = 1, .seed = 7, .n_threads = n_threads};
    op_optimizer_defaults(&o.optimizer, optimizer);
    o.optimizer.learning_rate = rate;
    return op_trainer_create(m, &o, err);
}

/* The sign of x·y, which no line separates. */
static void batch(float *x, int64_t *y) {
    for (int i = 0; i < N; i++) {
        x[2 * i] = next_float();
        x[2 * i + 1] = next_float();
        y[i] = x[2 * i] * x[2 * i + 1] > 0;
    }
}

static double steps(struct op_trainer *t, int n) {
    float x[2 * N];
    int64_t y[N];
    struct op_error err;
    struct op_step_result r = {0};
    for (int i = 0; i < n; i++) {
        batch(x, y);
        struct op_tensor in = {.dtype = OP_F32, .rank = 2, .dims = {N, 2}, .data = x}, target = {.dtype = OP_I64, .rank = 1, .dims = {N}, .data = y};
        enum op_status st = op_trainer_step(t, &in, 1, &target, 1, NULL, NAN, &r, &err);
        if (st != OP_OK) print_error("%s\n", err.text);
        assert_int_equal(st, OP_OK);
    }
    return r.loss;
}

static void test_every_optimizer_learns(void **state) {
    (void)state;
    static const struct {
        const char *name;
        float rate;
    } all[] = {{"sgd", 0.5f}, {"rmsprop", 0.01f}, {"adagrad", 0.3f}, {"adam", 0.01f}, {"adamw", 0.01f}, {"nadam", 0.01f}, {"lion", 0.003f}, {"lamb", 0.02f}, {"adafactor", 0.1f}};
    struct op_error err;
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        struct op_model *m = net(0);
        struct op_trainer *t = trainer(m, all[i].name, all[i].rate, 1, &err);
        if (!t) print_error("%s\n", err.text);
        assert_non_null(t);
        random_state = 1;
        double first = steps(t, 1), last = steps(t, 1500);
        if (!(last < 0.35 && last < first)) print_error("%s: %g to %g\n", all[i].name, first, last);
        assert_true(last < 0.35 && last < first);
        op_trainer_destroy(t);
        op_model_release(m);
    }
}

static void weights_equal(struct op_trainer *a, struct op_trainer *b) {
    for (int i = 0; i < op_trainer_n_weights(a); i++) {
        const struct op_tensor *x, *y;
        op_trainer_weight(a, i, NULL, &x);
        op_trainer_weight(b, i, NULL, &y);
        assert_memory_equal(x->data, y->data, (size_t)op_tensor_bytes(x));
    }
}

static void test_same_seed_same_bits_also_after_a_stop(void **state) {
    (void)state;
    struct op_error err;
    struct op_model *m = net(0.25f);
    struct op_trainer *a = trainer(m, "adam", 0.01f, 1, &err), *b = trainer(m, "adam", 0.01f, 2, &err), *c = trainer(m, "adam", 0.01f, 1, &err);
    size_t n, n_extra;
    void *extra;
    assert_non_null(a);
    assert_non_null(b);
    random_state = 5;
    steps(a, 60);
    random_state = 5;
    steps(b, 25);
    void *saved = op_trainer_save(b, "cursor", 6, &n, &err);
    assert_non_null(saved);
    assert_int_equal(op_trainer_load(c, saved, n, &extra, &n_extra, &err), OP_OK);
    assert_int_equal(n_extra, 6);
    assert_memory_equal(extra, "cursor", 6);
    assert_int_equal(op_trainer_steps(c), 25);
    steps(c, 35);
    weights_equal(a, c);
    ((char *)saved)[n / 2] ^= 1;
    assert_int_equal(op_trainer_load(c, saved, n, NULL, NULL, &err), OP_BAD_VALUE);
    assert_non_null(strstr(err.text, "damaged"));
    assert_int_equal(op_trainer_load(c, saved, 20, NULL, NULL, &err), OP_BAD_VALUE);
    weights_equal(a, c);
    free(saved);
    free(extra);
    op_trainer_destroy(a);
    op_trainer_destroy(b);
    op_trainer_destroy(c);
    op_model_release(m);
}

static void test_the_trained_model_answers_as_the_trainer(void **state) {
    (void)state;
    struct op_error err;
    struct op_model *m = net(0.25f);
    struct op_trainer *t = trainer(m, "adam", 0.02f, 1, &err);
    random_state = 9;
    steps(t, 600);
    float x[2 * N];
    int64_t y[N];
    batch(x, y);
    struct op_tensor in = {.dtype = OP_F32, .rank = 2, .dims = {N, 2}, .data = x}, target = {.dtype = OP_I64, .rank = 1, .dims = {N}, .data = y};
    struct op_step_result r;
    assert_int_equal(op_trainer_evaluate(t, &in, 1, &target, 1, NULL, &r, &err), OP_OK);
    struct op_model *trained = op_trainer_model(t, &err);
    assert_non_null(trained);
    struct op_session *s = op_session_create(trained, NULL, &err);
    const struct op_tensor *out;
    assert_int_equal(op_session_run(s, &in, 1, &out, &err), OP_OK);
    int right = 0;
    double loss = 0;
    for (int i = 0; i < N; i++) {
        const float *p = (const float *)out[0].data + 2 * i;
        assert_float_equal(p[0], ((const float *)r.outputs[0].data)[2 * i], 1e-6);
        right += (p[1] > p[0]) == y[i];
        loss -= log((double)p[y[i]]) / N;
    }
    assert_float_equal(loss, r.loss, 1e-5);
    assert_true(right > N * 85 / 100);
    op_session_destroy(s);
    op_model_release(trained);
    op_trainer_destroy(t);
    op_model_release(m);
}

static void test_what_cannot_be_trained_is_refused(void **state) {
    (void)state;
    struct op_error err;
    struct op_model *m = net(0);
    struct op_step_result r;
    assert_null(trainer(m, "adamm", 0.01f, 1, &err));
    assert_non_null(strstr(err.text, "adamm"));
    assert_null(trainer(m, "adam", INFINITY, 1, &err));
    assert_null(trainer(m, "adam", 0, 1, &err));
    struct op_trainer *t = trainer(m, "sgd", 0.1f, 1, &err);
    float x[4] = {0, 1, NAN, 1};
    int64_t y[2] = {0, 2};
    struct op_tensor in = {.dtype = OP_F32, .rank = 2, .dims = {2, 2}, .data = x}, target = {.dtype = OP_I64, .rank = 1, .dims = {2}, .data = y};
    assert_int_equal(op_trainer_step(t, &in, 1, &target, 1, NULL, NAN, &r, &err), OP_BAD_VALUE);
    assert_non_null(strstr(err.text, "class 2"));
    y[1] = 1;
    assert_int_equal(op_trainer_step(t, &in, 1, &target, 1, NULL, NAN, &r, &err), OP_BAD_VALUE);
    assert_non_null(strstr(err.text, "not finite"));
    assert_int_equal(op_trainer_steps(t), 0);
    op_trainer_destroy(t);
    op_model_release(m);
}

/* --- rows of an embedding ----------------------------------------------------------------------- */

enum { WORDS = 50, WIDTH = 3, LOOKED_UP = 4 };

/* The sum of looked-up rows, through a weight, against a number. */
static struct op_model *lookup(void) {
    struct op_error err;
    struct op_builder *b = op_builder_create(17);
    int64_t axes = 1;
    op_builder_input(b, "ids", OP_I64, 2, (int64_t[]){-1, LOOKED_UP}, (const char *[]){"N", NULL});
    weight(b, "table", WORDS, WIDTH, 5);
    weight(b, "out", WIDTH, 2, 6);
    op_builder_weight(b, "axes", &(struct op_tensor){.dtype = OP_I64, .rank = 1, .dims = {1}, .data = &axes});
    op_builder_node(b, "Gather", (const char *[]){"table", "ids"}, 2, (const char *[]){"v"}, 1, NULL, 0);
    op_builder_node(b, "ReduceSum", (const char *[]){"v", "axes"}, 2, (const char *[]){"s"}, 1, &(struct op_arg){.name = "keepdims", .kind = OP_ARG_INT, .i = 0}, 1);
    op_builder_node(b, "MatMul", (const char *[]){"s", "out"}, 2, (const char *[]){"y"}, 1, NULL, 0);
    op_builder_output(b, "y");
    struct op_model *m = op_builder_finish(b, &err);
    if (!m) print_error("%s\n", err.text);
    assert_non_null(m);
    return m;
}

/* Trains on ids below 30 (with repeats); the table afterwards is copied out. */
static void train_rows(const char *optimizer, bool dense, float l2, float clip, int n_threads, float *table) {
    static const struct op_loss loss = {.name = "mse"};
    const struct op_regularizer penalty = {"tab*", 0, l2};
    struct op_trainer_options o = {.losses = &loss, .n_losses = 1, .n_threads = n_threads, .regularizers = &penalty, .n_regularizers = l2 > 0};
    struct op_error err;
    struct op_step_result r;
    struct op_model *m = lookup();
    op_optimizer_defaults(&o.optimizer, optimizer);
    o.optimizer.learning_rate = 0.05f;
    o.optimizer.dense = dense;
    o.optimizer.global_clip_norm = clip;
    struct op_trainer *t = op_trainer_create(m, &o, &err);
    if (!t) fail_msg("%s", err.text);
    random_state = 77;
    for (int step = 0; step < 20; step++) {
        int64_t ids[8 * LOOKED_UP];
        float target[16];
        for (int i = 0; i < 8 * LOOKED_UP; i++) ids[i] = (int64_t)((double)(next_float() + 1) * 14.9) - (i % 7 == 0 ? WORDS : 0);
        for (int i = 0; i < 16; i++) target[i] = next_float();
        struct op_tensor in = {.dtype = OP_I64, .rank = 2, .dims = {8, LOOKED_UP}, .data = ids}, want = {.dtype = OP_F32, .rank = 2, .dims = {8, 2}, .data = target};
        enum op_status st = op_trainer_step(t, &in, 1, &want, 1, NULL, NAN, &r, &err);
        if (st != OP_OK) fail_msg("%s", err.text);
    }
    for (int i = 0; i < op_trainer_n_weights(t); i++) {
        const struct op_tensor *v;
        if (strcmp(op_trainer_weight(t, i, NULL, &v), "table") == 0) memcpy(table, v->data, WORDS * WIDTH * sizeof *table);
    }
    op_trainer_destroy(t);
    op_model_release(m);
}

static void test_rows_are_updated_as_the_whole_would_be(void **state) {
    static const struct {
        const char *optimizer;
        float clip;
    } same[] = {{"sgd", 0}, {"adagrad", 0}, {"sgd", 0.3f}, {"adagrad", 0.3f}};
    float whole[WORDS * WIDTH], rows[WORDS * WIDTH], again[WORDS * WIDTH];
    (void)state;
    for (size_t i = 0; i < sizeof same / sizeof *same; i++) {
        train_rows(same[i].optimizer, true, 0, same[i].clip, 1, whole);
        train_rows(same[i].optimizer, false, 0, same[i].clip, 1, rows);
        train_rows(same[i].optimizer, false, 0, same[i].clip, 3, again);
        for (int k = 0; k < WORDS * WIDTH; k++) assert_float_equal(whole[k], rows[k], 1e-6); /* norms are summed in another order */
        assert_memory_equal(rows, again, sizeof rows);
    }
}

static void test_rows_that_nobody_looks_up_stay_as_they_are(void **state) {
    static const char *const lazy[] = {"adam", "adamw", "rmsprop", "nadam", "lion", "sgd", "lamb"};
    float before[WORDS * WIDTH], after[WORDS * WIDTH];
    struct op_tensor t = {.dtype = OP_F32, .rank = 2, .dims = {WORDS, WIDTH}, .data = before};
    (void)state;
    assert_true(op_initialize(&t, "glorot_uniform", WORDS, WIDTH, NAN, 5));
    for (size_t i = 0; i < sizeof lazy / sizeof *lazy; i++) {
        bool whole = strcmp(lazy[i], "lamb") == 0;
        train_rows(lazy[i], false, 0.01f, 0, 2, after);
        bool moved = memcmp(before, after, 30 * WIDTH * sizeof *before) != 0, rest = memcmp(before + 30 * WIDTH, after + 30 * WIDTH, 20 * WIDTH * sizeof *before) != 0;
        assert_true(moved);
        if (rest != whole) fail_msg("%s: the rows that were not looked up are %s", lazy[i], rest ? "changed" : "as they were");
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_optimizer_learns),
        cmocka_unit_test(test_same_seed_same_bits_also_after_a_stop),
        cmocka_unit_test(test_the_trained_model_answers_as_the_trainer),
        cmocka_unit_test(test_what_cannot_be_trained_is_refused),
        cmocka_unit_test(test_rows_are_updated_as_the_whole_would_be),
        cmocka_unit_test(test_rows_that_nobody_looks_up_stay_as_they_are),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
