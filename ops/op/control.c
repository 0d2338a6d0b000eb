/* Stacks of iterations: control.h. */
#include "ops/op/control.h"

#include <string.h>

/* Item n lies in chunk log2(n + 1). */
static char *place_of(const struct op__stack *s, int64_t n, size_t item_bytes) {
    int chunk = 63 - __builtin_clzll((unsigned long long)n + 1);
    return s->chunks[chunk] + (size_t)(n + 1 - ((int64_t)1 << chunk)) * item_bytes;
}

/* Makes room for one item more; *dst is NULL where items have no bytes. */
static enum op_status grow(const struct op_ctx *ctx, struct op__stack *s, char **dst) {
    int chunk = 63 - __builtin_clzll((unsigned long long)s->n + 1);
    int64_t bytes = op_tensor_bytes(&s->item);
    *dst = NULL;
    if (chunk >= OP__STACK_CHUNKS) return op__fail(ctx, OP_LIMIT, "too many iterations");
    if (bytes > 0) {
        if (!s->chunks[chunk]) {
            int64_t chunk_bytes;
            if (!op__mul(bytes, (int64_t)1 << chunk, &chunk_bytes))
                return op__fail(ctx, OP_LIMIT, "%lld items are too large", (long long)s->n);
            s->chunks[chunk] = op__run_alloc(ctx, (size_t)chunk_bytes);
            if (!s->chunks[chunk]) return OP_NOMEM;
        }
        *dst = place_of(s, s->n, (size_t)bytes);
    }
    s->n++;
    return OP_OK;
}

enum op_status op__stack_push(const struct op_ctx *ctx, struct op__stack *s,
                              const struct op_tensor *t, const char *what) {
    char *dst, text[2][OP__TENSOR_TEXT];
    if (t->kind != OP_KIND_TENSOR || op_type_size(t->dtype) == 0)
        return op__fail(ctx, OP_BAD_TYPE, "%s is not a tensor", what);
    if (s->item.dtype == OP_UNDEFINED) {
        s->item = *t;
        s->item.data = NULL;
    }
    bool same = t->dtype == s->item.dtype && t->rank == s->item.rank;
    for (int i = 0; same && i < t->rank; i++) same = t->dims[i] == s->item.dims[i];
    if (!same)
        return op__fail(ctx, OP_BAD_SHAPE, "%s is %s in iteration %lld, %s before", what,
                        op__text(t, text[0]), (long long)s->n, op__text(&s->item, text[1]));
    enum op_status st = grow(ctx, s, &dst);
    if (st == OP_OK && dst) memcpy(dst, t->data, (size_t)op_tensor_bytes(t));
    return st;
}

enum op_status op__stack_push_zeros(const struct op_ctx *ctx, struct op__stack *s, int64_t n) {
    _Alignas(16) char zero[16];
    op__zero_elem(s->item.dtype, zero);
    for (int64_t i = 0; i < n; i++) {
        char *dst;
        enum op_status st = grow(ctx, s, &dst);
        if (st != OP_OK) return st;
        if (dst) op__fill(dst, op_tensor_count(&s->item), zero, op_type_size(s->item.dtype));
    }
    return OP_OK;
}

enum op_status op__stack_output(const struct op_ctx *ctx, int i, const struct op__stack *s,
                                int64_t axis, bool reverse) {
    const struct op_tensor *t = &s->item;
    int64_t dims[OP_RANK_MAX];
    if (i >= ctx->n_out || !ctx->out[i]) return OP_OK;
    if (t->rank == OP_RANK_MAX)
        return op__fail(ctx, OP_LIMIT, "output %d would have rank %d, at most %d is supported", i,
                        OP_RANK_MAX + 1, OP_RANK_MAX);
    int at = op__axis(axis, t->rank + 1);
    if (at < 0)
        return op__fail(ctx, OP_BAD_VALUE, "axis %lld is out of range for output %d of rank %d",
                        (long long)axis, i, t->rank + 1);
    for (int k = 0; k <= t->rank; k++)
        dims[k] = k < at ? t->dims[k] : k == at ? s->n : t->dims[k - 1];
    enum op_status st = op__check_size(ctx, t->dtype, t->rank + 1, dims);
    if (st == OP_OK) st = op__output(ctx, i, t->dtype, t->rank + 1, dims);
    if (st != OP_OK || op_tensor_bytes(t) <= 0) return st;
    size_t elem = op_type_size(t->dtype);
    int64_t outer = op__product(t->dims, 0, at), inner = op__product(t->dims, at, t->rank),
            item = outer * inner;
    for (int k = 0; s->n >> k; k++) { /* a move for each chunk: items first .. first + count - 1 */
        int64_t first = ((int64_t)1 << k) - 1,
                count = s->n - first < (int64_t)1 << k ? s->n - first : (int64_t)1 << k;
        if (count <= 0) break;
        int64_t to = reverse ? s->n - first - count : first;
        struct op__move m = {.rank = 3,
                             .dims = {outer, count, inner},
                             .dst = {s->n * inner, inner, 1},
                             .src = {inner, reverse ? -item : item, 1}};
        const char *src = s->chunks[k] + (reverse ? (size_t)((count - 1) * item) * elem : 0);
        op__move_run(ctx, &m, (char *)ctx->out[i]->data + (size_t)(to * inner) * elem, src, elem);
    }
    return OP_OK;
}

enum op_status op__stack_declare(const struct op_ctx *ctx, struct op__stack *s,
                                 const struct op_graph *g, int j, const char *what) {
    op__graph_output(g, j, &s->item);
    if (op_type_size(s->item.dtype) == 0 || s->item.rank < 0)
        return op__fail(
            ctx, OP_UNSUPPORTED,
            "there is no iteration, and the model does not say what type and shape %s would have",
            what);
    for (int k = 0; k < s->item.rank; k++)
        if (s->item.dims[k] < 0) s->item.dims[k] = 0;
    return OP_OK;
}
