/* From a model's graph to the graph of a training step: see train.h for what goes in and comes out. How: the trained initializers
 * and the running statistics become inputs; BatchNormalization and Dropout get their training form; losses and the backward pass are
 * appended. What is trained is decided by where an initializer is used (trainable_at), not by its name, so that shapes, scales and axes
 * that are initializers too stay constants. */
#include <fnmatch.h>
#include <stdlib.h>
#include <string.h>

#include "ops/train/train.h"

/* Which inputs of an operator are weights: a bit each. */
static unsigned trainable_at(const struct op_node *n) {
    static const struct {
        const char *op_type;
        unsigned inputs;
    } table[] = {{"Conv", 6},       {"ConvTranspose", 6},      {"Gemm", 7},  {"MatMul", 3}, {"Add", 3},  {"Sub", 3},    {"Mul", 3}, {"Div", 3}, {"BatchNormalization", 6},
                 {"LayerNormalization", 6}, {"InstanceNormalization", 6}, {"GroupNormalization", 6}, {"RMSNormalization", 2}, {"Gather", 1}, {"PRelu", 2},
                 {"LSTM", 14},      {"GRU", 14},               {"RNN", 14},  {"Einsum", 3}, {"Concat", ~0u}, {"Expand", 1}, {"Reshape", 1}, {"Transpose", 1}};
    for (size_t i = 0; i < sizeof table / sizeof *table && n->domain[0] == 0; i++)
        if (strcmp(table[i].op_type, n->op_type) == 0) return table[i].inputs;
    return 0;
}

static bool frozen(const struct op_trainer *t, const char *name) {
    for (int i = 0; i < t->options.n_freeze; i++)
        if (fnmatch(t->options.freeze[i], name, 0) == 0) return true;
    return false;
}

/* Whether value v is a weight by its kind: a float initializer of some elements with a name. */
static bool is_weight(const struct op_graph *g, int v) {
    const struct op_tensor *c = op__graph_constant(g, v);
    return c && c->dtype == OP_F32 && c->rank >= 1 && op_tensor_count(c) > 0 && g->values[v].name && g->values[v].name[0];
}

static int find_weight(const struct op_trainer *t, const char *name) {
    for (int i = 0; i < t->n_weights; i++)
        if (strcmp(t->weights[i].name, name) == 0) return i;
    return -1;
}

static enum op_status add_weight(struct op_trainer *t, struct op_model *m, int v, bool trained, struct op_error *err) {
    const char *name = m->graph->values[v].name;
    if (find_weight(t, name) >= 0) return OP_OK;
    struct op_weight *grown = realloc(t->weights, ((size_t)t->n_weights + 1) * sizeof *grown);
    if (grown) t->weights = grown;
    struct op_weight w = {.name = strdup(name), .trained = trained};
    if (!grown || !w.name || op__tensor_clone(&w.value, op__graph_constant(m->graph, v)) != OP_OK) {
        free(w.name);
        return op__model_fail(m, err, OP_NOMEM, "out of memory for the weights");
    }
    t->weights[t->n_weights++] = w;
    t->n_trained += trained;
    return OP_OK;
}

static bool is_batchnorm(const struct op_node *n) {
    return op__node_is(n, "BatchNormalization") && n->n_in >= 5;
}
/* A BatchNormalization whose scale is frozen (or computed) stays in its inference form, as in Keras. */
static bool batchnorm_trains(const struct op_trainer *t, const struct op_graph *g, const struct op_node *n) {
    return is_batchnorm(n) && is_weight(g, n->in[1]) && !frozen(t, g->values[n->in[1]].name) && is_weight(g, n->in[3]) && is_weight(g, n->in[4]);
}

/* Fills t->weights: the trained ones first, then the running statistics. */
static enum op_status find_weights(struct op_trainer *t, struct op_model *m, struct op_error *err) {
    struct op_graph *g = m->graph;
    for (int i = 0; i < g->n_nodes; i++) {
        unsigned at = trainable_at(g->nodes[i]);
        for (int k = 0; k < g->nodes[i]->n_in && k < 32; k++) {
            int v = g->nodes[i]->in[k];
            if (!(at >> k & 1) || v < 0 || !is_weight(g, v) || frozen(t, g->values[v].name)) continue;
            enum op_status st = add_weight(t, m, v, true, err);
            if (st != OP_OK) return st;
        }
    }
    for (int i = 0; i < g->n_nodes; i++)
        for (int k = 3; batchnorm_trains(t, g, g->nodes[i]) && k < 5; k++) {
            enum op_status st = add_weight(t, m, g->nodes[i]->in[k], false, err);
            if (st != OP_OK) return st;
        }
    return t->n_trained ? OP_OK : op__model_fail(m, err, OP_BAD_VALUE, "nothing is left to train: every weight is frozen, or the model has none");
}

/* --- the training forms ------------------------------------------------------------------------ */

/* Gives the node room for n outputs; new ones are -1. */
static enum op_status grow_outputs(struct op_graph *g, struct op_node *n, int n_out) {
    if (n->n_out >= n_out) return OP_OK;
    int *out = op__arena_array(g->arena, (size_t)n_out, sizeof *out);
    if (!out) return OP_NOMEM;
    for (int i = 0; i < n_out; i++) out[i] = i < n->n_out ? n->out[i] : -1;
    n->out = out;
    n->n_out = n_out;
    return OP_OK;
}

/* updates[w]: the value that holds running statistic w after the step. */
static enum op_status batchnorm_form(struct op_trainer *t, struct op_graph *g, struct op_node *n, int *updates) {
    if (grow_outputs(g, n, 3) != OP_OK || op__attr_set_int(g, n, "training_mode", 1) != OP_OK) return OP_NOMEM;
    for (int k = 1; k < 3; k++) {
        int w = find_weight(t, g->values[n->in[k + 2]].name);
        n->out[k] = op__graph_value(g, NULL);
        if (n->out[k] < 0) return OP_NOMEM;
        if (w >= 0) updates[w] = n->out[k];
    }
    return OP_OK;
}

static enum op_status dropout_form(struct op_graph *g, struct op_node *n) {
    void *yes;
    if (n->n_in < 3 && op__node_grow(n, 3) != OP_OK) return OP_NOMEM;
    if (grow_outputs(g, n, 2) != OP_OK) return OP_NOMEM;
    n->in[2] = op__graph_const(g, NULL, OP_BOOL, 0, NULL, &yes);
    if (n->in[2] < 0) return OP_NOMEM;
    *(uint8_t *)yes = 1;
    if (n->out[1] < 0) n->out[1] = op__graph_value(g, NULL); /* the mask, for the backward pass */
    return n->out[1] < 0 ? OP_NOMEM : OP_OK;
}

static const struct op_noise *noise_of(const struct op_trainer *t, const struct op_graph *g, const struct op_node *n) {
    const char *name = n->out[0] >= 0 ? g->values[n->out[0]].name : NULL;
    for (int i = 0; name && i < t->options.n_noises; i++)
        if (strcmp(t->options.noises[i].value, name) == 0) return &t->options.noises[i];
    return NULL;
}

/* The Dropout becomes another operator with the same input and output. */
static enum op_status noise_form(struct op_graph *g, struct op_node *n, const struct op_noise *noise) {
    if (grow_outputs(g, n, 2) != OP_OK) return OP_NOMEM;
    n->op_type = "Noise";
    n->domain = "quern";
    n->desc = op__desc_find("quern", "Noise", 1);
    n->n_in = 1;
    if (n->out[1] < 0) n->out[1] = op__graph_value(g, NULL);
    if (n->out[1] < 0 || op__attr_set_string(g, n, "kind", noise->kind) != OP_OK || op__attr_set_float(g, n, "amount", noise->amount) != OP_OK) return OP_NOMEM;
    return op__attr_set_int(g, n, "axis", noise->axis);
}

static enum op_status training_forms(struct op_trainer *t, struct op_graph *g, int *updates) {
    enum op_status st = OP_OK;
    for (int i = 0; i < g->n_nodes && st == OP_OK; i++) {
        struct op_node *n = g->nodes[i];
        if (batchnorm_trains(t, g, n)) st = batchnorm_form(t, g, n, updates);
        else if (op__node_is(n, "Dropout")) {
            const struct op_noise *noise = noise_of(t, g, n);
            st = noise ? noise_form(g, n, noise) : dropout_form(g, n);
        }
    }
    return st;
}

/* --- inputs and outputs ------------------------------------------------------------------------- */

static int new_input(struct op_graph *g, int *inputs, int *n, const char *name, enum op_type dtype) {
    int v = op__graph_value(g, name);
    if (v < 0) return -1;
    g->values[v].dtype = dtype;
    g->values[v].is_input = true;
    inputs[(*n)++] = v;
    return v;
}

/* The weights become inputs, in the order of t->weights. */
static bool weights_to_inputs(struct op_trainer *t, struct op_graph *g, int *inputs, int *n, int *at) {
    for (int w = 0; w < t->n_weights; w++) {
        at[w] = -1;
        for (int v = 0; v < g->n_values && at[w] < 0; v++)
            if (is_weight(g, v) && strcmp(g->values[v].name, t->weights[w].name) == 0) at[w] = v;
        if (at[w] < 0) return false;
        struct op_value *value = &g->values[at[w]];
        value->constant = NULL;
        value->dflt = NULL;
        value->is_input = true;
        value->kind = OP_KIND_TENSOR;
        value->dtype = OP_F32;
        value->rank = t->weights[w].value.rank;
        memcpy(value->dims, t->weights[w].value.dims, sizeof value->dims);
        inputs[(*n)++] = at[w];
    }
    return true;
}

static enum op_status set_outputs(struct op_model *m, const int *outputs, int n) {
    struct op_graph *g = m->graph;
    struct op_value *declared = op__arena_array(g->arena, (size_t)n + 1, sizeof *declared);
    int *list = op__arena_array(g->arena, (size_t)n + 1, sizeof *list);
    if (!declared || !list) return OP_NOMEM;
    for (int i = 0; i < n; i++) {
        list[i] = outputs[i];
        declared[i] = (struct op_value){.rank = -1, .name = g->values[outputs[i]].name ? g->values[outputs[i]].name : ""};
    }
    g->outputs = list;
    g->n_outputs = n;
    g->declared = declared;
    m->output_infos = declared;
    return OP_OK;
}

/* Where the gradient of weight w is that of one lookup, its rows and their numbers take the place of the whole: *dw gets the gradient of
 * what was looked up; the value of the indices, or -1. */
static int by_rows(const struct op_trainer *t, const struct op_graph *g, int w, int value, int *dw) {
    const struct op_optimizer *o = &t->options.optimizer;
    if (o->dense || t->rule->whole || o->accumulate > 1 || o->ema > 0 || t->weights[w].value.rank != 2) return -1;
    for (int i = 0; i < g->n_nodes; i++) {
        const struct op_node *n = g->nodes[i];
        if (!n || n->n_out != 1 || n->out[0] != *dw || strcmp(n->op_type, "GatherGrad") || strcmp(n->domain, "quern")) continue;
        if (op__attr_int(n, "axis", 0) != 0 || n->in[2] != value) return -1;
        *dw = n->in[0];
        return n->in[1];
    }
    return -1;
}

enum op_status op__train_transform(struct op_model *m, void *user, struct op_error *err) {
    const struct op_train_graph *plan = user;
    struct op_trainer *t = plan->t;
    struct op_graph *g = m->graph;
    int n_required = g->n_inputs - g->n_initialized, n = n_required, n_out = 1;
    if (plan->find) {
        enum op_status st = find_weights(t, m, err);
        if (st != OP_OK) return st;
        t->n_inputs = n_required;
        t->n_outputs = g->n_outputs;
    }
    int room = n_required + t->options.n_losses + 2 + t->n_weights;
    int *inputs = op__arena_array(g->arena, (size_t)room, sizeof *inputs), *targets = op__arena_array(g->arena, (size_t)room, sizeof *targets);
    int *outputs = op__arena_array(g->arena, (size_t)(2 + g->n_outputs + 2 * t->n_weights), sizeof *outputs);
    int *indices = op__arena_array(g->arena, (size_t)t->n_weights + 1, sizeof *indices);
    int *at = op__arena_array(g->arena, (size_t)t->n_weights + 1, sizeof *at), *updates = op__arena_array(g->arena, (size_t)t->n_weights + 1, sizeof *updates);
    if (!inputs || !targets || !outputs || !indices || !at || !updates) return op__model_fail(m, err, OP_NOMEM, "out of memory");
    memcpy(inputs, g->inputs, (size_t)n_required * sizeof *inputs);
    for (int w = 0; w < t->n_weights; w++) updates[w] = -1;
    if (!plan->evaluate && training_forms(t, g, updates) != OP_OK) return op__model_fail(m, err, OP_NOMEM, "out of memory");
    for (int i = 0; i < t->options.n_losses; i++)
        targets[i] = new_input(g, inputs, &n, "quern.target", op_loss_target(t->losses[i].name) == OP_TARGET_DENSE ? OP_F32 : OP_I64);
    int sample_weights = new_input(g, inputs, &n, "quern.sample_weights", OP_F32), loss;
    if (!weights_to_inputs(t, g, inputs, &n, at)) return op__model_fail(m, err, OP_BAD_MODEL, "a weight was not found again");
    g->inputs = inputs;
    g->n_inputs = n;
    g->n_initialized = 0;
    enum op_status st = op__train_losses(m, t, targets, sample_weights, &loss, err);
    if (st == OP_OK && !plan->evaluate) st = op__train_activities(m, t, sample_weights, &loss, err);
    if (st != OP_OK) return st;
    outputs[0] = loss;
    for (int i = 0; i < g->n_outputs; i++) outputs[n_out++] = g->outputs[i];
    if (!plan->evaluate) {
        st = op__grad_build(g, loss, at, t->n_trained, outputs + n_out, err);
        for (int w = 0; w < t->n_trained && st == OP_OK; w++)
            if (outputs[n_out + w] < 0) st = op__model_fail(m, err, OP_BAD_VALUE, "the loss does not depend on weight \"%.100s\": freeze it", t->weights[w].name);
        for (int w = 0; w < t->n_trained && st == OP_OK; w++) {
            int rows = by_rows(t, g, w, at[w], &outputs[n_out + w]);
            if (rows < 0) continue;
            indices[t->n_by_rows++] = rows;
            t->weights[w].rows = op__rows_create(t->weights[w].value.dims[0]);
            if (!t->weights[w].rows) st = op__model_fail(m, err, OP_NOMEM, "out of memory");
        }
        n_out += t->n_trained;
        for (int w = t->n_trained; w < t->n_weights && st == OP_OK; w++) outputs[n_out++] = updates[w];
        for (int k = 0; k < t->n_by_rows && st == OP_OK; k++) outputs[n_out++] = indices[k];
        if (st != OP_OK) return st;
    }
    return set_outputs(m, outputs, n_out) == OP_OK ? OP_OK : op__model_fail(m, err, OP_NOMEM, "out of memory");
}
