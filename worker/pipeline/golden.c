/* golden.c: samples with the expected answer, which prove that a model and its pipeline still mean
 * what they meant.
 *
 * `expect` is compared as a part of the result: each key of an object and each element of a list
 * that it names must be there, what it does not name is free. Numbers are compared within tol,
 * relative where they are larger than 1. */
#include "worker/pipeline/frame.h"

#include <errno.h>
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { GOLDEN_BYTES_MAX = 1 << 30 };

static bool read_file(const char *folder, const char *name, struct w_arena *arena,
                      struct w_span *bytes, struct w_error *err) {
    char real[PATH_MAX];
    if (!w__path_inside(folder, name, real, err)) return false;
    FILE *f = fopen(real, "rbe");
    if (!f)
        return w_fail(err, W_REF_NOT_FOUND, "%.200s cannot be opened: %s", name, strerror(errno));
    long size = fseek(f, 0, SEEK_END) ? -1 : ftell(f);
    char *data = size >= 0 && size < GOLDEN_BYTES_MAX ? w_arena_alloc(arena, (size_t)size) : NULL;
    bool good = data && !fseek(f, 0, SEEK_SET) && fread(data, 1, (size_t)size, f) == (size_t)size;
    fclose(f);
    *bytes = (struct w_span){data, good ? (size_t)size : 0};
    return good || w_fail(err, W_REF_FAILED, "%.200s (%ld bytes) cannot be read", name, size);
}

/* References of an inline sample: files of the model's folder only. */
static bool fetch(void *user, const char *ref, struct w_arena *arena, struct w_span *bytes,
                  struct w_error *err) {
    if (strncmp(ref, "file:", 5))
        return w_fail(err, W_REF_DENIED, "a golden sample can name files only, not %.200s", ref);
    return read_file(user, ref + 5, arena, bytes, err);
}

static bool ends_with(const char *s, const char *end) {
    size_t n = strlen(s), m = strlen(end);
    return n >= m && !strcmp(s + n - m, end);
}

/* --- comparing -------------------------------------------------------------------------------- */

static bool compare(json_t *expect, json_t *found, double tol, char *path, size_t room,
                    struct w_error *err);

static bool differs(json_t *expect, json_t *found, const char *path, struct w_error *err) {
    char *want = json_dumps(expect, JSON_ENCODE_ANY | JSON_COMPACT),
         *got = found ? json_dumps(found, JSON_ENCODE_ANY | JSON_COMPACT) : NULL;
    w_fail(err, W_BAD_MODEL, "%s is %.120s, expected %.120s", path, got ? got : "missing",
           want ? want : "?");
    free(want);
    free(got);
    return false;
}

static bool compare_container(json_t *expect, json_t *found, double tol, char *path, size_t room,
                              struct w_error *err) {
    size_t len = strlen(path), i;
    const char *key;
    json_t *value;
    if (json_is_object(expect)) {
        json_object_foreach(expect, key, value) {
            snprintf(path + len, room - len, ".%s", key);
            if (!compare(value, json_object_get(found, key), tol, path, room, err)) return false;
        }
    } else {
        json_array_foreach(expect, i, value) {
            snprintf(path + len, room - len, "[%zu]", i);
            if (!compare(value, json_array_get(found, i), tol, path, room, err)) return false;
        }
    }
    path[len] = 0;
    return true;
}

static bool compare(json_t *expect, json_t *found, double tol, char *path, size_t room,
                    struct w_error *err) {
    if (json_is_number(expect) && json_is_number(found)) {
        double want = json_number_value(expect), got = json_number_value(found),
               scale = fmax(1, fabs(want));
        if (fabs(got - want) <= tol * scale) return true;
        return w_fail(err, W_BAD_MODEL, "%s is %.9g, expected %.9g within %g", path, got, want,
                      tol * scale);
    }
    if (found && json_typeof(expect) == json_typeof(found) &&
        (json_is_object(expect) || json_is_array(expect)))
        return compare_container(expect, found, tol, path, room, err);
    return (found && json_equal(expect, found)) || differs(expect, found, path, err);
}

/* --- running ---------------------------------------------------------------------------------- */

int w_pipeline_n_golden(const struct w_pipeline *p) {
    return p->n_golden;
}

/* A string that names a file in the folder is that file; another string is the input itself, where
 * the pipeline begins with text. */
static bool is_file(const struct w_pipeline *p, const struct w_golden *g) {
    return json_is_string(g->input) && !(p->n_steps && p->in[0].type == W_TEXT &&
                                         !ends_with(json_string_value(g->input), ".txt"));
}

const char *w_pipeline_golden_name(const struct w_pipeline *p, int i) {
    return i >= 0 && i < p->n_golden && is_file(p, &p->golden[i])
               ? json_string_value(p->golden[i].input)
               : "input";
}

bool w_pipeline_golden(const struct w_pipeline *p, int i, w_run_fn *run, void *user,
                       w_trace_fn *on_trace, void *trace_user, struct w_error *err) {
    const struct w_golden *g = &p->golden[i];
    struct w_row *row = w_row_create(GOLDEN_BYTES_MAX);
    if (!row) return w_fail(err, W_NO_MEMORY, "out of memory");
    row->trace = on_trace;
    row->trace_user = trace_user;
    struct w_input input = {.kind = W_INPUT_JSON, .fetch = fetch, .user = p->folder};
    struct w_value value = {.type = W_BYTES};
    char *text = NULL, path[512] = "result";
    json_t *found = NULL;
    bool good = true;
    if (is_file(p, g)) {
        const char *name = json_string_value(g->input);
        if (ends_with(name, ".json"))
            value.type = W_JSON;
        else if (ends_with(name, ".txt"))
            value.type = W_TEXT;
        input.kind = W_INPUT_VALUE;
        input.value = &value;
        good = read_file(p->folder, name, &row->arena, &value.span, err);
    } else {
        text = json_dumps(g->input, JSON_ENCODE_ANY | JSON_COMPACT);
        good = text || w_fail(err, W_NO_MEMORY, "out of memory");
        input.json = (struct w_span){text, text ? strlen(text) : 0};
    }
    if (good && w_pipeline_run(p, row, &input, run, user, err)) {
        found = json_loadb(row->result.ptr, row->result.len, 0, NULL);
        good = found ? compare(g->expect, found, g->tol, path, sizeof path, err)
                     : w_fail(err, W_INTERNAL, "the result is no JSON");
    } else {
        good = false;
    }
    json_decref(found);
    free(text);
    w_row_destroy(row);
    return good || w_fail_in(err, "golden sample %d (%s): ", i + 1, w_pipeline_golden_name(p, i));
}
