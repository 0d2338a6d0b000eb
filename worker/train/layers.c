/* layers.c: the registry of layers, and the walk from a list of them to a model.
 *
 * Every layer's shape is worked out as it is added, so what does not fit is told with the layer's
 * number, name and type before any data is read. A layer takes what the one before it gives, or
 * what "inputs" names: so residual nets are written in the same list. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "worker/nearest.h"
#include "worker/train/layers.h"

extern const struct w_layer_desc *const __start_quern_layers[], *const __stop_quern_layers[];

static const struct w_layer_desc *layer_at(size_t i) {
    /* cppcheck-suppress comparePointers */
    for (const struct w_layer_desc *const *t = __start_quern_layers; t < __stop_quern_layers; t++)
        for (const struct w_layer_desc *d = *t; d->name; d++)
            if (i-- == 0) return d;
    return NULL;
}

static const char *next_layer(void *user, size_t i) {
    const struct w_layer_desc *d = layer_at(i);
    (void)user;
    return d ? d->name : NULL;
}

const struct w_layer_desc *w__layer_find(const char *name) {
    const struct w_layer_desc *d;
    for (size_t i = 0; (d = layer_at(i)); i++)
        if (strcmp(d->name, name) == 0) return d;
    return NULL;
}

bool w__layer_read(json_t *json, const struct w_layer_desc **desc, struct w_layer *dst,
                   const char *where, struct w_error *err) {
    const char *type = json_string_value(json_object_get(json, "type"));
    if (!type) return w_fail(err, W_BAD_SPEC, "%s must be an object with \"type\"", where);
    *desc = w__layer_find(type);
    if (!*desc) return w__train_unknown(where, "layer", type, next_layer, NULL, err);
    *dst = (struct w_layer){.trainable = true};
    if (w__train_params((*desc)->params, json, dst, where, err)) return true;
    w__layer_free(*desc, dst);
    return false;
}

void w__layer_free(const struct w_layer_desc *desc, struct w_layer *l) {
    w__params_free(desc->params, l);
}

/* --- the walk ----------------------------------------------------------------------------------
 */

struct walk {
    struct w_graph g;
    struct w_flow *flows; /* of each layer; the input is before them */
    char (*names)[W_TRAIN_NAME_MAX - 40];
    int n;
};

/* Keras's: conv2d, conv2d_1, … */
static bool name_layer(struct walk *w, const struct w_layer *l, const char *type) {
    char snake[64], name[sizeof w->g.name];
    w__train_snake(type, snake, sizeof snake);
    for (int k = 0;; k++) {
        if (l->name)
            snprintf(name, sizeof name, "%s", l->name);
        else if (k)
            snprintf(name, sizeof name, "%s_%d", snake, k);
        else
            snprintf(name, sizeof name, "%s", snake);
        int i = 0;
        while (i < w->n && strcmp(w->names[i], name)) i++;
        if (i == w->n) break;
        if (l->name)
            return w_fail(w->g.err, W_BAD_SPEC, "layers %d and %d have the same name \"%s\"", i,
                          w->n, name);
    }
    snprintf(w->g.name, sizeof w->g.name, "%s", name);
    return true;
}

static const char *next_name(void *user, size_t i) {
    struct walk *w = user;
    return i < (size_t)w->n ? w->names[i] : NULL;
}

static bool find_inputs(struct walk *w, const struct w_layer *l, bool joins, struct w_flow *dst,
                        int max) {
    struct w_graph *g = &w->g;
    size_t n = json_is_string(l->inputs) ? 1 : json_array_size(l->inputs);
    g->flow = w->flows[w->n - 1];
    g->n_inputs = 0;
    if (!l->inputs)
        return !joins || w__layer_fail(g, "it joins several layers, \"inputs\" is missing");
    if (n < 1 || n > (size_t)max || (!joins && n > 1))
        return w__layer_fail(g, "\"inputs\" must be %s",
                             joins ? "a list of 2 to 16 names" : "one name");
    for (size_t i = 0; i < n; i++) {
        const char *name =
            json_string_value(json_is_string(l->inputs) ? l->inputs : json_array_get(l->inputs, i));
        int k = 0;
        while (name && k < w->n && strcmp(w->names[k], name)) k++;
        if (!name) return w__layer_fail(g, "\"inputs\" must hold names");
        if (k == w->n)
            return w__train_unknown(g->where, "layer before it called", name, next_name, w, g->err);
        dst[i] = w->flows[k];
    }
    g->flow = dst[0];
    g->all_inputs = dst;
    g->n_inputs = (int)n;
    return true;
}

static bool one_layer(struct walk *w, json_t *json, int index, const char *list) {
    struct w_graph *g = &w->g;
    const struct w_layer_desc *desc;
    struct w_layer l;
    struct w_flow inputs[16];
    char where[96];
    const char *type = json_string_value(json_object_get(json, "type")),
               *given = json_string_value(json_object_get(json, "name"));
    snprintf(where, sizeof where, "%s[%d]%s%.30s%s%.30s", list, index, type ? " " : "",
             type ? type : "", given ? " " : "", given ? given : "");
    if (!w__layer_read(json, &desc, &l, where, g->err)) return false;
    g->layer = &l;
    g->n_nodes = 0;
    snprintf(g->where, sizeof g->where, "%s", where);
    bool ok = name_layer(w, &l, desc->name);
    if (ok) {
        snprintf(g->where, sizeof g->where, "%s[%d] \"%.40s\" (%s)", list, index, g->name,
                 desc->name);
        ok = find_inputs(w, &l, desc->joins, inputs, 16);
    }
    if (ok) {
        bool softmax = g->model->softmax, sigmoid = g->model->sigmoid;
        g->model->softmax = g->model->sigmoid = false;
        ok = desc->build(g, &l);
        /* A shape alone changes nothing of what the numbers are. */
        if (strcmp(desc->name, "Reshape") == 0 || strcmp(desc->name, "Flatten") == 0)
            g->model->softmax = softmax, g->model->sigmoid = sigmoid;
    }
    w__layer_free(desc, &l);
    if (!ok) return false;
    snprintf(w->names[w->n], sizeof *w->names, "%s", g->name);
    w->flows[w->n++] = g->flow;
    return true;
}

static bool walk_layers(struct walk *w, json_t *layers, const char *list) {
    size_t i;
    json_t *json;
    json_array_foreach(layers, i, json) if (!one_layer(w, json, (int)i, list)) return false;
    return true;
}

static bool walk_init(struct walk *w, size_t n, struct w_error *err) {
    w->flows = calloc(n + 2, sizeof *w->flows);
    w->names = calloc(n + 2, sizeof *w->names);
    return (w->flows && w->names) || w_fail(err, W_NO_MEMORY, "out of memory");
}

/* Every weighted layer or none: the trainer knows one pair of factors. */
static bool check_regularizers(const struct w_graph *g) {
    return !g->n_regularized || g->n_regularized == g->n_weighted ||
           w_fail(g->err, W_BAD_SPEC,
                  "kernel_regularizer is set for %d of %d layers with weights: set it for all of "
                  "them or for none",
                  g->n_regularized, g->n_weighted);
}

/* --- from nothing ------------------------------------------------------------------------------
 */

static bool takes_numbers(json_t *layers) {
    json_t *json;
    size_t i;
    json_array_foreach(layers, i, json) {
        const char *type = json_string_value(json_object_get(json, "type"));
        if (!type ||
            (strncmp(type, "Input", 5) && strcmp(type, "Reshape") && strcmp(type, "Flatten")))
            return type && strcmp(type, "Embedding") == 0;
    }
    return false;
}

static bool begin_layers(struct walk *w, const struct w_spec_train *spec,
                         const struct w_affine *front) {
    struct w_graph *g = &w->g;
    struct w_train_model *m = g->model;
    int64_t dims[OP_RANK_MAX] = {-1};
    const char *symbols[OP_RANK_MAX] = {"N"};
    m->input_dtype = takes_numbers(spec->model.layers) ? OP_I64 : OP_F32;
    m->input_rank = spec->model.rank;
    memcpy(m->input_dims, spec->model.dims, sizeof m->input_dims);
    memcpy(dims + 1, spec->model.dims, (size_t)spec->model.rank * sizeof *dims);
    snprintf(m->input_name, sizeof m->input_name, "x");
    op_builder_input(g->builder, "x", m->input_dtype, m->input_rank + 1, dims, symbols);
    g->flow = (struct w_flow){.value = {"x"}, .dtype = m->input_dtype, .rank = m->input_rank};
    memcpy(g->flow.dims, m->input_dims, sizeof m->input_dims);
    snprintf(g->name, sizeof g->name, "normalization");
    snprintf(g->where, sizeof g->where, "data.preprocess");
    if (front && front->n > 1) {
        struct w_name scale, offset;
        if (front->n != m->input_dims[m->input_rank - 1])
            return w_fail(g->err, W_BAD_SPEC,
                          "data.preprocess: Normalization is over %lld channels, model.input_shape "
                          "ends in %lld",
                          (long long)front->n, (long long)m->input_dims[m->input_rank - 1]);
        if (!w__frozen(g, "scale", front->n, front->scale, &scale) ||
            !w__frozen(g, "offset", front->n, front->offset, &offset))
            return false;
        g->flow.value = W_NODE2(g, "Mul", g->flow.value, scale);
        g->flow.value = W_NODE2(g, "Add", g->flow.value, offset);
    }
    snprintf(w->names[0], sizeof *w->names, "input");
    w->flows[0] = g->flow;
    w->n = 1;
    return true;
}

/* --- from an ONNX file -------------------------------------------------------------------------
 */

static bool begin_onnx(struct walk *w, const struct w_spec_train *spec, struct op_model *base) {
    struct w_graph *g = &w->g;
    struct w_train_model *m = g->model;
    const struct op_io *in = op_model_input(base, 0), *out = op_model_output(base, 0);
    int n_given = 0;
    for (int i = 0; i < op_model_n_inputs(base); i++) n_given += !op_model_input(base, i)->optional;
    if (n_given != 1)
        return w_fail(g->err, W_UNSUPPORTED,
                      "model.onnx has %d inputs, training takes models with one", n_given);
    if (in->rank < 2 || (in->dtype != OP_F32 && in->dtype != OP_I64))
        return w_fail(g->err, W_UNSUPPORTED, "model.onnx: input \"%s\" is no f32 or i64 with rows",
                      in->name);
    m->input_dtype = in->dtype;
    m->input_rank = in->rank - 1;
    for (int i = 0; i < m->input_rank; i++) {
        m->input_dims[i] = in->dims[i + 1];
        if (in->dims[i + 1] < 1)
            return w_fail(g->err, W_UNSUPPORTED,
                          "model.onnx: dimension %d of input \"%s\" has no fixed size", i + 1,
                          in->name);
    }
    snprintf(m->input_name, sizeof m->input_name, "%s", in->name);
    const char *value = spec->model.output ? spec->model.output : out->name;
    int64_t dims[OP_RANK_MAX];
    enum op_type dtype = OP_UNDEFINED;
    int rank = op_builder_shape(g->builder, value, &dtype, dims);
    if (rank < 2 || rank > 4 || dtype != OP_F32)
        return w_fail(
            g->err, W_BAD_SPEC,
            "model.output: the value \"%.80s\" is not in the graph, or is no f32 with rows", value);
    snprintf(g->flow.value.s, sizeof g->flow.value.s, "%s", value);
    g->flow.dtype = OP_F32;
    g->flow.rank = rank - 1;
    g->flow.first = rank == 4; /* ONNX's images are channels first */
    for (int i = 0; i < rank - 1; i++)
        g->flow.dims[i] = !g->flow.first ? dims[i + 1] : dims[i + 2 < rank ? i + 2 : 1];
    for (int i = 0; i < rank - 1; i++)
        if (g->flow.dims[i] < 1)
            return w_fail(g->err, W_UNSUPPORTED,
                          "model.output: \"%.80s\" has dimensions of no fixed size", value);
    snprintf(w->names[0], sizeof *w->names, "base");
    w->flows[0] = g->flow;
    w->n = 1;
    json_t *pattern;
    size_t i;
    if (spec->model.freeze && !json_is_array(spec->model.freeze))
        return w_fail(g->err, W_BAD_SPEC, "model.freeze must be a list of patterns");
    json_array_foreach(
        spec->model.freeze, i,
        pattern) if (!json_is_string(pattern) ||
                     !w__freeze(
                         g, json_string_value(
                                pattern))) return w_fail(g->err, W_BAD_SPEC,
                                                         "model.freeze must be a list of patterns");
    return true;
}

/* --- both --------------------------------------------------------------------------------------
 */

static bool finish(struct walk *w, struct w_train_model *m) {
    struct w_graph *g = &w->g;
    struct op_error why;
    g->flow = w->flows[w->n - 1];
    w__channels_last(g);
    m->output_rank = g->flow.rank;
    memcpy(m->output_dims, g->flow.dims, sizeof m->output_dims);
    snprintf(m->output_name, sizeof m->output_name, "%s", g->flow.value.s);
    op_builder_clear_outputs(g->builder);
    op_builder_output(g->builder, g->flow.value.s);
    m->model = op_builder_finish(g->builder, &why);
    g->builder = NULL;
    return m->model || w_train_fail(g->err, &why);
}

bool w_train_fail(struct w_error *err, const struct op_error *why) {
    static const char *const codes[] = {
        [OP_NOMEM] = W_NO_MEMORY,     [OP_IO] = W_OUTPUT_FAILED,
        [OP_BAD_MODEL] = W_BAD_MODEL, [OP_UNSUPPORTED] = W_UNSUPPORTED,
        [OP_BAD_SHAPE] = W_BAD_SHAPE, [OP_BAD_TYPE] = W_BAD_DTYPE,
        [OP_BAD_VALUE] = W_BAD_INPUT, [OP_LIMIT] = W_TOO_LARGE,
        [OP_CANCELLED] = "cancelled"};
    size_t i = (size_t)why->code;
    return w_fail(err, i < sizeof codes / sizeof *codes && codes[i] ? codes[i] : W_INTERNAL, "%s",
                  why->text);
}

bool w_train_model_build(const struct w_spec_train *spec, const struct w_affine *front,
                         struct op_model *base, struct w_train_model *dst, struct w_error *err) {
    struct walk w = {.g = {.model = dst, .seed = (uint64_t)spec->fit.seed, .err = err}};
    json_t *layers = base ? spec->model.head : spec->model.layers;
    const struct w_layer plain = {.trainable = true};
    struct op_error why = {0};
    *dst = (struct w_train_model){0};
    w.g.layer = &plain;
    w.g.builder = base ? op_builder_from(base, &why) : op_builder_create(17);
    bool ok = w.g.builder ? walk_init(&w, json_array_size(layers), err)
              : why.code  ? w_train_fail(err, &why)
                          : w_fail(err, W_NO_MEMORY, "out of memory");
    ok = ok && (base ? begin_onnx(&w, spec, base) : begin_layers(&w, spec, front)) &&
         walk_layers(&w, layers, base ? "model.head" : "model.layers") &&
         check_regularizers(&w.g) && finish(&w, dst);
    op_builder_destroy(w.g.builder);
    free(w.flows);
    free(w.names);
    if (!ok) w_train_model_finish(dst);
    return ok;
}

void w_train_model_finish(struct w_train_model *m) {
    op_model_release(m->model);
    for (int i = 0; i < m->n_freeze; i++) free(m->freeze[i]);
    free(m->freeze);
    *m = (struct w_train_model){0};
}
