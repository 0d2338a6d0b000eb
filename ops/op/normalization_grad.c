/* normalization_grad.c: gradients of Layer-, RMS-, Group-, Instance- and BatchNormalization.
 *
 * With h = (x - mean) r, r = 1 / sqrt(var + epsilon), y = h scale + bias over a set of n elements that share their statistics:
 *
 *   dbias = sum dy          dscale = sum dy h         (over all elements that have this scale)
 *   dx = r (g - sum(g) / n - h sum(g h) / n)          g = dy scale; without sum(g) / n where nothing is centred (RMS)
 *
 * so each set needs two sums and one pass. Operators of the domain quern, which work the statistics out again from x (twice reading x
 * is less than keeping what forward kernels do not give):
 *
 *   LayerNormalizationGrad(dy, x, scale)             axis, epsilon, centred → dx, dscale, dbias; scale of the row's size
 *   GroupNormalizationGrad(dy, x, scale)             num_groups (0: one a channel), per_group, epsilon → dx, dscale, dbias
 *   BatchNormalizationGrad(dy, x, scale, mean, var)  training_mode, epsilon → dx, dscale, dbias; without training_mode mean and var
 *                                                    are constants and so dx = dy scale r
 *
 * Sums over rows or samples: tasks are of fixed size by shape and are added in order. */
#include "ops/op/elementwise.h"
#include "ops/op/nn.h"

#include <math.h>
#include <string.h>

#include "ops/grad.h"

OP_VECTOR_FILE

#define PARTS 16 /* into which rows are divided, at most */

struct job {
    const struct op_ctx *ctx;
    const struct k_vmath *math;
    bool f32, centred, training, per_group;
    double epsilon;
    int64_t n_rows, size;           /* layer: rows of size */
    int64_t n, groups, c, plane;    /* others: samples, groups, channels of a group, elements of a channel */
    int64_t n_parts;
    double *sums; /* scratch: of each part (layer: dscale, dbias), or of each sample and channel */
    void *part_sums;
};

/* s1 = sum of dy scale, s2 = sum of dy scale (x - mean); scale may be NULL. */
static void two_sums_float(const struct job *j, int64_t n, const float *dy, const float *x, const float *scale, double mean, double *s1, double *s2) {
    float g[OP_BLOCK], u[OP_BLOCK];
    for (int64_t at = 0; at < n; at += OP_BLOCK) {
        const int64_t m = n - at < OP_BLOCK ? n - at : OP_BLOCK;
        const float *d = dy + at;
        if (scale) {
            j->math->binary[K_MUL](m, d, false, scale + at, false, g);
            d = g;
        }
        j->math->unary[K_LINEAR](m, x + at, u, 1, (float)-mean);
        *s1 += (double)j->math->sum(m, d);
        *s2 += (double)j->math->dot(m, d, u);
    }
}
static void two_sums_double(const struct job *j, int64_t n, const double *dy, const double *x, const double *scale, double mean, double *s1, double *s2) {
    (void)j;
    for (int64_t i = 0; i < n; i++) {
        const double g = scale ? dy[i] * scale[i] : dy[i];
        *s1 += g;
        *s2 += g * (x[i] - mean);
    }
}
static double sum_float(const struct job *j, int64_t n, const float *x) {
    return (double)j->math->sum(n, x);
}
static double sum_double(const struct job *j, int64_t n, const double *x) {
    double sum = 0;
    (void)j;
    for (int64_t i = 0; i < n; i++) sum += x[i];
    return sum;
}
static double squares_float(const struct job *j, int64_t n, const float *x, double mean) {
    return (double)j->math->sum_square(n, x, (float)mean);
}
static double squares_double(const struct job *j, int64_t n, const double *x, double mean) {
    double sum = 0;
    (void)j;
    for (int64_t i = 0; i < n; i++) sum += (x[i] - mean) * (x[i] - mean);
    return sum;
}

/* dx = a dy scale - b - c (x - mean) */
#define TYPED(T)                                                                                   \
    static void apply_##T(int64_t n, const T *dy, const T *x, const T *scale, double a_, double b_, double c_, double mean_, T *dx) { \
        const T a = (T)a_, b = (T)b_, c = (T)c_, mean = (T)mean_;                                  \
        if (scale) {                                                                               \
            OP_INDEPENDENT for (int64_t i = 0; i < n; i++) dx[i] = a * dy[i] * scale[i] - b - c * (x[i] - mean); \
        } else {                                                                                   \
            OP_INDEPENDENT for (int64_t i = 0; i < n; i++) dx[i] = a * dy[i] - b - c * (x[i] - mean); \
        }                                                                                          \
    }                                                                                              \
    /* One row of Layer- or RMSNormalization; ds and db are added to. */                           \
    static void row_##T(const struct job *j, int64_t r, T *ds, T *db) {                            \
        const int64_t n = j->size;                                                                 \
        const T *dy = (const T *)j->ctx->in[0]->data + r * n, *x = (const T *)j->ctx->in[1]->data + r * n, *scale = j->ctx->in[2]->data; \
        const double mean = j->centred ? sum_##T(j, n, x) / (double)n : 0;                         \
        const double inv = 1 / sqrt(squares_##T(j, n, x, mean) / (double)n + j->epsilon);          \
        double s1 = 0, s2 = 0;                                                                     \
        two_sums_##T(j, n, dy, x, scale, mean, &s1, &s2);                                          \
        if (j->ctx->out[0])                                                                        \
            apply_##T(n, dy, x, scale, inv, j->centred ? inv * s1 / (double)n : 0, inv * inv * inv * s2 / (double)n, mean, \
                      (T *)j->ctx->out[0]->data + r * n);                                          \
        const T m = (T)mean, f = (T)inv;                                                           \
        OP_INDEPENDENT for (int64_t i = 0; i < n; i++) ds[i] += dy[i] * ((x[i] - m) * f);          \
        OP_INDEPENDENT for (int64_t i = 0; i < n; i++) db[i] += dy[i];                             \
    }                                                                                              \
    static void rows_##T(const struct job *j, int64_t part) {                                      \
        T *ds = (T *)j->part_sums + part * 2 * j->size, *db = ds + j->size;                        \
        memset(ds, 0, (size_t)(2 * j->size) * sizeof(T));                                          \
        const int64_t end = (part + 1) * j->n_rows / j->n_parts;                                   \
        for (int64_t r = part * j->n_rows / j->n_parts; r < end; r++) row_##T(j, r, ds, db);       \
    }                                                                                              \
    static void join_rows_##T(const struct job *j, struct op_tensor *out, int64_t at) {            \
        for (int64_t i = 0; i < j->size && out; i++) {                                             \
            T sum = 0;                                                                             \
            for (int64_t p = 0; p < j->n_parts; p++) sum += ((const T *)j->part_sums)[p * 2 * j->size + at + i]; \
            ((T *)out->data)[i] = sum;                                                             \
        }                                                                                          \
    }                                                                                              \
    /* One group of one sample; the sums of its channels go to j->sums. */                         \
    static void group_##T(const struct job *j, int64_t i) {                                        \
        const int64_t group = i % j->groups, n = j->c * j->plane, at = i * n;                      \
        const T *dy = (const T *)j->ctx->in[0]->data + at, *x = (const T *)j->ctx->in[1]->data + at, *scale = j->ctx->in[2]->data; \
        double mean = sum_##T(j, n, x) / (double)n, inv = 1 / sqrt(squares_##T(j, n, x, mean) / (double)n + j->epsilon), s1 = 0, s2 = 0; \
        for (int64_t k = 0; k < j->c; k++) {                                                       \
            double *sums = j->sums + (i * j->c + k) * 2;                                           \
            const double by = (double)scale[j->per_group ? group : group * j->c + k];              \
            sums[0] = sums[1] = 0;                                                                 \
            two_sums_##T(j, j->plane, dy + k * j->plane, x + k * j->plane, NULL, mean, &sums[0], &sums[1]); \
            s1 += by * sums[0];                                                                    \
            s2 += by * sums[1];                                                                    \
            sums[1] *= inv;                                                                        \
        }                                                                                          \
        for (int64_t k = 0; k < j->c && j->ctx->out[0]; k++)                                       \
            apply_##T(j->plane, dy + k * j->plane, x + k * j->plane, NULL, inv * (double)scale[j->per_group ? group : group * j->c + k], \
                      inv * s1 / (double)n, inv * inv * inv * s2 / (double)n, mean, (T *)j->ctx->out[0]->data + at + k * j->plane); \
    }                                                                                              \
    /* One channel of BatchNormalization, all samples. */                                          \
    static void channel_##T(const struct job *j, int64_t c) {                                      \
        const T *dy = j->ctx->in[0]->data, *x = j->ctx->in[1]->data;                               \
        const double n = (double)(j->n * j->plane), scale = (double)((const T *)j->ctx->in[2]->data)[c]; \
        double mean = 0, var = 0, s1 = 0, s2 = 0;                                                  \
        if (j->training) {                                                                         \
            for (int64_t i = 0; i < j->n; i++) mean += sum_##T(j, j->plane, x + (i * j->c + c) * j->plane); \
            mean /= n;                                                                             \
            for (int64_t i = 0; i < j->n; i++) var += squares_##T(j, j->plane, x + (i * j->c + c) * j->plane, mean); \
            var /= n;                                                                              \
        } else {                                                                                   \
            mean = (double)((const T *)j->ctx->in[3]->data)[c];                                    \
            var = (double)((const T *)j->ctx->in[4]->data)[c];                                     \
        }                                                                                          \
        const double inv = 1 / sqrt(var + j->epsilon);                                             \
        for (int64_t i = 0; i < j->n; i++)                                                         \
            two_sums_##T(j, j->plane, dy + (i * j->c + c) * j->plane, x + (i * j->c + c) * j->plane, NULL, mean, &s1, &s2); \
        if (nn_out(j->ctx, 1)) ((T *)j->ctx->out[1]->data)[c] = (T)(s2 * inv);                     \
        if (nn_out(j->ctx, 2)) ((T *)j->ctx->out[2]->data)[c] = (T)s1;                             \
        for (int64_t i = 0; i < j->n && j->ctx->out[0]; i++) {                                     \
            const int64_t at = (i * j->c + c) * j->plane;                                          \
            apply_##T(j->plane, dy + at, x + at, NULL, inv * scale, j->training ? inv * scale * s1 / n : 0, \
                      j->training ? inv * inv * inv * scale * s2 / n : 0, mean, (T *)j->ctx->out[0]->data + at); \
        }                                                                                          \
    }
TYPED(float)
TYPED(double)

/* --- shapes ----------------------------------------------------------------------------------------- */

static enum op_status check_inputs(const struct op_ctx *ctx, int n, const char *const *names) {
    enum op_status st = op__nn_float(ctx, 0, names[0]);
    if (st != OP_OK) return st;
    const enum op_type type = ctx->in[0]->dtype;
    if (type != OP_F32 && type != OP_F64) return op__fail(ctx, OP_BAD_TYPE, "dy is %s, expected f32 or f64", op_type_name(type));
    for (int i = 1; i < n; i++)
        if ((st = op__nn_like(ctx, i, names[i], type, i == 1 ? ctx->in[0]->rank : -1)) != OP_OK) return st;
    return op__nn_shape(ctx, 1, names[1], ctx->in[0]->rank, ctx->in[0]->dims);
}

static const char *const names[] = {"dy", "x", "scale", "mean", "var"};

static void job_init(struct job *j, const struct op_ctx *ctx) {
    const struct op_tensor *x = ctx->in[1];
    *j = (struct job){.ctx = ctx, .math = op__kern(ctx)->math, .f32 = x->dtype == OP_F32, .epsilon = (double)op__attr_float(ctx->node, "epsilon", 1e-5f),
                      .centred = op__attr_int(ctx->node, "centred", 1) != 0, .training = op__attr_int(ctx->node, "training_mode", 0) != 0,
                      .per_group = op__attr_int(ctx->node, "per_group", 0) != 0};
    j->n = x->rank ? x->dims[0] : 1;
    j->c = x->rank > 1 ? x->dims[1] : 1;
    j->plane = 1;
    for (int d = 2; d < x->rank; d++) j->plane *= x->dims[d];
    int64_t groups = op__attr_int(ctx->node, "num_groups", 0);
    j->groups = groups > 0 ? groups : j->c > 0 ? j->c : 1;
}

static enum op_status layer_shape(const struct op_ctx *ctx, struct job *j) {
    const struct op_tensor *x = ctx->in[1];
    job_init(j, ctx);
    const int axis = op__axis(op__attr_int(ctx->node, "axis", -1), x->rank);
    if (axis < 0) return op__fail(ctx, OP_BAD_VALUE, "axis is beyond rank %d", x->rank);
    j->n_rows = j->size = 1;
    for (int d = 0; d < x->rank; d++) *(d < axis ? &j->n_rows : &j->size) *= x->dims[d];
    j->n_parts = j->n_rows < PARTS ? j->n_rows : PARTS;
    return OP_OK;
}

static enum op_status layer_infer(struct op_ctx *ctx) {
    struct job j;
    enum op_status st = check_inputs(ctx, 3, names);
    if (st == OP_OK) st = layer_shape(ctx, &j);
    if (st != OP_OK) return st;
    if (op_tensor_count(ctx->in[2]) != j.size)
        return op__fail(ctx, OP_UNSUPPORTED, "scale has %lld elements, the gradient takes only one for each of the row's %lld", (long long)op_tensor_count(ctx->in[2]), (long long)j.size);
    for (int i = 0; i < 3; i++) op__set_like(ctx, i, i ? 2 : 1);
    return OP_OK;
}
static size_t layer_scratch(const struct op_ctx *ctx) {
    struct job j;
    return layer_shape(ctx, &j) == OP_OK ? (size_t)(j.n_parts * 2 * j.size) * op_type_size(ctx->in[1]->dtype) : 0;
}
static void layer_task(void *arg, int64_t part) {
    const struct job *j = arg;
    if (j->f32) rows_float(j, part);
    else rows_double(j, part);
}
static enum op_status layer_run(struct op_ctx *ctx) {
    struct job j;
    enum op_status st = layer_shape(ctx, &j);
    if (st != OP_OK || j.size == 0) return st;
    j.part_sums = ctx->scratch;
    if (j.n_parts) op__parallel(ctx, j.n_parts, layer_task, &j);
    for (int i = 1; i < 3; i++) {
        if (j.f32) join_rows_float(&j, nn_out(ctx, i), (i - 1) * j.size);
        else join_rows_double(&j, nn_out(ctx, i), (i - 1) * j.size);
    }
    return OP_OK;
}

static enum op_status group_infer(struct op_ctx *ctx) {
    struct job j;
    enum op_status st = check_inputs(ctx, 3, names);
    if (st != OP_OK) return st;
    job_init(&j, ctx);
    if (ctx->in[1]->rank < 2 || j.c % j.groups) return op__fail(ctx, OP_BAD_SHAPE, "%lld channels cannot be split into %lld groups", (long long)j.c, (long long)j.groups);
    const int64_t n = j.per_group ? j.groups : j.c;
    if ((st = op__nn_shape(ctx, 2, "scale", 1, &n)) != OP_OK) return st;
    for (int i = 0; i < 3; i++) op__set_like(ctx, i, i ? 2 : 1);
    return OP_OK;
}
static size_t group_scratch(const struct op_ctx *ctx) {
    return (size_t)(ctx->in[1]->dims[0] * ctx->in[1]->dims[1]) * 2 * sizeof(double);
}
static void group_task(void *arg, int64_t i) {
    const struct job *j = arg;
    if (j->f32) group_float(j, i);
    else group_double(j, i);
}
static enum op_status group_run(struct op_ctx *ctx) {
    struct job j;
    job_init(&j, ctx);
    const int64_t channels = j.c, count = op_tensor_count(ctx->in[1]);
    j.c = channels / j.groups;
    j.sums = ctx->scratch;
    if (count) op__parallel(ctx, j.n * j.groups, group_task, &j);
    for (int o = 1; o < 3; o++) {
        struct op_tensor *out = nn_out(ctx, o);
        const int64_t n = out ? op_tensor_count(out) : 0, each = n && j.per_group ? j.c : 1;
        for (int64_t i = 0; i < n; i++) {
            double sum = 0;
            for (int64_t s = 0; s < j.n && count; s++)
                for (int64_t k = 0; k < each; k++) sum += j.sums[(s * channels + i * each + k) * 2 + (o == 1)];
            nn_store(out, i, sum);
        }
    }
    return OP_OK;
}

static enum op_status batch_infer(struct op_ctx *ctx) {
    struct job j;
    enum op_status st = check_inputs(ctx, 5, names);
    if (st != OP_OK) return st;
    job_init(&j, ctx);
    for (int i = 2; i < 5; i++)
        if ((st = op__nn_shape(ctx, i, names[i], 1, &j.c)) != OP_OK) return st;
    for (int i = 0; i < 3; i++) op__set_like(ctx, i, i ? 2 : 1);
    return OP_OK;
}
static void batch_task(void *arg, int64_t c) {
    const struct job *j = arg;
    if (j->f32) channel_float(j, c);
    else channel_double(j, c);
}
static enum op_status batch_run(struct op_ctx *ctx) {
    struct job j;
    job_init(&j, ctx);
    if (op_tensor_count(ctx->in[1])) op__parallel(ctx, j.c, batch_task, &j);
    else
        for (int i = 1; i < 3; i++)
            if (nn_out(ctx, i) && j.c) memset(ctx->out[i]->data, 0, (size_t)op_tensor_bytes(ctx->out[i]));
    return OP_OK;
}

static const struct op_desc layer_grad_desc = {.name = "LayerNormalizationGrad", .domain = "quern", .since = 1, .in_min = 3, .in_max = 3, .out_min = 1, .out_max = 3,
                                               .infer = layer_infer, .scratch = layer_scratch, .run = layer_run};
OP_REGISTER(layer_grad_desc);
static const struct op_desc group_grad_desc = {.name = "GroupNormalizationGrad", .domain = "quern", .since = 1, .in_min = 3, .in_max = 3, .out_min = 1, .out_max = 3,
                                               .infer = group_infer, .scratch = group_scratch, .run = group_run};
OP_REGISTER(group_grad_desc);
static const struct op_desc batch_grad_desc = {.name = "BatchNormalizationGrad", .domain = "quern", .since = 1, .in_min = 5, .in_max = 5, .out_min = 1, .out_max = 3,
                                               .infer = batch_infer, .run = batch_run};
OP_REGISTER(batch_grad_desc);

/* --- emitting --------------------------------------------------------------------------------------- */

/* dy, x, scale and what follows → dx, dscale, dbias */
static struct op_node *emit_three(struct op_grad *g, const char *op, int n_in) {
    int in[5] = {g->dy[0]}, out[3];
    if (g->dy[0] < 0) return NULL;
    for (int i = 1; i < n_in; i++) in[i] = g->in[i < 3 ? i - 1 : i];
    struct op_node *n = op__emit(g, "quern", op, n_in, in, 3, out);
    op__attr_copy(g, n, "epsilon");
    for (int i = 0; i < 3; i++) op__grad_set(g, i, out[i]);
    return n;
}
/* A loss that looks at the statistics themselves. */
static enum op_status first_output_only(struct op_grad *g) {
    for (int i = 1; i < g->n_out; i++)
        if (g->dy[i] >= 0) return op__grad_refuse(g, "for the statistics that it puts out");
    return OP_OK;
}
static enum op_status layer_grad(struct op_grad *g) {
    struct op_node *n = emit_three(g, "LayerNormalizationGrad", 3);
    op__attr_copy(g, n, "axis");
    if (n && g->node->op_type[0] != 'L' && op__attr_set_int(g->graph, n, "centred", 0) != OP_OK) g->failed = true;
    return first_output_only(g);
}
static enum op_status group_grad(struct op_grad *g) {
    struct op_node *n = emit_three(g, "GroupNormalizationGrad", 3);
    op__attr_copy(g, n, "num_groups");
    op__attr_copy(g, n, "per_group");
    return OP_OK;
}
static enum op_status batch_grad(struct op_grad *g) {
    if (op__attr_int(g->node, "spatial", 1) == 0) return op__grad_refuse(g, "with statistics of each activation (spatial = 0)");
    if (!op__attr_int(g->node, "training_mode", 0) && (op__grad_wants(g, 3) || op__grad_wants(g, 4))) return op__grad_refuse(g, "for its mean and variance");
    op__attr_copy(g, emit_three(g, "BatchNormalizationGrad", 5), "training_mode");
    return first_output_only(g);
}

static const struct op_grad_row normalization_grads[] = {
    {"", "LayerNormalization", layer_grad}, {"", "RMSNormalization", layer_grad}, {"", "SimplifiedLayerNormalization", layer_grad},
    {"com.microsoft", "SimplifiedLayerNormalization", layer_grad}, {"", "GroupNormalization", group_grad}, {"", "InstanceNormalization", group_grad},
    {"", "BatchNormalization", batch_grad},
};
OP_GRADS_REGISTER(normalization_grads);
