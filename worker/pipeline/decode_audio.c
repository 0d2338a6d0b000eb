/* decode_audio: bytes of a WAV file → audio of one channel at one rate. */
#include "worker/pipeline/audio.h"
#include "worker/pipeline/step.h"

struct decode {
    int32_t rate;
    double seconds_max;
};

/* clang-format off */
static const struct w_param params[] = {
    {.name = "rate", .kind = W_PARAM_INT, .offset = offsetof(struct decode, rate), .min = 0, .max = W_RATE_MAX, .deflt = 16000, .help = "samples a second; 0: the file's"},
    {.name = "max_seconds", .kind = W_PARAM_DOUBLE, .offset = offsetof(struct decode, seconds_max), .min = 0.001, .max = 1e6, .deflt = 3600},
    {0}};
/* clang-format on */

static bool check(struct w_step *s, const struct w_spec *in, struct w_spec *out,
                  struct w_error *err) {
    const struct decode *d = s->state;
    (void)in;
    (void)err;
    *out = (struct w_spec){.type = W_AUDIO, .rate = d->rate, .rank = -1};
    return true;
}

static bool apply(const struct w_step *s, struct w_row *row, const struct w_value *in,
                  struct w_value *out, struct w_error *err) {
    const struct decode *d = s->state;
    struct w_audio as_is;
    return w__wav_decode(in->span, d->seconds_max, &row->arena, &as_is, err) &&
           w__audio_resample(&row->arena, &as_is, d->rate ? d->rate : as_is.rate, &out->audio, err);
}

static const struct w_step_desc desc = {.name = "decode_audio",
                                        .summary = "a WAV file becomes audio",
                                        .params = params,
                                        .state_bytes = sizeof(struct decode),
                                        .takes = W_TAKES(W_BYTES),
                                        .gives = W_AUDIO,
                                        .check = check,
                                        .apply = apply};
W_STEP(desc);
