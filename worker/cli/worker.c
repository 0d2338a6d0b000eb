/* quern worker: takes jobs until it is told to stop. */
#include <stdio.h>

#include "worker/cli/cli.h"
#include "worker/daemon/log.h"
#include "worker/daemon/loop.h"
#include "worker/daemon/redis.h"

static bool dump;
static struct w_option options[] = {
    {"dump-config", W_OPT_FLAG, &dump, NULL, "print the settings as JSON and end", 0, 0}, {0}};

static int run(int argc, char **argv) {
    struct w_daemon_options o = {.config = w_config(), .signals = true};
    struct q_error qe;
    struct q_url url;
    struct w_error err = {0};
    if (argc)
        return w_report(W_EXIT_USAGE, "usage", "see: quern help worker",
                        "worker takes no words, \"%.60s\" is one", argv[0]);
    if (dump) {
        w_config_dump(w_config(), stdout);
        return W_EXIT_OK;
    }
    w_log_init(w_log_level_parse(w_config()->log_level));
    if (!w_redis_options(&o.conn, &qe))
        return w_report(W_EXIT_CONFIG, "config", NULL, "%s", qe.text);
    if (q_url_parse(&url, o.conn.url, &qe) != Q_OK)
        return w_report(W_EXIT_CONFIG, "config", NULL, "redis: %s", qe.text);
    struct w_daemon *d = w_daemon_create(&o, &err);
    if (!d) return w_report(W_EXIT_CONFIG, "config", NULL, "%s", err.text);
    int rc = w_daemon_run(d);
    w_daemon_destroy(d);
    return rc;
}

static const struct w_command worker = {
    .name = "worker",
    .args = "[settings]",
    .summary = "Take jobs from Redis and run them, until SIGTERM",
    .help = "SIGTERM drains: what has not started goes back to the queue at once, what runs has "
            "drain_ms; a second SIGTERM hands that back\n"
            "too. SIGHUP reads the settings again and says which of them need a restart.",
    .options = options,
    .takes_config = true,
    .run = run,
};
W_COMMAND(worker);
