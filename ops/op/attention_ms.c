/* attention_ms.c: MultiHeadAttention and Attention of domain com.microsoft, as ONNX Runtime's exporters and optimisers write them.
 *
 * MultiHeadAttention takes queries, keys and values that are projected already (apart, or packed as [B,S,N,3,H], or keys
 * and values as [B,L,N,2,H]) and may add a bias to them; Attention makes all three from one input by one product with
 * weights that are packed at load where they are constant. Masks: [B] lengths or [B,T] with 0 for what is hidden; a hidden key's score
 * gets mask_filter_value added. attention_core.c computes.
 *
 * Not here: sharing the memory of past and present, rotary embedding inside Attention, masks with starts, weights in half precision. */
#include "ops/kern/kern.h"
#include "ops/op/attention.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static enum op_status common(const struct op_ctx *ctx, struct attention *a) {
    int64_t heads = op__attr_int(ctx->node, "num_heads", 0);
    if (heads < 1 || heads > (1 << 20)) return op__fail(ctx, OP_BAD_VALUE, "num_heads is %lld, expected 1 to 2^20", (long long)heads);
    *a = (struct attention){.heads = heads, .kv_heads = heads};
    enum op_status st = op__attention_limits(ctx);
    if (st != OP_OK) return st;
    a->unseen = (double)op__attr_float(ctx->node, "mask_filter_value", -10000);
    a->causal = op__attr_int(ctx->node, "unidirectional", 0) != 0;
    return OP_OK;
}

/* [B,S,N*H] from element `at` on with rows `width` apart. */
static struct attention_rows packed_rows(const struct op_tensor *t, int64_t at, int64_t length, int64_t width, int64_t by_head) {
    return (struct attention_rows){.t = t, .at = at, .by_batch = length * width, .by_head = by_head, .by_row = width};
}

/* [B,N,T,H] */
static struct attention_rows head_rows(const struct op_tensor *t, int64_t at, int64_t heads, int64_t length, int64_t size) {
    return (struct attention_rows){.t = t, .at = at, .by_batch = heads * length * size, .by_head = length * size, .by_row = size};
}

static enum op_status check_hidden(const struct op_ctx *ctx, int i, const char *name, struct attention *a) {
    const struct op_tensor *m = nn_in(ctx, i);
    int64_t total = a->past + a->keys;
    if (!m) return OP_OK;
    if (m->kind != OP_KIND_TENSOR || m->dtype != OP_I32)
        return op__fail(ctx, OP_BAD_TYPE, "input %d (%s) is %s, expected i32", i, name, op_type_name(m->dtype));
    if (m->rank == 1 && m->dims[0] == a->batch) a->lengths = m;
    else if (m->rank == 2 && m->dims[0] == a->batch && m->dims[1] == total) a->padding = m;
    else {
        char found[128];
        return op__fail(ctx, OP_UNSUPPORTED, "input %d (%s) is %s, expected i32[%lld] or i32[%lld,%lld]", i, name,
                        op_tensor_describe(m, found, sizeof found), (long long)a->batch, (long long)a->batch, (long long)total);
    }
    return OP_OK;
}

/* attention_bias: [B or 1, N or 1, S, T] */
static enum op_status check_added(const struct op_ctx *ctx, int i, struct attention *a) {
    const struct op_tensor *m = nn_in(ctx, i);
    if (!m) return OP_OK;
    enum op_status st = op__nn_like(ctx, i, "attention_bias", ctx->in[0]->dtype, 4);
    if (st != OP_OK) return st;
    int64_t total = a->past + a->keys;
    int64_t want[4] = {m->dims[0] == 1 ? 1 : a->batch, m->dims[1] == 1 ? 1 : a->heads, a->queries, total};
    if ((st = op__nn_shape(ctx, i, "attention_bias", 4, want)) != OP_OK) return st;
    a->mask = m;
    a->mask_keys = total;
    a->mask_step[3] = 1;
    a->mask_step[2] = total;
    a->mask_step[1] = m->dims[1] == 1 ? 0 : a->queries * total;
    a->mask_step[0] = m->dims[0] == 1 ? 0 : m->dims[1] * a->queries * total;
    return OP_OK;
}

/* --- MultiHeadAttention -------------------------------------------------------------------------- */

enum { IN_QUERY, IN_KEY, IN_VALUE, IN_BIAS, IN_PADDING, IN_ADDED, IN_PAST_K, IN_PAST_V };

static enum op_status describe_packed(const struct op_ctx *ctx, struct attention *a) { /* [B,S,N,3,H] */
    const struct op_tensor *q = ctx->in[IN_QUERY];
    if (q->dims[2] != a->heads || q->dims[3] != 3) return op__fail(ctx, OP_BAD_SHAPE, "input 0 (query) of rank 5 must be [B,S,num_heads,3,H]");
    a->keys = a->queries;
    a->size = a->v_size = q->dims[4];
    int64_t width = a->heads * 3 * a->size;
    a->q = packed_rows(q, 0, a->queries, width, 3 * a->size);
    a->k = packed_rows(q, a->size, a->queries, width, 3 * a->size);
    a->v = packed_rows(q, 2 * a->size, a->queries, width, 3 * a->size);
    return OP_OK;
}

static enum op_status describe_keys(const struct op_ctx *ctx, struct attention *a) {
    const struct op_tensor *q = ctx->in[IN_QUERY], *k = nn_in(ctx, IN_KEY), *v = nn_in(ctx, IN_VALUE);
    enum op_status st;
    if (q->rank != 3 || q->dims[2] % a->heads) return op__fail(ctx, OP_BAD_SHAPE, "input 0 (query) must be [B,S,num_heads * H]");
    a->size = q->dims[2] / a->heads;
    a->q = packed_rows(q, 0, a->queries, q->dims[2], a->size);
    if ((st = op__nn_like(ctx, IN_KEY, "key", q->dtype, -1)) != OP_OK) return st;
    if (k->rank == 5) { /* [B,L,N,2,H] */
        a->keys = k->dims[1];
        a->v_size = a->size;
        if ((st = op__nn_shape(ctx, IN_KEY, "key", 5, (int64_t[]){a->batch, a->keys, a->heads, 2, a->size})) != OP_OK) return st;
        a->k = packed_rows(k, 0, a->keys, a->heads * 2 * a->size, 2 * a->size);
        a->v = packed_rows(k, a->size, a->keys, a->heads * 2 * a->size, 2 * a->size);
        return OP_OK;
    }
    if ((st = op__nn_like(ctx, IN_VALUE, "value", q->dtype, k->rank)) != OP_OK) return st;
    if (k->rank == 4) { /* [B,N,L,H]: keys of another sequence, projected before */
        a->keys = k->dims[2];
        a->v_size = v->dims[3];
        a->k = head_rows(k, 0, a->heads, a->keys, a->size);
        a->v = head_rows(v, 0, a->heads, a->keys, a->v_size);
        if ((st = op__nn_shape(ctx, IN_KEY, "key", 4, (int64_t[]){a->batch, a->heads, a->keys, a->size})) != OP_OK) return st;
        return op__nn_shape(ctx, IN_VALUE, "value", 4, (int64_t[]){a->batch, a->heads, a->keys, a->v_size});
    }
    if (k->rank != 3 || v->dims[2] % a->heads)
        return op__fail(ctx, OP_BAD_SHAPE, "inputs 1 and 2 (key, value) must be [B,L,num_heads * H] or [B,num_heads,L,H]");
    a->keys = k->dims[1];
    a->v_size = v->dims[2] / a->heads;
    a->k = packed_rows(k, 0, a->keys, k->dims[2], a->size);
    a->v = packed_rows(v, 0, a->keys, v->dims[2], a->v_size);
    if ((st = op__nn_shape(ctx, IN_KEY, "key", 3, (int64_t[]){a->batch, a->keys, a->heads * a->size})) != OP_OK) return st;
    return op__nn_shape(ctx, IN_VALUE, "value", 3, (int64_t[]){a->batch, a->keys, a->heads * a->v_size});
}

static enum op_status describe_multi_head(const struct op_ctx *ctx, struct attention *a) {
    enum op_status st = op__nn_float(ctx, IN_QUERY, "query");
    if (st != OP_OK || (st = common(ctx, a)) != OP_OK) return st;
    const struct op_tensor *q = ctx->in[IN_QUERY];
    enum op_type t = q->dtype;
    if (q->rank != 3 && q->rank != 5) return op__fail(ctx, OP_BAD_SHAPE, "input 0 (query) has rank %d, expected 3 or 5", q->rank);
    a->batch = q->dims[0];
    a->queries = q->dims[1];
    if ((st = q->rank == 5 ? describe_packed(ctx, a) : describe_keys(ctx, a)) != OP_OK) return st;
    if (nn_in(ctx, IN_BIAS)) {
        int64_t rows = a->heads * (2 * a->size + a->v_size);
        if ((st = op__nn_like(ctx, IN_BIAS, "bias", t, 1)) != OP_OK || (st = op__nn_shape(ctx, IN_BIAS, "bias", 1, &rows)) != OP_OK) return st;
        a->q.bias = a->k.bias = a->v.bias = ctx->in[IN_BIAS];
        a->k.bias_at = a->heads * a->size;
        a->v.bias_at = 2 * a->heads * a->size;
    }
    if (!nn_in(ctx, IN_PAST_K) != !nn_in(ctx, IN_PAST_V)) return op__fail(ctx, OP_BAD_MODEL, "past_key and past_value must be given together");
    if (nn_in(ctx, IN_PAST_K)) {
        if ((st = op__nn_like(ctx, IN_PAST_K, "past_key", t, 4)) != OP_OK || (st = op__nn_like(ctx, IN_PAST_V, "past_value", t, 4)) != OP_OK) return st;
        a->past = ctx->in[IN_PAST_K]->dims[2];
        if ((st = op__nn_shape(ctx, IN_PAST_K, "past_key", 4, (int64_t[]){a->batch, a->heads, a->past, a->size})) != OP_OK ||
            (st = op__nn_shape(ctx, IN_PAST_V, "past_value", 4, (int64_t[]){a->batch, a->heads, a->past, a->v_size})) != OP_OK)
            return st;
        a->past_k = head_rows(ctx->in[IN_PAST_K], 0, a->heads, a->past, a->size);
        a->past_v = head_rows(ctx->in[IN_PAST_V], 0, a->heads, a->past, a->v_size);
    }
    a->scale = op__attention_scale(op__attr_float(ctx->node, "scale", 0), a->size);
    if ((st = check_hidden(ctx, IN_PADDING, "key_padding_mask", a)) != OP_OK) return st;
    return check_added(ctx, IN_ADDED, a);
}

static enum op_status multi_head_infer(struct op_ctx *ctx) {
    struct attention a;
    enum op_status st = describe_multi_head(ctx, &a);
    if (st != OP_OK) return st;
    enum op_type t = ctx->in[0]->dtype;
    int64_t total = a.past + a.keys;
    op__set(ctx, 0, t, 3, (int64_t[]){a.batch, a.queries, a.heads * a.v_size});
    op__set(ctx, 1, t, 4, (int64_t[]){a.batch, a.heads, total, a.size});
    op__set(ctx, 2, t, 4, (int64_t[]){a.batch, a.heads, total, a.v_size});
    op__set(ctx, 3, t, 4, (int64_t[]){a.batch, a.heads, a.queries, total});
    return OP_OK;
}

static size_t multi_head_scratch(const struct op_ctx *ctx) {
    struct attention a;
    return describe_multi_head(ctx, &a) == OP_OK ? op__attention_scratch(ctx, &a) : 0;
}

static enum op_status multi_head_with(struct op_ctx *ctx, bool plain) {
    struct attention a;
    enum op_status st = describe_multi_head(ctx, &a);
    if (st != OP_OK) return st;
    int64_t total = a.past + a.keys;
    a.y = packed_rows(nn_out(ctx, 0), 0, a.queries, a.heads * a.v_size, a.v_size);
    a.present_k = head_rows(nn_out(ctx, 1), 0, a.heads, total, a.size);
    a.present_v = head_rows(nn_out(ctx, 2), 0, a.heads, total, a.v_size);
    a.qk = nn_out(ctx, 3);
    return plain ? op__attention_ref(ctx, &a, ctx->scratch) : op__attention_run(ctx, &a, ctx->scratch);
}
static enum op_status multi_head_run(struct op_ctx *ctx) {
    return multi_head_with(ctx, false);
}
static enum op_status multi_head_ref(struct op_ctx *ctx) {
    return multi_head_with(ctx, true);
}

static const struct op_desc multi_head_attention = {
    .name = "MultiHeadAttention",
    .domain = "com.microsoft",
    .since = 1,
    .in_min = 1,
    .in_max = 8,
    .out_min = 1,
    .out_max = 4,
    .infer = multi_head_infer,
    .scratch = multi_head_scratch,
    .run = multi_head_run,
    .ref = multi_head_ref,
};
OP_REGISTER(multi_head_attention);

/* --- Attention --------------------------------------------------------------------------------- */

enum { IN_X, IN_W, IN_B, IN_MASK, IN_PAST, IN_BIAS_ADDED };

struct ms_attention {
    const struct k_kernels *kern;
    float *packed; /* the weights; NULL: not constant */
};

static enum op_status prepare(struct op_prepare *p) {
    struct ms_attention *s = calloc(1, sizeof *s);
    if (!s) return op__node_fail(p->err, p->node, OP_NOMEM, "out of memory");
    p->node->state = s;
    if (op__attr_int(p->node, "do_rotary", 0) || op__attr_int(p->node, "past_present_share_buffer", 0))
        return op__node_fail(p->err, p->node, OP_UNSUPPORTED, "do_rotary and past_present_share_buffer are not supported");
    s->kern = p->cpu ? k_find(p->cpu) : k_default();
    if (!s->kern) s->kern = k_default();
    const struct op_tensor *w = p->n_in > IN_W ? p->in[IN_W] : NULL;
    if (!w || w->kind != OP_KIND_TENSOR || w->dtype != OP_F32 || w->rank != 2 || op_tensor_count(w) <= 0) return OP_OK;
    size_t bytes = (k_pack_b_floats(s->kern->gemm, w->dims[0], w->dims[1]) * sizeof(float) + 63) / 64 * 64;
    bool filled;
    s->packed = op__pack_alloc(p, "columns", bytes, &filled);
    const float *data = s->packed && !filled ? op__prepare_data(p, IN_W) : NULL;
    if (!s->packed || (!filled && !data)) return op__node_fail(p->err, p->node, OP_NOMEM, "out of memory: %zu bytes for packed weights", bytes);
    if (!filled) k_pack_b(s->kern->gemm, w->dims[0], w->dims[1], data, w->dims[1], 1, s->packed);
    p->consumed |= 1u << IN_W;
    return OP_OK;
}

static void release(void *state) {
    free(state);
}

/* qkv: the tensor that the product makes, [B,S,width]. */
static enum op_status describe(const struct op_ctx *ctx, struct attention *a, struct op_tensor *qkv) {
    enum op_status st = op__nn_like(ctx, IN_X, "input", OP_F32, 3);
    if (st != OP_OK || (st = op__nn_like(ctx, IN_W, "weights", OP_F32, 2)) != OP_OK || (st = common(ctx, a)) != OP_OK) return st;
    const struct op_tensor *x = ctx->in[IN_X], *w = ctx->in[IN_W];
    int64_t width = w->dims[1], n = 0, q = width / 3, v = q;
    const int64_t *sizes = op__attr_ints(ctx->node, "qkv_hidden_sizes", &n);
    if (n == 3) {
        q = sizes[0];
        v = sizes[2];
    }
    if (n == 3 ? sizes[1] != q || q < 1 || v < 1 || q > width || v > width || 2 * q + v != width : width % 3 != 0 || n)
        return op__fail(ctx, OP_BAD_SHAPE, "weights have %lld columns, which are not queries, keys and values", (long long)width);
    if (q % a->heads || v % a->heads || w->dims[0] != x->dims[2])
        return op__fail(ctx, OP_BAD_SHAPE, "input has %lld values a row, weights are [%lld,%lld], for %lld heads: they do not fit",
                        (long long)x->dims[2], (long long)w->dims[0], (long long)width, (long long)a->heads);
    if (nn_in(ctx, IN_B) && ((st = op__nn_like(ctx, IN_B, "bias", OP_F32, 1)) != OP_OK || (st = op__nn_shape(ctx, IN_B, "bias", 1, &width)) != OP_OK))
        return st;
    a->batch = x->dims[0];
    a->queries = a->keys = x->dims[1];
    a->size = q / a->heads;
    a->v_size = v / a->heads;
    *qkv = (struct op_tensor){.dtype = OP_F32, .rank = 3, .dims = {a->batch, a->queries, width}};
    if (op_tensor_bytes(qkv) < 0) return op__fail(ctx, OP_LIMIT, "the projections are beyond 63 bits");
    a->q = packed_rows(qkv, 0, a->queries, width, a->size);
    a->k = packed_rows(qkv, q, a->queries, width, a->size);
    a->v = packed_rows(qkv, 2 * q, a->queries, width, a->v_size);
    const struct op_tensor *past = nn_in(ctx, IN_PAST);
    if (past) { /* [2,B,N,P,H] */
        if ((st = op__nn_like(ctx, IN_PAST, "past", OP_F32, 5)) != OP_OK) return st;
        a->past = past->dims[3];
        if (a->size != a->v_size) return op__fail(ctx, OP_UNSUPPORTED, "past with values of another size than keys");
        if ((st = op__nn_shape(ctx, IN_PAST, "past", 5, (int64_t[]){2, a->batch, a->heads, a->past, a->size})) != OP_OK) return st;
        a->past_k = head_rows(past, 0, a->heads, a->past, a->size);
        a->past_v = head_rows(past, a->batch * a->heads * a->past * a->size, a->heads, a->past, a->size);
    }
    a->scale = op__attention_scale(op__attr_float(ctx->node, "scale", 0), a->size);
    if ((st = check_hidden(ctx, IN_MASK, "mask_index", a)) != OP_OK) return st;
    return check_added(ctx, IN_BIAS_ADDED, a);
}

static enum op_status infer(struct op_ctx *ctx) {
    struct attention a;
    struct op_tensor qkv;
    enum op_status st = describe(ctx, &a, &qkv);
    if (st != OP_OK) return st;
    op__set(ctx, 0, OP_F32, 3, (int64_t[]){a.batch, a.queries, a.heads * a.v_size});
    op__set(ctx, 1, OP_F32, 5, (int64_t[]){2, a.batch, a.heads, a.past + a.keys, a.size});
    if (nn_out(ctx, 1) && a.size != a.v_size) return op__fail(ctx, OP_UNSUPPORTED, "present with values of another size than keys");
    return OP_OK;
}

static size_t scratch(const struct op_ctx *ctx) {
    struct attention a;
    struct op_tensor qkv;
    if (describe(ctx, &a, &qkv) != OP_OK) return 0;
    size_t own = ((size_t)op_tensor_bytes(&qkv) + 63) / 64 * 64, core = op__attention_scratch(ctx, &a), all;
    return __builtin_add_overflow(own, core, &all) ? SIZE_MAX / 2 : all;
}

static enum op_status run_with(struct op_ctx *ctx, bool plain) {
    const struct ms_attention *s = ctx->state;
    struct attention a;
    struct op_tensor qkv;
    enum op_status st = describe(ctx, &a, &qkv);
    if (st != OP_OK) return st;
    int64_t rows = a.batch * a.queries, width = qkv.dims[2], in = ctx->in[IN_X]->dims[2];
    if (!rows) return OP_OK;
    if (!in) return op__fail(ctx, OP_BAD_SHAPE, "input 0 (input) has rows of 0 values");
    qkv.data = ctx->scratch;
    struct k_product p = {.m = rows, .n = width, .k = in, .a = ctx->in[IN_X]->data, .a_row = in, .a_k = 1, .c = qkv.data, .c_row = width};
    p.b_packed = s->packed != NULL;
    p.b = s->packed ? s->packed : ctx->in[IN_W]->data;
    p.b_k = width;
    p.then.act = K_COPY;
    p.then.bias_col = nn_in(ctx, IN_B) ? ctx->in[IN_B]->data : NULL;
    k_gemm(s->kern, &p, 0, rows, 0, width);
    a.y = packed_rows(nn_out(ctx, 0), 0, a.queries, a.heads * a.v_size, a.v_size);
    int64_t total = a.past + a.keys;
    a.present_k = head_rows(nn_out(ctx, 1), 0, a.heads, total, a.size);
    a.present_v = head_rows(nn_out(ctx, 1), a.batch * a.heads * total * a.size, a.heads, total, a.size);
    void *rest = (char *)ctx->scratch + ((size_t)op_tensor_bytes(&qkv) + 63) / 64 * 64;
    return plain ? op__attention_ref(ctx, &a, rest) : op__attention_run(ctx, &a, rest);
}
static enum op_status run(struct op_ctx *ctx) {
    return run_with(ctx, false);
}
static enum op_status ref(struct op_ctx *ctx) {
    return run_with(ctx, true);
}

static const struct op_desc ms_attention = {
    .name = "Attention",
    .domain = "com.microsoft",
    .since = 1,
    .flags = OP_F_LAZY,
    .in_min = 2,
    .in_max = 7,
    .out_min = 1,
    .out_max = 2,
    .prepare = prepare,
    .release = release,
    .infer = infer,
    .scratch = scratch,
    .run = run,
    .ref = ref,
};
OP_REGISTER(ms_attention);
