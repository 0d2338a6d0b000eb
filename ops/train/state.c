/* A trainer's state as bytes, and the model that it stands for.
 *
 * The block: magic, version, sizes; steps, updates, accumulated; then of each weight its name, size and arrays (value, states, sum, average);
 * the caller's extra bytes; a SHA-256 of all before it. Little endian. A loader checks the hash first, then that names, sizes and
 * the optimiser are the trainer's own, and changes nothing before all of it fits. */
#include <inttypes.h>
#include <openssl/evp.h>
#include <stdlib.h>
#include <string.h>

#include "ops/onnx_write.h"
#include "ops/train/train.h"
#include "ops/wire.h"

static const char magic[8] = "QRNTRN1";
#define HASH_BYTES 32

/* Arrays that a weight has; fills list, returns their number. */
static int arrays_of(const struct op_trainer *t, struct op_weight *w, float **list) {
    int n = 0;
    list[n++] = w->value.data;
    for (int k = 0; w->trained && k < op__rule_states(t->rule, &t->options.optimizer); k++) list[n++] = w->state[k];
    if (w->sum) list[n++] = w->sum;
    if (w->ema) list[n++] = w->ema;
    return n;
}

static bool hash(const void *bytes, size_t n, unsigned char *digest) {
    unsigned len;
    return EVP_Digest(bytes, n, digest, &len, EVP_sha256(), NULL) == 1;
}

static void put_u64(struct op_out *o, uint64_t v) {
    op__out_raw(o, &v, sizeof v);
}

void *op_trainer_save(struct op_trainer *t, const void *extra, size_t extra_bytes, size_t *n_bytes, struct op_error *err) {
    struct op_out o = {0};
    unsigned char digest[HASH_BYTES];
    float *arrays[OP__STATES_MAX + 3];
    op__out_raw(&o, magic, sizeof magic);
    put_u64(&o, t->steps);
    put_u64(&o, t->updates);
    put_u64(&o, (uint64_t)t->n_accumulated);
    put_u64(&o, (uint64_t)t->n_weights);
    for (int i = 0; i < t->n_weights; i++) {
        struct op_weight *w = &t->weights[i];
        int n = arrays_of(t, w, arrays);
        put_u64(&o, strlen(w->name));
        op__out_raw(&o, w->name, strlen(w->name));
        put_u64(&o, (uint64_t)n);
        put_u64(&o, (uint64_t)op_tensor_bytes(&w->value));
        for (int k = 0; k < n; k++) op__out_raw(&o, arrays[k], (size_t)op_tensor_bytes(&w->value));
    }
    put_u64(&o, extra_bytes);
    op__out_raw(&o, extra, extra_bytes);
    if (o.failed || !hash(o.data, o.n, digest)) {
        op__out_finish(&o);
        if (err) op__model_fail(t->model, err, OP_NOMEM, "out of memory for a checkpoint");
        return NULL;
    }
    op__out_raw(&o, digest, sizeof digest);
    if (o.failed) {
        op__out_finish(&o);
        if (err) op__model_fail(t->model, err, OP_NOMEM, "out of memory for a checkpoint");
        return NULL;
    }
    *n_bytes = o.n;
    return o.data;
}

/* Reads v; false at the end of the bytes. */
static bool take_u64(struct wire *w, uint64_t *v) {
    return wire_fixed(w, sizeof *v, v);
}

/* Walks the weights; with `apply` copies them in. Names what does not fit. */
static enum op_status walk(struct op_trainer *t, struct wire *in, bool apply, struct op_error *err) {
    uint64_t n_weights, len, n, bytes;
    float *arrays[OP__STATES_MAX + 3];
    if (!take_u64(in, &n_weights) || n_weights != (uint64_t)t->n_weights)
        return op__model_fail(t->model, err, OP_BAD_VALUE, "the checkpoint is of a model with another number of weights");
    for (int i = 0; i < t->n_weights; i++) {
        struct op_weight *w = &t->weights[i];
        uint64_t mine = (uint64_t)op_tensor_bytes(&w->value), own_arrays = (uint64_t)arrays_of(t, w, arrays);
        if (!take_u64(in, &len) || len > (uint64_t)(in->end - in->at) || len != strlen(w->name) || memcmp(in->at, w->name, len))
            return op__model_fail(t->model, err, OP_BAD_VALUE, "the checkpoint has another weight where this model has \"%.100s\"", w->name);
        in->at += len;
        if (!take_u64(in, &n) || !take_u64(in, &bytes) || bytes != mine || n != own_arrays || (uint64_t)(in->end - in->at) / n < bytes)
            return op__model_fail(t->model, err, OP_BAD_VALUE, "weight \"%.100s\" has another size or another optimiser in the checkpoint", w->name);
        for (uint64_t k = 0; k < n; k++, in->at += bytes)
            if (apply) memcpy(arrays[k], in->at, bytes);
    }
    return OP_OK;
}

enum op_status op_trainer_load(struct op_trainer *t, const void *bytes, size_t n_bytes, void **extra, size_t *extra_bytes, struct op_error *err) {
    unsigned char digest[HASH_BYTES];
    struct op_error own;
    uint64_t steps, updates, accumulated, n_extra;
    if (!err) err = &own;
    if (n_bytes < sizeof magic + HASH_BYTES || memcmp(bytes, magic, sizeof magic)) return op__model_fail(t->model, err, OP_BAD_VALUE, "these %zu bytes are no checkpoint", n_bytes);
    size_t body = n_bytes - HASH_BYTES;
    if (!hash(bytes, body, digest) || memcmp(digest, (const char *)bytes + body, HASH_BYTES))
        return op__model_fail(t->model, err, OP_BAD_VALUE, "the checkpoint is damaged: its hash does not fit its %zu bytes", n_bytes);
    struct wire in = wire_open((const char *)bytes + sizeof magic, body - sizeof magic), weights;
    if (!take_u64(&in, &steps) || !take_u64(&in, &updates) || !take_u64(&in, &accumulated)) return op__model_fail(t->model, err, OP_BAD_VALUE, "the checkpoint is cut short");
    weights = in;
    enum op_status st = walk(t, &in, false, err);
    if (st != OP_OK) return st;
    if (!take_u64(&in, &n_extra) || n_extra != (uint64_t)(in.end - in.at)) return op__model_fail(t->model, err, OP_BAD_VALUE, "the checkpoint is cut short");
    if (extra) {
        *extra = malloc(n_extra + 1);
        if (!*extra) return op__model_fail(t->model, err, OP_NOMEM, "out of memory");
        memcpy(*extra, in.at, n_extra);
        ((char *)*extra)[n_extra] = 0;
        *extra_bytes = n_extra;
    }
    t->steps = steps;
    t->updates = updates;
    t->n_accumulated = (int)accumulated;
    return walk(t, &weights, true, err);
}

void *op_trainer_snapshot(struct op_trainer *t, struct op_error *err) {
    size_t total = 1, at = 0;
    for (int i = 0; i < t->n_weights; i++) total += (size_t)op_tensor_bytes(&t->weights[i].value);
    char *copy = malloc(total);
    if (!copy) {
        if (err) op__model_fail(t->model, err, OP_NOMEM, "out of memory for a copy of the weights");
        return NULL;
    }
    for (int i = 0; i < t->n_weights; i++) {
        size_t n = (size_t)op_tensor_bytes(&t->weights[i].value);
        memcpy(copy + at, t->weights[i].value.data, n);
        at += n;
    }
    return copy;
}

void op_trainer_restore(struct op_trainer *t, const void *snapshot) {
    size_t at = 0;
    for (int i = 0; i < t->n_weights; i++) {
        size_t n = (size_t)op_tensor_bytes(&t->weights[i].value);
        memcpy(t->weights[i].value.data, (const char *)snapshot + at, n);
        if (t->weights[i].ema) memcpy(t->weights[i].ema, (const char *)snapshot + at, n);
        at += n;
    }
}

/* --- the model ---------------------------------------------------------------------------------- */

static const struct op_weight *weight_named(const struct op_trainer *t, const uint8_t *name, size_t len) {
    for (int i = 0; i < t->n_weights; i++)
        if (strlen(t->weights[i].name) == len && memcmp(t->weights[i].name, name, len) == 0) return &t->weights[i];
    return NULL;
}

/* GraphProto with the initializers (field 5; name: field 8 of TensorProto) of trained weights written anew. */
static void rewrite_graph(const struct op_trainer *t, struct op_out *o, const struct wire_field *graph) {
    struct wire_field f, g;
    for (struct wire in = wire_open(graph->data, graph->len); wire_next(&in, &f);) {
        const struct op_weight *w = NULL;
        if (f.number == 5 && f.type == WIRE_BYTES)
            for (struct wire tensor = wire_open(f.data, f.len); wire_next(&tensor, &g);)
                if (g.number == 8 && g.type == WIRE_BYTES) w = weight_named(t, g.data, g.len);
        if (!w) {
            op__out_field(o, &f);
            continue;
        }
        struct op_tensor value = w->value;
        if (w->ema) value.data = w->ema;
        op__out_tensor(o, 5, w->name, &value);
    }
}

struct op_model *op_trainer_model(struct op_trainer *t, struct op_error *err) {
    struct op_out o = {0};
    struct wire_field f;
    struct op_error own;
    if (!err) err = &own;
    *err = (struct op_error){0};
    for (struct wire in = wire_open(t->model->bytes, t->model->n_bytes); wire_next(&in, &f);) {
        if (f.number != 7 || f.type != WIRE_BYTES) {
            op__out_field(&o, &f);
            continue;
        }
        struct op_out graph = {0};
        rewrite_graph(t, &graph, &f);
        op__out_message(&o, 7, &graph);
    }
    struct op_model *m = o.failed ? (op__model_fail(t->model, err, OP_NOMEM, "out of memory for the model"), NULL) : op__model_from_bytes(o.data, o.n, err);
    op__out_finish(&o);
    return m;
}
