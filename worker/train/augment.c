/* augment.c: a training row, changed a little each time it is seen. Rows are f32, channels last;
 * each step draws from the row's own seed, so order and threads do not matter. Names and factors
 * are those of Keras's layers. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "worker/train/train.h"

#define STEPS_MAX 16

uint64_t w__train_mix(uint64_t z) {
    z += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

struct random {
    uint64_t seed, n;
};
static double uniform(struct random *r) { /* [0, 1) */
    return (double)(w__train_mix(r->seed + r->n++) >> 11) * 0x1p-53;
}

struct params {
    int32_t mode, fill_mode, size;
    double alpha;
    double factor, height_factor, width_factor, stddev, probability, fill_value;
};

struct augment_desc;
struct w_augment {
    int64_t h, w, c;
    float *copy;
    struct step {
        const struct augment_desc *desc;
        struct params p;
    } steps[STEPS_MAX];
    int n;
};

struct augment_desc {
    const char *name;
    const struct w_param *params;
    void (*apply)(struct w_augment *a, const struct params *p, float *row, struct random *r);
    double (*mix)(struct w_augment *a, const struct params *p, float *x, const float *other,
                  struct random *r); /* of two rows, in the place of apply */
};

enum { FLIP_HORIZONTAL, FLIP_VERTICAL, FLIP_BOTH };
enum { FILL_CONSTANT, FILL_NEAREST, FILL_REFLECT, FILL_WRAP };

static void flip(struct w_augment *a, const struct params *p, float *row, struct random *r) {
    bool across = uniform(r) < 0.5 && p->mode != FLIP_VERTICAL,
         down = uniform(r) < 0.5 && p->mode != FLIP_HORIZONTAL;
    if (!across && !down) return;
    memcpy(a->copy, row, (size_t)(a->h * a->w * a->c) * sizeof *row);
    for (int64_t y = 0; y < a->h; y++)
        for (int64_t x = 0; x < a->w; x++)
            memcpy(row + (y * a->w + x) * a->c,
                   a->copy +
                       ((down ? a->h - 1 - y : y) * a->w + (across ? a->w - 1 - x : x)) * a->c,
                   (size_t)a->c * sizeof *row);
}

/* The place that a coordinate outside stands for; -1: the filling. */
static int64_t inside(int64_t i, int64_t n, int fill) {
    if (i >= 0 && i < n) return i;
    if (fill == FILL_CONSTANT) return -1;
    if (fill == FILL_NEAREST) return i < 0 ? 0 : n - 1;
    if (fill == FILL_WRAP) return (i % n + n) % n;
    int64_t m = (i % (2 * n) + 2 * n) % (2 * n); /* d c b a | a b c d | d c b a */
    return m < n ? m : 2 * n - 1 - m;
}

static void shift(struct w_augment *a, int64_t dy, int64_t dx, const struct params *p, float *row) {
    if (!dy && !dx) return;
    memcpy(a->copy, row, (size_t)(a->h * a->w * a->c) * sizeof *row);
    for (int64_t y = 0; y < a->h; y++)
        for (int64_t x = 0; x < a->w; x++) {
            int64_t sy = inside(y - dy, a->h, p->fill_mode),
                    sx = inside(x - dx, a->w, p->fill_mode);
            for (int64_t c = 0; c < a->c; c++)
                row[(y * a->w + x) * a->c + c] =
                    sy < 0 || sx < 0 ? (float)p->fill_value : a->copy[(sy * a->w + sx) * a->c + c];
        }
}

static void translate(struct w_augment *a, const struct params *p, float *row, struct random *r) {
    double dy = (2 * uniform(r) - 1) * p->height_factor * (double)a->h,
           dx = (2 * uniform(r) - 1) * p->width_factor * (double)a->w;
    shift(a, (int64_t)lround(dy), (int64_t)lround(dx), p, row);
}

/* Pads by `padding` pixels all around and cuts the old size out somewhere. */
static void padded_crop(struct w_augment *a, const struct params *p, float *row, struct random *r) {
    int64_t span = 2 * p->size + 1, dy = (int64_t)(uniform(r) * (double)span) - p->size,
            dx = (int64_t)(uniform(r) * (double)span) - p->size;
    shift(a, dy, dx, p, row);
}

/* Bilinear, around the middle: source = turn(dst) · zoom. */
static void warp(struct w_augment *a, double angle, double zoom, const struct params *p,
                 float *row) {
    double cy = (double)(a->h - 1) / 2, cx = (double)(a->w - 1) / 2, s = sin(angle) * zoom,
           c = cos(angle) * zoom;
    memcpy(a->copy, row, (size_t)(a->h * a->w * a->c) * sizeof *row);
    for (int64_t y = 0; y < a->h; y++)
        for (int64_t x = 0; x < a->w; x++) {
            double u = c * ((double)x - cx) - s * ((double)y - cy) + cx,
                   v = s * ((double)x - cx) + c * ((double)y - cy) + cy;
            int64_t x0 = (int64_t)floor(u), y0 = (int64_t)floor(v);
            for (int64_t k = 0; k < a->c; k++) {
                double sum = 0;
                for (int q = 0; q < 4; q++) {
                    int64_t sx = inside(x0 + (q & 1), a->w, p->fill_mode),
                            sy = inside(y0 + (q >> 1), a->h, p->fill_mode);
                    double weight = (q & 1 ? u - (double)x0 : 1 - u + (double)x0) *
                                    (q >> 1 ? v - (double)y0 : 1 - v + (double)y0);
                    sum +=
                        weight * (sx < 0 || sy < 0 ? p->fill_value
                                                   : (double)a->copy[(sy * a->w + sx) * a->c + k]);
                }
                row[(y * a->w + x) * a->c + k] = (float)sum;
            }
        }
}

static void rotate(struct w_augment *a, const struct params *p, float *row, struct random *r) {
    warp(a, (2 * uniform(r) - 1) * p->factor * 2 * M_PI, 1, p, row);
}
static void zoom(struct w_augment *a, const struct params *p, float *row, struct random *r) {
    warp(a, 0, 1 + (2 * uniform(r) - 1) * p->factor, p, row);
}

static void noise(struct w_augment *a, const struct params *p, float *row, struct random *r) {
    for (int64_t i = 0; i < a->h * a->w * a->c; i++) {
        double u = uniform(r), v = uniform(r);
        row[i] += (float)(p->stddev * sqrt(-2 * log(u + 0x1p-54)) * cos(2 * M_PI * v));
    }
}

static void erase(struct w_augment *a, const struct params *p, float *row, struct random *r) {
    double chance = uniform(r), area = 0.02 + uniform(r) * (p->factor - 0.02);
    int64_t h = (int64_t)(sqrt(area) * (double)a->h), w = (int64_t)(sqrt(area) * (double)a->w);
    int64_t y = (int64_t)(uniform(r) * (double)(a->h - h + 1)),
            x = (int64_t)(uniform(r) * (double)(a->w - w + 1));
    if (chance >= p->probability) return;
    for (int64_t i = y; i < y + h; i++)
        for (int64_t k = x * a->c; k < (x + w) * a->c; k++)
            row[i * a->w * a->c + k] = (float)p->fill_value;
}

/* A stretch of frames, or of bands, becomes the row's mean (Park et al. 2019). */
static void mask(struct w_augment *a, const struct params *p, float *row, struct random *r,
                 bool frames) {
    int64_t n = frames ? a->h : a->w, count = a->h * a->w * a->c;
    double mean = 0;
    for (int64_t i = 0; i < count; i++) mean += (double)row[i];
    mean /= (double)count;
    for (int k = 0; k < p->size; k++) {
        int64_t len = (int64_t)(uniform(r) * (p->factor * (double)n + 1)),
                from = (int64_t)(uniform(r) * (double)(n - len + 1));
        for (int64_t y = frames ? from : 0; y < (frames ? from + len : a->h); y++)
            for (int64_t x = frames ? 0 : from; x < (frames ? a->w : from + len); x++)
                for (int64_t c = 0; c < a->c; c++) row[(y * a->w + x) * a->c + c] = (float)mean;
    }
}
static void time_mask(struct w_augment *a, const struct params *p, float *row, struct random *r) {
    mask(a, p, row, r, true);
}
static void frequency_mask(struct w_augment *a, const struct params *p, float *row,
                           struct random *r) {
    mask(a, p, row, r, false);
}

/* (x − mean) · f + mean, or x + f · range, with f of [−factor, factor] */
static void contrast(struct w_augment *a, const struct params *p, float *row, struct random *r) {
    int64_t n = a->h * a->w;
    float by = (float)(1 + (2 * uniform(r) - 1) * p->factor);
    for (int64_t c = 0; c < a->c; c++) {
        double mean = 0;
        for (int64_t i = 0; i < n; i++) mean += (double)row[i * a->c + c];
        mean /= (double)n;
        for (int64_t i = 0; i < n; i++)
            row[i * a->c + c] = (row[i * a->c + c] - (float)mean) * by + (float)mean;
    }
}
static void brightness(struct w_augment *a, const struct params *p, float *row, struct random *r) {
    float by = (float)((2 * uniform(r) - 1) * p->factor);
    for (int64_t i = 0; i < a->h * a->w * a->c; i++) row[i] += by;
}

/* --- mixing rows ---------------------------------------------------------------------------------
 */

static double normal(struct random *r) {
    double u = uniform(r), v = uniform(r);
    return sqrt(-2 * log(u > 0 ? u : 0x1p-54)) * cos(2 * M_PI * v);
}

/* Marsaglia and Tsang 2000; shapes below 1 by the power of a uniform number. */
static double gamma_of(struct random *r, double shape) {
    double boost = shape < 1 ? pow(uniform(r) + 0x1p-54, 1 / shape) : 1, d = (shape < 1 ? shape + 1 : shape) - 1.0 / 3;
    for (;;) {
        double x = normal(r), v = 1 + x / sqrt(9 * d), u = uniform(r) + 0x1p-54;
        v = v * v * v;
        if (v > 0 && log(u) < x * x / 2 + d - d * v + d * log(v)) return boost * d * v;
    }
}
static double beta_of(struct random *r, double alpha) {
    double a = gamma_of(r, alpha), b = gamma_of(r, alpha);
    return a + b > 0 ? a / (a + b) : 0.5;
}

/* λ x + (1 − λ) other (Zhang et al. 2018); what share of x is left. */
static double mix_up(struct w_augment *a, const struct params *p, float *x, const float *other,
                     struct random *r) {
    double keep = beta_of(r, p->alpha);
    for (int64_t i = 0; i < a->h * a->w * a->c; i++)
        x[i] = (float)(keep * (double)x[i] + (1 - keep) * (double)other[i]);
    return keep;
}

/* A rectangle of the other row (Yun et al. 2019). */
static double cut_mix(struct w_augment *a, const struct params *p, float *x, const float *other,
                      struct random *r) {
    double side = sqrt(1 - beta_of(r, p->alpha));
    int64_t h = (int64_t)(side * (double)a->h), w = (int64_t)(side * (double)a->w),
            y0 = (int64_t)(uniform(r) * (double)(a->h - h + 1)),
            x0 = (int64_t)(uniform(r) * (double)(a->w - w + 1));
    for (int64_t y = y0; y < y0 + h; y++)
        memcpy(x + (y * a->w + x0) * a->c, other + (y * a->w + x0) * a->c,
               (size_t)(w * a->c) * sizeof *x);
    return 1 - (double)(h * w) / (double)(a->h * a->w);
}

/* clang-format off */
#define P(field) offsetof(struct params, field)
#define FILL {.name = "fill_mode", .kind = W_PARAM_CHOICE, .offset = P(fill_mode), .choices = "constant nearest reflect wrap"}, {.name = "fill_value", .kind = W_PARAM_DOUBLE, .offset = P(fill_value)}
static const struct w_param flip_params[] = {{.name = "mode", .kind = W_PARAM_CHOICE, .offset = P(mode), .choices = "horizontal vertical horizontal_and_vertical", .deflt = FLIP_BOTH}, {0}};
static const struct w_param translation_params[] = {{.name = "height_factor", .kind = W_PARAM_DOUBLE, .offset = P(height_factor), .min = 0, .max = 1, .required = true, .help = "of the height"},
    {.name = "width_factor", .kind = W_PARAM_DOUBLE, .offset = P(width_factor), .min = 0, .max = 1, .required = true, .help = "of the width"}, FILL, {0}};
static const struct w_param crop_params[] = {{.name = "padding", .kind = W_PARAM_INT, .offset = P(size), .min = 1, .max = 1024, .deflt = 4}, FILL, {0}};
static const struct w_param factor_params[] = {{.name = "factor", .kind = W_PARAM_DOUBLE, .offset = P(factor), .min = 0, .max = 0.95, .required = true, .help = "how far"}, FILL, {0}};
static const struct w_param noise_params[] = {{.name = "stddev", .kind = W_PARAM_DOUBLE, .offset = P(stddev), .min = 0, .max = 1e9, .required = true, .help = "of the noise"}, {0}};
static const struct w_param erase_params[] = {{.name = "factor", .kind = W_PARAM_DOUBLE, .offset = P(factor), .min = 0.02, .max = 1, .deflt = 0.2}, {.name = "probability", .kind = W_PARAM_DOUBLE, .offset = P(probability), .min = 0, .max = 1, .deflt = 0.5},
    {.name = "fill_value", .kind = W_PARAM_DOUBLE, .offset = P(fill_value)}, {0}};

static const struct w_param mask_params[] = {{.name = "factor", .kind = W_PARAM_DOUBLE, .offset = P(factor), .min = 0, .max = 1, .deflt = 0.2},
    {.name = "count", .kind = W_PARAM_INT, .offset = P(size), .min = 1, .max = 64, .deflt = 1}, {0}};

static const struct w_param mix_params[] = {{.name = "alpha", .kind = W_PARAM_DOUBLE, .offset = P(alpha), .min = 0.01, .max = 100, .deflt = 0.2},
    {.name = "probability", .kind = W_PARAM_DOUBLE, .offset = P(probability), .min = 0, .max = 1, .deflt = 1}, {0}};

static const struct augment_desc descs[] = {
    {"RandomFlip", flip_params, flip, NULL},
    {"RandomTranslation", translation_params, translate, NULL},
    {"RandomCrop", crop_params, padded_crop, NULL},
    {"RandomRotation", factor_params, rotate, NULL},
    {"RandomZoom", factor_params, zoom, NULL},
    {"GaussianNoise", noise_params, noise, NULL},
    {"RandomErasing", erase_params, erase, NULL},
    {"RandomContrast", factor_params, contrast, NULL},
    {"RandomBrightness", factor_params, brightness, NULL},
    {"TimeMask", mask_params, time_mask, NULL},
    {"FrequencyMask", mask_params, frequency_mask, NULL},
    {"MixUp", mix_params, NULL, mix_up},
    {"CutMix", mix_params, NULL, cut_mix},
};
/* clang-format on */

static const char *next_desc(void *user, size_t i) {
    (void)user;
    return i < sizeof descs / sizeof *descs ? descs[i].name : NULL;
}

static bool read_step(struct w_augment *a, json_t *json, struct w_error *err) {
    char where[64];
    const char *type;
    snprintf(where, sizeof where, "data.augment[%d]", a->n);
    if (!w__train_typed(json, &type, where, err)) return false;
    struct step *s = &a->steps[a->n];
    for (size_t i = 0; i < sizeof descs / sizeof *descs; i++)
        if (strcmp(descs[i].name, type) == 0) s->desc = &descs[i];
    if (!s->desc) return w__train_unknown(where, "augmentation", type, next_desc, NULL, err);
    json_t *none = json_object();
    bool ok =
        w__train_params(s->desc->params, json_is_object(json) ? json : none, &s->p, where, err);
    json_decref(none);
    a->n++;
    return ok;
}

struct w_augment *w_augment_create(json_t *list, int rank, const int64_t *dims,
                                   struct w_error *err) {
    err->code = NULL;
    if (!list) return NULL;
    size_t i, n = json_array_size(list);
    json_t *json;
    if (!json_is_array(list) || n > STEPS_MAX)
        return w_fail(err, W_BAD_SPEC, "data.augment must be a list of at most %d steps",
                      STEPS_MAX),
               NULL;
    if (rank != 3 && rank != 2)
        return w_fail(err, W_BAD_SPEC,
                      "data.augment is for pictures, rows of [height, width, channels], and for "
                      "spectrograms, [frames, bands]"),
               NULL;
    struct w_augment *a = calloc(1, sizeof *a);
    if (a) {
        *a = (struct w_augment){.h = dims[0], .w = dims[1], .c = rank == 3 ? dims[2] : 1};
        a->copy = malloc((size_t)(a->h * a->w * a->c) * sizeof *a->copy);
    }
    if (!a || !a->copy) {
        w_augment_destroy(a);
        return w_fail(err, W_NO_MEMORY, "out of memory"), NULL;
    }
    json_array_foreach(list, i, json) {
        if (read_step(a, json, err)) continue;
        w_augment_destroy(a);
        return NULL;
    }
    return a;
}

void w_augment_apply(struct w_augment *a, float *row, uint64_t seed) {
    for (int i = 0; i < a->n; i++) {
        struct random r = {.seed = w__train_mix(seed + (uint64_t)i)};
        if (a->steps[i].desc->apply) a->steps[i].desc->apply(a, &a->steps[i].p, row, &r);
    }
}

bool w_augment_mixes(const struct w_augment *a) {
    for (int i = 0; i < a->n; i++)
        if (a->steps[i].desc->mix) return true;
    return false;
}

/* The first step in the list that mixes, and whose chance it is, does. */
void w_augment_mix(struct w_augment *a, float *x, float *y, const float *was, int64_t n,
                   int64_t n_targets, uint64_t seed) {
    int64_t size = a->h * a->w * a->c;
    const float *targets = was + n * size;
    for (int64_t row = 0; row < n; row++) {
        struct random r = {.seed = w__train_mix(seed + (uint64_t)row)};
        for (int i = 0; i < a->n; i++) {
            const struct step *s = &a->steps[i];
            if (!s->desc->mix || uniform(&r) >= s->p.probability) continue;
            int64_t other = (int64_t)(uniform(&r) * (double)n);
            double keep = s->desc->mix(a, &s->p, x + row * size, was + other * size, &r);
            for (int64_t k = 0; k < n_targets; k++)
                y[row * n_targets + k] =
                    (float)(keep * (double)targets[row * n_targets + k] +
                            (1 - keep) * (double)targets[other * n_targets + k]);
            break;
        }
    }
}

void w_augment_destroy(struct w_augment *a) {
    if (!a) return;
    free(a->copy);
    free(a);
}
