/* Pictures through a whole pipeline: every size of memory that is too small, threads that share a pipeline, and geometry. The
 * pictures are those of the fuzz corpus; the program runs from the top of the source tree. */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "worker/pipeline/pipeline.h"

static const struct op_io io_in = {
    .name = "image", .dtype = OP_F32, .rank = 4, .dims = {-1, 3, 8, 8}, .symbols = {"N"}};
static const struct op_io io_out = {
    .name = "scores", .dtype = OP_F32, .rank = 2, .dims = {-1, 192}, .symbols = {"N"}};
static const struct w_signature sig = {.model = "echo",
                                       .batching = W_BATCH_ROWS,
                                       .n_inputs = 1,
                                       .n_outputs = 1,
                                       .inputs = {&io_in},
                                       .outputs = {&io_out}};

static const char *const files[] = {"rgb.jpg", "progressive.jpg", "cmyk.jpg", "exif.jpg",
                                    "rgb.png", "p.png",           "la.png",   "adam7.png"};
enum { N_FILES = sizeof files / sizeof *files };
static char *bytes[N_FILES];
static size_t lens[N_FILES];

static int setup(void **unused) {
    (void)unused;
    for (size_t i = 0; i < N_FILES; i++) {
        char path[128];
        snprintf(path, sizeof path, "tests/fuzz/corpus/image/%s", files[i]);
        FILE *f = fopen(path, "rb");
        if (!f) return perror(path), -1;
        bytes[i] = malloc(1 << 16);
        lens[i] = fread(bytes[i], 1, 1 << 16, f);
        bytes[i] = realloc(bytes[i], lens[i]);
        fclose(f);
    }
    return 0;
}

static int teardown(void **unused) {
    (void)unused;
    for (size_t i = 0; i < N_FILES; i++) free(bytes[i]);
    return 0;
}

/* The model gives its input back, flat. */
static bool echo(void *user, const struct op_tensor *inputs, int n, const struct op_tensor **outputs,
                 int *n_outputs, struct w_error *err) {
    struct op_tensor *t = user;
    (void)n;
    (void)err;
    *t = (struct op_tensor){
        .dtype = OP_F32, .rank = 2, .dims = {inputs[0].dims[0], 192}, .data = inputs[0].data};
    *outputs = t;
    *n_outputs = 1;
    return true;
}

static struct w_pipeline *load(const char *steps, const struct w_signature *of) {
    char text[1000];
    struct w_error err;
    snprintf(text, sizeof text, "{\"quern\":1,\"pipeline\":%s}", steps);
    struct w_pipeline *p = w_pipeline_parse(text, strlen(text), NULL, of, &err);
    if (!p) fail_msg("%s: %s", steps, err.text);
    return p;
}

static const char whole[] =
    "[{\"decode_image\":{\"alpha\":\"white\"}},{\"resize\":{\"w\":9,\"h\":8,\"fit\":\"letterbox\","
    "\"filter\":\"pil.lanczos\"}},{\"color\":{\"to\":\"ycbcr\"}},{\"crop\":{\"w\":8,\"h\":8}},"
    "{\"pixels\":{}},{\"run\":{}},{\"activate\":{\"kind\":\"softmax\"}},{\"topk\":{\"k\":7}},"
    "{\"emit\":{\"fields\":[\"index\",\"score\"],\"digits\":5}}]";

static bool run(const struct w_pipeline *p, struct w_row *row, size_t file, struct w_error *err) {
    struct op_tensor t;
    struct w_value v = {.type = W_BYTES, .span = {bytes[file], lens[file]}};
    struct w_input input = {.kind = W_INPUT_VALUE, .value = &v};
    return w_pipeline_run(p, row, &input, echo, &t, err);
}

static void test_memory_that_is_too_small_is_an_error(void **unused) {
    struct w_pipeline *p = load(whole, &sig);
    (void)unused;
    for (size_t file = 0; file < N_FILES; file++) {
        bool good = false;
        for (size_t limit = 0; !good && limit < 1 << 20; limit += 64) {
            struct w_error err = {0};
            struct w_row *row = w_row_create(limit);
            good = run(p, row, file, &err);
            if (!good && strcmp(err.code, W_NO_MEMORY) && strcmp(err.code, W_TOO_LARGE))
                fail_msg("%s with %zu bytes: %s: %s", files[file], limit, err.code, err.text);
            w_row_destroy(row);
        }
        assert_true(good);
    }
    w_pipeline_destroy(p);
}

struct worker {
    const struct w_pipeline *p;
    char results[N_FILES][512];
};

static void *work(void *arg) {
    struct worker *w = arg;
    struct w_row *row = w_row_create(1 << 20);
    struct w_error err;
    for (int turn = 0; turn < 20; turn++)
        for (size_t file = 0; file < N_FILES; file++) {
            w_row_reset(row);
            if (!run(w->p, row, file, &err)) continue;
            snprintf(w->results[file], sizeof w->results[file], "%.*s", (int)row->result.len,
                     row->result.ptr);
        }
    w_row_destroy(row);
    return NULL;
}

static void test_threads_share_a_pipeline(void **unused) {
    enum { N = 4 };
    static struct worker workers[N];
    pthread_t threads[N];
    struct w_pipeline *p = load(whole, &sig);
    (void)unused;
    for (int i = 0; i < N; i++) {
        workers[i].p = p;
        assert_int_equal(pthread_create(&threads[i], NULL, work, &workers[i]), 0);
    }
    for (int i = 0; i < N; i++) pthread_join(threads[i], NULL);
    for (size_t file = 0; file < N_FILES; file++) {
        assert_non_null(strstr(workers[0].results[file], "{\"top\":[{\"index\":"));
        for (int i = 1; i < N; i++)
            assert_string_equal(workers[i].results[file], workers[0].results[file]);
    }
    w_pipeline_destroy(p);
}

/* rgb.png is 17×13. A point of the original goes where the geometry says. */
static void geometry_is(const char *steps, double x, double y, double to_x, double to_y) {
    struct w_pipeline *p = load(steps, NULL);
    struct w_row *row = w_row_create(1 << 20);
    struct w_error err;
    if (!run(p, row, 4, &err)) fail_msg("%s", err.text);
    const struct w_geometry *g = &row->value.geo;
    assert_int_equal(g->w, 17);
    assert_int_equal(g->h, 13);
    const double got_x = g->m[0] * x + g->m[1] * y + g->m[2];
    const double got_y = g->m[3] * x + g->m[4] * y + g->m[5];
    if (got_x - to_x > 1e-5 || to_x - got_x > 1e-5 || got_y - to_y > 1e-5 || to_y - got_y > 1e-5)
        fail_msg("%s: %g,%g goes to %g,%g, not to %g,%g", steps, x, y, got_x, got_y, to_x, to_y);
    w_row_destroy(row);
    w_pipeline_destroy(p);
}

static void test_geometry_follows_the_picture(void **unused) {
    (void)unused;
    geometry_is("[{\"decode_image\":{}}]", 3, 4, 3, 4);
    geometry_is("[{\"decode_image\":{}},{\"resize\":{\"w\":34,\"h\":39}}]", 17, 13, 34, 39);
    geometry_is("[{\"decode_image\":{}},{\"crop\":{\"box\":[2,1,10,9]}}]", 2, 1, 0, 0);
    geometry_is("[{\"decode_image\":{}},{\"pad\":{\"w\":21,\"h\":17,\"at\":\"center\"}}]", 0, 0, 2, 2);
    geometry_is("[{\"decode_image\":{}},{\"resize\":{\"size\":34,\"fit\":\"letterbox\"}}]", 0, 0, 0, 4);
    geometry_is("[{\"decode_image\":{}},{\"resize\":{\"size\":26,\"fit\":\"cover\"}}]", 8.5, 6.5, 13, 13);
    geometry_is("[{\"decode_image\":{}},{\"resize\":{\"size\":26,\"fit\":\"cover\"}}]", 2, 0, 0, 0);
    geometry_is("[{\"decode_image\":{}},{\"resize\":{\"w\":34,\"h\":26}},{\"crop\":{\"w\":10,\"h\":10}},"
                "{\"pixels\":{}}]",
                8.5, 6.5, 5, 5);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_memory_that_is_too_small_is_an_error),
                                       cmocka_unit_test(test_threads_share_a_pipeline),
                                       cmocka_unit_test(test_geometry_follows_the_picture)};
    return cmocka_run_group_tests(tests, setup, teardown);
}
