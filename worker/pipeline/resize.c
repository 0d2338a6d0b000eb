/* resize: to a size, in one of five ways to treat the proportions:
 *
 *   stretch    w×h whatever the proportions
 *   shortest   the shorter side becomes `size`, the proportions stay (torchvision's Resize with one
 * number) longest    the picture fits into size×size or w×h, the proportions stay cover      fills
 * w×h with the largest part of those proportions: with Pillow's filters that part alone is
 * resampled, in fractions of pixels (ImageOps.fit); with OpenCV's the whole is resampled to cover
 * w×h, then cut letterbox  as longest, then filled up to w×h with `value`
 *
 * The side that follows is a quotient: `round` says what becomes of its fraction (floor is
 * torchvision's). */
#include "worker/pipeline/anchor.h"
#include "worker/pipeline/image.h"
#include "worker/pipeline/step.h"

#include <math.h>

enum fit { STRETCH, SHORTEST, LONGEST, COVER, LETTERBOX };
enum rounding { FLOOR, HALF_UP, CEIL };

struct resize {
    int32_t size, w, h, fit, filter, round, anchor;
    struct w_floats value;
};

/* clang-format off */
static const struct w_param params[] = {
    {.name = "size", .kind = W_PARAM_INT, .offset = offsetof(struct resize, size), .min = 1, .max = W_SIDE_MAX, .help = "pixels; of a side, or of both"},
    {.name = "w", .kind = W_PARAM_INT, .offset = offsetof(struct resize, w), .min = 1, .max = W_SIDE_MAX},
    {.name = "h", .kind = W_PARAM_INT, .offset = offsetof(struct resize, h), .min = 1, .max = W_SIDE_MAX},
    {.name = "fit", .kind = W_PARAM_CHOICE, .offset = offsetof(struct resize, fit), .choices = "stretch shortest longest cover letterbox"},
    {.name = "filter", .kind = W_PARAM_CHOICE, .offset = offsetof(struct resize, filter), .choices = W_FILTER_CHOICES, .deflt = W_PIL_BILINEAR},
    {.name = "round", .kind = W_PARAM_CHOICE, .offset = offsetof(struct resize, round), .choices = "floor half_up ceil"},
    {.name = "anchor", .kind = W_PARAM_CHOICE, .offset = offsetof(struct resize, anchor), .choices = W_ANCHOR_CHOICES},
    {.name = "value", .kind = W_PARAM_FLOATS, .offset = offsetof(struct resize, value), .min = 0, .max = 255, .help = "of the filling, a number or one a channel"},
    {0}};
/* clang-format on */

static bool parse(struct w_step *s, json_t *json, struct w_error *err) {
    struct resize *r = s->state;
    (void)json;
    if (r->size && (r->w || r->h))
        return w_fail(err, W_BAD_MODEL, "give \"size\", or \"w\" and \"h\", not both");
    if (!r->size && !(r->w && r->h))
        return w_fail(err, W_BAD_MODEL, "\"size\", or \"w\" and \"h\", is missing");
    if (r->fit == SHORTEST && !r->size)
        return w_fail(err, W_BAD_MODEL,
                      "\"fit\": \"shortest\" takes \"size\", one number for the shorter side");
    if (r->size) r->w = r->h = r->size;
    return true;
}

static int32_t quotient(int64_t a, int64_t b, enum rounding round) {
    int64_t v = round == FLOOR ? a / b : round == CEIL ? (a + b - 1) / b : (2 * a + b) / (2 * b);
    return v < 1 ? 1 : v > INT32_MAX ? INT32_MAX : (int32_t)v;
}

/* The size that an image of w×h is resampled to, before cutting or filling. */
static void target(const struct resize *r, int32_t w, int32_t h, int32_t *to_w, int32_t *to_h) {
    const enum rounding round = (enum rounding)r->round;
    *to_w = r->w;
    *to_h = r->h;
    if (r->fit == STRETCH) return;
    const bool wide =
        (int64_t)w * r->h > (int64_t)h * r->w; /* wider than the target's proportions */
    const bool width_rules = r->fit == SHORTEST ? w <= h
                             : r->fit == COVER  ? !wide
                                                : wide || (int64_t)w * r->h == (int64_t)h * r->w;
    if (width_rules)
        *to_h = quotient((int64_t)r->w * h, w, round);
    else
        *to_w = quotient((int64_t)r->h * w, h, round);
    if (r->fit == COVER) {
        if (*to_w < r->w) *to_w = r->w;
        if (*to_h < r->h) *to_h = r->h;
    } else if (r->fit != SHORTEST) { /* rounded up it could stick out by one */
        if (*to_w > r->w) *to_w = r->w;
        if (*to_h > r->h) *to_h = r->h;
    }
}

static bool check(struct w_step *s, const struct w_spec *in, struct w_spec *out,
                  struct w_error *err) {
    const struct resize *r = s->state;
    if (r->value.n > 1 && r->value.n != in->channels)
        return w_fail(err, W_BAD_MODEL, "\"value\" has %d numbers, the image has %d channels",
                      r->value.n, in->channels);
    out->w = r->w;
    out->h = r->h;
    if (r->fit == SHORTEST || r->fit == LONGEST) {
        out->w = out->h = -1;
        if (in->w > 0 && in->h > 0) target(r, in->w, in->h, &out->w, &out->h);
    }
    return true;
}

/* The part of an image of w×h that has the proportions of the target, at the anchor. */
static void covered(const struct resize *r, int32_t w, int32_t h, float box[4]) {
    const double has = (double)w / h, wants = (double)r->w / r->h;
    const double part_w = has > wants ? wants * h : w, part_h = has < wants ? w / wants : h;
    int32_t x, y;
    w__anchor(r->anchor, 2, 2, W_HALF_FLOOR, &x, &y); /* 0, 1 or 2 halves of what is left over */
    const double left = (w - part_w) * x / 2, top = (h - part_h) * y / 2;
    box[0] = (float)left;
    box[1] = (float)top;
    box[2] = (float)fmin(left + part_w, w);
    box[3] = (float)fmin(top + part_h, h);
}

static bool cover(const struct resize *r, struct w_row *row, const struct w_image *src,
                  struct w_value *out, struct w_error *err) {
    float box[4];
    covered(r, src->w, src->h, box);
    const double sx = r->w / (double)(box[2] - box[0]), sy = r->h / (double)(box[3] - box[1]);
    w__geometry_push(&out->geo, sx, sy, -(double)box[0] * sx, -(double)box[1] * sy);
    return w__image_resize(&row->arena, src, r->w, r->h, (enum w_filter)r->filter, box, &out->image,
                           err);
}

static bool apply(const struct w_step *s, struct w_row *row, const struct w_value *in,
                  struct w_value *out, struct w_error *err) {
    const struct resize *r = s->state;
    const struct w_image *src = &in->image;
    struct w_image sized;
    int32_t w, h, x, y;
    if (r->fit == COVER && r->filter < W_CV_LINEAR) return cover(r, row, src, out, err);
    target(r, src->w, src->h, &w, &h);
    if (!w__image_resize(&row->arena, src, w, h, (enum w_filter)r->filter, NULL, &sized, err))
        return false;
    w__geometry_push(&out->geo, (double)w / src->w, (double)h / src->h, 0, 0);
    out->image = sized;
    if ((r->fit != COVER && r->fit != LETTERBOX) || (w == r->w && h == r->h)) return true;
    w__anchor(r->anchor, r->w - w, r->h - h, W_HALF_FLOOR, &x, &y);
    uint8_t value[3];
    for (int c = 0; c < 3; c++)
        value[c] = (uint8_t)(r->value.n > 1 ? r->value.v[c] : r->value.v[0]);
    w__geometry_push(&out->geo, 1, 1, x, y);
    return w__image_place(&row->arena, &sized, r->w, r->h, x, y, value, &out->image, err);
}

static const struct w_step_desc desc = {.name = "resize",
                                        .summary = "changes the size of an image",
                                        .params = params,
                                        .state_bytes = sizeof(struct resize),
                                        .takes = W_TAKES(W_IMAGE),
                                        .gives = W_IMAGE,
                                        .parse = parse,
                                        .check = check,
                                        .apply = apply};
W_STEP(desc);
