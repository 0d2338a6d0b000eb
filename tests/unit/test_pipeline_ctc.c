/* The scores of steps become text: repeats, blanks, separators, and what is refused. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "worker/pipeline/pipeline.h"

static const char *spelled(const char *ctc, const char *input) {
    static char text[500];
    char steps[400];
    struct w_error err;
    snprintf(steps, sizeof steps,
             "{\"quern\":1,\"pipeline\":[{\"tensor\":{\"dtype\":\"f32\",\"shape\":[-1,3]}},{\"ctc\":%s}]}", ctc);
    struct w_pipeline *p = w_pipeline_parse(steps, strlen(steps), NULL, NULL, &err);
    if (!p) return snprintf(text, sizeof text, "%s", err.text), text;
    struct w_row *row = w_row_create(1 << 20);
    struct w_input in = {.kind = W_INPUT_JSON, .json = {input, strlen(input)}};
    if (w_pipeline_before(p, row, &in, &err) != W_NEXT_DONE) fail_msg("%s", err.text);
    assert_int_equal(row->value.type, W_TEXT);
    snprintf(text, sizeof text, "%.*s", (int)row->value.span.len, row->value.span.ptr);
    w_row_destroy(row);
    w_pipeline_destroy(p);
    return text;
}

static void test_repeats_and_blanks_are_left_out(void **state) {
    static const char path[] = "[[0,1,0],[0,1,0],[1,0,0],[0,1,0],[0,0,1],[0,0,1],[1,0,0]]"; /* a a _ a b b _ */
    (void)state;
    assert_string_equal(spelled("{\"labels\":[\"\",\"a\",\"b\"]}", path), "aab");
    assert_string_equal(spelled("{\"labels\":[\"\",\"a\",\"b\"],\"separator\":\" \"}", path), "a a b");
    assert_string_equal(spelled("{\"labels\":[\"x\",\"a\",\"\"],\"blank\":2}", path), "axax");
    assert_string_equal(spelled("{\"labels\":[\"\",\"a\",\"b\"]}", "[[9,0,0],[1,0,0]]"), "");
    assert_string_equal(spelled("{\"labels\":[\"\",\"a\",\"b\"]}", "[[5,5,5]]"), ""); /* equal: the first */
}

static void test_labels_that_do_not_fit_are_told_at_load(void **state) {
    (void)state;
    assert_non_null(strstr(spelled("{\"labels\":[\"\",\"a\"]}", ""), "2 labels, the tensor ends in 3"));
    assert_non_null(strstr(spelled("{\"labels\":[\"\",\"a\",7]}", ""), "\"labels\"[2] is no string"));
    assert_non_null(strstr(spelled("{\"labels\":[\"\",\"a\",\"b\"],\"blank\":3}", ""), "more than \"blank\" (3)"));
    assert_non_null(strstr(spelled("{\"blank\":0}", ""), "labels"));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_repeats_and_blanks_are_left_out),
        cmocka_unit_test(test_labels_that_do_not_fit_are_told_at_load),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
