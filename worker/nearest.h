/* nearest.h: "did you mean": the known name that is closest to a mistyped one. */
#ifndef QUERN_WORKER_NEAREST_H
#define QUERN_WORKER_NEAREST_H

#include <stddef.h>

/* The name nearest to `word` by edit distance (insert, delete, replace, swap of neighbours), or
 * NULL when none is within a third of the longer length (at least 1). next(user, i) gives name i,
 * NULL past the last. */
const char *w__nearest(const char *word, const char *(*next)(void *user, size_t i), void *user);

#endif
