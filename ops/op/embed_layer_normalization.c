/* embed_layer_normalization.c: EmbedLayerNormalization of domain com.microsoft, the first node of a BERT that ONNX Runtime's
 * optimiser has been over: word, position and segment embeddings are added up and the row is normalised.
 *
 * mask_index is the number of ones in each sequence's mask (0 without a mask), what Attention takes as lengths. */
#include "ops/kern/kern.h"
#include "ops/op/nn.h"

#include <string.h>

enum { IN_IDS, IN_SEGMENTS, IN_WORD, IN_POSITION, IN_SEGMENT, IN_GAMMA, IN_BETA, IN_MASK, IN_POSITION_IDS };

static enum op_status check_table(const struct op_ctx *ctx, int i, const char *name, int64_t size) {
    enum op_status st = op__nn_like(ctx, i, name, OP_F32, 2);
    if (st == OP_OK && ctx->in[i]->dims[1] != size)
        return op__fail(ctx, OP_BAD_SHAPE, "input %d (%s) has rows of %lld, expected %lld", i, name, (long long)ctx->in[i]->dims[1], (long long)size);
    return st;
}

static enum op_status infer(struct op_ctx *ctx) {
    enum op_status st;
    if ((st = op__nn_like(ctx, IN_IDS, "input_ids", OP_I32, 2)) != OP_OK || (st = op__nn_like(ctx, IN_WORD, "word_embedding", OP_F32, 2)) != OP_OK)
        return st;
    const int64_t *ids = ctx->in[IN_IDS]->dims, size = ctx->in[IN_WORD]->dims[1];
    if ((st = check_table(ctx, IN_POSITION, "position_embedding", size)) != OP_OK || (st = op__nn_like(ctx, IN_GAMMA, "gamma", OP_F32, 1)) != OP_OK ||
        (st = op__nn_like(ctx, IN_BETA, "beta", OP_F32, 1)) != OP_OK || (st = op__nn_shape(ctx, IN_GAMMA, "gamma", 1, &size)) != OP_OK ||
        (st = op__nn_shape(ctx, IN_BETA, "beta", 1, &size)) != OP_OK)
        return st;
    if (nn_in(ctx, IN_SEGMENTS) && ((st = op__nn_like(ctx, IN_SEGMENTS, "segment_ids", OP_I32, 2)) != OP_OK ||
                                    (st = op__nn_shape(ctx, IN_SEGMENTS, "segment_ids", 2, ids)) != OP_OK ||
                                    (st = check_table(ctx, IN_SEGMENT, "segment_embedding", size)) != OP_OK))
        return st;
    if (nn_in(ctx, IN_MASK) &&
        ((st = op__nn_like(ctx, IN_MASK, "mask", OP_I32, 2)) != OP_OK || (st = op__nn_shape(ctx, IN_MASK, "mask", 2, ids)) != OP_OK))
        return st;
    if (nn_in(ctx, IN_POSITION_IDS)) {
        if ((st = op__nn_like(ctx, IN_POSITION_IDS, "position_ids", OP_I32, 2)) != OP_OK) return st;
        int64_t want[2] = {ctx->in[IN_POSITION_IDS]->dims[0] == 1 ? 1 : ids[0], ids[1]};
        if ((st = op__nn_shape(ctx, IN_POSITION_IDS, "position_ids", 2, want)) != OP_OK) return st;
    }
    op__set(ctx, 0, OP_F32, 3, (int64_t[]){ids[0], ids[1], size});
    op__set(ctx, 1, OP_I32, 1, ids);
    op__set(ctx, 2, OP_F32, 3, (int64_t[]){ids[0], ids[1], size});
    return OP_OK;
}

/* Row `id` of a table; NULL with the error set where there is none. */
static const float *row_of(const struct op_ctx *ctx, int table, const char *name, int64_t id) {
    const struct op_tensor *t = ctx->in[table];
    if (id >= 0 && id < t->dims[0]) return (const float *)t->data + id * t->dims[1];
    op__fail(ctx, OP_BAD_VALUE, "%s %lld is out of range: there are %lld", name, (long long)id, (long long)t->dims[0]);
    return NULL;
}

static enum op_status embed_row(struct op_ctx *ctx, int64_t b, int64_t s, float *sum) {
    const struct k_vmath *math = op__kern(ctx)->math;
    int64_t length = ctx->in[IN_IDS]->dims[1], size = ctx->in[IN_WORD]->dims[1], at = b * length + s, position = s;
    const struct op_tensor *positions = nn_in(ctx, IN_POSITION_IDS), *segments = nn_in(ctx, IN_SEGMENTS);
    if (positions) position = ((const int32_t *)positions->data)[positions->dims[0] == 1 ? s : at];
    const float *word = row_of(ctx, IN_WORD, "the word", ((const int32_t *)ctx->in[IN_IDS]->data)[at]);
    const float *place = word ? row_of(ctx, IN_POSITION, "the position", position) : NULL;
    if (!place) return OP_BAD_VALUE;
    math->binary[K_ADD](size, word, false, place, false, sum);
    if (!segments) return OP_OK;
    const float *segment = row_of(ctx, IN_SEGMENT, "the segment", ((const int32_t *)segments->data)[at]);
    if (!segment) return OP_BAD_VALUE;
    math->binary[K_ADD](size, sum, false, segment, false, sum);
    return OP_OK;
}

static size_t scratch(const struct op_ctx *ctx) {
    return (size_t)ctx->in[IN_WORD]->dims[1] * sizeof(float);
}

static enum op_status run(struct op_ctx *ctx) {
    const struct op_tensor *ids = ctx->in[IN_IDS], *mask = nn_in(ctx, IN_MASK);
    struct op_tensor *y = nn_out(ctx, 0), *index = nn_out(ctx, 1), *sums = nn_out(ctx, 2);
    int64_t size = ctx->in[IN_WORD]->dims[1], length = ids->dims[1];
    float epsilon = op__attr_float(ctx->node, "epsilon", 1e-12f);
    for (int64_t b = 0; b < ids->dims[0]; b++) {
        for (int64_t s = 0; size && s < length; s++) {
            int64_t at = (b * length + s) * size;
            float *sum = sums ? (float *)sums->data + at : ctx->scratch;
            enum op_status st = embed_row(ctx, b, s, sum);
            if (st != OP_OK) return st;
            if (y)
                op__kern(ctx)->math->layer_norm(size, sum, ctx->in[IN_GAMMA]->data, ctx->in[IN_BETA]->data, epsilon, (float *)y->data + at, NULL, NULL);
        }
        int32_t n = 0;
        for (int64_t s = 0; mask && s < length; s++) n += ((const int32_t *)mask->data)[b * length + s] == 1;
        if (index) ((int32_t *)index->data)[b] = n;
    }
    return OP_OK;
}

static const struct op_desc embed_layer_normalization = {
    .name = "EmbedLayerNormalization",
    .domain = "com.microsoft",
    .since = 1,
    .in_min = 7,
    .in_max = 9,
    .out_min = 1,
    .out_max = 3,
    .infer = infer,
    .scratch = scratch,
    .run = run,
};
OP_REGISTER(embed_layer_normalization);
