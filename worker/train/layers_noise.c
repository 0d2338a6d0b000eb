/* layers_noise.c: layers that do something only while a model is trained. In the file they are
 * Dropout nodes, or nothing. */
#include <math.h>
#include <string.h>

#include "worker/train/layers.h"

static bool dropout(struct w_graph *g, const struct w_layer *l) {
    struct w_name rate;
    if (l->rate == 0) return true;
    if (!w__scalar(g, "rate", (float)l->rate, &rate)) return false;
    g->flow.value = W_NODE2(g, "Dropout", g->flow.value, rate);
    return true;
}

static bool spatial_dropout1d(struct w_graph *g, const struct w_layer *l) {
    return w__rank_is(g, 2, "[N, steps, channels]") &&
           w__noise(g, "channels", l->rate, g->flow.first ? 1 : -1);
}
static bool spatial_dropout2d(struct w_graph *g, const struct w_layer *l) {
    return w__rank_is(g, 3, "[N, height, width, channels]") &&
           w__noise(g, "channels", l->rate, g->flow.first ? 1 : -1);
}
static bool gaussian_noise(struct w_graph *g, const struct w_layer *l) {
    return w__noise(g, "add", l->stddev, -1);
}
static bool gaussian_dropout(struct w_graph *g, const struct w_layer *l) {
    return w__noise(g, "multiply", sqrt(l->rate / (1 - l->rate)), -1);
}
static bool activity_regularization(struct w_graph *g, const struct w_layer *l) {
    return w__activity(g, l->l1, l->l2);
}

/* clang-format off */
#define RATE {.name = "rate", .kind = W_PARAM_DOUBLE, .offset = W_AT(rate), .min = 0, .max = 0.999, .required = true, .help = "the share that is dropped"}, W_P_JSON("seed", layer)
static const struct w_param rate_params[] = {W_P_COMMON, RATE, {0}};
static const struct w_param stddev_params[] = {W_P_COMMON, {.name = "stddev", .kind = W_PARAM_DOUBLE, .offset = W_AT(stddev), .min = 0, .max = 1e9, .required = true, .help = "of the noise"}, W_P_JSON("seed", layer), {0}};
static const struct w_param activity_params[] = {W_P_COMMON, W_P_NUMBER("l1", l1, 0, 1e6, 0), W_P_NUMBER("l2", l2, 0, 1e6, 0), {0}};

static const struct w_layer_desc noise_layers[] = {
    {"Dropout", rate_params, dropout, false},
    {"SpatialDropout1D", rate_params, spatial_dropout1d, false},
    {"SpatialDropout2D", rate_params, spatial_dropout2d, false},
    {"GaussianNoise", stddev_params, gaussian_noise, false},
    {"GaussianDropout", rate_params, gaussian_dropout, false},
    {"ActivityRegularization", activity_params, activity_regularization, false},
    {0}};
/* clang-format on */
W_LAYERS(noise_layers);
