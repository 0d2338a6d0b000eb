/* quern score: a file or folder of rows through a model.
 *
 * It is a bulk job, nothing else. Where a Redis is configured the job is pushed to the queue and
 * followed, and the workers there need the model in their store and the files below their --files.
 * Where none is, this command brings everything: a private redis-server, a worker on a second
 * thread with the model under its name and the two folders as its roots, and the same job pushed
 * through it. */
#include <errno.h>
#include <jansson.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "worker/cli/private.h"
#include "worker/cli/redis.h"
#include "worker/daemon/redis.h"
#include "worker/store/store.h"

static const char *model, *input, *output, *format, *output_format, *target, *columns;
static int64_t shards;
static bool no_wait;
static struct w_option options[] = {
    {"model", W_OPT_STRING, &model, "M",
     "name, name@version, name@label, or (without a Redis) a path", 0, 0},
    {"input", W_OPT_STRING, &input, "FILE|DIR", "NPY, CSV, JSONL, or a folder of images", 0, 0},
    {"output", W_OPT_STRING, &output, "FILE",
     "JSONL, CSV or NPY, in the order of the input; rows that failed stand in FILE.errors.jsonl", 0,
     0},
    {"format", W_OPT_STRING, &format, "F",
     "of the input: jsonl, csv, npy, images; default: by its name and content", 0, 0},
    {"output-format", W_OPT_STRING, &output_format, "F",
     "jsonl, csv or npy; default: by the output's name", 0, 0},
    {"target", W_OPT_STRING, &target, "COLUMN",
     "CSV: a column (name, or number from 0) that is no input", 0, 0},
    {"columns", W_OPT_STRING, &columns, "A,B,…", "CSV, JSONL: the input columns, in this order", 0,
     0},
    {"shards", W_OPT_INT, &shards, "N",
     "lanes that may work on it at once; default: twice those of the worker", 1, 256},
    {"no-wait", W_OPT_FLAG, &no_wait, NULL, "with a Redis: print the job's id and do not follow it",
     0, 0},
    {0}};

static volatile sig_atomic_t interrupted;

static void on_interrupt(int number) {
    (void)number;
    interrupted = 1;
}

/* --- the job ---------------------------------------------------------------------------------- */

static json_t *column_list(void) {
    json_t *list = json_array();
    for (const char *p = columns; *p;) {
        size_t n = strcspn(p, ",");
        if (n) json_array_append_new(list, json_stringn(p, n));
        p += n + (p[n] == ',');
    }
    return list;
}

static char *make_job(const char *name, const char *in, const char *out) {
    char in_ref[PATH_MAX + 8], out_ref[PATH_MAX + 8];
    snprintf(in_ref, sizeof in_ref, "file:%s", in);
    snprintf(out_ref, sizeof out_ref, "file:%s", out);
    json_t *params = json_object();
    if (format) json_object_set_new(params, "format", json_string(format));
    if (output_format) json_object_set_new(params, "output_format", json_string(output_format));
    if (target) json_object_set_new(params, "target", json_string(target));
    if (columns) json_object_set_new(params, "columns", column_list());
    if (shards) json_object_set_new(params, "shards", json_integer(shards));
    json_t *job = json_pack("{s:s, s:s, s:s, s:s, s:o, s:b, s:b, s:i}", "op", "bulk", "model", name,
                            "input_ref", in_ref, "output_ref", out_ref, "params", params, "wait", 1,
                            "status", 1, "progress_ms", 250);
    char *text = job ? json_dumps(job, JSON_COMPACT) : NULL;
    json_decref(job);
    return text;
}

/* --- following -------------------------------------------------------------------------------- */

static double number(const json_t *o, const char *key) {
    return json_number_value(json_object_get(o, key));
}

static bool on_status(void *ctx, const struct q_ctl_status *s) {
    (void)ctx;
    json_t *o = s->json ? json_loads(s->json, 0, NULL) : NULL, *p = json_object_get(o, "progress");
    if (number(p, "total") > 0)
        w_progress("score", (uint64_t)number(p, "done"), (uint64_t)number(p, "total"),
                   number(p, "per_s"), number(p, "eta_s"));
    json_decref(o);
    return !interrupted;
}

static int report_result(const char *envelope) {
    json_t *e = json_loads(envelope, 0, NULL), *result = json_object_get(e, "result"),
           *error = json_object_get(e, "error");
    const char *state = json_string_value(json_object_get(e, "state"));
    int rc = W_EXIT_OK;
    w_progress_end();
    if (!state || strcmp(state, "done") != 0) {
        const char *text = json_string_value(json_object_get(error, "message")),
                   *code = json_string_value(json_object_get(error, "code"));
        rc = w_report(W_EXIT_FAILED, code ? code : "failed", NULL, "the job ended %s: %s",
                      state ? state : "without an envelope", text ? text : "no reason is given");
    } else if (w_globals.json) {
        json_dumpf(result, stdout, JSON_COMPACT);
        putchar('\n');
    } else {
        printf("%lld rows: %lld ok, %lld failed, in %.2f s → %s\n",
               (long long)number(result, "rows"), (long long)number(result, "ok"),
               (long long)number(result, "failed"),
               (number(e, "ended_ms") - number(e, "started_ms")) / 1e3, output);
    }
    if (rc == W_EXIT_OK && number(result, "failed") > 0) {
        rc = W_EXIT_PARTIAL;
        if (!w_globals.json)
            fprintf(stderr, "the rows that failed, with reasons: %s.errors.jsonl\n", output);
    }
    json_decref(e);
    return rc;
}

static int follow(struct q_ctl *c, const char *id) {
    char *envelope = NULL;
    size_t len;
    enum q_status rc = q_ctl_wait(c, w_globals.queue, id, 0, on_status, NULL, &envelope, &len);
    if (rc == Q_CLOSED && interrupted) { /* a second ^C ends us at once */
        signal(SIGINT, SIG_DFL);
        q_ctl_cancel(c, w_globals.queue, id);
        return w_report(W_EXIT_INTERRUPTED, "interrupted", NULL,
                        "interrupted; the job was cancelled");
    }
    if (rc != Q_OK) return w_cli_failed(q_ctl_error(c), id);
    int code = report_result(envelope);
    free(envelope);
    return code;
}

static int submit_and_follow(const struct q_conn_options *conn, const char *name, const char *in,
                             const char *out) {
    struct q_error qe;
    char id[Q_ID_MAX + 1];
    struct q_ctl *c = q_ctl_open(conn, &qe);
    if (!c) return w_cli_failed(&qe, "score");
    char *job = make_job(name, in, out);
    int rc;
    if (!job)
        rc = w_report(W_EXIT_FAILED, "no_memory", NULL, "no memory for the job");
    else if (q_ctl_submit(c, w_globals.queue, job, strlen(job), 0, id) != Q_OK)
        rc = w_cli_failed(q_ctl_error(c), "the job");
    else if (no_wait)
        rc = printf(w_globals.json ? "{\"id\":\"%s\"}\n" : "%s\n", id) < 0;
    else
        rc = follow(c, id);
    free(job);
    q_ctl_close(c);
    return rc;
}

/* --- without a Redis -------------------------------------------------------------------------- */

/* The folder that path lies in. */
static void folder_of(const char *path, char *dst, size_t size) {
    snprintf(dst, size, "%s", path);
    char *slash = strrchr(dst, '/');
    if (slash) slash[slash == dst] = 0;
}

static int run_private(const char *in, const char *out) {
    struct w_cli_private p;
    struct w_model_place place;
    struct w_error err = {0};
    char in_folder[PATH_MAX], out_folder[PATH_MAX];
    if (!w_model_find(model, w_config()->models, &place, &err))
        return w_report(W_EXIT_NOT_FOUND, err.code, NULL, "%s", err.text);
    folder_of(in, in_folder, sizeof in_folder);
    folder_of(out, out_folder, sizeof out_folder);
    const char *roots[] = {in_folder, out_folder};
    const struct w_daemon_alias alias = {place.name, place.path};
    w_cli_private_init(&p);
    p.config.files = (struct w_list){roots, 2};
    p.config.models = "";
    int rc = w_cli_private_start(&p, &alias, 1);
    if (rc == W_EXIT_OK) rc = submit_and_follow(&p.conn, place.name, in, out);
    w_cli_private_stop(&p);
    return rc;
}

/* --- the command ------------------------------------------------------------------------------ */

/* The output as an absolute path without links, though it need not exist. */
static bool resolve_output(char *dst, size_t size) {
    char folder[PATH_MAX], *real;
    const char *slash = strrchr(output, '/'), *name = slash ? slash + 1 : output;
    if (slash)
        snprintf(folder, sizeof folder, "%.*s", slash == output ? 1 : (int)(slash - output),
                 output);
    real = *name ? realpath(slash ? folder : ".", NULL) : NULL;
    bool ok =
        real && (size_t)snprintf(dst, size, "%s/%s", strcmp(real, "/") ? real : "", name) < size;
    free(real);
    return ok;
}

static int run(int argc, char **argv) {
    char in[PATH_MAX], out[PATH_MAX];
    struct q_conn_options conn;
    struct q_error qe;
    if (argc)
        return w_report(W_EXIT_USAGE, "usage", "see: quern help score",
                        "score takes no words, \"%.60s\" is one", argv[0]);
    if (!model || !input || !output)
        return w_report(W_EXIT_USAGE, "usage", "see: quern help score",
                        "score needs --model, --input and --output; --%s is missing",
                        !model   ? "model"
                        : !input ? "input"
                                 : "output");
    if (!realpath(input, in))
        return w_report(W_EXIT_NOT_FOUND, "not_found", NULL, "--input %s: %s", input,
                        strerror(errno));
    if (!resolve_output(out, sizeof out))
        return w_report(W_EXIT_FAILED, "output_failed", NULL, "--output %s: its folder: %s", output,
                        strerror(errno));
    struct sigaction sa = {.sa_handler = on_interrupt};
    sigaction(SIGINT, &sa, NULL);
    sigaction(SIGTERM, &sa, NULL);
    if (!w_globals.redis_given) return run_private(in, out);
    if (!w_redis_options(&conn, &qe)) return w_report(W_EXIT_CONFIG, "config", NULL, "%s", qe.text);
    return submit_and_follow(&conn, model, in, out);
}

static const struct w_command score = {
    .name = "score",
    .args = "--model M --input FILE|DIR --output FILE [options]",
    .summary = "Run a file or folder of rows through a model",
    .help =
        "Without a configured Redis it starts a private redis-server and a worker of its own; "
        "settings such as --lanes and --models are\n"
        "that worker's. With one, the job goes to its queue. Exit code 7: done, but rows failed.",
    .options = options,
    .takes_config = true,
    .run = run,
};
W_COMMAND(score);
