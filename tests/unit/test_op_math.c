/* test_op_math.c: the element-by-element operators, reductions, casts and their kin, through models
 * of one node.
 *
 * Expected values are computed here in the plainest way (index arithmetic, double precision), or
 * are the definition where the specification leaves one open (division by zero). Shapes come from a
 * fixed random sequence. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "ops/op.h"
#include "tests/unit/op_testing.h"

#define COUNT(a) (sizeof(a) / sizeof *(a))

/* --- models of one node ------------------------------------------------------------------------
 */

static const char *const names[] = {"a", "b", "c", "d", "e", "f", "g", "h", "i"};

/* Starts a model y = OP(a, b, …); attributes may follow, then run_node. An input of dtype 0 is
 * absent. */
static void begin_node(struct ot *m, int opset, const char *op, const struct op_tensor *in, int n,
                       const char *out, enum op_type out_type) {
    char list[64] = "", word[16];
    ot_begin(m, opset);
    for (int i = 0; i < n; i++) {
        if (in[i].dtype) ot_input(m, names[i], in[i].dtype, -1, NULL);
        snprintf(list + strlen(list), sizeof list - strlen(list), "%s%s", i ? " " : "",
                 in[i].dtype ? names[i] : ".");
    }
    ot_node(m, op, list, out);
    for (const char *c = out; *c; c += strcspn(c, " "), c += *c == ' ') {
        snprintf(word, sizeof word, "%.*s", (int)strcspn(c, " "), c);
        if (strcmp(word, ".")) ot_output(m, word, c == out ? out_type : OP_I64, -1, NULL);
    }
}

static const struct op_tensor *try_node(struct ot *m, bool reference, const struct op_tensor *in,
                                        int n, struct op_error *err) {
    struct op_tensor present[COUNT(names)];
    struct op_load_options options = {.reference = reference};
    int n_present = 0;
    for (int i = 0; i < n; i++)
        if (in[i].dtype) present[n_present++] = in[i];
    return ot_run(m, &options, present, n_present, err);
}

static const struct op_tensor *run_node(struct ot *m, const struct op_tensor *in, int n) {
    struct op_error err;
    const struct op_tensor *y = try_node(m, false, in, n, &err);
    if (!y) fail_msg("%s", err.text);
    return y;
}

static struct op_tensor vec(enum op_type type, int64_t n, const void *data) {
    return (struct op_tensor){
        .dtype = type, .rank = 1, .dims = {n}, .data = (void *)(uintptr_t)data};
}
static struct op_tensor scalar(enum op_type type, const void *data) {
    return (struct op_tensor){.dtype = type, .data = (void *)(uintptr_t)data};
}

/* The node must be refused, with a message that has `text` in it. */
static void refuse(struct ot *m, const struct op_tensor *in, int n, enum op_status code,
                   const char *text) {
    struct op_error err;
    assert_null(try_node(m, false, in, n, &err));
    if (err.code != code || !strstr(err.text, text))
        fail_msg("expected %s with \"%s\", got: %s", op_status_name(code), text, err.text);
    ot_end(m);
}

/* --- random shapes and values ------------------------------------------------------------------
 */

static uint64_t random_state;

static uint32_t next_random(void) {
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(random_state >> 33);
}
static int64_t below(int64_t n) {
    return next_random() % n;
}
static float real(void) {
    return (float)((int)below(4001) - 2000) / 256.0f;
}

#define ELEMENTS_MAX 20000
static void fill(float *x, int64_t n) {
    for (int64_t i = 0; i < n; i++) x[i] = real();
}

/* Two shapes that broadcast, in up to 5 dimensions, now and then empty, now and then with long
 * rows. */
static void random_pair(struct op_tensor *a, struct op_tensor *b, int64_t *dims, int *rank) {
    *rank = (int)below(6);
    a->rank = *rank - (int)(below(3) == 0 ? below(*rank + 1) : 0);
    b->rank = a->rank < *rank || below(3) ? *rank : (int)below(*rank + 1);
    for (int i = 0; i < *rank; i++) {
        dims[i] = i == *rank - 1 && below(4) == 0 ? 1 + below(70)
                  : below(30) == 0                ? 0
                                                  : 1 + below(5);
        for (int k = 0; k < 2; k++) {
            struct op_tensor *t = k ? b : a;
            int at = i - (*rank - t->rank);
            if (at >= 0)
                t->dims[at] = below(4) == 0 && (k == 0 || a->rank < *rank || a->dims[at] == dims[i])
                                  ? 1
                                  : dims[i];
        }
    }
    for (int i = 0; i < *rank; i++) { /* where both have 1, or one has no such dimension */
        int ia = i - (*rank - a->rank), ib = i - (*rank - b->rank);
        int64_t da = ia < 0 ? 1 : a->dims[ia], db = ib < 0 ? 1 : b->dims[ib];
        dims[i] = da == 1 ? db : da;
        if (da != 1 && db != 1 && da != db) {
            if (ib >= 0) b->dims[ib] = da;
            dims[i] = da;
        }
    }
}

/* The element of t that stands at output element `index`. */
static int64_t source(const struct op_tensor *t, int rank, const int64_t *dims, int64_t index) {
    int64_t at = 0, step = 1;
    for (int i = rank - 1, j = t->rank - 1; i >= 0; i--, j--) {
        const int64_t pos = index % dims[i];
        index /= dims[i];
        if (j < 0) continue;
        if (t->dims[j] != 1) at += pos * step;
        step *= t->dims[j];
    }
    return at;
}

static void same_shape(const struct op_tensor *y, int rank, const int64_t *dims) {
    assert_int_equal(y->rank, rank);
    for (int i = 0; i < rank; i++) assert_int_equal(y->dims[i], dims[i]);
}

/* --- broadcasting ------------------------------------------------------------------------------
 */

static void test_broadcast_matches_index_arithmetic(void **state) {
    static float x[ELEMENTS_MAX], z[ELEMENTS_MAX];
    static int64_t xi[ELEMENTS_MAX], zi[ELEMENTS_MAX];
    (void)state;
    random_state = 1;
    fill(x, ELEMENTS_MAX);
    fill(z, ELEMENTS_MAX);
    for (int i = 0; i < ELEMENTS_MAX; i++) xi[i] = below(100) - 50, zi[i] = below(100) - 50;
    for (int round = 0; round < 300; round++) {
        struct op_tensor in[2] = {{.dtype = OP_F32, .data = x}, {.dtype = OP_F32, .data = z}};
        const char *const ops[] = {"Add", "Sub", "Mul", "Less", "Max"};
        const int op = (int)below(COUNT(ops));
        const bool ints = below(3) == 0;
        int64_t dims[OP_RANK_MAX];
        int rank;
        random_pair(&in[0], &in[1], dims, &rank);
        if (ints) in[0].dtype = in[1].dtype = OP_I64, in[0].data = xi, in[1].data = zi;
        struct ot m;
        begin_node(&m, 17, ops[op], in, 2, "y", op == 3 ? OP_BOOL : in[0].dtype);
        const struct op_tensor *y = run_node(&m, in, 2);
        same_shape(y, rank, dims);
        for (int64_t i = 0; i < op_tensor_count(y); i++) {
            const int64_t ia = source(&in[0], rank, dims, i), ib = source(&in[1], rank, dims, i);
            const double a = ints ? (double)xi[ia] : x[ia], b = ints ? (double)zi[ib] : z[ib];
            const double want = op == 0   ? a + b
                                : op == 1 ? a - b
                                : op == 2 ? a * b
                                : op == 3 ? a < b
                                : a > b   ? a
                                          : b;
            const double got = op == 3 ? ((uint8_t *)y->data)[i]
                               : ints  ? (double)((int64_t *)y->data)[i]
                                       : ((float *)y->data)[i];
            if (got != (op == 3 || ints ? want : (double)(float)want))
                fail_msg("round %d, %s, element %lld: %g, not %g", round, ops[op], (long long)i,
                         got, want);
        }
        ot_end(&m);
    }
}

static void test_where_broadcasts_three(void **state) {
    (void)state;
    const uint8_t c[2] = {1, 0};
    const float a[3] = {1, 2, 3}, b = 9;
    struct op_tensor in[3] = {
        {.dtype = OP_BOOL, .rank = 2, .dims = {2, 1}, .data = (void *)(uintptr_t)c},
        vec(OP_F32, 3, a),
        scalar(OP_F32, &b)};
    struct ot m;
    begin_node(&m, 16, "Where", in, 3, "y", OP_F32);
    const struct op_tensor *y = run_node(&m, in, 3);
    const float want[6] = {1, 2, 3, 9, 9, 9};
    same_shape(y, 2, (int64_t[]){2, 3});
    assert_memory_equal(y->data, want, sizeof want);
    ot_end(&m);
}

static void test_legacy_axis_places_the_second_input(void **state) {
    (void)state;
    const float a[12] = {0}, b[3] = {1, 2, 3}, want[12] = {1, 1, 2, 2, 3, 3, 1, 1, 2, 2, 3, 3};
    struct op_tensor in[2] = {
        {.dtype = OP_F32, .rank = 3, .dims = {2, 3, 2}, .data = (void *)(uintptr_t)a},
        vec(OP_F32, 3, b)};
    struct ot m;
    begin_node(&m, 6, "Add", in, 2, "y", OP_F32);
    ot_int(&m, "broadcast", 1);
    ot_int(&m, "axis", 1);
    assert_memory_equal(run_node(&m, in, 2)->data, want, sizeof want);
    ot_end(&m);
    begin_node(&m, 7, "Add", in, 2, "y", OP_F32); /* from opset 7 on the attribute says nothing */
    ot_int(&m, "axis", 1);
    refuse(&m, in, 2, OP_BAD_SHAPE, "do not broadcast");
}

static void test_chains_in_place_keep_what_is_used_later(void **state) {
    (void)state;
    const float x[4] = {1, -2, 3, -4}, row[2] = {10, 20};
    struct op_tensor in[2] = {
        {.dtype = OP_F32, .rank = 2, .dims = {2, 2}, .data = (void *)(uintptr_t)x},
        vec(OP_F32, 2, row)};
    struct ot m;
    struct op_error err;
    ot_begin(&m, 17);
    ot_input(&m, "x", OP_F32, -1, NULL);
    ot_input(&m, "r", OP_F32, -1, NULL);
    ot_node(&m, "Neg", "x", "n");
    ot_node(&m, "Abs", "n", "p");
    ot_node(&m, "Sub", "r p", "s");
    ot_node(&m, "Mul", "s s", "q");
    ot_node(&m, "Sum", "q n q", "y");
    ot_output(&m, "y", OP_F32, -1, NULL);
    const struct op_tensor *y = ot_run(&m, NULL, in, 2, &err);
    if (!y) fail_msg("%s", err.text);
    for (int i = 0; i < 4; i++) {
        const float s = row[i % 2] - fabsf(x[i]);
        assert_true(((float *)y->data)[i] == s * s - x[i] + s * s);
        assert_true(((const float *)in[0].data)[i] == x[i]);
    }
    ot_end(&m);
}

static void test_empty_and_scalar_tensors(void **state) {
    (void)state;
    const char *const ops[] = {"Relu", "Exp", "Softmax", "Neg", "Sigmoid", "Erf", "Round"};
    for (size_t i = 0; i < COUNT(ops); i++) {
        struct op_tensor empty = {.dtype = OP_F32, .rank = 2, .dims = {0, 5}};
        struct ot m;
        begin_node(&m, 17, ops[i], &empty, 1, "y", OP_F32);
        same_shape(run_node(&m, &empty, 1), 2, empty.dims);
        ot_end(&m);
        const float v = 0.5f;
        struct op_tensor one = scalar(OP_F32, &v);
        begin_node(&m, 17, ops[i], &one, 1, "y", OP_F32);
        assert_int_equal(run_node(&m, &one, 1)->rank, 0);
        ot_end(&m);
    }
}

/* --- integers never trap -----------------------------------------------------------------------
 */

static void binary_i32(const char *op, int opset, int32_t a, int32_t b, int32_t want) {
    struct op_tensor in[2] = {scalar(OP_I32, &a), scalar(OP_I32, &b)};
    struct ot m;
    begin_node(&m, opset, op, in, 2, "y", OP_I32);
    const int32_t got = *(int32_t *)run_node(&m, in, 2)->data;
    if (got != want) fail_msg("%d %s %d is %d, not %d", a, op, b, got, want);
    ot_end(&m);
}

static void test_integer_division_never_traps(void **state) {
    (void)state;
    binary_i32("Div", 14, INT32_MIN, -1, INT32_MIN);
    binary_i32("Div", 14, 7, 0, 0);
    binary_i32("Div", 14, -7, 2, -3);
    binary_i32("Mod", 13, INT32_MIN, -1, 0);
    binary_i32("Mod", 13, 7, 0, 0);
    binary_i32("Mod", 13, -7, 3, 2);
    binary_i32("Mod", 13, 7, -3, -2);
    binary_i32("Add", 14, INT32_MAX, 1, INT32_MIN);
    binary_i32("Mul", 14, INT32_MIN, -1, INT32_MIN);
    binary_i32("Pow", 15, 3, 4, 81);
    binary_i32("Pow", 15, 2, -1, 0);
    binary_i32("Pow", 15, -1, -3, -1);
    binary_i32("Pow", 15, 0, -1, 0);
    const int64_t low = INT64_MIN, minus = -1;
    struct op_tensor in[2] = {scalar(OP_I64, &low), scalar(OP_I64, &minus)};
    for (int i = 0; i < 3; i++) {
        struct ot m;
        begin_node(&m, 14, i ? "Mod" : "Div", in, 2, "y", OP_I64);
        if (i == 2) ot_int(&m, "fmod", 1);
        assert_true(*(int64_t *)run_node(&m, in, 2)->data == (i ? 0 : INT64_MIN));
        ot_end(&m);
    }
    struct ot m;
    begin_node(&m, 13, "Abs", in, 1, "y", OP_I64);
    assert_true(*(int64_t *)run_node(&m, in, 1)->data == INT64_MIN);
    ot_end(&m);
}

static void test_shifts_beyond_the_width_give_zero(void **state) {
    (void)state;
    const uint8_t x[4] = {255, 255, 255, 1}, by[4] = {1, 8, 200, 7};
    const uint8_t left[4] = {254, 0, 0, 128}, right[4] = {127, 0, 0, 0};
    struct op_tensor in[2] = {vec(OP_U8, 4, x), vec(OP_U8, 4, by)};
    for (int i = 0; i < 2; i++) {
        struct ot m;
        begin_node(&m, 11, "BitShift", in, 2, "y", OP_U8);
        ot_string(&m, "direction", i ? "RIGHT" : "LEFT");
        assert_memory_equal(run_node(&m, in, 2)->data, i ? right : left, 4);
        ot_end(&m);
    }
    struct ot m;
    begin_node(&m, 11, "BitShift", in, 2, "y", OP_U8);
    ot_string(&m, "direction", "UP");
    refuse(&m, in, 2, OP_BAD_VALUE, "\"UP\"");
}

static void test_pow_takes_mixed_types(void **state) {
    (void)state;
    const float x[3] = {2, 3, 4};
    const int64_t p[3] = {3, 2, -1};
    struct op_tensor in[2] = {vec(OP_F32, 3, x), vec(OP_I64, 3, p)};
    struct ot m;
    begin_node(&m, 15, "Pow", in, 2, "y", OP_F32);
    const float want[3] = {8, 9, 0.25f};
    assert_memory_equal(run_node(&m, in, 2)->data, want, sizeof want);
    ot_end(&m);
}

/* --- Cast --------------------------------------------------------------------------------------
 */

static const enum op_type numeric[] = {OP_F32, OP_F64, OP_F16, OP_BF16, OP_I8,  OP_I16, OP_I32,
                                       OP_I64, OP_U8,  OP_U16, OP_U32,  OP_U64, OP_BOOL};

static double load(enum op_type type, const void *p) {
    switch (type) {
    case OP_F32:
        return *(const float *)p;
    case OP_F64:
        return *(const double *)p;
    case OP_F16:
        return (double)op__f16_to_f32(*(const uint16_t *)p);
    case OP_BF16:
        return (double)op__bf16_to_f32(*(const uint16_t *)p);
    case OP_I8:
        return *(const int8_t *)p;
    case OP_I16:
        return *(const int16_t *)p;
    case OP_I32:
        return *(const int32_t *)p;
    case OP_I64:
        return (double)*(const int64_t *)p;
    case OP_U16:
        return *(const uint16_t *)p;
    case OP_U32:
        return *(const uint32_t *)p;
    case OP_U64:
        return (double)*(const uint64_t *)p;
    default:
        return *(const uint8_t *)p;
    }
}

/* v, which the type holds exactly */
static void store(enum op_type type, void *p, double v) {
    switch (type) {
    case OP_F32:
        *(float *)p = (float)v;
        break;
    case OP_F64:
        *(double *)p = v;
        break;
    case OP_F16:
        *(uint16_t *)p = op__f32_to_f16((float)v);
        break;
    case OP_BF16:
        *(uint16_t *)p = op__f32_to_bf16((float)v);
        break;
    case OP_I8:
        *(int8_t *)p = (int8_t)v;
        break;
    case OP_I16:
        *(int16_t *)p = (int16_t)v;
        break;
    case OP_I32:
        *(int32_t *)p = (int32_t)v;
        break;
    case OP_I64:
        *(int64_t *)p = (int64_t)v;
        break;
    case OP_U16:
        *(uint16_t *)p = (uint16_t)v;
        break;
    case OP_U32:
        *(uint32_t *)p = (uint32_t)v;
        break;
    case OP_U64:
        *(uint64_t *)p = (uint64_t)v;
        break;
    case OP_BOOL:
        *(uint8_t *)p = v != 0;
        break;
    default:
        *(uint8_t *)p = (uint8_t)v;
    }
}

static bool is_signed_type(enum op_type t) {
    return t != OP_U8 && t != OP_U16 && t != OP_U32 && t != OP_U64 && t != OP_BOOL;
}

/* Every pair of types, on values that both hold: 600 of them, so that blocks end within. */
static void test_cast_keeps_what_both_types_hold(void **state) {
    (void)state;
    for (size_t f = 0; f < COUNT(numeric); f++)
        for (size_t t = 0; t < COUNT(numeric); t++) {
            uint64_t data[600];
            const enum op_type from = numeric[f], to = numeric[t];
            const bool negative = is_signed_type(from) && is_signed_type(to);
            for (int i = 0; i < 600; i++) {
                const double v = from == OP_BOOL ? i % 2 : negative ? i % 200 - 100 : i % 100;
                store(from, (char *)data + (size_t)i * op_type_size(from), v);
            }
            struct op_tensor in = vec(from, 600, data);
            struct ot m;
            begin_node(&m, 13, "Cast", &in, 1, "y", to);
            ot_int(&m, "to", to);
            const struct op_tensor *y = run_node(&m, &in, 1);
            assert_int_equal(y->dtype, to);
            for (int i = 0; i < 600; i++) {
                const double was = load(from, (char *)data + (size_t)i * op_type_size(from)),
                             want = to == OP_BOOL ? was != 0 : was;
                const double got = load(to, (char *)y->data + (size_t)i * op_type_size(to));
                if (got != want)
                    fail_msg("%s to %s: %g became %g", op_type_name(from), op_type_name(to), was,
                             got);
            }
            ot_end(&m);
        }
}

static void cast_one(enum op_type from, const void *data, enum op_type to, const void *want) {
    struct op_tensor in = scalar(from, data);
    struct ot m;
    begin_node(&m, 13, "Cast", &in, 1, "y", to);
    ot_int(&m, "to", to);
    const struct op_tensor *y = run_node(&m, &in, 1);
    if (memcmp(y->data, want, op_type_size(to)))
        fail_msg("%s %.9g to %s is %.17g, not %.17g", op_type_name(from), load(from, data),
                 op_type_name(to), load(to, y->data), load(to, want));
    ot_end(&m);
}

static void test_cast_of_what_does_not_fit(void **state) {
    (void)state;
    cast_one(OP_F32, &(float){300.7f}, OP_U8, &(uint8_t){44});
    cast_one(OP_F32, &(float){-1.5f}, OP_U8, &(uint8_t){255});
    cast_one(OP_F32, &(float){NAN}, OP_I32, &(int32_t){0});
    cast_one(OP_F32, &(float){1e30f}, OP_I64, &(int64_t){INT64_MAX});
    cast_one(OP_F64, &(double){-1e300}, OP_I64, &(int64_t){INT64_MIN});
    cast_one(OP_F64, &(double){1.8e19}, OP_U64, &(uint64_t){18000000000000000000u});
    cast_one(OP_U64, &(uint64_t){UINT64_MAX}, OP_F32, &(float){0x1p64f});
    cast_one(OP_I64, &(int64_t){(1 << 24) + 1}, OP_F32, &(float){1 << 24});
    cast_one(OP_F32, &(float){0.25f}, OP_BOOL, &(uint8_t){1});
    /* 1 + 2^-11 + 2^-40 is above the middle between two halves, an f32 would lose that */
    cast_one(OP_F64, &(double){1 + 0x1p-11 + 0x1p-40}, OP_F16, &(uint16_t){0x3c01});
    cast_one(OP_F64, &(double){1 + 0x1p-11}, OP_F16, &(uint16_t){0x3c00});
}

static void cast_text(enum op_type from, const void *data, const char *want) {
    struct op_tensor in = scalar(from, data);
    struct ot m;
    begin_node(&m, 13, "Cast", &in, 1, "y", OP_STRING);
    ot_int(&m, "to", OP_STRING);
    const struct op_string s = *(struct op_string *)run_node(&m, &in, 1)->data;
    if (s.len != strlen(want) || memcmp(s.data, want, s.len))
        fail_msg("\"%.*s\", not \"%s\"", (int)s.len, s.data, want);
    ot_end(&m);
}

static void test_cast_to_and_from_strings(void **state) {
    (void)state;
    cast_text(OP_F32, &(float){0.1f}, "0.1");
    cast_text(OP_F32, &(float){1}, "1.0");
    cast_text(OP_F64, &(double){1e-8}, "1e-08");
    cast_text(OP_F64, &(double){1e300}, "1e+300");
    cast_text(OP_F32, &(float){-INFINITY}, "-inf");
    cast_text(OP_I64, &(int64_t){INT64_MIN}, "-9223372036854775808");
    const char *const texts[] = {"3.25", "-1e3", "inf", "NaN"};
    const float want[] = {3.25f, -1000, INFINITY, NAN};
    for (size_t i = 0; i < COUNT(texts); i++) {
        struct op_string s = {texts[i], strlen(texts[i])};
        struct op_tensor in = scalar(OP_STRING, &s);
        struct ot m;
        begin_node(&m, 13, "Cast", &in, 1, "y", OP_F32);
        ot_int(&m, "to", OP_F32);
        const float got = *(float *)run_node(&m, &in, 1)->data;
        assert_true(got == want[i] || (got != got && want[i] != want[i]));
        ot_end(&m);
    }
    struct op_string bad = {"12 apples", 9};
    struct op_tensor in = scalar(OP_STRING, &bad);
    struct ot m;
    begin_node(&m, 13, "Cast", &in, 1, "y", OP_I32);
    ot_int(&m, "to", OP_I32);
    refuse(&m, &in, 1, OP_BAD_VALUE, "12 apples");
}

/* --- reductions --------------------------------------------------------------------------------
 */

static const char *const reductions[] = {
    "ReduceSum",    "ReduceMean",      "ReduceL1",   "ReduceL2",  "ReduceSumSquare",
    "ReduceLogSum", "ReduceLogSumExp", "ReduceProd", "ReduceMax", "ReduceMin"};

/* Of the elements whose kept indices are those of output element `index`; dims has 1 where reduced.
 */
static double reduce_plainly(int op, const struct op_tensor *x, const int64_t *out_dims,
                             int64_t index) {
    double acc = op == 7 ? 1 : op == 8 ? -INFINITY : op == 9 ? INFINITY : 0, n = 0;
    for (int64_t i = 0; i < op_tensor_count(x); i++) {
        int64_t rest = i, at = 0, step = 1;
        for (int d = x->rank - 1; d >= 0; d--) {
            const int64_t pos = rest % x->dims[d];
            rest /= x->dims[d];
            if (out_dims[d] != 1) at += pos * step;
            step *= out_dims[d];
        }
        if (at != index) continue;
        const double v = ((const float *)x->data)[i];
        n++;
        switch (op) {
        case 2:
            acc += fabs(v);
            break;
        case 3:
        case 4:
            acc += v * v;
            break;
        case 6:
            acc += exp(v);
            break;
        case 7:
            acc *= v;
            break;
        case 8:
            acc = fmax(acc, v);
            break;
        case 9:
            acc = fmin(acc, v);
            break;
        default:
            acc += v;
        }
    }
    return op == 1 ? acc / n : op == 3 ? sqrt(acc) : op == 5 || op == 6 ? log(acc) : acc;
}

static void test_reductions_match_double_precision(void **state) {
    static float x[ELEMENTS_MAX];
    (void)state;
    random_state = 2;
    for (int i = 0; i < ELEMENTS_MAX; i++) x[i] = 0.5f + (float)below(1000) / 1000.0f;
    for (int round = 0; round < 400; round++) {
        struct op_tensor in[2] = {{.dtype = OP_F32, .rank = 1 + (int)below(4), .data = x},
                                  {.dtype = OP_I64, .rank = 1}};
        int64_t axes[OP_RANK_MAX], dims[OP_RANK_MAX];
        const int op = (int)below(COUNT(reductions)), opset = below(2) ? 18 : 13;
        for (int i = 0; i < in[0].rank; i++) {
            in[0].dims[i] = below(6) == 0 ? 1 : 1 + below(i == in[0].rank - 1 ? 40 : 6);
            dims[i] = in[0].dims[i];
            if (below(2)) {
                dims[i] = 1;
                axes[in[1].dims[0]++] = below(2) ? i : i - in[0].rank;
            }
        }
        if (in[1].dims[0] == 0) axes[in[1].dims[0]++] = 0, dims[0] = 1;
        in[1].data = axes;
        const bool as_input = opset == 18 || op == 0;
        struct ot m;
        struct op_error err;
        begin_node(&m, opset, reductions[op], in, as_input ? 2 : 1, "y", OP_F32);
        if (!as_input) ot_ints(&m, "axes", in[1].dims[0], axes);
        const struct op_tensor *y = try_node(&m, below(4) == 0, in, as_input ? 2 : 1, &err);
        if (!y) fail_msg("%s", err.text);
        same_shape(y, in[0].rank, dims);
        for (int64_t i = 0; i < op_tensor_count(y); i++) {
            const double want = reduce_plainly(op, &in[0], dims, i), got = ((float *)y->data)[i];
            if (!(fabs(got - want) <= 2e-6 * fabs(want) + 1e-6))
                fail_msg("round %d, %s, element %lld: %.9g, not %.9g", round, reductions[op],
                         (long long)i, got, want);
        }
        ot_end(&m);
    }
}

/* A row is summed to the same bits alone and among others, whichever dimension the batch is. */
static void test_reductions_do_not_depend_on_the_batch(void **state) {
    static float x[7 * 37 * 41], alone[37 * 41];
    (void)state;
    random_state = 3;
    fill(x, COUNT(x));
    for (size_t op = 0; op < COUNT(reductions); op++)
        for (int batch_at = 0; batch_at < 3; batch_at++)
            for (int axis = 0; axis < 3; axis++) {
                if (axis == batch_at) continue;
                const int64_t axes[1] = {axis};
                struct op_tensor in[2] = {{.dtype = OP_F32, .rank = 3, .data = x},
                                          vec(OP_I64, 1, axes)};
                struct op_tensor one[2] = {{.dtype = OP_F32, .rank = 3, .data = alone}, in[1]};
                const int64_t sizes[2] = {37, 41};
                for (int d = 0, k = 0; d < 3; d++) {
                    in[0].dims[d] = d == batch_at ? 7 : sizes[k];
                    one[0].dims[d] = d == batch_at ? 1 : sizes[k++];
                }
                int64_t at = 0;
                for (int64_t i = 0; i < (int64_t)COUNT(x); i++) { /* the slice 5 of the batch */
                    const int64_t pos = i /
                                        (batch_at == 2   ? 1
                                         : batch_at == 1 ? in[0].dims[2]
                                                         : in[0].dims[1] * in[0].dims[2]) %
                                        in[0].dims[batch_at];
                    if (pos == 5) alone[at++] = x[i];
                }
                struct ot m, m1;
                begin_node(&m, 18, reductions[op], in, 2, "y", OP_F32);
                begin_node(&m1, 18, reductions[op], one, 2, "y", OP_F32);
                const struct op_tensor *y = run_node(&m, in, 2), *y1 = run_node(&m1, one, 2);
                int64_t k = 0;
                for (int64_t i = 0; i < op_tensor_count(y); i++) {
                    int64_t inner = 1;
                    for (int d = batch_at + 1; d < 3; d++) inner *= y->dims[d];
                    if (i / inner % 7 == 5)
                        assert_memory_equal((float *)y->data + i, (float *)y1->data + k++,
                                            sizeof(float));
                }
                assert_int_equal(k, op_tensor_count(y1));
                ot_end(&m);
                ot_end(&m1);
            }
}

static void test_reductions_of_nothing_and_of_no_axes(void **state) {
    (void)state;
    const double want[] = {0, NAN, 0, 0, 0, -INFINITY, -INFINITY, 1, -INFINITY, INFINITY};
    const int64_t axis[1] = {1};
    for (size_t op = 0; op < COUNT(reductions); op++) {
        struct op_tensor in[2] = {{.dtype = OP_F32, .rank = 3, .dims = {2, 0, 3}},
                                  vec(OP_I64, 1, axis)};
        struct ot m;
        begin_node(&m, 20, reductions[op], in, 2, "y", OP_F32);
        ot_int(&m, "keepdims", 0);
        const struct op_tensor *y = run_node(&m, in, 2);
        same_shape(y, 2, (int64_t[]){2, 3});
        for (int i = 0; i < 6; i++) {
            const float got = ((float *)y->data)[i];
            if (!(got == (float)want[op] || (got != got && want[op] != want[op])))
                fail_msg("%s of nothing is %g", reductions[op], got);
        }
        ot_end(&m);
    }
    const float x[4] = {1, -2, 3, -4};
    struct op_tensor in[2] = {
        {.dtype = OP_F32, .rank = 2, .dims = {2, 2}, .data = (void *)(uintptr_t)x},
        vec(OP_I64, 0, NULL)};
    struct ot m;
    begin_node(&m, 18, "ReduceSum", in, 2, "y", OP_F32);
    ot_int(&m, "noop_with_empty_axes", 1);
    const struct op_tensor *y = run_node(&m, in, 2);
    same_shape(y, 2, in[0].dims);
    assert_memory_equal(y->data, x, sizeof x);
    ot_end(&m);
    begin_node(&m, 18, "ReduceSum", in, 2, "y", OP_F32);
    y = run_node(&m, in, 2);
    same_shape(y, 2, (int64_t[]){1, 1});
    assert_true(*(float *)y->data == -2);
    ot_end(&m);
    const int64_t far_axis[1] = {2};
    in[1] = vec(OP_I64, 1, far_axis);
    begin_node(&m, 18, "ReduceMax", in, 2, "y", OP_F32);
    refuse(&m, in, 2, OP_BAD_VALUE, "axis 2 of an input of rank 2");
}

static void test_reductions_of_integers_bool_and_nan(void **state) {
    (void)state;
    const int32_t x[3] = {INT32_MAX, 1, 5};
    const uint8_t b[3] = {0, 1, 0};
    const float f[3] = {1, NAN, 2};
    const struct {
        const char *op;
        enum op_type type;
        const void *data;
        double want;
    } cases[] = {{"ReduceSum", OP_I32, x, (double)INT32_MIN + 5},
                 {"ReduceMean", OP_I32, x + 1, 3},
                 {"ReduceMax", OP_BOOL, b, 1},
                 {"ReduceMin", OP_BOOL, b, 0},
                 {"ReduceMax", OP_F32, f, NAN},
                 {"ReduceL1", OP_I32, x + 1, 6}};
    for (size_t i = 0; i < COUNT(cases); i++) {
        struct op_tensor in = vec(cases[i].type, cases[i].data == x + 1 ? 2 : 3, cases[i].data);
        struct ot m;
        begin_node(&m, 20, cases[i].op, &in, 1, "y", cases[i].type);
        ot_int(&m, "keepdims", 0);
        const double got = load(cases[i].type, run_node(&m, &in, 1)->data);
        if (!(got == cases[i].want || (got != got && cases[i].want != cases[i].want)))
            fail_msg("%s: %g, not %g", cases[i].op, got, cases[i].want);
        ot_end(&m);
    }
}

/* --- softmax -----------------------------------------------------------------------------------
 */

static void test_softmax_along_every_axis(void **state) {
    static float x[6 * 70 * 9];
    (void)state;
    random_state = 4;
    fill(x, COUNT(x));
    const char *const ops[] = {"Softmax", "LogSoftmax", "Hardmax"};
    for (int form = 0; form < 3; form++)
        for (int axis = -3; axis < 3; axis++)
            for (int coerced = 0; coerced < 2; coerced++) {
                if (coerced && axis < 0) continue;
                struct op_tensor in = {.dtype = OP_F32, .rank = 3, .dims = {6, 70, 9}, .data = x};
                struct ot m;
                begin_node(&m, coerced ? 11 : 13, ops[form], &in, 1, "y", OP_F32);
                ot_int(&m, "axis", axis);
                const float *y = run_node(&m, &in, 1)->data;
                const int a = axis < 0 ? axis + 3 : axis;
                int64_t outer = 1, n = 1, inner = 1;
                for (int d = 0; d < 3; d++)
                    *(d < a ? &outer : d == a || coerced ? &n : &inner) *= in.dims[d];
                for (int64_t o = 0; o < outer; o++)
                    for (int64_t j = 0; j < inner; j++) {
                        const float *line = x + o * n * inner + j, *got = y + o * n * inner + j;
                        double top = -INFINITY, sum = 0;
                        int64_t best = 0;
                        for (int64_t i = 0; i < n; i++)
                            if (line[i * inner] > top) top = line[i * inner], best = i;
                        for (int64_t i = 0; i < n; i++) sum += exp(line[i * inner] - top);
                        for (int64_t i = 0; i < n; i++) {
                            const double d = line[i * inner] - top, want = form == 0 ? exp(d) / sum
                                                                           : form == 1
                                                                               ? d - log(sum)
                                                                               : i == best;
                            assert_true(fabs(got[i * inner] - want) <= 1e-6 * fmax(1, fabs(want)));
                        }
                    }
                ot_end(&m);
            }
}

/* Against the plain form, on few different values, so that there are ties, and some NaN. */
static void test_argmax_of_every_length(void **state) {
    static float x[20 * 200];
    (void)state;
    random_state = 14;
    for (size_t i = 0; i < COUNT(x); i++) x[i] = below(300) == 0 ? NAN : (float)below(6);
    for (int64_t n = 1; n <= 200; n += n < 70 ? 1 : 13)
        for (int form = 0; form < 4; form++) {
            const struct op_tensor in = {.dtype = OP_F32, .rank = 2, .dims = {20, n}, .data = x};
            struct ot m[2];
            struct op_error err;
            const struct op_tensor *y[2];
            for (int plain = 0; plain < 2; plain++) {
                begin_node(&m[plain], 13, form & 1 ? "ArgMax" : "ArgMin", &in, 1, "y", OP_I64);
                ot_int(&m[plain], "axis", 1);
                ot_int(&m[plain], "select_last_index", form >> 1);
                y[plain] = try_node(&m[plain], plain, &in, 1, &err);
                if (!y[plain]) fail_msg("%s", err.text);
            }
            assert_memory_equal(y[0]->data, y[1]->data, 20 * sizeof(int64_t));
            ot_end(&m[0]);
            ot_end(&m[1]);
        }
}

/* Rows of every length around the change from columns to rows; a row alone has the bits that it has
 * among others. */
static void test_softmax_of_short_rows(void **state) {
    static float x[150 * 40];
    (void)state;
    random_state = 13;
    fill(x, COUNT(x));
    for (int log = 0; log < 2; log++)
        for (int64_t n = 1; n <= 40; n++) {
            const struct op_tensor all = {.dtype = OP_F32, .rank = 2, .dims = {150, n}, .data = x},
                                   one = {.dtype = OP_F32,
                                          .rank = 2,
                                          .dims = {1, n},
                                          .data = x + 149 * n};
            struct ot m, m1;
            begin_node(&m, 13, log ? "LogSoftmax" : "Softmax", &all, 1, "y", OP_F32);
            begin_node(&m1, 13, log ? "LogSoftmax" : "Softmax", &one, 1, "y", OP_F32);
            const float *y = run_node(&m, &all, 1)->data, *y1 = run_node(&m1, &one, 1)->data;
            assert_memory_equal(y + 149 * n, y1, (size_t)n * sizeof *y);
            for (int r = 0; r < 150; r++) {
                double top = -INFINITY, sum = 0;
                for (int64_t i = 0; i < n; i++) top = fmax(top, x[r * n + i]);
                for (int64_t i = 0; i < n; i++) sum += exp(x[r * n + i] - top);
                for (int64_t i = 0; i < n; i++) {
                    const double d = x[r * n + i] - top,
                                 want = log ? d - log1p(sum - 1) : exp(d) / sum;
                    assert_true(fabs(y[r * n + i] - want) <= 1e-6 * fmax(1, fabs(want)));
                }
            }
            ot_end(&m);
            ot_end(&m1);
        }
}

/* --- choosing ----------------------------------------------------------------------------------
 */

static void test_topk_orders_ties_and_nan(void **state) {
    (void)state;
    const float x[6] = {3, 1, 3, NAN, -1, 2};
    const int64_t k = 4;
    struct op_tensor in[2] = {vec(OP_F32, 6, x), vec(OP_I64, 1, &k)};
    for (int largest = 0; largest < 2; largest++) {
        const int64_t want[2][4] = {{4, 1, 5, 0}, {3, 0, 2, 5}};
        struct ot m;
        begin_node(&m, 11, "TopK", in, 2, "y i", OP_F32);
        ot_int(&m, "largest", largest);
        const struct op_tensor *y = run_node(&m, in, 2);
        assert_memory_equal(y[1].data, want[largest], sizeof want[0]);
        ot_end(&m);
    }
    const int64_t many = 7;
    in[1] = vec(OP_I64, 1, &many);
    struct ot m;
    begin_node(&m, 11, "TopK", in, 2, "y i", OP_F32);
    refuse(&m, in, 2, OP_BAD_VALUE, "k is 7");
}

static void test_topk_matches_a_sort(void **state) {
    static int32_t x[2000];
    (void)state;
    random_state = 5;
    for (int round = 0; round < 30; round++) {
        const int64_t n = 1 + below(300), inner = 1 + below(5), k = below(n + 1);
        for (int64_t i = 0; i < n * inner; i++) x[i] = (int32_t)below(50);
        struct op_tensor in[2] = {{.dtype = OP_I32, .rank = 2, .dims = {n, inner}, .data = x},
                                  vec(OP_I64, 1, &k)};
        struct ot m;
        begin_node(&m, 11, "TopK", in, 2, "y i", OP_I32);
        ot_int(&m, "axis", 0);
        const struct op_tensor *y = run_node(&m, in, 2);
        const int64_t *at = y[1].data;
        for (int64_t j = 0; j < inner; j++)
            for (int64_t r = 0; r < k; r++) { /* rank r: r elements are better */
                const int64_t i = at[r * inner + j];
                int64_t better = 0;
                for (int64_t o = 0; o < n; o++)
                    better += x[o * inner + j] > x[i * inner + j] ||
                              (x[o * inner + j] == x[i * inner + j] && o < i);
                assert_int_equal(better, r);
                assert_int_equal(((int32_t *)y[0].data)[r * inner + j], x[i * inner + j]);
            }
        ot_end(&m);
    }
}

static void test_unique_keeps_first_appearance(void **state) {
    (void)state;
    const float x[6] = {2, 1, 1, 3, 4, 3}, values[4] = {2, 1, 3, 4};
    const int64_t first[4] = {0, 1, 3, 4}, inverse[6] = {0, 1, 1, 2, 3, 2},
                  counts[4] = {1, 2, 2, 1};
    struct op_tensor in = vec(OP_F32, 6, x);
    struct ot m;
    begin_node(&m, 11, "Unique", &in, 1, "y i v c", OP_F32);
    ot_int(&m, "sorted", 0);
    const struct op_tensor *y = run_node(&m, &in, 1);
    assert_int_equal(y[0].dims[0], 4);
    assert_memory_equal(y[0].data, values, sizeof values);
    assert_memory_equal(y[1].data, first, sizeof first);
    assert_memory_equal(y[2].data, inverse, sizeof inverse);
    assert_memory_equal(y[3].data, counts, sizeof counts);
    ot_end(&m);
}

static void test_argmax_of_ties_nan_and_nothing(void **state) {
    (void)state;
    const float x[4] = {1, 5, 5, 0}, with_nan[3] = {1, NAN, 7};
    struct op_tensor in = vec(OP_F32, 4, x), nan = vec(OP_F32, 3, with_nan),
                     none = {.dtype = OP_F32, .rank = 2, .dims = {2, 0}};
    struct ot m;
    for (int last = 0; last < 2; last++) {
        begin_node(&m, 13, "ArgMax", &in, 1, "y", OP_I64);
        ot_int(&m, "select_last_index", last);
        assert_int_equal(*(int64_t *)run_node(&m, &in, 1)->data, last ? 2 : 1);
        ot_end(&m);
    }
    begin_node(&m, 13, "ArgMin", &nan, 1, "y", OP_I64);
    assert_int_equal(*(int64_t *)run_node(&m, &nan, 1)->data, 1);
    ot_end(&m);
    begin_node(&m, 13, "ArgMax", &none, 1, "y", OP_I64);
    ot_int(&m, "axis", 1);
    refuse(&m, &none, 1, OP_BAD_SHAPE, "no elements");
}

/* --- quantisation ------------------------------------------------------------------------------
 */

static void test_quantize_rounds_to_even_and_saturates(void **state) {
    (void)state;
    const float x[8] = {0.5f, 1.5f, 2.5f, -0.5f, 1e30f, -1e30f, NAN, 300}, scale = 1;
    const uint8_t zero = 128, want[8] = {128, 130, 130, 128, 255, 0, 128, 255};
    struct op_tensor in[3] = {vec(OP_F32, 8, x), scalar(OP_F32, &scale), scalar(OP_U8, &zero)};
    struct ot m;
    begin_node(&m, 13, "QuantizeLinear", in, 3, "y", OP_U8);
    assert_memory_equal(run_node(&m, in, 3)->data, want, sizeof want);
    ot_end(&m);
}

static void test_dequantize_by_axis_and_by_block(void **state) {
    (void)state;
    const int8_t x[12] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12};
    const float scale[4] = {1, 10, 100, 1000};
    struct op_tensor in[2] = {
        {.dtype = OP_I8, .rank = 3, .dims = {2, 3, 2}, .data = (void *)(uintptr_t)x},
        vec(OP_F32, 3, scale)};
    struct ot m;
    begin_node(&m, 13, "DequantizeLinear", in, 2, "y", OP_F32);
    const float by_axis[12] = {1, 2, 30, 40, 500, 600, 7, 8, 90, 100, 1100, 1200};
    assert_memory_equal(run_node(&m, in, 2)->data, by_axis, sizeof by_axis);
    ot_end(&m);
    /* blocks of 2 along an axis of 3: groups of 2 and 1 */
    in[0].rank = in[1].rank = 2;
    in[0].dims[0] = 4, in[0].dims[1] = 3;
    in[1].dims[0] = 4, in[1].dims[1] = 2;
    const float blocks[8] = {1, 10, 100, 1000, 2, 20, 3, 30},
                by_block[12] = {1, 2, 30, 400, 500, 6000, 14, 16, 180, 30, 33, 360};
    in[1].data = (void *)(uintptr_t)blocks;
    begin_node(&m, 21, "DequantizeLinear", in, 2, "y", OP_F32);
    ot_int(&m, "block_size", 2);
    assert_memory_equal(run_node(&m, in, 2)->data, by_block, sizeof by_block);
    ot_end(&m);
    begin_node(&m, 21, "DequantizeLinear", in, 2, "y", OP_F32);
    ot_int(&m, "block_size", 1);
    refuse(&m, in, 2, OP_BAD_SHAPE, "block_size 1");
}

static void test_integer_conv_matches_its_definition(void **state) {
    static uint8_t x[2 * 4 * 9 * 11];
    static int8_t w[6 * 2 * 3 * 2];
    (void)state;
    random_state = 6;
    for (size_t i = 0; i < COUNT(x); i++) x[i] = (uint8_t)below(256);
    for (size_t i = 0; i < COUNT(w); i++) w[i] = (int8_t)(below(256) - 128);
    const uint8_t x_zero = 7;
    const int8_t w_zero[6] = {-3, 0, 5, 1, 2, -128};
    struct op_tensor in[4] = {{.dtype = OP_U8, .rank = 4, .dims = {2, 4, 9, 11}, .data = x},
                              {.dtype = OP_I8, .rank = 4, .dims = {6, 2, 3, 2}, .data = w},
                              scalar(OP_U8, &x_zero),
                              vec(OP_I8, 6, w_zero)};
    for (int round = 0; round < 20; round++) {
        const int64_t stride[2] = {1 + below(3), 1 + below(3)},
                      dilation[2] = {1 + below(2), 1 + below(2)};
        const int64_t pad[4] = {below(3), below(3), below(3), below(3)};
        struct ot m;
        struct op_error err;
        begin_node(&m, 10, "ConvInteger", in, 4, "y", OP_I32);
        ot_int(&m, "group", 2);
        ot_ints(&m, "strides", 2, stride);
        ot_ints(&m, "dilations", 2, dilation);
        ot_ints(&m, "pads", 4, pad);
        const struct op_tensor *y = try_node(&m, round % 4 == 0, in, 4, &err);
        if (!y) fail_msg("%s", err.text);
        const int32_t *got = y->data;
        for (int64_t n = 0; n < 2; n++)
            for (int64_t o = 0; o < 6; o++)
                for (int64_t r = 0; r < y->dims[2]; r++)
                    for (int64_t c = 0; c < y->dims[3]; c++) {
                        int32_t sum = 0;
                        for (int64_t i = 0; i < 2; i++)
                            for (int64_t kr = 0; kr < 3; kr++)
                                for (int64_t kc = 0; kc < 2; kc++) {
                                    const int64_t ir = r * stride[0] + kr * dilation[0] - pad[0],
                                                  ic = c * stride[1] + kc * dilation[1] - pad[1];
                                    if (ir < 0 || ir >= 9 || ic < 0 || ic >= 11) continue;
                                    sum +=
                                        (x[((n * 4 + o / 3 * 2 + i) * 9 + ir) * 11 + ic] - x_zero) *
                                        (w[((o * 2 + i) * 3 + kr) * 2 + kc] - w_zero[o]);
                                }
                        assert_int_equal(*got++, sum);
                    }
        ot_end(&m);
    }
}

/* The fast forms against the plain ones, which the tests above hold to the definition: bit for bit,
 * over sums of more terms than are exact in one f32. */
static void test_integer_products_are_exact(void **state) {
    static uint8_t x[3 * 70 * 13 * 9], w[800 * 40];
    static int32_t bias[8];
    (void)state;
    random_state = 9;
    for (size_t i = 0; i < COUNT(x); i++) x[i] = below(2) ? 255 : (uint8_t)below(256);
    for (size_t i = 0; i < COUNT(w); i++) w[i] = below(2) ? 255 : (uint8_t)below(256);
    for (size_t i = 0; i < COUNT(bias); i++) bias[i] = (int32_t)below(2000) - 1000;
    const float scale = 0.004f,
                scales[8] = {0.001f, 0.002f, 0.003f, 0.004f, 0.005f, 0.006f, 0.007f, 0.008f},
                y_scale = 2;
    const uint8_t zero = 0, zeros[8] = {0, 1, 2, 3, 200, 255, 0, 9}, y_zero = 3;
    const int64_t pads[4] = {1, 0, 2, 1};
    const struct op_tensor a = {.dtype = OP_U8, .rank = 3, .dims = {3, 5, 700}, .data = x},
                           b = {.dtype = OP_U8, .rank = 2, .dims = {700, 40}, .data = w};
    const struct op_tensor b_each = {.dtype = OP_U8, .rank = 3, .dims = {3, 700, 8}, .data = w};
    const struct op_tensor image = {.dtype = OP_U8, .rank = 4, .dims = {3, 70, 13, 9}, .data = x},
                           kernel = {.dtype = OP_U8, .rank = 4, .dims = {8, 70, 3, 3}, .data = w};
    const struct op_tensor depthwise = {
        .dtype = OP_U8, .rank = 4, .dims = {70, 1, 3, 3}, .data = w};
    const struct op_tensor s1 = scalar(OP_F32, &scale), z1 = scalar(OP_U8, &zero),
                           ys = scalar(OP_F32, &y_scale), yz = scalar(OP_U8, &y_zero);
    const struct op_tensor s8 = vec(OP_F32, 8, scales), z8 = vec(OP_U8, 8, zeros),
                           b8 = vec(OP_I32, 8, bias);
    const struct {
        const char *op;
        int n, group;
        struct op_tensor in[9];
    } cases[] = {{"MatMulInteger", 2, 0, {a, b}},
                 {"MatMulInteger", 4, 0, {a, b_each, z1, z8}},
                 {"QLinearMatMul", 8, 0, {a, s1, z1, b, s1, z1, ys, yz}},
                 {"QLinearMatMul", 8, 0, {a, s1, z1, b_each, s8, z8, ys, yz}},
                 {"ConvInteger", 4, 1, {image, kernel, z1, z8}},
                 {"QLinearConv", 9, 1, {image, s1, z1, kernel, s8, z8, ys, yz, b8}},
                 {"QLinearConv", 8, 70, {image, s1, z1, depthwise, s1, z1, ys, yz}}};
    for (size_t i = 0; i < COUNT(cases); i++) {
        struct ot m[2];
        struct op_error err;
        const struct op_tensor *y[2];
        for (int plain = 0; plain < 2; plain++) {
            begin_node(&m[plain], 10, cases[i].op, cases[i].in, cases[i].n, "y",
                       cases[i].op[0] == 'Q' ? OP_U8 : OP_I32);
            if (cases[i].group) {
                ot_int(&m[plain], "group", cases[i].group);
                ot_ints(&m[plain], "pads", 4, pads);
            }
            y[plain] = try_node(&m[plain], plain, cases[i].in, cases[i].n, &err);
            if (!y[plain]) fail_msg("%s", err.text);
        }
        same_shape(y[0], y[1]->rank, y[1]->dims);
        assert_memory_equal(y[0]->data, y[1]->data, (size_t)op_tensor_bytes(y[1]));
        uint8_t low = 255, high = 0; /* not all saturated */
        for (int64_t k = 0; cases[i].op[0] == 'Q' && k < op_tensor_count(y[0]); k++) {
            const uint8_t v = ((uint8_t *)y[0]->data)[k];
            low = v < low ? v : low;
            high = v > high ? v : high;
        }
        if (cases[i].op[0] == 'Q') assert_true(high > low);
        ot_end(&m[0]);
        ot_end(&m[1]);
    }
    /* and the plain product is the definition */
    struct ot m;
    struct op_error err;
    begin_node(&m, 10, "MatMulInteger", cases[1].in, 4, "y", OP_I32);
    const struct op_tensor *y = try_node(&m, true, cases[1].in, 4, &err);
    if (!y) fail_msg("%s", err.text);
    int32_t sum = 0;
    for (int k = 0; k < 700; k++)
        sum += x[(2 * 5 + 3) * 700 + k] * (w[(2 * 700 + k) * 8 + 4] - zeros[4]);
    assert_int_equal(((int32_t *)y->data)[(2 * 5 + 3) * 8 + 4], sum);
    ot_end(&m);
}

/* --- Einsum ------------------------------------------------------------------------------------
 */

static void test_einsum_as_product_matches_the_plain_loop(void **state) {
    static float x[4096], z[4096];
    (void)state;
    random_state = 7;
    fill(x, COUNT(x));
    fill(z, COUNT(z));
    const struct {
        const char *equation;
        int64_t a[4], b[4];
    } cases[] = {{"bhqd,bhkd->bhqk", {2, 3, 5, 7}, {2, 3, 4, 7}},
                 {"bij,bjk->bik", {3, 4, 5}, {3, 5, 6}},
                 {"ij,jk", {4, 5}, {5, 6}},
                 {"i,j->ji", {4}, {5}},
                 {"...ij,...jk->...ik", {2, 3, 4}, {1, 4, 5}},
                 {"bqhd,bkhd->bhqk", {2, 5, 3, 4}, {2, 6, 3, 4}},
                 {"ij,ij->", {5, 6}, {5, 6}},
                 {"ii,ij->j", {4, 4}, {4, 3}},
                 {"abc,c->a", {2, 3, 4}, {4}}};
    for (size_t i = 0; i < COUNT(cases); i++) {
        struct op_tensor in[2] = {{.dtype = OP_F32, .data = x}, {.dtype = OP_F32, .data = z}};
        for (int k = 0; k < 2; k++)
            for (int d = 0; d < 4 && (k ? cases[i].b : cases[i].a)[d]; d++)
                in[k].dims[in[k].rank++] = (k ? cases[i].b : cases[i].a)[d];
        struct ot m[2];
        struct op_error err;
        const struct op_tensor *y[2];
        for (int plain = 0; plain < 2; plain++) {
            begin_node(&m[plain], 12, "Einsum", in, 2, "y", OP_F32);
            ot_string(&m[plain], "equation", cases[i].equation);
            y[plain] = try_node(&m[plain], plain, in, 2, &err);
            if (!y[plain]) fail_msg("%s", err.text);
        }
        same_shape(y[0], y[1]->rank, y[1]->dims);
        for (int64_t k = 0; k < op_tensor_count(y[0]); k++) {
            const float got = ((float *)y[0]->data)[k], want = ((float *)y[1]->data)[k];
            if (fabsf(got - want) > 1e-4f * fmaxf(1, fabsf(want)))
                fail_msg("%s, element %lld: %g, not %g", cases[i].equation, (long long)k, got,
                         want);
        }
        if (i == 2) { /* and the plain loop is a matrix product */
            double sum = 0;
            for (int j = 0; j < 5; j++) sum += (double)x[1 * 5 + j] * z[j * 6 + 2];
            assert_true(fabs(((float *)y[1]->data)[1 * 6 + 2] - sum) < 1e-4);
        }
        ot_end(&m[0]);
        ot_end(&m[1]);
    }
    const char *const bad[] = {"ij,jk->iz", "ij", "ij,jk,kl", "i1,jk", "ij,jk->ii", "i.j,jk"};
    for (size_t i = 0; i < COUNT(bad); i++) {
        struct op_tensor in[2] = {{.dtype = OP_F32, .rank = 2, .dims = {2, 2}, .data = x},
                                  {.dtype = OP_F32, .rank = 2, .dims = {2, 2}, .data = z}};
        struct ot m;
        begin_node(&m, 12, "Einsum", in, 2, "y", OP_F32);
        ot_string(&m, "equation", bad[i]);
        refuse(&m, in, 2, OP_BAD_VALUE, "does not fit");
    }
}

/* --- activations on edge values, random numbers, losses ------------------------------------------
 */

static void test_activations_on_edge_values(void **state) {
    (void)state;
    const float x[5] = {-INFINITY, -100, 0, 100, NAN};
    const struct {
        const char *op;
        int opset;
        float want[4];
    } cases[] = {{"Relu", 14, {0, 0, 0, 100}},
                 {"Sigmoid", 13, {0, 3.78e-44f, 0.5f, 1}},
                 {"Tanh", 13, {-1, -1, 0, 1}},
                 {"Softplus", 1, {0, 3.78e-44f, 0.6931472f, 100}},
                 {"Elu", 6, {-1, -1, 0, 100}},
                 {"HardSigmoid", 6, {0, 0, 0.5f, 1}},
                 {"Softsign", 1, {NAN, -0.990099f, 0, 0.990099f}},
                 {"Gelu", 20, {NAN, 0, 0, 100}},
                 {"Mish", 18, {NAN, 0, 0, 100}},
                 {"Sign", 13, {-1, -1, 0, 1}}};
    for (size_t i = 0; i < COUNT(cases); i++)
        for (int plain = 0; plain < 2; plain++) {
            struct op_tensor in = vec(OP_F32, 5, x);
            struct op_error err;
            struct ot m;
            begin_node(&m, cases[i].opset, cases[i].op, &in, 1, "y", OP_F32);
            const struct op_tensor *t = try_node(&m, plain, &in, 1, &err);
            if (!t) fail_msg("%s", err.text);
            const float *y = t->data;
            for (int k = 0; k < 4; k++) {
                if (cases[i].want[k] != cases[i].want[k])
                    continue; /* where the limit and the formula differ */
                if (!(fabsf(y[k] - cases[i].want[k]) <= 1e-6f * fmaxf(1, fabsf(cases[i].want[k]))))
                    fail_msg("%s of %g is %g", cases[i].op, x[k], y[k]);
            }
            if (y[4] == y[4]) fail_msg("%s of NaN is %g", cases[i].op, y[4]);
            ot_end(&m);
        }
}

static void test_half_types_compute_in_f32(void **state) {
    (void)state;
    for (int bf16 = 0; bf16 < 2; bf16++) {
        uint16_t x[300], w[300];
        uint16_t (*narrow)(float) = bf16 ? op__f32_to_bf16 : op__f32_to_f16;
        random_state = 8;
        for (int i = 0; i < 300; i++) x[i] = narrow(real()), w[i] = narrow(real());
        const enum op_type type = bf16 ? OP_BF16 : OP_F16;
        struct op_tensor in[2] = {vec(type, 300, x), vec(type, 300, w)};
        struct ot m;
        begin_node(&m, 14, "Mul", in, 2, "y", type);
        const uint16_t *y = run_node(&m, in, 2)->data;
        for (int i = 0; i < 300; i++)
            assert_int_equal(y[i],
                             bf16 ? op__f32_to_bf16(op__bf16_to_f32(x[i]) * op__bf16_to_f32(w[i]))
                                  : op__f32_to_f16(op__f16_to_f32(x[i]) * op__f16_to_f32(w[i])));
        ot_end(&m);
    }
}

/* The vectorised conversions against the scalar ones: every f16, and f32 around every rounding
 * boundary. */
static void test_half_conversions_of_every_value(void **state) {
    static uint16_t half[65536];
    static float wide[3 * 65536];
    (void)state;
    for (int i = 0; i < 65536; i++) half[i] = (uint16_t)i;
    struct op_tensor in = vec(OP_F16, 65536, half);
    struct ot m;
    begin_node(&m, 13, "Cast", &in, 1, "y", OP_F32);
    ot_int(&m, "to", OP_F32);
    const float *y = run_node(&m, &in, 1)->data;
    for (int i = 0; i < 65536; i++) {
        const float want = op__f16_to_f32(half[i]);
        if (want == want ? memcmp(&y[i], &want, 4) != 0 : y[i] == y[i])
            fail_msg("f16 %04x is %g, not %g", i, y[i], want);
    }
    ot_end(&m);
    for (int bf16 = 0; bf16 < 2; bf16++) {
        const enum op_type type = bf16 ? OP_BF16 : OP_F16;
        for (int i = 0; i < 65536; i++) { /* the middle above each value, and its two neighbours */
            union {
                float f;
                uint32_t u;
            } v = {.u = bf16 ? (uint32_t)i << 16 | 0x8000 : 0};
            if (!bf16)
                v.f = (op__f16_to_f32((uint16_t)i) +
                       op__f16_to_f32((uint16_t)((i & 0x7fff) < 0x7c00 ? i + 1 : i))) /
                      2;
            wide[3 * i] = v.f;
            v.u--;
            wide[3 * i + 1] = v.f;
            v.u += 2;
            wide[3 * i + 2] = v.f;
        }
        in = vec(OP_F32, COUNT(wide), wide);
        begin_node(&m, 13, "Cast", &in, 1, "y", type);
        ot_int(&m, "to", type);
        const uint16_t *h = run_node(&m, &in, 1)->data;
        for (size_t i = 0; i < COUNT(wide); i++) {
            const uint16_t want = bf16 ? op__f32_to_bf16(wide[i]) : op__f32_to_f16(wide[i]);
            if (wide[i] == wide[i] && h[i] != want)
                fail_msg("%.9g is %04x, not %04x", wide[i], h[i], want);
            if (wide[i] != wide[i])
                assert_true(bf16 ? (h[i] & 0x7fff) > 0x7f80 : (h[i] & 0x7fff) > 0x7c00);
        }
        ot_end(&m);
    }
}

static void test_short_rows_are_rows(void **state) {
    static float x[50000], row[64];
    (void)state;
    random_state = 10;
    fill(x, COUNT(x));
    fill(row, COUNT(row));
    for (int round = 0; round < 40; round++) {
        const int64_t n = 1 + below(64), rows = 4096 / n + below(50000 / n - 4096 / n);
        struct op_tensor in[2] = {{.dtype = OP_F32, .rank = 2, .dims = {rows, n}, .data = x},
                                  vec(OP_F32, n, row)};
        const bool swapped = below(2);
        if (swapped) {
            const struct op_tensor t = in[0];
            in[0] = in[1];
            in[1] = t;
        }
        struct ot m;
        begin_node(&m, 14, "Sub", in, 2, "y", OP_F32);
        const float *y = run_node(&m, in, 2)->data;
        for (int64_t i = 0; i < rows * n; i++)
            assert_true(y[i] == (swapped ? row[i % n] - x[i] : x[i] - row[i % n]));
        ot_end(&m);
    }
}

static void test_seeded_random_numbers_are_those_of_the_reference(void **state) {
    (void)state;
    /* numpy.random.RandomState(0).random_sample(3) and .standard_normal(3) */
    const float uniform[3] = {0.5488135f, 0.71518937f, 0.60276338f},
                normal[3] = {1.76405235f, 0.40015721f, 0.97873798f};
    for (int i = 0; i < 2; i++) {
        struct ot m;
        begin_node(&m, 1, i ? "RandomNormal" : "RandomUniform", NULL, 0, "y", OP_F32);
        ot_ints(&m, "shape", 1, (int64_t[]){3});
        ot_float(&m, "seed", 0);
        const float *y = run_node(&m, NULL, 0)->data;
        for (int k = 0; k < 3; k++) assert_true(fabsf(y[k] - (i ? normal : uniform)[k]) < 1e-6f);
        ot_end(&m);
    }
}

static void test_losses_refuse_labels_out_of_range(void **state) {
    (void)state;
    const float x[6] = {1, 2, 3, 4, 5, 6};
    const int64_t good[2] = {2, -1}, bad[2] = {2, 3};
    struct op_tensor in[2] = {
        {.dtype = OP_F32, .rank = 2, .dims = {2, 3}, .data = (void *)(uintptr_t)x},
        vec(OP_I64, 2, good)};
    struct ot m;
    begin_node(&m, 13, "SoftmaxCrossEntropyLoss", in, 2, "y", OP_F32);
    ot_int(&m, "ignore_index", -1);
    assert_true(fabsf(*(float *)run_node(&m, in, 2)->data - 0.40760596f) < 1e-6f);
    ot_end(&m);
    in[1] = vec(OP_I64, 2, bad);
    begin_node(&m, 13, "SoftmaxCrossEntropyLoss", in, 2, "y", OP_F32);
    refuse(&m, in, 2, OP_BAD_VALUE, "a label is 3, must be 0 to 2");
}

/* --- com.microsoft -----------------------------------------------------------------------------
 */

static void test_contrib_matmul_in_both_orders(void **state) {
    static float a[2 * 5 * 7], b[3 * 7 * 4];
    (void)state;
    random_state = 12;
    fill(a, COUNT(a));
    fill(b, COUNT(b));
    for (int order = 0; order < 4; order++) {
        const bool ta = order & 1, tb = order & 2;
        struct op_tensor in[2] = {
            {.dtype = OP_F32, .rank = 4, .dims = {2, 1, ta ? 7 : 5, ta ? 5 : 7}, .data = a},
            {.dtype = OP_F32, .rank = 3, .dims = {3, tb ? 4 : 7, tb ? 7 : 4}, .data = b}};
        struct ot m;
        ot_begin(&m, 17);
        ot_input(&m, "a", OP_F32, -1, NULL);
        ot_input(&m, "b", OP_F32, -1, NULL);
        ot_node_of(&m, "com.microsoft", "FusedMatMul", "a b", "y");
        ot_int(&m, "transA", ta);
        ot_int(&m, "transB", tb);
        ot_float(&m, "alpha", 0.5f);
        ot_output(&m, "y", OP_F32, -1, NULL);
        const struct op_tensor *y = run_node(&m, in, 2);
        same_shape(y, 4, (int64_t[]){2, 3, 5, 4});
        for (int n = 0; n < 2; n++)
            for (int h = 0; h < 3; h++)
                for (int i = 0; i < 5; i++)
                    for (int j = 0; j < 4; j++) {
                        double sum = 0;
                        for (int k = 0; k < 7; k++)
                            sum += (double)a[n * 35 + (ta ? k * 5 + i : i * 7 + k)] *
                                   b[h * 28 + (tb ? j * 7 + k : k * 4 + j)];
                        assert_true(fabs(((float *)y->data)[((n * 3 + h) * 5 + i) * 4 + j] -
                                         sum / 2) < 1e-4);
                    }
        ot_end(&m);
    }
}

static void test_contrib_activations(void **state) {
    (void)state;
    const float x[2] = {1, -0.5f}, bias[2] = {0.25f, -0.25f};
    const struct {
        const char *op;
        int n;
        double want[2];
    } cases[] = {{"Gelu", 1, {0.5 * (1 + erf(M_SQRT1_2)), -0.25 * (1 + erf(-0.5 * M_SQRT1_2))}},
                 {"BiasGelu",
                  2,
                  {0.625 * (1 + erf(1.25 * M_SQRT1_2)), -0.375 * (1 + erf(-0.75 * M_SQRT1_2))}},
                 {"FastGelu",
                  2,
                  {0.625 * (1 + tanh(0.7978845608 * (1.25 + 0.044715 * 1.953125))),
                   -0.375 * (1 + tanh(0.7978845608 * (-0.75 - 0.044715 * 0.421875)))}},
                 {"QuickGelu", 1, {1 / (1 + exp(-1.702)), -0.5 / (1 + exp(0.851))}}};
    for (size_t i = 0; i < COUNT(cases); i++) {
        struct op_tensor in[2] = {vec(OP_F32, 2, x), vec(OP_F32, 2, bias)};
        struct ot m;
        ot_begin(&m, 17);
        ot_input(&m, "a", OP_F32, -1, NULL);
        if (cases[i].n > 1) ot_input(&m, "b", OP_F32, -1, NULL);
        ot_node_of(&m, "com.microsoft", cases[i].op, cases[i].n > 1 ? "a b" : "a", "y");
        ot_output(&m, "y", OP_F32, -1, NULL);
        const float *y = run_node(&m, in, cases[i].n)->data;
        for (int k = 0; k < 2; k++)
            if (fabs(y[k] - cases[i].want[k]) > 1e-6)
                fail_msg("%s of %g is %g, not %g", cases[i].op, x[k], y[k], cases[i].want[k]);
        ot_end(&m);
    }
}

/* Big enough for many pieces, on one thread and on three: the same bits. */
static void test_threads_do_not_change_a_bit(void **state) {
    enum { SIZE = 120 * 1000 };
    static float x[SIZE];
    (void)state;
    random_state = 11;
    fill(x, SIZE);
    const struct op_tensor whole = {.dtype = OP_F32, .rank = 3, .dims = {120, 25, 40}, .data = x},
                           row = vec(OP_F32, 40, x), three = vec(OP_F32, 3, x);
    const struct op_tensor plane = {.dtype = OP_F32, .rank = 3, .dims = {1, 25, 1}, .data = x},
                           bytes = {.dtype = OP_U8, .rank = 2, .dims = {600, 400}, .data = x};
    const struct op_tensor narrow = {.dtype = OP_F32, .rank = 2, .dims = {SIZE / 3, 3}, .data = x},
                           half = {.dtype = OP_F16, .rank = 1, .dims = {SIZE}, .data = x};
    const struct op_tensor image = {.dtype = OP_U8, .rank = 4, .dims = {2, 8, 60, 50}, .data = x},
                           kernel = {.dtype = OP_I8, .rank = 4, .dims = {16, 8, 3, 3}, .data = x};
    const struct op_tensor mask = {.dtype = OP_BOOL, .rank = 3, .dims = {120, 1, 40}, .data = x},
                           wide = {.dtype = OP_U8, .rank = 2, .dims = {400, 300}, .data = x};
    const struct {
        const char *op;
        int n, axis; /* 9: no axis */
        struct op_tensor in[3];
        enum op_type out;
    } cases[] = {{"Sigmoid", 1, 9, {whole}, OP_F32},
                 {"Add", 2, 9, {whole, row}, OP_F32},
                 {"Sub", 2, 9, {whole, plane}, OP_F32},
                 {"Mul", 2, 9, {narrow, three}, OP_F32},
                 {"Relu", 1, 9, {half}, OP_F16},
                 {"Where", 3, 9, {mask, whole, row}, OP_F32},
                 {"Softmax", 1, -1, {whole}, OP_F32},
                 {"Softmax", 1, 0, {whole}, OP_F32},
                 {"ReduceSum", 1, 9, {whole}, OP_F32},
                 {"ArgMax", 1, 1, {whole}, OP_I64},
                 {"ArgMax", 1, 2, {whole}, OP_I64},
                 {"MatMulInteger", 2, 9, {bytes, wide}, OP_I32},
                 {"ConvInteger", 2, 9, {image, kernel}, OP_I32},
                 {"DynamicQuantizeLinear", 1, 9, {whole}, OP_U8},
                 {"Sin", 1, 9, {whole}, OP_F32}};
    for (size_t i = 0; i < COUNT(cases); i++) {
        struct ot m;
        struct op_error err;
        begin_node(&m, 13, cases[i].op, cases[i].in, cases[i].n, "y", cases[i].out);
        if (cases[i].axis != 9) ot_int(&m, "axis", cases[i].axis);
        const struct op_tensor *one = run_node(&m, cases[i].in, cases[i].n), *many = NULL;
        struct op_session *s =
            op_session_create(m.model, &(struct op_session_options){.n_threads = 3}, &err);
        assert_non_null(s);
        if (op_session_run(s, cases[i].in, cases[i].n, &many, &err) != OP_OK)
            fail_msg("%s", err.text);
        same_shape(many, one->rank, one->dims);
        if (memcmp(one->data, many->data, (size_t)op_tensor_bytes(one)))
            fail_msg("%s differs on three threads", cases[i].op);
        op_session_destroy(s);
        ot_end(&m);
    }
    for (size_t op = 0; op < COUNT(reductions); op++)
        for (int axis = 0; axis < 3; axis++) {
            struct ot m;
            struct op_error err;
            const struct op_tensor *many = NULL;
            begin_node(&m, 11, reductions[op], &whole, 1, "y", OP_F32);
            ot_ints(&m, "axes", 1, (int64_t[]){axis});
            const struct op_tensor *one = run_node(&m, &whole, 1);
            struct op_session *s =
                op_session_create(m.model, &(struct op_session_options){.n_threads = 3}, &err);
            if (op_session_run(s, &whole, 1, &many, &err) != OP_OK) fail_msg("%s", err.text);
            assert_memory_equal(one->data, many->data, (size_t)op_tensor_bytes(one));
            op_session_destroy(s);
            ot_end(&m);
        }
}

static void test_types_that_an_operator_does_not_take(void **state) {
    (void)state;
    const int32_t i = 1;
    const float f = 1;
    struct op_tensor ints = scalar(OP_I32, &i), mixed[2] = {scalar(OP_F32, &f), scalar(OP_I32, &i)};
    struct ot m;
    begin_node(&m, 13, "Exp", &ints, 1, "y", OP_I32);
    refuse(&m, &ints, 1, OP_BAD_TYPE, "i32");
    begin_node(&m, 14, "Add", mixed, 2, "y", OP_F32);
    refuse(&m, mixed, 2, OP_BAD_TYPE, "f32 and i32");
    begin_node(&m, 13, "Softmax", &ints, 1, "y", OP_I32);
    refuse(&m, &ints, 1, OP_BAD_TYPE, "i32");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_broadcast_matches_index_arithmetic),
        cmocka_unit_test(test_where_broadcasts_three),
        cmocka_unit_test(test_legacy_axis_places_the_second_input),
        cmocka_unit_test(test_chains_in_place_keep_what_is_used_later),
        cmocka_unit_test(test_empty_and_scalar_tensors),
        cmocka_unit_test(test_integer_division_never_traps),
        cmocka_unit_test(test_shifts_beyond_the_width_give_zero),
        cmocka_unit_test(test_pow_takes_mixed_types),
        cmocka_unit_test(test_cast_keeps_what_both_types_hold),
        cmocka_unit_test(test_cast_of_what_does_not_fit),
        cmocka_unit_test(test_cast_to_and_from_strings),
        cmocka_unit_test(test_reductions_match_double_precision),
        cmocka_unit_test(test_reductions_do_not_depend_on_the_batch),
        cmocka_unit_test(test_reductions_of_nothing_and_of_no_axes),
        cmocka_unit_test(test_reductions_of_integers_bool_and_nan),
        cmocka_unit_test(test_softmax_along_every_axis),
        cmocka_unit_test(test_softmax_of_short_rows),
        cmocka_unit_test(test_argmax_of_every_length),
        cmocka_unit_test(test_topk_orders_ties_and_nan),
        cmocka_unit_test(test_topk_matches_a_sort),
        cmocka_unit_test(test_unique_keeps_first_appearance),
        cmocka_unit_test(test_argmax_of_ties_nan_and_nothing),
        cmocka_unit_test(test_quantize_rounds_to_even_and_saturates),
        cmocka_unit_test(test_dequantize_by_axis_and_by_block),
        cmocka_unit_test(test_integer_conv_matches_its_definition),
        cmocka_unit_test(test_integer_products_are_exact),
        cmocka_unit_test(test_einsum_as_product_matches_the_plain_loop),
        cmocka_unit_test(test_activations_on_edge_values),
        cmocka_unit_test(test_half_types_compute_in_f32),
        cmocka_unit_test(test_half_conversions_of_every_value),
        cmocka_unit_test(test_short_rows_are_rows),
        cmocka_unit_test(test_seeded_random_numbers_are_those_of_the_reference),
        cmocka_unit_test(test_losses_refuse_labels_out_of_range),
        cmocka_unit_test(test_contrib_matmul_in_both_orders),
        cmocka_unit_test(test_contrib_activations),
        cmocka_unit_test(test_threads_do_not_change_a_bit),
        cmocka_unit_test(test_types_that_an_operator_does_not_take),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
