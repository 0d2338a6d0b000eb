/* rotary_embedding.c: RotaryEmbedding (opset 23, and ONNX Runtime's of domain com.microsoft, whose inputs come in another order).
 *
 * Pairs of a head's elements are turned by an angle that grows with the position: (x1, x2) becomes (c x1 - s x2, s x1 + c x2), with
 * c and s from the caches. A pair is elements j and j + half, or with `interleaved` 2j and 2j + 1. What lies beyond
 * rotary_embedding_dim is copied. */
#include "ops/op/nn.h"

#include <stdlib.h>

struct rotary {
    bool interleaved, has_offset;
    int64_t n_heads, dim;
    int in_ids, in_cos, in_sin;
};

static enum op_status prepare_with(struct op_prepare *p, struct rotary form) {
    struct rotary *s = malloc(sizeof *s);
    if (!s) return op__node_fail(p->err, p->node, OP_NOMEM, "out of memory");
    p->node->state = s;
    *s = form;
    s->interleaved = op__attr_int(p->node, "interleaved", 0) != 0;
    s->n_heads = op__attr_int(p->node, "num_heads", 0);
    s->dim = op__attr_int(p->node, "rotary_embedding_dim", 0);
    if (s->n_heads < 0 || s->dim < 0 || s->dim % 2)
        return op__node_fail(p->err, p->node, OP_BAD_VALUE, "num_heads is %lld, rotary_embedding_dim %lld: expected 0 or more, the latter even",
                             (long long)s->n_heads, (long long)s->dim);
    return OP_OK;
}
static enum op_status prepare(struct op_prepare *p) {
    return prepare_with(p, (struct rotary){.in_cos = 1, .in_sin = 2, .in_ids = 3});
}
static enum op_status prepare_ms(struct op_prepare *p) {
    return prepare_with(p, (struct rotary){.in_ids = 1, .in_cos = 2, .in_sin = 3, .has_offset = true});
}

struct layout {
    int64_t batch, heads, length, size, dim; /* dim: elements that are turned */
    int64_t by_head, by_row;
};

static enum op_status describe(const struct op_ctx *ctx, struct layout *l) {
    const struct rotary *s = ctx->state;
    const struct op_tensor *x = ctx->in[0], *cos_cache = nn_in(ctx, s->in_cos);
    bool four = x->rank == 4;
    if (x->rank != 3 && !four) return op__fail(ctx, OP_BAD_SHAPE, "input 0 (X) has rank %d, expected 3 or 4", x->rank);
    l->batch = x->dims[0];
    l->length = x->dims[four ? 2 : 1];
    l->heads = four ? x->dims[1] : s->n_heads;
    if (!l->heads && !four && cos_cache && cos_cache->dims[cos_cache->rank - 1] > 0)
        l->heads = x->dims[2] / (2 * cos_cache->dims[cos_cache->rank - 1]); /* a head is what the caches turn */
    if (!four && (l->heads < 1 || x->dims[2] % l->heads))
        return op__fail(ctx, OP_BAD_SHAPE, "input 0 (X) has %lld values a row, which %lld heads do not divide", (long long)x->dims[2],
                        (long long)l->heads);
    l->size = four ? x->dims[3] : x->dims[2] / l->heads;
    l->dim = s->dim ? s->dim : l->size;
    l->by_head = four ? l->length * l->size : l->size;
    l->by_row = four ? l->size : l->heads * l->size;
    if (l->dim > l->size || l->dim % 2)
        return op__fail(ctx, OP_BAD_SHAPE, "%lld of a head's %lld elements cannot be turned in pairs", (long long)l->dim, (long long)l->size);
    return OP_OK;
}

static enum op_status infer(struct op_ctx *ctx) {
    const struct rotary *s = ctx->state;
    enum op_status st = op__nn_float(ctx, 0, "X");
    struct layout l;
    if (st != OP_OK) return st;
    if ((st = op__nn_like(ctx, s->in_cos, "cos_cache", ctx->in[0]->dtype, -1)) != OP_OK ||
        (st = op__nn_like(ctx, s->in_sin, "sin_cache", ctx->in[0]->dtype, -1)) != OP_OK)
        return st;
    const struct op_tensor *cos_cache = ctx->in[s->in_cos], *ids = nn_in(ctx, s->in_ids);
    if (cos_cache->rank != (ids ? 2 : 3))
        return op__fail(ctx, OP_BAD_SHAPE, "input %d (cos_cache) has rank %d, expected %d", s->in_cos, cos_cache->rank, ids ? 2 : 3);
    if ((st = describe(ctx, &l)) != OP_OK) return st;
    int64_t want[3] = {l.batch, l.length, l.dim / 2};
    if (ids) {
        want[0] = cos_cache->dims[0];
        want[1] = l.dim / 2;
    }
    if ((st = op__nn_shape(ctx, s->in_cos, "cos_cache", cos_cache->rank, want)) != OP_OK ||
        (st = op__nn_shape(ctx, s->in_sin, "sin_cache", cos_cache->rank, want)) != OP_OK)
        return st;
    if (ids) {
        bool offset = s->has_offset && op_tensor_count(ids) == 1 && ids->rank == 1;
        if ((st = op__nn_like(ctx, s->in_ids, "position_ids", OP_I64, offset ? 1 : 2)) != OP_OK) return st;
        if (!offset && (st = op__nn_shape(ctx, s->in_ids, "position_ids", 2, (int64_t[]){l.batch, l.length})) != OP_OK) return st;
    }
    op__set_like(ctx, 0, 0);
    return OP_OK;
}

static void turn_row(const struct op_ctx *ctx, const struct layout *l, int64_t at, int64_t cache) {
    const struct rotary *s = ctx->state;
    const struct op_tensor *x = ctx->in[0], *y = ctx->out[0];
    int64_t half = l->dim / 2;
    for (int64_t j = 0; j < half; j++) {
        int64_t a = at + (s->interleaved ? 2 * j : j), b = at + (s->interleaved ? 2 * j + 1 : j + half);
        double c = nn_load(ctx->in[s->in_cos], cache + j), n = nn_load(ctx->in[s->in_sin], cache + j), x1 = nn_load(x, a), x2 = nn_load(x, b);
        nn_store(y, a, c * x1 - n * x2);
        nn_store(y, b, n * x1 + c * x2);
    }
    for (int64_t j = l->dim; j < l->size; j++) nn_store(y, at + j, nn_load(x, at + j));
}

static enum op_status run(struct op_ctx *ctx) {
    const struct rotary *s = ctx->state;
    const struct op_tensor *ids = nn_in(ctx, s->in_ids);
    struct layout l;
    enum op_status st = describe(ctx, &l);
    if (st != OP_OK || !op_tensor_count(ctx->out[0])) return st;
    int64_t limit = ctx->in[s->in_cos]->dims[0];
    for (int64_t b = 0; b < l.batch; b++)
        for (int64_t t = 0; t < l.length; t++) {
            int64_t place = b * l.length + t;
            if (ids) {
                const int64_t *id = ids->data;
                place = ids->rank == 1 ? (id[0] < 0 || id[0] > limit ? -1 : id[0] + t) : id[place];
                if (place < 0 || place >= limit)
                    return op__fail(ctx, OP_BAD_VALUE, "position %lld of sequence %lld is out of range: the caches have %lld", (long long)place,
                                    (long long)b, (long long)limit);
            }
            for (int64_t h = 0; h < l.heads; h++)
                turn_row(ctx, &l, b * l.length * l.heads * l.size + h * l.by_head + t * l.by_row, place * (l.dim / 2));
        }
    return OP_OK;
}

#define ROTARY(id, op_domain, op_since, n_in_min, op_prepare)                                      \
    static const struct op_desc id = {                                                             \
        .name = "RotaryEmbedding",                                                                 \
        .domain = op_domain,                                                                       \
        .since = op_since,                                                                         \
        .in_min = n_in_min,                                                                        \
        .in_max = 4,                                                                               \
        .out_min = 1,                                                                              \
        .out_max = 1,                                                                              \
        .inplace = 1,                                                                              \
        .prepare = op_prepare,                                                                     \
        .release = free,                                                                           \
        .infer = infer,                                                                            \
        .run = run,                                                                                \
    };                                                                                             \
    OP_REGISTER(id)

ROTARY(rotary_embedding, "", 23, 3, prepare);
ROTARY(rotary_embedding_ms, "com.microsoft", 1, 4, prepare_ms);
