/* train.h: from a training spec to a model: Keras's words in, ONNX out.
 *
 *   struct w_spec_train *spec = w_train_spec_parse(text, len, &err);
 *   struct w_fit *fit = w_fit_create(spec, &options, &err);     // data, graph, trainer
 *   enum w_fit_end end = w_fit_run(fit, &err);                  // epochs; resumes by itself
 *   if (end == W_FIT_DONE) w_fit_write(fit, "output folder", &err);
 *   w_fit_destroy(fit);
 *   w_train_spec_destroy(spec);
 *
 * The parts: spec.c reads and checks the JSON; layers.c, layers_*.c and graph.c turn layers into an
 * ONNX graph through the engine's builder; data.c, idx.c, table.c and images.c load rows;
 * preprocess.c and augment.c make batches of them; metrics.c, callbacks.c and schedule.c are what
 * their names say; fit.c is the loop, checkpoint.c its memory, report.c and curve.c what it leaves.
 *
 * Same bits: order, augmentation and initial weights follow from the seed, the epoch and the row
 * alone, so a run that was stopped and resumed ends in the same bytes as one that was not.
 *
 * Threads: all of this belongs to one thread; the cancel flag alone is set by others. */
#ifndef QUERN_WORKER_TRAIN_H
#define QUERN_WORKER_TRAIN_H

#include <jansson.h>

#include "ops/ops_train.h"
#include "worker/pipeline/step.h"
#include "worker/pipeline/value.h"
#include "worker/pipeline/vectorizer.h"
#include "worker/train/set.h"

#define W_BAD_SPEC "bad_job"
#define W_TRAIN_METRICS_MAX 16
#define W_TRAIN_CALLBACKS_MAX 16
#define W_TRAIN_LAYERS_MAX 4096
#define W_TRAIN_NAME_MAX 127

/* --- the spec ----------------------------------------------------------------------------------
 */

struct w_spec_train {
    json_t *json; /* the whole; the other json_t point into it */
    struct {
        json_t *input_shape, *inputs, *layers, *outputs, *head, *freeze;
        char *onnx, *output;
        int rank; /* of input_shape */
        int64_t dims[OP_RANK_MAX];
    } model;
    struct {
        json_t *train, *validation, *test, *preprocess, *augment;
        double test_split, memory_mb;
        bool allow_empty_classes;
    } data;
    struct {
        json_t *optimizer, *loss, *metrics;
    } compile;
    struct op_optimizer optimizer;
    json_t *schedule; /* NULL: the learning rate is a number */
    double learning_rate;
    struct op_loss loss;
    char loss_name[64], optimizer_name[32];
    struct {
        int32_t epochs, batch_size, steps_per_epoch, folds, checkpoint_steps, max_steps;
        double validation_split, checkpoint_s, max_seconds; /* max_*: 0: none */
        double seed;
        bool shuffle, stratify;
        json_t *callbacks, *class_weight;
    } fit;
    char *publish; /* name in the store; NULL: none */
};

/* bad_job names the key, the found and the allowed. */
struct w_spec_train *w_train_spec_parse(const char *text, size_t len, struct w_error *err);
/* The same from JSON, which must not change while the spec lives: retained. */
struct w_spec_train *w_train_spec_from(json_t *json, struct w_error *err);
void w_train_spec_destroy(struct w_spec_train *s); /* accepts NULL */
/* "MeanSquaredError", "HeNormal" → "mean_squared_error", "he_normal". */
void w__train_snake(const char *word, char *dst, size_t size);
/* Reads an object that has a "type" (or is just that string) by its table; *type is borrowed. */
bool w__train_typed(json_t *json, const char **type, const char *where, struct w_error *err);
/* w__params_read with the code of a spec, "type" and "name" let through. */
bool w__train_params(const struct w_param *params, json_t *json, void *state, const char *where,
                     struct w_error *err);
/* Fails with `… "word"; did you mean "near"?`, or the list of names. */
bool w__train_unknown(const char *where, const char *what, const char *word,
                      const char *(*next)(void *user, size_t i), void *user, struct w_error *err);

/* --- the graph ---------------------------------------------------------------------------------
 */

struct w_train_input {
    char name[W_TRAIN_NAME_MAX + 1];
    enum op_type dtype; /* f32 or i64 */
    int rank;           /* of a row, as data has it: channels last */
    int64_t dims[OP_RANK_MAX], elements;
    int64_t ids; /* an Embedding takes it: numbers from 0 below this; 0: any */
};

struct w_train_model {
    struct op_model *model;
    struct w_train_input inputs[W_TRAIN_INPUTS_MAX];
    int n_inputs;
    int output_rank;
    int64_t output_dims[OP_RANK_MAX]; /* of a row, channels last */
    bool softmax, sigmoid;            /* what the last layer ends in */
    char **freeze;
    int n_freeze;
    struct op_regularizer *regularizers;
    struct op_noise *noises;
    struct op_activity *activities;
    int n_regularizers, n_noises, n_activities;
    char output_name[W_TRAIN_NAME_MAX + 1];
};

/* scale·x + offset a channel (the last dimension); n 0: as it is, 1: the same for all. */
struct w_affine {
    int64_t n;
    float *scale, *offset;
};

/* What is done to the rows of an input before the layers see them. */
struct w_front {
    struct w_affine affine;
    bool inside;             /* the graph applies it: batches get rows as they are */
    /* IntegerLookup, in the graph: the number of id i is table[i + 1], below n_ids. */
    int64_t *table, n_table, n_ids;
    /* TextVectorization: rows are text until they are in a batch; NULL: they are not. */
    struct w_vectorizer *words;
    int split, standardize;
    int64_t max_tokens;
    char *sound; /* MelSpectrogram: pipeline steps as JSON, of WAV files; NULL: they are none */
};

/* Reads model.inputs: {name: {"shape", "dtype"}}. */
bool w__train_inputs(json_t *json, struct w_train_model *m, struct w_error *err);
/* fronts: of each input; those inside are put into the graph before the layers. NULL: none. */
bool w_train_model_build(const struct w_spec_train *spec, const struct w_front *fronts,
                         struct op_model *base, struct w_train_model *dst, struct w_error *err);
void w_train_model_finish(struct w_train_model *m);
bool w_train_fail(struct w_error *err, const struct op_error *why); /* the engine's error as ours */

/* --- data --------------------------------------------------------------------------------------
 */

struct w_set_wish {
    const struct w_train_input *inputs;
    int n_inputs;
    const struct w_front *fronts; /* of each input: which of them are text */
    bool first;               /* pictures are [channels, height, width] in the graph */
    bool no_targets;          /* the loss needs none */
    bool sequences;           /* targets are sequences of labels (ctc) */
    int64_t blank;
    const struct w_set *like; /* labels as in this set; NULL: its own */
};

/* where: "data.train". */
bool w_train_set_load(json_t *json, const char *where, const struct w_train_files *files,
                      const struct w_set_wish *wish, struct w_set *dst, struct w_error *err);

/* Formats, for data.c: fill an array, or two. */
struct w_table {
    const char *where, *path; /* for messages */
    json_t *json;             /* the set's options */
    json_t *columns;          /* a name, or a list of them, that make x; NULL: all but the target */
    json_t *target;           /* the column of y; NULL: none */
    const struct w_train_files *files;
    const struct w_train_input *input;
    const struct w_front *front; /* of the input */
    bool first, text;   /* text: a row of x is text */
    bool labels_anyhow; /* numbers of the target are labels too */
};
bool w__train_is_idx(const uint8_t *head, size_t n);
bool w__train_read_idx(const uint8_t *bytes, size_t len, const char *where, struct w_array *dst,
                       struct w_error *err);
/* The content behind fd, unpacked where it is gzip: a new descriptor. */
int w__train_unpack(int fd, const char *path, size_t bytes_max, struct w_error *err);
/* y: strings go to *words (from malloc, n of them) instead. */
struct w_words {
    char **items;
    int64_t n, room;
};
bool w__train_words_add(struct w_words *w, const char *text, size_t len, struct w_error *err);
void w__train_words_finish(struct w_words *w);
/* y of the set: the number of each row's word, among its own sorted words or those of like. */
bool w__train_number_words(const struct w_words *w, const char *where, const struct w_set *like,
                           struct w_set *s, struct w_error *err);
/* y of the set: each row's words as labels, cut at the separators, padded with −1. */
bool w__train_number_sequences(const struct w_words *w, const char *separator, const char *where,
                               const struct w_set_wish *wish, struct w_set *s, struct w_error *err);
bool w__train_read_csv(const struct w_table *t, const char *file, struct w_array *x,
                       struct w_array *y, struct w_words *words, struct w_error *err);
bool w__train_read_jsonl(const struct w_table *t, const char *file, struct w_array *x,
                         struct w_array *y, struct w_words *words, struct w_error *err);
bool w__train_read_images(const struct w_table *t, const char *folder, struct w_array *x,
                          struct w_words *words, struct w_error *err);
/* Texts: a row a line of a file; a file of a folder of folders, which are its labels. */
bool w__train_read_lines(const struct w_table *t, const char *file, struct w_array *x,
                         struct w_error *err);
bool w__train_read_texts(const struct w_table *t, const char *folder, struct w_array *x,
                         struct w_words *words, struct w_error *err);
/* The whole file as one sequence of tokens: x are windows of it, y the tokens that follow. */
bool w__train_read_windows(const struct w_table *t, const char *file, struct w_vectorizer *v,
                           int64_t max_tokens, int64_t stride, struct w_array *x, struct w_array *y,
                           struct w_error *err);
/* Fills the type and the shape of rows from those of a whole tensor. */
bool w__train_shape_rows(const struct op_tensor *t, const char *where, struct w_array *dst,
                         struct w_error *err);
void w__train_convert(const struct op_tensor *t, int64_t count, void *dst);
bool w__train_stream_npy(const char *file, const char *where, struct w_array *dst,
                         struct w_error *err);
/* Files of a folder, each through pipeline steps (the text of a model.json) that make a row of x's
 * type and shape; their labels go to words. */
bool w__train_stream_files(const struct w_table *t, const char *folder, const char *format,
                           const char *steps, struct w_array *x, struct w_words *words,
                           struct w_error *err);
/* Where folders' names are the labels: none of them gave no row. */
bool w__train_no_folder_is_empty(const struct w_table *t, const char *folder,
                                 const struct w_words *words, struct w_error *err);
/* The label of a file by its name: 1, 0: the file is not wanted, -1 with err. */
int w__train_label(const struct w_table *t, const char *name, struct w_words *words,
                   struct w_error *err);
bool w__train_read_sounds(const struct w_table *t, const char *folder, struct w_array *x,
                          struct w_words *words, struct w_error *err);

/* --- preprocessing and augmentation --------------------------------------------------------------
 */

/* Makes what reading needs to know of the inputs that are text or sound, before data is read. */
bool w_train_sources(const struct w_spec_train *spec, const struct w_train_model *m,
                   struct w_front *dst, struct w_error *err);
/* Fills the front of each input; dst has m->n_inputs of them. */
bool w_train_preprocess(const struct w_spec_train *spec, const struct w_train_model *m,
                        const struct w_set *train, struct w_front *dst, struct w_error *err);
void w_front_finish(struct w_front *f);

struct w_augment;
struct w_augment *
w_augment_create(json_t *list, int rank, const int64_t *dims,
                 struct w_error *err); /* NULL also where there is nothing to do */
/* Changes one row in place: the same bits for the same seed. */
void w_augment_apply(struct w_augment *a, float *row, uint64_t seed);
/* Mixes the rows of a batch: x[n, …] with y[n, n_targets]; was: what they are, x then y. Nothing
 * where no MixUp or CutMix is in the list. */
bool w_augment_mixes(const struct w_augment *a);
void w_augment_mix(struct w_augment *a, float *x, float *y, const float *was, int64_t n,
                   int64_t n_targets, uint64_t seed);
void w_augment_destroy(struct w_augment *a);
uint64_t w__train_mix(uint64_t z);

/* --- metrics ------------------------------------------------------------------------------------
 */

struct w_metric_desc;
struct w_metric {
    const struct w_metric_desc *desc;
    char name[64]; /* as it stands in results: "accuracy" */
    int32_t k;
    int64_t blank, separator;
    double threshold;
    double *state;
    int n_state;
};

struct w_metrics {
    struct w_metric items[W_TRAIN_METRICS_MAX + 1];
    int n;
    double loss, rows; /* sums */
};

struct w_outcome { /* of a batch */
    int64_t rows, classes;
    const float *output;   /* [rows, classes]; with labels [rows, steps, classes] */
    const float *dense;    /* targets of the same shape, or NULL */
    const int64_t *sparse; /* class numbers, or NULL; neither: the first class is the right one */
    const int64_t *labels; /* [rows, n_labels], padded, or NULL */
    int64_t steps, n_labels;
    double loss; /* mean of the rows */
};

bool w_metrics_parse(json_t *list, const struct w_spec_train *spec, const struct w_train_model *m,
                     struct w_metrics *dst, struct w_error *err);
void w_metrics_reset(struct w_metrics *m);
void w_metrics_update(struct w_metrics *m, const struct w_outcome *o);
double w_metric_value(const struct w_metric *m);
void w_metrics_json(const struct w_metrics *m, const char *prefix, json_t *into);
/* Those that are no single number: confusion_matrix, a list of rows (what is) of columns (what was
 * said). */
void w_metrics_matrices(const struct w_metrics *m, json_t *into);
void w_metrics_finish(struct w_metrics *m);
/* The state between batches, and back. */
json_t *w_metrics_save(const struct w_metrics *m);
void w_metrics_load(struct w_metrics *m, json_t *from);

/* --- schedules and callbacks ---------------------------------------------------------------------
 */

struct w_schedule;
struct w_schedule *w_schedule_create(json_t *json, double base, uint64_t total_steps,
                                     struct w_error *err); /* NULL with err; json NULL: constant */
double w_schedule_at(const struct w_schedule *s, uint64_t step);
void w_schedule_destroy(struct w_schedule *s);

struct w_callback {
    const struct w_callback_desc *desc;
    char monitor[80];
    int mode; /* -1 smaller is better, 1 larger */
    int32_t patience, cooldown, start_from_epoch;
    double min_delta, factor, min_lr, baseline;
    bool restore_best_weights, save_best_only;
    char *filepath;
    /* state */
    double best;
    int32_t wait, cooling;
};

struct w_callbacks {
    struct w_callback items[W_TRAIN_CALLBACKS_MAX];
    int n;
    bool terminate_on_nan;
};

struct w_verdict {
    bool stop, best,
        restore;      /* stop after this epoch; keep its weights; go back to the kept ones */
    double lr_factor; /* 1: none */
    double lr_min;
    char why[160];
};

bool w_callbacks_parse(json_t *list, struct w_callbacks *dst, struct w_error *err);
/* After an epoch whose results are in epoch (loss, val_loss, …). */
bool w_callbacks_epoch(struct w_callbacks *c, int epoch, json_t *results, struct w_verdict *v,
                       struct w_error *err);
json_t *w_callbacks_save(const struct w_callbacks *c);
void w_callbacks_load(struct w_callbacks *c, json_t *from);
void w_callbacks_finish(struct w_callbacks *c);

/* --- fitting -------------------------------------------------------------------------------------
 */

struct w_fit_status {
    int epoch, epochs;   /* from 1 */
    int64_t step, steps; /* in the epoch */
    double loss, learning_rate, samples_per_s, eta_s;
    const struct w_metrics *metrics;
};

struct w_fit_options {
    struct w_train_files files;
    int n_threads;
    const volatile bool *cancel;
    const char *checkpoint;    /* path of the file; NULL: none is kept */
    const char *resume;        /* the file to go on from; NULL: the same */
    double slice_s;            /* w_fit_run comes back after this time; 0: when it is over */
    uint64_t memory_bytes_max; /* of a step; 0: the engine's */
    void *user;
    void (*on_step)(void *user, const struct w_fit_status *s);
    void (*on_epoch)(void *user, json_t *results); /* borrowed */
    void (*on_note)(void *user, const char *text); /* resumed at …, stopped early … */
    void (*on_tick)(void *user);                   /* between any two pieces of work */
    /* The nodes of each step, for a profile; NULL: none. */
    void (*on_node)(void *node_user, const char *op_type, const char *name, uint64_t ns,
                    double flops, double bytes);
    void *node_user;
};

enum w_fit_end { W_FIT_DONE, W_FIT_PAUSED, W_FIT_CANCELLED, W_FIT_FAILED };

/* Rows as the tensors of a step. */
struct w_fit_batch {
    struct op_tensor x[W_TRAIN_INPUTS_MAX], y, weight;
    int64_t n;
    void *scratch;   /* a row */
    float *unmixed;  /* x, then y, before MixUp; NULL: there is none */
};

struct w_fit {
    const struct w_spec_train *spec;
    struct w_fit_options o;
    struct w_set train, validation, test; /* parts of: */
    struct w_set whole, held, extra;
    struct w_front fronts[W_TRAIN_INPUTS_MAX];
    struct w_train_model m;
    struct op_trainer *trainer;
    struct w_metrics metrics, eval_metrics;
    bool flip_images; /* pictures come channels last, the graph wants them first */
    struct w_callbacks callbacks;
    struct w_schedule *schedule;
    struct w_augment *augment;
    int64_t n_classes, steps_per_epoch;
    enum op_target target;
    bool sparse; /* targets are classes */
    float *class_weights;
    struct w_fit_batch batch, *now; /* one of its own; that of the step */
    struct w_loader *loader;
    /* fit.folds */
    int fold;              /* from 0 */
    struct w_set pool;     /* the rows of all folds */
    int32_t *fold_of;      /* of each row of the pool */
    int64_t *fold_rows;    /* rows that train, then those of the fold */
    json_t *fold_results;
    int64_t *order;
    int order_epoch; /* of order; -1: none */
    /* where it stands: what a checkpoint holds */
    int epoch; /* from 0, the present one */
    int64_t step;
    double lr_scale, seconds;
    bool over;
    bool pause; /* set in on_epoch: w_fit_run comes back before the next one */
    json_t *history, *test_results;
    void *best; /* a saved trainer: the best weights so far; NULL: none */
    size_t best_bytes;
    /* time */
    bool begun;
    double started_s, saved_s, epoch_s; /* epoch_s: seconds of the present epoch */
    int64_t rows_seen;                  /* in `seconds_seen`, for the speed */
    double seconds_seen;
    size_t peak_bytes;
    char hash[65], data_hash[65]; /* of spec and data: a checkpoint is for one of them */
};

struct w_fit *w_fit_create(const struct w_spec_train *spec, const struct w_fit_options *options,
                           struct w_error *err);
/* PAUSED: call it again. */
enum w_fit_end w_fit_run(struct w_fit *f, struct w_error *err);
/* One step on batch i of the epoch without bookkeeping: for measuring. */
bool w_fit_step(struct w_fit *f, int64_t i, int64_t *rows, struct w_error *err);
/* model.onnx, model.json, metrics.json, curve.svg; the folder must exist. */
bool w_fit_write(struct w_fit *f, const char *folder, struct w_error *err);
/* Data hash, seed, ISA, build, test results and spec: what a reproduction needs; new. */
json_t *w_fit_origin(const struct w_fit *f);
/* The epoch (of history) whose weights are the ones written: the best one where a callback restores
 * it, else the last; NULL: none was finished. */
json_t *w_fit_epoch(const struct w_fit *f);
void w_fit_destroy(struct w_fit *f); /* accepts NULL */

/* A new version of a model in a store: written beside by `write`, then renamed. What a job (by id
 * and when it was queued) has published before is not published again. */
struct w_publication {
    const char *store, *name;
    const char *job; /* NULL: none */
    int64_t queued_ms;
    uint64_t token;
    json_t *origin; /* goes into train.json beside the three; borrowed */
    bool (*write)(void *user, const char *folder, struct w_error *err);
    void *user;
};
bool w_publish(const struct w_publication *p, int64_t *version, struct w_error *err);

/* For fit.c. */
bool w__fit_prepare(struct w_fit *f, struct w_error *err);
/* Everything that depends on which rows train: fold f->fold, or all. */
bool w__fit_set_up(struct w_fit *f, struct w_error *err);
bool w__fit_hash(struct w_fit *f, struct w_error *err); /* hash.c */
/* splits.c */
bool w__split_test(struct w_fit *f, struct w_error *err);
bool w__split_validation(struct w_fit *f, struct w_error *err);
bool w__split_windows(struct w_fit *f, struct w_error *err);
bool w__split_deal(struct w_fit *f, struct w_error *err);
void w__split_fold(struct w_fit *f);
/* loader.c: batches of a set, one after the other. */
struct w_loader *w__loader_create(struct w_fit *f, struct w_error *err);
void w__loader_begin(struct w_loader *l, const struct w_set *set, const int64_t *order,
                     int64_t first, int64_t n_steps, bool training);
bool w__loader_is_at(const struct w_loader *l, int64_t step); /* the next is that of training */
struct w_fit_batch *w__loader_next(struct w_loader *l, struct w_error *err); /* until the next call */
void w__loader_end(struct w_loader *l);
void w__loader_destroy(struct w_loader *l); /* accepts NULL */
bool w__fit_batch_init(const struct w_fit *f, struct w_fit_batch *b, struct w_error *err);
void w__fit_batch_finish(struct w_fit_batch *b);
/* rows: of the set. */
bool w__fit_batch(struct w_fit *f, struct w_fit_batch *b, const struct w_set *s,
                  const int64_t *rows, int64_t n, bool training, struct w_error *err);
bool w__fit_save(struct w_fit *f, struct w_error *err);
/* *resumed: there was one, for this spec and data. */
bool w__fit_load(struct w_fit *f, bool *resumed, struct w_error *err);
double w__fit_now(void);
bool w__fit_curve(const struct w_fit *f, const char *path, struct w_error *err);
/* Writes path.tmp, fsync, rename. */
bool w__fit_put(const char *path, const void *bytes, size_t len, struct w_error *err);

#endif
