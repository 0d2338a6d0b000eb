/* sink_jsonl.c: a row's result as a line: {"row":7,"file":…, the members of the result}. A row that
 * failed has no line. */
#include "worker/data/sink.h"

#include <inttypes.h>
#include <string.h>

static bool put_row(struct w_part *part, const struct w_record *rec, const struct w_pipeline *p,
                    const struct w_row *row, struct w_error *err) {
    struct w_text t = {.arena = &part->arena};
    (void)p;
    w_text_printf(&t, "{\"row\":%" PRIu64, rec->row);
    if (rec->name) {
        w_text_puts(&t, ",\"file\":");
        w_text_string(&t, rec->name, strlen(rec->name));
    }
    const struct w_span r = row->result; /* an object: its members follow ours */
    if (r.len < 2 || r.ptr[0] != '{') {
        w_text_puts(&t, ",\"result\":");
        w_text_add(&t, r.ptr, r.len);
        w_text_puts(&t, "}");
    } else {
        if (r.len > 2) w_text_puts(&t, ",");
        w_text_add(&t, r.ptr + 1, r.len - 1);
    }
    w_text_puts(&t, "\n");
    if (t.failed) return w_fail(err, W_NO_MEMORY, "no memory for a line of the output");
    return w__write(part->out, t.ptr, t.len, err);
}

static bool join(struct w_join *j, FILE *part, struct w_error *err) {
    char buf[1 << 16];
    size_t n;
    while ((n = fread(buf, 1, sizeof buf, part)) > 0) {
        for (size_t i = 0; i < n; i++) j->rows += buf[i] == '\n';
        if (!w__write(j->out, buf, n, err)) return false;
    }
    return !ferror(part) || w_fail(err, W_OUTPUT_FAILED, "the part cannot be read");
}

static const struct w_sink_desc desc = {
    .name = "jsonl", .extensions = " jsonl ndjson ", .row = put_row, .join = join};
W_SINK(desc);
