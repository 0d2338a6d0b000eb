/* format.h: what the file of a data format sees. A format is one file that ends in W_FORMAT(desc).
 * Internal to the folder.
 *
 * Files are read with pread, not mapped: a file that is cut while a job runs is then a short read,
 * and not a signal. */
#ifndef QUERN_WORKER_DATA_FORMAT_H
#define QUERN_WORKER_DATA_FORMAT_H

#include "worker/data/data.h"

#define W_INDEX_STEP 1024 /* records between two noted offsets */
#define W_LINE_BYTES_MAX (16u << 20)

struct w_format;

struct w_source {
    const struct w_format *format;
    char *path;
    const char *name; /* for messages */
    int fd;           /* -1: a folder */
    uint64_t bytes;   /* of the file */
    uint64_t n_rows;
    struct w_source_options options; /* strings copied */
    struct w_mark *marks;            /* text formats: where record i · W_INDEX_STEP begins */
    size_t n_marks;
    void *state; /* the format's, immutable after open */
};

struct w_mark {
    uint64_t offset, line;
};

struct w_cursor {
    const struct w_source *source;
    uint64_t row; /* the next one */
    struct w_lines *lines;
};

struct w_format {
    const char *name;
    const char *extensions; /* " npy " with blanks around each */
    bool folder;            /* takes a folder */
    bool by_name;           /* only where the options name it */
    bool (*is)(const uint8_t *head, size_t n);
    bool (*open)(struct w_source *s, struct w_error *err);
    void (*close)(struct w_source *s);                                   /* frees state */
    bool (*seek)(struct w_cursor *c, uint64_t row, struct w_error *err); /* NULL: nothing to do */
    enum w_read (*next)(struct w_cursor *c, struct w_arena *arena, struct w_record *rec,
                        struct w_error *err);
};

#define W_FORMAT(desc)                                                                             \
    __attribute__((                                                                                \
        used,                                                                                      \
        section("quern_formats"))) static const struct w_format *const w__registered_##desc =      \
        &desc

/* The header of an NPY file of version 1; 0: the type has none, or no room. */
size_t w__npy_header(enum op_type type, int rank, const int64_t *dims, char *dst, size_t room);

/* Reads exactly n bytes at offset; false with err: cut off, or cannot be read. */
bool w__source_read(const struct w_source *s, uint64_t offset, void *dst, size_t n,
                    struct w_error *err);

/* --- records of text files -------------------------------------------------------------------- */

/* A reader of records that end with a line end (LF or CRLF); where quotes is set, a line end
 * between an odd number of double quotes does not count (CSV). Records that are empty are passed
 * over. */
struct w_lines {
    int fd;
    bool quotes, end;
    size_t bytes_max; /* of a record */
    char *buf;
    size_t size, len, at; /* buf[at … len) is not yet given */
    uint64_t offset;      /* of buf[0] in the file */
    uint64_t line;        /* number of the line at buf[at], from 1 */
};

bool w__lines_init(struct w_lines *l, int fd, bool quotes, size_t bytes_max, struct w_error *err);
void w__lines_seek(struct w_lines *l, uint64_t offset, uint64_t line);
void w__lines_finish(struct w_lines *l);
/* W_READ_ROW: record (valid until the next call), without its line end; *offset and *line are where
 * it begins. W_READ_BAD: it is longer than bytes_max; the reader stands behind it. */
enum w_read w__lines_next(struct w_lines *l, struct w_span *record, uint64_t *offset,
                          uint64_t *line, struct w_error *err);
/* Counts the records from offset, noting every W_INDEX_STEP-th. */
bool w__lines_index(struct w_source *s, bool quotes, uint64_t offset, uint64_t line,
                    struct w_error *err);
/* Opens the cursor's reader at a row by way of the marks. */
bool w__lines_cursor(struct w_cursor *c, bool quotes, uint64_t row, struct w_error *err);

#endif
