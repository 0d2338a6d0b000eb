/* RegexFullMatch (opset 20): whether the whole of each string matches the pattern (regex.h). */
#include "ops/op/move.h"
#include "ops/op/regex.h"

static enum op_status match_prepare(struct op_prepare *p) {
    const struct op_attr *a = op__attr(p->node, "pattern");
    const char *why;
    size_t at;
    if (!a || a->kind != OP_ATTR_STRING)
        return op__node_fail(p->err, p->node, OP_BAD_MODEL, "the attribute pattern is missing");
    p->node->state = op__regex_compile(a->s.data, a->s.len, &why, &at);
    if (!p->node->state)
        return op__node_fail(p->err, p->node, OP_BAD_VALUE,
                             "the pattern \"%.100s\": %s (at byte %zu)", a->s.data ? a->s.data : "",
                             why, at);
    return OP_OK;
}

static void match_release(void *state) {
    op__regex_free(state);
}

static enum op_status match_infer(struct op_ctx *ctx) {
    enum op_status st = op__need_tensors(ctx, 1);
    if (st != OP_OK) return st;
    if (ctx->in[0]->dtype != OP_STRING)
        return op__fail(ctx, OP_BAD_TYPE, "the input is %s, strings are expected",
                        op_type_name(ctx->in[0]->dtype));
    op__set(ctx, 0, OP_BOOL, ctx->in[0]->rank, ctx->in[0]->dims);
    return ctx->state ? OP_OK : OP_NEED_DATA;
}

static size_t match_scratch(const struct op_ctx *ctx) {
    return ctx->state ? op__regex_scratch_bytes(ctx->state) : 0;
}

static enum op_status match_run(struct op_ctx *ctx) {
    const struct op_string *s = ctx->in[0]->data;
    uint8_t *y = ctx->out[0]->data;
    for (int64_t i = 0, n = op_tensor_count(ctx->in[0]); i < n; i++)
        y[i] = op__regex_full_match(ctx->state, s[i].data, s[i].len, ctx->scratch);
    return OP_OK;
}

static const struct op_desc regex_full_match = {
    .name = "RegexFullMatch",
    .domain = "",
    .since = 20,
    .in_min = 1,
    .in_max = 1,
    .out_min = 1,
    .out_max = 1,
    .prepare = match_prepare,
    .release = match_release,
    .infer = match_infer,
    .scratch = match_scratch,
    .run = match_run,
};
OP_REGISTER(regex_full_match);
