/* source.c: opening a file or folder of rows whatever its format, and the cursors over it. */
#include "worker/data/format.h"

#include "worker/nearest.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

extern const struct w_format *const __start_quern_formats[];
extern const struct w_format *const __stop_quern_formats[];

static size_t n_formats(void) {
    // cppcheck-suppress comparePointers ; both ends of one section
    return (size_t)(__stop_quern_formats - __start_quern_formats);
}

static const char *next_format(void *user, size_t i) {
    (void)user;
    return i < n_formats() ? __start_quern_formats[i]->name : NULL;
}

static const struct w_format *by_name(const char *name, struct w_error *err) {
    for (size_t i = 0; i < n_formats(); i++)
        if (!strcmp(__start_quern_formats[i]->name, name)) return __start_quern_formats[i];
    const char *near = w__nearest(name, next_format, NULL);
    w_fail(err, W_BAD_INPUT, "there is no format \"%s\"%s%s%s", name,
           near ? "; did you mean \"" : " (npy, csv, jsonl, images, sounds and texts are known)",
           near ? near : "", near ? "\"?" : "");
    return NULL;
}

/* By the extension, else by content. */
static const struct w_format *sniff(const struct w_source *s, struct w_error *err) {
    uint8_t head[64];
    ssize_t n = s->fd < 0 ? 0 : pread(s->fd, head, sizeof head, 0);
    const char *slash = strrchr(s->name, '/'), *dot = strrchr(slash ? slash : s->name, '.');
    char extension[16] = "";
    if (dot) snprintf(extension, sizeof extension, " %.10s ", dot + 1);
    for (char *p = extension; *p; p++) *p = (char)(*p >= 'A' && *p <= 'Z' ? *p + 32 : *p);
    for (size_t i = 0; i < n_formats(); i++) {
        const struct w_format *f = __start_quern_formats[i];
        if (f->by_name) continue;
        if (s->fd < 0 ? f->folder : *extension && strstr(f->extensions, extension)) return f;
    }
    for (size_t i = 0; i < n_formats() && n > 0; i++)
        if (__start_quern_formats[i]->is && __start_quern_formats[i]->is(head, (size_t)n))
            return __start_quern_formats[i];
    w_fail(err, W_BAD_INPUT,
           "%s: neither the name nor the content says what format it is; say it (npy, csv, jsonl, "
           "images)",
           s->name);
    return NULL;
}

static bool open_file(struct w_source *s, struct w_error *err) {
    struct stat st;
    int fd = open(s->path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0)
        return w_fail(err, errno == ENOENT ? W_REF_NOT_FOUND : W_REF_FAILED,
                      "%s cannot be opened: %s", s->name, strerror(errno));
    if (fstat(fd, &st) || !(S_ISREG(st.st_mode) || S_ISDIR(st.st_mode))) {
        close(fd);
        return w_fail(err, W_BAD_INPUT, "%s is neither a file nor a folder", s->name);
    }
    if (S_ISDIR(st.st_mode))
        close(fd);
    else
        s->fd = fd, s->bytes = (uint64_t)st.st_size;
    return true;
}

static bool copy_options(struct w_source *s, const struct w_source_options *o,
                         struct w_error *err) {
    if (!o) {
        s->options.header = -1;
        return true;
    }
    s->options = *o;
    s->options.name = NULL; /* the source keeps a copy */
    s->options.target = o->target ? strdup(o->target) : NULL;
    s->options.n_columns = 0;
    char **columns = o->n_columns ? calloc(o->n_columns, sizeof *columns) : NULL;
    s->options.columns = (const char *const *)columns;
    if ((o->target && !s->options.target) || (o->n_columns && !columns))
        return w_fail(err, W_NO_MEMORY, "out of memory");
    for (size_t i = 0; i < o->n_columns; i++, s->options.n_columns++)
        if (!(columns[i] = strdup(o->columns[i]))) return w_fail(err, W_NO_MEMORY, "out of memory");
    return true;
}

struct w_source *w_source_open(const char *path, const struct w_source_options *options,
                               struct w_error *err) {
    struct w_source *s = calloc(1, sizeof *s);
    if (!s) return w_fail(err, W_NO_MEMORY, "out of memory"), NULL;
    s->fd = -1;
    s->path = strdup(path);
    s->name = options && options->name ? strdup(options->name) : s->path;
    if (!s->path || !s->name)
        w_fail(err, W_NO_MEMORY, "out of memory");
    else if (copy_options(s, options, err) && open_file(s, err)) {
        s->format = s->options.format ? by_name(s->options.format, err) : sniff(s, err);
        if (s->format && s->fd < 0 && !s->format->folder)
            w_fail(err, W_BAD_INPUT, "%s is a folder, a file of format %s was expected", s->name,
                   s->format->name);
        else if (s->format && s->format->open(s, err))
            return s;
    }
    w_source_close(s);
    return NULL;
}

void w_source_close(struct w_source *s) {
    if (!s) return;
    if (s->format && s->format->close) s->format->close(s);
    if (s->fd >= 0) close(s->fd);
    for (size_t i = 0; i < s->options.n_columns; i++)
        free((char *)(uintptr_t)s->options.columns[i]);
    free((void *)(uintptr_t)s->options.columns);
    free((char *)(uintptr_t)s->options.target);
    free(s->marks);
    if (s->name != s->path) free((char *)(uintptr_t)s->name);
    free(s->path);
    free(s);
}

uint64_t w_source_rows(const struct w_source *s) {
    return s->n_rows;
}
const char *w_source_format(const struct w_source *s) {
    return s->format->name;
}

bool w__source_read(const struct w_source *s, uint64_t offset, void *dst, size_t n,
                    struct w_error *err) {
    for (size_t got = 0; got < n;) {
        ssize_t m = pread(s->fd, (char *)dst + got, n - got, (off_t)(offset + got));
        if (m < 0 && errno == EINTR) continue;
        if (m < 0)
            return w_fail(err, W_REF_FAILED, "%s cannot be read: %s", s->name, strerror(errno));
        if (m == 0)
            return w_fail(err, W_BAD_INPUT,
                          "%s ends at byte %llu: it was cut since it was opened, or is cut off",
                          s->name, (unsigned long long)(offset + got));
        got += (size_t)m;
    }
    return true;
}

struct w_cursor *w_cursor_open(const struct w_source *s, uint64_t first, struct w_error *err) {
    if (first > s->n_rows)
        return w_fail(err, W_BAD_INPUT, "%s has %llu rows, row %llu was asked for", s->name,
                      (unsigned long long)s->n_rows, (unsigned long long)first),
               NULL;
    struct w_cursor *c = calloc(1, sizeof *c);
    if (!c) return w_fail(err, W_NO_MEMORY, "out of memory"), NULL;
    *c = (struct w_cursor){.source = s, .row = first};
    if (s->format->seek && !s->format->seek(c, first, err)) {
        w_cursor_close(c);
        return NULL;
    }
    return c;
}

enum w_read w_cursor_next(struct w_cursor *c, struct w_arena *arena, struct w_record *rec,
                          struct w_error *err) {
    return c->row < c->source->n_rows ? c->source->format->next(c, arena, rec, err) : W_READ_END;
}

void w_cursor_close(struct w_cursor *c) {
    if (!c) return;
    if (c->lines) w__lines_finish(c->lines);
    free(c->lines);
    free(c);
}
