/* gemm_body.h for the level neon: every aarch64 has it. */
#if defined(__aarch64__)
#include "ops/kern/kern.h"

#define K_LANES K_LANES_NEON
#include "ops/kern/gemm_body.h"

const struct k_gemm k__gemm_neon = K_GEMM_TABLE;
#endif
