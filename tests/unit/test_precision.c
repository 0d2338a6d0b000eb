/* The precision that a model is loaded with: what becomes bf16, what it computes, what is refused. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <math.h>

#include "ops/model.h"
#include "tests/unit/op_testing.h"

enum { IN = 70, OUT = 40, ROWS = 5 };

static float w[IN * OUT], turned[IN * OUT], bias[OUT], x[ROWS * IN];

static void fill(void) {
    uint32_t seed = 3;
    for (int i = 0; i < IN * OUT; i++) {
        seed = seed * 1664525u + 1013904223u;
        w[i] = (float)(seed >> 8) / (1 << 24) - 0.5f;
        turned[i % OUT * IN + i / OUT] = w[i];
    }
    for (int i = 0; i < OUT; i++) bias[i] = (float)(i % 7) / 8;
    for (int i = 0; i < ROWS * IN; i++) x[i] = (float)((i * 29) % 101 - 50) / 60;
}

static float rounded(float v) {
    return op__bf16_to_f32(op__f32_to_bf16(v));
}

/* Row r of x W + bias, its factors rounded, in double precision. */
static double expected(int r, int j, bool with_bias, bool relu) {
    double sum = 0;
    for (int k = 0; k < IN; k++) sum += (double)rounded(x[r * IN + k]) * (double)rounded(w[k * OUT + j]);
    if (with_bias) sum += (double)bias[j];
    return relu && sum < 0 ? 0 : sum;
}

static void build(struct ot *m, const char *op, bool relu) {
    const bool gemm = strcmp(op, "Gemm") == 0;
    ot_begin(m, 17);
    ot_input(m, "x", OP_F32, gemm ? 2 : -1, (int64_t[]){-1, IN});
    ot_constant(m, "w", OP_F32, 2, gemm ? (int64_t[]){OUT, IN} : (int64_t[]){IN, OUT}, gemm ? turned : w);
    ot_constant(m, "b", OP_F32, 1, (int64_t[]){OUT}, bias);
    if (gemm) {
        ot_node(m, "Gemm", "x w b", "z");
        ot_int(m, "transB", 1);
    } else {
        ot_node(m, "MatMul", "x w", "u");
        ot_node(m, "Add", "u b", "z");
    }
    ot_node(m, relu ? "Relu" : "Identity", "z", "y");
    ot_output(m, "y", OP_F32, -1, NULL);
}

static int count(const struct op_graph *g, const char *op) {
    int n = 0;
    for (int i = 0; i < g->n_nodes; i++) n += strcmp(g->nodes[i]->op_type, op) == 0;
    return n;
}

static void test_products_round_their_factors(void **state) {
    (void)state;
    const struct op_load_options bf16 = {.precision = "bf16"};
    fill();
    for (int i = 0; i < 4; i++) {
        struct ot m;
        struct op_error err;
        struct op_model_info info;
        struct op_tensor in = {.dtype = OP_F32, .rank = 2, .dims = {ROWS, IN}, .data = x};
        build(&m, i % 2 ? "Gemm" : "MatMul", i / 2);
        const struct op_tensor *y = ot_run(&m, &bf16, &in, 1, &err);
        if (!y) fail_msg("%s", err.text);
        assert_int_equal(count(m.model->graph, "HalfMatMul"), 1);
        op_model_describe(m.model, &info);
        assert_string_equal(info.precision, "bf16");
        for (int r = 0; r < ROWS; r++)
            for (int j = 0; j < OUT; j++) assert_true(fabs((double)((float *)y->data)[r * OUT + j] - expected(r, j, true, i / 2)) < 1e-5);
        if (i % 2 == 0) { /* MatMul takes any rank */
            in.rank = 1;
            in.dims[0] = IN;
            y = ot_run(&m, &bf16, &in, 1, &err);
            assert_non_null(y);
            assert_int_equal(y->rank, 1);
            assert_int_equal(y->dims[0], OUT);
            in.rank = 3;
            in.dims[0] = 1, in.dims[1] = ROWS, in.dims[2] = IN;
            y = ot_run(&m, &bf16, &in, 1, &err);
            assert_non_null(y);
            assert_true(y->rank == 3 && y->dims[1] == ROWS && y->dims[2] == OUT);
            in.dims[1] = 0;
            y = ot_run(&m, &bf16, &in, 1, &err);
            assert_true(y && op_tensor_count(y) == 0);
            in.dims[1] = 2, in.dims[2] = IN - 1;
            assert_null(ot_run(&m, &bf16, &in, 1, &err));
            assert_int_equal(err.code, OP_BAD_SHAPE);
            assert_non_null(strstr(err.text, "expected rows of 70 columns"));
        }
        ot_end(&m);
    }
}

static void test_what_stays_in_f32(void **state) {
    (void)state;
    const struct op_load_options bf16 = {.precision = "bf16"}, reference = {.precision = "bf16", .reference = true};
    struct op_tensor in = {.dtype = OP_F32, .rank = 2, .dims = {ROWS, IN}, .data = x};
    const struct op_load_options *const how[] = {NULL, &reference, &(struct op_load_options){.precision = "auto"}};
    fill();
    for (int i = 0; i < 3; i++) {
        struct ot m;
        struct op_error err;
        struct op_model_info info;
        build(&m, "MatMul", false);
        assert_non_null(ot_run(&m, how[i], &in, 1, &err));
        op_model_describe(m.model, &info);
        assert_string_equal(info.precision, "fp32");
        assert_int_equal(count(m.model->graph, "HalfMatMul"), 0);
        ot_end(&m);
    }
    struct ot m; /* both sides made at run time, and weights of too few columns */
    struct op_error err;
    ot_begin(&m, 17);
    ot_input(&m, "x", OP_F32, 2, (int64_t[]){-1, IN});
    ot_constant(&m, "w", OP_F32, 2, (int64_t[]){IN, 8}, w);
    ot_node(&m, "Transpose", "x", "t");
    ot_node(&m, "MatMul", "x t", "s");
    ot_node(&m, "MatMul", "s x", "u");
    ot_node(&m, "MatMul", "u w", "y");
    ot_output(&m, "y", OP_F32, -1, NULL);
    assert_non_null(ot_run(&m, &bf16, &in, 1, &err));
    assert_int_equal(count(m.model->graph, "HalfMatMul"), 0);
    ot_end(&m);
}

static void test_what_is_refused(void **state) {
    (void)state;
    const struct op_load_options int8 = {.precision = "int8"}, unknown = {.precision = "fp8"};
    struct ot m;
    struct op_error err;
    const float one = 1;
    const uint8_t zero = 0;
    fill();
    build(&m, "MatMul", false);
    assert_null(ot_load(&m, &int8, &err));
    assert_int_equal(err.code, OP_UNSUPPORTED);
    assert_non_null(strstr(err.text, "precision \"int8\" is for models that are quantized"));
    assert_null(ot_load(&m, &unknown, &err));
    assert_int_equal(err.code, OP_UNSUPPORTED);
    assert_non_null(strstr(err.text, "precision \"fp8\" is not known"));
    ot_end(&m);
    ot_begin(&m, 17); /* and of a quantized model it is not */
    ot_input(&m, "x", OP_F32, 1, (int64_t[]){4});
    ot_constant(&m, "s", OP_F32, 0, NULL, &one);
    ot_constant(&m, "z", OP_U8, 0, NULL, &zero);
    ot_node(&m, "QuantizeLinear", "x s z", "y");
    ot_output(&m, "y", OP_U8, -1, NULL);
    m.model = ot_load(&m, &int8, &err);
    assert_non_null(m.model);
    struct op_model_info info;
    op_model_describe(m.model, &info);
    assert_string_equal(info.precision, "int8");
    ot_end(&m);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_products_round_their_factors),
        cmocka_unit_test(test_what_stays_in_f32),
        cmocka_unit_test(test_what_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
