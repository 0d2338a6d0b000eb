/* The table of operators: the linker gathers every OP_REGISTER into the section quern_ops, and the first look-up
 * sorts it into a hash table. Several descriptors of one name are forms for different opsets. */
#include "ops/grad.h"
#include "ops/op.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

extern const struct op_desc *const __start_quern_ops[] __attribute__((weak, visibility("hidden")));
extern const struct op_desc *const __stop_quern_ops[] __attribute__((weak, visibility("hidden")));

#define SLOTS 2048 /* a power of two, several times the operators of ONNX */

static const struct op_desc *slots[SLOTS];
static pthread_once_t once = PTHREAD_ONCE_INIT;

static uint32_t hash_of(const char *domain, const char *name) {
    uint32_t h = 2166136261u; /* FNV-1a */
    for (; *domain; domain++) h = (h ^ (uint8_t)*domain) * 16777619u;
    for (; *name; name++) h = (h ^ (uint8_t)*name) * 16777619u;
    return h;
}

static void fill(void) {
    // cppcheck-suppress comparePointers ; both ends of one section
    for (const struct op_desc *const *d = __start_quern_ops; d < __stop_quern_ops; d++) {
        uint32_t at = hash_of((*d)->domain ? (*d)->domain : "", (*d)->name);
        while (slots[at & (SLOTS - 1)]) at++;
        slots[at & (SLOTS - 1)] = *d;
    }
}

const struct op_desc *op__desc_find(const char *domain, const char *name, int opset) {
    pthread_once(&once, fill);
    if (strcmp(domain, "ai.onnx") == 0) domain = "";
    for (uint32_t at = hash_of(domain, name); slots[at & (SLOTS - 1)]; at++) {
        const struct op_desc *d = slots[at & (SLOTS - 1)];
        if (strcmp(d->name, name) != 0 || strcmp(d->domain ? d->domain : "", domain) != 0) continue;
        if (opset <= 0 || (opset >= d->since && (!d->until || opset <= d->until))) return d;
    }
    return NULL;
}

static int by_name(const void *a, const void *b) {
    const struct op_desc *x = *(const struct op_desc *const *)a, *y = *(const struct op_desc *const *)b;
    int order = strcmp(x->domain ? x->domain : "", y->domain ? y->domain : "");
    if (!order) order = strcmp(x->name, y->name);
    return order ? order : x->since - y->since;
}

void op_each_operator(void (*fn)(void *user, const struct op_operator *o), void *user) {
    // cppcheck-suppress comparePointers ; both ends of one section
    size_t n = (size_t)(__stop_quern_ops - __start_quern_ops);
    const struct op_desc **all = malloc((n ? n : 1) * sizeof *all);
    if (!all) return;
    memcpy(all, __start_quern_ops, n * sizeof *all);
    qsort(all, n, sizeof *all, by_name);
    for (size_t i = 0; i < n; i++) {
        const struct op_desc *d = all[i];
        const struct op_operator o = {.domain = d->domain ? d->domain : "", .name = d->name, .since = d->since, .until = d->until,
                                      .gradient = op__grad_find(d) != NULL, .fast = d->ref != NULL, .in_place = d->inplace || d->flags & OP_F_VIEW,
                                      .dynamic = d->flags & OP_F_DYNAMIC};
        fn(user, &o);
    }
    free(all);
}
