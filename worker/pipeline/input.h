/* input.h: decoding what a job sends for a model's input, and the rules of rank. Internal to the
 * folder. */
#ifndef QUERN_WORKER_PIPELINE_INPUT_H
#define QUERN_WORKER_PIPELINE_INPUT_H

#include "worker/pipeline/scan.h"

/* What a decoder needs to know of the row that it works for. */
struct w_source_of {
    struct w_arena *arena;
    w_fetch_fn *fetch; /* NULL: references are denied */
    void *user;
    const char *model; /* for messages */
};

/* "f32[N,3,224,224]" */
const char *w__io_describe(const struct op_io *io, char *dst, size_t n);

/* Whether a raw key (with quotes) is this name, or one of those that a tensor's object may have. */
bool w__key_is(struct w_span key, const char *name);
bool w__key_of_value(struct w_span key);

/* One value of JSON (nested numbers; {"dtype","shape","b64"}, {"dtype","shape","data"}; {"ref", …})
 * as a tensor of io's type. Its shape is as sent: w__fit comes after. */
bool w__decode_tensor(const struct w_source_of *of, const struct op_io *io, struct w_span json,
                      struct op_tensor *dst, struct w_error *err);
/* Bytes of a file or key: NPY by its magic, else raw little-endian elements of `dtype` and `shape`
 * (rank -1: not said, then worked out from the model's own). */
bool w__decode_bytes(const struct w_source_of *of, const struct op_io *io, struct w_span bytes,
                     enum op_type dtype, const struct op_tensor *shape, struct op_tensor *dst,
                     struct w_error *err);
/* The bytes of {"b64": …} or {"ref": …}, or of "data:…;base64,…"; is_ref: a string is a reference.
 */
bool w__decode_blob(const struct w_source_of *of, struct w_span json, bool is_ref,
                    struct w_span *bytes, struct w_error *err);
/* A tensor of a row source as the type that the model wants: widening and float to float only. */
bool w__convert(const struct w_source_of *of, enum op_type dtype, struct op_tensor *t,
                struct w_error *err);

/* Gives t the batch dimension where it has none, gives a flat row the model's shape, checks every
 * dimension. *n_rows (0: none known yet) is set by the first input that has a batch dimension, and
 * compared by the others. */
bool w__fit(const struct w_signature *sig, const struct op_io *io, bool flat, struct op_tensor *t,
            int64_t *n_rows, struct w_error *err);

/* All inputs of the model (in its order, left-out optional ones OP_UNDEFINED) from a job's input.
 */
bool w__decode_inputs(const struct w_source_of *of, const struct w_signature *sig,
                      const struct w_input *input, struct op_tensor *dst, int64_t *n_rows,
                      struct w_error *err);

#endif
