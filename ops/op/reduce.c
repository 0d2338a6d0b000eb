/* reduce.c: the reductions, one row an operator.
 *
 * Dimensions are first gathered into blocks: neighbours that are all reduced, or all kept, become
 * one. If the innermost block is reduced, each output element is a sum over contiguous rows ("row
 * path"); if it is kept, a tile of neighbouring outputs is summed up row by row ("column path").
 * Both run the f32 kernels; everything else, and the reference, goes an element at a time with a
 * stride.
 *
 * Which path is taken and in what order things are added depends on which axes are reduced and on
 * their sizes, never on the size of a kept dimension: a kept dimension of size 1 counts as one, so
 * that a batch of one is summed like a batch of many. f32 is summed in f32 over at most CHUNK
 * elements or LINES lines and those sums in f64.
 *
 * Over an empty set: sums are 0, a product is 1, Max is the type's lowest value, Min its highest,
 * the mean of floats NaN and of integers 0, logarithms of sums -inf. Integer sums wrap; bool counts
 * as 0 and 1. */
#include "ops/op/elementwise.h"

#include <math.h>
#include <string.h>

OP_VECTOR_FILE

#define CHUNK 4096
#define LINES 32
#define TASK_ELEMENTS 32768
#define SHORT_ROW                                                                                  \
    40 /* up to here a kernel costs more than the loop (measured: 125 ns a call, 1 to 3 ns an      \
          element) */

enum reduction { SUM, MEAN, L1, SUM_SQUARE, L2, LOG_SUM, PROD, MAX, MIN, LOG_SUM_EXP };
/* What is accumulated: a reduction without what is done to the total. */
enum step { ADD, ADD_ABS, ADD_SQUARE, MULTIPLY, LARGEST, SMALLEST, ADD_EXP };

static const enum step step_of[] = {
    [SUM] = ADD,       [MEAN] = ADD,
    [L1] = ADD_ABS,    [SUM_SQUARE] = ADD_SQUARE,
    [L2] = ADD_SQUARE, [LOG_SUM] = ADD,
    [PROD] = MULTIPLY, [MAX] = LARGEST,
    [MIN] = SMALLEST,  [LOG_SUM_EXP] = ADD_EXP,
};

struct op_reduce {
    struct op_desc desc;
    enum reduction kind;
    int axes_since; /* the opset that made axes an input */
};

struct dim_block {
    int64_t size, stride;
};

struct reduce_plan {
    int n_kept, n_reduced;
    struct dim_block kept[OP_RANK_MAX + 1], reduced[OP_RANK_MAX + 1]; /* outermost first */
    int64_t n_out, n_summed; /* outputs; elements summed into each */
    bool rows;               /* the innermost block is reduced */
};

/* --- axes and blocks ---------------------------------------------------------------------------
 */

/* The axes as bits; 0 where nothing is reduced. */
static enum op_status axes_of(const struct op_ctx *ctx, unsigned *mask) {
    const int rank = ctx->in[0]->rank;
    const struct op_tensor *axes = ctx->n_in > 1 ? ctx->in[1] : NULL;
    const int64_t n = axes ? op_tensor_count(axes) : 0;
    *mask = 0;
    if (axes && (axes->dtype != OP_I64 || axes->rank > 1))
        return op__fail(ctx, OP_BAD_TYPE, "axes are %s of rank %d, must be a vector of i64",
                        op_type_name(axes->dtype), axes->rank);
    if (n == 0) {
        if (!op__attr_int(ctx->node, "noop_with_empty_axes", 0)) *mask = (1u << rank) - 1;
        return OP_OK;
    }
    if (!axes->data) return OP_NEED_DATA;
    for (int64_t i = 0; i < n; i++) {
        int64_t value = ((const int64_t *)axes->data)[i];
        int axis = op__axis(value, rank);
        if (axis < 0)
            return op__fail(ctx, OP_BAD_VALUE, "axis %lld of an input of rank %d", (long long)value,
                            rank);
        *mask |= 1u << axis;
    }
    return OP_OK;
}

static void plan_of(struct reduce_plan *p, const struct op_tensor *x, unsigned mask) {
    int64_t stride[OP_RANK_MAX], step = 1;
    int last = -1; /* 0: the last block is a kept one, 1: a reduced one */
    memset(p, 0, sizeof *p);
    p->n_out = p->n_summed = 1;
    for (int i = x->rank - 1; i >= 0; i--) {
        stride[i] = step;
        step *= x->dims[i];
    }
    for (int i = 0; i < x->rank; i++) {
        const int reduced = mask >> i & 1;
        const int64_t size = x->dims[i];
        *(reduced ? &p->n_summed : &p->n_out) *= size;
        if (size == 1 && (reduced || last < 0)) continue;
        struct dim_block *list = reduced ? p->reduced : p->kept;
        int *n = reduced ? &p->n_reduced : &p->n_kept;
        if (last == reduced) {
            list[*n - 1].size *= size;
            list[*n - 1].stride = stride[i];
        } else {
            list[(*n)++] = (struct dim_block){size, stride[i]};
        }
        last = reduced;
    }
    if (p->n_reduced == 0) {
        p->reduced[p->n_reduced++] = (struct dim_block){1, 1};
        last = 1;
    }
    p->rows = last == 1;
}

/* Where the index-th combination of the first n blocks lies. */
static int64_t offset_of(const struct dim_block *list, int n, int64_t index) {
    int64_t offset = 0;
    for (int i = n - 1; i > 0; i--) {
        offset += index % list[i].size * list[i].stride;
        index /= list[i].size;
    }
    return n ? offset + index * list[0].stride : 0;
}

/* --- an element at a time ----------------------------------------------------------------------
 */

struct reduce_job {
    const struct reduce_plan *plan;
    enum reduction kind;
    enum op_type type;
    const struct k_vmath *math;
    const void *src;
    void *dst;
    int64_t per_task; /* outputs, or tiles of the column path */
};

#define F_ADD(a, b) ((a) + (b))
#define F_MUL(a, b) ((a) * (b))
#define F_ABS(a) fabs(a)
#define I_ADD(a, b) ((uint64_t)(a) + (uint64_t)(b))
#define I_MUL(a, b) ((uint64_t)(a) * (uint64_t)(b))
#define I_ABS(a) ((a) < 0 ? 0 - (uint64_t)(a) : (uint64_t)(a))
#define U_ABS(a) (a)
#define PLAIN(v) (v)
#define TRUTH(v) ((v) != 0)

/* acc gathers n elements of T, `stride` apart. */
#define GATHER(suffix, T, ACC, LOAD, PLUS, TIMES, ABSOLUTE, EXPONENTIAL)                           \
    static ACC gather_##suffix(enum step step, const T *x, int64_t n, int64_t stride, ACC acc,     \
                               ACC top) {                                                          \
        (void)top;                                                                                 \
        for (int64_t i = 0; i < n; i++) {                                                          \
            const ACC v = (ACC)LOAD(x[i * stride]);                                                \
            switch (step) {                                                                        \
            case ADD:                                                                              \
                acc = (ACC)PLUS(acc, v);                                                           \
                break;                                                                             \
            case ADD_ABS:                                                                          \
                acc = (ACC)PLUS(acc, ABSOLUTE(v));                                                 \
                break;                                                                             \
            case ADD_SQUARE:                                                                       \
                acc = (ACC)PLUS(acc, TIMES(v, v));                                                 \
                break;                                                                             \
            case MULTIPLY:                                                                         \
                acc = (ACC)TIMES(acc, v);                                                          \
                break;                                                                             \
            case LARGEST:                                                                          \
                acc = v > acc || v != v ? v : acc;                                                 \
                break;                                                                             \
            case SMALLEST:                                                                         \
                acc = v < acc || v != v ? v : acc;                                                 \
                break;                                                                             \
            case ADD_EXP:                                                                          \
                acc = (ACC)PLUS(acc, EXPONENTIAL);                                                 \
                break;                                                                             \
            }                                                                                      \
        }                                                                                          \
        return acc;                                                                                \
    }
GATHER(f32, float, double, PLAIN, F_ADD, F_MUL, F_ABS, exp(v - top))
GATHER(f64, double, double, PLAIN, F_ADD, F_MUL, F_ABS, exp(v - top))
GATHER(f16, uint16_t, double, op__f16_to_f32, F_ADD, F_MUL, F_ABS, exp(v - top))
GATHER(bf16, uint16_t, double, op__bf16_to_f32, F_ADD, F_MUL, F_ABS, exp(v - top))
GATHER(i32_wide, int32_t, double, PLAIN, F_ADD, F_MUL, F_ABS, exp(v - top))
GATHER(i64_wide, int64_t, double, PLAIN, F_ADD, F_MUL, F_ABS, exp(v - top))
GATHER(u32_wide, uint32_t, double, PLAIN, F_ADD, F_MUL, F_ABS, exp(v - top))
GATHER(u64_wide, uint64_t, double, PLAIN, F_ADD, F_MUL, F_ABS, exp(v - top))
GATHER(i8, int8_t, int64_t, PLAIN, I_ADD, I_MUL, I_ABS, 0)
GATHER(i32, int32_t, int64_t, PLAIN, I_ADD, I_MUL, I_ABS, 0)
GATHER(i64, int64_t, int64_t, PLAIN, I_ADD, I_MUL, I_ABS, 0)
GATHER(u8, uint8_t, uint64_t, PLAIN, I_ADD, I_MUL, U_ABS, 0)
GATHER(u32, uint32_t, uint64_t, PLAIN, I_ADD, I_MUL, U_ABS, 0)
GATHER(u64, uint64_t, uint64_t, PLAIN, I_ADD, I_MUL, U_ABS, 0)
GATHER(bool, uint8_t, uint64_t, TRUTH, I_ADD, I_MUL, U_ABS, 0)

/* X(suffix of gather, TYPE, T, ACC, lowest, highest) */
#define FLOAT_TYPES(X)                                                                             \
    X(f32, F32, float, double, -INFINITY, INFINITY)                                                \
    X(f64, F64, double, double, -INFINITY, INFINITY)                                               \
    X(f16, F16, uint16_t, double, -INFINITY, INFINITY)                                             \
    X(bf16, BF16, uint16_t, double, -INFINITY, INFINITY)
#define WIDE_TYPES(X)                                                                              \
    X(i32_wide, I32, int32_t, double, -INFINITY, INFINITY)                                         \
    X(i64_wide, I64, int64_t, double, -INFINITY, INFINITY)                                         \
    X(u32_wide, U32, uint32_t, double, -INFINITY, INFINITY)                                        \
    X(u64_wide, U64, uint64_t, double, -INFINITY, INFINITY)
#define INT_TYPES(X)                                                                               \
    X(i8, I8, int8_t, int64_t, INT8_MIN, INT8_MAX)                                                 \
    X(i32, I32, int32_t, int64_t, INT32_MIN, INT32_MAX)                                            \
    X(i64, I64, int64_t, int64_t, INT64_MIN, INT64_MAX)                                            \
    X(u8, U8, uint8_t, uint64_t, 0, UINT8_MAX)                                                     \
    X(u32, U32, uint32_t, uint64_t, 0, UINT32_MAX)                                                 \
    X(u64, U64, uint64_t, uint64_t, 0, UINT64_MAX)                                                 \
    X(bool, BOOL, uint8_t, uint64_t, 0, 1)

/* All that output `index` sums up, from what it starts with. */
#define TOTAL(suffix, TYPE, T, ACC, LOWEST, HIGHEST)                                               \
    static ACC over_##suffix(const struct reduce_plan *p, enum step step, const T *x, ACC top) {   \
        const struct dim_block inner = p->reduced[p->n_reduced - 1];                               \
        const int64_t outer = inner.size ? p->n_summed / inner.size : 0;                           \
        ACC acc = step == MULTIPLY   ? 1                                                           \
                  : step == LARGEST  ? (ACC)(LOWEST)                                               \
                  : step == SMALLEST ? (ACC)(HIGHEST)                                              \
                                     : 0;                                                          \
        for (int64_t i = 0; i < outer; i++)                                                        \
            acc = gather_##suffix(step, x + offset_of(p->reduced, p->n_reduced - 1, i),            \
                                  inner.size, inner.stride, acc, top);                             \
        return acc;                                                                                \
    }                                                                                              \
    static ACC total_##suffix(const struct reduce_job *job, int64_t index) {                       \
        const struct reduce_plan *p = job->plan;                                                   \
        const T *x = (const T *)job->src + offset_of(p->kept, p->n_kept, index);                   \
        const enum step step = step_of[job->kind];                                                 \
        return over_##suffix(p, step, x, step == ADD_EXP ? over_##suffix(p, LARGEST, x, 0) : 0);   \
    }
FLOAT_TYPES(TOTAL)
WIDE_TYPES(TOTAL)
INT_TYPES(TOTAL)

/* What becomes of a total; top is the largest element, of LOG_SUM_EXP only. */
static double finish_float(enum reduction kind, double total, double top, int64_t n) {
    switch (kind) {
    case MEAN:
        return total / (double)n;
    case L2:
        return sqrt(total);
    case LOG_SUM:
        return log(total);
    case LOG_SUM_EXP:
        return isinf(top) ? top : top + log(total);
    default:
        return total;
    }
}

static void store_float(enum op_type type, void *dst, int64_t index, double v) {
    float narrow = (float)v;
    if (type == OP_F32)
        ((float *)dst)[index] = narrow;
    else if (type == OP_F64)
        ((double *)dst)[index] = v;
    else
        op__narrow(type, (uint16_t *)dst + index, &narrow, 1);
}

static void one_float(const struct reduce_job *job, int64_t index) {
    const struct reduce_plan *p = job->plan;
    double total = 0, top = 0;
    switch (job->type) {
#define X(suffix, TYPE, T, ACC, LOWEST, HIGHEST)                                                   \
    case OP_##TYPE:                                                                                \
        total = total_##suffix(job, index);                                                        \
        if (job->kind == LOG_SUM_EXP)                                                              \
            top = over_##suffix(p, LARGEST,                                                        \
                                (const T *)job->src + offset_of(p->kept, p->n_kept, index), 0);    \
        break;
        FLOAT_TYPES(X)
        WIDE_TYPES(X)
#undef X
    default:
        return;
    }
    total = finish_float(job->kind, total, top, p->n_summed);
    if (op__is_float(job->type)) {
        store_float(job->type, job->dst, index, total);
        return;
    }
    int64_t cut = total >= 0x1p63 ? INT64_MAX : total >= -0x1p63 ? (int64_t)total : INT64_MIN;
    switch (job->type) {
    case OP_I32:
        ((int32_t *)job->dst)[index] = (int32_t)cut;
        break;
    case OP_U32:
        ((uint32_t *)job->dst)[index] = (uint32_t)cut;
        break;
    default:
        ((int64_t *)job->dst)[index] = cut;
    }
}

static void one_int(const struct reduce_job *job, int64_t index) {
    switch (job->type) {
#define X(suffix, TYPE, T, ACC, LOWEST, HIGHEST)                                                   \
    case OP_##TYPE: {                                                                              \
        ACC total = total_##suffix(job, index);                                                    \
        if (job->kind == MEAN) total = job->plan->n_summed ? total / (ACC)job->plan->n_summed : 0; \
        ((T *)job->dst)[index] = (T)total;                                                         \
        break;                                                                                     \
    }
        INT_TYPES(X)
#undef X
    default:
        break;
    }
}

static void plain_task(void *arg, int64_t task) {
    const struct reduce_job *job = arg;
    const int64_t first = task * job->per_task, left = job->plan->n_out - first;
    const bool by_float = op__is_float(job->type) || job->kind == L2 || job->kind == LOG_SUM ||
                          job->kind == LOG_SUM_EXP;
    for (int64_t i = first; i < first + (left < job->per_task ? left : job->per_task); i++)
        by_float ? one_float(job, i) : one_int(job, i);
}

/* --- f32, the innermost block reduced ----------------------------------------------------------
 */

static float add_mapped(const struct k_vmath *math, k_unary_fn *map, const float *x, int64_t n,
                        float shift) {
    float y[OP_BLOCK], sum = 0;
    for (int64_t i = 0; i < n; i += OP_BLOCK) {
        int64_t m = n - i < OP_BLOCK ? n - i : OP_BLOCK;
        const float *src = x + i;
        if (shift != 0) {
            math->unary[K_LINEAR](m, src, y, 1, -shift);
            src = y;
        }
        map(m, src, y, 0, 0);
        sum += math->sum(m, y);
    }
    return sum;
}

static double row_total(const struct k_vmath *math, enum step step, const float *x, int64_t n,
                        double acc, float top) {
    if (n <= SHORT_ROW && step != ADD_EXP) return gather_f32(step, x, n, 1, acc, 0);
    for (int64_t i = 0; i < n; i += CHUNK) {
        int64_t m = n - i < CHUNK ? n - i : CHUNK;
        float v;
        switch (step) {
        case ADD:
            acc += math->sum(m, x + i);
            break;
        case ADD_ABS:
            acc += add_mapped(math, math->unary[K_ABS], x + i, m, 0);
            break;
        case ADD_SQUARE:
            acc += math->sum_square(m, x + i, 0);
            break;
        case ADD_EXP:
            acc += add_mapped(math, math->unary[K_EXP], x + i, m, top);
            break;
        case LARGEST:
            v = math->max(m, x + i);
            acc = v > acc || v != v ? v : acc;
            break;
        case SMALLEST:
            v = math->min(m, x + i);
            acc = v < acc || v != v ? v : acc;
            break;
        case MULTIPLY:
            acc = gather_f32(MULTIPLY, x + i, m, 1, acc, 0);
            break;
        }
    }
    return acc;
}

static double rows_total(const struct reduce_job *job, enum step step, const float *x, float top) {
    const struct reduce_plan *p = job->plan;
    const int64_t n = p->reduced[p->n_reduced - 1].size, outer = n ? p->n_summed / n : 0;
    double acc = step == MULTIPLY   ? 1
                 : step == LARGEST  ? -INFINITY
                 : step == SMALLEST ? INFINITY
                                    : 0;
    for (int64_t i = 0; i < outer; i++)
        acc =
            row_total(job->math, step, x + offset_of(p->reduced, p->n_reduced - 1, i), n, acc, top);
    return acc;
}

static void rows_task(void *arg, int64_t task) {
    const struct reduce_job *job = arg;
    const struct reduce_plan *p = job->plan;
    const enum step step = step_of[job->kind];
    const int64_t first = task * job->per_task, left = p->n_out - first;
    for (int64_t i = first; i < first + (left < job->per_task ? left : job->per_task); i++) {
        const float *x = (const float *)job->src + offset_of(p->kept, p->n_kept, i);
        const double top = step == ADD_EXP ? rows_total(job, LARGEST, x, 0) : 0;
        const double total = isinf(top) ? 0 : rows_total(job, step, x, (float)top);
        ((float *)job->dst)[i] = (float)finish_float(job->kind, total, top, p->n_summed);
    }
}

/* --- f32, the innermost block kept -------------------------------------------------------------
 */

/* part[j] gathers x[j], j < n */
static void add_line(const struct k_vmath *math, enum step step, int64_t n, const float *x,
                     float *part, const float *top) {
    float y[OP_BLOCK];
    switch (step) {
    case ADD:
        math->binary[K_ADD](n, part, false, x, false, part);
        break;
    case ADD_SQUARE:
        math->fma(n, x, x, part);
        break;
    case LARGEST:
        math->binary[K_MAX](n, part, false, x, false, part);
        break;
    case SMALLEST:
        math->binary[K_MIN](n, part, false, x, false, part);
        break;
    case MULTIPLY:
        math->binary[K_MUL](n, part, false, x, false, part);
        break;
    case ADD_ABS:
        math->unary[K_ABS](n, x, y, 0, 0);
        math->binary[K_ADD](n, part, false, y, false, part);
        break;
    case ADD_EXP:
        math->binary[K_SUB](n, x, false, top, false, y);
        math->unary[K_EXP](n, y, y, 0, 0);
        math->binary[K_ADD](n, part, false, y, false, part);
        break;
    }
}

/* total[j] for n <= OP_BLOCK neighbouring outputs whose first input is x */
static void columns_total(const struct reduce_job *job, enum step step, const float *x, int64_t n,
                          double *total, const float *top) {
    const struct reduce_plan *p = job->plan;
    const double start = step == MULTIPLY   ? 1
                         : step == LARGEST  ? -INFINITY
                         : step == SMALLEST ? INFINITY
                                            : 0;
    for (int64_t j = 0; j < n; j++) total[j] = start;
    for (int64_t i = 0; i < p->n_summed; i += LINES) {
        float part[OP_BLOCK];
        for (int64_t j = 0; j < n; j++) part[j] = (float)start;
        for (int64_t k = i; k < i + LINES && k < p->n_summed; k++)
            add_line(job->math, step, n, x + offset_of(p->reduced, p->n_reduced, k), part, top);
        for (int64_t j = 0; j < n; j++) {
            switch (step) {
            case LARGEST:
                total[j] = part[j] > total[j] || part[j] != part[j] ? part[j] : total[j];
                break;
            case SMALLEST:
                total[j] = part[j] < total[j] || part[j] != part[j] ? part[j] : total[j];
                break;
            case MULTIPLY:
                total[j] *= part[j];
                break;
            default:
                total[j] += part[j];
            }
        }
    }
}

static void columns_task(void *arg, int64_t task) {
    const struct reduce_job *job = arg;
    const struct reduce_plan *p = job->plan;
    const enum step step = step_of[job->kind];
    const int64_t width = p->kept[p->n_kept - 1].size, tiles = (width + OP_BLOCK - 1) / OP_BLOCK;
    const int64_t outer = p->n_out / width;
    for (int64_t t = task * job->per_task; t < (task + 1) * job->per_task && t < tiles * outer;
         t++) {
        const int64_t column = t % tiles * OP_BLOCK,
                      n = width - column < OP_BLOCK ? width - column : OP_BLOCK;
        const float *x =
            (const float *)job->src + offset_of(p->kept, p->n_kept - 1, t / tiles) + column;
        float *y = (float *)job->dst + t / tiles * width + column, top[OP_BLOCK];
        double total[OP_BLOCK], largest[OP_BLOCK];
        for (int64_t j = 0; j < n; j++) largest[j] = 0;
        if (step == ADD_EXP) {
            columns_total(job, LARGEST, x, n, largest, NULL);
            for (int64_t j = 0; j < n; j++) top[j] = isinf(largest[j]) ? 0 : (float)largest[j];
        }
        columns_total(job, step, x, n, total, top);
        for (int64_t j = 0; j < n; j++)
            y[j] = (float)finish_float(job->kind, total[j], largest[j], p->n_summed);
    }
}

/* --- the operators -----------------------------------------------------------------------------
 */

static enum op_status reduce_upgrade(struct op_graph *g, struct op_node *n, int opset,
                                     struct op_error *err) {
    return opset < ((const struct op_reduce *)n->desc)->axes_since
               ? op__attr_to_input(g, n, "axes", 1, err)
               : OP_OK;
}

static bool reducible(enum reduction kind, enum op_type type) {
    if (op__is_float(type) || type == OP_I32 || type == OP_I64 || type == OP_U32 || type == OP_U64)
        return true;
    return (kind == MAX || kind == MIN) && (type == OP_I8 || type == OP_U8 || type == OP_BOOL);
}

static enum op_status reduce_infer(struct op_ctx *ctx) {
    const struct op_tensor *x = ctx->in[0];
    const bool keep = op__attr_int(ctx->node, "keepdims", 1) != 0;
    int64_t dims[OP_RANK_MAX];
    unsigned mask;
    int rank = 0;
    if (!x || x->kind != OP_KIND_TENSOR ||
        !reducible(((const struct op_reduce *)ctx->node->desc)->kind, x->dtype))
        return op__fail(ctx, OP_BAD_TYPE, "takes no input of elements %s",
                        x ? op_type_name(x->dtype) : "(absent)");
    enum op_status status = axes_of(ctx, &mask);
    if (status != OP_OK) return status;
    for (int i = 0; i < x->rank; i++) {
        if (!(mask >> i & 1))
            dims[rank++] = x->dims[i];
        else if (keep)
            dims[rank++] = 1;
    }
    op__set(ctx, 0, x->dtype, rank, dims);
    return OP_OK;
}

static void run_tasks(const struct op_ctx *ctx, struct reduce_job *job, int64_t n,
                      int64_t elements_each, void (*fn)(void *, int64_t)) {
    job->per_task =
        elements_each < TASK_ELEMENTS ? TASK_ELEMENTS / (elements_each ? elements_each : 1) : 1;
    const int64_t n_tasks = (n + job->per_task - 1) / job->per_task;
    if (n_tasks == 1 || op__n_threads(ctx) == 1)
        for (int64_t i = 0; i < n_tasks; i++) fn(job, i);
    else
        op__parallel(ctx, n_tasks, fn, job);
}

static enum op_status reduce(struct op_ctx *ctx, const struct k_vmath *math) {
    const struct op_tensor *x = ctx->in[0];
    struct reduce_plan plan;
    unsigned mask;
    if (!ctx->out[0]) return OP_OK;
    enum op_status status = axes_of(ctx, &mask);
    if (status != OP_OK) return status;
    const enum reduction kind = ((const struct op_reduce *)ctx->node->desc)->kind;
    const bool alters_one = kind == L1 || kind == L2 || kind == SUM_SQUARE || kind == LOG_SUM;
    if (mask == 0 && x->rank > 0 && !alters_one) { /* without axes each element is a set of its own */
        int64_t bytes = op_tensor_bytes(x);
        if (bytes > 0) memcpy(ctx->out[0]->data, x->data, (size_t)bytes);
        return OP_OK;
    }
    plan_of(&plan, x, mask);
    if (plan.n_out == 0) return OP_OK;
    struct reduce_job job = {&plan,    kind,
                             x->dtype, math,
                             x->data,  ctx->out[0]->data,
                             1};
    if (!math || x->dtype != OP_F32 || plan.n_summed == 0 || mask == 0) {
        run_tasks(ctx, &job, plan.n_out, plan.n_summed, plain_task);
    } else if (plan.rows) {
        run_tasks(ctx, &job, plan.n_out, plan.n_summed, rows_task);
    } else {
        const int64_t width = plan.kept[plan.n_kept - 1].size,
                      tile = width < OP_BLOCK ? width : OP_BLOCK;
        run_tasks(ctx, &job, (width + OP_BLOCK - 1) / OP_BLOCK * (plan.n_out / width),
                  plan.n_summed * tile, columns_task);
    }
    return OP_OK;
}

static enum op_status reduce_run(struct op_ctx *ctx) {
    return reduce(ctx, op__kern(ctx)->math);
}

static enum op_status reduce_ref(struct op_ctx *ctx) {
    return reduce(ctx, NULL);
}

#define ROW(id, NAME, KIND, AXES_SINCE)                                                            \
    static const struct op_reduce id##_row = {.desc = {.name = NAME,                               \
                                                       .domain = "",                               \
                                                       .since = 1,                                 \
                                                       .in_min = 1,                                \
                                                       .in_max = 2,                                \
                                                       .out_min = 1,                               \
                                                       .out_max = 1,                               \
                                                       .upgrade = reduce_upgrade,                  \
                                                       .infer = reduce_infer,                      \
                                                       .run = reduce_run,                          \
                                                       .ref = reduce_ref},                         \
                                              .kind = KIND,                                        \
                                              .axes_since = AXES_SINCE};                           \
    OP_REGISTER_ROW(id##_row)

ROW(reduce_sum, "ReduceSum", SUM, 13);
ROW(reduce_mean, "ReduceMean", MEAN, 18);
ROW(reduce_l1, "ReduceL1", L1, 18);
ROW(reduce_l2, "ReduceL2", L2, 18);
ROW(reduce_sum_square, "ReduceSumSquare", SUM_SQUARE, 18);
ROW(reduce_log_sum, "ReduceLogSum", LOG_SUM, 18);
ROW(reduce_log_sum_exp, "ReduceLogSumExp", LOG_SUM_EXP, 18);
ROW(reduce_prod, "ReduceProd", PROD, 18);
ROW(reduce_max, "ReduceMax", MAX, 18);
ROW(reduce_min, "ReduceMin", MIN, 18);
