/* Sequences: SequenceEmpty, SequenceConstruct, SequenceInsert, SequenceErase, SequenceAt,
 * SequenceLength.
 *
 * A sequence is a list of tensors. The tensors of a run's sequences live until the run's end, so
 * that inserting and erasing copy the list and not what is in it; a tensor that enters a sequence
 * is copied once. */
#include "ops/op/move.h"

#include <string.h>

/* The output is a sequence of this element type; how many items it has is known only in run. */
static void set_sequence(const struct op_ctx *ctx, enum op_type dtype) {
    op__set(ctx, 0, dtype, 0, NULL);
    if (ctx->n_out && ctx->out[0]) ctx->out[0]->kind = OP_KIND_SEQUENCE;
}

static enum op_status need_sequence(const struct op_ctx *ctx, int i) {
    const struct op_tensor *s = op__in(ctx, i);
    if (!s) return op__fail(ctx, OP_BAD_MODEL, "input %d is missing", i);
    if (s->kind != OP_KIND_SEQUENCE)
        return op__fail(ctx, OP_BAD_TYPE, "input %d is no sequence", i);
    return OP_OK;
}

static enum op_status need_tensor(const struct op_ctx *ctx, int i) {
    const struct op_tensor *t = op__in(ctx, i);
    if (!t) return op__fail(ctx, OP_BAD_MODEL, "input %d is missing", i);
    if (t->kind != OP_KIND_TENSOR || op_type_size(t->dtype) == 0)
        return op__fail(ctx, OP_BAD_TYPE, "input %d is no tensor", i);
    return OP_OK;
}

static enum op_status check_position(const struct op_ctx *ctx, int i) {
    const struct op_tensor *p = op__in(ctx, i);
    char text[OP__TENSOR_TEXT];
    if (p && (p->kind != OP_KIND_TENSOR || (p->dtype != OP_I64 && p->dtype != OP_I32) ||
              op_tensor_count(p) != 1))
        return op__fail(ctx, OP_BAD_TYPE, "the position is %s, one i64 or i32 is expected",
                        op__text(p, text));
    return OP_OK;
}

/* The position input in [0, n_places), negative ones from the end of the n items; dflt if absent.
 */
static enum op_status read_position(const struct op_ctx *ctx, int i, int64_t n, int64_t n_places,
                                    int64_t dflt, int64_t *dst) {
    const struct op_tensor *p = op__in(ctx, i);
    int64_t v = p ? op__int_at(p, 0) : dflt;
    *dst = v < 0 ? v + n : v;
    if (*dst < 0 || *dst >= n_places)
        return op__fail(ctx, OP_BAD_VALUE,
                        "position %lld is out of range for a sequence of %lld tensors",
                        (long long)v, (long long)n);
    return OP_OK;
}

/* --- SequenceEmpty -------------------------------------------------------------------------------
 */

static enum op_status empty_infer(struct op_ctx *ctx) {
    int64_t type = op__attr_int(ctx->node, "dtype", OP_F32);
    if (type < 1 || type > OP_I2 || op_type_size((enum op_type)type) == 0)
        return op__fail(ctx, OP_UNSUPPORTED, "dtype %lld is not supported", (long long)type);
    set_sequence(ctx, (enum op_type)type);
    return OP_OK;
}

static enum op_status empty_run(struct op_ctx *ctx) {
    return op__output_items(ctx, 0, OP_KIND_SEQUENCE,
                            (enum op_type)op__attr_int(ctx->node, "dtype", OP_F32), 0);
}

static const struct op_desc sequence_empty = {
    .name = "SequenceEmpty",
    .domain = "",
    .since = 11,
    .in_min = 0,
    .in_max = 0,
    .out_min = 1,
    .out_max = 1,
    .flags = OP_F_DYNAMIC,
    .infer = empty_infer,
    .run = empty_run,
};
OP_REGISTER(sequence_empty);

/* --- SequenceConstruct ---------------------------------------------------------------------------
 */

static enum op_status construct_infer(struct op_ctx *ctx) {
    enum op_status st = op__need_tensors(ctx, ctx->n_in);
    for (int i = 1; st == OP_OK && i < ctx->n_in; i++)
        if (ctx->in[i]->dtype != ctx->in[0]->dtype)
            return op__fail(ctx, OP_BAD_TYPE, "input %d is %s, input 0 is %s", i,
                            op_type_name(ctx->in[i]->dtype), op_type_name(ctx->in[0]->dtype));
    if (st == OP_OK) set_sequence(ctx, ctx->in[0]->dtype);
    return st;
}

static enum op_status construct_run(struct op_ctx *ctx) {
    enum op_status st = op__output_items(ctx, 0, OP_KIND_SEQUENCE, ctx->in[0]->dtype, ctx->n_in);
    for (int i = 0; st == OP_OK && i < ctx->n_in; i++)
        st = op__copy(ctx, &ctx->out[0]->items[i], ctx->in[i]);
    return st;
}

static const struct op_desc sequence_construct = {
    .name = "SequenceConstruct",
    .domain = "",
    .since = 11,
    .in_min = 1,
    .in_max = -1,
    .out_min = 1,
    .out_max = 1,
    .flags = OP_F_DYNAMIC,
    .infer = construct_infer,
    .run = construct_run,
};
OP_REGISTER(sequence_construct);

/* --- SequenceInsert(sequence, tensor, position?)
 * --------------------------------------------------- */

static enum op_status insert_infer(struct op_ctx *ctx) {
    enum op_status st = need_sequence(ctx, 0);
    if (st == OP_OK) st = need_tensor(ctx, 1);
    if (st == OP_OK) st = check_position(ctx, 2);
    if (st != OP_OK) return st;
    if (ctx->in[0]->dtype != ctx->in[1]->dtype && ctx->in[0]->dtype != OP_UNDEFINED)
        return op__fail(ctx, OP_BAD_TYPE, "a tensor of %s does not go into a sequence of %s",
                        op_type_name(ctx->in[1]->dtype), op_type_name(ctx->in[0]->dtype));
    set_sequence(ctx, ctx->in[1]->dtype);
    return OP_OK;
}

static enum op_status insert_run(struct op_ctx *ctx) {
    const struct op_tensor *from = ctx->in[0];
    struct op_tensor *to = ctx->out[0];
    int64_t n = from->n_items, at;
    enum op_status st = read_position(ctx, 2, n, n + 1, n, &at);
    if (st == OP_OK) st = op__output_items(ctx, 0, OP_KIND_SEQUENCE, ctx->in[1]->dtype, n + 1);
    if (st != OP_OK) return st;
    if (at) memcpy(to->items, from->items, (size_t)at * sizeof *to->items);
    if (n - at) memcpy(to->items + at + 1, from->items + at, (size_t)(n - at) * sizeof *to->items);
    return op__copy(ctx, &to->items[at], ctx->in[1]);
}

static const struct op_desc sequence_insert = {
    .name = "SequenceInsert",
    .domain = "",
    .since = 11,
    .in_min = 2,
    .in_max = 3,
    .out_min = 1,
    .out_max = 1,
    .flags = OP_F_DYNAMIC,
    .infer = insert_infer,
    .run = insert_run,
};
OP_REGISTER(sequence_insert);

/* --- SequenceErase(sequence, position?)
 * ------------------------------------------------------------ */

static enum op_status erase_infer(struct op_ctx *ctx) {
    enum op_status st = need_sequence(ctx, 0);
    if (st == OP_OK) st = check_position(ctx, 1);
    if (st == OP_OK) set_sequence(ctx, ctx->in[0]->dtype);
    return st;
}

static enum op_status erase_run(struct op_ctx *ctx) {
    const struct op_tensor *from = ctx->in[0];
    struct op_tensor *to = ctx->out[0];
    int64_t n = from->n_items, at;
    enum op_status st = read_position(ctx, 1, n, n, -1, &at);
    if (st == OP_OK) st = op__output_items(ctx, 0, OP_KIND_SEQUENCE, from->dtype, n - 1);
    if (st != OP_OK || n == 1) return st;
    memcpy(to->items, from->items, (size_t)at * sizeof *to->items);
    memcpy(to->items + at, from->items + at + 1, (size_t)(n - 1 - at) * sizeof *to->items);
    return OP_OK;
}

static const struct op_desc sequence_erase = {
    .name = "SequenceErase",
    .domain = "",
    .since = 11,
    .in_min = 1,
    .in_max = 2,
    .out_min = 1,
    .out_max = 1,
    .flags = OP_F_DYNAMIC,
    .infer = erase_infer,
    .run = erase_run,
};
OP_REGISTER(sequence_erase);

/* --- SequenceAt(sequence, position)
 * ---------------------------------------------------------------- */

static enum op_status at_infer(struct op_ctx *ctx) {
    enum op_status st = need_sequence(ctx, 0);
    if (st == OP_OK && !op__in(ctx, 1))
        return op__fail(ctx, OP_BAD_MODEL, "the position is missing");
    return st == OP_OK ? check_position(ctx, 1) : st;
}

static enum op_status at_run(struct op_ctx *ctx) {
    const struct op_tensor *s = ctx->in[0];
    int64_t at;
    enum op_status st = read_position(ctx, 1, s->n_items, s->n_items, 0, &at);
    return st == OP_OK ? op__take(ctx, 0, &s->items[at]) : st;
}

static const struct op_desc sequence_at = {
    .name = "SequenceAt",
    .domain = "",
    .since = 11,
    .in_min = 2,
    .in_max = 2,
    .out_min = 1,
    .out_max = 1,
    .flags = OP_F_DYNAMIC,
    .infer = at_infer,
    .run = at_run,
};
OP_REGISTER(sequence_at);

/* --- SequenceLength ------------------------------------------------------------------------------
 */

static enum op_status length_infer(struct op_ctx *ctx) {
    enum op_status st = need_sequence(ctx, 0);
    if (st == OP_OK) op__set(ctx, 0, OP_I64, 0, NULL);
    return st;
}

static enum op_status length_run(struct op_ctx *ctx) {
    *(int64_t *)ctx->out[0]->data = ctx->in[0]->n_items;
    return OP_OK;
}

static const struct op_desc sequence_length = {
    .name = "SequenceLength",
    .domain = "",
    .since = 11,
    .in_min = 1,
    .in_max = 1,
    .out_min = 1,
    .out_max = 1,
    .infer = length_infer,
    .run = length_run,
};
OP_REGISTER(sequence_length);
