/* Making a plan: what will happen for inputs of these shapes (plan.h).
 *
 * First walk, over the nodes in order: infer each on the types known so far. Its outcome decides:
 *   - all inputs' data is known (constants, Shape of known shapes and what follows from them) and the outputs are small:
 *     the node is evaluated now, its outputs are constants of the plan. Exporters' chains of Shape, Gather, Concat before a
 *     Reshape vanish like that, and the Reshape becomes static;
 *   - an If whose condition is known: the branch's nodes are planned in its place;
 *   - every output's shape is known: a static step;
 *   - otherwise a dynamic step, and so are all that hang on it.
 * Steps whose outputs only went into what is known now (the shape of a slice) go. Second walk: when each slot is made and last used. Third: views and in-place outputs share memory; the layout
 * (layout.c) puts the rest into the arena.
 *
 * A value of the graph is a slot of the plan; constants and an inlined If's outputs need no new ones: names are just bound
 * to slots that are there. Slots are numbered in a growing array while planning, so pointers to them are taken at the end.
 *
 * Thread: the session's. All memory of a plan is in its own arena, freed at once. */
#include "ops/plan.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define EVAL_BYTES_MAX ((int64_t)256 * 1024) /* larger results are not worth keeping with every plan */
#define SLOTS_MAX (1 << 24)

struct planner {
    struct op_plan *p;
    const struct op_model *m;
    struct op_error *err;
    bool general;
    struct op_exec trial; /* for evaluations */
    int cap_slots, cap_steps;
    int **in, **out; /* slots of each step, until they become pointers */
};

static enum op_status no_memory(struct planner *pl) {
    return op__model_fail(pl->m, pl->err, OP_NOMEM, "out of memory while planning");
}

/* --- slots and steps --------------------------------------------------------------------------- */

static bool grow(void **array, int *cap, int n, size_t each) {
    if (n < *cap) return true;
    int more = *cap ? *cap * 2 : 64;
    void *all = more <= SLOTS_MAX ? realloc(*array, (size_t)more * each) : NULL;
    if (!all) return false;
    *array = all;
    *cap = more;
    return true;
}

/* While planning, slots and spots are plain heap arrays; op__plan_create moves them into the plan's memory. */
static int slot_new(struct planner *pl, const struct op_tensor *t, enum op_place place) {
    struct op_plan *p = pl->p;
    int cap = pl->cap_slots;
    if (!grow((void **)&p->slots, &cap, p->n_slots, sizeof *p->slots)) return -1;
    cap = pl->cap_slots;
    if (!grow((void **)&p->spots, &cap, p->n_slots, sizeof *p->spots)) return -1;
    pl->cap_slots = cap;
    p->slots[p->n_slots] = (struct op_slot){.t = *t};
    p->spots[p->n_slots] = (struct op_spot){.place = place, .root = p->n_slots, .from = -1, .to = -1};
    return p->n_slots++;
}

/* The slot of value v; constants get theirs when first used. -2 without memory, -1 of -1. */
static int slot_of(struct planner *pl, const struct op_graph *g, int *bound, int v) {
    if (v < 0) return -1;
    if (bound[v] < 0 && g->values[v].constant) {
        const struct op_tensor *t = &g->values[v].constant->t;
        bound[v] = slot_new(pl, t, OP__PLACE_CONST);
        if (bound[v] < 0) return -2;
    }
    return bound[v] < 0 ? -3 : bound[v];
}

static struct op_step *step_new(struct planner *pl, const struct op_node *n, const int *in, int n_in, const int *out) {
    struct op_plan *p = pl->p;
    int cap = pl->cap_steps;
    if (!grow((void **)&p->steps, &cap, p->n_steps, sizeof *p->steps)) return NULL;
    cap = pl->cap_steps;
    if (!grow((void **)&pl->in, &cap, p->n_steps, sizeof *pl->in)) return NULL;
    cap = pl->cap_steps;
    if (!grow((void **)&pl->out, &cap, p->n_steps, sizeof *pl->out)) return NULL;
    pl->cap_steps = cap;
    int *slots = op__arena_array(&p->memory, (size_t)n_in + (size_t)n->n_out, sizeof *slots);
    if (!slots) return NULL;
    if (n_in) memcpy(slots, in, (size_t)n_in * sizeof *slots);
    if (n->n_out) memcpy(slots + n_in, out, (size_t)n->n_out * sizeof *slots);
    pl->in[p->n_steps] = slots;
    pl->out[p->n_steps] = slots + n_in;
    struct op_step *s = &p->steps[p->n_steps++];
    *s = (struct op_step){.node = n};
    s->ctx = (struct op_ctx){.node = n, .state = n->state, .n_in = n->n_in, .n_out = n->n_out, .kern = pl->m->kern};
    return s;
}

/* --- one node ---------------------------------------------------------------------------------- */

struct visit { /* a node being planned */
    const struct op_node *n;
    int n_in;           /* captures included */
    int *in;            /* slots, -1 absent */
    bool *wanted;       /* outputs */
    struct op_ctx ctx;  /* on temporary slots */
    const struct op_tensor **t_in;
    struct op_slot *made;
    struct op_tensor **t_out;
};

/* A constant that was packed and given back has no data. */
static bool known(const struct op_plan *p, int slot) {
    return p->spots[slot].place == OP__PLACE_CONST && p->slots[slot].t.data;
}

/* Takes the evaluated outputs over into the plan's memory. */
static enum op_status keep_outputs(struct planner *pl, struct visit *v, int *out) {
    for (int i = 0; i < v->n->n_out; i++) {
        out[i] = -1;
        if (!v->t_out[i]) continue;
        struct op_tensor kept = v->made[i].t;
        size_t bytes = (size_t)op_tensor_bytes(&kept);
        char *copy = bytes ? op__arena_alloc(&pl->p->memory, bytes + 63) : op__nothing;
        if (!copy) return OP_NOMEM;
        if (bytes) copy = memcpy((void *)(((uintptr_t)copy + 63) & ~(uintptr_t)63), kept.data, bytes);
        kept.data = copy;
        out[i] = slot_new(pl, &kept, OP__PLACE_CONST);
        if (out[i] < 0) return OP_NOMEM;
    }
    return OP_OK;
}

/* Whether the node can and should be run while planning. */
static bool evaluable(const struct planner *pl, const struct visit *v) {
    unsigned flags = v->n->desc->flags;
    if (flags & (OP_F_RANDOM | OP_F_CONTROL)) return false;
    int64_t in_bytes = 0;
    for (int i = 0; i < v->n_in; i++) {
        if (v->in[i] < 0) continue;
        const struct op_tensor *t = &pl->p->slots[v->in[i]].t;
        if (t->kind != OP_KIND_TENSOR || t->dtype == OP_STRING) return false;
        if (flags & OP_F_SHAPE) continue;
        if (!known(pl->p, v->in[i])) return false;
        in_bytes += op_tensor_bytes(t);
    }
    for (int i = 0; i < v->n->n_out; i++) { /* unknown (-1) passes: the inputs bound it */
        const struct op_tensor *t = v->t_out[i];
        if (t && (t->kind != OP_KIND_TENSOR || t->dtype == OP_STRING || op_tensor_bytes(t) > EVAL_BYTES_MAX)) return false;
    }
    return !(flags & OP_F_DYNAMIC) || in_bytes <= EVAL_BYTES_MAX / 8;
}

/* *done: outputs are constants now. An evaluation that fails is left for the run to report. */
static enum op_status try_eval(struct planner *pl, struct visit *v, int *out, bool *done) {
    for (int i = 0; i < v->n->n_out; i++) v->made[i] = (struct op_slot){0};
    v->ctx.exec = &pl->trial;
    enum op_status st = op__node_eval(&pl->trial, &v->ctx, NULL);
    if (st == OP_OK) {
        bool small = true;
        for (int i = 0; i < v->n->n_out; i++)
            if (v->t_out[i] && op_tensor_bytes(v->t_out[i]) > EVAL_BYTES_MAX) small = false;
        if (small) st = keep_outputs(pl, v, out);
        *done = st == OP_OK && small;
    } else if (st != OP_NOMEM) st = OP_OK;
    op__exec_reset(&pl->trial);
    return st;
}

/* Asks infer. *fixed: every output is a tensor of known shape. */
static enum op_status try_infer(struct planner *pl, struct visit *v, bool *fixed) {
    *fixed = false;
    for (int i = 0; i < v->n_in; i++)
        if (v->in[i] >= 0 && pl->p->spots[v->in[i]].place == OP__PLACE_DYNAMIC) return OP_OK;
    if (v->n->desc->flags & OP_F_CONTROL) return OP_OK;
    for (int i = 0; i < v->n->n_out; i++) v->made[i] = (struct op_slot){0};
    pl->trial.quiet = false;
    enum op_status st = v->n->desc->infer(&v->ctx);
    pl->trial.quiet = true;
    if (st == OP_NEED_DATA) return OP_OK;
    if (st != OP_OK) return st;
    *fixed = !(v->n->desc->flags & OP_F_DYNAMIC);
    for (int i = 0; i < v->n->n_out; i++) {
        const struct op_tensor *t = v->t_out[i];
        if (!t) continue;
        if (t->kind != OP_KIND_TENSOR) *fixed = false;
        else if (op_tensor_bytes(t) < 0) {
            for (int d = 0; d < t->rank; d++)
                if (t->dims[d] < 0) *fixed = false;
            if (*fixed) return op__fail(&v->ctx, OP_LIMIT, "output %d is too large", i);
        }
    }
    return OP_OK;
}

/* Where the node's inputs stand: again after every slot_new, which may move the slots. */
static void find_inputs(const struct planner *pl, struct visit *v) {
    for (int i = 0; i < v->n_in; i++) v->t_in[i] = v->in[i] < 0 ? NULL : &pl->p->slots[v->in[i]].t;
}

static enum op_status add_step(struct planner *pl, struct visit *v, bool fixed, int *out) {
    for (int i = 0; i < v->n->n_out; i++) {
        static const struct op_tensor unknown;
        struct op_tensor t = fixed ? v->made[i].t : unknown;
        enum op_place place = fixed ? OP__PLACE_ARENA : OP__PLACE_DYNAMIC;
        if (fixed && !op_tensor_count(&t)) { /* all of its data is known: there is none */
            t.data = op__nothing;
            place = OP__PLACE_CONST;
        }
        out[i] = v->wanted[i] ? slot_new(pl, &t, place) : -1;
        if (v->wanted[i] && out[i] < 0) return no_memory(pl);
    }
    find_inputs(pl, v);
    struct op_step *s = step_new(pl, v->n, v->in, v->n_in, out);
    if (!s) return no_memory(pl);
    s->fixed = fixed;
    if (!fixed) return OP_OK;
    const struct op_desc *d = v->n->desc;
    s->view = v->n_in > 0 && v->in[0] >= 0 && op_tensor_bytes(&v->made[0].t) == op_tensor_bytes(v->t_in[0]) &&
              ((d->flags & OP_F_VIEW) || (d->is_view && !pl->m->options.reference && d->is_view(&v->ctx)));
    if (d->scratch && !s->view) s->scratch_bytes = d->scratch(&v->ctx);
    if (d->memo_bytes && !(s->ctx.memo = op__arena_alloc(&pl->p->memory, d->memo_bytes))) return no_memory(pl);
    if (d->cost) d->cost(&v->ctx, &s->flops, &s->bytes);
    if (!s->bytes) {
        for (int i = 0; i < v->n_in; i++)
            if (v->in[i] >= 0) s->bytes += (double)op_tensor_bytes(&pl->p->slots[v->in[i]].t);
        for (int i = 0; i < v->n->n_out; i++)
            if (v->t_out[i]) s->bytes += (double)op_tensor_bytes(v->t_out[i]);
    }
    pl->p->flops += s->flops;
    return OP_OK;
}

static enum op_status plan_graph(struct planner *pl, const struct op_graph *g, int *bound);

/* An If whose condition is known: the branch's nodes come here, its outputs are the If's. */
static enum op_status inline_if(struct planner *pl, const struct op_node *n, const int *in, int *out) {
    bool cond = *(const bool *)pl->p->slots[in[0]].t.data;
    const struct op_graph *branch = op__attr_graph(n, cond ? "then_branch" : "else_branch");
    if (!branch || branch->n_inputs || branch->n_outputs != n->n_out) return op__node_fail(pl->err, n, OP_BAD_MODEL, "its branch does not have the node's %d outputs", n->n_out);
    int *bound = malloc(((size_t)branch->n_values + 1) * sizeof *bound);
    if (!bound) return no_memory(pl);
    for (int v = 0; v < branch->n_values; v++) bound[v] = -1;
    for (int k = 0; k < branch->n_captures; k++) bound[branch->captures[k].inner] = in[branch->captures[k].index];
    enum op_status st = plan_graph(pl, branch, bound);
    for (int i = 0; i < n->n_out && st == OP_OK; i++) {
        out[i] = slot_of(pl, branch, bound, branch->outputs[i]);
        if (out[i] < 0) st = no_memory(pl);
    }
    free(bound);
    return st;
}

static bool is_known_if(const struct planner *pl, const struct op_node *n, const int *in) {
    if (!op__node_is(n, "If") || n->n_in != 1 || in[0] < 0 || !known(pl->p, in[0])) return false;
    const struct op_tensor *t = &pl->p->slots[in[0]].t;
    return t->kind == OP_KIND_TENSOR && t->dtype == OP_BOOL && op_tensor_count(t) == 1;
}

static enum op_status visit_node(struct planner *pl, struct visit *v, int *out) {
    bool fixed = false, done = false;
    if (is_known_if(pl, v->n, v->in)) return inline_if(pl, v->n, v->in, out);
    if (!pl->general) {
        enum op_status st = try_infer(pl, v, &fixed);
        if (st != OP_OK) return st;
        if (evaluable(pl, v)) {
            st = try_eval(pl, v, out, &done);
            if (st == OP_OK && !done) st = try_infer(pl, v, &fixed); /* the trial has overwritten the first answer */
            if (st != OP_OK || done) return st;
        }
    }
    return add_step(pl, v, fixed, out);
}

/* Sets up the visit's arrays in one block. */
static enum op_status plan_node(struct planner *pl, const struct op_graph *g, const struct op_node *n, int *bound, const int *uses) {
    int n_in = n->n_in + n->n_captures;
    size_t count_in = (size_t)n_in + 1, count_out = (size_t)n->n_out + 1;
    char *block = calloc(1, count_out * (sizeof(struct op_slot) + sizeof(void *) + sizeof(int) + 1) + count_in * (sizeof(void *) + sizeof(int)));
    if (!block) return no_memory(pl);
    struct visit v = {.n = n, .n_in = n_in};
    char *at = block;
    v.made = (struct op_slot *)(void *)at, at += count_out * sizeof *v.made;
    v.t_out = (struct op_tensor **)(void *)at, at += count_out * sizeof *v.t_out;
    v.t_in = (const struct op_tensor **)(void *)at, at += count_in * sizeof *v.t_in;
    v.in = (int *)(void *)at, at += count_in * sizeof *v.in;
    int *out = (int *)(void *)at;
    at += count_out * sizeof *out;
    v.wanted = (bool *)at;
    enum op_status st = OP_OK;
    bool any = false;
    for (int i = 0; i < n->n_out; i++) {
        v.wanted[i] = n->out[i] >= 0 && uses[n->out[i]];
        any |= v.wanted[i];
        v.t_out[i] = v.wanted[i] ? &v.made[i].t : NULL;
    }
    for (int i = 0; i < n_in && st == OP_OK; i++) {
        v.in[i] = slot_of(pl, g, bound, n->in[i]);
        if (v.in[i] < -1) st = v.in[i] == -2 ? no_memory(pl) : op__node_fail(pl->err, n, OP_BAD_MODEL, "input %d is not there", i);
    }
    if (st == OP_OK && any) {
        find_inputs(pl, &v);
        v.ctx = (struct op_ctx){.node = n, .state = n->state, .n_in = n->n_in, .n_out = n->n_out, .in = v.t_in, .out = v.t_out, .kern = pl->m->kern, .exec = &pl->trial};
        st = visit_node(pl, &v, out);
        for (int i = 0; i < n->n_out && st == OP_OK; i++)
            if (n->out[i] >= 0) bound[n->out[i]] = out[i];
    }
    free(block);
    return st;
}

static enum op_status plan_graph(struct planner *pl, const struct op_graph *g, int *bound) {
    int *uses = op__graph_uses(g);
    if (!uses) return no_memory(pl);
    enum op_status st = OP_OK;
    for (int i = 0; i < g->n_nodes && st == OP_OK; i++) st = plan_node(pl, g, g->nodes[i], bound, uses);
    free(uses);
    return st;
}

/* Takes out steps none of whose outputs are used: what used them was evaluated while planning. */
static enum op_status drop_unused(struct planner *pl) {
    struct op_plan *p = pl->p;
    bool *used = calloc((size_t)p->n_slots + 1, sizeof *used);
    int kept = p->n_steps;
    if (!used) return no_memory(pl);
    for (int i = 0; i < p->n_outputs; i++) used[p->outputs[i]] = true;
    for (int i = p->n_steps - 1; i >= 0; i--) { /* backwards: a user goes before what it used */
        const struct op_node *n = p->steps[i].node;
        bool any = false;
        for (int o = 0; o < n->n_out; o++) any |= pl->out[i][o] >= 0 && used[pl->out[i][o]];
        if (!any) {
            p->flops -= p->steps[i].flops;
            continue;
        }
        for (int k = 0; k < n->n_in + n->n_captures; k++)
            if (pl->in[i][k] >= 0) used[pl->in[i][k]] = true;
        p->steps[--kept] = p->steps[i];
        pl->in[kept] = pl->in[i];
        pl->out[kept] = pl->out[i];
    }
    for (int i = kept; i < p->n_steps; i++) {
        p->steps[i - kept] = p->steps[i];
        pl->in[i - kept] = pl->in[i];
        pl->out[i - kept] = pl->out[i];
    }
    p->n_steps -= kept;
    free(used);
    return OP_OK;
}

/* --- lifetimes, sharing ------------------------------------------------------------------------ */

static int root_of(const struct op_plan *p, int slot) {
    while (p->spots[slot].root != slot) slot = p->spots[slot].root;
    return slot;
}

/* Lifetimes of roots: a slot that shares memory lengthens its root's. */
static void find_lifetimes(struct planner *pl) {
    struct op_plan *p = pl->p;
    for (int i = 0; i < p->n_steps; i++) {
        const struct op_node *n = p->steps[i].node;
        for (int k = 0; k < n->n_in + n->n_captures; k++)
            if (pl->in[i][k] >= 0) p->spots[pl->in[i][k]].to = i;
        for (int o = 0; o < n->n_out; o++)
            if (pl->out[i][o] >= 0) p->spots[pl->out[i][o]].from = p->spots[pl->out[i][o]].to = i;
    }
    for (int i = 0; i < p->n_outputs; i++) p->spots[p->outputs[i]].to = p->n_steps;
}

static void share(struct op_plan *p, int slot, int with) {
    int root = root_of(p, with);
    p->spots[slot].root = root;
    if (p->spots[slot].to > p->spots[root].to) p->spots[root].to = p->spots[slot].to;
}

/* Views first: they lengthen lives, which decides what may be overwritten in place. A dynamic step may turn out to be a view
 * too, and its slot then points into the arena. */
static void share_views(struct planner *pl) {
    struct op_plan *p = pl->p;
    for (int i = p->n_steps - 1; i >= 0; i--) { /* backwards: a view of a view is done before what it views */
        const struct op_step *s = &p->steps[i];
        if ((!s->view && !(s->node->desc->flags & OP_F_VIEW)) || pl->in[i][0] < 0 || pl->out[i][0] < 0) continue;
        int in = pl->in[i][0], out = pl->out[i][0];
        if (s->fixed && !s->view) continue;
        if (p->spots[out].to > p->spots[in].to) p->spots[in].to = p->spots[out].to;
    }
    for (int i = 0; i < p->n_steps; i++) {
        if (!p->steps[i].view || p->spots[pl->out[i][0]].place != OP__PLACE_ARENA) continue;
        p->spots[pl->out[i][0]].place = OP__PLACE_VIEW;
        share(p, pl->out[i][0], pl->in[i][0]);
    }
}

static void share_in_place(struct planner *pl) {
    struct op_plan *p = pl->p;
    for (int i = 0; i < p->n_steps; i++) {
        const struct op_step *s = &p->steps[i];
        int out = s->node->n_out ? pl->out[i][0] : -1;
        if (!s->fixed || s->view || out < 0 || p->spots[out].place != OP__PLACE_ARENA || !s->node->desc->inplace || pl->m->options.reference) continue;
        for (int k = 0; k < s->node->n_in && k < 32; k++) {
            int in = pl->in[i][k];
            if (in < 0 || !(s->node->desc->inplace >> k & 1)) continue;
            int root = root_of(p, in);
            if (p->spots[root].place != OP__PLACE_ARENA || p->spots[root].to != i) continue;
            if (op_tensor_bytes(&p->slots[in].t) != op_tensor_bytes(&p->slots[out].t)) continue;
            bool again = false; /* the same memory as another input, which run may read later */
            for (int j = 0; j < s->node->n_in; j++)
                if (j != k && pl->in[i][j] >= 0 && root_of(p, pl->in[i][j]) == root) again = true;
            if (again) continue;
            p->spots[out].place = OP__PLACE_VIEW;
            share(p, out, in);
            break;
        }
    }
}

static enum op_status find_dead(struct planner *pl) {
    struct op_plan *p = pl->p;
    int *n = calloc((size_t)p->n_steps + 1, sizeof *n);
    if (!n) return no_memory(pl);
    for (int s = 0; s < p->n_slots; s++)
        if (p->spots[s].place == OP__PLACE_DYNAMIC && p->spots[s].from >= 0 && p->spots[s].to < p->n_steps) n[p->spots[s].to]++;
    enum op_status st = OP_OK;
    for (int i = 0; i < p->n_steps && st == OP_OK; i++) {
        p->steps[i].dead = op__arena_array(&p->memory, (size_t)n[i], sizeof(int));
        if (!p->steps[i].dead) st = no_memory(pl);
    }
    for (int s = 0; s < p->n_slots && st == OP_OK; s++)
        if (p->spots[s].place == OP__PLACE_DYNAMIC && p->spots[s].from >= 0 && p->spots[s].to < p->n_steps) {
            struct op_step *step = &p->steps[p->spots[s].to];
            step->dead[step->n_dead++] = s;
        }
    free(n);
    return st;
}

/* --- putting it together ----------------------------------------------------------------------- */

static void *move(struct op_plan *p, void *array, size_t n, size_t each) {
    void *copy = op__arena_array(&p->memory, n + 4, each); /* room to align slots to 64 is not needed: they hold pointers */
    if (copy && n) memcpy(copy, array, n * each);
    return copy;
}

/* Slots stand still from here on: steps get pointers to them. */
static enum op_status freeze(struct planner *pl) {
    struct op_plan *p = pl->p;
    void *slots = move(p, p->slots, (size_t)p->n_slots, sizeof *p->slots), *spots = move(p, p->spots, (size_t)p->n_slots, sizeof *p->spots);
    void *steps = move(p, p->steps, (size_t)p->n_steps, sizeof *p->steps);
    free(p->slots);
    free(p->spots);
    free(p->steps);
    p->slots = slots;
    p->spots = spots;
    p->steps = steps;
    if (!slots || !spots || !steps) {
        p->n_slots = p->n_steps = 0;
        return no_memory(pl);
    }
    for (int i = 0; i < p->n_steps; i++) {
        struct op_step *s = &p->steps[i];
        int n_in = s->node->n_in + s->node->n_captures;
        const struct op_tensor **in = op__arena_array(&p->memory, (size_t)n_in, sizeof *in);
        struct op_tensor **out = op__arena_array(&p->memory, (size_t)s->node->n_out, sizeof *out);
        if (!in || !out) return no_memory(pl);
        for (int k = 0; k < n_in; k++) in[k] = pl->in[i][k] < 0 ? NULL : &p->slots[pl->in[i][k]].t;
        for (int o = 0; o < s->node->n_out; o++) out[o] = pl->out[i][o] < 0 ? NULL : &p->slots[pl->out[i][o]].t;
        s->ctx.in = in;
        s->ctx.out = out;
    }
    return OP_OK;
}

static enum op_status bind_inputs(struct planner *pl, const struct op_tensor *const *inputs, int n, int *bound) {
    struct op_plan *p = pl->p;
    const struct op_graph *g = p->graph;
    p->n_inputs = n;
    p->inputs = op__arena_array(&p->memory, (size_t)n, sizeof *p->inputs);
    if (!p->inputs) return no_memory(pl);
    for (int i = 0; i < n; i++) {
        int v = i < g->n_inputs ? g->inputs[i] : g->captures[i - g->n_inputs].inner;
        p->inputs[i] = -1;
        if (!inputs[i] || g->values[v].constant) continue;
        struct op_tensor t = *inputs[i];
        bool open = pl->general || t.kind != OP_KIND_TENSOR;
        t.data = NULL;
        if (!open && op_tensor_bytes(&t) < 0) return op__model_fail(pl->m, pl->err, OP_BAD_SHAPE, "input %d is too large", i);
        if (!open && !op_tensor_count(&t)) t.data = op__nothing;
        bound[v] = p->inputs[i] = slot_new(pl, &t, open ? OP__PLACE_DYNAMIC : t.data ? OP__PLACE_CONST : OP__PLACE_INPUT);
        if (bound[v] < 0) return no_memory(pl);
    }
    return OP_OK;
}

static enum op_status bind_outputs(struct planner *pl, int *bound) {
    struct op_plan *p = pl->p;
    const struct op_graph *g = p->graph;
    p->outputs = op__arena_array(&p->memory, (size_t)g->n_outputs, sizeof *p->outputs);
    if (!p->outputs) return no_memory(pl);
    for (int i = 0; i < g->n_outputs; i++) {
        int s = slot_of(pl, g, bound, g->outputs[i]);
        if (s < 0) return s == -2 ? no_memory(pl) : op__model_fail(pl->m, pl->err, OP_BAD_SHAPE, "output %d depends on an input that is left out", i);
        p->outputs[p->n_outputs++] = s;
    }
    return OP_OK;
}

static enum op_status build(struct planner *pl, const struct op_tensor *const *inputs, int n) {
    struct op_plan *p = pl->p;
    int *bound = malloc(((size_t)p->graph->n_values + 1) * sizeof *bound);
    if (!bound) return no_memory(pl);
    for (int v = 0; v < p->graph->n_values; v++) bound[v] = -1;
    enum op_status st = bind_inputs(pl, inputs, n, bound);
    if (st == OP_OK) st = plan_graph(pl, p->graph, bound);
    if (st == OP_OK) st = bind_outputs(pl, bound);
    free(bound);
    if (st == OP_OK) st = drop_unused(pl);
    if (st == OP_OK) {
        find_lifetimes(pl);
        share_views(pl);
        share_in_place(pl);
        st = find_dead(pl);
    }
    enum op_status frozen = freeze(pl); /* always: the plan's destructor expects its arrays in the arena */
    if (st == OP_OK) st = frozen;
    if (st == OP_OK) st = op__plan_layout(p, (size_t)pl->m->options.memory_bytes_max, pl->err);
    return st;
}

struct op_plan *op__plan_create(const struct op_model *m, struct op_pool *pool, const struct op_graph *g, const struct op_tensor *const *inputs, int n,
                                bool general, struct op_error *err) {
    struct op_plan *p = calloc(1, sizeof *p);
    struct planner pl = {.p = p, .m = m, .err = err, .general = general};
    if (!p) {
        no_memory(&pl);
        return NULL;
    }
    p->graph = g;
    op__exec_init(&pl.trial, m, err);
    pl.trial.quiet = true;
    pl.trial.pool = pool;
    enum op_status st = build(&pl, inputs, n);
    op__exec_finish(&pl.trial);
    free(pl.in);
    free(pl.out);
    if (st == OP_OK) return p;
    if (err && err->code == OP_OK) op__model_fail(m, err, st, "it cannot be planned: %s", op_status_name(st));
    op__plan_destroy(p);
    return NULL;
}

void op__plan_destroy(struct op_plan *p) {
    if (!p) return;
    for (int i = 0; i < p->n_slots; i++) op__buf_release(p->slots[i].buf);
    op__arena_finish(&p->memory);
    free(p->key);
    free(p);
}

size_t op__plan_bytes(const struct op_plan *p) {
    return sizeof *p + p->memory.bytes + p->key_len * sizeof *p->key;
}
