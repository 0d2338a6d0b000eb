/* Control flow, sequences, optionals and strings: loops that end, loops that must not run for ever,
 * values that pass through a body untouched, scan axes and directions, positions in sequences,
 * patterns. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdio.h>

#include "ops/op/regex.h"
#include "tests/unit/op_testing.h"

static struct op_tensor tensor(enum op_type dtype, int rank, const int64_t *dims, void *data) {
    struct op_tensor t = {.dtype = dtype, .rank = rank, .data = data};
    if (rank) memcpy(t.dims, dims, (size_t)rank * sizeof *dims);
    return t;
}
static void same_dims(const struct op_tensor *t, int rank, const int64_t *dims) {
    assert_int_equal(t->rank, rank);
    for (int i = 0; i < rank; i++) assert_int_equal(t->dims[i], dims[i]);
}
static const struct op_tensor *run(struct ot *m, const struct op_tensor *in, int n) {
    struct op_error err;
    const struct op_tensor *y = ot_run(m, NULL, in, n, &err);
    if (!y) fail_msg("%s", err.text);
    return y;
}
static void refused(struct ot *m, const struct op_tensor *in, int n, enum op_status code,
                    const char *word) {
    struct op_error err;
    assert_null(ot_run(m, NULL, in, n, &err));
    assert_int_equal(err.code, code);
    if (!strstr(err.text, word)) fail_msg("\"%s\" is not in \"%s\"", word, err.text);
    ot_end(m);
}

/* The formal inputs of a Loop's body. */
static void loop_body(struct ot *b, int opset) {
    ot_begin(b, opset);
    ot_input(b, "i", OP_I64, 0, NULL);
    ot_input(b, "c", OP_BOOL, 0, NULL);
}

/* --- Loop ----------------------------------------------------------------------------------------
 */

/* v = v + i while v < limit; scan: v * 2, and i itself. */
static void sums_model(struct ot *m, float limit) {
    struct ot b;
    ot_begin(m, 16);
    ot_input(m, "m", OP_I64, 0, NULL);
    ot_input(m, "v0", OP_F32, 1, (int64_t[]){2});
    ot_constant(m, "limit", OP_F32, 0, NULL, &limit);
    ot_node(m, "Loop", "m . v0", "v s t");
    loop_body(&b, 16);
    ot_input(&b, "v", OP_F32, 1, (int64_t[]){2});
    ot_node(&b, "Cast", "i", "f");
    ot_int(&b, "to", OP_F32);
    ot_node(&b, "Add", "v f", "w");
    ot_node(&b, "ReduceMax", "w", "x");
    ot_int(&b, "keepdims", 0);
    ot_node(&b, "Less", "x limit", "go");
    ot_node(&b, "Add", "w w", "d");
    ot_node(&b, "Identity", "i", "j");
    ot_output(&b, "go", OP_BOOL, 0, NULL);
    ot_output(&b, "w", OP_F32, 1, (int64_t[]){2});
    ot_output(&b, "d", OP_F32, 1, (int64_t[]){2});
    ot_output(&b, "j", OP_I64, 0, NULL);
    ot_graph_attr(m, "body", &b);
    ot_output(m, "v", OP_F32, -1, NULL);
    ot_output(m, "s", OP_F32, -1, NULL);
    ot_output(m, "t", OP_I64, -1, NULL);
}

static void test_loop_stacks_what_each_iteration_gives(void **state) {
    (void)state;
    struct ot m;
    float v0[2] = {1, 2};
    sums_model(&m, 1e9f);
    for (int64_t n = 0; n < 12;
         n++) { /* the same session: no iteration, one, several chunks of the stack */
        struct op_tensor in[2] = {tensor(OP_I64, 0, NULL, &n),
                                  tensor(OP_F32, 1, (int64_t[]){2}, v0)};
        const struct op_tensor *y = run(&m, in, 2);
        same_dims(&y[0], 1, (int64_t[]){2});
        same_dims(&y[1], 2, (int64_t[]){n, 2});
        same_dims(&y[2], 1, (int64_t[]){n});
        float sum = 0;
        for (int64_t i = 0; i < n; i++) {
            sum += (float)i;
            assert_true(((const float *)y[1].data)[2 * i] == 2 * (1 + sum));
            assert_true(((const float *)y[1].data)[2 * i + 1] == 2 * (2 + sum));
            assert_int_equal(((const int64_t *)y[2].data)[i], i);
        }
        assert_true(((const float *)y[0].data)[1] == 2 + sum);
    }
    ot_end(&m);
}

static void test_loop_ends_by_its_condition_whatever_the_trip_count(void **state) {
    (void)state;
    struct ot m;
    float v0[2] = {1, 2};
    int64_t n = INT64_MAX;
    struct op_tensor in[2] = {tensor(OP_I64, 0, NULL, &n), tensor(OP_F32, 1, (int64_t[]){2}, v0)};
    sums_model(&m, 10);
    const struct op_tensor *y = run(&m, in, 2); /* 2, 3, 5, 8, 12 */
    same_dims(&y[1], 2, (int64_t[]){5, 2});
    assert_true(((const float *)y[0].data)[1] == 12);
    n = -3;
    y = run(&m, in, 2);
    same_dims(&y[1], 2, (int64_t[]){0, 2});
    assert_true(((const float *)y[0].data)[1] == 2);
    ot_end(&m);
}

/* The body has no node at all: what is counted is its runs. */
static void test_endless_loop_is_stopped(void **state) {
    (void)state;
    struct ot m, b;
    uint8_t yes = 1;
    float v = 1;
    ot_begin(&m, 16);
    ot_input(&m, "v0", OP_F32, 0, NULL);
    ot_node(&m, "Loop", ". . v0", "v");
    loop_body(&b, 16);
    ot_input(&b, "v", OP_F32, 0, NULL);
    ot_constant(&b, "yes", OP_BOOL, 0, NULL, &yes);
    ot_output(&b, "yes", OP_BOOL, 0, NULL);
    ot_output(&b, "v", OP_F32, 0, NULL);
    ot_graph_attr(&m, "body", &b);
    ot_output(&m, "v", OP_F32, 0, NULL);
    struct op_tensor in = tensor(OP_F32, 0, NULL, &v);
    refused(&m, &in, 1, OP_LIMIT, "without coming to an end");
}

/* The inner loop runs zero times in every second iteration: then its result is the outer loop's own
 * value. */
static void test_nested_loops_hand_values_through(void **state) {
    (void)state;
    struct ot m, b, c;
    uint8_t yes = 1;
    int64_t n = 6, two = 2;
    float v0[3] = {1, 2, 3}, one = 1;
    ot_begin(&m, 16);
    ot_input(&m, "n", OP_I64, 0, NULL);
    ot_input(&m, "v0", OP_F32, 1, (int64_t[]){3});
    ot_constant(&m, "two", OP_I64, 0, NULL, &two);
    ot_constant(&m, "one", OP_F32, 0, NULL, &one);
    ot_node(&m, "Loop", "n . v0", "v s");
    loop_body(&b, 16);
    ot_input(&b, "v", OP_F32, 1, (int64_t[]){3});
    ot_constant(&b, "yes", OP_BOOL, 0, NULL, &yes);
    ot_node(&b, "Mod", "i two", "trips");
    ot_node(&b, "Loop", "trips . v", "w");
    loop_body(&c, 16);
    ot_input(&c, "u", OP_F32, 1, (int64_t[]){3});
    ot_node(&c, "Add", "u one", "t");
    ot_node(&c, "Identity", "c", "k");
    ot_output(&c, "k", OP_BOOL, 0, NULL);
    ot_output(&c, "t", OP_F32, 1, (int64_t[]){3});
    ot_graph_attr(&b, "body", &c);
    ot_node(&b, "Add", "v w", "z");
    ot_output(&b, "yes", OP_BOOL, 0, NULL);
    ot_output(&b, "w", OP_F32, 1, (int64_t[]){3});
    ot_output(&b, "z", OP_F32, 1, (int64_t[]){3});
    ot_graph_attr(&m, "body", &b);
    ot_output(&m, "v", OP_F32, -1, NULL);
    ot_output(&m, "s", OP_F32, -1, NULL);
    struct op_tensor in[2] = {tensor(OP_I64, 0, NULL, &n), tensor(OP_F32, 1, (int64_t[]){3}, v0)};
    for (int round = 0; round < 2; round++) {
        const struct op_tensor *y = run(&m, in, 2);
        for (int k = 0; k < 3; k++) {
            float v = v0[k];
            for (int i = 0; i < n; i++) {
                float w = v + (float)(i % 2);
                assert_true(((const float *)y[1].data)[i * 3 + k] == v + w);
                v = w;
            }
            assert_true(((const float *)y[0].data)[k] == v);
        }
    }
    ot_end(&m);
}

static void test_if_takes_outer_values_and_either_shape(void **state) {
    (void)state;
    struct ot m, yes, no;
    float x[3] = {1, 2, 3};
    ot_begin(&m, 16);
    ot_input(&m, "c", OP_BOOL, 0, NULL);
    ot_input(&m, "x", OP_F32, 1, (int64_t[]){3});
    ot_node(&m, "If", "c", "y");
    ot_begin(&yes, 16);
    ot_node(&yes, "Concat", "x x", "t");
    ot_int(&yes, "axis", 0);
    ot_output(&yes, "t", OP_F32, -1, NULL);
    ot_graph_attr(&m, "then_branch", &yes);
    ot_begin(&no, 16);
    ot_node(&no, "Identity", "x", "e");
    ot_output(&no, "e", OP_F32, -1, NULL);
    ot_graph_attr(&m, "else_branch", &no);
    ot_node(&m, "Neg", "y", "z");
    ot_output(&m, "z", OP_F32, -1, NULL);
    for (uint8_t c = 0; c < 2; c++) {
        struct op_tensor in[2] = {tensor(OP_BOOL, 0, NULL, &c),
                                  tensor(OP_F32, 1, (int64_t[]){3}, x)};
        const struct op_tensor *y = run(&m, in, 2);
        same_dims(y, 1, (int64_t[]){c ? 6 : 3});
        for (int i = 0; i < (c ? 6 : 3); i++) assert_true(((const float *)y->data)[i] == -x[i % 3]);
    }
    ot_end(&m);
}

/* --- Scan ----------------------------------------------------------------------------------------
 */

/* state = state + x_t; output state. */
static void sum_body(struct ot *b, int opset) {
    ot_begin(b, opset);
    ot_input(b, "a", OP_F32, 1, (int64_t[]){2});
    ot_input(b, "x", OP_F32, 1, (int64_t[]){2});
    ot_node(b, "Add", "a x", "s");
    ot_node(b, "Identity", "s", "o");
    ot_output(b, "s", OP_F32, 1, (int64_t[]){2});
    ot_output(b, "o", OP_F32, 1, (int64_t[]){2});
}

static void test_scan_goes_along_any_axis_in_any_direction(void **state) {
    (void)state;
    float x[6] = {1, 2, 4, 8, 16, 32}, a[2] = {0, 0};
    for (int round = 0; round < 32; round++) {
        struct ot m, b;
        int axis = round & 1, back = round >> 1 & 1, out_axis = round >> 2 & 1,
            out_back = round >> 3 & 1, n = round & 16 ? 0 : 3;
        ot_begin(&m, 16);
        ot_input(&m, "a", OP_F32, 1, (int64_t[]){2});
        ot_input(&m, "x", OP_F32, 2, (int64_t[]){-1, -1});
        ot_node(&m, "Scan", "a x", "s o");
        ot_int(&m, "num_scan_inputs", 1);
        ot_ints(&m, "scan_input_axes", 1, (int64_t[]){axis - 2});
        ot_ints(&m, "scan_input_directions", 1, (int64_t[]){back});
        ot_ints(&m, "scan_output_axes", 1, (int64_t[]){out_axis});
        ot_ints(&m, "scan_output_directions", 1, (int64_t[]){out_back});
        sum_body(&b, 16);
        ot_graph_attr(&m, "body", &b);
        ot_output(&m, "s", OP_F32, -1, NULL);
        ot_output(&m, "o", OP_F32, -1, NULL);
        struct op_tensor in[2] = {
            tensor(OP_F32, 1, (int64_t[]){2}, a),
            tensor(OP_F32, 2, axis ? (int64_t[]){2, n} : (int64_t[]){n, 2}, x)};
        const struct op_tensor *y = run(&m, in, 2);
        same_dims(&y[1], 2, out_axis ? (int64_t[]){2, n} : (int64_t[]){n, 2});
        float sum[2] = {0, 0};
        for (int t = 0; t < n; t++)
            for (int k = 0; k < 2; k++) {
                int from = back ? n - 1 - t : t, to = out_back ? n - 1 - t : t;
                sum[k] += axis ? x[k * 3 + from] : x[from * 2 + k];
                assert_true(((const float *)y[1].data)[out_axis ? k * 3 + to : to * 2 + k] ==
                            sum[k]);
            }
        assert_memory_equal(y[0].data, sum, sizeof sum);
        ot_end(&m);
    }
}

static void test_scan_of_opset_8_has_a_batch(void **state) {
    (void)state;
    struct ot m, b;
    float x[12], a[4] = {0, 0, 100, 100};
    int64_t lens[2] = {3, 1};
    for (int i = 0; i < 12; i++) x[i] = (float)(1 << i);
    ot_begin(&m, 8);
    ot_input(&m, "l", OP_I64, 1, (int64_t[]){2});
    ot_input(&m, "a", OP_F32, 2, (int64_t[]){2, 2});
    ot_input(&m, "x", OP_F32, 3, (int64_t[]){2, 3, 2});
    ot_node(&m, "Scan", "l a x", "s o");
    ot_int(&m, "num_scan_inputs", 1);
    sum_body(&b, 8);
    ot_graph_attr(&m, "body", &b);
    ot_output(&m, "s", OP_F32, -1, NULL);
    ot_output(&m, "o", OP_F32, -1, NULL);
    struct op_tensor in[3] = {tensor(OP_I64, 1, (int64_t[]){2}, lens),
                              tensor(OP_F32, 2, (int64_t[]){2, 2}, a),
                              tensor(OP_F32, 3, (int64_t[]){2, 3, 2}, x)};
    const struct op_tensor *y = run(&m, in, 3);
    const float last[4] = {1 + 4 + 16, 2 + 8 + 32, 100 + 64, 100 + 128};
    const float all[12] = {1, 2, 5, 10, 21, 42, 164, 228, 0, 0, 0, 0};
    same_dims(&y[0], 2, (int64_t[]){2, 2});
    same_dims(&y[1], 3, (int64_t[]){2, 3, 2});
    assert_memory_equal(y[0].data, last, sizeof last);
    assert_memory_equal(y[1].data, all, sizeof all);
    ot_end(&m);
}

/* --- sequences -----------------------------------------------------------------------------------
 */

static void sequence_model(struct ot *m, const char *op, int64_t position) {
    ot_begin(m, 16);
    for (int i = 0; i < 4; i++)
        ot_input(m, (const char *[]){"p", "q", "r", "t"}[i], OP_F32, 0, NULL);
    ot_constant(m, "at", OP_I64, 0, NULL, &position);
    ot_node(m, "SequenceConstruct", "p q r", "s");
    if (op[8] == 'I')
        ot_node(m, op, "s t at", "u");
    else
        ot_node(m, op, "s at", "u");
    ot_node(m, "ConcatFromSequence", "u", "y");
    ot_int(m, "axis", 0);
    ot_int(m, "new_axis", 1);
    ot_node(m, "SequenceLength", "u", "n");
    ot_output(m, "y", OP_F32, -1, NULL);
    ot_output(m, "n", OP_I64, 0, NULL);
}

static void test_sequences_insert_and_erase_by_position(void **state) {
    (void)state;
    float v[4] = {10, 11, 12, 99};
    struct op_tensor in[4];
    struct ot m;
    for (int i = 0; i < 4; i++) in[i] = tensor(OP_F32, 0, NULL, &v[i]);
    for (int64_t at = -5; at <= 5; at++) {
        sequence_model(&m, "SequenceInsert", at);
        if (at < -3 || at > 3) {
            refused(&m, in, 4, OP_BAD_VALUE, "out of range for a sequence of 3");
            continue;
        }
        const struct op_tensor *y = run(&m, in, 4);
        int64_t place = at < 0 ? at + 3 : at;
        assert_int_equal(*(const int64_t *)y[1].data, 4);
        for (int64_t i = 0; i < 4; i++)
            assert_true(((const float *)y[0].data)[i] == (i == place ? 99 : v[i - (i > place)]));
        ot_end(&m);
    }
    for (int64_t at = -4; at <= 3; at++) {
        sequence_model(&m, "SequenceErase", at);
        if (at < -3 || at > 2) {
            refused(&m, in, 4, OP_BAD_VALUE, "out of range for a sequence of 3");
            continue;
        }
        const struct op_tensor *y = run(&m, in, 4);
        int64_t place = at < 0 ? at + 3 : at;
        assert_int_equal(*(const int64_t *)y[1].data, 2);
        for (int64_t i = 0; i < 2; i++)
            assert_true(((const float *)y[0].data)[i] == v[i + (i >= place)]);
        ot_end(&m);
    }
}

static void test_split_to_sequence_and_back(void **state) {
    (void)state;
    for (int form = 0; form < 3; form++) {
        struct ot m;
        float x[10];
        int64_t two = 2, sizes[3] = {1, 0, 4};
        for (int i = 0; i < 10; i++) x[i] = (float)i;
        ot_begin(&m, 16);
        ot_input(&m, "x", OP_F32, 2, (int64_t[]){2, 5});
        if (form == 1) ot_constant(&m, "k", OP_I64, 0, NULL, &two);
        if (form == 2) ot_constant(&m, "k", OP_I64, 1, (int64_t[]){3}, sizes);
        ot_node(&m, "SplitToSequence", form ? "x k" : "x", "s");
        ot_int(&m, "axis", 1);
        if (!form) ot_int(&m, "keepdims", 0);
        ot_node(&m, "SequenceLength", "s", "n");
        ot_node(&m, "ConcatFromSequence", "s", "y");
        ot_int(&m, "axis", -1);
        ot_int(&m, "new_axis", form == 0);
        ot_output(&m, "y", OP_F32, -1, NULL);
        ot_output(&m, "n", OP_I64, 0, NULL);
        struct op_tensor in = tensor(OP_F32, 2, (int64_t[]){2, 5}, x);
        const struct op_tensor *y = run(&m, &in, 1);
        same_dims(&y[0], 2, (int64_t[]){2, 5});
        assert_memory_equal(y[0].data, x, sizeof x);
        assert_int_equal(*(const int64_t *)y[1].data, form == 0 ? 5 : 3);
        ot_end(&m);
    }
}

static void test_sequence_grows_in_a_loop(void **state) {
    (void)state;
    struct ot m, b;
    uint8_t yes = 1;
    int64_t n = 50;
    ot_begin(&m, 16);
    ot_input(&m, "n", OP_I64, 0, NULL);
    ot_node(&m, "SequenceEmpty", "", "s0");
    ot_int(&m, "dtype", OP_I64);
    ot_node(&m, "Loop", "n . s0", "s");
    loop_body(&b, 16);
    struct ot_bytes info = {0}, type = {0}, seq = {0}, elem = {0},
                    tt = {0}; /* a sequence of i64 tensors */
    ot_put_int(&tt, 1, OP_I64);
    ot_put_part(&elem, 1, &tt);
    ot_put_part(&seq, 1, &elem);
    ot_put_part(&type, 4, &seq);
    ot_put_string(&info, 1, "s");
    ot_put_bytes(&info, 2, type.data, type.len);
    ot_put_part(&b.graph, 11, &info);
    ot_constant(&b, "yes", OP_BOOL, 0, NULL, &yes);
    ot_node(&b, "Mul", "i i", "j");
    ot_node(&b, "SequenceInsert", "s j", "u");
    ot_output(&b, "yes", OP_BOOL, 0, NULL);
    ot_put_string(&info, 1, "u");
    ot_put_part(&info, 2, &type);
    ot_put_part(&b.graph, 12, &info);
    ot_graph_attr(&m, "body", &b);
    ot_node(&m, "ConcatFromSequence", "s", "y");
    ot_int(&m, "axis", 0);
    ot_int(&m, "new_axis", 1);
    ot_output(&m, "y", OP_I64, -1, NULL);
    struct op_tensor in = tensor(OP_I64, 0, NULL, &n);
    const struct op_tensor *y = run(&m, &in, 1);
    same_dims(y, 1, &n);
    for (int64_t i = 0; i < n; i++) assert_int_equal(((const int64_t *)y->data)[i], i * i);
    ot_end(&m);
}

static void test_optionals_hold_one_or_none(void **state) {
    (void)state;
    struct ot m;
    float x[2] = {3, 4};
    ot_begin(&m, 18);
    ot_input(&m, "x", OP_F32, 1, (int64_t[]){2});
    ot_node(&m, "Optional", "x", "o");
    ot_node(&m, "OptionalHasElement", "o", "h");
    ot_node(&m, "OptionalGetElement", "o", "y");
    ot_node(&m, "OptionalHasElement", ".", "g");
    ot_output(&m, "y", OP_F32, -1, NULL);
    ot_output(&m, "h", OP_BOOL, 0, NULL);
    ot_output(&m, "g", OP_BOOL, 0, NULL);
    struct op_tensor in = tensor(OP_F32, 1, (int64_t[]){2}, x);
    const struct op_tensor *y = run(&m, &in, 1);
    assert_memory_equal(y[0].data, x, sizeof x);
    assert_int_equal(*(const uint8_t *)y[1].data, 1);
    assert_int_equal(*(const uint8_t *)y[2].data, 0);
    ot_end(&m);
}

/* --- strings -------------------------------------------------------------------------------------
 */

static struct op_string text(const char *s) {
    return (struct op_string){s, strlen(s)};
}
static void same_texts(const struct op_tensor *t, int64_t n, const char *const *want) {
    assert_int_equal(op_tensor_count(t), n);
    for (int64_t i = 0; i < n; i++) {
        struct op_string s = ((const struct op_string *)t->data)[i];
        if (s.len != strlen(want[i]) || memcmp(s.data, want[i], s.len) != 0)
            fail_msg("\"%.*s\" is not \"%s\"", (int)s.len, s.data, want[i]);
    }
}

static void test_normalizer_knows_letters_beyond_ascii(void **state) {
    (void)state;
    struct ot m;
    struct op_string x[3] = {text("Grüße"), text("ÄRGER"), text("ok\xff")};
    struct ot_bytes stop = {0};
    ot_begin(&m, 10);
    ot_input(&m, "x", OP_STRING, 1, (int64_t[]){3});
    ot_node(&m, "StringNormalizer", "x", "y");
    ot_string(&m, "case_change_action", "UPPER");
    stop = ot_attr("stopwords", 8);
    ot_put_string(&stop, 9, "ärger");
    ot_put_part(&m.node, 5, &stop);
    ot_output(&m, "y", OP_STRING, -1, NULL);
    struct op_tensor in = tensor(OP_STRING, 1, (int64_t[]){3}, x);
    same_texts(run(&m, &in, 1), 2, (const char *[]){"GRÜßE", "OK\xff"});
    ot_end(&m);
}

static void test_split_of_strings_is_pythons(void **state) {
    (void)state;
    static const struct {
        const char *delimiter;
        int64_t max; /* -1: absent */
        const char *want[8];
        int64_t counts[2];
    } cases[] = {
        {"", -1, {"a", "b", "c", "", "", ""}, {3, 0}},
        {"", 1, {"a", "b  c ", "", ""}, {2, 0}},
        {" ", -1, {"", "a", "b", "", "c", ""}, {6, 1}},
        {"b", -1, {" a ", "  c "}, {2, 1}},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct ot m;
        struct op_string x[2] = {text(" a b  c "), text("")};
        ot_begin(&m, 20);
        ot_input(&m, "x", OP_STRING, 1, (int64_t[]){2});
        ot_node(&m, "StringSplit", "x", "y n");
        ot_string(&m, "delimiter", cases[i].delimiter);
        if (cases[i].max >= 0) ot_int(&m, "maxsplit", cases[i].max);
        ot_output(&m, "y", OP_STRING, -1, NULL);
        ot_output(&m, "n", OP_I64, -1, NULL);
        struct op_tensor in = tensor(OP_STRING, 1, (int64_t[]){2}, x);
        const struct op_tensor *y = run(&m, &in, 1);
        int64_t width = cases[i].counts[0];
        assert_memory_equal(y[1].data, cases[i].counts, sizeof cases[i].counts);
        same_dims(&y[0], 2, (int64_t[]){2, width});
        const char *want[16];
        for (int64_t k = 0; k < 2 * width; k++) want[k] = k < width ? cases[i].want[k] : "";
        same_texts(&y[0], 2 * width, want);
        ot_end(&m);
    }
}

static void test_concat_of_strings_broadcasts(void **state) {
    (void)state;
    struct ot m;
    struct op_string a[2] = {text("x"), text("")}, b[3] = {text("1"), text("2"), text("")};
    ot_begin(&m, 20);
    ot_input(&m, "a", OP_STRING, 2, (int64_t[]){2, 1});
    ot_input(&m, "b", OP_STRING, 1, (int64_t[]){3});
    ot_node(&m, "StringConcat", "a b", "y");
    ot_output(&m, "y", OP_STRING, -1, NULL);
    struct op_tensor in[2] = {tensor(OP_STRING, 2, (int64_t[]){2, 1}, a),
                              tensor(OP_STRING, 1, (int64_t[]){3}, b)};
    same_texts(run(&m, in, 2), 6, (const char *[]){"x1", "x2", "x", "1", "2", ""});
    ot_end(&m);
}

static bool matches(const char *pattern, const char *s) {
    const char *why;
    size_t at;
    struct op__regex *re = op__regex_compile(pattern, strlen(pattern), &why, &at);
    if (!re) fail_msg("%s: %s", pattern, why);
    void *scratch = malloc(op__regex_scratch_bytes(re));
    bool yes = op__regex_full_match(re, s, strlen(s), scratch);
    free(scratch);
    op__regex_free(re);
    return yes;
}

static void test_patterns_match_all_of_the_text(void **state) {
    (void)state;
    static const char *const yes[][2] = {
        {"", ""},
        {"a*", ""},
        {"a+b?", "aaa"},
        {"(a|bc)*d", "abcad"},
        {"[^\\d\\s]+", "a-b"},
        {"\\w{2,3}", "a_1"},
        {"x{0,2}y", "xxy"},
        {".", "é"},
        {"(?i)straße", "STRAßE"},
        {"(?i:A)b", "ab"},
        {"(?s).", "\n"},
        {"[]a-]+", "]-a"},
        {"[[:alpha:]_]+", "ab_"},
        {"\\bcat\\b", "cat"},
        {"a{,2}", "a{,2}"},
        {"\\x41\\x{e9}\\101", "AéA"},
        {"\\Q.*\\E+", ".**"},
        {"(?P<n>a)(?<m>b)", "ab"},
        {"^a$", "a"},
        {"(?m)a$\n^b", "a\nb"},
        {"(a*)*", "aaaa"},
        {"(|a)+", "aa"},
        {"www\\.[\\w.-]+\\.\\bcom\\b", "www.google.com"},
        {"[\\w\\.-]+@[\\w\\.-]+\\.\\w+", "a.b@c-d.org"},
    };
    static const char *const no[][2] = {
        {"a", ""},     {"a", "ab"},       {"a", "ba"},   {"a{2}", "a"},
        {".", "\n"},   {"[^a]", "a"},     {"a|b", "ab"}, {"\\Bcat", "cat"},
        {"a$b", "ab"}, {"(?i)[^a]", "A"}, {"\\W", "_"},
    };
    static const char *const bad[] = {
        "(",   ")",   "[",    "a**",   "*",       "a{3,2}", "a{2000}", "\\",
        "\\1", "\\q", "(?z)", "[b-a]", "(?P<>a)", "\\pL",   "\xff",    "((a{900}){900}){900}"};
    for (size_t i = 0; i < sizeof yes / sizeof *yes; i++)
        if (!matches(yes[i][0], yes[i][1])) fail_msg("%s does not match %s", yes[i][0], yes[i][1]);
    for (size_t i = 0; i < sizeof no / sizeof *no; i++)
        if (matches(no[i][0], no[i][1])) fail_msg("%s matches %s", no[i][0], no[i][1]);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        const char *why = NULL;
        size_t at;
        assert_null(op__regex_compile(bad[i], strlen(bad[i]), &why, &at));
        assert_non_null(why);
        assert_true(at <= strlen(bad[i]));
    }
}

static void test_pattern_that_backtracking_cannot_do_is_linear(void **state) {
    (void)state;
    char *a = malloc(20001);
    memset(a, 'a', 20000);
    a[20000] = 0;
    assert_false(matches("(a|aa|a*)*b", a)); /* 2^20000 ways for a matcher that tries them */
    assert_true(matches("(a?){100}a*", a));
    free(a);
}

static void test_regex_full_match_in_a_graph(void **state) {
    (void)state;
    struct ot m;
    struct op_string x[3] = {text("abc"), text("abcd"), text("")};
    ot_begin(&m, 20);
    ot_input(&m, "x", OP_STRING, 1, (int64_t[]){3});
    ot_node(&m, "RegexFullMatch", "x", "y");
    ot_string(&m, "pattern", "[a-c]*");
    ot_output(&m, "y", OP_BOOL, -1, NULL);
    struct op_tensor in = tensor(OP_STRING, 1, (int64_t[]){3}, x);
    assert_memory_equal(run(&m, &in, 1)->data, ((uint8_t[]){1, 0, 1}), 3);
    ot_end(&m);
    ot_begin(&m, 20);
    ot_input(&m, "x", OP_STRING, 1, (int64_t[]){3});
    ot_node(&m, "RegexFullMatch", "x", "y");
    ot_string(&m, "pattern", "[a-c");
    ot_output(&m, "y", OP_BOOL, -1, NULL);
    refused(&m, &in, 1, OP_BAD_VALUE, "] is missing");
}

static void test_tfidf_counts_grams_with_skips(void **state) {
    (void)state;
    struct ot m;
    int64_t x[6] = {1, 2, 1, 3, 1, 2};
    ot_begin(&m, 9);
    ot_input(&m, "x", OP_I64, 1, (int64_t[]){6});
    ot_node(&m, "TfIdfVectorizer", "x", "y");
    ot_string(&m, "mode", "TFIDF");
    ot_int(&m, "min_gram_length", 1);
    ot_int(&m, "max_gram_length", 2);
    ot_int(&m, "max_skip_count", 1);
    ot_ints(&m, "ngram_counts", 2, (int64_t[]){0, 2});
    ot_ints(&m, "ngram_indexes", 4, (int64_t[]){3, 0, 1, 2});
    ot_ints(&m, "pool_int64s", 6, (int64_t[]){3, 1, 1, 2, 1, 1}); /* 3; 1; (1,2); (1,1) */
    struct ot_bytes w = ot_attr("weights", 6);
    for (int i = 0; i < 4; i++) {
        float v = (float[]){10, 1, 1, 0.5f}[i];
        ot_varint(&w, 7 << 3 | 5);
        ot_put(&w, &v, sizeof v);
    }
    ot_put_part(&m.node, 5, &w);
    ot_output(&m, "y", OP_F32, -1, NULL);
    struct op_tensor in = tensor(OP_I64, 1, (int64_t[]){6}, x);
    const struct op_tensor *y = run(&m, &in, 1);
    const float want[4] = {
        3, 2, 1,
        10}; /* 1 thrice; (1,2) twice next to each other; (1,1) twice with one between; 3 once */
    same_dims(y, 1, (int64_t[]){4});
    assert_memory_equal(y->data, want, sizeof want);
    ot_end(&m);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_loop_stacks_what_each_iteration_gives),
        cmocka_unit_test(test_loop_ends_by_its_condition_whatever_the_trip_count),
        cmocka_unit_test(test_endless_loop_is_stopped),
        cmocka_unit_test(test_nested_loops_hand_values_through),
        cmocka_unit_test(test_if_takes_outer_values_and_either_shape),
        cmocka_unit_test(test_scan_goes_along_any_axis_in_any_direction),
        cmocka_unit_test(test_scan_of_opset_8_has_a_batch),
        cmocka_unit_test(test_sequences_insert_and_erase_by_position),
        cmocka_unit_test(test_split_to_sequence_and_back),
        cmocka_unit_test(test_sequence_grows_in_a_loop),
        cmocka_unit_test(test_optionals_hold_one_or_none),
        cmocka_unit_test(test_normalizer_knows_letters_beyond_ascii),
        cmocka_unit_test(test_split_of_strings_is_pythons),
        cmocka_unit_test(test_concat_of_strings_broadcasts),
        cmocka_unit_test(test_patterns_match_all_of_the_text),
        cmocka_unit_test(test_pattern_that_backtracking_cannot_do_is_linear),
        cmocka_unit_test(test_regex_full_match_in_a_graph),
        cmocka_unit_test(test_tfidf_counts_grams_with_skips),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
