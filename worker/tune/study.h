/* study.h: a search for good hyper-parameters, without queue, clock or files: what to try, when to
 * give up, which is the best.
 *
 *   struct w_study *s = w_study_create(json, &err);          // a training spec with "tune"
 *   json_t *params = w_study_suggest(s, trial, known, n);    // {"fit.batch_size": 64, …}
 *   json_t *spec = w_study_spec(s, params, &err);            // … put into the spec
 *   if (w_study_gives_up(s, known, n, trial, epoch, value)) … // at a rung
 *   int64_t best = w_study_best(s, known, n);
 *
 * What is known of the trials are their notes: JSON that whoever runs a trial leaves for the others
 * (state, params, value, epochs, rungs, error). All of a study follows from the spec and the notes;
 * for grid and random search params follow from spec and trial number alone.
 *
 *   grid     every combination, the last of the space first
 *   random   uniform, log-uniform, whole numbers, choices: each by itself
 *   tpe      Bergstra et al. 2011: after startup_trials random ones, the trials are parted into the
 *            best fifth and the rest, each dimension gets a density of either (kernels around the
 *            values tried, and one wide one), and of 24 draws from the good density the one where
 *            good / rest is largest is tried. Running trials count as the rest, so that several
 *            workers do not try the same.
 *   halving  random, with pruning: ASHA (Li et al. 2018) in its stopping form. Rungs are at
 *            min_epochs · eta^k epochs; a trial goes on at a rung if it is among the best 1/eta of
 *            those that have reached it so far. Nobody waits for anybody.
 *
 * Any thread; a study does not change. */
#ifndef QUERN_WORKER_TUNE_STUDY_H
#define QUERN_WORKER_TUNE_STUDY_H

#include "worker/train/train.h"

#define W_TUNE_DIMS_MAX 32
#define W_TUNE_TRIALS_MAX 1000
#define W_TUNE_CHOICES_MAX 64

enum w_dim_kind { W_DIM_CHOICE, W_DIM_UNIFORM, W_DIM_LOG, W_DIM_INT };

struct w_dim {
    const char *path;
    enum w_dim_kind kind;
    double low, high, step; /* step: of INT */
    int32_t points;         /* of a grid */
    json_t *choices;        /* of CHOICE */
};

enum w_algorithm { W_TUNE_GRID, W_TUNE_RANDOM, W_TUNE_TPE, W_TUNE_HALVING };

struct w_study {
    json_t *spec; /* without "tune" */
    json_t *tune; /* the dimensions point into it */
    struct w_dim dims[W_TUNE_DIMS_MAX];
    int n_dims;
    enum w_algorithm algorithm;
    char objective[80]; /* of an epoch's results */
    bool maximise, prunes;
    int32_t n_trials, parallelism, startup_trials, eta, min_epochs, epochs;
    uint64_t seed;
    char *publish; /* name in the store; NULL: none */
};

enum w_trial_state {
    W_TRIAL_RUNNING,
    W_TRIAL_DONE,
    W_TRIAL_PRUNED,
    W_TRIAL_FAILED,
};

/* What a note says. */
struct w_trial {
    uint32_t number;
    enum w_trial_state state;
    double value; /* NaN: none yet */
    json_t *note; /* owned; "params", "rungs": {"3": 0.5}, "epochs", "seconds", "error" */
};

struct w_study *w_study_create(json_t *json, struct w_error *err);
void w_study_destroy(struct w_study *s); /* accepts NULL */

/* params of a trial, as {path: value}; new. known: the notes of n trials. */
json_t *w_study_suggest(const struct w_study *s, int64_t trial, const struct w_trial *known,
                        size_t n);
/* The spec with these params; new. NULL: a path leads nowhere. */
json_t *w_study_spec(const struct w_study *s, json_t *params, struct w_error *err);
/* Whether a trial stops here looking at others; false where epoch is no rung, or nothing prunes. */
bool w_study_is_rung(const struct w_study *s, int epoch);
bool w_study_gives_up(const struct w_study *s, const struct w_trial *known, size_t n, int64_t trial,
                      int epoch, double value);
/* Index into known of the best that is done, or -1. */
int64_t w_study_best(const struct w_study *s, const struct w_trial *known, size_t n);
/* a is better than b; NaN is worse than anything. */
bool w_study_better(const struct w_study *s, double a, double b);

/* Reads a note; false: it is none. Finish with w_trial_finish. */
bool w_trial_read(uint32_t number, const char *text, size_t len, struct w_trial *dst);
void w_trial_finish(struct w_trial *t);
const char *w_trial_state_name(enum w_trial_state s);

/* The table of trials, best first where they are done: JSON for the result and study.json. known is
 * sorted by it. */
json_t *w_study_report(const struct w_study *s, struct w_trial *known, size_t n);

/* --- for the folder's files ---------------------------------------------------------------------
 */

/* space.c */
bool w__dim_read(json_t *json, int index, struct w_dim *dst, struct w_error *err);
int32_t w__dim_points(const struct w_dim *d); /* of a grid; 0: not said */
json_t *w__dim_grid(const struct w_dim *d, int32_t i);
/* A value from a number in [0, 1), and back: the middle of what gives the value. */
json_t *w__dim_value(const struct w_dim *d, double u);
double w__dim_unit(const struct w_dim *d, json_t *value);
bool w__put(json_t *spec, const char *path, json_t *value, struct w_error *err);
/* In [0, 1): of the study, trial and dimension alone. */
double w__draw(const struct w_study *s, int64_t trial, int dim, int k);
/* tpe.c */
double w__tpe_draw(const struct w_study *s, int64_t trial, int dim, const struct w_trial *known,
                   size_t n);

#endif
