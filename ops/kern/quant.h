/* quant.h: the kernels on bytes. Internal to ops/.
 *
 * A is u8 and lies as it is, rows of bytes; B is i8, packed. Sums are exact 32-bit integers (they wrap), so every level gives the same bits and
 * any division of the work does. What follows the sum (scales, a rounding on the way, an addend, limits) is a fixed list of f32
 * operations, the same on every level.
 *
 * Values of i8 count as u8 by adding 128 to them and to their zero point: k_quant.flip.
 *
 * PACKED B, in panels of nr columns: for each four steps of k the columns side by side, four bytes each. The last panel is as wide as
 * its columns rounded up to a vector, zeros beyond; zeros too where k ends within four, and behind the last panel. */
#ifndef QUERN_KERN_QUANT_H
#define QUERN_KERN_QUANT_H

#include "ops/kern/kern.h"

enum k_quant_out { K_QUANT_SUM, K_QUANT_FLOAT, K_QUANT_BYTE };

/* After the sum of element (i, j), in this order, each step rounded once:
 *   s = sum + offset[j] - row_sum[i] b_zero[j]                    as i32; an absent part counts as 0
 *   SUM    y = s
 *   else   v = (f32) s * scale[j]
 *   mid    v = round(clip(v, mid_lo, mid_hi))                     a value that was quantized and read back, less its zero point
 *   FLOAT  v = v * mid_scale (if mid), v + bias[j] (if bias)      y = v
 *   BYTE   v = v * mid_scale + (residual[i][j] - residual_zero) * residual_scale   (if residual; mid is then set)
 *          y = round(clip(v, lo, hi)) + zero
 * round: halves to even. Scales are finite, limits whole numbers of at most 2^20. */
struct k_quant_after {
    enum k_quant_out out;
    const int32_t *offset, *row_sum, *b_zero;
    const float *scale;
    bool mid;
    float mid_lo, mid_hi, mid_scale;
    const float *bias;
    const uint8_t *residual;
    int64_t residual_row;
    bool residual_signed; /* the addend is i8 */
    float residual_zero, residual_scale;
    float lo, hi;
    bool small; /* every |v| is below 2^31, whatever the sums: all scales are below 1 */
    int32_t zero; /* y is u8 or i8: lo + zero and hi + zero are its limits or within */
};

struct k_quant_tile {
    const uint8_t *const *a; /* row r begins at a[r]; rows may be read up to their length rounded up to four */
    const int64_t *segment;  /* piece s of a row is at a[r] + segment[s] */
    int64_t n_segments, quads;       /* quads: fours in a segment */
    const int8_t *b;         /* the panel at this tile's first column */
    int64_t b_quad;          /* bytes from one four to the next: 4 * width of the panel */
    const int8_t *ahead;     /* what is wanted next: `ahead_step` bytes of it are fetched for each four of k, then ahead stands further */
    int64_t ahead_step;
    int n;                   /* columns */
    void *c;
    int64_t c_row; /* elements */
    const struct k_quant_after *after; /* its arrays begin at this tile's row and column */
};

/* One row of outputs of a depthwise convolution, channels side by side. Loads go up to vb - 1 bytes beyond the last channel. */
struct k_depthwise_q {
    int64_t channels, width, in_width; /* width: outputs */
    int64_t kh, kw, stride, dilation;  /* stride and dilation along the row */
    int64_t left;                      /* input column of the first output's first tap; columns outside hold `zero` */
    uint8_t zero;
    const uint8_t *const *rows; /* the kernel's rows of the input, column 0 */
    const int8_t *w;            /* from k_quant_pack_depthwise, and so are offset and scale of `after` */
    uint8_t *y;
    const struct k_quant_after *after; /* out is BYTE; no row sums, no residual */
};

struct k_quant {
    int nr, vw, vb; /* columns of a panel, of a vector; bytes of a vector */
    int rows[5];    /* rows of the tallest tile for 1, 2, … vectors of columns */
    void (*tile)(int m, const struct k_quant_tile *t); /* 1 <= m <= rows[vectors of t->n] */
    void (*begin)(void), (*end)(void);                 /* around the tiles of one thread; NULL: nothing to do */
    void (*depthwise)(const struct k_depthwise_q *d);
    /* dst[i] = round(clip(x[i] / scale, lo, hi)) + zero with the quotient correctly rounded; NaN gives zero. dst is u8 or i8 */
    void (*quantize)(int64_t n, const float *x, float scale, float lo, float hi, int32_t zero, uint8_t *dst);
    void (*dequantize)(int64_t n, const uint8_t *x, bool is_signed, int32_t zero, float scale, float *dst);
    /* dst[i] = round(clip((a[i] - a_zero) a_scale + (b[i] - b_zero) b_scale, lo, hi)) + zero; of b: residual_zero, residual_scale */
    void (*add)(int64_t n, const uint8_t *a, bool a_signed, float a_zero, float a_scale, const uint8_t *b, const struct k_quant_after *after, uint8_t *dst);
    /* dst[i] = round(clip((a[i] - a_zero) (b[i] - b_zero) scale, lo, hi)) + zero; b_zero is residual_zero */
    void (*multiply)(int64_t n, const uint8_t *a, bool a_signed, float a_zero, float scale, const uint8_t *b, const struct k_quant_after *after, uint8_t *dst);
    void (*max)(int64_t n, const uint8_t *x, uint8_t *dst, bool is_signed); /* dst[i] = max(dst[i], x[i]) */
    void (*sums)(int64_t n, const uint8_t *x, int32_t *dst);                 /* dst[i] += x[i] */
    int32_t (*sum)(int64_t n, const uint8_t *x);
    void (*flip)(int64_t n, const uint8_t *x, uint8_t *dst); /* x + 128, mod 256 */
};

/* Bytes of B of `segments` pieces of k rows each, packed. */
size_t k_quant_packed_bytes(const struct k_quant *q, int64_t segments, int64_t k, int64_t n);
/* Element (s, i, j) of B at b[s * b_segment + i * b_k + j * b_j], u8 (which counts as i8 less 128) or i8. Column sums (of what was packed) go
 * to sums[n] where not NULL. */
void k_quant_pack(const struct k_kernels *kern, int64_t segments, int64_t k, int64_t n, const uint8_t *b, bool is_signed, int64_t b_segment, int64_t b_k,
                  int64_t b_j, int8_t *dst, int32_t *sums);

/* Where a channel of a depthwise convolution stands in its block of vb channels. */
static inline int64_t k_quant_channel(const struct k_quant *q, int64_t channel) {
    const int64_t c = channel % q->vb;
    return channel - c + c / 4 % 4 * q->vw + c / 16 * 4 + c % 4;
}
size_t k_quant_depthwise_bytes(const struct k_quant *q, int64_t channels, int64_t kh, int64_t kw);
/* Weights (channels, kh, kw) of i8. */
void k_quant_pack_depthwise(const struct k_quant *q, int64_t channels, int64_t kh, int64_t kw, const int8_t *w, int8_t *dst);

struct k_quant_product {
    int64_t n, k, n_segments; /* k: of a segment */
    const int64_t *segment;
    const int8_t *b;
    int64_t c_row;
    struct k_quant_after after;
};
/* Rows [i0, i0 + m) of C, whose row r of A begins at a[r], and columns [n0, n1), n0 a multiple of nr. c is where element (i0, n0) goes. */
void k_quant_rows(const struct k_kernels *k, const struct k_quant_product *p, const uint8_t *const *a, int64_t i0, int64_t m, int64_t n0, int64_t n1,
                  void *c);

extern const struct k_quant k__quant_generic, k__quant_avx2, k__quant_avx512, k__quant_vnni, k__quant_amx, k__quant_neon;

#endif
