/* schedule.c: the learning rate as a function of the step, so that a resumed run needs to remember
 * nothing. Names are those of keras.optimizers.schedules, with one-cycle and warm-up beside them.
 *
 *   ExponentialDecay   lr · rate^(step / decay_steps)           staircase: whole steps of it
 *   StepDecay          lr · rate^⌊step / decay_steps⌋
 *   PolynomialDecay    (lr − end) · (1 − t)^power + end
 *   CosineDecay        lr · ((1 − α) · (1 + cos πt) / 2 + α), after a linear warm-up to the target
 *   CosineDecayRestarts, PiecewiseConstantDecay
 *   OneCycle           up to max_learning_rate by a cosine in `pct_start` of all steps, then down
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "worker/train/train.h"

enum kind {
    CONSTANT,
    EXPONENTIAL,
    STEP,
    POLYNOMIAL,
    COSINE,
    RESTARTS,
    PIECEWISE,
    ONE_CYCLE,
    N_KINDS
};

struct w_schedule {
    enum kind kind;
    double initial, decay_steps, decay_rate, end, power, alpha, warmup_steps, warmup_target, t_mul,
        m_mul, max, pct_start, div_factor, final_div_factor;
    bool staircase, cycle;
    struct w_floats boundaries, values;
    uint64_t total;
};

/* clang-format off */
#define S(field) offsetof(struct w_schedule, field)
#define NUMBER(key, field, least, most, dflt) {.name = key, .kind = W_PARAM_DOUBLE, .offset = S(field), .min = least, .max = most, .deflt = dflt}
#define INITIAL NUMBER("initial_learning_rate", initial, 1e-12, 1e6, 0.001)
#define STEPS NUMBER("decay_steps", decay_steps, 0, 1e15, 0)
#define WARMUP NUMBER("warmup_steps", warmup_steps, 0, 1e15, 0), NUMBER("warmup_target", warmup_target, 0, 1e6, 0)
static const struct w_param exponential[] = {INITIAL, STEPS, NUMBER("decay_rate", decay_rate, 0, 10, 0.96), {.name = "staircase", .kind = W_PARAM_BOOL, .offset = S(staircase)}, {0}};
static const struct w_param polynomial[] = {INITIAL, STEPS, NUMBER("end_learning_rate", end, 0, 1e6, 0.0001), NUMBER("power", power, 0, 100, 1), {.name = "cycle", .kind = W_PARAM_BOOL, .offset = S(cycle)}, WARMUP, {0}};
static const struct w_param cosine[] = {{.name = "initial_learning_rate", .kind = W_PARAM_DOUBLE, .offset = S(initial), .min = 0, .max = 1e6, .deflt = 0.001}, STEPS, NUMBER("alpha", alpha, 0, 1, 0), WARMUP, {0}};
static const struct w_param restarts[] = {INITIAL, {.name = "first_decay_steps", .kind = W_PARAM_DOUBLE, .offset = S(decay_steps), .min = 1, .max = 1e15, .required = true, .help = "steps of the first period"},
    NUMBER("t_mul", t_mul, 1, 100, 2), NUMBER("m_mul", m_mul, 0, 100, 1), NUMBER("alpha", alpha, 0, 1, 0), {0}};
static const struct w_param piecewise[] = {{.name = "boundaries", .kind = W_PARAM_FLOATS, .offset = S(boundaries), .min = 0, .max = 1e15, .required = true, .help = "steps"},
    {.name = "values", .kind = W_PARAM_FLOATS, .offset = S(values), .min = 0, .max = 1e6, .required = true, .help = "one more than boundaries"}, {0}};
static const struct w_param one_cycle[] = {NUMBER("max_learning_rate", max, 1e-12, 1e6, 0.01), {.name = "total_steps", .kind = W_PARAM_DOUBLE, .offset = S(decay_steps), .min = 0, .max = 1e15},
    NUMBER("pct_start", pct_start, 0, 1, 0.3), NUMBER("div_factor", div_factor, 1, 1e9, 25), NUMBER("final_div_factor", final_div_factor, 1, 1e12, 1e4), {0}};

static const struct {
    const char *name;
    enum kind kind;
    const struct w_param *params;
} kinds[] = {{"ExponentialDecay", EXPONENTIAL, exponential}, {"StepDecay", STEP, exponential}, {"PolynomialDecay", POLYNOMIAL, polynomial}, {"CosineDecay", COSINE, cosine},
             {"CosineDecayRestarts", RESTARTS, restarts}, {"PiecewiseConstantDecay", PIECEWISE, piecewise}, {"OneCycle", ONE_CYCLE, one_cycle}};
/* clang-format on */

static const char *next_kind(void *user, size_t i) {
    (void)user;
    return i < sizeof kinds / sizeof *kinds ? kinds[i].name : NULL;
}

struct w_schedule *w_schedule_create(json_t *json, double base, uint64_t total,
                                     struct w_error *err) {
    static const char where[] = "compile.optimizer.learning_rate";
    struct w_schedule *s = calloc(1, sizeof *s);
    const char *type;
    if (!s) return w_fail(err, W_NO_MEMORY, "out of memory"), NULL;
    s->total = total;
    s->initial = base;
    if (!json) return s;
    size_t i = 0, n = sizeof kinds / sizeof *kinds;
    if (w__train_typed(json, &type, where, err)) {
        char snake[48], known[48];
        w__train_snake(type, snake, sizeof snake);
        for (; i < n; i++) {
            w__train_snake(kinds[i].name, known, sizeof known);
            if (strcmp(snake, known) == 0 ||
                (strlen(snake) >= 4 && strncmp(snake, known, strlen(snake)) == 0))
                break;
        }
        if (i == n)
            w__train_unknown(where, "schedule", type, next_kind, NULL, err);
        else if (w__train_params(kinds[i].params, json, s, where, err)) {
            s->kind = kinds[i].kind;
            if (s->decay_steps == 0)
                s->decay_steps = (double)total - s->warmup_steps; /* what is left */
            if (s->decay_steps < 1) s->decay_steps = 1;
            if (s->kind != PIECEWISE || s->values.n == s->boundaries.n + 1) return s;
            w_fail(err, W_BAD_SPEC, "%s: %d values for %d boundaries, one more is expected", where,
                   s->values.n, s->boundaries.n);
        }
    }
    free(s);
    return NULL;
}

static double half_cosine(double from, double to, double t) {
    return to + (from - to) * (1 + cos(M_PI * t)) / 2;
}

static double with_restarts(const struct w_schedule *s, double step) {
    double length = s->decay_steps, height = 1;
    while (step >= length) {
        step -= length;
        length *= s->t_mul;
        height *= s->m_mul;
    }
    return s->initial * (half_cosine(1, 0, step / length) * height * (1 - s->alpha) + s->alpha);
}

static double one_cycle_at(const struct w_schedule *s, double step) {
    double up = s->pct_start * s->decay_steps - 1, last = s->decay_steps - 1,
           low = s->max / s->div_factor;
    if (step >= last) return low / s->final_div_factor;
    if (step <= up && up > 0) return half_cosine(low, s->max, step / up);
    return half_cosine(s->max, low / s->final_div_factor, (step - up) / (last - up));
}

double w_schedule_at(const struct w_schedule *s, uint64_t at) {
    double step = (double)at, t, n;
    double peak = s->warmup_target > 0 ? s->warmup_target : s->initial;
    if (step < s->warmup_steps) {
        double from = s->warmup_target > 0 ? s->initial : 0;
        return from + (peak - from) * (step + (s->warmup_target > 0 ? 0 : 1)) / s->warmup_steps;
    }
    step -= s->warmup_steps;
    t = step / (s->decay_steps > 0 ? s->decay_steps : 1);
    switch (s->kind) {
    case EXPONENTIAL:
        return s->initial * pow(s->decay_rate, s->staircase ? floor(t) : t);
    case STEP:
        return s->initial * pow(s->decay_rate, floor(t));
    case POLYNOMIAL:
        n = s->cycle && t > 1 ? ceil(t) : 1;
        t = t / n < 1 ? t / n : 1;
        return (peak - s->end) * pow(1 - t, s->power) + s->end;
    case COSINE:
        return peak * (half_cosine(1, 0, t < 1 ? t : 1) * (1 - s->alpha) + s->alpha);
    case RESTARTS:
        return with_restarts(s, step);
    case PIECEWISE:
        for (int i = 0; i < s->boundaries.n; i++)
            if (step <= s->boundaries.v[i]) return s->values.v[i];
        return s->values.v[s->values.n - 1];
    case ONE_CYCLE:
        return one_cycle_at(s, step);
    default:
        return s->initial;
    }
}

void w_schedule_destroy(struct w_schedule *s) {
    free(s);
}
