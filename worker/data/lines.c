/* lines.c: records of text files, whole and in order, from any record on.
 *
 * The file is read in stretches into one buffer that grows up to the limit of a record. A first
 * pass counts the records and notes the offset of every 1,024th, so that a shard begins anywhere
 * after reading at most 1,023 records that are not its own. */
#include "worker/data/format.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { FIRST_BYTES = 256 << 10 };

bool w__lines_init(struct w_lines *l, int fd, bool quotes, size_t bytes_max, struct w_error *err) {
    *l = (struct w_lines){.fd = fd,
                          .quotes = quotes,
                          .bytes_max = bytes_max ? bytes_max : W_LINE_BYTES_MAX,
                          .size = FIRST_BYTES,
                          .line = 1};
    l->buf = malloc(l->size);
    return l->buf || w_fail(err, W_NO_MEMORY, "out of memory");
}

void w__lines_seek(struct w_lines *l, uint64_t offset, uint64_t line) {
    l->offset = offset;
    l->line = line;
    l->len = l->at = 0;
    l->end = false;
}

void w__lines_finish(struct w_lines *l) {
    free(l->buf);
    l->buf = NULL;
}

/* Reads on behind what is there; the unread part moves to the front first. -1: error, 0: end of the
 * file. */
static int fill(struct w_lines *l, struct w_error *err) {
    if (l->at) {
        memmove(l->buf, l->buf + l->at, l->len - l->at);
        l->offset += l->at;
        l->len -= l->at;
        l->at = 0;
    }
    if (l->len == l->size) {
        size_t size = 2 * l->size;
        char *buf = realloc(l->buf, size);
        if (!buf) return w_fail(err, W_NO_MEMORY, "no memory for a line of %zu bytes", l->len), -1;
        l->buf = buf;
        l->size = size;
    }
    for (;;) {
        ssize_t n = pread(l->fd, l->buf + l->len, l->size - l->len, (off_t)(l->offset + l->len));
        if (n < 0 && errno == EINTR) continue;
        if (n < 0)
            return w_fail(err, W_REF_FAILED, "the file cannot be read: %s", strerror(errno)), -1;
        l->len += (size_t)n;
        if (n == 0) l->end = true;
        return n > 0;
    }
}

static size_t count(const char *p, size_t n, char c) {
    size_t found = 0;
    for (size_t i = 0; i < n; i++) found += p[i] == c;
    return found;
}

/* Passes over the rest of a record that is too long. */
static enum w_read pass_over(struct w_lines *l, bool quoted, struct w_error *err) {
    for (;;) {
        for (; l->at < l->len; l->at++) {
            char c = l->buf[l->at];
            if (c == '"' && l->quotes) quoted = !quoted;
            if (c != '\n') continue;
            l->line++;
            if (quoted) continue;
            l->at++;
            return W_READ_BAD;
        }
        int got = fill(l, err);
        if (got < 0) return W_READ_FAILED;
        if (got == 0) return W_READ_BAD;
    }
}

enum w_read w__lines_next(struct w_lines *l, struct w_span *record, uint64_t *offset,
                          uint64_t *line, struct w_error *err) {
    for (;;) {
        size_t seen = 0, breaks = 0; /* of the record: looked at, and line ends inside quotes */
        bool quoted = false;
        const char *stop = NULL;
        for (;;) {
            const char *from = l->buf + l->at + seen;
            size_t left = l->len - l->at - seen;
            stop = left ? memchr(from, '\n', left) : NULL;
            size_t stretch = stop ? (size_t)(stop - from) : left;
            if (l->quotes && (count(from, stretch, '"') & 1)) quoted = !quoted;
            seen += stretch;
            if (seen > l->bytes_max) {
                *offset = l->offset + l->at;
                *line = l->line;
                l->line += breaks;
                l->at += seen;
                enum w_read read = pass_over(l, quoted, err);
                if (read == W_READ_BAD)
                    w_fail(err, W_TOO_LARGE, "the record is longer than the limit of %zu bytes",
                           l->bytes_max);
                return read;
            }
            if (stop && !quoted) break;
            if (stop) {
                seen++;
                breaks++;
                continue;
            }
            int got = fill(l, err);
            if (got < 0) return W_READ_FAILED;
            if (got == 0) break;
        }
        if (!stop && !seen) return W_READ_END;
        *record = (struct w_span){l->buf + l->at, seen};
        *offset = l->offset + l->at;
        *line = l->line;
        l->at += seen + (stop != NULL);
        l->line += breaks + 1;
        if (seen && record->ptr[seen - 1] == '\r') record->len--;
        if (record->len) return W_READ_ROW;
    }
}

bool w__lines_index(struct w_source *s, bool quotes, uint64_t offset, uint64_t line,
                    struct w_error *err) {
    struct w_lines l;
    struct w_span record;
    uint64_t at, number;
    size_t room = 0;
    enum w_read read;
    if (!w__lines_init(&l, s->fd, quotes, s->options.line_bytes_max, err)) return false;
    w__lines_seek(&l, offset, line);
    while ((read = w__lines_next(&l, &record, &at, &number, err)) == W_READ_ROW ||
           read == W_READ_BAD) {
        if (s->n_rows % W_INDEX_STEP == 0) {
            if (s->n_marks == room) {
                room = room ? 2 * room : 64;
                struct w_mark *marks = realloc(s->marks, room * sizeof *marks);
                if (!marks) {
                    w_fail(err, W_NO_MEMORY, "no memory for the index of %s", s->name);
                    read = W_READ_FAILED;
                    break;
                }
                s->marks = marks;
            }
            s->marks[s->n_marks++] = (struct w_mark){at, number};
        }
        s->n_rows++;
    }
    w__lines_finish(&l);
    return read == W_READ_END;
}

bool w__lines_cursor(struct w_cursor *c, bool quotes, uint64_t row, struct w_error *err) {
    const struct w_source *s = c->source;
    struct w_span record;
    uint64_t at, number;
    c->lines = calloc(1, sizeof *c->lines);
    if (!c->lines) return w_fail(err, W_NO_MEMORY, "out of memory");
    if (!w__lines_init(c->lines, s->fd, quotes, s->options.line_bytes_max, err)) return false;
    uint64_t mark = row / W_INDEX_STEP;
    if (mark >= s->n_marks) mark = s->n_marks ? s->n_marks - 1 : 0;
    if (s->n_marks) w__lines_seek(c->lines, s->marks[mark].offset, s->marks[mark].line);
    for (uint64_t i = mark * W_INDEX_STEP; i < row; i++) {
        enum w_read read = w__lines_next(c->lines, &record, &at, &number, err);
        if (read == W_READ_FAILED) return false;
        if (read == W_READ_END) break;
    }
    return true;
}
