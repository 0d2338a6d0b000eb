/* cpu.c: which ISA levels this machine has, and the table of each. */
#include "ops/kern/quant.h"

#include "ops/ops.h"

#include <stdlib.h>
#include <string.h>

#define F32_KERNELS(level)                                                                         \
    .math = &k__vmath_##level, .gemm = &k__gemm_##level, .conv = &k__conv_##level, .winograd = &k__winograd_##level, \
    .winograd_last = &k__winograd_last_##level, .outer = &k__outer_##level, .columns = &k__columns_##level

#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

/* XCR0: the register files that the system saves on a context switch. */
static uint64_t xcr0(void) {
    uint32_t lo, hi;
    __asm__ volatile("xgetbv" : "=a"(lo), "=d"(hi) : "c"(0));
    return (uint64_t)hi << 32 | lo;
}

/* The kernel gives the tiles' registers to a process that asks; its threads have them too. */
static bool tiles_allowed(void) {
    enum { ARCH_REQ_XCOMP_PERM_ = 0x1023, TILE_DATA = 18 };
    const uint64_t state = 3ull << 17;
    return (xcr0() & state) == state && syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM_, TILE_DATA) == 0;
}

static enum k_level detect(void) {
    enum { FMA = 1 << 12, OSXSAVE = 1 << 27, F16C = 1 << 29 };                                           /* leaf 1, ecx */
    enum { AVX2 = 1 << 5, AVX512F = 1 << 16, AVX512DQ = 1 << 17, AVX512BW = 1 << 30, AVX512VNNI = 1 << 11 }; /* leaf 7.0, ebx; ecx */
    const unsigned AVX512VL = 1u << 31, AVX512BF16 = 1 << 5;                                             /* leaf 7.0, ebx; leaf 7.1, eax */
    const uint64_t ymm_state = 0x06, zmm_state = 0xe6;
    unsigned a, b, c, d;

    if (!__get_cpuid(1, &a, &b, &c, &d)) return K_GENERIC;
    if (!(c & OSXSAVE) || !(c & FMA) || !(c & F16C) || (xcr0() & ymm_state) != ymm_state) return K_GENERIC;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(b & AVX2)) return K_GENERIC;
    const unsigned n_subleaves = a, wanted = AVX512F | AVX512DQ | AVX512BW | AVX512VL;
    if ((b & wanted) != wanted || (xcr0() & zmm_state) != zmm_state) return K_AVX2;
    if (!(c & AVX512VNNI) || n_subleaves < 1 || !__get_cpuid_count(7, 1, &a, &b, &c, &d) || !(a & AVX512BF16)) return K_AVX512;
    const unsigned AMX_BF16 = 1u << 22, AMX_TILE = 1u << 24, AMX_INT8 = 1u << 25; /* leaf 7.0, edx */
    __get_cpuid_count(7, 0, &a, &b, &c, &d);
    const unsigned amx = AMX_BF16 | AMX_TILE | AMX_INT8;
    return (d & amx) == amx && tiles_allowed() ? K_AMX : K_VNNI;
}

static const struct k_kernels tables[K_N_LEVELS] = {
    [K_GENERIC] = {K_GENERIC, "generic", F32_KERNELS(generic), .quant = &k__quant_generic, .half = &k__half_generic},
    [K_AVX2] = {K_AVX2, "avx2", F32_KERNELS(avx2), .quant = &k__quant_avx2, .half = &k__half_avx2},
    [K_AVX512] = {K_AVX512, "avx512", F32_KERNELS(avx512), .quant = &k__quant_avx512, .half = &k__half_avx512},
    [K_VNNI] = {K_VNNI, "vnni", F32_KERNELS(avx512), .quant = &k__quant_vnni, .half = &k__half_vnni},
    [K_AMX] = {K_AMX, "amx", F32_KERNELS(avx512), .quant = &k__quant_amx, .half = &k__half_amx},
};
#elif defined(__aarch64__)
static enum k_level detect(void) { /* the architecture has it */
    return K_NEON;
}

static const struct k_kernels tables[K_N_LEVELS] = {
    [K_GENERIC] = {K_GENERIC, "generic", F32_KERNELS(generic), .quant = &k__quant_generic, .half = &k__half_generic},
    [K_NEON] = {K_NEON, "neon", F32_KERNELS(neon), .quant = &k__quant_neon, .half = &k__half_neon},
};
#else
static enum k_level detect(void) {
    return K_GENERIC;
}

static const struct k_kernels tables[1] = {
    [K_GENERIC] = {K_GENERIC, "generic", F32_KERNELS(generic), .quant = &k__quant_generic, .half = &k__half_generic},
};
#endif

static enum k_level best = K_GENERIC;
static const struct k_kernels *dflt = &tables[K_GENERIC];

/* Before main and before any thread, so that the readers need no lock. */
__attribute__((constructor)) static void k__cpu_init(void) {
    best = detect();
    const char *forced = getenv("QUERN_CPU");
    const struct k_kernels *k = forced && *forced ? k_find(forced) : NULL;
    dflt = k ? k : &tables[best];
}

enum k_level k_level_best(void) {
    return best;
}

const struct k_kernels *k_find(const char *name) {
    for (int i = 0; name && i <= (int)best; i++)
        if (strcmp(tables[i].name, name) == 0) return &tables[i];
    return NULL;
}

const struct k_kernels *k_default(void) {
    return dflt;
}

bool op_isa_force(const char *level) {
    const struct k_kernels *k = k_find(level);
    if (k) dflt = k;
    return k != NULL;
}

const char *op_isa(void) {
    return dflt->name;
}
