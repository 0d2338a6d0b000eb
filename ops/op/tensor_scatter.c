/* TensorScatter (opset 24): writes new keys or values into a cache [batch, …, length, …] at each row's own place along one axis,
 * in circles if asked to. In place where nobody else needs the old cache. */
#include "ops/op/move.h"

#include <string.h>

enum { IN_PAST, IN_UPDATE, IN_INDICES };

static bool is_circular(const struct op_ctx *ctx) {
    return !strcmp(op__attr_string(ctx->node, "mode", "linear"), "circular");
}

static enum op_status check_indices(const struct op_ctx *ctx, const struct op_tensor *at, int64_t length, int64_t n_new) {
    for (int64_t b = 0; at && at->data && b < at->dims[0]; b++) {
        const int64_t v = ((const int64_t *)at->data)[b];
        if (v < 0 || v >= length || (!is_circular(ctx) && v > length - n_new))
            return op__fail(ctx, OP_BAD_VALUE, "write_indices[%lld] is %lld: %lld rows do not fit into %lld there", (long long)b, (long long)v,
                            (long long)n_new, (long long)length);
    }
    return OP_OK;
}

static enum op_status infer(struct op_ctx *ctx) {
    enum op_status st = op__need_tensors(ctx, 2);
    if (st != OP_OK) return st;
    const struct op_tensor *past = ctx->in[IN_PAST], *update = ctx->in[IN_UPDATE], *at = op__in(ctx, IN_INDICES);
    const int axis = op__axis(op__attr_int(ctx->node, "axis", -2), past->rank);
    char tp[OP__TENSOR_TEXT], tu[OP__TENSOR_TEXT];
    bool fits = axis > 0 && past->rank == update->rank && past->dtype == update->dtype;
    for (int d = 0; fits && d < past->rank; d++) fits = d == axis ? update->dims[d] <= past->dims[d] : update->dims[d] == past->dims[d];
    if (!fits)
        return op__fail(ctx, OP_BAD_SHAPE, "update is %s and past_cache %s: they must agree but along axis %lld, which is not the first",
                        op__text(update, tu), op__text(past, tp), (long long)op__attr_int(ctx->node, "axis", -2));
    const char *mode = op__attr_string(ctx->node, "mode", "linear");
    if (strcmp(mode, "linear") && strcmp(mode, "circular"))
        return op__fail(ctx, OP_BAD_VALUE, "mode is \"%.40s\", \"linear\" and \"circular\" exist", mode);
    if (at && (at->kind != OP_KIND_TENSOR || at->dtype != OP_I64 || at->rank != 1 || at->dims[0] != past->dims[0]))
        return op__fail(ctx, OP_BAD_SHAPE, "write_indices is %s, i64[%lld] is expected", op__text(at, tu), (long long)past->dims[0]);
    op__set_like(ctx, 0, IN_PAST);
    return OP_OK;
}

static enum op_status run(struct op_ctx *ctx) {
    const struct op_tensor *past = ctx->in[IN_PAST], *update = ctx->in[IN_UPDATE], *at = op__in(ctx, IN_INDICES);
    struct op_tensor *y = ctx->out[0];
    const int axis = op__axis(op__attr_int(ctx->node, "axis", -2), past->rank);
    const int64_t length = past->dims[axis], n_new = update->dims[axis];
    enum op_status st = check_indices(ctx, at, length, n_new);
    if (st != OP_OK || op_tensor_count(past) <= 0) return st;
    const size_t row = (size_t)op__product(past->dims, axis + 1, past->rank) * op_type_size(past->dtype);
    const int64_t between = op__product(past->dims, 1, axis);
    if (y->data != past->data) memcpy(y->data, past->data, (size_t)op_tensor_bytes(past));
    const char *from = update->data;
    for (int64_t o = 0; o < past->dims[0] * between; o++)
        for (int64_t i = 0; i < n_new; i++, from += row) {
            const int64_t to = ((at ? ((const int64_t *)at->data)[o / between] : 0) + i) % length;
            memcpy((char *)y->data + (size_t)(o * length + to) * row, from, row);
        }
    return OP_OK;
}

static const struct op_desc tensor_scatter = {
    .name = "TensorScatter",
    .domain = "",
    .since = 24,
    .in_min = 2,
    .in_max = 3,
    .out_min = 1,
    .out_max = 1,
    .inplace = 1,
    .infer = infer,
    .run = run,
};
OP_REGISTER(tensor_scatter);
