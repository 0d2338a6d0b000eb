/* tpe.c: one dimension of a tree-structured Parzen estimator: Bergstra, Bardenet, Bengio, Kégl:
 * Algorithms for hyper-parameter optimization, 2011. Kernels live on [0, 1] and are cut off at its
 * ends; each is as wide as the larger gap to its neighbours, but no narrower than 1 / (1 + n). */
#include <math.h>
#include <stdlib.h>

#include "worker/tune/study.h"

#define CANDIDATES 24
#define CHOICES_DRAWN 2     /* more would stay with what was good first */
#define DRAWS_A_CANDIDATE 3 /* which kernel, and two for its normal number */
#define GOOD_PART 0.2
#define GOOD_MAX 25

struct kernels {
    double at[W_TUNE_TRIALS_MAX], width[W_TUNE_TRIALS_MAX];
    int n;
};

static int by_value(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

static void set_widths(struct kernels *k) {
    double least = 1.0 / (1 + (k->n < 100 ? k->n : 100));
    qsort(k->at, (size_t)k->n, sizeof *k->at, by_value);
    for (int i = 0; i < k->n; i++) {
        double left = k->at[i] - (i ? k->at[i - 1] : 0),
               right = (i + 1 < k->n ? k->at[i + 1] : 1) - k->at[i];
        double width = left > right ? left : right;
        k->width[i] = width < least ? least : width;
    }
}

static double below(double x, double at, double width) {
    return 0.5 * (1 + erf((x - at) / (width * M_SQRT2)));
}

/* The kernels and a flat one, all of the same weight. */
static double density(const struct kernels *k, double x) {
    double sum = 1;
    for (int i = 0; i < k->n; i++) {
        double z = (x - k->at[i]) / k->width[i];
        double mass = below(1, k->at[i], k->width[i]) - below(0, k->at[i], k->width[i]);
        sum += exp(-0.5 * z * z) / (k->width[i] * sqrt(2 * M_PI) * mass);
    }
    return sum / (k->n + 1);
}

static double draw(const struct w_study *s, const struct kernels *k, int64_t trial, int dim,
                   int candidate) {
    int first = 1 + candidate * DRAWS_A_CANDIDATE;
    double a = w__draw(s, trial, dim, first), b = w__draw(s, trial, dim, first + 1),
           c = w__draw(s, trial, dim, first + 2);
    int i = (int)(a * (k->n + 1));
    if (i >= k->n) return b;
    double normal = sqrt(-2 * log(1 - b)) * cos(2 * M_PI * c);
    double x = k->at[i] + normal * k->width[i];
    while (x < 0 || x >= 1) x = x < 0 ? -x : 2 - x - 1e-12; /* what is cut off comes back */
    return x;
}

/* --- choices ---------------------------------------------------------------------------------- */

static double share(const struct kernels *k, int n_choices, int choice) {
    int count = 0;
    for (int i = 0; i < k->n; i++) count += (int)(k->at[i] * n_choices) == choice;
    return (count + 1.0) / (k->n + n_choices);
}

static double draw_choice(const struct w_study *s, const struct kernels *good,
                          const struct kernels *rest, int64_t trial, int dim) {
    int n = (int)json_array_size(s->dims[dim].choices), best = 0;
    double best_ratio = -1;
    for (int c = 0; c < CHOICES_DRAWN; c++) {
        double u = w__draw(s, trial, dim, 1 + c), sum = 0;
        int i = 0;
        while (i < n - 1 && (sum += share(good, n, i)) <= u) i++;
        double ratio = share(good, n, i) / share(rest, n, i);
        if (ratio > best_ratio) {
            best_ratio = ratio;
            best = i;
        }
    }
    return (best + 0.5) / n;
}

/* --- the parting ------------------------------------------------------------------------------ */

struct ranked {
    const struct w_study *study;
    const struct w_trial *trial;
};

/* Done before pruned before the rest; each by value. */
static int by_rank(const void *a, const void *b) {
    const struct ranked *x = a, *y = b;
    static const int order[] = {
        [W_TRIAL_DONE] = 0, [W_TRIAL_PRUNED] = 1, [W_TRIAL_FAILED] = 2, [W_TRIAL_RUNNING] = 2};
    int o = order[x->trial->state] - order[y->trial->state];
    if (o) return o;
    if (w_study_better(x->study, x->trial->value, y->trial->value)) return -1;
    if (w_study_better(x->study, y->trial->value, x->trial->value)) return 1;
    return x->trial->number < y->trial->number ? -1 : 1;
}

static int n_finished(const struct w_trial *known, size_t n) {
    int count = 0;
    for (size_t i = 0; i < n; i++)
        count += known[i].state == W_TRIAL_DONE || known[i].state == W_TRIAL_PRUNED;
    return count;
}

double w__tpe_draw(const struct w_study *s, int64_t trial, int dim, const struct w_trial *known,
                   size_t n) {
    int finished = n_finished(known, n), n_good = (int)ceil(GOOD_PART * finished);
    struct ranked *ranks = malloc((n + 1) * sizeof *ranks);
    struct kernels *k = calloc(2, sizeof *k), *good = k, *rest = k ? k + 1 : NULL;
    double best = w__draw(s, trial, dim, 0), best_ratio = -1;
    if (!ranks || !k || finished < s->startup_trials || n > W_TUNE_TRIALS_MAX) goto end;
    if (n_good > GOOD_MAX) n_good = GOOD_MAX;
    for (size_t i = 0; i < n; i++) ranks[i] = (struct ranked){s, &known[i]};
    qsort(ranks, n, sizeof *ranks, by_rank);
    for (size_t i = 0; i < n; i++) {
        json_t *params = json_object_get(ranks[i].trial->note, "params"),
               *value = json_object_get(params, s->dims[dim].path);
        struct kernels *to = (int)i < n_good ? good : rest;
        if (value) to->at[to->n++] = w__dim_unit(&s->dims[dim], value);
    }
    if (s->dims[dim].kind == W_DIM_CHOICE) {
        best = draw_choice(s, good, rest, trial, dim);
        goto end;
    }
    set_widths(good);
    set_widths(rest);
    for (int c = 0; c < CANDIDATES; c++) {
        double x = draw(s, good, trial, dim, c), ratio = density(good, x) / density(rest, x);
        if (ratio <= best_ratio) continue;
        best_ratio = ratio;
        best = x;
    }
end:
    free(ranks);
    free(k);
    return best;
}
