/* Chunked bump allocator: a request takes the next bytes of the newest chunk, large ones get a chunk of their own. */
#include "ops/arena.h"

#include <stdlib.h>
#include <string.h>

#define CHUNK_BYTES ((size_t)64 * 1024)

struct op_arena_chunk {
    struct op_arena_chunk *next;
    size_t used, bytes;
    _Alignas(16) char data[];
};

void *op__arena_alloc(struct op_arena *a, size_t bytes) {
    if (bytes > SIZE_MAX / 2) return NULL;
    bytes = bytes ? (bytes + 15) & ~(size_t)15 : 16;
    struct op_arena_chunk *c = a->chunks;
    if (!c || c->bytes - c->used < bytes) {
        size_t room = bytes > CHUNK_BYTES / 4 ? bytes : CHUNK_BYTES;
        if (a->bytes_max && (room > a->bytes_max || a->bytes > a->bytes_max - room)) return NULL;
        c = calloc(1, sizeof *c + room);
        if (!c) return NULL;
        c->bytes = room;
        a->bytes += room;
        if (room == bytes && a->chunks) { /* full at once: keep the half-used chunk in front */
            c->next = a->chunks->next;
            a->chunks->next = c;
        } else {
            c->next = a->chunks;
            a->chunks = c;
        }
    }
    void *p = c->data + c->used;
    c->used += bytes;
    return p;
}

void *op__arena_array(struct op_arena *a, size_t n, size_t bytes_each) {
    size_t bytes;
    if (__builtin_mul_overflow(n, bytes_each, &bytes)) return NULL;
    return op__arena_alloc(a, bytes);
}

char *op__arena_string(struct op_arena *a, const char *text, size_t len) {
    char *copy = len < SIZE_MAX ? op__arena_alloc(a, len + 1) : NULL;
    if (copy && len) memcpy(copy, text, len);
    return copy;
}

void op__arena_finish(struct op_arena *a) {
    while (a->chunks) {
        struct op_arena_chunk *next = a->chunks->next;
        free(a->chunks);
        a->chunks = next;
    }
    a->bytes = 0;
}

void *op__aligned_alloc(size_t bytes) {
    void *p = NULL;
    if (bytes > SIZE_MAX / 2 || posix_memalign(&p, 64, bytes ? bytes : 1) != 0) return NULL;
    return p;
}
