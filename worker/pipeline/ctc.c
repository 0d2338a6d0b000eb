/* ctc: the scores of each step → text, read greedily: the best class of a step, repeats and blanks
 * left out (Graves et al. 2006). labels name the classes; the blank's own name is not looked at. */
#include "worker/pipeline/scan.h"
#include "worker/pipeline/step.h"

#include <string.h>

struct ctc {
    int32_t blank;
    char *separator;
    json_t *labels;
};

/* clang-format off */
static const struct w_param params[] = {
    {.name = "labels", .kind = W_PARAM_JSON, .offset = offsetof(struct ctc, labels), .required = true, .help = "a list: the name of each class"},
    {.name = "blank", .kind = W_PARAM_INT, .offset = offsetof(struct ctc, blank), .min = 0, .max = 1 << 24, .help = "the class that stands for nothing"},
    {.name = "separator", .kind = W_PARAM_TEXT, .offset = offsetof(struct ctc, separator), .help = "between labels; nothing if not said"},
    {0}};
/* clang-format on */

static bool parse(struct w_step *s, json_t *json, struct w_error *err) {
    const struct ctc *t = s->state;
    size_t i;
    json_t *item;
    (void)json;
    if (!json_is_array(t->labels) || json_array_size(t->labels) <= (size_t)t->blank)
        return w_fail(err, W_BAD_MODEL,
                      "\"labels\" must be a list of more than \"blank\" (%d) strings", t->blank);
    json_array_foreach(t->labels, i, item) if (!json_is_string(item)) return w_fail(
        err, W_BAD_MODEL, "\"labels\"[%zu] is no string", i);
    return true;
}

static bool check(struct w_step *s, const struct w_spec *in, struct w_spec *out,
                  struct w_error *err) {
    const struct ctc *t = s->state;
    int64_t n = (int64_t)json_array_size(t->labels);
    *out = (struct w_spec){.type = W_TEXT, .rank = -1};
    if (in->rank >= 1 && in->dims[in->rank - 1] >= 0 && in->dims[in->rank - 1] != n)
        return w_fail(err, W_BAD_MODEL, "there are %lld labels, the tensor ends in %lld classes",
                      (long long)n, (long long)in->dims[in->rank - 1]);
    return true;
}

static bool apply(const struct w_step *s, struct w_row *row, const struct w_value *in,
                  struct w_value *out, struct w_error *err) {
    const struct ctc *t = s->state;
    const struct op_tensor *x = &in->tensor;
    int64_t n = (int64_t)json_array_size(t->labels), count = op_tensor_count(x), last = t->blank;
    struct w_text text = {.arena = &row->arena};
    char shape[128];
    if (x->rank < 1 || x->dims[x->rank - 1] != n || x->dtype == OP_STRING || x->dtype == OP_C64 ||
        x->dtype == OP_C128)
        return w_fail(err, W_BAD_SHAPE, "%s is not [steps, %lld classes]",
                      op_tensor_describe(x, shape, sizeof shape), (long long)n);
    w_text_puts(&text, "");
    for (int64_t at = 0; at < count; at += n) {
        int64_t best = 0;
        for (int64_t c = 1; c < n; c++)
            if (w__element(x, at + c) > w__element(x, at + best)) best = c;
        if (best != t->blank && best != last) {
            json_t *label = json_array_get(t->labels, (size_t)best);
            if (text.len && t->separator) w_text_puts(&text, t->separator);
            w_text_add(&text, json_string_value(label), json_string_length(label));
        }
        last = best;
    }
    out->span = (struct w_span){text.ptr ? text.ptr : "", text.len};
    return !text.failed || w_fail(err, W_NO_MEMORY, "no memory for the text");
}

static const struct w_step_desc desc = {.name = "ctc",
                                        .summary = "the scores of steps become text",
                                        .params = params,
                                        .state_bytes = sizeof(struct ctc),
                                        .takes = W_TAKES(W_TENSOR),
                                        .gives = W_TEXT,
                                        .parse = parse,
                                        .check = check,
                                        .apply = apply};
W_STEP(desc);
