/* The part of cmocka that the engine's unit tests use, for the cross build: Debian has no static cmocka for another
 * architecture. A failed assertion says where and ends the program. Include after <setjmp.h>, as the real one. */
#ifndef CMOCKA_H
#define CMOCKA_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct CMUnitTest {
    const char *name;
    void (*run)(void **state);
};
#define cmocka_unit_test(f) {#f, f}
#define cmocka_run_group_tests(tests, setup, teardown) cmocka_run_group_tests_name(#tests, tests, setup, teardown)
#define cmocka_run_group_tests_name(group, tests, setup, teardown) arm_run(group, tests, sizeof tests / sizeof *tests)

static inline int arm_run(const char *group, const struct CMUnitTest *tests, size_t n) {
    void *state = NULL;
    for (size_t i = 0; i < n; i++) {
        fprintf(stderr, "%s\n", tests[i].name);
        tests[i].run(&state);
    }
    printf("%s: %zu passed\n", group, n);
    return 0;
}

static inline void arm_fail(const char *file, int line, const char *text) {
    printf("%s:%d: %s\n", file, line, text);
    exit(1);
}
#define ARM_CHECK(good, text) ((good) ? (void)0 : arm_fail(__FILE__, __LINE__, text))
#define fail_msg(...) (printf(__VA_ARGS__), arm_fail(__FILE__, __LINE__, ""))
#define assert_true(x) ARM_CHECK(x, #x)
#define assert_false(x) ARM_CHECK(!(x), "not " #x)
#define assert_null(x) ARM_CHECK(!(x), #x " is NULL")
#define assert_non_null(x) ARM_CHECK(x, #x " is not NULL")
#define assert_ptr_equal(a, b) ARM_CHECK((const void *)(a) == (const void *)(b), #a " == " #b)
#define assert_int_equal(a, b) ARM_CHECK((uintmax_t)(a) == (uintmax_t)(b), #a " == " #b)
#define assert_int_not_equal(a, b) ARM_CHECK((uintmax_t)(a) != (uintmax_t)(b), #a " != " #b)
#define assert_in_range(x, lo, hi) ARM_CHECK((uintmax_t)(x) >= (uintmax_t)(lo) && (uintmax_t)(x) <= (uintmax_t)(hi), #x " in range")
#define assert_float_equal(a, b, e) ARM_CHECK((a) - (b) <= (e) && (b) - (a) <= (e), #a " == " #b)
#define assert_string_equal(a, b) ARM_CHECK(!strcmp(a, b), #a " == " #b)
#define assert_memory_equal(a, b, n) ARM_CHECK(!memcmp(a, b, n), #a " == " #b)
#define assert_memory_not_equal(a, b, n) ARM_CHECK(memcmp(a, b, n), #a " != " #b)
#define print_error(...) fprintf(stderr, __VA_ARGS__)
#define print_message(...) printf(__VA_ARGS__)

#endif
