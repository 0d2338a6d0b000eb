#include "worker/cli/private.h"

#include <string.h>
#include <time.h>

#include "worker/cli/redis.h"
#include "worker/daemon/log.h"

static void *worker_thread(void *arg) {
    w_daemon_run(arg);
    return NULL;
}

void w_cli_private_init(struct w_cli_private *p) {
    memset(p, 0, sizeof *p);
    p->config = *w_config();
    p->queues[0] = w_globals.queue;
    p->config.queues = (struct w_list){p->queues, 1};
    p->config.preload = (struct w_list){0};
}

static bool set_tokens(const struct w_cli_private *p, struct q_error *err) {
    char key[160], value[24];
    const char *argv[] = {"SET", key, value};
    struct q_ctl *c = q_ctl_open(&p->conn, err);
    char *reply = NULL;
    if (!c) return false;
    q_key(key, sizeof key, w_globals.queue, "fence");
    snprintf(value, sizeof value, "%lld", (long long)time(NULL) * 1000);
    bool ok = q_ctl_command(c, 3, argv, NULL, &reply, NULL) == Q_OK;
    if (!ok) *err = *q_ctl_error(c);
    free(reply);
    q_ctl_close(c);
    return ok;
}

int w_cli_private_start(struct w_cli_private *p, const struct w_daemon_alias *aliases,
                        size_t n_aliases) {
    struct w_daemon_options o = {.config = &p->config, .aliases = aliases, .n_aliases = n_aliases};
    struct w_error err = {0};
    struct q_error qe;
    char text[300];
    w_log_init(p->config.origin[W_KEY_log_level] == W_FROM_DEFAULT
                   ? W_ERROR
                   : w_log_level_parse(p->config.log_level));
    if (!q_queue_name_valid(w_globals.queue, strlen(w_globals.queue)))
        return w_report(W_EXIT_USAGE, "usage", NULL,
                        "queue \"%.80s\": a name is 1 to 64 letters, digits, _ . -",
                        w_globals.queue);
    if (!w_private_redis_start(&p->redis, text, sizeof text))
        return w_report(W_EXIT_REDIS, "redis",
                        "install it: apt-get install redis-server, or name a Redis: --redis URL",
                        "%s", text);
    p->conn.url = p->redis.url;
    o.conn = p->conn;
    if (!set_tokens(p, &qe)) return w_cli_failed(&qe, "the private Redis");
    p->daemon = w_daemon_create(&o, &err);
    if (!p->daemon) return w_report(W_EXIT_FAILED, err.code, NULL, "%s", err.text);
    if (pthread_create(&p->thread, NULL, worker_thread, p->daemon) != 0)
        return w_report(W_EXIT_FAILED, "no_memory", NULL, "the worker's thread cannot be started");
    p->running = true;
    return W_EXIT_OK;
}

void w_cli_private_stop(struct w_cli_private *p) {
    if (p->running) {
        w_daemon_drain(p->daemon);
        pthread_join(p->thread, NULL);
    }
    w_daemon_destroy(p->daemon);
    w_private_redis_stop(&p->redis);
    memset(p, 0, sizeof *p);
}
