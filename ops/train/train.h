/* train.h: the parts of a trainer. Internal to ops/train.
 *
 *   model ──transform──▶ step model:      inputs  [the model's] [targets] [sample weights] [trained weights] [running statistics]
 *         │                               outputs [loss] [the model's] [gradients] [running statistics] [rows of the weights updated by rows]
 *         └─────────────▶ evaluate model: the same inputs; outputs [loss] [the model's]
 *
 * Both are read from the model's own bytes, so the weights are found by name. */
#ifndef QUERN_OPS_TRAIN_TRAIN_H
#define QUERN_OPS_TRAIN_TRAIN_H

#include "ops/grad.h"
#include "ops/model.h"
#include "ops/ops_train.h"
#include "ops/session.h"
#include "ops/train/optimizer.h"

struct op_weight {
    char *name;
    bool trained;             /* else a running statistic of BatchNormalization */
    struct op_tensor value;   /* owned */
    float *state[OP__STATES_MAX];
    float *sum;               /* of gradients, where they are accumulated */
    float *ema;
    float l1, l2;
    struct op_rows *rows;     /* updated by rows; NULL: as a whole */
};

/* rows.c: the rows of a weight that a step looked up. */
struct op_rows {
    int64_t n, *list;  /* which rows, in the order in which they first came; their gradients lie in the scratch of the weight */
    int64_t room;      /* of list */
    int32_t *at;       /* row → its place in list, -1: not there */
    float *packed[1 + OP__STATES_MAX];
    int64_t n_packed;
};

struct op_trainer {
    struct op_model *model;   /* as given */
    struct op_model *step_model, *eval_model;
    struct op_session *step_session, *eval_session;
    struct op_weight *weights; /* the trained ones first */
    int n_weights, n_trained;
    int n_inputs, n_outputs;  /* the model's own */
    const struct op_rule *rule;
    struct op_trainer_options options; /* what it points at is copied */
    struct op_loss *losses;
    char **strings;
    int n_strings;
    uint64_t steps, updates;
    int n_accumulated;
    float *ones;              /* sample weights where none are given */
    int64_t n_ones;
    struct op_tensor *inputs; /* of a session, refilled each time */
    float **scratch;          /* for each trained weight: its gradient, clipped and regularised; NULL where it is used as it comes */
    int n_by_rows;            /* weights with rows; their indices are the last outputs of the step model */
};

/* update.c */
bool op__update_copies(const struct op_trainer *t, const struct op_weight *w); /* whether its gradient is changed before use */
/* Adds the gradients of looked-up rows up (indices: one tensor a weight with rows) and checks the sizes of the others. */
enum op_status op__update_rows(struct op_trainer *t, const struct op_tensor *gradients, const struct op_tensor *indices, struct op_error *err);
double op__update_norm(const struct op_trainer *t, const struct op_tensor *gradients); /* of all gradients together */
/* Takes one step's gradients; when enough have come, clips, regularises and updates the weights. Returns the penalties (l1, l2) that
 * belong to the loss; negative: no memory. */
double op__update(struct op_trainer *t, const struct op_tensor *gradients, double norm, float learning_rate);

/* rows.c */
struct op_rows *op__rows_create(int64_t n_rows);
void op__rows_destroy(struct op_rows *r); /* accepts NULL */
/* Adds up dy[n, each] by row into *sums (from malloc, grown where needed). */
enum op_status op__rows_collect(struct op_rows *r, const struct op_tensor *indices, const float *dy, int64_t each, int64_t n_rows, float **sums);
/* The rows and their states together as a weight of their own (dst, n_states), and back. */
bool op__rows_pack(struct op_rows *r, const struct op_weight *w, int n_states, struct op_weight *dst);
void op__rows_unpack(const struct op_rows *r, const struct op_weight *packed, int n_states, struct op_weight *w);

/* graph.c */
struct op_train_graph {
    struct op_trainer *t;
    bool evaluate;
    bool find;  /* the first time: makes t->weights from what is there */
};
enum op_status op__train_transform(struct op_model *m, void *user, struct op_error *err);
/* loss.c: appends the losses; *total gets the scalar. targets: their input values. */
enum op_status op__train_losses(struct op_model *m, const struct op_trainer *t, const int *targets, int sample_weights, int *total, struct op_error *err);

/* Adds the activities' penalties to *total. */
enum op_status op__train_activities(struct op_model *m, const struct op_trainer *t, int sample_weights, int *total, struct op_error *err);

#endif
