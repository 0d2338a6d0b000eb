/* signal_window.c: HannWindow, HammingWindow, BlackmanWindow and MelWeightMatrix: tensors made from a few numbers. */
#include "ops/op/nn.h"

#include <math.h>

#define SIZE_LIMIT ((int64_t)1 << 32)

static enum op_status output_type(const struct op_ctx *ctx, enum op_type *t) {
    *t = (enum op_type)op__attr_int(ctx->node, "output_datatype", OP_F32);
    if (nn_is_float(*t) || *t == OP_U8 || *t == OP_I8 || *t == OP_U16 || *t == OP_I16 || *t == OP_U32 || *t == OP_I32 || *t == OP_U64 || *t == OP_I64)
        return OP_OK;
    return op__fail(ctx, OP_BAD_VALUE, "output_datatype is %d, expected a number type", (int)*t);
}

static enum op_status infer(struct op_ctx *ctx) {
    enum op_type t;
    int64_t n;
    enum op_status st = output_type(ctx, &t);
    if (st != OP_OK || (st = op__nn_scalar_int(ctx, 0, "size", &n)) != OP_OK) return st;
    if (n < 0 || n > SIZE_LIMIT) return op__fail(ctx, OP_BAD_VALUE, "size is %lld, expected 0 to 2^32", (long long)n);
    op__set(ctx, 0, t, 1, &n);
    return OP_OK;
}

/* a0 - a1 cos(2 pi i / n) + a2 cos(4 pi i / n), where n is the size or, for a symmetric window, one less. */
static enum op_status window(struct op_ctx *ctx, double a0, double a1, double a2) {
    const struct op_tensor *y = ctx->out[0];
    int64_t size = y->dims[0];
    bool periodic = op__attr_int(ctx->node, "periodic", 1) != 0;
    double n = periodic ? (double)size : (double)(size - 1);
    for (int64_t i = 0; i < size; i++) {
        double angle = n > 0 ? 2 * M_PI * (double)i / n : M_PI; /* a single symmetric value is the peak */
        nn_store(y, i, a0 - a1 * cos(angle) + a2 * cos(2 * angle));
    }
    return OP_OK;
}

static enum op_status run_hann(struct op_ctx *ctx) {
    return window(ctx, 0.5, 0.5, 0);
}
static enum op_status run_hamming(struct op_ctx *ctx) { /* the specification's constants: 25/46 and its rest */
    return window(ctx, 25.0 / 46, 1 - 25.0 / 46, 0);
}
static enum op_status run_blackman(struct op_ctx *ctx) {
    return window(ctx, 0.42, 0.5, 0.08);
}

/* --- MelWeightMatrix --------------------------------------------------------------------------- */

struct mel {
    int64_t bins, length, rate;
    double low, high;
};

static enum op_status read_mel(const struct op_ctx *ctx, struct mel *m) {
    enum op_status st;
    if ((st = op__nn_scalar_int(ctx, 0, "num_mel_bins", &m->bins)) != OP_OK || (st = op__nn_scalar_int(ctx, 1, "dft_length", &m->length)) != OP_OK ||
        (st = op__nn_scalar_int(ctx, 2, "sample_rate", &m->rate)) != OP_OK || (st = op__nn_float(ctx, 3, "lower_edge_hertz")) != OP_OK ||
        (st = op__nn_float(ctx, 4, "upper_edge_hertz")) != OP_OK)
        return st;
    if (op_tensor_count(ctx->in[3]) != 1 || op_tensor_count(ctx->in[4]) != 1)
        return op__fail(ctx, OP_BAD_SHAPE, "lower_edge_hertz and upper_edge_hertz must have 1 element each");
    if (!ctx->in[3]->data || !ctx->in[4]->data) return OP_NEED_DATA;
    m->low = nn_load(ctx->in[3], 0);
    m->high = nn_load(ctx->in[4], 0);
    if (m->bins < 1 || m->bins > SIZE_LIMIT || m->length < 1 || m->length > SIZE_LIMIT || m->rate < 1 || m->rate > SIZE_LIMIT || !(m->low >= 0) ||
        !(m->high >= m->low) || m->high > 1e12)
        return op__fail(ctx, OP_BAD_VALUE, "%lld bins of %lld samples at %lld Hz from %g to %g Hz: out of range", (long long)m->bins,
                        (long long)m->length, (long long)m->rate, m->low, m->high);
    return OP_OK;
}

static enum op_status mel_infer(struct op_ctx *ctx) {
    enum op_type t;
    struct mel m;
    enum op_status st = output_type(ctx, &t);
    if (st != OP_OK || (st = read_mel(ctx, &m)) != OP_OK) return st;
    op__set(ctx, 0, t, 2, (int64_t[]){m.length / 2 + 1, m.bins});
    return OP_OK;
}

static double hertz_to_mel(double f) {
    return 2595 * log10(1 + f / 700);
}

/* The spectrum bin in which the i-th of bins + 2 points lies that divide the range evenly in mel. */
static int64_t edge(const struct mel *m, int64_t i) {
    double low = hertz_to_mel(m->low), step = (hertz_to_mel(m->high) - low) / (double)(m->bins + 2);
    double hertz = 700 * (pow(10, ((double)i * step + low) / 2595) - 1);
    return (int64_t)floor((double)(m->length + 1) * hertz / (double)m->rate);
}

static enum op_status mel_run(struct op_ctx *ctx) {
    const struct op_tensor *y = ctx->out[0];
    struct mel m;
    enum op_status st = read_mel(ctx, &m);
    if (st != OP_OK) return st;
    int64_t rows = y->dims[0], lower = edge(&m, 0), center = edge(&m, 1);
    for (int64_t i = 0; i < m.bins; i++) {
        int64_t upper = edge(&m, i + 2);
        for (int64_t r = 0; r < rows; r++) {
            double v = 0;
            if (center == lower && r == center) v = 1;
            else if (r >= lower && r <= center && center > lower) v = (double)(r - lower) / (double)(center - lower);
            if (r > center && r < upper) v = (double)(upper - r) / (double)(upper - center);
            nn_store(y, r * m.bins + i, v);
        }
        lower = center;
        center = upper;
    }
    return OP_OK;
}

#define MADE(id, op_name, n_in, op_infer, op_run)                                                  \
    static const struct op_desc id = {.name = op_name, .domain = "", .since = 17, .in_min = n_in, .in_max = n_in, .out_min = 1, .out_max = 1, .infer = op_infer, .run = op_run}; \
    OP_REGISTER(id)

MADE(hann_window, "HannWindow", 1, infer, run_hann);
MADE(hamming_window, "HammingWindow", 1, infer, run_hamming);
MADE(blackman_window, "BlackmanWindow", 1, infer, run_blackman);
MADE(mel_weight_matrix, "MelWeightMatrix", 5, mel_infer, mel_run);
