/* csv.c: tables of text (RFC 4180): fields in double quotes may hold delimiters, line ends and
 * doubled quotes.
 *
 * What is not said is found out: the delimiter from the first line, whether it is a header (a field
 * of it is no number), and from the first SAMPLE_ROWS rows which columns are numbers (nine fields
 * in ten, so that a bad one among them is a bad row and not another kind of table), so that every
 * shard sees the same types. If every chosen column is a number, a row is a flat tensor of f64,
 * with NaN where a field is missing (empty, NA, NaN, null, ?); else it is a JSON object by column
 * names, with null there. A later field of a number column that is no number makes a bad row, told
 * by row, line and column. */
#include "worker/data/format.h"
#include "worker/pipeline/scan.h"

#include "worker/nearest.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SAMPLE_ROWS = 1000, COLUMNS_MAX = 1 << 16 };

struct csv {
    char delimiter;
    bool header, all_numbers;
    size_t n_fields;              /* of a record */
    char **names;                 /* of each field; "0", "1", … without a header */
    bool *numbers;                /* by field */
    size_t *n_numbers, n_sampled; /* fields of the sample that are numbers, of how many rows */
    size_t *chosen, n_chosen;
};

/* --- fields ----------------------------------------------------------------------------------- */

/* Passes over one field from p. Returns where its text begins; *quoted: with quotes around, which
 * may be doubled inside. NULL: malformed. */
static const char *field(const char **p, const char *end, char delimiter, size_t *len,
                         bool *quoted) {
    const char *start = *p;
    *quoted = start < end && *start == '"';
    if (!*quoted) {
        const char *stop = memchr(start, delimiter, (size_t)(end - start));
        *p = stop ? stop : end;
        *len = (size_t)(*p - start);
        return start;
    }
    for (const char *q = ++start; (q = memchr(q, '"', (size_t)(end - q))); q += 2) {
        if (q + 1 < end && q[1] == '"') continue;
        if (q + 1 < end && q[1] != delimiter) return NULL;
        *len = (size_t)(q - start);
        *p = q + 1;
        return start;
    }
    return NULL;
}

/* Splits a record into at most max fields; returns how many there are, -1 where a quote is out of
 * place. */
static int64_t split(struct w_span record, char delimiter, struct w_span *fields, bool *quoted,
                     size_t max) {
    const char *p = record.ptr, *end = p + record.len;
    for (size_t n = 0;; p++) {
        size_t len;
        bool in_quotes;
        const char *start = field(&p, end, delimiter, &len, &in_quotes);
        if (!start) return -1;
        if (n < max) fields[n] = (struct w_span){start, len}, quoted[n] = in_quotes;
        n++;
        if (p == end) return (int64_t)n;
    }
}

/* The text of a field with doubled quotes made single, in the arena. */
static struct w_span unquote(struct w_span f, bool quoted, struct w_arena *arena) {
    if (!quoted || !memchr(f.ptr, '"', f.len)) return f;
    char *dst = w_arena_alloc(arena, f.len), *d = dst;
    if (!dst) return f;
    for (size_t i = 0; i < f.len; i++) {
        *d++ = f.ptr[i];
        if (f.ptr[i] == '"') i++;
    }
    return (struct w_span){dst, (size_t)(d - dst)};
}

static struct w_span trim(struct w_span f) {
    while (f.len && (*f.ptr == ' ' || *f.ptr == '\t')) f.ptr++, f.len--;
    while (f.len && (f.ptr[f.len - 1] == ' ' || f.ptr[f.len - 1] == '\t')) f.len--;
    return f;
}

static bool is_missing(struct w_span f) {
    static const char *const words[] = {"", "NA", "N/A", "NaN", "nan", "null", "?"};
    for (size_t i = 0; i < sizeof words / sizeof *words; i++)
        if (f.len == strlen(words[i]) && !memcmp(f.ptr, words[i], f.len)) return true;
    return false;
}

/* Numbers as tables have them: JSON's, and a plus sign, .5 and 1. too. */
static bool number(struct w_span f, double *dst) {
    struct w_number n;
    char text[64];
    f = trim(f);
    if (is_missing(f)) return *dst = NAN, true;
    if (*f.ptr == '+') f.ptr++, f.len--;
    const char *end = f.ptr + f.len;
    if (w__number_read(f.ptr, end, &n) == end) return *dst = n.value, isfinite(n.value);
    bool minus = f.len && *f.ptr == '-';
    if (f.len < minus + (size_t)2 || f.len + 2 > sizeof text) return false;
    bool bare = f.ptr[minus] == '.', trails = end[-1] == '.';
    if (!bare && !trails) return false;
    int len = snprintf(text, sizeof text, "%s%s%.*s%s", minus ? "-" : "", bare ? "0" : "",
                       (int)(f.len - minus), f.ptr + minus, trails ? "0" : "");
    return w__number_read(text, text + len, &n) == text + len                     ? *dst = n.value,
                                                                isfinite(n.value) : false;
}

/* --- opening ---------------------------------------------------------------------------------- */

static char guess_delimiter(struct w_span line) {
    static const char candidates[] = ",;\t|";
    size_t best = 0;
    char delimiter = ',';
    for (size_t i = 0; i < sizeof candidates - 1; i++) {
        size_t n = 0;
        bool quoted = false;
        for (size_t k = 0; k < line.len; k++) {
            if (line.ptr[k] == '"') quoted = !quoted;
            n += !quoted && line.ptr[k] == candidates[i];
        }
        if (n > best) best = n, delimiter = candidates[i];
    }
    return delimiter;
}

struct found {
    struct csv *csv;
    struct w_source *source;
    struct w_arena arena;
    struct w_span *fields;
    bool *quoted;
};

static const char *next_name(void *user, size_t i) {
    const struct csv *c = user;
    return i < c->n_fields ? c->names[i] : NULL;
}

/* The index of a column by its name, or by its number (from 0; negative from the end). */
static bool find_column(const struct csv *c, const char *name, size_t *dst, struct w_error *err) {
    for (size_t i = 0; i < c->n_fields; i++)
        if (!strcmp(c->names[i], name)) return *dst = i, true;
    char *end;
    long v = strtol(name, &end, 10);
    if (*name && !*end && v < 0) v += (long)c->n_fields;
    if (*name && !*end && v >= 0 && (size_t)v < c->n_fields) return *dst = (size_t)v, true;
    const char *near = w__nearest(name, next_name, (void *)(uintptr_t)c);
    return w_fail(err, W_BAD_INPUT, "the table has no column \"%s\"%s%s%s", name,
                  near ? "; did you mean \"" : "", near ? near : "", near ? "\"?" : "");
}

static bool choose(struct csv *c, const struct w_source_options *o, struct w_error *err) {
    size_t target = SIZE_MAX;
    if (o->target && !find_column(c, o->target, &target, err)) return false;
    c->chosen = calloc(c->n_fields + o->n_columns, sizeof *c->chosen);
    if (!c->chosen) return w_fail(err, W_NO_MEMORY, "out of memory");
    for (size_t i = 0; i < o->n_columns; i++)
        if (!find_column(c, o->columns[i], &c->chosen[c->n_chosen++], err)) return false;
    for (size_t i = 0; i < c->n_fields && !o->n_columns; i++)
        if (i != target) c->chosen[c->n_chosen++] = i;
    c->all_numbers = true;
    for (size_t i = 0; i < c->n_chosen; i++) c->all_numbers &= c->numbers[c->chosen[i]];
    return c->n_chosen || w_fail(err, W_BAD_INPUT, "the table has no column left for the input");
}

static bool read_first(struct found *f, struct w_span record, struct w_error *err) {
    struct csv *c = f->csv;
    const struct w_source_options *o = &f->source->options;
    double v;
    c->delimiter = o->delimiter ? o->delimiter : guess_delimiter(record);
    f->fields = calloc(COLUMNS_MAX, sizeof *f->fields);
    f->quoted = calloc(COLUMNS_MAX, sizeof *f->quoted);
    if (!f->fields || !f->quoted) return w_fail(err, W_NO_MEMORY, "out of memory");
    int64_t n = split(record, c->delimiter, f->fields, f->quoted, COLUMNS_MAX);
    if (n < 0)
        return w_fail(err, W_BAD_INPUT, "%s: line 1: a quote is out of place", f->source->name);
    if (n > COLUMNS_MAX)
        return w_fail(err, W_TOO_LARGE, "%s has %lld columns, at most %d are allowed",
                      f->source->name, (long long)n, COLUMNS_MAX);
    c->n_fields = (size_t)n;
    c->header = o->header == 1;
    for (size_t i = 0; i < c->n_fields && o->header < 0; i++)
        c->header |= !number(f->fields[i], &v);
    c->names = calloc(c->n_fields, sizeof *c->names);
    c->numbers = calloc(c->n_fields, sizeof *c->numbers);
    c->n_numbers = calloc(c->n_fields, sizeof *c->n_numbers);
    if (!c->names || !c->numbers || !c->n_numbers) return w_fail(err, W_NO_MEMORY, "out of memory");
    for (size_t i = 0; i < c->n_fields; i++) {
        char digits[24];
        struct w_span name =
            c->header ? trim(unquote(f->fields[i], f->quoted[i], &f->arena))
                      : (struct w_span){digits, (size_t)snprintf(digits, sizeof digits, "%zu", i)};
        c->names[i] = strndup(name.ptr, name.len);
        if (!c->names[i]) return w_fail(err, W_NO_MEMORY, "out of memory");
    }
    return true;
}

static void sample(struct found *f, struct w_span record) {
    struct csv *c = f->csv;
    double v;
    if (split(record, c->delimiter, f->fields, f->quoted, c->n_fields) != (int64_t)c->n_fields)
        return;
    for (size_t i = 0; i < c->n_fields; i++) c->n_numbers[i] += number(f->fields[i], &v);
    c->n_sampled++;
}

/* Reads the first records and finds out what is not said; *offset and *line are where the rows
 * begin. */
static bool find_out(struct found *f, struct w_lines *lines, uint64_t *offset, uint64_t *line,
                     struct w_error *err) {
    struct w_span record;
    uint64_t at, number_of;
    enum w_read read = w__lines_next(lines, &record, offset, line, err);
    if (read == W_READ_END) return w_fail(err, W_BAD_INPUT, "%s is empty", f->source->name);
    if (read != W_READ_ROW || !read_first(f, record, err)) return false;
    bool begins = !f->csv->header; /* *offset is the first row's already */
    if (begins) sample(f, record);
    for (int i = 0; i < SAMPLE_ROWS; i++) {
        read = w__lines_next(lines, &record, &at, &number_of, err);
        if (read == W_READ_FAILED) return false;
        if (read == W_READ_END) break;
        if (!begins) *offset = at, *line = number_of, begins = true;
        if (read == W_READ_ROW) sample(f, record);
    }
    if (!begins) *offset = f->source->bytes; /* a header alone: no rows */
    for (size_t i = 0; i < f->csv->n_fields; i++)
        f->csv->numbers[i] = f->csv->n_numbers[i] * 10 >= f->csv->n_sampled * 9;
    return true;
}

static bool open_source(struct w_source *s, struct w_error *err) {
    struct found f = {.csv = s->state = calloc(1, sizeof(struct csv)), .source = s};
    struct w_lines lines;
    uint64_t offset = 0, line = 1;
    char bom[3];
    if (!f.csv) return w_fail(err, W_NO_MEMORY, "out of memory");
    if (!w__lines_init(&lines, s->fd, true, s->options.line_bytes_max, err)) return false;
    w_arena_init(&f.arena, 64 << 20);
    if (s->bytes >= 3 && w__source_read(s, 0, bom, 3, err) && !memcmp(bom, "\xef\xbb\xbf", 3))
        w__lines_seek(&lines, 3, 1);
    bool good = find_out(&f, &lines, &offset, &line, err) && choose(f.csv, &s->options, err);
    w__lines_finish(&lines);
    w_arena_finish(&f.arena);
    free(f.fields);
    free(f.quoted);
    return good && w__lines_index(s, true, offset, line, err);
}

static void close_source(struct w_source *s) {
    struct csv *c = s->state;
    if (!c) return;
    for (size_t i = 0; c->names && i < c->n_fields; i++) free(c->names[i]);
    free(c->names);
    free(c->numbers);
    free(c->n_numbers);
    free(c->chosen);
    free(c);
}

/* --- rows ------------------------------------------------------------------------------------- */

static bool seek(struct w_cursor *c, uint64_t row, struct w_error *err) {
    return w__lines_cursor(c, true, row, err);
}

static bool number_of(const struct csv *c, size_t column, struct w_span f, double *dst,
                      struct w_error *err) {
    return number(f, dst) ||
           w_fail(err, W_BAD_INPUT, "column \"%s\" is \"%.*s\", which is no number",
                  c->names[column], f.len < 40 ? (int)f.len : 40, f.ptr);
}

static bool as_tensor(const struct csv *c, const struct w_span *fields, struct w_arena *arena,
                      struct w_value *v, struct w_error *err) {
    double *x = w_arena_array(arena, c->n_chosen, sizeof *x);
    if (!x) return w_fail(err, W_NO_MEMORY, "no memory for a row of %zu numbers", c->n_chosen);
    for (size_t i = 0; i < c->n_chosen; i++)
        if (!number_of(c, c->chosen[i], fields[c->chosen[i]], &x[i], err)) return false;
    v->type = W_TENSOR;
    v->flat = true;
    v->tensor =
        (struct op_tensor){.dtype = OP_F64, .rank = 1, .dims = {(int64_t)c->n_chosen}, .data = x};
    return true;
}

static bool as_json(const struct csv *c, const struct w_span *fields, const bool *quoted,
                    struct w_arena *arena, struct w_value *v, struct w_error *err) {
    struct w_text t = {.arena = arena};
    for (size_t i = 0; i < c->n_chosen; i++) {
        const size_t k = c->chosen[i];
        double x;
        if (c->n_chosen > 1) {
            w_text_puts(&t, i ? "," : "{");
            w_text_string(&t, c->names[k], strlen(c->names[k]));
            w_text_puts(&t, ":");
        }
        if (c->numbers[k]) {
            if (!number_of(c, k, fields[k], &x, err)) return false;
            w_text_double(&t, x);
        } else {
            struct w_span text = unquote(fields[k], quoted[k], arena);
            w_text_string(&t, text.ptr, text.len);
        }
    }
    if (c->n_chosen > 1) w_text_puts(&t, "}");
    v->span = (struct w_span){t.ptr, t.len};
    return !t.failed || w_fail(err, W_NO_MEMORY, "no memory for the row");
}

static enum w_read next(struct w_cursor *cursor, struct w_arena *arena, struct w_record *rec,
                        struct w_error *err) {
    const struct csv *c = cursor->source->state;
    struct w_span line;
    uint64_t offset;
    *rec = (struct w_record){.row = cursor->row, .value = {.type = W_JSON}};
    enum w_read read = w__lines_next(cursor->lines, &line, &offset, &rec->line, err);
    if (read == W_READ_END)
        return w_fail(err, W_BAD_INPUT, "%s ends before row %llu: it was cut since it was opened",
                      cursor->source->name, (unsigned long long)cursor->row),
               W_READ_FAILED;
    if (read == W_READ_FAILED) return read;
    cursor->row++;
    if (read == W_READ_BAD) return read;
    char *copy = w_arena_text(arena, line.ptr, line.len);
    struct w_span *fields = w_arena_array(arena, c->n_fields, sizeof *fields);
    bool *quoted = w_arena_array(arena, c->n_fields, sizeof *quoted);
    if (!copy || !fields || !quoted)
        return w_fail(err, W_TOO_LARGE, "a row of %zu bytes is more than a row's memory", line.len),
               W_READ_BAD;
    int64_t n = split((struct w_span){copy, line.len}, c->delimiter, fields, quoted, c->n_fields);
    if (n < 0) return w_fail(err, W_BAD_INPUT, "a quote is out of place"), W_READ_BAD;
    if ((size_t)n != c->n_fields)
        return w_fail(err, W_BAD_INPUT, "the row has %lld fields, the table has %zu columns",
                      (long long)n, c->n_fields),
               W_READ_BAD;
    bool good = c->all_numbers ? as_tensor(c, fields, arena, &rec->value, err)
                               : as_json(c, fields, quoted, arena, &rec->value, err);
    return good ? W_READ_ROW : W_READ_BAD;
}

static const struct w_format desc = {.name = "csv",
                                     .extensions = " csv tsv ",
                                     .open = open_source,
                                     .close = close_source,
                                     .seek = seek,
                                     .next = next};
W_FORMAT(desc);
