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
        json_t *input_shape, *layers, *head, *freeze;
        char *onnx, *output;
        int rank; /* of input_shape */
        int64_t dims[OP_RANK_MAX];
    } model;
    struct {
        json_t *train, *validation, *test, *preprocess, *augment;
        double test_split;
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
        int32_t epochs, batch_size, checkpoint_steps;
        double validation_split, checkpoint_s;
        double seed;
        bool shuffle;
        json_t *callbacks, *class_weight;
    } fit;
    char *publish; /* name in the store; NULL: none */
};

/* bad_job names the key, the found and the allowed. */
struct w_spec_train *w_train_spec_parse(const char *text, size_t len, struct w_error *err);
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

struct w_train_model {
    struct op_model *model;
    enum op_type input_dtype;
    int input_rank; /* of a row, as data has it: channels last */
    int64_t input_dims[OP_RANK_MAX];
    bool input_first; /* the graph takes rows channels first (a fine-tuned model) */
    int output_rank;
    int64_t output_dims[OP_RANK_MAX]; /* of a row, channels last */
    bool softmax, sigmoid;            /* what the last layer ends in */
    char **freeze;
    int n_freeze;
    double l1, l2;
    char input_name[W_TRAIN_NAME_MAX + 1], output_name[W_TRAIN_NAME_MAX + 1];
};

/* Σ scale·x + offset a channel (the last dimension); n 0: as it is, 1: the same for all. */
struct w_affine {
    int64_t n;
    float *scale, *offset;
};

/* front: put into the graph before the first layer where it has more than one channel. */
bool w_train_model_build(const struct w_spec_train *spec, const struct w_affine *front,
                         struct op_model *base, struct w_train_model *dst, struct w_error *err);
void w_train_model_finish(struct w_train_model *m);
bool w_train_fail(struct w_error *err, const struct op_error *why); /* the engine's error as ours */

/* --- data --------------------------------------------------------------------------------------
 */

/* Rows of one shape. */
struct w_array {
    enum op_type dtype; /* u8, f32, i64 or f64 */
    int rank;           /* of a row */
    int64_t dims[OP_RANK_MAX];
    int64_t n, elements; /* rows; elements of a row */
    void *data;          /* from malloc, or shared with the array that it is a part of */
};

struct w_set {
    struct w_array x, y, weight; /* weight: of rows; n 0: none */
    bool part;                   /* its data belongs to another set */
    bool is_image;               /* decoded pictures: u8[h,w,c], whatever the dims say */
    char **names;                /* labels as strings, sorted; owned where not part */
    int64_t n_names;
};

/* Opens a path of the spec for reading; a descriptor, or -1. */
typedef int w_train_open_fn(void *user, const char *path, bool *is_folder, struct w_error *err);

struct w_train_files {
    w_train_open_fn *open;
    void *user;
    size_t bytes_max;            /* of one array */
    const volatile bool *cancel; /* polled while reading; NULL: never */
};

struct w_set_wish {
    enum op_type dtype; /* of x: f32 or i64 */
    int rank;           /* of a row of x; 0: whatever comes */
    int64_t dims[OP_RANK_MAX];
    bool first;               /* dims are [channels, height, width], where rows are pictures */
    const struct w_set *like; /* labels as in this set; NULL: its own */
};

/* where: "data.train". */
bool w_train_set_load(json_t *json, const char *where, const struct w_train_files *files,
                      const struct w_set_wish *wish, struct w_set *dst, struct w_error *err);
void w_train_set_finish(struct w_set *s);
/* dst is rows [first, first + n) of src, without a copy. */
void w_train_set_part(const struct w_set *src, int64_t first, int64_t n, struct w_set *dst);
/* Cuts a part of the rows, chosen by the seed, off the end of a set that is reordered for it. */
bool w_train_set_split(struct w_set *s, double part, uint64_t seed, struct w_set *rest,
                       struct w_error *err);

/* Formats, for data.c: fill an array, or two. */
struct w_table {
    const char *where, *path; /* for messages */
    json_t *json;             /* the set's options */
    const struct w_train_files *files;
    const struct w_set_wish *wish;
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
bool w__train_read_csv(const struct w_table *t, const char *file, struct w_array *x,
                       struct w_array *y, struct w_words *words, struct w_error *err);
bool w__train_read_jsonl(const struct w_table *t, const char *file, struct w_array *x,
                         struct w_array *y, struct w_words *words, struct w_error *err);
bool w__train_read_images(const struct w_table *t, const char *folder, struct w_array *x,
                          struct w_words *words, struct w_error *err);
/* Room for one more row of `elements`; the place of it, NULL without memory or beyond bytes_max. */
void *w__train_array_row(struct w_array *a, int64_t *room, size_t bytes_max, struct w_error *err);

/* --- preprocessing and augmentation --------------------------------------------------------------
 */

bool w_train_preprocess(const struct w_spec_train *spec, const struct w_set *train,
                        struct w_affine *dst, struct w_error *err);
void w_affine_finish(struct w_affine *a);

struct w_augment;
struct w_augment *
w_augment_create(json_t *list, int rank, const int64_t *dims,
                 struct w_error *err); /* NULL also where there is nothing to do */
/* Changes one row in place: the same bits for the same seed. */
void w_augment_apply(struct w_augment *a, float *row, uint64_t seed);
void w_augment_destroy(struct w_augment *a);
uint64_t w__train_mix(uint64_t z);

/* --- metrics ------------------------------------------------------------------------------------
 */

struct w_metric_desc;
struct w_metric {
    const struct w_metric_desc *desc;
    char name[64]; /* as it stands in results: "accuracy" */
    int32_t k;
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
    const float *output;   /* [rows, classes] */
    const float *dense;    /* targets of the same shape, or NULL */
    const int64_t *sparse; /* class numbers, or NULL */
};

bool w_metrics_parse(json_t *list, const struct w_spec_train *spec, const struct w_train_model *m,
                     struct w_metrics *dst, struct w_error *err);
void w_metrics_reset(struct w_metrics *m);
void w_metrics_update(struct w_metrics *m, const struct w_outcome *o, double loss);
double w_metric_value(const struct w_metric *m);
void w_metrics_json(const struct w_metrics *m, const char *prefix, json_t *into);
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
};

enum w_fit_end { W_FIT_DONE, W_FIT_PAUSED, W_FIT_CANCELLED, W_FIT_FAILED };

struct w_fit {
    const struct w_spec_train *spec;
    struct w_fit_options o;
    struct w_set train, validation, test; /* parts of: */
    struct w_set whole, held, extra;
    struct w_affine affine; /* as given */
    bool affine_inside;     /* in the graph: batches get rows as they are */
    struct w_train_model m;
    struct op_trainer *trainer;
    struct w_metrics metrics, eval_metrics;
    bool flip_images; /* pictures come channels last, the graph wants them first */
    struct w_callbacks callbacks;
    struct w_schedule *schedule;
    struct w_augment *augment;
    int64_t n_classes, steps_per_epoch;
    bool sparse;
    float *class_weights;
    /* the batch */
    struct op_tensor x, y, weight;
    int64_t *order;
    int order_epoch; /* of order; -1: none */
    /* where it stands: what a checkpoint holds */
    int epoch; /* from 0, the present one */
    int64_t step;
    double lr_scale, seconds;
    bool over;
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
/* As a new version of a model in a store: written beside, then renamed. job (may be NULL) is the
 * job's id: what it has published before is not published again. */
bool w_fit_publish(struct w_fit *f, const char *store, const char *name, const char *job,
                   uint64_t token, int64_t *version, struct w_error *err);
void w_fit_destroy(struct w_fit *f); /* accepts NULL */

/* For fit.c. */
bool w__fit_batch(struct w_fit *f, const struct w_set *s, const int64_t *rows, int64_t n,
                  bool training, struct w_error *err);
bool w__fit_save(struct w_fit *f, struct w_error *err);
/* *resumed: there was one, for this spec and data. */
bool w__fit_load(struct w_fit *f, bool *resumed, struct w_error *err);
double w__fit_now(void);
bool w__fit_curve(const struct w_fit *f, const char *path, struct w_error *err);
/* Writes path.tmp, fsync, rename. */
bool w__fit_put(const char *path, const void *bytes, size_t len, struct w_error *err);

#endif
