/* batcher.h: where tasks wait for a lane.
 *
 * Tasks that may run together (same function, same model version) wait in one group, in order of
 * arrival; a lane that is free takes from the group whose head has waited longest, all that wait up
 * to the limits. What cannot share (a step of a bulk job) is a group of one. Input shapes are not
 * known here, since payloads are decoded on the lanes: the lane stacks those rows of what it took
 * that have the same shape (worker/task/rows.h).
 *
 * A task marked `alone` (its last worker died with it) waits in a line of its own: the loop runs it
 * with nothing beside it.
 *
 * Nothing here allocates for an item, nothing knows a clock or a thread: the loop calls, tests
 * call. */
#ifndef QUERN_WORKER_BATCHER_H
#define QUERN_WORKER_BATCHER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct w_item {
    struct w_item *next, *prev;
    struct w_group *group; /* NULL: waits in no group */
    const void *key;       /* items of one key may run together; NULL: with none */
    size_t bytes;          /* of the input */
    uint64_t since_ms;
    bool alone;
};

struct w_group {
    struct w_item *head, *tail;
    size_t n, bytes;
    const void *key;
    struct w_group *next; /* of all groups, or of the spare ones */
};

struct w_batcher {
    struct w_group *groups, *spare;
    struct w_group alone;
    size_t n; /* items that wait, the alone ones too */
};

struct w_batch_limits {
    size_t n_max;      /* items; at least 1 */
    size_t bytes_max;  /* together, but one item always goes */
    uint32_t delay_ms; /* a fuller batch is waited for so long */
};

void w_batcher_finish(struct w_batcher *b); /* must be empty */
/* False: no memory for a group. */
bool w_batcher_add(struct w_batcher *b, struct w_item *item);
void w_batcher_remove(struct w_batcher *b, struct w_item *item); /* not waiting: nothing */
struct w_item *w_batcher_alone(struct w_batcher *b); /* the first, still waiting; NULL: none */

/* The limits of a group, by its first item. */
typedef struct w_batch_limits w_limits_fn(void *user, const struct w_item *head);
/* Takes at most out_max items of one group: of the ready one whose head has waited longest. Where
 * n_free lanes are free they share what waits evenly. A group is ready when it is full or its head
 * has waited delay_ms. 0: none is; then *next_ms is when one will be (UINT64_MAX: never). */
size_t w_batcher_take(struct w_batcher *b, uint64_t now_ms, size_t n_free, w_limits_fn *limits,
                      void *user, struct w_item **out, size_t out_max, uint64_t *next_ms);

#endif
