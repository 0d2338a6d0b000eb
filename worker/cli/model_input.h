/* model_input.h: the inputs that `quern model run` and `quern model bench` give to a model. */
#ifndef QUERN_WORKER_CLI_MODEL_INPUT_H
#define QUERN_WORKER_CLI_MODEL_INPUT_H

#include "ops/ops.h"
#include "worker/cli/cli.h"
#include "worker/pipeline/value.h"

/* The file of M: a name in the store (NULL: the configured one), an .onnx file or a model folder.
 * Returns W_EXIT_OK or what w_report gave. */
int w__model_file(const char *m, const char *store, char *dst, size_t dst_bytes);

/* What precision "auto" is for M on this machine, worked out on its golden samples; any other one
 * is itself. A model that cannot be loaded is left to the caller: "fp32". */
const char *w__model_precision(const char *m, const char *store, const char *precision);

/* Reads `NAME=FILE.npy` (or `FILE.npy` for a model with one input) into inputs[i] of model m; data
 * lies in the arena. Returns W_EXIT_OK or what w_report gave. */
int w__model_read_inputs(const struct op_model *m, const struct w_list *given,
                         struct w_arena *arena, struct op_tensor *inputs);

/* Fills the inputs that are still of dtype OP_UNDEFINED and not optional with random values of
 * their type: numbers in [0, 1), integers 0 and 1. Dimension 0, where symbolic, is the batch, other
 * symbolic ones are 1, unless `shapes` (NAME=1x3x224x224) says otherwise. */
int w__model_random_inputs(const struct op_model *m, const struct w_list *shapes, int64_t batch,
                           struct w_arena *arena, struct op_tensor *inputs);

#endif
