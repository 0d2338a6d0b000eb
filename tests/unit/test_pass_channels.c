/* The pass channels_last: what it turns gives what the same file gives as a reference (plain C, no passes), runs as the operators that are
 * expected, and gives a row the same bits in any batch and on two threads, on every level of this machine. */
#include "op_testing.h"

#include "ops/kern/kern.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>

#include <cmocka.h>

#define DIMS(...) ((const int64_t[]){__VA_ARGS__})

static uint32_t seed = 815;
static void fill(float *x, int64_t n, float lo, float hi) {
    for (int64_t i = 0; i < n; i++) {
        seed = seed * 1664525u + 1013904223u;
        x[i] = lo + (hi - lo) * (float)(seed >> 8) * 0x1p-24f;
    }
}

static void constant(struct ot *m, const char *name, int rank, const int64_t *dims, float lo, float hi) {
    int64_t n = 1;
    for (int i = 0; i < rank; i++) n *= dims[i];
    float *x = malloc((size_t)n * sizeof *x);
    assert_non_null(x);
    fill(x, n, lo, hi);
    ot_constant(m, name, OP_F32, rank, dims, x);
    free(x);
}

static void conv(struct ot *m, const char *in, const char *out, int64_t oc, int64_t ic, int64_t group, int64_t kernel, int64_t stride) {
    char names[64], w[16], b[16];
    const float scale = 1.0f / sqrtf((float)(ic / group * kernel * kernel));
    snprintf(w, sizeof w, "%.8s_w", out);
    snprintf(b, sizeof b, "%.8s_b", out);
    constant(m, w, 4, DIMS(oc, ic / group, kernel, kernel), -scale, scale);
    constant(m, b, 1, DIMS(oc), -1, 1);
    snprintf(names, sizeof names, "%s %s %s", in, w, b);
    ot_node(m, "Conv", names, out);
    ot_int(m, "group", group);
    ot_ints(m, "strides", 2, DIMS(stride, stride));
    ot_ints(m, "pads", 4, DIMS(kernel / 2, kernel / 2, kernel / 2, kernel / 2));
}

static char ran[1024]; /* the operators of the last run, in order */
static void note(void *user, const char *op_type, const char *name, uint64_t ns, double flops, double bytes) {
    (void)user, (void)name, (void)ns, (void)flops, (void)bytes;
    const char *text = strncmp(op_type, "ChannelsLast", 12) ? op_type : op_type + 12;
    snprintf(ran + strlen(ran), sizeof ran - strlen(ran), "%s%s%s", *ran ? " " : "", text == op_type ? "" : "_", text);
}

static void near(const struct op_tensor *want, const struct op_tensor *got) {
    assert_int_equal(want->rank, got->rank);
    assert_memory_equal(want->dims, got->dims, (size_t)want->rank * sizeof(int64_t));
    for (int64_t i = 0; i < op_tensor_count(want); i++) {
        const double x = (double)((float *)want->data)[i], y = (double)((float *)got->data)[i];
        if (!(fabs(x - y) <= 1e-4 * (1 + fabs(x)))) fail_msg("element %ld is %g, expected %g", (long)i, y, x);
    }
}

static const struct op_tensor *run(struct op_model *m, int threads, const struct op_tensor *in, struct op_session **s) {
    const struct op_session_options options = {.n_threads = threads, .on_node = note};
    struct op_error err = {0};
    const struct op_tensor *out;
    *ran = 0;
    *s = op_session_create(m, &options, &err);
    if (!*s || op_session_run(*s, in, 1, &out, &err) != OP_OK) fail_msg("run: %s", err.text);
    return out;
}

/* x is (3, channels, height, width). */
static void check(struct ot *m, int64_t channels, int64_t height, int64_t width, const char *expected) {
    static const char *const levels[] = {NULL, "generic", "avx2", "avx512"};
    struct op_tensor x = {.dtype = OP_F32, .rank = 4, .dims = {3, channels, height, width}}, one = x;
    struct op_error err = {0};
    struct op_session *s[4];
    x.data = malloc((size_t)op_tensor_bytes(&x));
    assert_non_null(x.data);
    fill(x.data, op_tensor_count(&x), -2, 2);
    one.dims[0] = 1;
    one.data = (float *)x.data + op_tensor_count(&x) / 3;
    struct op_model *plain = ot_load(m, &(struct op_load_options){.reference = true}, &err);
    if (!plain) fail_msg("load: %s", err.text);
    const struct op_tensor *want = run(plain, 1, &x, &s[0]);
    const void *first_bits = NULL;
    struct op_session *first = NULL;
    struct op_model *first_model = NULL;
    for (size_t l = 0; l < sizeof levels / sizeof *levels; l++) {
        if (levels[l] && !k_find(levels[l])) continue;
        struct op_model *turned = ot_load(m, &(struct op_load_options){.cpu = levels[l]}, &err);
        if (!turned) fail_msg("load: %s", err.text);
        const struct op_tensor *got = run(turned, 1, &x, &s[1]);
        assert_string_equal(ran, expected);
        const struct op_tensor *threads = run(turned, 2, &x, &s[2]), *row = run(turned, 1, &one, &s[3]);
        const size_t bytes = (size_t)op_tensor_bytes(got);
        near(want, got);
        assert_memory_equal(got->data, threads->data, bytes);
        assert_memory_equal((char *)got->data + bytes / 3, row->data, bytes / 3);
        if (first_bits) assert_memory_equal(first_bits, got->data, bytes);
        op_session_destroy(s[2]), op_session_destroy(s[3]);
        if (!first) {
            first_bits = got->data;
            first = s[1];
            first_model = turned;
        } else {
            op_session_destroy(s[1]);
            op_model_release(turned);
        }
    }
    op_session_destroy(s[0]), op_session_destroy(first);
    op_model_release(plain), op_model_release(first_model);
    free(x.data);
    ot_end(m);
}

static void begin(struct ot *m, int64_t channels) {
    ot_begin(m, 17);
    ot_input(m, "x", OP_F32, 4, DIMS(-1, channels, -1, -1));
}

/* An inverted residual, with a first layer that takes the picture as it comes and an end without images. */
static void test_mobile_block(void **state) {
    (void)state;
    struct ot m;
    begin(&m, 3);
    conv(&m, "x", "stem", 24, 3, 1, 3, 2);
    ot_node(&m, "Relu", "stem", "s");
    conv(&m, "s", "wide", 72, 24, 1, 1, 1);
    ot_node(&m, "HardSwish", "wide", "wa");
    conv(&m, "wa", "deep", 72, 72, 72, 5, 1);
    ot_node(&m, "Relu", "deep", "da");
    conv(&m, "da", "thin", 24, 72, 1, 1, 1);
    ot_node(&m, "Add", "thin s", "sum");
    ot_node(&m, "GlobalAveragePool", "sum", "mean");
    ot_node(&m, "Flatten", "mean", "y");
    ot_output(&m, "y", OP_F32, -1, NULL);
    check(&m, 3, 29, 37, "_Conv _Strips _GlobalAveragePool Transpose Flatten");
}

/* Strides, groups, pools, a sum that broadcasts, odd numbers of channels, outputs inside the region. */
static void test_kinds_of_nodes(void **state) {
    (void)state;
    struct ot m;
    begin(&m, 5);
    conv(&m, "x", "a", 21, 5, 1, 3, 1);
    conv(&m, "a", "b", 12, 21, 3, 3, 2);
    ot_node(&m, "MaxPool", "b", "p");
    ot_ints(&m, "kernel_shape", 2, DIMS(3, 3));
    ot_ints(&m, "pads", 4, DIMS(1, 1, 1, 1));
    ot_node(&m, "AveragePool", "b", "q");
    ot_ints(&m, "kernel_shape", 2, DIMS(3, 3));
    ot_ints(&m, "pads", 4, DIMS(1, 1, 1, 1));
    ot_int(&m, "count_include_pad", 1);
    ot_node(&m, "Concat", "p q b", "c");
    ot_int(&m, "axis", -3);
    constant(&m, "gain", 3, DIMS(36, 1, 1), 0.5f, 2);
    ot_node(&m, "Mul", "c gain", "g");
    conv(&m, "g", "d", 36, 36, 36, 3, 2);
    conv(&m, "d", "e", 17, 36, 1, 1, 1);
    ot_node(&m, "GlobalAveragePool", "e", "mean");
    ot_node(&m, "Add", "e mean", "y");
    conv(&m, "y", "z", 9, 17, 1, 1, 1);
    ot_output(&m, "z", OP_F32, -1, NULL);
    check(&m, 5, 13, 11, "Transpose _Conv _Conv _MaxPool _AveragePool Concat Mul _Strips _GlobalAveragePool Add _Conv Transpose");
}

/* A sum that a convolution takes with it, whose other side is one pixel, and a mean over rows and columns. */
static void test_broadcast_addend(void **state) {
    (void)state;
    struct ot m;
    begin(&m, 4);
    conv(&m, "x", "a", 16, 4, 1, 3, 2);
    ot_node(&m, "ReduceMean", "a", "mean");
    ot_ints(&m, "axes", 2, DIMS(-1, 2));
    conv(&m, "a", "b", 16, 16, 1, 1, 1);
    ot_node(&m, "Add", "b mean", "s");
    ot_node(&m, "Sigmoid", "s", "t");
    conv(&m, "t", "y", 8, 16, 1, 5, 1);
    ot_output(&m, "y", OP_F32, -1, NULL);
    check(&m, 4, 9, 8, "_Conv _GlobalAveragePool _Conv _Conv Transpose");
}

/* What leaves the region comes back once, whoever uses it; one convolution alone is not worth it. */
static void test_borders(void **state) {
    (void)state;
    struct ot m;
    begin(&m, 3);
    conv(&m, "x", "a", 16, 3, 1, 3, 1);
    conv(&m, "a", "b", 16, 16, 1, 3, 1);
    conv(&m, "b", "c", 16, 16, 1, 3, 1);
    ot_node(&m, "Softmax", "c", "d");
    ot_int(&m, "axis", 1);
    ot_node(&m, "Softmax", "c", "e");
    ot_int(&m, "axis", 3);
    ot_node(&m, "Sub", "d e", "y");
    ot_output(&m, "y", OP_F32, -1, NULL);
    check(&m, 3, 8, 9, "_Conv _Conv _Conv Transpose Softmax Softmax Sub");
    begin(&m, 8);
    conv(&m, "x", "a", 8, 8, 1, 3, 1);
    ot_node(&m, "Softmax", "a", "y");
    ot_output(&m, "y", OP_F32, -1, NULL);
    check(&m, 8, 8, 9, "Conv Softmax");
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_mobile_block), cmocka_unit_test(test_kinds_of_nodes), cmocka_unit_test(test_broadcast_addend),
                                       cmocka_unit_test(test_borders)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
