/* train.h: the parts of a trainer. Internal to ops/train.
 *
 *   model ──transform──▶ step model:      inputs  [the model's] [targets] [sample weights] [trained weights] [running statistics]
 *         │                               outputs [loss] [the model's] [gradients] [running statistics]
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
};

/* update.c */
bool op__update_copies(const struct op_trainer *t, const struct op_weight *w); /* whether its gradient is changed before use */
double op__update_norm(const struct op_trainer *t, const struct op_tensor *gradients); /* of all gradients together */
/* Takes one step's gradients; when enough have come, clips, regularises and updates the weights. Returns the penalties (l1, l2) that
 * belong to the loss. */
double op__update(struct op_trainer *t, const struct op_tensor *gradients, double norm, float learning_rate);

/* graph.c */
struct op_train_graph {
    struct op_trainer *t;
    bool evaluate;
    bool find;  /* the first time: makes t->weights from what is there */
};
enum op_status op__train_transform(struct op_model *m, void *user, struct op_error *err);
/* loss.c: appends the losses; *total gets the scalar. targets: their input values. */
enum op_status op__train_losses(struct op_model *m, const struct op_trainer *t, const int *targets, int sample_weights, int *total, struct op_error *err);

#endif
