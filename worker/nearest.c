#include "worker/nearest.h"

#include <string.h>

#define WORD_MAX 63

/* Optimal string alignment distance; words are cut at WORD_MAX. */
static size_t distance(const char *a, const char *b) {
    unsigned char row[3][WORD_MAX + 1];
    size_t na = strnlen(a, WORD_MAX), nb = strnlen(b, WORD_MAX);
    for (size_t j = 0; j <= nb; j++) row[0][j] = (unsigned char)j;
    for (size_t i = 1; i <= na; i++) {
        unsigned char *now = row[i % 3], *last = row[(i + 2) % 3], *before = row[(i + 1) % 3];
        now[0] = (unsigned char)i;
        for (size_t j = 1; j <= nb; j++) {
            int best = last[j - 1] + (a[i - 1] != b[j - 1]);
            if (last[j] + 1 < best) best = last[j] + 1;
            if (now[j - 1] + 1 < best) best = now[j - 1] + 1;
            if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] &&
                before[j - 2] + 1 < best)
                best = before[j - 2] + 1;
            now[j] = (unsigned char)best;
        }
    }
    return row[na % 3][nb];
}

const char *w__nearest(const char *word, const char *(*next)(void *user, size_t i), void *user) {
    const char *best = NULL, *name;
    size_t best_distance = (size_t)-1;
    for (size_t i = 0; (name = next(user, i)) != NULL; i++) {
        size_t d = distance(word, name),
               longer = strlen(word) > strlen(name) ? strlen(word) : strlen(name);
        if (d < best_distance && d <= (longer < 6 ? 1 : longer / 3)) {
            best = name;
            best_distance = d;
        }
    }
    return best;
}
