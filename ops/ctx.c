/* What operators call: errors, outputs, memory, threads (the functions of op.h that take a struct op_ctx). */
#include "ops/exec.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void write_error(struct op_error *err, const struct op_node *n, enum op_status code, const char *format, va_list args) {
    if (!err) return;
    err->code = code;
    int w = 0;
    if (n)
        w = n->name && n->name[0] ? snprintf(err->text, sizeof err->text, "%.64s \"%.200s\": ", n->op_type, n->name)
                                  : snprintf(err->text, sizeof err->text, "%.64s: ", n->op_type);
    if (w < 0) w = 0;
    vsnprintf(err->text + w, sizeof err->text - (size_t)w, format, args);
}

enum op_status op__fail(const struct op_ctx *ctx, enum op_status code, const char *format, ...) {
    if (!ctx->exec || ctx->exec->quiet) return code;
    va_list args;
    va_start(args, format);
    write_error(ctx->exec->err, ctx->node, code, format, args);
    va_end(args);
    return code;
}

enum op_status op__node_fail(struct op_error *err, const struct op_node *n, enum op_status code, const char *format, ...) {
    va_list args;
    va_start(args, format);
    write_error(err, n, code, format, args);
    va_end(args);
    return code;
}

void op__set(const struct op_ctx *ctx, int i, enum op_type dtype, int rank, const int64_t *dims) {
    if (i >= ctx->n_out || !ctx->out[i]) return;
    struct op_tensor *t = ctx->out[i];
    t->kind = OP_KIND_TENSOR;
    t->dtype = dtype;
    t->rank = rank;
    if (rank > 0) memmove(t->dims, dims, (size_t)rank * sizeof *dims);
}

void op__set_like(const struct op_ctx *ctx, int i, int j) {
    if (i >= ctx->n_out || !ctx->out[i]) return;
    struct op_tensor *t = ctx->out[i];
    const struct op_tensor *src = ctx->in[j];
    t->kind = src->kind;
    t->dtype = src->dtype;
    t->rank = src->rank;
    memcpy(t->dims, src->dims, sizeof t->dims);
}

/* --- memory ------------------------------------------------------------------------------------ */

static enum op_status no_memory(struct op_exec *x, size_t bytes) {
    if (x->err && !x->quiet) {
        x->err->code = OP_NOMEM;
        if (bytes > x->bytes_max || x->bytes > x->bytes_max - bytes)
            snprintf(x->err->text, sizeof x->err->text, "the run needs %zu bytes more than the %zu it holds: the memory cap is %zu", bytes, x->bytes,
                     x->bytes_max);
        else snprintf(x->err->text, sizeof x->err->text, "out of memory: %zu bytes", bytes);
    }
    return OP_NOMEM;
}

struct op_buf *op__buf_create(struct op_exec *x, size_t bytes) {
    pthread_mutex_lock(&x->lock);
    bool fits = bytes <= x->bytes_max && x->bytes <= x->bytes_max - bytes;
    struct op_buf *b = fits ? op__aligned_alloc(sizeof *b + bytes) : NULL;
    if (b) {
        *b = (struct op_buf){.exec = x, .bytes = bytes, .refs = 1, .link = {&x->bufs, x->bufs.next}};
        b->link.next->prev = &b->link;
        x->bufs.next = &b->link;
        x->bytes += bytes;
        if (x->bytes > x->bytes_peak) x->bytes_peak = x->bytes;
    }
    pthread_mutex_unlock(&x->lock);
    if (!b) no_memory(x, bytes);
    return b;
}

void op__buf_retain(struct op_buf *b) {
    if (b) b->refs++;
}

void op__buf_release(struct op_buf *b) {
    if (!b || --b->refs) return;
    b->link.prev->next = b->link.next;
    b->link.next->prev = b->link.prev;
    b->exec->bytes -= b->bytes;
    free(b);
}

void op__slot_clear(struct op_slot *s) {
    op__buf_release(s->buf);
    *s = (struct op_slot){0};
}

enum op_status op__slot_alloc(struct op_exec *x, struct op_slot *s) {
    int64_t bytes = op_tensor_bytes(&s->t);
    if (bytes < 0 || op_tensor_count(&s->t) > OP__ELEMENTS_MAX) return no_memory(x, SIZE_MAX);
    op__buf_release(s->buf);
    s->buf = NULL;
    s->t.data = op__nothing;
    if (!bytes) return OP_OK;
    s->t.data = NULL;
    s->buf = op__buf_create(x, (size_t)bytes);
    if (!s->buf) return OP_NOMEM;
    s->t.data = s->buf->data;
    return OP_OK;
}

void *op__run_alloc(const struct op_ctx *ctx, size_t bytes) {
    struct op_exec *x = ctx->exec;
    if (!x) return NULL;
    pthread_mutex_lock(&x->lock);
    size_t before = x->heap.bytes;
    void *p = bytes <= x->bytes_max && x->bytes <= x->bytes_max - bytes ? op__arena_alloc(&x->heap, bytes) : NULL;
    x->bytes += x->heap.bytes - before;
    if (x->bytes > x->bytes_peak) x->bytes_peak = x->bytes;
    pthread_mutex_unlock(&x->lock);
    if (!p) no_memory(x, bytes);
    return p;
}

/* 64-byte aligned memory of the heap. */
static void *heap_tensor(const struct op_ctx *ctx, size_t bytes) {
    char *p = bytes <= SIZE_MAX - 64 ? op__run_alloc(ctx, bytes + 48) : NULL; /* arena memory is aligned to 16 */
    return p ? (void *)(((uintptr_t)p + 63) & ~(uintptr_t)63) : NULL;
}

enum op_status op__output(const struct op_ctx *ctx, int i, enum op_type dtype, int rank, const int64_t *dims) {
    if (i >= ctx->n_out || !ctx->out[i]) return OP_OK;
    if (rank < 0 || rank > OP_RANK_MAX) return op__fail(ctx, OP_LIMIT, "output %d would have rank %d: at most %d", i, rank, OP_RANK_MAX);
    op__set(ctx, i, dtype, rank, dims);
    return ctx->exec ? op__slot_alloc(ctx->exec, (struct op_slot *)ctx->out[i]) : OP_NOMEM;
}

enum op_status op__output_items(const struct op_ctx *ctx, int i, enum op_kind kind, enum op_type dtype, int64_t n) {
    size_t bytes;
    if (i >= ctx->n_out || !ctx->out[i]) return OP_OK;
    struct op_tensor *t = ctx->out[i];
    if (n < 0 || __builtin_mul_overflow((size_t)n, sizeof *t, &bytes)) return op__fail(ctx, OP_LIMIT, "a sequence of %lld tensors", (long long)n);
    op__slot_clear((struct op_slot *)t);
    t->kind = kind;
    t->dtype = dtype;
    t->n_items = n;
    if (!n) return OP_OK;
    t->items = op__run_alloc(ctx, bytes);
    if (!t->items) t->n_items = 0;
    return t->items ? OP_OK : OP_NOMEM;
}

enum op_status op__item(const struct op_ctx *ctx, struct op_tensor *item, enum op_type dtype, int rank, const int64_t *dims) {
    if (rank < 0 || rank > OP_RANK_MAX) return op__fail(ctx, OP_LIMIT, "a tensor would have rank %d: at most %d", rank, OP_RANK_MAX);
    *item = (struct op_tensor){.dtype = dtype, .rank = rank};
    if (rank) memcpy(item->dims, dims, (size_t)rank * sizeof *dims);
    int64_t bytes = op_tensor_bytes(item);
    if (bytes < 0) return op__fail(ctx, OP_LIMIT, "a tensor is too large");
    item->data = bytes ? heap_tensor(ctx, (size_t)bytes) : op__nothing;
    return item->data ? OP_OK : OP_NOMEM;
}

static enum op_status copy_strings(const struct op_ctx *ctx, struct op_string *s, int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        char *bytes = op__run_alloc(ctx, s[i].len + 1);
        if (!bytes) return OP_NOMEM;
        if (s[i].len) memcpy(bytes, s[i].data, s[i].len);
        bytes[s[i].len] = 0;
        s[i].data = bytes;
    }
    return OP_OK;
}

enum op_status op__copy(const struct op_ctx *ctx, struct op_tensor *dst, const struct op_tensor *src) {
    if (src->kind == OP_KIND_TENSOR) {
        const struct op_tensor from = *src; /* dst may be src */
        enum op_status st = op__item(ctx, dst, from.dtype, from.rank, from.dims);
        int64_t bytes = op_tensor_bytes(&from);
        if (st != OP_OK || bytes <= 0) return st;
        memcpy(dst->data, from.data, (size_t)bytes);
        return from.dtype == OP_STRING ? copy_strings(ctx, dst->data, op_tensor_count(&from)) : OP_OK;
    }
    struct op_tensor from = *src;
    *dst = (struct op_tensor){.kind = from.kind, .dtype = from.dtype, .rank = from.rank};
    memcpy(dst->dims, from.dims, sizeof dst->dims);
    if (!from.n_items) return OP_OK;
    dst->items = op__run_alloc(ctx, (size_t)from.n_items * sizeof *dst->items);
    if (!dst->items) return OP_NOMEM;
    for (; dst->n_items < from.n_items; dst->n_items++) {
        enum op_status st = op__copy(ctx, &dst->items[dst->n_items], &from.items[dst->n_items]);
        if (st != OP_OK) return st;
    }
    return OP_OK;
}

enum op_status op__tensor_clone(struct op_tensor *dst, const struct op_tensor *src) {
    *dst = (struct op_tensor){.kind = src->kind, .dtype = src->dtype, .rank = src->rank};
    memcpy(dst->dims, src->dims, sizeof dst->dims);
    if (src->kind != OP_KIND_TENSOR) {
        if (!src->n_items) return OP_OK;
        dst->items = calloc((size_t)src->n_items, sizeof *dst->items);
        if (!dst->items) return OP_NOMEM;
        dst->n_items = src->n_items;
        for (int64_t i = 0; i < src->n_items; i++)
            if (op__tensor_clone(&dst->items[i], &src->items[i]) != OP_OK) return OP_NOMEM;
        return OP_OK;
    }
    int64_t n = op_tensor_count(src), bytes = op_tensor_bytes(src);
    if (bytes <= 0) return bytes ? OP_LIMIT : OP_OK;
    size_t room = (size_t)bytes;
    const struct op_string *from = src->data;
    if (src->dtype == OP_STRING) /* their bytes follow the elements in the same block */
        for (int64_t i = 0; i < n; i++)
            if (__builtin_add_overflow(room, from[i].len + 1, &room)) return OP_LIMIT;
    dst->data = op__aligned_alloc(room);
    if (!dst->data) return OP_NOMEM;
    memcpy(dst->data, src->data, (size_t)bytes);
    if (src->dtype != OP_STRING) return OP_OK;
    char *at = (char *)dst->data + bytes;
    struct op_string *to = dst->data;
    for (int64_t i = 0; i < n; i++) {
        if (from[i].len) memcpy(at, from[i].data, from[i].len);
        at[from[i].len] = 0;
        to[i] = (struct op_string){at, from[i].len};
        at += from[i].len + 1;
    }
    return OP_OK;
}

/* --- threads, chance --------------------------------------------------------------------------- */

void op__parallel(const struct op_ctx *ctx, int64_t n_tasks, void (*fn)(void *arg, int64_t task), void *arg) {
    op__pool_run(ctx->exec ? ctx->exec->pool : NULL, n_tasks, fn, arg);
}

int op__n_threads(const struct op_ctx *ctx) {
    return op__pool_n_threads(ctx->exec ? ctx->exec->pool : NULL);
}

uint64_t op__random(const struct op_ctx *ctx) {
    if (!ctx->exec) return 0;
    uint64_t z = ctx->exec->random += 0x9e3779b97f4a7c15u; /* splitmix64 */
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

int op__graph_n_inputs(const struct op_graph *g) {
    return g->n_inputs;
}

int op__graph_n_outputs(const struct op_graph *g) {
    return g->n_outputs;
}

void op__graph_output(const struct op_graph *g, int i, struct op_tensor *dst) {
    const struct op_value *v = &g->declared[i];
    *dst = (struct op_tensor){.kind = v->kind, .dtype = v->dtype, .rank = v->rank};
    memcpy(dst->dims, v->dims, sizeof dst->dims);
}

/* --- a run's memory ---------------------------------------------------------------------------- */

void op__exec_init(struct op_exec *x, const struct op_model *m, struct op_error *err) {
    *x = (struct op_exec){.model = m, .err = err, .bytes_max = (size_t)m->options.memory_bytes_max};
    x->bufs.prev = x->bufs.next = &x->bufs;
    pthread_mutex_init(&x->lock, NULL);
}

void op__exec_reset(struct op_exec *x) {
    while (x->bufs.next != &x->bufs) {
        struct op_buf *b = (struct op_buf *)x->bufs.next;
        b->refs = 1;
        op__buf_release(b);
    }
    op__arena_finish(&x->heap);
    x->n_pins = 0;
    x->bytes = x->bytes_peak = 0;
    x->steps = 0;
    x->depth = 0;
}

void op__exec_finish(struct op_exec *x) {
    op__exec_reset(x);
    free(x->pins);
    pthread_mutex_destroy(&x->lock);
}
