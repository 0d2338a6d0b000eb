/* session.h: what a run keeps between runs. Internal to ops/. */
#ifndef QUERN_OPS_SESSION_H
#define QUERN_OPS_SESSION_H

#include "ops/plan.h"

struct op_session {
    struct op_model *m;
    struct op_session_options options;
    struct op_exec x;
    struct op_plan *plans; /* of the main graph and of subgraphs */
    size_t plans_bytes;
    uint64_t clock;
    struct op_plan *last; /* whose slots hold the outputs that the caller may still read */
    char *arena;
    size_t arena_bytes;
    int idle_runs; /* in a row that needed less than a quarter of it */
    struct op_tensor *outputs;
    const struct op_tensor **in; /* of the main graph */
    struct op_session *open;     /* on the variant with overridable inputs */
};

/* The plan for graph g on inputs of these shapes (formal ones, then captures), made if it is not there yet. NULL on error. */
struct op_plan *op__session_plan(struct op_session *s, const struct op_graph *g, const struct op_tensor *const *inputs, int n, struct op_error *err);

#endif
