/* bf16_body.h for the level vnni; called only where cpu.c found it. */
#if defined(__x86_64__)
#include "ops/kern/kern.h"

#define K_LANES K_LANES_AVX512
#define K_BF16
#include "ops/kern/bf16_body.h"

const struct k_half k__half_vnni = K_HALF_TABLE;
#endif
