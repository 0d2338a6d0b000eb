/* table.c: CSV and JSONL as rows. The readers are those of bulk jobs (worker/data); here their rows
 * become one array, and a target column or field the other. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "worker/data/data.h"
#include "worker/train/train.h"

#define ROW_BYTES_MAX ((size_t)256 << 20)

/* --- CSV ---------------------------------------------------------------------------------------
 */

struct csv {
    char target[256], delimiter;
    char digits[64][12]; /* of columns that are named by number */
    const char *columns[4096];
    size_t n_columns;
    struct w_source_options o;
};

static bool csv_options(const struct w_table *t, struct csv *c, struct w_error *err) {
    json_t *target = t->target, *header = json_object_get(t->json, "header"),
           *columns = t->columns, *delimiter = json_object_get(t->json, "delimiter"), *item;
    size_t i;
    if (json_is_integer(target))
        snprintf(c->target, sizeof c->target, "%lld", (long long)json_integer_value(target));
    else if (json_is_string(target))
        snprintf(c->target, sizeof c->target, "%s", json_string_value(target));
    else if (target)
        return w_fail(err, W_BAD_SPEC, "%s.target must be a column's name or number (from 0)",
                      t->where);
    if (header && !json_is_boolean(header))
        return w_fail(err, W_BAD_SPEC, "%s.header must be true or false", t->where);
    bool one = json_is_string(columns);
    if (columns && !one && (!json_is_array(columns) || json_array_size(columns) > 4096))
        return w_fail(err, W_BAD_SPEC, "%s: columns must be a list of column names", t->where);
    if (one) c->columns[c->n_columns++] = json_string_value(columns);
    json_array_foreach(columns, i, item) {
        bool number = json_is_integer(item) && i < sizeof c->digits / sizeof *c->digits;
        if (!json_is_string(item) && !number)
            return w_fail(err, W_BAD_SPEC, "%s: columns must be a list of column names", t->where);
        if (number)
            snprintf(c->digits[i], sizeof *c->digits, "%d", (int)json_integer_value(item));
        c->columns[c->n_columns++] = number ? c->digits[i] : json_string_value(item);
    }
    c->o = (struct w_source_options){.name = t->path,
                                     .format = "csv",
                                     .header = !header ? -1 : json_is_true(header),
                                     .columns = c->n_columns ? c->columns : NULL,
                                     .n_columns = c->n_columns,
                                     .target = *c->target ? c->target : NULL};
    if (delimiter)
        c->o.delimiter = json_string_length(delimiter) ? *json_string_value(delimiter) : 0;
    return true;
}

/* Calls fn for every row of a source. */
typedef bool row_fn(void *user, const struct w_record *r, struct w_error *err);

static bool each_row(const struct w_table *t, const char *file, const struct w_source_options *o,
                     row_fn *fn, void *user, struct w_error *err) {
    struct w_arena arena;
    struct w_record r;
    w_arena_init(&arena, ROW_BYTES_MAX);
    struct w_source *s = w_source_open(file, o, err);
    struct w_cursor *c = s ? w_cursor_open(s, 0, err) : NULL;
    enum w_read got = c ? W_READ_ROW : W_READ_FAILED;
    bool ok = c != NULL;
    while (ok && (got = w_cursor_next(c, &arena, &r, err)) == W_READ_ROW) {
        ok = fn(user, &r, err);
        w_arena_reset(&arena);
        if (ok && t->files->cancel && __atomic_load_n(t->files->cancel, __ATOMIC_RELAXED))
            ok = w_fail(err, "cancelled", "cancelled while reading %s", t->path);
    }
    ok = ok && got == W_READ_END;
    w_cursor_close(c);
    w_source_close(s);
    w_arena_finish(&arena);
    return ok || w_fail_in(err, "%s: ", t->where);
}

struct filling {
    struct w_array *x;
    const struct w_train_files *files;
    struct w_words *words;
    bool labels_anyhow, text;
};

static bool csv_x(void *user, const struct w_record *r, struct w_error *err) {
    struct filling *f = user;
    if (r->value.type != W_TENSOR)
        return w_fail(err, W_BAD_INPUT,
                      "line %llu: not every input column is a number; choose them by "
                      "\"columns\"",
                      (unsigned long long)r->line);
    const struct op_tensor *v = &r->value.tensor;
    const double *values = v->data;
    if (f->x->n == 0) {
        *f->x = (struct w_array){.dtype = OP_F32, .rank = 1, .elements = op_tensor_count(v)};
        f->x->dims[0] = f->x->elements;
    }
    float *dst = w__array_add(f->x, f->files, err);
    for (int64_t i = 0; dst && i < f->x->elements; i++) {
        dst[i] = (float)values[i];
        if (!isfinite(values[i]))
            return w_fail(err, W_BAD_INPUT, "row %llu (line %llu): input column %lld is missing",
                          (unsigned long long)r->row, (unsigned long long)r->line, (long long)i);
    }
    return dst != NULL;
}

/* Strings of a value, one behind the other with blanks between: a string, or a list or object of
 * strings and numbers. */
static bool gather_text(json_t *v, struct w_text *to) {
    json_t *item;
    const char *key;
    size_t i;
    bool ok = true;
    if (json_is_string(v)) {
        if (to->len) w_text_puts(to, " ");
        w_text_add(to, json_string_value(v), json_string_length(v));
        return true;
    }
    if (json_is_number(v)) {
        if (to->len) w_text_puts(to, " ");
        w_text_double(to, json_number_value(v));
        return true;
    }
    json_array_foreach(v, i, item) ok = ok && gather_text(item, to);
    json_object_foreach(v, key, item) ok = ok && gather_text(item, to);
    return ok && (json_is_array(v) || json_is_object(v));
}

static bool add_text(struct filling *f, json_t *v, struct w_error *err) {
    struct w_arena arena;
    w_arena_init(&arena, ROW_BYTES_MAX);
    struct w_text text = {.arena = &arena};
    if (!f->x->offsets) *f->x = (struct w_array){.dtype = OP_STRING, .elements = 1};
    bool ok = v && gather_text(v, &text) && !text.failed
                  ? w__array_add_text(f->x, f->files, text.ptr, text.len, err)
                  : w_fail(err, W_BAD_INPUT, "it is missing, or no text");
    w_arena_finish(&arena);
    return ok;
}

static bool csv_text(void *user, const struct w_record *r, struct w_error *err) {
    struct filling *f = user;
    if (r->value.type == W_TENSOR)
        return w_fail(err, W_BAD_INPUT, "line %llu: the columns of the text are numbers",
                      (unsigned long long)r->line);
    json_t *v = json_loadb(r->value.span.ptr, r->value.span.len, JSON_DECODE_ANY, NULL);
    bool ok = add_text(f, v, err) || w_fail_in(err, "line %llu: ", (unsigned long long)r->line);
    json_decref(v);
    return ok;
}

static bool csv_y(void *user, const struct w_record *r, struct w_error *err) {
    struct filling *f = user;
    if (r->value.type == W_TENSOR) {
        double v = *(const double *)r->value.tensor.data;
        char text[32];
        if (f->labels_anyhow && isfinite(v))
            return w__train_words_add(f->words, text, (size_t)snprintf(text, sizeof text, "%.10g", v),
                                      err);
        if (f->x->n == 0) *f->x = (struct w_array){.dtype = OP_F64, .elements = 1};
        double *dst = isfinite(v) ? w__array_add(f->x, f->files, err) : NULL;
        if (dst) *dst = v;
        return dst || (isfinite(v)
                           ? false
                           : w_fail(err, W_BAD_INPUT, "row %llu (line %llu): the target is missing",
                                    (unsigned long long)r->row, (unsigned long long)r->line));
    }
    json_t *v = json_loadb(r->value.span.ptr, r->value.span.len, JSON_DECODE_ANY, NULL);
    bool ok = json_string_length(v)
                  ? w__train_words_add(f->words, json_string_value(v), json_string_length(v), err)
                  : w_fail(err, W_BAD_INPUT, "row %llu (line %llu): the target is missing",
                           (unsigned long long)r->row, (unsigned long long)r->line);
    json_decref(v);
    return ok;
}

bool w__train_read_csv(const struct w_table *t, const char *file, struct w_array *x,
                       struct w_array *y, struct w_words *words, struct w_error *err) {
    struct csv *c = calloc(1, sizeof *c);
    struct filling fx = {.x = x, .files = t->files},
                   fy = {.x = y,
                         .files = t->files,
                         .words = words,
                         .labels_anyhow = t->labels_anyhow && words};
    if (!c) return w_fail(err, W_NO_MEMORY, "out of memory");
    bool ok = csv_options(t, c, err) && each_row(t, file, &c->o, t->text ? csv_text : csv_x, &fx, err);
    if (ok && y && *c->target) {
        const char *target[] = {c->target};
        c->o.target = NULL;
        c->o.columns = target;
        c->o.n_columns = 1;
        ok = each_row(t, file, &c->o, csv_y, &fy, err);
    }
    free(c);
    if (ok && x->n && x->elements == 1) x->rank = x->rank > 1 ? x->rank : 1;
    return ok;
}

/* --- JSONL -------------------------------------------------------------------------------------
 */

struct jsonl {
    struct filling x, y;
    json_t *fields_x, *field_y; /* names; fields_x a string or a list */
};

/* Nested lists of numbers, flat; dims are those of the first row and every other must have them. */
static bool flatten(json_t *v, int depth, struct w_array *a, bool learn, float **dst, float *end,
                    struct w_error *err) {
    if (json_is_number(v) || json_is_boolean(v)) {
        if (depth != a->rank && !learn)
            return w_fail(err, W_BAD_SHAPE, "its lists are nested unevenly");
        if (learn) {
            a->elements++;
            return true;
        }
        if (*dst == end) return w_fail(err, W_BAD_SHAPE, "it has more numbers than the first row");
        *(*dst)++ = json_is_boolean(v) ? (float)json_is_true(v) : (float)json_number_value(v);
        return true;
    }
    if (!json_is_array(v) || depth >= OP_RANK_MAX - 1)
        return w_fail(err, W_BAD_INPUT, "it holds something that is no number");
    if (learn && depth == a->rank) a->dims[a->rank++] = (int64_t)json_array_size(v);
    if ((int64_t)json_array_size(v) != a->dims[depth] || depth >= a->rank)
        return w_fail(err, W_BAD_SHAPE, "a list of it has %zu items, %lld are expected",
                      json_array_size(v), (long long)a->dims[depth]);
    for (size_t i = 0; i < json_array_size(v); i++)
        if (!flatten(json_array_get(v, i), depth + 1, a, learn, dst, end, err)) return false;
    return true;
}

static bool add_value(struct filling *f, json_t *v, struct w_error *err) {
    if (!v || json_is_null(v)) return w_fail(err, W_BAD_INPUT, "it is missing");
    if (f->x->n == 0) {
        *f->x = (struct w_array){.dtype = OP_F32};
        if (!flatten(v, 0, f->x, true, NULL, NULL, err)) return false;
    }
    float *dst = w__array_add(f->x, f->files, err);
    if (!dst) return false;
    float *end = dst + f->x->elements;
    if (!flatten(v, 0, f->x, false, &dst, end, err)) return false;
    return dst == end || w_fail(err, W_BAD_SHAPE, "it has fewer numbers than the first row");
}

static json_t *pick(json_t *row, json_t *fields) {
    if (json_is_string(fields)) return json_incref(json_object_get(row, json_string_value(fields)));
    json_t *list = json_array(), *name;
    size_t i;
    json_array_foreach(fields, i, name) {
        json_t *v = json_object_get(row, json_string_value(name));
        json_array_append(list, v ? v : json_null());
    }
    return list;
}

static bool jsonl_row(void *user, const struct w_record *r, struct w_error *err) {
    struct jsonl *j = user;
    json_t *row = json_loadb(r->value.span.ptr, r->value.span.len, JSON_DECODE_ANY, NULL);
    json_t *x = json_is_array(row) ? json_incref(row) : pick(row, j->fields_x), *y = NULL;
    const char *what = "x";
    bool ok = row != NULL && (j->x.text ? add_text(&j->x, x, err) : add_value(&j->x, x, err));
    if (ok && j->field_y) {
        what = "y";
        y = json_object_get(row, json_string_value(j->field_y));
        char text[32];
        if (j->y.labels_anyhow && json_is_number(y))
            ok = w__train_words_add(
                j->y.words, text,
                (size_t)snprintf(text, sizeof text, "%.10g", json_number_value(y)), err);
        else
            ok = json_is_string(y)
                 ? w__train_words_add(j->y.words, json_string_value(y), json_string_length(y), err)
                 : add_value(&j->y, y, err);
    }
    json_decref(x);
    json_decref(row);
    return ok || w_fail_in(err, "row %llu (line %llu), %s: ", (unsigned long long)r->row,
                           (unsigned long long)r->line, what);
}

bool w__train_read_jsonl(const struct w_table *t, const char *file, struct w_array *x,
                         struct w_array *y, struct w_words *words, struct w_error *err) {
    size_t i;
    json_t *name;
    struct w_words none = {0};
    struct jsonl j = {
        .x = {.x = x, .files = t->files, .text = t->text},
        .y = {.x = y,
              .files = t->files,
              .words = words ? words : &none,
              .labels_anyhow = t->labels_anyhow && words},
        .fields_x = t->columns,
        .field_y = t->target};
    bool names = json_is_string(j.fields_x) || json_array_size(j.fields_x) > 0;
    json_array_foreach(j.fields_x, i, name) names &= json_is_string(name);
    if ((j.fields_x && !names) || (j.field_y && !json_is_string(j.field_y)))
        return w_fail(err, W_BAD_SPEC,
                      "%s.fields must be {\"x\": name or list of names, \"y\": name}", t->where);
    if (!j.fields_x) j.fields_x = json_object_get(t->json, "x"); /* rows that are lists need none */
    if (!y) j.field_y = NULL;
    const struct w_source_options o = {.name = t->path, .format = "jsonl", .header = -1};
    return each_row(t, file, &o, jsonl_row, &j, err);
}
