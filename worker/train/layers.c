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
    bool several; /* the spec names its inputs */
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
    if (!l->inputs && w->n == g->model->n_inputs && w->n > 1)
        return w__layer_fail(g, "the model has %d inputs: \"inputs\" must say which it takes", w->n);
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

/* Layers that leave steps where they are, and what pads them what it is. */
static bool keeps_mask(const char *name) {
    static const char *const names[] = {
        "Input",  "InputLayer", "Dropout", "SpatialDropout1D", "GaussianNoise",      "GaussianDropout",
        "Dense",  "Activation", "ReLU",    "LeakyReLU",        "LayerNormalization", "Rescaling",
        "LSTM",   "GRU",        "SimpleRNN", "Bidirectional",  "TimeDistributed",    "PositionEmbedding",
        "ActivityRegularization"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (strcmp(names[i], name) == 0) return true;
    return false;
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
        struct w_name mask = g->flow.mask;
        g->model->softmax = g->model->sigmoid = false;
        ok = desc->build(g, &l) && w__activity_of(g, &l);
        if (!keeps_mask(desc->name) || g->flow.rank != 2) mask.s[0] = 0;
        if (strcmp(desc->name, "Embedding")) g->flow.mask = mask; /* which makes one */
        /* A shape alone changes nothing of what the numbers are. */
        if (strcmp(desc->name, "Reshape") == 0 || strcmp(desc->name, "Flatten") == 0)
            g->model->softmax = softmax, g->model->sigmoid = sigmoid;
    }
    w__layer_free(desc, &l);
    if (!ok) return false;
    snprintf(w->names[w->n], sizeof *w->names, "%s", g->name);
    g->flow.softmax = g->model->softmax;
    g->flow.sigmoid = g->model->sigmoid;
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
    w->flows = calloc(n + 1 + W_TRAIN_INPUTS_MAX, sizeof *w->flows);
    w->names = calloc(n + 1 + W_TRAIN_INPUTS_MAX, sizeof *w->names);
    return (w->flows && w->names) || w_fail(err, W_NO_MEMORY, "out of memory");
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

static bool normalize(struct w_graph *g, const struct w_train_input *in, const struct w_affine *a) {
    struct w_name scale, offset;
    if (a->n < 2) return true;
    if (in->rank < 1 || a->n != in->dims[in->rank - 1])
        return w__layer_fail(g, "Normalization is over %lld channels, the input \"%s\" ends in %lld",
                             (long long)a->n, in->name,
                             (long long)(in->rank ? in->dims[in->rank - 1] : 1));
    if (!w__frozen(g, "scale", a->n, a->scale, &scale) ||
        !w__frozen(g, "offset", a->n, a->offset, &offset))
        return false;
    g->flow.value = W_NODE2(g, "Mul", g->flow.value, scale);
    g->flow.value = W_NODE2(g, "Add", g->flow.value, offset);
    return true;
}

/* id → table[id + 1]; beyond its ends lies what is unknown. */
static bool look_up(struct w_graph *g, const struct w_front *f) {
    struct w_name low, high, one, table;
    const int64_t ends[] = {-1, f->n_table - 2, 1};
    struct op_tensor t = {.dtype = OP_I64};
    struct w_name *names[] = {&low, &high, &one};
    static const char *const words[] = {"low", "high", "one"};
    for (int i = 0; i < 3; i++) {
        t.data = (void *)(uintptr_t)&ends[i];
        snprintf(names[i]->s, sizeof names[i]->s, "%s/%s", g->name, words[i]);
        op_builder_weight(g->builder, names[i]->s, &t);
    }
    if (!w__ints(g, "table", (int)f->n_table, f->table, &table)) return false;
    struct w_name at =
        w__node(g, "Clip", (const char *[]){g->flow.value.s, low.s, high.s}, 3, NULL, 0);
    at = W_NODE2(g, "Add", at, one);
    g->flow.value = W_NODE2(g, "Gather", table, at);
    return true;
}

/* One input: declared, and what stands in front of the layers. */
static bool begin_input(struct walk *w, int i, const struct w_front *front) {
    struct w_graph *g = &w->g;
    const struct w_train_input *in = &g->model->inputs[i];
    int64_t dims[OP_RANK_MAX] = {-1};
    const char *symbols[OP_RANK_MAX] = {"N"};
    memcpy(dims + 1, in->dims, (size_t)in->rank * sizeof *dims);
    op_builder_input(g->builder, in->name, in->dtype, in->rank + 1, dims, symbols);
    g->flow = (struct w_flow){.dtype = in->dtype, .rank = in->rank};
    snprintf(g->flow.value.s, sizeof g->flow.value.s, "%s", in->name);
    memcpy(g->flow.dims, in->dims, sizeof in->dims);
    if (g->model->n_inputs == 1)
        snprintf(g->name, sizeof g->name, "normalization");
    else
        snprintf(g->name, sizeof g->name, "%.60s_front", in->name);
    snprintf(g->where, sizeof g->where, "data.preprocess");
    g->n_nodes = 0;
    if (front && front->inside && !normalize(g, in, &front->affine)) return false;
    if (front && front->table && !look_up(g, front)) return false;
    snprintf(w->names[w->n], sizeof *w->names, "%s",
             g->model->n_inputs == 1 && !w->several ? "input" : in->name);
    w->flows[w->n++] = g->flow;
    return true;
}

static bool begin_layers(struct walk *w, const struct w_spec_train *spec,
                         const struct w_front *fronts) {
    struct w_train_model *m = w->g.model;
    w->several = spec->model.inputs != NULL;
    if (!w->several) {
        struct w_train_input *in = &m->inputs[m->n_inputs++];
        *in = (struct w_train_input){.name = "x", .rank = spec->model.rank};
        in->dtype = takes_numbers(spec->model.layers) ? OP_I64 : OP_F32;
        memcpy(in->dims, spec->model.dims, sizeof in->dims);
    } else if (!w__train_inputs(spec->model.inputs, m, w->g.err)) {
        return false;
    }
    for (int i = 0; i < m->n_inputs; i++) {
        m->inputs[i].elements = 1;
        for (int k = 0; k < m->inputs[i].rank; k++) m->inputs[i].elements *= m->inputs[i].dims[k];
        if (!begin_input(w, i, fronts ? &fronts[i] : NULL)) return false;
    }
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
    struct w_train_input *own = &m->inputs[m->n_inputs++];
    *own = (struct w_train_input){.dtype = in->dtype, .rank = in->rank - 1, .elements = 1};
    for (int i = 0; i < own->rank; i++) {
        own->dims[i] = in->dims[i + 1];
        own->elements *= own->dims[i];
        if (in->dims[i + 1] < 1)
            return w_fail(g->err, W_UNSUPPORTED,
                          "model.onnx: dimension %d of input \"%s\" has no fixed size", i + 1,
                          in->name);
    }
    snprintf(own->name, sizeof own->name, "%s", in->name);
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

/* The layer that "outputs" names, else the last one, becomes g->flow. */
static bool choose_output(struct walk *w, json_t *outputs) {
    struct w_graph *g = &w->g;
    const char *name = json_string_value(json_is_array(outputs) && json_array_size(outputs) == 1
                                             ? json_array_get(outputs, 0)
                                             : outputs);
    int i = w->n - 1;
    if (outputs && !name)
        return w_fail(g->err, W_BAD_SPEC, "model.outputs must be the name of one layer, in a list");
    for (i = outputs ? 0 : i; outputs && i < w->n && strcmp(w->names[i], name); i++) {}
    if (i == w->n) return w__train_unknown("model.outputs", "layer", name, next_name, w, g->err);
    if (i != w->n - 1) g->model->softmax = w->flows[i].softmax, g->model->sigmoid = w->flows[i].sigmoid;
    g->flow = w->flows[i];
    return true;
}

static bool finish(struct walk *w, struct w_train_model *m) {
    struct w_graph *g = &w->g;
    struct op_error why;
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

bool w_train_model_build(const struct w_spec_train *spec, const struct w_front *fronts,
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
    ok = ok && (base ? begin_onnx(&w, spec, base) : begin_layers(&w, spec, fronts)) &&
         walk_layers(&w, layers, base ? "model.head" : "model.layers") &&
         choose_output(&w, spec->model.outputs) &&
         finish(&w, dst);
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
    for (int i = 0; i < m->n_regularizers; i++) free((char *)(uintptr_t)m->regularizers[i].weights);
    for (int i = 0; i < m->n_noises; i++) free((char *)(uintptr_t)m->noises[i].value);
    for (int i = 0; i < m->n_activities; i++) free((char *)(uintptr_t)m->activities[i].value);
    free(m->regularizers);
    free(m->noises);
    free(m->activities);
    *m = (struct w_train_model){0};
}
