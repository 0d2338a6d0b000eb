/* quern model operators: what the engine runs, from its own table: ops/OPERATORS.md is made of it.
 */
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>

#include "ops/ops.h"
#include "worker/cli/cli.h"

static void print_line(const struct op_operator *o) {
    json_t *line = json_pack("{s:s,s:s,s:i,s:b,s:b,s:b,s:b}", "domain", o->domain, "name", o->name,
                             "since", o->since, "gradient", o->gradient, "fast", o->fast,
                             "in_place", o->in_place, "dynamic", o->dynamic);
    if (line && o->until) json_object_set_new(line, "until", json_integer(o->until));
    char *text = line ? json_dumps(line, JSON_COMPACT) : NULL;
    if (text) puts(text);
    free(text);
    json_decref(line);
}

static void print_one(void *user, const struct op_operator *o) {
    (void)user;
    if (w_globals.json) {
        print_line(o);
        return;
    }
    char opsets[32];
    if (o->until)
        snprintf(opsets, sizeof opsets, "%d-%d", o->since, o->until);
    else
        snprintf(opsets, sizeof opsets, "%d-", o->since);
    printf("%-26s %-34s %-7s%s%s%s%s\n", *o->domain ? o->domain : "ai.onnx", o->name, opsets,
           o->gradient ? " gradient" : "", o->fast ? " fast" : "", o->in_place ? " in-place" : "",
           o->dynamic ? " dynamic" : "");
}

static int run(int argc, char **argv) {
    (void)argv;
    if (argc) return w_report(W_EXIT_USAGE, "usage", NULL, "model operators takes no words");
    op_each_operator(print_one, NULL);
    return W_EXIT_OK;
}

static const struct w_command model_operators = {
    .name = "model operators",
    .summary = "List the operators of the engine",
    .help = "A line each: domain, name, opsets; gradient: training goes through it, fast: it has a "
            "fast form beside the plain\n"
            "one, in-place: it may write over its input, dynamic: shapes of outputs depend on "
            "data.",
    .run = run,
};
W_COMMAND(model_operators);
