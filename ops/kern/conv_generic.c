/* conv_body.h in plain C. */
#include "ops/kern/kern.h"

#define K_LANES K_LANES_GENERIC
#include "ops/kern/conv_body.h"

const struct k_conv k__conv_generic = K_CONV_TABLE;
