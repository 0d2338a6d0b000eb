/* Scan: body(state…, slice of each scan input) -> (state…, scan values…) for each step of an axis
 * of known length.
 *
 * Opset 9 on: each scan input and output has its own axis and direction. An input that is scanned
 * along another axis than the first is transposed once, so that a step's slice is always a piece of
 * memory and never copied. Opset 8: axis 0 is the batch, axis 1 the time; each batch entry is a
 * scan of its own over its first sequence_lens[b] steps, what is behind them in the scan outputs is
 * zero. */
#include "ops/op/control.h"

#include <string.h>

struct scan {
    const struct op_graph *body;
    int n_states, n_inputs, n_outputs; /* loop state values, scan inputs, scan outputs */
    int64_t length;                    /* steps */
    struct op_tensor *args, *results;  /* of the body */
    struct op_tensor *inputs;          /* the scan inputs, the scanned axis first */
    const int64_t *backward;           /* per scan input, NULL: all forward */
    struct op__stack *stacks;          /* the scan outputs */
};

/* Where the states begin among the node's inputs: sequence_lens comes first in opset 8. */
static enum op_status scan_init(const struct op_ctx *ctx, struct scan *s, int first) {
    int64_t m = op__attr_int(ctx->node, "num_scan_inputs", -1);
    s->body = op__attr_graph(ctx->node, "body");
    if (!s->body) return op__fail(ctx, OP_BAD_MODEL, "the body is missing");
    int n_args = op__graph_n_inputs(s->body), n_results = op__graph_n_outputs(s->body);
    if (m < 1 || m > ctx->n_in - first)
        return op__fail(ctx, OP_BAD_VALUE, "num_scan_inputs is %lld, the node has %d inputs",
                        (long long)m, ctx->n_in);
    s->n_inputs = (int)m;
    s->n_states = ctx->n_in - first - (int)m;
    s->n_outputs = n_results - s->n_states;
    if (n_args != ctx->n_in - first || s->n_outputs < 0 || ctx->n_out > n_results)
        return op__fail(
            ctx, OP_BAD_MODEL,
            "a body of %d inputs and %d outputs does not fit a node of %d inputs and %d outputs",
            n_args, n_results, ctx->n_in, ctx->n_out);
    for (int i = first; i < ctx->n_in; i++)
        if (!ctx->in[i] || ctx->in[i]->kind != OP_KIND_TENSOR)
            return op__fail(ctx, OP_BAD_MODEL, "input %d is missing or no tensor", i);
    return OP_OK;
}

static enum op_status scan_alloc(const struct op_ctx *ctx, struct scan *s) {
    s->args = op__run_alloc(ctx, (size_t)(s->n_states + s->n_inputs) * sizeof *s->args);
    s->results = op__run_alloc(ctx, (size_t)(s->n_states + s->n_outputs) * sizeof *s->results);
    s->inputs = op__run_alloc(ctx, (size_t)s->n_inputs * sizeof *s->inputs);
    s->stacks = op__run_alloc(ctx, (size_t)(s->n_outputs + 1) * sizeof *s->stacks);
    return s->args && s->results && s->inputs && s->stacks ? OP_OK : OP_NOMEM;
}

/* An attribute with a value for each of `count`; NULL where absent. */
static enum op_status list_attr(const struct op_ctx *ctx, const char *name, int count,
                                const int64_t **dst) {
    int64_t n;
    *dst = op__attr_ints(ctx->node, name, &n);
    return *dst && n != count ? op__fail(ctx, OP_BAD_VALUE, "%s has %lld values, %d are expected",
                                         name, (long long)n, count)
                              : OP_OK;
}

/* Element i of the first axis of t. */
static struct op_tensor slice_of(const struct op_tensor *t, int64_t i) {
    struct op_tensor s = {.dtype = t->dtype, .rank = t->rank - 1};
    memcpy(s.dims, t->dims + 1, (size_t)s.rank * sizeof *s.dims);
    if (t->data) s.data = (char *)t->data + (size_t)(i * op_tensor_bytes(&s));
    return s;
}

/* Runs the steps on s->args (which hold the initial states, and the final ones after it) and
 * s->inputs. */
static enum op_status scan_steps(const struct op_ctx *ctx, struct scan *s) {
    char text[2][OP__TENSOR_TEXT];
    int n_results = s->n_states + s->n_outputs;
    for (int64_t t = 0; t < s->length; t++) {
        for (int k = 0; k < s->n_inputs; k++)
            s->args[s->n_states + k] =
                slice_of(&s->inputs[k], s->backward && s->backward[k] ? s->length - 1 - t : t);
        memset(s->results, 0, (size_t)n_results * sizeof *s->results);
        enum op_status st =
            op__run_graph(ctx, s->body, s->args, s->n_states + s->n_inputs, s->results, n_results);
        for (int k = 0; st == OP_OK && k < s->n_states; k++) {
            if (s->results[k].kind != OP_KIND_TENSOR || s->results[k].dtype != s->args[k].dtype)
                return op__fail(ctx, OP_BAD_TYPE, "state %d is %s before and %s after a step", k,
                                op__text(&s->args[k], text[0]), op__text(&s->results[k], text[1]));
            if (t) op__give_back(ctx, &s->args[k]); /* the first ones are the node's own inputs */
            s->args[k] = s->results[k];
        }
        for (int k = 0; st == OP_OK && k < s->n_outputs; k++) {
            st = op__stack_push(ctx, &s->stacks[k], &s->results[s->n_states + k], "a scan output");
            op__give_back(ctx, &s->results[s->n_states + k]);
        }
        if (st != OP_OK) return st;
    }
    return OP_OK;
}

/* --- opset 9 and later ---------------------------------------------------------------------------
 */

static enum op_status check_axes(const struct op_ctx *ctx, struct scan *s,
                                 const int64_t **in_axes) {
    const int64_t *ignored;
    enum op_status st = list_attr(ctx, "scan_input_axes", s->n_inputs, in_axes);
    if (st == OP_OK) st = list_attr(ctx, "scan_input_directions", s->n_inputs, &s->backward);
    if (st == OP_OK) st = list_attr(ctx, "scan_output_axes", s->n_outputs, &ignored);
    if (st == OP_OK) st = list_attr(ctx, "scan_output_directions", s->n_outputs, &ignored);
    for (int k = 0; st == OP_OK && k < s->n_inputs; k++) {
        const struct op_tensor *x = ctx->in[s->n_states + k];
        int axis = op__axis(*in_axes ? (*in_axes)[k] : 0, x->rank);
        if (axis < 0)
            return op__fail(ctx, OP_BAD_VALUE, "scan input %d of rank %d has no axis %lld", k,
                            x->rank, (long long)(*in_axes ? (*in_axes)[k] : 0));
        if (k && x->dims[axis] != s->length)
            return op__fail(ctx, OP_BAD_SHAPE,
                            "scan input %d has %lld steps, scan input 0 has %lld", k,
                            (long long)x->dims[axis], (long long)s->length);
        s->length = x->dims[axis];
    }
    return st;
}

static enum op_status scan_infer(struct op_ctx *ctx) {
    struct scan s = {0};
    const int64_t *axes;
    enum op_status st = scan_init(ctx, &s, 0);
    return st == OP_OK ? check_axes(ctx, &s, &axes) : st;
}

/* t with its axis moved to the front; t itself where it is there already. */
static enum op_status axis_first(const struct op_ctx *ctx, const struct op_tensor *t, int axis,
                                 struct op_tensor *dst) {
    int64_t from[OP_RANK_MAX], to[OP_RANK_MAX], dims[OP_RANK_MAX];
    int perm[OP_RANK_MAX];
    *dst = *t;
    if (axis == 0) return OP_OK;
    for (int i = 0; i < t->rank; i++) perm[i] = i == 0 ? axis : i <= axis ? i - 1 : i;
    for (int i = 0; i < t->rank; i++) dims[i] = t->dims[perm[i]];
    enum op_status st = op__item(ctx, dst, t->dtype, t->rank, dims);
    if (st != OP_OK || op_tensor_count(t) == 0) return st;
    op__strides(t->rank, t->dims, from);
    op__strides(t->rank, dims, to);
    struct op__move m = {0};
    for (int i = 0; i < t->rank; i++) op__move_dim(&m, dims[i], to[i], from[perm[i]]);
    op__move_run(ctx, &m, dst->data, t->data, op_type_size(t->dtype));
    return OP_OK;
}

static enum op_status scan_run(struct op_ctx *ctx) {
    struct scan s = {0};
    const int64_t *in_axes = NULL, *out_axes = NULL, *out_backward = NULL;
    enum op_status st = scan_init(ctx, &s, 0);
    if (st == OP_OK) st = check_axes(ctx, &s, &in_axes);
    if (st == OP_OK) st = list_attr(ctx, "scan_output_axes", s.n_outputs, &out_axes);
    if (st == OP_OK) st = list_attr(ctx, "scan_output_directions", s.n_outputs, &out_backward);
    if (st == OP_OK) st = scan_alloc(ctx, &s);
    for (int k = 0; st == OP_OK && k < s.n_states; k++) s.args[k] = *ctx->in[k];
    for (int k = 0; st == OP_OK && k < s.n_inputs; k++) {
        const struct op_tensor *x = ctx->in[s.n_states + k];
        st = axis_first(ctx, x, op__axis(in_axes ? in_axes[k] : 0, x->rank), &s.inputs[k]);
    }
    if (st == OP_OK) st = scan_steps(ctx, &s);
    for (int k = 0; st == OP_OK && k < s.n_states; k++) st = op__take(ctx, k, &s.args[k]);
    for (int k = 0; st == OP_OK && k < s.n_outputs; k++) {
        int i = s.n_states + k;
        if (i >= ctx->n_out || !ctx->out[i]) continue;
        if (s.stacks[k].n == 0)
            st = op__stack_declare(ctx, &s.stacks[k], s.body, i, "a scan output");
        if (st == OP_OK)
            st = op__stack_output(ctx, i, &s.stacks[k], out_axes ? out_axes[k] : 0,
                                  out_backward && out_backward[k]);
    }
    return st;
}

static const struct op_desc scan = {
    .name = "Scan",
    .domain = "",
    .since = 9,
    .in_min = 1,
    .in_max = -1,
    .out_min = 0,
    .out_max = -1,
    .flags = OP_F_CONTROL | OP_F_DYNAMIC,
    .infer = scan_infer,
    .run = scan_run,
};
OP_REGISTER(scan);

/* --- opset 8 -------------------------------------------------------------------------------------
 */

/* Every input is [B, …] and every scan input [B, T, …]. */
static enum op_status check_8(const struct op_ctx *ctx, struct scan *s, int64_t *n_batch,
                              int64_t *n_time) {
    enum op_status st = scan_init(ctx, s, 1);
    const struct op_tensor *lens = op__in(ctx, 0);
    char text[OP__TENSOR_TEXT];
    if (st == OP_OK) st = list_attr(ctx, "directions", s->n_inputs, &s->backward);
    if (st != OP_OK) return st;
    const struct op_tensor *first = ctx->in[1 + s->n_states];
    if (first->rank < 2)
        return op__fail(ctx, OP_BAD_SHAPE, "a scan input is %s, [batch, time, …] is expected",
                        op__text(first, text));
    *n_batch = first->dims[0];
    *n_time = first->dims[1];
    for (int i = 0; i < s->n_states + s->n_inputs; i++) {
        const struct op_tensor *t = ctx->in[1 + i];
        bool is_state = i < s->n_states;
        if (t->rank < (is_state ? 1 : 2) || t->dims[0] != *n_batch ||
            (!is_state && t->dims[1] != *n_time))
            return op__fail(ctx, OP_BAD_SHAPE, "input %d is %s, a batch of %lld is expected", 1 + i,
                            op__text(t, text), (long long)*n_batch);
    }
    if (lens && (lens->kind != OP_KIND_TENSOR || (lens->dtype != OP_I64 && lens->dtype != OP_I32) ||
                 lens->rank != 1 || lens->dims[0] != *n_batch))
        return op__fail(ctx, OP_BAD_SHAPE, "sequence_lens is %s, i64[%lld] is expected",
                        op__text(lens, text), (long long)*n_batch);
    return OP_OK;
}

static enum op_status scan_8_infer(struct op_ctx *ctx) {
    struct scan s = {0};
    int64_t n_batch, n_time;
    return check_8(ctx, &s, &n_batch, &n_time);
}

/* One batch entry. */
static enum op_status scan_8_entry(const struct op_ctx *ctx, struct scan *s,
                                   struct op__stack *states, int64_t b, int64_t n_time) {
    const struct op_tensor *lens = op__in(ctx, 0);
    s->length = lens ? op__int_at(lens, b) : n_time;
    if (s->length < 0 || s->length > n_time)
        return op__fail(ctx, OP_BAD_VALUE,
                        "sequence_lens[%lld] is %lld, the time axis has %lld steps", (long long)b,
                        (long long)s->length, (long long)n_time);
    for (int k = 0; k < s->n_states; k++) s->args[k] = slice_of(ctx->in[1 + k], b);
    for (int k = 0; k < s->n_inputs; k++) s->inputs[k] = slice_of(ctx->in[1 + s->n_states + k], b);
    enum op_status st = scan_steps(ctx, s);
    for (int k = 0; st == OP_OK && k < s->n_states; k++)
        st = op__stack_push(ctx, &states[k], &s->args[k], "a final state");
    for (int k = 0; st == OP_OK && k < s->n_outputs && s->length < n_time; k++) {
        if (s->stacks[k].n == 0)
            st = op__stack_declare(ctx, &s->stacks[k], s->body, s->n_states + k, "a scan output");
        if (st == OP_OK) st = op__stack_push_zeros(ctx, &s->stacks[k], n_time - s->length);
    }
    return st;
}

static enum op_status scan_8_run(struct op_ctx *ctx) {
    struct scan s = {0};
    int64_t n_batch, n_time;
    enum op_status st = check_8(ctx, &s, &n_batch, &n_time);
    if (st == OP_OK) st = scan_alloc(ctx, &s);
    if (st != OP_OK) return st;
    struct op__stack *states = op__run_alloc(ctx, (size_t)(s.n_states + 1) * sizeof *states);
    if (!states) return OP_NOMEM;
    for (int64_t b = 0; st == OP_OK && b < n_batch; b++)
        st = scan_8_entry(ctx, &s, states, b, n_time);
    for (int k = 0; st == OP_OK && k < s.n_states; k++)
        st = n_batch ? op__stack_output(ctx, k, &states[k], 0, false)
                     : op__take(ctx, k, ctx->in[1 + k]);
    for (int k = 0; st == OP_OK && k < s.n_outputs; k++) {
        int i = s.n_states + k;
        if (i >= ctx->n_out || !ctx->out[i]) continue;
        if (s.stacks[k].n == 0)
            st = op__stack_declare(ctx, &s.stacks[k], s.body, i, "a scan output");
        if (st == OP_OK && s.stacks[k].item.rank > OP_RANK_MAX - 2)
            st = op__fail(ctx, OP_LIMIT, "output %d has more than %d dimensions", i, OP_RANK_MAX);
        if (st == OP_OK) st = op__stack_output(ctx, i, &s.stacks[k], 0, false);
        if (st != OP_OK) break;
        struct op_tensor *y = ctx->out[i]; /* [B * T, …] is [B, T, …] */
        memmove(y->dims + 2, y->dims + 1, (size_t)(y->rank - 1) * sizeof *y->dims);
        y->dims[0] = n_batch;
        y->dims[1] = n_time;
        y->rank++;
    }
    return st;
}

static const struct op_desc scan_8 = {
    .name = "Scan",
    .domain = "",
    .since = 8,
    .until = 8,
    .in_min = 0, /* the first input is the optional one; init counts */
    .in_max = -1,
    .out_min = 0,
    .out_max = -1,
    .flags = OP_F_CONTROL | OP_F_DYNAMIC,
    .infer = scan_8_infer,
    .run = scan_8_run,
};
OP_REGISTER(scan_8);
