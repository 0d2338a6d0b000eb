/* quern train: a training spec becomes a model, through the queue (training.c).
 *
 * Paths in the spec are relative to the spec's folder. Without a Redis everything goes into the
 * output folder, also the checkpoint: a run that is stopped (^C, a kill, a crash) goes on where it
 * was when the same command is given again, and ends in the same bytes. */
#include <dirent.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "worker/cli/training.h"

static const char *output;
static int64_t n_threads;
static double checkpoint_s;
static bool fresh, no_wait;
static struct w_option options[] = {
    {"output", W_OPT_STRING, &output, "DIR",
     "model.onnx, model.json, metrics.json and curve.svg go there (trained)", 0, 0},
    {"threads", W_OPT_INT, &n_threads, "N",
     "threads of a step; default: as many as there are CPUs; the result does not depend on it", 1,
     256},
    {"checkpoint-s", W_OPT_DOUBLE, &checkpoint_s, "S",
     "seconds between checkpoints; default: the spec's, or 30", 0.01, 1e6},
    {"fresh", W_OPT_FLAG, &fresh, NULL, "do not go on from a checkpoint in the output folder", 0,
     0},
    {"no-wait", W_OPT_FLAG, &no_wait, NULL, "with a Redis: print the job's id and do not follow it",
     0, 0},
    {0}};

static char folder[PATH_MAX];

static double number(const json_t *o, const char *key) {
    return json_number_value(json_object_get(o, key));
}

static void on_progress(json_t *p) {
    char what[160];
    const char *key;
    json_t *value;
    size_t n = (size_t)snprintf(what, sizeof what, "epoch %.0f/%.0f loss %.4f", number(p, "epoch"),
                                number(p, "epochs"), number(p, "loss"));
    if (w_globals.json) return;
    json_object_foreach(json_object_get(p, "metrics"), key, value) if (n < 100) n +=
        (size_t)snprintf(what + n, sizeof what - n, " %.40s %.4f", key, json_number_value(value));
    w_progress(what, (uint64_t)number(p, "step"), (uint64_t)number(p, "steps"),
               number(p, "samples_per_s"), number(p, "eta_s"));
}

static void on_point(json_t *point) {
    if (!json_object_get(point, "step")) w_cli_epoch(point);
}

static int on_done(json_t *result, json_t *envelope) {
    json_t *value;
    const char *key;
    (void)envelope;
    if (w_globals.json)
        return W_EXIT_OK; /* the lines of the epochs are the output; metrics.json has the rest */
    printf("%.0f rows, %.0f epochs in %.1f s", number(result, "train_rows"),
           number(result, "epochs"), number(result, "seconds"));
    json_object_foreach(json_object_get(result, "test"), key, value) {
        if (json_is_number(value)) /* a confusion matrix is in metrics.json */
            printf("%s %s %.5g", strcmp(key, "loss") ? "," : "; test:", key, json_number_value(value));
    }
    if (*folder)
        printf(" → %s/model.onnx\n", output);
    else
        putchar('\n');
    if (number(result, "version") > 0)
        printf("published as %s@%.0f\n", json_string_value(json_object_get(result, "model")),
               number(result, "version"));
    return W_EXIT_OK;
}

static void remove_checkpoints(void) {
    DIR *d = opendir(folder);
    for (struct dirent *e; d && (e = readdir(d));)
        if (strncmp(e->d_name, ".train-", 7) == 0) unlinkat(dirfd(d), e->d_name, 0);
    if (d) closedir(d);
}

static int train_spec(json_t *spec) {
    int rc;
    if (!w_cli_spec_output(spec, &output, "trained", folder, sizeof folder, &rc)) return rc;
    if (fresh && output) remove_checkpoints();
    json_t *fit = json_object_get(spec, "fit");
    if (checkpoint_s > 0 && (!fit || json_is_object(fit))) {
        if (!fit) json_object_set_new(spec, "fit", fit = json_object());
        json_object_set_new(fit, "checkpoint_s", json_real(checkpoint_s));
    }
    const struct w_cli_training t = {.op = "train",
                                     .params = spec,
                                     .output = output ? folder : NULL,
                                     .threads = n_threads,
                                     .no_wait = no_wait,
                                     .progress = on_progress,
                                     .point = on_point,
                                     .done = on_done};
    return w_cli_training(&t);
}

static int run(int argc, char **argv) {
    return w_cli_spec_run(argc, argv, "quern train SPEC.json --output DIR",
                          "one training spec is expected", train_spec);
}

static const struct w_command train = {
    .name = "train",
    .args = "SPEC.json [--output DIR]",
    .summary = "Train a model from a spec in Keras's words",
    .help =
        "The spec names model, data, compile and fit; paths in it are relative to its folder. "
        "With --json a line an\n"
        "epoch goes to standard output. Without a configured Redis it starts a private "
        "redis-server and a worker of\n"
        "its own; a run that was stopped then goes on when the same command is given again. With "
        "one, the job goes to\n"
        "its queue. What the spec publishes becomes a new version in the store --models.",
    .options = options,
    .takes_config = true,
    .run = run,
};
W_COMMAND(train);
