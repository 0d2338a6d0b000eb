/* Keras's initialisers. Sources: Glorot and Bengio 2010 (glorot), He et al. 2015 (he), LeCun et al. 1998 (lecun), Saxe et al. 2014
 * (orthogonal). Names and defaults are those of keras.initializers. Numbers come from splitmix64 by (seed, element), so that they
 * depend on nothing else. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "ops/ops_train.h"

static uint64_t mix(uint64_t z) {
    z += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

static double uniform(uint64_t seed, uint64_t i) { /* in (0, 1) */
    return ((double)(mix(mix(seed) + i) >> 11) + 0.5) * 0x1p-53;
}

/* Normal by Box and Muller's transform; truncated: values beyond two deviations are drawn again. */
static double normal(uint64_t seed, uint64_t i, bool truncated) {
    for (uint64_t k = 0;; k++) {
        double u = uniform(seed, 64 * i + 2 * k), v = uniform(seed, 64 * i + 2 * k + 1);
        double z = sqrt(-2 * log(u)) * cos(6.283185307179586 * v);
        if (!truncated || fabs(z) <= 2 || k == 31) return truncated && fabs(z) > 2 ? 0 : z;
    }
}

static void put(struct op_tensor *t, int64_t i, double v) {
    if (t->dtype == OP_F64) ((double *)t->data)[i] = v;
    else ((float *)t->data)[i] = (float)v;
}

/* Rows (or columns, whichever are fewer) orthonormal, by modified Gram-Schmidt over normal numbers. */
static bool orthogonal(struct op_tensor *t, double gain, uint64_t seed) {
    int64_t count = op_tensor_count(t), cols = t->rank ? t->dims[t->rank - 1] : 1, rows = cols ? count / cols : 0;
    bool tall = rows > cols;
    int64_t n = tall ? cols : rows, len = tall ? rows : cols; /* n vectors of len */
    double *q = malloc(((size_t)n * (size_t)len + 1) * sizeof *q);
    if (!q) return false;
    for (int64_t i = 0; i < n * len; i++) q[i] = normal(seed, (uint64_t)i, false);
    for (int64_t i = 0; i < n; i++) {
        for (int64_t j = 0; j < i; j++) {
            double dot = 0;
            for (int64_t k = 0; k < len; k++) dot += q[i * len + k] * q[j * len + k];
            for (int64_t k = 0; k < len; k++) q[i * len + k] -= dot * q[j * len + k];
        }
        double norm = 0;
        for (int64_t k = 0; k < len; k++) norm += q[i * len + k] * q[i * len + k];
        norm = norm > 0 ? 1 / sqrt(norm) : 0;
        for (int64_t k = 0; k < len; k++) q[i * len + k] *= norm;
    }
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < cols; c++) put(t, r * cols + c, gain * (tall ? q[c * len + r] : q[r * len + c]));
    free(q);
    return true;
}

bool op_initialize(struct op_tensor *t, const char *name, int64_t fan_in, int64_t fan_out, float a, uint64_t seed) {
    static const struct scaled {
        const char *name;
        double scale;
        int mode; /* 0: fan in, 2: their mean */
        bool uniform;
    } scaled[] = {{"glorot_uniform", 1, 2, true}, {"glorot_normal", 1, 2, false}, {"he_uniform", 2, 0, true},
                  {"he_normal", 2, 0, false},     {"lecun_uniform", 1, 0, true},  {"lecun_normal", 1, 0, false}};
    int64_t n = op_tensor_count(t);
    if (t->dtype != OP_F32 && t->dtype != OP_F64) return false;
    if (strcmp(name, "orthogonal") == 0) return orthogonal(t, isnan(a) ? 1 : (double)a, seed);
    for (size_t k = 0; k < sizeof scaled / sizeof *scaled; k++) {
        if (strcmp(name, scaled[k].name)) continue;
        double fan = scaled[k].mode == 2 ? ((double)fan_in + (double)fan_out) / 2 : (double)fan_in;
        double variance = scaled[k].scale / (fan > 1 ? fan : 1), limit = sqrt(3 * variance);
        double deviation = sqrt(variance) / 0.87962566103423978; /* of a normal cut at two deviations */
        for (int64_t i = 0; i < n; i++) put(t, i, scaled[k].uniform ? limit * (2 * uniform(seed, (uint64_t)i) - 1) : deviation * normal(seed, (uint64_t)i, true));
        return true;
    }
    double value = isnan(a) ? 0.05 : (double)a;
    if (strcmp(name, "zeros") == 0) value = 0;
    else if (strcmp(name, "ones") == 0) value = 1;
    else if (strcmp(name, "constant") == 0) value = isnan(a) ? 0 : (double)a;
    else if (strcmp(name, "random_normal") == 0 || strcmp(name, "truncated_normal") == 0) {
        for (int64_t i = 0; i < n; i++) put(t, i, value * normal(seed, (uint64_t)i, name[0] == 't'));
        return true;
    } else if (strcmp(name, "random_uniform") == 0) {
        for (int64_t i = 0; i < n; i++) put(t, i, value * (2 * uniform(seed, (uint64_t)i) - 1));
        return true;
    } else return false;
    for (int64_t i = 0; i < n; i++) put(t, i, value);
    return true;
}
