/* Tables: the first byte picks NPY, CSV or JSONL and a row to begin at; the rest is the file. Every
 * row is read from the beginning and from the middle; both must see the same rows. */
#include <assert.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "worker/data/data.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* A sum over the rows from `first` on. */
static uint64_t walk(const struct w_source *s, uint64_t first, struct w_arena *arena) {
    struct w_error err;
    struct w_record rec;
    uint64_t sum = 0, n = first;
    enum w_read read;
    struct w_cursor *c = w_cursor_open(s, first, &err);
    assert(c);
    while ((read = w_cursor_next(c, arena, &rec, &err)) == W_READ_ROW || read == W_READ_BAD) {
        assert(rec.row == n);
        n++;
        sum = sum * 31 + rec.line +
              (read == W_READ_BAD           ? 7
               : rec.value.type == W_TENSOR ? (uint64_t)op_tensor_count(&rec.value.tensor)
                                            : rec.value.span.len);
        w_arena_reset(arena);
    }
    assert(read == W_READ_END && n == w_source_rows(s));
    w_cursor_close(c);
    return n == first ? 0 : sum;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static const char *const formats[] = {"npy", "csv", "jsonl"};
    struct w_arena arena;
    struct w_error err;
    struct op_tensor t;
    if (size < 1) return 0;
    const uint8_t pick = *data++;
    size--;
    w_arena_init(&arena, 16 << 20);
    if (pick % 3 == 0 && w_npy_parse(data, size, &arena, &t, &err)) {
        char text[128];
        op_tensor_describe(&t, text, sizeof text);
        uint8_t sum = 0; /* every byte of it must be there */
        for (int64_t i = 0, n = op_tensor_bytes(&t); i < n; i++)
            sum = (uint8_t)(sum + ((const uint8_t *)t.data)[i]);
        (void)sum;
    }
    int fd = memfd_create("table", MFD_CLOEXEC);
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    if (fd < 0 || write(fd, data, size) != (ssize_t)size) return 0;
    struct w_source_options o = {.format = formats[pick % 3], .header = -1, .line_bytes_max = 4096};
    struct w_source *s = w_source_open(path, &o, &err);
    /* A shape of [2^50, 0] is a legal array of rows without bytes: not one to be walked. */
    if (s && w_source_rows(s) < 100000) {
        walk(s, 0, &arena);
        const uint64_t middle = w_source_rows(s) / 2;
        const uint64_t a = walk(s, middle, &arena), b = walk(s, middle, &arena);
        assert(a == b);
    }
    w_source_close(s);
    close(fd);
    w_arena_finish(&arena);
    return 0;
}
