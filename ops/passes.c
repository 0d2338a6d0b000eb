/* Runs the registered passes (graph.h) in their order, each over every graph of the model. */
#include "ops/model.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

extern const struct op_pass *const __start_quern_passes[] __attribute__((weak, visibility("hidden")));
extern const struct op_pass *const __stop_quern_passes[] __attribute__((weak, visibility("hidden")));

struct turn {
    const struct op_pass *pass;
    struct op_error *err;
    int changed;
};

static enum op_status run_one(struct op_graph *g, void *user) {
    struct turn *t = user;
    enum op_status st = t->pass->run(g, &t->changed, t->err);
    op__graph_sweep(g);
    return st;
}

static int by_order(const void *a, const void *b) {
    const struct op_pass *x = *(const struct op_pass *const *)a, *y = *(const struct op_pass *const *)b;
    return x->order != y->order ? (x->order < y->order ? -1 : 1) : 0;
}

/* Whether `list`, names with commas between, has this one. */
static bool listed(const char *list, const char *name, size_t len) {
    for (;; list++) {
        const size_t n = strcspn(list, ",");
        if (n == len && memcmp(list, name, len) == 0) return true;
        list += n;
        if (!*list) return false;
    }
}

/* A name in the list that no pass has would silently switch off what the caller meant to try. */
static enum op_status check_list(struct op_graph *g, const char *list, const struct op_pass **all, size_t n_all, struct op_error *err) {
    char known[300] = "";
    for (size_t i = 0, at = 0; i < n_all && at < sizeof known; i++) {
        int w = snprintf(known + at, sizeof known - at, "%s%s", i ? "," : "", all[i]->name);
        at += w > 0 ? (size_t)w : 0;
    }
    for (const char *p = list; *p;) {
        const size_t n = strcspn(p, ",");
        if (!listed(known, p, n)) return op__model_fail(g->model, err, OP_BAD_VALUE, "there is no pass \"%.*s\"; there are %s", (int)(n < 60 ? n : 60), p, known);
        p += n + (p[n] == ',');
    }
    return OP_OK;
}

enum op_status op__passes_run(struct op_graph *g, enum op_pass_phase phase, struct op_error *err) {
    // cppcheck-suppress comparePointers ; both ends of one section
    size_t n = (size_t)(__stop_quern_passes - __start_quern_passes);
    const struct op_pass **all = malloc((n + 1) * sizeof *all);
    if (!all) return op__model_fail(g->model, err, OP_NOMEM, "out of memory");
    for (size_t i = 0; i < n; i++) all[i] = __start_quern_passes[i];
    qsort(all, n, sizeof *all, by_order);
    const char *only = g->model->options.passes;
    enum op_status st = only ? check_list(g, only, all, n, err) : OP_OK;
    for (size_t i = 0; i < n && st == OP_OK; i++) {
        if (only && !listed(only, all[i]->name, strlen(all[i]->name))) continue;
        if (phase == OP_PASSES_BEFORE_TRANSFORM && !all[i]->differentiable) continue;
        struct turn t = {all[i], err, 0};
        st = op__graph_each(g, run_one, &t);
    }
    free(all);
    return st;
}
