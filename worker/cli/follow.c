#include "worker/cli/follow.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static volatile sig_atomic_t interrupted;

static void on_interrupt(int signal_number) {
    (void)signal_number;
    interrupted = 1;
}

/* A number of the live status, from the object or its "progress". */
static double number_of(const json_t *status, const char *key, double dflt) {
    const json_t *v = json_object_get(status, key);
    if (!v) v = json_object_get(json_object_get(status, "progress"), key);
    return json_is_number(v) ? json_number_value(v) : dflt;
}

static bool on_status(void *ctx, const struct q_ctl_status *s) {
    if (interrupted) return false;
    if (!*(const bool *)ctx) return true;
    json_t *o = s->json ? json_loads(s->json, 0, NULL) : NULL;
    double done = number_of(o, "done", -1), total = number_of(o, "total", -1);
    if (done >= 0 && total > 0)
        w_progress(s->state, (uint64_t)done, (uint64_t)total, number_of(o, "per_s", 0),
                   number_of(o, "eta_s", -1));
    json_decref(o);
    return true;
}

int w_cli_envelope(const char *envelope, size_t len) {
    json_t *o = json_loadb(envelope, len, JSON_ALLOW_NUL, NULL);
    const char *state = json_string_value(json_object_get(o, "state"));
    int rc = state && strcmp(state, "done") == 0 ? W_EXIT_OK : W_EXIT_FAILED;
    w_progress_end();
    w_print_safe(envelope, len);
    putchar('\n');
    json_decref(o);
    return rc;
}

int w_cli_follow(struct q_ctl *c, const char *id, double timeout_s, bool progress) {
    char *envelope = NULL;
    size_t len = 0;
    struct sigaction act = {.sa_handler = on_interrupt}, before;
    sigaction(SIGINT, &act, &before);
    enum q_status s =
        q_ctl_wait(c, w_globals.queue, id, timeout_s > 0 ? (uint32_t)(timeout_s * 1000) + 1 : 0,
                   on_status, &progress, &envelope, &len);
    sigaction(SIGINT, &before, NULL);
    w_progress_end();
    if (interrupted) {
        fprintf(stderr, "quern: the job goes on: quern wait %s, or quern cancel %s\n", id, id);
        free(envelope);
        return W_EXIT_INTERRUPTED;
    }
    int rc = s == Q_OK ? w_cli_envelope(envelope, len) : w_cli_failed(q_ctl_error(c), id);
    free(envelope);
    return rc;
}
