/* ml_tree_ensemble.c: TreeEnsemble of ai.onnx.ml, version 5, which took the place of the classifier and the regressor.
 *
 * Inner nodes and leaves are separate lists; a flag beside each child says into which of the two its number leads. Here
 * they become one array, the leaves behind the nodes, which is the form that ml_tree.c walks. A leaf has one target and
 * one weight. A node may test whether the feature is in a set: membership_values holds the sets of all such nodes in
 * their order, a NaN behind each. */
#include "ops/op/ml_tree.h"
#include "ops/op/nn.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static enum op_status bad(struct op_prepare *p, const char *what) {
    return op__node_fail(p->err, p->node, OP_BAD_MODEL, "%s", what);
}

struct lists {
    int64_t n_nodes, n_leaves;
    const int64_t *features, *yes, *no, *yes_leaf, *no_leaf, *missing, *targets;
    const struct op_tensor *modes, *splits, *weights;
};

static enum op_status read_lists(struct op_prepare *p, struct lists *l) {
    const struct op_node *n = p->node;
    int64_t n_yes, n_no, n_yes_leaf, n_no_leaf, n_missing;
    l->features = op__attr_ints(n, "nodes_featureids", &l->n_nodes);
    l->yes = op__attr_ints(n, "nodes_truenodeids", &n_yes);
    l->no = op__attr_ints(n, "nodes_falsenodeids", &n_no);
    l->yes_leaf = op__attr_ints(n, "nodes_trueleafs", &n_yes_leaf);
    l->no_leaf = op__attr_ints(n, "nodes_falseleafs", &n_no_leaf);
    l->missing = op__attr_ints(n, "nodes_missing_value_tracks_true", &n_missing);
    l->targets = op__attr_ints(n, "leaf_targetids", &l->n_leaves);
    l->modes = op__attr_tensor(n, "nodes_modes");
    l->splits = op__attr_tensor(n, "nodes_splits");
    l->weights = op__attr_tensor(n, "leaf_weights");
    if (l->n_nodes < 1 || n_yes != l->n_nodes || n_no != l->n_nodes || n_yes_leaf != l->n_nodes || n_no_leaf != l->n_nodes ||
        (n_missing && n_missing != l->n_nodes))
        return bad(p, "the nodes_ lists are of different lengths, or one is missing");
    if (!l->modes || l->modes->dtype != OP_U8 || op_tensor_count(l->modes) != l->n_nodes)
        return bad(p, "nodes_modes must be u8, one for each node");
    if (!l->splits || !nn_is_float(l->splits->dtype) || op_tensor_count(l->splits) != l->n_nodes)
        return bad(p, "nodes_splits must be floats, one for each node");
    if (l->n_leaves < 1 || !l->weights || !nn_is_float(l->weights->dtype) || op_tensor_count(l->weights) != l->n_leaves)
        return bad(p, "leaf_targetids and leaf_weights must be of one length and not empty");
    return OP_OK;
}

/* A child's place in the one array; -1 if it leads nowhere. */
static int64_t child(const struct lists *l, int64_t id, bool leaf) {
    if (id < 0 || id >= (leaf ? l->n_leaves : l->n_nodes)) return -1;
    return leaf ? l->n_nodes + id : id;
}

static enum op_status fill_nodes(struct op_prepare *p, struct forest *f, const struct lists *l) {
    static const enum mode modes[] = {LEQ, LT, GTE, GT, EQ, NEQ, MEMBER};
    for (int64_t i = 0; i < l->n_nodes; i++) {
        const uint8_t mode = ((const uint8_t *)l->modes->data)[i];
        const int64_t yes = child(l, l->yes[i], l->yes_leaf[i] != 0), no = child(l, l->no[i], l->no_leaf[i] != 0);
        if (mode >= sizeof modes / sizeof *modes) return op__node_fail(p->err, p->node, OP_BAD_VALUE, "nodes_modes has %d, 0 to 6 exist", mode);
        if (yes < 0 || no < 0) return op__node_fail(p->err, p->node, OP_BAD_MODEL, "node %lld leads to a node that is not there", (long long)i);
        if (l->features[i] < 0 || l->features[i] == INT64_MAX)
            return op__node_fail(p->err, p->node, OP_BAD_VALUE, "nodes_featureids has %lld", (long long)l->features[i]);
        f->nodes[i] = (struct tree_node){.id = i, .value = nn_load(l->splits, i), .feature = l->features[i], .yes = yes, .no = no, .mode = modes[mode],
                                         .missing_yes = l->missing && l->missing[i]};
        if (l->features[i] >= f->features_min) f->features_min = l->features[i] + 1;
    }
    for (int64_t i = 0; i < l->n_leaves; i++) {
        if (l->targets[i] < 0 || l->targets[i] >= f->n_targets)
            return op__node_fail(p->err, p->node, OP_BAD_VALUE, "leaf_targetids has %lld, there are %lld targets", (long long)l->targets[i],
                                 (long long)f->n_targets);
        f->nodes[l->n_nodes + i] = (struct tree_node){.id = i, .mode = LEAF, .n_weights = 1, .weight_at = i};
        f->weights[i] = (struct tree_weight){l->n_nodes + i, l->targets[i], nn_load(l->weights, i)};
    }
    return OP_OK;
}

static enum op_status fill_members(struct op_prepare *p, struct forest *f, int64_t n_nodes) {
    const struct op_tensor *t = op__attr_tensor(p->node, "membership_values");
    const int64_t n = t && nn_is_float(t->dtype) ? op_tensor_count(t) : 0;
    int64_t at = 0;
    f->members = calloc((size_t)n + 1, sizeof *f->members);
    if (!f->members) return op__node_fail(p->err, p->node, OP_NOMEM, "no memory");
    p->packed_bytes += (size_t)n * sizeof *f->members;
    for (int64_t i = 0; i < n; i++) f->members[i] = nn_load(t, i);
    for (int64_t i = 0; i < n_nodes; i++) {
        if (f->nodes[i].mode != MEMBER) continue;
        f->nodes[i].member_at = at;
        while (at < n && !isnan(f->members[at])) at++;
        if (at == n) return bad(p, "membership_values has fewer sets than nodes ask for, or no NaN behind the last");
        f->nodes[i].n_members = at++ - f->nodes[i].member_at;
    }
    return OP_OK;
}

static enum op_status prepare(struct op_prepare *p) {
    static const enum aggregate aggregates[] = {AVERAGE, SUM, MIN, MAX};
    static const enum ml_transform transforms[] = {ML_NONE, ML_SOFTMAX, ML_LOGISTIC, ML_SOFTMAX_ZERO, ML_PROBIT};
    const int64_t aggregate = op__attr_int(p->node, "aggregate_function", 1), transform = op__attr_int(p->node, "post_transform", 0);
    struct forest *f = calloc(1, sizeof *f);
    struct lists l;
    if (!f) return op__node_fail(p->err, p->node, OP_NOMEM, "no memory");
    p->node->state = f;
    f->n_targets = op__attr_int(p->node, "n_targets", 1);
    if (aggregate < 0 || aggregate > 3 || transform < 0 || transform > 4 || f->n_targets < 1 || f->n_targets > 1 << 20)
        return op__node_fail(p->err, p->node, OP_BAD_VALUE, "aggregate_function is %lld, post_transform %lld, n_targets %lld", (long long)aggregate,
                             (long long)transform, (long long)f->n_targets);
    enum op_status st = read_lists(p, &l);
    if (st != OP_OK) return st;
    const int64_t *roots = op__attr_ints(p->node, "tree_roots", &f->n_roots);
    f->n_nodes = l.n_nodes + l.n_leaves;
    f->n_weights = l.n_leaves;
    f->nodes = calloc((size_t)f->n_nodes, sizeof *f->nodes);
    f->weights = calloc((size_t)f->n_weights, sizeof *f->weights);
    f->roots = calloc((size_t)f->n_roots + 1, sizeof *f->roots);
    if (!f->nodes || !f->weights || !f->roots) return op__node_fail(p->err, p->node, OP_NOMEM, "no memory");
    p->packed_bytes += (size_t)f->n_nodes * sizeof *f->nodes + (size_t)f->n_weights * sizeof *f->weights + (size_t)f->n_roots * sizeof *f->roots;
    if (f->n_roots < 1) return bad(p, "tree_roots is empty");
    for (int64_t i = 0; i < f->n_roots; i++) {
        if (roots[i] < 0 || roots[i] >= l.n_nodes) return op__node_fail(p->err, p->node, OP_BAD_VALUE, "tree_roots has %lld", (long long)roots[i]);
        f->roots[i] = roots[i];
    }
    f->aggregate = aggregates[aggregate];
    f->transform = transforms[transform];
    f->keeps_type = true;
    st = fill_nodes(p, f, &l);
    return st == OP_OK ? fill_members(p, f, l.n_nodes) : st;
}

static const struct op_desc tree_ensemble = {.name = "TreeEnsemble",
                                             .domain = "ai.onnx.ml",
                                             .since = 5,
                                             .in_min = 1,
                                             .in_max = 1,
                                             .out_min = 1,
                                             .out_max = 1,
                                             .prepare = prepare,
                                             .release = op__forest_release,
                                             .infer = op__forest_infer,
                                             .scratch = op__forest_scratch,
                                             .run = op__forest_run};
OP_REGISTER(tree_ensemble);
