/* What Gemm, MatMul and their fused forms share: the plain product of every type, the threads around k_gemm, packing at load. */
#include "ops/op/product.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* --- plain C ------------------------------------------------------------------------------------------ */

static void product_narrow(const struct op__product *p) {
    const uint16_t *a = p->a, *b = p->b;
    for (int64_t i = 0; i < p->m; i++)
        for (int64_t j = 0; j < p->n; j++) {
            float sum = 0.0f;
            for (int64_t k = 0; k < p->k; k++)
                sum = fmaf(op__narrow_load(p->dtype, a + i * p->a_i + k * p->a_k), op__narrow_load(p->dtype, b + k * p->b_k + j * p->b_j), sum);
            op__narrow_store(p->dtype, (uint16_t *)p->c + i * p->c_i + j, sum);
        }
}

/* Rows of B are the inner loop, so that it is contiguous in the ordinary case and each element is still one chain over k. */
#define DEFINE_PRODUCT(name, type, step)                                                           \
    static void name(const struct op__product *p) {                                                \
        for (int64_t i = 0; i < p->m; i++) {                                                       \
            type *c = (type *)p->c + i * p->c_i;                                                   \
            for (int64_t j = 0; j < p->n; j++) c[j] = 0;                                           \
            for (int64_t k = 0; k < p->k; k++) {                                                   \
                const type x = ((const type *)p->a)[i * p->a_i + k * p->a_k];                      \
                const type *b = (const type *)p->b + k * p->b_k;                                   \
                if (p->b_j == 1)                                                                   \
                    for (int64_t j = 0; j < p->n; j++) c[j] = step(x, b[j], c[j]);                 \
                else                                                                               \
                    for (int64_t j = 0; j < p->n; j++) c[j] = step(x, b[j * p->b_j], c[j]);        \
            }                                                                                      \
        }                                                                                          \
    }
#define MULTIPLY_ADD(x, y, z) ((z) + (x) * (y))

DEFINE_PRODUCT(product_f32, float, fmaf)
DEFINE_PRODUCT(product_f64, double, MULTIPLY_ADD)
DEFINE_PRODUCT(product_u32, uint32_t, MULTIPLY_ADD)
DEFINE_PRODUCT(product_u64, uint64_t, MULTIPLY_ADD)

bool op__product_type(enum op_type dtype) {
    return dtype == OP_F32 || dtype == OP_F64 || dtype == OP_F16 || dtype == OP_BF16 || dtype == OP_I32 || dtype == OP_U32 || dtype == OP_I64 ||
           dtype == OP_U64;
}

void op__product_plain(const struct op__product *p) {
    switch (p->dtype) {
    case OP_F32: product_f32(p); return;
    case OP_F64: product_f64(p); return;
    case OP_F16:
    case OP_BF16: product_narrow(p); return;
    case OP_I32:
    case OP_U32: product_u32(p); return;
    default: product_u64(p); return;
    }
}

/* --- threads -------------------------------------------------------------------------------------------- */

struct gemm_job {
    const struct k_kernels *kern;
    const struct k_product *product;
    bool by_rows;
    int64_t chunk;
};

static void gemm_task(void *arg, int64_t task) {
    const struct gemm_job *job = arg;
    const struct k_product *p = job->product;
    const int64_t from = task * job->chunk, to = from + job->chunk;
    if (job->by_rows)
        k_gemm(job->kern, p, from, to < p->m ? to : p->m, 0, p->n);
    else
        k_gemm(job->kern, p, 0, p->m, from, to < p->n ? to : p->n);
}

void op__gemm(const struct op_ctx *ctx, const struct k_product *p) {
    const struct k_kernels *kern = op__kern(ctx);
    const int64_t mr = kern->gemm->mr, nr = kern->gemm->nr, tiles_m = (p->m + mr - 1) / mr, tiles_n = (p->n + nr - 1) / nr;
    const int64_t n_threads = op__n_threads(ctx);
    if (n_threads == 1 || tiles_m * tiles_n < 4) {
        k_gemm(kern, p, 0, p->m, 0, p->n);
        return;
    }
    struct gemm_job job = {.kern = kern, .product = p, .by_rows = tiles_m >= tiles_n};
    const int64_t tiles = job.by_rows ? tiles_m : tiles_n, tiles_a_task = (tiles + n_threads - 1) / n_threads;
    job.chunk = tiles_a_task * (job.by_rows ? mr : nr);
    op__parallel(ctx, (tiles + tiles_a_task - 1) / tiles_a_task, gemm_task, &job);
}

/* --- packing at load ------------------------------------------------------------------------------------ */

enum op_status op__rhs_pack(struct op_prepare *p, int index, bool transposed, struct op__packed_rhs *dst) {
    *dst = (struct op__packed_rhs){0};
    const struct op_tensor *t = index < p->n_in ? p->in[index] : NULL;
    const struct k_kernels *kern = p->cpu ? k_find(p->cpu) : k_default();
    if (!kern || !t || t->kind != OP_KIND_TENSOR || t->dtype != OP_F32 || t->rank < 1 || op_tensor_count(t) <= 0) return OP_OK;
    const int64_t rows = t->rank == 1 ? t->dims[0] : t->dims[t->rank - 2], cols = t->rank == 1 ? 1 : t->dims[t->rank - 1];
    dst->k = transposed ? cols : rows;
    dst->n = transposed ? rows : cols;
    dst->count = op_tensor_count(t) / (rows * cols);
    const size_t floats = k_pack_b_floats(kern->gemm, dst->k, dst->n);
    int64_t bytes;
    if (!op__mul(dst->count, (int64_t)(floats * sizeof(float)), &bytes)) return op__node_fail(p->err, p->node, OP_LIMIT, "the matrix is too large");
    bool filled;
    float *packed = op__pack_alloc(p, "columns", (size_t)bytes, &filled);
    const float *from = packed && !filled ? op__prepare_data(p, index) : NULL;
    if (!packed || (!filled && !from)) return op__node_fail(p->err, p->node, OP_NOMEM, "no memory to pack a matrix of %lld bytes", (long long)bytes);
    for (int64_t i = 0; i < dst->count && !filled; i++)
        k_pack_b(kern->gemm, dst->k, dst->n, from + i * rows * cols, transposed ? 1 : cols, transposed ? cols : 1, packed + (size_t)i * floats);
    dst->data = packed;
    p->consumed |= 1ull << index;
    return OP_OK;
}

/* --- fused activations ---------------------------------------------------------------------------------- */

static const struct {
    const char *name;
    enum k_unary fn;
} activations[] = {
    {"Relu", K_RELU},   {"Clip", K_CLIP}, {"LeakyRelu", K_LEAKY_RELU}, {"Sigmoid", K_SIGMOID}, {"Tanh", K_TANH}, {"HardSigmoid", K_HARD_SIGMOID},
    {"HardSwish", K_HARD_SWISH}, {"Silu", K_SILU}, {"Gelu", K_GELU}, {"GeluTanh", K_GELU_TANH}, {"Mish", K_MISH}, {"Softplus", K_SOFTPLUS}, {"Elu", K_ELU},
};

enum k_unary op__activation_find(const char *name) {
    for (size_t i = 0; i < sizeof activations / sizeof *activations; i++)
        if (strcmp(activations[i].name, name) == 0) return activations[i].fn;
    return K_COPY;
}

enum op_status op__activation_parse_as(const struct op_node *n, struct op_error *err, const char *prefix, struct op__activation *dst) {
    char name[3][48];
    static const char *const ends[] = {"", "_a", "_b"};
    for (int i = 0; i < 3; i++) snprintf(name[i], sizeof name[i], "%sactivation%s", prefix, ends[i]);
    const char *fn = op__attr_string(n, name[0], "");
    *dst = (struct op__activation){.fn = op__activation_find(fn), .a = op__attr_float(n, name[1], 0), .b = op__attr_float(n, name[2], 0)};
    if (*fn && dst->fn == K_COPY) return op__node_fail(err, n, OP_UNSUPPORTED, "attribute %s is \"%.40s\", which has no kernel", name[0], fn);
    return OP_OK;
}

enum op_status op__activation_parse(const struct op_node *n, struct op_error *err, struct op__activation *dst) {
    return op__activation_parse_as(n, err, "", dst);
}
