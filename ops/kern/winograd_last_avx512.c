/* winograd_last_body.h for the level avx512; called only where cpu.c found it. */
#if defined(__x86_64__)
#include "ops/kern/kern.h"

#define K_LANES K_LANES_AVX512
#include "ops/kern/winograd_last_body.h"

const struct k_winograd_last k__winograd_last_avx512 = K_WINOGRAD_LAST_TABLE;
#endif
