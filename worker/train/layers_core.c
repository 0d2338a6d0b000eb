/* layers_core.c: dense, shapes, normalisation, activation, embedding. */
#include <stdio.h>
#include <string.h>

#include "worker/train/layers.h"

static bool nothing(struct w_graph *g, const struct w_layer *l) {
    (void)g, (void)l;
    return true;
}

/* [N, …, K] · [K, units]: a Gemm for rows, a MatMul along the last dimension else. */
bool w__dense(struct w_graph *g, const char *name, int64_t units, bool use_bias,
              const struct w_layer *l) {
    char kernel[48], bias[48];
    struct w_name w, b;
    w__channels_last(g);
    int64_t k = g->flow.dims[g->flow.rank - 1], dims[2] = {k, units};
    snprintf(kernel, sizeof kernel, "%s%skernel", name, *name ? "_" : "");
    snprintf(bias, sizeof bias, "%s%sbias", name, *name ? "_" : "");
    if (!w__weight(g, kernel, 2, dims, l->kernel_initializer, "glorot_uniform", k, units, &w) ||
        (use_bias && !w__weight(g, bias, 1, &units, l->bias_initializer, "zeros", 1, 1, &b)))
        return false;
    if (g->flow.rank == 1) {
        g->flow.value =
            w__node(g, "Gemm", (const char *[]){g->flow.value.s, w.s, use_bias ? b.s : ""},
                    use_bias ? 3 : 2, NULL, 0);
    } else {
        g->flow.value = W_NODE2(g, "MatMul", g->flow.value, w);
        if (use_bias) g->flow.value = W_NODE2(g, "Add", g->flow.value, b);
    }
    g->flow.dims[g->flow.rank - 1] = units;
    return true;
}

static bool dense(struct w_graph *g, const struct w_layer *l) {
    if (g->flow.rank < 1) return w__layer_fail(g, "it takes [N, features], not single numbers");
    return w__regularize_both(g, l) && w__dense(g, "", l->units, l->use_bias, l) &&
           w__activate(g, l->activation);
}

/* --- shapes ------------------------------------------------------------------------------------
 */

static bool flatten(struct w_graph *g, const struct w_layer *l) {
    int64_t n = 1, area = 1;
    (void)l;
    for (int i = 0; i < g->flow.rank; i++) n *= g->flow.dims[i];
    for (int i = 0; i + 1 < g->flow.rank; i++) area *= g->flow.dims[i];
    /* One channel, or one place, lies the same in both orders. */
    if (g->flow.first && (area == 1 || g->flow.dims[g->flow.rank - 1] == 1)) g->flow.first = false;
    w__channels_last(g);
    if (g->flow.rank != 1) g->flow.value = W_NODE1(g, "Flatten", g->flow.value, W_INT("axis", 1));
    g->flow.rank = 1;
    g->flow.dims[0] = n;
    return true;
}

static bool reshape(struct w_graph *g, const struct w_layer *l) {
    int64_t dims[OP_RANK_MAX + 1] = {0}, n = 1, known = 1;
    size_t i, rank = json_array_size(l->target_shape);
    int free_at = -1;
    json_t *item;
    for (int k = 0; k < g->flow.rank; k++) n *= g->flow.dims[k];
    if (rank < 1 || rank >= OP_RANK_MAX)
        return w__layer_fail(g, "\"target_shape\" must be a list of 1 to %d numbers",
                             OP_RANK_MAX - 1);
    json_array_foreach(l->target_shape, i, item) {
        int64_t d = json_integer_value(item);
        if (!json_is_integer(item) || d < -1 || d == 0 || d > n || (d == -1 && free_at >= 0))
            return w__layer_fail(g,
                                 "\"target_shape\": number %zu must be a size from 1 to %lld, or "
                                 "-1 once",
                                 i, (long long)n);
        dims[i + 1] = d;
        if (d == -1) free_at = (int)i + 1;
        if (d > 0 && (known *= d) > n) break;
    }
    if (free_at >= 0 ? n % known != 0 : n != known)
        return w__layer_fail(g, "\"target_shape\" holds %lld elements, the layer before gives %lld",
                             (long long)known, (long long)n);
    if (free_at >= 0) dims[free_at] = n / known;
    w__channels_last(g);
    if (!w__reshape(g, "shape", (int)rank + 1, dims)) return false;
    g->flow.rank = (int)rank;
    memcpy(g->flow.dims, dims + 1, rank * sizeof *dims);
    return true;
}

static bool permute(struct w_graph *g, const struct w_layer *l) {
    int64_t perm[OP_RANK_MAX] = {0}, dims[OP_RANK_MAX];
    unsigned seen = 0;
    size_t i;
    json_t *item;
    if ((int)json_array_size(l->target_shape) != g->flow.rank)
        return w__layer_fail(g, "\"dims\" must be a list of %d numbers from 1", g->flow.rank);
    w__channels_last(g);
    json_array_foreach(l->target_shape, i, item) {
        int64_t d = json_integer_value(item);
        if (d < 1 || d > g->flow.rank || (seen >> d & 1))
            return w__layer_fail(g, "\"dims\" must be the numbers 1 to %d in some order",
                                 g->flow.rank);
        seen |= 1u << d;
        perm[i + 1] = d;
        dims[i] = g->flow.dims[d - 1];
    }
    w__transpose(g, g->flow.rank + 1, perm);
    memcpy(g->flow.dims, dims, sizeof dims);
    return true;
}

/* --- normalisation -----------------------------------------------------------------------------
 */

static bool batch_normalization(struct w_graph *g, const struct w_layer *l) {
    int64_t c = g->flow.dims[g->flow.rank - 1];
    struct w_name gamma, beta, mean, variance;
    if (g->flow.rank < 1) return w__layer_fail(g, "it takes [N, …, channels]");
    w__channels_first(g);
    if (!w__weight(g, "gamma", 1, &c, NULL, "ones", 1, 1, &gamma) ||
        !w__weight(g, "beta", 1, &c, NULL, "zeros", 1, 1, &beta) ||
        !w__weight(g, "moving_mean", 1, &c, NULL, "zeros", 1, 1, &mean) ||
        !w__weight(g, "moving_variance", 1, &c, NULL, "ones", 1, 1, &variance))
        return false;
    if ((!l->scale_gamma && !w__freeze(g, gamma.s)) || (!l->center && !w__freeze(g, beta.s)))
        return false;
    const struct op_arg args[] = {W_FLOAT("epsilon", (float)l->epsilon),
                                  W_FLOAT("momentum", (float)l->momentum)};
    g->flow.value =
        w__node(g, "BatchNormalization",
                (const char *[]){g->flow.value.s, gamma.s, beta.s, mean.s, variance.s}, 5, args, 2);
    return true;
}

static bool layer_normalization(struct w_graph *g, const struct w_layer *l) {
    int64_t c = g->flow.dims[g->flow.rank - 1];
    struct w_name gamma, beta;
    w__channels_last(g);
    if (!w__weight(g, "gamma", 1, &c, NULL, "ones", 1, 1, &gamma) ||
        !w__weight(g, "beta", 1, &c, NULL, "zeros", 1, 1, &beta))
        return false;
    const struct op_arg args[] = {W_FLOAT("epsilon", (float)l->epsilon), W_INT("axis", -1)};
    g->flow.value = w__node(g, "LayerNormalization",
                            (const char *[]){g->flow.value.s, gamma.s, beta.s}, 3, args, 2);
    return true;
}

static bool unit_normalization(struct w_graph *g, const struct w_layer *l) {
    (void)l;
    return g->flow.rank < 1 ? w__layer_fail(g, "it takes [N, …, features]") : w__unit_norm(g);
}

static bool activation(struct w_graph *g, const struct w_layer *l) {
    return w__activate(g, l->activation);
}
static bool softmax(struct w_graph *g, const struct w_layer *l) {
    (void)l;
    return w__activate(g, "softmax");
}

static bool relu(struct w_graph *g, const struct w_layer *l) {
    if (l->negative_slope > 0 && l->max_value > 0)
        return w__layer_fail(g, "\"negative_slope\" and \"max_value\" together are not supported");
    if (l->negative_slope > 0)
        g->flow.value =
            W_NODE1(g, "LeakyRelu", g->flow.value, W_FLOAT("alpha", (float)l->negative_slope));
    else if (l->max_value > 0) {
        struct w_name low, high;
        if (!w__scalar(g, "low", 0, &low) || !w__scalar(g, "high", (float)l->max_value, &high))
            return false;
        g->flow.value =
            w__node(g, "Clip", (const char *[]){g->flow.value.s, low.s, high.s}, 3, NULL, 0);
    } else
        return w__activate(g, "relu");
    return true;
}

static bool leaky_relu(struct w_graph *g, const struct w_layer *l) {
    double slope = l->alpha > 0 ? l->alpha : l->negative_slope;
    g->flow.value = W_NODE1(g, "LeakyRelu", g->flow.value, W_FLOAT("alpha", (float)slope));
    return true;
}

static bool elu(struct w_graph *g, const struct w_layer *l) {
    g->flow.value = W_NODE1(g, "Elu", g->flow.value, W_FLOAT("alpha", (float)l->alpha));
    return true;
}

static bool rescaling(struct w_graph *g, const struct w_layer *l) {
    struct w_name scale, offset;
    if (!w__scalar(g, "scale", (float)l->scale, &scale)) return false;
    g->flow.value = W_NODE2(g, "Mul", g->flow.value, scale);
    if (l->offset == 0) return true;
    if (!w__scalar(g, "offset", (float)l->offset, &offset)) return false;
    g->flow.value = W_NODE2(g, "Add", g->flow.value, offset);
    return true;
}

/* --- embedding ---------------------------------------------------------------------------------
 */

/* 1 where a number is not 0. */
static bool mask_of(struct w_graph *g) {
    struct w_name zero;
    const int64_t none = 0;
    struct op_tensor t = {.dtype = OP_I64, .data = (void *)(uintptr_t)&none};
    if (g->flow.rank != 1)
        return w__layer_fail(g, "\"mask_zero\" is for an input of [N, steps]");
    snprintf(zero.s, sizeof zero.s, "%s/zero", g->name);
    op_builder_weight(g->builder, zero.s, &t);
    struct w_name is = W_NODE2(g, "Equal", g->flow.value, zero);
    is = w__node(g, "Not", (const char *[]){is.s}, 1, NULL, 0);
    g->flow.mask = W_NODE1(g, "Cast", is, W_INT("to", 1)); /* f32 */
    return true;
}

static bool prelu(struct w_graph *g, const struct w_layer *l) {
    int64_t dims[OP_RANK_MAX];
    struct w_name alpha;
    w__channels_last(g);
    memcpy(dims, g->flow.dims, sizeof dims);
    for (size_t i = 0; i < json_array_size(l->target_shape); i++) { /* axes that share a slope */
        int64_t axis = json_integer_value(json_array_get(l->target_shape, i));
        if (axis < 1 || axis > g->flow.rank)
            return w__layer_fail(g, "\"shared_axes\" must be a list of axes from 1 to %d",
                                 g->flow.rank);
        dims[axis - 1] = 1;
    }
    if (!w__weight(g, "alpha", g->flow.rank, dims, l->kernel_initializer, "zeros", 1, 1, &alpha))
        return false;
    g->flow.value = W_NODE2(g, "PRelu", g->flow.value, alpha);
    return true;
}

static bool embedding(struct w_graph *g, const struct w_layer *l) {
    int64_t dims[2] = {l->input_dim, l->output_dim};
    struct w_name w;
    if (g->flow.dtype != OP_I64)
        return w__layer_fail(g, "it takes whole numbers: it must be the first layer of its input");
    if (g->flow.rank + 1 >= OP_RANK_MAX)
        return w__layer_fail(g, "its input has too many dimensions");
    for (int i = 0; i < g->model->n_inputs; i++) { /* rows can be checked before anything runs */
        struct w_train_input *in = &g->model->inputs[i];
        if (strcmp(in->name, g->flow.value.s) == 0 && (!in->ids || in->ids > l->input_dim))
            in->ids = l->input_dim;
    }
    /* Keras's "uniform": ±0.05. */
    if (!w__regularize(g, l->embeddings_regularizer, "embeddings_regularizer", "embeddings") ||
        !w__weight(g, "embeddings", 2, dims, l->embeddings_initializer, "random_uniform", dims[0],
                   dims[1], &w))
        return false;
    if (l->mask_zero && !mask_of(g)) return false;
    g->flow.value = w__node(g, "Gather", (const char *[]){w.s, g->flow.value.s}, 2, NULL, 0);
    g->flow.dims[g->flow.rank++] = l->output_dim;
    g->flow.dtype = OP_F32;
    return true;
}

/* clang-format off */
static const struct w_param plain_params[] = {W_P_COMMON, {0}};
static const struct w_param input_params[] = {W_P_COMMON, W_P_JSON("shape", shape), W_P_JSON("batch_size", target_shape), W_P_JSON("dtype", target_shape), {0}};
static const struct w_param dense_params[] = {W_P_COMMON, W_P_NEEDED("units", units, "size of its output"), W_P_WEIGHTS, {0}};
static const struct w_param reshape_params[] = {W_P_COMMON, {.name = "target_shape", .kind = W_PARAM_JSON, .offset = W_AT(target_shape), .required = true, .help = "a list of sizes"}, {0}};
static const struct w_param permute_params[] = {W_P_COMMON, {.name = "dims", .kind = W_PARAM_JSON, .offset = W_AT(target_shape), .required = true, .help = "a list"}, {0}};
static const struct w_param batch_norm_params[] = {W_P_COMMON, W_P_NUMBER("momentum", momentum, 0, 1, 0.99), W_P_NUMBER("epsilon", epsilon, 1e-9, 1, 1e-3), W_P_BOOL("center", center, 1), W_P_BOOL("scale", scale_gamma, 1), {0}};
static const struct w_param layer_norm_params[] = {W_P_COMMON, W_P_NUMBER("epsilon", epsilon, 1e-12, 1, 1e-3), {0}};
static const struct w_param activation_params[] = {W_P_COMMON, {.name = "activation", .kind = W_PARAM_TEXT, .offset = W_AT(activation), .required = true, .help = "a name, such as \"relu\""}, {0}};
static const struct w_param relu_params[] = {W_P_COMMON, W_P_NUMBER("negative_slope", negative_slope, 0, 1e6, 0), W_P_NUMBER("max_value", max_value, 0, 1e9, 0), {0}};
static const struct w_param leaky_params[] = {W_P_COMMON, W_P_NUMBER("negative_slope", negative_slope, 0, 1e6, 0.3), W_P_NUMBER("alpha", alpha, 0, 1e6, 0), {0}};
static const struct w_param elu_params[] = {W_P_COMMON, W_P_NUMBER("alpha", alpha, 0, 1e6, 1), {0}};
static const struct w_param prelu_params[] = {W_P_COMMON, W_P_JSON("alpha_initializer", kernel_initializer), W_P_JSON("shared_axes", target_shape), {0}};
static const struct w_param rescaling_params[] = {W_P_COMMON, {.name = "scale", .kind = W_PARAM_DOUBLE, .offset = W_AT(scale), .required = true, .help = "a number"}, {.name = "offset", .kind = W_PARAM_DOUBLE, .offset = W_AT(offset)}, {0}};
static const struct w_param embedding_params[] = {W_P_COMMON, W_P_NEEDED("input_dim", input_dim, "size of the vocabulary"), W_P_NEEDED("output_dim", output_dim, "size of a vector"),
    W_P_JSON("embeddings_initializer", embeddings_initializer), W_P_JSON("embeddings_regularizer", embeddings_regularizer), W_P_JSON("input_length", target_shape), W_P_BOOL("mask_zero", mask_zero, 0), {0}};

static const struct w_layer_desc core_layers[] = {
    {"Input", input_params, nothing, false},
    {"InputLayer", input_params, nothing, false},
    {"Dense", dense_params, dense, false},
    {"Flatten", plain_params, flatten, false},
    {"Reshape", reshape_params, reshape, false},
    {"Permute", permute_params, permute, false},
    {"BatchNormalization", batch_norm_params, batch_normalization, false},
    {"LayerNormalization", layer_norm_params, layer_normalization, false},
    {"UnitNormalization", plain_params, unit_normalization, false},
    {"Activation", activation_params, activation, false},
    {"Softmax", plain_params, softmax, false},
    {"ReLU", relu_params, relu, false},
    {"LeakyReLU", leaky_params, leaky_relu, false},
    {"ELU", elu_params, elu, false},
    {"PReLU", prelu_params, prelu, false},
    {"Rescaling", rescaling_params, rescaling, false},
    {"Embedding", embedding_params, embedding, false},
    {0}};
/* clang-format on */
W_LAYERS(core_layers);
