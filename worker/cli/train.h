/* train.h: what `quern train` and `quern model bench --train` share. */
#ifndef QUERN_WORKER_CLI_TRAIN_H
#define QUERN_WORKER_CLI_TRAIN_H

#include "worker/cli/cli.h"
#include "worker/train/train.h"

#define W_TRAIN_DATA_BYTES_MAX ((size_t)16 << 30)

/* Reads a spec; *folder gets the folder that it lies in. */
struct w_spec_train *w__train_read_spec(const char *path, char *folder, size_t size,
                                        struct w_error *err);
/* Opens a path of a spec, relative to the folder (user). */
int w__train_open_beside(void *user, const char *path, bool *is_folder, struct w_error *err);
/* Measures steps; an exit code. */
int w__train_bench(const char *path, int n_threads, double seconds);

#endif
