/* Where the values of a plan lie in its arena.
 *
 * Each has a size and a span of steps in which it lives; two whose spans meet must not overlap. The largest goes first, into
 * the lowest gap that those placed before it leave (greedy by size: Pisarchyk and Lee, "Efficient Memory Management for Deep
 * Neural Net Inference", 2020). Where that leaves holes, other orders are tried (by size times life, by start) and the smallest arena
 * is taken; none can be smaller than the largest sum of what lives at one step. All of that looks at all pairs, so from some thousand
 * items on the order is that of the steps instead, and memory comes from a free list: a little more of it, in time that grows slowly. */
#include "ops/plan.h"

#include <stdlib.h>
#include <string.h>

#define PAIRS_MAX 3000
#define TRIES_MAX 1000 /* items up to which other orders are tried */
#define ALIGN ((size_t)64)

struct item {
    size_t bytes, *offset;
    int from, to;
};

static int by_size(const void *a, const void *b) {
    const struct item *x = a, *y = b;
    if (x->bytes != y->bytes) return x->bytes < y->bytes ? 1 : -1;
    return x->from != y->from ? (x->from < y->from ? -1 : 1) : x->to - y->to;
}

static int by_start(const void *a, const void *b) {
    const struct item *x = a, *y = b;
    return x->from != y->from ? (x->from < y->from ? -1 : 1) : by_size(a, b);
}

static int by_area(const void *a, const void *b) {
    const struct item *x = a, *y = b;
    const double p = (double)x->bytes * (x->to - x->from + 1), q = (double)y->bytes * (y->to - y->from + 1);
    return p < q ? 1 : p > q ? -1 : by_size(a, b);
}

/* The largest sum of bytes that live at one step: no arena is smaller. */
static size_t live_max(const struct item *items, size_t n) {
    size_t most = 0;
    for (size_t i = 0; i < n; i++) { /* it is reached where something begins */
        size_t sum = 0;
        for (size_t j = 0; j < n; j++)
            if (items[j].from <= items[i].from && items[j].to >= items[i].from) sum += items[j].bytes;
        if (sum > most) most = sum;
    }
    return most;
}

/* Places items[k], given that placed[0..k) are ordered by offset; keeps that order. Returns its end. */
static size_t place_lowest(const struct item **placed, size_t n, const struct item *it) {
    size_t low = 0, best = SIZE_MAX, best_room = SIZE_MAX;
    for (size_t j = 0; j < n; j++) {
        if (placed[j]->from > it->to || placed[j]->to < it->from) continue;
        size_t start = *placed[j]->offset;
        if (start >= low && start - low >= it->bytes && start - low < best_room) {
            best = low;
            best_room = start - low;
        }
        if (start + placed[j]->bytes > low) low = start + placed[j]->bytes;
    }
    if (best == SIZE_MAX) best = low;
    *it->offset = best;
    size_t j = n;
    for (; j > 0 && *placed[j - 1]->offset > best; j--) placed[j] = placed[j - 1];
    placed[j] = it;
    return best + it->bytes;
}

typedef int order_fn(const void *, const void *);

static size_t layout_in_order(struct item *items, size_t n, const struct item **placed, order_fn *order) {
    size_t end = 0;
    qsort(items, n, sizeof *items, order);
    for (size_t i = 0; i < n; i++) {
        size_t e = place_lowest(placed, i, &items[i]);
        if (e > end) end = e;
    }
    return end;
}

static size_t layout_by_pairs(struct item *items, size_t n, const struct item **placed) {
    static order_fn *const orders[] = {by_size, by_area, by_start};
    enum { N_ORDERS = sizeof orders / sizeof *orders };
    size_t best = layout_in_order(items, n, placed, by_size);
    if (n > TRIES_MAX) return best;
    const size_t least = live_max(items, n);
    int winner = 0, last = 0;
    for (int i = 1; i < N_ORDERS && best > least; i++) {
        const size_t end = layout_in_order(items, n, placed, orders[i]);
        last = i;
        if (end >= best) continue;
        best = end;
        winner = i;
    }
    return winner == last ? best : layout_in_order(items, n, placed, orders[winner]);
}

struct gap {
    size_t at, bytes;
};

static void gap_add(struct gap *gaps, size_t *n, size_t at, size_t bytes) {
    size_t i = 0;
    while (i < *n && gaps[i].at < at) i++;
    bool left = i > 0 && gaps[i - 1].at + gaps[i - 1].bytes == at, right = i < *n && at + bytes == gaps[i].at;
    if (left && right) {
        gaps[i - 1].bytes += bytes + gaps[i].bytes;
        memmove(&gaps[i], &gaps[i + 1], (*n - i - 1) * sizeof *gaps);
        --*n;
    } else if (left) gaps[i - 1].bytes += bytes;
    else if (right) gaps[i] = (struct gap){at, bytes + gaps[i].bytes};
    else {
        memmove(&gaps[i + 1], &gaps[i], (*n - i) * sizeof *gaps);
        gaps[i] = (struct gap){at, bytes};
        ++*n;
    }
}

static int by_end(const void *a, const void *b) {
    const struct item *x = *(const struct item *const *)a, *y = *(const struct item *const *)b;
    return x->to < y->to ? -1 : x->to > y->to;
}

/* In the order of the steps: what has died gives its memory to the best-fitting newcomer. */
static size_t layout_by_start(struct item *items, size_t n, const struct item **ending, struct gap *gaps) {
    size_t end = 0, n_gaps = 0, dead = 0;
    qsort(items, n, sizeof *items, by_start);
    for (size_t i = 0; i < n; i++) ending[i] = &items[i];
    qsort(ending, n, sizeof *ending, by_end);
    for (size_t i = 0; i < n; i++) {
        for (; dead < n && ending[dead]->to < items[i].from; dead++) gap_add(gaps, &n_gaps, *ending[dead]->offset, ending[dead]->bytes);
        size_t best = n_gaps;
        for (size_t g = 0; g < n_gaps; g++)
            if (gaps[g].bytes >= items[i].bytes && (best == n_gaps || gaps[g].bytes < gaps[best].bytes)) best = g;
        if (best == n_gaps) {
            *items[i].offset = end;
            end += items[i].bytes;
            continue;
        }
        *items[i].offset = gaps[best].at;
        gaps[best].at += items[i].bytes;
        gaps[best].bytes -= items[i].bytes;
        if (!gaps[best].bytes) {
            memmove(&gaps[best], &gaps[best + 1], (n_gaps - best - 1) * sizeof *gaps);
            n_gaps--;
        }
    }
    return end;
}

enum op_status op__plan_layout(struct op_plan *p, size_t bytes_max, struct op_error *err) {
    size_t n = 0, room = (size_t)p->n_slots + (size_t)p->n_steps + 1;
    struct item *items = calloc(room, sizeof *items);
    const struct item **order = calloc(room, sizeof *order);
    struct gap *gaps = calloc(room, sizeof *gaps);
    enum op_status st = items && order && gaps ? OP_OK : OP_NOMEM;
    bool large = false;
    for (int s = 0; s < p->n_slots && st == OP_OK; s++) {
        struct op_spot *spot = &p->spots[s];
        if (spot->place != OP__PLACE_ARENA) continue;
        spot->bytes = (size_t)op_tensor_bytes(&p->slots[s].t);
        large |= spot->bytes > bytes_max;
        if (spot->bytes && !large) items[n++] = (struct item){(spot->bytes + ALIGN - 1) & ~(ALIGN - 1), &spot->offset, spot->from, spot->to};
    }
    for (int i = 0; i < p->n_steps && st == OP_OK; i++) {
        struct op_step *step = &p->steps[i];
        large |= step->scratch_bytes > bytes_max;
        if (step->scratch_bytes && !large) items[n++] = (struct item){(step->scratch_bytes + ALIGN - 1) & ~(ALIGN - 1), &step->scratch_offset, i, i};
    }
    /* n items of at most bytes_max cannot overflow: there are fewer than 2^25 of at most 2^38 */
    if (st == OP_OK && !large) p->arena_bytes = n <= PAIRS_MAX ? layout_by_pairs(items, n, order) : layout_by_start(items, n, order, gaps);
    free(items);
    free(order);
    free(gaps);
    if (st != OP_OK) return op__model_fail(p->graph->model, err, st, "out of memory while planning");
    if (large || p->arena_bytes > bytes_max)
        return op__model_fail(p->graph->model, err, OP_LIMIT, "these inputs need %s%zu bytes of memory, the cap is %zu", large ? "more than " : "",
                              large ? bytes_max : p->arena_bytes, bytes_max);
    return OP_OK;
}
