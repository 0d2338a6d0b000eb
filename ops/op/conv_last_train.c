/* conv_last_train.c: a convolution whose weights change from run to run, and its gradients, over images whose channels come last. The
 * pass channels_last makes them of Conv, FusedConv and conv_grad.c's operators in the graph of a training step.
 *
 *   ChannelsLastTrainedConv(X, W, B, addend)  as ChannelsLastConv, but W is packed at each run
 *   ChannelsLastConvGradX(dy, W, X) → dX      ChannelsLastConvGradW(dy, X, W) → dW      ChannelsLastConvGradB(dy) → dB
 *
 * X (batch, rows, columns, channels), dy and the output (batch, rows, columns, outputs), W and dW as Conv's; f32, one group.
 *
 *   forward       kern/last.c, or Winograd's form where it pays, as ChannelsLastConv
 *                 few channels: the taps of a pixel are copied side by side
 *   dX, stride 1  is the convolution of dy with the kernel turned round and its channels exchanged, done the same way
 *   dX, strided   rows of dy times W give, for 64 output pixels at a time, what each tap adds to its pixel of X
 *   dW            sums of outer products: kern/outer.c
 *   dB            sums over all pixels, vectors of channels
 * Packing costs one pass over the weights, which is little beside a batch of images. Work is divided by pixels, panels, images or taps:
 * an element is one chain of multiply-adds, so any number of threads gives the same bits. */
#include "ops/op/conv.h"
#include "ops/op/product.h"

#include <stdlib.h>
#include <string.h>

enum { CHUNK = 64, FEW_ROWS = 240, SPLIT_ROWS_MIN = 48, SPLIT_TILES_MIN = 6, RANK = 4 };

struct state {
    struct nn_window window;
    struct op__activation act;
};

static enum op_status prepare(struct op_prepare *p) {
    struct state *s = calloc(1, sizeof *s);
    if (!s) return op__node_fail(p->err, p->node, OP_NOMEM, "out of memory");
    p->node->state = s;
    if (op__attr_int(p->node, "group", 1) != 1) return op__node_fail(p->err, p->node, OP_UNSUPPORTED, "takes one group");
    const enum op_status st = op__nn_window_parse(p, false, &s->window);
    return st == OP_OK ? op__activation_parse(p->node, p->err, &s->act) : st;
}

/* What all of them are about: the forward convolution. */
struct shape {
    struct nn_fit fit;
    struct k_geometry g;
    int64_t images, channels, oc, taps;
    const struct op_tensor *x, *w;
};

static enum op_status shape_of(const struct op_ctx *ctx, int x, int w, struct shape *s) {
    const struct state *state = ctx->state;
    s->x = ctx->in[x];
    s->w = ctx->in[w];
    const enum op_status st = op__nn_window_fit(ctx, &state->window, RANK - 2, s->x->dims + 1, s->w->dims + 2, &s->fit);
    if (st != OP_OK) return st;
    s->images = s->x->dims[0];
    s->channels = s->w->dims[1];
    s->oc = s->w->dims[0];
    s->taps = s->w->dims[2] * s->w->dims[3];
    op__conv_geometry(&s->fit, s->channels, &s->g);
    return OP_OK;
}

/* Checks inputs x and w and sets `out`, the dimensions of the convolution. */
static enum op_status check(struct op_ctx *ctx, int x, int w, struct shape *s, int64_t *out) {
    enum op_status st = op__nn_like(ctx, x, "X", OP_F32, RANK);
    if (st == OP_OK) st = op__nn_like(ctx, w, "W", OP_F32, RANK);
    if (st != OP_OK) return st;
    const struct op_tensor *tx = ctx->in[x], *tw = ctx->in[w];
    if (tw->dims[1] != tx->dims[3] || op_tensor_count(tw) <= 0) {
        char text_x[160], text_w[160];
        return op__fail(ctx, OP_BAD_SHAPE, "X is %s and W is %s: W must have as many input channels as X has channels (its last dimension)",
                        op_tensor_describe(tx, text_x, sizeof text_x), op_tensor_describe(tw, text_w, sizeof text_w));
    }
    if ((st = shape_of(ctx, x, w, s)) != OP_OK) return st;
    out[0] = s->images;
    out[1] = s->fit.out[0];
    out[2] = s->fit.out[1];
    out[3] = s->oc;
    return OP_OK;
}

static size_t aligned(size_t bytes) {
    return (bytes + 63) / 64 * 64;
}

/* --- a convolution with weights packed in scratch memory: forward, and dX of stride 1 ------------------------ */

struct conv {
    const struct op_ctx *ctx;
    struct k_last_job job;
    struct k_last_weights weights;
    const float *w;
    int64_t n_units, n_tasks, panels, rows;
    bool by_rows, winograd, few;
    size_t packed_bytes, zeros_bytes, task_bytes;
};

static void plan_conv(const struct op_ctx *ctx, struct conv *c, const struct k_geometry *g, int64_t images, const struct k_last_weights *weights) {
    const struct k_gemm *gemm = op__kern(ctx)->gemm;
    const int64_t threads = op__n_threads(ctx);
    *c = (struct conv){.ctx = ctx, .weights = *weights};
    c->job = (struct k_last_job){.g = g, .images = images, .oc = weights->oc, .x_pixel = weights->channels, .y_pixel = weights->oc, .act = K_COPY};
    c->panels = k_last_panels(gemm, weights->oc);
    c->few = !weights->turned && k_few_channels(g);
    c->winograd = !c->few && k_winograd_last_pays(g, weights->oc);
    c->rows = c->winograd ? k_winograd_last_tiles(&c->job) : images * g->out[0] * g->out[1] * g->out[2];
    c->by_rows = c->few || c->rows >= threads * (c->winograd ? SPLIT_TILES_MIN : SPLIT_ROWS_MIN);
    c->n_units = c->by_rows ? c->rows : c->panels;
    c->n_tasks = threads < c->n_units ? threads : c->n_units;
    c->packed_bytes = aligned(k_last_pack_floats(gemm, weights->oc, weights->channels * weights->taps) * sizeof(float));
    c->zeros_bytes = aligned((size_t)weights->channels * sizeof(float));
    if (c->few) c->task_bytes = aligned((size_t)(FEW_ROWS * weights->taps * weights->channels) * sizeof(float));
    else c->task_bytes = aligned(c->winograd ? k_winograd_last_scratch_floats(op__kern(ctx), &c->job) * sizeof(float) : k_last_scratch_bytes(g));
}

static size_t conv_scratch(const struct conv *c) {
    return c->packed_bytes + c->zeros_bytes + (size_t)c->n_tasks * c->task_bytes;
}

static void pack_task(void *arg, int64_t panel) {
    const struct conv *c = arg;
    k_last_pack_panels(op__kern(c->ctx)->gemm, &c->weights, c->w, panel, panel + 1, c->ctx->scratch);
}

/* Weights as (taps x channels, outputs), used as they lie. */
static void pack_few(const struct conv *c) {
    const struct k_last_weights *s = &c->weights;
    float *to = c->ctx->scratch;
    for (int64_t q = 0; q < s->taps; q++)
        for (int64_t i = 0; i < s->channels; i++)
            for (int64_t o = 0; o < s->oc; o++) *to++ = c->w[o * s->w_out + i * s->w_channel + q];
}

static void few_task(void *arg, int64_t task) {
    const struct conv *c = arg;
    const struct k_last_job *job = &c->job;
    const int64_t from = c->n_units * task / c->n_tasks, to = c->n_units * (task + 1) / c->n_tasks, k = c->weights.taps * c->weights.channels;
    float *columns = (float *)((char *)c->ctx->scratch + c->packed_bytes + c->zeros_bytes + (size_t)task * c->task_bytes);
    for (int64_t r = from; r < to; r += FEW_ROWS) {
        const int64_t n = to - r < FEW_ROWS ? to - r : FEW_ROWS;
        k_few_columns(job->g, job->x, r, n, columns);
        const struct k_product product = {.m = n, .n = job->oc, .k = k, .a = columns, .a_row = k, .a_k = 1, .b = job->w, .b_k = job->oc, .c = job->y + r * job->oc,
                                          .c_row = job->oc,
                                          .then = {.bias_col = job->bias, .residual = job->addend ? job->addend + r * job->oc : NULL, .residual_row = job->oc,
                                                   .act = job->act, .act_a = job->act_a, .act_b = job->act_b}};
        k_gemm(op__kern(c->ctx), &product, 0, n, 0, job->oc);
    }
}

static void conv_task(void *arg, int64_t task) {
    const struct conv *c = arg;
    const int64_t from = c->n_units * task / c->n_tasks, to = c->n_units * (task + 1) / c->n_tasks;
    char *memory = (char *)c->ctx->scratch + c->packed_bytes + c->zeros_bytes + (size_t)task * c->task_bytes;
    const int64_t r0 = c->by_rows ? from : 0, r1 = c->by_rows ? to : c->rows, p0 = c->by_rows ? 0 : from, p1 = c->by_rows ? c->panels : to;
    if (c->winograd) k_winograd_last_run(op__kern(c->ctx), &c->job, r0, r1, p0, p1, (float *)memory);
    else k_last_run(op__kern(c->ctx), &c->job, r0, r1, p0, p1, memory);
}

static void run_conv(struct conv *c) {
    float *zeros = (float *)((char *)c->ctx->scratch + c->packed_bytes);
    memset(zeros, 0, c->zeros_bytes);
    c->job.zeros = zeros;
    c->job.w = c->ctx->scratch;
    if (c->few) pack_few(c);
    else op__parallel(c->ctx, c->panels, pack_task, c);
    op__parallel(c->ctx, c->n_tasks, c->few ? few_task : conv_task, c);
}

static struct k_last_weights forward_weights(const struct shape *s) {
    return (struct k_last_weights){.oc = s->oc, .channels = s->channels, .taps = s->taps, .w_out = s->channels * s->taps, .w_channel = s->taps};
}

static enum op_status forward_infer(struct op_ctx *ctx) {
    struct shape s;
    int64_t dims[RANK];
    enum op_status st = check(ctx, 0, 1, &s, dims);
    if (st == OP_OK && nn_in(ctx, 2) && (st = op__nn_like(ctx, 2, "B", OP_F32, 1)) == OP_OK) st = op__nn_shape(ctx, 2, "B", 1, &s.oc);
    if (st == OP_OK && nn_in(ctx, 3) && (st = op__nn_like(ctx, 3, "addend", OP_F32, -1)) == OP_OK) {
        int64_t both[OP_RANK_MAX];
        int rank;
        const struct op_tensor *r = ctx->in[3];
        if (!op__broadcast(RANK, dims, r->rank, r->dims, &rank, both) || rank != RANK || memcmp(both, dims, sizeof dims) != 0) {
            char text[160];
            return op__fail(ctx, OP_BAD_SHAPE, "input 3 (addend) is %s, which does not broadcast to the convolution", op_tensor_describe(r, text, sizeof text));
        }
    }
    if (st == OP_OK) op__set(ctx, 0, OP_F32, RANK, dims);
    return st;
}

static size_t forward_scratch(const struct op_ctx *ctx) {
    struct shape s;
    struct conv c;
    if (shape_of(ctx, 0, 1, &s) != OP_OK) return 0;
    const struct k_last_weights weights = forward_weights(&s);
    plan_conv(ctx, &c, &s.g, s.images, &weights);
    return conv_scratch(&c);
}

static enum op_status forward_run(struct op_ctx *ctx) {
    const struct state *state = ctx->state;
    struct shape s;
    struct conv c;
    if (op_tensor_count(ctx->out[0]) == 0) return OP_OK;
    const enum op_status st = shape_of(ctx, 0, 1, &s);
    if (st != OP_OK) return st;
    const struct k_last_weights weights = forward_weights(&s);
    plan_conv(ctx, &c, &s.g, s.images, &weights);
    c.w = ctx->in[1]->data;
    c.job.x = ctx->in[0]->data;
    c.job.y = ctx->out[0]->data;
    c.job.bias = nn_in(ctx, 2) ? ctx->in[2]->data : NULL;
    const struct op_tensor *r = nn_in(ctx, 3), *y = ctx->out[0];
    const bool later = r && (r->rank != RANK || memcmp(r->dims, y->dims, RANK * sizeof *y->dims) != 0);
    if (!later) {
        c.job.addend = r ? r->data : NULL;
        c.job.act = state->act.fn;
        c.job.act_a = state->act.a;
        c.job.act_b = state->act.b;
    }
    run_conv(&c);
    if (later) {
        op__conv_add_broadcast(y, r, y);
        op__kern(ctx)->math->unary[state->act.fn](op_tensor_count(y), y->data, y->data, state->act.a, state->act.b);
    }
    return OP_OK;
}

static const struct op_desc trained_conv = {.name = "ChannelsLastTrainedConv", .domain = "quern", .since = 1, .in_min = 2, .in_max = 4, .out_min = 1, .out_max = 1,
                                            .prepare = prepare, .release = free, .infer = forward_infer, .scratch = forward_scratch, .run = forward_run,
                                            .cost = op__conv_cost};
OP_REGISTER(trained_conv);

/* --- dX ------------------------------------------------------------------------------------------------------ */

static bool unit_stride(const struct shape *s) {
    return s->g.stride[1] == 1 && s->g.stride[2] == 1;
}

/* dX of stride 1 as a convolution of dy. */
static void plan_turned(const struct op_ctx *ctx, const struct shape *s, struct conv *c, struct k_geometry *turned) {
    *turned = s->g;
    turned->channels = s->oc;
    for (int i = 0; i < 3; i++) {
        turned->in[i] = s->g.out[i];
        turned->out[i] = s->g.in[i];
        turned->begin[i] = (s->g.kernel[i] - 1) * s->g.dilation[i] - s->g.begin[i];
    }
    const struct k_last_weights weights = {.oc = s->channels, .channels = s->oc, .taps = s->taps, .w_out = s->taps, .w_channel = s->channels * s->taps, .turned = true};
    plan_conv(ctx, c, turned, s->images, &weights);
}

struct strided {
    const struct op_ctx *ctx;
    const struct shape *s;
    float *w, *columns; /* (oc, taps, channels); CHUNK rows of taps x channels for each task */
    int64_t n_tasks;
};

static int64_t strided_tasks(const struct op_ctx *ctx, const struct shape *s) {
    const int64_t threads = op__n_threads(ctx);
    return s->images < threads ? s->images : threads;
}

static size_t strided_w_floats(const struct shape *s) {
    return aligned((size_t)(s->oc * s->taps * s->channels) * sizeof(float)) / sizeof(float);
}

static size_t grad_x_scratch(const struct op_ctx *ctx) {
    struct shape s;
    struct conv c;
    struct k_geometry turned;
    if (shape_of(ctx, 2, 1, &s) != OP_OK) return 0;
    if (!unit_stride(&s)) return (strided_w_floats(&s) + (size_t)(strided_tasks(ctx, &s) * CHUNK * s.taps * s.channels)) * sizeof(float);
    plan_turned(ctx, &s, &c, &turned);
    return conv_scratch(&c);
}

/* Adds the columns of output pixels [p0, p0 + n) of an image to the pixels that their taps meet. */
static void add_back(const struct strided *j, int64_t p0, int64_t n, const float *columns, float *dx) {
    const struct k_geometry *g = &j->s->g;
    const struct k_vmath *math = op__kern(j->ctx)->math;
    for (int64_t p = p0; p < p0 + n; p++) {
        const int64_t h0 = p / g->out[2] * g->stride[1] - g->begin[1], w0 = p % g->out[2] * g->stride[2] - g->begin[2];
        for (int64_t a = 0; a < g->kernel[1]; a++)
            for (int64_t b = 0; b < g->kernel[2]; b++, columns += g->channels) {
                const int64_t h = h0 + a * g->dilation[1], w = w0 + b * g->dilation[2];
                if (h < 0 || h >= g->in[1] || w < 0 || w >= g->in[2]) continue;
                float *to = dx + (h * g->in[2] + w) * g->channels;
                math->binary[K_ADD](g->channels, to, false, columns, false, to);
            }
    }
}

static void strided_task(void *arg, int64_t task) {
    const struct strided *j = arg;
    const struct shape *s = j->s;
    const int64_t width = s->taps * s->channels;
    float *columns = j->columns + task * CHUNK * width;
    for (int64_t i = task; i < s->images; i += j->n_tasks) {
        const float *dy = (const float *)j->ctx->in[0]->data + i * s->fit.out_size * s->oc;
        float *dx = (float *)j->ctx->out[0]->data + i * s->fit.in_size * s->channels;
        memset(dx, 0, (size_t)(s->fit.in_size * s->channels) * sizeof *dx);
        for (int64_t p = 0; p < s->fit.out_size; p += CHUNK) {
            const int64_t n = s->fit.out_size - p < CHUNK ? s->fit.out_size - p : CHUNK;
            const struct k_product product = {.m = n, .n = width, .k = s->oc, .a = dy + p * s->oc, .a_row = s->oc, .a_k = 1, .b = j->w, .b_k = width, .c = columns,
                                              .c_row = width};
            k_gemm(op__kern(j->ctx), &product, 0, n, 0, width);
            add_back(j, p, n, columns, dx);
        }
    }
}

static void run_strided(const struct op_ctx *ctx, const struct shape *s) {
    struct strided j = {.ctx = ctx, .s = s, .w = ctx->scratch, .n_tasks = strided_tasks(ctx, s)};
    const float *w = s->w->data;
    j.columns = j.w + strided_w_floats(s);
    for (int64_t o = 0; o < s->oc; o++, w += s->channels * s->taps)
        for (int64_t q = 0; q < s->taps; q++)
            for (int64_t c = 0; c < s->channels; c++) j.w[(o * s->taps + q) * s->channels + c] = w[c * s->taps + q];
    op__parallel(ctx, j.n_tasks, strided_task, &j);
}

/* dy must have the shape of the convolution of x with w. */
static enum op_status grad_infer(struct op_ctx *ctx, int x, int w) {
    struct shape s;
    int64_t dims[RANK];
    enum op_status st = check(ctx, x, w, &s, dims);
    if (st == OP_OK) st = op__nn_like(ctx, 0, "dy", OP_F32, RANK);
    if (st == OP_OK) st = op__nn_shape(ctx, 0, "dy", RANK, dims);
    if (st == OP_OK) op__set_like(ctx, 0, 2);
    return st;
}

static enum op_status grad_x_infer(struct op_ctx *ctx) {
    return grad_infer(ctx, 2, 1);
}

static enum op_status grad_x_run(struct op_ctx *ctx) {
    struct shape s;
    struct conv c;
    struct k_geometry turned;
    if (op_tensor_count(ctx->out[0]) == 0) return OP_OK;
    const enum op_status st = shape_of(ctx, 2, 1, &s);
    if (st != OP_OK) return st;
    if (!unit_stride(&s)) {
        run_strided(ctx, &s);
        return OP_OK;
    }
    plan_turned(ctx, &s, &c, &turned);
    c.w = ctx->in[1]->data;
    c.job.x = ctx->in[0]->data;
    c.job.y = ctx->out[0]->data;
    run_conv(&c);
    return OP_OK;
}

static void grad_cost(const struct op_ctx *ctx, double *flops, double *bytes) {
    const struct op_tensor *dy = ctx->in[0], *w = ctx->in[ctx->node->op_type[strlen(ctx->node->op_type) - 1] == 'X' ? 1 : 2];
    (void)bytes;
    if (op_tensor_count(w) > 0) *flops = 2.0 * (double)op_tensor_count(dy) * (double)(op_tensor_count(w) / w->dims[0]);
}

static const struct op_desc grad_x = {.name = "ChannelsLastConvGradX", .domain = "quern", .since = 1, .in_min = 3, .in_max = 3, .out_min = 1, .out_max = 1,
                                      .prepare = prepare, .release = free, .infer = grad_x_infer, .scratch = grad_x_scratch, .run = grad_x_run, .cost = grad_cost};
OP_REGISTER(grad_x);

/* --- dW ------------------------------------------------------------------------------------------------------ */

struct outer {
    const struct op_ctx *ctx;
    struct k_outer_job job;
    int64_t n_units, n_tasks;
    size_t dw_bytes, zeros_bytes, task_bytes;
    char *scratch; /* dw as kern/outer.c leaves it, zeros, of task 0 */
};

static void plan_outer(const struct op_ctx *ctx, const struct shape *s, struct outer *o) {
    *o = (struct outer){.ctx = ctx, .job = {.g = &s->g, .images = s->images, .oc = s->oc}};
    o->n_units = k_outer_units(op__kern(ctx), &o->job);
    const int64_t threads = op__n_threads(ctx);
    o->n_tasks = threads < o->n_units ? threads : o->n_units;
    o->dw_bytes = aligned((size_t)(s->taps * s->channels * s->oc) * sizeof(float));
    o->zeros_bytes = aligned((size_t)s->channels * sizeof(float));
    o->task_bytes = aligned(k_outer_scratch_bytes(&s->g));
}

static size_t grad_w_scratch(const struct op_ctx *ctx) {
    struct shape s;
    struct outer o;
    if (shape_of(ctx, 1, 2, &s) != OP_OK) return 0;
    plan_outer(ctx, &s, &o);
    return o.dw_bytes + o.zeros_bytes + (size_t)o.n_tasks * o.task_bytes;
}

static void outer_task(void *arg, int64_t task) {
    const struct outer *o = arg;
    k_outer_run(op__kern(o->ctx), &o->job, o->n_units * task / o->n_tasks, o->n_units * (task + 1) / o->n_tasks,
                o->scratch + o->dw_bytes + o->zeros_bytes + (size_t)task * o->task_bytes);
}

/* (taps, channels, oc) to (oc, channels, taps), 16 outputs at a time: a line of memory of the source. */
static void dw_task(void *arg, int64_t task) {
    enum { LINE = 16 };
    const struct outer *o = arg;
    const int64_t oc = o->job.oc, channels = o->job.g->channels, taps = o->job.g->kernel[1] * o->job.g->kernel[2];
    const float *from = o->job.dw;
    float *to = o->ctx->out[0]->data;
    const int64_t o0 = task * LINE, o1 = o0 + LINE < oc ? o0 + LINE : oc;
    for (int64_t c = 0; c < channels; c++)
        for (int64_t q = 0; q < taps; q++)
            for (int64_t i = o0; i < o1; i++) to[(i * channels + c) * taps + q] = from[(q * channels + c) * oc + i];
}

static enum op_status grad_w_infer(struct op_ctx *ctx) {
    return grad_infer(ctx, 1, 2);
}

static enum op_status grad_w_run(struct op_ctx *ctx) {
    struct shape s;
    struct outer o;
    const enum op_status st = shape_of(ctx, 1, 2, &s);
    if (st != OP_OK) return st;
    plan_outer(ctx, &s, &o);
    o.scratch = ctx->scratch;
    o.job.x = ctx->in[1]->data;
    o.job.dy = ctx->in[0]->data;
    o.job.dw = (float *)o.scratch;
    o.job.zeros = memset(o.scratch + o.dw_bytes, 0, o.zeros_bytes);
    op__parallel(ctx, o.n_tasks, outer_task, &o);
    op__parallel(ctx, (s.oc + 15) / 16, dw_task, &o);
    return OP_OK;
}

static const struct op_desc grad_w = {.name = "ChannelsLastConvGradW", .domain = "quern", .since = 1, .in_min = 3, .in_max = 3, .out_min = 1, .out_max = 1,
                                      .prepare = prepare, .release = free, .infer = grad_w_infer, .scratch = grad_w_scratch, .run = grad_w_run, .cost = grad_cost};
OP_REGISTER(grad_w);

/* --- dB ------------------------------------------------------------------------------------------------------ */

static enum op_status grad_b_infer(struct op_ctx *ctx) {
    const enum op_status st = op__nn_like(ctx, 0, "dy", OP_F32, -1);
    if (st != OP_OK) return st;
    if (ctx->in[0]->rank < 1) return op__fail(ctx, OP_BAD_SHAPE, "dy has no channels");
    op__set(ctx, 0, OP_F32, 1, &ctx->in[0]->dims[ctx->in[0]->rank - 1]);
    return OP_OK;
}

static enum op_status grad_b_run(struct op_ctx *ctx) {
    const struct op_tensor *dy = ctx->in[0];
    const struct k_vmath *math = op__kern(ctx)->math;
    const int64_t channels = dy->dims[dy->rank - 1], n = channels ? op_tensor_count(dy) / channels : 0;
    float *db = ctx->out[0]->data;
    for (int64_t c = 0; c < channels; c++) db[c] = 0;
    for (int64_t i = 0; i < n; i++) math->binary[K_ADD](channels, db, false, (const float *)dy->data + i * channels, false, db);
    return OP_OK;
}

static const struct op_desc grad_b = {.name = "ChannelsLastConvGradB", .domain = "quern", .since = 1, .in_min = 1, .in_max = 1, .out_min = 1, .out_max = 1,
                                      .infer = grad_b_infer, .run = grad_b_run};
OP_REGISTER(grad_b);
