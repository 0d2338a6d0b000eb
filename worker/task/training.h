/* training.h: a training in the hands of a task, for the job types that have one (train, tune).
 *
 * A lane trains for a slice of time and comes back, so that the loop can tell how far it is, and
 * other jobs get their turn; the state lives on in between, and only one lane has it at a time.
 *
 *   loop: init ─▶ lane: place, create, slice ─▶ loop: tell ─▶ lane: slice ─▶ … ─▶ loop: finish
 *
 * A checkpoint is `.train-<key>.<token>` in the folder that the model goes to; the key is of the
 * job (and trial), the token is the fencing token of who writes. An attempt begins by putting an
 * empty one there: so whoever was taken for dead finds a higher token than its own before it
 * delivers anything, and what it still writes is a file that nobody will read. */
#ifndef QUERN_WORKER_TASK_TRAINING_H
#define QUERN_WORKER_TASK_TRAINING_H

#include "worker/task/task.h"
#include "worker/train/train.h"

#define W_TRAINING_NOTES_MAX 8

struct w_training {
    struct w_task *task;
    struct w_lane *lane; /* of the present slice */
    const char *store;   /* the worker's model store; "": none */
    uint64_t memory_bytes_max;
    uint64_t key;
    int parent;        /* descriptor of the output's folder; -1: none */
    char *ref;         /* output_ref, for messages */
    char output[340];  /* a path below it; "" where nothing but the store gets the model */
    char folder[4200]; /* of checkpoints: the output, or the store */
    char checkpoint[4300], resume[4300];
    struct w_spec_train *spec;
    struct w_fit *fit;
    volatile bool cancel; /* set by the lane that trains */
    /* for the loop to tell */
    bool stepped;
    struct w_fit_status status; /* metrics: of fit, while no lane has it */
    json_t *points;             /* results of epochs that are not told yet */
    json_t *notes;              /* resumed at …, stopped early … */
    double point_s;             /* when the last step's point was told */
    /* of a study */
    int64_t trial; /* -1: none */
    /* Lane: whether to come back after this epoch. NULL: never. */
    bool (*pauses)(void *user, json_t *results);
    void *user;
};

/* Loop. The struct is zeroed. */
void w_training_init(struct w_training *t, struct w_task *task);
void w_training_finish(struct w_training *t); /* also where nothing was begun */
/* Loop or lane: ready for another spec; places are kept. */
void w_training_reset(struct w_training *t);
/* Loop: live status and the curve's points, between two slices. more (may be NULL) is added to the
 * status: released. */
void w_training_tell(struct w_training *t, json_t *more);
/* The status as JSON; NULL: no step yet. */
json_t *w_training_status(const struct w_training *t);

/* Lane. Finds where the output goes: output_ref, else the store. */
bool w_training_place(struct w_training *t, struct w_error *err);
/* Lane. Takes the key of the job, or of t->trial, in t->folder. fenced: a later attempt has begun.
 */
bool w_training_begin(struct w_training *t, struct w_error *err);
/* Takes the spec (also on failure) and prepares the fit. */
bool w_training_create(struct w_training *t, struct w_spec_train *spec, struct w_error *err);
/* PAUSED: again. Messages name the output as the job does. */
enum w_fit_end w_training_slice(struct w_training *t, struct w_lane *lane, struct w_error *err);
/* A later attempt has begun: nothing may be delivered. */
bool w_training_fenced(const struct w_training *t, struct w_error *err);
/* Removes the checkpoints of this and earlier attempts. */
void w_training_clear_up(const struct w_training *t);
/* Opens a reference of a spec below the worker's --files; user is a struct w_training. */
int w_training_open(void *user, const char *path, bool *is_folder, struct w_error *err);
/* In a message, in place of the descriptor's path what the job calls it. */
void w_training_speak_plainly(const struct w_training *t, struct w_error *err);
/* The hash that checkpoints of this job (and trial) go by. */
uint64_t w_training_key(const struct q_job *job, int64_t trial);

#endif
