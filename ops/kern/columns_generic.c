/* columns_body.h in plain C: the level that every machine has. */
#include "ops/kern/kern.h"

#define K_LANES K_LANES_GENERIC
#include "ops/kern/columns_body.h"

const struct k_columns k__columns_generic = K_COLUMNS_TABLE;
