/* The threads that help a session with one node at a time.
 *
 * What: one job at a time: a function, an argument, a number of tasks. Every thread, the caller too, takes the next task
 * from an atomic counter until there are none. The caller returns when every task has ended.
 *
 * Waiting: a node follows the last one after microseconds, so a worker first spins for a few of them on the job's
 * number and then parks on a condition variable; it does not spin for long, because the cores belong to other lanes as
 * well. Spinning longer (ONNX Runtime: 2^20 rounds) wins a few percent in a benchmark alone on the machine and loses
 * everywhere else.
 *
 * Same bits: which thread runs a task is unspecified, so a task must depend on its number only. */
#include "ops/pool.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>

#define SPIN_ROUNDS 2000 /* about 20 microseconds of pause instructions */

struct op_pool {
    int n_threads; /* the caller included */
    pthread_t *threads;
    pthread_mutex_t lock;
    pthread_cond_t work, done;
    atomic_uint job;         /* number of the current job; changes under the lock */
    atomic_llong next_task;  /* of this job */
    atomic_int n_busy;       /* workers that may still touch this job */
    int64_t n_tasks;
    void (*fn)(void *arg, int64_t task);
    void *arg;
    atomic_bool stop;
};

static _Thread_local bool inside; /* this thread runs a task: a nested call stays on it */

static void relax(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static void take_tasks(struct op_pool *p) {
    int64_t task;
    inside = true;
    while ((task = atomic_fetch_add_explicit(&p->next_task, 1, memory_order_relaxed)) < p->n_tasks) p->fn(p->arg, task);
    inside = false;
}

/* Returns false when the pool ends. The number of the last job seen is *seen. */
static bool wait_for_job(struct op_pool *p, unsigned *seen) {
    for (int i = 0; i < SPIN_ROUNDS; i++) {
        if (atomic_load_explicit(&p->job, memory_order_acquire) != *seen) break;
        relax();
    }
    pthread_mutex_lock(&p->lock);
    while (atomic_load(&p->job) == *seen && !atomic_load(&p->stop)) pthread_cond_wait(&p->work, &p->lock);
    bool go = !atomic_load(&p->stop);
    *seen = atomic_load(&p->job);
    pthread_mutex_unlock(&p->lock);
    return go;
}

static void *worker(void *arg) {
    struct op_pool *p = arg;
    unsigned seen = 0;
    while (wait_for_job(p, &seen)) {
        take_tasks(p);
        if (atomic_fetch_sub(&p->n_busy, 1) == 1) {
            pthread_mutex_lock(&p->lock);
            pthread_cond_signal(&p->done);
            pthread_mutex_unlock(&p->lock);
        }
    }
    return NULL;
}

struct op_pool *op__pool_create(int n_threads) {
    struct op_pool *p = calloc(1, sizeof *p);
    if (!p) return NULL;
    p->n_threads = 1;
    pthread_mutex_init(&p->lock, NULL);
    pthread_cond_init(&p->work, NULL);
    pthread_cond_init(&p->done, NULL);
    p->threads = calloc((size_t)n_threads, sizeof *p->threads);
    while (p->threads && p->n_threads < n_threads) {
        if (pthread_create(&p->threads[p->n_threads - 1], NULL, worker, p) != 0) break;
        p->n_threads++;
    }
    if (p->n_threads == n_threads) return p;
    op__pool_destroy(p);
    return NULL;
}

void op__pool_destroy(struct op_pool *p) {
    if (!p) return;
    pthread_mutex_lock(&p->lock);
    atomic_store(&p->stop, true);
    pthread_cond_broadcast(&p->work);
    pthread_mutex_unlock(&p->lock);
    for (int i = 0; i + 1 < p->n_threads; i++) pthread_join(p->threads[i], NULL);
    pthread_cond_destroy(&p->done);
    pthread_cond_destroy(&p->work);
    pthread_mutex_destroy(&p->lock);
    free(p->threads);
    free(p);
}

int op__pool_n_threads(const struct op_pool *p) {
    return p ? p->n_threads : 1;
}

void op__pool_run(struct op_pool *p, int64_t n_tasks, void (*fn)(void *arg, int64_t task), void *arg) {
    if (!p || p->n_threads == 1 || n_tasks < 2 || inside) {
        for (int64_t i = 0; i < n_tasks; i++) fn(arg, i);
        return;
    }
    pthread_mutex_lock(&p->lock);
    p->fn = fn;
    p->arg = arg;
    p->n_tasks = n_tasks;
    atomic_store(&p->next_task, 0);
    atomic_store(&p->n_busy, p->n_threads - 1);
    atomic_fetch_add_explicit(&p->job, 1, memory_order_release);
    pthread_cond_broadcast(&p->work);
    pthread_mutex_unlock(&p->lock);
    take_tasks(p);
    for (int i = 0; i < SPIN_ROUNDS && atomic_load(&p->n_busy); i++) relax();
    pthread_mutex_lock(&p->lock);
    while (atomic_load(&p->n_busy)) pthread_cond_wait(&p->done, &p->lock);
    pthread_mutex_unlock(&p->lock);
}
