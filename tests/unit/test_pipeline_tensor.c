/* Tensors from a job's JSON: nested numbers, base64, what is refused and how it is told. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <jansson.h>

#include "worker/pipeline/pipeline.h"

static struct w_arena arena;

static int setup(void **unused) {
    (void)unused;
    w_arena_init(&arena, 64 << 20);
    return 0;
}

static int teardown(void **unused) {
    (void)unused;
    w_arena_finish(&arena);
    return 0;
}

static bool read(const char *json, enum op_type dtype, struct op_tensor *t, struct w_error *err) {
    char *exact = malloc(strlen(json) + 1); /* so that a sanitizer sees a read behind the end */
    size_t n = strlen(json);
    memcpy(exact, json, n);
    exact = realloc(exact, n ? n : 1);
    bool good = w_tensor_from_json(exact, n, "x", dtype, 1 << 20, &arena, t, err);
    free(exact);
    return good;
}

static void test_shape_comes_from_the_nesting(void **unused) {
    struct op_tensor t;
    struct w_error err;
    char text[64];
    static const struct {
        const char *json, *shape;
    } cases[] = {{"7", "f32[]"},
                 {"[]", "f32[0]"},
                 {"[1,2,3]", "f32[3]"},
                 {" [ [ 1 , 2 ] , [ 3 , 4 ] ] ", "f32[2,2]"},
                 {"[[],[]]", "f32[2,0]"},
                 {"[[[1]],[[2]]]", "f32[2,1,1]"},
                 {"[[[[[[[[1]]]]]]]]", "f32[1,1,1,1,1,1,1,1]"}};
    (void)unused;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        if (!read(cases[i].json, OP_F32, &t, &err)) fail_msg("%s: %s", cases[i].json, err.text);
        assert_string_equal(op_tensor_describe(&t, text, sizeof text), cases[i].shape);
    }
}

static void test_mistakes_are_told_with_their_place(void **unused) {
    struct op_tensor t;
    struct w_error err;
    static const struct {
        const char *json;
        enum op_type dtype;
        const char *code, *text;
    } cases[] = {
        {"[[1,2],[3]]", OP_F32, W_BAD_SHAPE, "x[1] has 1 elements, the arrays before it have 2"},
        {"[[1,2],[3,4,5]]", OP_F32, W_BAD_SHAPE, "x[1] has 3 elements"},
        {"[1,[2]]", OP_F32, W_BAD_SHAPE, "x[1]: is an array"},
        {"[[1],2]", OP_F32, W_BAD_SHAPE, "x[1]: is nested less or deeper"},
        {"[[[]],[1]]", OP_F32, W_BAD_SHAPE, "x[1][0]"},
        {"[[],[[]]]", OP_F32, W_BAD_SHAPE, "ragged"},
        {"[1,\"2\"]", OP_F32, W_BAD_DTYPE, "x[1]: is a string"},
        {"[1,null]", OP_F32, W_BAD_INPUT, "x[1]: is null"},
        {"[1,true]", OP_F32, W_BAD_DTYPE, "x[1]: is a truth value"},
        {"[NaN]", OP_F32, W_BAD_JSON, "x[0]: is no JSON number"},
        {"[1,]", OP_F32, W_BAD_JSON, "x[1]"},
        {"[1 2]", OP_F32, W_BAD_JSON, "comma"},
        {"[1", OP_F32, W_BAD_JSON, "x"},
        {"[1]]", OP_F32, W_BAD_JSON, "follows"},
        {"", OP_F32, W_BAD_JSON, "x"},
        {"[[[[[[[[[1]]]]]]]]]", OP_F32, W_BAD_SHAPE, "deeper than 8"},
        {"[1e39]", OP_F32, W_BAD_DTYPE, "f32 cannot hold"},
        {"[1e999]", OP_F64, W_BAD_DTYPE, "f64 cannot hold"},
        {"[300]", OP_U8, W_BAD_DTYPE, "300, which u8 cannot hold"},
        {"[-1]", OP_U32, W_BAD_DTYPE, "u32 cannot hold"},
        {"[1.5]", OP_I64, W_BAD_DTYPE, "i64 cannot hold"},
        {"[2]", OP_BOOL, W_BAD_DTYPE, "bool cannot hold"},
        {"[{\"a\":1}]", OP_F32, W_BAD_DTYPE, "object"},
        {"[1]", OP_STRING, W_BAD_DTYPE, "no string"}};
    (void)unused;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        if (read(cases[i].json, cases[i].dtype, &t, &err)) fail_msg("%s was taken", cases[i].json);
        if (strcmp(err.code, cases[i].code) || !strstr(err.text, cases[i].text))
            fail_msg("%s: %s: %s", cases[i].json, err.code, err.text);
    }
}

static void test_every_type(void **unused) {
    struct op_tensor t;
    struct w_error err;
    (void)unused;
    assert_true(read("[true,false,1,0]", OP_BOOL, &t, &err));
    assert_memory_equal(t.data, "\1\0\1\0", 4);
    assert_true(read("[9223372036854775807,-9223372036854775808]", OP_I64, &t, &err));
    assert_true(((int64_t *)t.data)[0] == INT64_MAX && ((int64_t *)t.data)[1] == INT64_MIN);
    assert_true(read("[-128,127,1e2]", OP_I8, &t, &err));
    assert_memory_equal(t.data, "\x80\x7f\x64", 3);
    assert_true(read("[1.5,-65504]", OP_F16, &t, &err));
    assert_int_equal(((uint16_t *)t.data)[0], 0x3e00);
    assert_int_equal(((uint16_t *)t.data)[1], 0xfbff);
    assert_true(read("[[\"a,b\",\"\\u00e9\\n\"]]", OP_STRING, &t, &err));
    assert_int_equal(((struct op_string *)t.data)[0].len, 3);
    assert_memory_equal(((struct op_string *)t.data)[1].data, "\xc3\xa9\n", 3);
}

static void test_equals_jansson(void **unused) {
    json_t *rows = json_array();
    struct op_tensor t;
    struct w_error err;
    (void)unused;
    srand(5);
    for (int i = 0; i < 50; i++) {
        json_t *row = json_array();
        for (int j = 0; j < 40; j++)
            json_array_append_new(row, rand() % 3
                                           ? json_real((rand() - 1e9) * pow(10, rand() % 30 - 20))
                                           : json_integer(rand() - (1 << 30)));
        json_array_append_new(rows, row);
    }
    char *text = json_dumps(rows, JSON_INDENT(2));
    assert_true(read(text, OP_F64, &t, &err));
    assert_int_equal(t.dims[0], 50);
    assert_int_equal(t.dims[1], 40);
    for (int i = 0; i < 50; i++)
        for (int j = 0; j < 40; j++)
            assert_true(
                ((double *)t.data)[i * 40 + j] ==
                json_number_value(json_array_get(json_array_get(rows, (size_t)i), (size_t)j)));
    free(text);
    json_decref(rows);
}

static void test_limits(void **unused) {
    struct op_tensor t;
    struct w_error err;
    struct w_arena small;
    (void)unused;
    assert_false(w_tensor_from_json("[1,2,3]", 7, "x", OP_F32, 2, &arena, &t, &err));
    assert_string_equal(err.code, W_TOO_LARGE);
    w_arena_init(&small, 128);
    assert_false(w_tensor_from_json("[1,2,3,4,5,6,7,8,9,0,1,2,3,4,5,6,7,8,9,0]", 41, "x", OP_F64,
                                    1000, &small, &t, &err));
    assert_string_equal(err.code, W_TOO_LARGE);
    w_arena_finish(&small);
}

static void test_base64_is_strict(void **unused) {
    static const struct {
        const char *text, *bytes;
        int64_t n;
    } cases[] = {{"", "", 0},
                 {"Zg==", "f", 1},
                 {"Zm8=", "fo", 2},
                 {"Zm9v", "foo", 3},
                 {"Zm9vYg==", "foob", 4},
                 {"Zm9vYmFy", "foobar", 6},
                 {"Zg", NULL, -1},
                 {"Zg=", NULL, -1},
                 {"Zm9v\n", NULL, -1},
                 {"Z===", NULL, -1},
                 {"====", NULL, -1},
                 {"Zh==", NULL, -1},
                 {"Zm9=", NULL, -1},
                 {"Zm 9", NULL, -1},
                 {"Zm9v====", NULL, -1},
                 {"Zg==Zg==", NULL, -1},
                 {"Zm-_", NULL, -1},
                 {"Zm\xc3\xa9", NULL, -1}};
    uint8_t dst[64];
    size_t at;
    (void)unused;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        int64_t n = w_base64_decode(cases[i].text, strlen(cases[i].text), dst, &at);
        if (n != cases[i].n) fail_msg("\"%s\" gave %lld bytes", cases[i].text, (long long)n);
        if (n > 0) assert_memory_equal(dst, cases[i].bytes, (size_t)n);
    }
    assert_int_equal(w_base64_decode("AAAAAAAAAAAAAAAAAAA*AAAA", 24, dst, &at), -1);
    assert_int_equal(at, 19);
}

static void test_base64_round_trip(void **unused) {
    (void)unused;
    srand(3);
    for (size_t n = 0; n < 300; n++) {
        uint8_t *bytes = malloc(n + 1);
        char *text = malloc((n + 2) / 3 * 4 + 1);
        for (size_t i = 0; i < n; i++) bytes[i] = (uint8_t)rand();
        size_t len = w_base64_encode(bytes, n, text);
        assert_int_equal(len, (n + 2) / 3 * 4);
        uint8_t *back =
            malloc(w_base64_decoded_max(len) + 1); /* no more than promised is written */
        back[w_base64_decoded_max(len)] = 0xa5;
        size_t at;
        assert_int_equal(w_base64_decode(text, len, back, &at), n);
        assert_memory_equal(back, bytes, n);
        assert_int_equal(back[w_base64_decoded_max(len)], 0xa5);
        free(bytes);
        free(text);
        free(back);
    }
}

static bool collect(void *user, const char *ref) {
    char *all = user;
    strcat(all, ref);
    strcat(all, " ");
    return true;
}

static int refs(const char *json, bool is_ref, char *all) {
    *all = 0;
    return w_input_refs(json, strlen(json), is_ref, collect, all);
}

static void test_references_are_found(void **unused) {
    char all[400];
    (void)unused;
    assert_int_equal(refs("[1,2,3]", false, all), 0);
    assert_int_equal(refs("{\"ref\":\"redis:a\"}", false, all), 1);
    assert_string_equal(all, "redis:a ");
    assert_int_equal(
        refs("{\"x\":{\"ref\":\"redis:a\"},\"y\":[[{\"dtype\":\"f32\",\"ref\":\"file:\\u0062\"}]]}",
             false, all),
        2);
    assert_string_equal(all, "redis:a file:b ");
    assert_int_equal(refs("\"redis:a\"", true, all), 1);
    assert_int_equal(refs("\"redis: a text\"", false, all), 0);
    assert_int_equal(refs("{\"x\":{\"ref\":\"redis:a\"}", false, all), -1);
    assert_int_equal(refs("{\"text\":\"\\\"ref\\\"\"}", false, all), 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_shape_comes_from_the_nesting),
                                       cmocka_unit_test(test_mistakes_are_told_with_their_place),
                                       cmocka_unit_test(test_every_type),
                                       cmocka_unit_test(test_equals_jansson),
                                       cmocka_unit_test(test_limits),
                                       cmocka_unit_test(test_base64_is_strict),
                                       cmocka_unit_test(test_base64_round_trip),
                                       cmocka_unit_test(test_references_are_found)};
    return cmocka_run_group_tests(tests, setup, teardown);
}
