/* op.h: what an operator's file sees. Internal to ops/.
 *
 * AN OPERATOR IS ONE FILE in ops/op/ (or a tight family) that ends in OP_REGISTER(descriptor): nothing else is
 * edited to add one. The descriptor says what the operator is; the planner and the executor do the rest:
 *
 *   upgrade   once at load: brings an older opset's form to the newest one (attributes that became inputs, …), so
 *             that the other functions see one form only.
 *   prepare   once at load, after the passes: checks and parses attributes into node->state, packs constant inputs.
 *   infer     at plan time with concrete shapes, and again at run time where a shape depends on data: sets dtype, rank
 *             and dims of each output. Reads input data only if `data` is not NULL; returns OP_NEED_DATA if it needs
 *             data that is NULL. Does ALL the checking of shapes and types, so that run need not.
 *   scratch   bytes of scratch memory for these shapes; run finds them at ctx->scratch (64-byte aligned).
 *   run       computes. Allocates nothing, except an operator with OP_F_DYNAMIC, whose infer may leave dimensions
 *             unknown (-1) and whose run calls op__output for each output.
 *   ref       the plain-C specification where `run` is a fast form; NULL where run is the plain form itself.
 *
 * A hostile file can put any operator on any input: infer must refuse what run cannot take. Tensors of zero elements
 * are legal everywhere: data may then be NULL, and run must do nothing harmful. Products of dimensions go through
 * op__mul or op_tensor_count. */
#ifndef QUERN_OP_H
#define QUERN_OP_H

#include "ops/ops.h"

struct op_graph;
struct op_node;
struct op_desc;
struct op_exec; /* the running session, opaque to operators */
struct op_grad; /* grad.h */
struct k_kernels;

/* --- attributes -------------------------------------------------------------------------------- */

enum op_attr_kind {
    OP_ATTR_NONE = 0,
    OP_ATTR_FLOAT = 1,
    OP_ATTR_INT = 2,
    OP_ATTR_STRING = 3,
    OP_ATTR_TENSOR = 4,
    OP_ATTR_GRAPH = 5,
    OP_ATTR_FLOATS = 6,
    OP_ATTR_INTS = 7,
    OP_ATTR_STRINGS = 8,
    OP_ATTR_OTHER = 99,
    OP_ATTR_NODES = 100 /* in memory alone: nodes that a pass took out of the graph and that its node stands for */
};

struct op_attr {
    const char *name;
    enum op_attr_kind kind;
    union {
        float f;
        int64_t i;
        struct op_string s; /* also zero-terminated */
        struct op_tensor *t;
        struct op_graph *g;
        float *floats;
        int64_t *ints;
        struct op_string *strings;
        const struct op_node *const *nodes;
    };
    int64_t n; /* of floats, ints, strings, nodes */
};

const struct op_attr *op__attr(const struct op_node *n, const char *name); /* NULL if absent */
int64_t op__attr_int(const struct op_node *n, const char *name, int64_t dflt);
float op__attr_float(const struct op_node *n, const char *name, float dflt);
const char *op__attr_string(const struct op_node *n, const char *name, const char *dflt);
const int64_t *op__attr_ints(const struct op_node *n, const char *name, int64_t *count); /* NULL and 0 if absent */
const float *op__attr_floats(const struct op_node *n, const char *name, int64_t *count);
const struct op_node *const *op__attr_nodes(const struct op_node *n, const char *name, int64_t *count);
const struct op_tensor *op__attr_tensor(const struct op_node *n, const char *name);
const struct op_graph *op__attr_graph(const struct op_node *n, const char *name);

/* --- nodes ------------------------------------------------------------------------------------- */

struct op_node {
    const char *name, *op_type, *domain; /* domain "" is ai.onnx */
    const struct op_desc *desc;
    int n_in, n_out;
    int n_captures; /* outer values that subgraphs of this node use: they follow the n_in inputs in `in` */
    int *in, *out;  /* value indices in the graph; -1: absent */
    struct op_attr *attrs;
    int n_attrs;
    void *state; /* made by prepare, freed by release */
    struct op_graph *graph;
};

/* --- running ----------------------------------------------------------------------------------- */

struct op_ctx {
    const struct op_node *node;
    const void *state; /* node->state */
    int n_in, n_out;
    const struct op_tensor *const *in; /* in[i] is NULL if absent; i < n_in */
    struct op_tensor *const *out;      /* out[i] is NULL if nobody wants it */
    void *scratch;                     /* in run only; never NULL there */
    void *memo;                        /* in run of a step whose shapes are known: desc->memo_bytes that last, zeroed before the first run;
                                        * else NULL */
    const struct k_kernels *kern;      /* of the model's ISA level; take it through op__kern */
    struct op_exec *exec;
};

/* The kernels (ops/kern/kern.h) that this node is to run with. */
const struct k_kernels *k_default(void);
static inline const struct k_kernels *op__kern(const struct op_ctx *ctx) {
    return ctx->kern ? ctx->kern : k_default();
}

/* Sets the error (printf form; the node's operator and name are put in front) and returns code. */
enum op_status op__fail(const struct op_ctx *ctx, enum op_status code, const char *format, ...) __attribute__((format(printf, 3, 4)));

/* Sets out[i] in infer; nothing if out[i] is NULL. */
void op__set(const struct op_ctx *ctx, int i, enum op_type dtype, int rank, const int64_t *dims);
void op__set_like(const struct op_ctx *ctx, int i, int j); /* out[i] like in[j]: kind, dtype, dims */

/* In run of an OP_F_DYNAMIC operator: gives out[i] this type, shape and memory. OP_NOMEM and OP_LIMIT are possible. */
enum op_status op__output(const struct op_ctx *ctx, int i, enum op_type dtype, int rank, const int64_t *dims);
/* The same for a sequence or optional of n items: zeroed, the caller gives each its memory with op__item or op__copy. */
enum op_status op__output_items(const struct op_ctx *ctx, int i, enum op_kind kind, enum op_type dtype, int64_t n);
enum op_status op__item(const struct op_ctx *ctx, struct op_tensor *item, enum op_type dtype, int rank, const int64_t *dims);
/* Makes dst a deep copy of src that lives until the end of this run. */
enum op_status op__copy(const struct op_ctx *ctx, struct op_tensor *dst, const struct op_tensor *src);
/* Memory until the end of this run, for the bytes of strings. NULL if there is none: return OP_NOMEM. */
void *op__run_alloc(const struct op_ctx *ctx, size_t bytes);

/* Runs fn(arg, task) for each task in [0, n_tasks) on the session's threads. Work is split by shape only, never by the number of
 * threads: a sum that spans tasks is added up in the order of the tasks. */
void op__parallel(const struct op_ctx *ctx, int64_t n_tasks, void (*fn)(void *arg, int64_t task), void *arg);
int op__n_threads(const struct op_ctx *ctx);

/* Runs a subgraph attribute of this node (If, Loop, Scan) on n_inputs borrowed formal inputs; outputs live until the end of this
 * run. The executor finds the outer values. Counts against the run's step budget and memory cap. */
enum op_status op__run_graph(const struct op_ctx *ctx, const struct op_graph *g, const struct op_tensor *inputs, int n_inputs,
                             struct op_tensor *outputs, int n_outputs);
/* Gives back the memory of an output of op__run_graph that is done with, before the run ends: for who runs a graph many times. */
void op__give_back(const struct op_ctx *ctx, const struct op_tensor *t);
/* Makes output i the tensor t: an output of op__run_graph is handed over (give it up), any other is copied. Of a sequence or
 * optional the list is copied, its tensors live until the end of the run. */
enum op_status op__take(const struct op_ctx *ctx, int i, const struct op_tensor *t);
int op__graph_n_inputs(const struct op_graph *g);
int op__graph_n_outputs(const struct op_graph *g);
/* What the file says about output i of a subgraph: kind, dtype (OP_UNDEFINED: nothing), rank (-1: nothing) and dims (-1: symbolic). */
void op__graph_output(const struct op_graph *g, int i, struct op_tensor *dst);

/* 64 random bits of this run, for RandomNormal and its kin without a seed attribute. */
uint64_t op__random(const struct op_ctx *ctx);

/* --- the descriptor ---------------------------------------------------------------------------- */

enum op_flag {
    OP_F_DYNAMIC = 1, /* an output's shape is known only by computing it */
    OP_F_VIEW = 2,    /* output 0 is input 0's memory in another shape (Reshape, Identity …): run is not called */
    OP_F_RANDOM = 4,  /* neither folded nor shared */
    OP_F_CONTROL = 8, /* has subgraphs */
    OP_F_SHAPE = 16,  /* needs its inputs' shapes only: folded as soon as they are known (Shape, Size) */
    OP_F_LAZY = 32    /* prepare takes data by op__prepare_data only: in[i]->data may be NULL, so that weights found packed in a cache are never read */
};

struct op_prepare {
    struct op_node *node;
    int n_in;
    const struct op_tensor *const *in; /* constant inputs, living as long as the model; NULL where not constant or absent */
    const char *cpu;                   /* the ISA level of this model */
    size_t packed_bytes;               /* prepare adds what it allocated, but for op__pack_alloc */
    uint64_t consumed;                 /* prepare sets bit i when input i's data is not read any more (it was packed) */
    struct op_packs *packs;            /* of the model; for op__pack_alloc */
    struct op_error *err;
};
/* Memory for a packed form of a constant input, 64-byte aligned, that lives as long as the model and is given back with it. `kind` names the
 * form, and anything that changes it beside model, node, ISA level and precision. *filled: it comes complete from the cache of packed weights
 * (op_load_options.cache) and may only be read; else the caller fills it. NULL without memory. */
void *op__pack_alloc(struct op_prepare *p, const char *kind, size_t bytes, bool *filled);
/* The data of input i in a prepare of an operator with OP_F_LAZY. NULL without memory, or where it is no constant. */
const void *op__prepare_data(struct op_prepare *p, int i);
/* The error of prepare and upgrade; returns code. */
enum op_status op__node_fail(struct op_error *err, const struct op_node *n, enum op_status code, const char *format, ...)
    __attribute__((format(printf, 4, 5)));

struct op_desc {
    const char *name;
    const char *domain; /* "" (ai.onnx), "ai.onnx.ml", "com.microsoft", "quern" */
    int since, until;   /* opsets of its domain that it takes (with upgrade); until 0: no end */
    int in_min, in_max; /* in_max -1: variadic */
    int out_min, out_max;
    unsigned flags;
    unsigned inplace; /* bit i: output 0 may use input i's memory when this is its last use and the sizes are equal */
    enum op_status (*upgrade)(struct op_graph *g, struct op_node *n, int opset, struct op_error *err);
    enum op_status (*prepare)(struct op_prepare *p);
    void (*release)(void *state);
    enum op_status (*infer)(struct op_ctx *ctx);
    bool (*is_view)(const struct op_ctx *ctx); /* for these shapes, of as many bytes as input 0's, it is OP_F_VIEW; may be NULL */
    size_t memo_bytes; /* what run has worked out of shapes (and of data that infer needed), for the next run of the same plan */
    size_t (*scratch)(const struct op_ctx *ctx); /* shapes are valid as in run, data is not */
    enum op_status (*run)(struct op_ctx *ctx);
    enum op_status (*ref)(struct op_ctx *ctx);
    void (*cost)(const struct op_ctx *ctx, double *flops, double *bytes); /* NULL: no flops; the bytes of inputs and outputs */
    enum op_status (*grad)(struct op_grad *g); /* emits the nodes of the backward pass (grad.h); NULL: training refuses the operator */
};

/* Descriptors are found through a linker section, so that adding a file adds an operator. */
#define OP_REGISTER(desc)                                                                          \
    __attribute__((used, section("quern_ops"))) static const struct op_desc *const op__registered_##desc = &desc

const struct op_desc *op__desc_find(const char *domain, const char *name, int opset);

/* --- for upgrade and passes -------------------------------------------------------------------- */

/* Takes attribute `name` (ints or an int) away and gives its values as a constant i64 vector at input `index` (absent inputs in
 * between become -1). Nothing if the attribute is absent. */
enum op_status op__attr_to_input(struct op_graph *g, struct op_node *n, const char *name, int index, struct op_error *err);
/* The same for a float attribute: a scalar constant of type dtype. */
enum op_status op__attr_float_to_input(struct op_graph *g, struct op_node *n, const char *name, int index, enum op_type dtype,
                                       struct op_error *err);
enum op_status op__attr_set_int(struct op_graph *g, struct op_node *n, const char *name, int64_t value);
enum op_status op__attr_set_float(struct op_graph *g, struct op_node *n, const char *name, float value);
enum op_status op__attr_set_string(struct op_graph *g, struct op_node *n, const char *name, const char *value);
enum op_status op__attr_set_ints(struct op_graph *g, struct op_node *n, const char *name, const int64_t *values, int64_t count);
/* Copies of the nodes as they are now, attributes included: what becomes of them in the graph does not matter. */
enum op_status op__attr_set_nodes(struct op_graph *g, struct op_node *n, const char *name, struct op_node *const *nodes, int64_t count);
enum op_status op__attr_set_floats(struct op_graph *g, struct op_node *n, const char *name, const float *values, int64_t count);
void op__attr_remove(struct op_node *n, const char *name);

/* --- arithmetic that cannot overflow unseen ---------------------------------------------------- */

static inline bool op__mul(int64_t a, int64_t b, int64_t *dst) { /* false on overflow */
    return !__builtin_mul_overflow(a, b, dst);
}
/* An axis in [-rank, rank) as one in [0, rank); -1 if it is out of range. */
static inline int op__axis(int64_t axis, int rank) {
    if (axis < -rank || axis >= rank) return -1;
    return (int)(axis < 0 ? axis + rank : axis);
}
/* numpy's broadcast of two shapes; false if they do not fit or the rank is beyond OP_RANK_MAX. */
bool op__broadcast(int rank_a, const int64_t *a, int rank_b, const int64_t *b, int *rank, int64_t *dims);

/* binary16 and bfloat16, round to nearest even. */
float op__f16_to_f32(uint16_t h);
uint16_t op__f32_to_f16(float f);
static inline float op__bf16_to_f32(uint16_t h) {
    union {
        uint32_t u;
        float f;
    } v = {.u = (uint32_t)h << 16};
    return v.f;
}
uint16_t op__f32_to_bf16(float f);

/* --- types of a byte and less (narrow.c) -------------------------------------------------------- */

enum op_round { OP_ROUND_UP, OP_ROUND_DOWN, OP_ROUND_NEAREST }; /* of f8e8m0 */

static inline bool op__is_narrow(enum op_type type) {
    return type >= OP_F8E4M3FN && type <= OP_I2;
}
static inline bool op__is_narrow_int(enum op_type type) {
    return type == OP_U4 || type == OP_I4 || type == OP_U2 || type == OP_I2;
}
static inline bool op__is_narrow_float(enum op_type type) {
    return op__is_narrow(type) && !op__is_narrow_int(type);
}
float op__narrow_to_f32(enum op_type type, uint8_t code); /* of any narrow type, integers too */
/* Of a narrow float. Beyond its range: the largest value if `saturate`, else infinity or NaN, as the type has them. */
uint8_t op__f32_to_narrow(enum op_type type, float v, bool saturate, enum op_round round);
int op__type_bits(enum op_type type); /* as TensorProto stores an element */
int64_t op__packed_bytes(enum op_type type, int64_t count);
void op__unpack(enum op_type type, uint8_t *dst, const uint8_t *packed, int64_t count); /* of types below 8 bits */
void op__pack(enum op_type type, uint8_t *packed, const uint8_t *src, int64_t count);

#endif
