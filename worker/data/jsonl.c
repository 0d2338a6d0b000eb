/* jsonl.c: a JSON value a line. The value is handed on as text: the pipeline reads it. With one
 * column chosen, that member is the value; with several, an object of them. */
#include "worker/data/format.h"
#include "worker/pipeline/scan.h"

#include <string.h>

static bool is(const uint8_t *head, size_t n) {
    size_t i = 0;
    while (i < n && (head[i] == ' ' || head[i] == '\n' || head[i] == '\r' || head[i] == '\t')) i++;
    return i < n && (head[i] == '{' || head[i] == '[');
}

static bool open_source(struct w_source *s, struct w_error *err) {
    return w__lines_index(s, false, 0, 1, err);
}

static bool seek(struct w_cursor *c, uint64_t row, struct w_error *err) {
    return w__lines_cursor(c, false, row, err);
}

/* The member named `name` of the object at json. */
static bool member(struct w_span json, const char *name, struct w_arena *arena,
                   struct w_span *dst) {
    struct w_scan s = {json.ptr, json.ptr + json.len};
    struct w_span key, value;
    bool first = true;
    if (!w__scan_open(&s, '{')) return false;
    while (w__scan_member(&s, &first, &key, &value) > 0) {
        const char *text = w__scan_string(key, arena, false, NULL);
        if (text && !strcmp(text, name)) return *dst = value, true;
    }
    return false;
}

static bool choose(const struct w_source_options *o, struct w_span json, struct w_arena *arena,
                   struct w_span *dst, struct w_error *err) {
    struct w_text t = {.arena = arena};
    struct w_span value;
    *dst = json;
    for (size_t i = 0; i < o->n_columns; i++) {
        if (!member(json, o->columns[i], arena, &value))
            return w_fail(err, W_BAD_INPUT, "the line has no member \"%s\"", o->columns[i]);
        if (o->n_columns == 1) return *dst = value, true;
        w_text_puts(&t, i ? "," : "{");
        w_text_string(&t, o->columns[i], strlen(o->columns[i]));
        w_text_puts(&t, ":");
        w_text_add(&t, value.ptr, value.len);
    }
    if (!o->n_columns) return true;
    w_text_puts(&t, "}");
    *dst = (struct w_span){t.ptr, t.len};
    return !t.failed || w_fail(err, W_NO_MEMORY, "no memory for the line");
}

static enum w_read next(struct w_cursor *c, struct w_arena *arena, struct w_record *rec,
                        struct w_error *err) {
    struct w_span line, json;
    uint64_t offset;
    *rec = (struct w_record){.row = c->row, .value = {.type = W_JSON}};
    enum w_read read = w__lines_next(c->lines, &line, &offset, &rec->line, err);
    if (read == W_READ_END)
        return w_fail(err, W_BAD_INPUT, "%s ends before row %llu: it was cut since it was opened",
                      c->source->name, (unsigned long long)c->row),
               W_READ_FAILED;
    if (read == W_READ_FAILED) return read;
    c->row++;
    if (read == W_READ_BAD) return read;
    char *copy = w_arena_text(arena, line.ptr, line.len);
    if (!copy)
        return w_fail(err, W_TOO_LARGE, "a line of %zu bytes is more than a row's memory",
                      line.len),
               W_READ_BAD;
    struct w_scan s = {copy, copy + line.len};
    if (!w__scan_value(&s, &json))
        return w_fail(err, W_BAD_JSON, "the line is no JSON value (byte %zu)",
                      s.p ? (size_t)(s.p - copy) : line.len),
               W_READ_BAD;
    w__scan_blank(&s);
    if (s.p != s.end)
        return w_fail(err, W_BAD_JSON, "something follows the JSON value at byte %zu of the line",
                      (size_t)(s.p - copy)),
               W_READ_BAD;
    return choose(&c->source->options, json, arena, &rec->value.span, err) ? W_READ_ROW
                                                                           : W_READ_BAD;
}

static const struct w_format desc = {.name = "jsonl",
                                     .extensions = " jsonl ndjson json ",
                                     .is = is,
                                     .open = open_source,
                                     .seek = seek,
                                     .next = next};
W_FORMAT(desc);
