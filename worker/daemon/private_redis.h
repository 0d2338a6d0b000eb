/* private_redis.h: a redis-server of this process's own, for commands that need a queue where none
 * is configured: on a Unix socket in a temporary folder, without a port, without persistence. It
 * dies with us, however we die. */
#ifndef QUERN_WORKER_PRIVATE_REDIS_H
#define QUERN_WORKER_PRIVATE_REDIS_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

struct w_private_redis {
    pid_t pid;
    char folder[80];
    char url[168]; /* unix:… */
};

/* Starts it and waits until it answers. False: err (at least 256 bytes) says why; the redis-server
 * program is looked for in PATH. The thread that calls must live as long as the server, for the
 * kernel ends the server with that thread. */
bool w_private_redis_start(struct w_private_redis *r, char *err, size_t err_bytes);
void w_private_redis_stop(struct w_private_redis *r);

#endif
