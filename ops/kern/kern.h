/* kern.h: the kernels, one table of function pointers for each ISA level. Internal to ops/.
 *
 * WHAT. struct k_kernels holds every hot loop of the engine: vector maths over contiguous f32, reductions, rows of
 * softmax and normalisation, and the matrix and convolution kernels with their tile sizes beside them. An operator
 * takes its table from op__kern(ctx) and never asks which level it is.
 *
 * HOW. Each family is written once (vmath_body.h, gemm_body.h) over the few vector operations of lanes.h and is
 * compiled once for each level: vmath_generic.c, vmath_avx2.c, vmath_avx512.c. No other file is built with ISA flags.
 *
 * THE SAME BITS. All levels compute the same operations in the same order, every fused multiply-add is written out and
 * is fused on every level (in software where the machine has none), so an element has the same bits on every level, at any position
 * in the array, on any number of threads. Reductions run over 64 interleaved partial results and join them in a fixed tree:
 * their order depends on n alone.
 *
 * Arrays need no alignment. y may be the same array as an input (in place), but must not overlap it otherwise. n may be 0.
 * NaN goes through every function unless its line says otherwise. Thread-safe: there is no state. */
#ifndef QUERN_KERN_H
#define QUERN_KERN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* X(NAME, level's name) in rising order */
#if defined(__aarch64__)
#define K_LEVEL_MAP(X)                                                                             \
    X(GENERIC, "generic")                                                                          \
    X(NEON, "neon")
#else
#define K_LEVEL_MAP(X)                                                                             \
    X(GENERIC, "generic")                                                                          \
    X(AVX2, "avx2")                                                                                \
    X(AVX512, "avx512")                                                                            \
    X(VNNI, "vnni")                                                                                \
    X(AMX, "amx")
#endif

enum k_level {
#define X(NAME, text) K_##NAME,
    K_LEVEL_MAP(X)
#undef X
        K_N_LEVELS
};

/* y[i] = f(x[i]); a and b are the function's parameters where it has any. ULP: the bound of the error against double
 * precision over inputs of all exponents and both signs, checked in tests/unit/test_kern_vmath.c.
 * X(NAME, ulp bound, formula) */
#define K_UNARY_MAP(X)                                                                             \
    X(COPY, 0, "x: first, so that a zeroed epilogue has no activation")                            \
    X(EXP, 1, "e^x; subnormal results are kept, overflow gives infinity")                          \
    X(LOG, 1, "ln x; -inf at 0, NaN below")                                                        \
    X(TANH, 2, "tanh x")                                                                           \
    X(SIGMOID, 3, "1 / (1 + e^-x)")                                                                \
    X(ERF, 2, "erf x")                                                                             \
    X(GELU, 0, "x (1 + erf(x / sqrt 2)) / 2; absolute error at most 2^-22 |x|")                    \
    X(GELU_TANH, 0, "x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))) / 2; absolute error at most 2^-21 |x|") \
    X(SILU, 0, "x / (1 + e^-x); error at most 1.25 2^-22 of the result, or 1e-36")                                                                   \
    X(SOFTPLUS, 0, "ln(1 + e^x); absolute error at most 2^-22 max(1, |x|)")                        \
    X(MISH, 0, "x tanh(ln(1 + e^x)); absolute error at most 2^-21 max(1, |x|)")                    \
    X(ELU, 0, "x > 0 ? x : a (e^x - 1); absolute error at most 2^-23 |a|")                         \
    X(RELU, 0, "max(x, 0), exact")                                                                 \
    X(CLIP, 0, "min(max(x, a), b), exact")                                                         \
    X(LEAKY_RELU, 0, "x < 0 ? a x : x, one rounding")                                              \
    X(HARD_SIGMOID, 0, "min(max(a x + b, 0), 1), fused")                                           \
    X(HARD_SWISH, 0, "x min(max(x/6 + 1/2, 0), 1)")                                                \
    X(SQRT, 0, "square root, correctly rounded")                                                   \
    X(RECIPROCAL, 0, "1/x, correctly rounded")                                                     \
    X(NEG, 0, "-x")                                                                                \
    X(ABS, 0, "|x|")                                                                               \
    X(SQUARE, 0, "x x")                                                                            \
    X(LINEAR, 0, "a x + b, fused")

enum k_unary {
#define X(NAME, ulp, text) K_##NAME,
    K_UNARY_MAP(X)
#undef X
        K_N_UNARY
};

/* X(NAME, formula) */
#define K_BINARY_MAP(X)                                                                            \
    X(ADD, "x + y")                                                                                \
    X(SUB, "x - y")                                                                                \
    X(MUL, "x y")                                                                                  \
    X(DIV, "x / y")                                                                                \
    X(MAX, "max(x, y); NaN if either is NaN")                                                      \
    X(MIN, "min(x, y); NaN if either is NaN")

enum k_binary {
#define X(NAME, text) K_##NAME,
    K_BINARY_MAP(X)
#undef X
        K_N_BINARY
};

typedef void k_unary_fn(int64_t n, const float *x, float *y, float a, float b);
/* dst[i] = f(x[i or 0], y[i or 0]): a side that is a scalar is read at index 0 only. */
typedef void k_binary_fn(int64_t n, const float *x, bool x_scalar, const float *y, bool y_scalar, float *dst);

struct k_kernels;
struct k_quant;

struct k_vmath {
    k_unary_fn *unary[K_N_UNARY];
    k_binary_fn *binary[K_N_BINARY];
    void (*axpy)(int64_t n, float a, const float *x, float *y);             /* y[i] = fma(a, x[i], y[i]) */
    void (*fma)(int64_t n, const float *x, const float *y, float *dst);     /* dst[i] = fma(x[i], y[i], dst[i]) */
    float (*sum)(int64_t n, const float *x);                                /* 0 for n = 0 */
    float (*dot)(int64_t n, const float *x, const float *y);
    float (*sum_square)(int64_t n, const float *x, float shift);            /* sum of (x[i] - shift)^2 */
    float (*max)(int64_t n, const float *x);                                /* -inf for n = 0; NaN if there is one */
    float (*min)(int64_t n, const float *x);                                /* +inf for n = 0; NaN if there is one */
    void (*softmax)(int64_t n, const float *x, float *y);                   /* e^(x - max) / sum; a row of -inf gives NaN */
    void (*log_softmax)(int64_t n, const float *x, float *y);
    /* The two halves of a softmax over a row that comes in pieces: x = scale x + add (add may be NULL), and the largest, as `max`; then
     * x = e^(x - shift), or e^-87 where that is less, for a shift that is not below any x, and the sum. */
    float (*scale_max)(int64_t n, float scale, const float *add, float *x);
    float (*exp_sum)(int64_t n, float shift, float *x);
    /* A line of pixels of n channels each: pixel i of y is the sum, or with `max` the largest (NaN if there is one), of the pixels of x at offset[t]
     * + i x_step, t below `taps` (at least 1) in rising order; element by element. */
    void (*pool)(int64_t pixels, int64_t n, int taps, const int64_t *offset, const float *x, int64_t x_step, bool max, float *y);
    /* n cells of an LSTM with its usual activations, gates [i o f z], n of each, before them:
     *     c = sigmoid(f) c + sigmoid(i) tanh(z),  h = sigmoid(o) tanh(c);  error of c and h at most 2^-21 of the largest summand */
    void (*lstm_cell)(int64_t n, const float *gates, float *c, float *h);
    /* y = (x - mean) / sqrt(var + epsilon) * scale + bias over one row, var with 1/n; scale and bias may be NULL. The mean and
     * 1/sqrt(var + epsilon) go to *mean and *inv_std where not NULL. */
    void (*layer_norm)(int64_t n, const float *x, const float *scale, const float *bias, float epsilon, float *y, float *mean, float *inv_std);
    /* y = x / sqrt(mean of squares + epsilon) * scale */
    void (*rms_norm)(int64_t n, const float *x, const float *scale, float epsilon, float *y);
    /* Updates of weights w from gradients g; m and v are the optimiser's state. Each operation is rounded, nothing is fused.
     * sgd: w -= rate g, or with m: m = momentum m - rate g, w += m (nesterov: momentum m - rate g).
     * adam: m += (g - m) c1, v += (g g - v) c2, w -= m rate / (sqrt(v) + epsilon). */
    void (*sgd)(int64_t n, float rate, float momentum, bool nesterov, const float *g, float *m, float *w);
    void (*adam)(int64_t n, float rate, float c1, float c2, float epsilon, const float *g, float *m, float *v, float *w);
};

/* --- the f32 matrix product --------------------------------------------------------------------------- */

/* One tile of C = A B: element (r, j) is a chain of fused multiply-adds over k. */
struct k_tile {
    int64_t k;
    const float *a; /* (r, k) at a[r * a_row + k * a_k] */
    int64_t a_row, a_k;
    const float *const *rows; /* of k_gemm's rows: element (tap, k) of row r is rows[tap * K_ROWS_MAX + r][from + k] */
    int64_t taps, from;
    const float *b; /* (k, j) at b[k * b_k + j] */
    int64_t b_k;
    float *c; /* (r, j) at c[r * c_row + j] */
    int64_t c_row;
    int n;            /* columns, 1 to nr */
    bool first, last; /* block of k: the first starts at 0 and not at C, the last applies what follows */
    const float *bias_row, *bias_col; /* of this tile, or NULL */
    const float *residual;            /* (r, j) at residual[r * residual_row + j], or NULL */
    int64_t residual_row;
    bool clip; /* min(max(c, lo), hi) */
    float lo, hi;
    const char *ahead;  /* fetched into L2: an address every four steps of k (one, of `rows`), ahead_step bytes apart; never NULL */
    int64_t ahead_step;
};

enum { K_ROWS_MAX = 8, K_TILE_VECTORS_MAX = 4 };

struct k_gemm {
    int mr, nr, vw; /* rows and columns of the largest tile, floats in a vector */
    void (*tile)(int m, const struct k_tile *t); /* 1 <= m <= mr, 1 <= t->n <= nr */
    /* A product over `taps` x k, taps slowest, whose rows lie anywhere; b is a panel of
     * k_last_pack as wide as t->n in whole vectors, of which there are at most nr / vw. m is at most rows_max[vectors]. */
    int rows_max[K_TILE_VECTORS_MAX + 1];
    void (*rows)(int m, const struct k_tile *t);
};

/* What happens to an element after its sum, in this order: + bias_row[i] + bias_col[j] + residual[i][j], then act(., a, b). */
struct k_epilogue {
    const float *bias_row, *bias_col, *residual; /* NULL: none */
    int64_t residual_row;                        /* floats from one row of residual to the next */
    enum k_unary act;                            /* K_COPY: none */
    float act_a, act_b;
};

/* B (K x N, element (k, j) at b[k * b_k + j * b_j]) in panels: panel p holds columns [p nr, (p + 1) nr) as rows of k, each as wide as
 * the panel, the last one rounded up to a vector and filled with zeros. Panel p starts at dst + p * nr * K. */
size_t k_pack_b_floats(const struct k_gemm *g, int64_t k, int64_t n);
void k_pack_b(const struct k_gemm *g, int64_t k, int64_t n, const float *b, int64_t b_k, int64_t b_j, float *dst);
/* A (M x K, element (i, k) at a[i * a_i + k * a_k]) as k_gemm reads it from front to back: for each block of k (K_GEMM_BLOCK) the panels of
 * mr rows, each as columns of mr, zeros beyond M. */
size_t k_pack_a_floats(const struct k_gemm *g, int64_t m, int64_t k);
void k_pack_a(const struct k_gemm *g, int64_t m, int64_t k, const float *a, int64_t a_i, int64_t a_k, float *dst);

/* C (M x N) = A B and the epilogue. A as it lies (a_packed false) or packed by k_pack_a (then a_row and a_k are not read); B packed
 * by k_pack_b, or as it lies with rows b_k apart and columns side by side. */
struct k_product {
    int64_t m, n, k;
    const float *a;
    bool a_packed;
    int64_t a_row, a_k;
    const float *b;
    bool b_packed;
    int64_t b_k;
    float *c;
    int64_t c_row;
    struct k_epilogue then;
};
/* Rows [m0, m1) and columns [n0, n1): m0 is a multiple of mr, n0 of nr. Any division of the work gives the same bits. */
void k_gemm(const struct k_kernels *k, const struct k_product *p, int64_t m0, int64_t m1, int64_t n0, int64_t n1);

/* The same for columns [j, j + n), n at most nr, and the block [k0, k1) of k alone, whose B is at b with rows b_k apart. The blocks of a
 * panel are to come in rising order, the last one ending at p->k: sums wait in C between them. */
void k_gemm_panel(const struct k_kernels *k, const struct k_product *p, int64_t m0, int64_t m1, int64_t j, int64_t n, int64_t k0, int64_t k1,
                  const float *b, int64_t b_k);
enum { K_GEMM_BLOCK = 512 }; /* of k: 512 x 64 floats are 128 KB, a quarter of a small L2; 6 x 512 of A are a quarter of L1 */

/* --- products of bf16 ---------------------------------------------------------------------------------------
 *
 * Both sides are rounded to bf16 (to nearest even), the sums are f32. A pair of neighbours along k takes the place of one float, k is filled with
 * zeros to a multiple of 32 (k_half_depth): so the loops, tiles and forms above serve pairs too, with half the k, a table of tiles
 * that multiply pairs (half->gemm), and "floats" that are pairs.
 *
 * On generic, avx2, avx512 and vnni an element is one chain over rising pairs of c = fma(a1, b1, c), c = fma(a0, b0, c), where a result below the
 * normal range is zero. That is what vdpbf16ps does (on Intel's processors: test_kern_bf16.c compares), the levels without it do it in
 * software: the same bits. amx adds the even and the odd terms of 32 in a chain each, then both to the sum: its bits are its own. */
struct k_half {
    const struct k_gemm *gemm; /* its a, b, a_row, a_k, b_k and k are in pairs */
    /* y[i] = bf16 of x[i]; subnormals become zero, NaN stays NaN. */
    void (*convert)(int64_t n, const float *x, uint16_t *y);
};

enum { K_HALF_STEP = 32 };
static inline int64_t k_half_depth(int64_t k) { /* in pairs, the zeros included */
    return (k + K_HALF_STEP - 1) / K_HALF_STEP * (K_HALF_STEP / 2);
}
struct k_kernels;
struct k_geometry;
/* The table to call k_gemm with on pairs: k, but for half->gemm in the place of gemm. */
struct k_kernels k_half_kernels(const struct k_kernels *k);
/* B (K x N, element (k, j) at b[k * b_k + j * b_j]) as k_pack_b packs it, of pairs: 4-byte units. */
size_t k_half_pack_b_units(const struct k_kernels *k, int64_t depth, int64_t n);
void k_half_pack_b(const struct k_kernels *k, int64_t kk, int64_t n, const float *b, int64_t b_k, int64_t b_j, void *dst);
/* M rows of kk floats, a_row apart, as rows of k_half_depth(kk) pairs. */
void k_half_rows(const struct k_kernels *k, int64_t m, int64_t kk, const float *a, int64_t a_row, void *dst);
/* Rows of the matrix whose product with the weights is the convolution over images with channels last: output pixels [row0, row1) of all
 * images, columns (kernel position, channel): rows of k_half_depth(taps * channels) pairs. */
void k_half_pixels(const struct k_kernels *k, const struct k_geometry *g, const float *x, int64_t x_pixel, int64_t row0, int64_t row1, void *dst);

/* --- convolution ------------------------------------------------------------------------------------------ */

/* One group of a convolution over up to three spatial dimensions (depth, height, width; those not there are 1): channels of the
 * input, extents, and the padding before each. */
struct k_geometry {
    int64_t channels;
    int64_t in[3], out[3], kernel[3], stride[3], dilation[3], begin[3];
};

struct k_conv {
    /* Columns [p0, p0 + n) of the matrix whose product with the weights is the convolution, rows [k0, k1): row k is input channel and
     * kernel position (channel slowest), column p is output position p. n is at most the GEMM's nr. Row k0 goes to dst, rows are
     * `width` floats apart; columns from n on hold anything. Up to a vector behind the last row is written. */
    void (*pack)(const struct k_geometry *g, const float *x, int64_t k0, int64_t k1, int64_t p0, int64_t n, int64_t width, float *dst);
    /* One plane of a depthwise convolution in two dimensions (extents of depth are 1): y (out) from x (in) and w (kernel), + bias, then
     * clip to [lo, hi]. `padded` has k_depthwise_floats(g) floats, which are zero before the first of the planes that use it. */
    void (*depthwise)(const struct k_geometry *g, const float *x, const float *w, float bias, float lo, float hi, float *y, float *padded);
    /* Output rows [row0, row1) of an image whose channels come last, all g->channels of them (each a group): w is (kernel, channel), bias of
     * channels or NULL. */
    void (*depthwise_last)(const struct k_geometry *g, const float *x, const float *w, const float *bias, float lo, float hi, int64_t row0, int64_t row1,
                           float *y);
};

size_t k_depthwise_floats(const struct k_geometry *g);

/* --- images whose channels come last ----------------------------------------------------------------------
 *
 * x is (image, depth, row, column, channel). A row of the product is an output pixel, of all images in their order, a column an output
 * channel; an element is one chain over rising (kernel position, input channel). */

struct k_last_job { /* one group of a convolution */
    const struct k_geometry *g;
    int64_t images, oc;
    const float *x; /* the group's first channel */
    int64_t x_pixel; /* floats from one pixel to the next */
    const float *w; /* from k_last_pack */
    float *y;
    int64_t y_pixel; /* of the addend, too */
    const float *bias, *addend; /* NULL: none */
    enum k_unary act;
    float act_a, act_b;
    const float *zeros; /* as many as channels: what padding reads */
};

/* w (oc, channels, taps) in panels: each a few vectors of output channels wide, rows (tap, channel), zeros beyond oc. */
size_t k_last_pack_floats(const struct k_gemm *g, int64_t oc, int64_t k);
void k_last_pack(const struct k_gemm *g, int64_t oc, int64_t channels, int64_t taps, const float *w, float *dst);
int64_t k_last_panels(const struct k_gemm *g, int64_t oc);
int64_t k_last_panel_start(const struct k_gemm *g, int64_t oc, int64_t panel); /* its first output channel; oc rounded up for the end */
size_t k_last_scratch_bytes(const struct k_geometry *g);
/* Rows [row0, row1) of all output pixels and panels [p0, p1) of output channels. Any division gives the same bits. */
/* The same for weights that lie otherwise: of output j, channel c and tap q at w[j * w_out + c * w_channel + q], or with the kernel
 * turned round at [… + taps - 1 - q]; panels [p0, p1) only. */
struct k_last_weights {
    int64_t oc, channels, taps, w_out, w_channel;
    bool turned;
};
void k_last_pack_panels(const struct k_gemm *g, const struct k_last_weights *s, const float *w, int64_t p0, int64_t p1, float *dst);
void k_last_run(const struct k_kernels *k, const struct k_last_job *job, int64_t row0, int64_t row1, int64_t p0, int64_t p1, void *scratch);

/* --- 3 x 3 convolution by Winograd's F(2, 3) and F(4, 3) -------------------------------------------------------
 *
 * m x m outputs (m 2 or 4) from (m + 2)^2 products in place of 9 m^2: 2.25 or 4 times fewer. Stride and dilation 1, one group. The
 * error beside that of a chain of 9 x 64 fused multiply-adds, root mean square over random data: 0.7 times (F(2, 3), whose sums
 * are shorter) and 4 times (F(4, 3)); test_kern_winograd.c holds them below 3 and 9. */

struct k_tile_run { /* neighbouring tiles in one row of tiles of one image */
    int64_t image, row, left; /* input position of the first tile, may lie in the padding */
    int64_t y_row, y_left;    /* output position */
    int64_t col;              /* in the block */
    int len;                  /* at most run_max */
};

struct k_winograd {
    int run_max; /* tiles of a run: one less than a vector */
    /* For m = 2 [0] and 4 [1]. n kernels: element (i, j) of each lies at w[(i * 3 + j) * n], of the transformed ones at
     * u[(i * (m + 2) + j) * xi]. */
    void (*weights[2])(int64_t n, const float *w, float *u, int64_t xi);
    /* Input of one channel (its plane in x): element (i, j) of the transformed tile goes to
     * v[(i * (m + 2) + j) * xi + run's col]. */
    void (*input[2])(const struct k_geometry *g, const struct k_tile_run *run, const float *x, float *v, int64_t xi);
    /* The way back for one output channel: y = clip(transformed + bias + addend), planes of the channel; addend may be NULL. */
    void (*output[2])(const struct k_geometry *g, const struct k_tile_run *run, const float *v, int64_t xi, float bias, const float *addend, float lo,
                      float hi, float *y);
};

struct k_winograd_job {
    const struct k_geometry *g; /* kernel 3 x 3, at most K_GEMM_BLOCK channels */
    int m;
    int64_t images, oc;
    const float *x, *w; /* (images, channels, in), weights from k_winograd_pack */
    float *y;           /* (images, oc, out) */
    const float *bias, *addend; /* of oc, of y's shape; NULL: none */
    enum k_unary act;
    float act_a, act_b;
};

/* The weights: for each mr output channels nine planes of channels x mr, zeros beyond oc. As many floats as k_pack_a's form. */
void k_winograd_pack(const struct k_kernels *k, int64_t oc, int64_t channels, const float *w, float *dst);
int64_t k_winograd_blocks(const struct k_kernels *k, const struct k_winograd_job *job);
size_t k_winograd_scratch_floats(const struct k_kernels *k, const struct k_winograd_job *job);
/* Blocks first, first + step, … of tiles, and output channels [oc0, oc1), oc0 a multiple of the GEMM's mr. Any division gives the
 * same bits. */
void k_winograd_run(const struct k_kernels *k, const struct k_winograd_job *job, int64_t first, int64_t step, int64_t oc0, int64_t oc1, float *scratch);

/* --- the same, channels last -------------------------------------------------------------------------------
 *
 * F(4, 3) alone, over the points 0, +-sqrt 1/2, +-sqrt 2, whose error is about half that of 0, +-1, +-2. Transforms go along channels. */

struct k_winograd_last {
    /* n kernels, a whole number of vectors: element (i, j) of each lies at w[(i * 3 + j) * plane], of the transformed ones at u[(i * 6 + j) * xi]. */
    void (*weights)(int64_t n, const float *w, int64_t plane, float *u, int64_t xi);
    /* A tile: pixel (i, j) is `channels` floats at pixels[i * 6 + j]; element (i, j) of the transformed one goes to v + (i * 6 + j) * xi. */
    void (*input)(int64_t channels, const float *const *pixels, float *v, int64_t xi);
    /* The way back for n channels of a tile: output (i, j), i < rows and j < cols, goes to y + i * y_row + j * y_pixel: clip(. + bias + addend). */
    void (*output)(int64_t n, const float *v, int64_t xi, const float *bias, const float *addend, float lo, float hi, int rows, int cols, float *y,
                   int64_t y_row, int64_t y_pixel);
};

/* Whether a group of this geometry should go that way (job as for k_last_run, weights too): by its extents alone. */
bool k_winograd_last_pays(const struct k_geometry *g, int64_t oc);
/* Tiles of all images; a block of work is some of them. */
int64_t k_winograd_last_tiles(const struct k_last_job *job);
size_t k_winograd_last_scratch_floats(const struct k_kernels *k, const struct k_last_job *job);
/* Tiles [t0, t1) and panels [p0, p1) of output channels. Any division gives the same bits. */
void k_winograd_last_run(const struct k_kernels *k, const struct k_last_job *job, int64_t t0, int64_t t1, int64_t p0, int64_t p1, float *scratch);

/* --- sums of outer products: the gradient of a convolution's weights, channels last ------------------------------ */

struct k_outer_tile {
    int64_t k;
    const float *const *rows; /* a_p is at rows[p] + at */
    int64_t at;
    const float *b; /* b_p is at b + p * b_p */
    int64_t b_p;
    float *c;
    int64_t c_row;
    int n;      /* columns, 1 to nr */
    bool first; /* starts at 0 and not at C */
};

struct k_outer {
    int nr, vw, rows_max[K_TILE_VECTORS_MAX + 1]; /* rows of a tile of so many vectors */
    void (*tile)(int m, const struct k_outer_tile *t);
};

struct k_outer_job { /* one group; g is the forward convolution's geometry */
    const struct k_geometry *g;
    int64_t images, oc;
    const float *x, *dy; /* (images, in, channels), (images, out, oc) */
    float *dw;           /* (taps, channels, oc) */
    const float *zeros;  /* as many as channels */
};

/* A convolution of few channels: they leave a tile's rows, or a tap's steps, almost empty, so its taps are copied side by side. Output
 * pixels [first, first + n) of x (images, in, channels) become rows of taps x channels; padding is zeros. */
bool k_few_channels(const struct k_geometry *g);
void k_few_columns(const struct k_geometry *g, const float *x, int64_t first, int64_t n, float *columns);

int64_t k_outer_units(const struct k_kernels *k, const struct k_outer_job *job);
size_t k_outer_scratch_bytes(const struct k_geometry *g);
/* Units [unit0, unit1). Any division gives the same bits. */
void k_outer_run(const struct k_kernels *k, const struct k_outer_job *job, int64_t unit0, int64_t unit1, void *scratch);

/* --- columns of an array (rows x c): channels last ---------------------------------------------------------------- */

struct k_columns {
    void (*sum)(int64_t rows, int64_t c, const float *x, float *sums);                                   /* sums[j] = sum of x[r][j] */
    void (*sum_square)(int64_t rows, int64_t c, const float *x, const float *mean, float *sums);         /* of (x[r][j] - mean[j])^2 */
    void (*dot)(int64_t rows, int64_t c, const float *y, const float *x, const float *mean, float *sums); /* of y[r][j] (x[r][j] - mean[j]) */
    void (*linear)(int64_t rows, int64_t c, const float *x, const float *a, const float *b, float *y);   /* y[r][j] = x[r][j] a[j] + b[j], fused */
    /* to[r][j] = y[r][j] a[j] + ((x[r][j] - mean[j]) b[j] + d[j]) */
    void (*blend)(int64_t rows, int64_t c, const float *y, const float *x, const float *mean, const float *a, const float *b, const float *d, float *to);
    /* The backward pass of a maximum over `taps` rows of c: dy[j] is added to the dx[t][j] whose x[t][j] is the largest, the first of equals. */
    void (*give)(int64_t c, int taps, const float *const *x, const float *dy, float *const *dx);
};

struct k_kernels {
    enum k_level level;
    const char *name;
    const struct k_vmath *math;
    const struct k_gemm *gemm;
    const struct k_conv *conv;
    const struct k_winograd *winograd;
    const struct k_winograd_last *winograd_last;
    const struct k_quant *quant; /* quant.h: on bytes */
    const struct k_outer *outer;
    const struct k_columns *columns;
    const struct k_half *half;
};

/* The table of a level by name, "generic" to "amx"; NULL if there is no such level or this machine lacks it. */
const struct k_kernels *k_find(const char *name);
/* The level that QUERN_CPU names, else the best one of this machine. A QUERN_CPU that k_find refuses counts as not set here:
 * op_model_load is where it is an error. Never NULL. */
const struct k_kernels *k_default(void);
/* The best level of this machine, from cpuid and the register state that the system saves. */
enum k_level k_level_best(void);

extern const struct k_vmath k__vmath_generic, k__vmath_avx2, k__vmath_avx512, k__vmath_neon;
extern const struct k_gemm k__gemm_generic, k__gemm_avx2, k__gemm_avx512, k__gemm_neon;
extern const struct k_half k__half_generic, k__half_avx2, k__half_avx512, k__half_vnni, k__half_amx, k__half_neon;
extern const struct k_conv k__conv_generic, k__conv_avx2, k__conv_avx512, k__conv_neon;
extern const struct k_winograd k__winograd_generic, k__winograd_avx2, k__winograd_avx512, k__winograd_neon;
extern const struct k_winograd_last k__winograd_last_generic, k__winograd_last_avx2, k__winograd_last_avx512, k__winograd_last_neon;
extern const struct k_outer k__outer_generic, k__outer_avx2, k__outer_avx512, k__outer_neon;
extern const struct k_columns k__columns_generic, k__columns_avx2, k__columns_avx512, k__columns_neon;

#endif
