/* step.h: what a step's file sees. A step is one file:
 *
 *   struct blur { int32_t radius; };
 *   static const struct w_param params[] = {
 *       {"radius", W_PARAM_INT, offsetof(struct blur, radius), .min = 1, .max = 64, .deflt = 2,
 * .help = "pixels"}, {0}}; static bool check(struct w_step *s, const struct w_spec *in, struct
 * w_spec *out, struct w_error *err) { … types and shapes … } static bool apply(const struct w_step
 * *s, struct w_row *row, const struct w_value *in, struct w_value *out, struct w_error *err) static
 * const struct w_step_desc desc = {.name = "blur", .summary = "…", .params = params, .state_bytes =
 * sizeof(struct blur), .takes = W_TAKES(W_IMAGE), .gives = W_IMAGE, .check = check, .apply =
 * apply}; W_STEP(desc);
 *
 * The table reads the parameters (type, range, choice, file inside the model's folder) and refuses
 * unknown keys with the nearest name. check sees what the step before gives, as far as it is known
 * at load, and says what this one gives. */
#ifndef QUERN_WORKER_STEP_H
#define QUERN_WORKER_STEP_H

#include <jansson.h>

#include "worker/pipeline/pipeline.h"

enum w_param_kind {
    W_PARAM_INT,    /* int32_t */
    W_PARAM_DOUBLE, /* double */
    W_PARAM_BOOL,   /* bool */
    W_PARAM_CHOICE, /* int32_t: the index in choices */
    W_PARAM_FLOATS, /* struct w_floats: a number or a list of 1 to W_FLOATS_MAX */
    W_PARAM_TEXT,   /* const char * */
    W_PARAM_FILE,   /* const char *: path of a file that exists inside the model's folder */
    W_PARAM_JSON /* json_t *, borrowed for the life of the pipeline: the step's own parse reads it
                  */
};

#define W_FLOATS_MAX 16
struct w_floats {
    int32_t n; /* 0: not given */
    double v[W_FLOATS_MAX];
};

struct w_param {
    const char *name; /* NULL ends the table */
    enum w_param_kind kind;
    size_t offset;       /* in the step's state */
    double min, max;     /* of INT, DOUBLE and each of FLOATS; both 0: any finite number */
    double deflt;        /* of INT, DOUBLE, BOOL, CHOICE (an index) */
    const char *choices; /* "rgb bgr gray" */
    bool required;
    const char *help;
};

/* What is known of a value before any input: -1 or rank -1 where it is not known. */
struct w_spec {
    enum w_type type;
    int32_t w, h, channels; /* IMAGE */
    enum w_color color;
    int32_t rate;       /* AUDIO */
    enum op_type dtype; /* TENSOR; OP_UNDEFINED: not known */
    int rank;
    int64_t dims[OP_RANK_MAX];
    int8_t activated;
};

struct w_step_desc;

struct w_step {
    const struct w_step_desc *desc;
    void *state; /* state_bytes, zeroed, then the defaults, then what was given */
    int index;   /* from 0, for messages */
    const char *as, *from;
    const struct w_pipeline *pipeline;
    const char *folder; /* NULL: none */
};

struct w_step_desc {
    const char *name, *summary;
    const struct w_param *params;
    size_t state_bytes;
    unsigned takes;    /* bits of W_TAKES */
    enum w_type gives; /* where check does not say otherwise */
    bool runs;         /* this is where the engine is called: no apply */
    bool (*parse)(struct w_step *s, json_t *json,
                  struct w_error *err); /* after the table; NULL: nothing more to read */
    bool (*check)(struct w_step *s, const struct w_spec *in, struct w_spec *out,
                  struct w_error *err);
    bool (*apply)(const struct w_step *s, struct w_row *row, const struct w_value *in,
                  struct w_value *out, struct w_error *err);
    void (*free)(void *state); /* what parse and check allocated; NULL: nothing */
};

#define W_TAKES(type) (1u << (type))
#define W_STEP(desc)                                                                               \
    __attribute__((                                                                                \
        used,                                                                                      \
        section("quern_steps"))) static const struct w_step_desc *const w__registered_##desc =     \
        &desc

const struct w_step_desc *w__step_find(const char *name);
const struct w_step_desc *w__step_at(size_t i); /* NULL past the last */

/* Reads json (an object) into state by the table. `where` opens the messages: `step 2 "resize"`. */
bool w__params_read(const struct w_param *params, json_t *json, void *state, const char *folder,
                    const char *where, struct w_error *err);
void w__params_free(const struct w_param *params, void *state); /* the strings */

#endif
