/* quern evaluate: how well a model does on labelled rows, through the queue (training.c). */
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "worker/cli/training.h"
#include "worker/store/store.h"

#define CELLS_MAX 20 /* classes of a matrix that is printed */

static const char *model, *data, *target, *metrics, *part = "test", *output;
static bool no_header;
static struct w_option options[] = {
    {"model", W_OPT_STRING, &model, "M",
     "name, name@version, name@label, or (without a Redis) a path", 0, 0},
    {"data", W_OPT_STRING, &data, "SET",
     "a set in a spec's words, {\"x\": PATH, \"y\": PATH}; or a file of it, or of a whole training "
     "spec; or a table, or a folder of folders of pictures",
     0, 0},
    {"set", W_OPT_STRING, &part, "NAME", "of a training spec: train, validation, test (test)", 0,
     0},
    {"target", W_OPT_STRING, &target, "COLUMN", "of a table: the column of y (name or number)", 0,
     0},
    {"no-header", W_OPT_FLAG, &no_header, NULL, "the table's first line is a row", 0, 0},
    {"metrics", W_OPT_STRING, &metrics, "A,B,…",
     "such as accuracy,f1_score; default: accuracy, or those of numbers", 0, 0},
    {"output", W_OPT_STRING, &output, "NAME", "the model's output to look at; default: the first",
     0, 0},
    {0}};

/* --- what to look at -------------------------------------------------------------------------- */

static json_t *words_of(const char *list) {
    json_t *o = json_array();
    for (const char *p = list; *p;) {
        size_t n = strcspn(p, ",");
        if (n) json_array_append_new(o, json_stringn(p, n));
        p += n + (p[n] == ',');
    }
    return o;
}

/* A table or a folder. */
static json_t *set_of_path(void) {
    char *end;
    json_t *set = json_pack("{s:s}", "x", data);
    long column = target ? strtol(target, &end, 10) : 0;
    if (target)
        json_object_set_new(set, "target",
                            *target && !*end ? json_integer(column) : json_string(target));
    if (no_header) json_object_set_new(set, "header", json_false());
    return set;
}

static json_t *read_set(int *rc) {
    const char *dot = strrchr(data, '.'), *beside = "";
    json_error_t why;
    json_t *o;
    if (*data == '{') {
        o = json_loads(data, JSON_REJECT_DUPLICATES, &why);
        if (!o)
            *rc = w_report(W_EXIT_USAGE, "usage", NULL, "--data is no JSON: %s (column %d)",
                           why.text, why.column);
    } else if (dot && strcmp(dot, ".json") == 0) {
        o = w_cli_json_read(data, rc);
        beside = data;
    } else {
        o = set_of_path();
    }
    if (!o) return NULL;
    json_t *sets = json_object_get(o, "data"), *set = json_object_get(sets, part);
    if (sets && !set) {
        *rc = w_report(W_EXIT_FAILED, "bad_job", "--set train, or a set of its own",
                       "%s has no data.%s", data, part);
        json_decref(o);
        return NULL;
    }
    if (sets) {
        json_incref(set);
        json_decref(o);
        o = set;
    }
    w_cli_set_paths(o, beside);
    return o;
}

/* --- what is seen ----------------------------------------------------------------------------- */

static void on_progress(json_t *p) {
    if (json_object_get(p, "total"))
        w_progress("evaluate", (uint64_t)json_number_value(json_object_get(p, "done")),
                   (uint64_t)json_number_value(json_object_get(p, "total")),
                   json_number_value(json_object_get(p, "per_s")),
                   json_number_value(json_object_get(p, "eta_s")));
}

static void print_matrix(json_t *matrix, json_t *labels) {
    size_t n = json_array_size(matrix), i, k;
    json_t *row, *cell;
    if (n < 2 || n > CELLS_MAX) return;
    puts("rows: what it is; columns: what the model says");
    for (i = 0; i <= n; i++) {
        const char *name = i ? json_string_value(json_array_get(labels, i - 1)) : "";
        if (i && !name)
            printf("%12zu", i - 1);
        else
            printf("%12.12s", name ? name : "");
        row = i ? json_array_get(matrix, i - 1) : NULL;
        for (k = 0; !row && k < n; k++) {
            const char *column = json_string_value(json_array_get(labels, k));
            column ? printf(" %7.7s", column) : printf(" %7zu", k);
        }
        json_array_foreach(row, k, cell) {
            printf(" %7lld", json_integer_value(cell));
        }
        putchar('\n');
    }
}

static int on_done(json_t *result, json_t *envelope) {
    json_t *value;
    const char *key;
    (void)envelope;
    if (w_globals.json) {
        json_dumpf(result, stdout, JSON_COMPACT | JSON_REAL_PRECISION(10));
        putchar('\n');
        return W_EXIT_OK;
    }
    printf("%lld rows in %.2f s:", json_integer_value(json_object_get(result, "rows")),
           json_number_value(json_object_get(result, "seconds")));
    json_object_foreach(json_object_get(result, "metrics"), key, value) {
        printf(" %s %.5g", key, json_number_value(value));
    }
    putchar('\n');
    print_matrix(json_object_get(result, "confusion_matrix"), json_object_get(result, "labels"));
    return W_EXIT_OK;
}

/* --- the command ------------------------------------------------------------------------------ */

static int evaluate_set(json_t *set) {
    struct w_model_place place;
    struct w_daemon_alias alias = {place.name, place.path};
    struct w_error err = {0};
    json_t *params = json_pack("{s:O}", "data", set);
    if (metrics) json_object_set_new(params, "metrics", words_of(metrics));
    if (output) json_object_set_new(params, "output", json_string(output));
    struct w_cli_training t = {.op = "evaluate",
                               .params = params,
                               .model = model,
                               .progress = on_progress,
                               .done = on_done};
    int rc = W_EXIT_OK;
    if (!w_globals.redis_given) {
        if (!w_model_find(model, w_config()->models, &place, &err))
            rc = w_report(W_EXIT_NOT_FOUND, err.code, NULL, "%s", err.text);
        t.alias = &alias;
        t.model = place.name;
    }
    if (rc == W_EXIT_OK) rc = w_cli_training(&t);
    json_decref(params);
    return rc;
}

static int run(int argc, char **argv) {
    int rc = W_EXIT_FAILED;
    if (argc)
        return w_report(W_EXIT_USAGE, "usage", "see: quern help evaluate",
                        "evaluate takes no words, \"%.60s\" is one", argv[0]);
    if (!model || !data)
        return w_report(W_EXIT_USAGE, "usage", "see: quern help evaluate",
                        "evaluate needs --model and --data; --%s is missing",
                        model ? "data" : "model");
    json_t *set = read_set(&rc);
    if (!set) return rc;
    rc = evaluate_set(set);
    json_decref(set);
    return rc;
}

static const struct w_command evaluate = {
    .name = "evaluate",
    .args = "--model M --data SET [--metrics A,B]",
    .summary = "Measure a model on labelled rows",
    .help = "Prints the metrics and, for classes, the confusion matrix; with --json the result as "
            "one object. Without a\n"
            "configured Redis it starts a private redis-server and a worker of its own.",
    .options = options,
    .takes_config = true,
    .run = run,
};
W_COMMAND(evaluate);
