/* Inputs from NPY files, and random ones: model_input.h. */
#include "worker/cli/model_input.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "worker/daemon/config.h"
#include "worker/data/data.h"
#include "worker/store/store.h"

int w__model_file(const char *m, const char *store, char *dst, size_t dst_bytes) {
    struct w_model_place place;
    struct w_error err;
    if (!w_model_find(m, store ? store : w_config()->models, &place, &err))
        return w_report(
            strcmp(err.code, "unknown_model") ? W_EXIT_FAILED : W_EXIT_NOT_FOUND, err.code,
            "a name of the model store (--models DIR), an .onnx file or a folder", "%s", err.text);
    snprintf(dst, dst_bytes, "%s", place.path);
    return W_EXIT_OK;
}

const char *w__model_precision(const char *m, const char *store, const char *precision) {
    if (strcmp(precision, "auto") != 0) return precision;
    const struct w_model_options how = {.precision = precision, .no_golden = true};
    struct w_error err;
    struct w_model *model = w_model_open(m, store ? store : w_config()->models, &how, &err);
    precision = model && strcmp(model->info.precision, "bf16") == 0 ? "bf16" : "fp32";
    w_model_release(model);
    return precision;
}

static int find_input(const struct op_model *m, const char *name, size_t len) {
    for (int i = 0; i < op_model_n_inputs(m); i++)
        if (strlen(op_model_input(m, i)->name) == len &&
            strncmp(op_model_input(m, i)->name, name, len) == 0)
            return i;
    return -1;
}

/* Reports and lists what there is. */
static int no_such_input(const struct op_model *m, const char *name, size_t len) {
    char list[400];
    size_t at = 0;
    for (int i = 0; i < op_model_n_inputs(m) && at < sizeof list; i++) {
        int w = snprintf(list + at, sizeof list - at, "%s\"%.80s\"",
                         i ? ", " : "its inputs: ", op_model_input(m, i)->name);
        at += w > 0 ? (size_t)w : 0;
    }
    return w_report(W_EXIT_FAILED, "bad_input", at ? list : NULL, "the model has no input \"%.*s\"",
                    (int)(len < 100 ? len : 100), name);
}

int w__model_read_inputs(const struct op_model *m, const struct w_list *given,
                         struct w_arena *arena, struct op_tensor *inputs) {
    for (size_t g = 0; g < given->n; g++) {
        struct w_error err;
        const char *equals = strchr(given->items[g], '='),
                   *file = equals ? equals + 1 : given->items[g];
        int i = equals ? find_input(m, given->items[g], (size_t)(equals - given->items[g])) : 0;
        if (i < 0 || op_model_n_inputs(m) == 0)
            return no_such_input(m, given->items[g],
                                 equals ? (size_t)(equals - given->items[g]) : 0);
        if (!w_npy_read_file(file, arena, &inputs[i], &err))
            return w_report(W_EXIT_FAILED, err.code, NULL, "%s", err.text);
        if (op_model_input(m, i)->dtype == OP_BF16 && inputs[i].dtype == OP_U16)
            inputs[i].dtype = OP_BF16; /* NPY has no bfloat16 */
    }
    return W_EXIT_OK;
}

/* --- random ----------------------------------------------------------------------------------- */

static uint64_t next_random(uint64_t *state) { /* splitmix64 */
    uint64_t z = *state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

/* The bits of a number in [0, 1): 15 exponent and mantissa bits of a half whose value is k / 1024.
 */
static uint16_t half_of(uint32_t k) {
    if (!k) return 0;
    int top = 31 - __builtin_clz(k); /* k = 2^top (1 + f), k < 1024 */
    return (uint16_t)((top + 5) << 10 | ((k << (10 - top)) & 1023));
}

static void fill(struct op_tensor *t, uint64_t *state) {
    int64_t n = op_tensor_count(t);
    for (int64_t i = 0; i < n; i++) {
        uint64_t r = next_random(state);
        float unit = (float)(r >> 40) * 0x1p-24f;
        switch (t->dtype) {
        case OP_F32:
            ((float *)t->data)[i] = unit;
            break;
        case OP_F64:
            ((double *)t->data)[i] = (double)unit;
            break;
        case OP_F16:
            ((uint16_t *)t->data)[i] = half_of((uint32_t)(r >> 54));
            break;
        case OP_BF16:
            ((uint16_t *)t->data)[i] = r & 1 ? 0x3f00 : 0x3e80;
            break;
        case OP_BOOL:
        case OP_I8:
        case OP_U8:
            ((uint8_t *)t->data)[i] = r & 1;
            break;
        case OP_I16:
        case OP_U16:
            ((uint16_t *)t->data)[i] = r & 1;
            break;
        case OP_I32:
        case OP_U32:
            ((uint32_t *)t->data)[i] = r & 1;
            break;
        case OP_I64:
        case OP_U64:
            ((uint64_t *)t->data)[i] = r & 1;
            break;
        case OP_STRING:
            ((struct op_string *)t->data)[i] = (struct op_string){"a", 1};
            break;
        default:
            memset((char *)t->data + (size_t)i * op_type_size(t->dtype), 0, op_type_size(t->dtype));
        }
    }
}

static bool parse_shape(const char *text, struct op_tensor *t) {
    for (t->rank = 0; *text; t->rank++) {
        char *end;
        errno = 0;
        long long d = strtoll(text, &end, 10);
        if (end == text || errno || d < 0 || t->rank == OP_RANK_MAX ||
            (*end && *end != 'x' && *end != ','))
            return false;
        t->dims[t->rank] = d;
        text = *end ? end + 1 : end;
    }
    return true;
}

static void default_shape(const struct op_model *m, const struct op_io *io, int64_t batch,
                          struct op_tensor *t) {
    const char *batch_symbol = op_model_input(m, 0)->symbols[0];
    t->rank = io->rank < 0 ? 0 : io->rank;
    for (int d = 0; d < t->rank; d++) {
        bool is_batch = io->symbols[d] && batch_symbol && strcmp(io->symbols[d], batch_symbol) == 0;
        t->dims[d] = io->dims[d] >= 0 ? io->dims[d] : d == 0 || is_batch ? batch : 1;
    }
}

int w__model_random_inputs(const struct op_model *m, const struct w_list *shapes, int64_t batch,
                           struct w_arena *arena, struct op_tensor *inputs) {
    uint64_t state = 1;
    for (size_t s = 0; s < shapes->n; s++) { /* a name that is wrong should not go unseen */
        size_t len = strcspn(shapes->items[s], "=");
        if (find_input(m, shapes->items[s], len) < 0)
            return no_such_input(m, shapes->items[s], len);
    }
    for (int i = 0; i < op_model_n_inputs(m); i++) {
        const struct op_io *io = op_model_input(m, i);
        struct op_tensor *t = &inputs[i];
        if (t->dtype != OP_UNDEFINED || io->optional) continue;
        if (io->kind != OP_KIND_TENSOR || io->dtype == OP_UNDEFINED)
            return w_report(W_EXIT_FAILED, "unsupported", NULL,
                            "input \"%.100s\" is no plain tensor: give it with --input", io->name);
        t->dtype = io->dtype;
        default_shape(m, io, batch, t);
        for (size_t s = 0; s < shapes->n; s++) {
            size_t len = strcspn(shapes->items[s], "=");
            if (find_input(m, shapes->items[s], len) != i) continue;
            if (!shapes->items[s][len] || !parse_shape(shapes->items[s] + len + 1, t))
                return w_report(W_EXIT_USAGE, "usage", NULL,
                                "--shape is \"%.100s\", NAME=1x3x224x224 is expected",
                                shapes->items[s]);
        }
        int64_t bytes = op_tensor_bytes(t);
        t->data = bytes < 0 ? NULL : w_arena_alloc(arena, (size_t)bytes);
        if (!t->data)
            return w_report(W_EXIT_FAILED, "no_memory", NULL, "input \"%.100s\" is too large",
                            io->name);
        fill(t, &state);
    }
    return W_EXIT_OK;
}
