/* op_testing.h: writes small ONNX models in memory for the unit tests of operators and of the engine.
 *
 *   struct ot m;
 *   ot_begin(&m, 17);
 *   ot_input(&m, "x", OP_F32, 2, (int64_t[]){-1, 3});
 *   ot_constant(&m, "w", OP_F32, 1, (int64_t[]){3}, w);
 *   ot_node(&m, "Add", "x w", "y");          // names separated by blanks; "." is an absent one
 *   ot_int(&m, "axis", 1);                   // attributes of the last node
 *   ot_output(&m, "y", OP_F32, -1, NULL);
 *   struct op_model *model = ot_load(&m, NULL, &err);   // borrowed bytes: ot_end(&m) after op_model_release
 *
 * or in one go: ot_run(&m, NULL, inputs, n, &err) loads, runs and keeps everything until ot_end(&m). */
#ifndef QUERN_TESTS_OP_TESTING_H
#define QUERN_TESTS_OP_TESTING_H

#include <stdlib.h>
#include <string.h>

#include "ops/ops.h"

struct ot_bytes {
    unsigned char *data;
    size_t len, cap;
};

struct ot {
    struct ot_bytes graph, node, file, functions;
    int opset, domain_opset; /* of ONNX; of the other domains, 0: 1 */
    struct op_model *model;
    struct op_session *session;
};

static inline void ot_put(struct ot_bytes *b, const void *data, size_t len) {
    if (b->len + len > b->cap) {
        b->cap = (b->len + len) * 2 + 64;
        b->data = realloc(b->data, b->cap);
        if (!b->data) abort();
    }
    if (len) memcpy(b->data + b->len, data, len);
    b->len += len;
}

static inline void ot_varint(struct ot_bytes *b, uint64_t v) {
    do {
        unsigned char byte = (unsigned char)((v & 0x7f) | (v > 0x7f ? 0x80 : 0));
        ot_put(b, &byte, 1);
        v >>= 7;
    } while (v);
}

static inline void ot_put_int(struct ot_bytes *b, int field, int64_t v) {
    ot_varint(b, (uint64_t)field << 3);
    ot_varint(b, (uint64_t)v);
}

static inline void ot_put_bytes(struct ot_bytes *b, int field, const void *data, size_t len) {
    ot_varint(b, (uint64_t)field << 3 | 2);
    ot_varint(b, len);
    ot_put(b, data, len);
}

static inline void ot_put_string(struct ot_bytes *b, int field, const char *text) {
    ot_put_bytes(b, field, text, strlen(text));
}

/* Appends `part` as a sub-message and frees it. */
static inline void ot_put_part(struct ot_bytes *b, int field, struct ot_bytes *part) {
    ot_put_bytes(b, field, part->data, part->len);
    free(part->data);
    *part = (struct ot_bytes){0};
}

/* A TensorProto with raw data; strings go as string_data. */
static inline struct ot_bytes ot_tensor(const char *name, enum op_type dtype, int rank, const int64_t *dims, const void *data) {
    struct ot_bytes b = {0};
    struct op_tensor t = {.dtype = dtype, .rank = rank};
    for (int i = 0; i < rank; i++) {
        t.dims[i] = dims[i];
        ot_put_int(&b, 1, dims[i]);
    }
    ot_put_int(&b, 2, dtype);
    if (name) ot_put_string(&b, 8, name);
    if (dtype == OP_STRING)
        for (int64_t i = 0; i < op_tensor_count(&t); i++) ot_put_bytes(&b, 6, ((const struct op_string *)data)[i].data, ((const struct op_string *)data)[i].len);
    else ot_put_bytes(&b, 9, data, (size_t)op_tensor_bytes(&t));
    return b;
}

/* A ValueInfoProto; rank -1: no shape; a dimension of -1 is symbolic ("d0", "d1", …). */
static inline struct ot_bytes ot_value(const char *name, enum op_type dtype, int rank, const int64_t *dims) {
    struct ot_bytes info = {0}, type = {0}, tensor = {0}, shape = {0};
    for (int i = 0; i < rank; i++) {
        struct ot_bytes dim = {0};
        char symbol[3] = {'d', (char)('0' + i), 0};
        if (dims[i] >= 0) ot_put_int(&dim, 1, dims[i]);
        else ot_put_string(&dim, 2, symbol);
        ot_put_part(&shape, 1, &dim);
    }
    ot_put_int(&tensor, 1, dtype);
    if (rank >= 0) ot_put_part(&tensor, 2, &shape);
    ot_put_part(&type, 1, &tensor);
    ot_put_string(&info, 1, name);
    ot_put_part(&info, 2, &type);
    return info;
}

static inline void ot_begin(struct ot *m, int opset) {
    *m = (struct ot){.opset = opset};
}

static inline void ot_close_node(struct ot *m) {
    if (m->node.len) ot_put_part(&m->graph, 1, &m->node);
}

static inline void ot_input(struct ot *m, const char *name, enum op_type dtype, int rank, const int64_t *dims) {
    struct ot_bytes b = ot_value(name, dtype, rank, dims);
    ot_put_part(&m->graph, 11, &b);
}

static inline void ot_output(struct ot *m, const char *name, enum op_type dtype, int rank, const int64_t *dims) {
    struct ot_bytes b = ot_value(name, dtype, rank, dims);
    ot_put_part(&m->graph, 12, &b);
}

static inline void ot_constant(struct ot *m, const char *name, enum op_type dtype, int rank, const int64_t *dims, const void *data) {
    struct ot_bytes b = ot_tensor(name, dtype, rank, dims, data);
    ot_put_part(&m->graph, 5, &b);
}

static inline void ot_names(struct ot_bytes *b, int field, const char *names) {
    while (*names) {
        size_t len = strcspn(names, " ");
        if (len == 1 && *names == '.') ot_put_bytes(b, field, "", 0);
        else if (len) ot_put_bytes(b, field, names, len);
        names += len + (names[len] == ' ');
    }
}

static inline void ot_node_of(struct ot *m, const char *domain, const char *op_type, const char *in, const char *out) {
    ot_close_node(m);
    ot_names(&m->node, 1, in);
    ot_names(&m->node, 2, out);
    ot_put_string(&m->node, 4, op_type);
    if (*domain) ot_put_string(&m->node, 7, domain);
}

static inline void ot_node(struct ot *m, const char *op_type, const char *in, const char *out) {
    ot_node_of(m, "", op_type, in, out);
}

static inline struct ot_bytes ot_attr(const char *name, int type) {
    struct ot_bytes b = {0};
    ot_put_string(&b, 1, name);
    ot_put_int(&b, 20, type);
    return b;
}

static inline void ot_int(struct ot *m, const char *name, int64_t v) {
    struct ot_bytes b = ot_attr(name, 2);
    ot_put_int(&b, 3, v);
    ot_put_part(&m->node, 5, &b);
}

static inline void ot_float(struct ot *m, const char *name, float v) {
    struct ot_bytes b = ot_attr(name, 1);
    ot_varint(&b, 2 << 3 | 5);
    ot_put(&b, &v, sizeof v);
    ot_put_part(&m->node, 5, &b);
}

static inline void ot_string(struct ot *m, const char *name, const char *v) {
    struct ot_bytes b = ot_attr(name, 3);
    ot_put_string(&b, 4, v);
    ot_put_part(&m->node, 5, &b);
}

static inline void ot_ints(struct ot *m, const char *name, int64_t n, const int64_t *v) {
    struct ot_bytes b = ot_attr(name, 7);
    for (int64_t i = 0; i < n; i++) ot_put_int(&b, 8, v[i]);
    ot_put_part(&m->node, 5, &b);
}

static inline void ot_floats(struct ot *m, const char *name, int64_t n, const float *v) {
    struct ot_bytes b = ot_attr(name, 6);
    for (int64_t i = 0; i < n; i++) {
        ot_varint(&b, 7 << 3 | 5);
        ot_put(&b, &v[i], sizeof v[i]);
    }
    ot_put_part(&m->node, 5, &b);
}

static inline void ot_strings(struct ot *m, const char *name, int64_t n, const char *const *v) {
    struct ot_bytes b = ot_attr(name, 8);
    for (int64_t i = 0; i < n; i++) ot_put_string(&b, 9, v[i]);
    ot_put_part(&m->node, 5, &b);
}

static inline void ot_tensor_attr(struct ot *m, const char *name, enum op_type dtype, int rank, const int64_t *dims, const void *data) {
    struct ot_bytes b = ot_attr(name, 4), t = ot_tensor(NULL, dtype, rank, dims, data);
    ot_put_part(&b, 5, &t);
    ot_put_part(&m->node, 5, &b);
}

/* A graph attribute of the last node; takes the graph of `sub`, which is done with ot_begin, ot_node, … but not loaded. */
static inline void ot_graph_attr(struct ot *m, const char *name, struct ot *sub) {
    struct ot_bytes b = ot_attr(name, 5);
    ot_close_node(sub);
    ot_put_string(&sub->graph, 2, name);
    ot_put_part(&b, 6, &sub->graph);
    ot_put_part(&m->node, 5, &b);
}

/* The bytes of the whole model in m->file. */
static inline void ot_finish(struct ot *m) {
    struct ot_bytes opset = {0};
    ot_close_node(m);
    ot_put_int(&m->file, 1, 8);
    ot_put_string(&m->graph, 2, "test");
    ot_put_part(&m->file, 7, &m->graph);
    ot_put_int(&opset, 2, m->opset);
    ot_put_part(&m->file, 8, &opset);
    const char *const domains[] = {"ai.onnx.ml", "ai.onnx.preview.training", "com.microsoft", "quern"};
    for (size_t i = 0; i < sizeof domains / sizeof *domains; i++) {
        ot_put_string(&opset, 1, domains[i]);
        ot_put_int(&opset, 2, m->domain_opset ? m->domain_opset : 1);
        ot_put_part(&m->file, 8, &opset);
    }
    ot_put(&m->file, m->functions.data, m->functions.len);
}

static inline struct op_model *ot_load(struct ot *m, const struct op_load_options *options, struct op_error *err) {
    if (!m->file.len) ot_finish(m);
    return op_model_load_memory(m->file.data, m->file.len, NULL, options, err);
}

/* Loads and runs; the outputs live until ot_end. NULL on error. */
static inline const struct op_tensor *ot_run(struct ot *m, const struct op_load_options *options, const struct op_tensor *inputs, int n, struct op_error *err) {
    const struct op_tensor *out = NULL;
    *err = (struct op_error){0};
    if (!m->model) m->model = ot_load(m, options, err);
    if (m->model && !m->session) m->session = op_session_create(m->model, NULL, err);
    if (!m->session || op_session_run(m->session, inputs, n, &out, err) != OP_OK) return NULL;
    return out;
}

static inline void ot_end(struct ot *m) {
    op_session_destroy(m->session);
    op_model_release(m->model);
    free(m->graph.data);
    free(m->node.data);
    free(m->file.data);
    free(m->functions.data);
    *m = (struct ot){0};
}

#endif
