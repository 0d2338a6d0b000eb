/* cache.h: a file with the packed weights of one model, mapped and used in place. Internal to ops/. cache.c says how. */
#ifndef QUERN_OPS_CACHE_H
#define QUERN_OPS_CACHE_H

#include "ops/pack.h"

struct op_model;

/* The cache file that fits m (its files, ISA level, options and this build), mapped; NULL where there is none, or m is not to use one.
 * Never an error: a cache is only ever a faster way to the same memory. */
struct op_cache *op__cache_open(struct op_model *m);
void op__cache_close(struct op_cache *c); /* accepts NULL */
/* Piece i, if it has this label and size; NULL otherwise. */
void *op__cache_piece(const struct op_cache *c, int i, uint64_t label, size_t bytes);
/* Writes m's packed weights to the cache folder, for the next load. */
void op__cache_write(struct op_model *m);

#endif
