/* tensor_json.c: nested JSON arrays of numbers → a tensor, without a node a number.
 *
 * The shape comes from the nesting: the first array to close at a depth sets that dimension, every
 * later one must agree, and so must the depth of every number. The commas are counted first (one
 * pass at memory speed), so that the elements have their memory before the first is read. What is
 * wrong is told by its place: `x[3][2]`. */
#include "worker/pipeline/scan.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

struct walk {
    const char *p, *end, *start, *name;
    struct w_arena *arena;
    enum op_type dtype;
    void *data;
    int64_t n, capacity;
    int depth, leaf_depth; /* leaf_depth -1: no element seen yet */
    int64_t counts[OP_RANK_MAX], dims[OP_RANK_MAX];
    struct w_error *err;
};

/* name[3][2] of the element being read. */
static const char *place(const struct walk *w, int depth, char *dst, size_t n) {
    int at = snprintf(dst, n, "%s", w->name);
    for (int i = 0; i < depth && at > 0 && (size_t)at < n; i++)
        at += snprintf(dst + at, n - (size_t)at, "[%lld]", (long long)w->counts[i]);
    return dst;
}

static bool bad_at(struct walk *w, const char *code, const char *what) {
    char where[256];
    return w_fail(w->err, code, "%s: %s", place(w, w->depth, where, sizeof where), what);
}

static bool close_array(struct walk *w) {
    int d = --w->depth;
    char where[256];
    if (w->dims[d] < 0) {
        w->dims[d] = w->counts[d];
    } else if (w->dims[d] != w->counts[d]) {
        return w_fail(w->err, W_BAD_SHAPE,
                      "%s has %lld elements, the arrays before it have %lld: the nesting is ragged",
                      place(w, d, where, sizeof where), (long long)w->counts[d],
                      (long long)w->dims[d]);
    }
    return true;
}

static bool read_word(struct walk *w, bool *value) {
    size_t left = (size_t)(w->end - w->p);
    if (left >= 4 && !memcmp(w->p, "true", 4)) return w->p += 4, *value = true;
    if (left >= 5 && !memcmp(w->p, "false", 5)) return w->p += 5, *value = false, true;
    return false;
}

static bool read_string(struct walk *w) {
    struct w_scan s = {w->p, w->end};
    struct w_span raw;
    size_t len;
    if (*w->p != '"' || !w__scan_value(&s, &raw))
        return bad_at(w, W_BAD_DTYPE, "is no string, as the model's input wants");
    char *text = w__scan_string(raw, w->arena, true, &len);
    if (!text)
        return bad_at(w, W_BAD_JSON,
                      "is no valid string (UTF-8, escapes), or there is no memory for it");
    ((struct op_string *)w->data)[w->n] = (struct op_string){text, len};
    w->p = s.p;
    return true;
}

static bool read_odd(struct walk *w, struct w_number *number) {
    bool truth;
    if (w->dtype == OP_BOOL && read_word(w, &truth)) {
        *number = (struct w_number){.value = truth, .magnitude = truth, .is_int = true};
        return true;
    }
    size_t left = (size_t)(w->end - w->p);
    if (*w->p == '"') return bad_at(w, W_BAD_DTYPE, "is a string, a number was expected");
    if (*w->p == '{') return bad_at(w, W_BAD_DTYPE, "is an object, a number was expected");
    if (left >= 4 && !memcmp(w->p, "null", 4))
        return bad_at(w, W_BAD_INPUT,
                      "is null, a number was expected (there is no JSON form of NaN)");
    if (left >= 4 && (!memcmp(w->p, "true", 4) || !memcmp(w->p, "fals", 4)))
        return bad_at(w, W_BAD_DTYPE, "is a truth value, a number was expected");
    return bad_at(w, W_BAD_JSON, "is no JSON number");
}

static bool element(struct walk *w) {
    bool arrays_here = w->depth < OP_RANK_MAX && w->dims[w->depth] >= 0;
    if (w->leaf_depth < 0 && !arrays_here) w->leaf_depth = w->depth;
    if (w->leaf_depth != w->depth)
        return bad_at(
            w, W_BAD_SHAPE,
            "is nested less or deeper than the elements before it: the nesting is ragged");
    if (w->n >= w->capacity) return bad_at(w, W_TOO_LARGE, "is one element too many for the limit");
    if (w->dtype == OP_STRING) {
        if (!read_string(w)) return false;
    } else {
        struct w_number number;
        const char *p = w__number_read(w->p, w->end, &number);
        if (p)
            w->p = p;
        else if (!read_odd(w, &number))
            return false;
        if (!w__store(w->dtype, w->data, w->n, &number) || !isfinite(number.value)) {
            char what[96];
            snprintf(what, sizeof what, "is %.17g, which %s cannot hold", number.value,
                     op_type_name(w->dtype));
            return bad_at(w, W_BAD_DTYPE, what);
        }
    }
    w->n++;
    return true;
}

/* After a value: counts it and closes arrays, up to the next value or the end. */
static bool after_value(struct walk *w) {
    while (w->depth) {
        w->counts[w->depth - 1]++;
        struct w_scan s = {w->p, w->end};
        w__scan_blank(&s);
        w->p = s.p;
        if (w->p < w->end && *w->p == ',') return w->p++, true;
        if (w->p >= w->end || *w->p != ']')
            return bad_at(w, W_BAD_JSON, "a comma or ] was expected");
        w->p++;
        if (!close_array(w)) return false;
    }
    return true;
}

static bool walk_all(struct walk *w) {
    do {
        struct w_scan s = {w->p, w->end};
        w__scan_blank(&s);
        w->p = s.p;
        if (w->p >= w->end) return bad_at(w, W_BAD_JSON, "the JSON text ends here");
        if (*w->p == '[') {
            if (w->depth == OP_RANK_MAX)
                return bad_at(w, W_BAD_SHAPE, "is nested deeper than 8 dimensions");
            if (w->depth == w->leaf_depth)
                return bad_at(w, W_BAD_SHAPE,
                              "is an array, the elements before it are not: the nesting is ragged");
            w->counts[w->depth++] = 0;
            w->p++;
            s.p = w->p;
            w__scan_blank(&s);
            w->p = s.p;
            if (w->p < w->end && *w->p == ']') {
                w->p++;
                if (!close_array(w)) return false;
            } else {
                continue;
            }
        } else if (!element(w)) {
            return false;
        }
        if (!after_value(w)) return false;
    } while (w->depth);
    struct w_scan s = {w->p, w->end};
    w__scan_blank(&s);
    return s.p == w->end ||
           w_fail(w->err, W_BAD_JSON, "%s: something follows the JSON value", w->name);
}

bool w_tensor_from_json(const char *json, size_t len, const char *name, enum op_type dtype,
                        int64_t elements_max, struct w_arena *arena, struct op_tensor *dst,
                        struct w_error *err) {
    struct walk w = {.p = json,
                     .end = json + len,
                     .start = json,
                     .name = name,
                     .arena = arena,
                     .dtype = dtype,
                     .leaf_depth = -1,
                     .err = err};
    size_t size = op_type_size(dtype);
    if (!size || dtype == OP_C64 || dtype == OP_C128)
        return w_fail(err, W_UNSUPPORTED, "%s is %s: complex tensors have no JSON form", name,
                      op_type_name(dtype));
    int64_t commas = 0;
    for (size_t i = 0; i < len; i++) commas += json[i] == ',';
    w.capacity = commas + 1 < elements_max ? commas + 1 : elements_max;
    for (int i = 0; i < OP_RANK_MAX; i++) w.dims[i] = -1;
    w.data = w_arena_array(arena, (size_t)w.capacity, size);
    if (!w.data)
        return w_fail(err, W_TOO_LARGE,
                      "%s holds about %lld elements of %s: more than a row's memory", name,
                      (long long)w.capacity, op_type_name(dtype));
    if (!walk_all(&w)) return false;
    *dst = (struct op_tensor){.dtype = dtype, .data = w.data};
    while (dst->rank < OP_RANK_MAX && w.dims[dst->rank] >= 0)
        dst->dims[dst->rank] = w.dims[dst->rank], dst->rank++;
    return op_tensor_count(dst) == w.n ||
           w_fail(err, W_BAD_SHAPE, "%s: the nesting is ragged", name);
}
