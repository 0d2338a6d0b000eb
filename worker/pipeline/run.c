/* run.c: the step `run`: where the model is called. It has no apply: the frame stops here and hands
 * the tensors out.
 *
 *   {"run": {"in": {"image": ".", "sizes": "kept"}, "out": ["boxes", "scores"]}}
 *
 * `in` says for each input of the model which value it takes: "." is the current one, another
 * string a name given by "as" or an output of an earlier run, numbers are a constant. Left out, a
 * model with one input takes the current value; as the first step, the job's own tensors. `out`
 * names the outputs that the steps behind it see; the first becomes the current value. Left out:
 * all, in the model's order. */
#include "worker/pipeline/frame.h"

#include "worker/nearest.h"

#include <stdlib.h>
#include <string.h>

struct run {
    json_t *in, *out;
    json_t *model, *state; /* not supported: told so */
    bool binds;
    const char *from[W_INPUTS_MAX];
    struct op_tensor constants[W_INPUTS_MAX]; /* dtype OP_UNDEFINED: none */
    struct w_arena arena;                     /* of the constants */
    int outputs[W_INPUTS_MAX], n_outputs;
};

/* clang-format off */
static const struct w_param params[] = {
    {.name = "in", .kind = W_PARAM_JSON, .offset = offsetof(struct run, in), .help = "input name → value name (. is the current one), or numbers: a constant"},
    {.name = "out", .kind = W_PARAM_JSON, .offset = offsetof(struct run, out), .help = "names of outputs; the first becomes the current value"},
    {.name = "model", .kind = W_PARAM_JSON, .offset = offsetof(struct run, model), .help = "not supported yet: each run calls the folder's own model"},
    {.name = "state", .kind = W_PARAM_JSON, .offset = offsetof(struct run, state), .help = "not supported yet: send the state as an input, take it from the outputs"},
    {0}};
/* clang-format on */

bool w__run_binds(const struct w_step *s) {
    return ((const struct run *)s->state)->binds;
}
const char *w__run_from(const struct w_step *s, int input) {
    return ((const struct run *)s->state)->from[input];
}
const struct op_tensor *w__run_constant(const struct w_step *s, int input) {
    const struct op_tensor *t = &((const struct run *)s->state)->constants[input];
    return t->dtype == OP_UNDEFINED ? NULL : t;
}
int w__run_output(const struct w_step *s, int i) {
    const struct run *run = s->state;
    return i < run->n_outputs ? run->outputs[i] : -1;
}

static const char *next_io(void *user, size_t i) {
    const struct op_io *const *list = user;
    return list[i] ? list[i]->name : NULL;
}

/* The index of name in list, -1 with an error that names the nearest. */
static int find_io(const struct op_io *const *list, int n, const char *what, const char *model,
                   const char *name, struct w_error *err) {
    const struct op_io *ended[W_INPUTS_MAX + 1] = {NULL};
    for (int i = 0; i < n; i++) {
        if (!strcmp(list[i]->name, name)) return i;
        ended[i] = list[i];
    }
    const char *near = w__nearest(name, next_io, ended);
    w_fail(err, W_BAD_MODEL, "model \"%s\" has no %s \"%s\"%s%s%s", model, what, name,
           near ? "; did you mean \""
           : n  ? "; its first is \""
                : "",
           near ? near
           : n  ? list[0]->name
                : "",
           near || n ? "\"" : "");
    return -1;
}

enum { CONSTANT_BYTES_MAX = 64 << 20 };

/* Numbers in "in", as a tensor of the input's type. */
static bool read_constant(struct run *run, int i, const struct op_io *io, json_t *json,
                          struct w_error *err) {
    if (!json_is_number(json) && !json_is_array(json) && !json_is_boolean(json))
        return w_fail(err, W_BAD_MODEL, "\"in\": \"%s\" must name a value, be \".\", or be numbers",
                      io->name);
    char *text = json_dumps(json, JSON_ENCODE_ANY | JSON_COMPACT);
    if (!text) return w_fail(err, W_NO_MEMORY, "out of memory");
    if (!run->arena.bytes_max) w_arena_init(&run->arena, CONSTANT_BYTES_MAX);
    bool good = w_tensor_from_json(text, strlen(text), io->name, io->dtype, CONSTANT_BYTES_MAX,
                                   &run->arena, &run->constants[i], err);
    free(text);
    if (good) return true;
    err->code = W_BAD_MODEL;
    return w_fail_in(err, "\"in\": ");
}

static bool parse(struct w_step *s, json_t *json, struct w_error *err) {
    struct run *run = s->state;
    const struct w_signature *sig = &s->pipeline->sig;
    (void)json;
    if (!s->pipeline->has_sig) return true; /* check refuses it */
    if (run->model || run->state)
        return w_fail(err, W_BAD_MODEL, "\"%s\" is not supported by this version",
                      run->model ? "model" : "state");
    run->binds = run->in || s->index > 0;
    if (run->in && !json_is_object(run->in))
        return w_fail(err, W_BAD_MODEL, "\"in\" must be an object: input name → value name");
    const char *key;
    json_t *value;
    json_object_foreach(run->in, key, value) {
        int i =
            find_io(sig->inputs, sig->n_inputs + sig->n_optional, "input", sig->model, key, err);
        if (i < 0) return false;
        if (!json_is_string(value)) {
            if (!read_constant(run, i, sig->inputs[i], value, err)) return false;
            continue;
        }
        run->from[i] = json_string_value(value);
    }
    if (!run->in && run->binds) {
        if (sig->n_inputs != 1)
            return w_fail(err, W_BAD_MODEL,
                          "model \"%s\" has %d inputs: \"in\" must say what each takes", sig->model,
                          sig->n_inputs);
        run->from[0] = ".";
    }
    for (int i = 0; run->in && i < sig->n_inputs; i++)
        if (!run->from[i] && !run->constants[i].dtype)
            return w_fail(err, W_BAD_MODEL, "\"in\" says nothing of the model's input \"%s\"",
                          sig->inputs[i]->name);
    if (run->out && (!json_is_array(run->out) || !json_array_size(run->out) ||
                     json_array_size(run->out) > W_INPUTS_MAX))
        return w_fail(err, W_BAD_MODEL, "\"out\" must be a list of the model's outputs");
    run->n_outputs = run->out ? (int)json_array_size(run->out) : sig->n_outputs;
    for (int i = 0; i < run->n_outputs; i++) {
        const char *name = json_string_value(json_array_get(run->out, (size_t)i));
        if (run->out && !name) return w_fail(err, W_BAD_MODEL, "\"out\" must be a list of names");
        run->outputs[i] =
            run->out ? find_io(sig->outputs, sig->n_outputs, "output", sig->model, name, err) : i;
        if (run->outputs[i] < 0) return false;
    }
    return true;
}

/* Whether a tensor as specified can become what io wants; the messages are those of a job. */
static bool fits(const struct w_signature *sig, const struct op_io *io, const struct w_spec *spec,
                 struct w_error *err) {
    char want[200];
    w__io_describe(io, want, sizeof want);
    if (spec->dtype != OP_UNDEFINED && spec->dtype != io->dtype)
        return w_fail(err, W_BAD_MODEL, "model \"%s\": input \"%s\" is %s, the pipeline gives %s",
                      sig->model, io->name, want, op_type_name(spec->dtype));
    if (spec->rank < 0 || io->rank < 0) return true;
    bool has_batch = io->rank > 0 && (io->dims[0] < 0 || io->dims[0] == 1);
    int skip = io->rank - spec->rank;
    if (skip != 0 && !(skip == 1 && has_batch))
        return w_fail(err, W_BAD_MODEL,
                      "model \"%s\": input \"%s\" is %s, the pipeline gives a tensor of rank %d",
                      sig->model, io->name, want, spec->rank);
    for (int i = 0; i < spec->rank; i++) {
        int64_t dim = io->dims[i + skip];
        if (spec->dims[i] >= 0 && dim >= 0 && spec->dims[i] != dim &&
            !(i + skip == 0 && sig->batching != W_BATCH_NONE))
            return w_fail(err, W_BAD_MODEL,
                          "model \"%s\": input \"%s\" is %s, the pipeline gives %lld in dimension "
                          "%d, not %lld",
                          sig->model, io->name, want, (long long)spec->dims[i], i + skip,
                          (long long)dim);
    }
    return true;
}

static bool check(struct w_step *s, const struct w_spec *in, struct w_spec *out,
                  struct w_error *err) {
    const struct run *run = s->state;
    const struct w_signature *sig = &s->pipeline->sig;
    (void)in;
    for (int i = 0; run->binds && i < sig->n_inputs + sig->n_optional; i++) {
        struct w_spec spec;
        const struct op_tensor *t = &run->constants[i];
        if (t->dtype != OP_UNDEFINED) {
            spec = (struct w_spec){.type = W_TENSOR, .dtype = t->dtype, .rank = t->rank};
            memcpy(spec.dims, t->dims, sizeof spec.dims);
            if (!fits(sig, sig->inputs[i], &spec, err)) return false;
        }
        if (!run->from[i]) continue;
        if (!w__spec_of(s->pipeline, s, run->from[i], &spec))
            return w_fail(err, W_BAD_MODEL, "\"in\": no step before this one gives the name \"%s\"",
                          run->from[i]);
        if (spec.type != W_TENSOR)
            return w_fail(err, W_BAD_MODEL,
                          "\"in\": the input \"%s\" takes a tensor, \"%s\" is %s (an image becomes "
                          "a tensor by the step \"pixels\")",
                          sig->inputs[i]->name, run->from[i], w_type_name(spec.type));
        if (!fits(sig, sig->inputs[i], &spec, err)) return false;
    }
    if (run->n_outputs < 1)
        return w_fail(err, W_BAD_MODEL, "model \"%s\" has no outputs", sig->model);
    *out = w__spec_of_output(sig, sig->outputs[run->outputs[0]]);
    return true;
}

static void free_state(void *state) {
    w_arena_finish(&((struct run *)state)->arena);
}

/* Takes any type: with "in" the current value may be of no interest. */
static const struct w_step_desc desc = {.name = "run",
                                        .summary = "calls the model",
                                        .params = params,
                                        .state_bytes = sizeof(struct run),
                                        .takes = (1u << W_TYPE_N) - 1,
                                        .gives = W_TENSOR,
                                        .runs = true,
                                        .parse = parse,
                                        .check = check,
                                        .free = free_state};
W_STEP(desc);
