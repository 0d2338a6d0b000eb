/* conv.h: what the forms of Conv share. Internal to ops/op/. */
#ifndef QUERN_OPS_OP_CONV_H
#define QUERN_OPS_OP_CONV_H

#include "ops/kern/kern.h"
#include "ops/op/nn.h"

/* The geometry of a group of `channels` input channels; at most three spatial dimensions. */
void op__conv_geometry(const struct nn_fit *fit, int64_t channels, struct k_geometry *g);
/* out = y + r, both f32 and broadcast, element by element. */
void op__conv_add_broadcast(const struct op_tensor *y, const struct op_tensor *r, const struct op_tensor *out);
/* In place of a descriptor's cost: output 0 and the weights (input 1) tell it, wherever channels stand. */
void op__conv_cost(const struct op_ctx *ctx, double *flops, double *bytes);

#endif
