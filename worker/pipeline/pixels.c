/* pixels: image → tensor, and with "inverse" tensor → image.
 *
 *   element = (pixel·scale − mean[channel]) / std[channel] + offset
 *
 * worked out once for each of the 256 levels of a channel, in doubles and rounded once, so that
 * applying it is a lookup. The inverse solves for the pixel and rounds to the nearest level. Layout
 * nchw gives [channels, h, w], nhwc [h, w, channels]; the batch dimension is the run's. */
#include "worker/pipeline/image.h"
#include "worker/pipeline/scan.h"
#include "worker/pipeline/step.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { NCHW, NHWC };

struct pixels {
    double scale, offset;
    struct w_floats mean, std;
    int32_t layout, dtype;
    bool inverse;
    enum op_type type;
    /* elements of 1 to 8 bytes, packed: element v of channel c at byte v·size */
    uint64_t table[3][256];
};

/* clang-format off */
static const struct w_param params[] = {
    {.name = "scale", .kind = W_PARAM_DOUBLE, .offset = offsetof(struct pixels, scale), .deflt = 1.0 / 255},
    {.name = "mean", .kind = W_PARAM_FLOATS, .offset = offsetof(struct pixels, mean), .help = "a number or one a channel, after the scale"},
    {.name = "std", .kind = W_PARAM_FLOATS, .offset = offsetof(struct pixels, std), .help = "a number or one a channel"},
    {.name = "offset", .kind = W_PARAM_DOUBLE, .offset = offsetof(struct pixels, offset)},
    {.name = "layout", .kind = W_PARAM_CHOICE, .offset = offsetof(struct pixels, layout), .choices = "nchw nhwc"},
    {.name = "dtype", .kind = W_PARAM_CHOICE, .offset = offsetof(struct pixels, dtype), .choices = "f32 f16 bf16 f64 u8 i8 i32"},
    {.name = "inverse", .kind = W_PARAM_BOOL, .offset = offsetof(struct pixels, inverse)},
    {0}};
/* clang-format on */

static double of_channel(const struct w_floats *f, int c, double deflt) {
    return f->n == 0 ? deflt : f->n == 1 ? f->v[0] : f->v[c];
}

static bool parse(struct w_step *s, json_t *json, struct w_error *err) {
    static const enum op_type types[] = {OP_F32, OP_F16, OP_BF16, OP_F64, OP_U8, OP_I8, OP_I32};
    struct pixels *p = s->state;
    p->type = types[p->dtype];
    bool whole = p->type == OP_U8 || p->type == OP_I8 || p->type == OP_I32;
    if (whole && !json_object_get(json, "scale"))
        p->scale = 1; /* 1/255 would make nothing but zeros and ones */
    if (p->scale == 0) return w_fail(err, W_BAD_MODEL, "\"scale\" is 0");
    for (int c = 0; c < 3; c++) {
        double mean = of_channel(&p->mean, c, 0), std = of_channel(&p->std, c, 1);
        if (std == 0) return w_fail(err, W_BAD_MODEL, "\"std\" has a 0");
        for (int v = 0; v < 256; v++) {
            double x = (v * p->scale - mean) / std + p->offset;
            struct w_number number = {.value = whole ? nearbyint(x) : x, .negative = x < 0};
            if ((!w__store(p->type, p->table[c], v, &number) || !isfinite(x)) && !p->inverse)
                return w_fail(err, W_BAD_MODEL,
                              "level %d of channel %d becomes %g, which %s cannot hold", v, c, x,
                              op_type_name(p->type));
        }
    }
    return true;
}

static bool check_channels(const struct pixels *p, int channels, struct w_error *err) {
    if (p->mean.n > 1 && p->mean.n != channels)
        return w_fail(err, W_BAD_MODEL, "\"mean\" has %d numbers, the image has %d channels",
                      p->mean.n, channels);
    if (p->std.n > 1 && p->std.n != channels)
        return w_fail(err, W_BAD_MODEL, "\"std\" has %d numbers, the image has %d channels",
                      p->std.n, channels);
    return true;
}

static bool check(struct w_step *s, const struct w_spec *in, struct w_spec *out,
                  struct w_error *err) {
    const struct pixels *p = s->state;
    if (p->inverse) {
        if (in->type != W_TENSOR)
            return w_fail(err, W_BAD_MODEL, "\"inverse\" takes a tensor, and is given %s",
                          w_type_name(in->type));
        *out = (struct w_spec){.type = W_IMAGE, .w = -1, .h = -1, .channels = 3, .rank = -1};
        if (in->rank == 3) {
            out->channels = (int32_t)in->dims[p->layout == NCHW ? 0 : 2];
            if (out->channels != 1 && out->channels != 3 && out->channels != -1)
                return w_fail(err, W_BAD_MODEL, "an image has 1 or 3 channels, the tensor has %d",
                              out->channels);
            if (out->channels == 1) out->color = W_COLOR_GRAY;
        }
        return true;
    }
    if (in->type != W_IMAGE)
        return w_fail(err, W_BAD_MODEL,
                      "takes an image, and is given %s (\"inverse\": true takes a tensor)",
                      w_type_name(in->type));
    if (!check_channels(p, in->channels, err)) return false;
    *out = (struct w_spec){.type = W_TENSOR, .dtype = p->type, .rank = 3};
    const bool first = p->layout == NCHW;
    out->dims[first ? 0 : 2] = in->channels;
    out->dims[first ? 1 : 0] = in->h;
    out->dims[first ? 2 : 1] = in->w;
    return true;
}

#define LOOKUP(type)                                                                               \
    static void lookup_##type(type *dst, size_t dst_step, const uint8_t *src, size_t src_step,     \
                              size_t n, const type *table) {                                       \
        for (size_t i = 0; i < n; i++) dst[i * dst_step] = table[src[i * src_step]];               \
    }
LOOKUP(uint8_t)
LOOKUP(uint16_t)
LOOKUP(uint32_t)
LOOKUP(uint64_t)

static bool to_tensor(const struct pixels *p, struct w_row *row, const struct w_image *im,
                      struct op_tensor *t, struct w_error *err) {
    const size_t n = (size_t)im->w * (size_t)im->h, c = (size_t)im->channels,
                 size = op_type_size(p->type);
    *t = (struct op_tensor){
        .dtype = p->type, .rank = 3, .data = w_arena_array(&row->arena, n * c, size)};
    if (!t->data)
        return w_fail(err, W_TOO_LARGE,
                      "a tensor of %zu elements is more than what is left of a row's memory",
                      n * c);
    const bool first = p->layout == NCHW;
    t->dims[first ? 0 : 2] = im->channels;
    t->dims[first ? 1 : 0] = im->h;
    t->dims[first ? 2 : 1] = im->w;
    const size_t dst_step = first ? 1 : c;
    for (size_t k = 0; k < c; k++) {
        char *dst = (char *)t->data + size * (first ? n * k : k);
        const uint8_t *src = im->pixels + k;
        if (size == 1)
            lookup_uint8_t((uint8_t *)dst, dst_step, src, c, n, (const uint8_t *)p->table[k]);
        else if (size == 2)
            lookup_uint16_t((uint16_t *)dst, dst_step, src, c, n, (const uint16_t *)p->table[k]);
        else if (size == 4)
            lookup_uint32_t((uint32_t *)dst, dst_step, src, c, n, (const uint32_t *)p->table[k]);
        else
            lookup_uint64_t((uint64_t *)dst, dst_step, src, c, n, (const uint64_t *)p->table[k]);
    }
    return true;
}

static bool to_image(const struct pixels *p, struct w_row *row, struct op_tensor t,
                     struct w_image *im, struct w_error *err) {
    char text[128];
    if (t.rank == 4 && t.dims[0] == 1) memmove(t.dims, t.dims + 1, 3 * sizeof *t.dims), t.rank = 3;
    const bool first = p->layout == NCHW;
    const int64_t c = t.rank == 3 ? t.dims[first ? 0 : 2] : 0, h = t.dims[first ? 1 : 0],
                  w = t.dims[first ? 2 : 1];
    if ((c != 1 && c != 3) || h < 1 || w < 1 || h > W_SIDE_MAX || w > W_SIDE_MAX)
        return w_fail(err, W_BAD_SHAPE,
                      "%s is no image: 1 or 3 channels are expected, first for nchw, last for nhwc",
                      op_tensor_describe(&t, text, sizeof text));
    if (!check_channels(p, (int)c, err) ||
        !w__image_alloc(&row->arena, (int32_t)w, (int32_t)h, (int32_t)c,
                        c == 1 ? W_COLOR_GRAY : W_COLOR_RGB, im, err))
        return false;
    const int64_t n = w * h;
    for (int64_t k = 0; k < c; k++) {
        const double mean = of_channel(&p->mean, (int)k, 0), std = of_channel(&p->std, (int)k, 1);
        for (int64_t i = 0; i < n; i++) {
            double v = ((w__element(&t, first ? k * n + i : i * c + k) - p->offset) * std + mean) /
                       p->scale;
            im->pixels[i * c + k] = (uint8_t)(v > 0 ? v < 255 ? nearbyint(v) : 255 : 0);
        }
    }
    return true;
}

static bool apply(const struct w_step *s, struct w_row *row, const struct w_value *in,
                  struct w_value *out, struct w_error *err) {
    const struct pixels *p = s->state;
    if (!p->inverse) return to_tensor(p, row, &in->image, &out->tensor, err);
    out->type = W_IMAGE;
    out->geo = w__geometry_identity(0, 0);
    return to_image(p, row, in->tensor, &out->image, err);
}

static const struct w_step_desc desc = {.name = "pixels",
                                        .summary = "turns an image into a tensor, or back",
                                        .params = params,
                                        .state_bytes = sizeof(struct pixels),
                                        .takes = W_TAKES(W_IMAGE) | W_TAKES(W_TENSOR),
                                        .gives = W_TENSOR,
                                        .parse = parse,
                                        .check = check,
                                        .apply = apply};
W_STEP(desc);
