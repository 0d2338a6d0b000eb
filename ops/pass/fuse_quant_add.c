/* Order 710: a QuantAdd behind a convolution on channels-last bytes is done while the convolution's result is in registers. The steps are the same
 * (the result is rounded to its bytes, then added), so not one bit changes; the larger of the two values never goes to memory.
 *
 * Shapes are not known here. The other side may broadcast: ChannelsLastQuantConv then makes the sum in a second step. */
#include "ops/pass/match.h"

#include <string.h>

enum { N_INPUTS = 14 }; /* of ChannelsLastQuantConv with an addend: ops/op/quant_conv.c */

static bool is_conv(const struct op_node *n) {
    return n && strcmp(n->op_type, "ChannelsLastQuantConv") == 0 && strcmp(n->domain, "quern") == 0 && n->n_in <= 9;
}

/* The convolution behind side `first` (0 or 3) of an add, made for it alone; its position or -1. */
static int conv_of(const struct op_graph *g, const struct op__links *links, const struct op_node *add, int first) {
    const int v = add->in[first], at = v >= 0 ? links->producer[v] : -1;
    return at >= 0 && links->uses[v] == 1 && is_conv(g->nodes[at]) && g->nodes[at]->out[0] == v ? at : -1;
}

static enum op_status fuse_at(struct op_graph *g, struct op__links *links, int at, int *changed) {
    struct op_node *add = g->nodes[at];
    if (strcmp(add->op_type, "QuantAdd") != 0 || strcmp(add->domain, "quern") != 0 || add->in[0] == add->in[3]) return OP_OK;
    const int one = conv_of(g, links, add, 0), two = conv_of(g, links, add, 3), conv_at = one > two ? one : two; /* the later one: the other is there then */
    if (conv_at < 0) return OP_OK;
    const int mine = conv_at == one ? 0 : 3, other = 3 - mine;
    const struct op_node *conv = g->nodes[conv_at];
    if (op__attr(conv, "y_min") || op__attr_int(conv, "group", 1) != 1) return OP_OK; /* limits between the two; another kernel */
    struct op_attr *attrs = conv->attrs;
    const int n_attrs = conv->n_attrs;
    const int64_t y_min = op__attr_int(add, "y_min", INT8_MIN), y_max = op__attr_int(add, "y_max", UINT8_MAX);
    int in[N_INPUTS];
    for (int i = 0; i < 9; i++) in[i] = i < conv->n_in ? conv->in[i] : -1;
    for (int i = 0; i < 3; i++) in[9 + i] = add->in[other + i];
    in[12] = add->in[6];
    in[13] = add->in[7];
    const char *name = conv->name;
    enum op_status st = op__node_become(add, "quern", "ChannelsLastQuantConv", N_INPUTS, in);
    if (st != OP_OK) return st;
    add->name = name;
    add->attrs = attrs;
    add->n_attrs = n_attrs;
    op__graph_remove(g, conv_at);
    for (int i = 0; i < N_INPUTS; i++)
        if (in[i] >= 0 && links->user[in[i]] < at) links->user[in[i]] = at;
    ++*changed;
    if ((st = op__attr_set_int(g, add, "y_min", y_min)) != OP_OK) return st;
    return op__attr_set_int(g, add, "y_max", y_max);
}

static enum op_status run(struct op_graph *g, int *changed, struct op_error *err) {
    struct op__links links;
    enum op_status status = op__links_make(g, &links);
    for (int i = 0; status == OP_OK && i < g->n_nodes; i++)
        if (g->nodes[i]) status = fuse_at(g, &links, i, changed);
    op__links_free(&links);
    return status == OP_OK || !err ? status : op__node_fail(err, NULL, status, "out of memory while fusing");
}

static const struct op_pass fuse_quant_add = {.name = "fuse_quant_add", .order = 710, .run = run};
OP_PASS_REGISTER(fuse_quant_add);
