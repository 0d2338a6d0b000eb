/* vmath_body.h for the level neon: every aarch64 has it. */
#if defined(__aarch64__)
#include "ops/kern/kern.h"

#define K_LANES K_LANES_NEON
#include "ops/kern/vmath_body.h"

const struct k_vmath k__vmath_neon = K_VMATH_TABLE;
#endif
