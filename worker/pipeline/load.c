/* load.c: model.json → an immutable pipeline: read, check every key, then let the types flow from
 * step to step, so that what can be known to be wrong before the first job is refused here, with
 * the step, its place, the found and the expected. */
#include "worker/pipeline/frame.h"

#include "worker/nearest.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

enum { MODEL_JSON_BYTES_MAX = 16 << 20 };

bool w__path_inside(const char *folder, const char *name, char *real, struct w_error *err) {
    char path[PATH_MAX], root[PATH_MAX];
    struct stat st;
    if (!folder)
        return w_fail(err, W_REF_DENIED,
                      "the file %.200s cannot be named here: this model has no folder", name);
    if (snprintf(path, sizeof path, "%s/%s", folder, name) >= (int)sizeof path ||
        !realpath(folder, root) || !realpath(path, real))
        return w_fail(err, W_REF_NOT_FOUND, "the file %.200s cannot be opened: %s", name,
                      strerror(errno));
    size_t n = strlen(root);
    if (name[0] == '/' || strncmp(real, root, n) || (real[n] != '/' && n > 1))
        return w_fail(err, W_REF_DENIED, "the file %.200s is outside the model's folder", name);
    if (stat(real, &st) || !S_ISREG(st.st_mode))
        return w_fail(err, W_REF_DENIED, "%.200s is not a regular file", name);
    return true;
}

/* --- specs ------------------------------------------------------------------------------------ */

struct w_spec w__spec_of_output(const struct w_signature *sig, const struct op_io *io) {
    struct w_spec spec = {.type = W_TENSOR, .dtype = io->dtype, .rank = io->rank};
    int skip = sig->batching != W_BATCH_NONE && io->rank > 0;
    if (spec.rank > 0) spec.rank -= skip;
    for (int i = 0; i < spec.rank; i++) spec.dims[i] = io->dims[i + skip];
    return spec;
}

bool w__spec_of(const struct w_pipeline *p, const struct w_step *s, const char *name,
                struct w_spec *dst) {
    if (!strcmp(name, ".")) return *dst = p->in[s->index], true;
    for (int i = s->index - 1; i >= 0; i--) {
        const struct w_step *before = &p->steps[i];
        if (before->as && !strcmp(before->as, name)) return *dst = p->out[i], true;
        for (int k = 0, output; before->desc->runs && (output = w__run_output(before, k)) >= 0;
             k++) {
            if (strcmp(p->sig.outputs[output]->name, name)) continue;
            *dst = w__spec_of_output(&p->sig, p->sig.outputs[output]);
            return true;
        }
    }
    return false;
}

/* What a pipeline is given for its first step. */
static struct w_spec first_spec(const struct w_step_desc *desc) {
    static const enum w_type order[] = {W_JSON, W_BYTES, W_TEXT, W_TENSOR};
    struct w_spec spec = {.type = W_TYPE_N, .rank = -1, .w = -1, .h = -1};
    for (size_t i = 0; i < sizeof order / sizeof *order && spec.type == W_TYPE_N; i++)
        if (desc->takes & W_TAKES(order[i])) spec.type = order[i];
    return spec;
}

/* --- steps ------------------------------------------------------------------------------------ */

static const char *next_step(void *user, size_t i) {
    (void)user;
    const struct w_step_desc *d = w__step_at(i);
    return d ? d->name : NULL;
}

static void step_place(const struct w_step *s, char *dst, size_t n) {
    snprintf(dst, n, "model.json: step %d \"%s\"", s->index + 1, s->desc->name);
}

static bool step_name(struct w_pipeline *p, struct w_step *s, const char *key, json_t *value,
                      struct w_error *err) {
    if (strcmp(key, "as") && strcmp(key, "from")) return false;
    const char *text = json_string_value(value);
    if (!text || !*text)
        return w_fail(err, W_BAD_MODEL, "model.json: step %d: \"%s\" must be a name", s->index + 1,
                      key);
    if (!strcmp(key, "from")) return s->from = text, true;
    for (int i = 0; i < p->n_steps; i++)
        if (p->steps[i].as && !strcmp(p->steps[i].as, text))
            return w_fail(err, W_BAD_MODEL,
                          "model.json: step %d: the name \"%s\" was given by step %d already",
                          s->index + 1, text, i + 1);
    return s->as = text, true;
}

static bool read_step(struct w_pipeline *p, json_t *json, struct w_error *err) {
    struct w_step *s = &p->steps[p->n_steps];
    *s = (struct w_step){.index = p->n_steps, .pipeline = p, .folder = p->folder};
    json_t *value, *params = NULL;
    const char *key;
    if (!json_is_object(json))
        return w_fail(err, W_BAD_MODEL,
                      "model.json: step %d must be an object with the step's name as its key",
                      s->index + 1);
    err->code = NULL;
    json_object_foreach(json, key, value) {
        if (step_name(p, s, key, value, err)) continue;
        if (err->code) return false;
        const struct w_step_desc *desc = w__step_find(key);
        if (!desc) {
            const char *near = w__nearest(key, next_step, NULL);
            return w_fail(err, W_BAD_MODEL, "model.json: step %d: there is no step \"%s\"%s%s%s",
                          s->index + 1, key, near ? "; did you mean \"" : "", near ? near : "",
                          near ? "\"?" : "");
        }
        if (s->desc)
            return w_fail(err, W_BAD_MODEL,
                          "model.json: step %d names two steps, \"%s\" and \"%s\"", s->index + 1,
                          s->desc->name, key);
        s->desc = desc;
        params = value;
    }
    if (!s->desc)
        return w_fail(err, W_BAD_MODEL, "model.json: step %d names no step", s->index + 1);
    char where[96];
    step_place(s, where, sizeof where);
    p->n_steps++; /* from here on destroy frees it */
    s->state = calloc(1, s->desc->state_bytes ? s->desc->state_bytes : 1);
    if (!s->state) return w_fail(err, W_NO_MEMORY, "out of memory");
    if (!w__params_read(s->desc->params, params, s->state, p->folder, where, err)) return false;
    return !s->desc->parse || s->desc->parse(s, params, err) || w_fail_in(err, "%s: ", where);
}

static bool check_step(struct w_pipeline *p, struct w_step *s, struct w_error *err) {
    struct w_spec *in = &p->in[s->index], *out = &p->out[s->index];
    char where[96];
    step_place(s, where, sizeof where);
    *in = s->index ? p->out[s->index - 1] : first_spec(s->desc);
    if (s->from && !w__spec_of(p, s, s->from, in))
        return w_fail(err, W_BAD_MODEL,
                      "%s: \"from\" is \"%s\", and no step before it gives that name", where,
                      s->from);
    bool first_run = s->desc->runs && s->index == 0 && !w__run_binds(s);
    if (in->type == W_TYPE_N && !first_run)
        return w_fail(
            err, W_BAD_MODEL,
            "%s: cannot be the first step: a pipeline begins with bytes, text, JSON or tensors",
            where);
    if (!first_run && !(s->desc->takes & W_TAKES(in->type)))
        return w_fail(err, W_BAD_MODEL, "%s: takes %s, and is given %s", where,
                      w_type_name((enum w_type)__builtin_ctz(s->desc->takes)),
                      w_type_name(in->type));
    *out = *in;
    out->type = s->desc->gives;
    if (s->desc->runs) {
        if (!p->has_sig)
            return w_fail(err, W_BAD_MODEL, "%s: there is no model to run here", where);
        p->last_run = s->index;
    }
    return !s->desc->check || s->desc->check(s, in, out, err) || w_fail_in(err, "%s: ", where);
}

static bool read_steps(struct w_pipeline *p, json_t *list, struct w_error *err) {
    if (!list) return true;
    if (!json_is_array(list))
        return w_fail(err, W_BAD_MODEL, "model.json: \"pipeline\" must be a list of steps");
    if (json_array_size(list) > W_STEPS_MAX)
        return w_fail(err, W_BAD_MODEL,
                      "model.json: \"pipeline\" has %zu steps, at most %d are allowed",
                      json_array_size(list), W_STEPS_MAX);
    for (size_t i = 0; i < json_array_size(list); i++)
        if (!read_step(p, json_array_get(list, i), err)) return false;
    for (int i = 0; i < p->n_steps; i++)
        if (!check_step(p, &p->steps[i], err)) return false;
    if (p->n_steps && p->has_sig && p->last_run < 0)
        return w_fail(err, W_BAD_MODEL,
                      "model.json: the pipeline has no step \"run\", so the model is never called");
    return true;
}

/* --- the other keys --------------------------------------------------------------------------- */

static bool read_golden(struct w_pipeline *p, json_t *list, struct w_error *err) {
    if (!list) return true;
    if (!json_is_array(list) || json_array_size(list) > W_GOLDEN_MAX)
        return w_fail(err, W_BAD_MODEL,
                      "model.json: \"golden\" must be a list of at most %d samples", W_GOLDEN_MAX);
    for (size_t i = 0; i < json_array_size(list); i++) {
        json_t *sample = json_array_get(list, i), *value, *tol = json_object_get(sample, "tol");
        const char *key;
        json_object_foreach(
            sample, key,
            value) if (strcmp(key, "input") && strcmp(key, "expect") &&
                       strcmp(key,
                              "tol")) return w_fail(err, W_BAD_MODEL,
                                                    "model.json: golden sample %zu: unknown key "
                                                    "\"%s\" (input, expect and tol are known)",
                                                    i + 1, key);
        struct w_golden *g = &p->golden[i];
        *g = (struct w_golden){json_object_get(sample, "input"), json_object_get(sample, "expect"),
                               tol ? json_number_value(tol) : 1e-3};
        if (!g->input || !json_is_object(g->expect))
            return w_fail(err, W_BAD_MODEL,
                          "model.json: golden sample %zu needs \"input\" and an object \"expect\"",
                          i + 1);
        if ((tol && !json_is_number(tol)) || !(g->tol >= 0 && g->tol < 1e9))
            return w_fail(err, W_BAD_MODEL,
                          "model.json: golden sample %zu: \"tol\" must be a number from 0", i + 1);
        p->n_golden++;
    }
    return true;
}

struct batch_params {
    int32_t max, pad;
};
/* clang-format off */
static const struct w_param batch_params[] = {
    {.name = "max", .kind = W_PARAM_INT, .offset = offsetof(struct batch_params, max), .min = 1, .max = 65536, .help = "rows in one run"},
    {.name = "pad", .kind = W_PARAM_CHOICE, .offset = offsetof(struct batch_params, pad), .choices = "none longest fixed bucket"},
    {0}};
/* clang-format on */

static bool read_precision(struct w_pipeline *p, const json_t *value, struct w_error *err) {
    static const char *const known[] = {"fp32", "bf16", "int8", "auto"};
    const char *text = json_string_value(value);
    for (size_t i = 0; text && i < sizeof known / sizeof *known; i++)
        if (strcmp(known[i], text) == 0) p->precision = known[i];
    return !value || p->precision ||
           w_fail(err, W_BAD_MODEL,
                  "model.json: precision is %s%.40s%s, \"fp32\", \"bf16\", \"int8\" or \"auto\" is "
                  "expected",
                  text ? "\"" : "", text ? text : "no text", text ? "\"" : "");
}

static bool read_root(struct w_pipeline *p, struct w_error *err) {
    static const char *const known[] = {"quern", "pipeline",  "golden",
                                        "batch", "precision", "description"};
    const char *key;
    json_t *value, *batch = json_object_get(p->json, "batch");
    if (!json_is_object(p->json))
        return w_fail(err, W_BAD_MODEL, "model.json: an object was expected");
    json_object_foreach(p->json, key, value) {
        size_t i = 0;
        while (i < sizeof known / sizeof *known && strcmp(known[i], key)) i++;
        if (i == sizeof known / sizeof *known)
            return w_fail(err, W_BAD_MODEL,
                          "model.json: unknown key \"%s\" (quern, pipeline, golden, batch, "
                          "precision and description are known)",
                          key);
    }
    value = json_object_get(p->json, "quern");
    if (!json_is_integer(value) || json_integer_value(value) != 1)
        return w_fail(err, W_BAD_MODEL,
                      "model.json: \"quern\": 1 is expected, the version of the format");
    if (!read_steps(p, json_object_get(p->json, "pipeline"), err) ||
        !read_golden(p, json_object_get(p->json, "golden"), err))
        return false;
    if (!read_precision(p, json_object_get(p->json, "precision"), err)) return false;
    if (batch) {
        struct batch_params b = {0};
        if (!w__params_read(batch_params, batch, &b, p->folder, "model.json: batch", err))
            return false;
        p->batch = (struct w_batch){b.max, (enum w_pad)b.pad};
    }
    return true;
}

struct w_pipeline *w_pipeline_parse(const char *json, size_t len, const char *folder,
                                    const struct w_signature *sig, struct w_error *err) {
    struct w_error unwanted;
    if (!err) err = &unwanted;
    struct w_pipeline *p = calloc(1, sizeof *p);
    if (!p || (folder && !(p->folder = strdup(folder)))) {
        w_fail(err, W_NO_MEMORY, "out of memory");
        goto fail;
    }
    p->last_run = -1;
    if (sig) p->sig = *sig, p->has_sig = true;
    if (!json) return p;
    json_error_t why;
    p->json =
        len <= MODEL_JSON_BYTES_MAX ? json_loadb(json, len, JSON_REJECT_DUPLICATES, &why) : NULL;
    if (len > MODEL_JSON_BYTES_MAX)
        w_fail(err, W_BAD_MODEL, "model.json has %zu bytes, at most %d are allowed", len,
               MODEL_JSON_BYTES_MAX);
    else if (!p->json)
        w_fail(err, W_BAD_MODEL, "model.json: line %d, column %d: %s", why.line, why.column,
               why.text);
    else if (read_root(p, err))
        return p;
fail:
    w_pipeline_destroy(p);
    return NULL;
}

struct w_pipeline *w_pipeline_load(const char *folder, const struct w_signature *sig,
                                   struct w_error *err) {
    char path[PATH_MAX];
    if (!folder) return w_pipeline_parse(NULL, 0, NULL, sig, err);
    if (snprintf(path, sizeof path, "%s/model.json", folder) >= (int)sizeof path)
        return w_fail(err, W_BAD_MODEL, "the path %.100s… is too long", folder), NULL;
    FILE *f = fopen(path, "rbe");
    if (!f && errno == ENOENT) return w_pipeline_parse(NULL, 0, folder, sig, err);
    char *text = f ? malloc(MODEL_JSON_BYTES_MAX + 1) : NULL;
    size_t len = text ? fread(text, 1, MODEL_JSON_BYTES_MAX + 1, f) : 0;
    struct w_pipeline *p = NULL;
    if (!text || ferror(f))
        w_fail(err, W_BAD_MODEL, "%s cannot be read: %s", path, strerror(errno));
    else
        p = w_pipeline_parse(text, len, folder, sig, err);
    free(text);
    if (f) fclose(f);
    return p;
}

void w_pipeline_destroy(struct w_pipeline *p) {
    if (!p) return;
    for (int i = 0; i < p->n_steps; i++) {
        struct w_step *s = &p->steps[i];
        if (s->state && s->desc->free) s->desc->free(s->state);
        w__params_free(s->desc->params, s->state);
        free(s->state);
    }
    json_decref(p->json);
    free(p->folder);
    free(p);
}

struct w_batch w_pipeline_batch(const struct w_pipeline *p) {
    return p->batch;
}
const char *w_pipeline_precision(const struct w_pipeline *p) {
    return p->precision ? p->precision : "fp32";
}
int w_pipeline_n_steps(const struct w_pipeline *p) {
    return p->n_steps;
}
const char *w_pipeline_step_name(const struct w_pipeline *p, int i) {
    return i >= 0 && i < p->n_steps ? p->steps[i].desc->name : "input";
}
const struct w_signature *w_pipeline_signature(const struct w_pipeline *p) {
    return &p->sig;
}
