/* ml_tree.c: TreeEnsembleClassifier and TreeEnsembleRegressor of ai.onnx.ml (versions 1 and 3), and
 * the run of all forests.
 *
 * The model gives nodes as parallel lists keyed by (tree, node). prepare turns them into one array
 * in which children are indices, so that a row walks down with one comparison a level; the weights
 * of a leaf lie side by side. Rows are independent and are divided among threads. A walk of more
 * steps than there are nodes is a cycle, which is an error of the model: prepare follows no edges,
 * so run counts. Comparisons are made in f32 for f32 input and thresholds, else in f64.
 *
 * A classifier of two classes whose weights all go to one class has one score. If all weights are
 * positive it is a probability, decided at 0.5, else a distance, decided at 0. That is how ONNX
 * Runtime reads the specification, and what converters write for. */
#include "ops/op/elementwise.h"
#include "ops/op/ml_tree.h"
#include "ops/op/nn.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static const char *const mode_names[] = {"BRANCH_LEQ", "BRANCH_LT",  "BRANCH_GTE", "BRANCH_GT",
                                         "BRANCH_EQ",  "BRANCH_NEQ", "LEAF"};

/* --- prepare -----------------------------------------------------------------------------------
 */

void op__forest_release(void *state) {
    struct forest *f = state;
    if (!f) return;
    free(f->nodes);
    free(f->weights);
    free(f->roots);
    free(f->members);
    free(f);
}

static int by_key(const void *a, const void *b) {
    const struct tree_node *x = a, *y = b;
    if (x->tree != y->tree) return x->tree < y->tree ? -1 : 1;
    return (x->id > y->id) - (x->id < y->id);
}

static int64_t find_node(const struct forest *f, int64_t tree, int64_t id) {
    const struct tree_node key = {.tree = tree, .id = id},
                           *hit = bsearch(&key, f->nodes, (size_t)f->n_nodes, sizeof key, by_key);
    return hit ? hit - f->nodes : -1;
}

static int by_node(const void *a, const void *b) {
    const struct tree_weight *x = a, *y = b;
    return (x->node > y->node) - (x->node < y->node);
}

static enum op_status read_nodes(struct op_prepare *p, struct forest *f) {
    const struct op_node *n = p->node;
    const struct op_attr *modes = op__attr(n, "nodes_modes");
    const struct ml_list values = op__ml_list(n, "nodes_values");
    int64_t n_trees, n_ids, n_features, n_yes, n_no, n_missing;
    const int64_t *trees = op__attr_ints(n, "nodes_treeids", &n_trees),
                  *ids = op__attr_ints(n, "nodes_nodeids", &n_ids);
    const int64_t *features = op__attr_ints(n, "nodes_featureids", &n_features),
                  *yes = op__attr_ints(n, "nodes_truenodeids", &n_yes);
    const int64_t *no = op__attr_ints(n, "nodes_falsenodeids", &n_no),
                  *missing = op__attr_ints(n, "nodes_missing_value_tracks_true", &n_missing);
    const int64_t count = n_trees;
    if (count < 1 || n_ids != count || n_features != count || n_yes != count || n_no != count ||
        values.n != count || !modes || modes->kind != OP_ATTR_STRINGS || modes->n != count ||
        (n_missing && n_missing != count))
        return op__node_fail(p->err, n, OP_BAD_MODEL,
                             "the nodes_ lists are of different lengths, or one is missing");
    f->nodes = calloc((size_t)count, sizeof *f->nodes);
    f->roots = calloc((size_t)count, sizeof *f->roots);
    if (!f->nodes || !f->roots) return op__node_fail(p->err, n, OP_NOMEM, "no memory");
    f->n_nodes = count;
    p->packed_bytes += (size_t)count * (sizeof *f->nodes + sizeof *f->roots);
    for (int64_t i = 0; i < count; i++) {
        struct tree_node *t = &f->nodes[i];
        int mode = 0;
        const struct op_string name = modes->strings[i];
        while (mode <= LEAF && (strlen(mode_names[mode]) != name.len ||
                                memcmp(mode_names[mode], name.data, name.len)))
            mode++;
        if (mode > LEAF)
            return op__node_fail(p->err, n, OP_UNSUPPORTED, "nodes_modes has \"%.*s\"",
                                 name.len < 40 ? (int)name.len : 40, name.data);
        *t = (struct tree_node){.tree = trees[i],
                                .id = ids[i],
                                .value = op__ml_list_at(&values, i),
                                .feature = features[i],
                                .yes = yes[i],
                                .no = no[i],
                                .mode = (enum mode)mode,
                                .missing_yes = missing && missing[i]};
        if (mode == LEAF) continue;
        if (features[i] < 0 || features[i] == INT64_MAX)
            return op__node_fail(p->err, n, OP_BAD_VALUE, "nodes_featureids has %lld",
                                 (long long)features[i]);
        if (features[i] >= f->features_min) f->features_min = features[i] + 1;
    }
    qsort(f->nodes, (size_t)count, sizeof *f->nodes, by_key);
    for (int64_t i = 1; i < count; i++)
        if (by_key(&f->nodes[i - 1], &f->nodes[i]) == 0)
            return op__node_fail(p->err, n, OP_BAD_MODEL, "tree %lld has node %lld twice",
                                 (long long)f->nodes[i].tree, (long long)f->nodes[i].id);
    return OP_OK;
}

static enum op_status link_nodes(struct op_prepare *p, struct forest *f) {
    for (int64_t i = 0; i < f->n_nodes; i++) {
        struct tree_node *t = &f->nodes[i];
        if (t->mode == LEAF) continue;
        const int64_t yes = find_node(f, t->tree, t->yes), no = find_node(f, t->tree, t->no);
        if (yes < 0 || no < 0)
            return op__node_fail(p->err, p->node, OP_BAD_MODEL,
                                 "node %lld of tree %lld leads to a node that is not there",
                                 (long long)t->id, (long long)t->tree);
        t->yes = yes;
        t->no = no;
        f->nodes[yes].is_child = f->nodes[no].is_child = true;
    }
    for (int64_t i = 0; i < f->n_nodes; i++) {
        const struct tree_node *t = &f->nodes[i];
        const bool has_root = f->n_roots && f->nodes[f->roots[f->n_roots - 1]].tree == t->tree;
        if (!t->is_child && !has_root) f->roots[f->n_roots++] = i;
        const bool last = i + 1 == f->n_nodes || f->nodes[i + 1].tree != t->tree;
        if (last && (!f->n_roots || f->nodes[f->roots[f->n_roots - 1]].tree != t->tree))
            return op__node_fail(p->err, p->node, OP_BAD_MODEL, "tree %lld has no root",
                                 (long long)t->tree);
    }
    return OP_OK;
}

static enum op_status read_weights(struct op_prepare *p, struct forest *f, bool classifier) {
    const struct op_node *n = p->node;
    int64_t n_trees, n_nodes, n_targets;
    const int64_t *trees =
        op__attr_ints(n, classifier ? "class_treeids" : "target_treeids", &n_trees);
    const int64_t *nodes =
        op__attr_ints(n, classifier ? "class_nodeids" : "target_nodeids", &n_nodes);
    const int64_t *targets = op__attr_ints(n, classifier ? "class_ids" : "target_ids", &n_targets);
    const struct ml_list values = op__ml_list(n, classifier ? "class_weights" : "target_weights");
    if (n_trees < 1 || n_nodes != n_trees || n_targets != n_trees || values.n != n_trees)
        return op__node_fail(p->err, n, OP_BAD_MODEL,
                             "the lists of weights are of different lengths, or one is missing");
    f->weights = calloc((size_t)n_trees, sizeof *f->weights);
    if (!f->weights) return op__node_fail(p->err, n, OP_NOMEM, "no memory");
    f->n_weights = n_trees;
    p->packed_bytes += (size_t)n_trees * sizeof *f->weights;
    f->one_score = classifier && f->n_targets == 2;
    f->all_positive = true;
    for (int64_t i = 0; i < n_trees; i++) {
        const int64_t node = find_node(f, trees[i], nodes[i]);
        if (node < 0 || f->nodes[node].mode != LEAF || targets[i] < 0 || targets[i] >= f->n_targets)
            return op__node_fail(p->err, n, OP_BAD_MODEL,
                                 "weight %lld is for node %lld of tree %lld and target %lld of "
                                 "%lld, which is no leaf or no target",
                                 (long long)i, (long long)nodes[i], (long long)trees[i],
                                 (long long)targets[i], (long long)f->n_targets);
        f->weights[i] = (struct tree_weight){node, targets[i], op__ml_list_at(&values, i)};
        f->one_score = f->one_score && targets[i] == targets[0];
        f->all_positive = f->all_positive && f->weights[i].value >= 0;
    }
    qsort(f->weights, (size_t)n_trees, sizeof *f->weights, by_node);
    for (int64_t i = 0; i < n_trees; i++) {
        struct tree_node *leaf = &f->nodes[f->weights[i].node];
        if (leaf->n_weights++ == 0) leaf->weight_at = i;
        if (f->one_score) f->weights[i].target = 0;
    }
    return OP_OK;
}

static enum op_status forest_prepare(struct op_prepare *p) {
    struct forest *f = calloc(1, sizeof *f);
    const bool classifier = !strcmp(p->node->op_type, "TreeEnsembleClassifier");
    const char *aggregate = op__attr_string(p->node, "aggregate_function", "SUM");
    if (!f) return op__node_fail(p->err, p->node, OP_NOMEM, "no memory");
    p->node->state = f;
    enum op_status status = op__ml_transform_parse(p->node, p->err, &f->transform);
    if (status == OP_OK && classifier)
        status = op__ml_labels_parse(p->node, p->err, "classlabels_int64s", "classlabels_strings",
                                     &f->labels);
    if (status != OP_OK) return status;
    f->n_targets = classifier ? f->labels.n : op__attr_int(p->node, "n_targets", 1);
    if (f->n_targets < 1 || f->n_targets > 1 << 20)
        return op__node_fail(p->err, p->node, OP_BAD_VALUE, "n_targets is %lld",
                             (long long)f->n_targets);
    f->aggregate = !strcmp(aggregate, "AVERAGE") ? AVERAGE
                   : !strcmp(aggregate, "MIN")   ? MIN
                   : !strcmp(aggregate, "MAX")   ? MAX
                                                 : SUM;
    if (f->aggregate == SUM && strcmp(aggregate, "SUM"))
        return op__node_fail(p->err, p->node, OP_BAD_VALUE,
                             "aggregate_function is \"%s\", must be SUM, AVERAGE, MIN or MAX",
                             aggregate);
    f->base = op__ml_list(p->node, "base_values");
    if ((status = read_nodes(p, f)) != OP_OK || (status = link_nodes(p, f)) != OP_OK ||
        (status = read_weights(p, f, classifier)) != OP_OK)
        return status;
    if (f->base.n && f->base.n != f->n_targets && !(f->one_score && f->base.n == 1))
        return op__node_fail(p->err, p->node, OP_BAD_MODEL, "has %lld base_values for %lld targets",
                             (long long)f->base.n, (long long)f->n_targets);
    return OP_OK;
}

/* --- run ---------------------------------------------------------------------------------------
 */

enum op_status op__forest_infer(struct op_ctx *ctx) {
    const struct forest *f = ctx->state;
    int64_t rows, features;
    enum op_status status = op__ml_rows(ctx, &rows, &features);
    if (status != OP_OK) return status;
    if (features < f->features_min)
        return op__fail(ctx, OP_BAD_SHAPE,
                        "the input has %lld features, the trees ask for feature %lld",
                        (long long)features, (long long)f->features_min - 1);
    const int scores = f->labels.n ? 1 : 0;
    if (scores) op__set(ctx, 0, ml_label_type(&f->labels), 1, &rows);
    if (scores < ctx->n_out) op__set(ctx, scores, f->keeps_type ? ctx->in[0]->dtype : OP_F32, 2, (int64_t[]){rows, f->n_targets});
    return OP_OK;
}

size_t op__forest_scratch(const struct op_ctx *ctx) {
    const struct forest *f = ctx->state;
    return (size_t)op__n_threads(ctx) * 2 * (size_t)(f->n_targets < 2 ? 2 : f->n_targets) *
           sizeof(double);
}

/* The leaf of a row, -1 for a cycle. */
static int64_t walk(const struct forest *f, int64_t at, const struct op_tensor *x, int64_t row) {
    for (int64_t steps = 0; f->nodes[at].mode != LEAF; steps++) {
        const struct tree_node *t = &f->nodes[at];
        const double v = nn_load(x, row + t->feature), limit = t->value;
        bool yes = t->missing_yes && v != v;
        switch (t->mode) {
        case LEQ:
            yes |= v <= limit;
            break;
        case LT:
            yes |= v < limit;
            break;
        case GTE:
            yes |= v >= limit;
            break;
        case GT:
            yes |= v > limit;
            break;
        case EQ:
            yes |= v == limit;
            break;
        case NEQ:
            yes |= v != limit;
            break;
        case MEMBER:
            for (int64_t i = 0; i < t->n_members && !yes; i++) yes = v == f->members[t->member_at + i];
            break;
        case LEAF:
            break;
        }
        if (steps > f->n_nodes) return -1;
        at = yes ? t->yes : t->no;
    }
    return at;
}

/* Sums over the trees into scores, seen[i] counting the weights of target i. False for a cycle. */
static bool score_row(const struct forest *f, const struct op_tensor *x, int64_t row,
                      double *scores, double *seen) {
    for (int64_t i = 0; i < f->n_targets; i++) scores[i] = seen[i] = 0;
    for (int64_t r = 0; r < f->n_roots; r++) {
        const int64_t leaf = walk(f, f->roots[r], x, row);
        if (leaf < 0) return false;
        const struct tree_weight *w = f->weights + f->nodes[leaf].weight_at;
        for (int64_t i = 0; i < f->nodes[leaf].n_weights; i++) {
            double *s = &scores[w[i].target];
            const bool first = seen[w[i].target]++ == 0;
            if (f->aggregate == MIN)
                *s = first ? w[i].value : fmin(*s, w[i].value);
            else if (f->aggregate == MAX)
                *s = first ? w[i].value : fmax(*s, w[i].value);
            else
                *s += w[i].value;
        }
    }
    for (int64_t i = 0; i < f->n_targets; i++) {
        if (f->aggregate == AVERAGE) scores[i] /= (double)f->n_roots;
        if (f->base.n == f->n_targets && !f->one_score) scores[i] += op__ml_list_at(&f->base, i);
    }
    if (f->one_score && f->base.n) scores[0] += op__ml_list_at(&f->base, f->base.n - 1);
    return true;
}

struct forest_job {
    const struct op_ctx *ctx;
    int64_t rows, features, n_tasks;
    bool cycle; /* written by any task, always to true */
};

static void forest_task(void *arg, int64_t task) {
    struct forest_job *job = arg;
    const struct op_ctx *ctx = job->ctx;
    const struct forest *f = ctx->state;
    const int64_t width = f->n_targets < 2 ? 2 : f->n_targets,
                  each = (job->rows + job->n_tasks - 1) / job->n_tasks;
    double *scores = (double *)ctx->scratch + task * 2 * width, *seen = scores + width;
    struct op_tensor *labels = f->labels.n ? ctx->out[0] : NULL,
                     *out = nn_out(ctx, f->labels.n ? 1 : 0);
    for (int64_t row = task * each; row < (task + 1) * each && row < job->rows; row++) {
        int64_t best = 0;
        if (!score_row(f, ctx->in[0], row * job->features, scores, seen)) {
            __atomic_store_n(&job->cycle, true, __ATOMIC_RELAXED);
            return;
        }
        if (f->one_score) {
            best = scores[0] > (f->all_positive ? 0.5 : 0);
            op__ml_two_scores(f->transform, f->all_positive, scores);
        } else {
            for (int64_t i = 1; i < f->n_targets; i++)
                if (scores[i] > scores[best]) best = i;
            op__ml_transform(f->transform, scores, f->n_targets);
        }
        op__ml_label_store(&f->labels, best, labels, row);
        for (int64_t i = 0; out && i < f->n_targets; i++)
            nn_store(out, row * f->n_targets + i, scores[i]);
    }
}

enum op_status op__forest_run(struct op_ctx *ctx) {
    struct forest_job job = {.ctx = ctx, .n_tasks = op__n_threads(ctx)};
    enum op_status status = op__ml_rows(ctx, &job.rows, &job.features);
    if (status != OP_OK) return status;
    op__parallel(ctx, job.n_tasks, forest_task, &job);
    return job.cycle ? op__fail(ctx, OP_BAD_MODEL, "the nodes of a tree go round in a circle")
                     : OP_OK;
}

static const struct op_desc tree_classifier = {.name = "TreeEnsembleClassifier",
                                               .domain = "ai.onnx.ml",
                                               .since = 1,
                                               .in_min = 1,
                                               .in_max = 1,
                                               .out_min = 1,
                                               .out_max = 2,
                                               .prepare = forest_prepare,
                                               .release = op__forest_release,
                                               .infer = op__forest_infer,
                                               .scratch = op__forest_scratch,
                                               .run = op__forest_run};
OP_REGISTER(tree_classifier);
static const struct op_desc tree_regressor = {.name = "TreeEnsembleRegressor",
                                              .domain = "ai.onnx.ml",
                                              .since = 1,
                                              .in_min = 1,
                                              .in_max = 1,
                                              .out_min = 1,
                                              .out_max = 1,
                                              .prepare = forest_prepare,
                                              .release = op__forest_release,
                                              .infer = op__forest_infer,
                                              .scratch = op__forest_scratch,
                                              .run = op__forest_run};
OP_REGISTER(tree_regressor);
