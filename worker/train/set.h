/* set.h: rows of data: where they lie, and which of them make a set.
 *
 * An array holds the rows of one input (or of the targets) of a source: in memory, in a file that
 * is mapped (a NPY file, or a temporary one that took what was more than memory_bytes), or nowhere:
 * then a reader makes a row when it is asked for (pictures of a large folder). A set is arrays of
 * the same number of rows and a list of row numbers, so that splits, folds and parts are lists, and
 * no row is ever moved.
 *
 * Threads: arrays and sets are not changed once they are loaded; any thread reads them. A reader
 * belongs to one thread at a time. */
#ifndef QUERN_WORKER_TRAIN_SET_H
#define QUERN_WORKER_TRAIN_SET_H

#include <jansson.h>

#include "ops/ops.h"
#include "worker/pipeline/value.h"

#define W_TRAIN_INPUTS_MAX 16

struct w_reader {
    /* Writes the row's elements to dst. */
    bool (*read)(struct w_reader *r, int64_t row, void *dst, struct w_error *err);
    void (*free)(struct w_reader *r);
};

/* Rows of one shape; row i begins at element i · stride. Text (OP_STRING) has one element a row:
 * bytes [offsets[i], offsets[i + 1]) of data. */
struct w_array {
    enum op_type dtype; /* u8, f32, i64, f64 or string */
    int rank;           /* of a row */
    int64_t dims[OP_RANK_MAX];
    int64_t n, elements, stride; /* rows; elements of a row; 0: stride is elements */
    void *data;                  /* NULL with a reader */
    int64_t *offsets, n_offsets_room;
    struct w_reader *reader;
    char digest[65]; /* SHA-256 of the files that the rows are made of; "": of the rows */
    /* Where data comes from: neither: malloc. */
    void *map; /* a mapping that data lies in */
    size_t map_bytes;
    int fd;          /* of a temporary file that is mapped and can grow; 0: none */
    size_t capacity; /* bytes */
    bool lent;       /* data belongs to another array */
    bool windows;    /* rows are windows of one sequence, and overlap where stride < elements */
};

/* Opens a path of the spec for reading; a descriptor, or -1. */
typedef int w_train_open_fn(void *user, const char *path, bool *is_folder, struct w_error *err);

struct w_train_files {
    w_train_open_fn *open;
    void *user;
    size_t bytes_max;            /* of one array */
    size_t memory_bytes;         /* of one array in memory; what is more goes to a file */
    const volatile bool *cancel; /* polled while reading; NULL: never */
};

/* Room for one more row of `elements`; NULL with err. */
void *w__array_add(struct w_array *a, const struct w_train_files *files, struct w_error *err);
bool w__array_add_text(struct w_array *a, const struct w_train_files *files, const char *text,
                       size_t len, struct w_error *err);
/* The row's elements: where they lie, or read into scratch (of a row's size). NULL with err. */
const void *w__array_row(const struct w_array *a, int64_t row, void *scratch, struct w_error *err);
struct w_span w__array_text(const struct w_array *a, int64_t row);
double w__array_number(const struct w_array *a, const void *row, int64_t i);
void w__array_finish(struct w_array *a);

struct w_set {
    struct w_array x[W_TRAIN_INPUTS_MAX], y, weight; /* weight: of rows; n 0: none */
    int n_x;
    int64_t n;     /* rows of the set */
    int64_t *rows; /* which rows of the arrays they are */
    bool part;     /* arrays, rows and names belong to another set */
    bool is_image; /* decoded pictures: u8[h,w,c], whatever the dims say */
    char **names;  /* labels as strings, sorted */
    int64_t n_names;
};

/* A part is a view: [first, first + n) of src's rows. */
void w_train_set_part(const struct w_set *src, int64_t first, int64_t n, struct w_set *dst);
void w_train_set_finish(struct w_set *s);
/* Orders a set's rows by the seed. */
void w_train_set_shuffle(struct w_set *s, uint64_t seed);

#endif
