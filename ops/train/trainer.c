/* A training step: run the step model, then update the weights. See ops_train.h for the whole, train.h for the models.
 *
 * Weights and optimiser states are f32 arrays of the trainer; the session borrows the weights as inputs, so an update is seen by the
 * next run and nothing is copied (update.c). Running statistics come back as outputs and are copied after a good step. A step whose loss or
 * gradient norm is not finite changes nothing. Order of work and of sums is fixed, so a run's bits are. */
#include <fnmatch.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ops/train/train.h"

/* --- creating ---------------------------------------------------------------------------------- */

static char *keep(struct op_trainer *t, const char *text) {
    char **grown = realloc(t->strings, ((size_t)t->n_strings + 1) * sizeof *grown), *copy = text && grown ? strdup(text) : NULL;
    if (grown) t->strings = grown;
    if (copy) t->strings[t->n_strings++] = copy;
    return copy;
}

/* The noises and activities, whose values are names. */
static bool keep_values(struct op_trainer *t, const struct op_trainer_options *options) {
    struct op_noise *noises = calloc((size_t)options->n_noises + 1, sizeof *noises);
    struct op_activity *activities = calloc((size_t)options->n_activities + 1, sizeof *activities);
    t->options.noises = noises;
    t->options.activities = activities;
    bool good = noises && activities;
    for (int i = 0; good && i < options->n_noises; i++) {
        noises[i] = options->noises[i];
        good = (noises[i].value = keep(t, noises[i].value)) && (noises[i].kind = keep(t, noises[i].kind));
    }
    for (int i = 0; good && i < options->n_activities; i++) {
        activities[i] = options->activities[i];
        good = (activities[i].value = keep(t, activities[i].value)) != NULL;
    }
    return good;
}

/* Copies the options and what they point at. */
static bool keep_options(struct op_trainer *t, const struct op_trainer_options *options) {
    t->options = *options; /* the lists are copied one by one */
    t->options.freeze = NULL;
    t->options.regularizers = NULL;
    t->options.noises = NULL;
    t->options.activities = NULL;
    t->losses = calloc((size_t)options->n_losses + 1, sizeof *t->losses);
    char **freeze = calloc((size_t)options->n_freeze + 1, sizeof *freeze);
    t->options.freeze = (const char *const *)freeze;
    t->options.losses = t->losses;
    struct op_regularizer *regularizers = calloc((size_t)options->n_regularizers + 1, sizeof *regularizers);
    t->options.regularizers = regularizers;
    if (!t->losses || !freeze || !regularizers) return false;
    for (int i = 0; i < options->n_regularizers; i++) {
        regularizers[i] = options->regularizers[i];
        if (!(regularizers[i].weights = keep(t, options->regularizers[i].weights))) return false;
    }
    for (int i = 0; i < options->n_freeze; i++)
        if (!(freeze[i] = keep(t, options->freeze[i]))) return false;
    if (!keep_values(t, options)) return false;
    for (int i = 0; i < options->n_losses; i++) {
        struct op_loss *l = &t->losses[i];
        *l = options->losses[i];
        if (!(l->name = keep(t, l->name)) || (l->output && !(l->output = keep(t, l->output)))) return false;
        if (!l->class_weights) continue;
        float *copy = malloc(((size_t)l->n_classes + 1) * sizeof *copy);
        if (!copy) return false;
        memcpy(copy, options->losses[i].class_weights, (size_t)l->n_classes * sizeof *copy);
        l->class_weights = copy;
    }
    t->options.optimizer.name = keep(t, options->optimizer.name);
    return t->options.optimizer.name != NULL;
}

static bool make_states(struct op_trainer *t) {
    int n_states = op__rule_states(t->rule, &t->options.optimizer);
    t->scratch = calloc((size_t)t->n_trained + 1, sizeof *t->scratch);
    if (!t->scratch) return false;
    for (int i = 0; i < t->n_trained; i++) {
        struct op_weight *w = &t->weights[i];
        size_t n = (size_t)op_tensor_count(&w->value);
        for (int k = 0; k < n_states; k++)
            if (!(w->state[k] = calloc(n, sizeof(float)))) return false;
        if (t->options.optimizer.accumulate > 1 && !(w->sum = calloc(n, sizeof(float)))) return false;
        if (t->options.optimizer.ema > 0) {
            if (!(w->ema = malloc(n * sizeof(float)))) return false;
            memcpy(w->ema, w->value.data, n * sizeof(float));
        }
        for (int k = 0; k < t->options.n_regularizers; k++) {
            const struct op_regularizer *r = &t->options.regularizers[k];
            if (fnmatch(r->weights, w->name, 0)) continue;
            w->l1 = r->l1;
            w->l2 = r->l2;
            break;
        }
        if (op__update_copies(t, w) && !(t->scratch[i] = malloc(n * sizeof(float)))) return false;
    }
    return true;
}

static enum op_status check_options(struct op_model *m, const struct op_trainer_options *o, const struct op_rule *rule, struct op_error *err) {
    if (!rule) return op__model_fail(m, err, OP_UNSUPPORTED, "there is no optimiser \"%.60s\"", o->optimizer.name ? o->optimizer.name : "");
    if (o->n_losses < 1) return op__model_fail(m, err, OP_BAD_VALUE, "a training needs a loss");
    float lr = o->optimizer.learning_rate;
    if (!isnan(lr) && !(isfinite(lr) && lr > 0)) return op__model_fail(m, err, OP_BAD_VALUE, "the learning rate is %g, a positive finite number is expected", (double)lr);
    return OP_OK;
}

static bool make_models(struct op_trainer *t, struct op_error *err) {
    struct op_train_graph plan = {.t = t, .find = true};
    struct op_session_options options = {.n_threads = t->options.n_threads, .cancel = t->options.cancel};
    t->step_model = op__model_transformed(t->model, op__train_transform, &plan, err);
    plan = (struct op_train_graph){.t = t, .evaluate = true};
    if (t->step_model) t->eval_model = op__model_transformed(t->model, op__train_transform, &plan, err);
    if (!t->eval_model) return false;
    struct op_session_options watched = options;
    watched.on_node = t->options.on_node;
    watched.user = t->options.user;
    t->step_session = op_session_create(t->step_model, &watched, err);
    if (t->step_session) t->eval_session = op_session_create(t->eval_model, &options, err);
    return t->eval_session != NULL;
}

struct op_trainer *op_trainer_create(struct op_model *m, const struct op_trainer_options *options, struct op_error *err) {
    struct op_error own;
    if (!err) err = &own;
    *err = (struct op_error){0};
    const struct op_rule *rule = options->optimizer.name ? op__rule_find(options->optimizer.name) : NULL;
    if (check_options(m, options, rule, err) != OP_OK) return NULL;
    struct op_trainer *t = calloc(1, sizeof *t);
    if (!t) return op__model_fail(m, err, OP_NOMEM, "out of memory"), NULL;
    t->model = op_model_retain(m);
    t->rule = rule;
    bool good = keep_options(t, options);
    if (good) op__rule_fill(rule, &t->options.optimizer);
    if (good && !make_models(t, err)) {
        op_trainer_destroy(t);
        return NULL;
    }
    if (good) t->inputs = calloc((size_t)t->step_model->graph->n_inputs + 1, sizeof *t->inputs);
    if (!good || !t->inputs || !make_states(t)) {
        op__model_fail(m, err, OP_NOMEM, "out of memory for the weights and the optimiser's state");
        op_trainer_destroy(t);
        return NULL;
    }
    return t;
}

void op_trainer_destroy(struct op_trainer *t) {
    if (!t) return;
    op_session_destroy(t->step_session);
    op_session_destroy(t->eval_session);
    op_model_release(t->step_model);
    op_model_release(t->eval_model);
    for (int i = 0; i < t->n_weights; i++) {
        struct op_weight *w = &t->weights[i];
        free(w->name);
        op_tensor_free(&w->value);
        for (int k = 0; k < OP__STATES_MAX; k++) free(w->state[k]);
        free(w->sum);
        free(w->ema);
        op__rows_destroy(w->rows);
    }
    for (int i = 0; t->scratch && i < t->n_trained; i++) free(t->scratch[i]);
    for (int i = 0; t->losses && i < t->options.n_losses; i++)
        if (t->losses[i].class_weights != NULL) free((void *)(uintptr_t)t->losses[i].class_weights);
    for (int i = 0; i < t->n_strings; i++) free(t->strings[i]);
    free((void *)(uintptr_t)t->options.freeze);
    free((void *)(uintptr_t)t->options.regularizers);
    free((void *)(uintptr_t)t->options.noises);
    free((void *)(uintptr_t)t->options.activities);
    free(t->strings);
    free(t->losses);
    free(t->weights);
    free(t->scratch);
    free(t->ones);
    free(t->inputs);
    op_model_release(t->model);
    free(t);
}

/* --- a batch ----------------------------------------------------------------------------------- */

static bool need_ones(struct op_trainer *t, int64_t n) {
    if (n <= t->n_ones) return true;
    float *grown = realloc(t->ones, (size_t)n * sizeof *grown);
    if (!grown) return false;
    for (int64_t i = t->n_ones; i < n; i++) grown[i] = 1;
    t->ones = grown;
    t->n_ones = n;
    return true;
}

/* Fills t->inputs; the number of them, or -1 with err set. */
static int gather(struct op_trainer *t, const struct op_tensor *inputs, int n_inputs, const struct op_tensor *targets, int n_targets,
                  const struct op_tensor *sample_weights, struct op_error *err) {
    int n = 0;
    if (n_inputs != t->n_inputs || n_targets != t->options.n_losses) {
        op__model_fail(t->model, err, OP_BAD_VALUE, "%d inputs and %d targets were given, %d and %d are expected", n_inputs, n_targets, t->n_inputs, t->options.n_losses);
        return -1;
    }
    int64_t rows = targets[0].rank > 0 ? targets[0].dims[0] : 1;
    if (!sample_weights && !need_ones(t, rows)) {
        op__model_fail(t->model, err, OP_NOMEM, "out of memory");
        return -1;
    }
    for (int i = 0; i < n_inputs; i++) t->inputs[n++] = inputs[i];
    for (int i = 0; i < n_targets; i++) t->inputs[n++] = targets[i];
    t->inputs[n++] = sample_weights ? *sample_weights : (struct op_tensor){.dtype = OP_F32, .rank = 1, .dims = {rows}, .data = t->ones};
    for (int i = 0; i < t->n_weights; i++) t->inputs[n++] = t->weights[i].value;
    return n;
}

static uint64_t mix(uint64_t z) {
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

enum op_status op_trainer_step(struct op_trainer *t, const struct op_tensor *inputs, int n_inputs, const struct op_tensor *targets, int n_targets,
                               const struct op_tensor *sample_weights, float learning_rate, struct op_step_result *step, struct op_error *err) {
    const struct op_tensor *out;
    struct op_error own;
    if (!err) err = &own;
    int n = gather(t, inputs, n_inputs, targets, n_targets, sample_weights, err);
    if (n < 0) return err->code;
    if (isnan(learning_rate)) learning_rate = t->options.optimizer.learning_rate;
    t->step_session->x.random = mix(t->options.seed * 0x9e3779b97f4a7c15u + t->steps + 1); /* Dropout: by seed and step alone */
    enum op_status st = op_session_run(t->step_session, t->inputs, n, &out, err);
    if (st != OP_OK) return st;
    const struct op_tensor *gradients = out + 1 + t->n_outputs, *statistics = gradients + t->n_trained;
    double loss = (double)*(const float *)out[0].data;
    st = op__update_rows(t, gradients, statistics + (t->n_weights - t->n_trained), err);
    if (st != OP_OK) return st;
    double total = op__update_norm(t, gradients);
    *step = (struct op_step_result){.loss = loss, .gradient_norm = total, .outputs = out + 1};
    if (!isfinite(loss) || !isfinite(total))
        return op__model_fail(t->model, err, OP_BAD_VALUE, "%s is not finite at step %" PRIu64 ": the weights stay as they were", isfinite(loss) ? "the gradient" : "the loss", t->steps + 1);
    t->steps++;
    for (int k = t->n_trained; k < t->n_weights; k++)
        memcpy(t->weights[k].value.data, statistics[k - t->n_trained].data, (size_t)op_tensor_bytes(&t->weights[k].value));
    double penalty = op__update(t, gradients, total, learning_rate);
    step->loss += penalty;
    return penalty >= 0 ? OP_OK : op__model_fail(t->model, err, OP_NOMEM, "out of memory for an update");
}

/* The averaged weights take the place of the weights, and the other way round. */
static void swap_ema(struct op_trainer *t) {
    for (int k = 0; k < t->n_trained; k++) {
        float *e = t->weights[k].ema, *v = t->weights[k].value.data;
        for (int64_t i = 0, n = op_tensor_count(&t->weights[k].value); e && i < n; i++) {
            float keep_it = e[i];
            e[i] = v[i];
            v[i] = keep_it;
        }
    }
}

enum op_status op_trainer_evaluate(struct op_trainer *t, const struct op_tensor *inputs, int n_inputs, const struct op_tensor *targets, int n_targets,
                                   const struct op_tensor *sample_weights, struct op_step_result *step, struct op_error *err) {
    const struct op_tensor *out;
    struct op_error own;
    if (!err) err = &own;
    int n = gather(t, inputs, n_inputs, targets, n_targets, sample_weights, err);
    if (n < 0) return err->code;
    swap_ema(t);
    enum op_status st = op_session_run(t->eval_session, t->inputs, n, &out, err);
    swap_ema(t);
    if (st == OP_OK) *step = (struct op_step_result){.loss = (double)*(const float *)out[0].data, .outputs = out + 1};
    return st;
}

enum op_status op_trainer_plan(struct op_trainer *t, const struct op_tensor *inputs, int n_inputs, const struct op_tensor *targets, int n_targets,
                               size_t *peak_bytes, double *flops, struct op_error *err) {
    struct op_error own;
    if (!err) err = &own;
    int n = gather(t, inputs, n_inputs, targets, n_targets, NULL, err);
    if (n < 0) return err->code;
    enum op_status st = op_session_plan(t->step_session, t->inputs, n, peak_bytes, flops, err);
    int n_arrays = 1 + op__rule_states(t->rule, &t->options.optimizer) + (t->options.optimizer.accumulate > 1) + (t->options.optimizer.ema > 0);
    for (int k = 0; st == OP_OK && peak_bytes && k < t->n_trained; k++)
        *peak_bytes += (size_t)op_tensor_bytes(&t->weights[k].value) * (size_t)(n_arrays + op__update_copies(t, &t->weights[k]));
    return st;
}

int op_trainer_n_weights(const struct op_trainer *t) {
    return t->n_weights;
}

const char *op_trainer_weight(const struct op_trainer *t, int i, bool *trained, const struct op_tensor **value) {
    if (trained) *trained = t->weights[i].trained;
    if (value) *value = &t->weights[i].value;
    return t->weights[i].name;
}

uint64_t op_trainer_steps(const struct op_trainer *t) {
    return t->steps;
}
