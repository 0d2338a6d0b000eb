/* Stacking and slicing. Inputs of one row alone are used where they lie; those of several are
 * copied behind each other into the lane's buffers. Outputs are slices of the session's memory,
 * which the next run overwrites: so each row is taken through the rest of its pipeline, and
 * reported, before that. In a chain (a pipeline with several runs) a row's slices are copied first,
 * since they may become its next inputs. */
#include <string.h>
#include <unistd.h>

#include "worker/task/rows.h"

struct job {
    struct w_lane *lane;
    struct w_model *model;
    int64_t rows_max;
    bool chain;
    w_row_fn *done;
    void *ctx;
};

static size_t bytes_of_row(const struct op_tensor *t) {
    int64_t rows = t->rank > 0 ? t->dims[0] : 1, count = op_tensor_count(t);
    return rows > 0 && count > 0 ? (size_t)(count / rows) * op_type_size(t->dtype) : 0;
}

static struct op_tensor slice(const struct op_tensor *t, int64_t first, int64_t n) {
    struct op_tensor s = *t;
    s.data = (char *)t->data + (size_t)first * bytes_of_row(t);
    s.dims[0] = n;
    return s;
}

bool w_rows_fit(const struct w_model *model, const struct w_row *a, const struct w_row *b) {
    if (model->sig.batching != W_BATCH_ROWS || a->n_inputs != b->n_inputs) return false;
    for (int i = 0; i < a->n_inputs; i++) {
        const struct op_tensor *x = &a->inputs[i], *y = &b->inputs[i];
        if (x->dtype != y->dtype || (i >= model->sig.n_inputs && x->dtype != OP_UNDEFINED))
            return false;
        if (x->dtype == OP_UNDEFINED) continue;
        if (x->rank != y->rank || x->rank < 1 || x->kind != OP_KIND_TENSOR ||
            y->kind != OP_KIND_TENSOR)
            return false;
        for (int k = 1; k < x->rank; k++)
            if (x->dims[k] != y->dims[k]) return false;
    }
    return true;
}

/* --- one run ---------------------------------------------------------------------------------- */

static bool run(struct job *j, const struct op_tensor *inputs, int n,
                const struct op_tensor **outputs, struct w_error *err) {
    struct op_error oe;
    struct op_session *s = w_lane_session(j->lane, j->model, err);
    if (!s) return false;
    w_lane_beat(j->lane);
    return op_session_run(s, inputs, n, outputs, &oe) == OP_OK ||
           w_fail_op(err, &oe, j->model->name);
}

/* A row of more rows than go at once: piece by piece, the outputs joined in its arena. */
static bool run_pieces(struct job *j, struct w_row *row, int64_t piece, struct op_tensor *joined,
                       struct w_error *err) {
    struct op_tensor inputs[W_INPUTS_MAX];
    int n_outputs = op_model_n_outputs(j->model->op);
    for (int64_t at = 0; at < row->n_rows; at += piece) {
        int64_t n = row->n_rows - at < piece ? row->n_rows - at : piece;
        const struct op_tensor *out;
        for (int i = 0; i < row->n_inputs; i++)
            inputs[i] = row->inputs[i].dtype == OP_UNDEFINED || i >= j->model->sig.n_inputs
                            ? row->inputs[i]
                            : slice(&row->inputs[i], at, n);
        if (w_lane_cancelled(j->lane)) return w_fail(err, "cancelled", "cancelled");
        if (!run(j, inputs, row->n_inputs, &out, err)) return false;
        for (int k = 0; k < n_outputs; k++) {
            size_t bytes = bytes_of_row(&out[k]);
            if (out[k].kind != OP_KIND_TENSOR || out[k].rank < 1 || out[k].dims[0] != n ||
                (at && bytes != bytes_of_row(&joined[k])))
                return w_fail(err, W_BAD_SHAPE,
                              "model \"%s\": output \"%s\" does not keep rows apart; send one row",
                              j->model->name, op_model_output(j->model->op, k)->name);
            if (at == 0) {
                joined[k] = out[k];
                joined[k].dims[0] = row->n_rows;
                joined[k].data = w_arena_array(&row->arena, (size_t)row->n_rows, bytes);
                if (!joined[k].data)
                    return w_fail(err, W_TOO_LARGE,
                                  "the outputs of %jd rows together are too large",
                                  (intmax_t)row->n_rows);
            }
            memcpy((char *)joined[k].data + (size_t)at * bytes, out[k].data, (size_t)n * bytes);
        }
    }
    return true;
}

/* Slices that outlive the next run. */
static bool keep(struct w_row *row, struct op_tensor *slices, int n, struct w_error *err) {
    for (int k = 0; k < n; k++) {
        int64_t bytes = slices[k].kind == OP_KIND_TENSOR ? op_tensor_bytes(&slices[k]) : -1;
        void *copy = bytes >= 0 ? w_arena_alloc(&row->arena, (size_t)bytes) : NULL;
        if (!copy)
            return w_fail(err, W_TOO_LARGE, "an output between two runs of the model is too large");
        memcpy(copy, slices[k].data, (size_t)bytes);
        slices[k].data = copy;
    }
    return true;
}

/* One row, through as many runs as its pipeline has. */
static void run_single(struct job *j, size_t i, struct w_row *row) {
    struct op_tensor outputs[W_INPUTS_MAX];
    struct w_error err = {0};
    int n_outputs = op_model_n_outputs(j->model->op);
    enum w_next next = W_NEXT_RUN;
    while (next == W_NEXT_RUN) {
        int64_t piece = j->model->sig.batching == W_BATCH_NONE  ? row->n_rows
                        : j->model->sig.batching == W_BATCH_ONE ? 1
                                                                : j->rows_max;
        const struct op_tensor *out = NULL;
        bool ok;
        if (w_lane_cancelled(j->lane)) {
            ok = w_fail(&err, "cancelled", "cancelled");
        } else if (row->n_rows > piece) {
            ok = run_pieces(j, row, piece, outputs, &err);
        } else {
            ok = run(j, row->inputs, row->n_inputs, &out, &err);
            if (ok) memcpy(outputs, out, (size_t)n_outputs * sizeof *outputs);
            if (ok && j->chain) ok = keep(row, outputs, n_outputs, &err);
        }
        next = ok ? w_pipeline_after(j->model->pipeline, row, outputs, n_outputs, &err)
                  : W_NEXT_FAILED;
    }
    j->done(j->ctx, i, next, row->n_rows, &err);
}

/* --- several rows in one run ------------------------------------------------------------------ */

static bool stack(struct job *j, struct w_row **rows, size_t n, int64_t total,
                  struct op_tensor *inputs) {
    for (int i = 0; i < rows[0]->n_inputs; i++) {
        inputs[i] = rows[0]->inputs[i];
        if (inputs[i].dtype == OP_UNDEFINED) continue;
        size_t bytes = bytes_of_row(&inputs[i]), at = 0;
        char *buf = bytes && (size_t)total > SIZE_MAX / bytes
                        ? NULL
                        : w_lane_buffer(j->lane, i, (size_t)total * bytes);
        if (!buf) return false;
        for (size_t r = 0; r < n; r++) {
            size_t len = (size_t)rows[r]->n_rows * bytes;
            memcpy(buf + at, rows[r]->inputs[i].data, len);
            at += len;
        }
        inputs[i].data = buf;
        inputs[i].dims[0] = total;
    }
    return true;
}

/* False: nothing was reported, the rows are to be run one by one. */
static bool run_stacked(struct job *j, struct w_row **rows, size_t first, size_t n, int64_t total) {
    struct op_tensor inputs[W_INPUTS_MAX], slices[W_INPUTS_MAX];
    const struct op_tensor *out;
    struct w_error err = {0};
    int n_outputs = op_model_n_outputs(j->model->op);
    if (!stack(j, rows, n, total, inputs) || !run(j, inputs, rows[0]->n_inputs, &out, &err))
        return false;
    for (int k = 0; k < n_outputs; k++)
        if (out[k].kind != OP_KIND_TENSOR || out[k].rank < 1 || out[k].dims[0] != total)
            return false;
    int64_t at = 0;
    for (size_t r = 0; r < n; r++) {
        for (int k = 0; k < n_outputs; k++) slices[k] = slice(&out[k], at, rows[r]->n_rows);
        at += rows[r]->n_rows;
        enum w_next next = w_pipeline_after(j->model->pipeline, rows[r], slices, n_outputs, &err);
        j->done(j->ctx, first + r, next, total, &err);
        w_lane_beat(j->lane);
    }
    return true;
}

/* How many rows go at once before their activations leave the second-level cache: beyond that a larger batch is
 * slower (MobileNetV2 at 224, two lanes: 380 images/s one by one, 208 in batches of 32). Small models still run in large
 * batches, and the answer is the same bits either way. */
static int64_t rows_in_cache(struct job *j, const struct w_row *row) {
    struct op_tensor one[W_INPUTS_MAX];
    struct op_error oe;
    struct w_error err;
    size_t bytes = 0;
    long cache = sysconf(_SC_LEVEL2_CACHE_SIZE);
    if (j->model->sig.batching != W_BATCH_ROWS) return INT64_MAX;
    struct op_session *s = w_lane_session(j->lane, j->model, &err);
    for (int i = 0; i < row->n_inputs; i++) {
        one[i] = row->inputs[i];
        if (one[i].dtype != OP_UNDEFINED && one[i].rank > 0 && i < j->model->sig.n_inputs) one[i].dims[0] = 1;
    }
    if (!s || op_session_plan(s, one, row->n_inputs, &bytes, NULL, &oe) != OP_OK || bytes == 0) return INT64_MAX;
    int64_t rows = (cache > 0 ? cache : 1 << 20) / (int64_t)bytes;
    return rows > 1 ? rows : 1;
}

void w_rows_run(struct w_lane *lane, struct w_model *model, struct w_row **rows, size_t n,
                int64_t rows_max, w_row_fn *done, void *ctx) {
    struct job j = {lane, model, rows_max > 0 ? rows_max : 1, false, done, ctx};
    int n_runs = 0;
    for (int i = 0; i < w_pipeline_n_steps(model->pipeline); i++)
        n_runs += strcmp(w_pipeline_step_name(model->pipeline, i), "run") == 0;
    j.chain = n_runs > 1;
    if (n > 1 || (n == 1 && rows[0]->n_rows > 1)) {
        int64_t fit = rows_in_cache(&j, rows[0]);
        if (fit < j.rows_max) j.rows_max = fit;
    }
    for (size_t i = 0, end; i < n; i = end) {
        int64_t total = rows[i]->n_rows;
        end = i + 1;
        while (!j.chain && end < n && total + rows[end]->n_rows <= j.rows_max &&
               w_rows_fit(model, rows[i], rows[end]))
            total += rows[end++]->n_rows;
        if (end > i + 1 && !w_lane_cancelled(lane) && run_stacked(&j, rows + i, i, end - i, total))
            continue;
        for (size_t r = i; r < end; r++) run_single(&j, r, rows[r]);
    }
}
