/* vmath_body.h in plain C. */
#include "ops/kern/kern.h"

#define K_LANES K_LANES_GENERIC
#include "ops/kern/vmath_body.h"

const struct k_vmath k__vmath_generic = K_VMATH_TABLE;
