/* Order 720: a depthwise convolution over channels-last images goes together with the 1 x 1 before it, which nobody else uses, and the 1 x 1
 * behind it, its only user: quern's ChannelsLastStrips, which keeps what is between them in cache. Not one bit changes. */
#include "ops/pass/match.h"

#include <string.h>

static const struct op_tensor *weights_of(const struct op_graph *g, const struct op_node *n) {
    const bool conv = n && strcmp(n->domain, "quern") == 0 && strcmp(n->op_type, "ChannelsLastConv") == 0 && !op__attr_int(n, "input_first", 0);
    const struct op_tensor *w = conv ? op__graph_constant(g, n->in[1]) : NULL;
    return w && w->rank == 4 ? w : NULL;
}

static bool adds(const struct op_node *n) {
    return n->n_in > 3 && n->in[3] >= 0;
}

static bool is_depthwise(const struct op_graph *g, const struct op_node *n) {
    const struct op_tensor *w = weights_of(g, n);
    return w && w->dims[1] == 1 && w->dims[0] == op__attr_int(n, "group", 1) && !adds(n);
}

static bool all(const struct op_node *n, const char *name, int64_t value) {
    int64_t count;
    const int64_t *values = op__attr_ints(n, name, &count);
    for (int64_t i = 0; values && i < count; i++)
        if (values[i] != value) return false;
    return true;
}

static bool is_pointwise(const struct op_graph *g, const struct op_node *n) {
    const struct op_tensor *w = weights_of(g, n);
    return w && w->dims[2] == 1 && w->dims[3] == 1 && op__attr_int(n, "group", 1) == 1 && all(n, "strides", 1) && all(n, "pads", 0);
}

/* The activation of `from` under another name in `to`. */
static enum op_status take_activation(struct op_graph *g, struct op_node *to, const struct op_node *from, const char *name, const char *a, const char *b) {
    const char *fn = op__attr_string(from, "activation", "");
    if (!*fn) return OP_OK;
    enum op_status st = op__attr_set_string(g, to, name, fn);
    if (st == OP_OK) st = op__attr_set_float(g, to, a, op__attr_float(from, "activation_a", 0));
    return st == OP_OK ? op__attr_set_float(g, to, b, op__attr_float(from, "activation_b", 0)) : st;
}

static enum op_status fuse_at(struct op_graph *g, struct op__links *links, int at, int *changed) {
    struct op_node *d = g->nodes[at];
    if (!is_depthwise(g, d)) return OP_OK;
    const int before = d->in[0] >= 0 ? links->producer[d->in[0]] : -1;
    struct op_node *e = before >= 0 ? g->nodes[before] : NULL, *q = op__sole_user(g, links, d->out[0]);
    if (!is_pointwise(g, e) || adds(e) || links->uses[d->in[0]] != 1) e = NULL;
    if (!is_pointwise(g, q) || q->in[0] != d->out[0]) q = NULL;
    if (!e && !q) return OP_OK;

    const int last = q ? links->user[d->out[0]] : at;
    const int in[8] = {e ? e->in[0] : d->in[0], e ? e->in[1] : -1, e && e->n_in > 2 ? e->in[2] : -1, d->in[1], d->n_in > 2 ? d->in[2] : -1,
                       q ? q->in[1] : -1, q && q->n_in > 2 ? q->in[2] : -1, q && adds(q) ? q->in[3] : -1};
    const struct op_node was = q ? *q : *d;
    struct op_node *f = g->nodes[last];
    enum op_status st = op__node_become(f, "quern", "ChannelsLastStrips", 8, in);
    if (st != OP_OK) return st;
    f->attrs = d == f ? was.attrs : d->attrs;
    f->n_attrs = d == f ? was.n_attrs : d->n_attrs;
    f->name = d->name;
    if (e) st = take_activation(g, f, e, "expand_activation", "expand_activation_a", "expand_activation_b");
    if (q && st == OP_OK) st = take_activation(g, f, &was, "project_activation", "project_activation_a", "project_activation_b");
    if (e) op__graph_remove(g, before);
    if (q) op__graph_remove(g, at);
    for (int i = 0; i < f->n_in; i++)
        if (f->in[i] >= 0 && links->user[f->in[i]] < last) links->user[f->in[i]] = last;
    links->producer[f->out[0]] = last;
    ++*changed;
    return st;
}

static enum op_status run(struct op_graph *g, int *changed, struct op_error *err) {
    struct op__links links;
    enum op_status st = op__links_make(g, &links);
    for (int i = 0; st == OP_OK && i < g->n_nodes; i++)
        if (g->nodes[i]) st = fuse_at(g, &links, i, changed);
    op__links_free(&links);
    return st == OP_OK || !err ? st : op__node_fail(err, NULL, st, "out of memory while fusing");
}

static const struct op_pass fuse_strips = {.name = "fuse_strips", .order = 720, .run = run};
OP_PASS_REGISTER(fuse_strips);
