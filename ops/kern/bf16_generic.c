/* bf16_body.h for the level generic. */
#include "ops/kern/kern.h"

#define K_LANES K_LANES_GENERIC
#include "ops/kern/bf16_body.h"

const struct k_half k__half_generic = K_HALF_TABLE;
