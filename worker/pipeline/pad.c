/* pad: fills an image up, to w×h or to the next multiple. */
#include "worker/pipeline/anchor.h"
#include "worker/pipeline/image.h"
#include "worker/pipeline/step.h"

struct pad {
    int32_t w, h, multiple, at;
    struct w_floats value;
};

/* clang-format off */
static const struct w_param params[] = {
    {.name = "w", .kind = W_PARAM_INT, .offset = offsetof(struct pad, w), .min = 1, .max = W_SIDE_MAX},
    {.name = "h", .kind = W_PARAM_INT, .offset = offsetof(struct pad, h), .min = 1, .max = W_SIDE_MAX},
    {.name = "multiple", .kind = W_PARAM_INT, .offset = offsetof(struct pad, multiple), .min = 1, .max = 4096, .help = "of both sides, in pixels"},
    {.name = "at", .kind = W_PARAM_CHOICE, .offset = offsetof(struct pad, at), .choices = W_ANCHOR_CHOICES, .deflt = 1},
    {.name = "value", .kind = W_PARAM_FLOATS, .offset = offsetof(struct pad, value), .min = 0, .max = 255},
    {0}};
/* clang-format on */

static bool parse(struct w_step *s, json_t *json, struct w_error *err) {
    const struct pad *p = s->state;
    (void)json;
    bool size = p->w && p->h;
    if (p->multiple ? (p->w || p->h) : !size)
        return w_fail(err, W_BAD_MODEL, "give \"multiple\", or \"w\" and \"h\"");
    return true;
}

static int32_t up(int32_t side, int32_t multiple) {
    return (side + multiple - 1) / multiple * multiple;
}

static bool check(struct w_step *s, const struct w_spec *in, struct w_spec *out,
                  struct w_error *err) {
    const struct pad *p = s->state;
    if (p->value.n > 1 && p->value.n != in->channels)
        return w_fail(err, W_BAD_MODEL, "\"value\" has %d numbers, the image has %d channels",
                      p->value.n, in->channels);
    if (!p->multiple && (in->w > p->w || in->h > p->h))
        return w_fail(err, W_BAD_MODEL, "an image of %d×%d is larger than %d×%d already", in->w,
                      in->h, p->w, p->h);
    out->w = !p->multiple ? p->w : in->w > 0 ? up(in->w, p->multiple) : -1;
    out->h = !p->multiple ? p->h : in->h > 0 ? up(in->h, p->multiple) : -1;
    return true;
}

static bool apply(const struct w_step *s, struct w_row *row, const struct w_value *in,
                  struct w_value *out, struct w_error *err) {
    const struct pad *p = s->state;
    const struct w_image *src = &in->image;
    const int32_t w = p->multiple ? up(src->w, p->multiple) : p->w,
                  h = p->multiple ? up(src->h, p->multiple) : p->h;
    int32_t x, y;
    if (w < src->w || h < src->h)
        return w_fail(err, W_BAD_INPUT, "an image of %d×%d cannot be padded to %d×%d: it is larger",
                      src->w, src->h, w, h);
    w__anchor(p->at, w - src->w, h - src->h, W_HALF_FLOOR, &x, &y);
    uint8_t value[3];
    for (int c = 0; c < 3; c++)
        value[c] = (uint8_t)(p->value.n > 1 ? p->value.v[c] : p->value.v[0]);
    w__geometry_push(&out->geo, 1, 1, x, y);
    return w__image_place(&row->arena, src, w, h, x, y, value, &out->image, err);
}

static const struct w_step_desc desc = {.name = "pad",
                                        .summary = "fills an image up to a size",
                                        .params = params,
                                        .state_bytes = sizeof(struct pad),
                                        .takes = W_TAKES(W_IMAGE),
                                        .gives = W_IMAGE,
                                        .parse = parse,
                                        .check = check,
                                        .apply = apply};
W_STEP(desc);
