/* conv_body.h for the level neon: every aarch64 has it. */
#if defined(__aarch64__)
#include "ops/kern/kern.h"

#define K_LANES K_LANES_NEON
#include "ops/kern/conv_body.h"

const struct k_conv k__conv_neon = K_CONV_TABLE;
#endif
