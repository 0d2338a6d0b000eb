/* StringNormalizer (opset 10): drops stop words from a [C] or [1, C] tensor of strings, then
 * changes their case. A result without any string is one empty string, as the specification has it.
 */
#include "ops/op/move.h"
#include "ops/op/text.h"

#include <string.h>

enum action { NONE, LOWER, UPPER };

static int read_action(const struct op_ctx *ctx) {
    const char *name = op__attr_string(ctx->node, "case_change_action", "NONE");
    return strcmp(name, "NONE") == 0    ? NONE
           : strcmp(name, "LOWER") == 0 ? LOWER
           : strcmp(name, "UPPER") == 0 ? UPPER
                                        : -1;
}

static enum op_status normalizer_infer(struct op_ctx *ctx) {
    enum op_status st = op__need_tensors(ctx, 1);
    char text[OP__TENSOR_TEXT];
    const struct op_attr *stop = op__attr(ctx->node, "stopwords");
    if (st != OP_OK) return st;
    const struct op_tensor *x = ctx->in[0];
    if (x->dtype != OP_STRING || !(x->rank == 1 || (x->rank == 2 && x->dims[0] == 1)))
        return op__fail(ctx, OP_BAD_SHAPE, "the input is %s, string[C] or string[1,C] is expected",
                        op__text(x, text));
    if (read_action(ctx) < 0)
        return op__fail(ctx, OP_BAD_VALUE,
                        "case_change_action \"%.40s\" is none of NONE, LOWER, UPPER",
                        op__attr_string(ctx->node, "case_change_action", ""));
    if (stop && stop->kind != OP_ATTR_STRINGS)
        return op__fail(ctx, OP_BAD_TYPE, "stopwords are not strings");
    op__set(ctx, 0, OP_STRING, x->rank, (int64_t[]){x->rank == 1 ? -1 : 1, -1});
    return OP_OK;
}

static enum op_status mapped(const struct op_ctx *ctx, struct op_string s,
                             uint32_t (*map)(uint32_t), struct op_string *dst) {
    if (s.len > SIZE_MAX / 4) return OP_NOMEM;
    char *bytes = op__run_alloc(ctx, 2 * s.len + 1);
    if (!bytes) return OP_NOMEM;
    *dst = (struct op_string){bytes, op__map_case(s, map, bytes)};
    return OP_OK;
}

static bool contains(const struct op_string *list, int64_t n, struct op_string s) {
    for (int64_t i = 0; i < n; i++)
        if (list[i].len == s.len && (!s.len || memcmp(list[i].data, s.data, s.len) == 0))
            return true;
    return false;
}

static enum op_status normalizer_run(struct op_ctx *ctx) {
    const struct op_tensor *x = ctx->in[0];
    const struct op_string *s = x->data;
    const struct op_attr *stop = op__attr(ctx->node, "stopwords");
    bool sensitive = op__attr_int(ctx->node, "is_case_sensitive", 0) != 0;
    int64_t n_stop = stop ? stop->n : 0, n = op_tensor_count(x), n_kept = 0;
    int action = read_action(ctx);
    enum op_status st = OP_OK;
    struct op_string *words = op__run_alloc(ctx, ((size_t)n_stop + 1) * sizeof *words),
                     *kept = op__run_alloc(ctx, ((size_t)n + 1) * sizeof *kept);
    if (!words || !kept) return OP_NOMEM;
    for (int64_t i = 0; st == OP_OK && i < n_stop; i++) {
        words[i] = stop->strings[i];
        if (!sensitive) st = mapped(ctx, words[i], op__lower, &words[i]);
    }
    for (int64_t i = 0; st == OP_OK && i < n; i++) {
        struct op_string key = s[i];
        if (n_stop && !sensitive) st = mapped(ctx, key, op__lower, &key);
        if (st != OP_OK || contains(words, n_stop, key)) continue;
        kept[n_kept] = s[i];
        if (action != NONE)
            st = mapped(ctx, s[i], action == LOWER ? op__lower : op__upper, &kept[n_kept]);
        n_kept++;
    }
    if (!n_kept) kept[n_kept++] = (struct op_string){"", 0};
    if (st == OP_OK)
        st = op__output(ctx, 0, OP_STRING, x->rank, (int64_t[]){x->rank == 1 ? n_kept : 1, n_kept});
    if (st == OP_OK && ctx->out[0]) memcpy(ctx->out[0]->data, kept, (size_t)n_kept * sizeof *kept);
    return st;
}

static const struct op_desc string_normalizer = {
    .name = "StringNormalizer",
    .domain = "",
    .since = 10,
    .in_min = 1,
    .in_max = 1,
    .out_min = 1,
    .out_max = 1,
    .flags = OP_F_DYNAMIC,
    .infer = normalizer_infer,
    .run = normalizer_run,
};
OP_REGISTER(string_normalizer);
