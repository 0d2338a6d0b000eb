/* test_op_ml.c: the operators of ai.onnx.ml, through models of one node, against values worked out
 * by hand. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "tests/unit/op_testing.h"

#define COUNT(a) (sizeof(a) / sizeof *(a))
#define INTS(m, name, ...)                                                                         \
    ot_ints(m, name, COUNT(((int64_t[]){__VA_ARGS__})), (int64_t[]){__VA_ARGS__})
#define FLOATS(m, name, ...)                                                                       \
    put_floats(m, name, COUNT(((float[]){__VA_ARGS__})), (float[]){__VA_ARGS__})
#define STRINGS(m, name, ...)                                                                      \
    put_strings(m, name, COUNT(((const char *[]){__VA_ARGS__})), (const char *[]){__VA_ARGS__})

static void put_floats(struct ot *m, const char *name, size_t n, const float *v) {
    struct ot_bytes b = ot_attr(name, 6);
    for (size_t i = 0; i < n; i++) {
        ot_varint(&b, 7 << 3 | 5);
        ot_put(&b, &v[i], sizeof v[i]);
    }
    ot_put_part(&m->node, 5, &b);
}

static void put_strings(struct ot *m, const char *name, size_t n, const char *const *v) {
    struct ot_bytes b = ot_attr(name, 8);
    for (size_t i = 0; i < n; i++) ot_put_string(&b, 9, v[i]);
    ot_put_part(&m->node, 5, &b);
}

static void begin(struct ot *m, const char *op, enum op_type in, const char *out,
                  enum op_type out_type) {
    ot_begin(m, 17);
    ot_input(m, "x", in, -1, NULL);
    ot_node_of(m, "ai.onnx.ml", op, "x", out);
    ot_output(m, "y", out_type, -1, NULL);
    if (strchr(out, ' ')) ot_output(m, "z", OP_F32, -1, NULL);
}

static struct op_tensor rows(int64_t n, int64_t features, const float *x) {
    return (struct op_tensor){
        .dtype = OP_F32, .rank = 2, .dims = {n, features}, .data = (void *)(uintptr_t)x};
}

static const struct op_tensor *run(struct ot *m, const struct op_tensor *x) {
    struct op_error err;
    const struct op_tensor *y = ot_run(m, NULL, x, 1, &err);
    if (!y) fail_msg("%s", err.text);
    return y;
}

static void refuse(struct ot *m, const struct op_tensor *x, const char *text) {
    struct op_error err;
    assert_null(ot_run(m, NULL, x, 1, &err));
    if (!strstr(err.text, text)) fail_msg("expected \"%s\", got: %s", text, err.text);
    ot_end(m);
}

static void expect_floats(const struct op_tensor *t, size_t n, const float *want) {
    assert_int_equal(op_tensor_count(t), n);
    for (size_t i = 0; i < n; i++) {
        const float got = ((float *)t->data)[i];
        if (!(fabsf(got - want[i]) <= 1e-6f * fmaxf(1, fabsf(want[i]))))
            fail_msg("element %zu is %.9g, not %.9g", i, got, want[i]);
    }
}
#define EXPECT(t, ...) expect_floats(t, COUNT(((float[]){__VA_ARGS__})), (float[]){__VA_ARGS__})

static void same_text(const struct op_tensor *t, int64_t i, const char *want) {
    const struct op_string s = ((struct op_string *)t->data)[i];
    if (s.len != strlen(want) || memcmp(s.data, want, s.len))
        fail_msg("\"%.*s\", not \"%s\"", (int)s.len, s.data, want);
}

/* --- trees -------------------------------------------------------------------------------------
 */

/* Tree 0: x0 <= 1 ? leaf 1 : (x1 < 5, or missing ? leaf 3 : leaf 4). Tree 1: one leaf. */
static void put_trees(struct ot *m) {
    INTS(m, "nodes_treeids", 0, 0, 0, 0, 0, 1);
    INTS(m, "nodes_nodeids", 0, 1, 2, 3, 4, 0);
    INTS(m, "nodes_featureids", 0, 0, 1, 0, 0, 0);
    FLOATS(m, "nodes_values", 1, 0, 5, 0, 0, 0);
    STRINGS(m, "nodes_modes", "BRANCH_LEQ", "LEAF", "BRANCH_LT", "LEAF", "LEAF", "LEAF");
    INTS(m, "nodes_truenodeids", 1, 0, 3, 0, 0, 0);
    INTS(m, "nodes_falsenodeids", 2, 0, 4, 0, 0, 0);
    INTS(m, "nodes_missing_value_tracks_true", 0, 0, 1, 0, 0, 0);
}

static const float samples[8] = {1, 9, 2, 4, 2, 5, 2, NAN}; /* leaves 1, 3, 4, 3 */

static void test_tree_regressor(void **state) {
    (void)state;
    const struct op_tensor x = rows(4, 2, samples);
    const char *const aggregates[] = {"SUM", "AVERAGE", "MIN", "MAX"};
    for (int i = 0; i < 4; i++) {
        struct ot m;
        begin(&m, "TreeEnsembleRegressor", OP_F32, "y", OP_F32);
        put_trees(&m);
        INTS(&m, "target_treeids", 0, 0, 0, 1);
        INTS(&m, "target_nodeids", 1, 3, 4, 0);
        INTS(&m, "target_ids", 0, 0, 0, 0);
        FLOATS(&m, "target_weights", 10, 20, 30, 2);
        ot_int(&m, "n_targets", 1);
        ot_string(&m, "aggregate_function", aggregates[i]);
        if (i == 0) FLOATS(&m, "base_values", 100);
        const struct op_tensor *y = run(&m, &x);
        switch (i) {
        case 0:
            EXPECT(y, 112, 122, 132, 122);
            break;
        case 1:
            EXPECT(y, 6, 11, 16, 11);
            break;
        case 2:
            EXPECT(y, 2, 2, 2, 2);
            break;
        default:
            EXPECT(y, 10, 20, 30, 20);
        }
        ot_end(&m);
    }
}

static void test_tree_classifier_of_three(void **state) {
    (void)state;
    const struct op_tensor x = rows(4, 2, samples);
    struct ot m;
    begin(&m, "TreeEnsembleClassifier", OP_F32, "y z", OP_STRING);
    put_trees(&m);
    STRINGS(&m, "classlabels_strings", "cat", "dog", "owl");
    INTS(&m, "class_treeids", 0, 0, 0, 0, 1);
    INTS(&m, "class_nodeids", 1, 3, 3, 4, 0);
    INTS(&m, "class_ids", 0, 1, 0, 2, 0);
    FLOATS(&m, "class_weights", 1, 0.75f, 0.25f, 1, 0.5f);
    const struct op_tensor *y = run(&m, &x);
    same_text(&y[0], 0, "cat");
    same_text(&y[0], 1, "cat"); /* 0.75 against 0.75: the first */
    same_text(&y[0], 2, "owl");
    EXPECT(&y[1], 1.5f, 0, 0, 0.75f, 0.75f, 0, 0.5f, 0, 1, 0.75f, 0.75f, 0);
    ot_end(&m);
}

static void test_tree_classifier_of_two_with_one_score(void **state) {
    (void)state;
    const struct op_tensor x = rows(4, 2, samples);
    for (int mixed = 0; mixed < 2; mixed++) {
        struct ot m;
        begin(&m, "TreeEnsembleClassifier", OP_F32, "y z", OP_I64);
        put_trees(&m);
        INTS(&m, "classlabels_int64s", 7, 9);
        INTS(&m, "class_treeids", 0, 0, 0);
        INTS(&m, "class_nodeids", 1, 3, 4);
        INTS(&m, "class_ids", 1, 1, 1);
        if (mixed) {
            FLOATS(&m, "class_weights", -2, 0, 1);
            ot_string(&m, "post_transform", "LOGISTIC");
        } else {
            FLOATS(&m, "class_weights", 0.25f, 0.75f, 0.5f);
        }
        const struct op_tensor *y = run(&m, &x);
        const int64_t by_probability[4] = {7, 9, 7, 9}, by_distance[4] = {7, 7, 9, 7};
        assert_memory_equal(y[0].data, mixed ? by_distance : by_probability, sizeof by_distance);
        if (mixed)
            EXPECT(&y[1], 0.880797078f, 0.119202922f, 0.5f, 0.5f, 0.268941421f, 0.731058579f, 0.5f,
                   0.5f);
        else
            EXPECT(&y[1], 0.75f, 0.25f, 0.25f, 0.75f, 0.5f, 0.5f, 0.25f, 0.75f);
        ot_end(&m);
    }
}

static void put_ring(struct ot *m, int64_t back_to, int64_t weight_node) {
    begin(m, "TreeEnsembleRegressor", OP_F32, "y", OP_F32);
    INTS(m, "nodes_treeids", 0, 0, 0);
    INTS(m, "nodes_nodeids", 0, 1, 2);
    INTS(m, "nodes_featureids", 0, 0, 0);
    FLOATS(m, "nodes_values", 1, 1, 0);
    STRINGS(m, "nodes_modes", "BRANCH_LEQ", "BRANCH_LEQ", "LEAF");
    INTS(m, "nodes_truenodeids", 1, back_to, 0);
    INTS(m, "nodes_falsenodeids", 2, 2, 0);
    ot_ints(m, "target_treeids", 1, (int64_t[]){0});
    ot_ints(m, "target_nodeids", 1, &weight_node);
    ot_ints(m, "target_ids", 1, (int64_t[]){0});
    FLOATS(m, "target_weights", 1);
}

static void test_malformed_trees_are_refused(void **state) {
    (void)state;
    const float one = 1;
    const struct op_tensor x = rows(1, 1, &one), none = rows(1, 0, &one);
    struct ot m;
    put_ring(&m, 1, 2);
    refuse(&m, &x, "circle");
    put_ring(&m, 0, 2);
    refuse(&m, &x, "no root");
    put_ring(&m, 5, 2);
    refuse(&m, &x, "leads to a node that is not there");
    put_ring(&m, 2, 1);
    refuse(&m, &x, "no leaf");
    put_ring(&m, 2, 2);
    refuse(&m, &none, "0 features");
    put_ring(&m, 2, 2);
    EXPECT(run(&m, &x), 1);
    ot_end(&m);
}

/* --- linear models and machines ------------------------------------------------------------------
 */

static void test_linear_models(void **state) {
    (void)state;
    const float x[4] = {1, 2, -1, 0.5f};
    const struct op_tensor in = rows(2, 2, x);
    struct ot m;
    begin(&m, "LinearRegressor", OP_F32, "y", OP_F32);
    FLOATS(&m, "coefficients", 1, 2, 3, 4);
    FLOATS(&m, "intercepts", 0.5f, -1);
    ot_int(&m, "targets", 2);
    EXPECT(run(&m, &in), 5.5f, 10, 0.5f, -2);
    ot_end(&m);
    begin(&m, "LinearClassifier", OP_F32, "y z", OP_I64);
    FLOATS(&m, "coefficients", 1, 2, 3, 4);
    FLOATS(&m, "intercepts", 0.5f, -1);
    INTS(&m, "classlabels_ints", 4, 5);
    ot_string(&m, "post_transform", "SOFTMAX");
    const struct op_tensor *y = run(&m, &in);
    assert_memory_equal(y[0].data, ((int64_t[]){5, 4}), 16);
    EXPECT(&y[1], 0.0109869426f, 0.989013057f, 0.924141820f, 0.0758581800f);
    ot_end(&m);
    begin(&m, "LinearClassifier", OP_F32, "y z", OP_I64);
    FLOATS(&m, "coefficients", 1, 2, 3);
    INTS(&m, "classlabels_ints", 4, 5);
    refuse(&m, &in, "3 coefficients");
}

static void test_svm_regressor(void **state) {
    (void)state;
    const float x[2] = {1, 2};
    const struct op_tensor in = rows(1, 2, x);
    const struct {
        const char *kernel;
        double want;
    } cases[] = {{"LINEAR", 2.0 * 3 - 1.0 * 2 + 0.25},
                 {"POLY", 2 * pow(0.5 * 3 + 1, 3) - pow(0.5 * 2 + 1, 3) + 0.25},
                 {"RBF", 2 * exp(-0.5 * 1) - exp(-0.5 * 2) + 0.25},
                 {"SIGMOID", 2 * tanh(0.5 * 3 + 1) - tanh(0.5 * 2 + 1) + 0.25}};
    for (size_t i = 0; i < COUNT(cases); i++) {
        struct ot m;
        begin(&m, "SVMRegressor", OP_F32, "y", OP_F32);
        FLOATS(&m, "coefficients", 2, -1);
        if (i == 2)
            FLOATS(&m, "support_vectors", 1, 1, 0, 1); /* at squared distances 1 and 2 */
        else
            FLOATS(&m, "support_vectors", 1, 1, 2, 0); /* of products 3 and 2 */
        ot_int(&m, "n_supports", 2);
        FLOATS(&m, "rho", 0.25f);
        FLOATS(&m, "kernel_params", 0.5f, 1, 3);
        ot_string(&m, "kernel_type", cases[i].kernel);
        EXPECT(run(&m, &in), (float)cases[i].want);
        ot_end(&m);
    }
}

/* Three classes, one unit vector each: the value of the pair i < j is x_i - x_j. */
static void put_machines(struct ot *m) {
    begin(m, "SVMClassifier", OP_F32, "y z", OP_STRING);
    STRINGS(m, "classlabels_strings", "a", "b", "c");
    INTS(m, "vectors_per_class", 1, 1, 1);
    FLOATS(m, "support_vectors", 1, 0, 0, 0, 1, 0, 0, 0, 1);
    FLOATS(m, "coefficients", 1, -1, -1, 1, 1, -1);
    FLOATS(m, "rho", 0, 0, 0);
}

static void test_svm_classifier(void **state) {
    (void)state;
    const float x[3] = {1, 3, 2};
    const struct op_tensor in = rows(1, 3, x), two = rows(1, 2, x);
    struct ot m;
    put_machines(&m);
    const struct op_tensor *y = run(&m, &in);
    same_text(&y[0], 0, "b");
    EXPECT(&y[1], -2, -1, 1);
    ot_end(&m);
    /* pairs of probabilities e^x_i / (e^x_i + e^x_j), which the softmax of x alone agrees with */
    put_machines(&m);
    FLOATS(&m, "prob_a", -1, -1, -1);
    FLOATS(&m, "prob_b", 0, 0, 0);
    y = run(&m, &in);
    same_text(&y[0], 0, "b");
    const float softmax[3] = {0.09003057f, 0.66524096f, 0.24472847f};
    for (int i = 0; i < 3; i++) assert_true(fabsf(((float *)y[1].data)[i] - softmax[i]) < 0.005f);
    ot_end(&m);
    begin(&m, "SVMClassifier", OP_F32, "y z", OP_I64); /* f = x0 - x1 + 0.5 for the first class */
    INTS(&m, "classlabels_ints", 4, 5);
    INTS(&m, "vectors_per_class", 1, 1);
    FLOATS(&m, "support_vectors", 1, 0, 0, 1);
    FLOATS(&m, "coefficients", 1, -1);
    FLOATS(&m, "rho", 0.5f);
    y = run(&m, &two);
    assert_int_equal(*(int64_t *)y[0].data, 5);
    EXPECT(&y[1], -1.5f, 1.5f);
    ot_end(&m);
    put_machines(&m);
    FLOATS(&m, "prob_a", 1);
    FLOATS(&m, "prob_b", 1);
    refuse(&m, &in, "do not fit");
    put_machines(&m);
    refuse(&m, &two, "2 features");
}

/* --- features and labels -----------------------------------------------------------------------
 */

static void test_features(void **state) {
    (void)state;
    const float x[6] = {3, -4, 0, NAN, 0, 0};
    const struct op_tensor in = rows(1, 2, x), two = rows(2, 2, x), zero = rows(1, 2, x + 4);
    struct ot m;
    begin(&m, "Scaler", OP_F32, "y", OP_F32);
    FLOATS(&m, "offset", 1, 2);
    FLOATS(&m, "scale", 10);
    EXPECT(run(&m, &in), 20, -60);
    ot_end(&m);
    const char *const norms[] = {"MAX", "L1", "L2"};
    const float want[3][2] = {{1, -4.0f / 3}, {3.0f / 7, -4.0f / 7}, {0.6f, -0.8f}};
    for (int i = 0; i < 3; i++) {
        begin(&m, "Normalizer", OP_F32, "y", OP_F32);
        ot_string(&m, "norm", norms[i]);
        expect_floats(run(&m, &in), 2, want[i]);
        ot_end(&m);
        begin(&m, "Normalizer", OP_F32, "y", OP_F32);
        ot_string(&m, "norm", norms[i]);
        EXPECT(run(&m, &zero), 0, 0);
        ot_end(&m);
    }
    begin(&m, "Binarizer", OP_F32, "y", OP_F32);
    ot_float(&m, "threshold", -4);
    EXPECT(run(&m, &in), 1, 0);
    ot_end(&m);
    begin(&m, "Imputer", OP_F32, "y", OP_F32);
    FLOATS(&m, "imputed_value_floats", 5, 6);
    ot_float(&m, "replaced_value_float", NAN);
    EXPECT(run(&m, &two), 3, -4, 0, 6);
    ot_end(&m);
}

static void test_label_encoder(void **state) {
    (void)state;
    struct op_string words[3] = {{"b", 1}, {"zebra", 5}, {"a", 1}};
    const struct op_tensor in = {.dtype = OP_STRING, .rank = 1, .dims = {3}, .data = words};
    struct ot m;
    begin(&m, "LabelEncoder", OP_STRING, "y", OP_I64);
    STRINGS(&m, "keys_strings", "c", "b", "a");
    INTS(&m, "values_int64s", 30, 20, 10);
    ot_int(&m, "default_int64", -7);
    assert_memory_equal(run(&m, &in)->data, ((int64_t[]){20, -7, 10}), 24);
    ot_end(&m);
    const float x[3] = {2.5f, NAN, 9};
    const struct op_tensor floats = {
        .dtype = OP_F32, .rank = 1, .dims = {3}, .data = (void *)(uintptr_t)x};
    begin(&m, "LabelEncoder", OP_F32, "y", OP_STRING);
    FLOATS(&m, "keys_floats", 2.5f, NAN);
    STRINGS(&m, "values_strings", "half", "none");
    const struct op_tensor *y = run(&m, &floats);
    same_text(y, 0, "half");
    same_text(y, 1, "none");
    same_text(y, 2, "_Unused");
    ot_end(&m);
    begin(&m, "LabelEncoder", OP_STRING, "y", OP_I64); /* version 1 */
    STRINGS(&m, "classes_strings", "a", "b");
    assert_memory_equal(run(&m, &in)->data, ((int64_t[]){1, -1, 0}), 24);
    ot_end(&m);
    begin(&m, "LabelEncoder", OP_STRING, "y", OP_I64);
    STRINGS(&m, "keys_strings", "a");
    INTS(&m, "values_int64s", 1, 2);
    refuse(&m, &in, "1 keys and 2 values");
}

static void test_one_hot_encoder(void **state) {
    (void)state;
    const int64_t x[3] = {5, 1, 8};
    const struct op_tensor in = {
        .dtype = OP_I64, .rank = 1, .dims = {3}, .data = (void *)(uintptr_t)x};
    struct ot m;
    begin(&m, "OneHotEncoder", OP_I64, "y", OP_F32);
    INTS(&m, "cats_int64s", 1, 5);
    EXPECT(run(&m, &in), 0, 1, 1, 0, 0, 0);
    ot_end(&m);
    begin(&m, "OneHotEncoder", OP_I64, "y", OP_F32);
    INTS(&m, "cats_int64s", 1, 5);
    ot_int(&m, "zeros", 0);
    refuse(&m, &in, "element 2 is no known category");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_tree_regressor),
        cmocka_unit_test(test_tree_classifier_of_three),
        cmocka_unit_test(test_tree_classifier_of_two_with_one_score),
        cmocka_unit_test(test_malformed_trees_are_refused),
        cmocka_unit_test(test_linear_models),
        cmocka_unit_test(test_svm_regressor),
        cmocka_unit_test(test_svm_classifier),
        cmocka_unit_test(test_features),
        cmocka_unit_test(test_label_encoder),
        cmocka_unit_test(test_one_hot_encoder),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
