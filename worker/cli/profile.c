/* The nodes of a model by the time that they take. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "worker/cli/cli.h"
#include "worker/cli/profile.h"

struct node_time {
    char op_type[48], name[96];
    uint64_t ns, calls;
    double flops, bytes;
};

static struct node_time *find(struct w_profile *p, const char *op_type, const char *name) {
    for (size_t i = 0; i < p->n; i++) {
        struct node_time *t = &p->nodes[(p->next + i) % p->n];
        if (strncmp(t->name, name, sizeof t->name - 1) == 0 &&
            strncmp(t->op_type, op_type, sizeof t->op_type - 1) == 0) {
            p->next = (p->next + i + 1) % p->n;
            return t;
        }
    }
    if (p->n == p->cap) {
        size_t cap = p->cap ? p->cap * 2 : 256;
        struct node_time *all = realloc(p->nodes, cap * sizeof *all);
        if (!all) return NULL;
        p->nodes = all;
        p->cap = cap;
    }
    struct node_time *t = &p->nodes[p->n++];
    *t = (struct node_time){0};
    snprintf(t->op_type, sizeof t->op_type, "%s", op_type);
    snprintf(t->name, sizeof t->name, "%s", name);
    return t;
}

void w__profile_node(void *user, const char *op_type, const char *name, uint64_t ns, double flops,
                    double bytes) {
    struct node_time *t = find(user, op_type, name);
    if (!t) return;
    t->ns += ns;
    t->calls++;
    t->flops += flops;
    t->bytes += bytes;
}

static int by_time(const void *a, const void *b) {
    uint64_t x = ((const struct node_time *)a)->ns, y = ((const struct node_time *)b)->ns;
    return x < y ? 1 : x > y ? -1 : 0;
}

void w__profile_print(struct w_profile *p, size_t n_runs) {
    FILE *to = w_globals.json ? stderr : stdout;
    uint64_t total = 0;
    for (size_t i = 0; i < p->n; i++) total += p->nodes[i].ns;
    if (!n_runs || !total) return;
    qsort(p->nodes, p->n, sizeof *p->nodes, by_time);
    fprintf(to, "%7s %9s %9s %9s  %-24s %s\n", "share", "us/run", "GFLOP/s", "GB/s", "operator",
            "node");
    for (size_t i = 0; i < p->n; i++) {
        const struct node_time *t = &p->nodes[i];
        double ns = t->ns ? (double)t->ns : 1;
        fprintf(to, "%6.2f%% %9.1f %9.1f %9.1f  %-24s %s\n", 100 * ns / (double)total,
                ns / 1e3 / (double)n_runs, t->flops / ns, t->bytes / ns, t->op_type, t->name);
    }
}

void w__profile_finish(struct w_profile *p) {
    free(p->nodes);
    *p = (struct w_profile){0};
}
