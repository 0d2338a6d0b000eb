/* attention.c: the standard's Attention (opsets 23 and 24): shapes and layouts; attention_core.c computes.
 *
 * Q, K and V are [batch, heads, length, size], or [batch, length, heads * size] with the number of heads as an attribute. Past
 * keys and values come in front of the new ones, and what they make together goes out. Opset 24's nonpad_kv_seqlen is input 6.
 *
 * The first wording of the specification (ONNX 1.18 and 1.19) added the mask before the cap, later ones after it, so that -infinity
 * stays that; so do ONNX Runtime and we. qk_matmul_output_mode counted the stages in their order, thus 1 was the masked scores and is
 * the capped ones now: without a cap, where the later 1 would be a second 0, it means the masked ones here. Mode 2 with both
 * is refused, since the two wordings differ and nothing in a model tells them apart. */
#include "ops/op/attention.h"

#include <math.h>

enum { IN_Q, IN_K, IN_V, IN_MASK, IN_PAST_K, IN_PAST_V, IN_LENGTHS };
enum { OUT_Y, OUT_K, OUT_V, OUT_QK };

static enum op_status heads_of(const struct op_ctx *ctx, int i, const char *name, int64_t n_heads, int64_t *heads, int64_t *length, int64_t *size) {
    enum op_status st = op__nn_like(ctx, i, name, ctx->in[IN_Q]->dtype, -1);
    if (st != OP_OK) return st;
    const struct op_tensor *t = ctx->in[i];
    if (t->rank == 4) {
        *heads = t->dims[1];
        *length = t->dims[2];
        *size = t->dims[3];
        return OP_OK;
    }
    if (t->rank != 3) return op__fail(ctx, OP_BAD_SHAPE, "input %d (%s) has rank %d, expected 3 or 4", i, name, t->rank);
    if (n_heads < 1 || n_heads > (1 << 20) || t->dims[2] % n_heads)
        return op__fail(ctx, OP_BAD_SHAPE, "input %d (%s) has %lld values a row, which %lld heads do not divide", i, name, (long long)t->dims[2],
                        (long long)n_heads);
    *heads = n_heads;
    *length = t->dims[1];
    *size = t->dims[2] / n_heads;
    return OP_OK;
}

/* Strides of [batch, heads, length, size] (rank 4) or [batch, length, heads * size] (rank 3). */
static struct attention_rows rows_of(const struct op_tensor *t, int64_t heads, int64_t length, int64_t size) {
    struct attention_rows r = {.t = t};
    if (!t) return r;
    r.by_batch = heads * length * size;
    r.by_head = t->rank == 4 ? length * size : size;
    r.by_row = t->rank == 4 ? size : heads * size;
    return r;
}

static enum op_status check_mask(const struct op_ctx *ctx, struct attention *a) {
    const struct op_tensor *m = nn_in(ctx, IN_MASK);
    int64_t total = a->past + a->keys, limit[4] = {a->batch, a->heads, a->queries, total}, step = 1;
    if (!m) return OP_OK;
    if (m->kind != OP_KIND_TENSOR || (m->dtype != OP_BOOL && !nn_is_float(m->dtype)))
        return op__fail(ctx, OP_BAD_TYPE, "input 3 (attn_mask) is %s, expected bool or a float type", op_type_name(m->dtype));
    if (m->rank < 1 || m->rank > 4) return op__fail(ctx, OP_BAD_SHAPE, "input 3 (attn_mask) has rank %d, expected up to 4", m->rank);
    for (int i = 3, d = m->rank - 1; d >= 0; i--, d--) {
        bool last = i == 3;
        if (m->dims[d] != limit[i] && m->dims[d] != 1 && !(last && m->dims[d] < limit[i]))
            return op__fail(ctx, OP_BAD_SHAPE, "input 3 (attn_mask) has %lld along dimension %d, expected %lld", (long long)m->dims[d], d,
                            (long long)limit[i]);
        bool spread = m->dims[d] == 1 && limit[i] != 1 && !last;
        a->mask_step[i] = spread ? 0 : step;
        step *= m->dims[d];
    }
    a->mask = m;
    a->mask_keys = m->dims[m->rank - 1];
    if (a->mask_keys == 1 && total != 1) { /* one value for all keys */
        a->mask_step[3] = 0;
        a->mask_keys = total;
    }
    return OP_OK;
}

static enum op_status check_past(const struct op_ctx *ctx, struct attention *a) {
    const struct op_tensor *k = nn_in(ctx, IN_PAST_K), *v = nn_in(ctx, IN_PAST_V);
    enum op_status st;
    if (!k != !v) return op__fail(ctx, OP_BAD_MODEL, "past_key and past_value must be given together");
    if (!k) return OP_OK;
    if ((st = op__nn_like(ctx, IN_PAST_K, "past_key", ctx->in[IN_Q]->dtype, 4)) != OP_OK ||
        (st = op__nn_like(ctx, IN_PAST_V, "past_value", ctx->in[IN_Q]->dtype, 4)) != OP_OK)
        return st;
    a->past = k->dims[2];
    if ((st = op__nn_shape(ctx, IN_PAST_K, "past_key", 4, (int64_t[]){a->batch, a->kv_heads, a->past, a->size})) != OP_OK ||
        (st = op__nn_shape(ctx, IN_PAST_V, "past_value", 4, (int64_t[]){a->batch, a->kv_heads, a->past, a->v_size})) != OP_OK)
        return st;
    a->past_k = rows_of(k, a->kv_heads, a->past, a->size);
    a->past_v = rows_of(v, a->kv_heads, a->past, a->v_size);
    return OP_OK;
}

static enum op_status describe(const struct op_ctx *ctx, struct attention *a) {
    enum op_status st = op__nn_float(ctx, IN_Q, "Q");
    if (st != OP_OK || (st = op__attention_limits(ctx)) != OP_OK) return st;
    *a = (struct attention){.unseen = -INFINITY};
    int64_t kv_heads, keys, k_size;
    if ((st = heads_of(ctx, IN_Q, "Q", op__attr_int(ctx->node, "q_num_heads", 0), &a->heads, &a->queries, &a->size)) != OP_OK ||
        (st = heads_of(ctx, IN_K, "K", op__attr_int(ctx->node, "kv_num_heads", 0), &a->kv_heads, &a->keys, &k_size)) != OP_OK ||
        (st = heads_of(ctx, IN_V, "V", op__attr_int(ctx->node, "kv_num_heads", 0), &kv_heads, &keys, &a->v_size)) != OP_OK)
        return st;
    a->batch = ctx->in[IN_Q]->dims[0];
    if (k_size != a->size || kv_heads != a->kv_heads || keys != a->keys || ctx->in[IN_K]->dims[0] != a->batch || ctx->in[IN_V]->dims[0] != a->batch ||
        a->kv_heads < 1 || a->heads % a->kv_heads)
        return op__fail(ctx, OP_BAD_SHAPE, "Q has %lld heads of %lld, K %lld keys in %lld heads of %lld, V %lld in %lld: they do not fit",
                        (long long)a->heads, (long long)a->size, (long long)a->keys, (long long)a->kv_heads, (long long)k_size, (long long)keys,
                        (long long)kv_heads);
    if ((st = check_past(ctx, a)) != OP_OK || (st = check_mask(ctx, a)) != OP_OK) return st;
    if (nn_in(ctx, IN_LENGTHS)) {
        if ((st = op__nn_like(ctx, IN_LENGTHS, "nonpad_kv_seqlen", OP_I64, 1)) != OP_OK ||
            (st = op__nn_shape(ctx, IN_LENGTHS, "nonpad_kv_seqlen", 1, &a->batch)) != OP_OK)
            return st;
        a->lengths = ctx->in[IN_LENGTHS];
        a->causal_to_length = !a->past_k.t;
    }
    a->scale = op__attention_scale(op__attr_float(ctx->node, "scale", 0), a->size);
    a->softcap = (double)op__attr_float(ctx->node, "softcap", 0);
    a->causal = op__attr_int(ctx->node, "is_causal", 0) != 0;
    int64_t mode = op__attr_int(ctx->node, "qk_matmul_output_mode", 0);
    if (mode < 0 || mode > 3) return op__fail(ctx, OP_BAD_VALUE, "qk_matmul_output_mode is %lld, expected 0 to 3", (long long)mode);
    a->qk_mode = (enum attention_qk)mode;
    if (mode == ATTENTION_QK_CAPPED && a->softcap == 0) a->qk_mode = ATTENTION_QK_MASKED;
    if (nn_out(ctx, OUT_QK) && mode == ATTENTION_QK_MASKED && a->softcap != 0 && a->mask)
        return op__fail(ctx, OP_UNSUPPORTED, "qk_matmul_output_mode 2 with softcap and attn_mask means two things");
    a->q = rows_of(ctx->in[IN_Q], a->heads, a->queries, a->size);
    a->k = rows_of(ctx->in[IN_K], a->kv_heads, a->keys, a->size);
    a->v = rows_of(ctx->in[IN_V], a->kv_heads, a->keys, a->v_size);
    return OP_OK;
}

/* The outputs' strides, once they have their shapes. */
static void describe_outputs(const struct op_ctx *ctx, struct attention *a) {
    a->y = rows_of(nn_out(ctx, OUT_Y), a->heads, a->queries, a->v_size);
    a->present_k = rows_of(nn_out(ctx, OUT_K), a->kv_heads, a->past + a->keys, a->size);
    a->present_v = rows_of(nn_out(ctx, OUT_V), a->kv_heads, a->past + a->keys, a->v_size);
    a->qk = nn_out(ctx, OUT_QK);
}

static enum op_status infer(struct op_ctx *ctx) {
    struct attention a;
    enum op_status st = describe(ctx, &a);
    if (st != OP_OK) return st;
    enum op_type t = ctx->in[IN_Q]->dtype;
    int64_t total = a.past + a.keys;
    if (ctx->in[IN_Q]->rank == 4) op__set(ctx, OUT_Y, t, 4, (int64_t[]){a.batch, a.heads, a.queries, a.v_size});
    else op__set(ctx, OUT_Y, t, 3, (int64_t[]){a.batch, a.queries, a.heads * a.v_size});
    op__set(ctx, OUT_K, t, 4, (int64_t[]){a.batch, a.kv_heads, total, a.size});
    op__set(ctx, OUT_V, t, 4, (int64_t[]){a.batch, a.kv_heads, total, a.v_size});
    op__set(ctx, OUT_QK, t, 4, (int64_t[]){a.batch, a.heads, a.queries, total});
    return OP_OK;
}

static size_t scratch(const struct op_ctx *ctx) {
    struct attention a;
    return describe(ctx, &a) == OP_OK ? op__attention_scratch(ctx, &a) : 0;
}

static enum op_status run(struct op_ctx *ctx) {
    struct attention a;
    enum op_status st = describe(ctx, &a);
    if (st != OP_OK) return st;
    describe_outputs(ctx, &a);
    return op__attention_run(ctx, &a, ctx->scratch);
}

static enum op_status ref(struct op_ctx *ctx) {
    struct attention a;
    enum op_status st = describe(ctx, &a);
    if (st != OP_OK) return st;
    describe_outputs(ctx, &a);
    return op__attention_ref(ctx, &a, ctx->scratch);
}

static void cost(const struct op_ctx *ctx, double *flops, double *bytes) {
    struct attention a;
    if (describe(ctx, &a) != OP_OK) return;
    double scores = (double)a.batch * (double)a.heads * (double)a.queries * (double)(a.past + a.keys);
    *flops = scores * (2 * (double)(a.size + a.v_size) + 6);
    *bytes = 0;
    for (int i = 0; i < ctx->n_in; i++)
        if (ctx->in[i]) *bytes += (double)op_tensor_bytes(ctx->in[i]);
}

static const struct op_desc attention = {
    .name = "Attention",
    .domain = "",
    .since = 23,
    .in_min = 3,
    .in_max = 7,
    .out_min = 1,
    .out_max = 4,
    .infer = infer,
    .scratch = scratch,
    .run = run,
    .ref = ref,
    .cost = cost,
};
OP_REGISTER(attention);
