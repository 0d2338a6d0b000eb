/* columns_body.h for the level avx512; called only where cpu.c found it. */
#if defined(__x86_64__)
#include "ops/kern/kern.h"

#define K_LANES K_LANES_AVX512
#include "ops/kern/columns_body.h"

const struct k_columns k__columns_avx512 = K_COLUMNS_TABLE;
#endif
