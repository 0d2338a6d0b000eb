/* ReverseSequence: of each batch entry the first sequence_lens[b] steps in reverse order, the rest
 * as they are. */
#include "ops/op/move.h"

#include <string.h>

static enum op_status reverse_infer(struct op_ctx *ctx) {
    enum op_status st = op__need_tensors(ctx, 2);
    char text[OP__TENSOR_TEXT];
    if (st != OP_OK) return st;
    const struct op_tensor *x = ctx->in[0], *lens = ctx->in[1];
    int64_t batch = op__attr_int(ctx->node, "batch_axis", 1),
            time = op__attr_int(ctx->node, "time_axis", 0);
    if (x->rank < 2)
        return op__fail(ctx, OP_BAD_SHAPE, "the input is %s, rank 2 or more is expected",
                        op__text(x, text));
    if (!((batch == 0 && time == 1) || (batch == 1 && time == 0)))
        return op__fail(ctx, OP_BAD_VALUE,
                        "batch_axis %lld and time_axis %lld: one is 0 and the other 1",
                        (long long)batch, (long long)time);
    if (lens->rank != 1 || lens->dims[0] != x->dims[batch] ||
        (lens->dtype != OP_I64 && lens->dtype != OP_I32))
        return op__fail(ctx, OP_BAD_SHAPE, "sequence_lens is %s, i64[%lld] is expected",
                        op__text(lens, text), (long long)x->dims[batch]);
    op__set_like(ctx, 0, 0);
    return OP_OK;
}

static enum op_status reverse_run(struct op_ctx *ctx) {
    const struct op_tensor *x = ctx->in[0], *lens = ctx->in[1];
    int time = (int)op__attr_int(ctx->node, "time_axis", 0);
    int64_t n_time = x->dims[time], n_batch = x->dims[1 - time];
    size_t piece = (size_t)op__product(x->dims, 2, x->rank) * op_type_size(x->dtype);
    int64_t by_time = time ? 1 : n_batch, by_batch = time ? n_time : 1; /* strides in pieces */
    for (int64_t b = 0; b < n_batch; b++) {
        int64_t len = op__int_at(lens, b);
        if (len < 0 || len > n_time)
            return op__fail(ctx, OP_BAD_VALUE,
                            "sequence_lens[%lld] is %lld, the time axis has %lld steps",
                            (long long)b, (long long)len, (long long)n_time);
        for (int64_t t = 0; piece && t < n_time; t++) {
            int64_t from = t < len ? len - 1 - t : t;
            memcpy((char *)ctx->out[0]->data + (size_t)(b * by_batch + t * by_time) * piece,
                   (const char *)x->data + (size_t)(b * by_batch + from * by_time) * piece, piece);
        }
    }
    return OP_OK;
}

static const struct op_desc reverse_sequence = {
    .name = "ReverseSequence",
    .domain = "",
    .since = 10,
    .in_min = 2,
    .in_max = 2,
    .out_min = 1,
    .out_max = 1,
    .infer = reverse_infer,
    .run = reverse_run,
};
OP_REGISTER(reverse_sequence);
