/* quant_body.h for the level avx2; called only where cpu.c found it. */
#if defined(__x86_64__)
#include "ops/kern/kern.h"

#define K_LANES K_LANES_AVX2
#include "ops/kern/quant_body.h"

const struct k_quant k__quant_avx2 = K_QUANT_TABLE(run_tile, NULL, NULL, TILE_ROWS_NARROW, TILE_ROWS);
#endif
