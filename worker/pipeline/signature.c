/* signature.c: what a loaded model takes and gives, and how its rows can be told apart. */
#include "worker/pipeline/pipeline.h"

/* Dimension 0 is 1 in whatever the model must be given and in whatever it gives. */
static bool of_batch_one(const struct w_signature *s) {
    for (int i = 0; i < s->n_inputs; i++)
        if (s->inputs[i]->rank < 1 || s->inputs[i]->dims[0] != 1) return false;
    for (int i = 0; i < s->n_outputs; i++)
        if (s->outputs[i]->rank < 1 || s->outputs[i]->dims[0] != 1 ||
            s->outputs[i]->kind != OP_KIND_TENSOR)
            return false;
    return s->n_inputs > 0;
}

bool w_signature_of(struct op_model *m, const char *name, struct w_signature *dst,
                    struct w_error *err) {
    int n_in = op_model_n_inputs(m);
    const int n_out = op_model_n_outputs(m);
    struct op_error why;
    *dst = (struct w_signature){.model = name};
    /* Old files list every weight as an input that may be left out; they stand behind the others.
     */
    while (n_in > W_INPUTS_MAX && op_model_input(m, n_in - 1)->optional) n_in--;
    if (n_in > W_INPUTS_MAX || n_out > W_INPUTS_MAX)
        return w_fail(err, W_BAD_MODEL,
                      "model \"%s\" has %d inputs and %d outputs, at most %d of each are supported",
                      name, n_in, n_out, W_INPUTS_MAX);
    for (int i = 0; i < n_in; i++) {
        dst->inputs[i] = op_model_input(m, i);
        if (dst->inputs[i]->kind != OP_KIND_TENSOR)
            return w_fail(err, W_UNSUPPORTED,
                          "model \"%s\": input \"%s\" is a sequence or an optional; jobs can send "
                          "tensors only",
                          name, dst->inputs[i]->name);
        if (dst->inputs[i]->optional)
            dst->n_optional++;
        else
            dst->n_inputs++;
    }
    dst->n_outputs = n_out;
    for (int i = 0; i < n_out; i++) dst->outputs[i] = op_model_output(m, i);
    int batchable = op_model_batchable(m, &why);
    if (batchable < 0) return w_fail(err, W_BAD_MODEL, "model \"%s\": %s", name, why.text);
    dst->batching = batchable ? W_BATCH_ROWS : of_batch_one(dst) ? W_BATCH_ONE : W_BATCH_NONE;
    return true;
}
