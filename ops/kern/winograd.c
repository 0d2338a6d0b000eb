/* winograd.c: the loops of a 3 x 3 convolution by Winograd's minimal filtering.
 *
 * A block is as many tiles as the matrix product's tile has columns, taken in their order through all images, so that small
 * images of a batch share one. Its input is transformed for all channels (V: (m + 2)^2 matrices of channels x tiles); then, for
 * CHUNK output channels at a time so that everything stays in L2, their weights (U), (m + 2)^2 products U V and the way back
 * with bias, addend and activation. Where there are several blocks and U is small it is made once for all of them. A tile is a
 * column of its own all the way: its bits do not depend on its neighbours. */
#include "ops/kern/kern.h"

#include <math.h>

/* SKEW: a cache line more from one of the (m + 2)^2 matrices to the next. The transforms write to (and read from) all of them at
 * once, and with sizes that are multiples of a page they would all fight for the same lines of L1. */
enum { CHUNK = 48, RUNS_MAX = 64, WHOLE_FLOATS_MAX = 1 << 19, SKEW = 16 };

static int64_t min64(int64_t a, int64_t b) {
    return a < b ? a : b;
}

static int64_t round_up(int64_t n, int64_t to) {
    return (n + to - 1) / to * to;
}

void k_winograd_pack(const struct k_kernels *k, int64_t oc, int64_t channels, const float *w, float *dst) {
    const int64_t mr = k->gemm->mr, plane = channels * mr;
    for (int64_t o = 0; o < round_up(oc, mr); o++)
        for (int64_t c = 0; c < channels; c++)
            for (int64_t i = 0; i < 9; i++) dst[o / mr * 9 * plane + i * plane + c * mr + o % mr] = o < oc ? w[(o * channels + c) * 9 + i] : 0.0f;
}

static int64_t tiles_of(int64_t out, int m) {
    return (out + m - 1) / m;
}

int64_t k_winograd_blocks(const struct k_kernels *k, const struct k_winograd_job *job) {
    const int64_t tiles = job->images * tiles_of(job->g->out[1], job->m) * tiles_of(job->g->out[2], job->m);
    return (tiles + k->gemm->nr - 1) / k->gemm->nr;
}

/* Whether U is made once for all blocks, and its size: of all output channels or of a chunk. */
static bool whole(const struct k_kernels *k, const struct k_winograd_job *job, int64_t *u_rows) {
    const int64_t all = round_up(job->oc, k->gemm->mr), t2 = (job->m + 2) * (job->m + 2);
    const bool once = k_winograd_blocks(k, job) > 1 && t2 * all * job->g->channels <= WHOLE_FLOATS_MAX;
    *u_rows = once ? all : CHUNK;
    return once;
}

size_t k_winograd_scratch_floats(const struct k_kernels *k, const struct k_winograd_job *job) {
    int64_t u_rows;
    whole(k, job, &u_rows);
    return (size_t)((job->m + 2) * (job->m + 2)) * (size_t)(job->g->channels * u_rows + (job->g->channels + CHUNK) * k->gemm->nr + 3 * SKEW);
}

/* U of output channels [o, o1) in k_pack_a's form of one block of k, xi floats from one matrix to the next. */
static void make_u(const struct k_kernels *k, const struct k_winograd_job *job, int64_t o, int64_t o1, float *u, int64_t xi) {
    const int64_t mr = k->gemm->mr, plane = job->g->channels * mr;
    for (; o < o1; o += mr, u += plane) k->winograd->weights[job->m / 4](plane, job->w + o / mr * 9 * plane, u, xi);
}

static int find_runs(const struct k_winograd_job *job, int64_t first, int64_t n, int run_max, struct k_tile_run *runs) {
    const int64_t across = tiles_of(job->g->out[2], job->m), down = tiles_of(job->g->out[1], job->m);
    int count = 0;
    for (int64_t q = first; q < first + n; count++) {
        const int64_t tx = q % across, ty = q / across % down, len = min64(min64(across - tx, first + n - q), run_max);
        runs[count] = (struct k_tile_run){.image = q / across / down, .row = ty * job->m - job->g->begin[1], .left = tx * job->m - job->g->begin[2],
                                          .y_row = ty * job->m, .y_left = tx * job->m, .col = q - first, .len = (int)len};
        q += len;
    }
    return count;
}

/* Activations that are not a clip, on the outputs of a run of tiles. */
static void activate(const struct k_kernels *k, const struct k_winograd_job *job, const struct k_tile_run *run, float *plane) {
    const int64_t rows = min64(job->m, job->g->out[1] - run->y_row), cols = min64((int64_t)job->m * run->len, job->g->out[2] - run->y_left);
    for (int64_t i = 0; i < rows; i++) {
        float *y = plane + (run->y_row + i) * job->g->out[2] + run->y_left;
        k->math->unary[job->act](cols, y, y, job->act_a, job->act_b);
    }
}

/* The way back for output channels [o, o + n), whose products are at p (xi, n, nr). */
static void finish(const struct k_kernels *k, const struct k_winograd_job *job, const struct k_tile_run *runs, int n_runs, int64_t o, int64_t n,
                   const float *p, int64_t xi) {
    const int64_t plane = job->g->out[1] * job->g->out[2];
    const bool relu = job->act == K_RELU, clip = job->act == K_CLIP;
    const float lo = relu ? 0.0f : clip ? job->act_a : -INFINITY, hi = clip ? job->act_b : INFINITY;
    for (int64_t c = 0; c < n; c++)
        for (int r = 0; r < n_runs; r++) {
            const int64_t at = (runs[r].image * job->oc + o + c) * plane;
            k->winograd->output[job->m / 4](job->g, &runs[r], p + c * k->gemm->nr, xi, job->bias ? job->bias[o + c] : 0.0f,
                                            job->addend ? job->addend + at : NULL, lo, hi, job->y + at);
            if (!relu && !clip && job->act != K_COPY) activate(k, job, &runs[r], job->y + at);
        }
}

/* One block of tiles. U is of all channels if u_whole, else made here chunk by chunk. */
static void run_block(const struct k_kernels *k, const struct k_winograd_job *job, int64_t block, int64_t oc0, int64_t oc1, float *u, bool u_whole,
                      int64_t u_xi, float *v) {
    const struct k_geometry *g = job->g;
    const int64_t nr = k->gemm->nr, channels = g->channels, t2 = (job->m + 2) * (job->m + 2);
    const int64_t tiles = job->images * tiles_of(g->out[1], job->m) * tiles_of(g->out[2], job->m), first = block * nr, n = min64(nr, tiles - first);
    const int64_t v_xi = channels * nr + SKEW, p_xi = CHUNK * nr + SKEW;
    float *p = v + t2 * v_xi;
    struct k_tile_run runs[RUNS_MAX];
    const int n_runs = find_runs(job, first, n, k->winograd->run_max, runs);

    for (int64_t c = 0; c < channels; c++)
        for (int r = 0; r < n_runs; r++)
            k->winograd->input[job->m / 4](g, &runs[r], job->x + (runs[r].image * channels + c) * g->in[1] * g->in[2], v + c * nr, v_xi);
    for (int64_t o = oc0; o < oc1; o += CHUNK) {
        const int64_t rows = min64(CHUNK, oc1 - o);
        if (!u_whole) make_u(k, job, o, o + rows, u, u_xi);
        for (int64_t i = 0; i < t2; i++) {
            const struct k_product product = {.m = rows, .n = n, .k = channels, .a = u + i * u_xi + (u_whole ? (o - oc0) * channels : 0), .a_packed = true,
                                              .c = p + i * p_xi, .c_row = nr};
            k_gemm_panel(k, &product, 0, rows, 0, n, 0, channels, v + i * v_xi, nr);
        }
        finish(k, job, runs, n_runs, o, rows, p, p_xi);
    }
}

void k_winograd_run(const struct k_kernels *k, const struct k_winograd_job *job, int64_t first, int64_t step, int64_t oc0, int64_t oc1, float *scratch) {
    int64_t u_rows;
    const bool u_whole = whole(k, job, &u_rows);
    const int64_t u_xi = u_rows * job->g->channels + SKEW;
    float *v = scratch + (job->m + 2) * (job->m + 2) * u_xi;
    if (u_whole) make_u(k, job, oc0, oc1, scratch, u_xi);
    for (int64_t block = first, n = k_winograd_blocks(k, job); block < n; block += step) run_block(k, job, block, oc0, oc1, scratch, u_whole, u_xi, v);
}
