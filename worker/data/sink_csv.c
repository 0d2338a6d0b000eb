/* sink_csv.c: a table with a header: row, file (of folders), then what the answer is: index, label
 * and score of the best of `top`; the text; or each element of the outputs, `name` where there is
 * one, else `name_0`, `name_1`, …. A row that failed has no line. */
#include "worker/data/sink.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

enum { COLUMNS_MAX = 1 << 16 };

static void put_field(struct w_text *t, const char *text, size_t n) {
    bool plain = n == 0 || (!memchr(text, ',', n) && !memchr(text, '"', n) &&
                            !memchr(text, '\n', n) && !memchr(text, '\r', n));
    if (plain) {
        w_text_add(t, text, n);
        return;
    }
    w_text_puts(t, "\"");
    for (size_t i = 0; i < n; i++) {
        if (text[i] == '"') w_text_puts(t, "\"");
        w_text_add(t, text + i, 1);
    }
    w_text_puts(t, "\"");
}

/* One element as w_text_tensor writes it. */
static void put_element(struct w_text *t, const struct op_tensor *x, int64_t i) {
    const size_t size = op_type_size(x->dtype);
    const void *at = (const char *)x->data + (size_t)i * size;
    int64_t v = 0;
    switch (x->dtype) {
    case OP_F32:
        w_text_float(t, *(const float *)at);
        return;
    case OP_F64:
        w_text_double(t, *(const double *)at);
        return;
    case OP_U64:
        w_text_printf(t, "%" PRIu64, *(const uint64_t *)at);
        return;
    case OP_I64:
        v = *(const int64_t *)at;
        break;
    case OP_I32:
        v = *(const int32_t *)at;
        break;
    case OP_U32:
        v = *(const uint32_t *)at;
        break;
    case OP_I16:
        v = *(const int16_t *)at;
        break;
    case OP_U16:
        v = *(const uint16_t *)at;
        break;
    case OP_I8:
        v = *(const int8_t *)at;
        break;
    case OP_BOOL:
    case OP_U8:
        v = *(const uint8_t *)at;
        break;
    case OP_STRING:
        put_field(t, ((const struct op_string *)at)->data, ((const struct op_string *)at)->len);
        return;
    default:
        return;
    }
    w_text_printf(t, "%" PRId64, v);
}

/* The elements of one tensor, or (header) the names of their columns. */
static bool put_tensor(struct w_text *t, bool header, const char *name, const struct op_tensor *x,
                       struct w_error *err) {
    const int64_t n = op_tensor_count(x);
    if (n < 0 || n > COLUMNS_MAX)
        return w_fail(err, W_TOO_LARGE,
                      "output \"%s\" has %lld elements a row, a table has at most %d columns", name,
                      (long long)n, COLUMNS_MAX);
    if (x->dtype == OP_F16 || x->dtype == OP_BF16 || x->dtype == OP_C64 || x->dtype == OP_C128)
        return w_fail(err, W_UNSUPPORTED,
                      "output \"%s\" is %s, which is not written as CSV: write it as npy or jsonl",
                      name, op_type_name(x->dtype));
    for (int64_t i = 0; i < n; i++) {
        char column[300];
        w_text_puts(t, ",");
        if (!header) {
            put_element(t, x, i);
            continue;
        }
        int len = n == 1 ? snprintf(column, sizeof column, "%.250s", name)
                         : snprintf(column, sizeof column, "%.250s_%" PRId64, name, i);
        put_field(t, column, (size_t)len);
    }
    return true;
}

static bool put_answer(struct w_text *t, bool header, const struct w_pipeline *p,
                       const struct w_row *row, struct w_error *err) {
    const struct w_value *v = &row->value;
    if (v->type == W_LABELS) {
        const struct w_label *best = v->labels.n ? &v->labels.items[0] : NULL;
        if (header) {
            w_text_puts(t, ",index,label,score");
            return true;
        }
        w_text_puts(t, ",");
        if (best) w_text_printf(t, "%" PRId64, best->index);
        w_text_puts(t, ",");
        if (best && best->label) put_field(t, best->label, strlen(best->label));
        w_text_puts(t, ",");
        if (best) w_text_float(t, (float)best->score);
        return true;
    }
    if (v->type == W_TEXT || v->type == W_JSON) {
        w_text_puts(t, header ? v->type == W_TEXT ? ",text" : ",result" : ",");
        if (!header) put_field(t, v->span.ptr, v->span.len);
        return true;
    }
    if (v->type != W_TENSOR)
        return w_fail(err, W_UNSUPPORTED,
                      "the answer is %s, which has no place in a table: write it as jsonl",
                      w_type_name(v->type));
    if (!row->n_outputs || v->tensor.data != row->outputs[0].data)
        return put_tensor(t, header, "value", &v->tensor, err);
    for (int i = 0; i < row->n_outputs; i++)
        if (!put_tensor(t, header, w_pipeline_signature(p)->outputs[i]->name, &row->outputs[i],
                        err))
            return false;
    return true;
}

static bool put_line(struct w_text *t, bool header, const struct w_record *rec,
                     const struct w_pipeline *p, const struct w_row *row, struct w_error *err) {
    if (header)
        w_text_puts(t, rec->name ? "row,file" : "row");
    else
        w_text_printf(t, "%" PRIu64, rec->row);
    if (!header && rec->name) {
        w_text_puts(t, ",");
        put_field(t, rec->name, strlen(rec->name));
    }
    if (!put_answer(t, header, p, row, err)) return false;
    w_text_puts(t, "\n");
    return !t->failed || w_fail(err, W_NO_MEMORY, "no memory for a line of the output");
}

static bool put_row(struct w_part *part, const struct w_record *rec, const struct w_pipeline *p,
                    const struct w_row *row, struct w_error *err) {
    struct w_text t = {.arena = &part->arena};
    if (!part->begun && !put_line(&t, true, rec, p, row, err)) return false;
    if (!put_line(&t, false, rec, p, row, err) || !w__write(part->out, t.ptr, t.len, err))
        return false;
    return part->begun = true;
}

/* The header once; it must be every part's. */
static bool join(struct w_join *j, FILE *part, struct w_error *err) {
    char *line = NULL, buf[1 << 16];
    size_t room = 0, n;
    ssize_t len = getline(&line, &room, part);
    bool good = true;
    if (len <= 0) {
        free(line);
        return true; /* no row of it went well */
    }
    if (!j->line) {
        j->line = line;
        j->line_len = (size_t)len;
        good = w__write(j->out, line, (size_t)len, err);
    } else {
        good = (size_t)len == j->line_len && !memcmp(line, j->line, j->line_len);
        if (!good)
            w_fail(err, W_OUTPUT_FAILED,
                   "its columns are not those of the parts before: rows differ in shape, write "
                   "them as jsonl");
        free(line);
    }
    bool quoted = false;
    while (good && (n = fread(buf, 1, sizeof buf, part)) > 0) {
        for (size_t i = 0; i < n; i++) {
            if (buf[i] == '"') quoted = !quoted;
            j->rows += buf[i] == '\n' && !quoted;
        }
        good = w__write(j->out, buf, n, err);
    }
    return good;
}

static const struct w_sink_desc desc = {
    .name = "csv", .extensions = " csv ", .row = put_row, .join = join};
W_SINK(desc);
