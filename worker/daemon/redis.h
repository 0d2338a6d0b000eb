/* redis.h: where Redis is, from the settings: URL, user, password file or credential, certificates.
 */
#ifndef QUERN_WORKER_REDIS_H
#define QUERN_WORKER_REDIS_H

#include "queue/queue.h"

/* Fills dst from w_config(). The password comes from redis_password_file, else
 * $CREDENTIALS_DIRECTORY/redis-password where it is not empty, else the URL. Strings are borrowed
 * for the process's life. False with a sentence in err where the file cannot be read. Main thread.
 */
bool w_redis_options(struct q_conn_options *dst, struct q_error *err);

#endif
