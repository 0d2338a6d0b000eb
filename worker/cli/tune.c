/* quern tune: a training spec with a section "tune" becomes the best of many trainings, through the
 * queue (training.c). */
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "worker/cli/training.h"
#include "worker/daemon/cpus.h"

#define TRIALS_SHOWN 20

static const char *output;
static bool no_wait, all;
static struct w_option options[] = {
    {"output", W_OPT_STRING, &output, "DIR",
     "the best trial's model.onnx, model.json, metrics.json, curve.svg, and study.json (tuned)", 0,
     0},
    {"all", W_OPT_FLAG, &all, NULL, "list all trials in the end, not only the best 20", 0, 0},
    {"no-wait", W_OPT_FLAG, &no_wait, NULL, "with a Redis: print the job's id and do not follow it",
     0, 0},
    {0}};

static char folder[PATH_MAX];

static double number(const json_t *o, const char *key) {
    return json_number_value(json_object_get(o, key));
}

static void on_progress(json_t *p) {
    char what[160];
    int n = snprintf(what, sizeof what, "tune: ");
    if (w_globals.json || !json_object_get(p, "trial")) return;
    if (json_object_get(p, "best"))
        n += snprintf(what + n, sizeof what - (size_t)n, "best %.40s %.5g (trial %.0f), ",
                      json_string_value(json_object_get(p, "objective")), number(p, "best"),
                      number(p, "best_trial"));
    snprintf(what + n, sizeof what - (size_t)n, "trial %.0f epoch %.0f", number(p, "trial"),
             number(p, "epoch"));
    w_progress(what, (uint64_t)number(p, "done"), (uint64_t)number(p, "total"),
               number(p, "samples_per_s"), -1);
}

/* --json: the epochs of all trials, a line each. */
static void on_point(json_t *point) {
    if (w_globals.json) w_cli_epoch(point);
}

static void print_trial(json_t *trial) {
    const char *path, *error = json_string_value(json_object_get(trial, "error"));
    json_t *value, *v = json_object_get(trial, "value");
    char shown[24] = "";
    if (json_is_number(v)) snprintf(shown, sizeof shown, "%.6g", json_number_value(v));
    printf("%5.0f  %-7s %11s %6.0f", number(trial, "trial"),
           json_string_value(json_object_get(trial, "state")), shown, number(trial, "epochs"));
    json_object_foreach(json_object_get(trial, "params"), path, value) {
        const char *last = strrchr(path, '.');
        char *text = json_dumps(value, JSON_ENCODE_ANY | JSON_COMPACT | JSON_REAL_PRECISION(4));
        printf("  %s=%s", last ? last + 1 : path, text ? text : "");
        free(text);
    }
    if (error) printf("  %.100s", error);
    putchar('\n');
}

static int on_done(json_t *result, json_t *envelope) {
    size_t i;
    json_t *trial, *trials = json_object_get(result, "trials"),
                   *best = json_object_get(result, "best"), *value;
    const char *key;
    (void)envelope;
    if (w_globals.json) {
        json_dumpf(result, stdout, JSON_COMPACT);
        putchar('\n');
        return W_EXIT_OK;
    }
    printf("trial  state   %11.11s epochs\n",
           json_string_value(json_object_get(result, "objective")));
    json_array_foreach(trials, i, trial) if (all || i < TRIALS_SHOWN) print_trial(trial);
    if (!all && json_array_size(trials) > TRIALS_SHOWN)
        printf("and %zu more (--all)\n", json_array_size(trials) - TRIALS_SHOWN);
    printf("%.0f done, %.0f pruned, %.0f failed; best: trial %.0f, %s %.6g", number(result, "done"),
           number(result, "pruned"), number(result, "failed"), number(best, "trial"),
           json_string_value(json_object_get(result, "objective")), number(best, "value"));
    json_object_foreach(json_object_get(best, "test"), key, value) {
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

static int tune_spec(json_t *spec) {
    int rc;
    json_int_t parallel =
        json_integer_value(json_object_get(json_object_get(spec, "tune"), "parallelism"));
    int64_t lanes = w_cpus();
    if (!w_cli_spec_output(spec, &output, "tuned", folder, sizeof folder, &rc)) return rc;
    if (parallel > 0 && parallel < lanes) lanes = parallel;
    const struct w_cli_training t = {.op = "tune",
                                     .params = spec,
                                     .output = output ? folder : NULL,
                                     .lanes = lanes,
                                     .no_wait = no_wait,
                                     .progress = on_progress,
                                     .point = on_point,
                                     .done = on_done};
    return w_cli_training(&t);
}

static int run(int argc, char **argv) {
    return w_cli_spec_run(argc, argv, "quern tune SPEC.json --output DIR",
                          "one training spec with a section \"tune\" is expected", tune_spec);
}

static const struct w_command tune = {
    .name = "tune",
    .args = "SPEC.json [--output DIR]",
    .summary = "Search hyper-parameters of a training spec",
    .help = "The spec's section \"tune\" says what to vary, how to search and what to look at; its "
            "trials run on all lanes of\n"
            "all workers of the queue. Without a configured Redis it starts a private "
            "redis-server and a worker of its own.\n"
            "Exit code 0 where at least one trial was done.",
    .options = options,
    .takes_config = true,
    .run = run,
};
W_COMMAND(tune);
