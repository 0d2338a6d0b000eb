/* ZipMap (ai.onnx.ml 1): what converters of classifiers put last: it pairs each row's scores with the labels of the classes.
 *
 * The specification's output is a sequence of maps. Here it is the scores as they come, f32 (rows, classes), in the order of the
 * node's labels: a tensor is what batches, pipelines and NPY files hold, and the labels are constants of the model. */
#include "ops/op.h"

static enum op_status infer(struct op_ctx *ctx) {
    const struct op_tensor *x = ctx->in[0];
    char text[160];
    int64_t n_strings = 0, n_ints = 0;
    const struct op_attr *strings = op__attr(ctx->node, "classlabels_strings");
    if (strings && strings->kind == OP_ATTR_STRINGS) n_strings = strings->n;
    op__attr_ints(ctx->node, "classlabels_int64s", &n_ints);
    if (!x || x->kind != OP_KIND_TENSOR || x->dtype != OP_F32 || (x->rank != 1 && x->rank != 2))
        return op__fail(ctx, OP_BAD_TYPE, "takes f32 (rows, classes), not %s", x ? op_tensor_describe(x, text, sizeof text) : "(absent)");
    const int64_t labels = n_strings ? n_strings : n_ints;
    if (x->dims[x->rank - 1] != labels)
        return op__fail(ctx, OP_BAD_SHAPE, "there are %lld labels, the scores are %s", (long long)labels, op_tensor_describe(x, text, sizeof text));
    op__set_like(ctx, 0, 0);
    return OP_OK;
}

static const struct op_desc zipmap = {
    .name = "ZipMap",
    .domain = "ai.onnx.ml",
    .since = 1,
    .in_min = 1,
    .in_max = 1,
    .out_min = 1,
    .out_max = 1,
    .flags = OP_F_VIEW,
    .infer = infer,
};
OP_REGISTER(zipmap);
