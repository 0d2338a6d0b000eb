/* sink.h: what the file of an output format sees. Internal to the folder. */
#ifndef QUERN_WORKER_DATA_SINK_H
#define QUERN_WORKER_DATA_SINK_H

#include <stdio.h>

#include "worker/data/data.h"

struct w_sink_desc;

struct w_part {
    const struct w_sink_desc *desc;
    char *output;
    uint64_t first, rows, failed;
    FILE *out, *errors; /* errors NULL: no row failed yet */
    char *out_tmp, *errors_tmp;
    struct w_arena arena; /* of one line */
    bool begun;           /* a row was written: the header stands */
    /* npy: the rows' form, and failed rows that came before it was known */
    struct op_tensor form;
    uint64_t held;
};

/* The joining of parts. */
struct w_join {
    FILE *out;
    const char *output;
    char *line; /* csv: the header; npy: the form */
    size_t line_len;
    struct op_tensor form;
    uint64_t rows, held;
};

struct w_sink_desc {
    const char *name, *extensions; /* " npy " */
    bool (*row)(struct w_part *part, const struct w_record *rec, const struct w_pipeline *p,
                const struct w_row *row, struct w_error *err);
    bool (*failed)(struct w_part *part,
                   struct w_error *err); /* NULL: a failed row leaves nothing here */
    bool (*close)(struct w_part *part,
                  struct w_error *err); /* before a part is settled; NULL: nothing */
    bool (*begin)(struct w_join *join, struct w_error *err); /* NULL: nothing */
    bool (*join)(struct w_join *join, FILE *part, struct w_error *err);
    bool (*end)(struct w_join *join, struct w_error *err); /* NULL: nothing */
};

#define W_SINK(desc)                                                                               \
    __attribute__((                                                                                \
        used,                                                                                      \
        section("quern_sinks"))) static const struct w_sink_desc *const w__registered_##desc =     \
        &desc

/* Copies what is left of from to to. */
bool w__copy(FILE *to, FILE *from, struct w_error *err);
bool w__write(FILE *f, const void *bytes, size_t n, struct w_error *err);
/* The tensor that stands for a row in tables: the last step's, else the first output, without the
 * batch dimension. */
bool w__row_tensor(const struct w_row *row, struct op_tensor *dst, struct w_error *err);

size_t w__npy_header(enum op_type type, int rank, const int64_t *dims, char *dst, size_t room);

#endif
