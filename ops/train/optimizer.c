/* The optimisers, with Keras's names, defaults and formulas. Sources: Kingma and Ba 2015 (Adam), Loshchilov and Hutter 2019 (AdamW),
 * Dozat 2016 (Nadam), Reddi et al. 2018 (AMSGrad), Duchi et al. 2011 (Adagrad), Tieleman and Hinton 2012 (RMSprop), Chen et al. 2023
 * (Lion), You et al. 2020 (LAMB), Shazeer and Stern 2018 (Adafactor). Element by element, in order: the bits depend on the numbers
 * only; the two that take a norm sum it in the order of the elements, in double precision. */
#include "ops/train/optimizer.h"

#include <math.h>
#include <string.h>

static void sgd(const struct op_optimizer *o, const struct op_update *u) {
    u->math->sgd(u->n, u->learning_rate, o->momentum, o->nesterov, u->g, o->momentum == 0 ? NULL : u->state[0], u->w);
}

static void rmsprop(const struct op_optimizer *o, const struct op_update *u) {
    for (int64_t i = 0; i < u->n; i++) {
        float g = u->g[i], v = u->state[0][i] = o->rho * u->state[0][i] + (1 - o->rho) * g * g;
        float d = u->learning_rate * g / sqrtf(v + o->epsilon);
        if (o->momentum > 0) d = u->state[1][i] = o->momentum * u->state[1][i] + d;
        u->w[i] -= d;
    }
}

static void adagrad(const struct op_optimizer *o, const struct op_update *u) {
    for (int64_t i = 0; i < u->n; i++) {
        float g = u->g[i], a = u->state[0][i] += g * g;
        /* Keras starts the accumulator at 0.1. */
        u->w[i] -= u->learning_rate * g / sqrtf(a + 0.1f + o->epsilon);
    }
}

/* Adam, AdamW (the decay is decoupled and done by the trainer), with AMSGrad. */
static void adam(const struct op_optimizer *o, const struct op_update *u) {
    double b1 = (double)o->beta_1, b2 = (double)o->beta_2, t = (double)u->step;
    float alpha = (float)((double)u->learning_rate * sqrt(1 - pow(b2, t)) / (1 - pow(b1, t)));
    float c1 = 1 - o->beta_1, c2 = 1 - o->beta_2, e = o->epsilon;
    float *m = u->state[0], *v = u->state[1], *top = u->state[2];
    if (!o->amsgrad) {
        u->math->adam(u->n, alpha, c1, c2, e, u->g, m, v, u->w);
        return;
    }
    for (int64_t i = 0; i < u->n; i++) {
        float g = u->g[i];
        m[i] += (g - m[i]) * c1;
        v[i] += (g * g - v[i]) * c2;
        top[i] = top[i] > v[i] ? top[i] : v[i];
        u->w[i] -= m[i] * alpha / (sqrtf(top[i]) + e);
    }
}

static void nadam(const struct op_optimizer *o, const struct op_update *u) {
    /* The momentum schedule of the paper: u_t = β1 (1 − 0.5·0.96^t); its product is over the steps so far. */
    double product = 1, b1 = (double)o->beta_1, now = 0, next;
    for (uint64_t t = 1; t <= u->step; t++) {
        now = b1 * (1 - 0.5 * pow(0.96, (double)t));
        product *= now;
        if (t > 4000) { /* 0.96^t has vanished: the rest is a power */
            product *= pow(b1, (double)(u->step - t));
            now = b1;
            break;
        }
    }
    next = b1 * (1 - 0.5 * pow(0.96, (double)(u->step + 1)));
    float cm = (float)(next / (1 - product * next)), cg = (float)((1 - now) / (1 - product)), cv = (float)(1 / (1 - pow((double)o->beta_2, (double)u->step)));
    for (int64_t i = 0; i < u->n; i++) {
        float g = u->g[i], m = u->state[0][i] += (g - u->state[0][i]) * (1 - o->beta_1);
        float v = u->state[1][i] += (g * g - u->state[1][i]) * (1 - o->beta_2);
        u->w[i] -= u->learning_rate * (cm * m + cg * g) / (sqrtf(cv * v) + o->epsilon);
    }
}

static void lion(const struct op_optimizer *o, const struct op_update *u) {
    for (int64_t i = 0; i < u->n; i++) {
        float g = u->g[i], m = u->state[0][i], c = o->beta_1 * m + (1 - o->beta_1) * g;
        u->w[i] -= u->learning_rate * (float)((c > 0) - (c < 0));
        u->state[0][i] = o->beta_2 * m + (1 - o->beta_2) * g;
    }
}

static void lamb(const struct op_optimizer *o, const struct op_update *u) {
    double t = (double)u->step, norm_w = 0, norm_d = 0;
    float c1 = (float)(1 / (1 - pow((double)o->beta_1, t))), c2 = (float)(1 / (1 - pow((double)o->beta_2, t)));
    for (int pass = 0; pass < 2; pass++) {
        float trust = norm_w > 0 && norm_d > 0 ? (float)(sqrt(norm_w) / sqrt(norm_d)) : 1;
        for (int64_t i = 0; i < u->n; i++) {
            float g = u->g[i], *m = &u->state[0][i], *v = &u->state[1][i];
            if (pass == 0) {
                *m += (g - *m) * (1 - o->beta_1);
                *v += (g * g - *v) * (1 - o->beta_2);
            }
            float d = *m * c1 / (sqrtf(*v * c2) + o->epsilon);
            if (pass == 0) {
                norm_w += (double)u->w[i] * (double)u->w[i];
                norm_d += (double)d * (double)d;
            } else u->w[i] -= u->learning_rate * trust * d;
        }
    }
}

/* Without a first moment. A matrix keeps the means of its squared gradient by row and by column only (state 0 holds both); the rest
 * keep the whole. The update is clipped by its root mean square and relative to the weight's. */
static void adafactor(const struct op_optimizer *o, const struct op_update *u) {
    double decay = 1 - pow((double)u->step, -0.8), e1 = 1e-30, rms_w = 0, rms_d = 0;
    int64_t cols = u->rank >= 2 ? u->dims[u->rank - 1] : 0, rows = cols ? u->n / cols : 0;
    float *r = u->state[0], *c = u->state[0] + rows;
    bool factored = rows >= 2 && cols >= 2 && rows + cols <= u->n;
    double mean_r = 0;
    if (u->n == 0) return;
    if (factored) {
        for (int64_t i = 0; i < rows; i++) {
            double sum = 0;
            for (int64_t j = 0; j < cols; j++) sum += (double)u->g[i * cols + j] * (double)u->g[i * cols + j] + e1;
            r[i] = (float)(decay * (double)r[i] + (1 - decay) * sum / (double)cols);
            mean_r += (double)r[i];
        }
        for (int64_t j = 0; j < cols; j++) {
            double sum = 0;
            for (int64_t i = 0; i < rows; i++) sum += (double)u->g[i * cols + j] * (double)u->g[i * cols + j] + e1;
            c[j] = (float)(decay * (double)c[j] + (1 - decay) * sum / (double)rows);
        }
        mean_r /= (double)rows;
    } else
        for (int64_t i = 0; i < u->n; i++) u->state[0][i] = (float)(decay * (double)u->state[0][i] + (1 - decay) * ((double)u->g[i] * (double)u->g[i] + e1));
    for (int pass = 0; pass < 2; pass++) {
        double clip = fmax(1, sqrt(rms_d / (double)u->n)), size = fmax(1e-3, sqrt(rms_w / (double)u->n));
        double rate = fmin((double)u->learning_rate, 1 / sqrt((double)u->step)) * size / clip;
        for (int64_t i = 0; i < u->n; i++) {
            double v = factored ? (double)r[i / cols] * (double)c[i % cols] / (mean_r > 0 ? mean_r : 1) : (double)u->state[0][i];
            double d = (double)u->g[i] / sqrt(v > 0 ? v : 1e-30);
            if (pass == 0) {
                rms_w += (double)u->w[i] * (double)u->w[i];
                rms_d += d * d;
            } else u->w[i] -= (float)(rate * d);
        }
    }
    (void)o;
}

static const struct op_rule rules[] = {
    /* name        states  rate    mom  rho   β1     β2      ε      decay whole */
    {"sgd", 0, 0.01f, 0, 0, 0, 0, 0, 0, false, sgd},
    {"rmsprop", 1, 0.001f, 0, 0.9f, 0, 0, 1e-7f, 0, false, rmsprop},
    {"adagrad", 1, 0.001f, 0, 0, 0, 0, 1e-7f, 0, false, adagrad},
    {"adam", 2, 0.001f, 0, 0, 0.9f, 0.999f, 1e-7f, 0, false, adam},
    {"adamw", 2, 0.001f, 0, 0, 0.9f, 0.999f, 1e-7f, 0.004f, false, adam},
    {"nadam", 2, 0.001f, 0, 0, 0.9f, 0.999f, 1e-7f, 0, false, nadam},
    {"lion", 1, 0.001f, 0, 0, 0.9f, 0.99f, 0, 0, false, lion},
    {"lamb", 2, 0.001f, 0, 0, 0.9f, 0.999f, 1e-7f, 0, true, lamb},
    {"adafactor", 1, 0.001f, 0, 0, 0, 0, 0, 0, true, adafactor},
};
#define N_RULES (sizeof rules / sizeof *rules)

const struct op_rule *op__rule_find(const char *name) {
    for (size_t i = 0; i < N_RULES; i++)
        if (strcmp(rules[i].name, name) == 0) return &rules[i];
    return NULL;
}

const char *op_optimizer_name(size_t i) {
    return i < N_RULES ? rules[i].name : NULL;
}

int op__rule_states(const struct op_rule *r, const struct op_optimizer *o) {
    bool momentum = (r->update == sgd || r->update == rmsprop) && o->momentum > 0;
    return r->n_states + momentum + (r->update == adam && o->amsgrad);
}

void op_optimizer_defaults(struct op_optimizer *o, const char *name) {
    *o = (struct op_optimizer){.name = name, .learning_rate = NAN, .momentum = NAN, .rho = NAN, .beta_1 = NAN, .beta_2 = NAN, .epsilon = NAN, .weight_decay = NAN};
}

void op__rule_fill(const struct op_rule *r, struct op_optimizer *o) {
    float *const fields[] = {&o->learning_rate, &o->momentum, &o->rho, &o->beta_1, &o->beta_2, &o->epsilon, &o->weight_decay};
    const float dflts[] = {r->learning_rate, r->momentum, r->rho, r->beta_1, r->beta_2, r->epsilon, r->weight_decay};
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++)
        if (isnan(*fields[i])) *fields[i] = dflts[i];
    if (o->accumulate < 1) o->accumulate = 1;
}
