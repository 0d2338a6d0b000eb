/* tune.h: what the loop's half (tune.c) and the lanes' half (tune_lane.c) of studies share. */
#ifndef QUERN_WORKER_TASK_TUNE_H
#define QUERN_WORKER_TASK_TUNE_H

#include "worker/task/bulk.h"
#include "worker/task/training.h"
#include "worker/tune/study.h"

struct w_tune {
    struct w_training t;   /* of the trial in hand */
    struct w_dataset *set; /* shared by the tickets of this process: how many are at work */
    struct w_study *study;
    char folder[4190]; /* base/.tune-<key>: a folder for each trial's model, and checkpoints */
    /* what is known of all trials, as last heard */
    struct w_trial *known;
    size_t n_known;
    /* the trial in hand */
    uint32_t trial, crashes;
    json_t *note; /* as it will be told next */
    bool ended;   /* the lane: the note says how */
    bool at_rung; /* the lane: others are to be asked whether it goes on */
    int epoch;    /* the last one, and what it came to */
    double value;
    bool no_value; /* its results have no such metric: err says which */
    bool lost;     /* the lane: a later attempt at this trial has begun */
    struct w_error err;
    /* the ticket */
    struct q_bulk_turn turn;
    w_task_fn *then; /* after the notes have come */
    bool active, over;
};

/* On a lane; each has one task. */
w_lane_fn w__tune_lane_prepare;  /* reads the study, finds the places */
w_lane_fn w__tune_lane_slice;    /* trains for a slice; a finished trial's model is in place */
w_lane_fn w__tune_lane_finalise; /* the best trial's model is delivered; makes the result */
w_lane_fn w__tune_lane_clean;    /* removes what the trials have left */

#endif
