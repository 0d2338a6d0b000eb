/* Memory: what op_session_plan announces is what a run takes, lanes share the weights, shapes that keep changing fill nothing,
 * and the arena is hardly larger than what lives at one time. Resident figures are the kernel's (smaps_rollup), so they are not
 * asked for under a sanitizer, which has memory of its own. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdio.h>

#include "ops/session.h"
#include "tests/unit/op_testing.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
enum { SANITIZED = 1 };
#else
enum { SANITIZED = 0 };
#endif

static double resident(void) {
    char line[200];
    long kib = -1;
    FILE *f = fopen("/proc/self/smaps_rollup", "r");
    assert_non_null(f);
    while (kib < 0 && fgets(line, sizeof line, f)) sscanf(line, "Anonymous: %ld kB", &kib);
    fclose(f);
    assert_true(kib > 0);
    return (double)kib * 1024;
}

static float *weights(size_t n) {
    float *w = malloc(n * sizeof *w);
    assert_non_null(w);
    for (size_t i = 0; i < n; i++) w[i] = (float)(i * 37 % 101) / 5000 - 0.01f;
    return w;
}

static void constant(struct ot *m, const char *name, int rank, const int64_t *dims) {
    size_t n = 1;
    for (int i = 0; i < rank; i++) n *= (size_t)dims[i];
    float *w = weights(n);
    ot_constant(m, name, OP_F32, rank, dims, w);
    free(w);
}
#define CONSTANT(m, name, ...) constant(m, name, sizeof((int64_t[]){__VA_ARGS__}) / sizeof(int64_t), (int64_t[]){__VA_ARGS__})

/* Two 3 x 3 layers with a shortcut, a head. */
static void build_cnn(struct ot *m) {
    ot_begin(m, 17);
    ot_input(m, "x", OP_F32, 4, (int64_t[]){-1, 16, -1, -1});
    CONSTANT(m, "w1", 32, 16, 3, 3);
    CONSTANT(m, "w2", 32, 32, 3, 3);
    CONSTANT(m, "w3", 32, 10);
    ot_node(m, "Conv", "x w1", "a");
    ot_ints(m, "pads", 4, (int64_t[]){1, 1, 1, 1});
    ot_node(m, "Relu", "a", "b");
    ot_node(m, "Conv", "b w2", "c");
    ot_ints(m, "pads", 4, (int64_t[]){1, 1, 1, 1});
    ot_node(m, "Add", "c b", "d");
    ot_node(m, "Relu", "d", "e");
    ot_node(m, "GlobalAveragePool", "e", "f");
    ot_node(m, "Flatten", "f", "g");
    ot_node(m, "MatMul", "g w3", "y");
    ot_output(m, "y", OP_F32, -1, NULL);
}

static void build_lstm(struct ot *m) {
    ot_begin(m, 17);
    ot_input(m, "x", OP_F32, 3, (int64_t[]){-1, -1, 64});
    CONSTANT(m, "w", 1, 512, 64);
    CONSTANT(m, "r", 1, 512, 128);
    ot_node(m, "LSTM", "x w r", "y . .");
    ot_int(m, "hidden_size", 128);
    ot_output(m, "y", OP_F32, -1, NULL);
}

/* Self-attention of four heads over rows of 128, a layer behind it. */
static void build_transformer(struct ot *m) {
    const int64_t split[] = {0, 4, 32}, merge[] = {0, 128};
    const float scale = 0.17f;
    ot_begin(m, 17);
    ot_input(m, "x", OP_F32, 2, (int64_t[]){-1, 128});
    CONSTANT(m, "wq", 128, 128);
    CONSTANT(m, "wk", 128, 128);
    CONSTANT(m, "w1", 128, 512);
    CONSTANT(m, "w2", 512, 128);
    ot_constant(m, "split", OP_I64, 1, (int64_t[]){3}, split);
    ot_constant(m, "merge", OP_I64, 1, (int64_t[]){2}, merge);
    ot_constant(m, "scale", OP_F32, 0, NULL, &scale);
    ot_node(m, "MatMul", "x wq", "q");
    ot_node(m, "MatMul", "x wk", "k");
    ot_node(m, "Reshape", "q split", "q3");
    ot_node(m, "Reshape", "k split", "k3");
    ot_node(m, "Transpose", "q3", "qh");
    ot_ints(m, "perm", 3, (int64_t[]){1, 0, 2});
    ot_node(m, "Transpose", "k3", "kt");
    ot_ints(m, "perm", 3, (int64_t[]){1, 2, 0});
    ot_node(m, "Transpose", "k3", "vh");
    ot_ints(m, "perm", 3, (int64_t[]){1, 0, 2});
    ot_node(m, "MatMul", "qh kt", "s");
    ot_node(m, "Mul", "s scale", "t");
    ot_node(m, "Softmax", "t", "p");
    ot_node(m, "MatMul", "p vh", "o");
    ot_node(m, "Transpose", "o", "o3");
    ot_ints(m, "perm", 3, (int64_t[]){1, 0, 2});
    ot_node(m, "Reshape", "o3 merge", "o2");
    ot_node(m, "Add", "o2 x", "h");
    ot_node(m, "MatMul", "h w1", "u");
    ot_node(m, "Relu", "u", "v");
    ot_node(m, "MatMul", "v w2", "y");
    ot_output(m, "y", OP_F32, -1, NULL);
}

/* What depends on data: the positive elements, squared. */
static void build_dynamic(struct ot *m) {
    const float zero = 0;
    ot_begin(m, 17);
    ot_input(m, "x", OP_F32, 1, (int64_t[]){-1});
    ot_constant(m, "zero", OP_F32, 0, NULL, &zero);
    ot_node(m, "Greater", "x zero", "g");
    ot_node(m, "Compress", "x g", "c");
    ot_node(m, "Mul", "c c", "d");
    ot_node(m, "Sub", "d c", "y");
    ot_output(m, "y", OP_F32, -1, NULL);
}

struct subject {
    const char *name;
    void (*build)(struct ot *m);
    struct op_tensor x;
    bool dynamic;
};

static const struct subject subjects[] = {
    {"CNN", build_cnn, {.dtype = OP_F32, .rank = 4, .dims = {1, 16, 448, 448}}, false},
    {"LSTM", build_lstm, {.dtype = OP_F32, .rank = 3, .dims = {300, 32, 64}}, false},
    {"Transformer", build_transformer, {.dtype = OP_F32, .rank = 2, .dims = {3000, 128}}, false},
    {"dynamic shapes", build_dynamic, {.dtype = OP_F32, .rank = 1, .dims = {4000000}}, true},
};
enum { N_SUBJECTS = sizeof subjects / sizeof *subjects };

static size_t announced(struct op_session *s, const struct op_tensor *x) {
    size_t peak = 0;
    struct op_error err;
    assert_int_equal(op_session_plan(s, x, 1, &peak, NULL, &err), OP_OK);
    return peak;
}

/* Runs once; how much more memory is resident then. */
static double growth(struct op_session *s, const struct op_tensor *x) {
    const struct op_tensor *y;
    struct op_error err;
    double before = resident();
    if (op_session_run(s, x, 1, &y, &err) != OP_OK) fail_msg("%s", err.text);
    return resident() - before;
}

static void test_a_run_takes_what_was_announced_and_lanes_share_weights(void **state) {
    (void)state;
    for (int i = 0; i < N_SUBJECTS; i++) {
        struct ot m;
        struct op_error err;
        struct op_tensor x = subjects[i].x;
        subjects[i].build(&m);
        x.data = weights((size_t)op_tensor_count(&x));
        m.model = ot_load(&m, NULL, &err);
        assert_non_null(m.model);
        struct op_session *lanes[2];
        for (int k = 0; k < 2; k++) { /* the second lane: an arena of its own and nothing else */
            lanes[k] = op_session_create(m.model, NULL, &err);
            assert_non_null(lanes[k]);
            size_t peak = announced(lanes[k], &x);
            double grown = growth(lanes[k], &x);
            if (subjects[i].dynamic) { /* its buffers are known from the run on, and some are given back before it ends */
                peak = announced(lanes[k], &x);
                assert_true(peak > (size_t)op_tensor_bytes(&x));
                assert_true(SANITIZED || grown < 1.05 * (double)peak);
                continue;
            }
            assert_true(peak > 4000000);
            if (!SANITIZED && (grown < 0.95 * (double)peak || grown > 1.05 * (double)peak))
                fail_msg("%s, lane %d: announced %.3f MB, grown by %.3f MB", subjects[i].name, k, (double)peak / 1e6, grown / 1e6);
            assert_true(SANITIZED || growth(lanes[k], &x) < 0.01 * (double)peak);
        }
        op_session_destroy(lanes[0]);
        op_session_destroy(lanes[1]);
        free(x.data);
        ot_end(&m);
    }
}

static void test_random_shapes_fill_no_memory(void **state) {
    (void)state;
    enum { RUNS = 1000, SETTLED = 200 };
    struct ot m;
    struct op_error err;
    double early = 0;
    uint32_t seed = 1;
    size_t held = 0;
    build_cnn(&m);
    float *data = weights(16 * 64 * 64);
    m.model = ot_load(&m, NULL, &err);
    assert_non_null(m.model);
    struct op_session *s = op_session_create(m.model, NULL, &err);
    assert_non_null(s);
    struct op_tensor x = {.dtype = OP_F32, .rank = 4, .dims = {1, 16, 64, 64}, .data = data};
    growth(s, &x); /* the largest first */
    for (int i = 0; i < RUNS; i++) {
        for (int d = 2; d < 4; d++) {
            seed = seed * 1664525u + 1013904223u;
            x.dims[d] = 1 + (int64_t)(seed >> 16) % 64;
        }
        growth(s, &x);
        if (i == SETTLED) {
            early = resident();
            held = op_session_bytes(s);
        }
    }
    assert_true(op_session_bytes(s) < held + held / 10);
    double late = resident();
    if (!SANITIZED && late > early + 1e6) fail_msg("%.3f MB resident after %d runs, %.3f MB after %d", early / 1e6, SETTLED, late / 1e6, RUNS);
    op_session_destroy(s);
    free(data);
    ot_end(&m);
}

/* --- the arena --------------------------------------------------------------------------------- */

/* The largest sum of values that live at one step. */
static size_t live_bytes(const struct op_plan *p) {
    size_t most = 0;
    for (int i = 0; i < p->n_steps; i++) {
        size_t sum = 0;
        for (int k = 0; k < p->n_slots; k++)
            if (p->spots[k].place == OP__PLACE_ARENA && p->spots[k].from <= i && p->spots[k].to >= i) sum += p->spots[k].bytes;
        if (sum > most) most = sum;
    }
    return most;
}

static int conv(struct ot *m, int from, int n_in, int n_out, int size, int stride, int relu) {
    static int count;
    char w[16], in[40], out[16], act[16];
    snprintf(w, sizeof w, "w%d", ++count);
    snprintf(in, sizeof in, "v%d %s", from, w);
    snprintf(out, sizeof out, "v%d", count);
    CONSTANT(m, w, n_out, n_in, size, size);
    ot_node(m, "Conv", in, out);
    ot_ints(m, "pads", 4, (int64_t[]){size / 2, size / 2, size / 2, size / 2});
    ot_ints(m, "strides", 2, (int64_t[]){stride, stride});
    if (!relu) return count;
    snprintf(act, sizeof act, "v%d", count + 1);
    ot_node(m, "Relu", out, act);
    return ++count;
}

/* ResNet-50's layers: 3, 4, 6, 3 bottlenecks. */
static void build_resnet50(struct ot *m) {
    const int blocks[4] = {3, 4, 6, 3};
    int channels = 64;
    ot_begin(m, 17);
    ot_input(m, "v0", OP_F32, 4, (int64_t[]){-1, 3, 224, 224});
    int at = conv(m, 0, 3, channels, 7, 2, 1);
    char in[40], out[16];
    snprintf(in, sizeof in, "v%d", at);
    ot_node(m, "MaxPool", in, "p0");
    ot_ints(m, "kernel_shape", 2, (int64_t[]){3, 3});
    ot_ints(m, "strides", 2, (int64_t[]){2, 2});
    ot_ints(m, "pads", 4, (int64_t[]){1, 1, 1, 1});
    ot_node(m, "Identity", "p0", "v1000");
    at = 1000;
    for (int layer = 0; layer < 4; layer++)
        for (int b = 0; b < blocks[layer]; b++) {
            const int width = 64 << layer, stride = b == 0 && layer > 0 ? 2 : 1;
            int x = conv(m, at, channels, width, 1, 1, 1);
            x = conv(m, x, width, width, 3, stride, 1);
            x = conv(m, x, width, 4 * width, 1, 1, 0);
            const int shortcut = b == 0 ? conv(m, at, channels, 4 * width, 1, stride, 0) : at;
            channels = 4 * width;
            at = 1001 + 16 * layer + b;
            snprintf(in, sizeof in, "v%d v%d", x, shortcut);
            snprintf(out, sizeof out, "s%d", at);
            ot_node(m, "Add", in, out);
            snprintf(in, sizeof in, "v%d", at);
            ot_node(m, "Relu", out, in);
        }
    ot_node(m, "GlobalAveragePool", in, "y");
    ot_output(m, "y", OP_F32, -1, NULL);
}

static void test_the_arena_is_hardly_larger_than_what_lives(void **state) {
    (void)state;
    for (int batch = 1; batch <= 8; batch += 7) {
        struct ot m;
        struct op_error err;
        const struct op_tensor x = {.dtype = OP_F32, .rank = 4, .dims = {batch, 3, 224, 224}};
        build_resnet50(&m);
        m.model = ot_load(&m, NULL, &err);
        assert_non_null(m.model);
        m.session = op_session_create(m.model, NULL, &err);
        assert_non_null(m.session);
        size_t peak = announced(m.session, &x), live = live_bytes(m.session->plans);
        assert_true(live > 7000000 * (size_t)batch);
        if ((double)peak > 1.2 * (double)live) fail_msg("batch %d: the arena has %.3f MB for %.3f MB of values", batch, (double)peak / 1e6, (double)live / 1e6);
        ot_end(&m);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_run_takes_what_was_announced_and_lanes_share_weights),
        cmocka_unit_test(test_random_shapes_fill_no_memory),
        cmocka_unit_test(test_the_arena_is_hardly_larger_than_what_lives),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
