/* match.h: what the fusing passes ask of a graph. Internal to ops/pass/. */
#ifndef QUERN_OPS_PASS_MATCH_H
#define QUERN_OPS_PASS_MATCH_H

#include "ops/graph.h"

/* Who makes and who uses each value, by position in g->nodes. Made once a pass: a pass that rewires nodes only takes uses away or
 * moves them to later nodes, and keeps `user` right where it does. */
struct op__links {
    int *producer; /* -1: none */
    int *uses;     /* graph outputs included */
    int *user;     /* the last node that uses it; -1: none */
};
enum op_status op__links_make(const struct op_graph *g, struct op__links *links);
void op__links_free(struct op__links *links);

/* The node that makes value v, if it is of that type (domain ai.onnx) and v is its first output; else NULL. */
struct op_node *op__made_by(const struct op_graph *g, const struct op__links *links, int v, const char *op_type);
/* The only user of value v; NULL if there are more, or it is an output of the graph. */
struct op_node *op__sole_user(const struct op_graph *g, const struct op__links *links, int v);
/* Whether v is a constant f32 (or f64) of one element near `expected`, relative to 1e-6: f32 constants are rounded. */
bool op__is_scalar(const struct op_graph *g, int v, double expected);
/* The other one of a node's two inputs; -1 if v is neither or both. */
int op__other_input(const struct op_node *n, int v);
/* Turns node n into the operator (newest opset) with these inputs and no attributes. Its outputs stay. */
enum op_status op__node_become(struct op_node *n, const char *domain, const char *op_type, int n_in, const int *in);

/* An activation that a kernel has, as the attributes of a fused node say it. */
struct op__fused_activation {
    const char *name; /* NULL: none */
    float a, b;
};
/* Whether node u (may be NULL) is one of value v, with constant parameters. */
bool op__activation_of(const struct op_graph *g, const struct op_node *u, int v, struct op__fused_activation *act);

#endif
