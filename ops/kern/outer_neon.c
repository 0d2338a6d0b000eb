/* outer_body.h for the level neon: every aarch64 has it. */
#if defined(__aarch64__)
#include "ops/kern/kern.h"

#define K_LANES K_LANES_NEON
#include "ops/kern/outer_body.h"

const struct k_outer k__outer_neon = K_OUTER_TABLE;
#endif
