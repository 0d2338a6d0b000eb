/* ml_tree.h: a forest of decision trees, as the operators TreeEnsembleClassifier, TreeEnsembleRegressor (ml_tree.c)
 * and TreeEnsemble (ml_tree_ensemble.c) read it into memory. Each prepares it from its own attributes; infer and run
 * are the same. Internal to ops/op/. */
#ifndef QUERN_OP_ML_TREE_H
#define QUERN_OP_ML_TREE_H

#include "ops/op/ml.h"

enum mode { LEQ, LT, GTE, GT, EQ, NEQ, LEAF, MEMBER };
enum aggregate { SUM, AVERAGE, MIN, MAX };

struct tree_node {
    int64_t tree, id; /* as in the model */
    double value;
    int64_t feature;
    int64_t yes, no;              /* children as ids, then as indices */
    int64_t n_weights, weight_at; /* of a leaf */
    enum mode mode;
    bool missing_yes, is_child;
    int64_t member_at, n_members; /* of MEMBER: its set in forest.members */
};

struct tree_weight {
    int64_t node, target;
    double value;
};

struct forest {
    int64_t n_nodes, n_weights, n_roots, n_targets,
        features_min; /* features_min: one more than the largest feature id */
    struct tree_node *nodes;
    struct tree_weight *weights;
    int64_t *roots;
    double *members;
    struct ml_list base;
    struct ml_labels labels; /* of a classifier */
    enum ml_transform transform;
    enum aggregate aggregate;
    bool one_score, all_positive, keeps_type; /* keeps_type: the scores are of the input's type, else f32 */
};

void op__forest_release(void *state);
enum op_status op__forest_infer(struct op_ctx *ctx);
size_t op__forest_scratch(const struct op_ctx *ctx);
enum op_status op__forest_run(struct op_ctx *ctx);

#endif
