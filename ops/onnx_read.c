/* From the bytes of an ONNX file to a graph.
 *
 * What: walks ModelProto, GraphProto, NodeProto, AttributeProto in place. Names and attributes are copied into the
 * model's arena (they are small and want to be zero-terminated), tensor data is not: see onnx_tensor.c.
 *
 * Scopes: a scope maps names to values of one graph. A subgraph's scope has an outer one; a name found out there becomes
 * a capture: an input of the node that holds the subgraph (graph.h). A model-local function is expanded where it is
 * called: its nodes go into the caller's graph under a scope of its own, that sees its formal inputs only; its
 * attributes' references (ref_attr_name) are looked up in the call. Depth of nesting and the number of nodes are
 * capped, so a file cannot ask for exponential expansion.
 *
 * Every node is brought to the newest opset's form (`upgrade`) as soon as it stands, so later stages see one form.
 * Nodes must come in topological order, as ONNX demands: a name that no earlier node made is an error that says so.
 *
 * Thread: the one that loads. Errors name the node or tensor. */
#include "ops/exec.h"
#include "ops/onnx_tensor.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

/* --- scopes ------------------------------------------------------------------------------------ */

struct entry {
    const char *name;
    int value;
};

struct captured { /* while a node is read: the outer values that its subgraphs use */
    int *values;
    int n, cap;
};

struct scope {
    struct op_graph *graph;
    struct scope *outer;       /* NULL: of the model or of a function */
    struct op_node *holder;    /* in outer->graph: the node that holds this subgraph */
    struct captured *captured; /* of the holder */
    struct entry *table;       /* open addressing */
    int n, cap;
};

struct proto { /* a message not yet read */
    const uint8_t *data;
    size_t len;
};

struct function {
    struct op_string domain, name;
    struct proto proto;
};

struct call { /* of a function: where its attribute references point */
    const struct op_attr *attrs;
    int n_attrs;
    const struct proto *function;
    const struct op_opset *opsets;
    int n_opsets;
};

struct reader {
    struct op_model *m;
    struct op_error *err;
    struct function *functions;
    int n_functions;
};

static uint32_t hash_of(const char *s) {
    uint32_t h = 2166136261u;
    for (; *s; s++) h = (h ^ (uint8_t)*s) * 16777619u;
    return h;
}

static int *scope_find(struct scope *s, const char *name) {
    if (!s->cap) return NULL;
    for (uint32_t at = hash_of(name);; at++) {
        struct entry *e = &s->table[at & (uint32_t)(s->cap - 1)];
        if (!e->name) return NULL;
        if (strcmp(e->name, name) == 0) return &e->value;
    }
}

static bool scope_put(struct scope *s, const char *name, int value) {
    if (s->n * 2 >= s->cap) {
        int cap = s->cap ? s->cap * 2 : 64;
        struct entry *table = calloc((size_t)cap, sizeof *table);
        if (!table) return false;
        for (int i = 0; i < s->cap; i++) {
            if (!s->table[i].name) continue;
            uint32_t at = hash_of(s->table[i].name);
            while (table[at & (uint32_t)(cap - 1)].name) at++;
            table[at & (uint32_t)(cap - 1)] = s->table[i];
        }
        free(s->table);
        s->table = table;
        s->cap = cap;
    }
    uint32_t at = hash_of(name);
    while (s->table[at & (uint32_t)(s->cap - 1)].name) at++;
    s->table[at & (uint32_t)(s->cap - 1)] = (struct entry){name, value};
    s->n++;
    return true;
}

#define UNBOUND -3 /* a formal input of a function that the call leaves out */

/* The value of this name as seen from scope s; -1 if there is none, -2 without memory. */
static int scope_lookup(struct scope *s, const char *name) {
    int *known = scope_find(s, name);
    if (known) return *known;
    if (!s->outer) return -1;
    int far = scope_lookup(s->outer, name);
    if (far < 0) return far;
    struct op_graph *g = s->graph;
    int near = op__graph_value(g, name);
    if (near < 0 || !scope_put(s, name, near)) return -2;
    const struct op_value *from = &s->outer->graph->values[far];
    g->values[near] = *from;
    g->values[near].is_input = false;
    if (from->constant) return near; /* shared, needs no passing in */
    struct captured *c = s->captured;
    if (c->n == c->cap) {
        int cap = c->cap ? c->cap * 2 : 16;
        int *values = realloc(c->values, (size_t)cap * sizeof *values);
        if (!values) return -2;
        c->values = values;
        c->cap = cap;
    }
    struct op_capture *all = op__arena_array(g->arena, (size_t)g->n_captures + 1, sizeof *all);
    if (!all) return -2;
    if (g->n_captures) memcpy(all, g->captures, (size_t)g->n_captures * sizeof *all);
    g->captures = all;
    all[g->n_captures++] = (struct op_capture){.inner = near, .index = s->holder->n_in + c->n};
    c->values[c->n++] = far;
    return near;
}

/* --- small pieces ------------------------------------------------------------------------------ */

static enum op_status no_memory(struct reader *r) {
    return op__model_fail(r->m, r->err, OP_NOMEM, "out of memory, or the graph is larger than %zu bytes", OP__META_BYTES_MAX);
}

static enum op_status malformed(struct reader *r, const char *message) {
    return op__model_fail(r->m, r->err, OP_BAD_MODEL, "its %s is not well-formed protobuf", message);
}

/* A zero-terminated copy in *dst. Names with a zero byte or of absurd length are refused. */
static enum op_status take_name(struct reader *r, const struct wire_field *f, const char **dst) {
    if (f->type != WIRE_BYTES || f->len > OP__NAME_MAX || (f->len && memchr(f->data, 0, f->len)))
        return op__model_fail(r->m, r->err, OP_BAD_MODEL, "a name is longer than %d bytes or holds a zero byte", OP__NAME_MAX);
    *dst = op__arena_string(&r->m->arena, (const char *)f->data, f->len);
    return *dst ? OP_OK : no_memory(r);
}

static bool string_is(struct op_string s, const char *text) {
    return s.len == strlen(text) && memcmp(s.data, text, s.len) == 0;
}

/* Names what went wrong inside a tensor, whose own message stands in err. */
static enum op_status in_constant(struct reader *r, enum op_status st) {
    if (!r->err) return st;
    struct op_error inner = *r->err;
    return op__model_fail(r->m, r->err, st, "a constant: %.400s", inner.text);
}

/* --- types ------------------------------------------------------------------------------------- */

static enum op_status read_shape(struct reader *r, const struct wire_field *shape, struct op_value *v) {
    struct wire w = wire_open(shape->data, shape->len);
    struct wire_field f, d;
    v->rank = 0;
    while (wire_next(&w, &f)) {
        if (f.number != 1 || f.type != WIRE_BYTES) continue;
        if (v->rank == OP_RANK_MAX)
            return op__model_fail(r->m, r->err, OP_UNSUPPORTED, "\"%s\" has a rank above %d", v->name, OP_RANK_MAX);
        v->dims[v->rank] = -1;
        v->symbols[v->rank] = NULL;
        struct wire dim = wire_open(f.data, f.len);
        while (wire_next(&dim, &d)) {
            enum op_status st = OP_OK;
            if (d.number == 1 && d.type == WIRE_VARINT && (int64_t)d.value > 0) v->dims[v->rank] = (int64_t)d.value;
            if (d.number == 2 && d.len) st = take_name(r, &d, &v->symbols[v->rank]);
            if (st != OP_OK) return st;
        }
        if (dim.bad) return malformed(r, "TensorShapeProto");
        v->rank++;
    }
    return w.bad ? malformed(r, "TensorShapeProto") : OP_OK;
}

static enum op_status read_type(struct reader *r, const struct wire_field *type, int depth, struct op_value *v) {
    struct wire w = wire_open(type->data, type->len);
    struct wire_field f, g;
    if (depth > 4) return op__model_fail(r->m, r->err, OP_UNSUPPORTED, "the type of \"%s\" is nested too deeply", v->name);
    while (wire_next(&w, &f)) {
        if (f.type != WIRE_BYTES) continue;
        if (f.number == 8) return op__model_fail(r->m, r->err, OP_UNSUPPORTED, "\"%s\" is a sparse tensor, which is not supported", v->name);
        v->is_map |= f.number == 5;
        if (f.number != 1 && f.number != 4 && f.number != 9) continue;
        if (depth == 0 && f.number != 1) v->kind = f.number == 4 ? OP_KIND_SEQUENCE : OP_KIND_OPTIONAL;
        struct wire inner = wire_open(f.data, f.len);
        while (wire_next(&inner, &g)) {
            enum op_status st = OP_OK;
            if (f.number == 1 && g.number == 1) {
                v->dtype = g.value <= OP_I2 ? (enum op_type)g.value : OP_UNDEFINED;
                if (g.value > OP_I2)
                    return op__model_fail(r->m, r->err, OP_UNSUPPORTED, "\"%s\" is of type %s, which is not supported", v->name,
                                          op__onnx_type_name((int64_t)(g.value & 0xffff)));
            } else if (f.number == 1 && g.number == 2 && g.type == WIRE_BYTES && depth == 0) st = read_shape(r, &g, v);
            else if (f.number != 1 && g.number == 1 && g.type == WIRE_BYTES) st = read_type(r, &g, depth + 1, v);
            if (st != OP_OK) return st;
        }
        if (inner.bad) return malformed(r, "TypeProto");
    }
    return w.bad ? malformed(r, "TypeProto") : OP_OK;
}

static enum op_status read_value_info(struct reader *r, const struct wire_field *info, struct op_value *v) {
    struct wire w = wire_open(info->data, info->len);
    struct wire_field f;
    *v = (struct op_value){.name = "", .rank = -1};
    enum op_status st = OP_OK;
    while (st == OP_OK && wire_next(&w, &f))
        if (f.number == 1) st = take_name(r, &f, &v->name);
    if (st != OP_OK) return st;
    w = wire_open(info->data, info->len);
    while (st == OP_OK && wire_next(&w, &f))
        if (f.number == 2 && f.type == WIRE_BYTES) st = read_type(r, &f, 0, v);
    return st != OP_OK ? st : w.bad ? malformed(r, "ValueInfoProto") : OP_OK;
}

/* --- tensors ----------------------------------------------------------------------------------- */

static enum op_status read_constant(struct reader *r, const struct wire_field *f, bool sparse, struct op_const **dst, const char **name) { /* name NULL: an attribute, whose data is there at once */
    struct op_proto_tensor p;
    struct op_const *c = op__arena_alloc(&r->m->arena, sizeof *c);
    if (!c) return no_memory(r);
    if (f->type != WIRE_BYTES) return malformed(r, sparse ? "SparseTensorProto" : "TensorProto");
    enum op_status st = sparse ? op__onnx_sparse_tensor(f->data, f->len, r->m, &p, r->err) : op__onnx_tensor(f->data, f->len, r->m, name ? OP__PROTO_LAZY : OP__PROTO_BORROW, &p, r->err);
    if (st != OP_OK) return in_constant(r, st);
    c->t = p.t;
    if (!op_tensor_count(&c->t)) c->t.data = op__nothing;
    c->owned = p.owned ? p.t.data : NULL;
    c->lazy = p.lazy;
    c->mapped = p.mapped;
    c->mapped_bytes = p.mapped_bytes;
    if (c->owned && c->mapped) op__mapped_give_back(r->m, c->mapped, c->mapped_bytes); /* the copy is enough */
    c->next = r->m->constants;
    r->m->constants = c;
    *dst = c;
    struct wire_field n = {.type = WIRE_BYTES, .data = (const uint8_t *)(p.name ? p.name : ""), .len = p.name_len};
    return name ? take_name(r, &n, name) : OP_OK;
}

/* --- attributes -------------------------------------------------------------------------------- */

static enum op_status read_graph(struct reader *r, const struct proto *p, struct scope *s, const struct call *call, int depth);

static enum op_status read_subgraph(struct reader *r, const struct wire_field *f, struct op_node *n, struct scope *s, struct captured *captured,
                                    const struct call *call, int depth, struct op_graph **dst) {
    struct op_graph *g = op__arena_alloc(&r->m->arena, sizeof *g);
    if (!g) return no_memory(r);
    *g = (struct op_graph){.model = r->m, .arena = &r->m->arena, .name = "", .parent = s->graph, .depth = s->graph->depth + 1};
    *dst = g;
    struct scope inner = {.graph = g, .outer = s, .holder = n, .captured = captured};
    const struct proto p = {f->data, f->len};
    enum op_status st = read_graph(r, &p, &inner, call, depth + 1);
    free(inner.table);
    return st;
}

/* Floats, ints and strings: a first walk counted them. */
static enum op_status read_list(struct reader *r, const struct proto *p, uint32_t number, struct op_attr *a) {
    struct wire w = wire_open(p->data, p->len);
    struct wire_field f;
    int64_t room = 0;
    for (; wire_next(&w, &f);)
        if (f.number == number) room += f.type != WIRE_BYTES || number == 9 ? 1 : (int64_t)(number == 7 ? f.len / 4 : f.len);
    size_t size = number == 9 ? sizeof *a->strings : number == 8 ? sizeof *a->ints : sizeof *a->floats;
    char *all = op__arena_array(&r->m->arena, (size_t)room, size);
    if (!all) return no_memory(r);
    a->n = 0;
    a->ints = (int64_t *)(void *)all; /* the members of the union are pointers alike */
    w = wire_open(p->data, p->len);
    while (wire_next(&w, &f)) {
        if (f.number != number) continue;
        if (number == 9) {
            char *copy = op__arena_string(&r->m->arena, (const char *)f.data, f.len);
            if (!copy) return no_memory(r);
            ((struct op_string *)(void *)all)[a->n++] = (struct op_string){copy, f.len};
            continue;
        }
        struct wire inner = {0};
        bool started = false;
        uint64_t v;
        while (a->n < room && wire_scalar(&f, number == 7 ? WIRE_32 : WIRE_VARINT, &inner, &started, &v)) memcpy(all + (size_t)a->n++ * size, &v, size);
        if (inner.bad || !started) return malformed(r, "list of an AttributeProto");
    }
    return OP_OK;
}

struct attr_parts { /* the fields of an AttributeProto */
    uint64_t type;
    struct wire_field value; /* the last of the fields 2 to 6, or a sparse tensor (22) */
    uint32_t list;           /* 7, 8, 9: which list there is */
    const char *ref;
    bool other;
};

static enum op_status attr_walk(struct reader *r, const struct proto *p, struct op_attr *a, struct attr_parts *parts) {
    struct wire w = wire_open(p->data, p->len);
    struct wire_field f;
    enum op_status st = OP_OK;
    a->name = "";
    while (st == OP_OK && wire_next(&w, &f)) {
        if (f.number == 1) st = take_name(r, &f, &a->name);
        else if ((f.number >= 2 && f.number <= 6) || f.number == 22) parts->value = f;
        else if (f.number >= 7 && f.number <= 9) parts->list = f.number;
        else if (f.number == 20) parts->type = f.value;
        else if (f.number == 21) st = take_name(r, &f, &parts->ref);
        else if (f.number == 10 || f.number == 11 || f.number == 14 || f.number == 15 || f.number == 23) parts->other = true;
    }
    return st != OP_OK ? st : w.bad ? malformed(r, "AttributeProto") : OP_OK;
}

/* *absent: it refers to an attribute that the function's call does not give. */
static enum op_status read_attr(struct reader *r, const struct proto *p, struct op_node *n, struct scope *s, struct captured *captured,
                                const struct call *call, int depth, struct op_attr *a, bool *absent) {
    static const enum op_attr_kind of_field[] = {[2] = OP_ATTR_FLOAT, [3] = OP_ATTR_INT, [4] = OP_ATTR_STRING, [5] = OP_ATTR_TENSOR, [6] = OP_ATTR_GRAPH,
                                                 [7] = OP_ATTR_FLOATS, [8] = OP_ATTR_INTS, [9] = OP_ATTR_STRINGS};
    struct attr_parts parts = {0};
    enum op_status st = attr_walk(r, p, a, &parts);
    if (st != OP_OK) return st;
    if (parts.ref && parts.ref[0]) {
        for (int i = 0; call && i < call->n_attrs; i++)
            if (strcmp(call->attrs[i].name, parts.ref) == 0) {
                const char *name = a->name;
                *a = call->attrs[i];
                a->name = name;
                return a->kind == OP_ATTR_GRAPH ? op__node_fail(r->err, n, OP_UNSUPPORTED, "a graph as a function's attribute is not supported") : OP_OK;
            }
        *absent = true;
        return OP_OK;
    }
    const struct wire_field *f = &parts.value;
    bool sparse = f->number == 22; /* becomes a dense one here */
    a->kind = sparse ? OP_ATTR_TENSOR
              : parts.type >= 1 && parts.type <= 8 ? (enum op_attr_kind)parts.type : parts.type || parts.other ? OP_ATTR_OTHER
              : f->number                        ? of_field[f->number]
              : parts.list                       ? of_field[parts.list]
                                                 : OP_ATTR_OTHER;
    bool bytes = f->type == WIRE_BYTES && f->data;
    struct op_const *c;
    switch (a->kind) {
    case OP_ATTR_FLOAT:
        if (f->number == 2) memcpy(&a->f, &f->value, sizeof a->f);
        return OP_OK;
    case OP_ATTR_INT: a->i = f->number == 3 ? (int64_t)f->value : 0; return OP_OK;
    case OP_ATTR_STRING:
        a->s = (struct op_string){op__arena_string(&r->m->arena, bytes ? (const char *)f->data : "", bytes ? f->len : 0), bytes ? f->len : 0};
        return a->s.data ? OP_OK : no_memory(r);
    case OP_ATTR_TENSOR:
        if (!bytes || (f->number != 5 && !sparse)) return op__node_fail(r->err, n, OP_BAD_MODEL, "attribute \"%s\" has no tensor", a->name);
        st = read_constant(r, f, sparse, &c, NULL);
        if (st == OP_OK) a->t = &c->t;
        return st;
    case OP_ATTR_GRAPH:
        if (!bytes || f->number != 6) return op__node_fail(r->err, n, OP_BAD_MODEL, "attribute \"%s\" has no graph", a->name);
        return read_subgraph(r, f, n, s, captured, call, depth, &a->g);
    case OP_ATTR_FLOATS: return read_list(r, p, 7, a);
    case OP_ATTR_INTS: return read_list(r, p, 8, a);
    case OP_ATTR_STRINGS: return read_list(r, p, 9, a);
    default: return OP_OK;
    }
}

/* --- nodes ------------------------------------------------------------------------------------- */

struct node_parts {
    int n_in, n_out, n_attrs;
    const char *name, *op_type, *domain;
};

static enum op_status node_walk(struct reader *r, const struct proto *p, struct node_parts *parts) {
    struct wire w = wire_open(p->data, p->len);
    struct wire_field f;
    enum op_status st = OP_OK;
    *parts = (struct node_parts){.name = "", .op_type = "", .domain = ""};
    while (st == OP_OK && wire_next(&w, &f)) {
        if (f.number == 1) parts->n_in++;
        else if (f.number == 2) parts->n_out++;
        else if (f.number == 3) st = take_name(r, &f, &parts->name);
        else if (f.number == 4) st = take_name(r, &f, &parts->op_type);
        else if (f.number == 5) parts->n_attrs++;
        else if (f.number == 7) st = take_name(r, &f, &parts->domain);
    }
    if (st != OP_OK) return st;
    if (w.bad) return malformed(r, "NodeProto");
    if (strcmp(parts->domain, "ai.onnx") == 0) parts->domain = "";
    if (parts->n_in > OP__NODE_IO_MAX || parts->n_out > OP__NODE_IO_MAX || parts->n_attrs > OP__NODE_IO_MAX)
        return op__model_fail(r->m, r->err, OP_LIMIT, "%s \"%s\" has more than %d inputs, outputs or attributes", parts->op_type, parts->name, OP__NODE_IO_MAX);
    return OP_OK;
}

static enum op_status node_inputs(struct reader *r, const struct proto *p, struct op_node *n, struct scope *s) {
    struct wire w = wire_open(p->data, p->len);
    struct wire_field f;
    int i = 0;
    while (wire_next(&w, &f)) {
        if (f.number != 1) continue;
        const char *name;
        enum op_status st = take_name(r, &f, &name);
        if (st != OP_OK) return st;
        n->in[i] = -1;
        if (name[0]) {
            n->in[i] = scope_lookup(s, name);
            if (n->in[i] == UNBOUND) n->in[i] = -1;
            else if (n->in[i] == -1)
                return op__node_fail(r->err, n, OP_BAD_MODEL, "input \"%.200s\" is made by no earlier node and is no input or initializer", name);
            else if (n->in[i] < 0) return no_memory(r);
        }
        i++;
    }
    while (n->n_in && n->in[n->n_in - 1] < 0) n->n_in--; /* trailing absent ones say nothing */
    return OP_OK;
}

static enum op_status node_attrs(struct reader *r, const struct proto *p, struct op_node *n, struct scope *s, const struct call *call, int depth) {
    struct wire w = wire_open(p->data, p->len);
    struct wire_field f;
    struct captured captured = {0};
    enum op_status st = OP_OK;
    while (st == OP_OK && wire_next(&w, &f)) {
        if (f.number != 5) continue;
        if (f.type != WIRE_BYTES) {
            st = malformed(r, "NodeProto");
            break;
        }
        const struct proto attr = {f.data, f.len};
        bool absent = false;
        st = read_attr(r, &attr, n, s, &captured, call, depth, &n->attrs[n->n_attrs], &absent);
        if (st == OP_OK && !absent) n->n_attrs++;
    }
    if (st == OP_OK && captured.n) { /* captures follow the node's own inputs */
        int *in = op__arena_array(&r->m->arena, (size_t)n->n_in + (size_t)captured.n, sizeof *in);
        if (in) {
            if (n->n_in) memcpy(in, n->in, (size_t)n->n_in * sizeof *in);
            memcpy(in + n->n_in, captured.values, (size_t)captured.n * sizeof *in);
            n->in = in;
            n->n_captures = captured.n;
        } else st = no_memory(r);
    }
    free(captured.values);
    return st;
}

static enum op_status define(struct reader *r, struct scope *s, const char *name, int value) {
    if (scope_find(s, name)) return op__model_fail(r->m, r->err, OP_BAD_MODEL, "\"%.200s\" is defined twice", name);
    return scope_put(s, name, value) ? OP_OK : no_memory(r);
}

static enum op_status node_outputs(struct reader *r, const struct proto *p, struct op_node *n, struct scope *s) {
    struct wire w = wire_open(p->data, p->len);
    struct wire_field f;
    int i = 0;
    while (wire_next(&w, &f)) {
        if (f.number != 2) continue;
        const char *name;
        enum op_status st = take_name(r, &f, &name);
        if (st != OP_OK) return st;
        n->out[i] = -1;
        if (name[0]) {
            n->out[i] = op__graph_value(s->graph, name);
            if (n->out[i] < 0) return no_memory(r);
            st = define(r, s, name, n->out[i]);
            if (st != OP_OK) return st;
        }
        i++;
    }
    return OP_OK;
}

static int64_t opset_of(const struct op_opset *opsets, int n, const char *domain) {
    for (int i = 0; i < n; i++)
        if (strcmp(opsets[i].domain, domain) == 0) return opsets[i].version;
    return 0;
}

static enum op_status unknown_operator(struct reader *r, const struct op_node *n, int64_t opset) {
    const char *domain = n->domain[0] ? n->domain : "ai.onnx";
    const struct op_desc *any = op__desc_find(n->domain, n->op_type, 0);
    if (!any) return op__model_fail(r->m, r->err, OP_UNSUPPORTED, "operator %.100s of domain %.100s (opset %lld) is not supported", n->op_type, domain, (long long)opset);
    if (opset < any->since)
        return op__model_fail(r->m, r->err, OP_UNSUPPORTED, "operator %.100s of domain %.100s: opset %lld is not supported, %d and newer are", n->op_type, domain,
                              (long long)opset, any->since);
    return op__model_fail(r->m, r->err, OP_UNSUPPORTED, "operator %.100s of domain %.100s: opset %lld is not supported, %d to %d are", n->op_type, domain,
                          (long long)opset, any->since, any->until);
}

/* Checks the numbers of inputs and outputs, and brings the node to the newest form. */
static enum op_status settle(struct reader *r, struct op_node *n, int64_t opset) {
    const struct op_desc *d = n->desc;
    if (d->upgrade) {
        enum op_status st = d->upgrade(n->graph, n, (int)opset, r->err);
        if (st != OP_OK) return st;
        d = n->desc;
    }
    if (n->n_in < d->in_min || (d->in_max >= 0 && n->n_in > d->in_max))
        return op__node_fail(r->err, n, OP_BAD_MODEL, "it has %d inputs, from %d to %d are possible", n->n_in, d->in_min, d->in_max < 0 ? OP__NODE_IO_MAX : d->in_max);
    for (int i = 0; i < d->in_min; i++)
        if (n->in[i] < 0) return op__node_fail(r->err, n, OP_BAD_MODEL, "input %d is left out, it is not optional", i);
    if (n->n_out < d->out_min || (d->out_max >= 0 && n->n_out > d->out_max))
        return op__node_fail(r->err, n, OP_BAD_MODEL, "it has %d outputs, from %d to %d are possible", n->n_out, d->out_min, d->out_max < 0 ? OP__NODE_IO_MAX : d->out_max);
    return OP_OK;
}

static enum op_status expand(struct reader *r, const struct function *fn, struct op_node *call_node, struct scope *s, const struct proto *p, int depth);

static const struct function *function_find(const struct reader *r, const char *domain, const char *name) {
    for (int i = 0; i < r->n_functions; i++)
        if (string_is(r->functions[i].name, name) && string_is(r->functions[i].domain, domain)) return &r->functions[i];
    return NULL;
}

static bool is_plain_constant(const struct op_node *n) {
    return op__node_is(n, "Constant") && n->n_in == 0 && n->n_out == 1 && n->out[0] >= 0 && n->n_attrs == 1 && n->attrs[0].kind == OP_ATTR_TENSOR &&
           strcmp(n->attrs[0].name, "value") == 0;
}

static enum op_status read_node(struct reader *r, const struct proto *p, struct scope *s, const struct call *call, int depth) {
    struct node_parts parts;
    struct op_graph *g = s->graph;
    enum op_status st = node_walk(r, p, &parts);
    if (st != OP_OK) return st;
    if (++r->m->n_nodes > OP__NODES_MAX) return op__model_fail(r->m, r->err, OP_LIMIT, "more than %d nodes", OP__NODES_MAX);
    struct op_node *n = op__arena_alloc(&r->m->arena, sizeof *n);
    int *slots = op__arena_array(&r->m->arena, (size_t)(parts.n_in + parts.n_out), sizeof *slots);
    struct op_attr *attrs = op__arena_array(&r->m->arena, (size_t)parts.n_attrs, sizeof *attrs);
    if (!n || !slots || !attrs) return no_memory(r);
    *n = (struct op_node){.name = parts.name, .op_type = parts.op_type, .domain = parts.domain, .n_in = parts.n_in, .n_out = parts.n_out, .in = slots,
                          .out = slots + parts.n_in, .attrs = attrs, .graph = g};
    st = node_inputs(r, p, n, s);
    if (st == OP_OK) st = node_attrs(r, p, n, s, call, depth);
    if (st != OP_OK) return st;
    const struct function *fn = function_find(r, n->domain, n->op_type);
    if (fn) return expand(r, fn, n, s, p, depth);
    int64_t opset = call ? opset_of(call->opsets, call->n_opsets, n->domain) : op__model_opset(r->m, n->domain);
    if (!opset && !n->domain[0] && r->m->ir_version >= 3) return op__model_fail(r->m, r->err, OP_BAD_MODEL, "it imports no opset of domain ai.onnx");
    if (!opset) opset = 1;
    n->desc = op__desc_find(n->domain, n->op_type, opset > INT32_MAX ? INT32_MAX : (int)opset);
    if (!n->desc) return unknown_operator(r, n, opset);
    st = node_outputs(r, p, n, s);
    if (st == OP_OK && is_plain_constant(n)) { /* a constant like an initializer: no node */
        g->values[n->out[0]].constant = (struct op_const *)(void *)n->attrs[0].t; /* t is its first member */
        return OP_OK;
    }
    if (st == OP_OK) st = op__graph_insert(g, g->n_nodes, n) ? OP_OK : no_memory(r);
    return st == OP_OK ? settle(r, n, opset) : st;
}

/* --- functions --------------------------------------------------------------------------------- */

static enum op_status read_opset(struct reader *r, const struct wire_field *f, struct op_opset **all, int *n) {
    struct wire w = wire_open(f->data, f->len);
    struct wire_field g;
    struct op_opset set = {.domain = ""};
    enum op_status st = f->type == WIRE_BYTES ? OP_OK : malformed(r, "OperatorSetIdProto");
    while (st == OP_OK && wire_next(&w, &g)) {
        if (g.number == 1) st = take_name(r, &g, &set.domain);
        if (g.number == 2) set.version = (int64_t)g.value;
    }
    if (st != OP_OK || w.bad) return st != OP_OK ? st : malformed(r, "OperatorSetIdProto");
    if (strcmp(set.domain, "ai.onnx") == 0) set.domain = "";
    if (set.version < 1) return op__model_fail(r->m, r->err, OP_BAD_MODEL, "it imports opset %lld of domain \"%s\"", (long long)set.version, set.domain);
    struct op_opset *more = op__arena_array(&r->m->arena, (size_t)*n + 1, sizeof *more);
    if (!more) return no_memory(r);
    if (*n) memcpy(more, *all, (size_t)*n * sizeof *more);
    more[(*n)++] = set;
    *all = more;
    return OP_OK;
}

/* Attributes of the call: those given, and the function's defaults for the others (attribute_proto). */
static enum op_status call_attrs(struct reader *r, const struct function *fn, struct op_node *call_node, struct scope *s, struct call *call, int depth) {
    struct wire w = wire_open(fn->proto.data, fn->proto.len);
    struct wire_field f;
    int n_defaults = 0;
    while (wire_next(&w, &f)) n_defaults += f.number == 11;
    struct op_attr *all = op__arena_array(&r->m->arena, (size_t)(call_node->n_attrs + n_defaults), sizeof *all);
    if (!all) return no_memory(r);
    if (call_node->n_attrs) memcpy(all, call_node->attrs, (size_t)call_node->n_attrs * sizeof *all);
    int n = call_node->n_attrs;
    w = wire_open(fn->proto.data, fn->proto.len);
    while (wire_next(&w, &f)) {
        if (f.number != 11 || f.type != WIRE_BYTES) continue;
        const struct proto p = {f.data, f.len};
        struct captured none = {0};
        bool absent = false;
        enum op_status st = read_attr(r, &p, call_node, s, &none, NULL, depth, &all[n], &absent);
        free(none.values);
        if (st != OP_OK) return st;
        if (!absent && !op__attr(call_node, all[n].name)) n++;
    }
    call->attrs = all;
    call->n_attrs = n;
    return OP_OK;
}

/* Binds the function's formal inputs to the call's values. */
static enum op_status bind_inputs(struct reader *r, const struct function *fn, const struct op_node *call_node, struct scope *inner, struct call *call) {
    struct wire w = wire_open(fn->proto.data, fn->proto.len);
    struct wire_field f;
    int i = 0;
    struct op_opset *opsets = NULL;
    while (wire_next(&w, &f)) {
        enum op_status st = OP_OK;
        const char *name;
        if (f.number == 9) st = read_opset(r, &f, &opsets, &call->n_opsets);
        if (f.number == 4 && (st = take_name(r, &f, &name)) == OP_OK) {
            int v = i < call_node->n_in ? call_node->in[i] : -1;
            if (!scope_find(inner, name) && !scope_put(inner, name, v < 0 ? UNBOUND : v)) st = no_memory(r);
            i++;
        }
        if (st != OP_OK) return st;
    }
    call->opsets = opsets;
    if (w.bad) return malformed(r, "FunctionProto");
    if (call_node->n_in > i) return op__node_fail(r->err, call_node, OP_BAD_MODEL, "the call has %d inputs, the function takes %d", call_node->n_in, i);
    return OP_OK;
}

/* The call's outputs become other names of the function's results. */
static enum op_status bind_outputs(struct reader *r, const struct function *fn, const struct op_node *call_node, struct scope *inner, struct scope *s,
                                   const struct proto *call_proto) {
    struct wire formal = wire_open(fn->proto.data, fn->proto.len), actual = wire_open(call_proto->data, call_proto->len);
    struct wire_field f, a;
    while (wire_next(&actual, &a)) {
        if (a.number != 2) continue;
        do
            if (!wire_next(&formal, &f)) return op__node_fail(r->err, call_node, OP_BAD_MODEL, "the call has more outputs than the function");
        while (f.number != 5);
        const char *inside = "", *outside = "";
        enum op_status st = take_name(r, &f, &inside);
        if (st == OP_OK) st = take_name(r, &a, &outside);
        if (st != OP_OK || !outside[0]) {
            if (st != OP_OK) return st;
            continue;
        }
        int *v = scope_find(inner, inside);
        if (!v || *v < 0) return op__node_fail(r->err, call_node, OP_BAD_MODEL, "the function does not make its output \"%.200s\"", inside);
        st = define(r, s, outside, *v);
        if (st != OP_OK) return st;
    }
    return OP_OK;
}

static enum op_status expand(struct reader *r, const struct function *fn, struct op_node *call_node, struct scope *s, const struct proto *p, int depth) {
    if (depth >= OP__DEPTH_MAX) return op__node_fail(r->err, call_node, OP_LIMIT, "functions and graphs are nested deeper than %d", OP__DEPTH_MAX);
    if (call_node->n_captures) return op__node_fail(r->err, call_node, OP_UNSUPPORTED, "a graph as a function's attribute is not supported");
    struct call call = {.function = &fn->proto};
    struct scope inner = {.graph = s->graph};
    struct wire w = wire_open(fn->proto.data, fn->proto.len);
    struct wire_field f;
    enum op_status st = bind_inputs(r, fn, call_node, &inner, &call);
    if (st == OP_OK) st = call_attrs(r, fn, call_node, s, &call, depth);
    while (st == OP_OK && wire_next(&w, &f)) {
        if (f.number != 7 || f.type != WIRE_BYTES) continue;
        const struct proto node = {f.data, f.len};
        st = read_node(r, &node, &inner, &call, depth + 1);
    }
    if (st == OP_OK) st = bind_outputs(r, fn, call_node, &inner, s, p);
    free(inner.table);
    return st;
}

static enum op_status read_functions(struct reader *r, const struct proto *model) {
    struct wire w = wire_open(model->data, model->len);
    struct wire_field f, g;
    while (wire_next(&w, &f)) r->n_functions += f.number == 25;
    r->functions = op__arena_array(&r->m->arena, (size_t)r->n_functions, sizeof *r->functions);
    if (!r->functions) return no_memory(r);
    r->n_functions = 0;
    w = wire_open(model->data, model->len);
    while (wire_next(&w, &f)) {
        if (f.number != 25 || f.type != WIRE_BYTES) continue;
        struct function *fn = &r->functions[r->n_functions++];
        *fn = (struct function){.name = {"", 0}, .domain = {"", 0}, .proto = {f.data, f.len}};
        struct wire inner = wire_open(f.data, f.len);
        while (wire_next(&inner, &g)) {
            if (g.number == 1) fn->name = (struct op_string){(const char *)g.data, g.len};
            if (g.number == 10) fn->domain = (struct op_string){(const char *)g.data, g.len};
        }
        if (inner.bad) return malformed(r, "FunctionProto");
    }
    return OP_OK;
}

/* --- graphs ------------------------------------------------------------------------------------ */

static enum op_status read_initializers(struct reader *r, const struct proto *p, struct scope *s) {
    struct wire w = wire_open(p->data, p->len);
    struct wire_field f;
    while (wire_next(&w, &f)) {
        if (f.number != 5 && f.number != 15) continue;
        struct op_const *c;
        const char *name;
        enum op_status st = read_constant(r, &f, f.number == 15, &c, &name);
        if (st != OP_OK) return st;
        int v = op__graph_value(s->graph, name);
        if (v < 0) return no_memory(r);
        s->graph->values[v].constant = c;
        s->graph->values[v].dtype = c->t.dtype;
        s->graph->values[v].rank = c->t.rank;
        memcpy(s->graph->values[v].dims, c->t.dims, sizeof c->t.dims);
        r->m->weight_bytes += (size_t)op_tensor_bytes(&c->t);
        st = define(r, s, name, v);
        if (st != OP_OK) return st;
    }
    return w.bad ? malformed(r, "GraphProto") : OP_OK;
}

/* Inputs without an initializer first, then those with one. */
static enum op_status read_inputs(struct reader *r, const struct proto *p, struct scope *s) {
    struct op_graph *g = s->graph;
    struct wire_field f;
    int n = 0;
    struct wire w = wire_open(p->data, p->len);
    while (wire_next(&w, &f)) n += f.number == 11;
    g->inputs = op__arena_array(g->arena, (size_t)n, sizeof *g->inputs);
    int *initialized = op__arena_array(g->arena, (size_t)n, sizeof *initialized);
    if (!g->inputs || !initialized) return no_memory(r);
    w = wire_open(p->data, p->len);
    while (wire_next(&w, &f)) {
        if (f.number != 11 || f.type != WIRE_BYTES) continue;
        struct op_value info;
        enum op_status st = read_value_info(r, &f, &info);
        if (st != OP_OK) return st;
        int *known = scope_find(s, info.name);
        int v = known ? *known : op__graph_value(g, info.name);
        if (v < 0) return no_memory(r);
        if (info.is_map) return op__model_fail(r->m, r->err, OP_UNSUPPORTED, "\"%s\" is a map, which is not supported", info.name);
        if (g->values[v].is_input) return op__model_fail(r->m, r->err, OP_BAD_MODEL, "two inputs are called \"%.200s\"", info.name);
        struct op_const *initial = g->values[v].constant;
        info.is_input = true;
        if (initial && !g->parent) { /* constant, unless this is the model that lets callers override it */
            info.dflt = initial;
            if (!r->m->inputs_open) info.constant = initial;
            initialized[g->n_initialized++] = v;
        } else g->inputs[g->n_inputs++] = v;
        g->values[v] = info;
        if (!known && (st = define(r, s, info.name, v)) != OP_OK) return st;
    }
    for (int i = 0; i < g->n_initialized; i++) g->inputs[g->n_inputs + i] = initialized[i];
    g->n_inputs += g->n_initialized;
    return OP_OK;
}

/* A sequence of maps from labels to scores, one a row, is what ZipMap makes; here it hands on the scores as they are (op/zipmap.c). */
static enum op_status map_to_scores(struct reader *r, const struct op_graph *g, int v, struct op_value *info) {
    for (int i = 0; i < g->n_nodes; i++)
        if (g->nodes[i]->n_out == 1 && g->nodes[i]->out[0] == v && !strcmp(g->nodes[i]->op_type, "ZipMap")) {
            *info = (struct op_value){.name = info->name, .dtype = OP_F32, .rank = -1};
            return OP_OK;
        }
    return op__model_fail(r->m, r->err, OP_UNSUPPORTED, "\"%s\" is a map, which is not supported", info->name);
}

static enum op_status read_outputs(struct reader *r, const struct proto *p, struct scope *s) {
    struct op_graph *g = s->graph;
    struct wire_field f;
    int n = 0;
    struct wire w = wire_open(p->data, p->len);
    while (wire_next(&w, &f)) n += f.number == 12;
    g->outputs = op__arena_array(g->arena, (size_t)n, sizeof *g->outputs);
    g->declared = op__arena_array(g->arena, (size_t)n, sizeof *g->declared);
    if (!g->outputs || !g->declared) return no_memory(r);
    w = wire_open(p->data, p->len);
    while (wire_next(&w, &f)) {
        if (f.number != 12 || f.type != WIRE_BYTES) continue;
        struct op_value info;
        enum op_status st = read_value_info(r, &f, &info);
        if (st != OP_OK) return st;
        int v = scope_lookup(s, info.name);
        if (v < 0) return v == -2 ? no_memory(r) : op__model_fail(r->m, r->err, OP_BAD_MODEL, "output \"%.200s\" is made by no node", info.name);
        if (info.is_map && (st = map_to_scores(r, g, v, &info)) != OP_OK) return st;
        g->declared[g->n_outputs] = info;
        g->outputs[g->n_outputs++] = v;
    }
    if (!g->parent) r->m->output_infos = g->declared;
    return OP_OK;
}

static enum op_status read_graph(struct reader *r, const struct proto *p, struct scope *s, const struct call *call, int depth) {
    if (depth >= OP__DEPTH_MAX) return op__model_fail(r->m, r->err, OP_LIMIT, "functions and graphs are nested deeper than %d", OP__DEPTH_MAX);
    enum op_status st = read_initializers(r, p, s);
    if (st == OP_OK) st = read_inputs(r, p, s);
    struct wire w = wire_open(p->data, p->len);
    struct wire_field f;
    while (st == OP_OK && wire_next(&w, &f)) {
        if (f.number == 2) st = take_name(r, &f, &s->graph->name);
        if (f.number != 1) continue;
        if (f.type != WIRE_BYTES) return malformed(r, "GraphProto");
        const struct proto node = {f.data, f.len};
        st = read_node(r, &node, s, call, depth);
    }
    if (st == OP_OK && w.bad) st = malformed(r, "GraphProto");
    return st == OP_OK ? read_outputs(r, p, s) : st;
}

/* --- the model --------------------------------------------------------------------------------- */

static enum op_status read_meta(struct reader *r, const struct wire_field *f) {
    struct op_model *m = r->m;
    struct wire w = wire_open(f->data, f->len);
    struct wire_field g;
    struct op_meta meta = {"", ""};
    enum op_status st = f->type == WIRE_BYTES ? OP_OK : malformed(r, "StringStringEntryProto");
    while (st == OP_OK && wire_next(&w, &g)) {
        if (g.number == 1) st = take_name(r, &g, &meta.key);
        if (g.number == 2) { /* values may be long */
            meta.value = op__arena_string(&m->arena, (const char *)g.data, g.len);
            if (!meta.value) st = no_memory(r);
        }
    }
    if (st != OP_OK) return st;
    if (m->n_meta == 4096) return op__model_fail(m, r->err, OP_LIMIT, "more than %d metadata_props", m->n_meta);
    if ((m->n_meta & (m->n_meta - 1)) == 0) { /* grow at powers of two */
        struct op_meta *more = op__arena_array(&m->arena, m->n_meta ? (size_t)m->n_meta * 2 : 1, sizeof *more);
        if (!more) return no_memory(r);
        if (m->n_meta) memcpy(more, m->meta, (size_t)m->n_meta * sizeof *more);
        m->meta = more;
    }
    m->meta[m->n_meta++] = meta;
    return OP_OK;
}

/* Everything but the graph, which wants the opsets known. */
static enum op_status read_header(struct reader *r, const struct proto *model, struct proto *graph) {
    struct op_model *m = r->m;
    struct wire w = wire_open(model->data, model->len);
    struct wire_field f;
    enum op_status st = OP_OK;
    m->producer = "";
    while (st == OP_OK && wire_next(&w, &f)) {
        if (f.number == 1 && f.type == WIRE_VARINT) m->ir_version = (int64_t)f.value;
        else if (f.number == 2) st = take_name(r, &f, &m->producer);
        else if (f.number == 7 && f.type == WIRE_BYTES) *graph = (struct proto){f.data, f.len};
        else if (f.number == 8) st = read_opset(r, &f, &m->opsets, &m->n_opsets);
        else if (f.number == 14) st = read_meta(r, &f);
    }
    if (st != OP_OK) return st;
    if (w.bad || m->ir_version < 1) return op__model_fail(m, r->err, OP_BAD_MODEL, "it is not an ONNX model: its ModelProto is not well-formed protobuf");
    return graph->data ? OP_OK : op__model_fail(m, r->err, OP_BAD_MODEL, "it has no graph");
}

enum op_status op__onnx_read(struct op_model *m, const char *bytes, size_t n, struct op_error *err) {
    struct reader r = {.m = m, .err = err};
    const struct proto model = {(const uint8_t *)bytes, n};
    struct proto graph = {0};
    enum op_status st = read_header(&r, &model, &graph);
    if (st == OP_OK) st = read_functions(&r, &model);
    if (st != OP_OK) return st;
    m->graph = op__arena_alloc(&m->arena, sizeof *m->graph);
    if (!m->graph) return no_memory(&r);
    *m->graph = (struct op_graph){.model = m, .arena = &m->arena, .name = ""};
    struct scope s = {.graph = m->graph};
    st = read_graph(&r, &graph, &s, NULL, 0);
    free(s.table);
    return st;
}
