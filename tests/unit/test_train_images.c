/* Training of convolutions: a step with images turned to channels last against one without any rewriting, the same bits on any number of
 * threads and at every level. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

#include "ops/ops_train.h"

enum { N = 5, SIDE = 11, CLASSES = 3, STEPS = 3 };

static void weight(struct op_builder *b, const char *name, int rank, const int64_t *dims, float fill, uint64_t seed) {
    int64_t n = 1, fan = 1;
    for (int i = 0; i < rank; i++) n *= dims[i];
    for (int i = 1; i < rank; i++) fan *= dims[i];
    float *data = malloc((size_t)n * sizeof *data);
    struct op_tensor t = {.dtype = OP_F32, .rank = rank, .data = data};
    memcpy(t.dims, dims, (size_t)rank * sizeof *dims);
    if (rank > 1) assert_true(op_initialize(&t, "glorot_uniform", fan, dims[0], NAN, seed));
    else
        for (int64_t i = 0; i < n; i++) data[i] = fill;
    op_builder_weight(b, name, &t);
    free(data);
}

#define INTS(key, ...) {.name = key, .kind = OP_ARG_INTS, .ints = (int64_t[]){__VA_ARGS__}, .n = sizeof((int64_t[]){__VA_ARGS__}) / sizeof(int64_t)}
#define NODE(op, out, ins, ...)                                                                    \
    do {                                                                                           \
        const char *in_[] = ins;                                                                   \
        const struct op_arg args_[] = {__VA_ARGS__ __VA_OPT__(,){0}};                              \
        op_builder_node(b, op, in_, sizeof in_ / sizeof *in_, (const char *[]){out}, 1, args_, (int)(sizeof args_ / sizeof *args_) - 1); \
    } while (0)
#define IN(...) {__VA_ARGS__}

static void conv(struct op_builder *b, const char *x, const char *y, int64_t from, int64_t to, int64_t k, int64_t stride, bool bias) {
    char w[32], c[32];
    snprintf(w, sizeof w, "%s_w", y);
    snprintf(c, sizeof c, "%s_b", y);
    weight(b, w, 4, (int64_t[]){to, from, k, k}, 0, (uint64_t)(to * 31 + from + k));
    if (bias) weight(b, c, 1, &to, 0.1f, 0);
    const char *in[] = {x, w, c};
    const struct op_arg args[] = {INTS("pads", k / 2, k / 2, k / 2, k / 2), INTS("strides", stride, stride)};
    op_builder_node(b, "Conv", in, bias ? 3 : 2, (const char *[]){y}, 1, args, 2);
}

static void batch_norm(struct op_builder *b, const char *x, const char *y, int64_t c) {
    char name[4][32];
    for (int i = 0; i < 4; i++) {
        snprintf(name[i], sizeof name[i], "%s_%d", y, i);
        weight(b, name[i], 1, &c, i == 0 || i == 3 ? 1.0f : 0.0f, 0);
    }
    op_builder_node(b, "BatchNormalization", (const char *[]){x, name[0], name[1], name[2], name[3]}, 5, (const char *[]){y}, 1, NULL, 0);
}

/* Every kind of node that stays channels last: convolutions of strides 1 and 2 and of 1 x 1, batch normalisation, pools, a residual. */
static void build(const char *path) {
    struct op_error err;
    struct op_builder *b = op_builder_create(17);
    op_builder_input(b, "x", OP_F32, 4, (int64_t[]){-1, 3, SIDE, SIDE}, (const char *[]){"N", NULL, NULL, NULL});
    conv(b, "x", "c1", 3, 20, 3, 1, true);
    NODE("Relu", "r1", IN("c1"));
    NODE("MaxPool", "p1", IN("r1"), INTS("kernel_shape", 3, 3), INTS("strides", 2, 2), INTS("pads", 1, 1, 1, 1));
    conv(b, "p1", "c2", 20, 20, 3, 1, false);
    batch_norm(b, "c2", "n2", 20);
    NODE("Add", "s2", IN("n2", "p1"));
    NODE("Relu", "r2", IN("s2"));
    conv(b, "r2", "c3", 20, 70, 3, 2, true);
    conv(b, "r2", "c4", 20, 70, 1, 2, false);
    NODE("Add", "s3", IN("c3", "c4"));
    NODE("Sigmoid", "r3", IN("s3"));
    NODE("AveragePool", "p3", IN("r3"), INTS("kernel_shape", 2, 2));
    NODE("GlobalAveragePool", "g", IN("p3"));
    NODE("Flatten", "f", IN("g"));
    weight(b, "w", 2, (int64_t[]){70, CLASSES}, 0, 9);
    NODE("MatMul", "z", IN("f", "w"));
    NODE("Softmax", "y", IN("z"));
    op_builder_output(b, "y");
    struct op_model *m = op_builder_finish(b, &err);
    if (!m) print_error("%s\n", err.text);
    assert_non_null(m);
    assert_int_equal(op_model_save(m, path, NULL, NULL, 0, &err), OP_OK);
    op_model_release(m);
}

static int n_last, n_other;
static void watch(void *user, const char *op_type, const char *name, uint64_t ns, double flops, double bytes) {
    (void)user, (void)name, (void)ns, (void)flops, (void)bytes;
    n_last += strncmp(op_type, "ChannelsLast", 12) == 0;
    n_other += strcmp(op_type, "Conv") == 0 || strncmp(op_type, "ConvGrad", 8) == 0 || strncmp(op_type, "BatchNorm", 9) == 0 || strncmp(op_type, "MaxPool", 7) == 0 ||
               strncmp(op_type, "AveragePool", 11) == 0 || strcmp(op_type, "Transpose") == 0;
}

static struct op_trainer *trained(const char *path, const char *passes, const char *cpu, int n_threads, double *loss) {
    static const struct op_loss ce = {.name = "sparse_categorical_crossentropy", .ignore_index = -1};
    struct op_error err;
    struct op_model *m = op_model_load(path, &(struct op_load_options){.passes = passes, .cpu = cpu}, &err);
    assert_non_null(m);
    struct op_trainer_options o = {.losses = &ce, .n_losses = 1, .seed = 7, .n_threads = n_threads, .on_node = watch};
    op_optimizer_defaults(&o.optimizer, "sgd");
    o.optimizer.learning_rate = 0.1f;
    struct op_trainer *t = op_trainer_create(m, &o, &err);
    if (!t) print_error("%s\n", err.text);
    assert_non_null(t);
    op_model_release(m);
    uint64_t state = 3;
    static float x[N * 3 * SIDE * SIDE];
    int64_t y[N];
    n_last = n_other = 0;
    for (int s = 0; s < STEPS; s++) {
        struct op_step_result r;
        for (size_t i = 0; i < sizeof x / sizeof *x; i++) {
            state = state * 6364136223846793005u + 1442695040888963407u;
            x[i] = (float)(state >> 40) / (float)(1 << 24) * 2 - 1;
        }
        for (int i = 0; i < N; i++) y[i] = (i + s) % CLASSES;
        const struct op_tensor in = {.dtype = OP_F32, .rank = 4, .dims = {N, 3, SIDE, SIDE}, .data = x}, target = {.dtype = OP_I64, .rank = 1, .dims = {N}, .data = y};
        if (op_trainer_step(t, &in, 1, &target, 1, NULL, NAN, &r, &err) != OP_OK) fail_msg("%s", err.text);
        *loss = r.loss;
    }
    return t;
}

/* The largest difference of a weight, beside its tensor's largest. */
static double difference(struct op_trainer *a, struct op_trainer *b) {
    double worst = 0;
    for (int i = 0; i < op_trainer_n_weights(a); i++) {
        const struct op_tensor *x, *y;
        double most = 1e-3, off = 0;
        op_trainer_weight(a, i, NULL, &x);
        op_trainer_weight(b, i, NULL, &y);
        for (int64_t k = 0, n = op_tensor_count(x); k < n; k++) {
            const double v = (double)((const float *)x->data)[k];
            most = fmax(most, fabs(v));
            off = fmax(off, fabs(v - (double)((const float *)y->data)[k]));
        }
        worst = fmax(worst, off / most);
    }
    return worst;
}

static char path[64];

static void test_channels_last_trains_as_channels_first(void **state) {
    double plain_loss, loss;
    (void)state;
    struct op_trainer *plain = trained(path, "", NULL, 1, &plain_loss);
    assert_int_equal(n_last, 0);
    struct op_trainer *t = trained(path, NULL, NULL, 1, &loss);
    /* 4 convolutions, 3 of their dX, 4 dW, 2 dB; normalisation and pools each forward and backward, the global one */
    assert_true(n_last >= STEPS * (4 + 3 + 4 + 2 + 2 + 4));
    assert_int_equal(n_other, STEPS * 3); /* the picture, and one pixel an image, forward and back */
    assert_true(fabs(loss - plain_loss) < 1e-4 * fabs(plain_loss));
    if (difference(plain, t) > 1e-4) fail_msg("weights differ by %g", difference(plain, t));
    op_trainer_destroy(plain);
    op_trainer_destroy(t);
}

static void test_the_same_bits_on_threads_and_levels(void **state) {
    static const struct {
        const char *cpu;
        int n_threads;
    } all[] = {{NULL, 3}, {"generic", 1}, {"avx2", 2}};
    double first, loss;
    (void)state;
    struct op_trainer *t = trained(path, NULL, NULL, 1, &first);
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        struct op_error err;
        struct op_model *there = op_model_load(path, &(struct op_load_options){.cpu = all[i].cpu}, &err);
        op_model_release(there);
        if (!there) continue; /* this machine has no such level */
        struct op_trainer *other = trained(path, NULL, all[i].cpu, all[i].n_threads, &loss);
        assert_true(difference(t, other) == 0 && loss == first);
        op_trainer_destroy(other);
    }
    op_trainer_destroy(t);
}

static int set_up(void **state) {
    (void)state;
    snprintf(path, sizeof path, "/tmp/quern-train-images-%ld.onnx", (long)getpid());
    build(path);
    return 0;
}
static int tear_down(void **state) {
    (void)state;
    return unlink(path);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_channels_last_trains_as_channels_first),
        cmocka_unit_test(test_the_same_bits_on_threads_and_levels),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
