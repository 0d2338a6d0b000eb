/* winograd_body.h in plain C. */
#include "ops/kern/kern.h"

#define K_LANES K_LANES_GENERIC
#include "ops/kern/winograd_body.h"

const struct k_winograd k__winograd_generic = K_WINOGRAD_TABLE;
