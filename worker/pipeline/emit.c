/* emit: says exactly what the answer is; nothing else stands in the result then.
 *
 *   {"emit": {"digits": 4}}                                    the current value under its usual
 * key, numbers rounded
 *   {"emit": {"fields": ["label", "score"]}}                   of the items of a list (top, boxes)
 * these members only
 *   {"emit": {"fields": {"top": ".", "scores": "scores"}}}     these keys, from the values of these
 * names ("." the current) */
#include "worker/pipeline/frame.h"

#include <math.h>
#include <string.h>

struct emit {
    json_t *fields;
    int32_t digits;
};

/* clang-format off */
static const struct w_param params[] = {
    {.name = "fields", .kind = W_PARAM_JSON, .offset = offsetof(struct emit, fields), .help = "a list of members to keep, or an object key → value name"},
    {.name = "digits", .kind = W_PARAM_INT, .offset = offsetof(struct emit, digits), .min = 0, .max = 17, .deflt = 17, .help = "behind the point"},
    {0}};
/* clang-format on */

static bool parse(struct w_step *s, json_t *json, struct w_error *err) {
    const struct emit *e = s->state;
    const char *key;
    json_t *value;
    size_t i;
    (void)json;
    if (e->fields && !json_is_array(e->fields) && !json_is_object(e->fields))
        return w_fail(err, W_BAD_MODEL, "\"fields\" must be a list or an object");
    json_array_foreach(e->fields, i, value) if (!json_is_string(value)) return w_fail(
        err, W_BAD_MODEL, "\"fields\"[%zu] is no string", i);
    json_object_foreach(e->fields, key, value) if (!json_is_string(value)) return w_fail(
        err, W_BAD_MODEL, "\"fields\": \"%s\" must name a value", key);
    return true;
}

static bool check(struct w_step *s, const struct w_spec *in, struct w_spec *out,
                  struct w_error *err) {
    const struct emit *e = s->state;
    const char *key;
    json_t *value;
    struct w_spec spec;
    (void)in;
    *out = (struct w_spec){.type = W_JSON, .rank = -1};
    json_object_foreach(
        e->fields, key,
        value) if (!w__spec_of(s->pipeline, s, json_string_value(value),
                               &spec)) return w_fail(err, W_BAD_MODEL,
                                                     "\"fields\": \"%s\" takes the value \"%s\", "
                                                     "and no step before gives that name",
                                                     key, json_string_value(value));
    return true;
}

static double rounded(const struct emit *e, double v) {
    double unit = pow(10, e->digits);
    return e->digits >= 17 || !isfinite(v * unit) ? v : nearbyint(v * unit) / unit;
}

static bool keeps(const struct emit *e, const char *member) {
    size_t i;
    json_t *value;
    if (!json_is_array(e->fields)) return true;
    json_array_foreach(e->fields, i,
                       value) if (!strcmp(json_string_value(value), member)) return true;
    return false;
}

static void put_number(struct w_text *t, const struct emit *e, double v) {
    if (e->digits >= 17)
        w_text_float(t, (float)v);
    else
        w_text_double(t, rounded(e, v));
}

static void put_labels(struct w_text *t, const struct emit *e, const struct w_value *v) {
    w_text_puts(t, "[");
    for (size_t i = 0; i < v->labels.n; i++) {
        const struct w_label *l = &v->labels.items[i];
        const char *comma = "";
        w_text_puts(t, i ? ",{" : "{");
        if (keeps(e, "index")) w_text_printf(t, "\"index\":%lld", (long long)l->index), comma = ",";
        if (l->label && keeps(e, "label")) {
            w_text_printf(t, "%s\"label\":", comma);
            w_text_string(t, l->label, strlen(l->label));
            comma = ",";
        }
        if (keeps(e, "score")) {
            w_text_printf(t, "%s\"score\":", comma);
            put_number(t, e, l->score);
        }
        w_text_puts(t, "}");
    }
    w_text_puts(t, "]");
}

static bool put_tensor(struct w_text *t, const struct emit *e, const struct op_tensor *x,
                       struct w_row *row, struct w_error *err) {
    if (e->digits >= 17 || (x->dtype != OP_F32 && x->dtype != OP_F64) || row->b64)
        return w_text_tensor(t, x, row->b64, err);
    const int64_t n = op_tensor_count(x);
    w_text_printf(t, "{\"dtype\":\"%s\",\"shape\":[", op_type_name(x->dtype));
    for (int i = 0; i < x->rank; i++) w_text_printf(t, i ? ",%lld" : "%lld", (long long)x->dims[i]);
    w_text_puts(t, "],\"data\":[");
    for (int64_t i = 0; i < n; i++) {
        if (i) w_text_puts(t, ",");
        put_number(t, e, w__element(x, i));
    }
    w_text_puts(t, "]}");
    return true;
}

static bool put(struct w_text *t, const struct emit *e, const char *key, const struct w_value *v,
                struct w_row *row, struct w_error *err) {
    if (key) w_text_string(t, key, strlen(key)), w_text_puts(t, ":");
    switch (v->type) {
    case W_LABELS:
        put_labels(t, e, v);
        return true;
    case W_TENSOR:
        return put_tensor(t, e, &v->tensor, row, err);
    case W_TEXT:
        w_text_string(t, v->span.ptr, v->span.len);
        return true;
    case W_JSON:
        w_text_add(t, v->span.ptr, v->span.len);
        return true;
    default:
        return w_fail(err, W_UNSUPPORTED, "a value of type %s cannot be written as JSON",
                      w_type_name(v->type));
    }
}

static bool apply(const struct w_step *s, struct w_row *row, const struct w_value *in,
                  struct w_value *out, struct w_error *err) {
    const struct emit *e = s->state;
    struct w_text t = {.arena = &row->arena};
    w_text_puts(&t, "{");
    if (json_is_object(e->fields)) {
        const char *key;
        json_t *name;
        bool first = true;
        json_object_foreach(e->fields, key, name) {
            const struct w_value *v = w__frame_find(row, json_string_value(name));
            if (!v)
                return w_fail(err, W_INTERNAL, "the value \"%s\" is not there",
                              json_string_value(name));
            if (!first) w_text_puts(&t, ",");
            first = false;
            if (!put(&t, e, key, v, row, err)) return false;
        }
    } else if (!put(&t, e, w__answer_key(in->type), in, row, err)) {
        return false;
    }
    w_text_puts(&t, "}");
    if (t.failed) return w_fail(err, W_NO_MEMORY, "the result is larger than this row's memory");
    out->span = (struct w_span){t.ptr, t.len};
    return true;
}

static const struct w_step_desc desc = {.name = "emit",
                                        .summary =
                                            "says what the answer holds, and with how many digits",
                                        .params = params,
                                        .state_bytes = sizeof(struct emit),
                                        .takes = (1u << W_TYPE_N) - 1,
                                        .gives = W_JSON,
                                        .parse = parse,
                                        .check = check,
                                        .apply = apply};
W_STEP(desc);
