/* gemm.c: packing, and the loops around the tile.
 *
 * Panels of B outermost (K x 64 floats stay in L2 while all rows of A pass), blocks of k next, rows of A innermost. A block of k
 * leaves its sums in C as f32, from where the next one goes on: the chain over k is the same as without blocks. The
 * activations that the tile does not know follow over each finished tile, while it is in L1.
 *
 * Where B is packed weights and A lies as it is (the layers of a Transformer) more than ROWS_MAX rows are divided, so that A stays in
 * L2 while the weights stream past, which costs 3 GB/s (1024 x 3072 x 768: 185 to 217 GFLOP/s); and beyond two blocks of k these
 * come before the panels, for the same reason. */
#include "ops/kern/kern.h"

#include <string.h>

static int64_t min64(int64_t a, int64_t b) {
    return a < b ? a : b;
}

static int64_t round_up(int64_t n, int64_t to) {
    return (n + to - 1) / to * to;
}

size_t k_pack_b_floats(const struct k_gemm *g, int64_t k, int64_t n) {
    return (size_t)k * (size_t)round_up(n, g->vw);
}

size_t k_pack_a_floats(const struct k_gemm *g, int64_t m, int64_t k) {
    return (size_t)k * (size_t)round_up(m, g->mr);
}

/* A square of 4 x 4 across its diagonal: rows of `from` become columns of `to`. */
typedef float square_row __attribute__((vector_size(16)));
static inline void transpose_4(const float *from, int64_t stride, float *to, int64_t to_stride) {
    square_row r[4], low[2], high[2];
    for (int i = 0; i < 4; i++) memcpy(&r[i], from + i * stride, sizeof r[i]);
    for (int i = 0; i < 2; i++) {
        low[i] = __builtin_shufflevector(r[i], r[i + 2], 0, 4, 1, 5);
        high[i] = __builtin_shufflevector(r[i], r[i + 2], 2, 6, 3, 7);
    }
    r[0] = __builtin_shufflevector(low[0], low[1], 0, 4, 1, 5);
    r[1] = __builtin_shufflevector(low[0], low[1], 2, 6, 3, 7);
    r[2] = __builtin_shufflevector(high[0], high[1], 0, 4, 1, 5);
    r[3] = __builtin_shufflevector(high[0], high[1], 2, 6, 3, 7);
    for (int i = 0; i < 4; i++) memcpy(to + i * to_stride, &r[i], sizeof r[i]);
}

void k_pack_b(const struct k_gemm *g, int64_t k, int64_t n, const float *b, int64_t b_k, int64_t b_j, float *dst) {
    for (int64_t j0 = 0; j0 < n; j0 += g->nr, dst += k * g->nr) {
        const int64_t cols = min64(g->nr, n - j0), width = round_up(cols, g->vw);
        if (b_j == 1) {
            for (int64_t i = 0; i < k; i++) {
                memcpy(dst + i * width, b + i * b_k + j0, (size_t)cols * sizeof *b);
                memset(dst + i * width + cols, 0, (size_t)(width - cols) * sizeof *b);
            }
            continue;
        }
        enum { STRIP = 16 }; /* rows of k at a time, so that a transposed B is read by whole cache lines */
        for (int64_t i0 = 0; i0 < k; i0 += STRIP) {
            const int64_t i1 = min64(k, i0 + STRIP), deep = b_k == 1 ? i0 + (i1 - i0) / 4 * 4 : i0, squares = deep > i0 ? cols / 4 * 4 : 0;
            for (int64_t j = 0; j < squares; j += 4)
                for (int64_t i = i0; i < deep; i += 4) transpose_4(b + i + (j0 + j) * b_j, b_j, dst + i * width + j, width);
            for (int64_t j = 0; j < width; j++)
                for (int64_t i = j < squares ? deep : i0; i < i1; i++) dst[i * width + j] = j < cols ? b[i * b_k + (j0 + j) * b_j] : 0.0f;
        }
    }
}

void k_pack_a(const struct k_gemm *g, int64_t m, int64_t k, const float *a, int64_t a_i, int64_t a_k, float *dst) {
    for (int64_t k0 = 0; k0 < k; k0 += K_GEMM_BLOCK) {
        const int64_t k1 = min64(k0 + K_GEMM_BLOCK, k);
        for (int64_t i0 = 0; i0 < m; i0 += g->mr, dst += (k1 - k0) * g->mr) {
            if (a_i == 1 && i0 + g->mr <= m) { /* transposed: columns lie as they are wanted */
                for (int64_t i = k0; i < k1; i++) memcpy(dst + (i - k0) * g->mr, a + i0 + i * a_k, (size_t)g->mr * sizeof *a);
                continue;
            }
            for (int64_t r = 0; r < g->mr; r++)
                for (int64_t i = k0; i < k1; i++) dst[(i - k0) * g->mr + r] = i0 + r < m ? a[(i0 + r) * a_i + i * a_k] : 0.0f;
        }
    }
}

/* Sets the tile's clip for the activations that are one, and says whether it did. */
static bool act_as_clip(const struct k_epilogue *e, struct k_tile *t) {
    t->clip = e->act == K_RELU || e->act == K_CLIP;
    t->lo = e->act == K_CLIP ? e->act_a : 0.0f;
    t->hi = e->act == K_CLIP ? e->act_b : __builtin_inff();
    return t->clip || e->act == K_COPY;
}

/* A piece of memory that is wanted soon, to be fetched into L2 evenly over the row tiles. */
struct ahead {
    const char *at;
    int64_t bytes, part; /* what is left, what a tile fetches */
};

static void set_ahead(struct ahead *ahead, struct k_tile *t) {
    enum { LINE = 64, STEPS = 4 /* of the tile, kern.h */ };
    const int64_t part = min64(ahead->part, ahead->bytes), rounds = t->k / STEPS;
    t->ahead = part > 0 ? ahead->at : (const char *)t->a;
    t->ahead_step = part > 0 && rounds ? min64(LINE, (part + rounds - 1) / rounds) : 0;
    ahead->at += part > 0 ? part : 0; /* there may be no address at all */
    ahead->bytes -= part;
}

static void run_panel(const struct k_kernels *kern, const struct k_product *p, int64_t m0, int64_t m1, int64_t j, int64_t n, int64_t k0, int64_t k1,
                      const float *b, int64_t b_k, struct ahead *ahead) {
    const struct k_gemm *g = kern->gemm;
    const struct k_epilogue *e = &p->then;
    struct k_tile t = {.k = k1 - k0, .a_row = p->a_packed ? 1 : p->a_row, .a_k = p->a_packed ? g->mr : p->a_k, .b = b, .b_k = b_k, .c_row = p->c_row,
                       .n = (int)n, .first = k0 == 0, .last = k1 == p->k};
    const bool act_in_tile = act_as_clip(e, &t);

    for (int64_t i = m0; i < m1; i += g->mr) {
        const int m = (int)min64(g->mr, m1 - i);
        t.a = p->a_packed ? p->a + k0 * round_up(p->m, g->mr) + i * (k1 - k0) : p->a + i * p->a_row + k0 * p->a_k;
        t.c = p->c + i * p->c_row + j;
        t.bias_row = e->bias_row ? e->bias_row + i : NULL;
        t.bias_col = e->bias_col ? e->bias_col + j : NULL;
        t.residual = e->residual ? e->residual + i * e->residual_row + j : NULL;
        t.residual_row = e->residual_row;
        set_ahead(ahead, &t);
        g->tile(m, &t);
        if (t.last && !act_in_tile)
            for (int r = 0; r < m; r++) kern->math->unary[e->act](t.n, t.c + r * t.c_row, t.c + r * t.c_row, e->act_a, e->act_b);
    }
}

void k_gemm_panel(const struct k_kernels *kern, const struct k_product *p, int64_t m0, int64_t m1, int64_t j, int64_t n, int64_t k0, int64_t k1,
                  const float *b, int64_t b_k) {
    struct ahead none = {0};
    run_panel(kern, p, m0, m1, j, n, k0, k1, b, b_k, &none);
}

enum { ROWS_MAX = 192 };

/* Columns [j, j + nr) for the rows and the block of k that `part` says; B's next panel is fetched meanwhile. */
struct part {
    int64_t m0, m1, k0, k1, n1;
};

static void run_block(const struct k_kernels *kern, const struct k_product *p, const struct part *r, int64_t j, bool k_outer) {
    const struct k_gemm *g = kern->gemm;
    const int64_t tiles = (r->m1 - r->m0 + g->mr - 1) / g->mr, block = r->k1 - r->k0;
    const int64_t b_k = p->b_packed ? min64(g->nr, round_up(p->n - j, g->vw)) : p->b_k;
    const float *b = p->b_packed ? p->b + j * p->k : p->b + j;
    const int64_t left = (r->n1 - j) * p->k - r->k1 * b_k; /* packed floats behind this block, of all columns asked for */
    struct ahead ahead = {0};
    if (p->b_packed && tiles > 2 && left > 0) { /* weights come from memory the first time */
        const int64_t skip = k_outer ? (p->k - block) * b_k : 0;
        ahead.at = (const char *)(b + r->k1 * b_k + skip);
        ahead.bytes = min64(left - skip, block * b_k) * (int64_t)sizeof *b;
        ahead.part = round_up(ahead.bytes / tiles + 1, 64);
    }
    run_panel(kern, p, r->m0, r->m1, j, min64(g->nr, r->n1 - j), r->k0, r->k1, b + r->k0 * b_k, b_k, &ahead);
}

static void run_rows(const struct k_kernels *kern, const struct k_product *p, int64_t m0, int64_t m1, int64_t n0, int64_t n1) {
    const int64_t nr = kern->gemm->nr, blocks = p->k > 0 ? (p->k + K_GEMM_BLOCK - 1) / K_GEMM_BLOCK : 1;
    const int64_t step = blocks > 1 && !p->a_packed ? round_up((p->k + blocks - 1) / blocks, K_HALF_STEP / 2) : K_GEMM_BLOCK; /* packed A has its blocks */
    const bool k_outer = !p->a_packed && p->b_packed && blocks > 2;
    struct part r = {.m0 = m0, .m1 = m1, .n1 = n1};
    for (int64_t j0 = n0; j0 < n1; j0 += k_outer ? n1 - n0 : nr)
        for (int64_t i = 0; i < blocks; i++) { /* once even for k = 0: the epilogue of empty sums */
            r.k0 = i * step;
            r.k1 = min64(r.k0 + step, p->k);
            for (int64_t j = j0; j < (k_outer ? n1 : min64(j0 + nr, n1)); j += nr) run_block(kern, p, &r, j, k_outer);
        }
}

void k_gemm(const struct k_kernels *kern, const struct k_product *p, int64_t m0, int64_t m1, int64_t n0, int64_t n1) {
    const int64_t rows = m1 - m0, blocks = !p->a_packed && p->b_packed && rows > ROWS_MAX ? (rows + ROWS_MAX - 1) / ROWS_MAX : 1;
    const int64_t step = round_up((rows + blocks - 1) / blocks, kern->gemm->mr);
    for (int64_t m = m0; m < m1; m += step) run_rows(kern, p, m, min64(m + step, m1), n0, n1);
}
