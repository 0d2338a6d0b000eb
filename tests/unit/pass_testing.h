/* What the tests of passes share: a model run with its passes and as a reference (plain C, no passes), side by side. */
#ifndef QUERN_TESTS_PASS_TESTING_H
#define QUERN_TESTS_PASS_TESTING_H

#include "op_testing.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>

#include <cmocka.h>

static uint32_t seed = 4711;
static inline float *values(int64_t n, float lo, float hi) {
    float *x = malloc((size_t)n * sizeof *x);
    assert_non_null(x);
    for (int64_t i = 0; i < n; i++) {
        seed = seed * 1664525u + 1013904223u;
        x[i] = lo + (hi - lo) * (float)(seed >> 8) * 0x1p-24f;
    }
    return x;
}

static inline void constant(struct ot *m, const char *name, int rank, const int64_t *dims, float lo, float hi) {
    struct op_tensor t = {.dtype = OP_F32, .rank = rank};
    for (int i = 0; i < rank; i++) t.dims[i] = dims[i];
    float *x = values(op_tensor_count(&t), lo, hi);
    ot_constant(m, name, OP_F32, rank, dims, x);
    free(x);
}

static inline void scalar(struct ot *m, const char *name, float value) {
    ot_constant(m, name, OP_F32, 0, NULL, &value);
}

static char ran[512]; /* the operators of the last run, in order */
static inline void note(void *user, const char *op_type, const char *name, uint64_t ns, double flops, double bytes) {
    (void)user, (void)name, (void)ns, (void)flops, (void)bytes;
    snprintf(ran + strlen(ran), sizeof ran - strlen(ran), "%s%s", *ran ? " " : "", op_type);
}

/* Runs the finished model with and without passes on x (and r) and compares all outputs; `expected`: what is to run with passes. */
static inline void compare(struct ot *m, const struct op_tensor *in, int n_in, const char *expected) {
    const struct op_load_options plain = {.reference = true};
    const struct op_session_options watched = {.on_node = note};
    const struct op_tensor *want, *got;
    struct op_error err = {0};
    struct op_model *a = ot_load(m, &plain, &err), *b = ot_load(m, NULL, &err);
    if (!a || !b) fail_msg("load: %s", err.text);
    struct op_session *sa = op_session_create(a, NULL, &err), *sb = op_session_create(b, &watched, &err);
    assert_non_null(sa);
    assert_non_null(sb);
    *ran = 0;
    if (op_session_run(sa, in, n_in, &want, &err) != OP_OK || op_session_run(sb, in, n_in, &got, &err) != OP_OK) fail_msg("run: %s", err.text);
    assert_string_equal(ran, expected);
    for (int o = 0; o < op_model_n_outputs(a); o++) {
        assert_int_equal(want[o].rank, got[o].rank);
        assert_memory_equal(want[o].dims, got[o].dims, (size_t)want[o].rank * sizeof(int64_t));
        for (int64_t i = 0; i < op_tensor_count(&want[o]); i++) {
            const double x = want[o].dtype == OP_F64 ? ((double *)want[o].data)[i] : (double)((float *)want[o].data)[i];
            const double y = want[o].dtype == OP_F64 ? ((double *)got[o].data)[i] : (double)((float *)got[o].data)[i];
            if (!(fabs(x - y) <= 2e-5 * (1 + fabs(x)))) fail_msg("%s: output %d of rank %d, element %ld is %g, expected %g", expected, o, want[o].rank, (long)i, y, x);
        }
    }
    op_session_destroy(sa), op_session_destroy(sb);
    op_model_release(a), op_model_release(b);
    ot_end(m);
}

static inline struct op_tensor tensor(int rank, const int64_t *dims) {
    struct op_tensor t = {.dtype = OP_F32, .rank = rank};
    for (int i = 0; i < rank; i++) t.dims[i] = dims[i];
    t.data = values(op_tensor_count(&t), -2, 2);
    return t;
}

#define DIMS(...) ((const int64_t[]){__VA_ARGS__})

#endif
