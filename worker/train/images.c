/* images.c: a folder of folders of pictures: the label is the folder's name. Every picture is
 * brought to the model's height and width (stretched, bilinear) and to its channels: 1 is gray, 3
 * is RGB. Decoding goes through the pipeline's own steps, so training sees what inference will. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "worker/train/train.h"

bool w__train_read_images(const struct w_table *t, const char *folder, struct w_array *x,
                          struct w_words *words, struct w_error *err) {
    const struct w_train_input *in = t->input;
    char steps[256];
    int k = t->first;
    const int64_t hwc[] = {in->dims[k], in->dims[k + 1], in->dims[k ? 0 : 2]};
    if (in->rank != 3 || (hwc[2] != 1 && hwc[2] != 3))
        return w_fail(err, W_BAD_SPEC,
                      "%s: pictures need a model.input_shape of [height, width, 1 or 3]", t->where);
    *x = (struct w_array){.dtype = OP_U8, .rank = 3, .elements = hwc[0] * hwc[1] * hwc[2]};
    memcpy(x->dims, hwc, sizeof hwc);
    snprintf(steps, sizeof steps,
             "{\"quern\":1,\"pipeline\":[{\"decode_image\":{\"color\":\"%s\"}},"
             "{\"resize\":{\"h\":%lld,\"w\":%lld}}]}",
             hwc[2] == 1 ? "gray" : "rgb", (long long)hwc[0], (long long)hwc[1]);
    return w__train_stream_files(t, folder, "images", steps, x, words, err);
}
