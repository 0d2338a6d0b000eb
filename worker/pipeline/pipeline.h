/* pipeline.h: from a job's input to the model's tensors, from its output tensors to the answer.
 *
 *   struct w_error err;
 *   struct w_signature sig;
 *   w_signature_of(model, &sig, &err);
 *   struct w_pipeline *p = w_pipeline_load("store/resnet/3", &sig, &err);   // once a model: shared
 * by all lanes
 *
 *   struct w_row *row = w_row_create(512 << 20);                            // slots of a lane,
 * used again and again enum w_next next = w_pipeline_before(p, row, &input, &err); while (next ==
 * W_NEXT_RUN) {            // several where a pipeline chains models
 *       ... stack row->inputs of many rows along dimension 0, run, give each its slice ...
 *       next = w_pipeline_after(p, row, slices, n_slices, &err);
 *   }
 *   if (next == W_NEXT_DONE) send(row->result.ptr, row->result.len);        // else err: this row
 * alone failed w_row_reset(row);
 *
 * Without a model.json the folder's pipeline is empty: the input gives the tensors, the tensors
 * give the result. The frame knows no step by name: a step is one file that ends in W_STEP(desc),
 * see step.h.
 *
 * Rows and batches: a value without the batch dimension is one row, with it several, told apart by
 * rank. row->inputs always have the batch dimension, row->n_rows of them in each input that has
 * one.
 *
 * Threads: a pipeline is immutable after load, any number of threads use it at once; a row belongs
 * to one thread at a time.
 *
 * NaN and infinity: JSON has no token for them, so none comes in as a number (NaN, Infinity are
 * bad_json), and a null is refused; base64 and references may carry them to the model. In results a
 * value that is not finite is `null` in JSON form and itself in base64. A score that is not finite
 * fails the row in `topk`, for it has no place in an order. */
#ifndef QUERN_WORKER_PIPELINE_H
#define QUERN_WORKER_PIPELINE_H

#include "worker/pipeline/value.h"

#define W_INPUTS_MAX 128
#define W_GOLDEN_MAX 64

/* --- what the model takes and gives ----------------------------------------------------------- */

enum w_batching {
    W_BATCH_NONE, /* whole tensors only: rows cannot be told apart (a scalar input, state along
                     another dimension) */
    W_BATCH_ONE,  /* dimension 0 is fixed at 1 in every input and output: several rows are several
                   * runs, and  w_pipeline_after takes their outputs put together
                   * (w_pipeline_run_rows  does that) */
    W_BATCH_ROWS  /* dimension 0 is symbolic and keeps rows apart: stack them */
};

struct w_signature {
    const char *model; /* for messages; borrowed for the life of what is made from it */
    enum w_batching batching;
    int n_inputs, n_outputs; /* inputs: those that must be given; optional ones follow */
    int n_optional;
    const struct op_io *inputs[W_INPUTS_MAX],
        *outputs[W_INPUTS_MAX]; /* borrowed: they live as long as the model */
};

/* Of a loaded model. bad_model where more than W_INPUTS_MAX inputs must be given, or there are more
 * outputs; optional inputs beyond that number cannot be given. */
bool w_signature_of(struct op_model *m, const char *name, struct w_signature *dst,
                    struct w_error *err);

/* --- loading ---------------------------------------------------------------------------------- */

struct w_pipeline;

/* Reads and checks folder/model.json (steps, types from step to step, shapes against the model,
 * ranges of parameters, files). No such file, or folder NULL: the empty pipeline. NULL on error:
 * bad_model, with the step, its place, the found and the expected. The signature is copied; what it
 * points at must outlive the pipeline. */
struct w_pipeline *w_pipeline_load(const char *folder, const struct w_signature *sig,
                                   struct w_error *err);
/* The same from text: json is the content of a model.json; folder (NULL: none) is where its files
 * are. sig NULL: a chain without `run` (quern pipeline apply, tests). */
struct w_pipeline *w_pipeline_parse(const char *json, size_t len, const char *folder,
                                    const struct w_signature *sig, struct w_error *err);
void w_pipeline_destroy(struct w_pipeline *p); /* accepts NULL */

enum w_pad { W_PAD_NONE, W_PAD_LONGEST, W_PAD_FIXED, W_PAD_BUCKET };
struct w_batch {
    int32_t max; /* rows; 0: not said */
    enum w_pad pad;
};
struct w_batch w_pipeline_batch(const struct w_pipeline *p);
const char *w_pipeline_precision(const struct w_pipeline *p); /* "fp32", "bf16", "int8", "auto" */
int w_pipeline_n_steps(const struct w_pipeline *p);           /* 0: the empty pipeline */
const char *w_pipeline_step_name(const struct w_pipeline *p, int i); /* "resize" */
const struct w_signature *w_pipeline_signature(const struct w_pipeline *p);

/* --- the input of a job ----------------------------------------------------------------------- */

/* Gives the bytes of a reference ("file:…", "redis:…") as a span that stays valid until the row is
 * reset (a mapping of the caller's, or memory of the row's arena). ref_denied, ref_not_found,
 * ref_failed, too_large. */
typedef bool w_fetch_fn(void *user, const char *ref, struct w_arena *arena, struct w_span *bytes,
                        struct w_error *err);

enum w_input_kind {
    W_INPUT_JSON, /* json: the raw text of a job's `input` */
    W_INPUT_REF,  /* json: the raw text of a job's `input_ref`: a string, or an object with "ref" */
    W_INPUT_VALUE /* value: of a row source */
};

struct w_input {
    enum w_input_kind kind;
    struct w_span json;
    const struct w_value *value;
    w_fetch_fn *fetch; /* NULL: references are denied */
    void *user;
};

/* Calls fn for each reference in the raw JSON of an input (is_ref: of an input_ref), decoded, so
 * that the loop can fetch what a lane cannot; fn returns false to stop. Returns how many there are;
 * 0 costs one search through the text. -1: not JSON. */
int w_input_refs(const char *json, size_t len, bool is_ref, bool (*fn)(void *user, const char *ref),
                 void *user);

/* --- a row's way ------------------------------------------------------------------------------ */

/* Called after each step with what it made; step -1 is the input as it came. */
typedef void w_trace_fn(void *user, int step, const char *name, const struct w_value *value);

struct w_row {
    struct w_arena arena; /* dies with w_row_reset */
    /* set by the caller after w_row_reset, before w_pipeline_before: */
    bool b64;        /* tensors in the result as base64 */
    bool no_outputs; /* leave "outputs" out of the result where the pipeline makes something of them
                        (bulk jobs) */
    struct w_span params; /* raw JSON of the job's params, for steps that heed them (topk: "k"); ptr
                             NULL: none */
    w_trace_fn *trace;
    void *trace_user;
    /* after W_NEXT_RUN: the tensors of the run, in the model's order; a left-out optional one has
     * dtype OP_UNDEFINED */
    struct op_tensor *inputs;
    int n_inputs;
    int64_t n_rows; /* along dimension 0 */
    /* after W_NEXT_DONE: */
    struct w_span result; /* a JSON object */
    struct w_value value; /* what the last step made (type TENSOR and the first output for the empty
                             pipeline) */
    struct op_tensor *outputs; /* as given to the last w_pipeline_after */
    int n_outputs;
    struct w__frame *frame; /* the engine's */
};

struct w_row *w_row_create(size_t bytes_max); /* bytes_max: of its arena. NULL: no memory */
void w_row_reset(struct w_row *row);          /* ready for the next job; options are cleared */
void w_row_destroy(struct w_row *row);        /* accepts NULL */

enum w_next { W_NEXT_FAILED, W_NEXT_RUN, W_NEXT_DONE };

/* Decodes the input and applies the steps up to the run. */
enum w_next w_pipeline_before(const struct w_pipeline *p, struct w_row *row,
                              const struct w_input *input, struct w_error *err);
/* outputs: this row's part of each of the model's outputs, batch dimension kept; borrowed until the
 * row is reset or goes to the next run, whichever is first. */
enum w_next w_pipeline_after(const struct w_pipeline *p, struct w_row *row,
                             const struct op_tensor *outputs, int n_outputs, struct w_error *err);

/* --- golden samples and explaining ------------------------------------------------------------ */

/* Runs the model on one row's inputs. outputs stay valid until the next call. */
typedef bool w_run_fn(void *user, const struct op_tensor *inputs, int n_inputs,
                      const struct op_tensor **outputs, int *n_outputs, struct w_error *err);

/* Runs the inputs that row holds after W_NEXT_RUN: in one run, or, where the model's batch is fixed
 * at 1 and there are several rows, in one run a row, the outputs put together in the row's arena.
 */
bool w_pipeline_run_rows(const struct w_pipeline *p, struct w_row *row, w_run_fn *run, void *user,
                         const struct op_tensor **outputs, int *n_outputs, struct w_error *err);
/* The whole way of one input in one call, with runs by `run`; the row holds the result. */
bool w_pipeline_run(const struct w_pipeline *p, struct w_row *row, const struct w_input *input,
                    w_run_fn *run, void *user, struct w_error *err);

int w_pipeline_n_golden(const struct w_pipeline *p);
/* Runs golden sample i and compares what is expected (each thing named in `expect` must be there;
 * numbers within tol, relative to 1 or to the number where that is larger). False: err says which
 * place differs, found and expected. */
bool w_pipeline_golden(const struct w_pipeline *p, int i, w_run_fn *run, void *user,
                       w_trace_fn *trace, void *trace_user, struct w_error *err);
const char *w_pipeline_golden_name(const struct w_pipeline *p,
                                   int i); /* its input file, or "input" */

/* --- JSON and tensors ------------------------------------------------------------------------- */

/* A growing text in an arena; failed is set, once and for good, when there is no memory. */
struct w_text {
    struct w_arena *arena;
    char *ptr;
    size_t len, size;
    bool failed;
};
void w_text_add(struct w_text *t, const char *bytes, size_t len);
void w_text_puts(struct w_text *t, const char *text);
void w_text_printf(struct w_text *t, const char *format, ...) __attribute__((format(printf, 2, 3)));
void w_text_string(struct w_text *t, const char *text,
                   size_t len); /* quoted and escaped; bytes that are not UTF-8 become U+FFFD */
/* The shortest text that reads back as the same float or double; null where not finite. */
void w_text_float(struct w_text *t, float value);
void w_text_double(struct w_text *t, double value);
/* {"dtype":"f32","shape":[1,10],"data":[…]} or with "b64". */
bool w_text_tensor(struct w_text *t, const struct op_tensor *tensor, bool b64, struct w_error *err);

/* Nested JSON numbers → a tensor of dtype in the arena, the shape from the nesting; name is for
 * messages. Numbers that an integer type cannot hold, ragged nesting, depth above OP_RANK_MAX:
 * refused with the place (`x[3][2]`). true and false for bool only. At most elements_max elements.
 */
bool w_tensor_from_json(const char *json, size_t len, const char *name, enum op_type dtype,
                        int64_t elements_max, struct w_arena *arena, struct op_tensor *dst,
                        struct w_error *err);

/* Strict RFC 4648 (padding required, no blanks). Returns the bytes written, or -1 with *at at the
 * offending character. dst has room for w_base64_decoded_max(len). */
static inline size_t w_base64_decoded_max(size_t len) {
    return len / 4 * 3;
}
int64_t w_base64_decode(const char *src, size_t len, uint8_t *dst, size_t *at);
size_t w_base64_encode(const uint8_t *src, size_t len,
                       char *dst); /* dst: (len + 2) / 3 * 4 characters */

#endif
