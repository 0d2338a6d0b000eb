/* follow.h: waiting for a job on behalf of a person. */
#ifndef QUERN_WORKER_CLI_FOLLOW_H
#define QUERN_WORKER_CLI_FOLLOW_H

#include "worker/cli/redis.h"

/* Waits until job `id` of the chosen queue is final (timeout_s 0: for ever), with progress on
 * standard error if wanted; prints the envelope on one line. The exit code: 0 done, 1 ended
 * otherwise, 5 timed out, 130 interrupted, or that of a failure. */
int w_cli_follow(struct q_ctl *c, const char *id, double timeout_s, bool progress);
/* Prints an envelope (JSON text) and gives its exit code. */
int w_cli_envelope(const char *envelope, size_t len);

#endif
