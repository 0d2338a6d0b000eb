/* metrics_rank.c: metrics that look at the order of the scores of a row, and error rates of
 * sequences.
 *
 * Ranks start at 0; where scores are equal, the wrong one stands first, so that a model that says
 * the same of all gets nothing. A row's relevant classes are its class, or those whose target is
 * above ½, or the first (bpr). A sequence is read greedily: the best class of each step, repeats
 * and blanks left out; its errors are the least number of insertions, deletions and replacements
 * (Levenshtein) over the number of labels, or of the words between separators. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "worker/train/metrics.h"

static bool relevant(const struct w_outcome *o, int64_t row, int64_t c) {
    if (o->sparse) return o->sparse[row] == c;
    return o->dense ? (double)o->dense[row * o->classes + c] > 0.5 : c == 0;
}

/* How many stand before class c; those: only the relevant ones. */
static int64_t before(const struct w_outcome *o, int64_t row, int64_t c, bool those) {
    const float *v = o->output + row * o->classes;
    int64_t n = 0;
    for (int64_t k = 0; k < o->classes; k++) {
        if (k == c) continue;
        bool is = relevant(o, row, k);
        n += (!those || is) && (v[k] > v[c] || (v[k] == v[c] && (!is || k < c)));
    }
    return n;
}

/* The first of the relevant ones; −1: none is. */
static int64_t best_rank(const struct w_outcome *o, int64_t row) {
    int64_t best = -1;
    for (int64_t c = 0; c < o->classes; c++) {
        if (!relevant(o, row, c)) continue;
        int64_t r = before(o, row, c, false);
        if (best < 0 || r < best) best = r;
    }
    return best;
}

void w__metric_hit_rate(struct w_metric *m, const struct w_outcome *o) {
    for (int64_t i = 0; i < o->rows; i++) {
        int64_t r = best_rank(o, i);
        m->state[0] += r >= 0 && r < m->k;
    }
    m->state[1] += (double)o->rows;
}

void w__metric_reciprocal_rank(struct w_metric *m, const struct w_outcome *o) {
    for (int64_t i = 0; i < o->rows; i++) {
        int64_t r = best_rank(o, i);
        m->state[0] += r >= 0 ? 1 / (double)(r + 1) : 0;
    }
    m->state[1] += (double)o->rows;
}

/* Σ 1/log2(rank + 2) of the relevant ones among the first k, over what the best order would give */
void w__metric_ndcg(struct w_metric *m, const struct w_outcome *o) {
    for (int64_t i = 0; i < o->rows; i++) {
        double gain = 0, best = 0;
        int64_t n = 0;
        for (int64_t c = 0; c < o->classes; c++) {
            if (!relevant(o, i, c)) continue;
            int64_t r = before(o, i, c, false);
            if (r < m->k) gain += 1 / log2((double)(r + 2));
            if (n < m->k) best += 1 / log2((double)(n + 2));
            n++;
        }
        m->state[0] += best > 0 ? gain / best : 0;
    }
    m->state[1] += (double)o->rows;
}

/* Of each row: the mean, over its relevant ones, of the precision down to each. */
void w__metric_average_precision(struct w_metric *m, const struct w_outcome *o) {
    for (int64_t i = 0; i < o->rows; i++) {
        double sum = 0;
        int64_t n = 0;
        for (int64_t c = 0; c < o->classes; c++) {
            if (!relevant(o, i, c)) continue;
            sum += (double)(before(o, i, c, true) + 1) / (double)(before(o, i, c, false) + 1);
            n++;
        }
        m->state[0] += n ? sum / (double)n : 0;
    }
    m->state[1] += (double)o->rows;
}

/* --- sequences -----------------------------------------------------------------------------------
 */

/* The words of a sequence of n labels as hashes; without a separator each label is one. */
static int64_t to_words(int64_t *seq, int64_t n, int64_t separator) {
    int64_t words = 0;
    uint64_t hash = 0;
    bool open = false;
    if (separator < 0) return n;
    for (int64_t i = 0; i <= n; i++) {
        if (i < n && seq[i] != separator) {
            hash = w__train_mix(hash + (uint64_t)seq[i] + 1);
            open = true;
        } else if (open) {
            seq[words++] = (int64_t)hash;
            hash = 0;
            open = false;
        }
    }
    return words;
}

static int64_t read_greedily(const struct w_outcome *o, int64_t row, int64_t blank, int64_t *dst) {
    int64_t n = 0, last = blank;
    for (int64_t t = 0; t < o->steps; t++) {
        const float *v = o->output + (row * o->steps + t) * o->classes;
        int64_t best = 0;
        for (int64_t c = 1; c < o->classes; c++)
            if (v[c] > v[best]) best = c;
        if (best != blank && best != last) dst[n++] = best;
        last = best;
    }
    return n;
}

/* work: m + 1 numbers. */
static int64_t edits(const int64_t *a, int64_t n, const int64_t *b, int64_t m, int64_t *work) {
    for (int64_t j = 0; j <= m; j++) work[j] = j;
    for (int64_t i = 1; i <= n; i++) {
        int64_t diagonal = work[0];
        work[0] = i;
        for (int64_t j = 1; j <= m; j++) {
            int64_t up = work[j], least = diagonal + (a[i - 1] != b[j - 1]);
            if (up + 1 < least) least = up + 1;
            if (work[j - 1] + 1 < least) least = work[j - 1] + 1;
            diagonal = up;
            work[j] = least;
        }
    }
    return work[m];
}

void w__metric_edits(struct w_metric *m, const struct w_outcome *o) {
    int64_t *said = malloc((size_t)(o->steps + 2 * o->n_labels + 2) * sizeof *said);
    if (!said) return; /* a metric is not worth a training */
    int64_t *is = said + o->steps, *work = is + o->n_labels;
    for (int64_t i = 0; i < o->rows; i++) {
        const int64_t *labels = o->labels + i * o->n_labels;
        int64_t n = 0, k = read_greedily(o, i, m->blank, said);
        while (n < o->n_labels && labels[n] >= 0 && labels[n] != m->blank) {
            is[n] = labels[n];
            n++;
        }
        k = to_words(said, k, m->separator);
        n = to_words(is, n, m->separator);
        m->state[0] += (double)edits(said, k, is, n, work);
        m->state[1] += (double)n;
    }
    free(said);
}
