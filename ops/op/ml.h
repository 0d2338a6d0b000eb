/* ml.h: what the operators of ai.onnx.ml share: rows of features, class labels, transforms of
 * scores. Internal to ops/op/. */
#ifndef QUERN_OP_ML_H
#define QUERN_OP_ML_H

#include "ops/op.h"

enum ml_transform { ML_NONE, ML_SOFTMAX, ML_LOGISTIC, ML_SOFTMAX_ZERO, ML_PROBIT };

/* Labels of a classifier: n of strings or of integers. They belong to the node's attributes. */
struct ml_labels {
    int64_t n;
    const struct op_string *strings;
    const int64_t *ints;
};

/* The node's `post_transform`. */
enum op_status op__ml_transform_parse(const struct op_node *n, struct op_error *err,
                                      enum ml_transform *dst);
/* scores[n] in place. SOFTMAX_ZERO leaves zeros out, PROBIT is √2 erf⁻¹(2p - 1). */
void op__ml_transform(enum ml_transform transform, double *scores, int64_t n);
/* The scores of a classifier of two classes that has one score: scores[1] is for the second class.
 * By probability the score is that of the second class out of 1; else it is the distance from the
 * boundary. */
void op__ml_two_scores(enum ml_transform transform, bool by_probability, double *scores);

/* The attributes `ints_name` or `strings_name`; exactly one of them must be there. */
enum op_status op__ml_labels_parse(const struct op_node *n, struct op_error *err,
                                   const char *ints_name, const char *strings_name,
                                   struct ml_labels *dst);
void op__ml_label_store(const struct ml_labels *labels, int64_t label, struct op_tensor *dst,
                        int64_t i);
static inline enum op_type ml_label_type(const struct ml_labels *labels) {
    return labels->strings ? OP_STRING : OP_I64;
}

/* Input 0 as (rows, features): of rank 2, or rank 1 as one row. f32, f64, i32 or i64. */
enum op_status op__ml_rows(const struct op_ctx *ctx, int64_t *rows, int64_t *features);

/* Kinds of numbers as a list attribute: floats, or a tensor "<name>_as_tensor" of f32 or f64.
 * Element i. */
struct ml_list {
    int64_t n;
    const float *floats;
    const struct op_tensor *tensor;
};
struct ml_list op__ml_list(const struct op_node *n, const char *name);
double op__ml_list_at(const struct ml_list *list, int64_t i);

#endif
