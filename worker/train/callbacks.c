/* callbacks.c: what looks at each epoch's results: EarlyStopping, ModelCheckpoint,
 * ReduceLROnPlateau, TerminateOnNaN, as in Keras. A callback says what is to be done; the loop does
 * it. Their state is three numbers each, and goes into checkpoints. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "worker/train/train.h"

struct w_callback_desc {
    const char *name;
    const struct w_param *params;
    void (*epoch)(struct w_callback *c, int epoch, double value, struct w_verdict *v);
};

/* Whether the value is better than the best by min_delta; then it is the best. */
static bool improved(struct w_callback *c, double value) {
    double gain = c->mode > 0 ? value - c->best : c->best - value;
    if (!(isnan(c->best) || gain > c->min_delta) || isnan(value)) return false;
    c->best = value;
    return true;
}

static void early_stopping(struct w_callback *c, int epoch, double value, struct w_verdict *v) {
    if (epoch < c->start_from_epoch) return;
    if (improved(c, value)) {
        c->wait = 0;
        v->best |= c->restore_best_weights;
        return;
    }
    if (++c->wait < c->patience || epoch == 0) return;
    v->stop = true;
    v->restore |= c->restore_best_weights;
    snprintf(v->why, sizeof v->why, "%s did not improve for %d epochs (best %.6g)", c->monitor,
             c->wait, c->best);
}

/* The weights of the best epoch are what is written in the end. */
static void model_checkpoint(struct w_callback *c, int epoch, double value, struct w_verdict *v) {
    (void)epoch;
    if (c->save_best_only && improved(c, value)) v->best = true;
}

static void reduce_lr(struct w_callback *c, int epoch, double value, struct w_verdict *v) {
    (void)epoch;
    if (c->cooling > 0) {
        c->cooling--;
        c->wait = 0;
    }
    if (improved(c, value)) {
        c->wait = 0;
    } else if (c->cooling <= 0 && ++c->wait >= c->patience) {
        v->lr_factor *= c->factor;
        v->lr_min = c->min_lr > v->lr_min ? c->min_lr : v->lr_min;
        c->cooling = c->cooldown;
        c->wait = 0;
    }
}

static void terminate_on_nan(struct w_callback *c, int epoch, double value, struct w_verdict *v) {
    (void)c, (void)epoch, (void)value, (void)v; /* the loop itself meets it, in a step */
}

struct given {
    int32_t mode;
    char *monitor;
    struct w_callback c;
};
/* clang-format off */
#define C(field) offsetof(struct given, c.field)
#define WATCH(dflt_patience) {.name = "monitor", .kind = W_PARAM_TEXT, .offset = offsetof(struct given, monitor)}, {.name = "mode", .kind = W_PARAM_CHOICE, .offset = offsetof(struct given, mode), .choices = "auto min max"}, \
    {.name = "patience", .kind = W_PARAM_INT, .offset = C(patience), .min = 0, .max = 1e6, .deflt = dflt_patience}, {.name = "verbose", .kind = W_PARAM_INT, .offset = C(cooling), .min = 0, .max = 2}
static const struct w_param early_params[] = {WATCH(0), {.name = "min_delta", .kind = W_PARAM_DOUBLE, .offset = C(min_delta), .min = 0, .max = 1e9},
    {.name = "restore_best_weights", .kind = W_PARAM_BOOL, .offset = C(restore_best_weights)}, {.name = "start_from_epoch", .kind = W_PARAM_INT, .offset = C(start_from_epoch), .min = 0, .max = 1e6}, {0}};
static const struct w_param checkpoint_params[] = {WATCH(0), {.name = "filepath", .kind = W_PARAM_TEXT, .offset = C(filepath)}, {.name = "save_best_only", .kind = W_PARAM_BOOL, .offset = C(save_best_only)}, {0}};
static const struct w_param reduce_params[] = {WATCH(10), {.name = "factor", .kind = W_PARAM_DOUBLE, .offset = C(factor), .min = 1e-6, .max = 0.999999, .deflt = 0.1}, {.name = "min_delta", .kind = W_PARAM_DOUBLE, .offset = C(min_delta), .min = 0, .max = 1e9, .deflt = 1e-4},
    {.name = "cooldown", .kind = W_PARAM_INT, .offset = C(cooldown), .min = 0, .max = 1e6}, {.name = "min_lr", .kind = W_PARAM_DOUBLE, .offset = C(min_lr), .min = 0, .max = 1e6}, {0}};
static const struct w_param nan_params[] = {{0}};
static const struct w_callback_desc descs[] = {{"EarlyStopping", early_params, early_stopping}, {"ModelCheckpoint", checkpoint_params, model_checkpoint}, {"ReduceLROnPlateau", reduce_params, reduce_lr}, {"TerminateOnNaN", nan_params, terminate_on_nan}};
/* clang-format on */

static const char *next_desc(void *user, size_t i) {
    (void)user;
    return i < sizeof descs / sizeof *descs ? descs[i].name : NULL;
}

static bool read_callback(json_t *json, int index, struct w_callback *dst, struct w_error *err) {
    struct given g = {0};
    char where[64];
    const char *type;
    snprintf(where, sizeof where, "fit.callbacks[%d]", index);
    if (!w__train_typed(json, &type, where, err)) return false;
    for (size_t i = 0; i < sizeof descs / sizeof *descs; i++)
        if (strcmp(descs[i].name, type) == 0) g.c.desc = &descs[i];
    if (!g.c.desc) return w__train_unknown(where, "callback", type, next_desc, NULL, err);
    json_t *none = json_object();
    const struct w_callback_desc *desc = g.c.desc;
    bool ok = w__train_params(desc->params, json_is_object(json) ? json : none, &g, where, err);
    json_decref(none);
    if (ok) {
        const char *monitor = g.monitor ? g.monitor : "val_loss";
        *dst = g.c;
        dst->filepath = NULL;
        snprintf(dst->monitor, sizeof dst->monitor, "%s", monitor);
        bool up = strstr(monitor, "acc") || strstr(monitor, "auc") ||
                  strstr(monitor, "precision") || strstr(monitor, "recall") ||
                  strstr(monitor, "f1") || strstr(monitor, "r2");
        dst->mode = g.mode == 1 ? -1 : g.mode == 2 ? 1 : up ? 1 : -1;
        dst->best = NAN;
        dst->cooling = 0;
    }
    w__params_free(desc->params, &g);
    return ok;
}

bool w_callbacks_parse(json_t *list, struct w_callbacks *dst, struct w_error *err) {
    size_t i;
    json_t *json;
    *dst = (struct w_callbacks){0};
    if (!list) return true;
    if (!json_is_array(list) || json_array_size(list) > W_TRAIN_CALLBACKS_MAX)
        return w_fail(err, W_BAD_SPEC, "fit.callbacks must be a list of at most %d",
                      W_TRAIN_CALLBACKS_MAX);
    json_array_foreach(list, i, json) {
        if (!read_callback(json, (int)i, &dst->items[dst->n], err)) return false;
        dst->terminate_on_nan |= strcmp(dst->items[dst->n].desc->name, "TerminateOnNaN") == 0;
        dst->n++;
    }
    return true;
}

bool w_callbacks_epoch(struct w_callbacks *c, int epoch, json_t *results, struct w_verdict *v,
                       struct w_error *err) {
    *v = (struct w_verdict){.lr_factor = 1};
    for (int i = 0; i < c->n; i++) {
        struct w_callback *one = &c->items[i];
        json_t *value = json_object_get(results, one->monitor);
        if (!value && one->desc->epoch != terminate_on_nan) {
            char *known = json_dumps(results, JSON_COMPACT);
            w_fail(err, W_BAD_SPEC,
                   "fit.callbacks[%d]: %s watches \"%s\", which the epochs do not have (validation "
                   "data "
                   "gives val_…): %.200s",
                   i, one->desc->name, one->monitor, known ? known : "");
            free(known);
            return false;
        }
        one->desc->epoch(one, epoch, json_number_value(value), v);
    }
    return true;
}

json_t *w_callbacks_save(const struct w_callbacks *c) {
    json_t *all = json_array();
    for (int i = 0; i < c->n; i++) {
        const struct w_callback *one = &c->items[i];
        json_array_append_new(all, json_pack("[o,i,i]",
                                             isnan(one->best) ? json_null() : json_real(one->best),
                                             one->wait, one->cooling));
    }
    return all;
}

void w_callbacks_load(struct w_callbacks *c, json_t *from) {
    for (int i = 0; i < c->n; i++) {
        json_t *one = json_array_get(from, (size_t)i), *best = json_array_get(one, 0);
        c->items[i].best = json_is_number(best) ? json_number_value(best) : NAN;
        c->items[i].wait = (int32_t)json_integer_value(json_array_get(one, 1));
        c->items[i].cooling = (int32_t)json_integer_value(json_array_get(one, 2));
    }
}

void w_callbacks_finish(struct w_callbacks *c) {
    *c = (struct w_callbacks){0};
}
