/* A graph built piece by piece. What: the builder keeps the messages of GraphProto, already written, one buffer a kind; finishing
 * puts them together and loads the result like a file, so that a built model is checked, normalised and optimised by the same
 * code as any other. The bytes of the model lie in a memfd that is mapped as a file would be.
 *
 * The types of outputs, which ONNX wants written down, come from the engine's own inference: the graph is loaded once without
 * them, planned for two batch sizes (what differs is symbolic), and put together again.
 *
 * Extending a model: its messages are taken over byte by byte, all but the outputs. */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "ops/model.h"
#include "ops/onnx_write.h"
#include "ops/ops_train.h"
#include "ops/session.h"
#include "ops/wire.h"

enum { GRAPH_NODE = 1, GRAPH_NAME = 2, GRAPH_INITIALIZER = 5, GRAPH_INPUT = 11, GRAPH_OUTPUT = 12 };
enum { MODEL_IR_VERSION = 1, MODEL_PRODUCER = 2, MODEL_PRODUCER_VERSION = 3, MODEL_GRAPH = 7, MODEL_OPSET = 8 };
#define IR_VERSION 8

struct op_builder {
    struct op_out head;   /* fields of ModelProto but the graph */
    struct op_out nodes, others; /* fields of GraphProto but the outputs */
    char **outputs;
    int n_outputs;
    bool cut; /* outputs were taken away: what only led to them goes too */
    struct op_error err;
};

static void fail(struct op_builder *b, enum op_status code, const char *format, ...) __attribute__((format(printf, 3, 4)));
static void fail(struct op_builder *b, enum op_status code, const char *format, ...) {
    va_list args;
    if (b->err.code != OP_OK) return;
    b->err.code = code;
    va_start(args, format);
    vsnprintf(b->err.text, sizeof b->err.text, format, args);
    va_end(args);
}

struct op_builder *op_builder_create(int opset) {
    struct op_builder *b = calloc(1, sizeof *b);
    if (!b) return NULL;
    struct op_out import = {0};
    op__out_string(&import, 1, "");
    op__out_int(&import, 2, opset);
    op__out_int(&b->head, MODEL_IR_VERSION, IR_VERSION);
    op__out_string(&b->head, MODEL_PRODUCER, "quern");
    op__out_string(&b->head, MODEL_PRODUCER_VERSION, QUERN_VERSION);
    op__out_message(&b->head, MODEL_OPSET, &import);
    op__out_string(&b->others, GRAPH_NAME, "model");
    return b;
}

struct op_builder *op_builder_from(struct op_model *m, struct op_error *err) {
    struct op_builder *b = calloc(1, sizeof *b);
    struct wire_field f, g;
    struct op_error own;
    if (!err) err = &own;
    *err = (struct op_error){0};
    if (!b) return op__model_fail(m, err, OP_NOMEM, "out of memory"), NULL;
    if (m->mappings && m->mappings->next) {
        free(b);
        return op__model_fail(m, err, OP_UNSUPPORTED, "a model with external data cannot be extended"), NULL;
    }
    for (struct wire model = wire_open(m->bytes, m->n_bytes); wire_next(&model, &f);) {
        if (f.number != MODEL_GRAPH || f.type != WIRE_BYTES) {
            op__out_field(&b->head, &f);
            continue;
        }
        for (struct wire graph = wire_open(f.data, f.len); wire_next(&graph, &g);)
            if (g.number != GRAPH_OUTPUT) op__out_field(g.number == GRAPH_NODE ? &b->nodes : &b->others, &g);
    }
    for (int i = 0; i < op_model_n_outputs(m); i++) op_builder_output(b, op_model_output(m, i)->name);
    return b;
}

void op_builder_input(struct op_builder *b, const char *name, enum op_type dtype, int rank, const int64_t *dims, const char *const *symbols) {
    if (rank < 0 || rank > OP_RANK_MAX) fail(b, OP_BAD_SHAPE, "input \"%.80s\" has rank %d, 0 to %d are possible", name, rank, OP_RANK_MAX);
    else op__out_value_info(&b->others, GRAPH_INPUT, name, dtype, rank, dims, symbols);
}

void op_builder_weight(struct op_builder *b, const char *name, const struct op_tensor *value) {
    if (op_tensor_count(value) < 0) fail(b, OP_BAD_SHAPE, "weight \"%.80s\" has an impossible shape", name);
    else op__out_tensor(&b->others, GRAPH_INITIALIZER, name, value);
}

static void put_arg(struct op_out *node, const struct op_arg *a) {
    static const int types[] = {[OP_ARG_INT] = 2, [OP_ARG_FLOAT] = 1, [OP_ARG_STRING] = 3, [OP_ARG_INTS] = 7, [OP_ARG_FLOATS] = 6};
    struct op_out m = {0};
    op__out_string(&m, 1, a->name);
    if (a->kind == OP_ARG_INT) op__out_int(&m, 3, a->i);
    if (a->kind == OP_ARG_FLOAT) op__out_float(&m, 2, a->f);
    if (a->kind == OP_ARG_STRING) op__out_string(&m, 4, a->s);
    for (int i = 0; a->kind == OP_ARG_INTS && i < a->n; i++) op__out_int(&m, 8, a->ints[i]);
    for (int i = 0; a->kind == OP_ARG_FLOATS && i < a->n; i++) op__out_float(&m, 7, a->floats[i]);
    op__out_int(&m, 20, types[a->kind]);
    op__out_message(node, 5, &m);
}

void op_builder_node(struct op_builder *b, const char *op_type, const char *const *inputs, int n_inputs, const char *const *outputs, int n_outputs,
                     const struct op_arg *args, int n_args) {
    struct op_out node = {0};
    for (int i = 0; i < n_inputs; i++) op__out_string(&node, 1, inputs[i]);
    for (int i = 0; i < n_outputs; i++) op__out_string(&node, 2, outputs[i]);
    op__out_string(&node, 3, n_outputs > 0 ? outputs[0] : op_type);
    op__out_string(&node, 4, op_type);
    for (int i = 0; i < n_args; i++) put_arg(&node, &args[i]);
    op__out_message(&b->nodes, GRAPH_NODE, &node);
}

void op_builder_output(struct op_builder *b, const char *name) {
    char **grown = realloc(b->outputs, ((size_t)b->n_outputs + 1) * sizeof *grown), *copy = strdup(name);
    if (grown) b->outputs = grown;
    if (!grown || !copy) {
        free(copy);
        fail(b, OP_NOMEM, "out of memory");
        return;
    }
    b->outputs[b->n_outputs++] = copy;
}

void op_builder_clear_outputs(struct op_builder *b) {
    for (int i = 0; i < b->n_outputs; i++) free(b->outputs[i]);
    b->n_outputs = 0;
    b->cut = true;
}

void op_builder_destroy(struct op_builder *b) {
    if (!b) return;
    op_builder_clear_outputs(b);
    free(b->outputs);
    op__out_finish(&b->head);
    op__out_finish(&b->nodes);
    op__out_finish(&b->others);
    free(b);
}

/* --- putting together --------------------------------------------------------------------------- */

struct op_model *op__model_from_bytes(const void *bytes, size_t n, struct op_error *err) {
    int fd = memfd_create("quern-model", MFD_CLOEXEC);
    void *map = MAP_FAILED;
    if (fd >= 0 && ftruncate(fd, (off_t)n) == 0) map = mmap(NULL, n, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (fd >= 0) close(fd);
    if (map == MAP_FAILED) {
        err->code = OP_NOMEM;
        snprintf(err->text, sizeof err->text, "out of memory for a model of %zu bytes", n);
        return NULL;
    }
    memcpy(map, bytes, n);
    return op__model_load_mapping(map, n, err);
}

/* The model with these outputs; infos holds their ValueInfoProtos where they are known, else they get their names only. */
static struct op_model *assemble(struct op_builder *b, char *const *outputs, int n_outputs, const struct op_out *infos) {
    struct op_out graph = {0}, model = {0};
    op__out_raw(&graph, b->nodes.data, b->nodes.n);
    op__out_raw(&graph, b->others.data, b->others.n);
    if (infos) op__out_raw(&graph, infos->data, infos->n);
    for (int i = 0; i < n_outputs && !infos; i++) {
        struct op_out info = {0};
        op__out_string(&info, 1, outputs[i]);
        op__out_message(&graph, GRAPH_OUTPUT, &info);
    }
    op__out_raw(&model, b->head.data, b->head.n);
    op__out_message(&model, MODEL_GRAPH, &graph);
    struct op_model *m = NULL;
    if (model.failed || b->head.failed || b->nodes.failed || b->others.failed) fail(b, OP_NOMEM, "out of memory for the model");
    else {
        struct op_error err;
        m = op__model_from_bytes(model.data, model.n, &err);
        if (!m) fail(b, err.code, "%s", err.text);
    }
    op__out_finish(&model);
    return m;
}

int op_builder_shape(struct op_builder *b, const char *name, enum op_type *dtype, int64_t *dims) {
    char *outputs[] = {(char *)(uintptr_t)name};
    struct op_tensor t = {.rank = -1};
    if (b->err.code != OP_OK) return -1;
    struct op_model *m = assemble(b, outputs, 1, NULL);
    if (!m || !op__output_shapes(m, &t)) t.rank = -1;
    op_model_release(m);
    b->err = (struct op_error){0}; /* a value that is not there is no error of the graph */
    if (t.rank < 0) return -1;
    if (dtype) *dtype = t.dtype;
    if (dims) memcpy(dims, t.dims, (size_t)t.rank * sizeof *dims);
    return t.rank;
}

/* --- what an old head leaves ------------------------------------------------------------------- */

struct names {
    const struct wire_field *items; /* spans of the buffers */
    size_t n, room;
};

static bool has_name(const struct names *s, const struct wire_field *name) {
    for (size_t i = 0; i < s->n; i++)
        if (s->items[i].len == name->len && memcmp(s->items[i].data, name->data, name->len) == 0) return true;
    return false;
}

static bool add_name(struct names *s, const struct wire_field *name) {
    if (name->len == 0 || has_name(s, name)) return true;
    if (s->n == s->room) {
        size_t room = s->room ? 2 * s->room : 64;
        struct wire_field *grown = realloc((void *)(uintptr_t)s->items, room * sizeof *grown);
        if (!grown) return false;
        s->items = grown;
        s->room = room;
    }
    ((struct wire_field *)(uintptr_t)s->items)[s->n++] = *name;
    return true;
}

/* Whether a NodeProto gives a needed value; its inputs are then needed. *whole: it has a subgraph, which may use any name. */
static bool node_needed(const struct wire_field *node, struct names *needed, bool *whole, bool *good) {
    struct wire_field f, g;
    bool is = false;
    for (struct wire in = wire_open(node->data, node->len); wire_next(&in, &f);) {
        if (f.number == 2) is |= has_name(needed, &f);
        if (f.number == 5 && f.type == WIRE_BYTES)
            for (struct wire arg = wire_open(f.data, f.len); wire_next(&arg, &g);) *whole |= g.number == 6 || g.number == 11; /* graph, graphs */
    }
    if (!is) return false;
    for (struct wire in = wire_open(node->data, node->len); wire_next(&in, &f);)
        if (f.number == 1) *good &= add_name(needed, &f);
    return true;
}

/* Leaves out the nodes and initializers that no output depends on. Graphs with subgraphs stay as they are. */
static void drop_unused(struct op_builder *b) {
    struct wire_field f, g, *nodes = NULL;
    size_t n = 0, i = 0;
    bool whole = false, good = true;
    struct names needed = {0};
    struct op_out kept = {0}, others = {0};
    for (struct wire in = wire_open(b->nodes.data, b->nodes.n); wire_next(&in, &f);) n++;
    bool *keep = calloc(n + 1, sizeof *keep);
    nodes = calloc(n + 1, sizeof *nodes);
    good = keep && nodes;
    for (int k = 0; k < b->n_outputs && good; k++) {
        const struct wire_field name = {.type = WIRE_BYTES, .data = (const uint8_t *)b->outputs[k], .len = strlen(b->outputs[k])};
        good = add_name(&needed, &name);
    }
    for (struct wire in = wire_open(b->nodes.data, b->nodes.n); good && wire_next(&in, &f);) nodes[i++] = f;
    for (i = n; good && i-- > 0;) keep[i] = node_needed(&nodes[i], &needed, &whole, &good);
    for (i = 0; good && i < n; i++)
        if (keep[i]) op__out_field(&kept, &nodes[i]);
    for (struct wire in = wire_open(b->others.data, b->others.n); good && wire_next(&in, &f);) {
        bool used = f.number != GRAPH_INITIALIZER;
        for (struct wire t = wire_open(f.data, used ? 0 : f.len); !used && wire_next(&t, &g);) used = g.number == 8 && has_name(&needed, &g);
        if (used) op__out_field(&others, &f);
    }
    if (good && !whole && !kept.failed && !others.failed) {
        struct op_out swap = b->nodes;
        b->nodes = kept;
        kept = swap;
        swap = b->others;
        b->others = others;
        others = swap;
    }
    op__out_finish(&kept);
    op__out_finish(&others);
    free(nodes);
    free(keep);
    free((void *)(uintptr_t)needed.items);
}

struct op_model *op_builder_finish(struct op_builder *b, struct op_error *err) {
    struct op_error own;
    struct op_out infos = {0};
    if (!err) err = &own;
    *err = (struct op_error){.code = OP_NOMEM, .text = "out of memory"};
    if (!b) return NULL;
    if (b->n_outputs == 0) fail(b, OP_BAD_MODEL, "the graph has no output");
    if (b->cut) drop_unused(b);
    struct op_model *m = b->err.code == OP_OK ? assemble(b, b->outputs, b->n_outputs, NULL) : NULL;
    struct op_tensor *shapes = calloc((size_t)b->n_outputs + 1, sizeof *shapes);
    if (m && shapes && op__output_shapes(m, shapes)) {
        static const char *const batch[OP_RANK_MAX] = {"N"};
        for (int i = 0; i < b->n_outputs; i++)
            op__out_value_info(&infos, GRAPH_OUTPUT, b->outputs[i], shapes[i].dtype, shapes[i].rank, shapes[i].dims, batch);
        op_model_release(m);
        m = assemble(b, b->outputs, b->n_outputs, &infos);
    }
    free(shapes);
    op__out_finish(&infos);
    *err = b->err;
    op_builder_destroy(b);
    return m;
}
