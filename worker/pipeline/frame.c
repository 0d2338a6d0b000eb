/* frame.c: a row's way: input → value → steps → the run; outputs → steps → the result.
 *
 * The way is cut at `run`, so that whoever owns the lane can stack the inputs of many rows in one
 * run of the model. A row remembers where it stands (frame->at), which makes chains of several runs
 * the same loop. A job that sends several rows at once (told by rank) takes one way through the run
 * together; the steps behind it are then applied to each row in turn, and the answer is a list.
 *
 * A step gets values and gives a value; it knows no other step. What "as" has named, and the
 * outputs of a run under their own names, can be taken up with "from". */
#include "worker/pipeline/frame.h"

#include <stdlib.h>
#include <string.h>

/* --- rows ------------------------------------------------------------------------------------- */

struct w_row *w_row_create(size_t bytes_max) {
    struct w__frame *f = calloc(1, sizeof *f);
    if (!f) return NULL;
    w_arena_init(&f->row.arena, bytes_max);
    f->row.frame = f;
    return &f->row;
}

void w_row_reset(struct w_row *row) {
    struct w_arena arena = row->arena;
    struct w__frame *f = row->frame;
    w_arena_reset(&arena);
    *row = (struct w_row){.arena = arena, .frame = f};
    f->at = f->n_named = 0;
    f->of = (struct w_source_of){0};
    f->current = (struct w_value){0};
}

void w_row_destroy(struct w_row *row) {
    if (!row) return;
    w_arena_finish(&row->arena);
    free(row->frame);
}

const struct w_source_of *w__row_source(const struct w_row *row) {
    return &row->frame->of;
}

/* --- named values ----------------------------------------------------------------------------- */

static const struct w_value *find(const struct w__frame *f, const char *name) {
    if (!strcmp(name, ".")) return &f->current;
    for (int i = f->n_named - 1; i >= 0; i--)
        if (!strcmp(f->named[i].name, name)) return &f->named[i].value;
    return NULL;
}

const struct w_value *w__frame_find(const struct w_row *row, const char *name) {
    return find(row->frame, name);
}

static void keep(struct w__frame *f, const char *name, const struct w_value *v) {
    for (int i = 0; i < f->n_named; i++)
        if (!strcmp(f->named[i].name, name)) {
            f->named[i].value = *v;
            return;
        }
    if (f->n_named < (int)(sizeof f->named / sizeof *f->named))
        f->named[f->n_named++] = (struct w_named){name, *v};
}

static void trace(const struct w__frame *f, const struct w_pipeline *p, int step) {
    if (f->row.trace)
        f->row.trace(f->row.trace_user, step, w_pipeline_step_name(p, step), &f->current);
}

/* --- before the run --------------------------------------------------------------------------- */

/* The job's input as the value that the first step takes. */
static bool first_value(const struct w_pipeline *p, struct w__frame *f, const struct w_input *input,
                        struct w_error *err) {
    struct w_value *v = &f->current;
    enum w_type want = p->in[0].type;
    unsigned takes = p->steps[0].desc->takes;
    *v = (struct w_value){.type = want};
    if (input->kind == W_INPUT_VALUE) {
        *v = *input->value;
        if (takes & W_TAKES(v->type)) return true;
        if (v->type != W_JSON)
            return w_fail(err, W_BAD_INPUT, "the first step \"%s\" takes %s, the row is %s",
                          p->steps[0].desc->name, w_type_name(want), w_type_name(v->type));
        v->type = want;
    }
    struct w_span json = input->kind == W_INPUT_VALUE ? input->value->span : input->json;
    struct w_scan at = {json.ptr, json.ptr + json.len};
    w__scan_blank(&at);
    const bool object = at.p < at.end && *at.p == '{';
    if (want == W_BYTES || (input->kind == W_INPUT_REF && !(object && want == W_JSON))) {
        v->type = takes & W_TAKES(W_BYTES) ? W_BYTES : want;
        return w__decode_blob(&f->of, json, input->kind == W_INPUT_REF, &v->span, err);
    }
    v->span = json;
    if (want != W_TEXT) return true;
    struct w_scan s = {json.ptr, json.ptr + json.len};
    struct w_span raw;
    size_t len = 0;
    const char *text =
        w__scan_value(&s, &raw) ? w__scan_string(raw, f->of.arena, true, &len) : NULL;
    if (!text) return w_fail(err, W_BAD_INPUT, "the input is no JSON string of UTF-8 text");
    v->span = (struct w_span){text, len};
    return true;
}

/* The model's inputs from the values that the run names. */
static bool bind(const struct w_pipeline *p, struct w__frame *f, const struct w_step *s,
                 struct w_error *err) {
    const struct w_signature *sig = &p->sig;
    int64_t n_rows = 0;
    for (int i = 0; i < sig->n_inputs + sig->n_optional; i++) {
        const char *from = w__run_from(s, i);
        struct op_tensor *t = &f->run_inputs[i];
        *t = (struct op_tensor){.dtype = OP_UNDEFINED};
        const struct op_tensor *constant = w__run_constant(s, i);
        if (constant) {
            *t = *constant;
            if (!w__fit(sig, sig->inputs[i], false, t, &n_rows, err)) return false;
        }
        if (!from) continue;
        const struct w_value *v = find(f, from);
        if (!v || v->type != W_TENSOR)
            return w_fail(err, W_INTERNAL, "the value \"%s\" for input \"%s\" is not there", from,
                          sig->inputs[i]->name);
        *t = v->tensor;
        if (t->dtype != sig->inputs[i]->dtype)
            return w_fail(err, W_BAD_DTYPE,
                          "model \"%s\": input \"%s\" is %s, the pipeline gives %s", sig->model,
                          sig->inputs[i]->name, op_type_name(sig->inputs[i]->dtype),
                          op_type_name(t->dtype));
        if (!w__fit(sig, sig->inputs[i], v->flat, t, &n_rows, err)) return false;
    }
    f->row.n_rows = n_rows ? n_rows : 1;
    return true;
}

static enum w_next ask_run(const struct w_pipeline *p, struct w__frame *f) {
    int n = p->sig.n_inputs + p->sig.n_optional;
    while (n > 0 && f->run_inputs[n - 1].dtype == OP_UNDEFINED) n--;
    f->row.inputs = f->run_inputs;
    f->row.n_inputs = n;
    return W_NEXT_RUN;
}

/* Applies steps from f->at up to the next run (RUN) or the end (DONE). */
static enum w_next walk(const struct w_pipeline *p, struct w__frame *f, struct w_error *err) {
    for (; f->at < p->n_steps; f->at++) {
        const struct w_step *s = &p->steps[f->at];
        if (s->from) {
            const struct w_value *v = find(f, s->from);
            if (!v)
                return w_fail(err, W_INTERNAL, "the value \"%s\" is not there", s->from),
                       W_NEXT_FAILED;
            f->current = *v;
        }
        if (s->desc->runs) return bind(p, f, s, err) ? ask_run(p, f) : W_NEXT_FAILED;
        struct w_value out = {
            .type = s->desc->gives, .geo = f->current.geo, .activated = f->current.activated};
        if (!s->desc->apply(s, &f->row, &f->current, &out, err)) {
            w_fail_in(err, "step %d \"%s\": ", s->index + 1, s->desc->name);
            return W_NEXT_FAILED;
        }
        f->current = out;
        if (s->as) keep(f, s->as, &out);
        trace(f, p, f->at);
    }
    return W_NEXT_DONE;
}

static enum w_next finish(const struct w_pipeline *p, struct w__frame *f, struct w_error *err);

enum w_next w_pipeline_before(const struct w_pipeline *p, struct w_row *row,
                              const struct w_input *input, struct w_error *err) {
    struct w__frame *f = row->frame;
    f->at = f->n_named = 0;
    f->of = (struct w_source_of){&row->arena, input->fetch, input->user,
                                 p->has_sig && p->sig.model ? p->sig.model : "?"};
    if (p->n_steps == 0 || (p->steps[0].desc->runs && !w__run_binds(&p->steps[0]))) {
        if (!p->has_sig)
            return w_fail(err, W_BAD_MODEL, "an empty pipeline without a model does nothing"),
                   W_NEXT_FAILED;
        return w__decode_inputs(&f->of, &p->sig, input, f->run_inputs, &row->n_rows, err)
                   ? ask_run(p, f)
                   : W_NEXT_FAILED;
    }
    row->n_rows = 1;
    if (!first_value(p, f, input, err)) return W_NEXT_FAILED;
    trace(f, p, -1);
    enum w_next next = walk(p, f, err);
    return next == W_NEXT_DONE ? finish(p, f, err) : next;
}

/* --- behind the run --------------------------------------------------------------------------- */

static enum w_next finish(const struct w_pipeline *p, struct w__frame *f, struct w_error *err) {
    struct w_text t = {.arena = &f->row.arena};
    f->row.value = f->current;
    if (!w__answer_value(&t, &f->current, f->row.b64, err)) return W_NEXT_FAILED;
    return w__answer_compose(p, f, &t, f->current.type, true, err) ? W_NEXT_DONE : W_NEXT_FAILED;
}

/* Row r of an output that has n_rows of them, without the batch dimension. */
static struct w_value output_row(const struct w_pipeline *p, const struct op_tensor *output,
                                 int64_t r, int64_t n_rows) {
    struct w_value v = {.type = W_TENSOR, .tensor = *output};
    if (p->sig.batching == W_BATCH_NONE || output->rank < 1) return v;
    v.tensor.rank--;
    memmove(v.tensor.dims, v.tensor.dims + 1, (size_t)v.tensor.rank * sizeof *v.tensor.dims);
    int64_t bytes = op_tensor_bytes(output);
    if (r && bytes > 0) v.tensor.data = (char *)output->data + bytes / n_rows * r;
    return v;
}

static bool outputs_fit(const struct w_pipeline *p, const struct w__frame *f,
                        const struct op_tensor *outputs, int n, struct w_error *err) {
    if (n != p->sig.n_outputs)
        return w_fail(err, W_INTERNAL, "model \"%s\" gave %d outputs, %d were expected",
                      p->sig.model, n, p->sig.n_outputs);
    for (int i = 0; i < n && p->sig.batching != W_BATCH_NONE; i++)
        if (outputs[i].rank < 1 || outputs[i].dims[0] != f->row.n_rows)
            return w_fail(err, W_INTERNAL,
                          "model \"%s\": output \"%s\" has %lld rows, %lld were sent", p->sig.model,
                          p->sig.outputs[i]->name,
                          (long long)(outputs[i].rank < 1 ? 0 : outputs[i].dims[0]),
                          (long long)f->row.n_rows);
    return true;
}

enum w_next w_pipeline_after(const struct w_pipeline *p, struct w_row *row,
                             const struct op_tensor *outputs, int n_outputs, struct w_error *err) {
    struct w__frame *f = row->frame;
    if (!outputs_fit(p, f, outputs, n_outputs, err)) return W_NEXT_FAILED;
    row->outputs = (struct op_tensor *)(uintptr_t)outputs;
    row->n_outputs = n_outputs;
    const struct w_step *run = p->n_steps ? &p->steps[f->at] : NULL;
    const int64_t n_rows = row->n_rows; /* the next run sets its own */
    const bool has_answer = run && run->index < p->n_steps - 1;
    struct w_text answers = {.arena = &row->arena};
    struct w_geometry geo = f->current.geo;
    row->value =
        n_outputs ? output_row(p, &outputs[0], 0, n_rows) : (struct w_value){.type = W_TENSOR};
    for (int64_t r = 0; run && r < n_rows; r++) {
        for (int i = 0, output; (output = w__run_output(run, i)) >= 0; i++) {
            struct w_value v = output_row(p, &outputs[output], r, n_rows);
            v.geo = geo;
            if (i == 0) f->current = v;
            keep(f, p->sig.outputs[output]->name, &v);
        }
        if (run->as) keep(f, run->as, &f->current);
        f->at = run->index;
        trace(f, p, f->at);
        if (!has_answer) continue;
        f->at++;
        enum w_next next = walk(p, f, err);
        if (next == W_NEXT_RUN && n_rows > 1)
            return w_fail(err, W_UNSUPPORTED,
                          "a pipeline of several runs takes one row a job, %lld were sent",
                          (long long)n_rows),
                   W_NEXT_FAILED;
        if (next != W_NEXT_DONE) return next;
        if (r) w_text_puts(&answers, ",");
        if (!w__answer_value(&answers, &f->current, row->b64, err)) return W_NEXT_FAILED;
        row->value = f->current;
    }
    return w__answer_compose(p, f, &answers, f->current.type, has_answer, err) ? W_NEXT_DONE
                                                                               : W_NEXT_FAILED;
}

/* Takes the outputs of run r of n into the whole that they become part of. */
static bool gather(struct w_row *row, struct op_tensor *whole, const struct op_tensor *part,
                   int64_t r, int64_t n, struct w_error *err) {
    int64_t bytes = op_tensor_bytes(part), all;
    if (bytes < 0 || part->kind != OP_KIND_TENSOR || part->rank < 1 || part->dims[0] != 1 ||
        __builtin_mul_overflow(bytes, n, &all))
        return w_fail(err, W_INTERNAL, "an output of a model of batch 1 is not of batch 1");
    if (r == 0) {
        *whole = *part;
        whole->dims[0] = n;
        whole->data = w_arena_alloc(&row->arena, (size_t)all);
        if (!whole->data)
            return w_fail(err, W_TOO_LARGE, "the outputs of %lld rows are more than a row's memory",
                          (long long)n);
    }
    if (op_tensor_bytes(whole) != all)
        return w_fail(err, W_UNSUPPORTED,
                      "the rows' outputs differ in shape: send them as jobs of their own");
    if (bytes) memcpy((char *)whole->data + r * bytes, part->data, (size_t)bytes);
    return true;
}

bool w_pipeline_run_rows(const struct w_pipeline *p, struct w_row *row, w_run_fn *run, void *user,
                         const struct op_tensor **outputs, int *n_outputs, struct w_error *err) {
    if (p->sig.batching != W_BATCH_ONE || row->n_rows <= 1)
        return run(user, row->inputs, row->n_inputs, outputs, n_outputs, err);
    struct op_tensor *whole = w_arena_array(&row->arena, (size_t)p->sig.n_outputs, sizeof *whole);
    struct op_tensor *one = w_arena_array(&row->arena, (size_t)row->n_inputs, sizeof *one);
    if (!whole || !one) return w_fail(err, W_NO_MEMORY, "out of memory");
    for (int64_t r = 0; r < row->n_rows; r++) {
        for (int i = 0; i < row->n_inputs; i++) {
            one[i] = row->inputs[i];
            if (one[i].dtype == OP_UNDEFINED || i >= p->sig.n_inputs) continue;
            one[i].data = (char *)one[i].data + op_tensor_bytes(&one[i]) / row->n_rows * r;
            one[i].dims[0] = 1;
        }
        const struct op_tensor *part;
        int n;
        if (!run(user, one, row->n_inputs, &part, &n, err)) return false;
        if (n != p->sig.n_outputs)
            return w_fail(err, W_INTERNAL, "model \"%s\" gave %d outputs, %d were expected",
                          p->sig.model, n, p->sig.n_outputs);
        for (int i = 0; i < n; i++)
            if (!gather(row, &whole[i], &part[i], r, row->n_rows, err)) return false;
    }
    *outputs = whole;
    *n_outputs = p->sig.n_outputs;
    return true;
}

bool w_pipeline_run(const struct w_pipeline *p, struct w_row *row, const struct w_input *input,
                    w_run_fn *run, void *user, struct w_error *err) {
    enum w_next next = w_pipeline_before(p, row, input, err);
    while (next == W_NEXT_RUN) {
        const struct op_tensor *outputs;
        int n;
        if (!w_pipeline_run_rows(p, row, run, user, &outputs, &n, err)) return false;
        next = w_pipeline_after(p, row, outputs, n, err);
    }
    return next == W_NEXT_DONE;
}
