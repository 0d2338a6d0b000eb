/* Loads whatever comes as an ONNX model and, where that works, plans it for small inputs and runs it twice: once with
 * passes, once by the reference. Memory, nodes executed and operations are capped, so that only a bug is slow. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "ops/ops.h"

#define MEMORY_BYTES_MAX ((uint64_t)16 << 20)
#define NODES_MAX 20000
#define FLOPS_MAX 1e9
#define INPUTS_MAX 16

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static volatile bool cancel;
static int n_nodes;

static void on_node(void *user, const char *op_type, const char *name, uint64_t ns, double flops, double bytes) {
    (void)user, (void)op_type, (void)name, (void)ns, (void)flops, (void)bytes;
    if (++n_nodes > NODES_MAX) cancel = true;
}

/* Symbolic dimensions become `free_dim`; values are small whole numbers that differ. */
static bool make_input(const struct op_io *io, int64_t free_dim, struct op_tensor *t) {
    static const struct op_string words[] = {{"a", 1}, {"", 0}, {"B c", 3}};
    *t = (struct op_tensor){.kind = io->kind, .dtype = io->dtype, .rank = io->rank < 0 ? 1 : io->rank};
    if (io->kind != OP_KIND_TENSOR) return true;
    if (io->dtype == OP_UNDEFINED) t->dtype = OP_F32;
    for (int d = 0; d < t->rank; d++) t->dims[d] = io->rank >= 0 && io->dims[d] >= 0 ? io->dims[d] : free_dim;
    int64_t bytes = op_tensor_bytes(t), n = op_tensor_count(t);
    if (bytes < 0 || bytes > 1 << 20) return false;
    t->data = calloc(1, bytes ? (size_t)bytes : 1);
    for (int64_t i = 0; t->data && i < n; i++) {
        if (t->dtype == OP_STRING) ((struct op_string *)t->data)[i] = words[i % 3];
        else if (t->dtype == OP_F32) ((float *)t->data)[i] = (float)(i % 7) - 2;
        else if (t->dtype == OP_F64) ((double *)t->data)[i] = (double)(i % 7) - 2;
        else ((uint8_t *)t->data)[i * (int64_t)op_type_size(t->dtype)] = (uint8_t)(i % 2);
    }
    return t->data != NULL;
}

static void run(struct op_model *m, int64_t free_dim) {
    struct op_tensor in[INPUTS_MAX];
    const struct op_tensor *out;
    struct op_error err;
    const struct op_session_options options = {.cancel = &cancel, .on_node = on_node};
    size_t peak;
    double flops;
    int n = op_model_n_inputs(m), made = 0;
    struct op_session *s = n <= INPUTS_MAX ? op_session_create(m, &options, &err) : NULL;
    while (s && made < n && make_input(op_model_input(m, made), free_dim, &in[made])) made++;
    cancel = false;
    n_nodes = 0;
    if (s && made == n && op_session_plan(s, in, n, &peak, &flops, &err) == OP_OK && flops < FLOPS_MAX) op_session_run(s, in, n, &out, &err);
    for (int i = 0; i < made; i++) free(in[i].data);
    op_session_destroy(s);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    for (int reference = 0; reference < 2; reference++) {
        const struct op_load_options options = {.reference = reference, .memory_bytes_max = MEMORY_BYTES_MAX};
        struct op_error err;
        struct op_model *m = op_model_load_memory(data, size, NULL, &options, &err);
        if (!m) continue;
        op_model_batchable(m, &err);
        run(m, 1);
        run(m, 3);
        run(m, 0);
        op_model_release(m);
    }
    return 0;
}
