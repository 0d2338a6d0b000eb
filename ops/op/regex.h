/* regex.h: regular expressions in RE2's syntax, matched in linear time. Internal to ops/op/. */
#ifndef QUERN_OP_REGEX_H
#define QUERN_OP_REGEX_H

#include "ops/ops.h"

struct op__regex;

/* Compiles a pattern. NULL on error: *why is what is wrong (a literal), *at the byte of the
 * pattern. */
struct op__regex *op__regex_compile(const char *pattern, size_t n, const char **why, size_t *at);
void op__regex_free(struct op__regex *re); /* accepts NULL */

/* Bytes of memory that a match needs. */
size_t op__regex_scratch_bytes(const struct op__regex *re);
/* Whether the whole of s matches. */
bool op__regex_full_match(const struct op__regex *re, const char *s, size_t n, void *scratch);

#endif
