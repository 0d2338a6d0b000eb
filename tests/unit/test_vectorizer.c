/* Text to numbers: what a token is, how a vocabulary is made, and that it survives its file. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "worker/pipeline/vectorizer.h"

static struct w_vectorizer *made(enum w_split split, enum w_standardize standard, int64_t max,
                                 const char *const *rows) {
    struct w_error err;
    struct w_vectorizer *v = w_vectorizer_create(split, standard, &err);
    assert_non_null(v);
    for (; *rows; rows++) assert_true(w_vectorizer_count(v, *rows, strlen(*rows), &err));
    assert_true(w_vectorizer_adapt(v, max, &err));
    return v;
}

/* The numbers of a text, as a text. */
static const char *numbers(const struct w_vectorizer *v, const char *text) {
    static char line[200];
    int64_t n[20];
    size_t at = 0;
    int64_t k = w_vectorizer_encode(v, text, strlen(text), n, 20);
    line[0] = 0;
    for (int64_t i = 0; i < k; i++)
        at += (size_t)snprintf(line + at, sizeof line - at, "%s%d", i ? " " : "", (int)n[i]);
    return line;
}

static const char *const rows[] = {"The cat, the DOG.", "A cat!  The\tend", "", NULL};

static void test_words_are_numbered_by_how_often_they_come(void **state) {
    (void)state;
    struct w_vectorizer *v = made(W_SPLIT_WHITESPACE, W_STANDARD_LOWER_STRIP, 0, rows);
    assert_int_equal(w_vectorizer_size(v), 7); /* the cat a dog end */
    assert_string_equal(numbers(v, "THE cat, a dog; end!"), "2 3 4 5 6");
    assert_string_equal(numbers(v, " the -- bird\n"), "2 1");
    assert_string_equal(numbers(v, ""), "");
    w_vectorizer_destroy(v);
    v = made(W_SPLIT_WHITESPACE, W_STANDARD_LOWER_STRIP, 4, rows);
    assert_int_equal(w_vectorizer_size(v), 4);
    assert_string_equal(numbers(v, "the cat a"), "2 3 1");
    w_vectorizer_destroy(v);
    v = made(W_SPLIT_WHITESPACE, W_STANDARD_NONE, 0, rows);
    assert_string_equal(numbers(v, "The the cat"), "2 8 1"); /* "The" comes twice; "cat," is a word, "cat" is none */
    w_vectorizer_destroy(v);
}

static void test_characters_are_those_of_utf8_or_latin1(void **state) {
    static const char *const words[] = {"\xc3\x84\xc3\xa4", "\xd0\x96\xd0\xb6", NULL}; /* Ää Жж */
    (void)state;
    struct w_vectorizer *v = made(W_SPLIT_CHARACTER, W_STANDARD_LOWER, 0, words);
    assert_int_equal(w_vectorizer_size(v), 4);
    assert_string_equal(numbers(v, "\xc3\x84\xd0\xb6"), "2 3");
    assert_string_equal(numbers(v, "\xc4\xe4"), "2 2"); /* the same letters in Latin-1 */
    assert_string_equal(numbers(v, "\xff\xfe\x80"), "1 1 1");
    w_vectorizer_destroy(v);
}

static void test_bytes_are_their_values(void **state) {
    struct w_error err;
    (void)state;
    struct w_vectorizer *v = w_vectorizer_create(W_SPLIT_BYTE, W_STANDARD_NONE, &err);
    assert_true(w_vectorizer_adapted(v));
    assert_int_equal(w_vectorizer_size(v), 256);
    assert_string_equal(numbers(v, "a\xff"), "97 255");
    w_vectorizer_destroy(v);
}

static void test_a_vocabulary_comes_back_from_its_file(void **state) {
    char path[] = "/tmp/quern-vocabulary-XXXXXX";
    struct w_error err;
    (void)state;
    struct w_vectorizer *v = made(W_SPLIT_WHITESPACE, W_STANDARD_LOWER, 0, rows),
                        *again = w_vectorizer_create(W_SPLIT_WHITESPACE, W_STANDARD_LOWER, &err);
    char *text = w_vectorizer_write(v, &err);
    assert_non_null(text);
    int fd = mkstemp(path);
    assert_true(write(fd, text, strlen(text)) == (ssize_t)strlen(text));
    assert_true(w_vectorizer_read(again, path, &err));
    assert_int_equal(w_vectorizer_size(again), w_vectorizer_size(v));
    char *wanted = strdup(numbers(v, rows[0]));
    assert_string_equal(numbers(again, rows[0]), wanted);
    free(wanted);
    w_vectorizer_destroy(again);
    static const char *const bad[] = {"{}", "[]", "[\"\",\"[UNK]\",7]", "[\"\",\"[UNK]\",\"a\",\"a\"]",
                                      "[\"\",\"[UNK]\",\"\"]", "["};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        again = w_vectorizer_create(W_SPLIT_WHITESPACE, W_STANDARD_LOWER, &err);
        assert_true(ftruncate(fd, 0) == 0 && pwrite(fd, bad[i], strlen(bad[i]), 0) > 0);
        if (w_vectorizer_read(again, path, &err)) fail_msg("taken: %s", bad[i]);
        assert_string_equal(err.code, W_BAD_MODEL);
        w_vectorizer_destroy(again);
    }
    close(fd);
    unlink(path);
    free(text);
    w_vectorizer_destroy(v);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_words_are_numbered_by_how_often_they_come),
        cmocka_unit_test(test_characters_are_those_of_utf8_or_latin1),
        cmocka_unit_test(test_bytes_are_their_values),
        cmocka_unit_test(test_a_vocabulary_comes_back_from_its_file),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
