/* dft.c: DFT (opsets 17 and 20) and STFT.
 *
 *     X[k] = sum over n of x[n] e^(-2 pi i k n / N);  inverse: e^(+...), divided by N
 *
 * Any length in O(N log N): a power of two by the iterative radix-2 algorithm, any other by Bluestein's (the
 * transform as a convolution with a chirp, done with powers of two). All in double precision, with twiddle factors from a table of
 * sines made once a run: no error is added up from step to step. The chirp's angles are reduced in integers (n^2 mod 2N).
 *
 * One transform after another: the scratch memory of one is what the plan holds. Onesided output keeps the first N/2 + 1 values of
 * a real signal; the onesided inverse takes those back. */
#include "ops/op/nn.h"

#include <math.h>
#include <string.h>

#define LENGTH_MAX ((int64_t)1 << 28)

struct complex {
    double re, im;
};

/* Tables and work space for transforms of one length; lies in scratch memory. */
struct fft {
    int64_t n, m;                     /* the length, and the power of two that is computed with */
    struct complex *roots;            /* [m / 2]: e^(-2 pi i k / m) */
    struct complex *chirp, *response; /* Bluestein: [n], and the transform of its conjugate [m]; else NULL */
    struct complex *work;             /* [m] */
};

static int64_t power_of_two(int64_t n) {
    int64_t m = 1;
    while (m < n) m *= 2;
    return m;
}

/* Bytes for a transform of up to n. A power of two takes m/2 roots and m of work; Bluestein's 2.5 m and the chirp, with m < 4n. */
static size_t fft_bytes(int64_t n) {
    return ((size_t)power_of_two(4 * n) * 5 / 2 + (size_t)n + 2) * sizeof(struct complex);
}

static struct complex mul(struct complex a, struct complex b) {
    return (struct complex){a.re * b.re - a.im * b.im, a.re * b.im + a.im * b.re};
}

/* The power-of-two transform in place: bit reversal, then butterflies. */
static void radix_2(const struct fft *f, struct complex *x) {
    int64_t m = f->m;
    for (int64_t i = 1, j = 0; i < m; i++) {
        int64_t bit = m >> 1;
        for (; j & bit; bit >>= 1) j ^= bit;
        j ^= bit;
        if (i < j) {
            struct complex t = x[i];
            x[i] = x[j];
            x[j] = t;
        }
    }
    for (int64_t half = 1; half < m; half *= 2)
        for (int64_t i = 0; i < m; i += 2 * half)
            for (int64_t k = 0; k < half; k++) {
                struct complex a = x[i + k], b = mul(x[i + k + half], f->roots[k * (m / (2 * half))]);
                x[i + k] = (struct complex){a.re + b.re, a.im + b.im};
                x[i + k + half] = (struct complex){a.re - b.re, a.im - b.im};
            }
}

static void fft_init(struct fft *f, int64_t n, void *mem) {
    *f = (struct fft){.n = n, .m = power_of_two(n), .roots = mem};
    bool plain = f->m == n;
    if (!plain) f->m = power_of_two(2 * n - 1);
    for (int64_t k = 0; k < f->m / 2; k++) {
        double angle = -2 * M_PI * (double)k / (double)f->m;
        f->roots[k] = (struct complex){cos(angle), sin(angle)};
    }
    f->work = f->roots + f->m / 2 + 1;
    if (plain) return;
    f->chirp = f->work + f->m;
    f->response = f->chirp + n;
    for (int64_t k = 0; k < n; k++) {
        double angle = -M_PI * (double)(k * k % (2 * n)) / (double)n;
        f->chirp[k] = (struct complex){cos(angle), sin(angle)};
    }
    memset(f->response, 0, (size_t)f->m * sizeof *f->response);
    for (int64_t k = 0; k < n; k++) {
        struct complex c = {f->chirp[k].re, -f->chirp[k].im};
        f->response[k] = c;
        if (k) f->response[f->m - k] = c;
    }
    radix_2(f, f->response);
}

/* Transforms work[0..n) in place, forward. */
static void forward(const struct fft *f) {
    struct complex *w = f->work;
    if (!f->chirp) {
        radix_2(f, w);
        return;
    }
    for (int64_t k = 0; k < f->m; k++) w[k] = k < f->n ? mul(w[k], f->chirp[k]) : (struct complex){0, 0};
    radix_2(f, w);
    for (int64_t k = 0; k < f->m; k++) { /* the inverse transform is the conjugate of the forward one of the conjugate */
        w[k] = mul(w[k], f->response[k]);
        w[k].im = -w[k].im;
    }
    radix_2(f, w);
    for (int64_t k = 0; k < f->n; k++) {
        struct complex c = {w[k].re / (double)f->m, -w[k].im / (double)f->m};
        w[k] = mul(c, f->chirp[k]);
    }
}

/* --- DFT --------------------------------------------------------------------------------------- */

static enum op_status upgrade(struct op_graph *g, struct op_node *n, int opset, struct op_error *err) {
    if (opset >= 20) return OP_OK;
    if (!op__attr(n, "axis")) { /* opset 17 begins at 1, opset 20 at -2 */
        enum op_status st = op__attr_set_int(g, n, "axis", 1);
        if (st != OP_OK) return st;
    }
    (void)err;
    return OP_OK;
}

struct transform {
    int axis;
    int64_t n, n_in, n_out; /* the length, what is there along the axis, what comes out */
    bool inverse, onesided;
};

static enum op_status resolve(const struct op_ctx *ctx, struct transform *t) {
    enum op_status st = op__nn_float(ctx, 0, "input");
    if (st != OP_OK) return st;
    const struct op_tensor *x = ctx->in[0];
    int64_t axis = op__attr_int(ctx->node, "axis", -2);
    if (nn_in(ctx, 2) && (st = op__nn_scalar_int(ctx, 2, "axis", &axis)) != OP_OK) return st;
    t->axis = op__axis(axis, x->rank);
    t->inverse = op__attr_int(ctx->node, "inverse", 0) != 0;
    t->onesided = op__attr_int(ctx->node, "onesided", 0) != 0;
    if (x->rank < 2 || (x->dims[x->rank - 1] != 1 && x->dims[x->rank - 1] != 2))
        return op__fail(ctx, OP_BAD_SHAPE, "input 0 (input) must have rank 2 or more and end in 1 (real) or 2 (complex)");
    if (t->axis < 0 || t->axis == x->rank - 1)
        return op__fail(ctx, OP_BAD_VALUE, "axis is %lld, the input has rank %d, whose last dimension is the complex one", (long long)axis, x->rank);
    t->n_in = x->dims[t->axis];
    t->n = t->onesided && t->inverse ? 2 * (t->n_in - 1) : t->n_in;
    if (nn_in(ctx, 1) && (st = op__nn_scalar_int(ctx, 1, "dft_length", &t->n)) != OP_OK) return st;
    if (t->onesided && !t->inverse && x->dims[x->rank - 1] == 2) return op__fail(ctx, OP_BAD_SHAPE, "onesided of a complex signal");
    if (t->n < 1 || t->n > LENGTH_MAX)
        return op__fail(ctx, OP_BAD_VALUE, "the length of the transform is %lld, expected 1 to %lld", (long long)t->n, (long long)LENGTH_MAX);
    t->n_out = t->onesided && !t->inverse ? t->n / 2 + 1 : t->n;
    return OP_OK;
}

static enum op_status infer(struct op_ctx *ctx) {
    struct transform t;
    enum op_status st = resolve(ctx, &t);
    if (st != OP_OK) return st;
    const struct op_tensor *x = ctx->in[0];
    int64_t dims[OP_RANK_MAX];
    memcpy(dims, x->dims, sizeof dims);
    dims[t.axis] = t.n_out;
    dims[x->rank - 1] = t.onesided && t.inverse ? 1 : 2;
    op__set(ctx, 0, x->dtype, x->rank, dims);
    return OP_OK;
}

/* From the output's shape: the length is what comes out, or where the output is onesided at most twice that. */
static size_t scratch(const struct op_ctx *ctx) {
    const struct op_tensor *y = ctx->out[0];
    bool half = op__attr_int(ctx->node, "onesided", 0) != 0 && op__attr_int(ctx->node, "inverse", 0) == 0;
    int64_t longest = 1;
    if (op_tensor_count(y) <= 0) return 0;
    for (int a = 0; a < y->rank - 1; a++)
        if (y->dims[a] > longest) longest = y->dims[a];
    return fft_bytes(half ? 2 * longest : longest);
}

static void load_line(const struct op_tensor *x, const struct transform *t, int64_t base, int64_t step, struct complex *w) {
    int64_t parts = x->dims[x->rank - 1];
    for (int64_t k = 0; k < t->n; k++) {
        int64_t from = k;
        bool mirrored = t->inverse && t->onesided && k > t->n / 2; /* X[n - k] is the conjugate of X[k] */
        if (mirrored) from = t->n - k;
        w[k] = (struct complex){0, 0};
        if (from >= t->n_in) continue;
        w[k].re = nn_load(x, (base + from * step) * parts);
        w[k].im = parts == 2 ? nn_load(x, (base + from * step) * parts + 1) : 0;
        if (mirrored) w[k].im = -w[k].im;
    }
}

static enum op_status run(struct op_ctx *ctx) {
    const struct op_tensor *x = ctx->in[0], *y = ctx->out[0];
    struct transform t;
    struct fft f;
    enum op_status st = resolve(ctx, &t);
    if (st != OP_OK || op_tensor_count(y) == 0) return st;
    fft_init(&f, t.n, ctx->scratch);
    int64_t outer = 1, inner = 1, parts = y->dims[y->rank - 1];
    for (int a = 0; a < t.axis; a++) outer *= x->dims[a];
    for (int a = t.axis + 1; a < x->rank - 1; a++) inner *= x->dims[a];
    for (int64_t o = 0; o < outer; o++)
        for (int64_t i = 0; i < inner; i++) {
            load_line(x, &t, o * t.n_in * inner + i, inner, f.work);
            if (t.inverse)
                for (int64_t k = 0; k < t.n; k++) f.work[k].im = -f.work[k].im;
            forward(&f);
            double by = t.inverse ? (double)t.n : 1, sign = t.inverse ? -1 : 1;
            for (int64_t k = 0; k < t.n_out; k++) {
                int64_t at = (o * t.n_out + k) * inner + i;
                nn_store(y, at * parts, f.work[k].re / by);
                if (parts == 2) nn_store(y, at * parts + 1, sign * f.work[k].im / by);
            }
        }
    return OP_OK;
}

static void cost(const struct op_ctx *ctx, double *flops, double *bytes) {
    double n = (double)op_tensor_count(ctx->out[0]);
    *flops = 5 * n * log2(n + 2);
    *bytes = (n + (double)op_tensor_count(ctx->in[0])) * (double)op_type_size(ctx->in[0]->dtype);
}

static const struct op_desc dft = {
    .name = "DFT",
    .domain = "",
    .since = 17,
    .in_min = 1,
    .in_max = 3,
    .out_min = 1,
    .out_max = 1,
    .upgrade = upgrade,
    .infer = infer,
    .scratch = scratch,
    .run = run,
    .cost = cost,
};
OP_REGISTER(dft);

/* --- STFT -------------------------------------------------------------------------------------- */

struct frames {
    int64_t step, length, n, bins; /* of one signal: n frames */
    bool onesided;
};

static enum op_status stft_resolve(const struct op_ctx *ctx, struct frames *f) {
    enum op_status st = op__nn_float(ctx, 0, "signal");
    if (st != OP_OK) return st;
    const struct op_tensor *x = ctx->in[0], *window = nn_in(ctx, 2);
    f->onesided = op__attr_int(ctx->node, "onesided", 1) != 0;
    if (x->rank != 2 && (x->rank != 3 || (x->dims[2] != 1 && x->dims[2] != 2)))
        return op__fail(ctx, OP_BAD_SHAPE, "input 0 (signal) must be [batch, length], or [batch, length, 1 or 2]");
    if (x->rank == 3 && x->dims[2] == 2 && f->onesided) return op__fail(ctx, OP_BAD_SHAPE, "onesided of a complex signal");
    if (window && (st = op__nn_like(ctx, 2, "window", x->dtype, 1)) != OP_OK) return st;
    if ((st = op__nn_scalar_int(ctx, 1, "frame_step", &f->step)) != OP_OK) return st;
    f->length = window ? window->dims[0] : 0;
    if (nn_in(ctx, 3) && (st = op__nn_scalar_int(ctx, 3, "frame_length", &f->length)) != OP_OK) return st;
    if (window && window->dims[0] != f->length)
        return op__fail(ctx, OP_BAD_SHAPE, "the window has %lld values, frame_length is %lld", (long long)window->dims[0], (long long)f->length);
    if (f->step < 1 || f->length < 1 || f->length > LENGTH_MAX)
        return op__fail(ctx, OP_BAD_VALUE, "frame_step is %lld and frame_length %lld, expected 1 or more", (long long)f->step, (long long)f->length);
    f->n = x->dims[1] < f->length ? 0 : (x->dims[1] - f->length) / f->step + 1;
    f->bins = f->onesided ? f->length / 2 + 1 : f->length;
    return OP_OK;
}

static enum op_status stft_infer(struct op_ctx *ctx) {
    struct frames f;
    enum op_status st = stft_resolve(ctx, &f);
    if (st != OP_OK) return st;
    op__set(ctx, 0, ctx->in[0]->dtype, 4, (int64_t[]){ctx->in[0]->dims[0], f.n, f.bins, 2});
    return OP_OK;
}

static size_t stft_scratch(const struct op_ctx *ctx) {
    if (op_tensor_count(ctx->out[0]) <= 0) return 0;
    int64_t bins = ctx->out[0]->dims[2];
    return fft_bytes(op__attr_int(ctx->node, "onesided", 1) != 0 ? 2 * bins : bins);
}

static enum op_status stft_run(struct op_ctx *ctx) {
    const struct op_tensor *x = ctx->in[0], *window = nn_in(ctx, 2), *y = ctx->out[0];
    struct frames s;
    struct fft f;
    enum op_status st = stft_resolve(ctx, &s);
    if (st != OP_OK || op_tensor_count(y) == 0) return st;
    fft_init(&f, s.length, ctx->scratch);
    int64_t parts = x->rank == 3 ? x->dims[2] : 1;
    for (int64_t i = 0; i < x->dims[0] * s.n; i++) {
        int64_t from = i / s.n * x->dims[1] + i % s.n * s.step;
        for (int64_t k = 0; k < s.length; k++) {
            double w = window ? nn_load(window, k) : 1;
            f.work[k].re = w * nn_load(x, (from + k) * parts);
            f.work[k].im = parts == 2 ? w * nn_load(x, (from + k) * parts + 1) : 0;
        }
        forward(&f);
        for (int64_t k = 0; k < s.bins; k++) {
            nn_store(y, (i * s.bins + k) * 2, f.work[k].re);
            nn_store(y, (i * s.bins + k) * 2 + 1, f.work[k].im);
        }
    }
    return OP_OK;
}

static const struct op_desc stft = {
    .name = "STFT",
    .domain = "",
    .since = 17,
    .in_min = 2,
    .in_max = 4,
    .out_min = 1,
    .out_max = 1,
    .infer = stft_infer,
    .scratch = stft_scratch,
    .run = stft_run,
    .cost = cost,
};
OP_REGISTER(stft);
