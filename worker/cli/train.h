/* train.h: the part of `quern model bench` that measures training. */
#ifndef QUERN_WORKER_CLI_TRAIN_H
#define QUERN_WORKER_CLI_TRAIN_H

#include "worker/cli/cli.h"

/* Measures steps of a spec; an exit code. */
int w__train_bench(const char *path, int n_threads, double seconds, bool profile);

#endif
