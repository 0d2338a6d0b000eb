/* tensor: what a job sends (nested numbers, base64, a reference, an NPY file) → a tensor of a type
 * and shape.
 *
 * shape is that of one row; -1 stands for any length. What is sent may have one dimension more:
 * then it is several rows. affine [a, b] makes a·x + b of each element (float types only). */
#include "worker/pipeline/frame.h"

#include <stdio.h>
#include <string.h>

struct tensor {
    int32_t dtype;
    struct w_floats shape, affine;
    struct op_io io; /* what the decoder is told: the shape behind a free batch dimension */
};

#define TYPE_CHOICES "f32 f64 f16 bf16 u8 i8 u16 i16 u32 i32 u64 i64 bool string"
static const enum op_type types[] = {OP_F32, OP_F64, OP_F16, OP_BF16, OP_U8,  OP_I8,   OP_U16,
                                     OP_I16, OP_U32, OP_I32, OP_U64,  OP_I64, OP_BOOL, OP_STRING};

/* clang-format off */
static const struct w_param params[] = {
    {.name = "dtype", .kind = W_PARAM_CHOICE, .offset = offsetof(struct tensor, dtype), .choices = TYPE_CHOICES},
    {.name = "shape", .kind = W_PARAM_FLOATS, .offset = offsetof(struct tensor, shape), .min = -1, .max = 1e9, .help = "of one row; -1: any"},
    {.name = "affine", .kind = W_PARAM_FLOATS, .offset = offsetof(struct tensor, affine), .help = "[a, b]: a·x + b of each element"},
    {0}};
/* clang-format on */

static bool parse(struct w_step *s, json_t *json, struct w_error *err) {
    struct tensor *t = s->state;
    (void)json;
    t->io = (struct op_io){.name = "input", .dtype = types[t->dtype], .rank = -1};
    if (t->shape.n >= OP_RANK_MAX)
        return w_fail(err, W_BAD_MODEL, "\"shape\" has %d dimensions, at most %d are possible",
                      t->shape.n, OP_RANK_MAX - 1);
    if (t->shape.n) t->io.rank = t->shape.n + 1;
    t->io.dims[0] = -1;
    for (int i = 0; i < t->shape.n; i++) {
        if (t->shape.v[i] != (int64_t)t->shape.v[i])
            return w_fail(err, W_BAD_MODEL,
                          "\"shape\" has the number %g: whole numbers are expected", t->shape.v[i]);
        t->io.dims[i + 1] = (int64_t)t->shape.v[i];
    }
    bool is_float = t->io.dtype == OP_F32 || t->io.dtype == OP_F64 || t->io.dtype == OP_F16 ||
                    t->io.dtype == OP_BF16;
    if (t->affine.n && (t->affine.n != 2 || !is_float))
        return w_fail(err, W_BAD_MODEL, "\"affine\" must be two numbers, and the dtype a float");
    return true;
}

static bool check(struct w_step *s, const struct w_spec *in, struct w_spec *out,
                  struct w_error *err) {
    const struct tensor *t = s->state;
    (void)in;
    (void)err;
    *out = (struct w_spec){
        .type = W_TENSOR, .dtype = t->io.dtype, .rank = t->shape.n ? t->shape.n : -1};
    for (int i = 0; i < t->shape.n; i++) out->dims[i] = t->io.dims[i + 1];
    return true;
}

/* A flat row of the right count (of a table, or a plain list) takes the shape, in which one
 * dimension may be free. */
static bool unflatten(const struct tensor *t, struct op_tensor *v) {
    int64_t known = 1, count = op_tensor_count(v);
    int free_dim = 0;
    for (int i = 1; i < t->io.rank; i++) {
        if (t->io.dims[i] < 0 && free_dim) return false;
        if (t->io.dims[i] < 0)
            free_dim = i;
        else if (__builtin_mul_overflow(known, t->io.dims[i], &known))
            return false;
    }
    if (known < 1 || count % known || (!free_dim && count != known)) return false;
    v->rank = t->shape.n;
    for (int i = 0; i < v->rank; i++)
        v->dims[i] = i + 1 == free_dim ? count / known : t->io.dims[i + 1];
    return true;
}

/* One row keeps its own rank; several have the batch dimension in front. */
static bool shape_up(const struct tensor *t, bool flat, struct op_tensor *v, struct w_error *err) {
    char sent[128];
    op_tensor_describe(v, sent, sizeof sent);
    int skip = v->rank == t->io.rank;
    if ((flat || (v->rank == 1 && t->shape.n > 1)) && unflatten(t, v)) return true;
    if (v->rank - skip != t->shape.n)
        return w_fail(err, W_BAD_SHAPE,
                      "the job sent %s, of rank %d; %d for one row or %d for several was expected",
                      sent, v->rank, t->shape.n, t->io.rank);
    for (int i = 0; i < t->shape.n; i++)
        if (t->io.dims[i + 1] >= 0 && v->dims[i + skip] != t->io.dims[i + 1])
            return w_fail(err, W_BAD_SHAPE, "the job sent %s (dimension %d is %lld, not %lld)",
                          sent, i + skip, (long long)v->dims[i + skip],
                          (long long)t->io.dims[i + 1]);
    return true;
}

static bool scale(const struct tensor *t, struct w_arena *arena, struct op_tensor *v,
                  struct w_error *err) {
    int64_t n = op_tensor_count(v);
    void *dst = w_arena_array(arena, (size_t)n, op_type_size(v->dtype));
    if (!dst)
        return w_fail(err, W_TOO_LARGE,
                      "%lld elements are more than what is left of a row's memory", (long long)n);
    for (int64_t i = 0; i < n; i++) {
        struct w_number number = {.value = w__element(v, i) * t->affine.v[0] + t->affine.v[1]};
        if (!w__store(v->dtype, dst, i, &number))
            return w_fail(err, W_BAD_DTYPE, "element %lld becomes %g, which %s cannot hold",
                          (long long)i, number.value, op_type_name(v->dtype));
    }
    v->data = dst;
    return true;
}

static bool apply(const struct w_step *s, struct w_row *row, const struct w_value *in,
                  struct w_value *out, struct w_error *err) {
    const struct tensor *t = s->state;
    const struct w_source_of *of = w__row_source(row);
    const struct op_tensor none = {.rank = -1};
    bool good;
    if (in->type == W_TENSOR) {
        out->tensor = in->tensor;
        good = w__convert(of, t->io.dtype, &out->tensor, err);
    } else if (in->type == W_BYTES) {
        good = w__decode_bytes(of, &t->io, in->span, t->io.dtype, &none, &out->tensor, err);
    } else {
        good = w__decode_tensor(of, &t->io, in->span, &out->tensor, err);
    }
    if (!good || (t->shape.n && !shape_up(t, in->flat, &out->tensor, err))) return false;
    out->flat = in->flat && !t->shape.n;
    return !t->affine.n || scale(t, &row->arena, &out->tensor, err);
}

static const struct w_step_desc desc = {.name = "tensor",
                                        .summary = "numbers, base64 or an NPY file become a tensor",
                                        .params = params,
                                        .state_bytes = sizeof(struct tensor),
                                        .takes =
                                            W_TAKES(W_JSON) | W_TAKES(W_BYTES) | W_TAKES(W_TENSOR),
                                        .gives = W_TENSOR,
                                        .parse = parse,
                                        .check = check,
                                        .apply = apply};
W_STEP(desc);
