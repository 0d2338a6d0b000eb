/* layers_shape.c: layers that repeat, cut or widen, and TimeDistributed, which makes steps rows. */
#include <stdio.h>
#include <string.h>

#include "worker/train/layers.h"

static bool repeat_vector(struct w_graph *g, const struct w_layer *l) {
    struct w_name shape, axes;
    int64_t dims[] = {1, l->units, 1};
    if (!w__rank_is(g, 1, "[N, features]") || !w__ints(g, "axes", 1, (int64_t[]){1}, &axes) ||
        !w__ints(g, "repeats", 3, dims, &shape))
        return false;
    g->flow.value = W_NODE2(g, "Unsqueeze", g->flow.value, axes);
    g->flow.value = W_NODE2(g, "Tile", g->flow.value, shape);
    g->flow.dims[1] = g->flow.dims[0];
    g->flow.dims[0] = l->units;
    g->flow.rank = 2;
    return true;
}

/* sides[n · 2]: begin and end of each of n dimensions, from one number, one a dimension, or both. */
static bool sides_of(struct w_graph *g, const char *key, const struct w_floats *p, int n,
                     int64_t *sides) {
    if (p->n != 0 && p->n != 1 && p->n != n && p->n != 2 * n)
        return w__layer_fail(g, "\"%s\" has %d numbers; one, %d or %d are expected", key, p->n, n,
                             2 * n);
    for (int i = 0; i < 2 * n; i++)
        sides[i] = p->n == 0 ? 1 : (int64_t)p->v[p->n == 1 ? 0 : p->n == n && n > 1 ? i / 2 : i];
    if (p->n == 1) sides[1] = sides[0];
    return true;
}

static bool cropping(struct w_graph *g, const struct w_layer *l, int n) {
    int64_t sides[4] = {0}, from[2], to[2], at[] = {1, 2};
    struct w_name starts, ends, axes;
    if (!w__rank_is(g, n + 1, n == 2 ? "[N, height, width, channels]" : "[N, steps, channels]") ||
        !sides_of(g, "cropping", &l->cropping, n, sides))
        return false;
    for (int i = 0; i < n; i++) {
        from[i] = sides[2 * i];
        to[i] = g->flow.dims[i] - sides[2 * i + 1];
        if (from[i] >= to[i])
            return w__layer_fail(g, "it cuts %lld off dimension %d, which has %lld",
                                 (long long)(sides[2 * i] + sides[2 * i + 1]), i,
                                 (long long)g->flow.dims[i]);
        g->flow.dims[i] = to[i] - from[i];
        at[i] += g->flow.first;
    }
    if (!w__ints(g, "starts", n, from, &starts) || !w__ints(g, "ends", n, to, &ends) ||
        !w__ints(g, "axes", n, at, &axes))
        return false;
    g->flow.value = w__node(
        g, "Slice", (const char *[]){g->flow.value.s, starts.s, ends.s, axes.s}, 4, NULL, 0);
    return true;
}
static bool cropping1d(struct w_graph *g, const struct w_layer *l) {
    return cropping(g, l, 1);
}
static bool cropping2d(struct w_graph *g, const struct w_layer *l) {
    return cropping(g, l, 2);
}

static bool zero_padding1d(struct w_graph *g, const struct w_layer *l) {
    int64_t sides[2] = {0};
    struct w_name pads, zero;
    if (!w__rank_is(g, 2, "[N, steps, channels]") ||
        !sides_of(g, "padding", &l->padding_sizes, 1, sides))
        return false;
    w__channels_last(g);
    int64_t values[6] = {0, sides[0], 0, 0, sides[1], 0};
    if (!w__ints(g, "pads", 6, values, &pads) || !w__scalar(g, "zero", 0, &zero)) return false;
    g->flow.value =
        w__node(g, "Pad", (const char *[]){g->flow.value.s, pads.s, zero.s}, 3, NULL, 0);
    g->flow.dims[0] += sides[0] + sides[1];
    return true;
}

/* Each step so many times: [N, T, C] → [N, T, 1, C] → [N, T, k, C] → [N, T·k, C]. */
static bool up_sampling1d(struct w_graph *g, const struct w_layer *l) {
    int64_t k, t = g->flow.dims[0], c = g->flow.dims[1];
    struct w_name repeats, axes;
    if (!w__rank_is(g, 2, "[N, steps, channels]") || !w__whole(g, "size", &l->size, 1, 2, &k))
        return false;
    w__channels_last(g);
    if (!w__ints(g, "axes", 1, (int64_t[]){2}, &axes) ||
        !w__ints(g, "repeats", 4, (int64_t[]){1, 1, k, 1}, &repeats))
        return false;
    g->flow.value = W_NODE2(g, "Unsqueeze", g->flow.value, axes);
    g->flow.value = W_NODE2(g, "Tile", g->flow.value, repeats);
    g->flow.dims[0] = t * k;
    return w__reshape(g, "shape", 3, (int64_t[]){0, t * k, c});
}

/* The layer of each step: steps become rows, and rows steps again. */
static bool time_distributed(struct w_graph *g, const struct w_layer *l) {
    const struct w_layer_desc *desc;
    struct w_layer inner;
    char where[256];
    int64_t steps = g->flow.dims[0], dims[OP_RANK_MAX];
    if (g->flow.rank < 2) return w__layer_fail(g, "it takes [N, steps, …]");
    snprintf(where, sizeof where, "%s: layer", g->where);
    if (!w__layer_read(l->layer, &desc, &inner, where, g->err)) return false;
    w__channels_last(g);
    dims[0] = -1;
    memcpy(dims + 1, g->flow.dims + 1, (size_t)(g->flow.rank - 1) * sizeof *dims);
    bool ok = !desc->joins || w__layer_fail(g, "\"layer\" is %s, which joins several", desc->name);
    ok = ok && w__reshape(g, "rows_shape", g->flow.rank, dims);
    g->flow.rank--;
    memmove(g->flow.dims, g->flow.dims + 1, (size_t)g->flow.rank * sizeof *dims);
    g->flow.mask.s[0] = 0;
    const struct w_layer *outer = g->layer;
    g->layer = &inner;
    ok = ok && desc->build(g, &inner);
    g->layer = outer;
    w__layer_free(desc, &inner);
    if (!ok) return false;
    w__channels_last(g);
    dims[1] = steps;
    memcpy(dims + 2, g->flow.dims, (size_t)g->flow.rank * sizeof *dims);
    if (!w__reshape(g, "steps_shape", g->flow.rank + 2, dims)) return false;
    g->flow.rank++;
    memcpy(g->flow.dims, dims + 1, (size_t)g->flow.rank * sizeof *dims);
    return true;
}

/* clang-format off */
#define SIDES(key, field) {.name = key, .kind = W_PARAM_FLOATS, .offset = W_AT(field), .min = 0, .max = 65536}
static const struct w_param repeat_params[] = {W_P_COMMON, W_P_NEEDED("n", units, "how often"), {0}};
static const struct w_param cropping_params[] = {W_P_COMMON, SIDES("cropping", cropping), {0}};
static const struct w_param padding_params[] = {W_P_COMMON, SIDES("padding", padding_sizes), {0}};
static const struct w_param up_params[] = {W_P_COMMON, W_P_SIZES("size", size), {0}};
static const struct w_param time_params[] = {W_P_COMMON, {.name = "layer", .kind = W_PARAM_JSON, .offset = W_AT(layer), .required = true, .help = "of each step"}, {0}};

static const struct w_layer_desc shape_layers[] = {
    {"RepeatVector", repeat_params, repeat_vector, false},
    {"Cropping1D", cropping_params, cropping1d, false},
    {"Cropping2D", cropping_params, cropping2d, false},
    {"ZeroPadding1D", padding_params, zero_padding1d, false},
    {"UpSampling1D", up_params, up_sampling1d, false},
    {"TimeDistributed", time_params, time_distributed, false},
    {0}};
/* clang-format on */
W_LAYERS(shape_layers);
