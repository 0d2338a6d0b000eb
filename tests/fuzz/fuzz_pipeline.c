/* model.json and a job's input: the text up to the first line that is `---` is the model.json, the
 * rest is the input of a job, which goes all the way through a made-up model that gives its input
 * back. A result must be JSON. */
#include <assert.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <jansson.h>

#include "worker/pipeline/pipeline.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const struct op_io x = {.name = "x", .dtype = OP_F32, .rank = 3, .dims = {-1, 2, -1}},
                          ids = {.name = "ids",
                                 .dtype = OP_I64,
                                 .rank = 2,
                                 .dims = {-1, -1},
                                 .optional = true};
static const struct op_io y = {.name = "y", .dtype = OP_F32, .rank = 3, .dims = {-1, 2, -1}};
static const struct w_signature signature = {.model = "fuzz",
                                             .batching = W_BATCH_ROWS,
                                             .n_inputs = 1,
                                             .n_optional = 1,
                                             .n_outputs = 1,
                                             .inputs = {&x, &ids},
                                             .outputs = {&y}};

static bool echo(void *user, const struct op_tensor *inputs, int n,
                 const struct op_tensor **outputs, int *n_outputs, struct w_error *err) {
    (void)user;
    (void)err;
    assert(n >= 1 && inputs[0].dtype == OP_F32 && inputs[0].rank == 3 && inputs[0].dims[1] == 2);
    *outputs = inputs;
    *n_outputs = 1;
    return true;
}

static bool seen(void *user, const char *ref) {
    (void)user;
    return strlen(ref) < 1u << 20;
}

static bool fetch(void *user, const char *ref, struct w_arena *arena, struct w_span *bytes,
                  struct w_error *err) {
    static const float raw[4] = {1, 2, 3, 4};
    (void)user;
    (void)arena;
    if (*ref != 'f') return w_fail(err, W_REF_DENIED, "no");
    *bytes = (struct w_span){(const char *)raw, sizeof raw};
    return true;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    const char *text = (const char *)data, *cut = size ? memmem(text, size, "\n---\n", 5) : NULL;
    const size_t n_model = cut ? (size_t)(cut - text) : size,
                 n_input = cut ? size - n_model - 5 : 0;
    struct w_error err = {0};
    struct w_pipeline *p = w_pipeline_parse(text, n_model, NULL, &signature, &err);
    if (!p && !n_model) p = w_pipeline_parse(NULL, 0, NULL, &signature, &err);
    if (!p) return assert(err.code && err.text[0]), 0;
    for (int i = 0; i < w_pipeline_n_golden(p) && i < 4; i++)
        w_pipeline_golden(p, i, echo, NULL, NULL, NULL, &err);
    struct w_row *row = w_row_create(8 << 20);
    if (cut && row) {
        struct w_input input = {.kind = W_INPUT_JSON, .json = {cut + 5, n_input}, .fetch = fetch};
        row->b64 = n_input & 1;
        row->params = (struct w_span){cut + 5, n_input};
        w_input_refs(cut + 5, n_input, false, seen, NULL);
        w_input_refs(cut + 5, n_input, true, seen, NULL);
        if (w_pipeline_run(p, row, &input, echo, NULL, &err)) {
            json_t *result = json_loadb(row->result.ptr, row->result.len, 0, NULL);
            assert(result || memchr(row->result.ptr, 0, row->result.len) ||
                   memmem(row->result.ptr, row->result.len, "\\u0000", 6));
            json_decref(result);
        }
        w_row_reset(row);
        input.kind = W_INPUT_REF;
        w_pipeline_run(p, row, &input, echo, NULL, &err);
    }
    w_row_destroy(row);
    w_pipeline_destroy(p);
    return 0;
}
