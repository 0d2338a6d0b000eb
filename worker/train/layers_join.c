/* layers_join.c: the layers that join several inputs, with the names of Keras's functional form. */
#include "worker/train/layers.h"

/* Brings each input to one order; all channels first where the first one is. */
static bool gather_inputs(struct w_graph *g, struct w_flow *flows, int max) {
    if (g->n_inputs < 2 || g->n_inputs > max)
        return w__layer_fail(g, "it joins several layers: \"inputs\" must name 2 to %d", max);
    bool first = g->all_inputs[0].first;
    for (int i = 0; i < g->n_inputs; i++) {
        g->flow = g->all_inputs[i];
        if (first)
            w__channels_first(g);
        else
            w__channels_last(g);
        flows[i] = g->flow;
    }
    return true;
}

/* Every input has the same shape; the operator goes from the first to the last. */
static bool elementwise(struct w_graph *g, const char *op) {
    struct w_flow flows[16];
    if (!gather_inputs(g, flows, 16)) return false;
    for (int i = 1; i < g->n_inputs; i++) {
        bool same = flows[i].rank == flows[0].rank;
        for (int k = 0; same && k < flows[0].rank; k++) same = flows[i].dims[k] == flows[0].dims[k];
        if (!same) return w__layer_fail(g, "its inputs 0 and %d have different shapes", i);
    }
    struct w_name sum = flows[0].value;
    for (int i = 1; i < g->n_inputs; i++) sum = W_NODE2(g, op, sum, flows[i].value);
    g->flow = flows[0];
    g->flow.value = sum;
    return true;
}
static bool add(struct w_graph *g, const struct w_layer *l) {
    (void)l;
    return elementwise(g, "Add");
}
static bool subtract(struct w_graph *g, const struct w_layer *l) {
    (void)l;
    return elementwise(g, "Sub");
}
static bool multiply(struct w_graph *g, const struct w_layer *l) {
    (void)l;
    return elementwise(g, "Mul");
}

static bool maximum(struct w_graph *g, const struct w_layer *l) {
    (void)l;
    return elementwise(g, "Max");
}
static bool minimum(struct w_graph *g, const struct w_layer *l) {
    (void)l;
    return elementwise(g, "Min");
}
static bool average(struct w_graph *g, const struct w_layer *l) {
    struct w_name part;
    (void)l;
    if (!elementwise(g, "Add") || !w__scalar(g, "part", 1 / (float)g->n_inputs, &part))
        return false;
    g->flow.value = W_NODE2(g, "Mul", g->flow.value, part);
    return true;
}

/* Σ over the last dimension: [N, …, E] · [N, E] → [N, …]; of two vectors [N, 1]. */
static bool dot(struct w_graph *g, const struct w_layer *l) {
    struct w_flow flows[2];
    struct w_name axes;
    if (g->n_inputs != 2) return w__layer_fail(g, "it takes two inputs, %d are given", g->n_inputs);
    if (!gather_inputs(g, flows, 2)) return false;
    for (int i = 0; i < 2; i++) {
        g->flow = flows[i];
        w__channels_last(g);
        if (l->normalize && !w__unit_norm(g)) return false;
        flows[i] = g->flow;
    }
    if (flows[0].rank < flows[1].rank) {
        struct w_flow f = flows[0];
        flows[0] = flows[1];
        flows[1] = f;
    }
    int rank = flows[0].rank;
    if (flows[1].rank < 1 || flows[0].dims[rank - 1] != flows[1].dims[flows[1].rank - 1] ||
        (flows[1].rank != 1 && flows[1].rank != rank))
        return w__layer_fail(g, "its inputs must end in the same dimension, one of them a vector a "
                                "row, or both of one shape");
    for (int i = 0; flows[1].rank > 1 && i < rank; i++)
        if (flows[0].dims[i] != flows[1].dims[i])
            return w__layer_fail(g, "its inputs have different shapes");
    if (flows[1].rank == 1 && rank > 1) { /* [N, E] → [N, 1, …, E] */
        int64_t at[OP_RANK_MAX];
        for (int i = 1; i < rank; i++) at[i - 1] = i;
        if (!w__ints(g, "at", rank - 1, at, &axes)) return false;
        flows[1].value = W_NODE2(g, "Unsqueeze", flows[1].value, axes);
    }
    if (!w__ints(g, "axes", 1, (int64_t[]){-1}, &axes)) return false;
    struct w_name product = W_NODE2(g, "Mul", flows[0].value, flows[1].value);
    const struct op_arg args[] = {W_INT("keepdims", rank == 1)};
    g->flow = flows[0];
    g->flow.value = w__node(g, "ReduceSum", (const char *[]){product.s, axes.s}, 2, args, 1);
    g->flow.first = false;
    if (rank > 1)
        g->flow.rank--;
    else
        g->flow.dims[0] = 1;
    return true;
}

static bool concatenate(struct w_graph *g, const struct w_layer *l) {
    struct w_flow flows[16];
    const char *names[16];
    if (!gather_inputs(g, flows, 16)) return false;
    int rank = flows[0].rank, axis = l->axis < 0 ? rank + l->axis : l->axis - 1;
    if (axis < 0 || axis >= rank)
        return w__layer_fail(g, "\"axis\" is %d, the inputs have %d dimensions", l->axis, rank + 1);
    int64_t total = 0;
    for (int i = 0; i < g->n_inputs; i++) {
        bool same = flows[i].rank == rank;
        for (int k = 0; same && k < rank; k++)
            same = k == axis || flows[i].dims[k] == flows[0].dims[k];
        if (!same) return w__layer_fail(g, "its inputs 0 and %d differ in another dimension", i);
        total += flows[i].dims[axis];
        names[i] = flows[i].value.s;
    }
    int at = !flows[0].first ? axis + 1 : axis == rank - 1 ? 1 : axis + 2;
    const struct op_arg args[] = {W_INT("axis", at)};
    struct w_name out = w__node(g, "Concat", names, g->n_inputs, args, 1);
    g->flow = flows[0];
    g->flow.value = out;
    g->flow.dims[axis] = total;
    return true;
}

/* clang-format off */
static const struct w_param plain_params[] = {W_P_COMMON, {0}};
static const struct w_param concat_params[] = {W_P_COMMON, {.name = "axis", .kind = W_PARAM_INT, .offset = W_AT(axis), .min = -8, .max = 8, .deflt = -1}, {0}};
static const struct w_param dot_params[] = {W_P_COMMON, {.name = "axes", .kind = W_PARAM_INT, .offset = W_AT(axis), .min = -1, .max = -1, .deflt = -1}, W_P_BOOL("normalize", normalize, 0), {0}};

static const struct w_layer_desc join_layers[] = {
    {"Add", plain_params, add, true},
    {"Subtract", plain_params, subtract, true},
    {"Multiply", plain_params, multiply, true},
    {"Average", plain_params, average, true},
    {"Maximum", plain_params, maximum, true},
    {"Minimum", plain_params, minimum, true},
    {"Dot", dot_params, dot, true},
    {"Concatenate", concat_params, concatenate, true},
    {0}};
/* clang-format on */
W_LAYERS(join_layers);
