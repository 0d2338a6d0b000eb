/* einsum.c: Einsum over any number of operands.
 *
 * The equation gives each letter a number and each dimension behind "..." one too, counted from the
 * right, so that an ellipsis broadcasts. A letter then is a size and, for each operand, a stride: 0
 * where the operand lacks it, the sum of the strides where it has it twice (a diagonal). The result
 * is a loop over the letters of the output around a loop over the others.
 *
 * Two f32 operands whose summed letters stand in both are a matrix product: letters are sorted into
 * those of both operands and the output (batch), of the first (m), of the second (n), and summed
 * ones (k); the operands are copied into (batch, m, k) and (batch, k, n), multiplied by the GEMM
 * kernel and the result is put in order. Everything else runs the plain loop, floats in f64 and
 * integers in 64 bits, which wrap. */
#include "ops/op/elementwise.h"
#include "ops/op/nn.h"
#include "ops/op/product.h"

#include <string.h>

enum { OPERANDS_MAX = 8, LETTERS_MAX = 26 };

struct letter {
    int64_t size;
    int64_t stride[OPERANDS_MAX];
    int64_t out_stride; /* 0 where it is summed */
    bool in_out;
};

struct einsum {
    int n_in, n_letters, n_out; /* the letters of the output come first, in its order */
    struct letter letter[LETTERS_MAX];
    int64_t dims[OP_RANK_MAX]; /* of the output */
};

/* --- the equation ------------------------------------------------------------------------------
 */

enum {
    ELLIPSIS = 128
}; /* the symbol of the ellipsis' dimension i from the right is ELLIPSIS + i */

struct term {
    int n;
    int symbol[OP_RANK_MAX];
};

/* One comma-separated term. rank: of its operand, or -1 for the output, whose ellipsis has `dots`
 * dimensions. */
static const char *parse_term(const char *at, int rank, int dots, struct term *t, bool *has_dots) {
    int letters = 0;
    *has_dots = false;
    for (const char *c = at; *c && *c != ',' && *c != '-'; c++)
        letters += (*c | 32) >= 'a' && (*c | 32) <= 'z';
    if (rank >= 0) dots = rank - letters;
    t->n = 0;
    for (; *at && *at != ',' && *at != '-'; at++) {
        if (*at == ' ') continue;
        if (*at == '.') {
            if (*has_dots || strncmp(at, "...", 3) || dots < 0) return NULL;
            *has_dots = true;
            at += 2;
            for (int i = dots - 1; i >= 0; i--) {
                if (t->n == OP_RANK_MAX) return NULL;
                t->symbol[t->n++] = ELLIPSIS + i;
            }
        } else if ((*at | 32) >= 'a' && (*at | 32) <= 'z') {
            if (t->n == OP_RANK_MAX) return NULL;
            t->symbol[t->n++] = *at;
        } else {
            return NULL;
        }
    }
    return rank < 0 || t->n == rank ? at : NULL;
}

static int find_symbol(const int *symbols, int n, int symbol) {
    for (int i = 0; i < n; i++)
        if (symbols[i] == symbol) return i;
    return -1;
}

/* The output that an equation without "->" has: the ellipsis, then the letters that stand once, in
 * alphabetic order. */
static void implicit_output(const struct term *terms, int n_terms, int dots, struct term *out) {
    out->n = 0;
    for (int i = dots - 1; i >= 0 && out->n < OP_RANK_MAX; i--)
        out->symbol[out->n++] = ELLIPSIS + i;
    for (int c = 'A'; c <= 'z'; c++) {
        int times = 0;
        for (int k = 0; k < n_terms; k++)
            for (int i = 0; i < terms[k].n; i++) times += terms[k].symbol[i] == c;
        if (times == 1 && out->n < OP_RANK_MAX) out->symbol[out->n++] = c;
    }
}

static enum op_status add_operand(const struct op_ctx *ctx, struct einsum *e, int *symbols,
                                  const struct term *t, int k) {
    const struct op_tensor *x = ctx->in[k];
    int64_t stride = 1;
    for (int i = x->rank - 1; i >= 0; stride *= x->dims[i], i--) {
        int at = find_symbol(symbols, e->n_letters, t->symbol[i]);
        if (at < 0) {
            if (e->n_letters == LETTERS_MAX)
                return op__fail(ctx, OP_LIMIT, "the equation has more than %d dimensions",
                                LETTERS_MAX);
            at = e->n_letters++;
            symbols[at] = t->symbol[i];
            e->letter[at] = (struct letter){.size = 1};
        }
        struct letter *l = &e->letter[at];
        if (x->dims[i] != 1 && l->size != 1 && x->dims[i] != l->size)
            return op__fail(ctx, OP_BAD_SHAPE,
                            "dimension %d of input %d is %lld, the same letter is %lld elsewhere",
                            i, k, (long long)x->dims[i], (long long)l->size);
        if (x->dims[i] != 1) {
            l->size = x->dims[i];
            l->stride[k] += stride;
        }
    }
    return OP_OK;
}

static enum op_status parse(const struct op_ctx *ctx, struct einsum *e) {
    const char *equation = op__attr_string(ctx->node, "equation", ""), *at = equation;
    struct term terms[OPERANDS_MAX], out;
    int symbols[LETTERS_MAX], dots = 0;
    bool has_dots, any_dots = false;
    memset(e, 0, sizeof *e);
    e->n_in = ctx->n_in;
    if (ctx->n_in > OPERANDS_MAX)
        return op__fail(ctx, OP_LIMIT, "%d inputs, at most %d are supported", ctx->n_in,
                        OPERANDS_MAX);
    for (int k = 0; k < ctx->n_in; k++) {
        if (k > 0 && *at++ != ',') goto malformed;
        at = parse_term(at, ctx->in[k]->rank, 0, &terms[k], &has_dots);
        if (!at) goto malformed;
        any_dots |= has_dots;
        for (int i = 0; i < terms[k].n; i++)
            if (terms[k].symbol[i] >= ELLIPSIS && terms[k].symbol[i] - ELLIPSIS + 1 > dots)
                dots = terms[k].symbol[i] - ELLIPSIS + 1;
    }
    if (*at == 0) {
        implicit_output(terms, ctx->n_in, any_dots ? dots : 0, &out);
    } else if (at[0] != '-' || at[1] != '>' ||
               !(at = parse_term(at + 2, -1, dots, &out, &has_dots)) || *at) {
        goto malformed;
    }
    e->n_letters = e->n_out = out.n;
    for (int i = 0; i < out.n; i++) {
        bool known = false;
        for (int k = 0; k < ctx->n_in; k++)
            known |= find_symbol(terms[k].symbol, terms[k].n, out.symbol[i]) >= 0;
        if (!known || find_symbol(out.symbol, i, out.symbol[i]) >= 0) goto malformed;
        symbols[i] = out.symbol[i];
        e->letter[i] = (struct letter){.size = 1, .in_out = true};
    }
    for (int k = 0; k < ctx->n_in; k++) {
        enum op_status status = add_operand(ctx, e, symbols, &terms[k], k);
        if (status != OP_OK) return status;
    }
    for (int i = 0; i < e->n_out; i++) e->dims[i] = e->letter[i].size;
    return OP_OK;
malformed:
    return op__fail(ctx, OP_BAD_VALUE,
                    "the equation \"%.100s\" does not fit %d inputs of these ranks", equation,
                    ctx->n_in);
}

static enum op_status einsum_infer(struct op_ctx *ctx) {
    struct einsum e;
    for (int i = 0; i < ctx->n_in; i++) {
        const struct op_tensor *x = ctx->in[i];
        if (!x || x->kind != OP_KIND_TENSOR || x->dtype != ctx->in[0]->dtype ||
            !(op__is_float(x->dtype) || op__is_int(x->dtype)))
            return op__fail(ctx, OP_BAD_TYPE, "input %d is %s, must be numbers of one type", i,
                            x ? op_type_name(x->dtype) : "(absent)");
    }
    enum op_status status = parse(ctx, &e);
    if (status == OP_OK) op__set(ctx, 0, ctx->in[0]->dtype, e.n_out, e.dims);
    return status;
}

/* Output strides; the output's count is known to fit. */
static void finish_strides(struct einsum *e) {
    int64_t stride = 1;
    for (int i = e->n_out - 1; i >= 0; stride *= e->letter[i].size, i--)
        e->letter[i].out_stride = stride;
}

/* --- the plain loop ----------------------------------------------------------------------------
 */

struct plain_job {
    const struct op_ctx *ctx;
    const struct einsum *e;
    int64_t n_summed;
};

static int64_t load_int(const struct op_tensor *t, int64_t i) {
    switch (t->dtype) {
    case OP_I8:
        return ((const int8_t *)t->data)[i];
    case OP_U8:
        return ((const uint8_t *)t->data)[i];
    case OP_I16:
        return ((const int16_t *)t->data)[i];
    case OP_U16:
        return ((const uint16_t *)t->data)[i];
    case OP_I32:
        return ((const int32_t *)t->data)[i];
    case OP_U32:
        return ((const uint32_t *)t->data)[i];
    default:
        return ((const int64_t *)t->data)[i];
    }
}

static void store_int(const struct op_tensor *t, int64_t i, uint64_t v) {
    switch (op_type_size(t->dtype)) {
    case 1:
        ((uint8_t *)t->data)[i] = (uint8_t)v;
        break;
    case 2:
        ((uint16_t *)t->data)[i] = (uint16_t)v;
        break;
    case 4:
        ((uint32_t *)t->data)[i] = (uint32_t)v;
        break;
    default:
        ((uint64_t *)t->data)[i] = v;
    }
}

/* One output element, whose letters of the output are at `offset` in each operand. */
static void plain_element(const struct plain_job *job, int64_t index, const int64_t *offset) {
    const struct einsum *e = job->e;
    const struct op_tensor *const *in = job->ctx->in, *y = job->ctx->out[0];
    const bool is_float = op__is_float(y->dtype);
    int64_t at[LETTERS_MAX] = {0}, where[OPERANDS_MAX];
    double sum = 0;
    uint64_t int_sum = 0;
    memcpy(where, offset, sizeof where);
    for (int64_t step = 0; step < job->n_summed; step++) {
        double product = 1;
        uint64_t int_product = 1;
        for (int k = 0; k < e->n_in; k++) {
            if (is_float)
                product *= nn_load(in[k], where[k]);
            else
                int_product *= (uint64_t)load_int(in[k], where[k]);
        }
        sum += product;
        int_sum += int_product;
        for (int i = e->n_letters - 1; i >= e->n_out; i--) {
            const struct letter *l = &e->letter[i];
            const bool wraps = ++at[i] == l->size;
            for (int k = 0; k < e->n_in; k++)
                where[k] += wraps ? -(l->size - 1) * l->stride[k] : l->stride[k];
            if (!wraps) break;
            at[i] = 0;
        }
    }
    if (is_float)
        nn_store(y, index, sum);
    else
        store_int(y, index, int_sum);
}

static void plain_piece(void *arg, int64_t first, int64_t n) {
    const struct plain_job *job = arg;
    const struct einsum *e = job->e;
    for (int64_t index = first; index < first + n; index++) {
        int64_t offset[OPERANDS_MAX] = {0};
        for (int i = 0; i < e->n_out; i++) {
            const int64_t pos = index / e->letter[i].out_stride % e->letter[i].size;
            for (int k = 0; k < e->n_in; k++) offset[k] += pos * e->letter[i].stride[k];
        }
        plain_element(job, index, offset);
    }
}

static enum op_status plain_run(const struct op_ctx *ctx, const struct einsum *e) {
    struct plain_job job = {ctx, e, 1};
    for (int i = e->n_out; i < e->n_letters; i++)
        if (!op__mul(job.n_summed, e->letter[i].size, &job.n_summed))
            return op__fail(ctx, OP_LIMIT, "the sums are beyond 63 bits");
    op__pieces(ctx, op_tensor_count(ctx->out[0]), plain_piece, &job);
    return OP_OK;
}

/* --- as a matrix product -----------------------------------------------------------------------
 */

enum part { BATCH, ROWS, COLUMNS, SUMMED, N_PARTS };

struct product {
    int n[N_PARTS];
    int letter[N_PARTS][LETTERS_MAX];
    int64_t size[N_PARTS];
};

/* False where the equation is no product of two matrices. */
static bool as_product(const struct op_ctx *ctx, const struct einsum *e, struct product *p) {
    memset(p, 0, sizeof *p);
    if (e->n_in != 2 || ctx->in[0]->dtype != OP_F32) return false;
    for (int i = 0; i < N_PARTS; i++) p->size[i] = 1;
    for (int i = 0; i < e->n_letters; i++) {
        const struct letter *l = &e->letter[i];
        if (l->size == 1) continue;
        const bool a = l->stride[0] != 0, b = l->stride[1] != 0;
        if (!l->in_out && !(a && b)) return false;
        const enum part part = !l->in_out ? SUMMED : a && b ? BATCH : a ? ROWS : COLUMNS;
        p->letter[part][p->n[part]++] = i;
        if (!op__mul(p->size[part], l->size, &p->size[part])) return false;
    }
    return true;
}

static size_t einsum_scratch(const struct op_ctx *ctx) {
    struct einsum e;
    struct product p;
    if (ctx->n_in != 2 || ctx->in[0]->dtype != OP_F32 || parse(ctx, &e) != OP_OK ||
        !as_product(ctx, &e, &p))
        return 0;
    const int64_t a = p.size[BATCH] * p.size[ROWS] * p.size[SUMMED],
                  b = p.size[BATCH] * p.size[SUMMED] * p.size[COLUMNS];
    return (size_t)(a + b + p.size[BATCH] * p.size[ROWS] * p.size[COLUMNS]) * sizeof(float);
}

/* The letters of three parts, outermost first, with their sizes and their strides in a tensor: of
 * operand k, or of the output (-1). */
struct order {
    int n;
    int64_t dims[LETTERS_MAX], stride[LETTERS_MAX], count;
    bool in_place; /* the tensor is in this order already */
};

static void order_of(const struct einsum *e, const struct product *p, const enum part *parts,
                     int operand, struct order *o) {
    o->n = 0;
    o->count = 1;
    for (int part = 0; part < 3; part++)
        for (int i = 0; i < p->n[parts[part]]; i++) {
            const struct letter *l = &e->letter[p->letter[parts[part]][i]];
            o->dims[o->n] = l->size;
            o->stride[o->n++] = operand < 0 ? l->out_stride : l->stride[operand];
            o->count *= l->size;
        }
    o->in_place = true;
    int64_t step = 1;
    for (int i = o->n - 1; i >= 0; step *= o->dims[i], i--)
        o->in_place = o->in_place && o->stride[i] == step;
}

/* Copies a tensor into this order, or back out of it. */
static void reorder(const struct order *o, bool back, float *tensor, float *matrix) {
    int64_t at[LETTERS_MAX] = {0}, where = 0;
    const int inner = o->n - 1;
    const int64_t n = o->n ? o->dims[inner] : 1, step = o->n ? o->stride[inner] : 1;
    for (int64_t i = 0; i < o->count; i += n) {
        if (back)
            for (int64_t j = 0; j < n; j++) tensor[where + j * step] = matrix[i + j];
        else
            for (int64_t j = 0; j < n; j++) matrix[i + j] = tensor[where + j * step];
        for (int d = inner - 1; d >= 0; d--) {
            where += o->stride[d];
            if (++at[d] < o->dims[d]) break;
            where -= o->dims[d] * o->stride[d];
            at[d] = 0;
        }
    }
}

static void product_run(const struct op_ctx *ctx, const struct einsum *e, const struct product *p) {
    const int64_t m = p->size[ROWS], n = p->size[COLUMNS], k = p->size[SUMMED];
    struct order a_order, b_order, c_order;
    float *a = ctx->scratch, *b = a + p->size[BATCH] * m * k, *c = b + p->size[BATCH] * k * n;
    order_of(e, p, (enum part[]){BATCH, ROWS, SUMMED}, 0, &a_order);
    order_of(e, p, (enum part[]){BATCH, SUMMED, COLUMNS}, 1, &b_order);
    order_of(e, p, (enum part[]){BATCH, ROWS, COLUMNS}, -1, &c_order);
    if (a_order.in_place)
        a = ctx->in[0]->data;
    else
        reorder(&a_order, false, ctx->in[0]->data, a);
    if (b_order.in_place)
        b = ctx->in[1]->data;
    else
        reorder(&b_order, false, ctx->in[1]->data, b);
    if (c_order.in_place) c = ctx->out[0]->data;
    for (int64_t i = 0; i < p->size[BATCH]; i++) {
        const struct k_product product = {.m = m,
                                          .n = n,
                                          .k = k,
                                          .a = a + i * m * k,
                                          .a_row = k,
                                          .a_k = 1,
                                          .b = b + i * k * n,
                                          .b_k = n,
                                          .c = c + i * m * n,
                                          .c_row = n,
                                          .then = {.act = K_COPY}};
        op__gemm(ctx, &product);
    }
    if (!c_order.in_place) reorder(&c_order, true, ctx->out[0]->data, c);
}

static enum op_status einsum(struct op_ctx *ctx, bool plain) {
    struct einsum e;
    struct product p;
    if (!ctx->out[0] || op_tensor_count(ctx->out[0]) <= 0) return OP_OK;
    enum op_status status = parse(ctx, &e);
    if (status != OP_OK) return status;
    finish_strides(&e);
    if (plain || !as_product(ctx, &e, &p) || p.size[SUMMED] == 0) return plain_run(ctx, &e);
    product_run(ctx, &e, &p);
    return OP_OK;
}

static enum op_status einsum_run(struct op_ctx *ctx) {
    return einsum(ctx, false);
}

static enum op_status einsum_ref(struct op_ctx *ctx) {
    return einsum(ctx, true);
}

static const struct op_desc einsum_desc = {.name = "Einsum",
                                           .domain = "",
                                           .since = 12,
                                           .in_min = 1,
                                           .in_max = -1,
                                           .out_min = 1,
                                           .out_max = 1,
                                           .infer = einsum_infer,
                                           .scratch = einsum_scratch,
                                           .run = einsum_run,
                                           .ref = einsum_ref};
OP_REGISTER(einsum_desc);
