/* bf16_body.h for the level neon: every aarch64 has it. */
#if defined(__aarch64__)
#include "ops/kern/kern.h"

#define K_LANES K_LANES_NEON
#include "ops/kern/bf16_body.h"

const struct k_half k__half_neon = K_HALF_TABLE;
#endif
