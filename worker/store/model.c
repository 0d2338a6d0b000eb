/* One version of a model: found, loaded, proved by its golden samples, counted.
 *
 * The file is not mapped where it lies. Whoever puts a new model with `cp` truncates and rewrites
 * the same inode, and a worker that had mapped it would compute with half of each, or die of
 * SIGBUS. So the file is first copied to an unlinked one (a clone where the file system can, so
 * that it costs nothing) and that copy is mapped: file-backed, hence the kernel may drop pages that
 * the engine has packed copies of, and they are dropped once after the load.
 *
 * Everything here blocks; it runs on the store's thread or in a command-line tool. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <jansson.h>
#include <linux/fs.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "worker/store/internal.h"

#define MODEL_BYTES_MAX (16ull << 30)

static atomic_uint_fast64_t last_serial;

bool w_fail_op(struct w_error *err, const struct op_error *op, const char *model) {
    static const struct {
        enum op_status status;
        const char *code;
    } codes[] = {
        {OP_NOMEM, W_NO_MEMORY},         {OP_IO, W_BAD_MODEL},        {OP_BAD_MODEL, W_BAD_MODEL},
        {OP_UNSUPPORTED, W_UNSUPPORTED}, {OP_BAD_SHAPE, W_BAD_SHAPE}, {OP_BAD_TYPE, W_BAD_DTYPE},
        {OP_BAD_VALUE, W_BAD_INPUT},     {OP_LIMIT, W_TOO_LARGE},     {OP_CANCELLED, "cancelled"}};
    const char *code = W_INTERNAL;
    for (size_t i = 0; i < sizeof codes / sizeof *codes; i++)
        if (codes[i].status == op->code) code = codes[i].code;
    return w_fail(err, code, "model \"%s\": %s", model, op->text);
}

/* --- the private copy ------------------------------------------------------------------------- */

static int open_unlinked(const char *staging) {
    const char *folders[] = {staging, getenv("CACHE_DIRECTORY"), getenv("TMPDIR"), "/var/tmp",
                             "/tmp"};
    for (size_t i = 0; i < sizeof folders / sizeof *folders; i++) {
        if (!folders[i] || !*folders[i]) continue;
        int fd = open(folders[i], O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
        if (fd >= 0) return fd;
    }
    return memfd_create("quern-model", MFD_CLOEXEC);
}

static bool copy_all(int from, int to, uint64_t size) {
    if (ioctl(to, FICLONE, from) == 0) return true;
    off_t at = 0;
    while ((uint64_t)at < size) {
        ssize_t n = copy_file_range(from, &at, to, NULL, size - (uint64_t)at, 0);
        if (n > 0) continue;
        if (n == 0) return false; /* it became shorter under us */
        if (errno != EXDEV && errno != EINVAL && errno != ENOSYS && errno != EOPNOTSUPP)
            return false;
        break;
    }
    char buf[1 << 16];
    while ((uint64_t)at < size) {
        ssize_t n = pread(from, buf, sizeof buf, at);
        if (n <= 0) return false;
        for (ssize_t done = 0; done < n;) {
            ssize_t put = write(to, buf + done, (size_t)(n - done));
            if (put <= 0) return false;
            done += put;
        }
        at += n;
    }
    return true;
}

static bool same_file(const struct stat *a, const struct stat *b) {
    return a->st_ino == b->st_ino && a->st_size == b->st_size &&
           a->st_mtim.tv_sec == b->st_mtim.tv_sec && a->st_mtim.tv_nsec == b->st_mtim.tv_nsec;
}

/* Maps a copy of the file that nobody else can change. */
static bool stage(struct w_model *m, const struct w_model_options *o, struct w_error *err) {
    struct stat before, after;
    int from = open(m->path, O_RDONLY | O_CLOEXEC), to = -1;
    bool ok = false;
    if (from < 0 || fstat(from, &before) != 0) {
        w_fail(err, W_BAD_MODEL, "model \"%s\": %s: %s", m->name, m->path, strerror(errno));
    } else if (!S_ISREG(before.st_mode) || before.st_size == 0) {
        w_fail(err, W_BAD_MODEL, "model \"%s\": %s is %s, an ONNX file is expected", m->name,
               m->path, S_ISREG(before.st_mode) ? "empty" : "no file");
    } else if ((uint64_t)before.st_size > MODEL_BYTES_MAX) {
        w_fail(err, W_TOO_LARGE, "model \"%s\": %s has %jd bytes, at most %llu are allowed",
               m->name, m->path, (intmax_t)before.st_size, MODEL_BYTES_MAX);
    } else if ((to = open_unlinked(o->staging)) < 0 ||
               !copy_all(from, to, (uint64_t)before.st_size)) {
        w_fail(err, W_REF_FAILED, "model \"%s\": %s cannot be copied aside: %s", m->name, m->path,
               errno ? strerror(errno) : "it changed meanwhile");
    } else if (fstat(from, &after) != 0 || !same_file(&before, &after)) {
        w_fail(err, W_REF_FAILED, "model \"%s\": %s changed while it was read", m->name, m->path);
    } else {
        m->mapping_bytes = (size_t)before.st_size;
        m->mapping = mmap(NULL, m->mapping_bytes, PROT_READ, MAP_PRIVATE, to, 0);
        if (m->mapping == MAP_FAILED) m->mapping = NULL;
        ok = m->mapping || w_fail(err, W_NO_MEMORY, "model \"%s\": %zu bytes cannot be mapped: %s",
                                  m->name, m->mapping_bytes, strerror(errno));
    }
    if (from >= 0) close(from);
    if (to >= 0) close(to);
    return ok;
}

/* --- golden samples --------------------------------------------------------------------------- */

struct golden_run {
    struct op_session *session;
    const struct w_model *model;
    uint64_t ns; /* of the runs */
};

static uint64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static bool run_golden(void *user, const struct op_tensor *inputs, int n_inputs,
                       const struct op_tensor **outputs, int *n_outputs, struct w_error *err) {
    struct golden_run *g = user;
    struct op_error oe;
    const uint64_t start = now_ns();
    if (op_session_run(g->session, inputs, n_inputs, outputs, &oe) != OP_OK)
        return w_fail_op(err, &oe, g->model->name);
    g->ns += now_ns() - start;
    *n_outputs = op_model_n_outputs(g->model->op);
    return true;
}

/* Runs the golden samples on `op`, m's model at some precision; *ns (NULL: not asked) is the time
 * in it. */
static bool prove(const struct w_model *m, struct op_model *op, uint64_t *ns, struct w_error *err) {
    struct op_error oe;
    int n = w_pipeline_n_golden(m->pipeline);
    if (n == 0) return true;
    struct golden_run g = {.session = op_session_create(op, NULL, &oe), .model = m};
    if (!g.session) return w_fail_op(err, &oe, m->name);
    bool ok = true;
    for (int i = 0; i < n && ok; i++) {
        ok = w_pipeline_golden(m->pipeline, i, run_golden, &g, NULL, NULL, err);
        if (!ok)
            w_fail_in(err,
                      "model \"%s\": golden sample %d (%s) fails, so it is not served: ", m->name,
                      i, w_pipeline_golden_name(m->pipeline, i));
    }
    op_session_destroy(g.session);
    if (!ok && err) err->code = W_BAD_MODEL;
    if (ns) *ns = g.ns;
    return ok;
}

/* --- precision -------------------------------------------------------------------------------- */

static struct op_model *load_op(const struct w_model *m, const struct w_model_options *o,
                                const char *precision, struct op_error *oe) {
    const struct op_load_options lo = {
        .memory_bytes_max = o->run_bytes_max, .cache = o->cache, .precision = precision};
    char dir[4096];
    snprintf(dir, sizeof dir, "%s", m->path);
    char *slash = strrchr(dir, '/');
    if (slash) *slash = 0;
    return op_model_load_memory(m->mapping, m->mapping_bytes,
                                !slash ? "."
                                : *dir ? dir
                                       : "/",
                                &lo, oe);
}

/* Whether bf16 keeps the golden samples and is faster on them, by more than two runs of one
 * precision differ: the best of three rounds each, in turns. */
static bool bf16_is_better(const struct w_model *m, struct op_model *bf16) {
    enum { ROUNDS = 3, PERCENT = 5 };
    uint64_t best[2] = {UINT64_MAX, UINT64_MAX}, ns;
    for (int i = 0; i < 2 * ROUNDS; i++) {
        struct w_error unwanted;
        if (!prove(m, i % 2 ? bf16 : m->op, &ns, &unwanted)) return false;
        if (ns < best[i % 2]) best[i % 2] = ns;
    }
    return best[1] / 100 < best[0] / (100 + PERCENT);
}

/* What the model takes and gives, and the pipeline around it. */
static bool describe(struct w_model *m, struct w_error *err) {
    if (!w_signature_of(m->op, m->name, &m->sig, err)) return false;
    m->pipeline = w_pipeline_load(m->folder, &m->sig, err);
    return m->pipeline != NULL;
}

/* Changes m->op, which is at fp32, for what the options or model.json ask for. "auto" measures, and
 * is fp32 without golden samples. */
static bool take_precision(struct w_model *m, const struct w_model_options *o,
                           struct w_error *err) {
    const char *want = o->precision ? o->precision : w_pipeline_precision(m->pipeline);
    const bool measure = strcmp(want, "auto") == 0;
    struct op_error oe;
    if (strcmp(want, "fp32") == 0 || (measure && !w_pipeline_n_golden(m->pipeline))) return true;
    struct op_model *other = load_op(m, o, measure ? "bf16" : want, &oe);
    if (!other) return w_fail_op(err, &oe, m->name);
    if (measure && !bf16_is_better(m, other)) {
        op_model_release(other);
        return true;
    }
    w_pipeline_destroy(m->pipeline); /* names in it and in the signature are the first one's */
    op_model_release(m->op);
    m->op = other;
    m->pipeline = NULL;
    return describe(m, err);
}

/* --- loading ---------------------------------------------------------------------------------- */

static char *make_manifest(const struct w_model *m) {
    json_t *o = json_pack("{s:s, s:s, s:s, s:s, s:s}", "model", m->name, "sha256", m->info.sha256,
                          "isa", m->info.isa ? m->info.isa : "", "precision", m->info.precision,
                          "build", QUERN_VERSION);
    char *text = o ? json_dumps(o, JSON_COMPACT) : NULL;
    json_decref(o);
    return text;
}

static bool load(struct w_model *m, const struct w_model_options *o, struct w_error *err) {
    struct op_error oe;
    if (!stage(m, o, err)) return false;
    m->op = load_op(m, o, "fp32", &oe);
    if (!m->op) {
        w_fail_op(err, &oe, m->name);
        if (err && strcmp(err->code, W_NO_MEMORY) != 0 && strcmp(err->code, W_UNSUPPORTED) != 0)
            err->code = W_BAD_MODEL;
        return false;
    }
    if (!describe(m, err)) return false;
    m->batch = w_pipeline_batch(m->pipeline);
    if (!take_precision(m, o, err)) return false;
    if (!o->no_golden && !prove(m, m->op, NULL, err)) return false;
    op_model_describe(m->op, &m->info);
    m->bytes = m->info.weight_bytes + m->info.packed_bytes;
    m->manifest = make_manifest(m);
    if (!m->manifest)
        return w_fail(err, W_NO_MEMORY, "model \"%s\": no memory for its manifest", m->name);
    madvise(m->mapping, m->mapping_bytes,
            MADV_DONTNEED); /* what is still read comes back from the page cache */
    return true;
}

struct w_model *w_model_load(const struct w_model_place *place,
                             const struct w_model_options *options, struct w_error *err) {
    static const struct w_model_options defaults;
    struct timespec t0, t1;
    struct w_model *m = calloc(1, sizeof *m);
    if (!m) return w_fail(err, W_NO_MEMORY, "model \"%s\": no memory", place->name), NULL;
    clock_gettime(CLOCK_MONOTONIC, &t0);
    atomic_init(&m->refs, 1);
    atomic_init(&m->retired, false);
    memcpy(m->name, place->name, sizeof m->name);
    m->version = place->version;
    if (m->version > 0) snprintf(m->version_text, sizeof m->version_text, "%" PRId64, m->version);
    m->path = strdup(place->path);
    m->folder = *place->folder ? strdup(place->folder) : NULL;
    m->serial = atomic_fetch_add(&last_serial, 1) + 1;
    bool ok = m->path && (m->folder || !*place->folder)
                  ? load(m, options ? options : &defaults, err)
                  : w_fail(err, W_NO_MEMORY, "model \"%s\": no memory", place->name);
    if (!ok) {
        w_model_release(m);
        return NULL;
    }
    clock_gettime(CLOCK_MONOTONIC, &t1);
    m->load_ms = (double)(t1.tv_sec - t0.tv_sec) * 1e3 + (double)(t1.tv_nsec - t0.tv_nsec) / 1e6;
    return m;
}

struct w_model *w_model_open(const char *m, const char *store,
                             const struct w_model_options *options, struct w_error *err) {
    struct w_model_place place;
    return w_model_find(m, store, &place, err) ? w_model_load(&place, options, err) : NULL;
}

struct w_model *w_model_retain(struct w_model *m) {
    atomic_fetch_add_explicit(&m->refs, 1, memory_order_relaxed);
    return m;
}

void w_model_release(struct w_model *m) {
    if (!m || atomic_fetch_sub_explicit(&m->refs, 1, memory_order_acq_rel) != 1) return;
    w_pipeline_destroy(m->pipeline);
    op_model_release(m->op);
    if (m->mapping) munmap(m->mapping, m->mapping_bytes);
    free(m->folder);
    free(m->path);
    free(m->manifest);
    free(m);
}
