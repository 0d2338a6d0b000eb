#include "queue/internal.h"

#include <stdatomic.h>
#include <sys/random.h>
#include <time.h>
#include <unistd.h>

/* splitmix64 over an atomic counter: any thread may draw, no lock, and two processes differ because
 * the counter starts at random bytes of the kernel's. */
static _Atomic uint64_t random_state;
static _Atomic bool random_seeded;

uint64_t q__random(void) {
    if (!atomic_load_explicit(&random_seeded, memory_order_acquire)) {
        uint64_t seed = 0;
        if (getrandom(&seed, sizeof seed, GRND_NONBLOCK) != (ssize_t)sizeof seed) {
            struct timespec ts;
            clock_gettime(CLOCK_MONOTONIC, &ts);
            seed ^= (uint64_t)ts.tv_nsec << 32 ^ (uint64_t)ts.tv_sec ^ (uint64_t)getpid() << 16;
        }
        atomic_fetch_add(&random_state, seed);
        atomic_store_explicit(&random_seeded, true, memory_order_release);
    }
    uint64_t z =
        atomic_fetch_add_explicit(&random_state, 0x9e3779b97f4a7c15u, memory_order_relaxed);
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

uint64_t q__random_unique(void) {
    uint64_t r;
    return getrandom(&r, sizeof r, GRND_NONBLOCK) == (ssize_t)sizeof r ? r : q__random();
}

uint64_t q__random_below(uint64_t n) {
    return n ? (uint64_t)(((unsigned __int128)q__random() * n) >> 64) : 0;
}

uint32_t q__backoff_reconnect(uint32_t last_ms, uint32_t base_ms, uint32_t cap_ms) {
    uint64_t high = (uint64_t)(last_ms < base_ms ? base_ms : last_ms) * 3;
    if (high > cap_ms) high = cap_ms;
    if (high <= base_ms) return base_ms;
    return base_ms + (uint32_t)q__random_below(high - base_ms + 1);
}

uint32_t q__backoff_retry(uint32_t attempt, uint32_t base_ms, uint32_t cap_ms) {
    uint64_t high = base_ms;
    for (uint32_t i = 1; i < attempt && high < cap_ms; i++) high *= 2;
    if (high > cap_ms) high = cap_ms;
    return (uint32_t)q__random_below(high + 1);
}
