/* png.c: PNG → 8-bit rgb: palettes and low depths spread out, 16 bits cut to the high byte (as
 * Pillow does for colour), alpha dropped or laid over white, interlaced files in all passes.
 *
 * libpng reports a fatal error by a call that must not return: it jumps to the one setjmp here. The
 * size is compared with the limit before anything is allocated for it; chunks beside the picture
 * are bounded by CHUNK_BYTES_MAX. */
#include "worker/pipeline/image.h"

#include <png.h>
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { CHUNK_BYTES_MAX = 8 << 20, CHUNKS_MAX = 1000 };

struct reader {
    jmp_buf jump;
    struct w_span left;
    char text[200];
};

static void fail(png_structp png, png_const_charp text) {
    struct reader *r = png_get_error_ptr(png);
    snprintf(r->text, sizeof r->text, "%s", text);
    longjmp(r->jump, 1);
}

static void warn(png_structp png, png_const_charp text) {
    (void)png;
    (void)text;
}

static void take(png_structp png, png_bytep dst, size_t n) {
    struct reader *r = png_get_io_ptr(png);
    if (n > r->left.len) png_error(png, "the file is cut off");
    memcpy(dst, r->left.ptr, n);
    r->left.ptr += n;
    r->left.len -= n;
}

/* (a·(255 − alpha) + b·alpha) / 255, rounded, without a division */
static uint8_t over_white(int v, int alpha) {
    int t = 255 * (255 - alpha) + v * alpha + 128;
    return (uint8_t)(((t >> 8) + t) >> 8);
}

static void drop_alpha(uint8_t *pixels, const uint8_t *rgba, size_t n, enum w_alpha alpha) {
    for (size_t i = 0; i < n; i++, pixels += 3, rgba += 4)
        for (int c = 0; c < 3; c++)
            pixels[c] = alpha == W_ALPHA_WHITE ? over_white(rgba[c], rgba[3]) : rgba[c];
}

static int orientation_of(png_structp png, png_infop info) {
#ifdef PNG_eXIf_SUPPORTED
    png_uint_32 n;
    png_bytep exif;
    if (png_get_eXIf_1(png, info, &n, &exif)) return w__exif_orientation(exif, n);
#endif
    return 1;
}

/* What png.c has made of the header: all as rgb, or rgba where there is alpha to lay over white. */
static bool prepare(png_structp png, png_infop info, int64_t pixels_max, enum w_alpha alpha,
                    bool *with_alpha, struct w_error *err) {
    png_uint_32 w, h;
    int depth, color;
    png_get_IHDR(png, info, &w, &h, &depth, &color, NULL, NULL, NULL);
    if ((int64_t)w * h > pixels_max || w > W_SIDE_MAX || h > W_SIDE_MAX)
        return w_fail(err, W_TOO_LARGE,
                      "the PNG image is %u×%u, which is over the limit of %lld pixels", w, h,
                      (long long)pixels_max);
    bool transparent = (color & PNG_COLOR_MASK_ALPHA) || png_get_valid(png, info, PNG_INFO_tRNS);
    *with_alpha = transparent && alpha == W_ALPHA_WHITE;
    png_set_strip_16(png);
    png_set_expand(png); /* palettes, depths below 8, tRNS → alpha */
    png_set_gray_to_rgb(png);
    if (transparent && !*with_alpha) png_set_strip_alpha(png);
    png_set_interlace_handling(png);
    png_read_update_info(png, info);
    size_t row_bytes = png_get_rowbytes(png, info);
    return row_bytes == (size_t)w * (*with_alpha ? 4 : 3) ||
           w_fail(err, W_INTERNAL, "the PNG image has rows of %zu bytes for %u pixels", row_bytes,
                  w);
}

/* rows is the caller's to free: a jump may leave this function. */
__attribute__((noinline)) static bool decode(png_structp png, png_infop info, int64_t pixels_max,
                                             enum w_alpha alpha, struct w_arena *a,
                                             struct w_image *dst, int *orientation,
                                             png_bytep *volatile *rows, struct w_error *err) {
    bool with_alpha = false;
    png_read_info(png, info);
    if (!prepare(png, info, pixels_max, alpha, &with_alpha, err)) return false;
    int32_t w = (int32_t)png_get_image_width(png, info),
            h = (int32_t)png_get_image_height(png, info);
    size_t row_bytes = png_get_rowbytes(png, info);
    if (!w__image_alloc(a, w, h, 3, W_COLOR_RGB, dst, err)) return false;
    uint8_t *pixels = with_alpha ? w_arena_array(a, row_bytes, (size_t)h) : dst->pixels;
    *rows = pixels ? calloc((size_t)h, sizeof **rows) : NULL;
    if (!*rows) return w_fail(err, W_NO_MEMORY, "no memory for a PNG image of %d×%d", w, h);
    for (int32_t y = 0; y < h; y++) (*rows)[y] = pixels + (size_t)y * row_bytes;
    png_read_image(png, *rows);
    png_read_end(png, info);
    if (with_alpha) drop_alpha(dst->pixels, pixels, (size_t)w * (size_t)h, alpha);
    *orientation = orientation_of(png, info);
    return true;
}

bool w__png_decode(struct w_span bytes, int64_t pixels_max, enum w_alpha alpha, struct w_arena *a,
                   struct w_image *dst, int *orientation, struct w_error *err) {
    struct reader r = {.left = bytes};
    png_bytep *volatile rows = NULL;
    png_structp png = png_create_read_struct(PNG_LIBPNG_VER_STRING, &r, fail, warn);
    png_infop info = png ? png_create_info_struct(png) : NULL;
    bool good = false;
    if (!info) {
        w_fail(err, W_NO_MEMORY, "no memory for libpng");
    } else if (setjmp(r.jump)) {
        w_fail(err, W_BAD_INPUT, "the PNG image cannot be decoded: %s", r.text);
        good = false;
    } else {
        png_set_read_fn(png, &r, take);
        png_set_user_limits(png, W_SIDE_MAX, W_SIDE_MAX);
        png_set_chunk_malloc_max(png, CHUNK_BYTES_MAX);
        png_set_chunk_cache_max(png, CHUNKS_MAX);
        good = decode(png, info, pixels_max, alpha, a, dst, orientation, &rows, err);
    }
    free(rows);
    if (png) png_destroy_read_struct(&png, &info, NULL);
    return good;
}
