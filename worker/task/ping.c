/* ping: does nothing, for params.sleep_ms; its result is params.echo. It needs no lane: so it
 * measures the queue, and a thousand sleeping ones hold nothing up. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "worker/task/task.h"

#define SLEEP_MS_MAX 86400000.0

static void wake(struct w_task *t) {
    struct q_span echo = w_json_member(t->job->params, "echo");
    char *result = NULL;
    if (echo.ptr) {
        result = malloc(echo.len + 1);
        if (!result) {
            w_task_fail(t, W_NO_MEMORY, "no memory to echo %zu bytes", echo.len);
            return;
        }
        memcpy(result, echo.ptr, echo.len);
        result[echo.len] = 0;
    }
    w_task_done(t, result, echo.ptr ? echo.len : 0, NULL);
}

static void start(struct w_task *t) {
    struct q_span params = t->job->params, sleep = w_json_member(params, "sleep_ms");
    if (params.ptr && !w_json_is(params, '{')) {
        w_task_fail(t, "bad_job", "params of ping is %.*s, an object is expected",
                    params.len > 40 ? 40 : (int)params.len, params.ptr);
        return;
    }
    if (!sleep.ptr) {
        wake(t);
        return;
    }
    char text[32] = "", *end = text;
    if (sleep.len < sizeof text) snprintf(text, sizeof text, "%.*s", (int)sleep.len, sleep.ptr);
    double ms = w_json_is(sleep, '0') ? strtod(text, &end) : -1;
    if (!(ms >= 0 && ms <= SLEEP_MS_MAX) || *end) {
        w_task_fail(t, "bad_job", "params.sleep_ms is %.*s, a number from 0 to %.0f is expected",
                    sleep.len > 40 ? 40 : (int)sleep.len, sleep.ptr, SLEEP_MS_MAX);
        return;
    }
    w_task_after(t, (uint64_t)ms, wake);
}

static const struct w_task_desc ping = {
    .name = "ping",
    .summary = "does nothing, for params.sleep_ms; gives params.echo back",
    .harmless = true,
    .start = start,
};
W_TASK(ping);
