/* bulk.h: what the loop's half (bulk.c) and the lanes' half (bulk_lane.c) of bulk jobs share. */
#ifndef QUERN_WORKER_TASK_BULK_H
#define QUERN_WORKER_TASK_BULK_H

#include "worker/data/data.h"
#include "worker/task/task.h"

/* The data set of one job in this process, shared by its tickets: opened once, on the first lane
 * that needs it. Files are reached through descriptors that were resolved beneath a root, as
 * /proc/self/fd/N: so what the format's code opens by path cannot be led elsewhere afterwards.
 * Messages name the job's own references instead. */
struct w_dataset {
    struct w_dataset *next;
    char queue[Q_QUEUE_NAME_MAX + 1], id[Q_ID_MAX + 1];
    int refs;              /* loop */
    int n_active;          /* loop: tickets that are at work */
    uint32_t parks;        /* loop: how often a surplus ticket was set aside */
    pthread_mutex_t mutex; /* of what follows, until opened */
    bool opened;
    char *input, *output; /* as the job says: "file:…" */
    int input_fd, output_dir;
    char input_path[64], output_path[320];
    struct w_source *source;
    const char *format; /* of the output */
    char spec[Q_MODEL_MAX +
              1]; /* the model, pinned to the version that the first worker had; "": not pinned */
};

struct w_bulk {
    struct w_dataset *set;
    struct q_bulk_plan plan;
    uint32_t first, count, crashes;  /* grains of the range in hand */
    uint64_t rows_ok, rows_failed;   /* of the range */
    uint64_t total_ok, total_failed; /* of the job, as last told */
    int64_t opened_ms;
    bool active;
    bool over;        /* the job has ended: this ticket leaves without a word */
    bool failing;     /* of the task's error, once the queue has said that the job is still ours */
    bool part_done;   /* the range's part is in place */
    uint64_t shards, grain; /* as the job asks; 0: it does not */
    uint64_t *firsts; /* rows that parts begin with, for the finaliser */
    size_t n_firsts;
};

struct w_dataset *w__dataset_get(const struct q_job *job); /* loop; NULL: no memory */
void w__dataset_put(struct w_dataset *set);                /* loop */

/* On a lane; each has one task. */
w_lane_fn w__bulk_lane_size;     /* opens the data, pins the model; then plan.n_rows is known */
w_lane_fn w__bulk_lane_prepare;  /* opens the data */
w_lane_fn w__bulk_lane_range;    /* scores first … first+count-1 and writes their part */
w_lane_fn w__bulk_lane_clean;    /* removes the parts of a job that is over */
w_lane_fn w__bulk_lane_assemble; /* joins the parts; makes the result */

#endif
