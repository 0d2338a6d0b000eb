/* pool_f32.h: window maxima and sums of a plane of f32. Internal to ops/op/. */
#ifndef QUERN_OP_POOL_F32_H
#define QUERN_OP_POOL_F32_H

#include "ops/kern/kern.h"
#include "ops/op/nn.h"

/* One or two spatial dimensions, and a window's rows fit the buffers. */
bool op__pool_f32_fits(const struct nn_fit *f);
/* how is K_MAX (padding is -infinity, NaN goes through) or K_ADD (padding is 0). */
void op__pool_f32_plane(const struct k_vmath *math, const struct nn_fit *f, enum k_binary how, const float *src, float *dst);

#endif
