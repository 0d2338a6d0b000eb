/* Patterns as a model may bring them (RegexFullMatch): the first line is the pattern, the rest the
 * text. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "ops/op/regex.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    const uint8_t *line = size ? memchr(data, '\n', size) : NULL;
    size_t n = line ? (size_t)(line - data) : size, rest = line ? size - n - 1 : 0, at;
    const char *why = NULL;
    char *pattern = malloc(n + 1),
         *text = malloc(rest + 1); /* of their exact sizes: a read beyond the end is seen */
    if (n) memcpy(pattern, data, n);
    if (rest) memcpy(text, line + 1, rest);
    struct op__regex *re = op__regex_compile(pattern, n, &why, &at);
    if (!re && (!why || at > n)) abort();
    if (re) {
        void *scratch = malloc(op__regex_scratch_bytes(re));
        bool first = op__regex_full_match(re, text, rest, scratch);
        memset(scratch, 0xa5,
               op__regex_scratch_bytes(re)); /* what was there before does not count */
        if (op__regex_full_match(re, text, rest, scratch) != first) abort();
        free(scratch);
    }
    op__regex_free(re);
    free(pattern);
    free(text);
    return 0;
}
