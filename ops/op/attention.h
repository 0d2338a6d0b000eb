/* attention.h: scaled dot-product attention for the operators that contain it (attention.c, attention_ms.c). Internal to ops/op/. */
#ifndef QUERN_OP_ATTENTION_H
#define QUERN_OP_ATTENTION_H

#include "ops/op/nn.h"

/* Where row s of head h of sequence b lies in a tensor (t NULL: absent): element at + b*by_batch + h*by_head + s*by_row, the
 * row's elements side by side, or by_value apart (k and v only; 0: side by side). `bias` is added, from element bias_at + h * row size on. */
struct attention_rows {
    const struct op_tensor *t;
    int64_t at, by_batch, by_head, by_row, by_value;
    const struct op_tensor *bias;
    int64_t bias_at;
};

enum attention_qk { ATTENTION_QK_RAW, ATTENTION_QK_CAPPED, ATTENTION_QK_MASKED, ATTENTION_QK_SOFTMAX };

/* y = softmax(softcap(scale q k^T) + mask) v, for each sequence and head. Heads share keys and values in groups of heads / kv_heads. */
struct attention {
    int64_t batch, heads, kv_heads, queries, keys, past, size, v_size; /* past + keys keys in all */
    struct attention_rows q, k, v, past_k, past_v, y, present_k, present_v;
    double scale, softcap; /* softcap 0: none */
    bool causal;           /* query i sees keys up to i + past */
    bool causal_to_length; /* or up to i + length - queries: the last query sees the last key of its sequence */
    const struct op_tensor *mask; /* bool (false: not seen) or added; NULL: none */
    int64_t mask_step[4], mask_keys; /* of sequence, head, query, key; keys beyond mask_keys are not seen */
    const struct op_tensor *lengths; /* [batch], i64 or i32: keys from here on are not seen; NULL */
    const struct op_tensor *padding; /* [batch, past + keys] i32: keys at 0 are not seen; NULL */
    double unseen;                   /* added to the score of a key that `padding` or `lengths` hides: -infinity, or a finite value */
    struct op_tensor *qk;            /* [batch, heads, queries, past + keys]; NULL: not wanted */
    enum attention_qk qk_mode;
};

/* Dimensions up to 2^20, so that products of three fit; the tensors' own products are checked elsewhere. */
enum op_status op__attention_limits(const struct op_ctx *ctx);
/* 1 / sqrt(size) where scale is 0. */
double op__attention_scale(float scale, int64_t size);
/* The element of r where that row begins. */
static inline int64_t attention_row(const struct attention_rows *r, int64_t b, int64_t h, int64_t s) {
    return r->at + b * r->by_batch + h * r->by_head + s * r->by_row;
}
/* From one element of a row to the next. */
static inline int64_t attention_step(const struct attention_rows *r) {
    return r->by_value ? r->by_value : 1;
}
/* How many keys sequence b has. */
int64_t op__attention_length(const struct attention *a, int64_t b);

/* attention_f32.c: the fast form, of f32, f16 and bf16. */
size_t op__attention_f32_scratch(const struct op_ctx *ctx, const struct attention *a);
void op__attention_f32(struct op_ctx *ctx, const struct attention *a, void *scratch);

size_t op__attention_scratch(const struct op_ctx *ctx, const struct attention *a);
enum op_status op__attention_run(struct op_ctx *ctx, const struct attention *a, void *scratch);
enum op_status op__attention_ref(struct op_ctx *ctx, const struct attention *a, void *scratch);

#endif
