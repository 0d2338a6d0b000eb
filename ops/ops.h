/* ops.h: the engine's public manual. Loads ONNX models, runs them. Knows no Redis and no event loop.
 *
 *   struct op_error err;
 *   struct op_model *m = op_model_load("model.onnx", NULL, &err);   // one per model, shared by all threads
 *   struct op_session *s = op_session_create(m, NULL, &err);        // one per thread (lane)
 *   struct op_tensor in = {.dtype = OP_F32, .rank = 2, .dims = {1, 64}, .data = x};
 *   const struct op_tensor *out;
 *   if (op_session_run(s, &in, 1, &out, &err) != OP_OK) puts(err.text);
 *   // ... out[0].data, until the next run of s ...
 *   op_session_destroy(s);
 *   op_model_release(m);
 *
 * Threads: a model is immutable after load and serves any number of sessions at once; a session belongs to
 * one thread at a time. Same bits: for one ISA level and precision a row's result does not depend on the
 * batch it is in, its position or the number of threads.
 *
 * Errors: every call that can fail takes a struct op_error and says what was found and what was expected.
 * Nothing that comes from a file or a caller's tensor makes the process abort. */
#ifndef QUERN_OPS_H
#define QUERN_OPS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define OP_RANK_MAX 8
#define OP_ERROR_TEXT_MAX 480
#define OP_API __attribute__((visibility("default")))

/* --- errors ------------------------------------------------------------------------------------ */

/* name, what it is called in messages and JSON, what it means */
#define OP_STATUS_MAP(X)                                                                           \
    X(OK, "ok", "done")                                                                            \
    X(NEED_DATA, "need_data", "a shape depends on data that is not known yet (internal to planning)")\
    X(NOMEM, "no_memory", "out of memory, or beyond the memory cap")                               \
    X(IO, "io", "a file cannot be read or written")                                                \
    X(BAD_MODEL, "bad_model", "the file is not a well-formed ONNX model")                          \
    X(UNSUPPORTED, "unsupported", "well-formed, but an operator, opset, type or form is not supported")\
    X(BAD_SHAPE, "bad_shape", "shapes do not fit")                                                 \
    X(BAD_TYPE, "bad_dtype", "element types do not fit")                                           \
    X(BAD_VALUE, "bad_value", "a value or an attribute is out of its range")                       \
    X(LIMIT, "too_large", "a limit on size, depth, steps or time is exceeded")                     \
    X(CANCELLED, "cancelled", "the caller asked to stop")

enum op_status {
#define X(name, code, text) OP_##name,
    OP_STATUS_MAP(X)
#undef X
};

struct op_error {
    enum op_status code;
    char text[OP_ERROR_TEXT_MAX];
};

/* "bad_shape", … Never NULL. */
OP_API const char *op_status_name(enum op_status status);

/* --- tensors ----------------------------------------------------------------------------------- */

/* An element of a string tensor; not zero-terminated; the bytes belong to whoever owns the tensor. */
struct op_string {
    const char *data;
    size_t len;
};

/* Values are those of ONNX's TensorProto.DataType. X(name, value, bytes an element, short name). In memory the types of
 * 4 and 2 bits take a byte an element too, signed ones with their sign extended. */
#define OP_TYPE_MAP(X)                                                                             \
    X(F32, 1, 4, "f32")                                                                            \
    X(U8, 2, 1, "u8")                                                                              \
    X(I8, 3, 1, "i8")                                                                              \
    X(U16, 4, 2, "u16")                                                                            \
    X(I16, 5, 2, "i16")                                                                            \
    X(I32, 6, 4, "i32")                                                                            \
    X(I64, 7, 8, "i64")                                                                            \
    X(STRING, 8, sizeof(struct op_string), "string")                                               \
    X(BOOL, 9, 1, "bool")                                                                          \
    X(F16, 10, 2, "f16")                                                                           \
    X(F64, 11, 8, "f64")                                                                           \
    X(U32, 12, 4, "u32")                                                                           \
    X(U64, 13, 8, "u64")                                                                           \
    X(C64, 14, 8, "c64")                                                                           \
    X(C128, 15, 16, "c128")                                                                        \
    X(BF16, 16, 2, "bf16")                                                                         \
    X(F8E4M3FN, 17, 1, "f8e4m3fn")                                                                 \
    X(F8E4M3FNUZ, 18, 1, "f8e4m3fnuz")                                                             \
    X(F8E5M2, 19, 1, "f8e5m2")                                                                     \
    X(F8E5M2FNUZ, 20, 1, "f8e5m2fnuz")                                                             \
    X(U4, 21, 1, "u4")                                                                             \
    X(I4, 22, 1, "i4")                                                                             \
    X(F4E2M1, 23, 1, "f4e2m1")                                                                     \
    X(F8E8M0, 24, 1, "f8e8m0")                                                                     \
    X(U2, 25, 1, "u2")                                                                             \
    X(I2, 26, 1, "i2")

enum op_type {
    OP_UNDEFINED = 0,
#define X(name, value, size, text) OP_##name = value,
    OP_TYPE_MAP(X)
#undef X
};

enum op_kind { OP_KIND_TENSOR = 0, OP_KIND_SEQUENCE, OP_KIND_OPTIONAL };

/* A dense row-major tensor, or a sequence or optional of tensors. The struct owns nothing by itself: each
 * function says who owns `data` and `items`. Rank 0 is a scalar of one element. */
struct op_tensor {
    enum op_kind kind;
    enum op_type dtype; /* of a sequence: its items' */
    int rank;
    int64_t dims[OP_RANK_MAX];
    void *data;              /* 64-byte aligned where the engine made it, else aligned to the element */
    struct op_tensor *items; /* of a sequence or optional; an optional has 0 or 1 */
    int64_t n_items;
};

OP_API size_t op_type_size(enum op_type type);       /* bytes an element, 0 if unknown */
OP_API const char *op_type_name(enum op_type type);  /* "f32" */
OP_API enum op_type op_type_parse(const char *name); /* OP_UNDEFINED if unknown */
/* Element i of a tensor as a double (of a complex one: its i-th scalar); NaN for strings. */
OP_API double op_tensor_number(const struct op_tensor *t, int64_t i);
/* Elements; -1 when a dimension is negative or the product overflows. Zeros are left out of that product, as numpy does it: so no
 * product of some of the dims overflows where there is a count. */
OP_API int64_t op_tensor_count(const struct op_tensor *t);
OP_API int64_t op_tensor_bytes(const struct op_tensor *t);
/* "f32[1,3,224,224]" into dst; returns dst. */
OP_API char *op_tensor_describe(const struct op_tensor *t, char *dst, size_t dst_bytes);

/* Reads an ONNX TensorProto, SequenceProto or OptionalProto (a file of the ONNX backend cases) as the kind that
 * the caller expects. The result and everything in it is one owned value: op_tensor_free. */
OP_API enum op_status op_tensor_read_pb(const char *path, enum op_kind kind, struct op_tensor *dst, struct op_error *err);
OP_API void op_tensor_free(struct op_tensor *t); /* of a tensor that a function of this page gave as owned; zeroes it */

/* --- models ------------------------------------------------------------------------------------ */

struct op_load_options {
    const char *cpu;           /* ISA level "generic", "avx2", "avx512", "vnni", "amx", "neon"; NULL: QUERN_CPU, else what the machine has */
    bool reference;            /* every operator's plain-C reference and no passes: the oracle of the tests */
    uint64_t memory_bytes_max; /* cap on the memory of one plan or one run; 0: 8 GiB */
    uint64_t model_bytes_max;  /* cap on the file; 0: 16 GiB */
    const char *precision;     /* "fp32" (NULL, "auto" too); "bf16": products with constant weights round both sides to bf16, sums stay f32; "int8": fp32, for
                                  a model that is quantized: of any other it is refused */
    const char *cache;         /* folder for packed weights, made if it is not there: a model that was loaded before is not packed again. NULL: none */
    const char *passes;        /* only these rewriting passes, by name with commas between ("" for none); NULL: all. For finding which one is at fault */
};

/* A dimension of -1 is symbolic: symbols[i] is its name or NULL. Rank -1: the model does not say. */
struct op_io {
    const char *name;
    enum op_kind kind;
    enum op_type dtype;
    int rank;
    int64_t dims[OP_RANK_MAX];
    const char *symbols[OP_RANK_MAX];
    bool optional; /* an input with an initializer of the same name: may be left out */
};

struct op_model_info {
    const char *path;
    int64_t ir_version, opset;
    const char *producer;
    int n_nodes;         /* as in the file, subgraphs included */
    size_t weight_bytes; /* initializers as in the file */
    size_t packed_bytes; /* prepared copies held beside them */
    const char *precision; /* "fp32", "bf16", "int8" */
    const char *isa;     /* the level that its kernels run at */
    char sha256[65];     /* of the file */
};

struct op_model;

OP_API struct op_model *op_model_load(const char *path, const struct op_load_options *options, struct op_error *err);
/* The bytes are borrowed for the model's life; `folder` (NULL: none) is where external data may lie. */
OP_API struct op_model *op_model_load_memory(const void *bytes, size_t n_bytes, const char *folder, const struct op_load_options *options,
                                             struct op_error *err);
OP_API struct op_model *op_model_retain(struct op_model *m);
OP_API void op_model_release(struct op_model *m);        /* accepts NULL */
OP_API int op_model_n_inputs(const struct op_model *m);  /* those that are not initializers come first */
OP_API int op_model_n_outputs(const struct op_model *m);
OP_API const struct op_io *op_model_input(const struct op_model *m, int i);
OP_API const struct op_io *op_model_output(const struct op_model *m, int i);
OP_API void op_model_describe(struct op_model *m, struct op_model_info *dst);
OP_API const char *op_model_metadata(const struct op_model *m, const char *key); /* of metadata_props; NULL if absent */
/* 1 where rows can be stacked along dimension 0 of every input and every output keeps them apart there, 0 where they
 * cannot, -1 on error. Worked out from the shapes inferred for two batch sizes and a run on random rows, once. */
OP_API int op_model_batchable(struct op_model *m, struct op_error *err);

/* --- sessions ---------------------------------------------------------------------------------- */

struct op_session_options {
    int n_threads;               /* intra-operator threads; 0: 1 */
    const volatile bool *cancel; /* polled between nodes (a relaxed atomic load: set it with an atomic store); NULL: never */
    void (*on_node)(void *user, const char *op_type, const char *name, uint64_t ns, double flops, double bytes); /* a profile; NULL: none */
    void *user;
    bool any_shape; /* inputs may have other shapes than the model declares, as long as its graph takes them */
};

struct op_session;

OP_API struct op_session *op_session_create(struct op_model *m, const struct op_session_options *options, struct op_error *err);
OP_API void op_session_destroy(struct op_session *s); /* accepts NULL */
/* inputs[i] is the model's input i; trailing optional ones may be left out of n_inputs, and one of dtype OP_UNDEFINED is left out.
 * *outputs gets the model's outputs in order, valid until the next run or destroy. */
OP_API enum op_status op_session_run(struct op_session *s, const struct op_tensor *inputs, int n_inputs, const struct op_tensor **outputs,
                                     struct op_error *err);
/* Plans for these input shapes (data is not read) and runs nothing: the memory that a run takes, the floating-point operations. The
 * memory is the arena (values and scratch), and what earlier runs of these shapes took beyond it for values whose shapes depend on data:
 * before the first run nothing is known of those. Weights are the model's, shared by its sessions. */
OP_API enum op_status op_session_plan(struct op_session *s, const struct op_tensor *inputs, int n_inputs, size_t *peak_bytes, double *flops,
                                      struct op_error *err);
OP_API size_t op_session_bytes(const struct op_session *s); /* memory that the session holds now */

/* --- what is there ----------------------------------------------------------------------------- */

struct op_operator {
    const char *domain, *name; /* domain "" is ai.onnx */
    int since, until;          /* opsets of its domain; until 0: no end */
    bool gradient;             /* training goes through it */
    bool fast;                 /* it has a fast form beside the plain one */
    bool in_place;             /* it may write over an input that nobody else needs */
    bool dynamic;              /* its outputs' shapes are known only by computing them */
};
/* Calls fn for each, by domain and name. */
OP_API void op_each_operator(void (*fn)(void *user, const struct op_operator *o), void *user);
OP_API const char *op_isa(void); /* the best level of this machine, or what QUERN_CPU or op_isa_force force */
/* Makes `level` what op_isa says, and what models run at whose options name none. Before any other thread runs and any model is loaded. False
 * if this machine lacks the level. */
OP_API bool op_isa_force(const char *level);

#endif
