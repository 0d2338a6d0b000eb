/* Building a graph, running it, writing it, reading it again, extending it. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

#include "ops/ops_train.h"

static struct op_builder *affine(void) {
    static float w[6] = {1, 2, 3, 4, 5, 6}, bias[2] = {0.5f, -0.5f};
    struct op_builder *b = op_builder_create(17);
    op_builder_input(b, "x", OP_F32, 2, (int64_t[]){-1, 3}, (const char *[]){"N", NULL});
    op_builder_weight(b, "w", &(struct op_tensor){.dtype = OP_F32, .rank = 2, .dims = {3, 2}, .data = w});
    op_builder_weight(b, "b", &(struct op_tensor){.dtype = OP_F32, .rank = 1, .dims = {2}, .data = bias});
    op_builder_node(b, "Gemm", (const char *[]){"x", "w", "b"}, 3, (const char *[]){"h"}, 1, &(struct op_arg){.name = "alpha", .kind = OP_ARG_FLOAT, .f = 2}, 1);
    return b;
}

static void expect(struct op_model *m, const float *wanted, int n) {
    struct op_error err;
    float x[6] = {1, 0, 0, 0, 1, 0};
    const struct op_tensor *out;
    struct op_session *s = op_session_create(m, NULL, &err);
    assert_non_null(s);
    assert_int_equal(op_session_run(s, &(struct op_tensor){.dtype = OP_F32, .rank = 2, .dims = {2, 3}, .data = x}, 1, &out, &err), OP_OK);
    assert_int_equal(op_tensor_count(&out[0]), n);
    for (int i = 0; i < n; i++) assert_float_equal(((const float *)out[0].data)[i], wanted[i], 1e-6);
    op_session_destroy(s);
}

static void test_built_saved_loaded_extended(void **state) {
    (void)state;
    struct op_error err;
    char folder[] = "/tmp/quern-builder-XXXXXX", path[64];
    int64_t dims[OP_RANK_MAX];
    enum op_type dtype;
    assert_non_null(mkdtemp(folder));
    snprintf(path, sizeof path, "%s/m.onnx", folder);
    struct op_builder *b = affine();
    assert_int_equal(op_builder_shape(b, "h", &dtype, dims), 2);
    assert_int_equal(dims[0], -1);
    assert_int_equal(dims[1], 2);
    assert_int_equal(op_builder_shape(b, "nothing", &dtype, dims), -1);
    op_builder_output(b, "h");
    struct op_model *m = op_builder_finish(b, &err);
    assert_non_null(m);
    expect(m, (float[]){2.5f, 3.5f, 6.5f, 7.5f}, 4);
    assert_int_equal(op_model_output(m, 0)->rank, 2);
    assert_int_equal(op_model_output(m, 0)->dims[1], 2);
    assert_int_equal(op_model_save(m, path, (const char *[]){"quern.seed"}, (const char *[]){"7"}, 1, &err), OP_OK);
    op_model_release(m);

    m = op_model_load(path, NULL, &err);
    assert_non_null(m);
    assert_string_equal(op_model_metadata(m, "quern.seed"), "7");
    expect(m, (float[]){2.5f, 3.5f, 6.5f, 7.5f}, 4);
    b = op_builder_from(m, &err);
    assert_non_null(b);
    op_builder_clear_outputs(b);
    op_builder_node(b, "Neg", (const char *[]){"h"}, 1, (const char *[]){"y"}, 1, NULL, 0);
    op_builder_output(b, "y");
    struct op_model *longer = op_builder_finish(b, &err);
    assert_non_null(longer);
    expect(longer, (float[]){-2.5f, -3.5f, -6.5f, -7.5f}, 4);
    op_model_release(longer);
    op_model_release(m);
    unlink(path);
    rmdir(folder);
}

static void test_errors_are_named(void **state) {
    (void)state;
    struct op_error err;
    assert_null(op_builder_finish(affine(), &err));
    assert_non_null(strstr(err.text, "no output"));
    struct op_builder *b = affine();
    op_builder_node(b, "Frobnicate", (const char *[]){"h"}, 1, (const char *[]){"y"}, 1, NULL, 0);
    op_builder_output(b, "y");
    assert_null(op_builder_finish(b, &err));
    assert_non_null(strstr(err.text, "Frobnicate"));
    b = affine();
    op_builder_output(b, "h");
    struct op_model *m = op_builder_finish(b, &err);
    assert_int_equal(op_model_save(m, "/nonexistent/m.onnx", NULL, NULL, 0, &err), OP_IO);
    assert_non_null(strstr(err.text, "/nonexistent/m.onnx"));
    op_model_release(m);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_built_saved_loaded_extended), cmocka_unit_test(test_errors_are_named)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
