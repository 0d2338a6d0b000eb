/* graph.h: the graph in memory, and what passes and upgrades do to it. Internal to ops/.
 *
 * A graph is a list of nodes in topological order over numbered values. A value has at most one producer; a constant
 * has none and carries its tensor. Everything lives in the model's arena until the model is released; nodes and values
 * that a pass takes out of use are unlinked, not freed (but the data of constants is, once the passes have run).
 *
 * Subgraphs: the outer values that a subgraph uses are ordinary inputs of the node that holds it. They follow the
 * node's n_in own inputs (n_captures of them), and the subgraph has a value of its own for each: captures[k].inner is
 * that value, captures[k].index the position in node->in. So a pass that rewires node->in needs to know nothing of
 * subgraphs, and a value used only inside one is used by its node. */
#ifndef QUERN_OPS_GRAPH_H
#define QUERN_OPS_GRAPH_H

#include "ops/arena.h"
#include "ops/op.h"

/* A constant's tensor and who owns its memory. */
struct op_const {
    struct op_tensor t;
    void *owned;        /* freed with the constant; NULL: `t.data` lies in the mapped file or in the arena */
    const char *mapped; /* where its bytes lie in the mapped file, NULL if they were not taken from there */
    size_t mapped_bytes;
    bool lazy;          /* t.data is NULL and is copied from `mapped` when somebody asks for it: weights that are found packed never are */
    struct op_const *base; /* whose memory it shares (a view); NULL: none */
    int n_uses, n_consumed; /* counted after the passes: users, and users that packed it */
    struct op_const *next; /* all of a model, for the release */
};

struct op_value {
    const char *name;
    struct op_const *constant;
    struct op_const *dflt; /* of an input that a caller may leave out: its initializer */
    enum op_kind kind;   /* as declared in the file, else OP_KIND_TENSOR */
    enum op_type dtype;  /* OP_UNDEFINED where the file does not say */
    int rank;            /* -1 where the file does not say */
    int64_t dims[OP_RANK_MAX];
    const char *symbols[OP_RANK_MAX];
    bool is_input;
    bool is_map; /* declared as a map or a sequence of maps */
};

struct op_capture {
    int inner; /* value of the subgraph */
    int index; /* position in the holding node's `in` */
};

struct op_graph {
    struct op_model *model;
    struct op_arena *arena;
    const char *name;
    struct op_graph *parent; /* of a subgraph */
    int depth;
    struct op_value *values;
    int n_values, cap_values;
    struct op_node **nodes; /* topological order */
    int n_nodes, cap_nodes;
    int *inputs, *outputs; /* value indices */
    int n_inputs, n_outputs;
    struct op_value *declared; /* per output: what the file says of it, which passes do not touch */
    int n_initialized; /* the last so many inputs have an initializer */
    struct op_capture *captures;
    int n_captures;
};

/* --- building ---------------------------------------------------------------------------------- */

/* A new value; -1 without memory. The name (may be NULL) is borrowed: it must live as long as the graph. */
int op__graph_value(struct op_graph *g, const char *name);
/* A new constant with zeroed, 64-byte aligned memory: *data is where to write (NULL where it has no elements).
 * Returns its value index, -1 without memory. */
int op__graph_const(struct op_graph *g, const char *name, enum op_type dtype, int rank, const int64_t *dims, void **data);
/* Makes value v a constant that takes over `t` (its data was made by op__aligned_alloc; NULL where empty). */
enum op_status op__graph_set_const(struct op_graph *g, int v, const struct op_tensor *t);
/* A new node with room for n_in inputs and n_out outputs (all -1), inserted before position `at` of g->nodes. NULL
 * without memory or if no such operator is known. */
struct op_node *op__graph_node(struct op_graph *g, int at, const char *domain, const char *op_type, const char *name, int n_in, int n_out);
/* Inserts a node made elsewhere; false without memory. */
bool op__graph_insert(struct op_graph *g, int at, struct op_node *n);
/* Gives the node room for n_in own inputs (captures stay behind them); new ones are -1. */
enum op_status op__node_grow(struct op_node *n, int n_in);

/* --- asking ------------------------------------------------------------------------------------ */

/* Gives a lazy constant its data; false without memory. */
bool op__const_fetch(struct op_model *m, struct op_const *c);
/* The tensor of a constant value, NULL if v is -1 or not constant (or without memory for it, which fails the load in the end). */
static inline const struct op_tensor *op__graph_constant(const struct op_graph *g, int v) {
    struct op_const *c = v >= 0 ? g->values[v].constant : NULL;
    return c && (!c->lazy || op__const_fetch(g->model, c)) ? &c->t : NULL;
}
/* The same for who asks for type and shape: large weights may still be without data. */
static inline const struct op_tensor *op__graph_constant_type(const struct op_graph *g, int v) {
    return v >= 0 && g->values[v].constant ? &g->values[v].constant->t : NULL;
}
static inline bool op__node_is(const struct op_node *n, const char *op_type) { /* of the domain ai.onnx */
    return n->domain[0] == 0 && __builtin_strcmp(n->op_type, op_type) == 0;
}
/* For each value: the position in g->nodes of the node that makes it, -1 if none. Free with free(); NULL without memory. */
int *op__graph_producers(const struct op_graph *g);
/* For each value: how often it is used, as an input or capture of a node or as an output of the graph. free() it. */
int *op__graph_uses(const struct op_graph *g);
bool op__graph_is_output(const struct op_graph *g, int v);

/* --- changing ---------------------------------------------------------------------------------- */

/* Every use of value `from` (node inputs, captures, graph outputs) becomes a use of `to`. A graph output keeps its
 * name outside: names of outputs are held by the model, not by the values. */
void op__graph_replace(struct op_graph *g, int from, int to);
/* Takes the node at position `at` out: its slot is NULL until op__graph_sweep. */
void op__graph_remove(struct op_graph *g, int at);
void op__graph_sweep(struct op_graph *g); /* closes the gaps that op__graph_remove left */

/* Calls fn for every graph below g, innermost first, then for g; stops at an error. */
enum op_status op__graph_each(struct op_graph *g, enum op_status (*fn)(struct op_graph *g, void *user), void *user);

/* --- passes ------------------------------------------------------------------------------------
 *
 * A pass rewrites a graph into one that computes the same. It is one file in ops/pass/ that ends in OP_PASS_REGISTER;
 * passes run by rising order, once each, over every graph of a model (innermost first); *changed counts rewrites.
 *   200 identities · 300 constants · 320 Ifs with a constant condition · 400 common subexpressions · 500.. fusions · 900 dead code
 * A pass may call op__graph_remove and insert nodes, and need not sweep. `err` is for what it cannot go on from; without
 * memory it returns OP_NOMEM. */
struct op_pass {
    const char *name;
    int order;
    enum op_status (*run)(struct op_graph *g, int *changed, struct op_error *err);
    bool differentiable; /* what it makes has a gradient, and no weight of the graph is lost: runs before a training's transform too */
};

#define OP_PASS_REGISTER(pass)                                                                     \
    __attribute__((used, section("quern_passes"))) static const struct op_pass *const op__registered_##pass = &pass

enum op_pass_phase { OP_PASSES_BEFORE_TRANSFORM, OP_PASSES_ALL };
enum op_status op__passes_run(struct op_graph *g, enum op_pass_phase phase, struct op_error *err);

#endif
