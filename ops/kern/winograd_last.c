/* winograd_last.c: the loops of a 3 x 3 convolution by Winograd's F(4, 3) over images whose channels come last.
 *
 * A tile is a row of 36 products. For a block of tiles: the input is transformed for all channels (V: 36 matrices, tiles x channels);
 * then, panel by panel of output channels and CHUNK by CHUNK of input channels, the weights (U: 36 matrices of CHUNK x panel, 600 KB)
 * and M += V U; then the way back with bias, addend and activation.
 *
 * The weights are transformed each time, as their nine planes are a quarter of the memory: fetching four times as much would
 * take longer. Where all of them are one chunk, that is done once. While a chunk is multiplied its successor's planes are
 * fetched. A tile is a row of its own all the way, its sums are chains over rising channels: its bits depend on nothing else. */
#include "ops/kern/kern.h"

#include <math.h>

/* SKEW: a cache line more from one of the 36 matrices to the next. The transforms write to (and read from) all of them at
 * once, and with sizes that are multiples of a page they would all fight for the same lines of L1. */
enum { XI = 36, SIDE = 4, CHUNK = 64, SKEW = 16, TILES_MIN = 32, TILES_MAX = 128, BLOCK_FLOATS = 1 << 18, CHANNELS_MIN = 16, LINE = 64 };

static int64_t min64(int64_t a, int64_t b) {
    return a < b ? a : b;
}

static int64_t tiles_of(int64_t out) {
    return (out + SIDE - 1) / SIDE;
}

bool k_winograd_last_pays(const struct k_geometry *g, int64_t oc) {
    if (g->in[0] != 1 || g->kernel[0] != 1 || g->begin[0] != 0 || g->out[0] != 1 || g->channels < CHANNELS_MIN || oc < CHANNELS_MIN) return false;
    for (int a = 1; a < 3; a++)
        if (g->kernel[a] != 3 || g->stride[a] != 1 || g->dilation[a] != 1) return false;
    return 2 * SIDE * tiles_of(g->out[1]) * tiles_of(g->out[2]) <= g->out[1] * g->out[2]; /* else tiles are mostly edge */
}

int64_t k_winograd_last_tiles(const struct k_last_job *job) {
    return job->images * tiles_of(job->g->out[1]) * tiles_of(job->g->out[2]);
}

/* Tiles of a block: V and M are to stay in L2. */
static int64_t block_tiles(const struct k_last_job *job, int64_t width) {
    const int64_t n = BLOCK_FLOATS / (XI * (job->g->channels + width));
    const int64_t most = n < TILES_MIN ? TILES_MIN : n > TILES_MAX ? TILES_MAX : n;
    return min64(most, k_winograd_last_tiles(job));
}

struct room { /* the parts of the scratch memory, and the distances between their matrices */
    int64_t tiles, width;
    int64_t v_xi, m_xi, u_xi;
};

static struct room room_of(const struct k_kernels *k, const struct k_last_job *job) {
    struct room r = {.width = min64(k->gemm->nr, k_last_panel_start(k->gemm, job->oc, k_last_panels(k->gemm, job->oc)))};
    r.tiles = block_tiles(job, r.width);
    r.v_xi = r.tiles * job->g->channels + SKEW;
    r.m_xi = r.tiles * r.width + SKEW;
    r.u_xi = min64(CHUNK, job->g->channels) * r.width + SKEW;
    return r;
}

size_t k_winograd_last_scratch_floats(const struct k_kernels *k, const struct k_last_job *job) {
    const struct room r = room_of(k, job);
    return (size_t)(XI * (r.v_xi + r.m_xi + r.u_xi));
}

struct place { /* of a tile */
    int64_t image, row, column; /* of its first output */
};

static struct place place_of(const struct k_geometry *g, int64_t tile) {
    const int64_t across = tiles_of(g->out[2]), down = tiles_of(g->out[1]);
    return (struct place){tile / across / down, tile / across % down * SIDE, tile % across * SIDE};
}

static void input_tile(const struct k_kernels *k, const struct k_last_job *job, int64_t tile, float *v, int64_t xi) {
    const struct k_geometry *g = job->g;
    const struct place at = place_of(g, tile);
    const float *image = job->x + at.image * g->in[1] * g->in[2] * job->x_pixel, *pixels[XI];
    for (int64_t i = 0; i < 6; i++)
        for (int64_t j = 0; j < 6; j++) {
            const int64_t h = at.row - g->begin[1] + i, w = at.column - g->begin[2] + j;
            pixels[i * 6 + j] = h >= 0 && h < g->in[1] && w >= 0 && w < g->in[2] ? image + (h * g->in[2] + w) * job->x_pixel : job->zeros;
        }
    k->winograd_last->input(g->channels, pixels, v, xi);
}

/* Output channels [j, j + n) of a tile, whose products begin at m. */
static void output_tile(const struct k_kernels *k, const struct k_last_job *job, int64_t tile, int64_t j, int64_t n, const float *m, int64_t xi) {
    const struct k_geometry *g = job->g;
    const struct place at = place_of(g, tile);
    const bool relu = job->act == K_RELU, clip = job->act == K_CLIP;
    const float lo = relu ? 0.0f : clip ? job->act_a : -INFINITY, hi = clip ? job->act_b : INFINITY;
    const int64_t from = ((at.image * g->out[1] + at.row) * g->out[2] + at.column) * job->y_pixel + j, y_row = g->out[2] * job->y_pixel;
    const int64_t rows = min64(SIDE, g->out[1] - at.row), cols = min64(SIDE, g->out[2] - at.column);
    k->winograd_last->output(n, m, xi, job->bias ? job->bias + j : NULL, job->addend ? job->addend + from : NULL, lo, hi, (int)rows, (int)cols, job->y + from,
                             y_row, job->y_pixel);
    if (relu || clip || job->act == K_COPY) return;
    for (int64_t h = 0; h < rows; h++)
        for (int64_t w = 0; w < cols; w++) {
            float *y = job->y + from + h * y_row + w * job->y_pixel;
            k->math->unary[job->act](n, y, y, job->act_a, job->act_b);
        }
}

/* M += V U over channels [c, c + n). `next`: the first of nine planes of weights that are wanted after this. */
static void multiply(const struct k_kernels *k, const struct k_last_job *job, const struct room *r, int64_t tiles, int64_t c, int64_t n, int64_t width,
                     const float *v, const float *u, float *m, const float *next) {
    const int64_t rows = k->gemm->rows_max[width / k->gemm->vw], parts = (tiles + rows - 1) / rows, plane = job->g->channels * width;
    const float *pointers[K_ROWS_MAX];
    struct k_tile t = {.k = n, .taps = 1, .rows = pointers, .c_row = width, .n = (int)width, .first = c == 0};
    const int64_t step = next ? (width * 9 * (int64_t)sizeof(float) / XI + parts - 1) / parts : 0; /* bytes a step of k */
    for (int64_t i = 0; i < XI; i++) {
        const char *quarter = next ? (const char *)(next + i / 4 * plane) + i % 4 * n * width * (int64_t)sizeof(float) / 4 : (const char *)u;
        t.b = u + i * r->u_xi;
        for (int64_t q = 0; q < parts; q++) {
            const int64_t first = tiles * q / parts, count = tiles * (q + 1) / parts - first;
            for (int64_t row = 0; row < count; row++) pointers[row] = v + i * r->v_xi + (first + row) * job->g->channels + c;
            t.c = m + i * r->m_xi + first * width;
            t.ahead = quarter + q * n * step;
            t.ahead_step = step;
            k->gemm->rows((int)count, &t);
        }
    }
}

void k_winograd_last_run(const struct k_kernels *k, const struct k_last_job *job, int64_t t0, int64_t t1, int64_t p0, int64_t p1, float *scratch) {
    const struct k_gemm *gemm = k->gemm;
    const struct room r = room_of(k, job);
    const int64_t channels = job->g->channels, blocks = (t1 - t0 + r.tiles - 1) / r.tiles;
    float *v = scratch, *m = v + XI * r.v_xi, *u = m + XI * r.m_xi;
    const float *made = NULL; /* of which weights U is */
    for (int64_t b = 0; b < blocks; b++) {
        const int64_t first = t0 + (t1 - t0) * b / blocks, n = t0 + (t1 - t0) * (b + 1) / blocks - first;
        for (int64_t i = 0; i < n; i++) input_tile(k, job, first + i, v + i * channels, r.v_xi);
        for (int64_t p = p0; p < p1; p++) {
            const int64_t j = k_last_panel_start(gemm, job->oc, p), width = k_last_panel_start(gemm, job->oc, p + 1) - j, plane = channels * width;
            for (int64_t c = 0; c < channels; c += CHUNK) {
                const int64_t count = min64(CHUNK, channels - c);
                const float *w = job->w + j * channels * 9 + c * width, *next = c + 2 * CHUNK <= channels ? w + CHUNK * width : NULL;
                if (w != made) k->winograd_last->weights(count * width, w, plane, u, r.u_xi);
                made = w;
                multiply(k, job, &r, n, c, count, width, v, u, m, next);
            }
            for (int64_t i = 0; i < n; i++) output_tile(k, job, first + i, j, min64(width, job->oc - j), m + i * width, r.m_xi);
        }
    }
}
