/* answer.c: what a pipeline made, as the JSON of a job's result. */
#include "worker/pipeline/frame.h"

#include <string.h>

const char *w__answer_key(enum w_type type) {
    switch (type) {
    case W_LABELS:
        return "top";
    case W_TEXT:
        return "text";
    case W_TENSOR:
        return "value";
    default:
        return w_type_name(type);
    }
}

static bool text_labels(struct w_text *t, const struct w_value *v) {
    w_text_puts(t, "[");
    for (size_t i = 0; i < v->labels.n; i++) {
        const struct w_label *l = &v->labels.items[i];
        w_text_printf(t, "%s{\"index\":%lld", i ? "," : "", (long long)l->index);
        if (l->label) {
            w_text_puts(t, ",\"label\":");
            w_text_string(t, l->label, strlen(l->label));
        }
        w_text_puts(t, ",\"score\":");
        w_text_float(t, (float)l->score);
        w_text_puts(t, "}");
    }
    w_text_puts(t, "]");
    return !t->failed;
}

bool w__answer_value(struct w_text *t, const struct w_value *v, bool b64, struct w_error *err) {
    switch (v->type) {
    case W_JSON:
        w_text_add(t, v->span.ptr, v->span.len);
        break;
    case W_TEXT:
        w_text_string(t, v->span.ptr, v->span.len);
        break;
    case W_TENSOR:
        return w_text_tensor(t, &v->tensor, b64, err);
    case W_LABELS:
        text_labels(t, v);
        break;
    case W_IMAGE:
        w_text_printf(t, "{\"w\":%d,\"h\":%d,\"channels\":%d}", v->image.w, v->image.h,
                      v->image.channels);
        break;
    default:
        return w_fail(err, W_UNSUPPORTED, "an answer of type %s cannot be written as JSON",
                      w_type_name(v->type));
    }
    return !t->failed || w_fail(err, W_NO_MEMORY, "the result is larger than this row's memory");
}

static bool text_outputs(struct w_text *t, const struct w_pipeline *p, const struct w__frame *f,
                         struct w_error *err) {
    w_text_puts(t, "\"outputs\":{");
    for (int i = 0; i < f->row.n_outputs; i++) {
        if (i) w_text_puts(t, ",");
        const char *name = p->sig.outputs[i]->name;
        w_text_string(t, name, strlen(name));
        w_text_puts(t, ":");
        if (!w_text_tensor(t, &f->row.outputs[i], f->row.b64, err))
            return w_fail_in(err, "output \"%s\": ", name);
    }
    w_text_puts(t, "}");
    return true;
}

bool w__answer_compose(const struct w_pipeline *p, struct w__frame *f, const struct w_text *answers,
                       enum w_type type, bool has_answer, struct w_error *err) {
    struct w_text t = {.arena = &f->row.arena};
    bool several = f->row.n_rows > 1;
    if (has_answer && type == W_JSON && !several) {
        f->row.result = (struct w_span){answers->ptr, answers->len};
        return true;
    }
    w_text_puts(&t, "{");
    bool outputs =
        p->has_sig && f->row.n_outputs && !(has_answer && (f->row.no_outputs || type == W_JSON));
    if (outputs && !text_outputs(&t, p, f, err)) return false;
    if (has_answer) {
        w_text_printf(&t, "%s\"%s\":%s", outputs ? "," : "",
                      type == W_JSON ? "rows" : w__answer_key(type), several ? "[" : "");
        w_text_add(&t, answers->ptr, answers->len);
        if (several) w_text_puts(&t, "]");
    }
    w_text_puts(&t, "}");
    if (t.failed) return w_fail(err, W_NO_MEMORY, "the result is larger than this row's memory");
    f->row.result = (struct w_span){t.ptr, t.len};
    return true;
}
