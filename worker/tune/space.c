/* space.c: one dimension of the search: read, drawn from, laid out as a grid, and put into a spec.
 * A dimension is looked at as the interval [0, 1): logarithms, whole numbers and choices are ways
 * to read a number of it. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "worker/tune/study.h"

/* --- reading ---------------------------------------------------------------------------------- */

struct given {
    char *path;
    json_t *choice, *uniform, *log_uniform, *whole;
    double step;
    int32_t points;
};

static bool bounds(json_t *json, struct w_dim *d, const char *where, const char *key,
                   struct w_error *err) {
    json_t *low = json_array_get(json, 0), *high = json_array_get(json, 1);
    d->low = json_number_value(low);
    d->high = json_number_value(high);
    if (json_array_size(json) == 2 && json_is_number(low) && json_is_number(high) &&
        d->low < d->high && isfinite(d->low) && isfinite(d->high))
        return true;
    return w_fail(err, W_BAD_SPEC, "%s: \"%s\" must be [low, high], two numbers, the first smaller",
                  where, key);
}

static bool choices(struct w_dim *d, json_t *list, const char *where, struct w_error *err) {
    size_t n = json_array_size(list);
    d->choices = list;
    return (n >= 1 && n <= W_TUNE_CHOICES_MAX) ||
           w_fail(err, W_BAD_SPEC, "%s: \"choice\" must be a list of 1 to %d values", where,
                  W_TUNE_CHOICES_MAX);
}

static bool kind(const struct given *g, struct w_dim *d, const char *where, struct w_error *err) {
    int n =
        (g->choice != NULL) + (g->uniform != NULL) + (g->log_uniform != NULL) + (g->whole != NULL);
    if (n != 1)
        return w_fail(
            err, W_BAD_SPEC,
            "%s: one of \"choice\", \"uniform\", \"log_uniform\", \"int\" is expected, %d "
            "are there",
            where, n);
    d->step = g->step;
    d->points = g->points;
    if (g->choice) {
        d->kind = W_DIM_CHOICE;
        return choices(d, g->choice, where, err);
    }
    d->kind = g->uniform ? W_DIM_UNIFORM : g->log_uniform ? W_DIM_LOG : W_DIM_INT;
    if (!bounds(g->uniform       ? g->uniform
                : g->log_uniform ? g->log_uniform
                                 : g->whole,
                d, where,
                g->uniform       ? "uniform"
                : g->log_uniform ? "log_uniform"
                                 : "int",
                err))
        return false;
    if (d->kind == W_DIM_LOG && d->low <= 0)
        return w_fail(err, W_BAD_SPEC,
                      "%s: \"log_uniform\" begins at %g, a number above 0 is "
                      "expected",
                      where, d->low);
    if (d->kind == W_DIM_INT && (d->low != floor(d->low) || d->high != floor(d->high) ||
                                 fabs(d->low) > 1e9 || fabs(d->high) > 1e9))
        return w_fail(err, W_BAD_SPEC, "%s: \"int\" must be two whole numbers", where);
    return true;
}

bool w__dim_read(json_t *json, int index, struct w_dim *dst, struct w_error *err) {
    struct given g = {0};
    char where[64];
    /* clang-format off */
    static const struct w_param params[] = {
        {.name = "path", .kind = W_PARAM_TEXT, .offset = offsetof(struct given, path), .required = true, .help = "such as \"compile.optimizer.learning_rate\""},
        {.name = "choice", .kind = W_PARAM_JSON, .offset = offsetof(struct given, choice)},
        {.name = "uniform", .kind = W_PARAM_JSON, .offset = offsetof(struct given, uniform)},
        {.name = "log_uniform", .kind = W_PARAM_JSON, .offset = offsetof(struct given, log_uniform)},
        {.name = "int", .kind = W_PARAM_JSON, .offset = offsetof(struct given, whole)},
        {.name = "step", .kind = W_PARAM_DOUBLE, .offset = offsetof(struct given, step), .min = 1, .max = 1e9, .deflt = 1},
        {.name = "points", .kind = W_PARAM_INT, .offset = offsetof(struct given, points), .min = 1, .max = W_TUNE_TRIALS_MAX},
        {0}};
    /* clang-format on */
    snprintf(where, sizeof where, "tune.space[%d]", index);
    bool ok = w__train_params(params, json, &g, where, err) && kind(&g, dst, where, err);
    free(g.path);
    if (!ok) return false;
    dst->path = json_string_value(json_object_get(json, "path"));
    return (dst->path && *dst->path) ||
           w_fail(err, W_BAD_SPEC, "%s: \"path\" must be a string", where);
}

/* --- values ----------------------------------------------------------------------------------- */

static double n_whole(const struct w_dim *d) {
    return floor((d->high - d->low) / d->step) + 1;
}

json_t *w__dim_value(const struct w_dim *d, double u) {
    size_t n = json_array_size(d->choices), i;
    switch (d->kind) {
    case W_DIM_CHOICE:
        i = (size_t)(u * (double)n);
        return json_incref(json_array_get(d->choices, i < n ? i : n - 1));
    case W_DIM_UNIFORM:
        return json_real(d->low + u * (d->high - d->low));
    case W_DIM_LOG:
        return json_real(exp(log(d->low) + u * (log(d->high) - log(d->low))));
    case W_DIM_INT:
        break;
    }
    double k = floor(u * n_whole(d)), most = n_whole(d) - 1;
    return json_integer((json_int_t)(d->low + d->step * (k < most ? k : most)));
}

double w__dim_unit(const struct w_dim *d, json_t *value) {
    double v = json_number_value(value), u = 0;
    size_t n = json_array_size(d->choices);
    switch (d->kind) {
    case W_DIM_CHOICE:
        for (size_t i = 0; i < n; i++)
            if (json_equal(json_array_get(d->choices, i), value))
                return ((double)i + 0.5) / (double)n;
        return 0;
    case W_DIM_UNIFORM:
        u = (v - d->low) / (d->high - d->low);
        break;
    case W_DIM_LOG:
        u = v > 0 ? (log(v) - log(d->low)) / (log(d->high) - log(d->low)) : 0;
        break;
    case W_DIM_INT:
        u = ((v - d->low) / d->step + 0.5) / n_whole(d);
        break;
    }
    return u < 0 ? 0 : u > 1 ? 1 : u;
}

int32_t w__dim_points(const struct w_dim *d) {
    if (d->points) return d->points;
    if (d->kind == W_DIM_CHOICE) return (int32_t)json_array_size(d->choices);
    return d->kind == W_DIM_INT && n_whole(d) <= W_TUNE_TRIALS_MAX ? (int32_t)n_whole(d) : 0;
}

/* Points from end to end; choices and all whole numbers one by one. */
json_t *w__dim_grid(const struct w_dim *d, int32_t i) {
    int32_t n = w__dim_points(d);
    double cells = d->kind == W_DIM_CHOICE ? (double)json_array_size(d->choices)
                   : d->kind == W_DIM_INT  ? n_whole(d)
                                           : 0;
    double part = n > 1 ? (double)i / (n - 1) : 0.5;
    if (cells == 0) return w__dim_value(d, part);
    return w__dim_value(d, (floor(part * (cells - 1) + 0.5) + 0.5) / cells);
}

double w__draw(const struct w_study *s, int64_t trial, int dim, int k) {
    uint64_t z = w__train_mix(s->seed ^ 0x74756e65);
    z = w__train_mix(z + (uint64_t)trial);
    z = w__train_mix(z + (uint64_t)dim * 4096 + (uint64_t)k);
    return (double)(z >> 11) / 9007199254740992.0;
}

/* --- putting ---------------------------------------------------------------------------------- */

static json_t *item_of(json_t *list, const char *word) {
    char *end;
    unsigned long i = strtoul(word, &end, 10);
    size_t k;
    json_t *item;
    if (*word && !*end) return json_array_get(list, i);
    json_array_foreach(list, k, item) {
        const char *name = json_string_value(json_object_get(item, "name"));
        if (name && strcmp(name, word) == 0) return item;
    }
    return NULL;
}

/* "adam" stands for {"type": "adam"}; a missing "fit" or "optimizer" for an empty object. */
static json_t *open_up(json_t *parent, const char *word) {
    json_t *o = json_object_get(parent, word);
    if (json_is_object(o) || json_is_array(o)) return o;
    if (o && !json_is_string(o)) return NULL;
    json_t *whole = o ? json_pack("{s:O}", "type", o) : json_object();
    json_object_set_new(parent, word, whole);
    return whole;
}

static bool put_last(json_t *at, const char *word, json_t *value) {
    char *end;
    unsigned long i = strtoul(word, &end, 10);
    if (json_is_object(at)) return json_object_set(at, word, value) == 0;
    return *word && !*end && json_is_array(at) && json_array_set(at, i, value) == 0;
}

/* Words are parted by dots; [2] is short for .2 */
bool w__put(json_t *spec, const char *path, json_t *value, struct w_error *err) {
    char text[256], *rest, *word, *next;
    json_t *at = spec;
    size_t n = 0;
    for (const char *p = path; *p && n + 1 < sizeof text; p++)
        if (*p != ']') text[n++] = *p == '[' ? '.' : *p;
    text[n] = 0;
    word = strtok_r(text, ".", &rest);
    while (word && (next = strtok_r(NULL, ".", &rest)) != NULL) {
        json_t *below = json_is_array(at) ? item_of(at, word) : open_up(at, word);
        if (!below)
            return w_fail(err, W_BAD_SPEC,
                          "tune.space: the path \"%.100s\" leads nowhere at "
                          "\"%.60s\"",
                          path, word);
        at = below;
        word = next;
    }
    return (word && put_last(at, word, value)) ||
           w_fail(err, W_BAD_SPEC, "tune.space: the path \"%.100s\" leads nowhere at \"%.60s\"",
                  path, word ? word : "");
}
