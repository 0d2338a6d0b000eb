#include "worker/cli/redis.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "worker/daemon/config.h"
#include "worker/daemon/log.h"
#include "worker/daemon/redis.h"

static const struct advice {
    enum q_status status;
    int exit_code;
    const char *code, *next;
} table[] = {
    {Q_BAD_URL, W_EXIT_USAGE, "bad_url",
     "forms: redis://[user:password@]host:port/db, rediss://…, unix:/path/to.sock"},
    {Q_UNSUPPORTED, W_EXIT_USAGE, "unsupported", NULL},
    {Q_BAD_OPTION, W_EXIT_CONFIG, "config", NULL},
    {Q_UNREACHABLE, W_EXIT_REDIS, "redis_unreachable",
     "is it running, and is this its address? --redis URL or QUERN_REDIS; `quern doctor` looks "
     "closer"},
    {Q_TLS, W_EXIT_REDIS, "redis_tls",
     "--redis-ca FILE names the authority that signed the server's certificate"},
    {Q_AUTH, W_EXIT_REDIS, "redis_auth", "QUERN_REDIS_USER and --redis-password-file FILE"},
    {Q_DENIED, W_EXIT_REFUSED, "redis_denied",
     "queue/PROTOCOL.md lists the rights that each role needs"},
    {Q_TIMEOUT, W_EXIT_TIMEOUT, "timeout", NULL},
    {Q_NOT_FOUND, W_EXIT_NOT_FOUND, "not_found", NULL},
    {Q_FINAL, W_EXIT_FAILED, "final", NULL},
    {Q_BAD_JOB, W_EXIT_USAGE, "bad_job", "queue/PROTOCOL.md lists a job's fields"},
    {Q_FULL, W_EXIT_FAILED, "redis_full", "raise maxmemory, or let workers drain the queue first"},
};

int w_cli_failed(const struct q_error *e, const char *what) {
    for (size_t i = 0; i < sizeof table / sizeof *table; i++)
        if (table[i].status == e->code)
            return w_report(table[i].exit_code, table[i].code, table[i].next, "%s%s%s",
                            what ? what : "", what ? ": " : "", e->text);
    return w_report(W_EXIT_FAILED, "redis", NULL, "%s%s%s", what ? what : "", what ? ": " : "",
                    e->text);
}

struct q_ctl *w_cli_redis(int *rc) {
    struct q_conn_options options;
    struct q_error err;
    if (!q_queue_name_valid(w_globals.queue, strlen(w_globals.queue))) {
        *rc =
            w_report(W_EXIT_USAGE, "usage", NULL,
                     "queue \"%.80s\": a name is 1 to 64 letters, digits, _ . -", w_globals.queue);
        return NULL;
    }
    struct q_ctl *c = w_redis_options(&options, &err) ? q_ctl_open(&options, &err) : NULL;
    *rc = c ? W_EXIT_OK : w_cli_failed(&err, NULL);
    return c;
}

void w_cli_print(json_t *o) {
    char *line = json_dumps(o, JSON_COMPACT | JSON_ENCODE_ANY);
    if (line) puts(line);
    free(line);
    json_decref(o);
}

const char *w_cli_age(double s, char *dst, size_t n) {
    if (!(s >= 0))
        snprintf(dst, n, "-");
    else if (s < 1)
        snprintf(dst, n, "%.0f ms", s * 1000);
    else if (s < 120)
        snprintf(dst, n, "%.0f s", s);
    else if (s < 7200)
        snprintf(dst, n, "%.0f min", s / 60);
    else if (s < 172800)
        snprintf(dst, n, "%.1f h", s / 3600);
    else
        snprintf(dst, n, "%.1f d", s / 86400);
    return dst;
}

int w_cli_each_id(int argc, char **argv, const char *command,
                  int (*fn)(struct q_ctl *c, const char *id)) {
    int rc;
    if (argc == 0)
        return w_report(W_EXIT_USAGE, "usage", NULL, "%s needs at least one job id", command);
    for (int i = 0; i < argc; i++)
        if (!q_id_valid(argv[i], strlen(argv[i])))
            return w_report(W_EXIT_USAGE, "usage", NULL,
                            "\"%.80s\" cannot be a job id: 1 to 64 printable characters without "
                            "blanks, quotes and braces",
                            argv[i]);
    struct q_ctl *c = w_cli_redis(&rc);
    if (!c) return rc;
    for (int i = 0; i < argc; i++) {
        int one = fn(c, argv[i]);
        if (one > rc) rc = one;
    }
    q_ctl_close(c);
    return rc;
}
