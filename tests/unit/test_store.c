/* The model store: what a name means, what is loaded when, and what happens to it when files
 * change. Files get times in the past, so that the store need not wait until they have settled;
 * waiting is for its callback, never for a clock. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include <cmocka.h>

#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "tests/unit/op_testing.h"
#include "worker/store/store.h"

static char base[64], folder[96];
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t cond = PTHREAD_COND_INITIALIZER;
static unsigned n_changes;

static void changed(void *ctx) {
    (void)ctx;
    pthread_mutex_lock(&mutex);
    n_changes++;
    pthread_cond_signal(&cond);
    pthread_mutex_unlock(&mutex);
}

static void wait_change(unsigned *seen) {
    pthread_mutex_lock(&mutex);
    while (n_changes == *seen) pthread_cond_wait(&cond, &mutex);
    *seen = n_changes;
    pthread_mutex_unlock(&mutex);
}

static unsigned changes(void) {
    pthread_mutex_lock(&mutex);
    unsigned n = n_changes;
    pthread_mutex_unlock(&mutex);
    return n;
}

/* Asks until there is an answer. */
static enum w_store_answer get(struct w_store *s, const char *spec, struct w_model **m,
                               struct w_error *err) {
    unsigned seen = changes();
    uint64_t asked = 0;
    enum w_store_answer a;
    while ((a = w_store_get(s, spec, &asked, m, err)) == W_STORE_LOADING) wait_change(&seen);
    return a;
}

static void make_folders(char *path) {
    for (char *p = path + 1; (p = strchr(p, '/')) != NULL; p++) {
        *p = 0;
        mkdir(path, 0755);
        *p = '/';
    }
}

static long age_s = 100;

/* Each write is younger than the one before, and all are long ago. */
static void put(const char *path, const void *bytes, size_t len) {
    char full[300], temporary[310];
    snprintf(full, sizeof full, "%s/%s", folder, path);
    snprintf(temporary, sizeof temporary, "%s.tmp", full);
    make_folders(full);
    FILE *f = fopen(temporary, "w");
    assert_non_null(f);
    assert_int_equal(fwrite(bytes, 1, len, f), len);
    fclose(f);
    struct timespec times[2] = {{time(NULL) - 1000000 + age_s, 0},
                                {time(NULL) - 1000000 + age_s, 0}};
    age_s += 10;
    assert_int_equal(utimensat(AT_FDCWD, temporary, times, 0), 0);
    assert_int_equal(rename(temporary, full), 0);
}

static void put_text(const char *path, const char *text) {
    put(path, text, strlen(text));
}

/* y[N,2] = x + shift, with n extra weights */
static void put_model(const char *path, float shift, int64_t n_extra) {
    struct ot m;
    float *extra = calloc((size_t)n_extra + 1, sizeof *extra);
    ot_begin(&m, 13);
    ot_input(&m, "x", OP_F32, 2, (int64_t[]){-1, 2});
    ot_constant(&m, "s", OP_F32, 1, (int64_t[]){1}, &shift);
    ot_constant(&m, "extra", OP_F32, 1, (int64_t[]){n_extra + 1}, extra);
    ot_node(&m, "ReduceSum", "extra", "zero");
    ot_int(&m, "keepdims", 1);
    ot_node(&m, "Add", "x s", "m");
    ot_node(&m, "Add", "m zero", "y");
    ot_output(&m, "y", OP_F32, -1, NULL);
    ot_finish(&m);
    put(path, m.file.data, m.file.len);
    ot_end(&m);
    free(extra);
}

static float shift_of(struct w_model *m) {
    struct op_error err;
    float x[2] = {0, 0};
    struct op_tensor in = {.dtype = OP_F32, .rank = 2, .dims = {1, 2}, .data = x};
    const struct op_tensor *out;
    struct op_session *s = op_session_create(m->op, NULL, &err);
    assert_non_null(s);
    assert_int_equal(op_session_run(s, &in, 1, &out, &err), OP_OK);
    float y = ((const float *)out[0].data)[0];
    op_session_destroy(s);
    return y;
}

static int setup(void **state) {
    (void)state;
    snprintf(base, sizeof base, "/tmp/quern-store-XXXXXX");
    assert_non_null(mkdtemp(base));
    snprintf(folder, sizeof folder, "%s/models", base);
    mkdir(folder, 0755);
    return 0;
}

static int teardown(void **state) {
    char command[128];
    (void)state;
    snprintf(command, sizeof command, "rm -rf %s", base);
    return system(command);
}

static struct w_store *open_store(uint64_t bytes_max, struct w_error *err) {
    struct w_store_options o = {
        .folder = folder, .poll_ms = 5, .bytes_max = bytes_max, .changed = changed};
    return w_store_create(&o, err);
}

/* --- names ------------------------------------------------------------------------------------ */

static void test_names_that_could_be_paths_are_refused(void **state) {
    static const char *const bad[] = {"",     ".",  "..",  ".hidden", "a/b",
                                      "../x", "-x", "a b", "a\n",     "ä"};
    (void)state;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        assert_false(w_model_name_valid(bad[i], strlen(bad[i])));
    assert_true(w_model_name_valid("resnet-50.v2_x", 14));
    assert_false(w_model_name_valid("a\0b", 3));
}

static void test_a_name_finds_the_latest_a_version_or_a_label(void **state) {
    struct w_model_place p;
    struct w_error err = {0};
    (void)state;
    put_model("net/2/model.onnx", 2, 0);
    put_model("net/10/model.onnx", 10, 0);
    put_text("net/labels.json", "{\"prod\": 2, \"7\": 10, \"odd\": \"x\"}");
    assert_true(w_model_find("net", folder, &p, &err));
    assert_int_equal(p.version, 10); /* as a number, not as text */
    assert_true(w_model_find("net@2", folder, &p, &err));
    assert_int_equal(p.version, 2);
    assert_true(w_model_find("net@prod", folder, &p, &err));
    assert_int_equal(p.version, 2);
    assert_false(
        w_model_find("net@7", folder, &p, &err)); /* a number is a version, never a label */
    assert_string_equal(err.code, "unknown_model");
    assert_non_null(strstr(err.text, "10, 2, prod"));
    assert_false(w_model_find("nett", folder, &p, &err));
    assert_non_null(strstr(err.text, "did you mean \"net\""));
}

static void test_a_tool_takes_paths_too(void **state) {
    struct w_model_place p;
    struct w_error err = {0};
    char path[300];
    (void)state;
    put_model("lone/3/model.onnx", 3, 0);
    snprintf(path, sizeof path, "%s/lone/3/model.onnx", folder);
    assert_true(w_model_find(path, NULL, &p, &err));
    assert_string_equal(p.name, "lone");
    assert_int_equal(p.version, 3);
    snprintf(path, sizeof path, "%s/lone/3", folder);
    assert_true(w_model_find(path, folder, &p, &err));
    assert_string_equal(p.folder, path);
    struct w_model *m = w_model_open(path, NULL, NULL, &err);
    assert_non_null(m);
    assert_true(shift_of(m) == 3);
    w_model_release(m);
    assert_false(w_model_find("/nowhere/x.onnx", folder, &p, &err));
}

static void test_a_store_is_listed(void **state) {
    struct w_listed *list;
    size_t n, at = 0;
    (void)state;
    assert_true(w_store_list(folder, &list, &n, NULL));
    while (at < n && strcmp(list[at].name, "net") != 0) at++;
    assert_true(at + 1 < n);
    assert_int_equal(list[at].version, 10);
    assert_int_equal(list[at + 1].version, 2);
    assert_string_equal(list[at + 1].labels, "prod");
    free(list);
}

/* --- serving ---------------------------------------------------------------------------------- */

static void test_a_model_is_loaded_when_it_is_asked_for(void **state) {
    struct w_error err = {0};
    struct w_store *s = open_store(0, &err);
    struct w_model *m, *again;
    (void)state;
    assert_non_null(s);
    assert_int_equal(w_store_get(s, "net@2", NULL, &m, &err), W_STORE_LOADING);
    assert_int_equal(get(s, "net@2", &m, &err), W_STORE_READY);
    assert_true(shift_of(m) == 2);
    assert_string_equal(m->version_text, "2");
    assert_non_null(strstr(m->manifest, m->info.sha256));
    assert_int_equal(w_store_get(s, "net@prod", NULL, &again, &err), W_STORE_READY);
    assert_ptr_equal(again, m);
    w_model_release(again);
    w_store_destroy(s);
    assert_true(shift_of(m) == 2); /* held: it outlives the store */
    w_model_release(m);
}

static void test_what_a_job_may_not_name_is_unknown(void **state) {
    struct w_error err = {0};
    struct w_store *s = open_store(0, &err);
    struct w_model *m;
    char path[300];
    (void)state;
    snprintf(path, sizeof path, "%s/net/2/model.onnx", folder);
    const char *bad[] = {path,          "../models/net", "net@",    "net@9",
                         "net@nolabel", "nothing",       "net@../2"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        assert_int_equal(get(s, bad[i], &m, &err), W_STORE_FAILED);
        assert_string_equal(err.code, "unknown_model");
    }
    assert_int_equal(get(s, "", &m, &err), W_STORE_FAILED);
    assert_string_equal(err.code, "bad_job");
    w_store_destroy(s);
}

static void test_a_model_put_there_a_moment_ago_is_found(void **state) {
    struct w_error err = {0};
    struct w_store_options o = {
        .folder = folder, .poll_ms = 3600000, .changed = changed}; /* no poll comes to help */
    struct w_store *s = w_store_create(&o, &err);
    struct w_model *m;
    (void)state;
    put_model("late/1/model.onnx", 4, 0);
    assert_int_equal(get(s, "late", &m, &err), W_STORE_READY);
    w_model_release(m);
    w_store_destroy(s);
}

static void test_a_new_version_replaces_the_loaded_one_and_the_old_one_ends_in_peace(void **state) {
    struct w_error err = {0};
    put_model("grow/1/model.onnx", 1, 0);
    struct w_store *s = open_store(0, &err);
    struct w_model *old, *m = NULL;
    unsigned seen = changes();
    (void)state;
    assert_int_equal(get(s, "grow", &old, &err), W_STORE_READY);
    put_model("grow/2/model.onnx", 2, 0);
    for (;
         ;) { /* without being asked for: a poll finds it, the old one answers until it is loaded */
        assert_int_equal(w_store_get(s, "grow", NULL, &m, &err), W_STORE_READY);
        if (m->version == 2) break;
        assert_true(m == old);
        w_model_release(m);
        wait_change(&seen);
    }
    assert_true(shift_of(m) == 2);
    assert_true(shift_of(old) == 1);
    w_model_release(m);
    w_model_release(old);
    w_store_destroy(s);
}

static void test_a_changed_file_is_loaded_anew_even_if_it_was_overwritten_in_place(void **state) {
    struct w_error err = {0};
    char path[300];
    put_model("edit/1/model.onnx", 1, 5000);
    struct w_store *s = open_store(0, &err);
    struct w_model *old, *m = NULL;
    unsigned seen = changes();
    (void)state;
    assert_int_equal(get(s, "edit", &old, &err), W_STORE_READY);
    snprintf(path, sizeof path, "%s/edit/1/model.onnx", folder);
    assert_int_equal(truncate(path, 10),
                     0); /* what cp does first: whoever had mapped the file would die here */
    assert_true(shift_of(old) == 1);
    put_model("edit/1/model.onnx", 7, 5000);
    for (;;) {
        enum w_store_answer a = w_store_get(s, "edit", NULL, &m, &err);
        if (a == W_STORE_READY && m != old) break;
        if (a == W_STORE_READY) w_model_release(m);
        wait_change(&seen);
    }
    assert_true(shift_of(m) == 7);
    assert_true(atomic_load(&old->retired));
    assert_true(m->serial != old->serial);
    w_model_release(m);
    w_model_release(old);
    w_store_destroy(s);
}

static void test_a_broken_version_is_not_served_and_says_why(void **state) {
    struct w_error err = {0};
    put_model("frail/1/model.onnx", 1, 0);
    put_text("frail/2/model.onnx", "this is no model");
    put_model("wrong/1/model.onnx", 1, 0);
    put_text("wrong/1/model.json", "{\"quern\": 1, \"golden\": [{\"input\": [1, 1], \"expect\": "
                                   "{\"outputs\": {\"y\": {\"data\": [5, 5]}}}}]}");
    struct w_store *s = open_store(0, &err);
    struct w_model *m;
    (void)state;
    assert_int_equal(get(s, "frail@2", &m, &err), W_STORE_FAILED);
    assert_string_equal(err.code, W_BAD_MODEL);
    assert_int_equal(get(s, "frail", &m, &err), W_STORE_READY); /* the newest that loads */
    assert_int_equal(m->version, 1);
    w_model_release(m);
    assert_int_equal(get(s, "wrong", &m, &err), W_STORE_FAILED);
    assert_string_equal(err.code, W_BAD_MODEL);
    assert_non_null(strstr(err.text, "golden"));
    put_text("wrong/1/model.json", "{\"quern\": 1, \"golden\": [{\"input\": [1, 1], \"expect\": "
                                   "{\"outputs\": {\"y\": {\"data\": [2, 2]}}}}]}");
    unsigned seen = changes();
    while (get(s, "wrong", &m, &err) != W_STORE_READY)
        wait_change(&seen); /* mended: it is tried again */
    w_model_release(m);
    w_store_destroy(s);
}

/* y = x W, 64 by 64; W and the golden sample's x are 1 + 2^-10 and 1 + 2^-9, which bf16 rounds to 1: y is 64.1877… or 64. */
static void put_product(const char *name, const char *precision, const char *golden_tol) {
    enum { N = 64 };
    static float w[N * N];
    static char json[8192];
    char path[100];
    struct ot m;
    for (int i = 0; i < N * N; i++) w[i] = 1 + 0x1p-10f;
    ot_begin(&m, 13);
    ot_input(&m, "x", OP_F32, 2, (int64_t[]){-1, N});
    ot_constant(&m, "w", OP_F32, 2, (int64_t[]){N, N}, w);
    ot_node(&m, "MatMul", "x w", "y");
    ot_output(&m, "y", OP_F32, 2, (int64_t[]){-1, N});
    ot_finish(&m);
    snprintf(path, sizeof path, "%s/1/model.onnx", name);
    put(path, m.file.data, m.file.len);
    ot_end(&m);
    int at = snprintf(json, sizeof json, "{\"quern\": 1, \"precision\": \"%s\"", precision);
    for (int side = 0; golden_tol && side < 2; side++) {
        at += snprintf(json + at, sizeof json - (size_t)at, side ? "], \"expect\": {\"outputs\": {\"y\": {\"data\": [" : ", \"golden\": [{\"input\": [");
        for (int i = 0; i < N; i++) at += snprintf(json + at, sizeof json - (size_t)at, "%s%.7g", i ? "," : "", side ? 64 * (1 + 0x1p-9) * (1 + 0x1p-10) : 1 + 0x1p-9);
        if (side) at += snprintf(json + at, sizeof json - (size_t)at, "]}}}, \"tol\": %s}]", golden_tol);
    }
    snprintf(json + at, sizeof json - (size_t)at, "}");
    snprintf(path, sizeof path, "%s/1/model.json", name);
    put_text(path, json);
}

static void test_a_models_precision(void **state) {
    struct w_error err = {0};
    struct w_model *m;
    (void)state;
    put_product("full", "fp32", "1e-5");
    put_product("half", "bf16", NULL);
    put_product("half_proven", "bf16", "1e-5");
    put_product("plain", "auto", NULL);
    put_product("strict", "auto", "1e-5");
    put_product("lax", "auto", "0.01");
    put_product("eighth", "fp8", NULL);
    put_product("bytes", "int8", NULL);
    struct w_store *s = open_store(0, &err);
    const struct {
        const char *name, *precision;
    } served[] = {{"full", "fp32"}, {"half", "bf16"}, {"plain", "fp32"}, {"strict", "fp32"}, {"lax", NULL}}; /* lax: what is faster here */
    for (size_t i = 0; i < sizeof served / sizeof *served; i++) {
        if (get(s, served[i].name, &m, &err) != W_STORE_READY) fail_msg("%s: %s", served[i].name, err.text);
        if (served[i].precision) assert_string_equal(m->info.precision, served[i].precision);
        char said[40];
        snprintf(said, sizeof said, "\"precision\":\"%s\"", m->info.precision);
        assert_non_null(strstr(m->manifest, said));
        assert_string_equal(m->sig.inputs[0]->name, "x"); /* names are of the model that is kept */
        w_model_release(m);
    }
    assert_int_equal(get(s, "half_proven", &m, &err), W_STORE_FAILED); /* asked for, and the sample says no */
    assert_non_null(strstr(err.text, "golden"));
    assert_int_equal(get(s, "eighth", &m, &err), W_STORE_FAILED);
    assert_non_null(strstr(err.text, "precision is \"fp8\""));
    assert_int_equal(get(s, "bytes", &m, &err), W_STORE_FAILED);
    assert_non_null(strstr(err.text, "quantized"));
    w_store_destroy(s);
}

static void test_the_longest_unused_model_goes_when_there_are_too_many(void **state) {
    struct w_error err = {0};
    put_model("big1/1/model.onnx", 1, 50000);
    put_model("big2/1/model.onnx", 2, 50000);
    struct w_store *s = open_store(300000, &err); /* room for one of 200 kB */
    struct w_model *first, *second;
    (void)state;
    assert_int_equal(get(s, "big1", &first, &err), W_STORE_READY);
    assert_false(atomic_load(&first->retired));
    assert_int_equal(get(s, "big2", &second, &err), W_STORE_READY);
    assert_true(atomic_load(&first->retired)); /* before the second was shown as ready */
    assert_false(atomic_load(&second->retired));
    assert_true(shift_of(first) == 1); /* held: still whole */
    w_model_release(first);
    w_model_release(second);
    assert_int_equal(get(s, "big1", &first, &err),
                     W_STORE_READY); /* and comes back when it is asked for */
    w_model_release(first);
    w_store_destroy(s);
}

static void test_an_alias_serves_a_path_under_a_name(void **state) {
    struct w_error err = {0};
    struct w_store_options o = {.changed = changed};
    struct w_store *s = w_store_create(&o, &err);
    struct w_model *m;
    char path[300];
    (void)state;
    put_model("lone/3/model.onnx", 3, 0);
    snprintf(path, sizeof path, "%s/lone/3/model.onnx", folder);
    assert_true(w_store_alias(s, "given", path, &err));
    assert_false(w_store_alias(s, "../given", path, &err));
    assert_false(w_store_alias(s, "none", "/nowhere", &err));
    assert_int_equal(get(s, "given", &m, &err), W_STORE_READY);
    assert_string_equal(m->name, "given");
    w_model_release(m);
    assert_int_equal(get(s, "other", &m, &err), W_STORE_FAILED);
    w_store_destroy(s);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_names_that_could_be_paths_are_refused),
        cmocka_unit_test(test_a_name_finds_the_latest_a_version_or_a_label),
        cmocka_unit_test(test_a_tool_takes_paths_too),
        cmocka_unit_test(test_a_store_is_listed),
        cmocka_unit_test(test_a_model_is_loaded_when_it_is_asked_for),
        cmocka_unit_test(test_what_a_job_may_not_name_is_unknown),
        cmocka_unit_test(test_a_model_put_there_a_moment_ago_is_found),
        cmocka_unit_test(test_a_new_version_replaces_the_loaded_one_and_the_old_one_ends_in_peace),
        cmocka_unit_test(test_a_changed_file_is_loaded_anew_even_if_it_was_overwritten_in_place),
        cmocka_unit_test(test_a_broken_version_is_not_served_and_says_why),
        cmocka_unit_test(test_a_models_precision),
        cmocka_unit_test(test_the_longest_unused_model_goes_when_there_are_too_many),
        cmocka_unit_test(test_an_alias_serves_a_path_under_a_name),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
