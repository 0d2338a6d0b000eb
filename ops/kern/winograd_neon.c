/* winograd_body.h for the level neon: every aarch64 has it. */
#if defined(__aarch64__)
#include "ops/kern/kern.h"

#define K_LANES K_LANES_NEON
#include "ops/kern/winograd_body.h"

const struct k_winograd k__winograd_neon = K_WINOGRAD_TABLE;
#endif
