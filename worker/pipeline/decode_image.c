/* decode_image: bytes of a JPEG or PNG file → image, upright. */
#include "worker/pipeline/image.h"
#include "worker/pipeline/step.h"

#include <string.h>

struct decode {
    int32_t color, alpha;
    bool exif;
    double max_pixels;
};

/* clang-format off */
static const struct w_param params[] = {
    {.name = "color", .kind = W_PARAM_CHOICE, .offset = offsetof(struct decode, color), .choices = "rgb bgr gray"},
    {.name = "exif", .kind = W_PARAM_BOOL, .offset = offsetof(struct decode, exif), .deflt = 1, .help = "turn the picture as its EXIF block says"},
    {.name = "alpha", .kind = W_PARAM_CHOICE, .offset = offsetof(struct decode, alpha), .choices = "drop white"},
    {.name = "max_pixels", .kind = W_PARAM_DOUBLE, .offset = offsetof(struct decode, max_pixels), .min = 1, .max = 1e9, .deflt = 50e6},
    {0}};
/* clang-format on */

static bool check(struct w_step *s, const struct w_spec *in, struct w_spec *out,
                  struct w_error *err) {
    const struct decode *d = s->state;
    (void)in;
    (void)err;
    *out = (struct w_spec){.type = W_IMAGE,
                           .w = -1,
                           .h = -1,
                           .channels = d->color == W_COLOR_GRAY ? 1 : 3,
                           .color = (enum w_color)d->color,
                           .rank = -1};
    return true;
}

static bool apply(const struct w_step *s, struct w_row *row, const struct w_value *in,
                  struct w_value *out, struct w_error *err) {
    const struct decode *d = s->state;
    const struct w_span b = in->span;
    struct w_image raw, upright;
    int orientation = 1;
    bool good;
    if (b.len > 2 && !memcmp(b.ptr, "\xff\xd8", 2))
        good = w__jpeg_decode(b, (int64_t)d->max_pixels, &row->arena, &raw, &orientation, err);
    else if (b.len > 8 && !memcmp(b.ptr, "\x89PNG\r\n\x1a\n", 8))
        good = w__png_decode(b, (int64_t)d->max_pixels, (enum w_alpha)d->alpha, &row->arena, &raw,
                             &orientation, err);
    else if (!b.len)
        return w_fail(err, W_BAD_INPUT, "the image has no bytes");
    else
        return w_fail(err, W_BAD_INPUT, "the %zu bytes are neither a JPEG nor a PNG file", b.len);
    if (!good || !w__image_orient(&row->arena, &raw, d->exif ? orientation : 1, &upright, err))
        return false;
    out->geo = w__geometry_identity(upright.w, upright.h);
    return w__image_color(&row->arena, &upright, (enum w_color)d->color, &out->image, err);
}

static const struct w_step_desc desc = {.name = "decode_image",
                                        .summary = "a JPEG or PNG file becomes an image",
                                        .params = params,
                                        .state_bytes = sizeof(struct decode),
                                        .takes = W_TAKES(W_BYTES),
                                        .gives = W_IMAGE,
                                        .check = check,
                                        .apply = apply};
W_STEP(desc);
