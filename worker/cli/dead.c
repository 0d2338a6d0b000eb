/* quern dead list | show ID | requeue ID… | purge: dead letters, with their cause and their raw
 * bytes. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "worker/cli/redis.h"

static int64_t limit = 100, offset;
static double older_s;
static bool yes;

static json_t *dead_json(const struct q_ctl_dead *d, bool with_entry) {
    json_t *o = json_pack("{s:s,s:I}", "id", d->id, "died_ms", (json_int_t)d->died_ms);
    json_t *envelope = d->envelope ? json_loads(d->envelope, JSON_ALLOW_NUL, NULL) : NULL;
    if (envelope) json_object_set_new(o, "envelope", envelope);
    if (!with_entry || !d->entry) return o;
    json_t *entry = json_stringn(d->entry, d->entry_len);
    if (entry)
        json_object_set_new(o, "entry", entry);
    else { /* not UTF-8: hexadecimal, so that nothing of it is lost */
        char *hex = malloc(2 * d->entry_len + 1);
        for (size_t i = 0; hex && i < d->entry_len; i++)
            snprintf(hex + 2 * i, 3, "%02x", (unsigned char)d->entry[i]);
        if (hex) json_object_set_new(o, "entry_hex", json_stringn(hex, 2 * d->entry_len));
        free(hex);
    }
    return o;
}

static void dead_line(const struct q_ctl_dead *d) {
    json_t *envelope = d->envelope ? json_loads(d->envelope, JSON_ALLOW_NUL, NULL) : NULL;
    const json_t *error = json_object_get(envelope, "error");
    const char *code = json_string_value(json_object_get(error, "code")),
               *text = json_string_value(json_object_get(error, "message"));
    char when[32];
    time_t s = (time_t)(d->died_ms / 1000);
    struct tm utc;
    gmtime_r(&s, &utc);
    strftime(when, sizeof when, "%Y-%m-%dT%H:%M:%SZ", &utc);
    printf("%-24s %s  %-12s ", d->id, when, code ? code : "");
    if (text) w_print_safe(text, strlen(text));
    putchar('\n');
    json_decref(envelope);
}

static int run_list(int argc, char **argv) {
    int rc;
    struct q_ctl_dead *d;
    size_t n;
    uint64_t total;
    (void)argv;
    if (argc) return w_report(W_EXIT_USAGE, "usage", NULL, "dead list takes no words");
    struct q_ctl *c = w_cli_redis(&rc);
    if (!c) return rc;
    if (q_ctl_dead_list(c, w_globals.queue, (uint64_t)offset, (uint32_t)limit, false, &d, &n,
                        &total) != Q_OK)
        rc = w_cli_failed(q_ctl_error(c), NULL);
    else {
        for (size_t i = 0; i < n; i++) {
            if (w_globals.json)
                w_cli_print(dead_json(&d[i], false));
            else
                dead_line(&d[i]);
        }
        if (!w_globals.json && total > n)
            fprintf(stderr, "%zu of %" PRIu64 "; --offset and --limit show others\n", n, total);
        q_ctl_dead_free(d, n);
    }
    q_ctl_close(c);
    return rc;
}

static int show_one(struct q_ctl *c, const char *id) {
    struct q_ctl_dead *d;
    if (q_ctl_dead_show(c, w_globals.queue, id, &d) != Q_OK)
        return w_cli_failed(q_ctl_error(c), id);
    w_cli_print(dead_json(d, true));
    q_ctl_dead_free(d, 1);
    return W_EXIT_OK;
}

static int requeue_one(struct q_ctl *c, const char *id) {
    if (q_ctl_dead_requeue(c, w_globals.queue, id) != Q_OK) return w_cli_failed(q_ctl_error(c), id);
    if (w_globals.json)
        w_cli_print(json_pack("{s:s,s:s}", "id", id, "state", "queued"));
    else
        printf("%s  queued\n", id);
    return W_EXIT_OK;
}

static int run_show(int argc, char **argv) {
    return w_cli_each_id(argc, argv, "dead show", show_one);
}
static int run_requeue(int argc, char **argv) {
    return w_cli_each_id(argc, argv, "dead requeue", requeue_one);
}

static int run_purge(int argc, char **argv) {
    int rc;
    uint64_t n = 0;
    (void)argv;
    if (argc) return w_report(W_EXIT_USAGE, "usage", NULL, "dead purge takes no words");
    if (!yes)
        return w_report(W_EXIT_REFUSED, "confirm", "add --yes",
                        "dead purge removes dead letters of queue \"%s\" for good",
                        w_globals.queue);
    struct q_ctl *c = w_cli_redis(&rc);
    if (!c) return rc;
    if (q_ctl_dead_purge(c, w_globals.queue, (uint64_t)(older_s * 1000), &n) != Q_OK)
        rc = w_cli_failed(q_ctl_error(c), NULL);
    else if (w_globals.json)
        w_cli_print(json_pack("{s:I}", "purged", (json_int_t)n));
    else
        printf("%" PRIu64 " removed\n", n);
    q_ctl_close(c);
    return rc;
}

static struct w_option list_options[] = {
    {"limit", W_OPT_INT, &limit, "N", "at most so many [100]", 1, 1000},
    {"offset", W_OPT_INT, &offset, "N", "leave out the N newest [0]", 0, 1e15},
    {0},
};
static struct w_option purge_options[] = {
    {"older", W_OPT_DOUBLE, &older_s, "SECONDS", "only those that died longer ago [0: all]", 0,
     1e10},
    {"yes", W_OPT_FLAG, &yes, NULL, "really", 0, 0},
    {0},
};
static const struct w_command list_command = {
    .name = "dead list",
    .args = "[--limit N] [--offset N]",
    .summary = "List dead letters, newest first, with their cause",
    .options = list_options,
    .run = run_list};
static const struct w_command show_command = {.name = "dead show",
                                              .args = "ID",
                                              .summary = "Print a dead letter: cause and raw entry",
                                              .run = run_show};
static const struct w_command requeue_command = {.name = "dead requeue",
                                                 .args = "ID…",
                                                 .summary =
                                                     "Queue dead letters again, with new attempts",
                                                 .run = run_requeue};
static const struct w_command purge_command = {.name = "dead purge",
                                               .args = "[--older SECONDS] --yes",
                                               .summary = "Remove dead letters",
                                               .options = purge_options,
                                               .run = run_purge};
W_COMMAND(list_command);
W_COMMAND(show_command);
W_COMMAND(requeue_command);
W_COMMAND(purge_command);
