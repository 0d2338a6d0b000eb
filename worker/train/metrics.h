/* metrics.h: what the files of metrics share. Internal to the folder. */
#ifndef QUERN_WORKER_TRAIN_METRICS_H
#define QUERN_WORKER_TRAIN_METRICS_H

#include "worker/train/train.h"

/* Which targets a metric takes: bits of enum op_target. */
enum {
    W_ON_NUMBERS = 1 << OP_TARGET_DENSE,
    W_ON_CLASSES = 1 << OP_TARGET_CLASSES,
    W_ON_LABELS = 1 << OP_TARGET_LABELS,
    W_ON_FIRST = 1 << OP_TARGET_NONE /* the first score is the right one (bpr) */
};

struct w_metric_desc {
    const char *name;
    int n_state; /* 0: by the number of classes */
    unsigned takes;
    void (*update)(struct w_metric *m, const struct w_outcome *o);
    double (*value)(const struct w_metric *m);
    int k; /* if not said */
};

/* metrics_rank.c: state[0] is a sum, state[1] what it is divided by. */
void w__metric_hit_rate(struct w_metric *m, const struct w_outcome *o);
void w__metric_ndcg(struct w_metric *m, const struct w_outcome *o);
void w__metric_reciprocal_rank(struct w_metric *m, const struct w_outcome *o);
void w__metric_average_precision(struct w_metric *m, const struct w_outcome *o);
void w__metric_edits(struct w_metric *m, const struct w_outcome *o);

#endif
