/* Element types and tensors: names, sizes, counts. */
#include "ops/op.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const char *op_status_name(enum op_status status) {
    switch (status) {
#define X(name, code, text)                                                                        \
    case OP_##name: return code;
        OP_STATUS_MAP(X)
#undef X
    }
    return "?";
}

size_t op_type_size(enum op_type type) {
    switch (type) {
#define X(name, value, size, text)                                                                 \
    case OP_##name: return size;
        OP_TYPE_MAP(X)
#undef X
    default: return 0;
    }
}

const char *op_type_name(enum op_type type) {
    switch (type) {
#define X(name, value, size, text)                                                                 \
    case OP_##name: return text;
        OP_TYPE_MAP(X)
#undef X
    default: return "undefined";
    }
}

enum op_type op_type_parse(const char *name) {
#define X(id, value, size, text)                                                                   \
    if (strcmp(name, text) == 0) return OP_##id;
    OP_TYPE_MAP(X)
#undef X
    return OP_UNDEFINED;
}

double op_tensor_number(const struct op_tensor *t, int64_t i) {
    if (op__is_narrow(t->dtype)) return (double)op__narrow_to_f32(t->dtype, ((const uint8_t *)t->data)[i]);
    switch (t->dtype) {
    case OP_F32: case OP_C64: return (double)((const float *)t->data)[i];
    case OP_F64: case OP_C128: return ((const double *)t->data)[i];
    case OP_U8: case OP_BOOL: return ((const uint8_t *)t->data)[i];
    case OP_I8: return ((const int8_t *)t->data)[i];
    case OP_U16: return ((const uint16_t *)t->data)[i];
    case OP_I16: return ((const int16_t *)t->data)[i];
    case OP_I32: return ((const int32_t *)t->data)[i];
    case OP_U32: return ((const uint32_t *)t->data)[i];
    case OP_I64: return (double)((const int64_t *)t->data)[i];
    case OP_U64: return (double)((const uint64_t *)t->data)[i];
    case OP_F16: return (double)op__f16_to_f32(((const uint16_t *)t->data)[i]);
    case OP_BF16: return (double)op__bf16_to_f32(((const uint16_t *)t->data)[i]);
    default: return __builtin_nan("");
    }
}

int64_t op_tensor_count(const struct op_tensor *t) {
    int64_t n = 1;
    bool zero = false;
    if (t->rank < 0 || t->rank > OP_RANK_MAX) return -1;
    for (int i = 0; i < t->rank; i++) {
        if (t->dims[i] < 0 || (t->dims[i] && !op__mul(n, t->dims[i], &n))) return -1;
        zero |= t->dims[i] == 0;
    }
    return zero ? 0 : n;
}

int64_t op_tensor_bytes(const struct op_tensor *t) {
    int64_t n = op_tensor_count(t), bytes;
    if (n < 0 || !op__mul(n, (int64_t)op_type_size(t->dtype), &bytes)) return -1;
    return bytes;
}

static size_t describe_dims(const struct op_tensor *t, char *dst, size_t room) {
    size_t len = 0;
    int w = snprintf(dst, room, "%s[", op_type_name(t->dtype));
    for (int i = 0; i <= t->rank && w >= 0; i++) {
        len += (size_t)w;
        size_t left = len < room ? room - len : 0;
        char *at = left ? dst + len : NULL;
        if (i == t->rank) w = snprintf(at, left, "]");
        else if (t->dims[i] < 0) w = snprintf(at, left, "%s?", i ? "," : "");
        else w = snprintf(at, left, "%s%lld", i ? "," : "", (long long)t->dims[i]);
    }
    return len + (w > 0 ? (size_t)w : 0);
}

char *op_tensor_describe(const struct op_tensor *t, char *dst, size_t dst_bytes) {
    if (!dst_bytes) return dst;
    if (t->kind == OP_KIND_SEQUENCE)
        snprintf(dst, dst_bytes, "sequence of %lld %s tensors", (long long)t->n_items, op_type_name(t->dtype));
    else if (t->kind == OP_KIND_OPTIONAL && t->n_items == 1 && t->items) {
        int w = snprintf(dst, dst_bytes, "optional ");
        if ((size_t)w < dst_bytes) op_tensor_describe(&t->items[0], dst + w, dst_bytes - (size_t)w);
    } else if (t->kind == OP_KIND_OPTIONAL) snprintf(dst, dst_bytes, "empty optional");
    else if (t->rank < 0 || t->rank > OP_RANK_MAX) snprintf(dst, dst_bytes, "%s of unknown rank", op_type_name(t->dtype));
    else describe_dims(t, dst, dst_bytes);
    return dst;
}

bool op__broadcast(int rank_a, const int64_t *a, int rank_b, const int64_t *b, int *rank, int64_t *dims) {
    int r = rank_a > rank_b ? rank_a : rank_b;
    int64_t out[OP_RANK_MAX];
    if (r > OP_RANK_MAX) return false;
    for (int i = 1; i <= r; i++) { /* from the last dimension */
        int64_t da = i <= rank_a ? a[rank_a - i] : 1, db = i <= rank_b ? b[rank_b - i] : 1;
        if (da != db && da != 1 && db != 1) return false;
        out[r - i] = da == 1 ? db : da;
    }
    *rank = r;
    if (r) memcpy(dims, out, (size_t)r * sizeof *dims); /* dims may be a or b */
    return true;
}

void op_tensor_free(struct op_tensor *t) {
    if (!t) return;
    for (int64_t i = 0; i < t->n_items; i++) op_tensor_free(&t->items[i]);
    free(t->items);
    free(t->data); /* of strings: their bytes lie behind the elements in the same block */
    memset(t, 0, sizeof *t);
}
