/* optimizer.h: the update of one weight from its gradient. Internal to ops/train.
 *
 * An optimiser is a row of a table (optimizer.c): its name, how many numbers of state it keeps for each weight, its defaults, its
 * update. State lies in f32 arrays of the weight's size, zeroed at the start; `step` counts from 1. */
#ifndef QUERN_OPS_TRAIN_OPTIMIZER_H
#define QUERN_OPS_TRAIN_OPTIMIZER_H

#include "ops/kern/kern.h"
#include "ops/ops_train.h"

#define OP__STATES_MAX 3

struct op_update {
    const struct k_vmath *math;
    float *w;       /* the weight, updated in place */
    const float *g; /* its gradient, clipped and regularised */
    float *state[OP__STATES_MAX];
    int64_t n;
    int rank;
    const int64_t *dims;
    uint64_t step;
    float learning_rate;
};

struct op_rule {
    const char *name;
    int n_states; /* without momentum or amsgrad, see op__rule_states */
    float learning_rate, momentum, rho, beta_1, beta_2, epsilon, weight_decay; /* Keras's defaults */
    bool whole; /* needs the weight in one piece; else any division of the elements gives the same bits */
    void (*update)(const struct op_optimizer *o, const struct op_update *u);
};

const struct op_rule *op__rule_find(const char *name);          /* NULL: no such optimiser */
int op__rule_states(const struct op_rule *r, const struct op_optimizer *o);
/* Fills what is NaN with the rule's defaults. */
void op__rule_fill(const struct op_rule *r, struct op_optimizer *o);

#endif
