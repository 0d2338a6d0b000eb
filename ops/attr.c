/* Attributes of nodes: reading with a default, and the rewriting that `upgrade` and passes do. An attribute of
 * another kind than asked for reads as absent. */
#include "ops/graph.h"

#include <string.h>

const struct op_attr *op__attr(const struct op_node *n, const char *name) {
    for (int i = 0; i < n->n_attrs; i++)
        if (strcmp(n->attrs[i].name, name) == 0) return &n->attrs[i];
    return NULL;
}

static const struct op_attr *of_kind(const struct op_node *n, const char *name, enum op_attr_kind kind) {
    const struct op_attr *a = op__attr(n, name);
    return a && a->kind == kind ? a : NULL;
}

int64_t op__attr_int(const struct op_node *n, const char *name, int64_t dflt) {
    const struct op_attr *a = of_kind(n, name, OP_ATTR_INT);
    return a ? a->i : dflt;
}

float op__attr_float(const struct op_node *n, const char *name, float dflt) {
    const struct op_attr *a = of_kind(n, name, OP_ATTR_FLOAT);
    return a ? a->f : dflt;
}

const char *op__attr_string(const struct op_node *n, const char *name, const char *dflt) {
    const struct op_attr *a = of_kind(n, name, OP_ATTR_STRING);
    return a ? a->s.data : dflt;
}

const int64_t *op__attr_ints(const struct op_node *n, const char *name, int64_t *count) {
    const struct op_attr *a = of_kind(n, name, OP_ATTR_INTS);
    *count = a ? a->n : 0;
    return a ? a->ints : NULL;
}

const float *op__attr_floats(const struct op_node *n, const char *name, int64_t *count) {
    const struct op_attr *a = of_kind(n, name, OP_ATTR_FLOATS);
    *count = a ? a->n : 0;
    return a ? a->floats : NULL;
}

const struct op_node *const *op__attr_nodes(const struct op_node *n, const char *name, int64_t *count) {
    const struct op_attr *a = of_kind(n, name, OP_ATTR_NODES);
    *count = a ? a->n : 0;
    return a ? a->nodes : NULL;
}

const struct op_tensor *op__attr_tensor(const struct op_node *n, const char *name) {
    const struct op_attr *a = of_kind(n, name, OP_ATTR_TENSOR);
    return a ? a->t : NULL;
}

const struct op_graph *op__attr_graph(const struct op_node *n, const char *name) {
    const struct op_attr *a = of_kind(n, name, OP_ATTR_GRAPH);
    return a ? a->g : NULL;
}

void op__attr_remove(struct op_node *n, const char *name) {
    for (int i = 0; i < n->n_attrs; i++) {
        if (strcmp(n->attrs[i].name, name) != 0) continue;
        memmove(&n->attrs[i], &n->attrs[i + 1], (size_t)(n->n_attrs - i - 1) * sizeof *n->attrs);
        n->n_attrs--;
        return;
    }
}

/* The attribute of this name, zeroed; a new one if there is none. */
static struct op_attr *attr_make(struct op_graph *g, struct op_node *n, const char *name, enum op_attr_kind kind) {
    op__attr_remove(n, name);
    struct op_attr *all = op__arena_array(g->arena, (size_t)n->n_attrs + 1, sizeof *all);
    char *copy = op__arena_string(g->arena, name, strlen(name));
    if (!all || !copy) return NULL;
    if (n->n_attrs) memcpy(all, n->attrs, (size_t)n->n_attrs * sizeof *all);
    n->attrs = all;
    all[n->n_attrs] = (struct op_attr){.name = copy, .kind = kind};
    return &all[n->n_attrs++];
}

enum op_status op__attr_set_int(struct op_graph *g, struct op_node *n, const char *name, int64_t value) {
    struct op_attr *a = attr_make(g, n, name, OP_ATTR_INT);
    if (!a) return OP_NOMEM;
    a->i = value;
    return OP_OK;
}

enum op_status op__attr_set_float(struct op_graph *g, struct op_node *n, const char *name, float value) {
    struct op_attr *a = attr_make(g, n, name, OP_ATTR_FLOAT);
    if (!a) return OP_NOMEM;
    a->f = value;
    return OP_OK;
}

enum op_status op__attr_set_string(struct op_graph *g, struct op_node *n, const char *name, const char *value) {
    char *copy = op__arena_string(g->arena, value, strlen(value));
    struct op_attr *a = copy ? attr_make(g, n, name, OP_ATTR_STRING) : NULL;
    if (!a) return OP_NOMEM;
    a->s = (struct op_string){copy, strlen(value)};
    return OP_OK;
}

enum op_status op__attr_set_ints(struct op_graph *g, struct op_node *n, const char *name, const int64_t *values, int64_t count) {
    int64_t *copy = count >= 0 ? op__arena_array(g->arena, (size_t)count, sizeof *copy) : NULL;
    if (!copy) return OP_NOMEM;
    if (count) memcpy(copy, values, (size_t)count * sizeof *copy); /* before the old one goes: values may be its */
    struct op_attr *a = attr_make(g, n, name, OP_ATTR_INTS);
    if (!a) return OP_NOMEM;
    a->ints = copy;
    a->n = count;
    return OP_OK;
}

enum op_status op__attr_set_floats(struct op_graph *g, struct op_node *n, const char *name, const float *values, int64_t count) {
    float *copy = count >= 0 ? op__arena_array(g->arena, (size_t)count, sizeof *copy) : NULL;
    if (!copy) return OP_NOMEM;
    if (count) memcpy(copy, values, (size_t)count * sizeof *copy);
    struct op_attr *a = attr_make(g, n, name, OP_ATTR_FLOATS);
    if (!a) return OP_NOMEM;
    a->floats = copy;
    a->n = count;
    return OP_OK;
}

enum op_status op__attr_set_nodes(struct op_graph *g, struct op_node *n, const char *name, struct op_node *const *nodes, int64_t count) {
    const struct op_node **copies = count >= 0 ? op__arena_array(g->arena, (size_t)count, sizeof *copies) : NULL;
    if (!copies) return OP_NOMEM;
    for (int64_t i = 0; i < count; i++) {
        struct op_node *copy = op__arena_array(g->arena, 1, sizeof *copy);
        struct op_attr *attrs = op__arena_array(g->arena, (size_t)nodes[i]->n_attrs, sizeof *attrs);
        if (!copy || !attrs) return OP_NOMEM;
        *copy = *nodes[i];
        if (copy->n_attrs) memcpy(attrs, copy->attrs, (size_t)copy->n_attrs * sizeof *attrs);
        copy->attrs = attrs;
        copies[i] = copy;
    }
    struct op_attr *a = attr_make(g, n, name, OP_ATTR_NODES);
    if (!a) return OP_NOMEM;
    a->nodes = copies;
    a->n = count;
    return OP_OK;
}

/* Puts constant v at input `index`, which must be absent or beyond the inputs that there are. */
static enum op_status put_input(struct op_node *n, const char *name, int index, int v, struct op_error *err) {
    if (v < 0) return op__node_fail(err, n, OP_NOMEM, "no memory for attribute \"%s\"", name);
    if (index < n->n_in && n->in[index] >= 0)
        return op__node_fail(err, n, OP_BAD_MODEL, "attribute \"%s\" is given together with input %d, which replaced it", name, index);
    if (index >= n->n_in && op__node_grow(n, index + 1) != OP_OK)
        return op__node_fail(err, n, OP_NOMEM, "no memory for attribute \"%s\"", name);
    n->in[index] = v;
    op__attr_remove(n, name);
    return OP_OK;
}

enum op_status op__attr_to_input(struct op_graph *g, struct op_node *n, const char *name, int index, struct op_error *err) {
    const struct op_attr *a = op__attr(n, name);
    if (!a) return OP_OK;
    if (a->kind != OP_ATTR_INTS && a->kind != OP_ATTR_INT)
        return op__node_fail(err, n, OP_BAD_MODEL, "attribute \"%s\" holds no integers", name);
    int64_t count = a->kind == OP_ATTR_INT ? 1 : a->n;
    void *data = NULL;
    int v = op__graph_const(g, NULL, OP_I64, 1, &count, &data);
    if (v >= 0 && count) memcpy(data, a->kind == OP_ATTR_INT ? &a->i : a->ints, (size_t)count * sizeof(int64_t));
    return put_input(n, name, index, v, err);
}

enum op_status op__attr_float_to_input(struct op_graph *g, struct op_node *n, const char *name, int index, enum op_type dtype,
                                       struct op_error *err) {
    const struct op_attr *a = op__attr(n, name);
    if (!a) return OP_OK;
    if (a->kind != OP_ATTR_FLOAT) return op__node_fail(err, n, OP_BAD_MODEL, "attribute \"%s\" is not a float", name);
    void *data = NULL;
    int v = op__graph_const(g, NULL, dtype, 0, NULL, &data);
    if (v >= 0) {
        switch (dtype) {
        case OP_F32: *(float *)data = a->f; break;
        case OP_F64: *(double *)data = a->f; break;
        case OP_F16: *(uint16_t *)data = op__f32_to_f16(a->f); break;
        case OP_BF16: *(uint16_t *)data = op__f32_to_bf16(a->f); break;
        default: return op__node_fail(err, n, OP_BAD_TYPE, "attribute \"%s\" cannot become a %s input", name, op_type_name(dtype));
        }
    }
    return put_input(n, name, index, v, err);
}
