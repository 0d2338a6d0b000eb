/* sink_npy.c: the rows' tensors (the last step's, else the first output) as one array [rows, …].
 *
 * An array has a place for every row, so one that failed leaves its place filled with NaN, or zeros
 * in types that have none; the error file names it. A part begins with its rows' form (a struct),
 * then a byte a row: 1 and the elements, or 0. A part in which nothing went well has a form of rank
 * -1; which form the array has is then said by the others. */
#include "worker/data/sink.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

struct form {
    int32_t dtype, rank; /* rank -1: not known */
    int64_t dims[OP_RANK_MAX];
};

static bool same(const struct op_tensor *a, const struct op_tensor *b) {
    return a->dtype == b->dtype && a->rank == b->rank &&
           !memcmp(a->dims, b->dims, (size_t)a->rank * sizeof *a->dims);
}

static bool put_form(FILE *f, const struct op_tensor *t, struct w_error *err) {
    struct form form = {.dtype = t ? (int32_t)t->dtype : 0, .rank = t ? t->rank : -1};
    if (t) memcpy(form.dims, t->dims, sizeof form.dims);
    return w__write(f, &form, sizeof form, err);
}

static bool put_row(struct w_part *part, const struct w_record *rec, const struct w_pipeline *p,
                    const struct w_row *row, struct w_error *err) {
    struct op_tensor t;
    char header[640];
    (void)rec;
    (void)p;
    if (!w__row_tensor(row, &t, err)) return false;
    if (t.rank >= OP_RANK_MAX || t.dtype == OP_BF16 ||
        !w__npy_header(t.dtype, t.rank, t.dims, header, sizeof header))
        return w_fail(err, W_UNSUPPORTED, "rows of %s are not written as NPY",
                      op_type_name(t.dtype));
    if (!part->begun) {
        part->form = t;
        part->begun = true;
        if (!put_form(part->out, &t, err)) return false;
        for (; part->held; part->held--)
            if (!w__write(part->out, "\0", 1, err)) return false;
    }
    if (!same(&t, &part->form)) {
        char found[128], before[128];
        return w_fail(err, W_BAD_SHAPE,
                      "the row gives %s, the rows before it %s: an array needs one shape",
                      op_tensor_describe(&t, found, sizeof found),
                      op_tensor_describe(&part->form, before, sizeof before));
    }
    return w__write(part->out, "\1", 1, err) &&
           w__write(part->out, t.data, (size_t)op_tensor_bytes(&t), err);
}

static bool put_failed(struct w_part *part, struct w_error *err) {
    if (part->begun) return w__write(part->out, "\0", 1, err);
    part->held++;
    return true;
}

static bool put_held(struct w_part *part, struct w_error *err) {
    if (part->begun) return true;
    if (!put_form(part->out, NULL, err)) return false;
    for (; part->held; part->held--)
        if (!w__write(part->out, "\0", 1, err)) return false;
    return true;
}

/* --- joining ---------------------------------------------------------------------------------- */

enum { HEADER_BYTES = 512 };

static void *blank_row(const struct op_tensor *form, size_t bytes) {
    void *row = calloc(1, bytes + 1);
    if (!row) return NULL;
    for (size_t i = 0; form->dtype == OP_F32 && i < bytes / 4; i++) ((float *)row)[i] = NAN;
    for (size_t i = 0; form->dtype == OP_F64 && i < bytes / 8; i++) ((double *)row)[i] = NAN;
    for (size_t i = 0; form->dtype == OP_F16 && i < bytes / 2; i++) ((uint16_t *)row)[i] = 0x7e00;
    return row;
}

static bool begin(struct w_join *j, struct w_error *err) {
    char blank[HEADER_BYTES] = {0};
    j->form.rank = -1;
    return w__write(j->out, blank, sizeof blank, err);
}

static bool put_blanks(struct w_join *j, uint64_t n, const void *blank, size_t bytes,
                       struct w_error *err) {
    for (; n; n--, j->rows++)
        if (!w__write(j->out, blank, bytes, err)) return false;
    return true;
}

static bool join(struct w_join *j, FILE *part, struct w_error *err) {
    struct form form;
    if (fread(&form, sizeof form, 1, part) != 1 || form.rank < -1 || form.rank >= OP_RANK_MAX)
        return w_fail(err, W_OUTPUT_FAILED, "the part has no form");
    struct op_tensor t = {.dtype = (enum op_type)form.dtype, .rank = form.rank};
    memcpy(t.dims, form.dims, sizeof t.dims);
    if (form.rank >= 0 && j->form.rank >= 0 && !same(&t, &j->form))
        return w_fail(err, W_OUTPUT_FAILED,
                      "its rows have another shape or type than those of the parts before");
    const bool known = form.rank >= 0 || j->form.rank >= 0;
    if (j->form.rank < 0 && form.rank >= 0) j->form = t;
    const size_t bytes = known ? (size_t)op_tensor_bytes(&j->form) : 0;
    char *blank = blank_row(&j->form, bytes), *row = malloc(bytes + 1);
    bool good = (blank && row) || w_fail(err, W_NO_MEMORY, "out of memory");
    if (good && known) good = put_blanks(j, j->held, blank, bytes, err), j->held = 0;
    for (int ok; good && (ok = getc(part)) != EOF;) {
        if (ok && fread(row, bytes, 1, part) != 1 && bytes)
            good = w_fail(err, W_OUTPUT_FAILED, "the part is cut off");
        else if (!known)
            j->held++;
        else
            good = w__write(j->out, ok ? row : blank, bytes, err), j->rows++;
    }
    free(blank);
    free(row);
    return good;
}

/* The number of rows is known now: the header is written into the room left for it. */
static bool end(struct w_join *j, struct w_error *err) {
    char header[HEADER_BYTES], text[HEADER_BYTES];
    if (j->form.rank < 0)
        j->form = (struct op_tensor){.dtype = OP_F32, .rank = 0},
        j->rows = 0; /* nothing went well at all */
    int64_t dims[OP_RANK_MAX] = {(int64_t)j->rows};
    memcpy(dims + 1, j->form.dims, (size_t)j->form.rank * sizeof *dims);
    size_t n = w__npy_header(j->form.dtype, j->form.rank + 1, dims, text, sizeof text);
    if (!n) return w_fail(err, W_OUTPUT_FAILED, "the header of the array has no room");
    /* Padded with blanks to the room: the format allows any length, the elements begin at a
     * multiple of 64. */
    memset(header, ' ', sizeof header);
    memcpy(header, text, n - 1);
    header[8] = (char)((HEADER_BYTES - 10) & 255);
    header[9] = (char)((HEADER_BYTES - 10) >> 8);
    header[HEADER_BYTES - 1] = '\n';
    if (fseek(j->out, 0, SEEK_SET))
        return w_fail(err, W_OUTPUT_FAILED, "the output cannot be positioned");
    return w__write(j->out, header, sizeof header, err);
}

static const struct w_sink_desc desc = {.name = "npy",
                                        .extensions = " npy ",
                                        .row = put_row,
                                        .failed = put_failed,
                                        .close = put_held,
                                        .begin = begin,
                                        .join = join,
                                        .end = end};
W_SINK(desc);
