/* conv_transpose.c: ConvTranspose: every input position lays the kernel, times its value, over the output.
 *
 * f32: a matrix product makes what each input position contributes to each tap of each output channel,
 *
 *     part [M/g * taps, positions] = W^T [M/g * taps, C/g] x [C/g, positions],
 *
 * which is then added up into the output, channel by channel. Positions are taken in chunks of whole rows so that `part` stays
 * small. The order of a sum is fixed by the shapes: chunks rising, taps rising. `ref` gathers instead: for an output it
 * looks for the inputs that reach it, and sums in double precision, for every type.
 *
 * W is packed at load where it is constant. */
#include "ops/kern/kern.h"
#include "ops/op/nn.h"

#include <stdlib.h>
#include <string.h>

#define PART_FLOATS (1 << 20) /* of a chunk, unless one row has more */

struct conv_transpose {
    struct nn_window window;
    int64_t groups;
    int n_out_pad, n_out_shape;
    int64_t out_pad[NN_SPATIAL_MAX], out_shape[NN_SPATIAL_MAX];
    const struct k_kernels *kern;
    float *packed; /* W of each group as the left side of the product; NULL: not constant */
};

/* --- attributes -------------------------------------------------------------------------------- */

static enum op_status parse_sizes(struct op_prepare *p, const char *name, int64_t *dst, int *n_dst) {
    int64_t n;
    const int64_t *v = op__attr_ints(p->node, name, &n);
    if (n > NN_SPATIAL_MAX) return op__node_fail(p->err, p->node, OP_UNSUPPORTED, "%s has %lld values", name, (long long)n);
    for (int64_t i = 0; i < n; i++) {
        if (v[i] < 0 || v[i] > NN_ATTR_MAX)
            return op__node_fail(p->err, p->node, OP_BAD_VALUE, "%s[%lld] is %lld, expected 0 to 2^31", name, (long long)i, (long long)v[i]);
        dst[i] = v[i];
    }
    *n_dst = (int)n;
    return OP_OK;
}

static enum op_status pack(struct op_prepare *p, struct conv_transpose *s) {
    const struct op_tensor *w = p->n_in > 1 ? p->in[1] : NULL;
    s->kern = p->cpu ? k_find(p->cpu) : k_default();
    if (!s->kern) s->kern = k_default();
    if (!w || w->kind != OP_KIND_TENSOR || w->dtype != OP_F32 || w->rank < 3 || op_tensor_count(w) <= 0 || w->dims[0] % s->groups)
        return OP_OK;
    int64_t rows = op_tensor_count(w) / w->dims[0], in = w->dims[0] / s->groups;
    size_t one = k_pack_a_floats(s->kern->gemm, rows, in), bytes;
    if (__builtin_mul_overflow(one, (size_t)s->groups * sizeof(float), &bytes) || bytes > SIZE_MAX - 64) return OP_OK;
    bytes = (bytes + 63) / 64 * 64;
    bool filled;
    s->packed = op__pack_alloc(p, "rows", bytes, &filled);
    const float *data = s->packed && !filled ? op__prepare_data(p, 1) : NULL;
    if (!s->packed || (!filled && !data)) return op__node_fail(p->err, p->node, OP_NOMEM, "out of memory: %zu bytes for packed weights", bytes);
    for (int64_t g = 0; g < s->groups && !filled; g++)
        k_pack_a(s->kern->gemm, rows, in, data + g * in * rows, 1, rows, s->packed + (size_t)g * one);
    p->consumed |= 1u << 1;
    return OP_OK;
}

static enum op_status prepare(struct op_prepare *p) {
    struct conv_transpose *s = calloc(1, sizeof *s);
    if (!s) return op__node_fail(p->err, p->node, OP_NOMEM, "out of memory");
    p->node->state = s;
    s->groups = op__attr_int(p->node, "group", 1);
    if (s->groups < 1 || s->groups > NN_ATTR_MAX)
        return op__node_fail(p->err, p->node, OP_BAD_VALUE, "group is %lld, expected 1 or more", (long long)s->groups);
    enum op_status st;
    if ((st = op__nn_window_parse(p, false, &s->window)) != OP_OK || (st = parse_sizes(p, "output_padding", s->out_pad, &s->n_out_pad)) != OP_OK ||
        (st = parse_sizes(p, "output_shape", s->out_shape, &s->n_out_shape)) != OP_OK)
        return st;
    return pack(p, s);
}

static void release(void *state) {
    free(state);
}

/* --- shapes ------------------------------------------------------------------------------------ */

static enum op_status fit_axis(const struct op_ctx *ctx, struct nn_fit *f, int a) {
    const struct conv_transpose *s = ctx->state;
    const struct nn_window *w = &s->window;
    bool same = w->auto_pad == NN_SAME_UPPER || w->auto_pad == NN_SAME_LOWER;
    if (f->in[a] > NN_EXTENT_MAX / 4 / f->stride[a]) return op__fail(ctx, OP_LIMIT, "spatial dimension %d is %lld: too large", a, (long long)f->in[a]);
    int64_t extra = s->n_out_pad ? s->out_pad[a] : 0;
    int64_t full = f->in[a] ? f->stride[a] * (f->in[a] - 1) + (f->kernel[a] - 1) * f->dilation[a] + 1 + extra : 0;
    if (s->n_out_shape || same) {
        f->out[a] = s->n_out_shape ? s->out_shape[a] : f->in[a] * f->stride[a];
        int64_t total = full > f->out[a] ? full - f->out[a] : 0;
        f->begin[a] = w->auto_pad == NN_SAME_UPPER ? total / 2 : total - total / 2;
        f->end[a] = total - f->begin[a];
        return OP_OK;
    }
    f->begin[a] = w->auto_pad == NN_NOTSET && w->n_pad ? w->pad[a] : 0;
    f->end[a] = w->auto_pad == NN_NOTSET && w->n_pad ? w->pad[f->rank + a] : 0;
    f->out[a] = full - f->begin[a] - f->end[a];
    if (f->in[a] && f->out[a] < 0)
        return op__fail(ctx, OP_BAD_SHAPE, "the output would have extent %lld along spatial dimension %d: pads are %lld and %lld", (long long)f->out[a],
                        a, (long long)f->begin[a], (long long)f->end[a]);
    if (f->out[a] < 0) f->out[a] = 0;
    return OP_OK;
}

static enum op_status fit(const struct op_ctx *ctx, struct nn_fit *f) {
    const struct conv_transpose *s = ctx->state;
    const struct op_tensor *x = ctx->in[0], *k = ctx->in[1];
    int rank = x->rank - 2;
    if (rank < 1) return op__fail(ctx, OP_BAD_SHAPE, "input 0 (X) has rank %d, expected 3 or more", x->rank);
    const struct nn_window *w = &s->window;
    if ((w->n_kernel && w->n_kernel != rank) || (w->n_stride && w->n_stride != rank) || (w->n_dilation && w->n_dilation != rank) ||
        (w->n_pad && w->n_pad != 2 * rank) || (s->n_out_pad && s->n_out_pad != rank) || (s->n_out_shape && s->n_out_shape != rank))
        return op__fail(ctx, OP_BAD_SHAPE, "an attribute's number of values does not fit %d spatial dimensions", rank);
    *f = (struct nn_fit){.rank = rank, .in_size = 1, .out_size = 1};
    for (int a = 0; a < rank; a++) {
        f->in[a] = x->dims[2 + a];
        f->kernel[a] = k->dims[2 + a];
        f->stride[a] = w->n_stride ? w->stride[a] : 1;
        f->dilation[a] = w->n_dilation ? w->dilation[a] : 1;
        if (f->kernel[a] < 1 || f->kernel[a] > NN_ATTR_MAX || (w->n_kernel && w->kernel[a] != f->kernel[a]))
            return op__fail(ctx, OP_BAD_SHAPE, "W has extent %lld along spatial dimension %d, kernel_shape says %lld", (long long)f->kernel[a], a,
                            (long long)(w->n_kernel ? w->kernel[a] : f->kernel[a]));
        enum op_status st = fit_axis(ctx, f, a);
        if (st != OP_OK) return st;
        if (!op__mul(f->in_size, f->in[a], &f->in_size) || !op__mul(f->out_size, f->out[a], &f->out_size))
            return op__fail(ctx, OP_LIMIT, "the shapes are beyond 63 bits");
    }
    return OP_OK;
}

static enum op_status infer(struct op_ctx *ctx) {
    const struct conv_transpose *s = ctx->state;
    enum op_status st = op__nn_float(ctx, 0, "X");
    if (st != OP_OK) return st;
    const struct op_tensor *x = ctx->in[0];
    struct nn_fit f;
    if ((st = op__nn_like(ctx, 1, "W", x->dtype, x->rank)) != OP_OK) return st;
    if ((st = fit(ctx, &f)) != OP_OK) return st;
    int64_t c = x->dims[1], m;
    if (ctx->in[1]->dims[0] != c || c % s->groups)
        return op__fail(ctx, OP_BAD_SHAPE, "X has %lld channels, W %lld, in %lld groups: they do not fit", (long long)c, (long long)ctx->in[1]->dims[0],
                        (long long)s->groups);
    if (!op__mul(ctx->in[1]->dims[1], s->groups, &m)) return op__fail(ctx, OP_LIMIT, "the number of channels is beyond 63 bits");
    if (nn_in(ctx, 2) && ((st = op__nn_like(ctx, 2, "B", x->dtype, 1)) != OP_OK || (st = op__nn_shape(ctx, 2, "B", 1, &m)) != OP_OK)) return st;
    int64_t dims[OP_RANK_MAX] = {x->dims[0], m};
    for (int a = 0; a < f.rank; a++) dims[2 + a] = f.out[a];
    op__set(ctx, 0, x->dtype, x->rank, dims);
    return OP_OK;
}

/* --- the plain form ---------------------------------------------------------------------------- */

struct job {
    const struct op_ctx *ctx;
    const struct conv_transpose *s;
    struct nn_fit f;
    int64_t in_channels, out_channels, taps; /* channels of a group */
    /* of the fast form, one sample and group and chunk at a time: */
    int64_t n, g, row, rows, width; /* rows of the last spatial dimension, [row, row + rows) */
    float *part;
};

static double ref_output(const struct job *job, int64_t n, int64_t m, const int64_t *o) {
    const struct nn_fit *f = &job->f;
    const struct op_tensor *bias = nn_in(job->ctx, 2);
    int64_t g = m / job->out_channels, tap[NN_SPATIAL_MAX] = {0}, k = 0;
    double sum = bias ? nn_load(bias, m) : 0;
    if (!job->taps || !f->in_size) return sum;
    do {
        int64_t at = 0;
        bool hit = true;
        for (int a = 0; a < f->rank && hit; a++) {
            int64_t pos = o[a] + f->begin[a] - tap[a] * f->dilation[a];
            hit = pos >= 0 && pos % f->stride[a] == 0 && pos / f->stride[a] < f->in[a];
            at = at * f->in[a] + pos / f->stride[a];
        }
        for (int64_t c = 0; hit && c < job->in_channels; c++) {
            int64_t in = g * job->in_channels + c, all = job->s->groups * job->in_channels;
            sum += nn_load(job->ctx->in[0], (n * all + in) * f->in_size + at) *
                   nn_load(job->ctx->in[1], (in * job->out_channels + m % job->out_channels) * job->taps + k);
        }
        k++;
    } while (nn_next(tap, f->kernel, f->rank));
    return sum;
}

static void ref_plane(void *arg, int64_t task) {
    const struct job *job = arg;
    int64_t o[NN_SPATIAL_MAX] = {0}, m = job->s->groups * job->out_channels, dst = task * job->f.out_size;
    do nn_store(job->ctx->out[0], dst++, ref_output(job, task / m, task % m, o));
    while (nn_next(o, job->f.out, job->f.rank));
}

static enum op_status start(const struct op_ctx *ctx, struct job *job) {
    const struct op_tensor *w = ctx->in[1];
    *job = (struct job){.ctx = ctx, .s = ctx->state, .taps = 1};
    enum op_status st = fit(ctx, &job->f);
    job->in_channels = w->dims[0] / job->s->groups;
    job->out_channels = w->dims[1];
    for (int a = 0; a < job->f.rank; a++)
        if (st != OP_OK || op_tensor_count(w) <= 0 || !op__mul(job->taps, job->f.kernel[a], &job->taps)) job->taps = 0;
    if (st != OP_OK) return st;
    job->width = job->f.in[job->f.rank - 1];
    return st;
}

static enum op_status ref(struct op_ctx *ctx) {
    struct job job;
    enum op_status st = start(ctx, &job);
    if (st != OP_OK || !op_tensor_count(ctx->out[0])) return st;
    op__parallel(ctx, ctx->out[0]->dims[0] * ctx->out[0]->dims[1], ref_plane, &job);
    return OP_OK;
}

/* --- f32 --------------------------------------------------------------------------------------- */

static int64_t chunk_rows(const struct job *job) {
    int64_t row, all = job->width ? job->f.in_size / job->width : 0;
    if (!op__mul(job->out_channels * job->taps, job->width, &row)) return 1;
    int64_t n = row > 0 && row < PART_FLOATS ? PART_FLOATS / row : 1;
    return n < all ? n : all;
}

static size_t scratch(const struct op_ctx *ctx) {
    struct job job;
    int64_t floats;
    if (ctx->in[0]->dtype != OP_F32 || start(ctx, &job) != OP_OK) return 0;
    if (!op__mul(job.out_channels * job.taps, chunk_rows(&job) * job.width, &floats) || floats > INT64_MAX / 8) return SIZE_MAX / 2;
    return (size_t)floats * sizeof(float);
}

#define COLUMN_TILES 8 /* panels of columns in one task of the product */

static void multiply(void *arg, int64_t task) {
    const struct job *job = arg;
    const struct k_gemm *g = job->s->kern->gemm;
    int64_t m = job->out_channels * job->taps, n = job->rows * job->width, step = (int64_t)g->nr * COLUMN_TILES;
    int64_t in = (job->n * job->s->groups + job->g) * job->in_channels * job->f.in_size + job->row * job->width;
    struct k_product p = {.m = m, .n = n, .k = job->in_channels, .a_row = 1, .a_k = m, .b_k = job->f.in_size, .c = job->part, .c_row = n};
    p.a_packed = job->s->packed != NULL;
    p.a = p.a_packed ? job->s->packed + (size_t)job->g * k_pack_a_floats(g, m, job->in_channels)
                     : (const float *)job->ctx->in[1]->data + job->g * job->in_channels * m;
    p.b = (const float *)job->ctx->in[0]->data + in;
    p.then.act = K_COPY;
    k_gemm(job->s->kern, &p, 0, m, task * step, (task + 1) * step < n ? (task + 1) * step : n);
}

/* Adds the contributions of one tap, from the chunk's rows, to an output plane. `part` is [rows, width]. */
static void add_tap(const struct job *job, const int64_t *tap, const float *part, float *plane) {
    const struct nn_fit *f = &job->f;
    int last = f->rank - 1;
    int64_t s = f->stride[last], shift = tap[last] * f->dilation[last] - f->begin[last];
    int64_t lo = shift < 0 ? (-shift + s - 1) / s : 0, hi = f->out[last] - shift; /* inputs [lo, hi) land inside */
    hi = hi > 0 ? (hi + s - 1) / s : 0;
    if (hi > job->width) hi = job->width;
    for (int64_t r = 0; r < job->rows; r++, part += job->width) {
        int64_t at = 0, step = 1, rest = job->row + r;
        bool inside = true;
        for (int a = last - 1; a >= 0; a--) {
            int64_t o = rest % f->in[a] * f->stride[a] + tap[a] * f->dilation[a] - f->begin[a];
            rest /= f->in[a];
            inside = inside && o >= 0 && o < f->out[a];
            if (inside) at += o * step;
            step *= f->out[a];
        }
        if (!inside || hi <= lo) continue;
        float *dst = plane + at * f->out[last] + shift;
        if (s == 1) op__kern(job->ctx)->math->binary[K_ADD](hi - lo, dst + lo, false, part + lo, false, dst + lo);
        else
            for (int64_t i = lo; i < hi; i++) dst[i * s] += part[i];
    }
}

static void add_channel(void *arg, int64_t m) {
    const struct job *job = arg;
    const struct op_tensor *bias = nn_in(job->ctx, 2);
    int64_t channel = job->g * job->out_channels + m, tap[NN_SPATIAL_MAX] = {0};
    float *plane = (float *)job->ctx->out[0]->data + (job->n * job->s->groups * job->out_channels + channel) * job->f.out_size;
    if (job->row == 0) {
        float b = bias ? ((const float *)bias->data)[channel] : 0;
        for (int64_t i = 0; i < job->f.out_size; i++) plane[i] = b;
    }
    const float *part = job->part + m * job->taps * job->rows * job->width;
    do {
        add_tap(job, tap, part, plane);
        part += job->rows * job->width;
    } while (nn_next(tap, job->f.kernel, job->f.rank));
}

static enum op_status run(struct op_ctx *ctx) {
    struct job job;
    enum op_status st = start(ctx, &job);
    if (st != OP_OK || !op_tensor_count(ctx->out[0])) return st;
    if (ctx->in[0]->dtype != OP_F32 || !job.f.in_size || !job.taps) return ref(ctx);
    int64_t rows = job.f.in_size / job.width, chunk = chunk_rows(&job), step = (int64_t)job.s->kern->gemm->nr * COLUMN_TILES;
    job.part = ctx->scratch;
    for (job.n = 0; job.n < ctx->in[0]->dims[0]; job.n++)
        for (job.g = 0; job.g < job.s->groups; job.g++)
            for (job.row = 0; job.row < rows; job.row += chunk) {
                job.rows = rows - job.row < chunk ? rows - job.row : chunk;
                op__parallel(ctx, (job.rows * job.width + step - 1) / step, multiply, &job);
                op__parallel(ctx, job.out_channels, add_channel, &job);
            }
    return OP_OK;
}

static void cost(const struct op_ctx *ctx, double *flops, double *bytes) {
    struct job job;
    if (start(ctx, &job) != OP_OK) return;
    double in = (double)op_tensor_count(ctx->in[0]), out = (double)op_tensor_count(ctx->out[0]);
    *flops = 2 * in * (double)(job.out_channels * job.taps);
    *bytes = (in + out + (double)op_tensor_count(ctx->in[1])) * (double)op_type_size(ctx->in[0]->dtype);
}

static const struct op_desc conv_transpose = {
    .name = "ConvTranspose",
    .domain = "",
    .since = 1,
    .flags = OP_F_LAZY,
    .in_min = 2,
    .in_max = 3,
    .out_min = 1,
    .out_max = 1,
    .prepare = prepare,
    .release = release,
    .infer = infer,
    .scratch = scratch,
    .run = run,
    .ref = ref,
    .cost = cost,
};
OP_REGISTER(conv_transpose);
