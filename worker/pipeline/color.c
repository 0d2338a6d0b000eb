/* color: changes the colour space of an image. */
#include "worker/pipeline/image.h"
#include "worker/pipeline/step.h"

struct color {
    int32_t to;
};

/* clang-format off */
static const struct w_param params[] = {
    {.name = "to", .kind = W_PARAM_CHOICE, .offset = offsetof(struct color, to), .choices = W_COLOR_CHOICES, .required = true, .help = "ycbcr is JFIF's, as Pillow has it"}, {0}};
/* clang-format on */

static bool check(struct w_step *s, const struct w_spec *in, struct w_spec *out,
                  struct w_error *err) {
    const struct color *c = s->state;
    if (in->color == W_COLOR_YCBCR && c->to != W_COLOR_YCBCR)
        return w_fail(err, W_BAD_MODEL,
                      "an image in ycbcr is not turned back into another colour space");
    out->color = (enum w_color)c->to;
    out->channels = c->to == W_COLOR_GRAY ? 1 : 3;
    return true;
}

static bool apply(const struct w_step *s, struct w_row *row, const struct w_value *in,
                  struct w_value *out, struct w_error *err) {
    const struct color *c = s->state;
    return w__image_color(&row->arena, &in->image, (enum w_color)c->to, &out->image, err);
}

static const struct w_step_desc desc = {.name = "color",
                                        .summary = "changes the colour space of an image",
                                        .params = params,
                                        .state_bytes = sizeof(struct color),
                                        .takes = W_TAKES(W_IMAGE),
                                        .gives = W_IMAGE,
                                        .check = check,
                                        .apply = apply};
W_STEP(desc);
