/* The packed-weight cache: found again, used in place, never believed where it does not fit, never the end of a load. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <dirent.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include "ops/kern/kern.h"
#include "ops/model.h"
#include "tests/unit/op_testing.h"

enum { IN = 1024, ROWS = 3, OUT = 64 };

static char folder[64], cache[128], model_path[128];
static float x[ROWS * IN];

/* All that is packed, a convolution by Winograd and one by rows, products, a recurrent layer; and a table that is used as it lies. `first` is the first
 * weight of each: models of the same sizes. */
static void write_model(float first) {
    static const struct {
        const char *name; /* of several lengths, so that not all data lies aligned in the file */
        int rank;
        int64_t dims[4];
    } weights[] = {{"c1", 4, {32, 16, 3, 3}}, {"c_2", 4, {16, 32, 1, 1}}, {"w__1", 2, {IN, 160}}, {"rw", 3, {1, 256, 160}},
                   {"rr", 3, {1, 256, OUT}},  {"table", 2, {200, OUT}},     {"w2", 2, {OUT, OUT}}};
    const int64_t image[] = {-1, 16, 8, 8}, flat[] = {-1, IN}, steps[] = {-1, 1, 160}, end[] = {-1, OUT}, index[] = {3};
    struct ot m;
    ot_begin(&m, 17);
    ot_input(&m, "x", OP_F32, 2, (int64_t[]){-1, IN});
    for (size_t i = 0; i < sizeof weights / sizeof *weights; i++) {
        int64_t n = 1;
        for (int d = 0; d < weights[i].rank; d++) n *= weights[i].dims[d];
        float *w = malloc((size_t)n * sizeof *w);
        assert_non_null(w);
        for (int64_t k = 0; k < n; k++) w[k] = (float)((k * 37 + (int64_t)i) % 101 - 50) / 400;
        w[0] = first;
        ot_constant(&m, weights[i].name, OP_F32, weights[i].rank, weights[i].dims, w);
        free(w);
    }
    ot_constant(&m, "image", OP_I64, 1, (int64_t[]){4}, image);
    ot_constant(&m, "flat", OP_I64, 1, (int64_t[]){2}, flat);
    ot_constant(&m, "steps", OP_I64, 1, (int64_t[]){3}, steps);
    ot_constant(&m, "end", OP_I64, 1, (int64_t[]){2}, end);
    ot_constant(&m, "index", OP_I64, 1, (int64_t[]){1}, index);
    ot_node(&m, "Reshape", "x image", "a");
    ot_node(&m, "Conv", "a c1", "b");
    ot_ints(&m, "pads", 4, (int64_t[]){1, 1, 1, 1});
    ot_node(&m, "Conv", "b c_2", "c");
    ot_node(&m, "Reshape", "c flat", "d");
    ot_node(&m, "MatMul", "d w__1", "e");
    ot_node(&m, "Tanh", "e", "f");
    ot_node(&m, "Reshape", "f steps", "g");
    ot_node(&m, "LSTM", "g rw rr", "h . .");
    ot_int(&m, "hidden_size", OUT);
    ot_node(&m, "Reshape", "h end", "i");
    ot_node(&m, "Gather", "table index", "j");
    ot_node(&m, "Add", "i j", "k");
    ot_node(&m, "Gemm", "k w2", "y");
    ot_output(&m, "y", OP_F32, -1, NULL);
    ot_finish(&m);
    char temporary[160];
    snprintf(temporary, sizeof temporary, "%s.new", model_path);
    FILE *to = fopen(temporary, "wb");
    assert_non_null(to);
    assert_int_equal(fwrite(m.file.data, 1, m.file.len, to), m.file.len);
    assert_int_equal(fclose(to), 0);
    assert_int_equal(rename(temporary, model_path), 0);
    ot_end(&m);
}

/* Loads and runs into y; says whether all that is packed came from the cache. */
static bool run(const struct op_load_options *options, float *y) {
    struct op_error err;
    const struct op_tensor in = {.dtype = OP_F32, .rank = 2, .dims = {ROWS, IN}, .data = x}, *out;
    struct op_model *m = op_model_load(model_path, options, &err);
    if (!m) fail_msg("%s", err.text);
    const bool complete = m->packs.complete && m->packs.n > 0;
    struct op_session *s = op_session_create(m, NULL, &err);
    assert_non_null(s);
    if (op_session_run(s, &in, 1, &out, &err) != OP_OK) fail_msg("%s", err.text);
    memcpy(y, out->data, ROWS * OUT * sizeof *y);
    op_session_destroy(s);
    op_model_release(m);
    return complete;
}

/* The only file in the cache folder that ends so; "" if there is none. */
static const char *cached_file(const char *end) {
    static char path[512];
    path[0] = 0;
    DIR *d = opendir(cache);
    for (struct dirent *e; d && (e = readdir(d));) {
        const size_t n = strlen(e->d_name), k = strlen(end);
        if (n < k || strcmp(e->d_name + n - k, end) != 0) continue;
        assert_int_equal(path[0], 0);
        snprintf(path, sizeof path, "%s/%s", cache, e->d_name);
    }
    if (d) closedir(d);
    return path;
}

static void clear_cache(void) {
    char path[600];
    DIR *d = opendir(cache);
    for (struct dirent *e; d && (e = readdir(d));) {
        if (e->d_name[0] == '.') continue;
        snprintf(path, sizeof path, "%s/%s", cache, e->d_name);
        assert_int_equal(unlink(path), 0);
    }
    if (d) closedir(d);
}

static int setup(void **state) {
    (void)state;
    snprintf(folder, sizeof folder, "/tmp/quern-test-cache-XXXXXX");
    if (!mkdtemp(folder)) return -1;
    snprintf(cache, sizeof cache, "%s/cache", folder);
    snprintf(model_path, sizeof model_path, "%s/model.onnx", folder);
    for (int i = 0; i < ROWS * IN; i++) x[i] = (float)((i * 29) % 17 - 8) / 8;
    write_model(0.25f);
    return 0;
}

static int teardown(void **state) {
    (void)state;
    clear_cache();
    rmdir(cache);
    unlink(model_path);
    return rmdir(folder);
}

static void test_a_second_load_finds_what_the_first_has_packed(void **state) {
    (void)state;
    float plain[ROWS * OUT], y[ROWS * OUT];
    const struct op_load_options with = {.cache = cache}, generic = {.cache = cache, .cpu = "generic"};
    assert_false(run(NULL, plain));
    assert_false(run(&with, y));
    assert_memory_equal(y, plain, sizeof y);
    assert_true(run(&with, y));
    assert_memory_equal(y, plain, sizeof y);
    if (strcmp(op_isa(), "generic") != 0) { /* another level is another file */
        assert_false(run(&generic, y));
        assert_true(run(&generic, y));
    }
    assert_true(run(&with, y));
    const struct op_load_options reference = {.cache = cache, .reference = true};
    assert_false(run(&reference, y));
    clear_cache();
}

static void test_another_model_is_not_served(void **state) {
    (void)state;
    float before[ROWS * OUT], plain[ROWS * OUT], y[ROWS * OUT];
    const struct op_load_options with = {.cache = cache};
    run(&with, before);
    write_model(0.75f);
    run(NULL, plain);
    assert_memory_not_equal(before, plain, sizeof y);
    assert_false(run(&with, y));
    assert_memory_equal(y, plain, sizeof y);
    write_model(0.25f);
    assert_true(run(&with, y)); /* the first one's file is still there */
    assert_memory_equal(y, before, sizeof y);
    clear_cache();
}

static void change(const char *path, long at, int flip) {
    FILE *f = fopen(path, "r+b");
    assert_non_null(f);
    assert_int_equal(fseek(f, at, SEEK_SET), 0);
    int byte = fgetc(f);
    assert_int_equal(fseek(f, at, SEEK_SET), 0);
    assert_int_equal(fputc(byte ^ flip, f), byte ^ flip);
    assert_int_equal(fclose(f), 0);
}

static void expect_written_anew(const struct op_load_options *with, const float *plain) {
    float y[ROWS * OUT];
    assert_false(run(with, y));
    assert_memory_equal(y, plain, sizeof y);
    assert_true(run(with, y));
    assert_memory_equal(y, plain, sizeof y);
}

static void test_what_does_not_fit_is_ignored_and_written_anew(void **state) {
    (void)state;
    float plain[ROWS * OUT], y[ROWS * OUT];
    struct stat info;
    const struct op_load_options with = {.cache = cache};
    run(NULL, plain);
    run(&with, y);
    const char *file = cached_file(".packed");
    assert_int_equal(stat(file, &info), 0);
    enum { HEAD = 8 + 8 + 8 + 3 * 32, ENTRY = 24 };
    uint32_t pieces = 0;
    FILE *f = fopen(file, "rb");
    assert_non_null(f);
    assert_int_equal(fseek(f, 12, SEEK_SET), 0);
    assert_int_equal(fread(&pieces, sizeof pieces, 1, f), 1);
    fclose(f);
    assert_in_range(pieces, 5, 6); /* the table is one where it does not lie aligned */
    for (long at = 0; at < HEAD + (long)pieces * ENTRY; at += 7) { /* magic, format, counts, key, build, hash, table */
        change(file, at, 0x10);
        expect_written_anew(&with, plain);
    }
    const off_t sizes[] = {0, 1, HEAD - 1, HEAD + 30, 4096, info.st_size - 1};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        assert_int_equal(truncate(file, sizes[i]), 0);
        expect_written_anew(&with, plain);
    }
    assert_int_equal(chmod(file, 0666), 0); /* anybody may have written it */
    expect_written_anew(&with, plain);
    clear_cache();
}

static void test_no_cache_is_no_error(void **state) {
    (void)state;
    float plain[ROWS * OUT], y[ROWS * OUT];
    char path[160];
    run(NULL, plain);
    const char *const nowhere[] = {"", "/nonexistent/folder", "/proc", model_path};
    for (size_t i = 0; i < sizeof nowhere / sizeof *nowhere; i++) {
        const struct op_load_options with = {.cache = nowhere[i]};
        for (int k = 0; k < 2; k++) {
            assert_false(run(&with, y));
            assert_memory_equal(y, plain, sizeof y);
        }
    }
    /* a folder in the place of the file */
    const struct op_load_options with = {.cache = cache};
    run(&with, y);
    snprintf(path, sizeof path, "%s", cached_file(".packed"));
    assert_int_equal(unlink(path), 0);
    assert_int_equal(mkdir(path, 0700), 0);
    assert_false(run(&with, y));
    assert_memory_equal(y, plain, sizeof y);
    assert_int_equal(rmdir(path), 0);
    clear_cache(); /* and nothing half-written is left */
}

/* The content hash of a file that has not changed for a while is kept under its identity. A wrong one shows that it is believed. */
static void test_a_settled_file_is_known_by_its_identity(void **state) {
    (void)state;
    static const char file[] = "tests/zoo/models/cnn.onnx";
    struct op_error err;
    struct op_model_info info;
    const struct op_load_options with = {.cache = cache};
    float y[ROWS * OUT];
    run(&with, y);
    assert_string_equal(cached_file(".sha256"), ""); /* too young */
    clear_cache();
    for (int i = 0; i < 2; i++) {
        struct op_model *m = op_model_load(file, &with, &err);
        if (!m) fail_msg("%s", err.text);
        op_model_describe(m, &info);
        if (i) assert_memory_equal(info.sha256, "0123456789", 10);
        op_model_release(m);
        if (i) break;
        FILE *f = fopen(cached_file(".sha256"), "r+b");
        assert_non_null(f);
        assert_int_equal(fwrite("0123456789", 1, 10, f), 10);
        assert_int_equal(fclose(f), 0);
    }
    clear_cache();
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_second_load_finds_what_the_first_has_packed),
        cmocka_unit_test(test_another_model_is_not_served),
        cmocka_unit_test(test_what_does_not_fit_is_ignored_and_written_anew),
        cmocka_unit_test(test_no_cache_is_no_error),
        cmocka_unit_test(test_a_settled_file_is_known_by_its_identity),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
