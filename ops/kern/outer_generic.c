/* outer_body.h in plain C: the level that every machine has. */
#include "ops/kern/kern.h"

#define K_LANES K_LANES_GENERIC
#include "ops/kern/outer_body.h"

const struct k_outer k__outer_generic = K_OUTER_TABLE;
