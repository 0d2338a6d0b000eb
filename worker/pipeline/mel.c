/* mel.c: the logarithmic mel spectrogram, see audio.h. Tables (window, twiddles, bands) are made
 * once; a frame is a complex FFT of the real samples by powers of two, in double precision, so the
 * result depends on the samples alone. */
#include "worker/pipeline/audio.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

struct w_mel {
    struct w_mel_options o;
    double *window, *cosines, *sines; /* cosines, sines: of fft_length / 2 angles */
    float *weights;                   /* [bands, fft_length / 2 + 1] */
    int32_t *first, *last;            /* of each band: the bins that it has weights of */
};

static double mel_of(double hertz) {
    return 1127 * log1p(hertz / 700);
}

/* Triangles over the bins, the lowest bin left out (Keras does so). */
static void make_bands(struct w_mel *m) {
    int32_t n = m->o.bands, bins = m->o.fft_length / 2 + 1;
    double low = mel_of(m->o.min_freq), high = mel_of(m->o.max_freq), step = (high - low) / (n + 1);
    for (int32_t b = 0; b < n; b++) {
        m->first[b] = bins;
        for (int32_t k = 1; k < bins; k++) {
            double at = mel_of((double)k * m->o.rate / m->o.fft_length),
                   up = (at - (low + b * step)) / step, down = (low + (b + 2) * step - at) / step,
                   w = up < down ? up : down;
            if (w <= 0) continue;
            m->weights[(int64_t)b * bins + k] = (float)w;
            if (k < m->first[b]) m->first[b] = k;
            m->last[b] = k;
        }
    }
}

struct w_mel *w__mel_create(const struct w_mel_options *o, struct w_error *err) {
    struct w_mel *m = calloc(1, sizeof *m);
    if (!m) return w_fail(err, W_NO_MEMORY, "out of memory"), NULL;
    m->o = *o;
    if (m->o.max_freq == 0) m->o.max_freq = (double)o->rate / 2;
    int32_t n = o->fft_length;
    if (n < 2 || (n & (n - 1)) || o->length > n || o->stride < 1 || o->length < 1 || o->bands < 1 ||
        m->o.min_freq < 0 || m->o.min_freq >= m->o.max_freq ||
        m->o.max_freq > (double)o->rate / 2) {
        w_fail(err, W_BAD_MODEL,
               "fft_length must be a power of two, not below sequence_length (%d and %d are "
               "given), and "
               "min_freq below max_freq, that up to half of sampling_rate",
               n, o->length);
        free(m);
        return NULL;
    }
    m->window = malloc((size_t)o->length * sizeof *m->window);
    m->cosines = malloc((size_t)n * sizeof *m->cosines);
    m->sines = m->cosines ? m->cosines + n / 2 : NULL;
    m->weights = calloc((size_t)o->bands * (size_t)(n / 2 + 1), sizeof *m->weights);
    m->first = calloc(2 * (size_t)o->bands, sizeof *m->first);
    m->last = m->first ? m->first + o->bands : NULL;
    if (!m->window || !m->cosines || !m->weights || !m->first) {
        w_fail(err, W_NO_MEMORY, "out of memory");
        w__mel_destroy(m);
        return NULL;
    }
    for (int32_t i = 0; i < o->length; i++)
        m->window[i] = 0.5 - 0.5 * cos(2 * M_PI * i / o->length);
    for (int32_t i = 0; i < n / 2; i++) {
        m->cosines[i] = cos(2 * M_PI * i / n);
        m->sines[i] = -sin(2 * M_PI * i / n);
    }
    make_bands(m);
    return m;
}

void w__mel_destroy(struct w_mel *m) {
    if (!m) return;
    free(m->window);
    free(m->cosines);
    free(m->weights);
    free(m->first);
    free(m);
}

int64_t w__mel_frames(const struct w_mel *m, int64_t n) {
    if (m->o.frames) return m->o.frames;
    return n <= m->o.length ? 1 : 1 + (n - m->o.length) / m->o.stride;
}

/* In place; n a power of two. */
static void fft(const struct w_mel *m, double *re, double *im, int32_t n) {
    for (int32_t i = 1, j = 0; i < n; i++) {
        int32_t bit = n >> 1;
        for (; j & bit; bit >>= 1) j ^= bit;
        j |= bit;
        if (i >= j) continue;
        double t = re[i];
        re[i] = re[j];
        re[j] = t;
    }
    memset(im, 0, (size_t)n * sizeof *im);
    for (int32_t len = 2; len <= n; len <<= 1)
        for (int32_t i = 0; i < n; i += len)
            for (int32_t k = 0; k < len / 2; k++) {
                double c = m->cosines[k * (n / len)], s = m->sines[k * (n / len)];
                double *ar = re + i + k, *ai = im + i + k, *br = ar + len / 2, *bi = ai + len / 2;
                double xr = *br * c - *bi * s, xi = *br * s + *bi * c;
                *br = *ar - xr;
                *bi = *ai - xi;
                *ar += xr;
                *ai += xi;
            }
}

bool w__mel_apply(const struct w_mel *m, struct w_arena *a, const float *samples, int64_t n,
                  float *dst, int64_t frames) {
    int32_t size = m->o.fft_length, bins = size / 2 + 1;
    double *re = w_arena_array(a, 2 * (size_t)size, sizeof *re), *im = re ? re + size : NULL;
    if (!re) return false;
    for (int64_t f = 0; f < frames; f++) {
        int64_t from = f * m->o.stride;
        for (int32_t i = 0; i < size; i++)
            re[i] = i < m->o.length && from + i < n ? (double)samples[from + i] * m->window[i] : 0;
        fft(m, re, im, size);
        for (int32_t k = 0; k < bins; k++) re[k] = re[k] * re[k] + im[k] * im[k];
        for (int32_t b = 0; b < m->o.bands; b++) {
            double sum = 0;
            for (int32_t k = m->first[b]; k <= m->last[b]; k++)
                sum += (double)m->weights[(int64_t)b * bins + k] * re[k];
            dst[f * m->o.bands + b] = (float)log(sum > 1e-10 ? sum : 1e-10);
        }
    }
    return true;
}
