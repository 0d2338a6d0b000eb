/* text.h: UTF-8 and letter case for the string operators. Internal to ops/op/. */
#ifndef QUERN_OP_TEXT_H
#define QUERN_OP_TEXT_H

#include "ops/ops.h"

/* Decodes the code point at s[0 .. n), n > 0; returns its bytes, 0 where they are not valid UTF-8.
 */
int op__utf8_decode(const char *s, size_t n, uint32_t *cp);
/* Encodes into dst (4 bytes of room); returns the bytes. */
int op__utf8_encode(uint32_t cp, char *dst);

/* The letter's other case by Unicode's simple mapping, the code point itself where it has none. */
uint32_t op__lower(uint32_t cp);
uint32_t op__upper(uint32_t cp);

/* src with every letter mapped by `map`, bytes that are no UTF-8 as they are; dst has room for 2 *
 * src.len. */
size_t op__map_case(struct op_string src, uint32_t (*map)(uint32_t), char *dst);

#endif
