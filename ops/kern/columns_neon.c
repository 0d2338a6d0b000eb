/* columns_body.h for the level neon: every aarch64 has it. */
#if defined(__aarch64__)
#include "ops/kern/kern.h"

#define K_LANES K_LANES_NEON
#include "ops/kern/columns_body.h"

const struct k_columns k__columns_neon = K_COLUMNS_TABLE;
#endif
