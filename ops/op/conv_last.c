/* quern's ChannelsLastConv: Conv and FusedConv over images whose channels come last, which the pass channels_last makes of them.
 *
 *   X (batch, spatial…, channels), W as Conv's (outputs, channels of a group, kernel…) and constant, B, addend → (batch, spatial…, outputs)
 *
 * Attributes are Conv's and FusedConv's; with input_first X is (batch, channels, spatial…): the first layer of a net takes the
 * picture as it comes. f32, one to three spatial dimensions. Its ways, by the shapes of weights and image, never by the batch:
 *   depthwise   one channel a group: kern/conv_body.h, vectors of channels
 *   first       input_first: the picture is copied into a padded one with channels last, where a row of the kernel is one run of floats:
 *               rows with as many taps as the kernel is high
 *   winograd    3 x 3 of stride 1 where it pays: kern/winograd_last.c
 *   bf16        one group and the attribute bf16, which the pass of that name sets: output pixels as rows, rounded block by block (half.h)
 *   rows        everything else: kern/last.c, output pixels as rows, nothing copied
 * Any division of the work between threads gives the same bits: an element is one chain of multiply-adds. */
#include "ops/op/conv.h"
#include "ops/op/half.h"
#include "ops/op/product.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum {
    SPLIT_ROWS_MIN = 48,        /* output pixels a thread from which they are divided, else the output channels are */
    SPLIT_TILES_MIN = 24,       /* the same of Winograd's tiles */
    DEPTHWISE_BYTES = 256 << 10 /* of input a unit of depthwise rows reads: it stays in L2 while its channels pass */
};

enum way { WAY_ROWS, WAY_DEPTHWISE, WAY_FIRST, WAY_BF16 };

struct conv_last {
    struct nn_window window;
    int64_t group;
    enum way way;
    float *packed;
    size_t packed_group; /* floats of one group */
    struct op__activation act;
};

static size_t pack_floats(const struct k_kernels *kern, const struct conv_last *s, const struct op_tensor *w) {
    const int64_t k = op_tensor_count(w) / w->dims[0];
    if (s->way == WAY_DEPTHWISE) return (size_t)op_tensor_count(w);
    if (s->way == WAY_BF16) return k_half_pack_b_units(kern, k_half_depth(k), w->dims[0]);
    return k_last_pack_floats(kern->gemm, w->dims[0] / s->group, k);
}

/* Weights of bf16 go through rows of (output, kernel position, channel). */
static bool pack_half(const struct k_kernels *kern, const struct conv_last *s, int64_t oc, int64_t channels, int64_t taps, const float *data) {
    const int64_t k = channels * taps;
    float *rows = malloc((size_t)(oc * k) * sizeof *rows);
    for (int64_t i = 0; rows && i < oc; i++)
        for (int64_t q = 0; q < taps; q++)
            for (int64_t c = 0; c < channels; c++) rows[i * k + q * channels + c] = data[(i * channels + c) * taps + q];
    if (rows) k_half_pack_b(kern, k, oc, rows, 1, k, s->packed);
    free(rows);
    return rows != NULL;
}

/* W (outputs, channels, rows, columns) as (outputs, columns, channels, rows): channels of a pixel and pixels of a row are one run. */
static bool pack_first(const struct k_kernels *kern, const struct conv_last *s, const struct op_tensor *w, const float *data) {
    const int64_t oc = w->dims[0], channels = w->dims[1], rows = w->dims[2], columns = w->dims[3], k = channels * rows * columns;
    float *turned = malloc((size_t)(oc * k) * sizeof *turned);
    if (!turned) return false;
    for (int64_t o = 0; o < oc; o++)
        for (int64_t c = 0; c < channels; c++)
            for (int64_t i = 0; i < rows; i++)
                for (int64_t j = 0; j < columns; j++) turned[o * k + (j * channels + c) * rows + i] = data[o * k + (c * rows + i) * columns + j];
    k_last_pack(kern->gemm, oc, channels * columns, rows, turned, s->packed);
    free(turned);
    return true;
}

static bool pack(const struct k_kernels *kern, const struct conv_last *s, const struct op_tensor *w, const float *data) {
    const int64_t channels = w->dims[1], k = op_tensor_count(w) / w->dims[0], taps = k / channels, oc = w->dims[0] / s->group;
    if (s->way == WAY_BF16) return pack_half(kern, s, oc, channels, taps, data);
    if (s->way == WAY_DEPTHWISE)
        for (int64_t c = 0; c < w->dims[0]; c++)
            for (int64_t q = 0; q < taps; q++) s->packed[q * w->dims[0] + c] = data[c * taps + q];
    else if (s->way == WAY_FIRST)
        return pack_first(kern, s, w, data);
    else
        for (int64_t i = 0; i < s->group; i++)
            k_last_pack(kern->gemm, oc, channels, taps, data + i * oc * k, s->packed + (size_t)i * s->packed_group);
    return true;
}

static enum op_status prepare(struct op_prepare *p) {
    struct conv_last *s = calloc(1, sizeof *s);
    if (!s) return op__node_fail(p->err, p->node, OP_NOMEM, "out of memory");
    p->node->state = s;
    enum op_status st = op__nn_window_parse(p, false, &s->window);
    if (st == OP_OK) st = op__activation_parse(p->node, p->err, &s->act);
    if (st != OP_OK) return st;
    s->group = op__attr_int(p->node, "group", 1);
    const struct op_tensor *w = p->n_in > 1 ? p->in[1] : NULL;
    const struct k_kernels *kern = p->cpu ? k_find(p->cpu) : k_default();
    if (!kern || !w || w->dtype != OP_F32 || w->rank < 3 || w->rank > 5 || op_tensor_count(w) <= 0)
        return op__node_fail(p->err, p->node, OP_UNSUPPORTED, "input 1 (W) is not a constant f32 tensor of rank 3 to 5");
    if (s->group < 1 || w->dims[0] % s->group != 0)
        return op__node_fail(p->err, p->node, OP_BAD_VALUE, "group is %lld, expected a divisor of the %lld output channels", (long long)s->group,
                             (long long)w->dims[0]);
    const bool first = op__attr_int(p->node, "input_first", 0) != 0;
    if (first && (s->group != 1 || w->rank != 4)) return op__node_fail(p->err, p->node, OP_UNSUPPORTED, "input_first takes one group and two spatial dimensions");
    for (int i = 0; first && i < s->window.n_dilation; i++)
        if (s->window.dilation[i] != 1) return op__node_fail(p->err, p->node, OP_UNSUPPORTED, "input_first takes no dilation");
    s->way = first ? WAY_FIRST : w->rank <= 4 && w->dims[1] == 1 && w->dims[0] == s->group ? WAY_DEPTHWISE : WAY_ROWS;
    if (s->way == WAY_ROWS && s->group == 1 && op__attr_int(p->node, "bf16", 0)) s->way = WAY_BF16;
    const size_t floats = pack_floats(kern, s, w);
    s->packed_group = floats;
    int64_t bytes;
    if (!op__mul(s->way == WAY_ROWS ? s->group : 1, (int64_t)(floats * sizeof(float)), &bytes)) return op__node_fail(p->err, p->node, OP_LIMIT, "the weights are too large");
    static const char *const kinds[] = {[WAY_ROWS] = "last", [WAY_DEPTHWISE] = "depthwise", [WAY_FIRST] = "first", [WAY_BF16] = "bf16"};
    bool filled;
    s->packed = op__pack_alloc(p, kinds[s->way], (size_t)bytes, &filled);
    const float *data = s->packed && !filled ? op__prepare_data(p, 1) : NULL;
    if (!s->packed || (!filled && !data)) return op__node_fail(p->err, p->node, OP_NOMEM, "no memory to pack weights of %lld bytes", (long long)bytes);
    if (!filled && !pack(kern, s, w, data)) return op__node_fail(p->err, p->node, OP_NOMEM, "no memory to pack weights of %lld bytes", (long long)bytes);
    p->consumed |= 1u << 1;
    return OP_OK;
}

/* --- shapes ---------------------------------------------------------------------------------------------- */

static enum op_status fit_of(const struct op_ctx *ctx, struct nn_fit *fit) {
    const struct conv_last *s = ctx->state;
    const struct op_tensor *x = ctx->in[0];
    return op__nn_window_fit(ctx, &s->window, x->rank - 2, x->dims + (s->way == WAY_FIRST ? 2 : 1), ctx->in[1]->dims + 2, fit);
}

static void convolved_dims(const struct op_ctx *ctx, const struct nn_fit *fit, int64_t *dims) {
    dims[0] = ctx->in[0]->dims[0];
    memcpy(dims + 1, fit->out, (size_t)fit->rank * sizeof *dims);
    dims[fit->rank + 1] = ctx->in[1]->dims[0];
}

static enum op_status infer_addend(struct op_ctx *ctx, int64_t *dims) {
    const int rank = ctx->in[0]->rank;
    const struct op_tensor *r = nn_in(ctx, 3);
    int out_rank = rank;
    if (!r) return OP_OK;
    enum op_status st = op__nn_like(ctx, 3, "addend", OP_F32, -1);
    if (st != OP_OK) return st;
    if (!op__broadcast(rank, dims, r->rank, r->dims, &out_rank, dims) || out_rank != rank) {
        char text[160];
        return op__fail(ctx, OP_BAD_SHAPE, "input 3 (addend) is %s, which does not broadcast to the convolution's rank %d",
                        op_tensor_describe(r, text, sizeof text), rank);
    }
    return OP_OK;
}

static enum op_status infer(struct op_ctx *ctx) {
    const struct conv_last *s = ctx->state;
    const struct op_tensor *x = ctx->in[0], *w = ctx->in[1], *b = nn_in(ctx, 2);
    enum op_status st = op__nn_like(ctx, 0, "X", OP_F32, -1);
    if (st == OP_OK) st = op__nn_like(ctx, 1, "W", OP_F32, x->rank);
    if (st != OP_OK) return st;
    const int64_t channels = x->dims[s->way == WAY_FIRST ? 1 : x->rank - 1];
    if (channels % s->group != 0 || w->dims[1] != channels / s->group) {
        char text_x[160], text_w[160];
        return op__fail(ctx, OP_BAD_SHAPE, "input X is %s and W is %s with %lld groups: W must have %lld / %lld input channels",
                        op_tensor_describe(x, text_x, sizeof text_x), op_tensor_describe(w, text_w, sizeof text_w), (long long)s->group, (long long)channels,
                        (long long)s->group);
    }
    if (b) {
        st = op__nn_like(ctx, 2, "B", OP_F32, 1);
        if (st == OP_OK) st = op__nn_shape(ctx, 2, "B", 1, w->dims);
        if (st != OP_OK) return st;
    }
    struct nn_fit fit;
    int64_t dims[OP_RANK_MAX];
    if ((st = fit_of(ctx, &fit)) != OP_OK) return st;
    convolved_dims(ctx, &fit, dims);
    int64_t picture = channels * (int64_t)sizeof(float); /* with its padding: scratch memory */
    for (int a = 0; s->way == WAY_FIRST && a < 2; a++)
        if (!op__mul(picture, (fit.out[a] - 1) * fit.stride[a] + fit.kernel[a], &picture) || picture > NN_EXTENT_MAX)
            return op__fail(ctx, OP_LIMIT, "the picture with its padding is too large");
    if ((st = infer_addend(ctx, dims)) == OP_OK) op__set(ctx, 0, OP_F32, x->rank, dims);
    return st;
}

/* --- running ----------------------------------------------------------------------------------------------- */

struct plan {
    const struct op_ctx *ctx;
    const struct conv_last *s;
    struct k_geometry g;
    int64_t images, in_size, out_size; /* pixels of an image */
    int64_t channels, oc;              /* of a group */
    struct op_tensor y;                /* the convolution: the output, or scratch memory where the addend broadcasts */
    bool y_in_scratch;
    const float *addend; /* NULL: none, or not here */
    struct op__activation act;
    size_t task_bytes; /* scratch of a task */
    int64_t n_tasks, n_units;
    bool by_rows, winograd;
    char *scratch; /* zeros, then of task 0 */
};

static size_t aligned(size_t bytes) {
    return (bytes + 63) / 64 * 64;
}

static size_t y_bytes(const struct plan *p) {
    return p->y_in_scratch ? aligned((size_t)op_tensor_bytes(&p->y)) : 0;
}

/* The way of a first layer: a picture that has its padding, its kernel one column wide and `columns` times as many channels. */
static struct k_geometry runs_of(const struct plan *p) {
    const struct k_geometry *g = &p->g;
    const int64_t rows = (g->out[1] - 1) * g->stride[1] + g->kernel[1], columns = (g->out[2] - 1) * g->stride[2] + g->kernel[2];
    return (struct k_geometry){p->channels * g->kernel[2], {1, rows, columns}, {1, g->out[1], g->out[2]}, {1, g->kernel[1], 1}, {1, g->stride[1], g->stride[2]}, {1, 1, 1}, {0, 0, 0}};
}

/* What padding reads, or a picture with its padding. */
static size_t zeros_bytes(const struct plan *p) {
    const struct k_geometry g = runs_of(p);
    if (p->s->way == WAY_FIRST) return aligned((size_t)(g.in[1] * g.in[2] * p->channels) * sizeof(float));
    return p->s->way == WAY_ROWS ? aligned((size_t)p->channels * sizeof(float)) : 0;
}

static void set_output(const struct op_ctx *ctx, const struct nn_fit *fit, struct plan *p) {
    const struct op_tensor *r = nn_in(ctx, 3), *out = ctx->out[0];
    p->y = (struct op_tensor){.dtype = OP_F32, .rank = ctx->in[0]->rank};
    convolved_dims(ctx, fit, p->y.dims);
    const size_t bytes = (size_t)p->y.rank * sizeof *p->y.dims;
    p->y_in_scratch = r && (r->rank != p->y.rank || memcmp(r->dims, p->y.dims, bytes) != 0);
    if (p->y_in_scratch) return;
    p->y.data = out ? out->data : NULL;
    p->addend = r ? r->data : NULL;
    p->act = p->s->act;
}

/* Output rows of a unit of depthwise work. */
static int64_t unit_rows(const struct plan *p) {
    const int64_t line = p->g.in[2] * p->g.channels * (int64_t)sizeof(float), rows = DEPTHWISE_BYTES / (line > 0 ? line : 1) / p->g.stride[1];
    return rows < 4 ? 4 : rows;
}

static struct k_last_job job_of(const struct plan *p, int64_t group) {
    const float *bias = nn_in(p->ctx, 2) ? p->ctx->in[2]->data : NULL, *x = p->ctx->in[0]->data;
    const int64_t oc = group * p->oc;
    return (struct k_last_job){.g = &p->g, .images = p->images, .oc = p->oc, .x = x ? x + group * p->channels : NULL, .x_pixel = p->channels * p->s->group,
                               .w = p->s->packed + (size_t)group * p->s->packed_group, .y = p->y.data ? (float *)p->y.data + oc : NULL,
                               .y_pixel = p->oc * p->s->group, .bias = bias ? bias + oc : NULL, .addend = p->addend ? p->addend + oc : NULL,
                               .act = p->act.fn, .act_a = p->act.a, .act_b = p->act.b, .zeros = (const float *)p->scratch};
}

static int64_t half_depth(const struct plan *p) {
    return k_half_depth(p->channels * p->g.kernel[0] * p->g.kernel[1] * p->g.kernel[2]);
}

static bool make_plan(const struct op_ctx *ctx, struct plan *p) {
    const struct conv_last *s = ctx->state;
    const struct op_tensor *x = ctx->in[0], *w = ctx->in[1];
    const struct k_gemm *gemm = op__kern(ctx)->gemm;
    struct nn_fit fit;
    *p = (struct plan){.ctx = ctx, .s = s, .images = x->dims[0], .channels = w->dims[1], .oc = w->dims[0] / s->group};
    if (fit_of(ctx, &fit) != OP_OK) return false;
    op__conv_geometry(&fit, s->way == WAY_DEPTHWISE ? w->dims[0] : p->channels, &p->g);
    set_output(ctx, &fit, p);
    p->in_size = fit.in_size;
    p->out_size = fit.out_size;
    const int64_t rows = p->images * p->out_size, threads = op__n_threads(ctx);
    if (s->way == WAY_DEPTHWISE)
        p->n_units = p->images * ((p->g.out[1] + unit_rows(p) - 1) / unit_rows(p));
    else if (s->way == WAY_FIRST) {
        const struct k_geometry g = runs_of(p);
        p->n_units = p->g.out[1]; /* lines of an image */
        p->task_bytes = aligned(k_last_scratch_bytes(&g));
    } else if (s->way == WAY_BF16) {
        const int64_t nr = op__kern(ctx)->half->gemm->nr;
        p->by_rows = rows >= threads * SPLIT_ROWS_MIN;
        p->n_units = p->by_rows ? rows : (p->oc + nr - 1) / nr;
        p->task_bytes = aligned(op__half_block_bytes(half_depth(p)));
    } else {
        const struct k_last_job job = job_of(p, 0);
        p->winograd = s->group == 1 && k_winograd_last_pays(&p->g, p->oc);
        const int64_t n = p->winograd ? k_winograd_last_tiles(&job) : rows;
        p->by_rows = n >= threads * (p->winograd ? SPLIT_TILES_MIN : SPLIT_ROWS_MIN);
        p->n_units = p->by_rows ? n : k_last_panels(gemm, p->oc);
        p->task_bytes = aligned(p->winograd ? k_winograd_last_scratch_floats(op__kern(ctx), &job) * sizeof(float) : k_last_scratch_bytes(&p->g));
    }
    p->n_tasks = threads < p->n_units ? threads : p->n_units;
    return true;
}

static size_t scratch(const struct op_ctx *ctx) {
    struct plan p;
    if (!make_plan(ctx, &p)) return 0;
    return y_bytes(&p) + zeros_bytes(&p) + (size_t)p.n_tasks * p.task_bytes;
}

static void rows_task(void *arg, int64_t task) {
    const struct plan *p = arg;
    const struct k_kernels *kern = op__kern(p->ctx);
    const int64_t from = p->n_units * task / p->n_tasks, to = p->n_units * (task + 1) / p->n_tasks, panels = k_last_panels(kern->gemm, p->oc);
    char *memory = p->scratch + zeros_bytes(p) + (size_t)task * p->task_bytes;
    for (int64_t i = 0; i < p->s->group; i++) {
        const struct k_last_job job = job_of(p, i);
        const int64_t rows = p->winograd ? k_winograd_last_tiles(&job) : p->images * p->out_size;
        const int64_t r0 = p->by_rows ? from : 0, r1 = p->by_rows ? to : rows, p0 = p->by_rows ? 0 : from, p1 = p->by_rows ? panels : to;
        if (p->winograd)
            k_winograd_last_run(kern, &job, r0, r1, p0, p1, (float *)memory);
        else
            k_last_run(kern, &job, r0, r1, p0, p1, memory);
    }
}

static void fill_pixels(const struct op__half_job *half, int64_t row0, int64_t row1, void *dst) {
    const struct plan *p = half->user;
    k_half_pixels(half->kern, &p->g, p->ctx->in[0]->data, p->channels, row0, row1, dst);
}

static void half_task(void *arg, int64_t task) {
    const struct plan *p = arg;
    const struct op__half_job job = {.kern = op__kern(p->ctx), .n = p->oc, .depth = half_depth(p), .packed = p->s->packed, .y = p->y.data, .y_row = p->oc,
                                     .then = {.bias_col = nn_in(p->ctx, 2) ? p->ctx->in[2]->data : NULL, .residual = p->addend, .residual_row = p->oc,
                                              .act = p->act.fn, .act_a = p->act.a, .act_b = p->act.b}, .fill = fill_pixels, .user = p};
    const int64_t nr = job.kern->half->gemm->nr, from = p->n_units * task / p->n_tasks, to = p->n_units * (task + 1) / p->n_tasks;
    char *block = p->scratch + (size_t)task * p->task_bytes;
    if (p->by_rows) op__half_run(&job, from, to, 0, p->oc, block);
    else op__half_run(&job, 0, p->images * p->out_size, from * nr, to * nr < p->oc ? to * nr : p->oc, block);
}

struct first { /* an image of a first layer */
    const struct plan *p;
    int64_t image;
};

enum { LINES_A_TASK = 16 };

/* Lines of the padded picture; what is padding was zeroed before the first image. */
static void interleave_task(void *arg, int64_t task) {
    const struct first *f = arg;
    const struct plan *p = f->p;
    const struct k_geometry g = runs_of(p);
    const int64_t channels = p->channels, top = p->g.begin[1], left = p->g.begin[2], width = p->g.in[2] < g.in[2] - left ? p->g.in[2] : g.in[2] - left;
    const float *image = (const float *)p->ctx->in[0]->data + f->image * channels * p->in_size;
    for (int64_t h = task * LINES_A_TASK; h < (task + 1) * LINES_A_TASK && h < g.in[1]; h++) {
        if (h < top || h - top >= p->g.in[1]) continue;
        float *dst = (float *)p->scratch + (h * g.in[2] + left) * channels;
        for (int64_t c = 0; c < channels; c++) {
            const float *src = image + c * p->in_size + (h - top) * p->g.in[2];
            for (int64_t w = 0; w < width; w++) dst[w * channels + c] = src[w];
        }
    }
}

static void first_task(void *arg, int64_t task) {
    const struct first *f = arg;
    const struct plan *p = f->p;
    const struct k_kernels *kern = op__kern(p->ctx);
    const struct k_geometry g = runs_of(p);
    struct k_last_job job = job_of(p, 0);
    const int64_t from = p->n_units * task / p->n_tasks, to = p->n_units * (task + 1) / p->n_tasks, y = f->image * p->out_size * p->oc;
    job.g = &g;
    job.images = 1;
    job.x = (const float *)p->scratch;
    job.x_pixel = p->channels;
    job.y += y;
    if (job.addend) job.addend += y;
    k_last_run(kern, &job, from * g.out[2], to * g.out[2], 0, k_last_panels(kern->gemm, p->oc), p->scratch + zeros_bytes(p) + (size_t)task * p->task_bytes);
}

static void run_first(struct plan *p) {
    const struct k_geometry g = runs_of(p);
    for (int64_t i = 0; i < p->images; i++) {
        struct first f = {p, i};
        op__parallel(p->ctx, (g.in[1] + LINES_A_TASK - 1) / LINES_A_TASK, interleave_task, &f);
        op__parallel(p->ctx, p->n_tasks, first_task, &f);
    }
}

static void depthwise_task(void *arg, int64_t task) {
    const struct plan *p = arg;
    const struct k_kernels *kern = op__kern(p->ctx);
    const float *bias = nn_in(p->ctx, 2) ? p->ctx->in[2]->data : NULL;
    const struct op__activation *act = &p->act;
    const bool in_kernel = !p->addend && (act->fn == K_RELU || act->fn == K_CLIP);
    const float lo = !in_kernel ? -INFINITY : act->fn == K_CLIP ? act->a : 0, hi = in_kernel && act->fn == K_CLIP ? act->b : INFINITY;
    const int64_t channels = p->g.channels, rows = unit_rows(p), units = (p->g.out[1] + rows - 1) / rows, line = p->g.out[2] * channels;
    for (int64_t unit = task; unit < p->n_units; unit += p->n_tasks) {
        const int64_t image = unit / units, row0 = unit % units * rows, row1 = row0 + rows < p->g.out[1] ? row0 + rows : p->g.out[1];
        float *y = (float *)p->y.data + image * p->out_size * channels, *written = y + row0 * line;
        kern->conv->depthwise_last(&p->g, (const float *)p->ctx->in[0]->data + image * p->in_size * channels, p->s->packed, bias, lo, hi, row0, row1, y);
        if (p->addend) kern->math->binary[K_ADD]((row1 - row0) * line, written, false, p->addend + (written - (float *)p->y.data), false, written);
        if (!in_kernel) kern->math->unary[act->fn]((row1 - row0) * line, written, written, act->a, act->b);
    }
}

static enum op_status run(struct op_ctx *ctx) {
    static void (*const tasks[])(void *, int64_t) = {[WAY_ROWS] = rows_task, [WAY_DEPTHWISE] = depthwise_task, [WAY_BF16] = half_task};
    struct plan p;
    if (op_tensor_count(ctx->out[0]) == 0 || !make_plan(ctx, &p)) return OP_OK;
    if (p.y_in_scratch) p.y.data = ctx->scratch;
    p.scratch = (char *)ctx->scratch + y_bytes(&p);
    if (zeros_bytes(&p)) memset(p.scratch, 0, zeros_bytes(&p));
    if (op_tensor_count(&p.y) > 0) {
        if (p.s->way == WAY_FIRST)
            run_first(&p);
        else
            op__parallel(ctx, p.n_tasks, tasks[p.s->way], &p);
    }
    if (!p.y_in_scratch) return OP_OK;
    op__conv_add_broadcast(&p.y, ctx->in[3], ctx->out[0]);
    op__kern(ctx)->math->unary[p.s->act.fn](op_tensor_count(ctx->out[0]), ctx->out[0]->data, ctx->out[0]->data, p.s->act.a, p.s->act.b);
    return OP_OK;
}

static const struct op_desc channels_last_conv = {
    .name = "ChannelsLastConv",
    .domain = "quern",
    .since = 1,
    .flags = OP_F_LAZY,
    .in_min = 2,
    .in_max = 4,
    .out_min = 1,
    .out_max = 1,
    .prepare = prepare,
    .release = free,
    .infer = infer,
    .scratch = scratch,
    .run = run,
    .cost = op__conv_cost,
};
OP_REGISTER(channels_last_conv);
