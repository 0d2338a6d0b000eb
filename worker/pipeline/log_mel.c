/* log_mel: audio → the logarithm of its mel spectrogram, f32[frames, bands]. */
#include "worker/pipeline/audio.h"
#include "worker/pipeline/step.h"

struct log_mel {
    int32_t sampling_rate, fft_length, sequence_length, sequence_stride, num_mel_bins, frames;
    double min_freq, max_freq;
    struct w_mel *mel;
};

/* clang-format off */
static const struct w_param params[] = {
    {.name = "sampling_rate", .kind = W_PARAM_INT, .offset = offsetof(struct log_mel, sampling_rate), .min = 1, .max = W_RATE_MAX, .deflt = 16000},
    {.name = "fft_length", .kind = W_PARAM_INT, .offset = offsetof(struct log_mel, fft_length), .min = 2, .max = 65536, .deflt = 512, .help = "a power of two"},
    {.name = "sequence_length", .kind = W_PARAM_INT, .offset = offsetof(struct log_mel, sequence_length), .min = 0, .max = 65536, .help = "samples of a frame; 0: fft_length"},
    {.name = "sequence_stride", .kind = W_PARAM_INT, .offset = offsetof(struct log_mel, sequence_stride), .min = 1, .max = 65536, .deflt = 160, .help = "samples from a frame to the next"},
    {.name = "num_mel_bins", .kind = W_PARAM_INT, .offset = offsetof(struct log_mel, num_mel_bins), .min = 1, .max = 1024, .deflt = 40},
    {.name = "min_freq", .kind = W_PARAM_DOUBLE, .offset = offsetof(struct log_mel, min_freq), .min = 0, .max = W_RATE_MAX, .deflt = 20},
    {.name = "max_freq", .kind = W_PARAM_DOUBLE, .offset = offsetof(struct log_mel, max_freq), .min = 0, .max = W_RATE_MAX, .help = "0: half the rate"},
    {.name = "frames", .kind = W_PARAM_INT, .offset = offsetof(struct log_mel, frames), .min = 0, .max = 1 << 24, .help = "cut, or silence behind; 0: what there are"},
    {0}};
/* clang-format on */

static bool parse(struct w_step *s, json_t *json, struct w_error *err) {
    struct log_mel *t = s->state;
    (void)json;
    const struct w_mel_options o = {t->sampling_rate,
                                    t->fft_length,
                                    t->sequence_length ? t->sequence_length : t->fft_length,
                                    t->sequence_stride,
                                    t->num_mel_bins,
                                    t->frames,
                                    t->min_freq,
                                    t->max_freq};
    t->mel = w__mel_create(&o, err);
    return t->mel != NULL;
}

static bool check(struct w_step *s, const struct w_spec *in, struct w_spec *out,
                  struct w_error *err) {
    const struct log_mel *t = s->state;
    if (in->type == W_AUDIO && in->rate && in->rate != t->sampling_rate)
        return w_fail(err, W_BAD_MODEL, "\"sampling_rate\" is %d, the audio has %d",
                      t->sampling_rate, in->rate);
    *out = (struct w_spec){.type = W_TENSOR, .dtype = OP_F32, .rank = 2};
    out->dims[0] = t->frames ? t->frames : -1;
    out->dims[1] = t->num_mel_bins;
    return true;
}

static bool apply(const struct w_step *s, struct w_row *row, const struct w_value *in,
                  struct w_value *out, struct w_error *err) {
    const struct log_mel *t = s->state;
    if (in->audio.rate != t->sampling_rate)
        return w_fail(err, W_BAD_INPUT, "the audio has %d samples a second, %d are expected",
                      in->audio.rate, t->sampling_rate);
    int64_t frames = w__mel_frames(t->mel, in->audio.n);
    float *dst = w_arena_array(&row->arena, (size_t)(frames * t->num_mel_bins), sizeof *dst);
    if (!dst || !w__mel_apply(t->mel, &row->arena, in->audio.samples, in->audio.n, dst, frames))
        return w_fail(err, W_TOO_LARGE, "%lld frames are more than a row's memory",
                      (long long)frames);
    out->flat = t->frames != 0; /* [frames, bands] may be [frames, bands, 1] to the model */
    out->tensor = (struct op_tensor){
        .dtype = OP_F32, .rank = 2, .dims = {frames, t->num_mel_bins}, .data = dst};
    return true;
}

static void free_state(void *state) {
    w__mel_destroy(((struct log_mel *)state)->mel);
}

static const struct w_step_desc desc = {.name = "log_mel",
                                        .summary = "audio becomes its mel spectrogram",
                                        .params = params,
                                        .state_bytes = sizeof(struct log_mel),
                                        .takes = W_TAKES(W_AUDIO),
                                        .gives = W_TENSOR,
                                        .parse = parse,
                                        .check = check,
                                        .apply = apply,
                                        .free = free_state};
W_STEP(desc);
