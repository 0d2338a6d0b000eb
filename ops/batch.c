/* Whether rows can be stacked: op_model_batchable.
 *
 * A model is batchable where dimension 0 of every input is symbolic, and plans for two batch sizes give outputs that differ in
 * dimension 0 alone, in step with the batch. Other symbolic dimensions get stand-in sizes: the same symbol the same size; a
 * few sizes are tried, since not every one is possible (a convolution needs enough pixels, an attention fits its mask).
 *
 * Shapes alone would call a recurrent net over [time, batch, features] batchable, or a softmax over the rows. So the model
 * is also run, on two random rows together and on each alone: results that differ mean that rows look at one another.
 * Where that run is too costly or refuses the random values, the shapes decide. */
#include "ops/session.h"

#include <stdlib.h>
#include <string.h>

static const int64_t stand_ins[] = {16, 1, 64, 224, 512, 2};

/* The inputs' shapes for this batch size; a symbol that is the batch's elsewhere follows it. */
static void fill_shapes(const struct op_model *m, int64_t batch, int64_t stand_in, struct op_tensor *in, int n) {
    for (int i = 0; i < n; i++) {
        const struct op_io *io = &m->inputs[i];
        in[i] = (struct op_tensor){.dtype = io->dtype, .rank = io->rank};
        for (int d = 0; d < io->rank; d++) {
            const char *symbol = io->symbols[d], *of_batch = m->inputs[0].symbols[0];
            in[i].dims[d] = d == 0 ? batch : io->dims[d] >= 0 ? io->dims[d] : symbol && of_batch && strcmp(symbol, of_batch) == 0 ? batch : stand_in;
        }
    }
}

/* 1 and the outputs' shapes; 0 where some depend on data or the plan fails; -1 without memory. */
static int shapes_for(struct op_session *s, const struct op_tensor *in, int n, struct op_tensor *out) {
    struct op_error err = {0};
    const struct op_tensor **list = calloc((size_t)s->m->graph->n_inputs + 1, sizeof *list);
    if (!list) return -1;
    for (int i = 0; i < n; i++) list[i] = &in[i];
    struct op_plan *p = op__plan_create(s->m, NULL, s->m->graph, list, s->m->graph->n_inputs, false, &err);
    free(list);
    if (!p) return err.code == OP_NOMEM ? -1 : 0;
    int good = 1;
    for (int i = 0; i < p->n_outputs; i++) {
        out[i] = p->slots[p->outputs[i]].t;
        out[i].data = NULL;
        if (p->spots[p->outputs[i]].place == OP__PLACE_DYNAMIC) good = 0;
    }
    op__plan_destroy(p);
    return good;
}

static bool rows_apart(const struct op_tensor *a, int64_t batch_a, const struct op_tensor *b, int64_t batch_b) {
    if (a->rank < 1 || a->rank != b->rank || a->dims[0] != batch_a || b->dims[0] != batch_b) return false;
    for (int d = 1; d < a->rank; d++)
        if (a->dims[d] != b->dims[d]) return false;
    return true;
}

/* --- trying it --------------------------------------------------------------------------------- */

#define TRIAL_FLOPS_MAX 2e10
#define TRIAL_TOLERANCE 1e-3

static bool is_number(enum op_type t) {
    return t == OP_F32 || t == OP_F64 || t == OP_I64 || t == OP_I32 || t == OP_BOOL || t == OP_U8 || t == OP_I8;
}

/* Values that differ from row to row: reals in [-1, 1), integers 0 and 1, which are indices of nearly anything. */
static bool fill_values(struct op_tensor *in, int n) {
    uint64_t state = 1;
    for (int i = 0; i < n; i++) {
        int64_t bytes = op_tensor_bytes(&in[i]), count = op_tensor_count(&in[i]), size = (int64_t)op_type_size(in[i].dtype);
        in[i].data = bytes >= 0 && is_number(in[i].dtype) ? calloc(1, bytes ? (size_t)bytes : 1) : NULL;
        if (!in[i].data) return false;
        for (int64_t k = 0; k < count; k++) {
            state = state * 6364136223846793005u + 1442695040888963407u;
            float unit = (float)(state >> 40) * 0x1p-23f - 1;
            if (in[i].dtype == OP_F32) ((float *)in[i].data)[k] = unit;
            else if (in[i].dtype == OP_F64) ((double *)in[i].data)[k] = (double)unit;
            else ((uint8_t *)in[i].data)[k * size] = state >> 63;
        }
    }
    return true;
}

static double value_at(const struct op_tensor *t, int64_t i) {
    switch (t->dtype) {
    case OP_F32: return (double)((const float *)t->data)[i];
    case OP_F64: return ((const double *)t->data)[i];
    case OP_I64: return (double)((const int64_t *)t->data)[i];
    case OP_I32: return ((const int32_t *)t->data)[i];
    default: return ((const uint8_t *)t->data)[i];
    }
}

/* Whether `alone`, of one row, is row `row` of `both`. What has no numbers to compare passes. */
static bool same_row(const struct op_tensor *both, const struct op_tensor *alone, int row) {
    int64_t n = op_tensor_count(alone);
    if (!is_number(alone->dtype) || alone->dtype != both->dtype || op_tensor_count(both) != 2 * n) return alone->dtype == both->dtype && !is_number(alone->dtype);
    for (int64_t i = 0; i < n; i++) {
        double x = value_at(both, row * n + i), y = value_at(alone, i), d = x - y;
        if (x != y && (d > TRIAL_TOLERANCE || d < -TRIAL_TOLERANCE) && !(x != x && y != y)) return false;
    }
    return true;
}

/* `in` are two rows with data; `both` is for the outputs' copies. True unless the runs show that rows are not apart. */
static bool trial(struct op_session *s, struct op_tensor *in, int n, struct op_tensor *both) {
    struct op_error err;
    const struct op_tensor *out;
    int n_out = s->m->graph->n_outputs;
    double flops;
    if (op_session_plan(s, in, n, NULL, &flops, &err) != OP_OK || flops > TRIAL_FLOPS_MAX || !fill_values(in, n)) return true;
    if (op_session_run(s, in, n, &out, &err) != OP_OK) return true;
    for (int i = 0; i < n_out; i++)
        if (op__tensor_clone(&both[i], &out[i]) != OP_OK) return true;
    bool apart = true;
    for (int row = 0; row < 2 && apart; row++) {
        for (int i = 0; i < n; i++) {
            in[i].dims[0] = 1;
            int64_t bytes = op_tensor_bytes(&in[i]);
            if (row) memmove(in[i].data, (char *)in[i].data + bytes, (size_t)bytes);
        }
        if (op_session_run(s, in, n, &out, &err) != OP_OK) return false; /* two together are fine, one is not */
        for (int i = 0; i < n_out && apart; i++) apart = same_row(&both[i], &out[i], row);
    }
    return apart;
}

static int ask(struct op_session *s) {
    const struct op_model *m = s->m;
    int n = m->n_inputs_required, n_out = m->graph->n_outputs, answer = 0;
    struct op_tensor *in = calloc((size_t)n + 1, sizeof *in), *a = calloc((size_t)n_out + 1, sizeof *a), *b = calloc((size_t)n_out + 1, sizeof *b);
    if (!in || !a || !b) answer = -1;
    for (size_t k = 0; k < sizeof stand_ins / sizeof *stand_ins && !answer; k++) {
        fill_shapes(m, 2, stand_ins[k], in, n);
        int good = shapes_for(s, in, n, a);
        fill_shapes(m, 3, stand_ins[k], in, n);
        if (good == 1) good = shapes_for(s, in, n, b);
        if (good < 0) answer = -1;
        if (good != 1) continue;
        answer = 1;
        for (int i = 0; i < n_out; i++)
            if (!rows_apart(&a[i], 2, &b[i], 3)) answer = 0;
        fill_shapes(m, 2, stand_ins[k], in, n);
        memset(a, 0, (size_t)n_out * sizeof *a);
        if (answer && !trial(s, in, n, a)) answer = 0;
        break;
    }
    for (int i = 0; in && i < n; i++) free(in[i].data);
    for (int i = 0; a && i < n_out; i++) op_tensor_free(&a[i]);
    free(in);
    free(a);
    free(b);
    return answer;
}

int op_model_batchable(struct op_model *m, struct op_error *err) {
    struct op_error own;
    if (!err) err = &own;
    *err = (struct op_error){0};
    pthread_mutex_lock(&m->lock);
    int answer = m->batchable;
    pthread_mutex_unlock(&m->lock);
    if (answer != -2) return answer;
    answer = m->n_inputs_required > 0 && m->graph->n_outputs > 0;
    for (int i = 0; i < m->n_inputs_required; i++)
        if (m->inputs[i].kind != OP_KIND_TENSOR || m->inputs[i].rank < 1 || m->inputs[i].dims[0] >= 0) answer = 0;
    for (int i = 0; i < m->graph->n_outputs; i++) /* a declared size beats what the stand-ins may suggest */
        if (m->outputs[i].rank == 0 || (m->outputs[i].rank > 0 && m->outputs[i].dims[0] > 1)) answer = 0;
    if (answer) {
        struct op_session *s = op_session_create(m, NULL, err);
        answer = s ? ask(s) : -1;
        op_session_destroy(s);
    }
    pthread_mutex_lock(&m->lock);
    if (answer >= 0) m->batchable = answer;
    pthread_mutex_unlock(&m->lock);
    if (answer < 0 && err->code == OP_OK) op__model_fail(m, err, OP_NOMEM, "out of memory");
    return answer;
}

bool op__output_shapes(struct op_model *m, struct op_tensor *out) {
    int n = m->n_inputs_required, n_out = m->graph->n_outputs, good = 0;
    struct op_session *s = op_session_create(m, NULL, NULL);
    struct op_tensor *in = calloc((size_t)n + 1, sizeof *in), *other = calloc((size_t)n_out + 1, sizeof *other);
    for (int i = 0; i < n; i++)
        if (m->inputs[i].kind != OP_KIND_TENSOR || m->inputs[i].rank < 0) s = (op_session_destroy(s), NULL);
    for (size_t k = 0; s && in && other && k < sizeof stand_ins / sizeof *stand_ins && good != 1; k++) {
        /* Two sizes of the batch and of every other symbol: what differs is symbolic. */
        fill_shapes(m, 2, stand_ins[k], in, n);
        good = shapes_for(s, in, n, out);
        fill_shapes(m, 3, stand_ins[k] + 1, in, n);
        if (good == 1 && shapes_for(s, in, n, other) != 1) {
            fill_shapes(m, 3, stand_ins[k], in, n);
            good = shapes_for(s, in, n, other);
        }
    }
    for (int i = 0; i < n_out && good == 1; i++)
        for (int d = 0; d < out[i].rank; d++)
            if (out[i].dims[d] != other[i].dims[d]) out[i].dims[d] = -1;
    op_session_destroy(s);
    free(in);
    free(other);
    return good == 1;
}
