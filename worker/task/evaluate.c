/* evaluate: how well a model of the store does on labelled rows: `model`, and in `params` the set
 * `data` in the words of training specs, `metrics`, and the `output` that they are of.
 *
 *   start ─▶ model ─▶ lane: slice ─▶ sliced: progress ─▶ lane: slice ─▶ … ─▶ finish
 *
 * Rows go through the model's whole pipeline, so what is measured is what `infer` answers with; the
 * metrics look at the output tensors that its last run gave. Tables, arrays and text are read as
 * training reads them. The pictures or sounds of a folder are given to the pipeline as files, for
 * it may resize in its own way. Labels are matched by name where model.json has names, else they
 * are numbered in sorted order, as training numbers them.
 *
 * A row that fails fails the evaluation: a figure over the rows that happened to work says nothing.
 * Between slices only one lane has the state. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "worker/data/data.h"
#include "worker/daemon/files.h"
#include "worker/task/rows.h"
#include "worker/task/task.h"
#include "worker/train/train.h"

#define SLICE_S 0.25
#define BATCH_ROWS 32
#define DATA_BYTES_MAX ((size_t)16 << 30)
#define MEMORY_BYTES ((size_t)1 << 30) /* of one array; what is more goes to a file */
#define CLASSES_MAX 4096               /* of a confusion matrix that is counted */
#define CLASSES_SHOWN_MAX 256          /* and that the result holds */

struct evaluation {
    struct w_task *task;
    struct w_lane *lane;             /* of the present slice */
    json_t *params, *data, *metrics; /* the two belong to params */
    char *output;                    /* name of the model's output; NULL: the first */
    int which;                       /* its number */
    json_t *labels;                  /* of model.json; NULL: none */
    bool logits;                     /* the pipeline makes probabilities of the output */
    const char *format;              /* of a folder's files; NULL: rows are no files */
    bool text;                       /* rows are text */
    /* rows: arrays, or a folder of pictures */
    struct w_set set;
    struct w_source *source;
    struct w_cursor *cursor;
    int folder;
    struct w_words words; /* the label of each file that is a row */
    int64_t *files;       /* its number among them */
    json_t *names;        /* the labels, sorted, where model.json has none */
    int64_t n, at;
    /* what is counted */
    bool begun, sparse; /* begun: the first output has told the number of classes */
    struct w_metrics found;
    int64_t classes, *confusion;
    /* of the batch in hand */
    struct w_row *rows[BATCH_ROWS];
    int64_t targets[BATCH_ROWS];
    float *dense; /* [BATCH_ROWS, elements of a row of y] */
    bool failed;
    struct w_error err;
    double began_s;
};

static struct evaluation *of(struct w_task *t) {
    return *(struct evaluation **)t->state;
}

static void free_state(struct w_task *t) {
    struct evaluation *e = of(t);
    if (!e) return;
    w_train_set_finish(&e->set);
    w_cursor_close(e->cursor);
    w_source_close(e->source);
    if (e->folder >= 0) close(e->folder);
    w_metrics_finish(&e->found);
    json_decref(e->params);
    json_decref(e->labels);
    json_decref(e->names);
    w__train_words_finish(&e->words);
    free(e->files);
    free(e->output);
    free(e->confusion);
    free(e->dense);
    free(e);
}

/* --- params ----------------------------------------------------------------------------------- */

static bool read_params(struct evaluation *e, struct w_error *err) {
    struct given {
        json_t *data, *metrics;
        char *output;
    } g = {0};
    /* clang-format off */
    static const struct w_param params[] = {
        {.name = "data", .kind = W_PARAM_JSON, .offset = offsetof(struct given, data), .required = true, .help = "a set, such as {\"x\": PATH, \"y\": PATH}"},
        {.name = "metrics", .kind = W_PARAM_JSON, .offset = offsetof(struct given, metrics)},
        {.name = "output", .kind = W_PARAM_TEXT, .offset = offsetof(struct given, output)},
        {0}};
    /* clang-format on */
    struct q_span p = e->task->job->params;
    e->params =
        p.ptr && w_json_is(p, '{') ? json_loadb(p.ptr, p.len, JSON_REJECT_DUPLICATES, NULL) : NULL;
    if (!e->params)
        return w_fail(err, "bad_job", "params of evaluate must be an object with \"data\"");
    if (!w__train_params(params, e->params, &g, "params", err)) return false;
    e->data = g.data;
    e->metrics = g.metrics;
    e->output = g.output;
    if (json_is_object(e->data)) return true;
    return w_fail(err, "bad_job", "params.data must be a set, such as {\"x\": PATH, \"y\": PATH}");
}

static bool find_output(struct evaluation *e, struct w_error *err) {
    const struct w_signature *sig = &e->task->model->sig;
    for (e->which = 0; e->output && e->which < sig->n_outputs; e->which++)
        if (strcmp(sig->outputs[e->which]->name, e->output) == 0) return true;
    return !e->output ||
           w_fail(err, "bad_job", "params.output: model \"%s\" has no output \"%.60s\"",
                  e->task->model->name, e->output);
}

/* What model.json says of labels, whether a softmax or sigmoid comes after the run, and what the
 * first step takes. */
static void read_pipeline(struct evaluation *e) {
    const struct w_model *m = e->task->model;
    char path[4200];
    json_t *step;
    size_t i;
    for (int k = 0; k < w_pipeline_n_steps(m->pipeline); k++)
        e->logits |= strcmp(w_pipeline_step_name(m->pipeline, k), "activate") == 0;
    const char *first = w_pipeline_n_steps(m->pipeline) ? w_pipeline_step_name(m->pipeline, 0) : "";
    e->format = strcmp(first, "decode_image") == 0   ? "images"
                : strcmp(first, "decode_audio") == 0 ? "sounds"
                                                     : NULL;
    e->text = strcmp(first, "vectorize") == 0;
    if (!m->folder) return;
    snprintf(path, sizeof path, "%s/model.json", m->folder);
    json_t *root = json_load_file(path, 0, NULL);
    json_array_foreach(json_object_get(root, "pipeline"), i, step) {
        json_t *labels = json_object_get(json_object_get(step, "topk"), "labels");
        if (json_is_array(labels)) e->labels = json_incref(labels);
    }
    json_decref(root);
}

/* --- rows of a folder ------------------------------------------------------------------------- */

static int64_t index_of(json_t *list, const char *name, size_t len) {
    size_t i;
    json_t *item;
    json_array_foreach(list, i, item) if (json_string_length(item) == len &&
                                          strncmp(json_string_value(item), name, len) ==
                                              0) return (int64_t)i;
    return -1;
}

static int by_name(const void *a, const void *b) {
    return strcmp(*(char *const *)a, *(char *const *)b);
}

/* The labels without repetition, sorted: as training numbers them. */
static bool number_names(struct evaluation *e, struct w_error *err) {
    char **sorted = malloc((size_t)(e->words.n + 1) * sizeof *sorted);
    e->names = json_array();
    if (!sorted || !e->names) {
        free(sorted);
        return w_fail(err, W_NO_MEMORY, "out of memory");
    }
    memcpy(sorted, e->words.items, (size_t)e->words.n * sizeof *sorted);
    qsort(sorted, (size_t)e->words.n, sizeof *sorted, by_name);
    for (int64_t i = 0; i < e->words.n; i++)
        if (i == 0 || strcmp(sorted[i], sorted[i - 1]) != 0)
            json_array_append_new(e->names, json_string(sorted[i]));
    free(sorted);
    return true;
}

/* Which files are rows, and their labels. */
static bool list_files(struct evaluation *e, const char *path, struct w_error *err) {
    const struct w_table t = {.where = "params.data", .path = path, .json = e->data};
    struct w_record rec;
    struct w_arena arena;
    w_arena_init(&arena, (size_t)1 << 30);
    struct w_cursor *c = w_cursor_open(e->source, 0, err);
    e->files = calloc((size_t)w_source_rows(e->source) + 1, sizeof *e->files);
    bool ok = c && (e->files || w_fail(err, W_NO_MEMORY, "out of memory"));
    for (enum w_read r; ok && (r = w_cursor_next(c, &arena, &rec, err)) != W_READ_END;) {
        w_lane_beat(e->lane);
        int take = r == W_READ_ROW ? w__train_label(&t, rec.name, &e->words, err) : -1;
        ok = take >= 0 && atomic_load(&e->task->stop) == W_GO;
        if (take > 0) e->files[e->n++] = (int64_t)rec.row;
        w_arena_reset(&arena);
    }
    w_cursor_close(c);
    w_arena_finish(&arena);
    return ok && number_names(e, err);
}

static bool open_folder(struct evaluation *e, const char *path, int fd, struct w_error *err) {
    char real[64];
    const struct w_source_options o = {.name = path, .format = e->format, .header = -1};
    e->folder = fd;
    snprintf(real, sizeof real, "/proc/self/fd/%d", fd);
    e->source = w_source_open(real, &o, err);
    if (!e->source || !list_files(e, path, err)) return false;
    e->sparse = true;
    e->cursor = w_cursor_open(e->source, 0, err);
    return e->cursor != NULL;
}

/* --- rows of arrays --------------------------------------------------------------------------- */

static int open_ref(void *user, const char *path, bool *is_folder, struct w_error *err) {
    struct evaluation *e = user;
    w_lane_beat(e->lane);
    return w_files_open(e->lane->files, path, true, is_folder, err);
}

/* A row as the model's first input has it, without the batch dimension. */
static bool wanted_input(struct evaluation *e, struct w_train_input *in, struct w_error *err) {
    const struct w_model *m = e->task->model;
    const struct op_io *io = m->sig.n_inputs ? m->sig.inputs[0] : NULL;
    if (m->sig.n_inputs != 1 || m->sig.batching == W_BATCH_NONE)
        return w_fail(
            err, W_UNSUPPORTED,
            "model \"%s\" takes %d inputs; evaluate gives rows to a model with one, and a "
            "batch dimension",
            m->name, m->sig.n_inputs);
    *in = (struct w_train_input){.dtype =
                                     io->dtype == OP_I64 || io->dtype == OP_I32 ? OP_I64 : OP_F32,
                                 .rank = io->rank - 1,
                                 .elements = 1};
    snprintf(in->name, sizeof in->name, "%s", io->name);
    for (int i = 1; i < io->rank; i++) {
        if (io->dims[i] < 1 && e->text) continue; /* the pipeline sees to it */
        if (io->dims[i] < 1)
            return w_fail(err, W_UNSUPPORTED,
                          "model \"%s\": dimension %d of input \"%s\" is free; evaluate needs rows "
                          "of one shape",
                          m->name, i, io->name);
        in->elements *= in->dims[i - 1] = io->dims[i];
    }
    return true;
}

static bool load_set(struct evaluation *e, struct w_error *err) {
    struct w_train_input in;
    if (!wanted_input(e, &in, err)) return false;
    const struct w_train_files files = {
        .open = open_ref, .user = e, .bytes_max = DATA_BYTES_MAX, .memory_bytes = MEMORY_BYTES};
    struct w_set like = {.n_names = (int64_t)json_array_size(e->labels)};
    char **names = calloc((size_t)like.n_names + 1, sizeof *names);
    if (!names) return w_fail(err, W_NO_MEMORY, "out of memory");
    for (int64_t i = 0; i < like.n_names; i++)
        names[i] = (char *)json_string_value(json_array_get(e->labels, (size_t)i));
    like.names = names;
    /* That there is one says that rows are text; the pipeline has its own. */
    struct w_front front = {0};
    if (e->text) front.words = w_vectorizer_create(W_SPLIT_BYTE, W_STANDARD_NONE, err);
    const struct w_set_wish wish = {
        .inputs = &in, .n_inputs = 1, .fronts = &front, .like = like.n_names ? &like : NULL};
    bool ok = (!e->text || front.words) &&
              w_train_set_load(e->data, "params.data", &files, &wish, &e->set, err);
    free(names);
    w_front_finish(&front);
    if (!ok) return false;
    if (e->set.weight.n)
        return w_fail(err, W_UNSUPPORTED, "params.data.sample_weight: evaluate weighs all alike");
    e->n = e->set.n;
    e->dense = calloc(BATCH_ROWS, (size_t)e->set.y.elements * sizeof *e->dense);
    return e->dense || w_fail(err, W_NO_MEMORY, "out of memory");
}

static bool open_data(struct evaluation *e, struct w_error *err) {
    bool is_folder = false;
    if (!read_params(e, err) || !find_output(e, err)) return false;
    read_pipeline(e);
    const char *x = json_string_value(json_object_get(e->data, "x"));
    int fd = x ? w_files_open(e->lane->files, x, true, &is_folder, err) : -1;
    if (x && fd < 0) return w_fail_in(err, "params.data.x: ");
    if (is_folder && e->format) {
        if (!open_folder(e, x, fd, err)) return false;
    } else {
        if (fd >= 0) close(fd);
        if (e->format)
            return w_fail(err, W_BAD_INPUT,
                          "params.data.x: the pipeline of \"%s\" takes files; a folder of %s is "
                          "expected",
                          e->task->model->name, e->format);
        if (!load_set(e, err)) return false;
    }
    return e->n > 0 || w_fail(err, W_BAD_INPUT, "params.data has no rows");
}

/* --- counting --------------------------------------------------------------------------------- */

static double target_number(struct evaluation *e, int64_t row, int64_t i, struct w_error *err) {
    int64_t k = e->set.rows[row];
    return w__array_number(&e->set.y, w__array_row(&e->set.y, k, NULL, err), i);
}

/* The first output tells how many classes there are, and so what the targets are. */
static bool begin(struct evaluation *e, const struct op_tensor *out, struct w_error *err) {
    const struct w_model *m = e->task->model;
    struct w_spec_train spec = {0};
    struct w_train_model shape = {.output_rank = 1};
    int64_t row = out->rank > 0 && out->dims[0] > 0 ? op_tensor_count(out) / out->dims[0] : 0;
    json_t *metrics = e->metrics ? json_incref(e->metrics) : NULL;
    e->classes = out->rank > 1 ? out->dims[out->rank - 1] : 1;
    if (out->dtype != OP_F32 || row != e->classes)
        return w_fail(
            err, W_UNSUPPORTED,
            "model \"%s\": output \"%s\" is %s of rank %d; evaluate looks at f32[N,classes]",
            m->name, m->sig.outputs[e->which]->name, op_type_name(out->dtype), out->rank);
    int64_t given = e->source ? 1 : e->set.y.elements;
    e->sparse = e->source || (given == 1 && e->classes > 1);
    if (!e->sparse && given != e->classes)
        return w_fail(
            err, W_BAD_SHAPE,
            "params.data: a row of y has %lld numbers, output \"%s\" of model \"%s\" has %lld",
            (long long)given, m->sig.outputs[e->which]->name, m->name, (long long)e->classes);
    spec.loss.name = e->sparse         ? "sparse_categorical_crossentropy"
                     : e->classes == 1 ? "mean_squared_error"
                                       : "categorical_crossentropy";
    spec.loss.from_logits = e->logits;
    shape.output_dims[0] = e->classes;
    if (!metrics)
        metrics = e->classes > 1 ? json_pack("[s]", "accuracy")
                                 : json_pack("[s,s,s]", "mean_squared_error", "mean_absolute_error",
                                             "r2_score");
    bool ok = w_metrics_parse(metrics, &spec, &shape, &e->found, err);
    json_decref(metrics);
    if (!ok && strncmp(err->text, "compile.", 8) == 0) /* in a spec; here they are params */
        memmove(err->text, err->text + 8, strlen(err->text + 8) + 1);
    if (ok && e->classes > 1 && e->classes <= CLASSES_MAX)
        e->confusion = calloc((size_t)(e->classes * e->classes), sizeof *e->confusion);
    e->begun = true;
    return ok;
}

static bool read_target(struct evaluation *e, size_t i, int64_t row, struct w_error *err) {
    if (e->source) return true; /* when the file was read */
    if (!e->sparse) {
        for (int64_t k = 0; k < e->classes; k++)
            e->dense[(int64_t)i * e->classes + k] = (float)target_number(e, row, k, err);
        return true;
    }
    double v = target_number(e, row, 0, err);
    e->targets[i] = (int64_t)v;
    if (v == (double)e->targets[i] && v >= 0 && v < (double)e->classes) return true;
    return w_fail(err, W_BAD_INPUT,
                  "params.data: row %lld has the class %g, the model has 0 to %lld", (long long)row,
                  v, (long long)e->classes - 1);
}

static int64_t largest(const float *v, int64_t n) {
    int64_t best = 0;
    for (int64_t i = 1; i < n; i++)
        if (v[i] > v[best]) best = i;
    return best;
}

static bool count(struct evaluation *e, size_t i, const struct op_tensor *out,
                  struct w_error *err) {
    int64_t row = e->at + (int64_t)i;
    if (!e->begun && !begin(e, out, err)) return false;
    if (out->dtype != OP_F32 || op_tensor_count(out) != e->classes)
        return w_fail(err, W_BAD_SHAPE, "the output of row %lld has another shape than the first",
                      (long long)row);
    if (!read_target(e, i, row, err)) return false;
    const struct w_outcome o = {.rows = 1,
                                .classes = e->classes,
                                .output = out->data,
                                .sparse = e->sparse ? &e->targets[i] : NULL,
                                .dense = e->sparse ? NULL : e->dense + (int64_t)i * e->classes};
    w_metrics_update(&e->found, &o);
    if (!e->confusion) return true;
    int64_t is = e->sparse ? e->targets[i] : largest(o.dense, e->classes);
    e->confusion[is * e->classes + largest(o.output, e->classes)]++;
    return true;
}

static void row_done(void *ctx, size_t i, enum w_next next, int64_t together,
                     const struct w_error *err) {
    struct evaluation *e = ctx;
    (void)together;
    if (e->failed) return;
    if (next != W_NEXT_DONE) {
        e->err = *err;
        e->failed = true;
        w_fail_in(&e->err, "row %lld: ", (long long)(e->at + (int64_t)i));
    } else {
        e->failed = !count(e, i, &e->rows[i]->outputs[e->which], &e->err);
    }
}

/* --- a batch ---------------------------------------------------------------------------------- */

static bool next_file(struct evaluation *e, size_t i, struct w_row *row, struct w_value *v,
                      struct w_error *err) {
    struct w_record rec;
    int64_t k = e->at + (int64_t)i;
    do {
        w_lane_beat(e->lane);
        if (w_cursor_next(e->cursor, &row->arena, &rec, err) != W_READ_ROW)
            return w_fail(err, W_BAD_INPUT, "the folder has changed meanwhile");
    } while ((int64_t)rec.row < e->files[k]);
    const char *label = e->words.items[k];
    e->targets[i] = index_of(e->labels ? e->labels : e->names, label, strlen(label));
    *v = rec.value;
    return e->targets[i] >= 0 ||
           w_fail(err, W_BAD_INPUT, "%.200s: the model has no label \"%.60s\"", rec.name, label);
}

static bool next_array_row(struct evaluation *e, size_t i, struct w_row *row, struct w_value *v,
                           struct w_error *err) {
    const struct w_array *x = &e->set.x[0];
    if (x->dtype == OP_STRING) {
        *v = (struct w_value){.type = W_TEXT,
                              .span = w__array_text(x, e->set.rows[e->at + (int64_t)i])};
        return true;
    }
    size_t bytes = (size_t)x->elements * op_type_size(x->dtype);
    void *copy = w_arena_alloc(&row->arena, bytes);
    if (!copy) return w_fail(err, W_TOO_LARGE, "a row of %zu bytes is too large", bytes);
    const void *data = w__array_row(x, e->set.rows[e->at + (int64_t)i], copy, err);
    if (!data) return false;
    if (data != copy) memcpy(copy, data, bytes);
    *v = (struct w_value){
        .type = W_TENSOR,
        .flat = true,
        .tensor = {.dtype = x->dtype, .rank = 1, .dims = {x->elements}, .data = copy}};
    return true;
}

/* Reads, runs and counts up to BATCH_ROWS rows. */
static bool batch(struct evaluation *e, struct w_error *err) {
    struct w_model *m = e->task->model;
    struct w_row **rows = e->rows;
    int64_t max = m->batch.max > 0 && m->batch.max < BATCH_ROWS ? m->batch.max : BATCH_ROWS;
    size_t n = 0;
    for (; (int64_t)n < max && e->at + (int64_t)n < e->n; n++) {
        struct w_value v;
        w_lane_beat(e->lane);
        rows[n] = w_lane_row(e->lane, n);
        if (!rows[n]) return w_fail(err, W_NO_MEMORY, "no memory for a row");
        const struct w_input input = {.kind = W_INPUT_VALUE, .value = &v};
        bool ok =
            e->source ? next_file(e, n, rows[n], &v, err) : next_array_row(e, n, rows[n], &v, err);
        enum w_next next =
            ok ? w_pipeline_before(m->pipeline, rows[n], &input, err) : W_NEXT_FAILED;
        if (next == W_NEXT_DONE)
            return w_fail(err, W_UNSUPPORTED, "the pipeline of \"%s\" runs no model", m->name);
        if (next == W_NEXT_FAILED)
            return w_fail_in(err, "row %lld: ", (long long)(e->at + (int64_t)n));
    }
    w_rows_run(e->lane, m, rows, n, max, row_done, e);
    e->at += (int64_t)n;
    if (e->failed) *err = e->err;
    return !e->failed;
}

static bool make_result(struct evaluation *e, struct w_error *err) {
    struct w_task *t = e->task;
    json_t *o = json_object(), *metrics = json_object(), *matrix = json_array();
    w_metrics_json(&e->found, "", metrics);
    json_object_del(metrics, "loss"); /* there is none here */
    json_object_set_new(o, "model", json_string(t->model->name));
    json_object_set_new(o, "version", json_integer(t->model->version));
    json_object_set_new(o, "rows", json_integer(e->n));
    json_object_set_new(o, "metrics", metrics);
    for (int64_t i = 0; e->confusion && e->classes <= CLASSES_SHOWN_MAX && i < e->classes; i++) {
        json_t *line = json_array();
        for (int64_t k = 0; k < e->classes; k++)
            json_array_append_new(line, json_integer(e->confusion[i * e->classes + k]));
        json_array_append_new(matrix, line);
    }
    if (json_array_size(matrix)) json_object_set(o, "confusion_matrix", matrix);
    json_t *labels = e->labels ? e->labels : e->names;
    if (json_array_size(matrix) && labels) json_object_set(o, "labels", labels);
    json_object_set_new(o, "seconds", json_real(w__fit_now() - e->began_s));
    t->result = json_dumps(o, JSON_COMPACT | JSON_REAL_PRECISION(10));
    t->result_len = t->result ? strlen(t->result) : 0;
    json_decref(matrix);
    json_decref(o);
    return t->result || w_fail(err, W_NO_MEMORY, "no memory for the result");
}

static void slice(struct w_lane *lane, struct w_task **tasks, size_t n) {
    struct evaluation *e = of(tasks[0]);
    struct w_error err = {0};
    double from = w__fit_now();
    bool ok = true;
    (void)n;
    e->lane = lane;
    if (e->n == 0) {
        e->began_s = from;
        ok = open_data(e, &err);
    }
    while (ok && e->at < e->n && w__fit_now() - from < SLICE_S &&
           atomic_load(&tasks[0]->stop) == W_GO)
        ok = batch(e, &err);
    if (ok && e->at == e->n) ok = make_result(e, &err);
    if (!ok) w_task_lane_fail(tasks[0], &err);
}

/* --- on the loop ------------------------------------------------------------------------------ */

static void sliced(struct w_task *t) {
    struct evaluation *e = of(t);
    char json[160];
    if (t->failed || t->result) {
        w_task_finish(t);
        return;
    }
    if (w_task_stopped(t)) return;
    double s = w__fit_now() - e->began_s, per_s = s > 0 ? (double)e->at / s : 0;
    snprintf(json, sizeof json, "{\"done\":%lld,\"total\":%lld,\"per_s\":%.1f,\"eta_s\":%.1f}",
             (long long)e->at, (long long)e->n, per_s,
             per_s > 0 ? (double)(e->n - e->at) / per_s : -1);
    q_job_progress(w_daemon_queue(t->daemon), t->job, json);
    w_task_on_lane(t, slice, sliced, 0, false);
}

static void have_model(struct w_task *t) {
    w_task_on_lane(t, slice, sliced, 0, false);
}

static void start(struct w_task *t) {
    struct evaluation *e = calloc(1, sizeof *e);
    *(struct evaluation **)t->state = e;
    if (!e) {
        w_task_fail(t, W_NO_MEMORY, "out of memory");
        return;
    }
    e->task = t;
    e->folder = -1;
    w_task_with_model(t, t->job->model, have_model);
}

static const struct w_task_desc evaluate = {
    .name = "evaluate",
    .summary = "metrics of a model on labelled rows",
    .long_running = true,
    .state_bytes = sizeof(struct evaluation *),
    .start = start,
    .free = free_state,
};
W_TASK(evaluate);
