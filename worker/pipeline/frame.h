/* frame.h: the parts of a pipeline that load.c makes and frame.c walks. Internal to the folder. */
#ifndef QUERN_WORKER_PIPELINE_FRAME_H
#define QUERN_WORKER_PIPELINE_FRAME_H

#include "worker/pipeline/input.h"
#include "worker/pipeline/step.h"

#define W_STEPS_MAX 64

struct w_golden {
    json_t *input, *expect; /* borrowed from the pipeline's json */
    double tol;
};

struct w_pipeline {
    struct w_signature sig;
    bool has_sig;
    char *folder;          /* NULL: none */
    json_t *json;          /* what the steps' W_PARAM_JSON point into */
    int n_steps, last_run; /* last_run -1: none */
    struct w_step steps[W_STEPS_MAX];
    struct w_spec in[W_STEPS_MAX], out[W_STEPS_MAX]; /* what each step takes and gives */
    struct w_batch batch;
    const char *precision; /* NULL: not said */
    struct w_golden golden[W_GOLDEN_MAX];
    int n_golden;
};

struct w_named {
    const char *name;
    struct w_value value;
};

/* A row on its way. The row is its first member. */
struct w__frame {
    struct w_row row;
    struct w_source_of of;
    int at; /* the next step */
    struct w_value current;
    struct w_named named[W_STEPS_MAX + W_INPUTS_MAX];
    int n_named;
    struct op_tensor run_inputs[W_INPUTS_MAX];
};

/* What the frame asks the run step. Model input i comes from the value named *from ("." is the
 * current one); NULL: left out. False: the run names no inputs, and the job's input is decoded by
 * the model's signature. */
bool w__run_binds(const struct w_step *s);
const char *w__run_from(const struct w_step *s, int input);
const struct op_tensor *w__run_constant(const struct w_step *s, int input); /* NULL: none */
/* The outputs that the steps behind it see, the first as the current value; the index of output i,
 * -1 past the last. */
int w__run_output(const struct w_step *s, int i);

/* The spec of a value that is known by name where step s stands ("." is what flows into it). */
bool w__spec_of(const struct w_pipeline *p, const struct w_step *s, const char *name,
                struct w_spec *dst);
/* An output of the model as the steps behind the run see it: without the batch dimension where rows
 * are told apart. */
struct w_spec w__spec_of_output(const struct w_signature *sig, const struct op_io *io);

/* Opens a file that must lie inside folder, after links are followed. *real gets its path (PATH_MAX
 * bytes). */
bool w__path_inside(const char *folder, const char *name, char *real, struct w_error *err);

/* A value by name on this row's way ("." the current one); NULL: there is none. */
const struct w_value *w__frame_find(const struct w_row *row, const char *name);
/* The key of the result under which an answer of this type stands. */
const char *w__answer_key(enum w_type type);
/* One value as JSON. */
bool w__answer_value(struct w_text *t, const struct w_value *v, bool b64, struct w_error *err);
/* The whole result. answers: the JSON of the rows' answers with commas between; of one row just
 * that. */
bool w__answer_compose(const struct w_pipeline *p, struct w__frame *f, const struct w_text *answers,
                       enum w_type type, bool has_answer, struct w_error *err);
/* Decoding for steps: the references of the row being applied. */
const struct w_source_of *w__row_source(const struct w_row *row);

#endif
