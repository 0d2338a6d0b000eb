/* study.c: the section "tune" of a spec, and what follows from it and from the notes of the trials:
 * study.h says how. */
#include "worker/tune/study.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define TRIALS 20 /* where max_trials is not said */
#define TRIALS_TRIED 16

/* --- reading ---------------------------------------------------------------------------------- */

static bool is_maximised(const char *metric) {
    static const char *const small[] = {"loss", "error", "perplexity", "wer",
                                        "cer",  "mse",   "mae",        "rmse"};
    for (size_t i = 0; i < sizeof small / sizeof *small; i++)
        if (strstr(metric, small[i])) return false;
    return true;
}

static bool read_objective(struct w_study *s, json_t *json, struct w_error *err) {
    struct given {
        char *metric;
        int32_t direction;
    } g = {0};
    /* clang-format off */
    static const struct w_param params[] = {
        {.name = "metric", .kind = W_PARAM_TEXT, .offset = offsetof(struct given, metric), .required = true, .help = "such as \"val_accuracy\""},
        {.name = "direction", .kind = W_PARAM_CHOICE, .offset = offsetof(struct given, direction), .choices = "auto min max"},
        {0}};
    /* clang-format on */
    const char *name = json_is_string(json) ? json_string_value(json) : "val_loss";
    bool ok =
        !json || json_is_string(json) || w__train_params(params, json, &g, "tune.objective", err);
    snprintf(s->objective, sizeof s->objective, "%s", g.metric ? g.metric : name);
    s->maximise = g.direction ? g.direction == 2 : is_maximised(s->objective);
    free(g.metric);
    return ok;
}

static bool read_space(struct w_study *s, json_t *list, struct w_error *err) {
    size_t n = json_array_size(list), i;
    json_t *item;
    if (n < 1 || n > W_TUNE_DIMS_MAX)
        return w_fail(err, W_BAD_SPEC, "tune.space must be a list of 1 to %d things to vary",
                      W_TUNE_DIMS_MAX);
    s->n_dims = (int)n;
    json_array_foreach(list, i,
                       item) if (!w__dim_read(item, (int)i, &s->dims[i], err)) return false;
    return true;
}

/* A grid tries all, unless max_trials says fewer. */
static bool count_grid(struct w_study *s, struct w_error *err) {
    int64_t all = 1;
    for (int i = 0; i < s->n_dims; i++) {
        int32_t points = w__dim_points(&s->dims[i]);
        if (!points)
            return w_fail(
                err, W_BAD_SPEC,
                "tune.space[%d]: a grid needs \"points\", how many values to try of \"%s\"", i,
                s->dims[i].path);
        if (__builtin_mul_overflow(all, (int64_t)points, &all))
            return w_fail(err, W_BAD_SPEC, "the grid of tune.space is too large");
        if (all > W_TUNE_TRIALS_MAX && !s->n_trials)
            return w_fail(err, W_BAD_SPEC,
                          "the grid of tune.space has more than %d combinations: fewer points, or "
                          "max_trials",
                          W_TUNE_TRIALS_MAX);
    }
    if (!s->n_trials || s->n_trials > all) s->n_trials = (int32_t)all;
    return true;
}

static bool read_tune(struct w_study *s, struct w_error *err) {
    struct given {
        json_t *space, *objective;
        int32_t algorithm, max_trials, parallelism, startup_trials, eta, min_epochs;
        bool prune;
        double seed;
    } g = {0};
    /* clang-format off */
#define G(field) offsetof(struct given, field)
    static const struct w_param params[] = {
        {.name = "space", .kind = W_PARAM_JSON, .offset = G(space), .required = true, .help = "a list of what to vary"},
        {.name = "algorithm", .kind = W_PARAM_CHOICE, .offset = G(algorithm), .choices = "grid random tpe halving", .deflt = W_TUNE_TPE},
        {.name = "objective", .kind = W_PARAM_JSON, .offset = G(objective)},
        {.name = "max_trials", .kind = W_PARAM_INT, .offset = G(max_trials), .min = 1, .max = W_TUNE_TRIALS_MAX},
        {.name = "parallelism", .kind = W_PARAM_INT, .offset = G(parallelism), .min = 1, .max = 256, .deflt = 8},
        {.name = "startup_trials", .kind = W_PARAM_INT, .offset = G(startup_trials), .min = 1, .max = W_TUNE_TRIALS_MAX, .deflt = 10},
        {.name = "prune", .kind = W_PARAM_BOOL, .offset = G(prune)},
        {.name = "eta", .kind = W_PARAM_INT, .offset = G(eta), .min = 2, .max = 100, .deflt = 3},
        {.name = "min_epochs", .kind = W_PARAM_INT, .offset = G(min_epochs), .min = 1, .max = 1e6, .deflt = 1},
        {.name = "seed", .kind = W_PARAM_DOUBLE, .offset = G(seed), .min = 0, .max = 9007199254740992.0},
        {0}};
    /* clang-format on */
    if (!w__train_params(params, s->tune, &g, "tune", err) || !read_space(s, g.space, err) ||
        !read_objective(s, g.objective, err))
        return false;
    s->algorithm = (enum w_algorithm)g.algorithm;
    s->prunes = g.prune || s->algorithm == W_TUNE_HALVING;
    s->n_trials = g.max_trials;
    s->parallelism = g.parallelism;
    s->startup_trials = g.startup_trials;
    s->eta = g.eta;
    s->min_epochs = g.min_epochs;
    s->seed = (uint64_t)g.seed;
    if (s->algorithm == W_TUNE_GRID) return count_grid(s, err);
    if (!s->n_trials) s->n_trials = TRIALS;
    return true;
}

/* Reads the spec of a trial and puts its layers together. */
static bool try_trial(struct w_study *s, int64_t trial, struct w_error *err) {
    json_t *params = w_study_suggest(s, trial, NULL, 0), *json = w_study_spec(s, params, err);
    struct w_spec_train *spec = json ? w_train_spec_from(json, err) : NULL;
    struct w_train_model model = {0};
    bool ok = spec && (spec->model.onnx || w_train_model_build(spec, NULL, NULL, &model, err));
    w_train_model_finish(&model);
    if (ok) s->epochs = spec->fit.epochs;
    if (ok && spec->publish) s->publish = strdup(spec->publish);
    w_train_spec_destroy(spec);
    json_decref(json);
    json_decref(params);
    return ok;
}

/* What is wrong with the first and with others would be wrong with all; a single bad choice is a
 * trial that fails. */
static bool try_some(struct w_study *s, struct w_error *err) {
    struct w_error later;
    if (try_trial(s, 0, err)) return true;
    for (int64_t i = 1; i < s->n_trials && i < TRIALS_TRIED; i++)
        if (try_trial(s, i, &later)) return true;
    return false;
}

struct w_study *w_study_create(json_t *json, struct w_error *err) {
    struct w_study *s = calloc(1, sizeof *s);
    json_t *tune = json_object_get(json, "tune");
    if (!s) return w_fail(err, W_NO_MEMORY, "out of memory"), NULL;
    s->tune = json_incref(tune);
    s->spec = json_copy(json);
    if (!json_is_object(tune))
        w_fail(err, W_BAD_SPEC, "the spec has no \"tune\": {\"space\": [...], ...}");
    else if (json_object_del(s->spec, "tune") == 0 && read_tune(s, err) && try_some(s, err))
        return s;
    w_study_destroy(s);
    return NULL;
}

void w_study_destroy(struct w_study *s) {
    if (!s) return;
    json_decref(s->tune);
    json_decref(s->spec);
    free(s->publish);
    free(s);
}

/* --- notes ------------------------------------------------------------------------------------ */

static const char *const states[] = {"running", "done", "pruned", "failed"};

const char *w_trial_state_name(enum w_trial_state s) {
    return states[s];
}

bool w_trial_read(uint32_t number, const char *text, size_t len, struct w_trial *dst) {
    json_t *o = json_loadb(text, len, 0, NULL), *value = json_object_get(o, "value");
    const char *state = json_string_value(json_object_get(o, "state"));
    *dst = (struct w_trial){.number = number, .note = o, .value = NAN};
    if (json_is_number(value)) dst->value = json_number_value(value);
    for (int i = 0; state && i < 4; i++) {
        if (strcmp(states[i], state)) continue;
        dst->state = (enum w_trial_state)i;
        return true;
    }
    w_trial_finish(dst);
    return false;
}

void w_trial_finish(struct w_trial *t) {
    json_decref(t->note);
    t->note = NULL;
}

/* --- what follows ----------------------------------------------------------------------------- */

json_t *w_study_suggest(const struct w_study *s, int64_t trial, const struct w_trial *known,
                        size_t n) {
    json_t *params = json_object();
    int64_t cell = trial, cells = 1;
    for (int i = 0; i < s->n_dims && s->algorithm == W_TUNE_GRID; i++)
        cells *= w__dim_points(&s->dims[i]);
    for (int i = 0; i < s->n_dims; i++) {
        const struct w_dim *d = &s->dims[i];
        json_t *value;
        if (s->algorithm == W_TUNE_GRID) {
            cells /= w__dim_points(d);
            value = w__dim_grid(d, (int32_t)(cell / cells));
            cell %= cells;
        } else {
            value = w__dim_value(d, s->algorithm == W_TUNE_TPE ? w__tpe_draw(s, trial, i, known, n)
                                                               : w__draw(s, trial, i, 0));
        }
        json_object_set_new(params, d->path, value);
    }
    return params;
}

json_t *w_study_spec(const struct w_study *s, json_t *params, struct w_error *err) {
    json_t *spec = json_deep_copy(s->spec), *value;
    const char *path;
    json_object_foreach(params, path, value) if (!w__put(spec, path, value, err)) {
        json_decref(spec);
        return NULL;
    }
    return spec;
}

bool w_study_is_rung(const struct w_study *s, int epoch) {
    int64_t rung = s->min_epochs;
    while (s->prunes && rung < epoch) rung *= s->eta;
    return s->prunes && rung == epoch && epoch < s->epochs;
}

bool w_study_better(const struct w_study *s, double a, double b) {
    if (isnan(a) || isnan(b)) return !isnan(a);
    return s->maximise ? a > b : a < b;
}

bool w_study_gives_up(const struct w_study *s, const struct w_trial *known, size_t n, int64_t trial,
                      int epoch, double value) {
    char key[24];
    int64_t reached = 1, better = 0;
    if (!w_study_is_rung(s, epoch)) return false;
    snprintf(key, sizeof key, "%d", epoch);
    for (size_t i = 0; i < n; i++) {
        json_t *v = json_object_get(json_object_get(known[i].note, "rungs"), key);
        if (!json_is_number(v) || known[i].number == trial) continue;
        reached++;
        better += w_study_better(s, json_number_value(v), value);
    }
    int64_t room = reached / s->eta;
    return isnan(value) || better >= (room > 1 ? room : 1);
}

int64_t w_study_best(const struct w_study *s, const struct w_trial *known, size_t n) {
    int64_t best = -1;
    for (size_t i = 0; i < n; i++) {
        if (known[i].state != W_TRIAL_DONE || isnan(known[i].value)) continue;
        const struct w_trial *b = best < 0 ? NULL : &known[best];
        if (!b || w_study_better(s, known[i].value, b->value) ||
            (known[i].value == b->value && known[i].number < b->number))
            best = (int64_t)i;
    }
    return best;
}

/* --- the report ------------------------------------------------------------------------------- */

static int by_result(const void *a, const void *b, void *study) {
    const struct w_trial *x = a, *y = b;
    static const int order[] = {
        [W_TRIAL_DONE] = 0, [W_TRIAL_PRUNED] = 1, [W_TRIAL_RUNNING] = 2, [W_TRIAL_FAILED] = 3};
    if (order[x->state] != order[y->state]) return order[x->state] - order[y->state];
    if (w_study_better(study, x->value, y->value)) return -1;
    if (w_study_better(study, y->value, x->value)) return 1;
    return x->number < y->number ? -1 : x->number > y->number;
}

json_t *w_study_report(const struct w_study *s, struct w_trial *known, size_t n) {
    static const char *const algorithms[] = {"grid", "random", "tpe", "halving"};
    json_t *trials = json_array();
    int counts[4] = {0};
    if (n) qsort_r(known, n, sizeof *known, by_result, (void *)s);
    for (size_t i = 0; i < n; i++) {
        json_t *o = json_pack("{s:i}", "trial", (int)known[i].number);
        json_object_update(o, known[i].note);
        json_object_del(o, "rungs");
        json_array_append_new(trials, o);
        counts[known[i].state]++;
    }
    return json_pack("{s:s, s:s, s:s, s:i, s:i, s:i, s:o}", "algorithm", algorithms[s->algorithm],
                     "objective", s->objective, "direction", s->maximise ? "max" : "min", "done",
                     counts[W_TRIAL_DONE], "pruned", counts[W_TRIAL_PRUNED], "failed",
                     counts[W_TRIAL_FAILED], "trials", trials);
}
