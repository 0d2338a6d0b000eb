/* A session: one lane's plans, arena and threads for one model.
 *
 * Plans are found by the types and shapes of the inputs (and of a subgraph's captures). They are kept under a cap of
 * bytes and the least recently used goes first. A subgraph that keeps coming with new shapes (a loop whose state grows)
 * gets its general plan after a few, which infers at run time and serves all shapes.
 *
 * The arena is shared by all plans of the main graph: one of them runs at a time, and its outputs are valid until the next
 * run. It grows to the largest plan and is given back when plans of a quarter of it have run 64 times in a row.
 *
 * Thread: one at a time. */
#include "ops/session.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>

#define PLANS_BYTES_MAX ((size_t)16 << 20)
#define PLANS_MAX 64 /* of the main graph: inputs of ever new shapes must not fill the memory */
#define SHAPES_OF_SUBGRAPH_MAX 16
#define HUGE_BYTES ((size_t)4 << 20)
#define IDLE_RUNS 64

/* --- plans ------------------------------------------------------------------------------------- */

static size_t key_of(const struct op_tensor *const *inputs, int n, int64_t *key) {
    size_t len = 0;
    for (int i = 0; i < n; i++) {
        const struct op_tensor *t = inputs[i];
        if (!t || t->kind != OP_KIND_TENSOR) {
            if (key) key[len] = t ? -1 - (int64_t)t->kind : -100;
            len++;
            continue;
        }
        if (key) {
            key[len] = (int64_t)t->dtype << 8 | t->rank;
            if (t->rank) memcpy(&key[len + 1], t->dims, (size_t)t->rank * sizeof *key);
        }
        len += 1 + (size_t)t->rank;
    }
    return len;
}

static uint64_t hash_of(const struct op_graph *g, const int64_t *key, size_t len) {
    uint64_t h = (uint64_t)(uintptr_t)g;
    for (size_t i = 0; i < len; i++) {
        h = (h ^ (uint64_t)key[i]) * 0x9e3779b97f4a7c15u;
        h ^= h >> 29;
    }
    return h;
}

/* Drops the least recently used until the caps hold; never one that runs or whose outputs are with the caller. */
static void trim(struct op_session *s, const struct op_plan *keep) {
    for (;;) {
        struct op_plan **oldest = NULL;
        int n_main = 0;
        for (struct op_plan *p = s->plans; p; p = p->next) n_main += !p->graph->parent;
        const bool crowded = n_main > PLANS_MAX;
        if (!crowded && s->plans_bytes <= PLANS_BYTES_MAX) return;
        for (struct op_plan **at = &s->plans; *at; at = &(*at)->next)
            if (!(*at)->busy && *at != keep && *at != s->last && !(crowded && (*at)->graph->parent) && (!oldest || (*at)->used < (*oldest)->used)) oldest = at;
        if (!oldest) return;
        struct op_plan *p = *oldest;
        *oldest = p->next;
        s->plans_bytes -= op__plan_bytes(p);
        op__plan_destroy(p);
    }
}

static struct op_plan *add_plan(struct op_session *s, const struct op_graph *g, const struct op_tensor *const *inputs, int n, int64_t *key, size_t len,
                                bool general, struct op_error *err) {
    struct op_plan *p = op__plan_create(s->m, s->x.pool, g, inputs, n, general, err);
    if (!p) {
        free(key);
        return NULL;
    }
    p->key = key;
    p->key_len = len;
    p->key_hash = key ? hash_of(g, key, len) : 0;
    p->used = ++s->clock;
    p->next = s->plans;
    s->plans = p;
    s->plans_bytes += op__plan_bytes(p);
    trim(s, p);
    return p;
}

struct op_plan *op__session_plan(struct op_session *s, const struct op_graph *g, const struct op_tensor *const *inputs, int n, struct op_error *err) {
    int64_t few[256], *key = few;
    size_t len = key_of(inputs, n, NULL);
    if (len > 256) key = malloc(len * sizeof *key);
    if (!key) {
        op__model_fail(s->m, err, OP_NOMEM, "out of memory");
        return NULL;
    }
    key_of(inputs, n, key);
    uint64_t hash = hash_of(g, key, len);
    struct op_plan *found = NULL, *general = NULL;
    int n_same = 0;
    for (struct op_plan *p = s->plans; p && !found; p = p->next) {
        if (p->graph != g) continue;
        n_same++;
        if (!p->key) general = p;
        else if (p->key_hash == hash && p->key_len == len && memcmp(p->key, key, len * sizeof *key) == 0) found = p;
    }
    if (!found && g->parent && n_same >= SHAPES_OF_SUBGRAPH_MAX) found = general ? general : add_plan(s, g, inputs, n, NULL, 0, true, err);
    else if (!found) {
        int64_t *own = malloc((len + 1) * sizeof *own);
        if (own) {
            memcpy(own, key, len * sizeof *own);
            found = add_plan(s, g, inputs, n, own, len, false, err);
        } else op__model_fail(s->m, err, OP_NOMEM, "out of memory");
    }
    if (key != few) free(key);
    if (found) found->used = ++s->clock;
    return found;
}

/* --- life -------------------------------------------------------------------------------------- */

struct op_session *op_session_create(struct op_model *m, const struct op_session_options *options, struct op_error *err) {
    struct op_session *s = calloc(1, sizeof *s);
    struct op_error own;
    if (!err) err = &own;
    *err = (struct op_error){0};
    if (!s) {
        op__model_fail(m, err, OP_NOMEM, "out of memory");
        return NULL;
    }
    s->m = op_model_retain(m);
    if (options) s->options = *options;
    if (s->options.n_threads < 1) s->options.n_threads = 1;
    op__exec_init(&s->x, m, NULL);
    s->x.session = s;
    s->x.cancel = s->options.cancel;
    if (getrandom(&s->x.random, sizeof s->x.random, GRND_NONBLOCK) < 0) s->x.random = (uint64_t)(uintptr_t)s;
    s->outputs = calloc((size_t)m->graph->n_outputs + 1, sizeof *s->outputs);
    s->in = calloc((size_t)m->graph->n_inputs + 1, sizeof *s->in);
    bool good = s->outputs && s->in;
    if (good && s->options.n_threads > 1) {
        s->x.pool = op__pool_create(s->options.n_threads);
        good = s->x.pool != NULL;
    }
    if (good) return s;
    op__model_fail(m, err, OP_NOMEM, "out of memory, or of threads: %d asked for", s->options.n_threads);
    op_session_destroy(s);
    return NULL;
}

static void arena_free(struct op_session *s) {
    if (s->arena) munmap(s->arena, s->arena_bytes);
    s->arena = NULL;
    s->arena_bytes = 0;
}

/* Gives up the last run's outputs. */
static void settle(struct op_session *s) {
    if (s->last) op__plan_clear(s->last);
    s->last = NULL;
    op__exec_reset(&s->x);
}

void op_session_destroy(struct op_session *s) {
    if (!s) return;
    op_session_destroy(s->open);
    settle(s);
    while (s->plans) {
        struct op_plan *next = s->plans->next;
        op__plan_destroy(s->plans);
        s->plans = next;
    }
    op__exec_finish(&s->x);
    op__pool_destroy(s->x.pool);
    arena_free(s);
    free(s->outputs);
    free(s->in);
    op_model_release(s->m);
    free(s);
}

size_t op_session_bytes(const struct op_session *s) {
    return sizeof *s + s->arena_bytes + s->plans_bytes + s->x.bytes + (s->open ? op_session_bytes(s->open) : 0);
}

/* --- checking what the caller sends ------------------------------------------------------------ */

static void describe_declared(const struct op_io *io, char *dst, size_t room) {
    int w = snprintf(dst, room, "%s", op_type_name(io->dtype));
    for (int i = 0; i < io->rank && w >= 0 && (size_t)w < room; i++) {
        if (io->dims[i] >= 0) w += snprintf(dst + w, room - (size_t)w, "%s%lld", i ? "," : "[", (long long)io->dims[i]);
        else w += snprintf(dst + w, room - (size_t)w, "%s%.30s", i ? "," : "[", io->symbols[i] ? io->symbols[i] : "?");
    }
    if (io->rank >= 0 && w >= 0 && (size_t)w < room) snprintf(dst + w, room - (size_t)w, "%s", io->rank ? "]" : "[]");
}

static enum op_status refuse(const struct op_session *s, int i, const struct op_tensor *t, enum op_status code, struct op_error *err, const char *why) {
    char declared[160], sent[160];
    describe_declared(&s->m->inputs[i], declared, sizeof declared);
    op_tensor_describe(t, sent, sizeof sent);
    return op__model_fail(s->m, err, code, "input \"%.60s\" is %s, the job sent %s%s", s->m->inputs[i].name, declared, sent, why);
}

static enum op_status check_input(const struct op_session *s, int i, const struct op_tensor *t, bool with_data, struct op_error *err) {
    const struct op_io *io = &s->m->inputs[i];
    char why[80] = "";
    if (t->kind != io->kind) return refuse(s, i, t, OP_BAD_TYPE, err, io->kind == OP_KIND_TENSOR ? " (a tensor is expected)" : " (a sequence or optional is expected)");
    if (t->kind != OP_KIND_TENSOR) return t->n_items < 0 || (t->n_items && !t->items) ? refuse(s, i, t, OP_BAD_VALUE, err, " without items") : OP_OK;
    if (io->dtype != OP_UNDEFINED && t->dtype != io->dtype) return refuse(s, i, t, OP_BAD_TYPE, err, "");
    if (t->rank < 0 || t->rank > OP_RANK_MAX || (io->rank >= 0 && t->rank != io->rank && !s->options.any_shape)) {
        snprintf(why, sizeof why, " (the rank is %d, not %d)", t->rank, io->rank);
        return refuse(s, i, t, OP_BAD_SHAPE, err, why);
    }
    for (int d = 0; d < t->rank && io->rank >= 0 && !s->options.any_shape; d++)
        if (io->dims[d] >= 0 && t->dims[d] != io->dims[d]) {
            snprintf(why, sizeof why, " (dimension %d is %lld, not %lld)", d, (long long)t->dims[d], (long long)io->dims[d]);
            return refuse(s, i, t, OP_BAD_SHAPE, err, why);
        }
    int64_t n = op_tensor_count(t);
    if (n < 0 || op_tensor_bytes(t) < 0) return refuse(s, i, t, OP_BAD_SHAPE, err, " (too large)");
    if (with_data && n && !t->data) return refuse(s, i, t, OP_BAD_VALUE, err, " without data");
    return OP_OK;
}

static bool is_given(const struct op_tensor *t) {
    return t->kind != OP_KIND_TENSOR || t->dtype != OP_UNDEFINED;
}

/* Fills s->in. Left-out inputs with an initializer get it, where they are not constants of the graph. */
static enum op_status check_inputs(struct op_session *s, const struct op_tensor *inputs, int n_inputs, bool with_data, struct op_error *err) {
    const struct op_graph *g = s->m->graph;
    if (n_inputs < 0 || n_inputs > g->n_inputs)
        return op__model_fail(s->m, err, OP_BAD_VALUE, "it takes %d inputs, %d were given", g->n_inputs, n_inputs);
    for (int i = 0; i < g->n_inputs; i++) {
        const struct op_const *dflt = g->values[g->inputs[i]].dflt;
        s->in[i] = NULL;
        if (i < n_inputs && is_given(&inputs[i])) {
            enum op_status st = check_input(s, i, &inputs[i], with_data, err);
            if (st != OP_OK) return st;
            s->in[i] = &inputs[i];
        } else if (dflt) s->in[i] = &dflt->t;
        else if (s->m->inputs[i].kind != OP_KIND_OPTIONAL)
            return op__model_fail(s->m, err, OP_BAD_VALUE, "input \"%.100s\" is missing", s->m->inputs[i].name);
    }
    return OP_OK;
}

/* Whether the caller overrides an initializer: that takes the other variant of the model. */
static bool overrides(const struct op_session *s, const struct op_tensor *inputs, int n_inputs) {
    if (s->m->inputs_open || !inputs) return false;
    for (int i = s->m->n_inputs_required; i < n_inputs && i < s->m->graph->n_inputs; i++)
        if (is_given(&inputs[i])) return true;
    return false;
}

static enum op_status open_variant(struct op_session *s, struct op_error *err) {
    if (s->open) return OP_OK;
    struct op_model *m = op__model_open(s->m, err);
    if (!m) return err->code;
    s->open = op_session_create(m, &s->options, err);
    return s->open ? OP_OK : err->code;
}

/* --- running ----------------------------------------------------------------------------------- */

static enum op_status arena_reserve(struct op_session *s, size_t bytes, struct op_error *err) {
    s->idle_runs = bytes < s->arena_bytes / 4 ? s->idle_runs + 1 : 0;
    if (bytes <= s->arena_bytes && s->idle_runs < IDLE_RUNS) return OP_OK;
    s->idle_runs = 0;
    arena_free(s);
    if (!bytes) return OP_OK;
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) return op__model_fail(s->m, err, OP_NOMEM, "out of memory: %zu bytes for the plan", bytes);
    if (bytes >= HUGE_BYTES) madvise(p, bytes, MADV_HUGEPAGE);
    s->arena = p;
    s->arena_bytes = bytes;
    return OP_OK;
}

/* Whether the output's memory is the caller's input, which may be gone before the output is read. */
static bool is_callers(const struct op_session *s, const struct op_tensor *t) {
    for (int i = 0; i < s->m->graph->n_inputs; i++) {
        const struct op_tensor *in = s->in[i];
        if (!in || in->kind != OP_KIND_TENSOR || !in->data) continue;
        const char *from = in->data, *to = from + op_tensor_bytes(in), *at = t->data;
        if (at >= from && at < to) return true;
    }
    return false;
}

static enum op_status take_outputs(struct op_session *s, struct op_plan *p) {
    const struct op_ctx ctx = {.exec = &s->x};
    for (int i = 0; i < p->n_outputs; i++) {
        const struct op_tensor *t = &p->slots[p->outputs[i]].t;
        s->outputs[i] = *t;
        if (t->kind == OP_KIND_TENSOR && !is_callers(s, t)) continue;
        enum op_status st = op__copy(&ctx, &s->outputs[i], t);
        if (st != OP_OK) return st;
    }
    return OP_OK;
}

enum op_status op_session_run(struct op_session *s, const struct op_tensor *inputs, int n_inputs, const struct op_tensor **outputs, struct op_error *err) {
    struct op_error own;
    if (!err) err = &own;
    *err = (struct op_error){0};
    *outputs = NULL;
    if (overrides(s, inputs, n_inputs)) {
        enum op_status st = open_variant(s, err);
        return st == OP_OK ? op_session_run(s->open, inputs, n_inputs, outputs, err) : st;
    }
    settle(s);
    s->x.err = err;
    enum op_status st = check_inputs(s, inputs, n_inputs, true, err);
    if (st != OP_OK) return st;
    struct op_plan *p = op__session_plan(s, s->m->graph, s->in, s->m->graph->n_inputs, err);
    if (!p) return err->code;
    st = arena_reserve(s, p->arena_bytes, err);
    if (st != OP_OK) return st;
    s->x.bytes_max = (size_t)s->m->options.memory_bytes_max - p->arena_bytes;
    for (int i = 0; i < s->m->graph->n_inputs; i++)
        if (s->in[i]) op__plan_bind_input(p, i, s->in[i]);
    s->last = p;
    st = op__plan_run(&s->x, p, s->arena);
    if (st == OP_OK) st = take_outputs(s, p);
    if (s->x.bytes_peak > p->dynamic_bytes) p->dynamic_bytes = s->x.bytes_peak;
    if (st == OP_OK) *outputs = s->outputs;
    else {
        if (err->code == OP_OK) op__model_fail(s->m, err, st, "the run failed: %s", op_status_name(st));
        settle(s);
    }
    s->x.err = NULL;
    return st;
}

enum op_status op_session_plan(struct op_session *s, const struct op_tensor *inputs, int n_inputs, size_t *peak_bytes, double *flops, struct op_error *err) {
    struct op_error own;
    if (!err) err = &own;
    *err = (struct op_error){0};
    if (overrides(s, inputs, n_inputs)) {
        enum op_status st = open_variant(s, err);
        return st == OP_OK ? op_session_plan(s->open, inputs, n_inputs, peak_bytes, flops, err) : st;
    }
    enum op_status st = check_inputs(s, inputs, n_inputs, false, err);
    if (st != OP_OK) return st;
    struct op_plan *p = op__session_plan(s, s->m->graph, s->in, s->m->graph->n_inputs, err);
    if (!p) return err->code;
    if (peak_bytes) *peak_bytes = p->arena_bytes + p->dynamic_bytes;
    if (flops) *flops = p->flops;
    return OP_OK;
}
