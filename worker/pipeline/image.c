/* image.c: the plain things done to pictures: making, turning, placing, changing colours. The
 * arithmetic of colours is Pillow's. */
#include "worker/pipeline/image.h"

#include <pthread.h>
#include <string.h>

bool w__image_alloc(struct w_arena *a, int32_t w, int32_t h, int32_t channels, enum w_color color,
                    struct w_image *dst, struct w_error *err) {
    if (w < 1 || h < 1 || w > W_SIDE_MAX || h > W_SIDE_MAX)
        return w_fail(err, W_TOO_LARGE, "an image of %d×%d: sides from 1 to %d are possible", w, h,
                      W_SIDE_MAX);
    *dst = (struct w_image){w_arena_array(a, (size_t)w * (size_t)h, (size_t)channels), w, h,
                            channels, color};
    return dst->pixels ||
           w_fail(err, W_TOO_LARGE,
                  "an image of %d×%d×%d bytes is more than what is left of a row's memory", w, h,
                  channels);
}

struct w_geometry w__geometry_identity(int32_t w, int32_t h) {
    return (struct w_geometry){{1, 0, 0, 0, 1, 0}, w, h};
}

void w__geometry_push(struct w_geometry *g, double sx, double sy, double dx, double dy) {
    for (int i = 0; i < 3; i++) g->m[i] *= sx, g->m[3 + i] *= sy;
    g->m[2] += dx;
    g->m[5] += dy;
}

/* --- orientation ------------------------------------------------------------------------------ */

static uint32_t get(const uint8_t *p, int n, bool big) {
    uint32_t v = 0;
    for (int i = 0; i < n; i++) v |= (uint32_t)p[i] << 8 * (big ? n - 1 - i : i);
    return v;
}

int w__exif_orientation(const uint8_t *p, size_t len) {
    if (len < 8 || (memcmp(p, "II", 2) && memcmp(p, "MM", 2))) return 1;
    bool big = p[0] == 'M';
    size_t at = get(p + 4, 4, big);
    if (get(p + 2, 2, big) != 42 || at > len - 2) return 1;
    size_t n = get(p + at, 2, big);
    for (at += 2; n && at + 12 <= len; n--, at += 12) {
        if (get(p + at, 2, big) != 0x0112) continue;
        uint32_t type = get(p + at + 2, 2, big), v = get(p + at + 8, type == 4 ? 4 : 2, big);
        return (type == 3 || type == 4) && v >= 1 && v <= 8 ? (int)v : 1;
    }
    return 1;
}

bool w__image_orient(struct w_arena *a, const struct w_image *src, int orientation,
                     struct w_image *dst, struct w_error *err) {
    if (orientation <= 1 || orientation > 8) return *dst = *src, true;
    bool swap = orientation >= 5;
    if (!w__image_alloc(a, swap ? src->h : src->w, swap ? src->w : src->h, src->channels,
                        src->color, dst, err))
        return false;
    bool mirror_x = orientation == 2 || orientation == 3 || orientation == 7 || orientation == 8;
    bool mirror_y = orientation == 3 || orientation == 4 || orientation == 6 || orientation == 7;
    const int32_t c = src->channels;
    for (int32_t y = 0; y < dst->h; y++) {
        uint8_t *d = dst->pixels + (size_t)y * dst->w * c;
        for (int32_t x = 0; x < dst->w; x++, d += c) {
            int32_t sx = swap ? y : x, sy = swap ? x : y;
            if (mirror_x) sx = src->w - 1 - sx;
            if (mirror_y) sy = src->h - 1 - sy;
            memcpy(d, src->pixels + ((size_t)sy * src->w + sx) * c, (size_t)c);
        }
    }
    return true;
}

/* --- placing ---------------------------------------------------------------------------------- */

bool w__image_place(struct w_arena *a, const struct w_image *src, int32_t w, int32_t h, int32_t x,
                    int32_t y, const uint8_t value[3], struct w_image *dst, struct w_error *err) {
    if (!w__image_alloc(a, w, h, src->channels, src->color, dst, err)) return false;
    const size_t c = (size_t)src->channels;
    int32_t x0 = x > 0 ? x : 0, y0 = y > 0 ? y : 0;
    int32_t x1 = x + src->w < w ? x + src->w : w, y1 = y + src->h < h ? y + src->h : h;
    if (x0 > 0 || y0 > 0 || x1 < w || y1 < h)
        for (size_t i = 0, n = (size_t)w * (size_t)h; i < n; i++)
            for (size_t k = 0; k < c; k++) dst->pixels[i * c + k] = value[k];
    for (int32_t row = y0; row < y1 && x0 < x1; row++)
        memcpy(dst->pixels + ((size_t)row * w + x0) * c,
               src->pixels + ((size_t)(row - y) * src->w + (x0 - x)) * c, (size_t)(x1 - x0) * c);
    return true;
}

/* --- colours ---------------------------------------------------------------------------------- */

/* ITU-R 601 luma in 16 bits of fraction, rounded. */
static uint8_t luma(int r, int g, int b) {
    return (uint8_t)((r * 19595 + g * 38470 + b * 7471 + 0x8000) >> 16);
}

/* JFIF's RGB → YCbCr with tables of 6 bits of fraction. An entry is half added and cut towards zero
 * (so negative ones are not rounded to the nearest), a sum is shifted towards minus infinity:
 * Pillow's arithmetic, compared over all 2^24 colours. */
static int16_t ycc[3][3][256];
static pthread_once_t ycc_once = PTHREAD_ONCE_INIT;

static void make_ycc(void) {
    static const double k[3][3] = {
        {0.29900, 0.58700, 0.11400}, {-0.16874, -0.33126, 0.50000}, {0.50000, -0.41869, -0.08131}};
    for (int o = 0; o < 3; o++)
        for (int c = 0; c < 3; c++)
            for (int v = 0; v < 256; v++) ycc[o][c][v] = (int16_t)(k[o][c] * v * 64 + 0.5);
}

static uint8_t clip(int v) {
    return (uint8_t)(v < 0 ? 0 : v > 255 ? 255 : v);
}

static void ycbcr(uint8_t *d, int r, int g, int b) {
    for (int o = 0; o < 3; o++)
        d[o] = clip(((ycc[o][0][r] + ycc[o][1][g] + ycc[o][2][b]) >> 6) + (o ? 128 : 0));
}

bool w__image_color(struct w_arena *a, const struct w_image *src, enum w_color color,
                    struct w_image *dst, struct w_error *err) {
    if (src->color == color) return *dst = *src, true;
    if (src->color == W_COLOR_YCBCR)
        return w_fail(err, W_UNSUPPORTED,
                      "an image in ycbcr is not turned back into another colour space");
    if (color == W_COLOR_YCBCR) pthread_once(&ycc_once, make_ycc);
    if (!w__image_alloc(a, src->w, src->h, color == W_COLOR_GRAY ? 1 : 3, color, dst, err))
        return false;
    const size_t n = (size_t)src->w * (size_t)src->h, step = (size_t)src->channels;
    const size_t at_r = src->color == W_COLOR_BGR ? 2 : 0,
                 at_g = src->color == W_COLOR_GRAY ? 0 : 1,
                 at_b = src->color == W_COLOR_RGB ? 2 : 0;
    const uint8_t *s = src->pixels;
    uint8_t *d = dst->pixels;
    for (size_t i = 0; i < n; i++, s += step, d += dst->channels) {
        uint8_t r = s[at_r], g = s[at_g], b = s[at_b];
        if (color == W_COLOR_GRAY)
            d[0] = luma(r, g, b);
        else if (color == W_COLOR_RGB)
            d[0] = r, d[1] = g, d[2] = b;
        else if (color == W_COLOR_BGR)
            d[0] = b, d[1] = g, d[2] = r;
        else
            ycbcr(d, r, g, b);
    }
    return true;
}
