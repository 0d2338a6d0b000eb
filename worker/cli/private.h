/* private.h: a command that brings everything: a private redis-server, and a worker on a second
 * thread that serves the chosen queue. So what runs without a Redis takes the same path as in
 * production.
 *
 *   struct w_cli_private p;
 *   w_cli_private_init(&p);
 *   p.config.lanes = 1; …                           // the worker's settings
 *   if ((rc = w_cli_private_start(&p, NULL, 0)) == W_EXIT_OK) { … p.conn … }
 *   w_cli_private_stop(&p); */
#ifndef QUERN_WORKER_CLI_PRIVATE_H
#define QUERN_WORKER_CLI_PRIVATE_H

#include <pthread.h>

#include "worker/daemon/loop.h"
#include "worker/daemon/private_redis.h"

struct w_cli_private {
    struct w_config config; /* changed by the caller before start */
    const char *queues[1];
    struct w_private_redis redis;
    struct q_conn_options conn;
    struct w_daemon *daemon;
    pthread_t thread;
    bool running;
};

/* The process's settings, for one queue, without anything to preload. */
void w_cli_private_init(struct w_cli_private *p);
/* Fencing tokens of the queue begin at the time of day: so a later run has higher ones than what an
 * earlier one has left on the disk. An exit code; failures are reported. */
int w_cli_private_start(struct w_cli_private *p, const struct w_daemon_alias *aliases,
                        size_t n_aliases);
/* Drains the worker, ends the server. Also after a start that failed. */
void w_cli_private_stop(struct w_cli_private *p);

#endif
