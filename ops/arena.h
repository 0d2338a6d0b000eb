/* arena.h: memory that is given back all at once: a model's graph, a run's strings. Internal to ops/. */
#ifndef QUERN_OPS_ARENA_H
#define QUERN_OPS_ARENA_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct op_arena_chunk;

struct op_arena {
    struct op_arena_chunk *chunks; /* the newest first */
    size_t bytes;                  /* held now */
    size_t bytes_max;              /* 0: no cap */
};

/* Zeroed, aligned to 16; NULL when there is no memory or the cap is reached. */
void *op__arena_alloc(struct op_arena *a, size_t bytes);
void *op__arena_array(struct op_arena *a, size_t n, size_t bytes_each); /* the product is checked */
char *op__arena_string(struct op_arena *a, const char *text, size_t len); /* a zero-terminated copy */
void op__arena_finish(struct op_arena *a);

/* 64-byte aligned memory, not zeroed; of at least one byte. free() gives it back. */
void *op__aligned_alloc(size_t bytes);

#endif
