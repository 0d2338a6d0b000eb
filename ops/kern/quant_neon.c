/* quant_body.h for the level neon: every aarch64 has it. */
#if defined(__aarch64__)
#include "ops/kern/kern.h"

#define K_LANES K_LANES_NEON
#include "ops/kern/quant_body.h"

const struct k_quant k__quant_neon = K_QUANT_TABLE(run_tile, NULL, NULL, TILE_ROWS_NARROW, TILE_ROWS);
#endif
