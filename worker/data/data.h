/* data.h: files of rows: where a bulk job's rows come from and where their results go.
 *
 * A source is opened once a job, indexed, and then shared by all threads; each reads through a
 * cursor of its own that can start at any row:
 *
 *   struct w_source *src = w_source_open("rows.csv", &options, &err);
 *   uint64_t n = w_source_rows(src);
 *   struct w_cursor *c = w_cursor_open(src, first, &err);
 *   struct w_record rec;
 *   while (w_cursor_next(c, &row->arena, &rec, &err) == W_READ_ROW) { ... rec.value into
 * w_pipeline_before ... }
 *
 * A sink is written in parts, one a range of rows, each put in place by rename, so that a part
 * written twice is the same file; the last step assembles them in order and renames the whole:
 *
 *   struct w_part *part = w_part_open("out.jsonl", W_FORMAT_JSONL, first, &err);
 *   w_part_row(part, &rec, row, p, &err);   or   w_part_error(part, &rec, &row_err, &err);
 *   w_part_commit(part, &err);
 *   ... w_sink_assemble("out.jsonl", W_FORMAT_JSONL, firsts, n, &sum, &err);
 *
 * A format is one file that ends in W_FORMAT(desc), see format.h. */
#ifndef QUERN_WORKER_DATA_H
#define QUERN_WORKER_DATA_H

#include "worker/pipeline/pipeline.h"

/* --- sources ---------------------------------------------------------------------------------- */

struct w_source;
struct w_cursor;

struct w_source_options {
    const char *name;   /* for messages, where path is not what people know it by; NULL: path */
    const char *format; /* "npy", "csv", "jsonl", "images"; NULL: by content and extension */
    char delimiter;     /* CSV; 0: , or ; or tab, whichever the first line has most of */
    int header; /* CSV: 1 yes, 0 no, -1: yes if the first line has a field that is no number */
    const char *const *columns; /* CSV, JSONL: these fields, in this order; NULL: all */
    size_t n_columns;
    const char *target;    /* CSV: a column that is no input (name or number); NULL: none */
    size_t line_bytes_max; /* CSV, JSONL; 0: 16 MiB */
};

/* NULL on error (bad_input, ref_not_found, unsupported …). Counts the rows and, for text formats,
 * notes the byte offset of every 1,024th: 8 bytes a thousand rows. */
struct w_source *w_source_open(const char *path, const struct w_source_options *options,
                               struct w_error *err);
void w_source_close(struct w_source *s); /* accepts NULL; after its cursors */
uint64_t w_source_rows(const struct w_source *s);
const char *w_source_format(const struct w_source *s);

struct w_record {
    uint64_t row;  /* from 0 */
    uint64_t line; /* of a text file, from 1; 0: none */
    /* Of a file in a folder, relative to it; NULL: none. Lives as long as the source. */
    const char *name;
    /* npy: TENSOR, one row; csv: a flat TENSOR of f64 where every chosen column is a number, else a
     * JSON object; jsonl: JSON; images: BYTES. In the arena. */
    struct w_value value;
};

enum w_read {
    W_READ_ROW, /* rec is filled */
    W_READ_BAD, /* this row is bad: err says why; rec.row, name and line are set; the next call goes
                   on behind it */
    W_READ_END,
    W_READ_FAILED /* the file cannot be read on: err */
};

struct w_cursor *w_cursor_open(const struct w_source *s, uint64_t first, struct w_error *err);
enum w_read w_cursor_next(struct w_cursor *c, struct w_arena *arena, struct w_record *rec,
                          struct w_error *err);
void w_cursor_close(struct w_cursor *c); /* accepts NULL */

/* --- sinks ------------------------------------------------------------------------------------ */

/* "jsonl", "csv" or "npy" from a name or from the path's extension (format NULL); NULL: none of
 * them. */
const char *w_sink_format(const char *format, const char *path);

struct w_part;

/* A part lies in the folder `<output>.parts`, made here, named by the first row's number. */
struct w_part *w_part_open(const char *output, const char *format, uint64_t first,
                           struct w_error *err);
/* jsonl: {"row":7,"file":…,<fields of the result>}. csv: row, file, then label and score of the
 * best of `top`, or the elements of the outputs. npy: the first output's row. Rows come in order.
 */
bool w_part_row(struct w_part *part, const struct w_record *rec, const struct w_pipeline *p,
                const struct w_row *row, struct w_error *err);
/* Into the part of the error file: {"row":7,"line":9,"code":…,"message":…}. */
bool w_part_error(struct w_part *part, const struct w_record *rec, const struct w_error *why,
                  struct w_error *err);
bool w_part_commit(struct w_part *part,
                   struct w_error *err); /* syncs, renames, frees; on failure too */
void w_part_abort(struct w_part *part);  /* removes what was written, frees; accepts NULL */

struct w_sink_sum {
    uint64_t rows, failed, bytes;
};

/* Joins the parts named by firsts (ascending) into output (written beside it, then renamed) and
 * `<output>.errors.jsonl` (only where rows failed), then removes the parts. May be called again
 * after a crash. */
bool w_sink_assemble(const char *output, const char *format, const uint64_t *firsts, size_t n,
                     struct w_sink_sum *sum, struct w_error *err);

/* --- NPY files -------------------------------------------------------------------------------- */

/* A whole NPY file, in memory or mapped. C order: dst->data points into bytes where it is aligned,
 * else (and for fortran_order, big-endian) into the arena. Versions 1 to 3; kinds f2 f4 f8 i1 … i8
 * u1 … u8 b1. */
bool w_npy_parse(const void *bytes, size_t len, struct w_arena *arena, struct op_tensor *dst,
                 struct w_error *err);
bool w_npy_is(const void *bytes, size_t len);
/* Writes path.tmp, then renames. bf16 has no NPY type and is written as f32. */
bool w_npy_write(const char *path, const struct op_tensor *t, struct w_error *err);
bool w_npy_read_file(const char *path, struct w_arena *arena, struct op_tensor *dst,
                     struct w_error *err);

#endif
