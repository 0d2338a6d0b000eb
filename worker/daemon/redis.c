#include "worker/daemon/redis.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "worker/daemon/config.h"

#define PASSWORD_MAX 255

static char password[PASSWORD_MAX + 2];

/* The first line of path. 0, or an errno; EOVERFLOW if it is too long. */
static int read_password(const char *path) {
    FILE *f = fopen(path, "re");
    if (!f) return errno;
    int rc = fgets(password, sizeof password, f) || feof(f) ? 0 : errno;
    fclose(f);
    size_t n = strcspn(password, "\r\n");
    if (n > PASSWORD_MAX) rc = EOVERFLOW;
    password[n] = 0;
    return rc;
}

static const char *text_or_null(const char *text) {
    return *text ? text : NULL;
}

bool w_redis_options(struct q_conn_options *dst, struct q_error *err) {
    const struct w_config *c = w_config();
    char path[4096];
    *dst = (struct q_conn_options){
        .url = c->redis,
        .user = text_or_null(c->redis_user),
        .tls_ca = text_or_null(c->redis_ca),
        .tls_cert = text_or_null(c->redis_cert),
        .tls_key = text_or_null(c->redis_key),
    };
    if (*c->redis_password_file) {
        int rc = read_password(c->redis_password_file);
        if (rc) {
            err->code = Q_BAD_OPTION;
            snprintf(err->text, sizeof err->text, "redis_password_file %.300s: %s",
                     c->redis_password_file,
                     rc == EOVERFLOW ? "the password is longer than 255 bytes" : strerror(rc));
            return false;
        }
    } else if (getenv("CREDENTIALS_DIRECTORY")) {
        snprintf(path, sizeof path, "%s/redis-password", getenv("CREDENTIALS_DIRECTORY"));
        if (read_password(path)) password[0] = 0; /* no such credential: the URL's password */
    }
    dst->password = text_or_null(password);
    return true;
}
