/* The heap of deadlines, against a plain array. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include "worker/daemon/timers.h"

#define N 500

static struct w_timer timers[N];
static uint64_t last_ms;
static size_t n_fired;

static void fire(struct w_timer *t) {
    assert_true(t->at_ms >= last_ms);
    last_ms = t->at_ms;
    n_fired++;
}

static uint32_t seed = 7;

static uint32_t next_random(void) {
    seed = seed * 1664525u + 1013904223u;
    return seed >> 8;
}

static void test_timers_fire_in_order_whatever_is_moved_and_cleared(void **state) {
    struct w_timers ts = {0};
    size_t n_set = 0;
    (void)state;
    for (int i = 0; i < N; i++) {
        timers[i] = (struct w_timer){.fire = fire};
        assert_true(w_timer_set(&ts, &timers[i], next_random() % 1000));
    }
    for (int i = 0; i < N; i += 3) assert_true(w_timer_set(&ts, &timers[i], next_random() % 1000));
    for (int i = 0; i < N; i += 5) w_timer_clear(&ts, &timers[i]);
    uint64_t least = UINT64_MAX;
    for (int i = 0; i < N; i++) {
        n_set += timers[i].slot != 0;
        if (timers[i].slot && timers[i].at_ms < least) least = timers[i].at_ms;
    }
    assert_int_equal(w_timers_next(&ts), least);
    last_ms = 0, n_fired = 0;
    size_t due = 0;
    for (int i = 0; i < N; i++) due += timers[i].slot && timers[i].at_ms <= 400;
    assert_int_equal(w_timers_run(&ts, 400, 10), 10); /* bounded */
    assert_int_equal(w_timers_run(&ts, 400, SIZE_MAX), due - 10);
    assert_true(w_timers_next(&ts) > 400);
    w_timers_run(&ts, 1000, SIZE_MAX);
    assert_int_equal(n_fired, n_set);
    assert_int_equal(w_timers_next(&ts), UINT64_MAX);
    w_timers_finish(&ts);
}

static void again(struct w_timer *t);
static struct w_timers again_ts;

static void again(struct w_timer *t) {
    n_fired++;
    w_timer_set(&again_ts, t, t->at_ms + 10);
}

static void test_a_timer_may_set_itself_while_it_fires(void **state) {
    struct w_timer t = {.fire = again};
    (void)state;
    n_fired = 0;
    w_timer_set(&again_ts, &t, 5);
    assert_int_equal(w_timers_run(&again_ts, 5, 100), 1);
    assert_int_equal(w_timers_next(&again_ts), 15);
    w_timer_clear(&again_ts, &t);
    w_timer_clear(&again_ts, &t);
    assert_int_equal(w_timers_run(&again_ts, 100, 100), 0);
    w_timers_finish(&again_ts);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_timers_fire_in_order_whatever_is_moved_and_cleared),
        cmocka_unit_test(test_a_timer_may_set_itself_while_it_fires),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
