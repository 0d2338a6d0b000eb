/* audio.h: sound inside the pipeline: WAV, resampling, mel spectrograms. Internal to the folder. */
#ifndef QUERN_WORKER_PIPELINE_AUDIO_H
#define QUERN_WORKER_PIPELINE_AUDIO_H

#include "worker/pipeline/value.h"

#define W_RATE_MAX 768000

/* RIFF/WAVE: PCM of 8, 16, 24 and 32 bits, float of 32 and 64, also WAVE_FORMAT_EXTENSIBLE; the
 * channels are averaged. A data chunk that the file's end cuts off is read as far as it is there.
 */
bool w__wav_decode(struct w_span bytes, double seconds_max, struct w_arena *a, struct w_audio *dst,
                   struct w_error *err);
/* To another rate: a windowed sinc, cut off at the lower of the two half rates. */
bool w__audio_resample(struct w_arena *a, const struct w_audio *src, int32_t rate,
                       struct w_audio *dst, struct w_error *err);

/* The logarithm of the energy in bands: frame i, band b is ln max(Σ_k w[b,k] |X_i[k]|², 1e-10), X_i
 * the Fourier transform of samples [i · stride, i · stride + length) under a periodic Hann window,
 * w triangles that are even on the mel scale 1127 ln(1 + f/700) (Keras's MelSpectrogram). */
struct w_mel_options {
    int32_t rate, fft_length, length, stride, bands, frames; /* frames 0: what there are */
    double min_freq, max_freq;                               /* max 0: half the rate */
};
struct w_mel;
struct w_mel *w__mel_create(const struct w_mel_options *o, struct w_error *err); /* bad_model */
void w__mel_destroy(struct w_mel *m);                                            /* accepts NULL */
int64_t w__mel_frames(const struct w_mel *m, int64_t n_samples);
/* dst[frames · bands]; frames beyond the samples are silence. False: no memory. */
bool w__mel_apply(const struct w_mel *m, struct w_arena *a, const float *samples, int64_t n,
                  float *dst, int64_t frames);

#endif
