/* A loaded model: loading in stages (model.h), what it says about itself, reference counting.
 *
 * Memory: the file is mapped and stays mapped. Constants that lie aligned in it are used in place; the others are copied when somebody first asks
 * for their data, and the pages they came from are given back at once (madvise). After the passes, constants that nothing uses any more are freed;
 * after prepare, so are those that every user has packed. So a loaded model holds about one copy of its weights, and one whose weights are
 * found packed in the cache (cache.h) reads none of them.
 *
 * A file that shrinks while it is mapped would end in SIGBUS: a model store must replace files by rename, never in place. */
#include "ops/cache.h"
#include "ops/exec.h"
#include "ops/kern/kern.h"

#include <errno.h>
#include <fcntl.h>
#include <malloc.h>
#include <openssl/evp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define TRIM_BYTES ((size_t)4 << 20)

enum op_status op__model_fail(const struct op_model *m, struct op_error *err, enum op_status code, const char *format, ...) {
    if (!err) return code;
    va_list args;
    err->code = code;
    int w = m->path[0] ? snprintf(err->text, sizeof err->text, "model \"%.200s\": ", m->path) : 0;
    va_start(args, format);
    vsnprintf(err->text + w, sizeof err->text - (size_t)w, format, args);
    va_end(args);
    return code;
}

int64_t op__model_opset(const struct op_model *m, const char *domain) {
    for (int i = 0; i < m->n_opsets; i++)
        if (strcmp(m->opsets[i].domain, domain) == 0) return m->opsets[i].version;
    return 0;
}

/* --- memory of constants ----------------------------------------------------------------------- */

void op__mapped_give_back(const struct op_model *m, const char *data, size_t bytes) {
    const struct op_mapping *file = m->mappings; /* memory that the caller lent is not ours to drop */
    while (file && (data < file->data || data >= file->data + file->bytes)) file = file->next;
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), from = ((uintptr_t)data + page - 1) & ~(page - 1), to = ((uintptr_t)data + bytes) & ~(page - 1);
    if (file && to > from) madvise((void *)from, to - from, MADV_DONTNEED);
}

struct marks {
    const struct op_const **list;
    size_t n, cap;
    bool failed;
};

static int by_address(const void *a, const void *b) {
    uintptr_t x = (uintptr_t) * (void *const *)a, y = (uintptr_t) * (void *const *)b;
    return x < y ? -1 : x > y;
}

static void mark(struct marks *all, const struct op_const *c) {
    if (!c) return;
    if (all->n == all->cap) {
        size_t cap = all->cap ? all->cap * 2 : 256;
        const struct op_const **list = realloc(all->list, cap * sizeof *list);
        if (!list) {
            all->failed = true;
            return;
        }
        all->list = list;
        all->cap = cap;
    }
    all->list[all->n++] = c;
    mark(all, c->base);
}

/* Marks every constant that the graph still uses. */
static enum op_status mark_graph(struct op_graph *g, void *user) {
    struct marks *all = user;
    for (int i = 0; i < g->n_nodes; i++) {
        const struct op_node *n = g->nodes[i];
        for (int k = 0; k < n->n_in + n->n_captures; k++)
            if (n->in[k] >= 0) mark(all, g->values[n->in[k]].constant);
        for (int a = 0; a < n->n_attrs; a++) /* the tensor of an attribute is the first member of its op_const */
            if (n->attrs[a].kind == OP_ATTR_TENSOR) mark(all, (const struct op_const *)(const void *)n->attrs[a].t);
    }
    for (int i = 0; i < g->n_outputs; i++) mark(all, g->values[g->outputs[i]].constant);
    for (int i = 0; i < g->n_inputs; i++) mark(all, g->values[g->inputs[i]].dflt);
    return OP_OK;
}

static void constants_free_unused(struct op_model *m) {
    struct marks all = {0};
    op__graph_each(m->graph, mark_graph, &all);
    if (all.failed) { /* no memory for the list: keep all */
        free(all.list);
        return;
    }
    if (all.n) qsort(all.list, all.n, sizeof *all.list, by_address);
    for (struct op_const **at = &m->constants; *at;) {
        struct op_const *c = *at;
        if (all.n && bsearch(&c, all.list, all.n, sizeof *all.list, by_address)) {
            at = &c->next;
            continue;
        }
        *at = c->next;
        if (c->mapped) op__mapped_give_back(m, c->mapped, c->mapped_bytes); /* what a pass has replaced */
        free(c->owned);
        c->owned = NULL;
    }
    free(all.list);
}

/* --- prepare ----------------------------------------------------------------------------------- */

static enum op_status prepare_node(struct op_model *m, struct op_node *n, struct op_error *err) {
    if (!n->desc->prepare) return OP_OK;
    const struct op_tensor **in = calloc((size_t)n->n_in + 1, sizeof *in);
    if (!in) return op__model_fail(m, err, OP_NOMEM, "out of memory");
    const bool lazy = n->desc->flags & OP_F_LAZY;
    for (int i = 0; i < n->n_in; i++) in[i] = lazy ? op__graph_constant_type(n->graph, n->in[i]) : op__graph_constant(n->graph, n->in[i]);
    struct op_prepare p = {.node = n, .n_in = n->n_in, .in = in, .cpu = m->cpu, .packs = &m->packs, .err = err};
    enum op_status st = n->desc->prepare(&p);
    m->packed_bytes += p.packed_bytes;
    for (int i = 0; i < n->n_in && i < 64 && st == OP_OK && !m->options.reference; i++)
        if (in[i] && p.consumed >> i & 1)
            for (struct op_const *c = n->graph->values[n->in[i]].constant; c; c = c->base) c->n_consumed++;
    free(in);
    return st;
}

struct preparing {
    struct op_model *m;
    struct op_error *err;
};

static enum op_status count_uses(struct op_graph *g, void *user) {
    struct marks all = {0};
    (void)user;
    mark_graph(g, &all);
    for (size_t i = 0; i < all.n; i++) ((struct op_const *)(uintptr_t)all.list[i])->n_uses++;
    free(all.list);
    return OP_OK;
}

/* Memory that every user has packed goes: copies are freed, mapped pages given back. What still asks for the data finds none. */
static void release_consumed(const struct op_node *n) {
    for (int i = 0; i < n->n_in; i++)
        for (struct op_const *c = n->in[i] >= 0 ? n->graph->values[n->in[i]].constant : NULL; c; c = c->base) {
            if (!c->n_consumed || c->n_consumed != c->n_uses) break;
            if (c->mapped && !c->owned) op__mapped_give_back(n->graph->model, c->mapped, c->mapped_bytes);
            else if (op_tensor_count(&c->t)) c->t.data = NULL;
            free(c->owned);
            c->owned = NULL;
        }
}

static enum op_status prepare_graph(struct op_graph *g, void *user) {
    struct preparing *p = user;
    for (int i = 0; i < g->n_nodes; i++) {
        enum op_status st = prepare_node(p->m, g->nodes[i], p->err);
        if (st != OP_OK) return st;
        release_consumed(g->nodes[i]);
    }
    return OP_OK;
}

const void *op__prepare_data(struct op_prepare *p, int i) {
    if (i >= p->n_in || !p->in[i]) return NULL;
    if (p->in[i]->data || !p->node->graph) return p->in[i]->data; /* a test has no graph */
    const struct op_tensor *t = op__graph_constant(p->node->graph, p->node->in[i]);
    return t ? t->data : NULL;
}

/* What is left without data, though somebody reads it (not all that use it have packed it), is copied into the packs' memory, which the cache
 * holds too. */
static enum op_status fetch_rest(struct op_model *m, struct op_error *err) {
    uint64_t label = 0;
    for (struct op_const *c = m->constants; c; c = c->next, label++) {
        if (!c->lazy || (c->n_consumed && c->n_consumed == c->n_uses)) continue;
        bool filled;
        c->t.data = op__packs_take(&m->packs, label, c->mapped_bytes, &filled);
        if (!c->t.data) return op__model_fail(m, err, OP_NOMEM, "out of memory: %zu bytes of weights", c->mapped_bytes);
        c->lazy = false;
        if (filled) continue;
        memcpy(c->t.data, c->mapped, c->mapped_bytes);
        op__mapped_give_back(m, c->mapped, c->mapped_bytes);
    }
    return OP_OK;
}

static enum op_status settle_graph(struct op_graph *g, void *user) {
    (void)user;
    op__graph_sweep(g);
    return OP_OK;
}

static enum op_status release_graph(struct op_graph *g, void *user) {
    (void)user;
    for (int i = 0; i < g->n_nodes; i++)
        if (g->nodes[i] && g->nodes[i]->state && g->nodes[i]->desc->release) g->nodes[i]->desc->release(g->nodes[i]->state);
    return OP_OK;
}

/* --- loading ----------------------------------------------------------------------------------- */

static const char *const precisions[] = {"fp32", "bf16", "int8", "auto"};

static struct op_model *model_new(const char *path, const struct op_load_options *options, struct op_error *err) {
    static const struct op_load_options none;
    const char *cpu = options && options->cpu ? options->cpu : op_isa();
    const char *precision = options && options->precision ? options->precision : "fp32";
    const struct k_kernels *kern = k_find(cpu);
    size_t known = 0;
    while (known < sizeof precisions / sizeof *precisions && strcmp(precisions[known], precision) != 0) known++;
    if (known == sizeof precisions / sizeof *precisions) {
        if (err) *err = (struct op_error){.code = OP_UNSUPPORTED};
        if (err) snprintf(err->text, sizeof err->text, "precision \"%.40s\" is not known: \"fp32\", \"bf16\", \"int8\" and \"auto\" are", precision);
        return NULL;
    }
    struct op_model *m = calloc(1, sizeof *m);
    char *copy = strdup(path), *cache = options && options->cache ? strdup(options->cache) : NULL;
    if (!m || !copy || !kern || (options && options->cache && !cache)) {
        if (err) {
            err->code = kern ? OP_NOMEM : OP_UNSUPPORTED;
            snprintf(err->text, sizeof err->text, kern ? "out of memory" : "this machine has no ISA level \"%.40s\"", cpu);
        }
        free(m);
        free(copy);
        free(cache);
        return NULL;
    }
    atomic_init(&m->refs, 1);
    m->path = copy;
    m->folder = -1;
    m->options = options ? *options : none;
    m->options.cpu = m->cpu;
    m->options.precision = precisions[known];
    m->options.cache = m->cache_folder = cache;
    snprintf(m->cpu, sizeof m->cpu, "%s", cpu);
    m->kern = kern;
    if (!m->options.memory_bytes_max) m->options.memory_bytes_max = OP__MEMORY_DEFAULT;
    if (!m->options.model_bytes_max) m->options.model_bytes_max = OP__FILE_DEFAULT;
    m->arena.bytes_max = OP__META_BYTES_MAX;
    m->batchable = -2;
    pthread_mutex_init(&m->lock, NULL);
    return m;
}

static enum op_status map_model(struct op_model *m, struct op_error *err) {
    struct stat info;
    int fd = open(m->path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return op__model_fail(m, err, OP_IO, "it cannot be opened: %s", strerror(errno));
    enum op_status st = OP_OK;
    void *map = MAP_FAILED;
    if (fstat(fd, &info) != 0 || !S_ISREG(info.st_mode)) st = op__model_fail(m, err, OP_IO, "it is no regular file");
    else if (info.st_size <= 0) st = op__model_fail(m, err, OP_BAD_MODEL, "the file is empty");
    else if ((uint64_t)info.st_size > m->options.model_bytes_max)
        st = op__model_fail(m, err, OP_LIMIT, "the file has %lld bytes, the limit is %llu", (long long)info.st_size, (unsigned long long)m->options.model_bytes_max);
    else if ((map = mmap(NULL, (size_t)info.st_size, PROT_READ, MAP_PRIVATE, fd, 0)) == MAP_FAILED)
        st = op__model_fail(m, err, OP_IO, "it cannot be mapped: %s", strerror(errno));
    close(fd);
    if (st != OP_OK) return st;
    struct op_mapping *entry = calloc(1, sizeof *entry);
    if (!entry) {
        munmap(map, (size_t)info.st_size);
        return op__model_fail(m, err, OP_NOMEM, "out of memory");
    }
    *entry = (struct op_mapping){.data = map, .bytes = (size_t)info.st_size, .id = op__file_id(&info)};
    m->mappings = entry;
    m->bytes = map;
    m->n_bytes = (size_t)info.st_size;
    const char *slash = strrchr(m->path, '/');
    char *folder = slash ? strndup(m->path, slash == m->path ? 1 : (size_t)(slash - m->path)) : strdup(".");
    if (folder) m->folder = open(folder, O_PATH | O_DIRECTORY | O_CLOEXEC);
    free(folder);
    return OP_OK;
}

/* A value's declared type as the public description. */
static void describe_io(struct op_io *io, const struct op_value *v) {
    io->name = v->name;
    io->kind = v->kind;
    io->dtype = v->dtype;
    io->rank = v->rank;
    memcpy(io->dims, v->dims, sizeof io->dims);
    memcpy(io->symbols, v->symbols, sizeof io->symbols);
}

static enum op_status describe_ios(struct op_model *m, struct op_error *err) {
    const struct op_graph *g = m->graph;
    m->inputs = op__arena_array(&m->arena, (size_t)g->n_inputs, sizeof *m->inputs);
    m->outputs = op__arena_array(&m->arena, (size_t)g->n_outputs, sizeof *m->outputs);
    if (!m->inputs || !m->outputs) return op__model_fail(m, err, OP_NOMEM, "out of memory");
    for (int i = 0; i < g->n_inputs; i++) {
        describe_io(&m->inputs[i], &g->values[g->inputs[i]]);
        m->inputs[i].optional = g->values[g->inputs[i]].dflt != NULL;
    }
    for (int i = 0; i < g->n_outputs; i++) describe_io(&m->outputs[i], &m->output_infos[i]);
    m->n_inputs_required = g->n_inputs - g->n_initialized;
    return OP_OK;
}

static enum op_status find_quantized(struct op_graph *g, void *user) {
    static const char *const names[] = {"QuantizeLinear", "DynamicQuantizeLinear", "DequantizeLinear", "QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger"};
    bool *found = user;
    for (int i = 0; i < g->n_nodes; i++)
        for (size_t k = 0; k < sizeof names / sizeof *names; k++) *found |= g->nodes[i] && strcmp(g->nodes[i]->op_type, names[k]) == 0;
    return OP_OK;
}

static enum op_status set_precision(struct op_model *m, struct op_error *err) {
    const char *name = m->options.precision;
    bool quantized = false;
    m->bf16 = strcmp(name, "bf16") == 0 && !m->options.reference && !m->transform;
    if (strcmp(name, "int8") != 0) return OP_OK;
    op__graph_each(m->graph, find_quantized, &quantized);
    if (quantized) return OP_OK;
    return op__model_fail(m, err, OP_UNSUPPORTED, "precision \"int8\" is for models that are quantized, and this one has no operator on bytes: quantize it, or take \"fp32\" or \"bf16\"");
}

static enum op_status build(struct op_model *m, struct op_error *err) {
    enum op_status st = op__onnx_read(m, m->bytes, m->n_bytes, err);
    if (st == OP_OK && m->transform) st = op__passes_run(m->graph, OP_PASSES_BEFORE_TRANSFORM, err);
    if (st == OP_OK && m->transform) st = m->transform(m, m->transform_user, err);
    if (st == OP_OK) st = set_precision(m, err);
    if (st != OP_OK) return st;
    st = describe_ios(m, err);
    if (st == OP_OK && !m->options.reference) st = op__passes_run(m->graph, OP_PASSES_ALL, err);
    op__graph_each(m->graph, settle_graph, NULL); /* no gaps, also where a pass failed: release walks the nodes */
    if (st != OP_OK) return st;
    constants_free_unused(m);
    op__graph_each(m->graph, count_uses, NULL);
    struct preparing p = {m, err};
    m->cache = op__cache_open(m);
    op__packs_init(&m->packs, m->cache);
    st = op__graph_each(m->graph, prepare_graph, &p);
    if (st == OP_OK) st = fetch_rest(m, err);
    if (st == OP_OK && m->fetch_failed) st = op__model_fail(m, err, OP_NOMEM, "out of memory: its weights");
    op__packs_settle(&m->packs);
#ifdef __GLIBC__
    if (m->weight_bytes >= TRIM_BYTES) malloc_trim(0); /* what weights went through on their way lies at the heap's end */
#endif
    if (st == OP_OK) op__cache_write(m);
    return st;
}

static struct op_model *finish_load(struct op_model *m, struct op_error *err) {
    struct op_error own = {0};
    struct op_error *e = err ? err : &own;
    *e = (struct op_error){0};
    enum op_status st = build(m, e);
    if (st == OP_OK) return m;
    if (e->code == OP_OK || !e->text[0]) op__model_fail(m, e, st, "it cannot be loaded: %s", op_status_name(st));
    else if (m->path[0] && strncmp(e->text, "model ", 6) != 0) { /* an operator's message: say which model */
        struct op_error inner = *e;
        op__model_fail(m, e, inner.code, "%.400s", inner.text);
    }
    op_model_release(m);
    return NULL;
}

struct op_model *op_model_load(const char *path, const struct op_load_options *options, struct op_error *err) {
    struct op_model *m = model_new(path, options, err);
    if (!m) return NULL;
    if (map_model(m, err) != OP_OK) {
        op_model_release(m);
        return NULL;
    }
    return finish_load(m, err);
}

struct op_model *op_model_load_memory(const void *bytes, size_t n_bytes, const char *folder, const struct op_load_options *options, struct op_error *err) {
    struct op_model *m = model_new("", options, err);
    if (!m) return NULL;
    if (folder) m->folder = open(folder, O_PATH | O_DIRECTORY | O_CLOEXEC);
    m->bytes = n_bytes ? bytes : "";
    m->n_bytes = n_bytes;
    return finish_load(m, err);
}

struct op_model *op__model_load_mapping(void *map, size_t n_bytes, struct op_error *err) {
    struct op_model *m = model_new("", NULL, err);
    struct op_mapping *entry = m ? calloc(1, sizeof *entry) : NULL;
    if (!entry) {
        munmap(map, n_bytes);
        if (m) op__model_fail(m, err, OP_NOMEM, "out of memory");
        op_model_release(m);
        return NULL;
    }
    *entry = (struct op_mapping){.data = map, .bytes = n_bytes};
    m->mappings = entry;
    m->bytes = map;
    m->n_bytes = n_bytes;
    return finish_load(m, err);
}

struct op_model *op__model_transformed(struct op_model *m, enum op_status (*transform)(struct op_model *m, void *user, struct op_error *err), void *user,
                                       struct op_error *err) {
    struct op_model *t = model_new(m->path, &m->options, err);
    if (!t) return NULL;
    t->source = op_model_retain(m);
    t->folder = m->folder >= 0 ? fcntl(m->folder, F_DUPFD_CLOEXEC, 0) : -1;
    t->bytes = m->bytes;
    t->n_bytes = m->n_bytes;
    t->transform = transform;
    t->transform_user = user;
    t->options.reference = false;
    return finish_load(t, err);
}

struct op_model *op__model_open(struct op_model *m, struct op_error *err) {
    pthread_mutex_lock(&m->lock);
    if (!m->open) {
        struct op_model *o = model_new(m->path, &m->options, err);
        if (o) {
            o->inputs_open = true;
            o->folder = m->folder >= 0 ? fcntl(m->folder, F_DUPFD_CLOEXEC, 0) : -1;
            o->bytes = m->bytes; /* m's mapping outlives it */
            o->n_bytes = m->n_bytes;
            m->open = finish_load(o, err);
        }
    }
    struct op_model *o = m->open;
    pthread_mutex_unlock(&m->lock);
    return o;
}

struct op_model *op_model_retain(struct op_model *m) {
    atomic_fetch_add(&m->refs, 1);
    return m;
}

void op_model_release(struct op_model *m) {
    if (!m || atomic_fetch_sub(&m->refs, 1) != 1) return;
    op_model_release(m->open);
    struct op_model *source = m->source; /* its bytes are read to the end */
    if (m->graph) op__graph_each(m->graph, release_graph, NULL);
    op__packs_finish(&m->packs);
    op__cache_close(m->cache);
    for (struct op_const *c = m->constants; c; c = c->next) free(c->owned);
    while (m->mappings) {
        struct op_mapping *next = m->mappings->next;
        munmap((void *)(uintptr_t)m->mappings->data, m->mappings->bytes);
        free(m->mappings->name);
        free(m->mappings);
        m->mappings = next;
    }
    if (m->folder >= 0) close(m->folder);
    op__arena_finish(&m->arena);
    pthread_mutex_destroy(&m->lock);
    free(m->path);
    free(m->cache_folder);
    free(m);
    op_model_release(source);
}

/* --- what it says about itself ----------------------------------------------------------------- */

int op_model_n_inputs(const struct op_model *m) {
    return m->graph->n_inputs;
}

int op_model_n_outputs(const struct op_model *m) {
    return m->graph->n_outputs;
}

const struct op_io *op_model_input(const struct op_model *m, int i) {
    return i >= 0 && i < m->graph->n_inputs ? &m->inputs[i] : NULL;
}

const struct op_io *op_model_output(const struct op_model *m, int i) {
    return i >= 0 && i < m->graph->n_outputs ? &m->outputs[i] : NULL;
}

const char *op_model_metadata(const struct op_model *m, const char *key) {
    for (int i = 0; i < m->n_meta; i++)
        if (strcmp(m->meta[i].key, key) == 0) return m->meta[i].value;
    return NULL;
}

struct op_file_id op__file_id(const struct stat *info) {
    return (struct op_file_id){info->st_dev, info->st_ino, info->st_size, info->st_mtim.tv_sec * INT64_C(1000000000) + info->st_mtim.tv_nsec,
                               info->st_ctim.tv_sec * INT64_C(1000000000) + info->st_ctim.tv_nsec};
}

bool op__hash_mapped(const struct op_model *m, const char *data, size_t n_bytes, char hex[65]) {
    enum { PIECE = 4 << 20 };
    unsigned char digest[EVP_MAX_MD_SIZE];
    unsigned len = 0;
    EVP_MD_CTX *ctx = EVP_MD_CTX_new();
    bool good = ctx && EVP_DigestInit_ex(ctx, EVP_sha256(), NULL) == 1;
    for (size_t at = 0; good && at < n_bytes; at += PIECE) {
        size_t n = n_bytes - at < PIECE ? n_bytes - at : PIECE;
        good = EVP_DigestUpdate(ctx, data + at, n) == 1;
        op__mapped_give_back(m, data + at, n);
    }
    good = good && EVP_DigestFinal_ex(ctx, digest, &len) == 1 && len == 32;
    for (unsigned i = 0; i < len && good; i++) snprintf(hex + 2 * i, 3, "%02x", digest[i]);
    EVP_MD_CTX_free(ctx);
    return good;
}

void op_model_describe(struct op_model *m, struct op_model_info *dst) {
    pthread_mutex_lock(&m->lock);
    if (!m->sha256[0]) op__hash_mapped(m, m->bytes, m->n_bytes, m->sha256);
    *dst = (struct op_model_info){.path = m->path, .ir_version = m->ir_version, .opset = op__model_opset(m, ""), .producer = m->producer, .n_nodes = m->n_nodes,
                                  .weight_bytes = m->weight_bytes, .packed_bytes = m->packed_bytes, .isa = m->cpu,
                                  .precision = m->bf16 ? "bf16" : strcmp(m->options.precision, "int8") == 0 ? "int8" : "fp32"};
    memcpy(dst->sha256, m->sha256, sizeof dst->sha256);
    pthread_mutex_unlock(&m->lock);
}
