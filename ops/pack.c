/* Memory of packed weights: chunks of anonymous memory that pieces are cut from, first fit. What is left of each goes back to the system in
 * the end. Not huge pages: they save 15 of the 78 ms of loading ResNet-50 where they are at hand, and cost 100 more where the system has to find some
 * first (measured in a virtual machine); a run gains nothing from them. */
#include "ops/pack.h"

#include <stdlib.h>
#include <sys/mman.h>

#include "ops/cache.h"
#include "ops/graph.h"

#define ALIGN ((size_t)64)
#define CHUNK_MIN ((size_t)64 << 10)
#define CHUNK_MAX ((size_t)32 << 20)
#define PAGE ((size_t)4096)

struct op_pack_chunk {
    struct op_pack_chunk *next;
    char *at;
    size_t bytes, used;
};

void op__packs_init(struct op_packs *packs, const struct op_cache *cache) {
    *packs = (struct op_packs){.cache = cache, .complete = cache != NULL};
}

void op__packs_finish(struct op_packs *packs) {
    while (packs->chunks) {
        struct op_pack_chunk *next = packs->chunks->next;
        munmap(packs->chunks->at, packs->chunks->bytes);
        free(packs->chunks);
        packs->chunks = next;
    }
    free(packs->list);
    *packs = (struct op_packs){0};
}

void op__packs_settle(struct op_packs *packs) {
    for (struct op_pack_chunk *c = packs->chunks; c; c = c->next) {
        const size_t used = (c->used + PAGE - 1) & ~(PAGE - 1);
        if (used < c->bytes && munmap(c->at + used, c->bytes - used) == 0) c->bytes = used;
    }
}

/* A chunk with room for `bytes`, and for as much again as there is already: few chunks for large models, little waste for small ones. */
static struct op_pack_chunk *chunk_new(struct op_packs *packs, size_t bytes) {
    size_t room = CHUNK_MIN;
    for (const struct op_pack_chunk *c = packs->chunks; c && room < CHUNK_MAX; c = c->next) room += c->bytes;
    if (room > CHUNK_MAX) room = CHUNK_MAX;
    if (room < bytes) room = (bytes + PAGE - 1) & ~(PAGE - 1);
    struct op_pack_chunk *c = malloc(sizeof *c);
    void *map = c ? mmap(NULL, room, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) : MAP_FAILED;
    if (map == MAP_FAILED) {
        free(c);
        return NULL;
    }
    *c = (struct op_pack_chunk){.next = packs->chunks, .at = map, .bytes = room};
    packs->chunks = c;
    return c;
}

static void *piece(struct op_packs *packs, size_t bytes) {
    struct op_pack_chunk *c = packs->chunks;
    while (c && c->bytes - c->used < bytes) c = c->next;
    if (!c) c = chunk_new(packs, bytes);
    if (!c) return NULL;
    void *p = c->at + c->used;
    c->used += bytes;
    return p;
}

void *op__packs_take(struct op_packs *packs, uint64_t label, size_t bytes, bool *filled) {
    *filled = false;
    if (bytes > SIZE_MAX / 4) return NULL;
    bytes = bytes ? (bytes + ALIGN - 1) & ~(ALIGN - 1) : ALIGN;
    if (packs->n == packs->cap) {
        const int cap = packs->cap ? packs->cap * 2 : 64;
        struct op_pack *list = realloc(packs->list, (size_t)cap * sizeof *list);
        if (!list) return NULL;
        packs->list = list;
        packs->cap = cap;
    }
    void *data = packs->cache ? op__cache_piece(packs->cache, packs->n, label, bytes) : NULL;
    *filled = data != NULL;
    if (!data) {
        packs->complete = false;
        data = piece(packs, bytes);
    }
    if (data) packs->list[packs->n++] = (struct op_pack){label, data, bytes};
    return data;
}

/* FNV-1a over node and kind: tells a cache's pieces apart where two models would have the same sizes in the same order. */
static uint64_t label_of(const struct op_node *n, const char *kind) {
    const char *const parts[] = {n->domain, n->op_type, n->name, kind};
    uint64_t h = 14695981039346656037u;
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        for (const char *at = parts[i] ? parts[i] : ""; *at; at++) h = (h ^ (uint8_t)*at) * 1099511628211u;
        h = (h ^ 0xff) * 1099511628211u;
    }
    return h;
}

void *op__pack_alloc(struct op_prepare *p, const char *kind, size_t bytes, bool *filled) {
    const int n = p->packs->n;
    void *data = op__packs_take(p->packs, label_of(p->node, kind), bytes, filled);
    if (data) p->packed_bytes += p->packs->list[n].bytes;
    return data;
}
