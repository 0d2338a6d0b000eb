/* quern status | result | wait | cancel | retry ID…: one job at a time, whoever pushed it. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "worker/cli/follow.h"

static double timeout_s;

static int show_status(struct q_ctl *c, const char *id) {
    struct q_ctl_status s;
    if (q_ctl_status(c, w_globals.queue, id, &s) != Q_OK) return w_cli_failed(q_ctl_error(c), id);
    bool unknown = strcmp(s.state, "unknown") == 0;
    json_t *detail = s.json ? json_loads(s.json, 0, NULL) : NULL;
    if (w_globals.json) {
        json_t *o = json_pack("{s:s,s:s}", "id", id, "state", s.state);
        if (s.worker[0]) json_object_set_new(o, "worker", json_string(s.worker));
        if (s.position >= 0) json_object_set_new(o, "position", json_integer(s.position));
        if (s.due_ms) json_object_set_new(o, "due_ms", json_integer(s.due_ms));
        if (detail) json_object_set(o, "detail", detail);
        w_cli_print(o);
    } else {
        printf("%s  %s", id, s.state);
        if (s.worker[0]) printf("  worker %s", s.worker);
        if (s.position >= 0) printf("  %" PRId64 " before it", s.position);
        const json_t *done = json_object_get(detail, "done"),
                     *total = json_object_get(detail, "total"),
                     *error = json_object_get(detail, "error");
        if (done && total)
            printf("  %.0f of %.0f", json_number_value(done), json_number_value(total));
        const char *text = json_string_value(json_object_get(error, "message"));
        if (text) {
            printf("  %s: ", json_string_value(json_object_get(error, "code")));
            w_print_safe(text, strlen(text));
        }
        putchar('\n');
    }
    json_decref(detail);
    q_ctl_status_free(&s);
    return unknown ? W_EXIT_NOT_FOUND : W_EXIT_OK;
}

static int show_result(struct q_ctl *c, const char *id) {
    char *envelope;
    size_t len;
    if (q_ctl_result(c, w_globals.queue, id, &envelope, &len) != Q_OK)
        return w_cli_failed(q_ctl_error(c), id);
    int rc = w_cli_envelope(envelope, len);
    free(envelope);
    return rc;
}

static int wait_one(struct q_ctl *c, const char *id) {
    return w_cli_follow(c, id, timeout_s, true);
}

static int say(const char *id, const char *what) {
    if (w_globals.json)
        w_cli_print(json_pack("{s:s,s:s}", "id", id, "state", what));
    else
        printf("%s  %s\n", id, what);
    return W_EXIT_OK;
}

static int cancel_one(struct q_ctl *c, const char *id) {
    enum q_status s = q_ctl_cancel(c, w_globals.queue, id);
    return s == Q_OK ? say(id, "cancelling") : w_cli_failed(q_ctl_error(c), id);
}

static int retry_one(struct q_ctl *c, const char *id) {
    enum q_status s = q_ctl_retry(c, w_globals.queue, id);
    return s == Q_OK ? say(id, "queued") : w_cli_failed(q_ctl_error(c), id);
}

static int run_status(int argc, char **argv) {
    return w_cli_each_id(argc, argv, "status", show_status);
}
static int run_result(int argc, char **argv) {
    return w_cli_each_id(argc, argv, "result", show_result);
}
static int run_wait(int argc, char **argv) {
    return w_cli_each_id(argc, argv, "wait", wait_one);
}
static int run_cancel(int argc, char **argv) {
    return w_cli_each_id(argc, argv, "cancel", cancel_one);
}
static int run_retry(int argc, char **argv) {
    return w_cli_each_id(argc, argv, "retry", retry_one);
}

static struct w_option wait_options[] = {
    {"timeout", W_OPT_DOUBLE, &timeout_s, "SECONDS", "how long to wait for each; 0: for ever [0]",
     0, 4e6},
    {0},
};

static const struct w_command status_command = {
    .name = "status",
    .args = "ID…",
    .summary = "Say where jobs are: queued, running with progress, done, failed, …",
    .run = run_status};
static const struct w_command result_command = {
    .name = "result",
    .args = "ID…",
    .summary = "Print the envelopes of jobs that are final (exit code 4 where one is not)",
    .run = run_result};
static const struct w_command wait_command = {
    .name = "wait",
    .args = "ID… [--timeout SECONDS]",
    .summary = "Wait until jobs are final, print their envelopes",
    .options = wait_options,
    .run = run_wait};
static const struct w_command cancel_command = {
    .name = "cancel",
    .args = "ID…",
    .summary = "Cancel jobs: waiting ones at once, running ones within a heartbeat",
    .run = run_cancel};
static const struct w_command retry_command = {
    .name = "retry",
    .args = "ID…",
    .summary = "Queue delayed, failed or dead jobs again, with new attempts",
    .run = run_retry};
W_COMMAND(status_command);
W_COMMAND(result_command);
W_COMMAND(wait_command);
W_COMMAND(cancel_command);
W_COMMAND(retry_command);
