/* The passes on quantized models. Random layers between QuantizeLinear and DequantizeLinear, u8 and i8, run as fused operators and as a reference:
 * a byte may differ by one quantum, where a sum falls on the other side of a tie, and seldom does; every level gives the same bytes. */
#include "pass_testing.h"

static uint32_t next(void) {
    seed = seed * 1664525u + 1013904223u;
    return seed >> 8;
}

static int64_t between(int64_t lo, int64_t hi) {
    return lo + (int64_t)(next() % (uint32_t)(hi - lo + 1));
}

/* Constants NAME_s and NAME_z. */
static void parameters(struct ot *m, const char *name, float scale, int zero, bool is_signed) {
    char text[40];
    const uint8_t byte = (uint8_t)(is_signed ? zero - 128 : zero);
    snprintf(text, sizeof text, "%s_s", name);
    scalar(m, text, scale);
    snprintf(text, sizeof text, "%s_z", name);
    ot_constant(m, text, is_signed ? OP_I8 : OP_U8, 0, NULL, &byte);
}

/* Value `name` through bytes; they are NAME_q, the value read back NAME_d. */
static void through_bytes(struct ot *m, const char *name, float scale, int zero, bool is_signed) {
    char in[140], out[40];
    parameters(m, name, scale, zero, is_signed);
    snprintf(in, sizeof in, "%s %s_s %s_z", name, name, name);
    snprintf(out, sizeof out, "%s_q", name);
    ot_node(m, "QuantizeLinear", in, out);
    snprintf(in, sizeof in, "%s_q %s_s %s_z", name, name, name);
    snprintf(out, sizeof out, "%s_d", name);
    ot_node(m, "DequantizeLinear", in, out);
}

/* Constant bytes NAME_b read back as NAME, a scale for each of `n` along `axis`; u8 ones have the zero point 128. */
static void weights(struct ot *m, const char *name, int rank, const int64_t *dims, int axis, bool is_signed, float scale) {
    struct op_tensor t = {.dtype = OP_I8, .rank = rank};
    for (int i = 0; i < rank; i++) t.dims[i] = dims[i];
    const int64_t count = op_tensor_count(&t), n = dims[axis];
    uint8_t *b = malloc((size_t)count), *zeros = malloc((size_t)n);
    float *s = values(n, scale, 2 * scale);
    char text[140], parts[3][40];
    assert_true(b && zeros);
    for (int64_t i = 0; i < count; i++) b[i] = (uint8_t)((next() % 255) + (is_signed ? 129 : 1));
    memset(zeros, is_signed ? 0 : 128, (size_t)n);
    for (int i = 0; i < 3; i++) snprintf(parts[i], sizeof parts[i], "%s_%c", name, "bsz"[i]);
    ot_constant(m, parts[0], is_signed ? OP_I8 : OP_U8, rank, dims, b);
    ot_constant(m, parts[1], OP_F32, 1, &n, s);
    ot_constant(m, parts[2], is_signed ? OP_I8 : OP_U8, 1, &n, zeros);
    snprintf(text, sizeof text, "%s %s %s", parts[0], parts[1], parts[2]);
    ot_node(m, "DequantizeLinear", text, name);
    ot_int(m, "axis", axis);
    free(b);
    free(zeros);
    free(s);
}

/* One output, bytes. `off` of them may be one quantum off, the others are equal. */
static void compare_bytes(struct ot *m, const struct op_tensor *in, int n_in, const char *expected, double off) {
    static const char *const levels[] = {"generic", "avx2", "avx512", "vnni", "amx"};
    const struct op_load_options plain = {.reference = true};
    const struct op_session_options watched = {.on_node = note};
    const struct op_tensor *want, *got;
    struct op_error err = {0};
    struct op_model *reference = ot_load(m, &plain, &err);
    struct op_session *sa = reference ? op_session_create(reference, NULL, &err) : NULL;
    if (!sa || op_session_run(sa, in, n_in, &want, &err) != OP_OK) fail_msg("reference: %s", err.text);
    const int64_t n = op_tensor_count(want);
    uint8_t *first = NULL;
    for (size_t l = 0; l < sizeof levels / sizeof *levels; l++) {
        struct op_model *model = ot_load(m, &(struct op_load_options){.cpu = levels[l]}, &err);
        if (!model && strstr(err.text, "has no ISA level")) continue;
        struct op_session *s = model ? op_session_create(model, &watched, &err) : NULL;
        *ran = 0;
        if (!s || op_session_run(s, in, n_in, &got, &err) != OP_OK) fail_msg("%s: %s", levels[l], err.text);
        if (!strstr(ran, expected)) fail_msg("%s: %s ran, expected %s", levels[l], ran, expected);
        assert_int_equal(want->dtype, got->dtype);
        assert_memory_equal(want->dims, got->dims, (size_t)want->rank * sizeof(int64_t));
        int64_t differ = 0;
        for (int64_t i = 0; i < n; i++) {
            const uint8_t flip = want->dtype == OP_I8 ? 0x80 : 0;
            const int d = (((const uint8_t *)want->data)[i] ^ flip) - (((const uint8_t *)got->data)[i] ^ flip);
            if (d < -1 || d > 1) fail_msg("%s, %s: element %ld is off by %d of %ld", levels[l], ran, (long)i, d, (long)n);
            differ += d != 0;
        }
        if ((double)differ > off * (double)n + 2) fail_msg("%s, %s: %ld of %ld bytes are one quantum off", levels[l], ran, (long)differ, (long)n);
        if (first)
            assert_memory_equal(first, got->data, (size_t)n);
        else if ((first = malloc((size_t)n + 1)))
            memcpy(first, got->data, (size_t)n);
        op_session_destroy(s);
        op_model_release(model);
    }
    free(first);
    op_session_destroy(sa);
    op_model_release(reference);
    ot_end(m);
}

struct layer {
    int64_t channels, outputs, group, kernel, stride, pad, dilation;
};

/* A convolution of x_d, c, with its weights and perhaps a bias. */
static void convolution(struct ot *m, const struct layer *l, const char *x, const char *name, bool w_signed, bool bias) {
    const int64_t taps = l->kernel * l->kernel, depth = l->channels / l->group * taps;
    const float scale = 1.5f / sqrtf((float)depth) / 64;
    char in[80], w[20], b[20];
    snprintf(w, sizeof w, "%s_w", name);
    snprintf(b, sizeof b, "%s_b", name);
    weights(m, w, 4, DIMS(l->outputs, l->channels / l->group, l->kernel, l->kernel), 0, w_signed, scale);
    if (bias) constant(m, b, 1, &l->outputs, -1, 1);
    snprintf(in, sizeof in, "%s %s %s", x, w, bias ? b : "");
    ot_node(m, "Conv", in, name);
    ot_ints(m, "kernel_shape", 2, DIMS(l->kernel, l->kernel));
    ot_ints(m, "strides", 2, DIMS(l->stride, l->stride));
    ot_ints(m, "pads", 4, DIMS(l->pad, l->pad, l->pad, l->pad));
    ot_ints(m, "dilations", 2, DIMS(l->dilation, l->dilation));
    ot_int(m, "group", l->group);
}

static struct layer random_layer(int round) {
    struct layer l = {.channels = between(1, 40), .outputs = between(1, 70), .group = 1, .kernel = between(1, 4), .stride = between(1, 2), .dilation = between(1, 2)};
    l.pad = between(0, l.kernel);
    if (round % 7 == 3) l.group = 2, l.channels *= 2, l.outputs *= 2;
    if (round % 5 == 2) l.kernel = 1, l.pad = 0, l.channels = 4 * between(1, 20), l.group = 1;
    if (round % 3 == 1) l.outputs = l.group = l.channels; /* depthwise */
    if (round % 3 == 1 && round % 2) l.kernel = 3, l.pad = 1, l.dilation = 1;
    return l;
}

static void test_convolutions(void **state) {
    (void)state;
    for (int round = 0; round < 60; round++) {
        const struct layer l = random_layer(round);
        const bool is_signed = round % 4 == 3;
        struct ot m;
        ot_begin(&m, 17);
        ot_input(&m, "x", OP_F32, 4, DIMS(-1, l.channels, -1, -1));
        through_bytes(&m, "x", 4.0f / 255, 128, is_signed);
        convolution(&m, &l, "x_d", "c", round % 5 != 4, round % 2);
        const char *last = "c";
        if (round % 6 == 1) ot_node(&m, "Relu", last, "r"), last = "r";
        if (round % 6 == 2) scalar(&m, "lo", -0.5f), scalar(&m, "hi", 1.1f), ot_node(&m, "Clip", "c lo hi", "r"), last = "r";
        parameters(&m, "y", 0.02f, round % 6 == 1 ? 0 : 110, is_signed);
        char in[40];
        snprintf(in, sizeof in, "%s y_s y_z", last);
        ot_node(&m, "QuantizeLinear", in, "y");
        ot_output(&m, "y", is_signed ? OP_I8 : OP_U8, -1, NULL);
        struct op_tensor x = tensor(4, DIMS(between(1, 3), l.channels, between(9, 20), between(9, 20)));
        compare_bytes(&m, &x, 1, "QuantConv", 0.01);
        free(x.data);
    }
}

/* Two convolutions and their sum, which one of them takes in; one side may be a single pixel. */
static void test_sums_behind_convolutions(void **state) {
    (void)state;
    for (int round = 0; round < 12; round++) {
        const struct layer a = {between(1, 30), between(1, 70), 1, 3, 1, 1, 1}, b = {a.channels, a.outputs, 1, 1, 1, 0, 1};
        const bool is_signed = round % 2, pooled = round % 4 == 3;
        struct ot m;
        ot_begin(&m, 17);
        ot_input(&m, "x", OP_F32, 4, DIMS(-1, a.channels, -1, -1));
        through_bytes(&m, "x", 4.0f / 255, 128, is_signed);
        convolution(&m, &a, "x_d", "c", true, true);
        through_bytes(&m, "c", 0.02f, 130, is_signed);
        if (pooled) {
            ot_node(&m, "GlobalAveragePool", "x_d", "p");
            through_bytes(&m, "p", 0.004f, 128, is_signed);
        }
        convolution(&m, &b, pooled ? "p_d" : "x_d", "d", true, true);
        through_bytes(&m, "d", 0.03f, 120, is_signed);
        ot_node(&m, "Add", round % 3 ? "c_d d_d" : "d_d c_d", "s");
        if (round % 2) ot_node(&m, "Relu", "s", "r");
        parameters(&m, "y", 0.2f, round % 2 ? 0 : 128, is_signed); /* coarse: one quantum of an addend is a tenth of this one */
        ot_node(&m, "QuantizeLinear", round % 2 ? "r y_s y_z" : "s y_s y_z", "y");
        ot_output(&m, "y", is_signed ? OP_I8 : OP_U8, -1, NULL);
        struct op_tensor x = tensor(4, DIMS(2, a.channels, 11, 13));
        compare_bytes(&m, &x, 1, "ChannelsLastQuantConv", 0.03);
        if (strstr(ran, "QuantAdd")) fail_msg("round %d: %s", round, ran); /* of the last level */
        free(x.data);
    }
}

static void test_what_moves_bytes_and_pools_them(void **state) {
    (void)state;
    for (int is_signed = 0; is_signed < 2; is_signed++) {
        const struct layer a = {5, 24, 1, 3, 1, 1, 1};
        struct ot m;
        ot_begin(&m, 17);
        ot_input(&m, "x", OP_F32, 4, DIMS(-1, 5, -1, -1));
        through_bytes(&m, "x", 4.0f / 255, 128, is_signed);
        convolution(&m, &a, "x_d", "c", true, true);
        through_bytes(&m, "c", 0.02f, 100, is_signed);
        ot_node(&m, "MaxPool", "c_d", "p");
        ot_ints(&m, "kernel_shape", 2, DIMS(3, 3));
        ot_ints(&m, "strides", 2, DIMS(2, 2));
        ot_ints(&m, "pads", 4, DIMS(1, 1, 1, 1));
        through_bytes(&m, "p", 0.02f, 100, is_signed);
        ot_node(&m, "GlobalAveragePool", "p_d", "g");
        through_bytes(&m, "g", 0.01f, 90, is_signed);
        ot_node(&m, "Flatten", "g_d", "f");
        through_bytes(&m, "f", 0.01f, 90, is_signed);
        weights(&m, "w", 2, DIMS(9, 24), 0, true, 0.002f);
        constant(&m, "b", 1, DIMS(9), -1, 1);
        ot_node(&m, "Gemm", "f_d w b", "h");
        ot_int(&m, "transB", 1);
        parameters(&m, "y", 0.05f, 128, is_signed);
        ot_node(&m, "QuantizeLinear", "h y_s y_z", "y");
        ot_output(&m, "y", is_signed ? OP_I8 : OP_U8, -1, NULL);
        struct op_tensor x = tensor(4, DIMS(3, 5, 12, 15));
        compare_bytes(&m, &x, 1, "ChannelsLastQuantConv ChannelsLastMaxPool ChannelsLastQuantGlobalAveragePool", 0.05);
        assert_non_null(strstr(ran, "QuantMatMul"));
        free(x.data);
    }
}

static void test_products(void **state) {
    (void)state;
    for (int round = 0; round < 40; round++) {
        const int64_t m_ = between(1, 40), k = between(1, 130), n = between(1, 150);
        const bool is_signed = round % 3 == 2, bias = round & 1, act = round & 2, transposed = round % 5 == 4;
        struct ot m;
        ot_begin(&m, 20);
        ot_input(&m, "x", OP_F32, 2, DIMS(-1, k));
        through_bytes(&m, "x", 4.0f / 255, 120, is_signed);
        weights(&m, "w", 2, transposed ? DIMS(n, k) : DIMS(k, n), !transposed, round % 7 != 0, 1.5f / sqrtf((float)k) / 64);
        ot_node(&m, transposed ? "Gemm" : "MatMul", "x_d w", "c");
        if (transposed) ot_int(&m, "transB", 1);
        through_bytes(&m, "c", 0.03f, 128, is_signed);
        const char *last = "c_d";
        if (bias) {
            constant(&m, "b", 1, &n, -1, 1);
            ot_node(&m, "Add", "b c_d", "s");
            last = "s";
        }
        if (act) {
            ot_node(&m, "Gelu", last, "r");
            last = "r";
        }
        parameters(&m, "y", 0.3f, 30, is_signed);
        char in[40];
        snprintf(in, sizeof in, "%s y_s y_z", last);
        ot_node(&m, "QuantizeLinear", in, "y");
        ot_output(&m, "y", is_signed ? OP_I8 : OP_U8, -1, NULL);
        struct op_tensor x = tensor(2, DIMS(m_, k));
        compare_bytes(&m, &x, 1, "QuantMatMul", 0.03);
        free(x.data);
    }
}

/* Both sides made at run time, as in attention. */
static void test_products_of_activations(void **state) {
    (void)state;
    for (int round = 0; round < 8; round++) {
        const int64_t k = between(1, 70), n = between(1, 90);
        const bool is_signed = round & 1;
        struct ot m;
        ot_begin(&m, 17);
        ot_input(&m, "a", OP_F32, 4, DIMS(-1, -1, -1, k));
        ot_input(&m, "b", OP_F32, 4, DIMS(-1, -1, k, n));
        through_bytes(&m, "a", 4.0f / 255, 130, is_signed);
        through_bytes(&m, "b", 4.0f / 255, 117, round & 2);
        ot_node(&m, "MatMul", "a_d b_d", "c");
        parameters(&m, "y", 0.02f * sqrtf((float)k), 128, is_signed);
        ot_node(&m, "QuantizeLinear", "c y_s y_z", "y");
        ot_output(&m, "y", is_signed ? OP_I8 : OP_U8, -1, NULL);
        struct op_tensor in[2] = {tensor(4, DIMS(2, 3, between(1, 20), k)), tensor(4, DIMS(round % 3 ? 2 : 1, 3, k, n))};
        compare_bytes(&m, in, 2, "QuantMatMul", 0.01);
        free(in[0].data);
        free(in[1].data);
    }
}

/* Scales that are not constants, a product read by two: nothing is fused, the result is the reference's. */
static void test_what_is_not_fused(void **state) {
    (void)state;
    struct ot m;
    ot_begin(&m, 17);
    ot_input(&m, "x", OP_F32, 2, DIMS(-1, 8));
    ot_input(&m, "x_s", OP_F32, 0, NULL);
    const uint8_t zero = 128;
    ot_constant(&m, "x_z", OP_U8, 0, NULL, &zero);
    ot_node(&m, "QuantizeLinear", "x x_s x_z", "x_q");
    ot_node(&m, "DequantizeLinear", "x_q x_s x_z", "x_d");
    weights(&m, "w", 2, DIMS(8, 5), 1, true, 0.01f);
    ot_node(&m, "MatMul", "x_d w", "y");
    ot_output(&m, "y", OP_F32, -1, NULL);
    float scale = 0.03f;
    struct op_tensor in[2] = {tensor(2, DIMS(4, 8)), {.dtype = OP_F32, .data = &scale}};
    compare(&m, in, 2, "QuantizeLinear DequantizeLinear MatMul");
    free(in[0].data);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_convolutions), cmocka_unit_test(test_sums_behind_convolutions),
                                       cmocka_unit_test(test_what_moves_bytes_and_pools_them), cmocka_unit_test(test_products),
                                       cmocka_unit_test(test_products_of_activations), cmocka_unit_test(test_what_is_not_fused)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
