/* layers.h: what the file of a family of layers sees. A layer is one row of a W_LAYERS table: its
 * Keras name, the table of its parameters, and the function that appends its nodes.
 *
 * The graph under construction has a present value, its flow: the name, and the shape of one row as
 * Keras would have it (channels last). Convolutions and pools of ONNX want channels first, so a
 * flow may lie `first` in memory while its dims stay Keras's; layers ask for the order that they
 * need, and a transposition is put in only where it changes. Internal to the folder. */
#ifndef QUERN_WORKER_TRAIN_LAYERS_H
#define QUERN_WORKER_TRAIN_LAYERS_H

#include "worker/train/train.h"

struct w_name {
    char s[W_TRAIN_NAME_MAX + 1];
};

struct w_flow {
    struct w_name value;
    enum op_type dtype;
    int rank;
    int64_t dims[OP_RANK_MAX];
    bool first; /* lies channels first */
    bool softmax, sigmoid; /* what the layer ended in */
    struct w_name mask;    /* f32[N, steps]: 1 where there is something, 0 where it pads; "": all */
};

/* The parameters of all layers; each layer's table names those that it has. */
struct w_layer {
    char *name;
    json_t *inputs, *shape;
    bool trainable, use_bias, center, scale_gamma, return_sequences, go_backwards, reset_after,
        unit_forget_bias, mask_zero, causal, normalize;
    int32_t units, filters, depth_multiplier, input_dim, output_dim, groups, num_heads, key_dim,
        ff_dim, padding, interpolation, axis, merge_mode, maxlen;
    double l1, l2, stddev, rate, momentum, epsilon, alpha, negative_slope, max_value, scale, offset;
    struct w_floats kernel_size, strides, dilation_rate, pool_size, size, padding_sizes, cropping;
    char *activation, *recurrent_activation;
    json_t *kernel_initializer, *bias_initializer, *kernel_regularizer, *target_shape,
        *embeddings_initializer, *recurrent_initializer, *pointwise_initializer, *layer,
        *bias_regularizer, *recurrent_regularizer, *embeddings_regularizer, *pointwise_regularizer,
        *activity_regularizer;
};

struct w_graph {
    struct op_builder *builder;
    struct w_train_model *model;
    uint64_t seed;
    struct w_flow flow;              /* what the next layer is given */
    const struct w_flow *all_inputs; /* of a layer that joins several */
    int n_inputs;
    const struct w_layer *layer;
    char name[W_TRAIN_NAME_MAX - 40], where[160];
    int n_nodes; /* of this layer */
    struct w_error *err;
};

typedef bool w_layer_fn(struct w_graph *g, const struct w_layer *l);

struct w_layer_desc {
    const char *name;
    const struct w_param *params;
    w_layer_fn *build;
    bool joins; /* takes several inputs */
};

/* A table that ends with a row without a name. */
#define W_LAYERS(table)                                                                            \
    __attribute__((                                                                                \
        used,                                                                                      \
        section("quern_layers"))) static const struct w_layer_desc *const w__registered_##table =  \
        table

const struct w_layer_desc *w__layer_find(const char *name);

enum { W_PADDING_VALID, W_PADDING_SAME, W_PADDING_CAUSAL };

/* --- for build functions -----------------------------------------------------------------------
 */

/* Fails with the layer's place and name in front. */
bool w__layer_fail(struct w_graph *g, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
/* Appends a node; the name of its output. */
struct w_name w__node(struct w_graph *g, const char *op, const char *const *inputs, int n,
                      const struct op_arg *args, int n_args);
#define W_NODE1(g, op, a, ...)                                                                     \
    w__node(g, op, (const char *[]){(a).s}, 1, (struct op_arg[]){__VA_ARGS__},                     \
            sizeof((struct op_arg[]){__VA_ARGS__}) / sizeof(struct op_arg))
#define W_NODE2(g, op, a, b) w__node(g, op, (const char *[]){(a).s, (b).s}, 2, NULL, 0)
#define W_INT(key, value)                                                                          \
    { .name = key, .kind = OP_ARG_INT, .i = value }
#define W_FLOAT(key, value)                                                                        \
    { .name = key, .kind = OP_ARG_FLOAT, .f = value }
#define W_STRING(key, value)                                                                       \
    { .name = key, .kind = OP_ARG_STRING, .s = value }
#define W_INTS(key, values, count)                                                                 \
    { .name = key, .kind = OP_ARG_INTS, .ints = values, .n = count }

/* A weight "<layer>/<name>" filled by an initialiser (json NULL: deflt). */
bool w__weight(struct w_graph *g, const char *name, int rank, const int64_t *dims, json_t *json,
               const char *deflt, int64_t fan_in, int64_t fan_out, struct w_name *dst);
/* A constant: i64[n]; a scalar f32. */
bool w__ints(struct w_graph *g, const char *name, int n, const int64_t *values, struct w_name *dst);
bool w__scalar(struct w_graph *g, const char *name, float value, struct w_name *dst);
/* A named f32 weight with these values, not trained. */
bool w__frozen(struct w_graph *g, const char *name, int64_t n, const float *values,
               struct w_name *dst);
bool w__freeze(struct w_graph *g, const char *pattern);
void w__transpose(struct w_graph *g, int n, const int64_t *perm);
bool w__reshape(struct w_graph *g, const char *name, int n, const int64_t *dims); /* 0: as it was */
void w__channels_first(struct w_graph *g);
void w__channels_last(struct w_graph *g);
/* The regularisers of kernel and bias. */
bool w__regularize_both(struct w_graph *g, const struct w_layer *l);
/* A value that training disturbs (struct op_noise) and inference leaves as it is. */
bool w__noise(struct w_graph *g, const char *kind, double amount, int axis);
/* Its penalty is added to the loss of a step; json as that of w__regularize. */
bool w__activity(struct w_graph *g, double l1, double l2);
bool w__activity_of(struct w_graph *g, const struct w_layer *l); /* activity_regularizer */
/* Rank of a row must be this. */
bool w__rank_is(struct w_graph *g, int rank, const char *layout);
/* The last dimension to length 1. */
bool w__unit_norm(struct w_graph *g);
bool w__activate(struct w_graph *g, const char *name);
const char *w__activation_op(const char *name); /* of a recurrent layer: "Tanh"; NULL: none */
/* json: of the layer's key; weights: a pattern of the names behind "<layer>/". */
bool w__regularize(struct w_graph *g, json_t *json, const char *key, const char *weights);
/* floats as n whole numbers from 1 (one number stands for all; none: deflt). */
bool w__whole(struct w_graph *g, const char *what, const struct w_floats *f, int n, int64_t deflt,
              int64_t *dst);
/* Runs a nested layer of JSON in place (Bidirectional, TimeDistributed). */
bool w__layer_read(json_t *json, const struct w_layer_desc **desc, struct w_layer *dst,
                   const char *where, struct w_error *err);
void w__layer_free(const struct w_layer_desc *desc, struct w_layer *l);
bool w__dense(struct w_graph *g, const char *name, int64_t units, bool use_bias,
              const struct w_layer *l);

/* --- parameter tables --------------------------------------------------------------------------
 */

/* clang-format off */
#define W_AT(field) offsetof(struct w_layer, field)
#define W_P_COMMON \
    {.name = "name", .kind = W_PARAM_TEXT, .offset = W_AT(name)}, \
    {.name = "inputs", .kind = W_PARAM_JSON, .offset = W_AT(inputs), .help = "names of layers before"}, \
    {.name = "input_shape", .kind = W_PARAM_JSON, .offset = W_AT(shape)}, \
    {.name = "trainable", .kind = W_PARAM_BOOL, .offset = W_AT(trainable), .deflt = 1}
#define W_P_WHOLE(key, field, least, dflt) {.name = key, .kind = W_PARAM_INT, .offset = W_AT(field), .min = least, .max = 1 << 24, .deflt = dflt}
#define W_P_NEEDED(key, field, text) {.name = key, .kind = W_PARAM_INT, .offset = W_AT(field), .min = 1, .max = 1 << 24, .required = true, .help = text}
#define W_P_SIZES(key, field) {.name = key, .kind = W_PARAM_FLOATS, .offset = W_AT(field), .min = 1, .max = 65536}
#define W_P_JSON(key, field) {.name = key, .kind = W_PARAM_JSON, .offset = W_AT(field)}
#define W_P_BOOL(key, field, dflt) {.name = key, .kind = W_PARAM_BOOL, .offset = W_AT(field), .deflt = dflt}
#define W_P_TEXT(key, field) {.name = key, .kind = W_PARAM_TEXT, .offset = W_AT(field)}
#define W_P_NUMBER(key, field, least, most, dflt) {.name = key, .kind = W_PARAM_DOUBLE, .offset = W_AT(field), .min = least, .max = most, .deflt = dflt}
#define W_P_PADDING {.name = "padding", .kind = W_PARAM_CHOICE, .offset = W_AT(padding), .choices = "valid same"}
#define W_P_WEIGHTS \
    W_P_TEXT("activation", activation), W_P_BOOL("use_bias", use_bias, 1), \
    W_P_JSON("kernel_initializer", kernel_initializer), W_P_JSON("bias_initializer", bias_initializer), \
    W_P_JSON("kernel_regularizer", kernel_regularizer), W_P_JSON("bias_regularizer", bias_regularizer), \
    W_P_JSON("activity_regularizer", activity_regularizer)
/* clang-format on */

#endif
