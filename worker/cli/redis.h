/* redis.h: what the commands that talk to a queue share. */
#ifndef QUERN_WORKER_CLI_REDIS_H
#define QUERN_WORKER_CLI_REDIS_H

#include <jansson.h>

#include "queue/queue.h"
#include "worker/cli/cli.h"

/* Connects as the settings say. NULL: reported, and *rc is the exit code. */
struct q_ctl *w_cli_redis(int *rc);
/* Reports a failed call, with what mends it, and returns the exit code. */
int w_cli_failed(const struct q_error *e, const char *what);
/* Prints o on one line and releases it. */
void w_cli_print(json_t *o);
/* "3 s", "2 min", "-" */
const char *w_cli_age(double s, char *dst, size_t n);
/* Runs fn for each id of argv (at least one): the largest exit code. */
int w_cli_each_id(int argc, char **argv, const char *command,
                  int (*fn)(struct q_ctl *c, const char *id));

#endif
