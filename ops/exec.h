/* exec.h: one run: its memory, its limits, its errors. Internal to ops/.
 *
 * Memory of a run is of three kinds:
 *   the arena    of a plan: values whose shapes were known when it was made (plan.h);
 *   buffers      reference-counted, for values whose shapes are known only now: freed when the last value that uses
 *                one has had its last use;
 *   the heap     strings, and the tensors of sequences: freed when the run's outputs are given up.
 * Buffers and heap together are counted against the memory cap. */
#ifndef QUERN_OPS_EXEC_H
#define QUERN_OPS_EXEC_H

#include <pthread.h>

#include "ops/model.h"
#include "ops/pool.h"

struct op_link {
    struct op_link *prev, *next;
};

struct op_buf { /* 64 bytes; the data follows */
    struct op_link link; /* first: a link of a list of buffers is its buffer */
    struct op_exec *exec;
    size_t bytes;
    int refs;
    _Alignas(64) char data[];
};

/* Where a value lies while a graph runs. Everything that ctx->out points at is the `t` of a slot. */
struct op_slot {
    struct op_tensor t;
    struct op_buf *buf; /* that t.data lies in; NULL: somebody else's memory */
};

struct op_exec {
    const struct op_model *model;
    struct op_pool *pool;
    struct op_error *err;
    struct op_session *session; /* NULL while folding */
    struct op_link bufs;        /* head of the list of live buffers */
    struct op_arena heap;
    pthread_mutex_t lock; /* of the heap: tasks of op__parallel may allocate */
    size_t bytes, bytes_max, bytes_peak;
    int64_t steps;
    int depth; /* of running subgraphs */
    uint64_t random;
    bool quiet; /* errors are not written down: a trial */
    const volatile bool *cancel;
    struct op_buf **pins; /* outputs of subgraphs: kept until the node that ran them ends */
    int n_pins, cap_pins;
    int pin_mark; /* pins from here on are of the node that runs */
};

void op__exec_init(struct op_exec *x, const struct op_model *m, struct op_error *err);
void op__exec_finish(struct op_exec *x); /* frees every buffer and the heap */
void op__exec_reset(struct op_exec *x);  /* the same, and ready for another run */

/* A buffer with one reference; NULL beyond the cap (the error is set). */
struct op_buf *op__buf_create(struct op_exec *x, size_t bytes);
void op__buf_retain(struct op_buf *b);  /* accepts NULL */
void op__buf_release(struct op_buf *b); /* accepts NULL */
/* Forgets what a slot held. */
void op__slot_clear(struct op_slot *s);
/* Gives slot s memory for the type and dims that are in s->t; its size goes through the checked product. */
enum op_status op__slot_alloc(struct op_exec *x, struct op_slot *s);

/* What the data of a tensor without elements points at, so that NULL always means "not known". */
extern char op__nothing[64];

/* Infers, gives memory, runs. ctx->in and ctx->out are set, all inputs have data; view_of is the slot of input 0 (NULL: it lies in
 * memory that outlives the output). */
enum op_status op__node_eval(struct op_exec *x, struct op_ctx *ctx, const struct op_slot *view_of);

/* Makes dst an owned deep copy of src: op_tensor_free. */
enum op_status op__tensor_clone(struct op_tensor *dst, const struct op_tensor *src);

#endif
