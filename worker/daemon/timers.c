#include "worker/daemon/timers.h"

#include <stdlib.h>

void w_timers_finish(struct w_timers *ts) {
    for (size_t i = 0; i < ts->n; i++) ts->heap[i]->slot = 0;
    free(ts->heap);
    *ts = (struct w_timers){0};
}

static void put(struct w_timers *ts, size_t i, struct w_timer *t) {
    ts->heap[i] = t;
    t->slot = i + 1;
}

static void sift_up(struct w_timers *ts, size_t i) {
    struct w_timer *t = ts->heap[i];
    for (; i > 0 && ts->heap[(i - 1) / 2]->at_ms > t->at_ms; i = (i - 1) / 2)
        put(ts, i, ts->heap[(i - 1) / 2]);
    put(ts, i, t);
}

static void sift_down(struct w_timers *ts, size_t i) {
    struct w_timer *t = ts->heap[i];
    for (;;) {
        size_t child = 2 * i + 1;
        if (child >= ts->n) break;
        if (child + 1 < ts->n && ts->heap[child + 1]->at_ms < ts->heap[child]->at_ms) child++;
        if (ts->heap[child]->at_ms >= t->at_ms) break;
        put(ts, i, ts->heap[child]);
        i = child;
    }
    put(ts, i, t);
}

bool w_timer_set(struct w_timers *ts, struct w_timer *t, uint64_t at_ms) {
    if (t->slot == 0) {
        if (ts->n == ts->size) {
            size_t size = ts->size ? 2 * ts->size : 64;
            struct w_timer **grown = realloc(ts->heap, size * sizeof *grown);
            if (!grown) return false;
            ts->heap = grown;
            ts->size = size;
        }
        t->at_ms = at_ms;
        put(ts, ts->n++, t);
        sift_up(ts, t->slot - 1);
        return true;
    }
    bool later = at_ms > t->at_ms;
    t->at_ms = at_ms;
    if (later)
        sift_down(ts, t->slot - 1);
    else
        sift_up(ts, t->slot - 1);
    return true;
}

void w_timer_clear(struct w_timers *ts, struct w_timer *t) {
    if (t->slot == 0) return;
    size_t i = t->slot - 1;
    t->slot = 0;
    struct w_timer *last = ts->heap[--ts->n];
    if (last == t) return;
    put(ts, i, last);
    sift_down(ts, i);
    sift_up(ts, last->slot - 1);
}

uint64_t w_timers_next(const struct w_timers *ts) {
    return ts->n ? ts->heap[0]->at_ms : UINT64_MAX;
}

size_t w_timers_run(struct w_timers *ts, uint64_t now_ms, size_t max) {
    size_t n = 0;
    while (n < max && ts->n && ts->heap[0]->at_ms <= now_ms) {
        struct w_timer *t = ts->heap[0];
        w_timer_clear(ts, t);
        t->fire(t);
        n++;
    }
    return n;
}
