/* jpeg.c: JPEG → 8-bit rgb, with Pillow's bits: libjpeg-turbo with its defaults (accurate integer
 * IDCT, smooth upsampling), gray spread over three channels, CMYK and YCCK taken as Adobe writes
 * them (inverted) and multiplied out.
 *
 * libjpeg reports a fatal error by a call that must not return: it jumps to the one setjmp here,
 * where everything that was made is released (the pixels are the arena's). What it only warns of
 * passes, as in Pillow, but for the end of the data: a file that is cut off is an error. The size
 * is compared with the limit before libjpeg allocates for it, and a progressive file may have at
 * most SCANS_MAX scans: each costs a pass over the whole picture, and a few bytes are enough to ask
 * for one. */
#include "worker/pipeline/image.h"

#include <setjmp.h>
#include <stdio.h>
#include <string.h>

#include <jerror.h>
#include <jpeglib.h>

enum { SCANS_MAX = 200, CHUNK_MAX = 65535 };

struct failure {
    struct jpeg_error_mgr base; /* first: libjpeg's pointer is ours */
    jmp_buf jump;
    char text[JMSG_LENGTH_MAX];
};

static void fail(j_common_ptr info) {
    struct failure *f = (struct failure *)info->err;
    f->base.format_message(info, f->text);
    longjmp(f->jump, 1);
}

static void warn(j_common_ptr info, int level) {
    struct failure *f = (struct failure *)info->err;
    if (level >= 0 || f->base.msg_code != JWRN_JPEG_EOF) return;
    snprintf(f->text, sizeof f->text, "the file is cut off");
    longjmp(f->jump, 1);
}

static void watch(j_common_ptr info) {
    if (!info->is_decompressor || ((j_decompress_ptr)info)->input_scan_number <= SCANS_MAX) return;
    struct failure *f = (struct failure *)info->err;
    snprintf(f->text, sizeof f->text, "it has more than %d scans", SCANS_MAX);
    longjmp(f->jump, 1);
}

static int orientation_of(j_decompress_ptr d) {
    for (jpeg_saved_marker_ptr m = d->marker_list; m; m = m->next)
        if (m->marker == JPEG_APP0 + 1 && m->data_length > 6 && !memcmp(m->data, "Exif\0", 6))
            return w__exif_orientation(m->data + 6, m->data_length - 6);
    return 1;
}

/* a·b/255, rounded, without a division */
static inline int mul255(int a, int b) {
    int t = a * b + 128;
    return ((t >> 8) + t) >> 8;
}

/* One row as libjpeg gives it → rgb. */
static void to_rgb(uint8_t *dst, const uint8_t *src, int32_t w, int components) {
    for (int32_t x = 0; x < w; x++, dst += 3, src += components) {
        if (components == 1) {
            dst[0] = dst[1] = dst[2] = src[0];
            continue;
        }
        const int light = src[3]; /* Adobe's inverted black */
        for (int c = 0; c < 3; c++) dst[c] = (uint8_t)(light - mul255(255 - src[c], light));
    }
}

static bool read_pixels(j_decompress_ptr d, struct w_arena *a, struct w_image *dst,
                        struct w_error *err) {
    const bool direct = d->output_components == 3;
    uint8_t *row = direct ? NULL : w_arena_array(a, d->output_width, (size_t)d->output_components);
    if (!direct && !row) return w_fail(err, W_NO_MEMORY, "no memory for a row of the JPEG image");
    while (d->output_scanline < d->output_height) {
        uint8_t *out = dst->pixels + (size_t)d->output_scanline * (size_t)dst->w * 3;
        JSAMPROW rows[1] = {direct ? out : row};
        jpeg_read_scanlines(d, rows, 1);
        if (!direct) to_rgb(out, row, dst->w, d->output_components);
    }
    jpeg_finish_decompress(d);
    return true;
}

static bool decode(j_decompress_ptr d, struct w_span bytes, int64_t pixels_max, struct w_arena *a,
                   struct w_image *dst, int *orientation, struct w_error *err) {
    jpeg_mem_src(d, (const unsigned char *)bytes.ptr, (unsigned long)bytes.len);
    jpeg_save_markers(d, JPEG_APP0 + 1, CHUNK_MAX);
    jpeg_read_header(d, TRUE);
    *orientation = orientation_of(d);
    if ((int64_t)d->image_width * d->image_height > pixels_max)
        return w_fail(err, W_TOO_LARGE,
                      "the JPEG image is %u×%u, which is over the limit of %lld pixels",
                      d->image_width, d->image_height, (long long)pixels_max);
    if (d->num_components == 1)
        d->out_color_space = JCS_GRAYSCALE;
    else if (d->num_components == 3)
        d->out_color_space = JCS_RGB;
    else if (d->num_components == 4)
        d->out_color_space = JCS_CMYK;
    else
        return w_fail(err, W_UNSUPPORTED,
                      "the JPEG image has %d components; 1, 3 and 4 are supported",
                      d->num_components);
    jpeg_start_decompress(d);
    return w__image_alloc(a, (int32_t)d->output_width, (int32_t)d->output_height, 3, W_COLOR_RGB,
                          dst, err) &&
           read_pixels(d, a, dst, err);
}

bool w__jpeg_decode(struct w_span bytes, int64_t pixels_max, struct w_arena *a, struct w_image *dst,
                    int *orientation, struct w_error *err) {
    struct jpeg_decompress_struct d;
    struct jpeg_progress_mgr progress = {.progress_monitor = watch};
    struct failure failure;
    d.err = jpeg_std_error(&failure.base);
    failure.base.error_exit = fail;
    failure.base.emit_message = warn;
    if (setjmp(failure.jump)) {
        jpeg_destroy_decompress(&d);
        return w_fail(err, W_BAD_INPUT, "the JPEG image cannot be decoded: %.200s", failure.text);
    }
    jpeg_create_decompress(&d);
    d.progress = &progress;
    bool good = decode(&d, bytes, pixels_max, a, dst, orientation, err);
    jpeg_destroy_decompress(&d);
    return good;
}
