/* winograd_last_body.h in plain C. */
#include "ops/kern/kern.h"

#define K_LANES K_LANES_GENERIC
#include "ops/kern/winograd_last_body.h"

const struct k_winograd_last k__winograd_last_generic = K_WINOGRAD_LAST_TABLE;
