/* loader.c: batches ahead of their steps. Where rows are read from files or augmented, a thread of
 * its own makes the next batch while the trainer works on the present one: two batches, taken in
 * turn. What a batch holds follows from seed, epoch and rows, so it is the same whoever makes it,
 * and a run that goes on from a checkpoint begins with the batch of its step. Other rows are
 * converted in the caller's thread: handing them over would take longer.
 *
 *   held   the step whose batch the caller has; the thread makes up to held + 1
 *   made   batches up to this step (exclusive) are there */
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

#include "worker/train/train.h"

struct w_loader {
    struct w_fit *f;
    struct w_fit_batch slots[2];
    int64_t *rows[2];
    const struct w_set *set;
    const int64_t *order; /* NULL: as they are */
    int64_t batch, n_steps, next;
    int epoch;
    bool training, running, threaded;
    pthread_t thread;
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    int64_t held, made;
    bool stop, failed;
    struct w_error err;
};

struct w_loader *w__loader_create(struct w_fit *f, struct w_error *err) {
    struct w_loader *l = calloc(1, sizeof *l);
    if (!l) return w_fail(err, W_NO_MEMORY, "out of memory"), NULL;
    l->f = f;
    l->batch = f->spec->fit.batch_size;
    pthread_mutex_init(&l->mutex, NULL);
    pthread_cond_init(&l->changed, NULL);
    for (int i = 0; i < 2; i++) {
        l->rows[i] = malloc((size_t)l->batch * sizeof *l->rows[i]);
        if (w__fit_batch_init(f, &l->slots[i], err) && l->rows[i]) continue;
        w__loader_destroy(l);
        return w_fail(err, W_NO_MEMORY, "no memory for a batch of %lld rows", (long long)f->spec->fit.batch_size), NULL;
    }
    return l;
}

static bool make(struct w_loader *l, int64_t step, struct w_error *err) {
    int64_t first = step * l->batch, left = l->set->n - first,
            n = left < l->batch ? left : l->batch, *rows = l->rows[step & 1];
    for (int64_t i = 0; i < n; i++) rows[i] = l->order ? l->order[first + i] : first + i;
    return w__fit_batch(l->f, &l->slots[step & 1], l->set, rows, n, l->training, err);
}

static void *work(void *arg) {
    struct w_loader *l = arg;
    pthread_mutex_lock(&l->mutex);
    for (int64_t step = l->made; step < l->n_steps && !l->stop && !l->failed; step++) {
        while (step > l->held + 1 && !l->stop) pthread_cond_wait(&l->changed, &l->mutex);
        if (l->stop) break;
        pthread_mutex_unlock(&l->mutex);
        struct w_error err = {0};
        bool ok = make(l, step, &err);
        pthread_mutex_lock(&l->mutex);
        l->failed = !ok;
        if (!ok) l->err = err;
        l->made = step + ok;
        pthread_cond_broadcast(&l->changed);
    }
    pthread_mutex_unlock(&l->mutex);
    return NULL;
}

void w__loader_end(struct w_loader *l) {
    if (!l || !l->running) return;
    if (l->threaded) {
        pthread_mutex_lock(&l->mutex);
        l->stop = true;
        pthread_cond_broadcast(&l->changed);
        pthread_mutex_unlock(&l->mutex);
        pthread_join(l->thread, NULL);
    }
    l->running = false;
}

void w__loader_begin(struct w_loader *l, const struct w_set *set, const int64_t *order,
                     int64_t first, int64_t n_steps, bool training) {
    sigset_t all, old;
    w__loader_end(l);
    l->set = set;
    l->order = order;
    l->n_steps = n_steps;
    l->next = l->made = first;
    l->held = first - 1;
    l->epoch = l->f->epoch;
    l->training = training;
    l->stop = l->failed = false;
    l->running = true;
    l->threaded = training && l->f->augment;
    for (int i = 0; i < set->n_x; i++) l->threaded |= set->x[i].reader != NULL;
    if (!l->threaded) return;
    sigfillset(&all); /* signals are for the threads that expect them */
    pthread_sigmask(SIG_SETMASK, &all, &old);
    l->threaded = pthread_create(&l->thread, NULL, work, l) == 0; /* else it is done in line */
    pthread_sigmask(SIG_SETMASK, &old, NULL);
}

bool w__loader_is_at(const struct w_loader *l, int64_t step) {
    return l->running && l->training && l->epoch == l->f->epoch && l->next == step;
}

struct w_fit_batch *w__loader_next(struct w_loader *l, struct w_error *err) {
    int64_t step = l->next;
    bool ok;
    if (l->threaded) {
        pthread_mutex_lock(&l->mutex);
        l->held = step;
        pthread_cond_broadcast(&l->changed);
        while (l->made <= step && !l->failed) pthread_cond_wait(&l->changed, &l->mutex);
        ok = l->made > step;
        if (!ok) *err = l->err;
        pthread_mutex_unlock(&l->mutex);
    } else {
        ok = make(l, step, err);
    }
    l->next += ok;
    return ok ? &l->slots[step & 1] : NULL;
}

void w__loader_destroy(struct w_loader *l) {
    if (!l) return;
    w__loader_end(l);
    for (int i = 0; i < 2; i++) {
        w__fit_batch_finish(&l->slots[i]);
        free(l->rows[i]);
    }
    pthread_cond_destroy(&l->changed);
    pthread_mutex_destroy(&l->mutex);
    free(l);
}
