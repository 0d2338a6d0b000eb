/* fused_attention.c: quern's FusedAttention, which the pass fuse_attention makes of
 *     y = Softmax(scale q k [+ mask]) v
 * with all the Reshape, Transpose, Slice, Split, Gather and Expand nodes around it, which it holds as attributes ("q", "k", "v": from a
 * source to the operand; "y": from the product to what follows).
 *
 * Inputs: the sources of q, k (already the right side of a product: [..., D, S]) and v, the mask or nothing, then what the held nodes
 * have as further inputs (shapes, axes), in the order of the chains.
 *
 * HOW. The held nodes' own `infer` gives the shapes, view.c the strides of each operand in its source: nothing is moved, and
 * attention_f32.c reads and writes heads where they lie. The leading dimensions of all operands are broadcast together and divided
 * into loops with a stride for each operand; the innermost are heads and sequences for op__attention_run (several heads that share keys,
 * where an Expand has repeated those, are found by their stride of 0), those left over are gone through here. Where strides do not say
 * it (a Reshape across the grain), the held nodes are simply run, into scratch memory, and the operand lies contiguous.
 *
 * So it takes whatever the nodes took, and computes what they compute but for the order of roundings that attention_f32.c has. */
#include "ops/op/attention.h"
#include "ops/op/view.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum operand { Q, K, V, Y, M, N_OPERANDS };
enum { IN_MASK = 3, IN_MORE = 4, OUTPUTS_MAX = 16, LOOPS_MAX = 24 };

struct chain {
    int64_t n;
    const struct op_node *const *nodes;
    const int64_t *outputs; /* which one goes on */
};

struct fused {
    struct chain chain[4]; /* Q, K, V, Y */
    double scale;
};

struct loop {
    int64_t size, stride[N_OPERANDS];
};

struct plan {
    struct op_tensor t[N_OPERANDS]; /* the operands' shapes; of Y as the product gives it, before its chain */
    struct op_tensor result;
    struct op__view view[N_OPERANDS];
    int more;    /* the next of the further inputs */
    size_t used; /* scratch bytes */
    char *mem;   /* scratch; NULL: shapes only */
    bool y_copied;
    int n_loops;
    struct loop loops[LOOPS_MAX]; /* innermost first */
};

static enum op_status prepare(struct op_prepare *p) {
    static const char *const names[] = {"q", "k", "v", "y"}, *const outputs[] = {"q_outputs", "k_outputs", "v_outputs", "y_outputs"};
    struct fused *s = calloc(1, sizeof *s);
    if (!s) return op__node_fail(p->err, p->node, OP_NOMEM, "out of memory");
    p->node->state = s;
    s->scale = (double)op__attr_float(p->node, "scale", 1);
    for (int c = 0; c < 4; c++) {
        int64_t n;
        s->chain[c].nodes = op__attr_nodes(p->node, names[c], &s->chain[c].n);
        s->chain[c].outputs = op__attr_ints(p->node, outputs[c], &n);
        if (n != s->chain[c].n) return op__node_fail(p->err, p->node, OP_BAD_MODEL, "it is not made by its pass");
    }
    return OP_OK;
}

/* --- a chain ----------------------------------------------------------------------------------- */

static void *take(struct plan *p, const struct op_tensor *t) {
    void *at = p->mem ? p->mem + p->used : NULL;
    p->used += ((size_t)op_tensor_bytes(t) + 63) / 64 * 64;
    return at;
}

/* From *t along the chain: its shape, and by strides (v) or, where v is NULL, its elements in scratch memory. */
static enum op_status walk(const struct op_ctx *ctx, struct plan *p, const struct chain *chain, struct op_tensor *t, struct op__view *v, bool *fits) {
    enum op_status st = OP_OK;
    for (int64_t i = 0; i < chain->n && st == OP_OK; i++) {
        const struct op_node *n = chain->nodes[i];
        const struct op_tensor *in[8] = {t};
        struct op_tensor made[OUTPUTS_MAX] = {0}, *out[OUTPUTS_MAX] = {0};
        const int which = (int)chain->outputs[i];
        for (int k = 1; k < n->n_in; k++, p->more++) in[k] = ctx->in[p->more];
        for (int k = 0; k < n->n_out; k++)
            if (v ? k <= which : k == which) out[k] = &made[k];
        struct op_ctx sub = {.node = n, .n_in = n->n_in, .n_out = n->n_out, .in = in, .out = out, .kern = ctx->kern, .exec = ctx->exec};
        if ((st = n->desc->infer(&sub)) != OP_OK) break;
        struct op_tensor next = made[which];
        if (op_tensor_bytes(&next) < 0) return op__fail(&sub, OP_LIMIT, "its output is too large");
        if (v && *fits && op_tensor_count(&next) > 0) {
            const int axis = op__axis(op__attr_int(n, "axis", 0), t->rank); /* of a Split */
            int64_t before = 0;
            for (int k = 0; k < which; k++) before += made[k].dims[axis];
            st = op__view_move(&sub, &next, before, v, fits);
        } else if (!v) {
            made[which].data = next.data = take(p, &next);
            if (p->mem && op_tensor_count(&next) > 0) st = n->desc->run(&sub);
        }
        *t = next;
    }
    return st;
}

/* Operand o, by strides (*fits becomes false if there are none) or copied. */
static enum op_status source(const struct op_ctx *ctx, struct plan *p, enum operand o, bool copy, bool *fits) {
    const struct fused *s = ctx->state;
    const struct op_tensor *from = ctx->in[o];
    if (!from || from->kind != OP_KIND_TENSOR || !nn_is_float(from->dtype))
        return op__fail(ctx, OP_BAD_TYPE, "input %d is %s, expected a tensor of floats", (int)o, from ? op_type_name(from->dtype) : "absent");
    p->t[o] = *from;
    op__view_of(from, &p->view[o]);
    const enum op_status st = walk(ctx, p, &s->chain[o], &p->t[o], copy ? NULL : &p->view[o], fits);
    if (!copy) p->t[o].data = from->data;
    if (st == OP_OK && (copy || !op_tensor_count(&p->t[o]))) op__view_of(&p->t[o], &p->view[o]);
    return st;
}

/* --- shapes ------------------------------------------------------------------------------------ */

/* Broadcasts t's leading dimensions (all but two) into those of dst. */
static bool join(struct op_tensor *dst, const struct op_tensor *t) {
    int rank;
    int64_t dims[OP_RANK_MAX];
    if (!op__broadcast(dst->rank - 2, dst->dims, t->rank > 2 ? t->rank - 2 : 0, t->dims, &rank, dims) || rank + 2 > OP_RANK_MAX) return false;
    dims[rank] = dst->dims[dst->rank - 2];
    dims[rank + 1] = dst->dims[dst->rank - 1];
    memcpy(dst->dims, dims, (size_t)(rank + 2) * sizeof *dims);
    dst->rank = rank + 2;
    return true;
}

/* The shape of the product from those of the operands. A mask may have more queries or keys than the scores had (one of them, then). */
static enum op_status shapes(const struct op_ctx *ctx, struct plan *p) {
    struct op_tensor *t = p->t;
    char q[128], k[128], v[128];
    for (int o = Q; o <= V; o++)
        if (t[o].rank < 2) return op__fail(ctx, OP_UNSUPPORTED, "an operand of attention is a vector");
    const int64_t *dq = t[Q].dims + t[Q].rank - 2, *dk = t[K].dims + t[K].rank - 2, *dv = t[V].dims + t[V].rank - 2;
    const struct op_tensor *m = ctx->in[IN_MASK];
    t[M] = (struct op_tensor){.dtype = t[Q].dtype};
    if (m) {
        if (m->kind != OP_KIND_TENSOR || m->dtype != t[Q].dtype) return op__fail(ctx, OP_BAD_TYPE, "the mask is %s, the scores are %s", op_type_name(m->dtype), op_type_name(t[Q].dtype));
        t[M] = *m;
    }
    const int64_t rows = t[M].rank > 1 ? t[M].dims[t[M].rank - 2] : 1, cols = t[M].rank > 0 ? t[M].dims[t[M].rank - 1] : 1;
    const bool more_rows = dq[0] == 1, more_keys = dk[1] == 1 && cols == dv[0];
    bool fits = dq[1] == dk[0] && (dk[1] == dv[0] || more_keys) && t[K].dtype == t[Q].dtype && t[V].dtype == t[Q].dtype &&
                (rows == 1 || rows == dq[0] || more_rows) && (cols == 1 || cols == dv[0]);
    t[Y] = (struct op_tensor){.dtype = t[Q].dtype, .rank = 2, .dims = {more_rows ? rows : dq[0], dv[1]}};
    for (int o = Q; o < N_OPERANDS; o++) fits = fits && (o == Y || join(&t[Y], &t[o]));
    if (!fits)
        return op__fail(ctx, OP_BAD_SHAPE, "queries %s, keys %s and values %s (or the mask) do not fit", op_tensor_describe(&t[Q], q, sizeof q),
                        op_tensor_describe(&t[K], k, sizeof k), op_tensor_describe(&t[V], v, sizeof v));
    if (op_tensor_bytes(&t[Y]) < 0) return op__fail(ctx, OP_LIMIT, "the result is too large");
    return OP_OK;
}

/* --- where the result lies ---------------------------------------------------------------------- */

/* From the view of the product after its chain (`after`, whose strides are those of the product as it would lie) to a view of the product in
 * the result, which lies contiguous. */
static bool turn_round(const struct op_tensor *product, const struct op__view *after, struct op__view *v) {
    int64_t strides[OP__VIEW_FACTORS], from[OP_RANK_MAX], step = 1;
    const int n = after->first[after->rank];
    int m = 0;
    for (int i = n - 1; i >= 0; i--) strides[i] = step, step *= after->size[i];
    op__view_of(product, v);
    for (int d = 0; d < product->rank; d++) from[d] = v->first[d] < v->first[d + 1] ? v->stride[v->first[d]] : 0;
    for (int d = 0; d < product->rank; d++) {
        v->first[d] = m;
        for (int64_t unit = from[d] * product->dims[d]; from[d] && unit > from[d];) { /* its factors by falling stride */
            int at = -1;
            for (int i = 0; i < n; i++)
                if (after->stride[i] < unit && (at < 0 || after->stride[i] > after->stride[at])) at = i;
            if (at < 0 || after->stride[at] < from[d] || after->stride[at] * after->size[at] != unit) return false;
            v->size[m] = after->size[at];
            v->stride[m++] = strides[at];
            unit = after->stride[at];
        }
    }
    v->first[product->rank] = m;
    return true;
}

static enum op_status result(const struct op_ctx *ctx, struct plan *p, bool copy) {
    const struct fused *s = ctx->state;
    const int more = p->more;
    struct op__view after;
    bool fits = true;
    p->result = p->t[Y];
    op__view_of(&p->t[Y], &after);
    const enum op_status st = walk(ctx, p, &s->chain[Y], &p->result, &after, &fits);
    p->y_copied = copy || !fits || (op_tensor_count(&p->t[Y]) > 0 && !turn_round(&p->t[Y], &after, &p->view[Y]));
    if (p->y_copied) {
        op__view_of(&p->t[Y], &p->view[Y]);
        p->more = more;
    }
    return st;
}

/* --- loops over the leading dimensions ------------------------------------------------------------- */

/* The factors of one leading dimension of each operand, divided alike. */
static bool add_loops(struct plan *p, int d) {
    int64_t size[N_OPERANDS], stride[N_OPERANDS], left = p->t[Y].dims[d];
    int next[N_OPERANDS], first[N_OPERANDS];
    for (int o = Q; o < N_OPERANDS; o++) {
        const int own = d - (p->t[Y].rank - p->t[o].rank);
        const bool has = own >= 0 && own < p->t[o].rank - 2 && p->t[o].dims[own] > 1;
        first[o] = has ? p->view[o].first[own] : 0;
        next[o] = has ? p->view[o].first[own + 1] : 0;
        size[o] = has ? 1 : left;
        stride[o] = 0;
    }
    while (left > 1) {
        struct loop *l = &p->loops[p->n_loops];
        int64_t least = left;
        if (p->n_loops == LOOPS_MAX) return false;
        for (int o = Q; o < N_OPERANDS; o++) {
            if (size[o] == 1) {
                if (next[o] == first[o]) return false;
                size[o] = p->view[o].size[--next[o]];
                stride[o] = p->view[o].stride[next[o]];
            }
            if (size[o] < least) least = size[o];
        }
        l->size = least;
        for (int o = Q; o < N_OPERANDS; o++) {
            if (size[o] % least) return false;
            l->stride[o] = stride[o];
            size[o] /= least;
            stride[o] *= least;
        }
        left /= least;
        p->n_loops++;
    }
    return true;
}

static bool merges(const struct loop *inner, const struct loop *outer, unsigned operands) {
    for (int o = Q; o < N_OPERANDS; o++)
        if ((operands >> o & 1) && outer->stride[o] != inner->stride[o] * inner->size) return false;
    return true;
}

static bool make_loops(struct plan *p) {
    int n = 0;
    p->n_loops = 0;
    for (int d = p->t[Y].rank - 3; d >= 0; d--)
        if (!add_loops(p, d)) return false;
    for (int i = 0; i < p->n_loops; i++) {
        if (n && merges(&p->loops[n - 1], &p->loops[i], ~0u)) p->loops[n - 1].size *= p->loops[i].size;
        else p->loops[n++] = p->loops[i];
    }
    p->n_loops = n;
    return true;
}

/* --- the whole ---------------------------------------------------------------------------------- */

/* The attention of the innermost loops; *used is how many they are. False where rows have no single stride. */
static bool make_attention(const struct op_ctx *ctx, const struct plan *p, struct attention *a, int *used) {
    const struct op_tensor *t = p->t;
    const struct op__view *view = p->view;
    const struct loop *l = p->loops;
    int64_t q_value = 1, y_value = 1;
    *a = (struct attention){.batch = 1, .heads = 1, .kv_heads = 1, .queries = t[Y].dims[t[Y].rank - 2], .keys = t[V].dims[t[V].rank - 2],
                            .size = t[Q].dims[t[Q].rank - 1], .v_size = t[V].dims[t[V].rank - 1], .unseen = -INFINITY,
                            .scale = ((const struct fused *)ctx->state)->scale};
    struct attention_rows *rows[] = {[Q] = &a->q, [K] = &a->k, [V] = &a->v, [Y] = &a->y};
    int64_t *values[] = {[Q] = &q_value, [K] = &a->k.by_value, [V] = &a->v.by_value, [Y] = &y_value};
    for (int o = Q; o <= Y; o++) {
        const int row = o == K ? t[o].rank - 1 : t[o].rank - 2, value = o == K ? row - 1 : row + 1;
        *rows[o] = (struct attention_rows){.t = &t[o], .at = view[o].at};
        if (!op__view_stride(&view[o], row, &rows[o]->by_row) || !op__view_stride(&view[o], value, values[o])) return false;
    }
    if ((q_value != 1 && a->size > 1) || (y_value != 1 && a->v_size > 1) || (!a->k.by_value && a->size > 1) || (!a->v.by_value && a->v_size > 1)) return false;
    int n = 0, kv = -1, head = -1;
    if (p->n_loops > 1 && !l[0].stride[K] && !l[0].stride[V] && merges(&l[0], &l[1], 1u << Q | 1u << Y | 1u << M)) head = 0, kv = 1, n = 2;
    else if (p->n_loops > 0) head = 0, kv = l[0].stride[K] || l[0].stride[V] ? 0 : -1, n = 1;
    const int batch = n < p->n_loops ? n++ : -1;
    a->kv_heads = kv >= 0 ? l[kv].size : 1;
    a->heads = head >= 0 ? l[head].size * (kv > 0 ? l[kv].size : 1) : 1;
    a->batch = batch >= 0 ? l[batch].size : 1;
    for (int o = Q; o <= Y; o++) {
        const int of = o == K || o == V ? kv : head;
        rows[o]->by_head = of >= 0 ? l[of].stride[o] : 0;
        rows[o]->by_batch = batch >= 0 ? l[batch].stride[o] : 0;
    }
    if (ctx->in[IN_MASK]) {
        a->mask = &t[M];
        a->mask_keys = a->keys;
        a->mask_step[0] = batch >= 0 ? l[batch].stride[M] : 0;
        a->mask_step[1] = head >= 0 ? l[head].stride[M] : 0;
        a->mask_step[2] = t[M].rank > 1 && t[M].dims[t[M].rank - 2] > 1 ? t[M].dims[t[M].rank - 1] : 0;
        a->mask_step[3] = t[M].rank > 0 && t[M].dims[t[M].rank - 1] > 1;
    }
    *used = n;
    return true;
}

/* Everything about these shapes; scratch is at mem, or NULL. By strides if that can be, else by copies. */
static enum op_status describe(const struct op_ctx *ctx, char *mem, struct plan *p, struct attention *a, int *used) {
    for (int copy = 0; copy < 2; copy++) {
        p->more = IN_MORE;
        p->used = 0;
        p->mem = copy ? mem : NULL;
        enum op_status st = OP_OK;
        bool fits = true;
        for (int o = Q; o <= V && st == OP_OK; o++) st = source(ctx, p, (enum operand)o, copy, &fits);
        if (st == OP_OK) st = shapes(ctx, p);
        if (st != OP_OK) return st;
        if (ctx->in[IN_MASK]) op__view_of(&p->t[M], &p->view[M]);
        if ((st = result(ctx, p, copy)) != OP_OK || !op_tensor_count(&p->t[Y])) return st;
        if (fits && make_loops(p) && make_attention(ctx, p, a, used)) return OP_OK;
    }
    return op__fail(ctx, OP_UNSUPPORTED, "operands of these shapes");
}

/* What `describe` said, kept with the plan of a session: shapes, and the indices that shapes needed, are the same in each run. */
struct memo {
    bool known;
    int used;
    struct plan p;
    struct attention a;
};

static enum op_status describe_once(const struct op_ctx *ctx, struct memo *fresh, struct memo **dst) {
    struct memo *m = ctx->memo;
    *dst = m && m->known ? m : fresh;
    if (m && m->known) {
        for (int o = Q; o < N_OPERANDS; o++) m->p.t[o].data = o == Y ? NULL : ctx->in[o == M ? (int)IN_MASK : o] ? ctx->in[o == M ? (int)IN_MASK : o]->data : NULL;
        return OP_OK;
    }
    const enum op_status st = describe(ctx, ctx->scratch, &fresh->p, &fresh->a, &fresh->used);
    if (st != OP_OK || !m || fresh->p.used || fresh->p.y_copied || !op_tensor_count(&fresh->p.t[Y])) return st; /* copies are made anew */
    *m = *fresh;
    struct attention_rows *rows[] = {[Q] = &m->a.q, [K] = &m->a.k, [V] = &m->a.v, [Y] = &m->a.y};
    for (int o = Q; o <= Y; o++) rows[o]->t = &m->p.t[o];
    if (m->a.mask) m->a.mask = &m->p.t[M];
    m->known = true;
    *dst = m;
    return OP_OK;
}

static enum op_status infer(struct op_ctx *ctx) {
    struct plan p;
    struct attention a;
    int used;
    const enum op_status st = describe(ctx, NULL, &p, &a, &used);
    if (st == OP_OK) op__set(ctx, 0, p.result.dtype, p.result.rank, p.result.dims);
    return st;
}

/* Scratch: copied operands, the product where its chain is run, the chain's outputs, what the attention wants. */
static size_t scratch(const struct op_ctx *ctx) {
    struct plan p;
    struct attention a;
    int used;
    if (describe(ctx, NULL, &p, &a, &used) != OP_OK || !op_tensor_count(&p.t[Y])) return 0;
    bool fits = true;
    struct op_tensor t = p.t[Y];
    if (p.y_copied) {
        take(&p, &t);
        if (walk(ctx, &p, &((const struct fused *)ctx->state)->chain[Y], &t, NULL, &fits) != OP_OK) return 0;
    }
    size_t all;
    return __builtin_add_overflow(p.used, op__attention_scratch(ctx, &a), &all) ? SIZE_MAX / 2 : all;
}

/* Goes through the loops that the attention leaves over. */
static enum op_status run_loops(struct op_ctx *ctx, const struct plan *p, const struct attention *a, int used, void *mem) {
    int64_t total = 1;
    for (int i = used; i < p->n_loops; i++) total *= p->loops[i].size;
    for (int64_t i = 0; i < total; i++) {
        struct attention part = *a;
        struct op_tensor mask = p->t[M];
        int64_t at[N_OPERANDS] = {0}, rest = i;
        for (int k = used; k < p->n_loops; rest /= p->loops[k++].size)
            for (int o = Q; o < N_OPERANDS; o++) at[o] += rest % p->loops[k].size * p->loops[k].stride[o];
        part.q.at += at[Q], part.k.at += at[K], part.v.at += at[V], part.y.at += at[Y];
        if (a->mask) {
            mask.data = (char *)mask.data + at[M] * (int64_t)op_type_size(mask.dtype);
            part.mask = &mask;
        }
        const enum op_status st = op__attention_run(ctx, &part, mem);
        if (st != OP_OK) return st;
    }
    return OP_OK;
}

/* The product goes to scratch memory, its chain is run, and what comes out is the result. */
static enum op_status run_copied(struct op_ctx *ctx, struct memo *m) {
    const struct chain *chain = &((const struct fused *)ctx->state)->chain[Y];
    struct plan *p = &m->p;
    bool fits = true;
    p->mem = ctx->scratch;
    p->t[Y].data = take(p, &p->t[Y]);
    struct plan shapes_only = *p;
    struct op_tensor t = p->t[Y];
    shapes_only.mem = NULL;
    enum op_status st = walk(ctx, &shapes_only, chain, &t, NULL, &fits); /* its outputs come before the attention's own scratch */
    if (st == OP_OK) st = run_loops(ctx, p, &m->a, m->used, (char *)ctx->scratch + shapes_only.used);
    if (st != OP_OK) return st;
    t = p->t[Y];
    st = walk(ctx, p, chain, &t, NULL, &fits);
    if (st == OP_OK) memcpy(ctx->out[0]->data, t.data, (size_t)op_tensor_bytes(&t));
    return st;
}

static enum op_status run(struct op_ctx *ctx) {
    struct memo fresh, *m;
    const enum op_status st = describe_once(ctx, &fresh, &m);
    if (st != OP_OK || !op_tensor_count(&m->p.t[Y])) return st;
    if (m->p.y_copied) return run_copied(ctx, m);
    m->p.t[Y].data = ctx->out[0]->data;
    return run_loops(ctx, &m->p, &m->a, m->used, (char *)ctx->scratch + m->p.used);
}

static void cost(const struct op_ctx *ctx, double *flops, double *bytes) {
    struct plan p;
    struct attention a;
    int used;
    (void)bytes;
    if (describe(ctx, NULL, &p, &a, &used) != OP_OK || !op_tensor_count(&p.t[Y])) return;
    *flops = (double)op_tensor_count(&p.t[Y]) / (double)a.v_size * (double)a.keys * (2 * (double)(a.size + a.v_size) + 6);
}

static const struct op_desc fused_attention = {
    .name = "FusedAttention",
    .domain = "quern",
    .since = 1,
    .in_min = 3,
    .in_max = -1,
    .out_min = 1,
    .out_max = 1,
    .prepare = prepare,
    .release = free,
    .infer = infer,
    .memo_bytes = sizeof(struct memo),
    .scratch = scratch,
    .run = run,
    .cost = cost,
};
OP_REGISTER(fused_attention);
