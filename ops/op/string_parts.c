/* StringConcat and StringSplit (opset 20). */
#include "ops/op/move.h"

#include <string.h>

/* --- StringConcat: element-wise, with numpy's broadcast
 * ---------------------------------------------- */

static enum op_status concat_infer(struct op_ctx *ctx) {
    enum op_status st = op__need_tensors(ctx, 2);
    int64_t dims[OP_RANK_MAX];
    int rank;
    char text[2][OP__TENSOR_TEXT];
    if (st != OP_OK) return st;
    const struct op_tensor *a = ctx->in[0], *b = ctx->in[1];
    if (a->dtype != OP_STRING || b->dtype != OP_STRING)
        return op__fail(ctx, OP_BAD_TYPE, "the inputs are not strings");
    if (!op__broadcast(a->rank, a->dims, b->rank, b->dims, &rank, dims))
        return op__fail(ctx, OP_BAD_SHAPE, "%s and %s do not broadcast", op__text(a, text[0]),
                        op__text(b, text[1]));
    st = op__check_size(ctx, OP_STRING, rank, dims);
    if (st == OP_OK) op__set(ctx, 0, OP_STRING, rank, dims);
    return st;
}

/* Writes input k as the output's shape asks for it into dst. */
static void broadcast_to(const struct op_ctx *ctx, int k, struct op_string *dst) {
    const struct op_tensor *x = ctx->in[k], *y = ctx->out[0];
    int64_t from[OP_RANK_MAX], to[OP_RANK_MAX];
    int lead = y->rank - x->rank;
    op__strides(x->rank, x->dims, from);
    op__strides(y->rank, y->dims, to);
    struct op__move m = {0};
    for (int i = 0; i < y->rank; i++)
        op__move_dim(&m, y->dims[i], to[i],
                     i < lead || x->dims[i - lead] == 1 ? 0 : from[i - lead]);
    op__move_run(NULL, &m, dst, x->data, sizeof *dst);
}

static enum op_status concat_run(struct op_ctx *ctx) {
    struct op_string *y = ctx->out[0]->data, *tail = ctx->scratch;
    int64_t n = op_tensor_count(ctx->out[0]);
    if (!n) return OP_OK;
    broadcast_to(ctx, 0, y);
    broadcast_to(ctx, 1, tail);
    for (int64_t i = 0; i < n; i++) {
        size_t len;
        char *bytes = __builtin_add_overflow(y[i].len, tail[i].len, &len)
                          ? NULL
                          : op__run_alloc(ctx, len + 1);
        if (!bytes) return OP_NOMEM;
        if (y[i].len) memcpy(bytes, y[i].data, y[i].len);
        if (tail[i].len) memcpy(bytes + y[i].len, tail[i].data, tail[i].len);
        y[i] = (struct op_string){bytes, len};
    }
    return OP_OK;
}

static size_t concat_scratch(const struct op_ctx *ctx) {
    return (size_t)op_tensor_bytes(ctx->out[0]);
}

static const struct op_desc string_concat = {
    .name = "StringConcat",
    .domain = "",
    .since = 20,
    .in_min = 2,
    .in_max = 2,
    .out_min = 1,
    .out_max = 1,
    .infer = concat_infer,
    .scratch = concat_scratch,
    .run = concat_run,
};
OP_REGISTER(string_concat);

/* --- StringSplit: the parts along a new last axis, padded with ""; and how many each string has
 * -------------
 *
 * Without a delimiter parts lie between runs of white space, and there is none before the first or
 * behind the last one; with one, every occurrence splits. At most maxsplit splits, from the left:
 * the rest is the last part. */

static enum op_status split_infer(struct op_ctx *ctx) {
    enum op_status st = op__need_tensors(ctx, 1);
    int64_t dims[OP_RANK_MAX];
    if (st != OP_OK) return st;
    const struct op_tensor *x = ctx->in[0];
    if (x->dtype != OP_STRING)
        return op__fail(ctx, OP_BAD_TYPE, "the input is %s, strings are expected",
                        op_type_name(x->dtype));
    if (x->rank == OP_RANK_MAX)
        return op__fail(ctx, OP_LIMIT, "the output would have more than %d dimensions",
                        OP_RANK_MAX);
    memcpy(dims, x->dims, sizeof dims);
    dims[x->rank] = -1;
    op__set(ctx, 0, OP_STRING, x->rank + 1, dims);
    op__set(ctx, 1, OP_I64, x->rank, x->dims);
    return OP_OK;
}

static bool is_space(char c) {
    return c == ' ' || (c >= '\t' && c <= '\r') || (c >= 0x1c && c <= 0x1f);
}

/* Takes the next part off s; false if there is none. */
static bool next_space(struct op_string *s, bool last, struct op_string *part) {
    size_t n = 0;
    while (s->len && is_space(s->data[0])) s->data++, s->len--;
    if (!s->len) return false;
    while (n < s->len && (last || !is_space(s->data[n]))) n++;
    *part = (struct op_string){s->data, n};
    s->data += n;
    s->len -= n;
    return true;
}

/* Where s has no data any more the string is used up: "a," has an empty part behind its delimiter.
 */
static bool next_delimited(struct op_string *s, bool last, struct op_string d,
                           struct op_string *part) {
    if (!s->data) return false;
    const char *at = last || !s->len ? NULL : memmem(s->data, s->len, d.data, d.len);
    *part = (struct op_string){s->data, at ? (size_t)(at - s->data) : s->len};
    *s = at ? (struct op_string){at + d.len, s->len - part->len - d.len} : (struct op_string){0};
    return true;
}

/* Splits s into at most room parts; returns how many there are, all of them written if they fit. */
static int64_t split_one(struct op_string s, struct op_string delimiter, int64_t max,
                         struct op_string *dst, int64_t room) {
    int64_t n = 0;
    struct op_string part;
    if (!s.data) s.data = "";
    while (delimiter.len ? next_delimited(&s, n == max, delimiter, &part)
                         : next_space(&s, n == max, &part)) {
        // cppcheck-suppress nullPointer ; without dst there is no room
        if (n < room) dst[n] = part;
        n++;
    }
    return n;
}

static enum op_status split_run(struct op_ctx *ctx) {
    const struct op_tensor *x = ctx->in[0];
    const struct op_attr *d = op__attr(ctx->node, "delimiter");
    struct op_string delimiter = d && d->kind == OP_ATTR_STRING ? d->s : (struct op_string){0};
    int64_t max = op__attr_int(ctx->node, "maxsplit", INT64_MAX), n = op_tensor_count(x), width = 0,
            dims[OP_RANK_MAX];
    if (max < 0) max = INT64_MAX;
    const struct op_string *s = x->data;
    for (int64_t i = 0; i < n; i++) {
        int64_t parts = split_one(s[i], delimiter, max, NULL, 0);
        if (parts > width) width = parts;
    }
    memcpy(dims, x->dims, sizeof dims);
    dims[x->rank] = width;
    enum op_status st = op__check_size(ctx, OP_STRING, x->rank + 1, dims);
    if (st == OP_OK) st = op__output(ctx, 0, OP_STRING, x->rank + 1, dims);
    if (st == OP_OK) st = op__output(ctx, 1, OP_I64, x->rank, x->dims);
    if (st != OP_OK) return st;
    struct op_tensor *parts = ctx->out[0], *counts = ctx->n_out > 1 ? ctx->out[1] : NULL;
    struct op_string *y = parts ? parts->data : NULL;
    for (int64_t i = 0; i < n; i++) {
        int64_t count = split_one(s[i], delimiter, max, y ? y + i * width : NULL, y ? width : 0);
        if (counts) ((int64_t *)counts->data)[i] = count;
        for (int64_t k = count; y && k < width; k++) y[i * width + k] = (struct op_string){"", 0};
    }
    return OP_OK;
}

static const struct op_desc string_split = {
    .name = "StringSplit",
    .domain = "",
    .since = 20,
    .in_min = 1,
    .in_max = 1,
    .out_min = 1,
    .out_max = 2,
    .flags = OP_F_DYNAMIC,
    .infer = split_infer,
    .run = split_run,
};
OP_REGISTER(string_split);
