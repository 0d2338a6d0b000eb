/* value.h: what flows through a pipeline, the memory that it lives in, and the error slot.
 *
 * A value owns nothing: its data lies in the arena of its row, or is lent by whoever made it (a
 * memory-mapped file, the job's JSON text, the engine's outputs) for as long as the row lives. So
 * nothing is freed one by one, and a row that fails half-way is thrown away by one w_arena_reset.
 *
 * Threads: none of this is locked. An arena, and the values in it, belong to one thread at a time.
 */
#ifndef QUERN_WORKER_VALUE_H
#define QUERN_WORKER_VALUE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "ops/ops.h"

/* --- errors ----------------------------------------------------------------------------------- */

/* code is one of the job error codes of the queue's table, as text ("bad_shape"), so that this
 * folder needs no queue; text is a sentence that names the thing, the found and the expected. */
struct w_error {
    const char *code;
    char text[480];
};

#define W_BAD_INPUT "bad_input"
#define W_BAD_SHAPE "bad_shape"
#define W_BAD_DTYPE "bad_dtype"
#define W_BAD_JSON "bad_json"
#define W_BAD_MODEL "bad_model"
#define W_REF_DENIED "ref_denied"
#define W_REF_NOT_FOUND "ref_not_found"
#define W_REF_FAILED "ref_failed"
#define W_TOO_LARGE "too_large"
#define W_UNSUPPORTED "unsupported"
#define W_NO_MEMORY "no_memory"
#define W_OUTPUT_FAILED "output_failed"
#define W_INTERNAL "internal"

/* Fills err (NULL: nobody wants it) and returns false, so that a function can end in `return
 * w_fail(…)`. */
bool w_fail(struct w_error *err, const char *code, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
/* Puts a printf prefix in front of err's text: where it happened. Returns false. */
bool w_fail_in(struct w_error *err, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* --- memory ----------------------------------------------------------------------------------- */

struct w__block;

/* Bump allocation with a ceiling; reset keeps the blocks, so a lane in its stride allocates
 * nothing. */
struct w_arena {
    struct w__block *blocks;
    size_t used_bytes, bytes_max;
};

void w_arena_init(struct w_arena *a, size_t bytes_max);
/* 64-byte aligned, not zeroed; NULL beyond bytes_max or without memory. 0 bytes give a valid
 * pointer. */
void *w_arena_alloc(struct w_arena *a, size_t bytes);
/* n × size, checked for overflow. */
void *w_arena_array(struct w_arena *a, size_t n, size_t size);
char *w_arena_text(struct w_arena *a, const char *text, size_t len); /* a NUL-terminated copy */
void w_arena_reset(struct w_arena *a);  /* forgets all; keeps up to 16 MiB of blocks */
void w_arena_finish(struct w_arena *a); /* gives the blocks back */

/* --- types ------------------------------------------------------------------------------------ */

#define W_TYPE_MAP(X)                                                                              \
    X(BYTES, "bytes")                                                                              \
    X(TEXT, "text")                                                                                \
    X(JSON, "json")                                                                                \
    X(IMAGE, "image")                                                                              \
    X(AUDIO, "audio")                                                                              \
    X(TOKENS, "tokens")                                                                            \
    X(TENSOR, "tensor")                                                                            \
    X(BOXES, "boxes")                                                                              \
    X(POINTS, "points")                                                                            \
    X(MASK, "mask")                                                                                \
    X(LABELS, "labels")                                                                            \
    X(LIST, "list")

enum w_type {
#define X(name, text) W_##name,
    W_TYPE_MAP(X)
#undef X
        W_TYPE_N
};
const char *w_type_name(enum w_type type);

/* bytes, text (UTF-8) and json (the raw JSON text of one value; nothing is parsed before a step
 * wants it) */
struct w_span {
    const char *ptr;
    size_t len;
};

enum w_color { W_COLOR_RGB, W_COLOR_BGR, W_COLOR_GRAY, W_COLOR_YCBCR };

/* 8 bits a channel, rows without gaps, interleaved: pixels[(y·w + x)·channels + c]. */
struct w_image {
    uint8_t *pixels;
    int32_t w, h;
    int32_t channels; /* 3, or 1 for gray */
    enum w_color color;
};

/* One channel; samples in [-1, 1] where the file was integers. */
struct w_audio {
    float *samples;
    int64_t n;
    int32_t rate; /* a second */
};

struct w_label {
    const char *label; /* NULL: only the index is known */
    double score;
    int64_t index;
};

/* Where an image came from: x' = m[0]·x + m[1]·y + m[2], y' = m[3]·x + m[4]·y + m[5] takes a point
 * of the decoded original (after EXIF) to the present image. Pixel i covers [i, i+1). w 0: no image
 * was there. */
struct w_geometry {
    double m[6];
    int32_t w, h; /* of the original */
};

struct w_value {
    enum w_type type;
    bool flat; /* a tensor whose shape says nothing: a table's row, to be given the model's shape */
    int8_t activated;      /* a tensor that went through: 0 nothing, 1 softmax, 2 sigmoid */
    struct w_geometry geo; /* of an image and of what was made of it */
    union {
        struct w_span span;      /* BYTES, TEXT, JSON */
        struct w_image image;    /* IMAGE */
        struct w_audio audio;    /* AUDIO */
        struct op_tensor tensor; /* TENSOR */
        struct {
            struct w_label *items;
            size_t n;
        } labels; /* LABELS */
        struct {
            struct w_value *items;
            size_t n;
        } list; /* LIST */
    };
};

/* One line for people: `image 224×224 rgb, mean 112.3` or `tensor f32[3,224,224] min -2.1 mean 0.03
 * max 2.6`. */
char *w_value_summary(const struct w_value *v, char *dst, size_t dst_bytes);

#endif
