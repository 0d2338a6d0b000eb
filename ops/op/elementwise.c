/* elementwise.c: the machinery under the element-by-element operators.
 *
 * A broadcast is a walk over the output in row-major order. Dimensions of size 1 disappear and
 * neighbours merge where every input steps through both as through one, so nearly every walk of
 * real models has one or two dimensions: both inputs contiguous, a scalar against a tensor, a row
 * against a matrix or a column against a matrix. What is left as the innermost dimension is
 * contiguous in the output, and in an input contiguous or repeated: the loops know only these. The
 * walk cuts the output into pieces of OP_PIECE elements, independent of one another, so that
 * threads may take them in any order.
 *
 * f16 and bf16 are widened into a block on the stack, computed in f32 and narrowed: no loop exists
 * twice. */
#include "ops/op/elementwise.h"

#include <string.h>

OP_VECTOR_FILE

#define OP_PIECE 16384

/* --- walks -------------------------------------------------------------------------------------
 */

/* Strides of t against an output of rank dimensions: 0 where it is repeated. */
static void strides_of(const struct op_tensor *t, int rank, int64_t *stride) {
    int64_t step = 1;
    for (int i = 0; i < rank; i++) stride[i] = 0;
    for (int i = t->rank - 1; i >= 0; i--) {
        stride[rank - t->rank + i] = t->dims[i] == 1 ? 0 : step;
        step *= t->dims[i];
    }
}

static bool mergeable(const struct op_walk *w, int outer, const int64_t (*stride)[OP_RANK_MAX],
                      int dim, int64_t size) {
    for (int k = 0; k < w->n_in; k++)
        if (w->stride[k][outer] != stride[k][dim] * size) return false;
    return true;
}

void op__walk_plan(struct op_walk *w, const struct op_tensor *out,
                   const struct op_tensor *const *in, int n_in) {
    int64_t stride[OP_WALK_IN_MAX][OP_RANK_MAX];
    w->n_in = n_in;
    w->rank = 0;
    w->total = op_tensor_count(out);
    for (int k = 0; k < n_in; k++) strides_of(in[k], out->rank, stride[k]);
    for (int i = 0; i < out->rank; i++) {
        if (out->dims[i] == 1) continue;
        if (w->rank > 0 && mergeable(w, w->rank - 1, stride, i, out->dims[i])) {
            w->dims[w->rank - 1] *= out->dims[i];
        } else {
            w->dims[w->rank++] = out->dims[i];
        }
        for (int k = 0; k < n_in; k++) w->stride[k][w->rank - 1] = stride[k][i];
    }
    if (w->rank == 0) {
        w->rank = 1;
        w->dims[0] = 1;
        for (int k = 0; k < n_in; k++) w->stride[k][0] = 1;
    }
}

static void walk_range(const struct op_walk *w, int64_t first, int64_t last, op_walk_fn fn,
                       void *arg) {
    const int inner = w->rank - 1;
    int64_t at[OP_RANK_MAX], base[OP_WALK_IN_MAX] = {0}, index[OP_WALK_IN_MAX];
    int64_t pos = first % w->dims[inner], rest = first / w->dims[inner];
    for (int i = inner - 1; i >= 0; i--) {
        at[i] = rest % w->dims[i];
        rest /= w->dims[i];
        for (int k = 0; k < w->n_in; k++) base[k] += at[i] * w->stride[k][i];
    }
    while (first < last) {
        int64_t n = w->dims[inner] - pos;
        if (n > last - first) n = last - first;
        for (int k = 0; k < w->n_in; k++) index[k] = base[k] + pos * w->stride[k][inner];
        fn(arg, n, first, index);
        first += n;
        pos = 0;
        for (int i = inner - 1; i >= 0; i--) {
            for (int k = 0; k < w->n_in; k++) base[k] += w->stride[k][i];
            if (++at[i] < w->dims[i]) break;
            for (int k = 0; k < w->n_in; k++) base[k] -= w->dims[i] * w->stride[k][i];
            at[i] = 0;
        }
    }
}

struct walk_job {
    const struct op_walk *w;
    op_walk_fn fn;
    void *arg;
};

static void walk_piece(void *arg, int64_t first, int64_t n) {
    const struct walk_job *job = arg;
    walk_range(job->w, first, first + n, job->fn, job->arg);
}

void op__walk(const struct op_ctx *ctx, const struct op_walk *w, op_walk_fn fn, void *arg) {
    struct walk_job job = {w, fn, arg};
    op__pieces(ctx, w->total, walk_piece, &job);
}

struct pieces_job {
    int64_t total;
    void (*fn)(void *arg, int64_t first, int64_t n);
    void *arg;
};

static void pieces_task(void *arg, int64_t task) {
    const struct pieces_job *job = arg;
    int64_t first = task * OP_PIECE;
    job->fn(job->arg, first, job->total - first < OP_PIECE ? job->total - first : OP_PIECE);
}

void op__pieces(const struct op_ctx *ctx, int64_t total,
                void (*fn)(void *arg, int64_t first, int64_t n), void *arg) {
    struct pieces_job job = {total, fn, arg};
    if (total <= 0) return;
    if (total <= 2 * OP_PIECE || op__n_threads(ctx) == 1) {
        fn(arg, 0, total);
    } else {
        op__parallel(ctx, (total + OP_PIECE - 1) / OP_PIECE, pieces_task, &job);
    }
}

/* --- half precision ----------------------------------------------------------------------------
 */

/* Branch-free, so that they vectorise; the bits are those of op__f16_to_f32 and op__f32_to_f16, but
 * for a NaN's payload. */

static inline uint32_t bits_of(float f) {
    union {
        float f;
        uint32_t u;
    } v = {.f = f};
    return v.u;
}

static inline float float_of(uint32_t u) {
    union {
        uint32_t u;
        float f;
    } v = {.u = u};
    return v.f;
}

void op__widen(enum op_type type, float *dst, const void *src, int64_t n) {
    const uint16_t *s = src;
    if (type == OP_BF16) {
        for (int64_t i = 0; i < n; i++) dst[i] = op__bf16_to_f32(s[i]);
        return;
    }
    for (int64_t i = 0; i < n; i++) {
        const uint32_t magnitude = (uint32_t)(s[i] & 0x7fff) << 13, sign = (uint32_t)(s[i] & 0x8000)
                                                                           << 16;
        const uint32_t finite =
            bits_of(float_of(magnitude) * 0x1p112f); /* moves the exponent, subnormals too */
        dst[i] = float_of(finite | sign | (magnitude >= 0x7c00u << 13 ? 0x7f800000u : 0));
    }
}

void op__narrow(enum op_type type, void *dst, const float *src, int64_t n) {
    uint16_t *d = dst;
    if (type == OP_BF16) {
        for (int64_t i = 0; i < n; i++) {
            const uint32_t u = bits_of(src[i]), rounded = (u + 0x7fff + (u >> 16 & 1)) >> 16;
            d[i] = (uint16_t)((u & 0x7fffffff) > 0x7f800000 ? u >> 16 | 0x40 : rounded);
        }
        return;
    }
    for (int64_t i = 0; i < n; i++) {
        /* signed: SSE2 compares no others */
        const int32_t u = (int32_t)bits_of(src[i]), sign = u >> 16 & 0x8000,
                      magnitude = u & 0x7fffffff;
        /* Subnormals: the addition of 0.5 rounds to multiples of 2^-24. Others: the exponent is
         * moved, half a unit added. */
        const int32_t small = (int32_t)bits_of(float_of((uint32_t)magnitude) + 0.5f) - 0x3f000000;
        const int32_t normal = (magnitude - 0x38000000 + 0xfff + (magnitude >> 13 & 1)) >> 13;
        const int32_t special = magnitude > 0x7f800000 ? 0x7e00 : 0x7c00;
        const int32_t is_small = -(magnitude < 0x38800000), is_special = -(magnitude >= 0x47800000);
        d[i] = (uint16_t)(sign | (small & is_small) | (special & is_special) |
                          (normal & ~is_small & ~is_special));
    }
}

/* --- one input ---------------------------------------------------------------------------------
 */

static const struct op_unary *unary_of(const struct op_ctx *ctx) {
    return (const struct op_unary *)ctx->node->desc;
}

static op_unary_fn unary_fn(const struct op_unary *row, enum op_type type) {
    return row->fn[op__is_half(type) && !row->fn[type] ? OP_F32 : type];
}

enum op_status op__unary_infer(struct op_ctx *ctx) {
    const struct op_unary *row = unary_of(ctx);
    const struct op_tensor *x = ctx->in[0];
    if (!x || x->kind != OP_KIND_TENSOR || !unary_fn(row, x->dtype))
        return op__fail(ctx, OP_BAD_TYPE, "takes no input of elements %s",
                        x ? op_type_name(x->dtype) : "(absent)");
    op__set(ctx, 0, row->out ? row->out : x->dtype, x->rank, x->dims);
    return OP_OK;
}

struct unary_job {
    op_unary_fn fn;
    k_unary_fn *kern; /* NULL, or instead of fn */
    const float *param;
    enum op_type type, out_type;
    size_t size, out_size;
    const char *src;
    char *dst;
};

static void unary_loop(const struct unary_job *job, void *dst, const void *src, int64_t n) {
    if (job->kern)
        job->kern(n, src, dst, job->param[0], job->param[1]);
    else
        job->fn(dst, src, n, job->param);
}

static void unary_piece(void *arg, int64_t first, int64_t n) {
    const struct unary_job *job = arg;
    const char *src = job->src + (size_t)first * job->size;
    char *dst = job->dst + (size_t)first * job->out_size;
    if (!op__is_half(job->type)) {
        unary_loop(job, dst, src, n);
        return;
    }
    for (int64_t i = 0; i < n; i += OP_BLOCK) {
        float x[OP_BLOCK], y[OP_BLOCK];
        int64_t m = n - i < OP_BLOCK ? n - i : OP_BLOCK;
        op__widen(job->type, x, src + i * 2, m);
        if (op__is_half(job->out_type)) {
            unary_loop(job, y, x, m);
            op__narrow(job->out_type, dst + i * 2, y, m);
        } else {
            unary_loop(job, dst + (size_t)i * job->out_size, x, m);
        }
    }
}

void op__unary_apply(const struct op_ctx *ctx, op_unary_fn fn, k_unary_fn *kern, const float *param,
                     struct op_tensor *dst, const struct op_tensor *src) {
    static const float none[OP_PARAM_MAX];
    struct unary_job job = {
        .fn = fn,
        .kern = src->dtype == OP_F32 || op__is_half(src->dtype) ? kern : NULL,
        .param = param ? param : none,
        .type = src->dtype,
        .out_type = dst->dtype,
        .size = op_type_size(src->dtype),
        .out_size = op_type_size(dst->dtype),
        .src = src->data,
        .dst = dst->data,
    };
    op__pieces(ctx, op_tensor_count(src), unary_piece, &job);
}

static enum op_status unary_run(struct op_ctx *ctx, bool plain) {
    const struct op_unary *row = unary_of(ctx);
    float param[OP_PARAM_MAX] = {0};
    for (int i = 0; i < OP_PARAM_MAX && row->param[i].name; i++)
        param[i] = op__attr_float(ctx->node, row->param[i].name, row->param[i].dflt);
    k_unary_fn *kern = row->kern && !plain ? op__kern(ctx)->math->unary[row->kern - 1] : NULL;
    if (ctx->out[0])
        op__unary_apply(ctx, unary_fn(row, ctx->in[0]->dtype), kern, param, ctx->out[0],
                        ctx->in[0]);
    return OP_OK;
}

enum op_status op__unary_run(struct op_ctx *ctx) {
    return unary_run(ctx, false);
}

enum op_status op__unary_ref(struct op_ctx *ctx) {
    return unary_run(ctx, true);
}

/* --- two inputs --------------------------------------------------------------------------------
 */

static const struct op_binary *binary_of(const struct op_ctx *ctx) {
    return (const struct op_binary *)ctx->node->desc;
}

/* Before opset 7 shapes had to be equal unless `broadcast` was 1; then the second input's
 * dimensions stood at `axis` of the first, at its end by default. What stays in the node is `axis`,
 * only where it says something. */
enum op_status op__binary_upgrade(struct op_graph *g, struct op_node *n, int opset,
                                  struct op_error *err) {
    (void)g, (void)err;
    if (opset >= 7 || !op__attr_int(n, "broadcast", 0)) op__attr_remove(n, "axis");
    op__attr_remove(n, "broadcast");
    return OP_OK;
}

struct op_tensor op__binary_second(const struct op_ctx *ctx) {
    struct op_tensor b = *ctx->in[1];
    if (ctx->node->n_attrs == 0 || !op__attr(ctx->node, "axis")) return b;
    const int rank = ctx->in[0]->rank;
    int axis = op__axis(op__attr_int(ctx->node, "axis", 0), rank);
    if (axis < 0 || axis + b.rank > rank) return b;
    for (; axis + b.rank < rank; b.rank++) b.dims[b.rank] = 1;
    return b;
}

enum op_status op__binary_infer_shape(struct op_ctx *ctx, enum op_type out) {
    const struct op_tensor *a = ctx->in[0], b = op__binary_second(ctx);
    int64_t dims[OP_RANK_MAX];
    int rank;
    if (!op__broadcast(a->rank, a->dims, b.rank, b.dims, &rank, dims)) {
        char ta[160], tb[160];
        return op__fail(ctx, OP_BAD_SHAPE, "%s and %s do not broadcast",
                        op_tensor_describe(a, ta, sizeof ta),
                        op_tensor_describe(ctx->in[1], tb, sizeof tb));
    }
    op__set(ctx, 0, out, rank, dims);
    return OP_OK;
}

static op_binary_fn binary_fn(const struct op_binary *row, enum op_type type) {
    return row->fn[op__is_half(type) && !row->fn[type] ? OP_F32 : type];
}

enum op_status op__binary_infer(struct op_ctx *ctx) {
    const struct op_binary *row = binary_of(ctx);
    const struct op_tensor *a = ctx->in[0], *b = ctx->in[1];
    if (!a || !b) return op__fail(ctx, OP_BAD_MODEL, "needs two inputs");
    if (a->kind != OP_KIND_TENSOR || b->kind != OP_KIND_TENSOR || a->dtype != b->dtype)
        return op__fail(ctx, OP_BAD_TYPE, "inputs are %s and %s, must be of one type",
                        op_type_name(a->dtype), op_type_name(b->dtype));
    if (!binary_fn(row, a->dtype))
        return op__fail(ctx, OP_BAD_TYPE, "takes no input of elements %s", op_type_name(a->dtype));
    return op__binary_infer_shape(ctx, row->out ? row->out : a->dtype);
}

struct binary_job {
    op_binary_fn fn;
    k_binary_fn *kern; /* NULL, or instead of fn */
    enum op_type out_type, a_type, b_type;
    size_t out_size, a_size, b_size;
    int a_step, b_step;
    char *out;
    const char *a, *b;
};

/* n elements of a half type (one if the step is 0) as f32; other types as they are. */
static const void *widened(enum op_type type, const char *src, float *block, int64_t n, int step) {
    if (!op__is_half(type)) return src;
    op__widen(type, block, src, step ? n : 1);
    return block;
}

static void binary_loop(const struct binary_job *job, void *dst, const void *a, const void *b,
                        int64_t n) {
    if (job->kern)
        job->kern(n, a, !job->a_step, b, !job->b_step, dst);
    else
        job->fn(dst, a, b, n, job->a_step, job->b_step);
}

static void binary_run_piece(void *arg, int64_t n, int64_t out_index, const int64_t *in_index) {
    const struct binary_job *job = arg;
    char *out = job->out + (size_t)out_index * job->out_size;
    const char *a = job->a + (size_t)in_index[0] * job->a_size,
               *b = job->b + (size_t)in_index[1] * job->b_size;
    if (!op__is_half(job->a_type) && !op__is_half(job->b_type)) {
        binary_loop(job, out, a, b, n);
        return;
    }
    for (int64_t i = 0; i < n; i += OP_BLOCK) {
        float xa[OP_BLOCK], xb[OP_BLOCK], y[OP_BLOCK];
        int64_t m = n - i < OP_BLOCK ? n - i : OP_BLOCK;
        const void *pa =
            widened(job->a_type, a + i * job->a_step * (int64_t)job->a_size, xa, m, job->a_step);
        const void *pb =
            widened(job->b_type, b + i * job->b_step * (int64_t)job->b_size, xb, m, job->b_step);
        char *d = out + (size_t)i * job->out_size;
        if (op__is_half(job->out_type)) {
            binary_loop(job, y, pa, pb, m);
            op__narrow(job->out_type, d, y, m);
        } else {
            binary_loop(job, d, pa, pb, m);
        }
    }
}

/* A matrix of short rows and one row, (outer, inner) and (inner): the row is repeated in a block,
 * so that the loops run over blocks and not over rows. `row` is the input whose outer stride is 0.
 */
struct short_rows {
    struct binary_job job;
    int row;
    int64_t block; /* elements, a multiple of the row's */
};

static void short_rows_piece(void *arg, int64_t first, int64_t n) {
    struct short_rows *s = arg;
    for (int64_t i = first * s->block; i < (first + n) * s->block; i += s->block)
        binary_run_piece(&s->job, s->block, i,
                         s->row ? (const int64_t[]){i, 0} : (const int64_t[]){0, i});
}

enum { SHORT_ROW = 64, SHORT_BLOCK = 1024 }; /* elements */

static bool run_short_rows(const struct op_ctx *ctx, const struct op_walk *w,
                           const struct binary_job *job) {
    uint64_t block[SHORT_BLOCK];
    const int64_t inner = w->dims[w->rank - 1];
    const int row = w->stride[0][0] == 0 ? 0 : 1;
    if (w->rank != 2 || inner > SHORT_ROW || w->total < 4 * SHORT_BLOCK || !job->a_step ||
        !job->b_step || w->stride[row][0] != 0 || w->stride[!row][0] != inner)
        return false;
    struct short_rows s = {*job, row, SHORT_BLOCK / inner * inner};
    const size_t size = row ? job->b_size : job->a_size;
    if (size > sizeof *block) return false;
    for (int64_t i = 0; i < s.block; i += inner)
        memcpy((char *)block + (size_t)i * size, row ? job->b : job->a, (size_t)inner * size);
    *(row ? &s.job.b : &s.job.a) = (const char *)block;
    const int64_t whole = w->total / s.block;
    op__pieces(ctx, whole, short_rows_piece, &s);
    if (whole * s.block < w->total)
        binary_run_piece(&s.job, w->total - whole * s.block, whole * s.block,
                         row ? (const int64_t[]){whole * s.block, 0}
                             : (const int64_t[]){0, whole * s.block});
    return true;
}

void op__binary_apply(const struct op_ctx *ctx, op_binary_fn fn, k_binary_fn *kern,
                      struct op_tensor *dst, const struct op_tensor *a, const struct op_tensor *b) {
    struct op_walk w;
    op__walk_plan(&w, dst, (const struct op_tensor *const[]){a, b}, 2);
    struct binary_job job = {
        .fn = fn,
        .kern = a->dtype == OP_F32 || op__is_half(a->dtype) ? kern : NULL,
        .out_type = dst->dtype,
        .a_type = a->dtype,
        .b_type = b->dtype,
        .out_size = op_type_size(dst->dtype),
        .a_size = op_type_size(a->dtype),
        .b_size = op_type_size(b->dtype),
        .a_step = (int)w.stride[0][w.rank - 1],
        .b_step = (int)w.stride[1][w.rank - 1],
        .out = dst->data,
        .a = a->data,
        .b = b->data,
    };
    if (!run_short_rows(ctx, &w, &job)) op__walk(ctx, &w, binary_run_piece, &job);
}

static enum op_status binary_run(struct op_ctx *ctx, bool plain) {
    const struct op_binary *row = binary_of(ctx);
    if (!ctx->out[0]) return OP_OK;
    struct op_tensor b = op__binary_second(ctx);
    k_binary_fn *kern = row->kern && !plain ? op__kern(ctx)->math->binary[row->kern - 1] : NULL;
    op__binary_apply(ctx, binary_fn(row, ctx->in[0]->dtype), kern, ctx->out[0], ctx->in[0], &b);
    return OP_OK;
}

enum op_status op__binary_run(struct op_ctx *ctx) {
    return binary_run(ctx, false);
}

enum op_status op__binary_ref(struct op_ctx *ctx) {
    return binary_run(ctx, true);
}
