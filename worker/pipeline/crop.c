/* crop: a rectangle of w×h at an anchor (the centre), the largest one of a ratio (1: a square), or
 * a box in pixels. */
#include "worker/pipeline/anchor.h"
#include "worker/pipeline/image.h"
#include "worker/pipeline/step.h"

struct crop {
    int32_t w, h, at, round;
    double ratio; /* 0: none */
    struct w_floats box;
};

/* clang-format off */
static const struct w_param params[] = {
    {.name = "w", .kind = W_PARAM_INT, .offset = offsetof(struct crop, w), .min = 1, .max = W_SIDE_MAX},
    {.name = "h", .kind = W_PARAM_INT, .offset = offsetof(struct crop, h), .min = 1, .max = W_SIDE_MAX},
    {.name = "ratio", .kind = W_PARAM_DOUBLE, .offset = offsetof(struct crop, ratio), .min = 0.001, .max = 1000, .help = "width / height: the largest part of that ratio, in whole pixels"},
    {.name = "at", .kind = W_PARAM_CHOICE, .offset = offsetof(struct crop, at), .choices = W_ANCHOR_CHOICES},
    {.name = "round", .kind = W_PARAM_CHOICE, .offset = offsetof(struct crop, round), .choices = W_HALF_CHOICES, .help = "of the half pixel where what is cut away is odd"},
    {.name = "box", .kind = W_PARAM_FLOATS, .offset = offsetof(struct crop, box), .min = 0, .max = W_SIDE_MAX, .help = "[x0, y0, x1, y1] in pixels, x1 and y1 outside"},
    {0}};
/* clang-format on */

static bool parse(struct w_step *s, json_t *json, struct w_error *err) {
    struct crop *c = s->state;
    const double *b = c->box.v;
    (void)json;
    const int n_ways = (c->w || c->h) + (c->ratio > 0) + (c->box.n > 0);
    if (n_ways != 1 || (c->w > 0) != (c->h > 0))
        return w_fail(err, W_BAD_MODEL, "give either \"w\" and \"h\", or \"ratio\", or \"box\"");
    if (!c->box.n) return true;
    for (int i = 0; i < c->box.n; i++)
        if (b[i] != (int32_t)b[i])
            return w_fail(err, W_BAD_MODEL, "\"box\" has the number %g: whole pixels are expected",
                          b[i]);
    if (c->box.n != 4 || b[2] <= b[0] || b[3] <= b[1])
        return w_fail(err, W_BAD_MODEL,
                      "\"box\" must be [x0, y0, x1, y1] with x1 > x0 and y1 > y0");
    c->w = (int32_t)(b[2] - b[0]);
    c->h = (int32_t)(b[3] - b[1]);
    return true;
}

/* The largest whole rectangle of the ratio inside w×h. */
static void of_ratio(const struct crop *c, int32_t w, int32_t h, int32_t *to_w, int32_t *to_h) {
    *to_w = w;
    *to_h = h;
    if (w > h * c->ratio)
        *to_w = (int32_t)(h * c->ratio);
    else
        *to_h = (int32_t)(w / c->ratio);
    if (*to_w < 1) *to_w = 1;
    if (*to_h < 1) *to_h = 1;
}

static bool check(struct w_step *s, const struct w_spec *in, struct w_spec *out,
                  struct w_error *err) {
    const struct crop *c = s->state;
    if (c->ratio > 0) {
        out->w = out->h = -1;
        if (in->w > 0 && in->h > 0) of_ratio(c, in->w, in->h, &out->w, &out->h);
        return true;
    }
    int32_t right = c->box.n ? (int32_t)c->box.v[2] : c->w,
            bottom = c->box.n ? (int32_t)c->box.v[3] : c->h;
    if ((in->w > 0 && right > in->w) || (in->h > 0 && bottom > in->h))
        return w_fail(err, W_BAD_MODEL, "%d×%d cannot be cut out of an image of %d×%d", right,
                      bottom, in->w, in->h);
    out->w = c->w;
    out->h = c->h;
    return true;
}

static bool apply(const struct w_step *s, struct w_row *row, const struct w_value *in,
                  struct w_value *out, struct w_error *err) {
    const struct crop *c = s->state;
    const struct w_image *src = &in->image;
    static const uint8_t none[3];
    int32_t x = (int32_t)c->box.v[0], y = (int32_t)c->box.v[1], w = c->w, h = c->h;
    if (c->ratio > 0) of_ratio(c, src->w, src->h, &w, &h);
    if (!c->box.n) w__anchor(c->at, src->w - w, src->h - h, (enum w_half)c->round, &x, &y);
    if (x < 0 || y < 0 || x + w > src->w || y + h > src->h)
        return w_fail(err, W_BAD_INPUT, "%d×%d at %d,%d cannot be cut out of an image of %d×%d", w,
                      h, x, y, src->w, src->h);
    w__geometry_push(&out->geo, 1, 1, -x, -y);
    return w__image_place(&row->arena, src, w, h, -x, -y, none, &out->image, err);
}

static const struct w_step_desc desc = {.name = "crop",
                                        .summary = "cuts a rectangle out of an image",
                                        .params = params,
                                        .state_bytes = sizeof(struct crop),
                                        .takes = W_TAKES(W_IMAGE),
                                        .gives = W_IMAGE,
                                        .parse = parse,
                                        .check = check,
                                        .apply = apply};
W_STEP(desc);
