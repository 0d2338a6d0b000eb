/* Strided copies: the one loop nest behind Transpose, Slice, Expand, Tile, Concat, Split, Pad,
 * DepthToSpace and Scan.
 *
 * A copy is described by dimensions with two strides each (move.h). Before anything is moved it is
 * simplified:
 *   1. dimensions of 1 go, the others are put in the order of the destination's memory; neighbours
 * that are one run in both tensors become one dimension;
 *   2. an innermost run of 2, 4, 8 or 16 bytes becomes one wider element (a transpose of [..., 2]
 * floats moves u64);
 *   3. the dimension along which the source is contiguous moves next to the innermost one.
 * Then an odometer runs over the outer dimensions and one of four two-dimensional kernels does the
 * rest: rows of memcpy, rows of one repeated element, a blocked transpose, or a plain strided loop.
 * Strides are in bytes from the start on, and elements are read unaligned, so that widening needs
 * no divisibility of the other strides.
 *
 * Large copies are split along the outermost dimension over the session's threads; each element is
 * written by one task, so that the split can not change the result. */
#include "ops/op/move.h"

#include <stdio.h>
#include <string.h>

#define MAX OP__MOVE_RANK
#define TASK_BYTES (256 * 1024) /* a quarter of a core's L2: worth handing to another thread */
#define NARROW 4                /* below it (three colours) a block is all edge: plain loop */
#define BLOCK_BYTES 64          /* of a transpose: the side of a block is one cache line */

typedef uint8_t e1;
typedef uint16_t e2 __attribute__((aligned(1), may_alias));
typedef uint32_t e4 __attribute__((aligned(1), may_alias));
typedef uint64_t e8 __attribute__((aligned(1), may_alias));
typedef uint64_t e16 __attribute__((vector_size(16), aligned(1), may_alias));
typedef uint32_t v4 __attribute__((vector_size(16)));
typedef uint32_t v4u __attribute__((vector_size(16), aligned(1), may_alias));

/* n0 rows of n1 elements; strides in bytes. */
struct plane {
    int64_t n0, n1, d0, d1, s0, s1;
};
typedef void plane_fn(char *dst, const char *src, const struct plane *p);

static void copy_rows(char *dst, const char *src, const struct plane *p) { /* n1 counts bytes */
    for (int64_t i = 0; i < p->n0; i++) memcpy(dst + i * p->d0, src + i * p->s0, (size_t)p->n1);
}

/* 4 by 4 elements of 4 bytes in registers: four rows of the source become four columns. */
static inline void block_e4(char *dst, int64_t d0, const char *src, int64_t s1) {
    v4 a = *(const v4u *)src, b = *(const v4u *)(src + s1);
    v4 c = *(const v4u *)(src + 2 * s1), d = *(const v4u *)(src + 3 * s1);
    v4 ab_lo = {a[0], b[0], a[1], b[1]}, ab_hi = {a[2], b[2], a[3], b[3]};
    v4 cd_lo = {c[0], d[0], c[1], d[1]}, cd_hi = {c[2], d[2], c[3], d[3]};
    *(v4u *)dst = (v4){ab_lo[0], ab_lo[1], cd_lo[0], cd_lo[1]};
    *(v4u *)(dst + d0) = (v4){ab_lo[2], ab_lo[3], cd_lo[2], cd_lo[3]};
    *(v4u *)(dst + 2 * d0) = (v4){ab_hi[0], ab_hi[1], cd_hi[0], cd_hi[1]};
    *(v4u *)(dst + 3 * d0) = (v4){ab_hi[2], ab_hi[3], cd_hi[2], cd_hi[3]};
}

typedef uint8_t v16b __attribute__((vector_size(16)));
typedef uint16_t v8h __attribute__((vector_size(16)));
typedef uint64_t v2d __attribute__((vector_size(16)));

static inline v8h low_h(v8h a, v8h b) {
    return __builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11);
}
static inline v8h high_h(v8h a, v8h b) {
    return __builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15);
}
static inline v8h low_w(v8h a, v8h b) {
    return __builtin_shufflevector(a, b, 0, 1, 8, 9, 2, 3, 10, 11);
}
static inline v8h high_w(v8h a, v8h b) {
    return __builtin_shufflevector(a, b, 4, 5, 12, 13, 6, 7, 14, 15);
}
/* Two columns: the low halves, then the high ones. */
static inline void store_2x8(char *dst, int64_t d0, v8h a, v8h b) {
    v2d x = (v2d)a, y = (v2d)b;
    *(v4u *)dst = (v4)(v2d){x[0], y[0]};
    *(v4u *)(dst + d0) = (v4)(v2d){x[1], y[1]};
}

/* 8 by 8 elements of 2 bytes: pairs of rows are woven into each other by 2, 4, then 8 bytes. */
static inline void block_e2(char *dst, int64_t d0, const char *src, int64_t s1) {
    v8h r[8], a[8], b[8];
    for (int i = 0; i < 8; i++) r[i] = (v8h) * (const v4u *)(src + i * s1);
    for (int i = 0; i < 4; i++) {
        a[2 * i] = low_h(r[2 * i], r[2 * i + 1]);
        a[2 * i + 1] = high_h(r[2 * i], r[2 * i + 1]);
    }
    for (int k = 0; k < 2; k++) { /* the upper and the lower four rows */
        b[4 * k] = low_w(a[4 * k], a[4 * k + 2]);
        b[4 * k + 1] = high_w(a[4 * k], a[4 * k + 2]);
        b[4 * k + 2] = low_w(a[4 * k + 1], a[4 * k + 3]);
        b[4 * k + 3] = high_w(a[4 * k + 1], a[4 * k + 3]);
    }
    for (int i = 0; i < 4; i++) store_2x8(dst + 2 * i * d0, d0, b[i], b[4 + i]);
}

/* 8 by 8 bytes, two rows a register from the first weaving on. */
static inline void block_e1(char *dst, int64_t d0, const char *src, int64_t s1) {
    v8h a[4];
    for (int i = 0; i < 4; i++) {
        v16b x = (v16b)(v2d){*(const e8 *)(src + 2 * i * s1), 0},
             y = (v16b)(v2d){*(const e8 *)(src + (2 * i + 1) * s1), 0};
        a[i] = (v8h)__builtin_shufflevector(x, y, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22,
                                            7, 23);
    }
    v8h lo[2] = {low_h(a[0], a[1]), low_h(a[2], a[3])},
        hi[2] = {high_h(a[0], a[1]), high_h(a[2], a[3])};
    v2d c[4] = {(v2d)low_w(lo[0], lo[1]), (v2d)high_w(lo[0], lo[1]), (v2d)low_w(hi[0], hi[1]),
                (v2d)high_w(hi[0], hi[1])};
    for (int i = 0; i < 4; i++) {
        *(e8 *)(dst + 2 * i * d0) = c[i][0];
        *(e8 *)(dst + (2 * i + 1) * d0) = c[i][1];
    }
}

/* Blocks of a cache line's width, of squares of side S in registers, of single elements at the
 * edges. d1 = s0 = the size. */
#define TRANSPOSE_SQUARES(E, S, SQUARE)                                                            \
    static void edge_##E(char *dst, const char *src, const struct plane *p, int64_t i0,            \
                         int64_t i_end, int64_t j0, int64_t j_end) {                               \
        const int64_t w = sizeof(E);                                                               \
        for (int64_t i = i0; i < i_end; i++)                                                       \
            for (int64_t j = j0; j < j_end; j++)                                                   \
                *(E *)(dst + i * p->d0 + j * w) = *(const E *)(src + i * w + j * p->s1);           \
    }                                                                                              \
    static void transpose_##E(char *dst, const char *src, const struct plane *p) {                 \
        const int64_t w = sizeof(E), side = BLOCK_BYTES / w;                                       \
        for (int64_t b0 = 0; b0 < p->n0; b0 += side) {                                             \
            int64_t end0 = b0 + side < p->n0 ? b0 + side : p->n0, full0 = end0 - (end0 - b0) % S;  \
            for (int64_t b1 = 0; b1 < p->n1; b1 += side) {                                         \
                int64_t end1 = b1 + side < p->n1 ? b1 + side : p->n1,                              \
                        full1 = end1 - (end1 - b1) % S;                                            \
                for (int64_t i = b0; i < full0; i += S)                                            \
                    for (int64_t j = b1; j < full1; j += S)                                        \
                        SQUARE(dst + i * p->d0 + j * w, p->d0, src + i * w + j * p->s1, p->s1);    \
                edge_##E(dst, src, p, b0, full0, full1, end1);                                     \
                edge_##E(dst, src, p, full0, end0, b1, end1);                                      \
            }                                                                                      \
        }                                                                                          \
    }
TRANSPOSE_SQUARES(e1, 8, block_e1)
TRANSPOSE_SQUARES(e2, 8, block_e2)
TRANSPOSE_SQUARES(e4, 4, block_e4)

#define STRIDED(E)                                                                                 \
    static void strided_##E(char *dst, const char *src, const struct plane *p) {                   \
        const struct plane q = *p; /* what is stored may alias *p: keep it in registers */         \
        for (int64_t i = 0; i < q.n0; i++) {                                                       \
            char *d = dst + i * q.d0;                                                              \
            const char *s = src + i * q.s0;                                                        \
            for (int64_t j = 0; j < q.n1; j++, d += q.d1, s += q.s1) *(E *)d = *(const E *)s;      \
        }                                                                                          \
    }                                                                                              \
    static void repeat_##E(char *dst, const char *src, const struct plane *p) {                    \
        for (int64_t i = 0; i < p->n0; i++)                                                        \
            op__fill(dst + i * p->d0, p->n1, src + i * p->s0, sizeof(E));                          \
    }
#define TRANSPOSE(E)                                                                               \
    static void transpose_##E(char *dst, const char *src, const struct plane *p) {                 \
        const int64_t side = BLOCK_BYTES / (int64_t)sizeof(E), w = sizeof(E);                      \
        for (int64_t b0 = 0; b0 < p->n0; b0 += side) {                                             \
            int64_t end0 = b0 + side < p->n0 ? b0 + side : p->n0;                                  \
            for (int64_t b1 = 0; b1 < p->n1; b1 += side) {                                         \
                int64_t end1 = b1 + side < p->n1 ? b1 + side : p->n1;                              \
                for (int64_t i = b0; i < end0; i++) {                                              \
                    char *d = dst + i * p->d0;                                                     \
                    const char *s = src + i * w;                                                   \
                    for (int64_t j = b1; j < end1; j++)                                            \
                        *(E *)(d + j * w) = *(const E *)(s + j * p->s1);                           \
                }                                                                                  \
            }                                                                                      \
        }                                                                                          \
    }
STRIDED(e1)
STRIDED(e2)
STRIDED(e4)
STRIDED(e8)
STRIDED(e16)
TRANSPOSE(e8)
TRANSPOSE(e16)

static int size_row(size_t elem) {
    return elem == 1 ? 0 : elem == 2 ? 1 : elem == 4 ? 2 : elem == 8 ? 3 : 4;
}
static plane_fn *const strided[] = {strided_e1, strided_e2, strided_e4, strided_e8, strided_e16};
static plane_fn *const repeated[] = {repeat_e1, repeat_e2, repeat_e4, repeat_e8, repeat_e16};
static plane_fn *const transposed[] = {transpose_e1, transpose_e2, transpose_e4, transpose_e8,
                                       transpose_e16};

/* A simplified move: at least two dimensions, the last two of which are the plane's. */
struct nest {
    struct op__move m; /* strides in bytes */
    size_t elem;
    plane_fn *fn;
    char *dst;
    const char *src;
    int64_t n_tasks;
};

static void drop_dim(struct op__move *m, int at) {
    for (int i = at; i + 1 < m->rank; i++) {
        m->dims[i] = m->dims[i + 1];
        m->dst[i] = m->dst[i + 1];
        m->src[i] = m->src[i + 1];
    }
    m->rank--;
}

static void insert_dim(struct op__move *m, int at, int64_t n, int64_t dst, int64_t src) {
    for (int i = m->rank; i > at; i--) {
        m->dims[i] = m->dims[i - 1];
        m->dst[i] = m->dst[i - 1];
        m->src[i] = m->src[i - 1];
    }
    m->dims[at] = n;
    m->dst[at] = dst;
    m->src[at] = src;
    m->rank++;
}

static void merge_dims(struct op__move *m) {
    for (int i = m->rank - 1; i >= 0; i--)
        if (m->dims[i] == 1) drop_dim(m, i);
    for (int i = 1; i < m->rank;
         i++) { /* insertion sort: SpaceToDepth is the one that comes out of order */
        int64_t dims = m->dims[i], dst = m->dst[i], src = m->src[i];
        int at = i;
        while (at > 0 && m->dst[at - 1] < dst) at--;
        if (at == i) continue;
        drop_dim(m, i);
        insert_dim(m, at, dims, dst, src);
    }
    for (int i = m->rank - 2; i >= 0; i--) {
        if (m->dst[i] != m->dst[i + 1] * m->dims[i + 1] ||
            m->src[i] != m->src[i + 1] * m->dims[i + 1])
            continue;
        m->dims[i] *= m->dims[i + 1];
        m->dst[i] = m->dst[i + 1];
        m->src[i] = m->src[i + 1];
        drop_dim(m, i + 1);
    }
}

/* An innermost run of a power of two up to 16 bytes becomes the element. */
static void widen_element(struct op__move *m, size_t *elem) {
    int last = m->rank - 1;
    if (m->rank < 2 || m->dst[last] != (int64_t)*elem || m->src[last] != (int64_t)*elem ||
        m->dims[last] > 16)
        return;
    size_t bytes = (size_t)m->dims[last] * *elem;
    if (bytes > 16 || (bytes & (bytes - 1))) return;
    *elem = bytes;
    m->rank--;
}

static void choose_kernel(struct nest *n) {
    struct op__move *m = &n->m;
    int64_t w = (int64_t)n->elem;
    int row = size_row(n->elem);
    while (m->rank < 2) insert_dim(m, 0, 1, w, w); /* a scalar or a line is a plane of one row */
    int last = m->rank - 1;
    n->fn = strided[row];
    if (m->dst[last] != w && m->dims[last] > 1) return;
    if (m->src[last] == w || m->dims[last] == 1) {
        n->fn = copy_rows;
        m->dims[last] *= w;
        m->dst[last] = m->src[last] = 1;
        return;
    }
    if (m->src[last] == 0) {
        n->fn = repeated[row];
        return;
    }
    for (int i = last - 1; i >= 0; i--) {
        if (m->src[i] != w) continue;
        int64_t dims = m->dims[i], dst = m->dst[i];
        drop_dim(m, i);
        insert_dim(m, last - 1, dims, dst, w);
        if (dims >= NARROW && m->dims[last] >= NARROW) n->fn = transposed[row];
        return;
    }
}

static void run_range(const struct nest *n, int64_t first, int64_t end) { /* of dimension 0 */
    const struct op__move *m = &n->m;
    int r = m->rank, n_outer = r - 2;
    struct plane p = {m->dims[r - 2], m->dims[r - 1], m->dst[r - 2],
                      m->dst[r - 1],  m->src[r - 2],  m->src[r - 1]};
    char *dst = n->dst + first * m->dst[0];
    const char *src = n->src + first * m->src[0];
    if (n_outer == 0) {
        p.n0 = end - first;
        n->fn(dst, src, &p);
        return;
    }
    int64_t at[MAX] = {0}, dims[MAX];
    memcpy(dims, m->dims, sizeof dims);
    dims[0] = end - first;
    for (;;) {
        n->fn(dst, src, &p);
        int k = n_outer - 1;
        for (; k >= 0; k--) {
            dst += m->dst[k];
            src += m->src[k];
            if (++at[k] < dims[k]) break;
            dst -= m->dst[k] * dims[k];
            src -= m->src[k] * dims[k];
            at[k] = 0;
        }
        if (k < 0) return;
    }
}

static void run_task(void *arg, int64_t task) {
    const struct nest *n = arg;
    int64_t rows = n->m.dims[0], base = rows / n->n_tasks, extra = rows % n->n_tasks;
    int64_t first = task * base + (task < extra ? task : extra);
    run_range(n, first, first + base + (task < extra));
}

void op__move_run(const struct op_ctx *ctx, const struct op__move *move, void *dst, const void *src,
                  size_t elem_bytes) {
    struct nest n = {.m = *move, .elem = elem_bytes, .dst = dst, .src = src, .n_tasks = 1};
    int64_t bytes = (int64_t)elem_bytes;
    for (int i = 0; i < n.m.rank; i++) {
        if (n.m.dims[i] <= 0) return;
        bytes *= n.m.dims[i]; /* the bytes of a tensor that exists: no overflow */
        n.m.dst[i] *= (int64_t)elem_bytes;
        n.m.src[i] *= (int64_t)elem_bytes;
    }
    merge_dims(&n.m);
    widen_element(&n.m, &n.elem);
    choose_kernel(&n);
    if (n.fn == copy_rows && n.m.rank == 2 && n.m.dims[0] == 1 &&
        n.m.dims[1] > TASK_BYTES) { /* one long run, cut into rows */
        int64_t rows = n.m.dims[1] / TASK_BYTES, rest = n.m.dims[1] % TASK_BYTES;
        memcpy(n.dst + rows * TASK_BYTES, n.src + rows * TASK_BYTES, (size_t)rest);
        n.m.dims[0] = rows;
        n.m.dims[1] = n.m.dst[0] = n.m.src[0] = TASK_BYTES;
    }
    int64_t n_tasks = bytes / TASK_BYTES;
    if (n_tasks > n.m.dims[0]) n_tasks = n.m.dims[0];
    if (!ctx || n_tasks < 2 || op__n_threads(ctx) < 2) {
        run_range(&n, 0, n.m.dims[0]);
        return;
    }
    n.n_tasks = n_tasks;
    op__parallel(ctx, n_tasks, run_task, &n);
}

void op__fill(void *dst, int64_t n, const void *value, size_t elem_bytes) {
    if (n <= 0) return;
    const uint8_t *v = value;
    bool bytes_equal = true;
    for (size_t i = 1; i < elem_bytes; i++) bytes_equal &= v[i] == v[0];
    size_t total = (size_t)n * elem_bytes;
    if (bytes_equal) {
        memset(dst, v[0], total);
        return;
    }
    memcpy(dst, value, elem_bytes);
    for (size_t done = elem_bytes;
         done < total;) { /* doubling up to a page, then page by page: the source stays in L1 */
        size_t step = done < 4096 ? done : 4096;
        if (step > total - done) step = total - done;
        memcpy((char *)dst + done, dst, step);
        done += step;
    }
}

void op__strides(int rank, const int64_t *dims, int64_t *strides) {
    int64_t s = 1;
    for (int i = rank - 1; i >= 0; i--) {
        strides[i] = s;
        s *= dims[i] > 0 ? dims[i] : 1;
    }
}

void op__zero_elem(enum op_type type, void *dst) {
    static const struct op_string empty = {"", 0};
    memset(dst, 0, op_type_size(type));
    if (type == OP_STRING) memcpy(dst, &empty, sizeof empty);
}

/* --- inputs --------------------------------------------------------------------------------------
 */

enum op_status op__need_tensors(const struct op_ctx *ctx, int n_required) {
    for (int i = 0; i < n_required; i++)
        if (!op__in(ctx, i)) return op__fail(ctx, OP_BAD_MODEL, "input %d is missing", i);
    for (int i = 0; i < ctx->n_in; i++) {
        const struct op_tensor *t = ctx->in[i];
        if (!t) continue;
        if (t->kind != OP_KIND_TENSOR)
            return op__fail(ctx, OP_BAD_TYPE, "input %d is %s, a tensor is expected", i,
                            t->kind == OP_KIND_SEQUENCE ? "a sequence" : "an optional");
        if (op_type_size(t->dtype) == 0)
            return op__fail(ctx, OP_BAD_TYPE, "input %d has no element type", i);
    }
    return OP_OK;
}

enum op_status op__read_ints(const struct op_ctx *ctx, int i, const char *what, int max,
                             int64_t *dst, int *n) {
    const struct op_tensor *t = op__in(ctx, i);
    char text[OP__TENSOR_TEXT];
    *n = -1;
    if (!t) return OP_OK;
    if (t->kind != OP_KIND_TENSOR || (t->dtype != OP_I64 && t->dtype != OP_I32))
        return op__fail(ctx, OP_BAD_TYPE, "%s is %s, i64 or i32 is expected", what,
                        op__text(t, text));
    if (t->rank > 1)
        return op__fail(ctx, OP_BAD_SHAPE, "%s is %s, a vector is expected", what,
                        op__text(t, text));
    int64_t count = op_tensor_count(t);
    if (count < 0 || count > max)
        return op__fail(ctx, OP_LIMIT, "%s has %lld values, at most %d are supported", what,
                        (long long)count, max);
    if (!op__known(t)) return OP_NEED_DATA;
    for (int64_t k = 0; k < count; k++) dst[k] = op__int_at(t, k);
    *n = (int)count;
    return OP_OK;
}

enum op_status op__read_axes(const struct op_ctx *ctx, int i, int rank, int *axes, int *n) {
    int64_t v[OP_RANK_MAX];
    enum op_status st = op__read_ints(ctx, i, "axes", OP_RANK_MAX, v, n);
    unsigned seen = 0;
    for (int k = 0; st == OP_OK && k < *n; k++) {
        axes[k] = op__axis(v[k], rank);
        if (axes[k] < 0)
            return op__fail(ctx, OP_BAD_VALUE, "axis %lld is out of range for rank %d",
                            (long long)v[k], rank);
        if (seen >> axes[k] & 1)
            return op__fail(ctx, OP_BAD_VALUE, "axis %lld is given twice", (long long)v[k]);
        seen |= 1u << axes[k];
    }
    return st;
}

enum op_status op__axis_attr(const struct op_ctx *ctx, const char *name, int64_t dflt, int rank,
                             int *axis) {
    int64_t v = op__attr_int(ctx->node, name, dflt);
    *axis = op__axis(v, rank);
    if (*axis < 0)
        return op__fail(ctx, OP_BAD_VALUE, "%s %lld is out of range for rank %d", name,
                        (long long)v, rank);
    return OP_OK;
}

enum op_status op__check_size(const struct op_ctx *ctx, enum op_type dtype, int rank,
                              const int64_t *dims) {
    struct op_tensor t = {.dtype = dtype, .rank = rank};
    char text[OP__DIMS_TEXT];
    if (rank > OP_RANK_MAX)
        return op__fail(ctx, OP_LIMIT, "the output would have rank %d, at most %d is supported",
                        rank, OP_RANK_MAX);
    memcpy(t.dims, dims, (size_t)rank * sizeof *dims);
    if (op_tensor_count(&t) < 0 || op_tensor_bytes(&t) < 0)
        return op__fail(ctx, OP_LIMIT, "the output would be %s%s: too large", op_type_name(dtype),
                        op__dims_text(rank, dims, text));
    return OP_OK;
}

char *op__dims_text(int rank, const int64_t *dims, char *dst) {
    char *p = dst;
    *p++ = '[';
    for (int i = 0; i < rank; i++) p += sprintf(p, "%s%lld", i ? "," : "", (long long)dims[i]);
    strcpy(p, "]");
    return dst;
}
