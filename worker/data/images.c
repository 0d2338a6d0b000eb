/* images.c: a folder of pictures, sounds or texts as rows, in the order of their paths (compared
 * byte by byte), or one such file as one row. A row is the file's bytes; its name is the path
 * relative to the folder. Links are not followed (but the folder itself may be one), hidden files
 * are left out. */
#include "worker/data/format.h"

#include <errno.h>
#include <fcntl.h>
#include <fts.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { FILES_MAX = 50000000 };

struct images {
    int folder; /* -1: a single file */
    char **names;
    size_t room;
};

static bool is(const uint8_t *head, size_t n) {
    return (n > 3 && !memcmp(head, "\xff\xd8\xff", 3)) ||
           (n > 8 && !memcmp(head, "\x89PNG\r\n\x1a\n", 8));
}

static bool has_extension(const char *name, const char *extensions) {
    const char *dot = strrchr(name, '.');
    char word[16];
    if (!dot || strlen(dot) > 8) return false;
    snprintf(word, sizeof word, " %s ", dot + 1);
    for (char *p = word; *p; p++) *p = (char)(*p >= 'A' && *p <= 'Z' ? *p + 32 : *p);
    return strstr(extensions, word) != NULL;
}

static int by_path(const void *a, const void *b) {
    return strcmp(*(char *const *)a, *(char *const *)b);
}

static bool add(struct w_source *s, struct images *im, const char *name, struct w_error *err) {
    if (s->n_rows == FILES_MAX)
        return w_fail(err, W_TOO_LARGE, "%s holds more than %d files", s->name, FILES_MAX);
    if (s->n_rows == im->room) {
        size_t room = im->room ? 2 * im->room : 256;
        char **names = realloc(im->names, room * sizeof *names);
        if (!names) return w_fail(err, W_NO_MEMORY, "no memory for the names of %s", s->name);
        im->names = names;
        im->room = room;
    }
    im->names[s->n_rows] = strdup(name);
    return im->names[s->n_rows++] || w_fail(err, W_NO_MEMORY, "out of memory");
}

static bool walk(struct w_source *s, struct images *im, struct w_error *err) {
    char *roots[2] = {s->path, NULL};
    FTS *fts = fts_open(roots, FTS_PHYSICAL | FTS_COMFOLLOW | FTS_NOCHDIR, NULL);
    bool good = fts || w_fail(err, W_REF_FAILED, "%s cannot be read: %s", s->name, strerror(errno));
    size_t skip = strlen(s->path);
    while (skip > 1 && s->path[skip - 1] == '/') skip--;
    for (FTSENT *e; good && (e = fts_read(fts));) {
        if (e->fts_level > 0 && e->fts_name[0] == '.') {
            fts_set(fts, e, FTS_SKIP);
        } else if (e->fts_info == FTS_DNR || e->fts_info == FTS_ERR || e->fts_info == FTS_NS) {
            good = w_fail(err, W_REF_FAILED, "%s cannot be read: %s", e->fts_path,
                          strerror(e->fts_errno));
        } else if (e->fts_info == FTS_F && has_extension(e->fts_name, s->format->extensions)) {
            const char *name = e->fts_path + skip;
            while (*name == '/') name++;
            good = add(s, im, name, err);
        }
    }
    if (fts) fts_close(fts);
    if (good && s->n_rows) qsort(im->names, s->n_rows, sizeof *im->names, by_path);
    return good;
}

static bool open_source(struct w_source *s, struct w_error *err) {
    struct images *im = s->state = calloc(1, sizeof *im);
    if (!im) return w_fail(err, W_NO_MEMORY, "out of memory");
    im->folder = -1;
    if (s->fd >= 0) {
        const char *slash = strrchr(s->name, '/');
        return add(s, im, slash ? slash + 1 : s->name, err);
    }
    im->folder = open(s->path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    return (im->folder >= 0 ||
            w_fail(err, W_REF_FAILED, "%s cannot be opened: %s", s->name, strerror(errno))) &&
           walk(s, im, err);
}

static void close_source(struct w_source *s) {
    struct images *im = s->state;
    if (!im) return;
    for (uint64_t i = 0; i < s->n_rows; i++) free(im->names[i]);
    free(im->names);
    if (im->folder >= 0) close(im->folder);
    free(im);
}

static bool read_all(int fd, struct w_arena *arena, struct w_span *bytes, struct w_error *err) {
    struct stat st;
    if (fstat(fd, &st) || !S_ISREG(st.st_mode))
        return w_fail(err, W_BAD_INPUT, "it is not a regular file");
    size_t len = (size_t)st.st_size, got = 0;
    char *data = w_arena_alloc(arena, len);
    if (!data) return w_fail(err, W_TOO_LARGE, "its %zu bytes are more than a row's memory", len);
    while (got < len) {
        ssize_t n = pread(fd, data + got, len - got, (off_t)got);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return w_fail(err, W_REF_FAILED, "it cannot be read: %s", strerror(errno));
        if (n == 0) break;
        got += (size_t)n;
    }
    *bytes = (struct w_span){data, got};
    return true;
}

static enum w_read next(struct w_cursor *c, struct w_arena *arena, struct w_record *rec,
                        struct w_error *err) {
    const struct w_source *s = c->source;
    const struct images *im = s->state;
    const char *name = im->names[c->row];
    *rec = (struct w_record){.row = c->row, .name = name, .value = {.type = W_BYTES}};
    c->row++;
    int fd = im->folder < 0
                 ? s->fd
                 : openat(im->folder, name, O_RDONLY | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0)
        return w_fail(err, W_REF_NOT_FOUND, "%s cannot be opened: %s", name, strerror(errno)),
               W_READ_BAD;
    bool good = read_all(fd, arena, &rec->value.span, err) || w_fail_in(err, "%s: ", name);
    if (fd != s->fd) close(fd);
    return good ? W_READ_ROW : W_READ_BAD;
}

static const struct w_format desc = {.name = "images",
                                     .extensions = " jpg jpeg jpe png ",
                                     .folder = true,
                                     .is = is,
                                     .open = open_source,
                                     .close = close_source,
                                     .next = next};
W_FORMAT(desc);
static const struct w_format sounds = {.name = "sounds",
                                       .extensions = " wav wave ",
                                       .folder = true,
                                       .by_name = true,
                                       .open = open_source,
                                       .close = close_source,
                                       .next = next};
W_FORMAT(sounds);
static const struct w_format texts = {.name = "texts",
                                      .extensions = " txt ",
                                      .folder = true,
                                      .by_name = true,
                                      .open = open_source,
                                      .close = close_source,
                                      .next = next};
W_FORMAT(texts);
