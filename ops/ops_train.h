/* ops_train.h: building, training and writing models: the second half of the engine's public manual (ops.h is the first).
 *
 *   struct op_builder *b = op_builder_create(17);
 *   op_builder_input(b, "x", OP_F32, 2, (int64_t[]){-1, 64}, (const char *[]){"N", NULL});
 *   op_builder_weight(b, "w", &tensor);                        // copied; named initializer
 *   op_builder_node(b, "MatMul", (const char *[]){"x", "w"}, 2, (const char *[]){"y"}, 1, NULL, 0);
 *   op_builder_output(b, "y");
 *   struct op_model *m = op_builder_finish(b, &err);           // frees b
 *   op_model_save(m, "model.onnx", keys, values, n, &err);     // to a temporary file, fsynced, renamed
 *
 *   struct op_trainer *t = op_trainer_create(m, &options, &err);
 *   for (…) op_trainer_step(t, inputs, targets, n_targets, weights, learning_rate, &result, &err);
 *   op_trainer_model(t, &err)                                   // the inference model with the weights of now
 *
 * HOW. The gradient of a graph is a graph: the trainer turns the model's trainable initializers into inputs, puts the training
 * form of Dropout and BatchNormalization in, adds the loss as nodes, and asks each operator's `grad` for the nodes of its
 * backward pass. One session runs the whole; the optimiser then updates the weights in place. So training uses the planner, the
 * arena and the kernels of inference, and peak memory is known before the first step.
 *
 * The same bits: for one ISA level a run depends on the model, the data in their order, the options and the seed; not on threads,
 * and not on being saved and loaded in between.
 *
 * Threads: a trainer belongs to one thread at a time (its session has n_threads of its own). */
#ifndef QUERN_OPS_TRAIN_H
#define QUERN_OPS_TRAIN_H

#include "ops/ops.h"

/* --- building a graph -------------------------------------------------------------------------- */

enum op_arg_kind { OP_ARG_INT, OP_ARG_FLOAT, OP_ARG_STRING, OP_ARG_INTS, OP_ARG_FLOATS };

/* An attribute of a node. Pointers are copied from during the call. */
struct op_arg {
    const char *name;
    enum op_arg_kind kind;
    int64_t i;
    float f;
    const char *s;
    const int64_t *ints;
    const float *floats;
    int n; /* of ints, floats */
};

struct op_builder;

/* An empty graph of that opset of ai.onnx. Errors stick: every later call does nothing, op_builder_finish reports the first. */
OP_API struct op_builder *op_builder_create(int opset);
/* The graph of a loaded model, to be extended (a new head): values keep their names. */
OP_API struct op_builder *op_builder_from(struct op_model *m, struct op_error *err);
/* dims of -1 are symbolic; symbols (may be NULL) gives their names. */
OP_API void op_builder_input(struct op_builder *b, const char *name, enum op_type dtype, int rank, const int64_t *dims, const char *const *symbols);
OP_API void op_builder_weight(struct op_builder *b, const char *name, const struct op_tensor *value); /* an initializer; copied */
/* A node of ai.onnx; "" in inputs: absent. Inputs must exist already. */
OP_API void op_builder_node(struct op_builder *b, const char *op_type, const char *const *inputs, int n_inputs, const char *const *outputs, int n_outputs,
                            const struct op_arg *args, int n_args);
OP_API void op_builder_output(struct op_builder *b, const char *name);
OP_API void op_builder_clear_outputs(struct op_builder *b); /* before a new head */
/* The dimensions of a value as far as they are known (-1: not); its rank, or -1 if there is no such value or nothing is known. */
OP_API int op_builder_shape(struct op_builder *b, const char *name, enum op_type *dtype, int64_t *dims);
OP_API void op_builder_destroy(struct op_builder *b); /* accepts NULL */
/* The model, loaded as from a file. Frees b, also on error (NULL). */
OP_API struct op_model *op_builder_finish(struct op_builder *b, struct op_error *err);

/* Writes ONNX as it was loaded or built (not the optimised graph), with metadata_props, to path.part, fsync, rename. */
OP_API enum op_status op_model_save(struct op_model *m, const char *path, const char *const *keys, const char *const *values, int n, struct op_error *err);

/* --- training ---------------------------------------------------------------------------------- */

/* What a loss compares the output with. */
enum op_target {
    OP_TARGET_DENSE,   /* f32 of the output's shape */
    OP_TARGET_CLASSES, /* class numbers: i64 of the output's shape without the last dimension */
    OP_TARGET_LABELS,  /* i64[N, L]: a sequence of labels, padded with negative numbers (ctc) */
    OP_TARGET_ROWS,    /* i64[N]: the class of a row (triplet) */
    OP_TARGET_NONE     /* i64[N], not looked at (bpr) */
};

/* A loss on one output. Where the output ends in Softmax or Sigmoid and the loss is a crossentropy, both are taken together
 * from the logits. The mean over rows (and further dimensions), weighted by the sample weights. */
struct op_loss {
    const char *name; /* mean_squared_error, mean_absolute_error, huber, binary_crossentropy, categorical_crossentropy,
                       * sparse_categorical_crossentropy, categorical_focal_crossentropy, focal, hinge, kl_divergence, cosine_similarity,
                       * ctc (of f32[N, steps, classes]), triplet, bpr … (op_loss_name) */
    const char *output;     /* NULL: the model's only or first output */
    bool from_logits;
    float label_smoothing, delta, gamma, weight; /* delta: of huber (0: 1); gamma: of focal (0: 2); weight of this loss in the sum (0: 1) */
    float alpha, margin;    /* of categorical focal (0: 0.25); of triplet (0: 1) */
    int64_t blank;          /* of ctc */
    int64_t ignore_index;   /* of sparse targets; negative: none */
    const float *class_weights; /* by class, n_classes of them; NULL: 1 */
    int n_classes;
};

/* Names of losses and optimisers, NULL past the last: for messages. */
OP_API const char *op_loss_name(size_t i);
OP_API const char *op_optimizer_name(size_t i);
OP_API enum op_target op_loss_target(const char *name);
OP_API bool op_loss_is_sparse(const char *name); /* OP_TARGET_CLASSES */

struct op_optimizer {
    const char *name; /* sgd, rmsprop, adagrad, adam, adamw, nadam, lion, lamb, adafactor */
    /* Defaults as in Keras, where a field is NaN. */
    float learning_rate, momentum, rho, beta_1, beta_2, epsilon, weight_decay;
    bool nesterov, amsgrad;
    float clip_norm, clip_value, global_clip_norm; /* 0: none */
    float ema;                                     /* of the weights; 0: none */
    int accumulate;                                /* gradients of so many steps before an update; 0: 1 */
    bool dense; /* also where a weight is looked up by rows (an embedding): see below */
};
/* ROWS. A weight that one Gather along dimension 0 looks up (an embedding) gets a gradient for the rows of the batch only, and only these
 * rows and their states are updated: the lazy form. For sgd without momentum and adagrad that is the same as the dense form; with moments
 * (adam, rmsprop, momentum …) a row's moments stand still while it is not looked up, and so do its decay and regularisation. dense: true
 * is the other form; lamb, adafactor, accumulation and an average of the weights always take it. */
OP_API void op_optimizer_defaults(struct op_optimizer *o, const char *name); /* every number NaN or 0 */

/* l1 · Σ|w| + l2 · Σw² of the weights whose names fit the pattern (fnmatch). */
struct op_regularizer {
    const char *weights;
    float l1, l2;
};

/* What a training step puts in the place of a Dropout (which is nothing at inference): value is the Dropout's output. */
struct op_noise {
    const char *value;
    const char *kind; /* "add" n · amount, "multiply" by 1 + n · amount (n normal), "channels": whole channels dropped with chance amount */
    float amount;
    int axis; /* of the channels */
};

/* Adds the mean over the rows of l1 · Σ|v| + l2 · Σv² of a value of `elements` elements a row to the loss of a step. */
struct op_activity {
    const char *value;
    float l1, l2;
    int64_t elements;
};

struct op_trainer_options {
    const struct op_loss *losses;
    int n_losses;
    struct op_optimizer optimizer;
    const char *const *freeze; /* patterns of initializer names (fnmatch) that are not trained */
    int n_freeze;
    const struct op_regularizer *regularizers; /* the first whose pattern fits a trained weight adds to the loss */
    int n_regularizers;
    const struct op_noise *noises;
    int n_noises;
    const struct op_activity *activities;
    int n_activities;
    uint64_t seed;
    int n_threads;
    const volatile bool *cancel;
    void (*on_node)(void *user, const char *op_type, const char *name, uint64_t ns, double flops, double bytes); /* of a step; NULL: none */
    void *user;
};

struct op_trainer;

/* Finds every operator on the way from a trained weight to a loss; OP_UNSUPPORTED names the first without a gradient and its node. */
OP_API struct op_trainer *op_trainer_create(struct op_model *m, const struct op_trainer_options *options, struct op_error *err);
OP_API void op_trainer_destroy(struct op_trainer *t); /* accepts NULL */

struct op_step_result {
    double loss;                     /* of this batch, regularisers included */
    double gradient_norm;            /* before clipping */
    const struct op_tensor *outputs; /* the model's outputs for this batch (training form), until the next call */
};
/* One batch: forward, backward, update. inputs as in op_session_run; targets[k] belongs to loss k; sample_weights f32[N] or NULL.
 * learning_rate NaN: the optimiser's own. A loss that is not finite leaves the weights as they were and returns OP_BAD_VALUE. */
OP_API enum op_status op_trainer_step(struct op_trainer *t, const struct op_tensor *inputs, int n_inputs, const struct op_tensor *targets, int n_targets,
                                      const struct op_tensor *sample_weights, float learning_rate, struct op_step_result *step, struct op_error *err);
/* Inference form with the weights of now (those of the EMA where there is one): loss without regularisers, outputs. */
OP_API enum op_status op_trainer_evaluate(struct op_trainer *t, const struct op_tensor *inputs, int n_inputs, const struct op_tensor *targets, int n_targets,
                                          const struct op_tensor *sample_weights, struct op_step_result *step, struct op_error *err);
/* Memory of a step with these input shapes, and its floating-point operations, before anything runs. */
OP_API enum op_status op_trainer_plan(struct op_trainer *t, const struct op_tensor *inputs, int n_inputs, const struct op_tensor *targets, int n_targets,
                                      size_t *peak_bytes, double *flops, struct op_error *err);
OP_API int op_trainer_n_weights(const struct op_trainer *t);
/* Weight i: its name, whether it is trained, its tensor (borrowed: changes with each step). */
OP_API const char *op_trainer_weight(const struct op_trainer *t, int i, bool *trained, const struct op_tensor **value);
OP_API uint64_t op_trainer_steps(const struct op_trainer *t);

/* The whole state (weights, optimiser, running statistics, random numbers, step) as one block from malloc; `extra` (the caller's: data
 * cursor, epoch, callbacks) goes into it and comes back. The block carries a SHA-256, a loader refuses any damage. */
OP_API void *op_trainer_save(struct op_trainer *t, const void *extra, size_t extra_bytes, size_t *n_bytes, struct op_error *err);
OP_API enum op_status op_trainer_load(struct op_trainer *t, const void *bytes, size_t n_bytes, void **extra, size_t *extra_bytes, struct op_error *err);
/* Copies of the trained weights, to go back to (restore_best_weights). */
OP_API void *op_trainer_snapshot(struct op_trainer *t, struct op_error *err); /* from malloc */
OP_API void op_trainer_restore(struct op_trainer *t, const void *snapshot);
/* A new model in inference form with the weights of now. */
OP_API struct op_model *op_trainer_model(struct op_trainer *t, struct op_error *err);

/* Fills a tensor's data by a Keras initialiser: zeros, ones, constant, glorot_uniform, glorot_normal, he_uniform, he_normal, lecun_uniform,
 * lecun_normal, random_normal, random_uniform, truncated_normal, orthogonal. fan_in, fan_out: of the layer. a: constant or standard
 * deviation or limit (NaN: Keras's). The numbers depend on the seed alone. False: no such name. */
OP_API bool op_initialize(struct op_tensor *t, const char *name, int64_t fan_in, int64_t fan_out, float a, uint64_t seed);

#endif
