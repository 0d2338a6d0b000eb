/* wav.c: WAV files as samples of one channel, and their resampling. See audio.h. */
#include "worker/pipeline/audio.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* --- reading -----------------------------------------------------------------------------------
 */

static uint32_t little(const uint8_t *p, int n) {
    uint32_t v = 0;
    for (int i = 0; i < n; i++) v |= (uint32_t)p[i] << (8 * i);
    return v;
}

struct wav {
    uint32_t format, channels, rate, bits, block; /* format: 1 PCM, 3 float */
    const uint8_t *data;
    size_t bytes;
};

static bool read_format(const uint8_t *p, size_t n, struct wav *w, struct w_error *err) {
    if (n < 16) return w_fail(err, W_BAD_INPUT, "the WAV file's format chunk has %zu bytes", n);
    w->format = little(p, 2);
    w->channels = little(p + 2, 2);
    w->rate = little(p + 4, 4);
    w->block = little(p + 12, 2);
    w->bits = little(p + 14, 2);
    if (w->format == 0xfffe && n >= 40) w->format = little(p + 24, 2); /* extensible */
    bool known =
        (w->format == 1 && (w->bits == 8 || w->bits == 16 || w->bits == 24 || w->bits == 32)) ||
        (w->format == 3 && (w->bits == 32 || w->bits == 64));
    if (!known)
        return w_fail(
            err, W_UNSUPPORTED,
            "the WAV file has format %u of %u bits; PCM of 8, 16, 24, 32 and float of 32, "
            "64 are read",
            w->format, w->bits);
    if (w->channels < 1 || w->block != w->channels * (w->bits / 8) || w->rate < 1 ||
        w->rate > W_RATE_MAX)
        return w_fail(err, W_BAD_INPUT,
                      "the WAV file says %u channels, %u samples a second, %u bytes a block: that "
                      "does not fit together",
                      w->channels, w->rate, w->block);
    return true;
}

static bool read_chunks(struct w_span b, struct wav *w, struct w_error *err) {
    const uint8_t *p = (const uint8_t *)b.ptr, *end = p + b.len;
    if (b.len < 12 || memcmp(p, "RIFF", 4) || memcmp(p + 8, "WAVE", 4))
        return w_fail(err, W_BAD_INPUT, "the %zu bytes are no WAV file", b.len);
    for (p += 12; end - p >= 8;) {
        size_t n = little(p + 4, 4), left = (size_t)(end - p) - 8;
        if (!memcmp(p, "fmt ", 4) && n <= left && !read_format(p + 8, n, w, err)) return false;
        if (!memcmp(p, "data", 4)) {
            w->data = p + 8;
            w->bytes = n < left ? n : left;
            break;
        }
        if (n + (n & 1) > left) break;
        p += 8 + n + (n & 1);
    }
    return (w->channels && w->data) || w_fail(err, W_BAD_INPUT, "the WAV file has no %s chunk",
                                              w->channels ? "data" : "format");
}

static double sample(const struct wav *w, const uint8_t *p) {
    union {
        uint32_t u;
        float f;
    } f32;
    union {
        uint64_t u;
        double f;
    } f64;
    switch (w->format == 3 ? w->bits + 1 : w->bits) {
    case 8:
        return ((double)*p - 128) / 128;
    case 16:
        return (double)(int16_t)little(p, 2) / 32768;
    case 24:
        return (double)((int32_t)(little(p, 3) << 8) >> 8) / 8388608;
    case 32:
        return (double)(int32_t)little(p, 4) / 2147483648.0;
    case 33:
        f32.u = little(p, 4);
        return (double)f32.f;
    default:
        f64.u = little(p, 4) | (uint64_t)little(p + 4, 4) << 32;
        return f64.f;
    }
}

bool w__wav_decode(struct w_span bytes, double seconds_max, struct w_arena *a, struct w_audio *dst,
                   struct w_error *err) {
    struct wav w = {0};
    if (!read_chunks(bytes, &w, err)) return false;
    int64_t n = (int64_t)(w.bytes / w.block);
    if (n == 0) return w_fail(err, W_BAD_INPUT, "the WAV file has no samples");
    if ((double)n > seconds_max * (double)w.rate)
        return w_fail(err, W_TOO_LARGE, "the WAV file lasts %.1f s, at most %g are read",
                      (double)n / (double)w.rate, seconds_max);
    *dst = (struct w_audio){w_arena_array(a, (size_t)n, sizeof(float)), n, (int32_t)w.rate};
    if (!dst->samples)
        return w_fail(err, W_TOO_LARGE, "%lld samples are more than a row's memory", (long long)n);
    for (int64_t i = 0; i < n; i++) {
        double sum = 0;
        for (uint32_t c = 0; c < w.channels; c++)
            sum += sample(&w, w.data + (size_t)i * w.block + c * (w.bits / 8));
        dst->samples[i] = (float)(sum / w.channels);
        if (!isfinite(dst->samples[i]))
            return w_fail(err, W_BAD_INPUT, "sample %lld of the WAV file is no number",
                          (long long)i);
    }
    return true;
}

/* --- resampling --------------------------------------------------------------------------------
 */

enum { CROSSINGS = 16, TABLE_MAX = 1 << 24 };

static int64_t gcd(int64_t a, int64_t b) {
    while (b) {
        int64_t c = a % b;
        a = b;
        b = c;
    }
    return a;
}

/* Of the sinc with its first zero at 1, under a Hann window that ends at CROSSINGS. */
static double kernel(double x) {
    if (fabs(x) >= CROSSINGS) return 0;
    double w = 0.5 + 0.5 * cos(M_PI * x / CROSSINGS);
    return x == 0 ? 1 : w * sin(M_PI * x) / (M_PI * x);
}

/* Output j lies at input j · down / up; its phase, j · down mod up, has its own taps. */
bool w__audio_resample(struct w_arena *a, const struct w_audio *src, int32_t rate,
                       struct w_audio *dst, struct w_error *err) {
    *dst = *src;
    if (rate == src->rate) return true;
    int64_t g = gcd(rate, src->rate), up = rate / g, down = src->rate / g;
    double cut = up < down ? (double)up / (double)down : 1;
    int64_t half = (int64_t)ceil(CROSSINGS / cut), taps = 2 * half + 1,
            n = (src->n * up + down - 1) / down;
    if (up * taps > TABLE_MAX)
        return w_fail(err, W_UNSUPPORTED,
                      "%d samples a second cannot be made of %d: the ratio is "
                      "too odd",
                      rate, src->rate);
    float *table = w_arena_array(a, (size_t)(up * taps), sizeof *table),
          *out = w_arena_array(a, (size_t)n, sizeof *out);
    if (!table || !out)
        return w_fail(err, W_TOO_LARGE, "%lld samples are more than a row's memory", (long long)n);
    for (int64_t p = 0; p < up; p++)
        for (int64_t k = 0; k < taps; k++)
            table[p * taps + k] =
                (float)(cut * kernel(cut * ((double)(k - half) - (double)p / (double)up)));
    for (int64_t j = 0; j < n; j++) {
        int64_t at = j * down / up, phase = j * down % up;
        const float *h = table + phase * taps;
        double sum = 0;
        for (int64_t k = 0; k < taps; k++) {
            int64_t i = at + k - half;
            if (i >= 0 && i < src->n) sum += (double)h[k] * (double)src->samples[i];
        }
        out[j] = (float)sum;
    }
    *dst = (struct w_audio){out, n, rate};
    return true;
}
