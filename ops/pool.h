/* pool.h: the threads that help a session with one node at a time. Internal to ops/. */
#ifndef QUERN_OPS_POOL_H
#define QUERN_OPS_POOL_H

#include <stdint.h>

struct op_pool;

/* A pool in which the caller and n_threads - 1 others work; NULL without memory or threads. */
struct op_pool *op__pool_create(int n_threads);
void op__pool_destroy(struct op_pool *p); /* accepts NULL */
int op__pool_n_threads(const struct op_pool *p); /* 1 of NULL */
/* Runs fn(arg, task) for each task in [0, n_tasks), in any order, and returns when all are done. NULL, or a call from
 * within a task: in order on the calling thread. */
void op__pool_run(struct op_pool *p, int64_t n_tasks, void (*fn)(void *arg, int64_t task), void *arg);

#endif
