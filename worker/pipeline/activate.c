/* activate: logits → probabilities: softmax along the last dimension, or sigmoid of each element.
 * The result is f32.
 *
 * A second softmax raises no error by itself and flattens every answer, so it is refused: by the
 * pipeline's own steps at load, and where the elements are all from 0 to 1 and sum to 1 (within
 * 1e-5) when a row comes, for then the model has its own. */
#include "worker/pipeline/scan.h"
#include "worker/pipeline/step.h"

#include <math.h>

enum kind { NONE, SOFTMAX, SIGMOID };

struct activate {
    int32_t kind;
};

/* clang-format off */
static const struct w_param params[] = {
    {.name = "kind", .kind = W_PARAM_CHOICE, .offset = offsetof(struct activate, kind), .choices = "none softmax sigmoid", .required = true, .help = "softmax goes along the last dimension"}, {0}};
/* clang-format on */

static bool check(struct w_step *s, const struct w_spec *in, struct w_spec *out,
                  struct w_error *err) {
    const struct activate *a = s->state;
    if (a->kind != NONE && in->activated)
        return w_fail(err, W_BAD_MODEL,
                      "the tensor is normalised already, by a step activate before this one");
    if (a->kind == SOFTMAX && in->rank == 0)
        return w_fail(err, W_BAD_MODEL, "softmax needs a dimension, the tensor is a scalar");
    if (a->kind != NONE) out->activated = (int8_t)a->kind, out->dtype = OP_F32;
    return true;
}

/* x: n values of one softmax. */
static bool softmax(const struct op_tensor *t, int64_t at, int64_t n, float *dst,
                    struct w_error *err) {
    double most = -INFINITY, sum = 0, total = 0;
    bool normal = n > 1;
    for (int64_t i = 0; i < n; i++) {
        double x = w__element(t, at + i);
        if (isnan(x))
            return w_fail(err, W_BAD_INPUT, "element %lld of the tensor is NaN: it has no softmax",
                          (long long)(at + i));
        if (x > most) most = x;
        total += x;
        normal = normal && x >= 0 && x <= 1;
    }
    if (normal && fabs(total - 1) < 1e-5)
        return w_fail(err, W_BAD_MODEL,
                      "the tensor sums to 1 already: the model ends in a softmax of its own, so "
                      "\"kind\" must be \"none\"");
    if (isinf(most))
        return w_fail(err, W_BAD_INPUT,
                      "the tensor has no finite largest element: it has no softmax");
    for (int64_t i = 0; i < n; i++) sum += exp(w__element(t, at + i) - most);
    for (int64_t i = 0; i < n; i++) dst[i] = (float)(exp(w__element(t, at + i) - most) / sum);
    return true;
}

static bool apply(const struct w_step *s, struct w_row *row, const struct w_value *in,
                  struct w_value *out, struct w_error *err) {
    const struct activate *a = s->state;
    const struct op_tensor *t = &in->tensor;
    out->tensor = *t;
    if (a->kind == NONE) return true;
    const int64_t count = op_tensor_count(t), n = t->rank ? t->dims[t->rank - 1] : 1;
    if (t->dtype == OP_STRING || t->dtype == OP_C64 || t->dtype == OP_C128)
        return w_fail(err, W_BAD_DTYPE, "a tensor of %s cannot be activated",
                      op_type_name(t->dtype));
    float *dst = w_arena_array(&row->arena, (size_t)count, sizeof *dst);
    if (!dst)
        return w_fail(err, W_TOO_LARGE,
                      "%lld elements are more than what is left of a row's memory",
                      (long long)count);
    for (int64_t i = 0; a->kind == SOFTMAX && n > 0 && i < count; i += n)
        if (!softmax(t, i, n, dst + i, err)) return false;
    for (int64_t i = 0; a->kind == SIGMOID && i < count; i++)
        dst[i] = (float)(1 / (1 + exp(-w__element(t, i))));
    out->tensor.dtype = OP_F32;
    out->tensor.data = dst;
    out->activated = (int8_t)a->kind;
    return true;
}

static const struct w_step_desc desc = {.name = "activate",
                                        .summary = "turns logits into probabilities",
                                        .params = params,
                                        .state_bytes = sizeof(struct activate),
                                        .takes = W_TAKES(W_TENSOR),
                                        .gives = W_TENSOR,
                                        .check = check,
                                        .apply = apply};
W_STEP(desc);
