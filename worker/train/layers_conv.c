/* layers_conv.c: convolutions, pooling, padding, upsampling: the layers that want channels first.
 *
 * "same" is written out as pads (the odd one at the end, as Keras and TensorFlow have it), since
 * the sizes are known. */
#include <string.h>

#include "worker/train/layers.h"

/* pads of ONNX: all begins, then all ends; dst gets the output's sizes. */
static bool window(struct w_graph *g, const char *what, int n, const int64_t *kernel,
                   const int64_t *strides, const int64_t *dilations, int padding, int64_t *pads,
                   int64_t *dst) {
    for (int i = 0; i < n; i++) {
        int64_t in = g->flow.dims[i], span = (kernel[i] - 1) * dilations[i] + 1, total = 0;
        if (padding == W_PADDING_SAME) {
            int64_t out = (in + strides[i] - 1) / strides[i];
            total = (out - 1) * strides[i] + span - in;
            if (total < 0) total = 0;
            pads[i] = total / 2;
        } else {
            total = padding == W_PADDING_CAUSAL ? span - 1 : 0;
            pads[i] = total;
        }
        pads[n + i] = total - pads[i];
        if (in + total < span)
            return w__layer_fail(g,
                                 "its %s covers %lld of dimension %d, which has only %lld: use "
                                 "\"padding\": \"same\", or fewer poolings before",
                                 what, (long long)span, i, (long long)in);
        dst[i] = (in + total - span) / strides[i] + 1;
    }
    return true;
}

/* A convolution over n dimensions of the flow: groups 0 stands for "one a channel". */
static bool convolve(struct w_graph *g, const struct w_layer *l, int n, const char *weight,
                     int64_t filters, const int64_t *kernel, const int64_t *strides,
                     const int64_t *dilations, int64_t groups, bool use_bias) {
    int64_t channels = g->flow.dims[n], pads[8], out[4], dims[6], area = 1;
    struct w_name w, b;
    if (groups == 0) groups = channels, filters *= channels;
    if (channels % groups || filters % groups)
        return w__layer_fail(g, "%lld channels and %lld filters cannot be cut into %lld groups",
                             (long long)channels, (long long)filters, (long long)groups);
    if (!window(g, "kernel", n, kernel, strides, dilations, l->padding, pads, out)) return false;
    dims[0] = filters;
    dims[1] = channels / groups;
    for (int i = 0; i < n; i++) area *= dims[2 + i] = kernel[i];
    /* Keras counts a depthwise kernel as [h, w, channels, multiplier]. */
    bool depthwise = groups == channels && groups > 1;
    int64_t fan_in = area * (depthwise ? channels : channels / groups),
            fan_out = area * (depthwise ? filters / channels : filters);
    if (!w__weight(g, weight, n + 2, dims, l->kernel_initializer, "glorot_uniform", fan_in, fan_out,
                   &w) ||
        (use_bias && !w__weight(g, "bias", 1, &filters, l->bias_initializer, "zeros", 1, 1, &b)))
        return false;
    w__channels_first(g);
    const struct op_arg args[] = {W_INTS("kernel_shape", kernel, n), W_INTS("strides", strides, n),
                                  W_INTS("dilations", dilations, n), W_INTS("pads", pads, 2 * n),
                                  W_INT("group", groups)};
    g->flow.value = w__node(g, "Conv", (const char *[]){g->flow.value.s, w.s, use_bias ? b.s : ""},
                            use_bias ? 3 : 2, args, 5);
    memcpy(g->flow.dims, out, (size_t)n * sizeof *out);
    g->flow.dims[n] = filters;
    return true;
}

static bool sizes(struct w_graph *g, const struct w_layer *l, int n, int64_t *kernel,
                  int64_t *strides, int64_t *dilations) {
    return w__rank_is(g, n + 1, n == 2 ? "[N, height, width, channels]" : "[N, steps, channels]") &&
           w__whole(g, "kernel_size", &l->kernel_size, n, 1, kernel) &&
           w__whole(g, "strides", &l->strides, n, 1, strides) &&
           w__whole(g, "dilation_rate", &l->dilation_rate, n, 1, dilations);
}

static bool conv(struct w_graph *g, const struct w_layer *l, int n) {
    int64_t k[2], s[2], d[2];
    return sizes(g, l, n, k, s, d) && w__regularize_both(g, l) &&
           convolve(g, l, n, "kernel", l->filters, k, s, d, l->groups, l->use_bias) &&
           w__activate(g, l->activation);
}
static bool conv2d(struct w_graph *g, const struct w_layer *l) {
    return conv(g, l, 2);
}
static bool conv1d(struct w_graph *g, const struct w_layer *l) {
    return conv(g, l, 1);
}

static bool depthwise(struct w_graph *g, const struct w_layer *l, int n) {
    int64_t k[2], s[2], d[2];
    return sizes(g, l, n, k, s, d) && w__regularize_both(g, l) &&
           convolve(g, l, n, "kernel", l->depth_multiplier, k, s, d, 0, l->use_bias) &&
           w__activate(g, l->activation);
}
static bool depthwise2d(struct w_graph *g, const struct w_layer *l) {
    return depthwise(g, l, 2);
}
static bool depthwise1d(struct w_graph *g, const struct w_layer *l) {
    return depthwise(g, l, 1);
}

static bool separable(struct w_graph *g, const struct w_layer *l, int n) {
    struct w_layer pointwise = *l;
    int64_t k[2], s[2], d[2], one[2] = {1, 1};
    if (l->pointwise_initializer) pointwise.kernel_initializer = l->pointwise_initializer;
    return sizes(g, l, n, k, s, d) &&
           w__regularize(g, l->kernel_regularizer, "depthwise_regularizer", "depthwise_kernel") &&
           w__regularize(g, l->pointwise_regularizer, "pointwise_regularizer", "pointwise_kernel") &&
           w__regularize(g, l->bias_regularizer, "bias_regularizer", "bias") &&
           convolve(g, l, n, "depthwise_kernel", l->depth_multiplier, k, s, d, 0, false) &&
           convolve(g, &pointwise, n, "pointwise_kernel", l->filters, one, one, one, 1,
                    l->use_bias) &&
           w__activate(g, l->activation);
}
static bool separable2d(struct w_graph *g, const struct w_layer *l) {
    return separable(g, l, 2);
}
static bool separable1d(struct w_graph *g, const struct w_layer *l) {
    return separable(g, l, 1);
}

/* Keras's sizes: "same" gives in · stride; what the kernel has more than the stride is cut off. */
static bool conv2d_transpose(struct w_graph *g, const struct w_layer *l) {
    int64_t k[2], s[2], d[2], pads[4], more[2], c = g->flow.dims[2];
    struct w_name w, b;
    if (!sizes(g, l, 2, k, s, d) || !w__regularize_both(g, l)) return false;
    if (d[0] != 1 || d[1] != 1 || l->padding == W_PADDING_CAUSAL)
        return w__layer_fail(g, "\"dilation_rate\" must be 1");
    const int64_t dims[] = {c, l->filters, k[0], k[1]};
    if (!w__weight(g, "kernel", 4, dims, l->kernel_initializer, "glorot_uniform",
                   k[0] * k[1] * l->filters, k[0] * k[1] * c, &w) ||
        (l->use_bias && !w__weight(g, "bias", 1, (int64_t[]){l->filters}, l->bias_initializer,
                                   "zeros", 1, 1, &b)))
        return false;
    for (int i = 0; i < 2; i++) {
        int64_t cut = l->padding == W_PADDING_SAME && k[i] > s[i] ? k[i] - s[i] : 0;
        pads[i] = cut / 2;
        pads[2 + i] = cut - cut / 2;
        more[i] = k[i] < s[i] ? s[i] - k[i] : 0;
        g->flow.dims[i] = (g->flow.dims[i] - 1) * s[i] + k[i] - cut + more[i];
    }
    w__channels_first(g);
    const struct op_arg args[] = {W_INTS("kernel_shape", k, 2), W_INTS("strides", s, 2),
                                  W_INTS("pads", pads, 4), W_INTS("output_padding", more, 2)};
    g->flow.value = w__node(g, "ConvTranspose",
                            (const char *[]){g->flow.value.s, w.s, l->use_bias ? b.s : ""},
                            l->use_bias ? 3 : 2, args, 4);
    g->flow.dims[2] = l->filters;
    return w__activate(g, l->activation);
}

/* --- pooling -----------------------------------------------------------------------------------
 */

static bool pool(struct w_graph *g, const struct w_layer *l, int n, const char *op) {
    int64_t k[2], s[2], one[2] = {1, 1}, pads[4], out[2];
    if (!w__rank_is(g, n + 1, n == 2 ? "[N, height, width, channels]" : "[N, steps, channels]") ||
        !w__whole(g, "pool_size", &l->pool_size, n, 2, k))
        return false;
    for (int i = 0; i < n; i++) s[i] = k[i];
    if ((l->strides.n && !w__whole(g, "strides", &l->strides, n, 1, s)) ||
        !window(g, "pool", n, k, s, one, l->padding, pads, out))
        return false;
    w__channels_first(g);
    g->flow.value = W_NODE1(g, op, g->flow.value, W_INTS("kernel_shape", k, n),
                            W_INTS("strides", s, n), W_INTS("pads", pads, 2 * n));
    memcpy(g->flow.dims, out, (size_t)n * sizeof *out);
    return true;
}
static bool max_pool2d(struct w_graph *g, const struct w_layer *l) {
    return pool(g, l, 2, "MaxPool");
}
static bool max_pool1d(struct w_graph *g, const struct w_layer *l) {
    return pool(g, l, 1, "MaxPool");
}
static bool average_pool2d(struct w_graph *g, const struct w_layer *l) {
    return pool(g, l, 2, "AveragePool");
}
static bool average_pool1d(struct w_graph *g, const struct w_layer *l) {
    return pool(g, l, 1, "AveragePool");
}

static bool global_pool(struct w_graph *g, int n, const char *op) {
    if (!w__rank_is(g, n + 1, n == 2 ? "[N, height, width, channels]" : "[N, steps, channels]"))
        return false;
    int64_t channels = g->flow.dims[n];
    w__channels_first(g);
    g->flow.value = w__node(g, op, (const char *[]){g->flow.value.s}, 1, NULL, 0);
    g->flow.value = W_NODE1(g, "Flatten", g->flow.value, W_INT("axis", 1));
    g->flow.rank = 1;
    g->flow.dims[0] = channels;
    g->flow.first = false;
    return true;
}
static bool global_average2d(struct w_graph *g, const struct w_layer *l) {
    (void)l;
    return global_pool(g, 2, "GlobalAveragePool");
}
/* Σ x · mask / max(Σ mask, 1) over the steps */
static bool masked_average(struct w_graph *g) {
    struct w_name steps, last, least;
    const struct op_arg drop[] = {W_INT("keepdims", 0)}, keep[] = {W_INT("keepdims", 1)};
    w__channels_last(g);
    if (!w__ints(g, "steps", 1, (int64_t[]){1}, &steps) ||
        !w__ints(g, "last", 1, (int64_t[]){2}, &last) || !w__scalar(g, "least", 1, &least))
        return false;
    struct w_name mask = W_NODE2(g, "Unsqueeze", g->flow.mask, last),
                  x = W_NODE2(g, "Mul", g->flow.value, mask),
                  sum = w__node(g, "ReduceSum", (const char *[]){x.s, steps.s}, 2, drop, 1),
                  n = w__node(g, "ReduceSum", (const char *[]){g->flow.mask.s, steps.s}, 2, keep, 1);
    n = W_NODE2(g, "Max", n, least);
    g->flow.value = W_NODE2(g, "Div", sum, n);
    g->flow.dims[0] = g->flow.dims[1];
    g->flow.rank = 1;
    return true;
}
static bool global_average1d(struct w_graph *g, const struct w_layer *l) {
    (void)l;
    if (g->flow.mask.s[0] && g->flow.rank == 2) return masked_average(g);
    return global_pool(g, 1, "GlobalAveragePool");
}
static bool global_max2d(struct w_graph *g, const struct w_layer *l) {
    (void)l;
    return global_pool(g, 2, "GlobalMaxPool");
}
static bool global_max1d(struct w_graph *g, const struct w_layer *l) {
    (void)l;
    return global_pool(g, 1, "GlobalMaxPool");
}

/* --- padding and upsampling --------------------------------------------------------------------
 */

/* 1, [h, w] or [top, bottom, left, right]; Keras's [[top, bottom], [left, right]] is the last. */
static bool zero_padding(struct w_graph *g, const struct w_layer *l) {
    const struct w_floats *p = &l->padding_sizes;
    double sides[4] = {1, 1, 1, 1};
    struct w_name pads, zero;
    if (!w__rank_is(g, 3, "[N, height, width, channels]")) return false;
    if (p->n != 0 && p->n != 1 && p->n != 2 && p->n != 4)
        return w__layer_fail(g,
                             "\"padding\" has %d numbers; one, [h, w] or [top, bottom, left, "
                             "right] is expected",
                             p->n);
    for (int i = 0; i < 4 && p->n; i++) sides[i] = p->v[p->n == 1 ? 0 : p->n == 2 ? i / 2 : i];
    int64_t values[8] = {0, 0, (int64_t)sides[0], (int64_t)sides[2],
                         0, 0, (int64_t)sides[1], (int64_t)sides[3]};
    w__channels_first(g);
    if (!w__ints(g, "pads", 8, values, &pads) || !w__scalar(g, "zero", 0, &zero)) return false;
    g->flow.value =
        w__node(g, "Pad", (const char *[]){g->flow.value.s, pads.s, zero.s}, 3, NULL, 0);
    g->flow.dims[0] += values[2] + values[6];
    g->flow.dims[1] += values[3] + values[7];
    return true;
}

static bool up_sampling(struct w_graph *g, const struct w_layer *l) {
    int64_t size[2];
    struct w_name scales;
    if (!w__rank_is(g, 3, "[N, height, width, channels]") ||
        !w__whole(g, "size", &l->size, 2, 2, size))
        return false;
    float values[4] = {1, 1, (float)size[0], (float)size[1]};
    w__channels_first(g);
    if (!w__frozen(g, "scales", 4, values, &scales)) return false;
    const struct op_arg args[] = {
        W_STRING("mode", l->interpolation ? "linear" : "nearest"),
        W_STRING("coordinate_transformation_mode", l->interpolation ? "half_pixel" : "asymmetric"),
        W_STRING("nearest_mode", "floor")};
    g->flow.value =
        w__node(g, "Resize", (const char *[]){g->flow.value.s, "", scales.s}, 3, args, 3);
    g->flow.dims[0] *= size[0];
    g->flow.dims[1] *= size[1];
    return true;
}

/* clang-format off */
#define FILTERS W_P_NEEDED("filters", filters, "how many")
#define KERNEL {.name = "kernel_size", .kind = W_PARAM_FLOATS, .offset = W_AT(kernel_size), .min = 1, .max = 65536, .required = true, .help = "[h, w], or a number for both"}
static const struct w_param conv2d_params[] = {W_P_COMMON, FILTERS, KERNEL, W_P_SIZES("strides", strides), W_P_SIZES("dilation_rate", dilation_rate), W_P_PADDING, W_P_WHOLE("groups", groups, 1, 1), W_P_WEIGHTS, {0}};
static const struct w_param transpose_params[] = {W_P_COMMON, FILTERS, KERNEL, W_P_SIZES("strides", strides), W_P_SIZES("dilation_rate", dilation_rate), W_P_PADDING, W_P_WEIGHTS, {0}};
static const struct w_param conv1d_params[] = {W_P_COMMON, FILTERS, KERNEL, W_P_SIZES("strides", strides), W_P_SIZES("dilation_rate", dilation_rate),
    {.name = "padding", .kind = W_PARAM_CHOICE, .offset = W_AT(padding), .choices = "valid same causal"}, W_P_WHOLE("groups", groups, 1, 1), W_P_WEIGHTS, {0}};
static const struct w_param depthwise_params[] = {W_P_COMMON, KERNEL, W_P_SIZES("strides", strides), W_P_SIZES("dilation_rate", dilation_rate), W_P_PADDING, W_P_WHOLE("depth_multiplier", depth_multiplier, 1, 1),
    W_P_JSON("depthwise_initializer", kernel_initializer), W_P_JSON("depthwise_regularizer", kernel_regularizer), W_P_WEIGHTS, {0}};
static const struct w_param separable_params[] = {W_P_COMMON, FILTERS, KERNEL, W_P_SIZES("strides", strides), W_P_SIZES("dilation_rate", dilation_rate), W_P_PADDING, W_P_WHOLE("depth_multiplier", depth_multiplier, 1, 1),
    W_P_JSON("depthwise_initializer", kernel_initializer), W_P_JSON("pointwise_initializer", pointwise_initializer), W_P_JSON("depthwise_regularizer", kernel_regularizer), W_P_JSON("pointwise_regularizer", pointwise_regularizer), W_P_WEIGHTS, {0}};
static const struct w_param pool_params[] = {W_P_COMMON, W_P_SIZES("pool_size", pool_size), W_P_SIZES("strides", strides), W_P_PADDING, {0}};
static const struct w_param plain_params[] = {W_P_COMMON, {0}};
static const struct w_param padding_params[] = {W_P_COMMON, {.name = "padding", .kind = W_PARAM_FLOATS, .offset = W_AT(padding_sizes), .min = 0, .max = 65536}, {0}};
static const struct w_param up_params[] = {W_P_COMMON, W_P_SIZES("size", size), {.name = "interpolation", .kind = W_PARAM_CHOICE, .offset = W_AT(interpolation), .choices = "nearest bilinear"}, {0}};

static const struct w_layer_desc conv_layers[] = {
    {"Conv2D", conv2d_params, conv2d, false},
    {"Conv1D", conv1d_params, conv1d, false},
    {"Conv2DTranspose", transpose_params, conv2d_transpose, false},
    {"DepthwiseConv2D", depthwise_params, depthwise2d, false},
    {"DepthwiseConv1D", depthwise_params, depthwise1d, false},
    {"SeparableConv2D", separable_params, separable2d, false},
    {"SeparableConv1D", separable_params, separable1d, false},
    {"MaxPooling2D", pool_params, max_pool2d, false},
    {"MaxPool2D", pool_params, max_pool2d, false},
    {"MaxPooling1D", pool_params, max_pool1d, false},
    {"AveragePooling2D", pool_params, average_pool2d, false},
    {"AveragePooling1D", pool_params, average_pool1d, false},
    {"GlobalAveragePooling2D", plain_params, global_average2d, false},
    {"GlobalAveragePooling1D", plain_params, global_average1d, false},
    {"GlobalMaxPooling2D", plain_params, global_max2d, false},
    {"GlobalMaxPooling1D", plain_params, global_max1d, false},
    {"ZeroPadding2D", padding_params, zero_padding, false},
    {"UpSampling2D", up_params, up_sampling, false},
    {0}};
/* clang-format on */
W_LAYERS(conv_layers);
