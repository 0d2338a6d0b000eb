/* The fusing passes: each pattern gives what the same file gives as a reference (plain C, no passes), and really runs as the fused
 * operator; what looks like a pattern but is not one stays as it is. */
#include "pass_testing.h"

static void begin_conv(struct ot *m, bool bias) { /* x [2,4,9,7] to c [2,6,9,7] */
    ot_begin(m, 17);
    ot_input(m, "x", OP_F32, 4, DIMS(-1, 4, 9, 7));
    constant(m, "w", 4, DIMS(6, 4, 3, 3), -1, 1);
    constant(m, "b", 1, DIMS(6), -1, 1);
    ot_node(m, "Conv", bias ? "x w b" : "x w", "c");
    ot_ints(m, "pads", 4, DIMS(1, 1, 1, 1));
}

static void batch_norm(struct ot *m, const char *in, const char *out, int64_t channels) {
    constant(m, "bn_scale", 1, &channels, 0.5f, 2);
    constant(m, "bn_bias", 1, &channels, -1, 1);
    constant(m, "bn_mean", 1, &channels, -1, 1);
    constant(m, "bn_var", 1, &channels, 0.2f, 2);
    char names[100];
    snprintf(names, sizeof names, "%s bn_scale bn_bias bn_mean bn_var", in);
    ot_node(m, "BatchNormalization", names, out);
}

static void test_batch_normalization_goes_into_the_weights(void **state) {
    (void)state;
    struct op_tensor x = tensor(4, DIMS(2, 4, 9, 7)), row = tensor(2, DIMS(5, 8));
    struct ot m;
    for (int bias = 0; bias < 2; bias++) {
        begin_conv(&m, bias);
        batch_norm(&m, "c", "n", 6);
        ot_node(&m, "Relu", "n", "y");
        ot_output(&m, "y", OP_F32, -1, NULL);
        compare(&m, &x, 1, "FusedConv");
    }
    for (int group = 1; group <= 2; group++) {
        ot_begin(&m, 17);
        ot_input(&m, "x", OP_F32, 4, DIMS(-1, 4, 9, 7));
        constant(&m, "w", 4, DIMS(4, 3, 2, 2), -1, 1);
        ot_node(&m, "ConvTranspose", "x w", "c");
        ot_int(&m, "group", group);
        batch_norm(&m, "c", "y", 3 * group);
        ot_output(&m, "y", OP_F32, -1, NULL);
        compare(&m, &x, 1, "ConvTranspose");
    }
    for (int trans = 0; trans < 2; trans++) {
        ot_begin(&m, 17);
        ot_input(&m, "x", OP_F32, 2, DIMS(-1, 8));
        constant(&m, "w", 2, trans ? DIMS(10, 8) : DIMS(8, 10), -1, 1);
        constant(&m, "b", 1, DIMS(10), -1, 1);
        ot_node(&m, "Gemm", "x w b", "g");
        ot_int(&m, "transB", trans);
        batch_norm(&m, "g", "n", 10);
        ot_node(&m, "Tanh", "n", "y");
        ot_output(&m, "y", OP_F32, -1, NULL);
        compare(&m, &row, 1, "FusedGemm");
    }
    free(x.data), free(row.data);
}

static void test_channel_factors_and_offsets_go_into_the_weights(void **state) {
    (void)state;
    struct op_tensor x = tensor(4, DIMS(1, 4, 9, 7));
    struct ot m;
    begin_conv(&m, true);
    constant(&m, "s", 4, DIMS(1, 6, 1, 1), 0.5f, 2);
    constant(&m, "t", 3, DIMS(6, 1, 1), -1, 1);
    scalar(&m, "half", 0.5f);
    ot_node(&m, "Mul", "c s", "d");
    ot_node(&m, "Add", "t d", "e");
    ot_node(&m, "Mul", "e half", "y");
    ot_output(&m, "y", OP_F32, -1, NULL);
    compare(&m, &x, 1, "Conv");
    begin_conv(&m, true); /* along the width: not a channel */
    constant(&m, "t", 1, DIMS(7), -1, 1);
    ot_node(&m, "Mul", "c t", "y");
    ot_output(&m, "y", OP_F32, -1, NULL);
    compare(&m, &x, 1, "Conv Mul");
    free(x.data);
}

static void test_residuals_of_every_shape(void **state) {
    (void)state;
    static const struct {
        int rank;
        int64_t dims[5];
    } shapes[] = {{4, {2, 6, 9, 7}}, {4, {2, 6, 1, 1}}, {4, {1, 6, 9, 7}}, {1, {7}}, {0, {0}}, {5, {3, 2, 6, 9, 7}}, {5, {3, 1, 6, 1, 7}}};
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        struct op_tensor in[2] = {tensor(4, DIMS(2, 4, 9, 7)), tensor(shapes[i].rank, shapes[i].dims)};
        struct ot m;
        begin_conv(&m, true);
        ot_input(&m, "r", OP_F32, -1, NULL);
        ot_node(&m, "Add", i & 1 ? "c r" : "r c", "s");
        ot_node(&m, "Relu", "s", "y");
        ot_output(&m, "y", OP_F32, -1, NULL);
        compare(&m, in, 2, "FusedConv");
        free(in[0].data), free(in[1].data);
    }
}

static void test_two_convolutions_into_one_sum(void **state) {
    (void)state;
    struct op_tensor x = tensor(4, DIMS(2, 4, 9, 7));
    struct ot m;
    begin_conv(&m, true);
    constant(&m, "w2", 4, DIMS(6, 4, 1, 1), -1, 1);
    ot_node(&m, "Conv", "x w2", "c2");
    ot_node(&m, "Add", "c c2", "s");
    ot_node(&m, "Relu", "s", "y");
    ot_output(&m, "y", OP_F32, -1, NULL);
    compare(&m, &x, 1, "ChannelsLastConv ChannelsLastConv Transpose");
    free(x.data);
}

static void test_activations_of_a_convolution(void **state) {
    (void)state;
    struct op_tensor x = tensor(4, DIMS(2, 4, 9, 7));
    static const char *const plain[] = {"Relu", "LeakyRelu", "Sigmoid", "Tanh", "HardSwish", "Elu", "HardSigmoid", "Softplus"};
    struct ot m;
    for (size_t i = 0; i < sizeof plain / sizeof *plain; i++) {
        begin_conv(&m, true);
        ot_node(&m, plain[i], "c", "y");
        if (i == 1 || i == 5) ot_float(&m, "alpha", 0.3f);
        ot_output(&m, "y", OP_F32, -1, NULL);
        compare(&m, &x, 1, "FusedConv");
    }
    begin_conv(&m, true);
    scalar(&m, "lo", -0.5f);
    scalar(&m, "hi", 1.5f);
    ot_node(&m, "Clip", "c lo hi", "y");
    ot_output(&m, "y", OP_F32, -1, NULL);
    compare(&m, &x, 1, "FusedConv");
    begin_conv(&m, true);
    ot_node(&m, "Sigmoid", "c", "s");
    ot_node(&m, "Mul", "s c", "y");
    ot_output(&m, "y", OP_F32, -1, NULL);
    compare(&m, &x, 1, "FusedConv");
    begin_conv(&m, true);
    ot_node(&m, "HardSigmoid", "c", "s");
    ot_float(&m, "alpha", 1.0f / 6);
    ot_node(&m, "Mul", "c s", "y");
    ot_output(&m, "y", OP_F32, -1, NULL);
    compare(&m, &x, 1, "FusedConv");
    free(x.data);
}

static void gelu(struct ot *m, int form, const char *x) { /* y = gelu(x) */
    char names[40];
    scalar(m, "root2", 1.41421354f);
    scalar(m, "one", 1);
    scalar(m, "half", 0.5f);
    snprintf(names, sizeof names, "%s root2", x);
    ot_node(m, "Div", names, "d");
    ot_node(m, "Erf", "d", "f");
    ot_node(m, "Add", form & 1 ? "one f" : "f one", "e");
    static const char *const first[] = {" e", " half", " half"}, *const second[] = {"half", "", "e"};
    snprintf(names, sizeof names, "%s%s", form == 1 ? "e" : x, first[form]);
    ot_node(m, "Mul", names, "h");
    snprintf(names, sizeof names, "h %s", form == 1 ? x : second[form]);
    ot_node(m, "Mul", names, "y");
    ot_output(m, "y", OP_F32, -1, NULL);
}

static void test_matmul_with_bias_and_gelu(void **state) {
    (void)state;
    struct op_tensor x = tensor(3, DIMS(2, 5, 8));
    struct ot m;
    for (int form = 0; form < 3; form++) {
        ot_begin(&m, 17);
        ot_input(&m, "x", OP_F32, 3, DIMS(-1, -1, 8));
        constant(&m, "w", 2, DIMS(8, 12), -1, 1);
        constant(&m, "b", 1, DIMS(12), -1, 1);
        ot_node(&m, "MatMul", "x w", "p");
        ot_node(&m, "Add", "p b", "q");
        gelu(&m, form, "q");
        compare(&m, &x, 1, "FusedMatMul");
    }
    ot_begin(&m, 17); /* a gelu alone */
    ot_input(&m, "x", OP_F32, 3, DIMS(-1, -1, 8));
    gelu(&m, 2, "x");
    compare(&m, &x, 1, "Gelu");
    ot_begin(&m, 17); /* the other side has more columns than the product: not a bias */
    ot_input(&m, "x", OP_F32, 3, DIMS(-1, -1, 8));
    constant(&m, "w", 2, DIMS(8, 1), -1, 1);
    constant(&m, "b", 1, DIMS(12), -1, 1);
    ot_node(&m, "MatMul", "x w", "p");
    ot_node(&m, "Add", "p b", "y");
    ot_output(&m, "y", OP_F32, -1, NULL);
    compare(&m, &x, 1, "MatMul Add");
    free(x.data);
}

static void test_values_with_other_uses_stay(void **state) {
    (void)state;
    struct op_tensor x = tensor(4, DIMS(2, 4, 9, 7));
    struct ot m;
    begin_conv(&m, true); /* the convolution is an output too */
    batch_norm(&m, "c", "n", 6);
    ot_node(&m, "Relu", "n", "y");
    ot_output(&m, "c", OP_F32, -1, NULL);
    ot_output(&m, "y", OP_F32, -1, NULL);
    compare(&m, &x, 1, "Conv BatchNormalization Relu");
    begin_conv(&m, true); /* used twice */
    ot_node(&m, "Relu", "c", "r");
    ot_node(&m, "Sub", "r c", "y");
    ot_output(&m, "y", OP_F32, -1, NULL);
    compare(&m, &x, 1, "Conv Relu Sub");
    begin_conv(&m, true); /* a sigmoid of something else */
    ot_node(&m, "Tanh", "c", "t");
    ot_node(&m, "Sigmoid", "t", "s");
    ot_node(&m, "Mul", "s x1", "y");
    ot_input(&m, "x1", OP_F32, -1, NULL);
    ot_output(&m, "y", OP_F32, -1, NULL);
    struct op_tensor in[2] = {x, tensor(1, DIMS(1))};
    compare(&m, in, 2, "FusedConv Sigmoid Mul");
    free(x.data), free(in[1].data);
}

static void test_other_types_stay(void **state) {
    (void)state;
    const double w[] = {0.5, -1, 2}, x[] = {1, 2, 3, 4, 5, -6};
    const struct op_tensor in = {.dtype = OP_F64, .rank = 3, .dims = {1, 1, 6}, .data = (void *)x};
    struct ot m;
    ot_begin(&m, 17);
    ot_input(&m, "x", OP_F64, 3, DIMS(1, 1, 6));
    ot_constant(&m, "w", OP_F64, 3, DIMS(1, 1, 3), w);
    ot_node(&m, "Conv", "x w", "c");
    ot_node(&m, "Relu", "c", "y");
    ot_output(&m, "y", OP_F64, -1, NULL);
    compare(&m, &in, 1, "Conv Relu");
}

static void test_absent_inputs_do_not_match(void **state) {
    (void)state;
    static const char *const ops[][3] = {{"Erf", ".", "y"}, {"Mul", ". .", "y"}, {"Conv", ". .", "y"}, {"MatMul", "x .", "y"}};
    for (size_t i = 0; i < sizeof ops / sizeof *ops; i++) {
        struct op_tensor x = tensor(1, DIMS(3));
        struct op_error err;
        struct ot m;
        ot_begin(&m, 17);
        ot_input(&m, "x", OP_F32, 1, DIMS(3));
        ot_node(&m, ops[i][0], ops[i][1], ops[i][2]);
        ot_node(&m, "Sigmoid", ".", "s");
        ot_node(&m, "Mul", "s .", "z");
        ot_output(&m, "y", OP_F32, -1, NULL);
        ot_output(&m, "z", OP_F32, -1, NULL);
        assert_null(ot_run(&m, NULL, &x, 1, &err));
        assert_true(err.code != OP_OK && *err.text);
        ot_end(&m);
        free(x.data);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_batch_normalization_goes_into_the_weights),
        cmocka_unit_test(test_channel_factors_and_offsets_go_into_the_weights),
        cmocka_unit_test(test_residuals_of_every_shape),
        cmocka_unit_test(test_two_convolutions_into_one_sum),
        cmocka_unit_test(test_activations_of_a_convolution),
        cmocka_unit_test(test_matmul_with_bias_and_gelu),
        cmocka_unit_test(test_values_with_other_uses_stay),
        cmocka_unit_test(test_other_types_stay),
        cmocka_unit_test(test_absent_inputs_do_not_match),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
