/* Constant and ConstantOfShape. Neither needs more than what is known at load or at plan time, so
 * that in most graphs both are folded away. */
#include "ops/op/move.h"

#include <string.h>

/* The constant as a tensor whose data is the attribute's own. Exactly one of the attributes may be
 * there. */
static enum op_status constant_value(const struct op_ctx *ctx, struct op_tensor *v) {
    static const char *const names[] = {"value",         "value_float", "value_floats",
                                        "value_int",     "value_ints",  "value_string",
                                        "value_strings", "sparse_value"};
    static const enum op_attr_kind kinds[] = {OP_ATTR_TENSOR,  OP_ATTR_FLOAT, OP_ATTR_FLOATS,
                                              OP_ATTR_INT,     OP_ATTR_INTS,  OP_ATTR_STRING,
                                              OP_ATTR_STRINGS, OP_ATTR_TENSOR};
    static const enum op_type types[] = {OP_UNDEFINED, OP_F32,    OP_F32,    OP_I64,
                                         OP_I64,       OP_STRING, OP_STRING, OP_UNDEFINED};
    const struct op_attr *found = NULL;
    int which = 0;
    for (int i = 0; i < 8; i++) {
        const struct op_attr *a = op__attr(ctx->node, names[i]);
        if (!a) continue;
        if (found)
            return op__fail(ctx, OP_BAD_MODEL, "both %s and %s are given", found->name, a->name);
        if (a->kind != kinds[i])
            return op__fail(ctx, OP_BAD_TYPE,
                            "the attribute %s is of another kind than its name says", a->name);
        found = a;
        which = i;
    }
    if (!found) return op__fail(ctx, OP_BAD_MODEL, "the attribute value is missing");
    *v = (struct op_tensor){.dtype = types[which], .rank = 1, .dims = {found->n}};
    switch (found->kind) {
    case OP_ATTR_TENSOR:
        *v = *found->t;
        break;
    case OP_ATTR_FLOAT:
        v->rank = 0, v->data = (void *)(uintptr_t)&found->f;
        break;
    case OP_ATTR_INT:
        v->rank = 0, v->data = (void *)(uintptr_t)&found->i;
        break;
    case OP_ATTR_STRING:
        v->rank = 0, v->data = (void *)(uintptr_t)&found->s;
        break;
    case OP_ATTR_FLOATS:
        v->data = found->floats;
        break;
    case OP_ATTR_INTS:
        v->data = found->ints;
        break;
    case OP_ATTR_STRINGS:
        v->data = found->strings;
        break;
    default:
        return op__fail(ctx, OP_UNSUPPORTED, "the attribute %s is not supported", found->name);
    }
    if (op_tensor_bytes(v) < 0) return op__fail(ctx, OP_BAD_MODEL, "the value has no valid size");
    return OP_OK;
}

static enum op_status constant_infer(struct op_ctx *ctx) {
    struct op_tensor v;
    enum op_status st = constant_value(ctx, &v);
    if (st == OP_OK) op__set(ctx, 0, v.dtype, v.rank, v.dims);
    return st;
}

static enum op_status constant_run(struct op_ctx *ctx) {
    struct op_tensor v;
    enum op_status st = constant_value(ctx, &v);
    if (st == OP_OK && op_tensor_bytes(&v) > 0)
        memcpy(ctx->out[0]->data, v.data, (size_t)op_tensor_bytes(&v));
    return st;
}

static const struct op_desc constant = {
    .name = "Constant",
    .domain = "",
    .since = 1,
    .in_min = 0,
    .in_max = 0,
    .out_min = 1,
    .out_max = 1,
    .infer = constant_infer,
    .run = constant_run,
};
OP_REGISTER(constant);

/* --- ConstantOfShape: a tensor of this shape filled with one value (f32 zero where none is given)
 * ------------ */

static enum op_status of_shape_infer(struct op_ctx *ctx) {
    enum op_status st = op__need_tensors(ctx, 1);
    int64_t dims[OP_RANK_MAX];
    int rank;
    char text[OP__DIMS_TEXT];
    const struct op_tensor *value = op__attr_tensor(ctx->node, "value");
    if (st == OP_OK) st = op__read_ints(ctx, 0, "the shape", OP_RANK_MAX, dims, &rank);
    if (st != OP_OK) return st;
    if (value && (op_tensor_count(value) != 1 || !value->data))
        return op__fail(ctx, OP_BAD_VALUE, "value has %lld elements, one is expected",
                        (long long)op_tensor_count(value));
    for (int i = 0; i < rank; i++)
        if (dims[i] < 0)
            return op__fail(ctx, OP_BAD_VALUE, "the shape %s has a negative dimension",
                            op__dims_text(rank, dims, text));
    st = op__check_size(ctx, value ? value->dtype : OP_F32, rank, dims);
    if (st == OP_OK) op__set(ctx, 0, value ? value->dtype : OP_F32, rank, dims);
    return st;
}

static enum op_status of_shape_run(struct op_ctx *ctx) {
    static const float zero = 0;
    const struct op_tensor *value = op__attr_tensor(ctx->node, "value");
    struct op_tensor *y = ctx->out[0];
    op__fill(y->data, op_tensor_count(y), value ? value->data : &zero, op_type_size(y->dtype));
    return OP_OK;
}

static const struct op_desc constant_of_shape = {
    .name = "ConstantOfShape",
    .domain = "",
    .since = 9,
    .in_min = 1,
    .in_max = 1,
    .out_min = 1,
    .out_max = 1,
    .infer = of_shape_infer,
    .run = of_shape_run,
};
OP_REGISTER(constant_of_shape);
