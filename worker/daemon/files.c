#include "worker/daemon/files.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/openat2.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

struct root {
    int fd;
    char *given, *real; /* without a slash at the end */
};

struct w_files {
    struct root *roots;
    size_t n;
    char list[300]; /* for messages */
};

static char *without_slash(char *path) {
    size_t n = path ? strlen(path) : 0;
    while (n > 1 && path[n - 1] == '/') path[--n] = 0;
    return path;
}

struct w_files *w_files_create(const char *const *roots, size_t n, struct w_error *err) {
    struct w_files *f = calloc(1, sizeof *f);
    if (f) f->roots = calloc(n + 1, sizeof *f->roots);
    if (!f || !f->roots) {
        free(f);
        return w_fail(err, W_NO_MEMORY, "no memory for %zu folders", n), NULL;
    }
    size_t len = 0;
    for (size_t i = 0; i < n; i++) {
        struct root *r = &f->roots[i];
        r->fd = open(roots[i], O_PATH | O_DIRECTORY | O_CLOEXEC);
        if (r->fd < 0) {
            w_fail(err, W_REF_NOT_FOUND, "the folder %s of files cannot be opened: %s", roots[i],
                   strerror(errno));
            w_files_destroy(f);
            return NULL;
        }
        f->n++;
        r->given = without_slash(strdup(roots[i]));
        r->real = without_slash(realpath(roots[i], NULL));
        if (len < sizeof f->list - 1)
            len += (size_t)snprintf(f->list + len, sizeof f->list - len, "%s%s", i ? ", " : "",
                                    roots[i]);
        if (len >= sizeof f->list) len = sizeof f->list - 1;
    }
    return f;
}

void w_files_destroy(struct w_files *f) {
    if (!f) return;
    for (size_t i = 0; i < f->n; i++) {
        close(f->roots[i].fd);
        free(f->roots[i].given);
        free(f->roots[i].real);
    }
    free(f->roots);
    free(f);
}

/* --- opening beneath a root ------------------------------------------------------------------- */

/* The same without openat2: each component by itself, links refused. */
static int walk(int root, const char *path, int flags, mode_t mode) {
    char part[NAME_MAX + 1];
    int at = dup(root);
    while (at >= 0) {
        path += strspn(path, "/");
        size_t n = strcspn(path, "/");
        const char *rest = path + n + strspn(path + n, "/");
        if (n == 0 || (n == 1 && *path == '.' && !*rest)) n = 1, path = ".", rest = "";
        if (n > NAME_MAX || (n == 2 && path[0] == '.' && path[1] == '.')) {
            close(at);
            errno = n > NAME_MAX ? ENAMETOOLONG : EXDEV;
            return -1;
        }
        memcpy(part, path, n);
        part[n] = 0;
        int next = *rest ? openat(at, part, O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC)
                         : openat(at, part, flags | O_NOFOLLOW, mode);
        int e = errno;
        close(at);
        errno = e;
        if (next < 0 || !*rest) return next;
        at = next;
        path = rest;
    }
    return -1;
}

static int open_beneath(int root, const char *path, int flags) {
    struct open_how how = {.flags = (uint64_t)flags,
                           .resolve =
                               RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS};
    for (int tries = 0; tries < 8; tries++) {
        long fd = syscall(SYS_openat2, root, *path ? path : ".", &how, sizeof how);
        if (fd >= 0) return (int)fd;
        if (errno == ENOSYS || errno == EPERM) return walk(root, path, flags, 0);
        if (errno != EAGAIN) return -1; /* EAGAIN: something was renamed meanwhile */
    }
    return -1;
}

/* The rest of path behind a root's, or NULL. */
static const char *behind(const char *path, const char *root) {
    size_t n = root ? strlen(root) : 0;
    if (n == 0 || strncmp(path, root, n) != 0) return NULL;
    if (n == 1) return path + 1;
    return path[n] == 0 ? path + n : path[n] == '/' ? path + n + 1 : NULL;
}

static const char *path_of(const char *ref) {
    if (strncmp(ref, "file:", 5) == 0) ref += 5;
    if (strncmp(ref, "///", 3) == 0) ref += 2;
    return ref;
}

static int refuse(const struct w_files *f, const char *ref, int error, struct w_error *err) {
    if (error == EXDEV)
        w_fail(err, W_REF_DENIED,
               "%.200s lies outside the folders that this worker may use (--files: %s)", ref,
               f->list);
    else if (error == ELOOP)
        w_fail(err, W_REF_DENIED, "%.200s passes through a symbolic link, which is not followed",
               ref);
    else if (error == EACCES || error == EPERM)
        w_fail(err, W_REF_DENIED, "%.200s: the worker's user has no right to it (%s)", ref,
               strerror(error));
    else if (error == ENOENT || error == ENOTDIR)
        w_fail(err, W_REF_NOT_FOUND, "%.200s: %s", ref, strerror(error));
    else if (error == ENAMETOOLONG)
        w_fail(err, W_REF_NOT_FOUND, "%.60s…: the name is too long", ref);
    else
        w_fail(err, W_REF_FAILED, "%.200s: %s", ref, strerror(error));
    return -1;
}

/* Opens path below the first root that has it. */
static int open_any(const struct w_files *f, const char *ref, const char *path, int flags,
                    struct w_error *err) {
    int error = EXDEV;
    if (f->n == 0) {
        w_fail(err, W_REF_DENIED,
               "%.200s: this worker may use no files; it must be started with --files DIR", ref);
        return -1;
    }
    if (!*path) {
        w_fail(err, W_REF_DENIED, "\"%.60s\" names no file", ref);
        return -1;
    }
    for (size_t i = 0; i < f->n; i++) {
        const char *rest = path;
        if (*path == '/' && !(rest = behind(path, f->roots[i].real)) &&
            !(rest = behind(path, f->roots[i].given)))
            continue;
        int fd = open_beneath(f->roots[i].fd, rest, flags | O_CLOEXEC);
        if (fd >= 0) return fd;
        if (error == EXDEV || errno != ENOENT) error = errno;
    }
    return refuse(f, ref, error, err);
}

int w_files_open(const struct w_files *f, const char *ref, bool folder_ok, bool *is_folder,
                 struct w_error *err) {
    struct stat st;
    int fd = open_any(f, ref, path_of(ref), O_RDONLY | O_NONBLOCK | O_NOCTTY, err);
    if (fd < 0) return -1;
    bool folder = fstat(fd, &st) == 0 && S_ISDIR(st.st_mode);
    if (is_folder) *is_folder = folder;
    if (S_ISREG(st.st_mode) || (folder && folder_ok)) return fd;
    close(fd);
    w_fail(err, W_REF_DENIED, "%.200s is %s, a file%s is expected", ref,
           folder ? "a folder" : "a device or a pipe", folder_ok ? " or a folder" : "");
    return -1;
}

int w_files_open_parent(const struct w_files *f, const char *ref, char *name, struct w_error *err) {
    const char *path = path_of(ref), *slash = strrchr(path, '/'), *last = slash ? slash + 1 : path;
    char dir[PATH_MAX];
    if (!*last || strcmp(last, ".") == 0 || strcmp(last, "..") == 0 ||
        strlen(last) > 230) { /* room for what is written beside it */
        w_fail(err, W_REF_DENIED, "\"%.200s\" is no name for an output file", ref);
        return -1;
    }
    if (slash && (size_t)(slash - path) >= sizeof dir) return refuse(f, ref, ENAMETOOLONG, err);
    snprintf(dir, sizeof dir, "%.*s", slash ? (int)(slash - path) : 1, slash ? path : ".");
    if (slash == path) snprintf(dir, sizeof dir, "/");
    snprintf(name, 256, "%s", last);
    return open_any(f, ref, dir, O_RDONLY | O_DIRECTORY, err);
}

bool w_files_read(const struct w_files *f, const char *ref, struct w_arena *arena,
                  struct w_span *dst, struct w_error *err) {
    struct stat st;
    int fd = w_files_open(f, ref, false, NULL, err);
    if (fd < 0) return false;
    char *bytes =
        fstat(fd, &st) == 0 && st.st_size >= 0 ? w_arena_alloc(arena, (size_t)st.st_size) : NULL;
    if (!bytes) {
        close(fd);
        return w_fail(err, W_TOO_LARGE, "%.200s has %jd bytes, more than one input may have", ref,
                      (intmax_t)st.st_size);
    }
    size_t n = 0;
    ssize_t got = 0;
    while (n < (size_t)st.st_size && (got = read(fd, bytes + n, (size_t)st.st_size - n)) > 0)
        n += (size_t)got;
    int error = errno;
    close(fd);
    if (got < 0) return w_fail(err, W_REF_FAILED, "%.200s: %s", ref, strerror(error));
    *dst = (struct w_span){bytes, n};
    return true;
}
