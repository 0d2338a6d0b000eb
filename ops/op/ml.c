/* ml.c: see ml.h. */
#include "ops/op/ml.h"
#include "ops/op/nn.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

enum op_status op__ml_transform_parse(const struct op_node *n, struct op_error *err,
                                      enum ml_transform *dst) {
    static const char *const names[] = {"NONE", "SOFTMAX", "LOGISTIC", "SOFTMAX_ZERO", "PROBIT"};
    const char *name = op__attr_string(n, "post_transform", "NONE");
    for (int i = 0; i < 5; i++)
        if (!strcmp(names[i], name)) {
            *dst = (enum ml_transform)i;
            return OP_OK;
        }
    return op__node_fail(
        err, n, OP_BAD_VALUE,
        "post_transform is \"%s\", must be NONE, SOFTMAX, LOGISTIC, SOFTMAX_ZERO or PROBIT", name);
}

/* Winitzki's approximation of erf⁻¹, of 2 parts in a thousand, and two of Newton's steps on erf. */
static double inverse_erf(double x) {
    const double a = 0.147, l = log(1 - x * x), t = 2 / (M_PI * a) + l / 2;
    double y = copysign(sqrt(sqrt(t * t - l / a) - t), x);
    for (int i = 0; i < 2 && isfinite(y); i++) y -= (erf(y) - x) / (M_2_SQRTPI * exp(-y * y));
    return y;
}

void op__ml_transform(enum ml_transform transform, double *scores, int64_t n) {
    if (transform == ML_LOGISTIC)
        for (int64_t i = 0; i < n; i++) scores[i] = 1 / (1 + exp(-scores[i]));
    if (transform == ML_PROBIT)
        for (int64_t i = 0; i < n; i++) scores[i] = M_SQRT2 * inverse_erf(2 * scores[i] - 1);
    if (transform != ML_SOFTMAX && transform != ML_SOFTMAX_ZERO) return;
    double top = -INFINITY, sum = 0;
    const bool skip = transform == ML_SOFTMAX_ZERO;
    for (int64_t i = 0; i < n; i++) top = fmax(top, scores[i]);
    for (int64_t i = 0; i < n; i++) {
        if (skip && scores[i] == 0) continue;
        scores[i] = exp(scores[i] - top);
        sum += scores[i];
    }
    for (int64_t i = 0; i < n && sum != 0; i++) scores[i] /= sum;
}

void op__ml_two_scores(enum ml_transform transform, bool by_probability, double *scores) {
    const double s = scores[0];
    if (transform == ML_PROBIT) {
        scores[1] = s;
        op__ml_transform(ML_PROBIT, scores + 1, 1);
        scores[0] = -scores[1];
    } else if (by_probability) {
        scores[0] = 1 - s;
        scores[1] = s;
    } else {
        scores[0] = -s;
        scores[1] = s;
        op__ml_transform(transform, scores, 2);
    }
}

enum op_status op__ml_labels_parse(const struct op_node *n, struct op_error *err,
                                   const char *ints_name, const char *strings_name,
                                   struct ml_labels *dst) {
    const struct op_attr *strings = op__attr(n, strings_name);
    int64_t n_ints;
    const int64_t *ints = op__attr_ints(n, ints_name, &n_ints);
    memset(dst, 0, sizeof *dst);
    if (strings && strings->kind == OP_ATTR_STRINGS && strings->n > 0) {
        dst->strings = strings->strings;
        dst->n = strings->n;
    } else if (n_ints > 0) {
        dst->ints = ints;
        dst->n = n_ints;
    } else {
        return op__node_fail(err, n, OP_BAD_MODEL, "has neither %s nor %s", ints_name,
                             strings_name);
    }
    return OP_OK;
}

void op__ml_label_store(const struct ml_labels *labels, int64_t label, struct op_tensor *dst,
                        int64_t i) {
    if (!dst) return;
    if (labels->strings)
        ((struct op_string *)dst->data)[i] = labels->strings[label];
    else
        ((int64_t *)dst->data)[i] = labels->ints[label];
}

enum op_status op__ml_rows(const struct op_ctx *ctx, int64_t *rows, int64_t *features) {
    const struct op_tensor *x = ctx->in[0];
    char text[160];
    if (!x || x->kind != OP_KIND_TENSOR ||
        (x->dtype != OP_F32 && x->dtype != OP_F64 && x->dtype != OP_I32 && x->dtype != OP_I64))
        return op__fail(ctx, OP_BAD_TYPE, "takes f32, f64, i32 or i64, not %s",
                        x ? op_type_name(x->dtype) : "(absent)");
    if (x->rank != 1 && x->rank != 2)
        return op__fail(ctx, OP_BAD_SHAPE, "takes (rows, features), not %s",
                        op_tensor_describe(x, text, sizeof text));
    *rows = x->rank == 2 ? x->dims[0] : 1;
    *features = x->dims[x->rank - 1];
    return OP_OK;
}

struct ml_list op__ml_list(const struct op_node *n, const char *name) {
    char as_tensor[64];
    struct ml_list list = {0};
    snprintf(as_tensor, sizeof as_tensor, "%s_as_tensor", name);
    list.floats = op__attr_floats(n, name, &list.n);
    if (list.n) return list;
    list.tensor = op__attr_tensor(n, as_tensor);
    if (list.tensor && list.tensor->dtype != OP_F32 && list.tensor->dtype != OP_F64)
        list.tensor = NULL;
    list.n = list.tensor ? op_tensor_count(list.tensor) : 0;
    return list;
}

double op__ml_list_at(const struct ml_list *list, int64_t i) {
    return list->floats ? list->floats[i] : nn_load(list->tensor, i);
}
