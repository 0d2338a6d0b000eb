/* One node, run on what is there: shapes inferred with data, outputs in buffers, scratch for the moment. The dynamic
 * steps of a plan, constant folding and the evaluation while planning come here. */
#include "ops/exec.h"

char op__nothing[64] __attribute__((aligned(64)));

/* Outputs of fixed shapes get their memory; those of OP_F_DYNAMIC, sequences and optionals come from run. */
static enum op_status give_outputs(struct op_exec *x, const struct op_ctx *ctx) {
    for (int i = 0; i < ctx->n_out; i++) {
        struct op_slot *s = (struct op_slot *)ctx->out[i];
        if (!s || s->t.kind != OP_KIND_TENSOR) continue;
        if (op_tensor_count(&s->t) < 0)
            return op__fail(ctx, OP_LIMIT, "output %d is too large", i);
        enum op_status st = op__slot_alloc(x, s);
        if (st != OP_OK) return st;
    }
    return OP_OK;
}

/* After run: every output that is wanted must be there, whatever the file said. */
static enum op_status check_outputs(const struct op_ctx *ctx) {
    for (int i = 0; i < ctx->n_out; i++) {
        const struct op_tensor *t = ctx->out[i];
        if (!t) continue;
        bool good = t->kind == OP_KIND_TENSOR ? t->dtype != OP_UNDEFINED && op_tensor_count(t) >= 0 && (op_tensor_count(t) == 0 || t->data)
                                              : t->n_items >= 0 && (t->n_items == 0 || t->items);
        if (!good) return op__fail(ctx, OP_UNSUPPORTED, "output %d was not made for these inputs", i);
    }
    return OP_OK;
}

static enum op_status share_view(struct op_ctx *ctx, const struct op_slot *from) {
    struct op_slot *s = (struct op_slot *)ctx->out[0];
    if (!s) return OP_OK;
    if (s->t.kind != OP_KIND_TENSOR) { /* items lie in the heap or in constant memory */
        s->t = *ctx->in[0];
        return OP_OK;
    }
    if (op_tensor_bytes(&s->t) < 0 || op_tensor_bytes(&s->t) != op_tensor_bytes(ctx->in[0])) return op__fail(ctx, OP_BAD_SHAPE, "the view has another size than its input");
    s->t.data = ctx->in[0]->data;
    s->buf = from ? from->buf : NULL;
    op__buf_retain(s->buf);
    return OP_OK;
}

enum op_status op__node_eval(struct op_exec *x, struct op_ctx *ctx, const struct op_slot *view_of) {
    const struct op_desc *d = ctx->node->desc;
    for (int i = 0; i < ctx->n_out; i++)
        if (ctx->out[i]) op__slot_clear((struct op_slot *)ctx->out[i]);
    ctx->scratch = op__nothing;
    enum op_status st = d->infer(ctx);
    if (st == OP_NEED_DATA) return op__fail(ctx, OP_UNSUPPORTED, "its shapes cannot be known from these inputs");
    if (st != OP_OK) return st;
    if (d->flags & OP_F_VIEW) return share_view(ctx, view_of);
    if (!(d->flags & OP_F_DYNAMIC) && (st = give_outputs(x, ctx)) != OP_OK) return st;
    size_t scratch = d->scratch ? d->scratch(ctx) : 0;
    struct op_buf *b = NULL;
    if (scratch) {
        b = op__buf_create(x, scratch);
        if (!b) return OP_NOMEM;
        ctx->scratch = b->data;
    }
    st = x->model && x->model->options.reference && d->ref ? d->ref(ctx) : d->run(ctx);
    op__buf_release(b);
    ctx->scratch = NULL;
    return st == OP_OK ? check_outputs(ctx) : st;
}
