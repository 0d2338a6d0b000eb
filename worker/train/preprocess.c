/* preprocess.c: what happens to x before the model sees it, input by input. Numbers become a·x + b,
 * for all elements or by channel (the last dimension), so a list of such steps is one pair: batches
 * apply it while they convert, the pipeline of the model that comes out applies it as `affine`, and
 * where it differs by channel it goes into the graph (prepare.c decides). Normalization without
 * numbers takes mean and variance from the training rows, as Keras's adapt does. IntegerLookup
 * numbers the ids of the training rows from 1 (0: unknown) in a table that goes into the graph. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "worker/train/train.h"

#define LOOKUP_IDS_MAX (1 << 24)

struct step {
    char *input;
    double scale, offset;
    json_t *mean, *variance, *axis, *standardize;
    int32_t height, width, max_tokens, length, split;
    int32_t sampling_rate, fft_length, sequence_length, sequence_stride, num_mel_bins;
    double min_freq, max_freq;
};

/* What a step is applied to. */
struct place {
    const char *where;
    const struct w_train_input *in;
    const struct w_set *train;
    const struct w_array *x;
    struct w_front *front;
    struct w_error *err;
};

/* clang-format off */
#define INPUT {.name = "input", .kind = W_PARAM_TEXT, .offset = offsetof(struct step, input)}
static const struct w_param plain_params[] = {INPUT, {0}};
static const struct w_param rescaling_params[] = {INPUT,
    {.name = "scale", .kind = W_PARAM_DOUBLE, .offset = offsetof(struct step, scale), .required = true, .help = "a number"},
    {.name = "offset", .kind = W_PARAM_DOUBLE, .offset = offsetof(struct step, offset)},
    {0}};
static const struct w_param normalization_params[] = {INPUT,
    {.name = "mean", .kind = W_PARAM_JSON, .offset = offsetof(struct step, mean)},
    {.name = "variance", .kind = W_PARAM_JSON, .offset = offsetof(struct step, variance)},
    {.name = "axis", .kind = W_PARAM_JSON, .offset = offsetof(struct step, axis)},
    {0}};
static const struct w_param resizing_params[] = {INPUT,
    {.name = "height", .kind = W_PARAM_INT, .offset = offsetof(struct step, height), .min = 1, .max = 65535, .required = true, .help = "pixels"},
    {.name = "width", .kind = W_PARAM_INT, .offset = offsetof(struct step, width), .min = 1, .max = 65535, .required = true, .help = "pixels"},
    {0}};
static const struct w_param text_params[] = {INPUT,
    {.name = "max_tokens", .kind = W_PARAM_INT, .offset = offsetof(struct step, max_tokens), .min = 0, .max = W_VECTORIZER_TOKENS_MAX},
    {.name = "standardize", .kind = W_PARAM_JSON, .offset = offsetof(struct step, standardize)},
    {.name = "split", .kind = W_PARAM_CHOICE, .offset = offsetof(struct step, split), .choices = W_SPLIT_CHOICES},
    {.name = "output_sequence_length", .kind = W_PARAM_INT, .offset = offsetof(struct step, length), .min = 0, .max = 1 << 24},
    {0}};
#define MEL(field) offsetof(struct step, field)
static const struct w_param mel_params[] = {INPUT,
    {.name = "sampling_rate", .kind = W_PARAM_INT, .offset = MEL(sampling_rate), .min = 1, .max = 768000, .deflt = 16000},
    {.name = "fft_length", .kind = W_PARAM_INT, .offset = MEL(fft_length), .min = 2, .max = 65536, .deflt = 512},
    {.name = "sequence_length", .kind = W_PARAM_INT, .offset = MEL(sequence_length), .min = 0, .max = 65536},
    {.name = "sequence_stride", .kind = W_PARAM_INT, .offset = MEL(sequence_stride), .min = 1, .max = 65536, .deflt = 160},
    {.name = "num_mel_bins", .kind = W_PARAM_INT, .offset = MEL(num_mel_bins), .min = 0, .max = 1024},
    {.name = "min_freq", .kind = W_PARAM_DOUBLE, .offset = MEL(min_freq), .min = 0, .max = 768000, .deflt = 20},
    {.name = "max_freq", .kind = W_PARAM_DOUBLE, .offset = MEL(max_freq), .min = 0, .max = 768000},
    {0}};
/* clang-format on */

/* One channel's numbers stand for all until a step tells channels apart. */
static bool widen(struct w_affine *a, int64_t n, struct w_error *err) {
    if (a->n == n) return true;
    float *scale = malloc((size_t)n * sizeof *scale), *offset = malloc((size_t)n * sizeof *offset);
    if (!scale || !offset) {
        free(scale);
        free(offset);
        return w_fail(err, W_NO_MEMORY, "out of memory");
    }
    for (int64_t i = 0; i < n; i++) {
        scale[i] = a->n ? a->scale[0] : 1;
        offset[i] = a->n ? a->offset[0] : 0;
    }
    free(a->scale);
    free(a->offset);
    *a = (struct w_affine){n, scale, offset};
    return true;
}

/* What follows is v → v·s + o. */
static void then(struct w_affine *a, int64_t i, double s, double o) {
    a->scale[i] = (float)((double)a->scale[i] * s);
    a->offset[i] = (float)((double)a->offset[i] * s + o);
}

static bool given(json_t *json, int64_t i, int64_t n, double *dst) {
    if (json_is_number(json)) return *dst = json_number_value(json), true;
    json_t *item = json_array_get(json, (size_t)i);
    *dst = json_number_value(item);
    return json_is_number(item) && (int64_t)json_array_size(json) == n;
}

/* Means and variances of what the steps before make of the training rows, channel by channel: two
 * passes, so that large means do not eat the digits of small variances. */
static bool adapt(const struct place *p, int64_t n, double *mean, double *variance) {
    const struct w_array *x = p->x;
    const struct w_affine *a = &p->front->affine;
    void *scratch = malloc((size_t)x->elements * op_type_size(x->dtype) + 1);
    double count = (double)p->train->n * (double)x->elements / (double)n;
    bool ok = scratch != NULL || w_fail(p->err, W_NO_MEMORY, "out of memory");
    memset(mean, 0, (size_t)n * sizeof *mean);
    memset(variance, 0, (size_t)n * sizeof *variance);
    for (int pass = 0; pass < 2 && ok; pass++) {
        for (int64_t i = 0; i < p->train->n && ok; i++) {
            const void *row = w__array_row(x, p->train->rows[i], scratch, p->err);
            ok = row != NULL;
            for (int64_t k = 0; ok && k < x->elements; k++) {
                int64_t c = k % n;
                double v = w__array_number(x, row, k) * (double)a->scale[c] + (double)a->offset[c];
                if (pass == 0)
                    mean[c] += v;
                else
                    variance[c] += (v - mean[c]) * (v - mean[c]);
            }
        }
        for (int64_t c = 0; c < n; c++) (pass ? variance : mean)[c] /= count > 0 ? count : 1;
    }
    free(scratch);
    return ok;
}

static bool given_or_adapted(const struct place *p, const struct step *st, int64_t n, double *mean,
                             double *variance) {
    if (!st->mean) return adapt(p, n, mean, variance);
    for (int64_t i = 0; i < n; i++)
        if (!given(st->mean, i, n, &mean[i]) || !given(st->variance, i, n, &variance[i]) ||
            variance[i] < 0)
            return w_fail(p->err, W_BAD_SPEC, "%s: mean and variance must be numbers, or lists of %lld",
                          p->where, (long long)n);
    return true;
}

static bool normalization(const struct place *p, const struct step *st) {
    const struct w_array *x = p->x;
    struct w_affine *a = &p->front->affine;
    bool whole = json_is_null(st->axis) || x->rank == 0; /* "axis": null: one mean for all */
    int64_t n = whole ? 1 : x->dims[x->rank - 1];
    if (st->axis && !whole && json_integer_value(st->axis) != -1)
        return w_fail(p->err, W_BAD_SPEC, "%s: \"axis\" must be -1 or null", p->where);
    if (!st->mean != !st->variance)
        return w_fail(p->err, W_BAD_SPEC, "%s: \"mean\" and \"variance\" come together", p->where);
    if (!widen(a, n > a->n ? n : a->n, p->err)) return false;
    double *mean = calloc(2 * (size_t)a->n, sizeof *mean), *variance = mean + a->n;
    bool ok = mean ? given_or_adapted(p, st, a->n, mean, variance)
                   : w_fail(p->err, W_NO_MEMORY, "out of memory");
    for (int64_t i = 0; ok && i < a->n; i++) {
        double d = sqrt(variance[i]) > 1e-7 ? sqrt(variance[i]) : 1e-7;
        then(a, i, 1 / d, -mean[i] / d);
    }
    free(mean);
    return ok;
}

static bool rescaling(const struct place *p, const struct step *st) {
    struct w_affine *a = &p->front->affine;
    if (!a->n && !widen(a, 1, p->err)) return false;
    for (int64_t i = 0; i < a->n; i++) then(a, i, st->scale, st->offset);
    return true;
}

/* Loading has done it: to the model's shape. */
static bool resizing(const struct place *p, const struct step *st) {
    const struct w_array *x = p->x;
    return (x->rank == 3 && x->dims[0] == st->height && x->dims[1] == st->width) ||
           w_fail(p->err, W_BAD_SPEC,
                  "%s: pictures are resized to model.input_shape, which is not %d×%d", p->where,
                  st->height, st->width);
}

/* Targets become what the loss wants by themselves. */
static bool nothing(const struct place *p, const struct step *st) {
    (void)p, (void)st;
    return true;
}

static bool integer_lookup(const struct place *p, const struct step *st) {
    const struct w_array *x = p->x;
    const int64_t *ids = x->data;
    int64_t top = -1, next = 1;
    (void)st;
    if (p->in->dtype != OP_I64)
        return w_fail(p->err, W_BAD_SPEC, "%s: the input \"%s\" must be int64", p->where, p->in->name);
    for (int64_t i = 0; i < p->train->n * x->elements; i++) {
        int64_t row = p->train->rows[i / x->elements],
                id = ids[row * x->elements + i % x->elements];
        if (id < 0 || id >= LOOKUP_IDS_MAX)
            return w_fail(p->err, W_BAD_INPUT,
                          "%s: row %lld of \"%s\" has the id %lld, 0 to %d are looked up", p->where,
                          (long long)row, p->in->name, (long long)id, LOOKUP_IDS_MAX - 1);
        if (id > top) top = id;
    }
    struct w_front *f = p->front;
    f->n_table = top + 3; /* −1 and top + 1 stand for what is unknown */
    f->table = calloc((size_t)f->n_table, sizeof *f->table);
    if (!f->table) return w_fail(p->err, W_NO_MEMORY, "out of memory");
    for (int64_t i = 0; i < p->train->n * x->elements; i++)
        f->table[ids[p->train->rows[i / x->elements] * x->elements + i % x->elements] + 1] = 1;
    for (int64_t i = 0; i < f->n_table; i++)
        if (f->table[i]) f->table[i] = next++;
    f->n_ids = next;
    return true;
}

/* The vocabulary is made of the training rows, where loading has not made it of the whole text. */
static bool text_vectorization(const struct place *p, const struct step *st) {
    struct w_front *f = p->front;
    (void)st;
    for (int64_t i = 0; i < p->train->n && !w_vectorizer_adapted(f->words); i++) {
        struct w_span text = w__array_text(p->x, p->train->rows[i]);
        if (!w_vectorizer_count(f->words, text.ptr, text.len, p->err)) return false;
    }
    return (w_vectorizer_adapted(f->words) || w_vectorizer_adapt(f->words, f->max_tokens, p->err)) ||
           w_fail_in(p->err, "%s: ", p->where);
}

/* Reading has done it. */
static bool spectrogram(const struct place *p, const struct step *st) {
    (void)p, (void)st;
    return true;
}

static const struct step_desc {
    const char *name;
    const struct w_param *params;
    bool (*apply)(const struct place *p, const struct step *st);
    bool numbers; /* for floats: an Embedding's numbers are left as they are */
} descs[] = {
    {"Rescaling", rescaling_params, rescaling, true},
    {"Normalization", normalization_params, normalization, true},
    {"Resizing", resizing_params, resizing, false},
    {"IntegerLookup", plain_params, integer_lookup, false},
    {"TextVectorization", text_params, text_vectorization, false},
    {"MelSpectrogram", mel_params, spectrogram, false},
    {"OneHot", plain_params, nothing, false},
    {"CategoryEncoding", plain_params, nothing, false},
};

static const char *next_step(void *user, size_t i) {
    (void)user;
    return i < sizeof descs / sizeof *descs ? descs[i].name : NULL;
}

/* Reads a step and finds its input; *d and *st are filled, *at is the input's number. */
static bool read_step(json_t *json, const struct w_train_model *m, const char *where,
                      const struct step_desc **d, struct step *st, int *at, struct w_error *err) {
    const char *type;
    *d = NULL;
    *st = (struct step){.scale = 1};
    *at = 0;
    if (!w__train_typed(json, &type, where, err)) return false;
    for (size_t i = 0; i < sizeof descs / sizeof *descs; i++)
        if (strcmp(descs[i].name, type) == 0) *d = &descs[i];
    if (!*d) return w__train_unknown(where, "preprocessing", type, next_step, NULL, err);
    json_t *none = json_object(), *params = json_is_object(json) ? json : none;
    bool ok = w__train_params((*d)->params, params, st, where, err);
    json_decref(none);
    while (ok && st->input && *at < m->n_inputs && strcmp(m->inputs[*at].name, st->input)) ++*at;
    if (ok && *at == m->n_inputs)
        ok = w_fail(err, W_BAD_SPEC, "%s: the model has no input \"%.60s\"", where, st->input);
    if (ok && !st->input && m->n_inputs > 1 && (*d)->apply != nothing)
        ok = w_fail(err, W_BAD_SPEC, "%s: \"input\" must say which of the %d inputs it is for", where,
                    m->n_inputs);
    if (!ok) w__params_free((*d)->params, st);
    return ok;
}

static bool one_step(json_t *json, const struct w_train_model *m, struct place *p,
                     struct w_front *fronts) {
    const struct step_desc *d;
    struct step st;
    int at;
    if (!read_step(json, m, p->where, &d, &st, &at, p->err)) return false;
    p->in = &m->inputs[at];
    p->x = &p->train->x[at];
    p->front = &fronts[at];
    bool ok = !(d->numbers && p->in->dtype == OP_I64) ||
              w_fail(p->err, W_BAD_SPEC, "%s: \"%s\" takes whole numbers as they are", p->where,
                     p->in->name);
    ok = ok && d->apply(p, &st);
    w__params_free(d->params, &st);
    return ok;
}

static bool make_vectorizer(const struct step *st, const struct w_train_input *in,
                            struct w_front *f, const char *where, struct w_error *err) {
    static const char *const words[] = {"lower_and_strip_punctuation", "lower", "strip_punctuation",
                                        NULL};
    const char *word = json_string_value(st->standardize);
    int standard = st->standardize ? 0 : W_STANDARD_LOWER_STRIP;
    if (json_is_null(st->standardize)) standard = W_STANDARD_NONE;
    while (word && words[standard] && strcmp(words[standard], word)) standard++;
    if (st->standardize && !json_is_null(st->standardize) && (!word || !words[standard]))
        return w_fail(err, W_BAD_SPEC,
                      "%s: \"standardize\" must be null, \"lower\", \"strip_punctuation\" or "
                      "\"lower_and_strip_punctuation\"",
                      where);
    if (in->dtype != OP_I64 || in->rank != 1 || f->words)
        return w_fail(err, W_BAD_SPEC,
                      "%s: it gives int64[length], once: the input \"%s\" must be that (an Embedding "
                      "comes first)",
                      where, in->name);
    if (st->length && st->length != in->elements)
        return w_fail(err, W_BAD_SPEC,
                      "%s: \"output_sequence_length\" is %d, the model's input has %lld", where,
                      st->length, (long long)in->elements);
    if (st->max_tokens && st->max_tokens < 3)
        return w_fail(err, W_BAD_SPEC,
                      "%s: \"max_tokens\" is %d; 0 pads and 1 is unknown, 3 is the least", where,
                      st->max_tokens);
    f->split = st->split;
    f->standardize = standard;
    f->max_tokens = st->max_tokens ? st->max_tokens : 0;
    f->words = w_vectorizer_create((enum w_split)st->split, (enum w_standardize)standard, err);
    return f->words != NULL;
}

/* The steps of the pipeline that make an input of a WAV file; the shape of the input says how many
 * frames and bands. */
static bool make_sound(const struct step *st, const struct w_train_input *in, struct w_front *f,
                       const char *where, struct w_error *err) {
    bool flat = in->rank == 3 && in->dims[2] == 1;
    if (in->dtype != OP_F32 || (in->rank != 2 && !flat) || f->sound)
        return w_fail(err, W_BAD_SPEC,
                      "%s: it gives float32[frames, bands], once: the input \"%s\" must be that, or "
                      "[frames, bands, 1]",
                      where, in->name);
    if (st->num_mel_bins && st->num_mel_bins != in->dims[1])
        return w_fail(err, W_BAD_SPEC, "%s: \"num_mel_bins\" is %d, the model's input has %lld bands",
                      where, st->num_mel_bins, (long long)in->dims[1]);
    json_t *steps = json_pack(
        "[{s:{s:i}},{s:{s:i,s:i,s:i,s:i,s:I,s:I,s:f,s:f}}]", "decode_audio", "rate",
        st->sampling_rate, "log_mel", "sampling_rate", st->sampling_rate, "fft_length",
        st->fft_length, "sequence_length", st->sequence_length, "sequence_stride",
        st->sequence_stride, "num_mel_bins", (json_int_t)in->dims[1], "frames",
        (json_int_t)in->dims[0], "min_freq", st->min_freq, "max_freq", st->max_freq);
    f->sound = steps ? json_dumps(steps, JSON_COMPACT) : NULL;
    json_decref(steps);
    return f->sound || w_fail(err, W_NO_MEMORY, "out of memory");
}

bool w_train_sources(const struct w_spec_train *spec, const struct w_train_model *m,
                     struct w_front *dst, struct w_error *err) {
    json_t *json;
    size_t i;
    if (spec->data.preprocess && !json_is_array(spec->data.preprocess))
        return w_fail(err, W_BAD_SPEC, "data.preprocess must be a list");
    json_array_foreach(spec->data.preprocess, i, json) {
        const struct step_desc *d;
        struct step st;
        char where[64];
        int at;
        snprintf(where, sizeof where, "data.preprocess[%zu]", i);
        if (!read_step(json, m, where, &d, &st, &at, err)) return false;
        bool text = d->apply == text_vectorization, sound = d->apply == spectrogram,
             ok = !(text || sound) || m->n_inputs == 1 ||
                  w_fail(err, W_UNSUPPORTED, "%s: %s is for models with one input", where, d->name);
        if (ok && text) ok = make_vectorizer(&st, &m->inputs[at], &dst[at], where, err);
        if (ok && sound) ok = make_sound(&st, &m->inputs[at], &dst[at], where, err);
        w__params_free(d->params, &st);
        if (!ok) return false;
    }
    return true;
}

bool w_train_preprocess(const struct w_spec_train *spec, const struct w_train_model *m,
                        const struct w_set *train, struct w_front *dst, struct w_error *err) {
    json_t *list = spec->data.preprocess, *json;
    size_t i;
    if (!list) return true; /* w_train_sources has seen that it is a list */
    json_array_foreach(list, i, json) {
        char where[64];
        snprintf(where, sizeof where, "data.preprocess[%zu]", i);
        struct place p = {.where = where, .train = train, .err = err};
        if (!one_step(json, m, &p, dst)) return false;
    }
    return true;
}

static void affine_finish(struct w_affine *a) {
    free(a->scale);
    free(a->offset);
    *a = (struct w_affine){0};
}

void w_front_finish(struct w_front *f) {
    affine_finish(&f->affine);
    free(f->table);
    w_vectorizer_destroy(f->words);
    free(f->sound);
    *f = (struct w_front){0};
}
