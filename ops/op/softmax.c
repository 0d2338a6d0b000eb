/* softmax.c: Softmax, LogSoftmax and Hardmax along one axis.
 *
 * Up to opset 12 the input was coerced to a matrix at `axis` and each row of it normalised: the
 * upgrade leaves the mark "coerced" in the node, and the axes from `axis` on count as one. If the
 * normalised axis is the last one its rows are contiguous and each goes through a kernel of kern.h;
 * else a tile of neighbouring columns is done line by line. Short rows (the two classes of a
 * detector's thousand boxes) are turned into columns first: TILE of them at a time fill the vectors
 * that one of them would not. f64 and the reference go an element at a time. Which way is taken
 * depends on the axis and its length only, so that a row has the same bits in any batch. */
#include "ops/op/elementwise.h"

#include <math.h>
#include <string.h>

OP_VECTOR_FILE

enum form { SOFTMAX, LOG_SOFTMAX, HARDMAX };
#define TILE 64
#define SHORT_ROW 32
#define TASK_ELEMENTS 16384

struct op_softmax {
    struct op_desc desc;
    enum form form;
};

/* The tensor as (outer, n, inner); n is normalised. */
struct softmax_job {
    enum form form;
    enum op_type type;
    bool last; /* the axis is the last one: inner is 1 by its place, not by chance */
    int64_t outer, n, inner, per_task;
    const struct k_vmath *math;
    const char *src;
    char *dst;
    float *rows; /* of halves: a row, widened, for each task */
};

static enum op_status softmax_upgrade(struct op_graph *g, struct op_node *n, int opset,
                                      struct op_error *err) {
    (void)err;
    if (opset >= 13) {
        op__attr_remove(n, "coerced");
        return OP_OK;
    }
    enum op_status status = op__attr_set_int(g, n, "axis", op__attr_int(n, "axis", 1));
    return status == OP_OK ? op__attr_set_int(g, n, "coerced", 1) : status;
}

static enum op_status softmax_infer(struct op_ctx *ctx) {
    const struct op_tensor *x = ctx->in[0];
    const int64_t axis = op__attr_int(ctx->node, "axis", -1);
    if (!x || x->kind != OP_KIND_TENSOR || !op__is_float(x->dtype))
        return op__fail(ctx, OP_BAD_TYPE, "takes floats, not %s",
                        x ? op_type_name(x->dtype) : "(absent)");
    /* A scalar is a row of one; a coerced axis may be the rank itself: then every row has one
     * element. */
    const int limit = x->rank ? x->rank : 1;
    const bool at_end = op__attr_int(ctx->node, "coerced", 0) && axis == x->rank;
    if (op__axis(axis, limit) < 0 && !at_end)
        return op__fail(ctx, OP_BAD_VALUE, "axis %lld of an input of rank %d", (long long)axis,
                        x->rank);
    op__set_like(ctx, 0, 0);
    return OP_OK;
}

static void shape_of(const struct op_ctx *ctx, struct softmax_job *job) {
    const struct op_tensor *x = ctx->in[0];
    const bool coerced = op__attr_int(ctx->node, "coerced", 0) != 0;
    int64_t axis = op__attr_int(ctx->node, "axis", -1);
    if (axis < 0) axis += x->rank ? x->rank : 1;
    job->outer = job->n = job->inner = 1;
    for (int i = 0; i < x->rank; i++)
        *(i < axis ? &job->outer : i == axis || coerced ? &job->n : &job->inner) *= x->dims[i];
    job->last = coerced || axis >= x->rank - 1;
}

/* --- an element at a time ----------------------------------------------------------------------
 */

/* One line of n elements, `step` apart. */
#define LINE(suffix, T)                                                                            \
    static void line_##suffix(enum form form, const T *x, T *y, int64_t n, int64_t step) {         \
        int64_t at = 0;                                                                            \
        double sum = 0;                                                                            \
        T top = n ? x[0] : 0;                                                                      \
        for (int64_t i = 1; i < n; i++)                                                            \
            if (x[i * step] > top || (x[i * step] != x[i * step] && top == top)) {                 \
                top = x[i * step];                                                                 \
                at = i;                                                                            \
            }                                                                                      \
        if (form != HARDMAX)                                                                       \
            for (int64_t i = 0; i < n; i++) sum += exp((double)x[i * step] - (double)top);         \
        const double log_sum = sum > 0 ? log(sum) : sum; /* NaN stays */                           \
        for (int64_t i = 0; i < n; i++) {                                                          \
            const double d = (double)x[i * step] - (double)top;                                    \
            y[i * step] = (T)(form == HARDMAX   ? i == at                                          \
                              : form == SOFTMAX ? exp(d) / sum                                     \
                                                : d - log_sum);                                    \
        }                                                                                          \
    }
LINE(f32, float)
LINE(f64, double)

/* --- the fast forms ----------------------------------------------------------------------------
 */

static void row_f32(const struct softmax_job *job, const float *x, float *y) {
    if (!job->math || job->form == HARDMAX)
        line_f32(job->form, x, y, job->n, 1);
    else
        (job->form == SOFTMAX ? job->math->softmax : job->math->log_softmax)(job->n, x, y);
}

/* m <= TILE neighbouring columns of n lines, `step` apart: y = e^(x - top) / sum, or x - (top + ln
 * sum). */
static void columns_f32(const struct softmax_job *job, const float *x, float *y, int64_t m,
                        int64_t step) {
    const struct k_vmath *k = job->math;
    float top[TILE], sum[TILE], line[TILE] = {0};
    for (int64_t j = 0; j < m; j++) top[j] = -INFINITY, sum[j] = 0;
    for (int64_t i = 0; i < job->n; i++) k->binary[K_MAX](m, top, false, x + i * step, false, top);
    for (int64_t i = 0; i < job->n; i++) {
        float *e = job->form == SOFTMAX ? y + i * step : line;
        k->binary[K_SUB](m, x + i * step, false, top, false, e);
        k->unary[K_EXP](m, e, e, 0, 0);
        k->binary[K_ADD](m, sum, false, e, false, sum);
    }
    if (job->form == SOFTMAX) {
        for (int64_t i = 0; i < job->n; i++)
            k->binary[K_DIV](m, y + i * step, false, sum, false, y + i * step);
        return;
    }
    k->unary[K_LOG](m, sum, sum, 0, 0);
    for (int64_t i = 0; i < job->n; i++) {
        k->binary[K_SUB](m, x + i * step, false, top, false, line);
        k->binary[K_SUB](m, line, false, sum, false, y + i * step);
    }
}

static void slab_f32(const struct softmax_job *job, const float *x, float *y) {
    if (job->last) {
        row_f32(job, x, y);
    } else if (!job->math || job->form == HARDMAX) {
        for (int64_t j = 0; j < job->inner; j++)
            line_f32(job->form, x + j, y + j, job->n, job->inner);
    } else {
        for (int64_t j = 0; j < job->inner; j += TILE)
            columns_f32(job, x + j, y + j, job->inner - j < TILE ? job->inner - j : TILE,
                        job->inner);
    }
}

/* `rows` rows of n <= SHORT_ROW elements each, by way of columns. */
static void short_rows_f32(const struct softmax_job *job, const float *x, float *y, int64_t rows) {
    float turned[SHORT_ROW * TILE]; /* (n, TILE) */
    const int64_t n = job->n;
    for (int64_t r = 0; r < rows; r += TILE, x += TILE * n, y += TILE * n) {
        const int64_t m = rows - r < TILE ? rows - r : TILE;
        for (int64_t j = 0; j < m; j++)
            for (int64_t i = 0; i < n; i++) turned[i * TILE + j] = x[j * n + i];
        columns_f32(job, turned, turned, m, TILE);
        for (int64_t j = 0; j < m; j++)
            for (int64_t i = 0; i < n; i++) y[j * n + i] = turned[i * TILE + j];
    }
}

static void softmax_task(void *arg, int64_t task) {
    const struct softmax_job *job = arg;
    if (job->type == OP_F32 && job->last && job->n <= SHORT_ROW && job->math &&
        job->form != HARDMAX) {
        const int64_t first = task * job->per_task, left = job->outer - first;
        short_rows_f32(job, (const float *)(const void *)job->src + first * job->n,
                       (float *)(void *)job->dst + first * job->n,
                       left < job->per_task ? left : job->per_task);
        return;
    }
    const int64_t slab = job->n * job->inner;
    float *wide = job->rows ? job->rows + task * slab : NULL;
    for (int64_t i = task * job->per_task; i < (task + 1) * job->per_task && i < job->outer; i++) {
        const size_t at = (size_t)(i * slab) * op_type_size(job->type);
        const void *x = job->src + at;
        void *y = job->dst + at;
        if (job->type == OP_F32) {
            slab_f32(job, x, y);
        } else if (job->type == OP_F64) {
            for (int64_t j = 0; j < job->inner; j++)
                line_f64(job->form, (const double *)x + j, (double *)y + j, job->n, job->inner);
        } else {
            op__widen(job->type, wide, x, slab);
            slab_f32(job, wide, wide);
            op__narrow(job->type, y, wide, slab);
        }
    }
}

static int64_t n_tasks_of(struct softmax_job *job) {
    const int64_t slab = job->n * job->inner;
    job->per_task = slab < TASK_ELEMENTS ? TASK_ELEMENTS / (slab ? slab : 1) : 1;
    return (job->outer + job->per_task - 1) / job->per_task;
}

static size_t softmax_scratch(const struct op_ctx *ctx) {
    struct softmax_job job = {0};
    if (!op__is_half(ctx->in[0]->dtype)) return 0;
    shape_of(ctx, &job);
    return (size_t)(n_tasks_of(&job) * job.n * job.inner) * sizeof(float);
}

static enum op_status softmax(struct op_ctx *ctx, const struct k_vmath *math) {
    const struct op_tensor *x = ctx->in[0];
    if (!ctx->out[0] || op_tensor_count(x) <= 0) return OP_OK;
    struct softmax_job job = {
        .form = ((const struct op_softmax *)ctx->node->desc)->form,
        .type = x->dtype,
        .math = math,
        .src = x->data,
        .dst = ctx->out[0]->data,
        .rows = op__is_half(x->dtype) ? ctx->scratch : NULL,
    };
    shape_of(ctx, &job);
    const int64_t n_tasks = n_tasks_of(&job);
    if (n_tasks == 1)
        softmax_task(&job, 0);
    else
        op__parallel(ctx, n_tasks, softmax_task, &job);
    return OP_OK;
}

static enum op_status softmax_run(struct op_ctx *ctx) {
    return softmax(ctx, op__kern(ctx)->math);
}

static enum op_status softmax_ref(struct op_ctx *ctx) {
    return softmax(ctx, NULL);
}

#define ROW(id, NAME, FORM)                                                                        \
    static const struct op_softmax id##_row = {.desc = {.name = NAME,                              \
                                                        .domain = "",                              \
                                                        .since = 1,                                \
                                                        .in_min = 1,                               \
                                                        .in_max = 1,                               \
                                                        .out_min = 1,                              \
                                                        .out_max = 1,                              \
                                                        .inplace = 1,                              \
                                                        .upgrade = softmax_upgrade,                \
                                                        .infer = softmax_infer,                    \
                                                        .scratch = softmax_scratch,                \
                                                        .run = softmax_run,                        \
                                                        .ref = softmax_ref},                       \
                                               .form = FORM};                                      \
    OP_REGISTER_ROW(id##_row)

ROW(softmax, "Softmax", SOFTMAX);
ROW(log_softmax, "LogSoftmax", LOG_SOFTMAX);
ROW(hardmax, "Hardmax", HARDMAX);
