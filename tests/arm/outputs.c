/* Runs ONNX backend cases and prints what comes out, so that two builds of the engine can be compared: tests/zoo/test_arm.py runs it
 * here and under qemu.
 *
 * usage: outputs LEVEL FOLDER…   A line an output: the case's name, the number of the output, type and shape, a hash of the
 * elements, and the first 4096 of them as hexadecimal floats. NaN is one value: processors differ in the bits of the NaN they make. */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "ops/ops.h"

enum { VALUES_MAX = 4096, INPUTS_MAX = 64 };

static uint64_t mix(uint64_t h, uint64_t v) { /* FNV-1a by words */
    return (h ^ v) * UINT64_C(1099511628211);
}

static void print_tensor(const char *name, int i, const struct op_tensor *t) {
    char text[200];
    uint64_t h = UINT64_C(14695981039346656037);
    const int64_t parts = t->dtype == OP_C64 || t->dtype == OP_C128 ? 2 : 1, n = op_tensor_count(t) * parts;
    for (int64_t k = 0; k < t->n_items; k++) print_tensor(name, i, &t->items[k]);
    if (t->kind != OP_KIND_TENSOR) return;
    for (int64_t k = 0; k < n; k++) {
        uint64_t bits = 0;
        if (t->dtype == OP_STRING) {
            const struct op_string s = ((const struct op_string *)t->data)[k];
            for (size_t b = 0; b < s.len; b++) h = mix(h, (uint8_t)s.data[b]);
            continue;
        }
        const size_t size = op_type_size(t->dtype) / (size_t)parts;
        memcpy(&bits, (const char *)t->data + (size_t)k * size, size);
        h = mix(h, isnan(op_tensor_number(t, k)) ? UINT64_C(0x7ff8000000000000) : bits);
    }
    printf("%s\t%d\t%s\t%016" PRIx64 "\t", name, i, op_tensor_describe(t, text, sizeof text), h);
    for (int64_t k = 0; k < n && k < VALUES_MAX && t->dtype != OP_STRING; k++) printf("%a ", op_tensor_number(t, k));
    putchar('\n');
}

static void run(const char *folder, const char *cpu) {
    char path[4096];
    const char *name = strrchr(folder, '/') ? strrchr(folder, '/') + 1 : folder;
    struct op_error err = {0};
    const struct op_load_options options = {.cpu = cpu};
    const struct op_session_options how = {.any_shape = true};
    struct op_tensor in[INPUTS_MAX] = {0};
    const struct op_tensor *out;
    snprintf(path, sizeof path, "%s/model.onnx", folder);
    struct op_model *m = op_model_load(path, &options, &err);
    struct op_session *s = m ? op_session_create(m, &how, &err) : NULL;
    int n = s ? op_model_n_inputs(m) : 0, given = 0;
    for (int i = 0; i < n && i < INPUTS_MAX; i++) {
        snprintf(path, sizeof path, "%s/test_data_set_0/input_%d.pb", folder, i);
        if (access(path, F_OK) != 0) continue;
        if (op_tensor_read_pb(path, op_model_input(m, i)->kind, &in[i], &err) != OP_OK) break;
        if (in[i].dtype == OP_U16 && op_model_input(m, i)->dtype == OP_BF16) in[i].dtype = OP_BF16;
        given = i + 1;
    }
    if (!err.text[0] && s && op_session_run(s, in, given, &out, &err) == OP_OK)
        for (int i = 0; i < op_model_n_outputs(m); i++) print_tensor(name, i, &out[i]);
    if (err.text[0]) printf("%s\t-\t%s\t-\t\n", name, op_status_name(err.code));
    for (int i = 0; i < n && i < INPUTS_MAX; i++) op_tensor_free(&in[i]);
    op_session_destroy(s);
    op_model_release(m);
}

int main(int argc, char **argv) {
    for (int i = 2; i < argc; i++) run(argv[i], strcmp(argv[1], "-") ? argv[1] : NULL);
    return 0;
}
