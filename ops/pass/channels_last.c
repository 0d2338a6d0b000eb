/* Order 700: images of (batch, channels, rows, columns) become (batch, rows, columns, channels) inside regions of convolutions.
 *
 * WHY. With the channels of a pixel side by side, a convolution is a matrix product whose rows lie in the image as they are
 * (kern/last.c), vectors go along channels whatever the width of the image, and pools and depthwise convolutions need no shuffles.
 *
 * HOW. First walk, in order: which nodes could work on such images. A convolution with constant weights always can, and asks for it;
 * others go along if what they get is an image of this kind already. Nodes connected by such images are a region. It is
 * accepted if it has more convolutions than borders, which cost a Transpose each. Second walk: nodes of accepted regions are
 * rewritten, constants turned, and a Transpose put where an image enters or leaves. A value that leaves keeps its identity, so that
 * users outside and outputs of the graph see nothing. A first layer with few input channels reads the picture as it comes.
 *
 * TO JOIN: a row of `rows`. It names the operator, the operator of the domain "quern" that takes its inputs and attributes with
 * channels last (none: the operator does not care, as elementwise ones), which inputs are images (the outputs are), and functions for what
 * is special: whether this node can, and what else to rewrite (an axis, say). Types do not matter here: an image of u8 or bf16 is as good.
 *
 * Sums run over (kernel position, channel) and no longer over (channel, kernel position), and 3 x 3 kernels may go another way, so bits
 * change; they are still the same in any batch and on any number of threads. Ranks other than 4 stay as they are. */
#include "ops/pass/match.h"

#include <stdlib.h>
#include <string.h>

enum { RANK = 4, ALL = -1, FIRST_CHANNELS_MAX = 4, BYTES_WORTH = 8 }; /* a convolution of bytes has no other fast form */
static const int64_t to_last[RANK] = {0, 2, 3, 1}, to_first[RANK] = {0, 3, 1, 2};

struct walk {
    struct op_graph *g;
    int n_values, n_nodes; /* before the rewriting */
    bool *last;            /* value: an image with channels last */
    const struct row **row; /* node: how it takes part; NULL: it does not */
    int *region;           /* node: union-find, then whether it was accepted */
    int *twin;             /* value: the same image with channels last; -1: none */
    bool *gone;            /* value: nobody makes it any more, there is only the twin */
    int *producer;
};

struct row {
    const char *domain, *name;
    const char *form; /* in the domain "quern"; NULL: itself */
    int images;       /* bits: inputs that are images; ALL */
    bool asks;        /* a convolution: reason enough, and its images are turned where they are not of this kind */
    bool (*fits)(const struct op_graph *g, const struct op_node *n); /* NULL: always */
    enum op_status (*convert)(struct op_graph *g, struct op_node *n); /* NULL: nothing else to do */
    int vectors; /* bits: outputs that are no images */
    int turns;   /* bits: inputs that are turned as a convolution's are; they have one pixel an image */
};

/* --- what is special ------------------------------------------------------------------------------------- */

static bool conv_fits(const struct op_graph *g, const struct op_node *n) {
    const struct op_tensor *w = n->n_in > 1 ? op__graph_constant_type(g, n->in[1]) : NULL;
    const int64_t group = op__attr_int(n, "group", 1);
    return w && w->dtype == OP_F32 && w->rank == RANK && op_tensor_count(w) > 0 && group >= 1 && w->dims[0] % group == 0;
}

/* QLinearConv and QuantConv: the weights and every parameter are constants, the weights symmetric, nothing reaches far. */
static bool quant_conv_fits(const struct op_graph *g, const struct op_node *n) {
    enum { FAR = 1 << 10 };
    static const char *const spans[] = {"pads", "dilations", "kernel_shape"};
    const struct op_tensor *w = op__graph_constant_type(g, n->in[3]), *zero = op__graph_constant(g, n->in[5]);
    const int64_t group = op__attr_int(n, "group", 1);
    for (int i = 1; i < n->n_in; i++) {
        const struct op_tensor *t = i == 3 ? w : op__graph_constant(g, n->in[i]);
        if (i == 8 ? n->in[8] >= 0 && (!t || t->dtype != OP_I32) : !t) return false;
        for (int64_t k = 0; (i == 1 || i == 4 || i == 6) && k < op_tensor_count(t); k++)
            if (t->dtype != OP_F32 || !(((const float *)t->data)[k] > 0x1p-60f && ((const float *)t->data)[k] < 0x1p60f)) return false;
    }
    for (size_t i = 0; i < sizeof spans / sizeof *spans; i++) {
        int64_t count;
        const int64_t *v = op__attr_ints(n, spans[i], &count);
        for (int64_t k = 0; k < count; k++)
            if (v[k] < 0 || v[k] > FAR) return false;
    }
    if (w->rank != RANK || op_tensor_count(w) <= 0 || group < 1 || w->dims[0] % group != 0 || (w->dtype != OP_I8 && w->dtype != OP_U8) || zero->dtype != w->dtype)
        return false;
    for (int64_t k = 0; k < op_tensor_count(zero); k++)
        if (((const uint8_t *)zero->data)[k] != (w->dtype == OP_I8 ? 0 : 128)) return false;
    return w->dims[2] <= FAR && w->dims[3] <= FAR;
}

/* One scale for the whole tensor. */
static bool whole_scale_fits(const struct op_graph *g, const struct op_node *n) {
    const struct op_tensor *scale = op__graph_constant(g, n->in[1]);
    return scale && op_tensor_count(scale) == 1 && op__attr_int(n, "block_size", 0) == 0;
}

/* Reads its input as the file's images lie. */
static bool reads_first(const struct op_graph *g, const struct op_node *n) {
    const int at = conv_fits(g, n) ? 1 : strcmp(n->op_type, "QLinearConv") == 0 || strcmp(n->op_type, "QuantConv") == 0 ? 3 : -1;
    const struct op_tensor *w = at > 0 ? op__graph_constant_type(g, n->in[at]) : NULL;
    int64_t count;
    const int64_t *dilations = op__attr_ints(n, "dilations", &count);
    for (int64_t i = 0; dilations && i < count; i++)
        if (dilations[i] != 1) return false;
    return w && op__attr_int(n, "group", 1) == 1 && w->dims[1] <= FIRST_CHANNELS_MAX;
}

/* A weight that training changes: an input of the graph, of known shape. Depthwise and grouped convolutions stay as they are. */
static bool trained_fits(const struct op_graph *g, const struct op_node *n, int w) {
    const struct op_value *v = n->n_in > w && n->in[w] >= 0 ? &g->values[n->in[w]] : NULL;
    return v && v->is_input && !v->constant && v->dtype == OP_F32 && v->rank == RANK && v->dims[0] > 0 && v->dims[1] > 0 && op__attr_int(n, "group", 1) == 1;
}

static bool trained_conv(const struct op_graph *g, const struct op_node *n) {
    return trained_fits(g, n, 1);
}

static bool trained_conv_w(const struct op_graph *g, const struct op_node *n) {
    return trained_fits(g, n, 2);
}

static bool trains(const struct op_graph *g, const struct op_node *n) {
    (void)g;
    return op__attr_int(n, "training_mode", 0) != 0 && op__attr_int(n, "spatial", 1) != 0;
}

static bool is_spatial(const struct op_graph *g, const struct op_node *n) {
    (void)g;
    return op__attr_int(n, "spatial", 0) == 1;
}

static enum op_status spatial_before_last(struct op_graph *g, struct op_node *n) {
    return op__attr_set_int(g, n, "spatial", 2);
}

static bool values_only(const struct op_graph *g, const struct op_node *n) {
    (void)g;
    return n->n_out == 1 || n->out[1] < 0;
}

static bool axis_fits(const struct op_graph *g, const struct op_node *n) {
    (void)g;
    const int64_t axis = op__attr_int(n, "axis", 0);
    return axis >= -RANK && axis < RANK;
}

static enum op_status turn_axis(struct op_graph *g, struct op_node *n) {
    static const int64_t place[RANK] = {0, 3, 1, 2};
    return op__attr_set_int(g, n, "axis", place[op__axis(op__attr_int(n, "axis", 0), RANK)]);
}

/* A mean over rows and columns that keeps them as dimensions of 1. */
static bool mean_fits(const struct op_graph *g, const struct op_node *n) {
    const struct op_tensor *axes = n->n_in > 1 ? op__graph_constant(g, n->in[1]) : NULL;
    if (!axes || axes->dtype != OP_I64 || op_tensor_count(axes) != 2 || op__attr_int(n, "keepdims", 1) == 0) return false;
    const int64_t *a = axes->data;
    const int x = op__axis(a[0], RANK), y = op__axis(a[1], RANK);
    return (x == 2 && y == 3) || (x == 3 && y == 2);
}

static enum op_status drop_axes(struct op_graph *g, struct op_node *n) {
    (void)g;
    n->n_in = 1;
    return OP_OK;
}

/* --- the table ---------------------------------------------------------------------------------------------- */

#define SAME(op_name, inputs) {.domain = "", .name = op_name, .images = inputs}
#define GRAD(op_name) {.domain = "quern", .name = op_name "Grad", .images = ALL}
static const struct row rows[] = {
    {"", "Conv", "ChannelsLastConv", 1, true, conv_fits, NULL, 0, 0},
    {"quern", "FusedConv", "ChannelsLastConv", 1 | 8, true, conv_fits, NULL, 0, 0},
    {"", "QLinearConv", "ChannelsLastQuantConv", 1, true, quant_conv_fits, NULL, 0, 0},
    {"quern", "QuantConv", "ChannelsLastQuantConv", 1, true, quant_conv_fits, NULL, 0, 0},
    {"quern", "QuantAdd", NULL, 1 | 8, false, NULL, NULL, 0, 0},
    {"quern", "QuantMul", NULL, 1 | 8, false, NULL, NULL, 0, 0},
    {"quern", "QuantGlobalAveragePool", "ChannelsLastQuantGlobalAveragePool", 1, false, NULL, NULL, 0, 0},
    {"", "QuantizeLinear", NULL, 1, false, whole_scale_fits, NULL, 0, 0},
    {"", "DequantizeLinear", NULL, 1, false, whole_scale_fits, NULL, 0, 0},
    {"", "MaxPool", "ChannelsLastMaxPool", 1, false, values_only, NULL, 0, 0},
    {"", "AveragePool", "ChannelsLastAveragePool", 1, false, NULL, NULL, 0, 0},
    {"", "GlobalAveragePool", "ChannelsLastGlobalAveragePool", 1, false, NULL, NULL, 0, 0},
    {"", "ReduceMean", "ChannelsLastGlobalAveragePool", 1, false, mean_fits, drop_axes, 0, 0},
    {"", "Concat", NULL, ALL, false, axis_fits, turn_axis, 0, 0},
    {"", "Split", NULL, 1, false, axis_fits, turn_axis, 0, 0},
    /* training */
    {"", "Conv", "ChannelsLastTrainedConv", 1, true, trained_conv, NULL, 0, 0},
    {"quern", "FusedConv", "ChannelsLastTrainedConv", 1 | 8, true, trained_conv, NULL, 0, 0},
    {"quern", "ConvGradX", "ChannelsLastConvGradX", 1 | 4, true, trained_conv, NULL, 0, 0},
    {"quern", "ConvGradW", "ChannelsLastConvGradW", 1 | 2, true, trained_conv_w, NULL, 1, 0},
    {"quern", "ConvGradB", "ChannelsLastConvGradB", 1, false, NULL, NULL, 1, 0},
    {"quern", "MaxPoolGrad", "ChannelsLastMaxPoolGrad", 1 | 2, false, NULL, NULL, 0, 0},
    {"quern", "AveragePoolGrad", "ChannelsLastAveragePoolGrad", 1 | 2, false, NULL, NULL, 0, 0},
    {"", "BatchNormalization", "ChannelsLastBatchNormalization", 1, false, trains, NULL, 2 | 4 | 8 | 16, 0},
    {"quern", "BatchNormalizationGrad", "ChannelsLastBatchNormalizationGrad", 1 | 2, false, trains, NULL, 2 | 4, 0},
    {"quern", "ReduceGrad", NULL, 1 | 2 | 4, false, is_spatial, spatial_before_last, 0, 1},
    {"quern", "SumTo", NULL, ALL, false, NULL, NULL, 0, 0},
    GRAD("Relu"), GRAD("LeakyRelu"), GRAD("Elu"), GRAD("Selu"), GRAD("Sigmoid"), GRAD("HardSigmoid"), GRAD("HardSwish"), GRAD("Swish"), GRAD("Mish"),
    GRAD("Gelu"), GRAD("Softplus"), GRAD("Tanh"), GRAD("Exp"), GRAD("Sqrt"), GRAD("Abs"), GRAD("Erf"),
    /* inference and training */
    SAME("Sum", ALL),
    SAME("Add", ALL), SAME("Sub", ALL), SAME("Mul", ALL), SAME("Div", ALL), SAME("Max", ALL), SAME("Min", ALL), SAME("PRelu", ALL),
    SAME("Relu", 1), SAME("Clip", 1), SAME("LeakyRelu", 1), SAME("Elu", 1), SAME("Selu", 1), SAME("Sigmoid", 1), SAME("HardSigmoid", 1),
    SAME("HardSwish", 1), SAME("Swish", 1), SAME("Mish", 1), SAME("Gelu", 1), SAME("Softplus", 1), SAME("Tanh", 1), SAME("Exp", 1), SAME("Sqrt", 1),
    SAME("Abs", 1), SAME("Neg", 1), SAME("Identity", 1),
};

static const struct row *row_of(const struct op_graph *g, const struct op_node *n) {
    if (n->n_captures) return NULL;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        if (strcmp(rows[i].name, n->op_type) == 0 && strcmp(rows[i].domain, n->domain) == 0 && (!rows[i].fits || rows[i].fits(g, n))) return &rows[i];
    return NULL;
}

static bool is_image(const struct row *row, int input) {
    return row->images == ALL || (input < 31 && row->images >> input & 1);
}

static bool makes_image(const struct row *row, int output) {
    return output >= 31 || !(row->vectors >> output & 1);
}

static bool turns(const struct row *row, int input) {
    return row->asks || (input < 31 && row->turns >> input & 1);
}

/* A Transpose by `perm`. */
static bool transposes(const struct op_node *n, const int64_t *perm) {
    int64_t count;
    const int64_t *p = op__node_is(n, "Transpose") && n->n_in == 1 ? op__attr_ints(n, "perm", &count) : NULL;
    return p && count == RANK && memcmp(p, perm, RANK * sizeof *p) == 0;
}

/* --- the first walk ----------------------------------------------------------------------------------------- */

/* A constant that can stand beside images: turned with ones in front of its dimensions, or of one element. */
static bool constant_fits(const struct op_graph *g, int v) {
    const struct op_tensor *t = op__graph_constant(g, v);
    return t && t->kind == OP_KIND_TENSOR && t->dtype != OP_STRING && t->rank <= RANK && t->data;
}

static bool takes_part(const struct walk *w, const struct op_node *n, const struct row *row) {
    bool some = row->asks;
    for (int k = 0; k < n->n_in; k++) {
        const int v = n->in[k];
        if (v < 0 || !is_image(row, k)) continue;
        some |= w->last[v];
        if (!w->last[v] && !constant_fits(w->g, v) && !turns(row, k)) return false;
    }
    return some;
}

static int root(int *region, int i) {
    while (region[i] != i) i = region[i] = region[region[i]];
    return i;
}

/* Made with channels last by a node of a region, and not merely found so. */
static bool made(const struct walk *w, int v) {
    return w->last[v] && w->producer[v] >= 0 && w->row[w->producer[v]];
}

static void find_regions(struct walk *w) {
    for (int i = 0; i < w->n_nodes; i++) {
        const struct op_node *n = w->g->nodes[i];
        const struct row *row = row_of(w->g, n);
        w->region[i] = i;
        if (transposes(n, to_first) && n->out[0] >= 0) { /* what it was made of is the image as we want it */
            w->last[n->out[0]] = true;
            w->twin[n->out[0]] = n->in[0];
            continue;
        }
        if (!row || !takes_part(w, n, row)) continue;
        w->row[i] = row;
        for (int o = 0; o < n->n_out; o++)
            if (n->out[o] >= 0 && makes_image(row, o)) w->last[n->out[o]] = true;
        for (int k = 0; k < n->n_in; k++)
            if (n->in[k] >= 0 && is_image(row, k) && made(w, n->in[k])) w->region[root(w->region, w->producer[n->in[k]])] = root(w->region, i);
    }
}

/* Whether a value that leaves costs next to nothing: one pixel an image. */
static bool is_small(const struct walk *w, int v) {
    const struct row *row = w->row[w->producer[v]];
    return row->form && strstr(row->form, "GlobalAveragePool");
}

/* Convolutions less borders, by the root of a region. A value counts once in each direction. */
static void weigh(const struct walk *w, int *worth, bool *counted) {
    const struct op_graph *g = w->g;
    for (int i = 0; i < w->n_nodes; i++) {
        const struct op_node *n = g->nodes[i];
        const struct row *row = w->row[i];
        if (row && row->asks) worth[root(w->region, i)] += row->fits == quant_conv_fits ? BYTES_WORTH : 1;
        for (int k = 0; row && row->asks && k < n->n_in; k++) {
            const int v = n->in[k];
            if (v < 0 || !is_image(row, k) || w->last[v] || counted[v] || op__graph_constant(g, v)) continue;
            if (k > 0 || !reads_first(g, n)) worth[root(w->region, i)]--;
            counted[v] = true;
        }
        for (int k = 0; k < n->n_in + n->n_captures; k++) {
            const int v = n->in[k];
            if (v < 0 || !made(w, v) || (row && is_image(row, k)) || counted[v] || is_small(w, v) || transposes(n, to_last)) continue;
            worth[root(w->region, w->producer[v])]--;
            counted[v] = true;
        }
    }
    for (int i = 0; i < g->n_outputs; i++) {
        const int v = g->outputs[i];
        if (v < 0 || !made(w, v) || counted[v] || is_small(w, v)) continue;
        worth[root(w->region, w->producer[v])]--;
        counted[v] = true;
    }
}

/* --- the second walk ---------------------------------------------------------------------------------------- */

/* A new node in front of position *at, which moves on. */
static enum op_status put_transpose(struct op_graph *g, int *at, int from, int to, const int64_t *perm) {
    struct op_node *t = op__graph_node(g, *at, "", "Transpose", g->nodes[*at < g->n_nodes ? *at : g->n_nodes - 1]->name, 1, 1);
    if (!t) return OP_NOMEM;
    t->in[0] = from;
    t->out[0] = to;
    ++*at;
    return op__attr_set_ints(g, t, "perm", perm, RANK);
}

/* A constant with channels last; itself where it has one element. -1 without memory. */
static int turned_constant(struct op_graph *g, int v) {
    const struct op_tensor *t = op__graph_constant(g, v);
    if (op_tensor_count(t) == 1) return v;
    int64_t from[RANK] = {1, 1, 1, 1}, dims[RANK], at = 0;
    for (int i = 0; i < t->rank; i++) from[RANK - t->rank + i] = t->dims[i];
    for (int i = 0; i < RANK; i++) dims[i] = from[to_last[i]];
    char *data = NULL;
    const enum op_type dtype = t->dtype;
    const size_t each = op_type_size(dtype);
    const char *src = t->data;
    const int made = op__graph_const(g, g->values[v].name, dtype, RANK, dims, (void **)&data);
    if (made < 0 || !data) return made;
    for (int64_t n = 0; n < dims[0]; n++)
        for (int64_t h = 0; h < dims[1]; h++)
            for (int64_t x = 0; x < dims[2]; x++)
                for (int64_t c = 0; c < dims[3]; c++, at++)
                    memcpy(data + (size_t)at * each, src + (size_t)(((n * dims[3] + c) * dims[1] + h) * dims[2] + x) * each, each);
    return made;
}

static enum op_status rewrite(struct walk *w, int *at, const struct row *row) {
    struct op_graph *g = w->g;
    struct op_node *n = g->nodes[*at];
    bool first = false;
    for (int k = 0; k < n->n_in; k++) {
        const int v = n->in[k];
        if (v < 0 || !is_image(row, k)) continue;
        if (w->twin[v] < 0 && row->asks && k == 0 && reads_first(g, n)) {
            first = true;
            continue;
        }
        int turned = w->twin[v];
        if (turned < 0 && op__graph_constant(g, v)) turned = turned_constant(g, v);
        else if (turned < 0 && (turned = w->twin[v] = op__graph_value(g, g->values[v].name)) >= 0) {
            const enum op_status st = put_transpose(g, at, v, turned, to_last);
            if (st != OP_OK) return st;
        }
        if (turned < 0) return OP_NOMEM;
        n->in[k] = turned;
    }
    for (int o = 0; o < n->n_out; o++) {
        const int v = n->out[o];
        if (v < 0 || !makes_image(row, o)) continue;
        const int turned = op__graph_value(g, g->values[v].name);
        if (turned < 0) return OP_NOMEM;
        w->twin[v] = n->out[o] = turned;
        w->gone[v] = true;
    }
    enum op_status st = row->convert ? row->convert(g, n) : OP_OK;
    if (row->form && st == OP_OK) {
        const struct op_desc *desc = op__desc_find("quern", row->form, 0);
        n->desc = desc;
        n->op_type = desc->name;
        n->domain = desc->domain;
        if (first) st = op__attr_set_int(g, n, "input_first", 1);
    }
    return st;
}

/* The value comes back with channels first, in front of position *at. */
static enum op_status come_back(struct walk *w, int *at, int v) {
    if (v < 0 || v >= w->n_values || !w->gone[v]) return OP_OK;
    w->gone[v] = false;
    return put_transpose(w->g, at, w->twin[v], v, to_first);
}

static enum op_status rewrite_all(struct walk *w, int *changed) {
    struct op_graph *g = w->g;
    enum op_status st = OP_OK;
    for (int i = 0, at = 0; i < w->n_nodes && st == OP_OK; i++, at++) {
        if (w->row[i]) {
            st = rewrite(w, &at, w->row[i]);
            ++*changed;
            continue;
        }
        struct op_node *n = g->nodes[at];
        if (transposes(n, to_last) && w->twin[n->in[0]] >= 0) { /* there it is */
            st = op__node_become(n, "", "Identity", 1, &w->twin[n->in[0]]);
            continue;
        }
        for (int k = 0; k < n->n_in + n->n_captures && st == OP_OK; k++) st = come_back(w, &at, n->in[k]);
    }
    int end = g->n_nodes;
    for (int i = 0; i < g->n_outputs && st == OP_OK; i++) st = come_back(w, &end, g->outputs[i]);
    return st;
}

static enum op_status turn(struct walk *w, int *changed) {
    int *worth = calloc((size_t)w->n_nodes + 1, sizeof *worth);
    bool *counted = calloc((size_t)w->n_values + 1, sizeof *counted);
    enum op_status st = worth && counted ? OP_OK : OP_NOMEM;
    if (st == OP_OK) {
        find_regions(w);
        weigh(w, worth, counted);
        for (int i = 0; i < w->n_nodes; i++)
            if (worth[root(w->region, i)] <= 0) w->row[i] = NULL;
        st = rewrite_all(w, changed);
    }
    free(worth);
    free(counted);
    return st;
}

static enum op_status run(struct op_graph *g, int *changed, struct op_error *err) {
    struct walk w = {.g = g, .n_values = g->n_values, .n_nodes = g->n_nodes, .producer = op__graph_producers(g)};
    const size_t values = (size_t)g->n_values + 1, nodes = (size_t)g->n_nodes + 1;
    w.last = calloc(values, sizeof *w.last);
    w.gone = calloc(values, sizeof *w.gone);
    w.twin = malloc(values * sizeof *w.twin);
    w.row = calloc(nodes, sizeof *w.row);
    w.region = calloc(nodes, sizeof *w.region);
    enum op_status st = w.producer && w.last && w.gone && w.twin && w.row && w.region ? OP_OK : OP_NOMEM;
    for (size_t v = 0; st == OP_OK && v < values; v++) w.twin[v] = -1;
    if (st == OP_OK) st = turn(&w, changed);
    free(w.producer);
    free(w.last);
    free(w.gone);
    free(w.twin);
    free(w.row);
    free(w.region);
    return st == OP_OK || !err ? st : op__node_fail(err, NULL, st, "out of memory while turning images");
}

static const struct op_pass channels_last = {.name = "channels_last", .order = 700, .run = run};
OP_PASS_REGISTER(channels_last);
