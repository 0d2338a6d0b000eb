/* quern pipeline steps: the steps of model.json with their parameters, from the same tables that
 * read and check them. */
#include "worker/cli/cli.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "worker/nearest.h"
#include "worker/pipeline/step.h"

static const char *kind_name(enum w_param_kind kind) {
    switch (kind) {
    case W_PARAM_INT:
        return "whole number";
    case W_PARAM_DOUBLE:
        return "number";
    case W_PARAM_BOOL:
        return "true or false";
    case W_PARAM_CHOICE:
        return "one of";
    case W_PARAM_FLOATS:
        return "number or list";
    case W_PARAM_TEXT:
        return "text";
    case W_PARAM_FILE:
        return "file";
    case W_PARAM_JSON:
        return "";
    }
    return "";
}

/* The i-th word of a list of choices, and its length. */
static const char *choice(const char *choices, int i, int *len) {
    while (i-- > 0) choices += strcspn(choices, " ") + 1;
    *len = (int)strcspn(choices, " ");
    return choices;
}

static void print_param(const struct w_param *p) {
    int len = 0;
    const char *word = p->choices ? choice(p->choices, (int)p->deflt, &len) : "";
    printf("    %-10s %s", p->name, kind_name(p->kind));
    if (p->kind == W_PARAM_CHOICE)
        printf(": %s", p->choices);
    else if (p->max != 0 || p->min != 0)
        printf(" from %.10g to %.10g", p->min, p->max);
    if (p->required)
        printf(", required");
    else if (p->kind == W_PARAM_CHOICE)
        printf(" [%.*s]", len, word);
    else if (p->kind == W_PARAM_BOOL)
        printf(" [%s]", p->deflt != 0 ? "true" : "false");
    else if ((p->kind == W_PARAM_INT || p->kind == W_PARAM_DOUBLE) && isfinite(p->deflt) &&
             p->deflt != 0)
        printf(" [%.10g]", p->deflt);
    if (p->help && p->kind != W_PARAM_CHOICE)
        printf("%s%s", *kind_name(p->kind) ? "; " : "", p->help);
    else if (p->help && strcmp(p->help, p->choices))
        printf("; %s", p->help);
    putchar('\n');
}

static void print_step(const struct w_step_desc *d) {
    printf("%s: %s\n    takes", d->name, d->summary);
    if (d->takes == (1u << W_TYPE_N) - 1) printf(" anything");
    for (int t = 0; t < W_TYPE_N && d->takes != (1u << W_TYPE_N) - 1; t++)
        if (d->takes & W_TAKES(t)) printf(" %s", w_type_name((enum w_type)t));
    printf(", gives %s\n", w_type_name(d->gives));
    for (const struct w_param *p = d->params; p && p->name; p++) print_param(p);
}

static const char *next_name(void *user, size_t i) {
    const struct w_step_desc *d = w__step_at(i);
    (void)user;
    return d ? d->name : NULL;
}

static int run(int argc, char **argv) {
    const struct w_step_desc *d = argc ? w__step_find(argv[0]) : NULL;
    if (argc > 1)
        return w_report(W_EXIT_USAGE, "usage", NULL, "one step's name, or nothing, is expected");
    if (argc && !d) {
        const char *near = w__nearest(argv[0], next_name, NULL);
        return w_report(W_EXIT_NOT_FOUND, "unknown_step", NULL, "there is no step \"%s\"%s%s%s",
                        argv[0], near ? "; did you mean \"" : "", near ? near : "",
                        near ? "\"?" : "");
    }
    if (d) print_step(d);
    for (size_t i = 0; !d && w__step_at(i); i++) {
        if (i) putchar('\n');
        print_step(w__step_at(i));
    }
    return W_EXIT_OK;
}

static const struct w_command command = {.name = "pipeline steps",
                                         .args = "[STEP]",
                                         .summary = "the steps of model.json and their parameters",
                                         .run = run};
W_COMMAND(command);
