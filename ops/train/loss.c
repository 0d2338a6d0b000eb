/* The losses as nodes. A loss is a row: its name and a function that emits the value of each element (or row) from prediction and
 * target; WeightedMean makes the scalar of it. Names and formulas are Keras's; crossentropies are taken from the logits wherever the
 * graph has them. To add one: a function and a row. */
#include <math.h>
#include <string.h>

#include "ops/train/train.h"

struct emission {
    struct op_grad g; /* for op__emit */
    const struct op_loss *loss;
    int p, z, t;      /* prediction; its logits, -1 if there are none; target */
};

static int square(struct emission *e, int v) {
    return op__emit2(&e->g, "Mul", v, v);
}
static int scale(struct emission *e, int v, double by) {
    return op__emit2(&e->g, "Mul", v, op__emit_scalar(&e->g, v, by));
}
static int clip(struct emission *e, int v, double min, double max) {
    return op__emit3(&e->g, "Clip", v, op__emit_scalar(&e->g, v, min), op__emit_scalar(&e->g, v, max));
}
static int difference(struct emission *e) {
    return op__emit2(&e->g, "Sub", e->p, e->t);
}

static int mean_squared_error(struct emission *e) {
    return square(e, difference(e));
}
static int mean_absolute_error(struct emission *e) {
    return op__emit1(&e->g, "Abs", difference(e));
}
/* q²/2 + δ(a − q) with a = |d|, q = min(a, δ) */
static int huber(struct emission *e) {
    double delta = e->loss->delta > 0 ? (double)e->loss->delta : 1;
    int a = mean_absolute_error(e), q = op__emit2(&e->g, "Min", a, op__emit_scalar(&e->g, a, delta));
    return op__emit2(&e->g, "Add", scale(e, square(e, q), 0.5), scale(e, op__emit2(&e->g, "Sub", a, q), delta));
}
/* log cosh d = d + softplus(−2d) − log 2 */
static int log_cosh(struct emission *e) {
    int d = difference(e), s = op__emit1(&e->g, "Softplus", scale(e, d, -2));
    int sum = op__emit2(&e->g, "Add", d, s);
    return op__emit2(&e->g, "Sub", sum, op__emit_scalar(&e->g, sum, 0.69314718055994531));
}
static int hinge(struct emission *e) {
    int m = op__emit2(&e->g, "Mul", e->t, e->p);
    return op__emit1(&e->g, "Relu", op__emit2(&e->g, "Sub", op__emit_scalar(&e->g, m, 1), m));
}
static int squared_hinge(struct emission *e) {
    return square(e, hinge(e));
}
static int poisson(struct emission *e) {
    int safe = op__emit2(&e->g, "Add", e->p, op__emit_scalar(&e->g, e->p, 1e-7));
    return op__emit2(&e->g, "Sub", e->p, op__emit2(&e->g, "Mul", e->t, op__emit1(&e->g, "Log", safe)));
}
/* Σ t·log(t / p) over the last dimension, taken as a sum of elements times their number. */
static int kl_divergence(struct emission *e) {
    int t = clip(e, e->t, 1e-7, 1), p = clip(e, e->p, 1e-7, 1);
    return op__emit2(&e->g, "Mul", t, op__emit2(&e->g, "Sub", op__emit1(&e->g, "Log", t), op__emit1(&e->g, "Log", p)));
}

static int with_attributes(struct emission *e, const char *op_type, int z) {
    int out;
    struct op_node *n = z < 0 ? NULL : op__emit(&e->g, "quern", op_type, 2, (int[]){z, e->t}, 1, &out);
    if (!n) return -1;
    enum op_status st = op__attr_set_float(e->g.graph, n, "label_smoothing", e->loss->label_smoothing);
    if (st == OP_OK && e->loss->ignore_index >= 0) st = op__attr_set_int(e->g.graph, n, "ignore_index", e->loss->ignore_index);
    if (st == OP_OK && e->loss->class_weights) st = op__attr_set_floats(e->g.graph, n, "class_weights", e->loss->class_weights, e->loss->n_classes);
    if (st != OP_OK) e->g.failed = true;
    return out;
}
/* Without logits: the logarithm of the (clipped) probabilities is as good, since softmax brings them back. */
static int log_probabilities(struct emission *e) {
    return e->z >= 0 ? e->z : op__emit1(&e->g, "Log", clip(e, e->p, 1e-7, 1));
}
static int sparse_categorical(struct emission *e) {
    return with_attributes(e, "SparseCrossEntropy", log_probabilities(e));
}
static int categorical(struct emission *e) {
    return with_attributes(e, "CrossEntropy", log_probabilities(e));
}
static int binary_logits(struct emission *e) {
    if (e->z >= 0) return e->z;
    int p = clip(e, e->p, 1e-7, 1 - 1e-7), q = op__emit2(&e->g, "Sub", op__emit_scalar(&e->g, p, 1), p);
    return op__emit2(&e->g, "Sub", op__emit1(&e->g, "Log", p), op__emit1(&e->g, "Log", q));
}
static int binary(struct emission *e) {
    return with_attributes(e, "BinaryCrossEntropy", binary_logits(e));
}
/* Lin et al. 2017: (1 − p_t)^γ · crossentropy, with p_t = exp(−crossentropy) */
static int focal(struct emission *e) {
    int ce = binary(e), pt = op__emit1(&e->g, "Exp", op__emit1(&e->g, "Neg", ce));
    int rest = op__emit2(&e->g, "Sub", op__emit_scalar(&e->g, pt, 1 + 1e-6), pt);
    double gamma = e->loss->gamma > 0 ? (double)e->loss->gamma : 2;
    return op__emit2(&e->g, "Mul", op__emit1(&e->g, "Exp", scale(e, op__emit1(&e->g, "Log", rest), gamma)), ce);
}

/* α·(1 − p_t)^γ · crossentropy, of one class that is right (Keras's categorical focal) */
static int focus(struct emission *e, int ce) {
    int pt = op__emit1(&e->g, "Exp", op__emit1(&e->g, "Neg", ce));
    int rest = op__emit2(&e->g, "Sub", op__emit_scalar(&e->g, pt, 1 + 1e-6), pt);
    double gamma = e->loss->gamma > 0 ? (double)e->loss->gamma : 2, alpha = e->loss->alpha > 0 ? (double)e->loss->alpha : 0.25;
    return scale(e, op__emit2(&e->g, "Mul", op__emit1(&e->g, "Exp", scale(e, op__emit1(&e->g, "Log", rest), gamma)), ce), alpha);
}
static int categorical_focal(struct emission *e) {
    return focus(e, categorical(e));
}
static int sparse_focal(struct emission *e) {
    return focus(e, sparse_categorical(e));
}

static int over_last(struct emission *e, int v) {
    return op__emit2(&e->g, "ReduceSum", v, op__emit_ints(&e->g, (int64_t[]){-1}, 1));
}
/* −p·t / (|p| |t|) over the last dimension */
static int cosine(struct emission *e) {
    int norms = op__emit2(&e->g, "Mul", over_last(e, square(e, e->p)), over_last(e, square(e, e->t)));
    norms = op__emit1(&e->g, "Sqrt", op__emit2(&e->g, "Max", norms, op__emit_scalar(&e->g, norms, 1e-12)));
    return op__emit1(&e->g, "Neg", op__emit2(&e->g, "Div", over_last(e, op__emit2(&e->g, "Mul", e->p, e->t)), norms));
}

static int one_node(struct emission *e, const char *op_type, int n, const int *in, const char *attr, double value) {
    int out;
    struct op_node *node = in[0] < 0 ? NULL : op__emit(&e->g, "quern", op_type, n, in, 1, &out);
    if (!node) return -1;
    enum op_status st = !attr ? OP_OK : strcmp(attr, "blank") == 0 ? op__attr_set_int(e->g.graph, node, attr, (int64_t)value) : op__attr_set_float(e->g.graph, node, attr, (float)value);
    if (st != OP_OK) e->g.failed = true;
    return out;
}
static int ctc(struct emission *e) {
    return one_node(e, "CTC", 2, (int[]){log_probabilities(e), e->t}, "blank", (double)e->loss->blank);
}
static int triplet(struct emission *e) {
    return one_node(e, "Triplet", 2, (int[]){e->p, e->t}, "margin", e->loss->margin > 0 ? (double)e->loss->margin : 1);
}
static int bpr(struct emission *e) {
    return one_node(e, "PairwiseRank", 1, (int[]){e->p}, NULL, 0);
}

static const struct kind {
    const char *name;
    int (*emit)(struct emission *e);
    const char *activation; /* whose input are the logits */
    enum op_target target;
} kinds[] = {
    {"mean_squared_error", mean_squared_error, NULL, OP_TARGET_DENSE},
    {"mse", mean_squared_error, NULL, OP_TARGET_DENSE},
    {"mean_absolute_error", mean_absolute_error, NULL, OP_TARGET_DENSE},
    {"mae", mean_absolute_error, NULL, OP_TARGET_DENSE},
    {"huber", huber, NULL, OP_TARGET_DENSE},
    {"log_cosh", log_cosh, NULL, OP_TARGET_DENSE},
    {"hinge", hinge, NULL, OP_TARGET_DENSE},
    {"squared_hinge", squared_hinge, NULL, OP_TARGET_DENSE},
    {"poisson", poisson, NULL, OP_TARGET_DENSE},
    {"kl_divergence", kl_divergence, NULL, OP_TARGET_DENSE},
    {"binary_crossentropy", binary, "Sigmoid", OP_TARGET_DENSE},
    {"binary_focal_crossentropy", focal, "Sigmoid", OP_TARGET_DENSE},
    {"focal", focal, "Sigmoid", OP_TARGET_DENSE},
    {"categorical_crossentropy", categorical, "Softmax", OP_TARGET_DENSE},
    {"sparse_categorical_crossentropy", sparse_categorical, "Softmax", OP_TARGET_CLASSES},
    {"categorical_focal_crossentropy", categorical_focal, "Softmax", OP_TARGET_DENSE},
    {"sparse_categorical_focal_crossentropy", sparse_focal, "Softmax", OP_TARGET_CLASSES},
    {"cosine_similarity", cosine, NULL, OP_TARGET_DENSE},
    {"ctc", ctc, "Softmax", OP_TARGET_LABELS},
    {"triplet", triplet, NULL, OP_TARGET_ROWS},
    {"bpr", bpr, NULL, OP_TARGET_NONE},
};

const char *op_loss_name(size_t i) {
    return i < sizeof kinds / sizeof *kinds ? kinds[i].name : NULL;
}

enum op_target op_loss_target(const char *name) {
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++)
        if (strcmp(kinds[i].name, name) == 0) return kinds[i].target;
    return OP_TARGET_DENSE;
}

bool op_loss_is_sparse(const char *name) {
    return op_loss_target(name) == OP_TARGET_CLASSES;
}

/* The value that the activation which makes v was given; -1 if v comes from something else. */
static int logits_of(const struct op_graph *g, int v, const char *activation) {
    for (int i = 0; i < g->n_nodes; i++) {
        const struct op_node *n = g->nodes[i];
        if (!n || n->n_out < 1 || n->out[0] != v || !op__node_is(n, activation)) continue;
        int64_t axis = op__attr_int(n, "axis", -1);
        return axis == -1 || (axis == 1 && strcmp(activation, "Softmax") == 0) || strcmp(activation, "Sigmoid") == 0 ? n->in[0] : -1;
    }
    return -1;
}

static enum op_status one_loss(struct op_model *m, const struct op_loss *l, int target, int sample_weights, int *value, struct op_error *err) {
    struct op_graph *g = m->graph;
    const struct kind *k = NULL;
    int output = l->output ? -1 : 0;
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++)
        if (strcmp(kinds[i].name, l->name) == 0) k = &kinds[i];
    for (int i = 0; output < 0 && i < g->n_outputs; i++)
        if (strcmp(g->declared[i].name, l->output) == 0) output = i;
    if (!k) return op__model_fail(m, err, OP_UNSUPPORTED, "there is no loss \"%.60s\"", l->name);
    if (output < 0 || g->n_outputs == 0) return op__model_fail(m, err, OP_BAD_VALUE, "the loss \"%s\" is for output \"%.80s\", which the model has not", l->name, l->output ? l->output : "");
    struct emission e = {.g = {.graph = g, .err = err}, .loss = l, .p = g->outputs[output], .z = -1, .t = target};
    if (l->from_logits) e.z = e.p;
    else if (k->activation) e.z = logits_of(g, e.p, k->activation);
    int elements = k->emit(&e), inputs[2] = {elements, sample_weights};
    struct op_node *n = elements < 0 ? NULL : op__emit(&e.g, "quern", "WeightedMean", 2, inputs, 1, value);
    if (!n || op__attr_set_float(g, n, "scale", l->weight > 0 ? l->weight : 1) != OP_OK || e.g.failed)
        return op__model_fail(m, err, OP_NOMEM, "out of memory for the loss");
    return OP_OK;
}

enum op_status op__train_losses(struct op_model *m, const struct op_trainer *t, const int *targets, int sample_weights, int *total, struct op_error *err) {
    int sum = -1;
    for (int i = 0; i < t->options.n_losses; i++) {
        int value = -1;
        enum op_status st = one_loss(m, &t->losses[i], targets[i], sample_weights, &value, err);
        if (st != OP_OK) return st;
        struct op_grad g = {.graph = m->graph, .err = err};
        sum = sum < 0 ? value : op__emit2(&g, "Add", sum, value);
        if (sum < 0) return op__model_fail(m, err, OP_NOMEM, "out of memory for the loss");
    }
    *total = sum;
    return sum < 0 ? op__model_fail(m, err, OP_BAD_VALUE, "a training needs a loss") : OP_OK;
}

enum op_status op__train_activities(struct op_model *m, const struct op_trainer *t, int sample_weights, int *total, struct op_error *err) {
    for (int i = 0; i < t->options.n_activities; i++) {
        const struct op_activity *a = &t->options.activities[i];
        struct emission e = {.g = {.graph = m->graph, .err = err}};
        int v = -1, value = -1;
        for (int k = 0; k < m->graph->n_values && v < 0; k++)
            if (m->graph->values[k].name && strcmp(m->graph->values[k].name, a->value) == 0) v = k;
        if (v < 0) return op__model_fail(m, err, OP_BAD_VALUE, "the model has no value \"%.100s\" to regularise", a->value);
        int sum = op__emit2(&e.g, "Add", scale(&e, op__emit1(&e.g, "Abs", v), (double)a->l1), scale(&e, square(&e, v), (double)a->l2));
        int inputs[2] = {sum, sample_weights};
        struct op_node *n = sum < 0 ? NULL : op__emit(&e.g, "quern", "WeightedMean", 2, inputs, 1, &value);
        if (!n || op__attr_set_float(m->graph, n, "scale", (float)a->elements) != OP_OK) return op__model_fail(m, err, OP_NOMEM, "out of memory for the loss");
        *total = op__emit2(&e.g, "Add", *total, value);
        if (*total < 0 || e.g.failed) return op__model_fail(m, err, OP_NOMEM, "out of memory for the loss");
    }
    return OP_OK;
}
