/* quant_body.h for the level generic: plain C. */
#include "ops/kern/kern.h"

#define K_LANES K_LANES_GENERIC
#include "ops/kern/quant_body.h"

const struct k_quant k__quant_generic = K_QUANT_TABLE(run_tile, NULL, NULL, TILE_ROWS_NARROW, TILE_ROWS);
