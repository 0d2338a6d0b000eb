/* anchor.h: where a smaller rectangle lies in a larger one. Internal to the folder. */
#ifndef QUERN_WORKER_PIPELINE_ANCHOR_H
#define QUERN_WORKER_PIPELINE_ANCHOR_H

#include <stdint.h>

#define W_ANCHOR_CHOICES "center top_left top top_right left right bottom_left bottom bottom_right"

/* How a half pixel is rounded: floor (Pillow's //, most code), to even (torchvision's CenterCrop),
 * up. */
#define W_HALF_CHOICES "floor half_even half_up"
enum w_half { W_HALF_FLOOR, W_HALF_EVEN, W_HALF_UP };

static inline int32_t w__half(int32_t space, enum w_half half) {
    int32_t low = (space - (space & 1)) / 2, odd = space & 1;
    if (half == W_HALF_UP) return low + odd;
    if (half == W_HALF_EVEN) return low + (odd && (low & 1));
    return low;
}

/* space is what is left over in that direction; it may be negative for a crop beyond the edge. */
static inline void w__anchor(int32_t anchor, int32_t space_x, int32_t space_y, enum w_half half,
                             int32_t *x, int32_t *y) {
    static const signed char place[9][2] = {{1, 1}, {0, 0}, {1, 0}, {2, 0}, {0, 1},
                                            {2, 1}, {0, 2}, {1, 2}, {2, 2}};
    *x = place[anchor][0] == 0 ? 0 : place[anchor][0] == 2 ? space_x : w__half(space_x, half);
    *y = place[anchor][1] == 0 ? 0 : place[anchor][1] == 2 ? space_y : w__half(space_y, half);
}

#endif
