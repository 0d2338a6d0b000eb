/* training.h: what the commands about training share (train, evaluate, tune): a spec becomes a job,
 * and the job is followed. Where no Redis is configured, through a private one and a worker in this
 * process. */
#ifndef QUERN_WORKER_CLI_TRAINING_H
#define QUERN_WORKER_CLI_TRAINING_H

#include "worker/cli/private.h"
#include "worker/cli/redis.h"

/* The JSON of a file. NULL: reported, *rc is the exit code. */
json_t *w_cli_json_read(const char *path, int *rc);
/* Paths of data and model.onnx that name something, seen from the folder of the spec's file, become
 * absolute file: references; others stay as they are, for the worker's own folders. */
void w_cli_spec_paths(json_t *spec, const char *spec_path);
void w_cli_set_paths(json_t *set, const char *spec_path); /* of one data set */
/* The output folder, made where it is not there, as an absolute path. False: reported. */
bool w_cli_output(const char *output, char *dst, size_t size, int *rc);
/* Where the result of a spec goes: into dst, and *output is set to dflt where nothing was asked
 * for and nothing is published to a queue's store (NULL stays: only there). Without a store here, "publish" leaves
 * the spec: the folder is the place. False: reported. */
bool w_cli_spec_output(json_t *spec, const char **output, const char *dflt, char *dst, size_t size,
                       int *rc);
/* The body of a command that takes one spec: reads it, makes its paths absolute, hands it on. */
int w_cli_spec_run(int argc, char **argv, const char *usage, const char *expected,
                   int (*fn)(json_t *spec));

struct w_cli_training {
    const char *op;     /* "train" */
    json_t *params;     /* borrowed */
    const char *model;  /* NULL: none */
    const char *output; /* absolute; NULL: the job says nothing of it */
    /* of the worker in this process */
    const struct w_daemon_alias *alias; /* NULL: none */
    int64_t lanes, threads;             /* 0: one lane with a thread for each CPU */
    bool no_wait;                       /* with a Redis: print the id and leave */
    /* what is heard while it runs; each may be NULL */
    void (*progress)(json_t *progress);
    void (*point)(json_t *point); /* an entry of the curve */
    /* prints the result; an exit code */
    int (*done)(json_t *result, json_t *envelope);
};

int w_cli_training(const struct w_cli_training *t);

/* An epoch of a curve on standard output: a line of words, or of JSON. */
void w_cli_epoch(json_t *point);

#endif
