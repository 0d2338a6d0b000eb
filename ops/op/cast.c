/* cast.c: Cast and CastLike between all numeric types, bool and strings.
 *
 * Elements go through a block of f32, f64, i64 or u64, whichever holds every value of the source
 * type, so that there are four readers and four writers of each type instead of a loop a pair, and
 * each value is rounded once: a double becomes f16 by way of an f32 rounded to odd.
 *
 * The narrow types (ops/narrow.c) are read into f32 or i64 and written from them.
 *
 * What the specification leaves open: a float beyond the range of a narrow integer is cut to i64
 * and then wraps, as two's complement does (300.0 to u8 is 44, -1.0 is 255); beyond the range of 64
 * bits it is the nearest end; NaN is 0. A float prints with the fewest digits that read back as the
 * same value, in numpy's form ("1.0", "1e-08"). Integers of 4 and 2 bits and float4's NaN: ONNX's
 * own reference rounded and cut to the range before opset 24, since then it truncates and wraps
 * like any other integer and NaN is -0; both are done, by the model's opset. */
#include "ops/op/elementwise.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

OP_VECTOR_FILE

enum carrier { BY_F32, BY_F64, BY_I64, BY_U64 };

union block {
    float f32[OP_BLOCK];
    double f64[OP_BLOCK];
    int64_t i64[OP_BLOCK];
    uint64_t u64[OP_BLOCK];
};

static enum carrier carrier_of(enum op_type type) {
    if (op__is_narrow_float(type)) return BY_F32;
    switch (type) {
    case OP_F32:
    case OP_F16:
    case OP_BF16:
        return BY_F32;
    case OP_F64:
        return BY_F64;
    case OP_U64:
        return BY_U64;
    default:
        return BY_I64;
    }
}

/* The attributes of a cast to narrow types. */
struct cast_how {
    bool saturate, old_rules; /* old_rules: as before opset 24 */
    enum op_round round;
};

static void read_narrow(union block *b, enum op_type type, const uint8_t *src, int64_t n) {
    if (op__is_narrow_float(type))
        for (int64_t i = 0; i < n; i++) b->f32[i] = op__narrow_to_f32(type, src[i]);
    else
        for (int64_t i = 0; i < n; i++)
            b->i64[i] = type == OP_I4 || type == OP_I2 ? (int64_t)(int8_t)src[i] : (int64_t)src[i];
}

static void read_block(union block *b, enum op_type type, const void *src, int64_t n) {
    if (op__is_narrow(type)) {
        read_narrow(b, type, src, n);
        return;
    }
#define COPY(T, member)                                                                            \
    {                                                                                              \
        const T *s = src;                                                                          \
        for (int64_t i = 0; i < n; i++) b->member[i] = s[i];                                       \
        break;                                                                                     \
    }
    switch (type) {
    case OP_F32:
        COPY(float, f32)
    case OP_F64:
        COPY(double, f64)
    case OP_I8:
        COPY(int8_t, i64)
    case OP_I16:
        COPY(int16_t, i64)
    case OP_I32:
        COPY(int32_t, i64)
    case OP_I64:
        COPY(int64_t, i64)
    case OP_U8:
        COPY(uint8_t, i64)
    case OP_U16:
        COPY(uint16_t, i64)
    case OP_U32:
        COPY(uint32_t, i64)
    case OP_U64:
        COPY(uint64_t, u64)
    case OP_BOOL: {
        const uint8_t *s = src;
        for (int64_t i = 0; i < n; i++) b->i64[i] = s[i] != 0;
        break;
    }
    default:
        op__widen(type, b->f32, src, n);
    }
#undef COPY
}

static inline int64_t to_i64(double v) {
    if (v >= 0x1p63) return INT64_MAX;
    return v >= -0x1p63 ? (int64_t)v : v != v ? 0 : INT64_MIN;
}
static inline uint64_t to_u64(double v) {
    if (v >= 0x1p64) return UINT64_MAX;
    return v >= 0x1p63 ? (uint64_t)v : (uint64_t)to_i64(v);
}
/* Truncated, its last bit set where that lost something: narrowing it again rounds as narrowing v
 * would have. */
static inline float to_odd(double v) {
    union {
        float f;
        uint32_t u;
    } r = {.f = (float)v};
    if (v != v || (double)r.f == v) return r.f;
    if (fabs((double)r.f) > fabs(v)) r.u--;
    r.u |= 1;
    return r.f;
}

/* TO_INT gives an i64 of v, TO_BIG a u64 of it, TO_HALF_FIRST the f32 from which halves are made.
 */
#define WRITER(name, S, TO_INT, TO_BIG, TO_HALF_FIRST)                                             \
    static void name(enum op_type type, void *dst, const S *s, int64_t n) {                        \
        switch (type) {                                                                            \
        case OP_F32:                                                                               \
            WRITE(float, (float)v)                                                                 \
        case OP_F64:                                                                               \
            WRITE(double, (double)v)                                                               \
        case OP_I8:                                                                                \
            WRITE(int8_t, TO_INT(v))                                                               \
        case OP_I16:                                                                               \
            WRITE(int16_t, TO_INT(v))                                                              \
        case OP_I32:                                                                               \
            WRITE(int32_t, TO_INT(v))                                                              \
        case OP_I64:                                                                               \
            WRITE(int64_t, TO_INT(v))                                                              \
        case OP_U8:                                                                                \
            WRITE(uint8_t, TO_INT(v))                                                              \
        case OP_U16:                                                                               \
            WRITE(uint16_t, TO_INT(v))                                                             \
        case OP_U32:                                                                               \
            WRITE(uint32_t, TO_INT(v))                                                             \
        case OP_U64:                                                                               \
            WRITE(uint64_t, TO_BIG(v))                                                             \
        case OP_BOOL:                                                                              \
            WRITE(uint8_t, v != 0)                                                                 \
        default: {                                                                                 \
            float f[OP_BLOCK];                                                                     \
            for (int64_t i = 0; i < n; i++) f[i] = TO_HALF_FIRST(s[i]);                            \
            op__narrow(type, dst, f, n);                                                           \
        }                                                                                          \
        }                                                                                          \
    }
#define WRITE(T, EXPR)                                                                             \
    {                                                                                              \
        T *d = dst;                                                                                \
        for (int64_t i = 0; i < n; i++) {                                                          \
            const __typeof__(*s) v = s[i];                                                         \
            d[i] = (T)(EXPR);                                                                      \
        }                                                                                          \
        break;                                                                                     \
    }
WRITER(write_f32, float, to_i64, to_u64, )
WRITER(write_f64, double, to_i64, to_u64, to_odd)
WRITER(write_i64, int64_t, , (uint64_t), (float))
WRITER(write_u64, uint64_t, (int64_t), , (float))

static void write_narrow_ints(enum op_type type, uint8_t *dst, const union block *b,
                              enum carrier carrier, int64_t n, const struct cast_how *how) {
    const bool is_signed = type == OP_I4 || type == OP_I2;
    const int bits = op__type_bits(type);
    const int64_t low = is_signed ? -(1 << (bits - 1)) : 0, high = low + (1 << bits) - 1;
    for (int64_t i = 0; i < n; i++) {
        double real = carrier == BY_F32 ? (double)b->f32[i] : carrier == BY_F64 ? b->f64[i] : 0;
        int64_t v = carrier == BY_I64   ? b->i64[i]
                    : carrier == BY_U64 ? (int64_t)b->u64[i]
                                        : to_i64(how->old_rules ? rint(real) : real);
        if (carrier == BY_U64 && b->u64[i] > INT64_MAX && how->old_rules) v = INT64_MAX;
        if (how->old_rules)
            v = v < low ? low : v > high ? high : v;
        else
            v = (int64_t)(((uint64_t)v - (uint64_t)low) & (uint64_t)(high - low)) + low;
        dst[i] = (uint8_t)v;
    }
}

static void write_narrow_floats(enum op_type type, uint8_t *dst, const float *src, int64_t n,
                                const struct cast_how *how) {
    for (int64_t i = 0; i < n; i++)
        dst[i] = type == OP_F4E2M1 && src[i] != src[i] && !how->old_rules
                     ? 8
                     : op__f32_to_narrow(type, src[i], how->saturate, how->round);
}

static void write_block(enum op_type type, void *dst, const union block *b, enum carrier carrier,
                        int64_t n, const struct cast_how *how) {
    if (op__is_narrow_int(type)) {
        write_narrow_ints(type, dst, b, carrier, n, how);
        return;
    }
    if (op__is_narrow(type)) { /* by way of f32; a double rounded to odd, so that it is rounded once */
        float f[OP_BLOCK];
        if (carrier == BY_F64)
            for (int64_t i = 0; i < n; i++) f[i] = to_odd(b->f64[i]);
        else
            write_block(OP_F32, f, b, carrier, n, how);
        write_narrow_floats(type, dst, f, n, how);
        return;
    }
    switch (carrier) {
    case BY_F32:
        write_f32(type, dst, b->f32, n);
        break;
    case BY_F64:
        write_f64(type, dst, b->f64, n);
        break;
    case BY_I64:
        write_i64(type, dst, b->i64, n);
        break;
    case BY_U64:
        write_u64(type, dst, b->u64, n);
        break;
    }
}

struct cast_job {
    enum op_type from, to;
    const char *src;
    char *dst;
    struct cast_how how;
};

static void cast_piece(void *arg, int64_t first, int64_t n) {
    const struct cast_job *job = arg;
    const size_t from = op_type_size(job->from), to = op_type_size(job->to);
    if (job->from == OP_F32 && op__is_half(job->to)) {
        op__narrow(job->to, job->dst + (size_t)first * to,
                   (const float *)(const void *)job->src + first, n);
        return;
    }
    if (op__is_half(job->from) && job->to == OP_F32) {
        op__widen(job->from, (float *)(void *)job->dst + first, job->src + (size_t)first * from, n);
        return;
    }
    for (int64_t i = first; i < first + n; i += OP_BLOCK) {
        union block b;
        int64_t m = first + n - i < OP_BLOCK ? first + n - i : OP_BLOCK;
        read_block(&b, job->from, job->src + (size_t)i * from, m);
        write_block(job->to, job->dst + (size_t)i * to, &b, carrier_of(job->from), m, &job->how);
    }
}

/* --- strings -----------------------------------------------------------------------------------
 */

#define TEXT_MAX 40

/* The shortest decimal form that reads back as v; digits_max are enough for any value of its type.
 */
static int print_float(char *dst, double v, bool is_f32, int digits_max) {
    char text[TEXT_MAX], digits[TEXT_MAX];
    int precision, exponent, n = 0;
    if (v != v) return snprintf(dst, TEXT_MAX, "nan");
    if (isinf(v)) return snprintf(dst, TEXT_MAX, v < 0 ? "-inf" : "inf");
    for (precision = 1; precision < digits_max; precision++) {
        snprintf(text, sizeof text, "%.*e", precision - 1, v);
        if (is_f32 ? strtof(text, NULL) == (float)v : strtod(text, NULL) == v) break;
    }
    snprintf(text, sizeof text, "%.*e", precision - 1, v);
    exponent = atoi(strchr(text, 'e') + 1);
    if (v == 0 || (exponent >= -4 && exponent < 16)) {
        int decimals = precision - 1 - exponent;
        return snprintf(dst, TEXT_MAX, "%.*f", decimals < 1 ? 1 : decimals, v);
    }
    for (const char *c = text; *c != 'e'; c++) digits[n++] = *c;
    digits[n] = 0;
    return snprintf(dst, TEXT_MAX, "%se%c%02d", digits, exponent < 0 ? '-' : '+', abs(exponent));
}

/* Of element 0 of the block. */
static int print_element(char *dst, enum op_type type, const union block *b) {
    switch (carrier_of(type)) {
    case BY_F32:
        return print_float(dst, b->f32[0], true, type == OP_F32 ? 9 : 5);
    case BY_F64:
        return print_float(dst, b->f64[0], false, 17);
    case BY_U64:
        return snprintf(dst, TEXT_MAX, "%" PRIu64, b->u64[0]);
    default:
        if (type == OP_BOOL) return snprintf(dst, TEXT_MAX, b->i64[0] ? "True" : "False");
        return snprintf(dst, TEXT_MAX, "%" PRId64, b->i64[0]);
    }
}

static enum op_status to_strings(struct op_ctx *ctx, const struct op_tensor *src,
                                 struct op_tensor *dst) {
    struct op_string *d = dst->data;
    const int64_t count = op_tensor_count(src);
    for (int64_t i = 0; i < count; i++) {
        union block b;
        char text[TEXT_MAX];
        read_block(&b, src->dtype, (const char *)src->data + (size_t)i * op_type_size(src->dtype),
                   1);
        size_t len = (size_t)print_element(text, src->dtype, &b);
        char *copy = op__run_alloc(ctx, len + 1);
        if (!copy) return OP_NOMEM;
        memcpy(copy, text, len + 1);
        d[i] = (struct op_string){copy, len};
    }
    return OP_OK;
}

/* Reads element 0 of the block from the text; false if it is no number of the type's kind. */
static bool parse_element(const char *text, enum op_type type, union block *b,
                          enum carrier *carrier) {
    char *end;
    errno = 0;
    *carrier = op__is_float(type) || op__is_narrow_float(type) || type == OP_BOOL ? BY_F64 : carrier_of(type);
    if (type == OP_BOOL && (!strcasecmp(text, "true") || !strcasecmp(text, "false"))) {
        b->f64[0] = text[0] == 't' || text[0] == 'T';
        return true;
    }
    switch (*carrier) {
    case BY_I64:
        b->i64[0] = strtoll(text, &end, 10);
        break;
    case BY_U64:
        b->u64[0] = strtoull(text, &end, 10);
        break;
    default:
        if (type == OP_F32) { /* rounded once */
            *carrier = BY_F32;
            b->f32[0] = strtof(text, &end);
        } else {
            b->f64[0] = strtod(text, &end);
        }
    }
    if (errno == ERANGE && (*carrier == BY_I64 || *carrier == BY_U64)) return false;
    return end != text && end[strspn(end, " \t\r\n")] == 0;
}

static enum op_status from_strings(struct op_ctx *ctx, const struct op_tensor *src,
                                   struct op_tensor *dst, const struct cast_how *how) {
    const struct op_string *s = src->data;
    const int64_t count = op_tensor_count(src);
    for (int64_t i = 0; i < count; i++) {
        union block b;
        enum carrier carrier;
        char text[352]; /* the longest exact double has about 330 characters in fixed notation */
        bool fits = s[i].len < sizeof text;
        if (fits && s[i].len) memcpy(text, s[i].data, s[i].len);
        text[fits ? s[i].len : 0] = 0;
        if (!fits || !parse_element(text, dst->dtype, &b, &carrier))
            return op__fail(ctx, OP_BAD_VALUE,
                            "the string \"%.40s\" at element %lld is not of type %s",
                            fits ? text : "(very long)", (long long)i, op_type_name(dst->dtype));
        write_block(dst->dtype, (char *)dst->data + (size_t)i * op_type_size(dst->dtype), &b,
                    carrier, 1, how);
    }
    return OP_OK;
}

/* --- the operators -----------------------------------------------------------------------------
 */

#define OLD_RULES "quern.before_24" /* an attribute that upgrade sets */

static bool castable(int64_t type) {
    return type == OP_STRING || type == OP_BOOL || op__is_float((enum op_type)type) ||
           op__is_int((enum op_type)type) || op__is_narrow((enum op_type)type);
}

static enum op_status how_of(const struct op_ctx *ctx, struct cast_how *how) {
    static const char *const rounds[] = {"up", "down", "nearest"};
    const char *round = op__attr_string(ctx->node, "round_mode", "up");
    *how = (struct cast_how){.saturate = op__attr_int(ctx->node, "saturate", 1) != 0,
                             .old_rules = op__attr_int(ctx->node, OLD_RULES, 0) != 0};
    for (int i = 0; i < 3; i++)
        if (!strcmp(rounds[i], round)) {
            how->round = (enum op_round)i;
            return OP_OK;
        }
    return op__fail(ctx, OP_BAD_VALUE,
                    "round_mode is \"%.40s\", \"up\", \"down\" and \"nearest\" exist", round);
}

static enum op_status infer_to(struct op_ctx *ctx, int64_t to) {
    const struct op_tensor *x = ctx->in[0];
    if (!x || x->kind != OP_KIND_TENSOR || !castable(x->dtype))
        return op__fail(ctx, OP_BAD_TYPE, "takes numbers, bool and strings, not %s",
                        x ? op_type_name(x->dtype) : "(absent)");
    if (!castable(to))
        return op__fail(ctx, OP_UNSUPPORTED, "cannot cast to ONNX's type %lld", (long long)to);
    op__set(ctx, 0, (enum op_type)to, x->rank, x->dims);
    struct cast_how how;
    return how_of(ctx, &how);
}

/* Until opset 5 the type was a name, "FLOAT". */
static enum op_status cast_upgrade(struct op_graph *g, struct op_node *n, int opset,
                                   struct op_error *err) {
    static const struct {
        const char *name;
        enum op_type type;
    } names[] = {{"FLOAT", OP_F32}, {"UINT8", OP_U8},    {"INT8", OP_I8},    {"UINT16", OP_U16},
                 {"INT16", OP_I16}, {"INT32", OP_I32},   {"INT64", OP_I64},  {"STRING", OP_STRING},
                 {"BOOL", OP_BOOL}, {"FLOAT16", OP_F16}, {"DOUBLE", OP_F64}, {"UINT32", OP_U32},
                 {"UINT64", OP_U64}};
    const char *text = opset < 6 ? op__attr_string(n, "to", NULL) : NULL;
    const enum op_type to = opset < 6 ? OP_UNDEFINED : (enum op_type)op__attr_int(n, "to", 0);
    if (opset < 24 && (op__is_narrow_int(to) || to == OP_F4E2M1))
        return op__attr_set_int(g, n, OLD_RULES, 1);
    if (!text) return OP_OK;
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
        if (!strcmp(names[i].name, text)) return op__attr_set_int(g, n, "to", names[i].type);
    return op__node_fail(err, n, OP_BAD_VALUE, "no type is called \"%s\"", text);
}

static enum op_status cast_like_upgrade(struct op_graph *g, struct op_node *n, int opset,
                                        struct op_error *err) {
    return opset >= 19 && opset < 24 && op__attr_set_int(g, n, OLD_RULES, 1) != OP_OK
               ? op__node_fail(err, n, OP_NOMEM, "out of memory")
               : OP_OK;
}

static enum op_status cast_infer(struct op_ctx *ctx) {
    return infer_to(ctx, op__attr_int(ctx->node, "to", 0));
}

static enum op_status cast_like_infer(struct op_ctx *ctx) {
    if (!ctx->in[1]) return op__fail(ctx, OP_BAD_MODEL, "needs two inputs");
    return infer_to(ctx, ctx->in[1]->dtype);
}

static enum op_status cast_run(struct op_ctx *ctx) {
    const struct op_tensor *src = ctx->in[0];
    struct op_tensor *dst = ctx->out[0];
    if (!dst) return OP_OK;
    if (src->dtype == dst->dtype) {
        int64_t bytes = op_tensor_bytes(src);
        if (bytes > 0 && dst->data != src->data) memcpy(dst->data, src->data, (size_t)bytes);
        return OP_OK;
    }
    if (dst->dtype == OP_STRING) return to_strings(ctx, src, dst);
    struct cast_job job = {.from = src->dtype, .to = dst->dtype, .src = src->data, .dst = dst->data};
    enum op_status st = how_of(ctx, &job.how);
    if (st != OP_OK) return st;
    if (src->dtype == OP_STRING) return from_strings(ctx, src, dst, &job.how);
    op__pieces(ctx, op_tensor_count(src), cast_piece, &job);
    return OP_OK;
}

static const struct op_desc cast = {.name = "Cast",
                                    .domain = "",
                                    .since = 1,
                                    .in_min = 1,
                                    .in_max = 1,
                                    .out_min = 1,
                                    .out_max = 1,
                                    .upgrade = cast_upgrade,
                                    .infer = cast_infer,
                                    .run = cast_run};
OP_REGISTER(cast);
static const struct op_desc cast_like = {.name = "CastLike",
                                         .domain = "",
                                         .since = 15,
                                         .in_min = 2,
                                         .in_max = 2,
                                         .out_min = 1,
                                         .out_max = 1,
                                         .upgrade = cast_like_upgrade,
                                         .infer = cast_like_infer,
                                         .run = cast_run};
OP_REGISTER(cast_like);
