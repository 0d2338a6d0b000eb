/* Pooling, normalisation, ConvTranspose, Resize, attention and the Fourier transform: at random against the definitions written down
 * as plain loops in double precision, in the fast and in the plain form; the bits of a row alone and in a batch; empty tensors;
 * attributes that a hostile file could hold. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>

#include <cmocka.h>

#include "tests/unit/op_testing.h"

static uint32_t seed = 7;
static uint32_t bits(void) {
    seed = seed * 1664525u + 1013904223u;
    return seed >> 8;
}
static int pick(int lo, int hi) { /* both ends included */
    return lo + (int)(bits() % (uint32_t)(hi - lo + 1));
}
static float uniform(void) {
    return (float)bits() / 8388608.0f - 1;
}

static struct op_tensor tensor(int rank, const int64_t *dims) {
    struct op_tensor t = {.dtype = OP_F32, .rank = rank};
    memcpy(t.dims, dims, (size_t)rank * sizeof *dims);
    int64_t n = op_tensor_count(&t);
    float *v = calloc((size_t)n + 1, sizeof *v);
    for (int64_t i = 0; i < n; i++) v[i] = uniform();
    t.data = v;
    return t;
}
#define TENSOR(...) tensor((int)(sizeof((int64_t[]){__VA_ARGS__}) / sizeof(int64_t)), (int64_t[]){__VA_ARGS__})

static const float *values(const struct op_tensor *t) {
    return t->data;
}

/* Begins a model of one node over inputs i0, i1, …; attributes follow, then go(). */
static void node(struct ot *m, int opset, const char *domain, const char *op, const struct op_tensor *in, int n, const char *out) {
    char names[64] = "", name[16];
    ot_begin(m, opset);
    for (int i = 0; i < n; i++) {
        snprintf(name, sizeof name, "i%d ", i);
        strcat(names, in[i].dtype ? name : ". ");
        name[strlen(name) - 1] = 0;
        if (in[i].dtype) ot_input(m, name, in[i].dtype, in[i].rank, in[i].dims);
    }
    ot_node_of(m, domain, op, names, out);
}

static const struct op_tensor *go(struct ot *m, bool reference, const struct op_tensor *in, int n, const char *out, struct op_error *err) {
    struct op_tensor given[8];
    int n_given = 0;
    char name[16];
    for (const char *p = out; *p; p += strcspn(p, " "), p += *p == ' ') {
        snprintf(name, sizeof name, "%.*s", (int)strcspn(p, " "), p);
        ot_output(m, name, OP_F32, -1, NULL);
    }
    for (int i = 0; i < n; i++)
        if (in[i].dtype) given[n_given++] = in[i];
    return ot_run(m, &(struct op_load_options){.reference = reference}, given, n_given, err);
}

static const struct op_tensor *must(const struct op_tensor *out, const struct op_error *err) {
    if (!out) fail_msg("%s", err->text);
    return out;
}

static void near(const char *what, double found, double expected, double tolerance) {
    if (!(fabs(found - expected) <= tolerance * (1 + fabs(expected))) && !(found == expected) && !(isnan(found) && isnan(expected)))
        fail_msg("%s is %.9g, expected %.9g", what, found, expected);
}

/* --- pooling ----------------------------------------------------------------------------------- */

struct pool {
    const char *op;
    int rank, ceil_mode, include_pad, p;
    int64_t kernel[3], stride[3], dilation[3], pads[6], in[3], out[3];
};

static void random_pool(struct pool *q, const char *op) {
    *q = (struct pool){.op = op, .rank = pick(1, 3), .ceil_mode = pick(0, 1), .include_pad = pick(0, 1), .p = pick(1, 3)};
    for (int a = 0; a < q->rank; a++) {
        q->kernel[a] = pick(1, 4);
        q->stride[a] = pick(1, 3);
        q->dilation[a] = pick(0, 2) ? 1 : pick(1, 3);
        q->pads[a] = pick(0, (int)q->kernel[a] - 1);
        q->pads[q->rank + a] = pick(0, (int)q->kernel[a] - 1);
        int64_t span = (q->kernel[a] - 1) * q->dilation[a] + 1;
        q->in[a] = span + pick(0, q->rank == 3 ? 4 : 40);
        int64_t slack = q->in[a] + q->pads[a] + q->pads[q->rank + a] - span;
        q->out[a] = slack / q->stride[a] + 1;
        if (q->ceil_mode && slack % q->stride[a] && q->out[a] * q->stride[a] < q->in[a] + q->pads[a]) q->out[a]++;
    }
}

/* One output: walks the window over the padded plane. */
static double pooled(const struct pool *q, const float *plane, const int64_t *o) {
    int64_t taps = 1, counted = 0;
    double sum = 0, most = -INFINITY;
    for (int a = 0; a < q->rank; a++) taps *= q->kernel[a];
    for (int64_t k = 0; k < taps; k++) {
        int64_t rest = k, at = 0, tap[3];
        bool in_image = true, in_padded = true;
        for (int a = q->rank - 1; a >= 0; a--) {
            tap[a] = rest % q->kernel[a];
            rest /= q->kernel[a];
        }
        for (int a = 0; a < q->rank; a++) {
            int64_t pos = o[a] * q->stride[a] + tap[a] * q->dilation[a] - q->pads[a];
            in_image = in_image && pos >= 0 && pos < q->in[a];
            in_padded = in_padded && pos < q->in[a] + q->pads[q->rank + a];
            at = at * q->in[a] + pos;
        }
        if (in_padded && q->include_pad) counted++;
        if (!in_image) continue;
        double v = (double)plane[at];
        if (!q->include_pad) counted++;
        most = v > most ? v : most;
        sum += *q->op == 'L' ? pow(fabs(v), q->p) : v;
    }
    return *q->op == 'M' ? most : *q->op == 'L' ? pow(sum, 1.0 / q->p) : sum / (double)counted;
}

static void check_pool(const char *op, bool reference) {
    struct pool q;
    random_pool(&q, op);
    int64_t dims[5] = {2, 3, q.in[0], q.in[1], q.in[2]};
    struct op_tensor x = tensor(2 + q.rank, dims);
    struct ot m;
    struct op_error err;
    node(&m, 19, "", op, &x, 1, "y");
    ot_ints(&m, "kernel_shape", q.rank, q.kernel);
    ot_ints(&m, "strides", q.rank, q.stride);
    ot_ints(&m, "dilations", q.rank, q.dilation);
    ot_ints(&m, "pads", 2 * q.rank, q.pads);
    ot_int(&m, "ceil_mode", q.ceil_mode);
    if (*op == 'A') ot_int(&m, "count_include_pad", q.include_pad);
    if (*op == 'L') ot_int(&m, "p", q.p);
    const struct op_tensor *y = must(go(&m, reference, &x, 1, "y", &err), &err);
    int64_t in = 1, out = 1;
    for (int a = 0; a < q.rank; a++) {
        assert_int_equal(y->dims[2 + a], q.out[a]);
        in *= q.in[a];
        out *= q.out[a];
    }
    for (int64_t i = 0; i < 6 * out; i++) {
        int64_t o[3] = {0}, rest = i % out;
        for (int a = q.rank - 1; a >= 0; a--) {
            o[a] = rest % q.out[a];
            rest /= q.out[a];
        }
        near(op, (double)values(y)[i], pooled(&q, values(&x) + i / out * in, o), *op == 'M' ? 0 : 1e-5);
    }
    ot_end(&m);
    free(x.data);
}

static void test_pools_against_their_definition(void **state) {
    (void)state;
    for (int i = 0; i < 400; i++) {
        check_pool("MaxPool", i % 4 == 0);
        check_pool("AveragePool", i % 4 == 0);
        check_pool("LpPool", false);
    }
}

/* Wider than the strip that the fast form works on. */
static void test_wide_rows(void **state) {
    (void)state;
    struct op_tensor x = TENSOR(1, 2, 3, 3000);
    for (int op = 0; op < 2; op++)
        for (int s = 1; s < 4; s++) {
            const float *y[2];
            struct ot m[2];
            struct op_error err;
            int64_t n = 0;
            for (int reference = 0; reference < 2; reference++) {
                node(&m[reference], 19, "", op ? "MaxPool" : "AveragePool", &x, 1, "y");
                ot_ints(&m[reference], "kernel_shape", 2, (int64_t[]){2, 5});
                ot_ints(&m[reference], "strides", 2, (int64_t[]){1, s});
                ot_ints(&m[reference], "pads", 4, (int64_t[]){1, 2, 0, 3});
                const struct op_tensor *out = must(go(&m[reference], reference, &x, 1, "y", &err), &err);
                y[reference] = values(out);
                n = op_tensor_count(out);
            }
            for (int64_t i = 0; i < n; i++) near("wide", (double)y[0][i], (double)y[1][i], 1e-6);
            ot_end(&m[0]);
            ot_end(&m[1]);
        }
    free(x.data);
}

static void test_max_pool_bytes_and_indices(void **state) {
    (void)state;
    uint8_t bytes[12] = {9, 2, 3, 4, 5, 250, 7, 8, 1, 0, 11, 12};
    for (int type = 0; type < 2; type++)
        for (int reference = 0; reference < 2; reference++) {
            struct op_tensor x = {.dtype = type ? OP_U8 : OP_I8, .rank = 4, .dims = {1, 1, 3, 4}, .data = bytes};
            struct ot m;
            struct op_error err;
            ot_begin(&m, 12);
            ot_input(&m, "x", x.dtype, 4, x.dims);
            ot_node(&m, "MaxPool", "x", "y");
            ot_ints(&m, "kernel_shape", 2, (int64_t[]){2, 2});
            ot_output(&m, "y", x.dtype, -1, NULL);
            const struct op_tensor *y = must(ot_run(&m, &(struct op_load_options){.reference = reference}, &x, 1, &err), &err);
            const uint8_t unsigned_max[] = {250, 250, 8, 250, 250, 12}, signed_max[] = {9, 7, 8, 5, 11, 12};
            assert_memory_equal(y->data, type ? unsigned_max : signed_max, 6);
            ot_end(&m);
        }
}

/* --- normalisation ----------------------------------------------------------------------------- */

static void statistics(const float *x, int64_t n, double *mean, double *var) {
    double s = 0, q = 0;
    for (int64_t i = 0; i < n; i++) s += (double)x[i];
    *mean = s / (double)n;
    for (int64_t i = 0; i < n; i++) q += ((double)x[i] - *mean) * ((double)x[i] - *mean);
    *var = q / (double)n;
}

static void test_instance_and_group_normalization(void **state) {
    (void)state;
    for (int i = 0; i < 60; i++) {
        int64_t n = pick(1, 3), groups = pick(1, 3), per = pick(1, 4), c = groups * per, size = pick(1, 3000);
        bool instance = i % 3 == 0, per_group = i % 3 == 1;
        if (instance) per = 1, groups = c;
        int64_t k = per_group ? groups : c;
        struct op_tensor in[3] = {TENSOR(n, c, size), TENSOR(k), TENSOR(k)};
        struct ot m;
        struct op_error err;
        node(&m, per_group ? 18 : 21, "", instance ? "InstanceNormalization" : "GroupNormalization", in, 3, "y");
        if (!instance) ot_int(&m, "num_groups", groups);
        const float *y = values(must(go(&m, i % 2, in, 3, "y", &err), &err));
        for (int64_t j = 0; j < n * c * size; j += 97) { /* a sample: the statistics are computed anew for each */
            double mean, var;
            int64_t channel = j / size % c, group = j / (per * size);
            statistics(values(&in[0]) + group * per * size, per * size, &mean, &var);
            int64_t f = per_group ? channel / per : channel;
            double want = ((double)values(&in[0])[j] - mean) / sqrt(var + 1e-5) * (double)values(&in[1])[f] + (double)values(&in[2])[f];
            near("normalised", (double)y[j], want, 3e-5);
        }
        ot_end(&m);
        for (int j = 0; j < 3; j++) free(in[j].data);
    }
}

static void test_layer_and_rms_normalization(void **state) {
    (void)state;
    for (int i = 0; i < 80; i++) {
        int64_t rows = pick(1, 40), size = pick(1, 900);
        bool rms = i % 2, broadcast = i % 5 == 0;
        struct op_tensor in[3] = {TENSOR(rows, size), TENSOR(broadcast ? 1 : size), TENSOR(size)};
        int n_in = rms ? 2 : 3;
        struct ot m;
        struct op_error err;
        node(&m, 23, "", rms ? "RMSNormalization" : "LayerNormalization", in, n_in, "y");
        ot_float(&m, "epsilon", 1e-3f);
        const float *y = values(must(go(&m, i % 3 == 0, in, n_in, "y", &err), &err));
        for (int64_t r = 0; r < rows; r++) {
            const float *x = values(&in[0]) + r * size;
            double mean, var;
            statistics(x, size, &mean, &var);
            if (rms) var += mean * mean, mean = 0;
            for (int64_t j = 0; j < size; j++) {
                double want = ((double)x[j] - mean) / sqrt(var + 1e-3) * (double)values(&in[1])[broadcast ? 0 : j];
                near("row", (double)y[r * size + j], rms ? want : want + (double)values(&in[2])[j], 3e-5);
            }
        }
        ot_end(&m);
        for (int j = 0; j < 3; j++) free(in[j].data);
    }
}

static void test_batch_normalization_training(void **state) {
    (void)state;
    int64_t n = 4, c = 3, size = 50;
    struct op_tensor in[5] = {TENSOR(n, c, size), TENSOR(c), TENSOR(c), TENSOR(c), TENSOR(c)};
    struct ot m;
    struct op_error err;
    node(&m, 15, "", "BatchNormalization", in, 5, "y mean var");
    ot_int(&m, "training_mode", 1);
    ot_float(&m, "momentum", 0.8f);
    const struct op_tensor *out = must(go(&m, false, in, 5, "y mean var", &err), &err);
    for (int64_t k = 0; k < c; k++) {
        float column[200];
        double mean, var;
        for (int64_t i = 0; i < n * size; i++) column[i] = values(&in[0])[(i / size * c + k) * size + i % size];
        statistics(column, n * size, &mean, &var);
        near("running mean", (double)values(&out[1])[k], (double)values(&in[3])[k] * 0.8 + mean * 0.2, 1e-5);
        near("running variance", (double)values(&out[2])[k], (double)values(&in[4])[k] * 0.8 + var * 0.2, 1e-5);
        double want = ((double)column[7] - mean) / sqrt(var + 1e-5) * (double)values(&in[1])[k] + (double)values(&in[2])[k];
        near("y", (double)values(&out[0])[k * size + 7], want, 1e-5);
    }
    ot_end(&m);
    for (int j = 0; j < 5; j++) free(in[j].data);
}

/* --- ConvTranspose ------------------------------------------------------------------------------- */

static void test_conv_transpose_scatters(void **state) {
    (void)state;
    for (int i = 0; i < 150; i++) {
        int64_t g = pick(1, 3), ci = pick(1, 5), co = pick(1, 7), h = pick(1, 9), w = pick(1, 40), kh = pick(1, 4), kw = pick(1, 4);
        int64_t s[2] = {pick(1, 3), pick(1, 3)}, d[2] = {pick(1, 2), pick(1, 2)}, pads[4] = {0};
        int64_t extra[2] = {pick(0, (int)s[0] - 1), pick(0, (int)s[1] - 1)};
        for (int a = 0; a < 4; a++) pads[a] = pick(0, (int)(a % 2 ? kw : kh) - 1);
        int64_t oh = s[0] * (h - 1) + (kh - 1) * d[0] + 1 + extra[0] - pads[0] - pads[2];
        int64_t ow = s[1] * (w - 1) + (kw - 1) * d[1] + 1 + extra[1] - pads[1] - pads[3];
        if (oh < 1 || ow < 1) continue;
        struct op_tensor in[3] = {TENSOR(2, g * ci, h, w), TENSOR(g * ci, co, kh, kw), TENSOR(g * co)};
        struct ot m;
        struct op_error err;
        node(&m, 11, "", "ConvTranspose", in, 3, "y");
        ot_int(&m, "group", g);
        ot_ints(&m, "strides", 2, s);
        ot_ints(&m, "dilations", 2, d);
        ot_ints(&m, "pads", 4, pads);
        ot_ints(&m, "output_padding", 2, extra);
        const struct op_tensor *y = must(go(&m, i % 4 == 0, in, 3, "y", &err), &err);
        assert_int_equal(y->dims[2], oh);
        assert_int_equal(y->dims[3], ow);
        double *want = calloc((size_t)(2 * g * co * oh * ow), sizeof *want);
        for (int64_t k = 0; k < 2 * g * co * oh * ow; k++) want[k] = (double)values(&in[2])[k / (oh * ow) % (g * co)];
        for (int64_t k = 0; k < 2 * g * ci * h * w; k++)
            for (int64_t t = 0; t < co * kh * kw; t++) {
                int64_t c = k / (h * w) % (g * ci), n = k / (h * w) / (g * ci), o = t / (kh * kw);
                int64_t py = k / w % h * s[0] + t / kw % kh * d[0] - pads[0], px = k % w * s[1] + t % kw * d[1] - pads[1];
                if (py < 0 || px < 0 || py >= oh || px >= ow) continue;
                want[((n * g * co + c / ci * co + o) * oh + py) * ow + px] += (double)values(&in[0])[k] * (double)values(&in[1])[c * co * kh * kw + t];
            }
        for (int64_t k = 0; k < 2 * g * co * oh * ow; k++) near("y", (double)values(y)[k], want[k], 1e-5);
        free(want);
        ot_end(&m);
        for (int j = 0; j < 3; j++) free(in[j].data);
    }
}

/* --- Resize ------------------------------------------------------------------------------------ */

static void resize(struct ot *m, const struct op_tensor *x, const int64_t *sizes, const char *mode, const char *coordinates, int antialias) {
    ot_begin(m, 19);
    ot_input(m, "i0", x->dtype, x->rank, x->dims);
    ot_constant(m, "sizes", OP_I64, 1, (int64_t[]){x->rank}, sizes);
    ot_node(m, "Resize", "i0 . . sizes", "y");
    ot_string(m, "mode", mode);
    ot_string(m, "coordinate_transformation_mode", coordinates);
    ot_int(m, "antialias", antialias);
}

/* The fast forms against the general one, which weighs the product of all axes' taps. */
static void test_resize_forms_agree(void **state) {
    (void)state;
    const char *const modes[] = {"nearest", "linear", "cubic"};
    const char *const coordinates[] = {"half_pixel", "align_corners", "asymmetric", "pytorch_half_pixel", "half_pixel_symmetric"};
    for (int i = 0; i < 300; i++) {
        struct op_tensor x = TENSOR(pick(1, 2), pick(1, 2), pick(1, 20), pick(1, 20));
        int64_t sizes[4] = {x.dims[0], i % 7 ? x.dims[1] : 3, pick(1, 40), pick(1, 40)};
        const struct op_tensor *y[2];
        struct ot m[2];
        struct op_error err;
        for (int reference = 0; reference < 2; reference++) {
            resize(&m[reference], &x, sizes, modes[i % 3], coordinates[i % 5], i / 3 % 2);
            y[reference] = must(go(&m[reference], reference, &x, 1, "y", &err), &err);
        }
        for (int a = 0; a < 4; a++) assert_int_equal(y[0]->dims[a], sizes[a]);
        for (int64_t j = 0; j < op_tensor_count(y[0]); j++) near(modes[i % 3], (double)values(y[0])[j], (double)values(y[1])[j], 1e-5);
        ot_end(&m[0]);
        ot_end(&m[1]);
        free(x.data);
    }
}

/* Linear interpolation gives a plane back, whatever the sizes. */
static void test_resize_keeps_a_plane(void **state) {
    (void)state;
    struct op_tensor x = TENSOR(1, 1, 5, 9);
    for (int64_t i = 0; i < 45; i++) ((float *)x.data)[i] = (float)(3 * (i / 9) - 2 * (i % 9));
    int64_t sizes[4] = {1, 1, 13, 4};
    struct ot m;
    struct op_error err;
    resize(&m, &x, sizes, "linear", "align_corners", 0);
    const float *y = values(must(go(&m, false, &x, 1, "y", &err), &err));
    for (int64_t i = 0; i < 52; i++) near("plane", (double)y[i], 3.0 * 4 * (double)(i / 4) / 12 - 2.0 * 8 * (double)(i % 4) / 3, 1e-6);
    ot_end(&m);
    free(x.data);
}

/* Resize 10 has no coordinate attributes and rounds up when it shrinks; later ones meet whole positions where the scale means to. */
static void test_nearest_positions(void **state) {
    (void)state;
    const float scales[4] = {1, 1, 1, 0.6f}, first[] = {0, 2, 4, 5, 7, 9}, floor_of[] = {0, 1, 3, 5, 6, 8};
    struct op_tensor x = TENSOR(1, 1, 1, 10);
    for (int i = 0; i < 10; i++) ((float *)x.data)[i] = (float)i;
    for (int opset = 10; opset < 14; opset += 3) {
        struct ot m;
        struct op_error err;
        ot_begin(&m, opset);
        ot_input(&m, "i0", OP_F32, 4, x.dims);
        ot_constant(&m, "scales", OP_F32, 1, (int64_t[]){4}, scales);
        ot_node(&m, "Resize", opset == 10 ? "i0 scales" : "i0 . scales", "y");
        ot_string(&m, "mode", "nearest");
        if (opset > 10) ot_string(&m, "coordinate_transformation_mode", "asymmetric");
        if (opset > 10) ot_string(&m, "nearest_mode", "floor");
        const struct op_tensor *y = must(go(&m, false, &x, 1, "y", &err), &err);
        assert_int_equal(y->dims[3], 6);
        assert_memory_equal(y->data, opset == 10 ? first : floor_of, sizeof first);
        ot_end(&m);
    }
    free(x.data);
}

/* The loop over four corners of f32 planes against the lists of places that f64 goes through; some positions are outside. */
static void test_grid_sample_corners_are_the_lists(void **state) {
    (void)state;
    static const char *const paddings[] = {"zeros", "border", "reflection"};
    for (int i = 0; i < 12; i++) {
        struct op_tensor x = TENSOR(2, 3, pick(1, 9), pick(2, 9)), grid = TENSOR(2, 5, 90, 2), wide = x;
        double *doubles = malloc((size_t)op_tensor_count(&x) * sizeof *doubles);
        assert_non_null(doubles);
        for (int64_t j = 0; j < op_tensor_count(&x); j++) doubles[j] = (double)values(&x)[j];
        for (int64_t j = 0; j < op_tensor_count(&grid); j++) ((float *)grid.data)[j] *= 1.2f;
        ((float *)grid.data)[7] = NAN;
        wide.dtype = OP_F64;
        wide.data = doubles;
        const struct op_tensor *y[2];
        struct ot m[2];
        struct op_error err;
        for (int k = 0; k < 2; k++) {
            const struct op_tensor in[2] = {k ? wide : x, grid};
            node(&m[k], 20, "", "GridSample", in, 2, "y");
            ot_string(&m[k], "padding_mode", paddings[i % 3]);
            ot_int(&m[k], "align_corners", i / 3 % 2);
            y[k] = must(go(&m[k], false, in, 2, "y", &err), &err);
        }
        for (int64_t j = 0; j < op_tensor_count(y[0]); j++) near("y", (double)values(y[0])[j], ((const double *)y[1]->data)[j], 2e-6);
        ot_end(&m[0]), ot_end(&m[1]);
        free(x.data), free(grid.data), free(doubles);
    }
}

/* --- attention --------------------------------------------------------------------------------- */

static void test_attention_forms_agree(void **state) {
    (void)state;
    for (int i = 0; i < 80; i++) {
        int64_t b = pick(1, 3), kv = pick(1, 3), h = kv * pick(1, 3), s = pick(1, 70), l = pick(1, 90), d = pick(1, 33), e = pick(1, 20);
        if (i % 5 == 2) e = pick(60, 140); /* more than one panel of values at any level */
        if (i % 10 > 7) { /* several blocks of keys */
            b = h = kv = 1;
            l = pick(500, 1300);
        }
        struct op_tensor in[4] = {TENSOR(b, h, s, d), TENSOR(b, kv, l, d), TENSOR(b, kv, l, e), TENSOR(s, l)};
        int n = i % 2 ? 4 : 3;
        for (int64_t j = 0; j < s * l; j++)
            if (j % l && pick(0, 2) == 0) ((float *)in[3].data)[j] = -INFINITY;
        if (i % 20 == 19) /* the first block is hidden from all but the first query */
            for (int64_t j = l; j < s * l; j++)
                if (j % l < 512 && j % l != l - 1) ((float *)in[3].data)[j] = -INFINITY;
        const struct op_tensor *y[2];
        struct ot m[2];
        struct op_error err;
        for (int reference = 0; reference < 2; reference++) {
            node(&m[reference], 23, "", "Attention", in, n, "y");
            ot_int(&m[reference], "is_causal", i / 2 % 2);
            if (i / 4 % 2) ot_float(&m[reference], "softcap", 1.5f);
            y[reference] = must(go(&m[reference], reference, in, n, "y", &err), &err);
        }
        for (int64_t j = 0; j < op_tensor_count(y[0]); j++) near("y", (double)values(y[0])[j], (double)values(y[1])[j], 2e-5);
        ot_end(&m[0]);
        ot_end(&m[1]);
        for (int j = 0; j < 4; j++) free(in[j].data);
    }
}

/* --- the Fourier transform ----------------------------------------------------------------------- */

static void test_dft_of_every_length(void **state) {
    (void)state;
    for (int64_t n = 1; n <= 40; n++)
        for (int inverse = 0; inverse < 2; inverse++) {
            struct op_tensor x = TENSOR(1, n, 2);
            struct ot m;
            struct op_error err;
            node(&m, 20, "", "DFT", &x, 1, "y");
            ot_int(&m, "inverse", inverse);
            const float *y = values(must(go(&m, false, &x, 1, "y", &err), &err));
            for (int64_t k = 0; k < n; k++) {
                double re = 0, im = 0;
                for (int64_t j = 0; j < n; j++) {
                    double angle = (inverse ? 2 : -2) * M_PI * (double)(j * k) / (double)n, a = (double)values(&x)[2 * j], b = (double)values(&x)[2 * j + 1];
                    re += a * cos(angle) - b * sin(angle);
                    im += a * sin(angle) + b * cos(angle);
                }
                near("re", (double)y[2 * k], inverse ? re / (double)n : re, 1e-6);
                near("im", (double)y[2 * k + 1], inverse ? im / (double)n : im, 1e-6);
            }
            ot_end(&m);
            free(x.data);
        }
}

/* --- the same bits, nothing, and hostile attributes ---------------------------------------------- */

static void test_rows_keep_their_bits_in_a_batch(void **state) {
    (void)state;
    static const char *const ops[] = {"MaxPool", "AveragePool", "GlobalAveragePool", "InstanceNormalization", "ConvTranspose", "LayerNormalization", "LRN"};
    for (size_t i = 0; i < sizeof ops / sizeof *ops; i++) {
        struct op_tensor in[3] = {TENSOR(5, 4, 9, 33), TENSOR(4, 3, 3, 3), {0}}, one = in[0];
        int n = i == 3 || i == 4 ? 2 : i == 5 ? 2 : 1;
        if (i == 3) in[1].rank = 1, in[2] = in[1], n = 3;
        if (i == 5) in[1] = (struct op_tensor){.dtype = OP_F32, .rank = 1, .dims = {33}, .data = in[1].data};
        struct ot m;
        struct op_error err;
        node(&m, 17, "", ops[i], in, n, "y");
        if (i < 2) ot_ints(&m, "kernel_shape", 2, (int64_t[]){3, 3});
        if (i == 6) ot_int(&m, "size", 3);
        const struct op_tensor *y = must(go(&m, false, in, n, "y", &err), &err);
        size_t bytes = (size_t)(op_tensor_bytes(y) / 5);
        one.dims[0] = 1;
        for (int r = 0; r < 5; r++) {
            struct ot alone;
            struct op_tensor part[3] = {one, in[1], in[2]};
            part[0].data = (float *)in[0].data + r * 4 * 9 * 33;
            node(&alone, 17, "", ops[i], part, n, "y");
            if (i < 2) ot_ints(&alone, "kernel_shape", 2, (int64_t[]){3, 3});
            if (i == 6) ot_int(&alone, "size", 3);
            const struct op_tensor *z = must(go(&alone, false, part, n, "y", &err), &err);
            assert_memory_equal((const char *)y->data + (size_t)r * bytes, z->data, bytes);
            ot_end(&alone);
        }
        ot_end(&m);
        free(in[0].data);
        free(in[1].data);
    }
}

static void test_empty_batches(void **state) {
    (void)state;
    static const char *const ops[] = {"MaxPool",    "AveragePool", "LpPool", "GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool",
                                      "LayerNormalization", "LpNormalization", "MeanVarianceNormalization", "LRN", "ConvTranspose"};
    for (size_t i = 0; i < sizeof ops / sizeof *ops; i++)
        for (int reference = 0; reference < 2; reference++) {
            struct op_tensor in[2] = {TENSOR(0, 4, 6, 7), TENSOR(4, 2, 2, 2)};
            int n = i == 10 || i == 6 ? 2 : 1;
            if (i == 6) in[1] = (struct op_tensor){.dtype = OP_F32, .rank = 1, .dims = {7}, .data = in[1].data};
            struct ot m;
            struct op_error err;
            node(&m, 17, "", ops[i], in, n, "y");
            if (i < 3) ot_ints(&m, "kernel_shape", 2, (int64_t[]){2, 2});
            if (i == 9) ot_int(&m, "size", 3);
            if (i == 8) ot_ints(&m, "axes", 2, (int64_t[]){2, 3});
            const struct op_tensor *y = must(go(&m, reference, in, n, "y", &err), &err);
            assert_int_equal(op_tensor_count(y), 0);
            assert_int_equal(y->dims[0], 0);
            ot_end(&m);
            free(in[0].data);
            free(in[1].data);
        }
}

struct hostile {
    const char *op, *attr;
    int64_t n, v[4];
    const char *says;
};

static void test_refuses_hostile_attributes(void **state) {
    (void)state;
    const int64_t big = INT64_MAX, low = INT64_MIN;
    const struct hostile cases[] = {
        {"MaxPool", "strides", 2, {0, 1}, "strides[0] is 0"},
        {"MaxPool", "strides", 2, {1, -1}, "strides[1] is -1"},
        {"MaxPool", "kernel_shape", 2, {0, 2}, "kernel_shape[0] is 0"},
        {"MaxPool", "kernel_shape", 2, {big, 2}, "kernel_shape[0]"},
        {"MaxPool", "kernel_shape", 2, {1 << 30, 2}, "the window spans"},
        {"MaxPool", "kernel_shape", 3, {2, 2, 2}, "kernel_shape has 3 values"},
        {"MaxPool", "kernel_shape", 0, {0}, "kernel_shape"},
        {"MaxPool", "pads", 4, {-1, 0, 0, 0}, "pads[0] is -1"},
        {"MaxPool", "pads", 4, {0, 0, 0, big}, "pads[3]"},
        {"MaxPool", "pads", 3, {0, 0, 0}, "pads has 3 values"},
        {"MaxPool", "dilations", 2, {1 << 30, 1 << 30}, "the window spans"},
        {"MaxPool", "dilations", 2, {low, 1}, "dilations[0]"},
        {"AveragePool", "strides", 2, {big, big}, "strides[0]"},
        {"LpPool", "dilations", 2, {0, 0}, "dilations[0] is 0"},
        {"ConvTranspose", "strides", 2, {0, 1}, "strides[0] is 0"},
        {"ConvTranspose", "strides", 2, {1u << 31, 1u << 31}, ""},
        {"ConvTranspose", "dilations", 2, {1u << 31, 1u << 31}, ""},
        {"ConvTranspose", "output_shape", 2, {-1, 4}, "output_shape[0] is -1"},
        {"ConvTranspose", "output_padding", 2, {1u << 31, 1u << 31}, ""},
        {"ConvTranspose", "pads", 4, {100, 0, 100, 0}, "the output would have extent"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        for (int reference = 0; reference < 2; reference++) {
            struct op_tensor in[2] = {TENSOR(1, 2, 6, 7), TENSOR(2, 2, 2, 2)};
            bool conv = *cases[i].op == 'C';
            struct ot m;
            struct op_error err;
            node(&m, 18, "", cases[i].op, in, conv ? 2 : 1, "y");
            if (!conv && strcmp(cases[i].attr, "kernel_shape")) ot_ints(&m, "kernel_shape", 2, (int64_t[]){2, 2});
            ot_ints(&m, cases[i].attr, cases[i].n, cases[i].v);
            if (go(&m, reference, in, conv ? 2 : 1, "y", &err)) fail_msg("case %zu of %s ran", i, cases[i].op);
            if (!strstr(err.text, cases[i].says)) fail_msg("case %zu: \"%s\" does not say \"%s\"", i, err.text, cases[i].says);
            assert_true(err.text[0]);
            ot_end(&m);
            free(in[0].data);
            free(in[1].data);
        }
}

static void test_refuses_resize_beyond_reason(void **state) {
    (void)state;
    struct op_tensor x = TENSOR(1, 1, 3, 3);
    const int64_t sizes[][4] = {{1, 1, -1, 3}, {1, 1, INT64_MAX, 3}, {1, 1, (int64_t)1 << 40, (int64_t)1 << 40}};
    for (int i = 0; i < 3; i++) {
        struct ot m;
        struct op_error err;
        resize(&m, &x, sizes[i], i % 2 ? "linear" : "nearest", "half_pixel", 0);
        assert_null(go(&m, false, &x, 1, "y", &err));
        assert_true(err.text[0]);
        ot_end(&m);
    }
    const float bad[] = {0, -1, NAN, INFINITY, 1e30f};
    for (int i = 0; i < 5; i++) {
        struct ot m;
        struct op_error err;
        float scales[4] = {1, 1, bad[i], 1};
        ot_begin(&m, 13);
        ot_input(&m, "i0", OP_F32, 4, x.dims);
        ot_constant(&m, "scales", OP_F32, 1, (int64_t[]){4}, scales);
        ot_node(&m, "Resize", "i0 . scales", "y");
        assert_null(go(&m, false, &x, 1, "y", &err));
        assert_non_null(strstr(err.text, "scales[2]"));
        ot_end(&m);
    }
    free(x.data);
}

/* Indices, regions and places that are data. */
static void test_refuses_data_out_of_range(void **state) {
    (void)state;
    struct ot m;
    struct op_error err;
    int64_t index[1] = {99};
    struct op_tensor unpool[2] = {TENSOR(1, 1, 1, 1), {.dtype = OP_I64, .rank = 4, .dims = {1, 1, 1, 1}, .data = index}};
    node(&m, 11, "", "MaxUnpool", unpool, 2, "y");
    ot_ints(&m, "kernel_shape", 2, (int64_t[]){2, 2});
    assert_null(go(&m, false, unpool, 2, "y", &err));
    assert_non_null(strstr(err.text, "I[0] is 99"));
    ot_end(&m);
    float region[4] = {0, 0, 1e9f, 1e9f};
    struct op_tensor roi[3] = {TENSOR(1, 1, 4, 4), {.dtype = OP_F32, .rank = 2, .dims = {1, 4}, .data = region},
                               {.dtype = OP_I64, .rank = 1, .dims = {1}, .data = index}};
    for (int i = 0; i < 2; i++) {
        node(&m, 16, "", "RoiAlign", roi, 3, "y");
        assert_null(go(&m, false, roi, 3, "y", &err));
        assert_non_null(strstr(err.text, i ? "samples a bin" : "batch_indices[0] is 99"));
        ot_end(&m);
        index[0] = 0;
    }
    free(unpool[0].data);
    free(roi[0].data);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_pools_against_their_definition),
        cmocka_unit_test(test_wide_rows),
        cmocka_unit_test(test_max_pool_bytes_and_indices),
        cmocka_unit_test(test_instance_and_group_normalization),
        cmocka_unit_test(test_layer_and_rms_normalization),
        cmocka_unit_test(test_batch_normalization_training),
        cmocka_unit_test(test_conv_transpose_scatters),
        cmocka_unit_test(test_resize_forms_agree),
        cmocka_unit_test(test_resize_keeps_a_plane),
        cmocka_unit_test(test_nearest_positions),
        cmocka_unit_test(test_grid_sample_corners_are_the_lists),
        cmocka_unit_test(test_attention_forms_agree),
        cmocka_unit_test(test_dft_of_every_length),
        cmocka_unit_test(test_rows_keep_their_bits_in_a_batch),
        cmocka_unit_test(test_empty_batches),
        cmocka_unit_test(test_refuses_hostile_attributes),
        cmocka_unit_test(test_refuses_resize_beyond_reason),
        cmocka_unit_test(test_refuses_data_out_of_range),
    };
    return cmocka_run_group_tests_name("op_nn", tests, NULL, NULL);
}
