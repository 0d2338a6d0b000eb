/* outer_body.h for the level avx2; called only where cpu.c found it. */
#if defined(__x86_64__)
#include "ops/kern/kern.h"

#define K_LANES K_LANES_AVX2
#include "ops/kern/outer_body.h"

const struct k_outer k__outer_avx2 = K_OUTER_TABLE;
#endif
