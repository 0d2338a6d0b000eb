/* winograd_last_body.h for the level neon: every aarch64 has it. */
#if defined(__aarch64__)
#include "ops/kern/kern.h"

#define K_LANES K_LANES_NEON
#include "ops/kern/winograd_last_body.h"

const struct k_winograd_last k__winograd_last_neon = K_WINOGRAD_LAST_TABLE;
#endif
