/* script.h: the Lua scripts by name. A new one is a file lua/<name>.lua and a row here. */
#ifndef QUERN_QUEUE_SCRIPT_H
#define QUERN_QUEUE_SCRIPT_H

#include <stddef.h>

#define Q__SCRIPT_MAP(X)                                                                           \
    X(turn)       /* end a batch of jobs, claim the next: one round trip */                        \
    X(admit)      /* what must be asked of Redis before a claimed job may run */                   \
    X(enroll)     /* a worker id enters the list of the living */                                  \
    X(retire)     /* and leaves it */                                                              \
    X(beat)       /* still here; what is there for me? */                                          \
    X(reap)       /* take over from the dead */                                                    \
    X(progress)   /* live status of a job I own */                                                 \
    X(cancel)     /* ask for an end */                                                             \
    X(requeue)    /* delayed or dead: back to the inbox */                                         \
    X(purge)      /* forget dead letters */                                                        \
    X(shard_open) /* a bulk job begins */                                                          \
    X(shard_turn) /* a ticket's range is done, give the next */                                    \
    X(shard_note) /* tickets tell each other something */

#define Q__SCRIPT_ENUM(name) Q__SCRIPT_##name,
enum q__script { Q__SCRIPT_MAP(Q__SCRIPT_ENUM) Q__SCRIPT_N };

const char *q__script_name(enum q__script s);
const char *q__script_body(enum q__script s, size_t *len);
const char *q__script_sha(enum q__script s); /* 40 hex digits */

#endif
