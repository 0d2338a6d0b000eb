/* pack.h: the memory of packed weights. Internal to ops/.
 *
 * What an operator packs in `prepare` it asks for here (op__pack_alloc in op.h): the pieces live as long as the model, and a cache file
 * (cache.h) holds them. So do large weights that are used as they are, but do not lie aligned in the model's file. */
#ifndef QUERN_OPS_PACK_H
#define QUERN_OPS_PACK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct op_cache;

struct op_pack {
    uint64_t label; /* of node and kind */
    void *data;
    size_t bytes;
};

struct op_packs {
    struct op_pack_chunk *chunks;
    struct op_pack *list; /* in the order of prepare */
    int n, cap;
    const struct op_cache *cache; /* where to look first; NULL: nowhere */
    bool complete;                /* every piece so far came from the cache */
};

void op__packs_init(struct op_packs *packs, const struct op_cache *cache);
/* A piece of memory for what `label` names, *filled if the cache had it. NULL without memory. */
void *op__packs_take(struct op_packs *packs, uint64_t label, size_t bytes, bool *filled);
void op__packs_settle(struct op_packs *packs); /* nothing more comes: gives back what is not used */
void op__packs_finish(struct op_packs *packs); /* frees what was allocated; a cache's memory is the cache's */

#endif
