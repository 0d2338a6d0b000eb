/* The daemon's store: which versions there are, which are loaded, and the thread that watches and
 * loads.
 *
 * How: a slot is a version on disk with what became of it. Slots live in one array under one mutex;
 * asking for a model is a search in it and never waits for the disk. The thread scans the folder
 * every poll_ms (and at once when a name is asked for that the last scan did not have), merges what
 * it saw, and loads one wanted slot at a time outside the lock.
 *
 *   COLD ──asked for, or newer than a loaded one──▶ WANTED ──thread──▶ READY | FAILED(reason)
 *   READY ──files changed──▶ WANTED (the old one serves meanwhile) ──▶ READY (new) | FAILED
 *   FAILED ──files changed, or a passing reason and 5 s──▶ COLD
 *
 * A version whose files changed less than SETTLE_NS ago is left alone: somebody may still be
 * writing it. A version that fails is not served and keeps its reason; without an explicit version
 * the one before it is served. A model that is replaced, or dropped because models together exceed
 * bytes_max (the longest unused first), is marked retired and lives until the last job and the last
 * lane's session let go of it.
 *
 * Threads: any may call; callbacks come on the store's own. */
#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "worker/daemon/cpus.h"
#include "worker/store/internal.h"

#define SETTLE_NS 250000000ll
#define UNSETTLED_POLL_MS 100
#define RESCAN_MS 100 /* at most so often on behalf of unknown names */
#define RETRY_MS 5000

enum state { COLD, WANTED, LOADING, READY, FAILED };

struct slot {
    struct w__found at;
    char path[1024]; /* of an alias; "" in the store */
    enum state state;
    struct w__stamp loaded; /* the files as they were when the model was loaded or refused */
    struct w_model *model;  /* READY; WANTED and LOADING after a change: the one before */
    struct w_error err;     /* FAILED */
    uint64_t used_ms, failed_ms;
    bool gone;
};

struct w_store {
    struct w_store_options o;
    char folder[1024];
    pthread_t thread;
    pthread_mutex_t mutex;
    pthread_cond_t cond;
    struct slot *slots; /* aliases too; by name ascending, version descending */
    size_t n_slots;
    struct w__scan scan;                        /* the last one, for labels and messages */
    uint64_t scanned_ms, scan_begun, scan_done; /* the last two count scans */
    bool scan_wanted, unsettled, stop;
};

static uint64_t now_ms(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

static bool settled(const struct w__stamp *s) {
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    int64_t now = (int64_t)t.tv_sec * 1000000000 + t.tv_nsec,
            newest = s->mtime_ns > s->json_mtime_ns ? s->mtime_ns : s->json_mtime_ns;
    return newest > now || now - newest >= SETTLE_NS;
}

static bool same_stamp(const struct w__stamp *a, const struct w__stamp *b) {
    return memcmp(a, b, sizeof *a) == 0;
}

static void retire(struct w_model *m) {
    if (!m) return;
    atomic_store(&m->retired, true);
    w_model_release(m);
}

/* --- merging a scan (mutex held) -------------------------------------------------------------- */

/* The first slot that is not before (name, version) in the array's order. */
static size_t slot_from(const struct slot *slots, size_t n, const char *name, int64_t version) {
    size_t lo = 0, hi = n;
    while (lo < hi) {
        size_t mid = (lo + hi) / 2;
        int c = strcmp(slots[mid].at.name, name);
        if (c < 0 || (c == 0 && slots[mid].at.version > version))
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo;
}

static struct slot *slot_find(struct slot *slots, size_t n, const char *name, int64_t version) {
    size_t i = slot_from(slots, n, name, version);
    return i < n && slots[i].at.version == version && strcmp(slots[i].at.name, name) == 0
               ? &slots[i]
               : NULL;
}

/* The newest loaded version below i's of the same model. */
static bool older_is_loaded(const struct w_store *s, size_t i) {
    for (size_t k = i + 1; k < s->n_slots && strcmp(s->slots[k].at.name, s->slots[i].at.name) == 0;
         k++)
        if (s->slots[k].model) return true;
    return false;
}

static bool newer_is_loaded(const struct w_store *s, size_t i) {
    for (size_t k = i; k-- > 0 && strcmp(s->slots[k].at.name, s->slots[i].at.name) == 0;)
        if (s->slots[k].model) return true;
    return false;
}

/* Moves each slot on by what the scan saw of its files. */
static void advance(struct w_store *s) {
    uint64_t now = now_ms();
    s->unsettled = false;
    for (size_t i = 0; i < s->n_slots; i++) {
        struct slot *slot = &s->slots[i];
        if (slot->path[0] || slot->state == LOADING || slot->state == WANTED) continue;
        bool changed = slot->state != COLD && !same_stamp(&slot->at.stamp, &slot->loaded);
        bool passing = slot->state == FAILED && (strcmp(slot->err.code, W_NO_MEMORY) == 0 ||
                                                 strcmp(slot->err.code, W_REF_FAILED) == 0);
        bool wanted = slot->state == COLD && !slot->path[0] && older_is_loaded(s, i) &&
                      !newer_is_loaded(s, i);
        if ((changed || wanted) && !settled(&slot->at.stamp)) {
            s->unsettled = true;
            continue;
        }
        if (slot->state == READY && changed)
            slot->state = WANTED;
        else if (slot->state == FAILED &&
                 (changed || (passing && now - slot->failed_ms > RETRY_MS)))
            slot->state = older_is_loaded(s, i) ? WANTED : COLD;
        else if (wanted)
            slot->state = WANTED;
    }
}

static int slot_order(const void *a, const void *b) {
    const struct slot *x = a, *y = b;
    int c = strcmp(x->at.name, y->at.name);
    return c ? c : (y->at.version > x->at.version) - (y->at.version < x->at.version);
}

/* Takes the scan over. Returns the models that are gone from the disk, NULL at the end, to be
 * retired outside the lock; the caller frees the array. Runs on the thread that loads, so nothing
 * is LOADING meanwhile. */
static struct w_model **merge(struct w_store *s, struct w__scan *scan) {
    size_t n = 0, n_gone = 0;
    struct slot *slots = calloc(scan->n_found + s->n_slots + 1, sizeof *slots);
    struct w_model **gone = calloc(s->n_slots + 1, sizeof *gone);
    if (!slots || !gone) {
        free(slots);
        free(gone);
        w__scan_finish(scan);
        return NULL; /* the next scan tries again */
    }
    for (size_t i = 0; i < s->n_slots; i++) s->slots[i].gone = s->slots[i].path[0] == 0;
    for (size_t i = 0; i < scan->n_found; i++) {
        struct slot *old =
            slot_find(s->slots, s->n_slots, scan->found[i].name, scan->found[i].version);
        if (old && old->path[0]) continue; /* an alias goes before */
        if (old) slots[n] = *old, old->gone = false;
        slots[n++].at = scan->found[i];
    }
    for (size_t i = 0; i < s->n_slots; i++) {
        struct slot *old = &s->slots[i];
        if (old->path[0])
            slots[n++] = *old;
        else if (old->gone && old->model)
            gone[n_gone++] = old->model;
    }
    if (n) qsort(slots, n, sizeof *slots, slot_order);
    free(s->slots);
    s->slots = slots;
    s->n_slots = n;
    w__scan_finish(&s->scan);
    s->scan = *scan;
    memset(scan, 0, sizeof *scan);
    advance(s);
    return gone;
}

static void rescan(struct w_store *s) {
    struct w__scan scan = {0};
    struct w_model **gone = NULL;
    pthread_mutex_lock(&s->mutex);
    s->scan_wanted = false; /* what is wanted from here on, this scan may have missed */
    uint64_t number = ++s->scan_begun;
    pthread_mutex_unlock(&s->mutex);
    bool ok = !s->folder[0] || w__scan(s->folder, &scan, NULL);
    pthread_mutex_lock(&s->mutex);
    s->scan_done = number;
    if (ok) gone = merge(s, &scan);
    s->scanned_ms = now_ms();
    pthread_mutex_unlock(&s->mutex);
    for (size_t i = 0; gone && gone[i]; i++) {
        if (s->o.event) s->o.event(s->o.ctx, gone[i]->name, gone[i]->version, NULL, NULL);
        retire(gone[i]);
    }
    free(gone);
    if (s->o.changed) s->o.changed(s->o.ctx);
}

/* --- loading (the thread) --------------------------------------------------------------------- */

/* Drops models beyond the limit, the longest unused first; never `keep`. */
static size_t drop_some(struct w_store *s, const struct w_model *keep, struct w_model **dropped,
                        size_t max) {
    size_t n = 0, bytes = 0;
    for (size_t i = 0; i < s->n_slots; i++)
        bytes += s->slots[i].model ? s->slots[i].model->bytes : 0;
    while (bytes > s->o.bytes_max && n < max) {
        struct slot *oldest = NULL;
        for (size_t i = 0; i < s->n_slots; i++) {
            struct slot *c = &s->slots[i];
            if (c->state == READY && c->model && c->model != keep &&
                (!oldest || c->used_ms < oldest->used_ms))
                oldest = c;
        }
        if (!oldest) break;
        bytes -= oldest->model->bytes;
        atomic_store(&oldest->model->retired, true);
        dropped[n++] = oldest->model;
        oldest->model = NULL;
        oldest->state = COLD;
    }
    return n;
}

static void place_of(const struct w_store *s, const struct slot *slot,
                     struct w_model_place *place) {
    struct w_error ignored;
    if (slot->path[0] && w_model_find(slot->path, NULL, place, &ignored)) {
        memcpy(place->name, slot->at.name, sizeof place->name);
        return;
    }
    memset(place, 0, sizeof *place);
    memcpy(place->name, slot->at.name, sizeof place->name);
    place->version = slot->at.version;
    snprintf(place->folder, sizeof place->folder, "%s/%s/%" PRId64, s->folder, slot->at.name,
             slot->at.version);
    snprintf(place->path, sizeof place->path, "%s/%s/%" PRId64 "/model.onnx", s->folder,
             slot->at.name, slot->at.version);
}

/* Puts the outcome into its slot. Returns the model that it replaces. */
static struct w_model *settle(struct w_store *s, const struct slot *was, struct w_model *m,
                              const struct w_error *err) {
    struct slot *slot = slot_find(s->slots, s->n_slots, was->at.name, was->at.version);
    if (!slot) return m;
    struct w_model *old = slot->model;
    if (old) atomic_store(&old->retired, true);
    slot->model = m;
    slot->loaded = was->at.stamp;
    slot->state = m ? READY : FAILED;
    if (!m) slot->err = *err;
    slot->failed_ms = now_ms();
    if (m) slot->used_ms = now_ms();
    return old;
}

static bool load_one(struct w_store *s) {
    struct slot was;
    struct w_model_place place;
    struct w_error err = {0};
    struct w_model *dropped[64];
    bool found = false;
    pthread_mutex_lock(&s->mutex);
    for (size_t i = 0; i < s->n_slots && !found; i++)
        if (s->slots[i].state == WANTED)
            s->slots[i].state = LOADING, was = s->slots[i], found = true;
    pthread_mutex_unlock(&s->mutex);
    if (!found) return false;
    place_of(s, &was, &place);
    char json[4200];
    snprintf(json, sizeof json, "%s/model.json", place.folder);
    w__stamp_of(place.path, json, &was.at.stamp);
    struct w_model *m = w_model_load(&place, &s->o.model, &err);
    if (m && s->o.event) s->o.event(s->o.ctx, was.at.name, was.at.version, m, NULL);
    if (!m && s->o.event) s->o.event(s->o.ctx, was.at.name, was.at.version, NULL, &err);
    pthread_mutex_lock(&s->mutex);
    struct w_model *old = settle(s, &was, m, &err);
    size_t n = drop_some(s, m, dropped, sizeof dropped / sizeof *dropped);
    pthread_mutex_unlock(&s->mutex);
    retire(old);
    for (size_t i = 0; i < n; i++) {
        if (s->o.event) s->o.event(s->o.ctx, dropped[i]->name, dropped[i]->version, NULL, NULL);
        retire(dropped[i]);
    }
    if (s->o.changed) s->o.changed(s->o.ctx);
    return true;
}

/* Sleeps until something is wanted or the next look is due. Returns false: stop. */
static bool wait_for_work(struct w_store *s, bool *scan) {
    pthread_mutex_lock(&s->mutex);
    for (;;) {
        uint64_t now = now_ms();
        uint32_t every = s->unsettled ? UNSETTLED_POLL_MS : s->o.poll_ms;
        bool wanted = false;
        for (size_t i = 0; i < s->n_slots; i++) wanted |= s->slots[i].state == WANTED;
        *scan = (s->scan_wanted && now - s->scanned_ms >= RESCAN_MS) ||
                (every && now - s->scanned_ms >= every);
        if (s->stop || wanted || *scan) break;
        uint64_t wait_ms = s->scan_wanted ? RESCAN_MS
                           : every        ? every
                                          : 3600000,
                 since = now - s->scanned_ms;
        wait_ms = wait_ms > since ? wait_ms - since : 1;
        struct timespec until;
        clock_gettime(CLOCK_MONOTONIC, &until);
        uint64_t ns = (uint64_t)until.tv_nsec + wait_ms % 1000 * 1000000;
        until.tv_sec += (time_t)(wait_ms / 1000 + ns / 1000000000);
        until.tv_nsec = (long)(ns % 1000000000);
        pthread_cond_timedwait(&s->cond, &s->mutex, &until);
    }
    bool go = !s->stop;
    pthread_mutex_unlock(&s->mutex);
    return go;
}

static void *thread_main(void *arg) {
    struct w_store *s = arg;
    bool scan = false;
    pthread_setname_np(pthread_self(), "quern-store");
    while (wait_for_work(s, &scan)) {
        if (scan) rescan(s);
        load_one(s);
    }
    return NULL;
}

/* --- asking ----------------------------------------------------------------------------------- */

/* mutex held. The slot to serve for a name without a version: the newest that is loaded or may be.
 */
static struct slot *latest(struct w_store *s, const char *name, struct slot **newest) {
    struct slot *ready = NULL;
    *newest = NULL;
    for (size_t i = slot_from(s->slots, s->n_slots, name, INT64_MAX);
         i < s->n_slots && strcmp(s->slots[i].at.name, name) == 0; i++) {
        struct slot *slot = &s->slots[i];
        if (!*newest) *newest = slot;
        if (slot->state == FAILED) continue;
        if (slot->model &&
            (slot->state == READY || slot->state == WANTED || slot->state == LOADING)) {
            ready = slot;
            break;
        }
        if (slot->state == COLD) slot->state = WANTED;
        if ((*newest)->state == FAILED) *newest = slot;
    }
    return ready;
}

static enum w_store_answer answer(struct w_store *s, struct slot *slot, struct w_model **model,
                                  struct w_error *err) {
    if (slot->model && slot->state != FAILED) {
        slot->used_ms = now_ms();
        *model = w_model_retain(slot->model);
        return W_STORE_READY;
    }
    if (slot->state == FAILED) {
        if (err) *err = slot->err;
        return W_STORE_FAILED;
    }
    if (slot->state == COLD) slot->state = WANTED;
    pthread_cond_signal(&s->cond);
    return W_STORE_LOADING;
}

/* mutex held. Whether the name may have been put there since the last look: asks for another one.
 */
static bool may_be_new(struct w_store *s, uint64_t *asked) {
    if (!asked || !s->folder[0]) return false;
    if (*asked == 0) *asked = s->scan_begun + 1;
    if (s->scan_done >= *asked) return false;
    s->scan_wanted = true;
    pthread_cond_signal(&s->cond);
    return true;
}

enum w_store_answer w_store_get(struct w_store *s, const char *spec_text, uint64_t *asked,
                                struct w_model **model, struct w_error *err) {
    struct w__spec spec;
    struct slot *slot = NULL, *newest = NULL;
    enum w_store_answer a;
    *model = NULL;
    if (!w__spec_parse(spec_text, &spec, err)) return W_STORE_FAILED;
    pthread_mutex_lock(&s->mutex);
    if (!*spec.at) {
        slot = latest(s, spec.name, &newest);
        if (!slot) slot = newest;
        if (newest && newest->state == WANTED) pthread_cond_signal(&s->cond);
    } else {
        int64_t version = spec.version ? spec.version : w__label_version(&s->scan, &spec);
        if (version) slot = slot_find(s->slots, s->n_slots, spec.name, version);
    }
    if (slot) {
        a = answer(s, slot, model, err);
    } else if (may_be_new(s, asked)) {
        a = W_STORE_LOADING;
    } else {
        w__fail_unknown(&s->scan, &spec, s->folder, err);
        a = W_STORE_FAILED;
    }
    pthread_mutex_unlock(&s->mutex);
    return a;
}

/* --- life ------------------------------------------------------------------------------------- */

struct w_store *w_store_create(const struct w_store_options *options, struct w_error *err) {
    struct w_store *s = calloc(1, sizeof *s);
    if (!s) return w_fail(err, W_NO_MEMORY, "no memory for the model store"), NULL;
    s->o = *options;
    if (!s->o.bytes_max) s->o.bytes_max = w_memory() / 2;
    if (options->folder) snprintf(s->folder, sizeof s->folder, "%s", options->folder);
    pthread_condattr_t attr;
    pthread_mutex_init(&s->mutex, NULL);
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&s->cond, &attr);
    pthread_condattr_destroy(&attr);
    struct w__scan scan = {0};
    if (s->folder[0] && !w__scan(s->folder, &scan, err)) goto bad;
    free(merge(s, &scan));
    s->scanned_ms = now_ms();
    int rc = pthread_create(&s->thread, NULL, thread_main, s);
    if (rc == 0) return s;
    w_fail(err, W_NO_MEMORY, "the model store's thread cannot be started: %s", strerror(rc));
bad:
    w__scan_finish(&s->scan);
    pthread_cond_destroy(&s->cond);
    pthread_mutex_destroy(&s->mutex);
    free(s->slots);
    free(s);
    return NULL;
}

void w_store_destroy(struct w_store *s) {
    if (!s) return;
    pthread_mutex_lock(&s->mutex);
    s->stop = true;
    pthread_cond_signal(&s->cond);
    pthread_mutex_unlock(&s->mutex);
    pthread_join(s->thread, NULL);
    for (size_t i = 0; i < s->n_slots; i++) retire(s->slots[i].model);
    w__scan_finish(&s->scan);
    pthread_cond_destroy(&s->cond);
    pthread_mutex_destroy(&s->mutex);
    free(s->slots);
    free(s);
}

bool w_store_alias(struct w_store *s, const char *name, const char *path, struct w_error *err) {
    if (!w_model_name_valid(name, strlen(name)))
        return w_fail(err, "unknown_model", "\"%.100s\" is no model name", name);
    struct w_model_place place;
    if (!w_model_find(path, NULL, &place, err)) return false;
    if (strlen(path) >= sizeof s->slots->path)
        return w_fail(err, W_TOO_LARGE, "the path of model \"%s\" is too long", name);
    pthread_mutex_lock(&s->mutex);
    struct slot *grown = realloc(s->slots, (s->n_slots + 2) * sizeof *grown);
    if (grown) {
        s->slots = grown;
        struct slot *slot = &grown[s->n_slots++];
        memset(slot, 0, sizeof *slot);
        snprintf(slot->at.name, sizeof slot->at.name, "%s", name);
        slot->at.version = place.version;
        snprintf(slot->path, sizeof slot->path, "%s", path);
        qsort(s->slots, s->n_slots, sizeof *s->slots, slot_order);
    }
    pthread_mutex_unlock(&s->mutex);
    return grown || w_fail(err, W_NO_MEMORY, "no memory for model \"%s\"", name);
}

void w_store_tune(struct w_store *s, uint32_t poll_ms, uint64_t bytes_max) {
    pthread_mutex_lock(&s->mutex);
    s->o.poll_ms = poll_ms;
    s->o.bytes_max = bytes_max ? bytes_max : w_memory() / 2;
    pthread_cond_signal(&s->cond);
    pthread_mutex_unlock(&s->mutex);
}

size_t w_store_card(struct w_store *s, char *dst, size_t dst_bytes) {
    size_t n = 0;
    if (dst_bytes < 256) return 0;
    dst[n++] = '[';
    pthread_mutex_lock(&s->mutex);
    for (size_t i = 0; i < s->n_slots && n + 256 < dst_bytes; i++) {
        const struct w_model *m = s->slots[i].model;
        if (m)
            n += (size_t)snprintf(dst + n, dst_bytes - n,
                                  "%s{\"name\":\"%s\",\"version\":%" PRId64 ",\"bytes\":%zu}",
                                  n > 1 ? "," : "", m->name, m->version, m->bytes);
    }
    pthread_mutex_unlock(&s->mutex);
    dst[n++] = ']';
    dst[n] = 0;
    return n;
}
