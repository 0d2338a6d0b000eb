/* What convolution needs that is the same on every level. */
#include "ops/kern/kern.h"

size_t k_depthwise_floats(const struct k_geometry *g) {
    enum { SLACK = 32 }; /* whole vectors are read at the end of the last row, and written by the copy */
    const int64_t rows = (g->out[1] - 1) * g->stride[1] + (g->kernel[1] - 1) * g->dilation[1] + 1;
    const int64_t width = (g->out[2] - 1) * g->stride[2] + (g->kernel[2] - 1) * g->dilation[2] + 1;
    const int64_t pitch = (width + g->stride[2] - 1) / g->stride[2] * g->stride[2];
    return (size_t)(rows * pitch + SLACK);
}
