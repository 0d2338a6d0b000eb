/* timers.h: deadlines in a binary heap. One uv_timer serves them all, since a uv_timer_t of one's
 * own could be freed only in its close callback. Time is an argument, so that tests need no clock.
 * Loop thread. */
#ifndef QUERN_WORKER_TIMERS_H
#define QUERN_WORKER_TIMERS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct w_timer {
    uint64_t at_ms;
    size_t slot; /* its place in the heap + 1; 0: not set */
    void (*fire)(struct w_timer *t);
};

struct w_timers {
    struct w_timer **heap;
    size_t n, size;
};

void w_timers_finish(struct w_timers *ts); /* those still set are forgotten */
/* Sets or moves t. False: no memory. */
bool w_timer_set(struct w_timers *ts, struct w_timer *t, uint64_t at_ms);
void w_timer_clear(struct w_timers *ts, struct w_timer *t); /* not set: nothing */
/* The earliest deadline; UINT64_MAX: none. */
uint64_t w_timers_next(const struct w_timers *ts);
/* Fires what is due at now_ms, at most max of them, in order of their times. Returns how many. fire
 * may set and clear. */
size_t w_timers_run(struct w_timers *ts, uint64_t now_ms, size_t max);

#endif
