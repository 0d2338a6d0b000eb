/* The batcher: who waits with whom, who is taken, in which order. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "worker/daemon/batcher.h"

static struct w_batch_limits the_limits;

static struct w_batch_limits limits(void *user, const struct w_item *head) {
    (void)user;
    return head->key ? the_limits : (struct w_batch_limits){.n_max = 1, .bytes_max = SIZE_MAX};
}

static int model_a, model_b;
static struct w_item items[32];
static struct w_item *out[32];

static void add(struct w_batcher *b, int i, const void *key, size_t bytes, uint64_t since_ms) {
    items[i] = (struct w_item){.key = key, .bytes = bytes, .since_ms = since_ms};
    assert_true(w_batcher_add(b, &items[i]));
}

static size_t take(struct w_batcher *b, uint64_t now_ms, size_t n_free, uint64_t *next_ms) {
    return w_batcher_take(b, now_ms, n_free, limits, NULL, out, 32, next_ms);
}

static void test_a_free_lane_takes_all_that_wait_for_one_model(void **state) {
    struct w_batcher b = {0};
    uint64_t next;
    (void)state;
    the_limits = (struct w_batch_limits){.n_max = 8, .bytes_max = 1000};
    add(&b, 0, &model_a, 1, 10);
    add(&b, 1, &model_b, 1, 11);
    add(&b, 2, &model_a, 1, 12);
    assert_int_equal(take(&b, 20, 1, &next), 2);
    assert_ptr_equal(out[0], &items[0]);
    assert_ptr_equal(out[1], &items[2]);
    assert_int_equal(take(&b, 20, 1, &next), 1);
    assert_ptr_equal(out[0], &items[1]);
    assert_int_equal(take(&b, 20, 1, &next), 0);
    assert_int_equal(next, UINT64_MAX);
    w_batcher_finish(&b);
}

static void test_limits_on_items_and_bytes_hold(void **state) {
    struct w_batcher b = {0};
    uint64_t next;
    (void)state;
    the_limits = (struct w_batch_limits){.n_max = 3, .bytes_max = 100};
    for (int i = 0; i < 4; i++) add(&b, i, &model_a, 10, 0);
    assert_int_equal(take(&b, 0, 1, &next), 3);
    assert_int_equal(take(&b, 0, 1, &next), 1);
    for (int i = 0; i < 3; i++) add(&b, i, &model_a, 40, 0);
    assert_int_equal(take(&b, 0, 1, &next), 2);
    assert_int_equal(take(&b, 0, 1, &next), 1);
    add(&b, 0, &model_a, 5000, 0); /* one always goes */
    add(&b, 1, &model_a, 1, 0);
    assert_int_equal(take(&b, 0, 1, &next), 1);
    assert_int_equal(take(&b, 0, 1, &next), 1);
    w_batcher_finish(&b);
}

static void test_free_lanes_share_what_waits(void **state) {
    struct w_batcher b = {0};
    uint64_t next;
    (void)state;
    the_limits = (struct w_batch_limits){.n_max = 32, .bytes_max = 1000};
    for (int i = 0; i < 5; i++) add(&b, i, &model_a, 1, 0);
    assert_int_equal(take(&b, 0, 2, &next), 3);
    assert_int_equal(take(&b, 0, 1, &next), 2);
    w_batcher_finish(&b);
}

static void test_the_longest_waiting_group_goes_first(void **state) {
    struct w_batcher b = {0};
    uint64_t next;
    (void)state;
    the_limits = (struct w_batch_limits){.n_max = 1, .bytes_max = 1000};
    add(&b, 0, &model_a, 1, 5);
    add(&b, 1, &model_a, 1, 9);
    add(&b, 2, &model_b, 1, 7);
    assert_int_equal(take(&b, 9, 1, &next), 1);
    assert_ptr_equal(out[0], &items[0]);
    assert_int_equal(take(&b, 9, 1, &next), 1); /* model_a's next came after model_b's first */
    assert_ptr_equal(out[0], &items[2]);
    assert_int_equal(take(&b, 9, 1, &next), 1);
    w_batcher_finish(&b);
}

static void test_a_delay_waits_for_a_fuller_batch(void **state) {
    struct w_batcher b = {0};
    uint64_t next;
    (void)state;
    the_limits = (struct w_batch_limits){.n_max = 2, .bytes_max = 1000, .delay_ms = 50};
    add(&b, 0, &model_a, 1, 100);
    assert_int_equal(take(&b, 100, 1, &next), 0);
    assert_int_equal(next, 150);
    add(&b, 1, &model_b, 1, 120);
    assert_int_equal(take(&b, 149, 1, &next), 0);
    assert_int_equal(next, 150);
    assert_int_equal(take(&b, 150, 1, &next), 1); /* the time is over */
    assert_ptr_equal(out[0], &items[0]);
    add(&b, 0, &model_b, 1, 151);
    assert_int_equal(take(&b, 151, 1, &next), 2); /* full: at once */
    w_batcher_finish(&b);
}

static void test_items_without_a_key_go_one_by_one(void **state) {
    struct w_batcher b = {0};
    uint64_t next;
    (void)state;
    add(&b, 0, NULL, 1, 0);
    add(&b, 1, NULL, 1, 0);
    assert_int_equal(take(&b, 0, 1, &next), 1);
    assert_int_equal(take(&b, 0, 1, &next), 1);
    w_batcher_finish(&b);
}

static void test_suspects_wait_apart_and_are_never_taken_with_others(void **state) {
    struct w_batcher b = {0};
    uint64_t next;
    (void)state;
    the_limits = (struct w_batch_limits){.n_max = 8, .bytes_max = 1000};
    add(&b, 0, &model_a, 1, 0);
    items[1] = (struct w_item){.key = &model_a, .bytes = 1, .alone = true};
    assert_true(w_batcher_add(&b, &items[1]));
    assert_int_equal(b.n, 2);
    assert_ptr_equal(w_batcher_alone(&b), &items[1]);
    assert_int_equal(take(&b, 0, 1, &next), 1);
    assert_ptr_equal(out[0], &items[0]);
    assert_int_equal(take(&b, 0, 1, &next), 0);
    w_batcher_remove(&b, &items[1]);
    assert_null(w_batcher_alone(&b));
    w_batcher_remove(&b, &items[1]); /* not waiting: nothing happens */
    w_batcher_finish(&b);
}

static void test_removing_from_the_middle_keeps_order_and_sums(void **state) {
    struct w_batcher b = {0};
    uint64_t next;
    (void)state;
    the_limits = (struct w_batch_limits){.n_max = 8, .bytes_max = 25};
    for (int i = 0; i < 4; i++) add(&b, i, &model_a, 10, (uint64_t)i);
    w_batcher_remove(&b, &items[1]);
    w_batcher_remove(&b, &items[0]);
    assert_int_equal(b.n, 2);
    assert_int_equal(take(&b, 9, 1, &next), 2);
    assert_ptr_equal(out[0], &items[2]);
    assert_ptr_equal(out[1], &items[3]);
    w_batcher_finish(&b);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_free_lane_takes_all_that_wait_for_one_model),
        cmocka_unit_test(test_limits_on_items_and_bytes_hold),
        cmocka_unit_test(test_free_lanes_share_what_waits),
        cmocka_unit_test(test_the_longest_waiting_group_goes_first),
        cmocka_unit_test(test_a_delay_waits_for_a_fuller_batch),
        cmocka_unit_test(test_items_without_a_key_go_one_by_one),
        cmocka_unit_test(test_suspects_wait_apart_and_are_never_taken_with_others),
        cmocka_unit_test(test_removing_from_the_middle_keeps_order_and_sums),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
