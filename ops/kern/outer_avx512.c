/* outer_body.h for the level avx512; called only where cpu.c found it. */
#if defined(__x86_64__)
#include "ops/kern/kern.h"

#define K_LANES K_LANES_AVX512
#include "ops/kern/outer_body.h"

const struct k_outer k__outer_avx512 = K_OUTER_TABLE;
#endif
