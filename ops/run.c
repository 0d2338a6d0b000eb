/* Running a plan: binds its slots to memory, then one step after the other. Subgraphs of control nodes run here too,
 * each with a plan of its own and an arena from the run's buffers. */
#include "ops/session.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

#define GRAPH_DEPTH_MAX OP__DEPTH_MAX
#define STEPS_OF_A_CALL 4 /* what calling a subgraph costs, in steps of the budget */

static uint64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* Inputs are bound by the caller; what views share is known after the rest. */
static void bind(struct op_plan *p, char *arena) {
    for (int i = 0; i < p->n_slots; i++)
        if (p->spots[i].place == OP__PLACE_ARENA) p->slots[i].t.data = arena + p->spots[i].offset;
    for (int i = 0; i < p->n_slots; i++) {
        if (p->spots[i].place != OP__PLACE_VIEW) continue;
        int root = i;
        while (p->spots[root].root != root) root = p->spots[root].root;
        p->slots[i].t.data = p->slots[root].t.data;
    }
}

static enum op_status step_fixed(struct op_exec *x, struct op_step *s, char *arena) {
    if (s->view) return OP_OK;
    const struct op_desc *d = s->node->desc;
    s->ctx.scratch = s->scratch_bytes ? arena + s->scratch_offset : op__nothing;
    return x->model->options.reference && d->ref ? d->ref(&s->ctx) : d->run(&s->ctx);
}

/* Outputs of subgraphs that the node's own outputs do not use go. */
static void drop_pins(struct op_exec *x, int mark, const struct op_ctx *ctx) {
    int kept = mark;
    for (int i = mark; i < x->n_pins; i++) {
        struct op_buf *b = x->pins[i];
        bool used = false;
        for (int o = 0; o < ctx->n_out && !used; o++) {
            const struct op_tensor *t = ctx->out[o];
            if (!t) continue;
            used = t->data == b->data;
            for (int64_t k = 0; k < t->n_items && !used; k++) used = t->items[k].data == b->data || t->items[k].n_items;
        }
        if (used) x->pins[kept++] = b;
        else op__buf_release(b);
    }
    x->n_pins = kept;
}

static enum op_status step_dynamic(struct op_exec *x, struct op_plan *p, struct op_step *s) {
    for (int i = 0; i < s->node->n_in + s->node->n_captures; i++) {
        const struct op_tensor *t = s->ctx.in[i];
        if (!t || t->kind != OP_KIND_TENSOR || t->data) continue;
        const struct op_slot *slot = (const struct op_slot *)t;
        if (p->spots[slot - p->slots].place != OP__PLACE_CONST) return op__fail(&s->ctx, OP_BAD_VALUE, "input %d has no value", i);
    }
    int mark = x->n_pins, outer = x->pin_mark;
    x->pin_mark = mark;
    const struct op_slot *first = s->node->n_in && s->ctx.in[0] ? (const struct op_slot *)s->ctx.in[0] : NULL;
    enum op_status st = op__node_eval(x, &s->ctx, first);
    if (s->node->desc->flags & OP_F_CONTROL) drop_pins(x, mark, &s->ctx);
    x->pin_mark = outer;
    for (int i = 0; i < s->n_dead; i++) op__slot_clear(&p->slots[s->dead[i]]);
    return st;
}

static enum op_status run_step(struct op_exec *x, struct op_plan *p, struct op_step *s, char *arena) {
    s->ctx.exec = x;
    if (++x->steps > OP__STEPS_MAX) return op__fail(&s->ctx, OP_LIMIT, "the run has taken %d steps without coming to an end", OP__STEPS_MAX);
    if (x->cancel && __atomic_load_n(x->cancel, __ATOMIC_RELAXED)) return op__fail(&s->ctx, OP_CANCELLED, "the run was cancelled");
    const struct op_session_options *o = x->session ? &x->session->options : NULL;
    if (!o || !o->on_node) return s->fixed ? step_fixed(x, s, arena) : step_dynamic(x, p, s);
    uint64_t start = now_ns();
    enum op_status st = s->fixed ? step_fixed(x, s, arena) : step_dynamic(x, p, s);
    o->on_node(o->user, s->node->op_type, s->node->name, now_ns() - start, s->flops, s->bytes);
    return st;
}

enum op_status op__plan_run(struct op_exec *x, struct op_plan *p, char *arena) {
    enum op_status st = OP_OK;
    bind(p, arena);
    p->busy = true;
    for (int i = 0; i < p->n_steps && st == OP_OK; i++) st = run_step(x, p, &p->steps[i], arena);
    p->busy = false;
    return st;
}

void op__plan_clear(struct op_plan *p) {
    for (int i = 0; i < p->n_slots; i++)
        if (p->spots[i].place == OP__PLACE_DYNAMIC || p->slots[i].buf) {
            op__buf_release(p->slots[i].buf);
            p->slots[i].buf = NULL;
        }
}

void op__plan_bind_input(struct op_plan *p, int i, const struct op_tensor *t) {
    int slot = p->inputs[i];
    if (slot < 0 || p->spots[slot].place == OP__PLACE_CONST) return; /* not used, or without elements */
    p->slots[slot].t = *t;
    if (t->kind == OP_KIND_TENSOR && !op_tensor_count(t)) p->slots[slot].t.data = op__nothing;
}

/* --- subgraphs --------------------------------------------------------------------------------- */

static enum op_status pin(const struct op_ctx *ctx, struct op_buf *b) {
    struct op_exec *x = ctx->exec;
    if (x->n_pins == x->cap_pins) {
        int cap = x->cap_pins ? x->cap_pins * 2 : 64;
        struct op_buf **all = realloc(x->pins, (size_t)cap * sizeof(void *));
        if (!all) {
            op__buf_release(b);
            return op__fail(ctx, OP_NOMEM, "out of memory");
        }
        x->pins = all;
        x->cap_pins = cap;
    }
    x->pins[x->n_pins++] = b;
    return OP_OK;
}

/* The newest pin of the buffer that begins at data, taken off the list; NULL if the node that runs has none: one of a
 * node that this one runs within stays. */
static struct op_buf *unpin(struct op_exec *x, const void *data) {
    for (int i = x->n_pins - 1; data && i >= x->pin_mark; i--) {
        struct op_buf *b = x->pins[i];
        if (b->data != data) continue;
        x->pins[i] = x->pins[--x->n_pins];
        return b;
    }
    return NULL;
}

void op__give_back(const struct op_ctx *ctx, const struct op_tensor *t) {
    if (t->kind == OP_KIND_TENSOR) op__buf_release(unpin(ctx->exec, t->data));
}

enum op_status op__take(const struct op_ctx *ctx, int i, const struct op_tensor *t) {
    if (i >= ctx->n_out || !ctx->out[i]) return OP_OK;
    struct op_slot *s = (struct op_slot *)ctx->out[i];
    if (t->kind != OP_KIND_TENSOR) {
        enum op_status st = op__output_items(ctx, i, t->kind, t->dtype, t->n_items);
        if (st == OP_OK && t->n_items) memcpy(s->t.items, t->items, (size_t)t->n_items * sizeof *t->items);
        return st;
    }
    struct op_buf *b = unpin(ctx->exec, t->data);
    if (b) {
        op__slot_clear(s);
        s->t = *t;
        s->buf = b;
        return OP_OK;
    }
    enum op_status st = op__output(ctx, i, t->dtype, t->rank, t->dims);
    if (st == OP_OK && op_tensor_bytes(t) > 0) memcpy(s->t.data, t->data, (size_t)op_tensor_bytes(t));
    return st;
}

/* An output of the subgraph as the holding node gets it: in a buffer that outlives the subgraph's arena. */
static enum op_status take_output(const struct op_ctx *ctx, struct op_slot *s, struct op_tensor *dst) {
    *dst = s->t;
    if (s->t.kind != OP_KIND_TENSOR) return OP_OK; /* in the heap */
    int64_t bytes = op_tensor_bytes(&s->t);
    if (!bytes) return OP_OK;
    struct op_buf *b = s->buf;
    if (b) op__buf_retain(b);
    else {
        b = op__buf_create(ctx->exec, (size_t)bytes);
        if (!b) return OP_NOMEM;
        memcpy(b->data, s->t.data, (size_t)bytes);
        dst->data = b->data;
    }
    return pin(ctx, b);
}

static enum op_status run_bound(const struct op_ctx *ctx, struct op_plan *p, const struct op_tensor *const *in, int n, struct op_tensor *outputs) {
    struct op_exec *x = ctx->exec;
    struct op_buf *arena = p->arena_bytes ? op__buf_create(x, p->arena_bytes) : NULL;
    if (p->arena_bytes && !arena) return OP_NOMEM;
    for (int i = 0; i < n; i++)
        if (in[i]) op__plan_bind_input(p, i, in[i]);
    x->depth++;
    enum op_status st = op__plan_run(x, p, arena ? arena->data : NULL);
    x->depth--;
    for (int i = 0; i < p->n_outputs && st == OP_OK; i++) st = take_output(ctx, &p->slots[p->outputs[i]], &outputs[i]);
    op__plan_clear(p);
    op__buf_release(arena);
    return st;
}

enum op_status op__run_graph(const struct op_ctx *ctx, const struct op_graph *g, const struct op_tensor *inputs, int n_inputs, struct op_tensor *outputs,
                             int n_outputs) {
    struct op_exec *x = ctx->exec;
    if (!x || !x->session) return OP_UNSUPPORTED;
    x->steps += STEPS_OF_A_CALL; /* a body may be empty, a call is not free */
    if (x->steps > OP__STEPS_MAX) return op__fail(ctx, OP_LIMIT, "the run has taken %d steps without coming to an end", OP__STEPS_MAX);
    if (x->cancel && __atomic_load_n(x->cancel, __ATOMIC_RELAXED)) return op__fail(ctx, OP_CANCELLED, "the run was cancelled");
    if (x->depth >= GRAPH_DEPTH_MAX) return op__fail(ctx, OP_LIMIT, "graphs run nested deeper than %d", GRAPH_DEPTH_MAX);
    if (n_inputs != g->n_inputs || n_outputs != g->n_outputs)
        return op__fail(ctx, OP_BAD_MODEL, "its graph has %d inputs and %d outputs, the operator gives %d and takes %d", g->n_inputs, g->n_outputs, n_inputs, n_outputs);
    int n = n_inputs + g->n_captures;
    const struct op_tensor *few[32], **in = few;
    if (n > 32) {
        in = malloc((size_t)n * sizeof *in);
        if (!in) return op__fail(ctx, OP_NOMEM, "out of memory");
    }
    for (int i = 0; i < n_inputs; i++) in[i] = &inputs[i];
    for (int k = 0; k < g->n_captures; k++) in[n_inputs + k] = ctx->in[g->captures[k].index];
    struct op_plan *p = op__session_plan(x->session, g, in, n, x->err);
    enum op_status st = p ? run_bound(ctx, p, in, n, outputs) : x->err && x->err->code ? x->err->code : OP_NOMEM;
    if (in != few) free(in);
    return st;
}
