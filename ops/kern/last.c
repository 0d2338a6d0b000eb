/* last.c: convolution over images whose channels come last, as a matrix product that copies nothing.
 *
 * A row of A is an output pixel. For each kernel position it is a run of channels that lies in the input already, so the tile is
 * given pointers to those runs (padding points to zeros) in place of a packed copy. B are the weights, packed at load.
 *
 * Loops: blocks of rows small enough that what they read stays in L2, panels of B, blocks of its rows, tiles of rows. Every part of B is
 * read once for a block of rows, the next one is fetched from memory meanwhile; sums wait in C between blocks. The rows of a block are divided evenly between its tiles: 49 pixels are
 * nine tiles of five or six rows and no tile of one. */
#include "ops/kern/kern.h"

#include <string.h>

enum { BLOCK_BYTES = 384 << 10, BLOCK_POINTERS = 1 << 14, LINE = 64, OFFSETS_MAX = 64 };

static int64_t min64(int64_t a, int64_t b) {
    return a < b ? a : b;
}

static int64_t vectors_of(const struct k_gemm *g, int64_t oc) {
    return (oc + g->vw - 1) / g->vw;
}

size_t k_last_pack_floats(const struct k_gemm *g, int64_t oc, int64_t k) {
    return (size_t)k * (size_t)(vectors_of(g, oc) * g->vw);
}

int64_t k_last_panels(const struct k_gemm *g, int64_t oc) {
    const int64_t most = g->nr / g->vw;
    return (vectors_of(g, oc) + most - 1) / most;
}

/* Panels are of equal width, give or take a vector: nine vectors are three times three. */
int64_t k_last_panel_start(const struct k_gemm *g, int64_t oc, int64_t panel) {
    return vectors_of(g, oc) * panel / k_last_panels(g, oc) * g->vw;
}

/* Channel by channel: of 64 outputs in turn one line of memory each is read, and the lines are there for the next channel. */
void k_last_pack_panels(const struct k_gemm *g, const struct k_last_weights *s, const float *w, int64_t p0, int64_t p1, float *dst) {
    const int64_t oc = s->oc, channels = s->channels, taps = s->taps;
    for (int64_t p = p0; p < p1; p++) {
        const int64_t from = k_last_panel_start(g, oc, p), width = k_last_panel_start(g, oc, p + 1) - from, used = min64(width, oc - from);
        float *panel = dst + from * channels * taps;
        for (int64_t c = 0; c < channels; c++)
            for (int64_t j = 0; j < width; j++) {
                const float *source = w + (from + j) * s->w_out + c * s->w_channel;
                float *to = panel + c * width + j;
                for (int64_t q = 0; q < taps; q++) to[q * channels * width] = j < used ? source[s->turned ? taps - 1 - q : q] : 0.0f;
            }
    }
}

void k_last_pack(const struct k_gemm *g, int64_t oc, int64_t channels, int64_t taps, const float *w, float *dst) {
    const struct k_last_weights s = {oc, channels, taps, channels * taps, taps, false};
    k_last_pack_panels(g, &s, w, 0, k_last_panels(g, oc), dst);
}

static int64_t taps_of(const struct k_geometry *g) {
    return g->kernel[0] * g->kernel[1] * g->kernel[2];
}

static bool pointwise(const struct k_geometry *g) {
    for (int a = 0; a < 3; a++)
        if (g->kernel[a] != 1 || g->stride[a] != 1 || g->begin[a] != 0 || g->in[a] != g->out[a]) return false;
    return true;
}

/* Output pixels of a block. */
static int64_t block_rows(const struct k_geometry *g) {
    const int64_t taps = taps_of(g), bytes = g->channels * (int64_t)sizeof(float) * min64(taps, g->stride[1] * g->stride[2] + 1);
    int64_t rows = BLOCK_BYTES / (bytes > 0 ? bytes : 1);
    if (rows > BLOCK_POINTERS / taps) rows = BLOCK_POINTERS / taps;
    return rows < 2 * K_ROWS_MAX ? 2 * K_ROWS_MAX : rows;
}

size_t k_last_scratch_bytes(const struct k_geometry *g) {
    return (size_t)(block_rows(g) * taps_of(g) * K_ROWS_MAX) * sizeof(const float *); /* at worst one row a tile */
}

/* An output pixel, and where the taps of one that needs no padding lie, from its first on. */
struct place {
    int64_t image, o[3];
    int64_t offset[OFFSETS_MAX];
    bool offsets; /* there are not too many taps */
};

static void place_at(const struct k_last_job *job, int64_t row, struct place *p) {
    const struct k_geometry *g = job->g;
    const int64_t taps = taps_of(g);
    for (int a = 2; a >= 0; a--) p->o[a] = row % g->out[a], row /= g->out[a];
    p->image = row;
    p->offsets = taps <= OFFSETS_MAX;
    for (int64_t q = 0; q < taps && p->offsets; q++) {
        const int64_t a2 = q % g->kernel[2], a1 = q / g->kernel[2] % g->kernel[1], a0 = q / g->kernel[2] / g->kernel[1];
        p->offset[q] = ((a0 * g->dilation[0] * g->in[1] + a1 * g->dilation[1]) * g->in[2] + a2 * g->dilation[2]) * job->x_pixel;
    }
}

static void place_next(const struct k_geometry *g, struct place *p) {
    for (int a = 2; a >= 0; a--) {
        if (++p->o[a] < g->out[a]) return;
        p->o[a] = 0;
    }
    p->image++;
}

/* Its pointers: tap q's goes to to[q * K_ROWS_MAX]. */
static void point(const struct k_last_job *job, const struct place *p, const float **to) {
    const struct k_geometry *g = job->g;
    const int64_t od = p->o[0], oh = p->o[1], ow = p->o[2];
    const float *image = job->x + p->image * g->in[0] * g->in[1] * g->in[2] * job->x_pixel;
    bool whole = p->offsets;
    int64_t at = 0;
    for (int a = 0; a < 3; a++) {
        const int64_t i = p->o[a] * g->stride[a] - g->begin[a];
        whole = whole && i >= 0 && i + (g->kernel[a] - 1) * g->dilation[a] < g->in[a];
        at = at * g->in[a] + i;
    }
    if (whole) {
        const float *first = image + at * job->x_pixel;
        for (int64_t q = 0, taps = taps_of(g); q < taps; q++) to[q * K_ROWS_MAX] = first + p->offset[q];
        return;
    }
    for (int64_t a0 = 0; a0 < g->kernel[0]; a0++)
        for (int64_t a1 = 0; a1 < g->kernel[1]; a1++) {
            const int64_t d = od * g->stride[0] - g->begin[0] + a0 * g->dilation[0], h = oh * g->stride[1] - g->begin[1] + a1 * g->dilation[1];
            const bool inside = d >= 0 && d < g->in[0] && h >= 0 && h < g->in[1];
            const float *line = image + (d * g->in[1] + h) * g->in[2] * job->x_pixel;
            int64_t w = ow * g->stride[2] - g->begin[2];
            for (int64_t a2 = 0; a2 < g->kernel[2]; a2++, w += g->dilation[2], to += K_ROWS_MAX)
                *to = inside && w >= 0 && w < g->in[2] ? line + w * job->x_pixel : job->zeros;
        }
}

/* n rows in `tiles` tiles: the first n % tiles of them have one more than the others. */
static void point_tiles(const struct k_last_job *job, int64_t first, int64_t n, int64_t tiles, const float **pointers) {
    const bool flat = pointwise(job->g);
    const int64_t taps = taps_of(job->g);
    const int64_t each = n / tiles, more = n % tiles;
    struct place place = {.image = 0};
    if (!flat) place_at(job, first, &place);
    for (int64_t i = 0, row = first; i < tiles; i++, pointers += taps * K_ROWS_MAX) {
        const int64_t rows = each + (i < more);
        for (int64_t r = 0; r < rows; r++, row++) {
            if (flat) {
                pointers[r] = job->x + row * job->x_pixel;
                continue;
            }
            point(job, &place, pointers + r);
            place_next(job->g, &place);
        }
    }
}

/* Sets the tile's clip for the activations that are one, and says whether it did. */
static bool act_as_clip(const struct k_last_job *job, struct k_tile *t) {
    t->clip = job->act == K_RELU || job->act == K_CLIP;
    t->lo = job->act == K_CLIP ? job->act_a : 0.0f;
    t->hi = job->act == K_CLIP ? job->act_b : __builtin_inff();
    return t->clip || job->act == K_COPY;
}

struct block { /* of a panel of B: whole taps, or a part of the channels of one */
    int64_t tap, taps, from, channels;
};

/* The block that begins where `b` ended: about K_GEMM_BLOCK rows of B. False behind the last one. */
static bool next_block(const struct k_geometry *g, struct block *b) {
    const int64_t all = g->channels, taps = taps_of(g), parts = (all + K_GEMM_BLOCK - 1) / K_GEMM_BLOCK;
    if (parts <= 1) {
        b->tap += b->taps;
        b->taps = min64(K_GEMM_BLOCK / all > 0 ? K_GEMM_BLOCK / all : 1, taps - b->tap);
        b->channels = all;
        return b->taps > 0;
    }
    b->from += b->channels;
    if (b->from >= all || b->taps == 0) {
        if (b->taps) b->tap++;
        b->from = 0;
    }
    b->taps = 1;
    b->channels = min64((all + parts - 1) / parts, all - b->from);
    return b->tap < taps;
}

/* One block of a panel over the rows [first, first + n) in `tiles` tiles. The `next_bytes` behind it are wanted soon: they are fetched
 * meanwhile, evenly, since many at once would keep the tile's own loads waiting. */
static void run_block(const struct k_kernels *k, const struct k_last_job *job, struct k_tile *t, int64_t j, int64_t first, int64_t n, int64_t tiles,
                      const float *const *pointers, int64_t width, int64_t next_bytes) {
    const bool act_in_tile = act_as_clip(job, t);
    const int64_t taps = taps_of(job->g), steps = t->k * t->taps, step = min64(LINE, (next_bytes + tiles * steps - 1) / (tiles * steps));
    const char *next = (const char *)(t->b + steps * width);
    const int64_t each = n / tiles, more = n % tiles;
    for (int64_t i = 0, r = 0; i < tiles; i++) {
        const int m = (int)(each + (i < more));
        t->ahead = next_bytes ? next + i * steps * step : (const char *)t->b;
        t->ahead_step = step;
        t->rows = pointers + i * taps * K_ROWS_MAX;
        t->c = job->y + (first + r) * job->y_pixel + j;
        t->residual = job->addend ? job->addend + (first + r) * job->y_pixel + j : NULL;
        k->gemm->rows(m, t);
        if (t->last && !act_in_tile)
            for (int q = 0; q < m; q++) k->math->unary[job->act](t->n, t->c + q * t->c_row, t->c + q * t->c_row, job->act_a, job->act_b);
        r += m;
    }
}

static void run_panel(const struct k_kernels *k, const struct k_last_job *job, int64_t p, bool last_panel, int64_t first, int64_t n, int64_t tiles,
                      const float *const *pointers) {
    const int64_t j = k_last_panel_start(k->gemm, job->oc, p), width = k_last_panel_start(k->gemm, job->oc, p + 1) - j;
    struct block b = {0}, next;
    struct k_tile t = {.c_row = job->y_pixel, .n = (int)(min64(j + width, job->oc) - j), .b = job->w + j * job->g->channels * taps_of(job->g),
                       .bias_col = job->bias ? job->bias + j : NULL, .residual_row = job->y_pixel, .first = true};
    for (bool more = next_block(job->g, &b); more; b = next) {
        next = b;
        more = next_block(job->g, &next);
        t.k = b.channels;
        t.taps = b.taps;
        t.from = b.from;
        t.last = !more;
        /* The block behind this one, which may be the next panel's first: of about the same size. */
        const int64_t next_rows = more ? next.channels * next.taps : last_panel ? 0 : min64(t.k * t.taps, job->g->channels);
        run_block(k, job, &t, j, first, n, tiles, pointers + b.tap * K_ROWS_MAX, width, next_rows * width * (int64_t)sizeof(float));
        t.b += t.k * t.taps * width;
        t.first = false;
    }
}

void k_last_run(const struct k_kernels *k, const struct k_last_job *job, int64_t row0, int64_t row1, int64_t p0, int64_t p1, void *scratch) {
    const struct k_gemm *gemm = k->gemm;
    const int64_t most = block_rows(job->g), blocks = (row1 - row0 + most - 1) / most;
    for (int64_t b = 0; b < blocks; b++) {
        const int64_t first = row0 + (row1 - row0) * b / blocks, n = row0 + (row1 - row0) * (b + 1) / blocks - first;
        int64_t pointed = 0;
        for (int64_t p = p0; p < p1; p++) {
            const int64_t vectors = (k_last_panel_start(gemm, job->oc, p + 1) - k_last_panel_start(gemm, job->oc, p)) / gemm->vw;
            const int64_t tile_rows = gemm->rows_max[vectors], tiles = (n + tile_rows - 1) / tile_rows;
            if (tiles != pointed) point_tiles(job, first, n, tiles, scratch);
            pointed = tiles;
            run_panel(k, job, p, p + 1 == p1, first, n, tiles, scratch);
        }
    }
}
