/* Common subexpressions: of two nodes with the same operator, inputs and attributes the first computes for both. Small
 * constants of the same content count as the same input: exporters write each 1 and each axis anew. */
#include "ops/graph.h"

#include <stdlib.h>
#include <string.h>

static bool same_tensor(const struct op_tensor *a, const struct op_tensor *b) {
    if (a == b) return true;
    if (a->dtype != b->dtype || a->dtype == OP_STRING || a->rank != b->rank) return false;
    if (a->rank && memcmp(a->dims, b->dims, (size_t)a->rank * sizeof *a->dims) != 0) return false;
    int64_t bytes = op_tensor_bytes(a);
    return bytes == 0 || (a->data && b->data && memcmp(a->data, b->data, (size_t)bytes) == 0);
}

static bool same_attr(const struct op_attr *a, const struct op_attr *b) {
    if (a->kind != b->kind) return false;
    switch (a->kind) {
    case OP_ATTR_FLOAT: return memcmp(&a->f, &b->f, sizeof a->f) == 0;
    case OP_ATTR_INT: return a->i == b->i;
    case OP_ATTR_STRING: return a->s.len == b->s.len && memcmp(a->s.data, b->s.data, a->s.len) == 0;
    case OP_ATTR_TENSOR: return same_tensor(a->t, b->t);
    case OP_ATTR_FLOATS: return a->n == b->n && (!a->n || memcmp(a->floats, b->floats, (size_t)a->n * sizeof *a->floats) == 0);
    case OP_ATTR_INTS: return a->n == b->n && (!a->n || memcmp(a->ints, b->ints, (size_t)a->n * sizeof *a->ints) == 0);
    default: return false; /* lists of strings and graphs are rare enough to compute twice */
    }
}

static bool same_node(const struct op_node *a, const struct op_node *b) {
    if (a->desc != b->desc || a->n_in != b->n_in || a->n_out != b->n_out || a->n_attrs != b->n_attrs) return false;
    if (a->n_in && memcmp(a->in, b->in, (size_t)a->n_in * sizeof *a->in) != 0) return false;
    for (int i = 0; i < a->n_attrs; i++) {
        const struct op_attr *other = op__attr(b, a->attrs[i].name);
        if (!other || !same_attr(&a->attrs[i], other)) return false;
    }
    return true;
}

static uint32_t hash_of(const struct op_node *n) {
    uint64_t h = (uint64_t)(uintptr_t)n->desc;
    for (int i = 0; i < n->n_in; i++) h = (h ^ (uint64_t)(uint32_t)n->in[i]) * 0x9e3779b97f4a7c15u;
    for (int i = 0; i < n->n_attrs; i++) /* what tells most apart; same_node does the rest */
        if (n->attrs[i].kind == OP_ATTR_INT) h = (h ^ (uint64_t)n->attrs[i].i) * 0x9e3779b97f4a7c15u;
    return (uint32_t)(h >> 32);
}

#define SMALL_BYTES 256
enum { TRIES = 64 }; /* a long run of equal hashes is left alone */

static uint32_t hash_bytes(uint32_t h, const void *data, size_t n) {
    const uint8_t *at = data;
    for (size_t i = 0; i < n; i++) h = (h ^ at[i]) * 16777619u; /* FNV-1a */
    return h;
}

/* Maps each small constant to the first of the same content. */
static void share_constants(const struct op_graph *g, int *table, uint32_t mask, int *to) {
    for (uint32_t i = 0; i <= mask; i++) table[i] = -1;
    for (int v = 0; v < g->n_values; v++) {
        const struct op_tensor *t = op__graph_constant_type(g, v); /* small ones have their data */
        int64_t bytes = t ? op_tensor_bytes(t) : -1;
        if (bytes < 0 || bytes > SMALL_BYTES || t->dtype == OP_STRING || !t->data) continue;
        uint32_t at = hash_bytes(2166136261u ^ (uint32_t)t->dtype << 8 ^ (uint32_t)t->rank, t->data, (size_t)bytes);
        int tries = 0;
        while (table[at & mask] >= 0 && tries++ < TRIES && !same_tensor(op__graph_constant_type(g, table[at & mask]), t)) at++;
        if (table[at & mask] < 0) table[at & mask] = v;
        else if (tries <= TRIES) to[v] = table[at & mask];
    }
}

static void merge(struct op_node *first, const struct op_node *second, int *to) {
    for (int o = 0; o < second->n_out; o++) {
        if (second->out[o] < 0) continue;
        if (first->out[o] >= 0) to[second->out[o]] = first->out[o];
        else first->out[o] = second->out[o];
    }
}

static void walk(struct op_graph *g, struct op_node **table, uint32_t mask, int *to, int *changed) {
    for (int i = 0; i < g->n_nodes; i++) {
        struct op_node *n = g->nodes[i];
        if (!n) continue;
        for (int k = 0; k < n->n_in + n->n_captures; k++)
            if (n->in[k] >= 0) n->in[k] = to[n->in[k]];
        if (n->desc->flags & (OP_F_RANDOM | OP_F_CONTROL)) continue;
        uint32_t at = hash_of(n);
        int tries = 0;
        while (table[at & mask] && tries++ < TRIES && !same_node(table[at & mask], n)) at++;
        if (!table[at & mask]) table[at & mask] = n;
        else if (tries <= TRIES) {
            merge(table[at & mask], n, to);
            op__graph_remove(g, i);
            ++*changed;
        }
    }
    for (int o = 0; o < g->n_outputs; o++) g->outputs[o] = to[g->outputs[o]];
}

static enum op_status run(struct op_graph *g, int *changed, struct op_error *err) {
    uint32_t size = 16;
    while (size < (uint32_t)g->n_nodes * 2 || size < (uint32_t)g->n_values * 2) size *= 2;
    struct op_node **table = calloc(size, sizeof *table);
    int *constants = malloc(size * sizeof *constants), *to = malloc(((size_t)g->n_values + 1) * sizeof *to);
    (void)err;
    for (int v = 0; to && v < g->n_values; v++) to[v] = v;
    enum op_status st = table && constants && to ? OP_OK : OP_NOMEM;
    if (st == OP_OK) {
        share_constants(g, constants, size - 1, to);
        walk(g, table, size - 1, to, changed);
    }
    free(constants);
    free(table);
    free(to);
    return st;
}

static const struct op_pass pass_cse = {.name = "cse", .order = 400, .run = run};
OP_PASS_REGISTER(pass_cse);
