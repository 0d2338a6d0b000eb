/* plan.h: what a run of one graph on inputs of certain shapes will do. Internal to ops/.
 *
 * Made from concrete input shapes: every node's infer is called in order; what can be computed already is (constants,
 * shapes, arithmetic on them); an If whose condition is known becomes its branch. What is left is a list of steps:
 *   static   shapes are known: outputs and scratch lie in the arena at planned offsets, run computes;
 *   dynamic  something depends on data: infer again at run time, outputs in reference-counted buffers.
 * A plan belongs to one session and is used by one run at a time; its slots are that run's values. */
#ifndef QUERN_OPS_PLAN_H
#define QUERN_OPS_PLAN_H

#include "ops/exec.h"

enum op_place {
    OP__PLACE_NONE,    /* not decided */
    OP__PLACE_CONST,   /* the model's memory, or the plan's: data is known while planning */
    OP__PLACE_INPUT,   /* the caller's memory */
    OP__PLACE_ARENA,   /* planned; data at arena + offset */
    OP__PLACE_VIEW,    /* the memory of slot `root`, known when that is */
    OP__PLACE_DYNAMIC  /* decided at run time */
};

struct op_spot { /* of a slot: what the plan decided */
    enum op_place place;
    int root;     /* of VIEW: the slot whose memory it is */
    int from, to; /* steps: made at, last used at (n_steps: an output of the graph) */
    size_t offset, bytes;
};

struct op_step {
    const struct op_node *node;
    struct op_ctx ctx; /* in: n_in + n_captures pointers to slots; out */
    bool fixed;        /* static */
    bool view;         /* nothing to compute: output 0 is input 0's memory */
    size_t scratch_offset, scratch_bytes;
    double flops, bytes;
    int *dead; /* dynamic slots whose last use this is */
    int n_dead;
};

struct op_plan {
    struct op_plan *next;
    const struct op_graph *graph;
    uint64_t key_hash;
    int64_t *key; /* of the inputs' types and shapes; NULL: the general plan, that knows no shapes */
    size_t key_len;
    struct op_arena memory; /* everything of the plan, evaluated constants included */
    struct op_slot *slots;
    struct op_spot *spots;
    int n_slots;
    struct op_step *steps;
    int n_steps;
    int *inputs;   /* slots of the formal inputs, then of the captures; -1: not used */
    int *outputs;  /* slots */
    int n_inputs, n_outputs;
    size_t arena_bytes;
    size_t dynamic_bytes; /* the most that buffers and heap have taken beyond it in a run */
    double flops;
    uint64_t used; /* when, for the choice of which to drop */
    bool busy;     /* a run is using it */
};

/* Plans for inputs (formal ones, then captures; n = g->n_inputs + g->n_captures; data is not read, an entry NULL is absent).
 * `general`: a plan for any shapes, all dynamic. `pool` is the one that it will run with: scratch memory may depend on the number of threads.
 * NULL on error. */
struct op_plan *op__plan_create(const struct op_model *m, struct op_pool *pool, const struct op_graph *g, const struct op_tensor *const *inputs, int n,
                                bool general, struct op_error *err);
void op__plan_destroy(struct op_plan *p);
size_t op__plan_bytes(const struct op_plan *p); /* of the plan itself, the arena apart */

/* layout.c: offsets for the spots in the arena and the steps' scratch: sets arena_bytes. OP_LIMIT beyond bytes_max. */
enum op_status op__plan_layout(struct op_plan *p, size_t bytes_max, struct op_error *err);

/* run.c: */
/* Slot of input i (formal inputs, then captures) gets this tensor, borrowed for the run. */
void op__plan_bind_input(struct op_plan *p, int i, const struct op_tensor *t);
void op__plan_clear(struct op_plan *p); /* gives up the buffers of its slots */
/* Runs a plan whose inputs are bound. The error is set by the node that fails. */
enum op_status op__plan_run(struct op_exec *x, struct op_plan *p, char *arena);

#endif
