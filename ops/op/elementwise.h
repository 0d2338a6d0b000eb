/* elementwise.h: what the element-by-element operators share. A family is a file of rows: each row
 * is a descriptor with one loop for each element type behind it, and node->desc leads from a node
 * back to its row. */
#ifndef QUERN_OP_ELEMENTWISE_H
#define QUERN_OP_ELEMENTWISE_H

#include "ops/kern/kern.h"
#include "ops/op.h"

#define OP_N_TYPES (OP_I2 + 1)
#define OP_WALK_IN_MAX 3

/* Registers a row, a struct whose first member is `struct op_desc desc`. */
#define OP_REGISTER_ROW(row)                                                                       \
    __attribute__((                                                                                \
        used, section("quern_ops"))) static const struct op_desc *const op__registered_##row =     \
        &row.desc

/* Loops are written so that element i depends on elements i only, also where dst is one of the
 * sources: the compiler may vectorise without a check for overlap. gcc's -O2 vectorises no loop of
 * unknown length, hence the level; nobody reads the floating-point exception flags, so comparisons
 * may be computed where the source would have skipped them. */
#ifdef __clang__
#define OP_VECTOR_FILE
#define OP_INDEPENDENT /* it would warn of each loop that it does not vectorise */
#else
#define OP_VECTOR_FILE _Pragma("GCC optimize(\"O3\", \"no-trapping-math\")")
#define OP_INDEPENDENT _Pragma("GCC ivdep")
#endif

/* --- walking broadcast shapes ------------------------------------------------------------------
 */

/* The output's dimensions without those of size 1, neighbours merged where all inputs allow it; the
 * innermost stride of an input is 0 (repeated) or 1. Built from shapes by op__walk_plan, never
 * fails: infer has checked. */
struct op_walk {
    int rank, n_in;
    int64_t total; /* output elements */
    int64_t dims[OP_RANK_MAX];
    int64_t stride[OP_WALK_IN_MAX][OP_RANK_MAX]; /* in elements */
};

/* A run of n output elements from out_index on; in_index[k] is input k's first element, its step
 * the innermost stride. */
typedef void (*op_walk_fn)(void *arg, int64_t n, int64_t out_index, const int64_t *in_index);

void op__walk_plan(struct op_walk *w, const struct op_tensor *out,
                   const struct op_tensor *const *in, int n_in);
void op__walk(const struct op_ctx *ctx, const struct op_walk *w, op_walk_fn fn, void *arg);

/* Calls fn(arg, first, n) over [0, total) in pieces, on the session's threads. */
void op__pieces(const struct op_ctx *ctx, int64_t total,
                void (*fn)(void *arg, int64_t first, int64_t n), void *arg);

/* --- half precision ----------------------------------------------------------------------------
 */

#define OP_BLOCK 256 /* elements a block on the stack where a type is computed in another */

static inline bool op__is_half(enum op_type type) {
    return type == OP_F16 || type == OP_BF16;
}
static inline bool op__is_float(enum op_type type) {
    return type == OP_F32 || type == OP_F64 || op__is_half(type);
}
static inline bool op__is_int(enum op_type type) {
    return (type >= OP_U8 && type <= OP_I64) || type == OP_U32 || type == OP_U64;
}
void op__widen(enum op_type type, float *dst, const void *src, int64_t n);  /* f16 or bf16 to f32 */
void op__narrow(enum op_type type, void *dst, const float *src, int64_t n); /* f32 to f16 or bf16 */

/* --- one input ---------------------------------------------------------------------------------
 */

#define OP_PARAM_MAX 3
/* dst may be src. param: the row's attributes in order. */
typedef void (*op_unary_fn)(void *dst, const void *src, int64_t n, const float *param);

struct op_param {
    const char *name;
    float dflt;
};

/* f16 and bf16 run the f32 loop. OP_KERN(K_EXP) says that a kernel of kern.h does the same for f32;
 * its a and b are the first two parameters. */
#define OP_KERN(kernel) ((kernel) + 1)

struct op_unary {
    struct op_desc desc;
    op_unary_fn fn[OP_N_TYPES]; /* by the input's type; NULL: not taken */
    enum op_type out;           /* OP_UNDEFINED: as the input */
    int kern;                   /* 0: none */
    struct op_param param[OP_PARAM_MAX];
};

enum op_status op__unary_infer(struct op_ctx *ctx);
enum op_status op__unary_run(struct op_ctx *ctx);
enum op_status op__unary_ref(struct op_ctx *ctx); /* without the kernel */
/* The loop over a whole tensor, for operators that are no plain row. A kernel, if given, takes the
 * place of fn. */
void op__unary_apply(const struct op_ctx *ctx, op_unary_fn fn, k_unary_fn *kern, const float *param,
                     struct op_tensor *dst, const struct op_tensor *src);

/* --- two inputs --------------------------------------------------------------------------------
 */

/* step_a and step_b are 0 or 1, not both 0 unless n is 1. dst may be the input of step 1. */
typedef void (*op_binary_fn)(void *dst, const void *a, const void *b, int64_t n, int step_a,
                             int step_b);

struct op_binary {
    struct op_desc desc;
    op_binary_fn fn[OP_N_TYPES];
    enum op_type out; /* OP_UNDEFINED: as the inputs */
    int kern;         /* 0: none */
};

enum op_status op__binary_upgrade(struct op_graph *g, struct op_node *n, int opset,
                                  struct op_error *err);
enum op_status op__binary_infer(struct op_ctx *ctx);
enum op_status op__binary_run(struct op_ctx *ctx);
enum op_status op__binary_ref(struct op_ctx *ctx);
/* Shape of in[0] and in[1] together into out[0], of this type; the legacy `axis` is honoured. */
enum op_status op__binary_infer_shape(struct op_ctx *ctx, enum op_type out);
/* in[1] as it is to be broadcast: with the legacy `axis`, its dimensions stand at that axis. */
struct op_tensor op__binary_second(const struct op_ctx *ctx);
/* Half types are computed as f32 by fn, of the element sizes that `dst`, `a` and `b` say. */
void op__binary_apply(const struct op_ctx *ctx, op_binary_fn fn, k_binary_fn *kern,
                      struct op_tensor *dst, const struct op_tensor *a, const struct op_tensor *b);

/* --- loops -------------------------------------------------------------------------------------
 */

/* EXPR gives an element of TD from x of TS and param. */
#define OP_UNARY_LOOP(name, TD, TS, EXPR)                                                          \
    static void name(void *dst, const void *src, int64_t n, const float *param) {                  \
        TD *d = dst;                                                                               \
        const TS *s = src;                                                                         \
        (void)param;                                                                               \
        OP_INDEPENDENT for (int64_t i = 0; i < n; i++) {                                           \
            const TS x = s[i];                                                                     \
            d[i] = (TD)(EXPR);                                                                     \
        }                                                                                          \
    }

/* EXPR gives an element of TD from x of TA and y of TB. */
#define OP_BINARY_LOOP(name, TD, TA, TB, EXPR)                                                     \
    static void name(void *dst, const void *a, const void *b, int64_t n, int step_a, int step_b) { \
        TD *d = dst;                                                                               \
        const TA *pa = a;                                                                          \
        const TB *pb = b;                                                                          \
        if (step_a && step_b) {                                                                    \
            OP_INDEPENDENT for (int64_t i = 0; i < n; i++) {                                       \
                const TA x = pa[i];                                                                \
                const TB y = pb[i];                                                                \
                d[i] = (TD)(EXPR);                                                                 \
            }                                                                                      \
        } else if (step_a) {                                                                       \
            const TB y = *pb;                                                                      \
            OP_INDEPENDENT for (int64_t i = 0; i < n; i++) {                                       \
                const TA x = pa[i];                                                                \
                d[i] = (TD)(EXPR);                                                                 \
            }                                                                                      \
        } else {                                                                                   \
            const TA x = *pa;                                                                      \
            OP_INDEPENDENT for (int64_t i = 0; i < n; i++) {                                       \
                const TB y = pb[step_b ? i : 0];                                                   \
                d[i] = (TD)(EXPR);                                                                 \
            }                                                                                      \
        }                                                                                          \
    }

#endif
