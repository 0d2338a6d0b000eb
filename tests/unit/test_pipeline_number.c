/* Numbers in and out of JSON: reading against strtod, writing against reading back. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "worker/pipeline/scan.h"

static uint64_t state = 88172645463325252ull;

static uint64_t next_random(void) {
    state ^= state << 13;
    state ^= state >> 7;
    return state ^= state << 17;
}

static void same_as_strtod(const char *text) {
    struct w_number n;
    const char *end = w__number_read(text, text + strlen(text), &n);
    if (end != text + strlen(text)) fail_msg("%s was not read to its end", text);
    double want = strtod(text, NULL);
    if (memcmp(&n.value, &want, sizeof want))
        fail_msg("%s was read as %.17g, strtod gives %.17g", text, n.value, want);
}

static void test_numbers_equal_strtod(void **unused) {
    static const char *const hard[] = {"0",
                                       "-0",
                                       "0.0",
                                       "-0.0",
                                       "1",
                                       "0.1",
                                       "1e22",
                                       "1e23",
                                       "8.5e22",
                                       "9007199254740993",
                                       "9007199254740992.5",
                                       "1e-27",
                                       "1e27",
                                       "1e28",
                                       "18446744073709551615",
                                       "18446744073709551616",
                                       "18446744073709551617",
                                       "99999999999999999999",
                                       "0.10000000149011612",
                                       "1.7976931348623157e308",
                                       "4.9e-324",
                                       "2.2250738585072014e-308",
                                       "1e400",
                                       "-1e400",
                                       "1e-400",
                                       "0.000000000000000000000000000000000000001",
                                       "123456789012345678901234567890",
                                       "0.30000000000000004",
                                       "5e-324",
                                       "1E5",
                                       "1e+5",
                                       "1.0E-5",
                                       "7.2057594037927933e16",
                                       "0e999999999999",
                                       "1e-99999999999"};
    char text[64];
    (void)unused;
    for (size_t i = 0; i < sizeof hard / sizeof *hard; i++) same_as_strtod(hard[i]);
    for (int i = 0; i < 60000; i++) {
        union {
            uint64_t u;
            double d;
        } bits = {next_random()};
        if (!isfinite(bits.d)) continue;
        snprintf(text, sizeof text, "%.*g", 1 + (int)(next_random() % 19), bits.d);
        same_as_strtod(text);
        /* Around the sizes of real data, with the 17 digits that a float32 printed as a double has.
         */
        double near = (double)(float)((double)(int64_t)next_random() / 9.3e18 *
                                      pow(10, (int)(next_random() % 9) - 4));
        snprintf(text, sizeof text, "%.*g", 15 + (int)(next_random() % 5), near);
        same_as_strtod(text);
        /* Just beside the middle between two doubles. */
        snprintf(text, sizeof text, "%llu.5", (unsigned long long)(next_random() >> 11));
        same_as_strtod(text);
    }
}

static void test_what_is_no_number_is_refused(void **unused) {
    static const char *const bad[] = {"",     "-",  "+1",  ".5",  "1.",       "01",
                                      "-01",  "1e", "1e+", "NaN", "Infinity", "-Infinity",
                                      "0x10", "e5", "--1", "1.e5"};
    struct w_number n;
    (void)unused;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        const char *end = w__number_read(bad[i], bad[i] + strlen(bad[i]), &n);
        if (end == bad[i] + strlen(bad[i])) fail_msg("\"%s\" was taken for a number", bad[i]);
    }
}

static void test_whole_numbers_keep_64_bits(void **unused) {
    struct w_number n;
    (void)unused;
    static const char most[] = "18446744073709551615", over[] = "18446744073709551616",
                      wraps[] = "28446744073709551616";
    w__number_read(most, most + 20, &n);
    assert_true(n.is_int);
    assert_int_equal(n.magnitude, UINT64_MAX);
    w__number_read(over, over + 20, &n);
    assert_false(n.is_int);
    w__number_read(wraps, wraps + 20, &n);
    assert_false(n.is_int);
    uint64_t stored;
    struct w_number least = {
        .value = -9223372036854775808.0, .magnitude = 1ull << 63, .negative = true, .is_int = true};
    assert_true(w__store(OP_I64, &stored, 0, &least));
    assert_true((int64_t)stored == INT64_MIN);
    assert_false(w__store(OP_U64, &stored, 0, &least));
    struct w_number thousand = {.value = 1e3};
    assert_true(w__store(OP_I32, &stored, 0, &thousand));
    struct w_number half = {.value = 0.5};
    assert_false(w__store(OP_I32, &stored, 0, &half));
}

static void round_trip(struct w_arena *a, float v) {
    struct w_text t = {.arena = a};
    w_text_float(&t, v);
    float back = strtof(t.ptr, NULL);
    if (memcmp(&back, &v, sizeof v)) fail_msg("%.9g was written as %s", (double)v, t.ptr);
    struct w_number n; /* what is written is JSON */
    assert_ptr_equal(w__number_read(t.ptr, t.ptr + t.len, &n), t.ptr + t.len);
    /* and no shorter precision of printf reads back too */
    int digits = 0;
    for (const char *p = t.ptr; *p && *p != 'e'; p++)
        digits += *p >= '0' && *p <= '9' && !(digits == 0 && *p == '0');
    char shorter[40];
    for (int precision = 1; precision < 9 && v != 0; precision++) {
        snprintf(shorter, sizeof shorter, "%.*g", precision, (double)v);
        if (strtof(shorter, NULL) != v) continue;
        /* exactly between two floats it reads back by the rule of ties only: that is not relied
         * upon */
        double d = strtod(shorter, NULL);
        if (d == ((double)v + (double)nextafterf(v, d > (double)v ? INFINITY : -INFINITY)) / 2)
            continue;
        int trailing = 0; /* zeros that only fill up to the point: 1200 */
        if (!strchr(t.ptr, '.'))
            for (const char *p = strchr(t.ptr, 'e') ? strchr(t.ptr, 'e') : t.ptr + t.len;
                 p[-1] == '0' && trailing < digits - 1; p--)
                trailing++;
        if (digits - trailing > precision) fail_msg("%s is longer than %s", t.ptr, shorter);
        break;
    }
    w_arena_reset(a);
}

static void test_floats_are_short_and_read_back(void **unused) {
    struct w_arena a;
    (void)unused;
    w_arena_init(&a, 1 << 20);
    static const float hard[] = {0.0f,         -0.0f,         1.0f,           0.1f,
                                 1e-45f,       3.4028235e38f, 1.1754944e-38f, 16777216.0f,
                                 9.9999998e8f, 999999999.0f,  1e21f,          1e-12f,
                                 123456.0f,    0.3f,          1.0f / 3,       8.5899346e9f};
    for (size_t i = 0; i < sizeof hard / sizeof *hard; i++)
        round_trip(&a, hard[i]), round_trip(&a, -hard[i]);
    for (int i = 0; i < 60000; i++) {
        union {
            uint32_t u;
            float f;
        } bits = {(uint32_t)next_random()};
        if (isfinite(bits.f)) round_trip(&a, bits.f);
        round_trip(&a, (float)((double)(int64_t)next_random() / 9.3e18));
    }
    struct w_text t = {.arena = &a};
    w_text_float(&t, NAN);
    w_text_float(&t, -INFINITY);
    w_text_double(&t, INFINITY);
    assert_string_equal(t.ptr, "nullnullnull");
    w_arena_finish(&a);
}

static void test_doubles_read_back(void **unused) {
    struct w_arena a;
    (void)unused;
    w_arena_init(&a, 1 << 20);
    for (int i = 0; i < 20000; i++) {
        union {
            uint64_t u;
            double d;
        } bits = {next_random()};
        struct w_text t = {.arena = &a};
        if (!isfinite(bits.d)) continue;
        w_text_double(&t, bits.d);
        assert_true(strtod(t.ptr, NULL) == bits.d);
        w_arena_reset(&a);
    }
    w_arena_finish(&a);
}

static float f16_of(uint16_t h) {
    return (float)w__element(&(struct op_tensor){.dtype = OP_F16, .data = &h}, 0);
}

static void test_halves_equal_the_definition(void **unused) {
    (void)unused;
    for (uint32_t h = 0; h < 65536; h++) {
        float f = f16_of((uint16_t)h);
        if (f != f) continue;
        assert_int_equal(w__f16(f), h);
        /* between neighbours the nearer one, at the middle the even one */
        if ((h & 0x7fff) >= 0x7bff) continue;
        float next = f16_of((uint16_t)(h + 1)), middle = f + (next - f) / 2;
        assert_int_equal(w__f16(middle), h & 1 ? h + 1 : h);
        assert_int_equal(w__f16(nextafterf(middle, next)), h + 1);
        assert_int_equal(w__f16(nextafterf(middle, f)), h);
    }
    assert_int_equal(w__f16(65520.0f), 0x7c00);
    assert_int_equal(w__f16(65519.99f), 0x7bff);
    assert_int_equal(w__f16(-INFINITY), 0xfc00);
}

static void test_narrow_types_print_their_values(void **unused) {
    static uint8_t e4m3[] = {0x30, 0xb8, 0x7f}, e2m1[] = {1, 15, 0}, u4[] = {0, 9, 15};
    static int8_t i4[] = {-8, 0, 7};
    const struct {
        struct op_tensor t;
        const char *text;
    } cases[] = {{{.dtype = OP_F8E4M3FN, .data = e4m3}, "[0.5,-1,null]"},
                 {{.dtype = OP_F4E2M1, .data = e2m1}, "[0.5,-6,0]"},
                 {{.dtype = OP_U4, .data = u4}, "[0,9,15]"},
                 {{.dtype = OP_I4, .data = i4}, "[-8,0,7]"}};
    (void)unused;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct w_arena a;
        struct w_error err;
        struct op_tensor t = cases[i].t;
        w_arena_init(&a, 1 << 20);
        struct w_text text = {.arena = &a};
        t.rank = 1;
        t.dims[0] = 3;
        assert_true(w_text_tensor(&text, &t, false, &err));
        if (!strstr(text.ptr, cases[i].text)) fail_msg("%s: %s", text.ptr, cases[i].text);
        w_arena_finish(&a);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_numbers_equal_strtod),
                                       cmocka_unit_test(test_what_is_no_number_is_refused),
                                       cmocka_unit_test(test_whole_numbers_keep_64_bits),
                                       cmocka_unit_test(test_floats_are_short_and_read_back),
                                       cmocka_unit_test(test_doubles_read_back),
                                       cmocka_unit_test(test_halves_equal_the_definition),
                                       cmocka_unit_test(test_narrow_types_print_their_values)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
