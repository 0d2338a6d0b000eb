/* Sounds: WAV files through decoding, resampling and the mel spectrogram, in a small memory. */
#include <assert.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "worker/pipeline/pipeline.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static const char steps[] =
        "{\"quern\":1,\"pipeline\":[{\"decode_audio\":{\"rate\":8000,\"max_seconds\":5}},"
        "{\"log_mel\":{\"sampling_rate\":8000,\"fft_length\":64,\"sequence_stride\":200,"
        "\"num_mel_bins\":8,\"frames\":20}}]}";
    static struct w_pipeline *p;
    struct w_error err;
    if (!p) p = w_pipeline_parse(steps, sizeof steps - 1, NULL, NULL, &err);
    if (!p) abort();
    struct w_row *row = w_row_create(32 << 20);
    struct w_value v = {.type = W_BYTES, .span = {(const char *)data, size}};
    struct w_input input = {.kind = W_INPUT_VALUE, .value = &v};
    if (row && w_pipeline_before(p, row, &input, &err) == W_NEXT_DONE) {
        assert(row->value.type == W_TENSOR && op_tensor_count(&row->value.tensor) == 160);
        for (int i = 0; i < 160; i++)
            assert(!isnan(((const float *)row->value.tensor.data)[i]));
    }
    w_row_destroy(row);
    return 0;
}
