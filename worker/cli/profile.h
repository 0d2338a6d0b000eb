/* profile.h: a table of the nodes of a model or of a training step by time. */
#ifndef QUERN_WORKER_CLI_PROFILE_H
#define QUERN_WORKER_CLI_PROFILE_H

#include <stddef.h>
#include <stdint.h>

struct node_time;

/* Zeroed at first. One thread at a time. */
struct w_profile {
    struct node_time *nodes;
    size_t n, cap;
    size_t next; /* the node that comes next if this run is like the last */
};

/* For the engine's on_node; user is a struct w_profile. Without memory a node is left out. */
void w__profile_node(void *user, const char *op_type, const char *name, uint64_t ns, double flops,
                     double bytes);
/* A line a node, the slowest first. To standard error with --json, so that standard output stays one object. */
void w__profile_print(struct w_profile *p, size_t n_runs);
void w__profile_finish(struct w_profile *p);

#endif
