/* array.c: rows that grow, rows that are read, and views of sets. See set.h.
 *
 * A growing array is memory up to files->memory_bytes; then its bytes move to a file without a name
 * (in TMPDIR, else /var/tmp) that is mapped, so the kernel keeps of it in memory what there is room
 * for. The file's blocks are reserved before they are written: a full disk is an error here, and
 * not a signal later. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "worker/train/train.h"

/* --- growing -----------------------------------------------------------------------------------
 */

static int nameless_file(void) {
    const char *folder = getenv("TMPDIR");
    char path[4096];
    if (!folder || !*folder) folder = "/var/tmp";
    int fd = open(folder, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    if (fd >= 0) return fd;
    if (snprintf(path, sizeof path, "%s/quern-rows-XXXXXX", folder) >= (int)sizeof path) return -1;
    fd = mkostemp(path, O_CLOEXEC);
    if (fd >= 0) unlink(path);
    return fd;
}

static bool grow_file(struct w_array *a, size_t used, size_t bytes, struct w_error *err) {
    int fd = a->fd ? a->fd : nameless_file();
    if (fd < 0)
        return w_fail(err, W_OUTPUT_FAILED,
                      "no temporary file for rows that do not fit into data.memory_mb: %s",
                      strerror(errno));
    bool fresh = !a->fd;
    a->fd = fd;
    int why = posix_fallocate(fd, 0, (off_t)bytes);
    void *map = why              ? MAP_FAILED
                : fresh          ? mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0)
                                 : mremap(a->map, a->map_bytes, bytes, MREMAP_MAYMOVE);
    if (map == MAP_FAILED)
        return w_fail(err, W_OUTPUT_FAILED,
                      "the temporary file for the rows cannot grow to %zu MB: %s", bytes >> 20,
                      strerror(why ? why : errno));
    if (fresh) {
        if (used) memcpy(map, a->data, used);
        free(a->data);
    }
    a->data = a->map = map;
    a->map_bytes = a->capacity = bytes;
    return true;
}

/* Room for `more` bytes behind `used`. */
static bool reserve(struct w_array *a, const struct w_train_files *files, size_t used, size_t more,
                    struct w_error *err) {
    size_t need, bytes;
    if (__builtin_add_overflow(used, more, &need) || need > files->bytes_max)
        return w_fail(err, W_TOO_LARGE, "the rows are more than %zu MB", files->bytes_max >> 20);
    if (need <= a->capacity) return true;
    if (a->fd || need > files->memory_bytes) {
        bytes = need + need / 4 + (1 << 20);
        return grow_file(a, used, bytes, err);
    }
    bytes = 2 * need < 4096 ? 4096 : 2 * need;
    void *grown = realloc(a->data, bytes);
    if (!grown) return w_fail(err, W_NO_MEMORY, "no memory for %zu MB of rows", bytes >> 20);
    a->data = grown;
    a->capacity = bytes;
    return true;
}

void *w__array_add(struct w_array *a, const struct w_train_files *files, struct w_error *err) {
    size_t row = (size_t)a->elements * op_type_size(a->dtype), used = (size_t)a->n * row;
    if (!reserve(a, files, used, row ? row : 1, err)) return NULL;
    a->n++;
    return (char *)a->data + used;
}

bool w__array_add_text(struct w_array *a, const struct w_train_files *files, const char *text,
                       size_t len, struct w_error *err) {
    if (a->n + 2 > a->n_offsets_room) {
        int64_t room = a->n_offsets_room ? 2 * a->n_offsets_room : 256;
        int64_t *grown = realloc(a->offsets, (size_t)room * sizeof *grown);
        if (!grown) return w_fail(err, W_NO_MEMORY, "no memory for rows of text");
        if (!a->offsets) grown[0] = 0;
        a->offsets = grown;
        a->n_offsets_room = room;
    }
    size_t used = (size_t)a->offsets[a->n];
    if (!reserve(a, files, used, len ? len : 1, err)) return false;
    if (len) memcpy((char *)a->data + used, text, len);
    a->offsets[++a->n] = (int64_t)(used + len);
    return true;
}

void w__array_finish(struct w_array *a) {
    if (a->reader) a->reader->free(a->reader);
    if (!a->lent) {
        if (a->map)
            munmap(a->map, a->map_bytes);
        else
            free(a->data);
        if (a->fd > 0) close(a->fd);
        free(a->offsets);
    }
    *a = (struct w_array){0};
}

/* --- reading -----------------------------------------------------------------------------------
 */

const void *w__array_row(const struct w_array *a, int64_t row, void *scratch, struct w_error *err) {
    if (a->reader) return a->reader->read(a->reader, row, scratch, err) ? scratch : NULL;
    int64_t stride = a->stride ? a->stride : a->elements;
    return (const char *)a->data + (size_t)(row * stride) * op_type_size(a->dtype);
}

struct w_span w__array_text(const struct w_array *a, int64_t row) {
    return (struct w_span){(const char *)a->data + a->offsets[row],
                           (size_t)(a->offsets[row + 1] - a->offsets[row])};
}

double w__array_number(const struct w_array *a, const void *row, int64_t i) {
    switch (a->dtype) {
    case OP_F64:
        return ((const double *)row)[i];
    case OP_F32:
        return (double)((const float *)row)[i];
    case OP_U8:
        return ((const uint8_t *)row)[i];
    default:
        return (double)((const int64_t *)row)[i];
    }
}

/* --- views -------------------------------------------------------------------------------------
 */

void w_train_set_part(const struct w_set *src, int64_t first, int64_t n, struct w_set *dst) {
    struct w_set s = *src;
    s.rows = src->rows + first;
    s.n = n;
    s.part = true;
    *dst = s;
}

void w_train_set_shuffle(struct w_set *s, uint64_t seed) {
    for (int64_t i = s->n - 1; i > 0; i--) {
        int64_t j = (int64_t)(w__train_mix(seed + (uint64_t)i) % (uint64_t)(i + 1)), k = s->rows[i];
        s->rows[i] = s->rows[j];
        s->rows[j] = k;
    }
}

void w_train_set_finish(struct w_set *s) {
    if (!s->part) {
        for (int i = 0; i < s->n_x; i++) w__array_finish(&s->x[i]);
        w__array_finish(&s->y);
        w__array_finish(&s->weight);
        for (int64_t i = 0; i < s->n_names; i++) free(s->names[i]);
        free(s->names);
        free(s->rows);
    }
    *s = (struct w_set){0};
}
