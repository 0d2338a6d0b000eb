/* params.c: the table-driven reading of a step's parameters, with messages that say where, what was
 * found and what is allowed; and the registry of steps. */
#include "worker/pipeline/frame.h"

#include "worker/nearest.h"

#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* --- the registry ----------------------------------------------------------------------------- */

extern const struct w_step_desc *const __start_quern_steps[];
extern const struct w_step_desc *const __stop_quern_steps[];

const struct w_step_desc *w__step_at(size_t i) {
    // cppcheck-suppress comparePointers ; both ends of one section
    size_t n = (size_t)(__stop_quern_steps - __start_quern_steps);
    return i < n ? __start_quern_steps[i] : NULL;
}

const struct w_step_desc *w__step_find(const char *name) {
    const struct w_step_desc *d;
    for (size_t i = 0; (d = w__step_at(i)); i++)
        if (!strcmp(d->name, name)) return d;
    return NULL;
}

/* --- reading ---------------------------------------------------------------------------------- */

struct reading {
    const struct w_param *param;
    const char *folder, *where;
    struct w_error *err;
};

static bool wrong(const struct reading *r, json_t *found, const char *expected) {
    char *text = json_dumps(found, JSON_ENCODE_ANY | JSON_COMPACT);
    char shown[64];
    snprintf(shown, sizeof shown, "%s", text ? text : "?");
    free(text);
    return w_fail(r->err, W_BAD_MODEL, "%s: \"%s\" is %s, expected %s", r->where, r->param->name,
                  shown, expected);
}

static bool in_range(const struct w_param *p, double v) {
    return isfinite(v) && ((p->min == 0 && p->max == 0) || (v >= p->min && v <= p->max));
}

static bool read_number(const struct reading *r, json_t *json, double *dst) {
    const struct w_param *p = r->param;
    char expected[96];
    bool any = p->min == 0 && p->max == 0;
    const char *noun = p->kind == W_PARAM_INT ? "a whole number" : "a number";
    if (any)
        snprintf(expected, sizeof expected, "%s", noun);
    else
        snprintf(expected, sizeof expected, "%s from %g to %g", noun, p->min, p->max);
    bool right = p->kind == W_PARAM_INT ? json_is_integer(json) : json_is_number(json);
    *dst = json_number_value(json);
    return (right && in_range(p, *dst)) || wrong(r, json, expected);
}

static bool read_choice(const struct reading *r, json_t *json, int32_t *dst) {
    const char *word = json_string_value(json), *at = r->param->choices;
    char expected[240];
    for (int32_t i = 0; word && *at; i++) {
        size_t n = strcspn(at, " ");
        if (strlen(word) == n && !memcmp(word, at, n)) return *dst = i, true;
        at += n + (at[n] == ' ');
    }
    snprintf(expected, sizeof expected, "one of: %s", r->param->choices);
    return wrong(r, json, expected);
}

static bool read_floats(const struct reading *r, json_t *json, struct w_floats *dst) {
    size_t n = json_is_array(json) ? json_array_size(json) : 1;
    if (n < 1 || n > W_FLOATS_MAX) return wrong(r, json, "a number or a list of 1 to 16 numbers");
    for (size_t i = 0; i < n; i++)
        if (!read_number(r, json_is_array(json) ? json_array_get(json, i) : json, &dst->v[i]))
            return false;
    dst->n = (int32_t)n;
    return true;
}

static bool read_file(const struct reading *r, json_t *json, const char **dst) {
    const char *name = json_string_value(json);
    char real[PATH_MAX];
    if (!name || !*name) return wrong(r, json, "the name of a file in the model's folder");
    if (!w__path_inside(r->folder, name, real, r->err)) {
        r->err->code = W_BAD_MODEL;
        return w_fail_in(r->err, "%s: \"%s\": ", r->where, r->param->name);
    }
    free((char *)(uintptr_t)*dst);
    *dst = strdup(real);
    return *dst || w_fail(r->err, W_NO_MEMORY, "out of memory");
}

static bool read_one(const struct reading *r, json_t *json, void *state) {
    void *dst = (char *)state + r->param->offset;
    double v;
    switch (r->param->kind) {
    case W_PARAM_INT:
        if (!read_number(r, json, &v)) return false;
        if (v < INT32_MIN || v > INT32_MAX) return wrong(r, json, "a whole number of 32 bits");
        *(int32_t *)dst = (int32_t)v;
        return true;
    case W_PARAM_DOUBLE:
        return read_number(r, json, dst);
    case W_PARAM_BOOL:
        if (!json_is_boolean(json)) return wrong(r, json, "true or false");
        *(bool *)dst = json_is_true(json);
        return true;
    case W_PARAM_CHOICE:
        return read_choice(r, json, dst);
    case W_PARAM_FLOATS:
        return read_floats(r, json, dst);
    case W_PARAM_TEXT:
        if (!json_is_string(json)) return wrong(r, json, "a string");
        free(*(char **)dst);
        *(char **)dst = strdup(json_string_value(json));
        return *(char **)dst || w_fail(r->err, W_NO_MEMORY, "out of memory");
    case W_PARAM_FILE:
        return read_file(r, json, dst);
    case W_PARAM_JSON:
        *(json_t **)dst = json;
        return true;
    }
    return false;
}

static void set_default(const struct w_param *p, void *state) {
    void *dst = (char *)state + p->offset;
    switch (p->kind) {
    case W_PARAM_INT:
    case W_PARAM_CHOICE:
        *(int32_t *)dst = (int32_t)p->deflt;
        break;
    case W_PARAM_DOUBLE:
        *(double *)dst = p->deflt;
        break;
    case W_PARAM_BOOL:
        *(bool *)dst = p->deflt != 0;
        break;
    default:
        break;
    }
}

static const char *next_param(void *user, size_t i) {
    return ((const struct w_param *)user)[i].name;
}

bool w__params_read(const struct w_param *params, json_t *json, void *state, const char *folder,
                    const char *where, struct w_error *err) {
    static const struct w_param none[] = {{0}};
    if (!params) params = none;
    for (const struct w_param *p = params; p->name; p++) set_default(p, state);
    if (!json_is_object(json))
        return w_fail(err, W_BAD_MODEL, "%s: the parameters must be an object { … }", where);
    const char *key;
    json_t *value;
    json_object_foreach(json, key, value) {
        const struct w_param *p = params;
        while (p->name && strcmp(p->name, key)) p++;
        if (!p->name) {
            const char *near = w__nearest(key, next_param, (void *)(uintptr_t)params);
            return w_fail(err, W_BAD_MODEL, "%s: unknown parameter \"%s\"%s%s%s", where, key,
                          near ? "; did you mean \"" : "", near ? near : "", near ? "\"?" : "");
        }
        if (!read_one(&(struct reading){p, folder, where, err}, value, state)) return false;
    }
    for (const struct w_param *p = params; p->name; p++)
        if (p->required && !json_object_get(json, p->name))
            return w_fail(err, W_BAD_MODEL, "%s: the parameter \"%s\" is missing (%s)", where,
                          p->name, p->help);
    return true;
}

void w__params_free(const struct w_param *params, void *state) {
    if (!params || !state) return;
    for (const struct w_param *p = params; p->name; p++)
        if (p->kind == W_PARAM_TEXT || p->kind == W_PARAM_FILE)
            free(*(char **)((char *)state + p->offset));
}
