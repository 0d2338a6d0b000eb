/* images.c: a folder of folders of pictures: the label is the folder's name. Every picture is
 * brought to the model's height and width (stretched, bilinear) and to its channels: 1 is gray, 3
 * is RGB. Decoding goes through the pipeline's own steps, so training sees what inference will. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "worker/data/data.h"
#include "worker/pipeline/pipeline.h"
#include "worker/train/train.h"

static struct w_pipeline *decoder(const int64_t *hwc, struct w_error *err) {
    char text[256];
    int n = snprintf(text, sizeof text,
                     "{\"quern\":1,\"pipeline\":[{\"decode_image\":{\"color\":\"%s\"}},"
                     "{\"resize\":{\"h\":%lld,\"w\":%lld}}]}",
                     hwc[2] == 1 ? "gray" : "rgb", (long long)hwc[0], (long long)hwc[1]);
    return w_pipeline_parse(text, (size_t)n, NULL, NULL, err);
}

static bool one(const struct w_pipeline *p, struct w_row *row, const struct w_record *r,
                struct w_array *x, int64_t *room, size_t bytes_max, struct w_error *err) {
    struct w_input in = {.kind = W_INPUT_VALUE, .value = &r->value};
    w_row_reset(row);
    if (w_pipeline_before(p, row, &in, err) != W_NEXT_DONE) return w_fail_in(err, "%s: ", r->name);
    const struct w_image *image = &row->value.image;
    if (row->value.type != W_IMAGE || (int64_t)image->w * image->h * image->channels != x->elements)
        return w_fail(err, W_INTERNAL, "%s: decoded to another size", r->name);
    void *dst = w__train_array_row(x, room, bytes_max, err);
    if (dst) memcpy(dst, image->pixels, (size_t)x->elements);
    return dst != NULL;
}

static bool add_label(const struct w_table *t, const struct w_record *r, struct w_words *words,
                      struct w_error *err) {
    const char *slash = strchr(r->name, '/');
    if (!slash)
        return w_fail(err, W_BAD_INPUT,
                      "%s (%s): the picture %.100s lies in no folder that would be "
                      "its label",
                      t->where, t->path, r->name);
    return w__train_words_add(words, r->name, (size_t)(slash - r->name), err);
}

bool w__train_read_images(const struct w_table *t, const char *folder, struct w_array *x,
                          struct w_words *words, struct w_error *err) {
    const struct w_set_wish *wish = t->wish;
    const struct w_source_options o = {.name = t->path, .format = "images", .header = -1};
    struct w_record r;
    struct w_arena arena;
    int64_t room = 0;
    int k = wish->first;
    const int64_t hwc[] = {wish->dims[k], wish->dims[k + 1], wish->dims[k ? 0 : 2]};
    if (wish->rank != 3 || (hwc[2] != 1 && hwc[2] != 3))
        return w_fail(err, W_BAD_SPEC,
                      "%s: pictures need a model.input_shape of [height, width, 1 or 3]", t->where);
    *x = (struct w_array){.dtype = OP_U8, .rank = 3, .elements = hwc[0] * hwc[1] * hwc[2]};
    memcpy(x->dims, hwc, sizeof hwc);
    w_arena_init(&arena, (size_t)1 << 30);
    struct w_pipeline *p = decoder(hwc, err);
    struct w_row *row = w_row_create((size_t)1 << 30);
    struct w_source *s = p && row ? w_source_open(folder, &o, err) : NULL;
    struct w_cursor *c = s ? w_cursor_open(s, 0, err) : NULL;
    enum w_read got = W_READ_FAILED;
    bool ok = c != NULL;
    while (ok && (got = w_cursor_next(c, &arena, &r, err)) == W_READ_ROW) {
        ok = one(p, row, &r, x, &room, t->files->bytes_max, err) && add_label(t, &r, words, err);
        w_arena_reset(&arena);
        if (ok && t->files->cancel && __atomic_load_n(t->files->cancel, __ATOMIC_RELAXED))
            ok = w_fail(err, "cancelled", "cancelled while reading %s", t->path);
    }
    ok = ok && got == W_READ_END;
    w_cursor_close(c);
    w_source_close(s);
    w_row_destroy(row);
    w_pipeline_destroy(p);
    w_arena_finish(&arena);
    return ok || w_fail_in(err, "%s: ", t->where);
}
