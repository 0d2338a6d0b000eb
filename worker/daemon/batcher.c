#include "worker/daemon/batcher.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

void w_batcher_finish(struct w_batcher *b) {
    assert(b->n == 0);
    for (struct w_group *g = b->spare, *next; g; g = next) {
        next = g->next;
        free(g);
    }
    memset(b, 0, sizeof *b);
}

static struct w_group *group_for(struct w_batcher *b, const void *key) {
    struct w_group **link = &b->groups;
    for (; *link; link = &(*link)->next)
        if (key && (*link)->key == key) return *link;
    struct w_group *g = b->spare;
    if (g)
        b->spare = g->next;
    else
        g = malloc(sizeof *g);
    if (!g) return NULL;
    memset(g, 0, sizeof *g);
    g->key = key;
    *link = g; /* behind the others: the oldest stays in front */
    return g;
}

bool w_batcher_add(struct w_batcher *b, struct w_item *item) {
    assert(!item->group);
    struct w_group *g = item->alone ? &b->alone : group_for(b, item->key);
    if (!g) return false;
    item->group = g;
    item->next = NULL;
    item->prev = g->tail;
    if (g->tail)
        g->tail->next = item;
    else
        g->head = item;
    g->tail = item;
    g->n++;
    g->bytes += item->bytes;
    b->n++;
    return true;
}

static void drop_group(struct w_batcher *b, struct w_group *g) {
    for (struct w_group **link = &b->groups; *link; link = &(*link)->next) {
        if (*link != g) continue;
        *link = g->next;
        g->next = b->spare;
        b->spare = g;
        return;
    }
}

void w_batcher_remove(struct w_batcher *b, struct w_item *item) {
    struct w_group *g = item->group;
    if (!g) return;
    if (item->prev)
        item->prev->next = item->next;
    else
        g->head = item->next;
    if (item->next)
        item->next->prev = item->prev;
    else
        g->tail = item->prev;
    g->n--;
    g->bytes -= item->bytes;
    b->n--;
    item->group = NULL;
    item->next = item->prev = NULL;
    if (g->n == 0 && g != &b->alone) drop_group(b, g);
}

struct w_item *w_batcher_alone(struct w_batcher *b) {
    return b->alone.head;
}

/* The group to take from, with its limits; NULL: none is ready before *next_ms. */
static struct w_group *ready(struct w_batcher *b, uint64_t now_ms, w_limits_fn *limits, void *user,
                             struct w_batch_limits *dst, uint64_t *next_ms) {
    struct w_group *best = NULL;
    *next_ms = UINT64_MAX;
    for (struct w_group *g = b->groups; g; g = g->next) {
        struct w_batch_limits l = limits(user, g->head);
        uint64_t due_ms = g->head->since_ms + l.delay_ms;
        bool full = g->n >= l.n_max || g->bytes >= l.bytes_max;
        if (!full && due_ms > now_ms) {
            if (due_ms < *next_ms) *next_ms = due_ms;
        } else if (!best || g->head->since_ms < best->head->since_ms) {
            best = g;
            *dst = l;
        }
    }
    return best;
}

size_t w_batcher_take(struct w_batcher *b, uint64_t now_ms, size_t n_free, w_limits_fn *limits,
                      void *user, struct w_item **out, size_t out_max, uint64_t *next_ms) {
    struct w_batch_limits l;
    struct w_group *g = n_free ? ready(b, now_ms, limits, user, &l, next_ms) : NULL;
    if (!g) return 0;
    size_t share = (g->n + n_free - 1) / n_free, n_max = l.n_max < out_max ? l.n_max : out_max,
           n = 0, bytes = 0;
    if (share < n_max) n_max = share;
    if (n_max == 0) n_max = 1;
    for (size_t left = g->n; n < n_max && left > 0;
         left--) { /* left: the group goes with its last item */
        struct w_item *item = g->head;
        if (n > 0 && item->bytes > l.bytes_max - (bytes < l.bytes_max ? bytes : l.bytes_max)) break;
        bytes += item->bytes;
        w_batcher_remove(b, item);
        out[n++] = item;
    }
    return n;
}
