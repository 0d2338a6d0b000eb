/* Values of losses against their definitions: CTC against the sum over every path, triplets and pairs by hand; and what they refuse. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "tests/unit/op_testing.h"

static uint64_t seed = 1;
static float uniform(void) { /* [-2, 2) */
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return (float)(seed >> 40) / (float)(1 << 22) - 2;
}

/* Runs one operator of "quern" on z and t (NULL: none); e, or NULL with err. */
static const float *losses(struct ot *m, const char *op, struct op_tensor z, const struct op_tensor *t, int64_t blank, float margin, struct op_error *err) {
    struct op_tensor in[2] = {z};
    ot_begin(m, 17);
    ot_input(m, "z", OP_F32, z.rank, z.dims);
    if (t) ot_input(m, "t", OP_I64, t->rank, t->dims), in[1] = *t;
    ot_node_of(m, "quern", op, t ? "z t" : "z", "e");
    if (blank >= 0) ot_int(m, "blank", blank);
    if (margin > 0) ot_float(m, "margin", margin);
    ot_output(m, "e", OP_F32, -1, NULL);
    const struct op_tensor *out = ot_run(m, NULL, in, t ? 2 : 1, err);
    return out ? out[0].data : NULL;
}

/* The sum over all paths of `steps` classes that collapse to the labels. */
static double by_paths(const float *z, int steps, int classes, int blank, const int64_t *labels, int n) {
    double total = 0;
    long n_paths = 1;
    for (int t = 0; t < steps; t++) n_paths *= classes;
    for (long path = 0; path < n_paths; path++) {
        int last = blank, found = 0;
        double p = 1;
        long rest = path;
        bool same = true;
        for (int t = 0; t < steps; t++, rest /= classes) {
            int k = (int)(rest % classes);
            double sum = 0;
            for (int c = 0; c < classes; c++) sum += exp((double)z[t * classes + c]);
            p *= exp((double)z[t * classes + k]) / sum;
            if (k != blank && k != last) {
                same &= found < n && labels[found < n ? found : 0] == k;
                found++;
            }
            last = k;
        }
        if (same && found == n) total += p;
    }
    return -log(total);
}

static void test_ctc_is_the_sum_over_all_paths(void **state) {
    static const struct {
        int steps, classes, blank, n;
        int64_t labels[4];
    } cases[] = {{5, 3, 0, 2, {1, 2, -1, -1}}, {5, 3, 0, 2, {1, 1, 0, 0}}, {6, 4, 3, 3, {0, 2, 2, 3}}, {4, 3, 1, 0, {-1, -1, -1, -1}}, {4, 2, 0, 2, {1, 1, -5, -1}}, {1, 5, 0, 1, {4, 0, 0, 0}}};
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct ot m;
        struct op_error err;
        float z[32];
        for (int k = 0; k < cases[i].steps * cases[i].classes; k++) z[k] = uniform();
        struct op_tensor t = {.dtype = OP_I64, .rank = 2, .dims = {1, 4}, .data = (void *)(uintptr_t)cases[i].labels};
        const float *e = losses(&m, "CTC", (struct op_tensor){.dtype = OP_F32, .rank = 3, .dims = {1, cases[i].steps, cases[i].classes}, .data = z}, &t, cases[i].blank, 0, &err);
        if (!e) fail_msg("case %zu: %s", i, err.text);
        assert_float_equal(e[0], (float)by_paths(z, cases[i].steps, cases[i].classes, cases[i].blank, cases[i].labels, cases[i].n), 1e-5);
        ot_end(&m);
    }
}

static void test_ctc_of_many_steps_stays_finite(void **state) {
    enum { T = 2000 };
    struct ot m;
    struct op_error err;
    float *z = calloc(T * 30, sizeof *z);
    int64_t labels[40];
    (void)state;
    for (int i = 0; i < 40; i++) labels[i] = 1 + i % 29;
    struct op_tensor t = {.dtype = OP_I64, .rank = 2, .dims = {1, 40}, .data = labels};
    const float *e = losses(&m, "CTC", (struct op_tensor){.dtype = OP_F32, .rank = 3, .dims = {1, T, 30}, .data = z}, &t, 0, 0, &err);
    assert_non_null(e);
    assert_true(isfinite(e[0]) && e[0] > 5000 && e[0] < 7000); /* 2000·log 30, less the number of alignments */
    ot_end(&m);
    free(z);
}

static void test_ctc_refuses_what_cannot_be(void **state) {
    static const struct {
        int64_t labels[3];
        const char *says;
    } cases[] = {{{1, 1, -1}, "need 3 steps"}, {{1, 9, -1}, "label 1 is 9"}, {{-1, 1, -1}, "padding"}};
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct ot m;
        struct op_error err = {0};
        float z[8] = {0};
        struct op_tensor t = {.dtype = OP_I64, .rank = 2, .dims = {1, 3}, .data = (void *)(uintptr_t)cases[i].labels};
        assert_null(losses(&m, "CTC", (struct op_tensor){.dtype = OP_F32, .rank = 3, .dims = {1, 2, 4}, .data = z}, &t, 0, 0, &err));
        if (!strstr(err.text, cases[i].says)) fail_msg("\"%s\" does not say \"%s\"", err.text, cases[i].says);
        ot_end(&m);
    }
}

static void test_triplets_by_hand(void **state) {
    struct ot m;
    struct op_error err;
    (void)state;
    /* On a line: class 0 at 0 and 2; class 1 at 3 and 10. */
    float z[] = {0, 2, 3, 10};
    int64_t classes[] = {0, 0, 1, 1};
    struct op_tensor t = {.dtype = OP_I64, .rank = 1, .dims = {4}, .data = classes};
    const float *e = losses(&m, "Triplet", (struct op_tensor){.dtype = OP_F32, .rank = 2, .dims = {4, 1}, .data = z}, &t, -1, 1, &err);
    assert_non_null(e);
    /* (0→2): 4, nearest farther is 3 at 9: 0. (2→0): 4, nearest farther is 10 at 64 (3 is at 1): 0. (3→10): 49, none is farther, the farthest
     * is 0 at 9: 41. (10→3): 49, nearest farther is 2 at 64: 0. Four pairs, four rows. */
    assert_float_equal(e[0], 0, 0);
    assert_float_equal(e[1], 0, 0);
    assert_float_equal(e[2], 41, 1e-4);
    assert_float_equal(e[3], 0, 0);
    ot_end(&m);
    float three[] = {0, 0, 1, 0, 0, 1.5f};
    struct op_tensor none = {.dtype = OP_I64, .rank = 1, .dims = {1}, .data = classes};
    e = losses(&m, "Triplet", (struct op_tensor){.dtype = OP_F32, .rank = 3, .dims = {1, 3, 2}, .data = three}, &none, -1, 2, &err);
    assert_non_null(e);
    assert_float_equal(e[0], 1 - 2.25f + 2, 1e-6);
    ot_end(&m);
}

static void test_a_pair_in_order_costs_less_than_one_that_is_not(void **state) {
    struct ot m;
    struct op_error err;
    float z[] = {2, 0, 1, 0, 2, 0};
    (void)state;
    const float *e = losses(&m, "PairwiseRank", (struct op_tensor){.dtype = OP_F32, .rank = 2, .dims = {2, 3}, .data = z}, NULL, -1, 0, &err);
    assert_non_null(e);
    assert_float_equal(e[0], (log1p(exp(-2)) + log1p(exp(-1))) / 2, 1e-6);
    assert_float_equal(e[1], (log1p(exp(2)) + log(2)) / 2, 1e-6);
    ot_end(&m);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ctc_is_the_sum_over_all_paths),
        cmocka_unit_test(test_ctc_of_many_steps_stays_finite),
        cmocka_unit_test(test_ctc_refuses_what_cannot_be),
        cmocka_unit_test(test_triplets_by_hand),
        cmocka_unit_test(test_a_pair_in_order_costs_less_than_one_that_is_not),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
