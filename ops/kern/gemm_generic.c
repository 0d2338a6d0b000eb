/* gemm_body.h in plain C. */
#include "ops/kern/kern.h"

#define K_LANES K_LANES_GENERIC
#include "ops/kern/gemm_body.h"

const struct k_gemm k__gemm_generic = K_GEMM_TABLE;
