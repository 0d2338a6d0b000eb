#include "worker/daemon/lanes.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

_Thread_local struct w_lane *w__lane_self;

#define TRIM_IDLE_S 20 /* an idle lane keeps its rows' memory so long */

struct w_row *w_lane_row(struct w_lane *lane, size_t i) {
    if (i >= lane->n_rows) {
        struct w_row **grown = realloc(lane->rows, (i + 1) * sizeof *grown);
        if (!grown) return NULL;
        lane->rows = grown;
        while (lane->n_rows <= i) {
            struct w_row *row = w_row_create(lane->pool->row_bytes_max);
            if (!row) return NULL;
            lane->rows[lane->n_rows++] = row;
        }
    }
    w_row_reset(lane->rows[i]);
    return lane->rows[i];
}

static void drop_session(struct w_lane *lane, size_t i) {
    op_session_destroy(lane->sessions[i].session);
    w_model_release(lane->sessions[i].model);
    memset(&lane->sessions[i], 0, sizeof lane->sessions[i]);
}

static void drop_retired(struct w_lane *lane) {
    for (size_t i = 0; i < W_LANE_SESSIONS_MAX; i++)
        if (lane->sessions[i].model &&
            atomic_load_explicit(&lane->sessions[i].model->retired, memory_order_relaxed))
            drop_session(lane, i);
}

static void on_node(void *user, const char *op_type, const char *name, uint64_t ns, double flops,
                    double bytes) {
    (void)op_type, (void)name, (void)ns, (void)flops, (void)bytes;
    w_lane_beat(user);
}

struct op_session *w_lane_session(struct w_lane *lane, struct w_model *model, struct w_error *err) {
    size_t oldest = 0;
    for (size_t i = 0; i < W_LANE_SESSIONS_MAX; i++) {
        if (lane->sessions[i].model == model) {
            lane->sessions[i].used = ++lane->uses;
            return lane->sessions[i].session;
        }
        if (lane->sessions[i].used < lane->sessions[oldest].used) oldest = i;
    }
    struct op_session_options o = {.n_threads = lane->pool->n_threads,
                                   .cancel = &lane->cancel,
                                   .on_node = on_node,
                                   .user = lane};
    struct op_error oe;
    struct op_session *s = op_session_create(model->op, &o, &oe);
    if (!s) return w_fail_op(err, &oe, model->name), NULL;
    drop_session(lane, oldest);
    lane->sessions[oldest].model = w_model_retain(model);
    lane->sessions[oldest].session = s;
    lane->sessions[oldest].used = ++lane->uses;
    return s;
}

void *w_lane_buffer(struct w_lane *lane, int i, size_t bytes) {
    struct w_buffer *b = &lane->stack[i];
    if (b->size >= bytes && b->ptr) return b->ptr;
    size_t size = (bytes + 63) / 64 * 64;
    if (size == 0) size = 64;
    if (size < bytes) return NULL;
    free(b->ptr);
    b->ptr = aligned_alloc(64, size);
    b->size = b->ptr ? size : 0;
    return b->ptr;
}

bool w_lane_cancelled(const struct w_lane *lane) {
    return __atomic_load_n(&lane->cancel, __ATOMIC_RELAXED);
}

/* Memory that only makes a busy lane faster. */
static void slim(struct w_lane *lane) {
    for (size_t i = 0; i < lane->n_rows; i++) w_row_destroy(lane->rows[i]);
    free(lane->rows);
    lane->rows = NULL;
    lane->n_rows = 0;
    for (size_t i = 0; i < W_INPUTS_MAX; i++) {
        free(lane->stack[i].ptr);
        lane->stack[i] = (struct w_buffer){0};
    }
}

static void *lane_main(void *arg) {
    struct w_lane *lane = arg;
    struct w_lanes *pool = lane->pool;
    char name[16];
    snprintf(name, sizeof name, "quern-lane%d", lane->index % 1000);
    pthread_setname_np(pthread_self(), name);
    w__lane_self = lane;
    bool slimmed = true;
    pthread_mutex_lock(&pool->mutex);
    while (!pool->stop) {
        if (!lane->assigned) {
            struct timespec until;
            clock_gettime(CLOCK_REALTIME, &until);
            until.tv_sec += TRIM_IDLE_S;
            int rc = slimmed ? pthread_cond_wait(&lane->cond, &pool->mutex)
                             : pthread_cond_timedwait(&lane->cond, &pool->mutex, &until);
            bool trim = lane->trim;
            lane->trim = false;
            if (lane->assigned || (rc == 0 && !trim)) continue;
            pthread_mutex_unlock(&pool->mutex);
            if (trim) drop_retired(lane);
            if (rc) slim(lane), slimmed = true;
            pthread_mutex_lock(&pool->mutex);
            continue;
        }
        pthread_mutex_unlock(&pool->mutex);
        uint64_t from = uv_hrtime();
        drop_retired(lane);
        lane->run(lane, lane->tasks, lane->n_tasks);
        lane->busy_ms = (double)(uv_hrtime() - from) / 1e6;
        slimmed = false;
        w_lane_beat(lane);
        pthread_mutex_lock(&pool->mutex);
        lane->assigned = false;
        lane->next_done = pool->done;
        pool->done = lane;
        uv_async_send(pool->async);
    }
    pthread_mutex_unlock(&pool->mutex);
    for (size_t i = 0; i < W_LANE_SESSIONS_MAX; i++) drop_session(lane, i);
    slim(lane);
    return NULL;
}

bool w_lanes_start(struct w_lanes *ls, int n, int n_threads, const struct w_files *files,
                   uv_async_t *async) {
    memset(ls, 0, sizeof *ls);
    ls->lanes = calloc((size_t)n, sizeof *ls->lanes);
    if (!ls->lanes) return false;
    ls->n_threads = n_threads;
    ls->row_bytes_max = (size_t)512 << 20;
    ls->async = async;
    pthread_mutex_init(&ls->mutex, NULL);
    for (int i = 0; i < n; i++) {
        struct w_lane *lane = &ls->lanes[i];
        lane->index = i;
        lane->pool = ls;
        lane->files = files;
        pthread_cond_init(&lane->cond, NULL);
        lane->work = calloc(W_WORK_TASKS_MAX, sizeof *lane->work);
        lane->tasks = lane->work;
        if (!lane->work || pthread_create(&lane->thread, NULL, lane_main, lane) != 0) {
            free(lane->work);
            pthread_cond_destroy(&lane->cond);
            w_lanes_stop(ls);
            return false;
        }
        ls->n++;
    }
    return true;
}

void w_lanes_stop(struct w_lanes *ls) {
    if (!ls->lanes) return;
    pthread_mutex_lock(&ls->mutex);
    ls->stop = true;
    for (int i = 0; i < ls->n; i++) pthread_cond_signal(&ls->lanes[i].cond);
    pthread_mutex_unlock(&ls->mutex);
    for (int i = 0; i < ls->n; i++) {
        pthread_join(ls->lanes[i].thread, NULL);
        pthread_cond_destroy(&ls->lanes[i].cond);
        free(ls->lanes[i].work);
    }
    pthread_mutex_destroy(&ls->mutex);
    free(ls->lanes);
    memset(ls, 0, sizeof *ls);
}

void w_lane_assign(struct w_lane *lane) {
    assert(!lane->busy && lane->n_tasks > 0);
    lane->busy = true;
    __atomic_store_n(&lane->cancel, false, __ATOMIC_RELAXED);
    pthread_mutex_lock(&lane->pool->mutex);
    lane->assigned = true;
    pthread_cond_signal(&lane->cond);
    pthread_mutex_unlock(&lane->pool->mutex);
}

struct w_lane *w_lanes_take_done(struct w_lanes *ls) {
    pthread_mutex_lock(&ls->mutex);
    struct w_lane *list = ls->done;
    ls->done = NULL;
    pthread_mutex_unlock(&ls->mutex);
    return list;
}

void w_lanes_trim(struct w_lanes *ls) {
    pthread_mutex_lock(&ls->mutex);
    for (int i = 0; i < ls->n; i++) {
        ls->lanes[i].trim = true;
        pthread_cond_signal(&ls->lanes[i].cond);
    }
    pthread_mutex_unlock(&ls->mutex);
}
