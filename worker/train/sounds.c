/* sounds.c: a folder of WAV files as mel spectrograms, [frames, bands] or [frames, bands, 1]. They
 * go through the pipeline's own steps (decode_audio, log_mel), so training hears what inference
 * will. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "worker/train/train.h"

bool w__train_read_sounds(const struct w_table *t, const char *folder, struct w_array *x,
                          struct w_words *words, struct w_error *err) {
    const struct w_train_input *in = t->input;
    char steps[800];
    *x = (struct w_array){.dtype = OP_F32, .rank = in->rank, .elements = in->elements};
    memcpy(x->dims, in->dims, sizeof x->dims);
    if (snprintf(steps, sizeof steps, "{\"quern\":1,\"pipeline\":%s}", t->front->sound) >=
        (int)sizeof steps)
        return w_fail(err, W_INTERNAL, "the steps are too long");
    return w__train_stream_files(t, folder, "sounds", steps, x, words, err);
}
