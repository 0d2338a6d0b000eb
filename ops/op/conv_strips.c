/* quern's ChannelsLastStrips: an expanding 1 x 1 convolution, a depthwise one and a projecting 1 x 1, the first or the last of which may be
 * missing, over f32 images whose channels come last. The pass fuse_strips makes it of ChannelsLastConvs.
 *
 *   X (batch, rows, columns, C), W1 (E, C, 1, 1), B1, Wd (E, 1, kernel), Bd, W2 (O, E, 1, 1), B2, addend → (batch, rows, columns, O or E)
 *
 * The window's attributes are the depthwise one's; activations are expand_activation, activation, project_activation with _a and _b.
 *
 * WHY. The expanded image is the largest of a mobile net and used once: 4.8 MB go to memory and back for 112 x 112 x 96. Here a strip of its
 * rows is made, used and overwritten while it is in L2. A strip keeps the rows that the next one needs, too, so nothing is computed
 * twice. Small images go several at a time, so that weights are read once for all of them.
 *
 * A unit is some images or a strip of one; a task is a run of units. An element is the same chain of multiply-adds as in ChannelsLastConv,
 * so how the work is cut changes no bit. */
#include "ops/op/conv.h"
#include "ops/op/product.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { STRIP_BYTES = 320 << 10, IMAGES_BYTES = 512 << 10 }; /* of expanded rows */
enum { X, W1, B1, WD, BD, W2, B2, ADDEND, N_INPUTS };

struct strips {
    struct nn_window window;
    int64_t in, expanded, out; /* channels */
    const float *expand, *depthwise, *project; /* packed; expand and project may be NULL */
    struct op__activation expand_act, act, project_act;
};

static const struct op_tensor *weights(const struct op_prepare *p, int i) {
    const struct op_tensor *w = i < p->n_in ? p->in[i] : NULL;
    return w && w->dtype == OP_F32 && w->rank == 4 && op_tensor_count(w) > 0 ? w : NULL;
}

static const float *pack(struct op_prepare *p, int input, const char *kind, const struct op_tensor *w) {
    const struct k_kernels *kern = p->cpu ? k_find(p->cpu) : k_default();
    const int64_t oc = w->dims[0], ic = w->dims[1], taps = w->dims[2] * w->dims[3];
    const size_t floats = input == WD ? (size_t)(oc * taps) : k_last_pack_floats(kern->gemm, oc, ic);
    bool filled;
    float *dst = floats < SIZE_MAX / 8 ? op__pack_alloc(p, kind, floats * sizeof *dst, &filled) : NULL;
    const float *data = dst && !filled ? op__prepare_data(p, input) : NULL;
    if (!dst || (!filled && !data)) return NULL;
    p->consumed |= 1u << input;
    if (filled) return dst;
    if (input == WD)
        for (int64_t c = 0; c < oc; c++)
            for (int64_t q = 0; q < taps; q++) dst[q * oc + c] = data[c * taps + q];
    else
        k_last_pack(kern->gemm, oc, ic, 1, data, dst);
    return dst;
}

static enum op_status prepare(struct op_prepare *p) {
    struct strips *s = calloc(1, sizeof *s);
    if (!s) return op__node_fail(p->err, p->node, OP_NOMEM, "out of memory");
    p->node->state = s;
    enum op_status st = op__nn_window_parse(p, false, &s->window);
    if (st == OP_OK) st = op__activation_parse(p->node, p->err, &s->act);
    if (st == OP_OK) st = op__activation_parse_as(p->node, p->err, "expand_", &s->expand_act);
    if (st == OP_OK) st = op__activation_parse_as(p->node, p->err, "project_", &s->project_act);
    if (st != OP_OK) return st;
    const struct op_tensor *w1 = weights(p, W1), *wd = weights(p, WD), *w2 = weights(p, W2);
    const bool has1 = W1 < p->n_in && p->node->in[W1] >= 0, has2 = W2 < p->n_in && p->node->in[W2] >= 0;
    if (!wd || wd->dims[1] != 1 || (has1 && !w1) || (has2 && !w2))
        return op__node_fail(p->err, p->node, OP_UNSUPPORTED, "its weights are not constant f32 tensors of rank 4, depthwise in the middle");
    s->in = w1 ? w1->dims[1] : wd->dims[0];
    s->expanded = wd->dims[0];
    s->out = w2 ? w2->dims[0] : s->expanded;
    if ((w1 && (w1->dims[0] != s->expanded || w1->dims[2] != 1 || w1->dims[3] != 1)) || (w2 && (w2->dims[1] != s->expanded || w2->dims[2] != 1 || w2->dims[3] != 1)))
        return op__node_fail(p->err, p->node, OP_BAD_SHAPE, "its 1 x 1 convolutions do not fit the %lld channels in the middle", (long long)s->expanded);
    if ((w1 && !(s->expand = pack(p, W1, "expand", w1))) || !(s->depthwise = pack(p, WD, "depthwise", wd)) || (w2 && !(s->project = pack(p, W2, "project", w2))))
        return op__node_fail(p->err, p->node, OP_NOMEM, "no memory to pack weights");
    return OP_OK;
}

/* --- shapes ---------------------------------------------------------------------------------------------- */

static enum op_status fit_of(const struct op_ctx *ctx, struct nn_fit *fit) {
    const struct strips *s = ctx->state;
    return op__nn_window_fit(ctx, &s->window, 2, ctx->in[X]->dims + 1, ctx->in[WD]->dims + 2, fit);
}

static void out_dims(const struct op_ctx *ctx, const struct nn_fit *fit, int64_t *dims) {
    dims[0] = ctx->in[X]->dims[0];
    dims[1] = fit->out[0];
    dims[2] = fit->out[1];
    dims[3] = ((const struct strips *)ctx->state)->out;
}

static enum op_status infer(struct op_ctx *ctx) {
    const struct strips *s = ctx->state;
    enum op_status st = op__nn_like(ctx, X, "X", OP_F32, 4);
    if (st == OP_OK && ctx->in[X]->dims[3] != s->in)
        return op__fail(ctx, OP_BAD_SHAPE, "input X has %lld channels, its weights take %lld", (long long)ctx->in[X]->dims[3], (long long)s->in);
    if (st == OP_OK && nn_in(ctx, B1)) st = op__nn_shape(ctx, B1, "B1", 1, &s->expanded);
    if (st == OP_OK && nn_in(ctx, BD)) st = op__nn_shape(ctx, BD, "Bd", 1, &s->expanded);
    if (st == OP_OK && nn_in(ctx, B2)) st = op__nn_shape(ctx, B2, "B2", 1, &s->out);
    for (int i = B1; i <= B2 && st == OP_OK; i++)
        if (nn_in(ctx, i)) st = op__nn_like(ctx, i, "a bias or weight", OP_F32, -1);
    struct nn_fit fit;
    int64_t dims[OP_RANK_MAX];
    int rank = 4;
    if (st == OP_OK) st = fit_of(ctx, &fit);
    if (st != OP_OK) return st;
    out_dims(ctx, &fit, dims);
    const struct op_tensor *r = nn_in(ctx, ADDEND);
    if (r && (st = op__nn_like(ctx, ADDEND, "addend", OP_F32, -1)) != OP_OK) return st;
    if (r && (!op__broadcast(4, dims, r->rank, r->dims, &rank, dims) || rank != 4)) {
        char text[160];
        return op__fail(ctx, OP_BAD_SHAPE, "the addend is %s, which does not broadcast with the convolution", op_tensor_describe(r, text, sizeof text));
    }
    op__set(ctx, 0, OP_F32, 4, dims);
    return OP_OK;
}

/* --- running ----------------------------------------------------------------------------------------------- */

struct plan {
    const struct op_ctx *ctx;
    const struct strips *s;
    struct k_geometry g; /* of the depthwise convolution */
    int64_t images, images_a_unit, rows_a_unit, strips; /* output rows; strips of an image */
    int64_t n_units, n_tasks;
    size_t expanded_bytes, deep_bytes, pointer_bytes; /* of a task */
    struct op_tensor y;
    bool y_in_scratch; /* an addend that broadcasts is added afterwards */
    const float *addend;
    struct op__activation last_act;
    char *scratch;
};

static size_t aligned(size_t bytes) {
    return (bytes + 63) / 64 * 64;
}

/* Input rows that `rows` output rows read. */
static int64_t rows_read(const struct k_geometry *g, int64_t rows) {
    return (rows - 1) * g->stride[1] + (g->kernel[1] - 1) * g->dilation[1] + 1;
}

static void cut(struct plan *p) {
    const struct k_geometry *g = &p->g;
    const int64_t each = g->channels * (int64_t)sizeof(float), line = g->in[2] * each, line_out = g->out[2] * each, image = line * g->in[1];
    p->rows_a_unit = g->out[1];
    p->images_a_unit = image > 0 && image < IMAGES_BYTES ? IMAGES_BYTES / image : 1;
    if (p->images_a_unit > p->images) p->images_a_unit = p->images;
    if (p->images_a_unit < 1) p->images_a_unit = 1;
    if (image > IMAGES_BYTES) {
        p->rows_a_unit = (STRIP_BYTES / line - (g->kernel[1] - 1) * g->dilation[1]) / g->stride[1];
        if (p->rows_a_unit < 2) p->rows_a_unit = 2;
        if (p->rows_a_unit > g->out[1]) p->rows_a_unit = g->out[1];
    }
    p->strips = (g->out[1] + p->rows_a_unit - 1) / p->rows_a_unit;
    p->n_units = p->strips * ((p->images + p->images_a_unit - 1) / p->images_a_unit);
    const int64_t read = rows_read(g, p->rows_a_unit) < g->in[1] ? rows_read(g, p->rows_a_unit) : g->in[1];
    if (p->s->expand) p->expanded_bytes = aligned((size_t)(p->images_a_unit * read * line));
    if (p->s->project) p->deep_bytes = aligned((size_t)(p->images_a_unit * p->rows_a_unit * line_out));
}

static struct k_geometry flat(int64_t channels, int64_t rows) {
    return (struct k_geometry){channels, {1, 1, rows}, {1, 1, rows}, {1, 1, 1}, {1, 1, 1}, {1, 1, 1}, {0, 0, 0}};
}

static bool make_plan(const struct op_ctx *ctx, struct plan *p) {
    struct nn_fit fit;
    *p = (struct plan){.ctx = ctx, .s = ctx->state, .images = ctx->in[X]->dims[0], .y = {.dtype = OP_F32, .rank = 4}};
    if (fit_of(ctx, &fit) != OP_OK) return false;
    op__conv_geometry(&fit, p->s->expanded, &p->g);
    cut(p);
    const struct k_geometry first = flat(p->s->in, 1), last = flat(p->s->expanded, 1);
    const size_t a = k_last_scratch_bytes(&first), b = k_last_scratch_bytes(&last);
    p->pointer_bytes = aligned(a > b ? a : b);
    p->n_tasks = op__n_threads(ctx) < p->n_units ? op__n_threads(ctx) : p->n_units;
    const struct op_tensor *r = nn_in(ctx, ADDEND);
    out_dims(ctx, &fit, p->y.dims);
    p->y_in_scratch = r && (r->rank != 4 || memcmp(r->dims, p->y.dims, 4 * sizeof *r->dims) != 0);
    if (p->y_in_scratch) return true;
    p->y.data = ctx->out[0] ? ctx->out[0]->data : NULL;
    p->addend = r ? r->data : NULL;
    p->last_act = p->s->project ? p->s->project_act : p->s->act;
    return true;
}

static size_t y_bytes(const struct plan *p) {
    return p->y_in_scratch ? aligned((size_t)op_tensor_bytes(&p->y)) : 0;
}

static size_t scratch(const struct op_ctx *ctx) {
    struct plan p;
    if (!make_plan(ctx, &p)) return 0;
    return y_bytes(&p) + (size_t)p.n_tasks * (p.expanded_bytes + p.deep_bytes + p.pointer_bytes);
}

static const float *bias_of(const struct plan *p, int i) {
    return nn_in(p->ctx, i) ? p->ctx->in[i]->data : NULL;
}

static void multiply(const struct plan *p, int64_t in, int64_t out, const float *w, int bias, const struct op__activation *act, int64_t rows, const float *x,
                     const float *addend, float *y, void *pointers) {
    const struct k_kernels *kern = op__kern(p->ctx);
    const struct k_geometry g = flat(in, rows);
    const struct k_last_job job = {.g = &g, .images = 1, .oc = out, .x = x, .x_pixel = in, .w = w, .y = y, .y_pixel = out, .bias = bias_of(p, bias),
                                   .addend = addend, .act = act->fn, .act_a = act->a, .act_b = act->b};
    k_last_run(kern, &job, 0, rows, 0, k_last_panels(kern->gemm, out), pointers);
}

/* Output rows [r0, r1) of one image from its expanded rows [in0, in1), which begin at x. y is the first of those output rows. */
static void go_deep(const struct plan *p, const float *x, int64_t in0, int64_t in1, int64_t r0, int64_t r1, const struct op__activation *act, float *y) {
    const struct k_kernels *kern = op__kern(p->ctx);
    const bool in_kernel = act->fn == K_RELU || act->fn == K_CLIP;
    const float lo = !in_kernel ? -INFINITY : act->fn == K_CLIP ? act->a : 0, hi = in_kernel && act->fn == K_CLIP ? act->b : INFINITY;
    struct k_geometry g = p->g;
    g.in[1] = in1 - in0;
    g.begin[1] += in0 - r0 * g.stride[1];
    kern->conv->depthwise_last(&g, x, p->s->depthwise, bias_of(p, BD), lo, hi, 0, r1 - r0, y);
    const int64_t n = (r1 - r0) * g.out[2] * g.channels;
    if (!in_kernel) kern->math->unary[act->fn](n, y, y, act->a, act->b);
}

struct kept { /* expanded rows that the task's memory holds */
    int64_t image, from, to;
};

/* Rows [in0, in1) of `images` images from `image` on, expanded; where they lie. Rows that are there already are moved to the front. */
static const float *expand(const struct plan *p, int64_t image, int64_t images, int64_t in0, int64_t in1, float *memory, struct kept *kept, void *pointers) {
    const struct strips *s = p->s;
    const int64_t line = p->g.in[2], size = line * p->g.in[1];
    const float *x = p->ctx->in[X]->data;
    if (!s->expand) return x + (image * size + in0 * line) * s->in;
    int64_t have = 0;
    if (p->strips > 1 && kept->image == image && kept->from <= in0 && kept->to > in0) {
        have = (kept->to < in1 ? kept->to : in1) - in0;
        memmove(memory, memory + (in0 - kept->from) * line * s->expanded, (size_t)(have * line * s->expanded) * sizeof *memory);
    }
    const int64_t rows = images > 1 ? images * size : (in1 - in0 - have) * line;
    multiply(p, s->in, s->expanded, s->expand, B1, &s->expand_act, rows, x + (image * size + (in0 + have) * line) * s->in, NULL,
             memory + have * line * s->expanded, pointers);
    *kept = (struct kept){image, in0, in1};
    return memory;
}

static void task(void *arg, int64_t number) {
    const struct plan *p = arg;
    const struct strips *s = p->s;
    const struct k_geometry *g = &p->g;
    const struct op__activation none = {.fn = K_COPY}, *deep_act = p->y_in_scratch && !s->project ? &none : &s->act;
    const int64_t out_line = g->out[2], out_size = out_line * g->out[1], in_size = g->in[1] * g->in[2];
    char *memory = p->scratch + (size_t)number * (p->expanded_bytes + p->deep_bytes + p->pointer_bytes);
    float *expanded = (float *)memory, *deep = (float *)(memory + p->expanded_bytes);
    void *pointers = memory + p->expanded_bytes + p->deep_bytes;
    struct kept kept = {.image = -1};
    for (int64_t unit = p->n_units * number / p->n_tasks; unit < p->n_units * (number + 1) / p->n_tasks; unit++) {
        const int64_t image = unit / p->strips * p->images_a_unit, left = p->images - image, images = left < p->images_a_unit ? left : p->images_a_unit;
        const int64_t r0 = unit % p->strips * p->rows_a_unit, r1 = r0 + p->rows_a_unit < g->out[1] ? r0 + p->rows_a_unit : g->out[1];
        int64_t in0 = r0 * g->stride[1] - g->begin[1], in1 = in0 + rows_read(g, r1 - r0);
        if (in0 < 0 || p->strips == 1) in0 = 0;
        if (in1 > g->in[1] || p->strips == 1) in1 = g->in[1];
        if (in1 < in0) in1 = in0;
        const float *x = expand(p, image, images, in0, in1, expanded, &kept, pointers);
        float *y = (float *)p->y.data + (image * out_size + r0 * out_line) * s->out, *to = s->project ? deep : y;
        for (int64_t i = 0; i < images; i++)
            go_deep(p, x + i * in_size * s->expanded, in0, in1, r0, r1, deep_act, to + i * out_size * s->expanded);
        if (s->project)
            multiply(p, s->expanded, s->out, s->project, B2, &p->last_act, images * (r1 - r0) * out_line, deep,
                     p->addend ? p->addend + (y - (float *)p->y.data) : NULL, y, pointers);
    }
}

static enum op_status run(struct op_ctx *ctx) {
    struct plan p;
    if (op_tensor_count(ctx->out[0]) == 0 || !make_plan(ctx, &p)) return OP_OK;
    if (p.y_in_scratch) {
        p.y.data = ctx->scratch;
        p.last_act = (struct op__activation){.fn = K_COPY};
    }
    p.scratch = (char *)ctx->scratch + y_bytes(&p);
    if (op_tensor_count(&p.y) > 0) op__parallel(ctx, p.n_tasks, task, &p);
    if (!p.y_in_scratch) return OP_OK;
    const struct op__activation *act = &p.s->project_act;
    op__conv_add_broadcast(&p.y, ctx->in[ADDEND], ctx->out[0]);
    op__kern(ctx)->math->unary[act->fn](op_tensor_count(ctx->out[0]), ctx->out[0]->data, ctx->out[0]->data, act->a, act->b);
    return OP_OK;
}

static void cost(const struct op_ctx *ctx, double *flops, double *bytes) {
    const struct strips *s = ctx->state;
    struct nn_fit fit;
    (void)bytes;
    if (fit_of(ctx, &fit) != OP_OK) return;
    const double in = (double)ctx->in[X]->dims[0] * (double)fit.in_size, out = (double)ctx->in[X]->dims[0] * (double)fit.out_size, e = (double)s->expanded;
    *flops = 2 * (s->expand ? in * (double)s->in * e : 0) + 2 * out * e * (double)(fit.kernel[0] * fit.kernel[1]) + 2 * (s->project ? out * e * (double)s->out : 0);
}

static const struct op_desc channels_last_strips = {
    .name = "ChannelsLastStrips",
    .domain = "quern",
    .since = 1,
    .in_min = 4,
    .in_max = N_INPUTS,
    .out_min = 1,
    .out_max = 1,
    .flags = OP_F_LAZY,
    .prepare = prepare,
    .release = free,
    .infer = infer,
    .scratch = scratch,
    .run = run,
    .cost = cost,
};
OP_REGISTER(channels_last_strips);
