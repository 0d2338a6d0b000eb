/* winograd.c: the loops of a 3 x 3 convolution by Winograd's minimal filtering.
 *
 * A block is as many tiles as the matrix product's tile has columns, taken in their order through all images, so that small
 * images of a batch share one. Its input is transformed for all channels (V: (m + 2)^2 matrices of channels x tiles); then, for
 * CHUNK output channels at a time so that everything stays in L2, (m + 2)^2 products U V and the way back with bias,
 * addend and activation. A tile is a column of its own all the way: its bits do not depend on its neighbours. */
#include "ops/kern/kern.h"

#include <math.h>

enum { CHUNK = 48, RUNS_MAX = 64 };

static int64_t min64(int64_t a, int64_t b) {
    return a < b ? a : b;
}

static int64_t round_up(int64_t n, int64_t to) {
    return (n + to - 1) / to * to;
}

/* U = G w G' for one 3 x 3 kernel, in double precision. */
static void transform_weights(int m, const float *w, double *u) {
    static const double g2[4][3] = {{1, 0, 0}, {0.5, 0.5, 0.5}, {0.5, -0.5, 0.5}, {0, 0, 1}};
    static const double g4[6][3] = {{1.0 / 4, 0, 0},           {-1.0 / 6, -1.0 / 6, -1.0 / 6}, {-1.0 / 6, 1.0 / 6, -1.0 / 6},
                                    {1.0 / 24, 1.0 / 12, 1.0 / 6}, {1.0 / 24, -1.0 / 12, 1.0 / 6}, {0, 0, 1}};
    const double(*g)[3] = m == 2 ? g2 : g4;
    const int t = m + 2;
    double left[6][3]; /* G w */
    for (int i = 0; i < t; i++)
        for (int j = 0; j < 3; j++) left[i][j] = g[i][0] * (double)w[j] + g[i][1] * (double)w[3 + j] + g[i][2] * (double)w[6 + j];
    for (int i = 0; i < t; i++)
        for (int j = 0; j < t; j++) u[i * t + j] = left[i][0] * g[j][0] + left[i][1] * g[j][1] + left[i][2] * g[j][2];
}

size_t k_winograd_floats(const struct k_kernels *k, int m, int64_t oc, int64_t channels) {
    return (size_t)((m + 2) * (m + 2)) * k_pack_a_floats(k->gemm, oc, channels);
}

void k_winograd_pack(const struct k_kernels *k, int m, int64_t oc, int64_t channels, const float *w, float *dst) {
    const int64_t mr = k->gemm->mr, xi = (int64_t)k_pack_a_floats(k->gemm, oc, channels);
    const int t2 = (m + 2) * (m + 2);
    double u[36];
    for (int64_t o = 0; o < round_up(oc, mr); o++)
        for (int64_t c = 0; c < channels; c++) {
            if (o < oc) transform_weights(m, w + (o * channels + c) * 9, u);
            float *to = dst + o / mr * mr * channels + c * mr + o % mr; /* k_pack_a's form of one block of k */
            for (int i = 0; i < t2; i++) to[i * xi] = o < oc ? (float)u[i] : 0.0f;
        }
}

size_t k_winograd_scratch_floats(const struct k_kernels *k, int m, int64_t channels) {
    return (size_t)((m + 2) * (m + 2)) * (size_t)(channels + CHUNK) * (size_t)k->gemm->nr;
}

static int64_t tiles_of(int64_t out, int m) {
    return (out + m - 1) / m;
}

int64_t k_winograd_blocks(const struct k_kernels *k, const struct k_winograd_job *job) {
    const int64_t tiles = job->images * tiles_of(job->g->out[1], job->m) * tiles_of(job->g->out[2], job->m);
    return (tiles + k->gemm->nr - 1) / k->gemm->nr;
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

void k_winograd_block(const struct k_kernels *k, const struct k_winograd_job *job, int64_t block, int64_t oc0, int64_t oc1, float *scratch) {
    const struct k_geometry *g = job->g;
    const int64_t nr = k->gemm->nr, channels = g->channels, t2 = (job->m + 2) * (job->m + 2);
    const int64_t tiles = job->images * tiles_of(g->out[1], job->m) * tiles_of(g->out[2], job->m), first = block * nr, n = min64(nr, tiles - first);
    const int64_t v_xi = channels * nr, p_xi = CHUNK * nr, u_xi = (int64_t)k_pack_a_floats(k->gemm, job->oc, channels);
    float *v = scratch, *p = scratch + t2 * v_xi;
    struct k_tile_run runs[RUNS_MAX];
    const int n_runs = find_runs(job, first, n, k->winograd->run_max, runs);

    for (int64_t c = 0; c < channels; c++)
        for (int r = 0; r < n_runs; r++)
            k->winograd->input[job->m / 4](g, &runs[r], job->x + (runs[r].image * channels + c) * g->in[1] * g->in[2], v + c * nr, v_xi);
    for (int64_t o = oc0; o < oc1; o += CHUNK) {
        const int64_t rows = min64(CHUNK, oc1 - o);
        for (int64_t i = 0; i < t2; i++) {
            const struct k_product product = {.m = rows, .n = n, .k = channels, .a = job->u + i * u_xi + o * channels, .a_packed = true,
                                              .c = p + i * p_xi, .c_row = nr};
            k_gemm_panel(k, &product, 0, rows, 0, n, 0, channels, v + i * v_xi, nr);
        }
        finish(k, job, runs, n_runs, o, rows, p, p_xi);
    }
}
