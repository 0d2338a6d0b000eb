/* loop.h: the daemon: a worker as a thing that runs on a thread of its caller.
 *
 *   struct w_daemon_options o = {.config = w_config(), .conn = conn, .signals = true};
 *   struct w_daemon *d = w_daemon_create(&o, &err);
 *   int exit_code = w_daemon_run(d);       // until SIGTERM or w_daemon_drain
 *   w_daemon_destroy(d); */
#ifndef QUERN_WORKER_LOOP_H
#define QUERN_WORKER_LOOP_H

#include "queue/queue.h"
#include "worker/daemon/config.h"
#include "worker/pipeline/pipeline.h"

struct w_daemon;

struct w_daemon_alias {
    const char *name, *path;
};

struct w_daemon_options {
    const struct w_config *config; /* borrowed while the daemon lives */
    struct q_conn_options conn;
    bool signals; /* handle SIGTERM, SIGINT, SIGHUP and speak to systemd: the process is the worker
                   */
    const struct w_daemon_alias
        *aliases; /* models under names beside the store's; borrowed during create */
    size_t n_aliases;
};

/* NULL: err says what is wrong (a folder that cannot be read, a bad queue name or URL, no memory).
 */
struct w_daemon *w_daemon_create(const struct w_daemon_options *options, struct w_error *err);
/* Returns when drained: 0, or 1 where work was left to others. */
int w_daemon_run(struct w_daemon *d);
/* Any thread: stop taking jobs, finish, return from run. */
void w_daemon_drain(struct w_daemon *d);
void w_daemon_destroy(struct w_daemon *d); /* after run; accepts NULL */

#endif
