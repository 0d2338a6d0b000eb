/* Conv (opset 1, 11): Y[n, m, p] = B[m] + sum over c, kernel position q of W[m, c, q] X[n, group(m), c, stride p + dilation q - pad]. And
 * quern's FusedConv, which the pass fuse_epilogue makes: + another value (input 3), an activation.
 *
 * f32 with up to three spatial dimensions has these ways, NCHW in and out:
 *   product    the weights (packed at load, M output channels x K) times the input's columns (K x output positions). A 1 x 1 kernel
 *              of stride 1 reads the input as it lies if few rows of weights use it; else each panel of 64 positions is
 *              packed block by block of K into cache and used by all rows at once, so the columns never exist in memory.
 *   winograd   3 x 3 of stride 1 with constant weights: minimal filtering, see kern/winograd.c and winograd_m below.
 *   depthwise  one channel a group: a kernel of its own over padded planes.
 *   ref        everything else (f64, f16, bf16, more dimensions): windows in plain C.
 * The unit of work is (image, group, panel, part of the rows); any division gives the same bits, as an element is one chain over
 * rising (channel, kernel position), or one column of Winograd's products. Input 3 of the fused form is of the output's shape in practice and is added in registers; where
 * it broadcasts, the convolution goes to scratch memory first. */
#include "ops/kern/kern.h"
#include "ops/op/conv.h"
#include "ops/op/product.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum {
    ROWS_TO_PACK = 64, /* output channels from which a 1 x 1 kernel's panel is copied: the copy then costs less than scattered reads */
    VECTOR_SLACK = 16  /* floats behind a packed panel */
};

struct conv_state {
    struct nn_window window;
    int64_t group;
    float *packed; /* weights of each group in k_pack_a's form, one after the other; NULL: not constant */
    int64_t packed_oc, packed_k; /* of a group */
    int winograd_m;              /* 2 or 4: packed is k_winograd_pack's form; 0: it is not */
    struct op__activation act;
};

/* Which of Winograd's forms a constant kernel takes, by its size alone, as shapes are not known at load. Many channels go with small
 * images, where the larger tile of F(4, 3) is mostly padding; beyond the second limit a layer of one image is bound by reading its weights
 * and gains nothing. */
static int winograd_m(const struct conv_state *s, const struct op_tensor *w) {
    enum { CHANNELS_MIN = 16, F4_MAX = 20000, F2_MAX = 70000 }; /* F4: 128 x 128 channels, F2: 256 x 256 */
    const int64_t *d = w->dims;
    if (w->rank != 4 || d[2] != 3 || d[3] != 3 || s->group != 1 || d[0] < CHANNELS_MIN || d[1] < CHANNELS_MIN || d[1] > K_GEMM_BLOCK) return 0;
    for (int i = 0; i < s->window.n_stride; i++)
        if (s->window.stride[i] != 1) return 0;
    for (int i = 0; i < s->window.n_dilation; i++)
        if (s->window.dilation[i] != 1) return 0;
    return d[0] * d[1] <= F4_MAX ? 4 : d[0] * d[1] <= F2_MAX ? 2 : 0;
}

static enum op_status conv_prepare(struct op_prepare *p) {
    struct conv_state *s = calloc(1, sizeof *s);
    if (!s) return op__node_fail(p->err, p->node, OP_NOMEM, "no memory");
    p->node->state = s;
    enum op_status status = op__nn_window_parse(p, false, &s->window);
    if (status == OP_OK) status = op__activation_parse(p->node, p->err, &s->act);
    if (status != OP_OK) return status;
    s->group = op__attr_int(p->node, "group", 1);
    if (s->group < 1) return op__node_fail(p->err, p->node, OP_BAD_VALUE, "group is %lld, expected 1 or more", (long long)s->group);

    const struct op_tensor *w = p->n_in > 1 ? p->in[1] : NULL;
    const struct k_kernels *kern = p->cpu ? k_find(p->cpu) : k_default();
    if (!kern || !w || w->dtype != OP_F32 || w->rank < 3 || w->rank > 5 || op_tensor_count(w) <= 0) return OP_OK;
    if (w->dims[0] % s->group != 0 || (w->dims[1] == 1 && s->group > 1)) return OP_OK;
    s->packed_oc = w->dims[0] / s->group;
    s->packed_k = op_tensor_count(w) / w->dims[0];
    s->winograd_m = winograd_m(s, w);
    const size_t floats = k_pack_a_floats(kern->gemm, s->packed_oc, s->packed_k);
    int64_t bytes;
    if (!op__mul(s->group, (int64_t)(floats * sizeof(float)), &bytes)) return op__node_fail(p->err, p->node, OP_LIMIT, "the weights are too large");
    bool filled;
    s->packed = op__pack_alloc(p, s->winograd_m ? "winograd" : "rows", (size_t)bytes, &filled);
    const float *data = s->packed && !filled ? op__prepare_data(p, 1) : NULL;
    if (!s->packed || (!filled && !data)) return op__node_fail(p->err, p->node, OP_NOMEM, "no memory to pack weights of %lld bytes", (long long)bytes);
    if (!filled && s->winograd_m) k_winograd_pack(kern, w->dims[0], w->dims[1], data, s->packed);
    for (int64_t i = 0; i < s->group && !filled && !s->winograd_m; i++)
        k_pack_a(kern->gemm, s->packed_oc, s->packed_k, data + i * s->packed_oc * s->packed_k, s->packed_k, 1, s->packed + (size_t)i * floats);
    p->consumed |= 1u << 1;
    return OP_OK;
}

static void conv_release(void *state) {
    free(state);
}

/* --- shapes ---------------------------------------------------------------------------------------------- */

static enum op_status conv_fit(const struct op_ctx *ctx, struct nn_fit *fit) {
    const struct conv_state *s = ctx->state;
    return op__nn_window_fit(ctx, &s->window, ctx->in[0]->rank - 2, ctx->in[0]->dims + 2, ctx->in[1]->dims + 2, fit);
}

/* The shape of the convolution itself. */
static void convolved_dims(const struct op_ctx *ctx, const struct nn_fit *fit, int64_t *dims) {
    dims[0] = ctx->in[0]->dims[0];
    dims[1] = ctx->in[1]->dims[0];
    memcpy(dims + 2, fit->out, (size_t)fit->rank * sizeof *dims);
}

static enum op_status conv_infer(struct op_ctx *ctx) {
    const struct conv_state *s = ctx->state;
    const struct op_tensor *x = ctx->in[0], *w = ctx->in[1], *b = nn_in(ctx, 2);
    char text_x[160], text_w[160];
    enum op_status status = op__nn_float(ctx, 0, "X");
    if (status == OP_OK) status = op__nn_like(ctx, 1, "W", x->dtype, x->rank);
    if (status != OP_OK) return status;
    op_tensor_describe(x, text_x, sizeof text_x);
    op_tensor_describe(w, text_w, sizeof text_w);
    if (x->rank < 3) return op__fail(ctx, OP_BAD_SHAPE, "input X is %s, expected batch, channels and at least one spatial dimension", text_x);
    if (w->dims[0] % s->group != 0 || x->dims[1] % s->group != 0 || w->dims[1] != x->dims[1] / s->group)
        return op__fail(ctx, OP_BAD_SHAPE, "input X is %s and W is %s with %lld groups: W must have %lld / %lld input channels and a multiple of %lld outputs",
                        text_x, text_w, (long long)s->group, (long long)x->dims[1], (long long)s->group, (long long)s->group);
    if (b) {
        status = op__nn_like(ctx, 2, "B", x->dtype, 1);
        if (status == OP_OK) status = op__nn_shape(ctx, 2, "B", 1, w->dims);
        if (status != OP_OK) return status;
    }
    struct nn_fit fit;
    status = conv_fit(ctx, &fit);
    if (status != OP_OK) return status;
    int64_t dims[OP_RANK_MAX];
    convolved_dims(ctx, &fit, dims);
    op__set(ctx, 0, x->dtype, x->rank, dims);
    return OP_OK;
}

static enum op_status fused_infer(struct op_ctx *ctx) {
    const struct op_tensor *x = ctx->in[0], *r = nn_in(ctx, 3);
    enum op_status status = conv_infer(ctx);
    if (status != OP_OK) return status;
    if (x->dtype != OP_F32 || x->rank > 5)
        return op__fail(ctx, OP_UNSUPPORTED, "input X is %s of rank %d, expected f32 of rank 3 to 5", op_type_name(x->dtype), x->rank);
    if (!r) return OP_OK;
    struct nn_fit fit;
    int64_t dims[OP_RANK_MAX];
    int rank;
    status = op__nn_like(ctx, 3, "addend", OP_F32, -1);
    if (status == OP_OK) status = conv_fit(ctx, &fit);
    if (status != OP_OK) return status;
    convolved_dims(ctx, &fit, dims);
    if (!op__broadcast(x->rank, dims, r->rank, r->dims, &rank, dims)) {
        char text[160];
        return op__fail(ctx, OP_BAD_SHAPE, "input 3 (addend) is %s, which does not broadcast with the convolution", op_tensor_describe(r, text, sizeof text));
    }
    op__set(ctx, 0, OP_F32, rank, dims);
    return OP_OK;
}

/* --- the fast ways --------------------------------------------------------------------------------------- */

enum way { WAY_REF, WAY_DEPTHWISE, WAY_PRODUCT, WAY_POINTWISE, WAY_WINOGRAD };

struct plan {
    struct k_geometry g;
    enum way way;
    int64_t images, oc, k, in_size, out_size; /* oc: of a group; sizes of a plane */
    size_t packed_group;                      /* floats of one group's packed weights */
    int64_t panels, parts, part_rows;         /* of a group */
    struct op_tensor y;                       /* the convolution: the output, or scratch memory where the addend broadcasts */
    bool y_in_scratch;
    const float *addend; /* NULL: none, or not here */
    struct op__activation act;
};

void op__conv_geometry(const struct nn_fit *fit, int64_t channels, struct k_geometry *g) {
    g->channels = channels;
    for (int a = 0; a < 3; a++) {
        const int from = a - (3 - fit->rank);
        g->in[a] = from < 0 ? 1 : fit->in[from];
        g->out[a] = from < 0 ? 1 : fit->out[from];
        g->kernel[a] = from < 0 ? 1 : fit->kernel[from];
        g->stride[a] = from < 0 ? 1 : fit->stride[from];
        g->dilation[a] = from < 0 ? 1 : fit->dilation[from];
        g->begin[a] = from < 0 ? 0 : fit->begin[from];
    }
}

/* Whether the padded copy of a plane is of the size of its input and output. */
static bool padding_is_small(const struct nn_fit *fit) {
    int64_t size = 1;
    for (int a = 0; a < fit->rank; a++)
        if (!op__mul(size, (fit->out[a] - 1) * fit->stride[a] + (fit->kernel[a] - 1) * fit->dilation[a] + 1 + fit->stride[a], &size)) return false;
    return size / 16 <= fit->in_size + fit->out_size + 65536;
}

/* A 1 x 1 kernel without stride and padding: the input as it lies is the matrix. One dimension of all positions. */
static bool make_pointwise(struct k_geometry *g) {
    for (int a = 0; a < 3; a++)
        if (g->kernel[a] != 1 || g->stride[a] != 1 || g->begin[a] != 0 || g->in[a] != g->out[a]) return false;
    g->in[2] = g->out[2] = g->in[0] * g->in[1] * g->in[2];
    g->in[0] = g->in[1] = g->out[0] = g->out[1] = 1;
    return true;
}

static void set_output(const struct op_ctx *ctx, const struct nn_fit *fit, struct plan *p) {
    const struct op_tensor *r = nn_in(ctx, 3), *out = ctx->out[0];
    p->y = (struct op_tensor){.dtype = OP_F32, .rank = ctx->in[0]->rank};
    convolved_dims(ctx, fit, p->y.dims);
    const size_t bytes = (size_t)p->y.rank * sizeof *p->y.dims;
    p->y_in_scratch = r && (r->rank != p->y.rank || memcmp(r->dims, p->y.dims, bytes) != 0 || (out && (out->rank != r->rank || memcmp(out->dims, r->dims, bytes) != 0)));
    if (p->y_in_scratch) return;
    p->y.data = out ? out->data : NULL;
    p->addend = r ? r->data : NULL;
    p->act = ((const struct conv_state *)ctx->state)->act;
}

static bool packs_weights_at_run(const struct op_ctx *ctx, const struct plan *p) {
    const struct conv_state *s = ctx->state;
    return !(s->packed && s->packed_oc == p->oc && s->packed_k == p->k);
}

static struct k_winograd_job winograd_job(const struct op_ctx *ctx, const struct plan *p) {
    const struct conv_state *s = ctx->state;
    return (struct k_winograd_job){.g = &p->g, .m = s->winograd_m, .images = p->images, .oc = p->oc, .x = ctx->in[0]->data, .w = s->packed, .y = p->y.data,
                                   .bias = nn_in(ctx, 2) ? ctx->in[2]->data : NULL, .addend = p->addend, .act = p->act.fn, .act_a = p->act.a,
                                   .act_b = p->act.b};
}

static void make_plan(const struct op_ctx *ctx, struct plan *p) {
    const struct conv_state *s = ctx->state;
    const struct op_tensor *x = ctx->in[0], *w = ctx->in[1];
    const struct k_gemm *gemm = op__kern(ctx)->gemm;
    struct nn_fit fit;
    *p = (struct plan){.way = WAY_REF};
    if (x->dtype != OP_F32 || x->rank > 5 || conv_fit(ctx, &fit) != OP_OK) return;
    op__conv_geometry(&fit, w->dims[1], &p->g);
    set_output(ctx, &fit, p);
    p->images = x->dims[0];
    p->oc = w->dims[0] / s->group;
    p->k = w->dims[1] * p->g.kernel[0] * p->g.kernel[1] * p->g.kernel[2];
    p->in_size = fit.in_size;
    p->out_size = fit.out_size;
    if (s->group > 1 && w->dims[1] == 1 && fit.rank <= 2 && padding_is_small(&fit)) {
        p->way = WAY_DEPTHWISE;
        return;
    }
    const bool pointwise = make_pointwise(&p->g);
    p->way = s->winograd_m && !packs_weights_at_run(ctx, p) ? WAY_WINOGRAD : pointwise && p->oc < ROWS_TO_PACK ? WAY_POINTWISE : WAY_PRODUCT;
    p->packed_group = k_pack_a_floats(gemm, p->oc, p->k);
    p->panels = (p->out_size + gemm->nr - 1) / gemm->nr;
    int64_t units = p->images * s->group * p->panels;
    if (p->way == WAY_WINOGRAD) {
        const struct k_winograd_job job = winograd_job(ctx, p);
        units = p->panels = k_winograd_blocks(op__kern(ctx), &job);
    }
    /* Rows are divided only where panels are too few for the threads: each part packs its panel again. */
    const int64_t tiles = (p->oc + gemm->mr - 1) / gemm->mr, wanted = op__n_threads(ctx);
    p->parts = units >= wanted || units == 0 ? 1 : (wanted + units - 1) / units;
    if (p->parts > tiles) p->parts = tiles > 0 ? tiles : 1;
    p->part_rows = (tiles + p->parts - 1) / p->parts * gemm->mr;
}

static size_t panel_floats(const struct op_ctx *ctx, const struct plan *p) {
    if (p->way == WAY_WINOGRAD) {
        const struct k_winograd_job job = winograd_job(ctx, p);
        return k_winograd_scratch_floats(op__kern(ctx), &job);
    }
    const int64_t rows = p->k < K_GEMM_BLOCK ? p->k : K_GEMM_BLOCK;
    return p->way == WAY_PRODUCT ? (size_t)(rows * op__kern(ctx)->gemm->nr + VECTOR_SLACK) : 0;
}

/* Scratch memory: the convolution if it goes there, weights packed at run time, then a panel or a padded plane for each thread. */
static size_t y_floats(const struct plan *p) {
    return p->y_in_scratch ? ((size_t)op_tensor_count(&p->y) + 15) / 16 * 16 : 0;
}

static size_t conv_scratch(const struct op_ctx *ctx) {
    const struct conv_state *s = ctx->state;
    struct plan p;
    make_plan(ctx, &p);
    const size_t n_threads = (size_t)op__n_threads(ctx);
    if (p.way == WAY_REF) return 0;
    if (p.way == WAY_DEPTHWISE) return (y_floats(&p) + n_threads * k_depthwise_floats(&p.g)) * sizeof(float);
    const size_t weights = packs_weights_at_run(ctx, &p) ? (size_t)s->group * p.packed_group : 0;
    return (y_floats(&p) + weights + n_threads * panel_floats(ctx, &p)) * sizeof(float);
}

struct conv_job {
    const struct op_ctx *ctx;
    const struct plan *plan;
    const float *weights;
    float *scratch; /* of task 0 */
    int64_t n_tasks, n_units;
};

static struct k_product unit_product(const struct conv_job *job, int64_t image, int64_t group) {
    const struct op_ctx *ctx = job->ctx;
    const struct conv_state *s = ctx->state;
    const struct plan *p = job->plan;
    const float *bias = nn_in(ctx, 2) ? ctx->in[2]->data : NULL;
    const int64_t plane = (image * s->group + group) * p->oc * p->out_size;
    return (struct k_product){.m = p->oc, .n = p->out_size, .k = p->k, .a = job->weights + (size_t)group * p->packed_group, .a_packed = true,
                              .c = (float *)p->y.data + plane, .c_row = p->out_size,
                              .then = {.bias_row = bias ? bias + group * p->oc : NULL, .residual = p->addend ? p->addend + plane : NULL,
                                       .residual_row = p->out_size, .act = p->act.fn, .act_a = p->act.a, .act_b = p->act.b}};
}

static void product_unit(const struct conv_job *job, int64_t unit, float *panel) {
    const struct conv_state *s = job->ctx->state;
    const struct k_kernels *kern = op__kern(job->ctx);
    const struct plan *p = job->plan;
    const int64_t nr = kern->gemm->nr, at = unit / p->parts, j = at % p->panels * nr, group = at / p->panels % s->group, image = at / p->panels / s->group;
    const int64_t m0 = unit % p->parts * p->part_rows, m1 = m0 + p->part_rows < p->oc ? m0 + p->part_rows : p->oc;
    const int64_t n = p->out_size - j < nr ? p->out_size - j : nr;
    const float *x = (const float *)job->ctx->in[0]->data + (image * s->group + group) * p->g.channels * p->in_size;
    const struct k_product product = unit_product(job, image, group);
    int64_t k0 = 0;
    do {
        const int64_t k1 = k0 + K_GEMM_BLOCK < p->k ? k0 + K_GEMM_BLOCK : p->k;
        if (p->way == WAY_PRODUCT) kern->conv->pack(&p->g, x, k0, k1, j, n, nr, panel);
        if (m0 < m1)
            k_gemm_panel(kern, &product, m0, m1, j, n, k0, k1, p->way == WAY_PRODUCT ? panel : x + k0 * p->in_size + j,
                         p->way == WAY_PRODUCT ? nr : p->in_size);
        k0 = k1;
    } while (k0 < p->k);
}

static void product_task(void *arg, int64_t task) {
    const struct conv_job *job = arg;
    float *panel = job->scratch + (size_t)task * panel_floats(job->ctx, job->plan);
    for (int64_t unit = task; unit < job->n_units; unit += job->n_tasks) product_unit(job, unit, panel);
}

static void winograd_task(void *arg, int64_t task) {
    const struct conv_job *job = arg;
    const struct plan *p = job->plan;
    const struct k_winograd_job w = winograd_job(job->ctx, p);
    float *scratch = job->scratch + (size_t)task * panel_floats(job->ctx, p);
    if (p->parts == 1) {
        k_winograd_run(op__kern(job->ctx), &w, task, job->n_tasks, 0, p->oc, scratch);
        return;
    }
    for (int64_t unit = task; unit < job->n_units; unit += job->n_tasks) { /* few blocks: each is divided */
        const int64_t m0 = unit % p->parts * p->part_rows, m1 = m0 + p->part_rows < p->oc ? m0 + p->part_rows : p->oc;
        if (m0 < m1) k_winograd_run(op__kern(job->ctx), &w, unit / p->parts, p->panels, m0, m1, scratch);
    }
}

static void depthwise_task(void *arg, int64_t task) {
    const struct conv_job *job = arg;
    const struct op_ctx *ctx = job->ctx;
    const struct conv_state *s = ctx->state;
    const struct plan *p = job->plan;
    const struct k_kernels *kern = op__kern(ctx);
    const size_t floats = k_depthwise_floats(&p->g);
    float *padded = job->scratch + (size_t)task * floats;
    const float *bias = nn_in(ctx, 2) ? ctx->in[2]->data : NULL;
    const struct op__activation *act = &p->act;
    const bool in_kernel = !p->addend && (act->fn == K_RELU || act->fn == K_CLIP);
    const float lo = !in_kernel ? -INFINITY : act->fn == K_CLIP ? act->a : 0, hi = in_kernel && act->fn == K_CLIP ? act->b : INFINITY;

    memset(padded, 0, floats * sizeof *padded);
    for (int64_t unit = task; unit < job->n_units; unit += job->n_tasks) { /* unit: image and output channel */
        const int64_t channels = s->group * p->oc, oc = unit % channels, image = unit / channels;
        const float *x = (const float *)ctx->in[0]->data + (image * s->group + oc / p->oc) * p->in_size;
        float *y = (float *)p->y.data + unit * p->out_size;
        kern->conv->depthwise(&p->g, x, (const float *)ctx->in[1]->data + oc * p->k, bias ? bias[oc] : 0, lo, hi, y, padded);
        if (p->addend) kern->math->binary[K_ADD](p->out_size, y, false, p->addend + unit * p->out_size, false, y);
        if (!in_kernel) kern->math->unary[act->fn](p->out_size, y, y, act->a, act->b);
    }
}

static void run_parallel(struct conv_job *job, int64_t n_units, void (*fn)(void *, int64_t)) {
    const int64_t n_threads = op__n_threads(job->ctx);
    job->n_units = n_units;
    job->n_tasks = n_threads < n_units ? n_threads : n_units;
    if (job->n_tasks > 0) op__parallel(job->ctx, job->n_tasks, fn, job);
}

/* --- the plain form ------------------------------------------------------------------------------------------ */

static double window_sum(const struct op_tensor *x, const struct op_tensor *w, const struct nn_fit *fit, const int64_t *pos, int64_t x_base, int64_t w_base) {
    int64_t first[NN_SPATIAL_MAX], taps[NN_SPATIAL_MAX], start[NN_SPATIAL_MAX], at[NN_SPATIAL_MAX] = {0};
    double sum = 0;
    for (int a = 0; a < fit->rank; a++) {
        nn_taps(fit, a, pos[a], &first[a], &taps[a], &start[a]);
        if (taps[a] == 0) return 0;
    }
    do {
        int64_t i = 0, j = 0;
        for (int a = 0; a < fit->rank; a++) {
            i = i * fit->in[a] + start[a] + at[a] * fit->dilation[a];
            j = j * fit->kernel[a] + first[a] + at[a];
        }
        sum += nn_load(x, x_base + i) * nn_load(w, w_base + j);
    } while (nn_next(at, taps, fit->rank));
    return sum;
}

static enum op_status conv_ref(struct op_ctx *ctx) {
    const struct conv_state *s = ctx->state;
    const struct op_tensor *x = ctx->in[0], *w = ctx->in[1], *b = nn_in(ctx, 2);
    struct nn_fit fit;
    const enum op_status status = conv_fit(ctx, &fit);
    if (status != OP_OK || op_tensor_count(ctx->out[0]) == 0) return status;
    const int64_t oc = w->dims[0], ic = w->dims[1];
    int64_t taps = 1;
    for (int a = 0; a < fit.rank; a++) taps *= fit.kernel[a];
    for (int64_t n = 0; n < x->dims[0]; n++)
        for (int64_t m = 0; m < oc; m++) {
            int64_t pos[NN_SPATIAL_MAX] = {0}, at = (n * oc + m) * fit.out_size;
            const int64_t channel = (n * s->group + m / (oc / s->group)) * ic;
            do {
                double sum = b ? nn_load(b, m) : 0;
                for (int64_t c = 0; c < ic; c++) sum += window_sum(x, w, &fit, pos, (channel + c) * fit.in_size, (m * ic + c) * taps);
                nn_store(ctx->out[0], at++, sum);
            } while (nn_next(pos, fit.out, fit.rank));
        }
    return OP_OK;
}

static void convolve(const struct op_ctx *ctx, const struct plan *p, float *scratch) {
    const struct conv_state *s = ctx->state;
    struct conv_job job = {.ctx = ctx, .plan = p, .weights = s->packed, .scratch = scratch};
    if (op_tensor_count(&p->y) == 0) return;
    if (p->way == WAY_DEPTHWISE) {
        run_parallel(&job, p->images * s->group * p->oc, depthwise_task);
        return;
    }
    if (p->way == WAY_WINOGRAD) {
        run_parallel(&job, p->panels * p->parts, winograd_task);
        return;
    }
    if (packs_weights_at_run(ctx, p)) {
        for (int64_t i = 0; i < s->group; i++)
            k_pack_a(op__kern(ctx)->gemm, p->oc, p->k, (const float *)ctx->in[1]->data + i * p->oc * p->k, p->k, 1, scratch + (size_t)i * p->packed_group);
        job.weights = scratch;
        job.scratch = scratch + (size_t)s->group * p->packed_group;
    }
    run_parallel(&job, p->images * s->group * p->panels * p->parts, product_task);
}

void op__conv_add_broadcast(const struct op_tensor *y, const struct op_tensor *r, const struct op_tensor *out) {
    const struct op_tensor *const side[2] = {y, r};
    int64_t step[2][OP_RANK_MAX], at[OP_RANK_MAX] = {0}, i = 0;
    for (int k = 0; k < 2; k++) {
        int64_t size = 1;
        for (int a = out->rank - 1, b = side[k]->rank - 1; a >= 0; a--, b--) {
            step[k][a] = b >= 0 && side[k]->dims[b] != 1 ? size : 0;
            if (b >= 0) size *= side[k]->dims[b];
        }
    }
    if (op_tensor_count(out) == 0) return;
    do {
        int64_t from[2] = {0, 0};
        for (int a = 0; a < out->rank; a++) from[0] += at[a] * step[0][a], from[1] += at[a] * step[1][a];
        ((float *)out->data)[i++] = ((const float *)y->data)[from[0]] + ((const float *)r->data)[from[1]];
    } while (nn_next(at, out->dims, out->rank));
}

static enum op_status conv_run(struct op_ctx *ctx) {
    const struct conv_state *s = ctx->state;
    struct plan p;
    make_plan(ctx, &p);
    if (p.way == WAY_REF) return conv_ref(ctx);
    if (p.y_in_scratch) p.y.data = ctx->scratch;
    convolve(ctx, &p, ctx->scratch ? (float *)ctx->scratch + y_floats(&p) : NULL);
    if (!p.y_in_scratch) return OP_OK;
    op__conv_add_broadcast(&p.y, ctx->in[3], ctx->out[0]);
    op__kern(ctx)->math->unary[s->act.fn](op_tensor_count(ctx->out[0]), ctx->out[0]->data, ctx->out[0]->data, s->act.a, s->act.b);
    return OP_OK;
}

void op__conv_cost(const struct op_ctx *ctx, double *flops, double *bytes) {
    const struct op_tensor *y = ctx->out[0], *w = ctx->in[1];
    (void)bytes;
    if (y && w->dims[0] > 0) *flops = 2.0 * (double)op_tensor_count(y) * (double)(op_tensor_count(w) / w->dims[0]);
}

static const struct op_desc conv = {
    .name = "Conv",
    .domain = "",
    .since = 1,
    .flags = OP_F_LAZY,
    .in_min = 2,
    .in_max = 3,
    .out_min = 1,
    .out_max = 1,
    .prepare = conv_prepare,
    .release = conv_release,
    .infer = conv_infer,
    .scratch = conv_scratch,
    .run = conv_run,
    .ref = conv_ref,
    .cost = op__conv_cost,
};
OP_REGISTER(conv);

static const struct op_desc fused_conv = {
    .name = "FusedConv",
    .domain = "quern",
    .since = 1,
    .flags = OP_F_LAZY,
    .in_min = 2,
    .in_max = 4,
    .out_min = 1,
    .out_max = 1,
    .prepare = conv_prepare,
    .release = conv_release,
    .infer = fused_infer,
    .scratch = conv_scratch,
    .run = conv_run,
    .cost = op__conv_cost,
};
OP_REGISTER(fused_conv);
