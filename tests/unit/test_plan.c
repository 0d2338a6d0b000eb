/* Plans: what is evaluated while planning, what lies where in the arena, what is left to run time. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdio.h>

#include "ops/plan.h"
#include "tests/unit/op_testing.h"

static struct op_plan *plan_for(struct ot *m, const struct op_tensor *inputs, int n) {
    struct op_error err;
    const struct op_tensor *list[8];
    m->model = ot_load(m, NULL, &err);
    assert_non_null(m->model);
    for (int i = 0; i < n; i++) list[i] = &inputs[i];
    struct op_plan *p = op__plan_create(m->model, NULL, m->model->graph, list, n, false, &err);
    if (!p) fail_msg("%s", err.text);
    return p;
}

/* Whatever lives at the same time does not share memory, and all of it is inside the arena. */
static void check_layout(const struct op_plan *p) {
    for (int a = 0; a < p->n_slots; a++) {
        const struct op_spot *x = &p->spots[a];
        if (x->place != OP__PLACE_ARENA || !x->bytes) continue;
        assert_int_equal(x->offset % 64, 0);
        assert_true(x->offset + x->bytes <= p->arena_bytes);
        for (int b = 0; b < a; b++) {
            const struct op_spot *y = &p->spots[b];
            if (y->place != OP__PLACE_ARENA || !y->bytes || x->from > y->to || y->from > x->to) continue;
            assert_true(x->offset + x->bytes <= y->offset || y->offset + y->bytes <= x->offset);
        }
        for (int s = x->from; s <= x->to && s < p->n_steps; s++) {
            const struct op_step *step = &p->steps[s];
            if (s < 0 || !step->scratch_bytes) continue;
            assert_true(x->offset + x->bytes <= step->scratch_offset || step->scratch_offset + step->scratch_bytes <= x->offset);
        }
    }
}

static int n_fixed(const struct op_plan *p) {
    int n = 0;
    for (int i = 0; i < p->n_steps; i++) n += p->steps[i].fixed;
    return n;
}

/* What exporters write for x.reshape(x.shape[0], -1). */
static void test_shape_arithmetic_is_done_while_planning(void **state) {
    (void)state;
    struct ot m;
    const int64_t zero = 0, minus = -1, one = 1;
    ot_begin(&m, 17);
    ot_input(&m, "x", OP_F32, 3, (int64_t[]){-1, 2, 3});
    ot_constant(&m, "i", OP_I64, 0, NULL, &zero);
    ot_constant(&m, "z", OP_I64, 1, &one, &zero);
    ot_constant(&m, "m", OP_I64, 1, &one, &minus);
    ot_node(&m, "Shape", "x", "s");
    ot_node(&m, "Gather", "s i", "g");
    ot_node(&m, "Unsqueeze", "g z", "u");
    ot_node(&m, "Concat", "u m", "c");
    ot_int(&m, "axis", 0);
    ot_node(&m, "Reshape", "x c", "r");
    ot_node(&m, "Relu", "r", "y");
    ot_output(&m, "y", OP_F32, -1, NULL);
    const struct op_tensor x = {.dtype = OP_F32, .rank = 3, .dims = {5, 2, 3}};
    struct op_plan *p = plan_for(&m, &x, 1);
    assert_int_equal(p->n_steps, 2);
    assert_int_equal(n_fixed(p), 2);
    assert_true(p->steps[0].view);
    const struct op_tensor *y = &p->slots[p->outputs[0]].t;
    assert_int_equal(y->rank, 2);
    assert_int_equal(y->dims[0], 5);
    assert_int_equal(y->dims[1], 6);
    assert_int_equal(p->arena_bytes, 128); /* y alone: 120 bytes, rounded up */
    op__plan_destroy(p);
    ot_end(&m);
}

static void test_chain_runs_in_place(void **state) {
    (void)state;
    struct ot m;
    char in[16] = "x", out[16];
    ot_begin(&m, 17);
    ot_input(&m, "x", OP_F32, 1, (int64_t[]){1000});
    for (int i = 0; i < 20; i++) {
        snprintf(out, sizeof out, "v%d", i);
        ot_node(&m, i % 2 ? "Neg" : "Abs", in, out);
        memcpy(in, out, sizeof in);
    }
    ot_output(&m, in, OP_F32, -1, NULL);
    const struct op_tensor x = {.dtype = OP_F32, .rank = 1, .dims = {1000}};
    struct op_plan *p = plan_for(&m, &x, 1);
    assert_int_equal(p->arena_bytes, 4032); /* one buffer; the caller's memory is left alone */
    assert_int_equal(p->spots[p->inputs[0]].place, OP__PLACE_INPUT);
    op__plan_destroy(p);
    ot_end(&m);
}

/* A value that is read again later must not be overwritten. */
static void test_in_place_spares_what_is_needed(void **state) {
    (void)state;
    struct ot m;
    struct op_error err;
    float data[4] = {1, -2, 3, -4};
    ot_begin(&m, 17);
    ot_input(&m, "x", OP_F32, 1, (int64_t[]){4});
    ot_node(&m, "Neg", "x", "a");      /* -1 2 -3 4 */
    ot_node(&m, "Identity", "a", "i"); /* the same memory under another name */
    ot_node(&m, "Abs", "a", "b");      /* 1 2 3 4 */
    ot_node(&m, "Mul", "b i", "c");    /* -1 4 -9 16 */
    ot_node(&m, "Add", "c c", "y");
    ot_output(&m, "y", OP_F32, -1, NULL);
    ot_output(&m, "a", OP_F32, -1, NULL);
    const struct op_tensor x = {.dtype = OP_F32, .rank = 1, .dims = {4}, .data = data};
    const struct op_tensor *out = ot_run(&m, NULL, &x, 1, &err);
    assert_non_null(out);
    assert_memory_equal(out[0].data, ((float[]){-2, 8, -18, 32}), 16);
    assert_memory_equal(out[1].data, ((float[]){-1, 2, -3, 4}), 16);
    assert_memory_equal(data, ((float[]){1, -2, 3, -4}), 16);
    ot_end(&m);
}

/* Diamonds of several sizes: enough lives that cross to make a wrong offset show. */
static void build_tangle(struct ot *m, int n) {
    char in[40], out[16];
    ot_begin(m, 17);
    ot_input(m, "x", OP_F32, 1, (int64_t[]){-1});
    ot_node(m, "Concat", "x x", "v0");
    ot_int(m, "axis", 0);
    ot_node(m, "Neg", "v0", "v1");
    for (int i = 2; i < n; i++) {
        snprintf(out, sizeof out, "v%d", i);
        snprintf(in, sizeof in, "v%d v%d", i - 1, i % 5 == 0 ? i / 2 : i - 2);
        if (i % 7 == 3) { /* a fresh one, so that values stay comparable */
            char fresh[16];
            snprintf(fresh, sizeof fresh, "f%d", i);
            ot_node(m, "Concat", "x x", fresh);
            ot_int(m, "axis", 0);
            snprintf(in, sizeof in, "v%d %s", i - 1, fresh);
        }
        ot_node(m, i % 2 ? "Sub" : "Max", in, out);
    }
    ot_output(m, out, OP_F32, -1, NULL);
}

static void test_layout_keeps_lives_apart(void **state) {
    (void)state;
    for (int n = 10; n <= 4000; n *= 20) { /* the last is beyond what is laid out by size */
        struct ot m;
        build_tangle(&m, n);
        const struct op_tensor x = {.dtype = OP_F32, .rank = 1, .dims = {17}};
        const struct op_load_options plain = {.reference = true}; /* nothing in place, nothing merged */
        struct op_error err;
        m.model = ot_load(&m, &plain, &err);
        assert_non_null(m.model);
        const struct op_tensor *list[] = {&x};
        struct op_plan *p = op__plan_create(m.model, NULL, m.model->graph, list, 1, false, &err);
        assert_non_null(p);
        assert_true(p->n_steps >= n && p->n_steps <= n + n / 7 + 1);
        check_layout(p);
        assert_true(p->arena_bytes < (size_t)n * 192 / 2 + 1024);
        op__plan_destroy(p);
        ot_end(&m);
    }
}

/* A Slice of which only the shape is asked for, and movements that change nothing at a batch of one. */
static void test_what_is_not_needed_is_not_run(void **state) {
    (void)state;
    for (int64_t n = 1; n < 3; n++) {
        struct ot m;
        struct op_error err;
        const struct op_tensor x = {.dtype = OP_F32, .rank = 3, .dims = {n, 4, 6}};
        const struct op_tensor *list[] = {&x};
        ot_begin(&m, 17);
        ot_input(&m, "x", OP_F32, 3, (int64_t[]){-1, 4, 6});
        ot_constant(&m, "zero", OP_I64, 1, (int64_t[]){1}, (int64_t[]){0});
        ot_constant(&m, "two", OP_I64, 1, (int64_t[]){1}, (int64_t[]){2});
        ot_constant(&m, "same", OP_I64, 1, (int64_t[]){3}, (int64_t[]){1, 1, 1});
        ot_node(&m, "Slice", "x zero two two", "s");
        ot_node(&m, "Shape", "s", "shape");
        ot_node(&m, "Transpose", "x", "t");
        ot_ints(&m, "perm", 3, (int64_t[]){1, 0, 2});
        ot_node(&m, "Expand", "t same", "e");
        ot_node(&m, "Neg", "e", "y");
        ot_output(&m, "y", OP_F32, -1, NULL);
        ot_output(&m, "shape", OP_I64, -1, NULL);
        m.model = ot_load(&m, NULL, &err);
        assert_non_null(m.model);
        struct op_plan *p = op__plan_create(m.model, NULL, m.model->graph, list, 1, false, &err);
        assert_non_null(p);
        assert_int_equal(p->n_steps, 3);
        assert_int_equal(p->steps[0].view, n == 1); /* Transpose */
        assert_true(p->steps[1].view);
        assert_false(p->steps[2].view);
        op__plan_destroy(p);
        ot_end(&m);
    }
}

static void test_result_is_the_references(void **state) {
    (void)state;
    float data[17];
    for (int i = 0; i < 17; i++) data[i] = (float)(i * 7 % 11) - 5;
    const struct op_tensor x = {.dtype = OP_F32, .rank = 1, .dims = {17}, .data = data};
    for (int n = 10; n <= 330; n += 40) {
        struct ot fast, plain;
        struct op_error err;
        const struct op_load_options reference = {.reference = true};
        build_tangle(&fast, n);
        build_tangle(&plain, n);
        const struct op_tensor *a = ot_run(&fast, NULL, &x, 1, &err), *b = ot_run(&plain, &reference, &x, 1, &err);
        assert_non_null(a);
        assert_non_null(b);
        assert_int_equal(a->dims[0], 34);
        assert_memory_equal(a->data, b->data, 34 * sizeof(float));
        ot_end(&fast);
        ot_end(&plain);
    }
}

static void test_data_dependent_shapes_wait_for_the_run(void **state) {
    (void)state;
    struct ot m;
    struct op_error err;
    float data[6] = {0, 1, 0, 2, 0, 3};
    ot_begin(&m, 17);
    ot_input(&m, "x", OP_F32, 1, (int64_t[]){-1});
    ot_node(&m, "NonZero", "x", "i");
    ot_node(&m, "Transpose", "i", "t");
    ot_node(&m, "GatherND", "x t", "g");
    ot_node(&m, "Neg", "g", "y");
    ot_node(&m, "Neg", "x", "z");
    ot_output(&m, "y", OP_F32, -1, NULL);
    ot_output(&m, "z", OP_F32, -1, NULL);
    struct op_tensor x = {.dtype = OP_F32, .rank = 1, .dims = {6}, .data = data};
    for (int k = 0; k < 3; k++) { /* the same plan, other data */
        const struct op_tensor *out = ot_run(&m, NULL, &x, 1, &err);
        assert_non_null(out);
        assert_int_equal(out[0].dims[0], 3 - k);
        assert_true(out[0].dims[0] == 0 || ((float *)out[0].data)[out[0].dims[0] - 1] == -3);
        assert_true(((float *)out[1].data)[5] == -3);
        data[1 + 2 * k] = 0;
    }
    ot_end(&m);
    ot_begin(&m, 17);
    ot_input(&m, "x", OP_F32, 1, (int64_t[]){-1});
    ot_node(&m, "NonZero", "x", "i");
    ot_node(&m, "Neg", "x", "z");
    ot_output(&m, "i", OP_I64, -1, NULL);
    ot_output(&m, "z", OP_F32, -1, NULL);
    struct op_plan *p = plan_for(&m, &x, 1);
    assert_int_equal(p->n_steps, 2);
    assert_int_equal(n_fixed(p), 1); /* what does not hang on the data is static all the same */
    op__plan_destroy(p);
    ot_end(&m);
}

/* If(size(x) > 4) x + x, else -x: known as soon as the shape is. */
static void build_if(struct ot *m) {
    struct ot yes, no;
    const int64_t four = 4;
    ot_begin(&yes, 17);
    ot_node(&yes, "Add", "x x", "a");
    ot_output(&yes, "a", OP_F32, -1, NULL);
    ot_begin(&no, 17);
    ot_node(&no, "Neg", "x", "b");
    ot_output(&no, "b", OP_F32, -1, NULL);
    ot_begin(m, 17);
    ot_input(m, "x", OP_F32, 1, (int64_t[]){-1});
    ot_constant(m, "four", OP_I64, 0, NULL, &four);
    ot_node(m, "Size", "x", "n");
    ot_node(m, "Greater", "n four", "c");
    ot_node(m, "If", "c", "y");
    ot_graph_attr(m, "then_branch", &yes);
    ot_graph_attr(m, "else_branch", &no);
    ot_output(m, "y", OP_F32, -1, NULL);
}

static void test_known_condition_takes_its_branch_while_planning(void **state) {
    (void)state;
    float data[6] = {1, 2, 3, 4, 5, 6};
    for (int64_t n = 3; n <= 6; n += 3) {
        struct ot m;
        struct op_error err;
        struct op_tensor x = {.dtype = OP_F32, .rank = 1, .dims = {n}, .data = data};
        build_if(&m);
        struct op_plan *p = plan_for(&m, &x, 1);
        assert_int_equal(p->n_steps, 1);
        assert_true(p->steps[0].fixed);
        assert_string_equal(p->steps[0].node->op_type, n > 4 ? "Add" : "Neg");
        op__plan_destroy(p);
        const struct op_tensor *y = ot_run(&m, NULL, &x, 1, &err);
        assert_non_null(y);
        assert_true(((float *)y->data)[2] == (n > 4 ? 6.0f : -3.0f));
        ot_end(&m);
    }
}

static void test_plan_beyond_the_cap_is_refused(void **state) {
    (void)state;
    struct ot m;
    struct op_error err;
    const struct op_load_options small = {.memory_bytes_max = 1 << 20};
    ot_begin(&m, 17);
    ot_input(&m, "x", OP_F32, 2, (int64_t[]){-1, -1});
    ot_node(&m, "MatMul", "x x", "y");
    ot_output(&m, "y", OP_F32, -1, NULL);
    struct op_tensor x = {.dtype = OP_F32, .rank = 2, .dims = {1000, 1000}};
    m.model = ot_load(&m, &small, &err);
    m.session = op_session_create(m.model, NULL, &err);
    assert_non_null(m.session);
    assert_int_equal(op_session_plan(m.session, &x, 1, NULL, NULL, &err), OP_LIMIT);
    x.dims[0] = x.dims[1] = 100;
    size_t peak;
    double flops;
    assert_int_equal(op_session_plan(m.session, &x, 1, &peak, &flops, &err), OP_OK);
    assert_true(peak >= 40000 && peak < 1 << 20);
    assert_true(flops == 2e6);
    ot_end(&m);
}

static void test_shapes_that_do_not_fit_are_named(void **state) {
    (void)state;
    struct ot m;
    struct op_error err;
    const float w[6] = {0};
    ot_begin(&m, 17);
    ot_input(&m, "x", OP_F32, 2, (int64_t[]){-1, -1});
    ot_constant(&m, "w", OP_F32, 2, (int64_t[]){2, 3}, w);
    ot_node(&m, "MatMul", "x w", "y");
    ot_output(&m, "y", OP_F32, -1, NULL);
    const struct op_tensor x = {.dtype = OP_F32, .rank = 2, .dims = {4, 5}};
    m.model = ot_load(&m, NULL, &err);
    m.session = op_session_create(m.model, NULL, &err);
    assert_non_null(m.session);
    assert_int_equal(op_session_plan(m.session, &x, 1, NULL, NULL, &err), OP_BAD_SHAPE);
    assert_non_null(strstr(err.text, "MatMul"));
    ot_end(&m);
}

/* Slots are moved as they grow; what operators say of their scratch memory and work then is read from where they are. */
static void test_a_long_chain_is_planned(void **state) {
    (void)state;
    struct ot m;
    struct op_error err;
    char from[16] = "x", to[16], both[40];
    const float w[9] = {0, 1, 0, 0, 0, 1, 1, 0, 0}; /* turns a row by one */
    ot_begin(&m, 17);
    ot_input(&m, "x", OP_F32, 2, (int64_t[]){-1, 3});
    ot_constant(&m, "w", OP_F32, 2, (int64_t[]){3, 3}, w);
    for (int i = 0; i < 300; i++) {
        snprintf(to, sizeof to, "v%d", i);
        snprintf(both, sizeof both, "%s w", from);
        ot_node(&m, "MatMul", both, to);
        memcpy(from, to, sizeof to);
    }
    ot_output(&m, from, OP_F32, -1, NULL);
    float data[6] = {1, 2, 3, 4, 5, 6};
    const struct op_tensor x = {.dtype = OP_F32, .rank = 2, .dims = {2, 3}, .data = data};
    const struct op_tensor *y = ot_run(&m, NULL, &x, 1, &err);
    assert_non_null(y);
    assert_memory_equal(y->data, data, sizeof data);
    double flops;
    assert_int_equal(op_session_plan(m.session, &x, 1, NULL, &flops, &err), OP_OK);
    assert_true(flops == 300.0 * 2 * 2 * 3 * 3);
    ot_end(&m);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_shape_arithmetic_is_done_while_planning),
        cmocka_unit_test(test_chain_runs_in_place),
        cmocka_unit_test(test_in_place_spares_what_is_needed),
        cmocka_unit_test(test_layout_keeps_lives_apart),
        cmocka_unit_test(test_what_is_not_needed_is_not_run),
        cmocka_unit_test(test_result_is_the_references),
        cmocka_unit_test(test_data_dependent_shapes_wait_for_the_run),
        cmocka_unit_test(test_known_condition_takes_its_branch_while_planning),
        cmocka_unit_test(test_plan_beyond_the_cap_is_refused),
        cmocka_unit_test(test_shapes_that_do_not_fit_are_named),
        cmocka_unit_test(test_a_long_chain_is_planned),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
