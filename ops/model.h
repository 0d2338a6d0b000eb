/* model.h: a loaded model, its limits, and the stages of loading. Internal to ops/.
 *
 *   map the file → onnx_read (graphs, constants) → functions expanded → upgrade each node → passes → prepare each node
 *
 * After that nothing changes but the reference count and the memoised answers (hash, batchable), under `lock`. */
#ifndef QUERN_OPS_MODEL_H
#define QUERN_OPS_MODEL_H

#include <pthread.h>
#include <stdatomic.h>

#include "ops/graph.h"
#include "ops/pack.h"

/* Limits on what a file may ask for, each far beyond the largest models in use. */
#define OP__DEPTH_MAX 64            /* nesting of messages, subgraphs, function calls */
#define OP__NODES_MAX (1 << 20)     /* of all graphs, functions expanded */
#define OP__VALUES_MAX (1 << 23)    /* of one graph */
#define OP__NAME_MAX 65536          /* bytes of a name */
#define OP__NODE_IO_MAX 65536       /* inputs or outputs of a node */
#define OP__ELEMENTS_MAX ((int64_t)1 << 40)
#define OP__META_BYTES_MAX ((size_t)2 << 30) /* of the graph in memory, weights apart */
#define OP__MEMORY_DEFAULT ((uint64_t)8 << 30)
#define OP__FILE_DEFAULT ((uint64_t)16 << 30)
#define OP__STEPS_MAX 10000000      /* nodes executed in one run, loops included */

struct k_kernels;

struct op_opset {
    const char *domain;
    int64_t version;
};

/* What tells one state of a file from another without reading it. */
struct op_file_id {
    uint64_t dev, ino;
    int64_t bytes, mtime_ns, ctime_ns;
};

struct op_mapping { /* a mapped file: the model's or one with external data */
    struct op_mapping *next;
    char *name;
    const char *data;
    size_t bytes;
    struct op_file_id id;
    bool borrowed; /* the caller's memory */
};

struct op_meta { /* of metadata_props */
    const char *key, *value;
};

struct op_model {
    atomic_int refs;
    char *path;   /* "" for memory */
    int folder;   /* descriptor of the folder for external data, -1: none */
    struct op_load_options options;
    char *cache_folder; /* options.cache */
    char cpu[16];
    struct op_arena arena;
    struct op_mapping *mappings; /* the last is the model's own */
    struct op_const *constants;
    struct op_graph *graph;
    struct op_io *inputs, *outputs;
    struct op_value *output_infos; /* declared types of the outputs */
    bool inputs_open;  /* inputs with an initializer are not constants but inputs with a default */
    struct op_model *open; /* the same file with inputs_open, loaded when a caller first overrides one */
    const struct k_kernels *kern;
    const char *bytes; /* of the file */
    size_t n_bytes;
    int64_t ir_version;
    const char *producer;
    struct op_opset *opsets;
    int n_opsets;
    struct op_meta *meta;
    int n_meta;
    enum op_status (*transform)(struct op_model *m, void *user, struct op_error *err); /* after reading, before the passes; NULL: none */
    void *transform_user;
    struct op_model *source; /* whose bytes it was read from, kept alive; NULL: its own */
    int n_nodes;
    int n_inputs_required; /* of graph->inputs, those without an initializer */
    size_t weight_bytes, packed_bytes;
    struct op_packs packs;
    struct op_cache *cache; /* that packs lie in; NULL: none */
    bool bf16;              /* options.precision: the pass bf16 runs */
    bool fetch_failed;      /* no memory for a lazy constant */
    pthread_mutex_t lock;
    char sha256[65];
    int batchable; /* -2: not yet asked */
};

/* builder.c: a model from ONNX bytes in memory, which are copied. */
struct op_model *op__model_from_bytes(const void *bytes, size_t n, struct op_error *err);
/* model.c: the same file read again, with the graph changed by `transform` before the passes run, and without the fusions, which
 * have no gradients. */
struct op_model *op__model_transformed(struct op_model *m, enum op_status (*transform)(struct op_model *m, void *user, struct op_error *err), void *user,
                                       struct op_error *err);
/* model.c: a model whose bytes lie in a mapping of a file or memfd, which it takes over (unmapped, also on error). */
struct op_model *op__model_load_mapping(void *map, size_t n_bytes, struct op_error *err);
/* batch.c: the outputs' types and shapes, -1 where they follow the batch or another symbol; false where they depend on data. */
bool op__output_shapes(struct op_model *m, struct op_tensor *out);
/* onnx_read.c: parses the mapped bytes into m->graph. */
enum op_status op__onnx_read(struct op_model *m, const char *bytes, size_t n, struct op_error *err);
/* Sets an error that names the model. */
enum op_status op__model_fail(const struct op_model *m, struct op_error *err, enum op_status code, const char *format, ...)
    __attribute__((format(printf, 4, 5)));
int64_t op__model_opset(const struct op_model *m, const char *domain); /* 0 if not imported */
/* The variant of m whose initialized inputs can be overridden; lives as long as m. NULL on error. */
struct op_model *op__model_open(struct op_model *m, struct op_error *err);
/* SHA-256 of bytes in hex, piece by piece, so that a mapped file need not be in memory whole; false without memory. */
bool op__hash_mapped(const struct op_model *m, const char *data, size_t n, char hex[65]);
struct stat;
struct op_file_id op__file_id(const struct stat *info);
/* Gives the whole pages of a range of m's mapped files back; they are read again from the file if somebody looks. */
void op__mapped_give_back(const struct op_model *m, const char *data, size_t bytes);
/* external.c: a mapped piece of a file in the model's folder. */
enum op_status op__external_map(struct op_model *m, const char *location, uint64_t offset, uint64_t length, const char **data, size_t *bytes,
                                struct op_error *err);

#endif
