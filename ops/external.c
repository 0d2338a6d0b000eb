/* External data: a tensor's bytes in a file beside the model.
 *
 * A model comes from outside, so the location may be hostile: it must stay inside the model's folder whatever links and
 * dots it has (openat2 with RESOLVE_BENEATH and no symbolic links), name a regular file with a single link (a hard link could
 * be somebody else's file), and offset and length must lie within it. Kernels without openat2 refuse external data. */
#include "ops/model.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

static enum op_status map_file(struct op_model *m, const char *location, struct op_mapping **dst, struct op_error *err) {
    struct open_how how = {.flags = O_RDONLY | O_CLOEXEC | O_NONBLOCK, .resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS};
    struct stat info;
    int fd = m->folder >= 0 ? (int)syscall(SYS_openat2, m->folder, location, &how, sizeof how) : -1;
    if (fd < 0) {
        const char *why = m->folder < 0 ? "the model has no folder" : errno == EXDEV || errno == ELOOP ? "it is outside the model's folder or a link" : strerror(errno);
        return op__model_fail(m, err, OP_IO, "external data \"%.200s\": %s", location, why);
    }
    const char *why = NULL;
    void *map = MAP_FAILED;
    if (fstat(fd, &info) != 0) why = strerror(errno);
    else if (!S_ISREG(info.st_mode)) why = "it is no regular file";
    else if (info.st_nlink != 1) why = "the file has several hard links";
    else if (info.st_size <= 0 || (uint64_t)info.st_size > m->options.model_bytes_max) why = "the file is empty or too large";
    else if ((map = mmap(NULL, (size_t)info.st_size, PROT_READ, MAP_PRIVATE, fd, 0)) == MAP_FAILED) why = strerror(errno);
    close(fd);
    if (why) return op__model_fail(m, err, OP_IO, "external data \"%.200s\": %s", location, why);
    struct op_mapping *entry = calloc(1, sizeof *entry);
    char *name = entry ? strdup(location) : NULL;
    if (!name) {
        free(entry);
        munmap(map, (size_t)info.st_size);
        return op__model_fail(m, err, OP_NOMEM, "out of memory");
    }
    *entry = (struct op_mapping){.next = m->mappings, .name = name, .data = map, .bytes = (size_t)info.st_size, .id = op__file_id(&info)};
    m->mappings = entry;
    *dst = entry;
    return OP_OK;
}

enum op_status op__external_map(struct op_model *m, const char *location, uint64_t offset, uint64_t length, const char **data, size_t *bytes,
                                struct op_error *err) {
    struct op_mapping *file = m->mappings;
    while (file && (!file->name || strcmp(file->name, location) != 0)) file = file->next;
    if (!file) {
        enum op_status st = map_file(m, location, &file, err);
        if (st != OP_OK) return st;
    }
    if (offset > file->bytes || length > file->bytes - offset)
        return op__model_fail(m, err, OP_BAD_MODEL, "external data \"%.200s\" has %zu bytes, the model asks for %llu from %llu", location, file->bytes,
                              (unsigned long long)length, (unsigned long long)offset);
    *data = file->data + offset;
    *bytes = (size_t)length;
    return OP_OK;
}
