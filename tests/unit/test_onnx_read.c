/* The ONNX reader: every form of tensor data, functions, subgraphs, external files, and what a hostile file may try. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tests/unit/op_testing.h"

static const int64_t three[] = {3};

/* y = identity of a constant that is given as the bytes of a TensorProto. */
static const struct op_tensor *run_constant(struct ot *m, struct ot_bytes *tensor, struct op_error *err) {
    ot_begin(m, 17);
    ot_put_string(tensor, 8, "w");
    ot_put_part(&m->graph, 5, tensor);
    ot_node(m, "Identity", "w", "y");
    ot_output(m, "y", OP_F32, -1, NULL);
    return ot_run(m, NULL, NULL, 0, err);
}

static struct ot_bytes typed_tensor(enum op_type dtype, int64_t n) {
    struct ot_bytes b = {0};
    ot_put_int(&b, 1, n);
    ot_put_int(&b, 2, dtype);
    return b;
}

static void test_typed_fields_are_read(void **state) {
    (void)state;
    /* type, field, three values as they lie in memory */
    static const struct {
        enum op_type dtype;
        int field;
        uint64_t values[3];
    } rows[] = {{OP_I8, 5, {1, (uint64_t)-2, 127}}, {OP_U8, 5, {1, 2, 255}},     {OP_I16, 5, {1, (uint64_t)-300, 3}}, {OP_U16, 5, {1, 2, 65535}},
                {OP_I32, 5, {1, (uint64_t)-2, 3}},  {OP_BOOL, 5, {1, 0, 1}},      {OP_F16, 5, {0x3c00, 0, 0xfc00}},    {OP_BF16, 5, {0x3f80, 0, 0xff80}},
                {OP_I64, 7, {1, (uint64_t)-2, 3}},  {OP_U32, 11, {1, 2, 0xffffffff}}, {OP_U64, 11, {1, 2, UINT64_MAX}}};
    for (size_t r = 0; r < sizeof rows / sizeof *rows; r++)
        for (int packed = 0; packed < 2; packed++) {
            struct ot m;
            struct op_error err;
            struct ot_bytes t = typed_tensor(rows[r].dtype, 3), list = {0};
            for (int i = 0; i < 3; i++) {
                if (packed) ot_varint(&list, rows[r].values[i]);
                else ot_put_int(&t, rows[r].field, (int64_t)rows[r].values[i]);
            }
            if (packed) ot_put_part(&t, rows[r].field, &list);
            const struct op_tensor *y = run_constant(&m, &t, &err);
            assert_non_null(y);
            assert_int_equal(y->dtype, rows[r].dtype);
            size_t size = op_type_size(y->dtype);
            for (int i = 0; i < 3; i++) assert_memory_equal((const char *)y->data + (size_t)i * size, &rows[r].values[i], size);
            ot_end(&m);
        }
}

static void test_float_and_double_fields_are_read(void **state) {
    (void)state;
    struct ot m;
    struct op_error err;
    const float f[] = {1.5f, -2, 3};
    const double d[] = {1.5, -2, 3};
    struct ot_bytes t = typed_tensor(OP_F32, 3);
    ot_put_bytes(&t, 4, f, sizeof f);
    const struct op_tensor *y = run_constant(&m, &t, &err);
    assert_non_null(y);
    assert_memory_equal(y->data, f, sizeof f);
    ot_end(&m);
    t = typed_tensor(OP_F64, 3);
    ot_put_bytes(&t, 10, d, sizeof d);
    y = run_constant(&m, &t, &err);
    assert_non_null(y);
    assert_memory_equal(y->data, d, sizeof d);
    ot_end(&m);
}

/* Raw data stands at any offset in the file; the operators want it aligned. */
static void test_raw_data_is_aligned_at_any_offset(void **state) {
    (void)state;
    const double d[] = {1, 2, 3};
    for (size_t shift = 0; shift < 9; shift++) {
        struct ot m;
        struct op_error err;
        struct ot_bytes t = typed_tensor(OP_F64, 3);
        ot_put_bytes(&t, 12, "padding..", shift); /* doc_string */
        ot_put_bytes(&t, 9, d, sizeof d);
        const struct op_tensor *y = run_constant(&m, &t, &err);
        assert_non_null(y);
        assert_int_equal((uintptr_t)y->data % 8, 0);
        assert_memory_equal(y->data, d, sizeof d);
        ot_end(&m);
    }
}

static void expect_refused(struct ot_bytes *t, enum op_status code) {
    struct ot m;
    struct op_error err;
    assert_null(run_constant(&m, t, &err));
    assert_int_equal(err.code, code);
    assert_true(strlen(err.text) > 10);
    ot_end(&m);
}

static void test_bad_tensors_are_refused(void **state) {
    (void)state;
    const float f[] = {1, 2, 3};
    struct ot_bytes t = typed_tensor(OP_F32, 4); /* too few bytes */
    ot_put_bytes(&t, 9, f, sizeof f);
    expect_refused(&t, OP_BAD_MODEL);
    t = typed_tensor(OP_F32, -1);
    expect_refused(&t, OP_BAD_MODEL);
    t = typed_tensor(OP_F32, INT64_MAX / 2);
    expect_refused(&t, OP_LIMIT);
    t = typed_tensor(OP_F32, 1 << 30); /* a short file must not get a gigabyte */
    ot_put_bytes(&t, 4, f, sizeof f);
    expect_refused(&t, OP_BAD_MODEL);
    t = typed_tensor((enum op_type)(OP_I2 + 1), 3);
    expect_refused(&t, OP_UNSUPPORTED);
    t = typed_tensor(OP_I4, 3); /* two bytes hold them */
    ot_put_bytes(&t, 9, f, 3);
    expect_refused(&t, OP_BAD_MODEL);
    t = typed_tensor(OP_U2, 5);
    ot_put_int(&t, 5, 0xff);
    expect_refused(&t, OP_BAD_MODEL);
    t = typed_tensor(OP_STRING, 2);
    ot_put_string(&t, 6, "one");
    expect_refused(&t, OP_BAD_MODEL);
    t = typed_tensor(OP_F32, 1);
    for (int i = 0; i < OP_RANK_MAX; i++) ot_put_int(&t, 1, 1);
    expect_refused(&t, OP_BAD_MODEL);
}

static void build_mlp(struct ot *m) {
    static const float w[6] = {1, 2, 3, 4, 5, 6};
    ot_begin(m, 17);
    ot_input(m, "x", OP_F32, 2, (int64_t[]){-1, 2});
    ot_constant(m, "w", OP_F32, 2, (int64_t[]){2, 3}, w);
    ot_node(m, "MatMul", "x w", "a");
    ot_node(m, "Softmax", "a", "y");
    ot_int(m, "axis", -1);
    ot_output(m, "y", OP_F32, 2, (int64_t[]){-1, 3});
}

/* Cut anywhere, a model is refused or, where the cut hits what is optional, runs; it never does harm. */
static void test_every_prefix_is_harmless(void **state) {
    (void)state;
    struct ot m;
    build_mlp(&m);
    ot_finish(&m);
    int n_good = 0;
    for (size_t n = 0; n < m.file.len; n++) {
        struct op_error err;
        unsigned char *cut = malloc(n ? n : 1); /* of exactly this size: a sanitizer sees a read beyond */
        assert_non_null(cut);
        memcpy(cut, m.file.data, n);
        struct op_model *model = op_model_load_memory(cut, n, NULL, NULL, &err);
        n_good += model != NULL;
        if (!model) assert_true(err.code != OP_OK && err.text[0]);
        op_model_release(model);
        free(cut);
    }
    assert_true(n_good < 64); /* the opset list of the writer comes last */
    ot_end(&m);
}

static struct op_error load_error(struct ot *m) {
    struct op_error err = {0};
    struct op_model *model = ot_load(m, NULL, &err);
    assert_null(model);
    ot_end(m);
    return err;
}

static void test_names_must_resolve_once(void **state) {
    (void)state;
    struct ot m;
    ot_begin(&m, 17);
    ot_node(&m, "Relu", "nowhere", "y");
    ot_output(&m, "y", OP_F32, -1, NULL);
    struct op_error err = load_error(&m);
    assert_int_equal(err.code, OP_BAD_MODEL);
    assert_non_null(strstr(err.text, "nowhere"));
    ot_begin(&m, 17);
    ot_input(&m, "x", OP_F32, 1, three);
    ot_node(&m, "Relu", "x", "x");
    err = load_error(&m);
    assert_int_equal(err.code, OP_BAD_MODEL);
    assert_non_null(strstr(err.text, "twice"));
    ot_begin(&m, 17);
    ot_output(&m, "y", OP_F32, -1, NULL);
    err = load_error(&m);
    assert_int_equal(err.code, OP_BAD_MODEL);
}

static void test_unknown_operator_is_named(void **state) {
    (void)state;
    struct ot m;
    ot_begin(&m, 17);
    ot_input(&m, "x", OP_F32, 1, three);
    ot_node(&m, "Frobnicate", "x", "y");
    ot_output(&m, "y", OP_F32, -1, NULL);
    struct op_error err = load_error(&m);
    assert_int_equal(err.code, OP_UNSUPPORTED);
    assert_non_null(strstr(err.text, "Frobnicate"));
    ot_begin(&m, 17);
    ot_input(&m, "x", OP_F32, 1, three);
    ot_node(&m, "Relu", "x x", "y");
    ot_output(&m, "y", OP_F32, -1, NULL);
    err = load_error(&m);
    assert_int_equal(err.code, OP_BAD_MODEL);
    assert_non_null(strstr(err.text, "2 inputs"));
}

/* A newer opset is no obstacle where the operators have not changed. */
static void test_newer_opset_loads(void **state) {
    (void)state;
    struct ot m;
    struct op_error err;
    const float x[] = {-1, 0, 2};
    const struct op_tensor in = {.dtype = OP_F32, .rank = 1, .dims = {3}, .data = (void *)(uintptr_t)x};
    ot_begin(&m, 60);
    ot_input(&m, "x", OP_F32, 1, three);
    ot_node(&m, "Relu", "x", "y");
    ot_output(&m, "y", OP_F32, -1, NULL);
    const struct op_tensor *y = ot_run(&m, NULL, &in, 1, &err);
    assert_non_null(y);
    assert_true(((float *)y->data)[0] == 0 && ((float *)y->data)[2] == 2);
    ot_end(&m);
}

/* --- functions --------------------------------------------------------------------------------- */

static void put_node(struct ot_bytes *to, int field, const char *domain, const char *op_type, const char *in, const char *out, const struct ot_bytes *attr) {
    struct ot_bytes n = {0};
    ot_names(&n, 1, in);
    ot_names(&n, 2, out);
    ot_put_string(&n, 4, op_type);
    if (attr) ot_put_bytes(&n, 5, attr->data, attr->len);
    ot_put_string(&n, 7, domain);
    ot_put_part(to, field, &n);
}

static void put_opset(struct ot_bytes *to, const char *domain, int version) {
    struct ot_bytes o = {0};
    ot_put_string(&o, 1, domain);
    ot_put_int(&o, 2, version);
    ot_put_part(to, 9, &o);
}

/* leak(p; slope = 0.5) = LeakyRelu(p, alpha = slope) + p; the call may give slope. */
static void build_leak(struct ot *m, bool give) {
    struct ot_bytes fn = {0}, dflt = ot_attr("slope", 1), ref = {0};
    const float half = 0.5f;
    ot_put_string(&fn, 1, "leak");
    ot_put_string(&fn, 10, "quern");
    ot_put_string(&fn, 4, "p");
    ot_put_string(&fn, 5, "q");
    put_opset(&fn, "", 16);
    ot_varint(&dflt, 2 << 3 | 5);
    ot_put(&dflt, &half, sizeof half);
    ot_put_part(&fn, 11, &dflt);
    ot_put_string(&ref, 1, "alpha");
    ot_put_string(&ref, 21, "slope");
    ot_put_int(&ref, 20, 1);
    put_node(&fn, 7, "", "LeakyRelu", "p", "h", &ref);
    put_node(&fn, 7, "", "Add", "h p", "q", NULL);
    free(ref.data);
    ot_begin(m, 17);
    ot_put_part(&m->functions, 25, &fn);
    ot_input(m, "x", OP_F32, 1, three);
    ot_node_of(m, "quern", "leak", "x", "m");
    if (give) ot_float(m, "slope", 0.25f);
    ot_node_of(m, "quern", "leak", "m", "y");
    ot_output(m, "y", OP_F32, -1, NULL);
}

static void test_functions_expand_with_their_attributes(void **state) {
    (void)state;
    float x[] = {-8, 0, 2};
    const struct op_tensor in = {.dtype = OP_F32, .rank = 1, .dims = {3}, .data = x};
    for (int give = 0; give < 2; give++) {
        struct ot m;
        struct op_error err;
        build_leak(&m, give);
        const struct op_tensor *y = ot_run(&m, NULL, &in, 1, &err);
        assert_non_null(y);
        const float *v = y->data;
        assert_true(v[0] == (give ? -15.0f : -18.0f)); /* -8 → -10 or -12, then half of it on top */
        assert_true(v[2] == 8);
        ot_end(&m);
    }
}

/* Each of n functions calls the next one twice: 2^n nodes if nobody counts. */
static void test_exponential_functions_are_refused(void **state) {
    (void)state;
    struct ot m;
    char name[16], next[16];
    ot_begin(&m, 17);
    for (int i = 0; i < 40; i++) {
        struct ot_bytes fn = {0};
        snprintf(name, sizeof name, "f%d", i);
        snprintf(next, sizeof next, "f%d", i + 1);
        ot_put_string(&fn, 1, name);
        ot_put_string(&fn, 10, "quern");
        ot_put_string(&fn, 4, "p");
        ot_put_string(&fn, 5, "q");
        put_opset(&fn, "", 17);
        put_node(&fn, 7, i < 39 ? "quern" : "", i < 39 ? next : "Relu", "p", "h", NULL);
        put_node(&fn, 7, i < 39 ? "quern" : "", i < 39 ? next : "Relu", "h", "q", NULL);
        ot_put_part(&m.functions, 25, &fn);
    }
    ot_input(&m, "x", OP_F32, 1, three);
    ot_node_of(&m, "quern", "f0", "x", "y");
    ot_output(&m, "y", OP_F32, -1, NULL);
    assert_int_equal(load_error(&m).code, OP_LIMIT);
}

static void test_recursive_function_is_refused(void **state) {
    (void)state;
    struct ot m;
    struct ot_bytes fn = {0};
    ot_begin(&m, 17);
    ot_put_string(&fn, 1, "f");
    ot_put_string(&fn, 10, "quern");
    ot_put_string(&fn, 4, "p");
    ot_put_string(&fn, 5, "q");
    put_node(&fn, 7, "quern", "f", "p", "q", NULL);
    ot_put_part(&m.functions, 25, &fn);
    ot_input(&m, "x", OP_F32, 1, three);
    ot_node_of(&m, "quern", "f", "x", "y");
    assert_int_equal(load_error(&m).code, OP_LIMIT);
}

static void test_deep_subgraphs_are_refused(void **state) {
    (void)state;
    struct ot inner, outer;
    ot_begin(&inner, 17);
    ot_node(&inner, "Relu", "x", "y0");
    ot_output(&inner, "y0", OP_F32, -1, NULL);
    for (int i = 1; i <= 70; i++) {
        char name[16];
        struct ot twin;
        snprintf(name, sizeof name, "y%d", i);
        ot_begin(&outer, 17);
        ot_begin(&twin, 17);
        ot_node(&twin, "Relu", "x", "z");
        ot_output(&twin, "z", OP_F32, -1, NULL);
        if (i == 70) {
            ot_input(&outer, "x", OP_F32, 1, three);
            ot_input(&outer, "c", OP_BOOL, 0, NULL);
        }
        ot_node(&outer, "If", "c", name);
        ot_graph_attr(&outer, "then_branch", &inner);
        ot_graph_attr(&outer, "else_branch", &twin);
        ot_output(&outer, name, OP_F32, -1, NULL);
        inner = outer;
    }
    assert_int_equal(load_error(&outer).code, OP_LIMIT);
}

/* --- inputs with initializers, sparse, strings ------------------------------------------------- */

static void test_initialized_inputs_come_last(void **state) {
    (void)state;
    struct ot m;
    struct op_error err;
    const float w[] = {1, 2, 3};
    ot_begin(&m, 17);
    ot_constant(&m, "w", OP_F32, 1, three, w);
    ot_input(&m, "w", OP_F32, 1, three);
    ot_input(&m, "x", OP_F32, 2, (int64_t[]){-1, 3});
    ot_node(&m, "Add", "x w", "y");
    ot_output(&m, "y", OP_F32, -1, NULL);
    struct op_model *model = ot_load(&m, NULL, &err);
    assert_non_null(model);
    assert_int_equal(op_model_n_inputs(model), 2);
    assert_string_equal(op_model_input(model, 0)->name, "x");
    assert_false(op_model_input(model, 0)->optional);
    assert_int_equal(op_model_input(model, 0)->dims[0], -1);
    assert_string_equal(op_model_input(model, 0)->symbols[0], "d0");
    assert_string_equal(op_model_input(model, 1)->name, "w");
    assert_true(op_model_input(model, 1)->optional);
    assert_null(op_model_input(model, 2));
    op_model_release(model);
    ot_end(&m);
}

static void test_sparse_initializer_becomes_dense(void **state) {
    (void)state;
    for (int bad = 0; bad < 2; bad++) {
        struct ot m;
        struct op_error err;
        const float v[] = {5, 7};
        const int64_t at[] = {1, bad ? 6 : 5};
        struct ot_bytes sparse = {0}, values = ot_tensor("w", OP_F32, 1, (int64_t[]){2}, v), indices = ot_tensor("i", OP_I64, 1, (int64_t[]){2}, at);
        ot_put_part(&sparse, 1, &values);
        ot_put_part(&sparse, 2, &indices);
        ot_put_int(&sparse, 3, 2);
        ot_put_int(&sparse, 3, 3);
        ot_begin(&m, 17);
        ot_put_part(&m.graph, 15, &sparse);
        ot_node(&m, "Identity", "w", "y");
        ot_output(&m, "y", OP_F32, -1, NULL);
        const struct op_tensor *y = ot_run(&m, NULL, NULL, 0, &err);
        if (bad) assert_int_equal(err.code, OP_BAD_MODEL);
        else {
            assert_non_null(y);
            assert_memory_equal(y->data, ((float[]){0, 5, 0, 0, 0, 7}), 24);
        }
        ot_end(&m);
    }
}

/* --- external data ----------------------------------------------------------------------------- */

static struct ot_bytes external_tensor(const char *location, int64_t offset, int64_t length) {
    struct ot_bytes t = typed_tensor(OP_F32, 3), e = {0};
    char number[24];
    const char *keys[] = {"location", "offset", "length"};
    for (int i = 0; i < 3; i++) {
        snprintf(number, sizeof number, "%lld", (long long)(i == 1 ? offset : length));
        ot_put_string(&e, 1, keys[i]);
        ot_put_string(&e, 2, i ? number : location);
        ot_put_part(&t, 13, &e);
    }
    ot_put_int(&t, 14, 1);
    return t;
}

static enum op_status load_external(const char *folder, const char *location, int64_t offset, int64_t length) {
    struct ot m;
    struct op_error err = {0};
    struct ot_bytes t = external_tensor(location, offset, length);
    ot_begin(&m, 17);
    ot_put_string(&t, 8, "w");
    ot_put_part(&m.graph, 5, &t);
    ot_node(&m, "Identity", "w", "y");
    ot_output(&m, "y", OP_F32, -1, NULL);
    ot_finish(&m);
    m.model = op_model_load_memory(m.file.data, m.file.len, folder, NULL, &err);
    const struct op_tensor *y = m.model ? ot_run(&m, NULL, NULL, 0, &err) : NULL;
    if (y) assert_memory_equal(y->data, ((float[]){1, 2, 3}), 12);
    ot_end(&m);
    return err.code;
}

static void write_file(const char *path) {
    const float f[] = {9, 1, 2, 3};
    FILE *to = fopen(path, "wb");
    assert_non_null(to);
    assert_int_equal(fwrite(f, sizeof f, 1, to), 1);
    fclose(to);
}

static void test_external_data_stays_in_the_folder(void **state) {
    (void)state;
    char base[] = "/tmp/quern-test-XXXXXX", path[64], other[64];
    assert_non_null(mkdtemp(base));
    snprintf(path, sizeof path, "%s/model", base);
    assert_int_equal(mkdir(path, 0700), 0);
    snprintf(other, sizeof other, "%s/secret", base);
    write_file(other);
    snprintf(path, sizeof path, "%s/model/w.bin", base);
    write_file(path);
    snprintf(path, sizeof path, "%s/model", base);
    assert_int_equal(load_external(path, "w.bin", 4, 12), OP_OK);
    assert_int_equal(load_external(path, "./w.bin", 4, 12), OP_OK);
    assert_int_equal(load_external(path, "w.bin", 8, 12), OP_BAD_MODEL);
    assert_int_equal(load_external(path, "w.bin", INT64_MAX, 12), OP_BAD_MODEL);
    assert_int_equal(load_external(path, "w.bin", 4, 8), OP_BAD_MODEL);
    assert_int_equal(load_external(path, "../secret", 4, 12), OP_IO);
    assert_int_equal(load_external(path, other, 4, 12), OP_IO);
    assert_int_equal(load_external(path, "absent", 4, 12), OP_IO);
    assert_int_equal(load_external(NULL, "w.bin", 4, 12), OP_IO);
    char link_path[80];
    snprintf(link_path, sizeof link_path, "%s/model/soft", base);
    assert_int_equal(symlink("w.bin", link_path), 0);
    assert_int_equal(load_external(path, "soft", 4, 12), OP_IO);
    unlink(link_path);
    snprintf(link_path, sizeof link_path, "%s/model/hard", base);
    assert_int_equal(link(other, link_path), 0);
    assert_int_equal(load_external(path, "hard", 4, 12), OP_IO);
    unlink(link_path);
    assert_int_equal(mkfifo(link_path, 0600), 0);
    assert_int_equal(load_external(path, "hard", 4, 12), OP_IO);
    unlink(link_path);
    unlink(other);
    snprintf(path, sizeof path, "%s/model/w.bin", base);
    unlink(path);
    snprintf(path, sizeof path, "%s/model", base);
    rmdir(path);
    rmdir(base);
}

static void test_model_file_errors_name_the_file(void **state) {
    (void)state;
    struct op_error err;
    assert_null(op_model_load("/nonexistent/model.onnx", NULL, &err));
    assert_int_equal(err.code, OP_IO);
    assert_non_null(strstr(err.text, "/nonexistent/model.onnx"));
    assert_null(op_model_load("/dev", NULL, &err));
    assert_int_equal(err.code, OP_IO);
    const struct op_load_options options = {.cpu = "z80"};
    assert_null(op_model_load("/nonexistent/model.onnx", &options, &err));
    assert_int_equal(err.code, OP_UNSUPPORTED);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_typed_fields_are_read),
        cmocka_unit_test(test_float_and_double_fields_are_read),
        cmocka_unit_test(test_raw_data_is_aligned_at_any_offset),
        cmocka_unit_test(test_bad_tensors_are_refused),
        cmocka_unit_test(test_every_prefix_is_harmless),
        cmocka_unit_test(test_names_must_resolve_once),
        cmocka_unit_test(test_unknown_operator_is_named),
        cmocka_unit_test(test_newer_opset_loads),
        cmocka_unit_test(test_functions_expand_with_their_attributes),
        cmocka_unit_test(test_exponential_functions_are_refused),
        cmocka_unit_test(test_recursive_function_is_refused),
        cmocka_unit_test(test_deep_subgraphs_are_refused),
        cmocka_unit_test(test_initialized_inputs_come_last),
        cmocka_unit_test(test_sparse_initializer_becomes_dense),
        cmocka_unit_test(test_external_data_stays_in_the_folder),
        cmocka_unit_test(test_model_file_errors_name_the_file),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
