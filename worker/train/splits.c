/* splits.c: which rows train, which are looked at after each epoch, which in the end. A split is a
 * list of row numbers; the rows stay where they are.
 *
 *   whole   ── test_split: a share drawn by the seed ─▶ test
 *           ── validation_split: the last part ─▶ validation;   folds: each part in turn ─▶ validation
 *
 * With "stratify" each class gives its share. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "worker/train/train.h"

/* --- classes -----------------------------------------------------------------------------------
 */

static double class_of(const struct w_set *s, int64_t i, struct w_error *err) {
    return w__array_number(&s->y, w__array_row(&s->y, s->rows[i], NULL, err), 0);
}

static int by_value(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

/* The number of the class of each row, from malloc, and how many classes there are. */
static int64_t *classes(const struct w_set *s, int64_t *n_classes, struct w_error *err) {
    if (s->y.elements != 1 || !s->y.data)
        return w_fail(err, W_BAD_SPEC, "fit.stratify wants targets of one class a row"), NULL;
    double *values = malloc((size_t)s->n * sizeof *values + 1);
    int64_t *of = malloc((size_t)s->n * sizeof *of + 1), n = 0;
    if (!values || !of) {
        free(values);
        free(of);
        return w_fail(err, W_NO_MEMORY, "out of memory"), NULL;
    }
    for (int64_t i = 0; i < s->n; i++) values[i] = class_of(s, i, err);
    qsort(values, (size_t)s->n, sizeof *values, by_value);
    for (int64_t i = 0; i < s->n; i++)
        if (i == 0 || values[i] > values[n - 1]) values[n++] = values[i];
    for (int64_t i = 0; i < s->n; i++) {
        double v = class_of(s, i, err);
        const double *at = bsearch(&v, values, (size_t)n, sizeof *values, by_value);
        of[i] = at ? at - values : 0;
    }
    free(values);
    *n_classes = n;
    return of;
}

/* Puts the last share of each class behind all the others; how many those are, −1 with err. */
static int64_t hold_out_by_class(struct w_set *s, double share, struct w_error *err) {
    int64_t n_classes, *of = classes(s, &n_classes, err), held = 0, kept = 0;
    if (!of) return -1;
    int64_t *left = calloc((size_t)n_classes, sizeof *left),
            *rows = malloc((size_t)s->n * sizeof *rows + 1);
    bool ok = left && rows;
    for (int64_t i = 0; ok && i < s->n; i++) left[of[i]]++;
    for (int64_t c = 0; ok && c < n_classes; c++) {
        int64_t part = llround((double)left[c] * share);
        left[c] -= part;
        held += part;
    }
    for (int64_t i = 0, at = 0; ok && i < s->n; i++) {
        bool keep = left[of[i]] > 0;
        left[of[i]] -= keep;
        rows[keep ? kept++ : s->n - held + at++] = s->rows[i];
    }
    if (ok) memcpy(s->rows, rows, (size_t)s->n * sizeof *rows);
    free(left);
    free(rows);
    free(of);
    return ok ? held : (w_fail(err, W_NO_MEMORY, "out of memory"), -1);
}

/* --- test and validation -------------------------------------------------------------------------
 */

bool w__split_test(struct w_fit *f, struct w_error *err) {
    double share = f->spec->data.test_split;
    int64_t n = f->whole.n, cut = (int64_t)llround((double)n * share);
    w_train_set_shuffle(&f->whole, w__train_mix((uint64_t)f->spec->fit.seed ^ 0x7e57));
    if (f->spec->fit.stratify && (cut = hold_out_by_class(&f->whole, share, err)) < 0) return false;
    if (cut < 1 || cut >= n)
        return w_fail(err, W_BAD_SPEC, "data.test_split of %lld rows leaves one side empty",
                      (long long)n);
    w_train_set_part(&f->whole, n - cut, cut, &f->test);
    return true;
}

bool w__split_validation(struct w_fit *f, struct w_error *err) {
    double share = f->spec->fit.validation_split;
    int64_t n = f->train.n, keep = (int64_t)floor((double)n * (1 - share)); /* as Keras takes it */
    if (f->spec->fit.stratify) {
        int64_t held = hold_out_by_class(&f->train, share, err);
        if (held < 0) return false;
        keep = n - held;
    }
    if (keep < 1 || keep >= n)
        return w_fail(err, W_BAD_SPEC,
                      "fit.validation_split of %lld rows leaves one side empty", (long long)n);
    w_train_set_part(&f->train, keep, n - keep, &f->validation);
    w_train_set_part(&f->train, 0, keep, &f->train);
    return true;
}

/* --- windows of one text -------------------------------------------------------------------------
 */

/* Rows of s whose windows do not overlap: every so-manieth. */
static void thin_out(struct w_set *s) {
    const struct w_array *x = &s->x[0];
    int64_t step = x->stride >= x->elements ? 1 : (x->elements + x->stride - 1) / x->stride, n = 0;
    for (int64_t i = 0; i < s->n; i += step) s->rows[n++] = s->rows[i];
    s->n = n;
}

/* Windows of one text overlap. Training takes them all, but those that reach into what is held out;
 * what is held out is looked at once, window by window. */
bool w__split_windows(struct w_fit *f, struct w_error *err) {
    const struct w_array *x = &f->whole.x[0];
    int64_t reach = (x->elements + x->stride) / x->stride;
    if (f->spec->data.test_split > 0 || f->spec->fit.folds || f->spec->fit.stratify)
        return w_fail(err, W_BAD_SPEC,
                      "data.test_split, fit.folds and fit.stratify draw rows, and windows of one text "
                      "overlap: give data.test, or fit.validation_split");
    if (f->validation.n && !f->extra.n) {
        if (f->train.n <= reach)
            return w_fail(err, W_BAD_SPEC, "fit.validation_split leaves no window to train on");
        f->train.n -= reach;
    }
    thin_out(&f->validation);
    if (f->test.n) thin_out(&f->test);
    return true;
}

/* --- folds ---------------------------------------------------------------------------------------
 */

/* Deals the pool's rows out: one fold after the other, in an order by the seed; with stratify class
 * by class, so that each fold has of each class as many, give or take one. */
bool w__split_deal(struct w_fit *f, struct w_error *err) {
    int64_t n = f->train.n, k = f->spec->fit.folds, n_classes = 1, *of = NULL;
    if (n < 2 * k || f->validation.n)
        return w_fail(err, W_BAD_SPEC,
                      f->validation.n ? "fit.folds has its own validation rows: leave validation and "
                                        "validation_split out"
                                      : "fit.folds is %lld, there are %lld rows",
                      (long long)k, (long long)n);
    f->pool = f->train;
    f->fold_of = malloc((size_t)n * sizeof *f->fold_of);
    f->fold_rows = malloc((size_t)n * sizeof *f->fold_rows);
    if (!f->fold_of || !f->fold_rows) return w_fail(err, W_NO_MEMORY, "out of memory");
    w_train_set_shuffle(&f->pool, w__train_mix((uint64_t)f->spec->fit.seed ^ 0xf01d));
    if (f->spec->fit.stratify && !(of = classes(&f->pool, &n_classes, err))) return false;
    for (int64_t c = 0, dealt = 0; c < n_classes; c++)
        for (int64_t i = 0; i < n; i++)
            if (!of || of[i] == c) f->fold_of[i] = (int32_t)(dealt++ % k);
    free(of);
    return true;
}

/* Fold f->fold is looked at, the others train. */
void w__split_fold(struct w_fit *f) {
    int64_t n = 0, at;
    for (int64_t i = 0; i < f->pool.n; i++)
        if (f->fold_of[i] != f->fold) f->fold_rows[n++] = f->pool.rows[i];
    at = n;
    for (int64_t i = 0; i < f->pool.n; i++)
        if (f->fold_of[i] == f->fold) f->fold_rows[at++] = f->pool.rows[i];
    struct w_set all = f->pool;
    all.rows = f->fold_rows;
    w_train_set_part(&all, 0, n, &f->train);
    w_train_set_part(&all, n, f->pool.n - n, &f->validation);
}
