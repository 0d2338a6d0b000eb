/* image.h: images inside the pipeline: decoding, colours, resampling. Internal to the folder. */
#ifndef QUERN_WORKER_PIPELINE_IMAGE_H
#define QUERN_WORKER_PIPELINE_IMAGE_H

#include "worker/pipeline/value.h"

#define W_SIDE_MAX                                                                                 \
    65535 /* of an image, in pixels: the limit of JPEG, and of what a step may be asked for */

/* The names that the steps' tables use, in the order of enum w_color. */
#define W_COLOR_CHOICES "rgb bgr gray ycbcr"

bool w__image_alloc(struct w_arena *a, int32_t w, int32_t h, int32_t channels, enum w_color color,
                    struct w_image *dst, struct w_error *err);
struct w_geometry w__geometry_identity(int32_t w, int32_t h);
/* x' = sx·x + dx, y' = sy·y + dy after what g does already. */
void w__geometry_push(struct w_geometry *g, double sx, double sy, double dx, double dy);

/* --- decoding: always 3 channels rgb, orientation not applied --------------------------------- */

enum w_alpha { W_ALPHA_DROP, W_ALPHA_WHITE };
/* *orientation: 1 to 8 from EXIF, 1 where there is none. */
bool w__jpeg_decode(struct w_span bytes, int64_t pixels_max, struct w_arena *a, struct w_image *dst,
                    int *orientation, struct w_error *err);
bool w__png_decode(struct w_span bytes, int64_t pixels_max, enum w_alpha alpha, struct w_arena *a,
                   struct w_image *dst, int *orientation, struct w_error *err);
/* The orientation in a TIFF structure (the payload of an EXIF block); 1 if it has none or is
 * malformed. */
int w__exif_orientation(const uint8_t *tiff, size_t len);
/* Turns and mirrors as EXIF's orientation says: dst is what a viewer shows. */
bool w__image_orient(struct w_arena *a, const struct w_image *src, int orientation,
                     struct w_image *dst, struct w_error *err);

/* --- colours, with Pillow's arithmetic -------------------------------------------------------- */

/* From any of rgb, bgr, gray to any; from ycbcr only to itself. */
bool w__image_color(struct w_arena *a, const struct w_image *src, enum w_color color,
                    struct w_image *dst, struct w_error *err);

/* --- resampling ------------------------------------------------------------------------------- */

#define W_FILTER_CHOICES                                                                           \
    "pil.nearest pil.box pil.bilinear pil.bicubic pil.lanczos cv.linear cv.area cv.cubic"
enum w_filter {
    W_PIL_NEAREST,
    W_PIL_BOX,
    W_PIL_BILINEAR,
    W_PIL_BICUBIC,
    W_PIL_LANCZOS,
    W_CV_LINEAR,
    W_CV_AREA,
    W_CV_CUBIC
};
/* The part box = {x0, y0, x1, y1} of src (NULL: all; Pillow's filters only) to w×h. Pillow's
 * filters give Pillow's bits; OpenCV's are within one level of its. The box is in single precision,
 * as Pillow's. */
bool w__image_resize(struct w_arena *a, const struct w_image *src, int32_t w, int32_t h,
                     enum w_filter filter, const float *box, struct w_image *dst,
                     struct w_error *err);

/* src into the w×h canvas at (x, y) (may be negative: that cuts), the rest is value[channel]. */
bool w__image_place(struct w_arena *a, const struct w_image *src, int32_t w, int32_t h, int32_t x,
                    int32_t y, const uint8_t value[3], struct w_image *dst, struct w_error *err);

/* The weights of one axis: output i is Σ k[i·taps + j] · input[first[i] + j], j < n[i]. */
struct w_axis {
    int32_t taps;
    int32_t *first, *n;
    union {
        int32_t *k; /* Pillow: 22 bits of fraction */
        float *kf;  /* OpenCV */
    };
};
/* Rows of a picture through the horizontal axis, and whole rows through the vertical one; chosen by
 * the machine's level. */
struct w_resample {
    void (*horizontal)(uint8_t *dst, int32_t dst_w, const uint8_t *src, int32_t channels,
                       const struct w_axis *axis);
    /* dst[x] of one output row from n source rows, stride bytes apart */
    void (*vertical)(uint8_t *dst, size_t row_bytes, const uint8_t *src, size_t stride,
                     const int32_t *k, int32_t n);
};
extern const struct w_resample w__resample_generic, w__resample_avx2;

bool w__resize_cv(struct w_arena *a, const struct w_image *src, enum w_filter filter,
                  struct w_image *dst, struct w_error *err);

#endif
