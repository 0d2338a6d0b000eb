/* layers_attention.c: self-attention, the block of a Transformer around it, and places as vectors.
 *
 * The heads are written out as MatMul and Softmax: each has a gradient, and any engine runs them.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "worker/train/layers.h"

/* [N, T, E] → [N, heads, T, key], or [N, heads, key, T]. */
static bool heads(struct w_graph *g, const char *name, const struct w_layer *l, bool flipped) {
    char shape[32];
    int64_t t = g->flow.dims[0], h = l->num_heads, k = l->key_dim, dims[] = {0, t, h, k},
            perm[] = {0, 2, 1, 3}, flip[] = {0, 2, 3, 1};
    snprintf(shape, sizeof shape, "%s_shape", name);
    if (!w__dense(g, name, h * k, l->use_bias, l) || !w__reshape(g, shape, 4, dims)) return false;
    w__transpose(g, 4, flipped ? flip : perm);
    return true;
}

/* 0 where a place may look, a large negative number where it lies ahead: [T, T]. */
static bool causal_mask(struct w_graph *g, int64_t t, struct w_name *dst) {
    struct op_tensor m = {.dtype = OP_F32, .rank = 2, .dims = {t, t}};
    float *data = malloc((size_t)(t * t) * sizeof *data + 1);
    if (!data) return w_fail(g->err, W_NO_MEMORY, "%s: no memory for its mask", g->where);
    for (int64_t i = 0; i < t; i++)
        for (int64_t j = 0; j < t; j++) data[i * t + j] = j > i ? -1e9f : 0;
    m.data = data;
    snprintf(dst->s, sizeof dst->s, "%s/mask", g->name);
    op_builder_weight(g->builder, dst->s, &m);
    free(data);
    return w__freeze(g, dst->s);
}

static bool attend(struct w_graph *g, const struct w_layer *l) {
    struct w_flow in = g->flow;
    int64_t t = in.dims[0], e = in.dims[1], width = (int64_t)l->num_heads * l->key_dim,
            dims[] = {0, t, width};
    struct w_name q, k, scale, mask, rate;
    if (!heads(g, "query", l, false)) return false;
    if (!w__scalar(g, "scale", 1 / sqrtf((float)l->key_dim), &scale)) return false;
    q = W_NODE2(g, "Mul", g->flow.value, scale);
    g->flow = in;
    if (!heads(g, "key", l, true)) return false;
    k = g->flow.value;
    g->flow = in;
    if (!heads(g, "value", l, false)) return false;
    struct w_name scores = W_NODE2(g, "MatMul", q, k);
    if (l->causal) {
        if (!causal_mask(g, t, &mask)) return false;
        scores = W_NODE2(g, "Add", scores, mask);
    }
    struct w_name p = W_NODE1(g, "Softmax", scores, W_INT("axis", -1));
    if (l->rate > 0) {
        if (!w__scalar(g, "rate", (float)l->rate, &rate)) return false;
        p = W_NODE2(g, "Dropout", p, rate);
    }
    g->flow.value = W_NODE2(g, "MatMul", p, g->flow.value);
    w__transpose(g, 4, (int64_t[]){0, 2, 1, 3});
    if (!w__reshape(g, "joined_shape", 3, dims)) return false;
    g->flow.rank = 2;
    g->flow.dims[0] = t;
    g->flow.dims[1] = width;
    return w__dense(g, "output", e, l->use_bias, l);
}

static bool attention(struct w_graph *g, const struct w_layer *l) {
    if (!w__rank_is(g, 2, "[N, steps, features]")) return false;
    w__channels_last(g);
    return w__regularize_both(g, l) && attend(g, l);
}

static bool normalize(struct w_graph *g, const char *name, const struct w_layer *l) {
    char gamma_name[48], beta_name[48];
    int64_t c = g->flow.dims[g->flow.rank - 1];
    struct w_name gamma, beta;
    snprintf(gamma_name, sizeof gamma_name, "%s_gamma", name);
    snprintf(beta_name, sizeof beta_name, "%s_beta", name);
    if (!w__weight(g, gamma_name, 1, &c, NULL, "ones", 1, 1, &gamma) ||
        !w__weight(g, beta_name, 1, &c, NULL, "zeros", 1, 1, &beta))
        return false;
    const struct op_arg args[] = {W_FLOAT("epsilon", (float)l->epsilon), W_INT("axis", -1)};
    g->flow.value = w__node(g, "LayerNormalization",
                            (const char *[]){g->flow.value.s, gamma.s, beta.s}, 3, args, 2);
    return true;
}

static bool drop(struct w_graph *g, const char *name, const struct w_layer *l) {
    struct w_name rate;
    if (l->rate == 0) return true;
    if (!w__scalar(g, name, (float)l->rate, &rate)) return false;
    g->flow.value = W_NODE2(g, "Dropout", g->flow.value, rate);
    return true;
}

/* x + attention(norm(x)), then x + dense(activation(dense(norm(x)))). */
static bool transformer_block(struct w_graph *g, const struct w_layer *l) {
    struct w_layer inner = *l;
    if (!w__rank_is(g, 2, "[N, steps, features]")) return false;
    w__channels_last(g);
    int64_t e = g->flow.dims[1];
    if (!inner.key_dim && e % l->num_heads)
        return w__layer_fail(g, "%lld features cannot be cut into %d heads; give \"key_dim\"",
                             (long long)e, l->num_heads);
    if (!inner.key_dim) inner.key_dim = (int32_t)(e / l->num_heads);
    struct w_name x = g->flow.value;
    if (!w__regularize_both(g, l) || !normalize(g, "norm1", l) || !attend(g, &inner) || !drop(g, "drop1_rate", l)) return false;
    x = g->flow.value = W_NODE2(g, "Add", x, g->flow.value);
    if (!normalize(g, "norm2", l) ||
        !w__dense(g, "ff1", l->ff_dim ? l->ff_dim : 4 * e, l->use_bias, l) ||
        !w__activate(g, l->activation ? l->activation : "relu") ||
        !w__dense(g, "ff2", e, l->use_bias, l) || !drop(g, "drop2_rate", l))
        return false;
    g->flow.value = W_NODE2(g, "Add", x, g->flow.value);
    g->model->softmax = g->model->sigmoid = false;
    return true;
}

static bool position_embedding(struct w_graph *g, const struct w_layer *l) {
    struct w_name w;
    if (!w__rank_is(g, 2, "[N, steps, features]")) return false;
    w__channels_last(g);
    if (!w__weight(g, "embeddings", 2, g->flow.dims, l->embeddings_initializer, "random_uniform",
                   g->flow.dims[0], g->flow.dims[1], &w))
        return false;
    g->flow.value = W_NODE2(g, "Add", g->flow.value, w);
    return true;
}

/* clang-format off */
#define HEADS W_P_NEEDED("num_heads", num_heads, "how many"), W_P_NUMBER("dropout", rate, 0, 0.999, 0), W_P_BOOL("use_bias", use_bias, 1), W_P_BOOL("use_causal_mask", causal, 0), \
    W_P_JSON("kernel_initializer", kernel_initializer), W_P_JSON("bias_initializer", bias_initializer), \
    W_P_JSON("kernel_regularizer", kernel_regularizer), W_P_JSON("bias_regularizer", bias_regularizer)
static const struct w_param attention_params[] = {W_P_COMMON, HEADS, W_P_NEEDED("key_dim", key_dim, "size of a head"), {0}};
static const struct w_param block_params[] = {W_P_COMMON, HEADS, W_P_WHOLE("key_dim", key_dim, 0, 0), W_P_WHOLE("ff_dim", ff_dim, 0, 0), W_P_TEXT("activation", activation), W_P_NUMBER("epsilon", epsilon, 1e-12, 1, 1e-5), {0}};
static const struct w_param position_params[] = {W_P_COMMON, W_P_JSON("embeddings_initializer", embeddings_initializer), {0}};

static const struct w_layer_desc attention_layers[] = {
    {"MultiHeadAttention", attention_params, attention, false},
    {"TransformerBlock", block_params, transformer_block, false},
    {"PositionEmbedding", position_params, position_embedding, false},
    {0}};
/* clang-format on */
W_LAYERS(attention_layers);
