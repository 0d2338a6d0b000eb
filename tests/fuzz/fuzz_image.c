/* Pictures: JPEG and PNG through the steps that work on pixels, in a small memory. */
#include <assert.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "worker/pipeline/pipeline.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static struct w_pipeline *load(const char *steps) {
    struct w_error err;
    struct w_pipeline *p = w_pipeline_parse(steps, strlen(steps), NULL, NULL, &err);
    if (!p) abort();
    return p;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static struct w_pipeline *pipelines[2];
    if (!pipelines[0]) {
        pipelines[0] =
            load("{\"quern\":1,\"pipeline\":[{\"decode_image\":{\"max_pixels\":1000000,\"alpha\":"
                 "\"white\"}},{\"resize\":{\"w\":24,\"h\":16,\"fit\":\"letterbox\","
                 "\"filter\":\"pil.lanczos\"}},{\"color\":{\"to\":\"ycbcr\"}}]}");
        pipelines[1] =
            load("{\"quern\":1,\"pipeline\":[{\"decode_image\":{\"max_pixels\":1000000,\"color\":"
                 "\"gray\"}},{\"resize\":{\"size\":9,\"fit\":\"cover\",\"filter\":\"cv.area\"}},"
                 "{\"pad\":{\"multiple\":8}},{\"crop\":{\"w\":7,\"h\":5}}]}");
    }
    for (int i = 0; i < 2; i++) {
        struct w_error err;
        struct w_row *row = w_row_create(32 << 20);
        struct w_value v = {.type = W_BYTES, .span = {(const char *)data, size}};
        struct w_input input = {.kind = W_INPUT_VALUE, .value = &v};
        if (row && w_pipeline_before(pipelines[i], row, &input, &err) == W_NEXT_DONE) {
            assert(row->value.type == W_IMAGE);
            assert(row->value.image.w == (i ? 7 : 24) && row->value.image.h == (i ? 5 : 16));
        }
        w_row_destroy(row);
    }
    return 0;
}
