/* A weight that is looked up by rows (an embedding): its gradient is that of the rows of the batch, added up in the order in which they
 * come, as GatherGrad would; the rows are packed together with their states, updated by the optimiser as if they were the weight, and
 * put back. So a step costs what the batch has, and not what the vocabulary has. See ops_train.h for what this means for moments. */
#include <stdlib.h>
#include <string.h>

#include "ops/train/train.h"

struct op_rows *op__rows_create(int64_t n_rows) {
    struct op_rows *r = calloc(1, sizeof *r);
    if (r && n_rows < INT32_MAX) r->at = malloc((size_t)n_rows * sizeof *r->at + 1);
    if (!r || !r->at) {
        free(r);
        return NULL;
    }
    memset(r->at, -1, (size_t)n_rows * sizeof *r->at);
    return r;
}

void op__rows_destroy(struct op_rows *r) {
    if (!r) return;
    for (int k = 0; k <= OP__STATES_MAX; k++) free(r->packed[k]);
    free(r->list);
    free(r->at);
    free(r);
}

enum op_status op__rows_collect(struct op_rows *r, const struct op_tensor *indices, const float *dy, int64_t each, int64_t n_rows, float **sums) {
    const int64_t n = op_tensor_count(indices);
    const bool wide = indices->dtype == OP_I64;
    for (int64_t i = 0; i < r->n; i++) r->at[r->list[i]] = -1;
    r->n = 0;
    if (n > r->room) {
        int64_t *list = realloc(r->list, (size_t)n * sizeof *list);
        if (list) r->list = list;
        float *grown = list ? realloc(*sums, (size_t)(n * each) * sizeof **sums + 1) : NULL;
        if (!grown) return OP_NOMEM;
        *sums = grown;
        r->room = n;
    }
    for (int64_t i = 0; i < n; i++) {
        int64_t row = wide ? ((const int64_t *)indices->data)[i] : ((const int32_t *)indices->data)[i];
        if (row < 0) row += n_rows;
        int32_t *at = &r->at[row]; /* in range: Gather has looked */
        float *to = *sums + (*at < 0 ? r->n : *at) * each;
        if (*at < 0) {
            *at = (int32_t)r->n;
            r->list[r->n++] = row;
            memset(to, 0, (size_t)each * sizeof *to);
        }
        for (int64_t k = 0; k < each; k++) to[k] += dy[i * each + k];
    }
    return OP_OK;
}

static void move(const struct op_rows *r, float *whole, float *packed, int64_t each, bool back) {
    for (int64_t i = 0; i < r->n; i++)
        memcpy(back ? whole + r->list[i] * each : packed + i * each, back ? packed + i * each : whole + r->list[i] * each, (size_t)each * sizeof *packed);
}

bool op__rows_pack(struct op_rows *r, const struct op_weight *w, int n_states, struct op_weight *dst) {
    const int64_t each = w->value.dims[1], n = r->n * each;
    for (int k = 0; k <= n_states && n > r->n_packed; k++) {
        float *grown = realloc(r->packed[k], (size_t)n * sizeof *grown);
        if (!grown) return false;
        r->packed[k] = grown;
    }
    if (n > r->n_packed) r->n_packed = n;
    *dst = (struct op_weight){.value = {.dtype = OP_F32, .rank = 2, .dims = {r->n, each}, .data = r->packed[0]}};
    move(r, w->value.data, r->packed[0], each, false);
    for (int k = 0; k < n_states; k++) move(r, w->state[k], dst->state[k] = r->packed[1 + k], each, false);
    return true;
}

void op__rows_unpack(const struct op_rows *r, const struct op_weight *packed, int n_states, struct op_weight *w) {
    const int64_t each = w->value.dims[1];
    move(r, w->value.data, packed->value.data, each, true);
    for (int k = 0; k < n_states; k++) move(r, w->state[k], packed->state[k], each, true);
}
