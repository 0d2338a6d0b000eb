/* Runs the registered passes (graph.h) in their order, each over every graph of the model. */
#include "ops/model.h"

#include <stdlib.h>

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

enum op_status op__passes_run(struct op_graph *g, struct op_error *err) {
    // cppcheck-suppress comparePointers ; both ends of one section
    size_t n = (size_t)(__stop_quern_passes - __start_quern_passes);
    const struct op_pass **all = malloc((n + 1) * sizeof *all);
    if (!all) return op__model_fail(g->model, err, OP_NOMEM, "out of memory");
    for (size_t i = 0; i < n; i++) all[i] = __start_quern_passes[i];
    qsort(all, n, sizeof *all, by_order);
    enum op_status st = OP_OK;
    for (size_t i = 0; i < n && st == OP_OK; i++) {
        if (g->model->transform && all[i]->order >= OP_PASS_FUSIONS && all[i]->order < OP_PASS_FUSIONS_END) continue; /* no gradients */
        struct turn t = {all[i], err, 0};
        st = op__graph_each(g, run_one, &t);
    }
    free(all);
    return st;
}
