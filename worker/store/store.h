/* store.h: models by name. A store is a folder:
 *
 *   STORE/<name>/<version>/model.onnx   version: a whole number from 1; the highest is the latest
 *   STORE/<name>/<version>/model.json   the pipeline, golden samples, batch (optional)
 *   STORE/<name>/labels.json            {"prod": 3}: names for versions (optional)
 *
 * A model is asked for as `name`, `name@version` or `name@label`. Command-line tools also take the
 * path of an .onnx file or of a folder that holds a model.onnx; jobs may not.
 *
 *   struct w_model *m = w_model_open("resnet@prod", "store", NULL, &err); // a tool: blocking
 *   … op_session_create(m->op, …), w_pipeline_before(m->pipeline, …) …
 *   w_model_release(m);
 *
 *   struct w_store *s = w_store_create(&options, &err); // the daemon
 *   switch (w_store_get(s, "resnet", &asked, &m, &err)) { … } // never blocks
 *
 * A struct w_model is immutable after load (but what is marked as the loop's), shared by all
 * threads, and counted: whoever holds it keeps that version in memory, whatever happens on the
 * disk. So a new version is picked up while the jobs on the old one end in peace. */
#ifndef QUERN_WORKER_STORE_H
#define QUERN_WORKER_STORE_H

#include <stdatomic.h>

#include "worker/pipeline/pipeline.h"

#define W_MODEL_NAME_MAX 128

struct w_model_options {
    uint64_t run_bytes_max; /* memory of one run; 0: the engine's default */
    bool no_golden;         /* load only: the golden samples are not run */
    const char *precision; /* goes before model.json's: op_load_options.precision; NULL: that one */
    const char *cache;     /* folder for packed weights (op_load_options.cache); NULL: none */
    const char *staging; /* folder for private copies; NULL: $CACHE_DIRECTORY, $TMPDIR, /var/tmp */
};

struct w_model {
    char name[W_MODEL_NAME_MAX + 1];
    int64_t version;       /* 0: a path outside a store */
    char version_text[24]; /* "3"; "" */
    char *folder;          /* where model.json may lie; NULL: none */
    char *path;            /* of the .onnx file */
    struct op_model *op;
    struct w_pipeline *pipeline;
    struct w_signature sig;
    struct op_model_info info;
    struct w_batch batch;
    char *manifest; /* JSON object text for envelopes: model hash, version, isa, precision, build */
    size_t bytes;   /* memory that it holds, sessions not counted */
    double load_ms;
    uint64_t serial; /* of this load, unique in the process */
    _Atomic unsigned refs;
    _Atomic bool retired;  /* replaced or dropped: sessions of it are to be let go */
    double ms_per_job;     /* the daemon's loop: measured, moving average; 0: not yet */
    uint64_t cost_told_ms; /* the daemon's loop */
    void *mapping;         /* of the private copy of the file */
    size_t mapping_bytes;
};

/* Where a model lies. */
struct w_model_place {
    char name[W_MODEL_NAME_MAX + 1];
    int64_t version;
    char folder[4096]; /* "": none */
    char path[4096];
};

/* Finds M (name, name@version, name@label, or a path) without loading it. store NULL or "": paths
 * only. unknown_model with the nearest name, or the versions that are there. */
bool w_model_find(const char *m, const char *store, struct w_model_place *dst, struct w_error *err);
/* Loads what a place names. NULL: bad_model (a golden sample that fails is one), unsupported,
 * no_memory. */
struct w_model *w_model_load(const struct w_model_place *place,
                             const struct w_model_options *options, struct w_error *err);
/* Both in one; the caller owns one reference. options NULL: defaults. */
struct w_model *w_model_open(const char *m, const char *store,
                             const struct w_model_options *options, struct w_error *err);
struct w_model *w_model_retain(struct w_model *m);
void w_model_release(struct w_model *m); /* accepts NULL */

/* Whether text may be a model's name: [A-Za-z0-9_][A-Za-z0-9_.-]*, at most W_MODEL_NAME_MAX. */
bool w_model_name_valid(const char *text, size_t len);
/* An engine's error as a job's. */
bool w_fail_op(struct w_error *err, const struct op_error *op, const char *model);

/* --- listing ---------------------------------------------------------------------------------- */

struct w_listed {
    char name[W_MODEL_NAME_MAX + 1];
    int64_t version;
    char labels[128]; /* comma-separated; "": none */
    uint64_t bytes;   /* of the .onnx file */
};
/* Every version of every model of a store, names ascending, versions descending. From malloc. */
bool w_store_list(const char *folder, struct w_listed **out, size_t *n, struct w_error *err);

/* --- the daemon's store ----------------------------------------------------------------------- */

struct w_store;

struct w_store_options {
    const char *folder; /* NULL or "": no store; only aliases */
    uint32_t poll_ms;   /* how often it is looked at; 0: never by itself */
    uint64_t bytes_max; /* loaded models together; 0: half of the memory */
    struct w_model_options model;
    /* Something changed: ask again for what was LOADING. Called on the store's thread. */
    void (*changed)(void *ctx);
    /* A model was loaded (err NULL), refused (err), or dropped (model NULL, err NULL). On the
     * store's thread. */
    void (*event)(void *ctx, const char *name, int64_t version, const struct w_model *model,
                  const struct w_error *err);
    void *ctx;
};

/* Reads the index, starts the thread that watches the folder and loads. NULL: the folder cannot be
 * read. */
struct w_store *w_store_create(const struct w_store_options *options, struct w_error *err);
void w_store_destroy(
    struct w_store *s); /* joins the thread; models in use live on until released; accepts NULL */
/* Serves the model at a path under a name that jobs may use (quern score --model PATH). */
bool w_store_alias(struct w_store *s, const char *name, const char *path, struct w_error *err);
void w_store_tune(struct w_store *s, uint32_t poll_ms, uint64_t bytes_max);

enum w_store_answer { W_STORE_READY, W_STORE_LOADING, W_STORE_FAILED };
/* READY: *model is retained for the caller. LOADING: `changed` will come; ask again then. FAILED:
 * err (unknown_model, bad_model, …). Never blocks on the disk: any thread may call. Without a
 * version or label it is the newest that loads; while a newer one is still being loaded, the one
 * before it. *asked is the caller's, 0 at first: an unknown name fails only after a look at the
 * folder that began after the first asking, since it may have been put there a moment ago; NULL: by
 * the last look. */
enum w_store_answer w_store_get(struct w_store *s, const char *spec, uint64_t *asked,
                                struct w_model **model, struct w_error *err);
/* The loaded models as a JSON array text for the worker's card; returns its length, 0 if it does
 * not fit. */
size_t w_store_card(struct w_store *s, char *dst, size_t dst_bytes);

#endif
