/* grad.h: reverse mode, graph → graph: the gradient of a graph is a graph of ordinary nodes. Internal to ops/.
 *
 * HOW AN OPERATOR GETS A GRADIENT. Its descriptor's `grad` gets a node of the forward graph and, for each of its outputs, the
 * value that holds dL/d(output); it emits nodes that compute dL/d(input) for the inputs that want it and stores their values:
 *
 *   static enum op_status mul_grad(struct op_grad *g) {              // y = a·b
 *       op__grad_set(g, 0, op__sum_to(g, op__emit2(g, "Mul", g->dy[0], g->in[1]), g->in[0]));
 *       op__grad_set(g, 1, op__sum_to(g, op__emit2(g, "Mul", g->dy[0], g->in[0]), g->in[1]));
 *       return OP_OK;
 *   }
 *
 * Emitting never fails visibly: without memory or with an unknown operator the value is -1, which every further call passes on,
 * and op__grad_build reports it. A gradient that is not set is zero. No shape is known while emitting (the batch is symbolic):
 * what depends on shapes is said by nodes that look at them when they run (SumTo, Shape, …).
 *
 * Where the ordinary operators are too slow or cannot say it, a backward kernel is an operator of the domain "quern" with a file of
 * its own (ConvGradX, MaxPoolGrad, …); it too may have a `grad`.
 *
 * Families keep their gradients in files of their own (op/<family>_grad.c): a table of struct op_grad_row there does what the field of
 * the descriptor does, without a line in the forward file:
 *
 *   static const struct op_grad_row rows[] = {{"", "Mul", mul_grad}, {"", "Div", div_grad}};
 *   OP_GRADS_REGISTER(rows);
 *
 * Every `grad` is checked against finite differences in double precision (tests/unit/test_grad.c finds them by descriptor). */
#ifndef QUERN_OPS_GRAD_H
#define QUERN_OPS_GRAD_H

#include "ops/graph.h"

struct op_grad {
    struct op_graph *graph;
    const struct op_node *node; /* of the forward graph */
    const int *in, *out;        /* its inputs and outputs as values */
    int n_in, n_out;
    const int *dy;     /* for each output: its gradient, -1 where nothing depends on it */
    const bool *wants; /* for each input: whether its gradient is asked for */
    int *dx;           /* for each input: set by op__grad_set; -1: zero */
    struct op_error *err;
    bool failed;       /* without memory, or an operator that is not there */
};

/* Keeps v as the gradient of input i; ignored where it is not wanted. */
void op__grad_set(struct op_grad *g, int i, int v);
/* Whether input i is there and wants a gradient: spares a costly emission. */
static inline bool op__grad_wants(const struct op_grad *g, int i) {
    return i < g->n_in && g->in[i] >= 0 && g->wants[i];
}
/* Fails with OP_UNSUPPORTED: "the gradient of <op> is not supported <why>". */
enum op_status op__grad_refuse(struct op_grad *g, const char *why);

/* A node of any domain at the end of the graph; outputs are fresh values, out[i] is filled in. NULL: failed. Attributes are set with
 * op__attr_set_* on it. */
struct op_node *op__emit(struct op_grad *g, const char *domain, const char *op_type, int n_in, const int *in, int n_out, int *out);
int op__emit1(struct op_grad *g, const char *op_type, int a); /* of ai.onnx, one output */
int op__emit2(struct op_grad *g, const char *op_type, int a, int b);
int op__emit3(struct op_grad *g, const char *op_type, int a, int b, int c);
int op__emit_quern(struct op_grad *g, const char *op_type, int n_in, const int *in); /* of quern, one output */
/* Constants: a scalar like the type of value `like` is not known while emitting: quern.Fill(like, value) gives a scalar of its type. */
int op__emit_scalar(struct op_grad *g, int like, double value);
int op__emit_ints(struct op_grad *g, const int64_t *values, int64_t n); /* i64 vector */
/* v summed to the shape of `like` (the reverse of numpy's broadcast). */
int op__sum_to(struct op_grad *g, int v, int like);
/* v reshaped to the shape of `like`. */
int op__reshape_like(struct op_grad *g, int v, int like);
/* Copies an attribute of the forward node to n, if it is there. */
void op__attr_copy(struct op_grad *g, struct op_node *n, const char *name);
/* The forward node's attributes, all of them. */
void op__attrs_copy(struct op_grad *g, struct op_node *n);

/* The gradient of an operator: its descriptor's field, else the row that is registered for it; NULL: none. */
typedef enum op_status op_grad_fn(struct op_grad *g);
op_grad_fn *op__grad_find(const struct op_desc *desc);

struct op_grad_row {
    const char *domain, *name;
    op_grad_fn *grad;
};
struct op_grad_rows {
    const struct op_grad_row *rows;
    int n;
};
#define OP_GRADS_REGISTER(table)                                                                   \
    static const struct op_grad_rows op__grads_##table = {table, (int)(sizeof table / sizeof *table)}; \
    __attribute__((used, section("quern_grads"))) static const struct op_grad_rows *const op__registered_##table = &op__grads_##table

/* Appends the backward pass of `loss` (a scalar) with respect to wrt[0..n): dw[i] gets the value of the gradient, -1 where the loss does
 * not depend on it. OP_UNSUPPORTED names the first operator on the way that has no gradient, and its node. */
enum op_status op__grad_build(struct op_graph *g, int loss, const int *wrt, int n, int *dw, struct op_error *err);

#endif
