/* Data movement and indexing against naive index arithmetic: random shapes, every element size,
 * empties, scalars, duplicates, indices out of range, and sizes that must be refused before
 * anything is allocated. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdio.h>

#include "ops/op/move.h"
#include "tests/unit/op_testing.h"

static uint64_t seed = 1;
static int64_t below(int64_t n) { /* splitmix64; in [0, n) */
    uint64_t z = seed += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return (int64_t)((z ^ z >> 31) % (uint64_t)n);
}

static struct op_tensor tensor(enum op_type dtype, int rank, const int64_t *dims, void *data) {
    struct op_tensor t = {.dtype = dtype, .rank = rank, .data = data};
    if (rank) memcpy(t.dims, dims, (size_t)rank * sizeof *dims);
    return t;
}
static struct op_tensor vec(int64_t n, const int64_t *values) {
    return tensor(OP_I64, 1, &n, (void *)(uintptr_t)values);
}

/* A model of one node whose inputs are all given at run time. */
static void begin(struct ot *m, int opset, const char *op_type, const char *in, const char *out,
                  const struct op_tensor *inputs, int n) {
    static const char *const names[] = {"a", "b", "c", "d", "e"};
    ot_begin(m, opset);
    for (int i = 0; i < n; i++) ot_input(m, names[i], inputs[i].dtype, -1, NULL);
    ot_node(m, op_type, in, out);
}

static const struct op_tensor *finish(struct ot *m, const char *outs,
                                      const struct op_tensor *inputs, int n) {
    struct op_error err;
    char one[2] = {0, 0};
    for (; *outs; outs++) {
        one[0] = *outs;
        ot_output(m, one, OP_F32, -1, NULL);
    }
    const struct op_tensor *y = ot_run(m, NULL, inputs, n, &err);
    if (!y) fail_msg("%s", err.text);
    return y;
}

/* The run fails with this code and with each of the words in its message. */
static void refused(struct ot *m, const struct op_tensor *inputs, int n, enum op_status code,
                    const char *const *words) {
    struct op_error err;
    ot_output(m, "y", OP_F32, -1, NULL);
    assert_null(ot_run(m, NULL, inputs, n, &err));
    if (code != OP_OK) assert_int_equal(err.code, code);
    for (; words && *words; words++)
        if (!strstr(err.text, *words)) fail_msg("\"%s\" is not in \"%s\"", *words, err.text);
    ot_end(m);
}

static void random_dims(int rank, int64_t *dims, int64_t max) {
    for (int i = 0; i < rank; i++) dims[i] = below(12) ? 1 + below(max) : 0;
}
static int64_t count(int rank, const int64_t *dims) {
    return op__product(dims, 0, rank);
}
static void unflatten(int64_t flat, int rank, const int64_t *dims, int64_t *at) {
    for (int i = rank - 1; i >= 0; i--) {
        at[i] = flat % dims[i];
        flat /= dims[i];
    }
}
static int64_t flatten(int rank, const int64_t *dims, const int64_t *at) {
    int64_t flat = 0;
    for (int i = 0; i < rank; i++) flat = flat * dims[i] + at[i];
    return flat;
}
static void same_dims(const struct op_tensor *t, int rank, const int64_t *dims) {
    assert_int_equal(t->rank, rank);
    for (int i = 0; i < rank; i++) assert_int_equal(t->dims[i], dims[i]);
}
static float *iota(int64_t n) {
    float *x = malloc((size_t)(n + 1) * sizeof *x);
    for (int64_t i = 0; i < n; i++) x[i] = (float)i;
    return x;
}

/* --- the strided copy ----------------------------------------------------------------------------
 */

static void test_move_matches_the_definition(void **state) {
    (void)state;
    static const size_t sizes[] = {1, 2, 4, 8, 16};
    static uint8_t src[1 << 18], dst[1 << 18], want[1 << 18];
    for (size_t i = 0; i < sizeof src; i++) src[i] = (uint8_t)below(256);
    for (int round = 0; round < 4000; round++) {
        struct op__move m = {0};
        size_t elem = sizes[round % 5];
        int rank = (int)below(6), order[6];
        int64_t dims[6], from[6], lowest = 0, at[6];
        for (int i = 0; i < rank; i++) order[i] = i;
        for (int i = rank - 1; i > 0; i--) {
            int j = (int)below(i + 1), t = order[i];
            order[i] = order[j];
            order[j] = t;
        }
        for (int i = 0; i < rank; i++) dims[i] = 1 + below(round % 3 ? 5 : 9);
        if (round % 7 == 0 && rank == 2) dims[0] = 1 + below(70), dims[1] = 1 + below(70);
        int64_t step = 1;
        for (int i = rank - 1; i >= 0;
             i--) { /* source strides: dense in a random order, now and then 0 or backwards */
            from[order[i]] = step;
            step *= dims[order[i]];
        }
        for (int i = 0; i < rank; i++) {
            if (!below(6)) from[i] = 0;
            if (!below(6)) from[i] = -from[i];
            if (from[i] < 0) lowest += from[i] * (dims[i] - 1);
        }
        int64_t n = count(rank, dims), to[6], shape[6];
        if ((size_t)n * elem > sizeof dst - 32 || (size_t)step * elem > sizeof src) continue;
        for (int i = 0; i < rank; i++) shape[i] = dims[i];
        op__strides(rank, shape, to);
        for (int i = 0; i < rank; i++) op__move_dim(&m, dims[i], to[i], from[i]);
        const uint8_t *base = src - lowest * (int64_t)elem;
        memset(dst, 0xa5, sizeof dst);
        memset(want, 0xa5, sizeof want);
        for (int64_t f = 0; f < n; f++) {
            int64_t s = 0;
            unflatten(f, rank, dims, at);
            for (int i = 0; i < rank; i++) s += at[i] * from[i];
            memcpy(want + (size_t)f * elem, base + s * (int64_t)elem, elem);
        }
        op__move_run(NULL, &m, dst, base, elem);
        assert_memory_equal(dst, want, (size_t)n * elem + 32);
    }
}

static void test_fill_repeats_the_element(void **state) {
    (void)state;
    uint8_t value[16], *dst = malloc(16 * 6000);
    for (int i = 0; i < 16; i++) value[i] = (uint8_t)(i * 7 + 1);
    for (size_t elem = 1; elem <= 16; elem *= 2)
        for (int64_t n = 0; n < 6000; n = n * 2 + 1) {
            memset(dst, 0, 16 * 6000);
            op__fill(dst, n, value, elem);
            for (int64_t i = 0; i < n; i++)
                assert_memory_equal(dst + (size_t)i * elem, value, elem);
            assert_int_equal(dst[(size_t)n * elem], 0);
        }
    free(dst);
}

/* --- shapes --------------------------------------------------------------------------------------
 */

static void test_reshape_follows_its_rules(void **state) {
    (void)state;
    static const struct {
        int n, rank, allow_zero;
        int64_t dims[4], shape[4], want[4];
        int want_rank; /* -1: refused */
    } cases[] = {
        {2, 3, 0, {2, 3, 4}, {4, 6}, {4, 6}, 2},
        {2, 3, 0, {2, 3, 4}, {-1, 2}, {12, 2}, 2},
        {3, 3, 0, {2, 3, 4}, {0, 0, -1}, {2, 3, 4}, 3},
        {2, 3, 0, {2, 3, 4}, {5, 5}, {0}, -1},
        {2, 3, 0, {2, 3, 4}, {-1, -1}, {0}, -1},
        {2, 3, 0, {2, 3, 4}, {-1, 7}, {0}, -1},
        {2, 3, 0, {2, 3, 4}, {-2, 12}, {0}, -1},
        {4, 3, 0, {2, 3, 4}, {2, 3, 4, 0}, {0}, -1},
        {2, 3, 1, {0, 3, 4}, {3, 0}, {3, 0}, 2},
        {2, 3, 1, {0, 3, 4}, {0, -1}, {0}, -1},
        {2, 3, 0, {0, 3, 4}, {0, -1}, {0, 12}, 2},
        {0, 1, 0, {1}, {0}, {0}, 0},
        {1, 0, 0, {0}, {1}, {1}, 1},
        {1, 0, 0, {0}, {-1}, {1}, 1},
        {2, 2, 0, {0, 5}, {-1, 5}, {0, 5}, 2},
    };
    float x[24] = {0};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct ot m;
        struct op_tensor in[2] = {tensor(OP_F32, cases[i].rank, cases[i].dims, x),
                                  vec(cases[i].n, cases[i].shape)};
        begin(&m, 14, "Reshape", "a b", "y", in, 2);
        ot_int(&m, "allowzero", cases[i].allow_zero);
        if (cases[i].want_rank < 0) {
            refused(&m, in, 2, OP_OK, NULL);
            continue;
        }
        same_dims(finish(&m, "y", in, 2), cases[i].want_rank, cases[i].want);
        ot_end(&m);
    }
}

static void test_transpose_matches_the_definition(void **state) {
    (void)state;
    for (int round = 0; round < 60; round++) {
        struct ot m;
        int rank = (int)below(5);
        int64_t dims[5], perm[5], want[5], at[5], from[5];
        random_dims(rank, dims, 9);
        for (int i = 0; i < rank; i++) perm[i] = i;
        for (int i = rank - 1; i > 0; i--) {
            int j = (int)below(i + 1);
            int64_t t = perm[i];
            perm[i] = perm[j];
            perm[j] = t;
        }
        float *x = iota(count(rank, dims));
        struct op_tensor in = tensor(OP_F32, rank, dims, x);
        begin(&m, 13, "Transpose", "a", "y", &in, 1);
        if (rank) ot_ints(&m, "perm", rank, perm);
        for (int i = 0; i < rank; i++) want[i] = dims[perm[i]];
        const struct op_tensor *y = finish(&m, "y", &in, 1);
        same_dims(y, rank, want);
        for (int64_t f = 0; f < count(rank, want); f++) {
            unflatten(f, rank, want, at);
            for (int i = 0; i < rank; i++) from[perm[i]] = at[i];
            assert_true(((const float *)y->data)[f] == (float)flatten(rank, dims, from));
        }
        ot_end(&m);
        free(x);
    }
}

static void test_slice_matches_a_walk(void **state) {
    (void)state;
    for (int round = 0; round < 300; round++) {
        struct ot m;
        int64_t dim = below(8), wide = round % 5 == 0 ? INT64_MAX : 12, axis = 1;
        int64_t start = round % 11 == 0 ? INT64_MIN : below(25) - 12,
                end = round % 13 == 0  ? INT64_MIN
                      : round % 5 == 0 ? wide
                                       : below(25) - 12,
                step = below(7) - 3;
        if (!step) step = round % 2 ? INT64_MIN : INT64_MAX;
        float *x = iota(3 * dim);
        struct op_tensor in[5] = {tensor(OP_F32, 2, (int64_t[]){3, dim}, x), vec(1, &start),
                                  vec(1, &end), vec(1, &axis), vec(1, &step)};
        begin(&m, 13, "Slice", "a b c d e", "y", in, 5);
        const struct op_tensor *y = finish(&m, "y", in, 5);
        int64_t n = 0, want[8]; /* the places that a walk from start by step meets before end */
        __int128 s = start < 0 ? (__int128)start + dim : start,
                 e = end < 0 ? (__int128)end + dim : end;
        if (step > 0) {
            if (s < 0) s = 0;
            for (__int128 i = s; i < dim && i < e; i += step) want[n++] = (int64_t)i;
        } else {
            if (s >= dim) s = dim - 1;
            for (__int128 i = s; i >= 0 && i > e; i += step) want[n++] = (int64_t)i;
        }
        same_dims(y, 2, (int64_t[]){3, n});
        for (int64_t r = 0; r < 3; r++)
            for (int64_t i = 0; i < n; i++)
                assert_true(((const float *)y->data)[r * n + i] == (float)(r * dim + want[i]));
        ot_end(&m);
        free(x);
    }
}

static void test_split_and_concat_are_inverse(void **state) {
    (void)state;
    for (int round = 0; round < 60; round++) {
        struct ot m;
        int64_t dims[3], parts[3];
        int axis = (int)below(3);
        random_dims(3, dims, 6);
        dims[axis] = 0;
        for (int i = 0; i < 3; i++) dims[axis] += parts[i] = below(5);
        float *x = iota(count(3, dims));
        struct op_tensor in[2] = {tensor(OP_F32, 3, dims, x), vec(3, parts)};
        begin(&m, 13, "Split", "a b", "p q r", in, 2);
        ot_int(&m, "axis", axis - 3);
        ot_node(&m, "Concat", "p q r", "y");
        ot_int(&m, "axis", axis);
        const struct op_tensor *y = finish(&m, "yq", in, 2);
        int64_t middle[3] = {dims[0], dims[1], dims[2]}, at[3];
        middle[axis] = parts[1];
        same_dims(&y[0], 3, dims);
        same_dims(&y[1], 3, middle);
        for (int64_t f = 0; f < count(3, dims); f++)
            assert_true(((const float *)y[0].data)[f] == (float)f);
        for (int64_t f = 0; f < count(3, middle); f++) {
            unflatten(f, 3, middle, at);
            at[axis] += parts[0];
            assert_true(((const float *)y[1].data)[f] == (float)flatten(3, dims, at));
        }
        ot_end(&m);
        free(x);
    }
}

static void test_split_into_num_outputs_gives_the_rest_to_the_last(void **state) {
    (void)state;
    struct ot m;
    float x[7] = {0, 1, 2, 3, 4, 5, 6};
    struct op_tensor in = tensor(OP_F32, 1, (int64_t[]){7}, x);
    begin(&m, 18, "Split", "a", "p q r", &in, 1);
    ot_int(&m, "num_outputs", 3);
    const struct op_tensor *y = finish(&m, "pqr", &in, 1);
    assert_int_equal(y[0].dims[0], 3);
    assert_int_equal(y[1].dims[0], 3);
    assert_int_equal(y[2].dims[0], 1);
    assert_true(*(const float *)y[2].data == 6);
    ot_end(&m);
    begin(&m, 13, "Split", "a", "y q", &in, 1);
    refused(&m, &in, 1, OP_BAD_SHAPE, (const char *[]){"7", "2", NULL});
}

static void test_tile_and_expand_match_the_definition(void **state) {
    (void)state;
    for (int round = 0; round < 80; round++) {
        struct ot m;
        int rank = 1 + (int)below(4);
        bool tile = round % 2;
        int64_t dims[4], other[4], want[4], at[4];
        random_dims(rank, dims, 4);
        for (int i = 0; i < rank; i++) {
            other[i] = tile ? below(4) : 1 + below(4);
            if (!tile && dims[i] != 1 && below(2)) other[i] = 1;
            if (!tile && dims[i] != 1 && other[i] != 1) other[i] = dims[i];
            want[i] = tile ? dims[i] * other[i] : dims[i] == 1 ? other[i] : dims[i];
        }
        float *x = iota(count(rank, dims));
        struct op_tensor in[2] = {tensor(OP_F32, rank, dims, x), vec(rank, other)};
        begin(&m, 13, tile ? "Tile" : "Expand", "a b", "y", in, 2);
        const struct op_tensor *y = finish(&m, "y", in, 2);
        same_dims(y, rank, want);
        for (int64_t f = 0; f < count(rank, want); f++) {
            unflatten(f, rank, want, at);
            for (int i = 0; i < rank; i++) at[i] %= dims[i];
            assert_true(((const float *)y->data)[f] == (float)flatten(rank, dims, at));
        }
        ot_end(&m);
        free(x);
    }
}

/* Where a step outside of [0, n) ends up: found by walking, one element after the other. */
static int64_t walk(const char *mode, int64_t i, int64_t n) {
    while (i < 0 || i >= n) {
        if (mode[0] == 'e')
            i += i < 0 ? 1 : -1;
        else if (mode[0] == 'w')
            i += i < 0 ? n : -n;
        else
            i = n == 1 ? 0 : i < 0 ? -i : 2 * (n - 1) - i;
    }
    return i;
}

static void test_pad_matches_a_walk(void **state) {
    (void)state;
    static const char *const modes[] = {"constant", "edge", "reflect", "wrap"};
    for (int round = 0; round < 300; round++) {
        struct ot m;
        const char *mode = modes[round % 4];
        int64_t dims[2] = {1 + below(5), 1 + below(5)}, pads[4], want[2], left[2];
        for (int i = 0; i < 4; i++) pads[i] = below(10) - 2;
        for (int i = 0; i < 2; i++) {
            left[i] = dims[i] + (pads[i] < 0 ? pads[i] : 0) + (pads[2 + i] < 0 ? pads[2 + i] : 0);
            want[i] = dims[i] + pads[i] + pads[2 + i];
        }
        if (left[0] < 1 || left[1] < 1 || want[0] < 0 || want[1] < 0) continue;
        float *x = iota(dims[0] * dims[1]), fill = -7;
        struct op_tensor in[3] = {tensor(OP_F32, 2, dims, x), vec(4, pads),
                                  tensor(OP_F32, 0, NULL, &fill)};
        begin(&m, 19, "Pad", "a b c", "y", in, 3);
        ot_string(&m, "mode", mode);
        const struct op_tensor *y = finish(&m, "y", in, 3);
        same_dims(y, 2, want);
        for (int64_t f = 0; f < want[0] * want[1]; f++) {
            int64_t at[2];
            bool inside = true;
            unflatten(f, 2, want, at);
            for (int i = 0; i < 2; i++) {
                int64_t k = at[i] - (pads[i] > 0 ? pads[i] : 0);
                inside &= k >= 0 && k < left[i];
                at[i] =
                    (pads[i] < 0 ? -pads[i] : 0) + (mode[0] == 'c' ? k : walk(mode, k, left[i]));
            }
            float expected = mode[0] == 'c' && !inside ? fill : (float)(at[0] * dims[1] + at[1]);
            assert_true(((const float *)y->data)[f] == expected);
        }
        ot_end(&m);
        free(x);
    }
}

static void test_depth_to_space_and_back(void **state) {
    (void)state;
    for (int crd = 0; crd < 2; crd++) {
        struct ot m;
        int64_t n = 2, c = 3, h = 2, w = 5, b = 2, dims[4] = {n, c * b * b, h, w};
        float *x = iota(count(4, dims));
        struct op_tensor in = tensor(OP_F32, 4, dims, x);
        begin(&m, 13, "DepthToSpace", "a", "s", &in, 1);
        ot_int(&m, "blocksize", b);
        ot_string(&m, "mode", crd ? "CRD" : "DCR");
        ot_node(&m, "SpaceToDepth", "s", "y");
        ot_int(&m, "blocksize", b);
        const struct op_tensor *y = finish(&m, "sy", &in, 1);
        same_dims(&y[0], 4, (int64_t[]){n, c, h * b, w * b});
        for (int64_t f = 0; f < count(4, dims); f++) {
            int64_t at[4];
            unflatten(f, 4, y[0].dims, at);
            int64_t i = at[2] % b, j = at[3] % b,
                    ch = crd ? (at[1] * b + i) * b + j : (i * b + j) * c + at[1];
            assert_true(((const float *)y[0].data)[f] ==
                        (float)flatten(4, dims, (int64_t[]){at[0], ch, at[2] / b, at[3] / b}));
            if (!crd) assert_true(((const float *)y[1].data)[f] == (float)f);
        }
        ot_end(&m);
        free(x);
    }
}

static void test_center_crop_pad(void **state) {
    (void)state;
    struct ot m;
    float x[10] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9};
    int64_t shape[2] = {5, 2};
    struct op_tensor in[2] = {tensor(OP_F32, 2, (int64_t[]){2, 5}, x), vec(2, shape)};
    begin(&m, 18, "CenterCropPad", "a b", "y", in, 2);
    const struct op_tensor *y = finish(&m, "y", in, 2);
    const float want[10] = {
        0, 0, 1, 2, 6,
        7, 0, 0, 0, 0}; /* one row before, two behind; one column before is cut, two behind */
    same_dims(y, 2, shape);
    assert_memory_equal(y->data, want, sizeof want);
    ot_end(&m);
}

static void test_col2im_adds_what_overlaps(void **state) {
    (void)state;
    struct ot m;
    float *x = iota(2 * 2 * 6);
    int64_t image[2] = {3, 4}, block[2] = {2, 2};
    struct op_tensor in[3] = {tensor(OP_F32, 3, (int64_t[]){1, 4, 6}, x), vec(2, image),
                              vec(2, block)};
    begin(&m, 18, "Col2Im", "a b c", "y", in, 3);
    const struct op_tensor *y = finish(&m, "y", in, 3);
    float want[12] = {0};
    for (int k = 0; k < 4; k++)
        for (int l = 0; l < 6; l++) want[(l / 3 + k / 2) * 4 + l % 3 + k % 2] += x[k * 6 + l];
    same_dims(y, 4, (int64_t[]){1, 1, 3, 4});
    assert_memory_equal(y->data, want, sizeof want);
    ot_end(&m);
    free(x);
}

/* --- indices -------------------------------------------------------------------------------------
 */

static void test_gather_matches_the_definition(void **state) {
    (void)state;
    for (int round = 0; round < 100; round++) {
        struct ot m;
        int64_t dims[3] = {1 + below(4), 1 + below(5), 1 + below(4)}, idx[6],
                shape[2] = {2, below(4)};
        int axis = (int)below(3);
        float *x = iota(count(3, dims));
        for (int i = 0; i < 6; i++) idx[i] = below(2 * dims[axis]) - dims[axis];
        struct op_tensor in[2] = {tensor(OP_F32, 3, dims, x), tensor(OP_I64, 2, shape, idx)};
        begin(&m, 13, "Gather", "a b", "y", in, 2);
        ot_int(&m, "axis", axis);
        const struct op_tensor *y = finish(&m, "y", in, 2);
        int64_t outer = op__product(dims, 0, axis), inner = op__product(dims, axis + 1, 3),
                n = 2 * shape[1];
        assert_int_equal(op_tensor_count(y), outer * n * inner);
        for (int64_t o = 0; o < outer; o++)
            for (int64_t j = 0; j < n; j++)
                for (int64_t i = 0; i < inner; i++) {
                    int64_t k = idx[j] < 0 ? idx[j] + dims[axis] : idx[j];
                    assert_true(((const float *)y->data)[(o * n + j) * inner + i] ==
                                (float)((o * dims[axis] + k) * inner + i));
                }
        ot_end(&m);
        free(x);
    }
}

static void test_scatter_elements_applies_updates_in_order(void **state) {
    (void)state;
    static const char *const ops[] = {"none", "add", "mul", "min", "max"};
    for (int round = 0; round < 150; round++) {
        struct ot m;
        int64_t dims[2] = {4, 5}, shape[2] = {1 + below(4), 1 + below(5)}, idx[20];
        int32_t x[20], u[20], want[20];
        int axis = (int)below(2), op = round % 5;
        for (int i = 0; i < 20; i++) {
            x[i] = want[i] = (int32_t)below(9) - 4;
            u[i] = (int32_t)below(9) - 4;
            idx[i] = below(2 * dims[axis]) - dims[axis];
        }
        for (int64_t f = 0; f < shape[0] * shape[1]; f++) {
            int64_t at[2];
            unflatten(f, 2, shape, at);
            at[axis] = (idx[f] + dims[axis]) % dims[axis];
            int32_t *d = &want[at[0] * 5 + at[1]];
            *d = op == 0     ? u[f]
                 : op == 1   ? *d + u[f]
                 : op == 2   ? *d * u[f]
                 : op == 3   ? (*d < u[f] ? *d : u[f])
                 : *d > u[f] ? *d
                             : u[f];
        }
        struct op_tensor in[3] = {tensor(OP_I32, 2, dims, x), tensor(OP_I64, 2, shape, idx),
                                  tensor(OP_I32, 2, shape, u)};
        begin(&m, 18, "ScatterElements", "a b c", "y", in, 3);
        ot_int(&m, "axis", axis);
        ot_string(&m, "reduction", ops[op]);
        assert_memory_equal(finish(&m, "y", in, 3)->data, want, sizeof want);
        ot_end(&m);
    }
}

static void test_gather_nd_and_scatter_nd(void **state) {
    (void)state;
    struct ot m;
    float *x = iota(24), u[8] = {100, 101, 102, 103, 104, 105, 106, 107};
    int64_t idx[4] = {1, 2, 0, -1};
    struct op_tensor in[3] = {tensor(OP_F32, 3, (int64_t[]){2, 3, 4}, x),
                              tensor(OP_I64, 2, (int64_t[]){2, 2}, idx),
                              tensor(OP_F32, 2, (int64_t[]){2, 4}, u)};
    begin(&m, 16, "GatherND", "a b", "y", in, 3);
    ot_node(&m, "ScatterND", "a b c", "z");
    ot_string(&m, "reduction", "add");
    const struct op_tensor *y = finish(&m, "yz", in, 3);
    same_dims(&y[0], 2, (int64_t[]){2, 4});
    for (int i = 0; i < 4; i++) {
        assert_true(((const float *)y[0].data)[i] == (float)(20 + i));
        assert_true(((const float *)y[0].data)[4 + i] == (float)(8 + i));
        assert_true(((const float *)y[1].data)[20 + i] == (float)(20 + i) + u[i]);
        assert_true(((const float *)y[1].data)[8 + i] == (float)(8 + i) + u[4 + i]);
        assert_true(((const float *)y[1].data)[i] == (float)i);
    }
    ot_end(&m);
    free(x);
}

static void test_index_out_of_range_is_refused_by_value(void **state) {
    (void)state;
    float x[12] = {0}, u[2] = {0};
    int64_t idx[2] = {1, -4};
    const char *const words[] = {"-4", "element 1", "axis 0", "dimension 3", NULL};
    static const struct {
        const char *op, *in;
        int n, idx_rank;
    } cases[] = {{"Gather", "a b", 2, 1},
                 {"GatherElements", "a b", 2, 2},
                 {"GatherND", "a b", 2, 2},
                 {"ScatterElements", "a b c", 3, 2}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct ot m;
        struct op_tensor in[3] = {tensor(OP_F32, 2, (int64_t[]){3, 4}, x),
                                  tensor(OP_I64, cases[i].idx_rank, (int64_t[]){2, 1}, idx),
                                  tensor(OP_F32, 2, (int64_t[]){2, 1}, u)};
        begin(&m, 16, cases[i].op, cases[i].in, "y", in, cases[i].n);
        refused(&m, in, cases[i].n, OP_BAD_VALUE, words);
    }
}

static void test_onehot_leaves_out_of_range_off(void **state) {
    (void)state;
    struct ot m;
    int64_t idx[4] = {0, -1, 3, -4}, depth = 3;
    float values[2] = {2, 5};
    struct op_tensor in[3] = {tensor(OP_I64, 1, (int64_t[]){4}, idx),
                              tensor(OP_I64, 0, NULL, &depth),
                              tensor(OP_F32, 1, (int64_t[]){2}, values)};
    begin(&m, 11, "OneHot", "a b c", "y", in, 3);
    ot_int(&m, "axis", 0);
    const struct op_tensor *y = finish(&m, "y", in, 3);
    const float want[12] = {5, 2, 2, 2, 2, 2, 2, 2, 2, 5, 2, 2}; /* [depth, 4] */
    same_dims(y, 2, (int64_t[]){3, 4});
    assert_memory_equal(y->data, want, sizeof want);
    ot_end(&m);
}

static void test_range_counts_without_overflow(void **state) {
    (void)state;
    struct ot m;
    int64_t v[3] = {INT64_MIN, INT64_MAX, INT64_MAX / 2};
    struct op_tensor in[3] = {tensor(OP_I64, 0, NULL, &v[0]), tensor(OP_I64, 0, NULL, &v[1]),
                              tensor(OP_I64, 0, NULL, &v[2])};
    begin(&m, 11, "Range", "a b c", "y", in, 3);
    const struct op_tensor *y = finish(&m, "y", in, 3);
    same_dims(y, 1, (int64_t[]){5});
    for (int i = 0; i < 5; i++)
        assert_true(((const int64_t *)y->data)[i] ==
                    (int64_t)((uint64_t)INT64_MIN + (uint64_t)i * (uint64_t)v[2]));
    ot_end(&m);
    float f[3] = {1, 2, 0.25f};
    for (int i = 0; i < 3; i++) in[i] = tensor(OP_F32, 0, NULL, &f[i]);
    begin(&m, 11, "Range", "a b c", "y", in, 3);
    y = finish(&m, "y", in, 3);
    same_dims(y, 1, (int64_t[]){4});
    assert_true(((const float *)y->data)[3] == 1.75f);
    ot_end(&m);
    f[2] = 0;
    begin(&m, 11, "Range", "a b c", "y", in, 3);
    refused(&m, in, 3, OP_BAD_VALUE, NULL);
}

/* --- sizes from outside --------------------------------------------------------------------------
 */

static void test_products_that_overflow_are_refused(void **state) {
    (void)state;
    struct ot m;
    float x[2] = {0, 0};
    int64_t huge[4] = {INT64_MAX, 3, 1, 1}, large[4] = {1 << 30, 1 << 30, 1 << 30, 1 << 30},
            one = 1, zero = 0, end = INT64_MAX;
    struct op_tensor in[3] = {tensor(OP_F32, 2, (int64_t[]){2, 1}, x), vec(2, huge)};
    begin(&m, 13, "Tile", "a b", "y", in, 2);
    refused(&m, in, 2, OP_LIMIT, (const char *[]){"too large", NULL});
    in[0] = tensor(OP_F32, 1, &one, x);
    in[1] = vec(4, large);
    begin(&m, 13, "Expand", "a b", "y", in, 2);
    refused(&m, in, 2, OP_LIMIT, (const char *[]){"too large", NULL});
    in[0] = vec(4, large);
    begin(&m, 13, "ConstantOfShape", "a", "y", in, 1);
    refused(&m, in, 1, OP_LIMIT, (const char *[]){"too large", NULL});
    in[0] = tensor(OP_I64, 0, NULL, &zero), in[1] = tensor(OP_I64, 0, NULL, &end),
    in[2] = tensor(OP_I64, 0, NULL, &one);
    begin(&m, 13, "Range", "a b c", "y", in, 3);
    refused(&m, in, 3, OP_LIMIT, (const char *[]){"too long", NULL});
    large[1] = large[2] = large[3] = 1 << 10; /* 2^60 bytes: no overflow, but beyond every cap */
    in[0] = vec(4, large);
    begin(&m, 13, "ConstantOfShape", "a", "y", in, 1);
    refused(&m, in, 1, OP_OK, NULL);
    int64_t pads[2] = {INT64_MAX, INT64_MAX};
    in[0] = tensor(OP_F32, 1, &one, x), in[1] = vec(2, pads);
    begin(&m, 13, "Pad", "a b", "y", in, 2);
    refused(&m, in, 2, OP_LIMIT, (const char *[]){"too large", NULL});
    pads[0] = INT64_MIN;
    begin(&m, 13, "Pad", "a b", "y", in, 2);
    refused(&m, in, 2, OP_BAD_SHAPE, NULL);
}

static void test_old_opsets_are_upgraded(void **state) {
    (void)state;
    struct ot m;
    float *x = iota(12);
    struct op_tensor in = tensor(OP_F32, 2, (int64_t[]){3, 4}, x);
    begin(&m, 1, "Slice", "a", "s", &in, 1);
    ot_ints(&m, "starts", 1, (int64_t[]){1});
    ot_ints(&m, "ends", 1, (int64_t[]){3});
    ot_ints(&m, "axes", 1, (int64_t[]){1});
    ot_node(&m, "Pad", "s", "p");
    ot_ints(&m, "paddings", 4, (int64_t[]){0, 1, 0, 0});
    ot_float(&m, "value", 9);
    ot_node(&m, "Unsqueeze", "p", "u");
    ot_ints(&m, "axes", 1, (int64_t[]){0});
    ot_node(&m, "Reshape", "u", "r");
    ot_ints(&m, "shape", 1, (int64_t[]){9});
    ot_node(&m, "Split", "r", "y t");
    ot_ints(&m, "split", 2, (int64_t[]){4, 5});
    const struct op_tensor *y = finish(&m, "yt", &in, 1);
    const float want[9] = {9, 1, 2, 9, 5, 6, 9, 9, 10};
    same_dims(&y[0], 1, (int64_t[]){4});
    assert_memory_equal(y[0].data, want, 4 * sizeof(float));
    assert_memory_equal(y[1].data, want + 4, 5 * sizeof(float));
    ot_end(&m);
    free(x);
}

static void test_constants_of_every_form(void **state) {
    (void)state;
    struct ot m;
    float one = 1, values[2] = {2.5f, 3.5f};
    int64_t at[2] = {1, 5}, dims[2] = {2, 3};
    struct op_tensor in = tensor(OP_F32, 0, NULL, &one);
    begin(&m, 13, "Constant", "", "f", &in, 1);
    ot_float(&m, "value_float", 4.5f);
    ot_node(&m, "Constant", "", "i");
    ot_ints(&m, "value_ints", 2, (int64_t[]){7, -8});
    ot_node(&m, "Constant", "", "s");
    ot_string(&m, "value_string", "word");
    ot_node(&m, "Constant", "", "t");
    struct ot_bytes b = ot_attr("sparse_value", 11), sparse = {0},
                    v = ot_tensor(NULL, OP_F32, 1, dims, values),
                    k = ot_tensor(NULL, OP_I64, 1, dims, at);
    ot_put_part(&sparse, 1, &v);
    ot_put_part(&sparse, 2, &k);
    ot_put_int(&sparse, 3, dims[0]);
    ot_put_int(&sparse, 3, dims[1]);
    ot_put_part(&b, 22, &sparse);
    ot_put_part(&m.node, 5, &b);
    const struct op_tensor *y = finish(&m, "fist", &in, 1);
    const float dense[6] = {0, 2.5f, 0, 0, 0, 3.5f};
    same_dims(&y[0], 0, NULL);
    assert_true(*(const float *)y[0].data == 4.5f);
    same_dims(&y[1], 1, (int64_t[]){2});
    assert_int_equal(((const int64_t *)y[1].data)[1], -8);
    assert_int_equal(((const struct op_string *)y[2].data)->len, 4);
    same_dims(&y[3], 2, dims);
    assert_memory_equal(y[3].data, dense, sizeof dense);
    ot_end(&m);
}

/* Large enough that every operator is cut into tasks; odd sizes, so that the pieces are uneven. */
static void test_two_threads_move_the_same(void **state) {
    (void)state;
    int64_t dims[3] = {37, 301, 129}, n = count(3, dims), repeats[3] = {1, 1, 3};
    float *x = iota(n), *want = NULL;
    int64_t bytes = 0;
    for (int threads = 1; threads <= 2; threads++) {
        struct ot m;
        struct op_error err;
        const struct op_tensor *y = NULL;
        struct op_tensor in = tensor(OP_F32, 3, dims, x);
        begin(&m, 13, "Transpose", "a", "t", &in, 1);
        ot_ints(&m, "perm", 3, (int64_t[]){2, 0, 1});
        ot_node(&m, "Concat", "t t", "c");
        ot_int(&m, "axis", 0);
        ot_constant(&m, "r", OP_I64, 1, (int64_t[]){3}, repeats);
        ot_node(&m, "Tile", "c r", "u");
        ot_node(&m, "Identity", "u", "y");
        ot_output(&m, "y", OP_F32, -1, NULL);
        m.model = ot_load(&m, NULL, &err);
        struct op_session_options options = {.n_threads = threads};
        m.session = m.model ? op_session_create(m.model, &options, &err) : NULL;
        if (!m.session || op_session_run(m.session, &in, 1, &y, &err) != OP_OK)
            fail_msg("%s", err.text);
        bytes = op_tensor_bytes(y);
        assert_int_equal(bytes, 6 * n * (int64_t)sizeof(float));
        if (threads == 1) {
            want = malloc((size_t)bytes);
            memcpy(want, y->data, (size_t)bytes);
        } else {
            assert_memory_equal(y->data, want, (size_t)bytes);
        }
        ot_end(&m);
    }
    free(want);
    free(x);
}

static void test_every_element_size_moves(void **state) {
    (void)state;
    static const enum op_type types[] = {OP_U8,  OP_BOOL, OP_F16, OP_I16, OP_I32,
                                         OP_U64, OP_F64,  OP_C64, OP_C128};
    for (size_t k = 0; k < sizeof types / sizeof *types; k++) {
        struct ot m;
        size_t elem = op_type_size(types[k]);
        uint8_t x[6 * 16];
        int64_t idx[2] = {2, 0};
        for (size_t i = 0; i < sizeof x; i++)
            x[i] = (uint8_t)(types[k] == OP_BOOL ? i & 1 : i * 3 + 1);
        struct op_tensor in[2] = {tensor(types[k], 2, (int64_t[]){2, 3}, x), vec(2, idx)};
        begin(&m, 13, "Gather", "a b", "g", in, 2);
        ot_int(&m, "axis", 1);
        ot_node(&m, "Transpose", "g", "y");
        const uint8_t *y = finish(&m, "y", in, 2)->data;
        static const int from[4] = {2, 5, 0, 3};
        for (int i = 0; i < 4; i++)
            assert_memory_equal(y + (size_t)i * elem, x + (size_t)from[i] * elem, elem);
        ot_end(&m);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_move_matches_the_definition),
        cmocka_unit_test(test_fill_repeats_the_element),
        cmocka_unit_test(test_reshape_follows_its_rules),
        cmocka_unit_test(test_transpose_matches_the_definition),
        cmocka_unit_test(test_slice_matches_a_walk),
        cmocka_unit_test(test_split_and_concat_are_inverse),
        cmocka_unit_test(test_split_into_num_outputs_gives_the_rest_to_the_last),
        cmocka_unit_test(test_tile_and_expand_match_the_definition),
        cmocka_unit_test(test_pad_matches_a_walk),
        cmocka_unit_test(test_depth_to_space_and_back),
        cmocka_unit_test(test_center_crop_pad),
        cmocka_unit_test(test_col2im_adds_what_overlaps),
        cmocka_unit_test(test_gather_matches_the_definition),
        cmocka_unit_test(test_scatter_elements_applies_updates_in_order),
        cmocka_unit_test(test_gather_nd_and_scatter_nd),
        cmocka_unit_test(test_index_out_of_range_is_refused_by_value),
        cmocka_unit_test(test_onehot_leaves_out_of_range_off),
        cmocka_unit_test(test_range_counts_without_overflow),
        cmocka_unit_test(test_products_that_overflow_are_refused),
        cmocka_unit_test(test_old_opsets_are_upgraded),
        cmocka_unit_test(test_constants_of_every_form),
        cmocka_unit_test(test_two_threads_move_the_same),
        cmocka_unit_test(test_every_element_size_moves),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
